//! One file out of a FAT file system, as anybody may have written it.
//!
//! Owns: FAT12, FAT16 and FAT32 as far as a file in the root directory goes whose name fits into eight letters and three (Microsoft, "FAT:
//! General Overview of On-Disk Format", 1.03). Every number in it is an allegation: what leads out of the file system, around in a circle
//! or to more than a named limit is an error.
//! Refuses: writing, directories below the root, long names.

use std::io;

/// Of the root directory so much is looked at: sixteen thousand entries, of which a long name takes up to twenty.
const DIRECTORY_MAX: u64 = 512 << 10;
/// Largest cluster: what Windows makes on disks with sectors of 4 KiB.
const CLUSTER_MAX: u32 = 256 << 10;
/// Of a directory's entry.
const ENTRY: usize = 32;
/// Most clusters of FAT12 (Linux: `FAT_MAX_FAT12`, one less than where the numbers with a meaning of their own begin).
const FAT12_MAX: u32 = 0xff4;

/// Attributes of an entry: a part of a long name has the four low ones.
const LONG_NAME: u8 = 0x0f;
const VOLUME: u8 = 0x08;
const DIRECTORY: u8 = 0x10;

/// Where the bytes of a file system are.
pub(crate) trait Medium {
    /// All of `into`, from the `at`th byte of the file system on.
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

#[derive(Debug, thiserror::Error)]
pub enum FatError {
    #[error("read it")]
    Io(#[from] io::Error),
    #[error("there is no FAT file system in it: make one with mkfs.vfat")]
    None,
    #[error("its FAT file system is damaged: {0}")]
    Damaged(&'static str),
    #[error("it has no file {0} in its root directory")]
    Absent(&'static str),
    #[error("{0} is a directory, and should be a file")]
    Directory(&'static str),
    #[error("its file {name} is longer than {max} bytes")]
    Long { name: &'static str, max: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

#[derive(Debug, Clone, Copy)]
enum Root {
    Fixed { at: u64, bytes: u64 },
    Chain(u32),
}

struct Volume<'a, M> {
    medium: &'a M,
    kind: Kind,
    cluster_bytes: u32,
    /// Of the data, numbered from 2.
    clusters: u32,
    fat_at: u64,
    data_at: u64,
    root: Root,
}

/// A file that is found.
struct Entry {
    first: u32,
    bytes: u32,
}

/// The file of this name in the root directory of a file system of at most `size` bytes. `name`: as it is written, without a dot.
pub(crate) fn file(
    medium: &impl Medium,
    size: u64,
    name: &'static str,
    max: u32,
) -> Result<Vec<u8>, FatError> {
    let volume = Volume::open(medium, size)?;
    let entry = volume.find(name)?;
    if entry.bytes > max {
        return Err(FatError::Long { name, max });
    }
    volume.content(entry)
}

fn le16(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |number| u16::from_le_bytes(*number).into())
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..).and_then(<[u8]>::first_chunk);
    number.map_or(0, |number| u32::from_le_bytes(*number))
}

impl<'a, M: Medium> Volume<'a, M> {
    /// By its boot sector. Which of the three it is, is told as Linux does.
    fn open(medium: &'a M, size: u64) -> Result<Self, FatError> {
        if size < 512 {
            return Err(FatError::None);
        }
        let mut boot = [0; 512];
        medium.read(0, &mut boot)?;
        let (sector, per_cluster) = (le16(&boot, 11), u32::from(boot[13]));
        let is_sector = sector.is_power_of_two() && (512..=4096).contains(&sector);
        let cluster_bytes = sector * per_cluster;
        let is_fat = boot[510..] == [0x55, 0xaa] && is_sector && per_cluster.is_power_of_two();
        if !is_fat || cluster_bytes > CLUSTER_MAX {
            return Err(FatError::None);
        }
        let (reserved, fats, entries) = (le16(&boot, 14), u32::from(boot[16]), le16(&boot, 17));
        let either = |small: u32, large: u32| if small == 0 { large } else { small };
        let sectors = either(le16(&boot, 19), le32(&boot, 32));
        let fat_sectors = either(le16(&boot, 22), le32(&boot, 36));
        if reserved == 0 || !(1..=2).contains(&fats) || fat_sectors == 0 {
            return Err(FatError::None);
        }
        // All of these are below 2^32, and so are the products of two in 64 bits.
        let sector = u64::from(sector);
        let root_bytes = u64::from(entries) * ENTRY as u64;
        let root_at = (u64::from(reserved) + u64::from(fats) * u64::from(fat_sectors)) * sector;
        let data_at = root_at + root_bytes.div_ceil(sector) * sector;
        let bytes = u64::from(sectors) * sector;
        if bytes > size {
            return Err(FatError::Damaged("it is longer than its partition"));
        }
        let data = bytes.checked_sub(data_at);
        let data = data.ok_or(FatError::Damaged("it has no room for its own tables"))?;
        let clusters = u32::try_from(data / u64::from(cluster_bytes)).unwrap_or(u32::MAX);
        let kind = match (le16(&boot, 22), clusters) {
            (0, _) => Kind::Fat32,
            (_, ..=FAT12_MAX) => Kind::Fat12,
            _ => Kind::Fat16,
        };
        let root = match kind {
            Kind::Fat32 => Root::Chain(le32(&boot, 44)),
            Kind::Fat12 | Kind::Fat16 => Root::Fixed {
                at: root_at,
                bytes: root_bytes,
            },
        };
        // Of a table that is too short for its clusters the last are nobody's.
        let numbers = u64::from(fat_sectors) * sector * 8 / kind.bits();
        let numbered = u32::try_from(numbers).unwrap_or(u32::MAX).saturating_sub(2);
        Ok(Self {
            medium,
            kind,
            cluster_bytes,
            clusters: clusters.min(numbered),
            fat_at: u64::from(reserved) * sector,
            data_at,
            root,
        })
    }

    /// Where a cluster's bytes are.
    fn place(&self, cluster: u32) -> Result<u64, FatError> {
        let number = cluster.checked_sub(2).filter(|n| *n < self.clusters);
        let number = number.ok_or(FatError::Damaged("a chain leads out of it"))?;
        Ok(self.data_at + u64::from(number) * u64::from(self.cluster_bytes))
    }

    /// The cluster behind this one; `None`: it was the last.
    fn next(&self, cluster: u32) -> Result<Option<u32>, FatError> {
        // It is one of those in the table.
        self.place(cluster)?;
        let at = self.fat_at + u64::from(cluster) * self.kind.bits() / 8;
        let mut bytes = [0; 4];
        let (length, end) = match self.kind {
            Kind::Fat12 => (2, 0xff8),
            Kind::Fat16 => (2, 0xfff8),
            Kind::Fat32 => (4, 0x0fff_fff8),
        };
        self.medium.read(at, &mut bytes[..length])?;
        let number = u32::from_le_bytes(bytes);
        let number = match (self.kind, cluster % 2) {
            (Kind::Fat12, 0) => number & 0xfff,
            (Kind::Fat12, _) => number >> 4,
            (Kind::Fat16, _) => number,
            (Kind::Fat32, _) => number & 0x0fff_ffff,
        };
        Ok((number < end).then_some(number))
    }

    fn find(&self, name: &'static str) -> Result<Entry, FatError> {
        let mut search = Search::of(name);
        match self.root {
            Root::Fixed { at, bytes } => {
                let mut all = vec![0; small(bytes.min(DIRECTORY_MAX))];
                self.medium.read(at, &mut all)?;
                search.look(self.kind, &all)?;
            }
            Root::Chain(first) => {
                let mut piece = vec![0; small(self.cluster_bytes.into())];
                let (mut cluster, mut looked) = (Some(first), 0);
                // However the chain goes around, it comes to an end here.
                while let Some(now) = cluster.filter(|_| looked < DIRECTORY_MAX) {
                    self.medium.read(self.place(now)?, &mut piece)?;
                    if search.look(self.kind, &piece)? {
                        break;
                    }
                    looked += u64::from(self.cluster_bytes);
                    cluster = self.next(now)?;
                }
            }
        }
        search.found.ok_or(FatError::Absent(name))
    }

    /// As many bytes as its entry says, which the caller has bounded.
    fn content(&self, entry: Entry) -> Result<Vec<u8>, FatError> {
        let mut content = vec![0; small(entry.bytes.into())];
        let mut cluster = Some(entry.first);
        for piece in content.chunks_mut(small(self.cluster_bytes.into())) {
            let now = cluster.ok_or(FatError::Damaged("a file is shorter than it says"))?;
            self.medium.read(self.place(now)?, piece)?;
            cluster = self.next(now)?;
        }
        Ok(content)
    }
}

impl Kind {
    /// Of a number in the table.
    fn bits(self) -> u64 {
        match self {
            Self::Fat12 => 12,
            Self::Fat16 => 16,
            Self::Fat32 => 32,
        }
    }
}

/// Of something below a limit that fits everywhere.
fn small(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Through a directory, piece by piece.
struct Search {
    name: &'static str,
    /// As it stands in an entry.
    short: [u8; 11],
    found: Option<Entry>,
}

impl Search {
    fn of(name: &'static str) -> Self {
        let mut short = [b' '; 11];
        for (to, from) in short.iter_mut().zip(name.bytes()) {
            *to = from.to_ascii_uppercase();
        }
        Self {
            name,
            short,
            found: None,
        }
    }

    /// Whether that was the directory's end.
    fn look(&mut self, kind: Kind, piece: &[u8]) -> Result<bool, FatError> {
        let (entries, _) = piece.as_chunks::<ENTRY>();
        for entry in entries {
            let attributes = entry[11];
            match entry[0] {
                0 => return Ok(true),
                // Removed; the volume's own name, and parts of long names.
                0xe5 => continue,
                _ if attributes & LONG_NAME == LONG_NAME || attributes & VOLUME != 0 => continue,
                _ if entry[..11] != self.short => continue,
                _ => {}
            }
            if attributes & DIRECTORY != 0 {
                return Err(FatError::Directory(self.name));
            }
            let high = match kind {
                Kind::Fat32 => le16(entry, 20) << 16,
                Kind::Fat12 | Kind::Fat16 => 0,
            };
            let found = Entry {
                first: high | le16(entry, 26),
                bytes: le32(entry, 28),
            };
            if self.found.replace(found).is_some() {
                return Err(FatError::Damaged("two files have one name"));
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
#[path = "fat_tests.rs"]
mod tests;
