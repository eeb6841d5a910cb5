//! Records: a header of serial types, then the values.
//!
//! | serial type | bytes | value |
//! |---|---|---|
//! | 0 | 0 | NULL |
//! | 1–6 | 1, 2, 3, 4, 6, 8 | signed big-endian integer |
//! | 7 | 8 | IEEE 754 float, big-endian |
//! | 8, 9 | 0 | the integers 0 and 1 |
//! | 10, 11 | – | reserved: damage |
//! | n ≥ 12, even | (n − 12) / 2 | BLOB |
//! | n ≥ 13, odd | (n − 13) / 2 | TEXT in the database's encoding |
//!
//! Invariant: header length and serial types are varints; the header's length counts itself.
//!
//! Source: <https://sqlite.org/fileformat2.html>, section 2.1.

use super::bytes::varint;
use super::{TextEncoding, Value};

/// Why a record cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header does not end within the payload.
    #[error("record header past end of payload")]
    Header,
    /// A serial type that the format reserves.
    #[error("reserved serial type {0}")]
    SerialType(u64),
    /// A value does not end within the payload.
    #[error("value {0} past end of payload")]
    Value(usize),
}

/// Iterates over the values of a record.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    types: &'a [u8],
    body: &'a [u8],
    encoding: TextEncoding,
    index: usize,
}

impl<'a> Record<'a> {
    /// Splits a payload into header and body.
    ///
    /// # Errors
    /// [`RecordError::Header`] when the header's length is wrong.
    pub fn new(payload: &'a [u8], encoding: TextEncoding) -> Result<Record<'a>, RecordError> {
        let (header_bytes, length) = varint(payload).ok_or(RecordError::Header)?;
        let header_bytes = usize::try_from(header_bytes).map_err(|_| RecordError::Header)?;
        let types = payload.get(length..header_bytes).ok_or(RecordError::Header)?;
        let body = payload.get(header_bytes..).ok_or(RecordError::Header)?;
        Ok(Record { types, body, encoding, index: 0 })
    }

    #[inline]
    fn step(&mut self) -> Result<Option<Value>, RecordError> {
        if self.types.is_empty() {
            return Ok(None);
        }
        let (serial, length) = varint(self.types).ok_or(RecordError::Header)?;
        self.types = self.types.get(length..).unwrap_or(&[]);
        let bytes = match serial {
            0 | 8 | 9 => 0,
            1..=4 => serial as usize,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return Err(RecordError::SerialType(serial)),
            n => usize::try_from((n - 12) / 2).map_err(|_| RecordError::Value(self.index))?,
        };
        let (content, rest) = self.body.split_at_checked(bytes).ok_or(RecordError::Value(self.index))?;
        self.body = rest;
        self.index += 1;
        Ok(Some(match serial {
            0 => Value::Null,
            8 => Value::Integer(0),
            9 => Value::Integer(1),
            1..=6 => Value::Integer(signed(content)),
            7 => {
                let real = f64::from_bits(signed(content) as u64);
                // SQLite never stores NaN, and reads one that somebody else stored as NULL.
                if real.is_nan() { Value::Null } else { Value::Real(real) }
            }
            n if n % 2 == 0 => Value::Blob(content.to_vec()),
            _ => Value::Text(text(content, self.encoding)),
        }))
    }
}

impl Iterator for Record<'_> {
    type Item = Result<Value, RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step().transpose();
        if matches!(item, Some(Err(_))) {
            // What follows a damaged field has no known place.
            self.types = &[];
        }
        item
    }
}

#[inline]
fn signed(bytes: &[u8]) -> i64 {
    match *bytes {
        [a] => i64::from(a as i8),
        [a, b] => i64::from(i16::from_be_bytes([a, b])),
        [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => i64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => {
            let negative = bytes.first().is_some_and(|byte| byte & 0x80 != 0);
            bytes.iter().fold(if negative { -1i64 } else { 0 }, |value, byte| value << 8 | i64::from(*byte))
        }
    }
}

/// Text as UTF-8 bytes, whatever the database's encoding.
fn text(bytes: &[u8], encoding: TextEncoding) -> Vec<u8> {
    let from_pair = match encoding {
        TextEncoding::Utf8 => return bytes.to_vec(),
        TextEncoding::Utf16Le => u16::from_le_bytes,
        TextEncoding::Utf16Be => u16::from_be_bytes,
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
