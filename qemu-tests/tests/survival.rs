//! What survives what.
//!
//! Owns: one node that loses parts and power. Refuses: being gentle.
#![cfg(test)]

mod tests {
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
    use std::thread;

    use qemu_tests::store::{self, Gate};
    use qemu_tests::{Lab, PATIENCE, WEB_PORT, busybox, http, variant};
    use serde_json::Value;

    /// Notes each boot of the guest on its own disk, where its web server finds it.
    const BOOTS: &str =
        "cat /proc/sys/kernel/random/boot_id >>/www/boots; sync; exec httpd -f -h /www";
    /// Says goodbye to the first who connects to its port, and fails.
    const GOODBYE: &str = "echo ready; echo bye | nc -l -p 80; echo last words; exit 7";
    /// Stored size of a chunk that cannot be compressed: such are all of the large file, and no others.
    const NOISE_BYTES: usize = 512 << 10;

    /// Booted once, for one test at a time; QEMU ends with this process.
    fn lab() -> MutexGuard<'static, (Lab, PathBuf)> {
        static LAB: OnceLock<Mutex<(Lab, PathBuf)>> = OnceLock::new();
        let lab = LAB.get_or_init(|| {
            let lab = Lab::new().expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            Mutex::new((lab, flist))
        });
        // Each test deploys what it needs.
        lab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deploy((lab, flist): &(Lab, PathBuf), name: &str, more: &str) {
        let flist = flist.display();
        let yaml = format!(
            "name: {name}\nimage: {flist}\nmemory: 96Mi\ndisk: 64Mi\nports: [\"{WEB_PORT}:80\"]\n{more}"
        );
        let answer = lab.deploy(&yaml).expect("sifr runs");
        answer.must().expect("deployed");
    }

    fn run(lab: &(Lab, PathBuf), name: &str, more: &str) {
        deploy(lab, name, more);
        runs(&lab.0, name);
    }

    fn runs(lab: &Lab, name: &str) {
        let answer = lab.wait(name, "running").expect("sifr runs");
        answer.must().expect("it runs");
    }

    fn drill(lab: &Lab, target: &str) -> Value {
        let args = ["--output", "json", "node", "drill", target];
        let answer = lab.sifr(&args).expect("sifr runs").must();
        serde_json::from_str(&answer.expect("killed").stdout).expect("JSON")
    }

    /// The workload's status.
    fn main_of(lab: &Lab, name: &str) -> Value {
        lab.get(name).expect("its status")["workloads"]["main"].take()
    }

    /// The boots that the guest has noted.
    fn boots(lab: &Lab) -> Vec<String> {
        let answer = http::page(lab.web, "/boots").expect("a page");
        let (_, body) = answer.split_once("\r\n\r\n").expect("header and body");
        body.lines().map(str::to_owned).collect()
    }

