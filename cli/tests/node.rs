//! The `sifr` binary against a node on loopback that keeps its promises in memory.
//!
//! Owns: what a person sees and what a script gets: output, exit status, and what arrives at the node.
//! Refuses: looking inside the program.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::io::Cursor;
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use api::client::Missing;
    use api::{Answer, Begin, Body, Envelope, Handler, Limits, LogLine, Route, SecretKey, Verdict};
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use flist::format::Flist;
    use serde_json::Value;
    use tempfile::TempDir;
    use tokio::sync::{Notify, mpsc};
    use types::claim::Claimed;
    use types::deployment::{Action, Deployment};
    use types::node::{
        Capacity, Clock, Disk, DiskClass, DiskUse, Drill, Drilled, Encryption, NodeDisks, NodeInfo,
    };
    use types::retire::{Destroyed, Method, Receipt, Unlock, Unlocked};
    use types::status::{
        Ack, DeploymentStatus, Desired, Exit, Refusal, RefusalCode, State, WorkloadStatus,
    };
    use types::vm::Stream;
    use types::{Bytes, Digest, Name, PublicKey};
    use vault::recovery::PURPOSE;
    use vault::sealed::{Recipient, seal};

    fn refusal(code: RefusalCode, message: &str) -> Refusal {
        Refusal {
            code,
            message: message.to_owned(),
        }
    }

    /// What the node has been told.
    #[derive(Default)]
    struct Memory {
        deployments: BTreeMap<Name, (u64, Desired, Deployment)>,
        flists: BTreeMap<Digest, Flist>,
        chunks: BTreeSet<Digest>,
        /// State that machines are reported in while they should run.
        machine: Option<State>,
        /// Every statement is refused as if another client had been faster.
        overtaken: bool,
        /// The agent dies of the next wait or log, and another one takes its place.
        dies: bool,
    }

    /// Between two agents: a client that asks again at once finds nobody.
    const ABSENCE: Duration = Duration::from_millis(600);

    struct Node {
        key: SecretKey,
        owner: PublicKey,
        durable: bool,
        state: Mutex<Memory>,
        agent_pid: AtomicU32,
        dies: Arc<Notify>,
    }

    impl Node {
        /// One agent after the other, as they die.
        async fn live(&self, told: &std::sync::mpsc::Sender<SocketAddr>) {
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
                let flist = flist
                    .ok_or_else(|| refusal(RefusalCode::NotFound, "there is no such flist"))?;
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
                disks: vec![],
                pools: Vec::new(),
                boot: vec![],
                last_error: None,
                last_end: None,
                troubles: Vec::new(),
                workloads: BTreeMap::new(),
                tpm: None,
            }
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
                Route::Disks => Ok(Answer::json(&self.disks())),
                Route::ClaimDisks => {
                    let claimed = self.claim(&body.collect().await?)?;
                    Ok(Answer::json(&claimed))
                }
                Route::UnlockDisk => {
                    let unlock: Unlock =
                        serde_json::from_slice(&body.collect().await?).expect("JSON");
                    assert_eq!(unlock.passphrase, "open sesame");
                    Ok(Answer::json(&Unlocked {
                        serial: unlock.serial,
                    }))
                }
                Route::Decommission => self.end(&body.collect().await?),
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
                    let drill: Drill =
                        serde_json::from_slice(&body.collect().await?).expect("a drill");
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
                        Begin::At(seq) => seq..2,
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

    /// A person with a directory, and a node that is theirs.
    struct Bench {
        directory: TempDir,
        address: SocketAddr,
        node: Arc<Node>,
    }

    struct Ran {
        status: i32,
        out: String,
        err: String,
    }

    impl Ran {
        #[track_caller]
        fn ends(self, status: i32) -> Self {
            assert_eq!(self.status, status, "out: {}\nerr: {}", self.out, self.err);
            self
        }
        #[track_caller]
        fn says(self, text: &str) -> Self {
            assert!(
                self.out.contains(text) || self.err.contains(text),
                "out: {}\nerr: {}",
                self.out,
                self.err
            );
            self
        }
        #[track_caller]
        fn json(&self) -> Value {
            serde_json::from_str(&self.out).expect("JSON on standard output")
        }
    }

    impl Bench {
        /// The node is served by a thread that lives as long as the test process.
        fn new(durable: bool) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let owner = SecretKey::generate().expect("a key");
            fs::create_dir(directory.path().join("home")).expect("a directory");
            owner
                .save(&directory.path().join("home/key"))
                .expect("a key file");
            let key = SecretKey::from_seed([1; 32]);
            let node = Node {
                key,
                owner: owner.public(),
                durable,
                state: Mutex::default(),
                agent_pid: AtomicU32::new(57),
                dies: Arc::default(),
            };
            let node = Arc::new(node);
            let (sender, receiver) = std::sync::mpsc::channel();
            let served = Arc::clone(&node);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(served.live(&sender));
            });
            let address = receiver.recv().expect("the node is up");
            Self {
                directory,
                address,
                node,
            }
        }

        fn with_node(durable: bool) -> Self {
            let bench = Self::new(durable);
            let key = bench.node.key.public().to_string();
            bench
                .run(&[
                    "node",
                    "add",
                    "lab",
                    &bench.address.to_string(),
                    "--key",
                    &key,
                ])
                .ends(0);
            bench
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn run(&self, args: &[&str]) -> Ran {
            let output = Command::new(env!("CARGO_BIN_EXE_sifr"))
                .args(args)
                .current_dir(self.directory.path())
                .env("SIFR_HOME", self.path("home"))
                .stdin(Stdio::null())
                .output()
                .expect("sifr runs");
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
            let status = output.status.code().expect("an exit status");
            Ran {
                status,
                out: text(output.stdout),
                err: text(output.stderr),
            }
        }

        /// Packs a small tree; the path of its .flist file relative to the directory.
        fn pack(&self) -> String {
            fs::create_dir_all(self.path("tree/bin")).expect("a directory");
            fs::write(self.path("tree/bin/app"), vec![b'x'; 300_000]).expect("a file");
            fs::write(
                self.path("tree/words"),
                (0..200_000u32)
                    .flat_map(u32::to_le_bytes)
                    .collect::<Vec<_>>(),
            )
            .expect("a file");
            let ran = self
                .run(&[
                    "flist",
                    "pack",
                    "tree",
                    "-o",
                    "store",
                    "--entrypoint",
                    "/bin/app",
                    "--env",
                    "A=1",
                ])
                .ends(0);
            ran.out.trim_end().to_owned()
        }

        fn deploy(&self) -> Ran {
            let image = self.pack();
            self.run(&[
                "deploy", "--image", &image, "--name", "shop", "-p", "8080:80", "--", "serve",
            ])
        }
    }

    #[test]
    fn a_key_is_made_once_and_shown() {
        let bench = Bench::new(true);
        bench.run(&["key", "new"]).ends(1).says("never overwritten");
        bench
            .run(&["key", "show"])
            .ends(0)
            .says(&bench.node.owner.to_string());
        bench
            .run(&["key", "show", "--pem"])
            .ends(0)
            .says("BEGIN CERTIFICATE");
        let made = bench
            .run(&["key", "new", "--identity", "other", "--output", "json"])
            .ends(0);
        assert!(
            made.json()["key"]
                .as_str()
                .is_some_and(|key| key.starts_with("ed25519:"))
        );
        bench
            .run(&["node", "list", "--identity", "missing"])
            .ends(0);
    }

    #[test]
    fn nodes_are_added_listed_and_forgotten() {
        let bench = Bench::new(true);
        bench.run(&["get"]).ends(2).says("sifr node add");
        let bench = Bench::with_node(true);
        bench
            .run(&["node", "list"])
            .ends(0)
            .says("ready")
            .says("lab");
        bench
            .run(&["node", "info"])
            .ends(0)
            .says("sifr test")
            .says("1 m 1 s");
        assert_eq!(
            bench.run(&["node", "info", "--output", "json"]).json()["build"],
            "sifr test"
        );
        assert!(
            !bench
                .run(&["node", "dmesg"])
                .ends(0)
                .says("Linux")
                .out
                .contains('\x1b')
        );
        bench.run(&["node", "metrics"]).ends(0).says("# HELP up");
        let json = bench.run(&["node", "metrics", "--output", "json"]).json();
        assert_eq!(json["metrics"], "# HELP up Up.\n");
        bench.run(&["metrics", "none"]).ends(3).says("none");
        let other = PublicKey([2; 32]).to_string();
        bench
            .run(&["node", "add", "lab", "10.0.0.1", "--key", &other])
            .ends(2)
            .says("--replace");
        bench.run(&["node", "remove", "lab"]).ends(0);
        bench.run(&["node", "use", "lab"]).ends(2).says("not known");
    }

    #[test]
    fn a_deployment_lives_from_pack_to_delete() {
        let bench = Bench::with_node(true);
        bench
            .deploy()
            .ends(0)
            .says("shop version 1 · lab · durable")
            .says("127.0.0.1:8080 → main:80")
            .says("pushed");
        bench
            .run(&["get"])
            .ends(0)
            .says("shop")
            .says("running")
            .says("8080:80");
        bench.run(&["wait", "shop"]).ends(0).says("shop is running");
        let logs = bench.run(&["logs", "shop"]).ends(0);
        assert_eq!(
            (logs.out.as_str(), logs.err.as_str()),
            ("to out\n", "to err\n")
        );
        bench
            .run(&["stop", "shop"])
            .ends(0)
            .says("version 2")
            .says("sifr wait shop --for stopped");
        bench.run(&["wait", "shop", "--for", "stopped"]).ends(0);
        bench.run(&["wait", "shop"]).ends(1).says("sifr start shop");
        bench.run(&["start", "shop"]).ends(0).says("version 3");
        bench.run(&["delete", "shop"]).ends(0).says("version 4");
        bench.run(&["wait", "shop", "--for", "deleted"]).ends(0);
        bench.run(&["get"]).ends(0).says("no deployments of yours");
        bench.run(&["get", "shop"]).ends(0).says("deleted");
        bench
            .run(&["stop", "shop"])
            .ends(1)
            .says("has been deleted");
        bench.run(&["logs", "shop"]).ends(1).says("no workloads");
        // The count goes on over the tombstone, and nothing is pushed a second time.
        let image = bench.pack();
        let again = bench
            .run(&[
                "deploy", "--image", &image, "--name", "shop", "--output", "json",
            ])
            .ends(0)
            .json();
        assert_eq!(
            (&again["version"], &again["pushed_bytes"]),
            (&5.into(), &0.into())
        );
        assert_eq!(again["durable"], true);
    }

    #[test]
    fn the_trace_of_a_first_run_comes_to_lie_beside_the_flist() {
        let bench = Bench::with_node(true);
        let image = bench.pack();
        bench
            .run(&["flist", "trace", &image])
            .ends(3)
            .says("there is no trace");
        // Packed once: the files of a second pack would be newer, and its image another.
        let deploy = ["deploy", "--image", &image, "--name", "shop", "--", "serve"];
        bench.run(&deploy).ends(0);
        bench
            .run(&["flist", "trace", &image])
            .ends(0)
            .says(".trace");
        let digest = Path::new(&image).file_stem().expect("a name");
        let digest = Digest::from_hex(&digest.to_string_lossy()).expect("a digest");
        let bytes = fs::read(bench.path(&image.replace(".flist", ".trace"))).expect("written");
        let trace = flist::trace::Trace::decode(&bytes, &digest, 2).expect("of this flist");
        assert_eq!(trace.chunks(), [1]);
    }

    #[test]
    fn a_file_is_deployed_with_its_image_beside_it() {
        let bench = Bench::with_node(true);
        let image = bench.pack();
        fs::create_dir(bench.path("app")).expect("a directory");
        let yaml = format!(
            "name: shop\nworkloads:\n  web:\n    image: ../{image}\n    memory: 64Mi\n    ports: ['80:8080']\n"
        );
        fs::write(bench.path("app/app.yaml"), yaml).expect("a file");
        bench
            .run(&["deploy", "app/app.yaml"])
            .ends(0)
            .says("shop version 1");
        let status = bench.run(&["get", "shop", "--output", "json"]).json();
        assert_eq!(status["workloads"]["web"]["ports"][0]["node"], 80);
        let shown = bench
            .run(&["flist", "show", &image])
            .ends(0)
            .says("/bin/app")
            .says("A=1");
        assert!(
            shown.out.contains(
                Path::new(&image)
                    .file_stem()
                    .expect("a name")
                    .to_str()
                    .expect("UTF-8")
            )
        );
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            builder
                .append_data(&mut header, name, *content)
                .expect("memory");
        }
        builder.into_inner().expect("memory")
    }

    /// What `docker save` writes, as far as it matters.
    fn docker_archive(program: &[u8]) -> Vec<u8> {
        let config = br#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/bin/app"],
            "Cmd":["serve"],"Env":["PATH=/bin","MODE=slow"],"User":"web","WorkingDir":"/srv"}}"#;
        let manifest = br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l/layer.tar"]}]"#;
        let layer = tar(&[("bin/app", program)]);
        tar(&[
            ("c.json", config),
            ("l/layer.tar", &layer),
            ("manifest.json", manifest),
        ])
    }

    #[test]
    fn an_image_is_packed_with_its_own_configuration_and_what_options_change() {
        let bench = Bench::new(true);
        fs::write(bench.path("app"), docker_archive(b"program")).expect("a file");
        let packed = bench
            .run(&["flist", "pack", "app", "-o", "store"])
            .ends(0)
            .says("app (Docker archive): 1 files");
        let shown = bench.run(&["flist", "show", packed.out.trim_end()]).ends(0);
        for says in ["/bin/app", "serve", "PATH=/bin MODE=slow", "web", "/srv"] {
            assert!(shown.out.contains(says), "{says} in {}", shown.out);
        }
        let changed = bench
            .run(&[
                "flist",
                "pack",
                "app",
                "-o",
                "store",
                "--cmd",
                "check",
                "--env",
                "MODE=fast",
                "--user",
                "0",
            ])
            .ends(0);
        let file = changed.out.trim_end();
        let shown = bench
            .run(&["flist", "show", file, "--output", "json"])
            .ends(0)
            .json();
        let expected = serde_json::json!({"Entrypoint": ["/bin/app"], "Cmd": ["check"],
            "Env": ["PATH=/bin", "MODE=fast"], "User": "0", "WorkingDir": "/srv"});
        assert_eq!(shown["config"], expected);
        let flist = ["flist", "pack", file, "-o", "store"];
        bench.run(&flist).ends(1).says("deploy it as it is");
        fs::write(bench.path("page.html"), "<html>".repeat(200)).expect("a file");
        let page = ["flist", "pack", "page.html", "-o", "store"];
        bench.run(&page).ends(1).says("docker save");
    }

    #[test]
    fn an_archive_given_to_deploy_is_packed_on_the_way_and_pushed_once() {
        let bench = Bench::with_node(true);
        fs::write(bench.path("app.tar"), docker_archive(b"program")).expect("a file");
        let deploy = [
            "deploy", "--image", "app.tar", "--name", "shop", "--output", "json",
        ];
        let ran = bench.run(&deploy).ends(0);
        assert!(
            ran.err.contains("packed app.tar (Docker archive)"),
            "{}",
            ran.err
        );
        assert!(ran.json()["pushed_bytes"].as_u64() > Some(0));
        assert_eq!(bench.run(&deploy).ends(0).json()["pushed_bytes"], 0);
        // Named twice in a file, it is packed once; a directory is packed as well.
        fs::create_dir_all(bench.path("tree/bin")).expect("a directory");
        fs::write(bench.path("tree/bin/app"), b"program").expect("a file");
        let yaml = "name: pair\nworkloads:\n  a: {image: app.tar}\n  b: {image: app.tar}\n  \
                    c: {image: tree, command: [/bin/app]}\n";
        fs::write(bench.path("pair.yaml"), yaml).expect("a file");
        let ran = bench.run(&["deploy", "pair.yaml"]).ends(0);
        assert_eq!(ran.err.matches("packed app.tar").count(), 1, "{}", ran.err);
        assert!(ran.err.contains("packed tree (directory)"), "{}", ran.err);
    }

    #[test]
    fn an_image_is_encrypted_on_the_way_to_a_node_and_one_that_is_not_is_refused() {
        let bench = Bench::with_node(true);
        fs::write(bench.path("app.tar"), docker_archive(b"program")).expect("a file");
        let plain = ["deploy", "--output", "json", "--name", "shop", "--image"];
        let encrypted = [&["deploy", "--encrypt"], &plain[1..]].concat();
        let ran = bench.run(&[&encrypted[..], &["app.tar"]].concat()).ends(0);
        assert!(ran.err.contains("made the salt"), "{}", ran.err);
        assert!(ran.json()["pushed_bytes"].as_u64() > Some(0));
        // One salt gives one ciphertext, and not what the same image is without it.
        let again = bench.run(&[&encrypted[..], &["app.tar"]].concat()).ends(0);
        assert_eq!(again.json()["pushed_bytes"], 0);
        let open = bench.run(&[&plain[..], &["app.tar"]].concat()).ends(0);
        assert!(open.json()["pushed_bytes"].as_u64() > Some(0));
        let packed = bench.run(&[
            "flist", "pack", "app.tar", "-o", "store", "--output", "json",
        ]);
        let packed = packed.ends(0).json();
        let (file, digest) = (packed["file"].as_str(), packed["digest"].as_str());
        bench
            .run(&[&encrypted[..], &[file.expect("a file")]].concat())
            .ends(2)
            .says("not encrypted");
        bench
            .run(&[&encrypted[..], &[digest.expect("a digest")]].concat())
            .ends(2)
            .says("named by its digest");
    }

    /// As every other: its chunks are found, brought and removed by the same commands.
    #[test]
    fn a_disk_image_goes_through_stores() {
        let bench = Bench::with_node(true);
        let mut disk = vec![0; 3 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[2 << 20..][..4096].fill(7);
        fs::write(bench.path("disk.raw"), disk).expect("a file");
        let pack = ["flist", "pack", "disk.raw", "-o", "a", "--output", "json"];
        let packed = bench.run(&pack).ends(0).json();
        assert_eq!(packed["chunks"], 2, "{packed}");
        let (file, digest) = (packed["file"].as_str(), packed["digest"].as_str());
        let (file, digest) = (file.expect("a file"), digest.expect("a digest"));
        let run = |args: &[&str]| bench.run(&[&["flist"], args].concat()).ends(0);
        run(&["push", file, "b", "c"]);
        run(&["pull", digest, "c", "-o", "d"]);
        run(&["mirror", "d", "e"]);
        run(&["verify", digest, "b", "c", "d", "e"]);
        let chunks = |store: &str| {
            let shards = fs::read_dir(bench.path(store).join("chunks")).expect("a store");
            let shards = shards.map(|shard| fs::read_dir(shard.expect("reads").path()));
            shards
                .map(|files| files.expect("reads").count())
                .sum::<usize>()
        };
        assert_eq!(chunks("e"), 2);
        // What is younger than a grace of two hours stays: so old are these made.
        let old = std::time::SystemTime::now() - Duration::from_secs(9000);
        for shard in fs::read_dir(bench.path("e/chunks")).expect("a store") {
            for chunk in fs::read_dir(shard.expect("reads").path()).expect("reads") {
                let file = fs::File::open(chunk.expect("reads").path()).expect("opens");
                file.set_modified(old).expect("a time");
            }
        }
        run(&["gc", "e", "--grace", "2h"]);
        assert_eq!(chunks("e"), 2, "its flist names them");
        run(&["gc", "e", "--grace", "2h", "--forget", digest]);
        assert_eq!(chunks("e"), 0);
    }

    #[test]
    fn an_image_without_a_program_is_not_pushed() {
        let bench = Bench::with_node(true);
        fs::write(bench.path("tree.tar"), tar(&[("bin/app", b"program")])).expect("a file");
        let bare = ["deploy", "--image", "tree.tar", "--name", "shop"];
        bench.run(&bare).ends(2).says("names no program");
        let command = [&bare[..], &["--", "/bin/app"]].concat();
        bench.run(&command).ends(0).says("shop version 1");
    }

    #[test]
    fn wrong_input_is_status_2_and_names_the_place() {
        let bench = Bench::with_node(true);
        bench.run(&["deploy"]).ends(2).says("give a file");
        bench.run(&["frobnicate"]).ends(2);
        fs::write(bench.path("bad.yaml"), "name: shop\nimage: shop:dev\n").expect("a file");
        bench
            .run(&["deploy", "bad.yaml"])
            .ends(2)
            .says("bad.yaml: workloads.main.image")
            .says("docker://shop:dev");
        fs::write(
            bench.path("bad.yaml"),
            "name: shop\nimage: docker.io/Shop\n",
        )
        .expect("a file");
        bench
            .run(&["deploy", "bad.yaml"])
            .ends(2)
            .says("docker.io/library/nginx:1.27");
        bench
            .run(&["deploy", "missing.yaml"])
            .ends(1)
            .says("cannot read the deployment file");
        bench
            .run(&["get", "--node", "moon"])
            .ends(2)
            .says("\"moon\" is not known");
    }

    #[test]
    fn a_refusal_is_status_3_with_the_nodes_words_and_advice() {
        let bench = Bench::with_node(false);
        bench
            .deploy()
            .ends(3)
            .says("this node runs from RAM")
            .says("--accept-volatile");
        bench
            .run(&["get", "shop"])
            .ends(3)
            .says("there is no deployment shop");
        bench.run(&["wait", "shop", "--for", "deleted"]).ends(0);
        let absent = Digest([9; 32]).to_string();
        bench
            .run(&[
                "deploy",
                "--image",
                &absent,
                "--name",
                "shop",
                "--accept-volatile",
            ])
            .ends(3)
            .says("no such flist");
        let image = bench.pack();
        let volatile = [
            "deploy",
            "--image",
            &image,
            "--name",
            "shop",
            "--accept-volatile",
        ];
        bench.run(&volatile).ends(0).says("volatile");
        bench.node.state.lock().expect("no panic").overtaken = true;
        bench
            .run(&volatile)
            .ends(3)
            .says("the next one is 3")
            .says("run this again");
        bench.run(&["key", "new", "--identity", "stranger"]).ends(0);
        bench
            .run(&["get", "--identity", "stranger"])
            .ends(3)
            .says("sifr key show");
    }

    #[test]
    fn a_node_that_is_off_or_another_is_status_4() {
        let bench = Bench::with_node(true);
        let key = bench.node.key.public().to_string();
        // A port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("a port")
            .local_addr()
            .expect("an address");
        bench
            .run(&["node", "add", "off", &free.to_string(), "--key", &key])
            .ends(0);
        bench
            .run(&["get", "--node", "off"])
            .ends(4)
            .says("cannot reach the node");
        let other = SecretKey::from_seed([3; 32]).public().to_string();
        bench
            .run(&[
                "node",
                "add",
                "moved",
                &bench.address.to_string(),
                "--key",
                &other,
            ])
            .ends(0);
        bench
            .run(&["get", "--node", "moved"])
            .ends(4)
            .says(&other)
            .says(&key);
        bench
            .run(&["node", "list"])
            .ends(0)
            .says("cannot reach")
            .says("ready");
    }

    #[test]
    fn a_wait_in_vain_is_status_5_and_one_for_the_dead_status_1() {
        let bench = Bench::with_node(true);
        bench.node.state.lock().expect("no panic").machine = Some(State::Starting);
        bench.deploy().ends(0);
        bench
            .run(&["wait", "shop", "--timeout", "200ms"])
            .ends(5)
            .says("shop is not running after 200ms: shop/main starting");
        bench.node.state.lock().expect("no panic").machine = Some(State::Exited);
        let dead = bench
            .run(&["wait", "shop"])
            .ends(1)
            .says("exited (3)")
            .says("sifr logs shop");
        assert!(!dead.err.contains('\x1b'));
        let ended = bench.run(&["wait", "shop", "--for", "exited"]).ends(0);
        assert!(
            ended
                .out
                .starts_with("shop/main exited (3): the program ended")
        );
        assert_eq!(ended.err, "", "once is enough");
    }

    #[test]
    fn a_damaged_chunk_is_not_sent() {
        let bench = Bench::with_node(true);
        let image = bench.pack();
        for directory in fs::read_dir(bench.path("store/chunks")).expect("reads") {
            for chunk in fs::read_dir(directory.expect("reads").path()).expect("reads") {
                fs::write(chunk.expect("reads").path(), b"rot").expect("writes");
            }
        }
        bench
            .run(&["deploy", "--image", &image, "--name", "shop"])
            .ends(1)
            .says("is damaged")
            .says("pack the image again");
        assert!(bench.node.state.lock().expect("no panic").chunks.is_empty());
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        let bench = Bench::with_node(true);
        bench.deploy().ends(0);
        let line = format!(
            "{} logs shop --tail 50000 2>/dev/null | head -n 1; exit ${{PIPESTATUS[0]}}",
            env!("CARGO_BIN_EXE_sifr")
        );
        let output = Command::new("bash")
            .args(["-c", &line])
            .env("SIFR_HOME", bench.path("home"))
            .output();
        let output = output.expect("bash runs");
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(0), b"to out\n".as_slice())
        );
    }

    #[test]
    fn a_wait_goes_on_with_the_next_agent() {
        let bench = Bench::with_node(true);
        bench.deploy().ends(0);
        bench.node.state.lock().expect("no panic").dies = true;
        bench
            .run(&["wait", "shop"])
            .ends(0)
            .says("asking again")
            .says("answers again after")
            .says("shop is running");
        bench.node.state.lock().expect("no panic").dies = true;
        bench
            .run(&["wait", "shop", "--timeout", "100ms"])
            .ends(5)
            .says("the node was away");
    }

    #[test]
    fn logs_go_on_with_the_next_agent_and_repeat_nothing() {
        let bench = Bench::with_node(true);
        bench.deploy().ends(0);
        bench.node.state.lock().expect("no panic").dies = true;
        let logs = bench
            .run(&["logs", "-f", "shop/main"])
            .ends(0)
            .says("asking again");
        assert_eq!(logs.out, "to out\n");
        assert_eq!(logs.err.matches("to err\n").count(), 1, "{}", logs.err);
    }

    #[test]
    fn a_drill_says_what_was_killed_and_waits_for_the_next_agent() {
        let bench = Bench::with_node(true);
        bench.deploy().ends(0);
        bench
            .run(&["node", "drill", "shop"])
            .ends(0)
            .says("the VMM (process 99) of shop/main")
            .says("sifr wait shop");
        bench
            .run(&["node", "drill", "chunks"])
            .ends(0)
            .says("process 99");
        bench
            .run(&["node", "drill", "node"])
            .ends(0)
            .says("the node agent (process 57) of lab was killed")
            .says("another node agent (process 58) answers after");
        let again = bench
            .run(&["node", "drill", "node", "--output", "json"])
            .ends(0)
            .json();
        assert_eq!(
            (&again["pid"], &again["successor"]),
            (&58.into(), &59.into())
        );
        bench.run(&["node", "drill", "moon"]).ends(3);
    }

    #[test]
    fn disks_are_shown_with_what_is_on_them_and_why_they_are_used_so() {
        let bench = Bench::with_node(true);
        let listed = bench.run(&["disk", "list"]).ends(0);
        let listed = listed.says("left alone").says("XFS file system: so it is");
        listed.says("Flash 9000").says("SSD").says("40960.0 MiB");
        let json = bench
            .run(&["disk", "list", "--output", "json"])
            .ends(0)
            .json();
        assert_eq!(json[0]["disks"][1]["used"], "left_alone");
        bench.run(&["disk", "list", "lab", "lab"]).ends(2);
    }

    #[test]
    fn a_disk_is_claimed_only_after_it_was_shown_and_a_person_said_yes() {
        let bench = Bench::with_node(true);
        let claim = |more: &[&str]| bench.run(&[&["disk", "claim", "lab"][..], more].concat());
        let asked = claim(&["--serial", "S-vdb"]).ends(1);
        let asked = asked
            .says("ALL OF THIS WILL BE LOST")
            .says("XFS file system");
        asked.says("nothing was touched");
        claim(&["--serial", "S-vdb", "--yes"])
            .ends(0)
            .says("blank, ready");
        claim(&["--all-foreign", "--yes"]).ends(0).says("S-vdb");
        claim(&["--serial", "S-vda", "--yes"])
            .ends(2)
            .says("cannot be claimed");
        claim(&["--serial", "S-none", "--yes"])
            .ends(2)
            .says("no disk has");
        claim(&["--yes"]).ends(2);
    }

    #[test]
    fn the_owners_key_opens_an_encrypted_disk_and_shares_of_another_key_do_not() {
        let bench = Bench::with_node(true);
        let recovered = bench.run(&["disk", "recover", "S-vda"]).ends(0);
        assert_eq!(recovered.out.trim_end(), "open sesame");
        let unlocked = bench.run(&["disk", "unlock", "S-vda"]).ends(0);
        unlocked.says("this machine opens it from now on");
        bench
            .run(&["disk", "recover", "S-vdb"])
            .ends(1)
            .says("has no pool");
        let papers = bench.directory.path().join("papers");
        let papers = papers.to_str().expect("text");
        let made = bench.run(&[
            "key", "recovery", "--shares", "2", "--need", "2", "-o", papers,
        ]);
        made.ends(0).says("sifr.recovery=x25519:");
        let share = |n: u8| format!("{papers}/share-{n}-of-2");
        let (one, two) = (share(1), share(2));
        let recover =
            |shares: &[&str]| bench.run(&[&["disk", "recover", "S-vda"], shares].concat());
        recover(&["--share", &one]).ends(2).says("2 are needed");
        recover(&["--share", &one, "--share", &two])
            .ends(2)
            .says("another key");
        bench
            .run(&["key", "recovery", "-o", papers, "--need", "9"])
            .ends(2);
    }

    #[test]
    fn a_decommission_is_confirmed_and_its_receipt_checked_and_kept() {
        for (honest, code) in [(true, 0), (false, 1)] {
            let bench = Bench::with_node(honest);
            let file = bench.directory.path().join("receipt.json");
            let path = file.to_str().expect("text");
            let end = ["node", "decommission", "--receipt", path];
            let asked = bench.run(&end).ends(1);
            asked
                .says("ALL OF THIS WILL BE LOST")
                .says("nothing was touched");
            let unknown = [&end[..], &["--serial", "S-vdb", "--yes"]].concat();
            bench.run(&unknown).ends(2).says("no pool");
            assert!(!file.exists());
            let done = bench.run(&[&end[..], &["--yes"]].concat()).ends(code);
            match honest {
                true => done.says("crypto-erased").says("switches itself off"),
                false => done.says("not signed by the node"),
            };
            assert!(file.exists());
        }
    }

    #[test]
    fn the_version_is_that_of_the_build() {
        let bench = Bench::new(true);
        bench
            .run(&["version"])
            .ends(0)
            .says(&sifr::IDENTITY.to_string());
        let short = bench.run(&["--version"]).ends(0);
        assert_eq!(short.out.trim_end(), sifr::IDENTITY.to_string());
        assert_eq!(
            bench.run(&["version", "--output", "json"]).json()["version"],
            sifr::IDENTITY.version
        );
    }
}
