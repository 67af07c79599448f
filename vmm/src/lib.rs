//! sifr-vmm: one process, one virtual machine.
//!
//! Owns: the machine that descriptor 3 specifies; `alone` makes that descriptor where no node does. Exit
//! status: 0 = the guest reset the machine, 1 = the specification or set-up was bad (message on stderr), 2 = the
//! machine faulted.
//! Refuses: paths in the machine's process. Everything it works on it has inherited as a descriptor.
#![deny(unsafe_code)]

mod alone;
mod assemble;
mod boot;
mod bus;
mod confine;
mod control;
mod cpu;
mod device;
mod end;
mod event;
mod extras;
mod fds;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod gate;
mod hv;
mod log;
mod machine;
mod memory;
mod metrics;
mod postmortem;
mod report;
mod snapshot;
mod virtio;

use std::error::Error;
use std::process::ExitCode;

use alone::Command;
use types::vm::StopReason;

const BAD_SETUP: u8 = 1;
const FAULT: u8 = 2;

/// The whole program.
pub fn main() -> ExitCode {
    metrics::enter();
    match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Machine) => machine(),
        Ok(Command::Version) => {
            println!("sifr-vmm: {}", sifr::IDENTITY);
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            print!("{}", alone::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Check { file }) => alone::check(&file),
        Ok(Command::Run { file, control }) => alone::run(&file, control.as_deref()),
        Err(error) => bad_setup(&error),
    }
}

/// The machine of descriptor 3, to its end.
fn machine() -> ExitCode {
    let machine = match assemble::assemble() {
        Ok(machine) => machine,
        Err(error) => return bad_setup(&error),
    };
    match machine.run() {
        Ok(StopReason::GuestReset) => ExitCode::SUCCESS,
        Ok(StopReason::Fault { message }) => {
            report::line(&format!("sifr-vmm: {message}"));
            ExitCode::from(FAULT)
        }
        Ok(StopReason::Watchdog) => {
            report::line("sifr-vmm: the guest did not feed its watchdog");
            ExitCode::from(FAULT)
        }
        Err(error) => bad_setup(&error),
    }
}

fn bad_setup(error: &dyn Error) -> ExitCode {
    say(error);
    ExitCode::from(BAD_SETUP)
}

/// An error and its causes, as one line on standard error.
fn say(error: &dyn Error) {
    report::line(&format!("sifr-vmm: {}", chain(error)));
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}
