//! Reads shards and hands on decoded messages.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::contract::Log;
use super::envelope::{EnvelopeError, MESSAGE_BYTES_MAX, decode, judge_place};
use super::error::LogError;
use super::message::{Batch, ShardId, StreamSeq};

/// A message that arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrived {
    /// Its shard.
    pub shard: ShardId,
    /// Its number in the stream.
    pub seq: StreamSeq,
    /// When the server stored it, by the server's clock: for people, never for order.
    pub time: SystemTime,
    /// Bytes it had on the wire.
    pub payload_bytes: usize,
    /// What it says.
    pub batch: Batch,
}

/// What a consumer delivers.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// The next message of its shard.
    Arrived(Arrived),
    /// The shard cannot be read on: this is its last delivery. Start its consumer anew once the cause is gone.
    Failed {
        /// The shard.
        shard: ShardId,
        /// Why.
        error: LogError,
    },
}

/// Delivers the messages of one shard, in order, from message `from` on. Waits while `deliveries` is full: nothing is dropped.
///
/// Ends after a failure, or when nobody takes deliveries. Dropping it at any time is safe.
pub async fn consume(log: Arc<dyn Log>, shard: ShardId, from: StreamSeq, deliveries: mpsc::Sender<Delivery>) {
    let mut entries = log.read(shard, from);
    loop {
        // A reader whose shard is silent would not notice otherwise that it is not wanted any more.
        let entry = tokio::select! {
            entry = entries.next() => entry,
            () = deliveries.closed() => return,
        };
        let Some(entry) = entry else { return };
        let decoded = entry.and_then(|entry| {
            let batch = decode(&entry.payload, MESSAGE_BYTES_MAX).and_then(|batch| {
                judge_place(&batch.header, shard).map_err(EnvelopeError::Inconsistent)?;
                Ok(batch)
            });
            match batch {
                Ok(batch) => {
                    let payload_bytes = entry.payload.len();
                    Ok(Arrived { shard, seq: entry.seq, time: entry.time, payload_bytes, batch })
                }
                Err(source) => Err(LogError::Undecodable { stream: log.stream_name(shard), seq: entry.seq, source }),
            }
        });
        let failed = decoded.is_err();
        let delivery = match decoded {
            Ok(arrived) => Delivery::Arrived(arrived),
            Err(error) => Delivery::Failed { shard, error },
        };
        if deliveries.send(delivery).await.is_err() || failed {
            return;
        }
    }
}

/// Runs a consumer for each shard, all delivering into one channel. Dropping the set stops them.
#[must_use]
pub fn spawn_consumers(
    log: &Arc<dyn Log>,
    from: impl IntoIterator<Item = (ShardId, StreamSeq)>,
    deliveries: &mpsc::Sender<Delivery>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (shard, from) in from {
        tasks.spawn(consume(Arc::clone(log), shard, from, deliveries.clone()));
    }
    tasks
}
