//! Which back ends a request may go to: names and path prefixes.
//!
//! Owns: the decision. Refuses: I/O; health is asked of its inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::ingress::Host;

/// All names, with whatever is behind each.
#[derive(Debug)]
pub(crate) struct Table<S> {
    sites: BTreeMap<Host, Arc<S>>,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self {
            sites: BTreeMap::new(),
        }
    }
}

impl<S> Table<S> {
    pub(crate) fn new(sites: impl IntoIterator<Item = (Host, S)>) -> Self {
        let sites = sites.into_iter().map(|(host, site)| (host, Arc::new(site)));
        Self {
            sites: sites.collect(),
        }
    }

    pub(crate) fn get(&self, host: &Host) -> Option<&Arc<S>> {
        self.sites.get(host)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Host, &Arc<S>)> {
        self.sites.iter()
    }
}

/// Whether a path lies below a prefix, which ends at a border: `/api` has `/api` and `/api/x`, and not `/apis`.
fn is_below(path: &str, prefix: &str) -> bool {
    let Some(rest) = path.strip_prefix(prefix) else {
        return false;
    };
    prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
}

/// The place of the route with the longest prefix that a path lies below.
pub(crate) fn route<'a>(prefixes: impl Iterator<Item = &'a str>, path: &str) -> Option<usize> {
    let below = prefixes
        .enumerate()
        .filter(|(_, prefix)| is_below(path, prefix));
    below
        .max_by_key(|(_, prefix)| prefix.len())
        .map(|(at, _)| at)
}

/// How a back end stands, to choose by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    pub(crate) usable: bool,
    /// Requests under way to it.
    pub(crate) busy: usize,
    /// It has been tried for this very request.
    pub(crate) tried: bool,
}

/// The one with least to do among those that can be used; of equal ones the next after `turn`.
pub(crate) fn choose(stands: &[Stand], turn: usize) -> Option<usize> {
    let from = turn.checked_rem(stands.len())?;
    let order = (from..stands.len()).chain(0..from);
    let can = order.filter(|at| stands[*at].usable && !stands[*at].tried);
    can.min_by_key(|at| stands[*at].busy)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn to<'a>(prefixes: &[&'a str], path: &str) -> Option<&'a str> {
        route(prefixes.iter().copied(), path).map(|at| prefixes[at])
    }

    #[test]
    fn the_longest_prefix_at_a_border_decides() {
        let all = ["/", "/api", "/api/v2/", "/static"];
        for (path, wanted) in [
            ("/", "/"),
            ("/index", "/"),
            ("/apis", "/"),
            ("/api", "/api"),
            ("/api/v2", "/api"),
            ("/api/v2/", "/api/v2/"),
            ("/api/v2/x", "/api/v2/"),
            ("/static/a/b", "/static"),
        ] {
            assert_eq!(to(&all, path), Some(wanted), "{path}");
        }
        assert_eq!(to(&["/api"], "/"), None);
        assert_eq!(to(&["/"], "*"), None);
    }

    fn stand() -> impl Strategy<Value = Stand> {
        (any::<bool>(), 0usize..4, any::<bool>()).prop_map(|(usable, busy, tried)| Stand {
            usable,
            busy,
            tried,
        })
    }

    proptest! {
        #[test]
        fn a_prefix_that_is_chosen_is_the_longest_that_fits(
            prefixes in proptest::collection::vec("(/[ab]{0,2}){1,3}", 0..5),
            path in "(/[ab]{0,2}){1,4}",
        ) {
            let fits = |p: &&String| path == **p || path.starts_with(p.trim_end_matches('/')) && {
                let stem = p.trim_end_matches('/');
                p.len() > stem.len() && path.starts_with(p.as_str()) || p.len() == stem.len() && path[stem.len()..].starts_with('/')
            };
            let longest = prefixes.iter().filter(fits).map(String::len).max();
            let chosen = route(prefixes.iter().map(String::as_str), &path);
            prop_assert_eq!(chosen.map(|at| prefixes[at].len()), longest);
        }

        #[test]
        fn nobody_is_chosen_who_cannot_be_used_and_somebody_who_can(
            stands in proptest::collection::vec(stand(), 0..6),
            turn in 0usize..100,
        ) {
            let can = |stand: &Stand| stand.usable && !stand.tried;
            match choose(&stands, turn) {
                None => prop_assert!(!stands.iter().any(can)),
                Some(at) => {
                    prop_assert!(can(&stands[at]));
                    prop_assert!(stands.iter().filter(|s| can(s)).all(|s| s.busy >= stands[at].busy));
                }
            }
        }
    }

    #[test]
    fn equal_ones_take_turns() {
        let idle = Stand {
            usable: true,
            busy: 0,
            tried: false,
        };
        let taken: Vec<_> = (0..4).filter_map(|turn| choose(&[idle; 3], turn)).collect();
        assert_eq!(taken, [0, 1, 2, 0]);
    }
}
