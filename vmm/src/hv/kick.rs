//! Getting a vCPU out of KVM_RUN.
//!
//! Owns: the vCPU's "immediate exit" byte, and the signal that makes the kernel look at it.
//! Refuses: a lost wake-up: the byte is set before the signal, and KVM looks at it on its way into the guest.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;

/// Only the first page of a vCPU's shared structure is looked at.
const PAGE: usize = 4096;
/// Interrupts KVM_RUN; what it does otherwise is nothing.
const SIGNAL: libc::c_int = libc::SIGUSR1;

/// One vCPU and its thread.
pub(crate) struct Kick {
    vcpu: RawFd,
    /// Never joined, so that the thread's id stays its own.
    thread: JoinHandle<()>,
    /// Mapped when it is first needed.
    page: Option<NonNull<kvm_run>>,
}

// SAFETY: the mapping belongs to this value alone, does not depend on the thread that made it, and is only
// accessed as an atomic byte.
unsafe impl Send for Kick {}

extern "C" fn nothing(_: libc::c_int) {}

impl Kick {
    /// `vcpu` is the descriptor of a vCPU that lives as long as the process.
    pub(crate) fn new(vcpu: RawFd, thread: JoinHandle<()>) -> Self {
        Self {
            vcpu,
            thread,
            page: None,
        }
    }

    fn byte(&mut self) -> io::Result<&AtomicU8> {
        let page = match self.page {
            Some(page) => page,
            None => {
                let page = map(self.vcpu)?;
                install()?;
                *self.page.insert(page)
            }
        };
        // SAFETY: `page` is a mapping of at least the first page of the vCPU's `kvm_run`, which `self` owns
        // and never unmaps; `immediate_exit` lies in it. The kernel only reads the byte, and an `AtomicU8`
        // may be shared with it.
        Ok(unsafe { AtomicU8::from_ptr(&raw mut (*page.as_ptr()).immediate_exit) })
    }

    /// From now on KVM_RUN finishes what its last exit was about and returns with EINTR, until `relent`.
    pub(crate) fn interrupt(&mut self) -> io::Result<()> {
        self.byte()?.store(1, Ordering::SeqCst);
        // SAFETY: the thread is not joined while `self` has its handle, so its id is its own, even after
        // its end. The signal has a handler.
        // One C library numbers threads, the other points to them: the cast is to whichever it is.
        match unsafe { libc::pthread_kill(self.thread.as_pthread_t() as libc::pthread_t, SIGNAL) } {
            0 | libc::ESRCH => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// KVM_RUN runs again.
    pub(crate) fn relent(&mut self) {
        if self.page.is_some()
            && let Ok(byte) = self.byte()
        {
            byte.store(0, Ordering::SeqCst);
        }
    }
}

fn map(vcpu: RawFd) -> io::Result<NonNull<kvm_run>> {
    // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
    let page = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(
            std::ptr::null_mut(),
            PAGE,
            protection,
            libc::MAP_SHARED,
            vcpu,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(NonNull::new(page.cast()).expect("mmap without MAP_FIXED never returns page 0"))
}

/// A handler, without which the signal would end the process. Without SA_RESTART, so that calls end.
fn install() -> io::Result<()> {
    // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask, the default handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = nothing;
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: `action` is initialised, and its handler does nothing, which is safe in any thread.
    match unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
