//! Images of registries, from the tools that people have to a machine that runs.
//!
//! Owns: the way of such an image. Refuses: registries elsewhere.
#![cfg(test)]

mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use qemu_tests::registry::{self, LOGIN_KEPT, Registry};
    use qemu_tests::{Lab, WEB_PORT, http, tree};
    use tempfile::TempDir;

    /// The test user land, as an OCI layout that umoci made.
    fn layout(work: &TempDir) -> PathBuf {
        let layout = work.path().join("layout");
        tree(&work.path().join("root"), 0).expect("a user land");
        let program = ["/bin/httpd", "-f", "-h", "/www"];
        registry::layout(&work.path().join("root"), &layout, &program).expect("umoci makes it");
        layout
    }

    #[test]
    fn the_archives_that_skopeo_writes_are_the_same_flist_as_the_layout_of_umoci() {
        let work = TempDir::new().expect("temp");
        let layout = layout(&work);
        let store = work.path().join("store");
        let pack = |source: &Path| {
            let mut sifr = Command::new(qemu_tests::command().expect("sifr is built"));
            sifr.args(["flist", "pack"]).arg(source).arg("-o");
            let output = sifr.arg(&store).output().expect("sifr runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            String::from_utf8(output.stdout).expect("text")
        };
        let expected = pack(&layout);
        for form in ["docker-archive", "oci-archive"] {
            let archive = work.path().join(format!("{form}.tar"));
            let mut skopeo = Command::new("skopeo");
            skopeo.args(["--insecure-policy", "copy", "--quiet"]);
            skopeo.arg(format!("oci:{}:1", layout.display()));
            skopeo.arg(format!("{form}:{}:team/web:1", archive.display()));
            let output = skopeo.output().expect("skopeo: run 'make setup'");
            assert!(output.status.success(), "{output:?}");
            assert_eq!(pack(&archive), expected, "{form}");
        }
    }

    #[test]
    fn an_image_that_is_named_by_its_registry_runs() {
        let (work, lab) = (TempDir::new().expect("temp"), Lab::new().expect("a node"));
        let registry = Registry::open().expect("a registry");
        let image = registry
            .push(&layout(&work), "team/web:1", "gzip")
            .expect("skopeo pushes");
        let yaml = format!(
            "name: web\nimage: {image}\nmemory: 96Mi\ndisk: 64Mi\nports: [\"{WEB_PORT}:80\"]\n"
        );
        let answer = lab
            .deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        assert!(
            answer.stderr.contains(&format!("pulled {image}: sha256:")),
            "{answer:?}"
        );
        lab.wait("web", "running")
            .expect("sifr runs")
            .must()
            .expect("it runs");
        assert!(
            http::page(lab.web, "/")
                .expect("a page")
                .contains("It works")
        );
    }

    #[test]
    fn a_private_image_is_the_same_flist_as_its_layout_and_needs_login_and_certificate() {
        let work = TempDir::new().expect("temp");
        let layout = layout(&work);
        let registry = Registry::private().expect("a registry");
        let image = registry
            .push(&layout, "team/web:1", "zstd")
            .expect("skopeo pushes");
        let home = work.path().join("home");
        fs::create_dir_all(home.join(".docker")).expect("a home");
        let pack = |source: &str| {
            let mut sifr = Command::new(qemu_tests::command().expect("sifr is built"));
            sifr.args(["flist", "pack", source, "-o"])
                .arg(work.path().join("store"));
            let output = sifr
                .env_clear()
                .env("HOME", &home)
                .output()
                .expect("sifr runs");
            String::from_utf8([output.stdout, output.stderr].concat()).expect("text")
        };
        let trusted = home.join(".config/containers/certs.d").join(&registry.host);
        fs::create_dir_all(&trusted).expect("a directory");
        let trust = |registry: &Registry| {
            let authority = registry.certificates().join("ca.crt");
            fs::copy(authority, trusted.join("ca.crt")).expect("copies");
        };
        trust(&Registry::private().expect("another registry"));
        let said = pack(&image);
        assert!(
            said.contains("does not answer") && said.contains("invalid peer certificate"),
            "{said}"
        );
        trust(&registry);
        let said = pack(&image);
        assert!(
            said.contains("does not let you") && said.contains("docker login"),
            "{said}"
        );
        let login = format!(
            r#"{{"auths":{{"{}":{{"auth":"{LOGIN_KEPT}"}}}}}}"#,
            registry.host
        );
        fs::write(home.join(".docker/config.json"), login).expect("writes");
        let (pulled, local) = (pack(&image), pack(&layout.display().to_string()));
        let file = |said: &str| {
            said.lines()
                .find(|l| l.ends_with(".flist"))
                .map(str::to_owned)
        };
        assert!(file(&pulled).is_some(), "{pulled}");
        assert_eq!(file(&pulled), file(&local));
    }
}
