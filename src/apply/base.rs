//! Base: for every row whose visible value may differ from the fold, the row as the fold has it.

use std::borrow::Cow;

use rusqlite::{OptionalExtension, params};

use super::codec::{Reader, push_key, push_row, push_varint};
use super::error::ApplyError;
use super::pending_units::PendingUnits;
use super::shape::LocalTable;
use super::state::{State, TableState};
use crate::change::RowKey;
use crate::format::Row;

/// What is kept of one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BaseRow {
    /// The pending units that change the row. Empty for rows that pending pushed out of a UNIQUE value, and for those that
    /// are ahead of the fold behind a gap.
    pub(super) pending: PendingUnits,
    /// How SQL finds it.
    pub(super) key: RowKey,
    /// The row as the fold has it; `None` for no row.
    pub(super) row: Option<Row>,
}

impl State {
    pub(super) fn base(&self, table: &LocalTable, key: &[u8]) -> Result<Option<BaseRow>, ApplyError> {
        if self.base_rows(table) == 0 {
            return Ok(None);
        }
        self.lay_out_of(table.id)?;
        let mut found = self.db.prepare_cached("SELECT entry FROM base WHERE table_id = ?1 AND key = ?2")?;
        let entry: Option<Vec<u8>> = found.query_row(params![table.id, key], |row| row.get(0)).optional()?;
        entry.map(|entry| self.read_base(table, &entry)).transpose()
    }

    pub(super) fn base_has(&self, table: &LocalTable, key: &[u8]) -> Result<bool, ApplyError> {
        if self.base_rows(table) == 0 {
            return Ok(false);
        }
        self.lay_out_of(table.id)?;
        Ok(self
            .db
            .prepare_cached("SELECT 1 FROM base WHERE table_id = ?1 AND key = ?2")?
            .exists(params![table.id, key])?)
    }

    /// Rows that a table has in base. Zero spares all look-ups.
    pub(super) fn base_rows(&self, table: &LocalTable) -> u64 {
        self.table_state(table).map_or(0, |state| self.rows_of(state))
    }

    /// The same of a table that is known by its name alone. A row that several units changed counts several times while they are deferred.
    pub(super) fn rows_of(&self, table: &TableState) -> u64 {
        table.base_rows.get() + self.deferred.borrow().rows_of(table.id)
    }

    pub(super) fn table_state(&self, table: &LocalTable) -> Option<&TableState> {
        // Names are folded once, when the shape is made, so this is one look-up.
        self.tables.get(&table.name_lower)
    }

    pub(super) fn set_base(&mut self, table: &LocalTable, key: &[u8], base: &BaseRow) -> Result<(), ApplyError> {
        self.lay_out_of(table.id)?;
        self.keep_before(table.id, key)?;
        let entry = write_base(table, base);
        if !self.insert_base(table, key, &entry)? {
            self.db
                .prepare_cached("UPDATE base SET entry = ?3 WHERE table_id = ?1 AND key = ?2")?
                .execute(params![table.id, key, entry])?;
        }
        Ok(())
    }

    /// Puts a row into base unless it is there. Whether it was put there.
    fn insert_base(&self, table: &LocalTable, key: &[u8], entry: &[u8]) -> Result<bool, ApplyError> {
        let sql = "INSERT OR IGNORE INTO base(table_id, key, entry) VALUES(?1, ?2, ?3)";
        let is_new = self.db.prepare_cached(sql)?.execute(params![table.id, key, entry])? == 1;
        if is_new && let Some(state) = self.table_state(table) {
            state.base_rows.update(|rows| rows + 1);
        }
        Ok(is_new)
    }

    /// A local change of a row: the row as it was goes into base unless it is there, and `unit` is noted.
    pub(super) fn note_local(
        &mut self,
        table: &LocalTable,
        key: &[u8],
        base: BaseRow,
        unit: i64,
    ) -> Result<(), ApplyError> {
        self.lay_out_of(table.id)?;
        // Most rows are not there, and finding that out costs as much as putting them there.
        self.keep_before(table.id, key)?;
        let pending = PendingUnits::Few(vec![unit]);
        if self.insert_base(table, key, &write_base(table, &BaseRow { pending, ..base }))? {
            return Ok(());
        }
        let mut known = self.base(table, key)?.ok_or(ApplyError::Damaged { what: "the count of base" })?;
        known.pending.note(unit);
        self.set_base(table, key, &known)
    }

