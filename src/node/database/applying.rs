//! What has arrived is folded into the database, under its write lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Database;
use super::fairness::FOLD_BYTES_MAX;
use super::waiting::Waiting;
use crate::apply::{ApplyError, FoldedOf, Outcome};
use crate::capture::{DRAIN_PATIENCE_MAX, DRAIN_WITHIN};
use crate::log::{CutShard, MESSAGE_BYTES_MAX, ShardId, StreamSeq, consistent_cut};
use crate::node::NodeError;
use crate::node::start::{PASSED_OVER, position_bytes};

/// The same when own messages come first.
const FOLD_OWN_BYTES_MAX: usize = 128 << 10;
/// How many own messages may wait together: what they have in common is a good part of folding them.
const OWN_MESSAGES_MAX: usize = 64;
/// How long own messages may wait: longer than what other nodes make of them, which is what an application would notice.
pub(super) const OWN_WAIT: Duration = Duration::from_millis(5);
/// How long the write lock is tried for at a time; between the tries the pin is renewed.
const LOCK_TRIES_WITHIN: Duration = Duration::from_millis(5);
/// How often it is tried meanwhile: about as long as a commit takes.
const LOCK_TRY_INTERVAL: Duration = Duration::from_micros(100);
/// Messages of a shard that are together larger are folded without notifications: each frame that is written makes two, and taking them in takes
/// a sixth of the time.
const FOLD_QUIETLY_BYTES: usize = 64 << 10;
/// When a shard that stopped is tried again, if nothing in the schema changed before.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);

/// How long an application may keep the write lock until it is said. (SQLite's own shell waits for five seconds where it is asked to wait.)
const TELL_LOCKED_AFTER: Duration = Duration::from_secs(5);

/// An application keeps the write lock while messages wait for it.
#[derive(Debug, Default)]
pub(super) struct Locked {
    since: Option<Instant>,
    is_told: bool,
}

