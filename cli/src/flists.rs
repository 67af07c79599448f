//! `sifr flist`: packing images and looking into them.
//!
//! Owns: what its own commands show. Refuses: packing (`pack` has it), the format (`flist` has it), and stores
//! (`transfer` has them).

use std::path::Path;

use anyhow::Context as _;
use flist::pack::Packed;
use flist::store::DirStore;
use flist::trace::{self, Trace};
use serde_json::json;

use crate::Context;
use crate::args::{FlistCommand, Pack};
use crate::pack::Changes;
use crate::push::LocalImage;
use crate::salt::salt;
use crate::screen::{Screen, fields, mebibytes};
use crate::source::Source;
use crate::transfer;

pub(crate) async fn flist(context: &Context, command: FlistCommand) -> anyhow::Result<()> {
    let screen = &context.screen;
    match command {
        FlistCommand::Pack(options) => pack(context, &options),
        FlistCommand::Show { file } => show(screen, &LocalImage::open(&file)?),
        FlistCommand::Trace { file } => trace(context, &LocalImage::open(&file)?, &file).await,
        FlistCommand::Push(options) => transfer::push(context, &options).await,
        FlistCommand::Pull(options) => transfer::pull(screen, &options).await,
        FlistCommand::Verify(options) => transfer::verify(screen, &options).await,
        FlistCommand::Gc(options) => transfer::gc(screen, &options).await,
        FlistCommand::Mirror(options) => transfer::mirror(screen, &options).await,
    }
}

/// What a node says is checked before it lies in a store.
async fn trace(context: &Context, image: &LocalImage, file: &Path) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let digest = image.digest;
    let bytes = client
        .trace(digest)
        .await
        .with_context(|| format!("cannot ask node {node} for a trace"))?;
    let trace = Trace::decode(&bytes, &digest, image.flist.chunks().len())
        .with_context(|| format!("cannot use the trace of node {node}"))?;
    let path = file.with_file_name(trace::object(&digest));
    std::fs::write(&path, trace.encode())
        .with_context(|| format!("cannot write {}", path.display()))?;
    let value = json!({ "digest": digest, "file": path, "chunks": trace.chunks().len() });
    context.screen.show(&value, || path.display().to_string())
}

fn pack(context: &Context, options: &Pack) -> anyhow::Result<()> {
    let (screen, policy) = (&context.screen, context.policy()?);
    let changes = Changes::read(options)?;
    let salt = match options.encrypt {
        true => Some(salt(&context.home, screen, options.salt_file.as_deref())?),
        false => None,
    };
    let mut store = DirStore::open(&options.store)
        .with_context(|| format!("cannot write the store {}", options.store.display()))?;
    let source = Source::read(&options.source, Path::new(""))?;
    let Packed { digest, stats, .. } = crate::pack::pack(
        screen,
        &source,
        &changes,
        salt.as_ref(),
        &mut store,
        &policy,
    )?;
    let path = store.flist_path(&digest);
    let value = json!({
        "digest": digest,
        "file": path,
        "files": stats.files,
        "content_bytes": stats.content_bytes,
        "chunks": stats.chunks,
        "stored_bytes": stats.stored_bytes,
        "xattrs_dropped": stats.xattrs_dropped,
        "encrypted": salt.is_some(),
    });
    if salt.is_some() {
        screen.note(
            "the chunks are encrypted, and the .flist file has their keys: give it only to whom may read the image",
        );
    }
    screen.show(&value, || path.display().to_string())
}

fn show(screen: &Screen, image: &LocalImage) -> anyhow::Result<()> {
    let flist = &image.flist;
    let value = json!({
        "digest": image.digest,
        "kind": kind(flist.is_disk()),
        "config": flist.config(),
        "disk_bytes": flist.disk_bytes(),
        "metadata_bytes": flist.metadata_bytes(),
        "chunks": flist.chunks().len(),
        "stored_bytes": image.stored_bytes(),
        "encrypted": flist.is_encrypted(),
    });
    let config = flist.config();
    screen.show(&value, || {
        fields(&[
            ("digest", image.digest.to_string()),
            ("kind", kind(flist.is_disk()).to_owned()),
            ("entrypoint", config.entrypoint.join(" ")),
            ("cmd", config.cmd.join(" ")),
            ("env", config.env.join(" ")),
            ("user", config.user.clone()),
            ("workdir", config.working_dir.clone()),
            ("encrypted", encrypted(flist.is_encrypted()).to_owned()),
            ("disk", mebibytes(flist.disk_bytes())),
            ("metadata", mebibytes(flist.metadata_bytes())),
            (
                "chunks",
                format!(
                    "{}, {} stored",
                    flist.chunks().len(),
                    mebibytes(image.stored_bytes())
                ),
            ),
        ])
    })
}

fn kind(is_disk: bool) -> &'static str {
    if is_disk { "disk" } else { "file tree" }
}

fn encrypted(is: bool) -> &'static str {
    if is {
        "yes: this file has the keys, keep it secret"
    } else {
        "no"
    }
}
