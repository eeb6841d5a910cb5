//! Whether the file is what the log belongs to: a program that restores a backup either gives the name to another file or writes into this one.
//!
//! SQLite writes to the file of a database in WAL mode in checkpoints alone, and says in `-shm` how far one is about to go before it begins. So a file
//! that was written while nothing there has changed was written by something else, whoever has it open. That alone is no proof: `touch` changes no
//! byte. What is in the file decides.

use std::collections::HashMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::time::{Duration, Instant};

use super::database_file::{Backfill, FileStamp};
use super::noted::Noted;
use super::parting::Rested;
use super::resume::Start;
use super::{CaptureError, Follower, Progress, ShadowError, ShadowProgress, ShadowStep};
use crate::change::PageSource;
use crate::format::{FrameNo, PageNo, Salts, WalHeader};

/// How many pages are compared between two looks at whether to go on.
const PAGES_AT_ONCE: u32 = 4096;
/// How much is compared after a checkpoint.
const COMPARED_BYTES: u32 = 4 << 20;
/// How often the same is done after checkpoints of others, of which there can be one for each commit.
const OTHERS_COMPARED_AFTER: Duration = Duration::from_millis(250);

/// The file at a moment at which nobody checkpointed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watched {
    stamp: FileStamp,
    backfill: Backfill,
}

impl Follower {
    /// The name leads to another file, or one of those beside it is another.
    pub(super) fn refuse_replaced(&self) -> Result<(), CaptureError> {
        let path = || self.file.path().to_owned();
        match self.file.is_in_place() {
            true if self.file.companions() == self.companions => Ok(()),
            true if self.parting.has_parted() => Err(CaptureError::Overwritten { path: path() }),
            _ => Err(CaptureError::Replaced { path: path() }),
        }
    }

    /// Whether the name leads to another file, or something else than SQLite wrote to the file. To be asked before anything is read from it or
    /// written to it; costs some microseconds.
    ///
    /// # Errors
    /// [`CaptureError::Replaced`] or [`CaptureError::Overwritten`].
    pub fn refuse_other_content(&self) -> Result<(), CaptureError> {
        self.refuse_replaced()?;
        if self.parting.is_overwritten() {
            return Err(self.overwritten());
        }
        let Some(rested) = self.parting.rested().filter(|_| self.resting) else { return self.refuse_written() };
        let stamp = self.file.stamp()?;
        if rested.is_stamp(stamp) {
            return Ok(());
        }
        // All that was committed was in the file, and what comes behind it nobody can put there while the pin is where it is.
        if self.shadow.is_some() && self.has_all(|_| None) {
            self.parting.rest(Some(rested.at(stamp)));
            return Ok(());
        }
        Err(self.note_overwritten_found())
    }

    fn overwritten(&self) -> CaptureError {
        CaptureError::Overwritten { path: self.file.path().to_owned() }
    }

    /// The same while there is something in the log that is not in the file.
    fn refuse_written(&self) -> Result<(), CaptureError> {
        // While a checkpoint is at it, what was known before stays.
        let Some(backfill) = self.file.backfill() else { return Ok(()) };
        let stamp = self.file.stamp()?;
        // A checkpoint that began in between has said so before it wrote.
        if self.file.backfill().is_none_or(|now| !now.is_as(&backfill)) {
            return Ok(());
        }
        let now = Watched { stamp, backfill };
        let Some(before) = self.watched.get() else {
            self.watched.set(Some(now));
            return Ok(());
        };
        if before.stamp == stamp || self.start == Start::Unsettled {
            self.watched.set(Some(now));
            return Ok(());
        }
        if !before.backfill.is_before(&backfill) {
            // A checkpoint can have written it.
            self.refuse_some_written(OTHERS_COMPARED_AFTER)?;
            self.watched.set(Some(now));
            return Ok(());
        }
        let last = FrameNo(backfill.last);
        let header = self.frames.read_header()?.filter(|header| header.salts.0 == backfill.salts);
        let found = match &header {
            // Begun anew, and nothing is in it: all of it is in the file, and the header is that of the log before.
            _ if last.0 == 0 => Some(self.has_all(|_| None)),
            Some(header) => {
                self.has_known_content(header, FrameNo(backfill.done), last, &mut |_| ControlFlow::Continue(()))?
            }
            None => None,
        };
        // Where the log has begun anew or a checkpoint has begun meanwhile, other things were compared than these.
        let is_as_it_was = self.file.backfill().is_some_and(|now| now.is_as(&backfill));
        match found {
            Some(true) => self.watched.set(Some(now)),
            Some(false) if is_as_it_was => return Err(self.note_overwritten_found()),
            Some(false) | None => {}
        }
        Ok(())
    }

