//! The table catalogue: what a schema says of its tables.

use std::collections::HashMap;
use std::sync::Arc;

use super::oracle::Oracle;
use super::table::{Affinity, Column, Identity, Table};
use super::virtual_table::{Content, VirtualTable};
use crate::format::PageNo;

/// One row of `sqlite_schema`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaRow {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// The table that it belongs to.
    pub table: String,
    /// Root page; `None` for views, triggers and virtual tables.
    pub root: Option<PageNo>,
    /// The CREATE statement; `None` for automatic indexes.
    pub sql: Option<String>,
}

impl SchemaRow {
    /// Whether the row defines a virtual table.
    #[must_use]
    pub fn is_virtual_table(&self) -> bool {
        self.kind == "table" && self.root.is_none()
    }

    pub(super) fn says_virtual(&self) -> bool {
        self.sql.as_deref().is_some_and(|sql| VirtualTable::parse(&self.name, sql).is_some())
    }
}

/// Why a schema could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The in-memory database failed.
    #[error("cannot ask SQLite about the schema")]
    Sqlite(#[from] rusqlite::Error),
}

/// All objects of a schema and what is known of its ordinary tables.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    rows: Vec<SchemaRow>,
    written_by: u32,
    tables: HashMap<String, Arc<Table>>,
    /// Virtual tables that show the rows of a shadow table.
    shown: HashMap<String, Arc<Table>>,
    virtual_tables: Vec<VirtualTable>,
    shadows: HashMap<String, String>,
    unreadable: Vec<String>,
}

impl Catalogue {
    /// Builds the catalogue of a schema from the rows of `sqlite_schema`. `written_by` is the version of the SQLite that writes the
    /// database, as its header has it: what a record without a column means depends on it.
    ///
    /// # Errors
    /// [`CatalogueError`] when the in-memory database cannot be made. A table whose text SQLite does not parse is no error; it is listed
    /// by [`Catalogue::unreadable`].
    pub fn build(rows: Vec<SchemaRow>, written_by: u32) -> Result<Catalogue, CatalogueError> {
        Catalogue::default().build_next(rows, written_by)
    }

    /// The same of the schema as it became: what is known of tables that are as they were stays, so it takes as long as what changed.
    ///
    /// # Errors
    /// As [`Catalogue::build`].
    pub fn build_next(&self, rows: Vec<SchemaRow>, written_by: u32) -> Result<Catalogue, CatalogueError> {
        let before = if self.written_by == written_by { by_table(&self.rows) } else { HashMap::new() };
        let now = by_table(&rows);
        let virtual_tables: Vec<(VirtualTable, &SchemaRow)> = rows
            .iter()
            .filter(|row| row.is_virtual_table())
            .filter_map(|row| Some((VirtualTable::parse(&row.name, row.sql.as_deref()?)?, row)))
            .collect();
        let shadows: HashMap<String, String> = virtual_tables
            .iter()
            .flat_map(|(table, _)| table.shadows().map(|shadow| (shadow, table.name.clone())))
            .collect();
        // (What a shadow table is shown by depends on another row.)
        let kept = |row: &SchemaRow| {
            let name = row.name.to_ascii_lowercase();
            let table = self.tables.get(&name).filter(|table| table.shown_by.is_none())?;
            let is_same = before.get(&name) == now.get(&name) && table.shadow_of == shadows.get(&name).cloned();
            is_same.then(|| (name, Arc::clone(table)))
        };
        let mut tables: HashMap<String, Arc<Table>> =
            rows.iter().filter(|row| row.kind == "table").filter_map(kept).collect();
        let is_new = |row: &&SchemaRow| !tables.contains_key(&row.table.to_ascii_lowercase());
        let asked: Vec<&SchemaRow> = rows.iter().filter(is_new).collect();
        let mut oracle = Oracle::open(&asked, written_by)?;
        let mut unreadable = Vec::new();
        for row in asked.into_iter().filter(|row| row.kind == "table") {
            let Some(root) = row.root else { continue };
            // A root makes no ordinary table of a virtual one: asking after it would run its module.
            if row.says_virtual() {
                unreadable.push(row.name.clone());
                continue;
            }
            match oracle.table(row, root)? {
                Some(mut table) => {
                    table.shadow_of = shadows.get(&row.name.to_ascii_lowercase()).cloned();
                    tables.insert(row.name.to_ascii_lowercase(), Arc::new(table));
                }
                None => unreadable.push(row.name.clone()),
            }
        }
        let mut shown_tables = HashMap::new();
        for (table, row) in &virtual_tables {
            let content = format!("{}_content", table.name.to_ascii_lowercase());
            let Some(content) = tables.get_mut(&content) else { continue };
            if let Some(shown) = shown(table, row, content).map(Arc::new) {
                shown_tables.insert(table.name.to_ascii_lowercase(), Arc::clone(&shown));
                *content = Arc::new(Table { shown_by: Some(shown), ..Table::clone(content) });
            }
        }
        let virtual_tables = virtual_tables.into_iter().map(|(table, _)| table).collect();
        Ok(Catalogue { rows, written_by, tables, shown: shown_tables, virtual_tables, shadows, unreadable })
    }

