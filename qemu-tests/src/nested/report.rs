//! The lines by which a node tells what became of its scenarios.
//!
//! Owns: their form, both ways. Refuses: a scenario of more than one line.

use std::fmt;
use std::time::Duration;

/// What each line begins with; the console may print something before it.
const MARK: &str = "nested: ";
/// Said before the first scenario.
pub(super) const BEGIN: &str = "nested: begin";
/// What the last line begins with.
pub(super) const END: &str = "nested: end";

/// What became of one scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// With what it took and the figures that it saw.
    Ok {
        name: String,
        took: Duration,
        figures: String,
    },
    Failed {
        name: String,
        why: String,
    },
    /// Nothing follows.
    End,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok {
                name,
                took,
                figures,
            } => {
                let took = took.as_millis();
                write!(f, "{MARK}ok {name} {took} ms {}", one(figures))
            }
            Self::Failed { name, why } => write!(f, "{MARK}FAILED {name}: {}", one(why)),
            Self::End => f.write_str(END),
        }
    }
}

/// Several lines as one.
fn one(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" | ")
}

impl Line {
    /// `None` for what else is on a console.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.trim_end().split_once(MARK)?;
        if let Some(rest) = rest.strip_prefix("ok ") {
            let mut words = rest.splitn(4, ' ');
            let (name, took) = (words.next()?, words.next()?.parse().ok()?);
            (words.next()? == "ms").then_some(())?;
            return Some(Self::Ok {
                name: name.to_owned(),
                took: Duration::from_millis(took),
                figures: words.next().unwrap_or_default().to_owned(),
            });
        }
        if let Some(rest) = rest.strip_prefix("FAILED ") {
            let (name, why) = rest.split_once(": ")?;
            return Some(Self::Failed {
                name: name.to_owned(),
                why: why.to_owned(),
            });
        }
        (rest == "end").then_some(Self::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_behind_whatever_the_console_has_before_it() {
        let ok = Line::Ok {
            name: "boots".to_owned(),
            took: Duration::from_millis(7),
            figures: "56 exits, 1 boot".to_owned(),
        };
        let failed = Line::Failed {
            name: "boots".to_owned(),
            why: "no: such | luck".to_owned(),
        };
        for line in [ok, failed, Line::End] {
            let text = format!("[ 1.0] x {line}\r");
            assert_eq!(Line::parse(&text), Some(line), "{text}");
        }
        assert_eq!(Line::parse("nested: okay"), None);
        assert_eq!(Line::parse("something else"), None);
    }

    #[test]
    fn what_has_several_lines_is_told_on_one() {
        let failed = Line::Failed {
            name: "x".to_owned(),
            why: "one\ntwo".to_owned(),
        };
        assert_eq!(failed.to_string(), "nested: FAILED x: one | two");
    }
}