    #[test]
    fn while_the_agent_is_dead_the_page_is_served_by_the_same_machine() {
        let lab = lab();
        run(&lab, "web", &format!("command: [sh, -c, {BOOTS:?}]\n"));
        let lab = &lab.0;
        let before = boots(lab);
        let over = AtomicBool::new(false);
        let pages = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut pages = 0;
                while !over.load(Ordering::Relaxed) {
                    http::get(lab.web, "/").expect("a page at any time");
                    pages += 1;
                }
                pages
            });
            let drilled = drill(lab, "node");
            over.store(true, Ordering::Relaxed);
            assert_ne!(drilled["pid"], drilled["successor"]);
            reader.join().expect("every page came")
        });
        assert!(pages > 0);
        assert_eq!((boots(lab), before.len()), (before, 1));
        let status = main_of(lab, "web");
        assert_eq!(
            (&status["state"], &status["restarts"]),
            (&"running".into(), &0.into())
        );
        lab.delete("web").expect("deleted");
    }

    #[test]
    fn an_exit_while_the_agent_is_dead_is_reported_by_the_next_one() {
        let lab = lab();
        run(
            &lab,
            "last",
            &format!("restart: never\ncommand: [sh, -c, {GOODBYE:?}]\n"),
        );
        let lab = &lab.0;
        let log = lab.follow("last").expect("its log");
        log.wait_for("ready").expect("it runs");
        lab.node().mark();
        thread::scope(|scope| {
            scope.spawn(|| drill(lab, "node"));
            let dead = lab
                .node()
                .wait_for_line("sifr: node ended with Signal(9)", PATIENCE);
            dead.expect("the agent is dead");
            assert_eq!(http::page(lab.web, "/").expect("a word"), "bye\n");
        });
        lab.wait("last", "exited")
            .expect("sifr runs")
            .must()
            .expect("it has exited");
        assert_eq!(main_of(lab, "last")["exit"]["code"], 7);
        // The follower was there before and after.
        assert!(log.to_end().expect("an end").ends_with("last words\n"));
        lab.delete("last").expect("deleted");
    }

    #[test]
    fn a_machine_whose_vmm_is_killed_runs_again_with_its_disk() {
        let lab = lab();
        run(&lab, "web", &format!("command: [sh, -c, {BOOTS:?}]\n"));
        let lab = &lab.0;
        let before = boots(lab);
        drill(lab, "web");
        let status = main_of(lab, "web");
        let message = status["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("signal 9") && message.contains("next try"),
            "{status}"
        );
        runs(lab, "web");
        let after = boots(lab);
        assert_eq!((&after[..1], after.len()), (&before[..], 2));
        drill(lab, "node");
        let status = main_of(lab, "web");
        assert_eq!(status["restarts"], 1, "the next agent counts on: {status}");
        lab.delete("web").expect("deleted");
    }

    #[test]
    fn a_guest_that_reads_while_chunks_is_killed_waits_and_gets_the_right_bytes() {
        let lab = &lab().0;
        let flist = variant(lab.command(), lab.directory(), "lazy", 3).expect("an image");
        let gate = Gate::shut(NOISE_BYTES, 2);
        let at = flist.parent().expect("a store");
        let url = store::serve_through(at, gate.clone()).expect("a web server");
        let digest = flist.file_stem().expect("a name").to_string_lossy();
        let yaml = format!(
            "name: lazy\nimage: blake3:{digest}\nstore: {url}\nmemory: 96Mi\ndisk: 64Mi\nrestart: never\n\
             command: [sh, -c, 'echo reading; exec sha256sum /www/large.bin']\n"
        );
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        let log = lab.follow("lazy").expect("its log");
        log.wait_for("reading").expect("it reads");
        gate.wait_for_one().expect("half a chunk has come");
        drill(lab, "chunks");
        gate.open();
        let said = log.to_end().expect("it ends");
        let file = lab.directory().join("lazy-tree/www/large.bin");
        let sum = Command::new("sha256sum")
            .arg(file)
            .output()
            .expect("sha256sum runs");
        let sum = String::from_utf8(sum.stdout).expect("text");
        assert_eq!(said.split(' ').next(), sum.split(' ').next());
        lab.delete("lazy").expect("deleted");
    }

    #[test]
    fn identity_and_workload_survive_a_power_cut_and_the_power_button_and_the_node_says_which_it_was()
     {
        let mut lab = lab();
        deploy(&lab, "web", "");
        let lab = &mut lab.0;
        let key = lab.key().expect("a key");
        // No store is in reach. At once: the acknowledgement alone must be enough.
        for (end, how) in [
            (Lab::power_cut as fn(&mut Lab) -> _, "unannounced"),
            (Lab::power_cut, "unannounced"),
            (Lab::power_button, "switched_off"),
        ] {
            end(lab).expect("off");
            lab.power_on().expect("on");
            let info = lab.sifr(&["--output", "json", "node", "info"]);
            let info = info.expect("sifr runs").must().expect("info").stdout;
            let info: Value = serde_json::from_str(&info).expect("JSON");
            assert_eq!(info["last_end"]["how"], how, "{info}");
            assert_eq!(lab.key().expect("a key"), key);
            runs(lab, "web");
            let page = http::page(lab.web, "/").expect("a page");
            assert!(page.contains("It works"));
        }
        lab.delete("web").expect("deleted");
    }

    #[test]
    fn of_two_pools_the_one_with_statements_is_used_and_the_other_is_named() {
        let mut lab = Lab::new().expect("a node");
        lab.power_cut().expect("off");
        // The node's disk is away for a boot: another becomes its pool, and somebody counts on that.
        let away = std::mem::take(lab.disks());
        let other = lab.blank_disk("LAB1").expect("a disk");
        lab.disks().push(other);
        lab.power_on().expect("on");
        let key = lab.key().expect("a key");
        let address = format!("127.0.0.1:{}", lab.api);
        let add = ["node", "add", "lab", &address, "--key", &key, "--replace"];
        lab.sifr(&add).expect("sifr runs").must().expect("pinned");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let held = (lab, flist);
        run(&held, "web", "");
        let mut lab = held.0;
        lab.power_cut().expect("off");
        // The first is the older one, and its serial the smaller.
        lab.disks().splice(0..0, away);
        lab.power_on().expect("on");
        assert_eq!(lab.key().expect("a key"), key);
        runs(&lab, "web");
        let told = lab.sifr(&["node", "info"]).expect("sifr runs");
        let told = told.must().expect("info").stdout;
        assert!(
            told.contains("pool of another node") && told.contains("vda"),
            "{told}"
        );
    }
}
