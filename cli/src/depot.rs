//! Stores, as this machine knows them: which they are, with whose keys they are opened, and images in them.
//!
//! Owns: where keys, logins and authorities are looked for, and reading an flist out of stores.
//! Refuses: keys of its own, and to move anything (`stores` does).

use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::Context as _;
use flist::format::{FLIST_BYTES_MAX, Flist, digest_of};
use flist::trace::{self, Trace};
use registry::Access;
use stores::{
    Image, Keys, Location, Logins, Object, Patience, Piece, Pool, Route, Set, StoreError,
};
use types::Digest;
use types::deployment::{Deployment, Workload};
use types::stores::AUTHORITY_BYTES_MAX;

use crate::failure::Usage;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What `docker login` keeps.
struct Docker(Access);

impl Logins for Docker {
    fn login(&self, registry: &str) -> Result<Option<(String, String)>, String> {
        let login = self.0.password(registry);
        login.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    fn authority(&self, registry: &str) -> Result<Option<String>, String> {
        let authority = self.0.authority(registry);
        authority.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }
}

/// One store or more, by their texts.
pub(crate) fn open(texts: &[String], ca: Option<&Path>) -> anyhow::Result<Set> {
    let routes = texts.iter().map(|text| route(text));
    let routes: Vec<Route> = routes.collect::<Result<_, _>>()?;
    let keys = Keys::of_this_machine(&variable).context("cannot find the keys of S3")?;
    let access = Access::of_this_machine(|name| std::env::var_os(name))?;
    let authority = ca.map(authority).transpose()?;
    let pool = Pool::of_this_machine(keys, Box::new(Docker(access)));
    Ok(pool.set(&routes, authority.as_deref())?)
}

pub(crate) fn route(text: &str) -> Result<Route, Usage> {
    Route::parse(text, &variable).map_err(|error| Usage(error.to_string()))
}

pub(crate) fn directory(path: &Path) -> anyhow::Result<Set> {
    let text = path.to_str().context("the path is not text")?;
    open(&[format!("dir:{text}")], None)
}

/// Certificates from a file, as a deployment carries them.
pub(crate) fn authority(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read the certificates {}", path.display());
    let text = fs::read_to_string(path).with_context(cannot)?;
    if text.len() > AUTHORITY_BYTES_MAX {
        return Err(Usage(format!(
            "{} has more than {AUTHORITY_BYTES_MAX} bytes: give the authorities of the stores alone",
            path.display()
        ))
        .into());
    }
    Ok(text)
}

/// Makes the stores of a deployment mean the same on a node as here: what this machine's environment says of S3 goes
/// into their names.
pub(crate) fn spell_out(deployment: &mut Deployment) -> Result<(), Usage> {
    for workload in deployment.workloads.values_mut() {
        let Workload::Machine(machine) = workload else {
            continue;
        };
        let urls = machine
            .image
            .store
            .iter_mut()
            .flat_map(|stores| &mut stores.urls);
        for url in urls {
            let route = route(url)?;
            match route.location {
                Location::S3(_) => *url = route.to_string(),
                Location::Web(_) | Location::Oci(_) => {}
                Location::Directory(path) => {
                    return Err(Usage(format!(
                        "a node cannot read the directory {}: let a web server serve it, or push to another store",
                        path.display()
                    )));
                }
            }
        }
    }
    Ok(())
}

/// An image out of stores: by its flist, or by the list of its chunks where that is all that they have.
pub(crate) async fn read(set: &Set, digest: &Digest) -> anyhow::Result<Image> {
    let right = |mut bytes: &[u8]| digest_of(&mut bytes).is_ok_and(|found| found == *digest);
    let file = set
        .flist(digest, FLIST_BYTES_MAX, &right, Patience::SOME)
        .await;
    match file {
        Ok(file) => image(*digest, file),
        Err(absent @ StoreError::NotFound { .. }) => match set.roll(digest, Patience::SOME).await {
            Ok(chunks) => Ok(Image::encrypted(*digest, chunks)),
            Err(StoreError::NotFound { .. }) => Err(absent.into()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// The same with its trace, where a store has one that is of this flist: without it a start waits longer, and nothing else.
pub(crate) async fn read_with_trace(set: &Set, digest: &Digest) -> anyhow::Result<Image> {
    let mut image = read(set, digest).await?;
    if let Ok(bytes) = set.trace(digest, trace::BYTES_MAX as u64).await {
        // How many rows an encrypted image's flist has only its owner knows.
        let rows = match image.entry {
            Object::Flist(_) => flist(digest, &image.file)?.chunks().len(),
            _ => flist::CHUNKS_MAX,
        };
        image.trace = right_trace(bytes, digest, rows);
    }
    Ok(image)
}

/// The bytes, if they are a trace of this flist, which has so many rows of chunks.
pub(crate) fn right_trace(bytes: Vec<u8>, digest: &Digest, rows: usize) -> Option<Vec<u8>> {
    let right = Trace::decode(&bytes, digest, rows).is_ok();
    right.then_some(bytes)
}

/// What stores are to have of an image: of an encrypted one everything but its flist, which has the keys.
pub(crate) fn of(digest: Digest, flist: &Flist, file: Vec<u8>) -> Image {
    match flist.is_encrypted() {
        true => Image::encrypted(digest, pieces(flist)),
        false => Image::open(digest, file, pieces(flist)),
    }
}

/// What there is to move of an flist.
pub(crate) fn image(digest: Digest, file: Vec<u8>) -> anyhow::Result<Image> {
    Ok(of(digest, &flist(&digest, &file)?, file))
}

pub(crate) fn flist(digest: &Digest, file: &[u8]) -> anyhow::Result<Flist> {
    let flist = Flist::read(&mut Cursor::new(file));
    flist.with_context(|| format!("the flist {digest} cannot be read"))
}

/// Distinct chunks by their name.
pub(crate) fn pieces(flist: &Flist) -> Vec<Piece> {
    let piece = |chunk: &flist::chunk::Chunk| Piece {
        name: chunk.stored,
        bytes: chunk.stored_bytes,
    };
    let mut pieces: Vec<Piece> = flist.chunks().iter().map(piece).collect();
    pieces.sort_unstable();
    pieces.dedup();
    pieces
}
