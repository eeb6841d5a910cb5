//! The SQL that reads and writes one row of the user's database.

use std::borrow::Cow;
use std::fmt::Write;

use rusqlite::{CachedStatement, Connection, ErrorCode, ffi};

use super::connection::{Bound, value_of};
use super::error::ApplyError;
use super::shape::LocalTable;
use crate::change::RowKey;
use crate::format::{Row, TextEncoding, Value};
use crate::log::TableShape;
use crate::schema::{Collation, Identity, Table};

/// Tries at making a hidden rowid free: it is free after the first.
const ROWID_MOVES_MAX: u32 = 2;

/// The parts of a table's statements. Parameters `?1…?n` are the row, those after it the key.
#[derive(Debug)]
pub(super) struct Sql {
    name: String,
    columns: Vec<String>,
    insert: String,
    insert_rowid: String,
    returning: String,
    select: String,
    by_key: String,
    by_rowid: String,
    /// Moves the row with a declared key away from a hidden rowid that another row needs; empty where that cannot be.
    move_rowid: String,
}

impl Sql {
    pub(super) fn new(table: &Table, shape: &TableShape) -> Sql {
        let name = format!("main.{}", quoted(&table.name));
        let columns: Vec<String> = shape.columns.iter().map(|column| quoted(column)).collect();
        let list = columns.join(", ");
        let count = columns.len();
        let values = (1..=count).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
        // OR ABORT: a table may say ON CONFLICT REPLACE for itself, and rows must not vanish unseen.
        let insert = format!("INSERT OR ABORT INTO {name}({list}) VALUES({values})");
        let rowid = table.rowid_name.unwrap_or("NULL");
        let insert_rowid = format!("INSERT OR ABORT INTO {name}({list}, {rowid}) VALUES({values}, ?{})", count + 1);
        let returning = format!("{list}, {}", if table.without_rowid { "NULL" } else { rowid });
        let select = format!("SELECT {list} FROM {name} WHERE ");
        let key_names: Vec<&String> = shape.key.iter().filter_map(|i| columns.get(usize::from(*i))).collect();
        let mut by_key = String::new();
        for (i, column) in key_names.iter().enumerate() {
            let collation = match &table.identity {
                Identity::Declared(columns) => columns.get(i).map(|key| &key.collation),
                Identity::RowidAlias(_) | Identity::Rowid => None,
            };
            let and = if i > 0 { " AND " } else { "" };
            let _ = write!(by_key, "{and}{column} = ?{}", count + 1 + i);
            // The key's collation may be another than its column's.
            let _ = match collation {
                None => Ok(()),
                Some(Collation::Binary) => write!(by_key, " COLLATE BINARY"),
                Some(Collation::NoCase) => write!(by_key, " COLLATE NOCASE"),
                Some(Collation::RTrim) => write!(by_key, " COLLATE RTRIM"),
                Some(Collation::Custom(name)) => write!(by_key, " COLLATE {}", quoted(name)),
            };
        }
        let mut by_rowid = format!("{rowid} = ?{}", count + 1);
        let mut move_rowid = String::new();
        if let (Identity::Declared(_), false) = (&table.identity, table.without_rowid) {
            // The hidden rowid is the key only of rows with NULL in their declared one.
            let nulls = key_names.iter().map(|column| format!("{column} IS NULL")).collect::<Vec<_>>().join(" OR ");
            by_rowid = format!("{by_rowid} AND ({nulls})");
            move_rowid = format!(
                "UPDATE OR ABORT {name} SET {rowid} = (SELECT max({rowid}) + 1 FROM {name}) WHERE {rowid} = ?{} AND NOT ({nulls})",
                count + 1
            );
        }
        Sql { name, columns, insert, insert_rowid, returning, select, by_key, by_rowid, move_rowid }
    }