    fn note_overwritten_found(&self) -> CaptureError {
        self.parting.note_overwritten();
        self.overwritten()
    }

    /// Whether all pages are what they must be, with the log of this header committed up to `last` and in the file up to `done`. `None` where that cannot be told.
    fn has_known_content(
        &self,
        header: &WalHeader,
        done: FrameNo,
        last: FrameNo,
        progress: Progress<'_>,
    ) -> Result<Option<bool>, CaptureError> {
        let mut since = HashMap::new();
        let mut page_count = self.position.page_count;
        let is_ours = header.salts == self.position.salts;
        for no in if is_ours { self.position.frame.0 } else { 0 } + 1..=last.0 {
            // Without its number nothing can be said of the page.
            let Some(frame) = self.frames.read_frame_header(header, FrameNo(no))? else { return Ok(None) };
            since.insert(frame.page, FrameNo(no));
            // Pages that the database has lost since are gone from the file.
            page_count = page_count.min(frame.commit.unwrap_or(page_count));
        }
        // A checkpoint passes over frames of which it knows newer ones that it must leave.
        let frame_of = |page: PageNo| {
            let newest = since.get(&page).copied().or_else(|| self.frames.newest(page).filter(|_| is_ours));
            newest.map(|frame| (frame, frame <= done))
        };
        let page_bytes = u64::from(self.page_size.get());
        let mut first = 1;
        while first <= page_count {
            let end = page_count.min(first.saturating_add(PAGES_AT_ONCE - 1));
            if !self.has_all_of(first..=end, &frame_of) {
                return Ok(Some(false));
            }
            let (done_bytes, total_bytes) = (u64::from(end) * page_bytes, u64::from(page_count) * page_bytes);
            if progress(ShadowProgress { step: ShadowStep::Compare, done_bytes, total_bytes }).is_break() {
                return Err(ShadowError::Interrupted.into());
            }
            first = end.saturating_add(1);
        }
        Ok(Some(true))
    }

    /// Whether the file has of each page what it must have: the page's frame where `frame_of` names one that a checkpoint has put there, nothing in
    /// particular where it names another, for of those nobody reads what the file has, and else what the shadow has.
    fn has_all(&self, frame_of: impl Fn(PageNo) -> Option<(FrameNo, bool)>) -> bool {
        self.has_all_of(1..=self.position.page_count, &frame_of)
    }

    /// As [`Follower::refuse_other_content`] right behind a checkpoint of our own: something else can have written to the file while that was at it.
    pub(super) fn refuse_written_beside_checkpoint(&self) -> Result<(), CaptureError> {
        self.compared.set((self.compared.get().0, None));
        self.refuse_other_content()
    }

    /// Compares as many pages as a small checkpoint copies, in turn, and with them all of a small database; of a larger one a copy takes longer than
    /// a checkpoint. Not more often than every `after`. The stamp does not tell, for the checkpoint changed it.
    fn refuse_some_written(&self, after: Duration) -> Result<(), CaptureError> {
        let (compared_up_to, compared_at) = self.compared.get();
        if self.start != Start::Settled || compared_at.is_some_and(|at| at.elapsed() < after) {
            return Ok(());
        }
        let page_count = self.position.page_count;
        let first = if compared_up_to < page_count { compared_up_to + 1 } else { 1 };
        let end = page_count.min(first.saturating_add(COMPARED_BYTES / self.page_size.get() - 1));
        self.compared.set((end, Some(Instant::now())));
        // What the log has of a page a checkpoint wrote, or will.
        let has_all = self.has_all_of(first..=end, &|page| self.frames.newest(page).map(|frame| (frame, false)));
        let is_known_log = || self.frames.header().map_or(Ok(true), |header| self.is_log_of(header.salts));
        if has_all || !is_known_log()? { Ok(()) } else { Err(self.note_overwritten_found()) }
    }

