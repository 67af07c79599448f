//! `make run`: from nothing to a page served by a container in a micro VM on a fresh node.
//!
//! Owns: the steps, done with the real image and the real `sifr` command, and how long each took.
//! Refuses: short cuts a user would not have.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use types::deployment::API_PORT;
use types::{Bytes, PublicKey};

use crate::assemble::{self, Image};
use crate::paths::{self, Paths};
use crate::qemu::{self, Bus, Disk, Machine, Node};
use crate::{command, setup, userland};

/// Port of the page, on this machine and on the node.
const WEB_PORT: u16 = 8080;
const POOL_BYTES: Bytes = Bytes::gib(2);
/// Emulation on a busy machine is slow; on a free one it takes a tenth of this.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two requests for the page: nothing tells when a program in a container begins to listen.
const PAGE_PAUSE: Duration = Duration::from_millis(100);
/// Longest page read.
const PAGE_BYTES_MAX: u64 = 64 << 10;
/// Longest path of a Unix socket (unix(7)), less the terminating NUL.
const SOCKET_PATH_MAX: usize = 107;
const DEPLOYMENT: &str = "web";

/// The files of the demonstration node.
#[derive(Debug)]
struct Place {
    pool: PathBuf,
    home: PathBuf,
    store: PathBuf,
    console: PathBuf,
    monitor: PathBuf,
    pid: PathBuf,
}

impl Place {
    fn new(paths: &Paths) -> Self {
        let file = |name: &str| paths.run.join(name);
        Self {
            pool: file("pool.raw"),
            home: file("sifr"),
            store: file("store"),
            console: file("console.log"),
            monitor: file("monitor.sock"),
            pid: file("node.pid"),
        }
    }
}

impl Place {
    /// How to look at the node that runs on, and how to stop it.
    fn farewell(&self, image: &Image, web: u16) -> String {
        let (home, program) = (self.home.display(), image.cli.display());
        let (console, host) = (self.console.display(), Ipv4Addr::LOCALHOST);
        format!(
            "\nThe node runs on. Look at it with\n  \
             curl http://{host}:{web}/\n  \
             SIFR_HOME={home} {program} get --node demo\n  \
             SIFR_HOME={home} {program} node info --node demo\n  \
             less {console}\n\
             and stop it with\n  make stop"
        )
    }
}

/// Steps and how long each took.
#[derive(Debug, Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn run<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("{name} ...");
        let start = Instant::now();
        let value = step().with_context(|| name.to_owned())?;
        self.0.push((name, start.elapsed()));
        Ok(value)
    }

    fn table(&self) -> String {
        let row =
            |(name, took): &(&str, Duration)| format!("{name:<34}{:>8.2} s\n", took.as_secs_f64());
        self.0.iter().map(row).collect()
    }
}

/// Stops the node that [`demo`] left running.
pub fn stop(paths: &Paths) -> Result<()> {
    let _lock = paths::lock(&paths.run)?;
    let place = Place::new(paths);
    let stopped = qemu::stop(&place.monitor)?;
    for file in [&place.monitor, &place.pid] {
        // They may not exist.
        let _ = fs::remove_file(file);
    }
    println!(
        "{}",
        if stopped {
            "the node is stopped"
        } else {
            "no node is running"
        }
    );
    Ok(())
}

/// Runs the demonstration; the node runs on afterwards.
pub fn demo(paths: &Paths) -> Result<()> {
    let place = Place::new(paths);
    ensure!(
        place.monitor.as_os_str().len() <= SOCKET_PATH_MAX,
        "{} is too long for a socket: clone into a directory nearer to the root",
        place.monitor.display()
    );
    let _lock = paths::lock(&paths.run)?;
    paths::create(&place.home)?;
    let mut steps = Steps::default();
    steps.run("packages", || setup::setup(paths))?;
    let image = steps.run("image", || assemble::build(paths, None))?;
    let sifr = Sifr {
        program: image.cli.clone(),
        home: place.home.clone(),
    };
    let tar = steps.run("Debian user land with nginx", || userland::userland(paths))?;
    let owner = steps.run("key", || sifr.key())?;
    let flist = steps.run("pack", || sifr.pack(&tar, &place))?;
    steps.run("stop the node of the last run", || {
        qemu::stop(&place.monitor)
    })?;
    let (machine, api, web) = machine(&image, &owner, &place)?;
    let (node, key) = steps.run("boot, to the node's key", || boot(&machine, &place))?;
    steps.run("boot, to the API", || {
        node.wait_for_line("sifr: ready https://", BOOT_TIMEOUT)
    })?;
    steps.run("sifr node add", || {
        let address = format!("{}:{api}", Ipv4Addr::LOCALHOST);
        sifr.run(&[
            "node",
            "add",
            "demo",
            &address,
            "--key",
            &key.to_string(),
            "--replace",
        ])
    })?;
    steps.run("sifr deploy", || {
        let (flist, port) = (flist.display().to_string(), format!("{WEB_PORT}:80"));
        let words = [
            "deploy", "--node", "demo", "--name", DEPLOYMENT, "--image", &flist,
        ];
        sifr.run(
            &[
                &words[..],
                &["--port", &port, "--memory", "256Mi", "--disk", "256Mi"],
            ]
            .concat(),
        )
    })?;
    steps.run("sifr wait", || {
        sifr.run(&["wait", DEPLOYMENT, "--node", "demo", "--timeout", "3m"])
    })?;
    let page = steps.run("fetch the page", || fetch(web))?;
    ensure!(
        page.ends_with(userland::PAGE),
        "the node served another page:\n{page}"
    );
    paths::write(&place.pid, format!("{}\n", node.pid()))?;
    node.detach();
    println!("\n{}\n{}", steps.table(), userland::PAGE.trim_end());
    println!("{}", place.farewell(&image, web));
    Ok(())
}

