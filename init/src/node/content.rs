//! Images that lie in another pool than the one that machines run from.
//!
//! Owns: bringing an image of a deployment into the first pool from one that was the first while that was away. Refuses:
//! what a store can give (the chunk daemon fetches it), and room that is promised to others.

use std::fs;
use std::path::PathBuf;

use flist::cache::Cache;
use types::Digest;

use crate::room::Room;

/// Copies of these images what the first pool lacks and another one has; every byte is checked on the way. Says what could not
/// be had, and gives the images that are whole now and were not.
pub(crate) fn gather(
    first: &Cache,
    further: &[PathBuf],
    room: &Room,
    images: impl IntoIterator<Item = Digest>,
) -> Vec<Digest> {
    let mut gathered = Vec::new();
    for image in images {
        let lacks =
            |(flist, _): (flist::format::Flist, fs::File)| !first.missing(&flist).is_empty();
        if first.flist(&image).is_ok_and(|found| !lacks(found)) {
            continue;
        }
        let brought = further
            .iter()
            .any(|pool| match bring(first, pool, room, &image) {
                Ok(whole) => whole,
                Err(error) => {
                    log::error!("bring the image {image} from {}: {error:#}", pool.display());
                    false
                }
            });
        gathered.extend(brought.then_some(image));
    }
    gathered
}

/// Whether all of it is in the first pool now.
fn bring(first: &Cache, from: &PathBuf, room: &Room, image: &Digest) -> anyhow::Result<bool> {
    let other = Cache::open(from)?;
    let path = other.flist_path(image);
    if !path.exists() {
        return Ok(false);
    }
    let (flist, _) = other.flist(image)?;
    let footprint = first.footprint(&flist);
    anyhow::ensure!(
        footprint.missing <= room.left()?,
        "the pool that machines run from has no room for it: delete what is not needed"
    );
    let missing = first.put_flist(*image, &fs::read(path)?)?;
    for chunk in &missing {
        let chunk_path = other.chunk_path(chunk);
        if chunk_path.exists() {
            first.put_chunk(*chunk, &fs::read(chunk_path)?)?;
        }
    }
    log::info!("the image {image} was brought from {}", from.display());
    Ok(first.missing(&flist).is_empty())
}
