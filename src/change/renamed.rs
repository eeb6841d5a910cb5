//! Which table that is there under a name is one that is there no more: a transaction can rename it and do more, or copy its rows into
//! one of another name and drop it. What others write under the old name meanwhile goes on into it, so a wrong guess does harm either way.

use std::collections::HashMap;

use super::identity::{canonical_key, row_key};
use super::pages::{DiffError, Version};
use super::rows::reshape;
use super::sample::{EVIDENCE_BITS_MIN, End, Sample, SampleRow, bits_of, rows_at};
use super::trees::{Schema, Tree, rows_continue};
use crate::format::{PageNo, Row, Value};
use crate::schema::{Catalogue, Identity, SchemaRow, Table, Tokens, unquote};

/// A tree with no schema row any more, by its index among them, and the schema row that goes on with it.
type Pair = (usize, i64);

/// Finds the tables that go on under other names. `orphans` have no schema row of their name any more, the `new` schema rows no tree. `by_rows`:
/// also those that only their rows tell.
pub(crate) fn renamed(
    (old, orphans): (&Version<'_>, &[&Tree]),
    (version, schema, catalogue): (&Version<'_>, &Schema, &Catalogue),
    before: &Schema,
    new: &[i64],
    by_rows: bool,
) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    let stands_in_place = |tree: &Tree, rowid: i64, row: &SchemaRow| {
        tree.schema_rowid == rowid && row.kind == "table" && row.root == Some(tree.root.page)
    };
    let tables = || orphans.iter().enumerate().filter(|(_, tree)| *tree.kind == *"table");
    for (index, tree) in tables().filter(|(_, tree)| new.contains(&tree.schema_rowid)) {
        let Some(row) = schema.get(&tree.schema_rowid) else { continue };
        let now = catalogue.table(&row.name).map(AsRef::as_ref);
        if stands_in_place(tree, tree.schema_rowid, row)
            && same_columns(tree.table.as_deref(), now)
            && !is_still_named(before, schema, &tree.name)
        {
            pairs.push((index, tree.schema_rowid));
        }
    }
    if !by_rows {
        return pairs;
    }
    // Only where there is no doubt which.
    let mut likely: Vec<Pair> = Vec::new();
    let stands_for_itself = |table: &&Table| !table.is_internal() && table.shadow_of.is_none();
    for (index, tree) in tables().filter(|(index, _)| pairs.iter().all(|(found, _)| found != index)) {
        let Some(was) = tree.table.as_deref().filter(stands_for_itself) else { continue };
        for rowid in new.iter().filter(|rowid| pairs.iter().all(|(_, found)| found != *rowid)) {
            let Some(row) = schema.get(rowid).filter(|row| row.kind == "table") else { continue };
            let Some(now) = catalogue.table(&row.name).map(AsRef::as_ref).filter(stands_for_itself) else { continue };
            if !rows_continue(was, now) {
                continue;
            }
            let was_renamed =
                stands_in_place(tree, *rowid, row) && Tokens::new(&was.sql).count() == Tokens::new(&now.sql).count();
            // What cannot be read tells nothing; who needs it will say so.
            let rows = evidence((old, tree.root.page, was), (version, now.root, now)).unwrap_or(0);
            let found = if was_renamed && rows > 0 { rows + IN_PLACE_BITS } else { rows };
            if found >= EVIDENCE_BITS_MIN && !is_still_named(before, schema, &tree.name) {
                likely.push((index, *rowid));
            }
        }
    }
    let (mut by_tree, mut by_row): (HashMap<usize, u32>, HashMap<i64, u32>) = Default::default();
    for (index, rowid) in &likely {
        *by_tree.entry(*index).or_default() += 1;
        *by_row.entry(*rowid).or_default() += 1;
    }
    let is_sure = |(index, rowid): &Pair| by_tree.get(index) == Some(&1) && by_row.get(rowid) == Some(&1);
    pairs.extend(likely.into_iter().filter(is_sure));
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

/// What it tells that a table stands where the other one did, with a statement of the same form, as ALTER TABLE leaves it.
const IN_PLACE_BITS: u32 = 16;

/// How much the first rows of both tell that they are the same table, in bits; 0 where they are not.
///
/// Where all of it is found again every value counts. Migrations also change values at once, drop columns and rows: then columns tell in
/// which nearly every row has a text or a fraction of its own, and mostly kept it; and there must be as many of them as of columns that did not.
/// (Small numbers count up in many tables alike, and a few texts stand everywhere.)
fn evidence(
    (old, old_root, was): (&Version<'_>, PageNo, &Table),
    (new, new_root, now): (&Version<'_>, PageNo, &Table),
) -> Result<u32, DiffError> {
    let sources = reshape(was, now, None).unwrap_or_else(|| (0..now.columns.len()).map(Some).collect());
    let (before, after) = (rows_at(End::First, old, old_root, was)?, rows_at(End::First, new, new_root, now)?);
    let rows = pairs((&before, was), (&after, now));
    // Keys are counted up everywhere.
    let is_key = |column: usize| match &now.identity {
        Identity::RowidAlias(key) => *key == column,
        Identity::Declared(_) | Identity::Rowid => false,
    };
    let shared = || (0..).zip(&sources).filter_map(|(column, source)| Some(((*source)?, column)));
    let found: Vec<Column<'_>> = shared()
        .filter(|(_, column)| !is_key(*column))
        .map(|(source, column)| Column::of(&rows, source, column))
        .collect();
    let is_shared = |source: usize| shared().any(|(other, _)| other == source);
    // Of tables of one page all rows are known.
    let has_all_rows = before.is_whole == after.is_whole && (!before.is_whole || before.count == after.count);
    let readable = |sample: &Sample| sample.rows.iter().filter(|row| row.row.is_some()).count();
    let is_same = has_all_rows
        && rows.len() == readable(&before).min(readable(&after))
        && (0..was.columns.len()).all(is_shared)
        && found.iter().all(|column| column.differing == 0);
    if is_same {
        return Ok(found
            .iter()
            .flat_map(|column| &column.values)
            .map(|value| bits_of(value))
            .fold(0, u32::saturating_add));
    }
    let is_part_of_key = |column: usize| match &now.identity {
        Identity::Declared(parts) => parts.iter().any(|part| part.column == column),
        Identity::RowidAlias(_) | Identity::Rowid => false,
    };
    let rest = || found.iter().filter(|column| !is_part_of_key(column.column));
    let telling: Vec<&Column<'_>> = rest().filter(|column| column.tells_alone()).collect();
    let lost = rest().filter(|column| column.differing > column.equal).count();
    if telling.is_empty() || telling.len() < lost || rows.len() * 2 < before.rows.len() {
        return Ok(0);
    }
    let told = telling.into_iter().flat_map(Column::told).map(bits_of).fold(0, u32::saturating_add);
    Ok(told / 2)
}

/// Different values that must be found again in a column of a table which is not as it was.
const TOLD_MIN: usize = 4;

/// What became of a column in the rows that both have.
struct Column<'r> {
    column: usize,
    /// The different values that are found again.
    values: Vec<&'r Value>,
    equal: usize,
    differing: usize,
}

impl<'r> Column<'r> {
    fn of(rows: &[(&'r Row, &'r Row)], source: usize, column: usize) -> Column<'r> {
        let mut found = Column { column, values: Vec::new(), equal: 0, differing: 0 };
        for (before, after) in rows {
            let (before, after) = (before.get(source), after.get(column));
            let Some(value) = before.filter(|_| before == after) else {
                found.differing += 1;
                continue;
            };
            found.equal += 1;
            if !found.values.contains(&value) {
                found.values.push(value);
            }
        }
        found
    }

    /// The values that are hardly in another table.
    fn told(&self) -> impl Iterator<Item = &'r Value> {
        self.values.iter().copied().filter(|value| match value {
            Value::Text(bytes) | Value::Blob(bytes) => bytes.len() >= 3,
            Value::Real(_) => true,
            Value::Null | Value::Integer(_) => false,
        })
    }

    /// Whether the column alone can tell which table it is of.
    fn tells_alone(&self) -> bool {
        let told = self.told().count();
        self.equal > self.differing && told >= TOLD_MIN && told * 2 > self.equal
    }
}

/// The rows of both with the same key, where they are short enough to be read.
fn pairs<'r>((before, was): (&'r Sample, &Table), (after, now): (&'r Sample, &Table)) -> Vec<(&'r Row, &'r Row)> {
    let key = |table: &Table, row: &SampleRow| {
        let values = row.row.as_ref()?;
        Some(canonical_key(table, &row_key(table, values, row.rowid)))
    };
    let known: HashMap<Vec<u8>, &Row> =
        after.rows.iter().filter_map(|row| Some((key(now, row)?, row.row.as_ref()?))).collect();
    before.rows.iter().filter_map(|row| Some((row.row.as_ref()?, *known.get(&key(was, row)?)?))).collect()
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
