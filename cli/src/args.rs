//! The command line.
//!
//! Owns: commands, options, their help, and how each value reads.
//! Refuses: doing anything.

use std::path::PathBuf;
use std::time::Duration;

use api::Until;
use clap::{Args, Parser, Subcommand, ValueEnum};
use types::deployment::{Port, Protocol, RestartPolicy};
use types::{Bytes, Digest, Name, PublicKey};

/// Longest wait of `sifr wait`: a day.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, Parser)]
#[command(
    name = "sifr",
    version = sifr::version(),
    about = "Runs container images in micro VMs on machines that have no login",
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused by the node, \
                  4 node not reached, 5 time ran out."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Node to speak to, by the name it was added with
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Your secret key's file [default: key in the configuration directory]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Public key of which images of registries must have a cosign signature; repeat it for one of several
    /// [default: signatures.json in the configuration directory]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) require_signature: Vec<PathBuf>,
    /// Tables for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Your key: it owns nodes and signs deployments
    #[command(subcommand)]
    Key(KeyCommand),
    /// Nodes you know
    #[command(subcommand)]
    Node(NodeCommand),
    /// Disks of nodes: what is on them, and taking them
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Container images as content-addressed chunks
    #[command(subcommand)]
    Flist(FlistCommand),
    /// Create or replace a deployment, from a file or from options
    Deploy(Box<Deploy>),
    /// Show deployments
    Get { name: Option<Name> },
    /// Wait until a deployment is as you want it
    Wait {
        name: Name,
        /// running, stopped, exited or deleted
        #[arg(long = "for", value_name = "STATE", default_value = "running")]
        until: Until,
        /// For example 90s, 5m or 1h
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
        timeout: Duration,
    },
    /// Show what a workload wrote
    Logs {
        /// Deployment, or deployment/workload
        target: Target,
        /// Go on as it writes more
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=api::logs::TAIL_MAX))]
        tail: Option<u64>,
    },
    /// The machines of a deployment in numbers, as Prometheus reads them
    Metrics { name: Name },
    /// Stop all machines of a deployment; their disks stay
    Stop { name: Name },
    /// Start what was stopped
    Start { name: Name },
    /// Stop, then start
    Restart { name: Name },
    /// Stop and remove a deployment, disks too
    Delete {
        name: Name,
        /// Delete its volumes too, with their content and snapshots
        #[arg(long)]
        with_volumes: bool,
    },
    /// Volumes and their snapshots
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Networks of machines
    #[command(subcommand)]
    Network(crate::networks::NetworkCommand),
    /// What a code means, and what to do
    Explain { code: String },
    /// Which sifr this is
    Version,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make your key
    New,
    /// Show your public key
    Show {
        /// Certificate and secret key, for curl --cert and --key
        #[arg(long)]
        pem: bool,
    },
    /// Make a recovery key for encrypted disks, in shares: instead of yours, for a fleet
    Recovery(NewRecovery),
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Pin a node: its key is shown on its console
    Add {
        name: Name,
        /// IP address or host name, with a port where it is not 7443
        address: String,
        /// The key on the node's console: ed25519:…
        #[arg(long)]
        key: PublicKey,
        /// The name is taken: pin this key and address instead
        #[arg(long)]
        replace: bool,
    },
    /// Forget a node
    Remove { name: Name },
    /// Speak to this node where --node is not given
    Use { name: Name },
    /// All nodes you know, and how they are
    List,
    /// One node in detail
    Info,
    /// The node's own network: which options count, and others, tried before they are kept
    #[command(subcommand)]
    Network(crate::site::SiteCommand),
    /// The node's own links, as its kernel has them: state, addresses, and what went over each
    Links,
    /// The node's own routes, as its kernel has them
    Routes,
    /// The node's kernel log
    Dmesg,
    /// Show what machines tried in their networks and were refused
    Refused,
    /// The node and all machines in numbers, as Prometheus reads them
    Metrics,
    /// Destroy the keys of its disks for ever, keep the signed receipt, and switch it off
    Decommission(Decommission),
    /// Kill a part of the node as a crash would, and see it come back
    Drill {
        /// node (the agent), chunks, ingress, or deployment[/workload] (its VMM)
        target: DrillTarget,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Every disk: what it is, what is on it, what it is used for and why
    List {
        /// Nodes [default: as of every command]
        nodes: Vec<Name>,
    },
    /// What every disk says of its health, and what that comes to
    Health {
        /// Nodes [default: as of every command]
        nodes: Vec<Name>,
    },
    /// Take disks, with the loss of all that is on them
    Claim(ClaimDisks),
    /// Put a disk in place of half of a mirror, with the loss of all that is on the new one
    Replace(ReplaceDisk),
    /// Show the passphrase of an encrypted pool, which the recovery key opens
    Recover(Recover),
    /// Have a node open an encrypted pool that its TPM does not open, from now on
    Unlock(UnlockDisk),
}

