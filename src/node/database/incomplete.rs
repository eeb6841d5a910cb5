//! How long the rest of a round is waited for.
//!
//! An origin that died between two messages of a round must not stop the others for ever. One that lives and cannot publish now, because
//! the servers elect who leads a stream, brings the rest when it can: nothing may be torn for that.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Database;
use crate::log::Origin;
use crate::node::NodeError;
use crate::node::snapshot::Need;

/// How long an origin is waited for that lives. Servers elect and restart in less; a message that they refuse for ever must not stop
/// everybody.
const ALIVE_MAX: Duration = Duration::from_secs(120);

/// How much longer than the nodes that are asked the answer itself may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// A round that is not complete.
#[derive(Debug, Default)]
pub(super) struct Incomplete {
    since: Option<Instant>,
    asked: Option<oneshot::Receiver<BTreeSet<Origin>>>,
    /// It was said that it is waited for.
    is_told: bool,
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
            let within = wait.saturating_sub(waited);
            self.need(Need::Rest { origins: self.origins_waited_for(), within, answer })?;
            self.incomplete.asked = Some(asked);
        }
        let Some(asked) = &mut self.incomplete.asked else { return Ok(false) };
        let why = match asked.try_recv() {
            Ok(silent) if silent.is_empty() && first.elapsed() < ALIVE_MAX => {
                self.inbox.stuck_since = Some(Instant::now());
                self.incomplete.asked = None;
                self.tell_incomplete(first.elapsed());
                return Ok(false);
            }
            Ok(silent) if silent.is_empty() => "the rest of it does not come".to_owned(),
            Ok(silent) => {
                let silent: Vec<String> = silent.iter().map(|origin| format!("node {}", origin.node_id)).collect();
                format!("{} gave no answer", silent.join(", "))
            }
            Err(oneshot::error::TryRecvError::Empty) if waited < wait + ANSWER_MAX => return Ok(false),
            Err(_) => "nothing is heard of its node".to_owned(),
        };
        let waited = first.elapsed();
        tracing::warn!("a transaction is still incomplete after {waited:.1?}, and {why}: applying what is there of it");
        Ok(true)
    }

    /// Says once that the rest of a round is waited for whose node lives: what keeps it is known there.
    fn tell_incomplete(&mut self, waited: Duration) {
        let origins: Vec<String> = self.origins_waited_for().iter().map(|origin| origin.node_id.to_string()).collect();
        // Why our own does not leave is said where it is sent.
        if origins.is_empty() || std::mem::replace(&mut self.incomplete.is_told, true) {
            return;
        }
        let text = format!(
            "what has arrived waits for the rest of a transaction of node {}, which runs and has not sent it for {waited:.0?}: `woodchuck status` there says why",
            origins.join(" or ")
        );
        tracing::warn!("{text}");
        self.reporter.trouble(text);
    }

    /// Something was applied: what was waited for has come, or is waited for no more.
    pub(super) fn is_complete_again(&mut self) {
        if std::mem::take(&mut self.incomplete.is_told) {
            self.reporter.trouble(String::new());
        }
    }

    /// The origins whose messages come first. Our own are ours to complete; those of a state directory that this node has lost are nobody's.
    fn origins_waited_for(&self) -> BTreeSet<Origin> {
        let own = self.replica.state().origin();
        let first = self.shards.iter().filter_map(|shard| self.inbox.headers(*shard, 1).first());
        first.map(|header| header.origin).filter(|origin| *origin != own).collect()
    }
}
