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
    fn volumes_snapshots_and_copies_are_as_acknowledged_after_any_cut() {
        let mut torture = Torture::new(7, Kind::Volumes).expect("a node");
        torture.settle_in().expect("it runs");
        for _ in 0..3 {
            torture.cut().expect("every promise was kept");
        }
        println!("{}", torture.tally());
    }

    #[test]
    fn an_encrypted_pool_that_is_cut_while_it_is_made_is_made_after_all() {
        let mut torture = Torture::new(8, Kind::Encrypted).expect("a node");
        torture.first_boot().expect("every promise was kept");
        println!("{}", torture.tally());
    }

    #[test]
    fn two_disks_that_lose_their_power_at_once_are_one_node_and_each_alone_is_too() {
        let mut torture = Torture::new(9, Kind::Two).expect("a node");
        torture.first_boot().expect("every promise was kept");
        torture.alone().expect("every promise was kept");
        println!("{}", torture.tally());
    }

    #[test]
    fn a_half_of_a_mirror_that_is_replaced_while_the_power_goes_is_whole_in_the_end() {
        let mut torture = Torture::new(11, Kind::Mirror).expect("a node");
        torture.settle_in().expect("it runs");
        torture.replace().expect("every promise was kept");
        println!("{}", torture.tally());
    }

    fn tears_and_mends(kind: Kind) {
        let mut torture = Torture::new(3, kind).expect("a node");
        torture.settle_in().expect("it runs");
        torture.tear().expect("the power goes");
        torture.mended().expect("every promise was kept");
        torture.check().expect("the pool's file system is sound");
        println!("{}", torture.tally());
    }

    #[test]
    fn blocks_of_a_pool_that_are_half_written_are_made_whole_at_the_next_boot() {
        tears_and_mends(Kind::Plain);
    }

    #[test]
    fn blocks_of_an_encrypted_pool_that_are_half_written_are_made_whole_too() {
        tears_and_mends(Kind::Encrypted);
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
