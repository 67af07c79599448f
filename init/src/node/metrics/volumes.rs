//! The numbers of volumes, from what the API says of them.
//!
//! Owns: their families. Refuses: asking anybody.

use types::status::{DeploymentStatus, VolumeState, VolumeStatus};

use super::super::exposition::{Family, Type, Value, text};

/// The text, empty where there are no volumes.
pub(crate) fn render(all: &[DeploymentStatus]) -> String {
    let gauge = |name, help| Family::new(name, Type::Gauge, help);
    let mut families = [
        gauge("sifr_volume_size_bytes", "Size of the volume on the pool."),
        gauge(
            "sifr_volume_used_bytes",
            "What its content takes of the pool, shared with snapshots or not.",
        ),
        gauge("sifr_volume_snapshots", "Snapshots that were asked for."),
        gauge("sifr_volume_attached", "Machines that have it."),
        gauge(
            "sifr_volume_ready",
            "1: it is as it should be, and nothing is left to change.",
        ),
    ];
    for status in all {
        for (name, volume) in &status.volumes {
            let labels = [
                ("deployment", status.name.as_str()),
                ("volume", name.as_str()),
            ];
            for (family, value) in families.iter_mut().zip(values(volume)) {
                if let Some(value) = value {
                    family.sample(&labels, Value::Count(value));
                }
            }
        }
    }
    match all.iter().all(|status| status.volumes.is_empty()) {
        true => String::new(),
        false => text(&families),
    }
}

fn values(volume: &VolumeStatus) -> [Option<u64>; 5] {
    let count = |n: usize| u64::try_from(n).ok();
    [
        Some(volume.size.0),
        volume.used.map(|used| used.0),
        count(volume.snapshots.len()),
        count(volume.attached.len()),
        Some(u64::from(volume.state == VolumeState::Ready)),
    ]
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::status::Desired;

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn a_volume_is_one_sample_of_each_kind() {
        let name = |text: &str| text.parse().expect("a name");
        let volume = VolumeStatus {
            state: VolumeState::Changing,
            size: Bytes::mib(64),
            used: None,
            attached: vec![name("db")],
            snapshots: Default::default(),
            message: None,
        };
        let mut status = DeploymentStatus {
            name: name("shop"),
            version: 1,
            desired: Desired::Running,
            durable: true,
            workloads: Default::default(),
            volumes: [(name("data"), volume)].into(),
            networks: Default::default(),
            pools: Default::default(),
            ingress: Default::default(),
            conditions: Vec::new(),
        };
        let samples = parse(&render(std::slice::from_ref(&status)));
        let value = |name: &str| samples.iter().find(|(of, ..)| of == name).map(|s| s.2);
        assert_eq!(value("sifr_volume_size_bytes"), Some(67_108_864.0));
        assert_eq!(value("sifr_volume_used_bytes"), None);
        assert_eq!(value("sifr_volume_attached"), Some(1.0));
        assert_eq!(value("sifr_volume_ready"), Some(0.0));
        status.volumes.clear();
        assert_eq!(render(&[status]), "");
    }
}
