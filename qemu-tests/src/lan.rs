//! A node on a network of the test's own, on which the test is another host and the router.
//!
//! Owns: the node, its network, an image for machines, and pages that are asked for from the LAN. Refuses: what runs there.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use image::qemu::{Card, Link, Net};
use serde_json::Value;

use crate::router::{Router, TAP};
use crate::{Lab, PATIENCE, Setup, neighbour};

/// How long is waited for who must not answer.
pub const SILENCE: Duration = Duration::from_secs(2);
/// Between two questions to who may just be starting: nothing tells the outside when it is done.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// The node's address on it, and the router's.
pub const OPTIONS: &str =
    "sifr.net.eth0.address=192.0.2.7/24 sifr.net.eth0.gateway=192.0.2.1 sifr.net.eth0.dhcp=off";

#[derive(Debug)]
pub struct Lan {
    pub lab: Lab,
    pub router: Router,
    flist: PathBuf,
}

impl Lan {
    /// Needs root. The router speaks IPv6 once it is told to, and has these addresses beyond the LAN. `options`: what the node is told beside its
    /// address.
    pub fn lay(options: &str, outside: &[&str]) -> Result<Self> {
        let router = Router::lay(&["2001:db8:6::1/64".parse()?], usize::MAX)?;
        router.add("192.0.2.1/24")?;
        outside.iter().try_for_each(|own| router.add(own))?;
        let setup = Setup {
            arguments: format!("{OPTIONS} {options}").trim_end().to_owned(),
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            machine.nets = vec![Net {
                card: Card::Virtio,
                mac: Some("52:54:00:00:00:06".parse()?),
                link: Link::Tap {
                    name: TAP.to_owned(),
                },
            }];
            Ok(())
        })?;
        let flist = neighbour::image(lab.command(), lab.directory())?;
        Ok(Self { lab, router, flist })
    }

    /// A line of a deployment file.
    pub fn machine(&self, name: &str, program: &str, more: &str) -> String {
        format!(
            "  {name}: {{image: {}, memory: 64Mi, disk: 64Mi, command: [sh, -c, {program:?}]{more}}}\n",
            self.flist.display()
        )
    }

    pub fn deploy(&self, yaml: &str) {
        let answer = self.lab.deploy(yaml).expect("sifr runs");
        answer.must().unwrap_or_else(|e| panic!("{e:#}\n{yaml}"));
    }

    /// What is said against it.
    pub fn refusal(&self, yaml: &str) -> String {
        let answer = self.lab.deploy(yaml).expect("sifr runs");
        assert_ne!(answer.code, 0, "it was accepted:\n{yaml}");
        answer.stderr
    }

    /// The first address of a machine's own.
    pub fn own(&self, deployment: &str, machine: &str) -> IpAddr {
        let status = self.lab.get(deployment).expect("a status");
        let own = &status["workloads"][machine]["addresses"][0];
        let own = own.as_str().and_then(|own| own.parse().ok());
        own.unwrap_or_else(|| panic!("no address: {status}"))
    }

    /// Packets of that kind that the node has refused to the machine.
    pub fn refused(&self, machine: &str, kind: &str) -> u64 {
        let answer = self.lab.sifr(&["--output", "json", "node", "refused"]);
        let answer = answer.expect("sifr runs").must().expect("it answers");
        let all: Vec<Value> = serde_json::from_str(&answer.stdout).expect("JSON");
        let is = |one: &&Value| one["workload"] == machine && one["kind"] == kind;
        let found = all.iter().find(is);
        found.map_or(0, |one| one["packets"].as_u64().expect("a count"))
    }
}

/// The page that is served there, by a machine that may just be starting.
pub fn page(at: impl Into<IpAddr>, port: u16) -> Result<String> {
    let (to, end) = (SocketAddr::new(at.into(), port), Instant::now() + PATIENCE);
    loop {
        match try_page(to) {
            Ok(page) if !page.is_empty() => return Ok(page),
            other => ensure!(Instant::now() < end, "{to}: {other:?}"),
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

fn try_page(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, SILENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

pub fn is_closed(at: impl Into<IpAddr>, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(at.into(), port), SILENCE).is_err()
}
