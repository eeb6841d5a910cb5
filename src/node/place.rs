//! Whether the log still is what it was when it was read.
//!
//! A server that came back with less, and took new messages since, has other ones in places that were read: reading on would pass them over
//! in silence. Each origin counts its messages, so one that was never seen is known by its number.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::apply::FoldedOf;
use crate::log::{Header, Log, LogError, MESSAGE_BYTES_MAX, Origin, ShardId, StreamSeq, decode_header};

/// What was seen of a shard.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    shard: ShardId,
    /// The last message that was read.
    last: StreamSeq,
    /// The last of each origin.
    batch_no: HashMap<Origin, u64>,
}

impl Seen {
    /// What is folded, and what has arrived behind it up to `last`.
    pub(super) fn new(shard: ShardId, last: StreamSeq, folded: &FoldedOf, arrived: &[Header]) -> Seen {
        let mut batch_no: HashMap<Origin, u64> =
            folded.iter().map(|(origin, folded)| (*origin, folded.batch_no)).collect();
        for header in arrived {
            let known = batch_no.entry(header.origin).or_default();
            *known = header.batch_no.max(*known);
        }
        Seen { shard, last, batch_no }
    }

    /// The last message that was read.
    pub(super) fn last(&self) -> StreamSeq {
        self.last
    }

    /// Looks at the message that is in a place now.
    ///
    /// # Errors
    /// [`LogError::Rewritten`] where one was read there and it cannot have been this; those of the log.
    pub(super) async fn refuse_other(&self, log: &dyn Log, at: StreamSeq) -> Result<(), LogError> {
        if at.0 == 0 || at > self.last {
            return Ok(());
        }
        // What was trimmed meanwhile, and what is no message of ours, says nothing.
        let Some(payload) = log.message(self.shard, at).await? else { return Ok(()) };
        let Ok(header) = decode_header(&payload, MESSAGE_BYTES_MAX) else { return Ok(()) };
        match self.batch_no.get(&header.origin).is_some_and(|known| header.batch_no <= *known) {
            true => Ok(()),
            false => Err(LogError::Rewritten { stream: log.stream_name(self.shard), seq: at }),
        }
    }
}

/// Looks whether the last message of this node up to `last` still is in its place, of those that were acknowledged there: it may not have been read
/// back when the server lost it.
///
/// # Errors
/// [`LogError::Rewritten`] where another one is there; those of the log.
pub(super) async fn refuse_taken(
    log: &dyn Log,
    shard: ShardId,
    ours: &BTreeMap<StreamSeq, Bytes>,
    last: StreamSeq,
) -> Result<(), LogError> {
    let Some((seq, sent)) = ours.range(..=last).next_back() else { return Ok(()) };
    match log.message(shard, *seq).await? {
        Some(payload) if payload != *sent => Err(LogError::Rewritten { stream: log.stream_name(shard), seq: *seq }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::MemoryLog;

    const SHARD: ShardId = ShardId(1);

    #[test]
    fn a_message_whose_place_another_one_has_taken_is_noticed() {
        let log = MemoryLog::new(1, 1);
        let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
        for (id, text) in [("1", "ours"), ("2", "in its place"), ("3", "ours too")] {
            log.append(SHARD, id, bytes(text)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let refused = |ours: &[(u64, &'static str)], last: u64| {
            let ours = ours.iter().map(|(seq, text)| (StreamSeq(*seq), bytes(text))).collect();
            runtime.block_on(refuse_taken(&log, SHARD, &ours, StreamSeq(last)))
        };
        assert!(refused(&[], 3).is_ok() && refused(&[(1, "ours")], 3).is_ok());
        assert!(refused(&[(1, "ours"), (2, "lost"), (3, "ours too")], 3).is_ok(), "the log was put back behind it");
        let taken = refused(&[(1, "ours"), (2, "lost"), (4, "lost")], 3);
        assert!(matches!(taken, Err(LogError::Rewritten { seq: StreamSeq(2), .. })), "{taken:?}");
    }
}
