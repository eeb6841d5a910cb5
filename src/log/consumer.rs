//! Reads shards and hands on decoded messages.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::contract::{Entry, Log};
use super::envelope::{EnvelopeError, MESSAGE_BYTES_MAX, decode, decode_header, judge_place};
use super::error::LogError;
use super::message::{Batch, Header, ShardId, StreamSeq};

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

/// A message that arrived, of which only the header is decoded. A round can be larger than memory: who waits for its end keeps headers,
/// drops payloads where there are too many, and reads those again when it applies them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Its shard.
    pub shard: ShardId,
    /// Its number in the stream.
    pub seq: StreamSeq,
    /// When the server stored it, by the server's clock: for people, never for order.
    pub time: SystemTime,
    /// Its place.
    pub header: Header,
    /// Its bytes, for [`decode`].
    pub payload: Bytes,
}

/// What a consumer delivers: messages as [`Arrived`], or as [`Announced`] where it was asked for headers.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery<T = Arrived> {
    /// The next message of its shard.
    Arrived(T),
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
    consume_with(log, shard, from, deliveries, |Entry { seq, time, payload }| {
        let batch = decode(&payload, MESSAGE_BYTES_MAX)?;
        judge_place(&batch.header, shard).map_err(EnvelopeError::Inconsistent)?;
        Ok(Arrived { shard, seq, time, payload_bytes: payload.len(), batch })
    })
    .await;
}

/// As [`consume`], but decodes headers only. What is wrong with a message behind its header shows when it is decoded.
pub async fn consume_headers(
    log: Arc<dyn Log>,
    shard: ShardId,
    from: StreamSeq,
    deliveries: mpsc::Sender<Delivery<Announced>>,
) {
    consume_with(log, shard, from, deliveries, |Entry { seq, time, payload }| {
        let header = decode_header(&payload, MESSAGE_BYTES_MAX)?;
        judge_place(&header, shard).map_err(EnvelopeError::Inconsistent)?;
        Ok(Announced { shard, seq, time, header, payload })
    })
    .await;
}

async fn consume_with<T>(
    log: Arc<dyn Log>,
    shard: ShardId,
    from: StreamSeq,
    deliveries: mpsc::Sender<Delivery<T>>,
    decode: impl Fn(Entry) -> Result<T, EnvelopeError>,
) {
    let mut entries = log.read(shard, from);
    loop {
        // A reader whose shard is silent would not notice otherwise that it is not wanted any more.
        let entry = tokio::select! {
            entry = entries.next() => entry,
            () = deliveries.closed() => return,
        };
        let Some(entry) = entry else { return };
        let decoded = entry.and_then(|entry| {
            let seq = entry.seq;
            decode(entry).map_err(|source| LogError::Undecodable { stream: log.stream_name(shard), seq, source })
        });
        let failed = decoded.is_err();
        let delivery = match decoded {
            Ok(message) => Delivery::Arrived(message),
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
