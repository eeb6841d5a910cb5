//! Whether rows of one table pass their filters, as SQLite's WHERE has it.
//!
//! SQLite itself is asked, in memory: the table is made there by its own definition, holds the row for a moment, and `SELECT … WHERE` tells. So
//! affinities, collations, generated columns and NULL count as they do in the database. (Text is compared as in a database of UTF-8, on all
//! nodes alike.)

use std::cmp::Ordering;

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::Null;

use super::bound::Bound;
use super::row_filter::{ROWID_NAMES, RowFilter, RowFilterError, RowFilters, open, quoted};
use super::table::{Identity, Table};
use crate::format::Value;

/// Functions and collations of the application's that the definition of one table may have.
const UNKNOWN_MAX: usize = 32;

/// The filters of one table, ready to be asked.
#[derive(Debug)]
pub struct RowTest {
    connection: Connection,
    table: String,
    text: String,
    insert: String,
    delete: String,
    select: String,
    /// For each stored column whether it is generated, and for each that is not, whether the answer can depend on it.
    generated: Vec<bool>,
    needed: Vec<bool>,
    /// The rowid is the key, and is given with the row.
    by_rowid: bool,
}

impl RowFilters {
    /// What tells the rows of a table; `None` where it has no filter.
    ///
    /// # Errors
    /// [`RowFilterError::Table`]: a column is not there, or the rows cannot be told.
    pub fn test(&self, table: &Table) -> Result<Option<RowTest>, RowFilterError> {
        let filters = self.of(&table.name);
        if filters.is_empty() { Ok(None) } else { RowTest::new(&filters, table).map(Some) }
    }
}

impl RowTest {
    fn new(filters: &[&RowFilter], table: &Table) -> Result<RowTest, RowFilterError> {
        let text = filters.iter().map(|filter| filter.text()).collect::<Vec<_>>().join("; ");
        let bad = |why: String| RowFilterError::Table { text: text.clone(), table: table.name.clone(), why };
        let said = |error: rusqlite::Error| bad(error.to_string());
        let connection = open().map_err(said)?;
        let written: Vec<&str> =
            table.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str()).collect();
        let list = written.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
        // SQLite's own tables cannot be made, and virtual ones would run code: their columns have no affinity here.
        let is_plain = table.sql.is_empty() || table.is_internal() || table.is_virtual;
        let name = quoted(&name_of(table));
        let create = if is_plain { format!("CREATE TABLE {name}({list})") } else { table.sql.clone() };
        let has_unknown = create_table(&connection, &create).map_err(said)?;

        let names = filters.iter().flat_map(|filter| &filter.columns);
        // Generated columns that are not stored are among them, and names of the rowid only where a column has them.
        let columns = columns_of(&connection, &name_of(table)).map_err(said)?;
        let is_column = |name: &str| columns.iter().any(|column| column.eq_ignore_ascii_case(name));
        let of_rowid = |name: &&String| ROWID_NAMES.contains(&name.to_ascii_lowercase().as_str()) && !is_column(name);
        let names_rowid = names.clone().any(|name| of_rowid(&name));
        let by_rowid = names_rowid && table.identity == Identity::Rowid;
        if names_rowid && !by_rowid && !matches!(table.identity, Identity::RowidAlias(_)) {
            return Err(bad("its rowid is no part of the row, and differs from node to node".to_owned()));
        }
        // A generated column may hang on any other.
        let is_written = |name: &&String| written.iter().any(|column| column.eq_ignore_ascii_case(name));
        let names_generated = names.clone().any(|name| !is_written(&name) && is_column(name));
        if names_generated && has_unknown {
            return Err(bad("its definition has a function that only the application has".to_owned()));
        }
        let is_named = |column: &str| names.clone().any(|name| name.eq_ignore_ascii_case(column));
        let needed = written.iter().map(|column| names_generated || is_named(column)).collect();

