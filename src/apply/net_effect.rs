//! What a transaction did on the whole, as one number that does not depend on the order of its steps.

use super::codec::{push_row, push_varint};
use crate::change::{RowChange, canonical_key};
use crate::format::{Row, Value};
use crate::schema::Table;

/// Digest of a set of row versions that went and came: the XOR of `blake3(table, canonical key, row)` over all of them.
///
/// A version that comes and goes again cancels itself, so steps between the first and the last state of a row leave no trace. Generated
/// columns do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetEffect {
    digest: [u8; 32],
}

impl NetEffect {
    /// The effect of nothing.
    #[must_use]
    pub fn new() -> NetEffect {
        NetEffect::default()
    }

    /// Restores an effect from its digest.
    #[must_use]
    pub fn from_digest(digest: [u8; 32]) -> NetEffect {
        NetEffect { digest }
    }

    /// Whether the rows are as they were.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.digest == [0; 32]
    }

    /// The digest; all zero for no effect.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Adds a row that is no longer so. `row` holds the columns that are not generated, in declared order.
    pub fn add_old(&mut self, table: &str, key: &[u8], row: &[Value]) {
        self.toggle(table, key, row);
    }

    /// Adds a row that is so now. `row` holds the columns that are not generated, in declared order.
    pub fn add_new(&mut self, table: &str, key: &[u8], row: &[Value]) {
        self.toggle(table, key, row);
    }

    /// Adds both sides of a captured change.
    pub fn add_change(&mut self, change: &RowChange) {
        let key = canonical_key(&change.table, &change.key);
        for image in [&change.before, &change.after].into_iter().flatten() {
            if change.table.columns.iter().any(|column| column.generated) {
                self.toggle(&change.table.name, &key, &written(&change.table, image));
            } else {
                self.toggle(&change.table.name, &key, image);
            }
        }
    }

    fn toggle(&mut self, table: &str, key: &[u8], row: &[Value]) {
        let mut bytes = Vec::with_capacity(table.len() + key.len() + 16 * row.len() + 16);
        push_varint(&mut bytes, table.len() as u64);
        bytes.extend(table.bytes().map(|byte| byte.to_ascii_lowercase()));
        push_varint(&mut bytes, key.len() as u64);
        bytes.extend_from_slice(key);
        push_row(&mut bytes, row);
        let hash = blake3::hash(&bytes);
        self.digest.iter_mut().zip(hash.as_bytes()).for_each(|(ours, theirs)| *ours ^= theirs);
    }
}

/// The values of a row that are not generated: those that travel and that can be written.
pub(super) fn written(table: &Table, row: &[Value]) -> Row {
    table.columns.iter().zip(row).filter(|(column, _)| !column.generated).map(|(_, value)| value.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_between_first_and_last_leave_no_trace() {
        let row = |n| vec![Value::Integer(n)];
        let mut long = NetEffect::new();
        long.add_old("t", b"k", &row(1));
        long.add_new("T", b"k", &row(2));
        long.add_old("t", b"k", &row(2));
        long.add_new("t", b"k", &row(3));
        let mut short = NetEffect::new();
        short.add_new("t", b"k", &row(3));
        assert_ne!(long, short);
        short.add_old("t", b"k", &row(1));
        assert_eq!(long, short);
        assert!(!long.is_zero());
    }
}
