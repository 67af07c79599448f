//! The node's API: routes to answers.
//!
//! Owns: who may ask, what is answered from where, and room for pushed content.
//! Refuses: everybody but the owner, and everything on a node without one.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use api::{Answer, Begin, Body, Handler, Limits, Route, SecretKey, Verdict, Wait};
use flist::cache::{Cache, CacheError};
use net::network::Ula;
use nix::errno::Errno;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{RwLock, Semaphore, mpsc, oneshot, watch};
use types::deployment::API_PORT;
use types::node::{Drill, Drilled, NodeInfo};
use types::status::{DeploymentStatus, Refusal, RefusalCode, WorkloadStatus};
use types::{Bytes, Digest, Name, PublicKey, VmId};
use workload::desired::Key;

use super::capture::Captures;
use super::context::{NodeContext, Uplink};
use super::disks::Disks;
use super::drills::DrillReply;
use super::engine::{Refused, Request};
use super::logs;
use super::machine;
use super::machines::{Machines, Site};
use super::metrics;
use super::network;
use super::pools;
use super::site::Desk;
use super::sweep;
use crate::room::{Room, RoomError};
use crate::wire::Victim;

mod gates;
mod links;
mod membership;
mod networks;

/// Pushed chunks in memory at a time: each takes a MiB until it is on disk.
const PUSHES_MAX: usize = 8;
/// Batches of log lines on their way to a client; a client that does not read holds up its own only.
const LOG_BATCHES: usize = 4;

pub(crate) struct Server {
    owner: Option<PublicKey>,
    tls: Arc<tokio_rustls::rustls::ServerConfig>,
    info: watch::Sender<NodeInfo>,
    requests: mpsc::Sender<Request>,
    cache: Cache,
    machines: Machines,
    disks: Disks,
    desk: Desk,
    pool: std::path::PathBuf,
    pools: Vec<Site>,
    room: Room,
    changes: watch::Receiver<u64>,
    /// Why the disks are waited for, while none of them answers.
    silence: watch::Receiver<Option<String>>,
    pushes: Rc<Semaphore>,
    captures: Captures,
    uplink: watch::Receiver<Uplink>,
    ula: Ula,
    member: membership::Member,
    /// Shared by those who count on content being there, alone for who removes it: else a deployment could
    /// be acknowledged whose chunks are just going.
    content: Arc<RwLock<()>>,
}

pub(super) fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
    }
}

/// The loop has ended, and pid1 is about to start another.
pub(super) fn restarting() -> Refusal {
    refusal(
        RefusalCode::Restarting,
        "the node agent is restarting: try again",
    )
}

fn failed_task(error: tokio::task::JoinError) -> Refusal {
    refusal(
        RefusalCode::Internal,
        format!("a task of the node failed: {error}"),
    )
}

async fn ask<T>(
    engine: &mpsc::Sender<Request>,
    request: impl FnOnce(oneshot::Sender<T>) -> Request,
) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    engine
        .send(request(reply))
        .await
        .map_err(|_| restarting())?;
    answer.await.map_err(|_| restarting())
}

impl Server {
    pub(crate) fn new(
        context: &NodeContext,
        requests: mpsc::Sender<Request>,
        cache: Cache,
        machines: Machines,
        (changes, silence): (watch::Receiver<u64>, watch::Receiver<Option<String>>),
    ) -> anyhow::Result<Self> {
        let key = SecretKey::from_seed(context.seed);
        Ok(Self {
            owner: context.owner,
            tls: api::tls::server_config(&key).context("make the node's certificate")?,
            info: context.info.clone(),
            requests,
            cache,
            machines,
            disks: Disks::new(context)?,
            desk: context.desk.clone(),
            pool: context.pool.clone(),
            pools: context.pools.clone(),
            room: context.room.clone(),
            changes,
            silence,
            pushes: Rc::new(Semaphore::new(PUSHES_MAX)),
            captures: Captures::default(),
            uplink: context.uplink.clone(),
            ula: network::ula(&context.key),
            member: membership::Member::of(context),
            content: Arc::default(),
        })
    }

