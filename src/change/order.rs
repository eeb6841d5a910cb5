//! The orders in which the cells of a tree stand.
//!
//! Cells that moved to another page are on both sides of a comparison. Walking both in the tree's own order meets them at once, without a
//! map of what is on either side.
//!
//! Invariant: nothing but speed depends on the order of keys. It can be one that only the application knows (a collation of its own), or
//! that a damaged tree does not keep: cells that miss each other are paired by key afterwards.

use std::cmp::Ordering;

use super::identity::without_spaces;
use super::pages::DiffError;
use crate::format::{BtreePage, Cell, Corrupt, Field, Fields, PageNo, ValueRef};
use crate::schema::{Collation, KeyColumn};

/// An order of cells.
pub(crate) trait Order: Copy {
    /// What is kept of the first cell of a page, to sort the pages by.
    type First;

    /// Keeps it.
    fn first(self, page: PageNo, cell: &Cell<'_>) -> Result<Self::First, Corrupt>;
    fn compare_pages(self, a: &Self::First, b: &Self::First) -> Ordering;
    fn compare(self, a: &Cell<'_>, b: &Cell<'_>) -> Ordering;
    /// Refuses pages that such a tree cannot have.
    fn accept(self, btree: &BtreePage<'_>) -> Result<(), Corrupt>;
}

/// The order of a rowid table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByRowid;

impl Order for ByRowid {
    type First = i64;

    fn first(self, page: PageNo, cell: &Cell<'_>) -> Result<i64, Corrupt> {
        cell.rowid.ok_or(Corrupt { page, offset: 0, what: "index page in a table tree" })
    }

    fn compare_pages(self, a: &i64, b: &i64) -> Ordering {
        a.cmp(b)
    }

    #[inline]
    fn compare(self, a: &Cell<'_>, b: &Cell<'_>) -> Ordering {
        a.rowid.cmp(&b.rowid)
    }

    fn accept(self, btree: &BtreePage<'_>) -> Result<(), Corrupt> {
        match btree.kind().is_table() {
            true => Ok(()),
            false => Err(Corrupt { page: btree.page_no(), offset: 0, what: "index page in a table tree" }),
        }
    }
}

/// The order of an index-shaped tree of rows: records that begin with the key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByKey<'t> {
    columns: &'t [KeyColumn],
    /// The largest first, as a key that is declared DESC stands.
    is_reversed: bool,
}

impl<'t> ByKey<'t> {
    /// The order under these columns, in the direction in which `sample` has its cells.
    pub(crate) fn new(columns: &'t [KeyColumn], sample: Option<&BtreePage<'_>>) -> Result<ByKey<'t>, DiffError> {
        let order = ByKey { columns, is_reversed: false };
        let Some(sample) = sample.filter(|sample| sample.cell_count() > 1) else { return Ok(order) };
        let (first, last) = (sample.cell(0)?, sample.cell(sample.cell_count() - 1)?);
        Ok(ByKey { columns, is_reversed: order.compare(&first, &last) == Ordering::Greater })
    }

    fn turn(self, ordering: Ordering) -> Ordering {
        if self.is_reversed { ordering.reverse() } else { ordering }
    }

    /// Compares the keys of two records of which the beginnings are there.
    fn compare_keys(self, a: &[u8], b: &[u8]) -> Ordering {
        let (Ok(mut left), Ok(mut right)) = (Fields::of_beginning(a), Fields::of_beginning(b)) else {
            return Ordering::Equal;
        };
        for column in self.columns {
            let (Some(Ok(x)), Some(Ok(y))) = (left.next(), right.next()) else { break };
            let ordering = compare_values(x.value(a), y.value(b), &column.collation);
            if ordering != Ordering::Equal {
                return self.turn(ordering);
            }
        }
        Ordering::Equal
    }
}

/// How much of a page's first payload is kept to sort the page by; what is alike up to there is as good as equal.
const FIRST_BYTES: usize = 40;

/// The first key of a page.
pub(crate) struct FirstKey {
    /// Decides nearly always.
    prefix: u128,
    bytes: [u8; FIRST_BYTES],
    len: usize,
}

