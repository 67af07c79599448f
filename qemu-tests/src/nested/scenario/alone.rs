//! `sifr-vmm run` as an engineer uses it: a file, a terminal, a socket, signals.
//!
//! Owns: what the manual (docs/vmm.md) promises about one machine without a node.
//! Refuses: the specification's descriptors; the other scenarios make those themselves.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Scenario;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{FILES, Node, PATIENCE, readable};
use crate::nested::{INITRAMFS, KERNEL, VMM};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a-file-runs-to-the-guests-end",
        run: runs,
    },
    Scenario {
        name: "requests-on-the-control-socket-are-answered",
        run: control,
    },
    Scenario {
        name: "a-machine-pauses-and-goes-on-when-asked",
        run: pause,
    },
    Scenario {
        name: "a-machine-goes-on-from-a-snapshot-by-path",
        run: restore,
    },
    Scenario {
        name: "a-signal-ends-the-machine",
        run: signal,
    },
    Scenario {
        name: "who-is-not-root-needs-the-device-alone",
        run: not_root,
    },
    Scenario {
        name: "bad-files-are-refused-with-what-to-do",
        run: refused,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[
    ("reads-and-waits", || {
        mount("devtmpfs", "/dev")?;
        let disk = File::open("/dev/vda").context("open the disk")?;
        let mut first = [0; 8];
        disk.read_exact_at(&mut first, 0)?;
        say(&format!("disk {}", String::from_utf8_lossy(&first)));
        loop {
            std::thread::park();
        }
    }),
    ("counts", || {
        for number in 0u64.. {
            say(&format!("count {number}"));
            std::thread::sleep(COUNT);
        }
        Ok(())
    }),
];

/// Between two numbers.
const COUNT: Duration = Duration::from_millis(100);

pub(super) const SPEC: &str = "/run/machine.json";
const CONTROL: &str = "/run/machine.control";
const DISK: &str = "/run/machine.img";
/// Nobody in particular.
pub(super) const USER: u32 = 1000;

/// A specification of that guest program, with `more` fields in front.
pub(super) fn write_spec(guest: &str, more: &str) -> Result<()> {
    let text = format!(
        r#"{{{more}"kernel": "{KERNEL}", "initramfs": ["{INITRAMFS}"], "memory": "128Mi", "cmdline": "guest={guest}"}}"#
    );
    fs::write(SPEC, text).context("write the specification")
}

pub(super) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(VMM);
    command.args(words).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A front end that runs; it goes with its handle.
pub(super) struct Running {
    child: Child,
    console: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // In order, and then at once: a front end that is killed would leave its machine. One that has
        // ended already needs neither.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            for _ in 0..2 {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            }
        }
        let _ = self.child.wait();
    }
}

impl Running {
    pub(super) fn start(words: &[&str]) -> Result<Self> {
        Self::of(command(words))
    }

    pub(super) fn of(mut command: Command) -> Result<Self> {
        let mut child = command.spawn().context("start sifr-vmm")?;
        let console = child.stdout.take().context("standard output")?;
        let console = BufReader::new(console);
        Ok(Self { child, console })
    }

    /// The next line of the console with `pattern` in it.
    pub(super) fn line(&mut self, pattern: &str) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.console.buffer().is_empty() {
                let more = readable(self.console.get_ref().as_fd(), until)?;
                ensure!(more, "{pattern:?} was not said");
            }
            let mut line = String::new();
            if self.console.read_line(&mut line)? == 0 {
                bail!("the end before {pattern:?}: {}", self.errors()?);
            }
            if line.contains(pattern) {
                return Ok(line.trim().to_owned());
            }
        }
    }

    fn errors(&mut self) -> Result<String> {
        let mut text = String::new();
        let errors = self.child.stderr.as_mut().context("standard error")?;
        errors.read_to_string(&mut text)?;
        Ok(text)
    }

    /// The exit status, which is waited for as long as the console is open.
    pub(super) fn end(mut self) -> Result<(Option<i32>, String)> {
        let until = Instant::now() + PATIENCE;
        let mut rest = Vec::new();
        loop {
            let more = readable(self.console.get_ref().as_fd(), until)?;
            ensure!(more, "it does not end");
            if self.console.read_until(b'\n', &mut rest)? == 0 {
                break;
            }
        }
        let status = self.child.wait()?.code();
        Ok((status, self.errors()?))
    }
}

fn runs(_: &Node) -> Result<String> {
    let help = command(&["--help"]).output()?;
    let text = String::from_utf8_lossy(&help.stdout);
    let named = ["run FILE", "check FILE", "--control", "docs/vmm.md"];
    ensure!(
        help.status.success() && named.iter().all(|word| text.contains(word)),
        "{help:?}"
    );
    write_spec("hello", "")?;
    let checked = command(&["check", SPEC]).output()?;
    ensure!(checked.status.success(), "{checked:?}");
    let mut machine = Running::start(&["run", SPEC])?;
    machine.line("hello")?;
    let (status, errors) = machine.end()?;
    ensure!(
        status == Some(0) && errors.is_empty(),
        "{status:?} {errors}"
    );
    Ok("status 0".to_owned())
}

