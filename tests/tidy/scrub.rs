//! Rust source without its comments and literals.
//!
//! Owns: blanking them out, byte for byte and line for line, so that what is left can be searched.
//! Refuses: being a parser. It knows where text is not code, nothing more.

/// `text` with every comment, string and character literal replaced by blanks; line ends stay.
pub(crate) fn scrub(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + skipped(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if end == at {
            at += 1;
            continue;
        }
        out[at..end]
            .iter_mut()
            .filter(|b| **b != b'\n')
            .for_each(|b| *b = b' ');
        at = end;
    }
    String::from_utf8(out).expect("whole literals were replaced by ASCII")
}

/// How many bytes at the start of `rest` are no code; 0 where code goes on.
fn skipped(rest: &[u8], before: Option<u8>) -> usize {
    let word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match rest {
        [b'/', b'/', ..] => line_end(rest),
        [b'/', b'*', ..] => block_end(rest),
        [b'"', ..] => string_end(rest, 1),
        [b'r', b'"' | b'#', ..] if !word => raw_end(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !word => raw_end(rest, 2),
        [b'\'', b'\\', ..] => {
            2 + rest
                .iter()
                .skip(3)
                .position(|b| *b == b'\'')
                .map_or(0, |n| n + 2)
        }
        [b'\'', ..] => character_end(rest),
        _ => 0,
    }
}

fn line_end(rest: &[u8]) -> usize {
    rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
}

/// Block comments nest.
fn block_end(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_end(rest: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#` and so on; 0 for a raw identifier.
fn raw_end(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0;
    }
    let close: Vec<u8> = [b'"']
        .into_iter()
        .chain(std::iter::repeat_n(b'#', hashes))
        .collect();
    let inner = &rest[open + 1..];
    inner
        .windows(close.len())
        .position(|w| w == close)
        .map_or(rest.len(), |n| open + 1 + n + close.len())
}

/// A character literal, or 0 for a lifetime.
fn character_end(rest: &[u8]) -> usize {
    let text = String::from_utf8_lossy(&rest[1..rest.len().min(6)]).into_owned();
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(character), Some('\'')) => character.len_utf8() + 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        for (text, expected) in [
            ("a // unsafe {\nb", "a b"),
            ("a /* x /* y */ z */ b", "a b"),
            ("f(\"{ \\\" }\", '{', '\\'', 'ä')", "f( , , , )"),
            ("r#\"unsafe \" {\"# + br\"{\"", " + "),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("r#type + var\"s\"", "r#type + var "),
        ] {
            let scrubbed = scrub(text);
            assert_eq!(scrubbed.len(), text.len(), "{text}");
            assert_eq!(
                scrubbed.matches('\n').count(),
                text.matches('\n').count(),
                "{text}"
            );
            let words: Vec<&str> = scrubbed.split_whitespace().collect();
            assert_eq!(
                words,
                expected.split_whitespace().collect::<Vec<_>>(),
                "{text}"
            );
        }
    }
}
