//! The intent: how two databases that cannot commit together come to agree.
//!
//! Applying writes the whole next state into `state.db`, with everything that is needed to take it back, and the digest of what the user's
//! database is about to become. Then the user's database commits, then the intent is made the state. After a crash between the two the
//! first captured transaction tells which it was: if its net effect is the intent's it is ours, else ours never happened.
//!
//! After a gap that transaction can be ours and local ones together. Then the intent is taken back, and rows that are as it made them are no
//! local change: they are ahead of the fold, and base has them as they were before the intent. The messages are folded again from there, in one
//! commit as far as they were, or readers would see what a part of them left. So only what is really local is published, and base in place is the
//! fold at every moment.

use rusqlite::{OptionalExtension, params};

use super::alteration::alteration;
use super::codec::{Reader, push_varint};
use super::error::ApplyError;
use super::names_told::FORGET_NAMES_BEFORE;
use super::net_effect::{NetEffect, TouchedTables};
use super::state::{State, from_db};
use crate::log::{SchemaStep, ShardId, StreamSeq, UnitBuilder, UnitOrigin, decode_units, encode_units};

/// Under this name is kept how far the database is ahead of the fold.
const AHEAD: &str = "ahead_to";

/// Under this name is kept what an intent made of the schema that is ahead of the fold: the transaction it was found in, and the steps in a unit.
const KEPT: &str = "kept_schema";

/// What an intent made of the schema, and was taken back but for that.
pub(super) struct KeptSchema {
    /// Own changes from this transaction on came behind it.
    pub(super) tx: u64,
    /// As it was found: from what it was before to what it is.
    pub(super) steps: Vec<SchemaStep>,
}

impl State {
    pub(super) fn intent(&self) -> Result<Option<NetEffect>, ApplyError> {
        let digest: Option<Vec<u8>> =
            self.db.prepare_cached("SELECT digest FROM intent")?.query_row([], |row| row.get(0)).optional()?;
        let Some(digest) = digest else { return Ok(None) };
        let digest: [u8; 32] = digest.try_into().map_err(|_| ApplyError::Damaged { what: "the intent" })?;
        Ok(Some(NetEffect::from_digest(digest)))
    }

    pub(super) fn write_intent(&mut self, net: &NetEffect) -> Result<(), ApplyError> {
        let versions = std::mem::take(&mut self.versions);
        self.store_versions(&versions)?;
        self.db.prepare_cached("INSERT INTO intent(only, digest) VALUES(1, ?1)")?.execute(params![net.digest()])?;
        Ok(())
    }

    /// Makes what was folded the state, inside the open transaction: nothing can be taken back afterwards.
    pub(super) fn settle(&mut self) -> Result<(), ApplyError> {
        for sql in [
            "DELETE FROM intent",
            // Without WHERE: SQLite drops the pages instead of visiting rows.
            "DELETE FROM intent_versions",
            "DELETE FROM meta WHERE name = 'ahead_to'",
            "DELETE FROM base_before",
            "UPDATE positions SET seq_before = seq WHERE seq_before <> seq",
            "UPDATE origins SET batch_no_before = batch_no, round_no_before = round_no, part_before = part WHERE batch_no_before <> batch_no",
            "UPDATE schema_rounds SET round_no_before = round_no WHERE round_no_before <> round_no",
            "DELETE FROM intent_schema",
            "DELETE FROM meta WHERE name = 'kept_schema_reached'",
            "DELETE FROM pieces WHERE spent = 1",
            "UPDATE pieces SET fresh = 0 WHERE fresh = 1",
            FORGET_NAMES_BEFORE,
        ] {
            self.db.prepare_cached(sql)?.execute([])?;
        }
        self.remember_ahead_to(Vec::new());
        self.settle_moves()?;
        self.keep_conflicts()?;
        self.forget_folded()?;
        self.forget_sealed()?;
        self.settle_tables()?;
        self.revertible = false;
        Ok(())
    }

    /// Takes an intent back, inside the open transaction: the user's database never committed it. (What was seen on the log stays
    /// acknowledged: that is true either way.)
    pub(super) fn revert_intent(&mut self) -> Result<(), ApplyError> {
        self.revert_schema()?;
        self.revert_rows()
    }