    /// The rows of `sqlite_schema` that the catalogue was built from, in their order.
    #[must_use]
    pub fn rows(&self) -> &[SchemaRow] {
        &self.rows
    }

    /// The ordinary table with this name, compared as SQLite compares names.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Arc<Table>> {
        self.tables.get(&name.to_ascii_lowercase())
    }

    /// All ordinary tables, SQLite's own (`sqlite_sequence` …) and shadow tables included, in no order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables.values()
    }

    /// The virtual table whose content this table holds, if it is a shadow table.
    #[must_use]
    pub fn shadow_of(&self, name: &str) -> Option<&str> {
        self.shadows.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    /// Whether rows of this table travel to other nodes: not SQLite's own tables, not shadow tables.
    #[must_use]
    pub fn is_replicated(&self, table: &Table) -> bool {
        !table.is_internal() && table.shadow_of.is_none()
    }

    /// The table of this name whose rows can be read and written by SQL: an ordinary one, or a virtual one that shows the rows of a shadow
    /// table.
    #[must_use]
    pub fn written_table(&self, name: &str) -> Option<&Arc<Table>> {
        self.table(name).or_else(|| self.shown.get(&name.to_ascii_lowercase()))
    }

    /// The virtual tables that show the rows of a shadow table, in no order.
    pub fn shown_tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.shown.values()
    }

    /// The virtual tables, in the order of the schema.
    #[must_use]
    pub fn virtual_tables(&self) -> &[VirtualTable] {
        &self.virtual_tables
    }

    /// Tables whose definition SQLite could not parse: their rows cannot be decoded.
    #[must_use]
    pub fn unreadable(&self) -> &[String] {
        &self.unreadable
    }
}

/// The rows of each table and of its indexes, by the table's name in lower case.
fn by_table(rows: &[SchemaRow]) -> HashMap<String, Vec<&SchemaRow>> {
    let mut tables: HashMap<String, Vec<&SchemaRow>> = HashMap::new();
    for row in rows.iter().filter(|row| row.kind == "table" || row.kind == "index") {
        tables.entry(row.table.to_ascii_lowercase()).or_default().push(row);
    }
    tables
}

