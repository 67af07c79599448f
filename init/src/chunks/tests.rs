//! The daemon against a store that does what a script says, with VMs and a node played by the test.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flist::cache::Cache;
use flist::format::Flist;
use flist::map::{self, Table};
use flist::pack::{Packed, Source, pack};
use flist::store::DirStore;
use flist::trace::{self, Recorder};
use flist::wire::{FromNode, FromVmm, JSON_BYTES_MAX, ToNode, ToVmm};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use types::flist::ImageConfig;
use types::{Bytes, Digest, Stores, VmId};

use super::Paths;
use super::daemon::Daemon;
use super::disk::Disk;
use super::link::{self, Socket};
use super::queue::WRONG_MAX;
use super::scrub::Pace;
use crate::room::{Promises, Room};

/// Longer than anything here takes, so that a failure ends the test.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing tells that nothing comes: longer than back-filling waits for VMs that wait.
const NOTHING_COMES: Duration = Duration::from_secs(2);
const CHUNKS: u32 = 8;
/// A scrub that reads the whole cache again and again while a test looks.
const AT_ONCE: Pace = Pace {
    bytes_per_second: 1 << 30,
    idle: Duration::from_millis(1),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Content,
    Status(u16),
    WrongBytes,
    /// Half of the content, then the connection closes.
    Cut,
    /// Shorter content, correctly announced.
    Short,
}

/// Answers each request as the script says; where it is used up, with content.
#[derive(Debug, Default)]
struct Script {
    next: Vec<Answer>,
    always: Option<Answer>,
    requests: HashMap<String, u32>,
    connections: u32,
    delay: Duration,
    /// Told of each request.
    asked: Arc<Notify>,
}

struct World {
    work: TempDir,
    packed: Packed,
    flist: Flist,
    store: DirStore,
    script: Arc<Mutex<Script>>,
    url: String,
    _server: JoinHandle<()>,
}

fn set_up(work: &Path) -> (Packed, DirStore) {
    let root = work.join("root");
    fs::create_dir(&root).expect("directory");
    for i in 0..CHUNKS {
        let mut content = vec![0; 512 << 10];
        blake3::Hasher::new()
            .update(&i.to_le_bytes())
            .finalize_xof()
            .fill(&mut content[..300_000]);
        fs::write(root.join(format!("f{i}")), content).expect("file");
    }
    let mut store = DirStore::open(work.join("store")).expect("store");
    let source = Source::Directory(&root);
    let packed = pack(source, &ImageConfig::default(), &mut store, &mut |_| {}).expect("packs");
    store
        .put_flist(&packed.digest, &packed.flist)
        .expect("stored");
    (packed, store)
}

async fn world() -> World {
    let work = TempDir::new().expect("temp");
    let (packed, store) = set_up(work.path());
    let flist = Flist::read(&mut std::io::Cursor::new(&packed.flist)).expect("valid");
    assert_eq!(flist.chunks().len(), CHUNKS as usize);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let script = Arc::new(Mutex::new(Script::default()));
    let server = tokio::spawn(serve(
        listener,
        work.path().join("store"),
        Arc::clone(&script),
    ));
    World {
        work,
        packed,
        flist,
        store,
        script,
        url,
        _server: server,
    }
}

async fn serve(listener: TcpListener, root: std::path::PathBuf, script: Arc<Mutex<Script>>) {
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        script.lock().expect("lock").connections += 1;
        let (root, script) = (root.clone(), Arc::clone(&script));
        tokio::spawn(async move {
            // A client that hangs up is no failure of the store.
            let _ = serve_one(stream, &root, &script).await;
        });
    }
}

async fn serve_one(
    mut stream: TcpStream,
    root: &Path,
    script: &Mutex<Script>,
) -> std::io::Result<()> {
    loop {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await?);
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let path = text
            .split(' ')
            .nth(1)
            .expect("path")
            .trim_start_matches('/')
            .to_owned();
        let (answer, delay) = {
            let mut script = script.lock().expect("lock");
            *script.requests.entry(path.clone()).or_default() += 1;
            script.asked.notify_waiters();
            // No script is about traces: there is one or not.
            if path.ends_with(".trace") {
                let found = root.join(&path).exists();
                let answer = if found {
                    Answer::Content
                } else {
                    Answer::Status(404)
                };
                (answer, Duration::ZERO)
            } else {
                let next = (!script.next.is_empty()).then(|| script.next.remove(0));
                let answer = next.or(script.always).unwrap_or(Answer::Content);
                (answer, script.delay)
            }
        };
        tokio::time::sleep(delay).await;
        let content = fs::read(root.join(&path)).unwrap_or_default();
        let (status, sent, said) = match answer {
            Answer::Content => (200, content.clone(), content.len()),
            Answer::Status(status) => (status, Vec::new(), 0),
            Answer::WrongBytes => (200, vec![b'x'; content.len()], content.len()),
            Answer::Cut => (200, content[..content.len() / 2].to_vec(), content.len()),
            Answer::Short => (
                200,
                content[..content.len() / 2].to_vec(),
                content.len() / 2,
            ),
        };
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {said}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&sent).await?;
        if sent.len() != said {
            return Ok(());
        }
    }
}

