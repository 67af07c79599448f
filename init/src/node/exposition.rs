//! Prometheus' text exposition format, version 0.0.4.
//!
//! Owns: `# HELP`, `# TYPE`, labels and values, and how each is escaped. One family's samples stand together.
//! Refuses: knowing what is counted (`metrics` does).

use std::fmt::Write;

/// What a family's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// Only grows, while its process lives. Its name ends with `_total`.
    Counter,
    Gauge,
    /// Durations; its name ends with `_seconds`.
    Histogram,
}

/// A number in the unit that its family's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    Count(u64),
    /// What may be below zero.
    Signed(i64),
    /// Shown in seconds.
    Micros(u64),
}

/// Names and values of one sample's labels.
pub(crate) type Labels<'a> = [(&'a str, &'a str)];

/// All samples of one name.
#[derive(Debug)]
pub(crate) struct Family {
    name: &'static str,
    head: String,
    samples: String,
}

impl Family {
    /// `help` says what is counted, in one sentence.
    pub(crate) fn new(name: &'static str, kind: Type, help: &str) -> Self {
        let kind = match kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        Self {
            name,
            head: format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
            samples: String::new(),
        }
    }

    pub(crate) fn sample(&mut self, labels: &Labels<'_>, value: Value) {
        self.line("", labels, None, value);
    }

    /// `counts` per bucket, not cumulative, the last of them without a border. `borders` in microseconds.
    pub(crate) fn histogram(
        &mut self,
        labels: &Labels<'_>,
        borders: &[u64],
        counts: &[u64],
        sum_us: u64,
    ) {
        let mut so_far = 0u64;
        for (index, count) in counts.iter().enumerate() {
            so_far = so_far.saturating_add(*count);
            let border = match borders.get(index) {
                Some(border) => seconds(*border),
                None => "+Inf".to_owned(),
            };
            self.line("_bucket", labels, Some(&border), Value::Count(so_far));
        }
        self.line("_sum", labels, None, Value::Micros(sum_us));
        self.line("_count", labels, None, Value::Count(so_far));
    }

    fn line(&mut self, suffix: &str, labels: &Labels<'_>, border: Option<&str>, value: Value) {
        let border = border.map(|border| ("le", border));
        let out = &mut self.samples;
        out.push_str(self.name);
        out.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(border) {
            out.push(open);
            out.push_str(name);
            out.push_str("=\"");
            escape(value, out);
            out.push('"');
            open = ',';
        }
        if open == ',' {
            out.push('}');
        }
        let done = match value {
            Value::Count(count) => writeln!(out, " {count}"),
            Value::Signed(number) => writeln!(out, " {number}"),
            Value::Micros(us) => writeln!(out, " {}", seconds(us)),
        };
        done.expect("a String takes all");
    }
}

/// A label's value: backslash, quote and line feed are escaped.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

