//! The benchmark's side inside the node, and in the guests: machines of several monitors that do the same work.
//!
//! Owns: each kind of work, beside it what the guest does for it. Refuses: verdicts; samples are compared outside.

mod disk;
pub mod monitor;
mod net;
mod paths;
mod scale;
mod snapshot;
mod tenants;
mod vsock;

use std::io::Write;

use anyhow::{Context, Result, bail};
use nix::sys::reboot::RebootMode;

use super::report::{END, Role, Sample};
use crate::inside::end as end_machine;
use crate::nested::node::prepare;
use crate::nested::toolkit::Node;
use monitor::{FIGURE, GUEST_END};

/// Runs of one kind of work in one guest. Odd, so that one is in the middle.
const RUNS: usize = 3;
/// Times that each monitor's guest does all its work, in turn with the others'.
const ROUNDS: usize = 1;

/// Work of a node or guest, as its init. A guest's never returns, but for an error.
pub fn work(role: Role) -> Result<()> {
    let work: fn(&Node) -> Result<Vec<Sample>> = match role {
        Role::Disks => disk::measure,
        Role::Nets => cards_and_sockets,
        Role::Scale => scale::measure,
        Role::Snapshots => snapshot::measure,
        Role::Networks => networks,
        Role::UseDisk => return guest(disk::guest),
        Role::UseNet => return guest(net::guest),
        Role::UseVsock => return guest(vsock::guest),
        Role::Ask => return guest(paths::ask),
        Role::Serve => return guest(paths::serve),
        Role::Sleep => return guest(snapshot::guest),
        Role::Count => return guest(scale::guest),
        Role::Machines | Role::Idle | Role::Sampler | Role::Reset | Role::Wait => {
            bail!("{} is no work of several monitors", role.word())
        }
    };
    let node = prepare().context("prepare the node")?;
    for sample in work(&node)? {
        println!("\n{}", sample.line());
    }
    Ok(())
}

fn cards_and_sockets(node: &Node) -> Result<Vec<Sample>> {
    let mut all = net::measure(node)?;
    all.extend(vsock::measure(node)?);
    Ok(all)
}

fn networks(node: &Node) -> Result<Vec<Sample>> {
    let mut all = paths::measure(node)?;
    all.extend(tenants::measure()?);
    Ok(all)
}

/// A guest's work; what stands in its way is said where its figures are.
fn guest(work: fn() -> Result<()>) -> Result<()> {
    match work() {
        Ok(()) => say(GUEST_END),
        Err(error) => say(&format!("{FIGURE}FAILED: {error:#}")),
    }
    end_machine(RebootMode::RB_AUTOBOOT)
}

/// Says a line on the console, and returns when it is out.
fn say(line: &str) {
    let mut out = std::io::stdout();
    // A guest has nobody else to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    let _ = nix::sys::termios::tcdrain(out);
}

/// Says one run of one kind of work.
fn figure(what: &str, value: f64) {
    say(&format!("{FIGURE}{what} {value}"));
}

/// The last line of the node. When this returns it is out: the kernel's own last words go past what waits.
pub fn end() {
    say(&format!("\n{END}"));
}

/// What guests have said, by kind of work and monitor, in the order in which they were first seen.
#[derive(Debug, Default)]
struct Figures(Vec<(String, String, Vec<f64>)>);

impl Figures {
    fn add(&mut self, who: &str, said: Vec<(String, f64)>) {
        for (what, value) in said {
            let mut known = self.0.iter_mut();
            match known.find(|(w, by, _)| *w == what && by == who) {
                Some((_, _, runs)) => runs.push(value),
                None => self.0.push((what, who.to_owned(), vec![value])),
            }
        }
    }

    fn samples(self) -> Vec<Sample> {
        let all = self.0.into_iter();
        all.map(|(what, who, runs)| Sample::new(what, who, runs))
            .collect()
    }
}

/// `count` of something in so long a time, a second.
fn rate(count: u64, took: std::time::Duration) -> f64 {
    let count = u32::try_from(count).expect("far fewer in a run");
    f64::from(count) / took.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_kind_are_one_sample() {
        let one = |what: &str, value| (what.to_owned(), value);
        let figures = vec![one("read", 1.0), one("write", 2.0), one("read", 3.0)];
        let mut all = Figures::default();
        all.add("QEMU", figures);
        assert_eq!(
            all.samples(),
            [
                Sample::new("read", "QEMU", vec![1.0, 3.0]),
                Sample::new("write", "QEMU", vec![2.0])
            ]
        );
    }
}
