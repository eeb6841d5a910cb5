//! What ends a node.

use std::path::PathBuf;

use crate::apply::ApplyError;
use crate::capture::{CaptureError, FollowError};
use crate::log::{ConnectError, LogError};

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

impl From<FollowError<ApplyError>> for NodeError {
    fn from(error: FollowError<ApplyError>) -> NodeError {
        match error {
            FollowError::Capture(error) => NodeError::Capture(error),
            FollowError::Sink(error) => NodeError::Apply(error),
        }
    }
}
