//! The health of disks: what each says of itself, and what that comes to.
//!
//! Owns: in which language a disk is asked, the order of the questions, and the verdict with its limits.
//! Refuses: to change anything of a disk, to ask what is on one (a mirror, an encrypted device) instead of what is beneath,
//! and to take silence for health.
//!
//! What a disk answers is its own word: the parsers ([`nvme`], [`ata`], [`scsi`]) take any bytes, and repeat numbers alone.

pub mod ata;
pub mod nvme;
pub mod scsi;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use types::health::{Figures, Health, Source, Verdict};

use crate::disk::{Disk, passes};

/// Longest wait for the answer to one command. A disk that wakes up takes ten seconds; one that takes longer is reset by
/// the kernel, which is worse for what runs than not to know.
pub const COMMAND_WAIT: Duration = Duration::from_secs(20);
/// Beyond this the rated life of flash is over. It goes on for a while, with nobody's promise.
const USED_MAX_PERCENT: u8 = 99;
/// Sectors that others stand in for: a few are from the factory floor, or of one knock.
const REALLOCATED_MAX: u64 = 10;
/// Losses of data that a disk may have had in its life: a power cut or a bad cable may cost some.
const MEDIA_ERRORS_MAX: u64 = 10;
/// Sectors that cannot be read now: what lay there is lost already, or half of a mirror.
const PENDING_MAX: u64 = 0;
/// Reasons that are kept, the worst: a disk may list hundreds, and a person reads the first.
const REASONS_MAX: usize = 8;
/// What a disk can be and still answer; outside of it the number means something else.
const CELSIUS: std::ops::RangeInclusive<i64> = -60..=200;
/// `O_NONBLOCK`: to open a disk must not wait for its medium.
const NO_WAIT: i32 = 0o4000;

/// What a page gives beside figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sign {
    Failing(String),
    Worn(String),
    Hot(String),
    /// It counts for nothing.
    Note(String),
}

/// All that a disk has said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    pub figures: Figures,
    pub signs: Vec<Sign>,
    /// It has given a verdict of its own, good or bad: without one, no bad sign is not a good one.
    pub judged: bool,
}

/// How a disk can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Ask(Source),
    /// And why not.
    Nobody(&'static str),
}

/// By its name, what it calls its maker, and its way through the buses.
pub fn way(sys: &Path, name: &str) -> Way {
    let at = sys.join("block").join(name);
    if name.starts_with("nvme") {
        return Way::Ask(Source::Nvme);
    }
    if !name.starts_with("sd") {
        return Way::Nobody("disks of this kind say nothing of their health");
    }
    if passes(&at, &["usb"]) {
        // Many adapters hang at commands that they do not know.
        return Way::Nobody("it is on USB, where it is not asked");
    }
    let vendor = fs::read_to_string(at.join("device/vendor")).unwrap_or_default();
    // SAT-4: who translates says so of every ATA disk.
    match vendor.trim() {
        "ATA" => Way::Ask(Source::Ata),
        _ => Way::Ask(Source::Scsi),
    }
}

/// Asks a disk, which takes at most a few times [`COMMAND_WAIT`], unless the kernel itself hangs on it.
pub fn read(disk: &Disk, way: Way) -> Health {
    let source = match way {
        Way::Ask(source) => source,
        Way::Nobody(why) => return not_offered(None, why.to_owned()),
    };
    let mut options = File::options();
    let opened = options.read(true).custom_flags(NO_WAIT).open(disk.device());
    let said = opened.and_then(|file| match source {
        Source::Nvme => nvme::ask(&file),
        Source::Ata => ata::ask(&file),
        Source::Scsi => scsi::ask(&file),
    });
    match said {
        Ok(said) => judge(source, said),
        Err(error) if is_no_answer(&error) => silent(
            Some(source),
            format!("it was asked for its health and did not answer: {error}"),
        ),
        Err(error) => not_offered(
            Some(source),
            format!("it cannot be asked for its health: {error}"),
        ),
    }
}

