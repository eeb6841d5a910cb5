//! What came of a comparison.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::wire::unhex;
use crate::apply::FoldRow;

/// What came of comparing the nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The nodes that were compared.
    pub nodes: Vec<u64>,
    /// Those that were not, with the reason.
    pub missing: BTreeMap<u64, String>,
    /// The last message of each shard that their rows come from.
    pub applied: BTreeMap<u16, u64>,
    /// Every table that any of them has, by name.
    pub tables: Vec<TableReport>,
    /// Bytes of all answers.
    pub answer_bytes: u64,
    /// The longest time that a node kept its application's log from beginning anew for the digests.
    pub read_ms: u64,
    /// How long it took altogether.
    pub took_ms: u64,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// Its name.
    pub table: String,
    /// How many rows each node has.
    pub rows: BTreeMap<u64, u64>,
    /// What was found.
    pub verdict: TableVerdict,
}

/// Whether a table is the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableVerdict {
    /// It is.
    Equal,
    /// It is not.
    Different {
        /// What else is to be said, such as the node that has no such table; empty for nothing.
        why: String,
        /// Rows that differ, as many as are shown.
        differing: Vec<DifferingRow>,
        /// Whether there are more.
        more: bool,
        /// The names of columns.
        columns: Vec<String>,
        /// Those of the key, as indexes; empty where it is the rowid.
        key: Vec<u16>,
    },
    /// Nobody knows.
    Inconclusive {
        /// Why.
        why: String,
    },
}

/// A row that is not the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingRow {
    /// Its key, encoded.
    pub(super) key: String,
    /// What each node has, encoded; `None` for no row, empty for one that is too large to be shown.
    pub(super) rows: BTreeMap<u64, Option<String>>,
}

/// What one node has of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowThere {
    /// No such row.
    None,
    /// One that is too large to be shown.
    Large,
    /// This.
    Row(FoldRow),
}

impl DifferingRow {
    /// What each node has; at least one has the row. `None` when a node sent what is no row.
    #[must_use]
    pub fn rows(&self) -> Option<BTreeMap<u64, RowThere>> {
        let key = unhex(&self.key)?;
        let row_there = |row: &Option<String>| match row {
            None => Some(RowThere::None),
            Some(row) if row.is_empty() => Some(RowThere::Large),
            Some(row) => Some(RowThere::Row(FoldRow { key: key.clone(), row: unhex(row)? })),
        };
        self.rows.iter().map(|(node, row)| Some((*node, row_there(row)?))).collect()
    }

    /// Its key, as the key of a row without columns.
    #[must_use]
    pub fn key(&self) -> Option<FoldRow> {
        const NO_COLUMNS: u8 = 0;
        Some(FoldRow { key: unhex(&self.key)?, row: vec![NO_COLUMNS] })
    }
}

impl TableReport {
    /// Whether it differs.
    #[must_use]
    pub fn is_different(&self) -> bool {
        matches!(self.verdict, TableVerdict::Different { .. })
    }
}

impl VerifyReport {
    /// Whether a table differs.
    #[must_use]
    pub fn is_different(&self) -> bool {
        self.tables.iter().any(TableReport::is_different)
    }

    /// Whether every node and every table was compared, and there was something to compare with.
    #[must_use]
    pub fn is_conclusive(&self) -> bool {
        let known = |table: &TableReport| !matches!(table.verdict, TableVerdict::Inconclusive { .. });
        self.missing.is_empty() && self.nodes.len() > 1 && self.tables.iter().all(known)
    }
}
