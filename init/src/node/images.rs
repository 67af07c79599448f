//! The node's side of the chunk daemon: which images are open, which VMs hang on them.
//!
//! Owns: the connection, and everything that a new daemon has to be told again.
//! Refuses: chunks themselves.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use flist::wire::{Counts, FromNode, JSON_BYTES_MAX, ToNode};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use types::flist::ImageConfig;
use types::proxy::Egress;
use types::{Digest, Stores, VmId};

use super::context::Uplink;
use crate::packets::Packets;

const SOCKET: &str = "/run/sifr/chunks.sock";
/// Between attempts to reach the daemon: nothing tells when it listens. It is there within a few of
/// these after a boot or a crash.
const RETRY: Duration = Duration::from_millis(50);
/// Before an image that could not be opened is asked for again for VMs that already run on it: the
/// daemon has said why, and a disk or store needs time to come back.
const REOPEN: Duration = Duration::from_secs(5);

/// An image that is ready for VMs.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) disk: OwnedFd,
    pub(crate) map: OwnedFd,
    pub(crate) config: ImageConfig,
}

/// What others want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// The share of an image that is present has changed.
    Progress,
    /// A chunk could not be had.
    Fault { flist: Digest, message: String },
}

type OpenReply = oneshot::Sender<Result<Image, String>>;
type AttachReply = oneshot::Sender<Result<(), String>>;

#[derive(Default)]
struct State {
    /// How stores are asked.
    egress: Egress,
    /// Images that are wanted, with their store.
    open: BTreeMap<Digest, Option<Stores>>,
    /// Those that this daemon has opened: it attaches VMs to no others.
    opened: BTreeSet<Digest>,
    opening: BTreeMap<Digest, Vec<OpenReply>>,
    /// The daemon's end of each VM's socket, kept to be given to the next daemon.
    attached: BTreeMap<VmId, Attached>,
    attaching: BTreeMap<VmId, AttachReply>,
    progress: BTreeMap<Digest, (u64, u64)>,
    /// Of this daemon.
    counts: Counts,
    connection: Option<Rc<Packets>>,
}

struct Attached {
    flist: Digest,
    socket: OwnedFd,
    /// This daemon has been told.
    told: bool,
    /// Its program runs.
    started: bool,
}

/// A handle; the connection is kept by [`Images::run`].
#[derive(Clone)]
pub(crate) struct Images {
    state: Rc<RefCell<State>>,
    news: mpsc::UnboundedSender<News>,
    wake: Rc<Notify>,
}

impl Images {
    /// News are at most a few a second (`flist::wire`), and read by the engine's loop at once.
    pub(crate) fn new(news: mpsc::UnboundedSender<News>) -> Self {
        Self {
            state: Rc::default(),
            news,
            wake: Rc::new(Notify::new()),
        }
    }

    /// Has the daemon ask stores as the node's network says, for ever.
    pub(crate) async fn follow(self, mut uplink: watch::Receiver<Uplink>) {
        loop {
            let egress = uplink.borrow_and_update().egress.clone();
            self.go_by(egress);
            if uplink.changed().await.is_err() {
                return;
            }
        }
    }

    /// From now on. The same again is no news.
    pub(crate) fn go_by(&self, egress: Egress) {
        if self.state.borrow().egress == egress {
            return;
        }
        self.state.borrow_mut().egress = egress.clone();
        self.say(&FromNode::Egress { egress }, Vec::new());
    }

