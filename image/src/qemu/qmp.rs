//! QEMU's machine protocol (QEMU document `interop/qmp-spec`).
//!
//! Owns: one connection: greeting, commands, answers.
//! Refuses: waiting for ever, and events, which it skips: the console tells what happened.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Longest wait for an answer: QEMU answers between two instructions of the machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Most events skipped before an answer.
const EVENTS_MAX: usize = 1000;

#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// `stream` is connected to a QEMU that may not have greeted yet.
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .context("set up the monitor")?;
        let mut qmp = Self {
            reader: BufReader::new(stream),
        };
        let greeting = qmp.line().context("read the monitor's greeting")?;
        if greeting.get("QMP").is_none() {
            bail!("the monitor greets with {greeting}");
        }
        qmp.run("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    pub(super) fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        let what = || format!("ask the monitor for {command}");
        self.reader
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .with_context(what)?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.line().with_context(what)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("the monitor refuses {command}: {error}");
            }
        }
        bail!("the monitor does not answer {command}")
    }

    /// Skips events until QEMU ends. False when `timeout` goes by first.
    pub(super) fn wait_for_end(&mut self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        let mut line = String::new();
        loop {
            // A machine that resets again and again sends events for ever.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.reader
                .get_ref()
                .set_read_timeout(Some(left))
                .context("set up the monitor")?;
            line.clear();
            match self.reader.read_line(&mut line) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(true),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("wait for QEMU's end"),
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self
            .reader
            .read_line(&mut line)
            .context("read from the monitor")?
            == 0
        {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("understand the monitor's {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_machine_that_resets_for_ever_is_not_waited_for_for_ever() {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        let mut qmp = Qmp {
            reader: BufReader::new(ours),
        };
        let qemu =
            thread::spawn(move || while theirs.write_all(b"{\"event\": \"RESET\"}\n").is_ok() {});
        assert!(!qmp.wait_for_end(Duration::from_millis(50)).expect("events"));
        drop(qmp);
        qemu.join().expect("the other end");
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        drop(theirs);
        let mut qmp = Qmp {
            reader: BufReader::new(ours),
        };
        assert!(qmp.wait_for_end(Duration::from_secs(10)).expect("an end"));
    }

    #[test]
    fn events_before_an_answer_are_skipped_and_refusals_are_told() {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let qemu = thread::spawn(move || {
            let mut reader = BufReader::new(theirs);
            let mut says = |line: &str, wait: bool| {
                reader.get_mut().write_all(line.as_bytes()).expect("write");
                let mut request = String::new();
                if wait {
                    reader.read_line(&mut request).expect("a request");
                }
                request
            };
            says("{\"QMP\": {}}\n", true);
            let stop = says("{\"return\": {}}\n", true);
            says("{\"event\": \"STOP\"}\n{\"return\": {\"a\": 1}}\n", true);
            says("{\"error\": {\"class\": \"GenericError\"}}\n", false);
            stop
        });
        let mut qmp = Qmp::new(ours).expect("greeted");
        assert_eq!(
            qmp.run("stop", &json!({})).expect("an answer"),
            json!({"a": 1})
        );
        let error = qmp.run("fly", &json!({})).expect_err("refused");
        assert!(error.to_string().contains("the monitor refuses fly"));
        assert!(qmp.run("stop", &json!({})).is_err(), "QEMU has ended");
        let request = qemu.join().expect("the other end");
        assert_eq!(request, "{\"execute\":\"stop\",\"arguments\":{}}\n");
    }
}
