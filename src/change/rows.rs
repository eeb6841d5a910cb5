//! The rows of one tree on its two sides: which of them changed.

use std::borrow::Cow;
use std::sync::{Arc, Mutex};

use super::identity::{canonical_of, keys_identical};
use super::keyed::{Keyed, Rows, pair_by_key};
use super::leftovers::{LeftRows, Leftovers, Listed};
use super::merge::{Difference, Located, MergeBuffers, Sides, merge};
use super::order::{ByKey, ByRowid};
use super::pages::{DiffError, Version};
use super::row::{ChangedRow, Op};
use crate::format::{PageKind, PageNo, Row, Value};
use crate::schema::{Column, Identity, KeyColumn, RowPlaces, RowView, Table};

/// One tree of rows, between two versions.
pub(crate) struct TableDiff<'s> {
    pub(crate) before: Version<'s>,
    pub(crate) after: Version<'s>,
    /// The pages that carry rows, with their heights, ascending by height and number.
    pub(crate) before_pages: &'s [(PageNo, u8)],
    pub(crate) after_pages: &'s [(PageNo, u8)],
    pub(crate) old: &'s Arc<Table>,
    pub(crate) new: &'s Arc<Table>,
    /// Where each column of `new` comes from in `old`; `None` when the columns are the same.
    pub(crate) reshape: Option<Vec<Option<usize>>>,
    /// The columns of `new` that other nodes could take for what `old` has in their places.
    pub(crate) doubts: &'s [usize],
    pub(crate) walk_chains: bool,
    pub(crate) map_bytes_max: usize,
    /// Where rows that cannot be read are noted, and passed over. Without it the first one is an error.
    pub(crate) skipped: Option<&'s Mutex<Vec<DiffError>>>,
}

/// What comparing rows needs, and the next table or transaction can use again.
#[derive(Debug, Default)]
pub(crate) struct RowBuffers {
    pub(super) merge: MergeBuffers,
    pub(super) read: ReadBuffers,
    listed: Vec<Listed>,
}

/// Where rows are read into.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffers {
    pub(super) before: ReadBuffer,
    pub(super) after: ReadBuffer,
    pub(super) key: Vec<u8>,
    pub(super) other_key: Vec<u8>,
}

/// Where one row is read into.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    places: RowPlaces,
    /// The payload of a cell that goes on in overflow pages.
    whole: Vec<u8>,
}

/// A row and its rowid, which WITHOUT ROWID tables do not have.
pub(crate) type LentRow<'r> = (RowView<'r>, Option<i64>);

/// What takes the rows that changed.
pub(crate) type Emit<'e, E> = dyn FnMut(ChangedRow<'_>) -> Result<(), E> + 'e;

/// Where the columns of a changed table come from: by name, else as `renamed` tells; without it a name in the place of one that is gone is the
/// same column.
pub(crate) fn reshape(old: &Table, new: &Table, renamed: Option<&[(String, String)]>) -> Option<Vec<Option<usize>>> {
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
        old.column_index(&column.name).or_else(|| match renamed {
            Some(renamed) => {
                let (from, _) = renamed.iter().find(|(_, to)| to.eq_ignore_ascii_case(&column.name))?;
                old.column_index(from).filter(|_| new.column_index(from).is_none())
            }
            None => {
                let here = old.columns.get(index)?;
                new.column_index(&here.name).is_none().then_some(index)
            }
        })
    });
    Some(sources.collect())
}

/// Whether rows on pages that did not change hold something else now, going by the names of the columns: ALTER TABLE RENAME COLUMN
/// rewrites no row, and a name that one column gave up can be another's.
pub(crate) fn names_moved(old: &Table, new: &Table, renamed: Option<&[(String, String)]>) -> bool {
    let Some(sources) = reshape(old, new, renamed) else { return false };
    let place = |table: &Table, column: usize| table.record_columns.iter().position(|other| *other == column);
    (0..new.columns.len()).any(|column| match sources.get(column).copied().flatten() {
        Some(source) => place(old, source) != place(new, column),
        // A record that is too short for it has the default.
        None => place(new, column).is_some_and(|place| place < old.record_columns.len()),
    })
}

