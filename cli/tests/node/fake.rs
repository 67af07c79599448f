//! The node on loopback: it keeps what it is told in memory, and answers as a node does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::client::Missing;
use api::{Answer, Begin, Body, Envelope, Handler, Limits, LogLine, Route, SecretKey, Verdict};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flist::format::Flist;
use tokio::sync::{Notify, mpsc};
use types::claim::Claimed;
use types::deployment::{Action, Deployment};
use types::health::{self, DiskHealth, Figures, Health, Source};
use types::links::{LinkKind, LinkState, LinkStatus, RouteStatus, Traffic};
use types::node::{
    Capacity, Clock, Disk, DiskClass, DiskUse, Drill, Drilled, Encryption, NodeDisks, NodeInfo,
};
use types::retire::{Destroyed, Method, Receipt, Remaining, Unlock, Unlocked};
use types::site::{Confirm, Confirmed, NodeNetwork, OptionPlace, SiteChange, Stated, Trial};
use types::status::{
    Ack, DeploymentStatus, Desired, Exit, Refusal, RefusalCode, State, WorkloadStatus,
};
use types::trace::{self, Place, Step, Trace};
use types::vm::Stream;
use types::{Bytes, Digest, Name, PublicKey};
use vault::recovery::PURPOSE;
use vault::sealed::{Recipient, seal};

pub(super) fn refusal(code: RefusalCode, message: &str) -> Refusal {
    Refusal {
        code,
        message: message.to_owned(),
    }
}

/// What the node has been told.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) deployments: BTreeMap<Name, (u64, Desired, Deployment)>,
    pub(super) flists: BTreeMap<Digest, Flist>,
    pub(super) chunks: BTreeSet<Digest>,
    pub(super) network: Option<SiteChange>,
    pub(super) tried: Option<SiteChange>,
    pub(super) taken_back: Option<String>,
    pub(super) early: bool,
    /// A wish to decommission counts once.
    pub(super) retired: bool,
    /// State that machines are reported in while they should run.
    pub(super) machine: Option<State>,
    /// Every statement is refused as if another client had been faster.
    pub(super) overtaken: bool,
    /// The agent dies of the next wait or log, and another one takes its place.
    pub(super) dies: bool,
}

/// Between two agents: a client that asks again at once finds nobody.
pub(super) const ABSENCE: Duration = Duration::from_millis(600);

pub(super) struct Node {
    pub(super) key: SecretKey,
    pub(super) owner: PublicKey,
    pub(super) durable: bool,
    pub(super) state: Mutex<Memory>,
    pub(super) agent_pid: AtomicU32,
    pub(super) dies: Arc<Notify>,
}

impl Node {
    /// One agent after the other, as they die.
    pub(super) async fn live(&self, told: &std::sync::mpsc::Sender<SocketAddr>) {
        let mut address: SocketAddr = ([127, 0, 0, 1], 0).into();
        loop {
            let bound = tokio::net::TcpListener::bind(address).await;
            let listener = bound.expect("a port");
            address = listener.local_addr().expect("an address");
            // Only the first is waited for.
            let _ = told.send(address);
            let tls = api::tls::server_config(&self.key).expect("a configuration");
            tokio::select! {
                () = api::server::serve(listener, tls, self, Limits::NODE) => {}
                () = self.dies.notified() => {}
            }
            self.agent_pid.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(ABSENCE).await;
        }
    }

    fn status(state: &Memory, name: &Name) -> Result<DeploymentStatus, Refusal> {
        let (version, desired, deployment) = state.deployments.get(name).ok_or_else(|| {
            refusal(
                RefusalCode::NotFound,
                &format!("there is no deployment {name}"),
            )
        })?;
        let now = match desired {
            Desired::Running => state.machine.unwrap_or(State::Running),
            Desired::Stopped => State::Stopped,
            Desired::Deleted => State::Stopping,
        };
        let machines = deployment
            .machines()
            .filter(|_| *desired != Desired::Deleted);
        let workloads = machines.map(|(name, machine)| {
            let exited = now == State::Exited;
            let status = WorkloadStatus {
                state: now,
                address: Some([10, 0, 0, 2].into()),
                addresses: Vec::new(),
                ports: machine.ports.clone(),
                restarts: 0,
                exit: exited.then_some(Exit {
                    code: 3,
                    signal: None,
                    oom: false,
                }),
                message: exited.then(|| "the program ended\x1b[2J".to_owned()),
                start_ms: Some(12),
                chunks: None,
                code: None,
                timeline: Some(types::status::Timeline {
                    image_ms: Some(3),
                    program_ms: Some(12),
                    ..Default::default()
                }),
            };
            (name.clone(), status)
        });
        Ok(DeploymentStatus {
            name: name.clone(),
            version: *version,
            desired: *desired,
            durable: true,
            workloads: workloads.collect(),
            volumes: Default::default(),
            networks: Default::default(),
            pools: Default::default(),
            ingress: Default::default(),
            conditions: Vec::new(),
        })
    }

