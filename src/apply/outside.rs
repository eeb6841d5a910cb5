//! Rows outside of the filter: what the fold has of them, and those that are the application's alone.
//!
//! A filter is a view of the fold. What the fold has of a row is, by the first that holds:
//!
//! | the row | the fold has |
//! |---|---|
//! | is in base | what base says, be it outside of the filter: such a row is *hidden*, base keeps it and the database does not show it |
//! | shows itself within the filter | the same |
//! | shows itself outside of the filter | nothing that this node knows of: the row is the application's alone |
//!
//! A row that is the application's alone never goes because of others, until one comes within the filter under its key or with a UNIQUE value
//! of it: that one wins, and the conflict journal keeps the other.
//!
//! Hidden rows are kept because columns are merged: an update that brings a row into the filter, or one by a node that did not know that it
//! had left, carries the row as its origin saw it, and what others wrote to it meanwhile must not be forgotten. That matters as long as nodes may
//! not know of each other's changes, so the oldest hidden rows are forgotten beyond a bound.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::params;

use super::apart::row_as;
use super::base::BaseRow;
use super::conflicts::{ConflictKind, Met};
use super::error::ApplyError;
use super::fold::{Aside, Folder};
use super::pending_units::PendingUnits;
use super::shape::{Change, LocalTable};
use super::state::State;
use super::undo_redo::Call;
use crate::change::RowKey;
use crate::format::{Row, Value};
use crate::log::SchemaStep;

/// Hidden rows of one table: at a few hundred bytes each these are some ten megabytes.
const HIDDEN_MAX: i64 = 50_000;

/// The same where all of base is put in place for each fold that meets a row of it.
const HIDDEN_UNIQUE_MAX: i64 = 1_000;

/// In the order in which rows were hidden. A row that is hidden again moves to the end.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS hidden(table_id INTEGER NOT NULL, no INTEGER NOT NULL, key BLOB NOT NULL, PRIMARY KEY(table_id, no)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS hidden_key ON hidden(table_id, key)";

impl State {
    /// Makes room for the order of hidden rows.
    pub(super) fn keep_outside(&self) -> Result<(), ApplyError> {
        Ok(self.db.execute_batch(TABLES)?)
    }

    /// The fold has a row that is outside of the filter: base keeps it. What is pending on it stays so.
    fn hide(&mut self, table: &LocalTable, key: &RowKey, canonical: &[u8], row: Row) -> Result<(), ApplyError> {
        if table.is_unique() {
            self.claim(table, &row)?;
            // Own units meet rows that were not there when they were captured.
            self.mark_dirty(table)?;
        }
        let pending = self.base(table, canonical)?.map_or(PendingUnits::NONE, |base| base.pending);
        self.set_base(table, canonical, &BaseRow { pending, key: key.clone(), row: Some(row) })?;
        self.note_hidden(table, canonical)
    }

    fn note_hidden(&mut self, table: &LocalTable, canonical: &[u8]) -> Result<(), ApplyError> {
        let sql = "INSERT OR REPLACE INTO hidden(table_id, no, key)
            VALUES(?1, (SELECT coalesce(max(no), 0) + 1 FROM hidden WHERE table_id = ?1), ?2)";
        self.db.prepare_cached(sql)?.execute(params![table.id, canonical])?;
        let max = if table.is_unique() { HIDDEN_UNIQUE_MAX } else { HIDDEN_MAX };
        let oldest = "SELECT no, key FROM hidden WHERE table_id = ?1 AND no <= (SELECT max(no) FROM hidden WHERE table_id = ?1) - ?2 ORDER BY no LIMIT 16";
        let mut found = self.db.prepare_cached(oldest)?;
        let old: Vec<(i64, Vec<u8>)> =
            found.query_map([table.id, max], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        drop(found);
        for (no, key) in old {
            self.db.prepare_cached("DELETE FROM hidden WHERE table_id = ?1 AND no = ?2")?.execute([table.id, no])?;
            let Some(base) = self.base(table, &key)? else { continue };
            if base.pending.is_empty() && table.taken(&base.key, base.row)?.is_none() {
                self.remove_base(table, &key)?;
            }
        }
        Ok(())
    }
}

impl Folder<'_> {
    /// Whether a row that is there is the application's alone.
    pub(super) fn is_apart(
        &self,
        table: &LocalTable,
        key: &RowKey,
        canonical: &[u8],
        row: &[Value],
    ) -> Result<bool, ApplyError> {
        let is_known = || self.of_fold.contains_key(&(table.id, canonical.to_vec()));
        Ok(table.is_filtered() && !is_known() && !table.takes(key, row)?)
    }

