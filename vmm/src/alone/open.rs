//! From paths to descriptors: everything a machine needs, opened by whoever started it.
//!
//! Owns: each open, and the advice where one fails. The machine's process opens nothing.
//! Refuses: a writable disk that another machine has, and links that do not exist.

use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group};
use types::Bytes;
use types::vm::{
    Base, Console, ConsoleKind, DISK_QUEUES_MAX, Disk, Fd, Log, Net, Pmem, Restore, SPEC_FD, VmSpec,
};

use super::listener::ListenError;
use super::sockets::Sockets;
use super::spec::{
    ConsoleFile, DiskFile, From, LogFile, MachineFile, NetFile, RestoreFile, SocketFile,
};

const KVM: &str = "/dev/kvm";
const VHOST: &str = "/dev/vhost-net";
const TUN: &str = "/dev/net/tun";
const LINKS: &str = "/sys/class/net";

#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(
        "{0} does not exist: turn virtualisation on in the firmware, then `modprobe kvm_intel` or `modprobe kvm_amd`"
    )]
    NoKvm(&'static str),
    #[error("you may not open {device}: {advice}")]
    Forbidden {
        device: &'static str,
        advice: String,
        #[source]
        source: io::Error,
    },
    #[error("open {0}")]
    Device(&'static str, #[source] io::Error),
    #[error("open {}: check `{field}`", .path.display())]
    Open {
        field: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no regular file or block device: check `{field}`", .path.display())]
    Kind { field: String, path: PathBuf },
    #[error("{} is in use by another machine: stop that one, or make both `read_only`", .0.display())]
    InUse(PathBuf),
    #[error("`memory` of {0} is no whole number of MiB")]
    Memory(Bytes),
    #[error(
        "there is no link {0:?}: make it with `ip tuntap add dev {0} mode tap user $USER vnet_hdr` and `ip link set {0} up`"
    )]
    NoTap(String),
    #[error("the TAP {0:?} is attached to another process: stop that one")]
    TapInUse(String),
    #[error("attach to the TAP {0:?}")]
    Tap(String, #[source] io::Error),
    #[error("there is no kernel: name one as `kernel`, or a snapshot as `restore`")]
    NoKernel,
    #[error("{} is being written by another machine: wait for its snapshot, or copy an older one", .0.display())]
    Unfinished(PathBuf),
    #[error("check `vsock`")]
    Listen(#[source] ListenError),
    #[error("make a socket pair")]
    Pair(#[source] io::Error),
}

/// A machine that can be started.
#[derive(Debug)]
pub(super) struct Opened {
    /// Names descriptors by the numbers they will have in the machine's process.
    pub(super) spec: VmSpec,
    /// Those descriptors, from number 4 on: the specification is 3.
    pub(super) fds: Vec<OwnedFd>,
    /// Our end of the control socket.
    pub(super) control: OwnedFd,
    /// The broker of the guest's vsock.
    pub(super) sockets: Option<Sockets>,
    /// Our end of the guest's console.
    pub(super) console: Option<UnixStream>,
    /// The console is a terminal: it takes what is typed.
    pub(super) terminal: bool,
}

/// Gives descriptors their numbers.
#[derive(Default)]
struct Passed(Vec<OwnedFd>);

impl Passed {
    fn pass(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.0.push(fd.into());
        let behind_spec = i32::try_from(self.0.len()).expect("the devices of a machine are few");
        Fd(SPEC_FD + behind_spec)
    }
}

/// Opens everything. `base`: the directory that relative paths begin at.
pub(super) fn open(file: &MachineFile, base: &Path) -> Result<Opened, OpenError> {
    let memory_mib = file.memory.as_mib();
    if Bytes::mib(memory_mib) != file.memory {
        return Err(OpenError::Memory(file.memory));
    }
    let mut passed = Passed::default();
    let kvm = passed.pass(device(KVM)?);
    let mut spec = VmSpec::without_kernel(file.name.clone(), file.cpus, memory_mib, kvm);
    match (&file.restore, &file.kernel) {
        (Some(from), _) => spec.restore = Some(restore(base, from, &mut passed)?),
        (None, None) => return Err(OpenError::NoKernel),
        (None, Some(kernel)) => {
            let kernel = readable(base, kernel, "kernel".to_owned())?;
            spec.kernel = Some(passed.pass(kernel));
            for (index, part) in file.initramfs.iter().enumerate() {
                let part = readable(base, part, format!("initramfs[{index}]"))?;
                spec.initramfs.push(passed.pass(part));
            }
        }
    }
    spec.track_memory = file.track_memory;
    spec.cmdline.clone_from(&file.cmdline);
    spec.topology = file.topology;
    spec.huge_pages = file.huge_pages;
    spec.balloon = file.balloon;
    (spec.watchdog, spec.rtc, spec.pvpanic) = (file.watchdog, file.rtc, file.pvpanic);
    for (index, path) in file.pmems.iter().enumerate() {
        let fd = passed.pass(readable(base, path, format!("pmems[{index}]"))?);
        spec.pmems.push(Pmem { fd });
    }
    for (index, wanted) in file.disks.iter().enumerate() {
        let image = disk_file(base, wanted, index)?;
        spec.disks
            .push(disk(wanted, index, file.cpus, passed.pass(image)));
    }
    for wanted in &file.nets {
        spec.nets.push(net(wanted, &mut passed)?);
    }
    if let Some(log) = &file.log {
        spec.log = Some(log_files(base, log, &mut passed)?);
    }
    let sockets = sockets(base, &file.vsock, &mut spec, &mut passed)?;
    let console = console(file.console, &mut spec, &mut passed)?;
    let (control, theirs) = sys::socket::pair().map_err(OpenError::Pair)?;
    spec.control = Some(passed.pass(theirs));
    Ok(Opened {
        spec,
        fds: passed.0,
        control,
        sockets,
        console,
        terminal: file.console == ConsoleFile::Terminal,
    })
}

/// Puts the broker and its ports into the specification; gives our end of it.
fn sockets(
    base: &Path,
    files: &[SocketFile],
    spec: &mut VmSpec,
    passed: &mut Passed,
) -> Result<Option<Sockets>, OpenError> {
    if files.is_empty() {
        return Ok(None);
    }
    let (ours, theirs) = sys::socket::pair().map_err(OpenError::Pair)?;
    sys::socket::set_nonblocking(&ours).map_err(OpenError::Pair)?;
    let exits = files.iter().filter(|file| file.from == From::Guest);
    spec.sockets = Some(types::vm::Sockets {
        broker: passed.pass(theirs),
        ports: exits.map(|file| file.port).collect(),
    });
    let sockets = Sockets::open(ours, files, base).map_err(OpenError::Listen)?;
    Ok(Some(sockets))
}

/// Puts the console into the specification; gives our end of it.
fn console(
    wanted: ConsoleFile,
    spec: &mut VmSpec,
    passed: &mut Passed,
) -> Result<Option<UnixStream>, OpenError> {
    if wanted == ConsoleFile::None {
        return Ok(None);
    }
    let (ours, theirs) = UnixStream::pair().map_err(OpenError::Pair)?;
    // Of a serial port what nobody reads is lost; the guest does not wait.
    theirs.set_nonblocking(true).map_err(OpenError::Pair)?;
    let fd = passed.pass(theirs);
    let device = if wanted == ConsoleFile::Terminal {
        let kind = ConsoleKind::Terminal;
        spec.console = Some(Console { fd, kind });
        "hvc0"
    } else {
        spec.serial = Some(fd);
        "ttyS0"
    };
    spec.cmdline = with_console(&spec.cmdline, device);
    Ok(Some(ours))
}

/// The command line with a console on it, unless it names one.
fn with_console(cmdline: &str, device: &str) -> String {
    let named = cmdline.split(' ').any(|word| word.starts_with("console="));
    match (named, cmdline.is_empty()) {
        (true, _) => cmdline.to_owned(),
        (false, true) => format!("console={device}"),
        (false, false) => format!("{cmdline} console={device}"),
    }
}

fn device(path: &'static str) -> Result<File, OpenError> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|source| match source.kind() {
        ErrorKind::NotFound if path == KVM => OpenError::NoKvm(path),
        ErrorKind::PermissionDenied => OpenError::Forbidden {
            device: path,
            advice: advice(path),
            source,
        },
        _ => OpenError::Device(path, source),
    })
}

/// Who may open a device.
fn advice(path: &str) -> String {
    let Ok(metadata) = std::fs::metadata(path) else {
        return "ask who administers this machine".to_owned();
    };
    let group = Group::from_gid(Gid::from_raw(metadata.gid()));
    let name = match group {
        Ok(Some(group)) => group.name,
        _ => metadata.gid().to_string(),
    };
    // Read and write for the group.
    if metadata.mode() & 0o060 == 0o060 && name != "root" {
        format!("its group is {name:?}: `sudo usermod -aG {name} $USER`, then log in anew")
    } else {
        "only its owner may: ask who administers this machine".to_owned()
    }
}

fn readable(base: &Path, path: &Path, field: String) -> Result<File, OpenError> {
    let path = base.join(path);
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((metadata, file)) if metadata.is_file() => Ok(file),
        Ok(_) => Err(OpenError::Kind { field, path }),
        Err(source) => Err(OpenError::Open {
            field,
            path,
            source,
        }),
    }
}

