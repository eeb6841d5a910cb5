//! Who pins must also checkpoint: while any reader trails by a frame the application's own checkpoints never complete, and its log would
//! grow for ever.
//!
//! Never FULL and never RESTART, which wait for readers while they hold the write lock; TRUNCATE only when nobody else has the database
//! open, to leave it as the application's own last close would have left it.

use std::time::{Duration, Instant};

use super::connections::Bound;
use super::follower::{DRAIN_PATIENCE_MAX, DRAIN_WITHIN};
use super::{CaptureError, FollowError, Follower, Polled};
use crate::change::ChangeSink;
use crate::fault::{self, Point};

/// What capture may do about the size of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Checkpoint from this many frames in a generation on; 1,000 as SQLite's own automatic checkpoint.
    pub passive_frames: u32,
    /// From this size on writers are stopped for the moment that a complete checkpoint needs.
    pub wal_bytes_max: u64,
    /// Whether writers may be stopped at all. Applications without a busy timeout can see SQLITE_BUSY from it, and from nothing else here.
    pub may_block_writers: bool,
}

impl Default for CheckpointOptions {
    fn default() -> CheckpointOptions {
        CheckpointOptions { passive_frames: 1000, wal_bytes_max: 64 << 20, may_block_writers: true }
    }
}

/// A checkpoint that did not complete is tried again after this time, or after as many new frames as make a checkpoint worthwhile.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long writers are stopped at most while somebody else's checkpoint is in the way of ours.
const BLOCKING_MAX: Duration = Duration::from_millis(100);
/// How often the write lock is tried meanwhile: a commit takes about as long.
const LOCK_TRY_INTERVAL: Duration = Duration::from_micros(100);
/// A log over its budget is tried again after this time.
const RETRY_OVER_BUDGET: Duration = Duration::from_millis(20);
/// How often a checkpoint is made without the lock, to leave little for the one with it, and how few frames count as little.
const APPROACHES_MAX: u32 = 8;
const CLOSE_FRAMES: u32 = 200;
/// A log of this many budgets belongs to a writer that is faster than we are: it is made to wait for us.
const INSIST_AT: u64 = 3;
/// How long nobody else must have had the database open before the log is emptied: programs that open it for one statement come and go.
pub(super) const UNATTACHED_AFTER: Duration = Duration::from_secs(1);

/// What the policy remembers.
#[derive(Debug, Default)]
pub(super) struct Policy {
    options: CheckpointOptions,
    tried: Option<(Instant, u32)>,
    unattached: Option<Instant>,
    /// Others have committed since everything was last in the database file.
    pub(super) written_by_others: bool,
    pinned_by_others: bool,
    restarts: u64,
}

impl Policy {
    fn is_due(&self, frames: u32, over_budget: bool) -> bool {
        let retry_after = if over_budget { RETRY_OVER_BUDGET } else { RETRY_AFTER };
        match self.tried {
            // A smaller log is another one.
            Some((at, tried)) if frames >= tried => {
                frames - tried >= self.options.passive_frames || at.elapsed() >= retry_after
            }
            _ => true,
        }
    }
}

fn complete(bound: Option<Bound>) -> bool {
    bound.is_some_and(|bound| bound.committed == bound.checkpointed)
}

impl Follower {
    /// Sets what may be done about the size of the log.
    pub fn set_checkpoint_options(&mut self, options: CheckpointOptions) {
        self.policy.options = options;
    }

    /// Whether a checkpoint could not complete because another reader keeps frames.
    #[must_use]
    pub fn is_pinned_by_others(&self) -> bool {
        self.policy.pinned_by_others
    }

    /// Whether the log is so long that writers are made to wait: nothing else is as urgent as reading it.
    #[must_use]
    pub fn is_far_behind(&self) -> bool {
        self.insists().is_some()
    }

    /// How often the log was made ready to be restarted.
    #[must_use]
    pub fn restarts_prepared(&self) -> u64 {
        self.policy.restarts
    }

