//! `sifr-image`: makes the image and everything around it.
//!
//! Owns: the command line. Refuses: logic, which is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use image::kernel::{self, Kind};
use image::paths::Paths;
use image::{assemble, demo, inspect, repro, setup, suite, xfsprogs};
use types::PublicKey;

#[derive(Debug, Parser)]
#[command(
    name = "sifr-image",
    version = sifr::version(),
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
    /// Build the image into dist/
    Build {
        /// The owner's public key, ed25519:<hex>: nodes of this image obey that owner only
        #[arg(long, env = "SIFR_OWNER")]
        owner: Option<PublicKey>,
    },
    /// Boot a node, run a web server on it, and leave both running
    Demo,
    /// Stop the node that `demo` left running
    Stop,
    /// Run every test, up to those on the booted image
    Test,
    /// Build the commit twice and compare the images byte for byte
    Repro,
    /// Check a built image for anything that must not be in it
    Inspect,
    /// Build one kernel, or take it from the cache, and print where it is
    Kernel { kind: KernelKind },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KernelKind {
    Host,
    Guest,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let paths = Paths::find()?;
    match Arguments::parse().command {
        Command::Setup => setup::setup(&paths)?,
        Command::Build { owner } => {
            assemble::build(&paths, owner)?;
        }
        Command::Demo => demo::demo(&paths)?,
        Command::Stop => demo::stop(&paths)?,
        Command::Test => suite::test(&paths)?,
        Command::Repro => repro::repro(&paths)?,
        Command::Inspect => {
            let findings = inspect::image(&paths.dist)?;
            findings.iter().for_each(|finding| println!("{finding}"));
            anyhow::ensure!(
                findings.is_empty(),
                "the image breaks {} rules",
                findings.len()
            );
            println!("dist/initramfs.img holds what it should and nothing else");
        }
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
