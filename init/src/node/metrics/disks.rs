//! The numbers of pools, from what the API says of them.
//!
//! Owns: their families. Refuses: asking a disk.

use types::node::{Pool, PoolState};

use super::super::exposition::{Family, Type, Value, text};

/// The text, empty where there are no pools.
pub(crate) fn render(pools: &[Pool]) -> String {
    let gauge = |name, help| Family::new(name, Type::Gauge, help);
    let mut up = gauge(
        "sifr_pool_up",
        "1: in use; 0: its disk is not there, or fails.",
    );
    let mut size = gauge("sifr_pool_size_bytes", "Size of the pool's file system.");
    let mut used = gauge("sifr_pool_used_bytes", "What of it is written to.");
    for pool in pools {
        let class = pool.class.to_string();
        let labels = [
            ("pool", pool.id.as_str()),
            ("serial", pool.serial.as_str()),
            ("class", class.as_str()),
        ];
        let is_up = match pool.state {
            PoolState::InUse => true,
            PoolState::Failed | PoolState::Missing => false,
        };
        up.sample(&labels, Value::Count(u64::from(is_up)));
        if pool.state != PoolState::Missing {
            let taken = pool.size.0.saturating_sub(pool.free.0);
            size.sample(&labels, Value::Count(pool.size.0));
            used.sample(&labels, Value::Count(taken));
        }
    }
    text(&[up, size, used])
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::node::DiskClass;

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn a_pool_that_is_missing_is_down_and_has_no_size() {
        let pool = |serial: &str, state| Pool {
            id: "0a".to_owned(),
            disk: None,
            serial: serial.to_owned(),
            class: DiskClass::Nvme,
            state,
            size: Bytes(100),
            free: Bytes(30),
            mirror: None,
            because: None,
        };
        let pools = [pool("A", PoolState::InUse), pool("B", PoolState::Missing)];
        let samples = parse(&render(&pools));
        let of = |name: &str, serial: &str| {
            let found = samples.iter().find(|(n, labels, _)| {
                n == name && labels["serial"] == serial && labels["class"] == "nvme"
            });
            found.map(|(.., value)| *value)
        };
        assert_eq!(of("sifr_pool_up", "A"), Some(1.0));
        assert_eq!(of("sifr_pool_used_bytes", "A"), Some(70.0));
        assert_eq!(of("sifr_pool_up", "B"), Some(0.0));
        assert_eq!(of("sifr_pool_size_bytes", "B"), None);
        assert!(render(&[]).is_empty());
    }
}
