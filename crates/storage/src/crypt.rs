//! Encryption at rest: what lies between a pool's partition and its file system.
//!
//! Owns: the LUKS2 header on the partition, its two slots (the owner's, the node's), the device over it, and its end.
//! Refuses: a pool that only the node could open: without the owner's recovery key nothing is encrypted. And deciding
//! whether pools are encrypted: [`Keys`] is told.
//!
//! Every change leaves a header that opens: a slot is on the disk before a copy of the header names it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sys::mapper::{self, Crypt};
use vault::luks::{self, Area, DATA_AT, HEADERS_BYTES, Header, LuksError, NewSlot, Recovery};
use vault::sealed::{Recipient, SealError, seal};
use vault::tpm::Sealed;
use vault::{NoRandom, Secret, VolumeKey, recovery};

use crate::disk::Disk;
use crate::mirrors;
use crate::probe;

/// Begins the names of our devices.
const NAME: &str = "sifr-";
/// Bytes that are overwritten at a time.
const PIECE: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CryptError {
    #[error("open {0}")]
    Open(PathBuf, #[source] io::Error),
    #[error("read the key slots of {0}")]
    Read(PathBuf, #[source] io::Error),
    #[error("write the key slots of {0}")]
    Write(PathBuf, #[source] io::Error),
    #[error("the key slots of {0} cannot be read: nothing was touched")]
    Header(PathBuf, #[source] LuksError),
    #[error("make the key slots of {0}")]
    Make(PathBuf, #[source] LuksError),
    #[error("seal the passphrase of {0} to the recovery key")]
    Recovery(PathBuf, #[source] SealError),
    #[error("draw a key")]
    Random(#[from] NoRandom),
    #[error("encryption is required, and cannot be had: {0}")]
    Required(String),
    #[error("this machine's TPM does not keep a key: {0}")]
    Seal(String),
    #[error(
        "{0} is in the clear, and sifr.encrypt=required: it is not used, and nothing was touched. Boot with sifr.encrypt=auto to \
         use it, or `sifr disk claim` takes it and a pool is made anew"
    )]
    Clear(PathBuf),
    #[error(
        "the node's pools are encrypted, and one made now would be in the clear, with the node's key on it: {0}"
    )]
    Beside(String),
    #[error(
        "{0} is encrypted, and this machine does not give its key: {1}. Nothing was touched; `sifr disk unlock` has \
         its TPM open it, with the recovery key; what `sifr disk recover` shows opens it on any Linux"
    )]
    Locked(PathBuf, String),
    #[error("the passphrase opens no key slot of {0}")]
    Passphrase(PathBuf),
    #[error("start the encryption of {0}")]
    Device(PathBuf, #[source] sys::error::Error),
    #[error("{0} has no pool of this node that is encrypted")]
    NotEncrypted(String),
    #[error("{0} still shows what was overwritten")]
    Remains(PathBuf),
}

/// What is wished for pools that are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    Encrypt {
        recovery: Recipient,
    },
    /// And why not, for people.
    Plain {
        because: String,
    },
    /// No pool rather than a plain one.
    Required {
        but: String,
    },
}

/// What becomes of a pool that is found in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClearPools {
    Used,
    /// Somebody may have put it there in the place of an encrypted one.
    Refused,
}

/// Who keeps the node's keys: the TPM, where there is one. Errors are for people.
pub trait Keys {
    fn wish(&self) -> Wish;
    /// Whether a pool is used that was made in the clear.
    fn clear_pools(&self) -> ClearPools;
    fn seal(&self, secret: &Secret) -> Result<Sealed, String>;
    fn unseal(&self, sealed: &Sealed) -> Result<Secret, String>;
}

/// Of a machine that keeps none.
#[cfg(test)]
pub(crate) struct Without;

#[cfg(test)]
impl Keys for Without {
    fn wish(&self) -> Wish {
        let because = "tests have none".to_owned();
        Wish::Plain { because }
    }

    fn clear_pools(&self) -> ClearPools {
        ClearPools::Used
    }

