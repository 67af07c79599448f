//! This machine's side: one boot of a node for one group of scenarios.
//!
//! Owns: the node's initramfs, and reading what its console says.
//! Refuses: a group that says nothing, and one whose last line never comes.

use std::fs;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flist::materialise::materialise;
use flist::pack::Source;
use flist::store::DirStore;
use image::assemble::Image;
use image::kernel::{self, Kind};
use image::paths::Paths;
use image::qemu::{Machine, Node};
use image::setup::BARE_TARGET;
use types::cpio::Archive;
use types::flist::ImageConfig;
use types::{Bytes, Digest};

use super::report::{BEGIN, END, Line};
use super::scenario::TERMINAL_GROUP;
use super::{
    BZIMAGE, CONTAINER_INITRAMFS, GROUP, HOSTILE, IMAGE, INIT, INITRAMFS, IP, KERNEL, ONLY, SEED,
    SEED_WORD, VMM, scenario,
};
use crate::archive;

const PROGRAM_NAME: &str = "vmm-node";
const RUST_TARGET: &str = "x86_64-unknown-linux-musl";
/// A group's guests, their disks, and both forms of the archive.
const MEMORY: Bytes = Bytes::gib(3);
/// Monitor threads and vCPUs that really run at once find what turns on one processor hide.
const CPUS: u8 = 2;
/// A node that ends without a word, or stands still, is booted once more (docs/testing.md says why). What a guest can do to
/// its node, with the same seed, it does each time.
const BOOTS: usize = 2;
/// A node on busy emulated processors measures its TSC anew some seconds after its boot, and finds as much as a thousandth more
/// or less. To a snapshot of before it would be another processor, as KVM takes 250 millionths for the same.
const TSC_TOLERANCE: &str = "kvm.tsc_tolerance_ppm=10000";
/// How long a node may say nothing. The longest scenarios take half a minute, on processors of their own.
const SILENCE: Duration = Duration::from_secs(300);
/// A node that stood still all the time would run nothing.
const BETWEEN_PAUSES: Duration = Duration::from_millis(5);
/// Where interrupts are lost or given twice, some dozens end a guest.
const PAUSES_MIN: u64 = 100;
/// /dev/console and /dev/null (kernel document `admin-guide/devices.txt`).
const CONSOLE: (u32, u32) = (5, 1);
const NULL: (u32, u32) = (1, 3);

/// Boots a node that runs the scenarios of `group`, or the one that [`ONLY`] names, and says what became of
/// each. An error if any failed.
pub fn run(group: &str) -> Result<()> {
    let what = match std::env::var(ONLY) {
        Ok(only) => format!("{group}/{only}"),
        Err(_) => group.to_owned(),
    };
    boot(group, &what, BOOTS, once)
}

/// The same of one `scenario`, in a node whose processors are stopped and go on all the while.
pub fn run_with_pauses(group: &str, scenario: &str) -> Result<()> {
    // What is looked for comes now and then: another boot would hide it.
    boot(group, &format!("{group}/{scenario}"), 1, once_with_pauses)
}