    /// Keeps the log bounded. To be called after every look at the log; does nothing most of the time.
    ///
    /// # Errors
    /// [`FollowError`]; the sink is called for what is committed while writers are being stopped.
    pub fn maintain<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<(), FollowError<E>> {
        self.keep_shadow()?;
        let Bound { committed, checkpointed } = self.bound;
        let over_budget = self.wal_bytes() > self.policy.options.wal_bytes_max;
        if self.position().frame.0 != committed {
            // A writer that is faster than we are never lets us come to the end.
            if self.insists().is_some() && self.policy.is_due(committed, over_budget) {
                // As far as was read: what is copied now need not be copied while they wait.
                self.refuse_other_content()?;
                self.before_checkpoint()?;
                self.checkpoints.passive()?;
                self.stop_writers(sink)?;
                self.policy.tried = Some((Instant::now(), self.bound.committed));
            }
            return Ok(());
        }
        self.truncate_when_alone(sink)?;
        if committed < self.policy.options.passive_frames
            || committed == checkpointed
            || !self.policy.is_due(committed, over_budget && !self.policy.pinned_by_others)
        {
            return Ok(());
        }
        let (is_current, reached) = self.checkpoint_passively(sink)?;
        if !is_current {
            return Ok(());
        }
        let committed = self.bound.committed;
        if complete(reached) && reached.is_some_and(|bound| bound.committed == committed) {
            self.prepare_restart(sink)?;
        } else if over_budget && self.policy.options.may_block_writers {
            self.checkpoint_without_writers(sink)?;
        } else {
            self.policy.pinned_by_others = reached.is_some_and(|bound| bound.checkpointed < committed);
        }
        // Trying at every look would starve the writer.
        self.policy.tried = Some((Instant::now(), self.bound.committed));
        Ok(())
    }

