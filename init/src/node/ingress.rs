//! The node's side of ingress: what is served, and the sockets that it is served with.
//!
//! Owns: when there is such a process, the connection, the two listening sockets, private keys on their way from a statement to the
//! process, where machines on other nodes are, and what the process says of itself. Refuses: a byte of a client, and sockets in networks that no name leads to.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use ::ingress::wire::{
    FromIngress, PACKET_MAX, Place, SOCKETS_MAX, SiteConfig, TlsConfig, ToIngress,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::errno::Errno;
use tokio::sync::{Notify, watch};
use tokio::time::MissedTickBehavior;
use types::Name;
use types::ingress::{HTTP_PORT, HTTPS_PORT, Host, Tls};
use types::node::NodeInfo;
use types::status::{CertificateStatus, SiteStatus};
use vault::sealed::RecipientSecret;
use workload::host::PlacedSite;

use elsewhere::Question;
use net::dns::Said;

use super::certificates::{Certificates, Wanted};
use super::network;
use crate::ingress::SOCKET;
use crate::packets::Packets;
use crate::wire::ToPid1;

pub(super) mod brought;
mod elsewhere;

/// Between attempts to reach the process: nothing tells when it listens.
const RETRY: Duration = Duration::from_millis(50);
/// Between two questions after its state.
const ASK: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    /// What is served is known: an agent that has just begun says nothing of it, so that clients notice none of its beginning.
    known: bool,
    sites: BTreeMap<Host, PlacedSite>,
    /// Of machines on other nodes.
    elsewhere: elsewhere::Known,
    configs: Vec<SiteConfig>,
    /// Which of the changes of certificates they say.
    stand: u64,
    /// What is known of certificates that were brought.
    brought: BTreeMap<Host, CertificateStatus>,
    /// In the clear, and by TLS.
    listeners: [Option<OwnedFd>; 2],
    /// Why a port cannot be listened at.
    trouble: Option<String>,
    /// Networks of which sockets are being made: of each one lot at a time, whatever the process asks.
    making: BTreeSet<String>,
    /// What the process has said last.
    statuses: BTreeMap<Host, SiteStatus>,
}

/// A handle; the connection is kept by [`Ingress::run`].
#[derive(Clone)]
pub(crate) struct Ingress {
    state: Rc<RefCell<State>>,
    /// Opens the keys of certificates that were sealed to this node.
    secret: Rc<RecipientSecret>,
    /// Those that the node orders.
    certificates: Certificates,
    pid1: Rc<Packets>,
    wake: Rc<Notify>,
    /// Other machines on other nodes are to be known.
    sought: Rc<Notify>,
}

impl Ingress {
    /// Of the node with this identity. `pid1` starts the process.
    pub(crate) fn new(seed: &[u8; 32], pid1: Rc<Packets>, certificates: Certificates) -> Self {
        Self {
            state: Rc::default(),
            secret: Rc::new(RecipientSecret::of_ed25519(seed)),
            certificates,
            pid1,
            wake: Rc::new(Notify::new()),
            sought: Rc::new(Notify::new()),
        }
    }

    /// These names are served from now on.
    pub(crate) fn converge(&self, sites: &BTreeMap<Host, PlacedSite>) {
        let mut state = self.state.borrow_mut();
        if state.known && state.sites == *sites {
            return;
        }
        let before = std::mem::replace(&mut state.sites, sites.clone());
        let same = |host: &Host| {
            before.get(host).map(|was| &was.key) == sites.get(host).map(|now| &now.key)
        };
        state
            .statuses
            .retain(|host, _| sites.contains_key(host) && same(host));
        let asked = state.elsewhere.has_asked(&elsewhere::questions(sites));
        // The first time not before it is known where the machines on other nodes are: the process may have them from an earlier agent.
        let say = state.known || asked;
        drop(state);
        if say {
            self.renew();
        }
        self.sought.notify_one();
    }

    /// What is served is said anew, with the certificates that there are now.
    fn renew(&self) {
        let mut state = self.state.borrow_mut();
        self.certificates.converge(ordered(&state.sites));
        state.stand = self.certificates.stand();
        let all = state.sites.iter();
        let configs: Vec<SiteConfig> = all
            .map(|(host, placed)| self.config(host, placed, &state.elsewhere))
            .collect();
        state.configs = configs;
        state.brought = brought::statuses(&state.sites);
        state.known = true;
        drop(state);
        self.wake.notify_one();
    }

