//! How long to wait before trying again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Waits that double up to a cap, each shortened at random by up to a quarter so that many nodes do not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `first` and never exceeds `cap`.
    pub(super) fn new(first: Duration, cap: Duration) -> Backoff {
        Backoff { first, cap, next: first }
    }

    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = self.next.saturating_mul(2).min(self.cap);
        let random = RandomState::new().build_hasher().finish() % 256;
        wait - wait / 4 * (random as u32) / 256
    }

    /// Begins again after success.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_begin_again() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for wanted in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next().as_millis();
            assert!(wait <= wanted && wait >= wanted * 3 / 4, "{wait} ms, wanted about {wanted}");
        }
        backoff.reset();
        assert!(backoff.next().as_millis() <= 100);
    }
}
