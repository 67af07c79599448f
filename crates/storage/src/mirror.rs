//! Two disks with one pool: the superblock that each half of a mirror has, and which halves are the pool now.
//!
//! Owns: the kernel's format (RAID1, metadata 1.2 with a write-intent bitmap: include/uapi/linux/raid/md_p.h), and the
//! decision which half is the truth. Refuses: reading or writing a disk ([`crate::mirrors`] does), and arrays that are not
//! ours: an array is looked at only in a partition of ours, and only by the name that we give.
//!
//! The truth is what was written last: of the halves that were whole, the one whose count of events is higher. A half
//! that the truth has given up is stale, and is filled anew. A half that has itself given up the truth was used apart:
//! it is left as it is.

/// A disk's unit in the superblock.
pub const SECTOR: u64 = 512;
/// Where the superblock lies in the partition.
pub(crate) const SUPER_AT: u64 = 4096;
/// What is read and written of it.
pub(crate) const SUPER_BYTES: usize = 4096;
/// Where the bitmap lies in the partition.
pub(crate) const BITMAP_AT: u64 = 8192;
/// Where the pool begins in the partition: the bitmap of the largest disk fits before, and erase blocks begin there.
pub(crate) const DATA_AT: u64 = 2 << 20;
/// Of a bit of the bitmap. A disk of 16 TiB has 32 KiB of bits; what is written twice after a power cut is seconds of work.
const CHUNK_BYTES: u32 = 64 << 20;
/// How long the kernel waits until it clears bits, in seconds: its own default.
const BITMAP_PAUSE_S: u32 = 5;

const MAGIC: u32 = 0xa92b_4efc;
const BITMAP_MAGIC: u32 = 0x6d74_6962;
const FEATURE_BITMAP: u32 = 1;
const FEATURE_UNFINISHED: u32 = 2;
const FEATURE_BAD_BLOCKS: u32 = 8;
const FEATURE_REPLACEMENT: u32 = 16;
const FEATURE_RECOVERY_BITMAP: u32 = 128;
/// What the kernel may come to write into a mirror of ours.
const FEATURES: u32 = FEATURE_BITMAP
    | FEATURE_UNFINISHED
    | FEATURE_BAD_BLOCKS
    | FEATURE_REPLACEMENT
    | FEATURE_RECOVERY_BITMAP;
/// Begins the names that we give.
const NAME: &str = "sifr:";
/// Halves of a mirror.
pub const HALVES: u16 = 2;
/// Devices that a superblock names: the halves, and those that were replaced. A power of two above what anybody replaces
/// in a row before a number may come again.
const DEVICES: u16 = 16;
/// Most that the format has room for.
const DEVICES_MAX: u32 = (4096 - 256) / 2;
/// No half: it waits to become one, or was given up.
const SPARE: u16 = 0xffff;
const FAULTY: u16 = 0xfffe;
/// Nothing is out of step from here on.
const ALL_IN_STEP: u64 = u64::MAX;

/// The superblock of a half of a mirror of ours. Only [`Half::parse`] and the makers here make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Of the mirror.
    pub set: [u8; 16],
    /// Of this device.
    pub device: [u8; 16],
    pub events: u64,
    /// Seconds and, above 40 bits, microseconds.
    utime: u64,
    /// Sectors of the pool.
    pub size: u64,
    /// Sectors of the partition that it may have.
    room: u64,
    /// Which device of the mirror this is.
    pub number: u16,
    /// It is being filled, and not whole.
    pub unfinished: bool,
    /// It is being filled while the half whose place it will have still works.
    replacement: bool,
    /// What each device is, by its number.
    roles: Vec<u16>,
}

/// Why a superblock is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HalfError {
    #[error("its checksum is wrong")]
    Checksum,
    #[error("it is of another kind: level, layout or a feature that mirrors of Sifr do not have")]
    Kind,
    #[error("it contradicts itself")]
    Contradiction,
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u16::from_le_bytes(*b))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u32::from_le_bytes(*b))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |b| u64::from_le_bytes(*b))
}

fn id(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes[at..].first_chunk().copied().unwrap_or_default()
}

