//! Undo, fold, redo for everything that arrived, touching as little as gives the same result.
//!
//! | unit | table | way |
//! |---|---|---|
//! | own | plain, or UNIQUE with nothing foreign under pending | only base moves |
//! | foreign | rows that pending does not touch | folded straight in |
//! | foreign | plain, a row in base | its base row is folded; at the end the row is pending replayed on that |
//! | any | UNIQUE, otherwise | the table is undone at its first such unit, units fold into it, it is redone at the end |

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::Connection;

use super::apart::{Apart, RoundUnits};
use super::error::ApplyError;
use super::fitting::{Found, Known};
use super::fold::Folder;
use super::held::Changes;
use super::indexes;
use super::names::Birth;
use super::net_effect::{NetEffect, SchemaEffect};
use super::pending_units::PendingUnits;
use super::replica::Taking;
use super::schema_steps::{BegunAnew, Maker, catalogue_after, catalogue_of, schema_rows};
use super::shape::{Change, LocalTable, Merge, Tables};
use super::state::{Dirty, State};
use super::statements::SELECT_ROWS;
use super::theirs::Theirs;
use crate::change::canonical_key;
use crate::format::Row;
use crate::log::{Origin, SchemaStep, ShardId, StreamSeq, Unit};
use crate::schema::{Catalogue, SchemaRow, Table};

/// A plain row whose base row moved under pending.
struct Redo {
    table: Arc<LocalTable>,
    /// Who made the last foreign change of it.
    origin: Origin,
}

/// One call of fold: what is undone at the moment, and must be redone before the end.
pub(super) struct Call<'a, 'c> {
    pub(super) state: &'a mut State,
    pub(super) folder: Folder<'c>,
    pub(super) tables: &'a dyn Tables,
    pub(super) taking: Taking<'a>,
    pub(super) merge: Merge,
    /// The write lock of the user's database is held, so its rows may be read and written.
    pub(super) locked: bool,
    pub(super) undone: BTreeMap<i64, Arc<LocalTable>>,
    redo: HashMap<(i64, Vec<u8>), Redo>,
    pub(super) theirs: Theirs,
    pub(super) known: HashMap<String, Vec<Known>>,
    /// The tables as they are since the schema was changed in this call, and what that did.
    pub(super) made: Option<(Catalogue, SchemaEffect)>,
    pub(super) changes: Changes,
    /// The indexes that stand in for what is UNIQUE for the fold alone, by table.
    pub(super) fold_only: HashMap<i64, Vec<String>>,
}

impl<'a, 'c> Call<'a, 'c> {
    pub(super) fn new(
        state: &'a mut State,
        folder: Folder<'c>,
        (tables, taking): (&'a dyn Tables, Taking<'a>),
        merge: Merge,
        locked: bool,
    ) -> Call<'a, 'c> {
        let (undone, redo, known) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        let (changes, fold_only, theirs) = (Changes::default(), HashMap::new(), Theirs::default());
        Call {
            state,
            folder,
            tables,
            taking,
            merge,
            locked,
            undone,
            redo,
            theirs,
            known,
            made: None,
            changes,
            fold_only,
        }
    }

