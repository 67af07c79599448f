//! The console: every screen and serial line that the kernel prints on. Read-only for people.
//!
//! Owns: writing lines there and into the kernel log, and the logger behind the `log` macros.
//! Refuses: reading. Nothing typed anywhere reaches the node.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::sys::termios::{self, ControlFlags, InputFlags, LocalFlags, SetArg};

/// The first virtual terminal: the one that can be drawn on.
const SCREEN: &str = "/dev/tty1";
/// Consoles written to: a screen and a few serial lines.
const CONSOLES_MAX: usize = 4;
/// Longest line: what the kernel log takes in one piece, less its own prefix.
const LINE_MAX: usize = 900;

/// Lines of a block that a screen shows: 25, less what scrolls below them.
const BLOCK_MAX: usize = 18;

/// One console.
#[derive(Debug)]
struct Tty {
    file: File,
    /// It can be drawn on; the others are logs.
    screen: bool,
    /// A block stands at its top.
    drawn: bool,
}

/// The open consoles. Where none can be opened, lines still reach the kernel log.
#[derive(Debug)]
pub(crate) struct Console {
    ttys: Vec<Tty>,
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
        let open = |path: &PathBuf| {
            Some(Tty {
                file: write(path)?,
                screen: path == Path::new(SCREEN),
                drawn: false,
            })
        };
        let ttys: Vec<Tty> = devices(&active).iter().filter_map(open).collect();
        ttys.iter().for_each(|tty| deafen(&tty.file));
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
            let _ = tty.file.write_all(format!("{text}\r\n").as_bytes());
        }
        self.keep(&text);
    }

    /// A block of lines that is shown again and again. Screens have all of it at their top; where lines can only follow each
    /// other, and in the kernel log, there are those that are new.
    pub(crate) fn block(&mut self, all: &[String], new: &[String]) {
        let clean = |lines: &[String]| lines.iter().map(|l| printable(l)).collect::<Vec<_>>();
        let (all, new) = (clean(all), clean(new));
        for tty in &mut self.ttys {
            let text = match tty.screen {
                true => drawing(&all, !std::mem::replace(&mut tty.drawn, true)),
                false => new.iter().map(|line| format!("{line}\r\n")).collect(),
            };
            let _ = tty.file.write_all(text.as_bytes());
        }
        new.iter().for_each(|line| self.keep(line));
    }

    fn keep(&mut self, text: &str) {
        if let Some(log) = &mut self.kernel_log {
            // Level 7 keeps the kernel from printing the same line on the same consoles once more.
            let _ = log.write_all(format!("<7>{text}\n").as_bytes());
        }
    }
}

/// What draws a block at the top of a screen. What else is written there scrolls below it: the region that scrolls begins
/// after the block, and the cursor is where it was. A block that has become longer has taken lines of that region.
fn drawing(lines: &[String], first: bool) -> String {
    let shown = &lines[lines.len().saturating_sub(BLOCK_MAX)..];
    let below = shown.len() + 2;
    // Setting the region moves the cursor, so that it is kept around that.
    let mut out = match first {
        true => format!("\x1b[2J\x1b[{below}r\x1b[{below};1H\x1b7"),
        false => format!("\x1b7\x1b[{below}r"),
    };
    for (at, line) in shown.iter().enumerate() {
        // A line that is too long ends at the edge: the terminal does not go on in the next one.
        out.push_str(&format!("\x1b[{};1H\x1b[?7l{line}\x1b[K\x1b[?7h", at + 1));
    }
    out.push_str(&format!("\x1b[{};1H\x1b[K\x1b8", shown.len() + 1));
    out
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
    fn a_screen_has_the_newest_end_of_a_block_at_its_top_and_a_log_below_it() {
        let lines: Vec<String> = (0..30).map(|n| format!("line {n}")).collect();
        let first = drawing(&lines, true);
        assert!(first.starts_with("\x1b[2J\x1b[20r\x1b[20;1H"), "{first:?}");
        assert!(
            first.contains("\x1b[1;1H\x1b[?7lline 12\x1b[K"),
            "{first:?}"
        );
        assert!(
            first.contains("\x1b[18;1H\x1b[?7lline 29\x1b[K"),
            "{first:?}"
        );
        let again = drawing(&lines[..2], false);
        assert!(!again.contains("\x1b[2J") && again.ends_with("\x1b8"));
        assert!(again.contains("\x1b[4r"), "{again:?}");
    }

    #[test]
    fn a_line_that_can_only_follow_others_is_not_drawn_on() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let tty = |screen| Tty {
            file: file.reopen().expect("the file"),
            screen,
            drawn: false,
        };
        let mut console = Console {
            ttys: vec![tty(false)],
            kernel_log: None,
        };
        let all = ["a".to_owned(), "b\x1b[2J".to_owned()];
        console.block(&all, &all[1..]);
        let text = std::fs::read_to_string(file.path()).expect("text");
        assert_eq!(text, "b?[2J\r\n");
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
