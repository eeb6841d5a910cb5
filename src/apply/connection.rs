//! The connection that writes to the user's database.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::error::ApplyError;
use crate::format::Value;

/// The applying connection does not wait for other writers: its thread has a pin to renew meanwhile, and tries again.
const BUSY_TIMEOUT: Duration = Duration::ZERO;

/// Prepared statements kept: a handful for each table that is written to at a time.
const STATEMENTS_MAX: usize = 512;

/// Opens the connection that applies messages: it writes rows exactly as they come and triggers nothing.
///
/// Triggers are off (their effects are in the log as rows), foreign keys and CHECK constraints are not enforced (shards arrive apart from
/// each other; the origin has checked), and it never checkpoints, neither by itself nor when it closes: that is capture's business.
///
/// # Errors
/// [`ApplyError::Database`] when the file cannot be opened or is no database.
pub fn open_applying_connection(path: &Path) -> Result<Connection, ApplyError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(opening)?;
    prepare_applying_connection(&conn)?;
    Ok(conn)
}

/// Gives an open connection the settings of [`open_applying_connection`].
///
/// # Errors
/// [`ApplyError::Database`] when SQLite refuses one.
pub fn prepare_applying_connection(conn: &Connection) -> Result<(), ApplyError> {
    let settings = || -> rusqlite::Result<()> {
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        keep_plans(conn)?;
        conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        conn.pragma_update(None, "foreign_keys", false)?;
        conn.pragma_update(None, "ignore_check_constraints", true)?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        // Answers with a row, which `pragma_update` takes for an error.
        conn.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))
    };
    settings().map_err(opening)
}

/// Keeps SQLite from preparing a statement again for each new value that is bound, which it does where a partial index or the statistics could
/// make another plan the better one: our statements look rows up by their keys.
pub(super) fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn opening(source: rusqlite::Error) -> ApplyError {
    ApplyError::Database { doing: "opening the applying connection", source }
}

/// Takes a value as SQLite returns it.
pub(super) fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(v) => Value::Integer(v),
        ValueRef::Real(v) => Value::Real(v),
        ValueRef::Text(bytes) => Value::Text(bytes.to_vec()),
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    }
}
