//! Rounds: whole pending transactions become sealed messages, one round in flight at a time.

use std::collections::BTreeMap;

use rusqlite::params;

use super::error::ApplyError;
use super::state::{State, from_db, to_db};
use crate::fault::{self, Point};
use crate::log::{
    Header, Numbers, PlannedContent, PlannedMessage, RoundPart, SealedMessage, ShardId, plan, write_message,
};

/// How large rounds and messages get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealLimits {
    /// A round takes waiting transactions until it has this many bytes, and always at least one.
    pub round_bytes_max: u64,
    /// No message is larger, before compression.
    pub message_bytes_max: usize,
    /// A round puts at most as many messages into a shard: the log must be able to hold all of it at once.
    pub shard_messages_max: usize,
}

/// A sealed message that was not acknowledged: [`super::Replica::sealed_message`] writes its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InFlight {
    /// Its shard.
    pub shard: ShardId,
    /// Its number.
    pub batch_no: u64,
}

/// Bytes up to which the messages of a round are written while it is sealed. More would be held for long, and take long to write.
const WRITTEN_BYTES_MAX: usize = 1 << 20;

/// A message that is to be sent.
#[derive(Debug)]
pub struct ToSend {
    /// Which it is.
    pub message: InFlight,
    /// Itself, if it was written along with its round; else [`super::Replica::sealed_message`] writes it.
    pub written: Option<SealedMessage>,
}

impl From<InFlight> for ToSend {
    fn from(message: InFlight) -> ToSend {
        ToSend { message, written: None }
    }
}

/// A round before it is stored.
struct PlannedRound {
    round_no: u64,
    planned: Vec<PlannedMessage>,
    /// The units of each shard, in order.
    ids: BTreeMap<ShardId, Vec<i64>>,
}

const DAMAGED: ApplyError = ApplyError::Damaged { what: "a sealed message" };