    fn condition(&self, key: &RowKey) -> &str {
        match key {
            RowKey::Columns(_) => &self.by_key,
            RowKey::Rowid(_) => &self.by_rowid,
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'c> {
    conn: &'c Connection,
    encoding: TextEncoding,
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
        Ok(Rows { conn, encoding })
    }

    /// The row with this key.
    pub(super) fn get(&self, table: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        let sql = format!("{}{}", table.sql.select, table.sql.condition(key));
        let read = || {
            let mut found = self.prepare(&sql, &[], table.sql.columns.len(), key)?;
            let mut rows = found.raw_query();
            let Some(row) = rows.next()? else { return Ok(None) };
            (0..table.sql.columns.len())
                .map(|i| row.get_ref(i).map(value_of))
                .collect::<rusqlite::Result<Row>>()
                .map(Some)
        };
        read().map_err(|source| ApplyError::row(&table.table.name, source))
    }

    /// Inserts a row that pushes nothing out.
    pub(super) fn insert(&self, table: &LocalTable, key: &RowKey, row: &[Value]) -> Result<Written, ApplyError> {
        let by_rowid = matches!(key, RowKey::Rowid(_));
        let sql = if by_rowid { &table.sql.insert_rowid } else { &table.sql.insert };
        let values: Vec<&Value> = row.iter().collect();
        let mut written = Written::InTheWay;
        for _ in 0..ROWID_MOVES_MAX {
            written = self.write(table, sql, &values, row.len(), by_rowid.then_some(key))?;
            if written == Written::Done || !by_rowid || !self.free_rowid(table, key)? {
                break;
            }
        }
        Ok(written)
    }

    /// Writes the columns of `mask`.
    pub(super) fn update(
        &self,
        table: &LocalTable,
        key: &RowKey,
        row: &[Value],
        mask: &[bool],
    ) -> Result<Written, ApplyError> {
        let mut sql = format!("UPDATE OR ABORT {} SET ", table.sql.name);
        let mut values = Vec::with_capacity(row.len());
        for ((i, column), (value, _)) in
            table.sql.columns.iter().enumerate().zip(row.iter().zip(mask)).filter(|(_, (_, changed))| **changed)
        {
            let comma = if values.is_empty() { "" } else { ", " };
            let _ = write!(sql, "{comma}{column} = ?{}", i + 1);
            values.push((i, value));
        }
        if values.is_empty() {
            return Ok(Written::Done);
        }
        let _ = write!(sql, " WHERE {}", table.sql.condition(key));
        let null = Value::Null;
        let mut row_values = vec![&null; row.len()];
        for (i, value) in values {
            if let Some(slot) = row_values.get_mut(i) {
                *slot = value;
            }
        }
        self.write(table, &sql, &row_values, row.len(), Some(key))
    }

    /// Deletes the row with this key.
    pub(super) fn delete(&self, table: &LocalTable, key: &RowKey) -> Result<Written, ApplyError> {
        let sql = format!("DELETE FROM {} WHERE {}", table.sql.name, table.sql.condition(key));
        self.write(table, &sql, &[], table.sql.columns.len(), Some(key))
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
        let by_rowid = matches!(key, RowKey::Rowid(_));
        let insert = if by_rowid { &table.sql.insert_rowid } else { &table.sql.insert };
        let first = table.sql.columns.first().map_or("", String::as_str);
        // OR ABORT is what an upsert does anyway, and must not be written beside it.
        let insert = insert.replacen("INSERT OR ABORT", "INSERT", 1);
        let sql = format!("{insert} ON CONFLICT DO UPDATE SET {first} = {first} RETURNING {}", table.sql.returning);
        let values: Vec<&Value> = row.iter().collect();
        let count = table.sql.columns.len();
        let meet = || {
            let mut met = self.prepare_with(&sql, &values, count, by_rowid.then_some(key))?;
            let mut rows = met.raw_query();
            let Some(found) = rows.next()? else { return Ok(None) };
            let other: Row = (0..count).map(|i| found.get_ref(i).map(value_of)).collect::<rusqlite::Result<_>>()?;
            let rowid: Option<i64> = found.get(count)?;
            // Run to the end: a write counts when its statement is finished.
            while rows.next()?.is_some() {}
            Ok(Some((table.key_of(&other, rowid), other)))
        };
        meet().map_err(|source| ApplyError::row(&table.table.name, source))
    }

    fn free_rowid(&self, table: &LocalTable, key: &RowKey) -> Result<bool, ApplyError> {
        if table.sql.move_rowid.is_empty() {
            return Ok(false);
        }
        Ok(self.write(table, &table.sql.move_rowid, &[], table.sql.columns.len(), Some(key))? == Written::Done)
    }

    fn write(
        &self,
        table: &LocalTable,
        sql: &str,
        row: &[&Value],
        count: usize,
        key: Option<&RowKey>,
    ) -> Result<Written, ApplyError> {
        match self.prepare_with(sql, row, count, key).and_then(|mut statement| statement.raw_execute()) {
            Ok(0) => Ok(Written::NoRow),
            Ok(_) => Ok(Written::Done),
            Err(source) if is_in_the_way(&source) => Ok(Written::InTheWay),
            Err(source) => Err(ApplyError::row(&table.table.name, source)),
        }
    }

    fn prepare(&self, sql: &str, row: &[&Value], count: usize, key: &RowKey) -> rusqlite::Result<CachedStatement<'c>> {
        self.prepare_with(sql, row, count, Some(key))
    }

