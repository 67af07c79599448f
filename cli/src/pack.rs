//! From what people have to a packed image: of `flist pack`, and of `deploy` where the image is not packed.
//!
//! Owns: looking what an image is, the configuration that options make of its own, and what is said of it.
//! Refuses: forms of images (`flist::input` has them).

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use flist::disk::DiskFormat;
use flist::input::Input;
use flist::pack::{Packed, Progress};
use flist::seal::Salt;
use flist::store::DirStore;
use registry::Policy;
use tempfile::NamedTempFile;
use types::flist::ImageConfig;

use crate::args::{DiskForm, Pack};
use crate::failure::Usage;
use crate::screen::{Screen, mebibytes};
use crate::source::{self, Source};

/// What options say instead of the image, of how it is read and of the configuration that it brings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Changes {
    disk: Option<DiskForm>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<(String, String)>,
    user: Option<String>,
    workdir: Option<String>,
}

impl Changes {
    pub(crate) fn read(options: &Pack) -> Result<Self, Usage> {
        let text = options
            .entrypoint
            .iter()
            .chain(&options.cmd)
            .chain(&options.user)
            .chain(&options.workdir);
        if text.into_iter().any(|text| text.contains('\0')) {
            return Err(Usage("arguments cannot contain NUL bytes".to_owned()));
        }
        let relative = |workdir: &&String| !workdir.is_empty() && !workdir.starts_with('/');
        if let Some(workdir) = options.workdir.as_ref().filter(relative) {
            return Err(Usage(format!(
                "the working directory {workdir:?} does not begin with /"
            )));
        }
        Ok(Self {
            disk: options.disk,
            entrypoint: options.entrypoint.clone(),
            cmd: options.cmd.clone(),
            env: options.env.clone(),
            user: options.user.clone(),
            workdir: options.workdir.clone(),
        })
    }

    /// As `docker run` changes an image: another entry point drops the image's command, a variable is
    /// replaced in its place.
    fn of(&self, mut config: ImageConfig) -> ImageConfig {
        if !self.entrypoint.is_empty() {
            config.entrypoint.clone_from(&self.entrypoint);
            config.cmd.clear();
        }
        if !self.cmd.is_empty() {
            config.cmd.clone_from(&self.cmd);
        }
        for (name, value) in &self.env {
            let is_this = |held: &&mut String| {
                let rest = held.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
            };
            let entry = format!("{name}={value}");
            match config.env.iter_mut().find(is_this) {
                Some(held) => *held = entry,
                None => config.env.push(entry),
            }
        }
        if let Some(user) = &self.user {
            config.user.clone_from(user);
        }
        if let Some(workdir) = &self.workdir {
            config.working_dir.clone_from(workdir);
        }
        config
    }
}

/// Packs an image into `store`, the `.flist` file last, and says what it was.
pub(crate) fn pack(
    screen: &Screen,
    source: &Source,
    changes: &Changes,
    salt: Option<&Salt>,
    store: &mut DirStore,
    policy: &Policy,
) -> anyhow::Result<Packed> {
    let spool = std::env::temp_dir();
    let cannot = || format!("cannot pack {source}");
    let roomy = |error| with_room(error, &spool);
    let (input, what) = match source {
        Source::Path(path) => {
            let input = match changes.disk {
                Some(DiskForm::Raw) => Input::disk(path, DiskFormat::Raw),
                Some(DiskForm::Qcow2) => Input::disk(path, DiskFormat::Qcow2),
                None => Input::open(path, &spool),
            };
            let input = input.map_err(|error| roomy(error.into()))?;
            let what = input.describe();
            (input, what)
        }
        Source::Registry(reference) => {
            let layout = source::pull(screen, reference, policy).map_err(roomy)?;
            // The layers are unpacked, so that the layout need not stay.
            let input = Input::open(layout.path(), &spool).map_err(|error| roomy(error.into()));
            (input.with_context(cannot)?, "image of a registry")
        }
    };
    let config = changes.of(input.config());
    // The total is known with the first report.
    let meter = screen.meter("packing", 1);
    let mut report = |progress: Progress| {
        meter.set_total(progress.total_bytes);
        meter.set(progress.done_bytes);
    };
    let packed = flist::pack::pack_with(input.source(), &config, salt, store, &mut report);
    meter.done();
    let packed = packed.with_context(cannot)?;
    match salt {
        None => store.put_flist(&packed.digest, &packed.flist),
        Some(_) => put_secret(&store.flist_path(&packed.digest), &packed.flist),
    }
    .with_context(cannot)?;
    let stats = packed.stats;
    let content = match input {
        Input::Disk(..) => format!("a disk of {}", mebibytes(stats.disk_bytes)),
        Input::Directory(_) | Input::Tar(_) | Input::Image(_) => format!("{} files", stats.files),
    };
    screen.note(&format!(
        "packed {source} ({what}): {content}, {} into {} in {} chunks",
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
    Ok(packed)
}

/// Writes an flist that holds keys: for its owner alone, from its first byte.
fn put_secret(path: &Path, flist: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut draft = NamedTempFile::new_in(directory)?;
    draft.write_all(flist)?;
    draft.persist(path)?;
    Ok(())
}

/// Layers are unpacked beside the image, and `/tmp` is small on many machines.
fn with_room(error: anyhow::Error, spool: &Path) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|e| e.kind() == io::ErrorKind::StorageFull)
    });
    if full {
        let advice = format!(
            "{} has no room to unpack the image: set TMPDIR to a directory that has",
            spool.display()
        );
        error.context(advice)
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_an_images_configuration_as_docker_does() {
        let text = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let image = ImageConfig {
            entrypoint: text(&["/entry"]),
            cmd: text(&["serve"]),
            env: text(&["PATH=/bin", "A", "AB=1"]),
            user: "web".to_owned(),
            working_dir: "/srv".to_owned(),
            stop_signal: "SIGQUIT".to_owned(),
        };
        assert_eq!(Changes::default().of(image.clone()), image);
        let command = Changes {
            cmd: text(&["check"]),
            env: vec![
                ("A".to_owned(), "2".to_owned()),
                ("C".to_owned(), String::new()),
            ],
            user: Some(String::new()),
            ..Changes::default()
        };
        let changed = command.of(image.clone());
        assert_eq!(changed.entrypoint, ["/entry"]);
        assert_eq!(changed.cmd, ["check"]);
        assert_eq!(changed.env, ["PATH=/bin", "A=2", "AB=1", "C="]);
        assert_eq!(
            (changed.user.as_str(), changed.stop_signal.as_str()),
            ("", "SIGQUIT")
        );
        let program = Changes {
            entrypoint: text(&["/other", "-v"]),
            workdir: Some("/".to_owned()),
            ..Changes::default()
        };
        let changed = program.of(image);
        assert_eq!(changed.entrypoint, ["/other", "-v"]);
        assert!(changed.cmd.is_empty());
        assert_eq!(changed.working_dir, "/");
    }

    #[test]
    fn a_full_disk_says_where_room_is_needed() {
        let full = anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull));
        let said = with_room(full.context("layer"), Path::new("/tmp")).to_string();
        assert!(said.contains("TMPDIR"), "{said}");
        let other = anyhow::Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert!(
            !with_room(other, Path::new("/tmp"))
                .to_string()
                .contains("TMPDIR")
        );
    }
}
