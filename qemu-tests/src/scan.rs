//! Which ports answer.
//!
//! Owns: a connect scan of every TCP port, and questions to UDP services that answer when they are there.
//! Refuses: believing silence. Each batch of ports is closed by one that is known to be open: where that
//! one stays silent, the batch was lost and the scan fails.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Ports asked at a time: each silent one takes a socket for as long as it is waited for.
const BATCH: usize = 8192;
/// Longest wait for one TCP port: the kernel repeats its question after 1 s, so that one lost packet in
/// an emulated network card hides nothing.
const TCP_TIMEOUT: Duration = Duration::from_millis(2500);
/// Longest wait for a UDP answer, over two questions.
const UDP_TIMEOUT: Duration = Duration::from_secs(2);

/// Where ports are asked: an address, and the interface where the address is link-local.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub address: IpAddr,
    pub scope: u32,
}

impl Target {
    fn port(self, port: u16) -> SocketAddr {
        let mut address = SocketAddr::new(self.address, port);
        if let SocketAddr::V6(address) = &mut address {
            address.set_scope_id(self.scope);
        }
        address
    }
}

/// Every open TCP port of `target`. `control` must be open.
pub async fn tcp(target: Target, control: SocketAddr) -> Result<Vec<u16>> {
    let ports: Vec<u16> = (1..=u16::MAX).collect();
    let mut open = Vec::new();
    for batch in ports.chunks(BATCH) {
        let mut asked = JoinSet::new();
        for port in batch {
            let (port, address) = (*port, target.port(*port));
            asked.spawn(async move { connects(address).await.then_some(port) });
        }
        let alive = connects(control).await;
        ensure!(
            alive,
            "{control} did not answer while {:?} was scanned",
            batch.first()
        );
        open.extend(asked.join_all().await.into_iter().flatten());
    }
    open.sort_unstable();
    Ok(open)
}

async fn connects(address: SocketAddr) -> bool {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    // A scan without sockets would find everything closed.
    let socket = socket.expect("the limit of open files was raised for this");
    matches!(
        timeout(TCP_TIMEOUT, socket.connect(address)).await,
        Ok(Ok(_))
    )
}

/// A question that a service on this port cannot but answer.
struct Question {
    port: u16,
    bytes: &'static [u8],
}

/// Sorted by port.
const QUESTIONS: [Question; 16] = [
    // Echo, daytime, character generator: answer anything.
    Question { port: 7, bytes: b"x" },
    Question { port: 13, bytes: b"x" },
    Question { port: 19, bytes: b"x" },
    // DNS: the root's name servers.
    Question { port: 53, bytes: b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01" },
    // DHCP server: anything; what does not parse is not answered, which is why TFTP and others follow.
    Question { port: 67, bytes: b"\x01\x01\x06\x00" },
    Question { port: 68, bytes: b"\x02\x01\x06\x00" },
    // TFTP: read a file that is not there.
    Question { port: 69, bytes: b"\x00\x01absent\x00octet\x00" },
    // Portmapper: the null procedure.
    Question {
        port: 111,
        bytes: b"\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x01\x86\xa0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    },
    // NTP: a client's packet, version 4.
    Question {
        port: 123,
        bytes: b"\x23\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01",
    },
    // NetBIOS: node status of any name.
    Question {
        port: 137,
        bytes: b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x20CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0\0\x21\0\x01",
    },
    // SNMP: get sysDescr, community "public".
    Question {
        port: 161,
        bytes: b"\x30\x29\x02\x01\0\x04\x06public\xa0\x1c\x02\x04\0\0\0\x01\x02\x01\0\x02\x01\0\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\0\x05\0",
    },
    // SSDP and mDNS: who is there?
    Question {
        port: 1900,
        bytes: b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n",
    },
    Question {
        port: 5353,
        bytes: b"\0\0\0\0\0\x01\0\0\0\0\0\0\x09_services\x07_dns-sd\x04_udp\x05local\0\0\x0c\0\x01",
    },
    Question {
        port: 5355,
        bytes: b"\0\x01\0\0\0\x01\0\0\0\0\0\0\x04sifr\0\0\x01\0\x01",
    },
    // What the API or a debugging aid might have on UDP.
    Question { port: 6666, bytes: b"\n" },
    Question { port: 7443, bytes: b"\n" },
];

/// The asked UDP ports that sent anything back.
pub async fn udp(target: Target) -> Result<Vec<u16>> {
    let mut asked = JoinSet::new();
    for Question { port, bytes } in &QUESTIONS {
        let address = target.port(*port);
        asked.spawn(async move {
            answers(address, bytes)
                .await
                .map(|yes| yes.then_some(*port))
        });
    }
    let answered: Result<Vec<_>> = asked.join_all().await.into_iter().collect();
    Ok(answered?.into_iter().flatten().collect())
}

async fn answers(address: SocketAddr, question: &[u8]) -> Result<bool> {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    for _ in 0..2 {
        // "Port unreachable" to the first question is told when the second is sent.
        let _ = socket.send(question).await;
        if let Ok(Ok(_)) = timeout(UDP_TIMEOUT / 2, socket.recv(&mut [0; 1500])).await {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn an_open_port_is_told_from_a_closed_one() {
        let runtime = crate::runtime();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let open = listener.local_addr().expect("an address");
        assert!(runtime.block_on(connects(open)));
        drop(listener);
        assert!(!runtime.block_on(connects(open)));
    }

    #[test]
    fn a_service_that_answers_is_heard() {
        let runtime = crate::runtime();
        let echo = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = echo.local_addr().expect("an address");
        assert!(!runtime.block_on(answers(address, b"x")).expect("a socket"));
        let service = std::thread::spawn(move || {
            let mut buffer = [0; 8];
            // The first asker has gone, its questions are still here.
            for _ in 0..3 {
                let (count, peer) = echo.recv_from(&mut buffer).expect("a question");
                echo.send_to(&buffer[..count], peer).expect("an answer");
            }
        });
        assert!(runtime.block_on(answers(address, b"x")).expect("a socket"));
        service.join().expect("the service ends");
    }

    #[test]
    fn the_questions_are_sorted_and_for_different_ports() {
        assert!(QUESTIONS.is_sorted_by(|a, b| a.port < b.port));
    }
}
