//! From an image on a disk to a deployment on a node, and back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use types::Digest;

use super::bench::Bench;

#[test]
fn a_deployment_lives_from_pack_to_delete() {
    let bench = Bench::with_node(true);
    bench
        .deploy()
        .ends(0)
        .says("shop version 1 · lab · durable")
        .says("127.0.0.1:8080 → main:80")
        .says("pushed");
    bench
        .run(&["get"])
        .ends(0)
        .says("shop")
        .says("running")
        .says("8080:80");
    bench.run(&["wait", "shop"]).ends(0).says("shop is running");
    let logs = bench.run(&["logs", "shop"]).ends(0);
    assert_eq!(
        (logs.out.as_str(), logs.err.as_str()),
        ("to out\n", "to err\n")
    );
    let capture = bench.run(&["network", "capture", "shop", "--snap", "96"]);
    assert_eq!(capture.ends(0).out, "frames of 96 bytes");
    let capture = ["network", "capture", "shop", "--network", "back"];
    assert_eq!(bench.run(&capture).ends(0).out, "frames in back");
    let capture = ["network", "capture", "shop/main", "-w", "shop.pcapng"];
    bench.run(&capture).ends(0).says("Ctrl-C").says("22 bytes");
    assert!(bench.path("shop.pcapng").exists());
    bench
        .run(&["stop", "shop"])
        .ends(0)
        .says("version 2")
        .says("sifr wait shop --for stopped");
    bench.run(&["wait", "shop", "--for", "stopped"]).ends(0);
    bench.run(&["wait", "shop"]).ends(1).says("sifr start shop");
    bench.run(&["start", "shop"]).ends(0).says("version 3");
    bench.run(&["delete", "shop"]).ends(0).says("version 4");
    bench.run(&["wait", "shop", "--for", "deleted"]).ends(0);
    bench.run(&["get"]).ends(0).says("no deployments of yours");
    bench.run(&["get", "shop"]).ends(0).says("deleted");
    bench
        .run(&["stop", "shop"])
        .ends(1)
        .says("has been deleted");
    bench.run(&["logs", "shop"]).ends(1).says("no workloads");
    // The count goes on over the tombstone, and nothing is pushed a second time.
    let image = bench.pack();
    let again = bench
        .run(&[
            "deploy", "--image", &image, "--name", "shop", "--output", "json",
        ])
        .ends(0)
        .json();
    assert_eq!(
        (&again["version"], &again["pushed_bytes"]),
        (&5.into(), &0.into())
    );
    assert_eq!(again["durable"], true);
}

#[test]
fn a_trace_names_the_rules_on_the_way_and_says_what_comes_of_it() {
    let bench = Bench::with_node(true);
    bench.pack();
    bench.deploy().ends(0);
    let trace = ["network", "trace", "shop", "db", "--tcp", "5432"];
    let out = bench.run(&trace).ends(0).out;
    for word in [
        "prerouting > from-tap2",
        "ether type ip accept",
        "delivered: ",
        "Name(\"db\")",
        "(Tcp, 5432)",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
    let out = bench
        .run(&["network", "trace", "outside", "shop/main", "--udp", "53"])
        .ends(0)
        .out;
    assert!(
        out.contains("FromOutside") && out.contains("(Udp, 53)"),
        "{out}"
    );
    bench
        .run(&["network", "trace", "shop", "a b"])
        .ends(2)
        .says("neither an IP address nor a name");
}

#[test]
fn the_trace_of_a_first_run_comes_to_lie_beside_the_flist() {
    let bench = Bench::with_node(true);
    let image = bench.pack();
    bench
        .run(&["flist", "trace", &image])
        .ends(3)
        .says("there is no trace");
    // Packed once: the files of a second pack would be newer, and its image another.
    let deploy = ["deploy", "--image", &image, "--name", "shop", "--", "serve"];
    bench.run(&deploy).ends(0);
    bench
        .run(&["flist", "trace", &image])
        .ends(0)
        .says(".trace");
    let digest = Path::new(&image).file_stem().expect("a name");
    let digest = Digest::from_hex(&digest.to_string_lossy()).expect("a digest");
    let bytes = fs::read(bench.path(&image.replace(".flist", ".trace"))).expect("written");
    let trace = flist::trace::Trace::decode(&bytes, &digest, 2).expect("of this flist");
    assert_eq!(trace.chunks(), [1]);
}

#[test]
fn a_file_is_deployed_with_its_image_beside_it() {
    let bench = Bench::with_node(true);
    let image = bench.pack();
    fs::create_dir(bench.path("app")).expect("a directory");
    let yaml = format!(
        "name: shop\nworkloads:\n  web:\n    image: ../{image}\n    memory: 64Mi\n    ports: ['80:8080']\n"
    );
    fs::write(bench.path("app/app.yaml"), yaml).expect("a file");
    bench
        .run(&["deploy", "app/app.yaml"])
        .ends(0)
        .says("shop version 1");
    let status = bench.run(&["get", "shop", "--output", "json"]).json();
    assert_eq!(status["workloads"]["web"]["ports"][0]["node"], 80);
    let shown = bench
        .run(&["flist", "show", &image])
        .ends(0)
        .says("/bin/app")
        .says("A=1");
    assert!(
        shown.out.contains(
            Path::new(&image)
                .file_stem()
                .expect("a name")
                .to_str()
                .expect("UTF-8")
        )
    );
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder
            .append_data(&mut header, name, *content)
            .expect("memory");
    }
    builder.into_inner().expect("memory")
}

