//! What can go wrong while applying, told apart by who has to act.

use crate::log::{Origin, ShardId};
use crate::schema::RowFilterError;

/// Why a message cannot be applied now. It stops its shard; nothing of it is skipped, and it is tried again later.
#[derive(Debug, thiserror::Error)]
pub enum Cannot {
    /// The table is not in the local database.
    #[error("cannot apply: table {table} does not exist here")]
    NoTable {
        /// Its name at the origin.
        table: String,
    },
    /// The table lacks a column that the change carries.
    #[error("cannot apply: table {table} has no column {column} here")]
    NoColumn {
        /// The table.
        table: String,
        /// The column's name at the origin.
        column: String,
    },
    /// The table's key is another one than at the origin.
    #[error("cannot apply: table {table} has the key ({ours}) here and ({theirs}) at the origin")]
    KeyDiffers {
        /// The table.
        table: String,
        /// The local key's columns; `rowid` where there is none.
        ours: String,
        /// The origin's.
        theirs: String,
    },
    /// Rows are told apart by a rowid that SQL cannot name.
    #[error("cannot apply: the columns of table {table} hide its rowid")]
    RowidHidden {
        /// The table.
        table: String,
    },
    /// SQLite refuses the row: NOT NULL, a type of a STRICT table, a collation or function that this process does not have.
    #[error("cannot apply: table {table} refuses a row: {source}")]
    Refused {
        /// The table.
        table: String,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// An object of the schema is neither what a change of it began with nor what it made of it.
    #[error("cannot apply: {kind} {name} is here {ours:?}, and {theirs:?} at the origin")]
    SchemaDiffers {
        /// `table`, `index`, `view` or `trigger`.
        kind: String,
        /// Its name.
        name: String,
        /// Its CREATE statement here.
        ours: String,
        /// And after the change at the origin.
        theirs: String,
    },
    /// SQLite refuses a change of the schema: rows are in its way, or a function or collation that this process does not have.
    #[error("cannot apply: {kind} {name} cannot be changed: {source}")]
    SchemaRefused {
        /// `table`, `index`, `view` or `trigger`.
        kind: String,
        /// Its name.
        name: String,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// What is sent as the definition of an object is no CREATE statement of such a one.
    #[error("cannot apply: what is sent as the definition of {kind} {name} is none")]
    NoDefinition {
        /// `table`, `index`, `view` or `trigger`.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The snapshot to catch up from is without a change of the schema that was made here, and ahead of the messages all the same.
    #[error("cannot catch up: the snapshot is without a change of the schema that was made here already")]
    SnapshotWithoutSchema,
    /// The filter cannot tell the rows of its table.
    #[error(transparent)]
    Filter(#[from] RowFilterError),
    /// The log skips a message of an origin: a server lost what it had acknowledged.
    #[error("shard {}: message {wanted} of origin {:016x}-{:016x} is missing, found {found}", shard.0, origin.node_id, origin.epoch)]
    MissingBatch {
        /// The shard.
        shard: ShardId,
        /// Whose message.
        origin: Origin,
        /// The `batch_no` that had to come.
        wanted: u64,
        /// The `batch_no` that came.
        found: u64,
    },
    /// A piece of a large unit does not follow the one before, or the pieces do not decode.
    #[error("shard {}: piece {index} of {count} of origin {:016x}-{:016x} does not fit what came before", shard.0, origin.node_id, origin.epoch)]
    BadPiece {
        /// The shard.
        shard: ShardId,
        /// Whose piece.
        origin: Origin,
        /// Its index, from 0.
        index: u32,
        /// How many pieces there are.
        count: u32,
    },
    /// A message carries our origin and is not what we sealed: two nodes go on from copies of one state.
    #[error("shard {}: message {batch_no} carries our origin, and this state directory did not seal it", shard.0)]
    NotOurs {
        /// The shard.
        shard: ShardId,
        /// Its number.
        batch_no: u64,
    },
}

impl Cannot {
    /// Whether it is over as soon as the schema is as it should be.
    fn is_of_schema(&self) -> bool {
        matches!(
            self,
            Cannot::NoTable { .. }
                | Cannot::NoColumn { .. }
                | Cannot::SchemaDiffers { .. }
                | Cannot::SchemaRefused { .. }
        )
    }

    /// What the operator can do about it while the node runs and tries again, one line.
    #[must_use]
    pub fn remedy(&self) -> String {
        let end = if self.is_of_schema() { "; applying resumes by itself" } else { "" };
        format!("{}{end}", self.what_to_do())
    }

    /// The same where it has ended the node.
    #[must_use]
    pub fn remedy_of_end(&self) -> String {
        let end = if self.is_of_schema() { ", and start this node again" } else { "" };
        format!("{}{end}", self.what_to_do())
    }

    fn what_to_do(&self) -> String {
        match self {
            Cannot::NoTable { table } => {
                format!("create table {table} as the other nodes have it")
            }
            Cannot::NoColumn { table, column } => {
                format!("add column {column} to table {table}")
            }
            Cannot::KeyDiffers { table, theirs, .. } => format!("rebuild table {table} with PRIMARY KEY ({theirs})"),
            Cannot::RowidHidden { table } => {
                format!("give table {table} a PRIMARY KEY, or exclude it with --exclude-tables")
            }
            Cannot::SchemaDiffers { kind, name, .. } => {
                format!("give {kind} {name} one definition on both nodes")
            }
            Cannot::SchemaRefused { kind, name, .. } => {
                format!("make the change of {kind} {name} here by hand, or remove what is in its way")
            }
            Cannot::Refused { table, .. } => format!(
                "give table {table} the definition that it has on the other nodes, or run this one with what the definition needs from outside"
            ),
            Cannot::SnapshotWithoutSchema => {
                "have a newer one made on another node (woodchuck snapshot save), and start this one again".to_owned()
            }
            Cannot::Filter(error) => format!(
                "{}; a node with another filter begins anew: woodchuck cleanup, then woodchuck run --where …",
                error.hint()
            ),
            Cannot::MissingBatch { .. } => {
                "the log lost data: restore this node from a snapshot, and check the NATS servers' storage".to_owned()
            }
            Cannot::BadPiece { .. } | Cannot::NoDefinition { .. } => {
                "the log holds a damaged message: restore this node from a snapshot".to_owned()
            }
            Cannot::NotOurs { .. } => {
                "give every node its own --node-id and state directory; if this one is an older copy, begin anew from a snapshot (woodchuck restore --replace)".to_owned()
            }
        }
    }
}

/// A failure of applying, capturing into the outbox, or sealing.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The state is to be read from outside, and not all of its base is where it is looked for.
    #[error("base of units that are pending is not laid out")]
    NotLaidOut,
    /// A message that has arrived could not be read; whoever keeps it knows why.
    #[error("a message that has arrived cannot be read")]
    NotRead,
    /// Our own database failed.
    #[error("state.db failed")]
    State(#[from] rusqlite::Error),
    /// A transaction that the log would begin to drop before all of it is there.
    #[error(
        "a transaction needs {messages} messages in one shard, and the log has room for {messages_max} of one transaction"
    )]
    TransactionTooLarge {
        /// How many it needs in the shard that has most.
        messages: usize,
        /// How many there may be: half of max-log-entries.
        messages_max: usize,
    },
    /// The user's database failed for a reason that is not the row's.
    #[error("database failed while {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// The file is no state database of ours.
    #[error("{path} is not a woodchuck state database")]
    NotState {
        /// Where it is.
        path: String,
    },
    /// The state database was written by a version that we do not know.
    #[error("{path} has state version {found}, this program knows {known}")]
    StateVersion {
        /// Where it is.
        path: String,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// The state directory belongs to another database.
    #[error("the state belongs to database {found}, not to {wanted}")]
    OtherDatabase {
        /// The identity in the state.
        found: String,
        /// The identity of the database at hand.
        wanted: String,
    },
    /// Something that we wrote ourselves cannot be read.
    #[error("state.db is damaged: {what}")]
    Damaged {
        /// What cannot be read.
        what: &'static str,
    },
    /// A local change came without its before image, so the row's base is not known.
    #[error("a change of table {table} has no before image")]
    BeforeUnknown {
        /// The table.
        table: String,
    },
    /// A pending change of our own cannot be replayed: the local table refuses what it once held. (Messages that cannot be applied are
    /// reported as blocked, not as an error.)
    #[error("a change cannot be applied")]
    Cannot(#[from] Cannot),
    /// What was to be folded without the write lock of the user's database cannot be.
    #[error("these messages need the write lock of the database")]
    NotLocked,
}

impl From<RowFilterError> for ApplyError {
    fn from(error: RowFilterError) -> ApplyError {
        ApplyError::Cannot(Cannot::Filter(error))
    }
}

impl ApplyError {
    /// Sorts a failure of a change of the schema as [`ApplyError::row`] does.
    pub(super) fn schema(kind: &str, name: &str, source: rusqlite::Error) -> ApplyError {
        match ApplyError::row(name, source) {
            ApplyError::Cannot(Cannot::Refused { table, source }) => {
                Cannot::SchemaRefused { kind: kind.to_owned(), name: table, source }.into()
            }
            other => other,
        }
    }

    /// Sorts a failure of the user's database: what SQLite says about a row or a definition stops the shard, anything else is an error of
    /// the database itself.
    pub(super) fn row(table: &str, source: rusqlite::Error) -> ApplyError {
        use rusqlite::ErrorCode;
        let code = match &source {
            rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
            other => other.sqlite_error_code(),
        };
        let about_row = match code {
            // `Unknown` is plain SQLITE_ERROR: no such collation, no such function, no such column.
            Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig | ErrorCode::Unknown) => {
                true
            }
            Some(_) | None => false,
        };
        // More than one statement, or one that gives rows, where a definition should be.
        let about_row =
            about_row || matches!(source, rusqlite::Error::MultipleStatement | rusqlite::Error::ExecuteReturnedResults);
        if about_row {
            ApplyError::Cannot(Cannot::Refused { table: table.to_owned(), source })
        } else {
            ApplyError::Database { doing: "writing rows", source }
        }
    }
}
