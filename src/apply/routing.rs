//! Whether a table's rows travel by their keys or by the table's name: decided with the first row that is met, and once more when the table
//! gets UNIQUE values.
//!
//! From then on all that can collide must be in one order. The change of the schema that does it has a part in every shard. Behind that part
//! changes of the table count in its one shard alone: in the others they come from nodes that had not seen it, nobody folds them, and their
//! origin sends them again, in the right shard, as soon as it folds the change of the schema itself. So nobody waits for anybody.
//!
//! How rows travel does not follow from the table as it is now, so snapshots carry it: whoever begins with one has not met the first row.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::params;

use super::apart::{Apart, RoundUnits};
use super::codec::{Reader, push_varint};
use super::deferred::Touched;
use super::error::ApplyError;
use super::fitting::Found;
use super::names::{Named, tables_of, taken_from};
use super::shape::LocalTable;
use super::state::{State, TableState};
use super::undo_redo::Call;
use super::uniques::{definition_of_fold, is_unique_index};
use crate::log::{
    MovedIn, Origin, Routing, SchemaStep, ShardId, TableRouting, UNIT_BYTES_MAX, UnitBuilder, UnitOrigin,
};

/// How rows of a table travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Travels {
    /// Each in the shard of its key.
    ByKey,
    /// All in the shard of the table's name.
    ByName,
    /// As [`Travels::ByName`], since a change of the schema that was made here. Until it is on the log, the fold may have rows with equal values.
    MovedHere,
}

impl Travels {
    pub(super) fn is_by_name(self) -> bool {
        self != Travels::ByKey
    }

    /// As it is stored.
    pub(super) fn number(self) -> i64 {
        match self {
            Travels::ByKey => 0,
            Travels::ByName => 1,
            Travels::MovedHere => 2,
        }
    }

    pub(super) fn of_number(number: i64) -> Travels {
        match number {
            0 => Travels::ByKey,
            2 => Travels::MovedHere,
            _ => Travels::ByName,
        }
    }
}

/// The table that has UNIQUE values beyond its key since this step, if it is one of those. The text alone tells it: it is the same everywhere.
pub(super) fn made_unique(step: &SchemaStep) -> Result<Option<&str>, ApplyError> {
    Ok(match (step.kind.as_str(), &step.after) {
        ("index", Some(after)) if is_unique_index(after) => Some(step.table.as_str()),
        ("table", Some(_)) => {
            let (_, after) = tables_of(step)?;
            after.filter(|table| !table.uniques.is_empty()).map(|_| step.name.as_str())
        }
        _ => None,
    })
}

/// The table that had UNIQUE values beyond its key before this step, and whose rows therefore travel by its name for good, by the name that it has
/// behind the step.
pub(super) fn was_unique(step: &SchemaStep) -> Result<Option<&str>, ApplyError> {
    Ok(match (step.kind.as_str(), &step.before, &step.after) {
        ("index", Some(before), _) if is_unique_index(before) => Some(step.table.as_str()),
        ("table", Some(_), Some(_)) => {
            let (before, _) = tables_of(step)?;
            before.filter(|table| !table.uniques.is_empty()).map(|_| step.name.as_str())
        }
        _ => None,
    })
}

