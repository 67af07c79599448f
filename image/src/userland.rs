//! Debian user lands: with a web server, which the demonstration runs, and with others, which the benchmark starts.
//!
//! Owns: making them with `mmdebstrap` from the mirror this machine uses, and keeping them.
//! Refuses: being in the image. They are tenants' content.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::paths::{self, Paths};
use crate::progress::Progress;
use crate::{apt, command, digest};

/// The page that proves that all of it works.
pub(crate) const PAGE: &str = "<!doctype html>\n<title>Sifr</title>\n\
    <p>This page comes from Debian's nginx, in a micro VM, on a node with no login.</p>\n";
/// What the container runs.
pub(crate) const ENTRYPOINT: [&str; 3] = ["/usr/sbin/nginx", "-g", "daemon off;"];

/// Besides the essential packages.
const PACKAGES: &str = "nginx-light";
/// What a server does not read.
const EXCLUDED: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
];
/// Lines mmdebstrap prints, for the progress bar.
const LINES_ESTIMATE: u64 = 400;
/// Dates of all files: the same tree gives the same chunks.
const EPOCH: &str = "1767225600";

/// The demonstration's user land as an uncompressed tar, from the cache or new.
pub fn userland(paths: &Paths) -> Result<PathBuf> {
    with(paths, "debian-nginx.tar", PACKAGES)
}

/// One with these packages (separated by commas) besides the essential ones, under this name.
pub fn with(paths: &Paths, name: &str, packages: &str) -> Result<PathBuf> {
    let suite = suite()?;
    let key = digest::key(&[&suite, packages, PAGE, &EXCLUDED.join(" "), EPOCH]);
    let directory = paths.cache.join(format!("userland/{key}"));
    if !directory.is_dir() {
        let _lock = paths::lock(&paths.cache)?;
        paths::appear(&directory, |draft| {
            let (page, sources) = (draft.join("index.html"), draft.join("debian.sources"));
            paths::write(&page, PAGE)?;
            paths::write(&sources, apt::sources("deb")?)?;
            let mut debstrap = command::clean("mmdebstrap");
            debstrap.args(["--variant=minbase", "--format=tar"]);
            debstrap.arg(format!("--include={packages}"));
            for path in EXCLUDED {
                debstrap.arg(format!("--dpkgopt=path-exclude={path}"));
            }
            debstrap.arg("--customize-hook=mkdir -p \"$1/var/www/html\"");
            let upload = format!("upload \"{}\" /var/www/html/index.html", page.display());
            debstrap.arg(format!("--customize-hook={upload}"));
            debstrap.arg(&suite).arg(draft.join(name)).arg(&sources);
            debstrap.env("SOURCE_DATE_EPOCH", EPOCH);
            let mut progress = Progress::new("make a Debian user land", LINES_ESTIMATE);
            command::lines(&mut debstrap, |_| progress.step())?;
            progress.finish();
            Ok(())
        })?;
    }
    Ok(directory.join(name))
}

/// The Debian release of this machine: its mirror surely has it.
fn suite() -> Result<String> {
    let release = paths::text("/etc/os-release".as_ref())?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("/etc/os-release names no Debian release")?
        .trim_matches('"')
        .to_owned())
}
