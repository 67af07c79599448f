//! The API over TLS on the loopback, with an engine that the tests play.

use flist::wire::Counts;
use std::collections::BTreeMap;
use std::path::Path;

use api::{Client, ClientError, Until};
use flist::cache::Keep;
use tokio::task::LocalSet;
use types::node::Capacity;
use types::status::{Ack, Desired, State, WorkloadStatus};

use super::*;
use crate::node::context::Uplink;
use crate::node::dashboard;

#[path = "server_logs_tests.rs"]
mod logs;

struct Stage {
    client: Client,
    stranger: Client,
    requests: mpsc::Receiver<Request>,
    changes: watch::Sender<u64>,
    silence: watch::Sender<Option<String>>,
    info: watch::Sender<NodeInfo>,
    pool: tempfile::TempDir,
    address: String,
}

fn room(pool: &Path) -> Room {
    Room::new(pool, &pool.join("promises.json"))
}

fn context(pool: &Path, owner: Option<PublicKey>, seed: [u8; 32]) -> NodeContext {
    let key = SecretKey::from_seed(seed).public();
    let info = NodeInfo {
        key,
        owner,
        durable: true,
        ..dashboard::tests::info()
    };
    let (pid1, _) = sys::socket::pair().expect("a pair");
    NodeContext {
        seed,
        key,
        owner,
        storage: workload::admission::Storage::Disk,
        pool: pool.to_owned(),
        pools: Vec::new(),
        guarded: Vec::new(),
        adopted: false,
        waits: None,
        found: Vec::new(),
        standing: storage::plan::Standing {
            used: vec!["vda".to_owned()],
            left: Vec::new(),
        },
        custody: crate::node::custody::Custody::new(&crate::options::Options::default(), None),
        room: room(pool),
        kvm_problem: None,
        capacity: Capacity::default(),
        info: watch::channel(info).0,
        uplink: watch::channel(Uplink::default()).1,
        desk: Desk::new(mpsc::channel(1).0),
        pid1,
    }
}

impl Stage {
    async fn new(owned: bool) -> Self {
        let pool = tempfile::tempdir().expect("a directory");
        let (owner, other) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        let context = context(pool.path(), owned.then(|| owner.public()), [3; 32]);
        let (requests_tx, requests) = mpsc::channel(8);
        let (changes, heard) = watch::channel(0);
        let cache = Cache::open(pool.path()).expect("a cache");
        let machines = Machines::open(pool.path()).expect("machines");
        let (silence, silent) = watch::channel(None);
        let heard = (heard, silent);
        let server = Server::new(&context, requests_tx, cache, machines, heard).expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::task::spawn_local(server.serve(listener));
        let client = |key: &SecretKey| Client::new(&address, context.key, key).expect("a client");
        Self {
            client: client(&owner),
            stranger: client(&other),
            requests,
            changes,
            silence,
            info: context.info,
            pool,
            address,
        }
    }
}

fn shop() -> Name {
    "shop".parse().expect("a name")
}

fn status(state: State) -> DeploymentStatus {
    let workload = WorkloadStatus {
        state,
        address: None,
        addresses: Vec::new(),
        ports: Vec::new(),
        restarts: 0,
        exit: None,
        message: None,
        start_ms: None,
        chunks: None,
        timeline: None,
        code: None,
    };
    DeploymentStatus {
        name: shop(),
        version: 1,
        desired: Desired::Running,
        durable: true,
        workloads: [("web".parse().expect("a name"), workload)].into(),
        volumes: Default::default(),
        networks: Default::default(),
        pools: Default::default(),
        ingress: Default::default(),
        conditions: Vec::new(),
    }
}

