//! What a node must not have and must not do: no way in but the API.
//!
//! Owns: the built image read back, one node asked on every port, one node typed at.
//! Refuses: what the API itself refuses (see `refusals.rs`).
#![forbid(unsafe_code)]
#![cfg(test)]

mod tests {
    use std::fs;
    use std::net::{IpAddr, Ipv6Addr};

    use image::assemble::Image;
    use image::inspect;
    use image::paths::Paths;
    use image::qemu::{Card, Link, Machine, Net, Node};
    use qemu_tests::scan::{self, Target};
    use qemu_tests::wire::{self, Wire};
    use qemu_tests::{Lab, PATIENCE};
    use types::cpio;
    use types::deployment::API_PORT;

    fn shipped() -> Image {
        let paths = Paths::find().expect("the tests run inside the repository");
        Image::find(&paths).expect("make image")
    }

    /// Largest unpacked image: far above what fits the size target.
    const UNPACKED_BYTES_MAX: usize = 256 << 20;

    fn unpacked() -> Vec<u8> {
        let packed = fs::read(shipped().initramfs).expect("an initramfs");
        zstd::bulk::decompress(&packed, UNPACKED_BYTES_MAX).expect("it is compressed with zstd")
    }

    /// Findings in the shipped image after a change to its tree.
    fn findings_after(change: impl FnOnce(&mut cpio::Archive<'_>)) -> Vec<String> {
        let bytes = unpacked();
        let mut tree = cpio::decode(&bytes).expect("an archive");
        change(&mut tree);
        let dist = tempfile::tempdir().expect("a directory");
        let packed = zstd::bulk::compress(&tree.encode(), 1).expect("compressed");
        fs::write(dist.path().join("initramfs.img"), packed).expect("written");
        let findings = inspect::image(dist.path()).expect("an image that can be read");
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_in_the_image_is_a_shell_an_interpreter_a_script_or_unlisted() {
        let findings = inspect::image(&shipped().dist).expect("an image that can be read");
        assert!(findings.is_empty(), "{findings:?}");
    }

    #[test]
    fn what_is_planted_in_the_image_is_found() {
        assert_eq!(findings_after(|_| {}), [""; 0]);
        let shell = fs::read("/bin/busybox").expect("make setup");
        type Plant = (&'static str, u32, Vec<u8>, &'static str);
        let plants: [Plant; 4] = [
            (
                "/bin/sh",
                0o755,
                shell.clone(),
                "/bin/sh has the name of a shell",
            ),
            (
                "/bin/tool",
                0o755,
                shell,
                "/bin/tool is a program, and must not be",
            ),
            (
                "/etc/hook",
                0o755,
                b"#!/bin/x\n".to_vec(),
                "/etc/hook begins with #!",
            ),
            (
                "/etc/plain",
                0o4644,
                b"x".to_vec(),
                "/etc/plain has a set-ID or sticky bit",
            ),
        ];
        for (path, mode, content, expected) in plants {
            let findings =
                findings_after(|tree| tree.file(path, mode, content).expect("a plain path"));
            let says = |text: &str| findings.iter().any(|finding| finding.starts_with(text));
            assert!(
                says(expected) && says(&format!("{path} is not on the list")),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn every_program_in_the_image_is_static_down_to_the_guest() {
        let bytes = unpacked();
        let mut programs = 0;
        let mut trees = vec![bytes];
        while let Some(bytes) = trees.pop() {
            for (path, entry) in cpio::decode(&bytes).expect("an archive").entries() {
                let cpio::Node::File(content) = &entry.node else {
                    continue;
                };
                if path.ends_with(".cpio") {
                    trees.push(content.to_vec());
                }
                if content.starts_with(b"\x7fELF") {
                    // A second reader, so that one mistake in the builder's own does not hide a loader.
                    let file = tempfile::NamedTempFile::new().expect("a file");
                    fs::write(file.path(), content).expect("written");
                    let readelf = std::process::Command::new("readelf")
                        .args(["--program-headers", "--dynamic", "--wide"])
                        .arg(file.path())
                        .output();
                    let output = readelf.expect("make setup");
                    let text = String::from_utf8_lossy(&output.stdout);
                    assert!(
                        output.status.success() && text.contains("LOAD"),
                        "{path}: {text}"
                    );
                    assert!(
                        !text.contains("INTERP") && !text.contains("(NEEDED)"),
                        "{path}: {text}"
                    );
                    programs += 1;
                }
            }
        }
        assert_eq!(
            programs, 5,
            "init, sifr-vmm, mkfs.xfs, xfs_repair, and the guest's init"
        );
    }

    #[test]
    fn from_outside_nothing_but_the_api_answers() {
        let name = "tests::from_outside_nothing_but_the_api_answers";
        if wire::runs_elsewhere(name).expect("a network namespace") {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let _wire = Wire::lay(directory.path()).expect("a TAP and a DHCP server");
        let mut machine = Machine::new(&shipped(), "");
        machine.nets = vec![Net {
            card: Card::Virtio,
            mac: Some(wire::MAC),
            link: Link::Tap {
                name: wire::TAP.to_owned(),
            },
        }];
        let node = Node::spawn(&machine).expect("QEMU");
        let ready = format!("sifr: ready https://{}:{API_PORT}", wire::NODES);
        node.wait_for_line(&ready, PATIENCE)
            .expect("a node with an address");
        let control = (IpAddr::V4(wire::NODES), API_PORT).into();
        let scope = nix::net::if_::if_nametoindex(wire::TAP).expect("a TAP");
        // The address of this link alone that the kernel makes of the card's MAC.
        let link_local = IpAddr::V6(Ipv6Addr::new(
            0xfe80, 0, 0, 0, 0x5054, 0x00ff, 0xfe77, 0x0002,
        ));
        let (four, six) = (
            Target {
                address: IpAddr::V4(wire::NODES),
                scope: 0,
            },
            Target {
                address: link_local,
                scope,
            },
        );
        let runtime = qemu_tests::runtime();
        let tcp = |target| {
            runtime
                .block_on(scan::tcp(target, control))
                .expect("a whole scan")
        };
        let udp = |target| runtime.block_on(scan::udp(target)).expect("sockets");
        assert_eq!(tcp(four), [API_PORT]);
        assert_eq!(udp(four), [0; 0]);
        assert_eq!(tcp(six), [API_PORT]);
        assert_eq!(udp(six), [0; 0]);
    }

    #[test]
    fn what_is_typed_at_the_console_changes_nothing() {
        let lab = Lab::new().expect("a node");
        let info = || {
            lab.sifr(&["node", "info"])
                .expect("sifr runs")
                .must()
                .expect("it answers")
        };
        info();
        let before = lab.console();
        // Every byte there is, line ends and control keys among them, then what people try first.
        let mut typed: Vec<u8> = (0..=u8::MAX).cycle().take(64 << 10).collect();
        typed.extend_from_slice(b"\r\nroot\r\n\r\nsh\r\nreboot\r\npoweroff -f\r\n\x03\x04\x1a\x1c");
        lab.node()
            .type_in(&typed)
            .expect("the machine reads its serial line");
        info();
        info();
        let after = lab.console();
        let new = after
            .strip_prefix(&before)
            .expect("nothing is taken back")
            .lines();
        let ours: Vec<_> = new
            .filter(|line| !line.is_empty() && !is_of_the_kernel(line))
            .collect();
        assert_eq!(ours, [""; 0], "the console answered");
    }

    /// `[   12.345678] ttyS0: 1 input overrun(s)`.
    fn is_of_the_kernel(line: &str) -> bool {
        let stamp = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "));
        stamp.is_some_and(|(time, _)| time.trim().parse::<f64>().is_ok())
    }
}