    pub(crate) async fn bind(&self) -> anyhow::Result<TcpListener> {
        // Both families come to the socket of IPv6 (`net::ground`), which a kernel may lack.
        let bound = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, API_PORT)).await {
            Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, API_PORT)).await
            }
            bound => bound,
        };
        bound.with_context(|| format!("listen on TCP port {API_PORT}"))
    }

    /// Serves for ever.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let tls = self.tls.clone();
        api::server::serve(listener, tls, &self, Limits::NODE).await;
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Refusal> {
        ask(&self.requests, request).await
    }

    async fn answer(&self, peer: PublicKey, route: Route, body: Body) -> Result<Answer, Refusal> {
        self.keeps_what_it_takes(&route)?;
        self.needs_a_disk(&route)?;
        self.needs_the_ledger(&route)?;
        let own = |name| Key { signer: peer, name };
        match route {
            Route::Node => Ok(Answer::json(&self.node_info())),
            Route::Dmesg => sys::klog::read()
                .map(Answer::text)
                .map_err(|e| refusal(RefusalCode::Internal, sys::error::chain(&e))),
            Route::Links => Ok(Answer::json(&links::links().await?)),
            Route::Routes => Ok(Answer::json(&links::routes().await?)),
            Route::Disks => Ok(Answer::json(&self.disks.list().await?)),
            Route::ClaimDisks => self.claim_disks(body).await,
            Route::UnlockDisk => self.unlock_disk(body).await,
            Route::Decommission => self.decommission(body).await,
            Route::SetNetwork => self.desk.set(body).await,
            Route::ConfirmNetwork => self.desk.confirm(body).await,
            Route::RevertNetwork => self.desk.revert(body).await,
            Route::Drill => self.drill(peer, body).await,
            Route::NodeMetrics => self.node_metrics(peer).await,
            Route::Metrics(name) => self.deployment_metrics(peer, name).await,
            Route::PutFlist(digest) => self.put_flist(digest, body).await,
            Route::Trace(digest) => self.trace(digest).await,
            Route::PutChunk(digest) => self.put_chunk(digest, body).await,
            Route::PostStatement => {
                let envelope = body.collect().await?;
                self.statement(envelope).await
            }
            Route::Deployments => {
                let list = self
                    .ask(|reply| Request::List {
                        signer: peer,
                        reply,
                    })
                    .await?;
                Ok(Answer::json(&list))
            }
            Route::Deployment { name, wait } => {
                let key = own(name);
                let status = match wait {
                    None => self.status(&key).await?,
                    Some(wait) => self.wait(&key, wait).await?,
                };
                Ok(Answer::json(&status))
            }
            Route::Logs {
                deployment,
                workload,
                follow,
                begin,
            } => self.logs(own(deployment), workload, follow, begin).await,
            Route::Capture {
                deployment,
                workload,
                frames,
            } => self.capture(&own(deployment), &workload, frames).await,
            Route::NetworkTrace {
                deployment,
                workload,
                question,
            } => {
                self.network_trace(&own(deployment), &workload, &question)
                    .await
            }
            Route::Membership(name, network) => self.membership(peer, name, network).await,
        }
    }

    /// All machines are the owner's to see; a tenant sees its own, and nothing of the node.
    async fn node_metrics(&self, peer: PublicKey) -> Result<Answer, Refusal> {
        let is_owner = self.owner == Some(peer);
        let signer = (!is_owner).then_some(peer);
        let figures = self.figures(signer, None).await?;
        // Asked before the lock on what the node says of itself is taken: the loop that answers takes it too.
        let chunks = self.ask(|reply| Request::Counts { reply }).await?;
        let node = metrics::Node {
            uptime: sys::clock::since_boot(),
            memory: machine::memory(),
            memory_available: machine::memory_available(),
            pool: machine::size_of(&self.pool),
            pool_available: machine::available_in(&self.pool),
            capacity: self.info.borrow().capacity,
            chunks,
        };
        let node = is_owner.then_some(&node);
        let signer = peer;
        let own = self.ask(|reply| Request::List { signer, reply }).await?;
        let mut text = metrics::render(node, &figures);
        if is_owner {
            let info = self.node_info();
            text.push_str(&metrics::disks::render(&info.pools));
            text.push_str(&metrics::health::render(&info.health));
            text.push_str(&metrics::troubles::render(&info.troubles));
            // A kernel that does not tell now does at the next question.
            text.push_str(&metrics::links::render(
                &links::links().await.unwrap_or_default(),
            ));
        }
        text.push_str(&metrics::volumes::render(&own));
        text.push_str(&metrics::peers::render(&own));
        text.push_str(&metrics::sites::render(&own));
        text.push_str(&refusals(&own).await);
        Ok(Answer::metrics(text))
    }

    async fn deployment_metrics(&self, peer: PublicKey, name: Name) -> Result<Answer, Refusal> {
        let key = Key { signer: peer, name };
        // Says so where there is none.
        let status = self.status(&key).await?;
        let figures = self.figures(Some(peer), Some(key.name)).await?;
        let mut text = metrics::render(None, &figures);
        let own = [status];
        text.push_str(&metrics::volumes::render(&own));
        text.push_str(&metrics::peers::render(&own));
        text.push_str(&metrics::sites::render(&own));
        text.push_str(&refusals(&own).await);
        Ok(Answer::metrics(text))
    }

    async fn figures(
        &self,
        signer: Option<PublicKey>,
        deployment: Option<Name>,
    ) -> Result<Vec<metrics::Figures>, Refusal> {
        let asked = self
            .ask(|reply| Request::Metrics {
                signer,
                deployment,
                reply,
            })
            .await?;
        Ok(metrics::collect(asked).await)
    }

    fn node_info(&self) -> NodeInfo {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut info = self.info.borrow().clone();
        info.uptime_ms = ms(sys::clock::since_boot());
        info.clock.realtime_ms = ms(sys::clock::realtime());
        pools::refresh(&mut info.pools, &self.pools);
        info
    }

    async fn status(&self, key: &Key) -> Result<DeploymentStatus, Refusal> {
        let status = self
            .ask(|reply| Request::Status {
                key: key.clone(),
                reply,
            })
            .await?;
        status.ok_or_else(|| {
            let name = &key.name;
            refusal(
                RefusalCode::NotFound,
                format!("there is no deployment {name}: `sifr get` lists what is deployed"),
            )
        })
    }

    /// Answers when it is so, when it cannot come to be so, or when time is up.
    async fn wait(&self, key: &Key, wait: Wait) -> Result<DeploymentStatus, Refusal> {
        let end = tokio::time::Instant::now() + wait.timeout;
        let mut changes = self.changes.clone();
        loop {
            changes.mark_unchanged();
            let status = self.status(key).await?;
            // The clock is asked as well: changes may come faster than they can be waited for.
            let late = tokio::time::Instant::now() >= end;
            if late || wait.until.judge(&status) != Verdict::NotYet {
                return Ok(status);
            }
            match tokio::time::timeout_at(end, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(restarting()),
                Err(_) => return Ok(status),
            }
        }
    }

    async fn claim_disks(&self, body: Body) -> Result<Answer, Refusal> {
        let claimed = self.disks.claim(body.collect().await?).await?;
        let answer = Answer::json(&claimed);
        Ok(match claimed.reboots {
            true => self.say_after(answer, |_| Request::Reboot),
            false => answer,
        })
    }

    async fn unlock_disk(&self, body: Body) -> Result<Answer, Refusal> {
        let body = zeroize::Zeroizing::new(body.collect().await?);
        let unlock = serde_json::from_slice(&body).map_err(|error| {
            // Not what was said: it has a passphrase in it.
            let message = format!("no serial and passphrase: {:?}", error.classify());
            refusal(RefusalCode::Malformed, message)
        })?;
        let answer = Answer::json(&self.disks.unlock(unlock).await?);
        Ok(self.say_after(answer, |_| Request::Reboot))
    }

    async fn decommission(&self, body: Body) -> Result<Answer, Refusal> {
        let receipt = self.disks.decommission(body.collect().await?).await?;
        Ok(self.say_after(Answer::json(&receipt), |_| Request::PowerOff))
    }

    /// Ends a process as a crash would, to show what that does.
    async fn drill(&self, peer: PublicKey, body: Body) -> Result<Answer, Refusal> {
        let drill: Drill = serde_json::from_slice(&body.collect().await?).map_err(|error| {
            let message = format!(
                "{error}: a drill kills node, chunks, ingress, or machine with its deployment and workload"
            );
            refusal(RefusalCode::Malformed, message)
        })?;
        let (victim, absent) = match drill {
            Drill::Node {} => return Ok(self.drill_this()),
            Drill::Chunks {} => (
                Victim::Chunks,
                "the chunk daemon is just being started: try again".to_owned(),
            ),
            Drill::Ingress {} => (
                Victim::Ingress,
                "no ingress process runs: it is started with the first name that a deployment has"
                    .to_owned(),
            ),
            Drill::Machine {
                deployment,
                workload,
            } => {
                let absent = format!(
                    "{deployment}/{workload} has no VMM just now: `sifr get {deployment}` says why"
                );
                let vm = self.machine(peer, deployment, &workload).await?;
                (Victim::Machine { vm }, absent)
            }
        };
        let killed = self.ask(|reply| Request::Drill { victim, reply }).await?;
        let pid = killed.and_then(|pid| u32::try_from(pid).ok());
        let pid = pid.ok_or_else(|| refusal(RefusalCode::Conflict, absent))?;
        Ok(Answer::json(&Drilled { pid }))
    }

    /// This process.
    fn drill_this(&self) -> Answer {
        let pid = std::process::id();
        self.say_after(Answer::json(&Drilled { pid }), |reply| Request::Drill {
            victim: Victim::Node,
            reply,
        })
    }

    /// Asks what ends this process or the boot, once who asked has the answer.
    fn say_after(
        &self,
        answer: Answer,
        request: impl FnOnce(DrillReply) -> Request + 'static,
    ) -> Answer {
        let (answer, over) = answer.last();
        let requests = self.requests.clone();
        tokio::task::spawn_local(async move {
            // It ends with the connection; nothing is ever sent.
            let _ = over.await;
            let (reply, _) = oneshot::channel();
            // Fails only when the loop has ended, and this process with it.
            let _ = requests.send(request(reply)).await;
        });
        answer
    }

    /// The VM of a workload that a deployment has.
    async fn machine(
        &self,
        signer: PublicKey,
        deployment: Name,
        workload: &Name,
    ) -> Result<VmId, Refusal> {
        let key = Key {
            signer,
            name: deployment,
        };
        self.workload(&key, workload).await?;
        Ok(VmId::new(&key.signer, &key.name, workload))
    }

    async fn workload(&self, key: &Key, workload: &Name) -> Result<WorkloadStatus, Refusal> {
        let mut status = self.status(key).await?;
        status.workloads.remove(workload).ok_or_else(|| {
            let message = format!(
                "{} has no workload {workload}: `sifr get` lists them",
                key.name
            );
            refusal(RefusalCode::NotFound, message)
        })
    }

    /// Where content that nobody deployed is in the way, it goes, and the statement is judged once more.
    async fn statement(&self, envelope: Vec<u8>) -> Result<Answer, Refusal> {
        let judge = async |envelope| {
            let _kept = self.content.read().await;
            self.ask(|reply| Request::Statement { envelope, reply })
                .await
        };
        let judged = match judge(envelope.clone()).await? {
            Err(Refused::NoRoom(refusal)) => match self.sweep(u64::MAX).await? {
                0 => return Err(refusal),
                _ => judge(envelope).await?,
            },
            other => other,
        };
        match judged {
            Ok(ack) => Ok(Answer::json(&ack)),
            Err(Refused::Final(refusal) | Refused::NoRoom(refusal)) => Err(refusal),
            Err(Refused::Unknown(refusal)) => {
                Ok(self.say_after(Answer::refuse(&refusal), |_| Request::End))
            }
        }
    }

    async fn put_flist(&self, digest: Digest, mut body: Body) -> Result<Answer, Refusal> {
        // What a deployment has lost comes back whatever the room: until then nothing can be swept.
        let needed = self.ask(|reply| Request::Images { reply }).await?;
        let returns = needed.contains_key(&digest);
        if !returns {
            self.make_room(api::route::FLIST_MAX).await?;
        }
        let mut upload = self.cache.receive_flist(digest).map_err(cache_refusal)?;
        while let Some(bytes) = body.next().await? {
            upload.push(&bytes).map_err(cache_refusal)?;
        }
        let cache = self.cache.clone();
        let (missing, footprint) = {
            let _kept = self.content.read().await;
            let taken = tokio::task::spawn_blocking(move || {
                let flist = upload.finish_flist()?;
                Ok((cache.missing(&flist), cache.footprint(&flist)))
            });
            taken.await.map_err(failed_task)?.map_err(cache_refusal)?
        };
        // Better said now than when all of it has been pushed.
        let disk = match self.room.holds(&digest).map_err(unknown_room)? {
            true => 0,
            false => footprint.placed,
        };
        if !returns {
            self.make_room(footprint.missing.saturating_add(disk))
                .await?;
        }
        let missing: Vec<String> = missing.iter().map(Digest::hex).collect();
        Ok(Answer::json(&json!({ "missing": missing })))
    }

    async fn trace(&self, digest: Digest) -> Result<Answer, Refusal> {
        let cache = self.cache.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (flist, _) = cache.flist(&digest).ok()?;
            cache.trace(&digest, flist.chunks().len())
        });
        let trace = read.await.map_err(failed_task)?.ok_or_else(|| {
            let message = format!(
                "there is no trace of {digest}: a node takes one down when it runs the image for the first time, and has it \
                 when the start has been over for some seconds"
            );
            refusal(RefusalCode::NotFound, message)
        })?;
        Ok(Answer::bytes(trace.encode()))
    }

    async fn put_chunk(&self, digest: Digest, body: Body) -> Result<Answer, Refusal> {
        // Held until the chunk is on disk.
        let _turn = self.pushes.acquire().await.map_err(|_| restarting())?;
        self.make_room(api::route::CHUNK_MAX).await?;
        let bytes = body.collect().await?;
        let cache = self.cache.clone();
        let put = tokio::task::spawn_blocking(move || cache.put_chunk(digest, &bytes));
        put.await.map_err(failed_task)?.map_err(cache_refusal)?;
        Ok(Answer::json(&json!({})))
    }

    /// Pushes must not take the space that deployments are promised. What nothing names goes first.
    async fn make_room(&self, bytes: u64) -> Result<(), Refusal> {
        let left = self.room.left().map_err(unknown_room)?;
        if left >= bytes {
            return Ok(());
        }
        self.sweep(bytes - left).await?;
        let left = self.room.left().map_err(unknown_room)?;
        if left >= bytes {
            return Ok(());
        }
        Err(refusal(
            RefusalCode::OverCapacity,
            format!(
                "the image comes to take {} MiB of the node's pool, {} MiB are free and promised to nobody: delete deployments that are not needed",
                Bytes(bytes).as_mib() + 1,
                Bytes(left).as_mib()
            ),
        ))
    }

    /// Removes content that nothing names, what rested longest first, until so many bytes are free, if so many can be. Gives
    /// the bytes that became free.
    async fn sweep(&self, wanted: u64) -> Result<u64, Refusal> {
        let alone = Arc::clone(&self.content).write_owned().await;
        let mut keep = self.ask(|reply| Request::Images { reply }).await?;
        sweep::spare_recent(&self.pool.join("flists"), &mut keep);
        let cache = self.cache.clone();
        // Goes on when the client has gone, and is alone as long.
        let swept = tokio::task::spawn_blocking(move || {
            let _alone = alone;
            cache.sweep(&keep, wanted)
        });
        let freed = swept.await.map_err(failed_task)?.map_err(cache_refusal)?;
        log::info!("the pool was short of room: {freed} bytes of unused chunks have been removed");
        Ok(freed)
    }

    async fn logs(
        &self,
        key: Key,
        workload: Name,
        follow: bool,
        begin: Begin,
    ) -> Result<Answer, Refusal> {
        let vm = self
            .machine(key.signer, key.name.clone(), &workload)
            .await?;
        let paths = self.machines.log_paths(&vm);
        let follower = if follow {
            Some(Follower {
                key,
                workload,
                requests: self.requests.clone(),
                changes: self.changes.clone(),
                goes_on: None,
                watch: logs::Watch::new().map_err(unreadable)?,
            })
        } else {
            None
        };
        let (lines, received) = mpsc::channel(LOG_BATCHES);
        tokio::task::spawn_local(async move {
            // Either the client has gone, or all is said.
            tokio::select! {
                sent = send_log(&paths, begin, follower, &lines) => if let Err(error) = sent {
                    log::warn!("send a log: {}", error.message);
                    // A client that has gone misses nothing.
                    let _ = lines.send(Err(api::answer::BrokenOff)).await;
                },
                () = lines.closed() => {}
            }
        });
        Ok(Answer::json_lines(received))
    }
}

