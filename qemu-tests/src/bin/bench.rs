//! `make bench`: the image against its targets, as one table.
//!
//! Owns: the form of the output. A missed target is said, and is no error; a group that could not be measured is.
//! Refuses: to measure an image that was not built.
#![forbid(unsafe_code)]

use anyhow::{Result, bail, ensure};
use image::assemble::Image;
use image::paths::Paths;
use qemu_tests::bench::{self, Group, Measured, Peers, table};

enum Output {
    Table,
    Json,
}

fn main() -> Result<()> {
    let (mut output, mut only, mut peers) = (Output::Table, Vec::new(), Peers::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let group = Group::ALL.iter().find(|(_, word, _)| *word == value);
        match (argument.as_str(), value.as_str(), group) {
            ("--output", "json", _) => output = Output::Json,
            ("--only", _, Some((group, ..))) => only.push(*group),
            ("--peer", word, _) => peers.add(word)?,
            _ => bail!(
                "usage: bench [--output json] [--only {}]... [--peer NAME=PATH]...",
                words()
            ),
        }
    }
    let paths = Paths::find()?;
    let build = Image::find(&paths)?.identity()?;
    let Measured { rows, failed } = bench::all(&paths, &only, &peers)?;
    match output {
        Output::Table => print!("{build}\n\n{}", table::table(&rows)),
        Output::Json => println!("{:#}", table::json(&build, &rows)),
    }
    ensure!(
        failed.is_empty(),
        "these groups could not be measured: {}",
        failed.join(", ")
    );
    Ok(())
}

fn words() -> String {
    Group::ALL.map(|(_, word, _)| word).join("|")
}
