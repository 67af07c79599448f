//! A repository of a registry: chunks are blobs, and an flist is an artifact that names them.
//!
//! The tag `blake3-<64 hex>` is an OCI image manifest of our own kind. Its layers are the flist and its chunks, each with
//! its path as title, so that a client of artifacts which knows nothing of us makes a directory store of it. Of an
//! encrypted image the first is the list of its chunks.
//!
//! Owns: that manifest, the requests of the distribution specification that it takes, and tokens.
//! Refuses: images (`registry` has them); to collect garbage: what no manifest names, the registry removes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LINK, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use types::Digest;

use crate::http::{self, Http};
use crate::location::Repository;
use crate::sink::Sink;
use crate::store::Found;
use crate::{Object, StoreError};

/// What registries take at most (distribution specification, "Pushing manifests").
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// So many chunks' descriptors, of at most 300 bytes each, fit into a manifest: at least 6 GiB of image.
const CHUNKS_MAX: usize = 13_000;
const TOKEN_BYTES_MAX: u64 = 256 << 10;
const TAGS_BYTES_MAX: u64 = 4 << 20;
/// Pages of tags: a hundred thousand flists.
const PAGES_MAX: usize = 1000;
/// Manifests kept, each of a few MiB: images whose chunks are wanted at the same time.
const LAYOUTS_MAX: usize = 64;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.sifr.flist.config.v1+json";
const FLIST: &str = "application/vnd.sifr.flist.v1";
const CHUNK: &str = "application/vnd.sifr.flist.chunk.v1";
const ROLL: &str = "application/vnd.sifr.flist.chunks.v1";
const TRACE: &str = "application/vnd.sifr.flist.trace.v1";
const TITLE: &str = "org.opencontainers.image.title";
/// The configuration of an artifact that has none.
const EMPTY: &[u8] = b"{}";
const ADVICE: &str =
    "If it is private: `docker login` or `podman login`; a node reads public repositories only";
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_SERVER: &str = "registry-1.docker.io";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

/// Where the blobs of an flist are: digest and length by our name.
type Layout = HashMap<Object, (String, u64)>;

/// A name and a password.
pub(crate) type Login = (String, String);

pub(crate) struct Oci {
    name: String,
    http: Arc<Http>,
    /// Ends with `/v2/<repository>/`.
    base: Url,
    login: Option<Login>,
    /// The header that the registry takes; found out at the first refusal. One owner cannot be: requests are many.
    authorization: Mutex<Option<String>>,
    layouts: Mutex<Vec<(Digest, Arc<Layout>)>>,
}