    /// The changes of the schema that the intent made were never committed.
    pub(super) fn revert_schema(&mut self) -> Result<(), ApplyError> {
        self.restore_names()?;
        for sql in [
            "UPDATE schema_rounds SET round_no = round_no_before WHERE round_no_before <> round_no",
            "DELETE FROM intent_schema",
        ] {
            self.db.prepare_cached(sql)?.execute([])?;
        }
        self.reload()
    }

    /// The changes of the schema that the intent made were committed, although its rows are taken back: they are ahead of the fold then,
    /// as own ones are until they come back, and are not made again.
    pub(super) fn keep_schema(&mut self, steps: &[SchemaStep], tx: u64) -> Result<(), ApplyError> {
        let mut all = self.kept_schema()?.map(|kept| kept.steps).unwrap_or_default();
        all.extend_from_slice(steps);
        let mut bytes = Vec::new();
        push_varint(&mut bytes, tx);
        let from = UnitOrigin { tx, salts: [0; 8], frame: 0, repaired: true, seen: StreamSeq(0) };
        let mut unit = UnitBuilder::new(from, usize::MAX);
        all.into_iter().for_each(|step| unit.push_schema(step));
        bytes.extend_from_slice(&encode_units(unit.finish().as_slice()));
        self.set_meta(KEPT, &bytes)?;
        self.forget_tables();
        for sql in [
            "UPDATE schema_rounds SET round_no_before = round_no WHERE round_no_before <> round_no",
            "DELETE FROM intent_schema",
            FORGET_NAMES_BEFORE,
        ] {
            self.db.prepare_cached(sql)?.execute([])?;
        }
        Ok(())
    }

    /// What [`State::keep_schema`] has kept and the fold has not come to again.
    pub(super) fn kept_schema(&self) -> Result<Option<KeptSchema>, ApplyError> {
        let Some(bytes) = self.meta(KEPT)? else { return Ok(None) };
        let damaged = || ApplyError::Damaged { what: "the schema that an intent made" };
        let mut reader = Reader::new(&bytes);
        let tx = reader.varint().map_err(|_| damaged())?;
        let units = decode_units(reader.rest()).map_err(|_| damaged())?;
        Ok(Some(KeptSchema { tx, steps: units.into_iter().flat_map(|unit| unit.schema).collect() }))
    }

    /// The fold has come to it.
    pub(super) fn reach_kept_schema(&mut self) -> Result<(), ApplyError> {
        self.db
            .prepare_cached("UPDATE OR REPLACE meta SET name = 'kept_schema_reached' WHERE name = ?1")?
            .execute([KEPT])?;
        self.forget_tables();
        Ok(())
    }

    /// What the intent is about to make of an object of the schema.
    pub(super) fn note_intent_schema(&self, kind: &str, name: &str, sql: Option<&str>) -> Result<(), ApplyError> {
        let insert = "INSERT OR REPLACE INTO intent_schema(kind, name, sql) VALUES(?1, ?2, ?3)";
        self.db.prepare_cached(insert)?.execute(params![kind, name.to_ascii_lowercase(), sql])?;
        Ok(())
    }