/// Whether the beginning of a partition has a superblock with our name, good or not.
pub(crate) fn is_half(beginning: &[u8]) -> bool {
    let at = usize::try_from(SUPER_AT).expect("a small number");
    let Some(block) = beginning.get(at..at + 256) else {
        return false;
    };
    le32(block, 0) == MAGIC && le32(block, 4) == 1 && block[32..].starts_with(NAME.as_bytes())
}

/// `calc_sb_1_csum`: the sum of the words with its own left out, the carry added.
fn checksum(block: &[u8], devices: u32) -> u32 {
    let length = 256 + 2 * usize::try_from(devices).unwrap_or(0);
    let word = |(place, word): (usize, &[u8])| match word {
        _ if place * 4 == 216 => 0,
        [a, b, c, d] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
        [a, b, ..] => u64::from(u16::from_le_bytes([*a, *b])),
        _ => 0,
    };
    let sum: u64 = block[..length].chunks(4).enumerate().map(word).sum();
    u32::try_from(sum & 0xffff_ffff)
        .unwrap_or(0)
        .wrapping_add(u32::try_from(sum >> 32).unwrap_or(0))
}

impl Half {
    /// `None`: there is no superblock of ours.
    pub fn parse(block: &[u8; SUPER_BYTES]) -> Option<Result<Self, HalfError>> {
        let ours = le32(block, 0) == MAGIC && block[32..].starts_with(NAME.as_bytes());
        ours.then(|| Self::parse_ours(block))
    }

    fn parse_ours(block: &[u8; SUPER_BYTES]) -> Result<Self, HalfError> {
        let devices = le32(block, 220);
        if !(1..=DEVICES_MAX).contains(&devices) {
            return Err(HalfError::Contradiction);
        }
        if checksum(block, devices) != le32(block, 216) {
            return Err(HalfError::Checksum);
        }
        let features = le32(block, 8);
        let of_our_kind = le32(block, 4) == 1
            && features & !FEATURES == 0
            && features & FEATURE_BITMAP != 0
            && (le32(block, 72), le32(block, 76)) == (1, 0)
            && le32(block, 92) == u32::from(HALVES)
            && u64::from(le32(block, 96)) * SECTOR == BITMAP_AT - SUPER_AT
            && le64(block, 128) == DATA_AT / SECTOR
            && le64(block, 144) == SUPER_AT / SECTOR;
        if !of_our_kind {
            return Err(HalfError::Kind);
        }
        let roles: Vec<u16> = (0..usize::try_from(devices).unwrap_or(0))
            .map(|at| le16(block, 256 + 2 * at))
            .collect();
        let number = u16::try_from(le32(block, 160)).map_err(|_| HalfError::Contradiction)?;
        let half = Self {
            set: id(block, 16),
            device: id(block, 168),
            events: le64(block, 200),
            utime: le64(block, 192),
            size: le64(block, 80),
            room: le64(block, 136),
            number,
            unfinished: features & FEATURE_UNFINISHED != 0,
            replacement: features & FEATURE_REPLACEMENT != 0,
            roles,
        };
        let known = usize::from(number) < half.roles.len();
        let fits =
            half.size > 0 && half.size <= half.room && half.room.checked_mul(SECTOR).is_some();
        let sane = |role: &u16| *role < HALVES || *role >= FAULTY;
        match known && fits && half.roles.iter().all(sane) {
            true => Ok(half),
            false => Err(HalfError::Contradiction),
        }
    }

    /// Both halves of a new mirror over partitions of these sizes. They count as in step: nobody reads of a new pool what
    /// was not written, and what is written goes to both.
    pub fn pair(set: [u8; 16], devices: [[u8; 16]; 2], partition_bytes: [u64; 2]) -> [Self; 2] {
        let room =
            partition_bytes.map(|bytes| (bytes - bytes % 4096).saturating_sub(DATA_AT) / SECTOR);
        let mut roles = vec![SPARE; usize::from(DEVICES)];
        (roles[0], roles[1]) = (0, 1);
        let half = |number: u16| Self {
            set,
            device: devices[usize::from(number)],
            events: 0,
            utime: 0,
            size: room[0].min(room[1]),
            room: room[usize::from(number)],
            number,
            unfinished: false,
            replacement: false,
            roles: roles.clone(),
        };
        [half(0), half(1)]
    }

