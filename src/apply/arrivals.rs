//! What a replica is given to fold, and what comes of it.

use std::borrow::Cow;

use super::error::{ApplyError, Cannot};
use super::fold::FoldCounts;
use crate::log::{Batch, Body, Header, ShardId, StreamSeq, encode_units};

/// A message with its place in its stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    /// Its shard.
    pub shard: ShardId,
    /// Its number there.
    pub seq: StreamSeq,
    /// The message.
    pub batch: Batch,
}

/// Messages that have arrived, in order per shard. They are read one by one, because together they may be larger than memory.
pub trait Arrivals {
    /// How many there are.
    fn count(&self) -> usize;

    /// Shard, number and header of one; `None` behind the last.
    fn place(&self, index: usize) -> Option<(ShardId, StreamSeq, &Header)>;

    /// What it says.
    ///
    /// # Errors
    /// [`ApplyError::NotRead`].
    fn batch(&self, index: usize) -> Result<Cow<'_, Batch>, ApplyError>;

    /// Its list of units, encoded; `None` where they cannot be had without decoding them.
    ///
    /// # Errors
    /// [`ApplyError::NotRead`].
    fn units(&self, index: usize) -> Result<Option<Cow<'_, [u8]>>, ApplyError>;
}

impl Arrivals for [Arrived] {
    fn count(&self) -> usize {
        self.len()
    }

    fn place(&self, index: usize) -> Option<(ShardId, StreamSeq, &Header)> {
        self.get(index).map(|message| (message.shard, message.seq, &message.batch.header))
    }

    fn batch(&self, index: usize) -> Result<Cow<'_, Batch>, ApplyError> {
        self.get(index).map(|message| Cow::Borrowed(&message.batch)).ok_or(ApplyError::NotRead)
    }

    fn units(&self, index: usize) -> Result<Option<Cow<'_, [u8]>>, ApplyError> {
        Ok(match &self.get(index).ok_or(ApplyError::NotRead)?.batch.body {
            Body::Units(units) => Some(Cow::Owned(encode_units(units))),
            Body::Piece { .. } => None,
        })
    }
}

/// A shard that stops at a message.
#[derive(Debug)]
pub struct Blocked {
    /// The shard.
    pub shard: ShardId,
    /// The message; those before it are folded.
    pub seq: StreamSeq,
    /// Why.
    pub cause: Cannot,
}

/// What a fold did, and where it stopped.
#[derive(Debug, Default)]
pub struct FoldReport {
    /// What was done.
    pub counts: FoldCounts,
    /// Shards that could not go on. When one of their rounds is in other shards too, those parts are folded: a node that wants whole
    /// rounds rolls back and cuts before the message.
    pub blocked: Vec<Blocked>,
}

/// How [`Replica::commit`](super::Replica::commit) ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The user's database did not change; its transaction was rolled back and everything is done.
    Unchanged,
    /// The user's database committed. [`Replica::finish`](super::Replica::finish) must follow with the capture position behind that commit.
    Written,
}