/// One end of a packet socket.
struct Peer(Socket);

impl Peer {
    fn new(fd: OwnedFd) -> Self {
        Self(link::socket(fd).expect("epoll"))
    }

    async fn send(&self, packet: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let write = |fd: &OwnedFd| sys::socket::send(fd.as_fd(), packet, &fds);
        self.0
            .async_io(Interest::WRITABLE, write)
            .await
            .expect("send");
    }

    /// `None`: closed.
    async fn receive(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; JSON_BYTES_MAX];
        let read = |fd: &OwnedFd| sys::socket::receive(fd.as_fd(), &mut buffer);
        let io = self.0.async_io(Interest::READABLE, read);
        let packet = tokio::time::timeout(PATIENCE, io)
            .await
            .expect("in time")
            .ok()??;
        buffer.truncate(packet.length);
        Some((buffer, packet.fds))
    }

    async fn want(&self, index: u32) {
        self.send(&FromVmm::Want(index).encode(), &[]).await;
    }

    async fn told(&self) -> ToVmm {
        ToVmm::decode(&self.receive().await.expect("open").0).expect("valid")
    }
}

/// A daemon with the node connected to it.
struct Running {
    daemon: JoinHandle<()>,
    node: Peer,
}

impl Running {
    async fn start(world: &World) -> Self {
        Self::start_at(world, Pace::OF_A_NODE).await
    }

    /// The same with another pace of the scrub.
    async fn start_at(world: &World, pace: Pace) -> Self {
        Self::start_as(world, |paths, listener| {
            let daemon = Daemon::new(paths, listener, pace).expect("a daemon");
            tokio::spawn(async move {
                let ended = daemon.run().await;
                panic!("{ended:?}");
            })
        })
    }

    fn start_as(world: &World, start: impl FnOnce(Paths, OwnedFd) -> JoinHandle<()>) -> Self {
        let paths = Paths {
            room: world.room(),
            promises: world.work.path().join("room"),
            pool: world.work.path().join("pool"),
            maps: world.work.path().join("maps"),
            socket: world.work.path().join("socket"),
        };
        let listener = sys::seqpacket::listen(&paths.socket).expect("listens");
        let daemon = start(paths.clone(), listener);
        let node = Peer::new(sys::seqpacket::connect(&paths.socket).expect("connect"));
        Self { daemon, node }
    }

    async fn say(&self, message: FromNode, fds: &[OwnedFd]) {
        self.node
            .send(&serde_json::to_vec(&message).expect("json"), fds)
            .await;
    }

    async fn told(&self) -> (ToNode, Vec<OwnedFd>) {
        let (packet, fds) = self.node.receive().await.expect("open");
        (serde_json::from_slice(&packet).expect("json"), fds)
    }

    /// The next message that is no progress report.
    async fn news(&self) -> ToNode {
        loop {
            match self.told().await.0 {
                ToNode::Progress { .. } | ToNode::Counted { .. } => {}
                other => return other,
            }
        }
    }

    async fn open(&self, world: &World, store: Option<&str>, pin: bool) -> Shown {
        let (flist, store) = (world.packed.digest, store.map(Stores::from));
        self.say(FromNode::Open { flist, store, pin }, &[]).await;
        let (message, fds) = loop {
            // What was under way before may be told first.
            match self.told().await {
                (ToNode::Progress { .. } | ToNode::Counted { .. }, _) => {}
                other => break other,
            }
        };
        let ToNode::Opened {
            disk_bytes,
            present,
            total,
            ..
        } = message
        else {
            panic!("{message:?}");
        };
        assert_eq!(
            (disk_bytes, total),
            (world.flist.disk_bytes(), u64::from(CHUNKS))
        );
        let [image, map] = <[OwnedFd; 2]>::try_from(fds)
            .expect("two files")
            .map(File::from);
        Shown {
            image,
            map,
            present,
        }
    }

    /// A VM whose socket outlives the daemon, as pid1 makes it so.
    async fn attach(&self, world: &World, name: &str) -> (Peer, OwnedFd) {
        let (vm_end, daemon_end) = sys::socket::pair().expect("pair");
        let vm = Peer::new(vm_end);
        self.attach_again(world, name, &daemon_end).await;
        assert_eq!(vm.told().await, ToVmm::Hello);
        (vm, daemon_end)
    }

    async fn attach_again(&self, world: &World, name: &str, daemon_end: &OwnedFd) {
        let vm: VmId = name.parse().expect("id");
        let flist = world.packed.digest;
        let copy = daemon_end.try_clone().expect("dup");
        self.say(
            FromNode::Attach {
                vm: vm.clone(),
                flist,
            },
            &[copy],
        )
        .await;
        assert_eq!(self.news().await, ToNode::Attached { vm });
    }