    /// A device that waits to become a half in place of another. `None` where it is too small, or the mirror has no number
    /// left.
    pub fn spare(&self, device: [u8; 16], partition_bytes: u64, taken: &[u16]) -> Option<Self> {
        let room = (partition_bytes - partition_bytes % 4096).saturating_sub(DATA_AT) / SECTOR;
        let highest = taken.iter().copied().max().unwrap_or(0);
        let free = |number: &u16| !taken.contains(number) && self.role_of(*number) == SPARE;
        // A number is not used again at once: who had it may come back.
        let mut after = (highest + 1..DEVICES).chain(0..=highest);
        let number = after.find(free)?;
        let mut roles = self.roles.clone();
        let enough = usize::from(number) + 1;
        roles.resize(roles.len().max(enough), SPARE);
        (room >= self.size).then_some(Self {
            device,
            events: 0,
            utime: 0,
            room,
            number,
            unfinished: false,
            replacement: false,
            roles,
            ..self.clone()
        })
    }

    fn role_of(&self, number: u16) -> u16 {
        self.roles
            .get(usize::from(number))
            .copied()
            .unwrap_or(SPARE)
    }

    /// Whether it takes that device for a half.
    fn trusts(&self, number: u16) -> bool {
        self.role_of(number) < HALVES
    }

    /// Whether it holds all that it was told of, as far as it knows.
    fn is_whole(&self) -> bool {
        self.trusts(self.number) && !self.unfinished
    }

    /// Whether it has given up the other half: it was written to by itself.
    fn is_alone(&self) -> bool {
        let trusted = self.roles.iter().filter(|role| **role < HALVES);
        trusted.count() < usize::from(HALVES)
    }

    /// Name of the array to the kernel, short and for good.
    pub fn array(&self) -> String {
        let digits: String = self.set[..6].iter().map(|b| format!("{b:02x}")).collect();
        format!("md_{digits}")
    }

    /// As it stands in the partition, from [`SUPER_AT`] on.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; SUPER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(4, &1u32.to_le_bytes());
        put(8, &FEATURE_BITMAP.to_le_bytes());
        put(16, &self.set);
        put(32, format!("{NAME}{}", &self.array()[3..]).as_bytes());
        put(72, &1u32.to_le_bytes());
        put(80, &self.size.to_le_bytes());
        put(92, &u32::from(HALVES).to_le_bytes());
        put(96, &8u32.to_le_bytes());
        put(128, &(DATA_AT / SECTOR).to_le_bytes());
        put(136, &self.room.to_le_bytes());
        put(144, &(SUPER_AT / SECTOR).to_le_bytes());
        put(160, &u32::from(self.number).to_le_bytes());
        put(168, &self.device);
        put(192, &self.utime.to_le_bytes());
        put(200, &self.events.to_le_bytes());
        put(208, &ALL_IN_STEP.to_le_bytes());
        let devices = u32::try_from(self.roles.len()).expect("at most DEVICES_MAX");
        put(220, &devices.to_le_bytes());
        for (at, role) in self.roles.iter().enumerate() {
            put(256 + 2 * at, &role.to_le_bytes());
        }
        let sum = checksum(&block, devices).to_le_bytes();
        block[216..220].copy_from_slice(&sum);
        block
    }

    /// An empty bitmap, from [`BITMAP_AT`] on: `bitmap_super_t`, then a bit for each chunk.
    pub fn bitmap(&self) -> Vec<u8> {
        let chunks = (self.size * SECTOR).div_ceil(u64::from(CHUNK_BYTES));
        let bytes = 256 + usize::try_from(chunks.div_ceil(8)).unwrap_or(0);
        let room = usize::try_from(DATA_AT - BITMAP_AT).expect("a small number");
        let mut block = vec![0; bytes.next_multiple_of(4096).min(room)];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &BITMAP_MAGIC.to_le_bytes());
        put(4, &4u32.to_le_bytes());
        put(8, &self.set);
        put(24, &self.events.to_le_bytes());
        put(32, &self.events.to_le_bytes());
        put(40, &self.size.to_le_bytes());
        put(52, &CHUNK_BYTES.to_le_bytes());
        put(56, &BITMAP_PAUSE_S.to_le_bytes());
        let room = u32::try_from((DATA_AT - BITMAP_AT) / SECTOR).expect("a small number");
        put(64, &room.to_le_bytes());
        block
    }
}

