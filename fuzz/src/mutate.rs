//! Changed seeds, the same on every machine.
//!
//! Owns: a small generator, and a handful of the changes that fuzzers make. Refuses: feedback; that is
//! what libFuzzer is for.

/// Numbers on which arithmetic breaks.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];
/// Most changes of one input.
const CHANGES_MAX: u64 = 6;

/// splitmix64 (Steele, Lea and Flood, 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// Input number `number`: a seed with a few changes, at most `bytes_max` long.
pub fn change(seeds: &[Vec<u8>], number: u64, bytes_max: usize) -> Vec<u8> {
    let mut numbers = Numbers(number);
    let mut input = pick(seeds, &mut numbers).to_vec();
    for _ in 0..=numbers.next() % CHANGES_MAX {
        change_once(&mut input, seeds, &mut numbers);
    }
    input.truncate(bytes_max);
    input
}

fn pick<'a>(seeds: &'a [Vec<u8>], numbers: &mut Numbers) -> &'a [u8] {
    let at = numbers.below(seeds.len());
    seeds.get(at).map(Vec::as_slice).unwrap_or_default()
}

fn change_once(input: &mut Vec<u8>, seeds: &[Vec<u8>], numbers: &mut Numbers) {
    let at = numbers.below(input.len() + 1);
    match numbers.below(7) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << numbers.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = numbers.byte();
            }
        }
        2 => input.truncate(at),
        3 => {
            let end = (at + 1 + numbers.below(16)).min(input.len());
            input.drain(at..end.max(at));
        }
        4 => {
            let piece: Vec<u8> = (0..=numbers.below(16)).map(|_| numbers.byte()).collect();
            input.splice(at..at, piece);
        }
        5 => {
            let edge = EDGES[numbers.below(EDGES.len())].to_le_bytes();
            let width = 1 << numbers.below(4);
            let end = (at + width).min(input.len());
            input.splice(at..end, edge[..width].iter().copied());
        }
        _ => {
            let other = pick(seeds, numbers);
            let from = numbers.below(other.len() + 1);
            let piece = other[from..].to_vec();
            input.truncate(at);
            input.extend(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_gives_the_same_input_and_another_another() {
        let seeds = [b"hello".to_vec(), b"world".to_vec()];
        assert_eq!(change(&seeds, 7, 64), change(&seeds, 7, 64));
        let all: std::collections::BTreeSet<_> =
            (0..100).map(|number| change(&seeds, number, 64)).collect();
        assert!(all.len() > 80, "{} different ones", all.len());
        assert!((0..1000).all(|number| change(&seeds, number, 9).len() <= 9));
        assert!(change(&[], 1, 9).len() <= 9);
    }
}
