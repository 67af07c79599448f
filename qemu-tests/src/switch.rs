//! A switch that several nodes are plugged into.
//!
//! Owns: one loopback port, which QEMU's `socket` back ends connect to, and the frames between them.
//! Refuses: learning who is where: every port gets every frame.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The largest frame that a card of QEMU sends.
const FRAME_MAX: usize = 64 << 10;
/// How long a port may take nothing before its cable counts as pulled: a machine that hangs must not hold up the others.
const PATIENCE: Duration = Duration::from_secs(30);

/// Each port's socket, by the order in which they were plugged in.
type Ports = Arc<Mutex<BTreeMap<u64, TcpStream>>>;

#[derive(Debug)]
pub struct Switch {
    /// Where cards connect to.
    pub port: u16,
}

impl Switch {
    /// Its threads end with the test's process.
    pub fn lay() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for QEMU")?;
        let port = listener.local_addr()?.port();
        thread::spawn(move || -> Result<()> {
            let ports = Ports::default();
            for number in 0.. {
                let (cable, _) = listener.accept()?;
                cable.set_write_timeout(Some(PATIENCE))?;
                let own = cable.try_clone()?;
                ports
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(number, own);
                let ports = ports.clone();
                // Ends when the machine's power goes.
                thread::spawn(move || relay(cable, number, &ports));
            }
            Ok(())
        });
        Ok(Self { port })
    }
}

fn relay(mut from: TcpStream, number: u64, ports: &Ports) -> Result<()> {
    let mut next = move || -> Result<Vec<u8>> {
        let mut frame = vec![0; 4];
        from.read_exact(&mut frame)?;
        let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        ensure!(length <= FRAME_MAX, "a frame of {length} bytes");
        frame.resize(4 + length, 0);
        from.read_exact(&mut frame[4..])?;
        Ok(frame)
    };
    let lock = || ports.lock().unwrap_or_else(PoisonError::into_inner);
    let ended = loop {
        match next() {
            // A port whose machine is off is unplugged by its own thread.
            Ok(frame) => lock().retain(|at, to| *at == number || to.write_all(&frame).is_ok()),
            Err(error) => break error,
        }
    };
    lock().remove(&number);
    Err(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_out_of_every_other_port() {
        let switch = Switch::lay().expect("a switch");
        let plug = || TcpStream::connect((Ipv4Addr::LOCALHOST, switch.port)).expect("a cable");
        let (mut a, mut b, mut c) = (plug(), plug(), plug());
        let say = |from: &mut TcpStream, word: &[u8; 4]| {
            from.write_all(&[&4u32.to_be_bytes()[..], word].concat())
                .expect("sent");
        };
        let hear = |to: &mut TcpStream| {
            let mut frame = [0; 8];
            to.read_exact(&mut frame).expect("a frame");
            frame[4..].to_vec()
        };
        // All are plugged in once each has heard another; what was said before is lost, as with any switch.
        b.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set");
        c.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("set");
        let both = |a: &mut TcpStream, b: &mut TcpStream, c: &mut TcpStream| {
            say(a, b"here");
            let mut frame = [0; 8];
            let heard = b.read_exact(&mut frame).is_ok();
            c.read_exact(&mut frame).is_ok() && heard
        };
        while !both(&mut a, &mut b, &mut c) {}
        for end in [&b, &c] {
            end.set_read_timeout(None).expect("set");
        }
        drop(c);
        say(&mut b, b"word");
        assert_eq!(hear(&mut a), b"word");
    }
}
