//! Images: what packing costs, what a server needs before it answers, what two releases share.
//!
//! Owns: packing beside `zstd -3` and `mkfs.erofs` of the same tree, by processor time, which other work on this machine
//! changes little; starts on nodes with an empty cache, by what their store sends, which no clock counts.
//! Refuses: wall time of an emulated node.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image::assemble::Image;
use image::paths::Paths;
use image::{tools, userland};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;

use super::measure::{MIB, PATIENCE, float};
use super::reading;
use super::table::Row;
use crate::store::{self, Served};
use crate::{Lab, Setup, WEB_PORT, exposition};

/// Targets of the design.
const PACK_OF_ZSTD: f64 = 0.8;
const BEFORE_READY_PERCENT: f64 = 5.0;
const METADATA_PERCENT: f64 = 0.2;
/// Bytes that many starts at once fetch, as a multiple of one's.
const PARALLEL: f64 = 1.05;
const SLACKER_PERCENT: f64 = 6.4;
const NYDUS_METADATA_PERCENT: f64 = 0.16;
/// Each pack is done so often; the median counts.
const ROUNDS: usize = 3;
/// Machines of one image that start at once.
const AT_ONCE: u32 = 20;
/// Between two tries: nothing tells from outside when a program listens.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// Of this package two versions are compared: large, and rebuilt for each security update.
const RELEASES: &str = "openjdk-17-jre-headless";

/// A server, and what shows that it serves.
struct Server {
    name: &'static str,
    packages: &'static str,
    entry: &'static [&'static str],
    port: u16,
    ask: &'static str,
    answer: &'static str,
}

const SERVERS: [Server; 4] = [
    Server {
        name: "nginx",
        packages: "nginx-light",
        entry: &["/usr/sbin/nginx", "-g", "daemon off;"],
        port: 80,
        ask: "GET / HTTP/1.0\r\n\r\n",
        answer: "200 OK",
    },
    Server {
        name: "redis",
        packages: "redis-server",
        entry: &[
            "/usr/bin/redis-server",
            "--protected-mode",
            "no",
            "--save",
            "",
        ],
        port: 6379,
        ask: "PING\r\n",
        answer: "+PONG",
    },
    Server {
        name: "python",
        packages: "python3",
        entry: &["/usr/bin/python3", "-m", "http.server", "8000"],
        port: 8000,
        ask: "GET / HTTP/1.0\r\n\r\n",
        answer: "200 OK",
    },
    Server {
        name: "node",
        packages: "nodejs",
        entry: &[
            "/usr/bin/node",
            "-e",
            "require('http').createServer((_, answer) => answer.end('here')).listen(3000)",
        ],
        port: 3000,
        ask: "GET / HTTP/1.0\r\n\r\n",
        answer: "200 OK",
    },
];

/// What packing costs and saves.
pub(super) fn packed(image: &Image) -> Result<Vec<Row>> {
    in_a_place(image, |bench| {
        let mut rows = bench.packing()?;
        rows.extend(bench.releases()?);
        Ok(rows)
    })
}

/// What starts fetch.
pub(super) fn started(image: &Image) -> Result<Vec<Row>> {
    in_a_place(image, |bench| {
        let mut rows = Vec::new();
        for server in &SERVERS {
            rows.extend(bench.starts(server)?);
        }
        rows.extend(bench.parallel()?);
        rows.extend(reading::rows(bench)?);
        Ok(rows)
    })
}

fn in_a_place(image: &Image, measure: impl FnOnce(&Bench) -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    let paths = Paths::find()?;
    let work = tempfile::TempDir::with_prefix("sifr-bench-")?;
    measure(&Bench {
        sifr: image.cli.clone(),
        paths,
        work: work.path().to_owned(),
    })
}

pub(super) struct Bench {
    sifr: PathBuf,
    paths: Paths,
    work: PathBuf,
}

/// What `sifr flist pack` wrote.
pub(super) struct Packed {
    file: PathBuf,
    stored_bytes: u64,
}

impl Packed {
    pub(super) fn store(&self) -> &Path {
        self.file.parent().expect("a file in a store")
    }

    /// Stored bytes of all of it, the flist as well.
    fn bytes(&self) -> Result<f64> {
        Ok(float(self.stored_bytes) + float(fs::metadata(&self.file)?.len()))
    }
}

impl Bench {
    pub(super) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// The small image of the tests.
    pub(super) fn busybox(&self, store: &str) -> Result<Packed> {
        let file = crate::variant(&self.sifr, &self.work, store, 0)?;
        let chunks = store::chunks(file.parent().context("no store")?)?;
        let bytes = chunks
            .iter()
            .filter_map(|c| Some(fs::metadata(c).ok()?.len()));
        Ok(Packed {
            stored_bytes: bytes.sum(),
            file,
        })
    }

