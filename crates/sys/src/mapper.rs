//! The device mapper: an encrypted device over a part of another one (linux/dm-ioctl.h, admin-guide/device-mapper/dm-crypt).
//!
//! Owns: the ioctls on its control device, and that no copy of a key is left in memory. Refuses: any target but `crypt`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::error::{During, Result};

/// Where the kernel makes its nodes.
const CONTROL: &str = "/dev/mapper/control";
/// `struct dm_ioctl`, up to its data.
const HEAD: usize = 312;
const NAME_AT: usize = 48;
const NAME_BYTES: usize = 128;
const UUID_AT: usize = NAME_AT + NAME_BYTES;
const UUID_BYTES: usize = 129;
/// `struct dm_target_spec`.
const TARGET: usize = 40;
/// One target with its parameters: a key of 64 bytes in digits, names, numbers.
const ROOM: usize = HEAD + TARGET + 1024;
/// The kernel forgets what it copied of the parameters.
const SECURE_DATA: u32 = 1 << 15;

type Head = [u8; HEAD];
nix::ioctl_readwrite!(dm_remove_all, 0xfd, 1, Head);
nix::ioctl_readwrite!(dm_dev_create, 0xfd, 3, Head);
nix::ioctl_readwrite!(dm_dev_remove, 0xfd, 4, Head);
nix::ioctl_readwrite!(dm_dev_suspend, 0xfd, 6, Head);
nix::ioctl_readwrite!(dm_dev_status, 0xfd, 7, Head);
nix::ioctl_readwrite!(dm_table_load, 0xfd, 9, Head);

/// An encrypted device: AES-256 in XTS, sectors numbered by their place (`aes-xts-plain64`).
pub struct Crypt<'a> {
    /// What the kernel shows it as.
    pub name: &'a str,
    /// Of the header that the key is of.
    pub uuid: &'a str,
    pub device: &'a Path,
    /// Where the data begins in it.
    pub offset_bytes: u64,
    pub bytes: u64,
    pub sector_bytes: u32,
    pub key: &'a [u8; 64],
}

impl std::fmt::Debug for Crypt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crypt({} over {})", self.name, self.device.display())
    }
}

/// What is asked of the control device.
#[derive(Debug, Clone, Copy)]
enum Ask {
    RemoveAll,
    Create,
    Remove,
    /// With flags of zero: the table that was loaded is put to use.
    Resume,
    Status,
    Load,
}

/// Makes the device and returns its node. One that stands under this name already is given back as it is, if it was made of
/// the same header; one of another, whose key is another, is ended first, or this fails: what is written with the one key
/// would be lost with the next boot.
pub fn open(crypt: &Crypt<'_>) -> Result<PathBuf> {
    let during = || {
        format!(
            "make the encrypted device {} over {}",
            crypt.name,
            crypt.device.display()
        )
    };
    let control = File::options()
        .read(true)
        .write(true)
        .open(CONTROL)
        .during(during)?;
    let label = label(crypt);
    match find(&control, crypt.name).during(during)? {
        Some((node, of)) if of == label => return Ok(node),
        Some(_) => drop(ask(&control, Ask::Remove, crypt.name, &[]).during(during)?),
        None => {}
    }
    let made = ask(&control, Ask::Create, crypt.name, label.as_bytes()).and_then(|number| {
        ask(&control, Ask::Load, crypt.name, &table(crypt)?)?;
        ask(&control, Ask::Resume, crypt.name, &[])?;
        Ok(node(number.0))
    });
    if made.is_err() {
        // It may not be there. What went wrong first is what is said.
        let _ = ask(&control, Ask::Remove, crypt.name, &[]);
    }
    made.during(during)
}

/// Ends the device; the kernel forgets its key. Fails with `EBUSY` while it is in use.
pub fn close(name: &str) -> Result<()> {
    let control = File::options().read(true).write(true).open(CONTROL);
    let closed = control.and_then(|control| ask(&control, Ask::Remove, name, &[]));
    closed
        .map(drop)
        .during(|| format!("close the encrypted device {name}"))
}

/// Ends all that are not in use.
pub fn close_all() -> Result<()> {
    let control = File::options().read(true).write(true).open(CONTROL);
    let closed = control.and_then(|control| ask(&control, Ask::RemoveAll, "", &[]));
    closed
        .map(drop)
        .during(|| "close the encrypted devices".to_owned())
}

/// Kernel name of the one device beneath one of ours: `vda1` beneath `/dev/dm-0`.
pub fn beneath(node: &Path) -> Option<String> {
    let name = node.file_name()?.to_str()?;
    name.starts_with("dm-").then_some(())?;
    let below = std::fs::read_dir(Path::new("/sys/block").join(name).join("slaves")).ok()?;
    let mut names = below
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let first = names.next()?;
    names.next().is_none().then_some(first)
}