    /// Makes changes of the schema that another origin made. Everything shows pending then, as between two calls. `units` are those of the
    /// transaction.
    pub(super) fn make_steps(
        &mut self,
        conn: &Connection,
        shard: ShardId,
        (steps, seen): (&[SchemaStep], StreamSeq),
        birth: Birth,
        units: &dyn RoundUnits,
    ) -> Result<(), ApplyError> {
        if !self.locked {
            return Err(ApplyError::NotLocked);
        }
        let (mut steps, in_vain) = self.about_tables_here(steps)?;
        steps.retain(|step| self.taking.takes(&step.table));
        self.let_go()?;
        self.redo()?;
        self.state.keep_names()?;
        in_vain.iter().try_for_each(|step| self.state.note_made(step, &birth))?;
        let tables = self.tables_of_steps(&steps)?;
        let (steps, passed) = self.pass_over_repeated(steps, seen, &birth, shard)?;
        let steps = steps.as_slice();
        self.state.forget_tables();
        self.known.clear();
        let mut apart = Apart::default();
        tables.iter().try_for_each(|(table, step)| self.settle_uniques((table, step), units, &mut apart))?;
        self.put_back(&apart, units, birth.origin, false)?;
        passed.iter().try_for_each(|step| self.move_rows(step))?;
        // Other messages can stand between the pieces of one that brings an own change back: that change is not behind them.
        let pending = self.state.steps_behind(shard)?;
        let mirror = Connection::open_in_memory()
            .map_err(|source| ApplyError::Database { doing: "making a change of the schema", source })?;
        let before = catalogue_of(conn)?;
        let mut apart = Apart::default();
        for step in steps {
            self.prepare_move(step, steps, units, &mut apart)?;
            self.prepare_unmade(step)?;
            self.prepare_types(step)?;
            self.note_pending_gone(step, shard)?;
        }
        // What has no place, and what stands in for what is UNIQUE for the fold, is not for the steps to meet.
        let shown: Vec<i64> = self.undone.keys().copied().collect();
        shown.into_iter().try_for_each(|table| self.end_showing(table))?;
        indexes::forget(conn)?;
        let (may_leave_rows, origin) = (false, birth.origin);
        let (state, folder, pending) = (&mut *self.state, &mut self.folder, pending.as_slice());
        let (aside, begun_anew, stood) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let mut maker =
            Maker { conn, state, folder, pending, birth, seen, mirror, may_leave_rows, aside, stood, begun_anew };
        let effect = maker.make(steps)?;
        let begun_anew = maker.begun_anew;
        self.made_anew(conn, &before, &effect, steps)?;
        // What speaks of a name has followed it.
        self.note_schema_made(&before, &catalogue_after(conn, &before)?)?;
        self.note_schema(conn, steps)?;
        begun_anew.iter().try_for_each(|begun| self.begin_anew(begun))?;
        steps.iter().try_for_each(|step| self.note_pending_columns_gone(step, shard))?;
        steps.iter().try_for_each(|step| self.move_rows(step))?;
        self.put_back(&apart, units, origin, true)?;
        // Own messages move base alone, and there is none while a table shows the fold.
        self.redo()
    }

    /// Goes on with the schema that `steps` made. `before` is what it was, and the temporary triggers are gone.
    pub(super) fn made_anew(
        &mut self,
        conn: &Connection,
        before: &Catalogue,
        effect: &SchemaEffect,
        steps: &[SchemaStep],
    ) -> Result<(), ApplyError> {
        self.known.clear();
        self.state.forget_tables();
        self.folder.rows.forget_tables();
        let mut all = self.made.take().map(|(_, effect)| effect).unwrap_or_default();
        all.merge(effect);
        let after = catalogue_after(conn, before)?;
        // A filter that cannot be asked any more must not let anything through, nor leave anything out.
        for table in after.tables().filter(|table| !table.is_internal()) {
            self.state.filters.test(table)?;
        }
        indexes::keep(conn, &after)?;
        indexes::fill_new(conn, before, &after)?;
        self.made = Some((after, all));
        self.carry_outside(steps)
    }

    /// The fold has lost a table or a column that is here all the same, because an own change that is pending makes it. Where that comes to
    /// stand in the log it is without rows, and the column holds in all rows what it holds in those that know nothing of it.
    fn begin_anew(&mut self, begun: &BegunAnew) -> Result<(), ApplyError> {
        let Some(table) = self.table_now(&begun.table) else { return Ok(()) };
        let table = self.state.local_table(&table)?;
        if !self.undone.contains_key(&table.id) {
            self.undo(&table)?;
        }
        let mut keys = Vec::new();
        self.folder.rows.each(&table, &format!("{SELECT_ROWS} FROM {}", table.sql.name), |row, rowid| {
            let key = table.key_of(&row, rowid);
            if table.takes(&key, &row)? {
                keys.push(key);
            }
            Ok(())
        })?;
        let column = begun
            .column
            .as_ref()
            .map(|name| table.shape.columns.iter().position(|column| column.eq_ignore_ascii_case(name)));
        for key in keys {
            let Some(old) = self.folder.rows.get(&table, &key)? else { continue };
            let canonical = canonical_key(&table.table, &key);
            let Some(column) = column else {
                self.folder.remove(&table, &key, &canonical, &old)?;
                continue;
            };
            let mut new = old.clone();
            if let Some(index) = column
                && let (Some(value), Some(default)) = (new.get_mut(index), table.defaults.get(index))
            {
                value.clone_from(default);
            }
            if !self.folder.set(&table, &key, &canonical, &old, &new)? {
                return Err(ApplyError::Damaged { what: "a UNIQUE index" });
            }
            self.store_many_versions()?;
        }
        Ok(())
    }

