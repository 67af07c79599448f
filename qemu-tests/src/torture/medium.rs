//! A disk with a volatile cache, as a file and what has not been flushed to it.
//!
//! Owns: what is on the medium after the power was cut. A disk promises no more than this: a flush makes what came before
//! it durable; of what came after it any sectors, in any order, may be there or not; one sector is never half written.
//! Refuses: speaking to anybody, and time. [`super::nbd`] does the one, a request's number is the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::random::Random;

/// What is written whole or not at all (NVMe calls it AWUPF, ATA a logical sector), and the least that is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sectors {
    /// Of 512 bytes.
    Small,
    /// Of 4096, as disks have them that are called 4Kn.
    Large,
}

impl Sectors {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Small => 512,
            Self::Large => 4096,
        }
    }
}

type Sector = Box<[u8]>;

/// Of the file systems that lie on it.
const BLOCK_BYTES: usize = 4096;

/// What becomes of writes that no flush has covered when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// None is on the medium.
    Dropped,
    /// The first so many are, in the order of writing, and one may be torn between two sectors.
    CutOff,
    /// Of each sector any one of its contents since the flush is, or the one before.
    Scattered,
    /// Of every 4096 bytes the first sector is, in its newest content: each block of a file system is half written.
    Torn,
    /// All are: the cache had been written back a moment before.
    Kept,
}

impl Fate {
    pub(super) const ALL: [Self; 5] = [
        Self::Dropped,
        Self::CutOff,
        Self::Scattered,
        Self::Torn,
        Self::Kept,
    ];
}

/// What a cut came to, in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Loss {
    /// Written since the last flush.
    pub unflushed: usize,
    /// Of these, written to the medium after all.
    pub kept: usize,
}

/// What a flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flushes {
    Done,
    /// Said to be done, as disks do that are sold as fast: no node survives that, and whoever cuts the power must see it.
    Pretended,
}

/// A disk under power.
#[derive(Debug)]
pub(super) struct Medium {
    file: File,
    flushes: Flushes,
    sectors: Sectors,
    /// Writes since the last flush, sector by sector, in order.
    unflushed: Vec<(u64, Sector)>,
    /// The newest of each sector: an index into the former.
    newest: BTreeMap<u64, usize>,
}

impl Medium {
    /// `file` is as long as the disk, a multiple of a sector.
    pub(super) fn new(file: File, flushes: Flushes, sectors: Sectors) -> Self {
        Self {
            file,
            flushes,
            sectors,
            unflushed: Vec::new(),
            newest: BTreeMap::new(),
        }
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads whole sectors from `at` on, the cache's contents first.
    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let touched = self.touched(at, bytes.len())?;
        let (first, size) = (touched.start, self.sectors.bytes());
        self.file.read_exact_at(bytes, at)?;
        for (sector, index) in self.newest.range(touched) {
            let start = usize::try_from(sector - first).map_err(io::Error::other)? * size;
            bytes[start..start + size].copy_from_slice(&self.unflushed[*index].1);
        }
        Ok(())
    }

