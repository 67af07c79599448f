//! A machine in QEMU, as data, and the command line it becomes.
//!
//! Owns: every QEMU option this project uses, and the choice of accelerator.
//! Refuses: starting anything ([`Node`] does).

mod console;
mod net;
mod node;
mod qmp;

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use types::Bytes;

use crate::assemble::{CONSOLE_ARGUMENTS, Image};

pub use net::{Card, Forward, Link, Net};
pub use node::{Node, stop};

/// The program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Debian's UEFI firmware.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Its variables as they leave the factory.
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A machine to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub memory: Bytes,
    pub cpus: u8,
    pub boot: Boot,
    pub firmware: Firmware,
    pub disks: Vec<Disk>,
    /// Serials of those that take no writes, and say so. SATA disks always do.
    pub protected: Vec<String>,
    /// Empty PCIe slots, `slot0` onwards, for what is plugged in while the machine runs ([`Node::monitor`]). Disk number N
    /// there is `unitN`.
    pub slots: u8,
    pub nets: Vec<Net>,
    pub clock: Clock,
    pub time: Time,
    pub watchdog: bool,
    pub on_reset: OnReset,
    /// A copy of the console, written by QEMU itself: it goes on when nobody reads.
    pub console_log: Option<PathBuf>,
    /// What the processors held whenever they were reset, and whether by a triple fault: the emulator writes it there.
    pub resets: Option<PathBuf>,
    /// A second monitor, at a socket that other processes can find: see [`stop`].
    pub monitor: Option<PathBuf>,
    /// A second serial port, whose other end listens at this socket.
    pub serial: Option<PathBuf>,
    /// A TPM 2.0: the socket at which its emulator (`swtpm`) listens.
    pub tpm: Option<PathBuf>,
    /// In the machine's SMBIOS tables, type 11.
    pub oem_strings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boot {
    /// The firmware is handed kernel and initramfs.
    Kernel {
        kernel: PathBuf,
        initramfs: PathBuf,
        arguments: String,
    },
    /// The first network card's iPXE fetches `script` from `directory` by TFTP. That card must be
    /// [`Link::User`].
    Network { directory: PathBuf, script: String },
    /// The firmware looks on the disks.
    Disk,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    /// With the chip that keeps its variables: see [`blank_variables`].
    Uefi {
        variables: PathBuf,
    },
}

/// A raw file as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Or what QEMU takes in a file's place: `nbd:unix:/run/disk.sock`.
    pub file: PathBuf,
    pub bus: Bus,
    pub serial: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    Virtio,
    /// With sectors of 4096 bytes.
    Virtio4Kn,
    Nvme,
    Ahci,
    /// Marked as removable.
    Usb,
    /// On a controller of its own. Its serial is a world wide name: `0x5000c50000000001`.
    Scsi,
}

/// What the machine's battery-backed clock shows at power-on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clock {
    Right,
    /// `2020-01-01T00:00:00`, UTC.
    At(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// As on the wall.
    Real,
    /// One nanosecond an instruction, no waiting when idle: a count of work, the same on every machine.
    /// One CPU only. Where the machine waits for a disk or the network, time jumps to its next timer.
    Instructions,
    /// The same while the machine works; while it waits, as on the wall.
    InstructionsAndWaits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReset {
    /// QEMU ends.
    Stop,
    /// The machine boots again.
    Boot,
}

/// What executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// Emulation, of an AMD processor with nested virtualisation.
    Tcg,
}

impl Accelerator {
    /// A /dev/kvm may exist where no unmodified kernel runs on it: only a processor that shows its
    /// virtualisation extension counts.
    pub fn detect() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let usable = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        if usable && has_virtualisation(&processor) {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| matches!(flag, "vmx" | "svm"))
        })
}