    pub(super) fn pack(&self, source: &Path, store: &str, entry: &[&str]) -> Result<Packed> {
        let mut command = Command::new(&self.sifr);
        command.args(["--output", "json", "flist", "pack"]);
        command.arg(source).arg("-o").arg(self.work.join(store));
        for word in entry {
            command.args(["--entrypoint", word]);
        }
        let said: Value = serde_json::from_slice(&succeed(&mut command)?)?;
        let file = said["file"].as_str().context("no file was named")?.into();
        let stored_bytes = said["stored_bytes"].as_u64().context("no bytes")?;
        Ok(Packed { file, stored_bytes })
    }

    /// Of one tree, unpacked once; each tool writes its output to this machine's disk.
    fn packing(&self) -> Result<Vec<Row>> {
        let tar = userland::userland(&self.paths)?;
        let bytes = float(fs::metadata(&tar)?.len());
        // As the owners that it has, where this is root's; mkfs.erofs of Debian 12 reads no tar.
        let tree = self.work.join("tree");
        fs::create_dir(&tree)?;
        let mut unpack = Command::new("tar");
        succeed(unpack.arg("-xf").arg(&tar).arg("-C").arg(&tree))?;
        let mut times = [const { Vec::new() }; 3];
        for round in 0..ROUNDS {
            let store = format!("pack-{round}");
            times[0].push(cpu_seconds(|| self.pack(&tar, &store, &[]).map(drop))?);
            let out = self.work.join("out");
            times[1].push(cpu_seconds(|| {
                let mut zstd = Command::new("zstd");
                zstd.args(["-q", "-f", "-3", "-T1"])
                    .arg(&tar)
                    .arg("-o")
                    .arg(&out);
                succeed(&mut zstd).map(drop)
            })?);
            times[2].push(cpu_seconds(|| {
                let mut erofs = Command::new("mkfs.erofs");
                erofs.args(["--quiet", "-zlz4hc"]).arg(&out).arg(&tree);
                succeed(&mut erofs).map(drop)
            })?);
            fs::remove_dir_all(self.work.join(store))?;
            fs::remove_file(&out)?;
        }
        let [ours, zstd, erofs] = times.map(median);
        let rate = |seconds: f64| bytes / MIB / seconds;
        let mut rows = vec![
            Row::floor(
                "packing a Debian user land, as a part of zstd -3's rate",
                zstd / ours,
                "",
                PACK_OF_ZSTD,
            ),
            Row::part(
                "sifr flist pack, a second of processor time",
                rate(ours),
                "MiB",
            ),
            Row::part("zstd -3, the same", rate(zstd), "MiB"),
        ];
        let what = "mkfs.erofs with lz4hc, the same";
        rows.push(Row::part(what, rate(erofs), "MiB"));
        Ok(rows)
    }

    fn releases(&self) -> Result<Vec<Row>> {
        let [old, new] = tools::two_releases(&self.paths, RELEASES)?;
        let old = self.pack(&old, "releases", &[])?;
        let before = chunk_names(old.store())?;
        let new = self.pack(&new, "releases", &[])?;
        let mut added = 0;
        for file in chunk_names(new.store())?.difference(&before) {
            added += fs::metadata(file)?.len();
        }
        Ok(vec![
            Row::part(
                format!("{RELEASES}: bytes of a release that the one before does not have"),
                100.0 * float(added) / float(new.stored_bytes),
                "%",
            ),
            Row::part("a release, stored", float(new.stored_bytes) / MIB, "MiB"),
        ])
    }

    /// The same server twice, each time on a node that has nothing: the second has the trace of the first.
    fn starts(&self, server: &Server) -> Result<Vec<Row>> {
        let name = server.name;
        let tar = userland::with(&self.paths, &format!("debian-{name}.tar"), server.packages)?;
        let packed = self.pack(&tar, name, server.entry)?;
        let all = packed.bytes()?;
        let cold = self.start(server, &packed, Next::Trace)?;
        let traced = self.start(server, &packed, Next::Nothing)?;
        let metadata = float(fs::metadata(&packed.file)?.len());
        Ok(vec![
            Row::target(
                format!("{name}: bytes before it answers, as a part of its image"),
                100.0 * float(cold.bytes) / all,
                "%",
                BEFORE_READY_PERCENT,
            )
            .beside("Slacker", SLACKER_PERCENT),
            Row::part("image, stored", all / MIB, "MiB"),
            Row::part("before it answers", float(cold.bytes) / MIB, "MiB"),
            Row::part("requests", float(cold.requests), ""),
            Row::part("chunks it waited for", cold.waited, ""),
            Row::part("its guest read, unpacked: a floor", cold.read / MIB, "MiB"),
            Row::part(
                "with the trace: before it answers",
                float(traced.bytes) / MIB,
                "MiB",
            ),
            Row::part("with the trace: requests", float(traced.requests), ""),
            Row::part("with the trace: chunks it waited for", traced.waited, ""),
            Row::target(
                format!("{name}: metadata, as a part of its image"),
                100.0 * metadata / all,
                "%",
                METADATA_PERCENT,
            )
            .beside("nydus", NYDUS_METADATA_PERCENT),
        ])
    }

