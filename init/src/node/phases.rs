//! The node agent's part of the boot, as a list of named phases.
//!
//! Owns: their order, the line that each prints, and what the boot does without one that failed.
//! Refuses: the work itself.
//!
//! All phases may run again: after a restart of the agent each finds what the first run made.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use storage::mirrors::Layout;
use storage::plan::{Choice, Standing, choose};
use storage::pool::{Pool, PoolError};
use storage::pools::{Places, Pools};
use tokio::sync::{mpsc, watch};
use types::PublicKey;
use types::node::{Capacity, Clock, LastEnd, NodeInfo, Phase};
use types::trouble::Code;
use workload::admission::Storage;

use super::context::{NodeContext, Uplink, tenant_capacity, tenant_disk};
use super::custody::Custody;
use super::disks::{Found, Looked};
use super::engine::Engine;
use super::given_up::{self, GivenUp, Ill, Mark};
use super::known::Known;
use super::machines::Site;
use super::pulse::Pulse;
use super::site::{Changes, Desk};
use super::{
    clock, dashboard, disks, ending, health, known, machine, mirror, pools, resolv, retire, site,
    smart, troubles, uplink, vigil,
};
use crate::console::Console;
use crate::options::{Network, Options};
use crate::phase::{Outcome, Row};
use crate::room::Room;

const POOL: &str = "/pool";
/// Where every further pool has its place, under the name of its disk.
const FURTHER: &str = "/run/sifr/pools";
const OWNER_FILE: &str = "/etc/sifr/owner.pub";
/// How long the boot waits for the first address. It then goes on, and the address comes when it comes:
/// a switch port may take 30 s to open, and nothing else needs to wait for it.
const ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// The console, and the rows so far.
struct Boot {
    console: Rc<RefCell<Console>>,
    rows: Vec<Phase>,
}

impl Boot {
    fn begin() -> Self {
        Self {
            console: Rc::new(RefCell::new(Console::open())),
            rows: Vec::new(),
        }
    }

    fn say(&self, line: &str) {
        self.console.borrow_mut().line(line);
    }

    fn row(&mut self, name: &str, started: Instant, outcome: &Outcome) {
        let took = started.elapsed();
        self.say(
            &Row {
                name,
                took,
                outcome,
            }
            .to_string(),
        );
        let error = match outcome {
            Outcome::Fine(_) => None,
            Outcome::Failed(text) => Some(text.clone()),
        };
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.rows.push(Phase {
            name: name.to_owned(),
            ms,
            error,
        });
    }

    /// All phases are done: from here on the node looks after itself, and shows what it sees.
    fn over(
        self,
        pools: Vec<Site>,
        info: &watch::Sender<NodeInfo>,
        uplink: watch::Receiver<Uplink>,
    ) {
        let rows = self.rows;
        info.send_modify(|i| i.boot = rows);
        tokio::task::spawn_local(health::watch(pools, info.clone()));
        tokio::task::spawn_local(smart::watch(info.clone()));
        let shown = dashboard::show(self.console, info.subscribe(), uplink);
        tokio::task::spawn_local(shown);
    }

    /// A phase that the boot cannot do without.
    fn must<T>(&mut self, name: &str, work: impl FnOnce() -> Done<T>) -> anyhow::Result<T> {
        let started = Instant::now();
        let result = work();
        self.settle(name, started, result)
    }

    async fn must_async<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Done<T>>,
    ) -> anyhow::Result<T> {
        let started = Instant::now();
        let result = work.await;
        self.settle(name, started, result)
    }

    fn settle<T>(&mut self, name: &str, started: Instant, result: Done<T>) -> anyhow::Result<T> {
        match result {
            Ok((value, text)) => {
                self.row(name, started, &Outcome::Fine(text));
                Ok(value)
            }
            Err(error) => {
                self.row(name, started, &Outcome::Failed(format!("{error:#}")));
                Err(error.context(name.to_owned()))
            }
        }
    }
}

/// All phases, then the engine. Returns only why the agent cannot go on.
pub(crate) async fn run() -> anyhow::Error {
    match provision().await {
        Ok(engine) => engine.run().await,
        Err(error) => error,
    }
}

