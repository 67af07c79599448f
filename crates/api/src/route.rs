//! What a request asks for, read from its method, path and query.
//!
//! Owns: the table of routes, both directions; body limits; what a wait waits for.
//! Refuses: any other spelling: unknown paths, unknown or repeated query fields, percent signs.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};
use types::deployment::Protocol;
use types::status::{
    DeploymentStatus, Desired, Refusal, RefusalCode, State, VolumeState, VolumeStatus,
};
use types::trace::{DestinationError, Question, Way};
use types::{Digest, Name};

use crate::envelope::ENVELOPE_MAX;
use crate::logs::{Begin, TAIL_MAX};

/// Largest .flist file: the metadata of an image of several hundred GiB.
pub const FLIST_MAX: u64 = 64 << 20;
/// Largest stored chunk: 1 MiB of plain bytes, and what zstd adds where nothing can be gained.
pub const CHUNK_MAX: u64 = (1 << 20) + (64 << 10);
/// Longest wait that one request may ask for; a client asks again. Middleboxes drop idle connections later.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest path with query: the longest route with the longest names is under 300 bytes.
pub const TARGET_MAX: usize = 1024;
/// Largest body of an unlocking: a serial and a passphrase, each letter of which JSON may write as six.
pub const UNLOCK_MAX: u64 = 8 << 10;
/// Largest body of a drill: three short fields, the two names of at most 63 bytes.
pub const DRILL_MAX: u64 = 512;
/// Largest body of a confirmation: one number.
pub const CONFIRM_MAX: u64 = 64;
/// Longest part of a frame that a capture keeps, and the whole of any that a card hands over: segments which are still to be
/// cut into frames of the link have up to 64 KiB and their headers.
pub const SNAP_MAX: u32 = 128 << 10;

/// Which frames of a machine are captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// Of the card in this network. `None`: of the first.
    pub network: Option<Name>,
    /// Bytes of each frame, at most; 1 to [`SNAP_MAX`].
    pub snap: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `GET /v1/node`
    Node,
    /// `GET /v1/node/dmesg`
    Dmesg,
    /// `GET /v1/node/links`: a list of `types::links::LinkStatus`
    Links,
    /// `GET /v1/node/routes`: a list of `types::links::RouteStatus`
    Routes,
    /// `GET /v1/node/disks`
    Disks,
    /// `POST /v1/node/disks/claim`
    ClaimDisks,
    /// `POST /v1/node/disks/unlock`: with the passphrase that the recovery key has opened
    UnlockDisk,
    /// `POST /v1/node/decommission`: the keys of disks are destroyed
    Decommission,
    /// `POST /v1/node/network`: another set of options for the node's own network, until it is confirmed
    SetNetwork,
    /// `POST /v1/node/network/confirm`
    ConfirmNetwork,
    /// `POST /v1/node/network/revert`: without waiting for its time to run out
    RevertNetwork,
    /// `PUT /v1/flists/{hex}`
    PutFlist(Digest),
    /// `GET /v1/flists/{hex}/trace`: what its first run on the node touched, as `flist::trace` has it
    Trace(Digest),
    /// `PUT /v1/chunks/{hex}`: the digest of the stored bytes
    PutChunk(Digest),
    /// `POST /v1/statements`
    PostStatement,
    /// `GET /v1/deployments`
    Deployments,
    /// `GET /v1/deployments/{name}`, at once or when it is so
    Deployment { name: Name, wait: Option<Wait> },
    /// `GET /v1/deployments/{name}/workloads/{w}/logs`
    Logs {
        deployment: Name,
        workload: Name,
        follow: bool,
        begin: Begin,
    },
    /// `GET /v1/deployments/{name}/workloads/{w}/capture`: the frames of a card of its, from now on
    Capture {
        deployment: Name,
        workload: Name,
        frames: Frames,
    },
    /// `GET /v1/deployments/{name}/workloads/{w}/trace`: whether a first packet gets from there to somewhere, or from outside to there
    NetworkTrace {
        deployment: Name,
        workload: Name,
        question: Question,
    },
    /// `GET /v1/deployments/{name}/networks/{network}`: what joins it with the same network on other nodes
    Membership(Name, Name),
    /// `POST /v1/node/drill`
    Drill,
    /// `GET /v1/node/metrics`: of the node and all machines, for Prometheus
    NodeMetrics,
    /// `GET /v1/deployments/{name}/metrics`: of its machines
    Metrics(Name),
}