/// A disk's image, locked for as long as anybody has the descriptor: by one machine that writes, or by any
/// number that read.
fn disk_file(base: &Path, wanted: &DiskFile, index: usize) -> Result<File, OpenError> {
    let (path, field) = (base.join(&wanted.path), format!("disks[{index}].path"));
    let mut options = File::options();
    let opened = options.read(true).write(!wanted.read_only).open(&path);
    let opened = opened.and_then(|file| Ok((file.metadata()?.file_type(), file)));
    let (kind, file) = match opened {
        Ok(found) => found,
        Err(source) => {
            return Err(OpenError::Open {
                field,
                path,
                source,
            });
        }
    };
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::Kind { field, path });
    }
    let locked = if wanted.read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path)),
        Err(TryLockError::Error(source)) => Err(OpenError::Open {
            field,
            path,
            source,
        }),
    }
}

/// The files of a snapshot, locked against being written anew for as long as the machine has them.
fn restore(base: &Path, from: &RestoreFile, passed: &mut Passed) -> Result<Restore, OpenError> {
    let mut both = |state: &Path, memory: &Path, field: &str| {
        let mut kept = |path: &Path, part: &str| {
            let name = format!("{field}.{part}");
            let file = readable(base, path, name.clone())?;
            match file.try_lock_shared() {
                Ok(()) => Ok(passed.pass(file)),
                Err(TryLockError::WouldBlock) => Err(OpenError::Unfinished(base.join(path))),
                Err(TryLockError::Error(source)) => Err(OpenError::Open {
                    field: name,
                    path: base.join(path),
                    source,
                }),
            }
        };
        Ok((kept(state, "state")?, kept(memory, "memory")?))
    };
    let (state, memory) = both(&from.state, &from.memory, "restore")?;
    let mut restore = Restore::new(state, memory);
    for (index, base) in from.bases.iter().enumerate() {
        let field = format!("restore.bases[{index}]");
        let (state, memory) = both(&base.state, &base.memory, &field)?;
        restore.bases.push(Base { state, memory });
    }
    restore.trusted = from.trusted;
    Ok(restore)
}

