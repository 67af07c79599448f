//! Which store a text names.
//!
//! ```text
//! /srv/store  ./store  dir:store          a directory
//! http://host[:port]/path  https://…      a plain web server
//! s3://bucket[/prefix][?endpoint=URL][&region=NAME]
//! oci://registry/repository               a registry; oci+http:// in the clear
//! ```
//!
//! Owns: the closed list of kinds, and the form of each. Refuses: logins in URLs, fragments, and to guess.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;
use types::stores::{Shard, URL_BYTES_MAX};

use crate::StoreError;

/// Where S3 is, unless an endpoint is named.
const REGION: &str = "us-east-1";
/// Longest bucket's name, of the S3 API.
const BUCKET_BYTES_MAX: usize = 63;

/// A store, of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    Directory(PathBuf),
    /// The path ends with `/`.
    Web(Url),
    S3(Bucket),
    Oci(Repository),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    pub(crate) name: String,
    /// Empty, or ends with `/`.
    pub(crate) prefix: String,
    /// `None`: Amazon's of the region.
    pub(crate) endpoint: Option<Url>,
    pub(crate) region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Name and port.
    pub(crate) registry: String,
    pub(crate) name: String,
    pub(crate) is_plain: bool,
}

/// A store and the range of chunks it has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    pub shard: Shard,
    pub location: Location,
}