/// Plays the engine: every deployment is in the state that `state` gives; `None`: it is deleted.
async fn play<S: Into<Option<State>>>(
    requests: &mut mpsc::Receiver<Request>,
    state: impl Fn() -> S,
) {
    let status = || match state().into() {
        Some(state) => status(state),
        None => DeploymentStatus {
            desired: Desired::Deleted,
            workloads: [].into(),
            ..status(State::Stopped)
        },
    };
    while let Some(request) = requests.recv().await {
        match request {
            Request::Status { reply, .. } => drop(reply.send(Some(status()))),
            Request::List { reply, .. } => drop(reply.send(vec![status()])),
            Request::Images { reply } => drop(reply.send(BTreeMap::new())),
            Request::Places { reply } => drop(reply.send(workload::host::Places::default())),
            Request::Offer { reply, .. } => drop(reply.send(None)),
            Request::Counts { reply } => drop(reply.send(Counts::default())),
            Request::Metrics { reply, .. } => drop(reply.send(Vec::new())),
            Request::Drill { victim, reply } => drop(reply.send(match victim {
                Victim::Node => panic!("it is killed when its answer has been read"),
                Victim::Chunks | Victim::Ingress => None,
                Victim::Machine { .. } => Some(99),
            })),
            Request::Disks { turn } => panic!("{turn:?} is the vigil's to say"),
            Request::Reboot | Request::PowerOff | Request::End => return,
            Request::Statement { reply, .. } => {
                let no = refusal(RefusalCode::Malformed, "no");
                drop(reply.send(Err(Refused::Final(no))));
            }
        }
    }
}

async fn locally(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> RefusalCode {
    result
        .expect_err("refused")
        .refusal()
        .expect("a refusal")
        .code
}

#[tokio::test]
async fn a_node_without_an_owner_refuses_everybody() {
    locally(async {
        let stage = Stage::new(false).await;
        assert_eq!(code(stage.client.node_info().await), RefusalCode::NoOwner);
    })
    .await;
}

#[tokio::test]
async fn a_stranger_is_refused_and_the_owner_is_answered() {
    locally(async {
        let stage = Stage::new(true).await;
        assert_eq!(
            code(stage.stranger.node_info().await),
            RefusalCode::UnknownKey
        );
        let info = stage.client.node_info().await.expect("an answer");
        assert!(info.uptime_ms > 0 && info.clock.realtime_ms > 0);
    })
    .await;
}

#[tokio::test]
async fn while_no_disk_answers_nothing_is_taken_and_the_node_is_reached() {
    locally(async {
        let stage = Stage::new(true).await;
        let chunk = b"stored bytes".to_vec();
        let digest = Digest(*blake3::hash(&chunk).as_bytes());
        stage.silence.send_replace(Some("vda hangs".to_owned()));
        let put = stage.client.put_chunk(digest, chunk.clone().into()).await;
        assert_eq!(code(put), RefusalCode::DiskSilent);
        stage.client.node_info().await.expect("an answer");
        stage.silence.send_replace(None);
        let put = stage.client.put_chunk(digest, chunk.into()).await;
        put.expect("a chunk");
    })
    .await;
}

#[tokio::test]
async fn a_wait_ends_with_a_change_or_with_its_time() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let state = std::cell::Cell::new(State::Backoff);
        let waits = async {
            let (short, shop) = (Duration::from_millis(200), shop());
            let waited = stage.client.wait(&shop, Until::Running, short, |_| {});
            let (_, verdict) = waited.await.expect("an answer");
            assert_eq!(verdict, Verdict::NotYet);
            let long = Duration::from_secs(30);
            let change = async {
                tokio::time::sleep(short).await;
                state.set(State::Running);
                stage.changes.send_modify(|n| *n += 1);
            };
            let waited = stage.client.wait(&shop, Until::Running, long, |_| {});
            let (waited, ()) = tokio::join!(waited, change);
            assert_eq!(waited.expect("an answer").1, Verdict::Met);
        };
        tokio::select! {
            () = play(&mut stage.requests, || state.get()) => {}
            () = waits => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("no answer"),
        }
    })
    .await;
}

#[tokio::test]
async fn pushed_content_is_checked_and_kept() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let chunk = b"stored bytes".to_vec();
        let digest = Digest(*blake3::hash(&chunk).as_bytes());
        let pushes = async {
            let put = stage.client.put_chunk(digest, chunk.clone().into()).await;
            put.expect("a chunk");
            let hex = digest.hex();
            let path = format!("chunks/{}/{}", &hex[..2], &hex[2..]);
            assert_eq!(
                std::fs::read(stage.pool.path().join(path)).expect("kept"),
                chunk
            );
            let wrong = stage
                .client
                .put_chunk(Digest([9; 32]), chunk.clone().into());
            assert_eq!(code(wrong.await), RefusalCode::Malformed);
            let flist = stage.client.put_flist(digest, chunk.clone().into());
            assert_eq!(code(flist.await), RefusalCode::Malformed);
        };
        tokio::select! {
            () = play(&mut stage.requests, || State::Running) => {}
            () = pushes => {}
        }
    })
    .await;
}