    fn accept(&self, envelope: &[u8]) -> Result<Answer, Refusal> {
        let signed = Envelope::parse(envelope)?.open_statement(|key| *key == self.owner)?;
        let statement = signed.statement;
        if statement.node != self.key.public() {
            return Err(refusal(RefusalCode::WrongNode, "this is for another node"));
        }
        let mut state = self.state.lock().expect("no test panics inside");
        let known = state
            .deployments
            .get(&statement.name)
            .map_or(0, |(version, ..)| *version);
        if statement.version != known + 1 || state.overtaken {
            let next = format!(
                "version {} is used: the next one is {}",
                statement.version,
                known + 2
            );
            return Err(refusal(RefusalCode::Replayed, &next));
        }
        let previous = state
            .deployments
            .get(&statement.name)
            .map(|(_, _, deployment)| deployment.clone());
        let previous = previous.unwrap_or(Deployment {
            accept_volatile: true,
            workloads: [].into(),
            ingress: Default::default(),
            remove: [].into(),
            destroy: [].into(),
        });
        let (desired, deployment) = match statement.action {
            Action::Deploy(deployment) => (Desired::Running, deployment),
            Action::Stop => (Desired::Stopped, previous),
            Action::Start | Action::Restart => (Desired::Running, previous),
            Action::Delete | Action::Destroy { .. } => (Desired::Deleted, previous),
            Action::Snapshot { .. } | Action::DropSnapshot { .. } | Action::Restore { .. } => {
                (Desired::Running, previous)
            }
        };
        if !self.durable && !deployment.accept_volatile {
            return Err(refusal(RefusalCode::Volatile, "this node runs from RAM"));
        }
        for (_, machine) in deployment.machines() {
            let flist = state.flists.get(&machine.image.flist);
            let flist =
                flist.ok_or_else(|| refusal(RefusalCode::NotFound, "there is no such flist"))?;
            if !flist
                .chunks()
                .iter()
                .all(|chunk| state.chunks.contains(&chunk.stored))
            {
                return Err(refusal(RefusalCode::MissingChunks, "chunks are missing"));
            }
        }
        state.deployments.insert(
            statement.name.clone(),
            (statement.version, desired, deployment),
        );
        let durable = self.durable;
        Ok(Answer::json(&Ack {
            name: statement.name,
            version: statement.version,
            digest: Digest([7; 32]),
            durable,
        }))
    }

    fn info(&self) -> NodeInfo {
        NodeInfo {
            key: self.key.public(),
            owner: Some(self.owner),
            build: "sifr test".to_owned(),
            uptime_ms: 61_000,
            agent_pid: self.agent_pid.load(Ordering::Relaxed),
            durable: self.durable,
            volatile_because: None,
            virtualisation_problem: None,
            encryption_problem: None,
            clock: Clock {
                realtime_ms: 0,
                synchronised: true,
            },
            capacity: Capacity {
                cpus: 4,
                memory: Bytes::gib(8),
                disk: Bytes::gib(100),
                ..Capacity::default()
            },
            links: vec![],
            network: self.network(),
            disks: vec![],
            pools: Vec::new(),
            boot: vec![],
            last_error: None,
            last_end: None,
            troubles: Vec::new(),
            workloads: BTreeMap::new(),
            tpm: None,
            health: self.health(),
        }
    }

    fn network(&self) -> NodeNetwork {
        let state = self.state.lock().expect("no test panics inside");
        let from = OptionPlace::Owner;
        let stated = |option: &String| Stated {
            option: option.clone(),
            from,
        };
        let options = state.network.iter().flat_map(|n| &n.options);
        NodeNetwork {
            version: state.network.as_ref().map_or(0, |n| n.version),
            options: options.map(stated).collect(),
            trial: state.tried.as_ref().map(|tried| Trial {
                version: tried.version,
                confirm_s: tried.confirm_s,
                until_uptime_ms: None,
            }),
            note: state.taken_back.clone(),
        }
    }

