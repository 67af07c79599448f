//! What the named counters of our tables have counted.
//!
//! Owns: one question to the kernel and its answer. Refuses: other tables, other objects.

use std::collections::BTreeMap;
use std::io;

use rtnetlink::packet_core::NlasIterator;

use super::batch;
use super::encode::{NFNL_SUBSYS_NFTABLES, NFPROTO_UNSPEC, OBJECT_COUNTER, TABLE};

const NEWOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 18;
const GETOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 19;

/// Packets and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    pub packets: u64,
    pub bytes: u64,
}

/// By the counters' names, which are unique over our tables in one namespace.
pub type Counts = BTreeMap<String, Counted>;

/// All of the caller's own namespace.
pub(super) fn read() -> io::Result<Counts> {
    let mut counts = Counts::new();
    batch::list(GETOBJ, NFPROTO_UNSPEC, |kind, body| {
        counts.extend(counter(body).filter(|_| kind == NEWOBJ));
    })?;
    Ok(counts)
}

fn counter(body: &[u8]) -> Option<(String, Counted)> {
    let (mut table, mut name, mut kind) = (None, None, None);
    let mut counted = Counted::default();
    for attribute in NlasIterator::new(body).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            1 => table = text(value),
            2 => name = text(value),
            3 => kind = value.try_into().ok().map(u32::from_be_bytes),
            4 => counted = figures(value),
            _ => {}
        }
    }
    let ours = table.as_deref() == Some(TABLE) && kind == Some(OBJECT_COUNTER);
    name.filter(|_| ours).map(|name| (name, counted))
}

fn figures(data: &[u8]) -> Counted {
    let mut counted = Counted::default();
    for attribute in NlasIterator::new(data).flatten() {
        let number = attribute.value().try_into().map_or(0, u64::from_be_bytes);
        match attribute.kind() {
            1 => counted.bytes = number,
            2 => counted.packets = number,
            _ => {}
        }
    }
    counted
}

fn text(value: &[u8]) -> Option<String> {
    let text = value.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    proptest! {
        #[test]
        fn any_object_is_a_counter_or_none(body: Vec<u8>) {
            let _ = counter(&body);
        }
    }
}
