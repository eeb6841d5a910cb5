//! Claims: the UNIQUE values that rows of base and pending hold or held, as hashes.
//!
//! A foreign unit that touches none of them cannot meet those rows, and is folded straight in. Claims may say too much, never too little:
//! hash collisions and values that are gone only cost a slower way. They are dropped when a table's base is empty.

use rusqlite::{Connection, params};

use super::error::ApplyError;
use super::shape::LocalTable;
use super::state::{Dirty, State, TableState};
use crate::format::{Row, Value};

/// The claim of everything: an index whose values cannot be computed here (an expression, a WHERE clause, an application's collation).
const EVERYTHING: i64 = 0;

/// Whatever a foreign unit brings may meet rows of base.
pub(super) fn claim_everything(db: &Connection, table: i64) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO claims(table_id, hash) VALUES(?1, ?2)";
    db.prepare_cached(sql)?.execute(params![table, EVERYTHING]).map(drop)
}

impl State {
    pub(super) fn claim(&mut self, table: &LocalTable, row: &[Value]) -> Result<(), ApplyError> {
        for hash in hashes(table, row) {
            self.db
                .prepare_cached("INSERT OR IGNORE INTO claims(table_id, hash) VALUES(?1, ?2)")?
                .execute(params![table.id, hash])?;
        }
        Ok(())
    }

    pub(super) fn is_claimed(&self, table: &LocalTable, row: &[Value]) -> Result<bool, ApplyError> {
        for hash in hashes(table, row) {
            let sql = "SELECT 1 FROM claims WHERE table_id = ?1 AND hash IN (?2, ?3)";
            if hash == EVERYTHING || self.db.prepare_cached(sql)?.exists(params![table.id, hash, EVERYTHING])? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Something foreign comes under what is pending on a table.
    pub(super) fn mark_dirty(&mut self, table: &LocalTable) -> Result<(), ApplyError> {
        let dirty = if table.is_unique() { Dirty::Unique } else { Dirty::Plain };
        if let Some(state) = self.tables.get_mut(&table.name_lower)
            && state.dirty < dirty
        {
            state.dirty = dirty;
            let sql = "UPDATE tables SET dirty = ?2 WHERE id = ?1";
            self.db.prepare_cached(sql)?.execute(params![table.id, dirty as i64])?;
        }
        Ok(())
    }

    /// Tables without base have nothing to claim and start clean.
    pub(super) fn settle_tables(&mut self) -> Result<(), ApplyError> {
        let deferred = self.deferred.get_mut();
        let is_without = |state: &&mut TableState| state.base_rows.get() == 0 && deferred.rows_of(state.id) == 0;
        for state in self.tables.values_mut().filter(is_without) {
            // Without a look first, every commit would write here.
            if !state.uniques.is_empty()
                && self.db.prepare_cached("SELECT 1 FROM claims WHERE table_id = ?1 LIMIT 1")?.exists([state.id])?
            {
                self.db.prepare_cached("DELETE FROM claims WHERE table_id = ?1")?.execute([state.id])?;
            }
            if state.dirty > Dirty::Clean {
                state.dirty = Dirty::Clean;
                self.db.prepare_cached("UPDATE tables SET dirty = 0 WHERE id = ?1")?.execute([state.id])?;
            }
        }
        Ok(())
    }
}

fn hashes(table: &LocalTable, row: &[Value]) -> Vec<i64> {
    let mut out = Vec::new();
    for (i, index) in table.uniques.iter().enumerate() {
        let Some(columns) = index else { return vec![EVERYTHING] };
        let values: Row = columns.iter().filter_map(|c| row.get(*c).cloned()).collect();
        // NULLs never collide.
        if values.len() != columns.len() || values.iter().any(Value::is_null) {
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(i as u64).to_be_bytes());
        values.iter().for_each(|value| widen(&mut hasher, value));
        let hash = hasher.finalize();
        let hash = hash.as_bytes().first_chunk::<8>().map_or(EVERYTHING, |bytes| i64::from_be_bytes(*bytes));
        out.push(if hash == EVERYTHING { 1 } else { hash });
    }
    out
}

/// Feeds the same bytes for any two values that some collation or affinity calls equal. Text counts without
/// case and trailing spaces; indexes with an application's own collation claim everything.
fn widen(hasher: &mut blake3::Hasher, value: &Value) {
    match value {
        Value::Null => hasher.update(b"n"),
        Value::Integer(v) => hasher.update(b"f").update(&(*v as f64).to_bits().to_be_bytes()),
        // -0.0 and 0.0 are equal.
        Value::Real(v) => hasher.update(b"f").update(&(v + 0.0).to_bits().to_be_bytes()),
        Value::Text(bytes) => {
            let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            let text = bytes.get(..end).unwrap_or(bytes).to_ascii_lowercase();
            hasher.update(b"t").update(&(text.len() as u64).to_be_bytes()).update(&text)
        }
        Value::Blob(bytes) => hasher.update(b"b").update(&(bytes.len() as u64).to_be_bytes()).update(bytes),
    };
}
