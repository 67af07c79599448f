//! What a guest reads: its image beside the same data on a plain raw disk, and through a store that goes away.
//!
//! Owns: one program that reads both in turn, so that they share all else; a store that is killed in the middle.
//! Refuses: comparing seconds. Parts of one another alone say something on an emulated node.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use image::userland;

use super::images::{Bench, deploy};
use super::measure::{MIB, PATIENCE, float};
use super::table::Row;
use crate::store::{self, Gate};
use crate::{Lab, Setup};

/// A guest reads its image no slower than a raw disk, but for what runs differ by.
const OF_RAW: f64 = 0.95;
/// Bytes that are fetched where a store went away in the middle: what was under way comes once more.
const INTERRUPTED: f64 = 1.3;
/// Stored size of a chunk of the large file.
const NOISE_BYTES: usize = 512 << 10;

/// The largest file of the image, and its copy on the machine's own disk: sequentially by 1 MiB, at random by 4 KiB, past
/// the guest's page cache. Prints one line a round.
const PROGRAM: &str = r#"
import mmap, os, random, shutil, time
data, copy = os.path.realpath('/usr/bin/python3'), '/copy'
shutil.copyfile(data, copy); os.sync()
size = os.path.getsize(data) // 4096 * 4096
def seconds(path, length, places):
    buffer = mmap.mmap(-1, length)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    begin = time.perf_counter()
    for place in places: assert os.preadv(file, [buffer], place) > 0
    end = time.perf_counter()
    os.close(file)
    return end - begin
whole = range(0, size, 1 << 20)
some = [random.randrange(size // 4096) * 4096 for _ in range(512)]
for _ in range(7):
    row = [seconds(path, *kind) for kind in ((1 << 20, whole), (4096, some)) for path in (data, copy)]
    print('round', size, *row, flush=True)
"#;

pub(super) fn rows(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = beside_a_raw_disk(bench)?;
    rows.push(through_a_store_that_goes_away(bench)?);
    Ok(rows)
}

fn beside_a_raw_disk(bench: &Bench) -> Result<Vec<Row>> {
    let tar = userland::with(bench.paths(), "debian-python.tar", "python3")?;
    let packed = bench.pack(&tar, "reading", &["/usr/bin/python3", "-c", PROGRAM])?;
    let (url, _served) = store::serve_counted(packed.store(), Arc::default())?;
    let lab = Lab::with(&Setup::default(), |_| Ok(()))?;
    deploy(
        &lab,
        "reading",
        &packed,
        &url,
        "memory: 256Mi\nrestart: never\n",
    )?;
    let said = lab.follow("reading")?.to_end()?;
    let mut ratios = [Vec::new(), Vec::new()];
    let mut last = Vec::new();
    // The first round fetches.
    for line in said
        .lines()
        .filter(|line| line.starts_with("round"))
        .skip(1)
    {
        let figures = line.split(' ').skip(1).map(str::parse::<f64>);
        last = figures.collect::<Result<Vec<_>, _>>()?;
        let [_, whole, raw_whole, some, raw_some] = last[..] else {
            anyhow::bail!("{line} is no round");
        };
        ratios[0].push(raw_whole / whole);
        ratios[1].push(raw_some / some);
    }
    ensure!(ratios[0].len() == 6, "the machine did not read: {said}");
    let [sequential, random] = ratios.map(super::images::median);
    let what = |how| format!("{how} reads of an image in a guest, as a part of a plain raw disk's");
    Ok(vec![
        Row::floor(what("sequential"), sequential, "", OF_RAW),
        Row::floor(what("random 4 KiB"), random, "", OF_RAW),
        Row::part(
            "… sequential, by the guest's clock",
            last[0] / MIB / last[1],
            "MiB/s",
        ),
        Row::part(
            "… random, by the guest's clock",
            512.0 / last[3],
            "a second",
        ),
    ])
}

/// The same content twice: undisturbed, and from a store that hangs up on everybody for a while.
fn through_a_store_that_goes_away(bench: &Bench) -> Result<Row> {
    let packed = bench.busybox("interrupted")?;
    let mut fetched = Vec::new();
    for is_killed in [false, true] {
        let gate = if is_killed {
            Gate::shut(NOISE_BYTES, 2)
        } else {
            Arc::default()
        };
        let (url, served) = store::serve_counted(packed.store(), Arc::clone(&gate))?;
        let lab = Lab::with(&Setup::default(), |_| Ok(()))?;
        let read =
            "memory: 96Mi\nrestart: never\ncommand: [sh, -c, 'exec sha256sum /www/large.bin']\n";
        deploy(&lab, "sum", &packed, &url, read)?;
        if is_killed {
            gate.wait_for_one()?;
            served.set_down(true);
            gate.open();
            let end = Instant::now() + PATIENCE;
            while served.refused() < 3 {
                ensure!(Instant::now() < end, "nobody tried again");
                // Nothing tells.
                std::thread::sleep(super::images::PAUSE);
            }
            served.set_down(false);
        }
        lab.wait("sum", "exited")?.must()?;
        let (status, said) = (lab.get("sum")?, lab.logs("sum")?);
        ensure!(said.contains("large.bin"), "it did not read: {status}");
        fetched.push((float(u64::try_from(served.chunks().1)?), said));
    }
    let [(undisturbed, one), (disturbed, other)] = &fetched[..] else {
        anyhow::bail!("two runs");
    };
    ensure!(one == other, "the bytes differ: {one} {other}");
    let what = "a store killed and restarted in the middle: bytes sent, as a multiple of without";
    Ok(Row::target(what, disturbed / undisturbed, "", INTERRUPTED))
}
