//! The health of the node's disks, as they say themselves: asked at the boot and ever after.
//!
//! Owns: when each disk is asked, that one which hangs holds up nobody, the troubles of disks, and which pools lie on a disk
//! that fails. Refuses: judging a disk (`storage::smart` does), and moving what lies on one.
//!
//! Each question is asked by a thread of its own: the kernel may hold it for minutes while it resets a disk. A disk has one
//! question at a time, so that one which never answers costs one thread.
//!
//! | a disk is | until |
//! |---|---|
//! | due | it is asked |
//! | asked | it answers, then it rests for a while by its language |
//! | overdue, and said to be silent | it answers after all |

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use storage::disk::Disk;
use storage::smart;
use tokio::sync::{mpsc, watch};
use types::health::{DiskHealth, Health, Source, Verdict};
use types::node::{HalfState, NodeInfo, Pool};
use types::trouble::Code;

use super::troubles;

const SYS: &str = "/sys";
/// Between two looks at which disks there are: a disk that was put in is asked this soon.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Between two questions to an NVMe disk: it answers from its memory, beside its work.
const NVME_EVERY: Duration = Duration::from_secs(30);
/// The same of others: some stop their work for a moment to answer.
const OTHERS_EVERY: Duration = Duration::from_secs(600);
/// Longest wait for all that a disk has to say, before it is called silent. Its kernel driver gives up on one command after
/// twenty seconds ([`smart::COMMAND_WAIT`]) and resets the disk.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Disks that are asked at a time: their threads take memory, and a controller with many disks has one line to them.
const AT_ONCE: usize = 16;
/// Disks that a trouble names; `sifr disk health` has all.
const NAMED_MAX: usize = 4;

/// Kernel name and serial: another disk may come under the same name.
type Which = (String, String);

/// Asks for ever.
pub(crate) async fn watch(info: watch::Sender<NodeInfo>) {
    let (answers, mut answered) = mpsc::unbounded_channel();
    let mut ward = Ward::default();
    loop {
        let looked = tokio::task::spawn_blocking(|| storage::disk::inventory(Path::new(SYS)));
        // Where it cannot be told which there are, those that are known stay.
        if let Ok(Ok(disks)) = looked.await {
            ward.see(&disks);
        }
        for disk in ward.due(now()) {
            ask(disk, answers.clone());
        }
        publish(&info, ward.list());
        let next = tokio::time::sleep(LOOK_EVERY);
        tokio::pin!(next);
        loop {
            // Both are safe to drop: an answer stays in its channel.
            tokio::select! {
                Some((which, health)) = answered.recv() => {
                    ward.hear(&which, health, now());
                    publish(&info, ward.list());
                }
                () = &mut next => break,
            }
        }
    }
}

