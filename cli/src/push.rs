//! From a packed store to the node: the flist, then the chunks that the node lacks.
//!
//! Owns: reading a `.flist` file beside its `chunks` directory, packing what is none yet into a store that
//! ends with the command, and the progress that is shown.
//! Refuses: to send a chunk whose bytes are not what its flist says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, anyhow, bail};
use api::Client;
use flist::chunk::Chunk;
use flist::format::{FLIST_BYTES_MAX, Flist, MAGIC, digest_of};
use flist::seal::Salt;
use flist::store::DirStore;
use flist::trace;
use registry::Policy;
use serde::Serialize;
use tempfile::TempDir;
use types::Digest;

use crate::depot;
use crate::failure::Usage;
use crate::pack::{self, Changes};
use crate::screen::{Screen, mebibytes};
use crate::source::Source;

/// An image in a store on this machine.
#[derive(Debug)]
pub(crate) struct LocalImage {
    pub(crate) digest: Digest,
    pub(crate) flist: Flist,
    file: Vec<u8>,
    path: PathBuf,
    /// The store, where it was made for this command and goes with it.
    made: Option<TempDir>,
}

/// Images that a deployment names, as far as they are on this machine now.
#[derive(Debug, Default)]
pub(crate) struct Images {
    policy: Policy,
    salt: Option<Salt>,
    by_source: BTreeMap<(bool, PathBuf), Digest>,
    by_digest: BTreeMap<Digest, LocalImage>,
}

impl Images {
    /// Images of registries are signed as the policy says.
    pub(crate) fn signed_by(policy: Policy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// What is packed is encrypted with this salt, where there is one.
    pub(crate) fn encrypted_with(self, salt: Option<Salt>) -> Self {
        Self { salt, ..self }
    }

    /// The image's digest; what is not packed yet is packed now.
    pub(crate) fn find(&mut self, source: &Source, screen: &Screen) -> anyhow::Result<Digest> {
        if let Some(digest) = self.by_source.get(&source.key()) {
            return Ok(*digest);
        }
        let image = match source {
            Source::Path(path) if is_flist(path)? => LocalImage::open(path)?,
            Source::Path(_) | Source::Registry(_) => self.packed(source, screen)?,
        };
        let digest = image.digest;
        self.by_source.insert(source.key(), digest);
        self.by_digest.insert(digest, image);
        Ok(digest)
    }

    /// Packed into a store that goes with the value.
    fn packed(&self, source: &Source, screen: &Screen) -> anyhow::Result<LocalImage> {
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let mut store = DirStore::open(directory.path()).context("cannot make a store")?;
        let changes = Changes::default();
        let (salt, policy) = (self.salt.as_ref(), &self.policy);
        let packed = pack::pack(screen, source, &changes, salt, &mut store, policy)?;
        let image = LocalImage::open(&store.flist_path(&packed.digest))?;
        Ok(LocalImage {
            made: Some(directory),
            ..image
        })
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<&LocalImage> {
        self.by_digest.get(digest)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LocalImage> {
        self.by_digest.values()
    }
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
            made: None,
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

    /// Whether it outlives this command.
    pub(crate) fn is_kept(&self) -> bool {
        self.made.is_none()
    }

    /// Sends the flist alone: the node fetches chunks where the deployment says. Of an encrypted image no store has it.
    pub(crate) async fn push_flist(
        &self,
        client: &Client,
        screen: &Screen,
    ) -> anyhow::Result<Pushed> {
        let file = self.file.clone().into();
        let missing = client.put_flist(self.digest, file).await?;
        let chunks = self.chunks();
        let bytes = |name| chunks.get(name).map_or(0, |c| u64::from(c.stored_bytes));
        let image_bytes = self.stored_bytes();
        screen.note(&format!(
            "pushed the flist: the node fetches {} of {} from the stores that are named",
            mebibytes(missing.iter().map(bytes).sum()),
            mebibytes(image_bytes)
        ));
        Ok(Pushed {
            pushed_bytes: 0,
            image_bytes,
        })
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

    /// What there is to bring into a store, with the trace that lies beside it.
    pub(crate) fn image(&self) -> stores::Image {
        let read = || {
            let mut bytes = Vec::new();
            let file = File::open(self.directory().join(trace::object(&self.digest)))?;
            file.take(trace::BYTES_MAX as u64 + 1)
                .read_to_end(&mut bytes)?;
            Ok::<_, io::Error>(bytes)
        };
        // Without one a start waits longer, and nothing else.
        let trace = read().ok();
        let mut image = depot::of(self.digest, &self.flist, self.file.clone());
        image.trace = trace
            .and_then(|bytes| depot::right_trace(bytes, &self.digest, self.flist.chunks().len()));
        image
    }

    /// The directory that the file lies in.
    pub(crate) fn directory(&self) -> &Path {
        let parent = self.path.parent();
        let named = parent.filter(|parent| !parent.as_os_str().is_empty());
        named.unwrap_or(Path::new("."))
    }

    /// The same, where it is a store.
    fn store(&self) -> anyhow::Result<DirStore> {
        let root = self.directory();
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

/// Whether it is packed already, or says that it is by its name, so that a damaged flist is called that.
fn is_flist(path: &Path) -> anyhow::Result<bool> {
    let path_error = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Usage(format!(
            "image {0:?} is no file here and no digest such as blake3:…; an image of Docker Hub is \
                 docker://{1}, of another registry HOST/{1}",
            path.display().to_string(),
            path.file_name().unwrap_or_default().display(),
        ))
        .into(),
        _ => anyhow::Error::from(error).context(format!("cannot read {}", path.display())),
    };
    let metadata = fs::metadata(path).map_err(path_error)?;
    let mut start = [0; MAGIC.len()];
    let mut begins = || File::open(path).and_then(|mut file| file.read_exact(&mut start));
    let has_magic = metadata.is_file() && begins().is_ok() && start == MAGIC;
    Ok(has_magic || path.extension().is_some_and(|e| e == "flist"))
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
