//! The header of an encrypted partition: LUKS2 (on-disk format 1.1), so that any Linux opens it with `cryptsetup`.
//!
//! Owns: both copies of the header, its keyslots, and two tokens of our own: the node's sealed secret and the owner's.
//! Refuses: what we do not write, but for keyslots and tokens that somebody added: those stay. The caller reads
//! and writes the disk.
//!
//! A partition begins with two copies of the header, 16 KiB each, of which the one with the higher number counts if both
//! are whole; then slots of 252 KiB; at 16 MiB the data. A change writes a slot first, then the copies one after the
//! other, and only then empties the slot that is not used any more: a power cut leaves an old or a new header, and the
//! slots that it names.

use std::num::NonZeroU32;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::NoRandom;
use crate::sealed::Recipient;
use crate::slot::{self, KEY_BYTES, MATERIAL_BYTES, VolumeKey};
use crate::tpm::Sealed;

/// Begins the first copy, and the second.
pub const MAGIC: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
/// One copy: 4 KiB of numbers, 12 KiB of JSON.
pub const COPY_BYTES: usize = 16 << 10;
const BINARY: usize = 4096;
/// Both.
pub const HEADERS_BYTES: usize = 2 * COPY_BYTES;
/// Where the data begins, as `cryptsetup` has it. All before it is the header: who overwrites it destroys the keys.
pub const DATA_AT: u64 = 16 << 20;
/// Room for a slot: its material, to a whole page.
const SLOT_BYTES: u64 = 252 << 10;
/// As many as `cryptsetup` reads.
const SLOTS_MAX: u32 = 32;
/// The least that `cryptsetup` takes. Passphrases of ours have 256 bits: nothing is gained by making each guess slow.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
/// A header of somebody's must not keep us busy: a second or so.
const ITERATIONS_MAX: u32 = 4_000_000;
const CIPHER: &str = "aes-xts-plain64";
const SALT_BYTES: usize = 32;
/// Type of the token with what the TPM has sealed.
const NODE_TOKEN: &str = "sifr-tpm2";
/// Type of the token with what is sealed to the owner's recovery key.
const RECOVERY_TOKEN: &str = "sifr-recovery";
/// Longest sealed passphrase: 71 letters and what HPKE adds are under 128 bytes.
const SEALED_MAX: usize = 512;
/// Places in the binary part.
const CHECKSUM_AT: usize = 448;
const SUBSYSTEM: &[u8] = b"sifr";

#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    #[error("no copy of the LUKS2 header is whole")]
    Damaged,
    #[error("the LUKS2 header has {0}, which Sifr does not write")]
    Foreign(&'static str),
    #[error("the LUKS2 header has no room for another {0}")]
    Full(&'static str),
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// The metadata of an encrypted partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Counts changes.
    sequence: u64,
    uuid: String,
    json: Map<String, Value>,
}

/// Where a slot's material lies in the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    pub offset: u64,
    pub bytes: u64,
}

impl Area {
    pub fn range(self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }
}

/// A slot that [`Header::add_slot`] made: the caller writes it before the header.
#[derive(Debug)]
pub struct NewSlot {
    pub number: u32,
    pub area: Area,
    pub material: Zeroizing<Vec<u8>>,
}

/// How data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub sector_bytes: u32,
}

/// What the token of the owner says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub slot: u32,
    pub recipient: Recipient,
    pub sealed: Vec<u8>,
}

/// What the token of the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeToken {
    pub slot: u32,
    pub sealed: Sealed,
}

struct Keyslot {
    area: Area,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

/// Whether a partition that begins so was made to be encrypted. Whether it can be opened is another matter. The second copy
/// alone must be whole: what lies there in a partition in the clear may be anybody's.
pub fn is_luks(beginning: &[u8]) -> bool {
    let first = beginning.strip_prefix(MAGIC[0]);
    let second = beginning.get(COPY_BYTES..);
    first.is_some_and(|rest| rest.starts_with(&[0, 2]))
        || second.is_some_and(|copy| parse_copy(copy, MAGIC[1], COPY_BYTES).is_some())
}

impl Header {
    /// A header without slots for a new key.
    pub fn new(key: &VolumeKey, sector_bytes: u32) -> Result<Self, LuksError> {
        let salt = salt()?;
        let mut uuid = [0; 16];
        getrandom::fill(&mut uuid).map_err(NoRandom::from)?;
        let digest = digest_of(key, &salt, ITERATIONS);
        let json = json!({
            "keyslots": {},
            "tokens": {},
            "segments": { "0": {
                "type": "crypt",
                "offset": DATA_AT.to_string(),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": CIPHER,
                "sector_size": sector_bytes,
            } },
            "digests": { "0": {
                "type": "pbkdf2",
                "keyslots": [],
                "segments": ["0"],
                "hash": "sha256",
                "iterations": ITERATIONS,
                "salt": STANDARD.encode(salt),
                "digest": STANDARD.encode(digest),
            } },
            "config": {
                "json_size": (COPY_BYTES - BINARY).to_string(),
                "keyslots_size": (DATA_AT - HEADERS_BYTES as u64).to_string(),
                "flags": ["allow-discards"],
            },
        });
        let Value::Object(json) = json else {
            unreachable!("it is written as an object");
        };
        Ok(Self {
            sequence: 1,
            uuid: uuid_text(uuid),
            json,
        })
    }

