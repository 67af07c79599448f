//! What the node keeps of the certificates that it orders: in each of its pools, one file for each name and each account.
//!
//! Owns: the files below `certificates/`, and which of several copies counts. Refuses: believing a damaged one: what it held is
//! ordered anew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use certificates::plan::History;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use types::ingress::Host;
use types::{Digest, PublicKey};

use super::super::{patient, scribe::DISK_WAIT};

/// Name of the file format, and of what the checksum covers.
const MAGIC: &[u8; 8] = b"SIFRCT01";
const SUM_BYTES: usize = 32;
/// Longest file: a chain of 24 KiB, its key, and some words.
const FILE_MAX: u64 = 128 << 10;
/// Files of one kind that are read: some more than are ever written ([`super::NAMES_MAX`]).
const FILES_MAX: usize = 4096;

/// Something that is kept.
pub(super) trait Kept: Serialize + DeserializeOwned {
    /// Its directory.
    const KIND: &'static str;
    /// What no two of them share.
    fn id(&self) -> String;
    /// Counts up with each change: of two copies the later counts.
    fn saved(&self) -> u64;
}

/// What the node remembers of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Name {
    pub(super) saved: u64,
    pub(super) host: Host,
    /// Whose deployment wanted it.
    pub(super) signer: PublicKey,
    /// Whom the last order was made at.
    pub(super) directory: String,
    pub(super) history: History,
    pub(super) issued: Option<Issued>,
    /// What the last order failed at.
    pub(super) error: Option<String>,
}

/// A certificate, and the secret that it is of use with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Issued {
    pub(super) directory: String,
    pub(super) certificate: String,
    pub(super) key: String,
}

impl std::fmt::Debug for Issued {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issued({})", self.directory)
    }
}

impl Kept for Name {
    const KIND: &'static str = "names";

    fn id(&self) -> String {
        self.host.to_string()
    }

    fn saved(&self) -> u64 {
        self.saved
    }
}

/// What the node is called at an authority, for one tenant, and the secret that it proves it with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Account {
    pub(super) saved: u64,
    pub(super) signer: PublicKey,
    pub(super) directory: String,
    pub(super) contact: Option<String>,
    pub(super) credentials: String,
}

impl std::fmt::Debug for Account {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({}, {})", self.signer, self.directory)
    }
}

/// Each tenant agrees to an authority's terms for itself, and has its own share of what that authority allows.
pub(super) fn account_id(signer: &PublicKey, directory: &str, contact: Option<&str>) -> String {
    format!("{signer} {directory} {}", contact.unwrap_or(""))
}

impl Kept for Account {
    const KIND: &'static str = "accounts";

    fn id(&self) -> String {
        account_id(&self.signer, &self.directory, self.contact.as_deref())
    }

    fn saved(&self) -> u64 {
        self.saved
    }
}

/// The node's pools, the first first.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    pools: Vec<PathBuf>,
}

fn directory<T: Kept>(pool: &Path) -> PathBuf {
    pool.join("certificates").join(T::KIND)
}

/// Names of the internet are longer than those of files may be.
fn file<T: Kept>(pool: &Path, id: &str) -> PathBuf {
    let name = Digest(*blake3::hash(id.as_bytes()).as_bytes());
    directory::<T>(pool).join(name.to_string())
}

fn bytes<T: Kept>(kept: &T) -> Vec<u8> {
    let json = serde_json::to_vec(kept).expect("text and numbers always serialise");
    let mut bytes = [MAGIC.as_slice(), &json].concat();
    bytes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    bytes
}

fn parse<T: Kept>(bytes: &[u8]) -> Option<T> {
    let body = bytes.len().checked_sub(SUM_BYTES)?;
    let (body, sum) = bytes.split_at(body);
    let json = body.strip_prefix(MAGIC)?;
    let whole = blake3::hash(body).as_bytes() == sum;
    whole.then(|| serde_json::from_slice(json).ok()).flatten()
}

fn read<T: Kept>(path: &Path) -> Result<T, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| error.to_string())?;
    let kept: Option<T> = parse(&bytes);
    kept.ok_or_else(|| "it is damaged".to_owned())
}

impl Shelf {
    pub(super) fn new(pools: Vec<PathBuf>) -> Self {
        Self { pools }
    }

