//! `sifr`: the command of owners and tenants.
//!
//! Owns: the command line, the files under `~/.config/sifr`, what people and programs read, exit codes.
//! Refuses: a protocol of its own (`api` has it) and anything that needs a login on a node.
#![forbid(unsafe_code)]

mod across;
mod addresses;
mod args;
mod cards;
mod deploy;
mod depot;
mod disks;
mod drill;
mod explain;
mod failure;
mod fleet;
mod flists;
mod health;
mod home;
mod lifecycle;
mod links;
mod mounts;
mod network_get;
mod networks;
mod nodes;
mod pack;
mod patience;
mod push;
mod recovery;
mod refused;
mod salt;
mod screen;
mod served;
mod site;
mod sites;
mod source;
mod spec;
mod transfer;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use registry::{Key, Policy};

use crate::args::{Cli, Command};
use crate::failure::Outcome;
use crate::home::Home;
use crate::screen::Screen;

/// What every command is given.
struct Context {
    home: Home,
    screen: Screen,
    /// `--node`
    node: Option<String>,
    /// `--require-signature`
    require_signature: Vec<PathBuf>,
}

impl Context {
    /// Which images of registries must be signed, and by whom.
    fn policy(&self) -> anyhow::Result<Policy> {
        if self.require_signature.is_empty() {
            return Ok(Policy::read(&self.home.signatures_file())?);
        }
        let keys = self.require_signature.iter().map(|file| Key::read(file));
        Ok(Policy::for_all(keys.collect::<Result<_, _>>()?))
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let outcome = Outcome::of(&error);
            if let Some(text) = failure::explain(&error, outcome) {
                eprintln!("{text}");
            }
            outcome.into()
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli {
        command,
        node,
        identity,
        require_signature,
        output,
    } = cli;
    let context = Context {
        home: Home::find(identity)?,
        screen: Screen::new(output),
        node,
        require_signature,
    };
    match command {
        Command::Key(command) => nodes::key(&context, command),
        Command::Node(command) => nodes::node(&context, command).await,
        Command::Disk(command) => disks::disk(&context, command).await,
        Command::Flist(command) => flists::flist(&context, command).await,
        Command::Deploy(options) => deploy::deploy(&context, *options).await,
        Command::Get { name } => lifecycle::get(&context, name).await,
        Command::Metrics { name } => nodes::metrics(&context, Some(name)).await,
        Command::Wait {
            name,
            until,
            timeout,
        } => lifecycle::wait(&context, name, until, timeout).await,
        Command::Logs {
            target,
            follow,
            tail,
        } => lifecycle::logs(&context, target, follow, tail).await,
        Command::Stop { name } => lifecycle::act(&context, name, lifecycle::Verb::Stop).await,
        Command::Start { name } => lifecycle::act(&context, name, lifecycle::Verb::Start).await,
        Command::Restart { name } => lifecycle::act(&context, name, lifecycle::Verb::Restart).await,
        Command::Delete { name, with_volumes } => {
            let verb = if with_volumes {
                lifecycle::Verb::Destroy
            } else {
                lifecycle::Verb::Delete
            };
            lifecycle::act(&context, name, verb).await
        }
        Command::Volume(command) => volumes::volume(&context, command).await,
        Command::Network(command) => networks::network(&context, command).await,
        Command::Explain { code } => explain::explain(&context.screen, &code),
        Command::Version => context.screen.identity(),
    }
}