    /// Reads the first [`HEADERS_BYTES`] of a partition.
    pub fn parse(bytes: &[u8]) -> Result<Self, LuksError> {
        let copies = bytes.chunks(COPY_BYTES).zip(MAGIC).zip([0, COPY_BYTES]);
        let copies = copies.filter_map(|((bytes, magic), at)| parse_copy(bytes, magic, at));
        let header = copies.reduce(|a, b| if b.sequence > a.sequence { b } else { a });
        let header = header.ok_or(LuksError::Damaged)?;
        header.segment()?;
        Ok(header)
    }

    /// Which copies are not this header: each is at a place of its own.
    pub fn torn(&self, bytes: &[u8]) -> Vec<usize> {
        let copies = bytes.chunks(COPY_BYTES).zip(MAGIC).zip([0, COPY_BYTES]);
        let torn = copies.filter_map(|((bytes, magic), at)| {
            let is_this = parse_copy(bytes, magic, at).as_ref() == Some(self);
            (!is_this).then_some(at)
        });
        torn.collect()
    }

    /// Both copies.
    pub fn encode(&self) -> Result<Vec<u8>, LuksError> {
        let json = serde_json::to_vec(&self.json).expect("JSON has only text keys");
        // A zero ends it.
        if json.len() >= COPY_BYTES - BINARY {
            return Err(LuksError::Full("token"));
        }
        let mut bytes = Vec::with_capacity(HEADERS_BYTES);
        for (magic, at) in MAGIC.into_iter().zip([0u64, COPY_BYTES as u64]) {
            let mut copy = vec![0; COPY_BYTES];
            let mut salt = [0; 64];
            getrandom::fill(&mut salt).map_err(NoRandom::from)?;
            let mut put =
                |at: usize, bytes: &[u8]| copy[at..][..bytes.len()].copy_from_slice(bytes);
            put(0, magic);
            put(6, &2u16.to_be_bytes());
            put(8, &(COPY_BYTES as u64).to_be_bytes());
            put(16, &self.sequence.to_be_bytes());
            put(72, b"sha256");
            put(104, &salt);
            put(168, self.uuid.as_bytes());
            put(208, SUBSYSTEM);
            put(256, &at.to_be_bytes());
            put(BINARY, &json);
            let sum = digest::digest(&digest::SHA256, &copy);
            copy[CHECKSUM_AT..][..32].copy_from_slice(sum.as_ref());
            bytes.extend(copy);
        }
        Ok(bytes)
    }

    /// How the data is encrypted: what we write, or it is refused.
    pub fn segment(&self) -> Result<Segment, LuksError> {
        let segments = self.object("segments");
        let segment = match segments {
            Some(segments) if segments.len() == 1 => &segments["0"],
            _ => return Err(LuksError::Foreign("several data segments, or none")),
        };
        if !self.json["config"]["requirements"].is_null() {
            return Err(LuksError::Foreign("requirements of a newer format"));
        }
        let says = |field: &str, value: &str| segment[field] == *value;
        let plain = segment["integrity"].is_null() && segment["flags"].is_null();
        if !(says("type", "crypt") && says("encryption", CIPHER) && plain) {
            return Err(LuksError::Foreign("another cipher"));
        }
        if !(says("size", "dynamic") && says("iv_tweak", "0")) {
            return Err(LuksError::Foreign("a data segment of another form"));
        }
        let offset = number(&segment["offset"]).filter(|offset| *offset == DATA_AT);
        let sector = segment["sector_size"].as_u64();
        let sector = sector.and_then(|bytes| u32::try_from(bytes).ok());
        match (offset, sector.filter(|bytes| matches!(bytes, 512 | 4096))) {
            (Some(offset), Some(sector_bytes)) => Ok(Segment {
                offset,
                sector_bytes,
            }),
            _ => Err(LuksError::Foreign(
                "data at another place, or other sectors",
            )),
        }
    }

