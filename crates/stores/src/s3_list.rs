//! What is in a bucket, for who sweeps and mirrors it.
//!
//! Owns: reading lists, page by page. Refuses: to be in a node's image: nobody there lists, and its XML reader comes
//! without a licence text.

use std::time::SystemTime;

use reqwest::Method;
use rusty_s3::S3Action;
use rusty_s3::actions::ListObjectsV2;

use super::{ADVICE, S3, SIGNED};
use crate::http;
use crate::store::Entry;
use crate::{Object, StoreError};

/// A page of a list has at most 1000 objects of a few hundred bytes.
const PAGE_BYTES_MAX: u64 = 4 << 20;
/// Most pages, so that a server that never ends does not either: ten million objects.
const PAGES_MAX: usize = 10_000;

impl S3 {
    pub(crate) async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let (mut found, mut after) = (Vec::new(), None::<String>);
        let strange = |problem: String| StoreError::Answer {
            store: self.name.clone(),
            problem,
        };
        for _ in 0..PAGES_MAX {
            let mut action = self.signer.list_objects_v2(self.keys());
            action.with_prefix(self.prefix.as_str());
            if let Some(token) = &after {
                action.with_continuation_token(token.as_str());
            }
            let request = self.http.request(Method::GET, action.sign(SIGNED));
            let response = self.http.send(&self.name, request).await?;
            let response = http::good(&self.name, &"such bucket", ADVICE, response).await?;
            let page = http::whole(&self.name, &"a list", response, PAGE_BYTES_MAX).await?;
            let page = String::from_utf8(page).map_err(|e| strange(e.to_string()))?;
            let page = ListObjectsV2::parse_response(&page).map_err(|e| strange(e.to_string()))?;
            for item in &page.contents {
                let path = item.key.strip_prefix(self.prefix.as_str());
                let Some(object) = path.and_then(Object::parse) else {
                    continue;
                };
                let time = item.last_modified.as_deref().unwrap_or("");
                let modified = time.parse::<jiff::Timestamp>().map(SystemTime::from);
                found.push(Entry {
                    object,
                    bytes: item.size.unwrap_or(0),
                    modified: modified.map_err(|e| strange(format!("time {time:?}: {e}")))?,
                });
            }
            match page.next_continuation_token {
                Some(token) if after.as_ref() != Some(&token) => after = Some(token),
                _ => return Ok(found),
            }
        }
        Err(strange(format!("its list has more than {PAGES_MAX} pages")))
    }
}
