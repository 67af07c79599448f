//! Room on a disk, asked for before a long build instead of missed in the middle of it.
//!
//! Owns: what `df` says. Refuses: guessing how much a build takes; its caller knows.
//!
//! A machine whose host has no room left stands still without a word (QEMU pauses it), so tests say beside each phase how
//! much there is.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::command;

/// Fails where the file system of `directory` has less than `bytes` left.
pub(crate) fn ensure(directory: &Path, bytes: u64) -> Result<()> {
    let free = left(directory)?;
    let mebibytes = |bytes: u64| bytes >> 20;
    ensure!(
        free >= bytes,
        "{} has {} MiB left and the build takes {} MiB: make room, or name another directory in \
         SIFR_CACHE",
        directory.display(),
        mebibytes(free),
        mebibytes(bytes)
    );
    Ok(())
}

/// Bytes that are left on the file system of `directory`.
pub(crate) fn left(directory: &Path) -> Result<u64> {
    let mut df = command::clean("df");
    df.args(["--block-size=1", "--output=avail"]).arg(directory);
    free(&command::output(&mut df)?)
        .with_context(|| format!("read how much room {} has", directory.display()))
}

/// How much is left where a build writes and where tests keep the disks of their nodes, for a reader of the log.
pub(crate) fn told(build: &Path) -> String {
    let tests = std::env::temp_dir();
    let of = |directory: &Path| match left(directory) {
        Ok(bytes) => format!("{} MiB left in {}", bytes >> 20, directory.display()),
        Err(error) => format!("{error:#}"),
    };
    format!("{}, {}", of(build), of(&tests))
}

/// The number below the heading.
fn free(df: &str) -> Option<u64> {
    df.lines().nth(1)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_bytes_are_read() {
        assert_eq!(free("     Avail\n66043617280\n"), Some(66_043_617_280));
        assert_eq!(free(""), None);
    }

    #[test]
    fn a_log_says_what_is_left_to_the_build_and_to_the_tests() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let told = told(here);
        assert_eq!(told.matches(" MiB left in ").count(), 2, "{told}");
        assert!(told.contains(env!("CARGO_MANIFEST_DIR")), "{told}");
    }

    #[test]
    fn too_little_room_is_said_with_what_to_do() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(ensure(here, 1).is_ok());
        let error = ensure(here, u64::MAX).expect_err("no disk is so large");
        assert!(error.to_string().contains("SIFR_CACHE"));
    }
}
