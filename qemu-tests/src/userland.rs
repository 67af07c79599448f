//! Container images for tests: busybox, a few files, one flist.
//!
//! Owns: the tree that is packed. Refuses: being on the node's own image.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &str = "sh cat cut echo httpd id ip kill ls mount nc nslookup ping ps pwd sed sleep sync test touch true \
                       wget dd arping sha256sum";

/// Packs a busybox userland with `sifr flist pack` into `<directory>/store`; gives the .flist file.
pub fn busybox(sifr: &Path, directory: &Path) -> Result<PathBuf> {
    variant(sifr, directory, "store", 0)
}

/// The same with other bytes in its one large file, into `<directory>/<store>`: an image of whose large
/// file no node has a chunk yet.
pub fn variant(sifr: &Path, directory: &Path, store: &str, seed: u32) -> Result<PathBuf> {
    let root = directory.join(format!("{store}-tree"));
    tree(&root, seed)?;
    pack(sifr, &root, &directory.join(store))
}

/// The same encrypted, with its chunks in another directory than its flist, which is the key: the .flist file, and the
/// directory whose `chunks` anybody may have.
pub fn sealed(sifr: &Path, directory: &Path, name: &str, seed: u32) -> Result<(PathBuf, PathBuf)> {
    let [root, mine, public] =
        ["tree", "key", "public"].map(|part| directory.join(format!("{name}-{part}")));
    tree(&root, seed)?;
    let home = directory.join("home");
    let flist = pack_with(sifr, &root, &mine, |pack| {
        pack.arg("--encrypt").env("SIFR_HOME", home)
    })?;
    fs::create_dir(&public)?;
    fs::rename(mine.join("chunks"), public.join("chunks")).context("part chunks and flist")?;
    Ok((flist, public))
}

/// The user land as a directory; `seed` is in the bytes of its one large file.
pub fn tree(root: &Path, seed: u32) -> Result<()> {
    for part in ["bin", "etc", "tmp", "www", "dev", "proc", "sys", "run"] {
        fs::create_dir_all(root.join(part))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).context("copy busybox: run 'make setup'")?;
    for applet in APPLETS.split(' ') {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/www:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nweb:x:33:\nlog:x:44:web\n",
    )?;
    fs::write(root.join("www/index.html"), "It works, in a micro VM.\n")?;
    // Large enough for several chunks, and different in each, so that one can be lost or damaged alone.
    let noise: Vec<u8> = (seed << 24..(seed << 24) + (1 << 20))
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(root.join("www/large.bin"), noise).context("write the large file")
}

pub(crate) fn pack(sifr: &Path, root: &Path, store: &Path) -> Result<PathBuf> {
    pack_with(sifr, root, store, |pack| pack)
}

fn pack_with(
    sifr: &Path,
    root: &Path,
    store: &Path,
    more: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<PathBuf> {
    let mut pack = Command::new(sifr);
    pack.args(["flist", "pack"])
        .arg(root)
        .arg("-o")
        .arg(store)
        .args([
            "--cmd", "httpd", "--cmd", "-f", "--cmd", "-v", "--cmd", "-h", "--cmd", "/www",
        ])
        .args(["--env", "PATH=/bin"]);
    let output = more(&mut pack).output();
    let output = output.context("start sifr flist pack")?;
    ensure!(
        output.status.success(),
        "sifr flist pack: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let files = fs::read_dir(store)?.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "flist"))
        .context("no .flist was written")
}