fn now() -> u64 {
    u64::try_from(sys::clock::since_boot().as_millis()).unwrap_or(u64::MAX)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn which(disk: &Disk) -> Which {
    (disk.name.clone(), disk.serial.clone())
}

/// In a thread. At most one for each disk: the channel needs no bound of its own.
fn ask(disk: Disk, answers: mpsc::UnboundedSender<(Which, Health)>) {
    let (of, sender) = (which(&disk), answers.clone());
    let work = move || {
        let way = smart::way(Path::new(SYS), &disk.name);
        // The node is going down where nobody hears it.
        let _ = answers.send((which(&disk), smart::read(&disk, way)));
    };
    let started = std::thread::Builder::new().name("smart".to_owned());
    if let Err(error) = started.spawn(work) {
        let why = format!("the node has no thread to ask it: {error}");
        let _ = sender.send((of, smart::silent(None, why)));
    }
}

#[derive(Debug)]
struct Patient {
    disk: Disk,
    /// Else it is kept for the answer that it owes, and not shown.
    is_there: bool,
    /// Since when an answer is waited for.
    asked_ms: Option<u64>,
    /// When it may be asked again.
    next_ms: u64,
    known: Option<(Health, u64)>,
}

/// All disks, and how each stands.
#[derive(Debug, Default)]
struct Ward {
    all: BTreeMap<Which, Patient>,
}

impl Ward {
    /// Disks that are gone are forgotten, but for one that still owes an answer: its thread is there.
    fn see(&mut self, disks: &[Disk]) {
        self.all.retain(|which, patient| {
            patient.is_there = disks.iter().any(|disk| self::which(disk) == *which);
            patient.is_there || patient.asked_ms.is_some()
        });
        for disk in disks {
            self.all.entry(which(disk)).or_insert_with(|| Patient {
                disk: disk.clone(),
                is_there: true,
                asked_ms: None,
                next_ms: 0,
                known: None,
            });
        }
    }

    /// Those to be asked now; they count as asked from here on.
    fn due(&mut self, now_ms: u64) -> Vec<Disk> {
        for patient in self.all.values_mut() {
            let Some(asked) = patient.asked_ms else {
                continue;
            };
            let waited = now_ms.saturating_sub(asked);
            if waited >= ms(ANSWER_WAIT) {
                let source = patient.known.as_ref().and_then(|(health, _)| health.source);
                let why = "it was asked for its health and has not answered";
                patient.known = Some((smart::silent(source, why.to_owned()), asked));
            }
        }
        let is_asked = |patient: &Patient| {
            let is_silent =
                matches!(&patient.known, Some((health, _)) if health.verdict == Verdict::Silent);
            patient.asked_ms.is_some() && !is_silent
        };
        let asked = self.all.values().filter(|patient| is_asked(patient));
        let free = AT_ONCE.saturating_sub(asked.count());
        let waits =
            |patient: &&mut Patient| patient.asked_ms.is_none() && patient.next_ms <= now_ms;
        let due = self.all.values_mut().filter(waits).take(free);
        due.map(|patient| {
            patient.asked_ms = Some(now_ms);
            patient.disk.clone()
        })
        .collect()
    }

    fn hear(&mut self, which: &Which, health: Health, now_ms: u64) {
        let Some(patient) = self.all.get_mut(which) else {
            return;
        };
        if !patient.is_there {
            self.all.remove(which);
            return;
        }
        let rest = match health.source {
            Some(Source::Nvme) => NVME_EVERY,
            Some(Source::Ata | Source::Scsi) | None => OTHERS_EVERY,
        };
        patient.asked_ms = None;
        patient.next_ms = now_ms.saturating_add(ms(rest));
        patient.known = Some((health, now_ms));
    }

    /// Of those that have been asked and answered, or did not in time.
    fn list(&self) -> Vec<DiskHealth> {
        let known = |patient: &Patient| {
            let (health, at) = patient.known.clone()?;
            Some(DiskHealth {
                disk: patient.disk.name.clone(),
                serial: patient.disk.serial.clone(),
                model: patient.disk.model.clone(),
                health,
                uptime_ms: at,
            })
        };
        let there = self.all.values().filter(|patient| patient.is_there);
        there.filter_map(known).collect()
    }
}

fn publish(info: &watch::Sender<NodeInfo>, list: Vec<DiskHealth>) {
    for (code, said) in concerns(&list) {
        match said {
            Some(said) => troubles::say(info, code, said),
            None => troubles::over(info, code),
        }
    }
    info.send_if_modified(|info| {
        let new = info.health != list;
        info.health = list;
        new
    });
}

/// What is wrong with disks, in the words of the catalogue.
fn concerns(all: &[DiskHealth]) -> [(Code, Option<String>); 4] {
    let verdict = |of: Verdict| move |health: &Health| health.verdict == of;
    [
        (Code::DiskFailing, name(all, verdict(Verdict::Failing))),
        (Code::DiskWorn, name(all, verdict(Verdict::Worn))),
        (Code::DiskHot, name(all, |health| health.hot)),
        (Code::DiskSilent, name(all, verdict(Verdict::Silent))),
    ]
}

fn name(all: &[DiskHealth], is: impl Fn(&Health) -> bool) -> Option<String> {
    let ill: Vec<_> = all.iter().filter(|disk| is(&disk.health)).collect();
    let one = |disk: &&DiskHealth| {
        let (name, why) = (&disk.disk, disk.health.reasons.join(", "));
        match disk.serial.as_str() {
            "" => format!("{name}: {why}"),
            serial => format!("{serial} ({name}): {why}"),
        }
    };
    let named: Vec<_> = ill.iter().take(NAMED_MAX).map(one).collect();
    let more = match ill.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (!named.is_empty()).then(|| format!("{}{more}", named.join("; ")))
}

/// Pools that lie on disks which fail, of a mirror on no other, by their ids. Each with those disks, for people.
pub(crate) fn failing_pools(pools: &[Pool], health: &[DiskHealth]) -> BTreeMap<String, String> {
    let of = |disk: &Option<String>| {
        let mut health = health.iter();
        health.find(|of| disk.as_ref() == Some(&of.disk))
    };
    let failing = |pool: &Pool| {
        let beneath: Vec<_> = match &pool.mirror {
            None => vec![of(&pool.disk)],
            Some(mirror) => {
                let halves = mirror.halves.iter();
                let whole = halves.filter(|half| half.state == HalfState::InStep);
                whole.map(|half| of(&half.disk)).collect()
            }
        };
        let beneath: Option<Vec<DiskHealth>> = beneath.into_iter().map(|of| of.cloned()).collect();
        let fails = |health: &Health| health.verdict == Verdict::Failing;
        let beneath = beneath.filter(|all| all.iter().all(|of| fails(&of.health)))?;
        Some((pool.id.clone(), name(&beneath, fails)?))
    };
    pools.iter().filter_map(failing).collect()
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::node::{DiskClass, Half, Mirror, PoolState};

    use super::*;

    fn disk(name: &str) -> Disk {
        crate::node::disks::a_disk(name, &format!("S-{name}"))
    }

    fn health(verdict: Verdict) -> Health {
        Health {
            verdict,
            hot: false,
            source: Some(Source::Nvme),
            reasons: vec!["so it says".to_owned()],
            figures: Default::default(),
        }
    }

    fn names(disks: &[Disk]) -> Vec<&str> {
        disks.iter().map(|disk| disk.name.as_str()).collect()
    }

    const WAIT: u64 = ANSWER_WAIT.as_secs() * 1000;
    const REST: u64 = NVME_EVERY.as_secs() * 1000;

    #[test]
    fn a_disk_that_hangs_is_said_to_be_silent_and_asked_once_while_others_are_asked_on() {
        let (good, bad) = (disk("sda"), disk("sdb"));
        let mut ward = Ward::default();
        ward.see(&[good.clone(), bad.clone()]);
        assert_eq!(names(&ward.due(0)), ["sda", "sdb"]);
        assert!(ward.list().is_empty(), "nothing is known of either");
        ward.hear(&which(&good), health(Verdict::Passed), 1);
        assert!(ward.due(REST).is_empty(), "it rests");
        assert_eq!(names(&ward.due(REST + 1)), ["sda"]);
        ward.hear(&which(&good), health(Verdict::Passed), REST + 2);
        assert_eq!(names(&ward.due(WAIT + REST)), ["sda"]);
        let verdicts: Vec<_> = ward.list().iter().map(|d| d.health.verdict).collect();
        assert_eq!(verdicts, [Verdict::Passed, Verdict::Silent]);
        // It answers after all.
        ward.hear(&which(&bad), health(Verdict::Worn), WAIT + REST + 1);
        assert_eq!(ward.list()[1].health.verdict, Verdict::Worn);
        assert_eq!(names(&ward.due(WAIT + 2 * REST + 1)), ["sdb"]);
    }

    #[test]
    fn a_disk_that_is_gone_is_forgotten_and_another_under_its_name_is_asked_at_once() {
        let mut ward = Ward::default();
        ward.see(&[disk("sda")]);
        ward.due(0);
        ward.hear(&which(&disk("sda")), health(Verdict::Failing), 1);
        let other = Disk {
            serial: "new".to_owned(),
            ..disk("sda")
        };
        ward.see(std::slice::from_ref(&other));
        assert!(ward.list().is_empty());
        assert_eq!(ward.due(2), std::slice::from_ref(&other));
        ward.hear(&which(&disk("sda")), health(Verdict::Failing), 3);
        assert!(ward.list().is_empty(), "an answer of one that is gone");
        // It goes while it owes an answer.
        ward.see(&[]);
        ward.hear(&which(&other), health(Verdict::Failing), 4);
        assert!(ward.list().is_empty() && ward.due(u64::MAX).is_empty());
    }

    #[test]
    fn many_disks_are_asked_a_few_at_a_time_and_those_that_hang_hold_up_nobody() {
        let mut ward = Ward::default();
        let disks: Vec<_> = (0..AT_ONCE * 2).map(|n| disk(&format!("sd{n}"))).collect();
        ward.see(&disks);
        let first = ward.due(0);
        assert_eq!(first.len(), AT_ONCE);
        assert!(ward.due(1).is_empty());
        ward.hear(&which(&first[0]), health(Verdict::Passed), 2);
        assert_eq!(ward.due(3).len(), 1);
        assert_eq!(ward.due(WAIT).len(), AT_ONCE - 1);
    }

    fn named(disk: &str, verdict: Verdict) -> DiskHealth {
        DiskHealth {
            disk: disk.to_owned(),
            serial: format!("S-{disk}"),
            model: String::new(),
            health: health(verdict),
            uptime_ms: 0,
        }
    }

    #[test]
    fn a_trouble_names_the_disks_that_have_it_and_goes_with_them() {
        let all = |verdict| concerns(&[named("sda", verdict), named("sdb", Verdict::Passed)]);
        let said = all(Verdict::Failing);
        assert_eq!(said[0].1.as_deref(), Some("S-sda (sda): so it says"));
        assert!(said[1..].iter().all(|(_, said)| said.is_none()));
        for verdict in [Verdict::Passed, Verdict::NotOffered] {
            assert!(all(verdict).iter().all(|(_, said)| said.is_none()));
        }
        let many: Vec<_> = (0..9)
            .map(|n| named(&format!("sd{n}"), Verdict::Worn))
            .collect();
        let said = concerns(&many)[1].1.clone().expect("said");
        assert!(said.ends_with("; and 5 more"), "{said}");
    }

    #[test]
    fn a_pool_fails_with_its_disk_and_a_mirror_with_the_last_of_its_halves() {
        let half = |disk: &str, state| Half {
            disk: Some(disk.to_owned()),
            serial: String::new(),
            state,
        };
        let pool = |id: &str, disk: &str, halves: Vec<Half>| Pool {
            id: id.to_owned(),
            disk: Some(disk.to_owned()),
            serial: String::new(),
            class: DiskClass::Ssd,
            state: PoolState::InUse,
            size: Bytes(0),
            free: Bytes(0),
            because: None,
            mirror: (!halves.is_empty()).then(|| Mirror {
                array: "md_1".to_owned(),
                halves,
                percent: None,
            }),
        };
        use HalfState::{Filling, InStep};
        let pools = [
            pool("alone", "sda", vec![]),
            pool("well", "sdb", vec![]),
            pool("one", "sda", vec![half("sda", InStep), half("sdb", InStep)]),
            pool(
                "last",
                "sda",
                vec![half("sda", InStep), half("sdb", Filling)],
            ),
        ];
        let health = [named("sda", Verdict::Failing), named("sdb", Verdict::Worn)];
        let failing: Vec<_> = failing_pools(&pools, &health).into_keys().collect();
        assert_eq!(failing, ["alone", "last"]);
        assert!(failing_pools(&pools, &[]).is_empty());
    }
}
