//! Several nodes of one owner, booted side by side.
//!
//! Owns: their machines, and the switch that they may share. Refuses: deployments; whoever has them deploys.

use anyhow::Result;
use image::qemu::{Boot, Card, Link, Machine, Net};
use types::Bytes;

use crate::switch::Switch;
use crate::{Lab, Setup};

/// Several nodes fit into a small machine's memory.
const MEMORY: Bytes = Bytes::mib(768);

#[derive(Debug)]
pub struct Fleet {
    pub labs: Vec<Lab>,
}

impl Fleet {
    /// Each has a second card on one switch, with the address 192.168.77.1 and so on.
    pub fn on_a_switch(names: &[&str]) -> Result<Self> {
        Self::on_a_switch_and(names, |_, _| {})
    }

    /// The same; `change` sees each machine, from number 1 on, before its power is switched on.
    pub fn on_a_switch_and(
        names: &[&str],
        mut change: impl FnMut(usize, &mut Machine),
    ) -> Result<Self> {
        let switch = Switch::lay()?;
        Self::of(names, |number, machine| {
            machine.nets.push(Net {
                card: Card::Virtio,
                mac: format!("02:00:00:00:77:{number:02x}").parse().ok(),
                link: Link::Switch { port: switch.port },
            });
            address(machine, &format!("192.168.77.{number}"));
            change(number, machine);
        })
    }

    /// `change` sees each machine, from number 1 on, before its power is switched on.
    pub fn of(names: &[&str], mut change: impl FnMut(usize, &mut Machine)) -> Result<Self> {
        let setup = Setup {
            memory: MEMORY,
            ..Setup::default()
        };
        let mut labs: Vec<Lab> = Vec::new();
        for (number, name) in (1..).zip(names) {
            let mut lab = match labs.first() {
                None => Lab::named(name, &setup)?,
                Some(first) => Lab::beside(first, name, &setup)?,
            };
            change(number, lab.machine());
            lab.switch_on()?;
            labs.push(lab);
        }
        for lab in &mut labs {
            lab.come_up()?;
            lab.learn_key()?;
        }
        Ok(Self { labs })
    }

    pub fn consoles(&self) -> String {
        let all: Vec<String> = self.labs.iter().map(Lab::console).collect();
        all.join("\n----\n")
    }
}

/// The address of a node on the switch: all that is said of the node's own network.
pub fn address(machine: &mut Machine, address: &str) {
    let told = format!("sifr.net.eth0.dhcp=on sifr.net.eth1.address={address}/24");
    if let Boot::Kernel { arguments, .. } = &mut machine.boot {
        let words = arguments
            .split(' ')
            .filter(|word| !word.starts_with("sifr.net."));
        let words: Vec<&str> = words.chain(told.split(' ')).collect();
        *arguments = words.join(" ");
    }
}
