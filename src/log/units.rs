//! Cuts one transaction's changes of one shard into units of bounded size, while they are captured.

use std::collections::HashMap;
use std::sync::Arc;

use super::envelope::{change_bytes, schema_bytes, shape_bytes};
use super::message::{SchemaStep, StreamSeq, TableShape, Unit, UnitChange};

/// The encoded size at which a unit is finished. Several fit into a message of the usual 1 MiB, so messages fill up well; a unit that is
/// larger holds one large change.
pub const UNIT_BYTES_MAX: usize = 256 << 10;

/// The same for a unit with rows of a table that has UNIQUE values beside its key. The changes of a unit are folded together: a value that goes
/// from row to row meets itself at the border of two units, and the row that had it is taken out and put in again as a whole.
pub const UNIQUE_UNIT_BYTES_MAX: usize = 2 << 20;

/// Encoded bytes of a unit's own keys and numbers.
const UNIT_BYTES_FIXED: usize = 96;

/// What all units of a transaction have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitOrigin {
    /// The transaction's number at its origin.
    pub tx: u64,
    /// Salts of the generation it was read from.
    pub salts: [u8; 8],
    /// Its commit frame; 0 for repaired transactions.
    pub frame: u32,
    /// See [`Unit::repaired`].
    pub repaired: bool,
    /// See [`Unit::seen`].
    pub seen: StreamSeq,
}

/// Collects the changes of one transaction in one shard. At any time it holds less than a unit and one change, whatever the size of the
/// transaction.
#[derive(Debug)]
pub struct UnitBuilder {
    origin: UnitOrigin,
    unit_bytes_max: usize,
    /// The same for the unit at hand.
    bytes_max: usize,
    part: u32,
    bytes: usize,
    schema: Vec<SchemaStep>,
    tables: Vec<Arc<TableShape>>,
    table_indexes: HashMap<Arc<str>, u16>,
    changes: Vec<UnitChange>,
}

impl UnitBuilder {
    /// Begins a transaction's part in a shard. `unit_bytes_max` is usually [`UNIT_BYTES_MAX`].
    #[must_use]
    pub fn new(origin: UnitOrigin, unit_bytes_max: usize) -> UnitBuilder {
        UnitBuilder {
            origin,
            unit_bytes_max,
            bytes_max: unit_bytes_max,
            part: 0,
            bytes: UNIT_BYTES_FIXED,
            schema: Vec::new(),
            tables: Vec::new(),
            table_indexes: HashMap::new(),
            changes: Vec::new(),
        }
    }

    /// Adds a change of the schema. They come before the first change of a row, and together into one unit.
    pub fn push_schema(&mut self, step: SchemaStep) {
        self.bytes += schema_bytes(&step);
        self.schema.push(step);
    }

    /// The unit at hand, to which the next change belongs if it fits, may grow to so many bytes.
    pub fn may_grow_to(&mut self, bytes: usize) {
        self.bytes_max = self.bytes_max.max(bytes);
    }

    /// Adds a change; its `table` is set here. Returns the unit before it when the change no longer fits into that.
    pub fn push(&mut self, shape: &Arc<TableShape>, mut change: UnitChange) -> Option<Unit> {
        let bytes = change_bytes(&change);
        let known = self.index_of(shape);
        let shape_added = if known.is_none() { shape_bytes(shape) } else { 0 };
        let tables_full = known.is_none() && self.tables.len() > usize::from(u16::MAX);
        let full = !(self.changes.is_empty() && self.schema.is_empty())
            && (self.bytes + bytes + shape_added > self.bytes_max || tables_full);
        let finished = if full { self.take() } else { None };
        change.table = match self.index_of(shape) {
            Some(index) => index,
            None => {
                // A full list of tables was taken away above, so the index fits.
                let index = self.tables.len() as u16;
                self.tables.push(Arc::clone(shape));
                self.table_indexes.insert(shape.name.as_str().into(), index);
                self.bytes += shape_bytes(shape);
                index
            }
        };
        self.bytes += bytes;
        self.changes.push(change);
        finished
    }

    /// Ends the transaction; returns the last unit. `None` when there was no change since the unit before.
    #[must_use]
    pub fn finish(mut self) -> Option<Unit> {
        self.take()
    }

    /// Units returned so far.
    #[must_use]
    pub fn part_count(&self) -> u32 {
        self.part
    }

    fn index_of(&self, shape: &Arc<TableShape>) -> Option<u16> {
        // Changes of one table stand side by side.
        if let (Some(last), Some(index)) = (self.tables.last(), self.tables.len().checked_sub(1))
            && Arc::ptr_eq(last, shape)
        {
            return u16::try_from(index).ok();
        }
        let index = *self.table_indexes.get(shape.name.as_str())?;
        let known = self.tables.get(usize::from(index))?;
        // A table that changes its columns inside a transaction has two shapes of one name.
        (Arc::ptr_eq(known, shape) || known == shape).then_some(index)
    }

    fn take(&mut self) -> Option<Unit> {
        if self.changes.is_empty() && self.schema.is_empty() {
            return None;
        }
        let unit = Unit {
            tx: self.origin.tx,
            part: self.part,
            salts: self.origin.salts,
            frame: self.origin.frame,
            repaired: self.origin.repaired,
            seen: self.origin.seen,
            schema: std::mem::take(&mut self.schema),
            tables: std::mem::take(&mut self.tables),
            changes: std::mem::take(&mut self.changes),
        };
        self.part += 1;
        self.bytes_max = self.unit_bytes_max;
        self.bytes = UNIT_BYTES_FIXED;
        self.table_indexes.clear();
        Some(unit)
    }
}
