//! The cells of a tree on two sets of pages, merged in the tree's order.
//!
//! Cells that stand unchanged on the same page of both sides are passed over by the page's bytes alone, and cells that moved meet their
//! other self: what is given out differs, or missed its other self because the order is not known.
//!
//! Memory: one page a side, and what is needed to sort the pages of the sets.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::order::Order;
use super::pages::{DiffError, PageError, Version};
use super::suspects::Suspects;
use crate::format::{Cell, CellPlace, PageNo, PageShape};

/// A cell that stands on one side, or differs between them.
pub(crate) struct Difference<'c> {
    pub(crate) before: Option<Located<'c>>,
    pub(crate) after: Option<Located<'c>>,
}

/// A cell and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Located<'c> {
    pub(crate) page: PageNo,
    pub(crate) index: u16,
    pub(crate) cell: Cell<'c>,
}

/// What a merge needs and the next can use again.
#[derive(Debug, Default)]
pub(crate) struct MergeBuffers {
    twins: Twins,
    before: Vec<u16>,
    after: Vec<u16>,
}

/// The suspects of the page that was looked at last: the other side usually asks for the same page next.
#[derive(Debug, Default)]
struct Twins {
    page: Option<PageNo>,
    suspects: Suspects,
}

/// The two versions of one level of a tree: pages with their heights, ascending.
#[derive(Clone, Copy)]
pub(crate) struct Sides<'s> {
    pub(crate) before: Version<'s>,
    pub(crate) after: Version<'s>,
    pub(crate) before_pages: &'s [(PageNo, u8)],
    pub(crate) after_pages: &'s [(PageNo, u8)],
    /// Equal cells may hide changed overflow pages.
    pub(crate) walk_chains: bool,
}

/// Walks pages in the order of their first cells, over the cells that may differ from the other side's.
struct Side<'s, O: Order> {
    order: O,
    version: Version<'s>,
    /// The other version of a page that stands on both sides; `None` when equal cells may hide changed overflow pages.
    other: Option<(Version<'s>, &'s [(PageNo, u8)])>,
    is_before: bool,
    /// The pages to come, the next one last. One page needs no order, and no memory.
    pages: Vec<(O::First, PageNo)>,
    only: Option<PageNo>,
    page: PageNo,
    bytes: Cow<'s, [u8]>,
    shape: Option<PageShape>,
    /// The cells to look at; `None` for all.
    cells: Option<Vec<u16>>,
    spare: Vec<u16>,
    /// Index into `cells`, and how many there are.
    at: usize,
    end: usize,
    current: Option<(u16, CellPlace)>,
}

impl<'s, O: Order> Side<'s, O> {
    fn new(
        order: O,
        sides: &Sides<'s>,
        is_before: bool,
        spare: Vec<u16>,
        twins: &mut Twins,
    ) -> Result<Side<'s, O>, DiffError> {
        let ((version, leaves), other) = match is_before {
            true => ((sides.before, sides.before_pages), (sides.after, sides.after_pages)),
            false => ((sides.after, sides.after_pages), (sides.before, sides.before_pages)),
        };
        let (mut pages, mut only) = (Vec::new(), None);
        match leaves {
            [(page, _)] => only = Some(*page),
            leaves => {
                pages.reserve_exact(leaves.len());
                for (page, _) in leaves {
                    let bytes = version.exact(*page)?;
                    let btree = version.parse(*page, &bytes)?;
                    if btree.cell_count() > 0 {
                        pages.push((order.first(*page, &btree.cell(0)?)?, *page));
                    }
                }
                pages.sort_unstable_by(|a, b| order.compare_pages(&b.0, &a.0).then(b.1.cmp(&a.1)));
            }
        }
        let mut side = Side {
            order,
            version,
            other: Some(other).filter(|_| !sides.walk_chains),
            is_before,
            pages,
            only,
            page: PageNo::ONE,
            bytes: Cow::Borrowed(&[]),
            shape: None,
            cells: None,
            spare,
            at: 0,
            end: 0,
            current: None,
        };
        side.next_page(twins)?;
        Ok(side)
    }

    /// Goes to the next page that has cells to look at.
    fn next_page(&mut self, twins: &mut Twins) -> Result<(), DiffError> {
        (self.at, self.end, self.current) = (0, 0, None);
        if let Some(cells) = self.cells.take() {
            self.spare = cells;
        }
        while let Some(page) = self.only.take().or_else(|| self.pages.pop().map(|(_, page)| page)) {
            self.bytes = self.version.exact(page)?;
            self.page = page;
            let btree = self.version.parse(page, &self.bytes)?;
            self.order.accept(&btree)?;
            self.shape = Some(btree.shape());
            self.end = btree.cell_count();
            let is_on_both = |pages: &[(PageNo, u8)]| pages.binary_search_by_key(&page, |(page, _)| *page).is_ok();
            if let Some((other, _)) = self.other.filter(|(_, pages)| is_on_both(pages)) {
                if twins.page != Some(page) {
                    let bytes = other.exact(page)?;
                    let twin = other.parse(page, &bytes)?;
                    let (before, after) = if self.is_before { (&btree, &twin) } else { (&twin, &btree) };
                    twins.suspects.find(before, after);
                    twins.page = Some(page);
                }
                let found = if self.is_before { &twins.suspects.before } else { &twins.suspects.after };
                let cells = &mut self.spare;
                cells.clear();
                cells.extend_from_slice(found);
                self.end = cells.len();
                if self.end > 0 {
                    self.cells = Some(std::mem::take(cells));
                }
            }
            if self.end > 0 {
                return self.load();
            }
        }
        Ok(())
    }

    #[inline]
    fn load(&mut self) -> Result<(), DiffError> {
        let index = match &self.cells {
            Some(cells) => cells.get(self.at).copied().unwrap_or_default(),
            None => self.at as u16,
        };
        if let Some(btree) = self.shape.and_then(|shape| shape.on(&self.bytes)) {
            self.current = Some((index, btree.place(usize::from(index))?));
        }
        Ok(())
    }

    #[inline]
    fn current(&self) -> Option<Located<'_>> {
        let (index, place) = self.current?;
        Some(Located { page: self.page, index, cell: place.on(&self.bytes) })
    }

    #[inline]
    fn advance(&mut self, twins: &mut Twins) -> Result<(), DiffError> {
        self.at += 1;
        if self.at >= self.end { self.next_page(twins) } else { self.load() }
    }

    fn give_back(self) -> Vec<u16> {
        self.cells.unwrap_or(self.spare)
    }
}