/// Promises a machine all that the pool has.
fn promise_all(pool: &Path) {
    let vm: VmId = "web-shop-01010101".parse().expect("an id");
    let promises = crate::room::Promises {
        volumes: BTreeMap::new(),
        machines: [(vm, Bytes(u64::MAX))].into(),
        images: Default::default(),
    };
    room(pool).promise(&promises).expect("promised");
}

#[tokio::test]
async fn nothing_is_pushed_into_what_deployments_are_promised() {
    locally(async {
        let mut stage = Stage::new(true).await;
        promise_all(stage.pool.path());
        let chunk = b"stored bytes".to_vec();
        let digest = Digest(*blake3::hash(&chunk).as_bytes());
        let pushes = async {
            let put = stage.client.put_chunk(digest, chunk.clone().into()).await;
            assert_eq!(code(put), RefusalCode::OverCapacity);
            let put = stage.client.put_flist(digest, chunk.into()).await;
            assert_eq!(code(put), RefusalCode::OverCapacity);
        };
        tokio::select! {
            () = play(&mut stage.requests, || State::Running) => {}
            () = pushes => {}
        }
    })
    .await;
}

#[tokio::test]
async fn who_asked_when_the_ledger_failed_hears_so_before_the_agent_ends() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let requests = &mut stage.requests;
        let answered = std::cell::Cell::new(false);
        let engine = async {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Statement { reply, .. } => {
                        let unknown = refusal(RefusalCode::Restarting, "read again");
                        drop(reply.send(Err(Refused::Unknown(unknown))));
                    }
                    Request::End => return,
                    other => panic!("{other:?}"),
                }
            }
        };
        let deploy = async {
            let key = SecretKey::from_seed([1; 32]);
            let envelope = api::Envelope::seal(&key, "any", b"{}");
            let answer = stage.client.post_statement(&envelope).await;
            answered.set(true);
            assert_eq!(code(answer), RefusalCode::Restarting);
        };
        tokio::time::timeout(Duration::from_secs(20), async {
            tokio::join!(engine, deploy)
        })
        .await
        .expect("the engine is told to end");
        assert!(answered.get());
    })
    .await;
}

#[tokio::test]
async fn what_nobody_deployed_makes_room_for_a_statement() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let cache = Cache::open(stage.pool.path()).expect("a cache");
        let stray = b"stray".to_vec();
        let digest = Digest(*blake3::hash(&stray).as_bytes());
        cache.put_chunk(digest, &stray).expect("kept");
        let no_room = || Refused::NoRoom(refusal(RefusalCode::OverCapacity, "no room"));
        let ack = Ack {
            name: shop(),
            version: 1,
            digest,
            durable: true,
        };
        let requests = &mut stage.requests;
        let engine = async {
            let mut asked = 0;
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Statement { reply, .. } => {
                        asked += 1;
                        let room = !cache.chunk_path(&digest).exists();
                        let judged = if room {
                            Ok(ack.clone())
                        } else {
                            Err(no_room())
                        };
                        drop(reply.send(judged));
                    }
                    Request::Images { reply } => drop(reply.send(BTreeMap::new())),
                    other => panic!("{other:?}"),
                }
            }
            asked
        };
        let deploy = async {
            let key = SecretKey::from_seed([1; 32]);
            let envelope = api::Envelope::seal(&key, "any", b"{}");
            let answer = stage.client.post_statement(&envelope).await;
            assert_eq!(answer.expect("accepted"), ack);
        };
        tokio::select! {
            asked = engine => panic!("asked {asked} times"),
            () = deploy => {}
        }
    })
    .await;
}

/// A small image: its digest and its `.flist` file.
fn flist() -> (Digest, Vec<u8>) {
    use flist::pack::{Packed, Source, pack};
    let tree = tempfile::tempdir().expect("a directory");
    std::fs::write(tree.path().join("f"), b"content").expect("written");
    let (source, config) = (Source::Directory(tree.path()), Default::default());
    let packed = pack(source, &config, &mut flist::store::NoStore, &mut |_| {});
    let Packed { digest, flist, .. } = packed.expect("packs");
    (digest, flist)
}