#[derive(Debug, Args)]
pub(crate) struct NewRecovery {
    /// How many shares there are
    #[arg(long, default_value_t = 3)]
    pub(crate) shares: u8,
    /// How many of them make the key
    #[arg(long, default_value_t = 2)]
    pub(crate) need: u8,
    /// Directory that gets a file for each share
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// Serial of the disk, as `sifr disk list` shows it
    pub(crate) serial: Option<String>,
    /// The pool's partition, on this machine, without asking a node
    #[arg(long, value_name = "FILE", conflicts_with = "serial")]
    pub(crate) device: Option<PathBuf>,
    /// File with a share of the recovery key; repeat it [default: your own key]
    #[arg(long = "share", value_name = "FILE")]
    pub(crate) shares: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UnlockDisk {
    /// Serial of the disk, as `sifr disk list` shows it
    pub(crate) serial: String,
    /// File with a share of the recovery key; repeat it [default: your own key]
    #[arg(long = "share", value_name = "FILE")]
    pub(crate) shares: Vec<PathBuf>,
    /// File with the passphrase, as `sifr disk recover` has shown it
    #[arg(long, value_name = "FILE", conflicts_with = "shares")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Decommission {
    /// Serial of a disk; repeat it [default: every disk with a pool of yours]
    #[arg(long = "serial", value_name = "SERIAL")]
    pub(crate) serials: Vec<String>,
    /// New file that gets the receipt, signed by the node's key
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplaceDisk {
    /// Serial of the disk that goes: there, failing, or gone already
    pub(crate) old: String,
    /// Serial of the disk that comes, as `sifr disk list` shows it
    pub(crate) new: String,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ClaimDisks {
    /// Nodes [default: as of every command]
    pub(crate) nodes: Vec<Name>,
    /// Serial of a disk, as `sifr disk list` shows it; repeat it
    #[arg(
        long = "serial",
        value_name = "SERIAL",
        required_unless_present = "all_foreign"
    )]
    pub(crate) serials: Vec<String>,
    /// Every disk of these nodes that holds what the node did not make
    #[arg(long, conflicts_with = "serials")]
    pub(crate) all_foreign: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Start the nodes again when it is done: those that run from RAM then have a pool
    #[arg(long)]
    pub(crate) reboot: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FlistCommand {
    /// Pack a container image, a tar archive, a directory or a disk image
    Pack(Pack),
    /// Show what is in a .flist file
    #[command(visible_alias = "inspect")]
    Show { file: PathBuf },
    /// Put what the first run of an image on the node touched beside its .flist file: nodes that find it in the image's
    /// store get that first
    Trace { file: PathBuf },
    /// Bring an image into stores: its chunks, then its flist
    Push(Push),
    /// Bring an flist and all its chunks into a directory
    Pull(Pull),
    /// Read every chunk of an flist in each store, and compare
    Verify(Verify),
    /// Remove from a store the chunks that no flist in it names
    Gc(Gc),
    /// Bring flists from one store into others, what is missing there
    Mirror(Mirror),
}

/// How help shows one.
const STORES: &str = "STORE";

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// A .flist file in its store, or an image to pack (as in `flist pack`)
    pub(crate) image: PathBuf,
    /// Directory, s3://bucket/prefix or oci://registry/repository; before it a range of chunks: 00-7f=STORE
    #[arg(required = true, value_name = STORES)]
    pub(crate) stores: Vec<String>,
    /// Certificate authorities of the stores, in PEM, beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// The flist's digest: blake3:…
    pub(crate) flist: Digest,
    /// Directory, http(s)://…, s3://bucket/prefix or oci://registry/repository; before it a range of chunks
    #[arg(required = true, value_name = STORES)]
    pub(crate) stores: Vec<String>,
    /// Directory that gets the .flist file and the chunks
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Certificate authorities of the stores, in PEM, beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The flist's digest: blake3:…
    pub(crate) flist: Digest,
    /// Stores, each with the range of chunks that it should have
    #[arg(required = true, value_name = STORES)]
    pub(crate) stores: Vec<String>,
    /// The flist, where no store has it
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Certificate authorities of the stores, in PEM, beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Directory or s3://bucket/prefix
    pub(crate) store: String,
    /// What is younger stays, so that pushes under way are safe
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = days)]
    pub(crate) grace: Duration,
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// An flist that goes first; repeat it
    #[arg(long, value_name = "DIGEST")]
    pub(crate) forget: Vec<Digest>,
    /// Certificate authorities of the store, in PEM, beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Mirror {
    /// Store that has them
    pub(crate) from: String,
    /// Stores that get them, each with its range of chunks
    #[arg(required = true, value_name = STORES)]
    pub(crate) to: Vec<String>,
    /// Only this one; repeat it. A web server does not say which it has
    #[arg(long = "flist", value_name = "DIGEST")]
    pub(crate) flists: Vec<Digest>,
    /// Certificate authorities of the stores, in PEM, beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

