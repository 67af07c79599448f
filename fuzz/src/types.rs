//! Documents and archives of `types`.
//!
//! Owns: that what was read is written and read again as the same.

use ::types::cpio;
use ::types::deployment::Statement;
use ::types::flist::ImageConfig;
use ::types::guest::{FromGuest, RunSpec, ToGuest};
use ::types::node::NodeInfo;
use ::types::proxy::{Egress, Proxy, masked};
use ::types::status::{Ack, DeploymentStatus, Refusal};
use ::types::vm::{FromVmm, LogRecord, ToVmm, VmSpec};
use ::types::{AnyCidr, Bytes, Cidr, Digest, Mac, Name, PublicKey, VmId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Target;

pub(crate) const TARGETS: [Target; 4] = [
    Target {
        name: "types-cpio",
        bytes_max: 4096,
        run: archive,
        seeds: archives,
    },
    Target {
        name: "types-json",
        bytes_max: 4096,
        run: documents,
        seeds: json,
    },
    Target {
        name: "types-log-record",
        bytes_max: 64,
        run: log_record,
        seeds: || vec![vec![0; 20], [&[9; 16][..], &[7, 0, 0, 1]].concat()],
    },
    Target {
        name: "types-text",
        bytes_max: 128,
        run: texts,
        seeds: text,
    },
];

fn archive(input: &[u8]) {
    let Ok(archive) = cpio::decode(input) else {
        return;
    };
    let bytes = archive.encode();
    let again = cpio::decode(&bytes).expect("what is written is read");
    assert_eq!(archive, again);
    assert!(archive.entries().all(|(path, _)| path.starts_with('/')));
}

fn archives() -> Vec<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    archive.directory("/dev", 0o755).expect("a plain path");
    archive
        .character_device("/dev/null", 0o666, (1, 3))
        .expect("a plain path");
    archive
        .file("/init", 0o755, b"#".as_slice())
        .expect("a plain path");
    let mut other = cpio::Archive::default();
    other
        .file("/run.json", 0o600, b"{}".as_slice())
        .expect("a plain path");
    let both = [archive.encode(), other.encode()].concat();
    vec![archive.encode(), both]
}

fn documents(input: &[u8]) {
    if let Some(statement) = stays::<Statement>(input) {
        // Its errors are for people: they must be possible to show.
        if let Err(error) = statement.check() {
            assert!(!error.to_string().is_empty());
        }
    }
    stays::<ImageConfig>(input);
    stays::<RunSpec>(input);
    stays::<FromGuest>(input);
    stays::<ToGuest>(input);
    stays::<VmSpec>(input);
    stays::<FromVmm>(input);
    stays::<ToVmm>(input);
    stays::<NodeInfo>(input);
    stays::<DeploymentStatus>(input);
    stays::<Ack>(input);
    stays::<Refusal>(input);
}

fn stays<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(input: &[u8]) -> Option<T> {
    let read: T = serde_json::from_slice(input).ok()?;
    let written = serde_json::to_vec(&read).expect("what was read is written");
    let again: T = serde_json::from_slice(&written).expect("what is written is read");
    assert_eq!(read, again);
    Some(read)
}

