//! Looking for changes that nobody has taken, without taking them, and for how much of them was taken.

use super::resume::Start;
use super::stand::look_at_bound;
use super::{CaptureError, FollowError, Follower};
use crate::change::{ChangeSink, RowChange, SchemaChange, TxSpan};
use crate::format::Salts;

/// What is committed at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    /// Of the log; none while it is empty.
    salts: Option<Salts>,
    frame: u32,
    /// The log that was being read then.
    stood_in: Salts,
}

/// Refuses every transaction, so that capture stays where it is.
struct Refuse;

impl ChangeSink<()> for Refuse {
    fn begin(&mut self, _: &TxSpan) -> Result<(), ()> {
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), ()> {
        Ok(())
    }
    fn change(&mut self, _: RowChange) -> Result<(), ()> {
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), ()> {
        Err(())
    }
}

impl Follower {
    /// Whether the database holds changes behind the position, for a caller that follows no further: a database that was restored from a
    /// backup, or written over by something else, counts as changed.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn has_uncaptured(&mut self) -> Result<bool, CaptureError> {
        self.set_accept_restored(true);
        loop {
            match self.poll(&mut Refuse) {
                Ok(polled) if polled.more => {}
                Ok(_) => return Ok(false),
                Err(FollowError::Sink(())) => return Ok(true),
                Err(FollowError::Capture(CaptureError::Overwritten { .. })) => return Ok(true),
                Err(FollowError::Capture(error)) => return Err(error),
            }
        }
    }

    /// What is committed now, whether it was read or not.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn committed(&self) -> Result<Committed, CaptureError> {
        let (salts, bound) = look_at_bound(&self.frames, &self.bounds, &self.file)?;
        Ok(Committed { salts, frame: bound.committed, stood_in: self.position.salts })
    }

    /// Whether all of it was read.
    #[must_use]
    pub fn has_read(&self, committed: &Committed) -> bool {
        let Committed { salts, frame, stood_in } = *committed;
        if self.start != Start::Settled {
            return false;
        }
        // A log begins anew when all of the one before was read.
        match salts {
            Some(salts) if salts == self.position.salts => self.position.frame.0 >= frame,
            Some(_) => frame == 0 || self.position.salts != stood_in,
            None => true,
        }
    }
}
