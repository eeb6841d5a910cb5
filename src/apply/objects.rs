//! Indexes, views and triggers that were made, changed or dropped elsewhere: they stand on tables, and speak of them by name.

use std::sync::Arc;

use super::alteration::sql_of;
use super::duplicates::{Trial, is_duplicate};
use super::error::{ApplyError, Cannot};
use super::names::Named;
use super::schema_steps::{Maker, catalogue_of};
use super::spoken::{follows_names, is_same_statement};
use super::sql::quoted;
use crate::log::SchemaStep;
use crate::schema::Table;

/// Whether SQLite does not make an index because a column of it is not there.
pub(super) fn is_of_no_column(refused: &rusqlite::Error) -> bool {
    let said = match refused {
        rusqlite::Error::SqlInputError { msg, .. } => msg,
        rusqlite::Error::SqliteFailure(_, Some(msg)) => msg,
        _ => return false,
    };
    said.starts_with("no such column: ")
}

impl Maker<'_, '_> {
    /// Makes of an index, a view or a trigger, of which `here` is the statement here, what the step makes of it.
    pub(super) fn make_object(
        &mut self,
        step: &SchemaStep,
        all: &[SchemaStep],
        here: Option<String>,
    ) -> Result<(), ApplyError> {
        let drop_it = |maker: &Self| maker.run(step, &format!("DROP {} {}", step.kind, quoted(&step.name)));
        let Some(after) = &step.after else { return if here.is_some() { drop_it(self) } else { Ok(()) } };
        let Some(after) = self.state.under_names_here(self.conn, step, after)? else { return Ok(()) };
        let is_as_before = match (&here, &step.before) {
            (Some(here), Some(before)) => {
                is_same_statement(here, before) || self.is_mirrored(step, here) || {
                    let before = self.state.under_names_here(self.conn, step, before);
                    before.is_ok_and(|before| before.is_some_and(|before| is_same_statement(here, &before)))
                }
            }
            (_, _) => false,
        };
        match (here, &step.before) {
            (Some(here), _) if is_same_statement(&here, &after) => Ok(()),
            // Somebody has dropped it, or made another one of it.
            (here, _)
                if !is_as_before
                    && (here.is_some()
                        || !self.stood.contains(&(step.kind.clone(), step.name.to_ascii_lowercase())))
                    && follows_names(step, &all.iter().collect::<Vec<_>>()) =>
            {
                Ok(())
            }
            (Some(here), _) if !is_as_before => self.differs(step, here, &after),
            (None, _) if self.belongs_to_nothing(step)? => Ok(()),
            (here, _) => {
                if here.is_some() {
                    drop_it(self)?;
                }
                self.run_index(step, &after)
            }
        }
    }

    /// Makes an object. Rows that are in the way of a UNIQUE index go.
    fn run_index(&mut self, step: &SchemaStep, after: &str) -> Result<(), ApplyError> {
        match self.run(step, after) {
            Err(ApplyError::Cannot(Cannot::SchemaRefused { source, .. })) if is_duplicate(&source) => {}
            ended => return ended,
        }
        let catalogue = catalogue_of(self.conn)?;
        let name = self.state.table_of_step(step)?.flatten().unwrap_or_else(|| step.table.clone());
        let table = catalogue.written_table(&name).ok_or(Cannot::NoTable { table: name })?;
        let table = self.state.local_table(table)?;
        let trial = Trial::of_table(self.conn, &[&table.table.sql, after], &table).map_err(Maker::refused(step))?;
        self.remove_duplicates(step, &table, &trial)?;
        self.run(step, after)
    }

    /// An index or a trigger of a table that was dropped since: it has gone with it.
    fn belongs_to_nothing(&self, step: &SchemaStep) -> Result<bool, ApplyError> {
        if step.kind == "table" || step.kind == "view" {
            return Ok(false);
        }
        match self.state.table_of_step(step)? {
            Some(now) => Ok(now.is_none()),
            None => Ok(matches!(self.named_now(&step.table)?, Named::Gone)),
        }
    }

    fn named_now(&self, name: &str) -> Result<Named, ApplyError> {
        let there = sql_of(self.conn, "table", name).map_err(|source| ApplyError::schema("table", name, source))?;
        match there {
            // The tables that the caller knows are those before the first step.
            Some(_) => Ok(Named::Unknown),
            None => self.state.table_named(&|_: &str| None::<Arc<Table>>, name),
        }
    }
}