/// The machine, and the ports of its API and page on this machine.
fn machine(image: &Image, owner: &PublicKey, place: &Place) -> Result<(Machine, u16, u16)> {
    if !place.pool.exists() {
        qemu::blank_disk(&place.pool, POOL_BYTES)?;
    }
    let mut machine = Machine::new(image, &format!("sifr.owner={owner}"));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    machine.cpus = if cpus > 1 { 2 } else { 1 };
    machine.on_reset = qemu::OnReset::Boot;
    machine.disks = vec![Disk {
        file: place.pool.clone(),
        bus: Bus::Virtio,
        serial: "pool".to_owned(),
    }];
    machine.console_log = Some(place.console.clone());
    machine.monitor = Some(place.monitor.clone());
    let (api, web) = (qemu::port_near(API_PORT)?, qemu::port_near(WEB_PORT)?);
    machine.forward_from(api, API_PORT)?;
    machine.forward_from(web, WEB_PORT)?;
    Ok((machine, api, web))
}

fn boot(machine: &Machine, place: &Place) -> Result<(Node, PublicKey)> {
    // QEMU does not take the place of a socket that a killed one left.
    let _ = fs::remove_file(&place.monitor);
    let node = Node::spawn_in_background(machine)?;
    let line = node.wait_for_line("sifr: key ", BOOT_TIMEOUT)?;
    let key = key_in(&line).with_context(|| format!("no key in the console's line {line:?}"))?;
    Ok((node, key))
}

/// The first word that is a public key.
fn key_in(text: &str) -> Option<PublicKey> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != ':')
        .find_map(|word| word.parse().ok())
}

/// The command a user has.
#[derive(Debug)]
struct Sifr {
    program: PathBuf,
    home: PathBuf,
}

impl Sifr {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command::output(command.args(arguments).env("SIFR_HOME", &self.home))
    }

    /// The key of the last run, or a new one.
    fn key(&self) -> Result<PublicKey> {
        let show = || self.run(&["key", "show"]);
        let text = match show() {
            Ok(text) => text,
            Err(_) => {
                self.run(&["key", "new"])?;
                show()?
            }
        };
        key_in(&text).with_context(|| format!("'sifr key show' shows no key: {text:?}"))
    }

    /// Packs the archive; gives the .flist file.
    fn pack(&self, tar: &std::path::Path, place: &Place) -> Result<PathBuf> {
        // What an earlier run packed from another archive is not wanted.
        if place.store.exists() {
            fs::remove_dir_all(&place.store).context("clear the store")?;
        }
        let (tar, store) = (tar.display().to_string(), place.store.display().to_string());
        let mut words = vec!["flist", "pack", &tar, "--store", &store];
        userland::ENTRYPOINT
            .iter()
            .for_each(|word| words.extend(["--entrypoint", word]));
        self.run(&words)?;
        let is_flist = |path: &PathBuf| path.extension().is_some_and(|e| e == "flist");
        let found = paths::entries(&place.store)?.into_iter().find(is_flist);
        found.context("'sifr flist pack' left no .flist file")
    }
}

/// Fetches the page, again and again until the server in the container listens.
fn fetch(port: u16) -> Result<String> {
    let deadline = Instant::now() + PAGE_TIMEOUT;
    loop {
        match request(port) {
            Ok(page) => return Ok(page),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(PAGE_PAUSE),
        }
    }
}

fn request(port: u16) -> Result<String> {
    let what = || format!("fetch http://{}:{port}/", Ipv4Addr::LOCALHOST);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).with_context(what)?;
    stream
        .set_read_timeout(Some(PAGE_TIMEOUT))
        .with_context(what)?;
    stream
        .write_all(b"GET / HTTP/1.0\r\nHost: sifr\r\n\r\n")
        .with_context(what)?;
    let mut answer = String::new();
    stream
        .take(PAGE_BYTES_MAX)
        .read_to_string(&mut answer)
        .with_context(what)?;
    if !answer.starts_with("HTTP/1.1 200") {
        bail!(
            "the page's server answers {:?}",
            answer.lines().next().unwrap_or_default()
        );
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_a_line_of_text() {
        let key = PublicKey([0xab; 32]);
        assert_eq!(
            key_in(&format!("[    1.2] sifr: key {key} (pool)")),
            Some(key)
        );
        assert_eq!(key_in(&format!("{{\"key\":\"{key}\"}}")), Some(key));
        assert_eq!(key_in("sifr: key none"), None);
    }

    #[test]
    fn the_table_shows_each_step_with_its_time() {
        let mut steps = Steps::default();
        steps.run("boot", || Ok(())).expect("it does nothing");
        assert!(steps.table().starts_with("boot ") && steps.table().ends_with(" s\n"));
        let error = steps
            .run("deploy", || -> Result<()> { bail!("refused") })
            .expect_err("refused");
        assert_eq!(format!("{error:#}"), "deploy: refused");
    }
}