    /// Takes whole sectors into the cache. Beyond the end is refused, as a disk does.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let touched = self.touched(at, bytes.len())?;
        if at.saturating_add(bytes.len() as u64) > self.len()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        for (sector, content) in touched.zip(bytes.chunks_exact(self.sectors.bytes())) {
            self.newest.insert(sector, self.unflushed.len());
            self.unflushed.push((sector, content.into()));
        }
        Ok(())
    }

    /// Puts whole sectors onto the medium at once, and says nothing of any others ("force unit access").
    pub(super) fn write_through(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(at, bytes)?;
        let written = self.touched(at, bytes.len())?;
        self.unflushed
            .retain(|(sector, _)| !written.contains(sector));
        let sectors = self.unflushed.iter().map(|(sector, _)| *sector);
        self.newest = sectors.enumerate().map(|(n, s)| (s, n)).collect();
        self.file.write_all_at(bytes, at)
    }

    /// Everything written so far is on the medium.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self.flushes {
            Flushes::Done => {}
            Flushes::Pretended => return Ok(()),
        }
        for (sector, index) in &self.newest {
            let content = &self.unflushed[*index].1;
            self.file.write_all_at(content, self.place(*sector))?;
        }
        self.newest.clear();
        self.unflushed.clear();
        Ok(())
    }

    fn place(&self, sector: u64) -> u64 {
        sector * self.sectors.bytes() as u64
    }

    /// The sectors of a request, which has whole ones.
    fn touched(&self, at: u64, length: usize) -> io::Result<Range<u64>> {
        let size = self.sectors.bytes();
        if !at.is_multiple_of(size as u64) || !length.is_multiple_of(size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let first = at / size as u64;
        Ok(first..first + (length / size) as u64)
    }

    /// The power goes: the cache is lost but for what `fate` leaves of it.
    pub(super) fn cut(&mut self, fate: Fate, random: &mut Random) -> io::Result<Loss> {
        let unflushed = std::mem::take(&mut self.unflushed);
        self.newest.clear();
        let mut left = BTreeMap::new();
        match fate {
            Fate::Dropped => {}
            Fate::CutOff => {
                let kept = random.below(unflushed.len() as u64 + 1);
                let kept = unflushed
                    .iter()
                    .take(usize::try_from(kept).map_err(io::Error::other)?);
                left.extend(kept.map(|(sector, content)| (*sector, content)));
            }
            Fate::Scattered => {
                let mut versions: BTreeMap<u64, Vec<&Sector>> = BTreeMap::new();
                for (sector, content) in &unflushed {
                    versions.entry(*sector).or_default().push(content);
                }
                for (sector, versions) in versions {
                    // One more than there are: the content before the flush.
                    let chosen = random.below(versions.len() as u64 + 1);
                    let chosen = usize::try_from(chosen).map_err(io::Error::other)?;
                    if let Some(content) = versions.get(chosen) {
                        left.insert(sector, *content);
                    }
                }
            }
            Fate::Torn => {
                let sectors = (BLOCK_BYTES / self.sectors.bytes()) as u64;
                let firsts = unflushed.iter().filter(|(s, _)| s.is_multiple_of(sectors));
                left.extend(firsts.map(|(sector, content)| (*sector, content)));
            }
            Fate::Kept => left.extend(unflushed.iter().map(|(sector, content)| (*sector, content))),
        }
        for (sector, content) in &left {
            self.file.write_all_at(content, self.place(*sector))?;
        }
        Ok(Loss {
            unflushed: unflushed
                .iter()
                .map(|(s, _)| s)
                .collect::<BTreeSet<_>>()
                .len(),
            kept: left.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: usize = 8;
    const SECTOR: usize = 512;

    fn medium() -> Medium {
        let file = tempfile::tempfile().expect("a file");
        file.set_len((SECTORS * SECTOR) as u64).expect("a length");
        Medium::new(file, Flushes::Done, Sectors::Small)
    }

    fn fill(medium: &mut Medium, sector: u64, value: u8) {
        medium
            .write(sector * SECTOR as u64, &[value; SECTOR])
            .expect("written");
    }

    /// The first byte of each sector; all others are the same.
    fn content(medium: &Medium) -> Vec<u8> {
        let mut bytes = vec![0; SECTORS * SECTOR];
        medium.read(0, &mut bytes).expect("read");
        bytes
            .chunks(SECTOR)
            .map(|sector| {
                assert!(
                    sector.iter().all(|byte| *byte == sector[0]),
                    "a torn sector"
                );
                sector[0]
            })
            .collect()
    }

    fn after(fate: Fate, seed: u64) -> Vec<u8> {
        let mut medium = medium();
        for sector in 0..4 {
            fill(&mut medium, sector, 1);
        }
        medium.flush().expect("flushed");
        for (sector, value) in [(0, 2), (1, 2), (0, 3), (5, 2)] {
            fill(&mut medium, sector, value);
        }
        assert_eq!(
            content(&medium),
            [3, 2, 1, 1, 0, 2, 0, 0],
            "the cache is read"
        );
        let loss = medium.cut(fate, &mut Random::new(seed)).expect("cut");
        assert_eq!(loss.unflushed, 3);
        content(&medium)
    }

    #[test]
    fn what_was_flushed_is_there_whatever_becomes_of_the_rest() {
        for (fate, seed) in Fate::ALL
            .into_iter()
            .flat_map(|f| (0..50).map(move |s| (f, s)))
        {
            let content = after(fate, seed);
            assert_eq!((content[2], content[3]), (1, 1));
            assert!([1, 2, 3].contains(&content[0]) && [1, 2].contains(&content[1]));
            assert!([0, 2].contains(&content[5]));
        }
    }

    #[test]
    fn each_fate_is_what_it_says() {
        assert_eq!(after(Fate::Dropped, 1), [1, 1, 1, 1, 0, 0, 0, 0]);
        assert_eq!(after(Fate::Kept, 1), [3, 2, 1, 1, 0, 2, 0, 0]);
        assert_eq!(after(Fate::Torn, 1), [3, 1, 1, 1, 0, 0, 0, 0]);
        let seen = |fate| (0..200).map(move |seed| after(fate, seed));
        let of_order = [[1, 1, 0], [2, 1, 0], [2, 2, 0], [3, 2, 0], [3, 2, 2]];
        let short = |content: Vec<u8>| [content[0], content[1], content[5]];
        let cut_off: BTreeSet<_> = seen(Fate::CutOff).map(short).collect();
        assert_eq!(cut_off, of_order.into_iter().collect());
        // Three contents of the first, two of each of the others: all twelve come.
        let scattered: BTreeSet<_> = seen(Fate::Scattered).map(short).collect();
        assert_eq!(scattered.len(), 12);
    }

    #[test]
    fn a_write_that_is_forced_is_there_and_takes_no_other_with_it() {
        let mut medium = medium();
        fill(&mut medium, 0, 1);
        fill(&mut medium, 1, 1);
        let forced = medium.write_through(0, &[2; SECTOR]);
        forced.expect("written");
        let loss = medium.cut(Fate::Dropped, &mut Random::new(0)).expect("cut");
        assert_eq!(
            (loss.unflushed, content(&medium)[..2].to_vec()),
            (1, vec![2, 0])
        );
    }

    #[test]
    fn a_write_beyond_the_end_is_refused() {
        let mut medium = medium();
        let end = (SECTORS * SECTOR) as u64;
        assert!(medium.write(end, &[1; SECTOR]).is_err());
        assert!(medium.write(7, &[1; SECTOR]).is_err());
    }

    #[test]
    fn a_disk_of_large_sectors_takes_and_loses_whole_ones() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4 * 4096).expect("a length");
        let mut medium = Medium::new(file, Flushes::Done, Sectors::Large);
        for (at, length) in [(512, 4096), (0, 512), (4096, 2048)] {
            let error = medium
                .write(at, &vec![1; length])
                .expect_err("half a sector");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        medium.write(4096, &[1; 8192]).expect("written");
        let loss = medium.cut(Fate::Kept, &mut Random::new(0)).expect("cut");
        assert_eq!((loss.unflushed, loss.kept), (2, 2));
    }
}