/// Answer once `until` is met or never can be, at the latest after `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub until: Until,
    pub timeout: Duration,
}

/// What a deployment is waited for to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Every program runs.
    Running,
    /// No program runs, and none will be started.
    Stopped,
    /// Every program ended by itself and stays so.
    Exited,
    /// The deployment is gone.
    Deleted,
}

/// How a wait stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Met,
    NotYet,
    /// Nothing that is under way leads there.
    Never,
}

impl Until {
    /// Judges a status. Node and client use the same words.
    pub fn judge(self, status: &DeploymentStatus) -> Verdict {
        let all = |fits: fn(State) -> bool| status.workloads.values().all(|w| fits(w.state));
        let gone = status.workloads.is_empty() && status.volumes.is_empty();
        // A volume that goes holds nobody up.
        let kept = |state| matches!(state, VolumeState::Ready | VolumeState::Removing);
        let volumes = status.volumes.values().all(|v| kept(v.state));
        // One that cannot be changed does not run.
        let failed = |state| matches!(state, VolumeState::Failed);
        let quiet = |v: &VolumeStatus| kept(v.state) || failed(v.state);
        let quiet = status.volumes.values().all(quiet);
        let rest = |state| matches!(state, State::Stopped | State::Exited);
        let exited = |state| matches!(state, State::Exited);
        let met_or = |met, otherwise| if met { Verdict::Met } else { otherwise };
        match (self, status.desired) {
            (Self::Deleted, Desired::Deleted) => met_or(gone, Verdict::NotYet),
            (Self::Deleted, Desired::Running | Desired::Stopped) => Verdict::Never,
            (Self::Running | Self::Exited, Desired::Deleted | Desired::Stopped) => Verdict::Never,
            (Self::Stopped, Desired::Deleted) => met_or(gone, Verdict::NotYet),
            (Self::Stopped, Desired::Stopped) => met_or(all(rest) && quiet, Verdict::NotYet),
            // Programs that have all ended by themselves count as stopped; running ones may still end.
            (Self::Stopped, Desired::Running) => met_or(all(exited), Verdict::NotYet),
            (Self::Exited, Desired::Running) => met_or(all(exited), Verdict::NotYet),
            (Self::Running, Desired::Running) => {
                let some_exited = status.workloads.values().any(|w| w.state == State::Exited);
                let otherwise = if some_exited {
                    Verdict::Never
                } else {
                    Verdict::NotYet
                };
                let running = all(|state| matches!(state, State::Running));
                met_or(running && volumes, otherwise)
            }
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Deleted => "deleted",
        })
    }
}

impl FromStr for Until {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "running" => Ok(Self::Running),
            "stopped" => Ok(Self::Stopped),
            "exited" => Ok(Self::Exited),
            "deleted" => Ok(Self::Deleted),
            _ => Err(format!(
                "{s:?} is nothing to wait for: use running, stopped, exited or deleted"
            )),
        }
    }
}