    /// The same of some pages.
    fn has_all_of(&self, pages: RangeInclusive<u32>, frame_of: &impl Fn(PageNo) -> Option<(FrameNo, bool)>) -> bool {
        pages.filter_map(PageNo::new).all(|page| {
            // What pages hold that are in no tree is nobody's.
            if page != PageNo::ONE && self.differ.object_of(page).is_none() {
                return true;
            }
            match (frame_of(page), &self.shadow) {
                (Some((frame, true)), _) => self.frames.is_in(&self.file, page, frame),
                (Some((_, false)), _) | (None, None) => true,
                (None, Some(shadow)) => {
                    // Of what cannot be read here nothing can be said.
                    shadow.page(page).map_or(true, |wanted| {
                        self.file.read_page(page, self.page_size).is_ok_and(|found| *found == *wanted)
                    })
                }
            }
        })
    }

    fn is_log_of(&self, salts: Salts) -> Result<bool, CaptureError> {
        Ok(self.frames.read_header()?.is_some_and(|header| header.salts == salts))
    }

    /// Whether the file is as a former process noted it.
    fn is_as_noted(&self) -> Result<bool, CaptureError> {
        let (stamp, file) = (self.file.stamp()?, self.file.identity());
        Ok(self.noted.get().is_some_and(|noted| noted.stamp == stamp && noted.file.is(&file)))
    }

    /// Whether another file has come to the log that a former process noted beside its own: one that was moved over the name while nobody could
    /// see it.
    pub(super) fn is_beside_former_log(&self) -> bool {
        let Some(noted) = self.noted.get().filter(|noted| !noted.file.is(&self.file.identity())) else { return false };
        let log = noted.log.zip(self.companions.wal);
        log.is_some_and(|(noted, log)| noted.is(&log))
    }

    /// Whether something else than SQLite wrote to the file since a former process noted it, and nobody has it open. To be asked when the log has the
    /// position and what is up to there was taken, with the log committed up to `last`. A backup that was copied into the file while a process died would be
    /// read together with a log that is not its own.
    ///
    /// # Errors
    /// [`CaptureError::Overwritten`]; [`ShadowError::Interrupted`] when `progress` says so.
    pub(super) fn refuse_written_meanwhile(
        &self,
        header: &WalHeader,
        last: FrameNo,
        progress: Progress<'_>,
    ) -> Result<(), CaptureError> {
        // Under an application that runs nobody puts a file in place, and its checkpoints change the stamp all the time.
        if self.file.other_user().is_some() || self.is_as_noted()? {
            return Ok(());
        }
        // What is in the file of the log beyond that only the checkpoint knows that wrote it.
        let done = self.noted.get().filter(|noted| noted.salts == header.salts).map_or(FrameNo(0), |noted| noted.done);
        match self.has_known_content(header, done, last, progress)? {
            Some(false) if self.is_log_of(header.salts)? => Err(self.note_overwritten_found()),
            _ => Ok(()),
        }
    }

    /// Notes the file for the next process, where it is known what is in it and that is not what was noted.
    pub(super) fn note_content(&self) {
        let Some(shadow) = self.shadow.as_ref().filter(|_| self.start == Start::Settled) else { return };
        let (file, log) = (self.file.identity(), self.companions.wal);
        let known = match (self.parting.rested().filter(|_| self.resting), self.watched.get()) {
            (Some(rested), _) => Some((rested.stamp(), self.position.salts, self.position.frame)),
            (None, Some(Watched { stamp, backfill })) => Some((stamp, Salts(backfill.salts), FrameNo(backfill.done))),
            (None, None) => None,
        };
        let known = known.map(|(stamp, salts, done)| Noted { file, log, stamp, salts, done });
        if known.is_some() && known != self.noted.get() {
            // With an older note more is compared at the next start.
            let is_written = known.is_some_and(|noted| noted.write(shadow.directory()).is_ok());
            self.noted.set(known.filter(|_| is_written));
        }
    }

    /// The file does not rest any more. What was known of it is what the next look goes by.
    pub(super) fn leave_rest(&self) {
        let Some(rested) = self.parting.rested() else { return };
        let (salts, done) = (self.position.salts.0, self.position.frame.0);
        let backfill = Backfill { salts, done, attempted: done, last: done };
        self.watched.set(Some(Watched { stamp: rested.stamp(), backfill }));
        self.parting.rest(None);
    }

    /// Notes the file as it is when everything is in it.
    pub(super) fn come_to_rest(&mut self) -> Result<(), CaptureError> {
        self.refuse_written()?;
        let rested = Rested::of(&self.file, self.page_size)?;
        // A backup can have been copied into the file since the application's last close, before there was a stamp to tell by.
        if self.file.other_user().is_none() && !self.frames.are_in(&self.file, self.position.page_count)? {
            return Err(self.note_overwritten_found());
        }
        self.parting.rest(Some(rested));
        Ok(())
    }
}