    /// The tables whose definitions the intent touches.
    pub(super) fn intent_tables(&self) -> Result<TouchedTables, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT name, sql IS NULL FROM intent_schema WHERE kind = 'table'")?;
        let mut rows = found.query([])?;
        let mut touched = TouchedTables::default();
        while let Some(row) = rows.next()? {
            match row.get(1)? {
                true => drop(touched.gone.insert(row.get(0)?)),
                false => touched.has_left = true,
            }
        }
        Ok(touched)
    }

    /// Whether a change of the schema, one of several that were made together, is what the intent was about to make.
    pub(super) fn is_intent_schema(&self, step: &SchemaStep, all: &[SchemaStep]) -> Result<bool, ApplyError> {
        let is_made = |step: &SchemaStep| -> Result<bool, ApplyError> {
            let sql = "SELECT 1 FROM intent_schema WHERE kind = ?1 AND name = ?2 AND sql IS ?3";
            let of = params![step.kind, step.name.to_ascii_lowercase(), step.after];
            Ok(self.db.prepare_cached(sql)?.exists(of)?)
        };
        // What is dropped and whose name is there again, made anew or given to another one, is told by what has it in the end.
        let is_again = |other: &&SchemaStep| {
            let is_there = step.after.is_none() && other.after.is_some();
            is_there && other.kind == step.kind && other.name.eq_ignore_ascii_case(&step.name)
        };
        match all.iter().find(is_again) {
            Some(again) => is_made(again),
            None => is_made(step),
        }
    }

    /// What the application made of a table behind the intent, where the whole change is no ALTER and what is left of it behind the intent is one.
    pub(super) fn behind_intent_schema(&self, step: &SchemaStep) -> Result<Option<SchemaStep>, ApplyError> {
        let (Some(before), Some(after)) = (&step.before, &step.after) else { return Ok(None) };
        if step.kind != "table" || step.name_before.is_some() {
            return Ok(None);
        }
        let sql = "SELECT sql FROM intent_schema WHERE kind = ?1 AND name = ?2 AND sql IS NOT NULL";
        let of = params![step.kind, step.name.to_ascii_lowercase()];
        let made: Option<String> = self.db.prepare_cached(sql)?.query_row(of, |row| row.get(0)).optional()?;
        let Some(made) = made else { return Ok(None) };
        // What SQLite cannot be asked about without the application's functions is told as it was found.
        let is_alter = |step, before| alteration(step, before, after).is_ok_and(|way| way.is_alter);
        let rest = SchemaStep { before: Some(made.clone()), renamed_columns: None, ..step.clone() };
        Ok((!is_alter(step, before) && is_alter(&rest, &made)).then_some(rest))
    }

    /// Takes note of how far the intent went, which is about to be taken back although its rows may be there.
    pub(super) fn note_ahead_to(&self) -> Result<(), ApplyError> {
        let mut found = self.db.prepare_cached("SELECT shard, seq FROM positions WHERE seq_before <> seq")?;
        let mut rows = found.query([])?;
        let mut all: Vec<(u16, i64)> = Vec::new();
        while let Some(row) = rows.next()? {
            all.push((row.get(0)?, row.get(1)?));
        }
        self.remember_ahead_to(all.iter().map(|(shard, seq)| (ShardId(*shard), StreamSeq(from_db(*seq)))).collect());
        let mut out = Vec::new();
        push_varint(&mut out, all.len() as u64);
        for (shard, seq) in all {
            push_varint(&mut out, u64::from(shard));
            push_varint(&mut out, from_db(seq));
        }
        self.set_meta(AHEAD, &out)
    }

    pub(super) fn read_ahead_to(&self) -> Result<Vec<(ShardId, StreamSeq)>, ApplyError> {
        let Some(bytes) = self.meta(AHEAD)? else { return Ok(Vec::new()) };
        let mut reader = Reader::new(&bytes);
        let mut all = Vec::new();
        for _ in 0..reader.varint()? {
            let damaged = |_| ApplyError::Damaged { what: "how far the database is ahead" };
            let shard = u16::try_from(reader.varint()?).map_err(damaged)?;
            all.push((ShardId(shard), StreamSeq(reader.varint()?)));
        }
        Ok(all)
    }

    /// Takes an intent back but for what it did to the schema: [`State::revert_schema`] or [`State::keep_schema`] must follow.
    pub(super) fn revert_rows(&mut self) -> Result<(), ApplyError> {
        for sql in [
            "DELETE FROM intent",
            "DELETE FROM base WHERE (table_id, key) IN (SELECT table_id, key FROM base_before)",
            "INSERT INTO base(table_id, key, entry) SELECT table_id, key, entry FROM base_before WHERE entry IS NOT NULL",
            "DELETE FROM base_before",
            "UPDATE positions SET seq = seq_before WHERE seq_before <> seq",
            "UPDATE origins SET batch_no = batch_no_before, round_no = round_no_before, part = part_before WHERE batch_no_before <> batch_no",
            "DELETE FROM origins WHERE batch_no = 0",
            "DELETE FROM moved_in WHERE fresh = 1",
            "DELETE FROM pieces WHERE fresh = 1",
            "UPDATE pieces SET spent = 0 WHERE spent = 1",
            "UPDATE pending SET folded = 0 WHERE folded = 1",
            "UPDATE OR REPLACE meta SET name = 'kept_schema' WHERE name = 'kept_schema_reached'",
        ] {
            self.db.prepare_cached(sql)?.execute([])?;
        }
        self.forget_fresh_conflicts()?;
        self.reload()
    }
}
