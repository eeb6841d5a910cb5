//! A state that went back in time, as after a power failure: what the node did since is found on the log before anything is published.

use std::sync::Arc;

use super::Database;
use crate::log::{ShardId, StreamSeq};
use crate::node::NodeError;

impl Database {
    /// An own message that the state never sealed, among those that were on the log at the start, shows that the state is an older one.
    pub(super) fn judge_own(&mut self, shard: ShardId, seq: StreamSeq, batch_no: u64) -> Result<(), NodeError> {
        let start = self.log.start.as_ref();
        let is_past = start.is_none_or(|start| seq <= start.last.get(&shard).copied().unwrap_or_default());
        let may_suspect = self.may_suspect() && is_past && !self.log.open && !self.replica.state().is_suspecting();
        if may_suspect && self.replica.state().is_behind_itself(shard, batch_no)? {
            tracing::warn!(
                "the state is older than what this node has published: what it did since is read from the log"
            );
            self.replica.suspect_waiting()?;
        }
        Ok(())
    }

    /// A node that does not apply could not take back what its database lost.
    pub(super) fn may_suspect(&self) -> bool {
        self.config.apply_changes
    }

    /// Once everything is applied that the log had at the start: takes out of the outbox what the log has already. Whether it did.
    pub(super) fn clear_suspects(&mut self) -> Result<bool, NodeError> {
        let Some(start) = self.log.start.as_ref().filter(|_| self.replica.state().is_suspecting()) else {
            return Ok(false);
        };
        let is_applied = |(shard, last): (&ShardId, &StreamSeq)| self.log.applied.get(shard) >= Some(last);
        if !start.last.iter().all(is_applied) {
            return Ok(false);
        }
        if !self.begin()? {
            self.retry_lock = true;
            return Ok(false);
        }
        match self.clear_suspects_now() {
            Ok(true) => Ok(true),
            Ok(false) => {
                self.replica.rollback(&self.attached.connection)?;
                Ok(false)
            }
            Err(error) => {
                self.replica.rollback(&self.attached.connection)?;
                Err(error)
            }
        }
    }

    /// `false` when too much waits to be captured first.
    fn clear_suspects_now(&mut self) -> Result<bool, NodeError> {
        if !self.drain_under_lock()? {
            return Ok(false);
        }
        self.attached.keep_indexes(&mut self.replica)?;
        let catalogue = Arc::clone(self.attached.follower.catalogue());
        let tables = |name: &str| catalogue.written_table(name).cloned();
        let cleared = self.replica.clear_suspects(&self.attached.connection, &tables)?;
        self.commit_folded()?;
        self.replica.end_suspicion()?;
        if cleared.known > 0 {
            tracing::info!(
                "{} changes that were found again are on the log already; {} are published",
                cleared.known,
                cleared.local
            );
        }
        Ok(true)
    }
}
