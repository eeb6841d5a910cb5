//! Text of UTF-16 databases, byte for byte: SQLite's own conversion alters surrogates that lack their partner.

use std::fmt::Write;

use crate::format::{TextEncoding, Value};

/// Generalised UTF-8 in the bytes of the database's encoding.
pub(super) fn to_utf16(bytes: &[u8], encoding: TextEncoding) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    let mut push = |unit: u16| match encoding {
        TextEncoding::Utf16Be => out.extend_from_slice(&unit.to_be_bytes()),
        TextEncoding::Utf16Le | TextEncoding::Utf8 => out.extend_from_slice(&unit.to_le_bytes()),
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        let valid = match std::str::from_utf8(rest) {
            Ok(text) => text,
            Err(error) => {
                rest.get(..error.valid_up_to()).and_then(|valid| std::str::from_utf8(valid).ok()).unwrap_or_default()
            }
        };
        valid.encode_utf16().for_each(&mut push);
        rest = rest.get(valid.len()..).unwrap_or_default();
        // A lone surrogate has three bytes: 1110_1101 101x_xxxx 10xx_xxxx.
        match rest {
            [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, tail @ ..] => {
                push(0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f));
                rest = tail;
            }
            [_, tail @ ..] => {
                push(0xfffd);
                rest = tail;
            }
            [] => {}
        }
    }
    out
}

/// The bytes of a UTF-16 database's text as generalised UTF-8: a lone surrogate becomes its three bytes.
pub(super) fn from_utf16(bytes: &[u8], encoding: TextEncoding) -> Vec<u8> {
    let from_pair = match encoding {
        TextEncoding::Utf16Be => u16::from_be_bytes,
        TextEncoding::Utf16Le | TextEncoding::Utf8 => u16::from_le_bytes,
    };
    let (pairs, _) = bytes.as_chunks::<2>();
    let mut out = Vec::with_capacity(bytes.len());
    let mut buffer = [0; 4];
    for unit in char::decode_utf16(pairs.iter().map(|pair| from_pair(*pair))) {
        match unit {
            Ok(character) => out.extend_from_slice(character.encode_utf8(&mut buffer).as_bytes()),
            Err(lone) => {
                let unit = lone.unpaired_surrogate();
                out.extend_from_slice(&[
                    0xe0 | (unit >> 12) as u8,
                    0x80 | (unit >> 6 & 0x3f) as u8,
                    0x80 | (unit & 0x3f) as u8,
                ]);
            }
        }
    }
    out
}

/// Text that binding as UTF-8 would alter in a UTF-16 database.
pub(super) fn is_broken_text(value: &Value) -> bool {
    matches!(value, Value::Text(bytes) if std::str::from_utf8(bytes).is_err())
}

/// Reads the given parameters (from 0) as text in the database's own encoding.
pub(super) fn with_casts(sql: &str, raw: &[usize]) -> String {
    let mut out = String::with_capacity(sql.len() + 16 * raw.len());
    let mut inside_name = false;
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        inside_name ^= c == '"';
        if c != '?' || inside_name {
            out.push(c);
            continue;
        }
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        let is_raw = digits.parse::<usize>().is_ok_and(|no| raw.iter().any(|i| i + 1 == no));
        let _ = if is_raw { write!(out, "CAST(?{digits} AS TEXT)") } else { write!(out, "?{digits}") };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_reach_parameters_and_leave_names_alone() {
        let sql = "UPDATE \"a?1\" SET b = ?1, c = ?12";
        assert_eq!(with_casts(sql, &[0]), "UPDATE \"a?1\" SET b = CAST(?1 AS TEXT), c = ?12");
    }

    #[test]
    fn lone_surrogates_come_back() {
        let units = [u16::from(b'x'), 0xd801, u16::from(b'y'), 0xdc00, 0xd83d, 0xdc3f];
        let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        let text = from_utf16(&bytes, TextEncoding::Utf16Be);
        assert!(is_broken_text(&Value::Text(text.clone())));
        assert_eq!(to_utf16(&text, TextEncoding::Utf16Be), bytes);
    }
}
