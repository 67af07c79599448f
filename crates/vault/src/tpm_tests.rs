//! A TPM as QEMU gives it to its machines: `swtpm`, over its socket.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::{any, prop, prop_assert, proptest};

use super::*;

/// How long the emulator may take to make its socket.
const PATIENCE: Duration = Duration::from_secs(20);
/// It tells nobody when its socket is there.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

struct Machine {
    emulator: Child,
    _directory: Option<tempfile::TempDir>,
    tpm: Tpm<UnixStream>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}

fn machine_of(state: &Path, directory: Option<tempfile::TempDir>) -> Machine {
    let socket = state.join("socket");
    let _ = std::fs::remove_file(&socket);
    let text = |what: &str, path: &Path| format!("{what}{}", path.display());
    let emulator = Program::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .args(["--tpmstate", &text("dir=", state)])
        .args(["--server", &text("type=unixio,path=", &socket)])
        .stderr(Stdio::null())
        .spawn()
        .expect("swtpm starts: run 'make setup'");
    let since = Instant::now();
    let device = loop {
        match UnixStream::connect(&socket) {
            Ok(device) => break device,
            Err(error) => assert!(since.elapsed() < PATIENCE, "swtpm: {error}"),
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    Machine {
        emulator,
        _directory: directory,
        tpm: Tpm::new(device),
    }
}

fn machine() -> Machine {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().to_owned();
    machine_of(&state, Some(directory))
}

fn secret() -> Secret {
    crate::draw().expect("random bytes")
}

/// As firmware does when it has found another key of Secure Boot.
fn measure(tpm: &mut Tpm<UnixStream>) {
    // TPM2_PCR_Extend, which nodes never send.
    let body = with_password(PCR.into()).u32(1).u16(SHA256).raw(&[5; 32]);
    let length = u32::try_from(HEAD + body.0.len()).expect("short");
    let text = Writer::default()
        .u16(SESSIONS)
        .u32(length)
        .u32(0x182)
        .raw(&body.0);
    tpm.device.write_all(&text.0).expect("sent");
    let mut answer = [0; 64];
    let _ = tpm.device.read(&mut answer).expect("heard");
    assert_eq!(answer[6..10], [0; 4], "extended");
}

#[test]
fn a_tpm_gives_back_what_it_sealed_as_often_as_it_is_asked() {
    let mut machine = machine();
    let secret = secret();
    let sealed = machine.tpm.seal(&secret).expect("sealed");
    // More often than it has room for keys: none stays behind.
    for _ in 0..10 {
        assert_eq!(machine.tpm.unseal(&sealed).expect("the secret"), secret);
    }
    let parts = [&sealed.public, &sealed.private];
    let holds = |part: &&Vec<u8>| part.windows(32).any(|w| w == secret.as_ref());
    assert!(!parts.iter().any(holds));
}

#[test]
fn a_tpm_gives_it_back_after_its_machine_was_off() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut before = machine_of(directory.path(), None);
    let secret = secret();
    let sealed = before.tpm.seal(&secret).expect("sealed");
    drop(before);
    let mut after = machine_of(directory.path(), None);
    assert_eq!(after.tpm.unseal(&sealed).expect("the secret"), secret);
}

#[test]
fn another_tpm_does_not_and_says_why() {
    let sealed = machine().tpm.seal(&secret()).expect("sealed");
    let mut other = machine();
    for _ in 0..5 {
        let refused = other
            .tpm
            .unseal(&sealed)
            .expect_err("another TPM")
            .to_string();
        assert!(refused.contains("sealed by another TPM"), "{refused}");
    }
}

#[test]
fn other_keys_of_the_firmware_are_another_state_and_that_is_said() {
    let mut machine = machine();
    let sealed = machine.tpm.seal(&secret()).expect("sealed");
    let before = machine.tpm.register().expect("a register");
    measure(&mut machine.tpm);
    assert_ne!(machine.tpm.register().expect("a register"), before);
    for _ in 0..5 {
        let refused = machine
            .tpm
            .unseal(&sealed)
            .expect_err("another state")
            .to_string();
        assert!(refused.contains("Secure Boot"), "{refused}");
    }
    // What is sealed now is opened now.
    let sealed = machine.tpm.seal(&secret()).expect("sealed");
    assert!(machine.tpm.unseal(&sealed).is_ok());
}

#[test]
fn what_was_changed_on_the_disk_is_refused_by_the_tpm() {
    let mut machine = machine();
    let sealed = machine.tpm.seal(&secret()).expect("sealed");
    for at in [0, sealed.private.len() / 2, sealed.private.len() - 1] {
        let mut changed = sealed.clone();
        changed.private[at] ^= 1;
        assert!(machine.tpm.unseal(&changed).is_err());
    }
    let long = Sealed {
        private: vec![0; Sealed::PART_MAX + 1],
        ..sealed
    };
    assert!(matches!(machine.tpm.unseal(&long), Err(TpmError::Sealed)));
}

/// A TPM that answers what somebody else has thought up.
struct Liar(Vec<Vec<u8>>);

impl Read for Liar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let answer = if self.0.is_empty() {
            Vec::new()
        } else {
            self.0.remove(0)
        };
        let length = answer.len().min(buffer.len());
        buffer[..length].copy_from_slice(&answer[..length]);
        Ok(length)
    }
}

