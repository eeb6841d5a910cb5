//! Sends sealed messages: one after another inside a shard, shards side by side, again and again until acknowledged.
//!
//! Invariant: message n + 1 of a shard is not sent before message n is acknowledged. Were it, a lost n and its retry would put them into the
//! log in the wrong order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::contract::Log;
use super::message::{ShardId, StreamSeq};
use super::seal::{Round, SealedMessage};
use crate::fault::{self, Point};

/// Short enough that a hiccup costs little.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// Long enough not to press a server that is down, short enough to be back soon after it is.
const RETRY_CAP: Duration = Duration::from_secs(2);

/// Messages that wait in each shard's queue: one being sent and one behind it; more would only hold memory.
const SHARD_QUEUE_MAX: usize = 1;

/// What the publisher is given.
#[derive(Debug)]
pub enum Outgoing {
    /// The next message. Messages of a shard come in the order of their batch numbers.
    Message(SealedMessage),
    /// All messages of the round have been given: report when they are acknowledged.
    RoundEnd {
        /// The round.
        round_no: u64,
    },
}

/// What the publisher reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The server has acknowledged a message.
    Message {
        /// Its shard.
        shard: ShardId,
        /// Its batch number.
        batch_no: u64,
        /// Its number in the stream.
        seq: StreamSeq,
    },
    /// Every message given since the round before is acknowledged.
    Round {
        /// The round.
        round_no: u64,
    },
}

/// A shard whose message is not acknowledged yet although it was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retrying {
    /// When the first try failed.
    pub since: SystemTime,
    /// Tries so far.
    pub attempt_count: u64,
    /// Why the last one failed.
    pub error_last: String,
}

/// Shards in trouble; empty when all is well.
pub type PublishState = BTreeMap<ShardId, Retrying>;

/// Gives a round that is in memory to the publisher; false when the publisher is gone.
pub async fn send_round(outgoing: &mpsc::Sender<Outgoing>, round: Round) -> bool {
    for message in round.messages {
        if outgoing.send(Outgoing::Message(message)).await.is_err() {
            return false;
        }
    }
    outgoing.send(Outgoing::RoundEnd { round_no: round.round_no }).await.is_ok()
}

/// Publishes until `outgoing` is closed and everything given is acknowledged, or until `shutdown`, or until nobody listens to `published`.
///
/// Stopping at any moment is safe: what was not reported is sent again, under the same ids, by whoever goes on.
pub async fn publish(
    log: Arc<dyn Log>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    published: mpsc::Sender<Published>,
    state: watch::Sender<PublishState>,
    shutdown: impl Future<Output = ()>,
) {
    // Dropping the set at the end aborts the shards' tasks wherever they are.
    let mut tasks = JoinSet::new();
    let work = async {
        let mut shards: HashMap<ShardId, mpsc::Sender<SealedMessage>> = HashMap::new();
        // Shards send at most as many acknowledgements as messages are under way, so this is never full for long.
        let (acknowledged, mut acks) = mpsc::channel(64);
        let state = Arc::new(state);
        let (mut sent, mut acked) = (0_u64, 0_u64);
        // At most one round is in flight, but its end may come before its acknowledgements.
        let mut round_end = None;
        let mut open = true;
        loop {
            if acked == sent {
                if let Some(round_no) = round_end.take()
                    && published.send(Published::Round { round_no }).await.is_err()
                {
                    return;
                }
                if !open {
                    return;
                }
            }
            tokio::select! {
                item = outgoing.recv(), if open && round_end.is_none() => match item {
                    None => open = false,
                    Some(Outgoing::RoundEnd { round_no }) => round_end = Some(round_no),
                    Some(Outgoing::Message(message)) => {
                        let shard = message.shard;
                        let queue = shards.entry(shard).or_insert_with(|| {
                            let (queue, messages) = mpsc::channel(SHARD_QUEUE_MAX);
                            tasks.spawn(publish_shard(
                                Arc::clone(&log), messages, acknowledged.clone(), Arc::clone(&state),
                            ));
                            queue
                        });
                        sent += 1;
                        // While this shard's queue is full, acknowledgements must be taken or the shard could not go on.
                        let mut sending = std::pin::pin!(queue.send(message));
                        loop {
                            tokio::select! {
                                done = &mut sending => match done {
                                    Ok(()) => break,
                                    Err(_) => return,
                                },
                                Some(ack) = acks.recv() => {
                                    acked += 1;
                                    if published.send(ack).await.is_err() {
                                        return;
                                    }
                                }
                            }
                        }
                    }
                },
                Some(ack) = acks.recv() => {
                    acked += 1;
                    if published.send(ack).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown => {}
    }
    tasks.shutdown().await;
}

async fn publish_shard(
    log: Arc<dyn Log>,
    mut messages: mpsc::Receiver<SealedMessage>,
    acknowledged: mpsc::Sender<Published>,
    state: Arc<watch::Sender<PublishState>>,
) {
    while let Some(message) = messages.recv().await {
        let (shard, batch_no) = (message.shard, message.header.batch_no);
        let seq = publish_until_acknowledged(log.as_ref(), message, &state).await;
        if acknowledged.send(Published::Message { shard, batch_no, seq }).await.is_err() {
            return;
        }
    }
}

async fn publish_until_acknowledged(
    log: &dyn Log,
    message: SealedMessage,
    state: &watch::Sender<PublishState>,
) -> StreamSeq {
    let (shard, id) = (message.shard, message.message_id());
    let payload = Bytes::from(message.payload);
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    let mut failed = false;
    // Without end on purpose: giving up would lose a change. The state shows it, and shutdown ends it.
    loop {
        fault::pass(Point::Publish);
        match log.publish(shard, &id, payload.clone()).await {
            Ok(seq) => {
                fault::pass(Point::Published);
                if failed {
                    state.send_modify(|shards| drop(shards.remove(&shard)));
                }
                return seq;
            }
            Err(error) => {
                failed = true;
                state.send_modify(|shards| {
                    let retrying = shards.entry(shard).or_insert_with(|| Retrying {
                        since: SystemTime::now(),
                        attempt_count: 0,
                        error_last: String::new(),
                    });
                    retrying.attempt_count += 1;
                    retrying.error_last = error.to_string();
                });
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}
