//! Virtual tables that change: they make, rename and drop their shadow tables themselves.
//!
//! A rename is one statement, which takes the shadow tables along. One that is made anew begins with rows of its own in them, and only rows that
//! differ are among the changes: what was there before is set aside and takes their place.

use std::io;

use rusqlite::Connection;

use super::alter::{self, Columns, Plan};
use super::create::create_table;
use super::literal::quoted_name;
use super::schema::SchemaObject;
use crate::change::{RenamedColumns, SchemaChange};
use crate::schema::{Module, Tokens, VirtualTable};

/// The virtual tables that a transaction changes.
#[derive(Debug, Default)]
pub(super) struct VirtualTables {
    /// Those that are dropped, also to be made anew, as they were.
    gone: Vec<VirtualTable>,
    /// Those that are made, also anew, as they are.
    come: Vec<VirtualTable>,
    /// Those that have another name and nothing else, before and after.
    renamed: Vec<(VirtualTable, VirtualTable)>,
    /// Those of `gone` that have one of `come` in their place, each with the statement of that. Either may be an ordinary table.
    remade: Vec<(String, String, String)>,
}

/// A shadow table that is there before and after, while its virtual table is made anew.
struct Kept<'s> {
    name_before: &'s str,
    name_after: &'s str,
    before: &'s str,
    after: &'s str,
    renamed_columns: Option<&'s RenamedColumns>,
}

impl VirtualTables {
    pub(super) fn of(changes: &[SchemaChange]) -> VirtualTables {
        let mut tables = VirtualTables::default();
        for change in changes.iter().filter(|change| change.kind == "table") {
            let parse = |name: &str, sql: &Option<String>| VirtualTable::parse(name, sql.as_deref()?);
            let (old, new) = (parse(name_before(change), &change.before), parse(&change.name, &change.after));
            match (old, new, &change.before, &change.after) {
                (None, None, ..) => {}
                (Some(old), Some(new), Some(before), Some(after)) if is_rename(before, after, &new.name) => {
                    tables.renamed.push((old, new));
                }
                (old, new, before, after) => {
                    if let (Some(_), Some(after)) = (before, after) {
                        tables.remade.push((name_before(change).to_owned(), change.name.clone(), after.clone()));
                    }
                    tables.gone.extend(old);
                    tables.come.extend(new);
                }
            }
        }
        tables
    }

    /// Whether a table that is gone goes with its virtual table.
    pub(super) fn takes_along(&self, name: &str) -> bool {
        self.gone.iter().chain(self.renamed.iter().map(|(old, _)| old)).any(|table| owns(table, name))
    }

    /// Whether a table that is new comes with its virtual table.
    pub(super) fn brings(&self, name: &str) -> bool {
        self.come.iter().chain(self.renamed.iter().map(|(_, new)| new)).any(|table| owns(table, name))
    }

    /// Whether a table that is there before and after is changed here and not like an ordinary one.
    pub(super) fn changes(&self, change: &SchemaChange) -> bool {
        let is_virtual =
            |sql: &Option<String>| sql.as_deref().and_then(create_table).is_some_and(|table| table.is_virtual);
        is_virtual(&change.before)
            || is_virtual(&change.after)
            || self.takes_along(name_before(change))
            || self.brings(&change.name)
    }

    /// Adds what is done to them. `objects` is the schema before.
    ///
    /// # Errors
    /// When SQLite does not take the statement of a shadow table.
    pub(super) fn plan(&self, changes: &[SchemaChange], objects: &[SchemaObject], plan: &mut Plan) -> io::Result<()> {
        for (index, kept) in self.kept(changes, objects).iter().enumerate() {
            keep(index, kept, plan)?;
        }
        for (old, new, sql) in &self.remade {
            plan.first.push(format!("DROP TABLE main.{}", quoted_name(old)));
            plan.statements.push(sql.clone());
            plan.rebuilt.extend([old.clone(), new.clone()]);
        }
        let is_taken = |name: &str| {
            let mut tables = changes.iter().filter(|change| change.kind == "table" && change.before.is_some());
            tables.any(|change| name_before(change).eq_ignore_ascii_case(name))
        };
        // A name that is another table's before is free when that is dropped or renamed. SQLite renames a virtual table only once in a transaction,
        // so there is no way round by a third name, and they never go in a circle.
        let (mut late, early): (Vec<_>, Vec<_>) = self.renamed.iter().partition(|(_, new)| is_taken(&new.name));
        plan.first.extend(early.into_iter().map(rename));
        while !late.is_empty() {
            let is_free = |(_, new): &&(VirtualTable, VirtualTable)| {
                !late.iter().any(|(old, _)| old.name.eq_ignore_ascii_case(&new.name))
            };
            let next = late.iter().position(is_free).unwrap_or(0);
            plan.statements.push(rename(late.remove(next)));
        }
        Ok(())
    }

