//! A node that does one step when its owner says so: the database thread of [`run`](super::run) without thread, network and waiting.
//!
//! For tests that decide themselves what happens when. Nothing is done here: every step is the very function that the thread calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::config::RunConfig;
use super::database::{Database, Links, LogReady, Stop};
use super::error::NodeError;
use super::snapshot::{Ask, Fetched, Need, Restore, make, restore_fetched, set_wal};
use super::start::open;
use crate::apply::{Replica, TableFilter};
use crate::log::{Announced, Delivery, Outgoing, Published, ShardId, SnapshotInfo, SnapshotManifest, StreamSeq};

/// Messages that wait in a channel of a node: its owner empties them between the steps.
const MESSAGES_MAX: usize = 64;

/// Ends that nobody else keeps open: the connection, its trouble, where others stand, and whether to stop.
type Others =
    (watch::Sender<bool>, watch::Sender<String>, watch::Receiver<BTreeMap<ShardId, StreamSeq>>, watch::Sender<Stop>);

/// A node without network, and its ends of everything.
pub struct SteppedNode {
    database: Database,
    deliveries: mpsc::Sender<Delivery<Announced>>,
    published: mpsc::Sender<Published>,
    outgoing: mpsc::Receiver<Outgoing>,
    ready: mpsc::Sender<LogReady>,
    asks: mpsc::Sender<Ask>,
    needs: mpsc::Receiver<Need>,
    _others: Others,
}

impl std::fmt::Debug for SteppedNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SteppedNode").field("replica", &self.database.replica).finish_non_exhaustive()
    }
}

impl SteppedNode {
    /// Opens database and state, and settles what an earlier life has left. The log is not reached yet.
    ///
    /// # Errors
    /// As [`run`](super::run).
    pub fn open(config: RunConfig, handle: &Handle) -> Result<SteppedNode, NodeError> {
        let (deliveries, deliveries_end) = mpsc::channel(MESSAGES_MAX);
        let (published, published_end) = mpsc::channel(MESSAGES_MAX);
        let (outgoing_start, outgoing) = mpsc::channel(MESSAGES_MAX);
        let (ready, ready_end) = mpsc::channel(1);
        let (connected, connected_end) = watch::channel(true);
        let (trouble, trouble_end) = watch::channel(String::new());
        let (asks, asks_end) = mpsc::channel(MESSAGES_MAX);
        let (needs_start, needs) = mpsc::channel(usize::from(config.log.shards).max(1) * 2);
        let (applied, applied_end) = watch::channel(BTreeMap::new());
        let (stop, stop_end) = watch::channel(Stop::No);
        let links = Links {
            deliveries: deliveries_end,
            published: published_end,
            outgoing: outgoing_start,
            ready: ready_end,
            connected: connected_end,
            trouble: trouble_end,
            asks: asks_end,
            needs: needs_start,
            applied,
            wake: Arc::new(Notify::new()),
            stop: stop_end,
            handle: handle.clone(),
        };
        let (mut database, _) = open(config, links)?;
        database.attached.follower.set_timeless();
        database.look_inline();
        database.own_wait = Duration::ZERO;
        database.settle_intent()?;
        let others = (connected, trouble, applied_end, stop);
        Ok(SteppedNode { database, deliveries, published, outgoing, ready, asks, needs, _others: others })
    }

