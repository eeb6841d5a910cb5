//! Row identity: which keys name the same row.
//!
//! Invariant: two keys of a table have the same canonical bytes exactly when SQLite's key comparison calls them equal (custom collations
//! are compared as BINARY, which is never coarser than what tells stored rows apart).

use super::row::RowKey;
use crate::format::{Row, Value};
use crate::schema::{Collation, Identity, KeyColumn, Table};

/// The key of a row of `table`. `rowid` is `None` for WITHOUT ROWID tables only.
#[must_use]
pub fn row_key(table: &Table, row: &Row, rowid: Option<i64>) -> RowKey {
    let values = |columns: &[KeyColumn]| -> Vec<Value> {
        columns.iter().map(|key| row.get(key.column).cloned().unwrap_or(Value::Null)).collect()
    };
    match (&table.identity, rowid) {
        (Identity::RowidAlias(column), _) => RowKey::Columns(vec![row.get(*column).cloned().unwrap_or(Value::Null)]),
        (Identity::Declared(columns), None) => RowKey::Columns(values(columns)),
        (Identity::Declared(columns), Some(rowid)) => {
            let key = values(columns);
            if key.iter().any(Value::is_null) { RowKey::Rowid(rowid) } else { RowKey::Columns(key) }
        }
        (Identity::Rowid, rowid) => RowKey::Rowid(rowid.unwrap_or_default()),
    }
}

/// Bytes that are equal for keys that name the same row of `table`, on every node. Table names are not part of them.
#[must_use]
pub fn canonical_key(table: &Table, key: &RowKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    match key {
        RowKey::Rowid(rowid) => {
            out.push(b'r');
            out.extend_from_slice(&rowid.to_be_bytes());
        }
        RowKey::Columns(values) => {
            for (index, value) in values.iter().enumerate() {
                let collation = match &table.identity {
                    Identity::Declared(columns) => columns.get(index).map(|column| &column.collation),
                    Identity::RowidAlias(_) | Identity::Rowid => None,
                };
                push_value(&mut out, value, collation.unwrap_or(&Collation::Binary));
            }
        }
    }
    out
}

fn push_value(out: &mut Vec<u8>, value: &Value, collation: &Collation) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Integer(v) => {
            out.push(b'i');
            out.extend_from_slice(&v.to_be_bytes());
        }
        // SQLite calls 1 and 1.0 equal, so they are one key.
        Value::Real(v) => match exact_integer(*v) {
            Some(integer) => push_value(out, &Value::Integer(integer), collation),
            None => {
                out.push(b'f');
                out.extend_from_slice(&v.to_bits().to_be_bytes());
            }
        },
        Value::Text(bytes) => {
            out.push(b't');
            match collation {
                Collation::Binary | Collation::Custom(_) => push_bytes(out, bytes),
                Collation::NoCase => push_bytes(out, &bytes.to_ascii_lowercase()),
                Collation::RTrim => {
                    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
                    push_bytes(out, bytes.get(..end).unwrap_or(bytes));
                }
            }
        }
        Value::Blob(bytes) => {
            out.push(b'b');
            push_bytes(out, bytes);
        }
    }
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// The integer that SQLite calls equal to this float, if there is one.
fn exact_integer(real: f64) -> Option<i64> {
    // 2^63 as a float is out of range for i64, and a cast would saturate to a number that is not equal.
    let in_range = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&real);
    (in_range && real.fract() == 0.0).then_some(real as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_equal_to_integers_are_the_same_key() {
        assert_eq!(exact_integer(3.0), Some(3));
        assert_eq!(exact_integer(-0.0), Some(0));
        assert_eq!(exact_integer(0.5), None);
        assert_eq!(exact_integer(9_223_372_036_854_775_808.0), None);
        assert_eq!(exact_integer(f64::INFINITY), None);
    }
}