    /// Prepares and binds: the row from parameter 1, the key behind the table's columns. Parameters that the statement does not name are
    /// left out.
    fn prepare_with(
        &self,
        sql: &str,
        row: &[&Value],
        count: usize,
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
        let all = || {
            row.iter().copied().enumerate().chain(key_values.iter().enumerate().map(|(i, value)| (count + i, value)))
        };
        let raw: Vec<usize> = if self.encoding == TextEncoding::Utf8 {
            Vec::new()
        } else {
            all().filter(|(_, v)| is_broken_text(v)).map(|(i, _)| i).collect()
        };
        let sql = if raw.is_empty() { Cow::Borrowed(sql) } else { Cow::Owned(with_casts(sql, &raw)) };
        let mut statement = self.conn.prepare_cached(&sql)?;
        let parameters = statement.parameter_count();
        for (i, value) in all().filter(|(i, _)| *i < parameters) {
            match value {
                Value::Text(bytes) if raw.contains(&i) => statement.raw_bind_parameter(i + 1, self.utf16(bytes))?,
                Value::Null | Value::Integer(_) | Value::Real(_) | Value::Text(_) | Value::Blob(_) => {
                    statement.raw_bind_parameter(i + 1, Bound(value))?;
                }
            }
        }
        Ok(statement)
    }

    /// Generalised UTF-8 in the bytes of the database's encoding.
    fn utf16(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() * 2);
        let mut push = |unit: u16| match self.encoding {
            TextEncoding::Utf16Be => out.extend_from_slice(&unit.to_be_bytes()),
            TextEncoding::Utf16Le | TextEncoding::Utf8 => out.extend_from_slice(&unit.to_le_bytes()),
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            let valid = match std::str::from_utf8(rest) {
                Ok(text) => text,
                Err(error) => rest
                    .get(..error.valid_up_to())
                    .and_then(|valid| std::str::from_utf8(valid).ok())
                    .unwrap_or_default(),
            };
            valid.encode_utf16().for_each(&mut push);
            rest = rest.get(valid.len()..).unwrap_or_default();
            // A lone surrogate has three bytes: 1110_1101 101x_xxxx 10xx_xxxx.
            match rest {
                [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, tail @ ..] => {
                    push(0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f));
                    rest = tail;
                }
                [_, tail @ ..] => {
                    push(0xfffd);
                    rest = tail;
                }
                [] => {}
            }
        }
        out
    }
}

/// Text that binding as UTF-8 would alter in a UTF-16 database.
fn is_broken_text(value: &Value) -> bool {
    matches!(value, Value::Text(bytes) if std::str::from_utf8(bytes).is_err())
}

/// Reads the given parameters (from 0) as text in the database's own encoding.
fn with_casts(sql: &str, raw: &[usize]) -> String {
    let mut out = String::with_capacity(sql.len() + 16 * raw.len());
    let mut inside_name = false;
    let mut chars = sql.chars().peekable();
    while let Some(c) = chars.next() {
        inside_name ^= c == '"';
        if c != '?' || inside_name {
            out.push(c);
            continue;
        }
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        let is_raw = digits.parse::<usize>().is_ok_and(|no| raw.iter().any(|i| i + 1 == no));
        let _ = if is_raw { write!(out, "CAST(?{digits} AS TEXT)") } else { write!(out, "?{digits}") };
    }
    out
}

fn is_in_the_way(error: &rusqlite::Error) -> bool {
    let Some(code) = error.sqlite_error() else { return false };
    code.code == ErrorCode::ConstraintViolation
        && [ffi::SQLITE_CONSTRAINT_UNIQUE, ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ffi::SQLITE_CONSTRAINT_ROWID]
            .contains(&code.extended_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_reach_parameters_and_leave_names_alone() {
        assert_eq!(
            with_casts("UPDATE \"a?1\" SET b = ?1, c = ?12", &[0]),
            "UPDATE \"a?1\" SET b = CAST(?1 AS TEXT), c = ?12"
        );
    }
}
