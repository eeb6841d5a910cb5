//! Row changes as INSERT, UPDATE and DELETE, in an order in which no UNIQUE constraint is violated on the way.
//!
//! A transaction's rows are written as: first everything that leaves, then what changes in place, then what comes. Rows of one
//! transaction have distinct keys, so this can only collide where two rows of a table change columns of a UNIQUE index (a swap); from the
//! second such row on they are taken out and put in again.
//!
//! Hidden rowids are written where they tell rows apart. Where a declared key does that they are left to SQLite: VACUUM renumbers them
//! without any row having changed, so the copy's may differ from ours. A row with NULL in its key is found by its rowid even there; who
//! happens to have that rowid in the copy is moved away first.

use std::collections::HashMap;
use std::io;

use super::literal::{name, put, value};
use crate::change::{Op, RowChange, RowKey};
use crate::cli::output::spill::Spill;
use crate::format::{Row, TextEncoding};
use crate::schema::{Collation, Identity, Table};

/// The row changes of one transaction, as statements.
#[derive(Debug)]
pub(super) struct Rows {
    encoding: TextEncoding,
    leave: Spill,
    change: Spill,
    come: Spill,
    /// Per table, the first update that touches a UNIQUE index.
    unique: HashMap<String, Unique>,
}

/// What is known of a table's updates that touch a UNIQUE index.
#[derive(Debug)]
enum Unique {
    /// One so far; alone it can stay an UPDATE.
    One(Box<RowChange>),
    /// More: each is a DELETE and an INSERT.
    Many,
}

impl Rows {
    pub(super) fn new(encoding: TextEncoding) -> Rows {
        Rows {
            encoding,
            leave: Spill::default(),
            change: Spill::default(),
            come: Spill::default(),
            unique: HashMap::new(),
        }
    }

    /// Takes one change.
    ///
    /// # Errors
    /// Temporary files; `Unsupported` for a table whose rows SQL cannot tell apart.
    pub(super) fn push(&mut self, change: RowChange) -> io::Result<()> {
        if change.before_unknown {
            self.take_out(&change)?;
            return self.put_in(&change);
        }
        match change.op {
            Op::Delete => self.take_out(&change),
            Op::Insert => self.put_in(&change),
            Op::Update if touches_unique(&change) => {
                match self.unique.remove(&change.table.name) {
                    None => {
                        self.unique.insert(change.table.name.clone(), Unique::One(Box::new(change)));
                        return Ok(());
                    }
                    Some(Unique::One(first)) => {
                        self.take_out(&first)?;
                        self.put_in(&first)?;
                    }
                    Some(Unique::Many) => {}
                }
                self.take_out(&change)?;
                self.put_in(&change)?;
                self.unique.insert(change.table.name.clone(), Unique::Many);
                Ok(())
            }
            Op::Update => self.in_place(&change),
        }
    }

    /// Writes the statements, in order.
    pub(super) fn move_to(mut self, out: &mut impl io::Write) -> io::Result<()> {
        let mut alone: Vec<Box<RowChange>> = std::mem::take(&mut self.unique)
            .into_values()
            .filter_map(|unique| match unique {
                Unique::One(change) => Some(change),
                Unique::Many => None,
            })
            .collect();
        alone.sort_by(|a, b| a.table.name.cmp(&b.table.name));
        for change in alone {
            self.in_place(&change)?;
        }
        self.leave.move_to(out)?;
        self.change.move_to(out)?;
        self.come.move_to(out)
    }

    fn take_out(&mut self, change: &RowChange) -> io::Result<()> {
        let out = self.leave.statement()?;
        out.extend_from_slice(b"DELETE FROM ");
        name(out, &change.table.name);
        where_key(out, change, self.encoding)
    }

    /// Takes the row out of a table that is named like this and has the columns of the change's table.
    ///
    /// # Errors
    /// As [`Rows::push`].
    pub(super) fn take_out_of(&mut self, table: &str, change: &RowChange) -> io::Result<()> {
        let out = self.leave.statement()?;
        put(out, format_args!("DELETE FROM {table}"));
        where_key(out, change, self.encoding)
    }

    /// Puts in the row as it is after the change; nothing for a delete.
    ///
    /// # Errors
    /// As [`Rows::push`].
    pub(super) fn put_in(&mut self, change: &RowChange) -> io::Result<()> {
        let Some(row) = &change.after else { return Ok(()) };
        let out = self.come.statement()?;
        let rowid = match &change.key {
            RowKey::Rowid(rowid) => Some((rowid_name(&change.table)?, *rowid)),
            RowKey::Columns(_) => None,
        };
        if let (Some((rowid_name, rowid)), Identity::Declared(_)) = (rowid, &change.table.identity) {
            let table = super::literal::quoted_name(&change.table.name);
            put(
                out,
                format_args!(
                    "UPDATE {table} SET {rowid_name}=(SELECT max({rowid_name})+1 FROM {table}) WHERE {rowid_name}={rowid};\n"
                ),
            );
        }
        insert(out, &change.table, row, rowid, self.encoding);
        Ok(())
    }