/// The time is read when somebody asks, and no server has been heard yet.
const UNHEARD: Clock = Clock {
    realtime_ms: 0,
    synchronised: false,
};

async fn provision() -> anyhow::Result<Engine> {
    let mut boot = Boot::begin();
    let pid1 = socket_to_pid1()?;
    // Until the engine speaks for itself.
    let _pulse = Pulse::start(&pid1).context("give signs of life")?;
    let options = options(&boot);
    let owner = owner(&boot, options.owner);
    let custody = Custody::new(&options, owner.as_ref());
    let (looked, all) = disks_and_pools(&mut boot, owner.as_ref(), (&custody, options.disks))?;
    let (found, pool) = (&looked.found, &all.first);
    let mut problems = pool.problems.clone();
    let (seed, key) = boot.must("identity", || identity((&all, found), &mut problems))?;
    let sites = pools::sites(&all, found);
    let floors: Vec<_> = sites.iter().map(|s| s.mountpoint.clone()).collect();
    let start = boot.must("clock", || Ok((clock::start(&floors)?, None)))?;
    let kvm_problem = boot.must("kvm", kvm)?;
    let (storage, capacity) = capacity_of(pool, &sites);
    let (info, _) = watch::channel(NodeInfo {
        key,
        owner,
        build: sifr::IDENTITY.to_string(),
        uptime_ms: 0,
        agent_pid: std::process::id(),
        durable: pool.durable,
        volatile_because: pool.remark.clone().filter(|_| !pool.durable),
        virtualisation_problem: kvm_problem.clone(),
        encryption_problem: custody.problem(),
        clock: UNHEARD,
        capacity,
        links: Vec::new(),
        network: Default::default(),
        disks: disks::reports(found, owner.as_ref(), &all.standing()),
        pools: pools::report(&all, found),
        boot: Vec::new(),
        last_error: last_error(&options, &problems),
        last_end: ending::begin(&pool.mountpoint),
        troubles: Vec::new(),
        workloads: BTreeMap::new(),
        tpm: machine::tpm(),
        health: Vec::new(),
    });
    say_what_stands(&info, &options, &problems);
    say_what_goes(&info, &looked.retired, &all.standing());
    let (uplink, desk) = network(&mut boot, &options, floors, start, &info).await?;
    let context = NodeContext {
        seed,
        key,
        owner,
        storage,
        room: Room::of_the_node(&pool.mountpoint),
        pool: pool.mountpoint.clone(),
        guarded: pools::guarded(&all, found),
        adopted: all.adopted,
        waits: pools::waits(&all),
        found: looked.found,
        pools: sites,
        standing: all.standing(),
        custody,
        kvm_problem,
        capacity,
        info: info.clone(),
        uplink: uplink.clone(),
        desk,
        pid1,
    };
    let sites = context.pools.clone();
    let engine = engine(&mut boot, context).await?;
    boot.over(sites, &info, uplink);
    Ok(engine)
}

fn socket_to_pid1() -> anyhow::Result<OwnedFd> {
    sys::socket::inherited(crate::wire::PID1_FD).context("take the socket to pid1")
}

async fn engine(boot: &mut Boot, context: NodeContext) -> anyhow::Result<Engine> {
    let mirrors = mirror::watch(context.pools.clone(), context.info.clone());
    tokio::task::spawn_local(mirrors);
    let mut engine = boot
        .must_async("ledger", async { Ok((Engine::open(context).await?, None)) })
        .await?;
    boot.must_async("api", async { Ok((engine.listen().await?, None)) })
        .await?;
    boot.must_async("workloads", async { Ok((engine.adopt().await?, None)) })
        .await?;
    Ok(engine)
}

fn disks_and_pools(
    boot: &mut Boot,
    owner: Option<&PublicKey>,
    how: (&Custody, Layout),
) -> anyhow::Result<(Looked, Pools)> {
    let places = places();
    let mut looked = boot.must("disks", || look(owner, places))?;
    let given_up = GivenUp::read();
    let ill = |(disk, _): &Found| given_up.ill(&Mark::of(disk));
    let whole: Vec<Found> = looked
        .found
        .iter()
        .filter(|f| ill(f).is_none())
        .cloned()
        .collect();
    let mut pools = boot.must("pool", || pool(&whole, owner, how))?;
    let failed = looked.found.iter();
    let failed = failed.filter_map(|found| Some(pools::failed(&found.0, ill(found)?)));
    pools.left.extend(failed);
    pools::remember_classes(&pools, &mut looked.found);
    Ok((looked, pools))
}

