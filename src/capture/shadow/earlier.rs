//! The shadow as it was a few transactions ago, as far back as its journal goes.

use std::borrow::Cow;

use super::image::Shadow;
use super::journal::{Appended, Index};
use crate::capture::{CaptureError, Position};
use crate::change::{PageError, PageSource};
use crate::format::PageNo;

/// A version behind the shadow's own.
#[derive(Debug)]
pub(in crate::capture) struct Earlier<'s> {
    shadow: &'s Shadow,
    position: Position,
    index: Index,
    /// The pages that may have changed since, ascending.
    pub(in crate::capture) changed_since: Vec<PageNo>,
}

impl Shadow {
    /// The newest version that the journal still has and whose position is accepted; `None` when it has none, or when a
    /// merge that began has overwritten it.
    pub(in crate::capture) fn earlier(
        &self,
        is_wanted: &mut dyn FnMut(&Position) -> Result<bool, CaptureError>,
    ) -> Result<Option<Earlier<'_>>, CaptureError> {
        let entries = self.journal.entries(&self.file)?;
        let positions: Vec<Position> =
            std::iter::once(self.journal.merged()).chain(entries.iter().map(Appended::position)).collect();
        for (taken, position) in positions.into_iter().enumerate().rev() {
            if is_wanted(&position)? {
                let (before, since) = entries.split_at(taken.min(entries.len()));
                let Some(index) = self.journal.index_behind(before) else { return Ok(None) };
                let grown = (self.page_count() + 1..=position.page_count).filter_map(PageNo::new);
                let mut changed_since: Vec<PageNo> = since.iter().flat_map(Appended::pages).chain(grown).collect();
                changed_since.sort_unstable();
                changed_since.dedup();
                changed_since.retain(|page| page.get() <= position.page_count);
                return Ok(Some(Earlier { shadow: self, position, index, changed_since }));
            }
        }
        Ok(None)
    }
}

impl PageSource for Earlier<'_> {
    fn page_count(&self) -> u32 {
        self.position.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        self.shadow.page_of(page, self.page_count(), &self.index)
    }
}
