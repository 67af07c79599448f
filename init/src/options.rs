//! The node's options: what a machine is told before anybody can speak to it.
//!
//! Owns: their names, values and errors, the same wherever they are written down. Refuses: reading them from there, and
//! other people's options, which it skips.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use net::site::{Draft, Site};
use storage::mirrors::Layout;
use types::PublicKey;
use types::proxy::masked;
use types::site::{OptionPlace, Stated};
use vault::sealed::{Recipient, SealError};

/// Longest command line that is read: the kernel's own limit on x86 is 2048.
pub(crate) const CMDLINE_MAX: usize = 4096;

/// Longest name of a GPT partition (UEFI 2.10, 5.3.3): 36 units of UTF-16.
const PARTITION_NAME_MAX: usize = 36;

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

/// Which partition has more options.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Wish {
    /// One that has the usual name, where there is one.
    #[default]
    Usual,
    /// None, whatever is plugged in.
    Off,
    Named(String),
    /// What was asked for cannot be read: none is read in its place.
    Unclear,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Options {
    pub(crate) owner: Option<PublicKey>,
    pub(crate) on_panic: OnPanic,
    pub(crate) encrypt: Encrypt,
    pub(crate) recovery: RecoveryKey,
    /// How blank disks become pools.
    pub(crate) disks: Layout,
    /// The node's own network.
    pub(crate) network: Network,
    /// What the owner has set over the API does not count in this boot.
    pub(crate) network_reset: bool,
    /// Where else options stand.
    pub(crate) config: Wish,
    /// Options of ours that could not be read: shown, never guessed.
    pub(crate) errors: Vec<String>,
}

/// What options say of the node's own network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Network {
    pub(crate) site: Site,
    /// A time server that is asked before whom the network names.
    pub(crate) ntp: Option<SocketAddr>,
    /// Each of them that counts, and where it stands.
    pub(crate) stated: Vec<Stated>,
}

/// Lines of options; what follows a `#` is not read.
pub(crate) const FILE: &str = "/etc/sifr/options";

/// Reads the kernel command line alone.
pub(crate) fn parse(cmdline: &str) -> Options {
    read(&[(OptionPlace::CommandLine, cmdline)])
}

/// Reads all places in their order: what a later one says of an option counts. An unknown `sifr.` option is an error. So is it where a
/// later place contradicts a partition: whoever plugs it in meant something else.
pub(crate) fn read(places: &[(OptionPlace, &str)]) -> Options {
    let mut options = Options::default();
    let mut plugged: BTreeMap<&str, &str> = BTreeMap::new();
    let mut site = Draft::default();
    for (place, text) in places {
        let (is_own, may_set) = match place {
            OptionPlace::File | OptionPlace::Partition => (true, true),
            OptionPlace::Owner => (true, false),
            OptionPlace::Smbios | OptionPlace::CommandLine => (false, true),
        };
        let lines = text.lines().map(|line| match is_own {
            true => line.split('#').next().unwrap_or_default(),
            false => line,
        });
        for word in lines.flat_map(str::split_ascii_whitespace) {
            let Some(option) = word.strip_prefix("sifr.") else {
                if is_own {
                    let error = "options begin with sifr.";
                    options.errors.push(told(*place, word, error));
                }
                continue;
            };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match place {
                OptionPlace::Partition => drop(plugged.insert(name, value)),
                _ if plugged.remove(name).is_some_and(|there| there != value) => {
                    let error = "the options partition says otherwise, and does not count: take it out there or here";
                    options.errors.push(told(*place, word, error));
                }
                _ => {}
            }
            let set = match of_network(&mut options.network, &mut site, (name, value), *place) {
                Some(set) => set.map(|()| options.network.state(word, name, *place)),
                None if !may_set => Err(
                    "only the network is set so: sifr.net.<link>.<key>, sifr.dns, sifr.ntp and sifr.proxy"
                        .to_owned(),
                ),
                None if name == "panic" && *place != OptionPlace::CommandLine => {
                    Err("it is read from the kernel command line only".to_owned())
                }
                None if name == "config" && *place == OptionPlace::Partition => {
                    Err("it says which partition is read, and stands in another place".to_owned())
                }
                None => set(&mut options, name, value),
            };
            if let Err(error) = set {
                options.errors.push(told(*place, word, &error));
            }
        }
    }
    let (site, errors) = site.site();
    options.network.site = site;
    options.errors.extend(errors);
    options
}

/// An error as it may be shown: where a password may stand in the word, neither the word is shown nor what quotes it.
fn told(place: OptionPlace, word: &str, error: &str) -> String {
    let shown = masked(word);
    let is_proxys = word.split('=').next() == Some(types::proxy::OPTION);
    let error = match shown == word || is_proxys {
        true => error,
        false => "there is no such option, or this is no value of it",
    };
    format!("{place} {shown}: {error}")
}

/// What the owner has signed, whole: with one error nothing of it counts.
pub(crate) fn of_the_owner(words: &[String]) -> Result<Network, Vec<String>> {
    let options = read(&[(OptionPlace::Owner, &words.join("\n"))]);
    match options.errors.as_slice() {
        [] => Ok(options.network),
        _ => Err(options.errors),
    }
}

