//! QEMU with faults of its nested virtualisation mended, for machines without KVM.
//!
//! Owns: building Debian's own source of the installed version with the patch beside it (`image/qemu/`), and keeping the
//! program under a key made from version, patch and options.
//! Refuses: other versions than the installed one, whose firmware it shares; and standing in the way: where it cannot be
//! built, Debian's program does, with its faults.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::paths::{self, Paths};
use crate::progress::Progress;
use crate::qemu::{Accelerator, QEMU};
use crate::{apt, command, digest, lock};

const PACKAGE: &str = "qemu-system-x86";
/// What the faults are, and how they are mended.
const PATCH: &str = include_str!("../qemu/nested-interrupts.patch");
/// Part of the cache key: count up when the steps below change what comes out.
const RECIPE: &str = "1";
/// What of QEMU the tests use. Devices are all in, as the list of them is QEMU's own.
const OPTIONS: [&str; 9] = [
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-fdt=system",
    "--enable-tcg",
    "--enable-slirp",
    "--enable-tpm",
    "--disable-werror",
    // As Debian's, or an emulator without its firmware would be found.
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu",
    // QEMU's own copy is not in Debian's source.
    "--meson=/usr/bin/meson",
];
/// Steps of the build, for the progress bar.
const STEPS_ESTIMATE: u64 = 1450;

/// The program to start: the mended one where it is needed and there, else Debian's, by its name.
pub(crate) fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let found = || {
        // It may have been built before this machine had KVM, which it cannot use.
        if Accelerator::detect() == Accelerator::Kvm {
            return None;
        }
        let home = home(&Paths::find().ok()?).ok()?;
        Some(home.join(QEMU)).filter(|program| program.is_file())
    };
    let found = PROGRAM.get_or_init(|| found().unwrap_or_else(|| PathBuf::from(QEMU)));
    found.clone()
}

/// Builds it, where this machine emulates and has it not. A failure is a warning: nodes boot without it, and nested guests
/// mostly live.
pub(crate) fn prepare(paths: &Paths) {
    if Accelerator::detect() == Accelerator::Kvm {
        return;
    }
    if let Err(error) = build(paths) {
        eprintln!(
            "warning: {error:#}\nwarning: Debian's QEMU is used as it is: nested guests end or stand still now and then \
             (docs/testing.md)"
        );
    }
}

/// Where it is kept.
fn home(paths: &Paths) -> Result<PathBuf> {
    let version = lock::source_package(PACKAGE)?;
    let key = digest::key(&[RECIPE, &version, PATCH, &OPTIONS.join(" ")]);
    Ok(paths.cache.join(format!("qemu/{key}")))
}

fn build(paths: &Paths) -> Result<()> {
    let home = home(paths)?;
    if home.is_dir() {
        return Ok(());
    }
    let _lock = paths::lock(&paths.cache)?;
    paths::appear(&home, |draft| {
        let source = lock::source_package(PACKAGE)?;
        let (name, version) = lock::name_and_version(&source)?;
        eprintln!("download the source of {name} {version} ...");
        let work = draft.join("source");
        paths::create(&work)?;
        let apt = apt::Private::new(&work, "deb-src").context("list Debian's source packages")?;
        apt.run(&["source", &format!("{name}={version}")])
            .with_context(|| format!("download the source of {name} {version}"))?;
        apt.close()?;
        let tree = paths::entries(&work)?
            .into_iter()
            .find(|path| path.join("configure").is_file());
        let tree = tree.with_context(|| format!("the source of {name} has no configure script"))?;
        make(&tree, &draft.join(QEMU))?;
        std::fs::remove_dir_all(&work).context("remove the source of QEMU")
    })
}

/// Patches and builds `tree`, and puts the program, without symbols, into `file`.
fn make(tree: &Path, file: &Path) -> Result<()> {
    let patch = tree.join("nested-interrupts.patch");
    paths::write(&patch, PATCH)?;
    let mut apply = command::clean("patch");
    apply.args(["--strip=1", "--input"]).arg(&patch);
    command::output(apply.current_dir(tree)).context("patch QEMU")?;
    let build = tree.join("build");
    paths::create(&build)?;
    let mut progress = Progress::new("build QEMU", STEPS_ESTIMATE);
    let mut configure = command::clean("../configure");
    configure.current_dir(&build).args(OPTIONS);
    command::output(&mut configure).context("configure QEMU")?;
    let mut ninja = command::clean("ninja");
    command::lines(ninja.current_dir(&build).arg(QEMU), |_| progress.step())
        .context("build QEMU")?;
    progress.finish();
    let mut strip = command::clean("strip");
    command::output(strip.arg("-o").arg(file).arg(build.join(QEMU)))?;
    let program = file.to_str().context("the cache's path is not text")?;
    let says = command::output(command::clean(program).arg("--version"))?;
    ensure!(says.starts_with("QEMU"), "the built QEMU says {says:?}");
    Ok(())
}