fn options(boot: &Boot) -> Options {
    let options = super::told::options();
    options
        .errors
        .iter()
        .for_each(|error| boot.say(&format!("sifr: error: {error}")));
    options
}

/// The image's own key wins: a boot server cannot replace it, not even where it cannot be read.
fn owner(boot: &Boot, from_cmdline: Option<PublicKey>) -> Option<PublicKey> {
    match std::fs::read_to_string(OWNER_FILE) {
        Ok(text) => text
            .trim()
            .parse()
            .inspect_err(|error| boot.say(&format!("sifr: error: {OWNER_FILE}: {error}")))
            .ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => from_cmdline,
        Err(error) => {
            boot.say(&format!("sifr: error: {OWNER_FILE}: {error}"));
            None
        }
    }
}

/// The first thing a person should know: what is wrong with the pool, how the last boot ended, or which
/// option could not be read. The console has them all.
fn last_error(options: &Options, problems: &[String]) -> Option<String> {
    problems.iter().for_each(|problem| log::error!("{problem}"));
    let problem = problems.first().cloned();
    problem
        .or_else(crate::pid1::last_panic_headline)
        .or_else(|| options.errors.first().cloned())
}

/// What is wrong from the start of this agent on.
fn say_what_stands(info: &watch::Sender<NodeInfo>, options: &Options, problems: &[String]) {
    let now = info.borrow().clone();
    if now.owner.is_none() {
        troubles::say(
            info,
            Code::NoOwner,
            "the image and the kernel command line name no owner",
        );
    }
    if let Some(why) = &now.virtualisation_problem {
        troubles::say(info, Code::NoVirtualisation, why);
    }
    // One that waits for its disks says what it waits for.
    if let (Some(why), true) = (&now.volatile_because, now.pools.is_empty()) {
        troubles::say(info, Code::RunsFromMemory, why);
    }
    if let Some(error) = options.errors.first() {
        troubles::say(info, Code::OptionUnreadable, error);
    }
    if let Some(problem) = problems.first() {
        troubles::say(info, Code::PoolProblem, problem);
    }
    pools::say(info);
    match &now.last_end {
        Some(LastEnd::Panicked { headline }) => {
            troubles::say(info, Code::LastBootPanicked, headline);
        }
        Some(end @ LastEnd::Watchdog {}) => {
            troubles::say(info, Code::LastBootWatchdog, end.to_string());
        }
        Some(end @ LastEnd::Forced {}) => {
            troubles::say(info, Code::LastBootForced, end.to_string());
        }
        Some(LastEnd::SwitchedOff {} | LastEnd::Rebooted {} | LastEnd::Unannounced {}) | None => {}
    }
}

/// An earlier agent of this boot has destroyed disks that are in use still.
fn say_what_goes(info: &watch::Sender<NodeInfo>, retired: &[String], standing: &Standing) {
    let used = retired.iter().filter(|disk| standing.used.contains(disk));
    let used: Vec<_> = used.cloned().collect();
    if !used.is_empty() {
        retire::says(info, &used);
    }
}

/// What a phase brings, and what its row says.
type Done<T> = anyhow::Result<(T, Option<String>)>;

/// The kernel starts user space only when all disk drivers but USB's have looked at their buses, so
/// that the list is whole, and USB disks never become the pool.
fn look(owner: Option<&PublicKey>, places: Places<'_>) -> Done<Looked> {
    let looked = match known::read() {
        None => disks::boot(owner)?,
        // An agent before this one has read them all: one that does not answer now is left alone.
        Some(_) => {
            disks::give_up_on_hanging(places)?;
            disks::again(owner)?
        }
    };
    let said = looked.said.iter().cloned();
    let words = looked
        .found
        .iter()
        .map(|(d, c)| format!("{} {}", d.name, c.describe(owner)));
    let text = words.chain(said).collect::<Vec<_>>().join(", ");
    Ok((
        looked,
        Some(if text.is_empty() {
            "none".to_owned()
        } else {
            text
        }),
    ))
}

