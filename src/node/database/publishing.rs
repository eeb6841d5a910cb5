//! Rounds: sealed one at a time, and sent again until the log has them.

use std::collections::BTreeMap;

use super::{Database, RoundUnderWay};
use crate::apply::SealLimits;
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
        self.to_send = self.replica.in_flight()?.into();
        if !self.to_send.is_empty() {
            self.round = Some(RoundUnderWay { round_no: 0, end_sent: false });
        }
        Ok(())
    }

    /// Whether the log could drop messages that we have published and not applied. Nobody could help a node out of that if it was the only
    /// one that lives, so it waits for itself. A shard that stopped here is not waited for: another node made it stop.
    fn is_ahead_of_itself(&self) -> bool {
        let of = |known: &BTreeMap<ShardId, StreamSeq>, shard| known.get(shard).map_or(0, |seq: &StreamSeq| seq.0);
        self.shards.iter().any(|shard| {
            let reached = if self.blocked.contains_key(shard) { &self.log.seen } else { &self.log.applied };
            of(&self.log.published, shard).saturating_sub(of(reached, shard)) > self.config.log.max_entries / 4
        })
    }

    /// Whether rows travel in many shards although a UNIQUE index says by now that they can be in each other's way. What is captured waits
    /// until that is decided.
    fn is_out_of_order(&mut self) -> bool {
        let catalogue = self.attached.follower.catalogue();
        let mark = self.attached.follower.schema_mark();
        if self.shards.len() > 1 && self.in_order.as_ref() != Some(&mark) {
            let is_unique = |name: &str| catalogue.written_table(name).is_some_and(|table| !table.uniques.is_empty());
            let names = self.replica.state().tables_out_of_order(is_unique);
            if !names.is_empty() {
                let text = format!(
                    "publishing waits: UNIQUE was added to a table whose rows already travel in {} shards, where nothing orders those that collide: {}",
                    self.shards.len(),
                    names.join(", ")
                );
                if !self.is_waiting_for_order {
                    tracing::error!("{text}");
                    tracing::error!(
                        "hint: drop the index, or begin anew on new streams with all nodes (--stream-prefix)"
                    );
                    self.reporter.trouble(text);
                    self.is_waiting_for_order = true;
                }
                return true;
            }
            self.in_order = Some(mark);
        }
        if std::mem::take(&mut self.is_waiting_for_order) {
            self.reporter.trouble(String::new());
        }
        false
    }

    /// Seals the next round if none is under way, and hands out as much of it as the network takes.
    ///
    /// While there are suspects nothing is sealed. What was sealed before goes out, and must: the part of a round that the log has already
    /// is applied only when the rest of it is there, and the suspects are cleared behind it.
    pub(in crate::node) fn publish(&mut self) -> Result<(), NodeError> {
        if !self.config.publish || !self.log.open {
            return Ok(());
        }
        if self.round.is_none() {
            if self.replica.state().is_suspecting() {
                return Ok(());
            }
            if self.config.capture.durability == Durability::Strict {
                self.attached.follower.make_durable()?;
            }
            let wanted = self.log.start.as_ref().map_or(MESSAGE_BYTES_WANTED, |start| start.message_bytes_max);
            let limits = SealLimits {
                round_bytes_max: ROUND_BYTES_MAX,
                message_bytes_max: wanted.min(MESSAGE_BYTES_WANTED),
                shard_messages_max: usize::try_from(self.config.log.max_entries / 2).unwrap_or(usize::MAX).max(1),
            };
            if self.is_ahead_of_itself() || self.is_out_of_order() {
                return Ok(());
            }
            self.to_send = self.replica.seal(limits)?.into();
            if self.to_send.is_empty() {
                return Ok(());
            }
            self.round = Some(RoundUnderWay { round_no: 0, end_sent: false });
        }
        let Some(round) = &mut self.round else { return Ok(()) };
        // A full channel is emptied by acknowledgements, which wake this thread.
        while let Some(next) = self.to_send.front() {
            let Ok(permit) = self.links.outgoing.try_reserve() else { return Ok(()) };
            let message = self.replica.sealed_message(*next, self.config.log.compress)?;
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
        if !round.end_sent
            && let Ok(permit) = self.links.outgoing.try_reserve()
        {
            permit.send(Outgoing::RoundEnd { round_no: round.round_no });
            round.end_sent = true;
        }
        Ok(())
    }
}
