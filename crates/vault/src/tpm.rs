//! A conversation with a TPM 2.0: it keeps a secret that it gives back to this machine in this state alone.
//!
//! Owns: the commands that this takes (TPM 2.0 Library, parts 2 and 3), and the words for what a TPM refuses.
//! Refuses: keeping anything in the TPM: the sealed secret lies on the disk, the key above it is made anew each time
//! from the TPM's own seed. Answers are read as if an enemy had written them, and a secret crosses the bus encrypted, in a
//! [`Session`].

use std::fmt;
use std::io::{self, Read, Write};

use ring::digest;
use zeroize::Zeroizing;

use crate::session::{self, Offer, Parent, STAYS, Session};
use crate::wire::{Reader, Writer};
use crate::{NoRandom, Secret};

/// The register that is part of the seal: which keys the firmware lets boot (TCG PC Client, 3.3.4). Not those that
/// change with each image or firmware: a node would lock itself out by an update.
pub const PCR: u8 = 7;
/// Longest answer: more than any TPM's buffer.
const ANSWER_MAX: usize = 4096;
/// Tag, size, code.
const HEAD: usize = 10;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
/// The empty password.
const PASSWORD: u32 = 0x4000_0009;
const SHA256: u16 = 0x000b;
const NO_ALGORITHM: u16 = 0x0010;

#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    #[error("speak to the TPM")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Random(#[from] NoRandom),
    #[error("the TPM's answer to {0} cannot be read")]
    Answer(Command),
    #[error(
        "the answer to {0} is not the TPM's: somebody between it and this machine has written it, or it is broken"
    )]
    Forged(Command),
    #[error("the TPM cannot {command}: {code}")]
    Refused { command: Command, code: Code },
    #[error("the TPM has no SHA-256 register {PCR}: its firmware may offer to switch SHA-256 on")]
    NoRegister,
    #[error("what is kept of the sealed secret is damaged")]
    Sealed,
}

/// What was asked, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    CreatePrimary,
    Create,
    Load,
    StartAuthSession,
    PolicyPcr,
    Unseal,
    FlushContext,
    PcrRead,
}

impl Command {
    fn code(self) -> u32 {
        match self {
            Self::CreatePrimary => 0x131,
            Self::Create => 0x153,
            Self::Load => 0x157,
            Self::Unseal => 0x15e,
            Self::FlushContext => 0x165,
            Self::StartAuthSession => 0x176,
            Self::PcrRead => 0x17e,
            Self::PolicyPcr => 0x17f,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreatePrimary => "make its storage key",
            Self::Create => "seal a secret",
            Self::Load => "load the sealed secret",
            Self::StartAuthSession => "start a session",
            Self::PolicyPcr => "compare its registers",
            Self::Unseal => "give the secret",
            Self::FlushContext => "forget a key",
            Self::PcrRead => "read its registers",
        })
    }
}

/// Why a TPM refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// Without the number of the handle, session or parameter that is meant, where it has one.
    fn kind(self) -> u32 {
        match self.0 & 0x80 {
            0 => self.0,
            _ => self.0 & 0xbf,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.kind() {
            0x9f => "it was sealed by another TPM, or this one has been cleared",
            0x9d => {
                "the firmware's boot settings (Secure Boot and its keys, register 7) are others than when it was sealed"
            }
            0xa2 | 0x8e => {
                "its owner hierarchy has a password: clear the TPM in the firmware's setup"
            }
            0x85 => "its owner hierarchy is switched off: switch it on in the firmware's setup",
            0x101 => {
                "it has failed its own test: switch the machine off and on; if that does not help, it is broken"
            }
            0x120 => "it is switched off: switch it on in the firmware's setup",
            0x921 => {
                "it is locked after too many wrong passwords: it opens again by itself, after hours"
            }
            0x100 => "it was not started by the firmware",
            _ => return write!(f, "code {:#x}", self.0),
        };
        write!(f, "{why} (code {:#x})", self.0)
    }
}

/// A secret as only the TPM that sealed it can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub public: Vec<u8>,
    pub private: Vec<u8>,
}