/// Calls `differ` for each cell that stands on one side only, and for two in the same place whose payloads are not the same.
pub(crate) fn merge<O: Order, E: From<DiffError>>(
    order: O,
    sides: &Sides<'_>,
    buffers: &mut MergeBuffers,
    mut differ: impl FnMut(Difference<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let MergeBuffers { twins, before, after } = buffers;
    twins.page = None;
    let mut old = Side::new(order, sides, true, std::mem::take(before), twins)?;
    let mut new = Side::new(order, sides, false, std::mem::take(after), twins)?;
    loop {
        let (step_old, step_new) = match (old.current(), new.current()) {
            (None, None) => break,
            (Some(cell), None) => {
                differ(Difference { before: Some(cell), after: None })?;
                (true, false)
            }
            (None, Some(cell)) => {
                differ(Difference { before: None, after: Some(cell) })?;
                (false, true)
            }
            (Some(a), Some(b)) => match order.compare(&a.cell, &b.cell) {
                Ordering::Less => {
                    differ(Difference { before: Some(a), after: None })?;
                    (true, false)
                }
                Ordering::Greater => {
                    differ(Difference { before: None, after: Some(b) })?;
                    (false, true)
                }
                Ordering::Equal => {
                    if !same_payload(sides, &a, &b)? {
                        differ(Difference { before: Some(a), after: Some(b) })?;
                    }
                    (true, true)
                }
            },
        };
        if step_old {
            old.advance(twins)?;
        }
        if step_new {
            new.advance(twins)?;
        }
    }
    (*before, *after) = (old.give_back(), new.give_back());
    Ok(())
}

/// Whether two cells hold the same payload.
#[inline]
fn same_payload(sides: &Sides<'_>, a: &Located<'_>, b: &Located<'_>) -> Result<bool, DiffError> {
    if a.cell.payload_bytes != b.cell.payload_bytes {
        return Ok(false);
    }
    match (a.cell.overflow, b.cell.overflow) {
        (None, None) => Ok(a.cell.local == b.cell.local),
        (Some(old), Some(new)) if old == new && !sides.walk_chains => Ok(a.cell.local == b.cell.local),
        // Local parts of another length come from another usable size: the whole decides.
        _ if a.cell.local.len() == b.cell.local.len() && a.cell.local != b.cell.local => Ok(false),
        _ => match (sides.before.payload(a.page, &a.cell, None), sides.after.payload(b.page, &b.cell, None)) {
            // Who reads the row says so.
            (Err(DiffError::Page(PageError::Unknown { .. })), _)
            | (_, Err(DiffError::Page(PageError::Unknown { .. }))) => Ok(false),
            (before, after) => Ok(before? == after?),
        },
    }
}