/// What `docker save` writes, as far as it matters.
fn docker_archive(program: &[u8]) -> Vec<u8> {
    let config = br#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/bin/app"],
        "Cmd":["serve"],"Env":["PATH=/bin","MODE=slow"],"User":"web","WorkingDir":"/srv"}}"#;
    let manifest = br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l/layer.tar"]}]"#;
    let layer = tar(&[("bin/app", program)]);
    tar(&[
        ("c.json", config),
        ("l/layer.tar", &layer),
        ("manifest.json", manifest),
    ])
}

#[test]
fn an_image_is_packed_with_its_own_configuration_and_what_options_change() {
    let bench = Bench::new(true);
    fs::write(bench.path("app"), docker_archive(b"program")).expect("a file");
    let packed = bench
        .run(&["flist", "pack", "app", "-o", "store"])
        .ends(0)
        .says("app (Docker archive): 1 files");
    let shown = bench.run(&["flist", "show", packed.out.trim_end()]).ends(0);
    for says in ["/bin/app", "serve", "PATH=/bin MODE=slow", "web", "/srv"] {
        assert!(shown.out.contains(says), "{says} in {}", shown.out);
    }
    let changed = bench
        .run(&[
            "flist",
            "pack",
            "app",
            "-o",
            "store",
            "--cmd",
            "check",
            "--env",
            "MODE=fast",
            "--user",
            "0",
        ])
        .ends(0);
    let file = changed.out.trim_end();
    let shown = bench
        .run(&["flist", "show", file, "--output", "json"])
        .ends(0)
        .json();
    let expected = serde_json::json!({"Entrypoint": ["/bin/app"], "Cmd": ["check"],
        "Env": ["PATH=/bin", "MODE=fast"], "User": "0", "WorkingDir": "/srv"});
    assert_eq!(shown["config"], expected);
    let flist = ["flist", "pack", file, "-o", "store"];
    bench.run(&flist).ends(1).says("deploy it as it is");
    fs::write(bench.path("page.html"), "<html>".repeat(200)).expect("a file");
    let page = ["flist", "pack", "page.html", "-o", "store"];
    bench.run(&page).ends(1).says("docker save");
}

#[test]
fn an_archive_given_to_deploy_is_packed_on_the_way_and_pushed_once() {
    let bench = Bench::with_node(true);
    fs::write(bench.path("app.tar"), docker_archive(b"program")).expect("a file");
    let deploy = [
        "deploy", "--image", "app.tar", "--name", "shop", "--output", "json",
    ];
    let ran = bench.run(&deploy).ends(0);
    assert!(
        ran.err.contains("packed app.tar (Docker archive)"),
        "{}",
        ran.err
    );
    assert!(ran.json()["pushed_bytes"].as_u64() > Some(0));
    assert_eq!(bench.run(&deploy).ends(0).json()["pushed_bytes"], 0);
    // Named twice in a file, it is packed once; a directory is packed as well.
    fs::create_dir_all(bench.path("tree/bin")).expect("a directory");
    fs::write(bench.path("tree/bin/app"), b"program").expect("a file");
    let yaml = "name: pair\nworkloads:\n  a: {image: app.tar}\n  b: {image: app.tar}\n  \
                c: {image: tree, command: [/bin/app]}\n";
    fs::write(bench.path("pair.yaml"), yaml).expect("a file");
    let ran = bench.run(&["deploy", "pair.yaml"]).ends(0);
    assert_eq!(ran.err.matches("packed app.tar").count(), 1, "{}", ran.err);
    assert!(ran.err.contains("packed tree (directory)"), "{}", ran.err);
}