impl Sealed {
    /// Longest part of what a TPM returns for 32 bytes: about 200, by its algorithms.
    pub const PART_MAX: usize = 1024;
}

/// A TPM, behind `/dev/tpmrm0` or a socket.
#[derive(Debug)]
pub struct Tpm<D> {
    device: D,
}

impl<D: Read + Write> Tpm<D> {
    pub fn new(device: D) -> Self {
        Self { device }
    }

    /// The state that a secret is sealed to.
    pub fn register(&mut self) -> Result<[u8; 32], TpmError> {
        let command = Command::PcrRead;
        let answer = self.ask(command, NO_SESSIONS, &selection().0)?;
        let malformed = || TpmError::Answer(command);
        let mut reader = Reader(&answer);
        // How often registers changed, then which ones were read.
        reader.u32().ok_or_else(malformed)?;
        let banks = reader.u32().ok_or_else(malformed)?;
        if banks > 16 {
            return Err(malformed());
        }
        for _ in 0..banks {
            reader.u16().ok_or_else(malformed)?;
            let length = reader.take(1).ok_or_else(malformed)?[0];
            reader.take(length.into()).ok_or_else(malformed)?;
        }
        match reader.u32().ok_or_else(malformed)? {
            0 => Err(TpmError::NoRegister),
            1 => {
                let value = reader.sized().ok_or_else(malformed)?;
                value.try_into().map_err(|_| malformed())
            }
            _ => Err(malformed()),
        }
    }

    /// Seals a secret to this TPM in its present state.
    pub fn seal(&mut self, secret: &Secret) -> Result<Sealed, TpmError> {
        let policy = policy(&self.register()?);
        let parent = self.primary()?;
        let session = self.session(&parent, SessionKind::Hmac);
        let sealed = session.and_then(|mut session| {
            let sealed = self.create(&parent, &mut session, &policy, secret);
            let forgotten = self.flush(session.handle);
            sealed.and_then(|sealed| forgotten.map(|()| sealed))
        });
        let forgotten = self.flush(parent.handle);
        sealed.and_then(|sealed| forgotten.map(|()| sealed))
    }

    /// The secret, if this is the TPM and its state the one that it was sealed in.
    pub fn unseal(&mut self, sealed: &Sealed) -> Result<Secret, TpmError> {
        let parts = [&sealed.public, &sealed.private];
        if parts.iter().any(|part| part.len() > Sealed::PART_MAX) {
            return Err(TpmError::Sealed);
        }
        let parent = self.primary()?;
        let loaded = self.load(parent.handle, sealed);
        let session = self.session(&parent, SessionKind::Policy);
        self.flush(parent.handle)?;
        let (object, session) = match (loaded, session) {
            (Ok(object), Ok(session)) => (object, session),
            (Ok(one), Err(error)) => {
                let _ = self.flush(one);
                return Err(error);
            }
            (Err(error), Ok(session)) => {
                let _ = self.flush(session.handle);
                return Err(error);
            }
            (Err(error), Err(_)) => return Err(error),
        };
        let handle = session.handle;
        let secret = self.unseal_in(session, object, &session::name(&sealed.public));
        let forgotten = self.flush(handle).and_then(|()| self.flush(object));
        // What went wrong first is what is said.
        secret.and_then(|secret| forgotten.map(|()| secret))
    }

    /// The storage key: the same each time, as long as nobody clears the TPM (TCG EK and SRK templates: ECC P-256).
    fn primary(&mut self) -> Result<Parent, TpmError> {
        // Fixed to this TPM and its parent, made by it, used with its password, no lockout, restricted, decrypts.
        const ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 16 | 1 << 17;
        let template = Writer::default()
            .u16(0x0023) // ECC
            .u16(SHA256)
            .u32(ATTRIBUTES)
            .sized(&[])
            .u16(0x0006) // AES
            .u16(128)
            .u16(0x0043) // CFB
            .u16(NO_ALGORITHM)
            .u16(0x0003) // P-256
            .u16(NO_ALGORITHM);
        let public = Writer::default().raw(&template.0).sized(&[]).sized(&[]);
        let body = with_password(OWNER)
            .sized(&Writer::default().sized(&[]).sized(&[]).0)
            .sized(&public.0)
            .sized(&[])
            .u32(0);
        let answer = self.ask(Command::CreatePrimary, SESSIONS, &body.0)?;
        let read = || {
            let mut reader = Reader(&answer);
            let handle = reader.u32()?;
            reader.u32()?;
            Parent::read(handle, reader.sized()?, &template.0)
        };
        read().ok_or(TpmError::Answer(Command::CreatePrimary))
    }