    /// Copies into the file what no reader keeps from it. Whether the log was read to its end before, and how far the copying went.
    fn checkpoint_passively<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
    ) -> Result<(bool, Option<Bound>), FollowError<E>> {
        self.refuse_other_content()?;
        // A checkpoint goes as far as the oldest pin, so ours is renewed first; a second time if that brought news.
        let mut polled = Polled::default();
        self.renew_pin(sink, &mut polled)?;
        if polled.more {
            self.renew_pin(sink, &mut Polled::default())?;
        }
        if self.position().frame.0 != self.bound.committed {
            return Ok((false, None));
        }
        sink.settle().map_err(FollowError::Sink)?;
        self.before_checkpoint()?;
        fault::pass(Point::Checkpoint);
        self.refuse_other_content()?;
        let reached = self.checkpoints.passive()?;
        // From here on what is written to the file is somebody else's.
        self.refuse_written_beside_checkpoint()?;
        self.note_content();
        fault::pass(Point::Checkpointed);
        Ok((true, reached))
    }

    /// Everything is in the database file: the pin moves to read-lock 0, and SQLite restarts the log at the next write. A commit that
    /// comes in between is read before the older pin goes.
    fn prepare_restart<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<(), FollowError<E>> {
        self.renew_pin(sink, &mut Polled::default())?;
        self.policy.pinned_by_others = false;
        self.policy.restarts += u64::from(self.is_resting());
        Ok(())
    }

    /// How long writers are made to wait for us at a time, where the log is so long that they are: with twice the log four times as long.
    fn insists(&self) -> Option<Duration> {
        let times = self.wal_bytes() / self.policy.options.wal_bytes_max.saturating_mul(INSIST_AT).max(1);
        let patience = u32::try_from(times.saturating_mul(times)).unwrap_or(u32::MAX).min(DRAIN_PATIENCE_MAX);
        (self.policy.options.may_block_writers && times > 0).then_some(DRAIN_WITHIN * patience)
    }

    /// Stops writers for as long as a complete checkpoint needs.
    fn checkpoint_without_writers<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<(), FollowError<E>> {
        // What was committed during the checkpoint without the lock is read without it, too, and copied: little is left for the lock.
        for _ in 0..APPROACHES_MAX {
            let read_before = self.position();
            let (is_current, _) = self.checkpoint_passively(sink)?;
            let came = if read_before.salts == self.position().salts {
                self.position().frame.0.saturating_sub(read_before.frame.0)
            } else {
                0
            };
            if is_current && came < CLOSE_FRAMES {
                break;
            }
        }
        self.stop_writers(sink)
    }

    fn stop_writers<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<(), FollowError<E>> {
        // SQLite's own waiting sleeps longer and longer and never meets the gaps of a busy writer.
        let began = Instant::now();
        while !self.checkpoints.begin_immediate()? {
            if began.elapsed() > BLOCKING_MAX || self.file().has_waiting_checkpoint() {
                return Ok(());
            }
            std::thread::sleep(LOCK_TRY_INTERVAL);
        }
        let done = self.checkpoint_under_lock(sink);
        self.checkpoints.rollback()?;
        done
    }

    fn checkpoint_under_lock<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<(), FollowError<E>> {
        self.refuse_other_content()?;
        if self.drain_briefly(sink, self.insists())?.is_none() {
            return Ok(());
        }
        // A pin whose mark is the end of the log does not limit the checkpoint.
        self.hand_over()?;
        let began = Instant::now();
        loop {
            let reached = self.bounds.passive()?;
            if complete(reached) {
                self.refuse_written_beside_checkpoint()?;
                self.hand_over()?;
                self.policy.pinned_by_others = false;
                self.policy.restarts += 1;
                return Ok(());
            }
            // Incomplete without being refused: another reader keeps frames, and waiting would only stop the writers.
            if reached.is_some() || began.elapsed() > BLOCKING_MAX {
                self.policy.pinned_by_others = reached.is_some();
                return Ok(());
            }
            std::thread::yield_now();
        }
    }

    /// Empties the log when nobody else has the database open: its last application's close would have done so, had we not been there.
    fn truncate_when_alone<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<(), FollowError<E>> {
        if self.frames.file_bytes()? == 0 || self.file().other_user().is_some() {
            self.policy.unattached = None;
            return Ok(());
        }
        if std::mem::take(&mut self.policy.written_by_others) && self.bound.checkpointed < self.bound.committed {
            // The last application has gone, and whoever replaces the file does it now: it must be whole. This keeps nobody waiting; emptying
            // the log could, so that comes later.
            let (_, reached) = self.checkpoint_passively(sink)?;
            if complete(reached) {
                self.prepare_restart(sink)?;
            }
        }
        let since = *self.policy.unattached.get_or_insert_with(Instant::now);
        let after = self.pace.unattached_after;
        if since.elapsed() < after || self.moved_at.elapsed() < after {
            return Ok(());
        }
        self.policy.unattached = None;
        self.refuse_other_content()?;
        self.before_checkpoint()?;
        let reached = self.checkpoints.passive()?;
        self.refuse_written_beside_checkpoint()?;
        if complete(reached) {
            self.prepare_restart(sink)?;
            if self.is_resting() {
                fault::pass(Point::Truncate);
                self.checkpoints.truncate()?;
                fault::pass(Point::Truncated);
            }
        }
        Ok(())
    }

    /// Lets go of the database. With nobody else attached it is left as one file, as the application's own last close would have left
    /// it; otherwise nothing is checkpointed. The caller has read everything and holds no connection of its own any more.
    ///
    /// # Errors
    /// [`CaptureError`] when the name leads to another file by now (that one was not touched) or SQLite refuses.
    pub fn detach(mut self) -> Result<(), CaptureError> {
        self.make_durable()?;
        if let Err(replaced) = self.refuse_other_content() {
            self.abandon();
            return Err(replaced);
        }
        self.note_content();
        let alone = self.file().other_user().is_none();
        let last = self.into_last_link();
        if alone {
            // SQLite's own close checkpoints and removes -wal and -shm, if it really is the last.
            last.checkpoint_on_close()?;
        }
        Ok(())
    }
}
