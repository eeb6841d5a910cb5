//! Cells as rows, and the rows of one tree on its two sides.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::identity::{canonical_key, row_key};
use super::keyed::{Keyed, Rows, pair_by_key};
use super::merge::{Located, merge_rowids, same_payload};
use super::pages::{DiffError, Version};
use super::row::{Op, RowChange, RowKey};
use super::suspects::Suspects;
use crate::format::{BtreePage, Cell, PageNo, Row, Value};
use crate::schema::{Identity, Table};

/// One tree of rows, between two versions.
pub(crate) struct TableDiff<'s> {
    pub(crate) before: Version<'s>,
    pub(crate) after: Version<'s>,
    pub(crate) before_pages: Vec<PageNo>,
    pub(crate) after_pages: Vec<PageNo>,
    pub(crate) old: Arc<Table>,
    pub(crate) new: Arc<Table>,
    /// Where each column of `new` comes from in `old`; `None` when the columns are the same.
    pub(crate) reshape: Option<Vec<Option<usize>>>,
    pub(crate) walk_chains: bool,
    pub(crate) map_bytes_max: usize,
    /// Where rows that cannot be read are noted, and passed over. Without it the first one is an error.
    pub(crate) skipped: Option<&'s Mutex<Vec<DiffError>>>,
}

/// Where the columns of a changed table come from: by name, else, for a renamed column, by place.
pub(crate) fn reshape(old: &Table, new: &Table) -> Option<Vec<Option<usize>>> {
    if std::ptr::eq(old, new) {
        return None;
    }
    if old.columns == new.columns
        && old.identity == new.identity
        && old.record_columns == new.record_columns
        && old.without_rowid == new.without_rowid
    {
        return None;
    }
    let sources = new.columns.iter().enumerate().map(|(index, column)| {
        old.column_index(&column.name).or_else(|| {
            let here = old.columns.get(index)?;
            new.column_index(&here.name).is_none().then_some(index)
        })
    });
    Some(sources.collect())
}

/// Whether rows on pages that did not change hold something else now, going by the names of the columns: ALTER TABLE RENAME COLUMN
/// rewrites no row, and a name that one column gave up can be another's.
pub(crate) fn names_moved(old: &Table, new: &Table) -> bool {
    let Some(sources) = reshape(old, new) else { return false };
    let place = |table: &Table, column: usize| table.record_columns.iter().position(|other| *other == column);
    (0..new.columns.len()).any(|column| match sources.get(column).copied().flatten() {
        Some(source) => place(old, source) != place(new, column),
        // A record that is too short for it has the default.
        None => place(new, column).is_some_and(|place| place < old.record_columns.len()),
    })
}