impl Network {
    /// A later one replaces the earlier, and keeps its place among the links.
    fn state(&mut self, word: &str, name: &str, from: OptionPlace) {
        let named = |stated: &&mut Stated| {
            let option = stated.option.strip_prefix("sifr.").unwrap_or_default();
            option.split('=').next() == Some(name)
        };
        let option = masked(word);
        let new = Stated { option, from };
        match self.stated.iter_mut().find(named) {
            Some(old) => *old = new,
            None => self.stated.push(new),
        }
    }
}

/// `None`: the option is none of the network's.
fn of_network(
    network: &mut Network,
    site: &mut Draft,
    (name, value): (&str, &str),
    place: OptionPlace,
) -> Option<Result<(), String>> {
    Some(match (name, name.strip_prefix("net.")) {
        (_, Some(link)) => site.set_link(link, value),
        ("dns", _) => site.set_dns(value),
        ("proxy", _) if place == OptionPlace::CommandLine && value.contains('@') => {
            site.spoil_proxy();
            Err("a password stands in another place (docs/site.md): the kernel shows its command line to all, and `sifr node dmesg` does".to_owned())
        }
        ("proxy", _) => site.set_proxy(value),
        ("proxy.except", _) => site.set_proxy_except(value),
        ("ntp", _) => match time_server(value) {
            None => Err("not an IP address with an optional port".to_owned()),
            server => {
                network.ntp = server;
                Ok(())
            }
        },
        _ => return None,
    })
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
        "net" => {
            if value != "reset" {
                return Err("use reset, or sifr.net.<link>.<key>=<value>".to_owned());
            }
            options.network_reset = true;
        }
        "config" => {
            options.config = wish(value);
            if options.config == Wish::Unclear {
                return Err(format!(
                    "use off, or the name of a GPT partition, of at most {PARTITION_NAME_MAX} letters"
                ));
            }
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
                "there is no such option: sifr.owner, sifr.net, sifr.dns, sifr.ntp, sifr.proxy, sifr.config, sifr.panic, sifr.encrypt, sifr.recovery and sifr.disks exist"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

fn wish(value: &str) -> Wish {
    match value {
        "off" => Wish::Off,
        name if (1..=PARTITION_NAME_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Wish::Named(name.to_owned())
        }
        _ => Wish::Unclear,
    }
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
    use types::proxy::{Egress, Way};

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
                on_panic: OnPanic::Halt,
                encrypt: Encrypt::Required,
                recovery: RecoveryKey::Of(recovery),
                disks: Layout::Mirror,
                network: Network {
                    ntp,
                    stated: vec![Stated {
                        option: "sifr.ntp=10.0.2.2".to_owned(),
                        from: OptionPlace::CommandLine,
                    }],
                    ..Network::default()
                },
                network_reset: false,
                config: Wish::Usual,
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
            assert_eq!(options.network.ntp, expected.parse().ok());
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
            (OptionPlace::File, file),
            (OptionPlace::Smbios, smbios),
            (OptionPlace::CommandLine, "quiet sifr.net.eth0.mtu=1400"),
        ];
        let options = read(&places);
        assert_eq!(options.errors, [""; 0]);
        let stated = |option: &str, from| Stated {
            option: option.to_owned(),
            from,
        };
        let expected = [
            stated("sifr.net.eth0.address=192.0.2.7/24", OptionPlace::File),
            stated("sifr.net.eth0.mtu=1400", OptionPlace::CommandLine),
            stated("sifr.net.eth0.gateway=192.0.2.1", OptionPlace::Smbios),
        ];
        assert_eq!(options.network.stated, expected);
        let links = options.network.site.links.expect("a link");
        assert_eq!((links.len(), links[0].mtu), (1, Some(1400)));
        assert_eq!(links[0].addresses, ["192.0.2.7/24".parse().expect("one")]);
        assert_eq!(links[0].gateway, Some([192, 0, 2, 1].into()));
    }

    #[test]
    fn what_the_owner_sets_is_the_network_and_nothing_else_and_counts_whole() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let good = words(&["sifr.net.eth0.address=192.0.2.7/24", "sifr.ntp=192.0.2.9"]);
        let network = of_the_owner(&good).expect("a network");
        assert_eq!(network.stated.len(), 2);
        assert!(network.stated.iter().all(|s| s.from == OptionPlace::Owner));
        assert_eq!(of_the_owner(&[]), Ok(Network::default()));
        for (bad, says) in [
            ("sifr.owner=ed25519:00", "only the network"),
            ("sifr.panic=halt", "only the network"),
            ("sifr.net=reset", "only the network"),
            ("sifr.net.eth0.adress=192.0.2.8/24", "there is no such key"),
            ("net.eth0.dhcp=on", "options begin with sifr."),
            ("sifr.net.eth0.gateway=198.51.100.1", "lies in no network"),
        ] {
            let all = [good.clone(), words(&[bad])].concat();
            let errors = of_the_owner(&all).expect_err(bad);
            assert!(errors[0].contains(says), "{errors:?}");
        }
    }

    #[test]
    fn a_proxy_is_read_from_all_places_and_its_password_is_shown_by_none() {
        let read_one = |place, text: &str| read(&[(place, text)]);
        let word = "sifr.proxy=http://node:secret@proxy.example:3128 sifr.proxy.except=.lan";
        let options = read_one(OptionPlace::File, word);
        assert_eq!(options.errors, [""; 0]);
        let egress = &options.network.site.egress;
        assert!(matches!(egress.way("a.example"), Way::By(by) if by.at() == "proxy.example:3128"));
        assert_eq!(egress.way("a.lan"), Way::Direct);
        let shown = "sifr.proxy=http://…@proxy.example:3128";
        assert_eq!(options.network.stated[0].option, shown);
        assert!(!format!("{options:?}").contains("secret"));
        // The kernel shows its command line on every console before anybody could hide it.
        for (place, text, says) in [
            (OptionPlace::CommandLine, word, "another place"),
            (
                OptionPlace::File,
                "sifr.proxy=http://node:secret@proxy.example",
                "the port",
            ),
            (
                OptionPlace::File,
                "sifr.proxy=http://node:secret@a:1 sifr.proxy.except=a/b",
                "store.example.org",
            ),
            (
                OptionPlace::Owner,
                "sifr.proxy=https://node:secret@a:1",
                "write http://",
            ),
        ] {
            let options = read_one(place, text);
            assert_eq!(options.network.site.egress, Egress::Unclear, "{text}");
            assert!(options.errors[0].contains(says), "{:?}", options.errors);
            assert!(!format!("{options:?}").contains("secret"));
        }
        for misplaced in [
            "sifr.dns=http://node:secret@a:1",
            "http://node:secret@a:1",
            "sifr.prxy=u:secret@a:1",
        ] {
            let options = read_one(OptionPlace::File, misplaced);
            assert!(
                !format!("{options:?}").contains("secret"),
                "{:?}",
                options.errors
            );
            assert_eq!(options.errors.len(), 1);
        }
        let alone = read_one(OptionPlace::File, "sifr.proxy.except=.lan");
        assert!(alone.errors[0].contains("no sifr.proxy is named"));
        let places = [
            (OptionPlace::File, word),
            (OptionPlace::CommandLine, "sifr.proxy=off"),
        ];
        assert_eq!(read(&places).network.site.egress, Egress::Direct);
    }

    #[test]
    fn a_partition_is_named_or_kept_out_by_the_other_places_alone_and_contradicts_none_of_them() {
        for (line, wish) in [
            ("", Wish::Usual),
            ("sifr.config=off", Wish::Off),
            ("sifr.config=rack-7", Wish::Named("rack-7".to_owned())),
        ] {
            let options = parse(line);
            assert_eq!(
                (options.config, options.errors),
                (wish, Vec::new()),
                "{line}"
            );
        }
        let long = format!("sifr.config={}", "x".repeat(37));
        for bad in ["sifr.config=", &long] {
            let options = parse(bad);
            assert!(options.config == Wish::Unclear && options.errors[0].contains("off"));
        }
        let key = PublicKey([7; 32]);
        let plugged = format!(
            "# stick\r\nsifr.owner={key}\r\nsifr.config=other\nsifr.dns=192.0.2.53\nsifr.net.eth0.mtu=1400 sifr.colour=red\nsifr.panic=halt"
        );
        let line = "sifr.dns=192.0.2.53 sifr.net.eth0.mtu=9000";
        let options = read(&[
            (OptionPlace::Partition, &plugged),
            (OptionPlace::CommandLine, line),
        ]);
        assert_eq!((options.owner, options.config), (Some(key), Wish::Usual));
        let expected = [
            "options partition sifr.config=other: it says which partition",
            "options partition sifr.colour=red: there is no such option",
            "options partition sifr.panic=halt: it is read from the kernel command line only",
            "kernel option sifr.net.eth0.mtu=9000: the options partition says otherwise",
        ];
        assert_eq!(options.errors.len(), expected.len(), "{:?}", options.errors);
        for (error, begin) in options.errors.iter().zip(expected) {
            assert!(error.starts_with(begin), "{error}");
        }
        let links = options.network.site.links.expect("a link");
        assert_eq!(links[0].mtu, Some(9000));
    }

    #[test]
    fn a_boot_may_be_told_not_to_count_what_the_owner_has_set() {
        assert!(parse("sifr.net=reset").network_reset);
        let options = parse("sifr.net=on");
        assert!(!options.network_reset && options.errors[0].contains("use reset"));
        // It describes no link.
        assert_eq!(parse("sifr.net=reset").network, Network::default());
    }

    #[test]
    fn an_error_names_the_place_that_it_stands_in() {
        let places = [
            (OptionPlace::File, "net.eth0.dhcp=on\nsifr.panic=halt"),
            (OptionPlace::Smbios, "sifr.net.eth0.adress=192.0.2.7/24"),
            (
                OptionPlace::CommandLine,
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
