//! Changes of the schema that were made elsewhere: the smallest statements that make them here.
//!
//! A step says what the object's CREATE statement was and what it is. Statements that lead from the one to the other are tried on an empty
//! database first; those that end at exactly the statement wanted are made here, and where none do the table is rebuilt as SQLite's
//! documentation has it. Whatever is as wanted already is left alone, so a step may come more than once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::alteration::{
    ColumnStep, alter, alteration, column_before, columns_of, is_part_of, renames_of_table, retitled, sql_of,
    statements,
};
use super::definitions::merged;
use super::duplicates::{Trial, is_duplicate};
use super::error::{ApplyError, Cannot};
use super::fold::Folder;
use super::names::Birth;
use super::narrowed::{converted, narrower, register};
use super::net_effect::SchemaEffect;
use super::objects::is_of_no_column;
use super::remake::{is_virtual, name_aside};
use super::repeated::PendingStep;
use super::routing::made_unique;
use super::shape::LocalTable;
use super::spoken::{follows_names, is_same_statement};
use super::sql::quoted;
use super::state::State;
use crate::change::reshape;
use crate::format::PageNo;
use crate::log::{SchemaStep, StreamSeq};
use crate::schema::{Bound, Catalogue, Identity, SchemaRow, Table};

/// Tells steps apart: the object and what it became.
pub(super) fn step_digest(step: &SchemaStep) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for text in [&step.kind, &step.name.to_ascii_lowercase()] {
        hasher.update(text.as_bytes()).update(&[0]);
    }
    for text in [&step.before, &step.after] {
        hasher.update(text.as_deref().unwrap_or_default().as_bytes()).update(&[0]);
    }
    *hasher.finalize().as_bytes()
}

/// Whether a statement that came from elsewhere is of one kind.
pub(super) fn begins(sql: &str, word: &str) -> bool {
    sql.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
}

/// The tables of an open connection, as they are within its transaction.
pub(super) fn catalogue_of(conn: &Connection) -> Result<Catalogue, ApplyError> {
    catalogue_after(conn, &Catalogue::default())
}

/// The same, of which most may be as it was.
pub(super) fn catalogue_after(conn: &Connection, before: &Catalogue) -> Result<Catalogue, ApplyError> {
    let written_by = u32::try_from(rusqlite::version_number()).unwrap_or_default();
    let built = before.build_next(schema_rows(conn)?, written_by);
    built.map_err(|_| ApplyError::Damaged { what: "the schema of the database" })
}

/// The schema of an open connection.
pub(super) fn schema_rows(conn: &Connection) -> Result<Vec<SchemaRow>, ApplyError> {
    let failed = |source| ApplyError::Database { doing: "reading the schema", source };
    let mut found = conn
        .prepare("SELECT type, name, tbl_name, rootpage, sql FROM main.sqlite_schema ORDER BY rowid")
        .map_err(failed)?;
    let row = |row: &rusqlite::Row<'_>| {
        let root: Option<i64> = row.get(3)?;
        Ok(SchemaRow {
            kind: row.get(0)?,
            name: row.get(1)?,
            table: row.get(2)?,
            root: root.and_then(|root| PageNo::new(u32::try_from(root).ok()?)),
            sql: row.get(4)?,
        })
    };
    found.query_map([], row).and_then(Iterator::collect).map_err(failed)
}

/// All of the schema as an effect, to be compared with itself later.
pub(super) fn schema_effect(conn: &Connection) -> Result<SchemaEffect, ApplyError> {
    let failed = |source| ApplyError::Database { doing: "reading the schema", source };
    let mut found =
        conn.prepare_cached("SELECT type, name, sql FROM main.sqlite_schema WHERE sql IS NOT NULL").map_err(failed)?;
    let mut rows = found.query([]).map_err(failed)?;
    let mut effect = SchemaEffect::default();
    while let Some(row) = rows.next().map_err(failed)? {
        let texts = (row.get(0), row.get(1), row.get(2));
        let (kind, name, sql): (String, String, String) =
            (texts.0.map_err(failed)?, texts.1.map_err(failed)?, texts.2.map_err(failed)?);
        effect.toggle(&kind, &name, &sql);
    }
    Ok(effect)
}