impl Handler for Server {
    fn authorise(&self, peer: &PublicKey, _route: &Route) -> Result<(), Refusal> {
        match self.owner {
            None => Err(refusal(
                RefusalCode::NoOwner,
                "this node has no owner key and accepts nothing: boot it with sifr.owner=<your key>, or an image built for you",
            )),
            Some(owner) if owner == *peer => Ok(()),
            Some(_) => Err(refusal(
                RefusalCode::UnknownKey,
                format!("{peer} is not known here: use the owner's key"),
            )),
        }
    }

    async fn handle(&self, peer: PublicKey, route: Route, body: Body) -> Answer {
        self.answer(peer, route, body).await.into()
    }
}

fn unknown_room(error: RoomError) -> Refusal {
    refusal(RefusalCode::Internal, sys::error::chain(&error))
}

fn cache_refusal(error: CacheError) -> Refusal {
    let code = match &error {
        _ if error.is_full() => RefusalCode::OverCapacity,
        CacheError::Hash { .. } | CacheError::Format(_) | CacheError::Contradiction(..) => {
            RefusalCode::Malformed
        }
        CacheError::Large { .. } => RefusalCode::TooLarge,
        CacheError::Absent(_) | CacheError::Damaged { .. } => RefusalCode::NotFound,
        // Of all that could be said, what the owner can do something about.
        CacheError::Unknown(_) => RefusalCode::OverCapacity,
        CacheError::Io { .. } | CacheError::Image(_) => RefusalCode::Internal,
    };
    let mut message = sys::error::chain(&error);
    if error.is_full() {
        message += ": the pool is full, delete deployments that are not needed";
    }
    refusal(code, message)
}

