//! When an outbox beyond its bound ends the node.
//!
//! One that becomes smaller is no trouble however large it is: that is how a long outage ends, and a large transaction passes. So what
//! counts is for how long it has not been smaller than ever since it passed the bound.

use std::time::{Duration, Instant};

/// How long a server that is not reached is waited for: a node that starts with a full outbox needs some time to find one.
const UNREACHED_MAX: Duration = Duration::from_secs(10);

/// The same with a server that is reached: before a node publishes it reads the log to its end, and servers elect who leads a stream.
const STUCK_MAX: Duration = Duration::from_secs(120);

/// The outbox as far as its bound is concerned.
#[derive(Debug, Default)]
pub(super) struct OutboxBound {
    beyond: Option<Beyond>,
}

#[derive(Debug)]
struct Beyond {
    bytes_least: u64,
    since: Instant,
    /// Since when no server is reached; none while one is.
    unreached_since: Option<Instant>,
}

impl OutboxBound {
    /// Whether the outbox has just passed its bound.
    pub(super) fn passes(&self, bytes: u64, bytes_max: u64) -> bool {
        bytes > bytes_max && self.beyond.is_none()
    }

    /// Takes what waits now. Whether that has been too much for too long.
    pub(super) fn is_full(&mut self, bytes: u64, bytes_max: u64, connected: bool, now: Instant) -> bool {
        if bytes <= bytes_max {
            self.beyond = None;
            return false;
        }
        match &mut self.beyond {
            Some(beyond) if bytes >= beyond.bytes_least => {
                beyond.unreached_since = beyond.unreached_since.or(Some(now)).filter(|_| !connected);
                let lasts = |since: Instant, patience| now.saturating_duration_since(since) >= patience;
                lasts(beyond.since, STUCK_MAX)
                    || beyond.unreached_since.is_some_and(|since| lasts(since, UNREACHED_MAX))
            }
            beyond => {
                let unreached_since = Some(now).filter(|_| !connected);
                *beyond = Some(Beyond { bytes_least: bytes, since: now, unreached_since });
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> impl Fn(Instant) -> Instant {
        move |began| began + Duration::from_secs(second)
    }

    #[test]
    fn an_outbox_that_grows_beyond_its_bound_without_a_server_is_full() {
        let (began, mut bound) = (Instant::now(), OutboxBound::default());
        assert!(bound.passes(101, 100));
        let full = (0..).find(|at| bound.is_full(101 + at, 100, false, second(*at)(began)));
        assert_eq!(full, Some(UNREACHED_MAX.as_secs()));
    }

    #[test]
    fn the_time_with_a_server_does_not_count_as_time_without() {
        let (began, mut bound) = (Instant::now(), OutboxBound::default());
        // Connected for 30 s, away for 8, back for 2, away for good.
        let is_connected = |at: u64| at < 30 || (38..40).contains(&at);
        let full = (0..).find(|at| bound.is_full(500 + at, 100, is_connected(*at), second(*at)(began)));
        assert_eq!(full, Some(40 + UNREACHED_MAX.as_secs()));
    }

    #[test]
    fn an_outbox_that_becomes_smaller_is_never_full() {
        let (began, mut bound) = (Instant::now(), OutboxBound::default());
        for at in 0..1000 {
            assert!(!bound.is_full(5000 - at, 100, true, second(at * 60)(began)), "{at}");
        }
    }

    #[test]
    fn a_server_that_takes_nothing_for_long_leaves_the_outbox_full() {
        let (began, mut bound) = (Instant::now(), OutboxBound::default());
        let full = (0..).find(|at| bound.is_full(500, 100, true, second(*at)(began)));
        assert_eq!(full, Some(STUCK_MAX.as_secs()));
        assert!(!bound.is_full(100, 100, true, second(1000)(began)), "the bound itself is allowed");
        assert!(bound.passes(101, 100));
    }
}