fn disk(wanted: &DiskFile, index: usize, cpus: u8, fd: Fd) -> Disk {
    let serial = wanted.serial.clone();
    let serial = serial.unwrap_or_else(|| format!("disk{index}"));
    Disk {
        queues: wanted.queues.unwrap_or(cpus.min(DISK_QUEUES_MAX)),
        limit: wanted.limit,
        engine: wanted.engine,
        ..Disk::new(&serial, fd, wanted.read_only)
    }
}

fn net(wanted: &NetFile, passed: &mut Passed) -> Result<Net, OpenError> {
    let name = &wanted.tap;
    // Opening a link that is missing would make one that nobody connects, and that goes with us.
    if name.contains('/') || !Path::new(LINKS).join(name).exists() {
        return Err(OpenError::NoTap(name.clone()));
    }
    let tap = sys::tap::open(name).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => OpenError::TapInUse(name.clone()),
        Some(libc::EACCES | libc::EPERM) => OpenError::Forbidden {
            device: TUN,
            advice: format!(
                "make {name} yours: `ip tuntap add dev {name} mode tap user $USER vnet_hdr`"
            ),
            source,
        },
        _ => OpenError::Tap(name.clone(), source),
    })?;
    let vhost = wanted.vhost.then(|| device(VHOST)).transpose()?;
    Ok(Net {
        vhost: vhost.map(|fd| passed.pass(fd)),
        limit: wanted.limit,
        ..Net::new(passed.pass(tap), wanted.mac, wanted.mtu)
    })
}

