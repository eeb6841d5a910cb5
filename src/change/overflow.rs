//! Which b-tree page an overflow page hangs from.
//!
//! An overflow page can change while the page with its cell does not: a same-size overwrite, an incremental blob write, a page that
//! auto-vacuum moves. The map is built at the first transaction that has such a page, and kept from then on.
//!
//! Like SQLite's own pointer map it stores one step: the first page of a chain points to the b-tree page, every other to its predecessor,
//! so that a cell that moves costs one entry and not its chain.
//!
//! Invariant: every overflow page of every live chain of a row has its entry. Entries of pages that are no overflow pages any more are
//! stale, which is why an answer counts only after the chain was walked.

use super::owners::Owners;
use super::pages::{DiffError, Version};
use crate::format::PageNo;

const FIRST: u64 = 1 << 32;

#[derive(Debug, Clone, Default)]
pub(crate) struct OverflowMap {
    /// Indexed by page number: 0 unknown, with `FIRST` the b-tree page, else the page before in the chain.
    entries: Vec<u64>,
}

impl OverflowMap {
    /// Walks every chain of the pages for which `holds_rows` is true.
    pub(crate) fn build(
        version: &Version<'_>,
        owners: &Owners,
        holds_rows: impl Fn(super::owners::TreeNo, u8) -> bool,
    ) -> Result<OverflowMap, DiffError> {
        let mut map = OverflowMap::default();
        for (page, tree, height) in owners.iter() {
            if holds_rows(tree, height) && page.get() <= version.pages.page_count() {
                map.note_page(version, page, |_| true)?;
            }
        }
        Ok(map)
    }

    /// Notes the chains of the cells on a page: every page where `whole` says so of the chain's first, else that first page only.
    pub(crate) fn note_page(
        &mut self,
        version: &Version<'_>,
        page: PageNo,
        whole: impl Fn(PageNo) -> bool,
    ) -> Result<(), DiffError> {
        let bytes = version.bytes(page)?;
        let btree = version.parse(page, &bytes)?;
        let mut chain = Vec::new();
        for index in 0..btree.cell_count() {
            let cell = btree.cell(index)?;
            let Some(first) = cell.overflow else { continue };
            if whole(first) {
                chain.clear();
                version.chain(page, &cell, &mut chain)?;
                self.note_chain(page, &chain);
            } else {
                self.set(first, FIRST | u64::from(page.get()));
            }
        }
        Ok(())
    }

    /// Notes the pages of one chain.
    pub(crate) fn note_chain(&mut self, page: PageNo, chain: &[PageNo]) {
        let mut previous = FIRST | u64::from(page.get());
        for overflow in chain {
            self.set(*overflow, previous);
            previous = u64::from(overflow.get());
        }
    }

    fn set(&mut self, page: PageNo, entry: u64) {
        let index = page.get() as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, 0);
        }
        if let Some(slot) = self.entries.get_mut(index) {
            *slot = entry;
        }
    }

    /// The b-tree page that the entries lead to; to be confirmed by walking its chains.
    pub(crate) fn lookup(&self, page: PageNo) -> Option<PageNo> {
        let mut at = page.get();
        // A chain has no more pages than the map has entries; stale entries could lead in a circle.
        for _ in 0..self.entries.len() {
            let entry = *self.entries.get(at as usize)?;
            if entry & FIRST != 0 {
                return PageNo::new(entry as u32);
            }
            at = entry as u32;
            if at == 0 {
                return None;
            }
        }
        None
    }
}