    /// Remembers what the steps made, for when the commit that makes it true is found together with others.
    fn note_schema(&self, conn: &Connection, steps: &[SchemaStep]) -> Result<(), ApplyError> {
        let after = schema_rows(conn)?;
        for step in steps {
            for name in [Some(&step.name), step.name_before.as_ref()].into_iter().flatten() {
                let is_this = |row: &&SchemaRow| row.kind == step.kind && row.name.eq_ignore_ascii_case(name);
                let sql = after.iter().find(is_this).and_then(|row| row.sql.as_deref());
                self.state.note_intent_schema(&step.kind, name, sql)?;
            }
        }
        Ok(())
    }

    /// Stores what was done to rows, when it is much.
    pub(super) fn store_many_versions(&mut self) -> Result<(), ApplyError> {
        if self.folder.net.versions.are_many() {
            self.state.store_versions(&std::mem::take(&mut self.folder.net.versions))?;
        }
        Ok(())
    }

    /// What all of it did to the database.
    pub(super) fn net_effect(&self) -> Result<NetEffect, ApplyError> {
        Ok(match (&self.made, self.folder.net.by_table()) {
            // Also where the schema is what it was: rows need not be.
            (Some((_, schema)), Some(rows)) => schema.with_rows(rows, &self.state.intent_tables()?),
            _ => self.folder.net.net,
        })
    }

    pub(super) fn table_now(&self, name: &str) -> Option<Arc<Table>> {
        match &self.made {
            Some((catalogue, _)) => catalogue.written_table(name).cloned(),
            None => self.tables.table(name),
        }
    }

    /// Folds a unit of another origin. `at` is its message.
    pub(super) fn fold_foreign(
        &mut self,
        mut unit: Unit,
        origin: Origin,
        at: (ShardId, StreamSeq),
    ) -> Result<(), ApplyError> {
        if !self.locked {
            return Err(ApplyError::NotLocked);
        }
        self.folder.origin = Some(origin);
        self.folder.counts.units_foreign += 1;
        self.folder.displaced.clear();
        self.folder.comebacks.begin(origin, &unit);
        let mut fits = Vec::with_capacity(unit.tables.len());
        for shape in &unit.tables {
            let found = self.fit_of(&unit, origin, shape, true)?;
            if matches!(found, Found::Gone) {
                self.note_gone(&unit, shape, origin)?;
            }
            fits.push(found.here().filter(|(table, _)| !self.has_moved(table, at.0)));
        }
        let mut sets: BTreeMap<u16, Vec<Change<'_>>> = BTreeMap::new();
        for change in std::mem::take(&mut unit.changes) {
            let fit =
                fits.get(usize::from(change.table)).ok_or(ApplyError::Damaged { what: "a unit's list of tables" })?;
            let Some((table, fit)) = fit else { continue };
            let index = change.table;
            if let Some(shape) = unit.tables.get(usize::from(index)) {
                self.note_columns_gone(shape, fit, &change, origin)?;
            }
            let written = table.written(fit, &change);
            let fitted = table.change_taken(fit, change, self.merge);
            if let Some(written) = written {
                self.note_converted(table, &fitted, &written, origin)?;
            }
            if table.is_unique() {
                sets.entry(index).or_default().push(fitted);
            } else if !self.state.suspecting {
                self.hold(table, fitted, origin, at)?;
            } else {
                let was_there = self.is_there(table, &fitted)?;
                self.fold_plain(table, &fitted, origin)?;
                self.note_seen(table, &fitted, was_there)?;
            }
        }
        for (index, changes) in &sets {
            let Some(Some((table, _))) = fits.get(usize::from(*index)) else { continue };
            self.make_room(table, changes)?;
            let is_shown = self.undone.contains_key(&table.id);
            if !is_shown && (table.takes_more() || !self.is_free(table, changes)?) {
                self.undo(table)?;
            }
            let were_there =
                changes.iter().map(|change| self.is_there(table, change)).collect::<Result<Vec<_>, _>>()?;
            self.note_of_fold(table, changes);
            let rest = self.folder.fold_in_place(self.state, table, changes, None)?;
            if !rest.is_empty() && table.can_hide() && !self.undone.contains_key(&table.id) {
                // Rows that are in each other's way here need not be so in the fold.
                self.undo(table)?;
            }
            self.folder.fold_rest(self.state, table, &rest, None)?;
            self.note_theirs(table, changes, origin)?;
            for (change, was_there) in changes.iter().zip(were_there) {
                self.note_seen(table, change, was_there)?;
            }
        }
        if self.state.suspecting {
            for (table_id, key) in std::mem::take(&mut self.folder.displaced) {
                self.state.note_gone(table_id, &key)?;
            }
        }
        Ok(())
    }

