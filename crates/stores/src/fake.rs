//! A store that fails: a web server over a directory, for tests.
//!
//! Owns: the ways in which stores fail, drawn from a seed, so that a failure can be had again.
//! Refuses: to be a good web server.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Longest request: a path and a few headers.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Of an answer that comes slowly: one such pause in its middle.
const SLOW: Duration = Duration::from_millis(30);

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Content,
    /// Content, with a pause in its middle.
    Slow,
    /// Half of the content, then the connection ends.
    Cut,
    /// Half of the content, announced as all of it.
    Short,
    /// As many other bytes.
    WrongBytes,
    /// More than there should be.
    Longer,
    Status(u16),
    /// The connection ends before an answer.
    Reset,
    /// What is no HTTP.
    Noise,
}

const FAILURES: [Answer; 9] = [
    Answer::Slow,
    Answer::Cut,
    Answer::Short,
    Answer::WrongBytes,
    Answer::Longer,
    Answer::Status(500),
    Answer::Status(429),
    Answer::Reset,
    Answer::Noise,
];

#[derive(Debug, Default)]
struct State {
    /// Answered first, in this order.
    next: Vec<Answer>,
    /// Of hundred answers so many fail.
    percent: u64,
    random: u64,
    asked: Vec<String>,
}

/// It ends with the runtime.
#[derive(Debug)]
pub struct Fake {
    pub url: String,
    /// The server's tasks answer, and the test asks and tells.
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// Serves a directory; of hundred answers `percent` fail, as `seed` says.
    pub async fn start(root: &Path, seed: u64, percent: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = Arc::new(Mutex::new(State {
            percent,
            random: seed,
            ..State::default()
        }));
        let (ours, root) = (Arc::clone(&state), root.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (root, state) = (root.clone(), Arc::clone(&ours));
                tokio::spawn(async move {
                    // A client that hangs up is no failure of the store.
                    let _ = serve(stream, &root, &state).await;
                });
            }
        });
        Ok(Self { url, state })
    }

    /// The next requests are answered so, whatever the seed says.
    pub fn script(&self, answers: &[Answer]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next.extend_from_slice(answers);
    }

    /// How many requests named this.
    pub fn asked(&self, for_what: &str) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .asked
            .iter()
            .filter(|path| path.contains(for_what))
            .count()
    }
}

impl State {
    fn answer(&mut self, path: &str) -> Answer {
        self.asked.push(path.to_owned());
        if !self.next.is_empty() {
            return self.next.remove(0);
        }
        if self.draw() % 100 >= self.percent {
            return Answer::Content;
        }
        let which = usize::try_from(self.draw() % FAILURES.len() as u64).unwrap_or(0);
        FAILURES[which]
    }

    /// splitmix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

async fn serve(mut stream: TcpStream, root: &Path, state: &Mutex<State>) -> std::io::Result<()> {
    loop {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
            request.push(stream.read_u8().await?);
        }
        let request = String::from_utf8_lossy(&request).into_owned();
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let path = path.trim_start_matches('/');
        let answer = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.answer(path)
        };
        let body = tokio::fs::read(PathBuf::from(root).join(path)).await;
        let (status, body) = match body {
            Ok(body) => (200, body),
            Err(_) => (404, Vec::new()),
        };
        if !say(&mut stream, answer, method == "HEAD", status, body).await? {
            return Ok(());
        }
    }
}

/// Whether the connection goes on.
async fn say(
    stream: &mut TcpStream,
    answer: Answer,
    is_head: bool,
    status: u16,
    mut body: Vec<u8>,
) -> std::io::Result<bool> {
    let half = body.len() / 2;
    let (status, announced) = match answer {
        Answer::Reset => return Ok(false),
        Answer::Noise => {
            stream
                .write_all(b"\0\x01\x02 what is it\n\n\r\n\r\n")
                .await?;
            return Ok(false);
        }
        Answer::Status(status) => {
            body.clear();
            (status, 0)
        }
        Answer::Short => {
            body.truncate(half);
            (status, half)
        }
        Answer::WrongBytes => {
            body.iter_mut().for_each(|byte| *byte ^= 0x5a);
            (status, body.len())
        }
        Answer::Longer => {
            body.extend_from_slice(&[0; 4096]);
            (status, body.len())
        }
        Answer::Content | Answer::Slow | Answer::Cut => (status, body.len()),
    };
    let head = format!("HTTP/1.1 {status} it\r\nContent-Length: {announced}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    if is_head {
        return Ok(true);
    }
    let (first, rest) = body.split_at(body.len() / 2);
    stream.write_all(first).await?;
    match answer {
        Answer::Cut if !body.is_empty() => return Ok(false),
        Answer::Slow => tokio::time::sleep(SLOW).await,
        _ => {}
    }
    stream.write_all(rest).await?;
    Ok(true)
}
