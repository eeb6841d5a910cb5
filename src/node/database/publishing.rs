//! Rounds: sealed one at a time, and sent again until the log has them.

use std::collections::BTreeMap;

use super::{Database, RoundUnderWay};
use crate::apply::{SealLimits, ToSend};
use crate::log::{Outgoing, ShardId, StreamSeq};
use crate::node::NodeError;
use crate::node::config::Durability;

/// A round takes waiting transactions up to this size: large enough for throughput, small enough that a quiet transaction behind a bulk
/// does not wait long.
const ROUND_BYTES_MAX: u64 = 4 << 20;
/// Messages below this size stay below any sensible server's max_payload; the server's own bound counts if it is smaller.
const MESSAGE_BYTES_WANTED: usize = 512 << 10;

impl Database {
    /// What a node that died had sealed and did not find on the log is sent again.
    pub(super) fn resume_sending(&mut self) -> Result<(), NodeError> {
        let in_flight = self.replica.in_flight()?;
        self.begin_round(in_flight.into_iter().map(ToSend::from));
        Ok(())
    }

    /// Whether the log could drop messages that we have published and not applied. Nobody could help a node out of that if it was the only
    /// one that lives, so it waits for itself. A shard that stopped here is not waited for: another node made it stop.
    pub(super) fn is_ahead_of_itself(&self) -> bool {
        let of = |known: &BTreeMap<ShardId, StreamSeq>, shard| known.get(shard).map_or(0, |seq: &StreamSeq| seq.0);
        self.shards.iter().any(|shard| {
            let reached = if self.blocked.contains_key(shard) { &self.log.seen } else { &self.log.applied };
            of(&self.log.published, shard).saturating_sub(of(reached, shard)) > self.config.log.max_entries / 4
        })
    }

    /// A round is sealed, and nothing of it has left.
    pub(super) fn begin_round(&mut self, messages: impl IntoIterator<Item = ToSend>) {
        self.to_send = messages.into_iter().collect();
        if !self.to_send.is_empty() {
            self.round = Some(RoundUnderWay { round_no: 0, end_sent: false });
        }
    }

    /// How to seal now; `None` while that may not be.
    ///
    /// While there are suspects nothing is sealed. What was sealed before goes out, and must: the part of a round that the log has already
    /// is applied only when the rest of it is there, and the suspects are cleared behind it.
    fn may_seal(&mut self) -> Option<SealLimits> {
        let is_open = self.config.publish && self.log.open && self.round.is_none();
        if !is_open || self.replica.state().is_suspecting() || self.is_ahead_of_itself() {
            return None;
        }
        let wanted = self.log.start.as_ref().map_or(MESSAGE_BYTES_WANTED, |start| start.message_bytes_max);
        Some(SealLimits {
            round_bytes_max: ROUND_BYTES_MAX,
            message_bytes_max: wanted.min(MESSAGE_BYTES_WANTED),
            shard_messages_max: usize::try_from(self.config.log.max_entries / 2).unwrap_or(usize::MAX).max(1),
        })
    }

    /// How to seal what is captured in the commit that stores it. What must be on disk first cannot go along.
    pub(super) fn may_seal_along(&mut self) -> Option<SealLimits> {
        if self.config.capture.durability == Durability::Strict { None } else { self.may_seal() }
    }

    /// Seals the next round if none is under way, and hands out as much of it as the network takes.
    pub(in crate::node) fn publish(&mut self) -> Result<(), NodeError> {
        if let Some(limits) = self.may_seal() {
            if self.config.capture.durability == Durability::Strict {
                self.attached.follower.make_durable()?;
            }
            let sealed = self.replica.seal(limits)?;
            self.begin_round(sealed.into_iter().map(ToSend::from));
        }
        self.hand_out()
    }

    /// Hands out as much of the round as the network takes.
    pub(super) fn hand_out(&mut self) -> Result<(), NodeError> {
        let Some(round) = &mut self.round else { return Ok(()) };
        // A full channel is emptied by acknowledgements, which wake this thread.
        while let Ok(permit) = self.links.outgoing.try_reserve() {
            let Some(next) = self.to_send.front_mut() else { break };
            let message = match next.written.take() {
                Some(written) => written,
                None => self.replica.sealed_message(next.message, self.config.log.compress)?,
            };
            round.round_no = message.header.round_no;
            self.sent.message(message.shard, message.header.batch_no, &message.payload).map_err(|source| {
                NodeError::StateDirectory {
                    path: self.config.state_dir.clone(),
                    what: "cannot keep what is sent",
                    source,
                }
            })?;
            permit.send(Outgoing::Message(message));
            self.to_send.pop_front();
        }
        if self.to_send.is_empty()
            && !round.end_sent
            && let Ok(permit) = self.links.outgoing.try_reserve()
        {
            permit.send(Outgoing::RoundEnd { round_no: round.round_no });
            round.end_sent = true;
        }
        Ok(())
    }
}