    async fn kill(self) {
        self.daemon.abort();
        let ended = self.daemon.await;
        assert!(ended.is_err_and(|e| e.is_cancelled()), "it ran until now");
    }
}

/// What a VMM sees.
struct Shown {
    image: File,
    map: File,
    present: u64,
}

impl Shown {
    fn is_present(&self, index: u32) -> bool {
        let length = self.map.metadata().expect("stat").len();
        let mut bytes = vec![0; usize::try_from(length).expect("small")];
        self.map.read_exact_at(&mut bytes, 0).expect("read");
        let table = Table::decode(&bytes).expect("valid");
        bytes[table.states_offset() + index as usize] == map::PRESENT
    }

    fn assert_holds(&self, world: &World, index: u32) {
        let chunk = world.flist.chunks()[index as usize];
        let expected = chunk.open(&world.store.read_chunk(&chunk.stored).expect("there"));
        let mut bytes = vec![0; usize::try_from(chunk.extent.bytes()).expect("small")];
        self.image
            .read_exact_at(&mut bytes, chunk.extent.start())
            .expect("read");
        assert!(
            bytes == expected.expect("intact"),
            "content of chunk {index}"
        );
        assert!(self.is_present(index));
    }
}

impl World {
    fn room(&self) -> Room {
        let work = self.work.path();
        Room::new(&work.join("pool"), &work.join("room/promises.json"))
    }

    /// Promises a machine more than any disk has, or nothing.
    fn fill_pool(&self, full: bool) {
        let all = ("m".parse().expect("an id"), Bytes(u64::MAX));
        let machines = full.then_some(all).into_iter().collect();
        let images = Default::default();
        let promised = self.room().promise(&Promises {
            machines,
            images,
            ..Promises::default()
        });
        promised.expect("promised");
    }

    fn cache(&self) -> Cache {
        Cache::open(self.work.path().join("pool")).expect("cache")
    }

    fn stored(&self, index: u32) -> Digest {
        self.flist.chunks()[index as usize].stored
    }

    fn push_all(&self) {
        let cache = self.cache();
        for stored in cache
            .put_flist(self.packed.digest, &self.packed.flist)
            .expect("valid")
        {
            let bytes = self.store.read_chunk(&stored).expect("there");
            cache.put_chunk(stored, &bytes).expect("valid");
        }
    }

    fn requests(&self, index: u32) -> u32 {
        let path = flist::chunk::object_path(&self.stored(index));
        self.script
            .lock()
            .expect("lock")
            .requests
            .get(&path)
            .copied()
            .unwrap_or(0)
    }

    fn script(&self, next: &[Answer], always: Option<Answer>) {
        let mut script = self.script.lock().expect("lock");
        script.next = next.to_vec();
        script.always = always;
    }
}

#[tokio::test]
async fn a_chunk_in_the_cache_comes_without_a_store() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    assert_eq!(shown.present, u64::from(CHUNKS));
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    assert!(!shown.is_present(3));
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Ready(3));
    shown.assert_holds(&w, 3);
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Ready(3));
    assert!(!shown.is_present(2));
}

#[tokio::test]
async fn what_many_vms_want_is_fetched_once_verified_and_kept() {
    let w = world().await;
    w.script.lock().expect("lock").delay = Duration::from_millis(50);
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    assert_eq!(shown.present, 0);
    let mut vms = Vec::new();
    for name in ["a", "b", "c"] {
        vms.push(daemon.attach(&w, name).await);
    }
    for index in 0..CHUNKS {
        for (vm, _) in &vms {
            vm.want(index).await;
        }
    }
    for (vm, _) in &vms {
        let mut ready = Vec::new();
        for _ in 0..CHUNKS {
            let ToVmm::Ready(index) = vm.told().await else {
                panic!("not ready")
            };
            ready.push(index);
        }
        ready.sort_unstable();
        assert_eq!(ready, (0..CHUNKS).collect::<Vec<_>>());
    }
    daemon.filled().await;
    for index in 0..CHUNKS {
        shown.assert_holds(&w, index);
        assert_eq!(w.requests(index), 1);
    }
    assert!(w.cache().missing(&w.flist).is_empty());
}

#[tokio::test]
async fn a_store_that_fails_and_recovers_costs_the_vm_only_time() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    w.script(
        &[
            Answer::Status(500),
            Answer::Cut,
            Answer::Status(503),
            Answer::WrongBytes,
        ],
        None,
    );
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    shown.assert_holds(&w, 0);
    assert_eq!(w.requests(0), 5);
}