/// The virtual table as one that shows the rows of its shadow table; `None` where they do not stand there as they are.
fn shown(table: &VirtualTable, row: &SchemaRow, content: &Table) -> Option<Table> {
    // The first column is the rowid. FTS3 and FTS4 put a number before the names of the others.
    let is_content = content.identity == Identity::RowidAlias(0) && content.columns.len() == table.columns.len() + 1;
    if table.content != Content::Own || !is_content {
        return None;
    }
    let column = |(name, column): (&String, &Column)| Column {
        name: name.clone(),
        declared_type: String::new(),
        affinity: Affinity::None,
        not_null: false,
        strict: None,
        ..column.clone()
    };
    let columns: Vec<Column> = table.columns.iter().zip(content.columns.iter().skip(1)).map(column).collect();
    Some(Table {
        name: table.name.clone(),
        sql: row.sql.clone().unwrap_or_default(),
        root: content.root,
        record_columns: (0..columns.len()).collect(),
        columns,
        identity: Identity::Rowid,
        without_rowid: false,
        rowid_name: Some("rowid"),
        autoincrement: false,
        shadow_of: None,
        shown_by: None,
        is_virtual: true,
        first_name: None,
        uniques: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::super::table::{Collation, KeyColumn};
    use super::*;
    use crate::format::Value;

    fn catalogue(statements: &[&str]) -> Catalogue {
        let connection = Connection::open_in_memory().unwrap();
        for statement in statements {
            connection.execute_batch(statement).unwrap();
        }
        Catalogue::build(rows_of(&connection), u32::MAX).unwrap()
    }

    fn rows_of(connection: &Connection) -> Vec<SchemaRow> {
        let mut query = connection.prepare("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema").unwrap();
        let rows = query
            .query_map([], |row| {
                Ok(SchemaRow {
                    kind: row.get(0)?,
                    name: row.get(1)?,
                    table: row.get(2)?,
                    root: PageNo::new(row.get(3)?),
                    sql: row.get(4)?,
                })
            })
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn a_schema_that_changes_is_known_as_one_that_is_seen_at_once() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE stays(a INTEGER PRIMARY KEY, b DEFAULT 2.0)").unwrap();
        let mut catalogue = Catalogue::build(rows_of(&connection), u32::MAX).unwrap();
        for statement in [
            "CREATE TABLE t(k TEXT PRIMARY KEY, a, b)",
            "CREATE UNIQUE INDEX i ON t(a)",
            "ALTER TABLE t RENAME COLUMN a TO c",
            "CREATE VIRTUAL TABLE f USING fts5(x)",
            "ALTER TABLE t RENAME TO T2",
            "DROP INDEX i",
            "DROP TABLE f",
            "CREATE TABLE f_data(x)",
            "DROP TABLE t2; CREATE TABLE t(k INT PRIMARY KEY) WITHOUT ROWID",
            "ALTER TABLE t ADD COLUMN d DEFAULT 7",
        ] {
            connection.execute_batch(statement).unwrap();
            let next = catalogue.build_next(rows_of(&connection), u32::MAX).unwrap();
            let all = Catalogue::build(rows_of(&connection), u32::MAX).unwrap();
            let known = |catalogue: &Catalogue| {
                let mut tables: Vec<String> = catalogue.tables().map(|table| format!("{table:?}")).collect();
                tables.sort();
                (tables, catalogue.shown.len(), catalogue.shadows.clone(), catalogue.unreadable.clone())
            };
            assert_eq!(known(&next), known(&all), "{statement}");
            assert!(
                Arc::ptr_eq(next.table("stays").unwrap(), catalogue.table("stays").unwrap()),
                "it is not asked again"
            );
            catalogue = next;
        }
        let older = catalogue.build_next(rows_of(&connection), 3_045_000).unwrap();
        assert_eq!(
            older.table("stays").unwrap().columns[1].default,
            Value::Integer(2),
            "it means something else there"
        );
    }

    #[test]
    fn keys_are_told_apart_as_sqlite_does() {
        let catalogue = catalogue(&[
            "CREATE TABLE alias(a, id INTEGER PRIMARY KEY AUTOINCREMENT)",
            "CREATE TABLE int_key(id INT PRIMARY KEY)",
            "CREATE TABLE desc_key(id INTEGER PRIMARY KEY DESC)",
            "CREATE TABLE none(a, rowid, oid)",
            "CREATE TABLE w(a, b TEXT COLLATE NOCASE, c REAL, v AS (a + 1), PRIMARY KEY(c, b)) WITHOUT ROWID",
        ]);
        let table = |name| catalogue.table(name).unwrap().clone();
        assert_eq!(table("ALIAS").identity, Identity::RowidAlias(1));
        assert!(table("alias").autoincrement);
        assert!(matches!(table("int_key").identity, Identity::Declared(_)));
        assert!(matches!(table("desc_key").identity, Identity::Declared(_)));
        assert_eq!(table("none").identity, Identity::Rowid);
        assert_eq!(table("none").rowid_name, Some("_rowid_"));
        let w = table("w");
        assert!(w.without_rowid);
        assert_eq!(w.record_columns, [2, 1, 0]);
        assert_eq!(w.columns.len(), 3, "virtual columns are not stored");
        let Identity::Declared(key) = &w.identity else { panic!("{w:?}") };
        assert_eq!(key[1], KeyColumn { column: 1, collation: Collation::NoCase });
    }

    #[test]
    fn names_and_functions_of_the_application_do_not_matter() {
        let rows = vec![
            SchemaRow {
                kind: "table".into(),
                name: "select \"x\"".into(),
                table: "select \"x\"".into(),
                root: PageNo::new(9),
                sql: Some("CREATE TABLE \"select \"\"x\"\"\"(k TEXT COLLATE unicase PRIMARY KEY CHECK(app_fn(k)), g AS (app_fn(k)) STORED) WITHOUT ROWID".into()),
            },
            SchemaRow { kind: "table".into(), name: "bad".into(), table: "bad".into(), root: PageNo::new(3), sql: Some("CREATE TABLE bad(".into()) },
            SchemaRow { kind: "table".into(), name: "good".into(), table: "good".into(), root: PageNo::new(4), sql: Some("CREATE TABLE good(a)".into()) },
            SchemaRow { kind: "table".into(), name: "sqlite_stat1".into(), table: "sqlite_stat1".into(), root: PageNo::new(5), sql: Some("CREATE TABLE sqlite_stat1(tbl,idx,stat)".into()) },
        ];
        let catalogue = Catalogue::build(rows, u32::MAX).unwrap();
        let table = catalogue.table("select \"x\"").unwrap();
        let Identity::Declared(key) = &table.identity else { panic!("{table:?}") };
        assert_eq!(key[0].collation, Collation::Custom("unicase".into()));
        assert!(table.columns[1].generated);
        assert!(catalogue.table("good").is_some());
        assert_eq!(catalogue.table("sqlite_stat1").unwrap().columns.len(), 3);
        assert_eq!(catalogue.unreadable(), ["bad"]);
    }

    #[test]
    fn defaults_are_what_short_records_mean() {
        let catalogue = catalogue(&[
            "CREATE TABLE t(a, b REAL DEFAULT 3, c TEXT DEFAULT 12, d DEFAULT x'00', e DEFAULT -1.5, f DEFAULT word, g DEFAULT true, h INT DEFAULT '7', i DEFAULT CURRENT_TIMESTAMP, j DEFAULT 2.0, k DEFAULT (1+2), l REAL DEFAULT '2', m NUMERIC DEFAULT 2.0, n DATETIME NOT NULL DEFAULT (current_timestamp))",
        ]);
        let defaults: Vec<_> =
            catalogue.table("t").unwrap().columns.iter().map(|column| column.default.clone()).collect();
        assert_eq!(
            defaults[..8],
            [
                Value::Null,
                Value::Real(3.0),
                Value::Text(b"12".to_vec()),
                Value::Blob(vec![0]),
                Value::Real(-1.5),
                Value::Text(b"word".to_vec()),
                Value::Integer(1),
                Value::Integer(7),
            ]
        );
        assert_eq!(defaults[8], Value::Null);
        assert_eq!(defaults[9..13], [Value::Real(2.0), Value::Null, Value::Real(2.0), Value::Integer(2)]);
        assert_eq!(defaults[13], Value::Text(b"1970-01-01 00:00:00".to_vec()));
    }

    #[test]
    fn whole_reals_are_integers_to_an_older_sqlite_in_short_records() {
        let row = SchemaRow {
            kind: "table".into(),
            name: "t".into(),
            table: "t".into(),
            root: PageNo::new(2),
            sql: Some(
                "CREATE TABLE t(a, b DEFAULT 2.0, c DEFAULT -1e2, d DEFAULT 2.5, e REAL DEFAULT 2.0, f DEFAULT 1e300)"
                    .into(),
            ),
        };
        let defaults = |written_by| {
            let catalogue = Catalogue::build(vec![row.clone()], written_by).unwrap();
            let table = Arc::clone(catalogue.table("t").unwrap());
            table.columns[1..].iter().map(|column| column.default.clone()).collect::<Vec<_>>()
        };
        let (real, integer) = (Value::Real, Value::Integer);
        assert_eq!(defaults(3_045_000), [integer(2), integer(-100), real(2.5), real(2.0), real(1e300)]);
        assert_eq!(defaults(3_046_000), [real(2.0), real(-100.0), real(2.5), real(2.0), real(1e300)]);
    }

    #[test]
    fn unique_beyond_the_key_is_known_and_shadow_tables_are_named() {
        let catalogue = catalogue(&[
            "CREATE TABLE t(k TEXT PRIMARY KEY, a UNIQUE, b, c COLLATE NOCASE)",
            "CREATE UNIQUE INDEX i ON t(b, c)",
            "CREATE UNIQUE INDEX p ON t(b) WHERE c > 1",
            "CREATE UNIQUE INDEX e ON t(lower(b))",
            "CREATE INDEX plain ON t(c)",
            "CREATE VIRTUAL TABLE f USING fts5(x)",
            "CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
        ]);
        let uniques = &catalogue.table("t").unwrap().uniques;
        assert_eq!(uniques.len(), 4);
        assert_eq!(uniques.iter().filter(|unique| unique.columns.is_none()).count(), 2);
        let i = uniques.iter().find(|unique| unique.name == "i").unwrap();
        assert_eq!(i.columns.as_ref().unwrap()[1].collation, Collation::NoCase);
        assert_eq!(catalogue.shadow_of("F_data"), Some("f"));
        assert_eq!(catalogue.shadow_of("r_node"), Some("r"));
        assert!(!catalogue.is_replicated(catalogue.table("f_idx").unwrap()));
        assert!(catalogue.is_replicated(catalogue.table("t").unwrap()));
    }
}
