//! The list is proved in a child process each time: it does all that a daemon does under the filter and in the domain,
//! and lives; or it does one thing more, and dies of SIGSYS or is refused.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

use super::*;
use crate::room::Room;

/// Set in the child: what it is to do.
const DEED: &str = "SIFR_CHUNKS_TEST_DEED";
/// Exit code of the child on a kernel without Landlock.
const NO_LANDLOCK: i32 = 77;

type Deed = (&'static str, fn());

/// What the daemon never does. Each is harmless where it passes.
const FORBIDDEN: &[Deed] = &[
    ("execute", || {
        let _ = Command::new("/nowhere").status();
    }),
    ("raw-socket", || {
        let _ = sys::packet::open_udp(1, 68);
    }),
    ("unshare", || {
        let _ = nix::sched::unshare(nix::sched::CloneFlags::empty());
    }),
    ("unmount", || {
        let _ = nix::mount::umount("/nowhere");
    }),
    ("signal", || {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), None);
    }),
    ("change-mode", || {
        let mode = nix::sys::stat::Mode::empty();
        let _ = nix::sys::stat::fchmod(std::io::stdout(), mode);
    }),
    ("become-user", || {
        let _ = nix::unistd::setuid(nix::unistd::getuid());
    }),
    ("listen-at-a-port", || {
        let _ = TcpListener::bind("127.0.0.1:0");
    }),
];

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

#[test]
#[expect(clippy::exit, reason = "ends the child under its filter")]
fn child() {
    let Ok(deed) = std::env::var(DEED) else {
        return;
    };
    match deed.as_str() {
        "works" => {
            let work = super::super::tests::all_work(|paths| {
                sys::confine::forbid_privileges().expect("forbidden");
                reach(paths).expect("a domain");
                sys::confine::install(&filter().expect("builds")).expect("installs");
            });
            // Not dropped: that would wait for the daemon.
            let runtime = Box::leak(Box::new(runtime()));
            runtime.block_on(work);
        }
        "domain" => in_the_domain(),
        other => {
            let (_, deed) = FORBIDDEN
                .iter()
                .find(|(name, _)| *name == other)
                .expect("a deed");
            sys::confine::install(&filter().expect("builds")).expect("installs");
            deed();
        }
    }
    std::process::exit(0);
}

fn in_the_domain() {
    let work = tempfile::tempdir().expect("a directory");
    let at = |name: &str| work.path().join(name);
    for name in [
        "maps",
        "room",
        "pool/flists",
        "pool/chunks",
        "pool/images",
        "pool/machines/a",
    ] {
        fs::create_dir_all(at(name)).expect("a directory");
    }
    for name in [
        "pool/machines/a/upper",
        "pool/pool.json",
        "room/promises.json",
    ] {
        fs::write(at(name), b"x").expect("written");
    }
    let promises = at("room/promises.json");
    let paths = Paths {
        room: Room::new(&at("pool"), &promises),
        promises: at("room"),
        pool: at("pool"),
        maps: at("maps"),
        socket: at("socket"),
    };
    sys::confine::forbid_privileges().expect("forbidden");
    reach(&paths).expect("a domain");
    let denied = |what: &str, done: std::io::Result<()>| match done {
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{what}"),
        #[expect(clippy::exit, reason = "ends the child")]
        Ok(()) if what == "a layer" => std::process::exit(NO_LANDLOCK),
        Ok(()) => panic!("{what} was in reach"),
    };
    denied("a layer", fs::read(at("pool/machines/a/upper")).map(drop));
    denied("the pool", fs::read(at("pool/pool.json")).map(drop));
    denied("a new file", fs::write(at("pool/x"), b"x"));
    denied("a promise", fs::write(&promises, b"x"));
    denied("a device", fs::read("/dev/zero").map(drop));
    denied("a port", TcpListener::bind("127.0.0.1:0").map(drop));
    fs::write(at("pool/chunks/x"), b"x").expect("the cache is in reach");
    assert_eq!(fs::read(&promises).expect("promises are read"), b"x");
    assert_eq!(
        fs::read_dir(at("pool/machines/a")).expect("listed").count(),
        1
    );
}

fn run(deed: &str) -> ExitStatus {
    let name = concat!(module_path!(), "::child");
    let (_, name) = name.split_once("::").expect("a crate");
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--test-threads=1", "--nocapture"])
        .env(DEED, deed)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .status()
        .expect("runs")
}

#[test]
fn the_daemon_does_all_its_work_confined() {
    let end = run("works");
    assert_eq!(end.code(), Some(0), "{end}");
}

#[test]
fn whatever_else_it_does_kills_it() {
    for (what, _) in FORBIDDEN {
        assert_eq!(run(what).signal(), Some(libc::SIGSYS), "{what}");
    }
}

#[test]
fn in_its_domain_it_reaches_the_cache_and_lists_machines_and_nothing_else() {
    // Not left out where there is no Landlock: then nothing would have been proved.
    let code = run("domain").code();
    assert_ne!(
        code,
        Some(NO_LANDLOCK),
        "this machine's kernel has no Landlock: boot it with `lsm=landlock,...`, or run the tests on another"
    );
    assert_eq!(code, Some(0));
}