fn json() -> Vec<Vec<u8>> {
    let (digest, key) = (Digest([1; 32]), PublicKey([2; 32]));
    let machine = format!(
        r#"{{"machine":{{"image":{{"flist":"{digest}","store":"http://a/"}},"cpus":2,"memory":"512Mi","disk":"1Gi",
        "command":["a"],"env":{{"A":"b"}},"user":"1:2","workdir":"/","ports":[{{"node":80,"machine":8080}}],
        "restart":"on_failure"}}}}"#
    );
    let deploy = format!(
        r#"{{"node":"{key}","name":"shop","version":1,"action":{{"deploy":{{"accept_volatile":true,
        "workloads":{{"web":{machine}}}}}}}}}"#
    );
    let texts = [
        deploy,
        format!(r#"{{"node":"{key}","name":"shop","version":2,"action":"stop"}}"#),
        format!(
            r#"{{"node":"{key}","name":"shop","version":1,"action":{{"deploy":{{"remove":["a"],"destroy":["a"],
            "workloads":{{"data":{{"volume":{{"size":"1Gi","limits":{{"operations_per_second":99}},
            "from":{{"volume":"b","snapshot":"c"}}}}}}}}}}}}}}"#
        ),
        format!(
            r#"{{"node":"{key}","name":"shop","version":1,"action":{{"deploy":{{"workloads":{{
            "front":{{"network":{{"subnet":"10.128.7.0/24","internal":true}}}},
            "web":{{"machine":{{"image":{{"flist":"{digest}"}},"ports":[{{"node":53,"machine":53,"protocol":"udp"}}],
            "networks":[{{"network":"front","address":"10.128.7.9"}},{{"network":"default"}}]}}}}}}}}}}}}"#
        ),
        format!(r#"{{"node":"{key}","name":"shop","version":2,"action":{{"destroy":{{"volumes":["data"]}}}}}}"#),
        format!(r#"{{"node":"{key}","name":"shop","version":2,"action":{{"restore":{{"volume":"data","snapshot":"c"}}}}}}"#),
        r#"{"Entrypoint":["/a"],"Cmd":["b"],"Env":["A=b"],"User":"u","WorkingDir":"/","StopSignal":"SIGINT"}"#
            .to_owned(),
        r#"{"hostname":"web","image_serial":"image","upper_serial":null,"argv":["a"],"env":[],"user":"","workdir":"/",
        "stop_signal":15,"stop_grace_ms":9,"link":{"mac":"02:00:00:00:00:01","address":"10.0.0.2/24",
        "gateway":"10.0.0.1","dns":"10.0.0.1","mtu":1500}}"#
            .to_owned(),
        r#"{"exited":{"code":3,"signal":null,"oom_kills":0}}"#.to_owned(),
        r#"{"setup_failed":{"stage":"root","message":"m"}}"#.to_owned(),
        r#"{"signal":{"number":15}}"#.to_owned(),
        r#"{"grow":{"serial":"vol0","bytes":7}}"#.to_owned(),
        r#"{"grown":{"serial":"vol0","bytes":7,"refused":null}}"#.to_owned(),
        r#"{"held":{"serial":"vol0","refused":"m"}}"#.to_owned(),
        r#"{"resize":{"disk":"vol0","bytes":7}}"#.to_owned(),
        r#"{"guest":{"exited":{"code":3,"signal":9,"oom_kills":0}}}"#.to_owned(),
        r#"{"running":{"setup_us":7}}"#.to_owned(),
        r#"{"id":"web","cpus":1,"memory_mib":64,"kvm":4,"kernel":5,"initramfs":[6],"cmdline":"","disks":[{"serial":"i",
        "fd":7,"read_only":true,"lazy":{"map":8,"chunks":9}}],"nets":[{"tap":10,"mac":"02:00:00:00:00:01","mtu":1500}],
        "control":11,"log":{"files":[12,13],"max_bytes":4096},"serial":null}"#
            .to_owned(),
        r#"{"code":"malformed","message":"m"}"#.to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

fn log_record(input: &[u8]) {
    let Some(header) = input.first_chunk() else {
        return;
    };
    if let Some(record) = LogRecord::decode(header) {
        assert_eq!(record.encode(), *header);
        assert!(record.length <= LogRecord::LENGTH_MAX);
    }
}

fn texts(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    one_spelling::<Name>(text);
    one_spelling::<VmId>(text);
    one_spelling::<Digest>(text);
    one_spelling::<PublicKey>(text);
    one_spelling::<Cidr>(text);
    // An address of IPv6 has several spellings, of which one is written.
    if let Ok(cidr) = text.parse::<AnyCidr>() {
        assert_eq!(cidr.to_string().parse(), Ok(cidr));
    }
    // Either case is what people write.
    one_spelling::<Mac>(&text.to_ascii_lowercase());
    proxy(text);
    if let Ok(bytes) = text.parse::<Bytes>() {
        assert_eq!(bytes.to_string().parse(), Ok(bytes));
    }
}

/// A proxy is one host and one port, and one process tells another what it has read.
fn proxy(text: &str) {
    let Ok(proxy) = text.parse::<Proxy>() else {
        return;
    };
    let at = proxy.at();
    assert!(
        at.bytes()
            .all(|b| b.is_ascii_graphic() && !b"@/?#".contains(&b))
    );
    let password = proxy.login().map(|login| login.password().to_owned());
    // What is short stands in other words too.
    if let Some(password) = password.filter(|password| password.len() > 20) {
        assert!(!masked(&format!("sifr.proxy={text}")).contains(&password));
    }
    let whole = serde_json::to_vec(&Egress::By(proxy)).expect("plain data");
    stays::<Egress>(&whole).expect("what was written is read");
}

/// An identity has one text: what is read is written the same.
fn one_spelling<T: std::str::FromStr + std::fmt::Display>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert_eq!(read.to_string(), text);
    }
}

fn text() -> Vec<Vec<u8>> {
    let texts = [
        "shop".to_owned(),
        "web-shop-01020304".to_owned(),
        Digest([0xab; 32]).to_string(),
        PublicKey([0xcd; 32]).to_string(),
        "10.1.2.0/24".to_owned(),
        "2001:db8::7/64".to_owned(),
        "02:00:0a:01:02:0f".to_owned(),
        "512Mi".to_owned(),
        "http://proxy.example:3128".to_owned(),
        "http://node:p%40ss%3Aword@[2001:db8::9]:8080/".to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}
