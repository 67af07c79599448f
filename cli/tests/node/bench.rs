//! A person with a directory and the program, and what a run of it gave.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use api::SecretKey;
use serde_json::Value;
use tempfile::TempDir;

use super::fake::Node;

/// A person with a directory, and a node that is theirs.
pub(super) struct Bench {
    pub(super) directory: TempDir,
    pub(super) address: SocketAddr,
    pub(super) node: Arc<Node>,
}

pub(super) struct Ran {
    status: i32,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ran {
    #[track_caller]
    pub(super) fn ends(self, status: i32) -> Self {
        assert_eq!(self.status, status, "out: {}\nerr: {}", self.out, self.err);
        self
    }
    #[track_caller]
    pub(super) fn says(self, text: &str) -> Self {
        assert!(
            self.out.contains(text) || self.err.contains(text),
            "out: {}\nerr: {}",
            self.out,
            self.err
        );
        self
    }
    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.out).expect("JSON on standard output")
    }
}

impl Bench {
    /// The node is served by a thread that lives as long as the test process.
    pub(super) fn new(durable: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let owner = SecretKey::generate().expect("a key");
        fs::create_dir(directory.path().join("home")).expect("a directory");
        owner
            .save(&directory.path().join("home/key"))
            .expect("a key file");
        let key = SecretKey::from_seed([1; 32]);
        let node = Node {
            key,
            owner: owner.public(),
            durable,
            state: Mutex::default(),
            agent_pid: AtomicU32::new(57),
            dies: Arc::default(),
        };
        let node = Arc::new(node);
        let (sender, receiver) = std::sync::mpsc::channel();
        let served = Arc::clone(&node);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(served.live(&sender));
        });
        let address = receiver.recv().expect("the node is up");
        Self {
            directory,
            address,
            node,
        }
    }

    pub(super) fn with_node(durable: bool) -> Self {
        let bench = Self::new(durable);
        let key = bench.node.key.public().to_string();
        bench
            .run(&[
                "node",
                "add",
                "lab",
                &bench.address.to_string(),
                "--key",
                &key,
            ])
            .ends(0);
        bench
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn run(&self, args: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_sifr"))
            .args(args)
            .current_dir(self.directory.path())
            .env("SIFR_HOME", self.path("home"))
            .stdin(Stdio::null())
            .output()
            .expect("sifr runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        let status = output.status.code().expect("an exit status");
        Ran {
            status,
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    /// Packs a small tree; the path of its .flist file relative to the directory.
    pub(super) fn pack(&self) -> String {
        fs::create_dir_all(self.path("tree/bin")).expect("a directory");
        fs::write(self.path("tree/bin/app"), vec![b'x'; 300_000]).expect("a file");
        fs::write(
            self.path("tree/words"),
            (0..200_000u32)
                .flat_map(u32::to_le_bytes)
                .collect::<Vec<_>>(),
        )
        .expect("a file");
        let ran = self
            .run(&[
                "flist",
                "pack",
                "tree",
                "-o",
                "store",
                "--entrypoint",
                "/bin/app",
                "--env",
                "A=1",
            ])
            .ends(0);
        ran.out.trim_end().to_owned()
    }

    pub(super) fn deploy(&self) -> Ran {
        let image = self.pack();
        self.run(&[
            "deploy", "--image", &image, "--name", "shop", "-p", "8080:80", "--", "serve",
        ])
    }
}
