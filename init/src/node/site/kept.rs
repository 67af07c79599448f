//! The owner's newest confirmed change of the network, in every pool.
//!
//! Owns: two copies in each place, and which of all of them counts: the newest that holds. A place that has another is given it.
//! Of two that were set with one version, each while the other's disk was away, the same counts at every boot, and that is said.
//! Refuses: what the owner has not signed for this node. A copy that is damaged or cannot be read hides no other.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::Envelope;
use types::PublicKey;
use types::deployment::ENVELOPE_MAX;
use types::proxy::masked;

/// Below each place.
const DIRECTORY: &str = "site";
const COPIES: [&str; 2] = ["a", "b"];
/// Beside what is as short-lived as the boot: what was set in this boot, the newest. A boot that was told `sifr.net=reset` counts
/// nothing else, whatever disks come later.
const NOW: &str = "now";

/// A change that was confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) version: u64,
    pub(crate) options: Vec<String>,
    /// As the owner has signed it.
    pub(crate) envelope: Vec<u8>,
}

impl Kept {
    /// The higher counts: of those that were set with one version neither is newer, and one of them must be the one.
    fn rank(&self) -> (u64, &[u8]) {
        (self.version, &self.envelope)
    }
}

/// Where changes are kept.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    /// All pools, the first first.
    pub(crate) pools: Vec<PathBuf>,
    /// As short-lived as the boot: for an agent that finds none of the pools.
    pub(crate) boot: PathBuf,
    pub(crate) owner: Option<PublicKey>,
    pub(crate) node: PublicKey,
    pub(super) disk: Disk,
}

/// What replaces a file on a disk. It may take as long as the disk does.
#[derive(Clone)]
pub(super) struct Disk(pub(super) Arc<Replace>);

pub(super) type Replace = dyn Fn(&Path, &[u8]) -> Result<(), String> + Send + Sync;

impl Default for Disk {
    fn default() -> Self {
        Self(Arc::new(write))
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

/// What one copy holds.
enum Copy {
    Absent,
    Good(Kept),
    Bad(String),
}

impl Shelf {
    /// The newest, in every place when this returns, and what was wrong.
    pub(crate) fn read(&self) -> (Option<Kept>, Vec<String>) {
        let copies: Vec<(PathBuf, Copy)> =
            self.paths().map(|p| (p.clone(), self.copy(&p))).collect();
        let mut newest: Option<&Kept> = None;
        let mut problems = Vec::new();
        for (path, copy) in &copies {
            match copy {
                Copy::Absent => {}
                // In whatever order the places are read.
                Copy::Good(kept) if newest.is_none_or(|n| n.rank() < kept.rank()) => {
                    newest = Some(kept);
                }
                Copy::Good(_) => {}
                Copy::Bad(why) => problems.push(format!(
                    "what the owner has set for the network, in {}, {why}",
                    path.display()
                )),
            }
        }
        let newest = newest.cloned();
        for (path, copy) in &copies {
            let Some(newest) = &newest else { break };
            match copy {
                Copy::Good(kept) if kept == newest => continue,
                Copy::Good(kept) if kept.version == newest.version => problems.push(format!(
                    "version {} of the network was set twice, each time while another disk was away: {:?} counts, and {:?} of {} does not; set it anew where that is wrong",
                    kept.version,
                    shown(&newest.options),
                    shown(&kept.options),
                    path.display()
                )),
                Copy::Good(_) | Copy::Absent | Copy::Bad(_) => {}
            }
            if let Err(why) = (self.disk.0)(path, &newest.envelope) {
                problems.push(why);
            }
        }
        (newest, problems)
    }

    /// On every pool's disk when this returns; an error where no pool has it. Then each that can be written to has `former` again, or
    /// nothing: half of a change that was refused would count at the next boot.
    pub(crate) fn keep(&self, kept: &Kept, former: Option<&Kept>) -> Result<(), String> {
        let mut written = Err("the node has no pool".to_owned());
        for place in &self.pools {
            let both = copies(place).try_for_each(|path| (self.disk.0)(&path, &kept.envelope));
            if let Err(why) = &both {
                log::error!("{why}");
            }
            // One that has it gives it to the others at the next boot.
            written = written.or(both);
        }
        if written.is_err() {
            self.forget(kept, former);
        }
        written?;
        for path in copies(&self.boot) {
            // It is wanted only where all pools are lost in this boot.
            if let Err(why) = write(&path, &kept.envelope) {
                log::error!("{why}");
            }
        }
        Ok(())
    }

    /// Where it was written, there is `former` again, or nothing.
    pub(super) fn forget(&self, kept: &Kept, former: Option<&Kept>) {
        for path in self.paths() {
            self.undo(&path, kept, former);
        }
    }

    fn undo(&self, path: &Path, kept: &Kept, former: Option<&Kept>) {
        if !matches!(self.copy(path), Copy::Good(there) if there == *kept) {
            return;
        }
        let undone = match former {
            Some(former) => (self.disk.0)(path, &former.envelope),
            None => std::fs::remove_file(path).map_err(|error| error.to_string()),
        };
        if let Err(why) = undone {
            log::error!(
                "take back what the owner was told is not kept, in {}: {why}",
                path.display()
            );
        }
    }

    /// Notes what was set in this boot, once it is kept.
    pub(super) fn mark_now(&self, kept: &Kept) {
        if let Err(why) = write(&self.now(), &kept.envelope) {
            log::error!("{why}");
        }
    }

    /// What was set in this boot, by an earlier agent of it too.
    pub(crate) fn set_now(&self) -> Option<Kept> {
        match self.copy(&self.now()) {
            Copy::Good(kept) => Some(kept),
            Copy::Absent => None,
            Copy::Bad(why) => {
                log::error!("what the owner has set in this boot {why}");
                None
            }
        }
    }

    fn now(&self) -> PathBuf {
        self.boot.join(DIRECTORY).join(NOW)
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let places = self.pools.iter().chain([&self.boot]);
        places.flat_map(|place| copies(place))
    }

    fn copy(&self, path: &Path) -> Copy {
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Copy::Absent,
            Err(error) => return Copy::Bad(format!("cannot be read: {error}")),
        };
        let opened = Envelope::parse(&bytes)
            .and_then(|envelope| envelope.open_site(|key| Some(*key) == self.owner));
        match opened {
            Err(error) => Copy::Bad(format!("is damaged: {}", sys::error::chain(&error))),
            Ok(change) if change.node != self.node => {
                Copy::Bad(format!("is for another node, {}", change.node))
            }
            Ok(change) => Copy::Good(Kept {
                version: change.version,
                options: change.options,
                envelope: bytes,
            }),
        }
    }
}

fn shown(options: &[String]) -> String {
    let words: Vec<String> = options.iter().map(|word| masked(word)).collect();
    words.join(" ")
}

fn copies(place: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let directory = place.join(DIRECTORY);
    COPIES.into_iter().map(move |copy| directory.join(copy))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte too many is refused where the envelope is read.
    let max = ENVELOPE_MAX as u64 + 1;
    File::open(path)?.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = std::fs::create_dir_all(directory);
    made.map_err(|error| format!("make the directory {}: {error}", directory.display()))?;
    sys::fs::write_atomic(path, bytes, 0o600)
        .and_then(|()| sys::fs::sync_directory(directory.parent().unwrap_or(directory)))
        .map_err(|error| sys::error::chain(&error))
}

#[cfg(test)]
mod tests {
    use api::SecretKey;
    use types::site::SiteChange;

