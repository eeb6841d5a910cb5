//! The status file, and the bound of the outbox.

use std::time::Instant;

use super::Database;
use crate::log::{ShardId, StreamSeq};
use crate::node::NodeError;

impl Database {
    pub(super) fn report_when_due(&mut self) -> Result<(), NodeError> {
        if !self.reporter.is_due() {
            return Ok(());
        }
        self.store_position()?;
        let backlog = self.report_now();
        let bytes_max = self.config.log.outbox_bytes_max;
        let connected = *self.links.connected.borrow();
        if self.outbox_bound.passes(backlog, bytes_max) {
            tracing::warn!(
                "the outbox holds {backlog} bytes, more than {bytes_max}: the node ends if it does not become smaller"
            );
        }
        if self.outbox_bound.is_full(backlog, bytes_max, connected, Instant::now()) {
            return Err(NodeError::OutboxFull { bytes: backlog, bytes_max });
        }
        Ok(())
    }

    /// Writes the status file. Bytes that wait in the outbox.
    pub(super) fn report_now(&mut self) -> u64 {
        let began = Instant::now();
        let backlog = self.replica.state().backlog().unwrap_or_default();
        let mut status = self.reporter.status();
        status.connected = *self.links.connected.borrow();
        if status.last_error.is_empty() {
            status.last_error.clone_from(&self.links.trouble.borrow());
        }
        status.position = {
            let position = self.attached.follower.position();
            format!("{}:{}", position.salts, position.frame)
        };
        status.wal_bytes = self.attached.follower.wal_bytes();
        status.wal_frames = self.attached.follower.wal_frames();
        let renewed = self.pin_renewed_at.elapsed().as_millis();
        status.pin_age_ms =
            if self.attached.follower.is_resting() { 0 } else { u64::try_from(renewed).unwrap_or(u64::MAX) };
        status.pinned_by_others = self.attached.follower.is_pinned_by_others();
        status.outbox_units = backlog.units;
        status.outbox_bytes = backlog.bytes;
        status.inbox_messages = self.inbox.message_count() as u64;
        for shard in &self.shards {
            let of_shard = status.shards.entry(shard.0).or_default();
            of_shard.applied = self.replica.state().position(*shard).unwrap_or_default().0;
            of_shard.last = self.log.seen.get(shard).copied().unwrap_or_default().0.max(of_shard.applied);
        }
        let applied =
            status.shards.iter().map(|(shard, of_shard)| (ShardId(*shard), StreamSeq(of_shard.applied))).collect();
        self.links.applied.send_replace(applied);
        self.reporter.write(&self.directory, &status, began);
        backlog.bytes
    }
}
