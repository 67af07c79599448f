//! One owner, one node.
//!
//! Owns: the machine's files, its power, and running `sifr` as the owner.
//! Refuses: retries. What does not work the first time does not work.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use image::assemble::Image;
use image::paths::Paths;
use image::qemu::{Bus, Disk, Link, Machine, Net, Node, blank_disk};
use serde_json::Value;
use tempfile::{TempDir, TempPath};
use types::Bytes;
use types::cpio::Archive;

use crate::archive;
use crate::watch::{self, Watch};
use crate::{Follower, PATIENCE};

/// Port of the node that tests publish on, and that leads to [`Lab::web`].
pub const WEB_PORT: u16 = 8080;

/// Size of a node's disk.
const DISK: Bytes = Bytes::gib(4);

/// Of pid1, before it does anything.
const FIRST_WORDS: &str = "starts: nothing here can be logged in to";

/// Of the console, before the node's address.
const READY: &str = "sifr: ready https://";

/// The socket behind the second serial port of a node that is watched.
const WATCH: &str = "watch.sock";

/// What kind of node.
#[derive(Debug, Clone)]
pub struct Setup {
    /// A blank disk for the pool.
    pub disk: bool,
    /// The owner's key is on the kernel command line.
    pub owned: bool,
    pub memory: Bytes,
    pub cpus: u8,
    /// More kernel arguments.
    pub arguments: String,
    /// A program beside the image's own reads files of the node for the test: [`Lab::watch`].
    pub watched: bool,
    /// Lines of a file of options that is appended to the initramfs; none where empty.
    pub told: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            disk: true,
            owned: true,
            memory: Bytes::gib(1),
            cpus: 1,
            arguments: String::new(),
            watched: false,
            told: String::new(),
        }
    }
}

/// What `sifr` answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug)]
pub struct Lab {
    directory: TempDir,
    /// Where the owner's files are: its own, or those of the lab that it stands beside.
    owner: PathBuf,
    /// What the owner calls the node.
    name: String,
    sifr: PathBuf,
    machine: Machine,
    node: Option<Node>,
    /// The initramfs with what this test has added to it.
    _initramfs: Option<TempPath>,
    /// Loopback ports of this machine that lead to the node's API and to its [`WEB_PORT`].
    pub api: u16,
    pub web: u16,
}

/// Appends a file of options to the initramfs, as a person would with cpio(1).
fn tell(machine: &mut Machine, image: &Image, options: &str) -> Result<TempPath> {
    let mut added = Archive::default();
    added.directory("/etc/sifr", 0o755)?;
    added.file("/etc/sifr/options", 0o644, options.as_bytes().to_vec())?;
    let initramfs = archive::behind(image, &added)?;
    archive::instead(machine, &initramfs, "")
}

impl Lab {
    /// A node with a blank disk, booted and known to `sifr` as `lab`.
    pub fn new() -> Result<Self> {
        Self::with(&Setup::default(), |_| Ok(()))
    }

    /// Any other; `change` sees the machine before its power is switched on.
    pub fn with(setup: &Setup, change: impl FnOnce(&mut Machine) -> Result<()>) -> Result<Self> {
        let mut lab = Self::unpowered(setup)?;
        change(&mut lab.machine)?;
        lab.power_on()?;
        lab.learn_key()?;
        Ok(lab)
    }

    /// The machine as it stands in the shop.
    pub fn unpowered(setup: &Setup) -> Result<Self> {
        Self::of(setup, "lab", None)
    }

    /// The same, which its owner calls otherwise.
    pub fn named(name: &str, setup: &Setup) -> Result<Self> {
        Self::of(setup, name, None)
    }

    /// One more of the owner of another, who calls it so.
    pub fn beside(first: &Self, name: &str, setup: &Setup) -> Result<Self> {
        Self::of(setup, name, Some(&first.owner))
    }

