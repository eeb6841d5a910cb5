//! A server that lost messages which it had acknowledged gets them again, each in its place: then the log is what it was, and nobody who
//! has read it needs to know.
//!
//! Every node has its own. The stream takes a message only where it stood, so nodes take turns without knowing of each other; one that is
//! gone, or keeps nothing that is so old, leaves a gap that nobody else may close.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::place::Seen;
use crate::log::{Log, LogError, ShardId, StreamSeq};

/// How soon the stream is looked at again while it is another node's turn: at first, as turns are short, and in the end, as long as nothing comes.
const LOOK_FIRST: Duration = Duration::from_millis(4);
const LOOK_CAP: Duration = Duration::from_millis(200);
/// How long another node may take before it is said that it is waited for, and how often from then on.
const TELL_AFTER: Duration = Duration::from_secs(5);
const TELL_INTERVAL: Duration = Duration::from_secs(30);
/// How long a node that has nothing to put back waits for the others, who may not know yet what is lost.
const OTHERS_WITHIN: Duration = Duration::from_secs(15);

/// What the server has lost of a shard.
#[derive(Debug)]
pub struct LostTail {
    /// The last message that is known to have been there.
    pub(super) known: StreamSeq,
    /// What this node has sent of it.
    pub(super) ours: BTreeMap<StreamSeq, Bytes>,
    /// What this node has read.
    pub(super) seen: Seen,
    /// What ends the node if nobody puts it back.
    pub(super) error: LogError,
}

/// Puts back what is ours until the stream is whole, and waits for what others put back in between.
///
/// # Errors
/// [`LogError::Rewritten`] where a new message has taken a place. The error that was given where it does not come to that: a node that has
/// nothing to put back does not wait for ever.
pub(super) async fn put_back(log: &dyn Log, shard: ShardId, lost: LostTail) -> Result<(), LogError> {
    let LostTail { known, ours, seen, error: lost } = lost;
    // The end of the stream as this node has made it.
    let mut put = StreamSeq(0);
    // What is waited for, and since when; when it is to be said next.
    let mut waiting = (StreamSeq(0), Instant::now());
    let mut tell_at = waiting.1;
    // The end at the last look, and how long it is until the next.
    let (mut last, mut wait) = (StreamSeq(0), LOOK_FIRST);
    loop {
        // Servers that do not answer are asked again; they may be what this is about.
        if let Ok(bounds) = log.bounds(shard).await {
            if bounds.last != put
                && let Err(error) = seen.refuse_other(log, bounds.last.min(known)).await
            {
                if !error.is_transient() {
                    return Err(error);
                }
                tokio::time::sleep(LOOK_CAP).await;
                continue;
            }
            if bounds.last != last {
                (last, wait) = (bounds.last, LOOK_FIRST);
            }
            if bounds.last >= known {
                tracing::info!("stream {} has its {} messages again", log.stream_name(shard), known.0);
                return Ok(());
            }
            let next = StreamSeq(bounds.last.0 + 1);
            match ours.get(&next) {
                Some(payload) => match log.publish_at(shard, next, payload.clone()).await {
                    Ok(_) => {
                        put = next;
                        continue;
                    }
                    Err(error) => tracing::debug!("cannot put message {} back: {error}", next.0),
                },
                None if waiting.0 != next => {
                    waiting = (next, Instant::now());
                    tell_at = waiting.1 + TELL_AFTER;
                }
                None if ours.is_empty() && waiting.1.elapsed() >= OTHERS_WITHIN => return Err(lost),
                None if Instant::now() < tell_at => {}
                None => {
                    tracing::error!(
                        "stream {}: message {} of {} is not this node's to send again; the node that sent it must run, or the log cannot be made whole",
                        log.stream_name(shard),
                        next.0,
                        known.0
                    );
                    tell_at = Instant::now() + TELL_INTERVAL;
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_CAP);
    }
}
