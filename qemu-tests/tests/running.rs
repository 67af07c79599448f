//! What tenants do with a node that runs.
//!
//! Owns: one node for all tests of this file. Refuses: switching it off.
#![cfg(test)]

mod tests {
    use std::io::{Read, Write};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::OnceLock;
    use std::time::Instant;

    use qemu_tests::poison::{Area, poisoned};
    use qemu_tests::{Answer, Lab, PATIENCE, WEB_PORT, busybox, disk, http, store, tree, variant};

    /// Booted once; QEMU ends with this process.
    fn lab() -> &'static (Lab, PathBuf) {
        static LAB: OnceLock<(Lab, PathBuf)> = OnceLock::new();
        LAB.get_or_init(|| {
            let lab = Lab::new().expect("a node");
            let flist = busybox(lab.command(), lab.directory()).expect("an image");
            (lab, flist)
        })
    }

    /// Deploys the busybox image as `name` with more lines of YAML.
    fn deploy(name: &str, more: &str) -> Answer {
        let (lab, flist) = lab();
        let yaml = format!(
            "name: {name}\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\n{more}",
            flist.display()
        );
        lab.deploy(&yaml).expect("sifr runs")
    }

    /// Runs a shell script in a machine of its own and gives what it wrote.
    fn output_of(name: &str, script: &str) -> String {
        let script = script.replace('\n', "; ");
        deploy(
            name,
            &format!("restart: never\ncommand: [sh, -c, {script:?}]\n"),
        )
        .must()
        .expect("deployed");
        lab()
            .0
            .wait(name, "exited")
            .expect("sifr runs")
            .must()
            .expect("it ends");
        let text = lab().0.logs(name).expect("its output");
        lab().0.delete(name).expect("deleted");
        text
    }

    #[test]
    fn a_page_is_served_through_a_published_port() {
        let answer = deploy("web", &format!("ports: [\"{WEB_PORT}:80\"]\n"))
            .must()
            .expect("deployed");
        assert!(
            format!("{}{}", answer.stdout, answer.stderr).contains("durable"),
            "{answer:?}"
        );
        let (lab, _) = lab();
        lab.wait("web", "running")
            .expect("sifr runs")
            .must()
            .expect("it runs");
        assert!(
            http::page(lab.web, "/")
                .expect("a page")
                .contains("It works, in a micro VM.")
        );
        let taken = deploy("thief", &format!("ports: [\"{WEB_PORT}:80\"]\n"));
        assert!(
            taken.code == 3 && taken.stderr.contains(&WEB_PORT.to_string()),
            "{taken:?}"
        );
        lab.delete("web").expect("deleted");
    }

    #[test]
    fn a_program_that_fails_shows_its_status_and_both_its_streams() {
        deploy(
            "fails",
            "restart: never\ncommand: [sh, -c, 'echo to-out; echo to-err >&2; exit 7']\n",
        )
        .must()
        .expect("deployed");
        lab().0.wait("fails", "exited").expect("sifr runs");
        let text = lab().0.logs("fails").expect("its output");
        assert!(text.contains("to-out"), "{text}");
        let (lab, _) = lab();
        let all = lab
            .sifr(&["--output", "json", "logs", "fails"])
            .expect("sifr runs")
            .must()
            .expect("logs")
            .stdout;
        assert!(
            all.contains("\"stdout\"") && all.contains("\"stderr\""),
            "{all}"
        );
        let status = lab.get("fails").expect("its status").to_string();
        assert!(
            status.contains("\"code\":7") && status.contains("\"exited\""),
            "{status}"
        );
        lab.delete("fails").expect("deleted");
    }

    #[test]
    fn a_guest_whose_kernel_panics_says_why_in_its_log_and_its_status() {
        // More than there is must first be promised for its use to be fatal.
        let eat = "cd /proc/sys/vm; echo 1 >overcommit_memory; echo 2 >panic_on_oom; \
                   exec dd if=/dev/zero of=/dev/null bs=300M";
        let yaml = format!("restart: never\ncommand: [sh, -c, {eat:?}]\n");
        deploy("panics", &yaml).must().expect("deployed");
        let (lab, _) = lab();
        // It is shown while the node waits to try again, which it does again and again.
        let end = Instant::now() + PATIENCE;
        let says = |status: &str| status.contains("the guest's kernel panicked: Out of memory");
        while !says(&lab.get("panics").expect("its status").to_string()) {
            assert!(Instant::now() < end, "{:?}", lab.get("panics"));
        }
        let log = lab.sifr(&["logs", "panics"]).expect("sifr runs");
        let last = "guest kernel: Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled\n";
        assert!(log.stderr.contains(last), "{log:?}");
        lab.delete("panics").expect("deleted");
    }

    #[test]
    fn a_guest_reaches_neither_the_owners_network_nor_the_node() {
        // The port of this machine that leads to the node's API: open to all who reach 10.0.2.2.
        let open = lab().0.api;
        let script = format!(
            "gw=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')\n\
             try() {{ nc -w 3 $1 $2 </dev/null && echo OPEN $1 || echo shut $1; }}\n\
             ping -c 1 -W 3 $gw >/dev/null && echo the network works\n\
             try 10.0.2.2 {open}\ntry 10.0.2.15 7443\ntry $gw 7443\n\
             try 10.0.2.3 53\ntry 169.254.169.254 80\n\
             ping -c 1 -W 2 10.0.2.2 >/dev/null && echo OPEN ping || echo shut ping"
        );
        let text = output_of("prison", &script);
        assert!(
            text.contains("the network works")
                && !text.contains("OPEN")
                && text.matches("shut").count() == 6,
            "{text}"
        );
    }

    #[test]
    fn a_guest_that_takes_anothers_address_is_heard_by_nobody() {
        let text = output_of(
            "spoof",
            "gw=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')\n\
             ping -c 1 -W 3 $gw >/dev/null && echo honest-heard\n\
             old=$(ip -4 -o addr show eth0 | sed -n 's/.*inet \\([^ ]*\\) .*/\\1/p')\n\
             base=${old%.*}\n\
             own=${old#$base.}\n\
             echo $old\n\
             another=$base.$((2 + ${own%/*} % 253))\n\
             ip addr del $old dev eth0\n\
             ip addr add $another/24 dev eth0\n\
             ping -c 2 -W 2 $gw >/dev/null && echo OPEN spoofed-ip\n\
             ip addr del $another/24 dev eth0\n\
             ip link set eth0 down\n\
             ip link set eth0 address 02:11:22:33:44:55\n\
             ip link set eth0 up\n\
             ip addr add $old dev eth0\n\
             ping -c 2 -W 2 $gw >/dev/null && echo OPEN spoofed-mac\n\
             echo tried",
        );
        assert!(
            text.contains("honest-heard") && text.contains("tried") && !text.contains("OPEN"),
            "{text}"
        );
    }

    #[test]
    fn the_image_configuration_and_the_deployment_decide_user_directory_and_environment() {
        deploy(
            "who",
            "restart: never\nuser: web\nworkdir: /www/made\nenv: {COLOUR: two words}\n\
             command: [sh, -c, 'id; pwd; echo $COLOUR; cat /etc/hosts /etc/resolv.conf']\n",
        )
        .must()
        .expect("deployed");
        lab()
            .0
            .wait("who", "exited")
            .expect("sifr runs")
            .must()
            .expect("it ends");
        let text = lab().0.logs("who").expect("its output");
        for says in [
            "uid=33(web) gid=33(web) groups=44(log)",
            "/www/made",
            "two words",
            "localhost",
            "nameserver",
        ] {
            assert!(text.contains(says), "{says:?} is missing in {text}");
        }
        lab().0.delete("who").expect("deleted");
    }

    #[test]
    fn the_writable_layer_survives_stop_start_and_restart_and_goes_with_delete() {
        let (lab, _) = lab();
        let count =
            "n=$(cat /runs 2>/dev/null); n=$((n+1)); echo $n >/runs; echo run $n; exec sleep 9999";
        let again = || deploy("layer", &format!("command: [sh, -c, {count:?}]\n"));
        again().must().expect("deployed");
        let log = lab.follow("layer").expect("its log");
        log.wait_for("run 1").expect("a first run");
        lab.tell("stop", "layer", "stopped").expect("it stops");
        let rest = log.to_end().expect("the log of a stopped machine ends");
        assert_eq!(rest, "");
        lab.tell("start", "layer", "running").expect("it starts");
        let log = lab.follow("layer").expect("its log");
        log.wait_for("run 2").expect("its file is there");
        lab.tell("restart", "layer", "running").expect("it starts");
        log.wait_for("run 3").expect("over a restart");
        lab.delete("layer").expect("deleted");
        again().must().expect("deployed");
        let log = lab.follow("layer").expect("its log");
        log.wait_for("run 1").expect("a new layer");
        lab.delete("layer").expect("deleted");
        let rest = log.to_end().expect("the log of a deleted machine ends");
        assert_eq!(rest, "");
    }

    /// A counter of the node.
    fn count(name: &str) -> u64 {
        let metrics = lab().0.sifr(&["node", "metrics"]).expect("sifr runs");
        let text = metrics.must().expect("metrics").stdout;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(n, _)| *n == name).expect("a counter");
        value.parse().expect("a number")
    }

    #[test]
    fn a_disk_image_runs_below_a_layer_of_its_own_and_is_read_where_it_is_touched() {
        let (lab, _) = lab();
        let image = disk::qcow2(lab.directory(), "cloud", 9).expect("a disk image");
        let (image, store) = (image.to_string_lossy(), lab.directory().join("disks"));
        let said = lab
            .sifr(&["deploy", "--name", "disk", "--image", &image])
            .expect("sifr runs");
        assert!(
            said.stderr.contains("own kernel and init are not started"),
            "{said:?}"
        );
        let to = store.to_string_lossy();
        let pack = [
            "--output",
            "json",
            "flist",
            "pack",
            &image,
            "-o",
            &to,
            "--env",
            "PATH=/bin",
        ];
        let packed = lab.sifr(&pack).expect("sifr runs").must().expect("packed");
        let packed: serde_json::Value = serde_json::from_str(&packed.stdout).expect("JSON");
        let (digest, chunks) = (
            &packed["digest"],
            packed["chunks"].as_u64().expect("a count"),
        );
        let (url, _served) = store::serve_counted(&store, Default::default()).expect("serves");
        let script = "cat /www/index.html; ls /; echo run $(cat /count)x; \
                      echo x$(cat /count) >/count; echo mine >>/www/index.html; sync; echo kept; sleep 1000";
        let deploy = |name: &str| {
            let yaml = format!(
                "name: {name}\nimage: {digest}\nstore: {url}\nmemory: 96Mi\ndisk: 64Mi\ncommand: [sh, -c, {script:?}]\n"
            );
            lab.deploy(&yaml)
                .expect("sifr runs")
                .must()
                .expect("deployed");
        };
        let before = count("sifr_chunks_wanted_total");
        deploy("disk");
        let log = lab.follow("disk").expect("its log");
        log.wait_for("kept").expect("it runs and has written");
        let wanted = count("sifr_chunks_wanted_total") - before;
        println!("{wanted} of {chunks} chunks were waited for");
        assert!((1..chunks / 2).contains(&wanted), "{wanted} of {chunks}");
        let first = lab.logs("disk").expect("its log");
        assert!(
            first.contains("It works") && !first.contains("mine"),
            "{first}"
        );
        lab.tell("restart", "disk", "running")
            .expect("it starts again");
        let log = lab.follow("disk").expect("its log");
        log.wait_for("mine").expect("what it wrote is there");
        log.wait_for("run xx").expect("all of it");
        // Another machine of the same image sees none of that.
        deploy("other");
        let log = lab.follow("other").expect("its log");
        log.wait_for("run x").expect("it runs");
        let other = lab.logs("other").expect("its log");
        assert!(
            other.contains("It works") && !other.contains("mine"),
            "{other}"
        );
        lab.delete("disk").expect("deleted");
        lab.delete("other").expect("deleted");
    }

    fn sum_of(file: &Path) -> String {
        let sum = Command::new("sha256sum").arg(file).output();
        let sum = String::from_utf8(sum.expect("sha256sum runs").stdout).expect("text");
        sum.split(' ').next().expect("a sum").to_owned()
    }

    /// Deploys an image that is not packed yet, with more options, to read its large file. Gives what the client said.
    fn read_large_file(name: &str, image: &Path, options: &[&str]) -> serde_json::Value {
        let image = image.to_string_lossy();
        let deploy = [
            "--output", "json", "deploy", "--name", name, "--image", &image,
        ];
        let sizes = ["--memory", "96Mi", "--disk", "64Mi", "--restart", "never"];
        let program = ["-e", "PATH=/bin", "--", "sha256sum", "/www/large.bin"];
        let args = [&deploy[..], &sizes, options, &program].concat();
        let said = lab().0.sifr(&args).expect("sifr runs").must();
        let said = serde_json::from_str(&said.expect("deployed").stdout);
        let ended = lab().0.wait(name, "exited").expect("sifr runs");
        ended.must().expect("it ends");
        said.expect("JSON")
    }

    #[test]
    fn an_image_that_is_encrypted_on_its_way_runs_and_is_sent_once() {
        let (lab, _) = lab();
        let root = lab.directory().join("secret");
        tree(&root, 21).expect("a tree");
        let expected = sum_of(&root.join("www/large.bin"));
        let first = read_large_file("secret", &root, &["--encrypt"]);
        assert!(first["pushed_bytes"].as_u64() > Some(4 << 20), "{first}");
        let again = read_large_file("secret", &root, &["--encrypt"]);
        assert_eq!(again["pushed_bytes"], 0);
        let said = lab.logs("secret").expect("its output");
        assert!(said.contains(&expected), "{said}");
        lab.delete("secret").expect("deleted");
    }

    #[test]
    fn raw_disks_run_whether_they_are_one_file_system_or_have_a_table_of_either_kind() {
        let (lab, _) = lab();
        for (name, table) in [("whole", disk::Table::None), ("gpt", disk::Table::Gpt)] {
            let image = disk::raw(lab.directory(), name, 22, table).expect("a disk image");
            let expected = sum_of(&lab.directory().join(format!("{name}-root/www/large.bin")));
            read_large_file(name, &image, &[]);
            let said = lab.logs(name).expect("its output");
            assert!(said.contains(&expected), "{said}");
            lab.delete(name).expect("deleted");
            std::fs::remove_file(image).expect("removes");
        }
    }

    /// A tree with names that are made to lie.
    fn victim() -> PathBuf {
        let (lab, _) = lab();
        let root = lab.directory().join("victim");
        tree(&root, 23).expect("a tree");
        for directory in ["loop", "self/again", "names"] {
            std::fs::create_dir_all(root.join(directory)).expect("made");
        }
        for file in ["names/one", "names/two", "huge", "cut"] {
            std::fs::write(root.join(file), "content").expect("written");
        }
        std::os::unix::fs::symlink("www", root.join("link")).expect("a link");
        let store = lab.directory().join("victims");
        let (root, store) = (root.to_string_lossy(), store.to_string_lossy());
        let pack = ["--output", "json", "flist", "pack", &root, "-o"];
        let args = [&pack[..], &[&store, "--env", "PATH=/bin"]].concat();
        let said = lab.sifr(&args).expect("sifr runs").must().expect("packed");
        let said: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
        said["file"].as_str().expect("a file").into()
    }

    /// Directories in themselves, content and names where none can be.
    fn absurd(area: &mut Area) -> anyhow::Result<()> {
        let slot = |inode: usize| (inode / 32).to_le_bytes();
        let root = slot(area.root());
        area.put(area.entry("loop")?, &root);
        let inside = slot(area.inode("self")?);
        area.put(area.entry("self/again")?, &inside);
        // A name far behind its block, and one that ends before it begins.
        let (one, two) = (area.entry("names/one")?, area.entry("names/two")?);
        area.put(one + 8, &[0xff, 0x7f]);
        area.put(two + 8, &[1, 0]);
        let (huge, cut) = (area.inode("huge")?, area.inode("cut")?);
        area.put(huge + 8, &(1u64 << 60).to_le_bytes());
        area.put(cut + 16, &0xffff_fff0u32.to_le_bytes());
        area.put(area.inode("link")? + 8, &(1u64 << 40).to_le_bytes());
        Ok(())
    }

    #[test]
    fn hostile_metadata_harms_its_own_machine_alone_and_its_status_says_why() {
        let (lab, _) = lab();
        deploy("beside", &format!("ports: [\"{WEB_PORT}:80\"]\n"))
            .must()
            .expect("deployed");
        let victim = victim();
        let no_root = poisoned(&victim, |area| {
            area.put(area.root() + 4, &0o100_644u16.to_le_bytes());
            Ok(())
        });
        let no_block = poisoned(&victim, |area| {
            area.put(1024 + 12, &[63]);
            Ok(())
        });
        let look = "for p in /loop /self/again /names; do timeout 20 ls -R $p >/dev/null 2>&1 && echo $p || echo refused $p; done; \
                    for p in /huge /cut /link; do timeout 20 cat $p >/dev/null 2>&1 && echo $p || echo refused $p; done; \
                    cat /www/index.html; echo still here";
        let look = format!("restart: never\ncommand: [busybox, sh, -c, {look:?}]\n");
        let from = |name: &str, file: &Path, more: &str| {
            let image = file.display();
            let yaml = format!("name: {name}\nimage: {image}\nmemory: 96Mi\ndisk: 64Mi\n{more}");
            let deployed = lab.deploy(&yaml).expect("sifr runs");
            deployed.must().expect("nobody but the guest reads it");
        };
        let end = Instant::now() + PATIENCE;
        for (name, file) in [("no-root", no_root), ("no-block", no_block)] {
            from(name, &file.expect("a file"), "command: [sh]\n");
            let status = || lab.get(name).expect("its status").to_string();
            while !status().contains("erofs") {
                assert!(Instant::now() < end, "{}", status());
            }
            println!("{}", status());
            lab.delete(name).expect("deleted");
        }
        from("absurd", &poisoned(&victim, absurd).expect("a file"), &look);
        let said = lab.follow("absurd").expect("its log").to_end();
        let said = said.expect("it ends");
        println!("{said}");
        assert!(
            said.contains("It works") && said.contains("still here"),
            "{said}"
        );
        for lie in ["/loop", "/self/again", "/cut", "/link"] {
            assert!(said.contains(&format!("refused {lie}")), "{lie}: {said}");
        }
        let page = http::page(lab.web, "/").expect("the neighbour serves");
        assert!(page.contains("It works"), "{page}");
        for name in ["absurd", "beside"] {
            lab.delete(name).expect("deleted");
        }
    }

    #[test]
    fn who_follows_a_log_is_there_to_the_last_word_and_no_longer() {
        let (lab, _) = lab();
        let speak = "for i in 1 2 3; do echo word $i; sleep 1; done; exit 4";
        let yaml = format!("restart: never\ncommand: [sh, -c, {speak:?}]\n");
        deploy("speaks", &yaml).must().expect("deployed");
        for when in ["from before its start", "after its end"] {
            let log = lab.follow("speaks").expect("its log");
            let text = log.to_end().expect("it ends with the machine");
            assert_eq!(text, "word 1\nword 2\nword 3\n", "{when}");
        }
        lab.delete("speaks").expect("deleted");
    }

    #[test]
    fn what_a_machine_sends_and_hears_is_captured_for_who_deployed_it() {
        let (lab, _) = lab();
        let ports = format!("ports: [\"{WEB_PORT}:80\"]\n");
        deploy("seen", &ports).must().expect("deployed");
        let runs = lab.wait("seen", "running").expect("sifr runs");
        runs.must().expect("it runs");
        let mut sifr = Command::new(lab.command());
        let sifr = sifr.args(["network", "capture", "seen"]);
        let sifr = sifr.env("SIFR_HOME", lab.directory().join("home"));
        let mut sifr = sifr.stdout(Stdio::piped()).spawn().expect("sifr");
        let mut frames = vec![0; 4];
        let mut from = sifr.stdout.take().expect("a pipe");
        // The head of the file: from here on nothing is missed.
        from.read_exact(&mut frames).expect("a capture");
        http::page(lab.web, "/").expect("a page");
        let word = b"It works, in a micro VM.";
        while !frames.windows(word.len()).any(|part| part == word) {
            let mut more = [0; 4096];
            let length = from.read(&mut more).expect("frames");
            assert!(length > 0, "it ended before the page");
            frames.extend(&more[..length]);
        }
        sifr.kill().and_then(|()| sifr.wait()).expect("it ends");
        let text = tcpdump(&frames);
        assert!(text.contains(".80: Flags [S]"), "{text}");
        assert!(text.contains("HTTP: GET / HTTP/1."), "{text}");
        let stranger = lab.sifr(&["network", "capture", "nobody"]);
        assert_eq!(stranger.expect("sifr runs").code, 3);
        lab.delete("seen").expect("deleted");
    }

    /// Debian's own reads them: a line for each frame.
    fn tcpdump(frames: &[u8]) -> String {
        let mut tcpdump = Command::new("tcpdump");
        let tcpdump = tcpdump.args(["-nr", "-"]).stdin(Stdio::piped());
        let mut tcpdump = tcpdump.stdout(Stdio::piped()).spawn().expect("tcpdump");
        let mut to = tcpdump.stdin.take().expect("a pipe");
        to.write_all(frames).expect("tcpdump reads");
        drop(to);
        let output = tcpdump.wait_with_output().expect("an end");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn machines_of_a_network_reach_each_other_by_name() {
        let (lab, flist) = lab();
        // busybox's static wget cannot resolve names: the address is asked for first, that of IPv4.
        let ask = "of() { nslookup $1 | sed -n '/^Name/,$s/^Address: //p' | grep -F .; }; \
                   for name in web web.pair web.pair.internal solo main.solo; do \
                   until a=$(of $name); wget -q -O /tmp/page http://$a/; do sleep 1; done; \
                   echo $name is $a; cat /tmp/page; done; nslookup nobody || echo nobody is nobody";
        let machine = format!("image: {}, memory: 96Mi, disk: 64Mi", flist.display());
        let yaml = format!(
            "name: pair\nworkloads:\n  web: {{{machine}}}\n  ask: {{{machine}, restart: never, command: [sh, -c, {ask:?}]}}\n"
        );
        deploy("solo", "").must().expect("deployed");
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        let text = lab.follow("pair/ask").expect("its log").to_end();
        let text = text.expect("it ends");
        let address = |name: &str, workload: &str| {
            let status = lab.get(name).expect("its status");
            status["workloads"][workload]["address"].clone()
        };
        let (web, solo) = (address("pair", "web"), address("solo", "main"));
        for (name, address) in [
            ("web", &web),
            ("web.pair", &web),
            ("web.pair.internal", &web),
            ("solo", &solo),
            ("main.solo", &solo),
        ] {
            let says = format!("{name} is {}", address.as_str().expect("an address"));
            assert!(text.lines().any(|line| line == says), "{says}: {text}");
        }
        assert_eq!(
            text.matches("It works, in a micro VM.").count(),
            5,
            "{text}"
        );
        assert!(text.contains("nobody is nobody"), "{text}");
        lab.delete("pair").expect("deleted");
        lab.delete("solo").expect("deleted");
    }

    /// Deploys an image that the node gets from a web server alone, and reads its large file.
    fn read_from_afar(name: &str, seed: u32, damage: impl FnOnce(&Path)) -> String {
        let (lab, _) = lab();
        let flist = variant(lab.command(), lab.directory(), name, seed).expect("an image");
        let at = flist.parent().expect("a store");
        damage(at);
        let url = store::serve(at).expect("a web server");
        let digest = flist
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let script = "dd if=/www/large.bin of=/dev/null bs=64k && echo whole || echo refused";
        let yaml = format!(
            "name: {name}\nimage: blake3:{digest}\nstore: {url}\nmemory: 96Mi\ndisk: 64Mi\nrestart: never\n\
             command: [sh, -c, {script:?}]\n"
        );
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        lab.wait(name, "exited").expect("sifr runs");
        let text = format!(
            "{}\n{}",
            lab.logs(name).expect("its output"),
            lab.get(name).expect("its status")
        );
        lab.delete(name).expect("deleted");
        text
    }

    #[test]
    fn chunks_come_from_a_plain_web_server_on_first_touch() {
        let text = read_from_afar("far", 1, |_| ());
        assert!(text.contains("whole"), "{text}");
    }

    #[test]
    fn a_damaged_chunk_gives_an_error_and_never_a_wrong_byte() {
        let text = read_from_afar("damaged", 2, |at| {
            let chunks = store::chunks(at).expect("chunks");
            let size = |path: &PathBuf| path.metadata().map_or(0, |m| m.len());
            let largest = chunks
                .iter()
                .max_by_key(|path| size(path))
                .expect("a chunk");
            let mut bytes = std::fs::read(largest).expect("its bytes");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(largest, bytes).expect("damaged");
        });
        assert!(
            text.contains("refused") && !text.contains("whole"),
            "{text}"
        );
        assert!(text.contains("chunk"), "the owner hears which: {text}");
    }

    #[test]
    fn what_a_guest_does_to_its_processor_is_not_in_the_log_of_the_node() {
        output_of("quiet", "true");
        let log = lab().0.sifr(&["node", "dmesg"]).expect("sifr runs");
        let log = log.must().expect("dmesg").stdout;
        // The guest kernel looks for performance counters, which KVM calls unhandled.
        let lines: Vec<_> = log.lines().filter(|l| l.contains("guest rIP")).collect();
        assert_eq!(lines, [""; 0]);
    }

    #[test]
    fn the_node_reports_itself() {
        let info = lab()
            .0
            .sifr(&["--output", "json", "node", "info"])
            .expect("sifr runs")
            .must()
            .expect("info")
            .stdout;
        for says in [
            "ed25519:",
            "\"durable\":true",
            "kernel config",
            "\"pool\"",
            "\"workloads\"",
        ] {
            assert!(
                info.replace("\": ", "\":").contains(says),
                "{says} is missing in {info}"
            );
        }
        let log = lab()
            .0
            .sifr(&["node", "dmesg"])
            .expect("sifr runs")
            .must()
            .expect("dmesg")
            .stdout;
        assert!(
            log.contains("Linux version") && log.contains("sifr: ["),
            "{log}"
        );
    }
}
