//! The daemon's sockets: one task for each VM and one for the node.
//!
//! Owns: reading and writing packets without ever blocking the daemon, and the limit on what one VM may
//! have outstanding. Refuses: acting on what was read.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flist::wire::{FromNode, FromVmm, JSON_BYTES_MAX, PACKET_BYTES, ToNode, ToVmm};
use sys::socket::Received;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver};
use types::VmId;

use super::job::Event;

/// Requests of one VM that are not yet answered. A VMM has fewer; what a hostile one sends beyond waits
/// in the socket.
const OUTSTANDING_MAX: usize = 1024;

pub(crate) type Socket = AsyncFd<OwnedFd>;

/// A descriptor on the current runtime.
#[expect(
    deprecated,
    reason = "`register` asks the caller to vouch that the descriptor stays open and the same; an OwnedFd \
              that nobody takes out again does that by its type"
)]
pub(crate) fn socket(fd: OwnedFd) -> io::Result<Socket> {
    sys::socket::set_nonblocking(&fd)?;
    AsyncFd::new(fd)
}

async fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let read = |fd: &OwnedFd| sys::socket::receive(fd.as_fd(), &mut *buffer);
    socket.async_io(Interest::READABLE, read).await
}

async fn send(socket: &Socket, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let write = |fd: &OwnedFd| sys::socket::send(fd.as_fd(), packet, fds);
    socket.async_io(Interest::WRITABLE, write).await
}

/// Which of a VM's successive sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmLink {
    pub(crate) vm: VmId,
    pub(crate) generation: u64,
}

/// Serves a VM's socket until either end closes. Each `Want` is answered exactly once.
pub(crate) async fn serve_vm(
    link: VmLink,
    socket: Socket,
    mut replies: UnboundedReceiver<ToVmm>,
    events: Sender<Event>,
) {
    let why = talk(&link, &socket, &mut replies, &events).await;
    if let Err(error) = why {
        log::warn!("socket of VM {} is closed: {}", link.vm, sys::chain(&error));
    }
    // Without a daemon there is nobody to tell.
    let _ = events.send(Event::VmGone(link)).await;
}

async fn talk(
    link: &VmLink,
    socket: &Socket,
    replies: &mut UnboundedReceiver<ToVmm>,
    events: &Sender<Event>,
) -> io::Result<()> {
    let mut outstanding = 0usize;
    let mut buffer = [0; PACKET_BYTES + 1];
    send(socket, &ToVmm::Hello.encode(), &[]).await?;
    loop {
        tokio::select! {
            reply = replies.recv() => {
                let Some(reply) = reply else { return Ok(()) };
                outstanding = outstanding.saturating_sub(1);
                send(socket, &reply.encode(), &[]).await?;
            }
            packet = receive(socket, &mut buffer), if outstanding < OUTSTANDING_MAX => {
                let Some(packet) = packet? else { return Ok(()) };
                let FromVmm::Want(index) = FromVmm::decode(&buffer[..packet.length])
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                outstanding += 1;
                if events.send(Event::Want { link: link.clone(), index }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// What is sent to the node: a message and the files beside it.
pub(crate) type ForNode = (ToNode, Vec<File>);

/// Serves the node's connection number `connection` until either end closes.
pub(crate) async fn serve_node(
    connection: u64,
    socket: Socket,
    mut messages: Receiver<ForNode>,
    events: Sender<Event>,
) {
    let mut buffer = vec![0; JSON_BYTES_MAX];
    loop {
        let result = tokio::select! {
            message = messages.recv() => match message {
                None => return,
                Some((message, files)) => write_node(&socket, &message, &files).await,
            },
            packet = receive(&socket, &mut buffer) => match packet {
                Ok(None) => break,
                Ok(Some(packet)) => match read_node(&buffer, packet) {
                    Ok((message, fds)) => {
                        let event = Event::Node { connection, message, fds };
                        if events.send(event).await.is_err() {
                            return;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            },
        };
        if let Err(error) = result {
            log::warn!("connection of the node is closed: {}", sys::chain(&error));
            break;
        }
    }
    // Without a daemon there is nobody to tell.
    let _ = events.send(Event::NodeGone { connection }).await;
}

fn read_node(buffer: &[u8], packet: Received) -> io::Result<(FromNode, Vec<OwnedFd>)> {
    let message = serde_json::from_slice(&buffer[..packet.length])?;
    Ok((message, packet.fds))
}

async fn write_node(socket: &Socket, message: &ToNode, files: &[File]) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    send(socket, &packet, &fds).await
}
