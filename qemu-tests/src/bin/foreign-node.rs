//! The program that lists packed images on a kernel that is not ours.
//!
//! Owns: nothing. Refuses: being in a shipped image.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    qemu_tests::foreign::main()
}
