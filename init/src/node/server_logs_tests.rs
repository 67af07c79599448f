//! Logs over the API: their streams, and whoever follows a machine through its restarts, end and deletion.
//!
//! Owns: nothing; the stage is the API tests'. Refuses: what a log is on a pool (`logs` has it).

use super::*;

#[tokio::test]
async fn logs_of_a_workload_are_streamed_and_of_no_workload_refused() {
    use types::vm::{LogRecord, Stream};
    locally(async {
        let mut stage = Stage::new(true).await;
        let machines = Machines::open(stage.pool.path()).expect("machines");
        let owner = SecretKey::from_seed([1; 32]).public();
        let web: Name = "web".parse().expect("a name");
        let [a, b] = machines.log_paths(&VmId::new(&owner, &shop(), &web));
        let header = LogRecord {
            sequence: 0,
            time_ms: 1,
            stream: Stream::Stdout,
            length: 5,
        };
        let follow = async {
            let missing = stage.client.logs(&shop(), &shop(), false, None).await;
            assert_eq!(code(missing.map(drop)), RefusalCode::NotFound);
            let mut stream = stage
                .client
                .logs(&shop(), &web, true, None)
                .await
                .expect("a stream");
            // The machine has not started when its log is asked for.
            std::fs::create_dir_all(a.parent().expect("a directory")).expect("made");
            let mut bytes = header.encode().to_vec();
            bytes.extend_from_slice(b"hello");
            std::fs::write(&a, &bytes).expect("written");
            std::fs::write(&b, b"").expect("written");
            stage.changes.send_modify(|n| *n += 1);
            let line = stream.next().await.expect("no error").expect("a line");
            assert_eq!(line.data, b"hello");
        };
        tokio::select! {
            () = play(&mut stage.requests, || State::Running) => {}
            () = follow => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("no line"),
        }
    })
    .await;
}

/// The log of a machine of the stage's own, as a VMM writes it.
struct Output {
    paths: [std::path::PathBuf; 2],
    next: u64,
}

impl Output {
    fn of(stage: &Stage) -> Self {
        let machines = Machines::open(stage.pool.path()).expect("machines");
        let owner = SecretKey::from_seed([1; 32]).public();
        let paths = machines.log_paths(&VmId::new(&owner, &shop(), &web()));
        std::fs::create_dir_all(paths[0].parent().expect("a directory")).expect("made");
        paths
            .iter()
            .for_each(|path| std::fs::write(path, b"").expect("written"));
        Self { paths, next: 0 }
    }

    fn write(&mut self, text: &str) {
        use std::io::Write;
        let header = types::vm::LogRecord {
            sequence: self.next,
            time_ms: 1,
            stream: types::vm::Stream::Stdout,
            length: u32::try_from(text.len()).expect("short"),
        };
        self.next += 1;
        let bytes = [&header.encode(), text.as_bytes()].concat();
        let file = std::fs::OpenOptions::new()
            .append(true)
            .open(&self.paths[0]);
        file.and_then(|mut file| file.write_all(&bytes))
            .expect("written");
    }
}

fn web() -> Name {
    "web".parse().expect("a name")
}

type Stream<'a> = api::client::LogStream<'a>;

async fn text(stream: &mut Stream<'_>) -> Option<String> {
    let line = stream.next().await.expect("no error")?;
    Some(String::from_utf8(line.data).expect("text"))
}

/// Follows the log while `state` is what the engine says, and does `then` with it.
async fn following(
    state: &std::cell::Cell<Option<State>>,
    then: impl AsyncFnOnce(&mut Stream<'_>, &mut Output, watch::Sender<u64>),
) {
    locally(async {
        let mut stage = Stage::new(true).await;
        let mut output = Output::of(&stage);
        output.write("before ");
        let follow = async {
            let (shop, web) = (shop(), web());
            let stream = stage.client.logs(&shop, &web, true, None).await;
            let mut stream = stream.expect("a stream");
            assert_eq!(text(&mut stream).await.as_deref(), Some("before "));
            then(&mut stream, &mut output, stage.changes).await;
        };
        tokio::select! {
            () = play(&mut stage.requests, || state.get()) => {}
            () = follow => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the follower hangs"),
        }
    })
    .await;
}

async fn turns(
    state: &std::cell::Cell<Option<State>>,
    to: Option<State>,
    said: &watch::Sender<u64>,
) {
    state.set(to);
    said.send_modify(|n| *n += 1);
    // Others have their turn.
    tokio::task::yield_now().await;
}

#[tokio::test]
async fn who_follows_a_machine_that_has_ended_gets_its_output_and_the_end() {
    let state = std::cell::Cell::new(Some(State::Exited));
    following(&state, async |stream, _, _changes| {
        assert_eq!(text(stream).await, None);
    })
    .await;
}

#[tokio::test]
async fn who_follows_a_machine_gets_its_last_words_and_then_the_end() {
    let state = std::cell::Cell::new(Some(State::Running));
    following(&state, async |stream, output, changes| {
        output.write("while ");
        assert_eq!(text(stream).await.as_deref(), Some("while "));
        output.write("last");
        turns(&state, Some(State::Exited), &changes).await;
        assert_eq!(text(stream).await.as_deref(), Some("last"));
        assert_eq!(text(stream).await, None);
    })
    .await;
}

#[tokio::test]
async fn who_follows_a_machine_that_is_deleted_gets_its_last_words_too() {
    let state = std::cell::Cell::new(Some(State::Running));
    following(&state, async |stream, output, changes| {
        output.write("last");
        let directory = output.paths[0].parent().expect("a directory");
        std::fs::remove_dir_all(directory).expect("removed");
        turns(&state, None, &changes).await;
        assert_eq!(text(stream).await.as_deref(), Some("last"));
        assert_eq!(text(stream).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_follower_stays_over_a_restart() {
    let state = std::cell::Cell::new(Some(State::Running));
    following(&state, async |stream, output, changes| {
        for next in [State::Backoff, State::Starting, State::Running] {
            turns(&state, Some(next), &changes).await;
            output.write("again ");
            assert_eq!(text(stream).await.as_deref(), Some("again "));
        }
    })
    .await;
}

#[tokio::test]
async fn who_follows_a_machine_that_never_ran_gets_the_end_when_it_is_deleted() {
    locally(async {
        let mut stage = Stage::new(true).await;
        let state = std::cell::Cell::new(Some(State::Pending));
        let follow = async {
            let (shop, web) = (shop(), web());
            let stream = stage.client.logs(&shop, &web, true, None).await;
            let mut stream = stream.expect("a stream");
            turns(&state, None, &stage.changes).await;
            assert_eq!(text(&mut stream).await, None);
        };
        tokio::select! {
            () = play(&mut stage.requests, || state.get()) => {}
            () = follow => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the follower hangs"),
        }
    })
    .await;
}

#[tokio::test]
async fn a_log_that_breaks_off_does_not_look_like_its_end() {
    let state = std::cell::Cell::new(Some(State::Running));
    following(&state, async |stream, _, changes| {
        // The engine is gone.
        drop(changes);
        let error = stream.next().await.expect_err("an error");
        assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    })
    .await;
}
