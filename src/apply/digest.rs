//! Digests of tables: what two databases hold can be compared without either seeing the other's rows.

use rusqlite::Connection;

use super::codec::push_row;
use super::error::ApplyError;
use super::shape::LocalTable;
use super::snapshot::tables_of;
use super::statements::{Rows, SELECT_ROWS};
use crate::change::canonical_key;
use crate::log::TableDigest;
use crate::schema::{RowFilters, TableFilter};

/// Digests of all tables together have at most this many buckets: they travel in one message.
const BUCKETS_MAX: usize = 64 << 10;
/// As many rows that differ can be told apart in one table.
const TABLE_BUCKETS_MAX: usize = 1024;

/// Digests every table of a database that travels and passes the filter. Tables that cannot be read here (a collation of the
/// application's) are left out.
///
/// # Errors
/// When the database fails.
pub fn table_digests(
    conn: &Connection,
    filter: &TableFilter,
    rows_of: &RowFilters,
) -> Result<Vec<TableDigest>, ApplyError> {
    let rows = Rows::new(conn)?;
    let mut tables = tables_of(conn, "main")?;
    tables.retain(|table| !table.is_internal() && table.shadow_of.is_none() && filter.matches(&table.name));
    let buckets = (BUCKETS_MAX / tables.len().max(1)).clamp(1, TABLE_BUCKETS_MAX);
    // A power of two: digests with more buckets can be folded to those with fewer.
    let buckets = 1 << buckets.ilog2();
    let mut digests = Vec::with_capacity(tables.len());
    for table in tables {
        // The numbers are those of a state, and there is none.
        let table = LocalTable::new(table, 0, 0);
        let filtered: String =
            rows_of.of(&table.table.name).iter().map(|one| format!(" where {}", one.expression)).collect();
        let mut digest = TableDigest {
            name: table.table.name.clone(),
            // Digests of other rows are not compared.
            shape: format!("{:?} {:?}{filtered}", table.shape.columns, table.shape.key),
            rows: 0,
            buckets: vec![0; buckets],
        };
        let sql = format!("{SELECT_ROWS} FROM {}", table.sql.name);
        let read = rows.each(&table, &sql, |row, rowid| {
            let key = canonical_key(&table.table, &table.key_of(&row, rowid));
            let mut bytes = key.clone();
            push_row(&mut bytes, &row);
            let bucket = first_bytes(&key) as usize % buckets;
            if let Some(sum) = digest.buckets.get_mut(bucket) {
                *sum ^= first_bytes(&bytes);
            }
            digest.rows += 1;
            Ok(())
        });
        match read {
            Ok(()) => digests.push(digest),
            Err(ApplyError::Cannot(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(digests)
}

fn first_bytes(bytes: &[u8]) -> u64 {
    blake3::hash(bytes).as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}
