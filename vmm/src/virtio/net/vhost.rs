//! A queue pair in the kernel's hands (vhost-net): it moves the packets, the registers stay ours.
//!
//! Owns: the order in which the kernel is told of a pair, and taking it back. What it is told of has been
//! checked: rings as a driver may have them, wholly in guest memory, in use between DRIVER_OK and reset.
//! Refuses: a kernel that lacks what our transport offers; counting or limiting packets, which it cannot.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::confine::vhost as request;
use crate::event::Source;
use crate::memory::GuestRam;
use crate::memory::dirty::PhysicalLog;
use crate::virtio::ring::{Place, Ring, Violation};

/// What the transport offers whatever the device, so that the kernel must know it.
const NEEDED: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Features of the card that the kernel has a part in; the rest is between driver, TAP and us.
pub(super) const SHARED: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Feature bit (linux/vhost_types.h): the kernel notes which pages it writes.
const VHOST_F_LOG_ALL: u32 = 26;
/// The same of a used ring.
const VHOST_VRING_F_LOG: u32 = 0;
/// Our machines have one piece of memory or two: below the device hole and above it.
const REGIONS_MAX: usize = 2;

/// `struct vhost_vring_state` and `struct vhost_vring_file`: a ring, and a number or descriptor.
#[repr(C)]
struct Word {
    ring: u32,
    value: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
struct Addresses {
    ring: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    guest: u64,
    bytes: u64,
    host: u64,
    flags: u64,
}

/// `struct vhost_memory`.
#[repr(C)]
struct Table {
    count: u32,
    padding: u32,
    regions: [Region; REGIONS_MAX],
}

// The size of what an ioctl moves stands in its number.
const fn size_in(request: u32) -> usize {
    (request >> 16 & 0x3fff) as usize
}
const _: () = assert!(size_of::<Word>() == size_in(request::SET_VRING_NUM));
const _: () = assert!(size_of::<Word>() == size_in(request::NET_SET_BACKEND));
const _: () = assert!(size_of::<Addresses>() == size_in(request::SET_VRING_ADDR));
const _: () = assert!(size_of::<u64>() == size_in(request::SET_FEATURES));
const _: () = assert!(size_of::<u64>() == size_in(request::SET_LOG_BASE));
// Regions stand behind the header.
const _: () = assert!(size_of::<Table>() == size_in(request::SET_MEM_TABLE) + REGIONS_MAX * 32);

#[derive(Debug)]
pub(super) struct Vhost {
    file: File,
    features: u64,
    /// The kernel knows our memory.
    owned: bool,
    /// Where the kernel notes what it writes to guest memory, if anybody asks.
    log: Option<PhysicalLog>,
    running: bool,
    /// The kernel's worker has found a ring broken.
    broken: EventFd,
}

impl Vhost {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut vhost = Self {
            file,
            features: 0,
            owned: false,
            log: None,
            running: false,
            broken: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        };
        let mut features = 0u64;
        vhost.call(request::GET_FEATURES, &mut features)?;
        if features & NEEDED != NEEDED {
            let lacks = format!("it lacks features {:#x}", NEEDED & !features);
            return Err(io::Error::new(io::ErrorKind::Unsupported, lacks));
        }
        vhost.features = features;
        Ok(vhost)
    }

    /// What the kernel can of [`SHARED`].
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Fires where the kernel has given a ring up.
    pub(super) fn source(&self) -> Source {
        match self.running {
            true => Source::readable(&self.broken),
            false => Source::never(),
        }
    }

    pub(super) fn has_given_up(&self) -> bool {
        self.broken.read().is_ok()
    }

