//! Build identity: which Sifr this is.
//!
//! Owns: [`IDENTITY`], stamped by `build.rs`, and its text.
//! Refuses: everything else, so that any binary can depend on it.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::LazyLock;

/// Version, commit and kernel configuration of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub version: &'static str,
    /// First seven digits of the git commit, or `unknown` outside a git work tree.
    pub commit: &'static str,
    /// Tracked files differed from the commit.
    pub dirty: bool,
    /// First eight digits of the SHA-256 of all kernel fragments.
    pub kernel_config: &'static str,
}

/// This build.
pub const IDENTITY: Identity = Identity {
    version: env!("CARGO_PKG_VERSION"),
    commit: env!("SIFR_COMMIT"),
    dirty: matches!(env!("SIFR_TREE").as_bytes(), b"dirty"),
    kernel_config: env!("SIFR_KERNEL_CONFIG"),
};

/// [`IDENTITY`] without the name, for command lines that put their program's before it.
pub fn version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| IDENTITY.to_string());
    TEXT.trim_start_matches("sifr ")
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            version,
            commit,
            dirty,
            kernel_config,
        } = self;
        let changed = if *dirty { " with changes" } else { "" };
        write!(
            f,
            "sifr {version} ({commit}{changed}, kernel config {kernel_config})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_names_version_commit_and_kernel_configuration() {
        let identity = Identity {
            version: "1.2.3",
            commit: "9a08c2a",
            dirty: false,
            kernel_config: "1f2e3d4c",
        };
        assert_eq!(
            identity.to_string(),
            "sifr 1.2.3 (9a08c2a, kernel config 1f2e3d4c)"
        );
        let dirty = Identity {
            dirty: true,
            ..identity
        };
        assert_eq!(
            dirty.to_string(),
            "sifr 1.2.3 (9a08c2a with changes, kernel config 1f2e3d4c)"
        );
    }

    #[test]
    fn a_program_puts_its_own_name_before_the_version() {
        assert_eq!(format!("sifr {}", version()), IDENTITY.to_string());
    }

    #[test]
    fn this_build_is_stamped() {
        assert!(IDENTITY.commit == "unknown" || IDENTITY.commit.len() >= 7);
        assert_eq!(IDENTITY.kernel_config.len(), 8);
    }
}
