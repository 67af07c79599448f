//! The machine: its threads, and how it ends.
//!
//! Owns: one thread per vCPU, one per disk and network card; the calling thread serves the rest. All
//! threads exist and have their filters before the first vCPU runs.
//! Refuses: a second opinion. The first reason to stop is the reason.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;
use sys::confine::BpfProgram;
use types::vm::{Exits, FromVmm, StopReason, Stream};
use vmm_sys_util::eventfd::EventFd;

use crate::confine;
use crate::control::Outbox;
use crate::cpu::vcpu::{self, Shared};
use crate::end::End;
use crate::event::{self, Served};
use crate::gate::{Gate, Place};
use crate::hv::kick::Kick;
use crate::hv::kvm::Vm;
use crate::log::SharedLog;
use crate::memory::GuestRam;
use crate::postmortem::{self, LastWords};

/// Stack of our threads: none recurses or keeps buffers there. Only touched pages cost memory.
const STACK_BYTES: usize = 256 << 10;

/// A thread that serves one device.
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) filter: BpfProgram,
    pub(crate) served: Arc<dyn Served>,
}

pub(crate) struct Machine {
    pub(crate) vm: Arc<Vm>,
    pub(crate) vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    /// Where all its threads rest in a pause.
    pub(crate) gate: Arc<Gate>,
    pub(crate) vcpu_filter: BpfProgram,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) main_filter: BpfProgram,
    /// Served by the calling thread.
    pub(crate) main: Vec<Arc<dyn Served>>,
    pub(crate) end: Arc<End>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) ram: Arc<GuestRam>,
    /// Where the guest's kernel is.
    pub(crate) kernel: Range<u64>,
    pub(crate) log: Option<SharedLog>,
}

fn event() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

impl Machine {
    /// Runs the machine to its end. An error means that it never began.
    pub(crate) fn run(self) -> io::Result<StopReason> {
        let end = self.end;
        let threads = self.vcpus.len() + self.workers.len() + 1;
        let gate = Arc::new(Barrier::new(threads));
        let stop_workers = Arc::new(event()?);

        let mut joins: Vec<JoinHandle<()>> = Vec::with_capacity(self.workers.len());
        for worker in self.workers {
            let (end, gate, stop) = (end.clone(), gate.clone(), stop_workers.clone());
            let (rest, device) = (self.gate.clone(), worker.served.clone());
            let place = Place { gate: rest, device };
            joins.push(thread(worker.name.clone(), move || {
                enter(&worker.filter, &gate, &end);
                if let Err(error) = event::run(&[worker.served.as_ref(), &place], &stop) {
                    end.fault(format!("wait for {}: {error}", worker.name));
                }
            })?);
        }
        let filter = Arc::new(self.vcpu_filter);
        let mut kicks = Vec::with_capacity(self.vcpus.len());
        for (index, vcpu) in self.vcpus.into_iter().enumerate() {
            let (end, gate, filter) = (end.clone(), gate.clone(), filter.clone());
            let (shared, rest) = (self.shared.clone(), self.gate.clone());
            let number = vcpu.lock().expect("nobody runs it yet").as_raw_fd();
            // Nobody joins these: one that waits inside KVM_RUN ends with the process.
            let handle = thread(format!("vcpu {index}"), move || {
                enter(&filter, &gate, &end);
                if end.said().is_none() {
                    end.say(vcpu::run(index, &vcpu, &shared, &rest));
                }
                rest.vcpu_ended();
            })?;
            kicks.push(Kick::new(number, handle));
        }
        self.gate.arm(kicks);
        enter(&self.main_filter, &gate, &end);
        let setup_us = self.outbox.life.running();
        self.outbox.post(&FromVmm::Running { setup_us });

        let main: Vec<&dyn Served> = self.main.iter().map(AsRef::as_ref).collect();
        if let Err(error) = event::run(&main, &end.event) {
            end.fault(format!("wait for vsock and control: {error}"));
        }
        // Whoever rests has nothing to wait for any more.
        self.gate.open();
        // Requests that a device has taken are finished before the process goes.
        let _ = stop_workers.write(1);
        for join in joins {
            // A worker that panicked has aborted the process.
            let _ = join.join();
        }
        let lost = StopReason::Fault {
            message: "ended without a reason".to_owned(),
        };
        let reason = end.said().unwrap_or(lost);
        let exits: Exits = self.shared.exits.read();
        if !self.outbox.exited()
            && let Some(words) = postmortem::last_words(&self.ram, self.kernel.clone())
        {
            tell(words, self.log.as_ref(), &self.outbox);
        }
        self.outbox.post(&FromVmm::Stopped {
            reason: reason.clone(),
            exits,
        });
        self.outbox.finish();
        drop(self.vm);
        Ok(reason)
    }
}

/// A kernel's end, to the workload's log and to the node.
fn tell(words: LastWords, log: Option<&SharedLog>, outbox: &Outbox) {
    if let Some(log) = log {
        let mut log = log.lock().expect("no panic while the log was locked");
        for line in &words.lines {
            log.append(Stream::Stderr, format!("guest kernel: {line}\n").as_bytes());
        }
    }
    let reason = words.reason;
    outbox.post(&FromVmm::Panicked { reason });
}

fn thread(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn(body)
}

/// Confines the calling thread, then waits for all others to have done so.
fn enter(filter: &BpfProgram, gate: &Barrier, end: &End) {
    if let Err(error) = confine::install(filter) {
        end.fault(sys::chain(&error));
    }
    gate.wait();
}
