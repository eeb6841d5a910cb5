//! Base that is kept with the units it comes from, and not by row: most own units come back before anybody asks for one of their rows.
//!
//! A captured change puts the row as it was into base, and takes it out when the unit comes back. As long as nobody else's change of the
//! table comes between, nobody looks at it. So it is stored with the unit as one run of entries, and goes with the unit. Whoever asks for a
//! row of such a table has all runs laid out in `base` first, in the order of the units: then it is as if it had always been there.
//!
//! Invariant: the base of a table is in runs or in `base`, never in both.
//!
//! ```text
//! pending.runs        (varint table, varint rows, varint bytes)*
//! pending_unit.base   (varint table, varint bytes, (varint length, key, varint length, entry)*)*
//! ```
//!
//! An entry is one of `base`, with its unit as all that is pending. `pending.laid_out` tells that the runs are in `base` by now.

use std::collections::{BTreeMap, HashMap, HashSet};

use rusqlite::OptionalExtension;

use super::base::{BaseRow, write_base};
use super::codec::{Reader, push_varint};
use super::error::ApplyError;
use super::pending_units::PendingUnits;
use super::shape::LocalTable;
use super::state::State;
use crate::log::UNIQUE_UNIT_BYTES_MAX;

/// Rows in all runs, and twice the units: whoever lays them out beside a fold may have to keep the keys of all of them in memory.
const RUNS_ROWS_MAX: u64 = 1 << 18;

/// Bytes in all runs, for the same reason.
const RUNS_BYTES_MAX: u64 = 64 << 20;

/// Rows and twice the units, and bytes, that may be laid out under the write lock of the user's database: that takes some hundred milliseconds. Where
/// there are more, they are laid out before the lock is taken.
const UNDER_LOCK_MAX: Size = Size { rows: 1 << 15, bytes: 32 << 20 };

/// Bytes of the runs of one unit, which are in memory until it is whole.
const RUN_BYTES_MAX: usize = UNIQUE_UNIT_BYTES_MAX;

const DAMAGED: ApplyError = ApplyError::Damaged { what: "base of a pending unit" };

/// What a unit that is being filled says about one table.
#[derive(Debug)]
pub(super) struct Touched {
    pub(super) table: i64,
    pub(super) run: Run,
}

/// Entries of base, in the order of the changes they come from.
#[derive(Debug, Default)]
pub(super) struct Run {
    rows: u64,
    bytes: Vec<u8>,
}

impl Touched {
    pub(super) fn new(table: i64) -> Touched {
        Touched { table, run: Run::default() }
    }
}

impl Run {
    /// Adds the row as it was before the change of a unit.
    pub(super) fn push(&mut self, table: &LocalTable, key: &[u8], base: BaseRow, unit: i64) {
        let entry = write_base(table, &BaseRow { pending: PendingUnits::Few(vec![unit]), ..base });
        push_varint(&mut self.bytes, key.len() as u64);
        self.bytes.extend_from_slice(key);
        push_varint(&mut self.bytes, entry.len() as u64);
        self.bytes.extend_from_slice(&entry);
        self.rows += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of its entries.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// How much there is in runs.
#[derive(Debug, Default, Clone, Copy)]
struct Size {
    rows: u64,
    bytes: u64,
}

/// The runs of a unit as they are stored.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) summary: Vec<u8>,
    pub(super) base: Vec<u8>,
}

/// The runs of one unit by table.
#[derive(Debug, Default)]
struct Runs {
    alive: Vec<(i64, Size)>,
    /// Of tables for which the unit has come back, by what is not settled yet.
    gone: Vec<i64>,
}

/// All runs that are not laid out.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    units: BTreeMap<i64, Runs>,
    /// Rows by table; no table has zero.
    rows: HashMap<i64, u64>,
    all: Size,
    /// Tables and units with runs that are gone and not settled.
    gone_of: HashSet<i64>,
    gone_units: Vec<i64>,
}