#[tokio::test]
async fn wrong_bytes_are_never_shown_and_the_next_want_tries_again() {
    for answer in [Answer::WrongBytes, Answer::Status(404), Answer::Short] {
        let w = world().await;
        let daemon = Running::start(&w).await;
        let shown = daemon.open(&w, Some(&w.url), false).await;
        let (vm, _kept) = daemon.attach(&w, "vm").await;
        w.script(&[], Some(answer));
        vm.want(5).await;
        assert_eq!(vm.told().await, ToVmm::Failed(5));
        let news = daemon.news().await;
        let ToNode::Fault { chunk, .. } = news else {
            panic!("{news:?}")
        };
        assert_eq!((chunk, w.requests(5)), (w.stored(5), WRONG_MAX));
        assert!(!shown.is_present(5));
        w.script(&[], None);
        vm.want(5).await;
        assert_eq!(vm.told().await, ToVmm::Ready(5));
        shown.assert_holds(&w, 5);
    }
}

#[tokio::test]
async fn without_a_store_a_missing_chunk_says_what_to_do() {
    let w = world().await;
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(1).await;
    assert_eq!(vm.told().await, ToVmm::Failed(1));
    let news = daemon.news().await;
    let ToNode::Fault { message, .. } = news else {
        panic!("{news:?}")
    };
    assert!(message.contains("sifr deploy"), "{message}");
    // Pushed meanwhile, it is found.
    let bytes = w.store.read_chunk(&w.stored(1)).expect("there");
    w.cache().put_chunk(w.stored(1), &bytes).expect("valid");
    vm.want(1).await;
    assert_eq!(vm.told().await, ToVmm::Ready(1));
}

#[tokio::test]
async fn a_vm_waits_for_a_store_that_is_down_until_it_is_up() {
    let w = world().await;
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let reserved = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = reserved.local_addr().expect("address");
    drop(reserved);
    let daemon = Running::start(&w).await;
    let url = format!("http://{address}/");
    let shown = daemon.open(&w, Some(&url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(2).await;
    let quiet = tokio::time::timeout(Duration::from_millis(500), vm.told()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let listener = TcpListener::bind(address).await.expect("bind");
    tokio::spawn(serve(
        listener,
        w.work.path().join("store"),
        Arc::clone(&w.script),
    ));
    assert_eq!(vm.told().await, ToVmm::Ready(2));
    shown.assert_holds(&w, 2);
}

#[tokio::test]
async fn a_damaged_cached_chunk_is_fetched_again_or_reported() {
    for (with_store, expected) in [(true, ToVmm::Ready(4)), (false, ToVmm::Failed(4))] {
        let w = world().await;
        w.push_all();
        let path = w.cache().chunk_path(&w.stored(4));
        let mut bytes = fs::read(&path).expect("read");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("write");
        let daemon = Running::start(&w).await;
        let shown = daemon
            .open(&w, with_store.then_some(w.url.as_str()), true)
            .await;
        let (vm, _kept) = daemon.attach(&w, "vm").await;
        vm.want(4).await;
        assert_eq!(vm.told().await, expected);
        if with_store {
            shown.assert_holds(&w, 4);
        } else {
            let news = daemon.news().await;
            assert!(matches!(news, ToNode::Fault { .. }), "{news:?}");
            assert!(!path.exists());
        }
    }
}

#[tokio::test]
async fn a_daemon_killed_after_the_bytes_and_before_the_state_leaves_no_wrong_byte() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    daemon.kill().await;
    // What a daemon leaves that dies there, torn bytes included.
    let maps = w.work.path().join("maps");
    let disk = Disk::open(&w.cache(), &maps, &w.room(), w.packed.digest).expect("kept");
    disk.write(6, &[0xee; 5000]).expect("write");
    drop(disk);
    assert!(!shown.is_present(6));
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(6).await;
    assert_eq!(vm.told().await, ToVmm::Ready(6));
    shown.assert_holds(&w, 6);
}

#[tokio::test]
async fn a_restarted_daemon_goes_on_with_the_same_disk_and_the_vm_asks_again() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, kept) = daemon.attach(&w, "vm").await;
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    w.script.lock().expect("lock").delay = Duration::from_secs(60);
    vm.want(1).await;
    w.until_asked(|w| w.requests(1) > 0).await;
    daemon.kill().await;
    w.script.lock().expect("lock").delay = Duration::ZERO;

    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), false).await;
    daemon.attach_again(&w, "vm", &kept).await;
    assert_eq!(vm.told().await, ToVmm::Hello);
    vm.want(1).await;
    assert_eq!(vm.told().await, ToVmm::Ready(1));
    // The VM's first descriptors still show everything.
    shown.assert_holds(&w, 0);
    shown.assert_holds(&w, 1);
    assert_eq!(w.requests(0), 1);
}

#[tokio::test]
async fn after_a_boot_the_disk_is_made_anew() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    daemon.kill().await;
    fs::remove_dir_all(w.work.path().join("maps")).expect("a tmpfs forgets");
    let image = w.cache().image(&w.packed.digest).expect("there");
    image.write_all_at(&[0xee; 4096], 0).expect("a power cut");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    assert!(!shown.is_present(0));
    let mut start = [1; 1024];
    shown.image.read_exact_at(&mut start, 0).expect("read");
    assert_eq!(start, [0; 1024]);
}

