//! The fold at one moment, read beside everything that goes on: digests of its tables, and single rows of it.
//!
//! The database as a read transaction keeps it, with base in place: what is pending here is no part of it. Sums of hashes do not depend on
//! the order of rows, so base needs no place in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, ErrorCode};

use super::codec::{Reader, push_key, push_row};
use super::connection::open_applying_connection;
use super::error::ApplyError;
use super::shape::LocalTable;
use super::snapshot::{FrozenState, tables_of};
use super::statements::{Rows, SELECT_ROWS};
use crate::change::{RowKey, canonical_key};
use crate::format::Row;
use crate::log::TableShape;
use crate::schema::{RowFilters, Table};

/// Sums that a table's rows are spread over by their keys.
pub const FOLD_BUCKETS: u16 = 1024;

/// Steps of SQLite's machine between two looks at the bounds: about a millisecond.
const STEPS_BETWEEN_LOOKS: std::ffi::c_int = 20_000;

/// How long the read transaction may keep the application's log from beginning anew.
#[derive(Debug, Clone, Copy)]
pub struct FoldBounds {
    /// Reading ends here.
    pub until: Instant,
    /// Reading ends when the log has grown beyond this many bytes, or by as many where it was longer already: a file keeps its length when a log
    /// begins anew. `None`: whatever it has.
    pub wal_bytes_max: Option<u64>,
}

/// What can be said of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldDigest {
    /// How many rows there are.
    pub rows: u64,
    /// Sums of the rows' hashes, by the hash of the key: [`FOLD_BUCKETS`] of them.
    pub buckets: Vec<u128>,
}

impl FoldDigest {
    /// Everything in one number.
    #[must_use]
    pub fn root(&self) -> u128 {
        let mut bytes = self.rows.to_be_bytes().to_vec();
        self.buckets.iter().for_each(|sum| bytes.extend_from_slice(&sum.to_be_bytes()));
        first_u128(&bytes)
    }
}

/// A row as bytes, for [`decode_fold_row`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldRow {
    /// Its key.
    pub key: Vec<u8>,
    /// Its values.
    pub row: Vec<u8>,
}

/// Reads what [`FoldReader::rows`] gave.
///
/// # Errors
/// When the bytes are no row.
pub fn decode_fold_row(row: &FoldRow) -> Result<(RowKey, Row), ApplyError> {
    Ok((Reader::new(&row.key).key()?, Reader::new(&row.row).row()?))
}

/// A table of the fold.
#[derive(Debug)]
pub struct FoldTable(LocalTable);

impl FoldTable {
    /// Its name, columns and key.
    #[must_use]
    pub fn shape(&self) -> &TableShape {
        &self.0.shape
    }
}

/// Reads the fold of one moment. Dropping it lets the application's log go.
#[derive(Debug)]
pub struct FoldReader {
    conn: Connection,
    frozen: FrozenState,
    bounds: Arc<Mutex<FoldBounds>>,
}

impl FoldReader {
    /// Takes hold of database and state as they are now. To be called under the write lock, when everything that is committed is captured:
    /// then they are of the same moment.
    ///
    /// # Errors
    /// When one of the databases fails.
    pub fn open(database: &Path, state: &Path, bounds: FoldBounds) -> Result<FoldReader, ApplyError> {
        let doing = |source| ApplyError::Database { doing: "beginning to read the fold", source };
        let mut conn = open_applying_connection(database)?;
        conn.pragma_update(None, "query_only", true).map_err(doing)?;
        conn.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema").map_err(doing)?;
        let mut wal = database.as_os_str().to_owned();
        wal.push("-wal");
        let bounds = Arc::new(Mutex::new(bounds));
        let of_handler = Arc::clone(&bounds);
        let began_with = std::fs::metadata(&wal).map_or(0, |found| found.len());
        let is_over = move || {
            let bounds = *of_handler.lock().unwrap_or_else(PoisonError::into_inner);
            // A look at the name opens nothing.
            let is_long = |max: u64| {
                let max = if began_with < max { max } else { began_with.saturating_add(max) };
                std::fs::metadata(&wal).is_ok_and(|found| found.len() > max)
            };
            Instant::now() >= bounds.until || bounds.wal_bytes_max.is_some_and(is_long)
        };
        conn.progress_handler(STEPS_BETWEEN_LOOKS, Some(is_over)).map_err(doing)?;
        Ok(FoldReader { conn, frozen: FrozenState::open(state)?, bounds })
    }

    /// The state of that moment.
    #[must_use]
    pub fn frozen(&self) -> &FrozenState {
        &self.frozen
    }

