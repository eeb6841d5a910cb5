//! Layer 4: transactions to and from the log.

mod assemble;
mod cut;
mod envelope;
mod message;
mod order;
mod seal;
mod shard;
mod units;

pub use assemble::{AssembleError, Assembler, Incomplete};
pub use cut::{CutShard, consistent_cut};
pub use envelope::{
    ENVELOPE_VERSION, EnvelopeError, MESSAGE_BYTES_MAX, decode, decode_header, decode_units, encode, encode_unit,
    encode_units,
};
pub use message::{Batch, Body, Header, Origin, RoundPart, ShardId, StreamSeq, TableShape, Unit, UnitChange, UnitKey};
pub use order::{Folded, Sequence};
pub use seal::{
    Numbers, PlannedContent, PlannedMessage, Round, SealedMessage, message_id, plan, seal, seal_encoded, write_message,
};
pub use shard::shard_of;
pub use units::{UNIT_BYTES_MAX, UnitBuilder, UnitOrigin};