fn places() -> Places<'static> {
    Places {
        first: Path::new(POOL),
        beside: Path::new(FURTHER),
    }
}

fn pool(found: &[Found], owner: Option<&PublicKey>, how: (&Custody, Layout)) -> Done<Pools> {
    let mut pools = open_pools(found, owner, how)?;
    let pool = &mut pools.first;
    // One that an earlier agent has made does not say why.
    let waits = !pools.missing.is_empty();
    if let (false, false, Choice::Memory { why }) = (pool.durable, waits, choose(found, owner)) {
        pool.remark = Some(why);
    }
    let size = machine::size_of(&pool.mountpoint).as_mib();
    let place = pool
        .disk
        .as_deref()
        .map_or("in memory: nothing survives a reboot".to_owned(), |d| {
            format!("on {d}")
        });
    let said = |remark: &Option<String>| {
        remark
            .as_deref()
            .map_or(String::new(), |r| format!(" ({r})"))
    };
    let remark = said(&pool.remark);
    let further = pools
        .further
        .iter()
        .map(|f| format!("{}{}", f.disk, said(&f.remark)));
    let further = further.collect::<Vec<_>>().join(", ");
    let further = match further.as_str() {
        "" => String::new(),
        disks => format!(", and pools on {disks}"),
    };
    let text = format!("{size} MiB {place}{remark}{further}");
    Ok((pools, Some(text)))
}

fn open_pools(
    found: &[Found],
    owner: Option<&PublicKey>,
    (custody, layout): (&Custody, Layout),
) -> anyhow::Result<Pools> {
    let places = places();
    if let Some(known) = waits(found, owner, places) {
        return known.wait(places);
    }
    let inspect = |pool: &Path, depth| pools::inspect(pool, depth, owner.copied());
    let pools = match storage::pools::open(found, owner, (custody, layout), places, &inspect) {
        Ok(pools) => pools,
        // VMs run from it. pid1 starts another agent, which looks again.
        Err(error @ PoolError::InUse { .. }) => {
            give_up_on_dead(places, found);
            return Err(error.into());
        }
        // A node with a broken disk is still a node that can say so.
        Err(error) => {
            let why = sys::error::chain(&error);
            let mut pools = storage::pools::in_memory(&why, places)?;
            pools.first.problems.push(why);
            pools
        }
    };
    match known::read() {
        Some(known) if !pools.first.durable => known.wait_on(pools, places),
        Some(_) | None => Ok(pools),
    }
}

/// The node had pools in this boot, and none of their disks is there. Else what hides them is taken away.
fn waits(found: &[Found], owner: Option<&PublicKey>, places: Places<'_>) -> Option<Known> {
    let known = known::read()?;
    let disks: Vec<_> = found.iter().map(|(disk, _)| disk.clone()).collect();
    if !storage::pools::there(&disks, places).is_empty() {
        return None;
    }
    let is_back = |(disk, content): &Found| owner.is_some_and(|o| known.awaits(disk, content, o));
    if !found.iter().any(is_back) {
        return Some(known);
    }
    storage::pools::let_go(places.first);
    None
}

/// A pool that cannot be checked for as long as it is mounted is none: the agent that comes next does without it.
fn give_up_on_dead(places: Places<'_>, found: &[Found]) {
    let disks: Vec<_> = found.iter().map(|(disk, _)| disk.clone()).collect();
    for (disk, mountpoint) in storage::pools::there(&disks, places) {
        if vigil::flush(&mountpoint).is_err() {
            given_up::add(Mark::of(disk), Ill::Fails);
            given_up::let_go(&mountpoint);
        }
    }
}

fn storage_of(pool: &Pool) -> Storage {
    match pool.durable {
        true => Storage::Disk,
        false => Storage::Memory,
    }
}

fn kvm() -> Done<Option<String>> {
    let problem = machine::kvm_problem();
    let said = problem.clone().unwrap_or_else(|| "available".to_owned());
    Ok((problem, Some(said)))
}

