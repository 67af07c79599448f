//! The VMMs that pid1 is the parent of.
//!
//! Owns: which VM has which slot, process and kept descriptors, and its exit status until the node has
//! noted it.
//! Refuses: starting and killing; and a second VM with a slot or name that is taken.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use types::VmId;

use crate::wire::{FromPid1, SLOTS_MAX, Status};

/// Output of a VMM that is kept: its last words, not its history.
const OUTPUT_MAX: usize = 2048;
/// Read of one VMM in one turn: all that its pipe holds. One that writes without pause gets no more of pid1
/// than its turn.
const TURN_MAX: usize = 64 << 10;
/// Read of one VMM in its life: a hundred times what all its parts may say. One that writes more is not
/// as we made it.
const LIFE_MAX: usize = 1 << 20;

/// What a VMM has written to standard output and error.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// The read end; gone when the VMM has closed the other, or has written too much.
    pub(super) pipe: Option<File>,
    tail: Vec<u8>,
    /// Bytes read so far.
    total: usize,
}

/// Whether a VMM may write on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Fine,
    /// It has just written more than it may ever: its pipe is closed now.
    TooMuch,
}

impl Output {
    pub(super) fn new(pipe: File) -> Self {
        Self {
            pipe: Some(pipe),
            ..Self::default()
        }
    }

    /// Reads what is there, without waiting, as far as a turn goes.
    pub(super) fn read(&mut self) -> Heard {
        let mut buffer = [0; OUTPUT_MAX];
        let mut left = TURN_MAX;
        while let (Some(pipe), 1..) = (&mut self.pipe, left) {
            let most = left.min(buffer.len());
            match pipe.read(&mut buffer[..most]) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    self.tail.extend_from_slice(&buffer[..length]);
                    let surplus = self.tail.len().saturating_sub(OUTPUT_MAX);
                    self.tail.drain(..surplus);
                    (left, self.total) = (left - length, self.total + length);
                    if self.total > LIFE_MAX {
                        self.pipe = None;
                        return Heard::TooMuch;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => self.pipe = None,
            }
        }
        Heard::Fine
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.tail).trim().to_owned()
    }
}

/// A VMM that runs, or has ended and is not forgotten.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) slot: u16,
    pub(super) pid: i32,
    pub(super) tag: String,
    /// `None` once it has been reaped: nothing can be sent to it then.
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) kept: Vec<OwnedFd>,
    pub(super) output: Output,
    pub(super) status: Option<Status>,
}

#[derive(Debug, Default)]
pub(super) struct Machines(BTreeMap<VmId, Machine>);

impl Machines {
    /// Why a VM with this name and slot cannot be started now.
    pub(super) fn refuse(&self, vm: &VmId, slot: u16) -> Option<String> {
        if self.0.contains_key(vm) {
            return Some(format!("VM {vm} runs, or its end has not been noted"));
        }
        if slot >= SLOTS_MAX {
            return Some(format!("slot {slot} does not exist: there are {SLOTS_MAX}"));
        }
        let holder = self.0.iter().find(|(_, m)| m.slot == slot);
        holder.map(|(other, _)| format!("slot {slot} belongs to VM {other}"))
    }

    pub(super) fn insert(&mut self, vm: VmId, machine: Machine) {
        self.0.insert(vm, machine);
    }

    pub(super) fn get(&self, vm: &VmId) -> Option<&Machine> {
        self.0.get(vm)
    }

    /// Forgets a VM that has ended. One that runs stays: its exit would be lost.
    pub(super) fn forget(&mut self, vm: &VmId) -> bool {
        let ended = self.0.get(vm).is_some_and(|m| m.status.is_some());
        ended && self.0.remove(vm).is_some()
    }

    /// Notes the end of a process, if it was a VMM.
    pub(super) fn ended(&mut self, pid: i32, status: Status) -> Option<(&VmId, &mut Machine)> {
        let mut running = self.0.iter_mut().filter(|(_, m)| m.status.is_none());
        let (vm, machine) = running.find(|(_, m)| m.pid == pid)?;
        machine.status = Some(status);
        machine.pidfd = None;
        Some((vm, machine))
    }

    pub(super) fn running(&self) -> usize {
        self.0.values().filter(|m| m.status.is_none()).count()
    }

    pub(super) fn outputs(&self) -> impl Iterator<Item = &File> {
        self.0.values().filter_map(|m| m.output.pipe.as_ref())
    }

