//! What a person names as an image: something on this machine, or an image of a registry.
//!
//! Owns: telling them apart, and bringing the second here. Refuses: registries' ways (`registry` has them).

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use registry::{Access, Policy, Pulled, Reference};
use tempfile::TempDir;

use crate::failure::Usage;
use crate::screen::{Screen, mebibytes};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Path(PathBuf),
    Registry(Reference),
}

impl Source {
    /// A path is relative to `base`. What is there counts before a registry of that name.
    pub(crate) fn read(text: &Path, base: &Path) -> Result<Self, Usage> {
        let path = base.join(text);
        let is_text = text.to_str().filter(|_| !path.exists());
        match is_text.and_then(Reference::read) {
            Some(Ok(reference)) => Ok(Self::Registry(reference)),
            Some(Err(error)) => Err(Usage(error.to_string())),
            None => Ok(Self::Path(path)),
        }
    }

    /// Different for different sources.
    pub(crate) fn key(&self) -> (bool, PathBuf) {
        match self {
            Self::Path(path) => (false, path.clone()),
            Self::Registry(reference) => (true, reference.to_string().into()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

/// Brings an image here, and says so. The directory is an OCI layout.
pub(crate) fn pull(screen: &Screen, image: &Reference, policy: &Policy) -> anyhow::Result<TempDir> {
    let layout = tempfile::tempdir().context("cannot make a temporary directory")?;
    let access = Access::of_this_machine(|name| std::env::var_os(name))?;
    let access = access.with_policy(policy.clone());
    // The total is known with the first report.
    let meter = screen.meter("pulling", 1);
    let pulled = alone(async || {
        let mut report = |progress: registry::Progress| {
            meter.set_total(progress.total_bytes);
            meter.set(progress.done_bytes);
        };
        registry::pull(image, &access, layout.path(), &mut report).await
    });
    meter.done();
    let Pulled {
        from,
        digest,
        layers,
        bytes,
    } = pulled?.with_context(|| format!("cannot pull {image}"))?;
    let mirror = if from.ends_with(image.registry()) {
        String::new()
    } else {
        format!(" from {from}")
    };
    let size = mebibytes(bytes);
    screen.note(&format!(
        "pulled {image}{mirror}: {digest}, {size} in {layers} layers"
    ));
    Ok(layout)
}

/// Does asynchronous work from code that is not asynchronous itself, and that asynchronous code calls: packing
/// takes its time on this thread in any case.
fn alone<T: Send>(work: impl AsyncFnOnce() -> T + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(work()))
        });
        thread.join().expect("a panic has ended the program")
    })
}
