//! The loop, with real programs and a fake machine.
//!
//! Owns: what the host sees of each kind of ending. Refuses: killing anything but its own program.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::*;
use crate::program::tests::here;

/// Waits for one child on a thread; "all" is that child's process group.
struct Fake {
    pid: i32,
    ended: io::PipeReader,
}

impl Fake {
    fn new(pid: i32) -> Self {
        let (ended, mut tell) = io::pipe().expect("a pipe");
        sys::socket::set_nonblocking(&ended).expect("non-blocking");
        std::thread::spawn(move || {
            let status = waitpid(Pid::from_raw(pid), None).expect("a child");
            let bytes = match status {
                WaitStatus::Exited(_, code) => [u8::try_from(code).expect("a byte"), 0],
                WaitStatus::Signaled(_, signal, _) => {
                    [0, u8::try_from(signal as i32).expect("a byte")]
                }
                other => panic!("{other:?}"),
            };
            tell.write_all(&bytes).expect("told");
        });
        Self { pid, ended }
    }
}

impl Machine for Fake {
    fn children(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    fn reap(&mut self, _program: i32) -> io::Result<Option<Ending>> {
        let mut bytes = [0; 2];
        match self.ended.read(&mut bytes) {
            Ok(2) => Ok(Some(match bytes {
                [code, 0] => Ending {
                    code: code.into(),
                    signal: None,
                },
                [_, signal] => Ending {
                    code: 128 + i32::from(signal),
                    signal: Some(signal.into()),
                },
            })),
            _ => Ok(None),
        }
    }

    fn kill_all(&mut self) {
        // Gone already where nothing was left behind.
        let _gone = sys::program::signal(Target::Group(self.pid), libc::SIGKILL);
    }
}

/// The host's side of one machine.
struct Host {
    control: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
    guest: JoinHandle<Ending>,
}

fn machine(argv: &[&str], stop_grace_ms: u64) -> Host {
    let pair = || {
        let (host, guest) = UnixStream::pair().expect("a pair");
        guest.set_nonblocking(true).expect("non-blocking");
        (host, OwnedFd::from(guest))
    };
    let ((control, control_guest), (stdout, stdout_guest), (stderr, stderr_guest)) =
        (pair(), pair(), pair());
    let spec: RunSpec = serde_json::from_value(serde_json::json!({
        "hostname": "test", "image_serial": "", "upper_serial": null, "argv": [], "env": [], "user": "",
        "workdir": "/", "stop_signal": libc::SIGTERM, "stop_grace_ms": stop_grace_ms, "link": null,
    }))
    .expect("a specification");
    let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
    let guest = std::thread::spawn(move || {
        let program = here(&argv.iter().map(String::as_str).collect::<Vec<_>>());
        let started = program.spawn(None).expect("started");
        let streams = Streams {
            control: control_guest,
            stdout: stdout_guest,
            stderr: stderr_guest,
        };
        let fake = Fake::new(started.child.pid);
        Attendant::new(fake, &spec, &program, started, streams)
            .run()
            .0
    });
    Host {
        control,
        stdout,
        stderr,
        guest,
    }
}

fn text(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the stream ends");
    text
}

/// The next message, as the host reads it.
fn heard(host: &mut Host) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        host.control.read_exact(&mut byte).expect("a message");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

#[test]
fn output_is_kept_apart_and_the_exit_code_arrives() {
    let mut host = machine(&["sh", "-c", "echo out; echo err >&2; exit 3"], 1000);
    assert!(heard(&mut host).starts_with("{\"started\":{\"pid\":"));
    assert_eq!(
        (
            text(&mut host.stdout).as_str(),
            text(&mut host.stderr).as_str()
        ),
        ("out\n", "err\n")
    );
    assert_eq!(
        host.guest.join().expect("no panic"),
        Ending {
            code: 3,
            signal: None
        }
    );
}

#[test]
fn a_megabyte_of_output_arrives_whole() {
    let mut host = machine(&["sh", "-c", "head -c 1048576 /dev/zero"], 1000);
    assert_eq!(text(&mut host.stdout).len(), 1 << 20);
    assert_eq!(host.guest.join().expect("no panic").code, 0);
}

#[test]
fn stop_sends_the_stop_signal_and_the_program_may_end_in_its_own_way() {
    let mut host = machine(
        &[
            "sh",
            "-c",
            "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 1; done",
        ],
        60_000,
    );
    heard(&mut host);
    let mut up = [0; 3];
    host.stdout.read_exact(&mut up).expect("output");
    host.control.write_all(b"\"stop\"\n").expect("told");
    assert_eq!(text(&mut host.stdout), "bye\n");
    assert_eq!(
        host.guest.join().expect("no panic"),
        Ending {
            code: 7,
            signal: None
        }
    );
}

#[test]
fn the_stop_signal_is_the_programs_alone_and_its_children_are_its_own() {
    let script = "(trap 'echo child; exit' TERM; while :; do sleep 0.05; done) & child=$!
                  trap 'sleep 0.3; echo parent; kill $child; wait $child; exit 7' TERM; echo up; wait";
    let mut host = machine(&["sh", "-c", script], 60_000);
    heard(&mut host);
    let mut up = [0; 3];
    host.stdout.read_exact(&mut up).expect("output");
    host.control.write_all(b"\"stop\"\n").expect("told");
    assert_eq!(text(&mut host.stdout), "parent\nchild\n");
    assert_eq!(host.guest.join().expect("no panic").code, 7);
}

#[test]
fn a_program_that_ignores_its_stop_signal_is_killed_after_the_grace_period() {
    let mut host = machine(
        &[
            "sh",
            "-c",
            "trap '' TERM; echo up; while :; do sleep 1; done",
        ],
        50,
    );
    heard(&mut host);
    let mut up = [0; 3];
    host.stdout.read_exact(&mut up).expect("output");
    host.control.write_all(b"\"stop\"\n").expect("told");
    assert_eq!(
        host.guest.join().expect("no panic"),
        Ending {
            code: 137,
            signal: Some(9)
        }
    );
}

#[test]
fn a_signal_reaches_the_program() {
    let mut host = machine(&["sleep", "60"], 1000);
    heard(&mut host);
    host.control
        .write_all(b"{\"signal\":{\"number\":10}}\n")
        .expect("told");
    assert_eq!(
        host.guest.join().expect("no panic"),
        Ending {
            code: 138,
            signal: Some(10)
        }
    );
}

#[test]
fn what_the_program_leaves_behind_does_not_keep_the_machine() {
    let mut host = machine(&["sh", "-c", "sleep 600 & echo started"], 1000);
    assert_eq!(text(&mut host.stdout), "started\n");
    assert_eq!(host.guest.join().expect("no panic").code, 0);
}

#[test]
fn a_program_that_is_not_there_is_127_and_says_so() {
    let mut host = machine(&["no-such-program"], 1000);
    let message = heard(&mut host);
    assert!(
        message.contains("setup_failed") && message.contains("was not found in PATH"),
        "{message}"
    );
    assert_eq!(
        host.guest.join().expect("no panic"),
        Ending {
            code: 127,
            signal: None
        }
    );
}

#[test]
fn a_lost_or_garbled_control_stream_stops_the_machine() {
    let host = machine(&["sleep", "60"], 1000);
    drop(host.control);
    assert_eq!(
        host.guest.join().expect("no panic").signal,
        Some(libc::SIGTERM)
    );
    let mut host = machine(&["sleep", "60"], 1000);
    host.control.write_all(b"nonsense\n").expect("told");
    assert_eq!(
        host.guest.join().expect("no panic").signal,
        Some(libc::SIGTERM)
    );
}
