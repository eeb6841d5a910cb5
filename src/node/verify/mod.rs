//! Comparing the databases of all nodes at one position of the log, while everybody writes.
//!
//! ```text
//!  asking node                      every node, itself as well
//!  present ───────────────────────▶ who is there
//!  hold ──────────────────────────▶ applies nothing for a moment: none is beyond the end of the log that is looked at next
//!  ends of all streams ──▶ digest ▶ applies up to there, whole rounds only, and takes hold of database and state as they are then;
//!                                   goes on; digests beside it
//!  digests differ: buckets, hashes, rows ▶ from what was taken hold of
//!  done ──────────────────────────▶ lets go
//! ```
//!
//! Invariant: the largest set of whole rounds up to given messages is one and the same for all nodes, however each came there. So all that
//! were not beyond it digest the same fold; each says where it stands, and only equal places are compared.

mod answer;
mod ask;
mod report;
mod wire;

pub(super) use answer::{Taken, Verifier, VerifyAsk};
pub use report::{DifferingRow, RowThere, TableReport, TableVerdict, VerifyReport};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long applying rests until it is said how far to go. Whoever asks needs some round trips for that.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(2);

/// What is to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyOptions {
    /// Only these tables; empty: all.
    pub tables: Vec<String>,
    /// Not these.
    pub exclude_tables: Vec<String>,
    /// Only rows within these filters, `table: expression`. Each node's own count beside them.
    pub rows: Vec<String>,
    /// The nodes to compare; empty: all that are there, and those of which the log has messages are missed when they are not.
    pub nodes: Vec<u64>,
    /// How long each node may read, and keep its application's log from beginning anew.
    pub within_ms: u64,
}