/// A disk that has not answered.
pub fn silent(source: Option<Source>, why: String) -> Health {
    without(Verdict::Silent, source, why)
}

fn not_offered(source: Option<Source>, why: String) -> Health {
    without(Verdict::NotOffered, source, why)
}

fn without(verdict: Verdict, source: Option<Source>, why: String) -> Health {
    Health {
        verdict,
        hot: false,
        source,
        reasons: vec![why],
        figures: Figures::default(),
    }
}

/// Whether the disk is at fault, not the question.
fn is_no_answer(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, Unsupported};
    /// `ENOTTY`: no such ioctl.
    const NO_IOCTL: i32 = 25;
    let kinds = [InvalidInput, NotFound, PermissionDenied, Unsupported];
    !kinds.contains(&error.kind()) && error.raw_os_error() != Some(NO_IOCTL)
}

/// The verdict: what the disk says itself, and where its figures are beyond a limit.
pub fn judge(source: Source, said: Said) -> Health {
    let Said {
        figures,
        mut signs,
        judged,
    } = said;
    signs.extend(beyond_limits(&figures));
    let any = |is: fn(&Sign) -> bool| signs.iter().any(is);
    let verdict = match (
        any(|sign| matches!(sign, Sign::Failing(_))),
        any(|sign| matches!(sign, Sign::Worn(_))),
        judged,
    ) {
        (true, ..) => Verdict::Failing,
        (false, true, _) => Verdict::Worn,
        (false, false, true) => Verdict::Passed,
        (false, false, false) => Verdict::NotOffered,
    };
    let hot = any(|sign| matches!(sign, Sign::Hot(_)));
    // The worst first.
    signs.sort_by_key(|sign| match sign {
        Sign::Failing(_) => 0,
        Sign::Worn(_) => 1,
        Sign::Hot(_) => 2,
        Sign::Note(_) => 3,
    });
    let why = signs.into_iter().map(|sign| match sign {
        Sign::Failing(why) | Sign::Worn(why) | Sign::Hot(why) | Sign::Note(why) => why,
    });
    Health {
        verdict,
        hot,
        source: Some(source),
        reasons: why.take(REASONS_MAX).collect(),
        figures,
    }
}

fn beyond_limits(figures: &Figures) -> Vec<Sign> {
    let mut signs = Vec::new();
    if let (Some(spare), Some(min)) = (figures.spare_percent, figures.spare_min_percent)
        && spare < min
    {
        signs.push(Sign::Failing(format!(
            "{spare} % of its spare blocks are left, less than its own limit of {min} %"
        )));
    }
    if let Some(used) = figures.used_percent.filter(|used| *used > USED_MAX_PERCENT) {
        signs.push(Sign::Worn(format!("{used} % of its rated life is used")));
    }
    let counts = [
        (
            figures.media_errors,
            MEDIA_ERRORS_MAX,
            "times it has lost data",
        ),
        (
            figures.reallocated_sectors,
            REALLOCATED_MAX,
            "of its sectors were bad and are replaced",
        ),
        (
            figures.pending_sectors,
            PENDING_MAX,
            "of its sectors cannot be read",
        ),
    ];
    for (count, max, what) in counts {
        if let Some(count) = count.filter(|count| *count > max) {
            signs.push(Sign::Worn(format!("{count} {what}")));
        }
    }
    signs
}