    fn start(&self, server: &Server, packed: &Packed, next: Next) -> Result<Start> {
        let (url, served) = store::serve_counted(packed.store(), Arc::default())?;
        let lab = Lab::with(&Setup::default(), |_| Ok(()))?;
        deploy(
            &lab,
            server.name,
            packed,
            &url,
            &format!("ports: [\"{WEB_PORT}:{}\"]\nmemory: 256Mi\n", server.port),
        )?;
        answers(&lab, server)?;
        let start = Start::now(&served, &lab)?;
        if matches!(next, Next::Trace) {
            take_trace(&lab, packed)?;
        }
        Ok(start)
    }

    /// As many as a deployment's machines on one node, against one.
    fn parallel(&self) -> Result<Vec<Row>> {
        let packed = self.busybox("parallel")?;
        let mut fetched = Vec::new();
        for count in [1, AT_ONCE] {
            let (url, served) = store::serve_counted(packed.store(), Arc::default())?;
            let setup = Setup {
                memory: types::Bytes::gib(4),
                // Each is promised four times.
                cpus: 5,
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |_| Ok(()))?;
            // All of the large file is read, so that each machine touches the whole image.
            let read = "memory: 64Mi\nrestart: never\ncommand: [sh, -c, 'cat /www/large.bin >/dev/null']\n";
            for number in 0..count {
                deploy(&lab, &format!("m{number}"), &packed, &url, read)?;
            }
            for number in 0..count {
                lab.wait(&format!("m{number}"), "exited")?.must()?;
            }
            fetched.push(float(u64::try_from(served.chunks().1)?));
        }
        Ok(vec![
            Row::target(
                format!("{AT_ONCE} starts at once: bytes fetched, as a multiple of one's"),
                fetched[1] / fetched[0],
                "",
                PARALLEL,
            ),
            Row::part("by one", fetched[0] / MIB, "MiB"),
        ])
    }
}

/// What is done once a server has answered.
#[derive(Debug, Clone, Copy)]
enum Next {
    Trace,
    Nothing,
}

/// Until the first answer.
struct Start {
    bytes: u64,
    requests: u64,
    waited: f64,
    /// What the guest has read of its image's disk.
    read: f64,
}

impl Start {
    fn now(served: &Served, lab: &Lab) -> Result<Self> {
        let objects = served.objects();
        let bytes: usize = objects.iter().map(|(_, bytes)| bytes).sum();
        let metrics = lab.sifr(&["node", "metrics"])?.must()?.stdout;
        let metrics = exposition::read(&metrics)?;
        let counted = |series: &str, labels: &[(&str, &str)]| {
            let sum = metrics.sum(series, labels);
            sum.with_context(|| format!("no {series} is counted"))
        };
        let disk = [("device", "blk"), ("name", "image")];
        Ok(Self {
            bytes: u64::try_from(bytes)?,
            requests: u64::try_from(objects.len())?,
            waited: counted("sifr_chunks_wanted_total", &[])?,
            read: counted("sifr_machine_queue_to_guest_bytes_total", &disk)?,
        })
    }
}

pub(super) fn deploy(lab: &Lab, name: &str, packed: &Packed, url: &str, more: &str) -> Result<()> {
    let digest = packed
        .file
        .file_stem()
        .context("no name")?
        .to_string_lossy();
    let yaml = format!("name: {name}\nimage: blake3:{digest}\nstore: {url}\ndisk: 64Mi\n{more}");
    lab.deploy(&yaml)?.must().map(drop)
}

fn answers(lab: &Lab, server: &Server) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        if ask(lab.web, server).is_ok_and(|answer| answer.contains(server.answer)) {
            return Ok(());
        }
        if Instant::now() > end {
            let (status, log) = (lab.get(server.name)?, lab.logs(server.name)?);
            anyhow::bail!("{} does not answer: {status}\n{log}", server.name);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The beginning of an answer, where there is one.
fn ask(port: u16, server: &Server) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(server.ask.as_bytes())?;
    let mut bytes = [0; 64];
    let length = stream.read(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Beside the flist, from where the store serves it.
fn take_trace(lab: &Lab, packed: &Packed) -> Result<()> {
    let file = packed.file.to_string_lossy();
    let end = Instant::now() + PATIENCE;
    loop {
        let taken = lab.sifr(&["flist", "trace", &file])?.must();
        if taken.is_ok() || Instant::now() > end {
            return taken.map(drop);
        }
        std::thread::sleep(PAUSE);
    }
}

fn chunk_names(store: &Path) -> Result<BTreeSet<PathBuf>> {
    Ok(store::chunks(store)?.into_iter().collect())
}

fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(output.stdout)
}

/// Processor time of the children that `work` waits for. Nobody else of this process has children meanwhile.
fn cpu_seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let now = || -> Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let seconds = |time: nix::sys::time::TimeVal| {
            let micros = i128::from(time.tv_sec()) * 1_000_000 + i128::from(time.tv_usec());
            u64::try_from(micros).map(|micros| float(micros) / 1e6)
        };
        Ok(seconds(usage.user_time())? + seconds(usage.system_time())?)
    };
    let before = now()?;
    work()?;
    Ok(now()? - before)
}

pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
