//! What is done about each kind of error that ends a node: how it is judged, and what the operator is told.

use super::error::NodeError;
use super::network::is_transient;
use crate::apply::ApplyError;
use crate::capture::{CaptureError, ShadowError};
use crate::log::{ConnectError, LogError, SnapshotError};

/// How a node that ended is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It failed; starting it again may help.
    Failed,
    /// It was told something that cannot be.
    Usage,
    /// It refused to go on because data could be lost.
    Refused,
}

const DATABASE_DISK_REMEDY: &str = "see to the space and the health of the database's disk, and start again; nothing is lost: what has arrived is read from the log again";

const DISK_REMEDY: &str = "see to the space and the health of the disk of the state directory, and start again; nothing is lost: what was captured is stored, and the rest is found in the database";

fn is_of_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
    matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure))
}

impl NodeError {
    /// Whether it is the servers that do not answer now.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            NodeError::Connect(error) => is_transient(error),
            NodeError::Log(error) | NodeError::Snapshot(SnapshotError::Log(error)) => error.is_transient(),
            NodeError::Snapshot(SnapshotError::Store(_) | SnapshotError::Removed { .. }) => true,
            _ => false,
        }
    }

    /// Judges the error.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            NodeError::OtherNode { .. }
            | NodeError::OtherShards { .. }
            | NodeError::Filter(_)
            | NodeError::Connect(ConnectError::Option { .. }) => Verdict::Usage,
            NodeError::CannotBegin { source, .. } => source.verdict(),
            NodeError::StateLost { .. }
            | NodeError::AlreadyRunning { .. }
            | NodeError::AlreadyAttached { .. }
            | NodeError::SameNodeId { .. }
            | NodeError::LogTrimmed { .. }
            | NodeError::LogShorter { .. }
            | NodeError::OtherContent { .. }
            | NodeError::OtherFilters { .. }
            | NodeError::LeftOut { .. }
            | NodeError::Exists { .. }
            | NodeError::NotReplaceable { .. }
            | NodeError::InUse { .. }
            | NodeError::Unpublished { .. }
            | NodeError::RestoreInterrupted { .. }
            | NodeError::OutboxFull { .. } => Verdict::Refused,
            NodeError::Log(error) => match error {
                LogError::FellBehind { .. }
                | LogError::StreamRecreated { .. }
                | LogError::StreamMissing { .. }
                | LogError::LostTail { .. }
                | LogError::Rewritten { .. }
                | LogError::Hole { .. } => Verdict::Refused,
                LogError::Config { .. } | LogError::NoShard { .. } => Verdict::Usage,
                LogError::Unreachable { .. } | LogError::Refused { .. } | LogError::Undecodable { .. } => {
                    Verdict::Failed
                }
            },
            NodeError::Apply(error) => match error {
                ApplyError::StateVersion { .. }
                | ApplyError::OtherDatabase { .. }
                | ApplyError::NotState { .. }
                | ApplyError::TransactionTooLarge { .. } => Verdict::Refused,
                ApplyError::State(_)
                | ApplyError::Database { .. }
                | ApplyError::Damaged { .. }
                | ApplyError::BeforeUnknown { .. }
                | ApplyError::NotLaidOut
                | ApplyError::NotLocked
                | ApplyError::NotRead
                | ApplyError::Cannot(_) => Verdict::Failed,
            },
            // Another start finds the same.
            NodeError::Capture(CaptureError::Shadow(
                ShadowError::Restored { .. }
                | ShadowError::WentBack { .. }
                | ShadowError::PageSize { .. }
                | ShadowError::Missing { .. }
                | ShadowError::Damaged { .. }
                | ShadowError::NotAtPosition { .. }
                | ShadowError::Version { .. },
            )) => Verdict::Refused,
            NodeError::Capture(_)
            | NodeError::Connect(_)
            | NodeError::StateDirectory { .. }
            | NodeError::Snapshot(_)
            | NodeError::NoSnapshot { .. }
            | NodeError::NoFolder { .. }
            | NodeError::NotAnswering { .. }
            | NodeError::BadSnapshot { .. }
            | NodeError::NoServer { .. }
            | NodeError::Server { .. }
            | NodeError::ConfigFile { .. }
            | NodeError::Ended(_) => Verdict::Failed,
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            NodeError::Capture(error) => error.hint().to_owned(),
            NodeError::Apply(error) => match error {
                ApplyError::StateVersion { .. } => "use the version of woodchuck that wrote it".to_owned(),
                ApplyError::OtherDatabase { .. } => "give each database a state directory of its own (--state-dir)".to_owned(),
                ApplyError::NotState { .. } => "check --state-dir; move the file away if it is not needed".to_owned(),
                ApplyError::TransactionTooLarge { messages, .. } => format!(
                    "nothing is lost: it waits in the outbox; give the log at least {} entries: --max-log-entries on every node, and nats stream edit … --max-msgs=… for each stream",
                    messages.saturating_mul(2)
                ),
                ApplyError::Cannot(cannot) => cannot.remedy_of_end(),
                ApplyError::State(source) if is_of_disk(source) => DISK_REMEDY.to_owned(),
                ApplyError::Database { source, .. } if is_of_disk(source) => DATABASE_DISK_REMEDY.to_owned(),
                ApplyError::Database { .. } => {
                    "run PRAGMA integrity_check on the database; start again if it is sound, and else restore the node: woodchuck restore --replace".to_owned()
                }
                ApplyError::State(_)
                | ApplyError::Damaged { .. }
                | ApplyError::BeforeUnknown { .. }
                | ApplyError::NotLaidOut
                | ApplyError::NotLocked
                | ApplyError::NotRead => {
                    "it is in the state directory (--state-dir, or <database>-woodchuck): look at the disk and the cause; `woodchuck cleanup` makes the node new if the state cannot be saved".to_owned()
                }
            },
            NodeError::Connect(error) => error.hint().to_owned(),
            NodeError::Log(error) => error.hint(),
            NodeError::StateDirectory { .. } => "check the owner, the permissions and the free space of the state directory".to_owned(),
            NodeError::StateLost { .. } => "put it back; or begin as a new node: woodchuck cleanup, then woodchuck restore --replace. What was not published is in this database alone".to_owned(),
            NodeError::AlreadyRunning { .. } | NodeError::AlreadyAttached { .. } => "stop the other one first; one node serves all programs that use the database".to_owned(),
            NodeError::OtherNode { .. } => "leave --node-id out, or give the node a state directory of its own".to_owned(),
            NodeError::SameNodeId { .. } => "give every node a --node-id of its own; this one's state directory keeps its number, so `woodchuck cleanup` first, on the node that is to change".to_owned(),
            NodeError::OtherShards { .. } => "start with the old number; changing it needs new streams and a new state directory on every node".to_owned(),
            NodeError::Filter(error) => error.hint().to_owned(),
            NodeError::LeftOut { .. } => "start with the option again; or begin anew without it: woodchuck cleanup, move the database away, and woodchuck run makes it from a snapshot; what was written here alone is lost with it".to_owned(),
            NodeError::OtherFilters { .. } => "start with what it was made with; or begin anew with the other: woodchuck cleanup, move the database away, and woodchuck run makes it from a snapshot".to_owned(),
            NodeError::LogTrimmed { .. } => "replace it by the newest snapshot: woodchuck restore --replace --db-path …; what only this file has is lost with it".to_owned(),
            NodeError::LogShorter { .. } => "restore the server's storage; if it is gone for good, use new streams (--stream-prefix) on all nodes".to_owned(),
            NodeError::CannotBegin { source, .. } => source.hint(),
            NodeError::NotAnswering { .. } => "check that it runs (woodchuck status) and that its server answers".to_owned(),
            NodeError::Snapshot(_) => "check that the NATS server answers and has room for snapshots".to_owned(),
            NodeError::NoSnapshot { .. } => "make the database (PRAGMA journal_mode=WAL), or start a node that has it: it makes a snapshot when asked".to_owned(),
            NodeError::BadSnapshot { .. } => "make a new one with woodchuck snapshot save, from a node whose database is sound".to_owned(),
            NodeError::OtherContent { .. } => "begin with what the others have: woodchuck restore --replace --db-path …; what only this file has is lost with it".to_owned(),
            NodeError::Exists { .. } => "give --replace to replace it; what only this file has is lost with it".to_owned(),
            NodeError::NotReplaceable { .. } => "if it is to be given up, move it away (mv app.db app.db-damaged), then run woodchuck restore without --replace; `woodchuck inspect` shows what is left in it".to_owned(),
            NodeError::InUse { .. } => "stop what uses it, and try again".to_owned(),
            NodeError::Unpublished { .. } => "start the node and let it publish them (woodchuck status shows the outbox); where it refuses to start, or they are not wanted, woodchuck cleanup gives them up".to_owned(),
            NodeError::NoFolder { .. } => "check the path; a node without a database makes one from a snapshot, but not its folder".to_owned(),
            NodeError::RestoreInterrupted { .. } => "run it again: woodchuck restore --replace --db-path …".to_owned(),
            NodeError::OutboxFull { .. } => "bring the server back, or raise log.outbox_bytes_max; nothing is lost: changes stay in the database and its log".to_owned(),
            NodeError::NoServer { .. } => "give --nats-url, or put nats-server on the PATH".to_owned(),
            NodeError::Server { .. } => "see nats/nats.log in the state directory".to_owned(),
            NodeError::ConfigFile { .. } => "check the path and its permissions".to_owned(),
            NodeError::Ended(_) => "start again, and report it with the log".to_owned(),
        }
    }
}
