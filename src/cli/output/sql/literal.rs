//! Values and names as SQL text that reads back to exactly what was stored.
//!
//! Three things do not survive as plain literals: some digits (SQLite's number reader does not always round to nearest; see [`real`]),
//! TEXT with bytes that readers of scripts change or stop at (NUL, carriage return, invalid UTF-8), and in UTF-16 databases U+FFFE and
//! U+FFFF, which SQLite replaces when it converts. Such TEXT is written as the cast of its bytes in the database's own encoding.

use std::io::Write;

use crate::format::{TextEncoding, Value};

/// Writes a name in double quotes.
pub(super) fn name(out: &mut Vec<u8>, name: &str) {
    quoted(out, name.as_bytes(), b'"');
}

/// The name in double quotes.
pub(super) fn quoted_name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Writes a value.
pub(super) fn value(out: &mut Vec<u8>, value: &Value, encoding: TextEncoding) {
    match value {
        Value::Null => out.extend_from_slice(b"NULL"),
        Value::Integer(number) => put(out, format_args!("{number}")),
        Value::Real(number) => real(out, *number),
        Value::Text(bytes) if survives(bytes) => quoted(out, bytes, b'\''),
        Value::Text(bytes) => {
            out.extend_from_slice(b"CAST(");
            match encoding {
                TextEncoding::Utf8 => blob(out, bytes),
                TextEncoding::Utf16Le => blob(out, &utf16(bytes, u16::to_le_bytes)),
                TextEncoding::Utf16Be => blob(out, &utf16(bytes, u16::to_be_bytes)),
            }
            out.extend_from_slice(b" AS TEXT)");
        }
        Value::Blob(bytes) => blob(out, bytes),
    }
}

fn survives(text: &[u8]) -> bool {
    let no_control = !text.iter().any(|byte| matches!(byte, 0 | b'\r'));
    no_control && std::str::from_utf8(text).is_ok_and(|text| !text.contains(['\u{fffe}', '\u{ffff}']))
}

fn quoted(out: &mut Vec<u8>, bytes: &[u8], quote: u8) {
    out.push(quote);
    for piece in bytes.split_inclusive(|byte| *byte == quote) {
        out.extend_from_slice(piece);
        if piece.last() == Some(&quote) {
            out.push(quote);
        }
    }
    out.push(quote);
}

fn blob(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    out.extend_from_slice(b"x'");
    out.reserve(bytes.len() * 2 + 1);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            out.extend(DIGITS.get(usize::from(nibble)));
        }
    }
    out.push(b'\'');
}

/// Turns generalised UTF-8 (surrogates without a partner take three bytes) into UTF-16.
fn utf16(bytes: &[u8], order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    let mut rest = bytes.iter().copied().peekable();
    while let Some(first) = rest.next() {
        let (bits, more) = match first {
            0x00..=0x7f => (u32::from(first), 0),
            0xc2..=0xdf => (u32::from(first & 0x1f), 1),
            0xe0..=0xef => (u32::from(first & 0x0f), 2),
            0xf0..=0xf4 => (u32::from(first & 0x07), 3),
            _ => (0xfffd, 0),
        };
        let mut code = bits;
        for _ in 0..more {
            code = match rest.next_if(|byte| byte & 0xc0 == 0x80) {
                Some(byte) => code << 6 | u32::from(byte & 0x3f),
                None => 0xfffd,
            };
        }
        match char::from_u32(code) {
            Some(c) => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.extend_from_slice(&order(*unit))),
            None => out.extend_from_slice(&order(u16::try_from(code).unwrap_or(0xfffd))),
        }
    }
    out
}

/// Writes a real so that every SQLite reads the same bits back.
///
/// Before 3.43 SQLite multiplied the digits by a power of ten in the platform's `long double`; newer versions use two doubles. Both are
/// right to about 2^-60, but neither decides ties: digits that stand almost half-way between two doubles may end at the wrong one. The
/// shortest digits of a double can stand anywhere in its half of the way. So they are used where they are clearly nearer to their own
/// double than to the next; where not, 18 digits bring the number within a tenth of the half-way. Very small numbers, for which the old
/// method divides twice, are written as an integer times powers of two, which arithmetic cannot round.
fn real(out: &mut Vec<u8>, number: f64) {
    /// Below this 3.40's reader needs two rounded divisions.
    const SMALL: f64 = 1e-270;
    /// Above this the old reader multiplies beyond the range of a platform whose `long double` is a double.
    const LARGE: f64 = 1e270;
    let size = number.abs();
    if number.is_nan() {
        out.extend_from_slice(b"NULL");
    } else if size == f64::INFINITY {
        out.extend_from_slice(if number > 0.0 { b"9e999" } else { b"-9e999" });
    } else if size == 0.0 {
        out.extend_from_slice(if number.is_sign_negative() { b"-0.0" } else { b"0.0" });
    } else if (SMALL..LARGE).contains(&size) {
        let shortest = format!("{number:?}");
        if clearly_nearest(&shortest, size) {
            out.extend_from_slice(shortest.as_bytes());
        } else {
            put(out, format_args!("{number:.17e}"));
        }
    } else {
        product(out, number);
    }
}

