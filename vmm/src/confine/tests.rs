//! Filters are proved in a child process each: one that does what the filter forbids dies of SIGSYS.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::virtio::blk;

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
        "blk makes a ring" => {
            let (mut blk, mut driver) = blk::tests::deep();
            install_as(Kind::Blk);
            blk::tests::go_deep(&mut blk, &mut driver);
            // Nothing is closed that asks for its flags first.
            std::mem::forget((blk, driver));
        }
        "blk makes another ring" => {
            install_as(Kind::Blk);
            seal_ring().expect("seals");
            let _ = io_uring::IoUring::new(crate::virtio::blk::RING_ENTRIES);
        }
        "blk makes a ring of another size" => {
            install_as(Kind::Blk);
            let _ = io_uring::IoUring::new(8);
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
            let null = null();
            install_as(Kind::Vcpu);
            refused_ioctl(null, WINDOW_SIZE());
        }
        "vcpu runs" => {
            let null = null();
            install_as(Kind::Vcpu);
            refused_ioctl(null, RUN());
        }
        "vcpu reads registers" => {
            let null = null();
            install_as(Kind::Vcpu);
            refused_ioctl(null, GET_REGS());
        }
        "net agrees on offloads" => {
            let null = null();
            install_as(Kind::Net);
            refused_ioctl(null, SET_OFFLOADS());
        }
        "vcpu allocates" => {
            install_as(Kind::Vcpu);
            drop(std::hint::black_box(vec![1u8; 1 << 20]));
        }
        other => panic!("unknown deed {other}"),
    }
}

// The requests as the crates that make them compute them.
vmm_sys_util::ioctl_io_nr!(RUN, kvm_bindings::KVMIO, 0x80);
vmm_sys_util::ioctl_ior_nr!(GET_REGS, kvm_bindings::KVMIO, 0x81, kvm_bindings::kvm_regs);
vmm_sys_util::ioctl_iow_nr!(SET_OFFLOADS, b'T'.into(), 208, libc::c_uint);
vmm_sys_util::ioctl_io_nr!(WINDOW_SIZE, b'T'.into(), 0x13);

/// A device that knows none of these requests. Never closed: a file of the standard library that is, asks
/// for its flags first in programs that are built for debugging.
fn null() -> &'static File {
    Box::leak(Box::new(File::open("/dev/null").expect("opens")))
}

#[expect(unsafe_code, reason = "the filter looks at the call itself")]
fn refused_ioctl(file: &File, request: libc::c_ulong) {
    // SAFETY: no argument is passed but zero, and /dev/null takes none of these requests.
    let result = unsafe { vmm_sys_util::ioctl::ioctl(file, request) };
    assert_eq!(result, -1);
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
        "blk makes another ring",
        "blk makes a ring of another size",
        "vcpu asks an ioctl of another kind",
    ] {
        assert_eq!(run(deed).signal(), Some(libc::SIGSYS), "{deed}");
    }
}

#[test]
fn needed_calls_pass() {
    for deed in [
        "main works",
        "vcpu allocates",
        "vcpu runs",
        "vcpu reads registers",
        "net agrees on offloads",
        "blk makes a ring",
    ] {
        assert_eq!(run(deed).code(), Some(0), "{deed}");
    }
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
