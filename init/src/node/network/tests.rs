//! What follows from places and uplink, as values.

use super::*;
use std::net::IpAddr;
use types::Name;
use types::deployment::Port;
use workload::desired::Key;

pub(super) fn card(address: [u8; 4]) -> PlacedCard {
    let address = address.into();
    let internal = false;
    PlacedCard { address, internal }
}

pub(super) fn keys() -> Keys {
    Keys::of(&[1; 32])
}

pub(super) fn placed<const N: usize>(machines: [(VmId, Placed); N]) -> Places {
    Places {
        machines: machines.into(),
        ..Places::default()
    }
}

fn default_of(signer: u8, taken: &[Cidr], uplink: &Uplink) -> Option<Cidr> {
    let id = NetworkId::Default(PublicKey([signer; 32]));
    choose_subnet(Wish::Any(&id), taken, uplink)
}

pub(super) fn place(
    deployment: &str,
    workload: &str,
    address: [u8; 4],
    ports: &[(u16, u16)],
) -> (VmId, Placed) {
    let (signer, name) = (
        PublicKey([1; 32]),
        deployment.parse::<Name>().expect("a name"),
    );
    let workload: Name = workload.parse().expect("a name");
    let ports = ports
        .iter()
        .map(|(node, machine)| Port::tcp(*node, *machine));
    let vm = VmId::new(&signer, &name, &workload);
    let key = Key { signer, name };
    (
        vm,
        Placed {
            key,
            workload,
            cards: vec![card(address)],
            ports: ports.collect(),
            own: Vec::new(),
        },
    )
}

#[test]
fn a_chosen_subnet_leads_back_to_its_network() {
    let uplink = Uplink::default();
    let gateway = default_of(3, &[], &uplink).expect("a subnet");
    let network = network_of(gateway.address).expect("a network");
    assert_eq!(network.gateway, gateway);
    assert_eq!(named(&network.name), Some(network.clone()));
    let other = default_of(3, &[gateway.network()], &uplink);
    assert_ne!(other, Some(gateway));
    let lan = Uplink {
        networks: vec![gateway.network()],
        ..uplink
    };
    assert_ne!(default_of(3, &[], &lan), Some(gateway));
}

#[test]
fn a_node_whose_second_port_is_in_all_of_10_still_has_subnets() {
    let uplink = Uplink {
        addresses: "192.168.1.9/24".parse().into_iter().collect(),
        networks: ["192.168.1.0/24", "10.0.0.0/8"]
            .map(|lan| lan.parse().expect("a prefix"))
            .into(),
        ..Uplink::default()
    };
    let gateway = default_of(3, &[], &uplink).expect("a subnet");
    assert_eq!(gateway.address.octets()[0], 172);
    let network = network_of(gateway.address).expect("a network");
    assert_eq!(network.gateway, gateway);
    assert_eq!(named(&network.name), Some(network));
}

#[test]
fn other_namespaces_are_not_ours() {
    for name in ["tenant", "tenantx", "tenant40000", "tenant01", "other3"] {
        assert_eq!(named(name), None, "{name}");
    }
}

#[test]
fn two_deployments_share_their_owners_network() {
    let places = placed([
        place("shop", "web", [10, 130, 1, 2], &[(80, 8080), (81, 8080)]),
        place("blog", "web", [10, 130, 1, 3], &[]),
        place("blog", "db", [10, 130, 1, 4], &[]),
        place("wiki", "main", [10, 130, 1, 5], &[]),
        place("wiki", "db", [10, 130, 1, 6], &[]),
    ]);
    let uplink = Uplink {
        addresses: "192.168.1.9/24".parse().into_iter().collect(),
        networks: ["192.168.1.0/24", "198.51.100.0/24"]
            .map(|lan| lan.parse().expect("a prefix"))
            .into(),
        links: vec!["eth0".to_owned(), "eth1".to_owned()],
        ..Uplink::default()
    };
    let plan = plan(&places, &uplink, [1, 2, 3, 4, 5], &keys());
    assert_eq!((plan.tenants.len(), plan.node.tenants.len()), (1, 1));
    assert_eq!(plan.node.tenants[0].published.len(), 2);
    assert_eq!(plan.node.open_ports, [7443]);
    let tenant = plan.tenants.values().next().expect("a tenant");
    let (tenant, names) = (&tenant.policy, &tenant.names);
    let around = uplink.networks.iter().map(|lan| (*lan).into());
    assert_eq!(tenant.refused, around.collect::<Vec<_>>());
    let web = tenant
        .guests
        .iter()
        .find(|g| g.address == Ipv4Addr::new(10, 130, 1, 2));
    assert_eq!(
        web.map(|g| g.ports.clone()),
        Some(vec![(Transport::Tcp, 8080)])
    );
    let known = |name: &str| names.machines.get(name).map(|at| at.octets()[3]);
    for (name, at) in [
        ("web.shop", Some(2)),
        ("shop", Some(2)),
        ("web.blog", Some(3)),
        ("db.blog", Some(4)),
        ("blog", None),
        ("wiki", Some(5)),
        ("db.wiki", Some(6)),
        ("web", None),
    ] {
        assert_eq!(known(name), at, "{name}");
    }
    let beside = names.domains.get(&Ipv4Addr::new(10, 130, 1, 4));
    assert_eq!(beside.map(String::as_str), Some("blog"));
}

