//! `make bench`: the image against its targets, as one table.
//!
//! Owns: the form of the output. A missed target is said, and is no error.
//! Refuses: to measure an image that was not built.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use image::assemble::Image;
use image::paths::Paths;
use qemu_tests::bench::{self, Group, table};

enum Output {
    Table,
    Json,
}

fn main() -> Result<()> {
    let (mut output, mut only) = (Output::Table, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let group = Group::ALL.iter().find(|(_, word, _)| *word == value);
        match (argument.as_str(), value.as_str(), group) {
            ("--output", "json", _) => output = Output::Json,
            ("--only", _, Some((group, ..))) => only = Some(*group),
            _ => bail!("usage: bench [--output json] [--only {}]", words()),
        }
    }
    let paths = Paths::find()?;
    let build = Image::find(&paths)?.identity()?;
    let rows = bench::all(&paths, only)?;
    match output {
        Output::Table => print!("{build}\n\n{}", table::table(&rows)),
        Output::Json => println!("{:#}", table::json(&build, &rows)),
    }
    Ok(())
}

fn words() -> String {
    Group::ALL.map(|(_, word, _)| word).join("|")
}
