//! What a transaction did on the whole, as one number that does not depend on the order of its steps.

use std::collections::{HashMap, HashSet};

use super::codec::{push_row, push_varint};
use super::versions::Versions;
use crate::change::{RowChange, SchemaChange, canonical_key};
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
        self.toggle(&version_hash(table, key, row));
    }

    /// Adds a row that is so now. `row` holds the columns that are not generated, in declared order.
    pub fn add_new(&mut self, table: &str, key: &[u8], row: &[Value]) {
        self.toggle(&version_hash(table, key, row));
    }

    /// Adds both sides of a captured change.
    pub fn add_change(&mut self, change: &RowChange) {
        let (before, after) = hashes_of(change);
        before.iter().chain(&after).for_each(|hash| self.toggle(hash));
    }

    /// Both together.
    pub(super) fn merge(&mut self, other: &NetEffect) {
        self.digest.iter_mut().zip(other.digest).for_each(|(ours, theirs)| *ours ^= theirs);
    }

    fn toggle(&mut self, hash: &blake3::Hash) {
        self.digest.iter_mut().zip(hash.as_bytes()).for_each(|(ours, theirs)| *ours ^= theirs);
    }
}

/// What a transaction did to the schema: the definitions that went and came. One that goes and comes again cancels itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SchemaEffect {
    /// Kind, name in lower case, and CREATE statement.
    definitions: HashSet<(String, String, String)>,
}

impl SchemaEffect {
    /// Whether no definition went or came, or each came again.
    pub(super) fn is_empty(&self) -> bool {
        self.definitions.is_empty()
    }

    /// A definition that went or came.
    pub(super) fn toggle(&mut self, kind: &str, name: &str, sql: &str) {
        let definition = (kind.to_owned(), name.to_ascii_lowercase(), sql.to_owned());
        if !self.definitions.remove(&definition) {
            self.definitions.insert(definition);
        }
    }

    /// Both sides of a captured change.
    pub(super) fn add_change(&mut self, change: &SchemaChange) {
        if let Some(before) = &change.before {
            self.toggle(&change.kind, change.name_before.as_ref().unwrap_or(&change.name), before);
        }
        if let Some(after) = &change.after {
            self.toggle(&change.kind, &change.name, after);
        }
    }

    /// What came of both.
    pub(super) fn merge(&mut self, other: &SchemaEffect) {
        for (kind, name, sql) in &other.definitions {
            self.toggle(kind, name, sql);
        }
    }

    /// Together with what was done to the rows of each table, by name in lower case. Those of tables that are defined anew do not count: what
    /// their rows were depends on who looks. Nor do those of tables that came and went: whoever reads the transaction does not hear of them.
    pub(super) fn with_rows(&self, rows: &HashMap<String, NetEffect>, touched: &TouchedTables) -> NetEffect {
        let mut all: Vec<_> = self.definitions.iter().collect();
        all.sort();
        let mut net = NetEffect::new();
        // Rows that went with a table that came back as it was are in no account: this is not the effect of nothing.
        if !all.is_empty() || touched.has_left {
            let mut hasher = blake3::Hasher::new();
            for text in all.iter().flat_map(|(kind, name, sql)| [kind, name, sql]) {
                hasher.update(text.as_bytes()).update(&[0]);
            }
            net = NetEffect::from_digest(*hasher.finalize().as_bytes());
        }
        let is_defined = |table: &String| all.iter().any(|(kind, name, _)| kind == "table" && name == table);
        let is_new = |table: &&String| touched.gone.contains(*table) || is_defined(table);
        for effect in rows.iter().filter(|(table, _)| !is_new(table)).map(|(_, effect)| effect) {
            net.merge(effect);
        }
        net
    }
}

/// The tables whose definitions steps have touched, whatever came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TouchedTables {
    /// Those that are not there afterwards, in lower case.
    pub(super) gone: HashSet<String>,
    /// Whether others are.
    pub(super) has_left: bool,
}

