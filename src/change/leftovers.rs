//! Rows that did not keep their place and their key, on one side each: what is left to be paired by key.
//!
//! Cells are noted by where they stand, so that what is decoded is decoded once. When they are too many to be noted, the pages are merged
//! again each time that somebody asks for them.
//!
//! Memory: 8 bytes a cell, one for each [`BYTES_PER_LISTED`] of what rows that wait for their partner may take.

use super::identity::canonical_of;
use super::keyed::{Keyed, Rows};
use super::merge::{Difference, Located, MergeBuffers};
use super::pages::DiffError;
use super::rows::{LentRow, ReadBuffers, TableDiff};
use crate::format::PageNo;

/// Half a million cells for a budget of 32 MiB: more than an everyday transaction leaves, in an eighth of it.
const BYTES_PER_LISTED: usize = 64;
/// Room that is kept for the next transaction.
const KEPT_MAX: usize = 1 << 12;

/// Where a cell stands that is left over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    page: PageNo,
    index: u16,
    is_before: bool,
}

/// The cells that are left over.
pub(crate) struct Leftovers {
    listed: Vec<Listed>,
    listed_max: usize,
    /// There are more than are listed.
    is_beyond: bool,
    left: bool,
    came: bool,
}

impl Leftovers {
    pub(crate) fn new(mut listed: Vec<Listed>, map_bytes_max: usize) -> Leftovers {
        listed.clear();
        let listed_max = map_bytes_max / BYTES_PER_LISTED;
        Leftovers { listed, listed_max, is_beyond: false, left: false, came: false }
    }

    /// The memory of the list.
    pub(crate) fn give_back(mut self) -> Vec<Listed> {
        self.listed.clear();
        self.listed.shrink_to(KEPT_MAX);
        self.listed
    }

    pub(crate) fn push(&mut self, before: Option<Located<'_>>, after: Option<Located<'_>>) {
        self.left |= before.is_some();
        self.came |= after.is_some();
        for (located, is_before) in [(before, true), (after, false)] {
            let Some(Located { page, index, .. }) = located else { continue };
            if self.listed.len() < self.listed_max {
                self.listed.push(Listed { page, index, is_before });
            } else {
                self.is_beyond = true;
            }
        }
    }

    /// Whether there are rows before, and after.
    pub(crate) fn sides(&self) -> (bool, bool) {
        (self.left, self.came)
    }

    /// Gives the rows of a side to `take`, with a buffer for their keys.
    pub(crate) fn each<E: From<DiffError>>(
        &self,
        diff: &TableDiff<'_>,
        merge: &mut MergeBuffers,
        read: &mut ReadBuffers,
        is_before: bool,
        take: TakeLent<'_, E>,
    ) -> Result<(), E> {
        if self.is_beyond {
            return each_again(diff, merge, read, is_before, take);
        }
        let version = if is_before { &diff.before } else { &diff.after };
        let mut rest = self.listed.as_slice();
        while let Some(first) = rest.first() {
            // The cells of a page stand together, with those of the other side among them.
            let here =
                rest.iter().take_while(|listed| listed.is_before != is_before || listed.page == first.page).count();
            let (cells, others) = rest.split_at(here.max(1));
            rest = others;
            let mut cells = cells.iter().filter(|listed| listed.is_before == is_before).peekable();
            let Some(page) = cells.peek().map(|listed| listed.page) else { continue };
            let bytes = version.exact(page).map_err(DiffError::from)?;
            let btree = version.parse(page, &bytes).map_err(DiffError::from)?;
            for listed in cells {
                let cell = btree.cell(usize::from(listed.index)).map_err(DiffError::from)?;
                let ReadBuffers { before: buffer, key, .. } = &mut *read;
                if let Some(row) = diff.read(is_before, Located { page, index: listed.index, cell }, buffer)? {
                    take(row, key)?;
                }
            }
        }
        Ok(())
    }
}

/// Takes a row, with a buffer for its key.
type TakeLent<'t, E> = &'t mut dyn FnMut(LentRow<'_>, &mut Vec<u8>) -> Result<(), E>;

/// As [`Leftovers::each`], by merging the pages again.
fn each_again<E: From<DiffError>>(
    diff: &TableDiff<'_>,
    merge: &mut MergeBuffers,
    read: &mut ReadBuffers,
    is_before: bool,
    take: TakeLent<'_, E>,
) -> Result<(), E> {
    let columns = diff.declared().unwrap_or(&[]);
    diff.differences(merge, &mut |Difference { before, after }| {
        let wanted = if is_before { before } else { after };
        if wanted.is_none() {
            return Ok(());
        }
        let ReadBuffers { before: old, after: new, key, other_key } = &mut *read;
        let old = before.map(|located| diff.read(true, located, old)).transpose()?.flatten();
        let new = after.map(|located| diff.read(false, located, new)).transpose()?.flatten();
        if let (Some(old), Some(new)) = (old, new)
            && diff.is_same_key(columns, old, new, key, other_key)
        {
            return Ok(());
        }
        // One that stands on both sides and could not be read on one is told already, or passed over.
        let is_read = (before.is_none() || old.is_some()) && (after.is_none() || new.is_some());
        match if is_before { old } else { new } {
            Some(row) if is_read => take(row, key),
            _ => Ok(()),
        }
    })
}

/// The leftovers with their keys.
pub(crate) struct LeftRows<'d, 's> {
    pub(crate) diff: &'d TableDiff<'s>,
    pub(crate) left: &'d Leftovers,
    pub(crate) merge: &'d mut MergeBuffers,
    pub(crate) read: &'d mut ReadBuffers,
}

impl LeftRows<'_, '_> {
    fn side<E: From<DiffError>>(
        &mut self,
        is_before: bool,
        take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let LeftRows { diff, left, merge, read } = self;
        left.each(diff, merge, read, is_before, &mut |(row, rowid), key| {
            canonical_of(diff.new, &row, rowid, key);
            take(Keyed { canonical: key, rowid, row })
        })
    }
}

impl<E: From<DiffError>> Rows<E> for LeftRows<'_, '_> {
    fn before(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>) -> Result<(), E> {
        self.side(true, take)
    }

    fn after(&mut self, take: &mut dyn FnMut(Keyed<'_>) -> Result<(), E>) -> Result<(), E> {
        self.side(false, take)
    }
}
