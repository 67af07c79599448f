//! The console: every screen and serial line that the kernel prints on. Read-only for people.
//!
//! Owns: writing lines there and into the kernel log, and the logger behind the `log` macros.
//! Refuses: reading. Nothing typed anywhere reaches the node.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Mutex;

use nix::sys::termios::{self, ControlFlags, InputFlags, LocalFlags, SetArg};

/// Consoles written to: a screen and a few serial lines.
const CONSOLES_MAX: usize = 4;
/// Longest line: what the kernel log takes in one piece, less its own prefix.
const LINE_MAX: usize = 900;

/// The open consoles. Where none can be opened, lines still reach the kernel log.
#[derive(Debug)]
pub(crate) struct Console {
    ttys: Vec<File>,
    kernel_log: Option<File>,
}

impl Console {
    /// Opens what `/sys/class/tty/console/active` names, or `/dev/console` before /sys is mounted.
    pub(crate) fn open() -> Self {
        let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        // Never as a controlling terminal: a Ctrl-C typed there would end the process.
        let write = |path: &PathBuf| {
            let mut options = OpenOptions::new();
            options.append(true).custom_flags(nix::libc::O_NOCTTY);
            options.open(path).ok()
        };
        let ttys: Vec<File> = devices(&active).iter().filter_map(write).collect();
        ttys.iter().for_each(deafen);
        Self {
            ttys,
            kernel_log: write(&PathBuf::from("/dev/kmsg")),
        }
    }

    /// One line, everywhere. What a tenant or a disk had a hand in is shown without control characters.
    pub(crate) fn line(&mut self, text: &str) {
        let text = printable(text);
        // A console that cannot be written to must not stop the node: there is nobody to tell.
        for tty in &mut self.ttys {
            let _ = tty.write_all(format!("{text}\r\n").as_bytes());
        }
        if let Some(log) = &mut self.kernel_log {
            // Level 7 keeps the kernel from printing the same line on the same consoles once more.
            let _ = log.write_all(format!("<7>{text}\n").as_bytes());
        }
    }
}

/// Whoever types must not be able to paint lines of the node's on its console: the kernel echoes unless
/// told not to. A serial port is told not to receive at all.
fn deafen(tty: &File) {
    // Where it is no terminal there is nothing to do.
    let Ok(mut settings) = termios::tcgetattr(tty) else {
        return;
    };
    settings.control_flags.remove(ControlFlags::CREAD);
    settings
        .local_flags
        .remove(LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::ICANON);
    settings
        .input_flags
        .remove(InputFlags::IXON | InputFlags::IXOFF);
    // A console that refuses still shows what it is given.
    let _ = termios::tcsetattr(tty, SetArg::TCSANOW, &settings);
}

/// Device files of the active consoles. `tty0` is whichever screen is in front: there is only the first.
fn devices(active: &str) -> Vec<PathBuf> {
    let mut names: Vec<_> = active.split_ascii_whitespace().take(CONSOLES_MAX).collect();
    if names.is_empty() {
        names.push("console");
    }
    names
        .iter()
        .map(|name| PathBuf::from("/dev").join(if *name == "tty0" { "tty1" } else { name }))
        .collect()
}

fn printable(text: &str) -> String {
    text.chars()
        .take(LINE_MAX)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

struct Logger(Mutex<Console>);

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let text = format!("sifr: {level}: {}", record.args());
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .line(&text);
        }
    }

    fn flush(&self) {}
}

/// Sends the `log` macros of this process to the console, from `Warn` up.
pub(crate) fn log_here() {
    let logger = Box::leak(Box::new(Logger(Mutex::new(Console::open()))));
    // It fails only where a logger is set already, which then goes on.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_active_console_is_written_to() {
        let paths = |active| {
            devices(active)
                .iter()
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(paths("tty0 ttyS0\n"), ["/dev/tty1", "/dev/ttyS0"]);
        assert_eq!(paths(""), ["/dev/console"]);
        assert_eq!(paths("a b c d e f").len(), CONSOLES_MAX);
    }

    #[test]
    fn a_console_echoes_nothing() {
        let pty = nix::pty::openpty(None, None).expect("a pseudo terminal");
        let tty = File::from(pty.slave);
        deafen(&tty);
        let settings = termios::tcgetattr(&tty).expect("settings");
        assert!(!settings.local_flags.contains(LocalFlags::ECHO));
        deafen(&tempfile::tempfile().expect("a file"));
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(printable("disk \x1b[2J\n"), "disk ?[2J?");
    }
}
