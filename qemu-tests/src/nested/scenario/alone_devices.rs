//! `sifr-vmm run` with what the host has: a terminal, a TAP, an image that becomes memory.
//!
//! Owns: the commands of the manual (docs/vmm.md) for these, as they stand there.
//! Refuses: a TAP or terminal made by other means than an engineer's.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, bind, connect, listen,
    shutdown, socket,
};
use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, OutputFlags, Termios, tcgetattr};

use types::guest::HOST_CID;

use super::Scenario;
use super::alone::{Running, SPEC, USER, command, write_spec};
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{Node, PATIENCE};
use crate::nested::{IMAGE, IP, link};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a-terminal-is-the-guests-while-it-runs-and-then-as-it-was",
        run: terminal,
    },
    Scenario {
        name: "a-tap-made-by-ip-carries-the-guests-packets",
        run: tap,
    },
    Scenario {
        name: "programs-of-host-and-guest-call-each-other-by-unix-sockets",
        run: sockets,
    },
    Scenario {
        name: "an-image-is-the-guests-memory-by-path",
        run: pmem,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[
    ("is-typed-at", typed_at),
    ("calls", calls),
    ("calls-by-vsock", call_by_vsock),
];

/// The node's second serial port: whatever is written to it comes back as if somebody typed it.
const TERMINAL: &str = "/dev/ttyS1";
const TAP: &str = "tapalone";
const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 11, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 11, 2);
const PORT: u16 = 7300;
/// What the two say to each other: more than a packet carries.
const TALK_BYTES: usize = 64 << 10;

/// Where a program of the node listens, and at which port of the host the guest finds it.
const SERVICE: &str = "/run/service.sock";
const HOST_PORT: u32 = 5000;
/// Where a program of the guest is found, and at which port it listens.
const ENTRANCE: &str = "/run/guest.sock";
const GUEST_PORT: u32 = 22;
/// At which nobody listens, on either side.
const NOBODYS_PORT: u32 = 23;
const CLOSED: &str = "/run/closed.sock";
/// At once, each way.
const CALLS: u8 = 20;
/// More than the buffers on the way hold.
const CALL_BYTES: usize = 400_000;

/// Says each line that is typed.
fn typed_at() -> Result<()> {
    mount("devtmpfs", "/dev")?;
    let terminal = File::open("/dev/hvc0").context("open the terminal")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(terminal));
    say("type");
    while let Some(line) = lines.next().transpose()? {
        say(&format!("typed {line}"));
    }
    Ok(())
}

/// The node's side of a terminal at which a person sits.
fn open_terminal() -> Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NOCTTY);
    options.open(TERMINAL).context("open a terminal")
}

fn is_raw(terminal: &Termios) -> bool {
    let cooked = LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO;
    !terminal.local_flags.intersects(cooked)
}

/// What raw mode changes; the kernel tells less than the C library's structure has.
fn flags(terminal: &Termios) -> (InputFlags, OutputFlags, ControlFlags, LocalFlags) {
    let Termios {
        input_flags,
        output_flags,
        control_flags,
        local_flags,
        ..
    } = terminal;
    (*input_flags, *output_flags, *control_flags, *local_flags)
}

