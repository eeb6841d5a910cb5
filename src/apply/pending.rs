//! Pending: own units that were not yet seen back on the log, in order. It is the outbox and what redo replays.

use rusqlite::{OptionalExtension, params};

use super::deferred::Touched;
use super::error::ApplyError;
use super::state::{State, from_db, to_db};
use crate::log::{ShardId, Unit, decode_units, encode_unit};

/// The head of a CBOR array of one: before an encoded unit it makes a list of units.
const LIST_OF_ONE: u8 = 0x81;

/// How much waits to be published or to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Units not yet seen back.
    pub units: u64,
    /// Their encoded size.
    pub bytes: u64,
    /// Transactions of which no part is sealed yet.
    pub transactions_unsealed: u64,
}

/// An own unit that touches a table.
pub(super) struct Touching {
    pub(super) id: i64,
    pub(super) shard: ShardId,
    /// Its message, if the fold counts that.
    pub(super) folded_as: Option<u64>,
}

impl State {
    /// What waits in the outbox.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn backlog(&self) -> Result<Backlog, ApplyError> {
        let sql = "SELECT count(*), coalesce(sum(unit_bytes), 0), count(DISTINCT CASE WHEN batch_no IS NULL THEN tx END) FROM pending WHERE folded = 0";
        Ok(self.db.prepare_cached(sql)?.query_row([], |row| {
            Ok(Backlog {
                units: from_db(row.get(0)?),
                bytes: from_db(row.get(1)?),
                transactions_unsealed: from_db(row.get(2)?),
            })
        })?)
    }

    /// Hands out every pending unit with its shard, oldest first.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged, and whatever `each` returns.
    pub fn each_pending(
        &self,
        mut each: impl FnMut(ShardId, &Unit) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let mut found = self.db.prepare_cached("SELECT id, shard FROM pending WHERE folded = 0 ORDER BY id")?;
        let mut rows = found.query([])?;
        while let Some(row) = rows.next()? {
            each(ShardId(row.get(1)?), &self.pending_unit(row.get(0)?)?)?;
        }
        Ok(())
    }

    /// The number of the last unit that was ever captured.
    #[must_use]
    pub fn pending_last(&self) -> i64 {
        self.pending_id_next - 1
    }

    /// Whether any unit up to this number was not seen back on the log.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn is_pending_up_to(&self, last: i64) -> Result<bool, ApplyError> {
        let sql = "SELECT 1 FROM pending WHERE id <= ?1 AND folded = 0 LIMIT 1";
        Ok(self.db.prepare_cached(sql)?.exists([last])?)
    }

    /// Reserves the number of a unit. Numbers of a transaction are above those of the ones before it.
    pub(super) fn pending_id(&mut self) -> i64 {
        let id = self.pending_id_next;
        self.pending_id_next += 1;
        id
    }

    pub(super) fn push_pending(
        &mut self,
        id: i64,
        shard: ShardId,
        unit: &Unit,
        touched: &[Touched],
        barrier: bool,
    ) -> Result<(), ApplyError> {
        self.remember_waiting(true);
        let bytes = encode_unit(unit);
        let runs = self.runs_of(id, touched)?;
        let (summary, base) = runs.as_ref().map(|runs| (&runs.summary, &runs.base)).unzip();
        self.db
            .prepare_cached(
                "INSERT INTO pending(id, shard, tx, unit_bytes, barrier, runs) VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![id, shard.0, to_db(unit.tx), to_db(bytes.len() as u64), barrier, summary])?;
        self.db
            .prepare_cached("INSERT INTO pending_unit(id, unit, base) VALUES(?1, ?2, ?3)")?
            .execute(params![id, bytes, base])?;
        for Touched { table, .. } in touched {
            self.db
                .prepare_cached("INSERT OR IGNORE INTO pending_table(table_id, pending_id) VALUES(?1, ?2)")?
                .execute([*table, id])?;
        }
        Ok(())
    }

    /// The unit as `encode_unit` made it.
    pub(super) fn pending_bytes(&self, id: i64) -> Result<Vec<u8>, ApplyError> {
        let found = self
            .db
            .prepare_cached("SELECT unit FROM pending_unit WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        found.ok_or(ApplyError::Damaged { what: "the list of pending units" })
    }

    pub(super) fn pending_unit(&self, id: i64) -> Result<Unit, ApplyError> {
        let mut list = vec![LIST_OF_ONE];
        list.extend_from_slice(&self.pending_bytes(id)?);
        let units = decode_units(&list).map_err(|_| ApplyError::Damaged { what: "a pending unit" })?;
        units.into_iter().next().ok_or(ApplyError::Damaged { what: "a pending unit" })
    }

    /// Units that are not yet seen back on the log.
    pub(super) fn pending_count(&self) -> Result<u64, ApplyError> {
        let sql = "SELECT count(*) FROM pending WHERE folded = 0";
        Ok(from_db(self.db.prepare_cached(sql)?.query_row([], |row| row.get(0))?))
    }

    /// The units of a message are in the log and folded, as by [`State::mark_folded`].
    pub(super) fn mark_batch_folded(&self, shard: ShardId, batch_no: u64) -> Result<(), ApplyError> {
        let sql = "UPDATE pending SET folded = 1 WHERE shard = ?1 AND batch_no = ?2 AND folded = 0";
        self.db.prepare_cached(sql)?.execute(params![shard.0, to_db(batch_no)])?;
        Ok(())
    }

    /// Own units that came with this message, oldest first.
    pub(super) fn pending_of(&self, shard: ShardId, batch_no: u64) -> Result<Vec<i64>, ApplyError> {
        let mut found = self
            .db
            .prepare_cached("SELECT id FROM pending WHERE shard = ?1 AND batch_no = ?2 AND folded = 0 ORDER BY id")?;
        let ids =
            found.query_map(params![shard.0, to_db(batch_no)], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(ids)
    }

    /// Pending units that touch a table and are not folded, oldest first.
    pub(super) fn pending_touching(&self, table: i64) -> Result<Vec<i64>, ApplyError> {
        let sql = "SELECT p.id FROM pending_table t JOIN pending p ON p.id = t.pending_id WHERE t.table_id = ?1 AND p.folded = 0 ORDER BY p.id";
        let ids =
            self.db.prepare_cached(sql)?.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        Ok(ids)
    }

    /// All of them, also those that are folded.
    pub(super) fn units_touching(&self, table: i64) -> Result<Vec<Touching>, ApplyError> {
        let sql =
            "SELECT p.id, p.shard, p.batch_no, p.folded FROM pending_table t JOIN pending p ON p.id = t.pending_id
            WHERE t.table_id = ?1 ORDER BY p.id";
        let mut found = self.db.prepare_cached(sql)?;
        let units = found.query_map([table], |row| {
            let (batch_no, is_folded): (Option<i64>, bool) = (row.get(2)?, row.get(3)?);
            let folded_as = batch_no.filter(|_| is_folded).map(from_db);
            Ok(Touching { id: row.get(0)?, shard: ShardId(row.get(1)?), folded_as })
        })?;
        Ok(units.collect::<rusqlite::Result<_>>()?)
    }

    /// The message that carries the last unit of the transaction that `id` belongs to in its shard, and the number of that unit; `None` as
    /// message while it is not sealed.
    pub(super) fn transaction_end(&self, id: i64) -> Result<(i64, Option<u64>), ApplyError> {
        let sql = "SELECT id, batch_no FROM pending WHERE (shard, tx) = (SELECT shard, tx FROM pending WHERE id = ?1) ORDER BY id DESC LIMIT 1";
        Ok(self
            .db
            .prepare_cached(sql)?
            .query_row([id], |row| Ok((row.get(0)?, row.get::<_, Option<i64>>(1)?.map(from_db))))?)
    }

    /// The unit is in the log and folded. It stays until the intent is the state.
    pub(super) fn mark_folded(&self, id: i64) -> Result<(), ApplyError> {
        self.db.prepare_cached("UPDATE pending SET folded = 1 WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    pub(super) fn forget_folded(&self) -> Result<(), ApplyError> {
        let folded: i64 =
            self.db.prepare_cached("SELECT count(*) FROM pending WHERE folded = 1")?.query_row([], |row| row.get(0))?;
        if folded > 0 {
            for sql in [
                // Units come back nearly in order: in each table SQLite looks at those between the first and the last of them.
                "DELETE FROM pending_table WHERE table_id IN (SELECT id FROM tables)
                    AND pending_id BETWEEN (SELECT min(id) FROM pending WHERE folded = 1) AND (SELECT max(id) FROM pending WHERE folded = 1)
                    AND (SELECT folded FROM pending WHERE id = pending_id) = 1",
                "DELETE FROM pending_unit WHERE id IN (SELECT id FROM pending WHERE folded = 1)",
                "DELETE FROM pending WHERE folded = 1",
            ] {
                self.db.prepare_cached(sql)?.execute([])?;
            }
            self.forget_runs();
        }
        Ok(())
    }
}