    /// Makes an image ready. Waits as long as the daemon needs: its caller may drop this.
    pub(crate) async fn open(&self, flist: Digest, store: Option<Stores>) -> Result<Image, String> {
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            state.open.insert(flist, store.clone());
            state.opening.entry(flist).or_default().push(reply);
        }
        self.say(
            &FromNode::Open {
                flist,
                store,
                pin: true,
            },
            Vec::new(),
        );
        answer
            .await
            .map_err(|_| "the chunk daemon's answer was lost".to_owned())?
    }

    /// Hands the daemon's end of a VM's socket over. The image has been opened.
    pub(crate) async fn attach(
        &self,
        vm: VmId,
        flist: Digest,
        socket: OwnedFd,
    ) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.state.borrow_mut().attaching.insert(vm.clone(), reply);
        self.hold(vm, flist, socket, false);
        answer
            .await
            .map_err(|_| "the chunk daemon's answer was lost".to_owned())?
    }

    /// The same for a VM from before the agent's restart: nobody waits for the answer. `started`: its program runs.
    pub(crate) fn adopt(
        &self,
        vm: VmId,
        flist: Digest,
        store: Option<Stores>,
        socket: OwnedFd,
        started: bool,
    ) {
        self.state.borrow_mut().open.insert(flist, store.clone());
        self.say(
            &FromNode::Open {
                flist,
                store,
                pin: true,
            },
            Vec::new(),
        );
        self.hold(vm, flist, socket, started);
    }

    /// The program of a VM runs: its image may be filled once it reads no more.
    pub(crate) fn started(&self, vm: &VmId) {
        let told = match self.state.borrow_mut().attached.get_mut(vm) {
            Some(held) if !held.started => {
                held.started = true;
                held.told
            }
            Some(_) | None => false,
        };
        if told {
            self.say(&FromNode::Started { vm: vm.clone() }, Vec::new());
        }
    }

    fn hold(&self, vm: VmId, flist: Digest, socket: OwnedFd, started: bool) {
        let held = Attached {
            flist,
            socket,
            told: false,
            started,
        };
        self.state.borrow_mut().attached.insert(vm, held);
        self.attach_opened();
    }

    /// Attaches every VM whose image is open and whose socket the daemon does not have.
    fn attach_opened(&self) {
        let mut ready = Vec::new();
        {
            let state = &mut *self.state.borrow_mut();
            if state.connection.is_none() {
                return;
            }
            let opened = &state.opened;
            for (vm, held) in &mut state.attached {
                if held.told || !opened.contains(&held.flist) {
                    continue;
                }
                match held.socket.try_clone() {
                    Ok(copy) => {
                        held.told = true;
                        ready.push((vm.clone(), held.flist, copy, held.started));
                    }
                    Err(error) => log::error!("copy the chunk socket of {vm}: {error}"),
                }
            }
        }
        for (vm, flist, copy, started) in ready {
            let attach = FromNode::Attach {
                vm: vm.clone(),
                flist,
            };
            self.say(&attach, vec![copy]);
            if started {
                self.say(&FromNode::Started { vm }, Vec::new());
            }
        }
    }

    pub(crate) fn detach(&self, vm: &VmId) {
        let held = {
            let mut state = self.state.borrow_mut();
            state.attaching.remove(vm);
            state.attached.remove(vm)
        };
        if held.is_some() {
            self.say(&FromNode::Detach { vm: vm.clone() }, Vec::new());
        }
    }

    /// Images that VMs run on, whether or not a deployment still names them.
    pub(crate) fn used(&self) -> BTreeSet<Digest> {
        let state = self.state.borrow();
        state.attached.values().map(|a| a.flist).collect()
    }

    /// Closes what no deployment names and no VM uses.
    pub(crate) fn retain(&self, wanted: &BTreeSet<Digest>) {
        let closed: Vec<Digest> = {
            let mut state = self.state.borrow_mut();
            let used: BTreeSet<Digest> = state.attached.values().map(|a| a.flist).collect();
            let keep = |flist: &Digest| wanted.contains(flist) || used.contains(flist);
            let closed: Vec<_> = state.open.keys().filter(|f| !keep(f)).copied().collect();
            for flist in &closed {
                state.open.remove(flist);
                state.opened.remove(flist);
                state.opening.remove(flist);
                state.progress.remove(flist);
            }
            closed
        };
        for flist in closed {
            self.say(&FromNode::Close { flist }, Vec::new());
        }
    }

    /// What the daemon has done since its start, as last told.
    pub(crate) fn counts(&self) -> Counts {
        self.state.borrow().counts
    }

    /// Chunks present and in all.
    pub(crate) fn progress(&self, flist: &Digest) -> Option<(u64, u64)> {
        self.state.borrow().progress.get(flist).copied()
    }

    /// Says it now, or leaves it to the next connection, which begins by saying everything.
    fn say(&self, message: &FromNode, fds: Vec<OwnedFd>) {
        let connection = self.state.borrow().connection.clone();
        if let Some(connection) = connection
            && let Err(error) = connection.send(message, fds)
        {
            log::warn!("say {message:?} to the chunk daemon: {error}");
            self.state.borrow_mut().connection = None;
            self.wake.notify_one();
        }
    }

    /// Keeps a connection to whichever daemon there is.
    pub(crate) async fn run(self) {
        loop {
            match sys::seqpacket::connect(Path::new(SOCKET))
                .and_then(|socket| Packets::new(socket, JSON_BYTES_MAX))
            {
                Ok(connection) => {
                    if let Err(error) = self.serve(Rc::new(connection)).await {
                        log::warn!("the chunk daemon's connection broke: {error}");
                    }
                    self.state.borrow_mut().connection = None;
                }
                Err(error) => log::debug!("connect to {SOCKET}: {error}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn serve(&self, connection: Rc<Packets>) -> io::Result<()> {
        self.begin(connection.clone());
        loop {
            tokio::select! {
                // All safe to drop.
                received = connection.receive::<ToNode>() => match received? {
                    Some((message, fds)) => self.hear(message, fds),
                    None => return Ok(()),
                },
                result = connection.serve() => match result? {},
                () = self.wake.notified() => return Ok(()),
            }
        }
    }

    /// A daemon that has just come knows nothing of before. VMs follow when their image is open.
    fn begin(&self, connection: Rc<Packets>) {
        let (egress, wanted) = {
            let mut state = self.state.borrow_mut();
            state.connection = Some(connection);
            state.opened.clear();
            state
                .attached
                .values_mut()
                .for_each(|held| held.told = false);
            (state.egress.clone(), state.open.clone())
        };
        self.say(&FromNode::Egress { egress }, Vec::new());
        for (flist, store) in wanted {
            self.say(
                &FromNode::Open {
                    flist,
                    store,
                    pin: true,
                },
                Vec::new(),
            );
        }
    }

    fn hear(&self, message: ToNode, fds: Vec<OwnedFd>) {
        let mut state = self.state.borrow_mut();
        match message {
            ToNode::Opened {
                flist,
                config,
                present,
                total,
                ..
            } => {
                state.progress.insert(flist, (present, total));
                state.opened.insert(flist);
                let waiting = state.opening.remove(&flist).unwrap_or_default();
                drop(state);
                answer_opened(waiting, &config, fds);
                self.attach_opened();
                self.tell(News::Progress);
            }
            ToNode::OpenFailed { flist, error } => {
                for reply in state.opening.remove(&flist).unwrap_or_default() {
                    // A start that was abandoned hears nothing.
                    let _ = reply.send(Err(error.clone()));
                }
                if state.attached.values().any(|held| held.flist == flist) {
                    drop(state);
                    log::error!("open the image {flist} of running VMs: {error}");
                    tokio::task::spawn_local(self.clone().open_again(flist));
                }
            }
            ToNode::Attached { vm } => {
                if let Some(reply) = state.attaching.remove(&vm) {
                    let _ = reply.send(Ok(()));
                }
            }
            ToNode::AttachFailed { vm, error } => match state.attaching.remove(&vm) {
                Some(reply) => {
                    state.attached.remove(&vm);
                    let _ = reply.send(Err(error));
                }
                None => log::error!("attach {vm} to the chunk daemon: {error}"),
            },
            ToNode::Progress {
                flist,
                present,
                total,
            } => {
                state.progress.insert(flist, (present, total));
                drop(state);
                self.tell(News::Progress);
            }
            ToNode::Counted { counts } => state.counts = counts,
            ToNode::Fault { flist, message, .. } => {
                drop(state);
                self.tell(News::Fault { flist, message });
            }
        }
    }

    async fn open_again(self, flist: Digest) {
        tokio::time::sleep(REOPEN).await;
        let wanted = self.state.borrow().open.get(&flist).cloned();
        if let Some(store) = wanted {
            self.say(
                &FromNode::Open {
                    flist,
                    store,
                    pin: true,
                },
                Vec::new(),
            );
        }
    }

    /// The engine may be on its way down.
    fn tell(&self, news: News) {
        let _ = self.news.send(news);
    }
}

/// Each start that waits gets descriptors of its own.
fn answer_opened(waiting: Vec<OpenReply>, config: &ImageConfig, fds: Vec<OwnedFd>) {
    let mut fds = fds.into_iter();
    let pair = fds.next().zip(fds.next());
    for reply in waiting {
        let image = match &pair {
            None => Err("the chunk daemon sent no descriptors".to_owned()),
            Some((disk, map)) => match (disk.try_clone(), map.try_clone()) {
                (Ok(disk), Ok(map)) => Ok(Image {
                    disk,
                    map,
                    config: config.clone(),
                }),
                (Err(e), _) | (_, Err(e)) => Err(format!("copy an image's descriptor: {e}")),
            },
        };
        let _ = reply.send(image);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flist() -> Digest {
        Digest([5; 32])
    }

    fn opened() -> ToNode {
        ToNode::Opened {
            flist: flist(),
            disk_bytes: 4096,
            config: ImageConfig::default(),
            present: 1,
            total: 2,
        }
    }

    fn asked_so(egress: Egress) -> FromNode {
        FromNode::Egress { egress }
    }

    fn two_fds() -> Vec<OwnedFd> {
        let (reader, writer) = io::pipe().expect("a pipe");
        vec![reader.into(), writer.into()]
    }

    async fn next(daemon: &Packets) -> (FromNode, Vec<OwnedFd>) {
        daemon.receive().await.expect("a packet").expect("open")
    }

    #[tokio::test]
    async fn a_new_daemon_is_told_everything_again() {
        let (news, _heard) = mpsc::unbounded_channel();
        let images = Images::new(news);
        let (ours, theirs) = sys::socket::pair().expect("a pair");
        let vm: VmId = "web-shop-01010101".parse().expect("an id");
        let node = Rc::new(Packets::new(ours, JSON_BYTES_MAX).expect("packets"));
        let daemon = Packets::new(theirs, JSON_BYTES_MAX).expect("packets");
        let (socket, _vmm) = sys::socket::pair().expect("a pair");
        let talk = async {
            let image = images.open(flist(), None).await.expect("an image");
            assert_eq!(image.config, ImageConfig::default());
            images
                .attach(vm.clone(), flist(), socket)
                .await
                .expect("attached");
        };
        let answer = async {
            assert_eq!(next(&daemon).await.0, asked_so(Egress::Direct));
            assert!(matches!(
                next(&daemon).await.0,
                FromNode::Open { pin: true, .. }
            ));
            daemon.send(&opened(), two_fds()).expect("sent");
            let (attach, fds) = next(&daemon).await;
            assert_eq!(
                (attach, fds.len()),
                (
                    FromNode::Attach {
                        vm: vm.clone(),
                        flist: flist()
                    },
                    1
                )
            );
            daemon
                .send(&ToNode::Attached { vm: vm.clone() }, Vec::new())
                .expect("sent");
        };
        tokio::select! {
            _ = images.serve(node) => panic!("the connection ended"),
            _ = async { tokio::join!(talk, answer) } => {}
        }
        assert_eq!(images.progress(&flist()), Some((1, 2)));
        images.started(&vm);
        images.go_by(Egress::Unclear);
        // Another daemon.
        let (ours, theirs) = sys::socket::pair().expect("a pair");
        let node = Rc::new(Packets::new(ours, JSON_BYTES_MAX).expect("packets"));
        let daemon = Packets::new(theirs, JSON_BYTES_MAX).expect("packets");
        let answer = async {
            assert_eq!(next(&daemon).await.0, asked_so(Egress::Unclear));
            assert!(matches!(next(&daemon).await.0, FromNode::Open { .. }));
            daemon.send(&opened(), two_fds()).expect("sent");
            let attach = next(&daemon).await;
            let started = FromNode::Started { vm: vm.clone() };
            assert_eq!(next(&daemon).await.0, started);
            attach
        };
        let (attach, fds) = tokio::select! {
            _ = images.serve(node) => panic!("the connection ended"),
            attach = answer => attach,
        };
        assert_eq!(
            (attach, fds.len()),
            (
                FromNode::Attach {
                    vm: vm.clone(),
                    flist: flist()
                },
                1
            )
        );
        // What a VM uses is not closed; what nobody wants is.
        images.retain(&BTreeSet::new());
        assert!(images.state.borrow().open.contains_key(&flist()));
        images.detach(&vm);
        images.retain(&BTreeSet::new());
        assert!(images.state.borrow().open.is_empty());
    }
}
