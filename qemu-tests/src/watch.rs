//! Reading files of a node that runs the shipped image: what `/proc` and `/sys` say of its processes.
//!
//! Owns: a program of our own beside the image's, which the kernel starts first: it starts a copy of itself, in a
//! mount namespace of its own, and becomes the image's `/init`. The copy answers questions on the second serial port.
//! Refuses: changing anything, but for files of its own on the pool, which take its room, or which a benchmark compares volumes with. The image is the shipped one, byte for byte, with an archive behind it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use image::assemble::Image;
use image::paths::Paths;
use image::qemu::Machine;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::termios::{self, SetArg};
use serde::{Deserialize, Serialize};
use tempfile::TempPath;
use types::cpio::Archive;

use crate::PATIENCE;
use crate::archive;
use crate::inside::mount_at;

const PROGRAM_NAME: &str = "watch-node";
/// In the node's first file system.
const PROGRAM: &str = "/watch/program";
const PROC: &str = "/watch/proc";
const DEV: &str = "/watch/dev";
const PORT: &str = "/watch/dev/ttyS1";
/// The word that makes the program the copy.
const EYES: &str = "eyes";
/// Longest file that is read: nothing of what is asked for is near it.
const FILE_MAX: u64 = 256 << 10;

/// One line of JSON on the serial port.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// The text of a file.
    Read(PathBuf),
    /// The names in a directory.
    List(PathBuf),
    /// Where a symbolic link leads.
    Link(PathBuf),
    /// How many files below a directory are what they are called ([`chunk_of`]), and the names of those that are not.
    Verify(PathBuf),
    /// How long a file system takes for what volumes are made of: see [`plain`].
    Plain(PathBuf),
    /// Has a file take all the room that there is: see [`fill`].
    Fill(PathBuf),
    /// Removes that file.
    Remove(PathBuf),
}

type Answer = std::result::Result<Vec<String>, String>;

/// Makes `machine` boot the image with the program behind it.
pub(crate) fn add_to(machine: &mut Machine, paths: &Paths, image: &Image) -> Result<TempPath> {
    let program = archive::program(paths, PROGRAM_NAME)?;
    let mut added = Archive::default();
    for directory in ["/watch", PROC, DEV] {
        added.directory(directory, 0o755)?;
    }
    added.file(PROGRAM, 0o755, program)?;
    let initramfs = archive::behind(image, &added)?;
    archive::instead(machine, &initramfs, &format!("rdinit={PROGRAM}"))
}

/// The program. Returns only with an error.
pub fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some(EYES) {
        return answer();
    }
    Command::new(PROGRAM)
        .arg(EYES)
        .spawn()
        .context("start the eyes")?;
    Err(Command::new("/init").exec()).context("become the image's init")
}

fn answer() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("leave the mount namespace")?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, private, none).context("keep mounts to ourselves")?;
    mount_at("proc", PROC)?;
    mount_at("devtmpfs", DEV)?;
    let port = File::options().read(true).write(true).open(PORT);
    let mut port = port.with_context(|| format!("open {PORT}"))?;
    let mut settings = termios::tcgetattr(&port).context("ask the port")?;
    termios::cfmakeraw(&mut settings);
    termios::tcsetattr(&port, SetArg::TCSANOW, &settings).context("set up the port")?;
    let questions = BufReader::new(port.try_clone().context("share the port")?);
    for question in questions.lines() {
        let question = question.context("hear a question")?;
        let answer: Answer = match serde_json::from_str(&question) {
            Ok(question) => look(&question).map_err(|e| format!("{e:#}")),
            Err(error) => Err(format!("{question:?}: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        port.write_all(&line).context("answer")?;
    }
    bail!("nobody asks any more")
}

fn look(question: &Question) -> Result<Vec<String>> {
    match question {
        Question::Read(path) => {
            let mut bytes = Vec::new();
            let file = File::open(path)?;
            file.take(FILE_MAX).read_to_end(&mut bytes)?;
            Ok(vec![String::from_utf8_lossy(&bytes).into_owned()])
        }
        Question::List(path) => fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Question::Link(path) => Ok(vec![fs::read_link(path)?.display().to_string()]),
        Question::Plain(directory) => plain(directory),
        Question::Fill(file) => Ok(vec![fill(file)?.to_string()]),
        Question::Remove(file) => {
            fs::remove_file(file)?;
            Ok(Vec::new())
        }
        Question::Verify(path) => {
            let (mut sound, mut damaged) = (0, Vec::new());
            for directory in fs::read_dir(path)? {
                for file in fs::read_dir(directory?.path())? {
                    let file = file?.path();
                    match chunk_of(&file) {
                        // It may have been swept meanwhile.
                        Some(name) => match fs::read(&file) {
                            Ok(bytes) if blake3::hash(&bytes).to_hex().as_str() == name => {
                                sound += 1
                            }
                            Ok(_) => damaged.push(name),
                            Err(_) => {}
                        },
                        None => damaged.push(file.display().to_string()),
                    }
                }
            }
            damaged.insert(0, sound.to_string());
            Ok(damaged)
        }
    }
}

/// Has a file take every block of its file system that it is given, beyond what it has. Its length.
fn fill(path: &Path) -> Result<u64> {
    const BLOCK: i64 = 4096;
    let file = File::options().create(true).append(true).open(path)?;
    let mut length = i64::try_from(file.metadata()?.len())?;
    let mut piece = BLOCK << 18;
    while piece >= BLOCK {
        match nix::fcntl::posix_fallocate(&file, length, piece) {
            Ok(()) => length += piece,
            Err(nix::errno::Errno::ENOSPC) => piece /= 2,
            Err(error) => return Err(error).context("take room"),
        }
    }
    file.sync_all()?;
    Ok(u64::try_from(length)?)
}

/// Beside a volume, so many times each, its median in microseconds: a file of its length with all blocks reserved; a copy
/// of the volume that shares its blocks; that copy made longer. Each is on disk before the next begins.
fn plain(directory: &Path) -> Result<Vec<String>> {
    const ROUNDS: usize = 5;
    const MORE: u64 = 64 << 20;
    let mut names = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let is_volume = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("disk-"))
    };
    let source = File::open(names.find(is_volume).context("no volume")?)?;
    let length = source.metadata()?.len();
    let place = File::open(directory)?;
    let file = directory.join("plain");
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let timed = |work: &dyn Fn() -> Result<()>| -> Result<u128> {
            let since = std::time::Instant::now();
            work()?;
            place.sync_all()?;
            Ok(since.elapsed().as_micros())
        };
        times[0].push(timed(&|| {
            let made = File::create(&file)?;
            nix::fcntl::posix_fallocate(&made, 0, length.try_into()?)?;
            Ok(made.sync_all()?)
        })?);
        fs::remove_file(&file)?;
        times[1].push(timed(&|| {
            let copy = File::create(&file)?;
            sys::fs::reflink(source.as_fd(), copy.as_fd())?;
            Ok(copy.sync_all()?)
        })?);
        times[2].push(timed(&|| {
            let copy = File::options().write(true).open(&file)?;
            copy.set_len(length + MORE)?;
            Ok(copy.sync_all()?)
        })?);
        fs::remove_file(&file)?;
    }
    let medians = times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2].to_string()
    });
    Ok(medians.to_vec())
}

