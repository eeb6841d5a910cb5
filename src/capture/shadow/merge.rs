//! The merge: the journal's newest pages go into `shadow.db`.

use std::os::unix::fs::FileExt;

use super::ShadowError;
use super::image::Shadow;
use super::journal::{BUFFER_BYTES, io_error};
use crate::capture::FileIdentity;
use crate::fault::{self, Point};

impl Shadow {
    /// What the journal holds: pages, and bytes.
    pub(in crate::capture) fn journal_extent(&self) -> (u64, u64) {
        self.journal.extent()
    }

    /// Makes the journal durable.
    pub(in crate::capture) fn sync(&self) -> Result<(), ShadowError> {
        self.journal.sync()
    }

    /// Whether a merge is possible now.
    pub(in crate::capture) fn can_merge(&self) -> bool {
        !self.is_copying && !self.is_held() && self.journal.extent().1 > 0
    }

    /// Writes the newest pages into `shadow.db` and begins the journal anew. The journal, and the position that the sink stored, are
    /// durable. An interrupted merge is simply done again.
    pub(in crate::capture) fn merge(&mut self, database: FileIdentity) -> Result<(), ShadowError> {
        let fail = |source| io_error(&self.path, "merging into the shadow", source);
        let page_size = self.page_size();
        let page_count = self.position().page_count;
        fault::pass(Point::Merge);
        let mut run: Vec<u8> = Vec::new();
        let mut run_offset = 0;
        let mut page_bytes = vec![0; page_size.bytes()];
        let mut written = 0;
        for page in self.journal.pages().into_iter().filter(|page| page.get() <= page_count) {
            self.journal.read_page(page, self.journal.index(), &mut page_bytes).map_err(fail)?;
            let offset = page.file_offset(page_size);
            if offset != run_offset + run.len() as u64 || run.len() >= BUFFER_BYTES {
                self.file.write_all_at(&run, run_offset).map_err(fail)?;
                if !run.is_empty() {
                    fault::pass(Point::MergeHalf);
                }
                run.clear();
                run_offset = offset;
            }
            run.extend_from_slice(&page_bytes);
            written += page_bytes.len() as u64;
        }
        self.file.write_all_at(&run, run_offset).map_err(fail)?;
        self.file.set_len(u64::from(page_count) * u64::from(page_size.get())).map_err(fail)?;
        self.file.sync_data().map_err(fail)?;
        fault::pass(Point::MergeWritten);
        self.journal.reset(database)?;
        fault::pass(Point::Merged);
        self.written_bytes += written;
        Ok(())
    }
}
