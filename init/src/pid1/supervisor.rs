//! pid1's main loop.
//!
//! Owns: the wait for signals, the node's packets, VMM output and deadlines, and what follows from each.
//! Refuses: policy of its own: `supervise`, `down` and `machines` decide.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use supervise::{Action, Event};
use sys::acpi::PowerButton;
use sys::process::Ended;
use sys::signal::{Signal, Signals};
use sys::watchdog::Watchdog;
use types::VmId;

use super::agents::{Agent, Role};
use super::boot::{Booted, show};
use super::down::{self, Act, Down, Feeding};
use super::drills::Drills;
use super::jail;
use super::link::{Heard, Link};
use super::machines::{Machine, Machines, Output};
use super::patience::{Due, Leaving, Patience};
use crate::console::Console;
use crate::wire::{FDS_MAX, FromPid1, Limits, Mode, PACKET_MAX, Status, ToPid1, Victim};

/// Packets of the node taken in one turn, so that signals are never starved.
const PACKETS_PER_TURN: usize = 64;
/// Agents that are left behind at a time: each keeps its memory, and a node whose disks hold so many has none left that works.
const ABANDONED_MAX: usize = 8;

pub(super) struct Supervisor {
    console: Console,
    signals: Signals,
    button: Option<PowerButton>,
    watchdog: Option<Watchdog>,
    fed: Duration,
    agents: [Agent; 3],
    link: Option<Link>,
    machines: Machines,
    drills: Drills,
    down: Down,
    /// It goes down without the node agent, which did not stop its machines in time.
    forced: bool,
    patience: Patience,
    /// Processes of agents that do not end.
    abandoned: Vec<i32>,
    /// Where agents write what their logger does not catch.
    output: Option<File>,
    buffer: Box<[u8; PACKET_MAX]>,
}

impl Supervisor {
    pub(super) fn new(booted: Booted) -> sys::Result<Self> {
        let Booted { console, watchdog } = booted;
        let signals = Signals::take(&[
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGPWR,
            Signal::SIGPIPE,
        ])?;
        let button = match PowerButton::open() {
            Ok(button) => Some(button),
            Err(error) => {
                log::warn!("the power button does nothing: {}", sys::chain(&error));
                None
            }
        };
        let output = OpenOptions::new()
            .append(true)
            .custom_flags(nix::libc::O_NOCTTY)
            .open("/dev/console")
            .ok();
        Ok(Self {
            console,
            signals,
            button,
            watchdog,
            fed: Duration::ZERO,
            agents: [Role::Chunks, Role::Ingress, Role::Node].map(Agent::new),
            link: None,
            machines: Machines::default(),
            drills: Drills::default(),
            down: Down::No,
            forced: false,
            patience: Patience::default(),
            abandoned: Vec::new(),
            output,
            buffer: Box::new([0; PACKET_MAX]),
        })
    }

    pub(super) fn run(mut self) -> ExitCode {
        let start = now();
        for at in 0..self.agents.len() {
            if self.agents[at].role.is_always_there() {
                self.supervise(at, Event::Start);
            }
        }
        show(&mut self.console, "children", now() - start, Ok(None));
        loop {
            self.turn();
        }
    }

    /// One wait, and everything that has become due.
    fn turn(&mut self) {
        self.flush();
        self.wait();
        self.take_signals();
        self.take_button();
        self.hear_node();
        self.machines.read_outputs();
        for at in 0..self.agents.len() {
            self.supervise(at, Event::Tick);
        }
        self.end_hung_node();
        self.leave_behind();
        let act = self.down.tick(now(), self.children());
        // Only time does this: the node's own word comes another way.
        self.forced |= act == Some(Act::TerminateAll);
        self.act(act);
        self.feed();
    }

