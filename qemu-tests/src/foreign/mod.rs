//! Our images on a kernel that is not ours: Debian's, as its package brings it.
//!
//! Owns: a boot of that kernel with packed images as disks, and what it says of every file on them.
//! Refuses: our own kernels and programs between image and kernel: `mount -t erofs` is all.

pub mod declared;
pub mod directory;
mod listing;

use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flist::materialise::materialise;
use flist::pack::{Source, pack};
use flist::store::DirStore;
use image::assemble::Image;
use image::debian;
use image::paths::Paths;
use image::qemu::{Bus, Disk, Machine, Node};
use nix::mount::MsFlags;
use nix::sys::reboot::RebootMode;
use types::cpio::Archive;
use types::flist::ImageConfig;
use types::{Bytes, Digest};

use crate::archive;
use crate::inside;

pub use listing::{Content, Listing};

const PROGRAM_NAME: &str = "foreign-node";
/// What the init says when all is written, before it ends the machine.
const LISTED: &str = "foreign: listed by";
/// A boot of a whole distribution's kernel in an emulator, and a few megabytes read.
const PATIENCE: Duration = Duration::from_secs(300);
/// The listings of all disks.
const LISTINGS_BYTES: u64 = 64 << 20;
/// Loads the modules, for which our programs have no call, and becomes the program.
const SCRIPT: &str = "#!/busybox sh\n\
    /busybox mount -t devtmpfs dev /dev\n\
    for module in /modules/*; do /busybox insmod $module || echo \"foreign: $module\"; done\n\
    exec /program\n";
const DISKS: &str = "bcdefgh";

/// The disk of a packed image.
pub fn disk(source: Source<'_>, file: &Path) -> Result<()> {
    let kept = tempfile::tempdir()?;
    let mut chunks = DirStore::open(kept.path()).context("make a store")?;
    let packed = pack(source, &ImageConfig::default(), &mut chunks, &mut |_| {});
    let disk = File::create(file).context("make a disk")?;
    let mut fetch = |stored: &Digest| chunks.read_chunk(stored);
    let flist = packed.context("pack an image")?.flist;
    materialise(&mut Cursor::new(flist), &mut fetch, &disk).context("unpack an image")
}

/// What Debian's kernel finds on each of these disks, and what that kernel calls itself.
pub fn listings(disks: &[PathBuf]) -> Result<(String, Vec<Listing>)> {
    let paths = Paths::find()?;
    let debian = debian::kernel(&paths)?;
    let work = tempfile::tempdir()?;
    let answer = work.path().join("answer");
    File::create(&answer)?.set_len(LISTINGS_BYTES)?;
    let image = Image {
        dist: paths.dist.clone(),
        kernel: debian.image.clone(),
        initramfs: paths.dist.clone(),
        cli: paths.dist.clone(),
    };
    let mut machine = Machine::new(&image, "quiet panic=-1 rdinit=/init");
    machine.nets.clear();
    machine.memory = Bytes::gib(1);
    for (number, file) in [&answer].into_iter().chain(disks).enumerate() {
        machine.disks.push(Disk {
            file: file.clone(),
            bus: Bus::Virtio,
            serial: format!("disk{number}"),
        });
    }
    let initramfs = initramfs(&paths, &debian.modules, disks.len())?;
    let _file = archive::instead(&mut machine, &initramfs, "")?;
    let mut node = Node::spawn(&machine)?;
    let line = node.wait_for_line(LISTED, PATIENCE)?;
    node.wait_for_end(PATIENCE)?;
    let kernel = line.split_once(LISTED).map_or("", |(_, kernel)| kernel);
    let mut text = Vec::new();
    let mut file = File::open(&answer)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= LISTINGS_BYTES, "a listing of {length} bytes");
    file.take(length).read_to_end(&mut text)?;
    let all = serde_json::from_slice(&text).context("read the listings")?;
    Ok((kernel.trim().to_owned(), all))
}

fn initramfs(paths: &Paths, modules: &[PathBuf], disks: usize) -> Result<Vec<u8>> {
    ensure!(disks < DISKS.len(), "{disks} disks");
    let mut archive = Archive::default();
    for directory in ["/dev", "/image", "/modules", "/proc"] {
        archive.directory(directory, 0o755)?;
    }
    archive.character_device("/dev/console", 0o600, (5, 1))?;
    archive.file("/init", 0o755, SCRIPT.as_bytes())?;
    let busybox = archive::read(Path::new(crate::userland::BUSYBOX))?;
    archive.file("/busybox", 0o755, busybox)?;
    let program = archive::program(paths, PROGRAM_NAME)?;
    archive.file("/program", 0o755, program)?;
    for module in modules {
        let name = module.file_name().context("a module has a name")?;
        let name = format!("/modules/{}", name.to_string_lossy());
        archive.file(&name, 0o644, archive::read(module)?)?;
    }
    Ok(archive.encode())
}

/// The program: lists every disk behind the first, writes the answer on the first, ends the machine.
pub fn main() -> Result<()> {
    inside::mount_at("proc", "/proc")?;
    let mut all = Vec::new();
    for letter in DISKS.chars() {
        let device = format!("/dev/vd{letter}");
        if !Path::new(&device).exists() {
            break;
        }
        all.push(listed(&device).with_context(|| format!("list {device}"))?);
    }
    let text = serde_json::to_vec(&all)?;
    let mut answer = fs::OpenOptions::new().write(true).open("/dev/vda")?;
    answer.write_all(&(text.len() as u64).to_le_bytes())?;
    answer.write_all(&text)?;
    answer.sync_all()?;
    let version = fs::read_to_string("/proc/version").context("read the kernel's version")?;
    println!("\n{LISTED} {}", version.trim());
    inside::end(RebootMode::RB_AUTOBOOT)
}

fn listed(device: &str) -> Result<Listing> {
    let flags = MsFlags::MS_RDONLY;
    nix::mount::mount(Some(device), "/image", Some("erofs"), flags, None::<&str>)
        .context("mount it")?;
    let listing = Listing::of(Path::new("/image"))?;
    nix::mount::umount("/image").context("unmount it")?;
    Ok(listing)
}
