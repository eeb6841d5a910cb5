//! What others wrote to rows that own changes are pending on: whatever of it these override goes into the conflict journal.
//!
//! Who wrote later on the log journals what it overrode, for its node alone knows that it had not seen it. Several others can have written to
//! one row, and own changes can come back between them; each is judged by what the own change did to the row as the fold had it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::conflicts::{ConflictKind, Met};
use super::error::ApplyError;
use super::fitting::Found;
use super::fold::Folder;
use super::pending_units::PendingUnits;
use super::shape::{Change, LocalTable};
use super::state::State;
use super::undo_redo::Call;
use crate::change::{Op, RowKey};
use crate::format::Row;
use crate::log::Origin;

/// Changes that may be overridden, by the table's number and the key.
#[derive(Default)]
pub(super) struct Theirs(HashMap<(i64, Vec<u8>), OfRow>);

struct OfRow {
    table: Arc<LocalTable>,
    key: RowKey,
    changes: Vec<Their>,
}

struct Their {
    /// Who made it, where that is known.
    origin: Option<Origin>,
    /// The row that it made.
    row: Option<Row>,
    /// The columns that it wrote; empty for all.
    mask: Vec<bool>,
}

impl Their {
    /// Whether an own change overrides some of it, which made `after` of the fold's row `before`, and leaves in it what is not overridden. Columns
    /// that only one of them wrote are no conflict.
    fn is_overridden(&mut self, before: Option<&Row>, after: Option<&Row>) -> bool {
        let (theirs, after) = match (&self.row, after) {
            (None, after) => return before.is_none() && after.is_some(),
            (Some(_), None) => return before.is_some(),
            (Some(theirs), Some(after)) => (theirs, after),
        };
        if self.mask.is_empty() {
            self.mask = vec![true; theirs.len()];
        }
        let mut is_overridden = false;
        for (i, (their, written)) in theirs.iter().zip(&mut self.mask).enumerate() {
            let is_own = before.is_none_or(|before| before.get(i) != after.get(i));
            if *written && is_own && after.get(i) != Some(their) {
                (*written, is_overridden) = (false, true);
            }
        }
        is_overridden
    }

    /// Whether anything of it can still be overridden.
    fn is_left(&self) -> bool {
        self.row.is_some() && (self.mask.is_empty() || self.mask.contains(&true))
    }
}

impl OfRow {
    /// Journals what is overridden by an own change that made `after` of the fold's row `before`, each column once.
    fn judge(
        &mut self,
        state: &State,
        folder: &mut Folder<'_>,
        before: Option<&Row>,
        after: Option<&Row>,
    ) -> Result<(), ApplyError> {
        for mut their in std::mem::take(&mut self.changes) {
            if !their.is_overridden(before, after) {
                self.changes.push(their);
                continue;
            }
            let met = Met {
                kind: ConflictKind::SameRow,
                key: &self.key,
                kept: after,
                lost: their.row.as_ref(),
                kept_origin: Some(state.origin()),
                lost_origin: their.origin,
            };
            folder.counts.conflicts += u64::from(state.record_conflict(&self.table, &met)?);
            if after.is_some() && their.is_left() {
                self.changes.push(their);
            }
        }
        Ok(())
    }
}

/// An own change in a table that shows the fold, with the row as it was.
pub(super) type MetRow = (RowKey, Vec<u8>, Option<Row>);

impl Theirs {
    /// Takes note of a change of another node that made `row`.
    pub(super) fn add(
        &mut self,
        table: &Arc<LocalTable>,
        change: &Change<'_>,
        origin: Option<Origin>,
        row: Option<Row>,
    ) {
        let mask = if change.op == Op::Update { change.mask.clone() } else { Vec::new() };
        self.add_row(table, (&change.key, &change.canonical), origin, row, mask);
    }

    /// The same of what a snapshot says. `mask`: the columns that differ from what was there; empty for all.
    pub(super) fn add_row(
        &mut self,
        table: &Arc<LocalTable>,
        (key, canonical): (&RowKey, &[u8]),
        origin: Option<Origin>,
        row: Option<Row>,
        mask: Vec<bool>,
    ) {
        let of_row = self.0.entry((table.id, canonical.to_vec())).or_insert_with(|| OfRow {
            table: Arc::clone(table),
            key: key.clone(),
            changes: Vec::new(),
        });
        of_row.changes.push(Their { origin, row, mask });
    }

    /// How many rows they are of.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    fn has(&self, table: &LocalTable, canonical: &[u8]) -> bool {
        !self.0.is_empty() && self.0.contains_key(&(table.id, canonical.to_vec()))
    }
}

impl State {
    /// Whether own changes were pending on a row of a table that shows the fold by now.
    pub(super) fn was_pending(&self, table: &LocalTable, canonical: &[u8]) -> Result<bool, ApplyError> {
        // An entry begins with the number of units that are pending on its row.
        let sql = "SELECT 1 FROM base_before WHERE table_id = ?1 AND key = ?2 AND entry >= x'01'";
        Ok(self.db.prepare_cached(sql)?.exists(params![table.id, canonical])?)
    }
}

/// Own units that a snapshot has and that are looked at because a row has too many to name them: the newest. There are as many where a node published
/// that much and did not read it back.
const LEFT_MAX: i64 = 1 << 14;

