//! `sifr-vmm` in the nested laboratory: one test a group of scenarios, one boot of a node a test.
//!
//! Owns: the list of groups. `NESTED_SCENARIO=name` runs one scenario of a group.
//! Refuses: scenarios; they are in `qemu_tests::nested::scenario`.
#![forbid(unsafe_code)]
#![cfg(test)]

mod tests {
    use qemu_tests::nested;

    fn run(group: &str) {
        nested::run(group).unwrap_or_else(|error| panic!("{error:#}"));
    }

    #[test]
    fn every_group_has_a_test_here() {
        let text = include_str!("vmm.rs");
        for (group, _) in nested::scenario::GROUPS {
            assert!(text.contains(&format!("run(\"{group}\");")), "{group}");
        }
    }

    #[test]
    fn devices_give_memory_back_stream_and_bite() {
        run("devices");
    }

    #[test]
    fn disk_many_requests_at_once_give_the_right_bytes_and_a_limit_is_kept() {
        run("disk");
    }

    #[test]
    fn net_large_transfers_are_whole_on_one_queue_pair_and_several_with_vhost_and_without() {
        run("net");
    }

    #[test]
    fn paused_nodes_and_their_guests_go_on_without_an_interrupt_too_few_or_too_many() {
        let paused = nested::run_with_pauses("disk", "deep-in-a-ring");
        paused.unwrap_or_else(|error| panic!("{error:#}"));
    }

    #[test]
    fn snapshot_a_machine_goes_into_two_files_and_out_of_them_as_it_was() {
        run("snapshot");
    }

    #[test]
    fn pmem_an_image_is_memory_that_is_never_written() {
        run("pmem");
    }

    #[test]
    fn load_machines_at_work_lose_nothing_by_a_snapshot_or_a_restore() {
        run("load");
    }

    #[test]
    fn restore_clones_become_machines_of_their_own_before_their_programs_go_on() {
        run("restore");
    }

    #[test]
    fn kept_all_devices_go_on_in_another_machine_as_they_were() {
        run("kept");
    }

    #[test]
    fn smoke_a_guest_boots_and_ends_as_it_says_on_any_number_of_processors() {
        run("smoke");
    }

    #[test]
    fn hostile_guests_are_answered_or_end_alone_and_their_neighbour_is_served() {
        run("hostile");
    }

    #[test]
    fn confined_monitors_share_nothing_reach_nothing_and_count_what_they_do() {
        run("confined");
    }

    #[test]
    fn kernels_of_both_protocols_boot_and_find_the_processors_that_were_asked_for() {
        run("kernels");
    }

    #[test]
    fn alone_with_a_terminal_a_tap_and_an_image_by_path() {
        run("alone-devices");
    }

    #[test]
    fn alone_a_machine_runs_from_a_file_and_answers_on_its_socket() {
        run("alone");
    }
}
