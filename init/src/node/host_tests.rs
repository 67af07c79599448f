//! The host against a pid1, a chunk daemon and VMMs that the tests play.

use std::os::fd::AsFd;

use tokio::task::LocalSet;
use types::PublicKey;
use types::vm::Exits;
use workload::admission::{LOG_FILE_MAX, Storage, memory_limit};
use workload::host::{Launch, Layer, Record};

use super::super::images::Images;
use super::super::machines::Machines;
use super::super::mesh::Keys;
use super::super::volumes::Volumes;
use super::*;

struct Stage {
    host: NodeHost,
    messages: mpsc::Receiver<Message>,
    pid1: Packets,
    _pool: tempfile::TempDir,
    _uplink: watch::Sender<Uplink>,
}

impl Stage {
    fn new(kvm_problem: Option<&str>) -> Self {
        let pool = tempfile::tempdir().expect("a directory");
        let (news, _) = mpsc::unbounded_channel();
        let (networks_tx, networks) = watch::channel(BTreeSet::new());
        let (ours, theirs) = sys::socket::pair().expect("a pair");
        let packets = |fd| Packets::new(fd, crate::wire::PACKET_MAX).expect("packets");
        let ours = Rc::new(packets(ours));
        let means = Means {
            images: Images::new(news),
            machines: Machines::open(pool.path()).expect("machines"),
            volumes: Volumes::open(pool.path()).expect("volumes"),
            networks,
            kvm_problem: kvm_problem.map(str::to_owned),
            kernel: std::cell::OnceCell::new(),
            storage: Storage::Memory,
            ula: [1, 2, 3, 4, 5],
            ingress: crate::node::ingress::Ingress::new(
                &[1; 32],
                ours.clone(),
                crate::node::certificates::Certificates::open(Vec::new()),
            ),
            keys: Keys::of(&[1; 32]),
        };
        let (_uplink, uplink) = watch::channel(Uplink::default());
        let (host, messages) = NodeHost::new(means, networks_tx, ours, uplink);
        Self {
            host,
            messages,
            pid1: packets(theirs),
            _pool: pool,
            _uplink,
        }
    }

    /// Hears messages until there is an event.
    async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.host.event() {
                return event;
            }
            let message = self.messages.recv().await.expect("a message");
            self.host.hear(message);
        }
    }

    /// Hears all that is on its way now.
    async fn settle(&mut self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
            while let Ok(message) = self.messages.try_recv() {
                self.host.hear(message);
            }
        }
    }

    /// A VM from before. Gives its VMM's end of the control socket.
    fn adopt(&mut self, vm: &VmId, slot: u16, status: Option<Status>) -> OwnedFd {
        let (control, vmm) = sys::socket::pair().expect("a pair");
        self.take_over(vm, slot, control, status);
        vmm
    }

    fn take_over(
        &mut self,
        vm: &VmId,
        slot: u16,
        control: OwnedFd,
        status: Option<Status>,
    ) -> Survivor {
        let (chunks, _) = sys::socket::pair().expect("a pair");
        let tag = serde_json::to_string(&Tag::new(&start())).expect("JSON");
        let fds = vec![control, chunks];
        let adopted = self
            .host
            .adopt(vm.clone(), slot, &tag, status, fds, |_, _| None);
        adopted.expect("adopted")
    }
}

