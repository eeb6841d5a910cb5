//! What other nodes know of the ends of the streams.
//!
//! A server that comes back with less than it had acknowledged looks whole to a node that had not read what is lost, and the node's next message
//! would take a lost one's place. Those that know answer as soon as they are connected again; so before the first message to a server that
//! was started anew they are given the time for that.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Mutex;

use super::super::message::{ShardId, StreamSeq};
use super::JetStreamLog;
use super::connect::RECONNECT_CAP;
use super::publishing::Publishing;

/// The kind of question by which nodes ask each other.
const TAILS: &str = "tails";
/// How long the others have to connect again and to answer, when the server is another process than the last.
const CONNECT_WITHIN: Duration = RECONNECT_CAP.saturating_add(ANSWER_WITHIN);
/// How long those have that are connected.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// What they said over one connection.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<Option<Said>>);

#[derive(Debug)]
struct Said {
    /// The last message that anybody knows of, by shard.
    known: Vec<StreamSeq>,
    /// Something of it is not there. It can come back, and so can what is known be forgotten with the nodes that know it.
    is_missing: bool,
}

impl JetStreamLog {
    /// Tells other nodes which messages this one knows of, for as long as there is a connection.
    pub async fn answer_tails(&self) {
        let mut questions = self.broadcasts(TAILS).await;
        while let Some(question) = questions.next().await {
            let known = (1..=self.options.shard_count).map(|shard| self.floors.get(ShardId(shard)).0.to_string());
            question.answer(Bytes::from(known.collect::<Vec<_>>().join(" "))).await;
        }
    }

    /// The last message of a shard that any node knows of, as far as it matters for the first message over a connection.
    pub(super) async fn known_elsewhere(&self, publishing: &Publishing, shard: ShardId) -> StreamSeq {
        // Where each message has copies no server comes back without it alone.
        if self.options.replica_count > 1 {
            return StreamSeq(0);
        }
        let mut said = publishing.tails.0.lock().await;
        let within = match &*said {
            None if self.publishings.is_known_server(&publishing.server_id) => Duration::ZERO,
            None => CONNECT_WITHIN,
            Some(said) if said.is_missing => ANSWER_WITHIN,
            Some(_) => Duration::ZERO,
        };
        if said.is_none() || !within.is_zero() {
            let (known, was_asked) = self.ask_tails(within).await;
            *said = Some(Said { known, is_missing: false });
            if was_asked {
                self.publishings.know_server(&publishing.server_id);
            }
        }
        let known = said.as_ref().and_then(|said| said.known.get(usize::from(shard.0).checked_sub(1)?).copied());
        known.unwrap_or(StreamSeq(0))
    }

    /// What others know is not there.
    pub(super) async fn note_missing(&self, publishing: &Publishing) {
        if let Some(said) = &mut *publishing.tails.0.lock().await {
            said.is_missing = true;
        }
    }

    /// What the others answer within a time, and whether they could be asked all the time.
    async fn ask_tails(&self, within: Duration) -> (Vec<StreamSeq>, bool) {
        let mut known = vec![StreamSeq(0); usize::from(self.options.shard_count)];
        let mut was_asked = true;
        let until = Instant::now() + within;
        while Instant::now() < until {
            let next = (Instant::now() + ANSWER_WITHIN).min(until);
            let mut hear = |bytes: &Bytes| {
                let said = std::str::from_utf8(bytes).unwrap_or_default().split(' ').map(str::parse);
                for (known, said) in known.iter_mut().zip(said) {
                    *known = (*known).max(StreamSeq(said.unwrap_or(0)));
                }
                false
            };
            let rest = next.saturating_duration_since(Instant::now());
            was_asked &= self.ask_all(TAILS, Bytes::new(), rest, &mut hear).await.is_ok();
            // The server says at once when nobody is there.
            tokio::time::sleep_until(next.into()).await;
        }
        (known, was_asked)
    }
}