impl Machine {
    /// A machine that boots `image` directly, with one user-mode network card and no disk.
    /// `arguments` follow the console's on the kernel command line.
    pub fn new(image: &Image, arguments: &str) -> Self {
        Self {
            memory: Bytes::gib(1),
            cpus: 1,
            boot: Boot::Kernel {
                kernel: image.kernel.clone(),
                initramfs: image.initramfs.clone(),
                arguments: format!("{CONSOLE_ARGUMENTS} {arguments}")
                    .trim_end()
                    .to_owned(),
            },
            firmware: Firmware::Bios,
            disks: Vec::new(),
            protected: Vec::new(),
            slots: 0,
            nets: vec![Net {
                card: Card::Virtio,
                mac: None,
                link: Link::User {
                    forwards: Vec::new(),
                    leased: None,
                },
            }],
            clock: Clock::Right,
            time: Time::Real,
            watchdog: false,
            on_reset: OnReset::Stop,
            console_log: None,
            resets: None,
            monitor: None,
            serial: None,
            tpm: None,
            oem_strings: Vec::new(),
        }
    }

    /// Leads a free port of this machine's loopback to `port` of the node, by the first user-mode
    /// card, and gives it.
    pub fn forward(&mut self, port: u16) -> Result<u16> {
        let host = free_port()?;
        self.forward_from(host, port)?;
        Ok(host)
    }

    /// Puts a second card into the same kind of network, whose lease is `address`, and gives the port of this machine's
    /// loopback that leads to `port` there.
    pub fn second_card(&mut self, address: Ipv4Addr, port: u16) -> Result<u16> {
        let host = free_port()?;
        self.nets.push(Net {
            card: Card::Virtio,
            mac: None,
            link: Link::User {
                forwards: vec![Forward { host, node: port }],
                leased: Some(address),
            },
        });
        Ok(host)
    }

    /// Leads port `host` of this machine's loopback to port `node` of the node.
    pub fn forward_from(&mut self, host: u16, node: u16) -> Result<()> {
        let forwards = self.nets.iter_mut().find_map(|net| match &mut net.link {
            Link::User { forwards, .. } | Link::Trunk { forwards, .. } => Some(forwards),
            Link::Tap { .. } | Link::Switch { .. } | Link::Beside { .. } => None,
        });
        forwards
            .context("the machine has no user-mode network card")?
            .push(Forward { host, node });
        Ok(())
    }

    /// The command line. Serial port and monitor are sockets that QEMU inherits as descriptors 0 and 1.
    pub fn arguments(&self, accelerator: Accelerator) -> Vec<String> {
        let mut line = Line::default();
        line.word("-nodefaults")
            .pair("-display", "none")
            .pair("-vga", "std")
            .pair("-machine", "q35");
        // Instructions are counted by the emulator only.
        let accelerator = match self.time {
            Time::Instructions | Time::InstructionsAndWaits => Accelerator::Tcg,
            Time::Real => accelerator,
        };
        match accelerator {
            Accelerator::Kvm => line.pair("-accel", "kvm").pair("-cpu", "host"),
            // Translated code would take up to 1 GiB of this machine's memory; this much is ample.
            Accelerator::Tcg => line
                .pair("-accel", "tcg,tb-size=256")
                .pair("-cpu", "EPYC,+svm,+npt"),
        };
        line.pair("-m", self.memory.as_mib().to_string());
        line.pair("-smp", self.cpus.to_string());
        match self.time {
            Time::Real => {}
            Time::Instructions => {
                line.pair("-icount", "shift=0,sleep=off");
            }
            Time::InstructionsAndWaits => {
                line.pair("-icount", "shift=0,sleep=on");
            }
        }
        if let Clock::At(time) = &self.clock {
            line.pair("-rtc", format!("base={time}"));
        }
        if self.on_reset == OnReset::Stop {
            line.word("-no-reboot");
        }
        if let Some(file) = &self.resets {
            line.pair("-d", "cpu_reset")
                .pair("-D", file.display().to_string());
        }
        self.firmware.arguments(&mut line);
        if self.watchdog {
            line.pair("-device", "i6300esb")
                .pair("-action", "watchdog=reset");
        }
        let log = self.console_log.as_deref().map_or(String::new(), |file| {
            format!(",logfile={},logappend=off", escaped(file))
        });
        line.pair("-chardev", "socket,id=monitor,fd=1")
            .pair("-mon", "chardev=monitor,mode=control");
        line.pair("-chardev", format!("socket,id=serial,fd=0{log}"));
        line.pair("-serial", "chardev:serial");
        self.socket_arguments(&mut line);
        self.platform_arguments(&mut line);
        self.boot_arguments(accelerator, &mut line);
        self.slot_arguments(&mut line);
        (0..).zip(&self.disks).for_each(|(index, disk)| {
            let protected = self.protected.contains(&disk.serial);
            let access = if protected { ",readonly=on" } else { "" };
            disk.arguments(index, access, &mut line);
        });
        (0..)
            .zip(&self.nets)
            .for_each(|(index, net)| self.net_arguments(index, net, &mut line));
        line.0
    }

