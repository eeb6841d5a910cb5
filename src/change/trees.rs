//! The trees of a database, told apart by their schema rows.
//!
//! Invariant: a tree keeps its number while its table or index keeps its name, or is renamed in place. A table that was built anew under
//! another's name is the same tree with other pages; equal bytes under a new owner are new rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::columns::RenamedColumns;
use super::owners::TreeNo;
use super::pages::{DiffError, TREE_HEIGHT_MAX, Version};
use super::renamed::renamed;
use super::row::SchemaChange;
use super::rows::reshape;
use super::structure::Root;
use crate::format::{PageNo, Record, Value};
use crate::schema::{
    Affinity, Catalogue, Column, Identity, KeyColumn, SchemaRow, Table, Tokens, VirtualTable, unquote,
};

/// The rows of `sqlite_schema` by rowid.
pub(crate) type Schema = BTreeMap<i64, SchemaRow>;

/// One b-tree of the database.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// `table` or `index`.
    pub(crate) kind: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) schema_rowid: i64,
    pub(crate) root: Root,
    /// The table whose rows the tree holds; `None` for indexes and for tables that could not be understood.
    pub(crate) table: Option<Arc<Table>>,
}

/// `sqlite_schema` itself, which no schema row describes.
pub(crate) fn schema_table() -> Table {
    let column = |name: &str, affinity| Column {
        name: name.to_owned(),
        declared_type: String::new(),
        affinity,
        default: Value::Null,
        not_null: false,
        strict: None,
        generated: false,
    };
    Table {
        name: "sqlite_schema".to_owned(),
        sql: String::new(),
        root: PageNo::ONE,
        columns: vec![
            column("type", Affinity::Text),
            column("name", Affinity::Text),
            column("tbl_name", Affinity::Text),
            column("rootpage", Affinity::Integer),
            column("sql", Affinity::Text),
        ],
        record_columns: (0..5).collect(),
        identity: Identity::Rowid,
        without_rowid: false,
        rowid_name: Some("rowid"),
        autoincrement: false,
        shadow_of: None,
        shown_by: None,
        is_virtual: false,
        first_name: None,
        uniques: Vec::new(),
    }
}

/// Reads all rows of `sqlite_schema`.
pub(crate) fn read_schema(version: &Version<'_>) -> Result<Schema, DiffError> {
    let mut schema = Schema::new();
    let mut level = vec![PageNo::ONE];
    let mut children = Vec::new();
    // Bounded by the height that SQLite allows: a damaged tree that contains itself ends here.
    for _ in 0..=TREE_HEIGHT_MAX {
        children.clear();
        for page in &level {
            let bytes = version.bytes(*page)?;
            let btree = version.parse(*page, &bytes)?;
            if btree.kind().is_interior() {
                version.children(*page, &mut children)?;
                continue;
            }
            for index in 0..btree.cell_count() {
                let cell = btree.cell(index)?;
                let payload = version.nearest_payload(*page, &cell)?;
                let fields: Vec<Value> = Record::new(&payload, version.encoding)
                    .and_then(Iterator::collect)
                    .map_err(|source| DiffError::Record { table: "sqlite_schema".into(), page: *page, source })?;
                schema.insert(cell.rowid.unwrap_or_default(), schema_row(&fields));
            }
        }
        if children.is_empty() || children.len() > version.pages.page_count() as usize {
            break;
        }
        std::mem::swap(&mut level, &mut children);
    }
    Ok(schema)
}