impl Deferred {
    pub(super) fn rows_of(&self, table: i64) -> u64 {
        self.rows.get(&table).copied().unwrap_or(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether a table has runs, be it that all of them are gone: base as it was before has those.
    fn has(&self, table: i64) -> bool {
        self.rows.contains_key(&table) || self.gone_of.contains(&table)
    }

    fn has_room(&self) -> bool {
        self.is_within(RUNS_ROWS_MAX, RUNS_BYTES_MAX)
    }

    fn is_within(&self, rows: u64, bytes: u64) -> bool {
        self.all.rows + 2 * self.units.len() as u64 <= rows && self.all.bytes < bytes
    }

    fn add(&mut self, unit: i64, table: i64, size: Size) {
        self.units.entry(unit).or_default().alive.push((table, size));
        *self.rows.entry(table).or_default() += size.rows;
        self.all.rows += size.rows;
        self.all.bytes += size.bytes;
    }

    /// The unit has come back; whether it has such a run.
    fn take(&mut self, unit: i64, table: i64) -> bool {
        let Some(runs) = self.units.get_mut(&unit) else { return false };
        let Some(at) = runs.alive.iter().position(|(of, _)| *of == table) else { return false };
        let (_, size) = runs.alive.swap_remove(at);
        runs.gone.push(table);
        self.gone_of.insert(table);
        self.gone_units.push(unit);
        self.all.rows = self.all.rows.saturating_sub(size.rows);
        self.all.bytes = self.all.bytes.saturating_sub(size.bytes);
        let left = self.rows_of(table).saturating_sub(size.rows);
        match left {
            0 => drop(self.rows.remove(&table)),
            _ => drop(self.rows.insert(table, left)),
        }
        true
    }
}

impl State {
    /// Whether what the next change of a table puts into base may be kept with its unit, whose runs have so many bytes with it.
    pub(super) fn may_defer(&self, table: &LocalTable, bytes: usize) -> bool {
        let is_laid_out = self.table_state(table).is_none_or(|state| state.base_rows.get() > 0);
        // Rows that left the filter stay in base; and suspect units are looked for in it.
        !is_laid_out
            && !table.is_filtered()
            && !self.suspecting
            && bytes <= RUN_BYTES_MAX
            && self.deferred.borrow().has_room()
    }

    /// The runs of a unit as they are kept with it. What has base in `base` already is laid out there instead.
    pub(super) fn runs_of(&mut self, unit: i64, touched: &[Touched]) -> Result<Option<Kept>, ApplyError> {
        let mut kept = Kept::default();
        for Touched { table, run } in touched.iter().filter(|touched| !touched.run.is_empty()) {
            if self.tables.values().any(|known| known.id == *table && known.base_rows.get() > 0) {
                self.lay_out_run(unit, *table, run)?;
                continue;
            }
            let size = Size { rows: run.rows, bytes: run.bytes.len() as u64 };
            push_varint(&mut kept.summary, *table as u64);
            push_varint(&mut kept.summary, size.rows);
            push_varint(&mut kept.summary, size.bytes);
            push_varint(&mut kept.base, *table as u64);
            push_varint(&mut kept.base, size.bytes);
            kept.base.extend_from_slice(&run.bytes);
            self.deferred.get_mut().add(unit, *table, size);
        }
        Ok(Some(kept).filter(|kept| !kept.summary.is_empty()))
    }

    /// Puts a run of a unit that is being filled into `base`.
    pub(super) fn lay_out_run(&self, unit: i64, table: i64, run: &Run) -> Result<(), ApplyError> {
        self.lay_out_of(table)?;
        self.lay_out_entries(unit, table, &run.bytes, |_| true)
    }

    fn lay_out_entries(
        &self,
        unit: i64,
        table: i64,
        run: &[u8],
        is_meant: impl Fn(&[u8]) -> bool,
    ) -> Result<(), ApplyError> {
        let mut added = 0;
        each_entry(run, |key, entry| {
            if is_meant(key) {
                added += u64::from(self.lay_out_row(table, key, entry, unit)?);
            }
            Ok(())
        })?;
        self.count_rows(table, |rows| rows + added);
        Ok(())
    }

    fn count_rows(&self, table: i64, change: impl FnOnce(u64) -> u64) {
        if let Some(state) = self.tables.values().find(|state| state.id == table) {
            state.base_rows.update(change);
        }
    }

    /// Takes out of base what a unit put there that has come back, where it is kept with the unit. Whether it is.
    pub(super) fn take_run(&self, unit: i64, table: &LocalTable) -> bool {
        // It may have got a name since that has a filter.
        !table.is_filtered() && self.deferred.borrow_mut().take(unit, table.id)
    }

    /// A unit is about to be forgotten: what is left of its runs is not.
    pub(super) fn lay_out_rest(&self, unit: i64) -> Result<(), ApplyError> {
        let has_rest = self.deferred.borrow().units.get(&unit).is_some_and(|runs| !runs.alive.is_empty());
        if has_rest { self.lay_out() } else { Ok(()) }
    }

    /// Units that have come back are gone for good.
    pub(super) fn forget_runs(&self) {
        let Deferred { units, gone_of, gone_units, .. } = &mut *self.deferred.borrow_mut();
        gone_of.clear();
        for unit in gone_units.drain(..) {
            if let Some(runs) = units.get_mut(&unit) {
                runs.gone.clear();
                if runs.alive.is_empty() {
                    units.remove(&unit);
                }
            }
        }
    }

    /// Nothing is pending any more.
    pub(super) fn clear_runs(&self) {
        self.deferred.replace(Deferred::default());
    }

    /// Has a table's base in `base`.
    pub(super) fn lay_out_of(&self, table: i64) -> Result<(), ApplyError> {
        if !self.deferred.borrow().has(table) {
            return Ok(());
        }
        if !self.db.is_autocommit() {
            return self.lay_out();
        }
        self.begin()?;
        let laid_out = self.lay_out().and_then(|()| self.commit());
        if laid_out.is_err() {
            if !self.db.is_autocommit() {
                self.db.execute_batch("ROLLBACK")?;
            }
            self.deferred.replace(load(&self.db)?);
            self.count_base()?;
        }
        laid_out
    }

    /// Whether a table's base is in runs.
    pub(super) fn has_runs(&self, table: &LocalTable) -> bool {
        self.deferred.borrow().rows_of(table.id) > 0
    }

    /// Hands out each row of a table's runs once, as the oldest has it, and leaves them where they are.
    pub(super) fn each_deferred(
        &self,
        table: &LocalTable,
        mut each: impl FnMut(BaseRow) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let is_of = |(unit, runs): (&i64, &Runs)| runs.alive.iter().any(|(of, _)| *of == table.id).then_some(*unit);
        let units: Vec<i64> = self.deferred.borrow().units.iter().filter_map(is_of).collect();
        let mut given = HashSet::new();
        for unit in units {
            each_run(&self.kept_base(unit)?, |of, run| {
                each_entry(run, |key, entry| {
                    let is_first = of == table.id && given.insert(key.to_vec());
                    if is_first { each(self.read_base(table, entry)?) } else { Ok(()) }
                })
            })?;
        }
        Ok(())
    }

    /// Has all of base in `base`: whoever reads the state from outside finds it there.
    pub(super) fn lay_out_all(&self) -> Result<(), ApplyError> {
        let tables: Vec<i64> = self.deferred.borrow().rows.keys().copied().collect();
        tables.into_iter().try_for_each(|table| self.lay_out_of(table))
    }

    /// Whether laying out takes longer than others may be kept from writing.
    pub(super) fn has_many_runs(&self) -> bool {
        !self.deferred.borrow().is_within(UNDER_LOCK_MAX.rows, UNDER_LOCK_MAX.bytes)
    }

    /// Lays out all runs.
    ///
    /// A fold that may be taken back may have taken some away already. Base as it was before the fold has them, so they are put there first
    /// and then taken out, as they would have been.
    fn lay_out(&self) -> Result<(), ApplyError> {
        let deferred = self.deferred.take();
        for unit in deferred.units.keys() {
            each_run(&self.kept_base(*unit)?, |table, run| self.lay_out_entries(*unit, table, run, |_| true))?;
            self.db.prepare_cached("UPDATE pending SET laid_out = 1 WHERE id = ?1")?.execute([*unit])?;
        }
        let has_gone = |runs: &Runs| !runs.gone.is_empty();
        if !deferred.units.values().any(has_gone) {
            return Ok(());
        }
        let mut taken: HashMap<i64, HashSet<Vec<u8>>> = HashMap::new();
        for (unit, runs) in &deferred.units {
            each_run(&self.kept_base(*unit)?, |table, run| {
                let keys = taken.entry(table).or_default();
                if !runs.gone.contains(&table) {
                    return self.lay_out_entries(*unit, table, run, |key| keys.contains(key));
                }
                let mut removed = 0;
                each_entry(run, |key, _| {
                    removed += u64::from(self.remove_row(table, key)?);
                    keys.insert(key.to_vec());
                    Ok(())
                })?;
                self.count_rows(table, |rows| rows.saturating_sub(removed));
                Ok(())
            })?;
        }
        Ok(())
    }

    fn kept_base(&self, unit: i64) -> Result<Vec<u8>, ApplyError> {
        let sql = "SELECT base FROM pending_unit WHERE id = ?1";
        let found = self.db.prepare_cached(sql)?.query_row([unit], |row| row.get(0)).optional()?;
        found.flatten().ok_or(DAMAGED)
    }
}

fn each_run<'b>(
    bytes: &'b [u8],
    mut each: impl FnMut(i64, &'b [u8]) -> Result<(), ApplyError>,
) -> Result<(), ApplyError> {
    let mut reader = Reader::new(bytes);
    while !reader.rest().is_empty() {
        let table = reader.varint()? as i64;
        each(table, reader.counted()?)?;
    }
    Ok(())
}

fn each_entry<'b>(
    bytes: &'b [u8],
    mut each: impl FnMut(&'b [u8], &'b [u8]) -> Result<(), ApplyError>,
) -> Result<(), ApplyError> {
    let mut reader = Reader::new(bytes);
    while !reader.rest().is_empty() {
        let key = reader.counted()?;
        each(key, reader.counted()?)?;
    }
    Ok(())
}

/// Reads again which runs there are.
pub(super) fn load(db: &rusqlite::Connection) -> Result<Deferred, ApplyError> {
    let mut deferred = Deferred::default();
    let sql = "SELECT id, runs FROM pending WHERE runs IS NOT NULL AND laid_out = 0 AND folded = 0";
    let mut found = db.prepare_cached(sql)?;
    let mut rows = found.query([])?;
    while let Some(row) = rows.next()? {
        let (unit, summary): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let mut reader = Reader::new(&summary);
        while !reader.rest().is_empty() {
            let table = reader.varint()? as i64;
            deferred.add(unit, table, Size { rows: reader.varint()?, bytes: reader.varint()? });
        }
    }
    Ok(deferred)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::change::{RowKey, canonical_key};
    use crate::format::{PageNo, Value};
    use crate::log::{Origin, ShardId, StreamSeq, UNIT_BYTES_MAX, UnitBuilder, UnitChange, UnitKey, UnitOrigin};
    use crate::schema::{Catalogue, SchemaRow};

    struct Scene {
        _dir: tempfile::TempDir,
        state: State,
        tables: Vec<Arc<LocalTable>>,
    }

    impl Scene {
        /// A state with the tables `t` and `x` of two columns.
        fn new() -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let origin = Origin { node_id: 1, epoch: 1 };
            let mut state = State::open(&dir.path().join("state.db"), "app", origin).unwrap();
            let row = |(no, name): (u32, &str)| SchemaRow {
                kind: "table".to_owned(),
                name: name.to_owned(),
                table: name.to_owned(),
                root: PageNo::new(no),
                sql: Some(format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, v)")),
            };
            let catalogue = Catalogue::build([(2, "t"), (3, "x")].map(row).to_vec(), u32::MAX).unwrap();
            let tables = ["t", "x"].map(|name| state.local_table(catalogue.table(name).unwrap()).unwrap()).to_vec();
            Scene { _dir: dir, state, tables }
        }

        fn key(&self, table: usize, id: i64) -> Vec<u8> {
            canonical_key(&self.tables[table].table, &RowKey::Columns(vec![Value::Integer(id)]))
        }

        fn row(id: i64, v: i64) -> BaseRow {
            let row = Some(vec![Value::Integer(id), Value::Integer(v)]);
            BaseRow { pending: PendingUnits::NONE, key: RowKey::Columns(vec![Value::Integer(id)]), row }
        }

        /// A transaction that updates rows which had these values.
        fn update(&mut self, table: usize, rows: &[(i64, i64)]) -> i64 {
            let local = Arc::clone(&self.tables[table]);
            let unit = self.state.pending_id();
            let from = UnitOrigin { tx: unit as u64, salts: [0; 8], frame: 1, repaired: false, seen: StreamSeq(0) };
            let mut builder = UnitBuilder::new(from, UNIT_BYTES_MAX);
            let mut touched = Touched::new(local.id);
            for (id, before) in rows {
                assert!(self.state.may_defer(&local, touched.run.len()));
                touched.run.push(&local, &self.key(table, *id), Scene::row(*id, *before), unit);
                let change = UnitChange {
                    table: 0,
                    op: crate::change::Op::Update,
                    key: UnitKey::Columns(vec![Value::Integer(*id)]),
                    image: Some(vec![Value::Integer(*id), Value::Integer(before + 1)]),
                    mask: vec![false, true],
                    before: None,
                    if_there: false,
                };
                assert_eq!(builder.push(&local.shape, change), None);
            }
            self.state.begin().unwrap();
            self.state.push_pending(unit, ShardId(1), &builder.finish().unwrap(), &[touched], false).unwrap();
            self.state.commit().unwrap();
            unit
        }

        /// What base has of each row of a table: its value, and whether units are pending on it.
        fn base(&self, table: usize) -> Vec<(i64, Option<Value>, bool)> {
            let mut all = Vec::new();
            let local = &self.tables[table];
            let each = |_: &[u8], base: BaseRow| {
                let RowKey::Columns(key) = &base.key else { panic!("tables have keys") };
                let Value::Integer(id) = key[0] else { panic!("keys are numbers") };
                all.push((id, base.row.map(|row| row[1].clone()), !base.pending.is_empty()));
                Ok(())
            };
            self.state.each_base(local, each).unwrap();
            assert_eq!(self.state.base_rows(local), all.len() as u64, "rows are counted");
            all
        }
    }