    fn of(setup: &Setup, name: &str, owner: Option<&Path>) -> Result<Self> {
        let paths = Paths::find()?;
        let image = Image::find(&paths)?;
        let directory = TempDir::with_prefix("sifr-lab-")?;
        let owner_of = owner.unwrap_or(directory.path()).to_owned();
        let sifr = |args: &[&str]| run(&image.cli, &owner_of, args, "");
        if owner.is_none() {
            sifr(&["key", "new"])?.must()?;
        }
        let shown = sifr(&["key", "show"])?.must()?;
        let key = shown
            .stdout
            .split_whitespace()
            .find(|w| w.starts_with("ed25519:"));
        let key = key.context("sifr key show shows no key")?;
        let owner = if setup.owned {
            format!("sifr.owner={key}")
        } else {
            String::new()
        };
        let mut machine = Machine::new(&image, &format!("{owner} {}", setup.arguments));
        machine.memory = setup.memory;
        machine.cpus = setup.cpus;
        let initramfs = if setup.watched {
            machine.serial = Some(directory.path().join(WATCH));
            Some(watch::add_to(&mut machine, &paths, &image)?)
        } else if setup.told.is_empty() {
            None
        } else {
            Some(tell(&mut machine, &image, &setup.told)?)
        };
        if setup.disk {
            let file = directory.path().join("pool.raw");
            blank_disk(&file, DISK)?;
            machine.disks.push(Disk {
                file,
                bus: Bus::Virtio,
                serial: "LAB0".to_owned(),
            });
        }
        let (api, web) = (
            machine.forward(types::deployment::API_PORT)?,
            machine.forward(WEB_PORT)?,
        );
        Ok(Self {
            sifr: image.cli,
            owner: owner_of,
            name: name.to_owned(),
            directory,
            machine,
            node: None,
            _initramfs: initramfs,
            api,
            web,
        })
    }

    /// Switches the power on and waits until the node says that it is ready. A node whose kernel ends before its first
    /// program begins has met a fault of the emulator (docs/testing.md): it is booted once more, and that is said.
    pub fn power_on(&mut self) -> Result<()> {
        self.switch_on()?;
        self.come_up()
    }

    /// The second half of that: several nodes boot at once where each has been switched on before.
    pub fn come_up(&mut self) -> Result<()> {
        match self.ready() {
            Err(error) if !self.has_begun() => {
                println!(
                    "the node ended before its first program began, and is booted once more: {error:#}"
                );
                self.power_cut()?;
                self.switch_on()?;
                self.ready()
            }
            done => done,
        }
    }

    /// The first program of the image has said a word since the power was switched on.
    pub(crate) fn has_begun(&self) -> bool {
        self.console().contains(FIRST_WORDS)
    }

    /// Switches the power on.
    pub fn switch_on(&mut self) -> Result<()> {
        self.node = Some(Node::spawn(&self.machine)?);
        Ok(())
    }

    /// Waits until the node says that it is ready.
    pub(crate) fn ready(&self) -> Result<()> {
        let ready = self.node().wait_for_line(READY, PATIENCE);
        ready.map(drop)
    }

    /// Pins the key that the node's console shows, as a person at the console would.
    pub fn learn_key(&self) -> Result<()> {
        let key = self.key()?;
        let forwarded = |net: &Net| !matches!(net.link, Link::Tap { .. } | Link::Switch { .. });
        let address = if self.machine.nets.iter().any(forwarded) {
            format!("127.0.0.1:{}", self.api)
        } else {
            self.address()?
        };
        self.sifr(&["node", "add", &self.name, &address, "--key", &key])?
            .must()
            .map(|_| ())
    }

    /// The node's identity, from its console.
    pub fn key(&self) -> Result<String> {
        let line = self.node().wait_for_line("sifr: key ", PATIENCE)?;
        Ok(line
            .rsplit(' ')
            .next()
            .context("an empty line")?
            .trim()
            .to_owned())
    }

    /// Where the node says that it is.
    pub fn address(&self) -> Result<String> {
        let line = self.node().wait_for_line(READY, PATIENCE)?;
        let address = line.rsplit("https://").next().context("an empty line")?;
        Ok(address.trim().to_owned())
    }

    /// The machine, while the power is off.
    pub fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// What the firmware's tables say from the next boot on, while the power is off.
    pub fn oem_strings(&mut self) -> &mut Vec<String> {
        &mut self.machine.oem_strings
    }

    /// Takes disks out and puts others in, while the power is off.
    pub fn disks(&mut self) -> &mut Vec<Disk> {
        &mut self.machine.disks
    }

