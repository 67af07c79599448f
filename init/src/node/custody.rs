//! The keys of this node's disks: what the owner asks for, and what the TPM gives.
//!
//! Owns: the choice whether pools are encrypted, and to whom their recovery is sealed. Refuses: encrypting a pool that the
//! owner could not open without this machine, and being silent about one in the clear.

use std::fs::File;
use std::path::Path;

use storage::crypt::{Keys, Wish};
use types::PublicKey;
use vault::Secret;
use vault::sealed::Recipient;
use vault::tpm::{Sealed, Tpm, TpmError};

use crate::cmdline::{Encrypt, Options};

/// The kernel makes it for a TPM 2.0 alone; it takes turns of several programs.
const TPM: &str = "/dev/tpmrm0";

#[derive(Debug, Clone)]
pub(crate) struct Custody {
    wish: Wish,
}

impl Custody {
    pub(crate) fn new(options: &Options, owner: Option<&PublicKey>) -> Self {
        let tpm = || match Path::new(TPM).exists() {
            false => Err("this machine shows no TPM 2.0".to_owned()),
            true => with_tpm(|tpm| tpm.register().map(drop)),
        };
        let of_owner = || owner.and_then(|owner| Recipient::of_ed25519(&owner.0));
        let recovery = options.recovery.or_else(of_owner);
        Self {
            wish: wish(options.encrypt, tpm, recovery),
        }
    }

    /// Why pools are made in the clear, if they are.
    pub(crate) fn problem(&self) -> Option<String> {
        match &self.wish {
            Wish::Encrypt { .. } => None,
            Wish::Plain { because } => Some(format!("{because}: pools are made in the clear")),
            Wish::Required { but } => {
                Some(format!("{but}: no pool is made (sifr.encrypt=required)"))
            }
        }
    }
}

fn wish(
    asked: Encrypt,
    tpm: impl FnOnce() -> Result<(), String>,
    recovery: Option<Recipient>,
) -> Wish {
    if asked == Encrypt::Off {
        let because = "switched off by sifr.encrypt=off".to_owned();
        return Wish::Plain { because };
    }
    let ready = tpm().and_then(|()| {
        recovery.ok_or_else(|| {
            "there is no key to recover with: sifr.owner or sifr.recovery".to_owned()
        })
    });
    match (ready, asked) {
        (Ok(recovery), _) => Wish::Encrypt { recovery },
        (Err(but), Encrypt::Required) => Wish::Required { but },
        (Err(because), Encrypt::Auto | Encrypt::Off) => Wish::Plain { because },
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

    const KEY: Option<Recipient> = Some(Recipient([9; 32]));

    fn none() -> Result<(), String> {
        Err("no TPM".to_owned())
    }

    #[test]
    fn pools_are_encrypted_where_a_tpm_and_a_recovery_key_are_and_else_that_is_said() {
        for asked in [Encrypt::Auto, Encrypt::Required] {
            let recovery = Recipient([9; 32]);
            assert_eq!(wish(asked, || Ok(()), KEY), Wish::Encrypt { recovery });
        }
        for (tpm, key) in [(none as fn() -> Result<(), String>, KEY), (|| Ok(()), None)] {
            assert!(matches!(wish(Encrypt::Auto, tpm, key), Wish::Plain { .. }));
            assert!(matches!(
                wish(Encrypt::Required, tpm, key),
                Wish::Required { .. }
            ));
        }
        let off = wish(Encrypt::Off, || panic!("it is not asked"), KEY);
        assert!(matches!(off, Wish::Plain { .. }));
        let said = Custody { wish: off }.problem().expect("said aloud");
        assert!(said.contains("in the clear"), "{said}");
    }
}