/// Whether the digits stand within 96 hundredths of the way from their double to the point where the next one begins: the rest is several
/// times what any of SQLite's readers can be off.
fn clearly_nearest(digits: &str, size: f64) -> bool {
    // Both in units of the last of DIGITS digits; the long ones are correctly rounded, so they are off by at most half a unit.
    let exact = format!("{size:.*e}", DIGITS - 1);
    let Some((exact_digits, exponent)) = significant(&exact) else { return false };
    let Some((short_digits, short_exponent)) = significant(digits) else { return false };
    if exponent != short_exponent {
        return false;
    }
    let distance = exact_digits.abs_diff(short_digits) as f64 + 1.0;
    // The gap below a power of two is half as wide as the one above.
    let gap = size - f64::from_bits(size.to_bits() - 1);
    let half_way = gap / 2.0 / 10_f64.powi(exponent) * 10_f64.powi(DIGITS as i32 - 1);
    distance < 0.96 * half_way
}

/// Enough to measure distances between doubles, whose digits differ from the 16th on.
const DIGITS: usize = 24;

/// Reads digits as [`DIGITS`] significant ones and the power of ten of the first.
fn significant(text: &str) -> Option<(u128, i32)> {
    let text = text.trim_start_matches('-');
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let leading_zeros = all.len() - all.trim_start_matches('0').len();
    let kept = all.trim_start_matches('0').trim_end_matches('0');
    if kept.is_empty() || kept.len() > DIGITS {
        return None;
    }
    let padded = format!("{kept:0<DIGITS$}");
    let first = i32::try_from(whole.len()).ok()? - 1 - i32::try_from(leading_zeros).ok()?;
    Some((padded.parse().ok()?, exponent + first))
}

/// Writes `mantissa*2^k` as products and quotients of exact integers.
fn product(out: &mut Vec<u8>, number: f64) {
    /// As a literal this is exact for every reader.
    const STEP: (i32, &str) = (62, "4611686018427387904.0");
    let bits = number.to_bits();
    let exponent_bits = i32::try_from(bits >> 52 & 0x7ff).unwrap_or(0);
    let fraction = bits & ((1 << 52) - 1);
    let (mut mantissa, mut exponent) =
        if exponent_bits == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent_bits - 1075) };
    let even = i32::try_from(mantissa.trailing_zeros()).unwrap_or(0).min((-exponent).max(0));
    mantissa >>= even;
    exponent += even;
    put(out, format_args!("({}{mantissa}.0", if number < 0.0 { "-" } else { "" }));
    let sign = if exponent < 0 { '/' } else { '*' };
    let mut left = exponent.abs();
    while left >= STEP.0 {
        put(out, format_args!("{sign}{}", STEP.1));
        left -= STEP.0;
    }
    if left > 0 {
        put(out, format_args!("{sign}{}.0", 1_u64 << left));
    }
    out.push(b')');
}

/// Formats into memory, which cannot fail.
pub(super) fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: f64) -> String {
        let mut out = Vec::new();
        real(&mut out, number);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn plain_reals_stay_plain() {
        for (number, want) in
            [(3.0, "3.0"), (0.1, "0.1"), (-2.5, "-2.5"), (9.99, "9.99"), (1e20, "1e20"), (-0.0, "-0.0")]
        {
            assert_eq!(text(number), want);
        }
        assert_eq!((text(f64::INFINITY), text(f64::NEG_INFINITY)), ("9e999".into(), "-9e999".into()));
    }

    #[test]
    fn reals_read_back_to_the_same_bits() {
        let sqlite = rusqlite::Connection::open_in_memory().unwrap();
        let seed = 11_u64;
        let mut state = seed;
        let mut numbers =
            vec![f64::MIN_POSITIVE, f64::MAX, 5e-324, -5e-324, 1e-300, 1e300, f64::MIN_POSITIVE.next_down(), 0.1 + 0.2];
        for round in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = state ^ (state >> 29);
            numbers.push(if round % 2 == 0 { f64::from_bits(bits) } else { (bits >> 20) as f64 / 1000.0 });
        }
        for number in numbers.into_iter().filter(|number| !number.is_nan()) {
            let sql = text(number);
            let read: f64 = sqlite.query_row(&format!("SELECT {sql}"), [], |row| row.get(0)).unwrap();
            assert_eq!(read.to_bits(), number.to_bits(), "SEED={seed} {number:?} as {sql} is {read:?}");
        }
    }

    #[test]
    fn lone_surrogates_keep_their_unit() {
        assert_eq!(
            utf16(&[b'a', 0xed, 0xa0, 0x80, 0xf0, 0x9f, 0x98, 0x80], u16::to_be_bytes),
            [0, b'a', 0xd8, 0, 0xd8, 0x3d, 0xde, 0]
        );
    }
}
