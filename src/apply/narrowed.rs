//! Columns that took more once than they do now.
//!
//! A node that had not seen the change can still have written what has no place there, and a row of the fold that an own change hides can hold it.
//! All nodes make the same of it, or one that refuses it would stop for what another has.

use std::borrow::Cow;

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Value as Owned;

use super::alteration::column_before;
use super::conflicts::{ConflictKind, Met};
use super::connection::value_of;
use super::error::ApplyError;
use super::names::{Named, tables_of};
use super::shape::{Change, Fit, LocalTable};
use super::undo_redo::Call;
use crate::change::reshape;
use crate::format::{Row, Value};
use crate::log::{Origin, SchemaStep, UnitChange};
use crate::schema::{Column, Identity, StrictType, Table};

/// The SQL function of two arguments, a value and the name of a type: what stands for the value, and NULL where that is the value itself.
const CONVERTED: &str = "woodchuck_converted";

/// Such a column.
#[derive(Debug)]
pub(super) struct Narrowed {
    /// Its place among the written ones.
    pub(super) index: usize,
    /// NULL is the default there.
    pub(super) never_null: bool,
    /// Other values are converted.
    pub(super) strict: Option<StrictType>,
}

/// The type that a column of a STRICT table has and did not have before. Keys are what they are.
pub(super) fn narrower(old: Option<&Column>, new: &Table, index: usize) -> Option<StrictType> {
    let is_key = match &new.identity {
        Identity::RowidAlias(column) => *column == index,
        Identity::Declared(columns) => columns.iter().any(|column| column.column == index),
        Identity::Rowid => false,
    };
    let strict = new.columns.get(index).and_then(|column| column.strict).filter(|_| !is_key);
    strict.filter(|strict| old.is_none_or(|old| old.strict != Some(*strict)))
}

/// How SQL has a value as a column of this type takes it. [`register`] comes first.
pub(super) fn converted(value: &str, strict: StrictType) -> String {
    format!("coalesce({CONVERTED}({value}, '{}'), {value})", strict.name())
}

/// Lets a connection convert.
pub(super) fn register(conn: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_DIRECTONLY;
    conn.create_scalar_function(CONVERTED, 2, flags, |call| {
        let declared: String = call.get(1)?;
        let converted =
            StrictType::of_declared(&declared).and_then(|strict| strict.converted(&value_of(call.get_raw(0))));
        Ok(match converted {
            None | Some(Value::Null) => Owned::Null,
            Some(Value::Integer(integer)) => Owned::Integer(integer),
            Some(Value::Real(real)) => Owned::Real(real),
            Some(Value::Text(text)) => Owned::Text(String::from_utf8_lossy(&text).into_owned()),
            Some(Value::Blob(blob)) => Owned::Blob(blob),
        })
    })
}

impl LocalTable {
    /// A row as the table takes it.
    pub(super) fn narrow<'a>(&self, mut row: Cow<'a, [Value]>) -> Cow<'a, [Value]> {
        for column in &self.narrowed {
            let (Some(old), Some(default)) = (row.get(column.index), self.defaults.get(column.index)) else { continue };
            let filled = if column.never_null && old.is_null() { default } else { old };
            let new = match column.strict.and_then(|strict| strict.converted(filled)) {
                None if filled == old => continue,
                None => filled.clone(),
                Some(converted) => converted,
            };
            if let Some(value) = row.to_mut().get_mut(column.index) {
                *value = new;
            }
        }
        row
    }

    /// The row that a change wrote, where columns take less by now than they did.
    pub(super) fn written(&self, fit: &Fit, change: &UnitChange) -> Option<Row> {
        if self.narrowed.is_empty() { None } else { change.image.as_ref().map(|image| self.fitted(fit, image)) }
    }
}

impl Call<'_, '_> {
    /// A value that another node wrote is not what it was.
    pub(super) fn note_converted(
        &mut self,
        table: &LocalTable,
        change: &Change<'_>,
        written: &Row,
        origin: Origin,
    ) -> Result<(), ApplyError> {
        let Some(image) = change.image.as_deref() else { return Ok(()) };
        let is_other = |index: usize| {
            // What an update does not write is the business of who wrote it.
            written.get(index) != image.get(index) && change.mask.get(index).copied().unwrap_or(true)
        };
        if !table.narrowed.iter().any(|column| is_other(column.index)) {
            return Ok(());
        }
        let (kind, kept) = (ConflictKind::Type, image.to_vec());
        let (kept, lost, lost_origin) = (Some(&kept), Some(written), Some(origin));
        let met = Met { kind, key: &change.key, kept, lost, kept_origin: None, lost_origin };
        self.folder.counts.conflicts += u64::from(self.state.record_conflict(table, &met)?);
        Ok(())
    }

    /// A step that is about to be made gives columns other types of values: the table shows the fold, so that all nodes convert the same rows. A
    /// pending change comes behind the step in the order of all, and is judged by the types that it meets there.
    pub(super) fn prepare_types(&mut self, step: &SchemaStep) -> Result<(), ApplyError> {
        let (Some(old), Some(new)) = tables_of(step)? else { return Ok(()) };
        let sources = reshape(&old, &new, step.renamed_columns.as_deref());
        let takes = |column: &Column| (column.affinity, column.strict, column.not_null);
        let is_other = |(index, column): (usize, &Column)| {
            column_before(&old, sources.as_deref(), index).is_some_and(|source| takes(source) != takes(column))
        };
        if !new.columns.iter().enumerate().any(is_other) {
            return Ok(());
        }
        let Named::Table(table) = self.named(step.name_before.as_ref().unwrap_or(&step.name))? else { return Ok(()) };
        let table = self.state.local_table(&table)?;
        self.undo_locked(&table)
    }
}