fn fill(pool: &Path) {
    let all = ("m".parse().expect("an id"), Bytes(u64::MAX));
    let promises = crate::room::Promises {
        volumes: BTreeMap::new(),
        machines: [all].into(),
        images: Default::default(),
    };
    room(pool).promise(&promises).expect("promised");
}

#[tokio::test]
async fn no_statement_is_judged_while_content_is_swept() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let (first, second) = (stage.client, stage.stranger);
        let post = |client: Client| async move {
            let envelope = api::Envelope::seal(&SecretKey::from_seed([1; 32]), "any", b"{}");
            drop(client.post_statement(&envelope).await);
        };
        // The owner's second connection.
        drop(second);
        let owner = SecretKey::from_seed([1; 32]);
        let second = Client::new(&stage.address, first.node(), &owner).expect("a client");
        tokio::task::spawn_local(post(first));
        let Some(Request::Statement { reply, .. }) = stage.requests.recv().await else {
            panic!("a statement")
        };
        let no_room = refusal(RefusalCode::OverCapacity, "no room");
        drop(reply.send(Err(Refused::NoRoom(no_room))));
        let Some(Request::Images { reply }) = stage.requests.recv().await else {
            panic!("a sweep begins with what is needed")
        };
        tokio::task::spawn_local(post(second));
        // Far longer than a statement takes to get here.
        let early = tokio::time::timeout(Duration::from_millis(300), stage.requests.recv()).await;
        assert!(early.is_err(), "{early:?}");
        drop(reply.send(BTreeMap::new()));
        let next = stage.requests.recv().await;
        assert!(matches!(next, Some(Request::Statement { .. })), "{next:?}");
    })
    .await;
}

#[tokio::test]
async fn a_lost_image_of_a_deployment_comes_back_where_there_is_no_room_for_others() {
    locally(async {
        let mut stage = Stage::new(true).await;
        fill(stage.pool.path());
        let (digest, file) = flist();
        let other = Digest([7; 32]);
        let kept = BTreeMap::from([(digest, Keep::Pinned)]);
        let requests = &mut stage.requests;
        let engine = async {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::Images { reply } => drop(reply.send(kept.clone())),
                    other => panic!("{other:?}"),
                }
            }
        };
        let client = &stage.client;
        let pushes = async {
            let refused = client.put_flist(other, file.clone().into()).await;
            let Err(ClientError::Refused { refusal }) = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(refusal.code, RefusalCode::OverCapacity);
            assert!(refusal.message.contains("push it again"), "{refusal:?}");
            let missing = client.put_flist(digest, file.clone().into()).await;
            assert_eq!(missing.expect("taken").len(), 1);
        };
        tokio::select! {
            () = engine => panic!("the server has gone"),
            () = pushes => {}
        }
    })
    .await;
}

fn machine(deployment: &str, workload: &str) -> Drill {
    Drill::Machine {
        deployment: deployment.parse().expect("a name"),
        workload: workload.parse().expect("a name"),
    }
}

#[tokio::test]
async fn a_drill_is_the_owners_and_names_what_is_there() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let drills = async {
            let (client, stranger) = (&stage.client, &stage.stranger);
            for drill in [Drill::Node {}, Drill::Chunks {}, machine("shop", "web")] {
                assert_eq!(code(stranger.drill(&drill).await), RefusalCode::UnknownKey);
            }
            let killed = client.drill(&machine("shop", "web")).await;
            assert_eq!(killed.expect("an answer").pid, 99);
            let other = client.drill(&machine("shop", "db")).await;
            assert_eq!(code(other), RefusalCode::NotFound);
            let restarting = client.drill(&Drill::Chunks {}).await;
            assert_eq!(code(restarting), RefusalCode::Conflict);
        };
        tokio::select! {
            () = play(&mut stage.requests, || State::Running) => {}
            () = drills => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_drill_of_no_deployment_finds_nothing_to_kill() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let answer = async {
            match stage.requests.recv().await {
                Some(Request::Status { reply, .. }) => drop(reply.send(None)),
                other => panic!("{other:?}"),
            }
        };
        let drill = machine("moon", "web");
        let (result, ()) = tokio::join!(stage.client.drill(&drill), answer);
        assert_eq!(code(result), RefusalCode::NotFound);
    })
    .await;
}

