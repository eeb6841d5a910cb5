//! Whether the file is what the log belongs to: a program that restores a backup either gives the name to another file or writes into this one.
//!
//! SQLite writes to the file of a database in WAL mode in checkpoints alone, and says in `-shm` how far one is about to go before it begins. So a file
//! that was written while nothing there has changed was written by something else, whoever has it open. That alone is no proof: `touch` changes no
//! byte. What is in the file decides.

use super::database_file::{Backfill, FileStamp};
use super::parting::Rested;
use super::resume::Start;
use super::{CaptureError, Follower};
use crate::change::PageSource;
use crate::format::{FrameNo, PageNo};

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
        self.parting.note_overwritten();
        Err(self.overwritten())
    }

    fn overwritten(&self) -> CaptureError {
        CaptureError::Overwritten { path: self.file.path().to_owned() }
    }

    /// The same while there is something in the log that is not in the file.
    fn refuse_written(&self) -> Result<(), CaptureError> {
        let Some(backfill) = self.file.backfill() else {
            self.watched.set(None);
            return Ok(());
        };
        let stamp = self.file.stamp()?;
        // A checkpoint that began in between has said so before it wrote.
        if self.file.backfill().is_none_or(|now| !now.is_as(&backfill)) {
            self.watched.set(None);
            return Ok(());
        }
        let now = Watched { stamp, backfill };
        let Some(before) =
            self.watched.get().filter(|before| before.backfill.is_as(&backfill) && before.stamp != stamp)
        else {
            self.watched.set(Some(now));
            return Ok(());
        };
        let is_known = backfill.salts == self.position.salts.0 && backfill.done <= self.position.frame.0;
        if !is_known || self.start != Start::Settled {
            // What is in the file can be told when the log was read so far.
            self.watched.set(Some(before));
            return Ok(());
        }
        let done = FrameNo(backfill.done);
        if self.has_all(|page| self.frames.newest(page).map(|frame| (frame, frame <= done))) {
            self.watched.set(Some(now));
            return Ok(());
        }
        // Where the log has begun anew or a checkpoint has begun meanwhile, other things were compared than these.
        let is_same_log = self.frames.read_header()?.is_some_and(|header| header.salts == self.position.salts);
        if !is_same_log || self.file.backfill().is_none_or(|now| !now.is_as(&backfill)) {
            self.watched.set(None);
            return Ok(());
        }
        self.parting.note_overwritten();
        Err(self.overwritten())
    }

    /// Whether the file has of each page what it must have: the page's frame where `frame_of` names one that a checkpoint has put there, nothing in
    /// particular where it names another, for of those nobody reads what the file has, and else what the shadow has.
    fn has_all(&self, frame_of: impl Fn(PageNo) -> Option<(FrameNo, bool)>) -> bool {
        (1..=self.position.page_count).filter_map(PageNo::new).all(|page| {
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

    /// Notes the file as it is when everything is in it.
    pub(super) fn come_to_rest(&mut self) -> Result<(), CaptureError> {
        let rested = Rested::of(&self.file, self.page_size)?;
        // A backup can have been copied into the file since the application's last close, before there was a stamp to tell by.
        if self.file.other_user().is_none() && !self.frames.are_in(&self.file, self.position.page_count)? {
            self.parting.note_overwritten();
            return Err(self.overwritten());
        }
        self.parting.rest(Some(rested));
        Ok(())
    }
}
