//! What goes wrong with snapshots.

use super::super::error::LogError;

/// Why a snapshot was not stored or not fetched.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The server did not do it now; it may later.
    #[error("the snapshot store does not answer: {0}")]
    Store(String),
    /// What is stored is not what was put there. The next older one may be whole.
    #[error("snapshot {no} cannot be used: {what}")]
    Damaged {
        /// Its number.
        no: u64,
        /// What is wrong.
        what: String,
    },
    /// It was removed while it was read: there are newer ones.
    #[error("snapshot {no} was removed while it was read")]
    Removed {
        /// Its number.
        no: u64,
    },
    /// A file of ours cannot be read or written.
    #[error("{what} failed")]
    File {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another node may be making snapshots by now, so this one gave up.
    #[error("the lease on making snapshots was lost")]
    LeaseLost,
    /// The streams cannot be asked.
    #[error(transparent)]
    Log(#[from] LogError),
}