/// What a fold does to rows: the whole, and one by one.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) net: NetEffect,
    pub(super) versions: Versions,
    /// By table, in lower case; kept only where the schema may change.
    by_table: Option<HashMap<String, NetEffect>>,
}

impl Account {
    /// Keeps tables apart from here on.
    pub(super) fn keep_tables_apart(&mut self) {
        self.by_table.get_or_insert_default();
    }

    pub(super) fn by_table(&self) -> Option<&HashMap<String, NetEffect>> {
        self.by_table.as_ref()
    }

    fn toggle(&mut self, table: &str, hash: &blake3::Hash) {
        self.net.toggle(hash);
        if let Some(by_table) = &mut self.by_table {
            by_table.entry(table.to_ascii_lowercase()).or_default().toggle(hash);
        }
    }

    pub(super) fn add_old(&mut self, table: &str, key: &[u8], row: &[Value]) {
        let hash = version_hash(table, key, row);
        self.toggle(table, &hash);
        self.versions.add_gone(&hash);
    }

    pub(super) fn add_new(&mut self, table: &str, key: &[u8], row: &[Value]) {
        let hash = version_hash(table, key, row);
        self.toggle(table, &hash);
        self.versions.add_came(&hash);
    }
}

/// The versions of its row that a change takes away and brings.
pub(super) fn hashes_of(change: &RowChange) -> (Option<blake3::Hash>, Option<blake3::Hash>) {
    let key = canonical_key(&change.table, &change.key);
    let is_generated = change.table.columns.iter().any(|column| column.generated);
    let hash = |image: &Row| {
        if is_generated {
            version_hash(&change.table.name, &key, &written(&change.table, image))
        } else {
            version_hash(&change.table.name, &key, image)
        }
    };
    (change.before.as_ref().map(hash), change.after.as_ref().map(hash))
}

fn version_hash(table: &str, key: &[u8], row: &[Value]) -> blake3::Hash {
    let of_values = row.iter().map(|value| 11 + value.heap_bytes()).sum::<usize>();
    let mut bytes = Vec::with_capacity(table.len() + key.len() + of_values + 24);
    push_varint(&mut bytes, table.len() as u64);
    bytes.extend(table.bytes().map(|byte| byte.to_ascii_lowercase()));
    push_varint(&mut bytes, key.len() as u64);
    bytes.extend_from_slice(key);
    push_row(&mut bytes, row);
    blake3::hash(&bytes)
}

/// The values of a row that are not generated: those that travel and that can be written.
pub(super) fn written(table: &Table, row: &[Value]) -> Row {
    table.columns.iter().zip(row).filter(|(column, _)| !column.generated).map(|(_, value)| value.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The one that writes an intent makes every step, and the one that finds it sees the outcome.
    #[test]
    fn a_table_that_came_and_went_leaves_no_trace_and_one_that_is_there_again_does() {
        let mut made = SchemaEffect::default();
        made.toggle("table", "t9", "CREATE TABLE t9(a)");
        made.toggle("table", "T9", "CREATE TABLE t9(a)");
        let (mut row, mut of_t9) = (NetEffect::new(), NetEffect::new());
        row.add_new("t", b"k", &[Value::Integer(1)]);
        of_t9.add_new("t9", b"k", &[Value::Integer(1)]);
        let intended = HashMap::from([("t".to_owned(), row), ("t9".to_owned(), of_t9)]);
        let found = HashMap::from([("t".to_owned(), row)]);
        let gone = TouchedTables { gone: HashSet::from(["t9".to_owned()]), has_left: false };
        assert_eq!(made.with_rows(&intended, &gone), row);
        assert_eq!(SchemaEffect::default().with_rows(&found, &gone), row);
        // Its former rows are gone, and no account has them.
        let again = TouchedTables { gone: HashSet::new(), has_left: true };
        assert!(!made.with_rows(&HashMap::new(), &again).is_zero());
        assert_ne!(made.with_rows(&found, &again), made.with_rows(&intended, &again));
    }

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