fn terminal(_: &Node) -> Result<String> {
    write_spec("is-typed-at", r#""console": "terminal", "#)?;
    let mut terminal = open_terminal()?;
    let before = tcgetattr(&terminal)?;
    ensure!(!is_raw(&before), "the terminal is raw before");
    let mut run = command(&["run", SPEC]);
    run.stdin(Stdio::from(terminal.try_clone()?));
    let mut machine = Running::of(run)?;
    machine.line("type")?;
    ensure!(is_raw(&tcgetattr(&terminal)?), "the terminal is not raw");
    // Ctrl-A Ctrl-A is one for the guest; its terminal shows what has no letter as ^ and one.
    terminal.write_all(b"hello \x01\x01\r")?;
    let line = machine.line("typed hello")?;
    ensure!(line == "typed hello \x01", "{line:?}");
    terminal.write_all(b"\x01x")?;
    let (status, errors) = machine.end()?;
    ensure!(status == Some(3), "{status:?} {errors}");
    let after = flags(&tcgetattr(&terminal)?);
    ensure!(after == flags(&before), "the terminal is not as it was");
    Ok("typed, answered, left by Ctrl-A x".to_owned())
}

/// Sends bytes to the node, and says how many come back.
fn calls() -> Result<()> {
    mount("sysfs", "/sys")?;
    link::set_up("eth0", GUEST)?;
    let mut node = TcpStream::connect((NODE, PORT)).context("reach the node")?;
    let talk = vec![0x5a; TALK_BYTES];
    node.write_all(&talk)?;
    let mut back = vec![0; TALK_BYTES];
    node.read_exact(&mut back)?;
    ensure!(back == talk, "other bytes have come back");
    say(&format!("{TALK_BYTES} bytes have come back"));
    Ok(())
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new(IP).args(words.split(' ')).output();
    let output = output.context("start ip")?;
    let says = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {says}");
    Ok(())
}

/// As root by the kernel's own mover of packets; as somebody else by ours.
fn tap(_: &Node) -> Result<String> {
    for (user, vhost) in [(0, true), (USER, false)] {
        let who = || format!("user {user}");
        ip(&format!(
            "tuntap add dev {TAP} mode tap user {user} vnet_hdr"
        ))?;
        ip(&format!("link set {TAP} up"))?;
        link::set_up(TAP, NODE)?;
        let net = format!(
            r#""nets": [{{"tap": "{TAP}", "mac": "02:00:00:09:11:02", "vhost": {vhost}}}], "#
        );
        write_spec("calls", &net)?;
        let listener = TcpListener::bind((NODE, PORT)).context("listen")?;
        let mode = |mode| fs::set_permissions("/dev/kvm", Permissions::from_mode(mode));
        mode(0o666)?;
        // As udev has it: whose a TAP is, the kernel asks when it is attached to.
        fs::set_permissions("/dev/net/tun", Permissions::from_mode(0o666))?;
        let mut run = command(&["run", SPEC]);
        run.uid(user).gid(user);
        let mut machine = Running::of(run)?;
        let answer = std::thread::spawn(move || -> Result<()> {
            let (mut guest, _) = listener.accept().context("hear the guest")?;
            guest.set_read_timeout(Some(PATIENCE))?;
            let mut talk = vec![0; TALK_BYTES];
            guest.read_exact(&mut talk)?;
            guest.write_all(&talk)?;
            Ok(())
        });
        let line = machine.line("bytes have come back");
        mode(0o600)?;
        line.with_context(who)?;
        answer.join().expect("no panic").with_context(who)?;
        let (status, errors) = machine.end()?;
        ensure!(status == Some(0), "{status:?} {errors}");
        ip(&format!("tuntap del dev {TAP} mode tap"))?;
    }
    Ok("as root with vhost, and as another user".to_owned())
}

/// Bytes of one call: more than fits between two ends that do not read.
fn talk(number: u8) -> Vec<u8> {
    let places = 0..CALL_BYTES;
    let bytes = places.map(|place| place.to_le_bytes()[0] ^ place.to_le_bytes()[1] ^ number);
    bytes.collect()
}

/// Says all of a talk while it reads what comes back, which is the same and then ends.
fn call(stream: OwnedFd, number: u8) -> Result<()> {
    let (said, mut reads) = (talk(number), File::from(stream));
    let (sent, mut writes) = (said.clone(), reads.try_clone()?);
    let writer = std::thread::spawn(move || -> Result<()> {
        writes.write_all(&sent)?;
        Ok(shutdown(writes.as_raw_fd(), Shutdown::Write)?)
    });
    let mut back = Vec::new();
    reads.read_to_end(&mut back)?;
    writer.join().expect("no panic")?;
    let (come, of) = (back.len(), said.len());
    ensure!(
        back == said,
        "call {number}: {come} bytes of {of} have come back, or others"
    );
    Ok(())
}

/// Many at once, each by a stream of its own.
fn calls_at_once(connect: fn() -> Result<OwnedFd>) -> Result<()> {
    let one = |number| std::thread::spawn(move || call(connect()?, number));
    let calls: Vec<_> = (0..CALLS).map(one).collect();
    for call in calls {
        call.join().expect("no panic")?;
    }
    Ok(())
}

/// Says what it hears, of as many calls, each to its end.
fn answer(mut accept: impl FnMut() -> Result<OwnedFd>) -> Result<()> {
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        let stream = File::from(accept()?);
        calls.push(std::thread::spawn(move || {
            let (mut from, mut to) = (&stream, &stream);
            std::io::copy(&mut from, &mut to)
        }));
    }
    for call in calls {
        call.join().expect("no panic")?;
    }
    Ok(())
}

