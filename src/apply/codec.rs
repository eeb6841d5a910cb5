//! Rows and keys as bytes, for `state.db` and for digests. Nobody else reads them.
//!
//! ```text
//! value   0x00 NULL | 0x01 zigzag varint | 0x02 8 bytes big-endian float | 0x03 varint length, text | 0x04 varint length, blob
//! row     varint count, values
//! key     0x00 zigzag varint rowid | 0x01 row
//! ```
//!
//! Invariant: equal bytes exactly for rows whose values are equal as [`Value`] defines it.

use super::error::ApplyError;
use crate::change::RowKey;
use crate::format::{Row, Value};

const DAMAGED: ApplyError = ApplyError::Damaged { what: "an encoded row" };

pub(super) fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn push_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn push_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(0),
        Value::Integer(v) => {
            out.push(1);
            push_varint(out, zigzag(*v));
        }
        Value::Real(v) => {
            out.push(2);
            out.extend_from_slice(&v.to_bits().to_be_bytes());
        }
        Value::Text(bytes) => push_bytes(out, 3, bytes),
        Value::Blob(bytes) => push_bytes(out, 4, bytes),
    }
}

pub(super) fn push_row(out: &mut Vec<u8>, row: &[Value]) {
    push_varint(out, row.len() as u64);
    row.iter().for_each(|value| push_value(out, value));
}

pub(super) fn push_key(out: &mut Vec<u8>, key: &RowKey) {
    match key {
        RowKey::Rowid(rowid) => {
            out.push(0);
            push_varint(out, zigzag(*rowid));
        }
        RowKey::Columns(values) => {
            out.push(1);
            push_row(out, values);
        }
    }
}

/// Reads what the functions above wrote.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes }
    }

    pub(super) fn byte(&mut self) -> Result<u8, ApplyError> {
        let (first, rest) = self.bytes.split_first().ok_or(DAMAGED)?;
        self.bytes = rest;
        Ok(*first)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ApplyError> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(DAMAGED)?;
        self.bytes = rest;
        Ok(taken)
    }

    pub(super) fn varint(&mut self) -> Result<u64, ApplyError> {
        let mut value = 0_u64;
        // Ten groups of seven bits hold any 64-bit number.
        for group in 0..10 {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * group);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DAMAGED)
    }

    fn signed(&mut self) -> Result<i64, ApplyError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Bytes that their count stands before.
    pub(super) fn counted(&mut self) -> Result<&'a [u8], ApplyError> {
        let count = usize::try_from(self.varint()?).map_err(|_| DAMAGED)?;
        self.take(count)
    }

    /// What was not read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) fn value(&mut self) -> Result<Value, ApplyError> {
        Ok(match self.byte()? {
            0 => Value::Null,
            1 => Value::Integer(self.signed()?),
            2 => {
                let bytes = *self.take(8)?.first_chunk::<8>().ok_or(DAMAGED)?;
                Value::Real(f64::from_bits(u64::from_be_bytes(bytes)))
            }
            3 => Value::Text(self.counted()?.to_vec()),
            4 => Value::Blob(self.counted()?.to_vec()),
            _ => return Err(DAMAGED),
        })
    }

    pub(super) fn row(&mut self) -> Result<Row, ApplyError> {
        let count = self.varint()?;
        // SQLite's hard limit of columns; a larger count is damage, and must not become an allocation.
        if count > 32_767 {
            return Err(DAMAGED);
        }
        (0..count).map(|_| self.value()).collect()
    }

    pub(super) fn key(&mut self) -> Result<RowKey, ApplyError> {
        match self.byte()? {
            0 => Ok(RowKey::Rowid(self.signed()?)),
            1 => Ok(RowKey::Columns(self.row()?)),
            _ => Err(DAMAGED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_survives() {
        let row = vec![
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Integer(i64::MAX),
            Value::Integer(-1),
            Value::Real(-0.0),
            Value::Real(f64::INFINITY),
            Value::Text(vec![0xff, 0, b'a']),
            Value::Text(Vec::new()),
            Value::Blob(Vec::new()),
        ];
        let mut bytes = Vec::new();
        push_row(&mut bytes, &row);
        push_key(&mut bytes, &RowKey::Rowid(-7));
        push_key(&mut bytes, &RowKey::Columns(row.clone()));
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.row().unwrap(), row);
        assert_eq!(reader.key().unwrap(), RowKey::Rowid(-7));
        assert_eq!(reader.key().unwrap(), RowKey::Columns(row));
        assert!(reader.byte().is_err());
    }
}