    /// Sleeps until a descriptor has something or a deadline has come.
    fn wait(&mut self) {
        let deadlines = self
            .agents
            .iter()
            .filter_map(|a| a.service.deadline())
            .chain(self.down.deadline())
            .chain(self.patience.deadline())
            .chain(self.agents.iter().filter_map(|a| a.leaving.deadline()));
        let feeding = self
            .watchdog
            .as_ref()
            .map(|dog| self.fed + dog.timeout() / 3);
        let earliest = deadlines.chain(feeding).min();
        let timeout = match earliest {
            None => PollTimeout::NONE,
            // Rounded up, so that the deadline has come when poll returns.
            Some(at) => PollTimeout::try_from(at.saturating_sub(now()).as_millis() + 1)
                .unwrap_or(PollTimeout::MAX),
        };
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.button
                .as_ref()
                .map(|b| PollFd::new(b.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(self.link.as_ref().map(|link| {
            let more = if link.has_more_to_say() {
                PollFlags::POLLOUT
            } else {
                PollFlags::empty()
            };
            PollFd::new(link.as_fd(), PollFlags::POLLIN | more)
        }));
        fds.extend(
            self.machines
                .outputs()
                .map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            // Only a programming error leads here; PID 1 that spins or sleeps for ever is worse than none.
            Err(errno) => panic!("pid1 cannot poll: {errno}"),
        }
    }

    fn take_signals(&mut self) {
        loop {
            match self.signals.next() {
                Ok(Some(Signal::SIGCHLD)) => self.reap(),
                Ok(Some(Signal::SIGINT)) => self.ask_down(Mode::Reboot),
                Ok(Some(Signal::SIGTERM | Signal::SIGPWR)) => self.ask_down(Mode::PowerOff),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => panic!("pid1 cannot take signals: {}", sys::chain(&error)),
            }
        }
    }

    fn take_button(&mut self) {
        let pressed = match &self.button {
            Some(button) => button.pressed(),
            None => return,
        };
        match pressed {
            Ok(true) => self.ask_down(Mode::PowerOff),
            Ok(false) => {}
            Err(error) => {
                log::warn!(
                    "the power button does nothing from now on: {}",
                    sys::chain(&error)
                );
                self.button = None;
            }
        }
    }

    fn ask_down(&mut self, mode: Mode) {
        let act = self.down.ask(now(), mode);
        self.act(act);
    }

    fn reap(&mut self) {
        loop {
            match sys::process::reap() {
                Ok(Some((pid, ended))) => {
                    self.ended(pid, ended);
                    if let Some(victim) = self.drills.ended(pid) {
                        let pid = Some(pid);
                        self.say(FromPid1::Drilled { victim, pid });
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    log::error!("{}", sys::chain(&error));
                    return;
                }
            }
        }
    }

    /// A process has ended: an agent, a VMM, or an orphan of one that is nobody's business.
    fn ended(&mut self, pid: i32, ended: Ended) {
        let is_agent = |a: &Agent| a.child.as_ref().is_some_and(|c| c.pid == pid);
        if let Some(at) = self.agents.iter().position(is_agent) {
            self.gone(at);
            if !self.down.is_final() {
                let name = self.agents[at].role.name();
                self.console.line(&format!(
                    "sifr: {name} ended with {ended:?}: starting it again"
                ));
            }
            self.supervise(at, Event::Exited);
            return;
        }
        let status = match ended {
            Ended::Code(code) => Status::Code(code),
            Ended::Signal(signal) => Status::Signal(signal),
        };
        let Some((vm, machine)) = self.machines.ended(pid, status) else {
            self.abandoned.retain(|ghost| *ghost != pid);
            return;
        };
        // The last turn: whatever its pipe still holds.
        machine.output.read();
        let (vm, text) = (vm.clone(), machine.output.text());
        if !text.is_empty() {
            // The last line says most: a VMM reports its error once, at its end.
            let last = text.lines().next_back().unwrap_or_default();
            self.console
                .line(&format!("sifr: vmm {vm} ended with {ended:?}: {last}"));
        }
        jail::remove(&vm);
        self.say(FromPid1::Exited { vm, status });
    }

    /// There is no such agent any more.
    fn gone(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        agent.child = None;
        agent.leaving = Leaving::Not;
        if agent.role == Role::Node {
            self.link = None;
            self.patience.gone();
        }
    }

    /// An agent with a thread in a disk that does not answer cannot end, killed or not: the next one is started without waiting.
    fn leave_behind(&mut self) {
        for at in 0..self.agents.len() {
            let agent = &mut self.agents[at];
            let (Some(child), false) = (&agent.child, self.down.is_final()) else {
                continue;
            };
            match agent.leaving.due(now()) {
                None => {}
                Some(Due::Kill) => {
                    agent.leaving.killed(now());
                    report(agent.signal(Signal::SIGKILL as i32));
                }
                Some(Due::Abandon) if self.abandoned.len() >= ABANDONED_MAX => {
                    agent.leaving = Leaving::Killed(now());
                }
                Some(Due::Abandon) => {
                    self.abandoned.push(child.pid);
                    let name = agent.role.name();
                    self.console.line(&format!(
                        "sifr: {name} is killed and does not end, as a disk holds it: another is started beside it"
                    ));
                    self.gone(at);
                    self.supervise(at, Event::Exited);
                }
            }
        }
    }

    /// Feeds one event to an agent's supervision and does what it asks.
    fn supervise(&mut self, at: usize, event: Event) {
        let mut event = Some(event);
        while let Some(happened) = event.take() {
            let agent = &mut self.agents[at];
            let name = agent.role.name();
            match agent.service.step(now(), happened) {
                None => {}
                Some(Action::Spawn) => {
                    event = Some(match agent.spawn(self.output.as_ref().map(AsFd::as_fd)) {
                        Ok(socket) => {
                            self.connect(socket);
                            Event::Spawned
                        }
                        Err(error) => {
                            self.console.line(&format!(
                                "sifr: {name} cannot start: {}",
                                sys::chain(&error)
                            ));
                            Event::SpawnFailed
                        }
                    });
                }
                Some(Action::Terminate) => report(agent.signal(Signal::SIGTERM as i32)),
                Some(Action::Kill) => report(agent.signal(Signal::SIGKILL as i32)),
            }
        }
    }

    fn connect(&mut self, socket: Option<OwnedFd>) {
        let Some(socket) = socket else { return };
        self.patience.heard(now());
        self.link = Some(Link::new(socket, &self.machines));
        if let Some(mode) = self.down.asked() {
            self.say(FromPid1::Stop { mode });
        }
    }

    fn say(&mut self, message: FromPid1) {
        let Some(link) = &mut self.link else { return };
        if !link.say(message) {
            log::error!("the node agent reads nothing: it is ended, and started again");
            self.end_node();
        }
    }

    /// Its VMs run on; the next node takes them over.
    fn end_hung_node(&mut self) {
        if self.patience.is_over(now()) && !self.down.is_final() {
            self.console
                .line("sifr: the node agent gives no sign of life: it is ended, and started again");
            self.end_node();
        }
    }

    /// Nothing is lost: the next node hears all of it.
    fn end_node(&mut self) {
        self.link = None;
        for agent in self.agents.iter_mut().filter(|a| a.role == Role::Node) {
            agent.leaving.killed(now());
            report(agent.signal(Signal::SIGKILL as i32));
        }
    }

    fn flush(&mut self) {
        let Some(link) = &mut self.link else { return };
        match link.flush(&self.machines) {
            Ok(()) => {}
            // It has closed its end: its exit follows.
            Err(e)
                if e.kind() == io::ErrorKind::BrokenPipe
                    || e.kind() == io::ErrorKind::ConnectionReset =>
            {
                self.link = None
            }
            Err(error) => {
                log::error!("speak to the node agent: {error}");
                self.end_node();
            }
        }
    }

    fn hear_node(&mut self) {
        for _ in 0..PACKETS_PER_TURN {
            let Some(link) = &self.link else { return };
            match link.hear(&mut self.buffer) {
                Ok(Heard::Message(message, fds)) => {
                    self.patience.heard(now());
                    self.obey(message, fds);
                }
                Ok(Heard::Nonsense(error)) => {
                    log::error!("the node agent said what pid1 does not understand: {error}")
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::End) => {
                    self.link = None;
                    let mut agents = self.agents.iter_mut();
                    let node = agents.find(|agent| agent.role == Role::Node);
                    node.into_iter()
                        .for_each(|node| node.leaving.hung_up(now()));
                }
                Err(error) => {
                    log::error!("listen to the node agent: {error}");
                    self.end_node();
                }
            }
        }
    }

    fn obey(&mut self, message: ToPid1, fds: Vec<OwnedFd>) {
        match message {
            // All that it says is a sign of life.
            ToPid1::Alive => {}
            ToPid1::Spawn {
                vm,
                slot,
                child,
                limits,
                tag,
            } => {
                let answer = match self.spawn(&vm, slot, child, &limits, tag, fds) {
                    Ok(pid) => FromPid1::Spawned { vm, pid },
                    Err(error) => FromPid1::SpawnFailed { vm, error },
                };
                self.say(answer);
            }
            ToPid1::Kill { vm, signal } => {
                if let Some(pidfd) = self.machines.get(&vm).and_then(|m| m.pidfd.as_ref()) {
                    report(sys::signal::send(pidfd.as_fd(), signal));
                }
            }
            ToPid1::Drill { victim } => self.drill(victim),
            ToPid1::Forget { vm } => {
                self.machines.forget(&vm);
            }
            ToPid1::Ingress => self.begin_ingress(),
            ToPid1::Shutdown { mode } => {
                let act = self.down.node_agrees(now(), mode);
                self.act(act);
            }
        }
    }

    fn begin_ingress(&mut self) {
        let at = self.agents.iter().position(|a| a.role == Role::Ingress);
        if let Some(at) = at.filter(|_| !self.down.is_final()) {
            self.supervise(at, Event::Start);
        }
    }

    /// What follows is what follows a crash, backoff and all: that bounds how often it can be done.
    fn drill(&mut self, victim: Victim) {
        let agent = |role| {
            let agent = self.agents.iter().find(|a| a.role == role)?;
            let child = agent.child.as_ref()?;
            Some((child.pid, child.pidfd.as_fd()))
        };
        let found = match &victim {
            Victim::Node => agent(Role::Node),
            Victim::Chunks => agent(Role::Chunks),
            Victim::Ingress => agent(Role::Ingress),
            Victim::Machine { vm } => self
                .machines
                .get(vm)
                .and_then(|m| Some((m.pid, m.pidfd.as_ref()?.as_fd()))),
        };
        let killed =
            found.and_then(
                |(pid, pidfd)| match sys::signal::send(pidfd, Signal::SIGKILL as i32) {
                    Ok(()) => Some(pid),
                    Err(error) => {
                        log::warn!("{}", sys::chain(&error));
                        None
                    }
                },
            );
        match killed {
            Some(pid) => {
                let is_it = |agent: &&mut Agent| agent.child.as_ref().is_some_and(|c| c.pid == pid);
                if let Some(agent) = self.agents.iter_mut().find(is_it) {
                    agent.leaving.killed(now());
                }
                self.console
                    .line(&format!("sifr: drill: {victim} (process {pid}) is killed"));
                self.drills.begin(pid, victim);
            }
            None => self.say(FromPid1::Drilled { victim, pid: None }),
        }
    }

    fn spawn(
        &mut self,
        vm: &VmId,
        slot: u16,
        child: usize,
        limits: &Limits,
        tag: String,
        mut fds: Vec<OwnedFd>,
    ) -> Result<i32, String> {
        if self.down.is_final() {
            return Err("the machine goes down".to_owned());
        }
        if let Some(reason) = self.machines.refuse(vm, slot) {
            return Err(reason);
        }
        if fds.len() > FDS_MAX {
            return Err(format!(
                "{} descriptors came, at most {FDS_MAX} may",
                fds.len()
            ));
        }
        if child > fds.len() {
            return Err(format!(
                "{child} descriptors were promised, {} came",
                fds.len()
            ));
        }
        let kept = fds.split_off(child);
        let (reader, writer) = io::pipe().map_err(|e| format!("make a pipe: {e}"))?;
        let reader = OwnedFd::from(reader);
        sys::socket::set_nonblocking(&reader).map_err(|e| format!("prepare a pipe: {e}"))?;
        let process = jail::spawn(vm, slot, limits, &fds, writer).map_err(|e| sys::chain(&e))?;
        let pid = process.pid;
        self.machines.insert(
            vm.clone(),
            Machine {
                slot,
                pid,
                tag,
                pidfd: Some(process.pidfd),
                kept,
                output: Output::new(File::from(reader)),
                status: None,
            },
        );
        Ok(pid)
    }

    fn children(&self) -> usize {
        self.machines.running() + self.agents.iter().filter(|a| a.child.is_some()).count()
    }

    fn act(&mut self, act: Option<Act>) {
        match act {
            None => {}
            Some(Act::TellNode(mode)) => {
                self.console.line(&format!(
                    "sifr: going down ({mode:?}): the node stops its machines"
                ));
                self.say(FromPid1::Stop { mode });
            }
            Some(Act::TerminateAll) => {
                self.console
                    .line("sifr: going down: every process is asked to end");
                for at in 0..self.agents.len() {
                    self.supervise(at, Event::Stop);
                }
                report(sys::signal::send_all(Signal::SIGTERM));
            }
            Some(Act::KillAll) => {
                self.console
                    .line("sifr: going down: what is left is killed");
                report(sys::signal::send_all(Signal::SIGKILL));
            }
            Some(Act::End(mode)) => self.end(mode),
        }
    }

    /// The last acts. Where even the reboot fails, the watchdog or a person must end it.
    fn end(&mut self, mode: Mode) {
        let feed = || {
            if let Some(dog) = &self.watchdog {
                report(dog.feed());
            }
        };
        let feeding = self.watchdog.as_ref().map(|dog| Feeding {
            every: dog.timeout() / 3,
            feed: &feed,
        });
        let forced = self.forced;
        let note = move |pools: &[PathBuf]| {
            if forced {
                pools.iter().for_each(|pool| crate::node::force(pool, mode));
            }
        };
        if let Err(error) = down::settle_disks(note, feeding.as_ref()) {
            self.console.line(&format!("sifr: going down: {error}"));
        }
        // On a reboot it stays armed: a machine that hangs in its reset is reset all the same.
        if mode == Mode::PowerOff
            && let Some(dog) = self.watchdog.take()
        {
            report(dog.disarm());
        }
        self.console.line(&format!("sifr: {mode:?} now"));
        let error = down::end(mode);
        panic!("{}", sys::chain(&error));
    }

    /// The loop turns, so the watchdog is fed: for a node agent that does not turn it has [`Patience`], and a
    /// repair of hours is no reason for a reset, which would begin it anew.
    fn feed(&mut self) {
        let Some(dog) = &self.watchdog else { return };
        if now() >= self.fed + dog.timeout() / 3 {
            self.fed = now();
            report(dog.feed());
        }
    }
}

fn now() -> Duration {
    sys::clock::monotonic()
}

fn report(result: sys::Result<()>) {
    if let Err(error) = result {
        log::warn!("{}", sys::chain(&error));
    }
}