    /// A row shows what the fold does not have yet and nothing pending says: the row as the fold has it goes into base unless it is there.
    pub(super) fn note_ahead(&mut self, table: &LocalTable, key: &[u8], base: &BaseRow) -> Result<(), ApplyError> {
        if self.base_has(table, key)? { Ok(()) } else { self.set_base(table, key, base) }
    }

    pub(super) fn remove_base(&mut self, table: &LocalTable, key: &[u8]) -> Result<(), ApplyError> {
        self.lay_out_of(table.id)?;
        if self.remove_row(table.id, key)?
            && let Some(state) = self.table_state(table)
        {
            state.base_rows.update(|rows| rows.saturating_sub(1));
        }
        Ok(())
    }

    /// Takes a row out of `base`, by the table's number; whether it was there. It is not counted.
    pub(super) fn remove_row(&self, table: i64, key: &[u8]) -> Result<bool, ApplyError> {
        self.keep_before(table, key)?;
        let removed = self
            .db
            .prepare_cached("DELETE FROM base WHERE table_id = ?1 AND key = ?2")?
            .execute(params![table, key])?;
        Ok(removed > 0)
    }

    /// Puts a row into `base`, by the table's number, where it has `unit` as all that is pending; where it is, the unit is noted. Whether it was
    /// put there. It is not counted, and is no change of base.
    pub(super) fn lay_out_row(&self, table: i64, key: &[u8], entry: &[u8], unit: i64) -> Result<bool, ApplyError> {
        let sql = "INSERT OR IGNORE INTO base(table_id, key, entry) VALUES(?1, ?2, ?3)";
        if self.db.prepare_cached(sql)?.execute(params![table, key, entry])? == 1 {
            return Ok(true);
        }
        let mut found = self.db.prepare_cached("SELECT entry FROM base WHERE table_id = ?1 AND key = ?2")?;
        let known: Vec<u8> = found.query_row(params![table, key], |row| row.get(0))?;
        let mut reader = Reader::new(&known);
        let mut pending = PendingUnits::read(&mut reader)?;
        if pending.note(unit) {
            let mut noted = Vec::with_capacity(known.len() + 10);
            pending.write(&mut noted);
            noted.extend_from_slice(reader.rest());
            self.db
                .prepare_cached("UPDATE base SET entry = ?3 WHERE table_id = ?1 AND key = ?2")?
                .execute(params![table, key, noted])?;
        }
        Ok(false)
    }

    /// Takes a row out of base where this unit is all that is pending on it; whether it did. Own units mostly come back to such rows, and
    /// there is no need to read them.
    pub(super) fn remove_base_of(&mut self, table: &LocalTable, key: &[u8], unit: i64) -> Result<bool, ApplyError> {
        self.lay_out_of(table.id)?;
        self.keep_before(table.id, key)?;
        let mut begins = Vec::with_capacity(10);
        push_varint(&mut begins, 1);
        push_varint(&mut begins, unit as u64);
        let sql = "DELETE FROM base WHERE table_id = ?1 AND key = ?2 AND substr(entry, 1, ?4) = ?3";
        let removed = self.db.prepare_cached(sql)?.execute(params![table.id, key, begins, begins.len() as i64])?;
        if removed > 0
            && let Some(state) = self.table_state(table)
        {
            state.base_rows.update(|rows| rows.saturating_sub(1));
        }
        Ok(removed > 0)
    }

    /// Hands every row of a table's base to `each`, in key order.
    pub(super) fn each_base(
        &self,
        table: &LocalTable,
        mut each: impl FnMut(&[u8], BaseRow) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        self.lay_out_of(table.id)?;
        let mut found = self.db.prepare_cached("SELECT key, entry FROM base WHERE table_id = ?1")?;
        let mut rows = found.query([table.id])?;
        while let Some(row) = rows.next()? {
            let key: Vec<u8> = row.get(0)?;
            let entry: Vec<u8> = row.get(1)?;
            each(&key, self.read_base(table, &entry)?)?;
        }
        Ok(())
    }