    fn value(v: i64) -> Option<Value> {
        Some(Value::Integer(v))
    }

    #[test]
    fn a_row_that_comes_into_base_behind_a_run_that_is_gone_stays_there() {
        let mut scene = Scene::new();
        let first = scene.update(0, &[(1, 10), (2, 20)]);
        scene.update(1, &[(1, 10)]);
        let (t, x) = (Arc::clone(&scene.tables[0]), Arc::clone(&scene.tables[1]));
        scene.state.begin().unwrap();
        scene.state.begin_fold(true).unwrap();
        scene.state.mark_folded(first).unwrap();
        assert!(scene.state.take_run(first, &t));
        assert_eq!(scene.state.base_rows(&t), 0);
        let key = scene.key(0, 1);
        scene.state.set_base(&t, &key, &Scene::row(1, 99)).unwrap();
        // Another table is asked for, which has its base in runs.
        assert!(scene.state.base_has(&x, &scene.key(1, 1)).unwrap());
        assert_eq!(scene.base(0), [(1, value(99), false)]);
        scene.state.commit().unwrap();
        // It is taken back: base is as it was before the fold, with the unit pending.
        scene.state.begin().unwrap();
        scene.state.revert_intent().unwrap();
        scene.state.commit().unwrap();
        assert_eq!(scene.base(0), [(1, value(10), true), (2, value(20), true)]);
        assert_eq!(scene.base(1), [(1, value(10), true)]);
    }