fn start() -> Start {
    let digest = Digest([4; 32]);
    let machine = serde_json::from_str(&format!(r#"{{"image":{{"flist":"{digest}"}}}}"#));
    Start {
        vm: "web-shop-01010101".parse().expect("an id"),
        launch: Launch { digest, version: 1 },
        layer: Layer::Fresh,
        record: Record {
            signer: PublicKey([1; 32]),
            deployment: "shop".parse().expect("a name"),
            workload: "web".parse().expect("a name"),
            incarnation: 0,
            image: digest,
            disk: types::Bytes::mib(64),
            address: [10, 130, 1, 2].into(),
            cards: Vec::new(),
            finished: None,
        },
        machine: machine.expect("a machine"),
        volumes: Vec::new(),
        restarts: 4,
        across: BTreeSet::new(),
    }
}

/// Each test has a VM of its own: what is remembered of it is in a place that all share.
fn vm(name: &str) -> VmId {
    format!("test-{name}-{}", std::process::id())
        .parse()
        .expect("an id")
}

fn say(vmm: &OwnedFd, message: &FromVmm) {
    let packet = serde_json::to_vec(message).expect("JSON");
    sys::socket::send(vmm.as_fd(), &packet, &[]).expect("sent");
}

fn exited(code: i32) -> FromVmm {
    FromVmm::Guest(FromGuest::Exited {
        code,
        signal: None,
        oom_kills: 0,
    })
}

async fn locally(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn an_end_is_known_only_when_all_is_said_and_the_process_is_reaped() {
    locally(async {
        for reaped_first in [true, false] {
            let (mut stage, vm) = (Stage::new(None), vm("end"));
            let vmm = stage.adopt(&vm, 3, None);
            let exit = FromPid1::Exited {
                vm: vm.clone(),
                status: Status::Code(0),
            };
            if reaped_first {
                stage.host.hear_pid1(exit.clone());
                assert_eq!(stage.host.event(), None);
            }
            say(&vmm, &exited(7));
            let reason = StopReason::GuestReset;
            let exits = Exits::default();
            say(&vmm, &FromVmm::Stopped { reason, exits });
            drop(vmm);
            if !reaped_first {
                stage.settle().await;
                assert_eq!(stage.host.event(), None);
                stage.host.hear_pid1(exit);
            }
            let Event::Ended { end, .. } = stage.event().await else {
                panic!("no end")
            };
            assert_eq!(end.exit.map(|e| e.code), Some(7));
            assert_eq!(end.message, None);
            stage.host.begin(Step::Settle {
                vm: vm.clone(),
                record: None,
            });
            let (said, _) = stage
                .pid1
                .receive::<ToPid1>()
                .await
                .expect("packet")
                .expect("open");
            assert_eq!(said, ToPid1::Forget { vm });
        }
    })
    .await;
}

#[tokio::test]
async fn a_vm_that_is_lost_says_how() {
    locally(async {
        let (mut stage, vm) = (Stage::new(None), vm("lost"));
        drop(stage.adopt(&vm, 0, Some(Status::Signal(9))));
        let Event::Ended { end, .. } = stage.event().await else {
            panic!("no end")
        };
        assert_eq!(end.exit, None);
        assert!(end.message.is_some_and(|m| m.contains("signal 9")));
    })
    .await;
}

#[tokio::test]
async fn a_guest_whose_kernel_panicked_is_lost_for_that_reason() {
    locally(async {
        let (mut stage, vm) = (Stage::new(None), vm("panic"));
        let vmm = stage.adopt(&vm, 0, Some(Status::Code(0)));
        let reason = "Attempted to kill init!\u{1b}[2J".to_owned();
        say(&vmm, &FromVmm::Panicked { reason });
        drop(vmm);
        let Event::Ended { end, .. } = stage.event().await else {
            panic!("no end")
        };
        assert_eq!(end.exit, None);
        let says = "the guest's kernel panicked: Attempted to kill init![2J; its log says more";
        assert_eq!(end.message.as_deref(), Some(says));
        stage.host.begin(Step::Settle { vm, record: None });
    })
    .await;
}

#[tokio::test]
async fn what_a_guest_said_to_an_earlier_agent_is_remembered() {
    locally(async {
        let vm = vm("remembered");
        let mut before = Stage::new(None);
        let vmm = before.adopt(&vm, 0, None);
        say(
            &vmm,
            &FromVmm::Guest(FromGuest::Started {
                pid: 2,
                uptime_ms: 5,
            }),
        );
        assert!(matches!(before.event().await, Event::Running { .. }));
        say(&vmm, &exited(0));
        before.settle().await;
        drop(before);
        let mut after = Stage::new(None);
        drop(after.adopt(&vm, 0, Some(Status::Code(0))));
        let Event::Ended { end, .. } = after.event().await else {
            panic!("no end")
        };
        assert_eq!(end.exit.map(|e| e.code), Some(0));
        after.host.begin(Step::Settle {
            vm: vm.clone(),
            record: None,
        });
        assert_eq!(Remains::load(&vm), Remains::default());
    })
    .await;
}

#[tokio::test]
async fn only_a_program_that_was_killed_has_run_out_of_memory() {
    locally(async {
        for (code, signal, oom, noted) in [
            (137, Some(SIGKILL), true, false),
            (0, None, false, true),
            (143, Some(15), false, true),
        ] {
            let (mut stage, vm) = (Stage::new(None), vm("oom"));
            let vmm = stage.adopt(&vm, 0, Some(Status::Code(0)));
            say(
                &vmm,
                &FromVmm::Guest(FromGuest::Exited {
                    code,
                    signal,
                    oom_kills: 2,
                }),
            );
            drop(vmm);
            let Event::Ended { end, .. } = stage.event().await else {
                panic!("no end")
            };
            assert_eq!(end.exit, Some(Exit { code, signal, oom }));
            let says = |m: &String| m.contains("2 processes");
            assert_eq!(end.message.as_ref().is_some_and(says), noted);
            stage.host.begin(Step::Settle { vm, record: None });
        }
    })
    .await;
}

#[tokio::test]
async fn the_next_agent_knows_that_a_guest_settles() {
    locally(async {
        let vm = vm("settles");
        let mut before = Stage::new(None);
        let vmm = before.adopt(&vm, 0, None);
        say(&vmm, &FromVmm::Guest(FromGuest::Settling));
        let settling = Event::Settling { vm: vm.clone() };
        assert_eq!(before.event().await, settling);
        drop(before);
        let mut after = Stage::new(None);
        let _vmm = after.adopt(&vm, 0, None);
        assert_eq!(after.event().await, settling);
        after.host.begin(Step::Settle { vm, record: None });
    })
    .await;
}

#[tokio::test]
async fn an_exit_that_a_dying_agent_has_not_noted_is_heard_by_the_next() {
    locally(async {
        let vm = vm("unheard");
        let mut before = Stage::new(None);
        let (control, vmm) = sys::socket::pair().expect("a pair");
        let kept = control.try_clone().expect("pid1's copy");
        before.take_over(&vm, 0, control, None);
        say(&vmm, &exited(7));
        drop(vmm);
        // The loop dies with this in its hands.
        let _heard = before.messages.recv().await.expect("a message");
        drop(before);
        let mut after = Stage::new(None);
        let survivor = after.take_over(&vm, 0, kept, Some(Status::Code(0)));
        assert_eq!(survivor.restarts, 4);
        let Event::Ended { end, .. } = after.event().await else {
            panic!("no end")
        };
        assert_eq!(end.exit.map(|e| e.code), Some(7));
        after.host.begin(Step::Settle { vm, record: None });
    })
    .await;
}

#[tokio::test]
async fn a_node_without_kvm_says_why_nothing_starts() {
    locally(async {
        let mut stage = Stage::new(Some("enable SVM"));
        stage.host.begin(Step::Start(Box::new(start())));
        let Event::StartFailed { message, .. } = stage.event().await else {
            panic!("it started")
        };
        assert!(message.contains("enable SVM"), "{message}");
    })
    .await;
}

#[test]
fn a_network_that_the_next_plan_removes_is_ready_for_nobody_from_then_on() {
    let start = start();
    let place = workload::host::Placed {
        key: Key {
            signer: start.record.signer,
            name: start.record.deployment,
        },
        workload: start.record.workload,
        cards: vec![workload::host::PlacedCard {
            address: start.record.address,
            internal: false,
        }],
        ports: Vec::new(),
        own: Vec::new(),
    };
    let stays = network::network_of(place.cards[0].address)
        .expect("a network")
        .name;
    let (ready, heard) = watch::channel([stays.clone(), "tenant7".to_owned()].into());
    let keys = Keys::of(&[1; 32]);
    let places = Places {
        machines: [(start.vm, place)].into(),
        ..Places::default()
    };
    let plan = network::plan(&places, &Uplink::default(), [0; 5], &keys);
    keep_planned(&ready, &plan);
    assert_eq!(*heard.borrow(), BTreeSet::from([stays]));
    let nothing = network::plan(&Places::default(), &Uplink::default(), [0; 5], &keys);
    keep_planned(&ready, &nothing);
    assert_eq!(*heard.borrow(), BTreeSet::new());
}

#[tokio::test]
async fn a_start_that_waits_for_its_image_can_be_stopped() {
    locally(async {
        let mut stage = Stage::new(None);
        let start = start();
        stage.host.begin(Step::Start(Box::new(start.clone())));
        assert_eq!(
            stage.event().await,
            Event::Layered {
                vm: start.vm.clone()
            }
        );
        stage.host.begin(Step::Stop {
            vm: start.vm.clone(),
        });
        assert!(matches!(stage.event().await, Event::StartFailed { vm, .. } if vm == start.vm));
        assert!(stage.host.starting.is_empty());
    })
    .await;
}

#[test]
fn a_vmm_may_take_its_machine_and_no_file_longer_than_what_it_writes() {
    let mut start = start();
    start.machine.disk = types::Bytes::mib(64);
    let on = |storage| limits(&start, storage);
    assert_eq!(on(Storage::Disk).file_bytes, 64 << 20);
    let memory = on(Storage::Memory).memory_bytes;
    let expected = memory_limit(&start.machine, types::Bytes(0), Storage::Memory);
    assert_eq!(memory, expected.0);
    start.machine.disk = types::Bytes(0);
    let least = limits(&start, Storage::Disk).file_bytes;
    assert_eq!(least, LOG_FILE_MAX.0, "its log is written, too");
}

#[tokio::test]
async fn a_vm_that_pid1_cannot_start_gives_its_slot_back() {
    locally(async {
        let mut stage = Stage::new(None);
        let _other = stage.adopt(&vm("other"), 0, None);
        let (control, _vmm) = sys::socket::pair().expect("a pair");
        let (chunks, _) = sys::socket::pair().expect("a pair");
        let prepared = |control, chunks| Prepared {
            start: start(),
            child: Vec::new(),
            control,
            chunks,
        };
        stage.host.spawn(prepared(control, chunks)).expect("asked");
        let (said, fds) = stage.pid1.receive::<ToPid1>().await.expect("packet").expect("open");
        let ToPid1::Spawn { slot, limits, .. } = said else {
            panic!("{said:?}")
        };
        assert_eq!((slot, fds.len()), (1, 2), "slot 0 is taken, two descriptors are kept");
        assert_eq!(limits, super::limits(&start(), Storage::Memory));
        let error = "no memory".to_owned();
        stage.host.hear_pid1(FromPid1::SpawnFailed { vm: start().vm, error });
        assert!(matches!(stage.event().await, Event::StartFailed { message, .. } if message.contains("no memory")));
        assert_eq!(stage.host.vms.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_vmm_that_talks_nonsense_without_pause_starves_nobody_and_is_ended() {
    locally(async {
        let (mut stage, vm) = (Stage::new(None), vm("babble"));
        let vmm = stage.adopt(&vm, 0, None);
        sys::socket::set_nonblocking(&vmm).expect("non-blocking");
        while sys::socket::send(vmm.as_fd(), b"{\"dance\":1}", &[]).is_ok() {}
        stage.settle().await;
        let (said, _) = stage
            .pid1
            .receive::<ToPid1>()
            .await
            .expect("packet")
            .expect("open");
        let signal = SIGKILL;
        assert_eq!(
            said,
            ToPid1::Kill {
                vm: vm.clone(),
                signal
            }
        );
        stage.host.hear_pid1(FromPid1::Exited {
            vm: vm.clone(),
            status: Status::Signal(signal),
        });
        let Event::Ended { end, .. } = stage.event().await else {
            panic!("no end")
        };
        assert_eq!(end.message.as_deref(), Some(MISBEHAVED));
        stage.host.begin(Step::Settle { vm, record: None });
    })
    .await;
}

#[tokio::test]
async fn nonsense_from_a_vmm_ends_nothing_and_a_guests_words_are_made_printable() {
    locally(async {
        let (mut stage, vm) = (Stage::new(None), vm("nonsense"));
        let vmm = stage.adopt(&vm, 0, None);
        sys::socket::send(vmm.as_fd(), b"{\"dance\":1}", &[]).expect("sent");
        let message = format!("\u{1b}[2J{}", "x".repeat(2 * TEXT_MAX));
        let stage_name = "mounts".to_owned();
        say(
            &vmm,
            &FromVmm::Guest(FromGuest::SetupFailed {
                stage: stage_name,
                message,
            }),
        );
        say(&vmm, &exited(125));
        drop(vmm);
        stage.host.hear_pid1(FromPid1::Exited {
            vm: vm.clone(),
            status: Status::Code(0),
        });
        let Event::Ended { end, .. } = stage.event().await else {
            panic!("no end")
        };
        let message = end.message.expect("a message");
        assert!(
            message.starts_with("mounts: [2Jxxx") && message.len() == TEXT_MAX,
            "{message:?}"
        );
        stage.host.begin(Step::Settle { vm, record: None });
    })
    .await;
}

/// What a VMM is asked, without waiting.
fn asked(vmm: &OwnedFd) -> Option<ToVmm> {
    let mut packet = vec![0; 4096];
    sys::socket::set_nonblocking(vmm).expect("non-blocking");
    let received = sys::socket::receive(vmm.as_fd(), &mut packet).ok()??;
    serde_json::from_slice(&packet[..received.length]).ok()
}

#[tokio::test]
async fn a_vmm_is_asked_once_for_all_who_want_its_numbers() {
    locally(async {
        let (mut stage, vm) = (Stage::new(None), vm("numbers"));
        let vmm = stage.adopt(&vm, 3, None);
        let first = stage.host.ask_metrics(&vm).expect("asked");
        let second = stage.host.ask_metrics(&vm).expect("waits with it");
        assert_eq!(asked(&vmm), Some(ToVmm::Metrics));
        assert_eq!(asked(&vmm), None);
        let mut machine = metrics::Machine::default();
        machine.exits.pio_in = 7;
        say(&vmm, &FromVmm::Metrics(Box::new(machine.clone())));
        stage.settle().await;
        assert_eq!(
            (first.await, second.await),
            (Ok(machine.clone()), Ok(machine))
        );
        drop(stage.host.ask_metrics(&vm).expect("asked anew"));
        assert_eq!(asked(&vmm), Some(ToVmm::Metrics));
        let gone = FromPid1::Exited {
            vm: vm.clone(),
            status: Status::Code(0),
        };
        stage.host.hear_pid1(gone);
        assert!(stage.host.ask_metrics(&vm).is_none(), "it has ended");
    })
    .await;
}

#[tokio::test]
async fn a_start_is_timed_step_by_step_and_the_next_agent_knows_it() {
    locally(async {
        let (mut stage, vm) = (Stage::new(None), vm("timeline"));
        assert_eq!(stage.host.timeline(&vm), None);
        stage.host.timelines.insert(vm.clone(), Began::now());
        let (control, vmm) = sys::socket::pair().expect("a pair");
        let kept = control.try_clone().expect("a copy");
        stage.take_over(&vm, 4, control, None);
        stage.host.hear_pid1(FromPid1::Spawned {
            vm: vm.clone(),
            pid: 77,
        });
        say(&vmm, &FromVmm::Running { setup_us: 5 });
        say(&vmm, &FromVmm::GuestInit { us: 9 });
        stage.settle().await;
        let timeline = stage.host.timeline(&vm).expect("known");
        assert!(timeline.vmm_ms <= timeline.vcpus_ms && timeline.vmm_ms.is_some());
        assert!(timeline.vcpus_ms <= timeline.guest_init_ms);
        assert_eq!((timeline.image_ms, timeline.program_ms), (None, None));
        let started = FromGuest::Started {
            pid: 2,
            uptime_ms: 5,
        };
        say(&vmm, &FromVmm::Guest(started));
        let event = stage.event().await;
        assert!(matches!(event, Event::Running { .. }), "{event:?}");
        let timeline = stage.host.timeline(&vm);
        assert!(timeline.expect("known").program_ms.is_some());
        drop(stage);
        let mut next = Stage::new(None);
        next.take_over(&vm, 4, kept, None);
        assert_eq!(next.host.timeline(&vm), timeline);
        Remains::remove(&vm);
    })
    .await;
}
