//! What the streams are known to hold. A server that comes back with less has lost messages that it had acknowledged; nothing may take
//! their places.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::message::{ShardId, StreamSeq};

/// One shard's.
#[derive(Debug, Default)]
struct Floor {
    /// The last message that was acknowledged or read.
    seq: AtomicU64,
    /// The number of the connection over which the stream was found to hold it.
    checked: AtomicU64,
}

/// All shards'.
#[derive(Debug)]
pub(super) struct Floors(Vec<Floor>);

impl Floors {
    pub(super) fn new(shard_count: u16) -> Floors {
        Floors((0..shard_count).map(|_| Floor::default()).collect())
    }

    fn of(&self, shard: ShardId) -> Option<&Floor> {
        self.0.get(usize::from(shard.0).checked_sub(1)?)
    }

    pub(super) fn raise(&self, shard: ShardId, seq: StreamSeq) {
        if let Some(floor) = self.of(shard) {
            floor.seq.fetch_max(seq.0, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self, shard: ShardId) -> StreamSeq {
        StreamSeq(self.of(shard).map_or(0, |floor| floor.seq.load(Ordering::Relaxed)))
    }

    /// Whether the stream was looked at over a connection.
    pub(super) fn is_checked(&self, shard: ShardId, connection: u64) -> bool {
        self.of(shard).is_none_or(|floor| floor.checked.load(Ordering::Relaxed) == connection)
    }

    pub(super) fn set_checked(&self, shard: ShardId, connection: u64) {
        if let Some(floor) = self.of(shard) {
            floor.checked.store(connection, Ordering::Relaxed);
        }
    }
}