impl Route {
    /// Reads a request line. `target` is path and query.
    pub fn parse(method: &Method, target: &str) -> Result<Self, Refusal> {
        if target.len() > TARGET_MAX {
            return Err(malformed("the request's path is too long"));
        }
        let (path, query) = target
            .split_once('?')
            .map_or((target, None), |(path, query)| (path, Some(query)));
        let unknown = || Refusal {
            code: RefusalCode::NotFound,
            message: format!(
                "there is no request {method} {path}: compare the versions of client and node"
            ),
        };
        let segments: Vec<&str> = path
            .strip_prefix("/v1/")
            .ok_or_else(unknown)?
            .split('/')
            .collect();
        let mut query = Query::parse(query)?;
        let route = match (method.as_str(), segments.as_slice()) {
            ("GET", ["node"]) => Self::Node,
            ("GET", ["node", "dmesg"]) => Self::Dmesg,
            ("GET", ["node", "links"]) => Self::Links,
            ("GET", ["node", "routes"]) => Self::Routes,
            ("GET", ["node", "disks"]) => Self::Disks,
            ("POST", ["node", "disks", "claim"]) => Self::ClaimDisks,
            ("POST", ["node", "disks", "unlock"]) => Self::UnlockDisk,
            ("POST", ["node", "decommission"]) => Self::Decommission,
            ("POST", ["node", "network"]) => Self::SetNetwork,
            ("POST", ["node", "network", "confirm"]) => Self::ConfirmNetwork,
            ("POST", ["node", "network", "revert"]) => Self::RevertNetwork,
            ("PUT", ["flists", hex]) => Self::PutFlist(digest(hex)?),
            ("GET", ["flists", hex, "trace"]) => Self::Trace(digest(hex)?),
            ("PUT", ["chunks", hex]) => Self::PutChunk(digest(hex)?),
            ("POST", ["statements"]) => Self::PostStatement,
            ("GET", ["deployments"]) => Self::Deployments,
            ("GET", ["deployments", name]) => Self::Deployment {
                name: label(name)?,
                wait: query.wait()?,
            },
            ("GET", ["deployments", name, "workloads", workload, "logs"]) => Self::Logs {
                deployment: label(name)?,
                workload: label(workload)?,
                follow: query.flag("follow")?,
                begin: query.begin()?,
            },
            ("GET", ["deployments", name, "workloads", workload, "capture"]) => Self::Capture {
                deployment: label(name)?,
                workload: label(workload)?,
                frames: query.frames()?,
            },
            ("GET", ["deployments", name, "workloads", workload, "trace"]) => Self::NetworkTrace {
                deployment: label(name)?,
                workload: label(workload)?,
                question: query.question()?,
            },
            ("GET", ["deployments", name, "networks", network]) => {
                Self::Membership(label(name)?, label(network)?)
            }
            ("POST", ["node", "drill"]) => Self::Drill,
            ("GET", ["node", "metrics"]) => Self::NodeMetrics,
            ("GET", ["deployments", name, "metrics"]) => Self::Metrics(label(name)?),
            _ => return Err(unknown()),
        };
        query.finish()?;
        Ok(route)
    }

    pub fn method(&self) -> Method {
        match self {
            Self::PutFlist(_) | Self::PutChunk(_) => Method::PUT,
            Self::PostStatement
            | Self::Drill
            | Self::ClaimDisks
            | Self::UnlockDisk
            | Self::SetNetwork
            | Self::ConfirmNetwork
            | Self::RevertNetwork
            | Self::Decommission => Method::POST,
            Self::Node
            | Self::Dmesg
            | Self::Links
            | Self::Routes
            | Self::Disks
            | Self::Trace(_)
            | Self::Deployments
            | Self::Deployment { .. }
            | Self::NodeMetrics
            | Self::Metrics(_)
            | Self::Capture { .. }
            | Self::NetworkTrace { .. }
            | Self::Membership(..)
            | Self::Logs { .. } => Method::GET,
        }
    }

