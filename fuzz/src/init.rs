//! What a pool, an image, a deployment or a boot loader says to the node.

use std::fs;
use std::time::Duration;

use ::types::deployment::Machine;
use ::types::flist::ImageConfig;
use ::types::vm::{LogRecord, Stream};
use ::types::{Digest, PublicKey};
use api::Begin;
use init::fuzz;

use crate::Target;
use crate::choices::{Choices, Made};
use crate::files::directory;
use crate::peer;

pub(crate) const TARGETS: [Target; 9] = [
    Target {
        name: "init-cmdline",
        bytes_max: 512,
        run: command_line,
        seeds: || {
            let owner = PublicKey([1; 32]);
            let line = format!("quiet sifr.owner={owner} sifr.ntp=10.0.0.1:123 sifr.panic=halt");
            let proxy = "sifr.proxy=http://proxy.example:3128 sifr.proxy.except=.lan,192.0.2.0/24";
            vec![line.into_bytes(), proxy.into()]
        },
    },
    Target {
        name: "init-identity",
        bytes_max: 512,
        run: identity,
        seeds: identities,
    },
    Target {
        name: "init-log",
        bytes_max: 2048,
        run: log,
        seeds: logs,
    },
    Target {
        name: "init-record",
        bytes_max: 1024,
        run: record,
        seeds: records,
    },
    Target {
        name: "init-run-spec",
        bytes_max: 2048,
        run: run_spec,
        seeds: images,
    },
    Target {
        name: "init-store",
        bytes_max: 2048,
        run: fetched,
        seeds: objects,
    },
    Target {
        name: "init-smbios",
        bytes_max: 4096,
        run: |input| {
            let strings = fuzz::oem_strings(input);
            let bytes: usize = strings.iter().map(|s| s.chars().count()).sum();
            assert!(bytes <= input.len(), "more than there is");
        },
        seeds: || vec![b"\x0b\x05\0\0\x01sifr.dns=192.0.2.53\0\0\x7f\x04\0\0\0\0".to_vec()],
    },
    Target {
        name: "init-store-url",
        bytes_max: 256,
        run: |input| {
            if let Ok(url) = std::str::from_utf8(input) {
                let is_http = url.to_ascii_lowercase().starts_with("http://");
                assert!(!fuzz::store(url) || is_http);
            }
        },
        seeds: || {
            vec![
                b"http://a.example:80/b/".to_vec(),
                b"http://[fd00::1]".to_vec(),
            ]
        },
    },
    Target {
        name: "init-wire",
        bytes_max: 512,
        run: wire,
        seeds: || {
            let spawn = r#"{"spawn":{"vm":"web","slot":1,"child":2,"limits":{"memory_bytes":1,"pids":2,"cpu_weight":3},
                "tag":"t"}}"#;
            vec![
                spawn.into(),
                br#"{"kill":{"vm":"web","signal":9}}"#.to_vec(),
                b"\"ready\"".to_vec(),
            ]
        },
    },
];

fn command_line(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (owner, _) = fuzz::command_line(text);
    if let Some(owner) = owner {
        assert!(text.contains(&owner.to_string()), "an owner nobody named");
    }
}

fn wire(input: &[u8]) {
    if let Some(written) = fuzz::to_pid1(input) {
        assert_eq!(fuzz::to_pid1(&written), Some(written));
    }
}

/// Whatever the files hold, reading ends, and no record comes twice.
fn log(input: &[u8]) {
    let mut choices = Choices(input);
    let begin = match choices.u8() & 3 {
        0 => Begin::Tail(choices.u64()),
        1 => Begin::After {
            seq: choices.u64(),
            time_ms: choices.u64(),
        },
        _ => Begin::Oldest,
    };
    let pool = directory();
    let paths = ["a", "b"].map(|name| pool.path().join(name));
    let a = choices.long();
    for (path, content) in paths.iter().zip([a, choices.rest()]) {
        fs::write(path, content).expect("memory");
    }
    let lines = fuzz::log(&paths, begin);
    assert!(lines.windows(2).all(|w| w[0].seq < w[1].seq), "in order");
    let bytes: usize = lines
        .iter()
        .map(|line| line.data.len() + LogRecord::HEADER_BYTES)
        .sum();
    assert!(bytes <= input.len(), "more than there is");
}

fn logs() -> Vec<Vec<u8>> {
    let records = |range: std::ops::Range<u64>| -> Vec<u8> {
        range
            .flat_map(|sequence| {
                let record = LogRecord {
                    sequence,
                    time_ms: 7,
                    stream: Stream::Stderr,
                    length: 4,
                };
                [&record.encode()[..], b"line"].concat()
            })
            .collect()
    };
    let made = |begin: Made| begin.long(&records(1..5)).raw(&records(5..9)).0;
    vec![
        made(Made::default().u8(0).u64(3)),
        made(Made::default().u8(1).u64(6)),
        made(Made::default().u8(2)),
    ]
}

