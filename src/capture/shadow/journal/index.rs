//! Where the newest version of each page stands.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::num::NonZeroU64;

use crate::capture::frames::PageHasher;
use crate::format::PageNo;

/// Where a version of a page stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The whole page is in the journal.
    Whole(NonZeroU64),
    /// The whole page is in `shadow.db`, behind what was merged.
    Image,
    /// `bytes` of ranges from `offset` of the journal on, to be put over the base.
    Ranges { offset: u64, bytes: u32, base: Base },
}

/// The version that ranges belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// The page in `shadow.db`.
    Image,
    /// The whole page at this offset of the journal.
    Journal(NonZeroU64),
}

/// Page number → place of its newest version, and what may be based on what. About 40 bytes a page; the merge bounds the pages.
#[derive(Debug, Clone)]
pub(in crate::capture::shadow) struct Index {
    places: HashMap<u32, Place, BuildHasherDefault<PageHasher>>,
    page_count: u32,
    /// Up to here `shadow.db` has what was merged: the database was never smaller since.
    kept: u32,
    /// Up to here `shadow.db` may hold a page that some version needs.
    used: u32,
}

impl Index {
    /// Nothing since a merge that left `page_count` pages.
    pub(super) fn new(page_count: u32) -> Index {
        Index { places: HashMap::default(), page_count, kept: page_count, used: page_count }
    }

    /// Goes on to the next version of the database.
    pub(super) fn take(&mut self, page_count: u32, places: &[(PageNo, Place)]) {
        if page_count < self.page_count {
            self.places.retain(|page, _| *page <= page_count);
            self.kept = self.kept.min(page_count);
        }
        self.page_count = page_count;
        self.used = self.used.max(page_count);
        self.places.extend(places.iter().map(|(page, place)| (page.get(), *place)));
    }

    pub(super) fn get(&self, page: PageNo) -> Option<Place> {
        self.places.get(&page.get()).copied()
    }

    /// What a next version can be based on.
    pub(super) fn base(&self, page: PageNo) -> Option<Base> {
        match self.get(page) {
            Some(Place::Whole(offset)) => Some(Base::Journal(offset)),
            Some(Place::Image) => Some(Base::Image),
            Some(Place::Ranges { base, .. }) => Some(base),
            None => (page.get() <= self.kept).then_some(Base::Image),
        }
    }

    /// Whether no version needs what `shadow.db` has at this page.
    pub(super) fn is_free(&self, page: PageNo) -> bool {
        page.get() > self.used
    }

    pub(super) fn has(&self, page: PageNo) -> bool {
        self.places.contains_key(&page.get())
    }

    /// The pages whose newest version is not in `shadow.db`, ascending.
    pub(in crate::capture::shadow) fn changed_pages(&self) -> Vec<PageNo> {
        let changed = self.places.iter().filter(|(_, place)| **place != Place::Image);
        let mut pages: Vec<PageNo> = changed.filter_map(|(page, _)| PageNo::new(*page)).collect();
        pages.sort_unstable();
        pages
    }
}