impl TableDiff<'_> {
    /// Calls `emit` for each row that changed.
    pub(crate) fn run<E: From<DiffError>>(&self, buffers: &mut RowBuffers, emit: &mut Emit<'_, E>) -> Result<(), E> {
        let RowBuffers { merge, read, listed } = buffers;
        if self.reshape.is_some() {
            let mut rows = Reshaped { diff: self, read };
            return pair_by_key(&mut rows, self.map_bytes_max, &mut |before, after| {
                let doubted = before.filter(|_| !self.doubts.is_empty()).map(|before| self.settled(before.row, after));
                let old = match (&doubted, before) {
                    (Some(row), Some(before)) => Some((RowView::of(row), before.rowid)),
                    (_, before) => before.map(lent),
                };
                self.give(old, after.map(lent), emit)
            });
        }
        let mut left = Leftovers::new(std::mem::take(listed), self.map_bytes_max);
        // Rows that keep their place and their key need no partner search.
        self.differences(merge, &mut |Difference { before, after }| {
            let declared = self.declared();
            if declared.is_some() && (before.is_none() || after.is_none()) {
                left.push(before, after);
                return Ok(());
            }
            let ReadBuffers { before: old, after: new, key, other_key } = &mut *read;
            let old = before.map(|located| self.read(true, located, old)).transpose()?.flatten();
            let new = after.map(|located| self.read(false, located, new)).transpose()?.flatten();
            match (declared, old, new) {
                (Some(columns), Some(old), Some(new)) if !self.is_same_key(columns, old, new, key, other_key) => {
                    left.push(before, after);
                    Ok(())
                }
                // The row stands on both sides, and one of them could not be read: it did not go, and it did not come.
                (_, Some(_), None) if after.is_some() => Ok(()),
                (_, None, Some((row, rowid))) if before.is_some() => {
                    let (table, op, after) = (self.new, Op::Update, Some(row));
                    emit(ChangedRow { table, op, rowid, before: None, after, before_unknown: true })
                }
                (_, old, new) => self.give(old, new, emit),
            }
        })?;
        let done = match left.sides() {
            (false, false) => Ok(()),
            // Nothing left that could be the partner of a row that came.
            (false, true) => left.each(self, merge, read, false, &mut |row, _| self.give(None, Some(row), emit)),
            (true, _) => {
                let mut rows = LeftRows { diff: self, left: &left, merge, read };
                pair_by_key(&mut rows, self.map_bytes_max, &mut |before, after| {
                    self.give(before.map(lent), after.map(lent), emit)
                })
            }
        };
        *listed = left.give_back();
        done
    }

    /// The declared key; `None` when rows are told apart by their rowid alone.
    pub(super) fn declared(&self) -> Option<&[KeyColumn]> {
        match &self.new.identity {
            Identity::Declared(columns) => Some(columns),
            Identity::Rowid | Identity::RowidAlias(_) => None,
        }
    }

    pub(super) fn is_same_key(
        &self,
        columns: &[KeyColumn],
        (old, old_rowid): LentRow<'_>,
        (new, new_rowid): LentRow<'_>,
        key: &mut Vec<u8>,
        other_key: &mut Vec<u8>,
    ) -> bool {
        if keys_identical(columns, &old, &new) {
            return true;
        }
        canonical_of(self.new, &old, old_rowid, key);
        canonical_of(self.new, &new, new_rowid, other_key);
        key == other_key
    }

    fn give<E>(
        &self,
        before: Option<LentRow<'_>>,
        after: Option<LentRow<'_>>,
        emit: &mut Emit<'_, E>,
    ) -> Result<(), E> {
        let (op, rowid) = match (before, after) {
            (Some((old, _)), Some((new, _))) if old == new => return Ok(()),
            (Some(_), Some((_, rowid))) => (Op::Update, rowid),
            (Some((_, rowid)), None) => (Op::Delete, rowid),
            (None, Some((_, rowid))) => (Op::Insert, rowid),
            (None, None) => return Ok(()),
        };
        let (before, after) = (before.map(|lent| lent.0), after.map(|lent| lent.0));
        emit(ChangedRow { table: self.new, op, rowid, before, after, before_unknown: false })
    }

    /// Calls `take` for each cell that differs between the sides, level by level: rows stand in interior pages, too, where there is no rowid.
    pub(super) fn differences<E: From<DiffError>>(
        &self,
        buffers: &mut MergeBuffers,
        take: &mut dyn FnMut(Difference<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let top = |pages: &[(PageNo, u8)]| pages.last().map_or(0, |(_, height)| *height);
        for height in 0..=top(self.before_pages).max(top(self.after_pages)) {
            let sides = Sides {
                before: self.before,
                after: self.after,
                before_pages: level(self.before_pages, height),
                after_pages: level(self.after_pages, height),
                walk_chains: self.walk_chains,
            };
            match self.declared().filter(|_| self.new.without_rowid) {
                Some(columns) => {
                    let order = self.order(columns, &sides).map_err(E::from)?;
                    merge(order, &sides, buffers, &mut *take)?;
                }
                None => merge(ByRowid, &sides, buffers, &mut *take)?,
            }
        }
        Ok(())
    }

    fn order<'t>(&self, columns: &'t [KeyColumn], sides: &Sides<'_>) -> Result<ByKey<'t>, DiffError> {
        let (version, page) = match (sides.before_pages, sides.after_pages) {
            ([(page, _), ..], _) => (&sides.before, *page),
            (_, [(page, _), ..]) => (&sides.after, *page),
            _ => return ByKey::new(columns, None),
        };
        let bytes = version.bytes(page)?;
        ByKey::new(columns, Some(&version.parse(page, &bytes)?))
    }

    /// Reads the row of a cell; `None` where it is passed over.
    pub(super) fn read<'r>(
        &'r self,
        is_before: bool,
        located: Located<'r>,
        buffer: &'r mut ReadBuffer,
    ) -> Result<Option<LentRow<'r>>, DiffError> {
        let (version, table) = if is_before { (&self.before, self.old) } else { (&self.after, self.new) };
        let ReadBuffer { places, whole } = buffer;
        let payload = match version.payload(located.page, &located.cell, None) {
            Ok(Cow::Borrowed(payload)) => Ok(payload),
            Ok(Cow::Owned(payload)) => {
                *whole = payload;
                Ok(whole.as_slice())
            }
            Err(damage) => Err(damage),
        };
        let read = payload.and_then(|payload| {
            table
                .read_row(payload, located.cell.rowid, version.encoding, places)
                .map_err(|source| DiffError::Record { table: table.name.clone(), page: located.page, source })?;
            Ok(payload)
        });
        match (read, self.skipped) {
            // A table that lost or got its rowid is compared by key alone.
            (Ok(payload), _) => {
                let rowid = located.cell.rowid.filter(|_| !self.new.without_rowid);
                Ok(Some((places.view(payload, &table.columns), rowid)))
            }
            (Err(damage), Some(skipped)) => {
                note(skipped, damage);
                Ok(None)
            }
            (Err(damage), None) => Err(damage),
        }
    }
}