    #[test]
    fn a_row_of_several_units_is_in_base_as_the_oldest_that_is_pending_found_it() {
        let mut scene = Scene::new();
        let units = [10, 11, 12].map(|before| scene.update(0, &[(1, before), (before, 0)]));
        let t = Arc::clone(&scene.tables[0]);
        scene.state.begin().unwrap();
        scene.state.begin_fold(true).unwrap();
        scene.state.mark_folded(units[0]).unwrap();
        assert!(scene.state.take_run(units[0], &t) && !scene.state.take_run(units[0], &t), "it goes once");
        assert_eq!(scene.base(0), [(1, value(11), true), (11, value(0), true), (12, value(0), true)]);
        scene.state.rollback().unwrap();
        let all = [(1, value(10), true), (10, value(0), true), (11, value(0), true), (12, value(0), true)];
        assert_eq!(scene.base(0), all, "laid out once more, outside of a transaction");
        assert!(!scene.state.may_defer(&t, 0), "a table's base is in one place");
        let path = scene._dir.path().join("state.db");
        let state = State::open(&path, "app", Origin { node_id: 1, epoch: 1 }).unwrap();
        assert_eq!((state.base_rows(&t), state.deferred.borrow().is_empty()), (4, true), "another process finds it so");
    }

    #[test]
    fn runs_have_bounds() {
        let mut scene = Scene::new();
        let t = Arc::clone(&scene.tables[0]);
        assert!(scene.state.may_defer(&t, RUN_BYTES_MAX) && !scene.state.may_defer(&t, RUN_BYTES_MAX + 1));
        let rows: Vec<(i64, i64)> = (0..1000).map(|id| (id, 0)).collect();
        let units = (0..).take_while(|_| {
            let has_room = scene.state.may_defer(&scene.tables[0], 0);
            if has_room {
                scene.update(0, &rows);
            }
            has_room
        });
        assert_eq!(units.count() as u64, RUNS_ROWS_MAX / 1002 + 1);
    }
}
