//! What table a change is of, and what becomes of a change that has no place any more.
//!
//! Whether a table or a column is gone where a change of it stands in the log is the same for all nodes, so they all leave the change out.
//! It is in the conflict journal then: nobody overrides anything in silence.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::conflicts::{ConflictKind, Met};
use super::error::{ApplyError, Cannot};
use super::names::Named;
use super::shape::{Fit, LocalTable};
use super::undo_redo::Call;
use crate::change::{Op, RowKey};
use crate::format::{Row, Value};
use crate::log::{Origin, SchemaStep, ShardId, TableShape, Unit, UnitChange, UnitKey};

/// A local table, and how changes of some shape fit it.
pub(super) type Fitting = (Arc<LocalTable>, Arc<Fit>);

/// What a shape means here.
#[derive(Debug)]
pub(super) enum Found {
    /// This table, which the changes fit so.
    Here(Arc<LocalTable>, Arc<Fit>),
    /// A table that was dropped.
    Gone,
    /// None that this node replicates.
    NotTaken,
}

impl Found {
    pub(super) fn here(self) -> Option<Fitting> {
        match self {
            Found::Here(table, fit) => Some((table, fit)),
            Found::Gone | Found::NotTaken => None,
        }
    }
}

/// A fit that was worked out, with what it was worked out of.
pub(super) struct Known {
    shape: Arc<TableShape>,
    strict: bool,
    table: Arc<LocalTable>,
    fit: Arc<Fit>,
}

/// A unit's changes of one of its tables.
fn changes_of<'u>(unit: &'u Unit, shape: &'u Arc<TableShape>) -> impl Iterator<Item = &'u UnitChange> {
    let is_of = |table: &Arc<TableShape>| Arc::ptr_eq(table, shape);
    unit.changes.iter().filter(move |change| unit.tables.get(usize::from(change.table)).is_some_and(is_of))
}

impl Call<'_, '_> {
    /// Finds the local table of a shape and how they fit. `strict` as in [`LocalTable::fit`].
    pub(super) fn fit(&mut self, shape: &Arc<TableShape>, strict: bool) -> Result<Found, ApplyError> {
        if let Some(known) = self
            .known
            .get(&shape.name)
            .into_iter()
            .flatten()
            .find(|known| known.strict == strict && (Arc::ptr_eq(&known.shape, shape) || known.shape == *shape))
        {
            return Ok(Found::Here(Arc::clone(&known.table), Arc::clone(&known.fit)));
        }
        let table = match self.meant(shape)? {
            Named::Table(table) if !self.taking.takes(&table.name) => return Ok(Found::NotTaken),
            Named::Unknown | Named::Gone if !self.taking.takes(&shape.name) => return Ok(Found::NotTaken),
            Named::Table(table) => table,
            Named::Gone => return Ok(Found::Gone),
            Named::Unknown => return Err(Cannot::NoTable { table: shape.name.clone() }.into()),
        };
        let table = self.state.local_table(&table)?;
        let fit = Arc::new(table.fit(shape, strict)?);
        let (known_table, known_fit) = (Arc::clone(&table), Arc::clone(&fit));
        let known = Known { shape: Arc::clone(shape), strict, table: known_table, fit: known_fit };
        self.known.entry(shape.name.clone()).or_default().push(known);
        Ok(Found::Here(table, fit))
    }

    /// What table a shape means.
    pub(super) fn meant(&self, shape: &TableShape) -> Result<Named, ApplyError> {
        match &self.made {
            Some((catalogue, _)) => self.state.table_meant(&|name: &str| catalogue.written_table(name).cloned(), shape),
            None => self.state.table_meant(self.tables, shape),
        }
    }

    /// What a name of a table means now.
    pub(super) fn named(&self, name: &str) -> Result<Named, ApplyError> {
        match &self.made {
            Some((catalogue, _)) => self.state.table_named(&|name: &str| catalogue.written_table(name).cloned(), name),
            None => self.state.table_named(self.tables, name),
        }
    }

    /// As [`Call::fit`], of a unit, which may mean the table that had this name before.
    pub(super) fn fit_of(
        &mut self,
        unit: &Unit,
        origin: Origin,
        shape: &Arc<TableShape>,
        strict: bool,
    ) -> Result<Found, ApplyError> {
        // How it began tells which table it is. Where nothing is known of that, what its origin had seen has to.
        if self.state.table_became(shape)?.is_some() || !self.state.means_another(&shape.name, unit, origin)? {
            return self.fit(shape, strict);
        }
        match self.state.name_of_former(&shape.name)? {
            Some(name) => self.fit(&Arc::new(TableShape { name, ..(**shape).clone() }), strict),
            None if !self.taking.takes(&shape.name) => Ok(Found::NotTaken),
            None => Ok(Found::Gone),
        }
    }

    /// What is pending on a table that a step is about to drop, which another node has made. (What it leaves behind is in the fold: its maker
    /// had seen it, or will say what it had not.)
    pub(super) fn note_pending_gone(&mut self, step: &SchemaStep, shard: ShardId) -> Result<(), ApplyError> {
        if step.kind != "table" || step.after.is_some() {
            return Ok(());
        }
        let Named::Table(table) = self.named(&step.name)? else { return Ok(()) };
        let id = self.state.local_table(&table)?.id;
        self.each_pending(step, shard, id, |call, unit, shape, _| call.note_gone(unit, shape, call.state.origin()))
    }

