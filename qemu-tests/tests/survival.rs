//! What survives what.
//!
//! Owns: nodes that lose power or parts. Refuses: being gentle.
#![cfg(test)]

mod tests {
    use qemu_tests::{Lab, WEB_PORT, busybox, http};

    #[test]
    fn identity_and_workload_survive_a_power_cut_with_no_store_in_reach() {
        let mut lab = Lab::new().expect("a node");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let yaml = format!(
            "name: web\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\nports: [\"{WEB_PORT}:80\"]\n",
            flist.display()
        );
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        let key = lab.key().expect("a key");
        // At once: the acknowledgement alone must be enough.
        lab.power_cut().expect("off");
        lab.power_on().expect("on");
        assert_eq!(lab.key().expect("a key"), key);
        lab.wait("web", "running")
            .expect("sifr runs")
            .must()
            .expect("it runs again");
        assert!(
            http::page(lab.web, "/")
                .expect("a page")
                .contains("It works")
        );
        lab.power_cut().expect("off");
        lab.power_on().expect("on");
        lab.wait("web", "running")
            .expect("sifr runs")
            .must()
            .expect("it runs again");
        assert!(
            http::page(lab.web, "/")
                .expect("a page")
                .contains("It works")
        );
    }
}
