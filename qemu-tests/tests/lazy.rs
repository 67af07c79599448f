//! How images come to a node while machines already run on them.
//!
//! Owns: nodes that begin with an empty cache, and a store that counts. Refuses: pushing anything.
#![cfg(test)]

mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use nix::errno::Errno;
    use nix::unistd::{Whence, lseek};
    use qemu_tests::store::{self, Gate, Served};
    use qemu_tests::{Lab, PATIENCE, WEB_PORT, http, sealed, variant};

    /// Reads part of the image and then serves pages: what its trace names is not all of it.
    const SERVE: &str = "command: [sh, -c, 'dd if=/www/large.bin of=/dev/null bs=512k count=3; exec httpd -f -h /www']\n";
    /// Between two looks where nothing tells: at a trace, at a count.
    const PAUSE: Duration = Duration::from_millis(500);

    /// Stored size of a chunk of the large file, and of no other.
    const NOISE_BYTES: usize = 512 << 10;

    struct World {
        lab: Lab,
        flist: PathBuf,
        url: String,
        served: Arc<Served>,
    }

    fn world(gate: Arc<Gate>) -> World {
        let lab = Lab::new().expect("a node");
        let flist = variant(lab.command(), lab.directory(), "lazy", 5).expect("an image");
        let (url, served) =
            store::serve_counted(flist.parent().expect("a store"), gate).expect("serves");
        World {
            lab,
            flist,
            url,
            served,
        }
    }

    fn deploy(lab: &Lab, name: &str, flist: &Path, url: &str, more: &str) {
        let digest = flist.file_stem().expect("a name").to_string_lossy();
        let more = format!("store: {url}\n{more}");
        send(lab, name, &format!("blake3:{digest}"), &more);
    }

    /// What the command said of it.
    fn send(lab: &Lab, name: &str, image: &str, more: &str) -> String {
        let yaml = format!("name: {name}\nimage: {image}\nmemory: 96Mi\ndisk: 64Mi\n{more}");
        let answer = lab.deploy(&yaml).expect("sifr runs");
        answer.must().expect("deployed").stderr
    }

    /// Reads the large file, once.
    const SUM: &str = "restart: never\ncommand: [sh, -c, 'exec sha256sum /www/large.bin']\n";

    /// The sum that a machine of [`SUM`] has written.
    fn summed(lab: &Lab, name: &str) -> String {
        let ended = lab.wait(name, "exited").expect("sifr runs");
        ended.must().expect("it ends");
        let said = lab.logs(name).expect("its output");
        let sum = said.split(' ').next().expect("a sum").to_owned();
        lab.delete(name).expect("deleted");
        sum
    }

    const BLOCK: usize = 4096;
    /// What is read of a disk at once.
    const PIECE: usize = 1 << 20;

    /// A chunk of the large file, which a page does not touch.
    fn noise(flist: &Path) -> PathBuf {
        let chunks = store::chunks(flist.parent().expect("a store")).expect("listed");
        let is_noise =
            |path: &PathBuf| path.metadata().is_ok_and(|m| m.len() == NOISE_BYTES as u64);
        chunks.into_iter().find(is_noise).expect("a large chunk")
    }

    /// One bit of a chunk becomes another on the node's disk, while the node is off. Gives the chunk's name.
    fn rot(disk: &Path, chunk: &Path) -> String {
        let start = &fs::read(chunk).expect("a chunk")[..BLOCK];
        let disk = File::options().read(true).write(true).open(disk);
        let disk = disk.expect("the node's disk");
        let (mut at, mut piece, mut found) = (0, vec![0; PIECE], 0);
        loop {
            // What was never written takes no time.
            at = match lseek(&disk, at, Whence::SeekData) {
                Ok(next) => next / PIECE as i64 * PIECE as i64,
                Err(Errno::ENXIO) => break,
                Err(error) => panic!("{error}"),
            };
            let from = u64::try_from(at).expect("a place");
            disk.read_exact_at(&mut piece, from).expect("read");
            let blocks = piece.chunks(BLOCK).zip((from..).step_by(BLOCK));
            for (_, place) in blocks.filter(|(block, _)| *block == start) {
                disk.write_all_at(&[!start[100]], place + 100)
                    .expect("written");
                found += 1;
            }
            at += PIECE as i64;
        }
        assert!(found > 0, "{} is not on the disk", chunk.display());
        let names =
            [chunk.parent().expect("a shard"), chunk].map(|p| p.file_name().expect("a name"));
        names
            .map(|name| name.to_string_lossy().into_owned())
            .concat()
    }

    fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < end, "{what} did not come");
            std::thread::sleep(PAUSE);
        }
    }

    /// A counter of the node.
    fn count(lab: &Lab, name: &str) -> u64 {
        let metrics = lab.sifr(&["node", "metrics"]).expect("sifr runs").must();
        let text = metrics
            .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.console()))
            .stdout;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(n, _)| *n == name).expect("a counter");
        value.parse().expect("a number")
    }

    fn all_there(lab: &Lab, name: &str) {
        until("the whole image", || {
            let chunks = lab.get(name).expect("its status")["workloads"]["main"]["chunks"].take();
            (chunks[0].is_u64() && chunks[0] == chunks[1]).then_some(())
        });
    }

    fn sum_of(file: &Path) -> String {
        let sum = Command::new("sha256sum").arg(file).output();
        let sum = String::from_utf8(sum.expect("sha256sum runs").stdout).expect("text");
        sum.split(' ').next().expect("a sum").to_owned()
    }

    #[test]
    fn the_trace_of_a_first_run_spares_the_next_node_its_waits() {
        let first = world(Arc::default());
        let ports = format!("ports: [\"{WEB_PORT}:80\"]\n{SERVE}");
        deploy(&first.lab, "web", &first.flist, &first.url, &ports);
        let page = http::page(first.lab.web, "/").expect("a page");
        assert!(page.contains("It works"), "{page}");
        let waited = count(&first.lab, "sifr_chunks_wanted_total");
        let file = first.flist.to_string_lossy();
        let said = until("a trace", || {
            let args = ["--output", "json", "flist", "trace", &file];
            first.lab.sifr(&args).expect("sifr runs").must().ok()
        });
        let said: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
        let traced = said["chunks"].as_u64().expect("a count");
        assert!(traced >= waited && waited >= 4, "{traced} {waited}");
        // All of it comes to be there, each chunk once, over few connections.
        all_there(&first.lab, "web");
        let (requests, _) = first.served.chunks();
        let chunks = store::chunks(first.flist.parent().expect("a store")).expect("listed");
        assert_eq!(requests, chunks.len());
        let connections = first.served.connections();
        assert!(connections <= 10, "{connections} for {requests} chunks");
        let second = Lab::new().expect("a node");
        deploy(&second, "web", &first.flist, &first.url, &ports);
        let page = http::page(second.web, "/").expect("a page");
        assert!(page.contains("It works"), "{page}");
        let (again, guessed) = (
            count(&second, "sifr_chunks_wanted_total"),
            count(&second, "sifr_chunks_guessed_total"),
        );
        assert!(
            again < waited && guessed > 0,
            "{again} of {waited}, {guessed}"
        );
        println!("waits without a trace {waited}, with it {again}; {traced} chunks in it");
    }

    #[test]
    fn a_power_cut_in_a_fill_and_a_store_that_is_gone_leave_the_right_bytes() {
        let gate = Gate::shut(NOISE_BYTES, 2);
        let mut w = world(Arc::clone(&gate));
        deploy(&w.lab, "sum", &w.flist, &w.url, SUM);
        gate.wait_for_one().expect("half a chunk has come");
        w.lab.power_cut().expect("off");
        gate.open();
        w.lab.power_on().expect("on");
        let expected = sum_of(&w.lab.directory().join("lazy-tree/www/large.bin"));
        assert_eq!(summed(&w.lab, "sum"), expected);
        deploy(
            &w.lab,
            "page",
            &w.flist,
            &w.url,
            &format!("ports: [\"{WEB_PORT}:80\"]\n"),
        );
        all_there(&w.lab, "page");
        w.served.set_down(true);
        w.lab.power_cut().expect("off");
        w.lab.power_on().expect("on");
        let page = http::page(w.lab.web, "/").expect("a page");
        assert!(page.contains("It works"), "{page}");
        w.lab.delete("page").expect("deleted");
    }

    #[test]
    fn a_daemon_killed_again_and_again_under_a_guest_that_reads_gives_it_no_wrong_byte() {
        let w = world(Arc::default());
        // What the guest reads is never in its own cache when it reads it again.
        let read = "restart: never\ncommand: [sh, -c, 'echo reading; for i in 1 2 3; do sha256sum /www/large.bin; \
                    echo 3 >/proc/sys/vm/drop_caches; done']\n";
        deploy(&w.lab, "sums", &w.flist, &w.url, read);
        let log = w.lab.follow("sums").expect("its log");
        log.wait_for("reading").expect("it reads");
        for _ in 0..5 {
            // Refused while the next daemon is being started.
            until("a daemon to kill", || {
                let drilled = w.lab.sifr(&["node", "drill", "chunks"]).expect("sifr runs");
                drilled.must().ok()
            });
        }
        let said = log.to_end().expect("it ends");
        let expected = sum_of(&w.lab.directory().join("lazy-tree/www/large.bin"));
        let sums: Vec<_> = said.lines().filter(|l| l.contains("large.bin")).collect();
        assert_eq!(sums.len(), 3, "{said}");
        assert!(sums.iter().all(|l| l.starts_with(&expected)), "{said}");
        w.lab.delete("sums").expect("deleted");
    }

    #[test]
    fn a_store_that_goes_away_in_the_middle_and_comes_back_costs_a_machine_only_time() {
        let gate = Gate::shut(NOISE_BYTES, 2);
        let w = world(Arc::clone(&gate));
        let read =
            "restart: never\ncommand: [sh, -c, 'echo reading; exec sha256sum /www/large.bin']\n";
        deploy(&w.lab, "sum", &w.flist, &w.url, read);
        let log = w.lab.follow("sum").expect("its log");
        log.wait_for("reading").expect("it runs");
        gate.wait_for_one().expect("half a chunk has come");
        // It hangs up on that one, and on whoever asks again.
        w.served.set_down(true);
        gate.open();
        let (before, _) = w.served.chunks();
        until("another try", || (w.served.refused() > 2).then_some(()));
        assert_eq!(w.served.chunks().0, before);
        w.served.set_down(false);
        let said = log.to_end().expect("it ends");
        let expected = sum_of(&w.lab.directory().join("lazy-tree/www/large.bin"));
        assert!(said.contains(&expected), "{said}");
        w.lab.delete("sum").expect("deleted");
    }

    #[test]
    fn a_chunk_that_rots_on_the_nodes_disk_is_found_and_said_and_comes_again() {
        let mut w = world(Arc::default());
        let ports = format!("ports: [\"{WEB_PORT}:80\"]\n");
        deploy(&w.lab, "fetched", &w.flist, &w.url, &ports);
        let pushed = variant(w.lab.command(), w.lab.directory(), "pushed", 6).expect("an image");
        let of_file = pushed.display().to_string();
        send(&w.lab, "pushed", &of_file, "");
        all_there(&w.lab, "fetched");
        all_there(&w.lab, "pushed");
        w.lab.power_button().expect("off");
        let disk = w.lab.disks()[0].file.clone();
        let rotten = [&w.flist, &pushed].map(|flist| rot(&disk, &noise(flist)));
        let (before, _) = w.served.chunks();
        w.lab.power_on().expect("on");
        for name in rotten {
            let says = format!("{name} of the cache was damaged and is removed");
            let said = w.lab.node().wait_for_line(&says, PATIENCE);
            said.expect("the scrub finds it");
        }
        until("the count", || {
            (count(&w.lab, "sifr_chunks_damaged_total") == 2).then_some(())
        });
        // Where a store is named it is fetched; else the owner hears what to do, does it, and it is there.
        until("one chunk", || {
            (w.served.chunks().0 == before + 1).then_some(())
        });
        all_there(&w.lab, "fetched");
        until("what to do", || {
            let status = w.lab.get("pushed").expect("its status").to_string();
            status
                .contains("push it again with `sifr deploy`")
                .then_some(())
        });
        let said = send(&w.lab, "pushed", &of_file, "");
        assert!(said.contains("pushed 0.5 MiB of"), "{said}");
        all_there(&w.lab, "pushed");
        w.lab.delete("pushed").expect("deleted");
        for (image, more, tree) in [
            (&w.flist, format!("store: {}\n{SUM}", w.url), "lazy-tree"),
            (&pushed, SUM.to_owned(), "pushed-tree"),
        ] {
            send(&w.lab, "sum", &image.display().to_string(), &more);
            let expected = sum_of(&w.lab.directory().join(tree).join("www/large.bin"));
            assert_eq!(summed(&w.lab, "sum"), expected);
        }
        assert_eq!(w.served.chunks().0, before + 1, "once, and no other");
        w.lab.delete("fetched").expect("deleted");
    }

    #[test]
    fn an_encrypted_image_is_fetched_chunk_by_chunk_from_a_store_that_has_not_its_flist() {
        let mut lab = Lab::new().expect("a node");
        // Chunks are for everybody, the flist stays.
        let (flist, public) =
            sealed(lab.command(), lab.directory(), "sealed", 7).expect("an image");
        let flist = flist.display().to_string();
        let large = lab.directory().join("sealed-tree/www/large.bin");
        let plain = fs::read(&large).expect("the large file");
        for chunk in store::chunks(&public).expect("listed") {
            let stored = fs::read(chunk).expect("a chunk");
            assert!(
                !stored.windows(64).any(|w| w == &plain[..64]),
                "in the clear"
            );
        }
        let (url, served) = store::serve_counted(&public, Arc::default()).expect("serves");
        let more = format!("store: {url}\n{SUM}");
        let said = send(&lab, "secret", &flist, &more);
        assert!(said.contains("pushed the flist"), "{said}");
        assert_eq!(summed(&lab, "secret"), sum_of(&large));
        let (fetched, _) = served.chunks();
        assert!(fetched >= plain.len() / NOISE_BYTES, "{fetched} chunks");
        // Nothing else was there to be had.
        let others = served.objects();
        let mut others = others
            .iter()
            .filter(|(path, _)| !path.starts_with("chunks/"));
        assert!(others.all(|(_, bytes)| *bytes == 0));
        // Once it is here, no store is needed, and what the node keeps of it opens after a power cut.
        send(
            &lab,
            "secret",
            &flist,
            &format!("store: {url}\nports: [\"{WEB_PORT}:80\"]\ncommand: [httpd, -f, -h, /www]\n"),
        );
        all_there(&lab, "secret");
        served.set_down(true);
        lab.power_cut().expect("off");
        lab.power_on().expect("on");
        let page = http::page(lab.web, "/").expect("a page");
        assert!(page.contains("It works"), "{page}");
        send(&lab, "again", &flist, &more);
        assert_eq!(summed(&lab, "again"), sum_of(&large));
        lab.delete("secret").expect("deleted");
    }
}
