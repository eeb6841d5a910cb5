//! Row identity: which keys name the same row.
//!
//! Invariant: two keys of a table have the same canonical bytes exactly when SQLite's key comparison calls them equal (custom collations
//! are compared as BINARY, which is never coarser than what tells stored rows apart).

use super::row::RowKey;
use crate::format::{Row, Value, ValueRef};
use crate::schema::{Collation, Identity, KeyColumn, RowView, Table};

/// The key of a row of `table`. `rowid` is `None` for WITHOUT ROWID tables only.
#[must_use]
pub fn row_key(table: &Table, row: &Row, rowid: Option<i64>) -> RowKey {
    key_of(table, |column| row.get(column).map(ValueRef::from), rowid)
}

/// As [`row_key`], of a row whose columns are asked for.
pub(crate) fn key_of<'v>(table: &Table, value: impl Fn(usize) -> Option<ValueRef<'v>>, rowid: Option<i64>) -> RowKey {
    let owned = |column: usize| value(column).map_or(Value::Null, ValueRef::to_value);
    let values = |columns: &[KeyColumn]| -> Vec<Value> { columns.iter().map(|key| owned(key.column)).collect() };
    match (&table.identity, rowid) {
        (Identity::RowidAlias(column), _) => RowKey::Columns(vec![owned(*column)]),
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
        RowKey::Rowid(rowid) => push_rowid(&mut out, *rowid),
        RowKey::Columns(values) => {
            for (index, value) in values.iter().enumerate() {
                push_value(&mut out, value.into(), collation_at(table, index));
            }
        }
    }
    out
}

/// Writes the canonical key of a row into `out`, in place of what is there: what [`canonical_key`] gives for its [`row_key`].
pub(crate) fn canonical_of(table: &Table, row: &RowView<'_>, rowid: Option<i64>, out: &mut Vec<u8>) {
    out.clear();
    let value = |column: usize| row.get(column).unwrap_or(ValueRef::Null);
    match (&table.identity, rowid) {
        (Identity::RowidAlias(column), _) => push_value(out, value(*column), &Collation::Binary),
        (Identity::Declared(columns), Some(rowid)) if columns.iter().any(|key| value(key.column).is_null()) => {
            push_rowid(out, rowid);
        }
        (Identity::Declared(columns), _) => {
            columns.iter().for_each(|key| push_value(out, value(key.column), &key.collation));
        }
        (Identity::Rowid, rowid) => push_rowid(out, rowid.unwrap_or_default()),
    }
}

/// Whether the key columns of two rows hold the very same values, which are no NULL: such rows have one key. Others may have one, too.
pub(crate) fn keys_identical(columns: &[KeyColumn], a: &RowView<'_>, b: &RowView<'_>) -> bool {
    columns.iter().all(|key| match (a.get(key.column), b.get(key.column)) {
        (Some(a), Some(b)) => !a.is_null() && a == b,
        _ => false,
    })
}

fn collation_at(table: &Table, index: usize) -> &Collation {
    let collation = match &table.identity {
        Identity::Declared(columns) => columns.get(index).map(|column| &column.collation),
        Identity::RowidAlias(_) | Identity::Rowid => None,
    };
    collation.unwrap_or(&Collation::Binary)
}

fn push_rowid(out: &mut Vec<u8>, rowid: i64) {
    out.push(b'r');
    out.extend_from_slice(&rowid.to_be_bytes());
}

fn push_value(out: &mut Vec<u8>, value: ValueRef<'_>, collation: &Collation) {
    match value {
        ValueRef::Null => out.push(b'n'),
        ValueRef::Integer(v) => {
            out.push(b'i');
            out.extend_from_slice(&v.to_be_bytes());
        }
        // SQLite calls 1 and 1.0 equal, so they are one key.
        ValueRef::Real(v) => match exact_integer(v) {
            Some(integer) => push_value(out, ValueRef::Integer(integer), collation),
            None => {
                out.push(b'f');
                out.extend_from_slice(&v.to_bits().to_be_bytes());
            }
        },
        ValueRef::Text(bytes) => {
            out.push(b't');
            match collation {
                Collation::Binary | Collation::Custom(_) => push_bytes(out, bytes),
                Collation::NoCase => push_bytes(out, &bytes.to_ascii_lowercase()),
                Collation::RTrim => push_bytes(out, without_spaces(bytes)),
            }
        }
        ValueRef::Blob(bytes) => {
            out.push(b'b');
            push_bytes(out, bytes);
        }
    }
}

/// What RTRIM compares.
pub(crate) fn without_spaces(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    bytes.get(..end).unwrap_or(bytes)
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
