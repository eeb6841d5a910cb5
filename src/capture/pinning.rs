//! Two read transactions that take turns: the pin that keeps SQLite from taking away what was not read.

use std::time::{Duration, Instant};

use super::connections::Link;
use super::follower::{Follower, Polled};
use super::{CaptureError, FollowError};
use crate::change::ChangeSink;

/// How long the newer pin is let go. SQLite's busy handler tries again within 15 ms as long as it has not waited for 50 ms.
const RETREAT: Duration = Duration::from_millis(20);

impl Follower {
    /// Begins the next read transaction, reads up to the bound, and ends the previous one if there was nothing to read.
    pub(super) fn renew_pin<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        polled: &mut Polled,
    ) -> Result<(), FollowError<E>> {
        if !self.settle_pins()? {
            return Ok(());
        }
        let before = self.bound;
        let next = 1 - self.held;
        self.pin(next)?.begin_read()?;
        let found = match self.read_to_bound(sink, polled) {
            Ok(found) => found,
            Err(error) => {
                // The older pin stays alone: it protects what was not read.
                self.pin(next)?.end_read()?;
                return Err(error);
            }
        };
        self.held = next;
        // A pin with another mark than the one before may have taken the very slot that a checkpoint of the application waits for.
        let is_suspect = std::mem::take(&mut self.read_since_renewal) > 0 && self.file.has_waiting_checkpoint();
        if found || is_suspect {
            self.older_held = true;
            polled.more = true;
        } else {
            self.pin(1 - next)?.end_read()?;
            // Complete before the pin began, so the pin could take read-lock 0.
            self.resting = self.bound == before && self.bound.committed == self.bound.checkpointed;
            if self.resting && self.parting.rested().is_none() {
                self.come_to_rest()?;
            }
            self.frames.rest();
        }
        Ok(())
    }

    /// Ends the older of two pins. `false` while it must stay and the newer must go instead.
    ///
    /// A checkpoint of another process that waits for readers (FULL, RESTART, TRUNCATE) looks at the mark of one slot and then waits for
    /// that slot, whatever its mark becomes. When a new pin takes the slot in between, it holds it with the newest mark, every later pin
    /// prefers it, and because pins overlap the slot would never be free: the application would wait until its busy timeout, holding the
    /// write lock. So, while such a checkpoint waits, the newer pin is let go for a moment and the older one, on another slot, protects.
    pub(super) fn settle_pins(&mut self) -> Result<bool, CaptureError> {
        if let Some(until) = self.retreat_until {
            if Instant::now() < until && self.file.has_waiting_checkpoint() {
                return Ok(false);
            }
            self.retreat_until = None;
            self.held = 1 - self.held;
        } else if self.older_held {
            self.older_held = false;
            if self.file.has_waiting_checkpoint() {
                self.pin(self.held)?.end_read()?;
                self.retreat_until = Some(Instant::now() + RETREAT);
                return Ok(false);
            }
            self.pin(1 - self.held)?.end_read()?;
        }
        Ok(true)
    }

    /// Begins the next read transaction and ends the older. For callers that hold the write lock and have read everything: without the
    /// lock a commit could slip in, and the new pin alone would let a checkpoint copy it before it is read.
    pub(super) fn hand_over(&mut self) -> Result<(), CaptureError> {
        if !self.settle_pins()? {
            // Nobody else can hold the write lock, so nobody waits.
            self.retreat_until = Some(Instant::now());
            self.settle_pins()?;
        }
        let next = 1 - self.held;
        self.pin(next)?.begin_read()?;
        self.pin(self.held)?.end_read()?;
        self.held = next;
        Ok(())
    }

    pub(super) fn pin(&self, index: usize) -> Result<&Link, CaptureError> {
        self.pins.get(index).ok_or_else(|| CaptureError::Locked { path: self.file.path().to_owned() })
    }
}
