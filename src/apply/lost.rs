//! Rows that a power failure took are written again, before anything is read of the database: then they are no change.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::Connection;

use super::error::ApplyError;
use super::replica::Replica;
use super::shape::LocalTable;
use super::statements::{Rows, Written};
use crate::change::{RowChange, RowKey};
use crate::format::{Row, Value};

/// What became of rows that may have been lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Rows that were lost and are there again as they were captured.
    pub put_back: u64,
    /// Rows that were lost and could not be written, because others are in their way by now. Their loss counts as a local change.
    pub in_the_way: u64,
}

/// A row that is to be as it was captured.
struct Lost<'a> {
    table: &'a LocalTable,
    key: &'a RowKey,
    /// `None`: deleted.
    captured: Option<Row>,
    is_there: bool,
}

impl Lost<'_> {
    fn write(&self, rows: &Rows<'_>) -> Result<Written, ApplyError> {
        match &self.captured {
            None => rows.delete(self.table, self.key),
            Some(row) if self.is_there => rows.update(self.table, self.key, row, &vec![true; row.len()]),
            Some(row) => rows.insert(self.table, self.key, row),
        }
    }
}

/// Takes rows out, then puts all of them in. `false`, and nothing done, when others are in the way.
fn write_together(conn: &Connection, rows: &Rows<'_>, lost: &[Lost<'_>]) -> Result<bool, ApplyError> {
    let run = |sql: &str| {
        conn.execute_batch(sql).map_err(|source| ApplyError::Database { doing: "putting lost rows back", source })
    };
    run("SAVEPOINT woodchuck_lost")?;
    for one in lost.iter().filter(|one| one.is_there) {
        rows.delete(one.table, one.key)?;
    }
    for (one, row) in lost.iter().filter_map(|one| Some((one, one.captured.as_ref()?))) {
        if rows.insert(one.table, one.key, row)? != Written::Done {
            run("ROLLBACK TO woodchuck_lost; RELEASE woodchuck_lost")?;
            return Ok(false);
        }
    }
    run("RELEASE woodchuck_lost")?;
    Ok(true)
}

impl Replica {
    /// Writes lost rows again: those that are as `after` of a change become as its `before`. Rows that are neither were changed since
    /// and stay. To be called with the write lock, before what is committed was looked at; [`Replica::end_put_back`] commits.
    ///
    /// Doing it twice does nothing the second time, so a crash in between costs nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub fn put_back(conn: &Connection, lost: &[RowChange]) -> Result<PutBack, ApplyError> {
        let rows = Rows::new(conn)?;
        let mut tables: HashMap<String, LocalTable> = HashMap::new();
        for change in lost {
            let id = tables.len() as i64 + 1;
            tables
                .entry(change.table.name.clone())
                .or_insert_with(|| LocalTable::new(Arc::clone(&change.table), id, 0));
        }
        let mut waiting = Vec::new();
        for change in lost {
            let Some(table) = tables.get(&change.table.name) else { continue };
            let written = |row: &Option<Row>| row.as_ref().map(|row| written_columns(table, row));
            let (captured, left) = (written(&change.before), written(&change.after));
            if rows.get(table, &change.key)? == left && captured != left {
                waiting.push(Lost { table, key: &change.key, captured, is_there: left.is_some() });
            }
        }
        let (mut done, mut progress) = (PutBack::default(), 0);
        // A row can stand in the way of another that is yet to be moved, so it is tried again as long as anything goes.
        while !waiting.is_empty() {
            let mut stuck = Vec::new();
            for one in waiting {
                match one.write(&rows)? {
                    Written::Done | Written::NoRow => done.put_back += 1,
                    Written::InTheWay => stuck.push(one),
                }
            }
            if done.put_back == progress {
                // They may be in the way of each other alone: taken out together they go in together.
                let count = stuck.len() as u64;
                match write_together(conn, &rows, &stuck)? {
                    true => done.put_back += count,
                    false => done.in_the_way = count,
                }
                break;
            }
            progress = done.put_back;
            waiting = stuck;
        }
        Ok(done)
    }

    /// Commits what was put back, and gives the write lock back.
    ///
    /// # Errors
    /// When the database fails.
    pub fn end_put_back(&mut self, conn: &Connection) -> Result<(), ApplyError> {
        conn.execute_batch("COMMIT")
            .map_err(|source| ApplyError::Database { doing: "putting lost rows back", source })?;
        self.begun = false;
        Ok(())
    }
}

/// The columns that are not generated.
fn written_columns(table: &LocalTable, row: &[Value]) -> Row {
    let columns = table.table.columns.iter().zip(row);
    columns.filter(|(column, _)| !column.generated).map(|(_, value)| value.clone()).collect()
}
