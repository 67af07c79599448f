//! Pools on two disks: what becomes of their halves while the node runs, and the disk that comes in place of another.
//!
//! Owns: looking at mirrors, the trouble of one that is not whole, taking back a half that has returned, and the check of a
//! replacement. Refuses: deciding what a half is (`storage::mirror` does), and wiping a disk (`disks` does).

use std::path::Path;
use std::time::Duration;

use storage::disk::Disk;
use storage::mirrors::{self, State};
use tokio::sync::watch;
use types::node::{Half, HalfState, Mirror, NodeInfo, Pool};
use types::trouble::Code;

use super::machines::Site;
use super::{known, troubles};

/// Between two looks: the kernel tells nobody who does not ask how far it has come, and a person reads of it at once.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Looks for ever. A node without mirrors is done at once: none is made while it runs.
pub(crate) async fn watch(sites: Vec<Site>, info: watch::Sender<NodeInfo>) {
    let array = |site: Site| Some((site.id, mirrors::array_of(&site.mountpoint)?));
    let arrays: Vec<(String, String)> = sites.into_iter().filter_map(array).collect();
    while !arrays.is_empty() {
        let all = arrays.clone();
        let looked = tokio::task::spawn_blocking(move || all.iter().map(look).collect::<Vec<_>>());
        let looked = looked.await.unwrap_or_default();
        info.send_if_modified(|info| {
            let mut new = false;
            for (id, seen) in looked {
                let pool = info.pools.iter_mut().find(|pool| pool.id == id);
                new |= pool.is_some_and(|pool| note(pool, seen));
            }
            new
        });
        known::follow(&info.borrow().pools);
        let said = info.borrow().pools.iter().find_map(trouble);
        match said {
            Some(said) => troubles::say(&info, Code::MirrorDegraded, said),
            None => troubles::over(&info, Code::MirrorDegraded),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The pool's mirror, by its id, after what could be done for it.
fn look((pool, array): &(String, String)) -> (String, Option<Mirror>) {
    let disks = storage::disk::inventory(Path::new("/sys")).unwrap_or_default();
    let seen = mirrors::look(array, &disks).map(|mirror| {
        mirrors::heal(&mirror, &disks)
            .iter()
            .for_each(|said| log::warn!("{said}"));
        describe(&mirrors::look(array, &disks).unwrap_or(mirror), &disks)
    });
    (pool.clone(), seen)
}

fn describe(mirror: &mirrors::Mirror, disks: &[Disk]) -> Mirror {
    let half = |(name, state): &(String, State)| {
        let disk = disks.iter().find(|disk| disk.name == *name);
        Half {
            disk: disk.map(|disk| disk.name.clone()),
            serial: disk.map(|disk| disk.serial.clone()).unwrap_or_default(),
            state: match state {
                State::InStep => HalfState::InStep,
                State::Filling => HalfState::Filling,
                State::Failed => HalfState::Failed,
                State::Gone => HalfState::Missing,
            },
        }
    };
    Mirror {
        array: mirror.array.clone(),
        halves: mirror.members.iter().map(half).collect(),
        percent: mirror.percent,
    }
}

/// What is seen now, with the halves that are missed: the kernel forgets those that it was told to let go.
fn note(pool: &mut Pool, seen: Option<Mirror>) -> bool {
    let Some(mut now) = seen else {
        return false;
    };
    now.halves.retain(|half| half.state != HalfState::Missing);
    let known = pool.mirror.iter().flat_map(|before| &before.halves);
    for half in known {
        let is_there = now.halves.iter().any(|h| h.serial == half.serial);
        if now.halves.len() < 2 && !is_there {
            now.halves.push(Half {
                disk: None,
                state: HalfState::Missing,
                ..half.clone()
            });
        }
    }
    if now.halves.len() < 2 {
        now.halves.push(Half {
            disk: None,
            serial: String::new(),
            state: HalfState::Missing,
        });
    }
    // A disk that is gone may have been the one that the pool is listed under.
    let there = now
        .halves
        .iter()
        .find(|half| half.state == HalfState::InStep);
    let listed = now
        .halves
        .iter()
        .any(|half| half.disk.is_some() && half.disk == pool.disk);
    if let (false, Some(half)) = (listed, there) {
        pool.disk.clone_from(&half.disk);
        pool.serial.clone_from(&half.serial);
    }
    let now = Some(now);
    let new = pool.mirror != now;
    pool.mirror = now;
    new
}

fn trouble(pool: &Pool) -> Option<String> {
    let mirror = pool.mirror.as_ref().filter(|mirror| !mirror.is_whole())?;
    let word = |half: &Half| {
        let serial = match half.serial.as_str() {
            "" => "another disk",
            serial => serial,
        };
        let percent = match (half.state, mirror.percent) {
            (HalfState::Filling, Some(percent)) => format!(" ({percent} %)"),
            _ => String::new(),
        };
        format!("{serial} is {}{percent}", half.state.word())
    };
    let words: Vec<_> = mirror.halves.iter().map(word).collect();
    Some(format!(
        "the mirror of pool {}: {}",
        pool.id,
        words.join(", ")
    ))
}

/// The array of the mirror in which the disk of serial `old` has a place, or had one. Errors are for people.
pub(crate) fn place_of<'a>(pools: &'a [Pool], old: &str) -> Result<&'a str, String> {
    let mirrors = || pools.iter().filter_map(|pool| pool.mirror.as_ref());
    let has = |mirror: &&Mirror| mirror.halves.iter().any(|half| half.serial == old);
    if let Some(mirror) = mirrors().find(has) {
        return Ok(&mirror.array);
    }
    if pools
        .iter()
        .any(|pool| pool.disk.is_some() && pool.serial == old)
    {
        return Err(format!(
            "the pool on {old} is not a mirror, and lies on that disk alone: put the new disk in beside it, where it becomes \
             a pool at the next boot, deploy what lies on {old} anew or restore it there, then take {old} out"
        ));
    }
    // A node that was started without it has never seen its serial.
    let lacks = |mirror: &&Mirror| {
        let unknown = |half: &Half| half.state == HalfState::Missing && half.serial.is_empty();
        mirror.halves.iter().any(unknown)
    };
    let mut lacking = mirrors().filter(lacks);
    match (lacking.next(), lacking.next()) {
        (Some(mirror), None) => Ok(&mirror.array),
        (None, _) => Err(format!(
            "{old} is in no mirror of this node, and none lacks a disk"
        )),
        (Some(_), Some(_)) => Err(format!(
            "{old} is not known, and several mirrors lack a disk: put one that works beside it and start the node again"
        )),
    }
}

/// For the list of disks.
pub(crate) fn because(pools: &[Pool], disk: &str) -> Option<String> {
    let mirrors = pools.iter().filter_map(|pool| pool.mirror.as_ref());
    let mut halves =
        mirrors.flat_map(|mirror| mirror.halves.iter().map(move |half| (mirror, half)));
    let (mirror, half) = halves.find(|(_, half)| half.disk.as_deref() == Some(disk))?;
    let other: Vec<_> = mirror
        .halves
        .iter()
        .filter(|other| *other != half && !other.serial.is_empty())
        .map(|other| other.serial.as_str())
        .collect();
    let with = match other.as_slice() {
        [] => String::new(),
        others => format!(" with {}", others.join(" and ")),
    };
    let percent = match (half.state, mirror.percent) {
        (HalfState::Filling, Some(percent)) => format!(", {percent} % done"),
        _ => String::new(),
    };
    Some(format!("mirror{with}: {}{percent}", half.state.word()))
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::node::{DiskClass, PoolState};

    use super::*;

    fn half(serial: &str, state: HalfState) -> Half {
        Half {
            disk: (state != HalfState::Missing).then(|| format!("vd{serial}")),
            serial: serial.to_owned(),
            state,
        }
    }

    fn mirror(halves: Vec<Half>) -> Mirror {
        Mirror {
            array: "md_1".to_owned(),
            halves,
            percent: Some(37),
        }
    }

    fn pool(mirror: Option<Mirror>) -> Pool {
        Pool {
            id: "p".to_owned(),
            disk: Some("vda".to_owned()),
            serial: "a".to_owned(),
            class: DiskClass::Ssd,
            state: PoolState::InUse,
            size: Bytes(0),
            free: Bytes(0),
            because: None,
            mirror,
        }
    }

    #[test]
    fn a_half_that_the_kernel_has_forgotten_is_still_missed_by_its_serial() {
        use HalfState::{Filling, InStep, Missing};
        let mut pool = pool(Some(mirror(vec![half("a", InStep), half("b", InStep)])));
        assert!(trouble(&pool).is_none());
        assert!(note(&mut pool, Some(mirror(vec![half("b", InStep)]))));
        let now = pool.mirror.clone().expect("a mirror");
        assert_eq!(now.halves, [half("b", InStep), half("a", Missing)]);
        assert_eq!(
            (pool.disk.as_deref(), pool.serial.as_str()),
            (Some("vdb"), "b")
        );
        let said = trouble(&pool).expect("said");
        assert!(said.ends_with("b is in step, a is not there"), "{said}");
        assert!(!note(&mut pool, Some(mirror(vec![half("b", InStep)]))));
        let filled = mirror(vec![half("b", InStep), half("c", Filling)]);
        assert!(note(&mut pool, Some(filled)));
        let said = trouble(&pool).expect("said");
        assert!(said.ends_with("c is being filled (37 %)"), "{said}");
        let said = because(&[pool], "vdc");
        assert_eq!(
            said.as_deref(),
            Some("mirror with b: being filled, 37 % done")
        );
    }

    #[test]
    fn a_disk_is_replaced_in_its_mirror_and_one_that_nobody_knows_where_one_lacks() {
        use HalfState::{InStep, Missing};
        let whole = pool(Some(mirror(vec![half("a", InStep), half("b", InStep)])));
        assert_eq!(place_of(std::slice::from_ref(&whole), "b"), Ok("md_1"));
        assert!(place_of(&[whole], "x").is_err());
        let lacks = pool(Some(mirror(vec![half("b", InStep), half("", Missing)])));
        assert_eq!(place_of(std::slice::from_ref(&lacks), "x"), Ok("md_1"));
        assert!(place_of(&[lacks.clone(), lacks], "x").is_err());
        let alone = place_of(&[pool(None)], "a").expect_err("no mirror");
        assert!(alone.contains("is not a mirror"), "{alone}");
    }
}
