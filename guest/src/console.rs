//! Words for whoever reads the guest kernel's log.
//!
//! Owns: lines in `/dev/kmsg`. Refuses: the tenant's output, which has streams of its own.

use std::fs::OpenOptions;
use std::io::Write;

const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;

pub(crate) fn error(text: &str) {
    say(ERROR, text);
}

pub(crate) fn warn(text: &str) {
    say(WARNING, text);
}

pub(crate) fn note(text: &str) {
    say(INFO, text);
}

fn say(level: u8, text: &str) {
    let line = format!("<{level}>sifr-guest: {text}");
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg");
    if kmsg
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .is_err()
    {
        // Before /dev is there the kernel may have given us a console.
        let _nowhere = writeln!(std::io::stderr(), "sifr-guest: {text}");
    }
}
