//! The numbers of pools, from what the API says of them.
//!
//! Owns: their families. Refuses: asking a disk.

use types::node::{Half, HalfState, Pool, PoolState};

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
    let mut in_step = gauge(
        "sifr_mirror_halves_in_step",
        "Disks of the pool's mirror that have all of it; less than 2: it is degraded.",
    );
    let mut filled = gauge(
        "sifr_mirror_filled_percent",
        "How far a disk that is being filled has come.",
    );
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
        let Some(mirror) = &pool.mirror else { continue };
        let is = |state| move |half: &&Half| half.state == state;
        let whole = mirror.halves.iter().filter(is(HalfState::InStep)).count();
        in_step.sample(&labels, Value::Count(whole as u64));
        let fills = mirror
            .halves
            .iter()
            .any(|half| is(HalfState::Filling)(&half));
        if let (true, Some(percent)) = (fills, mirror.percent) {
            filled.sample(&labels, Value::Count(u64::from(percent)));
        }
    }
    text(&[up, size, used, in_step, filled])
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::node::{DiskClass, Mirror};

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
        assert_eq!(of("sifr_mirror_halves_in_step", "A"), None, "it is none");
    }

    #[test]
    fn a_mirror_says_how_many_of_its_disks_are_whole_and_how_far_one_is_filled() {
        let mirror = |states: [HalfState; 2]| {
            let half = |state| Half {
                disk: None,
                serial: String::new(),
                state,
            };
            let pool = Pool {
                id: "0a".to_owned(),
                disk: None,
                serial: "A".to_owned(),
                class: DiskClass::Nvme,
                state: PoolState::InUse,
                size: Bytes(100),
                free: Bytes(30),
                because: None,
                mirror: Some(Mirror {
                    array: "md_1".to_owned(),
                    halves: states.map(half).into(),
                    percent: Some(37),
                }),
            };
            let samples = parse(&render(&[pool]));
            ["sifr_mirror_halves_in_step", "sifr_mirror_filled_percent"].map(|name| {
                let found = samples.iter().find(|(n, ..)| n == name);
                found.map(|(.., value)| *value)
            })
        };
        use HalfState::{Filling, InStep, Missing};
        assert_eq!(mirror([InStep, Filling]), [Some(1.0), Some(37.0)]);
        assert_eq!(mirror([InStep, Missing]), [Some(1.0), None]);
        assert_eq!(mirror([InStep, InStep]), [Some(2.0), None]);
    }
}