    /// Path and query: the inverse of [`Route::parse`].
    pub fn target(&self) -> String {
        match self {
            Self::Node => "/v1/node".to_owned(),
            Self::Dmesg => "/v1/node/dmesg".to_owned(),
            Self::Links => "/v1/node/links".to_owned(),
            Self::Routes => "/v1/node/routes".to_owned(),
            Self::Disks => "/v1/node/disks".to_owned(),
            Self::ClaimDisks => "/v1/node/disks/claim".to_owned(),
            Self::UnlockDisk => "/v1/node/disks/unlock".to_owned(),
            Self::Decommission => "/v1/node/decommission".to_owned(),
            Self::SetNetwork => "/v1/node/network".to_owned(),
            Self::ConfirmNetwork => "/v1/node/network/confirm".to_owned(),
            Self::RevertNetwork => "/v1/node/network/revert".to_owned(),
            Self::PutFlist(digest) => format!("/v1/flists/{}", digest.hex()),
            Self::Trace(digest) => format!("/v1/flists/{}/trace", digest.hex()),
            Self::PutChunk(digest) => format!("/v1/chunks/{}", digest.hex()),
            Self::PostStatement => "/v1/statements".to_owned(),
            Self::Deployments => "/v1/deployments".to_owned(),
            Self::Deployment { name, wait: None } => format!("/v1/deployments/{name}"),
            Self::Deployment {
                name,
                wait: Some(Wait { until, timeout }),
            } => {
                format!(
                    "/v1/deployments/{name}?wait={until}&timeout_ms={}",
                    timeout.as_millis()
                )
            }
            Self::Logs {
                deployment,
                workload,
                follow,
                begin,
            } => {
                let begin = match begin {
                    Begin::Oldest => String::new(),
                    Begin::Tail(tail) => format!("&tail={tail}"),
                    Begin::After { seq, time_ms } => format!("&after={seq}&time_ms={time_ms}"),
                };
                let follow = u8::from(*follow);
                format!(
                    "/v1/deployments/{deployment}/workloads/{workload}/logs?follow={follow}{begin}"
                )
            }
            Self::Capture {
                deployment,
                workload,
                frames,
            } => {
                let asked = framed(frames);
                format!("/v1/deployments/{deployment}/workloads/{workload}/capture?{asked}")
            }
            Self::NetworkTrace {
                deployment,
                workload,
                question,
            } => {
                let asked = asked(question);
                format!("/v1/deployments/{deployment}/workloads/{workload}/trace?{asked}")
            }
            Self::Membership(name, network) => {
                format!("/v1/deployments/{name}/networks/{network}")
            }
            Self::Drill => "/v1/node/drill".to_owned(),
            Self::NodeMetrics => "/v1/node/metrics".to_owned(),
            Self::Metrics(name) => format!("/v1/deployments/{name}/metrics"),
        }
    }

    /// Most bytes of the request's body.
    pub fn body_max(&self) -> u64 {
        match self {
            Self::PutFlist(_) => FLIST_MAX,
            Self::PutChunk(_) => CHUNK_MAX,
            Self::PostStatement | Self::ClaimDisks | Self::Decommission | Self::SetNetwork => {
                ENVELOPE_MAX as u64
            }
            Self::ConfirmNetwork | Self::RevertNetwork => CONFIRM_MAX,
            Self::UnlockDisk => UNLOCK_MAX,
            Self::Drill => DRILL_MAX,
            Self::Node
            | Self::Dmesg
            | Self::Links
            | Self::Routes
            | Self::Disks
            | Self::Trace(_)
            | Self::Deployments
            | Self::Deployment { .. }
            | Self::NodeMetrics
            | Self::Metrics(_)
            | Self::Capture { .. }
            | Self::NetworkTrace { .. }
            | Self::Membership(..)
            | Self::Logs { .. } => 0,
        }
    }
}

/// The query of a question.
fn asked(question: &Question) -> String {
    let way = match &question.way {
        Way::To(destination) => format!("to={destination}"),
        Way::FromOutside => "from=outside".to_owned(),
    };
    match question.port {
        None => way,
        Some((Protocol::Tcp, port)) => format!("{way}&tcp={port}"),
        Some((Protocol::Udp, port)) => format!("{way}&udp={port}"),
    }
}

fn framed(Frames { network, snap }: &Frames) -> String {
    match network {
        None => format!("snap={snap}"),
        Some(network) => format!("network={network}&snap={snap}"),
    }
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal {
        code: RefusalCode::Malformed,
        message: message.into(),
    }
}

fn digest(hex: &str) -> Result<Digest, Refusal> {
    Digest::from_hex(hex).map_err(|error| malformed(error.to_string()))
}