fn control(_: &Node) -> Result<String> {
    fs::write(DISK, [b"by path!".as_slice(), &[0; 4088]].concat())?;
    write_spec(
        "reads-and-waits",
        &format!(r#""cpus": 2, "disks": [{{"path": "{DISK}"}}], "#),
    )?;
    let mut machine = Running::start(&["run", SPEC, "--control", CONTROL])?;
    ensure!(machine.line("disk ")? == "disk by path!");
    let jailed = jail_of(machine.child.id())?;
    let second = command(&["run", SPEC]).output()?;
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(
        second.status.code() == Some(1) && text.contains("in use"),
        "{text}"
    );

    let socket = sys::seqpacket::connect(Path::new(CONTROL)).context("connect")?;
    for (request, answer) in [
        (r#"{"request":"metrics"}"#, r#""answer":"metrics""#),
        (r#"{"request":"dance"}"#, r#""answer":"refused""#),
        ("no JSON", r#""answer":"refused""#),
        (r#"{"request":"stop"}"#, r#""answer":"done""#),
    ] {
        let said = ask(&socket, request)?;
        ensure!(said.contains(answer), "{request}: {said}");
    }
    let (status, errors) = machine.end()?;
    ensure!(status == Some(3), "{status:?} {errors}");
    ensure!(!Path::new(CONTROL).exists(), "the socket is left behind");
    Ok(jailed)
}

fn pause(_: &Node) -> Result<String> {
    fs::write(DISK, [b'x'; 4096])?;
    let disk = format!(r#""disks": [{{"path": "{DISK}"}}], "#);
    write_spec("reads-and-waits", &disk)?;
    let mut machine = Running::start(&["run", SPEC, "--control", CONTROL])?;
    machine.line("disk ")?;
    let socket = sys::seqpacket::connect(Path::new(CONTROL)).context("connect")?;
    for request in ["pause", "resume", "stop"] {
        let said = ask(&socket, &format!(r#"{{"request":"{request}"}}"#))?;
        ensure!(said.contains(r#""answer":"done""#), "{request}: {said}");
    }
    let (status, errors) = machine.end()?;
    ensure!(status == Some(3), "{status:?} {errors}");
    Ok("paused, resumed, stopped".to_owned())
}

/// The number in the next line of `counts`.
fn count(machine: &mut Running) -> Result<u64> {
    let line = machine.line("count ")?;
    let number = line.rsplit(' ').next().context("a number")?;
    number.parse().with_context(|| format!("{line:?}"))
}

/// In a file that names no kernel, a machine goes on where it was; its snapshot is not written over below it.
fn restore(_: &Node) -> Result<String> {
    let (state, memory) = ("/run/machine.state", "/run/machine.memory");
    write_spec("counts", "")?;
    let mut machine = Running::start(&["run", SPEC, "--control", CONTROL])?;
    while count(&mut machine)? < 3 {}
    let socket = sys::seqpacket::connect(Path::new(CONTROL)).context("connect")?;
    let snapshot = format!(r#"{{"request":"snapshot","state":"{state}","memory":"{memory}"}}"#);
    for request in [r#"{"request":"pause"}"#, &snapshot, r#"{"request":"stop"}"#] {
        let said = ask(&socket, request)?;
        ensure!(said.contains(r#""answer":"done""#), "{request}: {said}");
    }
    let mut last = 3;
    while let Ok(number) = count(&mut machine) {
        last = number;
    }
    machine.end()?;
    let text = format!(
        r#"{{"memory": "128Mi", "restore": {{"state": "{state}", "memory": "{memory}"}}}}"#
    );
    fs::write(SPEC, text)?;
    let mut machine = Running::start(&["run", SPEC, "--control", CONTROL])?;
    let first = count(&mut machine)?;
    ensure!(first == last + 1, "{first} after {last}");
    while count(&mut machine)? < first + 3 {}
    let socket = sys::seqpacket::connect(Path::new(CONTROL)).context("connect")?;
    let said = ask(&socket, &snapshot)?;
    ensure!(
        said.contains("refused") && said.contains("goes on from this file"),
        "{said}"
    );
    ask(&socket, r#"{"request":"stop"}"#)?;
    let (status, errors) = machine.end()?;
    ensure!(status == Some(3), "{status:?} {errors}");
    fs::remove_file(memory)?;
    let gone = command(&["check", SPEC]).output()?;
    let text = String::from_utf8_lossy(&gone.stderr).into_owned();
    ensure!(text.contains("check `restore.memory`"), "{text}");
    Ok(format!("{last}, then {first}"))
}

fn ask(socket: &OwnedFd, request: &str) -> Result<String> {
    sys::socket::send(socket.as_fd(), request.as_bytes(), &[])?;
    let until = Instant::now() + PATIENCE;
    ensure!(readable(socket.as_fd(), until)?, "{request}: no answer");
    let mut packet = vec![0; types::vm::CONTROL_PACKET_MAX];
    let received = sys::socket::receive(socket.as_fd(), &mut packet)?;
    let received = received.with_context(|| format!("{request}: the end"))?;
    Ok(String::from_utf8_lossy(&packet[..received.length]).into_owned())
}

/// What the machine's process, the child of `front`, may do: a user of its own, no capability, filters.
fn jail_of(front: u32) -> Result<String> {
    for entry in fs::read_dir("/proc")? {
        let Ok(status) = fs::read_to_string(entry?.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        if field("PPid:") != Some(front.to_string()) {
            continue;
        }
        let user = (1_900_000_000 + u64::from(front)).to_string();
        let users = field("Uid:").context("users")?;
        ensure!(users.split(' ').all(|id| id == user), "{users}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            ensure!(field(set).as_deref() == Some("0000000000000000"), "{set}");
        }
        ensure!(field("NoNewPrivs:").as_deref() == Some("1"));
        // 2: a filter.
        ensure!(field("Seccomp:").as_deref() == Some("2"));
        return Ok(format!("user {user}, no capability, filtered"));
    }
    bail!("process {front} has no child")
}

fn signal(_: &Node) -> Result<String> {
    fs::write(DISK, [b'x'; 4096])?;
    write_spec(
        "reads-and-waits",
        &format!(r#""disks": [{{"path": "{DISK}", "read_only": true}}], "#),
    )?;
    let mut machine = Running::start(&["run", SPEC])?;
    machine.line("disk ")?;
    let front = nix::unistd::Pid::from_raw(i32::try_from(machine.child.id())?);
    nix::sys::signal::kill(front, nix::sys::signal::Signal::SIGTERM)?;
    let (status, errors) = machine.end()?;
    ensure!(status == Some(3), "{status:?} {errors}");
    Ok("status 3".to_owned())
}

/// Without root there is no jail but the process's own filters, and no way past the device's permissions.
fn not_root(_: &Node) -> Result<String> {
    write_spec("hello", "")?;
    let mode = |mode| fs::set_permissions("/dev/kvm", Permissions::from_mode(mode));
    mode(0o600)?;
    let refused = command(&["run", SPEC]).uid(USER).gid(USER).output()?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(text.contains("you may not open /dev/kvm"), "{text}");
    mode(0o666)?;
    let ran = command(&["run", SPEC]).uid(USER).gid(USER).output();
    mode(0o600)?;
    let ran = ran?;
    let console = String::from_utf8_lossy(&ran.stdout).into_owned();
    ensure!(
        ran.status.code() == Some(0) && console.contains("hello"),
        "{ran:?}"
    );
    Ok(text.trim().to_owned())
}

fn refused(_: &Node) -> Result<String> {
    let kernel = format!(r#""kernel": "{KERNEL}""#);
    let cases = [
        (
            format!(r#"{{{kernel}, "memory": "64Mi", "vcpu": 1}}"#),
            "unknown field `vcpu`",
        ),
        (format!(r#"{{{kernel}}}"#), "missing field `memory`"),
        (
            format!(r#"{{{kernel}, "memory": "16Mi"}}"#),
            "memory of 16 MiB is outside",
        ),
        (
            format!(r#"{{{kernel}, "memory": "64Mi", "cpus": 33}}"#),
            "1 to 32",
        ),
        (
            r#"{"kernel": "none", "memory": "64Mi"}"#.to_owned(),
            "/run/none: check `kernel`",
        ),
        (
            format!(r#"{{"kernel": "{FILES}", "memory": "64Mi"}}"#),
            "no regular file",
        ),
        (
            format!(r#"{{"kernel": "{INITRAMFS}", "memory": "64Mi"}}"#),
            "neither an ELF nor a bzImage",
        ),
        (
            format!(
                r#"{{{kernel}, "memory": "64Mi", "nets": [{{"tap": "tap9", "mac": "02:00:00:00:00:01"}}]}}"#
            ),
            "ip tuntap add dev tap9 mode tap",
        ),
    ];
    for (spec, words) in &cases {
        fs::write(SPEC, spec)?;
        let run = command(&["run", SPEC]).output()?;
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        ensure!(
            run.status.code() == Some(1) && text.contains(words),
            "{spec}: {run:?}"
        );
    }
    fs::write("/run/occupied", "a file")?;
    write_spec("hello", "")?;
    let run = command(&["run", SPEC, "--control", "/run/occupied"]).output()?;
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    ensure!(
        run.status.code() == Some(1) && text.contains("is no socket"),
        "{text}"
    );
    Ok(format!("{} specifications", cases.len()))
}
