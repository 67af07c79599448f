//! `make bench`: the image against its targets, as one table.
//!
//! Owns: the form of the output. A missed target is said, and is no error; a group that could not be measured is.
//! Refuses: to measure an image that was not built.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use image::assemble::Image;
use image::paths::Paths;
use qemu_tests::bench::{self, Choice, Group, Measured, table};

enum Output {
    Table,
    Json,
}

fn main() -> Result<()> {
    let (mut output, mut choice) = (Output::Table, Choice::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let group = Group::ALL.iter().find(|(_, word, _)| *word == value);
        match (argument.as_str(), value.as_str(), group) {
            ("--output", "json", _) => output = Output::Json,
            ("--only", _, Some((group, ..))) => choice.only.push(*group),
            ("--peer", word, _) => choice.peers.add(word)?,
            ("--machines", number, _) => {
                let machines = number.parse::<u16>().ok().filter(|n| *n > 0);
                choice.machines = machines.context("--machines takes a number of machines")?;
            }
            _ => bail!(
                "usage: bench [--output json] [--only {}]... [--machines 100] [--peer NAME=PATH]...",
                words()
            ),
        }
    }
    let paths = Paths::find()?;
    let build = Image::find(&paths)?.identity()?;
    let Measured { rows, failed } = bench::all(&paths, &choice)?;
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