    /// What the board has beside its processor.
    fn platform_arguments(&self, line: &mut Line) {
        if let Some(socket) = &self.tpm {
            line.pair(
                "-chardev",
                format!("socket,id=tpm,path={}", escaped(socket)),
            )
            .pair("-tpmdev", "emulator,id=tpm0,chardev=tpm")
            .pair("-device", "tpm-crb,tpmdev=tpm0");
        }
        for string in &self.oem_strings {
            line.pair("-smbios", format!("type=11,value={}", doubled(string)));
        }
    }

    fn slot_arguments(&self, line: &mut Line) {
        if self.slots > 0 {
            // By PCIe's own way, which real machines have, and not by ACPI.
            let native = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off";
            line.pair("-global", native);
        }
        for slot in 0..self.slots {
            let chassis = slot + 1;
            line.pair(
                "-device",
                format!("pcie-root-port,id=slot{slot},chassis={chassis}"),
            );
        }
    }

    /// What listens at a socket for others.
    fn socket_arguments(&self, line: &mut Line) {
        let mut listen = |id, socket: &Path| {
            let socket = escaped(socket);
            let device = format!("socket,id={id},path={socket},server=on,wait=off");
            line.pair("-chardev", device);
        };
        if let Some(socket) = &self.serial {
            listen("second", socket);
        }
        if let Some(socket) = &self.monitor {
            listen("door", socket);
        }
        if self.serial.is_some() {
            line.pair("-serial", "chardev:second");
        }
        if self.monitor.is_some() {
            line.pair("-mon", "chardev=door,mode=control");
        }
    }

    fn boot_arguments(&self, accelerator: Accelerator, line: &mut Line) {
        match &self.boot {
            Boot::Kernel {
                kernel,
                initramfs,
                arguments,
            } => {
                line.pair("-kernel", kernel.display().to_string());
                line.pair("-initrd", initramfs.display().to_string());
                // Where time is this machine's, a busy one is too slow now and then for the kernel's trial of its timer
                // ("IO-APIC + timer doesn't work!"). Under KVM the kernel leaves it out by itself; where instructions are
                // counted it always succeeds, and stays part of what is measured.
                match (accelerator, self.time) {
                    (Accelerator::Tcg, Time::Real) => {
                        line.pair("-append", format!("{arguments} no_timer_check"))
                    }
                    (Accelerator::Kvm, _)
                    | (_, Time::Instructions | Time::InstructionsAndWaits) => {
                        line.pair("-append", arguments)
                    }
                };
            }
            Boot::Network { .. } => {
                line.pair("-boot", "order=n");
            }
            Boot::Disk => {
                line.pair("-boot", "order=c");
            }
        }
    }
}

impl Firmware {
    fn arguments(&self, line: &mut Line) {
        match self {
            Self::Bios => {}
            Self::Uefi { variables } => {
                let chip = "if=pflash,format=raw";
                let variables = escaped(variables);
                line.pair(
                    "-drive",
                    format!("{chip},unit=0,readonly=on,file={UEFI_CODE}"),
                );
                line.pair("-drive", format!("{chip},unit=1,file={variables}"));
            }
        }
    }
}

