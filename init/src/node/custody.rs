//! The keys of this node's disks: what the owner asks for, and what the TPM gives.
//!
//! Owns: the choice whether pools are encrypted, and to whom their recovery is sealed. Refuses: encrypting a pool that the
//! owner could not open without this machine, and being silent about one in the clear.

use std::fs::File;
use std::path::Path;

use storage::crypt::{ClearPools, Keys, Wish};
use types::PublicKey;
use vault::Secret;
use vault::sealed::Recipient;
use vault::tpm::{Sealed, Tpm, TpmError};

use crate::options::{Encrypt, Options, RecoveryKey};

/// The kernel makes it for a TPM 2.0 alone; it takes turns of several programs.
const TPM: &str = "/dev/tpmrm0";

#[derive(Debug, Clone)]
pub(crate) struct Custody {
    wish: Wish,
    clear: ClearPools,
}

impl Custody {
    pub(crate) fn new(options: &Options, owner: Option<&PublicKey>) -> Self {
        let tpm = || match Path::new(TPM).exists() {
            false => Err("this machine shows no TPM 2.0".to_owned()),
            true => with_tpm(|tpm| tpm.register().map(drop)),
        };
        let recovery = match options.recovery {
            RecoveryKey::Of(key) => Ok(key),
            RecoveryKey::Unclear => Err("sifr.recovery cannot be read"),
            RecoveryKey::Owners => owner
                .and_then(|owner| Recipient::of_ed25519(&owner.0))
                .ok_or("there is no key to recover with: sifr.owner or sifr.recovery"),
        };
        Self {
            wish: wish(options.encrypt, tpm, recovery),
            clear: clear(options.encrypt),
        }
    }

    /// Why pools are made in the clear, if they are.
    pub(crate) fn problem(&self) -> Option<String> {
        match &self.wish {
            Wish::Encrypt { .. } => None,
            Wish::Plain { because } => Some(format!("{because}: pools are made in the clear")),
            Wish::Required { but } => {
                let used = match self.clear {
                    ClearPools::Refused => {
                        ", and none in the clear is used (sifr.encrypt=required)"
                    }
                    ClearPools::Used => "",
                };
                Some(format!("{but}: no pool is made{used}"))
            }
        }
    }
}

fn clear(asked: Encrypt) -> ClearPools {
    match asked {
        Encrypt::Required => ClearPools::Refused,
        Encrypt::Auto | Encrypt::Off | Encrypt::Unclear => ClearPools::Used,
    }
}

fn wish(
    asked: Encrypt,
    tpm: impl FnOnce() -> Result<(), String>,
    recovery: Result<Recipient, &str>,
) -> Wish {
    if asked == Encrypt::Off {
        let because = "switched off by sifr.encrypt=off".to_owned();
        return Wish::Plain { because };
    }
    match (tpm(), recovery, asked) {
        (Ok(()), Ok(recovery), _) => Wish::Encrypt { recovery },
        (Ok(()), Err(but), _) => {
            let but = but.to_owned();
            Wish::Required { but }
        }
        (Err(but), _, Encrypt::Required) => Wish::Required { but },
        (Err(but), _, Encrypt::Unclear) => Wish::Required {
            but: format!("{but}, and sifr.encrypt cannot be read"),
        },
        (Err(because), _, Encrypt::Auto | Encrypt::Off) => Wish::Plain { because },
    }
}

fn with_tpm<T>(work: impl FnOnce(&mut Tpm<File>) -> Result<T, TpmError>) -> Result<T, String> {
    let device = File::options().read(true).write(true).open(TPM);
    let device = device.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "this machine shows no TPM 2.0".to_owned(),
        _ => format!("open {TPM}: {error}"),
    })?;
    work(&mut Tpm::new(device)).map_err(|error| sys::error::chain(&error))
}

impl Keys for Custody {
    fn wish(&self) -> Wish {
        self.wish.clone()
    }

    fn clear_pools(&self) -> ClearPools {
        self.clear
    }

    fn seal(&self, secret: &Secret) -> Result<Sealed, String> {
        with_tpm(|tpm| tpm.seal(secret))
    }

    fn unseal(&self, sealed: &Sealed) -> Result<Secret, String> {
        with_tpm(|tpm| tpm.unseal(sealed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Result<Recipient, &str> = Ok(Recipient([9; 32]));

    fn none() -> Result<(), String> {
        Err("no TPM".to_owned())
    }

    #[test]
    fn pools_are_encrypted_where_a_tpm_and_a_recovery_key_are_and_else_that_is_said() {
        for asked in [Encrypt::Auto, Encrypt::Required] {
            let recovery = Recipient([9; 32]);
            assert_eq!(wish(asked, || Ok(()), KEY), Wish::Encrypt { recovery });
        }
        assert!(matches!(wish(Encrypt::Auto, none, KEY), Wish::Plain { .. }));
        for (tpm, key) in [
            (none as fn() -> Result<(), String>, KEY),
            (|| Ok(()), Err("no key")),
        ] {
            let made = wish(Encrypt::Required, tpm, key);
            assert!(matches!(made, Wish::Required { .. }), "{made:?}");
        }
        let off = wish(Encrypt::Off, || panic!("it is not asked"), KEY);
        assert!(matches!(off, Wish::Plain { .. }));
        let custody = Custody {
            wish: off,
            clear: clear(Encrypt::Off),
        };
        let said = custody.problem().expect("said aloud");
        assert!(said.contains("in the clear"), "{said}");
        assert_eq!(custody.clear_pools(), ClearPools::Used);
    }

    #[test]
    fn an_option_that_was_mistyped_makes_nothing_in_the_clear_and_takes_no_pool_away() {
        let made = wish(Encrypt::Unclear, none, KEY);
        assert!(matches!(made, Wish::Required { .. }), "{made:?}");
        assert_eq!(clear(Encrypt::Unclear), ClearPools::Used);
        assert_eq!(clear(Encrypt::Required), ClearPools::Refused);
    }

    #[test]
    fn a_recovery_key_that_was_mistyped_is_not_replaced_by_the_owners() {
        let options = crate::options::parse("sifr.recovery=x25519:12");
        let owner = PublicKey([0x58; 32]);
        let custody = Custody::new(&options, Some(&owner));
        assert!(
            !matches!(custody.wish(), Wish::Encrypt { .. }),
            "{custody:?}"
        );
        let unread = wish(Encrypt::Auto, || Ok(()), Err("it cannot be read"));
        assert!(matches!(unread, Wish::Required { .. }), "{unread:?}");
    }
}
