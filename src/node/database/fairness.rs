//! How long the write lock of the user's database is kept from those whose it is.

use std::time::{Duration, Instant};

/// Payload bytes that one fold takes from a shard unless a round is larger: bounds memory.
pub(super) const FOLD_BYTES_MAX: usize = 2 << 20;
/// What a fold takes at least: a commit of its own costs about as much as folding this.
const FOLD_BYTES_MIN: usize = 32 << 10;
/// A fold that took longer keeps writers out for too long: the next takes half as much. One that took less than a third of it takes twice as much.
const FOLD_TIME_MAX: Duration = Duration::from_millis(250);
/// After having kept writers out for so long altogether, the lock is left alone once for as long as SQLite sleeps between two tries: who waits for
/// it gets it then, whatever we have to do.
const HELD_MAX: Duration = Duration::from_millis(500);
/// The same when nobody has written for a while.
const HELD_MAX_ALONE: Duration = Duration::from_secs(2);
/// SQLite's busy handler sleeps 100 ms at most.
const REST: Duration = Duration::from_millis(120);
/// Who has written within this time is likely to write again.
const LATELY: Duration = Duration::from_secs(30);

/// Leaves the write lock to others now and then.
#[derive(Debug)]
pub(super) struct Fairness {
    /// Payload bytes that the next fold takes from a shard.
    fold_bytes: usize,
    held: Duration,
    resting_until: Option<Instant>,
    others_at: Option<Instant>,
    /// Nobody waits: one step after another is taken.
    timeless: bool,
}

impl Default for Fairness {
    fn default() -> Fairness {
        Fairness {
            fold_bytes: FOLD_BYTES_MAX / 8,
            held: Duration::ZERO,
            resting_until: None,
            others_at: None,
            timeless: false,
        }
    }
}

impl Fairness {
    /// How long anything takes does not matter from now on.
    pub(super) fn set_timeless(&mut self) {
        self.timeless = true;
    }

    /// Whether the lock is left alone for a moment.
    pub(super) fn is_resting(&mut self) -> bool {
        if self.resting_until.is_some_and(|until| Instant::now() < until) {
            return true;
        }
        self.resting_until = None;
        false
    }

    /// Payload bytes that the next fold takes from a shard.
    pub(super) fn fold_bytes(&self) -> usize {
        self.fold_bytes
    }

    /// Others have written.
    pub(super) fn others_wrote(&mut self) {
        self.others_at = Some(Instant::now());
    }

    /// The lock was held for `time`, to fold up to `bytes` of a shard.
    pub(super) fn held(&mut self, time: Duration, bytes: usize, others_wrote: bool) {
        let time = if self.timeless { Duration::ZERO } else { time };
        if others_wrote {
            self.others_wrote();
        }
        self.held += time;
        if time > FOLD_TIME_MAX {
            self.fold_bytes = (self.fold_bytes / 2).max(FOLD_BYTES_MIN);
        } else if time < FOLD_TIME_MAX / 3 && bytes >= self.fold_bytes / 2 {
            self.fold_bytes = (self.fold_bytes * 2).min(FOLD_BYTES_MAX);
        }
        let lately = self.others_at.is_some_and(|at| at.elapsed() < LATELY);
        if self.held >= if lately { HELD_MAX } else { HELD_MAX_ALONE } {
            self.held = Duration::ZERO;
            self.resting_until = Some(Instant::now() + REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_become_smaller_until_they_take_a_quarter_of_a_second() {
        // Ten milliseconds for 32 KiB.
        let time = |bytes: usize| Duration::from_millis(10) * u32::try_from(bytes / FOLD_BYTES_MIN).unwrap();
        let mut fairness = Fairness::default();
        for _ in 0..20 {
            fairness.held(time(fairness.fold_bytes()), fairness.fold_bytes(), false);
        }
        let settled = time(fairness.fold_bytes());
        assert!(settled <= FOLD_TIME_MAX && settled * 3 > FOLD_TIME_MAX, "{settled:?}");
        for _ in 0..20 {
            fairness.held(Duration::from_secs(9), fairness.fold_bytes(), false);
        }
        assert_eq!(fairness.fold_bytes(), FOLD_BYTES_MIN);
        // Quick folds of little say nothing about folds of much.
        fairness.held(Duration::from_millis(1), 100, false);
        assert_eq!(fairness.fold_bytes(), FOLD_BYTES_MIN);
        for _ in 0..20 {
            fairness.held(Duration::from_millis(1), fairness.fold_bytes(), false);
        }
        assert_eq!(fairness.fold_bytes(), FOLD_BYTES_MAX);
    }

    #[test]
    fn the_lock_is_left_alone_after_having_been_held_for_long() {
        let folds_until_rest = |others_wrote| {
            let mut fairness = Fairness::default();
            let held = |fairness: &mut Fairness| {
                fairness.held(Duration::from_millis(100), 0, others_wrote);
                fairness.is_resting()
            };
            (1..1000).find(|_| held(&mut fairness)).unwrap()
        };
        assert_eq!(folds_until_rest(true), 5);
        assert_eq!(folds_until_rest(false), 20, "nobody writes here");
    }
}
