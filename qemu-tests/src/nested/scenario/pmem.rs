//! A disk image as memory: EROFS on a pmem disk with DAX, as Linux mounts it.
//!
//! Owns: what the image holds, and the proof that a guest reads and runs it where it is.
//! Refuses: a copy in the guest. Its page cache does not grow by what it reads.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::mount::MsFlags;
use sys::process::Ended;
use types::vm::Pmem;

use super::Scenario;
use crate::inside::kib_of;
use crate::nested::guest::{Program, mount, say};
use crate::nested::toolkit::{Node, PATIENCE};
use crate::nested::{GUEST, IMAGE};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "an-image-is-mounted-read-and-run-where-it-is",
    run: maps,
}];

pub(super) const GUESTS: &[(&str, Program)] =
    &[("reads-pmem", read_pmem), ("runs-from-pmem", run_there)];

/// The files of the image: bytes that follow from their places, and `vmm-node`.
const CONTENT: &str = "content";
const PROGRAM: &str = "program";
const CONTENT_BYTES: usize = 4 << 20;
/// Of what is read without a copy nothing is in the page cache; the rest of a guest needs a little.
const CACHED_KIB_MAX: u64 = 1024;
const DISK: &str = "/dev/pmem0";
const PLACE: &str = "/image";
const PAGE: usize = 4096;
/// The driver writes eight bytes at a time.
const STORES: u64 = PAGE as u64 / 8;

/// Puts the files into `directory`, of which the test makes an image.
pub(in crate::nested) fn fill(directory: &Path, program: &[u8]) -> Result<()> {
    let content = directory.join(CONTENT);
    fs::write(content, pattern()).context("write the image's content")?;
    let path = directory.join(PROGRAM);
    fs::write(&path, program).context("write the image's program")?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, mode).context("make the image's program one")
}

fn pattern() -> Vec<u8> {
    let words = 0..CONTENT_BYTES as u64 / 8;
    let word = |place: u64| (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    words.flat_map(|place| word(place).to_le_bytes()).collect()
}

fn read_pmem() -> Result<()> {
    for (kind, place) in [("devtmpfs", "/dev"), ("sysfs", "/sys"), ("proc", "/proc")] {
        mount(kind, place)?;
    }
    write_is_refused()?;
    fs::create_dir(PLACE)?;
    let (kind, how) = (Some("erofs"), Some("dax=always"));
    nix::mount::mount(Some(DISK), PLACE, kind, MsFlags::MS_RDONLY, how).context("mount it")?;
    // The file system takes DAX back where it cannot have it.
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let line = mounts.lines().find(|line| line.starts_with(DISK));
    let line = line.context("it is not mounted")?;
    ensure!(line.contains("dax=always"), "{line}");

    let expected = pattern();
    let (mut found, before) = (Vec::with_capacity(CONTENT_BYTES), cached()?);
    let path = format!("{PLACE}/{CONTENT}");
    File::open(&path)?.read_to_end(&mut found).context("read")?;
    ensure!(found == expected, "the content is not what was packed");
    let grown = cached()?.saturating_sub(before);
    ensure!(grown <= CACHED_KIB_MAX, "{grown} KiB are copies");
    let denied = OpenOptions::new().write(true).open(&path);
    let denied = denied.err().map(|error| error.kind());
    ensure!(
        denied == Some(ErrorKind::ReadOnlyFilesystem),
        "{denied:?} for a write"
    );
    say(&format!("content is whole, {grown} KiB cached"));
    // It resets the machine.
    let program = Command::new(format!("{PLACE}/{PROGRAM}"))
        .env(GUEST, "runs-from-pmem")
        .status();
    program.context("run the program of the image")?;
    Ok(())
}

/// What the disk is asked to keep it does not, and says so.
fn write_is_refused() -> Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let disk = options.open(DISK).context("open the disk")?;
    let mut memory = vec![0; 2 * PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let page = &mut memory[start..start + PAGE];
    disk.read_exact_at(page, 0)?;
    let before = page.to_vec();
    page.fill(0xa5);
    disk.write_all_at(page, 0)
        .context("write, which the driver takes for done")?;
    let flushed = disk.sync_all();
    let error = flushed
        .as_ref()
        .err()
        .and_then(std::io::Error::raw_os_error);
    ensure!(error == Some(libc::EIO), "{flushed:?} for a flush");
    disk.read_exact_at(page, 0)?;
    ensure!(page == before, "the guest has written the image");
    Ok(())
}

fn cached() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    kib_of(&text, "Cached:").context("no Cached")
}

fn run_there() -> Result<()> {
    let own = fs::read_link("/proc/self/exe")?;
    say(&format!("runs from {}", own.display()));
    Ok(())
}

fn maps(node: &Node) -> Result<String> {
    let image = File::open(IMAGE).context("open the image")?;
    let mut plan = node.plan("maps", "reads-pmem")?;
    let fd = plan.pass(image);
    plan.spec.pmems.push(Pmem { fd });
    let mut machine = plan.start()?;
    let read = machine.line("content is whole", PATIENCE)?;
    let ran = machine.line("runs from", PATIENCE)?;
    ensure!(ran == format!("runs from {PLACE}/{PROGRAM}"), "{ran}");
    let life = machine.finish(PATIENCE)?;
    ensure!(life.ended == Ended::Code(0), "{life:?}");
    let (_, exits) = life.stopped()?;
    ensure!(exits.mmio_write >= STORES, "{exits:?}");
    Ok(read)
}
