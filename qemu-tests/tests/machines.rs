//! A machine seen from its node: what it counts, what it may take, how fast it may be.
//!
//! Owns: one node, watched from inside, for one test at a time. Refuses: switching it off.
#![cfg(test)]

mod tests {
    use std::path::PathBuf;
    use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
    use std::time::{Duration, Instant};

    use qemu_tests::exposition::{self, Exposition};
    use qemu_tests::{Lab, Setup, WEB_PORT, busybox, http};
    use types::Bytes;

    const MIB: u64 = 1 << 20;

    /// Booted once, for one test at a time; QEMU ends with this process.
    fn lab() -> MutexGuard<'static, (Lab, PathBuf)> {
        static LAB: OnceLock<Mutex<(Lab, PathBuf)>> = OnceLock::new();
        let lab = LAB.get_or_init(|| {
            let setup = Setup {
                memory: Bytes::mib(1536),
                watched: true,
                ..Setup::default()
            };
            let lab = Lab::with(&setup, |_| Ok(())).expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            Mutex::new((lab, flist))
        });
        // Each test deploys what it needs.
        lab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deploys the busybox image as `name` with more lines of YAML, and waits until it is so.
    fn deploy((lab, flist): &(Lab, PathBuf), name: &str, more: &str, until: &str) {
        let flist = flist.display();
        let yaml = format!("name: {name}\nimage: {flist}\nmemory: 96Mi\ndisk: 64Mi\n{more}");
        let deployed = lab.deploy(&yaml).expect("sifr runs");
        deployed.must().expect("deployed");
        let waited = lab.wait(name, until).expect("sifr runs");
        waited.must().expect("it is so");
    }

    /// What a command prints as metrics.
    fn metrics(lab: &Lab, args: &[&str]) -> Exposition {
        let answer = lab.sifr(args).expect("sifr runs").must();
        exposition::read(&answer.expect("metrics").stdout).expect("Prometheus' text")
    }

    /// The machine's id, from its series.
    fn machine_of(lab: &Lab, name: &str) -> String {
        let answer = lab.sifr(&["metrics", name]).expect("sifr runs").must();
        let text = answer.expect("metrics").stdout;
        let (_, rest) = text.split_once("machine=\"").expect("a machine");
        rest.split('"').next().expect("its id").to_owned()
    }

    #[test]
    fn a_node_counts_what_its_machines_do_and_tells_prometheus() {
        let held = lab();
        deploy(
            &held,
            "web",
            &format!("ports: [\"{WEB_PORT}:80\"]\n"),
            "running",
        );
        let lab = &held.0;
        http::page(lab.web, "/").expect("a page");
        let before = metrics(lab, &["node", "metrics"]);
        let of = |metrics: &Exposition, name: &str, labels: &[(&str, &str)]| {
            let labels = [&[("deployment", "web")], labels].concat();
            metrics.sum(&format!("sifr_machine_{name}"), &labels)
        };
        for milestone in ["vcpus_running", "guest_init", "program_started"] {
            let seconds = of(&before, "boot_seconds", &[("milestone", milestone)]);
            assert!(seconds.is_some_and(|s| s > 0.0), "{milestone}");
        }
        for kind in ["pio_in", "pio_out", "mmio_read", "mmio_write", "other"] {
            let exits = of(&before, "exits_total", &[("kind", kind)]);
            assert!(exits.is_some(), "{kind}");
        }
        assert!(of(&before, "exits_total", &[]) > Some(1.0));
        let net = [("device", "net")];
        for name in ["queue_depth", "queue_depth_max"] {
            assert!(of(&before, name, &net).is_some(), "{name}");
        }
        let disk = [("device", "blk")];
        let answered = of(&before, "request_seconds_count", &disk).expect("latencies");
        assert!(of(&before, "request_seconds_bucket", &disk) >= Some(answered));
        assert_eq!(of(&before, "up", &[]), Some(1.0));
        assert_eq!(
            before.sum("sifr_node_workloads", &[("state", "running")]),
            Some(1.0)
        );
        // A megabyte from the guest's image through its card.
        let page = http::page(lab.web, "/large.bin").expect("a page");
        assert!(page.len() > 1 << 20, "{}", page.len());
        let after = metrics(lab, &["node", "metrics"]);
        assert_eq!(before.fallen(&after), [""; 0]);
        let grown = |name, labels: &[(&str, &str)]| {
            of(&after, name, labels).unwrap_or(0.0) - of(&before, name, labels).unwrap_or(0.0)
        };
        assert!(grown("queue_to_guest_bytes_total", &disk) > 1e6);
        assert!(grown("queue_requests_total", &disk) > 1.0);
        assert!(grown("request_seconds_count", &disk) > 1.0);
        assert!(grown("cpu_seconds_total", &[]) > 0.0);
        // Who deployed it sees its machine, and nothing of the node.
        let own = metrics(lab, &["metrics", "web"]);
        assert!(of(&own, "up", &[]) == Some(1.0) && own.sum("sifr_node_pool_bytes", &[]).is_none());
        let drawn = lab.sifr(&["get", "web"]).expect("sifr runs").must();
        let drawn = drawn.expect("its status").stdout;
        for step in [
            "image open",
            "VMM started",
            "vCPUs run",
            "guest init",
            "program started",
        ] {
            let line = drawn.lines().find(|line| line.trim().starts_with(step));
            let line = line.unwrap_or_else(|| panic!("{step}: {drawn}"));
            assert!(line.contains(" ms ") && line.ends_with('#'), "{line}");
        }
        lab.delete("web").expect("deleted");
    }

