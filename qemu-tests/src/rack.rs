//! A node whose disks are pulled, put back and made to hang while it runs.
//!
//! Owns: the disks' files, QEMU's monitor, and waiting until the node says what became of it. Refuses: looking at anything but
//! what the node says and runs. What never comes to be ends the test, with the console.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image::qemu::{Bus, Disk, blank_disk};
use serde_json::{Value, json};
use types::Bytes;

use crate::tpm::Chip;
use crate::{Lab, PATIENCE, Setup, busybox};

/// The node looks at its disks at each event, and every ten seconds: nothing tells a test that it has.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Rack {
    pub lab: Lab,
    flist: PathBuf,
    directory: tempfile::TempDir,
}

/// A disk that answers until it is told to hang. It is served by `qemu-nbd`, which stands still then.
#[derive(Debug)]
pub struct Tap {
    server: Child,
    /// In the place of a disk's file.
    pub address: PathBuf,
}

impl Tap {
    /// Of a blank disk of so many MiB.
    pub fn open(directory: &Path, serial: &str, mib: u64) -> Result<Self> {
        let file = directory.join(serial);
        blank_disk(&file, Bytes::mib(mib))?;
        let socket = directory.join(format!("{serial}.sock"));
        let server = Command::new("qemu-nbd")
            .args(["--persistent", "--format=raw", "--socket"])
            .args([&socket, &file])
            .stdin(Stdio::null())
            .spawn()
            .context("start qemu-nbd: run 'make setup'")?;
        let address = format!("nbd:unix:{}", socket.display()).into();
        let tap = Self { server, address };
        let since = Instant::now();
        while !socket.exists() {
            ensure!(since.elapsed() < PATIENCE, "qemu-nbd makes no socket");
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(tap)
    }

    /// From now on it neither answers nor fails.
    pub fn close(&self) -> Result<()> {
        self.signal(nix::sys::signal::Signal::SIGSTOP)
    }

    /// What was asked meanwhile is answered.
    pub fn reopen(&self) -> Result<()> {
        self.signal(nix::sys::signal::Signal::SIGCONT)
    }

    fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.server.id())?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub fn blank(directory: &Path, serial: &str, mib: u64) -> PathBuf {
    let file = directory.join(serial);
    image::qemu::blank_disk(&file, types::Bytes::mib(mib)).expect("a file");
    file
}

impl Rack {
    /// With blank disks of so many MiB.
    pub fn with(disks: &[(Bus, &str, u64)]) -> Self {
        Self::booted(disks, "")
    }

    pub fn booted(disks: &[(Bus, &str, u64)], arguments: &str) -> Self {
        let directory = tempfile::TempDir::with_prefix("sifr-plug-").expect("a directory");
        let disk = |(bus, serial, mib): &(Bus, &str, u64)| Disk {
            file: blank(directory.path(), serial, *mib),
            bus: *bus,
            serial: (*serial).to_owned(),
        };
        let disks = disks.iter().map(disk).collect();
        Self::of(directory, disks, arguments, None)
    }

    /// With a TPM, where there is one.
    pub fn of(
        directory: tempfile::TempDir,
        disks: Vec<Disk>,
        arguments: &str,
        chip: Option<&Chip>,
    ) -> Self {
        let setup = Setup {
            disk: false,
            arguments: arguments.to_owned(),
            ..Setup::default()
        };
        let lab = Lab::with(&setup, |machine| {
            machine.slots = 2;
            machine.disks = disks;
            machine.tpm = chip.map(Chip::socket);
            Ok(())
        });
        let lab = lab.expect("a node");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        Self {
            lab,
            flist,
            directory,
        }
    }

    /// Where the disks' files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn ask(&self, command: &str, arguments: Value) {
        let answer = self.lab.node().monitor(command, &arguments);
        answer.unwrap_or_else(|error| panic!("{command} {arguments}: {error:#}"));
    }

    pub fn plug(&self, id: &str, device: Value, file: &Path) {
        let file = json!({ "driver": "file", "filename": file });
        let node = json!({ "driver": "raw", "node-name": id, "file": file });
        self.plug_node(id, device, node);
    }

    /// One that takes no writes, and says so.
    pub fn plug_protected(&self, id: &str, device: Value, file: &Path) {
        let file = json!({ "driver": "file", "filename": file, "read-only": true });
        let node = json!({ "driver": "raw", "node-name": id, "read-only": true, "file": file });
        self.plug_node(id, device, node);
    }

