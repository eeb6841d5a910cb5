//! Notices that the server at the other end of a sound connection can do nothing for us, as one that was cut off from the rest of its
//! cluster, and goes to another one.
//!
//! Nothing else would tell: it takes what is sent, answers pings and keeps consumers alive, and has no quorum to write or read with.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::{ReconnectToServer, Server};

use super::super::contract::Log;
use super::super::message::ShardId;
use super::JetStreamLog;

/// How long nothing may be answered: longer than a cluster takes to elect its leaders.
const LEAVE_AFTER: Duration = Duration::from_secs(10);

/// The longest wait when leaving has not helped: then the whole cluster is in trouble, and going round presses it for nothing.
const LEAVE_CAP: Duration = Duration::from_secs(60);

/// How often a stream is asked for. Nodes that only read would not notice otherwise.
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// What is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To append a message.
    Append,
    /// What a stream holds.
    Look,
}

#[derive(Debug, Default, Clone, Copy)]
struct Silence {
    append_since: Option<Instant>,
    look_since: Option<Instant>,
    left_count: u32,
}

impl Silence {
    fn of(&mut self, asked: Asked) -> &mut Option<Instant> {
        match asked {
            Asked::Append => &mut self.append_since,
            Asked::Look => &mut self.look_since,
        }
    }
}

/// Whether the server answers what is asked of its streams.
#[derive(Debug, Default)]
pub(super) struct Service {
    silence: Mutex<Silence>,
    leaving: AtomicBool,
    turn: AtomicUsize,
}

impl Service {
    fn with<T>(&self, then: impl FnOnce(&mut Silence) -> T) -> T {
        // What is kept here is whole after every step.
        then(&mut self.silence.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// A question that was asked at some time has got its answer.
    pub(super) fn answered(&self, asked: Asked) {
        self.with(|silence| {
            *silence.of(asked) = None;
            if asked == Asked::Append || silence.append_since.is_none() {
                silence.left_count = 0;
            }
        });
    }

    /// A question that was asked then has no answer, or that of a server without a leader.
    pub(super) fn unanswered(&self, asked: Asked, at: Instant) {
        self.with(|silence| {
            silence.of(asked).get_or_insert(at);
        });
    }

    /// Whether all that was asked has got its answer.
    fn is_good(&self) -> bool {
        self.with(|silence| silence.append_since.is_none() && silence.look_since.is_none())
    }

    /// Whether it is time to leave the server. Counts from now on again.
    fn is_time_to_leave(&self, now: Instant) -> bool {
        self.with(|silence| {
            let wait = LEAVE_AFTER.saturating_mul(1 << silence.left_count.min(8)).min(LEAVE_CAP);
            let is_due =
                |since: Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) >= wait);
            if !is_due(silence.append_since) && !is_due(silence.look_since) {
                return false;
            }
            *silence = Silence { left_count: silence.left_count.saturating_add(1), ..Silence::default() };
            true
        })
    }

    /// The server to go to, for a connection that is made anew; `None` where any will do.
    pub(super) fn choose(&self, servers: &[Server]) -> Option<ReconnectToServer> {
        if !self.leaving.swap(false, Ordering::SeqCst) {
            return None;
        }
        // Where we never were is not where we are. After that, one after another.
        let fresh = servers.iter().find(|server| !server.did_connect && server.failed_attempts == 0);
        let next = || {
            let turn = self.turn.fetch_add(1, Ordering::SeqCst);
            servers.get(turn.checked_rem(servers.len())?)
        };
        let server = fresh.or_else(next)?;
        Some(ReconnectToServer { addr: server.addr.clone(), delay: Some(Duration::ZERO) })
    }
}

impl JetStreamLog {
    /// Whether the server answers what is asked of the log. One that was cut off from the others looks well until something is written.
    pub fn is_served(&self) -> bool {
        self.link.borrow().connected && self.service.is_good()
    }

    /// Leaves servers that do not serve, for as long as this runs. Where only one is known there is nothing to do.
    pub async fn stay_served(&self) {
        let mut shard = 0;
        loop {
            tokio::time::sleep(PROBE_INTERVAL).await;
            let client = self.context.client();
            if !self.link.borrow().connected || client.server_pool().await.is_ok_and(|servers| servers.len() < 2) {
                continue;
            }
            shard = shard % self.options.shard_count + 1;
            // What comes of it is noted on the way.
            let _ = self.bounds(ShardId(shard)).await;
            if self.service.is_time_to_leave(Instant::now()) {
                tracing::warn!("the NATS server answers nothing about the log: trying another one");
                self.service.leaving.store(true, Ordering::SeqCst);
                // Fails only when the client is gone.
                let _ = client.force_reconnect().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_left_and_each_time_later() {
        let service = Service::default();
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        service.unanswered(Asked::Append, at(0));
        service.unanswered(Asked::Append, at(9));
        assert!(!service.is_time_to_leave(at(9)) && !service.is_good());
        // That streams can be looked at does not help who cannot write.
        service.answered(Asked::Look);
        assert!(service.is_time_to_leave(at(10)) && !service.is_time_to_leave(at(11)));
        service.unanswered(Asked::Look, at(12));
        assert!(!service.is_time_to_leave(at(31)) && service.is_time_to_leave(at(32)));
        service.unanswered(Asked::Look, at(33));
        service.answered(Asked::Append);
        assert!(service.is_time_to_leave(at(43)), "an answer ends the patience");
        service.unanswered(Asked::Append, at(44));
        service.answered(Asked::Append);
        assert!(!service.is_time_to_leave(at(200)) && service.is_good());
    }
}