/// A temperature that a disk can have.
fn celsius(degrees: i64) -> Option<i16> {
    i16::try_from(degrees)
        .ok()
        .filter(|_| CELSIUS.contains(&degrees))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Said {
        Said {
            judged: true,
            ..Said::default()
        }
    }

    #[test]
    fn a_disk_is_asked_by_what_it_is_and_never_over_usb() {
        let sys = tempfile::tempdir().expect("a directory");
        let add = |name: &str, way: &str, vendor: &str| {
            let at = sys.path().join("devices").join(way).join(name);
            fs::create_dir_all(at.join("device")).expect("a directory");
            fs::write(at.join("device/vendor"), vendor).expect("a file");
            fs::create_dir_all(sys.path().join("block")).expect("a directory");
            let link = sys.path().join("block").join(name);
            std::os::unix::fs::symlink(&at, link).expect("a link");
        };
        add("sda", "pci/ata1", "ATA     \n");
        add("sdb", "pci/host3", "SEAGATE \n");
        add("sdc", "pci/usb1/1-1", "ATA     \n");
        let way = |name| super::way(sys.path(), name);
        assert_eq!(way("sda"), Way::Ask(Source::Ata));
        assert_eq!(way("sdb"), Way::Ask(Source::Scsi));
        assert!(matches!(way("sdc"), Way::Nobody(why) if why.contains("USB")));
        assert!(matches!(way("vda"), Way::Nobody(_)));
        assert_eq!(way("nvme0n1"), Way::Ask(Source::Nvme));
    }

    #[test]
    fn no_bad_sign_is_a_good_one_only_from_who_judges_itself() {
        let judge = |said| judge(Source::Scsi, said);
        assert_eq!(judge(well()).verdict, Verdict::Passed);
        assert_eq!(judge(Said::default()).verdict, Verdict::NotOffered);
        let sign = |sign| Said {
            signs: vec![sign],
            ..Said::default()
        };
        let failing = judge(sign(Sign::Failing("so".to_owned())));
        assert_eq!(failing.verdict, Verdict::Failing);
        let hot = judge(Said {
            judged: true,
            ..sign(Sign::Hot("warm".to_owned()))
        });
        assert_eq!((hot.verdict, hot.hot), (Verdict::Passed, true));
        assert_eq!(hot.reasons, ["warm"]);
    }

    #[test]
    fn figures_at_their_limits_are_borne_and_beyond_them_said() {
        let verdict = |change: fn(&mut Figures)| {
            let mut said = well();
            change(&mut said.figures);
            let health = judge(Source::Nvme, said);
            assert_eq!(
                health.reasons.is_empty(),
                health.verdict == Verdict::Passed,
                "{health:?}"
            );
            health.verdict
        };
        use Verdict::{Failing, Passed, Worn};
        assert_eq!(verdict(|f| f.used_percent = Some(99)), Passed);
        assert_eq!(verdict(|f| f.used_percent = Some(100)), Worn);
        assert_eq!(verdict(|f| f.reallocated_sectors = Some(10)), Passed);
        assert_eq!(verdict(|f| f.reallocated_sectors = Some(11)), Worn);
        assert_eq!(verdict(|f| f.media_errors = Some(11)), Worn);
        assert_eq!(verdict(|f| f.pending_sectors = Some(0)), Passed);
        assert_eq!(verdict(|f| f.pending_sectors = Some(1)), Worn);
        let spare = |f: &mut Figures, left| {
            (f.spare_percent, f.spare_min_percent) = (Some(left), Some(10));
        };
        let mut said = well();
        spare(&mut said.figures, 10);
        assert_eq!(judge(Source::Nvme, said.clone()).verdict, Passed);
        spare(&mut said.figures, 9);
        assert_eq!(judge(Source::Nvme, said).verdict, Failing);
    }

    #[test]
    fn a_disk_that_cannot_be_asked_and_one_that_does_not_answer_are_two_things() {
        let of = |error: io::Error| is_no_answer(&error);
        assert!(of(io::ErrorKind::TimedOut.into()));
        for (errno, silent) in [(4, true), (5, true), (6, true), (25, false), (22, false)] {
            assert_eq!(of(io::Error::from_raw_os_error(errno)), silent, "{errno}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        let disk = Disk {
            size_bytes: 0,
            ..crate::disk::any(&file.path().display().to_string(), "")
        };
        for source in [Source::Nvme, Source::Ata, Source::Scsi] {
            let health = read(&disk, Way::Ask(source));
            assert_eq!(health.verdict, Verdict::NotOffered, "{health:?}");
        }
    }
}
