//! The health log of an NVMe controller: page 02h, "SMART / Health Information" (NVM Express base specification, 5.16.1.3).
//!
//! Owns: its layout. Refuses: to show its verdict on a namespace alone: the log is the controller's.

use std::fs::File;
use std::io;

use sys::nvme::{Reply, log_page};
use types::health::Figures;

use super::{COMMAND_WAIT, Said, Sign, celsius};

const PAGE: u8 = 0x02;
pub const PAGE_BYTES: usize = 512;
/// Zero of the scale of Celsius, in whole kelvin.
const ICE: i64 = 273;

pub(super) fn ask(disk: &File) -> io::Result<Said> {
    let mut page = [0; PAGE_BYTES];
    match log_page(disk, PAGE, &mut page, COMMAND_WAIT)? {
        Reply::Given => Ok(parse(&page)),
        Reply::Refused(status) => Ok(Said {
            signs: vec![Sign::Note(format!(
                "it refuses to tell of its health, with status {status:#x}"
            ))],
            ..Said::default()
        }),
    }
}

pub fn parse(page: &[u8; PAGE_BYTES]) -> Said {
    // Counters have sixteen bytes; what is beyond eight is no count of anything.
    let counter = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&page[at..at + 16]);
        u64::try_from(u128::from_le_bytes(bytes)).unwrap_or(u64::MAX)
    };
    let kelvin = i64::from(u16::from_le_bytes([page[1], page[2]]));
    // Thresholds beyond a hundred are reserved.
    let percent = |byte: u8| Some(byte).filter(|percent| *percent <= 100);
    let figures = Figures {
        temperature_celsius: celsius(kelvin - ICE),
        spare_percent: percent(page[3]),
        spare_min_percent: percent(page[4]),
        used_percent: Some(page[5]),
        power_on_hours: Some(counter(128)),
        unsafe_shutdowns: Some(counter(144)),
        media_errors: Some(counter(160)),
        ..Figures::default()
    };
    Said {
        figures,
        signs: signs(page[0]),
        judged: true,
    }
}

/// The bits of "Critical Warning".
fn signs(warning: u8) -> Vec<Sign> {
    let said = |text: &str| text.to_owned();
    let bits = [
        Sign::Failing(said("it warns that its spare blocks run out")),
        Sign::Hot(said("it warns of its temperature")),
        Sign::Failing(said("it warns that it is not reliable any more")),
        Sign::Failing(said("it warns that it has become read-only")),
        Sign::Failing(said(
            "it warns that its memory does not outlive a power cut any more",
        )),
        // Nobody here uses it.
        Sign::Note(said("it warns of its persistent memory region")),
    ];
    let bits = bits.into_iter().enumerate();
    let set = bits.filter(|(bit, _)| warning & 1 << bit != 0);
    set.map(|(_, sign)| sign).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::health::{Source, Verdict};

    use super::super::judge;
    use super::*;

    fn page() -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[1..3].copy_from_slice(&311u16.to_le_bytes());
        (page[3], page[4], page[5]) = (100, 10, 3);
        page[128] = 200;
        page[129] = 1;
        page[144] = 7;
        page
    }

    #[test]
    fn the_page_is_read_as_the_specification_lays_it_out() {
        let health = judge(Source::Nvme, parse(&page()));
        assert_eq!(health.verdict, Verdict::Passed, "{health:?}");
        let f = health.figures;
        assert_eq!((f.temperature_celsius, f.used_percent), (Some(38), Some(3)));
        assert_eq!((f.power_on_hours, f.unsafe_shutdowns), (Some(456), Some(7)));
        assert_eq!((f.media_errors, f.reallocated_sectors), (Some(0), None));
    }

    #[test]
    fn each_critical_warning_is_said_and_heat_alone_is_no_failure() {
        for (bit, verdict) in [
            (0, Verdict::Failing),
            (1, Verdict::Passed),
            (2, Verdict::Failing),
            (3, Verdict::Failing),
            (4, Verdict::Failing),
            (5, Verdict::Passed),
        ] {
            let mut page = page();
            page[0] = 1 << bit;
            let health = judge(Source::Nvme, parse(&page));
            assert_eq!((health.verdict, health.hot), (verdict, bit == 1), "{bit}");
            assert_eq!(health.reasons.len(), 1);
        }
    }

    proptest! {
        #[test]
        fn any_page_has_a_verdict_and_every_bad_one_a_reason(bytes in prop::collection::vec(any::<u8>(), PAGE_BYTES)) {
            let page: [u8; PAGE_BYTES] = bytes.try_into().expect("so many");
            let health = judge(Source::Nvme, parse(&page));
            prop_assert!(health.verdict == Verdict::Passed || !health.reasons.is_empty());
            prop_assert!(health.reasons.len() < 12);
            prop_assert!(health.figures.spare_percent.is_none_or(|spare| spare <= 100));
        }
    }
}