fn boot(
    group: &str,
    what: &str,
    boots: usize,
    once: fn(&Machine) -> Result<Vec<Line>>,
) -> Result<()> {
    let expected = scenario::named(what)?.len();
    let paths = Paths::find()?;
    let initramfs = node(&paths)?;
    let target = paths.root.join("target");
    fs::create_dir_all(&target).context("make the directory for the console")?;
    let log = target.join(format!("nested-{group}.log"));
    let mut machine = machine(&paths, log)?;
    if group == TERMINAL_GROUP {
        machine.serial = Some(target.join(format!("nested-{group}.terminal")));
    }
    let resets = target.join(format!("nested-{group}.resets"));
    machine.resets = Some(resets.clone());
    let mut arguments = format!("loglevel=1 {TSC_TOLERANCE} rdinit={INIT} {GROUP}={what}");
    if let Ok(seed) = std::env::var(SEED) {
        arguments.push_str(&format!(" {SEED_WORD}={seed}"));
    }
    let _file = archive::instead(&mut machine, &initramfs, &arguments)?;
    let mut tries = (1..=boots).map(|boot| (boot, once(&machine)));
    let told = tries.find_map(|(boot, told)| match told {
        Err(error) if boot < boots => {
            let why = triple_fault(&resets);
            println!("the node that runs {what}, and once more: {why}{error:#}");
            None
        }
        told => Some(told),
    });
    let lines = told.expect("the last boot is told of, whatever becomes of it");
    let lines = lines.with_context(|| format!("the node that runs {what}"))?;
    let failed = lines.iter().filter(|l| matches!(l, Line::Failed { .. }));
    let failed: Vec<_> = failed.map(ToString::to_string).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    let ok = lines
        .iter()
        .filter(|l| matches!(l, Line::Ok { .. }))
        .count();
    ensure!(ok == expected, "{ok} of {expected} scenarios have run");
    Ok(())
}

/// Whether the node's own processor has ended it. What it held then is in `resets`.
fn triple_fault(resets: &Path) -> String {
    match fs::read_to_string(resets) {
        Ok(text) if text.contains("Triple fault") => {
            format!("a triple fault, see {}; ", resets.display())
        }
        Ok(_) | Err(_) => String::new(),
    }
}

/// What one boot says of its scenarios. An error: the node itself came to no end.
fn once(machine: &Machine) -> Result<Vec<Line>> {
    follow(&Node::spawn(machine)?, machine)
}

/// The same while its processors are stopped and go on.
fn once_with_pauses(machine: &Machine) -> Result<Vec<Line>> {
    let node = Node::spawn(machine)?;
    node.wait_for_line(BEGIN, SILENCE)?;
    let done = AtomicBool::new(false);
    let (lines, pauses) = thread::scope(|scope| {
        let pauses = scope.spawn(|| pause_until(&node, &done));
        let lines = follow(&node, machine);
        done.store(true, Ordering::Relaxed);
        (lines, pauses.join().expect("no panic in a pause"))
    });
    let (lines, pauses) = (lines?, pauses?);
    println!("{pauses} pauses");
    ensure!(pauses >= PAUSES_MIN, "{pauses} pauses show nothing");
    Ok(lines)
}

/// How often it was paused. It has ended, or ends now, where its monitor answers no more.
fn pause_until(node: &Node, done: &AtomicBool) -> Result<u64> {
    let mut pauses = 0;
    while !done.load(Ordering::Relaxed) {
        let paused = node.pause().and_then(|()| node.resume());
        match paused {
            Ok(()) => pauses += 1,
            Err(_) if node.console().contains(END) => break,
            Err(error) => return Err(error.context("pause the node")),
        }
        thread::sleep(BETWEEN_PAUSES);
    }
    Ok(pauses)
}

fn follow(node: &Node, machine: &Machine) -> Result<Vec<Line>> {
    if let Some(port) = &machine.serial {
        node.wait_for_line(BEGIN, SILENCE)?;
        type_back(port)?;
    }
    let mut said = 0;
    let (ended, console) = loop {
        let ended = node.wait_for_line(END, SILENCE);
        let console = node.console();
        // Where the node is gone, the second wait ends at once.
        if ended.is_ok() || console.len() <= said {
            break (ended, console);
        }
        said = console.len();
    };
    let lines: Vec<_> = console.lines().filter_map(Line::parse).collect();
    for line in &lines {
        println!("{line}");
    }
    ended.map(|_| lines)
}

/// What the node writes to this port of its comes back, until the node ends.
fn type_back(port: &Path) -> Result<()> {
    let mut out = UnixStream::connect(port).context("connect to the node's terminal")?;
    let mut typed = out.try_clone().context("share the node's terminal")?;
    thread::spawn(move || std::io::copy(&mut typed, &mut out));
    Ok(())
}

