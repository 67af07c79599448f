//! What is in memory when the first vCPU starts: kernel, initramfs, command line, tables.
//!
//! Owns: the boot protocol. Refuses: firmware; there is none.

pub(crate) mod cmdline;
pub(crate) mod mptable;
pub(crate) mod pvh;
