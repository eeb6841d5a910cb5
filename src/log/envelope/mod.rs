//! The bytes of a message. docs/envelope.md describes them for programs in other languages.
//!
//! ```text
//! message   zstd frame of a batch (begins 28 b5 2f fd), or a batch
//! batch     {"woodchuck": 1, "node", "epoch", "batch", "round", "part": uint, "shards": [[shard, message_count]…], "barrier": true (schema),
//!            "units": [unit…] | "piece": {"index", "count": uint, "bytes": bytes}}
//! unit      {"tx", "part": uint, "salts": 8 bytes, "frame": uint, "repaired": bool, "seen": uint (unless 0),
//!            "schema": [step…] (where it changes),
//!            "tables": [table…], "changes": [change…]}
//! step      {"kind", "name", "table": text, "name_before", "before", "after": text (where there is one)}
//! table     {"name": text, "columns": [text…], "key": [uint…]}
//! change    {"op": "insert" | "update" | "delete", "table": uint, "key": [value…] | "rowid": int,
//!            "changed": [uint…] (updates), "after": [value…] (not deletes), "before": [value…] (on request),
//!            "if_there": true (updates of rows that may be gone)}
//! value     null | int | float64 | text | bytes | [bytes] (TEXT that is not valid UTF-8)
//! ```
//!
//! Invariant: lengths are definite, `woodchuck` stands first, what a batch carries stands last, and `tables` before `changes`.
//! Invariant: keys that a reader does not know are skipped; a version that it does not know is refused.

mod judge;
mod read;
mod write;

use thiserror::Error;

pub(super) use judge::judge_place;
pub use read::{decode, decode_header, decode_units, encoded_units};
pub(super) use write::{EncodedBody, change_bytes, schema_bytes, shape_bytes, write_batch};
pub use write::{encode, encode_unit, encode_units, units_from_encoded};

/// The version that this program writes, and the only one that it reads.
pub const ENVELOPE_VERSION: u64 = 1;

/// The most bytes that a message may have once decompressed: the largest `max_payload` that a NATS server accepts.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The four bytes every zstd frame begins with. As CBOR they would be a negative number, which no batch begins with.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Values nest three deep in what we write; unknown keys of later versions may hold a little more. Deeper is an attack on the stack.
const NESTING_MAX: u32 = 16;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// The first key is not `woodchuck`: somebody else publishes to the subject, or the bytes are damaged.
    #[error("not a woodchuck message: it does not begin with a map whose first key is \"woodchuck\"")]
    Foreign,
    /// A version that this program does not read.
    #[error("envelope version {found} is unknown: this program reads version {}", ENVELOPE_VERSION)]
    Version {
        /// The version of the message.
        found: u64,
    },
    /// More bytes than allowed, after decompression.
    #[error("message is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The zstd frame is damaged.
    #[error("message cannot be decompressed: {0}")]
    Zstd(String),
    /// The bytes are not the CBOR that the format asks for.
    #[error("message is damaged at byte {offset}: {what}")]
    Cbor {
        /// Offset in the decompressed message.
        offset: usize,
        /// What is wrong there.
        what: String,
    },
    /// A key is not there.
    #[error("message has no \"{key}\" in its {place}")]
    Missing {
        /// The key.
        key: &'static str,
        /// `batch`, `piece`, `unit`, `table`, `schema` or `change`.
        place: &'static str,
    },
    /// Readable, but its parts contradict each other.
    #[error("message contradicts itself: {0}")]
    Inconsistent(String),
}
