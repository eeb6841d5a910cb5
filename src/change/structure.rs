//! What a transaction did to the shape of one tree: which pages it lost, gained and kept.
//!
//! Invariant: at every height *removed = lost − gained* and *new = gained − lost* are taken before going down. A page that only got
//! another parent within its tree is in both sets and so in neither result; taking the subtree of a freed interior page as gone would
//! delete rows that live on under a sibling.

use super::pages::{DiffError, Version};
use crate::format::{Corrupt, PageNo};

/// A tree's place in one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) page: PageNo,
    pub(crate) height: u8,
}

/// The pages of one tree that a transaction touched.
#[derive(Debug, Default)]
pub(crate) struct TreeChange {
    /// Pages whose content before must be looked at, ascending, with heights.
    pub(crate) before: Vec<(PageNo, u8)>,
    /// Pages whose content after must be looked at, ascending, with heights.
    pub(crate) after: Vec<(PageNo, u8)>,
    /// Pages that the tree does not own any more.
    pub(crate) removed: Vec<(PageNo, u8)>,
    /// Pages that the tree owns now, at this height, whether it did before or not.
    pub(crate) owned: Vec<(PageNo, u8)>,
}

/// Finds out what happened to a tree.
///
/// `changed` are the pages in the transaction that the tree owned before, with their heights then.
pub(crate) fn tree_change(
    before: &Version<'_>,
    after: &Version<'_>,
    root_before: Option<Root>,
    root_after: Option<Root>,
    changed: &[(PageNo, u8)],
) -> Result<TreeChange, DiffError> {
    let mut change = TreeChange::default();
    // Most transactions change leaves only, and nothing of the shape.
    if root_before == root_after && changed.iter().all(|(_, height)| *height == 0) {
        change.before.extend_from_slice(changed);
        change.after.extend_from_slice(changed);
        change.owned.extend_from_slice(changed);
        return Ok(change);
    }
    let (mut lost, mut gained): (Vec<PageNo>, Vec<PageNo>) = (Vec::new(), Vec::new());
    let top = root_before.iter().chain(&root_after).map(|root| root.height).max();
    let Some(top) = top else { return Ok(change) };
    for height in (0..=top).rev() {
        if root_before != root_after {
            lost.extend(root_before.filter(|root| root.height == height).map(|root| root.page));
            gained.extend(root_after.filter(|root| root.height == height).map(|root| root.page));
        }
        sort(&mut lost);
        sort(&mut gained);
        let removed = difference(&lost, &gained);
        let new = difference(&gained, &lost);
        let (mut lost_below, mut gained_below) = (Vec::new(), Vec::new());
        for page in &removed {
            change.before.push((*page, height));
            change.removed.push((*page, height));
            if height > 0 {
                before.children(*page, &mut lost_below)?;
            }
        }
        for (page, at) in changed {
            if *at != height || removed.binary_search(page).is_ok() {
                continue;
            }
            change.before.push((*page, height));
            change.after.push((*page, height));
            change.owned.push((*page, height));
            if height > 0 {
                before.children(*page, &mut lost_below)?;
                after.children(*page, &mut gained_below)?;
            }
        }
        for page in &new {
            change.after.push((*page, height));
            change.owned.push((*page, height));
            if height > 0 {
                after.children(*page, &mut gained_below)?;
            }
        }
        lost = lost_below;
        gained = gained_below;
    }
    // The map of owners has a place for each page up to the last of them.
    match change.owned.iter().find(|(page, _)| page.get() > after.pages.page_count()) {
        Some((page, _)) => Err(Corrupt { page: *page, offset: 0, what: "child beyond the end of the database" }.into()),
        None => Ok(change),
    }
}

fn sort(pages: &mut Vec<PageNo>) {
    pages.sort_unstable();
    pages.dedup();
}

/// The pages of `a` that are not in `b`; both ascending.
fn difference(a: &[PageNo], b: &[PageNo]) -> Vec<PageNo> {
    a.iter().filter(|page| b.binary_search(page).is_err()).copied().collect()
}
