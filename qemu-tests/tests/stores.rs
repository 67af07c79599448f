//! Stores of every kind, with real servers: what `sifr flist` does with them, and what a node reads from them.
//!
//! Owns: one node for all tests of this file. Refuses: servers elsewhere.
#![cfg(test)]

mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};
    use std::sync::OnceLock;
    use std::time::Duration;

    use qemu_tests::registry::{LOGIN_KEPT, Registry};
    use qemu_tests::s3::{KEYS, S3};
    use qemu_tests::tls::TlsServer;
    use qemu_tests::{Lab, sealed, store, variant};
    use tempfile::TempDir;

    /// Touches every chunk of the large file.
    const READ: &str = "restart: never\ncommand: [sh, -c, 'dd if=/www/large.bin of=/dev/null bs=64k && echo whole']\n";

    /// Booted once; QEMU ends with this process.
    fn lab() -> &'static Lab {
        static LAB: OnceLock<Lab> = OnceLock::new();
        LAB.get_or_init(|| Lab::new().expect("a node"))
    }

    fn sifr(home: &Path, args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut sifr = Command::new(qemu_tests::command().expect("sifr is built"));
        sifr.args(args).env_clear().env("HOME", home);
        sifr.envs(environment.iter().copied())
            .output()
            .expect("sifr runs")
    }

    fn must(output: &Output) -> String {
        let text = [output.stdout.clone(), output.stderr.clone()].concat();
        let text = String::from_utf8(text).expect("text");
        assert!(output.status.success(), "{text}");
        text
    }

    /// An image of its own, in a store of its own.
    fn packed(work: &TempDir, seed: u32) -> (PathBuf, String) {
        let sifr = qemu_tests::command().expect("sifr is built");
        let file = variant(&sifr, work.path(), "local", seed).expect("an image");
        let name = file
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        (file, format!("blake3:{name}"))
    }

    /// A trace of an image, beside it: of its first two chunks. Gives its bytes.
    fn traced(file: &Path) -> Vec<u8> {
        let name = file.file_stem().expect("a name").to_string_lossy();
        let hex = types::Digest::from_hex(&name).expect("a digest");
        let mut recorder = flist::trace::Recorder::default();
        (0..2).for_each(|chunk| recorder.touch(chunk, std::time::Duration::ZERO));
        let trace = recorder.finish(hex).encode();
        fs::write(file.with_extension("trace"), &trace).expect("writes");
        trace
    }

    /// Deploys an image that is nowhere but in that store, and hears it read its content.
    fn runs_from(name: &str, image: &str, store: &str) {
        let lab = lab();
        let yaml = format!(
            "name: {name}\nimage: {image}\nstore: {store}\nmemory: 96Mi\ndisk: 64Mi\n{READ}"
        );
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        lab.wait(name, "exited")
            .expect("sifr runs")
            .must()
            .expect("it ends");
        let said = lab.logs(name).expect("its output");
        assert!(said.contains("whole"), "{said}");
        lab.delete(name).expect("deleted");
    }

    #[test]
    fn a_bucket_of_s3_takes_gives_and_is_swept_and_a_node_reads_it() {
        let (work, s3) = (
            TempDir::new().expect("temp"),
            S3::start().expect("a server"),
        );
        let (file, digest) = packed(&work, 101);
        let trace = traced(&file);
        let name = file.with_extension("trace");
        let name = name.file_name().expect("a name").to_owned();
        let (file, home) = (file.display().to_string(), work.path());
        let (private, public) = (s3.url("a", s3.private), s3.url("a", s3.public));
        let refused = sifr(home, &["flist", "push", &file, &private], &[]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            !refused.status.success() && said.contains("AWS_ACCESS_KEY_ID"),
            "{said}"
        );
        let wrong = [KEYS[0], ("AWS_SECRET_ACCESS_KEY", "another")];
        assert!(
            !sifr(home, &["flist", "push", &file, &private], &wrong)
                .status
                .success()
        );

        let said = must(&sifr(home, &["flist", "push", &file, &private], &KEYS));
        assert!(said.contains("0 were there"), "{said}");
        let said = must(&sifr(home, &["flist", "push", &file, &private], &KEYS));
        assert!(said.contains("sent 0.0 MiB in 0 chunks"), "{said}");
        must(&sifr(home, &["flist", "verify", &digest, &public], &[]));
        let copy = work.path().join("copy").display().to_string();
        must(&sifr(
            home,
            &["flist", "pull", &digest, &public, "-o", &copy],
            &[],
        ));
        must(&sifr(home, &["flist", "verify", &digest, &copy], &[]));
        let pulled = fs::read(work.path().join("copy").join(name));
        assert_eq!(pulled.expect("its trace came along"), trace);

        runs_from("from-s3", &digest, &s3.url_for_the_node("a"));

        let swept = must(&sifr(
            home,
            &[
                "flist",
                "gc",
                &private,
                "--dry-run",
                "--grace",
                "0s",
                "--forget",
                &digest,
            ],
            &KEYS,
        ));
        assert!(swept.contains("would remove"), "{swept}");
        let chunk = store::chunks(&s3.bucket().join("a"))
            .expect("chunks")
            .remove(0);
        fs::remove_file(chunk).expect("removes");
        let damaged = sifr(home, &["flist", "verify", &digest, &public], &[]);
        let said = String::from_utf8_lossy(&damaged.stdout);
        assert!(
            damaged.status.code() == Some(1) && said.contains("is missing"),
            "{said}"
        );
        must(&sifr(home, &["flist", "mirror", &copy, &private], &KEYS));
        must(&sifr(home, &["flist", "verify", &digest, &public], &[]));
    }

    #[test]
    fn an_encrypted_image_runs_out_of_a_bucket_and_a_repository_that_have_no_key_to_it() {
        let (work, s3) = (
            TempDir::new().expect("temp"),
            S3::start().expect("a server"),
        );
        let registry = Registry::open().expect("a registry");
        let program = qemu_tests::command().expect("sifr is built");
        let repository = format!("oci+http://{}/team/sealed", registry.host);
        for (name, seed, to, from) in [
            (
                "bucket",
                108,
                s3.url("sealed", s3.private),
                s3.url_for_the_node("sealed"),
            ),
            (
                "repository",
                109,
                repository.clone(),
                repository.replace("localhost", "10.0.2.2"),
            ),
        ] {
            let (file, chunks) = sealed(&program, work.path(), name, seed).expect("an image");
            let beside = file.with_file_name("chunks");
            fs::rename(chunks.join("chunks"), &beside).expect("moved");
            let file = file.display().to_string();
            must(&sifr(work.path(), &["flist", "push", &file, &to], &KEYS));
            fs::remove_dir_all(beside).expect("removed");
            runs_from(&format!("from-sealed-{name}"), &file, &from);
        }
        let names = fs::read_dir(s3.bucket().join("sealed")).expect("a bucket");
        let names = names.map(|name| name.expect("reads").path());
        assert!(
            names
                .into_iter()
                .all(|name| name.extension() != Some("flist".as_ref()))
        );
    }

    /// How long the first push lives that is killed; each next one half as long again. Any moment will do: whatever the
    /// client is at then must be safe.
    const FIRST_LIFE: Duration = Duration::from_millis(5);

    /// Pushes and is killed, again and again, until a push has lived long enough to end. After each kill the store has no
    /// flist, or all of it. Gives how many were killed.
    fn push_among_kills(home: &Path, file: &str, digest: &str, to: &str) -> usize {
        let mut life = FIRST_LIFE;
        for kills in 0.. {
            let mut push = Command::new(qemu_tests::command().expect("sifr is built"));
            push.args(["flist", "push", file, to]).env_clear();
            push.env("HOME", home).envs(KEYS).stderr(Stdio::null());
            let mut push = push.spawn().expect("sifr runs");
            std::thread::sleep(life);
            if let Some(status) = push.try_wait().expect("waits") {
                assert!(status.success());
                return kills;
            }
            push.kill().expect("SIGKILL");
            push.wait().expect("reaped");
            let verified = sifr(home, &["flist", "verify", digest, to], &KEYS);
            let said = [verified.stdout.clone(), verified.stderr.clone()].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let is_absent =
                said.contains("no flist") || said.contains("is missing") && !said.contains("chunk");
            assert!(verified.status.success() || is_absent, "{said}");
            life += life / 2;
        }
        unreachable!("a push ends")
    }

    #[test]
    fn a_push_that_is_killed_at_any_moment_leaves_nothing_wrong_and_the_next_one_goes_on() {
        let (work, s3) = (
            TempDir::new().expect("temp"),
            S3::start().expect("a server"),
        );
        let registry = Registry::open().expect("a registry");
        let (file, digest) = packed(&work, 107);
        let (file, home) = (file.display().to_string(), work.path());
        for store in [
            home.join("copy").display().to_string(),
            s3.url("killed", s3.private),
            format!("oci+http://{}/team/killed", registry.host),
        ] {
            let kills = push_among_kills(home, &file, &digest, &store);
            println!("{kills} pushes to {store} were killed");
            assert!(kills > 0, "{store}");
            let said = must(&sifr(home, &["flist", "push", &file, &store], &KEYS));
            assert!(said.contains("sent 0.0 MiB in 0 chunks"), "{said}");
            must(&sifr(home, &["flist", "verify", &digest, &store], &KEYS));
        }
    }

    #[test]
    fn a_repository_of_a_registry_takes_and_gives_and_a_node_reads_it() {
        let work = TempDir::new().expect("temp");
        let (file, digest) = packed(&work, 102);
        let trace = traced(&file);
        let (beside, name) = (file.with_extension("trace"), file.with_extension("trace"));
        let name = name.file_name().expect("a name").to_owned();
        let (file, home) = (file.display().to_string(), work.path());
        let registry = Registry::open().expect("a registry");
        let url = format!("oci+http://{}/team/images", registry.host);
        let said = must(&sifr(home, &["flist", "push", &file, &url], &[]));
        assert!(said.contains("0 were there"), "{said}");
        assert!(said.contains("its trace as well"), "{said}");
        // Who has no trace and pushes leaves the one that is there.
        fs::remove_file(beside).expect("removes");
        let said = must(&sifr(home, &["flist", "push", &file, &url], &[]));
        assert!(said.contains("in 0 chunks"), "{said}");
        must(&sifr(home, &["flist", "verify", &digest, &url], &[]));
        let copy = work.path().join("copy").display().to_string();
        must(&sifr(home, &["flist", "mirror", &url, &copy], &[]));
        must(&sifr(home, &["flist", "verify", &digest, &copy], &[]));
        let mirrored = fs::read(work.path().join("copy").join(name));
        assert_eq!(mirrored.expect("its trace came along"), trace);
        runs_from("from-oci", &digest, &url.replace("localhost", "10.0.2.2"));
    }

    #[test]
    fn a_private_registry_wants_login_and_certificate_as_for_images() {
        let work = TempDir::new().expect("temp");
        let (file, _) = packed(&work, 103);
        let (file, home) = (file.display().to_string(), work.path().join("home"));
        fs::create_dir_all(home.join(".docker")).expect("a home");
        let registry = Registry::private().expect("a registry");
        let url = format!("oci://{}/team/images", registry.host);
        let refused = sifr(&home, &["flist", "push", &file, &url], &[]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("invalid peer certificate"), "{said}");
        let authority = registry.certificates().join("ca.crt").display().to_string();
        let push = ["flist", "push", &file, &url, "--ca", &authority];
        let refused = sifr(&home, &push, &[]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("docker login"), "{said}");
        let login = format!(
            r#"{{"auths":{{"{}":{{"auth":"{LOGIN_KEPT}"}}}}}}"#,
            registry.host
        );
        fs::write(home.join(".docker/config.json"), login).expect("writes");
        must(&sifr(&home, &push, &[]));
    }

    #[test]
    fn a_node_reads_over_tls_by_the_authority_that_the_deployment_names() {
        let work = TempDir::new().expect("temp");
        let (_, digest) = packed(&work, 104);
        let root = work.path().join("local");
        let server = TlsServer::serve(&root).expect("a server");
        let ca = server.authority.replace('\n', "\n    ");
        let store = format!("\n  urls: [\"{}\"]\n  ca: |\n    {ca}", server.url);
        runs_from("from-tls", &digest, &store);
        let other = TlsServer::serve(&root).expect("another server");
        let ca = other.authority.replace('\n', "\n    ");
        let elsewhere = TempDir::new().expect("temp");
        let (_, second) = packed(&elsewhere, 105);
        let yaml = format!(
            "name: distrusts\nimage: {second}\nstore:\n  urls: [\"{}\"]\n  ca: |\n    {ca}\nmemory: 96Mi\ndisk: 64Mi\n",
            server.url
        );
        lab()
            .deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        let wait = ["wait", "distrusts", "--timeout", "20s"];
        assert_ne!(lab().sifr(&wait).expect("sifr runs").code, 0);
        let status = lab().get("distrusts").expect("its status").to_string();
        assert!(status.contains("certificate"), "{status}");
        lab().delete("distrusts").expect("deleted");
    }

    #[test]
    fn an_image_in_two_halves_with_one_copy_gone_runs_all_the_same() {
        let work = TempDir::new().expect("temp");
        let (file, digest) = packed(&work, 106);
        let place = |name: &str| work.path().join(name).display().to_string();
        let low = format!("00-7f={}", place("low"));
        let high = format!("80-ff={}", place("high"));
        let push = ["flist", "push", &file.display().to_string(), &low, &high];
        must(&sifr(work.path(), &push, &[]));
        let low = store::serve(&work.path().join("low")).expect("a server");
        let high = store::serve(&work.path().join("high")).expect("a server");
        // Nobody listens at the first.
        let urls = format!("[\"http://10.0.2.2:9\", \"00-7f={low}\", \"80-ff={high}\"]");
        runs_from("from-parts", &digest, &urls);
    }
}
