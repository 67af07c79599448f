//! A sample of `make torture`: power cuts at requests of the disk that a seed chooses.
//!
//! Owns: few cuts, always the same ones. Refuses: a lucky seed; `make torture` takes a new one each time.
#![cfg(test)]

mod tests {
    use qemu_tests::torture::{Kind, Torture};

    #[test]
    fn what_was_acknowledged_is_there_after_any_cut_and_what_was_deleted_is_not() {
        let mut torture = Torture::new(2, Kind::Plain).expect("a node");
        torture.first_boot().expect("a pool is made or is not");
        torture.settle_in().expect("it runs");
        for _ in 0..4 {
            torture.cut().expect("every promise was kept");
        }
        torture.check().expect("the pool's file system is sound");
        println!("{}", torture.tally());
    }

    #[test]
    fn a_claim_that_is_cut_ends_in_a_pool_on_large_sectors_too() {
        let mut torture = Torture::new(5, Kind::Large).expect("a node");
        torture.claim().expect("every promise was kept");
        println!("{}", torture.tally());
    }

    #[test]
    fn a_disk_that_only_says_that_it_flushes_is_found_out() {
        let mut torture = Torture::with_a_lying_disk(1).expect("a node");
        torture.settle_in().expect("it runs while it has power");
        let error = torture.settle_in();
        let error = error.expect_err("nothing is left, not even who it was");
        assert!(
            format!("{error:#}").contains("the identity was"),
            "{error:#}"
        );
    }
}
