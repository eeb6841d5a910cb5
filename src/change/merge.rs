//! The rows of a rowid table on two sets of pages, merged in rowid order.
//!
//! Memory: one page a side, and 16 bytes for each page of the sets.

use std::borrow::Cow;

use super::pages::{DiffError, Version};
use crate::format::{Cell, Corrupt, PageNo};

/// A cell that stands on one side, or differs between them.
pub(crate) struct Difference<'c> {
    pub(crate) before: Option<Located<'c>>,
    pub(crate) after: Option<Located<'c>>,
}

/// A cell and the page it stands on.
#[derive(Clone, Copy)]
pub(crate) struct Located<'c> {
    pub(crate) page: PageNo,
    pub(crate) cell: Cell<'c>,
}

/// Walks leaf pages in the order of their first rowids.
struct Side<'s> {
    version: Version<'s>,
    /// (first rowid, page), descending, so that the next is popped from the end.
    pages: Vec<(i64, PageNo)>,
    page: PageNo,
    bytes: Cow<'s, [u8]>,
    index: usize,
    count: usize,
}

impl<'s> Side<'s> {
    fn new(version: Version<'s>, leaves: &[PageNo]) -> Result<Side<'s>, DiffError> {
        let mut pages = Vec::with_capacity(leaves.len());
        for page in leaves {
            let bytes = version.bytes(*page)?;
            let btree = version.parse(*page, &bytes)?;
            if btree.cell_count() > 0 {
                pages.push((rowid_of(*page, &btree.cell(0)?)?, *page));
            }
        }
        pages.sort_unstable_by(|a, b| b.cmp(a));
        let mut side = Side { version, pages, page: PageNo::ONE, bytes: Cow::Borrowed(&[]), index: 0, count: 0 };
        side.next_page()?;
        Ok(side)
    }

    fn next_page(&mut self) -> Result<(), DiffError> {
        self.index = 0;
        self.count = 0;
        if let Some((_, page)) = self.pages.pop() {
            self.bytes = self.version.bytes(page)?;
            self.count = self.version.parse(page, &self.bytes)?.cell_count();
            self.page = page;
        }
        Ok(())
    }

    fn current(&self) -> Result<Option<(i64, Located<'_>)>, DiffError> {
        if self.index >= self.count {
            return Ok(None);
        }
        let cell = self.version.parse(self.page, &self.bytes)?.cell(self.index)?;
        Ok(Some((rowid_of(self.page, &cell)?, Located { page: self.page, cell })))
    }

    fn advance(&mut self) -> Result<(), DiffError> {
        self.index += 1;
        if self.index >= self.count { self.next_page() } else { Ok(()) }
    }
}

fn rowid_of(page: PageNo, cell: &Cell<'_>) -> Result<i64, Corrupt> {
    cell.rowid.ok_or(Corrupt { page, offset: 0, what: "index page in a table tree" })
}

/// Calls `differ` for each rowid whose payload is not the same on both sides. `walk_chains`: equal cells may hide changed overflow pages.
pub(crate) fn merge_rowids<E: From<DiffError>>(
    before: &Version<'_>,
    after: &Version<'_>,
    before_leaves: &[PageNo],
    after_leaves: &[PageNo],
    walk_chains: bool,
    mut differ: impl FnMut(Difference<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut old = Side::new(*before, before_leaves)?;
    let mut new = Side::new(*after, after_leaves)?;
    loop {
        let (step_old, step_new) = match (old.current()?, new.current()?) {
            (None, None) => return Ok(()),
            (Some((_, cell)), None) => {
                differ(Difference { before: Some(cell), after: None })?;
                (true, false)
            }
            (None, Some((_, cell))) => {
                differ(Difference { before: None, after: Some(cell) })?;
                (false, true)
            }
            (Some((old_rowid, a)), Some((new_rowid, b))) => match old_rowid.cmp(&new_rowid) {
                std::cmp::Ordering::Less => {
                    differ(Difference { before: Some(a), after: None })?;
                    (true, false)
                }
                std::cmp::Ordering::Greater => {
                    differ(Difference { before: None, after: Some(b) })?;
                    (false, true)
                }
                std::cmp::Ordering::Equal => {
                    if !same_payload(before, after, &a, &b, walk_chains)? {
                        differ(Difference { before: Some(a), after: Some(b) })?;
                    }
                    (true, true)
                }
            },
        };
        if step_old {
            old.advance()?;
        }
        if step_new {
            new.advance()?;
        }
    }
}

/// Whether two cells hold the same payload.
pub(crate) fn same_payload(
    before: &Version<'_>,
    after: &Version<'_>,
    a: &Located<'_>,
    b: &Located<'_>,
    walk_chains: bool,
) -> Result<bool, DiffError> {
    if a.cell.payload_bytes != b.cell.payload_bytes {
        return Ok(false);
    }
    match (a.cell.overflow, b.cell.overflow) {
        (None, None) => Ok(a.cell.local == b.cell.local),
        (Some(old), Some(new)) if old == new && !walk_chains => Ok(a.cell.local == b.cell.local),
        // Local parts of another length come from another usable size: the whole decides.
        _ if a.cell.local.len() == b.cell.local.len() && a.cell.local != b.cell.local => Ok(false),
        _ => Ok(before.payload(a.page, &a.cell, None)? == after.payload(b.page, &b.cell, None)?),
    }
}
