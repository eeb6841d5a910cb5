//! Layer 4: transactions to and from the log.

mod message;

pub use message::{Batch, Body, Header, Origin, RoundPart, ShardId, StreamSeq, TableShape, Unit, UnitChange, UnitKey};
