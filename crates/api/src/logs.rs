//! One line of the log answer: a record of a program's output.
//!
//! Owns: its JSON form. Refuses: splitting output into lines of text; a record is what one read of the
//! guest's stream gave.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::vm::Stream;

/// Longest JSON line: a record of 64 KiB in base64, and the fields around it.
pub const LOG_LINE_MAX: usize = 128 << 10;
/// Most records that `tail` can ask for.
pub const TAIL_MAX: u64 = 100_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub seq: u64,
    pub time_ms: u64,
    pub stream: Stream,
    /// As the program wrote it; base64 in JSON.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub data: Vec<u8>,
}

impl LogLine {
    /// The line with its newline, as it goes over the wire.
    pub fn to_json_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a log line has only text keys");
        line.push(b'\n');
        line
    }
}

fn to_base64<S: Serializer>(data: &[u8], s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&STANDARD.encode(data))
}

fn from_base64<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
    STANDARD
        .decode(String::deserialize(d)?)
        .map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_record_fits_a_line() {
        let length = types::vm::LogRecord::LENGTH_MAX as usize;
        let line = LogLine {
            seq: u64::MAX,
            time_ms: u64::MAX,
            stream: Stream::Stderr,
            data: vec![255; length],
        };
        let json = line.to_json_line();
        assert!(json.len() <= LOG_LINE_MAX);
        assert_eq!(
            serde_json::from_slice::<LogLine>(&json).expect("reads back"),
            line
        );
    }
}
