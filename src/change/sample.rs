//! A few rows of a table, and what it tells that values are found again: which table or column of two versions is the same under another name.

use super::pages::{DiffError, Version};
use crate::format::{PageNo, Row, Value};
use crate::schema::Table;

/// What equal values must tell together, in bits: what is taken for another table or column gets values that were never meant for it, which is
/// worse than values that are in the conflict journal.
pub(super) const EVIDENCE_BITS_MIN: u32 = 32;
/// The rows that are looked at, of one page.
const ROWS_MAX: usize = 64;
/// A row longer than this is not read for it.
const ROW_BYTES_MAX: u64 = 1 << 16;

/// What a value that is found again tells. Most values are small numbers, and NULL is everywhere.
pub(super) fn bits_of(value: &Value) -> u32 {
    match value {
        Value::Null => 0,
        Value::Integer(number) => (u64::BITS - number.unsigned_abs().leading_zeros()).min(16),
        Value::Real(_) => 16,
        Value::Text(bytes) | Value::Blob(bytes) => {
            u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_mul(4).min(32)
        }
    }
}

/// Where in the order of the table the rows stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    First,
    Last,
}

/// One of them.
pub(super) struct SampleRow {
    pub(super) rowid: Option<i64>,
    /// `None` where it is too long.
    pub(super) row: Option<Row>,
}

/// The rows of the first leaf of a table, or of the last.
pub(super) struct Sample {
    pub(super) rows: Vec<SampleRow>,
    /// How many rows the leaf has.
    pub(super) count: usize,
    /// The table has no other page.
    pub(super) is_whole: bool,
}

/// Reads the rows at one end of a table, at most [`ROWS_MAX`] of them.
pub(super) fn rows_at(end: End, version: &Version<'_>, root: PageNo, table: &Table) -> Result<Sample, DiffError> {
    let (mut page, height) = (root, version.height(root)?);
    for _ in 0..height {
        let bytes = version.bytes(page)?;
        let btree = version.parse(page, &bytes)?;
        let mut children = btree.children();
        let child = if end == End::First { children.next() } else { children.last() };
        match child {
            Some(child) => page = child?,
            None => break,
        }
    }
    let bytes = version.bytes(page)?;
    let leaf = version.parse(page, &bytes)?;
    let count = leaf.cell_count();
    let from = if end == End::First { 0 } else { count.saturating_sub(ROWS_MAX) };
    let mut rows = Vec::with_capacity(count.min(ROWS_MAX));
    for index in (from..count).take(ROWS_MAX) {
        let cell = leaf.cell(index)?;
        let rowid = cell.rowid;
        if cell.payload_bytes > ROW_BYTES_MAX {
            rows.push(SampleRow { rowid, row: None });
            continue;
        }
        let payload = version.nearest_payload(page, &cell)?;
        let row = table.decode_row(&payload, rowid, version.encoding);
        let row = row.map_err(|source| DiffError::Record { table: table.name.clone(), page, source })?;
        rows.push(SampleRow { rowid, row: Some(row) });
    }
    Ok(Sample { rows, count, is_whole: height == 0 })
}