/// `varint count, of each: varints node, epoch, number of its message`.
fn folded_bytes(folded: &[(Origin, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_varint(&mut bytes, folded.len() as u64);
    for (origin, batch_no) in folded {
        [origin.node_id, origin.epoch, *batch_no].into_iter().for_each(|number| push_varint(&mut bytes, number));
    }
    bytes
}

fn folded_of_bytes(bytes: &[u8]) -> Result<Vec<(Origin, u64)>, ApplyError> {
    let mut reader = Reader::new(bytes);
    let count = reader.varint()?;
    // A count that is damaged ends with the bytes.
    let of_one = |_| {
        let origin = Origin { node_id: reader.varint()?, epoch: reader.varint()? };
        Ok((origin, reader.varint()?))
    };
    (0..count).map(of_one).collect()
}

impl TableState {
    fn has_moved_in(&self, shard: ShardId) -> bool {
        self.moved_in.iter().any(|moved| moved.shard == shard)
    }
}

impl State {
    /// How rows travel, of all tables that were met. One that was dropped is among them: its name may be given again.
    pub(super) fn routing(&self) -> Routing {
        let known = self.tables.iter().filter(|(name, table)| !name.ends_with(&taken_from(table.id)));
        let routing_of = |table: &TableState| TableRouting {
            // What was moved here is so for nobody else yet.
            by_name: match table.travels {
                Travels::MovedHere => !table.moved_in.is_empty(),
                travels => travels.is_by_name(),
            },
            moved_in: table.moved_in.clone(),
        };
        known.map(|(name, table)| (name.clone(), routing_of(table))).collect()
    }

    /// Lets rows travel as they do where a snapshot was made. It stays when the fold of the snapshot is taken back: it is how the log is.
    ///
    /// Own changes that are on their way may be in other shards: [`Call::send_again`].
    pub(super) fn take_routing(&mut self, routing: &Routing) -> Result<(), ApplyError> {
        for (name, TableRouting { by_name, moved_in }) in routing {
            let travels = if *by_name { Travels::ByName } else { Travels::ByKey };
            let known = self.tables.get(name).map(|table| (table.id, table.travels));
            let id = match known {
                Some((id, Travels::MovedHere)) if !by_name => id,
                Some((id, _)) => {
                    self.set_travels(name, travels)?;
                    id
                }
                None => self.meet(name, travels)?,
            };
            moved_in.iter().try_for_each(|moved| self.note_moved(id, moved.clone()))?;
        }
        self.forget_tables();
        Ok(())
    }

    /// Takes note of a table of which no row was met.
    fn meet(&mut self, name: &str, travels: Travels) -> Result<i64, ApplyError> {
        let insert = "INSERT INTO tables(name, by_name) VALUES(?1, ?2)";
        self.db.prepare_cached(insert)?.execute(params![name, travels.number()])?;
        let id = self.db.last_insert_rowid();
        self.tables.insert(name.to_ascii_lowercase(), TableState::new(id, String::new(), travels));
        Ok(id)
    }

    fn set_travels(&mut self, name: &str, travels: Travels) -> Result<(), ApplyError> {
        if let Some(known) = self.tables.get_mut(&name.to_ascii_lowercase())
            && known.travels != travels
        {
            known.travels = travels;
            let update = "UPDATE tables SET by_name = ?2 WHERE id = ?1";
            self.db.prepare_cached(update)?.execute(params![known.id, travels.number()])?;
        }
        Ok(())
    }

    /// A table that had UNIQUE values may have none now, and nobody here has met a row of it: others may have, as they were then.
    pub(super) fn keep_by_name(&mut self, name: &str) -> Result<(), ApplyError> {
        if !self.tables.contains_key(&name.to_ascii_lowercase()) {
            self.meet(name, Travels::ByName)?;
            self.forget_tables();
        }
        Ok(())
    }

    /// A table gets UNIQUE values by a change of the schema that was made elsewhere.
    pub(super) fn move_rows(&mut self, name: &str) -> Result<(), ApplyError> {
        if self.tables.get(&name.to_ascii_lowercase()).is_some_and(|table| !table.travels.is_by_name()) {
            self.set_travels(name, Travels::ByName)?;
        }
        self.forget_tables();
        Ok(())
    }

    /// The tables that were met, by name in lower case.
    pub(super) fn tables_met(&self) -> BTreeSet<String> {
        self.tables.keys().cloned().collect()
    }

    /// Tables that were only looked at were not met: how their rows travel is for the first of them to say.
    pub(super) fn forget_unmet(&mut self, met: &BTreeSet<String>) -> Result<(), ApplyError> {
        let unmet: Vec<(String, i64)> = self
            .tables
            .iter()
            .filter(|(name, table)| !met.contains(*name) && self.rows_of(table) == 0)
            .map(|(name, table)| (name.clone(), table.id))
            .collect();
        for (name, id) in unmet {
            if self.pending_touching(id)?.is_empty() {
                self.db.prepare_cached("DELETE FROM tables WHERE id = ?1")?.execute([id])?;
                self.tables.remove(&name);
            }
        }
        self.forget_tables();
        Ok(())
    }

    /// A table gets UNIQUE values by a change of the schema that was made here.
    pub(super) fn move_rows_here(&mut self, name: &str) -> Result<(), ApplyError> {
        match self.tables.get(&name.to_ascii_lowercase()) {
            Some(table) if table.travels.is_by_name() => {}
            Some(_) => self.set_travels(name, Travels::MovedHere)?,
            // Others may have met it.
            None => drop(self.meet(name, Travels::MovedHere)?),
        }
        self.forget_tables();
        Ok(())
    }

    fn note_moved(&mut self, id: i64, moved: MovedIn) -> Result<(), ApplyError> {
        let Some(table) = self.tables.values_mut().find(|table| table.id == id) else { return Ok(()) };
        if !table.has_moved_in(moved.shard) {
            let sql = "INSERT OR IGNORE INTO moved_in(table_id, shard, fresh, folded) VALUES(?1, ?2, 1, ?3)";
            let folded = moved.folded.as_deref().map(folded_bytes);
            self.db.prepare_cached(sql)?.execute(params![id, moved.shard.0, folded])?;
            table.moved_in.push(moved);
        }
        Ok(())
    }

    /// The shards in which a table's rows have moved, by table.
    pub(super) fn load_moves(&mut self) -> Result<(), ApplyError> {
        let mut found =
            self.db.prepare_cached("SELECT table_id, shard, folded FROM moved_in ORDER BY table_id, shard")?;
        let mut rows = found.query([])?;
        while let Some(row) = rows.next()? {
            let (id, shard, folded): (i64, u16, Option<Vec<u8>>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if let Some(table) = self.tables.values_mut().find(|table| table.id == id) {
                let folded = folded.map(|bytes| folded_of_bytes(&bytes)).transpose()?;
                table.moved_in.push(MovedIn { shard: ShardId(shard), folded });
            }
        }
        Ok(())
    }

    /// What was folded cannot be taken back any more.
    pub(super) fn settle_moves(&self) -> Result<(), ApplyError> {
        if self.tables.values().any(|table| !table.moved_in.is_empty()) {
            self.db.prepare_cached("UPDATE moved_in SET fresh = 0 WHERE fresh = 1")?.execute([])?;
        }
        Ok(())
    }

    /// Whether a pending unit says anything about a table that was not sent again since.
    pub(super) fn is_touching(&self, unit: i64, table: i64) -> Result<bool, ApplyError> {
        let sql = "SELECT 1 FROM pending_table WHERE table_id = ?1 AND pending_id = ?2";
        Ok(self.db.prepare_cached(sql)?.exists([table, unit])?)
    }

    fn shard_of_pending(&self, unit: i64) -> Result<ShardId, ApplyError> {
        let sql = "SELECT shard FROM pending WHERE id = ?1";
        Ok(ShardId(self.db.prepare_cached(sql)?.query_row([unit], |row| row.get(0))?))
    }
}

impl Call<'_, '_> {
    /// All shards are folded up to a round of our own that changes the schema.
    pub(super) fn settle_round(&mut self, shard: ShardId) -> Result<(), ApplyError> {
        let Some((tx, steps)) = self.state.steps_pending_first(shard)? else { return Ok(()) };
        let units = self.state.own_units_of_step(shard)?;
        let (own, tables) = (self.state.origin(), self.tables_of_steps(&steps)?);
        self.state.keep_names()?;
        steps.iter().try_for_each(|step| self.state.set_reached(step, tx))?;
        self.state.forget_tables();
        self.known.clear();
        let mut apart = Apart::default();
        tables.iter().try_for_each(|(table, step)| self.settle_uniques((table, step), &units, &mut apart))?;
        self.put_back(&apart, &units, own, false)
    }

    /// The same of what an intent made that was taken back but for that.
    pub(super) fn settle_kept(&mut self, units: &dyn RoundUnits, origin: Origin) -> Result<(), ApplyError> {
        let Some(kept) = self.state.kept_schema()? else { return Ok(()) };
        let tables = self.tables_of_steps(&kept.steps)?;
        self.state.reach_kept_schema()?;
        self.known.clear();
        let mut apart = Apart::default();
        tables.iter().try_for_each(|(table, step)| self.settle_uniques((table, step), units, &mut apart))?;
        self.put_back(&apart, units, origin, false)
    }

    /// The part of a change of the schema in one shard is folded: rows that it gives UNIQUE values have moved there.
    pub(super) fn note_moves(&mut self, shard: ShardId, steps: &[SchemaStep]) -> Result<(), ApplyError> {
        for step in &self.about_tables_here(steps)?.0 {
            let Some(name) = made_unique(step)? else { continue };
            if let Named::Table(table) = self.named(name)? {
                let local = self.state.local_table(&table)?;
                let folded = self.state.folded_all(shard)?;
                let folded = folded.into_iter().map(|(origin, folded)| (origin, folded.batch_no)).collect();
                self.state.note_moved(local.id, MovedIn { shard, folded: Some(folded) })?;
            }
        }
        Ok(())
    }

    /// A step that is about to be made gives UNIQUE values to a table: it shows the fold, so that all nodes find the same rows in its way. Rows
    /// that the same transaction changes are not among them.
    pub(super) fn prepare_move(
        &mut self,
        step: &SchemaStep,
        steps: &[SchemaStep],
        units: &dyn RoundUnits,
        apart: &mut Apart,
    ) -> Result<(), ApplyError> {
        let Some(name) = made_unique(step)? else { return Ok(()) };
        // An index knows its table by the name that this gets in the same transaction.
        let of_table = |other: &&SchemaStep| other.kind == "table" && other.name.eq_ignore_ascii_case(name);
        let table_step = steps.iter().filter(|other| other.after.is_some()).find(of_table);
        let before = table_step.and_then(|step| step.name_before.as_deref()).unwrap_or(name);
        let Named::Table(table) = self.named(before)? else { return Ok(()) };
        if (self.taking.route)(&table, None).is_none() {
            return Ok(());
        }
        let local = self.state.local_table(&table)?;
        self.undo_locked(&local)?;
        self.set_apart(apart, (&local, name), units)?;
        match &step.after {
            // The others are here, and are dealt with where SQLite refuses the step.
            Some(after) if step.kind == "index" && self.folder.unseen.contains_key(&local.id) => {
                let refused = |source| ApplyError::schema(&step.kind, &step.name, source);
                let mut definition = definition_of_fold(self.folder.rows.conn(), &local).map_err(refused)?;
                let after = self.state.under_names_here(self.folder.rows.conn(), step, after)?;
                definition.extend(after);
                self.remove_meeting(&local, &definition, step)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A step that is about to be made leaves something UNIQUE no more: rows that pending pushed out of it are seen again.
    pub(super) fn prepare_unmade(&mut self, step: &SchemaStep) -> Result<(), ApplyError> {
        let name = match (step.kind.as_str(), &step.before) {
            ("index", Some(before)) if is_unique_index(before) => &step.table,
            ("table", Some(_)) if tables_of(step)?.0.is_some_and(|table| !table.uniques.is_empty()) => {
                step.name_before.as_ref().unwrap_or(&step.name)
            }
            _ => return Ok(()),
        };
        let Named::Table(table) = self.named(name)? else { return Ok(()) };
        let local = self.state.local_table(&table)?;
        if self.state.base_rows(&local) == 0 { Ok(()) } else { self.undo_locked(&local) }
    }

    /// The step is made: rows of its table travel in one shard from here on, pending ones too.
    pub(super) fn move_rows(&mut self, step: &SchemaStep) -> Result<(), ApplyError> {
        if let Some(name) = was_unique(step)?
            && let Named::Table(table) = self.named(name)?
            && (self.taking.route)(&table, None).is_some()
        {
            self.state.keep_by_name(&table.name)?;
        }
        let Some(name) = made_unique(step)? else { return Ok(()) };
        let Named::Table(table) = self.named(name)? else { return Ok(()) };
        if (self.taking.route)(&table, None).is_none() {
            return Ok(());
        }
        self.state.move_rows(&table.name)?;
        let local = self.state.local_table(&table)?;
        if let Some(undone) = self.undone.get_mut(&local.id) {
            *undone = Arc::clone(&local);
        }
        self.send_again(&local)
    }

    /// Whether changes of a table in a shard come from who had not seen that its rows travel in another one: they are sent again.
    pub(super) fn has_moved(&self, table: &LocalTable, shard: ShardId) -> bool {
        // Rows that have always traveled by name are in no other shard, whoever took them for others.
        let is_moved = self.state.table_state(table).is_some_and(|state| match state.travels {
            Travels::ByKey => false,
            Travels::ByName => state.moved_in.is_empty() || state.has_moved_in(shard),
            Travels::MovedHere => state.has_moved_in(shard),
        });
        is_moved && (self.taking.route)(&table.routed, None).is_some_and(|home| home != shard)
    }

    /// Puts pending changes of a table that are in shards where nobody will fold them behind all that is pending, for its one shard.
    ///
    /// From the first of them on all are sent again, so that one row's stay in order.
    pub(super) fn send_again(&mut self, table: &LocalTable) -> Result<(), ApplyError> {
        let units = self.state.pending_touching(table.id)?;
        self.send_units_again(table, units)
    }

    /// The same with those of a node that catches up which a snapshot counts as folded: they came to their shards behind the change that moves
    /// the table's rows, which their node hears of by the snapshot alone, so nobody has folded what they say of the table.
    pub(super) fn send_passed_over_again(&mut self, table: &LocalTable) -> Result<(), ApplyError> {
        let Some(home) = (self.taking.route)(&table.routed, None) else { return Ok(()) };
        let own = self.state.origin();
        let moved_in = self.state.table_state(table).map(|state| state.moved_in.clone()).unwrap_or_default();
        let is_passed_over = |shard: ShardId, batch_no: u64| {
            let moved = moved_in.iter().find(|moved| moved.shard == shard && shard != home);
            let folded = moved.and_then(|moved| moved.folded.as_ref());
            folded.is_some_and(|folded| folded.iter().all(|(origin, last)| *origin != own || batch_no > *last))
        };
        let (mut units, mut has_any) = (Vec::new(), false);
        for unit in self.state.units_touching(table.id)? {
            let is_passed_over = unit.folded_as.is_some_and(|batch_no| is_passed_over(unit.shard, batch_no));
            has_any |= is_passed_over;
            if unit.folded_as.is_none() || is_passed_over {
                units.push(unit.id);
            }
        }
        if has_any { self.send_units_again(table, units) } else { Ok(()) }
    }

    fn send_units_again(&mut self, table: &LocalTable, units: Vec<i64>) -> Result<(), ApplyError> {
        let Some(home) = (self.taking.route)(&table.routed, None) else { return Ok(()) };
        let own = self.state.origin();
        let mut open: Option<(UnitBuilder, i64)> = None;
        let mut tx_last = None;
        for id in units {
            let is_astray = self.state.shard_of_pending(id)? != home;
            if !is_astray && open.is_none() {
                continue;
            }
            let unit = self.state.pending_unit(id)?;
            if tx_last.replace(unit.tx) != Some(unit.tx)
                && let Some(last) = open.take()
            {
                self.push_again(last, home, table.id)?;
            }
            let (tx, salts, frame) = (unit.tx, unit.salts, unit.frame);
            let origin = UnitOrigin { tx, salts, frame, repaired: unit.repaired, seen: unit.seen };
            let (mut builder, mut again) =
                open.take().unwrap_or_else(|| (UnitBuilder::new(origin, UNIT_BYTES_MAX), self.state.pending_id()));
            for (index, shape) in unit.tables.iter().enumerate() {
                let (found, fit) = match self.fit_of(&unit, own, shape, false) {
                    Ok(Found::Here(found, fit)) if found.id == table.id => (found, fit),
                    Ok(_) | Err(ApplyError::Cannot(_)) => continue,
                    Err(error) => return Err(error),
                };
                for change in unit.changes.iter().filter(|change| usize::from(change.table) == index) {
                    if let Some(full) = builder.push(shape, change.clone()) {
                        self.state.push_pending(again, home, &full, &[Touched::new(table.id)], false)?;
                        again = self.state.pending_id();
                    }
                    let canonical = found.change(&fit, change, self.merge).canonical;
                    if let Some(mut base) = self.state.base(&found, &canonical)?
                        && base.pending.note(again)
                    {
                        self.state.set_base(&found, &canonical, &base)?;
                    }
                }
            }
            open = Some((builder, again));
            if is_astray {
                let sql = "DELETE FROM pending_table WHERE table_id = ?1 AND pending_id = ?2";
                self.state.db.prepare_cached(sql)?.execute([table.id, id])?;
            }
        }
        match open {
            Some(last) => self.push_again(last, home, table.id),
            None => Ok(()),
        }
    }

    fn push_again(&mut self, (last, id): (UnitBuilder, i64), home: ShardId, table: i64) -> Result<(), ApplyError> {
        let Some(unit) = last.finish() else { return Ok(()) };
        self.state.push_pending(id, home, &unit, &[Touched::new(table)], false)
    }
}