    fn in_place(&mut self, change: &RowChange) -> io::Result<()> {
        let Some(row) = &change.after else { return Ok(()) };
        let changed = change.changed_columns();
        let columns = change.table.columns.iter().zip(row).zip(changed);
        let mut columns = columns.filter(|((column, _), changed)| *changed && !column.generated).peekable();
        if columns.peek().is_none() {
            return Ok(());
        }
        let out = self.change.statement()?;
        out.extend_from_slice(b"UPDATE ");
        name(out, &change.table.name);
        for (index, ((column, cell), _)) in columns.enumerate() {
            out.extend_from_slice(if index == 0 { b" SET " } else { b"," });
            name(out, &column.name);
            out.push(b'=');
            value(out, cell, self.encoding);
        }
        where_key(out, change, self.encoding)
    }
}

fn insert(out: &mut Vec<u8>, table: &Table, row: &Row, rowid: Option<(&str, i64)>, encoding: TextEncoding) {
    out.extend_from_slice(b"INSERT INTO ");
    name(out, &table.name);
    let mut separator: &[u8] = b"(";
    if let Some((rowid_name, _)) = rowid {
        put(out, format_args!("({rowid_name}"));
        separator = b",";
    }
    let written = || table.columns.iter().zip(row).filter(|(column, _)| !column.generated);
    for (column, _) in written() {
        out.extend_from_slice(separator);
        name(out, &column.name);
        separator = b",";
    }
    out.extend_from_slice(b") VALUES");
    separator = b"(";
    if let Some((_, rowid)) = rowid {
        put(out, format_args!("({rowid}"));
        separator = b",";
    }
    for (_, cell) in written() {
        out.extend_from_slice(separator);
        value(out, cell, encoding);
        separator = b",";
    }
    out.extend_from_slice(b");\n");
}

/// Writes ` WHERE …;` for the change's row. Keys compare under the key's own collation, which need not be the column's.
fn where_key(out: &mut Vec<u8>, change: &RowChange, encoding: TextEncoding) -> io::Result<()> {
    let table = &change.table;
    let column = |index: usize| table.columns.get(index).map_or("", |column| column.name.as_str());
    out.extend_from_slice(b" WHERE ");
    match (&change.key, &table.identity) {
        (RowKey::Rowid(rowid), _) => put(out, format_args!("{}={rowid}", rowid_name(table)?)),
        (RowKey::Columns(values), Identity::Declared(parts)) => {
            for (index, (part, cell)) in parts.iter().zip(values).enumerate() {
                if index > 0 {
                    out.extend_from_slice(b" AND ");
                }
                name(out, column(part.column));
                out.push(b'=');
                value(out, cell, encoding);
                if matches!(cell, crate::format::Value::Text(_)) {
                    out.extend_from_slice(b" COLLATE ");
                    match &part.collation {
                        Collation::Binary => out.extend_from_slice(b"BINARY"),
                        Collation::NoCase => out.extend_from_slice(b"NOCASE"),
                        Collation::RTrim => out.extend_from_slice(b"RTRIM"),
                        Collation::Custom(collation) => name(out, collation),
                    }
                }
            }
        }
        (RowKey::Columns(values), Identity::RowidAlias(index)) => {
            name(out, column(*index));
            out.push(b'=');
            value(out, values.first().unwrap_or(&crate::format::Value::Null), encoding);
        }
        (RowKey::Columns(_), Identity::Rowid) => return Err(unsupported(table)),
    }
    out.extend_from_slice(b";\n");
    Ok(())
}

fn rowid_name(table: &Table) -> io::Result<&'static str> {
    table.rowid_name.ok_or_else(|| unsupported(table))
}

fn unsupported(table: &Table) -> io::Error {
    let text = format!("table {} has no key, and its columns hide the rowid: SQL cannot name its rows", table.name);
    io::Error::new(io::ErrorKind::Unsupported, text)
}

fn touches_unique(change: &RowChange) -> bool {
    if change.table.uniques.is_empty() {
        return false;
    }
    let changed = change.changed_columns();
    change.table.uniques.iter().any(|unique| match &unique.columns {
        None => true,
        Some(columns) => columns.iter().any(|index| changed.get(index.column).copied().unwrap_or(true)),
    })
}
