//! The table catalogue, asked from SQLite itself.
//!
//! The text of a schema is given to an in-memory database as rows of its `sqlite_schema`, and SQLite parses it the way it parses a file's:
//! nothing in it is executed, and functions and collations that only the application has are no obstacle. Virtual tables and views stay
//! out, for asking after them would run code.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};

use super::table::{Affinity, Collation, Column, Identity, KeyColumn, Table, UniqueIndex};
use super::virtual_table::{Content, VirtualTable};
use crate::format::{PageNo, Value};

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

    fn says_virtual(&self) -> bool {
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
    tables: HashMap<String, Arc<Table>>,
    /// Virtual tables that show the rows of a shadow table.
    shown: HashMap<String, Arc<Table>>,
    virtual_tables: Vec<VirtualTable>,
    shadows: HashMap<String, String>,
    unreadable: Vec<String>,
}

/// The version from which on a default of 2.0, in a column without an affinity, is a real for records that lack the column. Before, it was
/// the integer 2 (seen with 3.45.0 and 3.46.0).
const WHOLE_REALS_SINCE: u32 = 3_046_000;

/// What a time of now is to rows that come without it: nodes have no now in common, and applications read it as a time.
fn beginning_of_time(default: &str) -> Option<&'static str> {
    match default.to_ascii_uppercase().as_str() {
        "CURRENT_TIMESTAMP" => Some("1970-01-01 00:00:00"),
        "CURRENT_DATE" => Some("1970-01-01"),
        "CURRENT_TIME" => Some("00:00:00"),
        _ => None,
    }
}

/// The most bytes that evaluating a column's default may make: real ones are literals.
const DEFAULT_BYTES_MAX: i32 = 1_000_000;

impl Catalogue {
    /// Builds the catalogue of a schema from the rows of `sqlite_schema`. `written_by` is the version of the SQLite that writes the
    /// database, as its header has it: what a record without a column means depends on it.
    ///
    /// # Errors
    /// [`CatalogueError`] when the in-memory database cannot be made. A table whose text SQLite does not parse is no error; it is listed
    /// by [`Catalogue::unreadable`].
    pub fn build(rows: Vec<SchemaRow>, written_by: u32) -> Result<Catalogue, CatalogueError> {
        let virtual_tables: Vec<(VirtualTable, &SchemaRow)> = rows
            .iter()
            .filter(|row| row.is_virtual_table())
            .filter_map(|row| Some((VirtualTable::parse(&row.name, row.sql.as_deref()?)?, row)))
            .collect();
        let shadows: HashMap<String, String> = virtual_tables
            .iter()
            .flat_map(|(table, _)| table.shadows().map(|shadow| (shadow, table.name.clone())))
            .collect();
        let mut oracle = Oracle::open(&rows, written_by)?;
        let mut tables = HashMap::new();
        let mut unreadable = Vec::new();
        for row in rows.iter().filter(|row| row.kind == "table") {
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
        Ok(Catalogue { rows, tables, shown: shown_tables, virtual_tables, shadows, unreadable })
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
        uniques: Vec::new(),
    })
}

/// The in-memory database that knows the schema.
struct Oracle {
    connection: Connection,
    /// Version of the SQLite that writes the database.
    written_by: u32,
}

/// `sqlite_stat1` and its kind are read by SQLite as soon as it sees them, so they are asked about under another name.
fn oracle_name(row: &SchemaRow) -> String {
    let is_statistic = row.name.get(..11).is_some_and(|prefix| prefix.eq_ignore_ascii_case("sqlite_stat"));
    if is_statistic { format!("woodchuck_{}", row.name) } else { row.name.clone() }
}

/// The integer that SQLite's numeric affinity makes of a real, if it makes one.
fn whole(real: f64) -> Value {
    let integer = real as i64;
    if integer as f64 == real && integer > i64::MIN && integer < i64::MAX {
        Value::Integer(integer)
    } else {
        Value::Real(real)
    }
}