impl State {
    /// Own units that changed rows of a table that shows the fold by now, and are pending no more.
    fn left_units<'k>(
        &self,
        table: &LocalTable,
        rows: impl Iterator<Item = &'k Vec<u8>>,
    ) -> Result<BTreeSet<i64>, ApplyError> {
        let sql = "SELECT entry FROM base_before WHERE table_id = ?1 AND key = ?2 AND entry IS NOT NULL";
        let mut found = self.db.prepare_cached(sql)?;
        let (mut named, mut range): (BTreeSet<i64>, Option<(i64, i64)>) = (BTreeSet::new(), None);
        for canonical in rows {
            let entry: Option<Vec<u8>> = found.query_row(params![table.id, canonical], |row| row.get(0)).optional()?;
            let Some(entry) = entry else { continue };
            match self.read_base(table, &entry)?.pending {
                PendingUnits::Few(ids) => named.extend(ids),
                PendingUnits::Many { first, last, .. } => {
                    let known = range.get_or_insert((first, last));
                    *known = (known.0.min(first), known.1.max(last));
                }
            }
        }
        let mut is_left = self.db.prepare_cached("SELECT 1 FROM pending WHERE id = ?1 AND folded = 1")?;
        let mut units = BTreeSet::new();
        for id in named {
            if is_left.exists([id])? {
                units.insert(id);
            }
        }
        if let Some((first, last)) = range {
            let sql = "SELECT id FROM pending WHERE id BETWEEN ?1 AND ?2 AND folded = 1 ORDER BY id DESC LIMIT ?3";
            let mut found = self.db.prepare_cached(sql)?;
            for id in found.query_map([first, last, LEFT_MAX], |row| row.get(0))? {
                units.insert(id?);
            }
        }
        Ok(units)
    }
}

impl Call<'_, '_> {
    /// Puts on rows of the fold, by their keys, the own units that a snapshot has: what else is other there somebody else has written. Each unit is
    /// read once.
    pub(super) fn put_own_on(
        &mut self,
        table: &Arc<LocalTable>,
        rows: &mut HashMap<Vec<u8>, Option<Row>>,
    ) -> Result<(), ApplyError> {
        let own = self.state.origin();
        for id in self.state.left_units(table, rows.keys())? {
            let unit = self.state.pending_unit(id)?;
            for (index, shape) in unit.tables.iter().enumerate() {
                let fit = match self.fit_of(&unit, own, shape, false) {
                    Ok(Found::Here(found, fit)) if found.id == table.id => fit,
                    Ok(_) | Err(ApplyError::Cannot(_)) => continue,
                    Err(error) => return Err(error),
                };
                for change in unit.changes.iter().filter(|change| usize::from(change.table) == index) {
                    let change = table.change(&fit, change, self.merge);
                    if let Some(row) = rows.get_mut(&change.canonical) {
                        *row = change.step(row.as_ref());
                    }
                }
            }
        }
        Ok(())
    }

    /// Changes of another node are folded into a table with UNIQUE values.
    pub(super) fn note_theirs(
        &mut self,
        table: &Arc<LocalTable>,
        changes: &[Change<'_>],
        origin: Origin,
    ) -> Result<(), ApplyError> {
        if !self.undone.contains_key(&table.id) || origin == self.state.origin() {
            return Ok(());
        }
        for change in changes {
            if self.state.was_pending(table, &change.canonical)? {
                let row = self.folder.row_of_fold(table, &change.key)?;
                self.theirs.add(table, change, Some(origin), row);
            }
        }
        Ok(())
    }

    /// The rows of own changes that others have written to, before these are folded.
    pub(super) fn rows_met(&self, table: &LocalTable, changes: &[Change<'_>]) -> Result<Vec<MetRow>, ApplyError> {
        let met = changes.iter().filter(|change| self.theirs.has(table, &change.canonical));
        met.map(|change| {
            let row = self.folder.row_of_fold(table, &change.key)?;
            Ok((change.key.clone(), change.canonical.clone(), row))
        })
        .collect()
    }

    /// They are folded.
    pub(super) fn judge_met(&mut self, table: &LocalTable, met: Vec<MetRow>) -> Result<(), ApplyError> {
        for (key, canonical, before) in met {
            let after = self.folder.row_of_fold(table, &key)?;
            self.judge_theirs((table, &canonical), before.as_ref(), after.as_ref())?;
        }
        Ok(())
    }

    /// An own change has made `after` of the fold's row `before`.
    pub(super) fn judge_theirs(
        &mut self,
        (table, canonical): (&LocalTable, &[u8]),
        before: Option<&Row>,
        after: Option<&Row>,
    ) -> Result<(), ApplyError> {
        let Call { theirs, state, folder, .. } = self;
        if theirs.0.is_empty() {
            return Ok(());
        }
        theirs
            .0
            .get_mut(&(table.id, canonical.to_vec()))
            .map_or(Ok(()), |of_row| of_row.judge(state, folder, before, after))
    }

    /// Everything shows pending again.
    pub(super) fn judge_all_theirs(&mut self) -> Result<(), ApplyError> {
        for ((_, canonical), mut of_row) in std::mem::take(&mut self.theirs).0 {
            // Nothing is pending on a row that is not in base. What is not seen because of the filter was judged before it was.
            let base = self.state.base(&of_row.table, &canonical)?.filter(|base| !base.pending.is_empty());
            if let Some(base) = base.filter(|_| !of_row.table.is_filtered() && !of_row.changes.is_empty()) {
                let visible = self.folder.rows.get(&of_row.table, &of_row.key)?;
                of_row.judge(self.state, &mut self.folder, base.row.as_ref(), visible.as_ref())?;
            }
        }
        Ok(())
    }
}
