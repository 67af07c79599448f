//! The options on the kernel command line.
//!
//! Owns: their names, values and errors. Refuses: other people's options, which it skips.

use std::net::{IpAddr, SocketAddr};

use storage::mirrors::Layout;
use types::PublicKey;
use vault::sealed::{Recipient, SealError};

/// Longest command line that is read: the kernel's own limit on x86 is 2048.
pub(crate) const CMDLINE_MAX: usize = 4096;

/// What happens after a panic of PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum OnPanic {
    /// After the kernel's pause (`CONFIG_PANIC_TIMEOUT`), so that the text can be read.
    #[default]
    Reboot,
    /// Stay, for a person with a screen.
    Halt,
}

/// Whether pools that are made are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Encrypt {
    /// Where there is a TPM 2.0 to keep the key.
    #[default]
    Auto,
    Off,
    /// Rather no pool than one in the clear.
    Required,
    /// What was asked for cannot be read: no pool is made in the clear that was perhaps not to be.
    Unclear,
}

/// Whose key opens encrypted pools without this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum RecoveryKey {
    #[default]
    Owners,
    Of(Recipient),
    /// It cannot be read: another one in its place would be found out on the day that it is needed.
    Unclear,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Options {
    pub(crate) owner: Option<PublicKey>,
    pub(crate) ntp: Option<SocketAddr>,
    pub(crate) on_panic: OnPanic,
    pub(crate) encrypt: Encrypt,
    pub(crate) recovery: RecoveryKey,
    /// How blank disks become pools.
    pub(crate) disks: Layout,
    /// Options of ours that could not be read: shown, never guessed.
    pub(crate) errors: Vec<String>,
}

/// Reads `sifr.owner=`, `sifr.ntp=`, `sifr.panic=`, `sifr.encrypt=`, `sifr.recovery=` and `sifr.disks=`; an unknown `sifr.` option is an error.
pub(crate) fn parse(cmdline: &str) -> Options {
    let mut options = Options::default();
    for word in cmdline.split_ascii_whitespace() {
        let Some(option) = word.strip_prefix("sifr.") else {
            continue;
        };
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        if let Err(error) = set(&mut options, name, value) {
            options
                .errors
                .push(format!("kernel option {word}: {error}"));
        }
    }
    options
}

fn set(options: &mut Options, name: &str, value: &str) -> Result<(), String> {
    match name {
        "owner" => {
            options.owner = Some(
                value
                    .parse()
                    .map_err(|e: types::id::IdError| e.to_string())?,
            )
        }
        "ntp" => {
            options.ntp = Some(time_server(value).ok_or("not an IP address with an optional port")?)
        }
        "panic" => {
            options.on_panic = match value {
                "reboot" => OnPanic::Reboot,
                "halt" => OnPanic::Halt,
                _ => return Err("use reboot or halt".to_owned()),
            }
        }
        "encrypt" => {
            options.encrypt = match value {
                "auto" => Encrypt::Auto,
                "off" => Encrypt::Off,
                "required" => Encrypt::Required,
                _ => Encrypt::Unclear,
            };
            if options.encrypt == Encrypt::Unclear {
                return Err("use auto, off or required".to_owned());
            }
        }
        "disks" => {
            options.disks = match value {
                "single" => Layout::Single,
                "mirror" => Layout::Mirror,
                _ => return Err("use single or mirror".to_owned()),
            }
        }
        "recovery" => {
            let key = value.parse().map(RecoveryKey::Of);
            options.recovery = *key.as_ref().unwrap_or(&RecoveryKey::Unclear);
            key.map_err(|error: SealError| error.to_string())?;
        }
        _ => {
            return Err(
                "there is no such option: sifr.owner, sifr.ntp, sifr.panic, sifr.encrypt, sifr.recovery and sifr.disks exist"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

fn time_server(value: &str) -> Option<SocketAddr> {
    value.parse().ok().or_else(|| {
        Some(SocketAddr::new(
            value.parse::<IpAddr>().ok()?,
            net::time::PORT,
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_options_are_read_and_others_are_skipped() {
        let (key, recovery) = (PublicKey([7; 32]), Recipient([8; 32]));
        let options = parse(&format!(
            "console=ttyS0 sifr.owner={key} quiet sifr.ntp=10.0.2.2 sifr.panic=halt sifr.encrypt=required sifr.recovery={recovery} sifr.disks=mirror\n"
        ));
        let ntp = Some("10.0.2.2:123".parse().expect("an address"));
        assert_eq!(
            options,
            Options {
                owner: Some(key),
                ntp,
                on_panic: OnPanic::Halt,
                encrypt: Encrypt::Required,
                recovery: RecoveryKey::Of(recovery),
                disks: Layout::Mirror,
                errors: Vec::new()
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_shown_and_not_guessed() {
        let options = parse(
            "sifr.owner=me sifr.colour=red sifr.panic=perhaps sifr.encrypt=yes sifr.recovery=me sifr.disks=three",
        );
        assert_eq!((options.owner, options.errors.len()), (None, 6));
        let unclear = (Encrypt::Unclear, RecoveryKey::Unclear);
        assert_eq!((options.encrypt, options.recovery), unclear);
        assert!(options.errors[1].contains("sifr.colour=red: there is no such option"));
    }
}