        let all = filters.iter().map(|filter| format!("({}\n)", filter.expression)).collect::<Vec<_>>().join(" AND ");
        let select = format!("SELECT 1 FROM {name} WHERE {all}");
        // Before collations that are not here get a stand-in: what is compared under one cannot be told.
        connection.prepare(&select).map(drop).map_err(said)?;
        for filter in filters.iter().filter(|filter| filter.has_time && !table.is_internal()) {
            // There SQLite refuses to read the clock, whatever the row says.
            let index =
                filter.index().replacen("woodchuck_index", &format!("woodchuck_{}", filter.expression.len()), 1);
            connection.execute_batch(&index.replacen("CREATE INDEX", "CREATE INDEX IF NOT EXISTS", 1)).map_err(said)?;
        }
        let marks = (1..=written.len()).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
        let (list, marks) = match (by_rowid, table.rowid_name) {
            (true, Some(rowid)) => (format!("{list}, {rowid}"), format!("{marks}, ?{}", written.len() + 1)),
            (true, None) => return Err(bad("its columns hide its rowid".to_owned())),
            (false, _) => (list, marks),
        };
        let insert = format!("INSERT INTO {name}({list}) VALUES({marks})");
        prepare_insert(&connection, &insert).map_err(said)?;
        connection.execute_batch("BEGIN").map_err(said)?;
        Ok(RowTest {
            insert,
            delete: format!("DELETE FROM {name}"),
            select,
            table: table.name.clone(),
            text,
            generated: table.columns.iter().map(|column| column.generated).collect(),
            needed,
            by_rowid,
            connection,
        })
    }

    /// Whether a row passes. It has a value for each stored column, or for each that is not generated; `rowid` is that of a table without a
    /// key. A row for which the expression has no answer (JSON that is none, a time that is `now`) does not: on its account nothing may stop, here or
    /// elsewhere.
    ///
    /// # Errors
    /// [`RowFilterError::Table`] with SQLite's words, when SQLite fails for another reason than the row.
    pub fn passes(&self, rowid: Option<i64>, row: &[Value]) -> Result<bool, RowFilterError> {
        let ask = || -> rusqlite::Result<bool> {
            let mut insert = self.connection.prepare_cached(&self.insert)?;
            let is_stored = row.len() == self.generated.len();
            let values = row.iter().enumerate();
            let written = values.filter(|(i, _)| !is_stored || self.generated.get(*i) != Some(&true)).map(|(_, v)| v);
            for (i, (value, needed)) in written.zip(&self.needed).enumerate() {
                match value {
                    // What is not asked about need not be copied.
                    Value::Text(_) if !needed => insert.raw_bind_parameter(i + 1, "")?,
                    Value::Blob(_) if !needed => insert.raw_bind_parameter(i + 1, &[][..] as &[u8])?,
                    value => insert.raw_bind_parameter(i + 1, Bound(value))?,
                }
            }
            if self.by_rowid {
                match rowid {
                    Some(rowid) => insert.raw_bind_parameter(self.needed.len() + 1, rowid)?,
                    None => insert.raw_bind_parameter(self.needed.len() + 1, Null)?,
                }
            }
            self.connection.prepare_cached(&self.delete)?.execute([])?;
            insert.raw_execute()?;
            self.connection.prepare_cached(&self.select)?.exists([])
        };
        match ask() {
            Err(error) if is_of_row(&error) => Ok(false),
            answer => answer.map_err(|error| RowFilterError::Table {
                text: self.text.clone(),
                table: self.table.clone(),
                why: error.to_string(),
            }),
        }
    }
}

/// Whether a statement failed because of the values that it was given: `SQLITE_ERROR` is what functions answer.
fn is_of_row(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{TooBig, TypeMismatch, Unknown};
    matches!(error.sqlite_error_code(), Some(Unknown | TypeMismatch | TooBig))
}

fn columns_of(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut found = connection.prepare("SELECT name FROM pragma_table_xinfo(?1)")?;
    found.query_map([table], |row| row.get(0))?.collect()
}

fn name_of(table: &Table) -> String {
    if table.is_internal() { format!("woodchuck_{}", table.name) } else { table.name.clone() }
}

