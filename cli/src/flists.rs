//! `sifr flist`: packing images and looking into them.
//!
//! Owns: what the two commands show. Refuses: packing (`pack` has it) and the format (`flist` has it).

use std::path::Path;

use anyhow::Context as _;
use flist::pack::Packed;
use flist::store::DirStore;
use serde_json::json;

use crate::Context;
use crate::args::{FlistCommand, Pack};
use crate::pack::Changes;
use crate::push::LocalImage;
use crate::screen::{Screen, fields, mebibytes};
use crate::source::Source;

pub(crate) fn flist(context: &Context, command: FlistCommand) -> anyhow::Result<()> {
    match command {
        FlistCommand::Pack(options) => pack(&context.screen, &options),
        FlistCommand::Show { file } => show(&context.screen, &LocalImage::open(&file)?),
    }
}

fn pack(screen: &Screen, options: &Pack) -> anyhow::Result<()> {
    let changes = Changes::read(options)?;
    let mut store = DirStore::open(&options.store)
        .with_context(|| format!("cannot write the store {}", options.store.display()))?;
    let source = Source::read(&options.source, Path::new(""))?;
    let Packed { digest, stats, .. } = crate::pack::pack(screen, &source, &changes, &mut store)?;
    let path = store.flist_path(&digest);
    let value = json!({
        "digest": digest,
        "file": path,
        "files": stats.files,
        "content_bytes": stats.content_bytes,
        "chunks": stats.chunks,
        "stored_bytes": stats.stored_bytes,
        "xattrs_dropped": stats.xattrs_dropped,
    });
    screen.show(&value, || path.display().to_string())
}

fn show(screen: &Screen, image: &LocalImage) -> anyhow::Result<()> {
    let flist = &image.flist;
    let value = json!({
        "digest": image.digest,
        "config": flist.config(),
        "disk_bytes": flist.disk_bytes(),
        "metadata_bytes": flist.metadata_bytes(),
        "chunks": flist.chunks().len(),
        "stored_bytes": image.stored_bytes(),
    });
    let config = flist.config();
    screen.show(&value, || {
        fields(&[
            ("digest", image.digest.to_string()),
            ("entrypoint", config.entrypoint.join(" ")),
            ("cmd", config.cmd.join(" ")),
            ("env", config.env.join(" ")),
            ("user", config.user.clone()),
            ("workdir", config.working_dir.clone()),
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