/// Exact: a float would round large ones.
fn seconds(us: u64) -> String {
    let (whole, part) = (us / 1_000_000, us % 1_000_000);
    let text = format!("{whole}.{part:06}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The whole text. Families without samples are left out.
pub(crate) fn text(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        out.push_str(&family.head);
        out.push_str(&family.samples);
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// A sample as a scraper reads it: name with suffix, labels, value.
    pub(crate) type Sample = (String, BTreeMap<String, String>, f64);

    fn name_is_valid(name: &str) -> bool {
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':');
        first
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
    }

    fn labels(mut text: &str) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        while !text.is_empty() {
            let (name, rest) = text.split_once("=\"").expect("a label");
            assert!(name_is_valid(name) && !name.contains(':'), "{name}");
            let (mut value, mut chars) = (String::new(), rest.char_indices());
            let end = loop {
                match chars.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().expect("an escaped character").1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        other => panic!("\\{other} is no escape"),
                    }),
                    (_, '\n') => panic!("a line feed in a label"),
                    (_, c) => value.push(c),
                }
            };
            assert!(out.insert(name.to_owned(), value).is_none(), "{name} twice");
            text = &rest[end + 1..];
            text = text.strip_prefix(',').unwrap_or(text);
        }
        out
    }

    /// Reads a text as strictly as the format is defined: help and type once and before all samples of a family,
    /// families not mixed, counters named so, histograms cumulative and whole.
    pub(crate) fn parse(text: &str) -> Vec<Sample> {
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "the last line has an end"
        );
        let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
        let (mut family, mut kind, mut helped) = (String::new(), String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(
                    !help.is_empty() && seen.insert(name.to_owned()),
                    "{name} twice"
                );
                name.clone_into(&mut helped);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, of) = rest.split_once(' ').expect("a type");
                assert_eq!(name, helped, "help first");
                assert!(["counter", "gauge", "histogram"].contains(&of), "{of}");
                assert_eq!(of == "counter", name.ends_with("_total"), "{name}");
                (family, kind) = (name.to_owned(), of.to_owned());
            } else {
                let (head, value) = line.rsplit_once(' ').expect("a value");
                let (name, of) = match head.split_once('{') {
                    Some((name, rest)) => (name, rest.strip_suffix('}').expect("a brace")),
                    None => (head, ""),
                };
                let suffix = name.strip_prefix(family.as_str()).expect("in its family");
                let allowed: &[&str] = match kind.as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(name_is_valid(name) && allowed.contains(&suffix), "{name}");
                let value: f64 = value.parse().expect("a number");
                assert!(value >= 0.0);
                out.push((name.to_owned(), labels(of), value));
            }
        }
        whole(&out);
        let mut all = BTreeSet::new();
        for (name, labels, _) in &out {
            assert!(all.insert((name, labels)), "{name} {labels:?} twice");
        }
        out
    }

    /// Buckets of each histogram grow, and the last one is the count.
    fn whole(samples: &[Sample]) {
        let mut buckets: BTreeMap<_, Vec<(String, f64)>> = BTreeMap::new();
        for (name, labels, value) in samples {
            if let Some(family) = name.strip_suffix("_bucket") {
                let mut rest = labels.clone();
                let border = rest.remove("le").expect("a border");
                buckets
                    .entry((family, rest))
                    .or_default()
                    .push((border, *value));
            }
        }
        for ((family, rest), list) in buckets {
            assert!(
                list.windows(2).all(|pair| pair[0].1 <= pair[1].1),
                "{family}"
            );
            let borders: Vec<f64> = list
                .iter()
                .map(|(b, _)| b.parse().expect("a border"))
                .collect();
            assert!(borders.windows(2).all(|pair| pair[0] < pair[1]), "{family}");
            let (last, all) = list.last().expect("some");
            let count = samples
                .iter()
                .find(|(name, labels, _)| *name == format!("{family}_count") && *labels == rest);
            assert_eq!((last.as_str(), *all), ("+Inf", count.expect("a count").2));
        }
    }

    #[test]
    fn a_family_reads_back_whatever_its_labels_hold() {
        let mut family = Family::new("sifr_x_total", Type::Counter, "A \\ and\na line.");
        family.sample(&[], Value::Count(u64::MAX));
        family.sample(
            &[("a", "q\"b\\s\nl,}="), ("b", "")],
            Value::Micros(1_500_000),
        );
        let empty = Family::new("sifr_y", Type::Gauge, "Nothing.");
        let text = text(&[family, empty]);
        assert_eq!(
            text,
            "# HELP sifr_x_total A \\\\ and\\na line.\n# TYPE sifr_x_total counter\n\
             sifr_x_total 18446744073709551615\n\
             sifr_x_total{a=\"q\\\"b\\\\s\\nl,}=\",b=\"\"} 1.5\n"
        );
        let read = parse(&text);
        assert_eq!(read[1].1["a"], "q\"b\\s\nl,}=");
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_all() {
        let mut family = Family::new("sifr_t_seconds", Type::Histogram, "Times.");
        family.histogram(&[("d", "x")], &[10, 1_000_000], &[3, 0, 2], 7_000_010);
        let read = parse(&text(&[family]));
        let values: Vec<f64> = read.iter().map(|(.., value)| *value).collect();
        assert_eq!(values, [3.0, 3.0, 5.0, 7.000_01, 5.0]);
        assert_eq!(read[0].1["le"], "0.00001");
        assert_eq!(
            (read[1].1["le"].as_str(), read[2].1["le"].as_str()),
            ("1", "+Inf")
        );
    }

    #[test]
    fn seconds_are_exact() {
        for (us, text) in [
            (0, "0"),
            (1, "0.000001"),
            (2_500_000, "2.5"),
            (10_000_000, "10"),
        ] {
            assert_eq!(seconds(us), text);
        }
    }

    #[test]
    #[should_panic(expected = "in its family")]
    fn the_check_finds_mixed_families() {
        parse("# HELP a A.\n# TYPE a gauge\nb 1\n");
    }
}