/// A device's node, and its label.
fn find(control: &File, name: &str) -> io::Result<Option<(PathBuf, String)>> {
    match ask(control, Ask::Status, name, &[]) {
        Ok((number, label)) => Ok(Some((node(number), label))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the mapper calls a UUID. The name is part of it: of two copies of one disk each has its device.
fn label(crypt: &Crypt<'_>) -> String {
    let label = format!("SIFR-{}-{}", crypt.uuid, crypt.name);
    label
        .chars()
        .filter(char::is_ascii)
        .take(UUID_BYTES - 1)
        .collect()
}

fn node(number: u64) -> PathBuf {
    // The kernel's long form of a device's number (linux/kdev_t.h, new_encode_dev).
    let minor = number & 0xff | number >> 12 & !0xff;
    Path::new("/dev").join(format!("dm-{minor}"))
}

/// The one target, its parameters in text behind it.
fn table(crypt: &Crypt<'_>) -> io::Result<Zeroizing<Vec<u8>>> {
    const SECTOR: u64 = 512;
    let device = crypt.device.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM - HEAD));
    bytes.extend(0u64.to_ne_bytes());
    bytes.extend((crypt.bytes / SECTOR).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(b"crypt\0\0\0\0\0\0\0\0\0\0\0");
    bytes.extend(b"aes-xts-plain64 ");
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in crypt.key {
        bytes.extend([
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ]);
    }
    let options = match crypt.sector_bytes {
        512 => "1 allow_discards".to_owned(),
        other => format!("2 allow_discards sector_size:{other}"),
    };
    let offset = crypt.offset_bytes / SECTOR;
    bytes.extend(format!(" 0 {device} {offset} {options}\0").into_bytes());
    if bytes.len() > ROOM - HEAD {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(bytes)
}

/// Number and label of the device that is meant. `data`: the label of one that is made, the table of one that is loaded.
fn ask(control: &File, what: Ask, name: &str, data: &[u8]) -> io::Result<(u64, String)> {
    if name.len() >= NAME_BYTES || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut room = Zeroizing::new([0; ROOM]);
    let put = |room: &mut [u8; ROOM], at: usize, bytes: &[u8]| {
        room[at..][..bytes.len()].copy_from_slice(bytes)
    };
    let number = |value: usize| u32::try_from(value).expect("a small number").to_ne_bytes();
    put(&mut room, 0, &4u32.to_ne_bytes());
    put(&mut room, 12, &number(ROOM));
    put(&mut room, 16, &number(HEAD));
    let (targets, data_at) = match what {
        Ask::Load => (1u32, HEAD),
        Ask::Create => (0, UUID_AT),
        Ask::RemoveAll | Ask::Remove | Ask::Resume | Ask::Status => (0, HEAD),
    };
    put(&mut room, 20, &targets.to_ne_bytes());
    put(&mut room, 28, &SECURE_DATA.to_ne_bytes());
    put(&mut room, NAME_AT, name.as_bytes());
    put(&mut room, data_at, data);
    let (fd, head) = (control.as_raw_fd(), room.as_mut_ptr().cast::<Head>());
    // SAFETY: each of these calls reads and writes at most as many bytes from `head` on as stand in its fourth number,
    // which is the length of `room`; that lives until the call returns, and the descriptor is open.
    unsafe {
        match what {
            Ask::RemoveAll => dm_remove_all(fd, head),
            Ask::Create => dm_dev_create(fd, head),
            Ask::Remove => dm_dev_remove(fd, head),
            Ask::Resume => dm_dev_suspend(fd, head),
            Ask::Status => dm_dev_status(fd, head),
            Ask::Load => dm_table_load(fd, head),
        }
    }?;
    let device = room[40..].first_chunk().expect("room has more");
    let label = room[UUID_AT..][..UUID_BYTES].split(|byte| *byte == 0);
    let label = label.into_iter().next().unwrap_or_default();
    let label = String::from_utf8_lossy(label).into_owned();
    Ok((u64::from_ne_bytes(*device), label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_as_the_kernel_reads_it() {
        let crypt = Crypt {
            name: "sifr-vda1",
            uuid: "0a",
            device: Path::new("/dev/vda1"),
            offset_bytes: 16 << 20,
            bytes: 1 << 30,
            sector_bytes: 4096,
            key: &[0xa5; 64],
        };
        let table = table(&crypt).expect("a table");
        assert_eq!(table[..8], [0; 8]);
        assert_eq!(table[8..16], (2u64 << 20).to_ne_bytes());
        let text = std::str::from_utf8(&table[TARGET..]).expect("text");
        let key = "a5".repeat(64);
        let expected =
            format!("aes-xts-plain64 {key} 0 /dev/vda1 32768 2 allow_discards sector_size:4096\0");
        assert_eq!(text, expected);
        assert!(!format!("{crypt:?}").contains("a5"));
    }

    #[test]
    fn a_device_says_of_which_header_it_was_made() {
        let of = |uuid, name| {
            label(&Crypt {
                name,
                uuid,
                device: Path::new("/dev/vda1"),
                offset_bytes: 0,
                bytes: 0,
                sector_bytes: 512,
                key: &[0; 64],
            })
        };
        let one = of("0a", "sifr-vda1");
        assert!(one != of("0b", "sifr-vda1") && one != of("0a", "sifr-vdb1"));
        let long = "x".repeat(500);
        assert!(of(&long, "sifr-vda1").len() < UUID_BYTES);
    }

    #[test]
    fn a_number_of_the_kernel_names_its_node() {
        for (minor, number) in [
            (0u64, 254 << 8),
            (7, 254 << 8 | 7),
            (256, 254 << 8 | 256 << 12),
            (0x1_2345, 254 << 8 | 0x45 | 0x1_2300 << 12),
        ] {
            assert_eq!(node(number), Path::new("/dev").join(format!("dm-{minor}")));
        }
    }

    #[test]
    fn only_devices_of_ours_have_one_beneath() {
        assert_eq!(beneath(Path::new("/dev/vda1")), None);
        assert_eq!(beneath(Path::new("/dev/dm-98765")), None);
    }
}