fn capacity_of(pool: &Pool, sites: &[Site]) -> (Storage, Capacity) {
    let storage = storage_of(pool);
    let sizes = sites.iter().map(|site| machine::size_of(&site.mountpoint));
    let first = sizes.clone().next().unwrap_or_default();
    let disk = sizes.map(|size| tenant_disk(size).0).sum();
    let capacity = tenant_capacity(machine::cpus(), machine::memory(), storage, first);
    let capacity = Capacity {
        disk: types::Bytes(disk),
        ..capacity
    };
    (storage, capacity)
}

fn identity(
    (pools, found): (&Pools, &[Found]),
    problems: &mut Vec<String>,
) -> Done<([u8; 32], PublicKey)> {
    let (seed, key, said) = pools::identity(pools)?;
    known::keep(pools, found, &seed);
    problems.extend(said);
    Ok(((seed, key), Some(key.to_string())))
}

/// What the site names and the machine has not, as it is published.
fn problems_of_links(info: &watch::Sender<NodeInfo>) -> impl Fn(&[String]) + use<> {
    let info = info.clone();
    move |problems| match problems {
        [] => troubles::over(&info, Code::PortMissing),
        problems => troubles::say(&info, Code::PortMissing, problems.join("; ")),
    }
}

/// What the kernel refuses of links, as it is published.
fn refused_links(info: &watch::Sender<NodeInfo>) -> impl Fn(&Option<String>) + use<> {
    let info = info.clone();
    move |refused| match refused {
        None => troubles::over(&info, Code::PhaseLinks),
        Some(why) => troubles::say(&info, Code::PhaseLinks, why),
    }
}

/// Why a node has no address yet.
fn none_yet(options: &Options, network: &Network, info: &watch::Sender<NodeInfo>) -> String {
    let troubles = &info.borrow().troubles;
    let missing = troubles
        .iter()
        .find(|trouble| trouble.code == Code::PortMissing);
    let error = options
        .errors
        .first()
        .filter(|_| network.site.links.is_some());
    match missing.map(|trouble| &trouble.message).or(error) {
        Some(why) => format!("none: {why}"),
        None => "none yet: no DHCP server has answered, asking on".to_owned(),
    }
}

/// Phases "links" and "address", and the loops that keep both and the time.
async fn network(
    boot: &mut Boot,
    options: &Options,
    floors: Vec<PathBuf>,
    start: clock::Start,
    info: &watch::Sender<NodeInfo>,
) -> anyhow::Result<(watch::Receiver<Uplink>, Desk)> {
    start.say(info);
    let (uplink_tx, uplink) = watch::channel(Uplink::default());
    let (servers_tx, servers) = watch::channel(Vec::new());
    let links = info.clone();
    let publish = uplink::Publish {
        uplink: uplink_tx,
        time_servers: servers_tx,
        problems: Box::new(problems_of_links(info)),
        refused: Box::new(refused_links(info)),
        links: Box::new(move |now| {
            links.send_if_modified(|i| {
                let new = i.links != now;
                i.links = now.clone();
                new
            });
        }),
    };
    let (links_tx, links_asked) = mpsc::channel(site::ASKED_MAX);
    let changes = Changes::open(
        floors.clone(),
        Path::new(site::KNOWN),
        options,
        info.clone(),
    );
    let network = changes.network().clone();
    let uplinks = boot.must_async("links", async {
        net::ground::prepare()?;
        let uplinks = uplink::Uplinks::start(publish, network.clone(), links_asked).await?;
        Ok((uplinks, None))
    });
    let uplinks = uplinks.await?;
    tokio::task::spawn_local(uplinks.run());
    let (desk, asked) = mpsc::channel(site::ASKED_MAX);
    tokio::task::spawn_local(changes.run(asked, links_tx));
    tokio::task::spawn_local(clock::keep(floors, start, servers, info.clone()));
    tokio::task::spawn_local(resolv::keep(uplink.clone()));
    let mut first = uplink.clone();
    boot.must_async("address", async {
        let address = first.wait_for(|u| !u.addresses.is_empty());
        let text = match tokio::time::timeout(ADDRESS_WAIT, address).await {
            Ok(Ok(now)) => dashboard::address(&now),
            Ok(Err(_)) => return Err(anyhow!("the network loop has ended")),
            Err(_) => none_yet(options, &network, info),
        };
        Ok(((), Some(text)))
    })
    .await?;
    Ok((uplink, Desk::new(desk)))
}