    /// Tells the node that the log can be used, and the last message of each shard.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn reach_log(&mut self, last: BTreeMap<ShardId, StreamSeq>, message_bytes_max: usize) -> Result<(), NodeError> {
        taken(self.ready.try_send(LogReady { last, message_bytes_max }))?;
        self.database.take_events()
    }

    /// Gives what a consumer delivers.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn deliver(&mut self, delivery: Delivery<Announced>) -> Result<(), NodeError> {
        taken(self.deliveries.try_send(delivery))?;
        self.database.take_events()
    }

    /// Gives what the publisher reports.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn acknowledge(&mut self, published: Published) -> Result<(), NodeError> {
        taken(self.published.try_send(published))?;
        self.database.take_events()
    }

    /// The next item for the publisher, if there is one.
    pub fn next_outgoing(&mut self) -> Option<Outgoing> {
        self.outgoing.try_recv().ok()
    }

    /// What the node needs next of the network side, if anything.
    pub fn next_need(&mut self) -> Option<Need> {
        self.needs.try_recv().ok()
    }

    /// Does everything once. Whether there is more to do at once.
    ///
    /// # Errors
    /// [`NodeError`], with which the node ends.
    pub fn turn(&mut self) -> Result<bool, NodeError> {
        self.database.turn()
    }

    /// Looks once at what was committed. Whether more may be waiting.
    ///
    /// # Errors
    /// As [`SteppedNode::turn`].
    pub fn capture(&mut self) -> Result<bool, NodeError> {
        self.database.capture()
    }

    /// Applies what has arrived, or catches up. Whether anything was applied.
    ///
    /// # Errors
    /// As [`SteppedNode::turn`].
    pub fn apply(&mut self) -> Result<bool, NodeError> {
        self.database.apply_or_catch_up()
    }

    /// Seals a round, or hands out more of it.
    ///
    /// # Errors
    /// As [`SteppedNode::turn`].
    pub fn publish(&mut self) -> Result<(), NodeError> {
        self.database.publish()
    }

    /// The shards that stopped, and why.
    pub fn stops(&self) -> Vec<String> {
        self.database.blocked.values().map(|(blocked, _)| format!("{blocked:?}")).collect()
    }

    /// Sets how long the rest of a transaction is waited for that other shards bring.
    pub fn set_cut_wait(&mut self, wait: Duration) {
        self.database.config.apply.cut_wait = wait;
    }

    /// The state with its rules.
    pub fn replica(&mut self) -> &mut Replica {
        &mut self.database.replica
    }

    /// Makes a snapshot, in write-ahead mode, at `path`. `None` when the node can give none now.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn snapshot(&mut self, path: &Path) -> Result<Option<SnapshotManifest>, NodeError> {
        let (answer, mut moment) = oneshot::channel();
        taken(self.asks.try_send(Ask::Moment { answer, early: false }))?;
        self.database.take_events()?;
        let Some(moment) = moment.try_recv().ok().flatten() else { return Ok(None) };
        let filter = TableFilter::new(&self.database.config.tables, &self.database.config.exclude_tables);
        make(moment, path, &filter, &self.database.config.row_filters).map(|(_, manifest)| Some(manifest))
    }

    /// Gives the node a snapshot to catch up from with its next [`SteppedNode::apply`]. The file at `path` is removed afterwards.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn catch_up(&mut self, path: &Path, manifest: SnapshotManifest) -> Result<(), NodeError> {
        let fetched = fetched(path, manifest)?;
        taken(self.asks.try_send(Ask::CatchUp(Box::new(fetched))))?;
        self.database.take_events()
    }

    /// Makes the database and the state of a node that is not running from the snapshot at `path`, which takes the database's name.
    ///
    /// # Errors
    /// As [`restore`](super::restore).
    pub fn restore(what: &Restore, path: &Path, manifest: SnapshotManifest) -> Result<(), NodeError> {
        restore_fetched(what, &fetched(path, manifest)?)
    }

    /// Lets go of the database as a node that is told to stop; dropping it instead is as if it was killed.
    ///
    /// # Errors
    /// [`NodeError::Capture`].
    pub fn stop(self) -> Result<(), NodeError> {
        Ok(self.database.attached.detach()?)
    }

    /// Lets go of a database that has lost its name, with everything that this process keeps of it.
    pub fn abandon(self) {
        self.database.attached.abandon();
    }
}

fn taken<T>(sent: Result<(), mpsc::error::TrySendError<T>>) -> Result<(), NodeError> {
    sent.map_err(|_| NodeError::Ended("database"))
}

fn fetched(path: &Path, manifest: SnapshotManifest) -> Result<Fetched, NodeError> {
    let fail = |source| NodeError::StateDirectory { path: path.to_owned(), what: "cannot open the snapshot", source };
    let file = std::fs::File::options().read(true).write(true).open(path).map_err(fail)?;
    set_wal(&file, false).map_err(fail)?;
    Ok(Fetched { path: path.to_owned(), info: SnapshotInfo::outside(0, 0, &manifest), manifest })
}