impl TableDiff<'_> {
    /// Calls `emit` for each row that changed.
    pub(crate) fn run<E: From<DiffError>>(&self, emit: &mut dyn FnMut(RowChange) -> Result<(), E>) -> Result<(), E> {
        let mut emit_pair = |before, after| match self.pair(before, after) {
            Some(change) => emit(change),
            None => Ok(()),
        };
        if self.is_loose() {
            return pair_by_key(&mut Loose { diff: self }, self.map_bytes_max, &mut emit_pair);
        }
        let by_rowid = self.is_by_rowid();
        let (mut left, mut came) = (false, false);
        // Rows that keep their rowid and their key need no partner search.
        self.merge(&mut |before, after| {
            let is_pair = match (&before, &after) {
                (Some(before), Some(after)) => before.canonical == after.canonical,
                _ => by_rowid,
            };
            if is_pair {
                return emit_pair(before, after);
            }
            left |= before.is_some();
            came |= after.is_some();
            Ok(())
        })?;
        match (left, came) {
            (false, false) => Ok(()),
            // Nothing left that could be the partner of a row that came.
            (false, true) => Leftovers { diff: self }.after(&mut |keyed| emit_pair(None, Some(keyed))),
            (true, _) => pair_by_key(&mut Leftovers { diff: self }, self.map_bytes_max, &mut emit_pair),
        }
    }

    /// Rows are told apart by their rowid alone.
    fn is_by_rowid(&self) -> bool {
        !matches!(self.new.identity, Identity::Declared(_))
    }

    /// The rows of the two sides do not come in one order.
    fn is_loose(&self) -> bool {
        self.new.without_rowid || self.old.without_rowid || self.reshape.is_some()
    }

    fn pair(&self, before: Option<Keyed>, after: Option<Keyed>) -> Option<RowChange> {
        let key = |keyed: &Keyed| row_key(&self.new, &keyed.row, keyed.rowid);
        let change = |op, key: RowKey, rowid, before, after| {
            let table = Arc::clone(&self.new);
            Some(RowChange { table, op, key, rowid, before, after, before_unknown: false })
        };
        match (before, after) {
            (Some(old), Some(new)) if old.row == new.row => None,
            (Some(old), Some(new)) => change(Op::Update, key(&new), new.rowid, Some(old.row), Some(new.row)),
            (Some(old), None) => change(Op::Delete, key(&old), old.rowid, Some(old.row), None),
            (None, Some(new)) => change(Op::Insert, key(&new), new.rowid, None, Some(new.row)),
            (None, None) => None,
        }
    }

    fn merge<E: From<DiffError>>(
        &self,
        take: &mut dyn FnMut(Option<Keyed>, Option<Keyed>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (before, after) = (&self.before, &self.after);
        merge_rowids(before, after, &self.before_pages, &self.after_pages, self.walk_chains, |difference| {
            let old = difference.before.map(|located| self.readable(self.old_row(&located))).transpose()?.flatten();
            let new = difference.after.map(|located| self.readable(self.new_row(&located))).transpose()?.flatten();
            take(old, new)
        })
    }

    /// A row, or nothing where it is passed over.
    fn readable(&self, row: Result<Keyed, DiffError>) -> Result<Option<Keyed>, DiffError> {
        match (row, self.skipped) {
            (Err(damage), Some(skipped)) => {
                note(skipped, damage);
                Ok(None)
            }
            (row, _) => row.map(Some),
        }
    }

    fn old_row(&self, located: &Located<'_>) -> Result<Keyed, DiffError> {
        let row = decode(&self.before, &self.old, located)?;
        let row = match &self.reshape {
            None => row,
            Some(sources) => sources
                .iter()
                .zip(&self.new.columns)
                .map(|(source, column)| match source {
                    Some(source) => row.get(*source).cloned().unwrap_or(Value::Null),
                    None => column.default.clone(),
                })
                .collect(),
        };
        Ok(self.keyed(row, located.cell.rowid))
    }

    fn new_row(&self, located: &Located<'_>) -> Result<Keyed, DiffError> {
        Ok(self.keyed(decode(&self.after, &self.new, located)?, located.cell.rowid))
    }

    fn keyed(&self, row: Row, rowid: Option<i64>) -> Keyed {
        // A table that lost or got its rowid is compared by key alone.
        let rowid = if self.new.without_rowid { None } else { rowid };
        // Where rowids meet in their order nothing asks for the key's bytes.
        let canonical = match self.is_by_rowid() && !self.is_loose() {
            true => Vec::new(),
            false => canonical_key(&self.new, &row_key(&self.new, &row, rowid)),
        };
        Keyed { canonical, rowid, row }
    }
}

/// The most damage that is noted: more than a person reads.
const SKIPPED_MAX: usize = 100;

/// Notes what was passed over.
pub(crate) fn note(skipped: &Mutex<Vec<DiffError>>, damage: DiffError) {
    if let Ok(mut noted) = skipped.lock()
        && noted.len() < SKIPPED_MAX
    {
        noted.push(damage);
    }
}

fn decode(version: &Version<'_>, table: &Table, located: &Located<'_>) -> Result<Row, DiffError> {
    let payload = version.payload(located.page, &located.cell, None)?;
    table.decode_row(&payload, located.cell.rowid, version.encoding).map_err(|source| DiffError::Record {
        table: table.name.clone(),
        page: located.page,
        source,
    })
}

/// Rows of a table with a declared key that did not keep rowid and key.
struct Leftovers<'d, 's> {
    diff: &'d TableDiff<'s>,
}

impl<E: From<DiffError>> Rows<E> for Leftovers<'_, '_> {
    fn before(&mut self, take: &mut dyn FnMut(Keyed) -> Result<(), E>) -> Result<(), E> {
        self.diff.merge(&mut |before, after| match (before, after) {
            (Some(before), Some(after)) if before.canonical == after.canonical => Ok(()),
            (Some(before), _) => take(before),
            (None, _) => Ok(()),
        })
    }

