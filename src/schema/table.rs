//! What is known of one table.

use std::sync::Arc;

use super::strict::StrictType;
use crate::format::{PageNo, Value};

/// The affinity of a column: how SQLite converts what is written to it and, for REAL, what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// No conversion (BLOB affinity, and `ANY` of STRICT tables).
    None,
    /// TEXT affinity.
    Text,
    /// NUMERIC affinity.
    Numeric,
    /// INTEGER affinity.
    Integer,
    /// REAL affinity: integers in the record are read as floats.
    Real,
}

/// How a key column compares. Two keys that are equal under it name the same row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collation {
    /// memcmp.
    Binary,
    /// ASCII letters without case.
    NoCase,
    /// Trailing spaces do not count.
    RTrim,
    /// Defined by the application; compared here as BINARY.
    Custom(String),
}

/// A column that is stored in the table's records. (Virtual generated columns are not.)
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// The name as declared.
    pub name: String,
    /// The declared type, empty when there is none.
    pub declared_type: String,
    /// The affinity that the declared type gives.
    pub affinity: Affinity,
    /// What records that are too short for this column mean (ALTER TABLE ADD COLUMN rewrites nothing).
    pub default: Value,
    /// It cannot hold NULL.
    pub not_null: bool,
    /// The values that it takes, of a STRICT table; `None` where it takes all.
    pub strict: Option<StrictType>,
    /// A STORED generated column: in the record, but not to be written by anybody.
    pub generated: bool,
}

/// One column of a declared PRIMARY KEY or a UNIQUE index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Index into [`Table::columns`].
    pub column: usize,
    /// The collation under which it is unique.
    pub collation: Collation,
}

/// What tells one row of a table from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// INTEGER PRIMARY KEY: this column is the rowid.
    RowidAlias(usize),
    /// A declared PRIMARY KEY. A row of a rowid table with NULL in it falls back to its rowid.
    Declared(Vec<KeyColumn>),
    /// No key: the hidden rowid, which differs from node to node when several write.
    Rowid,
}

/// A UNIQUE constraint or index beyond the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueIndex {
    /// The index's name.
    pub name: String,
    /// The columns with the collations under which they are unique; `None` where the index has an expression, a virtual column or a
    /// WHERE clause.
    pub columns: Option<Vec<KeyColumn>>,
}

/// An ordinary table, with or without rowid; or a virtual one whose rows stand as they are in a shadow table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The name as declared. SQLite compares names without ASCII case.
    pub name: String,
    /// The name by which rows are routed, where that is another one: the first that the table had on the log.
    pub first_name: Option<String>,
    /// The CREATE TABLE statement; empty for `sqlite_schema`.
    pub sql: String,
    /// The root page of the tree that holds the rows.
    pub root: PageNo,
    /// The stored columns in declared order: a row's values stand in this order.
    pub columns: Vec<Column>,
    /// For each field of a record, the column it belongs to. (WITHOUT ROWID records begin with the key.)
    pub record_columns: Vec<usize>,
    /// What tells rows apart.
    pub identity: Identity,
    /// Whether the rows live in an index-shaped tree.
    pub without_rowid: bool,
    /// Name by which SQL can reach the rowid (`rowid`, `_rowid_` or `oid`), unless columns hide all three or there is none.
    pub rowid_name: Option<&'static str>,
    /// Whether the table keeps its largest rowid in `sqlite_sequence`.
    pub autoincrement: bool,
    /// The virtual table whose content this table holds. Its rows are that table's business and do not travel by themselves.
    pub shadow_of: Option<String>,
    /// The virtual table that shows the rows of this one: they travel as its rows. Each is without the first column here, which is the rowid there.
    pub shown_by: Option<Arc<Table>>,
    /// It is a virtual table: SQL knows no upsert for it.
    pub is_virtual: bool,
    /// UNIQUE constraints and indexes beyond the key.
    pub uniques: Vec<UniqueIndex>,
}

impl Table {
    /// Index of the column with this name, compared as SQLite compares names.
    #[must_use]
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// Whether the table belongs to SQLite (`sqlite_sequence`, `sqlite_stat1` …) and so follows from others or is local to a node.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("sqlite_"))
    }
}
