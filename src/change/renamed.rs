//! Which table that is there under a name is one that is there no more: a transaction can rename it and do more, or copy its rows into
//! one of another name and drop it. What others write under the old name meanwhile goes on into it, so a wrong guess does harm either way.

use std::collections::HashMap;

use super::pages::{DiffError, Version};
use super::rows::reshape;
use super::trees::{Schema, Tree, rows_continue};
use crate::format::{PageNo, Row};
use crate::schema::{Catalogue, Identity, SchemaRow, Table, Tokens, unquote};

/// A tree with no schema row any more, by its index among them, and the schema row that goes on with it.
type Pair = (usize, i64);

/// Finds the tables that go on under other names. `orphans` have no schema row of their name any more, the `new` schema rows no tree.
pub(crate) fn renamed(
    (old, orphans): (&Version<'_>, &[&Tree]),
    (version, schema, catalogue): (&Version<'_>, &Schema, &Catalogue),
    before: &Schema,
    new: &[i64],
) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for (index, tree) in orphans.iter().enumerate().filter(|(_, tree)| *tree.kind == *"table") {
        let in_place = schema
            .get(&tree.schema_rowid)
            .filter(|row| row.kind == "table" && row.root == Some(tree.root.page) && new.contains(&tree.schema_rowid));
        let Some(row) = in_place else { continue };
        let now = catalogue.table(&row.name).map(AsRef::as_ref);
        if same_columns(tree.table.as_deref(), now) && !is_still_named(before, schema, &tree.name) {
            pairs.push((index, tree.schema_rowid));
        }
    }
    // By their rows: only where there is no doubt which.
    let mut likely: Vec<Pair> = Vec::new();
    let stands_for_itself = |table: &&Table| !table.is_internal() && table.shadow_of.is_none();
    for (index, tree) in orphans.iter().enumerate().filter(|(index, _)| pairs.iter().all(|(found, _)| found != index)) {
        let Some(was) = tree.table.as_deref().filter(stands_for_itself) else { continue };
        for rowid in new.iter().filter(|rowid| pairs.iter().all(|(_, found)| found != *rowid)) {
            let Some(row) = schema.get(rowid).filter(|row| row.kind == "table") else { continue };
            let Some(now) = catalogue.table(&row.name).map(AsRef::as_ref).filter(stands_for_itself) else { continue };
            if rows_continue(was, now)
                // What cannot be read tells nothing; who needs it will say so.
                && same_rows((old, tree.root.page, was), (version, now.root, now)).unwrap_or(false)
                && !is_still_named(before, schema, &tree.name)
            {
                likely.push((index, *rowid));
            }
        }
    }
    let (mut by_tree, mut by_row): (HashMap<usize, u32>, HashMap<i64, u32>) = Default::default();
    for (index, rowid) in &likely {
        *by_tree.entry(*index).or_default() += 1;
        *by_row.entry(*rowid).or_default() += 1;
    }
    pairs.extend(
        likely.into_iter().filter(|(index, rowid)| by_tree.get(index) == Some(&1) && by_row.get(rowid) == Some(&1)),
    );
    pairs
}

/// Whether both have the same columns, or one of them has some more: a table that is renamed can be given columns, or lose some, in the
/// same transaction.
fn same_columns(a: Option<&Table>, b: Option<&Table>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => {
            let (few, many) = if a.columns.len() <= b.columns.len() { (a, b) } else { (b, a) };
            let mut rest = many.columns.iter();
            few.columns.iter().all(|column| rest.any(|other| other == column)) && rows_continue(a, b)
        }
        (None, None) => true,
        _ => false,
    }
}

/// Whether the first rows of both are the same in what both have, which has to be most of it. Tables without rows do not tell.
fn same_rows(
    (old, old_root, was): (&Version<'_>, PageNo, &Table),
    (new, new_root, now): (&Version<'_>, PageNo, &Table),
) -> Result<bool, DiffError> {
    let sources = reshape(was, now).unwrap_or_else(|| (0..now.columns.len()).map(Some).collect());
    let shared: Vec<(usize, usize)> = (0..)
        .zip(&sources)
        .filter_map(|(column, source)| Some(((*source)?, column)))
        .filter(|(_, column)| now.columns.get(*column).is_some_and(|column| !column.generated))
        .collect();
    if 2 * shared.len() < was.columns.len().max(now.columns.len()) {
        return Ok(false);
    }
    let (before, after) = (first_rows(old, old_root, was)?, first_rows(new, new_root, now)?);
    let by_rowid = now.identity == Identity::Rowid;
    let is_same = |((rowid, row), (other_rowid, other)): (&(Option<i64>, Row), &(Option<i64>, Row))| {
        (!by_rowid || rowid == other_rowid)
            && shared.iter().all(|(source, column)| row.get(*source) == other.get(*column))
    };
    Ok(!before.is_empty() && !after.is_empty() && before.iter().zip(&after).all(is_same))
}

/// The rows of a tree's first leaf, in its order.
fn first_rows(version: &Version<'_>, root: PageNo, table: &Table) -> Result<Vec<(Option<i64>, Row)>, DiffError> {
    let mut page = root;
    for _ in 0..version.height(root)? {
        let bytes = version.bytes(page)?;
        match version.parse(page, &bytes)?.children().next() {
            Some(child) => page = child?,
            None => break,
        }
    }
    let bytes = version.bytes(page)?;
    let leaf = version.parse(page, &bytes)?;
    let mut rows = Vec::with_capacity(leaf.cell_count());
    for index in 0..leaf.cell_count() {
        let cell = leaf.cell(index)?;
        let payload = version.payload(page, &cell, None)?;
        let row = table.decode_row(&payload, cell.rowid, version.encoding);
        rows.push((cell.rowid, row.map_err(|source| DiffError::Record { table: table.name.clone(), page, source })?));
    }
    Ok(rows)
}

/// Whether an object that did not change speaks of a table of this name: ALTER TABLE would have changed that too.
fn is_still_named(before: &Schema, after: &Schema, name: &str) -> bool {
    after.iter().any(|(rowid, row)| {
        let unchanged = row.sql.as_deref().filter(|_| before.get(rowid).is_some_and(|was| was.sql == row.sql));
        unchanged.is_some_and(|sql| speaks_of(row, sql, name))
    })
}

/// A table refers to another one in REFERENCES alone; in views and triggers any name that stands by itself may be a table's.
fn speaks_of(row: &SchemaRow, sql: &str, name: &str) -> bool {
    let mut last = "";
    Tokens::new(sql).any(|(_, token)| {
        let behind = std::mem::replace(&mut last, token);
        let may_be = match row.kind.as_str() {
            "table" => behind.eq_ignore_ascii_case("references"),
            _ => behind != ".",
        };
        may_be && unquote(token).eq_ignore_ascii_case(name)
    })
}