    fn kept<'s>(&self, changes: &'s [SchemaChange], objects: &'s [SchemaObject]) -> Vec<Kept<'s>> {
        let is_kept = |name_before: &str, name_after: &str| {
            self.gone.iter().any(|table| owns(table, name_before))
                || self.come.iter().any(|table| owns(table, name_after))
        };
        let tables = || changes.iter().filter(|change| change.kind == "table" && change.before.is_some());
        let changed = tables().filter_map(|change| {
            let kept = Kept {
                name_before: name_before(change),
                name_after: &change.name,
                before: change.before.as_deref()?,
                after: change.after.as_deref()?,
                renamed_columns: change.renamed_columns.as_ref(),
            };
            let is_virtual =
                [kept.before, kept.after].into_iter().filter_map(create_table).any(|table| table.is_virtual);
            (!is_virtual && is_kept(kept.name_before, kept.name_after)).then_some(kept)
        });
        let is_changed = |name: &str| tables().any(|change| name_before(change).eq_ignore_ascii_case(name));
        let same = objects.iter().filter(|object| {
            object.kind == "table" && is_kept(&object.name, &object.name) && !is_changed(&object.name)
        });
        let same = same.map(|object| Kept {
            name_before: &object.name,
            name_after: &object.name,
            before: &object.sql,
            after: &object.sql,
            renamed_columns: None,
        });
        changed.chain(same).collect()
    }
}

fn rename((old, new): &(VirtualTable, VirtualTable)) -> String {
    format!("ALTER TABLE {} RENAME TO {}", quoted_name(&old.name), quoted_name(&new.name))
}

/// Sets the rows of a shadow table aside, and puts them in the place of those with which the virtual table begins.
fn keep(index: usize, kept: &Kept<'_>, plan: &mut Plan) -> io::Result<()> {
    let columns = |name: &str, sql: &str| {
        let scratch = Connection::open_in_memory()?;
        scratch.execute_batch(sql)?;
        Columns::of(&scratch, name)
    };
    let before = columns(kept.name_before, kept.before).map_err(|error| alter::refused(kept.name_before, &error))?;
    let after = columns(kept.name_after, kept.after).map_err(|error| alter::refused(kept.name_after, &error))?;
    let pairs = after.copied(&before, kept.renamed_columns);
    let name = format!("woodchuck_shadow_{index}");
    let new = quoted_name(kept.name_after);
    plan.put_back.push(made_sure(kept.after));
    plan.put_back.push(format!("DELETE FROM main.{new}"));
    if !pairs.is_empty() {
        plan.first.push(alter::set_aside(&name, kept.name_before, &pairs, &[]));
        plan.put_back.extend(alter::put_back(&name, kept.name_after, &pairs, &[]));
        plan.aside.push((kept.name_after.to_ascii_lowercase(), format!("temp.{name}")));
    }
    Ok(())
}

/// The statement of a shadow table for where its virtual table may have made it: some are made by and by.
pub(super) fn made_sure(sql: &str) -> String {
    const PREFIX: &str = "CREATE TABLE ";
    match sql
        .get(..PREFIX.len())
        .filter(|start| start.eq_ignore_ascii_case(PREFIX))
        .and_then(|_| sql.get(PREFIX.len()..))
    {
        Some(rest) => format!("{PREFIX}IF NOT EXISTS {rest}"),
        None => sql.to_owned(),
    }
}

fn name_before(change: &SchemaChange) -> &str {
    change.name_before.as_ref().unwrap_or(&change.name)
}

fn owns(table: &VirtualTable, name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    match table.module {
        // Of a module that is not known every table under its name is its own.
        Module::Other => name.strip_prefix(&table.name.to_ascii_lowercase()).is_some_and(|rest| rest.starts_with('_')),
        _ => table.shadows().any(|shadow| shadow == name),
    }
}

/// Whether ALTER TABLE RENAME leads from the one text to the other: it writes the new name in quotes, and nothing else.
fn is_rename(before: &str, after: &str, name_after: &str) -> bool {
    // The name is the fourth word.
    let split = |sql: &'_ str| {
        let (offset, token) = Tokens::new(sql).nth(3)?;
        Some((token.to_owned(), sql.get(offset + token.len()..)?.to_owned()))
    };
    match (split(before), split(after)) {
        (Some((_, old)), Some((name, new))) => old == new && name == quoted_name(name_after),
        _ => false,
    }
}