#[tokio::test]
async fn a_pinned_flist_is_filled_when_its_vm_is_gone_even_after_the_store_was_down() {
    let w = world().await;
    w.script(&[], Some(Answer::Status(503)));
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), true).await;
    daemon.attach(&w, "vm").await;
    let vm = "vm".parse().expect("id");
    daemon.say(FromNode::Detach { vm }, &[]).await;
    w.until_asked(|w| w.all_requests() > 0).await;
    w.script(&[], None);
    daemon.filled().await;
    assert!(w.cache().missing(&w.flist).is_empty());
    assert!(
        !shown.is_present(0),
        "filling is for the cache, not for the disk"
    );
}

#[tokio::test]
async fn while_its_vm_starts_an_image_is_not_filled_and_once_it_has_started_it_is() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [5]).await;
    let started = FromNode::Started {
        vm: "vm".parse().expect("id"),
    };
    daemon.say(started, &[]).await;
    tokio::time::sleep(NOTHING_COMES).await;
    daemon.ask_all(&vm, [2]).await;
    // The same image opened for a second VM: it is the same start.
    daemon.open(&w, Some(&w.url), true).await;
    tokio::time::sleep(NOTHING_COMES).await;
    assert_eq!(w.all_requests(), 2, "what was touched, and nothing else");
    let filled = tokio::time::timeout(trace::QUIET + PATIENCE, daemon.filled());
    filled.await.expect("it is filled");
    assert_eq!(w.all_requests(), CHUNKS);
}

#[tokio::test]
async fn an_flist_comes_from_its_store_and_a_wrong_one_does_not_open() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    w.script(&[Answer::WrongBytes], None);
    let (flist, store) = (w.packed.digest, Some(Stores::from(w.url.as_str())));
    daemon
        .say(
            FromNode::Open {
                flist,
                store: store.clone(),
                pin: false,
            },
            &[],
        )
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::OpenFailed { .. }), "{news:?}");
    daemon.open(&w, Some(&w.url), false).await;
    let directory = Some(Stores::from("/srv/store"));
    daemon
        .say(
            FromNode::Open {
                flist,
                store: directory,
                pin: false,
            },
            &[],
        )
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::OpenFailed { .. }), "{news:?}");
    let (vm, unknown) = ("vm".parse().expect("id"), Digest([1; 32]));
    daemon
        .say(FromNode::Attach { vm, flist: unknown }, &[])
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
}

#[tokio::test]
async fn a_vm_that_talks_nonsense_loses_its_socket_and_no_other_notices() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    for packet in [
        &FromVmm::Want(CHUNKS).encode()[..],
        b"short",
        &[9; 16],
        &[0; 200],
    ] {
        let (bad, bad_end) = daemon.attach(&w, "bad").await;
        drop(bad_end);
        bad.send(packet, &[]).await;
        assert!(bad.receive().await.is_none());
    }
    let (good, _kept) = daemon.attach(&w, "good").await;
    // Many more than may be outstanding, before one answer is read.
    for _ in 0..300 {
        good.want(0).await;
    }
    for _ in 0..300 {
        assert_eq!(good.told().await, ToVmm::Ready(0));
    }
}

#[tokio::test]
async fn a_closed_flist_is_removed_once_no_vm_uses_it() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    let (_vm, _kept) = daemon.attach(&w, "vm").await;
    let flist = w.packed.digest;
    let image = w.cache().image_path(&flist);
    daemon.say(FromNode::Close { flist }, &[]).await;
    daemon.open(&w, None, true).await;
    assert!(image.exists());
    daemon
        .say(
            FromNode::Detach {
                vm: "vm".parse().expect("id"),
            },
            &[],
        )
        .await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    let (vm, unknown) = ("x".parse().expect("id"), flist);
    daemon
        .say(FromNode::Attach { vm, flist: unknown }, &[])
        .await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
    assert!(!image.exists());
}

#[tokio::test]
async fn an_flist_that_is_closed_while_it_is_opened_leaves_no_disk_behind() {
    let w = world().await;
    w.push_all();
    w.script.lock().expect("lock").delay = Duration::from_millis(50);
    let daemon = Running::start(&w).await;
    let flist = w.packed.digest;
    let open = || FromNode::Open {
        flist,
        store: None,
        pin: true,
    };
    daemon.say(open(), &[]).await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::Opened { .. }), "{news:?}");
    let vm = "x".parse().expect("an id");
    let (socket, _peer) = sys::socket::pair().expect("a pair");
    daemon.say(FromNode::Attach { vm, flist }, &[socket]).await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
    assert!(!w.cache().image_path(&flist).exists());
    // Opened again, closed or not before, it is there.
    daemon.say(open(), &[]).await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    daemon.say(open(), &[]).await;
    for _ in 0..2 {
        let news = daemon.news().await;
        assert!(matches!(news, ToNode::Opened { .. }), "{news:?}");
    }
    let (_vm, _kept) = daemon.attach(&w, "vm").await;
}

