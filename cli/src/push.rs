//! From a packed store to the node: the flist, then the chunks that the node lacks.
//!
//! Owns: reading a `.flist` file beside its `chunks` directory, and the progress that is shown.
//! Refuses: to send a chunk whose bytes are not what its flist says.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, anyhow, bail};
use api::Client;
use flist::chunk::Chunk;
use flist::format::{FLIST_BYTES_MAX, Flist, digest_of};
use flist::store::DirStore;
use serde::Serialize;
use types::Digest;

use crate::screen::{Meter, Screen, mebibytes};

/// An image in a store on this machine.
#[derive(Debug)]
pub(crate) struct LocalImage {
    pub(crate) digest: Digest,
    pub(crate) flist: Flist,
    file: Vec<u8>,
    path: PathBuf,
}

/// What went over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Pushed {
    pub(crate) pushed_bytes: u64,
    /// Stored bytes of all the image's chunks.
    pub(crate) image_bytes: u64,
}

impl LocalImage {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot read the flist {}", path.display());
        let length = fs::metadata(path).with_context(cannot)?.len();
        if length > FLIST_BYTES_MAX {
            bail!(
                "{} has {length} bytes: a flist has at most {FLIST_BYTES_MAX}",
                path.display()
            );
        }
        let file = fs::read(path).with_context(cannot)?;
        let flist = Flist::read(&mut Cursor::new(&file)).with_context(cannot)?;
        let digest = digest_of(&mut file.as_slice()).with_context(cannot)?;
        Ok(Self {
            digest,
            flist,
            file,
            path: path.to_owned(),
        })
    }

    /// Distinct chunks by their name.
    fn chunks(&self) -> BTreeMap<Digest, &Chunk> {
        self.flist
            .chunks()
            .iter()
            .map(|chunk| (chunk.stored, chunk))
            .collect()
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.chunks()
            .values()
            .map(|chunk| u64::from(chunk.stored_bytes))
            .sum()
    }

    /// Sends what the node lacks.
    pub(crate) async fn push(&self, client: &Client, screen: &Screen) -> anyhow::Result<Pushed> {
        let missing = client
            .put_flist(self.digest, self.file.clone().into())
            .await?;
        let chunks = self.chunks();
        let named = missing.iter().map(|name| {
            chunks
                .get(name)
                .copied()
                .ok_or_else(|| anyhow!("the node asks for chunk {name}, which the image has not"))
        });
        let wanted: Vec<&Chunk> = named.collect::<anyhow::Result<_>>()?;
        let total = wanted
            .iter()
            .map(|chunk| u64::from(chunk.stored_bytes))
            .sum();
        let meter = screen.meter("pushing", total);
        let sent = AtomicU64::new(0);
        if !missing.is_empty() {
            let store = self.store()?;
            let load = |name: Digest| {
                let loaded = chunks
                    .get(&name)
                    .ok_or_else(|| anyhow!("chunk {name} is not one of the image's"))
                    .and_then(|chunk| load(&store, chunk));
                async move { loaded.map(Into::into) }
            };
            let count = |bytes| meter.set(sent.fetch_add(bytes, Ordering::Relaxed) + bytes);
            client.put_chunks(&missing, load, count).await?;
        }
        meter.done();
        let pushed = Pushed {
            pushed_bytes: sent.into_inner(),
            image_bytes: self.stored_bytes(),
        };
        let whole = mebibytes(pushed.image_bytes);
        screen.note(&match pushed.pushed_bytes {
            0 => format!("pushed nothing: the node has the image ({whole})"),
            bytes => format!("pushed {} of {whole}", mebibytes(bytes)),
        });
        Ok(pushed)
    }

    /// The directory that the file lies in, where it is a store.
    fn store(&self) -> anyhow::Result<DirStore> {
        let parent = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let root = parent.unwrap_or(Path::new("."));
        if !root.join("chunks").is_dir() {
            bail!(
                "the node lacks chunks of {}, and there is no chunks directory beside it: \
                 keep the file in the store that `sifr flist pack` made",
                self.path.display()
            );
        }
        DirStore::open(root).with_context(|| format!("cannot open the store {}", root.display()))
    }
}

fn load(store: &DirStore, chunk: &Chunk) -> anyhow::Result<Vec<u8>> {
    let path = store.chunk_path(&chunk.stored);
    let stored = store
        .read_chunk(&chunk.stored)
        .with_context(|| format!("cannot read {}: pack the image again", path.display()))?;
    chunk.open(&stored).with_context(|| {
        format!(
            "{} is damaged: remove it and pack the image again",
            path.display()
        )
    })?;
    Ok(stored)
}

/// Progress of packing goes through the same meter.
pub(crate) fn show_packing(meter: &Meter, progress: flist::pack::Progress) {
    meter.set_total(progress.total_bytes);
    meter.set(progress.done_bytes);
}
