//! `make bench`: the image against its targets, as one table.
//!
//! Owns: nothing but the call. Refuses: arguments.
#![forbid(unsafe_code)]

use anyhow::Result;
use image::paths::Paths;
use qemu_tests::bench::{measure, table};

fn main() -> Result<()> {
    let rows = measure::all(&Paths::find()?)?;
    print!("{}", table::table(&rows));
    Ok(())
}
