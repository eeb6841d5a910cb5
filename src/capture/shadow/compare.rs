//! Which pages of the database differ from the shadow.

use std::os::unix::fs::FileExt;

use super::ShadowError;
use super::copy::{Progress, ShadowProgress, ShadowStep};
use super::image::Shadow;
use super::journal::{BUFFER_BYTES, io_error};
use crate::capture::frames::AtPosition;
use crate::capture::{CaptureError, DatabaseFile};
use crate::change::{DiffError, PageSource};
use crate::format::PageNo;

impl Shadow {
    /// The pages of `now` that are not as they are here, ascending. Both files are read in pieces; a page that has a newer version in the
    /// journal or in the log is looked at alone.
    pub(in crate::capture) fn differing(
        &self,
        now: &AtPosition<'_>,
        file: &DatabaseFile,
        progress: Progress<'_>,
    ) -> Result<Vec<PageNo>, CaptureError> {
        let page_bytes = self.page_size().bytes();
        let pages_at_once = (BUFFER_BYTES / page_bytes).max(1) as u32;
        let (mut here, mut there) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
        let mut differing = Vec::new();
        let total = now.page_count();
        let mut first = 1u32;
        while first <= total {
            let count = pages_at_once.min(total - first + 1);
            let bytes = count as usize * page_bytes;
            let offset = u64::from(first - 1) * page_bytes as u64;
            let (Some(here), Some(there)) = (here.get_mut(..bytes), there.get_mut(..bytes)) else { break };
            self.read_some(here, offset)?;
            let read = file.read_some(there, offset)?;
            there.iter_mut().skip(read).for_each(|byte| *byte = 0);
            let same = here == there;
            let pairs = here.chunks(page_bytes).zip(there.chunks(page_bytes));
            for (page, (old, new)) in (first..).filter_map(PageNo::new).zip(pairs) {
                let (newer_here, newer_there) = (self.journal.has(page), now.has_frame(page));
                let equal = match (newer_here, newer_there) {
                    _ if page.get() > self.page_count() => false,
                    (false, false) => same || old == new,
                    (true, false) => *self.page(page).map_err(DiffError::from)? == *new,
                    (false, true) => *old == *now.page(page).map_err(DiffError::from)?,
                    (true, true) => {
                        self.page(page).map_err(DiffError::from)? == now.page(page).map_err(DiffError::from)?
                    }
                };
                if !equal {
                    differing.push(page);
                }
            }
            first += count;
            let (done_bytes, total_bytes) = (offset + bytes as u64, u64::from(total) * page_bytes as u64);
            if progress(ShadowProgress { step: ShadowStep::Compare, done_bytes, total_bytes }).is_break() {
                return Err(ShadowError::Interrupted.into());
            }
        }
        Ok(differing)
    }

    /// Reads from `shadow.db`; what is behind its end are zeros.
    fn read_some(&self, bytes: &mut [u8], offset: u64) -> Result<(), ShadowError> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = self.file.read_at(rest, offset + done as u64);
            match read.map_err(|source| io_error(&self.path, "reading the shadow", source))? {
                0 => {
                    rest.fill(0);
                    break;
                }
                count => done += count,
            }
        }
        Ok(())
    }
}