    use super::*;

    fn shelf(at: &Path) -> Shelf {
        Shelf {
            pools: vec![at.join("first"), at.join("second")],
            boot: at.join("boot"),
            owner: Some(owner().public()),
            node: PublicKey([9; 32]),
            disk: Disk::default(),
        }
    }

    fn owner() -> SecretKey {
        SecretKey::from_seed([1; 32])
    }

    fn kept(signer: &SecretKey, node: [u8; 32], version: u64) -> Kept {
        let options = vec![format!("sifr.dns=192.0.2.{version}")];
        let change = SiteChange {
            node: PublicKey(node),
            version,
            options: options.clone(),
            confirm_s: 60,
        };
        let envelope = Envelope::seal_site(signer, &change).expect("sealed");
        Kept {
            version,
            options,
            envelope: envelope.to_json(),
        }
    }

    #[test]
    fn the_newest_of_all_copies_counts_and_every_place_gets_it() {
        let at = tempfile::tempdir().expect("a directory");
        let shelf = shelf(at.path());
        assert_eq!(shelf.read(), (None, Vec::new()));
        let (old, new) = (kept(&owner(), [9; 32], 1), kept(&owner(), [9; 32], 2));
        shelf.keep(&old, None).expect("kept");
        // The second disk was away.
        let alone = Shelf {
            pools: vec![at.path().join("first")],
            ..shelf.clone()
        };
        alone.keep(&new, None).expect("kept");
        assert_eq!(shelf.read(), (Some(new.clone()), Vec::new()));
        let second = Shelf {
            pools: vec![at.path().join("second")],
            boot: at.path().join("next-boot"),
            ..shelf
        };
        assert_eq!(second.read(), (Some(new), Vec::new()));
    }

    #[test]
    fn a_power_cut_between_any_two_writes_leaves_the_old_one_or_the_new_one() {
        let (old, new) = (kept(&owner(), [9; 32], 1), kept(&owner(), [9; 32], 2));
        let at = tempfile::tempdir().expect("a directory");
        let shelf = shelf(at.path());
        let paths: Vec<_> = shelf.paths().collect();
        for cut in 0..=paths.len() {
            shelf.keep(&old, None).expect("kept");
            for path in &paths[..cut] {
                write(path, &new.envelope).expect("written");
            }
            let expected = if cut == 0 { &old } else { &new };
            assert_eq!(shelf.read(), (Some(expected.clone()), Vec::new()));
        }
    }

