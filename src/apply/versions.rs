//! The row versions that a fold takes away and brings, one by one: they tell which rows of a larger change are ours.
//!
//! Few stay in memory. What is beyond that goes to `state.db`, in chunks that are sorted each for itself. A version comes and goes in turn,
//! so what became of it on the whole is the sum over all chunks: +1 came, -1 went, 0 is as it was.
//!
//! | table `intent_versions` | |
//! |---|---|
//! | `chunk` | counts from 0 within a fold |
//! | `sign` | 1: versions that came, -1: versions that went |
//! | `first` | the smallest hash of the row |
//! | `hashes` | ascending, eight bytes each, big-endian, signed; at most [`HASHES_PER_ROW`] |

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use rusqlite::{Connection, OptionalExtension, params};

use super::error::ApplyError;
use super::net_effect::hashes_of;
use super::state::State;
use crate::change::RowChange;

/// Sixteen bytes each in a hash set that is half full: ten megabytes.
const IN_MEMORY_MAX: usize = 1 << 18;

/// What one look-up reads: a page.
const HASHES_PER_ROW: usize = 480;

/// What is put in is a part of a hash already.
#[derive(Debug, Clone, Copy, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_i64(&mut self, hash: i64) {
        self.0 = hash.cast_unsigned();
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Hashes = HashSet<i64, BuildHasherDefault<AsItIs>>;

/// The versions that are in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Versions {
    came: Hashes,
    gone: Hashes,
}

impl Versions {
    pub(super) fn add_gone(&mut self, hash: &blake3::Hash) {
        if !self.came.remove(&short(hash)) {
            self.gone.insert(short(hash));
        }
    }

    pub(super) fn add_came(&mut self, hash: &blake3::Hash) {
        if !self.gone.remove(&short(hash)) {
            self.came.insert(short(hash));
        }
    }

    /// Whether there are as many as memory is meant for.
    pub(super) fn are_many(&self) -> bool {
        self.came.len() + self.gone.len() >= IN_MEMORY_MAX
    }
}

impl State {
    /// Begins a fold: what an intent of before left is forgotten. `revertible`: this one may be taken back.
    pub(super) fn begin_fold(&mut self, revertible: bool) -> Result<(), ApplyError> {
        self.revertible = revertible;
        self.db.prepare_cached("DELETE FROM intent_versions")?.execute([])?;
        Ok(())
    }

    /// Stores versions of the fold at hand.
    pub(super) fn store_versions(&self, versions: &Versions) -> Result<(), ApplyError> {
        store(&self.db, versions)
    }

    /// Whether a captured row is, after the change, what the stored versions made it.
    pub(super) fn made(&self, change: &RowChange) -> Result<bool, ApplyError> {
        Ok(match hashes_of(change) {
            (_, Some(after)) => self.became_of(short(&after))? > 0,
            (Some(before), None) => self.became_of(short(&before))? < 0,
            (None, None) => false,
        })
    }

    /// What became of a version on the whole.
    fn became_of(&self, hash: i64) -> Result<i64, ApplyError> {
        let mut chunks = self.db.prepare_cached("SELECT DISTINCT chunk, sign FROM intent_versions")?;
        let mut found = self.db.prepare_cached(
            "SELECT hashes FROM intent_versions WHERE chunk = ?1 AND sign = ?2 AND first <= ?3 ORDER BY first DESC LIMIT 1",
        )?;
        let mut sum = 0;
        let mut rows = chunks.query([])?;
        while let Some(row) = rows.next()? {
            let (chunk, sign): (i64, i64) = (row.get(0)?, row.get(1)?);
            let hashes: Option<Vec<u8>> = found.query_row(params![chunk, sign, hash], |row| row.get(0)).optional()?;
            let hashes = hashes.unwrap_or_default();
            if hashes.as_chunks::<8>().0.binary_search_by_key(&hash, |bytes| i64::from_be_bytes(*bytes)).is_ok() {
                sum += sign;
            }
        }
        Ok(sum)
    }
}

fn store(db: &Connection, versions: &Versions) -> Result<(), ApplyError> {
    let chunk: i64 = db
        .prepare_cached("SELECT coalesce(max(chunk), -1) + 1 FROM intent_versions")?
        .query_row([], |row| row.get(0))?;
    let insert = "INSERT INTO intent_versions(chunk, sign, first, hashes) VALUES(?1, ?2, ?3, ?4)";
    let mut insert = db.prepare_cached(insert)?;
    for (sign, hashes) in [(1, &versions.came), (-1, &versions.gone)] {
        let mut hashes: Vec<i64> = hashes.iter().copied().collect();
        hashes.sort_unstable();
        for row in hashes.chunks(HASHES_PER_ROW) {
            let bytes: Vec<u8> = row.iter().flat_map(|hash| hash.to_be_bytes()).collect();
            insert.execute(params![chunk, sign, row.first(), bytes])?;
        }
    }
    Ok(())
}