fn lent(keyed: Keyed<'_>) -> LentRow<'_> {
    (keyed.row, keyed.rowid)
}

/// The pages at one height.
fn level(pages: &[(PageNo, u8)], height: u8) -> &[(PageNo, u8)] {
    let from = pages.partition_point(|(_, at)| *at < height);
    let to = pages.partition_point(|(_, at)| *at <= height);
    pages.get(from..to).unwrap_or(&[])
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

/// The rows of a table whose columns changed: bytes that are equal do not say that the rows are, so all are looked at.
struct Reshaped<'d, 's> {
    diff: &'d TableDiff<'s>,
    read: &'d mut ReadBuffers,
}

impl Reshaped<'_, '_> {
    fn side<E: From<DiffError>>(
        &mut self,
        is_before: bool,
        take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let diff = self.diff;
        let (version, pages) =
            if is_before { (&diff.before, diff.before_pages) } else { (&diff.after, diff.after_pages) };
        let ReadBuffers { before: buffer, key, .. } = &mut *self.read;
        for (page, _) in pages {
            let bytes = version.exact(*page).map_err(DiffError::from)?;
            let btree = version.parse(*page, &bytes).map_err(DiffError::from)?;
            if btree.kind() == PageKind::InteriorTable {
                continue;
            }
            for index in 0..btree.cell_count() {
                let cell = btree.cell(index).map_err(DiffError::from)?;
                let located = Located { page: *page, index: index as u16, cell };
                let Some((row, rowid)) = diff.read(is_before, located, buffer)? else { continue };
                let reshaped = diff.reshape.as_ref().filter(|_| is_before).map(|sources| diff.as_after(row, sources));
                let row = reshaped.as_ref().map_or(row, |row| RowView::of(row));
                canonical_of(diff.new, &row, rowid, key);
                take(Keyed { canonical: key, rowid, row })?;
            }
        }
        Ok(())
    }
}

impl TableDiff<'_> {
    /// A row of the old table as one of the new; behind its columns what those in doubt would hold.
    fn as_after(&self, row: RowView<'_>, sources: &[Option<usize>]) -> Row {
        let value = |(source, column): (Option<usize>, &Column)| match source {
            Some(source) => row.get(source).map_or(Value::Null, |value| value.to_value()),
            None => column.default.clone(),
        };
        let columns = sources.iter().copied().zip(&self.new.columns).map(value);
        let in_place = self.doubts.iter().map(|place| row.get(*place).map_or(Value::Null, |value| value.to_value()));
        columns.chain(in_place).collect()
    }

    /// A row before, without what those in doubt could hold. One that could hold something else than the row after has that: then the row is told,
    /// and is the same everywhere, whatever another node takes the column for.
    fn settled(&self, before: RowView<'_>, after: Option<Keyed<'_>>) -> Row {
        let mut row = before.to_row();
        let in_place = row.split_off(self.new.columns.len().min(row.len()));
        for (place, other) in self.doubts.iter().zip(in_place) {
            let now = after.and_then(|after| after.row.get(*place)).map(|value| value.to_value());
            if let (Some(now), Some(was)) = (now, row.get_mut(*place))
                && *was == now
                && other != now
            {
                *was = other;
            }
        }
        row
    }
}

impl<E: From<DiffError>> Rows<E> for Reshaped<'_, '_> {
    fn before(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>) -> Result<(), E> {
        self.side(true, take)
    }

    fn after(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>) -> Result<(), E> {
        self.side(false, take)
    }
}
