//! The loop, with real programs and a fake machine.
//!
//! Owns: what the host sees of each kind of ending. Refuses: killing anything but its own program.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::*;
use crate::error::SetupError;
use crate::program::tests::here;

/// Waits for one child on a thread; "all" is that child's process group.
struct Fake {
    pid: i32,
    ended: io::PipeReader,
    /// What was asked of the machine, in order.
    asked: Arc<Mutex<Vec<String>>>,
    /// What it connects to when its connections are gone.
    second: Option<Streams>,
}

impl Fake {
    fn new(pid: i32, asked: Arc<Mutex<Vec<String>>>, second: Option<Streams>) -> Self {
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
        Self {
            pid,
            ended,
            asked,
            second,
        }
    }

    fn note(&self, what: &str) {
        let mut asked = self.asked.lock().expect("no panic while locked");
        asked.push(what.to_owned());
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

    fn freeze(&mut self) -> Result<()> {
        self.note("freeze");
        Ok(())
    }

    fn thaw(&mut self) -> Result<()> {
        self.note("thaw");
        Ok(())
    }

    fn grow(&mut self, serial: &str, bytes: u64) -> Result<u64> {
        self.note(&format!("grow {serial}"));
        Ok(bytes)
    }

    fn hold(&mut self, serial: &str) -> Result<()> {
        self.note(&format!("hold {serial}"));
        Ok(())
    }

    fn release(&mut self, serial: Option<&str>) {
        self.note(&format!("release {}", serial.unwrap_or("all")));
    }

    fn reconnect(&mut self) -> Result<Streams> {
        self.note("reconnect");
        // Nobody listens.
        self.second.take().ok_or(SetupError::NoProgram)
    }

    fn take_on(&mut self, identity: &Identity) -> Result<()> {
        self.note(&identity.generation);
        match identity.generation.as_str() {
            "bad" => Err(SetupError::Identity),
            _ => Ok(()),
        }
    }
}

/// The host's side of one machine.
struct Host {
    control: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
    guest: JoinHandle<Ending>,
    asked: Arc<Mutex<Vec<String>>>,
}

/// The host's ends of three streams, and the guest's.
fn streams() -> ([UnixStream; 3], Streams) {
    let pair = || {
        let (host, guest) = UnixStream::pair().expect("a pair");
        guest.set_nonblocking(true).expect("non-blocking");
        (host, OwnedFd::from(guest))
    };
    let ((a, control), (b, stdout), (c, stderr)) = (pair(), pair(), pair());
    let guest = Streams {
        control,
        stdout,
        stderr,
    };
    ([a, b, c], guest)
}

fn machine(argv: &[&str], stop_grace_ms: u64) -> Host {
    restorable(argv, stop_grace_ms, None)
}

/// A machine that connects to `second` when its connections are gone.
fn restorable(argv: &[&str], stop_grace_ms: u64, second: Option<Streams>) -> Host {
    let ([control, stdout, stderr], streams) = streams();
    let asked = Arc::default();
    let noted = Arc::clone(&asked);
    let spec: RunSpec = serde_json::from_value(serde_json::json!({
        "hostname": "test", "image_serial": "", "upper_serial": null, "argv": [], "env": [], "user": "",
        "workdir": "/", "stop_signal": libc::SIGTERM, "stop_grace_ms": stop_grace_ms, "link": null,
    }))
    .expect("a specification");
    let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
    let guest = std::thread::spawn(move || {
        let program = here(&argv.iter().map(String::as_str).collect::<Vec<_>>());
        let started = program.spawn(None).expect("started");
        let fake = Fake::new(started.child.pid, noted, second);
        Attendant::new(fake, &spec, &program, started, streams)
            .run()
            .0
    });
    Host {
        control,
        stdout,
        stderr,
        guest,
        asked,
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

/// The device forgets its connections. Of a local socket that is one whose end goes with something unread.
fn cut(host: &mut Host, second: [UnixStream; 3]) {
    let unread = PollFd::new(host.control.as_fd(), PollFlags::POLLIN);
    nix::poll::poll(&mut [unread], nix::poll::PollTimeout::NONE)
        .expect("the guest has said something");
    [host.control, host.stdout, host.stderr] = second;
}

/// A program that says a word when it is signalled.
const ANSWERS: [&str; 3] = [
    "sh",
    "-c",
    "trap 'echo answer' USR1; echo up; while :; do sleep 0.05; done",
];

#[test]
fn a_restored_machine_knows_who_it_is_before_its_program_goes_on() {
    let (ours, theirs) = streams();
    let mut host = restorable(&ANSWERS, 1000, Some(theirs));
    let mut up = [0; 3];
    host.stdout.read_exact(&mut up).expect("output");
    cut(&mut host, ours);
    let identity = Identity {
        generation: "new".to_owned(),
        entropy: String::new(),
        time_ns: 0,
        link: None,
        hostname: None,
    };
    let restored = ToGuest::Restored(Box::new(identity));
    // What comes before it does not move the program.
    for message in [ToGuest::Thaw, restored, ToGuest::Signal { number: 10 }] {
        let mut line = serde_json::to_vec(&message).expect("plain data");
        line.push(b'\n');
        host.control.write_all(&line).expect("told");
    }
    assert_eq!(
        heard(&mut host),
        "{\"restored\":{\"generation\":\"new\"}}\n"
    );
    let mut answer = [0; 7];
    host.stdout.read_exact(&mut answer).expect("output");
    assert_eq!(&answer, b"answer\n");
    let asked = host.asked.lock().expect("no panic").clone();
    assert_eq!(asked, ["freeze", "reconnect", "new", "thaw"]);
    host.control.write_all(b"\"stop\"\n").expect("told");
    let ending = host.guest.join().expect("no panic");
    assert_eq!(ending.signal, Some(libc::SIGTERM));
}

#[test]
fn a_restored_machine_that_cannot_become_one_of_its_own_says_so_and_ends() {
    let (ours, theirs) = streams();
    let mut host = restorable(&ANSWERS, 60_000, Some(theirs));
    cut(&mut host, ours);
    let line =
        "{\"restored\":{\"generation\":\"bad\",\"entropy\":\"\",\"time_ns\":0,\"link\":null}}\n";
    host.control.write_all(line.as_bytes()).expect("told");
    let message = heard(&mut host);
    assert!(
        message.contains("setup_failed") && message.contains("restored"),
        "{message}"
    );
    let ending = host.guest.join().expect("no panic");
    assert_eq!(ending.signal, Some(libc::SIGKILL));
    let asked = host.asked.lock().expect("no panic").clone();
    assert_eq!(asked, ["freeze", "reconnect", "bad"]);
}

#[test]
fn a_program_stands_still_and_goes_on_as_the_host_asks() {
    let mut host = machine(&ANSWERS, 1000);
    heard(&mut host);
    host.control.write_all(b"\"freeze\"\n").expect("told");
    assert_eq!(heard(&mut host), "{\"frozen\":{\"refused\":null}}\n");
    host.control
        .write_all(b"\"thaw\"\n\"stop\"\n")
        .expect("told");
    host.guest.join().expect("no panic");
    let asked = host.asked.lock().expect("no panic").clone();
    assert_eq!(asked, ["freeze", "thaw", "thaw"]);
}