/// Takes the versions over from a state of version 2, which kept them in one value: the count of those that came, then they, then those
/// that went; eight bytes each.
pub(super) fn take_old_versions(db: &Connection) -> Result<(), ApplyError> {
    let bytes: Option<Vec<u8>> =
        db.query_row("SELECT value FROM meta WHERE name = 'intent_versions'", [], |row| row.get(0)).optional()?;
    let bytes = bytes.unwrap_or_default();
    let mut numbers = bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_be_bytes(*bytes));
    let count = usize::try_from(numbers.next().unwrap_or_default()).unwrap_or_default();
    let came = numbers.by_ref().take(count).collect();
    store(db, &Versions { came, gone: numbers.collect() })?;
    db.execute("DELETE FROM meta WHERE name = 'intent_versions'", [])?;
    Ok(())
}

fn short(hash: &blake3::Hash) -> i64 {
    hash.as_bytes().first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Origin;

    fn hash(number: u64) -> blake3::Hash {
        blake3::hash(&number.to_be_bytes())
    }

    #[test]
    fn what_became_of_a_version_is_the_sum_over_all_chunks() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::open(&folder.path().join("state.db"), "app", Origin { node_id: 1, epoch: 1 }).unwrap();
        let count = 3 * HASHES_PER_ROW as u64;
        // Every third stays, every third goes again in a later chunk, every third had gone first and comes back.
        let mut first = Versions::default();
        let mut second = Versions::default();
        for number in 0..count {
            match number % 3 {
                0 => first.add_came(&hash(number)),
                1 => {
                    first.add_came(&hash(number));
                    second.add_gone(&hash(number));
                }
                _ => {
                    first.add_gone(&hash(number));
                    second.add_came(&hash(number));
                }
            }
            second.add_gone(&hash(count + number));
        }
        state.store_versions(&first).unwrap();
        state.store_versions(&second).unwrap();
        for number in 0..count {
            let wanted = i64::from(number % 3 == 0);
            assert_eq!(state.became_of(short(&hash(number))).unwrap(), wanted, "{number}");
            assert_eq!(state.became_of(short(&hash(count + number))).unwrap(), -1, "{number}");
            assert_eq!(state.became_of(short(&hash(2 * count + number))).unwrap(), 0, "{number}");
        }
        state.begin_fold(true).unwrap();
        assert_eq!(state.became_of(short(&hash(0))).unwrap(), 0);
    }

    #[test]
    fn a_state_of_version_2_keeps_its_versions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let open = || State::open(&path, "app", Origin { node_id: 1, epoch: 1 }).unwrap();
        let state = open();
        let old = [2, short(&hash(1)), short(&hash(2)), short(&hash(3))];
        let bytes: Vec<u8> = old.iter().flat_map(|number: &i64| number.to_be_bytes()).collect();
        state.db.execute("INSERT INTO meta(name, value) VALUES('intent_versions', ?1)", [bytes]).unwrap();
        let newer = ["intent_versions", "beginnings", "intent_schema", "moved_in", "steps_made"];
        newer.iter().for_each(|table| state.db.execute_batch(&format!("DROP TABLE {table}")).unwrap());
        state.db.execute_batch("DROP INDEX pending_barrier; ALTER TABLE pending DROP COLUMN runs").unwrap();
        state
            .db
            .execute_batch("ALTER TABLE pending DROP COLUMN laid_out; ALTER TABLE pending_unit DROP COLUMN base")
            .unwrap();
        state.db.execute_batch("CREATE TABLE schema_steps(digest BLOB PRIMARY KEY) WITHOUT ROWID").unwrap();
        state.db.execute_batch("PRAGMA user_version = 2").unwrap();
        drop(state);
        let state = open();
        let became: Vec<i64> = (0..5).map(|number| state.became_of(short(&hash(number))).unwrap()).collect();
        assert_eq!(became, [0, 1, 1, -1, 0]);
        drop(state);
        assert_eq!(open().became_of(short(&hash(3))).unwrap(), -1);
    }
}