impl Write for Liar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn answer(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + body.len()).expect("short");
    Writer::default()
        .u16(NO_SESSIONS)
        .u32(length)
        .u32(0)
        .raw(body)
        .0
}

#[test]
fn what_a_tpm_refuses_is_said_in_words() {
    // Parameter 1, session 1, none: TPM 2.0 Library, part 2, 6.6.
    for (code, words) in [
        (0x1df, "sealed by another TPM"),
        (0x99d, "Secure Boot"),
        (0x9a2, "has a password"),
        (0x185, "switched off"),
        (0x921, "locked"),
        (0x101, "its own test"),
    ] {
        let said = Code(code).to_string();
        assert!(said.contains(words), "{code:#x}: {said}");
    }
}

/// Somebody's chip on the wires between the TPM and its machine.
struct Between {
    device: UnixStream,
    heard: Vec<u8>,
    /// In the answer to which command a bit of which byte from its end is turned.
    turn: Option<(Command, usize)>,
    asked: u32,
}

impl Between {
    fn of(machine: &Machine, turn: Option<(Command, usize)>) -> Tpm<Self> {
        let device = machine.tpm.device.try_clone().expect("a socket");
        Tpm::new(Self {
            device,
            heard: Vec::new(),
            turn,
            asked: 0,
        })
    }

    fn has(&self, secret: &Secret) -> bool {
        self.heard.windows(32).any(|w| w == secret.as_ref())
    }
}

impl Read for Between {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.device.read(buffer)?;
        self.heard.extend(&buffer[..length]);
        if let Some((command, at)) = self.turn
            && command.code() == self.asked
        {
            buffer[length - 1 - at] ^= 1;
        }
        Ok(length)
    }
}

impl Write for Between {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard.extend(bytes);
        self.asked = u32::from_be_bytes(bytes[6..10].try_into().expect("four"));
        self.device.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn who_listens_between_the_tpm_and_its_machine_hears_no_secret() {
    let (machine, secret) = (machine(), secret());
    let mut tpm = Between::of(&machine, None);
    let sealed = tpm.seal(&secret).expect("sealed");
    assert_eq!(tpm.unseal(&sealed).expect("the secret"), secret);
    assert!(tpm.device.heard.len() > 1000 && !tpm.device.has(&secret));
}

#[test]
fn an_answer_that_was_changed_between_is_no_secret_and_no_seal() {
    let (mut machine, secret) = (machine(), secret());
    let sealed = machine.tpm.seal(&secret).expect("sealed");
    // The sum over it, the attributes, the nonce, the secret.
    for at in [0, 31, 34, 40, 70, 80] {
        let mut tpm = Between::of(&machine, Some((Command::Unseal, at)));
        let refused = tpm.unseal(&sealed).expect_err("changed");
        let forged = matches!(refused, TpmError::Forged(Command::Unseal));
        assert!(forged, "{at}: {refused}");
        let mut tpm = Between::of(&machine, Some((Command::Create, at)));
        let refused = tpm.seal(&secret).expect_err("changed");
        let forged = matches!(refused, TpmError::Forged(Command::Create));
        assert!(forged, "{at}: {refused}");
    }
    assert_eq!(machine.tpm.unseal(&sealed).expect("none stays"), secret);
}

proptest! {
    #[test]
    fn no_answer_makes_us_panic(answers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..12), framed: bool) {
        let answers: Vec<_> = answers.iter().map(|a| if framed { answer(a) } else { a.clone() }).collect();
        let sealed = Sealed { public: vec![1; 80], private: vec![2; 200] };
        prop_assert!(Tpm::new(Liar(answers.clone())).unseal(&sealed).is_err());
        let _ = Tpm::new(Liar(answers.clone())).seal(&Secret::default());
        let _ = Tpm::new(Liar(answers)).register();
    }
}

#[test]
fn an_answer_in_pieces_is_put_together_and_one_without_end_is_refused() {
    let body = Writer::default().u32(0).u32(0).u32(1).sized(&[7; 32]);
    let whole = answer(&body.0);
    let pieces = whole.chunks(3).map(<[u8]>::to_vec).collect();
    assert_eq!(
        Tpm::new(Liar(pieces)).register().expect("a register"),
        [7; 32]
    );
    let endless = vec![[&[0, 0, 0xff, 0xff, 0xff, 0xff][..], &[0; 90]].concat(); 99];
    assert!(matches!(
        Tpm::new(Liar(endless)).register(),
        Err(TpmError::Answer(_))
    ));
    assert!(matches!(
        Tpm::new(Liar(Vec::new())).register(),
        Err(TpmError::Answer(_))
    ));
    let none = answer(&Writer::default().u32(0).u32(0).u32(0).0);
    assert!(matches!(
        Tpm::new(Liar(vec![none])).register(),
        Err(TpmError::NoRegister)
    ));
}
