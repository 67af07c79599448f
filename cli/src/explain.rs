//! `sifr explain CODE`: what a code means and what to do, without a network.
//!
//! Owns: finding its row in docs/errors.md, which is compiled in. Refuses: other words than those of that page, which tests
//! compare with the codes of refusals and troubles.

use anyhow::bail;
use serde_json::json;

use crate::screen::Screen;

const PAGE: &str = include_str!("../../docs/errors.md");

/// One row of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row<'a> {
    code: &'a str,
    /// Of a refusal.
    http: Option<&'a str>,
    when: &'a str,
    remedy: &'a str,
}

pub(crate) fn explain(screen: &Screen, code: &str) -> anyhow::Result<()> {
    let rows = rows(PAGE);
    // A refusal and a trouble may go by one word: they are one thing.
    let found: Vec<&Row<'_>> = rows.iter().filter(|row| row.code == code.trim()).collect();
    if found.is_empty() {
        let near: Vec<&str> = rows
            .iter()
            .map(|row| row.code)
            .filter(|known| {
                code.split('_')
                    .any(|word| word.len() > 2 && known.contains(word))
            })
            .collect();
        if near.is_empty() {
            bail!("{code} is no code of this sifr: docs/errors.md lists them");
        }
        bail!("{code} is no code of this sifr; {} are", near.join(", "));
    }
    let json = |row: &&Row<'_>| json!({ "code": row.code, "http": row.http, "when": row.when, "remedy": row.remedy });
    let values: Vec<_> = found.iter().map(json).collect();
    let text = |row: &&Row<'_>| format!("{}: {}\nto do: {}\n", row.code, row.when, row.remedy);
    screen.show(&values, || found.iter().map(text).collect())
}

fn rows(page: &str) -> Vec<Row<'_>> {
    page.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row<'_>> {
    let cells: Vec<&str> = line
        .strip_prefix("| `")?
        .strip_suffix(" |")?
        .split(" | ")
        .collect();
    let code = cells.first()?.strip_suffix('`')?;
    let (http, when, remedy) = match cells[1..] {
        [when, remedy] => (None, when, remedy),
        [http, when, remedy] => (Some(http), when, remedy),
        _ => return None,
    };
    Some(Row {
        code,
        http,
        when,
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use types::trouble::Code;

    use super::*;

    #[test]
    fn the_page_has_a_row_for_each_trouble_with_the_remedy_that_the_console_shows() {
        let rows = rows(PAGE);
        for code in Code::ALL {
            let row = rows
                .iter()
                .find(|row| row.code == code.word() && row.http.is_none());
            let row = row.unwrap_or_else(|| panic!("docs/errors.md has no row for {code}"));
            assert_eq!(row.remedy, code.remedy(), "{code}");
        }
        let known = |row: &&Row<'_>| Code::ALL.iter().any(|code| code.word() == row.code);
        let others = rows.iter().filter(|row| row.http.is_none() && !known(row));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&Row<'_>>::new());
    }

    #[test]
    fn a_refusal_has_its_status_and_what_is_no_row_is_none() {
        let refusal = row("| `malformed` | 400 | it is | correct it |").expect("a row");
        assert_eq!((refusal.code, refusal.http), ("malformed", Some("400")));
        assert_eq!(row("| code | HTTP | when | what to do |"), None);
        assert_eq!(row("| `a` | b |"), None);
    }
}
