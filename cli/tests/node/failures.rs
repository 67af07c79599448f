//! What goes wrong has an exit status and words; what breaks off goes on.

use std::fs;
use std::process::Command;

use api::SecretKey;
use types::Digest;
use types::status::State;

use super::bench::Bench;

#[test]
fn wrong_input_is_status_2_and_names_the_place() {
    let bench = Bench::with_node(true);
    bench.run(&["deploy"]).ends(2).says("give a file");
    bench.run(&["frobnicate"]).ends(2);
    fs::write(bench.path("bad.yaml"), "name: shop\nimage: shop:dev\n").expect("a file");
    bench
        .run(&["deploy", "bad.yaml"])
        .ends(2)
        .says("bad.yaml: workloads.main.image")
        .says("docker://shop:dev");
    fs::write(
        bench.path("bad.yaml"),
        "name: shop\nimage: docker.io/Shop\n",
    )
    .expect("a file");
    bench
        .run(&["deploy", "bad.yaml"])
        .ends(2)
        .says("docker.io/library/nginx:1.27");
    bench
        .run(&["deploy", "missing.yaml"])
        .ends(1)
        .says("cannot read the deployment file");
    bench
        .run(&["get", "--node", "moon"])
        .ends(2)
        .says("\"moon\" is not known");
}

#[test]
fn a_refusal_is_status_3_with_the_nodes_words_and_advice() {
    let bench = Bench::with_node(false);
    bench
        .deploy()
        .ends(3)
        .says("this node runs from RAM")
        .says("--accept-volatile");
    bench
        .run(&["get", "shop"])
        .ends(3)
        .says("there is no deployment shop");
    bench.run(&["wait", "shop", "--for", "deleted"]).ends(0);
    let absent = Digest([9; 32]).to_string();
    bench
        .run(&[
            "deploy",
            "--image",
            &absent,
            "--name",
            "shop",
            "--accept-volatile",
        ])
        .ends(3)
        .says("no such flist");
    let image = bench.pack();
    let volatile = [
        "deploy",
        "--image",
        &image,
        "--name",
        "shop",
        "--accept-volatile",
    ];
    bench.run(&volatile).ends(0).says("volatile");
    bench.node.state.lock().expect("no panic").overtaken = true;
    bench
        .run(&volatile)
        .ends(3)
        .says("the next one is 3")
        .says("run this again");
    bench.run(&["key", "new", "--identity", "stranger"]).ends(0);
    bench
        .run(&["get", "--identity", "stranger"])
        .ends(3)
        .says("sifr key show");
}

#[test]
fn a_node_that_is_off_or_another_is_status_4() {
    let bench = Bench::with_node(true);
    let key = bench.node.key.public().to_string();
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address");
    bench
        .run(&["node", "add", "off", &free.to_string(), "--key", &key])
        .ends(0);
    bench
        .run(&["get", "--node", "off"])
        .ends(4)
        .says("cannot reach the node");
    let other = SecretKey::from_seed([3; 32]).public().to_string();
    bench
        .run(&[
            "node",
            "add",
            "moved",
            &bench.address.to_string(),
            "--key",
            &other,
        ])
        .ends(0);
    bench
        .run(&["get", "--node", "moved"])
        .ends(4)
        .says(&other)
        .says(&key);
    bench
        .run(&["node", "list"])
        .ends(0)
        .says("cannot reach")
        .says("ready");
}

#[test]
fn a_wait_in_vain_is_status_5_and_one_for_the_dead_status_1() {
    let bench = Bench::with_node(true);
    bench.node.state.lock().expect("no panic").machine = Some(State::Starting);
    bench.deploy().ends(0);
    bench
        .run(&["wait", "shop", "--timeout", "200ms"])
        .ends(5)
        .says("shop is not running after 200ms: shop/main starting");
    bench.node.state.lock().expect("no panic").machine = Some(State::Exited);
    let dead = bench
        .run(&["wait", "shop"])
        .ends(1)
        .says("exited (3)")
        .says("sifr logs shop");
    assert!(!dead.err.contains('\x1b'));
    let ended = bench.run(&["wait", "shop", "--for", "exited"]).ends(0);
    assert!(
        ended
            .out
            .starts_with("shop/main exited (3): the program ended")
    );
    assert_eq!(ended.err, "", "once is enough");
}

#[test]
fn a_damaged_chunk_is_not_sent() {
    let bench = Bench::with_node(true);
    let image = bench.pack();
    for directory in fs::read_dir(bench.path("store/chunks")).expect("reads") {
        for chunk in fs::read_dir(directory.expect("reads").path()).expect("reads") {
            fs::write(chunk.expect("reads").path(), b"rot").expect("writes");
        }
    }
    bench
        .run(&["deploy", "--image", &image, "--name", "shop"])
        .ends(1)
        .says("is damaged")
        .says("pack the image again");
    assert!(bench.node.state.lock().expect("no panic").chunks.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let bench = Bench::with_node(true);
    bench.deploy().ends(0);
    let line = format!(
        "{} logs shop --tail 50000 2>/dev/null | head -n 1; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_sifr")
    );
    let output = Command::new("bash")
        .args(["-c", &line])
        .env("SIFR_HOME", bench.path("home"))
        .output();
    let output = output.expect("bash runs");
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(0), b"to out\n".as_slice())
    );
}

#[test]
fn a_wait_goes_on_with_the_next_agent() {
    let bench = Bench::with_node(true);
    bench.deploy().ends(0);
    bench.node.state.lock().expect("no panic").dies = true;
    bench
        .run(&["wait", "shop"])
        .ends(0)
        .says("asking again")
        .says("answers again after")
        .says("shop is running");
    bench.node.state.lock().expect("no panic").dies = true;
    bench
        .run(&["wait", "shop", "--timeout", "100ms"])
        .ends(5)
        .says("the node was away");
}

#[test]
fn logs_go_on_with_the_next_agent_and_repeat_nothing() {
    let bench = Bench::with_node(true);
    bench.deploy().ends(0);
    bench.node.state.lock().expect("no panic").dies = true;
    let logs = bench
        .run(&["logs", "-f", "shop/main"])
        .ends(0)
        .says("asking again");
    assert_eq!(logs.out, "to out\n");
    assert_eq!(logs.err.matches("to err\n").count(), 1, "{}", logs.err);
}
