//! The program that reads files of a node for a test.
//!
//! Owns: nothing. Refuses: being in a shipped image.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    qemu_tests::watch::main()
}