/// The hash that a chunk's path names: `<2 hex>/<62 hex>`.
fn chunk_of(file: &Path) -> Option<String> {
    let part = |path: Option<&std::ffi::OsStr>| Some(path?.to_str()?.to_owned());
    let name = part(file.parent()?.file_name())? + &part(file.file_name())?;
    (name.len() == 64).then_some(name)
}

/// The test's end of the port.
#[derive(Debug)]
pub struct Watch(BufReader<UnixStream>);

impl Watch {
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to the port {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn ask(&mut self, question: &Question) -> Result<Vec<String>> {
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).context("ask")?;
        let mut answer = String::new();
        self.0.read_line(&mut answer).context("hear an answer")?;
        let answer: Answer = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        answer.map_err(|why| anyhow::anyhow!("{question:?}: {why}"))
    }

    fn one(&mut self, question: &Question) -> Result<String> {
        let mut answer = self.ask(question)?;
        ensure!(answer.len() == 1, "{question:?}: {answer:?}");
        Ok(answer.remove(0))
    }

    /// A file as the image's own programs see it: `/sys/fs/cgroup/cgroup.controllers`.
    pub fn read(&mut self, path: &str) -> Result<String> {
        let path = format!("{PROC}/1/root{path}");
        self.one(&Question::Read(path.into()))
    }

    /// Of the chunks below a directory: how many are what they are called, and which are not.
    pub fn verify(&mut self, directory: &str) -> Result<(u64, Vec<String>)> {
        let path = format!("{PROC}/1/root{directory}");
        let mut answer = self.ask(&Question::Verify(path.into()))?;
        ensure!(!answer.is_empty(), "no count");
        let sound = answer.remove(0).parse().context("no count")?;
        Ok((sound, answer))
    }

    /// Microseconds of a plain file system beside a volume's directory: [`plain`].
    pub(crate) fn plain(&mut self, directory: &str) -> Result<[u64; 3]> {
        let path = format!("{PROC}/1/root{directory}");
        let answer = self.ask(&Question::Plain(path.into()))?;
        let times = answer.iter().map(|text| Ok(text.parse()?));
        let times = times.collect::<Result<Vec<u64>>>()?;
        <[u64; 3]>::try_from(times).map_err(|times| anyhow::anyhow!("{times:?} are no three"))
    }

    /// Has a file take all the room of its file system, and says its length: [`fill`].
    pub fn fill(&mut self, file: &str) -> Result<u64> {
        let path = format!("{PROC}/1/root{file}");
        let length = self.one(&Question::Fill(path.into()))?;
        length.parse().context("no length")
    }

    /// Gives that room back.
    pub fn remove(&mut self, file: &str) -> Result<()> {
        let path = format!("{PROC}/1/root{file}");
        self.ask(&Question::Remove(path.into())).map(drop)
    }

    /// A file of a process: `status`.
    pub fn of(&mut self, pid: u32, file: &str) -> Result<String> {
        self.one(&Question::Read(format!("{PROC}/{pid}/{file}").into()))
    }

    /// Where a link of a process leads: `ns/net`.
    pub fn link(&mut self, pid: u32, link: &str) -> Result<String> {
        self.one(&Question::Link(format!("{PROC}/{pid}/{link}").into()))
    }

    /// The processes whose command line begins with these words.
    pub fn processes(&mut self, words: &[&str]) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for name in self.ask(&Question::List(PROC.into()))? {
            let Ok(pid) = name.parse() else { continue };
            // It may have ended meanwhile.
            let Ok(line) = self.of(pid, "cmdline") else {
                continue;
            };
            if line.split('\0').zip(words).filter(|(a, b)| a == *b).count() == words.len() {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// A field of a process's `status`, without what is around it.
    pub fn status(&mut self, pid: u32, field: &str) -> Result<String> {
        let status = self.of(pid, "status")?;
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let value = value.with_context(|| format!("no {field} in {status}"))?;
        Ok(value.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}
