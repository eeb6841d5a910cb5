//! The thread that owns the database: captures, seals, applies. Capture and apply never run at the same moment, and undo, fold and redo
//! depend on it.

mod applying;
mod catching_up;
mod events;
mod fairness;
mod incomplete;
mod outbox;
mod publishing;
mod reporting;
mod successor;
mod suspects;
mod unpublished;
mod verifying;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};

use super::attached::Attached;
use super::boot::DurableNote;
use super::config::RunConfig;
use super::error::NodeError;
use super::inbox::Inbox;
use super::patience::{patiently, refuse_stopped};
use super::place::Seen;
use super::report::{Reporter, Told};
use super::sent::Sent;
use super::snapshot::{Ask, Need};
use super::start::position_bytes;
use super::state_dir::StateDirectory;
use crate::apply::{Blocked, Replica, SealLimits, ToSend};
use crate::capture::{Position, Started};
use crate::log::{Announced, Delivery, Outgoing, Published, ShardId, StreamSeq};
use unpublished::Unpublished;

/// How long a busy application is followed before anything else gets its turn.
const CAPTURE_WITHIN: Duration = Duration::from_millis(200);
/// The same while the log is so long that writers are made to wait.
const CAPTURE_WITHIN_FAR: Duration = Duration::from_secs(2);
/// How long a graceful stop waits for the server to take what was captured.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How often the write lock is tried when nothing can go on without it.
const BEGIN_INTERVAL: Duration = Duration::from_millis(5);
/// How long a start may wait for the write lock before it says so.
const TELL_LOCKED_AFTER: Duration = Duration::from_secs(1);

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
    pub(super) trouble: watch::Receiver<String>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) needs: mpsc::Sender<Need>,
    pub(super) applied: watch::Sender<BTreeMap<ShardId, StreamSeq>>,
    pub(super) wake: Arc<Notify>,
    pub(super) stop: watch::Receiver<Stop>,
    pub(super) handle: Handle,
}

/// Something that came while the thread waited.
enum Event {
    Delivery(Delivery<Announced>),
    Published(Published),
    Ready(LogReady),
    Asked(Ask),
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
    /// Last message applied of each shard, and the last that we know to be there and that is ours or was there at the start.
    applied: BTreeMap<ShardId, StreamSeq>,
    published: BTreeMap<ShardId, StreamSeq>,
    /// Everything up to the start is seen: publishing may begin.
    open: bool,
    /// Epochs of nodes with our number that published before our start, and of those that were told of since.
    past_twins: BTreeSet<u64>,
    told_twins: BTreeSet<u64>,
}

/// Everything that the database thread owns.
pub(super) struct Database {
    pub(super) config: RunConfig,
    pub(super) directory: StateDirectory,
    pub(super) attached: Attached,
    pub(super) replica: Replica,
    pub(super) inbox: Inbox,
    sent: Sent,
    pub(super) blocked: BTreeMap<ShardId, (Blocked, Instant)>,
    pub(super) shards: Vec<ShardId>,
    pub(super) reporter: Reporter,
    links: Links,
    log: LogState,
    behind: catching_up::Behind,
    incomplete: incomplete::Incomplete,
    fairness: fairness::Fairness,
    outbox_bound: outbox::OutboxBound,
    verifying: verifying::Verifying,
    /// Who waits for the log to have what was committed when he asked.
    unpublished: Vec<Unpublished>,
    to_send: VecDeque<ToSend>,
    round: Option<RoundUnderWay>,
    retry_lock: bool,
    /// A message of another node came while there was nothing to do.
    has_come: bool,
    /// Since when nothing but own messages waits to be folded, and how long it may.
    own_since: Option<Instant>,
    pub(in crate::node) own_wait: Duration,
    /// Since when messages wait for the end of the database's log to be reached under the write lock.
    lock_wanted_since: Option<Instant>,
    locked: applying::Locked,
    stop_at: Option<Instant>,
    stored: Option<Position>,
    pin_renewed_at: Instant,
    /// Others keep everybody from reading, and people were told.
    is_locked_out: bool,
}

/// The round that is being sent.
struct RoundUnderWay {
    round_no: u64,
    end_sent: bool,
}

impl Database {
    pub(super) fn new(
        config: RunConfig,
        directory: StateDirectory,
        attached: Attached,
        replica: Replica,
        shards: Vec<ShardId>,
        links: Links,
        sent: Sent,
    ) -> Database {
        let reporter = Reporter::new(replica.state().origin().node_id);
        Database {
            inbox: Inbox::new(shards.iter().copied()),
            sent,
            config,
            directory,
            attached,
            replica,
            blocked: BTreeMap::new(),
            shards,
            reporter,
            links,
            log: LogState::default(),
            behind: catching_up::Behind::default(),
            incomplete: incomplete::Incomplete::default(),
            fairness: fairness::Fairness::default(),
            outbox_bound: outbox::OutboxBound::default(),
            verifying: verifying::Verifying::default(),
            unpublished: Vec::new(),
            to_send: VecDeque::new(),
            round: None,
            retry_lock: false,
            has_come: false,
            own_since: None,
            own_wait: applying::OWN_WAIT,
            lock_wanted_since: None,
            locked: applying::Locked::default(),
            stop_at: None,
            stored: None,
            pin_renewed_at: Instant::now(),
            is_locked_out: false,
        }
    }