impl Route {
    /// `[00-7f=]STORE`; `variable` reads the environment, for what S3's tools take from there.
    pub fn parse(
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, StoreError> {
        let (shard, url) = Shard::split(text).ok_or_else(|| {
            refuse(
                text,
                "before the = stands a range of first bytes, such as 00-7f",
            )
        })?;
        let location = Location::parse(url, variable)?;
        Ok(Self { shard, location })
    }
}

fn refuse(text: &str, problem: &str) -> StoreError {
    StoreError::Location {
        text: text.chars().take(200).collect(),
        problem: problem.to_owned(),
    }
}

impl Location {
    pub fn parse(
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, StoreError> {
        if text.is_empty() || text.len() > URL_BYTES_MAX {
            return Err(refuse(text, "it has 1 to 2048 bytes"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            let path = text.strip_prefix("dir:").unwrap_or(text);
            return Ok(Self::Directory(path.into()));
        };
        match scheme {
            "dir" => Ok(Self::Directory(rest.into())),
            "http" | "https" => web(text).map(Self::Web),
            "s3" => bucket(text, variable).map(Self::S3),
            "oci" | "oci+http" => repository(text, rest, scheme == "oci+http").map(Self::Oci),
            _ => Err(refuse(
                text,
                "write a directory, http://, https://, s3://, oci:// or oci+http://",
            )),
        }
    }

    /// Whether a node could read it: it is no directory.
    pub fn is_remote(&self) -> bool {
        !matches!(self, Self::Directory(_))
    }
}

fn web(text: &str) -> Result<Url, StoreError> {
    let mut url: Url = text
        .parse()
        .map_err(|error| refuse(text, &format!("write http://host[:port][/path]: {error}")))?;
    let plain = url.query().is_none() && url.fragment().is_none();
    // Which reads as if x were the host.
    let is_hostless = text.contains(":///");
    if !plain || is_hostless || url.host_str().is_none_or(str::is_empty) {
        return Err(refuse(text, "write http://host[:port][/path]"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(text, "logins in URLs are not supported"));
    }
    let path = format!("{}/", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

fn bucket(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Bucket, StoreError> {
    let form = "write s3://bucket[/prefix][?endpoint=URL][&region=NAME]";
    let url: Url = text.parse().map_err(|_| refuse(text, form))?;
    // The name is the host as it was written: URLs of unknown schemes keep it.
    let name = url.host_str().unwrap_or("").to_owned();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let is_name = (3..=BUCKET_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
    if !is_name || url.port().is_some() || !url.username().is_empty() || url.fragment().is_some() {
        return Err(refuse(text, form));
    }
    let (mut endpoint, mut region) = (None, None);
    for (key, value) in url.query_pairs() {
        match &*key {
            "endpoint" if endpoint.is_none() => endpoint = Some(value.into_owned()),
            "region" if region.is_none() => region = Some(value.into_owned()),
            _ => return Err(refuse(text, form)),
        }
    }
    let first = |names: [&str; 2]| names.into_iter().find_map(variable);
    let endpoint = endpoint.or_else(|| first(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let region = region.or_else(|| first(["AWS_REGION", "AWS_DEFAULT_REGION"]));
    let path = url.path().trim_matches('/');
    if path.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(refuse(text, form));
    }
    Ok(Bucket {
        name,
        prefix: match path {
            "" => String::new(),
            path => format!("{path}/"),
        },
        endpoint: endpoint.as_deref().map(web).transpose()?,
        region: region.unwrap_or_else(|| REGION.to_owned()),
    })
}

fn repository(text: &str, rest: &str, is_plain: bool) -> Result<Repository, StoreError> {
    let form = "write oci://registry/repository, without a tag; the tag is the flist's digest";
    let (registry, name) = rest.split_once('/').ok_or_else(|| refuse(text, form))?;
    let host = |b: u8| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b);
    // Distribution specification, "Pulling manifests": <name>.
    let part = |part: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        part.bytes().all(plain) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_url = format!("http://{registry}/").parse::<Url>().is_ok();
    if registry.is_empty() || !registry.bytes().all(host) || !is_url || !name.split('/').all(part) {
        return Err(refuse(text, form));
    }
    Ok(Repository {
        registry: registry.to_owned(),
        name: name.to_owned(),
        is_plain,
    })
}

impl fmt::Display for Location {
    /// The form that names the same store on every machine.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Web(url) => write!(f, "{url}"),
            Self::S3(Bucket {
                name,
                prefix,
                endpoint,
                region,
            }) => {
                write!(f, "s3://{name}/{prefix}?")?;
                if let Some(endpoint) = endpoint {
                    write!(f, "endpoint={endpoint}&")?;
                }
                write!(f, "region={region}")
            }
            Self::Oci(Repository {
                registry,
                name,
                is_plain,
            }) => {
                let scheme = if *is_plain { "oci+http" } else { "oci" };
                write!(f, "{scheme}://{registry}/{name}")
            }
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shard { first, last } = self.shard;
        if self.shard != Shard::ALL {
            write!(f, "{first:02x}-{last:02x}=")?;
        }
        self.location.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let route = Route::parse(text, &|_| None).map_err(|e| e.to_string())?;
        Ok(route.to_string())
    }

    #[test]
    fn every_kind_of_store_has_one_form_that_reads_back() {
        for (text, canonical) in [
            ("/srv/store", "/srv/store"),
            ("dir:store", "store"),
            ("dir:///srv/store", "/srv/store"),
            ("store", "store"),
            (
                "http://store.example:8080/a/",
                "http://store.example:8080/a/",
            ),
            ("https://[fd00::1]", "https://[fd00::1]/"),
            ("00-7f=https://a/b", "00-7f=https://a/b/"),
            ("s3://bucket", "s3://bucket/?region=us-east-1"),
            (
                "80-ff=s3://bucket/a/b?endpoint=http://10.0.0.2:9000&region=eu-central-1",
                "80-ff=s3://bucket/a/b/?endpoint=http://10.0.0.2:9000/&region=eu-central-1",
            ),
            ("oci://ghcr.io/team/app", "oci://ghcr.io/team/app"),
            ("oci+http://10.0.2.2:5000/a", "oci+http://10.0.2.2:5000/a"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(canonical), "{text}");
            assert_eq!(read(canonical).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn s3_takes_endpoint_and_region_from_where_its_tools_do_unless_they_are_named() {
        let variable = |name: &str| match name {
            "AWS_ENDPOINT_URL" => Some("http://a:9000".to_owned()),
            "AWS_REGION" => Some("eu-west-1".to_owned()),
            _ => None,
        };
        let read = |text| Location::parse(text, &variable).expect("valid").to_string();
        assert_eq!(
            read("s3://bucket/p"),
            "s3://bucket/p/?endpoint=http://a:9000/&region=eu-west-1"
        );
        assert_eq!(
            read("s3://bucket/p?endpoint=https://b&region=x"),
            "s3://bucket/p/?endpoint=https://b/&region=x"
        );
    }

    #[test]
    fn what_names_no_store_is_refused_with_a_form_that_does() {
        for (bad, says) in [
            ("ftp://a", "oci://"),
            ("http://", "http://host"),
            ("http:///x", ""),
            ("https://u:p@a/", "logins"),
            ("http://a/?q", "http://host"),
            ("s3://", "s3://bucket"),
            ("s3://Bucket", "s3://bucket"),
            ("s3://bucket?colour=red", "s3://bucket"),
            ("s3://k:s@bucket/", "s3://bucket"),
            ("s3://bucket?endpoint=nowhere", "http://host"),
            ("oci://registry", "oci://registry/repository"),
            ("oci://registry/App", "oci://registry/repository"),
            ("oci://registry/app:1", "oci://registry/repository"),
            ("oci://u@registry/app", "oci://registry/repository"),
            ("7f-00=http://a", "00-7f"),
            ("", "bytes"),
        ] {
            let error = read(bad).expect_err(bad);
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