/// The name that a table gives up with a step, in lower case, where that is another than the one it gets.
fn name_given_up(step: &SchemaStep) -> Option<String> {
    let before = step.name_before.as_ref().filter(|before| !before.eq_ignore_ascii_case(&step.name))?;
    (step.kind == "table" && step.after.is_some()).then(|| before.to_ascii_lowercase())
}

/// Tables that give up a name which another one takes in the same steps: no order of renaming suits two that swap theirs, so they stand aside
/// under these names meanwhile. By the name before, in lower case.
pub(super) fn standing_aside(steps: &[SchemaStep]) -> BTreeMap<String, String> {
    let is_taken =
        |name: &String| steps.iter().any(|step| name_given_up(step).is_some() && step.name.eq_ignore_ascii_case(name));
    let names = steps.iter().filter_map(name_given_up).filter(is_taken);
    names.enumerate().map(|(no, name)| (name, format!("woodchuck_aside_{no}"))).collect()
}

/// A step as it is when the table stands aside.
pub(super) fn from_aside(step: &SchemaStep, aside: &BTreeMap<String, String>) -> Option<SchemaStep> {
    let name = aside.get(&name_given_up(step)?)?;
    Some(SchemaStep { name_before: Some(name.clone()), ..step.clone() })
}

/// A table, or a column of one, that the fold loses and an own change that is pending makes again.
#[derive(Debug)]
pub(super) struct BegunAnew {
    pub(super) table: String,
    pub(super) column: Option<String>,
}

/// Makes steps on a connection that holds the write lock.
pub(super) struct Maker<'a, 'c> {
    pub(super) conn: &'a Connection,
    pub(super) state: &'a mut State,
    pub(super) folder: &'a mut Folder<'c>,
    /// Own steps that come behind these in the order of all, and are in the database already: they have the last word.
    pub(super) pending: &'a [PendingStep],
    pub(super) birth: Birth,
    /// The place in the first shard up to which their maker had seen it.
    pub(super) seen: StreamSeq,
    /// What the steps are about as it was at the origin, without rows. Statements that are made here are made there, too: a rename changes
    /// what speaks of the name, and that is then neither what its own step begins with nor what it ends with.
    pub(super) mirror: Connection,
    /// What stands aside, by its name before.
    pub(super) aside: BTreeMap<String, String>,
    /// The indexes, views and triggers that were here before the steps, by kind and name in lower case. A table that is rebuilt loses its own.
    pub(super) stood: BTreeSet<(String, String)>,
    /// What the fold has lost and is here all the same.
    pub(super) begun_anew: Vec<BegunAnew>,
    /// Rows that a table's new definition has no place for may be left behind: others come for them.
    pub(super) may_leave_rows: bool,
}

impl Maker<'_, '_> {
    /// Makes all of them, and tells what that did to the schema; nothing where all was as wanted.
    pub(super) fn make(&mut self, steps: &[SchemaStep]) -> Result<SchemaEffect, ApplyError> {
        let mut effect = schema_effect(self.conn)?;
        let others = schema_rows(self.conn)?.into_iter().filter(|row| row.kind != "table");
        self.stood = others.map(|row| (row.kind, row.name.to_ascii_lowercase())).collect();
        // As here: with them what refers to a table that moves aside would follow it.
        let off = self.mirror.execute_batch("PRAGMA foreign_keys = OFF");
        off.map_err(|source| ApplyError::Database { doing: "making a change of the schema", source })?;
        for is_table in [true, false] {
            for before in steps.iter().filter(|step| (step.kind == "table") == is_table) {
                // What SQLite does not take without the application is compared as it is.
                before
                    .before
                    .iter()
                    .filter(|sql| begins(sql, "create"))
                    .for_each(|sql| drop(self.mirror.execute(sql, [])));
            }
        }
        self.aside = standing_aside(steps);
        for step in steps {
            let Some((before, aside)) = name_given_up(step).and_then(|name| self.aside.get_key_value(&name)) else {
                continue;
            };
            if sql_of(self.conn, "table", before).map_err(Maker::refused(step))?.is_some() {
                self.run(step, &format!("ALTER TABLE {} RENAME TO {}", quoted(before), quoted(aside)))?;
            }
            self.state.note_aside(before, aside)?;
        }
        for step in steps {
            self.make_one(step, steps)?;
            self.state.note_made(step, &self.birth)?;
        }
        effect.merge(&schema_effect(self.conn)?);
        Ok(effect)
    }

