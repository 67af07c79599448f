//! The frames of a machine's card, for who deployed the machine.
//!
//! Owns: how many captures there are at once, how long each may last, and its way from the kernel to the client.
//! Refuses: whose machine it is (`server`), and cards of the node.

use std::io::{self, ErrorKind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::Answer;
use api::answer::BrokenOff;
use net::capture::File;
use nix::errno::Errno;
use sys::capture::Capture;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use types::Name;
use types::status::{Refusal, RefusalCode};

/// At once, on a node: each takes [`ROOM`] of the kernel's memory, and its share of the node agent's time.
const CAPTURES_MAX: usize = 4;
/// Of the kernel's memory, in bytes, for frames that wait: a fiftieth of a second at 1 Gbit/s.
const ROOM: usize = 4 << 20;
/// One that was forgotten ends.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Bytes that are sent together.
const PIECE: usize = 64 << 10;
/// Pieces on their way to a client; one that does not read loses frames, which are counted.
const PIECES: usize = 4;

type Pieces = mpsc::Sender<Result<hyper::body::Bytes, BrokenOff>>;

/// The seats.
pub(super) struct Captures(std::sync::Arc<Semaphore>);

impl Default for Captures {
    fn default() -> Self {
        Self(std::sync::Arc::new(Semaphore::new(CAPTURES_MAX)))
    }
}

impl Captures {
    /// Streams the frames of `card` (its namespace and link), of each at most `snap` bytes.
    ///
    /// # Errors
    /// All seats are taken, or there is no such link.
    pub(super) async fn begin(
        &self,
        card: (String, String),
        name: &Name,
        snap: u32,
    ) -> Result<Answer, Refusal> {
        let seat = self.0.clone().try_acquire_owned().map_err(|_| Refusal {
            code: RefusalCode::OverCapacity,
            message: format!(
                "{CAPTURES_MAX} captures are running on this node, and there can be no more at once: end one of them"
            ),
        })?;
        let opened =
            tokio::task::spawn_blocking(move || net::capture::open(&card.0, &card.1, ROOM));
        let capture = opened.await.map_err(|error| internal(&error))?;
        let capture = capture.map_err(|error| Refusal {
            code: RefusalCode::NotFound,
            message: format!(
                "the machine has no card now: {}: wait until it runs",
                sys::error::chain(&error)
            ),
        })?;
        let capture = listen(capture).map_err(|error| internal(&error))?;
        let (pieces, received) = mpsc::channel(PIECES);
        let (file, head) = File::new(name.as_str(), snap);
        tokio::task::spawn_local(run(seat, capture, file, head, pieces));
        Ok(Answer::pcapng(received))
    }
}

fn internal(error: &dyn std::error::Error) -> Refusal {
    Refusal {
        code: RefusalCode::Internal,
        message: format!("the capture cannot be begun: {}", sys::error::chain(error)),
    }
}

#[expect(
    deprecated,
    reason = "`register` asks the caller to vouch that the descriptor stays open and the same; a Capture that \
              nobody takes out again does that by its type"
)]
fn listen(capture: Capture) -> io::Result<AsyncFd<Capture>> {
    AsyncFd::new(capture)
}

/// Until the client or the card has gone, or time is up.
async fn run(
    seat: OwnedSemaphorePermit,
    capture: AsyncFd<Capture>,
    file: File,
    head: Vec<u8>,
    pieces: Pieces,
) {
    let sending = async {
        // Sent before anything was heard: a client knows from then on that it misses nothing.
        if pieces.send(Ok(head.into())).await.is_ok() {
            send(&capture, &file, &pieces).await
        } else {
            Ok(())
        }
    };
    tokio::select! {
        sent = sending => if let Err(error) = sent {
            log::warn!("capture: {error}");
            // A client that has gone misses nothing.
            let _ = pieces.send(Err(BrokenOff)).await;
        },
        () = pieces.closed() => {}
        () = tokio::time::sleep(LONGEST) => {}
    }
    drop(seat);
}