/// What a follower of a log listens to.
struct Follower {
    key: Key,
    workload: Name,
    requests: mpsc::Sender<Request>,
    changes: watch::Receiver<u64>,
    /// What the engine said after the last change; `None`: it has not been asked since.
    goes_on: Option<bool>,
    watch: logs::Watch,
}

impl Follower {
    /// Whether more may be written than is there now.
    async fn goes_on(&mut self) -> Result<bool, Refusal> {
        if self.changes.has_changed().map_err(|_| restarting())? {
            self.changes.mark_unchanged();
            self.goes_on = None;
        }
        if let Some(goes_on) = self.goes_on {
            return Ok(goes_on);
        }
        let key = self.key.clone();
        let status = ask(&self.requests, |reply| Request::Status { key, reply }).await?;
        let goes_on = status.is_some_and(|status| api::logs::goes_on(&status, &self.workload));
        self.goes_on = Some(goes_on);
        Ok(goes_on)
    }

    /// Waits until there is something to read, or something has changed.
    async fn news(&mut self) -> Result<(), Refusal> {
        // Both are safe to drop: what was not heard stays where it is.
        tokio::select! {
            written = self.watch.changed() => written.map_err(unreadable),
            changed = self.changes.changed() => {
                self.goes_on = None;
                changed.map_err(|_| restarting())
            }
        }
    }
}

