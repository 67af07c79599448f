//! What is in an encrypted pool, for who has the owner's key.
//!
//! Owns: opening a copy of its partition without a kernel's help. Refuses: a key that the owner could not have: the passphrase is
//! the one that `sifr disk recover` prints.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Lab;

const CRYPTSETUP: &str = "/sbin/cryptsetup";
/// Where nothing was ever written, no sector of the copy is read. A piece is many sectors.
const PIECE: usize = 1 << 20;
/// Of the file system.
const BLOCK: usize = 4096;

/// By the owner's own key, while the node runs.
pub(super) fn passphrase(lab: &Lab) -> Result<String> {
    let answer = lab.sifr(&["disk", "recover", "LAB0"])?.must()?;
    Ok(answer.stdout.trim().to_owned())
}

/// The file system in a copy of a partition, in that copy's place.
pub(super) fn open(partition: &Path, passphrase: &str) -> Result<PathBuf> {
    let dump = |more: &[&str]| {
        let mut command = Command::new(CRYPTSETUP);
        command.arg("luksDump").arg(partition).args(more);
        run(&mut command, passphrase)
    };
    let header: Value = serde_json::from_slice(&dump(&["--dump-json-metadata"])?)?;
    let segment = &header["segments"]["0"];
    ensure!(segment["encryption"] == "aes-xts-plain64", "{segment}");
    let offset: u64 = segment["offset"].as_str().context("no offset")?.parse()?;
    let sector = segment["sector_size"].as_u64().context("no sectors")?;
    let sector = usize::try_from(sector)?;
    let key = partition.with_extension("key");
    let file = key.to_str().context("a path of text")?;
    dump(&[
        "--batch-mode",
        "--key-file=-",
        "--dump-volume-key",
        "--volume-key-file",
        file,
    ])?;
    let bytes = fs::read(&key).context("read the volume's key")?;
    fs::remove_file(&key)?;
    let inside = partition.with_extension("inside");
    decrypt(partition, &inside, (offset, sector), &Xts::new(&bytes)?)?;
    fs::remove_file(partition)?;
    Ok(inside)
}

fn run(command: &mut Command, passphrase: &str) -> Result<Vec<u8>> {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn();
    let child = child.as_mut();
    let child = child.map_err(|e| anyhow::anyhow!("start {CRYPTSETUP}: {e}: run 'make setup'"))?;
    let mut input = child.stdin.take().context("a pipe")?;
    // What does not ask closes it.
    let _ = input.write_all(passphrase.as_bytes());
    drop(input);
    let mut output = Vec::new();
    let mut said = String::new();
    std::io::Read::read_to_end(&mut child.stdout.take().context("a pipe")?, &mut output)?;
    std::io::Read::read_to_string(&mut child.stderr.take().context("a pipe")?, &mut said)?;
    ensure!(child.wait()?.success(), "{command:?}: {said}");
    Ok(output)
}

/// Blocks that are zeros were never written, or were given back: they stay so. Of any other all is decrypted: where the kernel found
/// a sector that was never written it read noise, and whoever writes that again, with the checksum of a block of which it is the free
/// part, writes zeros.
fn decrypt(from: &Path, to: &Path, (offset, sector): (u64, usize), xts: &Xts) -> Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    let length = from.metadata()?.len() - offset;
    to.set_len(length)?;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let part = PIECE.min(usize::try_from(length - at)?);
        let piece = &mut piece[..part];
        from.read_exact_at(piece, offset + at)?;
        if piece.iter().any(|byte| *byte != 0) {
            decrypt_written(piece, at / 512, sector, xts);
            to.write_all_at(piece, at)?;
        }
        at += part as u64;
    }
    Ok(())
}

/// `number` counts 512 bytes.
fn decrypt_written(piece: &mut [u8], number: u64, sector: usize, xts: &Xts) {
    let blocks = (number..).step_by(BLOCK / 512);
    for (number, block) in blocks.zip(piece.chunks_mut(BLOCK)) {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        let sectors = (number..).step_by(sector / 512);
        for (number, bytes) in sectors.zip(block.chunks_mut(sector)) {
            xts.decrypt(number, bytes);
        }
    }
}

/// IEEE 1619, with the number of a sector as its tweak.
struct Xts {
    bytes: Aes256,
    tweak: Aes256,
}

impl Xts {
    fn new(key: &[u8]) -> Result<Self> {
        ensure!(key.len() == 64, "a key of {} bytes", key.len());
        let (bytes, tweak) = key.split_at(32);
        let part = |key: &[u8]| Aes256::new_from_slice(key).context("a key of 32 bytes");
        Ok(Self {
            bytes: part(bytes)?,
            tweak: part(tweak)?,
        })
    }

    /// `number` counts 512 bytes, whatever a sector has (dm-crypt, `plain64`).
    fn decrypt(&self, number: u64, sector: &mut [u8]) {
        let mut tweak = u128::from(number).to_le_bytes();
        self.tweak.encrypt_block((&mut tweak).into());
        let mut tweak = u128::from_le_bytes(tweak);
        for block in sector.as_chunks_mut::<16>().0 {
            let masked = u128::from_le_bytes(*block) ^ tweak;
            *block = masked.to_le_bytes();
            self.bytes.decrypt_block(block.into());
            *block = (u128::from_le_bytes(*block) ^ tweak).to_le_bytes();
            // Times x in GF(2^128).
            tweak = (tweak << 1) ^ ((tweak >> 127) * 0x87);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IEEE 1619-2018, annex B, vector 10: AES-256, data unit 255.
    #[test]
    fn a_vector_of_the_standard_comes_out() {
        let half = |text: &str| -> Vec<u8> {
            let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex");
            (0..text.len()).step_by(2).map(byte).collect()
        };
        let key = half(
            "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592",
        );
        let mut sector = half("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b");
        Xts::new(&key).expect("a key").decrypt(255, &mut sector);
        let plain: Vec<u8> = (0..32).collect();
        assert_eq!(sector, plain);
    }

    /// A directory's block, of which the free part was noise when the kernel read it, has a checksum of that noise.
    #[test]
    fn zeros_are_noise_in_a_block_that_was_written_and_zeros_in_one_that_was_not() {
        let xts = Xts::new(&[7; 64]).expect("a key");
        let mut piece = vec![0; 2 * BLOCK];
        piece[BLOCK] = 1;
        decrypt_written(&mut piece, 0, 512, &xts);
        assert!(piece[..BLOCK].iter().all(|byte| *byte == 0));
        let mut noise = vec![0; 512];
        xts.decrypt(15, &mut noise);
        assert_eq!(piece[2 * BLOCK - 512..], noise);
    }
}