async fn send(capture: &AsyncFd<Capture>, file: &File, pieces: &Pieces) -> io::Result<()> {
    let mut buffer = file.buffer();
    let mut lost = 0;
    loop {
        let mut ready = capture.readable().await?;
        let mut piece = Vec::new();
        let gone = loop {
            match capture.get_ref().next(&mut buffer) {
                Ok(frame) => file.frame(&mut piece, &frame, &buffer[..frame.captured]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_gone(&error) => break true,
                Err(error) => return Err(error),
            }
            if piece.len() >= PIECE {
                break false;
            }
        };
        let more = u64::from(capture.get_ref().lost()?);
        if more > 0 {
            lost += more;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            file.lost(&mut piece, now.unwrap_or_default(), lost);
        }
        if !piece.is_empty() && pieces.send(Ok(piece.into())).await.is_err() {
            return Ok(());
        }
        if gone {
            return Ok(());
        }
        // A flood of frames holds up nothing else that this process does.
        tokio::task::yield_now().await;
    }
}

fn is_gone(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(Errno::ENETDOWN | Errno::ENODEV | Errno::ENXIO))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const LOOPBACK: u32 = 1;

    fn begin(
        snap: u32,
    ) -> (
        mpsc::Receiver<Result<hyper::body::Bytes, BrokenOff>>,
        Captures,
    ) {
        let captures = Captures::default();
        let seat = captures.0.clone().try_acquire_owned().expect("a seat");
        let capture = Capture::open(LOOPBACK, ROOM).expect("a packet socket; it needs CAP_NET_RAW");
        let (file, head) = File::new("web", snap);
        let (pieces, received) = mpsc::channel(PIECES);
        let capture = listen(capture).expect("a descriptor that can be waited for");
        tokio::task::spawn_local(run(seat, capture, file, head, pieces));
        (received, captures)
    }

    #[tokio::test(flavor = "local")]
    async fn frames_follow_the_head_and_the_seat_is_free_once_the_client_has_gone() {
        let (mut received, captures) = begin(1 << 17);
        let head = received.recv().await.expect("a head").expect("whole");
        assert_eq!(head[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let to = socket.local_addr().expect("an address");
        socket.send_to(b"look at this", to).expect("sent");
        let word = b"look at this";
        loop {
            let piece = received.recv().await.expect("more").expect("whole");
            if piece.windows(word.len()).any(|part| part == word) {
                break;
            }
        }
        drop(received);
        let all = u32::try_from(CAPTURES_MAX).expect("few");
        let seats = captures.0.acquire_many(all).await;
        assert!(seats.is_ok());
    }

    #[tokio::test(flavor = "local")]
    async fn one_capture_too_many_is_refused_by_its_number() {
        let captures = Captures::default();
        let all = u32::try_from(CAPTURES_MAX).expect("few");
        let _seats = captures.0.acquire_many(all).await.expect("seats");
        let (card, name) = (
            ("tenant1".into(), "tap2".into()),
            "web".parse().expect("a name"),
        );
        let refused = captures.begin(card, &name, 96).await.expect_err("no seat");
        assert_eq!(refused.code, RefusalCode::OverCapacity);
        assert!(
            refused.message.contains("4 captures"),
            "{}",
            refused.message
        );
    }

    #[tokio::test(flavor = "local")]
    async fn a_machine_without_a_card_is_told_so() {
        let (card, name) = (
            ("tenant60000".into(), "tap2".into()),
            "web".parse().expect("a name"),
        );
        let refused = Captures::default()
            .begin(card, &name, 96)
            .await
            .expect_err("no card");
        assert_eq!(refused.code, RefusalCode::NotFound);
        assert!(
            refused.message.contains("wait until it runs"),
            "{}",
            refused.message
        );
    }
}
