//! A plain web server over a store directory, which the node reaches as 10.0.2.2.
//!
//! Owns: serving files, counting what was served, and stopping half-way through some or altogether until a test goes on.
//! Refuses: being a good web server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use anyhow::{Result, ensure};

use crate::PATIENCE;

/// Where large answers stop.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Answers of at least so many bytes stop half-way; `None`: none does.
    stops_bytes: Option<usize>,
    /// Of these, so many more go through.
    pass: usize,
    stopped: usize,
}

impl Gate {
    /// Lets `pass` answers of at least `stops_bytes` bytes through and stops the others half-way.
    pub fn shut(stops_bytes: usize, pass: usize) -> Arc<Self> {
        let state = State {
            stops_bytes: Some(stops_bytes),
            pass,
            stopped: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Waits until an answer has stopped half-way.
    pub fn wait_for_one(&self) -> Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.stopped == 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ensure!(state.stopped > 0, "nobody asked for a large file");
        Ok(())
    }

    /// All answers go on, and new ones do not stop.
    pub fn open(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stops_bytes = None;
        self.changed.notify_all();
    }

    fn pass(&self, bytes: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stops_bytes.is_none_or(|stops| bytes < stops) {
            return;
        }
        if state.pass > 0 {
            state.pass -= 1;
            return;
        }
        state.stopped += 1;
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_while(state, |state| state.stops_bytes.is_some());
        drop(waited);
    }
}

/// What a store was asked for, and whether it answers.
#[derive(Debug, Default)]
pub struct Served(Mutex<ServedState>);

#[derive(Debug, Default)]
struct ServedState {
    /// Path and length of each object that was sent, in order.
    objects: Vec<(String, usize)>,
    connections: usize,
    /// Requests on which it hung up.
    refused: usize,
    is_down: bool,
}

impl Served {
    fn state(&self) -> std::sync::MutexGuard<'_, ServedState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Path and length of each object that was sent so far, in order.
    pub fn objects(&self) -> Vec<(String, usize)> {
        self.state().objects.clone()
    }

    /// Of these, the chunks: how many, and their bytes.
    pub fn chunks(&self) -> (usize, usize) {
        let state = self.state();
        let chunks = state
            .objects
            .iter()
            .filter(|(p, _)| p.starts_with("chunks/"));
        chunks.fold((0, 0), |(n, sum), (_, bytes)| (n + 1, sum + bytes))
    }

    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Requests on which it hung up, because it was down.
    pub fn refused(&self) -> usize {
        self.state().refused
    }

    /// A store that is down hangs up on everybody.
    pub fn set_down(&self, is_down: bool) {
        self.state().is_down = is_down;
    }

    /// Whether to hang up.
    fn refuses(&self) -> bool {
        let mut state = self.state();
        state.refused += usize::from(state.is_down);
        state.is_down
    }

    fn note(&self, path: &str, bytes: usize) {
        self.state().objects.push((path.to_owned(), bytes));
    }
}

/// Serves `directory` on a loopback port until the test's process ends; gives the URL for the node.
pub fn serve(directory: &Path) -> Result<String> {
    serve_through(directory, Arc::default())
}

/// The same; half of each answer comes before the gate.
pub fn serve_through(directory: &Path, gate: Arc<Gate>) -> Result<String> {
    serve_to(directory, gate, Arc::default())
}

/// The same, with a count of what was served.
pub fn serve_counted(directory: &Path, gate: Arc<Gate>) -> Result<(String, Arc<Served>)> {
    let served = Arc::<Served>::default();
    let url = serve_to(directory, gate, Arc::clone(&served))?;
    Ok((url, served))
}

/// The same at an address of this machine's, by which the node reaches it.
pub fn serve_at(address: &str, directory: &Path) -> Result<String> {
    let listener = TcpListener::bind((address, 0))?;
    let url = format!("http://{}", listener.local_addr()?);
    listen(listener, directory, Arc::default(), Arc::default());
    Ok(url)
}

fn serve_to(directory: &Path, gate: Arc<Gate>, served: Arc<Served>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://10.0.2.2:{}", listener.local_addr()?.port());
    listen(listener, directory, gate, served);
    Ok(url)
}

fn listen(listener: TcpListener, directory: &Path, gate: Arc<Gate>, served: Arc<Served>) {
    let root = directory.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (root, gate, served) = (root.clone(), Arc::clone(&gate), Arc::clone(&served));
            served.state().connections += 1;
            std::thread::spawn(move || answer(&stream, &root, &gate, &served));
        }
    });
}

/// Answers requests over one connection until it ends.
pub(crate) fn answer(
    stream: impl Read + Write,
    root: &Path,
    gate: &Gate,
    served: &Served,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            if header.trim().is_empty() {
                break;
            }
        }
        let path = request
            .split(' ')
            .nth(1)?
            .trim_start_matches('/')
            .to_owned();
        if served.refuses() {
            return None;
        }
        let (status, body) = match std::fs::read(root.join(&path)) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", Vec::new()),
        };
        let writer = reader.get_mut();
        write!(
            writer,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .ok()?;
        let (first, rest) = body.split_at(body.len() / 2);
        writer.write_all(first).ok()?;
        writer.flush().ok()?;
        gate.pass(body.len());
        if served.refuses() {
            return None;
        }
        writer.write_all(rest).ok()?;
        writer.flush().ok()?;
        served.note(&path, body.len());
    }
}

/// All chunk files of a store.
pub fn chunks(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for shard in std::fs::read_dir(directory.join("chunks"))? {
        for file in std::fs::read_dir(shard?.path())? {
            files.push(file?.path());
        }
    }
    files.sort();
    Ok(files)
}