    /// Whether the fold has the row; asked only while units are suspect.
    fn is_there(&self, table: &LocalTable, change: &Change<'_>) -> Result<bool, ApplyError> {
        if !self.state.suspecting {
            return Ok(true);
        }
        Ok(match self.state.base(table, &change.canonical)? {
            Some(base) => base.row.is_some(),
            None => table.taken(&change.key, self.folder.row_of_fold(table, &change.key)?)?.is_some(),
        })
    }

    fn note_seen(&self, table: &LocalTable, change: &Change<'_>, was_there: bool) -> Result<(), ApplyError> {
        if self.state.suspecting { self.state.note_seen(table, change, was_there) } else { Ok(()) }
    }

    pub(super) fn fold_plain(
        &mut self,
        table: &Arc<LocalTable>,
        change: &Change<'_>,
        origin: Origin,
    ) -> Result<(), ApplyError> {
        let Some(mut base) = self.state.base(table, &change.canonical)? else {
            if table.is_filtered() {
                return self.fold_within(table, change);
            }
            return self.folder.fold(self.state, table, std::slice::from_ref(change), None);
        };
        base.row = change.step(base.row.as_ref());
        self.state.set_base(table, &change.canonical, &base)?;
        if !base.pending.is_empty() && origin != self.state.origin() {
            self.theirs.add(table, change, Some(origin), base.row);
        }
        self.redo.insert((table.id, change.canonical.clone()), Redo { table: Arc::clone(table), origin });
        Ok(())
    }

