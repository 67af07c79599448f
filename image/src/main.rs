//! `sifr-image`: makes the image and everything around it.
//!
//! Owns: the command line. Refuses: logic, which is in the library.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use image::kernel::{self, Kind};
use image::paths::Paths;

#[derive(Debug, Parser)]
#[command(
    name = "sifr-image",
    version,
    about = "Builds, boots and tests the Sifr image"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build one kernel, or take it from the cache, and print where it is
    Kernel { kind: KernelKind },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KernelKind {
    Host,
    Guest,
}

fn main() -> Result<()> {
    let paths = Paths::find()?;
    match Arguments::parse().command {
        Command::Kernel { kind } => {
            let kind = match kind {
                KernelKind::Host => Kind::Host,
                KernelKind::Guest => Kind::Guest,
            };
            println!("{}", kernel::kernel(&paths, kind)?.file.display());
        }
    }
    Ok(())
}
