//! Looking for what differs from a snapshot before anybody is kept from writing.
//!
//! What is found are keys of rows that may differ when the node catches up, and none that does is missing: of a row that was equal when it
//! was looked at, only a local change can have made another since, as nothing is folded meanwhile, and every local change has `base`. So
//! no row needs to be looked at in the moment of another one, and no read transaction lasts longer than some turns of a look.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Statement, params};

use super::catch_up::SNAPSHOT_SCHEMA;
use super::codec::{Reader, push_key};
use super::connection::open_applying_connection;
use super::error::ApplyError;
use super::fold_reader::is_out_of_bounds;
use super::replica::Route;
use super::shape::{LocalTable, Tables, shape_of};
use super::snapshot::tables_of;
use super::statements::Rows;
use crate::change::RowKey;
use crate::format::Value;
use crate::schema::{Identity, Table};

/// How long rows are read at a time: a read transaction keeps the application's log from beginning anew.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// Rows between two looks at the clock.
const ROWS_BETWEEN_LOOKS: u32 = 256;
/// Steps of SQLite's machine between two looks at whether to stop: about a millisecond.
const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 20_000;
/// No table has this number: nothing of the state is needed to compare.
const NO_NUMBER: i64 = -1;

const SCHEMA: &str = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
    CREATE TABLE compared(name TEXT PRIMARY KEY COLLATE NOCASE) WITHOUT ROWID;
    CREATE TABLE candidate(name TEXT COLLATE NOCASE, no INTEGER, key BLOB, PRIMARY KEY(name, no), UNIQUE(name, key)) WITHOUT ROWID;
    BEGIN";

/// Ends a look from outside.
#[derive(Debug, Clone, Default)]
pub struct StopLooking(Arc<AtomicBool>);

impl StopLooking {
    /// Ends it.
    pub fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_told(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Keys of rows that may differ from a snapshot. They are in a file of their own, for there may be many.
pub struct Beforehand(Mutex<Connection>);

impl std::fmt::Debug for Beforehand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beforehand").finish_non_exhaustive()
    }
}

fn failed(source: rusqlite::Error) -> ApplyError {
    ApplyError::Database { doing: "comparing with the snapshot beforehand", source }
}

impl Beforehand {
    /// Compares the tables that travel with those of the snapshot, both read through a connection of their own, while applications write. What is found goes
    /// to a file at `into`, which there must not be. From before this is called until the node has caught up nothing may be folded.
    /// `None` when it was told to stop.
    ///
    /// # Errors
    /// When one of the databases fails.
    pub fn look(
        (database, snapshot): (&Path, &Path),
        into: &Path,
        tables: &dyn Tables,
        route: &Route,
        stop: &StopLooking,
    ) -> Result<Option<Beforehand>, ApplyError> {
        let mut conn = open_applying_connection(database)?;
        let attach = format!("ATTACH CAST(?1 AS TEXT) AS {SNAPSHOT_SCHEMA}");
        conn.execute(&attach, [snapshot.as_os_str().as_encoded_bytes()]).map_err(failed)?;
        conn.pragma_update(None, "query_only", true).map_err(failed)?;
        let told = stop.clone();
        conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || told.is_told())).map_err(failed)?;
        let found = Connection::open(into).map_err(failed)?;
        found.execute_batch(SCHEMA).map_err(failed)?;
        // The open file is all that is needed.
        let _ = std::fs::remove_file(into);
        let look = Look { conn: &conn, rows: Rows::new(&conn)?, found: &found, stop };
        for theirs in tables_of(&conn, SNAPSHOT_SCHEMA)? {
            let ours = tables.table(&theirs.name).filter(|_| route(&theirs, None).is_some());
            if let Some(ours) = ours
                && !look.table(&ours, &theirs)?
            {
                return Ok(None);
            }
        }
        drop(look);
        Ok(Some(Beforehand(Mutex::new(found))))
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Connection> {
        // Nothing is left half-done in it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a table was compared.
    pub(super) fn has(&self, table: &LocalTable) -> Result<bool, ApplyError> {
        let found = self.found();
        let known =
            found.prepare_cached("SELECT 1 FROM compared WHERE name = ?1").map_err(failed)?.exists([&table.name_lower]);
        known.map_err(failed)
    }

    /// A row that may have come to differ since.
    pub(super) fn add(&self, table: &LocalTable, key: &RowKey) -> Result<(), ApplyError> {
        note(&self.found(), &table.name_lower, key)
    }

    /// Hands out the keys of a table's rows that may differ, each once, in the order in which they were found: rows that lie together come
    /// together.
    pub(super) fn each(
        &self,
        table: &LocalTable,
        mut each: impl FnMut(RowKey) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let found = self.found();
        let mut keys = found.prepare_cached("SELECT key FROM candidate WHERE name = ?1 ORDER BY no").map_err(failed)?;
        let mut rows = keys.query([&table.name_lower]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let bytes = row.get_ref(0).and_then(|key| Ok(key.as_blob()?)).map_err(failed)?;
            each(Reader::new(bytes).key()?)?;
        }
        Ok(())
    }
}

fn note(found: &Connection, table: &str, key: &RowKey) -> Result<(), ApplyError> {
    let mut bytes = Vec::with_capacity(32);
    push_key(&mut bytes, key);
    let insert = "INSERT OR IGNORE INTO candidate(name, no, key)
        VALUES(?1, (SELECT coalesce(max(no), 0) + 1 FROM candidate WHERE name = ?1), ?2)";
    let insert = found.prepare_cached(insert);
    insert.and_then(|mut insert| insert.execute(params![table, bytes])).map_err(failed)?;
    Ok(())
}

