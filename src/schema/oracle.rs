//! SQLite itself, asked what a schema means.
//!
//! The text of a schema is given to an in-memory database as rows of its `sqlite_schema`, and SQLite parses it the way it parses a file's:
//! nothing in it is executed, and functions and collations that only the application has are no obstacle. Virtual tables and views stay
//! out, for asking after them would run code.

use std::collections::HashMap;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};

use super::catalogue::{CatalogueError, SchemaRow};
use super::filler::{Filled, Filler};
use super::strict::StrictType;
use super::table::{Affinity, Collation, Column, Identity, KeyColumn, Table, UniqueIndex};
use crate::format::{PageNo, Value};

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

/// The in-memory database that knows the schema.
pub(super) struct Oracle {
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
    pub(super) fn open(rows: &[&SchemaRow], written_by: u32) -> Result<Oracle, CatalogueError> {
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

    pub(super) fn table(&mut self, row: &SchemaRow, root: PageNo) -> Result<Option<Table>, CatalogueError> {
        let name = oracle_name(row);
        let strict = self
            .connection
            .prepare_cached("SELECT strict FROM pragma_table_list(?1) WHERE schema = 'main'")?
            .query_map([&name], |row| row.get::<_, bool>(0))?
            .next()
            .transpose()?;
        let Some(strict) = strict else { return Ok(None) };
        let declared = self.columns(&name, row.sql.as_deref().unwrap_or_default(), strict)?;
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
            first_name: None,
            uniques,
        }))
    }

    fn columns(&self, table: &str, sql: &str, strict: bool) -> Result<Vec<DeclaredColumn>, CatalogueError> {
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
        let filler = Filler::new(sql);
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
            let generated = hidden == Hidden::Stored;
            let strict = StrictType::of_declared(&declared_type).filter(|_| strict);
            // Rows that had no such column cannot have NULL in it.
            let default = match default {
                Value::Null if not_null && hidden == Hidden::No => {
                    let (name, declared_type) = (name.as_str(), declared_type.as_str());
                    filler.value(&Filled { name, declared_type, affinity, strict, begins_at })
                }
                default => default,
            };
            let definition = Column { name, declared_type, affinity, default, not_null, strict, generated };
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
pub(super) fn affinity_of(declared_type: &str, strict: bool) -> Affinity {
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
