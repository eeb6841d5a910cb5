//! The thread that owns the database: captures, seals, applies. Capture and apply never run at the same moment, and undo, fold and redo
//! depend on it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};

use super::config::{Durability, RunConfig};
use super::error::NodeError;
use super::inbox::Inbox;
use super::report::{Reporter, Told};
use super::state_dir::StateDirectory;
use crate::apply::{ApplyError, Arrived, Blocked, InFlight, Outcome, Replica, SealLimits};
use crate::capture::{Follower, HANDOVER_INTERVAL, Position, Started};
use crate::log::{
    Announced, CutShard, Delivery, Folded, MESSAGE_BYTES_MAX, Origin, Outgoing, Published, ShardId, StreamSeq,
    consistent_cut, decode,
};

/// A round takes waiting transactions up to this size: large enough for throughput, small enough that a quiet transaction behind a bulk
/// does not wait long.
const ROUND_BYTES_MAX: u64 = 4 << 20;
/// Messages below this size stay below any sensible server's max_payload; the server's own bound counts if it is smaller.
const MESSAGE_BYTES_WANTED: usize = 512 << 10;
/// Payload bytes that one fold takes from a shard unless a round is larger: bounds memory and the time that writers are kept out.
const FOLD_BYTES_MAX: usize = 2 << 20;
/// How long the write lock is tried for at a time; between the tries the pin is renewed.
const LOCK_TRIES_WITHIN: Duration = Duration::from_millis(5);
/// How often it is tried meanwhile: about as long as a commit takes.
const LOCK_TRY_INTERVAL: Duration = Duration::from_micros(100);
/// When a shard that stopped is tried again, if nothing in the schema changed before.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);
/// How long a graceful stop waits for the server to take what was captured.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How a node is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not at all.
    No,
    /// Publish what was captured, then close.
    Graceful,
    /// Close.
    Now,
}

/// What is known once the log can be used.
#[derive(Debug, Clone)]
pub(super) struct LogReady {
    /// The last message of each shard then.
    pub(super) last: BTreeMap<ShardId, StreamSeq>,
    pub(super) message_bytes_max: usize,
}

/// The database thread's ends of everything.
pub(super) struct Links {
    pub(super) deliveries: mpsc::Receiver<Delivery<Announced>>,
    pub(super) published: mpsc::Receiver<Published>,
    pub(super) outgoing: mpsc::Sender<Outgoing>,
    pub(super) ready: mpsc::Receiver<LogReady>,
    pub(super) connected: watch::Receiver<bool>,
    pub(super) wake: Arc<Notify>,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) handle: Handle,
}

/// Something that came while the thread waited.
enum Event {
    Delivery(Delivery<Announced>),
    Published(Published),
    Ready(LogReady),
    /// The database's log was written.
    Woken,
    Other,
}

/// The log as far as this thread knows it.
#[derive(Default)]
struct LogState {
    /// Last message of each shard when the log was first reached; own messages up to there count as published once they are seen.
    start: Option<LogReady>,
    /// Last message seen of each shard.
    seen: BTreeMap<ShardId, StreamSeq>,
    /// Everything up to the start is seen: publishing may begin.
    open: bool,
}

/// Everything that the database thread owns.
pub(super) struct Database {
    pub(super) config: RunConfig,
    pub(super) directory: StateDirectory,
    pub(super) follower: Follower,
    pub(super) connection: Connection,
    pub(super) own_frames: Arc<AtomicU32>,
    pub(super) replica: Replica,
    pub(super) inbox: Inbox,
    pub(super) blocked: BTreeMap<ShardId, (Blocked, Instant)>,
    pub(super) shards: Vec<ShardId>,
    pub(super) reporter: Reporter,
    links: Links,
    log: LogState,
    to_send: VecDeque<InFlight>,
    round: Option<RoundUnderWay>,
    retry_lock: bool,
    stop_at: Option<Instant>,
    stored: Option<Position>,
    pin_renewed_at: Instant,
}

/// The round that is being sent.
struct RoundUnderWay {
    round_no: u64,
    end_sent: bool,
}