#[test]
fn an_image_is_encrypted_on_the_way_to_a_node_and_one_that_is_not_is_refused() {
    let bench = Bench::with_node(true);
    fs::write(bench.path("app.tar"), docker_archive(b"program")).expect("a file");
    let plain = ["deploy", "--output", "json", "--name", "shop", "--image"];
    let encrypted = [&["deploy", "--encrypt"], &plain[1..]].concat();
    let ran = bench.run(&[&encrypted[..], &["app.tar"]].concat()).ends(0);
    assert!(ran.err.contains("made the salt"), "{}", ran.err);
    assert!(ran.json()["pushed_bytes"].as_u64() > Some(0));
    // One salt gives one ciphertext, and not what the same image is without it.
    let again = bench.run(&[&encrypted[..], &["app.tar"]].concat()).ends(0);
    assert_eq!(again.json()["pushed_bytes"], 0);
    let open = bench.run(&[&plain[..], &["app.tar"]].concat()).ends(0);
    assert!(open.json()["pushed_bytes"].as_u64() > Some(0));
    let packed = bench.run(&[
        "flist", "pack", "app.tar", "-o", "store", "--output", "json",
    ]);
    let packed = packed.ends(0).json();
    let (file, digest) = (packed["file"].as_str(), packed["digest"].as_str());
    bench
        .run(&[&encrypted[..], &[file.expect("a file")]].concat())
        .ends(2)
        .says("not encrypted");
    bench
        .run(&[&encrypted[..], &[digest.expect("a digest")]].concat())
        .ends(2)
        .says("named by its digest");
}

/// As every other: its chunks are found, brought and removed by the same commands.
#[test]
fn a_disk_image_goes_through_stores() {
    goes_through_stores(&[], "flist");
}

/// Its flist, which has the keys, is in none of them: they keep, carry and remove its chunks by their list.
#[test]
fn an_encrypted_image_goes_through_stores_without_its_keys() {
    goes_through_stores(&["--encrypt"], "chunks");
}

/// What makes the image known in the stores is the file of this kind.
fn goes_through_stores(options: &[&str], kind: &str) {
    let bench = Bench::new(true);
    let mut disk = vec![0; 3 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[2 << 20..][..4096].fill(7);
    fs::write(bench.path("disk.raw"), disk).expect("a file");
    let pack = ["flist", "pack", "disk.raw", "-o", "a", "--output", "json"];
    let packed = bench.run(&[&pack, options].concat()).ends(0).json();
    assert_eq!(packed["chunks"], 2, "{packed}");
    let (file, digest) = (packed["file"].as_str(), packed["digest"].as_str());
    let (file, digest) = (file.expect("a file"), digest.expect("a digest"));
    let run = |args: &[&str]| bench.run(&[&["flist"], args].concat()).ends(0);
    run(&["push", file, "b", "c"]);
    run(&["pull", digest, "c", "-o", "d"]);
    run(&["mirror", "d", "e"]);
    run(&["verify", digest, "b", "c", "d", "e"]);
    let hex = digest.strip_prefix("blake3:").expect("a digest");
    for store in ["b", "c", "d", "e"] {
        let files = fs::read_dir(bench.path(store)).expect("a store");
        let names = files.map(|file| file.expect("reads").file_name());
        let known = names.filter(|name| name != "chunks");
        assert_eq!(
            known.collect::<Vec<_>>(),
            [format!("{hex}.{kind}").as_str()]
        );
    }
    let chunks = |store: &str| {
        let shards = fs::read_dir(bench.path(store).join("chunks")).expect("a store");
        let shards = shards.map(|shard| fs::read_dir(shard.expect("reads").path()));
        shards
            .map(|files| files.expect("reads").count())
            .sum::<usize>()
    };
    assert_eq!(chunks("e"), 2);
    // What is younger than a grace of two hours stays: so old are these made.
    let old = std::time::SystemTime::now() - Duration::from_secs(9000);
    for shard in fs::read_dir(bench.path("e/chunks")).expect("a store") {
        for chunk in fs::read_dir(shard.expect("reads").path()).expect("reads") {
            let file = fs::File::open(chunk.expect("reads").path()).expect("opens");
            file.set_modified(old).expect("a time");
        }
    }
    run(&["gc", "e", "--grace", "2h"]);
    assert_eq!(chunks("e"), 2, "they are named");
    run(&["gc", "e", "--grace", "2h", "--forget", digest]);
    assert_eq!(chunks("e"), 0);
}

#[test]
fn an_image_without_a_program_is_not_pushed() {
    let bench = Bench::with_node(true);
    fs::write(bench.path("tree.tar"), tar(&[("bin/app", b"program")])).expect("a file");
    let bare = ["deploy", "--image", "tree.tar", "--name", "shop"];
    bench.run(&bare).ends(2).says("names no program");
    let command = [&bare[..], &["--", "/bin/app"]].concat();
    bench.run(&command).ends(0).says("shop version 1");
}