    fn after(&mut self, take: &mut dyn FnMut(Keyed) -> Result<(), E>) -> Result<(), E> {
        self.diff.merge(&mut |before, after| match (before, after) {
            (Some(before), Some(after)) if before.canonical == after.canonical => Ok(()),
            (_, Some(after)) => take(after),
            (_, None) => Ok(()),
        })
    }
}

/// Rows of pages in any order. Cells that stand unchanged on the same page of both sides are passed over.
struct Loose<'d, 's> {
    diff: &'d TableDiff<'s>,
}

impl Loose<'_, '_> {
    fn side<E: From<DiffError>>(&self, is_before: bool, take: &mut dyn FnMut(Keyed) -> Result<(), E>) -> Result<(), E> {
        let diff = self.diff;
        let (this, other) = if is_before { (&diff.before, &diff.after) } else { (&diff.after, &diff.before) };
        let (pages, partners) =
            if is_before { (&diff.before_pages, &diff.after_pages) } else { (&diff.after_pages, &diff.before_pages) };
        let mut suspects = Suspects::default();
        for page in pages {
            let bytes = this.bytes(*page).map_err(DiffError::from)?;
            let btree = this.parse(*page, &bytes).map_err(DiffError::from)?;
            if btree.kind() == crate::format::PageKind::InteriorTable {
                continue;
            }
            let partner_bytes = match partners.binary_search(page) {
                Ok(_) if diff.reshape.is_none() => Some(other.bytes(*page).map_err(DiffError::from)?),
                _ => None,
            };
            let partner =
                partner_bytes.as_ref().map(|bytes| other.parse(*page, bytes)).transpose().map_err(DiffError::from)?;
            match &partner {
                // Only what may differ needs to be looked for on the other side.
                Some(twin) if !diff.walk_chains && is_before => suspects.find(&btree, twin),
                Some(twin) if !diff.walk_chains => suspects.find(twin, &btree),
                Some(_) | None => suspects.all(&btree, partner.as_ref(), is_before),
            }
            let (these, those) =
                if is_before { (&suspects.before, &suspects.after) } else { (&suspects.after, &suspects.before) };
            let known = partner.as_ref().map(|twin| cells_of(twin, those)).transpose()?;
            for index in these {
                let cell = btree.cell(usize::from(*index)).map_err(DiffError::from)?;
                let located = Located { page: *page, cell };
                if let Some(twin) = known.as_ref().and_then(|known| known.get(&CellKey::of(&cell))) {
                    let twin = Located { page: *page, cell: twin.0 };
                    if cell.overflow.is_none() || same_payload(this, other, &located, &twin, diff.walk_chains)? {
                        continue;
                    }
                }
                let row = if is_before { diff.old_row(&located) } else { diff.new_row(&located) };
                if let Some(row) = diff.readable(row)? {
                    take(row)?;
                }
            }
        }
        Ok(())
    }
}

impl<E: From<DiffError>> Rows<E> for Loose<'_, '_> {
    fn before(&mut self, take: &mut dyn FnMut(Keyed) -> Result<(), E>) -> Result<(), E> {
        self.side(true, take)
    }

    fn after(&mut self, take: &mut dyn FnMut(Keyed) -> Result<(), E>) -> Result<(), E> {
        self.side(false, take)
    }
}

/// A cell compared without its left child: a row that moved between an interior page and a leaf is the same row.
struct CellKey<'c>(Cell<'c>);

impl<'c> CellKey<'c> {
    fn of(cell: &Cell<'c>) -> CellKey<'c> {
        CellKey(Cell { left_child: None, ..*cell })
    }
}

impl PartialEq for CellKey<'_> {
    fn eq(&self, other: &CellKey<'_>) -> bool {
        self.0 == other.0
    }
}

impl Eq for CellKey<'_> {}

impl std::hash::Hash for CellKey<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0.rowid, self.0.payload_bytes, self.0.local, self.0.overflow).hash(state);
    }
}

fn cells_of<'b>(page: &BtreePage<'b>, indexes: &[u16]) -> Result<HashSet<CellKey<'b>>, DiffError> {
    indexes.iter().map(|index| Ok(CellKey::of(&page.cell(usize::from(*index))?))).collect()
}
