//! The kernel's log.
//!
//! Owns: reading its ring buffer and choosing what reaches the console. Refuses: clearing it.

use std::io::{self, Write};

use crate::error::{During, Result};

/// SYSLOG_ACTION_READ_ALL, SYSLOG_ACTION_CONSOLE_LEVEL, SYSLOG_ACTION_SIZE_BUFFER (linux/syslog.h).
const READ_ALL: libc::c_int = 3;
const CONSOLE_LEVEL: libc::c_int = 8;
const SIZE_BUFFER: libc::c_int = 10;
/// Larger than any LOG_BUF_SHIFT in use (2^21): bounds what one request can allocate.
const LOG_MAX: usize = 4 << 20;

fn syslog(action: libc::c_int, buffer: &mut [u8], argument: libc::c_int) -> io::Result<usize> {
    let pointer = if buffer.is_empty() {
        std::ptr::null_mut()
    } else {
        buffer.as_mut_ptr()
    };
    let length = if buffer.is_empty() {
        argument
    } else {
        libc::c_int::try_from(buffer.len()).unwrap_or(libc::c_int::MAX)
    };
    // SAFETY: `pointer` is null with an action that takes none, or `length` writable bytes that the
    // borrow keeps alive; the kernel writes no more than `length`.
    let result = unsafe { libc::syscall(libc::SYS_syslog, action, pointer, length) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The whole kernel log, oldest line first, as `dmesg` shows it.
pub fn read() -> Result<String> {
    let during = || "read the kernel log".to_owned();
    let size = syslog(SIZE_BUFFER, &mut [], 0)
        .during(during)?
        .clamp(4096, LOG_MAX);
    let mut buffer = vec![0; size];
    let length = syslog(READ_ALL, &mut buffer, 0).during(during)?;
    buffer.truncate(length);
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

/// Only messages more urgent than `level` (1 to 8) reach the console; the log has them all.
pub fn set_console_level(level: u8) -> Result<()> {
    syslog(CONSOLE_LEVEL, &mut [], libc::c_int::from(level))
        .map(drop)
        .during(|| format!("set the console log level to {level}"))
}

/// Adds one line to the kernel log at level "critical", so that a crash record holds it.
pub fn write_critical(line: &str) -> Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut f| f.write_all(format!("<2>{line}").as_bytes()))
        .during(|| "write to /dev/kmsg".to_owned())
}
