//! Changes against links that the test plays, and a clock that runs.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use api::SecretKey;
use tokio::task::LocalSet;
use types::site::CONFIRM_MIN_S;

use super::*;

/// What this stage's kernel gives no link.
const REFUSED: &str = "192.0.2.66/24";
const DEFAULT: &[&str] = &["sifr.net.eth0.address=192.0.2.7/24"];
const WITHIN: u32 = 60;

fn owner() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn sealed(version: u64, options: &[&str]) -> Vec<u8> {
    sealed_within(WITHIN, version, options)
}

fn sealed_within(confirm_s: u32, version: u64, options: &[&str]) -> Vec<u8> {
    let change = SiteChange {
        node: PublicKey([7; 32]),
        version,
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        confirm_s,
    };
    let envelope = Envelope::seal_site(&owner(), &change).expect("sealed");
    envelope.to_json()
}

struct Stage {
    asks: mpsc::Sender<Ask>,
    /// Networks that the links were led to.
    led: Rc<RefCell<Vec<Network>>>,
    info: watch::Sender<NodeInfo>,
}

impl Stage {
    fn begin(at: &Path, boot: &str, cmdline: &str) -> Self {
        Self::begin_with(at, boot, cmdline, kept::Disk::default())
    }

    fn begin_with(at: &Path, boot: &str, cmdline: &str, disk: kept::Disk) -> Self {
        let mut info = crate::node::dashboard::tests::info();
        (info.owner, info.durable) = (Some(owner().public()), true);
        let info = watch::channel(info).0;
        let pools = vec![at.join("pool")];
        let options = options::parse(cmdline);
        let mut changes = Changes::open(pools, &at.join(boot), &options, info.clone());
        changes.shelf.disk = disk;
        let (asks, asked) = mpsc::channel(ASKED_MAX);
        let (links, mut heard) = mpsc::channel(ASKED_MAX);
        let led = Rc::new(RefCell::new(vec![changes.network().clone()]));
        tokio::task::spawn_local(changes.run(asked, links));
        let all = led.clone();
        tokio::task::spawn_local(async move {
            while let Some(ask) = heard.recv().await {
                match ask {
                    uplink::Ask::Check(network, reply) => {
                        let all = network.site.links.iter().flatten();
                        let missing = all.filter(|spec| spec.port.to_string() == "eth7");
                        let missing = missing.map(|_| "the machine has no port eth7".to_owned());
                        let _ = reply.send(missing.collect());
                    }
                    uplink::Ask::Use(network, reply) => {
                        let links = network.site.links.iter().flatten();
                        let mut addresses = links.flat_map(|link| &link.addresses);
                        let is_refused = addresses.any(|at| at.to_string() == REFUSED);
                        all.borrow_mut().push(network);
                        let _ = reply.send(is_refused.then(|| "eth0 cannot have it".to_owned()));
                    }
                }
            }
        });
        Self { asks, led, info }
    }

    async fn propose(&self, envelope: Vec<u8>) -> Result<(Trial, Turn), Refusal> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Propose { envelope, reply };
        self.asks.send(ask).await.expect("the loop lives");
        answer.await.expect("answered")
    }

    async fn used(&self, version: u64, options: &[&str]) {
        self.use_sealed(sealed(version, options)).await;
    }

    async fn use_sealed(&self, envelope: Vec<u8>) {
        let (_, turn) = self.propose(envelope).await.expect("taken");
        self.tell(Ask::Begin { turn }).await;
        self.until(|n| {
            n.trial
                .as_ref()
                .is_some_and(|t| t.until_uptime_ms.is_some())
        })
        .await;
    }

    async fn confirm(&self, version: u64, connected: Instant) -> Result<Confirmed, Refusal> {
        self.confirming(version, connected)
            .await
            .await
            .expect("answered")
    }

    async fn confirming(
        &self,
        version: u64,
        connected: Instant,
    ) -> oneshot::Receiver<Result<Confirmed, Refusal>> {
        let (reply, answer) = oneshot::channel();
        self.tell(Ask::Confirm {
            version,
            connected,
            reply,
        })
        .await;
        answer
    }

    async fn find(&self, version: u64) -> Result<Turn, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(Ask::Find { version, reply }).await;
        answer.await.expect("answered")
    }

    async fn tell(&self, ask: Ask) {
        self.asks.send(ask).await.expect("the loop lives");
    }

    async fn until(&self, is: impl Fn(&NodeNetwork) -> bool) -> NodeNetwork {
        let mut info = self.info.subscribe();
        let info = info.wait_for(|info| is(&info.network)).await;
        info.expect("it is published").network.clone()
    }

    fn address(&self) -> String {
        let led = self.led.borrow();
        let network = led.last().expect("the first");
        let links = network.site.links.iter().flatten();
        let address = links.flat_map(|link| &link.addresses).next();
        address.map_or(String::new(), ToString::to_string)
    }
}

