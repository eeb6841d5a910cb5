//! The connections by which capture takes part in SQLite's locking.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::CaptureError;

/// How long a read waits before it says that nobody can read: the last close of an application keeps everybody out while it checkpoints,
/// and so does whoever reads a log anew whose last writer was killed. The caller may try again.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// How long emptying the log may wait for others: they cannot write meanwhile.
const TRUNCATE_WAIT: Duration = Duration::from_millis(100);

/// A connection that never checkpoints by itself and never changes the schema or a row.
#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    connection: Connection,
}

/// What a checkpoint call reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    /// Committed frames of the generation.
    pub(super) committed: u32,
    /// Frames of these that are in the database file.
    pub(super) checkpointed: u32,
}

impl Link {
    pub(super) fn open(path: &Path) -> Result<Link, CaptureError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let fail = |what| move |source: rusqlite::Error| classify(path, what, source);
        let connection = Connection::open_with_flags(path, flags).map_err(fail("opening the database"))?;
        connection.busy_timeout(BUSY_WAIT).map_err(fail("setting the busy timeout"))?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(fail("turning off the checkpoint on close"))?;
        connection.execute_batch("PRAGMA wal_autocheckpoint = 0").map_err(fail("turning off automatic checkpoints"))?;
        Ok(Link { path: path.to_owned(), connection })
    }

    fn fail(&self, what: &'static str) -> impl FnOnce(rusqlite::Error) -> CaptureError {
        let path = self.path.clone();
        move |source| classify(&path, what, source)
    }

    /// The journal mode in force.
    pub(super) fn journal_mode(&self) -> Result<String, CaptureError> {
        self.connection
            .query_row("PRAGMA journal_mode", [], |row| row.get(0))
            .map_err(self.fail("asking for the journal mode"))
    }

    /// Begins a read transaction: from here on frames behind its mark stay.
    pub(super) fn begin_read(&self) -> Result<(), CaptureError> {
        let run = |sql: &str| self.connection.prepare_cached(sql)?.query([])?.next().map(|_| ());
        // The header value is read from page 1, which makes the transaction take its read mark without looking at the schema.
        run("BEGIN").and_then(|()| run("PRAGMA schema_version")).map_err(|error| {
            let _ = run("ROLLBACK");
            self.fail("beginning a read transaction")(error)
        })
    }

    /// Ends the read transaction.
    pub(super) fn end_read(&self) -> Result<(), CaptureError> {
        self.connection
            .prepare_cached("COMMIT")
            .and_then(|mut statement| statement.execute([]).map(|_| ()))
            .map_err(self.fail("ending a read transaction"))
    }

    /// Takes the writer's place without writing. `false`, at once, when another holds it.
    pub(super) fn begin_immediate(&self) -> Result<bool, CaptureError> {
        self.waiting(Duration::ZERO, Link::try_immediate)
    }

    /// Runs with another bound on how long others are waited for.
    fn waiting<T>(&self, wait: Duration, run: impl FnOnce(&Link) -> T) -> T {
        let _ = self.connection.busy_timeout(wait);
        let done = run(self);
        let _ = self.connection.busy_timeout(BUSY_WAIT);
        done
    }

    fn try_immediate(&self) -> Result<bool, CaptureError> {
        match self.connection.execute_batch("BEGIN IMMEDIATE") {
            Ok(()) => Ok(true),
            Err(error) if is_busy(&error) => Ok(false),
            Err(error) => Err(self.fail("taking the write lock")(error)),
        }
    }

    pub(super) fn rollback(&self) -> Result<(), CaptureError> {
        self.connection.execute_batch("ROLLBACK").map_err(self.fail("giving back the write lock"))
    }

    /// The honest bound of what is committed. `None` while a writer updates the index.
    pub(super) fn noop(&self) -> Result<Option<Bound>, CaptureError> {
        self.checkpoint(CheckpointMode::NOOP)
    }

    /// Copies into the database file what no reader keeps from it. `None` when somebody else is at it.
    pub(super) fn passive(&self) -> Result<Option<Bound>, CaptureError> {
        self.checkpoint(CheckpointMode::PASSIVE)
    }

    /// Empties the log file, if nobody else uses it.
    pub(super) fn truncate(&self) -> Result<Option<Bound>, CaptureError> {
        self.waiting(TRUNCATE_WAIT, |link| link.checkpoint(CheckpointMode::TRUNCATE))
    }

    fn checkpoint(&self, mode: CheckpointMode) -> Result<Option<Bound>, CaptureError> {
        match self.connection.wal_checkpoint_v2(Some("main"), mode) {
            // −1 frames: this connection has not read yet, so it does not know the log.
            Ok((committed, checkpointed)) => {
                Ok(Some(Bound { committed: committed.max(0) as u32, checkpointed: checkpointed.max(0) as u32 }))
            }
            Err(error) if is_busy(&error) => Ok(None),
            Err(error) => Err(self.fail("asking for the end of the write-ahead log")(error)),
        }
    }

    /// Lets the close of this connection, if it is the last, checkpoint and remove `-wal` and `-shm`.
    pub(super) fn checkpoint_on_close(&self) -> Result<(), CaptureError> {
        self.connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
            .map(|_| ())
            .map_err(self.fail("turning on the checkpoint on close"))
    }

    /// Reads once, so that the connection knows the log.
    pub(super) fn look(&self) -> Result<(), CaptureError> {
        self.connection.query_row("PRAGMA schema_version", [], |_| Ok(())).map_err(self.fail("reading the database"))
    }
}

/// SQLite calls it a failure of the locking protocol when a writer stays in the middle of its commit for ten seconds.
fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed)
    )
}

fn classify(path: &Path, what: &'static str, source: rusqlite::Error) -> CaptureError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        _ if is_busy(&source) => CaptureError::Locked { path },
        Some(ErrorCode::ReadOnly) => CaptureError::ReadOnly { path },
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => CaptureError::ReadOnly { path },
        _ => CaptureError::Sqlite { path, what, source },
    }
}
