//! `sifr-guest`, the binary. Owns: nothing. Refuses: anything but its library, which `fuzz` can reach.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    guest::main()
}
