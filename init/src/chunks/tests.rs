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

mod ahead;
mod scrub;
mod serving;

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