/// Messages in the shard that has most.
fn shard_messages(planned: &[PlannedMessage]) -> usize {
    let mut counts: BTreeMap<ShardId, usize> = BTreeMap::new();
    for message in planned {
        *counts.entry(message.shard).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

impl State {
    /// Seals the next round and stores it; nothing when one is in flight or nothing waits. Returns the messages to send, in order.
    pub(super) fn seal(&mut self, limits: SealLimits) -> Result<Vec<InFlight>, ApplyError> {
        let Some(round) = self.plan_round(limits)? else { return Ok(Vec::new()) };
        self.begin()?;
        let stored = self.store_round(&round).and_then(|messages| self.commit().map(|()| messages));
        if stored.is_err() {
            self.rollback()?;
        }
        let messages = stored?;
        fault::pass(Point::Sealed);
        Ok(messages)
    }

    /// As [`State::seal`], as a part of the open transaction, which brings what is sealed. Nothing when that is too large for one round:
    /// sealing by itself tells so.
    pub(super) fn seal_along(&mut self, limits: SealLimits) -> Result<Vec<InFlight>, ApplyError> {
        match self.plan_round(limits) {
            Ok(Some(round)) => self.store_round(&round),
            Ok(None) | Err(ApplyError::TransactionTooLarge { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The messages of a round, written as far as they are small.
    pub(super) fn written(&self, round: &[InFlight], compress: bool) -> Result<Vec<ToSend>, ApplyError> {
        let mut bytes = 0;
        let written = round.iter().map(|message| {
            if bytes >= WRITTEN_BYTES_MAX {
                return Ok(ToSend::from(*message));
            }
            let written = self.sealed_message(*message, compress)?;
            bytes += written.payload.len();
            Ok(ToSend { message: *message, written: Some(written) })
        });
        written.collect()
    }

    fn plan_round(&self, limits: SealLimits) -> Result<Option<PlannedRound>, ApplyError> {
        if !self.may_wait() || self.is_round_stored()? {
            return Ok(None);
        }
        let (mut ids, mut sizes, barrier) = self.waiting(limits.round_bytes_max)?;
        if ids.is_empty() {
            self.remember_waiting(false);
            return Ok(None);
        }
        let round_no = self.meta("round_no")?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes) + 1;
        let mut batch_no_last = BTreeMap::new();
        for shard in ids.keys() {
            batch_no_last.insert(*shard, self.batch_no_sealed(*shard)?);
        }
        let numbers = Numbers { round_no, batch_no_last, barrier };
        let mut planned = plan(&sizes, &numbers, self.origin(), limits.message_bytes_max);
        if shard_messages(&planned) > limits.shard_messages_max {
            // The first transaction alone may do.
            (ids, sizes, _) = self.waiting(1)?;
            planned = plan(&sizes, &numbers, self.origin(), limits.message_bytes_max);
            let messages = shard_messages(&planned);
            if messages > limits.shard_messages_max {
                return Err(ApplyError::TransactionTooLarge { messages, messages_max: limits.shard_messages_max });
            }
        }
        Ok(Some(PlannedRound { round_no, planned, ids }))
    }

    /// Unsealed units of whole transactions, oldest first, with their sizes, and whether they change the schema: such a transaction is
    /// alone.
    #[allow(clippy::type_complexity, reason = "the two maps belong together and live for a few lines")]
    fn waiting(
        &self,
        bytes_max: u64,
    ) -> Result<(BTreeMap<ShardId, Vec<i64>>, BTreeMap<ShardId, Vec<usize>>, bool), ApplyError> {
        let (mut ids, mut sizes) = (BTreeMap::<_, Vec<i64>>::new(), BTreeMap::<_, Vec<usize>>::new());
        let mut found = self.db.prepare_cached(
            "SELECT id, shard, tx, unit_bytes, barrier FROM pending WHERE batch_no IS NULL ORDER BY id",
        )?;
        let mut rows = found.query([])?;
        let (mut bytes, mut tx_last, mut barrier) = (0, None, false);
        while let Some(row) = rows.next()? {
            let (id, shard, tx): (i64, ShardId, i64) = (row.get(0)?, ShardId(row.get(1)?), row.get(2)?);
            let unit_bytes: usize = usize::try_from(row.get::<_, i64>(3)?).map_err(|_| DAMAGED)?;
            // (All units of a transaction that changes the schema say so.)
            let is_barrier = row.get(4)?;
            // What is sent again of such a transaction comes behind it, in a round of its own.
            let is_other = tx_last != Some(tx) || is_barrier != barrier;
            if is_other && (bytes >= bytes_max || (tx_last.is_some() && (barrier || is_barrier))) {
                break;
            }
            barrier = is_barrier;
            tx_last = Some(tx);
            bytes += unit_bytes as u64;
            ids.entry(shard).or_default().push(id);
            sizes.entry(shard).or_default().push(unit_bytes);
        }
        Ok((ids, sizes, barrier))
    }

    fn store_round(&self, round: &PlannedRound) -> Result<Vec<InFlight>, ApplyError> {
        let PlannedRound { round_no, planned, ids } = round;
        self.set_meta("round_no", &round_no.to_be_bytes())?;
        let sql = "INSERT INTO sealed(shard, batch_no, round_no, part, piece_unit, piece_index, piece_count, piece_start, piece_end, barrier)
            VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        for message in planned {
            let of_shard = ids.get(&message.shard).map(Vec::as_slice).unwrap_or_default();
            let (shard, batch_no) = (message.shard.0, to_db(message.header.batch_no));
            let part = message.header.part;
            let mut insert = self.db.prepare_cached(sql)?;
            let units = match &message.content {
                PlannedContent::Units(range) => {
                    insert.execute(params![
                        shard,
                        batch_no,
                        to_db(*round_no),
                        part,
                        None::<i64>,
                        None::<u32>,
                        None::<u32>,
                        None::<i64>,
                        None::<i64>,
                        message.header.barrier
                    ])?;
                    of_shard.get(range.clone()).ok_or(DAMAGED)?
                }
                PlannedContent::Piece { unit, index, count, bytes } => {
                    let id = of_shard.get(*unit).ok_or(DAMAGED)?;
                    insert.execute(params![
                        shard,
                        batch_no,
                        to_db(*round_no),
                        part,
                        id,
                        index,
                        count,
                        to_db(bytes.start as u64),
                        to_db(bytes.end as u64),
                        message.header.barrier
                    ])?;
                    // The unit comes back with its last piece, so the last number stays.
                    std::slice::from_ref(id)
                }
            };
            for id in units {
                self.db
                    .prepare_cached("UPDATE pending SET batch_no = ?2 WHERE id = ?1")?
                    .execute(params![id, batch_no])?;
            }
            let last = "INSERT INTO positions(shard, batch_no_sealed) VALUES(?1, ?2) ON CONFLICT DO UPDATE SET batch_no_sealed = excluded.batch_no_sealed";
            self.db.prepare_cached(last)?.execute(params![shard, batch_no])?;
        }
        let messages: Vec<InFlight> = planned
            .iter()
            .map(|message| InFlight { shard: message.shard, batch_no: message.header.batch_no })
            .collect();
        self.remember_round(messages.iter().copied());
        fault::pass(Point::Seal);
        Ok(messages)
    }

    /// Writes the bytes of a sealed message: the same bytes each time.
    pub(super) fn sealed_message(&self, message: InFlight, compress: bool) -> Result<SealedMessage, ApplyError> {
        let sql = "SELECT round_no, part, piece_unit, piece_index, piece_count, piece_start, piece_end, barrier FROM sealed WHERE shard = ?1 AND batch_no = ?2";
        let key = params![message.shard.0, to_db(message.batch_no)];
        type Piece = (i64, u32, u32, usize, usize);
        let (round_no, part, piece, barrier): (i64, u32, Option<Piece>, bool) =
            self.db.prepare_cached(sql)?.query_row(key, |row| {
                let piece = match row.get::<_, Option<i64>>(2)? {
                    Some(unit) => Some((
                        unit,
                        row.get(3)?,
                        row.get(4)?,
                        row.get::<_, i64>(5)? as usize,
                        row.get::<_, i64>(6)? as usize,
                    )),
                    None => None,
                };
                Ok((row.get(0)?, row.get(1)?, piece, row.get(7)?))
            })?;
        let mut round = self.db.prepare_cached("SELECT shard, count(*) FROM sealed GROUP BY shard ORDER BY shard")?;
        let round = round
            .query_map([], |row| Ok(RoundPart { shard: ShardId(row.get(0)?), message_count: row.get(1)? }))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let header = Header {
            origin: self.origin(),
            batch_no: message.batch_no,
            round_no: from_db(round_no),
            part,
            round,
            barrier,
        };
        let (content, ids) = match piece {
            Some((unit, index, count, start, end)) => {
                (PlannedContent::Piece { unit: 0, index, count, bytes: start..end }, vec![unit])
            }
            None => {
                let mut ids =
                    self.db.prepare_cached("SELECT id FROM pending WHERE shard = ?1 AND batch_no = ?2 ORDER BY id")?;
                let ids = ids.query_map(key, |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
                (PlannedContent::Units(0..ids.len()), ids)
            }
        };
        let units = ids.iter().map(|id| self.pending_bytes(*id)).collect::<Result<Vec<_>, _>>()?;
        let units: Vec<&[u8]> = units.iter().map(Vec::as_slice).collect();
        Ok(write_message(&PlannedMessage { shard: message.shard, header, content }, &units, compress))
    }

    pub(super) fn in_flight(&self) -> Result<Vec<InFlight>, ApplyError> {
        let mut found = self
            .db
            .prepare_cached("SELECT shard, batch_no FROM sealed WHERE acknowledged = 0 ORDER BY shard, batch_no")?;
        let all = found
            .query_map([], |row| Ok(InFlight { shard: ShardId(row.get(0)?), batch_no: from_db(row.get(1)?) }))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(all)
    }

    /// The last number sealed in a shard.
    pub(super) fn batch_no_sealed(&self, shard: ShardId) -> Result<u64, ApplyError> {
        let sql = "SELECT coalesce(max(batch_no_sealed), 0) FROM positions WHERE shard = ?1";
        Ok(from_db(self.db.prepare_cached(sql)?.query_row([shard.0], |row| row.get(0))?))
    }

    /// The message is on the log.
    pub(super) fn mark_acknowledged(&self, shard: ShardId, batch_no: u64) -> Result<(), ApplyError> {
        let message = InFlight { shard, batch_no };
        if self.is_unacknowledged(message)? {
            let sql = "UPDATE sealed SET acknowledged = 1 WHERE shard = ?1 AND batch_no = ?2";
            self.db.prepare_cached(sql)?.execute(params![shard.0, to_db(batch_no)])?;
            self.remember_acknowledged(message)?;
        }
        Ok(())
    }

    /// A round that is acknowledged whole is done.
    pub(super) fn forget_sealed(&self) -> Result<(), ApplyError> {
        if self.is_round_stored()? && self.is_round_acknowledged()? {
            self.db.prepare_cached("DELETE FROM sealed")?.execute([])?;
            self.remember_round([]);
        }
        Ok(())
    }

    /// The message is on the log, and its round is done if it was the last: in one commit.
    pub(super) fn acknowledge(&mut self, shard: ShardId, batch_no: u64) -> Result<(), ApplyError> {
        if !self.is_unacknowledged(InFlight { shard, batch_no })? {
            return Ok(());
        }
        self.begin()?;
        let stored =
            self.mark_acknowledged(shard, batch_no).and_then(|()| self.forget_sealed()).and_then(|()| self.commit());
        if stored.is_err() {
            self.rollback()?;
        }
        stored
    }
}
