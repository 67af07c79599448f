//! The client against a server that others wrote: busybox's `udhcpd`, over a veth pair between two
//! namespaces. Needs root and Debian's `busybox` and `iproute2`.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::link::{Create, Desired, Handle, plan};
use crate::namespace;
use crate::scratch::{Scratch, on_a_runtime};
use crate::site::{Heard, Site};

/// How long a lease may take here; the server answers in milliseconds, after an ARP probe of its own.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("reaped");
    }
}

fn server(namespace: &str, directory: &std::path::Path) -> Server {
    let leases = directory.join("leases");
    std::fs::write(&leases, "").expect("written");
    let text = format!(
        "interface dhcp0\nstart 192.0.2.10\nend 192.0.2.10\nlease_file {}\npidfile {}\n\
         option subnet 255.255.255.0\noption router 192.0.2.1\noption dns 192.0.2.53 192.0.2.54\n\
         option ntpsrv 192.0.2.123\noption mtu 1400\noption lease 600\n",
        leases.display(),
        directory.join("pid").display(),
    );
    let file = directory.join("udhcpd.conf");
    std::fs::write(&file, text).expect("written");
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, "busybox", "udhcpd", "-f"])
        .arg(file);
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Server(
        command
            .spawn()
            .expect("ip and busybox; install Debian's iproute2 and busybox"),
    )
}

#[test]
fn a_lease_from_another_implementation_configures_the_link() {
    let scratch = Scratch::new("dhcp");
    let (node, lan) = (scratch.name("node"), scratch.name("lan"));
    let node_fd = Arc::new(namespace::ensure(&node).expect("a namespace; it needs root"));
    let lan_fd = namespace::ensure(&lan).expect("a namespace");
    let port = Desired {
        create: Some(Create::Veth {
            peer: "eth0".to_owned(),
            namespace: node_fd.clone(),
        }),
        addresses: vec!["192.0.2.1/24".parse().expect("a prefix")],
        ..Desired::up("dhcp0")
    };
    on_a_runtime(async {
        let mut handle = Handle::open_in(&lan_fd).expect("a connection");
        let steps = plan(&[port], &handle.observe().await.expect("links"));
        handle.apply(&steps).await.expect("a veth pair");
    });
    let directory = tempfile::tempdir().expect("a directory");
    let _server = server(&lan, directory.path());
    namespace::within(node_fd, || {
        on_a_runtime(lease_and_configure());
        Ok(())
    })
    .expect("no error");
}

async fn lease_and_configure() {
    let mut handle = Handle::open().expect("a connection");
    let up = [Desired::up("lo"), Desired::up("eth0")];
    let steps = plan(&up, &handle.observe().await.expect("links"));
    handle.apply(&steps).await.expect("up");
    let observed = handle.observe().await.expect("links");
    let link = observed.link("eth0").expect("the link");
    let nic = Nic {
        name: "eth0".to_owned(),
        index: link.index,
        mac: link.mac.expect("a MAC"),
        hostname: Some("node".parse().expect("a name")),
    };
    let (sender, mut receiver) = watch::channel(None);
    let listen = async {
        let wait = tokio::time::timeout(PATIENCE, receiver.wait_for(Option::is_some));
        let lease = wait
            .await
            .expect("a lease in time")
            .expect("a sender")
            .clone();
        drop(receiver);
        lease.expect("a lease")
    };
    let ((), lease) = tokio::join!(run(nic, sender, Arc::default()), listen);
    assert_eq!(lease.address.to_string(), "192.0.2.10/24");
    assert_eq!(lease.gateway, Some([192, 0, 2, 1].into()));
    assert_eq!(
        lease.dns,
        [Ipv4Addr::new(192, 0, 2, 53), Ipv4Addr::new(192, 0, 2, 54)]
    );
    assert_eq!(lease.ntp, [Ipv4Addr::new(192, 0, 2, 123)]);
    assert_eq!(lease.mtu, Some(1400));
    assert!(lease.expires.is_some());

    configure_with(&mut handle, lease).await;
}

/// The links. The port is a veth here, which only this test takes for an uplink.
async fn as_ethernet(handle: &mut Handle) -> crate::link::Observed {
    let mut observed = handle.observe().await.expect("links");
    let port = observed.links.iter_mut().find(|link| link.name == "eth0");
    port.expect("the link").kind = crate::link::Kind::Ethernet;
    observed
}

/// What init does with a lease.
async fn configure_with(handle: &mut Handle, lease: Lease) {
    let heard = Heard {
        lease: Some(lease),
        learned: None,
    };
    let heard = BTreeMap::from([("eth0".to_owned(), heard)]);
    let observed = as_ethernet(handle).await;
    let everywhere = Site::default();
    let steps = everywhere.wanted(&observed, &heard).steps(&observed);
    handle.apply(&steps).await.expect("applied");
    let observed = as_ethernet(handle).await;
    let rest = everywhere.wanted(&observed, &heard).steps(&observed);
    assert!(rest.is_empty(), "nothing is left to do: {rest:?}");
    let link = observed.link("eth0").expect("the link");
    assert_eq!((link.mtu, link.carrier), (1400, true));
    let default = |route: &crate::link::Route| route.destination.prefix() == 0;
    assert!(observed.routes.iter().any(default));
    let nothing = everywhere.wanted(&observed, &BTreeMap::new());
    let gone = nothing.steps(&observed);
    handle.apply(&gone).await.expect("the lease is taken away");
    let observed = as_ethernet(handle).await;
    let link = observed.link("eth0").expect("the link");
    assert_eq!(link.addresses.iter().find_map(types::AnyCidr::v4), None);
    assert!(!observed.routes.iter().any(default));
}
