//! SQLite's own answer to what the rows are.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use woodchuck::change::{ChangeSink, Op, RowChange, SchemaChange, TxSpan, canonical_key, row_key};
use woodchuck::format::{PageNo, Row, Value};
use woodchuck::schema::{Catalogue, SchemaRow, Table};

/// Rows of a table by canonical key.
pub type Rows = BTreeMap<Vec<u8>, Row>;

/// Rows before and after by canonical key, where they differ.
type Differences = BTreeMap<Vec<u8>, (Option<Row>, Option<Row>)>;

pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub fn value_of(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(v) => Value::Integer(v),
        ValueRef::Real(v) => Value::Real(v),
        ValueRef::Text(v) => Value::Text(v.to_vec()),
        ValueRef::Blob(v) => Value::Blob(v.to_vec()),
    }
}

/// The catalogue of a database as SQLite tells its schema.
pub fn catalogue(connection: &Connection) -> Catalogue {
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

/// All rows of a table, read with SQL.
pub fn rows(connection: &Connection, table: &Table) -> Rows {
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
    let rowid = table.rowid_name.unwrap_or("NULL");
    let sql = format!("SELECT {rowid}, {} FROM {} NOT INDEXED", columns.join(", "), quoted(&table.name));
    let mut query = connection.prepare_cached(&sql).unwrap();
    let mut cursor = query.query([]).unwrap();
    let mut rows = Rows::new();
    while let Some(row) = cursor.next().unwrap() {
        let rowid: Option<i64> = row.get(0).unwrap();
        let values: Row = (0..table.columns.len()).map(|i| value_of(row.get_ref(i + 1).unwrap())).collect();
        rows.insert(canonical_key(table, &row_key(table, &values, rowid)), values);
    }
    rows
}

/// All rows of all tables, with the tables.
pub fn database(connection: &Connection) -> BTreeMap<String, (Arc<Table>, Rows)> {
    let catalogue = catalogue(connection);
    let tables: Vec<Arc<Table>> = catalogue.tables().cloned().collect();
    tables
        .into_iter()
        .map(|table| (table.name.to_ascii_lowercase(), (Arc::clone(&table), rows(connection, &table))))
        .collect()
}

/// Takes everything that a differ gives.
#[derive(Debug, Default)]
pub struct Recorder {
    pub begun: usize,
    pub committed: usize,
    pub schema: Vec<SchemaChange>,
    pub changes: Vec<RowChange>,
}

impl ChangeSink<std::convert::Infallible> for Recorder {
    fn begin(&mut self, _: &TxSpan) -> Result<(), std::convert::Infallible> {
        self.begun += 1;
        Ok(())
    }
    fn schema(&mut self, change: SchemaChange) -> Result<(), std::convert::Infallible> {
        self.schema.push(change);
        Ok(())
    }
    fn change(&mut self, change: RowChange) -> Result<(), std::convert::Infallible> {
        self.changes.push(change);
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, changes: u64) -> Result<(), std::convert::Infallible> {
        assert_eq!(changes as usize, self.changes.len(), "commit counts the row changes");
        self.committed += 1;
        Ok(())
    }
}

impl Recorder {
    /// Checks the changes against SQLite's rows before and after. Returns what is wrong.
    pub fn judge(
        &self,
        before: &BTreeMap<String, (Arc<Table>, Rows)>,
        after: &BTreeMap<String, (Arc<Table>, Rows)>,
    ) -> Result<(), String> {
        // A table that was renamed in place keeps its rows.
        let mut renamed = before.clone();
        for change in self.schema.iter().filter(|change| change.kind == "table" && change.before.is_some()) {
            let name = change.name.to_ascii_lowercase();
            let old = before
                .iter()
                .find(|(old, (table, _))| !after.contains_key(*old) && Some(&table.sql) == change.before.as_ref());
            if let (Some((old, entry)), Some(_), false) = (old, &change.after, before.contains_key(&name)) {
                renamed.remove(old);
                renamed.insert(name, entry.clone());
            }
        }
        let before = &renamed;
        let mut expected: BTreeMap<String, Differences> = BTreeMap::new();
        for name in before.keys().chain(after.keys()) {
            let old = before.get(name);
            let new = after.get(name);
            let empty = Rows::new();
            // A row of a table whose columns changed is compared as the new columns show it.
            let reshaped = match (old, new) {
                (Some((table, rows)), Some((now, _))) if table.columns != now.columns => {
                    let shown = |row: &Row| -> Row {
                        let value = |column: &woodchuck::schema::Column| match table.column_index(&column.name) {
                            Some(index) => row[index].clone(),
                            None => column.default.clone(),
                        };
                        now.columns.iter().map(value).collect()
                    };
                    Some(rows.iter().map(|(key, row)| (key.clone(), shown(row))).collect::<Rows>())
                }
                _ => None,
            };
            let a = reshaped.as_ref().unwrap_or(old.map_or(&empty, |(_, rows)| rows));
            let b = new.map_or(&empty, |(_, rows)| rows);
            let changes: BTreeMap<_, _> = a
                .keys()
                .chain(b.keys())
                .filter(|key| a.get(*key) != b.get(*key))
                .map(|key| (key.clone(), (a.get(key).cloned(), b.get(key).cloned())))
                .collect();
            if !changes.is_empty() {
                expected.insert(name.clone(), changes);
            }
        }
        for change in &self.changes {
            let name = change.table.name.to_ascii_lowercase();
            let key = canonical_key(&change.table, &change.key);
            let found = expected.get_mut(&name).and_then(|changes| changes.remove(&key));
            let op = match &found {
                Some((None, Some(_))) => Op::Insert,
                Some((Some(_), Some(_))) => Op::Update,
                Some((Some(_), None)) => Op::Delete,
                _ => return Err(format!("false change {change:?}")),
            };
            let (old, new) = found.unwrap();
            if (op, &old, &new) != (change.op, &change.before, &change.after) {
                return Err(format!("wrong change {change:?}\nSQLite says {op:?} {old:?} -> {new:?}"));
            }
        }
        match expected.iter().find(|(_, changes)| !changes.is_empty()) {
            Some((name, changes)) => {
                Err(format!("missed {} changes of {name}: {:?}", changes.len(), changes.iter().next()))
            }
            None => Ok(()),
        }
    }
}