impl Oracle {
    fn open(rows: &[SchemaRow], written_by: u32) -> Result<Oracle, CatalogueError> {
        let connection = Connection::open_in_memory()?;
        connection.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_ATTACHED, 0)?;
        connection
            .execute_batch("PRAGMA page_size = 512; PRAGMA writable_schema = ON; CREATE TABLE woodchuck_padding(x)")?;
        // Each schema row needs a root page of its own that exists; what stands on it is never read.
        connection.execute("INSERT INTO woodchuck_padding VALUES (zeroblob(?1))", [(rows.len() as i64 + 8) * 512])?;
        {
            let mut insert = connection.prepare("INSERT INTO sqlite_schema VALUES (?1, ?2, ?3, ?4, ?5)")?;
            let wanted = rows.iter().filter(|row| {
                row.root.is_some() && (row.kind == "table" || row.kind == "index") && !row.says_virtual()
            });
            for (index, row) in wanted.enumerate() {
                let name = oracle_name(row);
                let sql =
                    row.sql.as_deref().map(|sql| sql.replacen(&row.name, &name, if name == row.name { 0 } else { 1 }));
                if row.kind == "index" && sql.is_none() {
                    continue;
                }
                insert.execute(params![row.kind, name, row.table, index as i64 + 3, sql])?;
            }
        }
        // With writable_schema on, a row that SQLite cannot parse does not keep it from the others.
        let _ = connection.execute_batch("PRAGMA writable_schema = RESET; PRAGMA writable_schema = ON;");
        connection.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH, DEFAULT_BYTES_MAX)?;
        Ok(Oracle { connection, written_by })
    }

    fn table(&mut self, row: &SchemaRow, root: PageNo) -> Result<Option<Table>, CatalogueError> {
        let name = oracle_name(row);
        let strict = self
            .connection
            .prepare_cached("SELECT strict FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE")?
            .query_map([&name], |row| row.get::<_, bool>(0))?
            .next()
            .transpose()?;
        let Some(strict) = strict else { return Ok(None) };
        let declared = self.columns(&name, strict)?;
        let indexes = self.indexes(&name)?;
        if declared.is_empty() {
            return Ok(None);
        }

        // The stored columns keep their declared order; cids of the others map to nothing.
        let mut columns = Vec::with_capacity(declared.len());
        let mut stored_index = HashMap::new();
        for column in &declared {
            if column.hidden != Hidden::Virtual {
                stored_index.insert(column.cid, columns.len());
                columns.push(column.definition.clone());
            }
        }
        let key_index = indexes.iter().find(|index| index.origin == "pk");
        let without_rowid = key_index.is_some_and(|index| !index.columns.iter().any(|column| column.cid == -1));
        let identity = match key_index {
            Some(index) => Identity::Declared(index.key_columns(&stored_index).unwrap_or_default()),
            None => {
                let alias =
                    declared.iter().find(|column| column.in_key).and_then(|column| stored_index.get(&column.cid));
                alias.map_or(Identity::Rowid, |column| Identity::RowidAlias(*column))
            }
        };
        let record_columns = match key_index.filter(|_| without_rowid) {
            Some(index) => index.columns.iter().filter_map(|column| stored_index.get(&column.cid).copied()).collect(),
            None => (0..columns.len()).collect(),
        };
        let uniques = indexes
            .iter()
            .filter(|index| index.unique && index.origin != "pk")
            .map(|index| UniqueIndex {
                name: index.name.clone(),
                columns: if index.partial { None } else { index.key_columns(&stored_index) },
            })
            .collect();
        let hides = |alias: &&str| !declared.iter().any(|column| column.definition.name.eq_ignore_ascii_case(alias));
        let rowid_name = if without_rowid { None } else { ["rowid", "_rowid_", "oid"].into_iter().find(hides) };
        let sql = row.sql.clone().unwrap_or_default();
        let autoincrement = matches!(identity, Identity::RowidAlias(_)) && says_autoincrement(&sql);
        Ok(Some(Table {
            name: row.name.clone(),
            sql,
            root,
            columns,
            record_columns,
            identity,
            without_rowid,
            rowid_name,
            autoincrement,
            shadow_of: None,
            shown_by: None,
            is_virtual: false,
            uniques,
        }))
    }

    fn columns(&self, table: &str, strict: bool) -> Result<Vec<DeclaredColumn>, CatalogueError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT cid, name, type, dflt_value, pk, hidden, \"notnull\" FROM pragma_table_xinfo(?1, 'main')",
        )?;
        let rows = statement.query_map([table], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                row.get::<_, Option<String>>(3)?,
                row.get::<_, i64>(4)?,
                row.get::<_, i64>(5)?,
                row.get::<_, bool>(6)?,
            ))
        })?;
        // Asking for a default changes a schema, and no statement may be under way then.
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let mut columns = Vec::with_capacity(rows.len());
        for (cid, name, declared_type, default, key, hidden, not_null) in rows {
            let affinity = affinity_of(&declared_type, strict);
            let hidden = match hidden {
                0 => Hidden::No,
                3 => Hidden::Stored,
                _ => Hidden::Virtual,
            };
            let begins_at = default.as_deref().and_then(beginning_of_time);
            let default = match default {
                Some(expression) if hidden == Hidden::No => self.default(&expression, affinity),
                _ => Value::Null,
            };
            // Rows that had no such column cannot have NULL in it: an empty value then, on all nodes alike.
            let default = match (default, affinity) {
                (Value::Null, _) if not_null && begins_at.is_some() => {
                    Value::Text(begins_at.unwrap_or_default().into())
                }
                (Value::Null, Affinity::Text) if not_null => Value::Text(Vec::new()),
                (Value::Null, Affinity::None) if not_null => Value::Blob(Vec::new()),
                (Value::Null, Affinity::Real) if not_null => Value::Real(0.0),
                (Value::Null, Affinity::Numeric | Affinity::Integer) if not_null => Value::Integer(0),
                (default, _) => default,
            };
            let generated = hidden == Hidden::Stored;
            let definition = Column { name, declared_type, affinity, default, not_null, generated };
            columns.push(DeclaredColumn { cid, definition, in_key: key > 0, hidden });
        }
        Ok(columns)
    }

    /// What a column's DEFAULT gives to records that are too short for the column. Only constants can come to that; for anything that
    /// cannot be evaluated alone the answer is NULL, and no record asks for it.
    fn default(&self, expression: &str, affinity: Affinity) -> Value {
        let kind = match affinity {
            Affinity::None => "",
            Affinity::Text => "TEXT",
            Affinity::Numeric => "NUMERIC",
            Affinity::Integer => "INTEGER",
            Affinity::Real => "REAL",
        };
        // SQLite can read such a value otherwise than it stores it, so it is asked for a record that is too short.
        let ask = |clause: &str| {
            self.connection.execute_batch(&format!(
                "CREATE TEMP TABLE short(a); INSERT INTO temp.short VALUES(0);
                 ALTER TABLE temp.short ADD COLUMN b {kind} DEFAULT {clause}"
            ))?;
            self.connection.query_row("SELECT b FROM temp.short", [], |row| Ok(value_of(row.get_ref(0)?)))
        };
        let done = |found| self.connection.execute_batch("DROP TABLE IF EXISTS temp.short").and(found);
        // The text of an expression comes without its parentheses.
        done(ask(expression)).or_else(|_| done(ask(&format!("({expression}\n)")))).map_or(Value::Null, |value| {
            match value {
                Value::Real(real) if affinity == Affinity::None && self.written_by < WHOLE_REALS_SINCE => whole(real),
                value => value,
            }
        })
    }

    fn indexes(&self, table: &str) -> Result<Vec<DeclaredIndex>, CatalogueError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT name, \"unique\", origin, partial FROM pragma_index_list(?1, 'main') ORDER BY seq",
        )?;
        let rows = statement.query_map([table], |row| {
            Ok(DeclaredIndex {
                name: row.get(0)?,
                unique: row.get(1)?,
                origin: row.get(2)?,
                partial: row.get(3)?,
                columns: Vec::new(),
            })
        })?;
        let mut indexes = rows.collect::<Result<Vec<_>, _>>()?;
        for index in &mut indexes {
            let mut statement = self
                .connection
                .prepare_cached("SELECT cid, coll, key FROM pragma_index_xinfo(?1, 'main') ORDER BY seqno")?;
            let rows = statement.query_map([&index.name], |row| {
                Ok(IndexColumn {
                    cid: row.get(0)?,
                    collation: collation_of(&row.get::<_, Option<String>>(1)?.unwrap_or_default()),
                    key: row.get(2)?,
                })
            })?;
            index.columns = rows.collect::<Result<_, _>>()?;
        }
        Ok(indexes)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hidden {
    No,
    Virtual,
    Stored,
}

