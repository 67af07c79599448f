//! The program that is a machine's neighbour in a test.
//!
//! Owns: nothing. Refuses: being in a shipped image.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    qemu_tests::neighbour::main()
}