    #[test]
    fn what_is_damaged_or_signed_by_others_or_for_others_hides_nothing() {
        let at = tempfile::tempdir().expect("a directory");
        let shelf = shelf(at.path());
        let good = kept(&owner(), [9; 32], 1);
        let stranger = kept(&SecretKey::from_seed([2; 32]), [9; 32], 7);
        let others = kept(&owner(), [8; 32], 7);
        let mut damaged = kept(&owner(), [9; 32], 7).envelope;
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let paths: Vec<_> = shelf.paths().collect();
        let long = vec![b' '; ENVELOPE_MAX + 1];
        for bad in [&stranger.envelope, &others.envelope, &damaged, &long] {
            shelf.keep(&good, None).expect("kept");
            write(&paths[0], bad).expect("written");
            let (newest, problems) = shelf.read();
            assert_eq!((newest.as_ref(), problems.len()), (Some(&good), 1));
            assert_eq!(shelf.read(), (Some(good.clone()), Vec::new()), "mended");
        }
        for path in &paths {
            write(path, b"{}").expect("written");
        }
        let (newest, problems) = shelf.read();
        assert_eq!((newest, problems.len()), (None, paths.len()));
    }

    #[test]
    fn it_is_kept_where_one_pool_takes_it_and_nowhere_is_an_error() {
        let at = tempfile::tempdir().expect("a directory");
        let mut shelf = shelf(at.path());
        // A file where the pool's directory should be.
        std::fs::write(at.path().join("first"), "").expect("written");
        shelf
            .keep(&kept(&owner(), [9; 32], 1), None)
            .expect("the second");
        shelf.pools.truncate(1);
        shelf
            .keep(&kept(&owner(), [9; 32], 2), None)
            .expect_err("none");
    }

    #[test]
    fn of_two_that_were_set_with_one_version_the_same_counts_in_any_order_of_the_disks_and_that_is_said()
     {
        let at = tempfile::tempdir().expect("a directory");
        let both = shelf(at.path());
        let one = kept(&owner(), [9; 32], 2);
        let change = SiteChange {
            node: PublicKey([9; 32]),
            version: 2,
            options: vec!["sifr.dns=192.0.2.99".to_owned()],
            confirm_s: 60,
        };
        let envelope = Envelope::seal_site(&owner(), &change).expect("sealed");
        let other = Kept {
            version: 2,
            options: change.options,
            envelope: envelope.to_json(),
        };
        let alone = |pool: &str, boot: &str| Shelf {
            pools: vec![at.path().join(pool)],
            boot: at.path().join(boot),
            ..both.clone()
        };
        let mut counted = Vec::new();
        for turned in [false, true] {
            alone("first", "one").keep(&one, None).expect("kept");
            alone("second", "other").keep(&other, None).expect("kept");
            let mut shelf = both.clone();
            if turned {
                shelf.pools.reverse();
            }
            let (counts, said) = shelf.read();
            assert!(said[0].contains("set twice"), "{said:?}");
            assert_eq!(shelf.read(), (counts.clone(), Vec::new()), "mended");
            counted.push(counts.expect("one of them"));
        }
        assert_eq!(counted[0], counted[1]);
    }

    #[test]
    fn what_was_set_in_this_boot_is_told_from_what_a_disk_brings_later() {
        let at = tempfile::tempdir().expect("a directory");
        let (old, new) = (kept(&owner(), [9; 32], 3), kept(&owner(), [9; 32], 1));
        let first = shelf(at.path());
        let late = Shelf {
            boot: at.path().join("former boot"),
            ..first.clone()
        };
        late.keep(&old, None).expect("kept");
        assert_eq!(first.read().0, Some(old.clone()));
        assert_eq!(first.set_now(), None);
        first.keep(&new, Some(&old)).expect("kept");
        first.mark_now(&new);
        assert_eq!(first.set_now(), Some(new.clone()));
        first.forget(&new, Some(&old));
        assert_eq!(first.read().0, Some(old));
    }

    #[test]
    fn half_of_a_change_that_cannot_be_kept_is_taken_back() {
        let at = tempfile::tempdir().expect("a directory");
        let shelf = shelf(at.path());
        let (old, new) = (kept(&owner(), [9; 32], 1), kept(&owner(), [9; 32], 2));
        for former in [None, Some(&old)] {
            if let Some(old) = former {
                shelf.keep(old, None).expect("kept");
            }
            // A directory in the place of the second copy: it cannot be written.
            for pool in &shelf.pools {
                let second = copies(pool).nth(1).expect("two");
                let _ = std::fs::remove_file(&second);
                std::fs::create_dir_all(second.join("in the way")).expect("made");
            }
            shelf.keep(&new, former).expect_err("on no pool");
            assert_eq!(shelf.read().0.as_ref(), former);
            for pool in &shelf.pools {
                let second = copies(pool).nth(1).expect("two");
                std::fs::remove_dir_all(second).expect("removed");
            }
        }
    }
}