    /// One that only the TPM, which has the key of `parent`, can take part in.
    fn session(&mut self, parent: &Parent, kind: SessionKind) -> Result<Session, TpmError> {
        let command = Command::StartAuthSession;
        let offer = Offer::new(parent).ok_or(TpmError::Answer(Command::CreatePrimary))?;
        let body = Writer::default()
            .u32(parent.handle)
            .u32(NULL)
            .sized(&offer.nonce)
            .sized(&offer.point)
            .u8(kind as u8)
            .u16(0x0006) // AES
            .u16(128)
            .u16(0x0043) // CFB
            .u16(SHA256);
        let answer = self.ask(command, NO_SESSIONS, &body.0)?;
        let read = || {
            let mut reader = Reader(&answer);
            offer.accept(reader.u32()?, reader.sized()?)
        };
        read().ok_or(TpmError::Answer(command))
    }

    fn create(
        &mut self,
        parent: &Parent,
        session: &mut Session,
        policy: &[u8; 32],
        secret: &Secret,
    ) -> Result<Sealed, TpmError> {
        // Fixed to this TPM and its parent, no lockout; used by its policy alone.
        const ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 10;
        let public = Writer::default()
            .u16(0x0008) // a sealed secret
            .u16(SHA256)
            .u32(ATTRIBUTES)
            .sized(policy)
            .u16(NO_ALGORITHM)
            .sized(&[]);
        let sensitive = Writer(Vec::with_capacity(64))
            .sized(&[])
            .sized(secret.as_ref());
        let sensitive = Zeroizing::new(sensitive.0);
        let command = Command::Create;
        let parameters = Writer(Vec::with_capacity(256)).sized(&sensitive);
        let parameters = parameters.sized(&public.0).sized(&[]).u32(0);
        let mut parameters = Zeroizing::new(parameters.0);
        let attributes = STAYS | session::COMMAND;
        let names = [parent.name.as_slice()];
        let auth = session.authorise(command.code(), &names, &mut parameters, attributes)?;
        let body = Writer::default().u32(parent.handle).raw(&auth.0);
        let answer = self.ask(command, SESSIONS, &body.raw(&parameters).0)?;
        let answer = session.open(command.code(), &answer, attributes);
        let answer = answer.ok_or(TpmError::Forged(command))?;
        let read = || {
            let mut reader = Reader(&answer);
            let private = reader.sized()?.to_vec();
            let public = reader.sized()?.to_vec();
            let fits = private.len().max(public.len()) <= Sealed::PART_MAX;
            fits.then_some(Sealed { public, private })
        };
        read().ok_or(TpmError::Answer(command))
    }

    fn load(&mut self, parent: u32, sealed: &Sealed) -> Result<u32, TpmError> {
        let body = with_password(parent)
            .sized(&sealed.private)
            .sized(&sealed.public);
        self.handle(Command::Load, SESSIONS, &body.0)
    }

