//! A network of our own with one node on it: no address translation, no other machine.
//!
//! Owns: running a test again inside a new network namespace, and the TAP, the address and the DHCP
//! server there. All of it goes with the namespace.
//! Refuses: touching the network of this machine.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use types::Mac;

use crate::userland::BUSYBOX;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "SIFR_TEST_INSIDE";
/// Open sockets that a scan may have, and the rest of the process.
const FILES_MAX: &str = "16384";

pub const TAP: &str = "wire0";
pub const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const NODES: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const MAC: Mac = Mac([0x52, 0x54, 0x00, 0x77, 0x00, 0x02]);

/// Runs the test `name` of this test binary in a new network namespace, and fails where it fails.
/// False inside: the caller is to do the work then.
pub fn runs_elsewhere(name: &str) -> Result<bool> {
    if env::var_os(INSIDE).is_some() {
        return Ok(false);
    }
    let own = env::current_exe().context("find this test binary")?;
    let mut command = Command::new("unshare");
    let owner = fs::metadata("/proc/self")
        .context("read our own user id")?
        .uid();
    if owner != 0 {
        // An ordinary user becomes root of the namespace only.
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--"]);
    command.args(["prlimit", &format!("--nofile={FILES_MAX}"), "--"]);
    command.arg(own).args(["--exact", name, "--nocapture"]);
    command.env(INSIDE, "1").stdin(Stdio::null());
    let output = command.output().context("start unshare")?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // A name that matches no test would pass without having run anything.
    ensure!(
        output.status.success() && out.contains("1 passed"),
        "in the namespace: {out}{err}"
    );
    print!("{out}");
    Ok(true)
}

/// The cable to the node, and who hands out its address. Only for a process that
/// [`runs_elsewhere`] has started.
#[derive(Debug)]
pub struct Wire {
    dhcp: Child,
}

impl Wire {
    pub fn lay(directory: &Path) -> Result<Self> {
        ensure!(
            env::var_os(INSIDE).is_some(),
            "the network of this machine is not ours to change"
        );
        for line in [
            "ip link set lo up".to_owned(),
            format!("tunctl -t {TAP}"),
            format!("ip addr add {OURS}/24 dev {TAP}"),
            format!("ip link set {TAP} qlen 16384"),
            format!("ip link set {TAP} up"),
        ] {
            let status = Command::new(BUSYBOX)
                .args(line.split(' '))
                .stdout(Stdio::null())
                .status();
            ensure!(status.context("start busybox")?.success(), "{line} failed");
        }
        let file = |name: &str| directory.join(name).display().to_string();
        fs::write(file("leases"), "").context("write the DHCP server's leases")?;
        let configuration = format!(
            "start {NODES}\nend {NODES}\ninterface {TAP}\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router {OURS}\noption lease 3600\n",
            file("leases"),
            file("pid"),
        );
        fs::write(file("udhcpd.conf"), configuration).context("configure the DHCP server")?;
        let dhcp = Command::new(BUSYBOX)
            .args(["udhcpd", "-f", &file("udhcpd.conf")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the DHCP server")?;
        Ok(Self { dhcp })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.dhcp.kill();
        let _ = self.dhcp.wait();
    }
}
