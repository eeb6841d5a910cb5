//! How long the rest of a round is waited for.
//!
//! An origin that died between two messages of a round must not stop the others for ever. One that lives and cannot publish now, because
//! the servers elect who leads a stream, brings the rest when it can: nothing may be torn for that.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Database;
use crate::node::NodeError;
use crate::node::snapshot::Need;

/// How long an origin is waited for that lives. Servers elect and restart in less; a message that they refuse for ever must not stop
/// everybody.
const ALIVE_MAX: Duration = Duration::from_secs(120);

/// How much longer than an origin has to answer may pass before its silence is believed.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A round that is not complete.
#[derive(Debug, Default)]
pub(super) struct Incomplete {
    since: Option<Instant>,
    asked: Option<oneshot::Receiver<bool>>,
}

impl Database {
    /// Whether what waits for the rest of a round has waited long enough.
    pub(super) fn has_waited_enough(&mut self) -> Result<bool, NodeError> {
        // A shard that stopped here, or that we cannot read now, is no such case.
        if !self.behind.is_reading() || !self.blocked.is_empty() || !*self.links.connected.borrow() {
            self.inbox.stuck_since = None;
        }
        let Some(stuck_since) = self.inbox.stuck_since else {
            self.incomplete = Incomplete::default();
            return Ok(self.blocked.is_empty() && self.config.apply.cut_wait.is_zero());
        };
        let first = *self.incomplete.since.get_or_insert(stuck_since);
        let (waited, wait) = (stuck_since.elapsed(), self.config.apply.cut_wait);
        if waited >= wait / 2 && self.incomplete.asked.is_none() {
            let (answer, asked) = oneshot::channel();
            self.need(Need::Rest { nodes: self.origins_waited_for(), answer })?;
            self.incomplete.asked = Some(asked);
        }
        if waited < wait {
            return Ok(false);
        }
        match self.incomplete.asked.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Ok(true)) if first.elapsed() < ALIVE_MAX => {
                self.inbox.stuck_since = Some(Instant::now());
                self.incomplete.asked = None;
                Ok(false)
            }
            Some(Err(oneshot::error::TryRecvError::Empty)) => Ok(waited >= wait + ANSWER_MAX),
            Some(Ok(_) | Err(oneshot::error::TryRecvError::Closed)) | None => Ok(true),
        }
    }

    /// The nodes whose messages come first. Our own are ours to complete.
    fn origins_waited_for(&self) -> BTreeSet<u64> {
        let own = self.replica.state().origin().node_id;
        let first = self.shards.iter().filter_map(|shard| self.inbox.headers(*shard, 1).first());
        first.map(|header| header.origin.node_id).filter(|node| *node != own).collect()
    }
}
