//! `sifr flist`: packing images and looking into them.
//!
//! Owns: the image configuration that options make. Refuses: the format itself (`flist` has it).

use std::fs::{self, File};

use anyhow::Context as _;
use flist::pack::{Packed, Source};
use flist::store::DirStore;
use serde_json::json;
use types::flist::ImageConfig;

use crate::Context;
use crate::args::{FlistCommand, Pack};
use crate::failure::Usage;
use crate::push::{LocalImage, show_packing};
use crate::screen::{Screen, fields, mebibytes};

pub(crate) fn flist(context: &Context, command: FlistCommand) -> anyhow::Result<()> {
    match command {
        FlistCommand::Pack(options) => pack(&context.screen, &options),
        FlistCommand::Show { file } => show(&context.screen, &LocalImage::open(&file)?),
    }
}

fn pack(screen: &Screen, options: &Pack) -> anyhow::Result<()> {
    let config = config(options)?;
    let source_path = &options.source;
    let cannot = || format!("cannot read {}", source_path.display());
    let is_directory = fs::metadata(source_path).with_context(cannot)?.is_dir();
    let archive;
    let source = if is_directory {
        Source::Directory(source_path)
    } else {
        archive = File::open(source_path).with_context(cannot)?;
        Source::Tar(&archive)
    };
    let cannot_write = || format!("cannot write the store {}", options.store.display());
    let mut store = DirStore::open(&options.store).with_context(cannot_write)?;
    // The total is known with the first report.
    let meter = screen.meter("packing", 1);
    let packed = flist::pack::pack(source, &config, &mut store, &mut |progress| {
        show_packing(&meter, progress)
    });
    meter.done();
    let Packed {
        flist,
        digest,
        stats,
    } = packed.with_context(|| format!("cannot pack {}", source_path.display()))?;
    store
        .put_flist(&digest, &flist)
        .with_context(cannot_write)?;
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
    screen.note(&format!(
        "packed {} files, {} into {} in {} chunks",
        stats.files,
        mebibytes(stats.content_bytes),
        mebibytes(stats.stored_bytes),
        stats.chunks
    ));
    if stats.xattrs_dropped != 0 {
        screen.note(&format!(
            "left out {} extended attributes that the image cannot hold",
            stats.xattrs_dropped
        ));
    }
    screen.show(&value, || path.display().to_string())
}

fn config(options: &Pack) -> Result<ImageConfig, Usage> {
    let text = options
        .entrypoint
        .iter()
        .chain(&options.cmd)
        .chain([&options.user, &options.workdir]);
    if text.into_iter().any(|text| text.contains('\0')) {
        return Err(Usage("arguments cannot contain NUL bytes".to_owned()));
    }
    if !options.workdir.is_empty() && !options.workdir.starts_with('/') {
        return Err(Usage(format!(
            "the working directory {:?} does not begin with /",
            options.workdir
        )));
    }
    Ok(ImageConfig {
        entrypoint: options.entrypoint.clone(),
        cmd: options.cmd.clone(),
        env: options
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        user: options.user.clone(),
        working_dir: options.workdir.clone(),
        stop_signal: String::new(),
    })
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
