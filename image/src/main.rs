//! `sifr-image`: makes the image and everything around it.
//!
//! Owns: the command line. Refuses: logic, which is in the library.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use image::kernel::{self, Kind};
use image::paths::Paths;
use image::{setup, xfsprogs};

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
    /// Install what this machine lacks
    Setup,
    /// Build the two XFS programs, or take them from the cache, and print where they are
    Xfsprogs,
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
        Command::Setup => setup::setup()?,
        Command::Xfsprogs => {
            let built = xfsprogs::xfsprogs(&paths)?;
            println!("{}\n{}", built.mkfs.display(), built.repair.display());
        }
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