/// Makes the table. Functions of the application's in it get a stand-in: whether there were any. Its collations get one for as long as that
/// takes: UNIQUE asks for them.
fn create_table(connection: &Connection, sql: &str) -> rusqlite::Result<bool> {
    let (mut has_unknown, mut collations) = (false, Vec::new());
    for _ in 0..UNKNOWN_MAX {
        let Err(error) = connection.execute_batch(sql) else { break };
        let text = error.to_string();
        let name = |what: &str| {
            let rest = text.split(what).nth(1)?;
            Some(rest.split(" in ").next().unwrap_or(rest).trim().to_owned())
        };
        if let Some(name) = name("no such function: ") {
            let flags = FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_UTF8;
            connection.create_scalar_function(name.as_str(), -1, flags, |_| Ok(Null))?;
            has_unknown = true;
        } else if let Some(name) = name("no such collation sequence: ") {
            connection.create_collation(name.as_str(), |_, _| Ordering::Equal)?;
            collations.push(name);
        } else {
            return Err(error);
        }
    }
    for name in collations {
        connection.remove_collation(name.as_str())?;
    }
    Ok(has_unknown)
}

/// Collations of the application's get a stand-in: one row alone is in nobody's way.
fn prepare_insert(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.collation_needed(|connection, name| connection.create_collation(name, |_, _| Ordering::Equal))?;
    connection.prepare(sql).map(drop)
}

#[cfg(test)]
mod tests {
    use rusqlite::types::ValueRef;

    use super::super::{Catalogue, SchemaRow};
    use super::*;
    use crate::format::PageNo;

    fn tables(connection: &Connection) -> Catalogue {
        let mut query = connection.prepare("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema").unwrap();
        let rows = query.query_map([], |row| {
            Ok(SchemaRow {
                kind: row.get(0)?,
                name: row.get(1)?,
                table: row.get(2)?,
                root: PageNo::new(row.get(3)?),
                sql: row.get(4)?,
            })
        });
        Catalogue::build(rows.unwrap().collect::<Result<_, _>>().unwrap(), u32::MAX).unwrap()
    }

