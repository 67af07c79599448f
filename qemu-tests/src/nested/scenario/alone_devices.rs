//! `sifr-vmm run` with what the host has: a terminal, a TAP, an image that becomes memory.
//!
//! Owns: the commands of the manual (docs/vmm.md) for these, as they stand there.
//! Refuses: a TAP or terminal made by other means than an engineer's.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, OutputFlags, Termios, tcgetattr};

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
        name: "an-image-is-the-guests-memory-by-path",
        run: pmem,
    },
];

pub(super) const GUESTS: &[(&str, Program)] = &[("is-typed-at", typed_at), ("calls", calls)];

/// The node's second serial port: whatever is written to it comes back as if somebody typed it.
const TERMINAL: &str = "/dev/ttyS1";
const TAP: &str = "tapalone";
const NODE: Ipv4Addr = Ipv4Addr::new(10, 9, 11, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 11, 2);
const PORT: u16 = 7300;
/// What the two say to each other: more than a packet carries.
const TALK_BYTES: usize = 64 << 10;

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

fn pmem(_: &Node) -> Result<String> {
    write_spec("reads-pmem", &format!(r#""pmems": ["{IMAGE}"], "#))?;
    let mut machine = Running::start(&["run", SPEC])?;
    let read = machine.line("content is whole")?;
    machine.line("runs from")?;
    let (status, errors) = machine.end()?;
    ensure!(status == Some(0), "{status:?} {errors}");
    Ok(read)
}
