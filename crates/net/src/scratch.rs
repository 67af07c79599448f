//! What the tests of this crate share: a runtime, and namespaces of one test.
//!
//! Owns: names that no other test process has, and the end of what bears them.
//! Refuses: namespaces of tests that still run.

use std::path::Path;

use crate::namespace;

/// Namespaces of the tests are named `sifr-test-<pid>-<test>-<part>`.
const PREFIX: &str = "sifr-test-";

/// The name of one namespace of a test.
pub(crate) fn name(test: &str, part: &str) -> String {
    format!("{PREFIX}{}-{test}-{part}", std::process::id())
}

/// Removes all namespaces of a test when it ends, however it ends; and those of test processes that were
/// killed, when it begins.
pub(crate) struct Scratch {
    prefix: String,
}

impl Scratch {
    pub(crate) fn new(test: &str) -> Self {
        remove(|name| !owner(name).is_none_or(|pid| Path::new("/proc").join(pid).exists()));
        Self {
            prefix: name(test, ""),
        }
    }

    pub(crate) fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(|name| name.starts_with(&self.prefix));
    }
}

/// The process whose test made it, if one did.
fn owner(name: &str) -> Option<&str> {
    Some(name.strip_prefix(PREFIX)?.split_once('-')?.0)
}

fn remove(which: impl Fn(&str) -> bool) {
    // Mount points whose mount never came are not listed as namespaces, but are ours as well.
    let Ok(entries) = std::fs::read_dir(namespace::DIRECTORY) else {
        return;
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in names.filter(|name| which(name)) {
        // Another test may be removing the same remains.
        let _ = namespace::remove(&name);
    }
}

/// A runtime on this thread, and so in its namespace.
pub(crate) fn on_a_runtime<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_end_with_their_test_or_after_a_killed_one() {
        // No process has this number: it is above the kernel's largest.
        let killed = format!("{PREFIX}4194305-scratch-left");
        namespace::ensure(&killed).expect("a namespace; it needs root");
        let scratch = Scratch::new("scratch");
        let own = scratch.name("own");
        namespace::ensure(&own).expect("a namespace");
        let there = |name: &str| namespace::open(name).expect("no error").is_some();
        assert!(there(&own) && !there(&killed));
        drop(scratch);
        assert!(!there(&own));
    }
}