fn log_files(base: &Path, log: &LogFile, passed: &mut Passed) -> Result<Log, OpenError> {
    let mut file = |end: &str| {
        let mut path = base.join(&log.path).into_os_string();
        path.push(end);
        let path = PathBuf::from(path);
        let mut options = File::options();
        let opened = options.read(true).append(true).create(true).open(&path);
        let field = "log.path".to_owned();
        let file = opened.map_err(|source| OpenError::Open {
            field,
            path,
            source,
        })?;
        Ok(passed.pass(file))
    };
    Ok(Log {
        files: [file(".a")?, file(".b")?],
        max_bytes: log.size.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: &dyn std::error::Error) -> String {
        crate::chain(error)
    }

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().expect("directory")
    }

    fn disk_of(path: &str, read_only: bool) -> DiskFile {
        let json = format!(r#"{{"path": "{path}", "read_only": {read_only}}}"#);
        serde_json::from_str(&json).expect("a disk")
    }

    #[test]
    fn a_path_that_is_wrong_is_named_with_its_field() {
        let base = directory();
        let error = readable(base.path(), Path::new("gone"), "kernel".into()).expect_err("gone");
        let text = text(&error);
        assert!(
            text.contains("gone: check `kernel`") && text.contains("No such file"),
            "{text}"
        );
        let error =
            readable(base.path(), Path::new("."), "initramfs[1]".into()).expect_err("a directory");
        assert!(
            error.to_string().contains("is no regular file")
                && error.to_string().contains("`initramfs[1]`")
        );
        let error = disk_file(base.path(), &disk_of("none.img", false), 3).expect_err("gone");
        assert!(
            error
                .to_string()
                .contains("none.img: check `disks[3].path`"),
            "{error}"
        );
    }

    #[test]
    fn a_disk_is_written_by_one_machine_or_read_by_many() {
        let base = directory();
        std::fs::write(base.path().join("d"), [0; 512]).expect("writes");
        let open = |read_only| disk_file(base.path(), &disk_of("d", read_only), 0);
        let writer = open(false).expect("nobody has it");
        assert!(matches!(open(false), Err(OpenError::InUse(_))));
        assert!(matches!(open(true), Err(OpenError::InUse(_))));
        drop(writer);
        let _readers = [open(true), open(true)].map(|r| r.expect("only readers"));
        assert!(matches!(open(false), Err(OpenError::InUse(_))));
    }

    #[test]
    fn a_snapshot_is_read_by_many_and_not_while_it_is_written() {
        let base = directory();
        for name in ["s", "m", "s1", "m1"] {
            std::fs::write(base.path().join(name), "x").expect("writes");
        }
        let json = r#"{"state": "s1", "memory": "m1", "bases": [{"state": "s", "memory": "m"}]}"#;
        let from: RestoreFile = serde_json::from_str(json).expect("a snapshot");
        let (mut one, mut two) = (Passed::default(), Passed::default());
        for passed in [&mut one, &mut two] {
            let restore = restore(base.path(), &from, passed).expect("nobody writes");
            let numbers = [restore.state, restore.memory, restore.bases[0].state];
            assert_eq!(numbers, [Fd(4), Fd(5), Fd(6)]);
        }
        let writer = File::options().write(true).open(base.path().join("m"));
        let writer = writer.expect("opens");
        assert!(writer.try_lock().is_err(), "machines run from it");
        drop((one, two));
        writer.try_lock().expect("nobody has it");
        let error = restore(base.path(), &from, &mut Passed::default()).expect_err("in the making");
        assert!(matches!(error, OpenError::Unfinished(_)), "{error}");
        let gone = RestoreFile {
            memory: "gone".into(),
            ..from
        };
        let error = restore(base.path(), &gone, &mut Passed::default()).expect_err("gone");
        assert!(
            error.to_string().contains("check `restore.memory`"),
            "{error}"
        );
    }

    #[test]
    fn a_tap_that_does_not_exist_is_not_made_but_explained() {
        let json = r#"{"tap": "sifr-none0", "mac": "02:00:00:00:00:01"}"#;
        let wanted: NetFile = serde_json::from_str(json).expect("a card");
        let error = net(&wanted, &mut Passed::default()).expect_err("no link");
        let text = error.to_string();
        assert!(
            text.contains("ip tuntap add dev sifr-none0 mode tap"),
            "{text}"
        );
    }

    #[test]
    fn memory_that_is_no_whole_number_of_mebibytes_is_refused_before_anything_is_opened() {
        let json = r#"{"kernel": "none", "memory": "65537Ki"}"#;
        let file: MachineFile = serde_json::from_str(json).expect("a machine");
        let error = open(&file, Path::new("/")).expect_err("odd");
        assert_eq!(
            error.to_string(),
            "`memory` of 65537Ki is no whole number of MiB"
        );
    }

    #[test]
    fn a_console_is_added_to_a_command_line_that_names_none() {
        assert_eq!(with_console("", "ttyS0"), "console=ttyS0");
        assert_eq!(with_console("a=b", "ttyS0"), "a=b console=ttyS0");
        assert_eq!(with_console("console=hvc0 x", "ttyS0"), "console=hvc0 x");
    }

    #[test]
    fn who_may_not_open_a_device_is_told_which_group_to_join() {
        // A directory that belongs to a group stands for a device.
        let metadata = std::fs::metadata("/dev/full").expect("a device");
        let advice = advice("/dev/full");
        let named = advice.contains("usermod") || advice.contains("only its owner");
        assert!(named && metadata.file_type().is_char_device(), "{advice}");
        assert!(super::advice("/dev/none").contains("administers"));
    }
}
