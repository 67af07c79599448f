//! A bucket of S3, or of a server that speaks as S3 does.
//!
//! Owns: which request is which operation; `rusty-s3` signs them. Without keys they are not signed, and public buckets
//! can be read.
//! Refuses: uploads in parts: a chunk is small, and an flist is far below what one request takes.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use rusty_s3::{Bucket as Signer, Credentials, S3Action, UrlStyle};

use crate::http::{self, Http};
use crate::keys::Keys;
use crate::location::Bucket;
use crate::sink::Sink;
#[cfg(not(feature = "list"))]
use crate::store::Entry;
use crate::store::Found;
use crate::{Object, StoreError};

/// How long a signature holds: clocks differ, and a body may take its time.
const SIGNED: Duration = Duration::from_secs(900);
const ADVICE: &str = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws/credentials; \
                      a node reads public buckets only";

#[derive(Debug)]
pub(crate) struct S3 {
    name: String,
    http: Arc<Http>,
    signer: Signer,
    keys: Keys,
    prefix: String,
}

impl S3 {
    pub(crate) fn new(
        name: String,
        of: &Bucket,
        keys: Keys,
        http: Arc<Http>,
    ) -> Result<Self, StoreError> {
        let wrong = |problem: String| StoreError::Location {
            text: name.clone(),
            problem,
        };
        let amazon = format!("https://s3.{}.amazonaws.com", of.region);
        let (endpoint, style) = match &of.endpoint {
            Some(endpoint) => (endpoint.clone(), UrlStyle::Path),
            None => {
                let url = amazon.parse::<Url>();
                let url = url.map_err(|e| wrong(format!("region {:?}: {e}", of.region)))?;
                // A dot in the name is not in Amazon's certificates.
                let style = if of.name.contains('.') {
                    UrlStyle::Path
                } else {
                    UrlStyle::VirtualHost
                };
                (url, style)
            }
        };
        let signer = Signer::new(endpoint, style, of.name.clone(), of.region.clone());
        let signer = signer.map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            signer,
            prefix: of.prefix.clone(),
            name,
            http,
            keys,
        })
    }

    fn keys(&self) -> Option<&Credentials> {
        self.keys.0.as_ref()
    }

    fn key(&self, object: &Object) -> String {
        format!("{}{}", self.prefix, object.path())
    }

    pub(crate) async fn get(&self, object: &Object, sink: &mut Sink<'_>) -> Result<(), StoreError> {
        let key = self.key(object);
        let url = self.signer.get_object(self.keys(), &key).sign(SIGNED);
        let request = self.http.request(Method::GET, url);
        http::fetch(&self.http, &self.name, object, ADVICE, request, sink).await
    }

    pub(crate) async fn find(&self, object: &Object) -> Result<Option<Found>, StoreError> {
        let key = self.key(object);
        let url = self.signer.head_object(self.keys(), &key).sign(SIGNED);
        let request = self.http.request(Method::HEAD, url);
        http::find(&self.http, &self.name, object, ADVICE, request).await
    }

    /// Says that the object is needed, to who removes what is old: a copy onto itself is new, and costs no transfer.
    pub(crate) async fn renew(&self, object: &Object) -> Result<(), StoreError> {
        let key = self.key(object);
        // Keys of ours need no escapes but those of the prefix, which is escaped as it was named.
        let from = format!("/{}/{key}", self.signer.name());
        let headers = [
            ("x-amz-copy-source", from.as_str()),
            ("x-amz-metadata-directive", "REPLACE"),
        ];
        let mut action = self.signer.put_object(self.keys(), &key);
        let mut request_headers = HeaderMap::new();
        for (name, value) in headers {
            action.headers_mut().insert(name, value.to_owned());
            let value = HeaderValue::from_str(value).map_err(|e| StoreError::Location {
                text: self.name.clone(),
                problem: e.to_string(),
            })?;
            request_headers.insert(name, value);
        }
        let request = self.http.request(Method::PUT, action.sign(SIGNED));
        let request = request
            .headers(request_headers)
            .header("content-length", "0");
        let response = self.http.send(&self.name, request).await?;
        http::good(&self.name, object, ADVICE, response).await?;
        Ok(())
    }

    pub(crate) async fn put(&self, object: &Object, bytes: Vec<u8>) -> Result<(), StoreError> {
        let key = self.key(object);
        let url = self.signer.put_object(self.keys(), &key).sign(SIGNED);
        let request = self.http.request(Method::PUT, url).body(bytes);
        let response = self.http.send(&self.name, request).await?;
        http::good(&self.name, &"such bucket", ADVICE, response).await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, object: &Object) -> Result<(), StoreError> {
        let Some(keys) = self.keys() else {
            return Err(StoreError::Denied {
                store: self.name.clone(),
                said: "nothing is removed without keys".to_owned(),
                advice: ADVICE,
            });
        };
        let key = self.key(object);
        let url = self.signer.delete_object(Some(keys), &key).sign(SIGNED);
        let response = self
            .http
            .send(&self.name, self.http.request(Method::DELETE, url))
            .await?;
        match http::good(&self.name, object, ADVICE, response).await {
            Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    #[cfg(not(feature = "list"))]
    pub(crate) async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        Err(StoreError::Unable {
            store: self.name.clone(),
            what: "be listed",
            why: "this program was built without that",
        })
    }
}

#[cfg(feature = "list")]
#[path = "s3_list.rs"]
mod list;
