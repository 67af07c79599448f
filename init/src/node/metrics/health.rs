//! What disks say of their health, in numbers.
//!
//! Owns: their families. Refuses: asking a disk, and a number for what a disk does not say.

use types::health::{DiskHealth, Figures, Verdict};

use super::super::exposition::{Family, Type, Value, text};

/// An hour, in seconds: Prometheus has no hours.
const HOUR: u64 = 3600;

/// Name, type, help, and where the number stands.
type Row = (
    &'static str,
    Type,
    &'static str,
    fn(&Figures) -> Option<Value>,
);

const ROWS: [Row; 9] = [
    (
        "sifr_disk_temperature_celsius",
        Type::Gauge,
        "As the disk measures it.",
        |f| Some(Value::Signed(i64::from(f.temperature_celsius?))),
    ),
    (
        "sifr_disk_spare_percent",
        Type::Gauge,
        "Of the blocks that stand in for bad ones, what is left.",
        |f| Some(Value::Count(u64::from(f.spare_percent?))),
    ),
    (
        "sifr_disk_spare_min_percent",
        Type::Gauge,
        "Below which the disk calls it too little.",
        |f| Some(Value::Count(u64::from(f.spare_min_percent?))),
    ),
    (
        "sifr_disk_used_percent",
        Type::Gauge,
        "Of its rated life; it may be beyond a hundred.",
        |f| Some(Value::Count(u64::from(f.used_percent?))),
    ),
    (
        "sifr_disk_media_errors_total",
        Type::Counter,
        "Reads and writes of its life whose data was lost.",
        |f| f.media_errors.map(Value::Count),
    ),
    (
        "sifr_disk_power_on_seconds_total",
        Type::Counter,
        "Time of its life that it had power, in whole hours.",
        |f| Some(Value::Count(f.power_on_hours?.saturating_mul(HOUR))),
    ),
    (
        "sifr_disk_unsafe_shutdowns_total",
        Type::Counter,
        "How often it lost its power without a word.",
        |f| f.unsafe_shutdowns.map(Value::Count),
    ),
    (
        "sifr_disk_reallocated_sectors",
        Type::Gauge,
        "Sectors that others stand in for.",
        |f| f.reallocated_sectors.map(Value::Count),
    ),
    (
        "sifr_disk_pending_sectors",
        Type::Gauge,
        "Sectors that cannot be read.",
        |f| f.pending_sectors.map(Value::Count),
    ),
];

/// The text, empty where no disk is known.
pub(crate) fn render(disks: &[DiskHealth]) -> String {
    let mut verdicts = Family::new(
        "sifr_disk_health",
        Type::Gauge,
        "1 at the verdict that the disk has, 0 at the others.",
    );
    let mut hot = Family::new(
        "sifr_disk_hot",
        Type::Gauge,
        "1: it warns of its temperature.",
    );
    let mut families = ROWS.map(|(name, kind, help, _)| Family::new(name, kind, help));
    for disk in disks {
        let labels = [
            ("disk", disk.disk.as_str()),
            ("serial", disk.serial.as_str()),
        ];
        let health = &disk.health;
        for verdict in Verdict::ALL {
            let labels = [labels[0], labels[1], ("verdict", verdict.word())];
            let is = u64::from(health.verdict == verdict);
            verdicts.sample(&labels, Value::Count(is));
        }
        // Who says nothing is not cool.
        if !matches!(health.verdict, Verdict::NotOffered | Verdict::Silent) {
            hot.sample(&labels, Value::Count(u64::from(health.hot)));
        }
        for (family, (.., value)) in families.iter_mut().zip(ROWS) {
            if let Some(value) = value(&health.figures) {
                family.sample(&labels, value);
            }
        }
    }
    let first = [verdicts, hot];
    let all: Vec<Family> = first.into_iter().chain(families).collect();
    text(&all)
}

#[cfg(test)]
mod tests {
    use types::health::{Health, Source};

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn each_disk_has_one_verdict_and_no_number_that_it_does_not_say() {
        let disk = |name: &str, verdict, figures| DiskHealth {
            disk: name.to_owned(),
            serial: format!("S-{name}"),
            model: String::new(),
            health: Health {
                verdict,
                hot: false,
                source: Some(Source::Nvme),
                reasons: Vec::new(),
                figures,
            },
            uptime_ms: 1,
        };
        let figures = Figures {
            temperature_celsius: Some(41),
            power_on_hours: Some(2),
            ..Figures::default()
        };
        let samples = parse(&render(&[
            disk("nvme0n1", Verdict::Failing, figures),
            disk("vda", Verdict::NotOffered, Figures::default()),
        ]));
        let of = |name: &str, disk: &str, verdict: Option<&str>| {
            let found = samples.iter().find(|(n, labels, _)| {
                n == name
                    && labels["disk"] == disk
                    && labels.get("verdict").map(String::as_str) == verdict
            });
            found.map(|(.., value)| *value)
        };
        let verdict = |disk, word| of("sifr_disk_health", disk, Some(word));
        assert_eq!(verdict("nvme0n1", "failing"), Some(1.0));
        assert_eq!(verdict("nvme0n1", "passed"), Some(0.0));
        assert_eq!(verdict("vda", "not_offered"), Some(1.0));
        let hot = |disk| of("sifr_disk_hot", disk, None);
        assert_eq!((hot("nvme0n1"), hot("vda")), (Some(0.0), None));
        let name = "sifr_disk_power_on_seconds_total";
        assert_eq!(of(name, "nvme0n1", None), Some(7200.0));
        assert_eq!(of(name, "vda", None), None);
        assert!(render(&[]).is_empty());
        let cold = Figures {
            temperature_celsius: Some(-5),
            ..Figures::default()
        };
        let cold = render(&[disk("sda", Verdict::Passed, cold)]);
        assert!(
            cold.contains("celsius{disk=\"sda\",serial=\"S-sda\"} -5\n"),
            "{cold}"
        );
    }
}
