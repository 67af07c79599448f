//! Names of images in registries.
//!
//! Owns: telling such a name from a path. Refuses: to guess a registry: `nginx` may be a file, or an image of
//! any registry, so that Docker's short names need the prefix `docker://`.

use std::fmt;
use std::str::FromStr as _;

/// As skopeo, buildah and podman write it.
const TRANSPORT: &str = "docker://";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no name of an image in a registry, such as docker.io/library/nginx:1.27: {problem}"
)]
pub struct ReferenceError {
    text: String,
    problem: String,
}

/// Registry, repository, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference(pub(crate) oci_client::Reference);

impl Reference {
    /// `None`: the text names no registry, so it is a path. With `docker://` before it, what Docker leaves out
    /// is added: `docker://nginx` is `docker.io/library/nginx:latest`.
    pub fn read(text: &str) -> Option<Result<Self, ReferenceError>> {
        let name = match text.strip_prefix(TRANSPORT) {
            Some(name) => name,
            None => begins_with_a_host(text).then_some(text)?,
        };
        let parsed = oci_client::Reference::from_str(name).map_err(|error| ReferenceError {
            text: text.to_owned(),
            problem: error.to_string(),
        });
        Some(parsed.map(Self))
    }

    /// Name or address, with the port where it has one.
    pub fn registry(&self) -> &str {
        self.0.registry()
    }
}

/// The rule of all tools: what stands before the first slash is a host if it looks like one.
fn begins_with_a_host(text: &str) -> bool {
    text.split_once('/').is_some_and(|(host, name)| {
        let is_host = host.contains(['.', ':']) || host == "localhost";
        is_host && !host.starts_with('.') && !name.is_empty()
    })
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        Reference::read(text).map(|r| r.map_or_else(|e| e.to_string(), |r| r.to_string()))
    }

    #[test]
    fn a_name_that_begins_with_a_registry_is_an_image() {
        for name in [
            "docker.io/library/nginx:1.27",
            "ghcr.io/a/b/c:v1",
            "localhost/app:1",
            "127.0.0.1:5000/app:1",
            "registry:5000/app:1",
        ] {
            assert_eq!(read(name).as_deref(), Some(name));
        }
        let pinned = format!("quay.io/a/b@sha256:{}", "0".repeat(64));
        assert_eq!(read(&pinned).as_deref(), Some(&*pinned));
    }

    #[test]
    fn dockers_short_names_need_its_prefix() {
        assert_eq!(read("nginx:1.27"), None);
        let long = "docker.io/library/nginx:1.27";
        assert_eq!(read("docker://nginx:1.27").as_deref(), Some(long));
        let latest = "docker.io/library/nginx:latest";
        assert_eq!(read("docker://nginx").as_deref(), Some(latest));
    }

    #[test]
    fn paths_are_no_names_of_images() {
        for path in [
            "image.tar",
            "./image.tar",
            "../a/b",
            "/srv/a.tar",
            "images/a.tar",
            ".a/b",
            "a.b/",
            "",
        ] {
            assert_eq!(read(path), None, "{path}");
        }
    }

    #[test]
    fn a_wrong_name_is_told_with_a_right_one() {
        let error = Reference::read("docker.io/Nginx:1")
            .expect("a registry's")
            .expect_err("capital");
        assert!(
            error.to_string().contains("docker.io/library/nginx:1.27"),
            "{error}"
        );
    }
}
