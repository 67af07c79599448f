//! Memory-mapped devices: one page each, in a row.
//!
//! Owns: address to device, by division. Refuses: addresses outside the row.

use std::sync::Arc;

use super::ABSENT;
use crate::memory::layout::{VIRTIO, VIRTIO_STRIDE};

/// The registers of one device. Called by any vCPU.
pub(crate) trait MmioDevice: Send + Sync {
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);
}

#[derive(Default)]
pub(crate) struct Mmio {
    devices: Vec<Arc<dyn MmioDevice>>,
}

impl Mmio {
    pub(crate) fn new(devices: Vec<Arc<dyn MmioDevice>>) -> Self {
        Self { devices }
    }

    fn find(&self, address: u64) -> Option<(&dyn MmioDevice, u64)> {
        let from_start = address.checked_sub(VIRTIO)?;
        let index = usize::try_from(from_start / VIRTIO_STRIDE).ok()?;
        Some((
            self.devices.get(index)?.as_ref(),
            from_start % VIRTIO_STRIDE,
        ))
    }

    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(ABSENT),
        }
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Offset;
    impl MmioDevice for Offset {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&offset.to_le_bytes()[..data.len()]);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn each_device_has_one_page_and_beyond_the_last_reads_all_ones() {
        let bus = Mmio::new(vec![Arc::new(Offset), Arc::new(Offset)]);
        let read = |address| {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(VIRTIO + 0x70), 0x70);
        assert_eq!(read(VIRTIO + 0x1004), 4);
        assert_eq!(read(VIRTIO + 0x2000), u32::MAX);
        assert_eq!(read(VIRTIO - 4), u32::MAX);
        assert_eq!(read(u64::MAX), u32::MAX);
    }
}
