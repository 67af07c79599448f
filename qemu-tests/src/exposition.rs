//! Prometheus' text format, read strictly: a second reader beside the one that tests the writer.
//!
//! Owns: names, types, and that no series is said twice (exposition format 0.0.4).
//! Refuses: timestamps and summaries, which nothing of ours writes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// A whole text.
#[derive(Debug, Default)]
pub struct Exposition {
    types: BTreeMap<String, String>,
    series: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

/// Reads a text, or says what is wrong with it.
pub fn read(text: &str) -> Result<Exposition> {
    let mut read = Exposition::default();
    let mut helped = BTreeSet::new();
    ensure!(text.ends_with('\n'), "the last line has no end");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, _) = rest.split_once(' ').context("help without text")?;
            ensure!(helped.insert(name.to_owned()), "{name} is helped twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            ensure!(is_name(name, ":"), "{name:?} is no name");
            ensure!(
                matches!(kind, "counter" | "gauge" | "histogram"),
                "{line:?}"
            );
            let known = read.types.insert(name.to_owned(), kind.to_owned());
            ensure!(known.is_none(), "{name} has two types");
        } else {
            read.sample(line).with_context(|| line.to_owned())?;
        }
    }
    ensure!(
        helped.iter().eq(read.types.keys()),
        "help and types differ: {helped:?}"
    );
    Ok(read)
}

fn is_name(name: &str, more: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || more.contains(c);
    name.chars().all(fits) && name.starts_with(|c: char| !c.is_ascii_digit())
}

impl Exposition {
    fn sample(&mut self, line: &str) -> Result<()> {
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse().context("no number")?;
        let (name, labels) = match series.split_once('{') {
            None => (series, BTreeMap::new()),
            Some((name, rest)) => (name, labels(rest)?),
        };
        let kind = self.kind(name).context("a sample of no family")?;
        let rises = kind != "gauge";
        ensure!(!rises || value >= 0.0, "a count below zero");
        ensure!(
            kind != "counter" || name.ends_with("_total"),
            "a counter's name ends with _total"
        );
        let known = self.series.insert((name.to_owned(), labels), value);
        ensure!(known.is_none(), "a series that is said twice");
        Ok(())
    }

    /// The type of a sample's family.
    fn kind(&self, name: &str) -> Option<&str> {
        let of = |name: &str| self.types.get(name).map(String::as_str);
        let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
        let histogram = |family: &str| of(family).filter(|kind| *kind == "histogram");
        of(name).or_else(|| parts.into_iter().flatten().find_map(histogram))
    }

    /// The sum of a name's series that have all these labels; `None` where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |all: &BTreeMap<String, String>| {
            let one = |(key, value): &(&str, &str)| all.get(*key).is_some_and(|v| v == value);
            labels.iter().all(one)
        };
        let series = self.series.iter();
        let of = series.filter(|((n, all), _)| n == name && has(all));
        of.map(|(_, value)| *value).reduce(|a, b| a + b)
    }

    /// Counters and buckets of `self` that `later` has less of, or not at all.
    pub fn fallen(&self, later: &Self) -> Vec<String> {
        let rises = |name: &str| self.kind(name).is_some_and(|kind| kind != "gauge");
        let series = self.series.iter().filter(|((name, _), _)| rises(name));
        let fell =
            series.filter(|(key, before)| later.series.get(*key).is_none_or(|v| v < *before));
        fell.map(|(key, _)| format!("{key:?}")).collect()
    }
}

/// What stands between the braces, both of which may hold anything but the quotes around values.
fn labels(text: &str) -> Result<BTreeMap<String, String>> {
    let mut text = text.strip_suffix('}').context("no end of labels")?;
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").context("no label")?;
        ensure!(is_name(name, ""), "{name:?} is no label");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().context("a value without end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    other => bail!("an escape that is none: {other:?}"),
                }),
                (_, c) => value.push(c),
            }
        };
        let known = labels.insert(name.to_owned(), value);
        ensure!(known.is_none(), "a label that is said twice");
        let rest = &rest[end + 1..];
        text = rest.strip_prefix(',').unwrap_or(rest);
        ensure!(rest.is_empty() || text.len() < rest.len(), "no comma");
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# HELP a_total A.\n# TYPE a_total counter\n";

    #[test]
    fn series_are_told_apart_by_their_labels() {
        let text = format!("{HEAD}a_total{{x=\"1\",y=\"\\\"}},\"}} 1\na_total{{x=\"2\"}} 2.5\n");
        let read = read(&text).expect("valid");
        assert_eq!(read.sum("a_total", &[]), Some(3.5));
        assert_eq!(read.sum("a_total", &[("y", "\"},")]), Some(1.0));
        assert_eq!(read.sum("a_total", &[("x", "3")]), None);
    }

    #[test]
    fn a_counter_that_falls_or_goes_is_found() {
        let of = |body: &str| read(&format!("{HEAD}{body}")).expect("valid");
        let before = of("a_total 2\n");
        assert!(before.fallen(&of("a_total 2\n")).is_empty());
        assert_eq!(before.fallen(&of("a_total 1\n")).len(), 1);
        assert_eq!(before.fallen(&of("a_total{x=\"1\"} 9\n")).len(), 1);
    }

    #[test]
    fn what_prometheus_would_refuse_is_refused() {
        for body in [
            "a_total 1\na_total 1\n",
            "a_total 1",
            "b 1\n",
            "a_total one\n",
            "a_total -1\n",
            "a_total{x=1} 1\n",
            "a_total{x=\"1\"y=\"2\"} 1\n",
            "a_total{x=\"1\\q\"} 1\n",
            "# TYPE a_total gauge\n",
            "# TYPE 1a gauge\n",
        ] {
            assert!(read(&format!("{HEAD}{body}")).is_err(), "{body:?}");
        }
    }
}
