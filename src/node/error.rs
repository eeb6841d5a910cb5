//! What ends a node.

use std::path::PathBuf;

use crate::apply::{ApplyError, RowFilterError};
use crate::capture::{CaptureError, FollowError};
use crate::log::{ConnectError, LogError, SnapshotError};

/// Why a node stopped, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The user's database cannot be followed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Applying or our own state failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The server cannot be talked to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The log cannot be used as it is.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state directory cannot be used.
    #[error("{}: {what}", path.display())]
    StateDirectory {
        /// The path.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The state is gone, and other files show that there was one.
    #[error("{}: the node's state is gone, and its shadow is there", path.display())]
    StateLost {
        /// Where it was.
        path: PathBuf,
    },
    /// Another node runs on the state directory.
    #[error("{}: another woodchuck is running on this state directory", path.display())]
    AlreadyRunning {
        /// The path.
        path: PathBuf,
    },
    /// Another node replicates the database, with another state directory.
    #[error("{}: another woodchuck is replicating this database", path.display())]
    AlreadyAttached {
        /// The database.
        path: PathBuf,
    },
    /// The node id given is not the one that the state directory was made with.
    #[error("{}: the state directory belongs to node {found}, not to node {wanted}", path.display())]
    OtherNode {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who was asked for.
        wanted: u64,
    },
    /// Somebody else publishes under our number.
    #[error("node id {node_id} is used by another node that publishes to the same streams")]
    SameNodeId {
        /// The number.
        node_id: u64,
    },
    /// The number of shards is not the one that the state directory was made with.
    #[error("{}: the state directory was made for {found} shards, not for {wanted}", path.display())]
    OtherShards {
        /// The path.
        path: PathBuf,
        /// How many it knows.
        found: u16,
        /// How many were asked for.
        wanted: u16,
    },
    /// The filters are not those that the state directory was made with.
    #[error("{}: the state directory was made with {found}, not with {wanted}", path.display())]
    OtherFilters {
        /// The path.
        path: PathBuf,
        /// What it knows.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The node ran in one direction only, and is to go on in both.
    #[error("{}: the node ran with {left_out}", path.display())]
    LeftOut {
        /// The state directory.
        path: PathBuf,
        /// With what, and what happened.
        left_out: &'static str,
    },
    /// A filter does not fit its table.
    #[error(transparent)]
    Filter(RowFilterError),
    /// A new node would have to start from messages that the log does not hold any more.
    #[error("stream {stream} begins at message {first}: what was before it is not on the log any more")]
    LogTrimmed {
        /// The stream.
        stream: String,
        /// Its first message.
        first: u64,
    },
    /// The log ends before the message that we have applied.
    #[error(
        "stream {stream} ends at message {last}, and message {applied} was applied here: the server lost acknowledged messages"
    )]
    LogShorter {
        /// The stream.
        stream: String,
        /// Its last message.
        last: u64,
        /// What we have applied.
        applied: u64,
    },
    /// Snapshots cannot be made, stored or fetched.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no database, and it was not found out whether there is a snapshot.
    #[error("{}: there is no such database, and it cannot be made from a snapshot", path.display())]
    CannotBegin {
        /// The database that was to be made.
        path: PathBuf,
        /// Why.
        source: Box<NodeError>,
    },
    /// What is to be replaced cannot be read.
    #[error("{}: it is not replaced, for what it has that nobody else has cannot be told", path.display())]
    NotReplaceable {
        /// The database.
        path: PathBuf,
        /// Why.
        source: Box<NodeError>,
    },
    /// A database cannot be made there.
    #[error("{}: there is no such folder", path.display())]
    NoFolder {
        /// Where the database was to be.
        path: PathBuf,
    },
    /// There is no snapshot to begin with.
    #[error("{}: there is no such database, and no snapshot to make it from", path.display())]
    NoSnapshot {
        /// The database that was to be made.
        path: PathBuf,
    },
    /// What was fetched is no sound database, although it is what was stored.
    #[error("{}: the snapshot is damaged: {said}", path.display())]
    BadSnapshot {
        /// Where it was put.
        path: PathBuf,
        /// SQLite's words.
        said: String,
    },
    /// A new node brings a database that is not what the others began with.
    #[error("{}: rows differ from what the first node began with: {rows}", path.display())]
    OtherContent {
        /// The database.
        path: PathBuf,
        /// How many in which tables.
        rows: String,
    },
    /// There is a database where one was to be made.
    #[error("{}: there is a database already", path.display())]
    Exists {
        /// The database.
        path: PathBuf,
    },
    /// The database that was to be replaced is in use.
    #[error("{}: {} has the database open", path.display(), pid.map_or("another program".to_owned(), |pid| format!("process {pid}")))]
    InUse {
        /// The database.
        path: PathBuf,
        /// Who has it open, if that is known.
        pid: Option<i32>,
    },
    /// The database that was to be replaced has changes that nobody else has.
    #[error("{}: the database has changes that were not published", path.display())]
    Unpublished {
        /// The database.
        path: PathBuf,
    },
    /// A restore was begun and did not end.
    #[error("{}: a restore of this database was interrupted", path.display())]
    RestoreInterrupted {
        /// The state directory.
        path: PathBuf,
    },
    /// A node does not answer questions.
    #[error("{}: no node answers there", path.display())]
    NotAnswering {
        /// The state directory.
        path: PathBuf,
        /// What asking gave.
        source: std::io::Error,
    },
    /// The outbox has reached its bound.
    #[error("the outbox holds {bytes} bytes that no server has taken, more than {bytes_max}")]
    OutboxFull {
        /// Bytes that wait.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// No server was given, none listens and none can be started.
    #[error("no NATS server listens on {address}, and no nats-server was found to start one")]
    NoServer {
        /// Where we looked.
        address: String,
    },
    /// The managed server does not run.
    #[error("{}: cannot start the NATS server", path.display())]
    Server {
        /// The program.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the configuration cannot be read.
    #[error("{}: cannot read the file", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A part of the program ended without saying why.
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

impl NodeError {
    /// Whether other processes keep everybody from the database, which passes.
    pub(super) fn is_locked(&self) -> bool {
        match self {
            NodeError::Capture(CaptureError::Locked { .. }) => true,
            NodeError::Apply(ApplyError::Database { source, .. }) => matches!(
                source.sqlite_error_code(),
                Some(
                    rusqlite::ErrorCode::DatabaseBusy
                        | rusqlite::ErrorCode::DatabaseLocked
                        | rusqlite::ErrorCode::FileLockingProtocolFailed
                )
            ),
            _ => false,
        }
    }
}

impl From<FollowError<ApplyError>> for NodeError {
    fn from(error: FollowError<ApplyError>) -> NodeError {
        match error {
            FollowError::Capture(error) => NodeError::Capture(error),
            FollowError::Sink(error) => NodeError::Apply(error),
        }
    }
}