struct DeclaredColumn {
    cid: i64,
    definition: Column,
    in_key: bool,
    hidden: Hidden,
}

struct IndexColumn {
    cid: i64,
    collation: Collation,
    key: bool,
}

struct DeclaredIndex {
    name: String,
    unique: bool,
    origin: String,
    partial: bool,
    columns: Vec<IndexColumn>,
}

impl DeclaredIndex {
    /// The indexed columns; `None` when one of them is an expression or not stored.
    fn key_columns(&self, stored_index: &HashMap<i64, usize>) -> Option<Vec<KeyColumn>> {
        self.columns
            .iter()
            .filter(|column| column.key)
            .map(|column| {
                let index = *stored_index.get(&column.cid)?;
                Some(KeyColumn { column: index, collation: column.collation.clone() })
            })
            .collect()
    }
}

fn collation_of(name: &str) -> Collation {
    match name.to_ascii_uppercase().as_str() {
        "BINARY" | "" => Collation::Binary,
        "NOCASE" => Collation::NoCase,
        "RTRIM" => Collation::RTrim,
        _ => Collation::Custom(name.to_owned()),
    }
}

/// The affinity of a declared type. Source: <https://sqlite.org/datatype3.html>, section 3.1.
fn affinity_of(declared_type: &str, strict: bool) -> Affinity {
    let upper = declared_type.to_ascii_uppercase();
    let has = |part: &str| upper.contains(part);
    if strict && upper == "ANY" {
        Affinity::None
    } else if has("INT") {
        Affinity::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Affinity::Text
    } else if has("BLOB") || upper.is_empty() {
        Affinity::None
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// Whether the statement says AUTOINCREMENT outside quotes and comments. SQLite itself keeps the answer to itself.
fn says_autoincrement(sql: &str) -> bool {
    use sqlparser::dialect::SQLiteDialect;
    use sqlparser::tokenizer::{Token, Tokenizer};
    match Tokenizer::new(&SQLiteDialect {}, sql).tokenize() {
        Ok(tokens) => tokens.iter().any(|token| {
            matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("autoincrement"))
        }),
        Err(_) => sql.to_ascii_lowercase().contains("autoincrement"),
    }
}

fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(v) => Value::Integer(v),
        ValueRef::Real(v) => Value::Real(v),
        ValueRef::Text(v) => Value::Text(v.to_vec()),
        ValueRef::Blob(v) => Value::Blob(v.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(statements: &[&str]) -> Catalogue {
        let connection = Connection::open_in_memory().unwrap();
        for statement in statements {
            connection.execute_batch(statement).unwrap();
        }
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
        Catalogue::build(rows.map(Result::unwrap).collect(), u32::MAX).unwrap()
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