impl Database {
    #[allow(clippy::too_many_arguments, reason = "each is made by its own layer before the thread begins")]
    pub(super) fn new(
        config: RunConfig,
        directory: StateDirectory,
        follower: Follower,
        connection: Connection,
        own_frames: Arc<AtomicU32>,
        replica: Replica,
        shards: Vec<ShardId>,
        links: Links,
    ) -> Database {
        let reporter = Reporter::new(replica.state().origin().node_id);
        Database {
            inbox: Inbox::new(shards.iter().copied()),
            config,
            directory,
            follower,
            connection,
            own_frames,
            replica,
            blocked: BTreeMap::new(),
            shards,
            reporter,
            links,
            log: LogState::default(),
            to_send: VecDeque::new(),
            round: None,
            retry_lock: false,
            stop_at: None,
            stored: None,
            pin_renewed_at: Instant::now(),
        }
    }

    /// Works until told to stop, then lets go of the database.
    pub(super) fn run(mut self) -> Result<(), NodeError> {
        let worked = self.work();
        let error = worked.as_ref().err().map(ToString::to_string);
        self.reporter.phase = "stopped";
        if let Some(error) = error {
            self.reporter.trouble(error);
        }
        self.report_now();
        let Database { follower, connection, .. } = self;
        // Ours goes first: the last connection to close tidies up.
        drop(connection);
        match (worked, follower.detach()) {
            (Ok(()), detached) => Ok(detached?),
            (worked, _) => worked,
        }
    }

    fn work(&mut self) -> Result<(), NodeError> {
        loop {
            let found_more = self.capture()?;
            self.take_events()?;
            let applied = self.apply()?;
            self.publish()?;
            self.report_when_due()?;
            if self.is_done()? {
                self.store_position()?;
                return Ok(());
            }
            if !found_more && !applied {
                self.wait()?;
            }
        }
    }

    /// Goes on where the node stopped: finds the position in the log, or what changed since by comparing with the shadow.
    fn catch_up(&mut self) -> Result<(), NodeError> {
        let mut told = Told::default();
        let mut sink = self.replica.local_sink();
        match self.follower.catch_up(&mut sink, &mut |step| told.tell(step))? {
            Started::Repaired { pages, changes: 0 } => tracing::debug!("{pages} pages changed meanwhile, and no row"),
            Started::Repaired { pages, changes } => {
                tracing::info!(
                    "{changes} changes on {pages} pages were made while nobody followed; they are published now"
                );
            }
            Started::Already | Started::Resumed => {}
        }
        Ok(())
    }

    /// The first look decides what became of an intent that a crash left: if it finds no transaction, it never happened.
    pub(super) fn settle_intent(&mut self) -> Result<(), NodeError> {
        self.catch_up()?;
        while self.capture()? {}
        if let Some(recovered) = self.replica.abandon_intent()? {
            tracing::info!("an unfinished application of messages was taken back ({recovered:?})");
        }
        Ok(())
    }

