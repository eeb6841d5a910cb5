//! What can go wrong with a live database.

use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::ShadowError;
use crate::change::{DiffError, TransactionError};
use crate::format::HeaderError;

/// Why a database cannot be followed, or cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file cannot be looked at.
    #[error("{}: cannot open the database", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a regular file.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("{}: the file is empty: SQLite has not made a database of it yet", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Not a SQLite database, an encrypted one, or one with a damaged header.
    #[error("{}: {source}", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What the header lacks.
        source: HeaderError,
    },
    /// The file is shorter than its header says.
    #[error("{}: the file is truncated: {found} of {wanted} bytes are there", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that are there.
        found: u64,
        /// Bytes that the header's page count needs.
        wanted: u64,
    },
    /// The database uses a rollback journal.
    #[error("{}: the database is not in WAL mode", path.display())]
    NotWal {
        /// The file.
        path: PathBuf,
    },
    /// Several names for one file: SQLite would look for a different `-wal` under each.
    #[error("{}: the file has {count} hard links, and each name would have a write-ahead log of its own", path.display())]
    HardLinks {
        /// The file.
        path: PathBuf,
        /// Number of links.
        count: u64,
    },
    /// A file system without working shared memory or locks between machines.
    #[error("{}: the file system ({kind}) is shared between machines: SQLite's WAL mode does not work there", path.display())]
    SharedFileSystem {
        /// The file.
        path: PathBuf,
        /// Its name.
        kind: &'static str,
    },
    /// Another process holds the database in `locking_mode=EXCLUSIVE`, or too long.
    #[error("{}: the database is locked by another process", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Another process uses the database through another shared-memory file.
    #[error("{}: process {pid} uses the database without its -shm file", path.display())]
    ForeignLock {
        /// The file.
        path: PathBuf,
        /// That process.
        pid: i32,
    },
    /// Files that must be written cannot be.
    #[error("{}: the database or its directory cannot be written", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// Under the database's name there is another file now.
    #[error("{}: the file under this name was replaced by another", path.display())]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// The database file was written without SQLite while everything was in it.
    #[error("{}: the file was overwritten by another program than SQLite", path.display())]
    Overwritten {
        /// The path.
        path: PathBuf,
    },
    /// The WAL cannot be read.
    #[error("{}: cannot read the write-ahead log", path.display())]
    Wal {
        /// The `-wal` file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Frames below the bound are not what they must be.
    #[error("{}: frame {frame} of the write-ahead log is damaged: {what}", path.display())]
    Frame {
        /// The `-wal` file.
        path: PathBuf,
        /// The frame.
        frame: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// SQLite refused.
    #[error("{}: SQLite failed while {what}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why.
        source: rusqlite::Error,
    },
    /// There can be no thread that watches the directory.
    #[error("{}: cannot begin to watch the directory for changes", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The shadow cannot be used, or must not be.
    #[error(transparent)]
    Shadow(#[from] ShadowError),
    /// What was captured could not be made durable.
    #[error("making the captured position durable failed")]
    Durable {
        /// Why.
        source: std::io::Error,
    },
    /// Two versions of the pages could not be compared.
    #[error(transparent)]
    Diff(#[from] DiffError),
}

impl CaptureError {
    /// Whether the file, as it is, is no sound database in WAL mode that can be compared with what it was.
    #[must_use]
    pub fn is_of_content(&self) -> bool {
        match self {
            CaptureError::Empty { .. }
            | CaptureError::NotADatabase { .. }
            | CaptureError::Truncated { .. }
            | CaptureError::NotWal { .. }
            | CaptureError::Frame { .. }
            | CaptureError::Diff(_)
            | CaptureError::Shadow(ShadowError::Incomparable { .. } | ShadowError::PageSize { .. }) => true,
            CaptureError::Sqlite { source, .. } => {
                matches!(source.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
            }
            _ => false,
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            CaptureError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path; the application must have created the database"
            }
            CaptureError::Open { .. } => "check the path and its permissions",
            CaptureError::NotAFile { .. } => "give the path of the database file itself",
            CaptureError::Empty { .. } => "let the application create its tables first",
            CaptureError::NotADatabase { .. } => {
                "encrypted databases cannot be read; a damaged one can be looked at with `woodchuck inspect`"
            }
            CaptureError::Truncated { .. } => "restore the file from a backup; `woodchuck inspect` shows what is left",
            CaptureError::NotWal { .. } => {
                "run `PRAGMA journal_mode=WAL` once on the database; the setting stays in the file"
            }
            CaptureError::HardLinks { .. } => "remove the other links, or use symbolic links",
            CaptureError::SharedFileSystem { .. } => {
                "keep the database on a local file system and let woodchuck carry its rows"
            }
            CaptureError::Locked { .. } => {
                "the application must use locking_mode=NORMAL, with EXCLUSIVE nobody else can read (`woodchuck tail --raw` looks at the bytes of its log); and none of its processes may be stopped in the middle of a commit"
            }
            CaptureError::ForeignLock { .. } => {
                "let all processes use the same path on the same file system, without copies of the -shm file"
            }
            CaptureError::ReadOnly { .. } => {
                "readers of a WAL database must be able to write its -wal and -shm files, and who applies what others wrote the database too: see to the permissions, or run as the application's user; `woodchuck inspect` needs no permission to write"
            }
            CaptureError::Overwritten { .. } => {
                "start again: what is in the file now is compared with what was known of it"
            }
            CaptureError::Replaced { .. } => "start again: the file that has the name now is attached anew",
            CaptureError::Wal { .. } | CaptureError::Frame { .. } => {
                "run `PRAGMA integrity_check`; `woodchuck inspect` shows the write-ahead log"
            }
            CaptureError::Sqlite { source, .. }
                if matches!(source.sqlite_error_code(), Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure)) =>
            {
                "see to the space and the health of the database's disk, and start again; what was committed is safe"
            }
            CaptureError::Sqlite { .. } => {
                "see the cause; `PRAGMA integrity_check` tells whether the database is sound"
            }
            CaptureError::Watch { .. } => "raise the limits of processes and memory (`ulimit -u`, `ulimit -v`)",
            CaptureError::Shadow(error) => error.hint(),
            CaptureError::Durable { .. } => "check the space and the permissions of the state directory",
            CaptureError::Diff(_) => "run `PRAGMA integrity_check` on the database",
        }
    }
}

/// Why following stopped: the database's side or the sink's.
#[derive(Debug, thiserror::Error)]
pub enum FollowError<E> {
    /// Capture failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The sink refused a transaction; it was not taken and will be given again.
    #[error("{0}")]
    Sink(E),
}

impl<E> From<TransactionError<E>> for FollowError<E> {
    fn from(error: TransactionError<E>) -> FollowError<E> {
        match error {
            TransactionError::Diff(error) => FollowError::Capture(CaptureError::Diff(error)),
            TransactionError::Sink(error) => FollowError::Sink(error),
        }
    }
}