    /// A change is in use at the second question: the first one comes too early.
    async fn change_network(&self, route: Route, body: Body) -> Result<Answer, Refusal> {
        let body = body.collect().await?;
        let mut state = self.state.lock().expect("no test panics inside");
        if route == Route::SetNetwork {
            let change = Envelope::parse(&body)?.open_site(|key| *key == self.owner)?;
            if change.options.iter().any(|o| o.contains("adress")) {
                return Err(refusal(RefusalCode::Malformed, "there is no such key"));
            }
            let trial = Trial {
                version: change.version,
                confirm_s: change.confirm_s,
                until_uptime_ms: None,
            };
            if change.options.iter().any(|o| o.contains("lost")) {
                state.taken_back = Some("version 2 was not confirmed within 5 s".to_owned());
            } else {
                state.tried = Some(change);
            }
            state.early = true;
            return Ok(Answer::json(&trial));
        }
        let Confirm { version } = serde_json::from_slice(&body).expect("JSON");
        if std::mem::take(&mut state.early) {
            return Err(refusal(RefusalCode::Conflict, "connect anew"));
        }
        let tried = state.tried.take();
        let tried = tried.ok_or_else(|| refusal(RefusalCode::Conflict, "none is tried"))?;
        if route == Route::RevertNetwork {
            return Ok(Answer::json(&Confirm { version }));
        }
        state.network = Some(tried);
        let durable = self.durable;
        Ok(Answer::json(&Confirmed { version, durable }))
    }

    /// The first fails, the second says nothing.
    fn health(&self) -> Vec<DiskHealth> {
        let disk = |name: &str, verdict, source, why: &str, figures| DiskHealth {
            disk: name.to_owned(),
            serial: format!("S-{name}"),
            model: "Flash 9000".to_owned(),
            health: Health {
                verdict,
                hot: false,
                source,
                reasons: vec![why.to_owned()],
                figures,
            },
            uptime_ms: 5,
        };
        let figures = Figures {
            temperature_celsius: Some(41),
            spare_percent: Some(3),
            ..Figures::default()
        };
        let none = Figures::default();
        vec![
            disk(
                "vda",
                health::Verdict::Failing,
                Some(Source::Nvme),
                "it runs\x1b[2J out",
                figures,
            ),
            disk(
                "vdb",
                health::Verdict::NotOffered,
                None,
                "it says nothing",
                none,
            ),
        ]
    }

    /// Two disks: its pool, and one of somebody.
    fn disks(&self) -> NodeDisks {
        let recovery = Recipient::of_ed25519(&self.owner.0).expect("a key");
        let sealed = seal(recovery, PURPOSE, b"open sesame").expect("sealed");
        let encrypted = Encryption::Encrypted {
            uuid: "0".to_owned(),
            recovery: Some(recovery.to_string()),
            sealed: Some(STANDARD.encode(sealed)),
        };
        let disk = |name: &str, used, content: &str, fingerprint| Disk {
            name: name.to_owned(),
            serial: format!("S-{name}"),
            model: "Flash 9000".to_owned(),
            class: DiskClass::Ssd,
            size: Bytes::gib(40),
            content: content.to_owned(),
            partitions: Vec::new(),
            used,
            because: Some("so it is".to_owned()).filter(|_| used != DiskUse::Pool),
            encryption: (used == DiskUse::Pool).then(|| encrypted.clone()),
            fingerprint,
        };
        NodeDisks {
            challenge: Digest([4; 32]),
            health: self.health(),
            disks: vec![
                disk("vda", DiskUse::Pool, "pool", None),
                disk(
                    "vdb",
                    DiskUse::LeftAlone,
                    "XFS file system",
                    Some(Digest([5; 32])),
                ),
            ],
        }
    }

