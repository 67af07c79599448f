//! The HTTP proxy of a site, by which a node asks servers elsewhere.
//!
//! Owns: the form of `sifr.proxy` and `sifr.proxy.except`, whom it is not asked for, and that no message shows its password.
//! Refuses: connections (`stores` makes them), and what is no character of a host, a name or a password: nothing that stands here
//! can begin another line or another header.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::network::{RANGES, SUBNET_PREFIX};
use crate::{AnyCidr, Cidr};

/// The option that names the proxy.
pub const OPTION: &str = "sifr.proxy";
/// Longest name of a host (RFC 1035 section 2.3.4), and of one of its parts.
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;
/// Longest user and longest password: longer than any that a person or a program makes, short enough for one line of a header.
const LOGIN_MAX: usize = 255;
/// Exceptions of one site: more than any list of a company's own domains and networks that is written by hand.
pub const EXCEPT_MAX: usize = 64;

const FORM: &str = "write http://host:port or http://user:password@host:port, in user and password % and two hexadecimal digits for what is no letter, digit, - . _ or ~";

/// How a node's own HTTP goes out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// To each server by itself.
    #[default]
    Direct,
    By(Proxy),
    /// What is written of the proxy cannot be read: nobody is asked in a way that was perhaps not to be.
    Unclear,
}

/// Which way one host is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    Direct,
    By(&'a Proxy),
    Unclear,
}

impl Egress {
    /// `host` as a URL has it, an address of IPv6 in brackets.
    pub fn way(&self, host: &str) -> Way<'_> {
        let host = Host::of_url(host);
        match self {
            _ if host.is_never_by_proxy() => Way::Direct,
            Self::Direct => Way::Direct,
            Self::Unclear => Way::Unclear,
            Self::By(proxy) if proxy.except.iter().any(|except| except.holds(&host)) => Way::Direct,
            Self::By(proxy) => Way::By(proxy),
        }
    }
}

/// A proxy, and who is asked without it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Proxy {
    host: Host,
    port: u16,
    login: Option<Login>,
    except: Vec<Except>,
}

/// As one process of a node tells another: nowhere else, for it has the password.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    url: String,
    except: Vec<String>,
}

/// Who may use it.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    user: String,
    password: String,
}

/// A host that is asked without the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Except {
    /// This name alone.
    Name(String),
    /// What ends so, written with a dot before it: the domain and all in it.
    Domain(String),
    /// Addresses in it, where a URL has an address. Names are not looked up for this.
    Prefix(AnyCidr),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Name(String),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("{FORM}")]
    Form,
    #[error("{FORM}: what stands between http:// and the port is no host's name or address")]
    Host,
    #[error("{FORM}: the port is missing, or not 1 to 65535")]
    Port,
    #[error(
        "{FORM}: user and password have up to {LOGIN_MAX} bytes each, and none that ends a line"
    )]
    Login,
    #[error(
        "names (store.example.org), domains (.example.org) and prefixes (192.0.2.0/24) are excepted, with commas between"
    )]
    Except,
    #[error("there are more than {EXCEPT_MAX} exceptions")]
    Many,
}

impl Proxy {
    /// The proxy with these in place of its exceptions.
    pub fn except(self, except: Vec<Except>) -> Self {
        Self { except, ..self }
    }

    /// Where it is, for a URL or a person: without user and password.
    pub fn at(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Whether that is the machine that asks, or an address of one link only, which is another machine on each.
    pub fn is_near(&self) -> bool {
        self.host.is_near()
    }

    /// As it is written, but for user and password.
    fn shown(&self) -> String {
        let login = if self.login.is_some() { "…@" } else { "" };
        format!("http://{login}{}", self.at())
    }
}

impl Login {
    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn password(&self) -> &str {
        &self.password
    }
}

/// Shows no password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("url", &self.shown())
            .field("except", &self.except)
            .finish()
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login")
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let rest = text.strip_prefix("http://").ok_or(ProxyError::Form)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, place) = match rest.rsplit_once('@') {
            Some((login, place)) => (Some(login.parse()?), place),
            None => (None, rest),
        };
        let (host, port) = place.rsplit_once(':').ok_or(ProxyError::Port)?;
        let host = Host::parse(host).ok_or(ProxyError::Host)?;
        // A number's own parser would take a sign and zeros in front.
        let plain = port.starts_with(|c: char| matches!(c, '1'..='9'));
        let port = port.parse().ok().filter(|_| plain);
        Ok(Self {
            host,
            port: port.ok_or(ProxyError::Port)?,
            login,
            except: Vec::new(),
        })
    }
}

impl FromStr for Login {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        let (user, password) = text.split_once(':').ok_or(ProxyError::Login)?;
        let user = decoded(user).filter(|user| !user.is_empty() && !user.contains(':'));
        Ok(Self {
            user: user.ok_or(ProxyError::Login)?,
            password: decoded(password).ok_or(ProxyError::Login)?,
        })
    }
}

/// RFC 3986 section 3.2.1, of text without control characters.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let value = digit(digits[0])? * 16 + digit(digits[1])?;
                u8::try_from(value).ok()?
            }
            b'!' | b'$' | b'&'..=b',' | b'-'..=b'.' | b':' | b';' | b'=' | b'_' | b'~' => *first,
            letter if letter.is_ascii_alphanumeric() => *letter,
            _ => return None,
        });
    }
    let text = String::from_utf8(bytes).ok()?;
    (text.len() <= LOGIN_MAX && !text.chars().any(char::is_control)).then_some(text)
}

