//! `/init`: PID 1 of a node, and the three roles that it starts from the same binary.
//!
//! Owns: the choice of the role. Refuses: everything else.
#![forbid(unsafe_code)]

mod chunks;
mod console;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod ingress;
mod node;
mod options;
mod packets;
mod phase;
mod pid1;
mod room;
mod wire;

/// The whole program.
pub fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        None if std::process::id() == 1 => pid1::run(),
        Some("node") => node::run(),
        Some("chunks") => chunks::run(),
        Some("ingress") => ingress::run(),
        _ => {
            eprintln!(
                "init is PID 1 of a Sifr node; its roles `node`, `chunks` and `ingress` are started by it"
            );
            std::process::ExitCode::FAILURE
        }
    }
}