    /// The receipt is signed by somebody else where the node is not durable.
    fn end(&self, envelope: &[u8]) -> Result<Answer, Refusal> {
        let wish = Envelope::parse(envelope)?.open_retirement(|key| *key == self.owner)?;
        assert_eq!(wish.challenge, self.disks().challenge);
        if std::mem::replace(&mut self.state.lock().expect("no panic").retired, true) {
            return Err(refusal(RefusalCode::Replayed, "sign another"));
        }
        let serial = wish.disks[0].clone();
        let destroyed = Destroyed {
            serial,
            model: "Flash 9000".to_owned(),
            size: Bytes::gib(40),
            method: Method::CryptoErase,
            uuid: None,
            overwritten: Bytes::mib(16),
            discarded: true,
        };
        let receipt = Receipt {
            node: wish.node,
            challenge: wish.challenge,
            time_ms: 1,
            synchronised: true,
            disks: vec![destroyed],
            remaining: vec![Remaining {
                serial: "S-away".to_owned(),
                why: "a disk of this node is not there".to_owned(),
            }],
        };
        let liar = SecretKey::from_seed([77; 32]);
        let signer = if self.durable { &self.key } else { &liar };
        Ok(Answer::json(&Envelope::seal_receipt(signer, &receipt)?))
    }

    fn claim(&self, envelope: &[u8]) -> Result<Claimed, Refusal> {
        let claim = Envelope::parse(envelope)?.open_claim(|key| *key == self.owner)?;
        let part = claim.of(&self.key.public()).expect("this node");
        assert_eq!(part.challenge, self.disks().challenge);
        let [disk] = part.disks.as_slice() else {
            panic!("one disk was shown: {part:?}");
        };
        assert_eq!(
            (disk.serial.as_str(), disk.content),
            ("S-vdb", Digest([5; 32]))
        );
        assert_eq!(disk.held, "XFS file system");
        Ok(Claimed {
            disks: vec![disk.serial.clone()],
            pool: None,
            reboots: part.reboot,
        })
    }