    /// Works until told to stop, then lets go of the database.
    pub(super) fn run(mut self) -> Result<(), NodeError> {
        let worked = loop {
            match self.work() {
                Err(error) if self.attached.has_lost_file(&error) => match self.attach_anew(&error)? {
                    Some(again) => self = again,
                    None => return Ok(()),
                },
                Err(error) if error.is_locked() => {
                    if !self.wait_for_lock(&error)? {
                        break Ok(());
                    }
                }
                worked => break worked,
            }
        };
        self.behind.stop_looking();
        let error = worked.as_ref().err().map(ToString::to_string);
        self.reporter.phase = "stopped";
        if let Some(error) = error {
            self.reporter.trouble(error);
        }
        self.report_now();
        match (worked, self.attached.detach()) {
            (Ok(()), detached) => {
                detached?;
                DurableNote::forget(&self.config.state_dir).map_err(|source| NodeError::StateDirectory {
                    path: self.config.state_dir.clone(),
                    what: "cannot note that everything is on disk",
                    source,
                })
            }
            (worked, _) => worked,
        }
    }

    /// Goes back to where nothing is under way, as a new process would, while others keep everybody from reading. `false` when the node is
    /// to stop.
    fn wait_for_lock(&mut self, error: &NodeError) -> Result<bool, NodeError> {
        self.replica.rollback(&self.attached.connection)?;
        self.replica.begin_anew()?;
        if !std::mem::replace(&mut self.is_locked_out, true) {
            tracing::warn!("{error}: waiting for it");
            self.reporter.trouble(error.to_string());
        }
        self.report_when_due()?;
        if *self.links.stop.borrow() != Stop::No {
            return Ok(false);
        }
        // The tries wait by themselves; this is for errors that come at once.
        let (handle, stop) = (self.links.handle.clone(), &mut self.links.stop);
        let _ = handle.block_on(async { tokio::time::timeout(BEGIN_INTERVAL, stop.changed()).await });
        Ok(true)
    }

    fn work(&mut self) -> Result<(), NodeError> {
        loop {
            let is_busy = self.turn()?;
            if self.is_done()? {
                self.store_position()?;
                return Ok(());
            }
            if !is_busy {
                self.wait()?;
            }
        }
    }

    /// Does everything once. Whether there is more to do at once.
    pub(in crate::node) fn turn(&mut self) -> Result<bool, NodeError> {
        if std::mem::take(&mut self.has_come) {
            // The log was read to its end a moment ago, and is again under the write lock.
            self.apply_or_catch_up()?;
        }
        // Capture goes before all else: what waits elsewhere waits in our files, what waits here makes the application's log grow.
        let began = Instant::now();
        let mut found_more = self.capture_and_send()?;
        while found_more && began.elapsed() < self.capture_within() {
            found_more = self.capture_and_send()?;
        }
        if std::mem::take(&mut self.is_locked_out) {
            tracing::info!("the database can be read again");
            self.reporter.trouble(String::new());
        }
        self.take_events()?;
        let applied = self.apply_or_catch_up()?;
        self.publish()?;
        self.tell_published()?;
        self.report_when_due()?;
        Ok(found_more || applied)
    }

    /// Applies what waits. Whether anything was applied.
    pub(in crate::node) fn apply_or_catch_up(&mut self) -> Result<bool, NodeError> {
        self.retry_lock = false;
        let caught_up = self.catch_up_if_fetched()?;
        // What is folded now would not be in what was found to differ.
        Ok(caught_up || (!self.behind.is_looking() && (self.apply()? || self.clear_suspects()?)))
    }

    /// Goes on where the node stopped: finds the position in the log, or what changed since by comparing with the shadow. Whether that found a
    /// change of a row.
    fn catch_up(&mut self) -> Result<bool, NodeError> {
        self.put_back_lost()?;
        let mut told = Told::new(&self.links.stop);
        let mut sink = self.replica.local_sink();
        match self.attached.follower.catch_up(&mut sink, &mut |step| told.tell(step))? {
            Started::Repaired { pages, changes: 0 } => tracing::debug!("{pages} pages changed meanwhile, and no row"),
            Started::Repaired { pages, changes } => {
                tracing::info!(
                    "{changes} changes on {pages} pages were made while nobody followed; they are published now"
                );
                return Ok(true);
            }
            Started::Already | Started::Resumed => {}
        }
        Ok(false)
    }

