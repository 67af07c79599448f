//! What is executed, from the specification alone: environment and the paths that are tried.
//!
//! Owns: merging the environment, and `execvp`'s search as data.
//! Refuses: the file system. Whether a candidate exists is the kernel's answer to `execve`.

use std::ffi::CString;

use crate::error::{Result, SetupError};

/// What Docker gives a container whose image names no PATH.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most directories of PATH that are searched: more is no PATH, and each costs a system call.
const PATH_ENTRIES_MAX: usize = 256;

/// The program's environment: defaults, then `given` in order; of one name the last value wins and
/// keeps the place of the first.
pub(crate) fn environment(given: &[String], hostname: &str, home: &str) -> Vec<String> {
    let defaults = [
        format!("PATH={PATH_DEFAULT}"),
        format!("HOSTNAME={hostname}"),
        format!("HOME={home}"),
    ];
    let mut merged: Vec<String> = Vec::with_capacity(defaults.len() + given.len());
    for variable in defaults.into_iter().chain(given.iter().cloned()) {
        // Without a '=' it is no variable; Docker drops it too.
        let Some((name, _)) = variable.split_once('=') else {
            continue;
        };
        let same = |other: &&mut String| other.split_once('=').is_some_and(|(n, _)| n == name);
        match merged.iter_mut().find(same) {
            Some(earlier) => *earlier = variable,
            None => merged.push(variable),
        }
    }
    merged
}

/// The paths that `execvp` would try for `program` with this environment.
pub(crate) fn candidates(program: &str, environment: &[String]) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let path = search_path(environment);
    let directories = path.split(':').take(PATH_ENTRIES_MAX);
    directories
        .map(|directory| match directory {
            // An empty entry is the working directory (POSIX.1-2017 section 8.3).
            "" => format!("./{program}"),
            _ => format!("{directory}/{program}"),
        })
        .collect()
}

pub(crate) fn search_path(environment: &[String]) -> &str {
    environment
        .iter()
        .find_map(|v| v.strip_prefix("PATH="))
        .unwrap_or(PATH_DEFAULT)
}

/// Strings as `execve` takes them.
pub(crate) fn c_strings(texts: &[String], what: &'static str) -> Result<Vec<CString>> {
    texts
        .iter()
        .map(|t| CString::new(t.as_str()).map_err(|_| SetupError::Nul { what }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn the_last_value_of_a_variable_wins_and_defaults_fill_the_rest() {
        let merged = environment(
            &strings(&["A=1", "PATH=/bin", "junk", "A=2=3", "B="]),
            "web",
            "/root",
        );
        assert_eq!(
            merged,
            strings(&["PATH=/bin", "HOSTNAME=web", "HOME=/root", "A=2=3", "B="])
        );
    }

    #[test]
    fn a_bare_name_is_searched_in_the_images_path() {
        let environment = strings(&["PATH=/opt/bin::/bin"]);
        assert_eq!(
            candidates("sh", &environment),
            ["/opt/bin/sh", "./sh", "/bin/sh"]
        );
        assert_eq!(candidates("sh", &[]).len(), 6);
    }

    #[test]
    fn a_name_with_a_slash_is_not_searched() {
        assert_eq!(candidates("./run", &[]), ["./run"]);
        assert_eq!(candidates("/bin/sh", &[]), ["/bin/sh"]);
        assert!(candidates("", &[]).is_empty());
    }

    #[test]
    fn an_endless_path_is_searched_so_far_and_no_further() {
        let environment = vec![format!("PATH={}", "a:".repeat(10_000))];
        assert_eq!(candidates("sh", &environment).len(), PATH_ENTRIES_MAX);
    }

    #[test]
    fn a_nul_byte_is_an_error_not_a_shorter_argument() {
        assert!(c_strings(&strings(&["a\0b"]), "an argument").is_err());
        assert_eq!(
            c_strings(&strings(&["a b"]), "an argument").expect("fine"),
            [c"a b".to_owned()]
        );
    }
}
