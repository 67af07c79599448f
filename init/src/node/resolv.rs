//! `/etc/resolv.conf`: where the C library of our own processes asks for names of stores.
//!
//! Owns: its content, which follows the uplink. pid1 has mounted a file of `/run` over the image's empty one.
//! Refuses: names and search domains from the network: a store is named in full.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::sync::watch;

use super::context::Uplink;
use crate::wire::RESOLV_CONF;

/// Servers that musl reads (resolv.conf(5): MAXNS).
const SERVERS_MAX: usize = 3;
/// Longer than any content of ours: the file has one length, so that one write replaces all of it.
const LENGTH: usize = 256;
/// Two tries of two seconds: within the five that a store has to answer in.
const OPTIONS: &str = "options timeout:2 attempts:2\n";

fn content(servers: &[IpAddr]) -> Vec<u8> {
    let mut text = OPTIONS.to_owned();
    for server in servers.iter().take(SERVERS_MAX) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(LENGTH, b'\n');
    bytes
}

/// In place: another file would not be the one that is mounted.
fn write(file: &Path, servers: &[IpAddr]) -> io::Result<()> {
    let file = File::options().write(true).open(file)?;
    file.write_all_at(&content(servers), 0)
}

/// Follows the uplink for ever.
pub(crate) async fn keep(mut uplink: watch::Receiver<Uplink>) {
    loop {
        let servers = uplink.borrow_and_update().dns.clone();
        if let Err(error) = write(Path::new(RESOLV_CONF), &servers) {
            log::warn!("name servers were not written to {RESOLV_CONF}: {error}");
        }
        if uplink.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_nothing_of_what_was_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("resolv.conf");
        std::fs::write(&file, "").expect("as pid1 makes it");
        let longest = |n| IpAddr::from([0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, n]);
        let many: Vec<IpAddr> = (0xff01..=0xff09).map(longest).collect();
        write(&file, &many).expect("written");
        let longest = std::fs::read_to_string(&file).expect("read");
        assert_eq!(longest.matches("nameserver").count(), SERVERS_MAX);
        write(&file, &[[10, 0, 2, 3].into()]).expect("written");
        let text = std::fs::read_to_string(&file).expect("read");
        assert_eq!(text.trim_end(), format!("{OPTIONS}nameserver 10.0.2.3"));
    }
}
