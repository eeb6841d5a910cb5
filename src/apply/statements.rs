//! The SQL that reads and writes one row of the user's database.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt::Write;

use rusqlite::{CachedStatement, Connection, ErrorCode, ffi};

use super::connection::value_of;
use super::error::ApplyError;
use super::shape::LocalTable;
use super::text::to_utf16;
use super::text::{from_utf16, is_broken_text, with_casts};
use crate::change::RowKey;
use crate::format::{Row, TextEncoding, Value};
use crate::schema::Bound;

/// Tries at making a hidden rowid free: it is free after the first.
const ROWID_MOVES_MAX: u32 = 2;

/// What a query begins with that [`Rows::each`] reads.
pub(super) const SELECT_ROWS: &str = "SELECT rows";

/// How a write of a row went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It is done.
    Done,
    /// There is no such row.
    NoRow,
    /// Another row has its key or a UNIQUE value of it. Nothing was done.
    InTheWay,
}

/// Reads and writes rows through the applying connection.
pub(super) struct Rows<'c> {
    conn: &'c Connection,
    encoding: TextEncoding,
    /// The insert that ran last, by table: in a bulk the next row needs it again, and even finding it costs as much as binding.
    insert: RefCell<Option<(i64, CachedStatement<'c>)>>,
}

impl<'c> Rows<'c> {
    pub(super) fn new(conn: &'c Connection) -> Result<Rows<'c>, ApplyError> {
        let doing = |source| ApplyError::Database { doing: "reading its encoding", source };
        let name: String = conn
            .prepare_cached("PRAGMA encoding")
            .and_then(|mut found| found.query_row([], |row| row.get(0)))
            .map_err(doing)?;
        let encoding = match name.as_str() {
            "UTF-16le" => TextEncoding::Utf16Le,
            "UTF-16be" => TextEncoding::Utf16Be,
            _ => TextEncoding::Utf8,
        };
        Ok(Rows { conn, encoding, insert: RefCell::new(None) })
    }

    pub(super) fn conn(&self) -> &'c Connection {
        self.conn
    }

    /// Hands out every row of a table with its key, in no order.
    pub(super) fn each_row(
        &self,
        table: &LocalTable,
        mut each: impl FnMut(RowKey, Row) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let sql = format!("{SELECT_ROWS} FROM {}", table.sql.name);
        self.each(table, &sql, |row, rowid| each(table.key_of(&row, rowid), row))
    }

    /// Tables are defined anew.
    pub(super) fn forget_tables(&self) {
        self.insert.replace(None);
    }

    /// The row with this key.
    pub(super) fn get(&self, table: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        self.get_from(&table.sql.name, table, key)
    }

    /// The row with this key in an attached database.
    pub(super) fn get_in(&self, schema: &str, table: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        self.get_from(&table.sql.name_in(schema), table, key)
    }

    /// Hands out the rows and hidden rowids that a query gives, which begins with [`SELECT_ROWS`].
    pub(super) fn each(
        &self,
        table: &LocalTable,
        sql: &str,
        mut each: impl FnMut(Row, Option<i64>) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let refused = |source| ApplyError::row(&table.table.name, source);
        let sql = sql.replacen(SELECT_ROWS, &format!("SELECT {}, {}", self.list(table), table.sql.rowid), 1);
        let rowid = table.sql.columns.len() * if self.encoding == TextEncoding::Utf8 { 1 } else { 2 };
        let mut found = self.conn.prepare(&sql).map_err(refused)?;
        let mut rows = found.raw_query();
        while let Some(row) = rows.next().map_err(refused)? {
            each(self.row(table, row).map_err(refused)?, row.get(rowid).map_err(refused)?)?;
        }
        Ok(())
    }

    fn get_from(&self, from: &str, table: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        let sql = format!("SELECT {} FROM {from} WHERE {}", self.list(table), table.sql.condition(key));
        let read = || {
            let mut found = self.prepare(table, &sql, &[], &[], Some(key))?;
            let mut rows = found.raw_query();
            let Some(row) = rows.next()? else { return Ok(None) };
            self.row(table, row).map(Some)
        };
        read().map_err(|source| ApplyError::row(&table.table.name, source))
    }