    /// One turn for each.
    pub(super) fn read_outputs(&mut self) {
        for (vm, machine) in &mut self.0 {
            match machine.output.read() {
                Heard::Fine => {}
                Heard::TooMuch => log::warn!(
                    "the VMM of {vm} has written {LIFE_MAX} bytes: it is listened to no longer"
                ),
            }
        }
    }

    /// What a new node is told about each VM. Its kept descriptors go beside.
    pub(super) fn replay(&self) -> impl Iterator<Item = FromPid1> {
        self.0.iter().map(|(vm, m)| FromPid1::Kept {
            vm: vm.clone(),
            slot: m.slot,
            pid: m.pid,
            tag: m.tag.clone(),
            status: m.status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn vm(name: &str) -> VmId {
        name.parse().expect("a valid id")
    }

    fn machine(slot: u16, pid: i32) -> Machine {
        Machine {
            slot,
            pid,
            tag: "t".to_owned(),
            pidfd: None,
            kept: Vec::new(),
            output: Output::default(),
            status: None,
        }
    }

    #[test]
    fn a_name_and_a_slot_are_free_only_after_the_end_was_noted() {
        let mut machines = Machines::default();
        assert_eq!(machines.refuse(&vm("a"), 0), None);
        machines.insert(vm("a"), machine(0, 10));
        assert!(
            machines
                .refuse(&vm("a"), 1)
                .is_some_and(|e| e.contains("runs"))
        );
        assert!(
            machines
                .refuse(&vm("b"), 0)
                .is_some_and(|e| e.contains("belongs to VM a"))
        );
        assert!(machines.refuse(&vm("b"), SLOTS_MAX).is_some());
        assert!(!machines.forget(&vm("a")), "a running VM is not forgotten");
        machines
            .ended(10, Status::Code(0))
            .expect("the VM of pid 10");
        assert!(
            machines.refuse(&vm("b"), 0).is_some(),
            "the slot is held until the end is noted"
        );
        assert!(machines.forget(&vm("a")) && !machines.forget(&vm("a")));
        assert_eq!(machines.refuse(&vm("b"), 0), None);
    }

    #[test]
    fn an_exit_is_repeated_to_every_new_node_and_a_reused_pid_changes_nothing() {
        let mut machines = Machines::default();
        machines.insert(vm("a"), machine(0, 10));
        assert!(
            machines.ended(11, Status::Code(0)).is_none(),
            "an orphan is nobody's VM"
        );
        machines
            .ended(10, Status::Signal(9))
            .expect("the VM of pid 10");
        assert!(machines.ended(10, Status::Code(0)).is_none());
        for _ in 0..2 {
            let said: Vec<_> = machines.replay().collect();
            assert!(matches!(
                &said[..],
                [FromPid1::Kept {
                    status: Some(Status::Signal(9)),
                    ..
                }]
            ));
        }
        assert_eq!(machines.running(), 0);
    }

    #[test]
    fn only_the_last_words_of_a_vmm_are_kept() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let mut output = Output::new(File::from(OwnedFd::from(reader)));
        writer
            .write_all(&[b'x'; 3 * OUTPUT_MAX])
            .and_then(|()| writer.write_all(b"the end\n"))
            .expect("write");
        drop(writer);
        assert_eq!(output.read(), Heard::Fine);
        let text = output.text();
        assert!(text.ends_with("xthe end") && text.len() < OUTPUT_MAX && output.pipe.is_none());
    }

    #[test]
    fn a_vmm_that_writes_without_pause_gets_one_pipe_a_turn_and_is_cut_off_in_the_end() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let reader = OwnedFd::from(reader);
        sys::socket::set_nonblocking(&reader).expect("non-blocking");
        let mut output = Output::new(File::from(reader));
        // Ends when nobody reads any more: tests ignore SIGPIPE, as a VMM does.
        let vmm = std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {});
        let mut turns = 0;
        while output.pipe.is_some() {
            let before = output.total;
            let heard = output.read();
            assert!(output.total - before <= TURN_MAX, "a turn has an end");
            assert_eq!(heard == Heard::TooMuch, output.pipe.is_none());
            turns += 1;
        }
        assert!(turns > LIFE_MAX / TURN_MAX, "{turns}");
        assert_eq!(output.read(), Heard::Fine, "it is said once");
        vmm.join().expect("it ends");
    }
}
