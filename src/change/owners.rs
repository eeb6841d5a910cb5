//! Which tree a page belongs to, and at which height above the leaves.
//!
//! Invariant: after every transaction the map equals a fresh walk over the interior pages of all trees.

use super::pages::{DiffError, TREE_HEIGHT_MAX, Version};
use crate::format::{Corrupt, PageNo};

/// Index of a tree in the differ's list; 0 is the schema tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TreeNo(pub(crate) u32);

/// 24 bits of an entry number the tree.
const TREE_COUNT_MAX: u32 = 1 << 24;

/// The owner of every b-tree page: 4 bytes a page, so 1 MiB for a database of 1 GiB with 4 KiB pages.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owners {
    /// Indexed by page number; height + 1 in the upper byte, tree below; 0 for pages that no tree owns.
    entries: Vec<u32>,
}

impl Owners {
    pub(crate) fn get(&self, page: PageNo) -> Option<(TreeNo, u8)> {
        let entry = *self.entries.get(page.get() as usize)?;
        (entry != 0).then(|| (TreeNo(entry & 0xff_ffff), (entry >> 24) as u8 - 1))
    }

    pub(crate) fn set(&mut self, page: PageNo, tree: TreeNo, height: u8) {
        assert!(tree.0 < TREE_COUNT_MAX && height <= TREE_HEIGHT_MAX, "trees and heights fit into an owner entry");
        let index = page.get() as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, 0);
        }
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = u32::from(height + 1) << 24 | tree.0;
        }
    }

    /// Takes a page from `tree`; a page that another tree owns by now keeps its owner.
    pub(crate) fn release(&mut self, page: PageNo, tree: TreeNo) {
        if self.get(page).is_some_and(|(owner, _)| owner == tree)
            && let Some(entry) = self.entries.get_mut(page.get() as usize)
        {
            *entry = 0;
        }
    }

    /// All pages with their owners.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageNo, TreeNo, u8)> {
        (1..self.entries.len() as u32).filter_map(|no| {
            let page = PageNo::new(no)?;
            self.get(page).map(|(tree, height)| (page, tree, height))
        })
    }

    /// Walks the interior pages of a tree and notes its pages. Returns the tree's height.
    pub(crate) fn walk(&mut self, version: &Version<'_>, tree: TreeNo, root: PageNo) -> Result<u8, DiffError> {
        let height = version.height(root)?;
        let mut level = vec![root];
        let mut children = Vec::new();
        for height in (0..=height).rev() {
            for page in &level {
                if page.get() > version.pages.page_count() {
                    return Err(Corrupt { page: *page, offset: 0, what: "child beyond the end of the database" }.into());
                }
                // Also what ends the walk of a damaged tree that contains itself.
                if self.get(*page).is_some() {
                    return Err(Corrupt { page: *page, offset: 0, what: "page belongs to two trees" }.into());
                }
                self.set(*page, tree, height);
            }
            if height == 0 {
                break;
            }
            children.clear();
            for page in &level {
                version.children(*page, &mut children)?;
            }
            std::mem::swap(&mut level, &mut children);
        }
        Ok(height)
    }
}