    /// A power failure can take commits that were captured. Their rows are as the other nodes have them; here they are written again.
    fn put_back_lost(&mut self) -> Result<(), NodeError> {
        let Some(lost) = self.attached.follower.lost()? else { return Ok(()) };
        let began = Instant::now();
        let mut is_told = false;
        while !self.begin()? {
            refuse_stopped(&self.links.stop)?;
            if !is_told && began.elapsed() >= TELL_LOCKED_AFTER {
                is_told = true;
                tracing::warn!(
                    "an application keeps the write lock: what the database lost, as in a power failure, is written again when it lets go"
                );
            }
            std::thread::sleep(BEGIN_INTERVAL);
        }
        let connection = &self.attached.connection;
        let done = match Replica::put_back(connection, &lost) {
            Ok(done) => done,
            Err(error) => {
                self.replica.rollback(connection)?;
                return Err(error.into());
            }
        };
        self.replica.end_put_back(connection)?;
        tracing::warn!(
            "the database lost commits, as in a power failure: {} of {} rows that they changed were written again, {} could not be",
            done.put_back,
            lost.len(),
            done.in_the_way
        );
        Ok(())
    }

    /// The first look decides what became of an intent that a crash left: if it finds no transaction, it never happened.
    pub(super) fn settle_intent(&mut self) -> Result<(), NodeError> {
        let (was_suspecting, was_recovering) = (self.replica.state().is_suspecting(), self.replica.is_recovering());
        if (self.attached.is_rebooted || was_recovering) && self.may_suspect() {
            self.replica.suspect()?;
        }
        let mut is_repaired = false;
        patiently(&self.links.stop.clone(), || {
            is_repaired |= self.catch_up()?;
            while self.capture()? {}
            Ok(())
        })?;
        if let Some(recovered) = self.replica.abandon_intent()? {
            tracing::info!("an unfinished application of messages was taken back ({recovered:?})");
        }
        if self.replica.state().is_suspecting() {
            // A transaction of its own tells what became of an intent; found together with others, only the log tells whose a column is.
            match was_suspecting || self.attached.is_rebooted || is_repaired {
                true => self.replica.suspect_waiting()?,
                false => self.replica.trust()?,
            }
        }
        if self.attached.is_rebooted {
            // What the failure took is found. To whoever starts next in this boot, what an application does from here on must not look like more of it.
            self.attached.follower.make_durable()?;
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

    /// What was seen of the shards of which all that is applied was seen.
    pub(in crate::node) fn seen_of_applied(&self) -> Result<Vec<Seen>, NodeError> {
        let mut seen = Vec::new();
        for (shard, applied) in self.applied()?.into_iter().filter(|_| self.config.apply_changes) {
            seen.push(Seen::new(shard, applied, &self.replica.state().folded_of(shard)?, &[]));
        }
        Ok(seen)
    }

    /// Whether more may be waiting.
    pub(in crate::node) fn capture(&mut self) -> Result<bool, NodeError> {
        self.look(None)
    }

    /// As [`Database::capture`], but what is found leaves at once if it may.
    fn capture_and_send(&mut self) -> Result<bool, NodeError> {
        let seals = self.may_seal_along();
        self.look(seals)
    }

    fn look(&mut self, seals: Option<SealLimits>) -> Result<bool, NodeError> {
        let before = self.attached.follower.next_tx();
        let mut sink = self.replica.local_sink_grouped();
        if let Some(limits) = seals {
            sink.seal_along(limits, self.config.log.compress);
        }
        // What was taken before an error was taken: capture stands behind it.
        let polled = self.attached.follower.poll(&mut sink);
        let stored = sink.store();
        let sealed = sink.take_sealed();
        drop(sink);
        if !sealed.is_empty() {
            self.begin_round(sealed);
            self.hand_out()?;
        }
        stored?;
        let polled = polled?;
        let mut sink = self.replica.local_sink_grouped();
        let follower = &mut self.attached.follower;
        // It reads what is committed while it bounds the log, so the count is not the look's alone.
        let maintained = follower.maintain(&mut sink);
        sink.store()?;
        maintained?;
        drop(sink);
        let captured = self.attached.follower.next_tx().saturating_sub(before);
        if captured > 0 {
            self.fairness.others_wrote();
        }
        self.reporter.transactions_captured += captured;
        self.pin_renewed_at = Instant::now();
        Ok(polled.more)
    }

    fn capture_within(&self) -> Duration {
        if self.attached.follower.is_far_behind() { CAPTURE_WITHIN_FAR } else { CAPTURE_WITHIN }
    }

    fn store_position(&mut self) -> Result<(), NodeError> {
        let position = self.attached.follower.position();
        if self.stored != Some(position) && !self.replica.is_recovering() {
            self.replica.store_capture_position(&position_bytes(&position, self.attached.follower.next_tx()))?;
            self.attached.follower.note_stored();
            self.stored = Some(position);
        }
        Ok(())
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
}
