//! Random bytes from the kernel, for keys.
//!
//! Owns: getrandom. Refuses: any other source.

use std::io;

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
