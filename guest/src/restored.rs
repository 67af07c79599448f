//! A machine that goes on from a snapshot becomes one of its own.
//!
//! ```text
//! connections gone → all stands still → connect anew → identity: random numbers, network, clock, names,
//! generation → all goes on
//! ```
//!
//! Owns: the order in which the identity is taken on, and the generation that programs can read.
//! Refuses: to let a program run on without one. Whom a second machine shares its secrets with it cannot know.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use sys::error::During;
use types::Name;
use types::guest::{FIRST_GENERATION, GENERATION_PATH, Identity, Link, RunSpec};

use crate::control::{now_ms, timeout};
use crate::error::{Result, SetupError};
use crate::{link, names, program};

/// How long all of a program's threads may take to stand still. Each does at its next return to its own code;
/// one that waits for a disk, when the disk has answered.
const FREEZE_MS: u64 = 10_000;
/// Digits of a generation, and of the entropy that comes with it.
const GENERATION_DIGITS: usize = FIRST_GENERATION.len();
const ENTROPY_DIGITS: usize = 64;

/// Who this machine is at present.
#[derive(Debug)]
pub(crate) struct Standing {
    hostname: Name,
    link: Option<Link>,
}

/// An identity whose texts are what they should be.
#[derive(Debug)]
struct Checked<'a> {
    entropy: Vec<u8>,
    generation: &'a str,
}

fn check(identity: &Identity) -> Result<Checked<'_>> {
    let generation = identity.generation.as_str();
    let digits = |text: &str, count| text.len() == count && text.bytes().all(is_digit);
    if !digits(generation, GENERATION_DIGITS) || !digits(&identity.entropy, ENTROPY_DIGITS) {
        return Err(SetupError::Identity);
    }
    let pairs = identity.entropy.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let entropy = pairs.map(byte).collect::<Option<Vec<u8>>>();
    Ok(Checked {
        entropy: entropy.ok_or(SetupError::Identity)?,
        generation,
    })
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

impl Standing {
    pub(crate) fn new(spec: &RunSpec) -> Self {
        Self {
            hostname: spec.hostname.clone(),
            link: spec.link.clone(),
        }
    }

    /// Everything that must differ from the machine in the snapshot, the kernel's random numbers first: what
    /// comes later may need some.
    pub(crate) fn take_on(&mut self, identity: &Identity) -> Result<()> {
        let Checked {
            entropy,
            generation,
        } = check(identity)?;
        sys::random::add_entropy(&entropy)?;
        if let Some(new) = &identity.link {
            link::change(self.link.as_ref(), new)?;
            self.link = Some(new.clone());
        }
        sys::clock::set_realtime(Duration::from_nanos(identity.time_ns))?;
        if let Some(hostname) = &identity.hostname {
            self.hostname = hostname.clone();
        }
        names::set(&self.hostname, self.link.as_ref())?;
        publish(generation)
    }
}

/// Before the program starts: who watches the file finds it.
pub(crate) fn first() -> Result<()> {
    publish(FIRST_GENERATION)
}

fn publish(generation: &str) -> Result<()> {
    let path = Path::new(GENERATION_PATH);
    let directory = path.parent().expect("the constant has one");
    fs::create_dir_all(directory).during(|| format!("make {}", directory.display()))?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.expect("the constant has a name");
    names::replace(directory, name, &format!("{generation}\n"))
}

/// Has the program and all its children stand still; returns when they do.
pub(crate) fn freeze() -> Result<()> {
    turn(true)?;
    let events = Path::new(program::CGROUP).join("cgroup.events");
    let during = || format!("watch {}", events.display());
    let deadline_ms = now_ms().saturating_add(FREEZE_MS);
    let mut file = fs::File::open(&events).during(during)?;
    loop {
        use std::io::Seek;
        let mut text = String::new();
        file.rewind().during(during)?;
        file.read_to_string(&mut text).during(during)?;
        if program::count(&text, "frozen") == 1 {
            return Ok(());
        }
        if now_ms() >= deadline_ms {
            thaw()?;
            return Err(SetupError::Moving {
                seconds: FREEZE_MS / 1000,
            });
        }
        // The kernel tells of each change of this file as urgent data.
        let poll = PollFd::new(file.as_fd(), PollFlags::POLLPRI);
        match nix::poll::poll(&mut [poll], timeout(now_ms(), Some(deadline_ms))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).during(during).map_err(Into::into),
        }
    }
}

pub(crate) fn thaw() -> Result<()> {
    turn(false)
}

fn turn(frozen: bool) -> Result<()> {
    let path = Path::new(program::CGROUP).join("cgroup.freeze");
    let word = if frozen { "1" } else { "0" };
    fs::write(&path, word).during(|| format!("write {word} to {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            generation: "0123456789abcdef0123456789abcdef".to_owned(),
            entropy: "0f".repeat(32),
            time_ns: 1,
            link: None,
            hostname: None,
        }
    }

    #[test]
    fn an_identity_is_read_as_the_host_has_written_it() {
        let identity = identity();
        let checked = check(&identity).expect("as it should be");
        assert_eq!(checked.entropy, [0x0f; 32]);
        assert_eq!(checked.generation, identity.generation);
    }

    #[test]
    fn an_identity_of_other_digits_is_refused() {
        for generation in [
            "",
            "0",
            "0123456789ABCDEF0123456789abcdef",
            "g123456789abcdef0123456789abcdef",
        ] {
            let generation = generation.to_owned();
            assert!(
                check(&Identity {
                    generation,
                    ..identity()
                })
                .is_err()
            );
        }
        for entropy in [
            String::new(),
            "0f".repeat(31),
            "+f".repeat(32),
            "é".repeat(32),
        ] {
            assert!(
                check(&Identity {
                    entropy,
                    ..identity()
                })
                .is_err()
            );
        }
    }
}
