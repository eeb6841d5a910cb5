//! Looking for changes that nobody has taken, without taking them.

use super::{CaptureError, FollowError, Follower};
use crate::change::{ChangeSink, RowChange, SchemaChange, TxSpan};

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
    /// backup counts as changed.
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
                Err(FollowError::Capture(error)) => return Err(error),
            }
        }
    }
}
