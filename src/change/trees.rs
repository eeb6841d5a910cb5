//! The trees of a database, told apart by their schema rows.
//!
//! Invariant: a tree keeps its number while its table or index keeps its name, or is renamed in place. A table that was built anew under
//! another's name is the same tree with other pages; equal bytes under a new owner are new rows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::owners::TreeNo;
use super::pages::{DiffError, TREE_HEIGHT_MAX, Version};
use super::row::SchemaChange;
use super::structure::Root;
use crate::format::{PageNo, Record, Value};
use crate::schema::{Affinity, Catalogue, Column, Identity, SchemaRow, Table};

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
                let payload = version.payload(*page, &cell, None)?;
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

/// Matches the trees (without tree 0) with the schema after a transaction: by name, then by a rename in place.
pub(crate) fn match_trees(trees: &[Option<Tree>], schema: &Schema, catalogue: &Catalogue) -> Matched {
    let mut by_name: HashMap<(&str, String), i64> = HashMap::new();
    for (rowid, row) in schema.iter().filter(|(_, row)| row.root.is_some()) {
        by_name.insert((row.kind.as_str(), row.name.to_ascii_lowercase()), *rowid);
    }
    let mut matched = Matched { kept: Vec::new(), gone: Vec::new(), new: Vec::new() };
    let mut orphans = Vec::new();
    for (index, tree) in trees.iter().enumerate().skip(1) {
        let Some(tree) = tree else { continue };
        let number = TreeNo(index as u32);
        match by_name.remove(&(&*tree.kind, tree.name.to_ascii_lowercase())) {
            Some(rowid) => matched.kept.push((number, rowid)),
            None => orphans.push((number, tree)),
        }
    }
    for (number, tree) in orphans {
        let renamed = schema.get(&tree.schema_rowid).filter(|row| {
            *row.kind == *tree.kind
                && row.root == Some(tree.root.page)
                && by_name.contains_key(&(row.kind.as_str(), row.name.to_ascii_lowercase()))
                && same_columns(tree.table.as_deref(), catalogue.table(&row.name).map(Arc::as_ref))
        });
        match renamed {
            Some(row) => {
                by_name.remove(&(row.kind.as_str(), row.name.to_ascii_lowercase()));
                matched.kept.push((number, tree.schema_rowid));
            }
            None => matched.gone.push(number),
        }
    }
    matched.new = by_name.into_values().collect();
    matched.new.sort_unstable();
    matched
}

fn same_columns(a: Option<&Table>, b: Option<&Table>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.columns == b.columns && a.identity == b.identity && a.without_rowid == b.without_rowid,
        (None, None) => true,
        _ => false,
    }
}

/// What changed in the schema, in the order drops, then everything else by schema row. Automatic indexes are left out, and so are rows of
/// which only the root page moved.
pub(crate) fn schema_changes(before: &Schema, after: &Schema) -> Vec<SchemaChange> {
    let key = |row: &SchemaRow| (row.kind.clone(), row.name.to_ascii_lowercase());
    let mut old: HashMap<(String, String), (i64, &SchemaRow)> =
        before.iter().filter(|(_, row)| row.sql.is_some()).map(|(rowid, row)| (key(row), (*rowid, row))).collect();
    let change = |row: &SchemaRow, before: Option<&SchemaRow>, after: Option<&SchemaRow>| SchemaChange {
        kind: row.kind.clone(),
        name: row.name.clone(),
        table: row.table.clone(),
        before: before.and_then(|row| row.sql.clone()),
        after: after.and_then(|row| row.sql.clone()),
    };
    let mut kept = Vec::new();
    let mut unmatched = Vec::new();
    for (rowid, row) in after.iter().filter(|(_, row)| row.sql.is_some()) {
        match old.remove(&key(row)) {
            Some((_, previous)) => kept.push((*rowid, row, Some(previous))),
            None => unmatched.push((*rowid, row)),
        }
    }
    for (rowid, row) in unmatched {
        // A rename in place keeps schema row and root page.
        let renamed = before
            .get(&rowid)
            .filter(|previous| previous.kind == row.kind && previous.root == row.root && previous.root.is_some())
            .filter(|previous| old.get(&key(previous)).is_some_and(|(old_rowid, _)| *old_rowid == rowid));
        if let Some(previous) = renamed {
            old.remove(&key(previous));
        }
        kept.push((rowid, row, renamed));
    }
    let mut gone: Vec<(i64, &SchemaRow)> = old.into_values().collect();
    gone.sort_unstable_by_key(|(rowid, _)| *rowid);
    kept.sort_by_key(|(rowid, ..)| *rowid);
    let drops = gone.into_iter().map(|(_, row)| change(row, Some(row), None));
    let others = kept.into_iter().filter(|(_, row, previous)| previous.is_none_or(|previous| previous.sql != row.sql));
    drops.chain(others.map(|(_, row, previous)| change(row, previous, Some(row)))).collect()
}
