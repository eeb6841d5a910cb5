//! Rows that cannot stay because a change of the schema makes values unique that nodes had written side by side.
//!
//! All nodes have the same fold when they come to that change, so they find the same rows if they look in the same order: the row with the
//! greater key stays. SQLite itself says which rows collide, on an empty table of the definition that is wanted: so expressions, collations
//! and WHERE clauses count as they do for everybody else. It is done only where SQLite has refused the change.

use rusqlite::{Connection, ErrorCode, ffi, params};

use super::codec::{Reader, push_key, push_row};
use super::error::ApplyError;
use super::narrowed::register;
use super::shape::LocalTable;
use super::sql::quoted;
use crate::change::{RowKey, canonical_key};
use crate::format::{Row, Value};
use crate::schema::Bound;

/// A row that has to go.
pub(super) struct Duplicate {
    pub(super) key: RowKey,
    pub(super) canonical: Vec<u8>,
    pub(super) row: Row,
}

/// An empty table that rows are put into on trial.
pub(super) struct Trial {
    db: Connection,
    insert: String,
    /// What is bound in front of each row.
    bound: Row,
}

/// Whether SQLite refuses a row, or an index, because of values that are there already.
pub(super) fn is_duplicate(source: &rusqlite::Error) -> bool {
    const CODES: [i32; 3] =
        [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID];
    match source {
        rusqlite::Error::SqliteFailure(error, _) => {
            error.code == ErrorCode::ConstraintViolation && CODES.contains(&error.extended_code)
        }
        _ => false,
    }
}

/// An empty database, on disk where it does not fit into SQLite's cache, in which values count as in another one.
pub(super) fn scratch(conn: &Connection) -> rusqlite::Result<Connection> {
    let db = Connection::open("")?;
    // Text is compared as it is there.
    let encoding: String = conn.query_row("PRAGMA encoding", [], |row| row.get(0))?;
    db.execute_batch(&format!(
        "PRAGMA encoding = '{encoding}'; PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON"
    ))?;
    register(&db)?;
    Ok(db)
}

impl Trial {
    /// Makes the table by `create`. `insert` puts a row in: behind what is `bound` its
    /// columns in order, and then its rowid.
    pub(super) fn new(
        conn: &Connection,
        create: &[impl AsRef<str>],
        insert: String,
        bound: Row,
    ) -> rusqlite::Result<Trial> {
        let db = scratch(conn)?;
        db.execute_batch(
            "CREATE TABLE woodchuck_rows(canonical BLOB PRIMARY KEY, key BLOB NOT NULL, row BLOB NOT NULL) WITHOUT ROWID",
        )?;
        create.iter().try_for_each(|sql| db.execute(sql.as_ref(), []).map(drop))?;
        db.execute_batch("BEGIN")?;
        Ok(Trial { db, insert, bound })
    }

    /// As [`Trial::new`], of rows that are put in as they are.
    pub(super) fn of_table(
        conn: &Connection,
        create: &[impl AsRef<str>],
        table: &LocalTable,
    ) -> rusqlite::Result<Trial> {
        let columns = table.sql.columns.join(", ");
        let values = (1..=table.sql.columns.len()).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
        let insert = format!("INSERT INTO {}({columns}) VALUES({values})", quoted(&table.table.name));
        Trial::new(conn, create, insert, Row::new())
    }

    /// Adds a row to those that are tried.
    pub(super) fn add(&self, table: &LocalTable, key: &RowKey, row: &[Value]) -> rusqlite::Result<()> {
        let (mut key_bytes, mut row_bytes) = (Vec::new(), Vec::new());
        push_key(&mut key_bytes, key);
        push_row(&mut row_bytes, row);
        let sql = "INSERT OR REPLACE INTO woodchuck_rows(canonical, key, row) VALUES(?1, ?2, ?3)";
        let canonical = canonical_key(&table.table, key);
        self.db.prepare_cached(sql)?.execute(params![canonical, key_bytes, row_bytes]).map(drop)
    }

    /// Tries all rows, and finds those that have to go.
    pub(super) fn find(&self, kind: &str, name: &str) -> Result<Vec<Duplicate>, ApplyError> {
        let refused = |source| ApplyError::schema(kind, name, source);
        let sql = "SELECT canonical, key, row FROM woodchuck_rows ORDER BY canonical DESC";
        let mut found = self.db.prepare(sql).map_err(refused)?;
        let mut insert = self.db.prepare(&self.insert).map_err(refused)?;
        let mut rows = found.query([]).map_err(refused)?;
        let mut duplicates = Vec::new();
        while let Some(found) = rows.next().map_err(refused)? {
            let bytes = |column| found.get::<_, Vec<u8>>(column).map_err(refused);
            let (canonical, key, row) = (bytes(0)?, Reader::new(&bytes(1)?).key()?, Reader::new(&bytes(2)?).row()?);
            let rowid = if let RowKey::Rowid(rowid) = key { Value::Integer(rowid) } else { Value::Null };
            for (i, value) in self.bound.iter().chain(&row).chain([&rowid]).enumerate().take(insert.parameter_count()) {
                insert.raw_bind_parameter(i + 1, Bound(value)).map_err(refused)?;
            }
            match insert.raw_execute() {
                Ok(_) => {}
                Err(source) if is_duplicate(&source) => duplicates.push(Duplicate { key, canonical, row }),
                Err(source) => return Err(refused(source)),
            }
        }
        Ok(duplicates)
    }
}
