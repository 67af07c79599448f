//! What a torture came to, in numbers.
//!
//! Owns: the sum of several nodes, and how it reads. Refuses: judging.

use std::fmt;
use std::ops::AddAssign;

/// What was done, for people.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub cuts: u64,
    /// Of these, while a pool was being made or recovered.
    pub in_boot: u64,
    /// Sectors that had not been flushed, and those of them that were there all the same.
    pub unflushed: u64,
    pub kept: u64,
    /// Of these, while a disk of others was claimed.
    pub in_claim: u64,
    pub acknowledged: u64,
    /// Statements that the power took before an answer.
    pub unanswered: u64,
    /// Numbers that a guest had flushed.
    pub flushed: u64,
    pub chunks: u64,
    pub checks: u64,
    /// Statements about volumes, snapshots and copies.
    pub of_volumes: u64,
    /// Boots with one of two disks.
    pub alone: u64,
    /// Images that came from a store and were read to their end.
    pub filled: u64,
    /// Boots that met blocks of a file system that were half written, and made them whole.
    pub mended: u64,
    /// Halves of a mirror that were replaced.
    pub replaced: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.in_boot += other.in_boot;
        self.in_claim += other.in_claim;
        self.unflushed += other.unflushed;
        self.kept += other.kept;
        self.acknowledged += other.acknowledged;
        self.unanswered += other.unanswered;
        self.flushed += other.flushed;
        self.chunks += other.chunks;
        self.checks += other.checks;
        self.of_volumes += other.of_volumes;
        self.alone += other.alone;
        self.filled += other.filled;
        self.mended += other.mended;
        self.replaced += other.replaced;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cuts,
            in_boot,
            in_claim,
            unflushed,
            kept,
            acknowledged,
            unanswered,
            flushed,
            chunks,
            checks,
            of_volumes,
            alone,
            filled,
            mended,
            replaced,
        } = self;
        write!(
            f,
            "{cuts} cuts ({in_boot} in a boot, {in_claim} in a claim), {kept} of {unflushed} unflushed sectors left, {acknowledged} statements \
             acknowledged and {unanswered} not answered, {flushed} numbers flushed by a guest, {chunks} chunks compared, \
             {checks} file systems checked, {of_volumes} statements about volumes, {alone} boots with one of two disks, {filled} images \
             fetched and read, {mended} boots mended half-written blocks, {replaced} halves of \
             mirrors replaced"
        )
    }
}