/// How a disk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiskForm {
    /// Byte for byte
    Raw,
    /// As QEMU keeps it
    Qcow2,
}

#[derive(Debug, Args)]
pub(crate) struct Pack {
    /// An image in a registry (docker.io/library/nginx:1.27, docker://nginx), what `docker save` wrote, an
    /// OCI archive or layout, a tar archive (gzip and zstd too), a directory, a disk image (qcow2 or raw)
    pub(crate) source: PathBuf,
    /// The file is a disk of this form, whatever it begins with [default: told by its content]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) disk: Option<DiskForm>,
    /// Directory that gets the .flist file and the chunks
    #[arg(short = 'o', long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Encrypt the chunks; the .flist file then holds their keys and is itself the secret
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Salt to encrypt with [default: salt in the configuration directory, made when it is first needed]
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    pub(crate) salt_file: Option<PathBuf>,
    /// Program to run, instead of the image's and its arguments; repeat it for arguments
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// Arguments that a deployment may replace; repeat it
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) cmd: Vec<String>,
    /// NAME=value; repeat it
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<(String, String)>,
    /// User, or user:group, by name or number
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// YAML file, - for standard input
    #[arg(conflicts_with = "image")]
    pub(crate) file: Option<PathBuf>,
    /// Instead of a file: a .flist file, an image to pack (as in `flist pack`), or the digest of an
    /// flist that the node has
    #[arg(long, requires = "name")]
    pub(crate) image: Option<String>,
    /// The deployment's name
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// Store from which the node may fetch the image's chunks: http(s)://…, s3://bucket/prefix or
    /// oci://registry/repository; before it a range of chunks: 00-7f=URL. Repeat it
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    pub(crate) store: Vec<String>,
    /// Certificate authorities of these stores, in PEM, beside the public ones
    #[arg(long, value_name = "FILE", requires = "store", conflicts_with = "file")]
    pub(crate) store_ca: Option<PathBuf>,
    /// Port of the node and port of the machine, such as 80:8080; repeat it
    #[arg(short = 'p', long = "port", value_name = "NODE:MACHINE", value_parser = port, conflicts_with = "file")]
    pub(crate) ports: Vec<Port>,
    #[arg(long, conflicts_with = "file")]
    pub(crate) cpus: Option<u8>,
    /// For example 512Mi
    #[arg(long, conflicts_with = "file")]
    pub(crate) memory: Option<Bytes>,
    /// Writable layer, for example 2Gi
    #[arg(long, conflicts_with = "file")]
    pub(crate) disk: Option<Bytes>,
    /// NAME=value; repeat it
    #[arg(short = 'e', long, value_name = "NAME=VALUE", value_parser = variable, conflicts_with = "file")]
    pub(crate) env: Vec<(String, String)>,
    #[arg(long, conflicts_with = "file")]
    pub(crate) user: Option<String>,
    #[arg(long, conflicts_with = "file")]
    pub(crate) workdir: Option<String>,
    /// always, on-failure or never
    #[arg(long, value_parser = restart, conflicts_with = "file")]
    pub(crate) restart: Option<RestartPolicy>,
    /// Encrypt the chunks of images that are packed on the way; a .flist file must be encrypted already
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Salt to encrypt with [default: salt in the configuration directory, made when it is first needed]
    #[arg(long, value_name = "FILE", requires = "encrypt")]
    pub(crate) salt_file: Option<PathBuf>,
    /// The node may forget it at a reboot: it runs from RAM
    #[arg(long)]
    pub(crate) accept_volatile: bool,
    /// A workload that this version leaves out, to be deleted with its disk; repeat it
    #[arg(long, value_name = "WORKLOAD")]
    pub(crate) remove: Vec<Name>,
    /// A volume that this version leaves out, to be deleted with its content and snapshots; repeat it
    #[arg(long, value_name = "VOLUME")]
    pub(crate) destroy: Vec<Name>,
    /// Replaces the image's command
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "file")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Show volumes: size, what they use, who has them, snapshots
    List { name: Option<Name> },
    /// Keep what a volume holds now: shop/data@monday
    Snapshot { target: SnapshotTarget },
    /// Have a volume hold what it held then; what it holds now is lost. Its deployment is stopped before
    Restore { target: SnapshotTarget },
    /// Delete a snapshot
    Delete { target: SnapshotTarget },
}

