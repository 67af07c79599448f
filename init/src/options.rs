//! The node's options: what a machine is told before anybody can speak to it.
//!
//! Owns: their names, values and errors, the same wherever they are written down. Refuses: reading them from there, and
//! other people's options, which it skips.

use std::net::{IpAddr, SocketAddr};

use net::site::{Draft, Site};
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
    /// The node's own network.
    pub(crate) site: Site,
    /// Options of ours that could not be read: shown, never guessed.
    pub(crate) errors: Vec<String>,
}

/// Where options are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// [`FILE`], from a part of the initramfs that was appended to it.
    File,
    /// OEM strings of the machine's SMBIOS tables.
    Smbios,
    CommandLine,
}

/// Lines of options; what follows a `#` is not read.
pub(crate) const FILE: &str = "/etc/sifr/options";

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => FILE,
            Self::Smbios => "SMBIOS string",
            Self::CommandLine => "kernel option",
        })
    }
}

/// Reads the kernel command line alone.
pub(crate) fn parse(cmdline: &str) -> Options {
    read(&[(Place::CommandLine, cmdline)])
}

/// Reads all places in their order: what a later one says of an option counts. An unknown `sifr.` option is an error.
pub(crate) fn read(places: &[(Place, &str)]) -> Options {
    let mut options = Options::default();
    let mut site = Draft::default();
    for (place, text) in places {
        let lines = text.lines().map(|line| match place {
            Place::File => line.split('#').next().unwrap_or_default(),
            Place::Smbios | Place::CommandLine => line,
        });
        for word in lines.flat_map(str::split_ascii_whitespace) {
            let Some(option) = word.strip_prefix("sifr.") else {
                if *place == Place::File {
                    let error = "options begin with sifr.";
                    options.errors.push(format!("{place} {word}: {error}"));
                }
                continue;
            };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let set = match (name, name.strip_prefix("net."), place) {
                (_, Some(link), _) => site.set_link(link, value),
                ("dns", _, _) => site.set_dns(value),
                ("panic", _, Place::File | Place::Smbios) => {
                    Err("it is read from the kernel command line only".to_owned())
                }
                _ => set(&mut options, name, value),
            };
            if let Err(error) = set {
                options.errors.push(format!("{place} {word}: {error}"));
            }
        }
    }
    let (site, errors) = site.site();
    (options.site, options.errors) = (site, [options.errors, errors].concat());
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
                "there is no such option: sifr.owner, sifr.net, sifr.dns, sifr.ntp, sifr.panic, sifr.encrypt, sifr.recovery and sifr.disks exist"
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
                site: Site::default(),
                errors: Vec::new()
            }
        );
    }

    #[test]
    fn a_time_server_has_an_address_of_either_family_and_perhaps_a_port() {
        for (value, expected) in [
            ("2001:db8::9", "[2001:db8::9]:123"),
            ("[2001:db8::9]:1230", "[2001:db8::9]:1230"),
            ("192.0.2.9", "192.0.2.9:123"),
        ] {
            let options = parse(&format!("sifr.ntp={value}"));
            assert_eq!(options.ntp, expected.parse().ok());
        }
        for wrong in ["[2001:db8::9]", "2001:db8::9/64", "time.example"] {
            assert_eq!(parse(&format!("sifr.ntp={wrong}")).errors.len(), 1);
        }
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

    #[test]
    fn the_network_is_read_from_all_places_and_the_command_line_counts_last() {
        let file =
            "# rack 7\nsifr.net.eth0.address=192.0.2.7/24 # static\nsifr.net.eth0.mtu=9000\n";
        let smbios = "sifr.net.eth0.gateway=192.0.2.1";
        let places = [
            (Place::File, file),
            (Place::Smbios, smbios),
            (Place::CommandLine, "quiet sifr.net.eth0.mtu=1400"),
        ];
        let options = read(&places);
        assert_eq!(options.errors, [""; 0]);
        let links = options.site.links.expect("a link");
        assert_eq!((links.len(), links[0].mtu), (1, Some(1400)));
        assert_eq!(links[0].addresses, ["192.0.2.7/24".parse().expect("one")]);
        assert_eq!(links[0].gateway, Some([192, 0, 2, 1].into()));
    }

    #[test]
    fn an_error_names_the_place_that_it_stands_in() {
        let places = [
            (Place::File, "net.eth0.dhcp=on\nsifr.panic=halt"),
            (Place::Smbios, "sifr.net.eth0.adress=192.0.2.7/24"),
            (
                Place::CommandLine,
                "sifr.net.eth1.gateway=192.0.2.1 sifr.net.eth1.dhcp=off",
            ),
        ];
        let expected = [
            "/etc/sifr/options net.eth0.dhcp=on: options begin with sifr.",
            "/etc/sifr/options sifr.panic=halt: it is read from the kernel command line only",
            "SMBIOS string sifr.net.eth0.adress=192.0.2.7/24: there is no such key",
            "sifr.net.eth1: the gateway 192.0.2.1 cannot be used without an address",
        ];
        let errors = read(&places).errors;
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (error, begin) in errors.iter().zip(expected) {
            assert!(error.starts_with(begin), "{error}");
        }
    }
}