    /// Finds machines on other nodes, again and again.
    async fn seek(&self) {
        loop {
            let wanted = elsewhere::questions(&self.state.borrow().sites);
            if wanted.is_empty() {
                self.sought.notified().await;
                continue;
            }
            let said = elsewhere::ask(&wanted).await;
            let pause = self.learn(said);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.sought.notified() => {}
            }
        }
    }

    /// Gives how long that counts.
    fn learn(&self, said: BTreeMap<Question, Said>) -> Duration {
        let mut state = self.state.borrow_mut();
        // Others may be wanted by now.
        let wanted = elsewhere::questions(&state.sites);
        let changed = state.elsewhere.learn(&wanted, said);
        let begins = !state.known && state.elsewhere.has_asked(&wanted);
        let pause = state.elsewhere.pause();
        drop(state);
        if changed || begins {
            self.renew();
        }
        pause
    }

    fn config(&self, host: &Host, placed: &PlacedSite, known: &elsewhere::Known) -> SiteConfig {
        let site = &placed.site;
        let there = |machine: &Name| {
            let question = elsewhere::question(placed, machine)?;
            Some((known.address(&question)?, question.network))
        };
        let here = |machine: &Name| {
            let address = *placed.machines.get(machine)?;
            Some((address, network::network_of(address)?.name))
        };
        let place = |backend: &types::ingress::Backend| {
            let machine = &backend.machine;
            let (address, network) = here(machine).or_else(|| there(machine))?;
            let address = SocketAddrV4::new(address, backend.port);
            Some((backend.to_string(), Place { network, address }))
        };
        let names = |route: &types::ingress::SiteRoute| {
            let names = route.to.iter().map(ToString::to_string);
            (route.path.clone(), names.collect())
        };
        SiteConfig {
            host: host.clone(),
            whose: format!("{}/{}", placed.key.signer, placed.key.name),
            tls: site.tls.as_ref().map(|tls| self.tls(host, placed, tls)),
            routes: site.routes.iter().map(names).collect(),
            backends: site.backends().filter_map(place).collect(),
            health: site.health.clone().unwrap_or_default(),
            proofs: self.certificates.proofs(host),
        }
    }

    fn tls(&self, host: &Host, placed: &PlacedSite, tls: &Tls) -> TlsConfig {
        match tls {
            Tls::Acme(_) => self.certificates.tls(host, &placed.key.signer),
            Tls::Passthrough => TlsConfig::Passthrough,
            Tls::Sealed { certificate, key } => {
                let opened = STANDARD.decode(key).ok();
                let opened =
                    opened.and_then(|key| self.secret.open(&host.key_purpose(), &key).ok());
                let key = opened.and_then(|key| String::from_utf8(key.to_vec()).ok());
                let key = key.filter(|key| types::ingress::is_pem(key));
                let certificate = certificate.clone();
                match key {
                    Some(key) => TlsConfig::Own { certificate, key },
                    None => TlsConfig::Broken {
                        why: "its private key was not sealed to this node and for this name: deploy it again".to_owned(),
                    },
                }
            }
        }
    }

    /// How a name is served.
    pub(crate) fn status(&self, host: &Host) -> SiteStatus {
        let state = self.state.borrow();
        let mut status = state.statuses.get(host).cloned().unwrap_or_default();
        let backends = state.sites.get(host).into_iter();
        for backend in backends.flat_map(|placed| placed.site.backends()) {
            // One without a place is stopped, or is about to get one.
            status
                .backends
                .entry(backend.to_string())
                .or_insert(Some(false));
        }
        let nodes = state.sites.get(host).into_iter();
        let nodes = nodes.flat_map(elsewhere::nodes);
        status.nodes = nodes
            .map(|(backend, node)| (backend.to_string(), node.clone()))
            .collect();
        status.message = status.message.or_else(|| state.trouble.clone());
        let now = sys::clock::realtime().as_secs();
        let brought = state.brought.get(host).cloned();
        let brought = brought.map(|status| brought::aged(status, now));
        status.certificate = brought.or_else(|| self.certificates.status(host));
        status
    }

    /// For as long as the agent runs.
    pub(crate) async fn run(self, info: watch::Sender<NodeInfo>) {
        tokio::join!(
            self.keep_connected(),
            self.seek(),
            self.certificates.clone().run(info),
            self.follow_certificates(),
        );
    }

    async fn follow_certificates(&self) {
        loop {
            self.certificates.changed().await;
            // Else it is said with all else.
            if self.state.borrow().known {
                self.renew();
            }
        }
    }

    /// Keeps a connection to whichever process there is, from the first name on. One that an earlier agent had started is found at once,
    /// whether there are names still or not.
    async fn keep_connected(&self) {
        loop {
            match sys::seqpacket::connect(Path::new(SOCKET))
                .and_then(|socket| Packets::new(socket, PACKET_MAX))
            {
                Ok(connection) => {
                    if let Err(error) = self.serve(Rc::new(connection)).await {
                        log::warn!("the connection of ingress broke: {error}");
                    }
                }
                Err(error) => {
                    log::debug!("connect to {SOCKET}: {error}");
                    if self.state.borrow().configs.is_empty() {
                        self.wake.notified().await;
                        continue;
                    }
                    // Where pid1 is not there, nothing is.
                    let _ = self.pid1.send(&ToPid1::Ingress, Vec::new());
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn serve(&self, connection: Rc<Packets>) -> io::Result<()> {
        match connection.receive::<FromIngress>().await? {
            None => return Ok(()),
            Some((FromIngress::Doors { open }, sockets)) => {
                self.state.borrow_mut().keep(open, sockets)
            }
            Some((
                FromIngress::Need { .. } | FromIngress::Site { .. } | FromIngress::Committed { .. },
                _,
            )) => {
                let error = "it says other things before what it listens at";
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        // Whatever was on its way went to the process before.
        self.state.borrow_mut().making.clear();
        if self.state.borrow().known {
            self.say_all(&connection)?;
        }
        let mut ask = tokio::time::interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // All safe to drop.
                received = connection.receive::<FromIngress>() => match received? {
                    Some((message, _)) => self.hear(message, &connection),
                    None => return Ok(()),
                },
                result = connection.serve() => match result? {},
                () = self.wake.notified() => self.say_all(&connection)?,
                _ = ask.tick() => {
                    if self.state.borrow().trouble.is_some() {
                        self.say_all(&connection)?;
                    }
                    if !self.state.borrow().configs.is_empty() {
                        connection.send(&ToIngress::Ask, Vec::new())?;
                    }
                }
            }
        }
    }

    /// What is served, whole: the process takes it on at its end.
    fn say_all(&self, connection: &Packets) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.open_doors();
        connection.send(&ToIngress::Begin, Vec::new())?;
        for (secure, listener) in [false, true].into_iter().zip(&state.listeners) {
            if let Some(listener) = listener {
                let copy = listener.try_clone()?;
                connection.send(&ToIngress::Listener { secure }, vec![copy])?;
            }
        }
        for config in &state.configs {
            let site = ToIngress::Site(Box::new(config.clone()));
            match connection.send(&site, Vec::new()) {
                // One that is too long keeps no other from being served.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    let site = ToIngress::Site(Box::new(unsaid(config, &error)));
                    connection.send(&site, Vec::new())?;
                }
                sent => sent?,
            }
        }
        let number = state.stand;
        connection.send(&ToIngress::Commit { number }, Vec::new())
    }

    fn hear(&self, message: FromIngress, connection: &Rc<Packets>) {
        let mut state = self.state.borrow_mut();
        match message {
            FromIngress::Need { network } => {
                // Whoever has taken the process over gets no socket anywhere else.
                let configs = state
                    .configs
                    .iter()
                    .flat_map(|config| config.backends.values());
                let known: BTreeSet<&str> = configs.map(|place| place.network.as_str()).collect();
                let known = known.contains(network.as_str());
                if known {
                    if state.making.insert(network.clone()) {
                        let (ingress, connection) = (self.clone(), connection.clone());
                        tokio::task::spawn_local(async move {
                            hand_out(network.clone(), connection).await;
                            ingress.state.borrow_mut().making.remove(&network);
                        });
                    }
                } else {
                    log::warn!("ingress asks for sockets in {network:?}, to which no name leads");
                    // Unanswered it would never ask again, when one does.
                    let _ = connection.send(&ToIngress::Sockets { network }, Vec::new());
                }
            }
            FromIngress::Committed { number } => self.certificates.served(number),
            // Said at the beginning alone.
            FromIngress::Doors { .. } => {}
            FromIngress::Site { host, status } => {
                if state.sites.contains_key(&host) {
                    state.statuses.insert(host, *status);
                }
            }
        }
    }
}

impl State {
    /// What the process listens at already, for an agent before this one.
    fn keep(&mut self, open: [bool; 2], sockets: Vec<OwnedFd>) {
        let mut sockets = sockets.into_iter();
        for (listener, open) in self.listeners.iter_mut().zip(open) {
            let socket = open.then(|| sockets.next()).flatten();
            *listener = listener.take().or(socket);
        }
    }

    /// Has the sockets that the names need, and no other.
    fn open_doors(&mut self) {
        self.trouble = None;
        let wanted = wanted_ports(&self.sites);
        for (at, port) in [HTTP_PORT, HTTPS_PORT].into_iter().enumerate() {
            match (wanted[at], &self.listeners[at]) {
                (false, _) => self.listeners[at] = None,
                (true, Some(_)) => {}
                (true, None) => match listen(port) {
                    Ok(listener) => self.listeners[at] = Some(listener),
                    Err(error) => {
                        let why =
                            format!("TCP port {port} of the node cannot be listened at: {error}");
                        log::error!("{why}");
                        self.trouble = Some(why);
                    }
                },
            }
        }
    }
}

/// Names whose certificates the node orders.
fn ordered(sites: &BTreeMap<Host, PlacedSite>) -> BTreeMap<Host, Wanted> {
    let wanted = |(host, placed): (&Host, &PlacedSite)| match &placed.site.tls {
        Some(Tls::Acme(acme)) => {
            let (signer, acme) = (placed.key.signer, acme.clone());
            Some((host.clone(), Wanted { signer, acme }))
        }
        Some(Tls::Passthrough | Tls::Sealed { .. }) | None => None,
    };
    sites.iter().filter_map(wanted).collect()
}

/// A name in place of one that cannot be said.
fn unsaid(config: &SiteConfig, error: &io::Error) -> SiteConfig {
    log::error!("ingress: {} is not served: {error}", config.host);
    SiteConfig {
        tls: Some(TlsConfig::Broken {
            why: format!("it has too many paths, machines or certificates: {error}"),
        }),
        routes: Vec::new(),
        backends: BTreeMap::new(),
        ..config.clone()
    }
}

fn wanted_ports(sites: &BTreeMap<Host, PlacedSite>) -> [bool; 2] {
    let all = sites.iter().map(|(host, placed)| (host, &*placed.site));
    let ports = types::ingress::ports(all);
    [HTTP_PORT, HTTPS_PORT].map(|port| ports.contains(&port))
}

/// Of both families, as the API has it.
fn listen(port: u16) -> io::Result<OwnedFd> {
    let listener = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        }
        bound => bound,
    };
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

/// Sockets in a tenant's network; none where it is not there.
async fn hand_out(network: String, connection: Rc<Packets>) {
    let name = network.clone();
    let made = tokio::task::spawn_blocking(move || network::tcp_sockets(&name, SOCKETS_MAX)).await;
    let sockets = match made {
        Ok(Ok(sockets)) => sockets,
        Ok(Err(error)) => {
            log::warn!("{error}");
            Vec::new()
        }
        Err(error) => {
            log::error!("make sockets in {network}: {error}");
            Vec::new()
        }
    };
    if sockets.is_empty() {
        // It asks again at once: not more often than this.
        tokio::time::sleep(RETRY).await;
    }
    // Fails only where the process has gone: the next one asks for its own.
    let _ = connection.send(&ToIngress::Sockets { network }, sockets);
}