/// `deployment/volume@snapshot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotTarget {
    pub(crate) deployment: Name,
    pub(crate) volume: Name,
    pub(crate) snapshot: Name,
}

impl std::str::FromStr for SnapshotTarget {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split_once('@');
        let parts = parts.and_then(|(of, snapshot)| Some((of.split_once('/')?, snapshot)));
        let Some(((deployment, volume), snapshot)) = parts else {
            return Err(format!(
                "{s:?} is not DEPLOYMENT/VOLUME@SNAPSHOT, such as shop/data@monday"
            ));
        };
        let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
        Ok(Self {
            deployment: name(deployment)?,
            volume: name(volume)?,
            snapshot: name(snapshot)?,
        })
    }
}

/// `deployment` or `deployment/workload`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) deployment: Name,
    pub(crate) workload: Option<Name>,
}

impl std::str::FromStr for Target {
    type Err = types::id::IdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let (deployment, workload) = s.split_once('/').map_or((s, None), |(d, w)| (d, Some(w)));
        Ok(Self {
            deployment: deployment.parse()?,
            workload: workload.map(str::parse).transpose()?,
        })
    }
}

/// `node`, `chunks`, `ingress`, or what [`Target`] reads: deployments of these three names need their workload's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DrillTarget {
    Node,
    Chunks,
    Ingress,
    Machine(Target),
}

impl std::str::FromStr for DrillTarget {
    type Err = types::id::IdError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "node" => Ok(Self::Node),
            "chunks" => Ok(Self::Chunks),
            "ingress" => Ok(Self::Ingress),
            other => other.parse().map(Self::Machine),
        }
    }
}

/// `80:8080`, or `8080` where both are the same.
pub(crate) fn port(text: &str) -> Result<Port, String> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Some(Protocol::Tcp)),
        Some((ports, "udp")) => (ports, Some(Protocol::Udp)),
        Some((ports, _)) => (ports, None),
    };
    let (node, machine) = ports.split_once(':').unwrap_or((ports, ports));
    let number = |text: &str| text.parse().ok().filter(|n| *n != 0);
    match (number(node), number(machine), protocol) {
        (Some(node), Some(machine), Some(protocol)) => Ok(Port {
            node,
            machine,
            protocol,
        }),
        _ => Err(format!(
            "port {text:?} is not NODE:MACHINE with numbers from 1 to 65535, such as 80:8080 or 53:53/udp"
        )),
    }
}

pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("variable {text:?} is not NAME=value")),
    }
}

pub(crate) fn restart(text: &str) -> Result<RestartPolicy, String> {
    match text {
        "always" => Ok(RestartPolicy::Always),
        "on-failure" | "on_failure" => Ok(RestartPolicy::OnFailure),
        "never" => Ok(RestartPolicy::Never),
        _ => Err(format!(
            "restart policy {text:?} is not always, on-failure or never"
        )),
    }
}