impl Order for ByKey<'_> {
    type First = FirstKey;

    fn first(self, _: PageNo, cell: &Cell<'_>) -> Result<FirstKey, Corrupt> {
        let mut first = FirstKey { prefix: 0, bytes: [0; FIRST_BYTES], len: cell.local.len().min(FIRST_BYTES) };
        for (to, from) in first.bytes.iter_mut().zip(cell.local) {
            *to = *from;
        }
        let field = Fields::of_beginning(cell.local).ok().and_then(|mut fields| fields.next()?.ok());
        let collation = self.columns.first().map_or(&Collation::Binary, |column| &column.collation);
        first.prefix = prefix(field.unwrap_or(Field::Null).value(cell.local), collation);
        Ok(first)
    }

    fn compare_pages(self, a: &FirstKey, b: &FirstKey) -> Ordering {
        fn bytes(first: &FirstKey) -> &[u8] {
            first.bytes.get(..first.len).unwrap_or(&[])
        }
        match a.prefix.cmp(&b.prefix) {
            Ordering::Equal => self.compare_keys(bytes(a), bytes(b)),
            decided => self.turn(decided),
        }
    }

    #[inline]
    fn compare(self, a: &Cell<'_>, b: &Cell<'_>) -> Ordering {
        // Most cells that are met have only moved.
        if a.local == b.local { Ordering::Equal } else { self.compare_keys(a.local, b.local) }
    }

    fn accept(self, btree: &BtreePage<'_>) -> Result<(), Corrupt> {
        match btree.kind().is_table() {
            true => Err(Corrupt { page: btree.page_no(), offset: 0, what: "table page in an index-shaped tree" }),
            false => Ok(()),
        }
    }
}

/// NULL, then numbers, then text, then BLOBs.
fn class(value: ValueRef<'_>) -> u8 {
    match value {
        ValueRef::Null => 0,
        ValueRef::Integer(_) | ValueRef::Real(_) => 1,
        ValueRef::Text(_) => 2,
        ValueRef::Blob(_) => 3,
    }
}

fn number(value: ValueRef<'_>) -> f64 {
    match value {
        ValueRef::Integer(v) => v as f64,
        ValueRef::Real(v) => v,
        _ => 0.0,
    }
}

fn compare_values(a: ValueRef<'_>, b: ValueRef<'_>, collation: &Collation) -> Ordering {
    match (a, b) {
        (ValueRef::Integer(a), ValueRef::Integer(b)) => a.cmp(&b),
        (ValueRef::Integer(_) | ValueRef::Real(_), ValueRef::Integer(_) | ValueRef::Real(_)) => {
            number(a).total_cmp(&number(b))
        }
        (ValueRef::Text(a), ValueRef::Text(b)) => match collation {
            Collation::Binary | Collation::Custom(_) => a.cmp(b),
            Collation::NoCase => a.iter().map(u8::to_ascii_lowercase).cmp(b.iter().map(u8::to_ascii_lowercase)),
            Collation::RTrim => without_spaces(a).cmp(without_spaces(b)),
        },
        (ValueRef::Blob(a), ValueRef::Blob(b)) => a.cmp(b),
        (a, b) => class(a).cmp(&class(b)),
    }
}

/// A number whose order is that of values, as far as it goes: the class, and then the number or the first 15 bytes.
fn prefix(value: ValueRef<'_>, collation: &Collation) -> u128 {
    let of_bytes = |bytes: &[u8], fold: fn(&u8) -> u8| {
        let mut first = [0; 16];
        for (to, from) in first.iter_mut().skip(1).zip(bytes) {
            *to = fold(from);
        }
        u128::from_be_bytes(first)
    };
    let rest = match value {
        ValueRef::Null => 0,
        ValueRef::Integer(_) | ValueRef::Real(_) => {
            let bits = number(value).to_bits();
            let ordered = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
            u128::from(ordered) << 56
        }
        ValueRef::Text(bytes) => match collation {
            Collation::NoCase => of_bytes(bytes, u8::to_ascii_lowercase),
            Collation::RTrim => of_bytes(without_spaces(bytes), u8::clone),
            Collation::Binary | Collation::Custom(_) => of_bytes(bytes, u8::clone),
        },
        ValueRef::Blob(bytes) => of_bytes(bytes, u8::clone),
    };
    u128::from(class(value)) << 120 | rest
}