#[tokio::test]
async fn disks_of_an_earlier_boot_go_when_the_node_comes_whatever_it_opens() {
    let w = world().await;
    let old = w.cache().image_path(&Digest([9; 32]));
    fs::write(&old, b"old").expect("written");
    let daemon = Running::start(&w).await;
    let (vm, flist) = ("x".parse().expect("an id"), w.packed.digest);
    daemon.say(FromNode::Attach { vm, flist }, &[]).await;
    let news = daemon.news().await;
    assert!(matches!(news, ToNode::AttachFailed { .. }), "{news:?}");
    assert!(!old.exists());
}

#[tokio::test]
async fn an_image_is_not_made_where_machines_were_promised_its_room() {
    let w = world().await;
    w.push_all();
    w.fill_pool(true);
    let daemon = Running::start(&w).await;
    let open = FromNode::Open {
        flist: w.packed.digest,
        store: None,
        pin: true,
    };
    daemon.say(open, &[]).await;
    let ToNode::OpenFailed { error, .. } = daemon.news().await else {
        panic!("there was no room")
    };
    assert!(error.contains("promised to nobody"), "{error}");
    assert!(w.cache().images().is_empty());
    w.fill_pool(false);
    daemon.open(&w, None, true).await;
}

#[tokio::test]
async fn a_vm_is_served_where_there_is_no_room_to_keep_the_chunk() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    w.fill_pool(true);
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Ready(3));
    shown.assert_holds(&w, 3);
    let ToNode::Fault { message, .. } = daemon.news().await else {
        panic!("nothing was said")
    };
    assert!(message.contains("no room"), "{message}");
    assert!(!w.cache().has(&w.flist.chunks()[3]));
}

#[tokio::test]
async fn disks_of_an_earlier_boot_are_removed() {
    let w = world().await;
    w.push_all();
    let stale = w.cache().image_path(&Digest([9; 32]));
    fs::write(&stale, "old").expect("written");
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    assert_eq!(w.cache().images(), [w.packed.digest]);
    daemon.kill().await;
    // Those of this boot have a map, and stay.
    let daemon = Running::start(&w).await;
    daemon.open(&w, None, true).await;
    assert_eq!(w.cache().images(), [w.packed.digest]);
}