impl Database {
    /// Applies what has arrived, as far as whole rounds go. Whether anything was applied.
    pub(super) fn apply(&mut self) -> Result<bool, NodeError> {
        if self.is_held() {
            return Ok(false);
        }
        self.give_up_verifying();
        if self.inbox.is_empty() {
            self.inbox.stuck_since = None;
            self.unlocked();
            self.take_if_there()?;
            return Ok(false);
        }
        let now = Instant::now();
        if self.may_own_wait(now) {
            return Ok(false);
        }
        self.blocked.retain(|_, (_, retry_at)| *retry_at > now);
        let counts = self.cut()?;
        if counts.values().all(|count| *count == 0) {
            if self.is_stopping_to_verify() {
                self.take_if_there()?;
            } else {
                self.inbox.stuck_since.get_or_insert(now);
            }
            return Ok(false);
        }
        if self.fold_own(&counts)? {
            return Ok(true);
        }
        if self.fairness.is_resting() {
            self.retry_lock = true;
            return Ok(false);
        }
        if !self.begin()? {
            self.retry_lock = true;
            self.lock_wanted_since.get_or_insert_with(Instant::now);
            self.locked_out();
            return Ok(false);
        }
        self.unlocked();
        let began = Instant::now();
        let captured = self.reporter.transactions_captured;
        let bytes = counts.iter().map(|(shard, count)| self.inbox.bytes_of(*shard, *count)).max().unwrap_or_default();
        if bytes > FOLD_QUIETLY_BYTES {
            self.attached.waker.pause();
        }
        let folded = self.fold(&counts);
        self.fairness.held(began.elapsed(), bytes, self.reporter.transactions_captured != captured);
        match folded {
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

    /// The write lock was not to be had. Says so once, when that is no moment any more.
    fn locked_out(&mut self) {
        let since = *self.locked.since.get_or_insert_with(Instant::now);
        if !self.locked.is_told && since.elapsed() >= TELL_LOCKED_AFTER {
            self.locked.is_told = true;
            let text = format!(
                "an application has kept the write lock for {} s: what has arrived is applied when it ends its transaction (messages that wait: {})",
                since.elapsed().as_secs(),
                self.inbox.message_count()
            );
            tracing::warn!("{text}");
            self.reporter.trouble(text);
        }
    }

    /// It was to be had, or nothing waits for it.
    fn unlocked(&mut self) {
        let Locked { since, is_told } = std::mem::take(&mut self.locked);
        if let (Some(since), true) = (since, is_told) {
            tracing::info!("the write lock is free again, after {} s", since.elapsed().as_secs());
            self.reporter.trouble(String::new());
        }
    }

    /// Whether what has arrived is this node's own, and little, and not for long: nobody waits for it, and others may come that somebody
    /// waits for.
    fn may_own_wait(&mut self, now: Instant) -> bool {
        let own = self.replica.state().origin();
        let is_little = self.inbox.message_count() <= OWN_MESSAGES_MAX;
        if !is_little || !self.inbox.is_all_of(own) || self.is_stopping_to_verify() || self.is_ahead_of_itself() {
            self.own_since = None;
            return false;
        }
        let since = *self.own_since.get_or_insert(now);
        let may_wait = now.duration_since(since) < self.own_wait;
        if !may_wait {
            self.own_since = None;
        }
        may_wait
    }

    /// How many messages of each shard to fold now.
    fn cut(&mut self) -> Result<BTreeMap<ShardId, usize>, NodeError> {
        self.inbox.make_contiguous();
        let mut folded: Vec<FoldedOf> = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            folded.push(self.replica.state().folded_of(*shard)?);
        }
        let end = |shard: &ShardId| {
            let verified = self.verify_last(*shard).map(|last| StreamSeq(last.0 + 1));
            let blocked = self.blocked.get(shard).map(|(blocked, _)| blocked.seq);
            verified.into_iter().chain(blocked).min()
        };
        // What the database shows from before a crash must not be taken apart, unless a shard stands in the way.
        let mut ahead_to = Vec::new();
        if self.blocked.is_empty() {
            for (shard, seq) in self.replica.state().ahead_to()?.iter() {
                if self.replica.state().position(*shard)? < *seq {
                    ahead_to.push((*shard, *seq));
                }
            }
        }
        let own = self.replica.state().origin();
        let is_own = |shard: &ShardId| self.inbox.headers(*shard, 1).iter().take(1).all(|header| header.origin == own);
        // Own messages keep nobody from writing, and come while there is much to capture: a little at a time.
        let mut bytes = if self.shards.iter().all(is_own) { FOLD_OWN_BYTES_MAX } else { self.fairness.fold_bytes() };
        loop {
            let limits: Vec<usize> =
                self.shards.iter().map(|shard| self.inbox.count_within(*shard, end(shard), bytes)).collect();
            let shards: Vec<CutShard<'_>> = self
                .shards
                .iter()
                .zip(&folded)
                .zip(&limits)
                .map(|((shard, folded), limit)| CutShard {
                    shard: *shard,
                    folded,
                    arrived: self.inbox.headers(*shard, *limit),
                })
                .collect();
            let counts = consistent_cut(&shards);
            let whole = self.inbox.message_count();
            let reaches = |(shard, seq): &(ShardId, StreamSeq)| {
                let count = self.shards.iter().zip(&counts).find(|(other, _)| *other == shard).map(|(_, count)| *count);
                count.is_none_or(|count| self.inbox.last_of(*shard, count).is_some_and(|last| last >= *seq))
            };
            if counts.iter().any(|count| *count > 0) && ahead_to.iter().all(reaches) {
                return Ok(self.shards.iter().copied().zip(counts).collect());
            }
            if limits.iter().sum::<usize>() >= whole || bytes >= usize::MAX / 2 {
                break;
            }
            if !self.blocked.is_empty() && bytes > MESSAGE_BYTES_MAX * 64 {
                break;
            }
            bytes = bytes.saturating_mul(4);
        }
        if self.is_stopping_to_verify() {
            return Ok(BTreeMap::new());
        }
        if self.has_waited_enough()? {
            self.reporter.cuts_broken += 1;
            let all = self.shards.iter().map(|shard| (*shard, self.inbox.count_within(*shard, None, FOLD_BYTES_MAX)));
            return Ok(all.collect());
        }
        Ok(BTreeMap::new())
    }

    /// Takes the write lock. `false` when others keep it: the pin must be renewed before the next try.
    pub(super) fn begin(&mut self) -> Result<bool, NodeError> {
        if self.replica.has_much_to_lay_out() {
            self.replica.lay_out_base()?;
        }
        let began = Instant::now();
        loop {
            match self.replica.begin(&self.attached.connection) {
                Ok(()) => return Ok(true),
                Err(ApplyError::Database { source, .. })
                    if matches!(
                        source.sqlite_error_code(),
                        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
                    ) => {}
                Err(error) => return Err(error.into()),
            }
            if began.elapsed() >= LOCK_TRIES_WITHIN {
                return Ok(false);
            }
            std::thread::sleep(LOCK_TRY_INTERVAL);
        }
    }

    /// Folds the messages if they are this node's own: no row changes by them, and nobody needs to be kept from writing.
    fn fold_own(&mut self, counts: &BTreeMap<ShardId, usize>) -> Result<bool, NodeError> {
        let own = self.replica.state().origin();
        let is_own = |(shard, count): (&ShardId, &usize)| {
            self.inbox.headers(*shard, *count).iter().take(*count).all(|header| header.origin == own)
        };
        if self.config.apply_changes && !counts.iter().all(is_own) {
            return Ok(false);
        }
        if !counts.iter().all(is_own) {
            self.replica.state().setting_or(PASSED_OVER, b"")?;
        }
        let arrived = Waiting::new(&self.inbox, &self.config, counts, own);
        let catalogue = Arc::clone(self.attached.follower.catalogue());
        let tables = |name: &str| catalogue.written_table(name).cloned();
        let folded = self.replica.fold_own(&self.attached.connection, &tables, &arrived);
        let Some(folded) = folded.map_err(|error| arrived.explain(error))? else {
            return Ok(false);
        };
        self.taken(counts);
        self.reporter.count(&folded);
        Ok(true)
    }

    /// Commits what was folded under the write lock. The next transaction of the log is ours and is not captured. When the lock was given
    /// back.
    pub(super) fn commit_folded(&mut self) -> Result<Instant, NodeError> {
        self.attached.own_frames.store(0, Ordering::SeqCst);
        let outcome = self.replica.commit(&self.attached.connection)?;
        let committed = Instant::now();
        if outcome == Outcome::Written {
            // A table that came and went within one application leaves nothing to be written.
            let frames = self.attached.own_frames.load(Ordering::SeqCst);
            if frames > 0 {
                self.attached.follower.take_own(frames)?;
            }
            let position = self.attached.follower.position();
            self.replica.finish(Some(&position_bytes(&position, self.attached.follower.next_tx())))?;
            self.stored = Some(position);
        }
        Ok(committed)
    }

    /// The messages are folded.
    fn taken(&mut self, counts: &BTreeMap<ShardId, usize>) {
        self.inbox.stuck_since = None;
        self.is_complete_again();
        for (shard, count) in counts {
            if let Some(last) = self.inbox.pop(*shard, *count) {
                self.log.applied.insert(*shard, last);
                self.reporter.applied(*shard, last);
            }
        }
    }

    /// Captures what was committed before the write lock was ours. `false` when that takes longer than writers may wait: the lock must be given back.
    pub(super) fn drain_under_lock(&mut self) -> Result<bool, NodeError> {
        // A second per step: whoever writes without a pause gives way a little more each time.
        let patience =
            self.lock_wanted_since.get_or_insert_with(Instant::now).elapsed().as_secs().min(DRAIN_PATIENCE_MAX.into());
        let insist =
            u32::try_from(patience).ok().filter(|patience| *patience > 0).map(|patience| DRAIN_WITHIN * patience);
        let mut sink = self.replica.local_sink_grouped();
        let drained = self.attached.follower.drain_briefly(&mut sink, insist);
        sink.store()?;
        drop(sink);
        let Some(captured) = drained? else {
            self.retry_lock = true;
            return Ok(false);
        };
        self.reporter.transactions_captured += captured.transactions;
        if insist.is_none() && self.replica.has_much_to_lay_out() {
            self.retry_lock = true;
            return Ok(false);
        }
        self.lock_wanted_since = None;
        Ok(true)
    }

    /// Folds the messages under the write lock and commits. `false` when too much waits to be captured first, or a shard stopped: then
    /// nothing was done but to note it.
    fn fold(&mut self, counts: &BTreeMap<ShardId, usize>) -> Result<bool, NodeError> {
        if !self.drain_under_lock()? {
            return Ok(false);
        }
        let arrived = Waiting::new(&self.inbox, &self.config, counts, self.replica.state().origin());
        let catalogue = Arc::clone(self.attached.follower.catalogue());
        self.attached.keep_indexes(&mut self.replica)?;
        let tables = |name: &str| catalogue.written_table(name).cloned();
        let report = self.replica.fold(&self.attached.connection, &tables, &arrived);
        let report = report.map_err(|error| arrived.explain(error))?;
        if !report.blocked.is_empty() {
            for blocked in report.blocked {
                let text = format!("shard {} stops at message {}: {}", blocked.shard.0, blocked.seq.0, blocked.cause);
                self.reporter.blocked(blocked.shard, blocked.seq, &text, &blocked.cause.remedy());
                self.blocked.insert(blocked.shard, (blocked, Instant::now() + BLOCKED_RETRY));
            }
            return Ok(false);
        }
        self.commit_folded()?;
        self.taken(counts);
        self.reporter.count(&report.counts);
        Ok(true)
    }
}
