//! Rows that had to make room for one of a transaction and come back in a later unit of it: nothing was overridden.
//!
//! The changes of a unit are folded together, those of a large transaction in several. A UNIQUE value that goes from row to row meets itself at the
//! border: the row that has it goes, is noted in the conflict journal, and comes back as its writer had it. What others had made of its other
//! columns is lost then, and the note stays; where nothing was, the note goes.
//!
//! Memory: a hash for each value of the rows, of as many rows as [`ROOMS_MAX`].

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::codec::push_value;
use super::error::ApplyError;
use super::shape::Change;
use super::state::State;
use crate::format::Value;
use crate::log::{Origin, Unit};

/// More rows than the journal has entries need not be known.
const ROOMS_MAX: usize = 1 << 16;

/// A transaction, over all nodes.
pub(super) type Transaction = (Origin, u64);

/// What is known of a row that made room.
#[derive(Debug)]
struct Room {
    /// For a row of this.
    of: Transaction,
    /// Its entry in the journal.
    conflict: i64,
    values: Vec<u64>,
}

/// The rows that made room, by table and key.
#[derive(Debug, Default)]
pub(super) struct Comebacks {
    /// The transaction that is folded.
    at: Option<Transaction>,
    rooms: HashMap<(i64, Vec<u8>), Room>,
}

fn hash(value: &Value) -> u64 {
    let mut bytes = Vec::new();
    push_value(&mut bytes, value);
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

impl Comebacks {
    /// A unit is folded.
    pub(super) fn begin(&mut self, origin: Origin, unit: &Unit) {
        self.at = Some((origin, unit.tx));
    }

    /// What comes is no unit's.
    pub(super) fn end(&mut self) {
        self.at = None;
    }

    /// A row has made room, which the newest entry of the journal tells.
    pub(super) fn made_room(&mut self, state: &State, (table, canonical): (i64, Vec<u8>), lost: &[Value]) {
        let Some(of) = self.at.filter(|_| self.rooms.len() < ROOMS_MAX) else { return };
        let values = lost.iter().map(hash).collect();
        self.rooms.insert((table, canonical), Room { of, conflict: state.db.last_insert_rowid(), values });
    }

    /// A row has come by a change. Whether an entry of the journal went with it.
    pub(super) fn came(
        &mut self,
        state: &State,
        table: i64,
        change: &Change<'_>,
        image: &[Value],
    ) -> Result<bool, ApplyError> {
        if self.rooms.is_empty() {
            return Ok(false);
        }
        let Some(room) = self.rooms.remove(&(table, change.canonical.clone())) else { return Ok(false) };
        let is_written = |column: usize| change.mask.get(column).copied().unwrap_or(false);
        let mut values = image.iter().zip(&room.values).enumerate();
        let is_as_it_was = image.len() == room.values.len()
            && values.all(|(column, (value, was))| is_written(column) || hash(value) == *was);
        if Some(room.of) != self.at || !is_as_it_was {
            return Ok(false);
        }
        let sql = "DELETE FROM conflicts WHERE id = ?1 AND fresh = 1";
        Ok(state.db.prepare_cached(sql)?.execute([room.conflict])? > 0)
    }
}