fn encoded(text: &str) -> String {
    let each = text.bytes().map(|byte| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        letter if letter.is_ascii_alphanumeric() => char::from(letter).to_string(),
        other => format!("%{other:02X}"),
    });
    each.collect()
}

impl From<Proxy> for Written {
    fn from(proxy: Proxy) -> Self {
        let login = proxy.login.as_ref().map_or(String::new(), |login| {
            format!("{}:{}@", encoded(&login.user), encoded(&login.password))
        });
        Self {
            url: format!("http://{login}{}", proxy.at()),
            except: proxy.except.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<Written> for Proxy {
    type Error = ProxyError;

    fn try_from(written: Written) -> Result<Self, ProxyError> {
        let proxy: Self = written.url.parse()?;
        Ok(proxy.except(exceptions(&written.except)?))
    }
}

/// Of `sifr.proxy.except`.
pub fn exceptions<T: AsRef<str>>(each: &[T]) -> Result<Vec<Except>, ProxyError> {
    if each.len() > EXCEPT_MAX {
        return Err(ProxyError::Many);
    }
    each.iter().map(|text| text.as_ref().parse()).collect()
}

impl FromStr for Except {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, ProxyError> {
        if let Some(domain) = text.strip_prefix('.') {
            return name(domain).map(Self::Domain).ok_or(ProxyError::Except);
        }
        if text.contains('/') {
            let prefix: AnyCidr = text.parse().map_err(|_| ProxyError::Except)?;
            return match prefix == prefix.network() {
                true => Ok(Self::Prefix(prefix)),
                false => Err(ProxyError::Except),
            };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Prefix(AnyCidr::host(address)));
        }
        name(text).map(Self::Name).ok_or(ProxyError::Except)
    }
}

impl fmt::Display for Except {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Domain(domain) => write!(f, ".{domain}"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl Except {
    fn holds(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Name(name), Host::Name(host)) => name == host,
            (Self::Domain(domain), Host::Name(host)) => is_in(host, domain),
            (Self::Prefix(prefix), Host::Address(address)) => prefix.contains(*address),
            (Self::Name(_) | Self::Domain(_), Host::Address(_))
            | (Self::Prefix(_), Host::Name(_)) => false,
        }
    }
}

fn is_in(host: &str, domain: &str) -> bool {
    let before = host.strip_suffix(domain);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// A name in small letters, which no reader takes for an address: those take numbers of any base and length (`127.1`, `0x7f`).
fn name(text: &str) -> Option<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(fits);
    let is_number = |label: &str| {
        let hex = label.strip_prefix("0x").or(label.strip_prefix("0X"));
        let digits = label.bytes().all(|b| b.is_ascii_digit());
        digits || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let whole = text.len() <= HOST_MAX && text.split('.').all(label) && !is_number(last);
    whole.then(|| text.to_ascii_lowercase())
}

impl Host {
    /// As somebody has written it.
    fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Address(address.into()));
        }
        match text.parse::<Ipv4Addr>() {
            Ok(address) => Some(Self::Address(address.into())),
            Err(_) => name(text).map(Self::Name),
        }
    }

    /// As a URL has it, which has been read: what is no address is a name.
    fn of_url(text: &str) -> Self {
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        match inner.unwrap_or(text).parse::<IpAddr>() {
            Ok(address) => Self::Address(address.to_canonical()),
            Err(_) => {
                let name = text.strip_suffix('.').unwrap_or(text);
                Self::Name(name.to_ascii_lowercase())
            }
        }
    }

    /// The node itself, or what is on one of its links only.
    fn is_near(&self) -> bool {
        match self {
            Self::Name(name) => is_in(name, "localhost"),
            Self::Address(address) => match address.to_canonical() {
                IpAddr::V4(a) => {
                    let [first, ..] = a.octets();
                    first == 0 || first >= 224 || a.is_loopback() || a.is_link_local()
                }
                IpAddr::V6(a) => {
                    let nobody = a.is_unspecified() || a.is_loopback();
                    nobody || a.is_unicast_link_local() || a.is_multicast()
                }
            },
        }
    }

    /// Who is another machine to the proxy than to the node: asked by way of it, the wrong one would answer.
    fn is_never_by_proxy(&self) -> bool {
        let is_tenants = |address: Ipv4Addr| {
            RANGES.iter().any(|(first, count)| {
                // Each holds a power of two of subnets.
                let bits = u8::try_from(count.ilog2()).unwrap_or(SUBNET_PREFIX);
                let range = Cidr::new(*first, SUBNET_PREFIX.saturating_sub(bits));
                range.is_some_and(|range| range.contains(address))
            })
        };
        let tenants = match self {
            Self::Address(IpAddr::V4(address)) => is_tenants(*address),
            Self::Address(IpAddr::V6(_)) | Self::Name(_) => false,
        };
        tenants || self.is_near()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// A word of options as it may be shown: without what could be a password, be it misspelt, or cut in two by a space.
pub fn masked(word: &str) -> String {
    let (name, value) = word.split_once('=').unwrap_or(("", word));
    if name == OPTION
        && let Ok(proxy) = value.parse::<Proxy>()
    {
        return format!("{name}={}", proxy.shown());
    }
    let is_proxys = name == OPTION && value != "off";
    if !is_proxys && !word.contains("//") && !word.contains('@') {
        return word.to_owned();
    }
    match name.starts_with("sifr.") && !name.contains(['@', '/']) {
        true => format!("{name}=…"),
        false => "…".to_owned(),
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