    /// Hands the pair over, if the driver has set both rings up. `features` as agreed.
    pub(super) fn start(
        &mut self,
        tap: RawFd,
        features: u64,
        rings: [&Ring<'_>; 2],
    ) -> Result<(), Violation> {
        let [Some(to_guest), Some(from_guest)] = [rings[0].place()?, rings[1].place()?] else {
            return Ok(());
        };
        let started = self
            .introduce(rings[0].ram(), features)
            .and_then(|()| self.hand_over(0, &to_guest, rings[0]))
            .and_then(|()| self.hand_over(1, &from_guest, rings[1]))
            .and_then(|()| self.back(tap));
        match started {
            Ok(()) => {
                self.running = true;
                Ok(())
            }
            Err(error) => {
                // As far as it had come.
                let _ = self.back(-1);
                Err(Violation::Host("hand a queue pair to vhost-net", error))
            }
        }
    }

    /// Takes the pair back; when this returns the kernel touches neither rings nor memory.
    pub(super) fn stop(&mut self) {
        if self.running {
            self.running = false;
            // It takes a descriptor less than none always.
            let _ = self.back(-1);
            if let Some(log) = &self.log {
                log.hand_over();
            }
        }
    }

    /// How far the kernel has taken chains from a ring of a pair that is stopped.
    pub(super) fn position(&self, ring: u32) -> io::Result<u16> {
        let mut state = Word { ring, value: 0 };
        self.call(request::GET_VRING_BASE, &mut state)?;
        u16::try_from(state.value).map_err(io::Error::other)
    }

    /// Our memory, and how we speak.
    fn introduce(&mut self, ram: &GuestRam, features: u64) -> io::Result<()> {
        if !self.owned {
            self.call(request::SET_OWNER, &mut ())?;
            let mut table = Table {
                count: 0,
                padding: 0,
                regions: [Region::default(); REGIONS_MAX],
            };
            for region in ram.iter() {
                let place = table.regions.get_mut(table.count as usize);
                let place = place.ok_or_else(|| io::Error::other("memory in too many pieces"))?;
                *place = Region {
                    guest: region.start_addr().0,
                    bytes: region.len(),
                    host: region.as_ptr().addr() as u64,
                    flags: 0,
                };
                table.count += 1;
            }
            self.call(request::SET_MEM_TABLE, &mut table)?;
            self.log = PhysicalLog::new(ram);
            if let Some(log) = &self.log {
                self.call(request::SET_LOG_BASE, &mut log.address())?;
            }
            self.owned = true;
        }
        let mut agreed = features & (NEEDED | SHARED);
        if self.log.is_some() {
            agreed |= 1 << VHOST_F_LOG_ALL;
        }
        self.call(request::SET_FEATURES, &mut agreed)
    }

    fn hand_over(&self, index: u32, place: &Place, ring: &Ring<'_>) -> io::Result<()> {
        let number = |value: u16| Word {
            ring: index,
            value: value.into(),
        };
        let descriptor = |fd: &EventFd| Word {
            ring: index,
            value: fd.as_raw_fd(),
        };
        self.call(request::SET_VRING_NUM, &mut number(place.size))?;
        self.call(request::SET_VRING_BASE, &mut number(place.next))?;
        let noted = self.log.is_some();
        let mut addresses = Addresses {
            ring: index,
            flags: if noted { 1 << VHOST_VRING_F_LOG } else { 0 },
            descriptors: place.descriptors,
            used: place.used,
            available: place.available,
            log: if noted { place.used_in_guest } else { 0 },
        };
        self.call(request::SET_VRING_ADDR, &mut addresses)?;
        self.call(
            request::SET_VRING_CALL,
            &mut descriptor(ring.interrupt_line()),
        )?;
        self.call(request::SET_VRING_ERR, &mut descriptor(&self.broken))?;
        self.call(request::SET_VRING_KICK, &mut descriptor(ring.doorbell()))
    }

    /// From now on packets move between this TAP and the rings; -1: none do.
    fn back(&self, tap: RawFd) -> io::Result<()> {
        let [to_guest, from_guest] = [0, 1].map(|ring| {
            let mut backend = Word { ring, value: tap };
            self.call(request::NET_SET_BACKEND, &mut backend)
        });
        // Both, whatever has become of the first.
        to_guest.and(from_guest)
    }

    fn call<T>(&self, number: u32, argument: &mut T) -> io::Result<()> {
        // musl's requests are signed; the kernel takes 32 bits of either kind.
        #[expect(
            clippy::cast_sign_loss,
            reason = "where requests are unsigned, above 32 bits nothing is read"
        )]
        let number = number.cast_signed() as libc::Ioctl;
        // SAFETY: callers pass the structure that the request is defined with (linux/vhost.h), whose size is
        // compared above, and which lives across the call. Rings and memory that it names stay mapped: they
        // are guest memory, which ends with the process. The log that it names are atomics, which live as long
        // as `self.file`: the kernel writes no more once that is closed, or its backends are gone.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), number, std::ptr::from_mut(argument)) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_vhost_is_refused() {
        let null = File::open("/dev/null").expect("opens");
        assert!(Vhost::new(null).is_err());
    }

    #[test]
    fn requests_are_those_of_the_kernels_header() {
        const VHOST: u8 = 0xaf;
        let word = size_of::<Word>();
        let table = [
            (
                request::GET_FEATURES,
                nix::request_code_read!(VHOST, 0x00, 8),
            ),
            (
                request::SET_FEATURES,
                nix::request_code_write!(VHOST, 0x00, 8),
            ),
            (request::SET_OWNER, nix::request_code_none!(VHOST, 0x01)),
            (
                request::SET_MEM_TABLE,
                nix::request_code_write!(VHOST, 0x03, 8),
            ),
            (
                request::SET_LOG_BASE,
                nix::request_code_write!(VHOST, 0x04, 8),
            ),
            (
                request::SET_VRING_NUM,
                nix::request_code_write!(VHOST, 0x10, word),
            ),
            (
                request::SET_VRING_ADDR,
                nix::request_code_write!(VHOST, 0x11, size_of::<Addresses>()),
            ),
            (
                request::SET_VRING_BASE,
                nix::request_code_write!(VHOST, 0x12, word),
            ),
            (
                request::GET_VRING_BASE,
                nix::request_code_readwrite!(VHOST, 0x12, word),
            ),
            (
                request::SET_VRING_KICK,
                nix::request_code_write!(VHOST, 0x20, word),
            ),
            (
                request::SET_VRING_CALL,
                nix::request_code_write!(VHOST, 0x21, word),
            ),
            (
                request::SET_VRING_ERR,
                nix::request_code_write!(VHOST, 0x22, word),
            ),
            (
                request::NET_SET_BACKEND,
                nix::request_code_write!(VHOST, 0x30, word),
            ),
        ];
        for (ours, theirs) in table {
            // Signed with musl, wider with glibc.
            assert_eq!(format!("{ours:08x}"), format!("{theirs:08x}"));
        }
    }
}
