//! Kernel configuration fragments: options with a value and a reason each.
//!
//! Owns: reading `kernel-config/*/*.config`, joining them, and comparing the wish with the `.config`
//! that came out.
//! Refuses: an option without a reason, out of order, or given twice.

use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    #[error("{file}:{line}: {text:?} is not of the form CONFIG_NAME=value # reason")]
    Form {
        file: String,
        line: usize,
        text: String,
    },
    #[error("{file}:{line}: {option} has no reason: write one behind a '#'")]
    Reason {
        file: String,
        line: usize,
        option: String,
    },
    #[error("{file}:{line}: {option} is out of order: sort the options")]
    Order {
        file: String,
        line: usize,
        option: String,
    },
    #[error("{option} is set in {first} and again in {second}: keep one")]
    Twice {
        option: String,
        first: String,
        second: String,
    },
}

/// One option of a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) option: String,
    /// As Kconfig writes it: `y`, `n`, a number, or a string in its quotes.
    pub(crate) value: String,
}

/// Reads one fragment. Lines that begin with `#` are about the file.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Choice>, FragmentError> {
    let mut choices: Vec<Choice> = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let file = file.to_owned();
        let Some((choice, reason)) = split(text) else {
            return Err(FragmentError::Form {
                file,
                line,
                text: text.to_owned(),
            });
        };
        let option = choice.option.clone();
        if reason.is_empty() {
            return Err(FragmentError::Reason { file, line, option });
        }
        if choices
            .last()
            .is_some_and(|last| last.option >= choice.option)
        {
            return Err(FragmentError::Order { file, line, option });
        }
        choices.push(choice);
    }
    Ok(choices)
}

fn split(line: &str) -> Option<(Choice, &str)> {
    let (option, rest) = line.split_once('=')?;
    let name = option.strip_prefix("CONFIG_")?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return None;
    }
    // A string may hold a '#': the value ends with the closing quote.
    let end = match rest.strip_prefix('"') {
        Some(string) => 1 + closing_quote(string)? + 1,
        None => rest.find([' ', '#']).unwrap_or(rest.len()),
    };
    let (value, tail) = rest.split_at(end);
    let reason = match tail.trim() {
        "" => "",
        tail => tail.strip_prefix('#')?.trim(),
    };
    let choice = Choice {
        option: option.to_owned(),
        value: value.to_owned(),
    };
    (!value.is_empty()).then_some((choice, reason))
}

fn closing_quote(string: &str) -> Option<usize> {
    let mut escaped = false;
    string.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}

/// All fragments of one kernel: option to value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    values: BTreeMap<String, String>,
}

/// An option that did not come out as wished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub option: String,
    pub wished: String,
    pub found: String,
}

impl Config {
    /// Joins fragments, given as (file name, text).
    pub fn join(fragments: &[(String, String)]) -> Result<Self, FragmentError> {
        let mut values = BTreeMap::new();
        let mut origin: BTreeMap<String, String> = BTreeMap::new();
        for (file, text) in fragments {
            for Choice { option, value } in parse(file, text)? {
                if let Some(first) = origin.insert(option.clone(), file.clone()) {
                    return Err(FragmentError::Twice {
                        option,
                        first,
                        second: file.clone(),
                    });
                }
                values.insert(option, value);
            }
        }
        Ok(Self { values })
    }

    /// The file for `KCONFIG_ALLCONFIG`.
    pub fn allconfig(&self) -> String {
        let mut out = String::new();
        for (option, value) in &self.values {
            match value.as_str() {
                "n" => writeln!(out, "# {option} is not set"),
                _ => writeln!(out, "{option}={value}"),
            }
            .expect("writing to a String cannot fail");
        }
        out
    }

    /// Which wishes `.config` does not grant. An option that is not listed is off.
    pub fn lost(&self, dot_config: &str) -> Vec<Lost> {
        let found: BTreeMap<&str, &str> = dot_config
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .collect();
        self.values
            .iter()
            .map(|(option, wished)| (option, wished, *found.get(option.as_str()).unwrap_or(&"n")))
            .filter(|(_, wished, found)| wished != found)
            .map(|(option, wished, found)| Lost {
                option: option.clone(),
                wished: wished.clone(),
                found: found.to_owned(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, FragmentError> {
        Config::join(&[("a.config".to_owned(), text.to_owned())])
    }

    #[test]
    fn a_string_keeps_its_quotes_and_may_hold_a_hash() {
        let text =
            "# about\n\nCONFIG_CMDLINE=\"a=b # \\\" c\" # why\nCONFIG_X=n # off\nCONFIG_Y=12 # n\n";
        let config = config(text).expect("a good fragment");
        let expected = "CONFIG_CMDLINE=\"a=b # \\\" c\"\n# CONFIG_X is not set\nCONFIG_Y=12\n";
        assert_eq!(config.allconfig(), expected);
    }

    #[test]
    fn each_fault_names_its_line() {
        for (text, says) in [
            ("CONFIG_A=y\n", "a.config:1: CONFIG_A has no reason"),
            ("CONFIG_A=y #\n", "a.config:1: CONFIG_A has no reason"),
            (
                "CONFIG_B=y # b\nCONFIG_A=y # a\n",
                "a.config:2: CONFIG_A is out of order",
            ),
            (
                "CONFIG_A=y # b\nCONFIG_A=y # a\n",
                "a.config:2: CONFIG_A is out of order",
            ),
            ("A=y # b\n", "a.config:1"),
            ("CONFIG_A= # b\n", "is not of the form"),
            ("CONFIG_A=\"x # b\n", "is not of the form"),
            ("CONFIG_A=y because\n", "is not of the form"),
        ] {
            let error = config(text).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_option_stands_in_one_fragment_only() {
        let fragment = |name: &str| (name.to_owned(), "CONFIG_A=y # a\n".to_owned());
        let error = Config::join(&[fragment("a"), fragment("b")]).expect_err("twice");
        assert_eq!(
            error.to_string(),
            "CONFIG_A is set in a and again in b: keep one"
        );
    }

    #[test]
    fn lost_wishes_are_listed_and_off_means_off() {
        let config = config("CONFIG_A=y # a\nCONFIG_B=n # b\nCONFIG_C=n # c\nCONFIG_D=\"x\" # d\n")
            .expect("a good fragment");
        let lost = config.lost("# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_D=\"x\"\n");
        let lost: Vec<_> = lost
            .iter()
            .map(|l| (l.option.as_str(), l.wished.as_str(), l.found.as_str()))
            .collect();
        assert_eq!(lost, [("CONFIG_A", "y", "n"), ("CONFIG_B", "n", "y")]);
    }
}