    /// Takes out a row that is the application's alone, until everything is folded.
    pub(super) fn stand_aside(
        &mut self,
        table: &Arc<LocalTable>,
        key: &RowKey,
        canonical: Vec<u8>,
        row: Row,
    ) -> Result<(), ApplyError> {
        self.remove(table, key, &canonical, &row)?;
        self.aside.push(Aside { table: Arc::clone(table), key: key.clone(), canonical, row });
        Ok(())
    }

    /// What is outside of the filter among the rows that the fold has under these keys is hidden.
    fn hide_of_fold(&mut self, state: &mut State) -> Result<(), ApplyError> {
        for ((_, canonical), (table, key)) in std::mem::take(&mut self.of_fold) {
            let Some(row) = self.rows.get(&table, &key)? else { continue };
            if table.takes(&key, &row)? {
                continue;
            }
            self.remove(&table, &key, &canonical, &row)?;
            // What is pending may have made it so: base has the fold's row then.
            match state.base_has(&table, &canonical)? {
                true => state.note_hidden(&table, &canonical)?,
                false => state.hide(&table, &key, &canonical, row)?,
            }
        }
        Ok(())
    }

    /// Rows that stood aside come back, unless another has their place by now: that one came within the filter.
    fn come_back(&mut self, state: &mut State) -> Result<(), ApplyError> {
        for aside in std::mem::take(&mut self.aside) {
            let Aside { table, key, canonical, row } = aside;
            let Some((other, kept)) = self.rows.insert_or_meet(&table, &key, &row)? else {
                self.added(&table, &canonical, &row);
                continue;
            };
            let met = Met {
                kind: if other == key { ConflictKind::SameRow } else { ConflictKind::UniqueValue },
                key: &key,
                kept: Some(&kept),
                lost: Some(&row),
                kept_origin: None,
                lost_origin: Some(state.origin()),
            };
            self.counts.conflicts += u64::from(state.record_conflict(&table, &met)?);
        }
        Ok(())
    }
}