fn schema_row(fields: &[Value]) -> SchemaRow {
    let text = |index: usize| match fields.get(index) {
        Some(Value::Text(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    };
    let root = match fields.get(3) {
        Some(Value::Integer(root)) => u32::try_from(*root).ok().and_then(PageNo::new),
        _ => None,
    };
    SchemaRow {
        kind: text(0).unwrap_or_default(),
        name: text(1).unwrap_or_default(),
        table: text(2).unwrap_or_default(),
        root,
        sql: text(4),
    }
}

/// The trees of a schema: which schema row continues which tree.
pub(crate) struct Matched {
    /// For trees that live on: their number and schema row after.
    pub(crate) kept: Vec<(TreeNo, i64)>,
    /// Trees that are gone.
    pub(crate) gone: Vec<TreeNo>,
    /// Schema rows of trees that are new.
    pub(crate) new: Vec<i64>,
}

impl Matched {
    /// For schema rows after: the schema row before that they continue.
    pub(crate) fn continued(&self, trees: &[Option<Tree>]) -> HashMap<i64, i64> {
        let before = |number: &TreeNo| Some(trees.get(number.0 as usize)?.as_ref()?.schema_rowid);
        self.kept.iter().filter_map(|(number, rowid)| Some((*rowid, before(number)?))).collect()
    }
}

/// Matches the trees (without tree 0) with the schema after a transaction: by name, then tables by a rename.
///
/// A table dropped and created again under its name is another table when its rows cannot be told to be the same ones: then the tree is
/// gone and a new one is there. Indexes are never renamed.
pub(crate) fn match_trees(
    (old, trees, before): (&Version<'_>, &[Option<Tree>], &Schema),
    (new, schema, catalogue): (&Version<'_>, &Schema, &Catalogue),
    by_rows: bool,
) -> Matched {
    let key = |row: &SchemaRow| (row.kind.clone(), row.name.to_ascii_lowercase());
    let mut by_name: HashMap<(String, String), i64> = HashMap::new();
    for (rowid, row) in schema.iter().filter(|(_, row)| row.root.is_some()) {
        by_name.insert(key(row), *rowid);
    }
    let mut matched = Matched { kept: Vec::new(), gone: Vec::new(), new: Vec::new() };
    let (mut numbers, mut orphans) = (Vec::new(), Vec::new());
    for (index, tree) in trees.iter().enumerate().skip(1) {
        let Some(tree) = tree else { continue };
        let number = TreeNo(index as u32);
        let name = (tree.kind.to_string(), tree.name.to_ascii_lowercase());
        let same = by_name.get(&name).copied().filter(|rowid| {
            let table = schema.get(rowid).and_then(|row| catalogue.table(&row.name));
            match (tree.table.as_deref(), table) {
                (Some(old), Some(new)) => rows_continue(old, new),
                _ => true,
            }
        });
        match same {
            Some(rowid) => {
                by_name.remove(&name);
                matched.kept.push((number, rowid));
            }
            None => {
                numbers.push(number);
                orphans.push(tree);
            }
        }
    }
    matched.new = by_name.into_values().collect();
    matched.new.sort_unstable();
    let found = renamed((old, &orphans), (new, schema, catalogue), before, &matched.new, by_rows);
    let found: BTreeMap<TreeNo, i64> =
        found.into_iter().filter_map(|(index, rowid)| Some((*numbers.get(index)?, rowid))).collect();
    let taken: BTreeSet<i64> = found.values().copied().collect();
    matched.new.retain(|rowid| !taken.contains(rowid));
    matched.gone = numbers.into_iter().filter(|number| !found.contains_key(number)).collect();
    matched.kept.extend(found);
    matched
}

/// Whether rows that are equal under the new table's key were so under the old one's: only then do rows of both sides pair one to one. Where a
/// key is stored as something else than before, what others write by the one kind of key is not found by the other.
pub(super) fn rows_continue(old: &Table, new: &Table) -> bool {
    let Some(sources) = reshape(old, new, None) else { return true };
    let source = |column: usize| sources.get(column).copied().flatten();
    if old.without_rowid != new.without_rowid {
        return false;
    }
    match (&old.identity, &new.identity) {
        (Identity::Rowid, Identity::Rowid) => true,
        (Identity::RowidAlias(before), Identity::RowidAlias(after)) => source(*after) == Some(*before),
        (Identity::Declared(before), Identity::Declared(after)) => {
            before.len() == after.len()
                && after.iter().all(|part| {
                    let mut before = before.iter();
                    before.any(|was| {
                        Some(was.column) == source(part.column)
                            && was.collation == part.collation
                            && stored_as(old, was) == stored_as(new, part)
                    })
                })
        }
        _ => false,
    }
}

/// What values of a key column become when they are stored.
fn stored_as(table: &Table, key: &KeyColumn) -> Option<Affinity> {
    match table.columns.get(key.column)?.affinity {
        // They differ in CAST alone.
        Affinity::Numeric => Some(Affinity::Integer),
        affinity => Some(affinity),
    }
}

/// Whether a virtual table has another name than before: one of its shadow tables went on under the new name.
fn is_renamed(before: &Schema, after: &Schema, continued: &HashMap<i64, i64>, rowid: i64) -> bool {
    let parse = |schema: &Schema| {
        let row = schema.get(&rowid).filter(|row| row.is_virtual_table())?;
        VirtualTable::parse(&row.name, row.sql.as_deref()?)
    };
    let (Some(old), Some(new)) = (parse(before), parse(after)) else { return false };
    let name_of = |schema: &Schema, rowid: &i64| schema.get(rowid).map(|row| row.name.to_ascii_lowercase());
    !old.name.eq_ignore_ascii_case(&new.name)
        && old.shadows().zip(new.shadows()).any(|(old, new)| {
            continued.iter().any(|(rowid, previous)| {
                name_of(after, rowid).as_ref() == Some(&new) && name_of(before, previous).as_ref() == Some(&old)
            })
        })
}

/// The tables whose names are in the statement of an index, a view or a trigger.
fn tables_spoken_of(row: &SchemaRow, catalogue: &Catalogue) -> Vec<Arc<Table>> {
    let all = Tokens::new(row.sql.as_deref().unwrap_or_default());
    let names: BTreeSet<String> = all.map(|(_, token)| unquote(token).to_ascii_lowercase()).collect();
    names.iter().filter_map(|name| catalogue.written_table(name)).cloned().collect()
}

/// What changed in the schema, in the order drops, changed tables, new tables, then everything else, each by schema row: a new table can
/// have the name that another has just given up. Automatic indexes are left out, and so are rows of which only the root page moved. `continued` holds, for schema rows after that have a tree, the row before;
/// `catalogue` the tables after.
pub(crate) fn schema_changes(
    before: &Schema,
    after: &Schema,
    continued: &HashMap<i64, i64>,
    renamed: &HashMap<i64, RenamedColumns>,
    is_shadow: &dyn Fn(&str) -> bool,
    catalogue: &Catalogue,
) -> Vec<SchemaChange> {
    let key = |row: &SchemaRow| (row.kind.clone(), row.name.to_ascii_lowercase());
    let mut old: BTreeMap<i64, &SchemaRow> =
        before.iter().filter(|(_, row)| row.sql.is_some()).map(|(rowid, row)| (*rowid, row)).collect();
    let by_name: HashMap<(String, String), i64> = old.iter().map(|(rowid, row)| (key(row), *rowid)).collect();
    let change = |row: &SchemaRow, before: Option<&SchemaRow>, after: Option<&SchemaRow>| SchemaChange {
        kind: row.kind.clone(),
        name: row.name.clone(),
        name_before: before.map(|before| &before.name).filter(|name| **name != row.name).cloned(),
        of_shadow: is_shadow(&row.table),
        table: row.table.clone(),
        before: before.and_then(|row| row.sql.clone()),
        after: after.and_then(|row| row.sql.clone()),
        root_before: before.and_then(|row| row.root),
        renamed_columns: None,
        tables: match (before, after) {
            (Some(_), Some(row)) if row.kind == "table" => {
                catalogue.written_table(&row.name).cloned().into_iter().collect()
            }
            (_, _) if row.kind == "table" => Vec::new(),
            // Before the transaction others may have had these names.
            (before, after) => after.or(before).map(|row| tables_spoken_of(row, catalogue)).unwrap_or_default(),
        },
    };
    // Tables that have their name from before and nothing else: what stood on them went with them.
    let remade: BTreeSet<String> = after
        .iter()
        .filter(|(rowid, row)| row.kind == "table" && row.root.is_some() && !continued.contains_key(rowid))
        .filter(|(_, row)| by_name.contains_key(&key(row)))
        .map(|(_, row)| row.name.to_ascii_lowercase())
        .collect();
    let mut others = Vec::new();
    for (rowid, row) in after.iter().filter(|(_, row)| row.sql.is_some()) {
        let previous = match continued.get(rowid) {
            Some(previous) => Some(previous),
            None if row.kind == "table" && row.root.is_some() => None,
            None if is_renamed(before, after, continued, *rowid) => Some(rowid),
            None => by_name.get(&key(row)),
        };
        let fell = |row: &SchemaRow| row.kind != "view" && remade.contains(&row.table.to_ascii_lowercase());
        let previous = previous.filter(|_| row.kind == "table" || !fell(row)).and_then(|previous| old.remove(previous));
        if previous.is_none_or(|previous| previous.sql != row.sql || previous.name != row.name) {
            others.push(SchemaChange {
                renamed_columns: renamed.get(rowid).cloned(),
                ..change(row, previous, Some(row))
            });
        }
    }
    others.sort_by_key(|change: &SchemaChange| {
        (change.kind != "table", change.before.is_none() && change.kind == "table")
    });
    old.into_values().map(|row| change(row, Some(row), None)).chain(others).collect()
}
