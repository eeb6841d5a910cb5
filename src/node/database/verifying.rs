//! The database thread's part in a comparison of nodes: it rests, stops at a place of the log, and lets somebody take hold of what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Database;
use crate::apply::{FoldBounds, FoldReader};
use crate::log::{ShardId, StreamSeq};
use crate::node::NodeError;
use crate::node::verify::{HOLD_MAX, Taken, VerifyAsk};

/// How far a comparison has come here.
#[derive(Default)]
pub(super) enum Verifying {
    /// There is none.
    #[default]
    No,
    /// Nothing is applied.
    Held { id: u64, until: Instant },
    /// Nothing is applied beyond these messages.
    Stopping(Stopping),
}

pub(super) struct Stopping {
    last: BTreeMap<ShardId, StreamSeq>,
    until: Instant,
    within: Duration,
    answer: oneshot::Sender<Result<Taken, String>>,
}

impl Database {
    /// Takes what a comparison asks.
    pub(super) fn asked_to_verify(&mut self, ask: VerifyAsk) -> Result<(), NodeError> {
        match ask {
            VerifyAsk::Origins(answer) => {
                let mut nodes = BTreeSet::from([self.replica.state().origin().node_id]);
                for shard in &self.shards {
                    let folded = self.replica.state().folded_all(*shard)?;
                    nodes.extend(folded.iter().map(|(origin, _)| origin.node_id));
                }
                // Whoever asked may be gone, here and below.
                let _ = answer.send(nodes);
            }
            VerifyAsk::Hold { id, answer } => {
                let is_busy = match &self.verifying {
                    Verifying::No => false,
                    Verifying::Held { until, .. } => Instant::now() < *until,
                    Verifying::Stopping(_) => true,
                };
                let held = if is_busy {
                    Err("it is taking part in another comparison".to_owned())
                } else if !self.log.open || !self.behind.is_reading() {
                    Err("it has not read the log to its end".to_owned())
                } else {
                    self.verifying = Verifying::Held { id, until: Instant::now() + HOLD_MAX };
                    Ok(())
                };
                let _ = answer.send(held);
            }
            VerifyAsk::Take { id, last, until, within, answer } => match &self.verifying {
                Verifying::Held { id: held, .. } if *held == id => {
                    self.verifying = Verifying::Stopping(Stopping { last, until, within, answer });
                }
                Verifying::No | Verifying::Held { .. } | Verifying::Stopping(_) => {
                    let _ = answer.send(Err("it is not waiting for this comparison any more".to_owned()));
                }
            },
        }
        Ok(())
    }

    /// Whether nothing may be applied now.
    pub(super) fn is_held(&mut self) -> bool {
        match &self.verifying {
            Verifying::Held { until, .. } if Instant::now() < *until => true,
            Verifying::Held { .. } => {
                self.verifying = Verifying::No;
                false
            }
            Verifying::No | Verifying::Stopping(_) => false,
        }
    }

    /// Whether applying ends somewhere.
    pub(super) fn is_stopping_to_verify(&self) -> bool {
        matches!(self.verifying, Verifying::Stopping(_))
    }

    /// The last message of a shard that may be applied now; `None`: all.
    pub(super) fn verify_last(&self, shard: ShardId) -> Option<StreamSeq> {
        match &self.verifying {
            Verifying::Stopping(stopping) => stopping.last.get(&shard).copied(),
            Verifying::No | Verifying::Held { .. } => None,
        }
    }

    /// Ends a comparison that can come to nothing here. To be called at every turn, for applying may take all the time that there is.
    pub(super) fn give_up_verifying(&mut self) {
        let Verifying::Stopping(stopping) = &self.verifying else { return };
        let mut why = None;
        let mut left = 0;
        for (shard, last) in &stopping.last {
            let applied = self.log.applied.get(shard).copied().unwrap_or_default();
            if applied > *last {
                why = Some("it was further already".to_owned());
            } else if let Some((blocked, _)) = self.blocked.get(shard).filter(|(blocked, _)| blocked.seq <= *last) {
                why = Some(format!("its shard {} stopped: {}", shard.0, blocked.cause));
            }
            left += last.0.saturating_sub(applied.0);
        }
        if why.is_none() && Instant::now() >= stopping.until {
            why = Some(match left {
                0 => "its application left it no moment to read at".to_owned(),
                _ => format!("it is behind: {left} messages were still to be applied"),
            });
        }
        if let Some(why) = why {
            self.end_verifying(Err(why));
        }
    }

    /// Lets database and state be taken hold of, if this is the place. To be called when nothing more can be folded.
    pub(super) fn take_if_there(&mut self) -> Result<(), NodeError> {
        let Verifying::Stopping(stopping) = &self.verifying else { return Ok(()) };
        let within = stopping.within;
        let is_seen = |(shard, last): (&ShardId, &StreamSeq)| self.log.seen.get(shard).is_some_and(|seen| seen >= last);
        if !stopping.last.iter().all(is_seen) {
            return Ok(());
        }
        // Under the lock, with everything captured, the database is what the state says that it is.
        if !self.begin()? {
            self.retry_lock = true;
            self.lock_wanted_since.get_or_insert_with(Instant::now);
            return Ok(());
        }
        let taken = match self.drain_under_lock() {
            Ok(false) => {
                self.replica.rollback(&self.attached.connection)?;
                return Ok(());
            }
            Ok(true) => self.take(within),
            Err(error) => Err(error),
        };
        self.replica.rollback(&self.attached.connection)?;
        let taken = taken?;
        self.end_verifying(taken);
        Ok(())
    }

    fn take(&mut self, within: Duration) -> Result<Result<Taken, String>, NodeError> {
        let bounds = FoldBounds {
            until: Instant::now() + within,
            // Writers are made to wait at this bound, and waiting could not help them while we read.
            wal_bytes_max: self.config.capture.wal_bytes_max,
        };
        // A transaction would have decided about it.
        self.replica.abandon_intent()?;
        self.replica.lay_out_base()?;
        let database = self.attached.follower.file().path();
        let reader = FoldReader::open(database, &self.directory.file("state.db"), bounds)?;
        if reader.frozen().is_inside_pieces()? {
            return Ok(Err("it stands inside of a transaction that was torn".to_owned()));
        }
        Ok(Ok(Taken { reader, applied: self.applied()?.into_iter().collect() }))
    }

    fn end_verifying(&mut self, taken: Result<Taken, String>) {
        if let Verifying::Stopping(stopping) = std::mem::take(&mut self.verifying) {
            let _ = stopping.answer.send(taken);
        }
    }
}
