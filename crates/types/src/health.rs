//! What disks say of their own health.
//!
//! Owns: the words and figures, and where each stands in the specifications. Refuses: reading and judging them
//! (`storage::smart` does).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A disk, as it last answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHealth {
    /// Kernel name.
    pub disk: String,
    /// What the disk says of itself; empty where it says nothing.
    pub serial: String,
    /// The same.
    pub model: String,
    pub health: Health,
    /// When it answered, or did not, since the kernel's start.
    pub uptime_ms: u64,
}

/// What a disk says, and what that comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    pub verdict: Verdict,
    /// It says that it is too hot; the verdict does not count that.
    #[serde(default)]
    pub hot: bool,
    /// Who was asked; `None`: nobody answers.
    pub source: Option<Source>,
    /// Why the verdict is not [`Verdict::Passed`], and what else a person should know.
    pub reasons: Vec<String>,
    #[serde(default)]
    pub figures: Figures,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It says that it is well.
    Passed,
    /// Its rated life is over, or it loses sectors.
    Worn,
    /// It says that it fails, or is about to.
    Failing,
    /// It has no way to say: that is not the same as being well.
    NotOffered,
    /// It was asked and has not answered.
    Silent,
    /// Of a newer build than this one.
    #[serde(other)]
    Unknown,
}

impl Verdict {
    /// All but [`Verdict::Unknown`].
    pub const ALL: [Self; 5] = [
        Self::Passed,
        Self::Worn,
        Self::Failing,
        Self::NotOffered,
        Self::Silent,
    ];

    /// As programs read it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Worn => "worn",
            Self::Failing => "failing",
            Self::NotOffered => "not_offered",
            Self::Silent => "silent",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    /// For people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed | Self::Worn | Self::Failing | Self::Silent | Self::Unknown => self.word(),
            Self::NotOffered => "not offered",
        })
    }
}

/// In what language a disk was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Log page 02h (NVM Express base specification, "SMART / Health Information").
    Nvme,
    /// SMART of ATA/ATAPI Command Set 4, and its device statistics (log 04h).
    Ata,
    /// Log pages of SCSI (SPC-5, SBC-4).
    Scsi,
}

/// Each as the disk counts it; `None` where it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// NVMe: bytes 2:1, in kelvin there. ATA: attribute 194, else 190. SCSI: page 0Dh, parameter 0000h.
    pub temperature_celsius: Option<i16>,
    /// Of the blocks that stand in for bad ones, what is left, of a hundred. NVMe: byte 3.
    pub spare_percent: Option<u8>,
    /// Below which the disk calls it too little. NVMe: byte 4.
    pub spare_min_percent: Option<u8>,
    /// Of the rated life; may be beyond a hundred. NVMe: byte 5. ATA: device statistics, page 7. SCSI: page 11h,
    /// parameter 0001h.
    pub used_percent: Option<u8>,
    /// Reads and writes whose data was lost. NVMe: bytes 175:160. ATA: attribute 187. SCSI: pages 02h, 03h and 05h,
    /// parameter 0006h.
    pub media_errors: Option<u64>,
    /// NVMe: bytes 143:128. ATA: attribute 9. SCSI: page 15h, parameter 0000h, in minutes there.
    pub power_on_hours: Option<u64>,
    /// NVMe: bytes 159:144. ATA: attribute 192, which some count otherwise.
    pub unsafe_shutdowns: Option<u64>,
    /// Sectors that others stand in for. ATA: attribute 5.
    pub reallocated_sectors: Option<u64>,
    /// Sectors that could not be read, and wait to be written. ATA: attribute 197.
    pub pending_sectors: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_has_one_word_and_a_newer_one_is_unknown() {
        for verdict in Verdict::ALL {
            let json = serde_json::to_string(&verdict).expect("JSON");
            assert_eq!(json, format!("\"{}\"", verdict.word()));
        }
        let newer: Verdict = serde_json::from_str("\"glowing\"").expect("read");
        assert_eq!(newer, Verdict::Unknown);
        assert_eq!(Verdict::NotOffered.to_string(), "not offered");
    }

    #[test]
    fn health_of_a_node_with_fewer_figures_is_read() {
        let json =
            r#"{"verdict":"worn","source":"ata","reasons":["old"],"figures":{"media_errors":3}}"#;
        let health: Health = serde_json::from_str(json).expect("read");
        assert_eq!(health.figures.media_errors, Some(3));
        assert_eq!(health.figures.used_percent, None);
        assert!(!health.hot);
    }
}