    /// Inserts a row that pushes nothing out.
    pub(super) fn insert(&self, table: &LocalTable, key: &RowKey, row: &[Value]) -> Result<Written, ApplyError> {
        // Modules do not say which constraint it was that kept them from a row.
        if table.table.is_virtual && self.get(table, key)?.is_some() {
            return Ok(Written::InTheWay);
        }
        let by_rowid = matches!(key, RowKey::Rowid(_));
        if !by_rowid && self.encoding == TextEncoding::Utf8 {
            return judged(table, self.insert_again(table, row));
        }
        let sql = if by_rowid { &table.sql.insert_rowid } else { &table.sql.insert };
        let mut written = Written::InTheWay;
        for _ in 0..ROWID_MOVES_MAX {
            written = self.write(table, sql, row, &[], by_rowid.then_some(key))?;
            if written == Written::Done || !by_rowid || !self.free_rowid(table, key)? {
                break;
            }
        }
        Ok(written)
    }

    fn insert_again(&self, table: &LocalTable, row: &[Value]) -> rusqlite::Result<usize> {
        let mut kept = self.insert.borrow_mut();
        let statement = match &mut *kept {
            Some((id, statement)) if *id == table.id => statement,
            other => &mut other.insert((table.id, self.conn.prepare_cached(&table.sql.insert)?)).1,
        };
        for (i, value) in row.iter().enumerate() {
            statement.raw_bind_parameter(i + 1, Bound(value))?;
        }
        statement.raw_execute()
    }

    /// Writes the columns of `mask`.
    pub(super) fn update(
        &self,
        table: &LocalTable,
        key: &RowKey,
        row: &[Value],
        mask: &[bool],
    ) -> Result<Written, ApplyError> {
        let mut sql = format!("UPDATE{} {} SET ", table.sql.or_abort, table.sql.name);
        let mut comma = "";
        for (i, column) in table.sql.columns.iter().enumerate().filter(|(i, _)| mask.get(*i) == Some(&true)) {
            let _ = write!(sql, "{comma}{column} = ?{}", i + 1);
            comma = ", ";
        }
        if comma.is_empty() {
            return Ok(Written::Done);
        }
        let _ = write!(sql, " WHERE {}", table.sql.condition(key));
        self.write(table, &sql, row, mask, Some(key))
    }

    /// Deletes the row with this key.
    pub(super) fn delete(&self, table: &LocalTable, key: &RowKey) -> Result<Written, ApplyError> {
        let sql = format!("DELETE FROM {} WHERE {}", table.sql.name, table.sql.condition(key));
        self.write(table, &sql, &[], &[], Some(key))
    }

    /// Tries to insert a row; where another one is in its way, returns that one, untouched.
    ///
    /// SQLite itself says which row it is: an upsert that changes nothing returns it. So expression indexes, partial ones and collations
    /// count exactly as they do for everybody else.
    pub(super) fn insert_or_meet(
        &self,
        table: &LocalTable,
        key: &RowKey,
        row: &[Value],
    ) -> Result<Option<(RowKey, Row)>, ApplyError> {
        match self.insert(table, key, row)? {
            Written::Done => return Ok(None),
            Written::InTheWay | Written::NoRow => {}
        }
        if table.table.is_virtual {
            return Ok(self.get(table, key)?.map(|row| (key.clone(), row)));
        }
        let by_rowid = matches!(key, RowKey::Rowid(_));
        let insert = if by_rowid { &table.sql.insert_rowid } else { &table.sql.insert };
        let first = table.sql.columns.first().map_or("", String::as_str);
        // OR ABORT is what an upsert does anyway, and must not be written beside it.
        let insert = insert.replacen("INSERT OR ABORT", "INSERT", 1);
        let sql = format!(
            "{insert} ON CONFLICT DO UPDATE SET {first} = {first} RETURNING {}, {}",
            self.list(table),
            table.sql.rowid
        );
        let count = table.sql.columns.len();
        let meet = || {
            let mut met = self.prepare(table, &sql, row, &[], by_rowid.then_some(key))?;
            let mut rows = met.raw_query();
            let Some(found) = rows.next()? else { return Ok(None) };
            let other = self.row(table, found)?;
            let rowid: Option<i64> = found.get(if self.encoding == TextEncoding::Utf8 { count } else { 2 * count })?;
            // Run to the end: a write counts when its statement is finished.
            while rows.next()?.is_some() {}
            Ok(Some((table.key_of(&other, rowid), other)))
        };
        meet().map_err(|source| ApplyError::row(&table.table.name, source))
    }

