//! The role `ingress`: the proxy before machines that have names, in a process of its own.
//!
//! Owns: its start, and the one connection of the node agent. Refuses: anything to do before it is confined, and to end with the
//! agent: clients are served while another agent starts.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ::ingress::wire::{FromIngress, PACKET_MAX, SiteConfig, ToIngress};
use ::ingress::{Ingress, Stock, listener};
use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::packets::Packets;

mod confine;

pub(crate) const SOCKET: &str = "/run/sifr/ingress.sock";

/// After a connection of the node that failed: nothing tells when one would not.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn run() -> ExitCode {
    crate::console::log_here();
    match run_confined(Path::new(SOCKET)) {
        Ok(never) => match never {},
        Err(error) => {
            log::error!("ingress ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_confined(path: &Path) -> anyhow::Result<Infallible> {
    let listener =
        sys::seqpacket::listen(path).with_context(|| format!("listen on {}", path.display()))?;
    wait(&listener).context("wait for the node")?;
    confine::enter().context("confine ingress")?;
    serve(listener)
}

fn wait(listener: &OwnedFd) -> nix::Result<()> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// On one thread: TLS is most of the work, and machines are to have the other processors.
fn serve(listener: OwnedFd) -> anyhow::Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("start the event loop")?;
    runtime.block_on(async {
        let (need_tx, mut need) = mpsc::unbounded_channel();
        let stock = Arc::new(Stock::new(need_tx));
        let mut process = Process {
            ingress: Ingress::new(stock.clone()),
            stock,
            doors: [Door::default(), Door::default()],
            draft: Vec::new(),
            told: false,
        };
        let listener = crate::chunks::socket(listener).context("listen to the node")?;
        loop {
            let accept = |fd: &OwnedFd| sys::seqpacket::accept(fd.as_fd());
            let connection = listener
                .async_io(tokio::io::Interest::READABLE, accept)
                .await;
            let packets = connection.and_then(|c| Packets::new(c, PACKET_MAX));
            let heard = match packets {
                Ok(packets) => {
                    process.told = false;
                    process.hear(&packets, &mut need).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = heard {
                log::warn!("the node's connection broke: {error}");
                // Clients may have all descriptors just now: they are served, and the node comes again.
                tokio::time::sleep(PAUSE).await;
            }
        }
    })
}

/// Where clients come in.
#[derive(Default)]
struct Door {
    /// It is among what is to be served next.
    wanted: bool,
    task: Option<JoinHandle<()>>,
    /// What the task accepts from, for the next agent.
    socket: Option<OwnedFd>,
}

impl Door {
    fn open(&mut self, socket: OwnedFd, ingress: &Ingress, secure: bool) -> io::Result<()> {
        let accept = ingress
            .clone()
            .accept(listener(socket.try_clone()?)?, secure);
        self.task = Some(tokio::spawn(accept));
        self.socket = Some(socket);
        Ok(())
    }

    fn close(&mut self) {
        self.task.take().iter().for_each(JoinHandle::abort);
        self.socket = None;
    }
}

struct Process {
    ingress: Ingress,
    stock: Arc<Stock>,
    /// In the clear, and by TLS.
    doors: [Door; 2],
    draft: Vec<SiteConfig>,
    /// The agent of this connection has said what is served: before that it knows no network to make sockets in.
    told: bool,
}

impl Process {
    fn show_doors(&self, packets: &Packets) -> io::Result<()> {
        let open = [0, 1].map(|at| self.doors[at].socket.is_some());
        let sockets = self.doors.iter().filter_map(|door| door.socket.as_ref());
        let copies: io::Result<Vec<OwnedFd>> = sockets.map(OwnedFd::try_clone).collect();
        packets.send(&FromIngress::Doors { open }, copies?)
    }

    /// Until the agent goes.
    async fn hear(
        &mut self,
        packets: &Packets,
        need: &mut mpsc::UnboundedReceiver<String>,
    ) -> io::Result<()> {
        self.show_doors(packets)?;
        loop {
            tokio::select! {
                // All are safe to drop.
                received = packets.receive::<ToIngress>() => match received? {
                    Some((message, fds)) => self.obey(message, fds, packets, need)?,
                    None => return Ok(()),
                },
                Some(network) = need.recv(), if self.told => packets.send(&FromIngress::Need { network }, Vec::new())?,
                sent = packets.serve() => match sent? {},
            }
        }
    }

    fn commit(&mut self, need: &mut mpsc::UnboundedReceiver<String>) {
        self.ingress.apply(std::mem::take(&mut self.draft));
        let closed = self.doors.iter_mut().filter(|door| !door.wanted);
        closed.for_each(Door::close);
        if !self.told {
            // Whatever was asked for before, this agent has not heard it.
            while need.try_recv().is_ok() {}
            self.stock.ask_anew();
            self.told = true;
        }
    }

    fn obey(
        &mut self,
        message: ToIngress,
        fds: Vec<OwnedFd>,
        packets: &Packets,
        need: &mut mpsc::UnboundedReceiver<String>,
    ) -> io::Result<()> {
        match message {
            ToIngress::Listener { secure } => {
                let door = &mut self.doors[usize::from(secure)];
                door.wanted = true;
                if door.task.is_none()
                    && let Some(socket) = fds.into_iter().next()
                {
                    door.open(socket, &self.ingress, secure)?;
                }
            }
            ToIngress::Begin => {
                self.draft.clear();
                self.doors.iter_mut().for_each(|door| door.wanted = false);
            }
            ToIngress::Site(site) => self.draft.push(*site),
            ToIngress::Commit { number } => {
                self.commit(need);
                packets.send(&FromIngress::Committed { number }, Vec::new())?;
            }
            ToIngress::Sockets { network } => self.stock.put(&network, fds),
            ToIngress::Ask => {
                for (host, status) in self.ingress.statuses() {
                    let status = Box::new(status);
                    packets.send(&FromIngress::Site { host, status }, Vec::new())?;
                }
            }
        }
        Ok(())
    }
}