    /// A new slot that `passphrase` opens.
    pub fn add_slot(&mut self, key: &VolumeKey, passphrase: &[u8]) -> Result<NewSlot, LuksError> {
        let number = self.free_number("keyslots")?;
        let area = self.free_area()?;
        let salt = salt()?;
        let mut slot_key = VolumeKey::new([0; KEY_BYTES]);
        slot::derive(passphrase, &salt, ITERATIONS, slot_key.as_mut());
        let material = slot::close(key, &slot_key)?;
        let slot = json!({
            "type": "luks2",
            "key_size": KEY_BYTES,
            "af": { "type": "luks1", "stripes": slot::STRIPES, "hash": "sha256" },
            "area": {
                "type": "raw",
                "offset": area.offset.to_string(),
                "size": area.bytes.to_string(),
                "encryption": CIPHER,
                "key_size": KEY_BYTES,
            },
            "kdf": {
                "type": "pbkdf2",
                "hash": "sha256",
                "iterations": ITERATIONS,
                "salt": STANDARD.encode(salt),
            },
        });
        self.insert("keyslots", number, slot);
        if let Some(Value::Array(slots)) = self.json["digests"]["0"].get_mut("keyslots") {
            slots.push(number.to_string().into());
        }
        Ok(NewSlot {
            number,
            area,
            material,
        })
    }

    /// Removes a slot and the tokens that are of it alone. Its place must be emptied once the header is written.
    pub fn remove_slot(&mut self, number: u32) -> Option<Area> {
        let area = self.keyslot(number).map(|slot| slot.area);
        let name = number.to_string();
        let mut removed = |from: &str| self.json.get_mut(from)?.as_object_mut()?.remove(&name);
        removed("keyslots")?;
        let names_it = |value: &Value| value.as_str() == Some(&name);
        for kind in ["digests", "tokens"] {
            let Some(Value::Object(all)) = self.json.get_mut(kind) else {
                continue;
            };
            for value in all.values_mut() {
                if let Some(Value::Array(slots)) = value.get_mut("keyslots") {
                    slots.retain(|slot| !names_it(slot));
                }
            }
            if kind == "tokens" {
                all.retain(|_, token| {
                    token["keyslots"]
                        .as_array()
                        .is_none_or(|slots| !slots.is_empty())
                });
            }
        }
        area
    }

    /// Says in the token of the slot how this node comes to its passphrase.
    pub fn set_node_token(&mut self, slot: u32, sealed: &Sealed) -> Result<(), LuksError> {
        let token = json!({
            "type": NODE_TOKEN,
            "keyslots": [slot.to_string()],
            "pcrs": [crate::tpm::PCR],
            "bank": "sha256",
            "public": STANDARD.encode(&sealed.public),
            "private": STANDARD.encode(&sealed.private),
        });
        let number = self.free_number("tokens")?;
        self.insert("tokens", number, token);
        Ok(())
    }

    /// Says in the token of the slot how the owner comes to its passphrase.
    pub fn set_recovery_token(&mut self, recovery: &Recovery) -> Result<(), LuksError> {
        let token = json!({
            "type": RECOVERY_TOKEN,
            "keyslots": [recovery.slot.to_string()],
            "recipient": recovery.recipient.to_string(),
            "sealed": STANDARD.encode(&recovery.sealed),
        });
        let number = self.free_number("tokens")?;
        self.insert("tokens", number, token);
        Ok(())
    }

    pub fn node_token(&self) -> Option<NodeToken> {
        let (slot, token) = self.token(NODE_TOKEN)?;
        let part = |name: &str| bytes(&token[name], Sealed::PART_MAX);
        let sealed = Sealed {
            public: part("public")?,
            private: part("private")?,
        };
        Some(NodeToken { slot, sealed })
    }

    pub fn recovery(&self) -> Option<Recovery> {
        let (slot, token) = self.token(RECOVERY_TOKEN)?;
        Some(Recovery {
            slot,
            recipient: token["recipient"].as_str()?.parse().ok()?,
            sealed: bytes(&token["sealed"], SEALED_MAX)?,
        })
    }

