//! What a node tells: the log on stderr and the status file.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::database::Stop;
use super::error::NodeError;
use super::state_dir::StateDirectory;
use super::status::{STATUS_FILE, ShardStatus, Status};
use crate::apply::FoldCounts;
use crate::capture::{ShadowProgress, ShadowStep};
use crate::log::{ShardId, StreamSeq};

/// How often the status is written.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Writing it takes at most this part of the thread's time: counting a long outbox is work.
const STATUS_SHARE: u32 = 50;
/// What reads it takes a node whose status is much older for one that hangs. A process that was stopped while it wrote seems to have worked for
/// as long as it stood.
const STATUS_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// Counts, and writes down once a second.
#[derive(Debug)]
pub(super) struct Reporter {
    node_id: u64,
    pub(super) phase: &'static str,
    pub(super) transactions_captured: u64,
    pub(super) cuts_broken: u64,
    rows_applied: u64,
    conflicts: u64,
    blocked: BTreeMap<u16, (StreamSeq, String)>,
    last_error: String,
    due_at: Instant,
}

impl Reporter {
    pub(super) fn new(node_id: u64) -> Reporter {
        Reporter {
            node_id,
            phase: "starting",
            transactions_captured: 0,
            cuts_broken: 0,
            rows_applied: 0,
            conflicts: 0,
            blocked: BTreeMap::new(),
            last_error: String::new(),
            due_at: Instant::now(),
        }
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.due_at
    }

    /// A shard stopped. It is said once, however often it is tried again.
    pub(super) fn blocked(&mut self, shard: ShardId, seq: StreamSeq, text: &str, remedy: &str) {
        let all = format!("{text}; {remedy}");
        if self.blocked.get(&shard.0).is_none_or(|(_, said)| *said != all) {
            tracing::error!("{all}");
            text.clone_into(&mut self.last_error);
            self.blocked.insert(shard.0, (seq, all));
        }
    }

    /// A shard was applied up to a message. It went on if it had stopped there or before.
    pub(super) fn applied(&mut self, shard: ShardId, last: StreamSeq) {
        if self.blocked.get(&shard.0).is_none_or(|(seq, _)| *seq > last) {
            return;
        }
        let Some((_, was)) = self.blocked.remove(&shard.0) else { return };
        tracing::info!("shard {} goes on", shard.0);
        if was.starts_with(&self.last_error) {
            self.last_error = self.blocked.values().next().map(|(_, text)| text.clone()).unwrap_or_default();
        }
    }

    pub(super) fn trouble(&mut self, text: String) {
        self.last_error = text;
    }

    pub(super) fn count(&mut self, counts: &FoldCounts) {
        self.rows_applied += counts.rows_inserted + counts.rows_updated + counts.rows_deleted;
        self.conflicts += counts.conflicts;
    }

    /// What is known here; the rest is the caller's.
    pub(super) fn status(&self) -> Status {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let shards = self
            .blocked
            .iter()
            .map(|(shard, (_, text))| (*shard, ShardStatus { blocked: text.clone(), ..ShardStatus::default() }));
        Status {
            node_id: self.node_id,
            pid: std::process::id(),
            phase: self.phase.to_owned(),
            written_at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            transactions_captured: self.transactions_captured,
            rows_applied: self.rows_applied,
            conflicts: self.conflicts,
            cuts_broken: self.cuts_broken,
            shards: shards.collect(),
            last_error: self.last_error.clone(),
            ..Status::default()
        }
    }

    /// Writes that the node has ended, and why.
    pub(super) fn end(&mut self, directory: &StateDirectory, error: &NodeError) {
        self.phase = "stopped";
        self.last_error = error.to_string();
        let status = self.status();
        self.write(directory, &status, Instant::now());
    }

    /// Writes the status; `began` is when gathering it began.
    pub(super) fn write(&mut self, directory: &StateDirectory, status: &Status, began: Instant) {
        let written = serde_json::to_vec(status)
            .map_err(std::io::Error::from)
            .and_then(|bytes| directory.replace(STATUS_FILE, &bytes));
        if let Err(error) = written {
            tracing::warn!("cannot write {}: {error}", directory.file(STATUS_FILE).display());
        }
        self.due_at = Instant::now() + until_next(began.elapsed());
    }
}

/// How long it is until the next status after one that took `took`.
fn until_next(took: Duration) -> Duration {
    took.saturating_mul(STATUS_SHARE).clamp(STATUS_INTERVAL, STATUS_INTERVAL_MAX)
}

/// How often the progress of a copy or a comparison is told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);

/// Tells how far the shadow is, on a large database.
pub(super) struct Told {
    at: Option<Instant>,
    stop: watch::Receiver<Stop>,
}

impl Told {
    pub(super) fn new(stop: &watch::Receiver<Stop>) -> Told {
        Told { at: None, stop: stop.clone() }
    }

    /// Breaks off what is told of when the node is to stop.
    pub(super) fn tell(&mut self, progress: ShadowProgress) -> ControlFlow<()> {
        if *self.stop.borrow() != Stop::No {
            return ControlFlow::Break(());
        }
        let began = *self.at.get_or_insert_with(Instant::now);
        if began.elapsed() < TELL_INTERVAL || progress.total_bytes == 0 {
            return ControlFlow::Continue(());
        }
        self.at = Some(Instant::now());
        let percent = progress.done_bytes.saturating_mul(100) / progress.total_bytes;
        let what = match progress.step {
            ShadowStep::Copy => "copying the database for the first time",
            ShadowStep::Compare => "looking for what changed while nobody followed",
        };
        tracing::info!("{what}: {percent} % of {} MiB", progress.total_bytes >> 20);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_takes_its_share_of_the_time_and_is_never_long_in_coming() {
        assert_eq!(until_next(Duration::from_millis(1)), STATUS_INTERVAL);
        assert_eq!(until_next(Duration::from_millis(100)), Duration::from_secs(5));
        // The process was stopped, or its disk hung.
        assert_eq!(until_next(Duration::from_secs(3600)), STATUS_INTERVAL_MAX);
    }
}