    /// What is pending on tables that a node which catches up is about to lose, by their names in lower case. (What a snapshot tells of names is known already: they are gone.)
    pub(super) fn note_pending_of_gone(&mut self, tables: &BTreeSet<String>) -> Result<(), ApplyError> {
        let known = tables.iter().filter_map(|lower| self.state.tables.get(lower));
        let known: Vec<i64> = known.map(|table| table.id).collect();
        let mut units = BTreeSet::new();
        for table in known {
            units.extend(self.state.pending_touching(table)?);
        }
        let own = self.state.origin();
        for id in units {
            let unit = self.state.pending_unit(id)?;
            for shape in &unit.tables {
                match self.fit_of(&unit, own, shape, false) {
                    Ok(Found::Gone) => self.note_gone(&unit, shape, own)?,
                    Ok(_) | Err(ApplyError::Cannot(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// What is pending on columns that are gone with a step that another node has made.
    pub(super) fn note_pending_columns_gone(&mut self, step: &SchemaStep, shard: ShardId) -> Result<(), ApplyError> {
        if step.kind != "table" || step.before.is_none() {
            return Ok(());
        }
        let Some(table) = self.table_now(&step.name) else { return Ok(()) };
        let id = self.state.local_table(&table)?.id;
        self.each_pending(step, shard, id, |call, unit, shape, fit| {
            let own = call.state.origin();
            if fit.gone().is_empty() {
                return Ok(());
            }
            for change in changes_of(unit, shape) {
                call.note_columns_gone(shape, fit, change, own)?;
            }
            Ok(())
        })
    }

    /// Hands out what is pending on a table, unless a change of it is, too: then it may be ours what is gone.
    fn each_pending(
        &mut self,
        step: &SchemaStep,
        shard: ShardId,
        table: i64,
        each: impl Fn(&mut Self, &Unit, &Arc<TableShape>, &Fit) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let pending = self.state.pending_touching(table)?;
        if pending.is_empty() || self.is_own_step_pending(shard, &step.name)? {
            return Ok(());
        }
        let own = self.state.origin();
        for id in pending {
            let unit = self.state.pending_unit(id)?;
            for shape in &unit.tables {
                match self.fit_of(&unit, own, shape, false) {
                    Ok(Found::Here(found, fit)) if found.id == table => each(self, &unit, shape, &fit)?,
                    Ok(_) | Err(ApplyError::Cannot(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Whether an own change of the schema that the fold has not reached is about a table of this name.
    fn is_own_step_pending(&self, shard: ShardId, table: &str) -> Result<bool, ApplyError> {
        let is_of = |name: &String| name.eq_ignore_ascii_case(table);
        let steps = self.state.steps_pending(shard)?;
        let is_about = |step: &SchemaStep| is_of(&step.name) || step.name_before.as_ref().is_some_and(is_of);
        Ok(steps.iter().any(|pending| pending.first.is_none() && is_about(&pending.step)))
    }

    /// A unit's changes of a table that is gone.
    pub(super) fn note_gone(&mut self, unit: &Unit, shape: &Arc<TableShape>, origin: Origin) -> Result<(), ApplyError> {
        for change in changes_of(unit, shape) {
            if let Some(image) = &change.image {
                self.note_lost(shape, change, image, None, origin)?;
            }
        }
        Ok(())
    }

    /// What a change wrote to columns that are gone.
    pub(super) fn note_columns_gone(
        &mut self,
        shape: &TableShape,
        fit: &Fit,
        change: &UnitChange,
        origin: Origin,
    ) -> Result<(), ApplyError> {
        let (Some(image), false) = (&change.image, fit.gone().is_empty()) else { return Ok(()) };
        let is_written = |column: usize| change.op != Op::Update || change.mask.get(column).copied().unwrap_or(true);
        let mut kept = image.clone();
        for column in fit.gone().iter().copied().filter(|column| is_written(*column)) {
            if let Some(value) = kept.get_mut(column) {
                *value = Value::Null;
            }
        }
        if kept == *image { Ok(()) } else { self.note_lost(shape, change, image, Some(&kept), origin) }
    }

    fn note_lost(
        &mut self,
        shape: &TableShape,
        change: &UnitChange,
        lost: &Row,
        kept: Option<&Row>,
        origin: Origin,
    ) -> Result<(), ApplyError> {
        let key = match &change.key {
            UnitKey::Rowid(rowid) => RowKey::Rowid(*rowid),
            UnitKey::Columns(values) => RowKey::Columns(values.clone()),
        };
        let (kind, lost, lost_origin) = (ConflictKind::Gone, Some(lost), Some(origin));
        let met = Met { kind, key: &key, kept, lost, kept_origin: None, lost_origin };
        self.folder.counts.conflicts += u64::from(self.state.record_conflict_in(&shape.name, &shape.columns, &met)?);
        Ok(())
    }
}