    /// Moves the end of reading.
    pub fn read_until(&self, until: Instant) {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner).until = until;
    }

    /// The tables that can travel; of their rows those within the filters are read.
    ///
    /// # Errors
    /// When the database fails.
    pub fn tables(&self, filters: &RowFilters) -> Result<Vec<FoldTable>, ApplyError> {
        let tables = tables_of(&self.conn, "main")?.into_iter();
        let travel = tables.filter(|table| !table.is_internal() && table.shadow_of.is_none());
        let fold_table = |table: Arc<Table>| {
            let mut table = self.frozen.table_of(&table)?;
            table.set_filters(filters)?;
            Ok(FoldTable(table))
        };
        travel.map(fold_table).collect()
    }

    /// Digests a table.
    ///
    /// # Errors
    /// When the database fails, or a bound is reached ([`is_out_of_bounds`]).
    pub fn digest(&self, table: &FoldTable) -> Result<FoldDigest, ApplyError> {
        let mut digest = FoldDigest { rows: 0, buckets: vec![0; usize::from(FOLD_BUCKETS)] };
        self.each(table, |place, _, row| {
            if let Some(sum) = digest.buckets.get_mut(usize::from(place.bucket())) {
                *sum = sum.wrapping_add(place.hash(row));
            }
            digest.rows += 1;
        })?;
        Ok(digest)
    }

    /// Hashes of keys and rows in some buckets, at most `count_max` of them, those with the least hashes of keys; and whether these are all.
    ///
    /// # Errors
    /// As [`FoldReader::digest`].
    pub fn hashes(
        &self,
        table: &FoldTable,
        buckets: &BTreeSet<u16>,
        count_max: usize,
    ) -> Result<(BTreeMap<u64, u64>, bool), ApplyError> {
        let mut hashes = BTreeMap::new();
        let mut all = true;
        self.each(table, |place, _, row| {
            if buckets.contains(&place.bucket()) {
                hashes.insert(place.key_hash, place.hash(row) as u64);
                if hashes.len() > count_max {
                    hashes.pop_last();
                    all = false;
                }
            }
        })?;
        Ok((hashes, all))
    }

    /// The rows whose keys have these hashes.
    ///
    /// # Errors
    /// As [`FoldReader::digest`].
    pub fn rows(&self, table: &FoldTable, keys: &BTreeSet<u64>) -> Result<BTreeMap<u64, FoldRow>, ApplyError> {
        let mut rows = BTreeMap::new();
        self.each(table, |place, key, row| {
            if keys.contains(&place.key_hash) {
                let mut found = FoldRow { key: Vec::new(), row: Vec::new() };
                push_key(&mut found.key, key);
                push_row(&mut found.row, row);
                rows.insert(place.key_hash, found);
            }
        })?;
        Ok(rows)
    }

    /// Hands out every row of the fold, in no order.
    fn each(&self, table: &FoldTable, mut each: impl FnMut(&Place<'_>, &RowKey, &Row)) -> Result<(), ApplyError> {
        let table = &table.0;
        let rows = Rows::new(&self.conn)?;
        let mut hand_out = |canonical: &[u8], key: &RowKey, row: &Row| -> Result<(), ApplyError> {
            if table.takes(key, row)? {
                each(&Place { canonical, key_hash: first_u64(canonical) }, key, row);
            }
            Ok(())
        };
        rows.each(table, &format!("{SELECT_ROWS} FROM {}", table.sql.name), |row, rowid| {
            let key = table.key_of(&row, rowid);
            let canonical = canonical_key(&table.table, &key);
            if !self.frozen.base_has(table, &canonical)? {
                hand_out(&canonical, &key, &row)?;
            }
            Ok(())
        })?;
        self.frozen.each_base(table, |canonical, key, row| hand_out(canonical, key, row))
    }
}

/// Where a row belongs.
struct Place<'a> {
    canonical: &'a [u8],
    key_hash: u64,
}

impl Place<'_> {
    fn bucket(&self) -> u16 {
        (self.key_hash % u64::from(FOLD_BUCKETS)) as u16
    }

    fn hash(&self, row: &Row) -> u128 {
        let mut bytes = self.canonical.to_vec();
        push_row(&mut bytes, row);
        first_u128(&bytes)
    }
}

fn first_u64(bytes: &[u8]) -> u64 {
    blake3::hash(bytes).as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn first_u128(bytes: &[u8]) -> u128 {
    blake3::hash(bytes).as_bytes().first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

/// Whether reading ended at one of its bounds.
#[must_use]
pub fn is_out_of_bounds(error: &ApplyError) -> bool {
    match error {
        ApplyError::Database { source, .. } => source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted),
        _ => false,
    }
}