#[test]
fn a_machine_on_two_networks_is_known_in_each_by_its_address_there_and_knows_both() {
    let (web_vm, mut web) = place("shop", "web", [10, 130, 1, 2], &[(80, 80)]);
    let (inside, front) = (card([10, 130, 2, 2]), web.cards[0]);
    let inside = PlacedCard {
        internal: true,
        ..inside
    };
    web.cards.push(inside);
    web.ports.push(Port {
        protocol: Protocol::Udp,
        ..Port::tcp(80, 81)
    });
    let (db_vm, mut db) = place("shop", "db", [10, 130, 2, 9], &[(81, 81)]);
    db.cards[0].internal = true;
    let places = placed([
        (web_vm, web),
        (db_vm, db),
        place("shop", "edge", [10, 130, 1, 3], &[]),
    ]);
    let plan = plan(&places, &Uplink::default(), [1, 2, 3, 4, 5], &keys());
    let at = |address: Ipv4Addr| {
        let name = network_of(address).expect("one of ours").name;
        &plan.tenants[&name]
    };
    let (front, inside) = (at(front.address), at(inside.address));
    assert!(inside.policy.internal && inside.names.alone && !front.policy.internal);
    let asked =
        |tenant: &Tenant, from: [u8; 4], name: &str| tenant.names.find(IpAddr::from(from), name);
    let machine = |at: [u8; 4]| net::dns::Found::Machine(at.into());
    let (web, edge, db) = ([10, 130, 1, 2], [10, 130, 1, 3], [10, 130, 2, 9]);
    assert_eq!(asked(front, edge, "web"), machine(web));
    assert_eq!(asked(inside, db, "web"), machine([10, 130, 2, 2]));
    assert_eq!(asked(front, web, "db"), machine(db));
    assert_eq!(asked(front, edge, "db"), net::dns::Found::Nobody);
    assert_eq!(asked(inside, db, "edge"), net::dns::Found::Nobody);
    let published: Vec<_> = front
        .published
        .iter()
        .map(|p| (p.transport, p.port))
        .collect();
    assert_eq!(published, [(Transport::Tcp, 80), (Transport::Udp, 81)]);
    assert_eq!(inside.published, [], "nothing leads into an internal one");
}

/// A network that goes on on node `n2`.
pub(super) fn meshed(key: Key, here: [u8; 4], there: [u8; 4]) -> PlacedMesh {
    let subnet = |address: [u8; 4]| Cidr::new(address.into(), 24).expect("24 is a length");
    let peer = types::mesh::Peer {
        node: PublicKey([7; 32]),
        key: types::mesh::MeshKey([8; 32]),
        subnet: subnet(there),
        endpoints: vec![([192, 0, 2, 7], 51820).into()],
        machines: ["db".parse().expect("a name")].into(),
        card: String::new(),
    };
    PlacedMesh {
        key,
        network: "net".parse().expect("a name"),
        subnet: subnet(here),
        internal: false,
        mesh: types::mesh::Mesh {
            port: 51821,
            peers: [("n2".parse().expect("a name"), peer)].into(),
        },
    }
}

#[test]
fn a_network_across_nodes_stands_without_machines_and_hears_its_peers_alone() {
    let (vm, web) = place("shop", "web", [10, 130, 1, 2], &[]);
    let meshed = meshed(web.key.clone(), [10, 130, 1, 0], [10, 130, 2, 0]);
    let (name, peer) = meshed.mesh.peers.first_key_value().expect("a peer");
    let (name, peer) = (name.clone(), peer.clone());
    let mut places = placed([]);
    places.meshes.push(meshed);
    let alone = plan(&places, &Uplink::default(), [1, 2, 3, 4, 5], &keys());
    assert_eq!(alone.node.mesh_ports, [51821]);
    places.machines.insert(vm, web);
    let with = plan(&places, &Uplink::default(), [1, 2, 3, 4, 5], &keys());
    for plan in [&alone, &with] {
        let [tenant] = &plan.tenants.values().collect::<Vec<_>>()[..] else {
            panic!("one network")
        };
        assert_eq!(tenant.network.mtu, 1420);
        assert_eq!(tenant.policy.peers, [peer.subnet]);
        let [joined] = &plan.joined()[..] else {
            panic!("one network across nodes")
        };
        assert_eq!(joined.peers[&peer.key.0], name);
    }
    let across = |plan: &Plan| {
        let tenant = plan.tenants.values().next();
        tenant.and_then(|tenant| tenant.names.across.clone())
    };
    let across = across(&with).expect("it goes on elsewhere");
    assert_eq!(
        across.machines,
        [("db.shop".to_owned(), peer.subnet)].into()
    );
    // Of other nodes' machines only the names are known.
    let names = &with.tenants.values().next().expect("one").names.machines;
    assert_eq!(names.keys().collect::<Vec<_>>(), ["web.shop"]);
}

#[test]
fn a_node_without_machines_still_has_its_own_rules() {
    let plan = plan(
        &Places::default(),
        &Uplink::default(),
        [1, 2, 3, 4, 5],
        &keys(),
    );
    assert!(plan.tenants.is_empty() && plan.node.open_ports == [API_PORT]);
}
