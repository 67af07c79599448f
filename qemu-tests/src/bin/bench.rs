//! `make bench`: the image against its targets, as one table.
//!
//! Owns: nothing but the call. Refuses: arguments.
#![forbid(unsafe_code)]

use anyhow::Result;
use image::assemble::Image;
use image::paths::Paths;
use qemu_tests::bench::{measure, table};

fn main() -> Result<()> {
    let paths = Paths::find()?;
    let rows = measure::all(&paths)?;
    println!("{}", Image::find(&paths)?.identity()?);
    print!("{}", table::table(&rows));
    Ok(())
}