    /// A blank disk, as tall as any here.
    pub fn blank_disk(&self, serial: &str) -> Result<Disk> {
        let file = self.directory.path().join(format!("{serial}.raw"));
        blank_disk(&file, DISK)?;
        Ok(Disk {
            file,
            bus: Bus::Virtio,
            serial: serial.to_owned(),
        })
    }

    /// Pulls the plug.
    pub fn power_cut(&mut self) -> Result<()> {
        self.node.take().context("the node has no power")?.kill()
    }

    /// Presses the power button and waits until the machine is off.
    pub fn power_button(&mut self) -> Result<()> {
        let mut node = self.node.take().context("the node has no power")?;
        node.power_button()?;
        let status = node.wait_for_end(PATIENCE)?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    /// Waits until the machine has switched itself off.
    pub fn ended(&mut self) -> Result<()> {
        let mut node = self.node.take().context("the node has no power")?;
        let status = node.wait_for_end(PATIENCE)?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    pub fn node(&self) -> &Node {
        self.node
            .as_ref()
            .expect("tests switch the power on before they ask for the node")
    }

    /// The eyes in a node that was set up to be watched.
    pub fn watch(&self) -> Result<Watch> {
        Watch::open(&self.directory.path().join(WATCH))
    }

    pub fn console(&self) -> String {
        self.node().console()
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn command(&self) -> &Path {
        &self.sifr
    }

    /// Starts `sifr` as the owner, and leaves it alone.
    pub fn sifr_beside(&self, args: &[&str]) -> Result<Child> {
        let child = Command::new(&self.sifr)
            .args(args)
            .env("SIFR_HOME", self.directory.path().join("home"))
            .stdin(Stdio::null())
            .spawn();
        child.with_context(|| format!("start {}", self.sifr.display()))
    }

    /// Runs `sifr` as the owner.
    pub fn sifr(&self, args: &[&str]) -> Result<Answer> {
        run(&self.sifr, &self.owner, args, "")
    }

    /// Deploys a YAML document and waits until it runs.
    pub fn deploy(&self, yaml: &str) -> Result<Answer> {
        run(&self.sifr, &self.owner, &["deploy", "-"], yaml)
    }

    /// `sifr get NAME` as JSON.
    pub fn get(&self, name: &str) -> Result<Value> {
        let answer = self.sifr(&["--output", "json", "get", name])?.must()?;
        serde_json::from_str(&answer.stdout).with_context(|| answer.stdout.clone())
    }

    /// `sifr wait`, with the tests' patience.
    pub fn wait(&self, name: &str, until: &str) -> Result<Answer> {
        let patience = format!("{}s", PATIENCE.as_secs());
        self.sifr(&["wait", name, "--for", until, "--timeout", &patience])
    }

    /// Removes a deployment, so that its share is free for the next.
    pub fn delete(&self, name: &str) -> Result<()> {
        self.tell("delete", name, "deleted")
    }

    /// Everything the workload wrote so far.
    pub fn logs(&self, name: &str) -> Result<String> {
        Ok(self.sifr(&["logs", name])?.must()?.stdout)
    }

    /// Reads what the workload writes, while it writes it.
    pub fn follow(&self, name: &str) -> Result<Follower> {
        Follower::spawn(&self.sifr, &self.owner.join("home"), name)
    }

    /// Runs `sifr VERB NAME` and waits until it is so.
    pub fn tell(&self, verb: &str, name: &str, until: &str) -> Result<()> {
        self.sifr(&[verb, name])?.must()?;
        self.wait(name, until)?.must().map(|_| ())
    }
}

impl Answer {
    /// The command must have succeeded.
    pub fn must(self) -> Result<Self> {
        ensure!(
            self.code == 0,
            "sifr exited with {}\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }
}

/// The `sifr` of the image, for what needs no node.
pub fn command() -> Result<PathBuf> {
    Ok(Image::find(&Paths::find()?)?.cli)
}

fn run(sifr: &Path, home: &Path, args: &[&str], input: &str) -> Result<Answer> {
    let mut child = Command::new(sifr)
        .args(args)
        .env("SIFR_HOME", home.join("home"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", sifr.display()))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // A command that does not read its input closes the pipe: that is its right.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    Ok(Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
