//! Changed pages that no tree owns, neither before nor after: why they changed.
//!
//! Most belong to chains that came or went with their cells, or to the freelist. What is left over may be overflow pages of rows whose
//! b-tree page did not change; those rows are found through the overflow map.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::differ::Differ;
use super::overflow::OverflowMap;
use super::owners::TreeNo;
use super::pages::{DiffError, Version};
use super::plan::{Plan, Touched};
use super::trees::Tree;
use crate::format::PageNo;

/// Which freelist trunk pages are looked at before an overflow page is looked for: SQLite works at the head of the list.
const TRUNKS_LOOKED_AT: usize = 8;

impl Plan<'_> {
    /// A page whose rows changed in overflow pages only is looked at on both sides.
    fn add_page(&mut self, tree: &Tree, number: TreeNo, page: PageNo, height: u8) {
        let index = match self.touched.iter().position(|touched| touched.number == number) {
            Some(index) => index,
            None => {
                self.touched.push(Touched::unchanged(number, tree));
                self.touched.len() - 1
            }
        };
        let Some(touched) = self.touched.get_mut(index) else { return };
        let entry = (page, height);
        if !touched.change.before.contains(&entry) && !touched.change.after.contains(&entry) {
            touched.change.before.push(entry);
            touched.change.after.push(entry);
        }
    }
}

impl Differ {
    /// Changed pages that no tree owned may be overflow pages of rows whose b-tree page did not change. Finds those rows' pages and adds
    /// them to their tables.
    pub(super) fn explain_loose(&self, plan: &mut Plan<'_>, mut loose: Vec<PageNo>) -> Result<(), DiffError> {
        let (old, new) = (plan.before, plan.after);
        if loose.is_empty() {
            return Ok(());
        }
        let count = old.pages.page_count().min(new.pages.page_count());
        let owned: HashSet<PageNo> =
            plan.touched.iter().flat_map(|touched| &touched.change.owned).map(|(page, _)| *page).collect();
        let page_bytes = self.header.page_size.bytes();
        loose.retain(|page| page.get() <= count && !old.is_map_or_lock(*page, page_bytes) && !owned.contains(page));
        if loose.is_empty() {
            return Ok(());
        }
        let mut open: BTreeSet<PageNo> = loose.into_iter().collect();
        let mut chain = Vec::new();

        // Pages that work as trunks of the freelist need no other reason.
        for (version, header) in [(&old, &self.header), (&new, &plan.header)] {
            let mut trunk = header.freelist_trunk;
            for _ in 0..TRUNKS_LOOKED_AT {
                let Some(page) = trunk.filter(|page| page.get() <= version.pages.page_count()) else { break };
                open.remove(&page);
                trunk = version.bytes(page)?.first_chunk().copied().map(u32::from_be_bytes).and_then(PageNo::new);
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        // Chains that came or went with their cells explain themselves.
        let mut kept_cells = Vec::new();
        for touched in &plan.touched {
            let heads_before = heads(&old, &touched.change.before)?;
            let heads_after = heads(&new, &touched.change.after)?;
            for (version, these, those) in [(&old, &heads_before, &heads_after), (&new, &heads_after, &heads_before)] {
                for (head, (page, index)) in these {
                    if those.contains_key(head) {
                        kept_cells.push((*page, *index, std::ptr::eq(version, &old)));
                        continue;
                    }
                    chain.clear();
                    walk_cell(version, *page, *index, &mut chain)?;
                    chain.iter().for_each(|page| {
                        open.remove(page);
                    });
                }
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        plan.walk_chains = true;
        for (page, index, is_before) in kept_cells {
            if is_before {
                chain.clear();
                walk_cell(&old, page, index, &mut chain)?;
                chain.iter().for_each(|page| {
                    open.remove(page);
                });
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        if self.overflow.is_none() {
            plan.built = Some(OverflowMap::build(&old, &self.owners, |tree, height| self.holds_rows(tree, height))?);
        }
        let mut chains: HashMap<PageNo, HashSet<PageNo>> = HashMap::new();
        for overflow in open {
            let map = self.overflow.as_ref().or(plan.built.as_ref());
            let Some(page) = map.and_then(|map| map.lookup(overflow)) else { continue };
            let Some((number, height)) = self.owners.get(page) else { continue };
            let Some(tree) = self.tree(number) else { continue };
            if !self.holds_rows(number, height) || number == TreeNo(0) {
                continue;
            }
            let walked = match chains.get(&page) {
                Some(walked) => walked,
                None => {
                    let walked = chains_of(&old, page)?;
                    chains.entry(page).or_insert(walked)
                }
            };
            if walked.contains(&overflow) {
                plan.add_page(tree, number, page, height);
            }
        }
        Ok(())
    }
}

/// Where chains begin on these pages: first overflow page → (page, index of the cell).
pub(super) fn heads(
    version: &Version<'_>,
    pages: &[(PageNo, u8)],
) -> Result<HashMap<PageNo, (PageNo, usize)>, DiffError> {
    let mut heads = HashMap::new();
    for (page, _) in pages {
        let bytes = version.bytes(*page)?;
        let btree = version.parse(*page, &bytes)?;
        for index in 0..btree.cell_count() {
            if let Some(head) = btree.cell(index)?.overflow {
                heads.insert(head, (*page, index));
            }
        }
    }
    Ok(heads)
}

fn walk_cell(version: &Version<'_>, page: PageNo, index: usize, out: &mut Vec<PageNo>) -> Result<(), DiffError> {
    let bytes = version.bytes(page)?;
    let cell = version.parse(page, &bytes)?.cell(index)?;
    version.chain(page, &cell, out)
}

/// All overflow pages of the cells on a page.
fn chains_of(version: &Version<'_>, page: PageNo) -> Result<HashSet<PageNo>, DiffError> {
    let bytes = version.bytes(page)?;
    let btree = version.parse(page, &bytes)?;
    let mut chain = Vec::new();
    for index in 0..btree.cell_count() {
        version.chain(page, &btree.cell(index)?, &mut chain)?;
    }
    Ok(chain.into_iter().collect())
}
