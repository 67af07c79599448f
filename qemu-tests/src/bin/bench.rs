//! `make bench`: the image against its targets, as one table.
//!
//! Owns: the form of the output. A missed target is said, and is no error.
//! Refuses: to measure an image in part.
#![forbid(unsafe_code)]

use anyhow::{Result, bail};
use image::assemble::Image;
use image::paths::Paths;
use qemu_tests::bench::{self, table};

enum Output {
    Table,
    Json,
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = match arguments[..] {
        [] => Output::Table,
        ["--output", "json"] | ["--output=json"] => Output::Json,
        _ => bail!("usage: bench [--output json]"),
    };
    let paths = Paths::find()?;
    let build = Image::find(&paths)?.identity()?;
    let rows = bench::all(&paths)?;
    match output {
        Output::Table => print!("{build}\n\n{}", table::table(&rows)),
        Output::Json => println!("{:#}", table::json(&build, &rows)),
    }
    Ok(())
}
