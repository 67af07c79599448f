//! The stores that a deployment names: where a node fetches the chunks of an image.
//!
//! Owns: their text form, a URL or a list of them with ranges of chunks, and the limits of both.
//! Refuses: to know what a store is (`stores` does), and paths: a node has none of its clients' directories.

use serde::{Deserialize, Serialize};

/// Most stores of one image: copies in a few places, or parts of a few machines. Each may cost a miss its time.
pub const STORES_MAX: usize = 16;
/// Longest URL, with its range.
pub const URL_BYTES_MAX: usize = 2048;
/// Longest certificates: a few authorities. An envelope has room for it.
pub const AUTHORITY_BYTES_MAX: usize = 16 << 10;

/// What a node can read.
const SCHEMES: [&str; 5] = ["http://", "https://", "s3://", "oci://", "oci+http://"];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoresError {
    #[error("{0} stores are named, 1 to {STORES_MAX} may be")]
    Count(usize),
    #[error(
        "store {0:?} is no URL of a store that a node can read: http://, https://, s3://, oci:// or oci+http://, \
         at most {URL_BYTES_MAX} bytes"
    )]
    Url(String),
    #[error(
        "store {0:?} has a login: a node reads public stores only, and a deployment is no secret"
    )]
    Login(String),
    #[error("store {0:?}: before the = stands a range of first bytes, such as 00-7f")]
    Shard(String),
    #[error("ca is not a certificate in PEM form of at most {AUTHORITY_BYTES_MAX} bytes")]
    Authority,
}

/// First bytes of the names of the chunks that a store has, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard {
    pub first: u8,
    pub last: u8,
}

impl Shard {
    pub const ALL: Self = Self {
        first: 0,
        last: u8::MAX,
    };

    pub fn holds(self, byte: u8) -> bool {
        (self.first..=self.last).contains(&byte)
    }

    /// Splits `00-7f=URL`; without a range it is all of them. `None`: what looks like a range is none.
    pub fn split(text: &str) -> Option<(Self, &str)> {
        let Some((range, url)) = text.split_once('=').filter(|(range, _)| is_range(range)) else {
            return Some((Self::ALL, text));
        };
        let plain = |hex: &str| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let byte = |hex: &str| plain(hex).then(|| u8::from_str_radix(hex, 16).ok())?;
        let (first, last) = range.split_once('-')?;
        let shard = Self {
            first: byte(first)?,
            last: byte(last)?,
        };
        (shard.first <= shard.last).then_some((shard, url))
    }
}

/// An = stands in a query as well, behind what no range has.
fn is_range(text: &str) -> bool {
    !text.contains(['/', ':', '?', '.'])
}

/// Where the chunks of an image can be fetched. In JSON one URL, a list of URLs, or an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct Stores {
    /// Each may have a range of chunks before it: `00-7f=https://…`.
    pub urls: Vec<String>,
    /// Certificate authorities in PEM, beside the public ones, for these stores alone.
    pub authority: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    One(String),
    Many(Vec<String>),
    Full(Full),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Full {
    urls: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<String>,
}

impl From<Form> for Stores {
    fn from(form: Form) -> Self {
        let (urls, authority) = match form {
            Form::One(url) => (vec![url], None),
            Form::Many(urls) => (urls, None),
            Form::Full(Full { urls, ca }) => (urls, ca),
        };
        Self { urls, authority }
    }
}

impl From<Stores> for Form {
    fn from(stores: Stores) -> Self {
        let Stores { urls, authority } = stores;
        match (<[String; 1]>::try_from(urls), authority) {
            (Ok([url]), None) => Self::One(url),
            (Err(urls), None) => Self::Many(urls),
            (Ok(url), ca) => Self::Full(Full {
                urls: url.into(),
                ca,
            }),
            (Err(urls), ca) => Self::Full(Full { urls, ca }),
        }
    }
}

impl From<&str> for Stores {
    fn from(url: &str) -> Self {
        Self {
            urls: vec![url.to_owned()],
            authority: None,
        }
    }
}

impl Stores {
    /// Checks what can be checked without knowing stores.
    pub fn check(&self) -> Result<(), StoresError> {
        if !(1..=STORES_MAX).contains(&self.urls.len()) {
            return Err(StoresError::Count(self.urls.len()));
        }
        for text in &self.urls {
            let shown = || text.chars().take(200).collect();
            let (_, url) = Shard::split(text).ok_or_else(|| StoresError::Shard(shown()))?;
            let scheme = SCHEMES.iter().find(|scheme| url.starts_with(**scheme));
            let fits = text.len() <= URL_BYTES_MAX;
            let Some(rest) = scheme.filter(|_| fits).and_then(|s| url.strip_prefix(s)) else {
                return Err(StoresError::Url(shown()));
            };
            if rest.split(['/', '?']).next().unwrap_or("").contains('@') {
                return Err(StoresError::Login(shown()));
            }
        }
        let pem = |text: &String| {
            text.len() <= AUTHORITY_BYTES_MAX && text.contains("-----BEGIN CERTIFICATE-----")
        };
        match &self.authority {
            Some(text) if !pem(text) => Err(StoresError::Authority),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Stores {
        serde_json::from_str(json).expect("stores")
    }

    #[test]
    fn one_url_a_list_and_an_object_are_read_and_written_in_the_shortest_form() {
        for json in [
            r#""http://a/""#,
            r#"["http://a/","00-7f=https://b"]"#,
            r#"{"urls":["https://a"],"ca":"x"}"#,
        ] {
            assert_eq!(serde_json::to_string(&read(json)).expect("json"), json);
        }
        assert!(serde_json::from_str::<Stores>(r#"{"urls":[],"colour":1}"#).is_err());
    }

    #[test]
    fn ranges_stand_before_urls_and_are_no_part_of_a_query() {
        let half = Shard {
            first: 0,
            last: 0x7f,
        };
        assert_eq!(
            Shard::split("00-7f=http://a/?b=c"),
            Some((half, "http://a/?b=c"))
        );
        assert!(half.holds(0x7f) && !half.holds(0x80));
        let whole = "s3://b/p?region=x";
        assert_eq!(Shard::split(whole), Some((Shard::ALL, whole)));
        for bad in [
            "7f-00=http://a",
            "0-7f=http://a",
            "00=http://a",
            "+1-7f=http://a",
        ] {
            assert_eq!(Shard::split(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_no_node_can_read_is_refused_with_the_reason() {
        let stores = |url: &str| Stores::from(url).check();
        for good in [
            "http://10.0.2.2:8000",
            "80-ff=https://a/b",
            "s3://bucket/prefix?endpoint=http://a:9000",
            "oci://ghcr.io/a/b",
        ] {
            assert_eq!(stores(good), Ok(()), "{good}");
        }
        assert!(matches!(stores("/srv/store"), Err(StoresError::Url(_))));
        assert!(matches!(stores("dir:/srv"), Err(StoresError::Url(_))));
        assert!(matches!(
            stores("https://u:p@a/"),
            Err(StoresError::Login(_))
        ));
        assert!(matches!(
            stores("zz-ff=http://a"),
            Err(StoresError::Shard(_))
        ));
        assert!(matches!(read("[]").check(), Err(StoresError::Count(0))));
        let no_pem = read(r#"{"urls":["https://a"],"ca":"x"}"#).check();
        assert_eq!(no_pem, Err(StoresError::Authority));
    }
}
