//! Layer 4: transactions to and from the log.
//!
//! ```text
//!  changes ─▶ UnitBuilder ─▶ units ─▶ plan, seal ─▶ messages ─▶ publish ══▶ Log: a stream per shard
//!                          (outbox: apply's)                                  ║
//!  whole transactions ◀─ consistent_cut ◀─ Folded::judge, Assembler ◀─ consume ◀═╝
//! ```
//!
//! Everything left of [`Log`] and of `consume` is pure: no network, no clock. What is durable is kept by the layer above. Uses `format`
//! (values) and `change` (operations).

mod assemble;
mod backoff;
mod consumer;
mod contract;
mod cut;
mod envelope;
mod error;
mod jetstream;
mod memory;
mod message;
mod order;
mod publisher;
mod seal;
mod shard;
mod snapshot;
mod units;

pub use assemble::{AssembleError, Assembler, Incomplete};
pub use consumer::{Announced, Arrived, Delivery, consume, consume_headers, spawn_consumers};
pub use contract::{Bounds, Entry, Log};
pub use cut::{CutShard, consistent_cut};
pub use envelope::{
    ENVELOPE_VERSION, EnvelopeError, MESSAGE_BYTES_MAX, decode, decode_header, decode_units, encode, encode_unit,
    encode_units, encoded_units, units_from_encoded,
};
pub use error::{ConnectError, LogError, PublishError};
pub use jetstream::{JetStreamLog, Link, NatsOptions, Question, Questions, ServerFacts, StreamOptions};
pub use memory::{Faults, MemoryLog};
pub use message::{
    Batch, Beginning, Body, Header, Origin, RoundPart, SchemaStep, ShardId, StreamSeq, TableShape, Unit, UnitChange,
    UnitKey,
};
pub use order::{Folded, Sequence};
pub use publisher::{Outgoing, PublishState, Published, Retrying, publish, send_round};
pub use seal::{
    Numbers, PlannedContent, PlannedMessage, Round, SealedMessage, message_id, plan, seal, seal_encoded, write_message,
};
pub use shard::shard_of;
pub use snapshot::{
    FirstContent, HASH_BYTES, Lease, Maker, MovedIn, Routing, ShardStand, SnapshotError, SnapshotInfo,
    SnapshotManifest, SnapshotStore, Stand, TableDigest, TableRouting, content_of_first, hash_file,
};
pub use units::{UNIQUE_UNIT_BYTES_MAX, UNIT_BYTES_MAX, UnitBuilder, UnitOrigin};
