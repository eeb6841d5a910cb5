//! Rows of the fold that have no place in a table because of what is UNIQUE here alone.
//!
//! While the table shows the fold they are here, in an empty copy of it in which is UNIQUE what is for the fold: so SQLite says which of
//! them a change meets. Then they are in base, until the fold reaches the change that made the difference.

use std::sync::Arc;

use rusqlite::Connection;

use super::apart::{Apart, RoundUnits};
use super::base::BaseRow;
use super::duplicates::{Trial, scratch};
use super::error::ApplyError;
use super::fold::Folder;
use super::names::Named;
use super::pending_units::PendingUnits;
use super::routing::made_unique;
use super::shape::LocalTable;
use super::statements::{Rows, Written};
use super::undo_redo::Call;
use super::uniques::definition_of_fold;
use crate::change::{RowKey, canonical_key};
use crate::format::Row;
use crate::log::SchemaStep;

/// The rows of one table.
pub(super) struct Unseen {
    table: Arc<LocalTable>,
    db: Connection,
}

fn failed(source: rusqlite::Error) -> ApplyError {
    ApplyError::Database { doing: "keeping rows that have no place", source }
}

impl Unseen {
    fn new(conn: &Connection, table: &Arc<LocalTable>) -> Result<Unseen, ApplyError> {
        let refused = |source| ApplyError::schema("table", &table.table.name, source);
        let db = scratch(conn).map_err(refused)?;
        for sql in definition_of_fold(conn, table).map_err(refused)? {
            db.execute(&sql, []).map_err(refused)?;
        }
        db.execute_batch("BEGIN").map_err(failed)?;
        Ok(Unseen { table: Arc::clone(table), db })
    }

    fn rows(&self) -> Result<Rows<'_>, ApplyError> {
        Rows::new(&self.db)
    }

    fn get(&self, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        self.rows()?.get(&self.table, key)
    }

    fn take(&self, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        let rows = self.rows()?;
        let found = rows.get(&self.table, key)?;
        if found.is_some() {
            rows.delete(&self.table, key)?;
        }
        Ok(found)
    }

    fn add(&self, key: &RowKey, row: &Row) -> Result<(), ApplyError> {
        match self.rows()?.insert(&self.table, key, row)? {
            Written::Done => Ok(()),
            // Both were in the fold, so they do not meet.
            Written::NoRow | Written::InTheWay => Err(ApplyError::Damaged { what: "a UNIQUE index" }),
        }
    }

    /// Takes out the rows that are in the way of another one.
    fn displace(&self, key: &RowKey, row: &Row) -> Result<Vec<(RowKey, Row)>, ApplyError> {
        let rows = self.rows()?;
        let mut displaced = Vec::new();
        while let Some((other, lost)) = rows.insert_or_meet(&self.table, key, row)? {
            if rows.delete(&self.table, &other)? != Written::Done {
                return Err(ApplyError::Damaged { what: "a UNIQUE index" });
            }
            displaced.push((other, lost));
        }
        rows.delete(&self.table, key)?;
        Ok(displaced)
    }

    /// Whether two rows are in each other's way.
    fn meet(&self, (one_key, one): (&RowKey, &Row), (other_key, other): (&RowKey, &Row)) -> Result<bool, ApplyError> {
        self.db.execute_batch("SAVEPOINT pair").map_err(failed)?;
        let rows = self.rows()?;
        let met = rows.insert(&self.table, one_key, one).and_then(|written| match written {
            Written::Done => Ok(rows.insert(&self.table, other_key, other)? == Written::InTheWay),
            Written::NoRow | Written::InTheWay => Ok(true),
        });
        drop(rows);
        self.db.execute_batch("ROLLBACK TO pair; RELEASE pair").map_err(failed)?;
        met
    }

    fn each(&self, each: impl FnMut(RowKey, Row) -> Result<(), ApplyError>) -> Result<(), ApplyError> {
        self.rows()?.each_row(&self.table, each)
    }
}

impl Folder<'_> {
    /// The row of a table that shows the fold.
    pub(super) fn row_of_fold(&self, table: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        match (self.rows.get(table, key)?, self.unseen.get(&table.id)) {
            (None, Some(unseen)) => unseen.get(key),
            (seen, _) => Ok(seen),
        }
    }

    /// Takes a row of the fold that has no place here.
    pub(super) fn take_unseen(&mut self, table: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        self.unseen.get(&table.id).map_or(Ok(None), |unseen| unseen.take(key))
    }

    /// A snapshot is about to say what the fold is: rows of shards where it is ahead are not needed any more.
    pub(super) fn drop_unseen(
        &mut self,
        table: &LocalTable,
        is_ahead: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), ApplyError> {
        let Some(unseen) = self.unseen.get(&table.id) else { return Ok(()) };
        let mut keys = Vec::new();
        unseen.each(|key, _| {
            keys.push(key);
            Ok(())
        })?;
        let mut ahead = keys.iter().filter(|key| is_ahead(&canonical_key(&table.table, key)));
        ahead.try_for_each(|key| unseen.take(key).map(drop))
    }

    fn unseen(&mut self, table: &Arc<LocalTable>) -> Result<&Unseen, ApplyError> {
        if !self.unseen.contains_key(&table.id) {
            self.unseen.insert(table.id, Unseen::new(self.rows.conn(), table)?);
        }
        self.unseen.get(&table.id).ok_or(ApplyError::Damaged { what: "the list of tables" })
    }

    /// A row comes into the fold: those in its way that have no place here go.
    pub(super) fn displace_unseen(
        &mut self,
        table: &LocalTable,
        key: &RowKey,
        row: &Row,
    ) -> Result<Vec<(RowKey, Row)>, ApplyError> {
        self.unseen.get(&table.id).map_or(Ok(Vec::new()), |unseen| unseen.displace(key, row))
    }

    /// Whether two rows that have no place here together are in each other's way in the fold, too.
    pub(super) fn meet_in_fold(
        &mut self,
        table: &Arc<LocalTable>,
        one: (&RowKey, &Row),
        other: (&RowKey, &Row),
    ) -> Result<bool, ApplyError> {
        self.unseen(table)?.meet(one, other)
    }

    /// A row of the fold makes room for another one.
    pub(super) fn hide_from_here(
        &mut self,
        table: &Arc<LocalTable>,
        key: &RowKey,
        canonical: &[u8],
        row: &Row,
    ) -> Result<(), ApplyError> {
        self.remove(table, key, canonical, row)?;
        self.unseen(table)?.add(key, row)
    }
}

