//! A real-time clock as in every PC (MC146818): the host's time, UTC, for kernels that know no other clock.
//!
//! Owns: registers of the time, in BCD and 24 hours. Refuses: to be set, alarms and interrupts. What a guest
//! writes to a register is lost; the next read says what the host says.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Which register the other port is, in the low seven bits; the highest masks NMIs, of which there are none.
pub(crate) const INDEX: u16 = 0x70;
pub(crate) const DATA: u16 = 0x71;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_D: u8 = 0x0d;
/// Where PCs keep the century.
const CENTURY: u8 = 0x32;

/// A 32768 Hz crystal, and the rate that PCs begin with.
const A_DIVIDER: u8 = 0x26;
/// The time changes within 244 microseconds.
const A_UPDATE: u8 = 0x80;
const UPDATE_MICROS: u32 = 244;
/// 24 hours, BCD.
const B_24_HOURS: u8 = 0x02;
/// Time and memory are valid.
const D_VALID: u8 = 0x80;

const DAY_SECONDS: u64 = 86_400;

#[derive(Debug, Default)]
pub(crate) struct Rtc {
    index: u8,
}

impl Rtc {
    pub(crate) fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// The register that the guest has selected: all that is not the host's.
    pub(crate) fn selected(&self) -> u8 {
        self.index
    }

    pub(crate) fn read(&self) -> u8 {
        // Before 1970 there were no nodes.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        register(self.index, now.unwrap_or_default())
    }
}

/// A register at a time since 1970.
fn register(index: u8, now: Duration) -> u8 {
    let (days, second) = (now.as_secs() / DAY_SECONDS, now.as_secs() % DAY_SECONDS);
    let (year, month, day) = date(days);
    match index {
        SECONDS => bcd(second % 60),
        MINUTES => bcd(second / 60 % 60),
        HOURS => bcd(second / 3600),
        // 1 is Sunday; 1970 began on a Thursday.
        WEEKDAY => bcd((days + 4) % 7 + 1),
        DAY => bcd(day),
        MONTH => bcd(month),
        YEAR => bcd(year % 100),
        CENTURY => bcd(year / 100 % 100),
        REGISTER_A if now.subsec_micros() >= 1_000_000 - UPDATE_MICROS => A_DIVIDER | A_UPDATE,
        REGISTER_A => A_DIVIDER,
        REGISTER_B => B_24_HOURS,
        REGISTER_D => D_VALID,
        _ => 0,
    }
}

/// Two decimal digits. `number` is below 100.
fn bcd(number: u64) -> u8 {
    u8::try_from(((number / 10) << 4) | (number % 10)).unwrap_or(0)
}

/// Year, month and day of the Gregorian calendar, by whole cycles of 400 years that begin in March (so that a
/// leap day is the last of its year).
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    /// From 1 March of the year 0 to 1970.
    const BEFORE_1970: u64 = 719_468;
    let days = days_since_1970 + BEFORE_1970;
    let (cycle, day) = (days / CYCLE, days % CYCLE);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 153 days in five.
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (cycle * 400 + year + next, month, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_say_the_date_and_time() {
        // 2026-11-21 10:37:42 was a Saturday; 2000-02-29 23:59:59 a Tuesday.
        for (seconds, expected) in [
            (1_795_257_462, [0x20, 0x26, 0x11, 0x21, 7, 0x10, 0x37, 0x42]),
            (951_868_799, [0x20, 0x00, 0x02, 0x29, 3, 0x23, 0x59, 0x59]),
            (0, [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]),
        ] {
            let read = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS]
                .map(|index| register(index, Duration::from_secs(seconds)));
            assert_eq!(read, expected, "{seconds}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let leap =
            |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..800 * 365 {
            assert_eq!(date(days), (year, month, day));
            let long = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (day, month) = if day == long {
                (1, month + 1)
            } else {
                (day + 1, month)
            };
            (month, year) = if month == 13 {
                (1, year + 1)
            } else {
                (month, year)
            };
        }
    }

    #[test]
    fn an_update_is_announced_before_the_second_changes() {
        let at = |micros| register(REGISTER_A, Duration::from_micros(micros));
        assert_eq!(
            [at(5_000_000), at(5_999_755), at(5_999_756), at(5_999_999)],
            [0x26, 0x26, 0xa6, 0xa6]
        );
    }

    #[test]
    fn the_highest_bit_of_the_index_is_no_part_of_it() {
        let mut rtc = Rtc::default();
        rtc.select(0x80 | REGISTER_B);
        assert_eq!(rtc.read(), B_24_HOURS);
        assert_eq!(rtc.selected(), REGISTER_B);
    }

    #[test]
    fn no_register_at_any_time_panics() {
        for index in 0..=u8::MAX {
            for now in [
                Duration::ZERO,
                Duration::MAX / 1_000_000,
                Duration::from_secs(1 << 40),
            ] {
                register(index, now);
            }
        }
    }
}
