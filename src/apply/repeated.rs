//! Changes of the schema that several nodes make before they hear of each other, as applications do that bring their schema up to date
//! wherever they start.
//!
//! The first one on the log is made. The others are that same change: what their nodes write behind them is about the same tables and
//! columns, whatever has become of these since. Two changes are the same if the object is, and its statement before and after, and if the
//! node of the one had not seen the other when it made it. If it had, it makes again what somebody had undone.

use rusqlite::{OptionalExtension, params};

use super::alteration::{ColumnStep, alteration};
use super::error::ApplyError;
use super::names::Birth;
use super::schema_steps::step_digest;
use super::state::{State, from_db, origin_bytes, origin_of, to_db};
use super::undo_redo::Call;
use crate::log::{Origin, SchemaStep, ShardId, StreamSeq};

/// An own change of the schema that the fold has not reached.
#[derive(Debug)]
pub(super) struct PendingStep {
    /// The transaction that made it.
    pub(super) tx: u64,
    /// The change.
    pub(super) step: SchemaStep,
    /// The place in the first shard up to which its maker had seen it.
    pub(super) seen: StreamSeq,
    /// Where the same was made before it on the log: there is nothing left for it to do.
    pub(super) first: Option<Birth>,
}

/// What a step does to the columns of a table.
pub(super) fn columns_of_step(step: &SchemaStep) -> Vec<ColumnStep> {
    match (&step.before, &step.after) {
        (Some(before), Some(after)) if step.kind == "table" => {
            alteration(step, before, after).map(|way| way.columns).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// Whether a step gives a table another definition and does nothing to its name or its columns' names.
fn is_definition(step: &SchemaStep) -> bool {
    let is_alteration = step.kind == "table" && step.before.is_some() && step.after.is_some();
    is_alteration && step.name_before.is_none() && columns_of_step(step).is_empty()
}

/// Tells parts of changes apart. A change that was found after a time without the daemon can be several at once, and its parts tell that
/// others have made some of them.
fn part_digest(words: [&str; 3]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(word.to_ascii_lowercase().as_bytes()).update(&[0]);
    }
    *hasher.finalize().as_bytes()
}

/// What a change does to one column, under each name that the table has in it.
fn column_digests(step: &SchemaStep, column: &ColumnStep) -> Vec<[u8; 32]> {
    let what = match column {
        ColumnStep::Add { name, .. } => format!("add {name}"),
        ColumnStep::Drop { name } => format!("drop {name}"),
        ColumnStep::Rename { from, to, .. } => format!("rename {from}\u{1}{to}"),
    };
    let names = [Some(&step.name), step.name_before.as_ref()];
    names.into_iter().flatten().map(|table| part_digest(["column", table, &what])).collect()
}

fn rename_digest(step: &SchemaStep) -> Option<[u8; 32]> {
    let before = step.name_before.as_ref().filter(|_| step.kind == "table")?;
    Some(part_digest(["rename", before, &step.name]))
}

/// The change and its parts.
fn digests(step: &SchemaStep) -> Vec<[u8; 32]> {
    let mut all = vec![step_digest(step)];
    all.extend(rename_digest(step));
    all.extend(columns_of_step(step).iter().flat_map(|column| column_digests(step, column)));
    all
}

impl State {
    /// Own changes of the schema that the fold of a shard has not reached, in order.
    pub(super) fn steps_pending(&self, shard: ShardId) -> Result<Vec<PendingStep>, ApplyError> {
        let sql = "SELECT id FROM pending WHERE barrier = 1 AND folded = 0 AND shard = ?1 ORDER BY id";
        let mut found = self.db.prepare_cached(sql)?;
        let ids = found.query_map([shard.0], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
        let mut steps = Vec::new();
        for id in ids {
            let unit = self.pending_unit(id)?;
            for step in unit.schema {
                let first = self.made_before(&step, self.origin(), unit.seen)?;
                steps.push(PendingStep { tx: unit.tx, step, seen: unit.seen, first });
            }
        }
        Ok(steps)
    }

    /// Those of them that come behind what is folded next: neither the fold nor the same change of somebody else has come to them.
    pub(super) fn steps_behind(&self, shard: ShardId) -> Result<Vec<PendingStep>, ApplyError> {
        let mut behind = Vec::new();
        for pending in self.steps_pending(shard)? {
            if pending.first.is_none() && !self.is_reached(&pending)? {
                behind.push(pending);
            }
        }
        Ok(behind)
    }

    /// Where the same change stands on the log before one that `origin` made when it had seen the first shard up to `seen`.
    pub(super) fn made_before(
        &self,
        step: &SchemaStep,
        origin: Origin,
        seen: StreamSeq,
    ) -> Result<Option<Birth>, ApplyError> {
        // Making one of these again does no harm, and what it changed may have been changed again by who had seen neither.
        if is_definition(step) { Ok(None) } else { self.digest_before(step_digest(step), origin, seen) }
    }

    /// The same of what a change does to one column.
    pub(super) fn column_made_before(
        &self,
        step: &SchemaStep,
        column: &ColumnStep,
        origin: Origin,
        seen: StreamSeq,
    ) -> Result<Option<Birth>, ApplyError> {
        for digest in column_digests(step, column) {
            if let Some(first) = self.digest_before(digest, origin, seen)? {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }

    /// The same of the name that it gives a table.
    pub(super) fn name_made_before(
        &self,
        step: &SchemaStep,
        origin: Origin,
        seen: StreamSeq,
    ) -> Result<bool, ApplyError> {
        match rename_digest(step) {
            Some(digest) => Ok(self.digest_before(digest, origin, seen)?.is_some()),
            None => Ok(false),
        }
    }

    pub(super) fn digest_before(
        &self,
        digest: [u8; 32],
        origin: Origin,
        seen: StreamSeq,
    ) -> Result<Option<Birth>, ApplyError> {
        let sql = "SELECT origin, tx, seq FROM steps_made WHERE digest = ?1 AND origin <> ?2 AND seq > ?3 ORDER BY seq LIMIT 1";
        let mut found = self.db.prepare_cached(sql)?;
        let of = params![digest, origin_bytes(origin), to_db(seen.0)];
        let row = found.query_row(of, |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get(2)?))).optional()?;
        let Some((origin, tx, seq)) = row else { return Ok(None) };
        Ok(Some(Birth { origin: origin_of(&origin)?, tx: from_db(tx), seq: Some(StreamSeq(from_db(seq))) }))
    }

    pub(super) fn note_made(&self, step: &SchemaStep, birth: &Birth) -> Result<(), ApplyError> {
        let sql = "INSERT OR REPLACE INTO steps_made(digest, origin, tx, seq) VALUES(?1, ?2, ?3, ?4)";
        let seq = birth.seq.map(|seq| to_db(seq.0));
        let mut insert = self.db.prepare_cached(sql)?;
        for digest in digests(step) {
            insert.execute(params![digest, origin_bytes(birth.origin), to_db(birth.tx), seq])?;
        }
        Ok(())
    }

    /// The message of the first shard that carries changes has come, of which those that were made before are nothing by themselves.
    pub(super) fn set_made_seq(
        &self,
        steps: &[SchemaStep],
        (origin, tx, seen): (Origin, u64, StreamSeq),
        seq: StreamSeq,
    ) -> Result<(), ApplyError> {
        let by = (origin_bytes(origin), to_db(tx));
        for digest in steps.iter().flat_map(digests) {
            match self.digest_before(digest, origin, seen)? {
                None => {
                    let sql = "UPDATE steps_made SET seq = ?4 WHERE digest = ?1 AND origin = ?2 AND tx = ?3";
                    self.db.prepare_cached(sql)?.execute(params![digest, by.0, by.1, to_db(seq.0)])?;
                }
                Some(_) => {
                    let sql = "DELETE FROM steps_made WHERE digest = ?1 AND origin = ?2 AND tx = ?3";
                    self.db.prepare_cached(sql)?.execute(params![digest, by.0, by.1])?;
                }
            }
        }
        Ok(())
    }

    /// Whether this very change was made here before, whatever became of it since.
    pub(super) fn was_step_made(&self, step: &SchemaStep) -> Result<bool, ApplyError> {
        Ok(self.db.prepare_cached("SELECT 1 FROM steps_made WHERE digest = ?1")?.exists([step_digest(step)])?)
    }

    /// Rows can tell nodes differently what became of a column. The change that stands first on the log has the word.
    fn note_values_of(&mut self, step: &SchemaStep) -> Result<(), ApplyError> {
        let Some(table) = self.name_in_the_end(&step.name)? else { return Ok(()) };
        for column in columns_of_step(step) {
            if let ColumnStep::Rename { from, to, in_place, .. } = column {
                self.note_values(&table, &from, &to, in_place.is_none())?;
            }
        }
        self.forget_tables();
        Ok(())
    }

    /// Takes note of a change that is the same as the `first` one: what it began is what that began.
    pub(super) fn note_again(&mut self, step: &SchemaStep, first: &Birth, birth: &Birth) -> Result<(), ApplyError> {
        match (&step.before, &step.after) {
            (None, Some(_)) if step.kind == "table" => self.note_table_again(&step.name, first, birth)?,
            (Some(_), Some(_)) if step.kind == "table" => {
                if let Some(table) = self.name_in_the_end(&step.name)? {
                    for column in columns_of_step(step) {
                        if let ColumnStep::Add { name, .. } = column {
                            self.note_column_again(&table, &name, first, birth)?;
                        }
                    }
                }
            }
            _ => {}
        }
        self.forget_tables();
        Ok(())
    }
}

impl Call<'_, '_> {
    /// Leaves out what was made before it on the log, or is pending here, so that there is nothing to do for it. Returns what is left, and
    /// what is pending here.
    pub(super) fn pass_over_repeated(
        &mut self,
        steps: Vec<SchemaStep>,
        seen: StreamSeq,
        birth: &Birth,
        shard: ShardId,
    ) -> Result<(Vec<SchemaStep>, Vec<SchemaStep>), ApplyError> {
        let (mut left, mut passed) = (Vec::with_capacity(steps.len()), Vec::new());
        let own = self.state.origin();
        let pending = self.state.steps_pending(shard)?;
        for step in steps {
            if let Some(first) = self.state.made_before(&step, birth.origin, seen)? {
                self.state.note_again(&step, &first, birth)?;
                continue;
            }
            let digest = step_digest(&step);
            let mut same = pending.iter().filter(|pending| pending.first.is_none());
            let ours = same.find(|pending| step_digest(&pending.step) == digest);
            // A definition that the fold has come to may have been changed again since.
            let is_behind = match ours {
                Some(ours) => !is_definition(&step) || !self.state.is_reached(ours)?,
                None => false,
            };
            match ours.filter(|_| is_behind) {
                Some(ours) => {
                    self.state.note_made(&step, birth)?;
                    self.state.note_values_of(&step)?;
                    self.state.note_again(&step, &Birth { origin: own, tx: ours.tx, seq: None }, birth)?;
                    passed.push(step);
                }
                None => left.push(step),
            }
        }
        Ok((left, passed))
    }
}