    fn unseal_in(
        &mut self,
        mut session: Session,
        object: u32,
        name: &[u8],
    ) -> Result<Secret, TpmError> {
        // The present state, whatever it is: the sealed secret knows which it must be.
        let body = Writer::default()
            .u32(session.handle)
            .sized(&[])
            .raw(&selection().0);
        self.ask(Command::PolicyPcr, NO_SESSIONS, &body.0)?;
        let command = Command::Unseal;
        let attributes = STAYS | session::ANSWER;
        let auth = session.authorise(command.code(), &[name], &mut [], attributes)?;
        let body = Writer::default().u32(object).raw(&auth.0);
        let answer = self.ask(command, SESSIONS, &body.0)?;
        let answer = session.open(command.code(), &answer, attributes);
        let answer = answer.ok_or(TpmError::Forged(command))?;
        let secret = Reader(&answer).sized();
        let secret = secret.and_then(|secret| secret.try_into().ok().map(Secret::new));
        secret.ok_or(TpmError::Answer(command))
    }

    fn flush(&mut self, handle: u32) -> Result<(), TpmError> {
        let body = Writer::default().u32(handle);
        self.ask(Command::FlushContext, NO_SESSIONS, &body.0)
            .map(drop)
    }

    /// A command whose answer begins with a handle.
    fn handle(&mut self, command: Command, tag: u16, body: &[u8]) -> Result<u32, TpmError> {
        let answer = self.ask(command, tag, body)?;
        Reader(&answer).u32().ok_or(TpmError::Answer(command))
    }

    /// Sends a command, and returns what is behind the head of its answer.
    fn ask(
        &mut self,
        command: Command,
        tag: u16,
        body: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let length = u32::try_from(HEAD + body.len()).expect("commands are short");
        let mut text = Zeroizing::new(Vec::with_capacity(HEAD + body.len()));
        text.extend(tag.to_be_bytes());
        text.extend(length.to_be_bytes());
        text.extend(command.code().to_be_bytes());
        text.extend(body);
        // The driver takes a command in one piece.
        self.device.write_all(&text)?;
        let mut answer = Zeroizing::new(vec![0; ANSWER_MAX]);
        let mut got = 0;
        let malformed = || TpmError::Answer(command);
        loop {
            // And gives an answer in one, where there is room; a socket gives pieces.
            got += match self.device.read(&mut answer[got..])? {
                0 => return Err(malformed()),
                length => length,
            };
            let Some(head) = answer[..got].first_chunk::<HEAD>() else {
                continue;
            };
            let mut reader = Reader(&head[2..]);
            let length = reader.u32().and_then(|length| usize::try_from(length).ok());
            let code = reader.u32();
            let (Some(length @ HEAD..=ANSWER_MAX), Some(code)) = (length, code) else {
                return Err(malformed());
            };
            match got.cmp(&length) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Greater => return Err(malformed()),
                std::cmp::Ordering::Equal if code != 0 => {
                    return Err(TpmError::Refused {
                        command,
                        code: Code(code),
                    });
                }
                std::cmp::Ordering::Equal => {
                    return Ok(Zeroizing::new(answer[HEAD..length].to_vec()));
                }
            }
        }
    }
}

/// TPML_PCR_SELECTION of the one register.
fn selection() -> Writer {
    Writer::default()
        .u32(1)
        .u16(SHA256)
        .u8(3)
        .raw(&[1 << PCR, 0, 0])
}

/// What a policy of the one register with this value comes to (part 3, TPM2_PolicyPCR).
fn policy(register: &[u8; 32]) -> [u8; 32] {
    let registers = digest::digest(&digest::SHA256, register);
    let text = Writer::default()
        .raw(&[0; 32])
        .u32(Command::PolicyPcr.code())
        .raw(&selection().0)
        .raw(registers.as_ref());
    let policy = digest::digest(&digest::SHA256, &text.0);
    policy.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// A handle, and that it is used with the empty password.
fn with_password(handle: u32) -> Writer {
    let one = Writer::default().u32(PASSWORD).sized(&[]).u8(0).sized(&[]);
    let length = u32::try_from(one.0.len()).expect("nine bytes");
    Writer::default().u32(handle).u32(length).raw(&one.0)
}

/// What a session is for.
#[derive(Debug, Clone, Copy)]
enum SessionKind {
    /// To speak with the TPM and nobody else.
    Hmac = 0,
    /// To show it the state of the machine as well.
    Policy = 1,
}

#[cfg(test)]
#[path = "tpm_tests.rs"]
mod tests;