    /// Whether a unit shares no row and no UNIQUE value with base or pending.
    fn is_free(&self, table: &LocalTable, changes: &[Change<'_>]) -> Result<bool, ApplyError> {
        if self.state.base_rows(table) == 0 {
            return Ok(true);
        }
        for change in changes {
            if self.state.base_has(table, &change.canonical)? {
                return Ok(false);
            }
        }
        for change in changes {
            let old = table.taken(&change.key, self.folder.rows.get(table, &change.key)?)?;
            if let Some(new) = change.step(old.as_ref())
                && self.state.is_claimed(table, &new)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Folds an own unit, which is the oldest pending one of its shard. `whole`: the other units of its transaction in this shard follow in
    /// this call, and no foreign one comes between.
    pub(super) fn fold_own(&mut self, (id, shard): (i64, ShardId), unit: &Unit, whole: bool) -> Result<(), ApplyError> {
        self.let_go()?;
        self.state.mark_folded(id)?;
        self.folder.origin = Some(self.state.origin());
        self.folder.counts.units_own += 1;
        let own = self.state.origin();
        self.folder.comebacks.begin(own, unit);
        for (index, shape) in unit.tables.iter().enumerate() {
            let (table, fit) = match self.fit_of(unit, own, shape, false) {
                Ok(Found::Here(table, fit)) => (table, fit),
                // The table is gone here by now, or has another key: there is no row to show anything else than the fold.
                Ok(Found::Gone | Found::NotTaken) | Err(ApplyError::Cannot(_)) => {
                    // Another table may have the name by now.
                    if self.table_now(&shape.name).is_none() {
                        self.forget_gone(&shape.name)?;
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            let is_again = table.travels.is_by_name() && !self.state.is_touching(id, table.id)?;
            if self.has_moved(&table, shard) {
                // Nobody folds it. What it says is pending once more in the right shard; if not, it must not be seen any longer.
                if !is_again {
                    self.undo_locked(&table)?;
                }
                continue;
            }
            let dirty = self.state.table_state(&table).map_or(Dirty::Clean, |state| state.dirty);
            // With nothing foreign under it, pending was captured as exactly what the fold makes of it, transaction by transaction.
            let is_shown = self.undone.contains_key(&table.id);
            let is_clean = if table.is_unique() { whole && dirty == Dirty::Clean } else { dirty < Dirty::Unique };
            let is_as_captured = !is_again && !is_shown && is_clean;
            if is_as_captured && self.state.take_run(id, &table) {
                continue;
            }
            let of_table = unit.changes.iter().filter(|change| usize::from(change.table) == index);
            let changes: Vec<Change<'_>> = of_table.map(|change| table.change(&fit, change, self.merge)).collect();
            if is_as_captured {
                for change in &changes {
                    self.move_base(&table, change, id)?;
                }
            } else {
                self.undo_locked(&table)?;
                self.make_room(&table, &changes)?;
                self.note_of_fold(&table, &changes);
                let met = self.rows_met(&table, &changes)?;
                self.folder.fold(self.state, &table, &changes, None)?;
                self.judge_met(&table, met)?;
            }
        }
        self.state.lay_out_rest(id)
    }

    pub(super) fn undo_locked(&mut self, table: &Arc<LocalTable>) -> Result<(), ApplyError> {
        if !self.locked {
            return Err(ApplyError::NotLocked);
        }
        if self.undone.contains_key(&table.id) { Ok(()) } else { self.undo(table) }
    }

    /// An own change is in the log: base moves on, and ends where nothing is pending on the row any more.
    fn move_base(&mut self, table: &LocalTable, change: &Change<'_>, id: i64) -> Result<(), ApplyError> {
        let moved_under = !self.redo.is_empty() && self.redo.contains_key(&(table.id, change.canonical.clone()));
        if !moved_under && !table.is_filtered() && self.state.remove_base_of(table, &change.canonical, id)? {
            return Ok(());
        }
        let Some(mut base) = self.state.base(table, &change.canonical)? else { return Ok(()) };
        base.pending.take(id);
        let before = base.row.take();
        base.row = change.step(before.as_ref());
        self.judge_theirs((table, &change.canonical), before.as_ref(), base.row.as_ref())?;
        if base.pending.is_empty() && !moved_under {
            return self.leave_base(table, &change.canonical, &base);
        }
        self.state.set_base(table, &change.canonical, &base)
    }

    fn forget_gone(&mut self, name: &str) -> Result<(), ApplyError> {
        let Some(id) = self.state.tables.get(&name.to_ascii_lowercase()).map(|table| table.id) else { return Ok(()) };
        if self.state.pending_touching(id)?.is_empty() { self.state.clear_base(name) } else { Ok(()) }
    }

    /// Puts all of base in place: everything shows the fold as it was, until it is redone. No messages are folded there: with a snapshot the
    /// fold becomes another, and what is UNIQUE for that one alone rows of this one need not be.
    pub(super) fn undo_all(&mut self) -> Result<(), ApplyError> {
        let known: Vec<(String, i64, u64)> =
            self.state.tables.iter().map(|(name, table)| (name.clone(), table.id, self.state.rows_of(table))).collect();
        for (name, id, base_rows) in known {
            if base_rows == 0 && self.state.pending_touching(id)?.is_empty() {
                continue;
            }
            match self.table_now(&name) {
                Some(table) => {
                    let table = self.state.local_table(&table)?;
                    self.undo_rows(&table)?;
                }
                None => self.forget_gone(&name)?,
            }
        }
        Ok(())
    }

    /// Puts a table's base in place: it shows the fold from here on.
    pub(super) fn undo(&mut self, table: &Arc<LocalTable>) -> Result<(), ApplyError> {
        self.undo_rows(table)?;
        self.make_fold_only(table)
    }

    fn undo_rows(&mut self, table: &Arc<LocalTable>) -> Result<(), ApplyError> {
        self.state.mark_dirty(table)?;
        self.folder.counts.tables_redone += 1;
        let Call { state, folder, .. } = self;
        // Rows that show the fold already stay; so those that are put in meet nothing but what was never in anybody's way.
        state.each_base(table, |canonical, base| {
            let now = folder.rows.get(table, &base.key)?;
            let is_apart = match &now {
                Some(now) => folder.is_apart(table, &base.key, canonical, now)?,
                None => false,
            };
            if table.is_filtered() {
                folder.of_fold.insert((table.id, canonical.to_vec()), (Arc::clone(table), base.key.clone()));
            }
            match now {
                Some(now) if is_apart => folder.stand_aside(table, &base.key, canonical.to_vec(), now),
                Some(now) if base.row.as_ref() != Some(&now) => folder.remove(table, &base.key, canonical, &now),
                Some(_) | None => Ok(()),
            }
        })?;
        let mut missing = Vec::new();
        state.each_base(table, |canonical, base| {
            if let Some(row) = base.row
                && folder.rows.get(table, &base.key)?.is_none()
            {
                missing.push((base.key, canonical.to_vec(), row));
            }
            Ok(())
        })?;
        for (key, canonical, row) in missing {
            folder.put(state, table, &key, &canonical, &row, false)?;
        }
        state.clear_base(&table.name_lower)?;
        self.undone.insert(table.id, Arc::clone(table));
        Ok(())
    }

    /// Replays pending on everything that was undone.
    pub(super) fn redo(&mut self) -> Result<(), ApplyError> {
        let own = self.state.origin();
        self.folder.comebacks.end();
        self.folder.origin = Some(own);
        for (id, table) in std::mem::take(&mut self.undone) {
            self.end_showing(id)?;
            for pending in self.state.pending_touching(id)? {
                let unit = self.state.pending_unit(pending)?;
                for (index, shape) in unit.tables.iter().enumerate() {
                    let (table, fit) = match self.fit_of(&unit, own, shape, false) {
                        Ok(Found::Here(found, fit)) if found.id == table.id => (found, fit),
                        Ok(_) | Err(ApplyError::Cannot(_)) => continue,
                        Err(error) => return Err(error),
                    };
                    let of_table = unit.changes.iter().filter(|change| usize::from(change.table) == index);
                    let changes: Vec<Change<'_>> =
                        of_table.map(|change| table.change(&fit, change, self.merge)).collect();
                    self.make_room(&table, &changes)?;
                    self.note_of_fold(&table, &changes);
                    self.folder.fold(self.state, &table, &changes, Some(pending))?;
                }
                self.store_many_versions()?;
            }
        }
        self.redo_rows()?;
        self.show_within()?;
        self.judge_all_theirs()
    }

    pub(super) fn redo_rows(&mut self) -> Result<(), ApplyError> {
        let own = self.state.origin();
        let redo = std::mem::take(&mut self.redo);
        let mut values: HashMap<(i64, Vec<u8>), Option<Row>> = HashMap::with_capacity(redo.len());
        let mut units = BTreeSet::new();
        // By table, where a row has too many units to name them: from which to which of the table's they are.
        let mut many: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for (at, row) in &redo {
            let Some(base) = self.state.base(&row.table, &at.1)? else { continue };
            match base.pending {
                PendingUnits::Few(ids) => units.extend(ids),
                PendingUnits::Many { first, last, .. } => {
                    let range = many.entry(at.0).or_insert((first, last));
                    *range = (range.0.min(first), range.1.max(last));
                }
            }
            values.insert(at.clone(), base.row);
        }
        for (table_id, (first, last)) in many {
            units.extend(self.state.pending_touching(table_id)?.into_iter().filter(|id| (first..=last).contains(id)));
        }
        for id in units {
            let unit = self.state.pending_unit(id)?;
            for (index, shape) in unit.tables.iter().enumerate() {
                let (table, fit) = match self.fit_of(&unit, own, shape, false) {
                    Ok(Found::Here(table, fit)) => (table, fit),
                    Ok(_) | Err(ApplyError::Cannot(_)) => continue,
                    Err(error) => return Err(error),
                };
                for change in unit.changes.iter().filter(|change| usize::from(change.table) == index) {
                    let change = table.change(&fit, change, self.merge);
                    if let Some(value) = values.get_mut(&(table.id, change.canonical.clone())) {
                        *value = change.step(value.as_ref());
                    }
                }
            }
        }
        for ((table_id, canonical), visible) in values {
            let at = (table_id, canonical);
            if let Some(redo) = redo.get(&at) {
                self.show(redo, &at.1, visible)?;
            }
        }
        Ok(())
    }

    /// Makes a plain row show pending on top of its base.
    fn show(&mut self, redo: &Redo, canonical: &[u8], visible: Option<Row>) -> Result<(), ApplyError> {
        let table = &redo.table;
        let Some(base) = self.state.base(table, canonical)? else { return Ok(()) };
        self.folder.counts.rows_redone += 1;
        self.judge_theirs((table, canonical), base.row.as_ref(), visible.as_ref())?;
        let now = self.folder.rows.get(table, &base.key)?;
        if table.is_filtered() {
            let shown = table.taken(&base.key, visible.clone())?;
            self.folder.origin = Some(redo.origin);
            self.show_row(table, &base.key, canonical, now, shown.as_ref())?;
        } else {
            match (&now, &visible) {
                (Some(old), Some(new)) => {
                    if !self.folder.set(table, &base.key, canonical, old, new)? {
                        return Err(ApplyError::Damaged { what: "the key of a row" });
                    }
                }
                (Some(old), None) => self.folder.remove(table, &base.key, canonical, old)?,
                (None, Some(new)) => self.folder.put(self.state, table, &base.key, canonical, new, false)?,
                (None, None) => {}
            }
        }
        match base.pending.is_empty() {
            true => self.leave_base(table, canonical, &base),
            false => Ok(()),
        }
    }
}
