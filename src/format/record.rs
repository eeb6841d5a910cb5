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
use super::{TextEncoding, Value, ValueRef};

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

/// What a field is, and where the bytes of a text or a BLOB stand in the payload. It borrows nothing, so that a buffer of fields serves one
/// record after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Field {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A float, never NaN.
    Real(f64),
    /// Text, in the database's encoding.
    Text {
        /// Offset of the first byte.
        start: u32,
        /// Length in bytes.
        bytes: u32,
    },
    /// Bytes.
    Blob {
        /// Offset of the first byte.
        start: u32,
        /// Length in bytes.
        bytes: u32,
    },
}

/// Iterates over the fields of a record without copying any.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    payload: &'a [u8],
    types: &'a [u8],
    /// Length of the whole payload, of which `payload` may be the beginning.
    end: usize,
    at: usize,
    index: usize,
}

impl<'a> Fields<'a> {
    /// Begins before the first field.
    ///
    /// # Errors
    /// [`RecordError::Header`] when the header's length is wrong.
    #[inline]
    pub fn new(payload: &'a [u8]) -> Result<Fields<'a>, RecordError> {
        let (header_bytes, length) = varint(payload).ok_or(RecordError::Header)?;
        let header_bytes = usize::try_from(header_bytes).map_err(|_| RecordError::Header)?;
        let types = payload.get(length..header_bytes).ok_or(RecordError::Header)?;
        Ok(Fields { payload, types, end: payload.len(), at: header_bytes, index: 0 })
    }

    /// As [`Fields::new`] where `payload` is only the beginning: a text that goes on behind its end is a field all the same.
    ///
    /// # Errors
    /// [`RecordError::Header`] when the header does not end within the beginning.
    pub fn of_beginning(payload: &'a [u8]) -> Result<Fields<'a>, RecordError> {
        Ok(Fields { end: u32::MAX as usize, ..Fields::new(payload)? })
    }

    #[inline]
    fn step(&mut self) -> Result<Option<Field>, RecordError> {
        let Some(first) = self.types.first() else { return Ok(None) };
        let (serial, length) = match *first {
            // Nearly all of them: 13 + 2 × 57 is the largest text that one byte can say.
            byte if byte < 0x80 => (u64::from(byte), 1),
            _ => varint(self.types).ok_or(RecordError::Header)?,
        };
        self.types = self.types.get(length..).unwrap_or(&[]);
        let start = self.at;
        let past_end = RecordError::Value(self.index);
        let field = match serial {
            0 => Field::Null,
            8 => Field::Integer(0),
            9 => Field::Integer(1),
            10 | 11 => return Err(RecordError::SerialType(serial)),
            1..=7 => {
                let bytes = match serial {
                    1..=4 => serial as usize,
                    5 => 6,
                    _ => 8,
                };
                let content = self.payload.get(start..start + bytes).ok_or(past_end)?;
                self.at += bytes;
                match serial {
                    7 => {
                        let real = f64::from_bits(signed(content) as u64);
                        // SQLite never stores NaN, and reads one that somebody else stored as NULL.
                        if real.is_nan() { Field::Null } else { Field::Real(real) }
                    }
                    _ => Field::Integer(signed(content)),
                }
            }
            _ => {
                let bytes = u32::try_from((serial - 12) / 2).map_err(|_| past_end)?;
                let end = start.checked_add(bytes as usize).filter(|end| *end <= self.end).ok_or(past_end)?;
                let start = u32::try_from(start).map_err(|_| past_end)?;
                self.at = end;
                if serial % 2 == 0 { Field::Blob { start, bytes } } else { Field::Text { start, bytes } }
            }
        };
        self.index += 1;
        Ok(Some(field))
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<Field, RecordError>;

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

impl Field {
    /// The field's value in the payload that it was read from; of a payload that ends within it, what is there. Text is in the database's
    /// encoding.
    #[inline]
    #[must_use]
    pub fn value(self, payload: &[u8]) -> ValueRef<'_> {
        let content = |start: u32, bytes: u32| {
            let (start, end) = (start as usize, start as usize + bytes as usize);
            payload.get(start..end).or_else(|| payload.get(start..)).unwrap_or(&[])
        };
        match self {
            Field::Null => ValueRef::Null,
            Field::Integer(v) => ValueRef::Integer(v),
            Field::Real(v) => ValueRef::Real(v),
            Field::Text { start, bytes } => ValueRef::Text(content(start, bytes)),
            Field::Blob { start, bytes } => ValueRef::Blob(content(start, bytes)),
        }
    }
}

/// Iterates over the values of a record.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    fields: Fields<'a>,
    encoding: TextEncoding,
}

impl<'a> Record<'a> {
    /// Splits a payload into header and body.
    ///
    /// # Errors
    /// [`RecordError::Header`] when the header's length is wrong.
    pub fn new(payload: &'a [u8], encoding: TextEncoding) -> Result<Record<'a>, RecordError> {
        Ok(Record { fields: Fields::new(payload)?, encoding })
    }
}

impl Iterator for Record<'_> {
    type Item = Result<Value, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = self.fields.next()?;
        Some(field.map(|field| match field.value(self.fields.payload) {
            ValueRef::Text(bytes) if self.encoding != TextEncoding::Utf8 => {
                let mut out = Vec::with_capacity(bytes.len());
                text(bytes, self.encoding, &mut out);
                Value::Text(out)
            }
            value => value.to_value(),
        }))
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

/// Appends text as UTF-8 bytes, whatever the database's encoding.
pub(crate) fn text(bytes: &[u8], encoding: TextEncoding, out: &mut Vec<u8>) {
    let from_pair = match encoding {
        TextEncoding::Utf8 => return out.extend_from_slice(bytes),
        TextEncoding::Utf16Le => u16::from_le_bytes,
        TextEncoding::Utf16Be => u16::from_be_bytes,
    };
    let (pairs, _) = bytes.as_chunks::<2>();
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
}