/// The same as [`duration`], and days.
fn days(text: &str) -> Result<Duration, String> {
    let number = text
        .strip_suffix('d')
        .and_then(|digits| digits.parse::<u32>().ok());
    match number {
        Some(days) => Ok(Duration::from_secs(u64::from(days) * 86_400)),
        None => duration(text).map_err(|error| error.replace(" or h,", ", h or d, hours")),
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("time {text:?} is not a whole number with ms, s, m or h, up to 24h");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| error())?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(error()),
    };
    let time = number.checked_mul(milliseconds).map(Duration::from_millis);
    time.filter(|time| *time <= TIMEOUT_MAX).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("sifr").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_documents_show_parses() {
        let key = PublicKey([1; 32]);
        let digest = Digest([1; 32]);
        for line in [
            "key new",
            "key show --pem",
            &format!("node add lab 10.0.0.11 --key {key}"),
            "node use lab",
            "node list --output json",
            "node info --node lab",
            "node dmesg",
            "node metrics",
            "node refused",
            "metrics shop",
            "node drill node",
            "node drill chunks --node lab",
            "node drill shop/web --output json",
            "flist pack rootfs -o store --entrypoint /bin/app --cmd -v --env A=b=c --user 1000 --workdir /srv",
            "flist show store/x.flist",
            "flist inspect store/x.flist",
            "flist pack rootfs -o store --encrypt",
            "flist pack rootfs -o store --encrypt --salt-file team",
            "flist trace store/x.flist",
            "flist push store/x.flist s3://bucket/images 00-7f=/srv/a",
            &format!("flist pull {digest} https://a/b oci://ghcr.io/a/b -o store --ca ca.pem"),
            &format!("flist verify {digest} s3://bucket --file x.flist"),
            &format!("flist gc /srv/store --grace 7d --dry-run --forget {digest}"),
            &format!("flist mirror /srv/store s3://bucket --flist {digest}"),
            "deploy --image x.flist --name shop --store https://a --store s3://b --store-ca ca.pem",
            "deploy app.yaml",
            "deploy - --accept-volatile",
            "deploy --image store/x.flist -p 8080:80 -p 443 --name shop --memory 512Mi --restart on-failure -- /bin/app -v",
            "get",
            "get shop",
            "wait shop --for exited --timeout 5m",
            "logs -f --tail 10 shop/web",
            "stop shop",
            "start shop",
            "restart shop",
            "delete shop",
            "delete shop --with-volumes",
            "deploy app.yaml --destroy data",
            "volume list",
            "volume list shop",
            "volume snapshot shop/data@monday",
            "volume restore shop/data@monday",
            "volume delete shop/data@monday",
            "network get",
            "network get shop",
            "network capture shop",
            "network capture shop/web --network back",
            "network trace shop/web db --tcp 5432",
            "network trace outside shop --udp 53",
            "network capture shop/web -w web.pcapng --snap 96 --for 30s",
            "version",
        ] {
            assert!(
                parse(line).is_ok(),
                "{line}: {}",
                parse(line).expect_err("an error")
            );
        }
    }

    #[test]
    fn wrong_usage_says_what_is_wrong() {
        for (line, says) in [
            ("deploy --image x.flist", "--name"),
            ("flist pack rootfs -o store --salt-file team", "--encrypt"),
            ("deploy app.yaml --memory 1Gi", "cannot be used with"),
            (
                "deploy --image x --name shop -p 0:80",
                "numbers from 1 to 65535",
            ),
            ("deploy --image x --name Shop", "DNS label"),
            ("deploy --image x --name shop --memory 1G", "whole number"),
            (
                "deploy --image x --name shop --restart often",
                "always, on-failure or never",
            ),
            ("node add lab 10.0.0.1", "--key"),
            ("node add lab 10.0.0.1 --key SHA256:abc", "ed25519"),
            (
                "wait shop --for happy",
                "running, stopped, exited or deleted",
            ),
            ("wait shop --timeout 60", "ms, s, m or h"),
            ("wait shop --timeout 25h", "up to 24h"),
            ("logs shop/web/x", "DNS label"),
            ("volume snapshot shop/data", "shop/data@monday"),
            ("volume snapshot shop@monday", "shop/data@monday"),
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(says), "{line}: {error}");
        }
        assert_eq!(
            parse("--help").expect_err("help").kind(),
            ErrorKind::DisplayHelp
        );
    }

    #[test]
    fn a_deployment_may_be_called_like_a_part_of_the_node() {
        let target: DrillTarget = "node/main".parse().expect("a target");
        assert!(matches!(
            target,
            DrillTarget::Machine(Target {
                workload: Some(_),
                ..
            })
        ));
        assert_eq!("chunks".parse(), Ok(DrillTarget::Chunks));
        assert_eq!("ingress".parse(), Ok(DrillTarget::Ingress));
    }

    #[test]
    fn a_single_port_stands_for_both_sides() {
        assert_eq!(port("8080"), Ok(Port::tcp(8080, 8080)));
        assert_eq!(port("80:8080"), Ok(Port::tcp(80, 8080)));
        assert_eq!(port("80:8080/tcp"), port("80:8080"));
        let udp = port("53/udp").expect("a port");
        assert_eq!(
            (udp.protocol, udp.node, udp.machine),
            (Protocol::Udp, 53, 53)
        );
        for bad in ["", "65536", "80:8080/sctp", "80/", "/udp", "0/udp"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