impl std::fmt::Debug for Oci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Oci")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Oci {
    pub(crate) fn new(
        name: String,
        of: &Repository,
        login: Option<Login>,
        http: Arc<Http>,
    ) -> Result<Self, StoreError> {
        let scheme = if of.is_plain { "http" } else { "https" };
        let (host, repository) = match (of.registry.as_str(), of.name.as_str()) {
            (DOCKER_HUB, name) if !name.contains('/') => {
                (DOCKER_HUB_SERVER, format!("library/{name}"))
            }
            (DOCKER_HUB, name) => (DOCKER_HUB_SERVER, name.to_owned()),
            (host, name) => (host, name.to_owned()),
        };
        let base = format!("{scheme}://{host}/v2/{repository}/").parse();
        let base = base.map_err(|e| StoreError::Location {
            text: name.clone(),
            problem: format!("{e}"),
        })?;
        Ok(Self {
            name,
            http,
            base,
            login,
            authorization: Mutex::default(),
            layouts: Mutex::default(),
        })
    }

    fn strange(&self, problem: impl std::fmt::Display) -> StoreError {
        StoreError::Answer {
            store: self.name.clone(),
            problem: problem.to_string(),
        }
    }

    fn url(&self, path: &str) -> Result<Url, StoreError> {
        self.base.join(path).map_err(|e| self.strange(e))
    }

    /// Sends what `request` makes, once more with what the registry demands where it refuses.
    async fn ask(
        &self,
        what: &(dyn std::fmt::Display + Sync),
        method: &Method,
        url: &Url,
        fill: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<Response, StoreError> {
        // A token is for this registry: an upload may lead to another machine.
        let is_home = url.origin() == self.base.origin();
        let known = || {
            let known = self.authorization.lock();
            known.unwrap_or_else(PoisonError::into_inner).clone()
        };
        let make = |authorization: Option<String>| {
            let request = fill(self.http.request(method.clone(), url.clone()));
            match authorization {
                Some(value) => request.header(AUTHORIZATION, value),
                None => request,
            }
        };
        let request = make(known().filter(|_| is_home));
        let response = self.http.send(&self.name, request).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED && is_home {
            let found = self.authorize(&response).await?;
            let place = self.authorization.lock();
            *place.unwrap_or_else(PoisonError::into_inner) = Some(found.clone());
            self.http.send(&self.name, make(Some(found))).await?
        } else {
            response
        };
        http::good(&self.name, what, ADVICE, response).await
    }

    /// What to send, by the registry's challenge.
    async fn authorize(&self, refused: &Response) -> Result<String, StoreError> {
        let header = refused.headers().get(WWW_AUTHENTICATE);
        let header = header.and_then(|value| value.to_str().ok()).unwrap_or("");
        let challenges = http_auth::parse_challenges(header);
        let challenges = challenges.map_err(|_| self.strange("its challenge has no form"))?;
        let is = |scheme: &'static str| {
            move |c: &&http_auth::ChallengeRef<'_>| c.scheme.eq_ignore_ascii_case(scheme)
        };
        if let Some(challenge) = challenges.iter().find(is("bearer")) {
            let get = |name: &str| {
                let found = challenge
                    .params
                    .iter()
                    .find(|(n, _)| n.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            let realm = get("realm").and_then(|realm| realm.parse().ok());
            let mut realm: Url = realm.ok_or_else(|| self.strange("its challenge has no realm"))?;
            if self.base.scheme() == "https" && realm.scheme() != "https" {
                return Err(self.strange("it sends its clients out of TLS for a token"));
            }
            for name in ["service", "scope"] {
                if let Some(value) = get(name) {
                    realm.query_pairs_mut().append_pair(name, &value);
                }
            }
            return self.token(realm).await;
        }
        match (challenges.iter().find(is("basic")), &self.login) {
            (Some(_), Some((user, password))) => Ok(http::basic(user, password)),
            (Some(_), None) => Err(StoreError::Denied {
                store: self.name.clone(),
                said: "it wants a login".to_owned(),
                advice: ADVICE,
            }),
            (None, _) => Err(self.strange(format!("it wants {header:?}"))),
        }
    }

    async fn token(&self, realm: Url) -> Result<String, StoreError> {
        let mut request = self.http.request(Method::GET, realm);
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        let response = self.http.send(&self.name, request).await?;
        let response = http::good(&self.name, &"token", ADVICE, response).await?;
        let body = http::whole(&self.name, &"a token", response, TOKEN_BYTES_MAX).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|e| self.strange(e))?;
        let token = token.token.or(token.access_token);
        let token = token.ok_or_else(|| self.strange("its token is none"))?;
        Ok(format!("Bearer {token}"))
    }

    /// Which blobs an flist has here.
    async fn layout(&self, flist: &Digest) -> Result<Arc<Layout>, StoreError> {
        let held = |of: &Mutex<Vec<(Digest, Arc<Layout>)>>| {
            let held = of.lock().unwrap_or_else(PoisonError::into_inner);
            let found = held.iter().find(|(digest, _)| digest == flist);
            found.map(|(_, layout)| Arc::clone(layout))
        };
        if let Some(layout) = held(&self.layouts) {
            return Ok(layout);
        }
        let url = self.url(&format!("manifests/{}", tag(flist)))?;
        let object = Object::Flist(*flist);
        let accept = |request: RequestBuilder| request.header(ACCEPT, MANIFEST);
        let response = self.ask(&object, &Method::GET, &url, &accept).await?;
        let body = http::whole(&self.name, &object, response, MANIFEST_BYTES_MAX).await?;
        let manifest: Manifest = serde_json::from_slice(&body)
            .map_err(|e| self.strange(format!("manifest of {object}: {e}")))?;
        let mut layout = Layout::new();
        for layer in manifest.layers {
            let object = layer.annotations.get(TITLE).and_then(|t| Object::parse(t));
            if let Some(object) = object.filter(|_| is_digest(&layer.digest)) {
                layout.insert(object, (layer.digest, layer.size));
            }
        }
        let layout = Arc::new(layout);
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        layouts.truncate(LAYOUTS_MAX - 1);
        layouts.insert(0, (*flist, Arc::clone(&layout)));
        Ok(layout)
    }

    async fn blob(&self, flist: &Digest, object: &Object) -> Result<(Url, u64), StoreError> {
        let layout = self.layout(flist).await?;
        let (digest, bytes) = layout.get(object).ok_or_else(|| StoreError::NotFound {
            store: self.name.clone(),
            object: object.to_string(),
        })?;
        Ok((self.url(&format!("blobs/{digest}"))?, *bytes))
    }

    pub(crate) async fn get(
        &self,
        flist: &Digest,
        object: &Object,
        sink: &mut Sink<'_>,
    ) -> Result<(), StoreError> {
        let (url, _) = self.blob(flist, object).await?;
        let response = self.ask(object, &Method::GET, &url, &|r| r).await?;
        http::stream(&self.name, object, response, sink).await
    }

    pub(crate) async fn find(
        &self,
        flist: &Digest,
        object: &Object,
    ) -> Result<Option<Found>, StoreError> {
        let found = match self.blob(flist, object).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let (url, bytes) = found;
        match self
            .ask(object, &Method::HEAD, &url, &|request| request)
            .await
        {
            Ok(_) => Ok(Some(Found {
                bytes: Some(bytes),
                modified: None,
            })),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a blob where it is not; whether it was sent, and how a manifest names it.
    pub(crate) async fn put(
        &self,
        object: &Object,
        bytes: Vec<u8>,
    ) -> Result<(bool, Descriptor), StoreError> {
        let media_type = match object {
            Object::Flist(_) => FLIST,
            Object::Roll(_) => ROLL,
            Object::Trace(_) => TRACE,
            Object::Chunk(_) => CHUNK,
        };
        let mut descriptor = describe(media_type, &bytes);
        descriptor
            .annotations
            .insert(TITLE.to_owned(), object.path());
        let sent = self.upload(&descriptor.digest, bytes).await?;
        Ok((sent, descriptor))
    }

    async fn upload(&self, digest: &str, bytes: Vec<u8>) -> Result<bool, StoreError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        match self
            .ask(&digest, &Method::HEAD, &url, &|request| request)
            .await
        {
            Ok(_) => return Ok(false),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let url = self.url("blobs/uploads/")?;
        let none = |request: RequestBuilder| request.header("content-length", "0");
        let begun = self
            .ask(&"such repository", &Method::POST, &url, &none)
            .await?;
        let place = begun.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let place = place.ok_or_else(|| self.strange("it takes an upload and says not where"))?;
        let mut place = begun.url().join(place).map_err(|e| self.strange(e))?;
        if self.base.scheme() == "https" && place.scheme() != "https" {
            return Err(self.strange("it sends uploads out of TLS"));
        }
        place.query_pairs_mut().append_pair("digest", digest);
        let body = |request: RequestBuilder| {
            let typed = request.header(CONTENT_TYPE, "application/octet-stream");
            typed.body(bytes.clone())
        };
        self.ask(&"such upload", &Method::PUT, &place, &body)
            .await?;
        Ok(true)
    }

    /// Makes the image known: from then on all its blobs have a name.
    pub(crate) async fn publish(
        &self,
        flist: &Digest,
        entry: &Object,
        file: Vec<u8>,
        chunks: Vec<Descriptor>,
    ) -> Result<(), StoreError> {
        if chunks.len() > CHUNKS_MAX {
            return Err(StoreError::ReadOnly {
                store: self.name.clone(),
                why: "the image has more than 13000 chunks, which no manifest holds: use another kind of store",
            });
        }
        let (_, first) = self.put(entry, file).await?;
        let config = describe(CONFIG, EMPTY);
        self.upload(&config.digest, EMPTY.to_vec()).await?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: Some(FLIST.to_owned()),
            config,
            layers: [vec![first], chunks].concat(),
        };
        let body = serde_json::to_vec(&manifest).map_err(|e| self.strange(e))?;
        let url = self.url(&format!("manifests/{}", tag(flist)))?;
        let fill =
            |request: RequestBuilder| request.header(CONTENT_TYPE, MANIFEST).body(body.clone());
        self.ask(&"such repository", &Method::PUT, &url, &fill)
            .await?;
        let mut layouts = self.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        layouts.retain(|(digest, _)| digest != flist);
        Ok(())
    }

    /// All flists.
    pub(crate) async fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let (mut found, mut url) = (Vec::new(), self.url("tags/list?n=1000")?);
        for _ in 0..PAGES_MAX {
            let answer = self
                .ask(&"such repository", &Method::GET, &url, &|r| r)
                .await;
            let response = match answer {
                Err(StoreError::NotFound { .. }) => return Ok(found),
                other => other?,
            };
            let next = response
                .headers()
                .get(LINK)
                .and_then(|v| next(v.to_str().ok()?));
            let body = http::whole(&self.name, &"a list", response, TAGS_BYTES_MAX).await?;
            let tags: Tags = serde_json::from_slice(&body).map_err(|e| self.strange(e))?;
            let names = tags.tags.unwrap_or_default();
            let hex = |tag: &String| Digest::from_hex(tag.strip_prefix("blake3-")?).ok();
            found.extend(names.iter().filter_map(hex));
            let Some(path) = next else {
                return Ok(found);
            };
            url = url.join(&path).map_err(|e| self.strange(e))?;
        }
        Err(self.strange("its list of tags has no end"))
    }
}

/// RFC 8288: `<URL>; rel="next"`.
fn next(link: &str) -> Option<String> {
    let (target, rest) = link.strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then(|| target.to_owned())
}

fn tag(flist: &Digest) -> String {
    format!("blake3-{}", flist.hex())
}

fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:");
    hex.is_some_and(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Descriptor {
        media_type: media_type.to_owned(),
        digest: format!("sha256:{hex}"),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
    }
}