    async fn answer(&self, route: Route, body: Body) -> Result<Answer, Refusal> {
        let state = || self.state.lock().expect("no test panics inside");
        match route {
            Route::Node => Ok(Answer::json(&self.info())),
            Route::NodeMetrics => Ok(Answer::metrics("# HELP up Up.\n".to_owned())),
            Route::Metrics(name) => Self::status(&state(), &name)
                .map(|_| Answer::metrics("sifr_machine_up 1\n".to_owned())),
            Route::Membership(..) => Err(refusal(RefusalCode::NotFound, "no network")),
            Route::Links => Ok(Answer::json(&[link()])),
            Route::Routes => Ok(Answer::json(&[RouteStatus {
                destination: "0.0.0.0/0".parse().expect("a prefix"),
                gateway: Some("192.0.2.1".parse().expect("an address")),
                link: "eth0".to_owned(),
                metric: 1024,
                kernel: false,
            }])),
            Route::Disks => Ok(Answer::json(&self.disks())),
            Route::ClaimDisks => {
                let claimed = self.claim(&body.collect().await?)?;
                Ok(Answer::json(&claimed))
            }
            Route::UnlockDisk => {
                let unlock: Unlock = serde_json::from_slice(&body.collect().await?).expect("JSON");
                assert_eq!(unlock.passphrase, "open sesame");
                Ok(Answer::json(&Unlocked {
                    serial: unlock.serial,
                }))
            }
            Route::Decommission => self.end(&body.collect().await?),
            Route::SetNetwork | Route::ConfirmNetwork | Route::RevertNetwork => {
                self.change_network(route, body).await
            }
            Route::Dmesg => Ok(Answer::text("[0.0] Linux\x1b[2J\n")),
            Route::PutFlist(digest) => {
                let bytes = body.collect().await?;
                assert_eq!(
                    flist::format::digest_of(&mut bytes.as_slice()).expect("reads"),
                    digest
                );
                let flist = Flist::read(&mut Cursor::new(bytes)).expect("a good flist");
                let mut state = state();
                let missing: Vec<_> = flist.chunks().iter().map(|chunk| chunk.stored).collect();
                let missing = missing
                    .into_iter()
                    .filter(|name| !state.chunks.contains(name));
                let answer = Answer::json(&Missing::new(missing));
                state.flists.insert(digest, flist);
                Ok(answer)
            }
            Route::Trace(digest) if state().flists.contains_key(&digest) => {
                let mut recorder = flist::trace::Recorder::default();
                recorder.touch(1, std::time::Duration::ZERO);
                Ok(Answer::bytes(recorder.finish(digest).encode()))
            }
            Route::Trace(_) => Err(refusal(RefusalCode::NotFound, "there is no trace")),
            Route::PutChunk(digest) => {
                let bytes = body.collect().await?;
                let mut state = state();
                let chunk = state
                    .flists
                    .values()
                    .flat_map(Flist::chunks)
                    .find(|chunk| chunk.stored == digest);
                chunk
                    .expect("a chunk of some flist")
                    .open(&bytes)
                    .expect("a good chunk");
                state.chunks.insert(digest);
                Ok(Answer::json(&serde_json::json!({})))
            }
            Route::PostStatement => self.accept(&body.collect().await?),
            Route::Deployments => {
                let state = state();
                let all: Result<Vec<_>, _> = state
                    .deployments
                    .keys()
                    .map(|name| Self::status(&state, name))
                    .collect();
                Ok(Answer::json(&all?))
            }
            Route::Deployment { name, wait } => {
                if std::mem::take(&mut state().dies) {
                    self.dies.notify_one();
                    std::future::pending::<()>().await;
                }
                let status = Self::status(&state(), &name)?;
                if let Some(wait) = wait
                    && wait.until.judge(&status) == Verdict::NotYet
                {
                    tokio::time::sleep(wait.timeout).await;
                }
                Ok(Answer::json(&status))
            }
            Route::Drill => {
                let drill: Drill = serde_json::from_slice(&body.collect().await?).expect("a drill");
                let Drill::Node {} = drill else {
                    return Ok(Answer::json(&Drilled { pid: 99 }));
                };
                let pid = self.agent_pid.load(Ordering::Relaxed);
                let (answer, over) = Answer::json(&Drilled { pid }).last();
                let dies = Arc::clone(&self.dies);
                tokio::spawn(async move {
                    let _ = over.await;
                    dies.notify_one();
                });
                Ok(answer)
            }
            Route::Logs { begin, .. } => {
                let (sender, lines) = mpsc::channel(8);
                let mut seqs = match begin {
                    Begin::Oldest => 0..2,
                    Begin::Tail(tail) => 0..tail,
                    Begin::After { seq, .. } => seq.saturating_add(1)..2,
                };
                let dies = std::mem::take(&mut state().dies).then(|| Arc::clone(&self.dies));
                if dies.is_some() {
                    seqs.end = 1;
                }
                tokio::spawn(async move {
                    for seq in seqs {
                        let (stream, text) = match seq % 2 {
                            0 => (Stream::Stdout, "to out\n"),
                            _ => (Stream::Stderr, "to err\n"),
                        };
                        let line = LogLine {
                            seq,
                            time_ms: 1,
                            stream,
                            data: text.into(),
                        };
                        if sender.send(Ok(line.to_json_line().into())).await.is_err() {
                            return;
                        }
                    }
                    if let Some(dies) = dies {
                        dies.notify_one();
                        sender.closed().await;
                    }
                });
                Ok(Answer::json_lines(lines))
            }
            Route::NetworkTrace { question, .. } => Ok(Answer::json(&Trace {
                steps: vec![Step {
                    place: Place::Card,
                    verdict: "accept".to_owned(),
                    chains: vec!["prerouting".to_owned(), "from-tap2".to_owned()],
                    rule: "ether type ip accept".to_owned(),
                    counter: None,
                }],
                outcome: trace::Outcome::Delivered,
                message: format!("{:?} was asked, {:?}", question.way, question.port),
            })),
            Route::Capture { frames, .. } => {
                let (sender, pieces) = mpsc::channel(1);
                tokio::spawn(async move {
                    let piece = match &frames.network {
                        None => format!("frames of {} bytes", frames.snap),
                        Some(network) => format!("frames in {network}"),
                    };
                    let _ = sender.send(Ok(piece.into())).await;
                });
                Ok(Answer::pcapng(pieces))
            }
        }
    }
}

impl Handler for Node {
    fn authorise(&self, peer: &PublicKey, _route: &Route) -> Result<(), Refusal> {
        let known = *peer == self.owner;
        if known {
            Ok(())
        } else {
            Err(refusal(
                RefusalCode::UnknownKey,
                "your key is not known to this node",
            ))
        }
    }

    async fn handle(&self, _peer: PublicKey, route: Route, body: Body) -> Answer {
        self.answer(route, body).await.into()
    }
}

fn link() -> LinkStatus {
    LinkStatus {
        name: "eth0".to_owned(),
        kind: LinkKind::Ethernet,
        state: LinkState::NoCarrier,
        mac: None,
        mtu: 1500,
        speed_mbit: None,
        master: None,
        addresses: Vec::new(),
        taken: Vec::new(),
        received: Traffic::default(),
        sent: Traffic::default(),
    }
}
