//! Time as guests have it.
//!
//! Owns: a node whose kernel is told a wrong speed of its processor. Instructions are counted, so that the
//! right one is known: one cycle a nanosecond.
//! Refuses: this machine's clock. All times are the node's.
#![cfg(test)]

mod tests {
    use std::time::{Duration, Instant};

    use image::qemu::Time;
    use qemu_tests::{Lab, PATIENCE, Setup, busybox};
    use serde_json::Value;

    /// A two-hundredth less than the truth: more than KVM overlooks (250 ppm), and less than what a kernel
    /// takes for a broken reference (1 %). No time server steps the clock meanwhile.
    const ARGUMENTS: &str = "tsc_early_khz=995000 sifr.ntp=10.0.2.2:1";
    /// Between two looks at the kernel log, which nobody can wait for.
    const LOOK_EVERY: Duration = Duration::from_secs(1);
    /// The first line may come into the log a little later than it was written; what the machine of the test
    /// takes beside its sleep is far less than the rest. Where a guest's timers are late, they are so by tens of
    /// seconds.
    const SLEPT_MS: std::ops::RangeInclusive<u64> = 900..=3000;

    fn wait_for_kernel(lab: &Lab, line: &str) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let log = lab.sifr(&["node", "dmesg"]).expect("sifr runs");
            if log.must().expect("a kernel log").stdout.contains(line) {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("the kernel never said {line:?}");
    }

    /// When each line of its output came, milliseconds.
    fn times(lab: &Lab, name: &str) -> Vec<u64> {
        let logs = lab.sifr(&["--output", "json", "logs", name]);
        let logs = logs.expect("sifr runs").must().expect("its output").stdout;
        let time = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            line["time_ms"].as_u64().expect("a time")
        };
        logs.lines().map(time).collect()
    }

    /// How long the machine takes from its deployment to its end, many times over.
    const NAP: &str = "60s";
    /// Debian's QEMU, when it counts instructions, now and then (one boot in ten here) gives a guest's guest its timer
    /// interrupt a second time (docs/testing.md); that guest then waits for a lock that it holds itself, and counting makes
    /// its waiting so slow that the node stands still with it. Three such boots in a row are none of QEMU's.
    const BOOTS: usize = 3;

    /// The times of a nap's lines. `None`: the node stood still.
    fn nap(setup: &Setup) -> Option<Vec<u64>> {
        let lab = Lab::with(setup, |machine| {
            machine.time = Time::InstructionsAndWaits;
            Ok(())
        });
        let lab = lab.expect("a node");
        // KVM began with the wrong speed; from here on the kernel knows better.
        wait_for_kernel(&lab, "Refined TSC clocksource calibration");
        let flist = busybox(lab.command(), lab.directory()).expect("an image");
        let yaml = format!(
            "name: nap\nimage: {}\nmemory: 96Mi\ndisk: 64Mi\nrestart: never\n\
             command: [sh, -c, \"echo tired; sleep 1; echo rested\"]\n",
            flist.display()
        );
        lab.deploy(&yaml)
            .expect("sifr runs")
            .must()
            .expect("deployed");
        let wait = ["wait", "nap", "--for", "exited", "--timeout", NAP];
        let end = lab.sifr(&wait).expect("sifr runs");
        if end.code != 0 && lab.sifr(&["node", "info"]).expect("sifr runs").code != 0 {
            eprintln!("the node stands still: {end:?}");
            return None;
        }
        end.must().expect("it ends");
        Some(times(&lab, "nap"))
    }

    #[test]
    fn a_guest_sleeps_as_long_as_it_asks_where_the_host_first_took_its_processor_for_slower() {
        let setup = Setup {
            arguments: ARGUMENTS.to_owned(),
            ..Setup::default()
        };
        let times = (0..BOOTS).find_map(|_| nap(&setup));
        let times = times.expect("a node that does not stand still");
        let [tired, rested] = times[..] else {
            panic!("two lines, not {times:?}");
        };
        let slept = rested.saturating_sub(tired);
        assert!(SLEPT_MS.contains(&slept), "a second took {slept} ms");
    }
}