fn unreadable(error: std::io::Error) -> Refusal {
    let message = format!("the log cannot be read: {error}");
    refusal(RefusalCode::Internal, message)
}

type Lines = mpsc::Sender<Result<hyper::body::Bytes, api::answer::BrokenOff>>;

/// Sends what is there, and to a follower what is written until nothing more can come.
async fn send_log(
    paths: &[std::path::PathBuf; 2],
    begin: Begin,
    mut follower: Option<Follower>,
    lines: &Lines,
) -> Result<(), Refusal> {
    let mut reader: Option<logs::Reader> = None;
    loop {
        // Asked before reading: an end is shown only after the last words have been written.
        let goes_on = match &mut follower {
            Some(follower) => follower.goes_on().await?,
            None => false,
        };
        if reader.is_none() {
            reader = logs::Reader::open(paths, begin).map_err(unreadable)?;
            if let (Some(_), Some(follower)) = (&reader, &follower) {
                follower.watch.add(paths).map_err(unreadable)?;
            }
        }
        let mut removed = false;
        if let Some(reader) = &mut reader {
            removed = reader.is_removed().map_err(unreadable)?;
            loop {
                let batch = reader.batch().map_err(unreadable)?;
                if batch.is_empty() {
                    break;
                }
                let text: Vec<u8> = batch.iter().flat_map(api::LogLine::to_json_line).collect();
                if lines.send(Ok(text.into())).await.is_err() {
                    return Ok(());
                }
            }
        }
        match &mut follower {
            Some(follower) if goes_on && !removed => follower.news().await?,
            Some(_) | None => return Ok(()),
        }
    }
}

/// What their machines were refused. The kernel is asked on a thread of the runtime's pool: there may be many networks.
async fn refusals(all: &[DeploymentStatus]) -> String {
    let addresses = metrics::refusals::addresses(all);
    let asked = tokio::task::spawn_blocking(move || network::attempts(&addresses));
    metrics::refusals::render(all, &asked.await.unwrap_or_default())
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