    /// Where the material of a slot of ours lies.
    pub fn area(&self, slot: u32) -> Option<Area> {
        self.keyslot(slot).map(|slot| slot.area)
    }

    /// The volume's key, if the passphrase opens the slot with this material.
    pub fn open(&self, slot: u32, passphrase: &[u8], material: &[u8]) -> Option<VolumeKey> {
        let slot = self.keyslot(slot)?;
        let material = material.get(..MATERIAL_BYTES)?;
        let mut slot_key = VolumeKey::new([0; KEY_BYTES]);
        slot::derive(passphrase, &slot.salt, slot.iterations, slot_key.as_mut());
        let key = slot::open(material, &slot_key);
        self.is_of(&key).then_some(key)
    }

    /// Numbers of all slots of our form.
    pub fn slots(&self) -> Vec<u32> {
        (0..SLOTS_MAX)
            .filter(|n| self.keyslot(*n).is_some())
            .collect()
    }

    /// A change is about to be written.
    pub fn step(&mut self) {
        self.sequence = self.sequence.saturating_add(1);
    }

    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    fn is_of(&self, key: &VolumeKey) -> bool {
        let stored = &self.json["digests"]["0"];
        let read = || {
            let plain = stored["type"] == "pbkdf2" && stored["hash"] == "sha256";
            let salt = plain.then(|| bytes(&stored["salt"], 64))??;
            let digest: [u8; 32] = bytes(&stored["digest"], 32)?.try_into().ok()?;
            Some((salt, iterations(&stored["iterations"])?, digest))
        };
        let Some((salt, iterations, digest)) = read() else {
            return false;
        };
        // Not of the secret, but of a digest that stands beside it: time tells nothing.
        digest_of(key, &salt, iterations) == digest
    }

    fn keyslot(&self, number: u32) -> Option<Keyslot> {
        let slot = &self.object("keyslots")?.get(&number.to_string())?;
        let (af, area, kdf) = (&slot["af"], &slot["area"], &slot["kdf"]);
        let ours = slot["type"] == "luks2"
            && slot["key_size"] == KEY_BYTES
            && af["type"] == "luks1"
            && af["stripes"] == slot::STRIPES
            && af["hash"] == "sha256"
            && area["type"] == "raw"
            && area["encryption"] == CIPHER
            && area["key_size"] == KEY_BYTES
            && kdf["type"] == "pbkdf2"
            && kdf["hash"] == "sha256";
        ours.then_some(())?;
        Some(Keyslot {
            area: area_of(slot)?,
            salt: bytes(&kdf["salt"], 64)?,
            iterations: iterations(&kdf["iterations"])?,
        })
    }

    fn token(&self, kind: &str) -> Option<(u32, &Value)> {
        let token = self
            .object("tokens")?
            .values()
            .find(|token| token["type"] == kind)?;
        let [slot] = token["keyslots"].as_array()?.as_slice() else {
            return None;
        };
        let slot = slot
            .as_str()?
            .parse()
            .ok()
            .filter(|slot| *slot < SLOTS_MAX)?;
        Some((slot, token))
    }

    fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        self.json.get(name)?.as_object()
    }

    fn insert(&mut self, kind: &str, number: u32, value: Value) {
        let all = self.json.entry(kind).or_insert_with(|| json!({}));
        if let Some(all) = all.as_object_mut() {
            all.insert(number.to_string(), value);
        }
    }

    fn free_number(&self, kind: &'static str) -> Result<u32, LuksError> {
        let used = |n: &u32| {
            self.object(kind)
                .is_some_and(|all| all.contains_key(&n.to_string()))
        };
        (0..SLOTS_MAX)
            .find(|n| !used(n))
            .ok_or(LuksError::Full(kind))
    }

    /// A place that no slot has, whoever made it.
    fn free_area(&self) -> Result<Area, LuksError> {
        let slots = self.object("keyslots").into_iter().flat_map(Map::values);
        let taken: Vec<_> = slots.map(area_of).collect();
        if taken.contains(&None) {
            return Err(LuksError::Foreign("a keyslot at a place that cannot be"));
        }
        let places = (0..u64::from(SLOTS_MAX)).map(|n| HEADERS_BYTES as u64 + n * SLOT_BYTES);
        let overlaps = |offset: u64| {
            let taken = taken.iter().flatten().map(|area| area.range());
            taken
                .into_iter()
                .any(|area| area.start < offset + SLOT_BYTES && offset < area.end)
        };
        let offset = places.into_iter().find(|offset| !overlaps(*offset));
        let offset = offset.ok_or(LuksError::Full("keyslots"))?;
        Ok(Area {
            offset,
            bytes: SLOT_BYTES,
        })
    }
}