async fn play(cmdline: &str, act: impl AsyncFnOnce(Stage, &Path)) {
    let at = tempfile::tempdir().expect("a directory");
    let local = LocalSet::new();
    let stage = local
        .run_until(async { Stage::begin(at.path(), "first", cmdline) })
        .await;
    local.run_until(act(stage, at.path())).await;
}

#[tokio::test]
async fn what_is_not_confirmed_in_its_time_is_taken_back_and_is_on_no_disk() {
    play(
        "sifr.net.eth0.address=198.51.100.7/24",
        async |stage, at| {
            let begin = Instant::now();
            stage
                .use_sealed(sealed_within(CONFIRM_MIN_S, 1, DEFAULT))
                .await;
            assert_eq!(stage.address(), "192.0.2.7/24");
            let back = stage.until(|n| n.trial.is_none()).await;
            assert!(begin.elapsed() >= Duration::from_secs(CONFIRM_MIN_S.into()));
            assert_eq!(back.version, 0);
            assert_eq!(
                back.options[0].option,
                "sifr.net.eth0.address=198.51.100.7/24"
            );
            assert!(
                back.note
                    .expect("said")
                    .contains("not confirmed within 5 s")
            );
            assert_eq!(stage.address(), "198.51.100.7/24");
            assert!(!at.join("pool").exists());
            let late = stage.confirm(1, Instant::now()).await;
            assert_eq!(late.expect_err("late").code, RefusalCode::Conflict);
            // Its version is free again.
            stage.propose(sealed(1, DEFAULT)).await.expect("taken");
        },
    )
    .await;
}

#[tokio::test]
async fn a_confirmation_counts_over_a_connection_that_was_made_while_the_change_was_used() {
    play("", async |stage, at| {
        let before = Instant::now();
        let (_, turn) = stage.propose(sealed(1, DEFAULT)).await.expect("taken");
        let early = stage.confirm(1, Instant::now()).await;
        assert_eq!(early.expect_err("not used").code, RefusalCode::Conflict);
        stage.tell(Ask::Begin { turn }).await;
        stage.until(|n| !n.options.is_empty()).await;
        let old = stage.confirm(1, before).await;
        assert!(old.expect_err("old").message.contains("connect anew"));
        let other = stage.confirm(2, Instant::now()).await;
        assert_eq!(other.expect_err("another").code, RefusalCode::Conflict);
        let confirmed = stage.confirm(1, Instant::now()).await.expect("confirmed");
        assert!(confirmed.durable);
        assert!(at.join("pool/site/a").exists() && at.join("pool/site/b").exists());
        // Its answer was lost.
        stage.confirm(1, before).await.expect("again");
        assert_eq!(stage.info.borrow().network.trial, None);
        assert_eq!(stage.address(), "192.0.2.7/24");
        assert_eq!(stage.led.borrow().len(), 2);
        // The next agent, of any boot.
        let next = Stage::begin(at, "second", "sifr.net.eth0.address=198.51.100.7/24");
        assert_eq!(next.address(), "192.0.2.7/24");
        let network = next.info.borrow().network.clone();
        assert_eq!((network.version, network.options.len()), (1, 1));
        assert_eq!(network.options[0].from, types::site::OptionPlace::Owner);
    })
    .await;
}