impl Call<'_, '_> {
    /// Makes room under the keys of changes to a filtered table: what is the application's alone stands aside.
    pub(super) fn make_room(&mut self, table: &Arc<LocalTable>, changes: &[Change<'_>]) -> Result<(), ApplyError> {
        for change in changes.iter().filter(|_| table.is_filtered()) {
            let at = (table.id, change.canonical.clone());
            if self.folder.of_fold.contains_key(&at) {
                continue;
            }
            if let Some(now) = self.folder.rows.get(table, &change.key)?
                && !table.takes(&change.key, &now)?
            {
                self.folder.stand_aside(table, &change.key, change.canonical.clone(), now)?;
            }
        }
        Ok(())
    }

    /// The fold has, or had, rows under the keys of these changes.
    pub(super) fn note_of_fold(&mut self, table: &Arc<LocalTable>, changes: &[Change<'_>]) {
        for change in changes.iter().filter(|_| table.is_filtered()) {
            let at = (table.id, change.canonical.clone());
            self.folder.of_fold.insert(at, (Arc::clone(table), change.key.clone()));
        }
    }

    /// The schema has changed under rows that stand aside, and under what is known to be of the fold: both go by the tables as they are now.
    pub(super) fn carry_outside(&mut self, steps: &[SchemaStep]) -> Result<(), ApplyError> {
        let (aside, of_fold) = (std::mem::take(&mut self.folder.aside), std::mem::take(&mut self.folder.of_fold));
        let mut tables: HashMap<i64, Option<Arc<LocalTable>>> = HashMap::new();
        for Aside { table, key, canonical, row } in aside {
            let Some(now) = self.carried(&mut tables, table.id)? else { continue };
            let step =
                steps.iter().find(|step| step.kind == "table" && step.name.eq_ignore_ascii_case(&now.name_lower));
            let row = row_as(&now, &table, step.and_then(|step| step.renamed_columns.as_ref()), row);
            self.folder.aside.push(Aside { table: now, key, canonical, row });
        }
        for (at, (table, key)) in of_fold {
            if let Some(now) = self.carried(&mut tables, table.id)? {
                self.folder.of_fold.insert(at, (now, key));
            }
        }
        Ok(())
    }

    /// As [`Call::table_of_number`], asked once.
    fn carried(
        &mut self,
        tables: &mut HashMap<i64, Option<Arc<LocalTable>>>,
        id: i64,
    ) -> Result<Option<Arc<LocalTable>>, ApplyError> {
        if let Some(known) = tables.get(&id) {
            return Ok(known.clone());
        }
        let now = self.table_of_number(id)?;
        tables.insert(id, now.clone());
        Ok(now)
    }

    /// The table of a number as it is now; none where it is gone.
    pub(super) fn table_of_number(&mut self, id: i64) -> Result<Option<Arc<LocalTable>>, ApplyError> {
        let name = self.state.tables.iter().find(|(_, table)| table.id == id).map(|(name, _)| name.clone());
        let table = name.and_then(|name| self.table_now(&name));
        table.map(|table| self.state.local_table(&table)).transpose()
    }

    /// Ends what [`Call::make_room`] and undoing began, when everything is folded and pending is on top of it.
    pub(super) fn show_within(&mut self) -> Result<(), ApplyError> {
        let Call { state, folder, .. } = self;
        folder.hide_of_fold(state)?;
        folder.come_back(state)
    }

    /// Everything shows the fold, and a snapshot is about to say what that is: what was hidden is not needed any more.
    pub(super) fn drop_hidden(
        &mut self,
        table: &Arc<LocalTable>,
        is_ahead: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), ApplyError> {
        if !table.is_filtered() {
            return Ok(());
        }
        let known = self.folder.of_fold.iter().filter(|((id, canonical), _)| *id == table.id && is_ahead(canonical));
        let known: Vec<(Vec<u8>, RowKey)> =
            known.map(|((_, canonical), (_, key))| (canonical.clone(), key.clone())).collect();
        for (canonical, key) in known {
            if let Some(row) = self.folder.rows.get(table, &key)?
                && !table.takes(&key, &row)?
            {
                self.folder.remove(table, &key, &canonical, &row)?;
            }
        }
        Ok(())
    }

    /// Folds a change into a row of a plain filtered table that is not in base.
    pub(super) fn fold_within(&mut self, table: &Arc<LocalTable>, change: &Change<'_>) -> Result<(), ApplyError> {
        let now = self.folder.rows.get(table, &change.key)?;
        let new = change.step(table.taken(&change.key, now.clone())?.as_ref());
        let shown = table.taken(&change.key, new.clone())?;
        self.show_row(table, &change.key, &change.canonical, now, shown.as_ref())?;
        match new {
            Some(row) if shown.is_none() => self.state.hide(table, &change.key, &change.canonical, row),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a row show what is within the filter, or nothing; a row that is the application's alone gives way to something only.
    pub(super) fn show_row(
        &mut self,
        table: &Arc<LocalTable>,
        key: &RowKey,
        canonical: &[u8],
        now: Option<Row>,
        shown: Option<&Row>,
    ) -> Result<(), ApplyError> {
        let is_within = match &now {
            Some(now) => table.takes(key, now)?,
            None => true,
        };
        match (&now, shown) {
            (Some(old), Some(new)) => {
                if !self.folder.set(table, key, canonical, old, new)? {
                    return Err(ApplyError::Damaged { what: "the key of a row" });
                }
                if !is_within {
                    let met = Met {
                        kind: ConflictKind::SameRow,
                        key,
                        kept: Some(new),
                        lost: Some(old),
                        kept_origin: self.folder.origin,
                        lost_origin: Some(self.state.origin()),
                    };
                    self.folder.counts.conflicts += u64::from(self.state.record_conflict(table, &met)?);
                }
                Ok(())
            }
            (Some(old), None) if is_within => self.folder.remove(table, key, canonical, old),
            (None, Some(new)) => self.folder.put(self.state, table, key, canonical, new, false),
            (Some(_) | None, None) => Ok(()),
        }
    }

    /// Nothing is pending on a row any more: it leaves base, unless it is hidden.
    pub(super) fn leave_base(
        &mut self,
        table: &LocalTable,
        canonical: &[u8],
        base: &BaseRow,
    ) -> Result<(), ApplyError> {
        let is_hidden = match &base.row {
            Some(row) => !table.takes(&base.key, row)?,
            None => false,
        };
        if !is_hidden {
            return self.state.remove_base(table, canonical);
        }
        self.state.set_base(table, canonical, base)?;
        self.state.note_hidden(table, canonical)
    }
}
