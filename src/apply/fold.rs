//! How one unit folds into rows: the specification's rule, in SQL.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::Connection;

use super::base::BaseRow;
use super::comebacks::Comebacks;
use super::conflicts::{ConflictKind, Met};
use super::duplicates::Duplicate;
use super::error::ApplyError;
use super::net_effect::Account;
use super::pending_units::PendingUnits;
use super::shape::{Change, LocalTable};
use super::state::State;
use super::statements::{Rows, Written};
use super::unseen::Unseen;
use crate::change::{Op, RowKey, canonical_key};
use crate::format::{Row, Value};
use crate::log::Origin;

/// What a fold did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FoldCounts {
    /// Messages folded.
    pub messages: u64,
    /// Messages dropped because they were folded before.
    pub duplicates: u64,
    /// Rows inserted, redo included.
    pub rows_inserted: u64,
    /// Rows updated, redo included.
    pub rows_updated: u64,
    /// Rows deleted, undo and redo included.
    pub rows_deleted: u64,
    /// Own units that came back.
    pub units_own: u64,
    /// Foreign units.
    pub units_foreign: u64,
    /// Rows of plain tables that pending was replayed on.
    pub rows_redone: u64,
    /// Tables with UNIQUE that were undone and redone.
    pub tables_redone: u64,
    /// New entries of the conflict journal.
    pub conflicts: u64,
}

/// Writes rows, and keeps account of it.
pub(super) struct Folder<'c> {
    pub(super) rows: Rows<'c>,
    pub(super) net: Account,
    pub(super) counts: FoldCounts,
    /// Who made the unit that is folded.
    pub(super) origin: Option<Origin>,
    /// Rows that were deleted because they were in the way: table and key, since this was last emptied.
    pub(super) displaced: Vec<(i64, Vec<u8>)>,
    /// Rows of filtered tables that were put in place or folded: outside of the filter they are the fold's all the same, and no row of the
    /// application's alone. By table and key.
    pub(super) of_fold: HashMap<(i64, Vec<u8>), (Arc<LocalTable>, RowKey)>,
    /// The application's own rows outside of the filter that stand aside for what is folded.
    pub(super) aside: Vec<Aside>,
    /// Rows that made room for what is folded, and may come back.
    pub(super) comebacks: Comebacks,
    /// Rows of tables that show the fold which have no place in them, by table.
    pub(super) unseen: HashMap<i64, Unseen>,
}

/// A row that stands aside.
pub(super) struct Aside {
    pub(super) table: Arc<LocalTable>,
    pub(super) key: RowKey,
    pub(super) canonical: Vec<u8>,
    pub(super) row: Row,
}

