//! What only some machines have: a balloon, a console, images as memory, and parts at I/O ports.
//!
//! Owns: making each from its field of the specification. Refuses: to cost a machine anything that names none
//! of them.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use types::vm::{ConsoleKind, VmSpec};

use crate::bus::Ports;
use crate::device::rtc::Rtc;
use crate::device::watchdog::Watchdog;
use crate::end::End;
use crate::event::Served;
use crate::fds::{FdError, Inherited};
use crate::memory::image::{Image, ImageError, Placed};
use crate::memory::layout;
use crate::virtio::balloon::{Balloon, BalloonError};
use crate::virtio::console::Console;
use crate::virtio::pmem::Pmem;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtraError {
    #[error("balloon")]
    Balloon(#[from] BalloonError),
    #[error("make the console's descriptor non-blocking")]
    Console(#[source] io::Error),
    #[error("pmem image {0}")]
    Image(usize, #[source] ImageError),
    #[error("pmem images of {0} bytes in all do not fit behind the guest's memory")]
    Room(u64),
    #[error("make the watchdog's timer")]
    Watchdog(#[source] Errno),
}

/// The descriptors of these devices.
pub(crate) struct ExtraFds {
    console: Option<(File, ConsoleKind)>,
    pmems: Vec<File>,
}

impl ExtraFds {
    pub(crate) fn take(fds: &mut Inherited, spec: &VmSpec) -> Result<Self, FdError> {
        let console = match &spec.console {
            None => None,
            Some(console) => Some((fds.take(console.fd, "console")?.into(), console.kind)),
        };
        let pmems = spec.pmems.iter();
        let pmems = pmems.map(|pmem| fds.take(pmem.fd, "pmem image").map(File::from));
        Ok(Self {
            console,
            pmems: pmems.collect::<Result<_, _>>()?,
        })
    }
}

/// The devices, ready to be given their slots and ports.
pub(crate) struct Extras {
    pub(crate) balloon: Option<Balloon>,
    pub(crate) console: Option<Console>,
    pub(crate) pmems: Vec<Pmem>,
    /// What the pmem devices speak of, for KVM.
    pub(crate) images: Vec<Placed>,
    pub(crate) ports: Ports,
    /// What the main thread serves besides slots.
    pub(crate) served: Vec<Arc<dyn Served>>,
}

impl Extras {
    pub(crate) fn new(fds: ExtraFds, spec: &VmSpec, end: &Arc<End>) -> Result<Self, ExtraError> {
        let balloon = spec.balloon.as_ref();
        let balloon = balloon.map(|balloon| Balloon::new(balloon, spec.memory_mib));
        let console = fds.console.map(|(file, kind)| Console::new(file, kind));
        let images = place(&fds.pmems, spec.memory_mib)?;
        let pmems = images.iter();
        let pmems = pmems.map(|placed| Pmem::new(placed.start, placed.image.bytes()));
        let mut served: Vec<Arc<dyn Served>> = Vec::new();
        let mut ports = Ports {
            rtc: spec.rtc.then(Rtc::default),
            pvpanic: spec.pvpanic,
            ..Ports::default()
        };
        if spec.watchdog {
            let watchdog = Arc::new(Watchdog::new(end).map_err(ExtraError::Watchdog)?);
            ports.watchdog = Some(watchdog.clone());
            served.push(watchdog);
        }
        Ok(Self {
            balloon: balloon.transpose()?,
            console: console.transpose().map_err(ExtraError::Console)?,
            pmems: pmems.collect(),
            images,
            ports,
            served,
        })
    }
}

fn place(files: &[File], memory_mib: u64) -> Result<Vec<Placed>, ExtraError> {
    let mut images = Vec::with_capacity(files.len());
    for (number, file) in files.iter().enumerate() {
        images.push(Image::open(file).map_err(|e| ExtraError::Image(number, e))?);
    }
    let lengths: Vec<u64> = images.iter().map(Image::bytes).collect();
    let end = 1 << layout::ADDRESS_BITS_MAX;
    let starts = layout::pmem_starts(memory_mib, &lengths, end);
    let starts = starts.ok_or(ExtraError::Room(lengths.iter().sum()))?;
    let placed = starts.into_iter().zip(images);
    Ok(placed
        .map(|(start, image)| Placed { start, image })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_placed_one_behind_the_other() {
        let file = || {
            let file = tempfile::tempfile().expect("temporary file");
            file.set_len(3 << 20).expect("grows");
            file
        };
        let placed = place(&[file(), file()], 64).expect("room");
        let starts: Vec<u64> = placed.iter().map(|p| p.start).collect();
        assert_eq!(starts, [4 << 30, (4 << 30) + (128 << 20)]);
        assert_eq!(placed[1].image.bytes(), 4 << 20);
        let large = tempfile::tempfile_in("/dev/shm").expect("memory");
        large.set_len(1 << 45).expect("sparse");
        let twice = [large.try_clone().expect("a descriptor"), large];
        assert!(matches!(place(&twice, 64), Err(ExtraError::Room(_))));
    }
}