/// All that a daemon does, with one whose thread `confine` has confined when its paths are there.
pub(super) async fn all_work(confine: impl FnOnce(&Paths) + Send + 'static) {
    let w = world().await;
    w.fill_pool(false);
    w.cache();
    for directory in ["maps", "pool/machines/web-shop-01010101"] {
        fs::create_dir_all(w.work.path().join(directory)).expect("a directory");
    }
    // Of an earlier boot.
    fs::write(w.cache().image_path(&Digest([9; 32])), b"old").expect("written");
    let daemon = Running::start_as(&w, |paths, listener| {
        tokio::task::spawn_blocking(move || {
            confine(&paths);
            let ended = super::serve(paths, listener);
            panic!("{ended:?}");
        })
    });
    let shown = daemon.open(&w, Some(&w.url), false).await;
    assert!(!w.cache().image_path(&Digest([9; 32])).exists());
    let (vm, kept) = daemon.attach(&w, "vm").await;
    w.script(&[Answer::Cut, Answer::Status(500)], None);
    for index in 0..CHUNKS {
        vm.want(index).await;
        assert_eq!(vm.told().await, ToVmm::Ready(index));
        shown.assert_holds(&w, index);
    }
    // By name: a look-up, whatever comes of it.
    let named = w.url.replace("127.0.0.1", "localhost");
    if cfg!(not(target_env = "gnu")) {
        daemon.open(&w, Some(&named), true).await;
    }
    drop((vm, kept));
    let flist = w.packed.digest;
    let detach = FromNode::Detach {
        vm: "vm".parse().expect("an id"),
    };
    daemon.say(detach, &[]).await;
    daemon.say(FromNode::Close { flist }, &[]).await;
    // The cache has all of it, and a damaged chunk is made good from the store.
    fs::write(w.cache().chunk_path(&w.stored(0)), b"damaged").expect("written");
    let shown = daemon.open(&w, Some(&w.url), true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(0).await;
    assert_eq!(vm.told().await, ToVmm::Ready(0));
    shown.assert_holds(&w, 0);
}

impl Running {
    async fn ask_all(&self, vm: &Peer, chunks: impl IntoIterator<Item = u32>) {
        for index in chunks {
            vm.want(index).await;
            assert_eq!(vm.told().await, ToVmm::Ready(index));
        }
    }

    /// Reads until all of the image is in the cache.
    async fn filled(&self) {
        loop {
            let (message, _) = self.told().await;
            if matches!(message, ToNode::Progress { present, total, .. } if present == total) {
                return;
            }
        }
    }
}

impl Shown {
    /// Waits for what comes although nobody asked: of whatever a job has brought the node is told afterwards.
    async fn comes(&self, daemon: &Running, index: u32) {
        while !self.is_present(index) {
            daemon.told().await;
        }
    }
}

impl World {
    /// Waits until the store has been asked for enough.
    async fn until_asked(&self, enough: impl Fn(&Self) -> bool) {
        let notify = Arc::clone(&self.script.lock().expect("lock").asked);
        let asked = async {
            loop {
                let next = notify.notified();
                if enough(self) {
                    return;
                }
                next.await;
            }
        };
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        asked.expect("it is asked for");
    }

    /// Waits until the image's trace is in the cache.
    async fn trace_kept(&self) -> trace::Trace {
        let cache = self.cache();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
        let flists = self.work.path().join("pool/flists");
        let named = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(&flists, named).expect("a watch");
        let watched = inotify.as_fd().try_clone_to_owned().expect("dup");
        let changed = link::socket(watched).expect("epoll");
        let kept = async {
            loop {
                if let Some(trace) = cache.trace(&self.packed.digest, CHUNKS as usize) {
                    return trace;
                }
                changed.readable().await.expect("epoll").clear_ready();
                inotify.read_events().expect("events");
            }
        };
        let kept = tokio::time::timeout(trace::QUIET + PATIENCE, kept).await;
        kept.expect("it is over")
    }

    fn all_requests(&self) -> u32 {
        let script = self.script.lock().expect("lock");
        let chunks = script
            .requests
            .iter()
            .filter(|(p, _)| p.starts_with("chunks/"));
        chunks.map(|(_, count)| count).sum()
    }

    fn publish_trace(&self, chunks: &[u32]) {
        let mut recorder = Recorder::default();
        chunks
            .iter()
            .for_each(|c| recorder.touch(*c, Duration::ZERO));
        let trace = recorder.finish(self.packed.digest);
        let path = self.work.path().join("store");
        let path = path.join(trace::object(&self.packed.digest));
        fs::write(path, trace.encode()).expect("written");
    }
}

#[tokio::test]
async fn a_whole_image_comes_over_as_few_connections_as_there_are_jobs() {
    let w = world().await;
    w.script.lock().expect("lock").delay = Duration::from_millis(5);
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), true).await;
    let (a, _kept) = daemon.attach(&w, "a").await;
    let (b, _kept_too) = daemon.attach(&w, "b").await;
    for (mine, others) in [(0, 7), (5, 2), (3, 6), (1, 4)] {
        daemon.ask_all(&a, [mine]).await;
        daemon.ask_all(&b, [others]).await;
    }
    daemon.filled().await;
    assert_eq!(w.all_requests(), CHUNKS, "each chunk once, for both");
    let connections = w.script.lock().expect("lock").connections;
    // One at a time, and beside it what is guessed and the question for a trace.
    assert!((1..=3).contains(&connections), "{connections}");
}

#[tokio::test]
async fn what_is_read_in_sequence_comes_ahead_and_random_reads_bring_nothing_else() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [7, 4, 6]).await;
    daemon.ask_all(&vm, [0]).await;
    assert_eq!(w.all_requests(), 4);
    daemon.ask_all(&vm, [1]).await;
    shown.comes(&daemon, 2).await;
    shown.assert_holds(&w, 2);
    assert!(!shown.is_present(3) && !shown.is_present(5));
    daemon.ask_all(&vm, [3]).await;
    shown.comes(&daemon, 5).await;
    assert_eq!(w.all_requests(), CHUNKS, "none twice");
}

#[tokio::test]
async fn a_first_run_is_taken_down_and_the_next_one_finds_its_chunks_there_unasked() {
    let w = world().await;
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    let order = [5, 0, 2, 7];
    daemon.ask_all(&vm, order).await;
    assert_eq!(w.trace_kept().await.chunks(), order);
    daemon.kill().await;
    // A boot; the store is gone, the cache is not.
    fs::remove_dir_all(w.work.path().join("maps")).expect("a tmpfs forgets");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, None, true).await;
    for index in order {
        shown.comes(&daemon, index).await;
        shown.assert_holds(&w, index);
    }
    assert!(!shown.is_present(1), "it was not touched");
}

#[tokio::test]
async fn the_trace_of_a_store_brings_its_chunks_in_its_order_before_a_vm_is_there() {
    let w = world().await;
    w.publish_trace(&[6, 1, 4]);
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    for index in [6, 1, 4] {
        shown.comes(&daemon, index).await;
        shown.assert_holds(&w, index);
    }
    assert_eq!(w.all_requests(), 3);
    let cache = w.cache();
    assert!(cache.trace(&w.packed.digest, CHUNKS as usize).is_some());
}