impl Call<'_, '_> {
    /// A table stops to show the fold: what has no place in it is in base.
    pub(super) fn end_showing(&mut self, table: i64) -> Result<(), ApplyError> {
        self.drop_fold_only(table)?;
        let Some(unseen) = self.folder.unseen.remove(&table) else { return Ok(()) };
        let Call { state, .. } = self;
        unseen.each(|key, row| {
            let canonical = canonical_key(&unseen.table.table, &key);
            state.claim(&unseen.table, &row)?;
            state.set_base(&unseen.table, &canonical, &BaseRow { pending: PendingUnits::NONE, key, row: Some(row) })
        })
    }

    /// The tables that steps are about which are made here already, each with the step that makes something UNIQUE, if one does.
    pub(super) fn tables_of_steps(
        &mut self,
        steps: &[SchemaStep],
    ) -> Result<Vec<(Arc<LocalTable>, SchemaStep)>, ApplyError> {
        let mut found: Vec<(Arc<LocalTable>, SchemaStep)> = Vec::new();
        if self.state.steps_ahead()?.is_empty() {
            // Nothing is made here that the fold has not reached.
            return Ok(found);
        }
        for step in steps {
            let name = match self.state.table_of_step(step)? {
                Some(None) => continue,
                Some(Some(now)) => now,
                None => step.table.clone(),
            };
            let Named::Table(table) = self.named(&name)? else { continue };
            if (self.taking.route)(&table, None).is_none() {
                continue;
            }
            let local = self.state.local_table(&table)?;
            match found.iter_mut().find(|(other, _)| other.id == local.id) {
                None => found.push((local, step.clone())),
                Some((_, other)) if made_unique(other)?.is_none() => *other = step.clone(),
                Some(_) => {}
            }
        }
        Ok(found)
    }

    /// The fold has come to a change of the schema that is made here already: rows in each other's way go, as on all nodes, and the table
    /// shows the fold.
    pub(super) fn settle_uniques(
        &mut self,
        (before, step): (&Arc<LocalTable>, &SchemaStep),
        units: &dyn RoundUnits,
        apart: &mut Apart,
    ) -> Result<(), ApplyError> {
        let Some(table) = self.table_now(&before.table.name) else { return Ok(()) };
        let after = self.state.local_table(&table)?;
        if before.parting == after.parting {
            return Ok(());
        }
        if self.locked {
            // What is held comes before the change.
            self.let_go()?;
            self.redo_rows()?;
        }
        let known = before.parting.as_ref().map_or(&[][..], |parting| &parting.fold_only);
        let now = after.parting.as_ref().map_or(&[][..], |parting| &parting.fold_only);
        let has_new = now.iter().any(|unique| !known.contains(unique));
        if !has_new && !self.undone.contains_key(&before.id) && self.state.base_rows(before) == 0 {
            return Ok(());
        }
        self.undo_locked(before)?;
        if let Some(name) = made_unique(step)? {
            self.set_apart(apart, (before, name), units)?;
        }
        if has_new || self.folder.unseen.contains_key(&before.id) {
            let refused = |source| ApplyError::schema(&step.kind, &step.name, source);
            let definition = definition_of_fold(self.folder.rows.conn(), &after).map_err(refused)?;
            self.remove_meeting(before, &definition, step)?;
        }
        self.drop_fold_only(before.id)?;
        self.make_fold_only(&after)?;
        if let Some(unseen) = self.folder.unseen.remove(&before.id) {
            let Call { state, folder, .. } = self;
            unseen.each(|key, row| {
                let canonical = canonical_key(&after.table, &key);
                folder.put(state, &after, &key, &canonical, &row, false)
            })?;
        }
        self.undone.insert(after.id, after);
        Ok(())
    }

    /// Rows of a table that shows the fold go which are in each other's way under a definition.
    pub(super) fn remove_meeting(
        &mut self,
        table: &Arc<LocalTable>,
        definition: &[String],
        step: &SchemaStep,
    ) -> Result<(), ApplyError> {
        let refused = |source| ApplyError::schema(&step.kind, &step.name, source);
        let trial = Trial::of_table(self.folder.rows.conn(), definition, table).map_err(refused)?;
        self.folder.rows.each_row(table, |key, row| trial.add(table, &key, &row).map_err(refused))?;
        if let Some(unseen) = self.folder.unseen.get(&table.id) {
            unseen.each(|key, row| trial.add(table, &key, &row).map_err(refused))?;
        }
        for duplicate in trial.find(&step.kind, &step.name)? {
            match self.folder.take_unseen(table, &duplicate.key)? {
                Some(_) => self.folder.note_duplicate(self.state, table, &duplicate.key, &duplicate.row)?,
                None => self.folder.remove_duplicates(self.state, table, &[duplicate])?,
            }
        }
        Ok(())
    }
}