/// What a half is to its mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// It has what was written last.
    Truth,
    /// It is a half, in step or on its way there: the mirror is started with it.
    Half,
    /// It missed something, or has never been a half: the running mirror fills it.
    Stale,
    /// The mirror is complete without it.
    Replaced,
    /// It was used without the truth, and the truth without it: no rule could put them together.
    Apart,
    /// It is a copy of another half.
    Copy,
}

impl Part {
    /// Why it is left alone, if it is. For people.
    pub fn because(self) -> Option<&'static str> {
        match self {
            Self::Truth | Self::Half | Self::Stale => None,
            Self::Replaced => Some(
                "was a half of a mirror, and another disk has its place: `sifr disk claim` takes it",
            ),
            Self::Apart => Some(
                "half of a mirror that was used without the other half, and so was that, later: it is left as it is; boot it alone to see what it has, or `sifr disk claim` takes it",
            ),
            Self::Copy => Some("copy of a half of a mirror: `sifr disk claim` takes it"),
        }
    }
}

/// What each of these halves of one mirror is. `None`: none of them is whole, and what they hold is not the pool.
pub fn judge(halves: &[Half]) -> Option<Vec<Part>> {
    let whole = (0..halves.len()).filter(|at| halves[*at].is_whole());
    let truth = whole.max_by_key(|at| {
        let half = &halves[*at];
        (half.events, half.utime, std::cmp::Reverse(half.number))
    })?;
    let mut parts: Vec<Part> = halves
        .iter()
        .map(|half| part_of(half, &halves[truth]))
        .collect();
    parts[truth] = Part::Truth;
    settle(halves, truth, &mut parts);
    Some(parts)
}

fn part_of(half: &Half, truth: &Half) -> Part {
    let is_copy = half.number == truth.number || half.size != truth.size;
    // The kernel counts once more before it writes the first half, and once after: one behind is in step.
    let recent = half.events.saturating_add(1) >= truth.events;
    if is_copy {
        Part::Copy
    } else if truth.trusts(half.number) && half.trusts(half.number) && recent {
        Part::Half
    } else if half.is_whole() && half.is_alone() && !half.trusts(truth.number) {
        Part::Apart
    } else {
        Part::Stale
    }
}

/// There are two places. The truth has one; the other is for who is a half already, then for who knows most. Beside them is
/// one that is on its way to replace either.
fn settle(halves: &[Half], truth: usize, parts: &mut [Part]) {
    let comes = |at: usize| halves[at].replacement && parts[at] == Part::Half;
    let mut order: Vec<usize> = (0..halves.len())
        .filter(|at| *at != truth && matches!(parts[*at], Part::Half | Part::Stale))
        .filter(|at| !comes(*at))
        .collect();
    let coming: Vec<usize> = (0..halves.len()).filter(|at| comes(*at)).collect();
    order.sort_by_key(|at| {
        let half = &halves[*at];
        (
            parts[*at],
            std::cmp::Reverse(half.events),
            half.number,
            half.device,
        )
    });
    for at in order.into_iter().skip(1).chain(coming.into_iter().skip(1)) {
        parts[at] = Part::Replaced;
    }
}

/// Which of these disks, by size in bytes and in the order of preference, become a mirror with each other: of like size, so
/// that little is lost. The places of each two.
pub fn pairs(sizes: &[u64]) -> Vec<[usize; 2]> {
    /// The smaller has at least this much of the larger, in percent.
    const LIKE: u64 = 90;
    let mut free: Vec<usize> = (0..sizes.len()).collect();
    free.sort_by_key(|at| std::cmp::Reverse(sizes[*at]));
    let mut pairs = Vec::new();
    let mut at = 0;
    while at + 1 < free.len() {
        let (large, small) = (free[at], free[at + 1]);
        if sizes[small] / LIKE >= sizes[large] / 100 {
            pairs.push([large.min(small), large.max(small)]);
            at += 2;
        } else {
            at += 1;
        }
    }
    pairs
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
