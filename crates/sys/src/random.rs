//! Random bytes from the kernel, for keys.
//!
//! Owns: getrandom, and what a restored machine adds to the kernel's generator. Refuses: any other source.

use std::io;
use std::os::fd::AsRawFd;

use crate::error::{During, Result};

/// Fills `buffer`; waits until the kernel's generator has been seeded, once per boot.
pub fn fill(buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: pointer and length are of one live, writable slice.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => filled += n,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e).during(|| "get random bytes".to_owned()),
            },
        }
    }
    Ok(())
}

/// RNDADDENTROPY of linux/random.h: takes a `Pool`.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
/// RNDRESEEDCRNG.
const RESEED: libc::Ioctl = 0x5207;
/// Most bytes at once: far more than the generator holds.
pub const ENTROPY_BYTES_MAX: usize = 256;

/// `struct rand_pool_info`.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_BYTES_MAX],
}

/// Gives the kernel's generator new entropy and has it used at once: of several machines that go on from one
/// state each then gets other random numbers. Needs CAP_SYS_ADMIN, and `/dev/urandom`.
pub fn add_entropy(entropy: &[u8]) -> Result<()> {
    let during = || "give the kernel new entropy".to_owned();
    let length = entropy.len().min(ENTROPY_BYTES_MAX);
    let bytes = libc::c_int::try_from(length).expect("256 at most");
    let mut pool = Pool {
        entropy_bits: bytes * 8,
        bytes,
        buffer: [0; ENTROPY_BYTES_MAX],
    };
    pool.buffer[..length].copy_from_slice(&entropy[..length]);
    let device = std::fs::File::options().write(true).open("/dev/urandom");
    let device = device.during(during)?;
    // SAFETY: RNDADDENTROPY reads a `rand_pool_info` whose buffer has as many bytes as it says: `pool` lives
    // across the call, has that layout, and `bytes` is at most the buffer's length.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, &raw const pool) };
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let done = added == 0 && unsafe { libc::ioctl(device.as_raw_fd(), RESEED) } == 0;
    match done {
        true => Ok(()),
        false => Err(io::Error::last_os_error()).during(during),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        fill(&mut a)
            .and_then(|()| fill(&mut b))
            .expect("random bytes");
        assert_ne!(a, b);
    }
}
