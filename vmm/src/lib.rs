//! sifr-vmm: one process, one virtual machine.
//!
//! Owns: the machine that descriptor 3 specifies. Exit status: 0 = the guest reset the machine, 1 = the
//! specification or set-up was bad (message on stderr), 2 = the machine faulted.
//! Refuses: paths. Everything it works on it has inherited as a descriptor.
#![deny(unsafe_code)]

mod assemble;
mod boot;
mod bus;
mod confine;
mod control;
mod cpu;
mod device;
mod event;
mod fds;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod hv;
mod log;
mod machine;
mod memory;
mod metrics;
mod postmortem;
mod report;
mod virtio;

use std::error::Error;
use std::process::ExitCode;

use types::vm::StopReason;

const BAD_SETUP: u8 = 1;
const FAULT: u8 = 2;

const HELP: &str = "\
sifr-vmm runs one virtual machine. It is started by a Sifr node, not by hand.

It takes no arguments but --help and --version. Descriptor 3 holds the specification as JSON
(types::vm::VmSpec), which names the other descriptors by number.

Exit status: 0 the guest reset the machine, 1 bad specification or set-up, 2 the machine faulted.
";

/// The whole program.
pub fn main() -> ExitCode {
    metrics::enter();
    match std::env::args_os()
        .nth(1)
        .as_deref()
        .map(|a| a.to_string_lossy().into_owned())
        .as_deref()
    {
        None => {}
        Some("--version") => {
            println!("sifr-vmm: {}", sifr::IDENTITY);
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!("sifr-vmm: argument {other:?} is unknown; see --help");
            return ExitCode::from(BAD_SETUP);
        }
    }
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
        Err(error) => bad_setup(&error),
    }
}

fn bad_setup(error: &dyn Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    report::line(&format!("sifr-vmm: {text}"));
    ExitCode::from(BAD_SETUP)
}
