//! How fast a machine may use its disks and its network card.
//!
//! Owns: the fields a tenant writes, their range, and the token buckets that they become.
//! Refuses: units to be guessed: each field's name ends with its own. What is absent is not limited.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Bytes;
use crate::vm::{Limit, NetLimit, Rate};

/// Operations or packets a second: fewer, and a guest would need minutes to boot; more, and nothing would be limited.
const OPERATIONS: RangeInclusive<u64> = 10..=10_000_000;
/// Bytes a second, for the same two reasons.
const BYTES: RangeInclusive<Bytes> = Bytes(64 << 10)..=Bytes::gib(1024);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Each of its disks, image and writable layer: reads and writes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskRates>,
    /// What it sends: packets wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<NetRates>,
    /// What it receives: packets wait, and are dropped where too many do, as on any line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<NetRates>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRates {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetRates {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<u64>,
    /// With Ethernet headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Bytes>,
}

/// A field that is out of range: its name, what was found, what is allowed.
pub(crate) type Misfit = (&'static str, String, String);

impl DiskRates {
    /// Of a volume, whose `limits` these are.
    pub(crate) fn check_volume(&self) -> Result<(), Misfit> {
        let names = [
            "limits",
            "limits.operations_per_second",
            "limits.bytes_per_second",
        ];
        check(names, self.operations_per_second, self.bytes_per_second)
    }

    pub fn limit(&self) -> Limit {
        limit(self.operations_per_second, self.bytes_per_second)
    }
}

impl Limits {
    pub(crate) fn check(&self) -> Result<(), Misfit> {
        let Self {
            disk,
            send,
            receive,
        } = self;
        if let Some(rates) = disk {
            let names = [
                "limits.disk",
                "limits.disk.operations_per_second",
                "limits.disk.bytes_per_second",
            ];
            check(names, rates.operations_per_second, rates.bytes_per_second)?;
        }
        if let Some(rates) = send {
            let names = [
                "limits.send",
                "limits.send.packets_per_second",
                "limits.send.bytes_per_second",
            ];
            check(names, rates.packets_per_second, rates.bytes_per_second)?;
        }
        if let Some(rates) = receive {
            let names = [
                "limits.receive",
                "limits.receive.packets_per_second",
                "limits.receive.bytes_per_second",
            ];
            check(names, rates.packets_per_second, rates.bytes_per_second)?;
        }
        Ok(())
    }

    /// The limit of each disk.
    pub fn of_disk(&self) -> Option<Limit> {
        self.disk.map(|rates| rates.limit())
    }

    /// The limit of the card.
    pub fn of_net(&self) -> Option<NetLimit> {
        let of = |rates: NetRates| limit(rates.packets_per_second, rates.bytes_per_second);
        let (tx, rx) = (self.send.map(of), self.receive.map(of));
        (tx.is_some() || rx.is_some()).then_some(NetLimit { tx, rx })
    }
}

/// `names`: of the whole, of operations, of bytes.
fn check(
    names: [&'static str; 3],
    operations: Option<u64>,
    bytes: Option<Bytes>,
) -> Result<(), Misfit> {
    let [all, of_operations, of_bytes] = names;
    match (operations, bytes) {
        (None, None) => Err((all, "empty".to_owned(), "a rate, or no field".to_owned())),
        (Some(found), _) if !OPERATIONS.contains(&found) => {
            let allowed = format!("{} to {}", OPERATIONS.start(), OPERATIONS.end());
            Err((of_operations, found.to_string(), allowed))
        }
        (_, Some(found)) if !BYTES.contains(&found) => {
            let allowed = format!("{} to {}", BYTES.start(), BYTES.end());
            Err((of_bytes, found.to_string(), allowed))
        }
        (Some(_), _) | (None, Some(_)) => Ok(()),
    }
}

/// At once may go what a second allows.
fn limit(operations: Option<u64>, bytes: Option<Bytes>) -> Limit {
    let rate = |per_second: u64| {
        let per_second = NonZeroU64::new(per_second)?;
        Some(Rate {
            per_second,
            burst: per_second,
        })
    };
    Limit {
        operations: operations.and_then(rate),
        bytes: bytes.and_then(|Bytes(bytes)| rate(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Limits {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn a_rate_becomes_a_bucket_that_holds_a_second() {
        let limits = limits(
            r#"{"disk":{"operations_per_second":500},"send":{"bytes_per_second":"1Mi","packets_per_second":10}}"#,
        );
        limits.check().expect("in range");
        let rate = |n: u64| {
            let n = NonZeroU64::new(n).expect("not zero");
            Some(Rate {
                per_second: n,
                burst: n,
            })
        };
        let disk = limits.of_disk().expect("limited");
        assert_eq!((disk.operations, disk.bytes), (rate(500), None));
        let net = limits.of_net().expect("limited");
        let sent = net.tx.expect("limited");
        assert_eq!((sent.operations, sent.bytes), (rate(10), rate(1 << 20)));
        assert_eq!(net.rx, None);
    }

    #[test]
    fn what_is_absent_is_not_limited() {
        let none = Limits::default();
        none.check().expect("fine");
        assert_eq!((none.of_disk(), none.of_net()), (None, None));
    }

    #[test]
    fn a_rate_without_a_number_or_out_of_range_is_named() {
        for (json, field) in [
            (r#"{"disk":{}}"#, "limits.disk"),
            (r#"{"receive":{}}"#, "limits.receive"),
            (
                r#"{"disk":{"operations_per_second":9}}"#,
                "limits.disk.operations_per_second",
            ),
            (
                r#"{"disk":{"operations_per_second":10,"bytes_per_second":"1Ki"}}"#,
                "limits.disk.bytes_per_second",
            ),
            (
                r#"{"send":{"bytes_per_second":"2048Gi"}}"#,
                "limits.send.bytes_per_second",
            ),
            (
                r#"{"receive":{"packets_per_second":0}}"#,
                "limits.receive.packets_per_second",
            ),
        ] {
            let (found, ..) = limits(json).check().expect_err(json);
            assert_eq!(found, field);
        }
        assert!(serde_json::from_str::<Limits>(r#"{"disk":{"bytes_per_second":5}}"#).is_err());
        assert!(serde_json::from_str::<Limits>(r#"{"disk":{"iops":5}}"#).is_err());
    }
}