    fn seal(&self, _: &Secret) -> Result<Sealed, String> {
        Err("tests have none".to_owned())
    }

    fn unseal(&self, _: &Sealed) -> Result<Secret, String> {
        Err("tests have none".to_owned())
    }
}

/// What the header of an encrypted pool says to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    pub uuid: String,
    pub recovery: Option<Recovery>,
}

/// The device on which the file system of a new pool is to lie: `partition` itself where nothing is encrypted. The mark of
/// a pool that is being made stands, so that nothing in the partition is of worth.
pub(crate) fn make(
    partition: &Path,
    physical_block: u32,
    keys: &dyn Keys,
) -> Result<PathBuf, CryptError> {
    let file = open_partition(partition)?;
    // Begun before a power cut, maybe finished.
    if let Ok(Some(header)) = header(&file, partition)
        && let Ok(key) = unseal(&file, partition, &header, keys)
    {
        return device(partition, &file, &header, &key);
    }
    let recovery = match keys.wish() {
        Wish::Encrypt { recovery } => recovery,
        Wish::Plain { .. } => {
            clear(&file).map_err(|source| CryptError::Write(partition.to_owned(), source))?;
            return Ok(partition.to_owned());
        }
        Wish::Required { but } => return Err(CryptError::Required(but)),
    };
    let (header, key) = format(&file, partition, physical_block, recovery, keys)?;
    device(partition, &file, &header, &key)
}

