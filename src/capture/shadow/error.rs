//! What can go wrong with the shadow, or with what it is compared with.

use std::path::PathBuf;

/// Why the shadow cannot be used, or must not be.
#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    /// A file of the shadow cannot be read or written.
    #[error("{}: {what} failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A position is known, but the shadow that belongs to it is not there.
    #[error("{}: the file is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what was written.
    #[error("{}: damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The shadow and the database cannot be compared.
    #[error("{}: it cannot be compared with the database: one of both is damaged", path.display())]
    Incomparable {
        /// The shadow.
        path: PathBuf,
        /// What is wrong with a page.
        #[source]
        source: crate::change::DiffError,
    },
    /// The file was written by another version of the program.
    #[error("{}: format version {found} is not known", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
    },
    /// The shadow was copied too slowly: what was written meanwhile had to go into it.
    #[error("{}: more was written than could be kept aside while it was copied", path.display())]
    Revoked {
        /// The shadow.
        path: PathBuf,
    },
    /// The shadow does not have the position: it belongs to another state, or its last part is lost.
    #[error("{}: the shadow was never at the position that the state has (frame {frame} under {salts})", path.display())]
    NotAtPosition {
        /// The journal.
        path: PathBuf,
        /// Generation of the position.
        salts: crate::format::Salts,
        /// Frame of the position.
        frame: u32,
    },
    /// The database was given another page size.
    #[error("{}: the database has pages of {found} bytes; its shadow has pages of {wanted}", path.display())]
    PageSize {
        /// The database.
        path: PathBuf,
        /// Page size of the database.
        found: u32,
        /// Page size of the shadow.
        wanted: u32,
    },
    /// A copy or a comparison was ended by who was told its progress.
    #[error("it was told to stop")]
    Interrupted,
    /// Commits that were captured are not in the database any more: it lost its tail, as in a power failure.
    #[error(
        "{}: the database went back in time: {captured} frames of the write-ahead log were captured, and now it has {found}",
        path.display()
    )]
    WentBack {
        /// The database.
        path: PathBuf,
        /// The frame that was captured last.
        captured: u32,
        /// Committed frames that the log has now.
        found: u32,
    },
    /// The database was restored from a backup, and taking it as it is would delete much.
    #[error(
        "{}: {deletes} of {rows} rows are gone that were there when it was last followed: an older file was put back, or so much was deleted, or \
         given other keys, since",
        path.display()
    )]
    Restored {
        /// The database.
        path: PathBuf,
        /// Rows that would be deleted.
        deletes: u64,
        /// Rows that the shadow has.
        rows: u64,
    },
}

impl ShadowError {
    /// What an operator can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            ShadowError::Io { .. } | ShadowError::Revoked { .. } => {
                "check the space and the permissions of the state directory"
            }
            ShadowError::Missing { .. } | ShadowError::Damaged { .. } | ShadowError::NotAtPosition { .. } => {
                "woodchuck run --new-shadow makes it anew: the outbox is published, but what changed while nobody followed is not found"
            }
            ShadowError::Incomparable { .. } => {
                "run PRAGMA integrity_check on the database; if it is sound, woodchuck run --new-shadow makes the shadow anew, and if not, begin anew from the others: woodchuck cleanup, then woodchuck restore --replace"
            }
            ShadowError::Version { .. } => "use the version that wrote it, or woodchuck run --new-shadow",
            ShadowError::PageSize { .. } => {
                "give the database its old page size again (PRAGMA journal_mode=DELETE; PRAGMA page_size=…; VACUUM; PRAGMA journal_mode=WAL) and start: what changed is found then. With woodchuck run --new-shadow it goes on as it is, and what changed meanwhile is found by nobody: nodes can differ"
            }
            ShadowError::WentBack { .. } => {
                "give --accept-restored to publish the database as it is now, or restore the node from a snapshot"
            }
            ShadowError::Interrupted => "start again: it begins anew",
            ShadowError::Restored { .. } => {
                "if the application did that, give --accept-restored: the difference is published as changes; if not, put the newer file back, or restore the node from a snapshot (woodchuck restore --replace; what was not published stands in its way until woodchuck cleanup gives it up)"
            }
        }
    }
}