    /// The last message applied in each shard.
    pub(super) fn applied(&self) -> Result<Vec<(ShardId, StreamSeq)>, NodeError> {
        let mut applied = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            applied.push((*shard, self.replica.state().position(*shard)?));
        }
        Ok(applied)
    }

    /// Whether more may be waiting.
    fn capture(&mut self) -> Result<bool, NodeError> {
        let before = self.follower.next_tx();
        let mut sink = self.replica.local_sink();
        let polled = self.follower.poll(&mut sink)?;
        // It reads what is committed while it bounds the log, so the count is not the look's alone.
        self.follower.maintain(&mut sink)?;
        self.reporter.transactions_captured += self.follower.next_tx().saturating_sub(before);
        self.pin_renewed_at = Instant::now();
        Ok(polled.more)
    }

    fn store_position(&mut self) -> Result<(), NodeError> {
        let position = self.follower.position();
        if self.stored != Some(position) && !self.replica.is_recovering() {
            self.replica.store_capture_position(&super::start::position_bytes(&position, self.follower.next_tx()))?;
            self.stored = Some(position);
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------------------------ events

    fn take_events(&mut self) -> Result<(), NodeError> {
        while let Ok(ready) = self.links.ready.try_recv() {
            self.handle(Event::Ready(ready))?;
        }
        while let Ok(published) = self.links.published.try_recv() {
            self.handle(Event::Published(published))?;
        }
        while let Ok(delivery) = self.links.deliveries.try_recv() {
            self.handle(Event::Delivery(delivery))?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), NodeError> {
        match event {
            Event::Other => {}
            Event::Woken => self.follower.await_commit()?,
            Event::Ready(ready) => {
                for shard in &self.shards {
                    let applied = self.replica.state().position(*shard)?;
                    self.log.seen.entry(*shard).or_insert(applied);
                }
                self.log.start = Some(ready);
                self.open_when_seen()?;
            }
            Event::Published(Published::Message { shard, batch_no, .. }) => {
                self.replica.acknowledged(shard, batch_no)?;
            }
            Event::Published(Published::Round { .. }) => self.round = None,
            Event::Delivery(Delivery::Failed { error, .. }) => return Err(error.into()),
            Event::Delivery(Delivery::Arrived(message)) => {
                let shard = message.shard;
                self.log.seen.insert(shard, message.seq);
                if message.header.origin == self.replica.state().origin() {
                    // Seen on the log is acknowledged, whatever became of the server's answer.
                    let batch_no = message.header.batch_no;
                    self.replica.acknowledged(shard, batch_no)?;
                    // One that a killed node had sent can arrive before it is sent again.
                    self.to_send.retain(|waiting| (waiting.shard, waiting.batch_no) != (shard, batch_no));
                }
                let directory = &self.config.state_dir;
                self.inbox.push(directory, message).map_err(|source| NodeError::StateDirectory {
                    path: directory.clone(),
                    what: "cannot keep what has arrived",
                    source,
                })?;
                self.open_when_seen()?;
            }
        }
        Ok(())
    }

    /// Publishing begins when the log was read up to the end that it had at the start.
    fn open_when_seen(&mut self) -> Result<(), NodeError> {
        let Some(start) = self.log.start.as_ref().filter(|_| !self.log.open) else { return Ok(()) };
        let seen = |shard: &ShardId| self.log.seen.get(shard).copied().unwrap_or_default();
        if start.last.iter().all(|(shard, last)| seen(shard) >= *last) {
            self.log.open = true;
            self.reporter.phase = "running";
            tracing::info!(
                "ready: node {} replicates {} over {} shards",
                self.replica.state().origin().node_id,
                self.follower.file().path().display(),
                self.shards.len()
            );
            self.resume_sending()?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), NodeError> {
        let idle = self.config.capture.poll_interval.max(HANDOVER_INTERVAL);
        let timeout = match (self.retry_lock, self.follower.is_resting()) {
            (true, _) => Duration::from_millis(1),
            (false, true) => idle,
            (false, false) => HANDOVER_INTERVAL,
        };
        let links = &mut self.links;
        let handle = links.handle.clone();
        let event = handle.block_on(async {
            tokio::select! {
                Some(delivery) = links.deliveries.recv() => Event::Delivery(delivery),
                Some(published) = links.published.recv() => Event::Published(published),
                Some(ready) = links.ready.recv() => Event::Ready(ready),
                () = links.wake.notified() => Event::Woken,
                Ok(()) = links.stop.changed() => Event::Other,
                () = tokio::time::sleep(timeout) => Event::Other,
            }
        });
        self.handle(event)
    }

    /// Whether it is time to end: everything captured is published, or nobody is there to take it, or waiting was long enough.
    fn is_done(&mut self) -> Result<bool, NodeError> {
        let stop = *self.links.stop.borrow();
        match stop {
            Stop::No => return Ok(false),
            Stop::Now => return Ok(true),
            Stop::Graceful => {}
        }
        self.reporter.phase = "stopping";
        let stop_at = *self.stop_at.get_or_insert_with(|| Instant::now() + STOP_WITHIN);
        let connected = *self.links.connected.borrow();
        if !self.config.publish || !self.log.open || !connected || Instant::now() >= stop_at {
            return Ok(true);
        }
        Ok(self.round.is_none() && self.replica.state().backlog()?.transactions_unsealed == 0)
    }

    // -------------------------------------------------------------------------------------------------------------- publishing

    /// What a node that died had sealed and did not find on the log is sent again.
    fn resume_sending(&mut self) -> Result<(), NodeError> {
        self.to_send = self.replica.in_flight()?.into();
        if !self.to_send.is_empty() {
            self.round = Some(RoundUnderWay { round_no: 0, end_sent: false });
        }
        Ok(())
    }

    fn publish(&mut self) -> Result<(), NodeError> {
        if !self.config.publish || !self.log.open {
            return Ok(());
        }
        if self.round.is_none() {
            if self.config.capture.durability == Durability::Strict {
                self.follower.make_durable()?;
            }
            let wanted = self.log.start.as_ref().map_or(MESSAGE_BYTES_WANTED, |start| start.message_bytes_max);
            let limits =
                SealLimits { round_bytes_max: ROUND_BYTES_MAX, message_bytes_max: wanted.min(MESSAGE_BYTES_WANTED) };
            self.to_send = self.replica.seal(limits)?.into();
            if self.to_send.is_empty() {
                return Ok(());
            }
            self.round = Some(RoundUnderWay { round_no: 0, end_sent: false });
        }
        let Some(round) = &mut self.round else { return Ok(()) };
        // A full channel is emptied by acknowledgements, which wake this thread.
        while let Some(next) = self.to_send.front() {
            let Ok(permit) = self.links.outgoing.try_reserve() else { return Ok(()) };
            let message = self.replica.sealed_message(*next, self.config.log.compress)?;
            round.round_no = message.header.round_no;
            permit.send(Outgoing::Message(message));
            self.to_send.pop_front();
        }
        if !round.end_sent
            && let Ok(permit) = self.links.outgoing.try_reserve()
        {
            permit.send(Outgoing::RoundEnd { round_no: round.round_no });
            round.end_sent = true;
        }
        Ok(())
    }

    // ---------------------------------------------------------------------------------------------------------------- applying

    /// Applies what has arrived, as far as whole rounds go. Whether anything was applied.
    fn apply(&mut self) -> Result<bool, NodeError> {
        self.retry_lock = false;
        if self.inbox.is_empty() {
            self.inbox.stuck_since = None;
            return Ok(false);
        }
        let now = Instant::now();
        self.blocked.retain(|_, (_, retry_at)| *retry_at > now);
        let counts = self.cut()?;
        if counts.values().all(|count| *count == 0) {
            self.inbox.stuck_since.get_or_insert(now);
            return Ok(false);
        }
        if !self.begin()? {
            self.retry_lock = true;
            return Ok(false);
        }
        let folded = self.fold(&counts);
        match folded {
            Ok(true) => {
                self.inbox.stuck_since = None;
                Ok(true)
            }
            Ok(false) => {
                self.replica.rollback(&self.connection)?;
                Ok(false)
            }
            Err(error) => {
                self.replica.rollback(&self.connection)?;
                Err(error)
            }
        }
    }

    /// How many messages of each shard to fold now.
    fn cut(&mut self) -> Result<BTreeMap<ShardId, usize>, NodeError> {
        self.inbox.make_contiguous();
        let mut folded: Vec<HashMap<Origin, Folded>> = Vec::with_capacity(self.shards.len());
        for shard in &self.shards {
            folded.push(self.replica.state().folded_all(*shard)?.into_iter().collect());
        }
        let end = |shard: &ShardId| self.blocked.get(shard).map(|(blocked, _)| blocked.seq);
        let mut bytes = FOLD_BYTES_MAX;
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
            if counts.iter().any(|count| *count > 0) {
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
        // An origin that died between two messages of a round must not stop the others for ever. A shard that stopped here is no such case.
        let waited = self.inbox.stuck_since.map_or(Duration::ZERO, |since| since.elapsed());
        if self.blocked.is_empty() && waited >= self.config.apply.cut_wait {
            tracing::warn!("a transaction is still incomplete after {waited:?}: applying what is there of it");
            self.reporter.cuts_broken += 1;
            let all = self.shards.iter().map(|shard| (*shard, self.inbox.count_within(*shard, None, FOLD_BYTES_MAX)));
            return Ok(all.collect());
        }
        Ok(BTreeMap::new())
    }

    /// Takes the write lock. `false` when others keep it: the pin must be renewed before the next try.
    fn begin(&mut self) -> Result<bool, NodeError> {
        let began = Instant::now();
        loop {
            match self.replica.begin(&self.connection) {
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

    /// Folds the messages under the write lock and commits. `false` when a shard stopped: then nothing was done but to note it.
    fn fold(&mut self, counts: &BTreeMap<ShardId, usize>) -> Result<bool, NodeError> {
        let captured = self.follower.drain(&mut self.replica.local_sink())?;
        self.reporter.transactions_captured += captured.transactions;
        let mut arrived = Vec::new();
        for (shard, count) in counts {
            for index in 0..*count {
                let found = self.inbox.read(*shard, index).map_err(|source| NodeError::StateDirectory {
                    path: self.config.state_dir.clone(),
                    what: "cannot read back what has arrived",
                    source,
                })?;
                let Some((seq, payload)) = found else { return Err(NodeError::Ended("inbox")) };
                let batch =
                    decode(&payload, MESSAGE_BYTES_MAX).map_err(|source| crate::log::LogError::Undecodable {
                        stream: format!("{}-{}-{}", self.config.log.stream_prefix, self.shards.len(), shard.0),
                        seq,
                        source,
                    })?;
                arrived.push(Arrived { shard: *shard, seq, batch });
            }
        }
        if !self.config.apply_changes {
            let own = self.replica.state().origin();
            arrived.retain(|message| message.batch.header.origin == own);
        }
        let catalogue = Arc::clone(self.follower.catalogue());
        let tables = |name: &str| catalogue.table(name).cloned();
        let report = self.replica.fold(&self.connection, &tables, &arrived)?;
        if !report.blocked.is_empty() {
            for blocked in report.blocked {
                let told = self.blocked.get(&blocked.shard).is_some_and(|(known, _)| known.seq == blocked.seq);
                if !told {
                    let text =
                        format!("shard {} stops at message {}: {}", blocked.shard.0, blocked.seq.0, blocked.cause);
                    self.reporter.blocked(blocked.shard, &text, &blocked.cause.remedy());
                }
                self.blocked.insert(blocked.shard, (blocked, Instant::now() + BLOCKED_RETRY));
            }
            return Ok(false);
        }
        if self.replica.commit(&self.connection)? == Outcome::Written {
            self.follower.take_own(self.own_frames.load(Ordering::SeqCst))?;
            let position = self.follower.position();
            self.replica.finish(Some(&super::start::position_bytes(&position, self.follower.next_tx())))?;
            self.stored = Some(position);
        }
        for (shard, count) in counts {
            self.inbox.pop(*shard, *count);
            self.reporter.applied(*shard);
        }
        self.reporter.count(&report.counts);
        Ok(true)
    }

    // --------------------------------------------------------------------------------------------------------------- reporting

    fn report_when_due(&mut self) -> Result<(), NodeError> {
        if !self.reporter.is_due() {
            return Ok(());
        }
        self.store_position()?;
        let backlog = self.report_now();
        let bytes_max = self.config.log.outbox_bytes_max;
        if backlog > bytes_max {
            return Err(NodeError::OutboxFull { bytes: backlog, bytes_max });
        }
        Ok(())
    }

    /// Writes the status file. Bytes that wait in the outbox.
    fn report_now(&mut self) -> u64 {
        let began = Instant::now();
        let backlog = self.replica.state().backlog().unwrap_or_default();
        let mut status = self.reporter.status();
        status.connected = *self.links.connected.borrow();
        status.position = {
            let position = self.follower.position();
            format!("{}:{}", position.salts, position.frame)
        };
        status.wal_bytes = self.follower.wal_bytes();
        status.wal_frames = self.follower.wal_frames();
        let renewed = self.pin_renewed_at.elapsed().as_millis();
        status.pin_age_ms = if self.follower.is_resting() { 0 } else { u64::try_from(renewed).unwrap_or(u64::MAX) };
        status.pinned_by_others = self.follower.is_pinned_by_others();
        status.outbox_units = backlog.units;
        status.outbox_bytes = backlog.bytes;
        status.inbox_messages = self.inbox.message_count() as u64;
        for shard in &self.shards {
            let of_shard = status.shards.entry(shard.0).or_default();
            of_shard.applied = self.replica.state().position(*shard).unwrap_or_default().0;
            of_shard.last = self.log.seen.get(shard).copied().unwrap_or_default().0.max(of_shard.applied);
        }
        self.reporter.write(&self.directory, &status, began);
        backlog.bytes
    }
}