/// A machine's record on a pool.
fn record(input: &[u8]) {
    let pool = directory();
    let path = pool.path().join("machine.json");
    fs::write(&path, input).expect("memory");
    assert!(!fuzz::record(&path) || serde_json::from_slice::<serde_json::Value>(input).is_ok());
}

fn records() -> Vec<Vec<u8>> {
    let record = format!(
        r#"{{"signer":"{}","deployment":"shop","workload":"web","incarnation":0,"image":"{}","disk":"64Mi",
        "address":"10.130.1.2","finished":null}}"#,
        PublicKey([1; 32]),
        Digest([2; 32])
    );
    vec![record.into_bytes()]
}

/// Both copies of the node's seed, whole or not.
fn identity(input: &[u8]) {
    let mut choices = Choices(input);
    let pool = directory();
    let identity = pool.path().join("identity");
    fs::create_dir(&identity).expect("memory");
    let copies = [sealed(&mut choices), sealed(&mut choices)];
    for (name, content) in ["a", "b"].iter().zip(&copies) {
        fs::write(identity.join(name), content).expect("memory");
    }
    if let Some(seed) = fuzz::seed(pool.path()) {
        let has = |content: &Vec<u8>| content.get(8..40) == Some(&seed[..]);
        assert!(copies.iter().any(has), "a seed that was in neither copy");
        // Healed: both are whole now.
        assert_eq!(fuzz::seed(pool.path()), Some(seed));
        let healed = ["a", "b"].map(|name| fs::read(identity.join(name)).expect("healed"));
        assert_eq!(healed[0], healed[1]);
    }
}

/// A file that may have its right checksum behind it.
fn sealed(choices: &mut Choices<'_>) -> Vec<u8> {
    let honest = choices.u8() & 1 != 0;
    let mut content = choices.short().to_vec();
    if honest {
        content.extend_from_slice(blake3::hash(&content).as_bytes());
    }
    content
}

fn identities() -> Vec<Vec<u8>> {
    let pool = directory();
    fuzz::seed(pool.path()).expect("a new identity");
    let whole = fs::read(pool.path().join("identity/a")).expect("it was made");
    let good = Made::default().u8(1).short(&whole[..40]);
    let both = good.clone().u8(1).short(&whole[..40]);
    let one = good.u8(0).short(b"torn");
    vec![both.0, one.0]
}

fn run_spec(input: &[u8]) {
    let mut choices = Choices(input);
    let image = choices.long();
    let Ok(image) = serde_json::from_slice::<ImageConfig>(image) else {
        return;
    };
    let Ok(machine) = serde_json::from_slice::<Machine>(choices.rest()) else {
        return;
    };
    let Some(spec) = fuzz::run_spec(&image, &machine) else {
        return;
    };
    assert!(spec.argv.first().is_some_and(|program| !program.is_empty()));
    assert!(spec.workdir.starts_with('/'));
    assert!((1..=64).contains(&spec.stop_signal));
    assert!(spec.env.iter().all(|entry| entry.contains('=')));
    for (name, value) in &machine.env {
        let is_this = |entry: &&String| {
            let rest = entry.strip_prefix(name.as_str());
            rest.is_some_and(|rest| rest.starts_with('='))
        };
        // Programs read the last.
        let entry = format!("{name}={value}");
        if !name.contains('=') {
            let last = spec.env.iter().rfind(is_this);
            assert_eq!(last, Some(&entry), "{name} is not what was asked for");
        }
    }
}

fn images() -> Vec<Vec<u8>> {
    let image = br#"{"Entrypoint":["/a"],"Cmd":["b"],"Env":["A=b","C=d"],"User":"u","WorkingDir":"/w","StopSignal":"SIGRTMIN+3"}"#;
    let digest = Digest([1; 32]);
    let machine =
        format!(r#"{{"image":{{"flist":"{digest}"}},"command":["c"],"env":{{"A":"x","N":"y"}}}}"#);
    let bare = format!(r#"{{"image":{{"flist":"{digest}"}}}}"#);
    [machine, bare]
        .map(|machine| Made::default().long(image).raw(machine.as_bytes()).0)
        .to_vec()
}

/// Longest object that the store is asked for.
const OBJECT_BYTES_MAX: u64 = 100;
/// A connection that hangs is a finding: nothing here waits for a clock.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store's answer.
fn fetched(input: &[u8]) {
    peer::runtime().block_on(async {
        let url = format!("http://{}/", peer::address());
        let store = async { peer::say(peer::accept().await, input).await };
        let both = async { tokio::join!(store, fuzz::fetch(&url, OBJECT_BYTES_MAX)) };
        let ended = tokio::time::timeout(PATIENCE, both).await;
        let (_, object) = ended.expect("an answer ends with its connection");
        if let Some(object) = object {
            assert!(object.len() as u64 <= OBJECT_BYTES_MAX);
        }
    });
}

fn objects() -> Vec<Vec<u8>> {
    [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhello",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