    fn list<'t>(&self, table: &'t LocalTable) -> &'t str {
        if self.encoding == TextEncoding::Utf8 { &table.sql.list } else { &table.sql.list_raw }
    }

    /// Reads a row that [`Rows::list`] asked for. SQLite's own way from UTF-16 to UTF-8 joins a lone surrogate with what follows it, so such
    /// databases hand out the bytes of text.
    fn row(&self, table: &LocalTable, row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
        let count = table.sql.columns.len();
        if self.encoding == TextEncoding::Utf8 {
            return (0..count).map(|i| row.get_ref(i).map(value_of)).collect();
        }
        let value = |i: usize| match (value_of(row.get_ref(2 * i)?), row.get::<_, bool>(2 * i + 1)?) {
            (Value::Blob(bytes), true) => Ok(Value::Text(from_utf16(&bytes, self.encoding))),
            (value, _) => Ok(value),
        };
        (0..count).map(value).collect()
    }

    fn free_rowid(&self, table: &LocalTable, key: &RowKey) -> Result<bool, ApplyError> {
        if table.sql.move_rowid.is_empty() {
            return Ok(false);
        }
        Ok(self.write(table, &table.sql.move_rowid, &[], &[], Some(key))? == Written::Done)
    }

    fn write(
        &self,
        table: &LocalTable,
        sql: &str,
        row: &[Value],
        mask: &[bool],
        key: Option<&RowKey>,
    ) -> Result<Written, ApplyError> {
        judged(table, self.prepare(table, sql, row, mask, key).and_then(|mut statement| statement.raw_execute()))
    }

    /// Prepares and binds: the row from parameter 1, the key behind the table's columns. Columns that are false in
    /// `mask` are left out.
    fn prepare(
        &self,
        table: &LocalTable,
        sql: &str,
        row: &[Value],
        mask: &[bool],
        key: Option<&RowKey>,
    ) -> rusqlite::Result<CachedStatement<'c>> {
        let rowid;
        let key_values: &[Value] = match key {
            None => &[],
            Some(RowKey::Columns(values)) => values,
            Some(RowKey::Rowid(id)) => {
                rowid = [Value::Integer(*id)];
                &rowid
            }
        };
        let count = table.sql.columns.len();
        let all = || {
            let masked = row.iter().enumerate().filter(|(i, _)| mask.get(*i).copied().unwrap_or(true));
            masked.chain(key_values.iter().enumerate().map(|(i, value)| (count + i, value)))
        };
        let raw: Vec<usize> = if self.encoding == TextEncoding::Utf8 {
            Vec::new()
        } else {
            all().filter(|(_, v)| is_broken_text(v)).map(|(i, _)| i).collect()
        };
        let sql = if raw.is_empty() { Cow::Borrowed(sql) } else { Cow::Owned(with_casts(sql, &raw)) };
        let mut statement = self.conn.prepare_cached(&sql)?;
        for (i, value) in all() {
            match value {
                Value::Text(bytes) if raw.contains(&i) => {
                    statement.raw_bind_parameter(i + 1, to_utf16(bytes, self.encoding))?
                }
                Value::Null | Value::Integer(_) | Value::Real(_) | Value::Text(_) | Value::Blob(_) => {
                    statement.raw_bind_parameter(i + 1, Bound(value))?;
                }
            }
        }
        Ok(statement)
    }
}

fn judged(table: &LocalTable, changed: rusqlite::Result<usize>) -> Result<Written, ApplyError> {
    match changed {
        Ok(0) => Ok(Written::NoRow),
        Ok(_) => Ok(Written::Done),
        Err(source) if is_in_the_way(&source) => Ok(Written::InTheWay),
        Err(source) => Err(ApplyError::row(&table.table.name, source)),
    }
}

fn is_in_the_way(error: &rusqlite::Error) -> bool {
    let Some(code) = error.sqlite_error() else { return false };
    code.code == ErrorCode::ConstraintViolation
        && [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID]
            .contains(&code.extended_code)
}
