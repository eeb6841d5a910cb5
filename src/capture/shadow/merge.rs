//! The merge: the newest versions go into `shadow.db`.

use super::ShadowError;
use super::image::Shadow;
use super::journal::{Run, io_error};
use crate::capture::FileIdentity;
use crate::fault::{self, Point};

impl Shadow {
    /// What the journal holds: pages, and bytes.
    pub(in crate::capture) fn journal_extent(&self) -> (u64, u64) {
        self.journal.extent()
    }

    /// Makes the journal durable.
    pub(in crate::capture) fn sync(&self) -> Result<(), ShadowError> {
        self.journal.sync(self.image())
    }

    /// Whether a merge is possible now.
    pub(in crate::capture) fn can_merge(&self) -> bool {
        !self.is_copying && !self.is_held() && self.journal.extent().1 > 0
    }

    /// Writes the newest pages into `shadow.db` and begins the journal anew. The journal, and the position that the sink stored, are
    /// durable. An interrupted merge is simply done again.
    pub(in crate::capture) fn merge(&mut self, database: FileIdentity) -> Result<(), ShadowError> {
        let (page_size, page_count) = (self.page_size(), self.position().page_count);
        fault::pass(Point::Merge);
        self.journal.begin_merge()?;
        let fail = |source| io_error(&self.path, "merging into the shadow", source);
        let mut run = Run::new(self.image());
        let mut page_bytes = vec![0; page_size.bytes()];
        for page in self.journal.index().changed_pages() {
            self.journal.read_page(page, self.journal.index(), &self.file, &mut page_bytes).map_err(fail)?;
            if run.push(page.file_offset(page_size), &page_bytes)? {
                fault::pass(Point::MergeHalf);
            }
        }
        run.flush()?;
        let written_bytes = run.written_bytes;
        self.file.set_len(u64::from(page_count) * u64::from(page_size.get())).map_err(fail)?;
        self.file.sync_data().map_err(fail)?;
        fault::pass(Point::MergeWritten);
        self.journal.reset(database)?;
        fault::pass(Point::Merged);
        self.written_bytes += written_bytes;
        Ok(())
    }
}