#[tokio::test]
async fn a_node_is_killed_after_its_answer_has_been_read() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let drilled = stage.client.drill(&Drill::Node {}).await;
        assert_eq!(drilled.expect("an answer").pid, std::process::id());
        match stage.requests.recv().await {
            Some(Request::Drill { victim, .. }) => assert_eq!(victim, Victim::Node),
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn the_owner_reads_all_metrics_a_stranger_none_and_nobody_waits_for_a_silent_vmm() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let owner = SecretKey::from_seed([1; 32]).public();
        let (_silent, silence) = oneshot::channel();
        let engine = async {
            let asked = stage.requests.recv().await.expect("a request");
            let Request::Metrics {
                signer: None,
                deployment: None,
                reply,
            } = asked
            else {
                panic!("{asked:?}")
            };
            let web: Name = "web".parse().expect("a name");
            let asked = metrics::Asked {
                vm: VmId::new(&owner, &shop(), &web),
                deployment: shop(),
                workload: web,
                state: State::Running,
                restarts: 0,
                answer: Some(silence),
            };
            reply.send(vec![asked]).expect("waits");
            match stage.requests.recv().await {
                Some(Request::Counts { reply }) => drop(reply.send(Counts {
                    wanted: 7,
                    ..Counts::default()
                })),
                other => panic!("{other:?}"),
            }
            match stage.requests.recv().await {
                Some(Request::List { reply, .. }) => drop(reply.send(Vec::new())),
                other => panic!("{other:?}"),
            }
            match stage.requests.recv().await {
                Some(Request::Status { reply, .. }) => {
                    drop(reply.send(Some(status(State::Running))))
                }
                other => panic!("{other:?}"),
            }
            match stage.requests.recv().await {
                Some(Request::Metrics {
                    signer: Some(signer),
                    deployment: Some(name),
                    reply,
                }) => {
                    assert_eq!((signer, name), (owner, shop()));
                    drop(reply.send(Vec::new()));
                }
                other => panic!("{other:?}"),
            }
        };
        let client = async {
            assert_eq!(
                code(stage.stranger.metrics(None).await),
                RefusalCode::UnknownKey
            );
            assert_eq!(
                code(stage.stranger.metrics(Some(&shop())).await),
                RefusalCode::UnknownKey
            );
            let text = stage.client.metrics(None).await.expect("an answer");
            let text = String::from_utf8(text).expect("UTF-8");
            let samples = crate::node::exposition::tests::parse(&text);
            let value = |name: &str| {
                let found = samples.iter().find(|(of, ..)| of == name);
                found.unwrap_or_else(|| panic!("{name}: {text}")).2
            };
            assert_eq!(value("sifr_machine_up"), 0.0);
            assert!(value("sifr_node_memory_bytes") >= value("sifr_node_memory_available_bytes"));
            assert!(value("sifr_node_pool_bytes") > 0.0);
            assert_eq!(value("sifr_chunks_wanted_total"), 7.0);
            let of_shop = stage
                .client
                .metrics(Some(&shop()))
                .await
                .expect("an answer");
            assert!(of_shop.is_empty(), "no machines, and nothing of the node");
        };
        tokio::join!(engine, client);
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_disks_are_destroyed_tells_and_takes_nothing_more() {
    locally(async {
        let mut stage = Stage::new(true).await;
        crate::node::retire::says(&stage.info, &["vda".to_owned()]);
        let requests = &mut stage.requests;
        let engine = async {
            while let Some(request) = requests.recv().await {
                match request {
                    Request::List { reply, .. } => drop(reply.send(Vec::new())),
                    other => panic!("{other:?}"),
                }
            }
        };
        let client = &stage.client;
        let asks = async {
            let envelope = api::Envelope::seal(&SecretKey::from_seed([1; 32]), "any", b"{}");
            let refused = client.post_statement(&envelope).await;
            assert_eq!(code(refused.map(drop)), RefusalCode::Decommissioned);
            let (digest, file) = flist();
            let refused = client.put_flist(digest, file.into()).await;
            assert_eq!(code(refused.map(drop)), RefusalCode::Decommissioned);
            let all = client.deployments().await;
            assert!(all.expect("it still tells").is_empty());
            let troubles = client.node_info().await.expect("it still tells").troubles;
            assert_eq!(troubles[0].code, types::trouble::Code::Decommissioned);
        };
        tokio::select! {
            () = engine => panic!("the server has gone"),
            () = asks => {}
        }
    })
    .await;
}