#[tokio::test]
async fn a_trace_that_is_none_or_lies_harms_nobody() {
    let w = world().await;
    let path = w.work.path().join("store");
    let path = path.join(trace::object(&w.packed.digest));
    fs::write(path, b"SIFRTRC1 and nothing true").expect("written");
    let daemon = Running::start(&w).await;
    let shown = daemon.open(&w, Some(&w.url), false).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [3]).await;
    shown.assert_holds(&w, 3);
    assert_eq!(w.all_requests(), 1);
    let cache = w.cache();
    assert!(cache.trace(&w.packed.digest, CHUNKS as usize).is_none());
}

#[tokio::test]
async fn what_a_trace_names_and_the_store_lacks_is_no_fault_until_a_vm_wants_it() {
    let w = world().await;
    w.publish_trace(&[2]);
    w.script(&[], Some(Answer::Status(404)));
    w.cache()
        .put_flist(w.packed.digest, &w.packed.flist)
        .expect("valid");
    let daemon = Running::start(&w).await;
    daemon.open(&w, Some(&w.url), false).await;
    w.until_asked(|w| w.requests(2) > 0).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    assert_eq!(w.requests(2), 1, "once, for a guess");
    w.script(&[], None);
    daemon.ask_all(&vm, [2]).await;
}

impl World {
    /// One bit of a chunk in the cache is another, as a disk does it.
    fn damage(&self, index: u32) {
        let path = self.cache().chunk_path(&self.stored(index));
        let mut bytes = fs::read(&path).expect("read");
        bytes[100] ^= 1;
        fs::write(&path, bytes).expect("write");
    }

    fn is_cached(&self, index: u32) -> bool {
        self.cache().chunk_path(&self.stored(index)).exists()
    }
}

impl Running {
    /// Reads until the daemon has counted so many damaged chunks, and all that is pinned is there again. Gives what was
    /// fetched.
    async fn scrubbed(&self, damaged: u64) -> u64 {
        let mut whole = true;
        loop {
            match self.told().await.0 {
                ToNode::Progress { present, total, .. } => whole = present == total,
                ToNode::Counted { counts } if counts.damaged == damaged && whole => {
                    return counts.fetched;
                }
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_is_fetched_again_where_it_is_pinned_and_no_vm_sees_it() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    let shown = daemon.open(&w, Some(&w.url), true).await;
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    daemon.ask_all(&vm, [4]).await;
    w.damage(2);
    w.damage(4);
    assert_eq!(daemon.scrubbed(2).await, 2, "these two, and no other");
    assert_eq!((w.requests(2), w.requests(4), w.all_requests()), (1, 1, 2));
    assert!(w.cache().missing(&w.flist).is_empty());
    // What was on the machine's disk before stays; what was not comes right.
    shown.assert_holds(&w, 4);
    daemon.ask_all(&vm, [2]).await;
    shown.assert_holds(&w, 2);
    assert_eq!(w.all_requests(), 2, "it was here again");
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_and_no_store_has_is_said_with_what_to_do() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    daemon.open(&w, None, true).await;
    w.damage(3);
    let ToNode::Fault { chunk, message, .. } = daemon.news().await else {
        panic!("nothing was said")
    };
    assert_eq!(chunk, w.stored(3));
    assert!(
        message.contains("push it again with `sifr deploy`"),
        "{message}"
    );
    assert!(!w.is_cached(3), "what is wrong is not kept");
    let (vm, _kept) = daemon.attach(&w, "vm").await;
    vm.want(3).await;
    assert_eq!(vm.told().await, ToVmm::Failed(3));
    // Pushed again, it is as before.
    let bytes = w.store.read_chunk(&w.stored(3)).expect("there");
    w.cache().put_chunk(w.stored(3), &bytes).expect("valid");
    daemon.ask_all(&vm, [3]).await;
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_is_not_replaced_by_what_is_as_wrong() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    let shown = daemon.open(&w, Some(&w.url), true).await;
    w.script(&[], Some(Answer::WrongBytes));
    w.damage(6);
    let ToNode::Fault { chunk, .. } = daemon.news().await else {
        panic!("nothing was said")
    };
    assert_eq!((chunk, w.requests(6)), (w.stored(6), WRONG_MAX));
    assert!(!w.is_cached(6) && !shown.is_present(6));
}

#[tokio::test]
async fn what_the_scrub_finds_damaged_and_nobody_needs_is_removed_and_not_fetched() {
    let w = world().await;
    w.push_all();
    let daemon = Running::start_at(&w, AT_ONCE).await;
    // Open for somebody, and pinned by nobody.
    daemon.open(&w, Some(&w.url), false).await;
    w.damage(1);
    let counted = async {
        loop {
            if let (ToNode::Counted { counts }, _) = daemon.told().await
                && counts.damaged == 1
            {
                return;
            }
        }
    };
    counted.await;
    tokio::time::sleep(NOTHING_COMES).await;
    assert!(!w.is_cached(1) && w.all_requests() == 0);
}
