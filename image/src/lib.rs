//! Builds the image that boots, and knows how to boot it in QEMU.
//!
//! Owns: kernels, the tools built from Debian's sources, initramfs trees, `dist/`, the check of what
//! must stay absent from the image, and the QEMU command line.
//! Refuses: running on a node. This is a workshop tool; nothing here is in the image.
#![forbid(unsafe_code)]

pub mod assemble;
pub mod demo;
pub mod elf;
pub mod fragment;
pub mod inspect;
pub mod kernel;
pub mod lock;
pub mod paths;
pub mod programs;
pub mod qemu;
pub mod repro;
pub mod setup;
pub mod suite;
pub mod tools;
pub mod xfsprogs;

mod apt;
mod command;
pub mod debian;
mod digest;
mod emulator;
mod lanes;
mod licences;
mod progress;
mod space;
mod tree;
pub mod userland;
