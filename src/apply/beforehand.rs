//! What may differ from a snapshot, found before anybody is kept from writing.
//!
//! The shadow is compared with the snapshot page by page, while applications write and nothing is folded. A row that is equal there can only
//! differ by the time that the write lock is taken if a local change made it so, or showed already, and every such row has `base`. So the keys
//! that were found and those of `base` are all that have to be looked at then.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::{Connection, params};

use super::codec::{Reader, push_key};
use super::error::ApplyError;
use super::replica::Route;
use super::shape::LocalTable;
use crate::change::{ChangeSink, RowChange, RowKey, SchemaChange, TxSpan, canonical_key};

/// The order of `no` is that in which keys were found: rows that lie together come together.
const SCHEMA: &str = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
    CREATE TABLE candidate(name TEXT, no INTEGER, key BLOB, canonical BLOB, PRIMARY KEY(name, no), UNIQUE(name, canonical)) WITHOUT ROWID;
    BEGIN";

/// Keys of rows that may differ from a snapshot. They are in a file of their own, for there may be many.
pub struct Beforehand {
    found: Connection,
    route: Route,
    no: i64,
    /// Tables, in lower case, that were compared, and those whose definitions differ.
    compared: BTreeSet<String>,
    changed: BTreeSet<String>,
}

impl std::fmt::Debug for Beforehand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beforehand").field("compared", &self.compared).finish_non_exhaustive()
    }
}

fn failed(source: rusqlite::Error) -> ApplyError {
    ApplyError::Database { doing: "noting what differs from a snapshot", source }
}

impl Beforehand {
    /// Makes one that has nothing, in a file at `path`, which there must not be, and which loses its name. `route` tells which tables travel.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(path: &Path, route: Route) -> Result<Beforehand, ApplyError> {
        let found = Connection::open(path).map_err(failed)?;
        found.execute_batch(SCHEMA).map_err(failed)?;
        // The open file is all that is needed.
        let _ = std::fs::remove_file(path);
        Ok(Beforehand { found, route, no: 0, compared: BTreeSet::new(), changed: BTreeSet::new() })
    }

    /// Takes note of the tables of which everything that differs was given.
    pub fn set_compared<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) {
        let names = names.into_iter().map(str::to_ascii_lowercase);
        self.compared.extend(names.filter(|name| !self.changed.contains(name)));
    }

    /// Whether a table was compared.
    pub(super) fn has(&self, table: &LocalTable) -> bool {
        self.compared.contains(&table.name_lower)
    }

    /// Takes note of a row that may differ. Keys that a collation calls equal are those of one row, and have one canonical form.
    ///
    /// # Errors
    /// When the file fails.
    pub(super) fn add(&mut self, table: &str, key: &RowKey, canonical: &[u8]) -> Result<(), ApplyError> {
        let mut bytes = Vec::with_capacity(32);
        push_key(&mut bytes, key);
        self.no += 1;
        let sql = "INSERT OR IGNORE INTO candidate(name, no, key, canonical) VALUES(?1, ?2, ?3, ?4)";
        let insert = self.found.prepare_cached(sql);
        insert.and_then(|mut insert| insert.execute(params![table, self.no, bytes, canonical])).map_err(failed)?;
        Ok(())
    }

    /// Hands out the keys of a table's rows that may differ, each once.
    pub(super) fn each(
        &self,
        table: &LocalTable,
        mut each: impl FnMut(RowKey) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let keys = self.found.prepare_cached("SELECT key FROM candidate WHERE name = ?1 ORDER BY no");
        let mut keys = keys.map_err(failed)?;
        let mut rows = keys.query([&table.name_lower]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let bytes = row.get_ref(0).and_then(|key| Ok(key.as_blob()?)).map_err(failed)?;
            each(Reader::new(bytes).key()?)?;
        }
        Ok(())
    }
}

impl ChangeSink<ApplyError> for Beforehand {
    fn begin(&mut self, _: &TxSpan) -> Result<(), ApplyError> {
        Ok(())
    }

    fn schema(&mut self, change: SchemaChange) -> Result<(), ApplyError> {
        self.changed.extend([change.name, change.table].map(|name| name.to_ascii_lowercase()));
        Ok(())
    }

    fn change(&mut self, change: RowChange) -> Result<(), ApplyError> {
        match change.table.is_internal() || (self.route)(&change.table, None).is_none() {
            true => Ok(()),
            false => {
                let canonical = canonical_key(&change.table, &change.key);
                self.add(&change.table.name.to_ascii_lowercase(), &change.key, &canonical)
            }
        }
    }

    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), ApplyError> {
        Ok(())
    }
}