    pub(super) fn refused(step: &SchemaStep) -> impl Fn(rusqlite::Error) -> ApplyError {
        let (kind, name) = (step.kind.clone(), step.name.clone());
        move |source| ApplyError::schema(&kind, &name, source)
    }

    fn make_one(&mut self, step: &SchemaStep, all: &[SchemaStep]) -> Result<(), ApplyError> {
        let refused = Maker::refused(step);
        if self.is_overridden(step) {
            return self.note_overridden(step);
        }
        let here = sql_of(self.conn, &step.kind, &step.name).map_err(&refused)?;
        if step.kind != "table" {
            return self.make_object(step, all, here);
        }
        match (&step.before, &step.after) {
            (_, None) => {
                self.state.note_step(step, &[], &self.birth)?;
                if here.is_some() {
                    self.run(step, &format!("DROP {} {}", step.kind, quoted(&step.name)))?;
                }
                Ok(())
            }
            (None, Some(after)) => match here {
                Some(here) if here == *after => {
                    self.state.note_table_made_twice(&step.name)?;
                    self.state.note_step(step, &[], &self.birth)
                }
                Some(here) => self.create_over(step, all, here, after),
                None => {
                    self.state.note_step(step, &[], &self.birth)?;
                    self.run(step, after)
                }
            },
            (Some(before), Some(after)) => self.alter(step, all, before, after),
        }
    }

    pub(super) fn remove_duplicates(
        &mut self,
        step: &SchemaStep,
        table: &LocalTable,
        trial: &Trial,
    ) -> Result<(), ApplyError> {
        let refused = Maker::refused(step);
        self.folder.rows.forget_tables();
        self.folder.rows.each_row(table, |key, row| trial.add(table, &key, &row).map_err(&refused))?;
        self.folder.origin = Some(self.birth.origin);
        let duplicates = trial.find(&step.kind, &step.name)?;
        self.folder.remove_duplicates(self.state, table, &duplicates)
    }

    /// Whether a pending step makes or drops the object that this one is about. A change of a table is not overridden by another one.
    fn is_overridden(&self, step: &SchemaStep) -> bool {
        let is_same = |other: &SchemaStep| {
            let names = [Some(&other.name), other.name_before.as_ref()];
            other.kind == step.kind && names.into_iter().flatten().any(|name| name.eq_ignore_ascii_case(&step.name))
        };
        let mut about = self.pending.iter().map(|pending| &pending.step).filter(|other| is_same(other));
        match (&step.before, &step.after) {
            _ if step.kind != "table" => self.pending.iter().filter(|other| is_same(&other.step)).any(|other| {
                let of_tx = self.pending.iter().filter(|pending| pending.tx == other.tx);
                !follows_names(&other.step, &of_tx.map(|pending| &pending.step).collect::<Vec<_>>())
            }),
            // What is equal or not is for the look at what is here.
            (None, Some(_)) => about.any(|other| other.after.is_none() || other.name_before.is_some()),
            (_, None) => about.any(|other| other.before.is_none()),
            (Some(_), Some(_)) => false,
        }
    }