/// A copy that is whole. The checksum is no signature: everything in it is still somebody's word.
fn parse_copy(bytes: &[u8], magic: &[u8; 6], at: usize) -> Option<Header> {
    let bytes = bytes.get(..COPY_BYTES)?;
    let be64 = |at: usize| bytes[at..].first_chunk().map(|b| u64::from_be_bytes(*b));
    let sizes = be64(8)? == COPY_BYTES as u64 && be64(256)? == at as u64;
    let head = bytes.starts_with(magic) && bytes[6..8] == [0, 2] && sizes;
    let algorithm = bytes[72..104].starts_with(b"sha256\0");
    if !head || !algorithm {
        return None;
    }
    let mut plain = bytes.to_vec();
    plain[CHECKSUM_AT..][..64].fill(0);
    let sum = digest::digest(&digest::SHA256, &plain);
    if bytes[CHECKSUM_AT..][..32] != *sum.as_ref() {
        return None;
    }
    let text = |bytes: &[u8]| {
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let printable = text.iter().all(u8::is_ascii_graphic);
        printable.then(|| String::from_utf8_lossy(text).into_owned())
    };
    let json = bytes[BINARY..].split(|b| *b == 0).next()?;
    let Value::Object(json) = serde_json::from_slice(json).ok()? else {
        return None;
    };
    // Indexing an absent part would panic: each of them is there, or this is no header.
    let parts = ["keyslots", "tokens", "segments", "digests", "config"];
    let whole = parts
        .iter()
        .all(|part| json.get(*part).is_some_and(Value::is_object));
    whole.then_some(())?;
    json["segments"].get("0")?;
    json["digests"].get("0")?.as_object()?;
    Some(Header {
        sequence: be64(16)?,
        uuid: text(&bytes[168..208])?,
        json,
    })
}

fn area_of(slot: &Value) -> Option<Area> {
    let (offset, bytes) = (
        number(&slot["area"]["offset"])?,
        number(&slot["area"]["size"])?,
    );
    let inside = offset >= HEADERS_BYTES as u64 && offset.checked_add(bytes)? <= DATA_AT;
    inside.then_some(Area { offset, bytes })
}

/// LUKS2 writes long numbers as text, in one form.
fn number(value: &Value) -> Option<u64> {
    let text = value.as_str()?;
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn iterations(value: &Value) -> Option<NonZeroU32> {
    let number = u32::try_from(value.as_u64()?).ok()?;
    NonZeroU32::new(number).filter(|n| n.get() <= ITERATIONS_MAX)
}

fn bytes(value: &Value, max: usize) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(value.as_str()?).ok()?;
    (bytes.len() <= max).then_some(bytes)
}

fn salt() -> Result<[u8; SALT_BYTES], NoRandom> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt)?;
    Ok(salt)
}

fn digest_of(key: &VolumeKey, salt: &[u8], iterations: NonZeroU32) -> [u8; 32] {
    let mut digest = [0; 32];
    slot::derive(key.as_ref(), salt, iterations, &mut digest);
    digest
}

/// A random one (RFC 9562, version 4).
fn uuid_text(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Metadata of any kind in a header that is whole.
#[cfg(feature = "fuzz")]
pub mod fuzz {
    use super::{BINARY, CHECKSUM_AT, COPY_BYTES, Header, VolumeKey, digest};

    pub fn json(header: &Header) -> Vec<u8> {
        serde_json::to_vec(&header.json).expect("JSON has only text keys")
    }

    pub fn around(json: &[u8]) -> Vec<u8> {
        let empty = Header::new(&VolumeKey::new([0; super::KEY_BYTES]), 512);
        let mut copy = empty.and_then(|header| header.encode()).expect("a header");
        copy.truncate(COPY_BYTES);
        copy[BINARY..].fill(0);
        let length = json.len().min(COPY_BYTES - BINARY);
        copy[BINARY..][..length].copy_from_slice(&json[..length]);
        copy[CHECKSUM_AT..][..64].fill(0);
        let sum = digest::digest(&digest::SHA256, &copy);
        copy[CHECKSUM_AT..][..32].copy_from_slice(sum.as_ref());
        copy
    }
}

#[cfg(test)]
#[path = "luks_tests.rs"]
mod tests;