struct Look<'a> {
    conn: &'a Connection,
    rows: Rows<'a>,
    found: &'a Connection,
    stop: &'a StopLooking,
}

impl Look<'_> {
    /// Compares one table. `false` when told to stop.
    fn table(&self, ours: &Arc<Table>, theirs: &Arc<Table>) -> Result<bool, ApplyError> {
        let table = LocalTable::new(Arc::clone(ours), NO_NUMBER, NO_NUMBER);
        // What differs in its columns is for the one who catches up to judge.
        if !table.fit(&shape_of(theirs), true).is_ok_and(|fit| fit.is_same()) {
            return Ok(true);
        }
        let by_rowid = !ours.is_virtual && !matches!(ours.identity, Identity::Declared(_));
        let compared = if by_rowid { self.by_rowid(&table) } else { self.by_key(&table) };
        match compared {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) if is_out_of_bounds(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        let name = [&table.name_lower];
        self.found.execute("INSERT OR IGNORE INTO compared(name) VALUES(?1)", name).map_err(failed)?;
        Ok(true)
    }

    /// Lets SQLite find the rows, in one read transaction: the order of these keys need not be the same in both.
    fn by_key(&self, table: &LocalTable) -> Result<bool, ApplyError> {
        for sql in table.sql.differences(SNAPSHOT_SCHEMA) {
            self.rows
                .each(table, &sql, |row, rowid| note(self.found, &table.name_lower, &table.key_of(&row, rowid)))?;
        }
        Ok(true)
    }

    /// Reads both tables side by side in the order of their rowids, some turns of a look at a time. `false` when told to stop.
    fn by_rowid(&self, table: &LocalTable) -> Result<bool, ApplyError> {
        let rowid = &table.sql.rowid;
        let sql = |name: &str| {
            let list = &table.sql.list;
            // A boundary of its own for the smallest rowid that there is.
            format!("SELECT {rowid}, {list} FROM {name} WHERE {rowid} >= ?1 ORDER BY {rowid}")
        };
        let columns = table.sql.columns.len();
        let mut ours = self.conn.prepare(&sql(&table.sql.name)).map_err(failed)?;
        let mut theirs = self.conn.prepare(&sql(&table.sql.name_in(SNAPSHOT_SCHEMA))).map_err(failed)?;
        let mut next = Some(i64::MIN);
        while let Some(from) = next {
            if self.stop.is_told() {
                return Ok(false);
            }
            next = self.stretch(table, (&mut ours, &mut theirs), columns, from)?;
        }
        Ok(true)
    }

    /// Compares from a rowid on, for a while. Where to go on; `None` at the end.
    fn stretch(
        &self,
        table: &LocalTable,
        (ours, theirs): (&mut Statement<'_>, &mut Statement<'_>),
        columns: usize,
        from: i64,
    ) -> Result<Option<i64>, ApplyError> {
        let began = Instant::now();
        let (mut ours, mut theirs) = (ours.query([from]).map_err(failed)?, theirs.query([from]).map_err(failed)?);
        ours.advance().and_then(|()| theirs.advance()).map_err(failed)?;
        let mut count = 0_u32;
        loop {
            let rowid = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0).map_err(failed);
            let (at, is_here, is_there, is_same) = match (ours.get(), theirs.get()) {
                (None, None) => return Ok(None),
                (Some(one), None) => (rowid(one)?, true, false, false),
                (None, Some(other)) => (rowid(other)?, false, true, false),
                (Some(one), Some(other)) => {
                    let (one_at, other_at) = (rowid(one)?, rowid(other)?);
                    let is_same = one_at == other_at && is_equal(one, other, columns)?;
                    (one_at.min(other_at), one_at <= other_at, other_at <= one_at, is_same)
                }
            };
            if !is_same {
                let key = match table.table.identity {
                    Identity::Rowid => RowKey::Rowid(at),
                    Identity::RowidAlias(_) | Identity::Declared(_) => RowKey::Columns(vec![Value::Integer(at)]),
                };
                note(self.found, &table.name_lower, &key)?;
            }
            count += 1;
            if count.is_multiple_of(ROWS_BETWEEN_LOOKS) && began.elapsed() >= READ_WITHIN {
                return Ok(at.checked_add(1));
            }
            if is_here {
                ours.advance().map_err(failed)?;
            }
            if is_there {
                theirs.advance().map_err(failed)?;
            }
        }
    }
}

/// Whether two rows have the same values, behind their rowids. What only looks different is looked at again.
fn is_equal(one: &rusqlite::Row<'_>, other: &rusqlite::Row<'_>, columns: usize) -> Result<bool, ApplyError> {
    for index in 1..=columns {
        let (one, other) = (one.get_ref(index).map_err(failed)?, other.get_ref(index).map_err(failed)?);
        let is_same = match (one, other) {
            (ValueRef::Null, ValueRef::Null) => true,
            (ValueRef::Integer(one), ValueRef::Integer(other)) => one == other,
            (ValueRef::Real(one), ValueRef::Real(other)) => one.to_bits() == other.to_bits(),
            (ValueRef::Text(one), ValueRef::Text(other)) | (ValueRef::Blob(one), ValueRef::Blob(other)) => one == other,
            _ => false,
        };
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}
