//! The conflict journal: what a change overrode, kept so that a person can find it.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::params;

use super::codec::{Reader, push_key, push_row};
use super::error::ApplyError;
use super::shape::LocalTable;
use super::state::{State, from_db, names_bytes, names_of, origin_bytes, origin_of, to_db};
use crate::change::RowKey;
use crate::format::Row;
use crate::log::Origin;

/// How two changes met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// Both changed one row.
    SameRow,
    /// Two rows wanted one UNIQUE value; the later change has it.
    UniqueValue,
    /// A value had no place in the type that its column has by now, and was converted.
    Type,
    /// The table or the column was gone that a change wrote to.
    Gone,
}

impl ConflictKind {
    /// As it is stored, and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ConflictKind::SameRow => "row",
            ConflictKind::UniqueValue => "unique",
            ConflictKind::Type => "type",
            ConflictKind::Gone => "gone",
        }
    }

    fn of_name(name: &str) -> ConflictKind {
        match name {
            "row" => ConflictKind::SameRow,
            "type" => ConflictKind::Type,
            "gone" => ConflictKind::Gone,
            _ => ConflictKind::UniqueValue,
        }
    }
}

/// Two changes that met, and what became of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// Counts up; the newest has the largest.
    pub id: u64,
    /// When it was seen here, in seconds since 1970, by this machine's clock.
    pub recorded_at: u64,
    /// How they met.
    pub kind: ConflictKind,
    /// The table.
    pub table: String,
    /// The columns of both images.
    pub columns: Vec<String>,
    /// The key of the row that lost something.
    pub key: RowKey,
    /// The row that stays; `None` where a deletion won, or the table is gone.
    pub kept: Option<Row>,
    /// What it overrode; `None` where a deletion lost.
    pub lost: Option<Row>,
    /// Who made what stays.
    pub kept_origin: Option<Origin>,
    /// Who made what was overridden, where it is known.
    pub lost_origin: Option<Origin>,
}

/// A conflict to be recorded.
#[derive(Debug)]
pub(super) struct Met<'a> {
    pub(super) kind: ConflictKind,
    pub(super) key: &'a RowKey,
    pub(super) kept: Option<&'a Row>,
    pub(super) lost: Option<&'a Row>,
    pub(super) kept_origin: Option<Origin>,
    pub(super) lost_origin: Option<Origin>,
}

/// Conflicts that are in memory at a time.
const READ_AT_ONCE: u32 = 1000;

/// What [`conflict_of`] reads.
const SELECT: &str =
    "SELECT id, recorded_at, kind, table_name, columns, key, kept, lost, kept_origin, lost_origin FROM conflicts";

fn conflict_of(row: &rusqlite::Row<'_>) -> Result<Conflict, ApplyError> {
    let image = |bytes: Option<Vec<u8>>| bytes.map(|bytes| Reader::new(&bytes).row()).transpose();
    let origin = |bytes: Option<Vec<u8>>| bytes.map(|bytes| origin_of(&bytes)).transpose();
    let kind: String = row.get(2)?;
    Ok(Conflict {
        id: from_db(row.get(0)?),
        recorded_at: from_db(row.get(1)?),
        kind: ConflictKind::of_name(&kind),
        table: row.get(3)?,
        columns: names_of(&row.get::<_, Vec<u8>>(4)?)?,
        key: Reader::new(&row.get::<_, Vec<u8>>(5)?).key()?,
        kept: image(row.get(6)?)?,
        lost: image(row.get(7)?)?,
        kept_origin: origin(row.get(8)?)?,
        lost_origin: origin(row.get(9)?)?,
    })
}

impl State {
    /// Notes a conflict, once: redo meets the same rows again and again. Returns whether it is new.
    pub(super) fn record_conflict(&self, table: &LocalTable, met: &Met<'_>) -> Result<bool, ApplyError> {
        self.record_conflict_in(&table.table.name, &table.shape.columns, met)
    }

    /// The same, of a table that need not be here. The rows have these columns.
    pub(super) fn record_conflict_in(
        &self,
        table: &str,
        columns: &[String],
        met: &Met<'_>,
    ) -> Result<bool, ApplyError> {
        let encoded = |row: Option<&Row>| {
            row.map(|row| {
                let mut out = Vec::new();
                push_row(&mut out, row);
                out
            })
        };
        let mut key = Vec::new();
        push_key(&mut key, met.key);
        // A clock before 1970 is shown as 1970; nothing depends on it.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let sql = "INSERT INTO conflicts(recorded_at, kind, table_name, columns, key, kept, lost, kept_origin, lost_origin, fresh)
            SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 1
            WHERE NOT EXISTS (SELECT 1 FROM conflicts WHERE table_name = ?3 AND key = ?5 AND kept IS ?6 AND lost IS ?7)";
        let recorded = self.db.prepare_cached(sql)?.execute(params![
            now as i64,
            met.kind.name(),
            table,
            names_bytes(columns),
            key,
            encoded(met.kept),
            encoded(met.lost),
            met.kept_origin.map(origin_bytes),
            met.lost_origin.map(origin_bytes)
        ])?;
        Ok(recorded > 0)
    }

    /// The newest conflicts first, at most `limit`.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged.
    pub fn conflicts(&self, limit: u32) -> Result<Vec<Conflict>, ApplyError> {
        let mut found = self.db.prepare_cached(&format!("{SELECT} ORDER BY id DESC LIMIT ?1"))?;
        let mut rows = found.query([limit])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(conflict_of(row)?);
        }
        Ok(all)
    }

    /// Hands out all conflicts, the oldest first, as long as `each` says so.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged.
    pub fn each_conflict(&self, mut each: impl FnMut(&Conflict) -> bool) -> Result<(), ApplyError> {
        let mut found = self.db.prepare_cached(&format!("{SELECT} WHERE id > ?1 ORDER BY id LIMIT {READ_AT_ONCE}"))?;
        let mut last = 0;
        loop {
            let mut some = Vec::new();
            let mut rows = found.query([to_db(last)])?;
            while let Some(row) = rows.next()? {
                some.push(conflict_of(row)?);
            }
            // Nothing is read while they are shown, or whoever looks at them would keep the log of `state.db` from beginning anew.
            drop(rows);
            let Some(newest) = some.last() else { return Ok(()) };
            last = newest.id;
            if !some.iter().all(&mut each) {
                return Ok(());
            }
        }
    }

    /// Makes new entries permanent and drops the oldest beyond the bound.
    pub(super) fn keep_conflicts(&self) -> Result<(), ApplyError> {
        if self.db.prepare_cached("UPDATE conflicts SET fresh = 0 WHERE fresh = 1")?.execute([])? > 0 {
            let sql = "DELETE FROM conflicts WHERE id <= (SELECT max(id) FROM conflicts) - ?1";
            self.db.prepare_cached(sql)?.execute([self.conflicts_max])?;
        }
        Ok(())
    }

    pub(super) fn forget_fresh_conflicts(&self) -> Result<(), ApplyError> {
        self.db.prepare_cached("DELETE FROM conflicts WHERE fresh = 1")?.execute([])?;
        Ok(())
    }
}