fn vsock() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Vsock, SockType::Stream, flags, None)?)
}

fn to_host(port: u32) -> Result<OwnedFd> {
    let (stream, host) = (vsock()?, u32::try_from(HOST_CID)?);
    connect(stream.as_raw_fd(), &VsockAddr::new(host, port))?;
    Ok(stream)
}

/// Calls the host and is called by it, at once.
fn call_by_vsock() -> Result<()> {
    let listener = vsock()?;
    let here = VsockAddr::new(nix::libc::VMADDR_CID_ANY, GUEST_PORT);
    bind(listener.as_raw_fd(), &here)?;
    listen(&listener, Backlog::new(i32::from(CALLS))?)?;
    say("listens");
    let answers = std::thread::spawn(move || {
        answer(|| {
            let stream = UnixStream::from(sys::seqpacket::accept(listener.as_fd())?);
            stream.set_nonblocking(false)?;
            Ok(stream.into())
        })
    });
    let nobody = to_host(NOBODYS_PORT);
    ensure!(nobody.is_err(), "somebody listens where nobody does");
    calls_at_once(|| to_host(HOST_PORT))?;
    say("called");
    answers.join().expect("no panic")?;
    say("answered");
    Ok(())
}

fn sockets(_: &Node) -> Result<String> {
    let vsock = format!(
        r#""vsock": [{{"port": {HOST_PORT}, "from": "guest", "path": "{SERVICE}"}},
            {{"port": {NOBODYS_PORT}, "from": "guest", "path": "/run/nobody.sock"}},
            {{"port": {GUEST_PORT}, "from": "host", "path": "{ENTRANCE}"}},
            {{"port": {NOBODYS_PORT}, "from": "host", "path": "{CLOSED}"}}], "#
    );
    write_spec("calls-by-vsock", &vsock)?;
    let service = UnixListener::bind(SERVICE).context("listen")?;
    let mut machine = Running::start(&["run", SPEC])?;
    machine.line("listens")?;
    let answers = std::thread::spawn(move || answer(|| Ok(service.accept()?.0.into())));
    let refused = UnixStream::connect(CLOSED)?.read(&mut [0]);
    ensure!(matches!(refused, Ok(0)), "nobody listens: {refused:?}");
    let began = Instant::now();
    calls_at_once(|| Ok(UnixStream::connect(ENTRANCE)?.into()))?;
    machine.line("called")?;
    answers.join().expect("no panic")?;
    machine.line("answered")?;
    let took = began.elapsed().as_millis();
    let (status, errors) = machine.end()?;
    ensure!(status == Some(0), "{status:?} {errors}");
    ensure!(!Path::new(ENTRANCE).exists(), "a path is left behind");
    Ok(format!(
        "{CALLS} calls of {CALL_BYTES} bytes each way, {took} ms"
    ))
}

fn pmem(_: &Node) -> Result<String> {
    write_spec("reads-pmem", &format!(r#""pmems": ["{IMAGE}"], "#))?;
    let mut machine = Running::start(&["run", SPEC])?;
    let read = machine.line("content is whole")?;
    machine.line("runs from")?;
    let (status, errors) = machine.end()?;
    ensure!(status == Some(0), "{status:?} {errors}");
    Ok(read)
}