impl<'c> Folder<'c> {
    pub(super) fn new(conn: &'c Connection) -> Result<Folder<'c>, ApplyError> {
        Ok(Folder {
            rows: Rows::new(conn)?,
            net: Account::default(),
            counts: FoldCounts::default(),
            origin: None,
            displaced: Vec::new(),
            of_fold: HashMap::new(),
            aside: Vec::new(),
            comebacks: Comebacks::default(),
            unseen: HashMap::new(),
        })
    }

    /// Folds the changes of one unit to one table. `redo` is the pending unit that is replayed: then base takes each row before it changes.
    ///
    /// The rows that are put in are taken out together first, so that a swap of UNIQUE values keeps its meaning. As long as no row meets
    /// another, changing them in place one by one comes to the same: what is in a row's way while the others are out is also in its way
    /// while they are in. So taking out begins at the first row that meets one.
    pub(super) fn fold(
        &mut self,
        state: &mut State,
        table: &Arc<LocalTable>,
        changes: &[Change<'_>],
        redo: Option<i64>,
    ) -> Result<(), ApplyError> {
        let rest = self.fold_in_place(state, table, changes, redo)?;
        self.fold_rest(state, table, &rest, redo)?;
        if let Some(unit) = redo {
            for change in changes {
                self.note_pending(state, table, change, unit)?;
            }
        }
        Ok(())
    }

    /// The part of it that needs no row to make room, in order. Returns the changes from the first one on that does.
    pub(super) fn fold_in_place<'a, 'b>(
        &mut self,
        state: &mut State,
        table: &Arc<LocalTable>,
        changes: &'a [Change<'b>],
        redo: Option<i64>,
    ) -> Result<Vec<&'a Change<'b>>, ApplyError> {
        for change in changes.iter().filter(|change| change.op == Op::Delete) {
            self.take_out(state, table, change, redo)?;
        }
        let mut put = changes.iter().filter(|change| change.op != Op::Delete);
        let mut rest = Vec::new();
        let is_all_there = redo.is_some() || !self.unseen.contains_key(&table.id);
        while is_all_there && let Some(change) = put.next() {
            if !self.in_place(state, table, change, redo)? {
                rest.push(change);
                break;
            }
        }
        rest.extend(put);
        Ok(rest)
    }

    /// What [`Folder::fold_in_place`] left.
    pub(super) fn fold_rest(
        &mut self,
        state: &mut State,
        table: &Arc<LocalTable>,
        rest: &[&Change<'_>],
        redo: Option<i64>,
    ) -> Result<(), ApplyError> {
        let mut images = Vec::with_capacity(rest.len());
        for change in rest {
            let old = self.take_out(state, table, change, redo)?;
            images.extend(change.step(old.as_ref()).map(|image| (*change, image)));
        }
        for (change, image) in &images {
            self.put(state, table, &change.key, &change.canonical, image, redo.is_some())?;
            self.came(state, table, change, image)?;
        }
        Ok(())
    }

    fn came(
        &mut self,
        state: &State,
        table: &LocalTable,
        change: &Change<'_>,
        image: &[Value],
    ) -> Result<(), ApplyError> {
        if self.comebacks.came(state, table.id, change, image)? {
            self.counts.conflicts = self.counts.conflicts.saturating_sub(1);
        }
        Ok(())
    }

    /// Makes the change where the row stands. `false` when another row is in the way; then nothing was done.
    fn in_place(
        &mut self,
        state: &mut State,
        table: &LocalTable,
        change: &Change<'_>,
        redo: Option<i64>,
    ) -> Result<bool, ApplyError> {
        let Some(image) = change.image.as_deref() else { return Ok(true) };
        if change.op == Op::Insert && redo.is_none() && self.rows.insert(table, &change.key, image)? == Written::Done {
            self.added(table, &change.canonical, image);
            self.came(state, table, change, image)?;
            return Ok(true);
        }
        let old = self.rows.get(table, &change.key)?;
        if redo.is_some() {
            note(state, table, &change.key, &change.canonical, old.as_ref())?;
        }
        let Some(old) = old else {
            if change.if_there {
                return Ok(true);
            }
            let done = self.rows.insert(table, &change.key, image)? == Written::Done;
            if done {
                self.added(table, &change.canonical, image);
                self.came(state, table, change, image)?;
            }
            return Ok(done);
        };
        self.set(table, &change.key, &change.canonical, &old, &change.step(Some(&old)).unwrap_or_default())
    }

    /// Turns a row into another under the same key, writing the columns that differ. `false` when another row is in the way.
    pub(super) fn set(
        &mut self,
        table: &LocalTable,
        key: &RowKey,
        canonical: &[u8],
        old: &Row,
        new: &Row,
    ) -> Result<bool, ApplyError> {
        let mask: Vec<bool> = old.iter().zip(new).map(|(old, new)| old != new).collect();
        if !mask.contains(&true) {
            return Ok(true);
        }
        if self.rows.update(table, key, new, &mask)? != Written::Done {
            return Ok(false);
        }
        self.net.add_old(&table.name_lower, canonical, old);
        self.net.add_new(&table.name_lower, canonical, new);
        self.counts.rows_updated += 1;
        Ok(true)
    }

    /// Deletes rows that cannot stay under a change of the schema.
    pub(super) fn remove_duplicates(
        &mut self,
        state: &State,
        table: &LocalTable,
        duplicates: &[Duplicate],
    ) -> Result<(), ApplyError> {
        for Duplicate { key, canonical, row } in duplicates {
            self.remove(table, key, canonical, row)?;
            self.note_duplicate(state, table, key, row)?;
        }
        Ok(())
    }

    /// What a row was that had to go.
    pub(super) fn note_duplicate(
        &mut self,
        state: &State,
        table: &LocalTable,
        key: &RowKey,
        row: &Row,
    ) -> Result<(), ApplyError> {
        let kind = ConflictKind::UniqueValue;
        let met = Met { kind, key, kept: None, lost: Some(row), kept_origin: self.origin, lost_origin: None };
        self.counts.conflicts += u64::from(state.record_conflict(table, &met)?);
        Ok(())
    }

    fn take_out(
        &mut self,
        state: &mut State,
        table: &LocalTable,
        change: &Change<'_>,
        redo: Option<i64>,
    ) -> Result<Option<Row>, ApplyError> {
        let old = self.rows.get(table, &change.key)?;
        if redo.is_some() {
            note(state, table, &change.key, &change.canonical, old.as_ref())?;
        }
        if let Some(old) = &old {
            self.remove(table, &change.key, &change.canonical, old)?;
        } else if redo.is_none() {
            return self.take_unseen(table, &change.key);
        }
        Ok(old)
    }

    /// Deletes a row that is there.
    pub(super) fn remove(
        &mut self,
        table: &LocalTable,
        key: &RowKey,
        canonical: &[u8],
        old: &Row,
    ) -> Result<(), ApplyError> {
        match self.rows.delete(table, key)? {
            Written::Done => {}
            // It was read just now, in the same transaction.
            Written::NoRow | Written::InTheWay => return Err(ApplyError::Damaged { what: "the key of a row" }),
        }
        self.net.add_old(&table.name_lower, canonical, old);
        self.counts.rows_deleted += 1;
        Ok(())
    }

    /// Puts a row in that is not there. Rows in its way are deleted: the later change wins.
    pub(super) fn put(
        &mut self,
        state: &mut State,
        table: &Arc<LocalTable>,
        key: &RowKey,
        canonical: &[u8],
        row: &Row,
        redo: bool,
    ) -> Result<(), ApplyError> {
        let is_of_fold = !redo && table.can_hide();
        if is_of_fold {
            for (other, lost) in self.displace_unseen(table, key, row)? {
                self.note_displaced(state, table, (&other, &lost), row)?;
            }
        }
        // Each index can name one row, and so can the key and the hidden rowid.
        for _ in 0..table.uniques.len() + 3 {
            let Some((other, lost)) = self.rows.insert_or_meet(table, key, row)? else {
                self.added(table, canonical, row);
                if redo && table.is_unique() {
                    state.claim(table, row)?;
                }
                return Ok(());
            };
            let other_canonical = canonical_key(&table.table, &other);
            if self.is_apart(table, &other, &other_canonical, &lost)? {
                self.stand_aside(table, &other, other_canonical, lost)?;
                continue;
            }
            if is_of_fold && !self.meet_in_fold(table, (key, row), (&other, &lost))? {
                self.hide_from_here(table, &other, &other_canonical, &lost)?;
                continue;
            }
            if redo {
                note(state, table, &other, &other_canonical, Some(&lost))?;
            }
            self.remove(table, &other, &other_canonical, &lost)?;
            self.note_displaced(state, table, (&other, &lost), row)?;
        }
        Err(ApplyError::Damaged { what: "a UNIQUE index" })
    }

    /// A row had to go because a later one has a UNIQUE value of it.
    fn note_displaced(
        &mut self,
        state: &State,
        table: &LocalTable,
        (key, lost): (&RowKey, &Row),
        kept: &Row,
    ) -> Result<(), ApplyError> {
        let canonical = canonical_key(&table.table, key);
        self.displaced.push((table.id, canonical.clone()));
        let met = Met {
            kind: ConflictKind::UniqueValue,
            key,
            kept: Some(kept),
            lost: Some(lost),
            kept_origin: self.origin,
            lost_origin: None,
        };
        if state.record_conflict(table, &met)? {
            self.counts.conflicts += 1;
            self.comebacks.made_room(state, (table.id, canonical), lost);
        }
        Ok(())
    }

    pub(super) fn added(&mut self, table: &LocalTable, canonical: &[u8], row: &[Value]) {
        self.net.add_new(&table.name_lower, canonical, row);
        self.counts.rows_inserted += 1;
    }

    fn note_pending(
        &mut self,
        state: &mut State,
        table: &LocalTable,
        change: &Change<'_>,
        unit: i64,
    ) -> Result<(), ApplyError> {
        if table.is_unique()
            && let Some(now) = self.rows.get(table, &change.key)?
        {
            state.claim(table, &now)?;
        }
        if let Some(mut base) = state.base(table, &change.canonical)?
            && base.pending.note(unit)
        {
            state.set_base(table, &change.canonical, &base)?;
        }
        Ok(())
    }
}

/// Redo is about to change a row: base keeps what the fold says about it.
fn note(
    state: &mut State,
    table: &LocalTable,
    key: &RowKey,
    canonical: &[u8],
    old: Option<&Row>,
) -> Result<(), ApplyError> {
    if state.base_has(table, canonical)? {
        return Ok(());
    }
    if let Some(old) = old {
        state.claim(table, old)?;
    }
    state.set_base(table, canonical, &BaseRow { pending: PendingUnits::NONE, key: key.clone(), row: old.cloned() })
}