    /// Everything of one kind, by its identity. What cannot be read is told, and is not there.
    pub(super) fn all<T: Kept>(&self) -> BTreeMap<String, T> {
        let mut all: BTreeMap<String, T> = BTreeMap::new();
        for pool in &self.pools {
            let place = directory::<T>(pool);
            let entries = match fs::read_dir(&place) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    log::error!("read {}: {error}", place.display());
                    continue;
                }
            };
            // A draft that a power cut has left is none yet.
            let done = |path: &PathBuf| path.extension().is_none();
            let paths = entries.flatten().map(|entry| entry.path()).filter(done);
            for path in paths.take(FILES_MAX) {
                match read::<T>(&path) {
                    Ok(kept) => {
                        let id = kept.id();
                        if all
                            .get(&id)
                            .is_none_or(|other| other.saved() < kept.saved())
                        {
                            all.insert(id, kept);
                        }
                    }
                    Err(why) => log::error!(
                        "{}: {why}: unless another pool has it, a certificate is ordered anew",
                        path.display()
                    ),
                }
            }
        }
        all
    }

    /// On disk in one pool at least when this returns, and in all that take it.
    pub(super) async fn save<T: Kept>(&self, kept: &T) -> Result<(), String> {
        let (id, bytes) = (kept.id(), bytes(kept));
        let mut saved = Err("this node has no pool".to_owned());
        for pool in &self.pools {
            let path = file::<T>(pool, &id);
            let (pool, bytes) = (pool.clone(), bytes.clone());
            let done = on_disk(&path, move |path| write::<T>(&pool, path, &bytes)).await;
            if let Err(why) = &done {
                log::error!("{why}");
            }
            saved = done.or(saved);
        }
        saved
    }

    pub(super) async fn remove<T: Kept>(&self, id: &str) {
        for pool in &self.pools {
            let path = file::<T>(pool, id);
            let gone = on_disk(&path, |path| match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(format!("remove {}: {error}", path.display()))
                }
                _ => Ok(()),
            });
            if let Err(why) = gone.await {
                log::warn!("{why}");
            }
        }
    }
}

/// Nobody waits for a disk that does not answer, and what it holds up is not begun again beside it.
async fn on_disk(
    path: &Path,
    work: impl FnOnce(&Path) -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let (name, path) = (path.display().to_string(), path.to_owned());
    let silent = format!("the disk of {name} does not answer");
    let wait = move || patient::within(&name, DISK_WAIT, move || work(&path));
    let done = tokio::task::spawn_blocking(wait).await;
    done.ok().flatten().unwrap_or(Err(silent))
}

fn write<T: Kept>(pool: &Path, path: &Path, bytes: &[u8]) -> Result<(), String> {
    let place = directory::<T>(pool);
    if !place.is_dir() {
        let made = fs::create_dir_all(&place);
        made.map_err(|error| format!("make {}: {error}", place.display()))?;
        for directory in [pool.join("certificates"), pool.to_owned()] {
            sys::fs::sync_directory(&directory).map_err(|error| sys::error::chain(&error))?;
        }
    }
    sys::fs::write_atomic(path, bytes, 0o600).map_err(|error| sys::error::chain(&error))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn name(host: &str, saved: u64) -> Name {
        Name {
            saved,
            host: host.parse().expect("a host"),
            signer: PublicKey([1; 32]),
            directory: "https://ca.example/dir".to_owned(),
            history: History::default(),
            issued: None,
            error: None,
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(work)
    }

    #[test]
    fn what_is_kept_is_found_in_whichever_pool_has_the_latest() {
        let pools = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let paths = pools.each_ref().map(|pool| pool.path().to_owned());
        let both = Shelf::new(paths.to_vec());
        block_on(both.save(&name("a.example", 1))).expect("saved");
        let second = Shelf::new(vec![paths[1].clone()]);
        block_on(second.save(&name("a.example", 2))).expect("saved");
        let all = both.all::<Name>();
        assert_eq!(all["a.example"].saved, 2);
        block_on(both.remove::<Name>("a.example"));
        assert!(both.all::<Name>().is_empty());
        block_on(both.remove::<Name>("a.example"));
    }

    #[test]
    fn a_name_of_any_length_is_kept_and_nobody_else_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let pool = tempfile::tempdir().expect("a directory");
        let shelf = Shelf::new(vec![pool.path().to_owned()]);
        let long = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        block_on(shelf.save(&name(&long, 1))).expect("saved");
        assert!(shelf.all::<Name>().contains_key(&long));
        let path = file::<Name>(pool.path(), &long);
        let mode = fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_copy_is_none_and_another_pool_s_counts() {
        let pools = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let paths = pools.each_ref().map(|pool| pool.path().to_owned());
        let shelf = Shelf::new(paths.to_vec());
        block_on(shelf.save(&name("a.example", 1))).expect("saved");
        let first = file::<Name>(&paths[0], "a.example");
        let whole = fs::read(&first).expect("a file");
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            assert!(parse::<Name>(&torn).is_none(), "byte {at}");
            assert!(parse::<Name>(&whole[..at]).is_none(), "cut at {at}");
        }
        fs::write(&first, &whole[1..]).expect("written");
        assert_eq!(shelf.all::<Name>().len(), 1);
        fs::write(file::<Name>(&paths[1], "a.example"), b"torn").expect("written");
        assert!(shelf.all::<Name>().is_empty());
    }

    #[test]
    fn where_no_pool_takes_it_that_is_said() {
        let pool = tempfile::tempdir().expect("a directory");
        fs::write(pool.path().join("certificates"), b"").expect("in the way");
        let shelf = Shelf::new(vec![pool.path().to_owned()]);
        block_on(shelf.save(&name("a.example", 1))).expect_err("no room for a directory");
        let none = Shelf::new(Vec::new());
        block_on(none.save(&name("a.example", 1))).expect_err("no pool");
    }
}