impl Disk {
    fn arguments(&self, index: usize, access: &str, line: &mut Line) {
        let Self { file, bus, serial } = self;
        let file = escaped(file);
        line.pair(
            "-drive",
            format!("if=none,id=disk{index},format=raw,discard=unmap,file={file}{access}"),
        );
        let common = format!("id=unit{index},drive=disk{index},serial={serial}");
        match bus {
            Bus::Virtio => line.pair("-device", format!("virtio-blk-pci,{common}")),
            Bus::Virtio4Kn => {
                let sectors = "logical_block_size=4096,physical_block_size=4096";
                line.pair("-device", format!("virtio-blk-pci,{sectors},{common}"))
            }
            Bus::Nvme => line.pair("-device", format!("nvme,{common}")),
            Bus::Ahci => line.pair("-device", format!("ide-hd,bus=ide.{index},{common}")),
            Bus::Usb => line
                .pair("-device", format!("qemu-xhci,id=usb{index}"))
                .pair(
                    "-device",
                    format!("usb-storage,bus=usb{index}.0,removable=on,{common}"),
                ),
            Bus::Scsi => line
                .pair("-device", format!("virtio-scsi-pci,id=scsi{index}"))
                .pair(
                    "-device",
                    format!("scsi-hd,bus=scsi{index}.0,wwn={serial},{common}"),
                ),
        };
    }
}

/// Makes a file of zeros that takes no room: a blank disk.
pub fn blank_disk(file: &Path, size: Bytes) -> Result<()> {
    let make = || format!("make the disk {}", file.display());
    let disk = File::create(file).with_context(make)?;
    disk.set_len(size.0).with_context(make)
}

/// Makes a chip of UEFI variables, as new.
pub fn blank_variables(file: &Path) -> Result<()> {
    let make = || format!("copy {UEFI_VARIABLES} to {}", file.display());
    fs::copy(UEFI_VARIABLES, file).map(drop).with_context(make)
}

/// `wish`, if nothing listens there, or any free port.
pub fn port_near(wish: u16) -> Result<u16> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, wish)) {
        Ok(_) => Ok(wish),
        Err(_) => free_port(),
    }
}

/// Below those that Linux gives to who asks for any (`ip_local_port_range`): nobody else gets one by chance before QEMU does, or
/// while a machine is off.
const PORTS: Range<u16> = 20_000..32_768;

/// A port that nothing listens on, for either protocol. Another program may take it before QEMU does; QEMU then says so.
pub fn free_port() -> Result<u16> {
    let anywhere = RandomState::new().build_hasher().finish();
    let first = usize::try_from(anywhere % PORTS.len() as u64)?;
    let mut ports = PORTS.cycle().skip(first).take(PORTS.len());
    let is_free = |port: &u16| {
        let at = (Ipv4Addr::LOCALHOST, *port);
        TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok()
    };
    ports.find(is_free).context("find a free port")
}

fn escaped(path: &Path) -> String {
    doubled(&path.display().to_string())
}

/// A comma ends a value of QEMU's.
fn doubled(text: &str) -> String {
    text.replace(',', ",,")
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn word(&mut self, word: &str) -> &mut Self {
        self.0.push(word.to_owned());
        self
    }

    fn pair(&mut self, option: &str, value: impl Into<String>) -> &mut Self {
        self.0.extend([option.to_owned(), value.into()]);
        self
    }
}

#[cfg(test)]
mod tests {
    use types::Mac;

    use super::*;

    fn machine() -> Machine {
        let path = PathBuf::from;
        let image = Image {
            dist: path("/d"),
            kernel: path("/d/vmlinuz"),
            initramfs: path("/d/initramfs.img"),
            cli: path("/c"),
        };
        Machine::new(&image, "sifr.panic=halt")
    }

    fn text(machine: &Machine, accelerator: Accelerator) -> String {
        machine.arguments(accelerator).join(" ")
    }

