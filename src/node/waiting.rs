//! Waiting until what was committed here is applied elsewhere.
//!
//! `capture what is committed → until none of it is pending → until the others have folded as many of our messages`

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::control::ControlAnswer;
use super::snapshot::Ask;
use crate::log::{JetStreamLog, Log, Origin, ShardId};

/// The kind of question by which nodes ask each other how far they are with the messages of an origin.
const QUESTION: &str = "folded";
/// How long answers are collected before it is asked again.
const ROUND: Duration = Duration::from_millis(100);
/// How long nodes have to say that they are there. Their databases may be busy meanwhile: the network side says it.
const PRESENT_WITHIN: Duration = Duration::from_millis(500);

/// The kind of question by which nodes ask whether others live.
const ALIVE: &str = "alive";
/// How often it is asked. Who was away hears no question that was asked meanwhile.
const ALIVE_ROUND: Duration = Duration::from_secs(1);

/// The last message of an origin that a node has folded, by shard.
pub(super) type FoldedOf = BTreeMap<ShardId, u64>;

/// An origin, in questions and answers.
#[derive(Debug, Serialize, Deserialize)]
struct OriginText {
    node_id: u64,
    epoch: u64,
}

impl OriginText {
    fn write(Origin { node_id, epoch }: Origin) -> Bytes {
        Bytes::from(serde_json::to_vec(&OriginText { node_id, epoch }).unwrap_or_default())
    }

    fn read(bytes: &Bytes) -> Option<Origin> {
        let OriginText { node_id, epoch } = serde_json::from_slice(bytes).ok()?;
        Some(Origin { node_id, epoch })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    node_id: u64,
    /// By shard.
    batch_no: BTreeMap<u16, u64>,
}

/// Waits for other nodes, and tells them how far this one is.
pub(super) struct Waits {
    log: JetStreamLog,
    origin: Origin,
    asks: mpsc::Sender<Ask>,
    /// Whether what is committed here goes to the log at all.
    publishes: bool,
}

impl Waits {
    pub(super) fn new(log: &JetStreamLog, origin: Origin, asks: mpsc::Sender<Ask>, publishes: bool) -> Waits {
        Waits { log: log.clone(), origin, asks, publishes }
    }

    /// Answers the other nodes, for as long as there is a connection.
    pub(super) async fn answer_nodes(&self) {
        let mut questions = self.log.broadcasts(QUESTION).await;
        while let Some(question) = questions.next().await {
            let Some(origin) = OriginText::read(&question.payload) else { continue };
            let (answer, folded) = oneshot::channel();
            if self.asks.send(Ask::Folded(origin, answer)).await.is_err() {
                return;
            }
            let Ok(folded) = folded.await else { return };
            let batch_no = folded.into_iter().map(|(shard, batch_no)| (shard.0, batch_no)).collect();
            let answer = Answer { node_id: self.origin.node_id, batch_no };
            question.answer(Bytes::from(serde_json::to_vec(&answer).unwrap_or_default())).await;
        }
    }

    /// Says that this node lives, for as long as there is a connection, and however busy its database is.
    pub(super) async fn answer_that_it_lives(&self) {
        let mut questions = self.log.broadcasts(ALIVE).await;
        while let Some(question) = questions.next().await {
            question.answer(OriginText::write(self.origin)).await;
        }
    }

    /// Which of these origins say nothing within a time: nodes that are away, and those that live with another state directory. None when
    /// something may still come from all of them as far as is known here: they answer, or the log does not.
    pub(super) async fn silent(&self, mut origins: BTreeSet<Origin>, within: Duration) -> BTreeSet<Origin> {
        let until = Instant::now() + within;
        loop {
            let looks = (1..=self.log.shard_count()).map(|shard| self.log.bounds(ShardId(shard)));
            // Who hears nothing of the log hears nothing of nodes: their silence is ours.
            if futures_util::future::try_join_all(looks).await.is_err() || !self.log.is_served() {
                return BTreeSet::new();
            }
            let mut hear = |bytes: &Bytes| {
                if let Some(origin) = OriginText::read(bytes) {
                    origins.remove(&origin);
                }
                origins.is_empty()
            };
            let next = Instant::now() + ALIVE_ROUND;
            let asked = self.log.ask_all(ALIVE, Bytes::new(), ALIVE_ROUND, &mut hear).await;
            if origins.is_empty() || asked.is_err() {
                return BTreeSet::new();
            }
            if Instant::now() >= until {
                return origins;
            }
            // The server says at once when nobody is there.
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// Waits until what is committed now is applied on a node, or on all that are connected.
    pub(super) async fn wait(&self, node: Option<u64>, timeout: Duration) -> ControlAnswer {
        let deadline = Instant::now() + timeout;
        if !self.publishes {
            return ControlAnswer::Failed {
                what: "it runs with --no-publish: what is committed here stays here".to_owned(),
            };
        }
        let late = |what: &str| ControlAnswer::Late { what: what.to_owned() };
        let (answer, published) = oneshot::channel();
        if self.asks.send(Ask::Published(answer)).await.is_err() {
            return ControlAnswer::Failed { what: "the node is stopping".to_owned() };
        }
        let wanted = match tokio::time::timeout(timeout, published).await {
            Ok(Ok(wanted)) => wanted,
            Ok(Err(_)) => return ControlAnswer::Failed { what: "the node is stopping".to_owned() },
            Err(_) => return late("the log to have it"),
        };
        let waiting: BTreeSet<u64> = match node {
            Some(node) if node == self.origin.node_id => {
                return ControlAnswer::Applied { nodes: vec![node] };
            }
            Some(node) => BTreeSet::from([node]),
            None => match self.present(deadline).await {
                Some(present) => present,
                None => return late("the other nodes to answer"),
            },
        };
        let mut reached = BTreeSet::new();
        while !waiting.is_subset(&reached) {
            let until = ROUND.min(deadline.saturating_duration_since(Instant::now()));
            let mut hear = |bytes: &Bytes| {
                let Ok(answer) = serde_json::from_slice::<Answer>(bytes) else { return false };
                let has =
                    |(shard, wanted): (&ShardId, &u64)| answer.batch_no.get(&shard.0).is_some_and(|no| no >= wanted);
                if wanted.iter().all(has) {
                    reached.insert(answer.node_id);
                }
                waiting.is_subset(&reached)
            };
            if let Err(error) = self.log.ask_all(QUESTION, OriginText::write(self.origin), until, &mut hear).await {
                tracing::debug!("{error}");
                tokio::time::sleep(ROUND).await;
            }
            let missing: Vec<String> = waiting.difference(&reached).map(|node| format!("node {node}")).collect();
            if !missing.is_empty() && Instant::now() >= deadline {
                return late(&missing.join(", "));
            }
        }
        ControlAnswer::Applied { nodes: waiting.into_iter().collect() }
    }

    /// The other nodes that are connected, however busy their databases are. `None` when that cannot be asked until `deadline`.
    async fn present(&self, deadline: Instant) -> Option<BTreeSet<u64>> {
        loop {
            let mut present = BTreeSet::new();
            let mut hear = |bytes: &Bytes| {
                present.extend(OriginText::read(bytes).map(|origin| origin.node_id));
                false
            };
            match self.log.ask_all(ALIVE, Bytes::new(), PRESENT_WITHIN, &mut hear).await {
                Ok(()) => {
                    present.remove(&self.origin.node_id);
                    return Some(present);
                }
                Err(error) => tracing::debug!("{error}"),
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(ROUND).await;
        }
    }
}