/// Both kernels are from the cache, or are built now. What the console says is also in `log`, as it comes.
fn machine(paths: &Paths, log: PathBuf) -> Result<Machine> {
    let kernel = kernel::kernel(paths, Kind::Host)?.file;
    let mut machine = Machine::new(
        &Image {
            dist: paths.dist.clone(),
            kernel,
            initramfs: paths.dist.clone(),
            cli: paths.dist.clone(),
        },
        "",
    );
    machine.memory = MEMORY;
    machine.console_log = Some(log);
    machine.cpus = CPUS;
    machine.nets.clear();
    Ok(machine)
}

fn node(paths: &Paths) -> Result<Vec<u8>> {
    let program = archive::program(paths, PROGRAM_NAME)?;
    let kernel = archive::read(&kernel::kernel(paths, Kind::Guest)?.file)?;
    let own = archive::read(&kernel::kernel(paths, Kind::Host)?.file)?;
    let mut node = Archive::default();
    for directory in ["/bin", "/dev", "/guest", "/proc", "/run", "/sys"] {
        node.directory(directory, 0o755)?;
    }
    node.character_device("/dev/console", 0o600, CONSOLE)?;
    node.character_device("/dev/null", 0o666, NULL)?;
    node.file(INITRAMFS, 0o644, archive::guest(&program)?)?;
    let init = archive::built(paths, "guest", "sifr-guest", RUST_TARGET)?;
    node.file(CONTAINER_INITRAMFS, 0o644, archive::guest(&init)?)?;
    node.file(IMAGE, 0o644, erofs(&program)?)?;
    node.file(INIT, 0o755, program)?;
    node.file(VMM, 0o755, monitor(paths)?)?;
    node.file(KERNEL, 0o644, kernel)?;
    node.file(BZIMAGE, 0o644, own)?;
    let mut ip = archive::libraries(Path::new(IP))?;
    ip.insert(PathBuf::from(IP));
    archive::at_their_places(&mut node, &ip)?;
    let hostile = archive::built(paths, "hostile", "hostile", BARE_TARGET)?;
    node.file(HOSTILE, 0o644, hostile)?;
    Ok(node.encode())
}

/// A packed image as our own packer makes it: the disk of a workload.
fn erofs(program: &[u8]) -> Result<Vec<u8>> {
    let (tree, kept) = (tempfile::tempdir()?, tempfile::tempdir()?);
    scenario::pmem::fill(tree.path(), program)?;
    let mut chunks = DirStore::open(kept.path()).context("make a store")?;
    let source = Source::Directory(tree.path());
    let packed = flist::pack::pack(source, &ImageConfig::default(), &mut chunks, &mut |_| {});
    let packed = packed.context("pack an image")?;
    let mut disk = tempfile::tempfile().context("make a disk")?;
    let mut fetch = |stored: &Digest| chunks.read_chunk(stored);
    materialise(&mut Cursor::new(packed.flist), &mut fetch, &disk).context("unpack an image")?;
    let mut bytes = Vec::new();
    disk.seek(SeekFrom::Start(0))?;
    disk.read_to_end(&mut bytes).context("read an image")?;
    Ok(bytes)
}

/// The shipped monitor, where the image is of this very commit; else one of the tree as it stands.
fn monitor(paths: &Paths) -> Result<Vec<u8>> {
    match Image::current(paths) {
        Some(image) => archive::file_in(&archive::unpacked(&image)?, VMM),
        None => archive::built(paths, "vmm", "sifr-vmm", RUST_TARGET),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_its_processor_ended_is_told_from_one_that_stopped() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("resets");
        assert_eq!(triple_fault(&file), "");
        fs::write(&file, "CPU Reset (CPU 0)\n").expect("a file");
        assert_eq!(triple_fault(&file), "");
        fs::write(&file, "CPU Reset (CPU 0)\nTriple fault\n").expect("a file");
        assert!(triple_fault(&file).contains("a triple fault"));
    }
}