    /// Takes all rows out of base that units are pending on, of every table: nothing is pending any more. The others stay.
    pub(super) fn clear_pending_base(&mut self) -> Result<(), ApplyError> {
        assert!(!self.revertible, "what is taken back needs each row");
        self.clear_runs();
        if self.tables.values().all(|table| table.base_rows.get() == 0) {
            return Ok(());
        }
        // An entry begins with the number of units that are pending on its row.
        let stays = self.db.prepare_cached("SELECT 1 FROM base WHERE entry < x'01' LIMIT 1")?.exists([])?;
        // Without WHERE: SQLite drops the pages instead of visiting rows.
        let sql = if stays { "DELETE FROM base WHERE entry >= x'01'" } else { "DELETE FROM base" };
        self.db.prepare_cached(sql)?.execute([])?;
        if stays {
            return self.count_base();
        }
        self.tables.values().for_each(|table| table.base_rows.set(0));
        Ok(())
    }

    /// Counts the rows of each table in `base`.
    pub(super) fn count_base(&self) -> Result<(), ApplyError> {
        let mut count = self.db.prepare_cached("SELECT count(*) FROM base WHERE table_id = ?1")?;
        for table in self.tables.values() {
            table.base_rows.set(super::state::from_db(count.query_row([table.id], |row| row.get(0))?));
        }
        Ok(())
    }

    /// Empties a table's base.
    pub(super) fn clear_base(&mut self, name: &str) -> Result<(), ApplyError> {
        let Some(state) = self.tables.get(&name.to_ascii_lowercase()) else { return Ok(()) };
        self.lay_out_of(state.id)?;
        if self.revertible {
            let keep = "INSERT OR IGNORE INTO base_before(table_id, key, entry) SELECT table_id, key, entry FROM base WHERE table_id = ?1";
            self.db.prepare_cached(keep)?.execute([state.id])?;
        }
        self.db.prepare_cached("DELETE FROM base WHERE table_id = ?1")?.execute([state.id])?;
        state.base_rows.set(0);
        Ok(())
    }

    fn keep_before(&self, table: i64, key: &[u8]) -> Result<(), ApplyError> {
        if self.revertible {
            let sql = "INSERT OR IGNORE INTO base_before(table_id, key, entry)
                VALUES(?1, ?2, (SELECT entry FROM base WHERE table_id = ?1 AND key = ?2))";
            self.db.prepare_cached(sql)?.execute(params![table, key])?;
        }
        Ok(())
    }

    pub(super) fn read_base(&self, table: &LocalTable, entry: &[u8]) -> Result<BaseRow, ApplyError> {
        let mut reader = Reader::new(entry);
        let pending = PendingUnits::read(&mut reader)?;
        let shape = reader.varint()? as i64;
        let key = reader.key()?;
        let mut row = if reader.byte()? == 1 { Some(reader.row()?) } else { None };
        // The table may have got or lost columns since the row was put here.
        if shape != table.shape_id
            && let Some(stored) = row
        {
            row = Some(table.refit(&self.shape_columns(shape)?, &stored));
        }
        let row = row.map(|row| table.narrow(Cow::Owned(row)).into_owned());
        Ok(BaseRow { pending, key, row })
    }
}

/// `pending units, varint shape, key, 0 | 1 row`
pub(super) fn write_base(table: &LocalTable, base: &BaseRow) -> Vec<u8> {
    let of_row = base.row.iter().flatten().map(|value| 11 + value.heap_bytes()).sum::<usize>();
    let mut out = Vec::with_capacity(64 + of_row);
    base.pending.write(&mut out);
    push_varint(&mut out, table.shape_id as u64);
    push_key(&mut out, &base.key);
    match &base.row {
        None => out.push(0),
        Some(row) => {
            out.push(1);
            push_row(&mut out, row);
        }
    }
    out
}
