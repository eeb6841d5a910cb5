//! Row changes and the transactions they belong to.

use std::sync::Arc;

use super::columns::RenamedColumns;
use super::identity::key_of;
use crate::format::{Checksum, FrameNo, PageNo, Row, Salts, Value};
use crate::schema::{RowView, Table};

/// What happened to a row between two versions of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// The row was not there before.
    Insert,
    /// The row was there and has other values now.
    Update,
    /// The row is gone.
    Delete,
}

/// What tells a row from the others of its table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RowKey {
    /// The values of the declared PRIMARY KEY (or of the INTEGER PRIMARY KEY alone), in key order; none is NULL in a rowid table.
    Columns(Vec<Value>),
    /// The rowid: tables without a key, and rows with NULL in a non-integer key.
    Rowid(i64),
}

/// The net change of one row by one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct RowChange {
    /// The table, as it is after the transaction (for deletes of a dropped table: as it was).
    pub table: Arc<Table>,
    /// Insert, update or delete.
    pub op: Op,
    /// The key: of the row after, for deletes of the row before.
    pub key: RowKey,
    /// The rowid after (for deletes: before); `None` in WITHOUT ROWID tables.
    pub rowid: Option<i64>,
    /// The row as it was; `None` for inserts, and where it cannot be known (then `before_unknown` is set).
    pub before: Option<Row>,
    /// The row as it is; `None` for deletes.
    pub after: Option<Row>,
    /// The pages before the change could not be had: whether the row existed, and how, is not known.
    pub before_unknown: bool,
}

impl RowChange {
    /// For each column whether the change altered it. Inserts set all; deletes none; unknown before images count as all.
    #[must_use]
    pub fn changed_columns(&self) -> Vec<bool> {
        match (self.op, &self.before, &self.after) {
            (Op::Delete, _, _) | (_, _, None) => Vec::new(),
            (_, Some(before), Some(after)) if self.op == Op::Update => {
                after.iter().enumerate().map(|(i, value)| before.get(i) != Some(value)).collect()
            }
            (_, _, Some(after)) => vec![true; after.len()],
        }
    }
}

/// The net change of one row, lent for the time of a call: what a [`RowChange`] is, without memory of its own.
#[derive(Debug, Clone, Copy)]
pub struct ChangedRow<'a> {
    /// As [`RowChange::table`].
    pub table: &'a Arc<Table>,
    /// Insert, update or delete.
    pub op: Op,
    /// As [`RowChange::rowid`].
    pub rowid: Option<i64>,
    /// As [`RowChange::before`].
    pub before: Option<RowView<'a>>,
    /// As [`RowChange::after`].
    pub after: Option<RowView<'a>>,
    /// As [`RowChange::before_unknown`].
    pub before_unknown: bool,
}

impl ChangedRow<'_> {
    /// The key: of the row after, for deletes of the row before.
    #[must_use]
    pub fn key(&self) -> RowKey {
        let column = |column| self.after.or(self.before).and_then(|row| row.get(column));
        key_of(self.table, column, self.rowid)
    }

    /// The change with memory of its own.
    #[must_use]
    pub fn to_change(&self) -> RowChange {
        RowChange {
            table: Arc::clone(self.table),
            op: self.op,
            key: self.key(),
            rowid: self.rowid,
            before: self.before.map(|row| row.to_row()),
            after: self.after.map(|row| row.to_row()),
            before_unknown: self.before_unknown,
        }
    }
}

/// A row of `sqlite_schema` that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct SchemaChange {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// The object's name; the last one that it had when it is gone.
    pub name: String,
    /// Its name before, where that is another one.
    pub name_before: Option<String>,
    /// It is, or stands on, a shadow table: the virtual table makes and drops it.
    pub of_shadow: bool,
    /// The table it belongs to.
    pub table: String,
    /// Its CREATE statement before, `None` if it was not there. (Automatic indexes have no statement and are not reported.)
    pub before: Option<String>,
    /// Its CREATE statement after, `None` if it is gone.
    pub after: Option<String>,
    /// Root page of the table that was there before.
    pub root_before: Option<PageNo>,
    /// The columns that have other names, where the statements alone tell it wrong; `None` where each new name in the place of one that is gone
    /// is such a column.
    pub renamed_columns: Option<RenamedColumns>,
    /// Of an index, a view and a trigger: the tables that its statement speaks of, the last one if it is gone, as they are after. There can be others
    /// whose names it has in another sense. Of a table that was there before and is there after: itself.
    pub tables: Vec<Arc<Table>>,
}

/// Where in the WAL a transaction stands: from its first frame to its commit frame, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxSpan {
    /// Counts up per origin, from 1.
    pub tx: u64,
    /// The generation.
    pub salts: Salts,
    /// The first frame.
    pub frame_first: FrameNo,
    /// The commit frame.
    pub frame_last: FrameNo,
    /// The commit frame's stored checksum.
    pub checksum: Checksum,
    /// Size of the database in pages after the transaction.
    pub page_count: u32,
    /// The transaction was not read from frames but found by comparing the database with what we last knew.
    pub repaired: bool,
}

/// Takes the changes of transactions as they are decoded. Changes stream: a transaction may be larger than memory.
///
/// Calls come as `begin`, then `schema` changes, then rows that changed, then `commit`. A transaction that changes nothing makes no call.
pub trait ChangeSink<E> {
    /// A transaction begins.
    fn begin(&mut self, span: &TxSpan) -> Result<(), E>;
    /// A schema object changed.
    fn schema(&mut self, change: SchemaChange) -> Result<(), E>;
    /// A row changed.
    fn change(&mut self, change: RowChange) -> Result<(), E>;
    /// A row changed, and is lent: what the differ calls. Sinks that do not keep rows do without the memory that [`ChangeSink::change`]
    /// is given, and those that pass rows on must pass them on as they come.
    fn row(&mut self, row: ChangedRow<'_>) -> Result<(), E> {
        self.change(row.to_change())
    }
    /// The transaction is complete; `changes` counts its row changes.
    fn commit(&mut self, span: &TxSpan, changes: u64) -> Result<(), E>;
    /// What was committed is about to be relied on: a sink that stores transactions together stores those that it has.
    fn settle(&mut self) -> Result<(), E> {
        Ok(())
    }
}
