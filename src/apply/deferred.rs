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
use crate::log::UNIT_BYTES_MAX;

/// Rows in all runs: whoever lays them out may hold the write lock of the user's database, and needs a quarter of a second for as many.
const RUNS_ROWS_MAX: u64 = 1 << 17;

/// Bytes in all runs, for the same reason.
const RUNS_BYTES_MAX: u64 = 32 << 20;

/// Bytes of the runs of one unit, which are in memory until it is whole.
const RUN_BYTES_MAX: usize = UNIT_BYTES_MAX;

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
}

impl Deferred {
    pub(super) fn rows_of(&self, table: i64) -> u64 {
        self.rows.get(&table).copied().unwrap_or(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
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
    /// Whether what the next change of a table puts into base may be kept with its unit, which has runs of so many bytes.
    pub(super) fn may_defer(&self, table: &LocalTable, bytes: usize) -> bool {
        let is_laid_out = self.table_state(table).is_none_or(|state| state.base_rows.get() > 0);
        // Rows that left the filter stay in base; and suspect units are looked for in it.
        !is_laid_out && !table.is_filtered() && !self.suspecting && bytes < RUN_BYTES_MAX && self.has_room_for_runs()
    }

    fn has_room_for_runs(&self) -> bool {
        let all = self.deferred.borrow().all;
        all.rows < RUNS_ROWS_MAX && all.bytes < RUNS_BYTES_MAX
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
        self.deferred.borrow_mut().take(unit, table.id)
    }

    /// A unit is about to be forgotten: what is left of its runs is not.
    pub(super) fn lay_out_rest(&self, unit: i64) -> Result<(), ApplyError> {
        let has_rest = self.deferred.borrow().units.get(&unit).is_some_and(|runs| !runs.alive.is_empty());
        if has_rest { self.lay_out() } else { Ok(()) }
    }

    /// Units that have come back are gone for good.
    pub(super) fn forget_runs(&self) {
        self.deferred.borrow_mut().units.retain(|_, runs| {
            runs.gone.clear();
            !runs.alive.is_empty()
        });
    }

    /// Nothing is pending any more.
    pub(super) fn clear_runs(&self) {
        self.deferred.replace(Deferred::default());
    }

    /// Has a table's base in `base`.
    pub(super) fn lay_out_of(&self, table: i64) -> Result<(), ApplyError> {
        if self.deferred.borrow().rows_of(table) == 0 {
            return Ok(());
        }
        if !self.db.is_autocommit() {
            return self.lay_out();
        }
        self.begin()?;
        let laid_out = self.lay_out().and_then(|()| self.commit());
        if laid_out.is_err() && !self.db.is_autocommit() {
            self.db.execute_batch("ROLLBACK")?;
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
