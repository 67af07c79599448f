//! Linking for no operating system: at a fixed address, with the note that says where to enter.
//!
//! Owns: two arguments of the linker. Refuses: touching a build for this machine.
#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo::rustc-link-arg-bins=-T{directory}/link.ld");
        println!("cargo::rustc-link-arg-bins=--no-pie");
    }
}
