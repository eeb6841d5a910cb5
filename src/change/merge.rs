//! The rows of a rowid table on two sets of pages, merged in rowid order.
//!
//! Cells that stand unchanged on the same page of both sides are passed over without being decoded.
//!
//! Memory: one page a side, and 16 bytes for each page of the sets.

use std::borrow::Cow;

use super::pages::{DiffError, Version};
use super::suspects::Suspects;
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

/// The suspects of the page that was looked at last: the other side usually asks for the same page next.
#[derive(Default)]
struct Twins {
    page: Option<PageNo>,
    suspects: Suspects,
}

/// Walks leaf pages in the order of their first rowids, over the cells that may differ from the other side's.
struct Side<'s> {
    version: Version<'s>,
    /// The other version of a page that stands on both sides; `None` when equal cells may hide changed overflow pages.
    other: Option<(Version<'s>, &'s [PageNo])>,
    is_before: bool,
    /// (first rowid, page), descending, so that the next is popped from the end.
    pages: Vec<(i64, PageNo)>,
    page: PageNo,
    bytes: Cow<'s, [u8]>,
    cells: Vec<u16>,
    /// Index into `cells`.
    at: usize,
}

impl<'s> Side<'s> {
    fn new(
        version: Version<'s>,
        other: Option<(Version<'s>, &'s [PageNo])>,
        is_before: bool,
        leaves: &[PageNo],
        twins: &mut Twins,
    ) -> Result<Side<'s>, DiffError> {
        let mut pages = Vec::with_capacity(leaves.len());
        // One page needs no order.
        if let [page] = leaves {
            pages.push((0, *page));
        } else {
            for page in leaves {
                let bytes = version.bytes(*page)?;
                let btree = version.parse(*page, &bytes)?;
                if btree.cell_count() > 0 {
                    pages.push((rowid_of(*page, &btree.cell(0)?)?, *page));
                }
            }
            pages.sort_unstable_by(|a, b| b.cmp(a));
        }
        let (page, bytes, cells) = (PageNo::ONE, Cow::Borrowed(&[][..]), Vec::new());
        let mut side = Side { version, other, is_before, pages, page, bytes, cells, at: 0 };
        side.next_page(twins)?;
        Ok(side)
    }

    /// Goes to the next page that has cells to look at.
    fn next_page(&mut self, twins: &mut Twins) -> Result<(), DiffError> {
        self.at = 0;
        self.cells.clear();
        while let Some((_, page)) = self.pages.pop() {
            self.bytes = self.version.bytes(page)?;
            self.page = page;
            let btree = self.version.parse(page, &self.bytes)?;
            match self.other.filter(|(_, leaves)| leaves.binary_search(&page).is_ok()) {
                None => self.cells.extend(0..btree.cell_count() as u16),
                Some((other, _)) => {
                    if twins.page != Some(page) {
                        let bytes = other.bytes(page)?;
                        let twin = other.parse(page, &bytes)?;
                        let (before, after) = if self.is_before { (&btree, &twin) } else { (&twin, &btree) };
                        twins.suspects.find(before, after);
                        twins.page = Some(page);
                    }
                    let found = if self.is_before { &twins.suspects.before } else { &twins.suspects.after };
                    self.cells.extend_from_slice(found);
                }
            }
            if !self.cells.is_empty() {
                break;
            }
        }
        Ok(())
    }

    #[inline]
    fn current(&self) -> Result<Option<(i64, Located<'_>)>, DiffError> {
        let Some(index) = self.cells.get(self.at) else { return Ok(None) };
        let cell = self.version.parse(self.page, &self.bytes)?.cell(usize::from(*index))?;
        Ok(Some((rowid_of(self.page, &cell)?, Located { page: self.page, cell })))
    }

    #[inline]
    fn advance(&mut self, twins: &mut Twins) -> Result<(), DiffError> {
        self.at += 1;
        if self.at >= self.cells.len() { self.next_page(twins) } else { Ok(()) }
    }
}

fn rowid_of(page: PageNo, cell: &Cell<'_>) -> Result<i64, Corrupt> {
    cell.rowid.ok_or(Corrupt { page, offset: 0, what: "index page in a table tree" })
}

/// Calls `differ` for each rowid whose payload is not the same on both sides. `walk_chains`: equal cells may hide changed overflow pages.
pub(crate) fn merge_rowids<'s, E: From<DiffError>>(
    before: &Version<'s>,
    after: &Version<'s>,
    before_leaves: &'s [PageNo],
    after_leaves: &'s [PageNo],
    walk_chains: bool,
    mut differ: impl FnMut(Difference<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut twins = Twins::default();
    let may_skip = !walk_chains;
    let mut old = Side::new(*before, may_skip.then_some((*after, after_leaves)), true, before_leaves, &mut twins)?;
    let mut new = Side::new(*after, may_skip.then_some((*before, before_leaves)), false, after_leaves, &mut twins)?;
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
            old.advance(&mut twins)?;
        }
        if step_new {
            new.advance(&mut twins)?;
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