    #[test]
    fn a_machine_may_take_what_was_promised_and_one_that_wants_more_harms_nobody() {
        let held = lab();
        deploy(
            &held,
            "neighbour",
            &format!("ports: [\"{WEB_PORT}:80\"]\n"),
            "running",
        );
        // More than there is must first be promised for its use to be fatal.
        let eat = "echo 1 >/proc/sys/vm/overcommit_memory; echo eats; sleep 1; \
                   dd if=/dev/zero of=/dev/null bs=300M; echo ended with $?; exec sleep 9999";
        let more = format!("cpus: 2\nrestart: never\ncommand: [sh, -c, {eat:?}]\n");
        deploy(&held, "greedy", &more, "running");
        let lab = &held.0;
        let log = lab.follow("greedy").expect("its log");
        log.wait_for("ended with 137").expect("its kernel ends it");
        let group = format!("/sys/fs/cgroup/vms/{}", machine_of(lab, "greedy"));
        let mut watch = lab.watch().expect("eyes");
        let mut file = |name: &str| {
            let text = watch.read(&format!("{group}/{name}")).expect(name);
            text.trim().to_owned()
        };
        let number = |text: String| text.parse::<u64>().expect("a number");
        // The guest's memory, and what a VMM of two vCPUs may need beside it.
        let most = number(file("memory.max"));
        assert!((96 * MIB..=160 * MIB).contains(&most), "{most}");
        assert!(number(file("memory.current")) <= most);
        assert!(file("memory.events").contains("oom_kill 0"));
        // Its vCPUs' time, and a processor's for its devices.
        assert_eq!(file("cpu.max"), "300000 100000");
        assert_eq!(file("cpu.weight"), "200");
        let tasks = number(file("pids.max"));
        assert!((8..=64).contains(&tasks), "{tasks}");
        assert!(number(file("pids.current")) <= tasks);
        let page = http::page(lab.web, "/").expect("the neighbour's page");
        assert!(page.contains("It works"));
        let info = lab.sifr(&["node", "info"]).expect("sifr runs").must();
        info.expect("the node answers");
        let status = lab.get("neighbour").expect("its status").to_string();
        assert!(status.contains("\"restarts\":0"), "{status}");
        for name in ["greedy", "neighbour"] {
            lab.delete(name).expect("deleted");
        }
    }

    /// Two times of the guest's clock, in a line of its log.
    fn seconds(text: &str) -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix("read "));
        let (from, to) = line.and_then(|l| l.split_once(' ')).expect("two times");
        let number = |text: &str| text.parse::<f64>().expect("seconds");
        number(to) - number(from)
    }

    #[test]
    fn a_machine_is_as_fast_as_its_deployment_allows() {
        let held = lab();
        // Four megabytes by disk in eight seconds, and by the card in sixteen, less the first of each.
        let read = "read a b </proc/uptime; dd if=/www/large.bin of=/dev/null bs=64k; read c d </proc/uptime; \
                    echo read $a $c; exec httpd -f -h /www";
        let more = format!(
            "ports: [\"{WEB_PORT}:80\"]\ncommand: [sh, -c, {read:?}]\n\
             limits: {{disk: {{bytes_per_second: 512Ki}}, send: {{bytes_per_second: 256Ki}}}}\n"
        );
        deploy(&held, "slow", &more, "running");
        let lab = &held.0;
        let log = lab.follow("slow").expect("its log");
        log.wait_for("read ").expect("it has read the file");
        let took = seconds(&lab.logs("slow").expect("its log"));
        assert!(took > 6.0, "{took}");
        http::page(lab.web, "/").expect("a page");
        let started = Instant::now();
        let page = http::get(lab.web, "/large.bin").expect("a page");
        assert!(page.len() > 1 << 20 && started.elapsed() > Duration::from_secs(13));
        // A card that is limited is served by the VMM, which counts.
        let sent = [("device", "net"), ("deployment", "slow")];
        let sent = metrics(lab, &["metrics", "slow"])
            .sum("sifr_machine_queue_from_guest_bytes_total", &sent);
        assert!(sent > Some(4e6), "{sent:?}");
        lab.delete("slow").expect("deleted");
    }

    #[test]
    fn the_chunk_daemon_has_a_user_of_its_own_and_no_privilege_before_and_after_a_crash() {
        let held = lab();
        deploy(&held, "user", "", "running");
        let lab = &held.0;
        let mut watch = lab.watch().expect("eyes");
        let mut confined = || {
            let found = watch.processes(&["init", "chunks"]).expect("processes");
            let [pid] = found[..] else {
                panic!("{found:?}")
            };
            let mut status = |field: &str| watch.status(pid, field).expect(field);
            for field in ["Uid", "Gid"] {
                assert_eq!(status(field), "99998 99998 99998 99998", "{field}");
            }
            assert_eq!(status("Groups"), "");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(set), "0000000000000000", "{set}");
            }
            assert_eq!(
                (status("NoNewPrivs"), status("Seccomp")),
                ("1".into(), "2".into())
            );
            assert_eq!(
                watch.of(pid, "cgroup").expect("its group").trim(),
                "0::/chunks"
            );
            pid
        };
        let before = confined();
        let drilled = lab.sifr(&["node", "drill", "chunks"]).expect("sifr runs");
        drilled.must().expect("killed");
        // What it made it finds again: a machine starts from the image that is there.
        lab.tell("restart", "user", "running").expect("it starts");
        assert_ne!(confined(), before);
        lab.delete("user").expect("deleted");
        let log = lab.sifr(&["node", "dmesg"]).expect("sifr runs").must();
        let log = log.expect("dmesg").stdout;
        assert!(!log.contains("Landlock does not hold"), "{log}");
    }
}