    /// What others made, or dropped, has the name of something that a pending step makes or drops.
    fn note_overridden(&mut self, step: &SchemaStep) -> Result<(), ApplyError> {
        match (step.kind.as_str(), &step.before, &step.after) {
            ("table", None, Some(_)) => self.state.note_table_gone(&step.name, &self.birth),
            ("table", _, None) => {
                self.state.end_tables_of_others(&step.name)?;
                self.begun_anew.push(BegunAnew { table: step.name.clone(), column: None });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes note of what a step does to columns; those that pending steps are about have the last word.
    fn note_columns(&mut self, step: &SchemaStep, columns: &[ColumnStep]) -> Result<(), ApplyError> {
        let pending = self.columns_pending(&step.name)?;
        let is_same = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
        let ends = |name: &str| {
            pending.iter().any(|column| match column {
                ColumnStep::Add { .. } => false,
                ColumnStep::Drop { name: other } => is_same(name, other),
                ColumnStep::Rename { from, .. } => is_same(name, from),
            })
        };
        let begins = |name: &str| {
            pending.iter().any(|column| match column {
                ColumnStep::Add { name: other, .. } => is_same(name, other),
                ColumnStep::Drop { .. } => false,
                ColumnStep::Rename { to, .. } => is_same(name, to),
            })
        };
        let mut noted = Vec::new();
        for column in columns {
            if let Some(first) = self.state.column_made_before(step, column, self.birth.origin, self.seen)? {
                if let ColumnStep::Add { name, .. } = column {
                    let table = step.name.to_ascii_lowercase();
                    self.state.note_column_again(&table, name, &first, &self.birth)?;
                }
                continue;
            }
            match column {
                ColumnStep::Add { name, .. } if ends(name) => {
                    self.state.note_column_gone(&step.name, name, &self.birth)?;
                }
                ColumnStep::Add { name, .. } if begins(name) => {
                    self.state.note_column_made_twice(&step.name, name, &self.birth)?;
                }
                ColumnStep::Drop { name } if begins(name) => {
                    self.state.end_columns_of_others(&step.name, name)?;
                    let (table, column) = (step.name.clone(), Some(name.clone()));
                    self.begun_anew.push(BegunAnew { table, column });
                }
                ColumnStep::Rename { from, to, .. } if ends(from) || begins(from) || ends(to) || begins(to) => {}
                ColumnStep::Add { .. } | ColumnStep::Drop { .. } | ColumnStep::Rename { .. } => {
                    noted.push(column.clone());
                }
            }
        }
        self.state.note_step(step, &noted, &self.birth)
    }

    /// What pending steps do to columns of a table, but for what others have done before them on the log.
    fn columns_pending(&self, table: &str) -> Result<Vec<ColumnStep>, ApplyError> {
        let (mut columns, mut name, own) = (Vec::new(), table, self.state.origin());
        let mut tx_last = None;
        for PendingStep { step: other, seen, tx, .. } in
            self.pending.iter().rev().filter(|other| other.step.kind == "table")
        {
            // The steps of a transaction are one change.
            if !other.name.eq_ignore_ascii_case(name) || tx_last == Some(*tx) {
                continue;
            }
            tx_last = Some(*tx);
            name = other.name_before.as_ref().unwrap_or(&other.name);
            let (Some(before), Some(after)) = (&other.before, &other.after) else { continue };
            let Ok(way) = alteration(other, before, after) else { continue };
            for column in way.columns {
                if self.state.column_made_before(other, &column, own, *seen)?.is_none() {
                    columns.push(column);
                }
            }
        }
        Ok(columns)
    }

    /// What is here is neither what the step begins with nor what it ends with.
    pub(super) fn differs(&self, step: &SchemaStep, here: String, after: &str) -> Result<(), ApplyError> {
        if self.state.was_step_made(step)? {
            return Ok(());
        }
        let (kind, name) = (step.kind.clone(), step.name.clone());
        Err(Cannot::SchemaDiffers { kind, name, ours: here, theirs: after.to_owned() }.into())
    }

    /// Whether an object is here what the steps so far have made of it.
    pub(super) fn is_mirrored(&self, step: &SchemaStep, here: &str) -> bool {
        matches!(sql_of(&self.mirror, &step.kind, &step.name), Ok(Some(sql)) if is_same_statement(&sql, here))
    }

    pub(super) fn run(&self, step: &SchemaStep, sql: &str) -> Result<(), ApplyError> {
        if !["create", "alter", "drop"].into_iter().any(|word| begins(sql, word)) {
            return Err(ApplyError::Damaged { what: "a change of the schema" });
        }
        drop(alter(&self.mirror, sql));
        alter(self.conn, sql).map_err(Maker::refused(step))
    }

    /// Two nodes have made a table of one name. Where one has added columns to it since it has what both have made.
    fn create_over(
        &mut self,
        step: &SchemaStep,
        all: &[SchemaStep],
        here: String,
        after: &str,
    ) -> Result<(), ApplyError> {
        let adds = |from: &str, to: &str| {
            let way = alteration(&SchemaStep { name_before: None, ..step.clone() }, from, to);
            way.is_ok_and(|way| {
                way.is_alter && way.columns.iter().all(|column| matches!(column, ColumnStep::Add { .. }))
            })
        };
        let is_theirs_more = adds(&here, after);
        if !is_theirs_more && !adds(after, &here) {
            return self.differs(step, here, after);
        }
        self.state.note_table_made_twice(&step.name)?;
        self.state.note_step(step, &[], &self.birth)?;
        if !is_theirs_more {
            return Ok(());
        }
        let added = SchemaStep { before: Some(here.clone()), ..step.clone() };
        self.alter(&added, all, &here, after)
    }

    /// Whether others have done that to a column before, on the log, what the maker of the step had not seen.
    fn is_done(&self, step: &SchemaStep, column: &ColumnStep) -> Result<bool, ApplyError> {
        Ok(self.state.column_made_before(step, column, self.birth.origin, self.seen)?.is_some())
    }

    /// Makes of a table what the step makes of it, as far as that is not done yet.
    fn alter(&mut self, step: &SchemaStep, all: &[SchemaStep], before: &str, after: &str) -> Result<(), ApplyError> {
        let refused = Maker::refused(step);
        let way = alteration(step, before, after).map_err(&refused)?;
        let from_aside = from_aside(step, &self.aside);
        let mut noted = from_aside.as_ref().unwrap_or(step);
        let in_place = SchemaStep { name_before: None, ..step.clone() };
        if let Some(old_name) = &noted.name_before
            && sql_of(self.conn, "table", old_name).map_err(&refused)?.is_some()
            && (old_name.eq_ignore_ascii_case(&step.name)
                || sql_of(self.conn, "table", &step.name).map_err(&refused)?.is_none())
        {
            for (from, to) in renames_of_table(old_name, &step.name) {
                self.run(step, &format!("ALTER TABLE {} RENAME TO {}", quoted(from), quoted(to)))?;
            }
        } else if let Some(old_name) = &noted.name_before
            && self.state.name_in_the_end(old_name)?.is_some_and(|now| now.eq_ignore_ascii_case(&step.name))
        {
            noted = &in_place;
        }
        let Some(here) = sql_of(self.conn, "table", &step.name).map_err(&refused)? else {
            return self.alter_under_its_name(step, all);
        };
        if here == after {
            return self.note_columns(noted, &way.columns);
        }
        if way.is_alter {
            let pending = self.columns_pending(&step.name)?;
            let is_pending = |name: &String| {
                pending.iter().flat_map(ColumnStep::names).any(|other| other.eq_ignore_ascii_case(name))
            };
            for column in way.columns.iter().filter(|column| !column.names().into_iter().any(is_pending)) {
                let all = columns_of(self.conn, &step.name).map_err(&refused)?;
                if column.is_due(&all) && !self.is_done(step, column)? {
                    statements(&step.name, column).iter().try_for_each(|sql| self.run(step, sql))?;
                }
            }
            return self.note_columns(noted, &way.columns);
        }
        let later = self.definitions_pending(step);
        let is_as_before = here == way.renamed || here == *before || self.is_mirrored(step, &here);
        let is_module = is_virtual(before) || is_virtual(after);
        if !is_module
            && (!is_as_before || !later.is_empty())
            && let Some(merged) = merged(&here, (&way.renamed, after), &later)
        {
            self.note_columns(noted, &way.columns)?;
            return if merged == here { Ok(()) } else { self.rebuild(step, all, &merged) };
        }
        if !is_as_before {
            let mut is_done = !way.columns.is_empty();
            for column in &way.columns {
                is_done &= self.is_done(step, column)?;
            }
            if is_done {
                return self.note_columns(noted, &way.columns);
            }
            // Several nodes make the same changes, and one has made more of them at once: the one that does more to columns has the others in it.
            let by_place = SchemaStep { renamed_columns: None, ..step.clone() };
            let ours = alteration(&by_place, before, &here).map(|way| way.columns).unwrap_or_default();
            if is_part_of(&way.columns, &ours) {
                return self.note_columns(noted, &way.columns);
            }
            if !is_part_of(&ours, &way.columns) {
                return self.differs(step, here, after);
            }
        }
        self.note_columns(noted, &way.columns)?;
        if is_module { self.remake(step, after) } else { self.rebuild(step, all, after) }
    }

    /// What pending steps make of a table's definition: they come behind this one.
    fn definitions_pending(&self, step: &SchemaStep) -> Vec<(String, String)> {
        let is_of_table = |other: &&SchemaStep| other.kind == "table" && other.name.eq_ignore_ascii_case(&step.name);
        let later = self.pending.iter().map(|pending| &pending.step).filter(is_of_table);
        later.filter_map(|other| other.before.clone().zip(other.after.clone())).collect()
    }

    /// As [`Maker::alter`], of a table that has another name by now than the one that the step gives it or leaves it: one from a change that
    /// its maker had not seen, or from one that is pending here.
    fn alter_under_its_name(&mut self, step: &SchemaStep, all: &[SchemaStep]) -> Result<(), ApplyError> {
        let old = step.name_before.as_ref().unwrap_or(&step.name);
        let no_table = || ApplyError::from(Cannot::NoTable { table: step.name.clone() });
        let Some(now) = self.state.name_in_the_end(old)? else { return Ok(()) };
        let find = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
        let now: Option<String> =
            self.conn.query_row(find, [&now], |row| row.get(0)).optional().map_err(Maker::refused(step))?;
        let now = now.ok_or_else(no_table)?;
        let mut is_ours = false;
        for PendingStep { step: other, seen, .. } in self.pending {
            is_ours |= other.name_before.is_some()
                && other.name.eq_ignore_ascii_case(&now)
                && !self.state.name_made_before(other, self.state.origin(), *seen)?;
        }
        let is_named = self.state.name_made_before(step, self.birth.origin, self.seen)?;
        let (Some(before), Some(after)) = (&step.before, &step.after) else { return Err(no_table()) };
        let before = retitled(before, old, &now).ok_or_else(no_table)?;
        // The last of two names is the one that counts, and what is pending comes behind.
        let (name, name_before, after) = match step.name_before.is_some() && !is_ours && !is_named {
            true => (step.name.clone(), Some(now), after.clone()),
            false => {
                let after = retitled(after, &step.name, &now).ok_or_else(no_table)?;
                (now, None, after)
            }
        };
        let table = name.clone();
        let step = SchemaStep {
            name,
            name_before,
            table,
            before: Some(before.clone()),
            after: Some(after.clone()),
            ..step.clone()
        };
        self.alter(&step, all, &before, &after)
    }

    /// Gives a table another definition and keeps its rows: made anew under its name, filled from the old one, with what stood on it.
    pub(super) fn rebuild(&mut self, step: &SchemaStep, all: &[SchemaStep], after: &str) -> Result<(), ApplyError> {
        let refused = Maker::refused(step);
        let old_catalogue = catalogue_of(self.conn)?;
        let lower = step.name.to_ascii_lowercase();
        let (taken, aside) = name_aside(&old_catalogue);
        let stood: Vec<&SchemaRow> = old_catalogue
            .rows()
            .iter()
            .filter(|row| {
                row.table.eq_ignore_ascii_case(&step.name) && matches!(row.kind.as_str(), "index" | "trigger")
            })
            .filter(|row| row.sql.is_some())
            // What other steps are about is theirs.
            .filter(|row| !all.iter().any(|other| other.kind == row.kind && other.name.eq_ignore_ascii_case(&row.name)))
            .collect();
        let sequence: Option<i64> = if taken.contains("sqlite_sequence") {
            let found = self.conn.query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = ?1 COLLATE NOCASE",
                [&lower],
                |row| row.get(0),
            );
            found.optional().map_err(&refused)?
        } else {
            None
        };
        self.move_aside(step, &aside)?;
        self.run(step, after)?;
        let catalogue = catalogue_after(self.conn, &old_catalogue)?;
        let (Some(old), Some(new)) = (catalogue.table(&aside), catalogue.table(&step.name)) else {
            return Err(Cannot::NoTable { table: step.name.clone() }.into());
        };
        self.copy(step, old, new)?;
        self.run(step, &format!("DROP TABLE {}", quoted(&aside)))?;
        if let Some(sequence) = sequence {
            let keep = "UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1 COLLATE NOCASE";
            if self.conn.execute(keep, params![lower, sequence]).map_err(&refused)? == 0 && new.autoincrement {
                let keep = "INSERT INTO sqlite_sequence(name, seq) VALUES(?1, ?2)";
                self.conn.execute(keep, params![new.name, sequence]).map_err(&refused)?;
            }
        }
        for (row, sql) in stood.iter().filter_map(|row| row.sql.as_ref().map(|sql| (row, sql))) {
            match self.run(step, sql) {
                // It has gone with its column.
                Err(ApplyError::Cannot(Cannot::SchemaRefused { source, .. }))
                    if row.kind == "index" && is_of_no_column(&source) => {}
                ended => ended?,
            }
        }
        Ok(())
    }

    pub(super) fn pragma(
        &self,
        setting: &str,
        refused: &dyn Fn(rusqlite::Error) -> ApplyError,
    ) -> Result<(), ApplyError> {
        let sql = format!("PRAGMA {setting}");
        drop(self.mirror.execute_batch(&sql));
        self.conn.execute_batch(&sql).map_err(refused)
    }

    fn copy(&mut self, step: &SchemaStep, old: &Arc<Table>, new: &Table) -> Result<(), ApplyError> {
        let refused = &Maker::refused(step);
        let sources = reshape(old, new, step.renamed_columns.as_deref());
        let mut found =
            self.conn.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE \"notnull\"").map_err(refused)?;
        let never_null: BTreeSet<String> =
            found.query_map([&new.name], |row| row.get(0)).and_then(Iterator::collect).map_err(refused)?;
        let (mut into, mut values, mut bound) = (Vec::new(), Vec::new(), Vec::new());
        for (index, column) in new.columns.iter().enumerate().filter(|(_, column)| !column.generated) {
            into.push(quoted(&column.name));
            match column_before(old, sources.as_deref(), index) {
                Some(source) => {
                    let mut value = quoted(&source.name);
                    // Where it could not stay, the origin has given it something, of the rows that it knew.
                    if let Some(strict) = narrower(Some(source), new, index) {
                        register(self.conn).map_err(refused)?;
                        value = converted(&value, strict);
                    }
                    if never_null.contains(&column.name) {
                        bound.push(Bound(&column.default));
                        value = format!("coalesce({value}, ?{})", bound.len());
                    }
                    values.push(value);
                }
                // As rows that come later without the column get it.
                None => {
                    bound.push(Bound(&column.default));
                    values.push(format!("?{}", bound.len()));
                }
            }
        }
        if let (Identity::Rowid, Some(ours), Some(theirs)) = (&new.identity, new.rowid_name, old.rowid_name) {
            into.push(ours.to_owned());
            values.push(theirs.to_owned());
        }
        let how = if self.may_leave_rows { "INSERT OR IGNORE" } else { "INSERT" };
        let insert =
            format!("{how} INTO {}({}) SELECT {} FROM ", quoted(&new.name), into.join(", "), values.join(", "));
        let copy = format!("{insert}{}", quoted(&old.name));
        match self.conn.execute(&copy, rusqlite::params_from_iter(&bound)) {
            Ok(_) => return Ok(()),
            // A value that has no place there: none of them come along.
            Err(source) if self.may_leave_rows => {
                let left = ApplyError::schema(&step.kind, &step.name, source);
                return if matches!(left, ApplyError::Cannot(_)) { Ok(()) } else { Err(left) };
            }
            Err(source) if is_duplicate(&source) && made_unique(step)?.is_some() => {}
            Err(source) => return Err(refused(source)),
        }
        let table = self.state.local_aside(old, &step.name)?;
        // The same, of one row that is bound behind what is bound already.
        let rowid = old.rowid_name.filter(|_| !old.without_rowid).map(str::to_owned);
        let names = table.sql.columns.iter().cloned().chain(rowid);
        let row: Vec<String> =
            names.enumerate().map(|(i, name)| format!("?{} AS {name}", bound.len() + i + 1)).collect();
        let insert = format!("{insert}(SELECT {})", row.join(", "));
        let values = bound.iter().map(|value| value.0.clone()).collect();
        let trial = Trial::new(self.conn, &[&new.sql], insert, values).map_err(refused)?;
        self.remove_duplicates(step, &table, &trial)?;
        self.conn.execute(&copy, rusqlite::params_from_iter(&bound)).map(drop).map_err(refused)
    }
}