/// Takes away a header that was begun: `mkfs` writes where it needs to, and nothing may shine through.
fn clear(file: &File) -> io::Result<()> {
    let mut bytes = vec![0; HEADERS_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    let copies = [&bytes[..], &bytes[luks::COPY_BYTES..]];
    let begun = copies
        .iter()
        .zip(luks::MAGIC)
        .any(|(copy, magic)| copy.starts_with(magic));
    if probe::is_finished(&bytes) || !begun {
        return Ok(());
    }
    file.write_all_at(&[0; HEADERS_BYTES], 0)?;
    file.sync_all()
}

/// The device on which the file system of a pool lies that is there.
pub(crate) fn enter(partition: &Path, keys: &dyn Keys) -> Result<PathBuf, CryptError> {
    let file = open_partition(partition)?;
    let Some(header) = header(&file, partition)? else {
        return match keys.clear_pools() {
            ClearPools::Used => Ok(partition.to_owned()),
            ClearPools::Refused => Err(CryptError::Clear(partition.to_owned())),
        };
    };
    let key = unseal(&file, partition, &header, keys)?;
    // By now it is known to be ours. A disk that does not take it says so soon enough, and is read as long as it can be.
    let _ = mend(&file, &header);
    device(partition, &file, &header, &key)
}

/// Writes a copy of the header anew that a power cut or the disk has damaged: the next damage may be the other's.
fn mend(file: &File, header: &Header) -> io::Result<()> {
    let mut bytes = vec![0; HEADERS_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    let torn = header.torn(&bytes);
    if torn.is_empty() {
        return Ok(());
    }
    let whole = header.encode().map_err(io::Error::other)?;
    for at in torn {
        file.write_all_at(&whole[at..][..luks::COPY_BYTES], at as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// The partition beneath a device, where it is one of ours; else the device.
pub(crate) fn partition_of(device: &Path) -> PathBuf {
    let beneath = mapper::beneath(device).map(|name| Path::new("/dev").join(name));
    beneath.unwrap_or_else(|| device.to_owned())
}

/// Whether what is mounted here is decrypted by a device of ours.
pub(crate) fn is_beneath(mountpoint: &Path) -> bool {
    let mounted = sys::mount::mounted(mountpoint).ok().flatten();
    mounted.is_some_and(|mounted| mapper::beneath(Path::new(&mounted.source)).is_some())
}

/// Refuses to make a pool in the clear beside encrypted ones: it would be given the node's key and ledger.
pub(crate) fn beside(encrypted: bool, keys: &dyn Keys) -> Result<(), CryptError> {
    match keys.wish() {
        Wish::Plain { because } if encrypted => Err(CryptError::Beside(because)),
        Wish::Plain { .. } | Wish::Encrypt { .. } | Wish::Required { .. } => Ok(()),
    }
}

/// Ends what decrypts a pool that is not mounted any more. It fails where nothing does, or somebody still uses it.
pub fn close(disk: &Disk) {
    if let Ok(partition) = our_partition(disk) {
        let _ = mapper::close(&device_name(&partition));
    }
}

/// The same of a partition whose disk may have gone.
pub(crate) fn close_over(partition: &Path) {
    let _ = mapper::close(&device_name(partition));
}

/// What a disk's pool says of its encryption. `None`: it is in the clear, or there is no pool.
pub fn outside(disk: &Disk) -> Option<Outside> {
    let partition = our_partition(disk).ok()?;
    let mut bytes = vec![0; HEADERS_BYTES];
    let file = File::open(partition).ok()?;
    file.read_exact_at(&mut bytes, mirrors::data_at(&file))
        .ok()?;
    is_encrypted(&bytes).then_some(())?;
    let header = Header::parse(&bytes);
    let uuid = header.as_ref().map_or("damaged", |header| header.uuid());
    Some(Outside {
        uuid: uuid.to_owned(),
        recovery: header.ok().and_then(|header| header.recovery()),
    })
}

/// A file system in the clear may hold what an older header has left.
fn is_encrypted(beginning: &[u8]) -> bool {
    !probe::is_finished(beginning) && luks::is_luks(beginning)
}

/// Has this node's TPM open a pool from now on whose passphrase somebody knows. It is used from the next boot on.
pub fn unlock(disk: &Disk, passphrase: &str, keys: &dyn Keys) -> Result<(), CryptError> {
    let partition = our_partition(disk)?;
    let file = open_partition(&partition)?;
    let none = || CryptError::NotEncrypted(disk.name.clone());
    let mut header = header(&file, &partition)?.ok_or_else(none)?;
    let opened = header.slots().into_iter().find_map(|slot| {
        let material = read_area(&file, header.area(slot)?).ok()?;
        header.open(slot, passphrase.as_bytes(), &material)
    });
    let key = opened.ok_or_else(|| CryptError::Passphrase(partition.clone()))?;
    let old = header.node_token().map(|token| token.slot);
    add_node_slot(&file, &partition, &mut header, &key, keys, old)
}

/// Makes what is on the disk unreadable for ever: the key slots and both copies of the header are overwritten, given
/// back, and looked at again. The file system may be mounted: the machine must end after this.
pub fn erase(disk: &Disk) -> Result<Erased, CryptError> {
    let device = disk.device();
    let file = open_partition(&device)?;
    let read = |source| CryptError::Read(device.clone(), source);
    let partition = probe::our_partition(&file, disk.size_bytes, disk.block_bytes).map_err(read)?;
    let partition = partition.ok_or_else(|| CryptError::NotEncrypted(disk.name.clone()))?;
    let mut beginning = vec![0; HEADERS_BYTES];
    let before = match File::open(disk.partition_device(partition.number)) {
        Ok(file) => mirrors::data_at(&file),
        Err(_) => 0,
    };
    file.read_exact_at(&mut beginning, partition.start + before)
        .map_err(read)?;
    let encrypted = is_encrypted(&beginning);
    let uuid = Header::parse(&beginning)
        .map(|header| header.uuid().to_owned())
        .ok();
    let write = |source| CryptError::Write(device.clone(), source);
    let bytes = (before + DATA_AT).min(partition.bytes);
    let discarded = overwrite(&file, partition.start, bytes).map_err(write)?;
    if !is_empty(&device, partition.start, bytes).map_err(read)? {
        return Err(CryptError::Remains(device));
    }
    Ok(Erased {
        encrypted,
        uuid,
        bytes,
        discarded,
    })
}

/// What [`erase`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// What lies behind was encrypted by a key that is gone; else it can still be read.
    pub encrypted: bool,
    pub uuid: Option<String>,
    /// Overwritten, from the partition's beginning.
    pub bytes: u64,
    /// The disk was told that nobody needs them.
    pub discarded: bool,
}

/// First noise, then nothing: a disk that stores zeros as a note has stored noise in the key's place before.
fn overwrite(file: &File, start: u64, bytes: u64) -> io::Result<bool> {
    let mut piece = vec![0; PIECE];
    let end = start + bytes;
    for (at, length) in pieces(start, end) {
        sys::random::fill(&mut piece).map_err(|error| error.source)?;
        file.write_all_at(&piece[..length], at)?;
    }
    file.sync_all()?;
    let discarded = sys::block::discard(file, start..end).is_ok();
    // What is no block device is written to.
    if sys::block::zero(file, start..end).is_err() {
        piece.fill(0);
        pieces(start, end).try_for_each(|(at, length)| file.write_all_at(&piece[..length], at))?;
    }
    file.sync_all()?;
    Ok(discarded)
}

/// Read from the disk, not from what the kernel remembers of it: zeroing by the device drops that.
fn is_empty(device: &Path, start: u64, bytes: u64) -> io::Result<bool> {
    let file = File::open(device)?;
    let mut piece = vec![0; PIECE];
    for (at, length) in pieces(start, start + bytes) {
        file.read_exact_at(&mut piece[..length], at)?;
        if !probe::is_zero(&piece[..length]) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Places and lengths of at most a piece.
fn pieces(start: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    let places = (start..end).step_by(PIECE);
    places.map(move |at| {
        (
            at,
            usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE)),
        )
    })
}

fn our_partition(disk: &Disk) -> Result<PathBuf, CryptError> {
    let device = disk.device();
    let read = |source| CryptError::Read(device.clone(), source);
    let file = File::open(&device).map_err(read)?;
    let found = probe::our_partition(&file, disk.size_bytes, disk.block_bytes).map_err(read)?;
    let found = found.ok_or_else(|| CryptError::NotEncrypted(disk.name.clone()))?;
    Ok(mirrors::over(&disk.partition_device(found.number)))
}

fn open_partition(partition: &Path) -> Result<File, CryptError> {
    let file = OpenOptions::new().read(true).write(true).open(partition);
    file.map_err(|source| CryptError::Open(partition.to_owned(), source))
}

/// `None` where the partition was not made to be encrypted.
fn header(file: &File, partition: &Path) -> Result<Option<Header>, CryptError> {
    let mut bytes = vec![0; HEADERS_BYTES];
    let read = file.read_exact_at(&mut bytes, 0);
    read.map_err(|source| CryptError::Read(partition.to_owned(), source))?;
    if !is_encrypted(&bytes) {
        return Ok(None);
    }
    let header = Header::parse(&bytes);
    header
        .map(Some)
        .map_err(|source| CryptError::Header(partition.to_owned(), source))
}

fn unseal(
    file: &File,
    partition: &Path,
    header: &Header,
    keys: &dyn Keys,
) -> Result<VolumeKey, CryptError> {
    let locked = |why: &str| CryptError::Locked(partition.to_owned(), why.to_owned());
    let token = header
        .node_token()
        .ok_or_else(|| locked("no key slot is of a node"))?;
    let secret = keys.unseal(&token.sealed).map_err(|why| locked(&why))?;
    let area = header
        .area(token.slot)
        .ok_or_else(|| locked("the node's key slot is gone"))?;
    let material = read_area(file, area);
    let material = material.map_err(|source| CryptError::Read(partition.to_owned(), source))?;
    let key = header.open(token.slot, secret.as_ref(), &material);
    key.ok_or_else(|| locked("the node's key slot is damaged"))
}

/// A header with the owner's slot first: at no time is there one that only the node opens.
fn format(
    file: &File,
    partition: &Path,
    physical_block: u32,
    recipient: Recipient,
    keys: &dyn Keys,
) -> Result<(Header, VolumeKey), CryptError> {
    let make = |source| CryptError::Make(partition.to_owned(), source);
    let key = draw_key()?;
    // A page in one where the disk stores pages: a sector of ours is then written whole or not at all.
    let sector_bytes = if physical_block >= 4096 { 4096 } else { 512 };
    let mut header = Header::new(&key, sector_bytes).map_err(make)?;
    let passphrase = recovery::passphrase(&vault::draw()?);
    let sealed = seal(recipient, recovery::PURPOSE, passphrase.as_bytes());
    let sealed = sealed.map_err(|source| CryptError::Recovery(partition.to_owned(), source))?;
    let slot = header.add_slot(&key, passphrase.as_bytes()).map_err(make)?;
    let owners = Recovery {
        slot: slot.number,
        recipient,
        sealed,
    };
    header.set_recovery_token(&owners).map_err(make)?;
    write_slot(file, &slot).map_err(|source| CryptError::Write(partition.to_owned(), source))?;
    add_node_slot(file, partition, &mut header, &key, keys, None)?;
    Ok((header, key))
}

/// Gives the node a slot, and takes the old one away.
fn add_node_slot(
    file: &File,
    partition: &Path,
    header: &mut Header,
    key: &VolumeKey,
    keys: &dyn Keys,
    old: Option<u32>,
) -> Result<(), CryptError> {
    let make = |source| CryptError::Make(partition.to_owned(), source);
    let secret = vault::draw()?;
    let sealed = keys.seal(&secret).map_err(CryptError::Seal)?;
    let slot = header.add_slot(key, secret.as_ref()).map_err(make)?;
    let emptied = old.and_then(|old| header.remove_slot(old));
    header.set_node_token(slot.number, &sealed).map_err(make)?;
    header.step();
    let bytes = header.encode().map_err(make)?;
    let (first, second) = bytes.split_at(luks::COPY_BYTES);
    write_slot(file, &slot)
        .and_then(|()| file.write_all_at(first, 0))
        .and_then(|()| file.sync_all())
        .and_then(|()| file.write_all_at(second, luks::COPY_BYTES as u64))
        .and_then(|()| file.sync_all())
        .and_then(|()| {
            emptied.map_or(Ok(()), |area| {
                overwrite(file, area.offset, area.bytes).map(drop)
            })
        })
        .map_err(|source| CryptError::Write(partition.to_owned(), source))
}

fn write_slot(file: &File, slot: &NewSlot) -> io::Result<()> {
    file.write_all_at(&slot.material, slot.area.offset)?;
    file.sync_all()
}

fn read_area(file: &File, area: Area) -> io::Result<Vec<u8>> {
    let length = usize::try_from(area.bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, area.offset)?;
    Ok(bytes)
}

fn draw_key() -> Result<VolumeKey, CryptError> {
    let (data, tweak) = (vault::draw()?, vault::draw()?);
    let mut key = VolumeKey::new([0; vault::KEY_BYTES]);
    key[..32].copy_from_slice(data.as_ref());
    key[32..].copy_from_slice(tweak.as_ref());
    Ok(key)
}

fn device(
    partition: &Path,
    file: &File,
    header: &Header,
    key: &VolumeKey,
) -> Result<PathBuf, CryptError> {
    let segment = header.segment();
    let segment = segment.map_err(|source| CryptError::Header(partition.to_owned(), source))?;
    let size = sys::block::size(file);
    let size = size.map_err(|source| CryptError::Read(partition.to_owned(), source))?;
    let bytes = size.saturating_sub(segment.offset);
    let opened = mapper::open(&Crypt {
        name: &device_name(partition),
        uuid: header.uuid(),
        device: partition,
        offset_bytes: segment.offset,
        bytes: bytes - bytes % u64::from(segment.sector_bytes),
        sector_bytes: segment.sector_bytes,
        key,
    });
    opened.map_err(|source| CryptError::Device(partition.to_owned(), source))
}

fn device_name(partition: &Path) -> String {
    let name = partition.file_name().unwrap_or_default();
    format!("{NAME}{}", name.to_string_lossy())
}

#[cfg(test)]
#[path = "crypt_tests.rs"]
mod tests;