#[tokio::test]
async fn a_boot_that_is_told_to_reset_counts_only_what_is_set_in_it() {
    play("", async |stage, at| {
        stage.used(1, DEFAULT).await;
        stage.confirm(1, Instant::now()).await.expect("confirmed");
        let reset = "sifr.net=reset sifr.net.eth0.address=198.51.100.7/24";
        let next = Stage::begin(at, "second", reset);
        assert_eq!(next.address(), "198.51.100.7/24");
        let network = next.info.borrow().network.clone();
        assert_eq!(network.version, 1);
        assert!(network.note.expect("said").contains("sifr.net=reset"));
        next.used(2, &["sifr.net.eth0.address=203.0.113.7/24"])
            .await;
        next.confirm(2, Instant::now()).await.expect("confirmed");
        // Another agent of the same boot, another boot that is told so, and one that is not.
        let address = |boot, told| Stage::begin(at, boot, told).address();
        assert_eq!(address("second", reset), "203.0.113.7/24");
        assert_eq!(address("third", reset), "198.51.100.7/24");
        assert_eq!(address("fourth", ""), "203.0.113.7/24");
    })
    .await;
}

#[tokio::test]
async fn a_change_is_refused_whole_and_changes_nothing() {
    play("", async |stage, _| {
        let stranger = SecretKey::from_seed([2; 32]);
        let change = SiteChange {
            node: PublicKey([7; 32]),
            version: 1,
            options: Vec::new(),
            confirm_s: WITHIN,
        };
        let seal = |key: &SecretKey, change: &SiteChange| {
            let sealed = Envelope::seal_site(key, change);
            sealed.expect("sealed").to_json()
        };
        let elsewhere = SiteChange {
            node: PublicKey([8; 32]),
            ..change.clone()
        };
        let typo = sealed(1, &[DEFAULT[0], "sifr.net.eth0.adress=192.0.2.8/24"]);
        for (envelope, code, says) in [
            (
                seal(&stranger, &change),
                RefusalCode::UnknownKey,
                "not known",
            ),
            (
                seal(&owner(), &elsewhere),
                RefusalCode::WrongNode,
                "is for node",
            ),
            (sealed(0, DEFAULT), RefusalCode::Replayed, "sign version 1"),
            (sealed(2, DEFAULT), RefusalCode::Skipped, "sign version 1"),
            (typo, RefusalCode::Malformed, "sifr.net.eth0.adress"),
            (
                sealed(1, &["sifr.owner=me"]),
                RefusalCode::Malformed,
                "only the network",
            ),
            (
                sealed(1, &["sifr.net.eth7.dhcp=on"]),
                RefusalCode::Conflict,
                "no port eth7",
            ),
        ] {
            let refused = stage.propose(envelope).await.expect_err(says);
            assert_eq!(refused.code, code, "{refused:?}");
            assert!(refused.message.contains(says), "{refused:?}");
        }
        stage.propose(sealed(1, DEFAULT)).await.expect("taken");
        let second = stage.propose(sealed(1, DEFAULT)).await;
        assert_eq!(
            second.expect_err("one at a time").code,
            RefusalCode::Conflict
        );
        assert_eq!(stage.led.borrow().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_owner_takes_a_change_back_at_once_and_a_kept_one_by_an_empty_one() {
    play("sifr.net.eth0.address=198.51.100.7/24", async |stage, _| {
        let begin = Instant::now();
        stage.used(1, DEFAULT).await;
        let other = stage.find(2).await.expect_err("another");
        assert_eq!(other.code, RefusalCode::Conflict);
        let turn = stage.find(1).await.expect("it is tried");
        stage.tell(Ask::End { turn }).await;
        stage.until(|n| n.trial.is_none()).await;
        let gone = stage.find(1).await.expect_err("it is tried no more");
        assert!(gone.message.contains("taken back by the owner"), "{gone:?}");
        assert!(begin.elapsed() < Duration::from_secs(WITHIN.into()));
        assert_eq!(stage.address(), "198.51.100.7/24");
        stage.used(1, DEFAULT).await;
        stage.confirm(1, Instant::now()).await.expect("confirmed");
        stage.used(2, &[]).await;
        assert_eq!(stage.address(), "198.51.100.7/24");
        stage.confirm(2, Instant::now()).await.expect("confirmed");
        let now = stage.until(|n| n.version == 2).await;
        assert_eq!(now.options[0].from, types::site::OptionPlace::CommandLine);
    })
    .await;
}

#[tokio::test]
async fn what_the_kernel_refuses_is_taken_back_at_once_and_confirmed_by_nobody() {
    play(
        "sifr.net.eth0.address=198.51.100.7/24",
        async |stage, at| {
            let option = format!("sifr.net.eth0.address={REFUSED}");
            let (_, turn) = stage.propose(sealed(1, &[&option])).await.expect("taken");
            stage.tell(Ask::Begin { turn }).await;
            let back = stage.until(|n| n.trial.is_none()).await;
            let note = back.note.expect("said");
            assert!(note.contains("not possible: eth0 cannot have it"), "{note}");
            assert_eq!(stage.address(), "198.51.100.7/24");
            let late = stage.confirm(1, Instant::now()).await;
            assert_eq!(late.expect_err("gone").code, RefusalCode::Conflict);
            assert!(!at.join("pool").exists());
        },
    )
    .await;
}

#[tokio::test]
async fn a_word_about_a_change_that_is_over_does_not_reach_the_next_of_the_same_version() {
    play("", async |stage, _| {
        stage.used(1, DEFAULT).await;
        let turn = stage.find(1).await.expect("it is tried");
        stage.tell(Ask::End { turn }).await;
        stage.until(|n| n.trial.is_none()).await;
        let other = &["sifr.net.eth0.address=203.0.113.7/24"];
        stage.propose(sealed(1, other)).await.expect("taken");
        // Of the first: its connection ended late.
        stage.tell(Ask::Begin { turn }).await;
        stage.tell(Ask::End { turn }).await;
        let next = stage.find(1).await.expect("it stays");
        assert_ne!(next, turn);
        assert_eq!(stage.address(), "");
    })
    .await;
}

/// A disk that answers when the test lets it.
fn slow() -> (kept::Disk, std::sync::mpsc::Sender<()>) {
    let (answers, may) = std::sync::mpsc::channel();
    let may = Mutex::new(may);
    let disk = kept::Disk::default();
    let waits = move |path: &Path, bytes: &[u8]| {
        // Once the test has ended it answers at once.
        let _ = may.lock().expect("whole").recv();
        (disk.0)(path, bytes)
    };
    (kept::Disk(Arc::new(waits)), answers)
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_no_deadline_and_what_it_takes_too_late_is_taken_from_it() {
    let at = tempfile::tempdir().expect("a directory");
    let (disk, answers) = slow();
    let local = LocalSet::new();
    local
        .run_until(async {
            let boot = "sifr.net.eth0.address=198.51.100.7/24";
            let stage = Stage::begin_with(at.path(), "first", boot, disk);
            let soon = sealed_within(CONFIRM_MIN_S, 1, DEFAULT);
            stage.use_sealed(soon).await;
            let first = stage.confirming(1, Instant::now()).await;
            let again = stage.confirming(1, Instant::now()).await;
            let back = stage.until(|n| n.trial.is_none()).await;
            assert!(back.note.expect("said").contains("a disk does not answer"));
            assert_eq!(stage.address(), "198.51.100.7/24");
            for waiting in [first, again] {
                let refused = waiting.await.expect("answered").expect_err("not kept");
                assert!(
                    refused.message.contains("not kept within 5 s"),
                    "{refused:?}"
                );
            }
            let next = stage
                .propose(sealed(1, DEFAULT))
                .await
                .expect_err("no disk");
            assert_eq!(next.code, RefusalCode::DiskSilent);
            // It answers again: what it was to take is taken from it.
            drop(answers);
            while stage.propose(sealed(1, DEFAULT)).await.is_err() {
                tokio::task::yield_now().await;
            }
            let next = Stage::begin(at.path(), "second", boot);
            assert_eq!(next.address(), "198.51.100.7/24");
            assert_eq!(next.info.borrow().network.version, 0);
        })
        .await;
}

#[tokio::test]
async fn a_boot_that_resets_counts_nothing_that_a_disk_brings_later_in_it() {
    play("", async |stage, at| {
        stage.used(1, DEFAULT).await;
        stage.confirm(1, Instant::now()).await.expect("confirmed");
        // The first agent of the boot opens no pool, the second does.
        let reset = "sifr.net=reset sifr.net.eth0.address=198.51.100.7/24";
        std::fs::rename(at.join("pool"), at.join("away")).expect("away");
        let address = || Stage::begin(at, "second", reset).address();
        assert_eq!(address(), "198.51.100.7/24");
        std::fs::rename(at.join("away"), at.join("pool")).expect("back");
        assert_eq!(address(), "198.51.100.7/24");
    })
    .await;
}