    fn plug_node(&self, id: &str, mut device: Value, node: Value) {
        self.ask("blockdev-add", node);
        device["drive"] = json!(id);
        device["id"] = json!(format!("dev-{id}"));
        self.ask("device_add", device);
    }

    /// What is no disk.
    pub fn add(&self, device: Value) {
        self.ask("device_add", device);
    }

    /// Until the node lists no disk whose serial ends so.
    pub fn until_unlisted(&self, serial: &str) {
        let of_it = |disk: &Value| disk["serial"].as_str().is_some_and(|s| s.ends_with(serial));
        self.until(&format!("{serial} gone"), |info| {
            list(info, "disks").count() > 0 && !list(info, "disks").any(of_it)
        });
    }

    pub fn pull(&self, device: &str) {
        self.ask("device_del", json!({ "id": device }));
    }

    pub fn json(&self, arguments: &[&str]) -> Option<Value> {
        let arguments = [&["--output", "json"], arguments].concat();
        let answer = self.lab.sifr(&arguments).expect("sifr runs");
        // The agent may be starting again.
        serde_json::from_str(&answer.stdout).ok()
    }

    /// What the node says of itself, as soon as it is so.
    pub fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + PATIENCE;
        loop {
            let info = self.json(&["node", "info"]).unwrap_or_default();
            if is(&info) {
                return info;
            }
            assert!(
                Instant::now() < end,
                "never {what}: {info:#}\n{}",
                self.lab.console()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    pub fn until_pool(&self, serial: &str, state: &str) -> Value {
        self.until(&format!("{serial} {state}"), |info| {
            pool(info, serial).is_some_and(|pool| pool["state"] == state)
        })
    }

    pub fn deploy(&self, name: &str, class: &str) {
        let yaml = format!(
            "name: {name}\nimage: {}\nmemory: 64Mi\ndisk: 64Mi\nclass: {class}\n\
             command: [sh, -c, \"echo x >> /n; sync; echo starts $(wc -l < /n); sleep 3600\"]\n",
            self.flist.display()
        );
        let answer = self.lab.deploy(&yaml).expect("sifr runs");
        answer.must().expect("accepted");
        self.runs(name);
        self.starts(name, 1);
    }

    pub fn runs(&self, name: &str) {
        let up = self.lab.wait(name, "running").expect("sifr runs");
        up.must()
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.console()));
    }

    pub fn starts(&self, name: &str, count: u32) {
        let follow = self.lab.follow(name).expect("it is followed");
        let line = follow.wait_for(&format!("starts {count}"));
        line.unwrap_or_else(|error| panic!("{error:#}\n{}", self.lab.console()));
    }

    pub fn waits(&self, name: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.json(&["get", name]).unwrap_or_default();
            let workload = &status["workloads"]["main"];
            let message = workload["message"].as_str().unwrap_or_default();
            if message.contains("its disk is not there") && workload["state"] == "pending" {
                return;
            }
            assert!(Instant::now() < end, "{status:#}\n{}", self.lab.console());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Until the one pool's mirror is of these disks.
    pub fn until_halves(&self, wanted: &[(&str, &str)]) -> Value {
        self.until(&format!("{wanted:?}"), |info| {
            let mut pools = list(info, "pools");
            let (Some(pool), None) = (pools.next(), pools.next()) else {
                return false;
            };
            let halves = pool["mirror"]["halves"].as_array();
            let halves = halves.map_or(&[][..], Vec::as_slice);
            halves.len() == wanted.len()
                && wanted.iter().all(|(serial, state)| {
                    let mut halves = halves.iter();
                    halves.any(|half| half["serial"] == *serial && half["state"] == *state)
                })
        })
    }

    pub fn is_calm(&self, code: &str) {
        self.until(&format!("over: {code}"), |info| {
            troubles(info).all(|trouble| trouble["code"] != code)
        });
    }

    pub fn has_trouble(&self, code: &str) {
        self.until(code, |info| {
            troubles(info).any(|trouble| trouble["code"] == code)
        });
        let line = format!("sifr: trouble {code}: ");
        let shown = self.lab.node().wait_for_line(&line, PATIENCE);
        shown.expect("the console says so too");
    }
}

pub fn list<'a>(info: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    info[name].as_array().into_iter().flatten()
}

pub fn troubles(info: &Value) -> impl Iterator<Item = &Value> {
    list(info, "troubles")
}

pub fn pool<'a>(info: &'a Value, serial: &str) -> Option<&'a Value> {
    let of_it = |pool: &&Value| pool["serial"].as_str().is_some_and(|s| s.ends_with(serial));
    list(info, "pools").find(of_it)
}