fn label(name: &str) -> Result<Name, Refusal> {
    name.parse()
        .map_err(|error: types::id::IdError| malformed(error.to_string()))
}

/// Query fields that have not been asked for yet.
struct Query<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Query<'a> {
    fn parse(query: Option<&'a str>) -> Result<Self, Refusal> {
        let mut fields = BTreeMap::new();
        for field in query.into_iter().flat_map(|query| query.split('&')) {
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| malformed(format!("the query field {field:?} has no value")))?;
            if fields.insert(name, value).is_some() {
                return Err(malformed(format!("the query field {name:?} stands twice")));
            }
        }
        Ok(Self(fields))
    }

    fn number(&mut self, name: &str, max: u64) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.0.remove(name) else {
            return Ok(None);
        };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && *number <= max);
        let error = || {
            malformed(format!(
                "the query field {name} is {text:?}, allowed is a number up to {max}"
            ))
        };
        number.ok_or_else(error).map(Some)
    }

    fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        Ok(self.number(name, 1)? == Some(1))
    }

    fn frames(&mut self) -> Result<Frames, Refusal> {
        let network = self.0.remove("network").map(label).transpose()?;
        let snap = self.snap()?;
        Ok(Frames { network, snap })
    }

    fn snap(&mut self) -> Result<u32, Refusal> {
        let bytes = self.number("snap", u64::from(SNAP_MAX))?;
        let bytes = bytes.map_or(Ok(SNAP_MAX), u32::try_from);
        let bytes = bytes.ok().filter(|bytes| *bytes > 0);
        bytes.ok_or_else(|| malformed(format!("snap is 1 to {SNAP_MAX} bytes of each frame")))
    }

    fn question(&mut self) -> Result<Question, Refusal> {
        let mut port = |name: &str, protocol: Protocol| -> Result<_, Refusal> {
            let number = self.number(name, u16::MAX.into())?;
            let number = number.and_then(|number| u16::try_from(number).ok());
            Ok(number.map(|number| (protocol, number)))
        };
        let (tcp, udp) = (port("tcp", Protocol::Tcp)?, port("udp", Protocol::Udp)?);
        if tcp.is_some() && udp.is_some() {
            return Err(malformed("a packet is TCP or UDP, not both"));
        }
        let way = match (self.0.remove("to"), self.0.remove("from")) {
            (Some(to), None) => to.parse().map(Way::To).map_err(|error| {
                let error: DestinationError = error;
                malformed(error.to_string())
            })?,
            (None, Some("outside")) => Way::FromOutside,
            _ => return Err(malformed("a trace is to=ADDRESS or NAME, or from=outside")),
        };
        let port = tcp.or(udp);
        Ok(Question { way, port })
    }

    fn begin(&mut self) -> Result<Begin, Refusal> {
        let tail = self.number("tail", TAIL_MAX)?;
        let (seq, time) = (
            self.number("after", u64::MAX)?,
            self.number("time_ms", u64::MAX)?,
        );
        match (tail, seq, time) {
            (None, None, None) => Ok(Begin::Oldest),
            (Some(tail), None, None) => Ok(Begin::Tail(tail)),
            (None, Some(seq), Some(time_ms)) => Ok(Begin::After { seq, time_ms }),
            _ => Err(malformed(
                "a log begins at the query field tail, or behind a record with after and time_ms, and not at both",
            )),
        }
    }

    fn wait(&mut self) -> Result<Option<Wait>, Refusal> {
        let Some(until) = self.0.remove("wait") else {
            return Ok(None);
        };
        let until = until.parse().map_err(malformed)?;
        let max = u64::try_from(WAIT_MAX.as_millis()).expect("a minute of milliseconds fits");
        let timeout = self
            .number("timeout_ms", max)?
            .map_or(WAIT_MAX, Duration::from_millis);
        Ok(Some(Wait { until, timeout }))
    }

    fn finish(self) -> Result<(), Refusal> {
        match self.0.first_key_value() {
            None => Ok(()),
            Some((name, _)) => Err(malformed(format!(
                "the query field {name:?} is not known for this request"
            ))),
        }
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