    fn value(value: ValueRef<'_>) -> Value {
        match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(v) => Value::Integer(v),
            ValueRef::Real(v) => Value::Real(v),
            ValueRef::Text(v) => Value::Text(v.to_vec()),
            ValueRef::Blob(v) => Value::Blob(v.to_vec()),
        }
    }

    /// Rows of random types meet expressions of every kind, and each answer is that of SQLite's own WHERE.
    #[test]
    fn rows_pass_as_sqlites_where_has_it() {
        let seed: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
        let mut state = seed | 1;
        let mut next = move |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let values = [
            "NULL",
            "0",
            "1",
            "-1",
            "2",
            "12",
            "1.0",
            "1.5",
            "-0.0",
            "9e999",
            "'1'",
            "'a'",
            "'A'",
            "'a  '",
            "'b'",
            "''",
            "'12'",
            "' 12'",
            "'1e1'",
            "x''",
            "x'61'",
            "x'00ff'",
            "CAST(x'ff61' AS TEXT)",
            "9007199254740993",
            "'now'",
        ];
        let kinds = [
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b TEXT COLLATE NOCASE, c INT, d REAL, e BLOB, f NUMERIC COLLATE RTRIM, \"odd \"\"name\" TEXT)",
            "CREATE TABLE t(a, b TEXT COLLATE NOCASE, c INT, d REAL, e BLOB, f NUMERIC COLLATE RTRIM, \"odd \"\"name\", id AS (c + 1) STORED, v AS (a || b))",
            "CREATE TABLE t(b TEXT COLLATE NOCASE, id INT, a, c INT, d REAL, e BLOB, f COLLATE RTRIM, \"odd \"\"name\", PRIMARY KEY(id)) WITHOUT ROWID",
            "CREATE TABLE t(a ANY, b TEXT COLLATE NOCASE, c ANY, d ANY, e ANY, f ANY COLLATE RTRIM, \"odd \"\"name\" ANY, id INTEGER PRIMARY KEY) STRICT",
        ];
        let columns = ["a", "b", "c", "d", "e", "f", "\"odd \"\"name\"", "id", "t.a", "[c]", "`d`"];
        let operators =
            ["=", "<>", "<", ">=", "IS", "IS NOT", "IS NOT DISTINCT FROM", "||", "+", "AND", "OR", "==", "%", "&"];
        let mut asked = [0_u32; 2];
        for kind in kinds {
            let database = Connection::open_in_memory().unwrap();
            database.execute_batch(kind).unwrap();
            for i in 0..60 {
                let mut pick = || values[next(values.len() as u64) as usize];
                let text = format!(
                    "INSERT OR IGNORE INTO t(a, b, c, d, e, f, \"odd \"\"name\"{}) VALUES({}, {}, {}, {}, {}, {}, {}{})",
                    if kind.contains("STORED") { "" } else { ", id" },
                    pick(),
                    pick(),
                    pick(),
                    pick(),
                    pick(),
                    pick(),
                    pick(),
                    if kind.contains("STORED") { String::new() } else { format!(", {i}") }
                );
                // A STRICT table refuses some.
                let _ = database.execute_batch(&text);
            }
            let catalogue = tables(&database);
            let table = catalogue.table("t").unwrap();
            for _ in 0..300 {
                let term = |next: &mut dyn FnMut(u64) -> u64| {
                    let column = columns[next(columns.len() as u64) as usize];
                    match next(10) {
                        0 => format!("{column} COLLATE BINARY"),
                        1 => format!("CAST({column} AS TEXT)"),
                        2 => values[next(values.len() as u64 - 1) as usize].to_owned(),
                        3 => format!("-{column}"),
                        4 => format!("lower({column})"),
                        5 => format!("length({column})"),
                        6 => format!("coalesce({column}, 1)"),
                        _ => column.to_owned(),
                    }
                };
                let (x, y, z) = (term(&mut next), term(&mut next), term(&mut next));
                let operator = operators[next(operators.len() as u64) as usize];
                let text = match next(8) {
                    0 => format!("{x} BETWEEN {y} AND {z}"),
                    1 => format!("{x} NOT IN ({y}, {z}, 'a')"),
                    2 => format!("CASE WHEN {x} {operator} {y} THEN {z} ELSE 0 END"),
                    3 => format!("{x} LIKE 'a%' OR {y} GLOB '[a-z]*'"),
                    4 => format!("NOT ({x} {operator} {y})"),
                    5 => format!("{x} IS NULL OR {y} {operator} {z}"),
                    _ => format!("({x}) {operator} ({y})"),
                };
                let filters = RowFilters::parse(&[format!("T: {text}")]).unwrap_or_else(|e| panic!("SEED={seed} {e}"));
                let test = filters.test(table).unwrap_or_else(|e| panic!("SEED={seed} {e}")).unwrap();
                let names: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
                let sql = format!("SELECT {}, {text} FROM t", names.join(", "));
                let mut query = database.prepare(&sql).unwrap();
                let mut rows = query.query([]).unwrap();
                while let Some(row) = rows.next().unwrap() {
                    let stored: Vec<Value> = (0..names.len()).map(|i| value(row.get_ref(i).unwrap())).collect();
                    let sqlite = "SELECT ?1 IS TRUE";
                    let want: bool = database
                        .query_row(sqlite, [Bound(&value(row.get_ref(names.len()).unwrap()))], |row| row.get(0))
                        .unwrap();
                    let found = test.passes(None, &stored).unwrap();
                    assert_eq!(found, want, "SEED={seed} {kind}: {text} of {stored:?}");
                    asked[usize::from(want)] += 1;
                }
            }
        }
        assert!(asked[0] > 5_000 && asked[1] > 5_000, "{asked:?}");
    }

    #[test]
    fn what_is_no_expression_of_a_row_is_refused_with_words() {
        for (text, why) in [
            ("t", "not `table: expression`"),
            ("t:", "not `table: expression`"),
            (": a = 1", "not `table: expression`"),
            ("t u: a = 1", "not `table: expression`"),
            ("t: a =", "Expected"),
            ("t: a = 1; DROP TABLE t", "follows the expression"),
            ("t: a = 1) OR (1", "follows the expression"),
            ("t: a IN (SELECT 1)", "subquery"),
            ("t: EXISTS (SELECT 1)", "subquery"),
            ("t: a = ?1", "parameter"),
            ("t: a = :x", "arameter"),
            ("t: a > random()", "non-deterministic"),
            ("t: a > CURRENT_TIMESTAMP", "non-deterministic"),
            ("t: a > date('now')", "another answer"),
            ("t: a > date()", "reads the clock"),
            ("t: strftime('%s') > a", "reads the clock"),
            ("t: count(*) > 1", "not understood"),
            ("t: max(a) > 1", "aggregate"),
            ("t: row_number() OVER () = 1", "window"),
            ("t: mine(a)", "no such function"),
            ("t: u.a = 1", "no column of t"),
        ] {
            let error = RowFilter::parse(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn a_table_says_which_columns_it_lacks_and_which_rowid_it_has() {
        let database = Connection::open_in_memory().unwrap();
        database.create_collation("mine", str::cmp).unwrap();
        database
            .execute_batch(
                "CREATE TABLE alias(id INTEGER PRIMARY KEY, a); CREATE TABLE bare(a); CREATE TABLE keyed(a TEXT PRIMARY KEY);
                 CREATE TABLE own(a, b COLLATE mine, c CHECK (a > 0), UNIQUE(b)); CREATE TABLE \"sp ace\"(\"x y\")",
            )
            .unwrap();
        let catalogue = tables(&database);
        let test = |text: &str| {
            let filters = RowFilters::parse(&[text]).unwrap();
            let table = catalogue.table(&filters.iter().next().unwrap().table).unwrap().clone();
            filters.test(&table).map(Option::unwrap)
        };
        let one = [Value::Integer(1), Value::Null];
        assert!(test("alias: rowid = 1").unwrap().passes(None, &one).unwrap());
        assert!(!test("alias: oid = 2").unwrap().passes(None, &one).unwrap());
        assert!(test("bare: _rowid_ = 7").unwrap().passes(Some(7), &one[..1]).unwrap());
        assert!(test("keyed: rowid = 7").unwrap_err().to_string().contains("differs from node to node"));
        assert!(test("alias: b = 1").unwrap_err().to_string().contains("no such column: b"));
        assert!(test("alias: \"b\" = 1").unwrap_err().to_string().contains("no such column"));
        assert!(test("own: b = 'x'").unwrap_err().to_string().contains("collation"));
        let row = [Value::Integer(0), Value::Text(b"x".to_vec()), Value::Null];
        assert!(test("own: a = 0").unwrap().passes(None, &row).unwrap());
        assert!(test("\"sp ace\": \"x y\" = 1").unwrap().passes(None, &one[..1]).unwrap());
    }

    #[test]
    fn a_row_for_which_the_expression_has_no_answer_does_not_pass() {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch("CREATE TABLE t(a)").unwrap();
        let json = RowFilters::parse(&["t: json_extract(a, '$.x') IS NOT 2"]).unwrap();
        let test = json.test(tables(&database).table("t").unwrap()).unwrap().unwrap();
        for (text, passes) in [("{\"x\":1}", true), ("{\"x\":", false), ("{\"x\":2}", false), ("{}", true)] {
            assert_eq!(test.passes(None, &[Value::Text(text.into())]).unwrap(), passes, "{text}");
        }
        let filters = RowFilters::parse(&["t: date(a) > '2000-01-01'"]).unwrap();
        let test = filters.test(tables(&database).table("t").unwrap()).unwrap().unwrap();
        assert!(test.passes(None, &[Value::Text(b"2024-05-06".to_vec())]).unwrap());
        assert!(!test.passes(None, &[Value::Text(b"now".to_vec())]).unwrap());
        assert!(!test.passes(None, &[Value::Text(b"1999-05-06".to_vec())]).unwrap());
    }
}
