//! How far a snapshot is, for whoever waits for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the log is told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// What is being done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotStep {
    /// A node puts it into the store.
    Store,
    /// It is fetched from the store.
    Fetch,
    /// SQLite checks what was fetched.
    Check,
}

/// How far that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// What is being done.
    pub step: SnapshotStep,
    /// Bytes of the database that are through.
    pub done_bytes: u64,
    /// Bytes of the whole database.
    pub total_bytes: u64,
}

/// Is told how far a snapshot is, some hundred times at most in a second.
pub type TellSnapshot = Arc<dyn Fn(SnapshotProgress) + Send + Sync>;

/// Writes it to the log, once a second.
#[must_use]
pub fn tell_log() -> TellSnapshot {
    let told = Mutex::new(Instant::now());
    Arc::new(move |progress| {
        let SnapshotProgress { step, done_bytes, total_bytes } = progress;
        // What is kept here is whole after every step.
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= TELL_INTERVAL && total_bytes > 0 {
            *told = Instant::now();
            let what = match step {
                SnapshotStep::Store => "making the snapshot",
                SnapshotStep::Fetch => "fetching the snapshot",
                SnapshotStep::Check => "checking the database",
            };
            tracing::info!("{what}: {} % of {} MiB", done_bytes.saturating_mul(100) / total_bytes, total_bytes >> 20);
        }
    })
}

/// As it travels from the node that makes a snapshot to whoever asked for it.
pub(super) fn progress_text(done_bytes: u64, total_bytes: u64) -> String {
    format!("at {done_bytes} {total_bytes}")
}

/// Reads what [`progress_text`] wrote; `None` for anything else, which is the answer itself.
pub(super) fn progress_of(text: &[u8]) -> Option<SnapshotProgress> {
    let text = std::str::from_utf8(text).ok()?.strip_prefix("at ")?;
    let (done, total) = text.split_once(' ')?;
    let (done_bytes, total_bytes) = (done.parse().ok()?, total.parse().ok()?);
    Some(SnapshotProgress { step: SnapshotStep::Store, done_bytes, total_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_answers() {
        let at = SnapshotProgress { step: SnapshotStep::Store, done_bytes: 7, total_bytes: 1 << 40 };
        assert_eq!(progress_of(progress_text(7, 1 << 40).as_bytes()), Some(at));
        for answer in ["ok 17", "at", "at 1", "at x 2", "cannot make a copy", "at 1 2 3"] {
            assert_eq!(progress_of(answer.as_bytes()), None, "{answer}");
        }
    }
}