    #[test]
    fn kvm_is_used_only_where_the_processor_shows_it() {
        assert!(has_virtualisation("flags\t\t: fpu svm npt\n"));
        assert!(!has_virtualisation("flags\t\t: fpu\nvmx flags : vmx svm\n"));
    }

    #[test]
    fn a_plain_machine_boots_the_kernel_with_the_console_on_the_serial_port() {
        let line = text(&machine(), Accelerator::Tcg);
        for part in [
            "-machine q35 -accel tcg,tb-size=256 -cpu EPYC,+svm,+npt -m 1024 -smp 1 -no-reboot",
            "-kernel /d/vmlinuz -initrd /d/initramfs.img",
            "-append console=tty0 console=ttyS0,115200 sifr.panic=halt",
            "-netdev user,id=net0 -device virtio-net-pci,id=card0,netdev=net0,romfile=",
        ] {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
        assert!(text(&machine(), Accelerator::Kvm).contains("-accel kvm -cpu host"));
    }

    #[test]
    fn counted_time_is_emulated_even_where_kvm_works() {
        let machine = Machine {
            time: Time::Instructions,
            ..machine()
        };
        let line = text(&machine, Accelerator::Kvm);
        assert!(line.contains("-accel tcg") && line.contains("-icount shift=0,sleep=off"));
    }

    #[test]
    fn a_network_boot_serves_the_directory_and_keeps_the_boot_rom() {
        let boot = Boot::Network {
            directory: "/a,b".into(),
            script: "boot.ipxe".to_owned(),
        };
        let line = text(&Machine { boot, ..machine() }, Accelerator::Tcg);
        assert!(
            line.contains("user,id=net0,tftp=/a,,b,bootfile=boot.ipxe"),
            "{line}"
        );
        assert!(
            !line.contains("romfile=") && !line.contains("-kernel"),
            "{line}"
        );
    }

    #[test]
    fn each_bus_clock_card_and_watchdog_has_its_device() {
        let disk = |bus| Disk {
            file: "/f".into(),
            bus,
            serial: "S1".to_owned(),
        };
        let mut machine = Machine {
            disks: [Bus::Virtio, Bus::Nvme, Bus::Ahci, Bus::Usb, Bus::Scsi]
                .map(disk)
                .into(),
            slots: 1,
            clock: Clock::At("2020-01-01T00:00:00".to_owned()),
            watchdog: true,
            monitor: Some("/m".into()),
            on_reset: OnReset::Boot,
            firmware: Firmware::Uefi {
                variables: "/l/vars".into(),
            },
            ..machine()
        };
        machine.nets.push(Net {
            card: Card::E1000e,
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            link: Link::Tap {
                name: "tap7".to_owned(),
            },
        });
        let port = machine.forward(7443).expect("a user-mode card");
        let line = text(&machine, Accelerator::Tcg);
        for part in [
            "-device virtio-blk-pci,id=unit0,drive=disk0,serial=S1",
            "-device nvme,id=unit1,drive=disk1,serial=S1",
            "-device ide-hd,bus=ide.2,id=unit2,drive=disk2,serial=S1",
            "-device usb-storage,bus=usb3.0,removable=on,id=unit3,drive=disk3,serial=S1",
            "-device virtio-scsi-pci,id=scsi4 -device scsi-hd,bus=scsi4.0,wwn=S1,id=unit4,drive=disk4,serial=S1",
            "-device pcie-root-port,id=slot0,chassis=1",
            "-rtc base=2020-01-01T00:00:00",
            "-device i6300esb -action watchdog=reset",
            "-drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
            "-drive if=pflash,format=raw,unit=1,file=/l/vars",
            "socket,id=door,path=/m,server=on,wait=off",
            "tap,id=net1,ifname=tap7,script=no",
            "e1000e,id=card1,netdev=net1,mac=02:00:00:00:00:01",
            &format!("hostfwd=tcp:127.0.0.1:{port}-:7443"),
        ] {
            assert!(line.contains(part), "{part:?} is not in {line:?}");
        }
        assert!(!line.contains("-no-reboot"));
    }
}
