//! Filters are proved in a child process each: one that does what the filter forbids dies of SIGSYS.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;

/// Set in the child: what it is to do under the filter.
const DEED: &str = "SIFR_VMM_TEST_DEED";

/// What the child does; each must be cheap and need no set-up.
fn act(deed: &str) {
    let install_as = |kind| install(&filter(kind).expect("builds")).expect("installs");
    let open = || std::fs::File::open("/").is_ok();
    match deed {
        "main works" => {
            install_as(Kind::Main);
            let mut bytes = vec![0; 300_000];
            getrandom::fill(&mut bytes).expect("random bytes");
            let event = vmm_sys_util::eventfd::EventFd::new(0);
            drop(event);
        }
        "main opens" => {
            install_as(Kind::Main);
            open();
        }
        "vcpu opens" => {
            install_as(Kind::Vcpu);
            open();
        }
        "blk opens" => {
            install_as(Kind::Blk);
            open();
        }
        "net opens" => {
            install_as(Kind::Net);
            open();
        }
        "vcpu makes a socket" => {
            install_as(Kind::Vcpu);
            let _ = std::os::unix::net::UnixDatagram::unbound();
        }
        "blk runs a program" => {
            install_as(Kind::Blk);
            let _ = Command::new("/bin/true").status();
        }
        "vcpu asks an ioctl of another kind" => {
            install_as(Kind::Vcpu);
            let mut size: nix::libc::winsize = nix::libc::winsize {
                ws_row: 0,
                ws_col: 0,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            other_ioctl(&mut size);
        }
        "vcpu allocates" => {
            install_as(Kind::Vcpu);
            drop(std::hint::black_box(vec![1u8; 1 << 20]));
        }
        other => panic!("unknown deed {other}"),
    }
}

nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);

#[expect(unsafe_code, reason = "any ioctl but KVM_RUN will do")]
fn other_ioctl(size: &mut libc::winsize) {
    // SAFETY: the pointer is to a live `winsize`; the call never gets past the filter.
    let _ = unsafe { window_size(0, size) };
}

#[test]
fn deeds() {
    if let Ok(deed) = std::env::var(DEED) {
        act(&deed);
        // The harness around this test would go on to calls that a thread of ours never makes.
        #[expect(clippy::exit, reason = "ends the child under its filter")]
        std::process::exit(0);
    }
}

fn run(deed: &str) -> std::process::ExitStatus {
    Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "confine::tests::deeds",
            "--test-threads=1",
            "--nocapture",
        ])
        .env(DEED, deed)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("runs")
}

#[test]
fn forbidden_calls_kill_the_process() {
    for deed in [
        "main opens",
        "vcpu opens",
        "blk opens",
        "net opens",
        "vcpu makes a socket",
        "blk runs a program",
        "vcpu asks an ioctl of another kind",
    ] {
        assert_eq!(run(deed).signal(), Some(libc::SIGSYS), "{deed}");
    }
}

#[test]
fn needed_calls_pass() {
    assert_eq!(run("vcpu allocates").code(), Some(0));
}

#[test]
fn every_filter_builds_and_no_call_is_listed_both_freely_and_with_an_argument() {
    for kind in [Kind::Main, Kind::Vcpu, Kind::Blk, Kind::Net] {
        filter(kind).expect("builds");
        for call in calls(kind) {
            let twins: Vec<_> = calls(kind)
                .filter(|other| other.number == call.number)
                .collect();
            assert!(twins.len() == 1 || twins.iter().all(|c| c.argument.is_some()));
        }
    }
}
