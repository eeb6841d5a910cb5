//! One node of a simulated cluster: the application's connection, the product's code, and what stands for network and publisher.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use tokio::runtime::Handle;
use woodchuck::apply::{ApplyError, Cannot, RowFilters, State};
use woodchuck::capture::POSITION_BYTES;
use woodchuck::fault::{self, Died, Point};
use woodchuck::log::{Origin, Outgoing, Published, SealedMessage, ShardId, StreamSeq};
use woodchuck::node::{
    ApplyConfig, CaptureConfig, Conflict, Durability, LogConfig, NatsConfig, Need, NodeError, RunConfig, SteppedNode,
};

use super::fold::Db;
use super::schedule::Setup;
use super::schema::{Schema, SimTable};

/// So long that no test waits for it.
pub const NEVER: Duration = Duration::from_secs(1 << 30);

/// A message on its way.
pub struct Sent {
    pub shard: ShardId,
    pub id: String,
    pub payload: Bytes,
}

/// What the publisher holds.
#[derive(Default)]
pub struct Publisher {
    pub shards: BTreeMap<ShardId, VecDeque<SealedMessage>>,
    round_end: Option<u64>,
    /// What the node was not told yet.
    pub acks: VecDeque<Published>,
}

impl Publisher {
    fn take(&mut self, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Message(message) => self.shards.entry(message.shard).or_default().push_back(message),
            Outgoing::RoundEnd { round_no } => {
                self.round_end = Some(round_no);
                self.end_round();
            }
        }
    }

    /// A shard's first message is on the log.
    pub fn stored(&mut self, shard: ShardId, seq: StreamSeq) {
        let message = self.shards.get_mut(&shard).unwrap().pop_front().unwrap();
        self.acks.push_back(Published::Message { shard, batch_no: message.header.batch_no, seq });
        self.end_round();
    }

    fn end_round(&mut self) {
        if self.shards.values().all(VecDeque::is_empty)
            && let Some(round_no) = self.round_end.take()
        {
            self.acks.push_back(Published::Round { round_no });
        }
    }
}

pub struct SimNode {
    pub no: usize,
    pub path: PathBuf,
    pub state_dir: PathBuf,
    pub app: Connection,
    /// `None` while it is down.
    pub node: Option<SteppedNode>,
    pub origin: Origin,
    pub publisher: Publisher,
    /// The next message of each shard.
    pub next: BTreeMap<ShardId, StreamSeq>,
    /// Shards that it cannot read on, and what it needs for it.
    pub failed: BTreeSet<ShardId>,
    pub wants: BTreeMap<ShardId, StreamSeq>,
    /// Something may be committed that is not captured.
    pub is_dirty: bool,
    /// The application has a transaction open.
    pub is_open: bool,
    /// The rows before it.
    pub before: Db,
    /// The application's transactions that changed something, since the state was made.
    pub commits: usize,
    /// The positions at the last look.
    pub applied: Vec<u64>,
    /// After a gap behind an intent rows are ahead of the fold until the log is folded up to here again.
    pub ahead_until: Vec<u64>,
    /// The positions at the last start.
    pub started_at: Vec<u64>,
    /// The machine was started anew, and the node not since: it may have to write first, and waits for who writes.
    pub is_rebooted: bool,
    /// Of these some came while nobody followed: together they may be one, or nothing.
    pub uncaptured: usize,
    pub may_merge: bool,
    /// It ended because a snapshot was too old for it: another node is to make one before it is started again.
    pub wants_newer: bool,
    setup: Setup,
    handle: Handle,
}

impl SimNode {
    /// A copy of the first database, not started.
    pub fn new(directory: &Path, no: usize, setup: Setup, handle: Handle, fill: impl Fn(&Connection)) -> SimNode {
        let directory = directory.join(no.to_string());
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("app.db");
        let app = open_application(&path);
        fill(&app);
        let state_dir = directory.join("state");
        std::fs::create_dir(&state_dir).unwrap();
        let origin = Origin { node_id: no as u64 + 1, epoch: 0x1234_5678_9abc_0000 + no as u64 };
        drop(State::open(&state_dir.join("state.db"), "app.db", origin).unwrap());
        SimNode {
            no,
            path,
            state_dir,
            app,
            node: None,
            origin,
            publisher: Publisher::default(),
            next: BTreeMap::new(),
            failed: BTreeSet::new(),
            wants: BTreeMap::new(),
            is_dirty: false,
            is_open: false,
            before: Db::new(),
            commits: 0,
            applied: Vec::new(),
            ahead_until: Vec::new(),
            started_at: Vec::new(),
            is_rebooted: false,
            uncaptured: 0,
            may_merge: false,
            wants_newer: false,
            setup,
            handle,
        }
    }

    /// Which rows it replicates.
    pub fn filters(&self) -> RowFilters {
        let is_filtered = self.setup.filtered && self.no == 0;
        let schema = Schema::of(self.setup.kind);
        let of = |table: &SimTable| {
            let column = table.values.last().unwrap();
            format!("{}: typeof({column}) = 'text' OR {column} % 2 = 0", table.name)
        };
        let texts: Vec<String> = schema.tables.iter().filter(|_| is_filtered).map(of).collect();
        RowFilters::parse(&texts).unwrap()
    }

    pub fn config(&self) -> RunConfig {
        RunConfig {
            db_path: self.path.clone(),
            state_dir: self.state_dir.clone(),
            node_id: Some(self.no as u64 + 1),
            nats: NatsConfig::default(),
            log: LogConfig {
                shards: self.setup.shards,
                max_entries: 1 << 20,
                replicas: 1,
                subject_prefix: "w".to_owned(),
                stream_prefix: "w".to_owned(),
                compress: false,
                before_images: false,
                snapshot_interval: None,
                outbox_bytes_max: 1 << 40,
            },
            capture: CaptureConfig {
                poll_interval: NEVER,
                sync_interval: NEVER,
                durability: Durability::Relaxed,
                checkpoint_frames: 1000,
                wal_bytes_max: Some(64 << 20),
            },
            apply: ApplyConfig {
                conflict: if self.setup.by_row { Conflict::Row } else { Conflict::Column },
                cut_wait: NEVER,
                conflict_rows_max: 100,
            },
            tables: Vec::new(),
            exclude_tables: Vec::new(),
            row_filters: self.filters(),
            publish: true,
            apply_changes: true,
            accept_restored: false,
            new_shadow: false,
        }
    }

    /// Does something with the node if it is up; whether it did. If it dies at `at` meanwhile it is down afterwards.
    pub fn with(
        &mut self,
        at: Option<(Point, u32)>,
        step: impl FnOnce(&mut SteppedNode) -> Result<(), NodeError>,
    ) -> bool {
        let Some(node) = self.node.as_mut() else { return false };
        let done = dying(at, || step(node));
        self.after(done);
        true
    }

    /// Starts the node if it is down. Whether it is up then.
    pub fn start(&mut self, at: Option<(Point, u32)>, last: BTreeMap<ShardId, StreamSeq>) -> bool {
        if self.node.is_some() {
            return true;
        }
        let (config, handle, setup) = (self.config(), self.handle.clone(), self.setup);
        let stored = State::look(&self.state_dir.join("state.db")).unwrap();
        // A node that dies again while it finds out has taken its intent back already.
        self.ahead_until.resize(last.len(), 0);
        for (until, shard) in self.ahead_until.iter_mut().zip(last.keys()) {
            *until = stored.position(*shard).unwrap().0.max(*until);
        }
        drop(stored);
        let opened = dying(at, || {
            let mut node = SteppedNode::open(config, &handle)?;
            node.replica().set_unit_bytes_max(setup.unit_bytes_max);
            let mut next = BTreeMap::new();
            for shard in last.keys() {
                next.insert(*shard, StreamSeq(node.replica().state().position(*shard)?.0 + 1));
            }
            node.reach_log(last, setup.message_bytes_max)?;
            Ok((node, next))
        });
        if let Some((node, next)) = self.after(opened) {
            self.node = Some(node);
            self.started_at = next.values().map(|next| next.0 - 1).collect();
            self.next = next;
            self.with(None, |node| {
                while node.capture()? {}
                Ok(())
            });
            let is_ahead = self.next.values().zip(&self.ahead_until).any(|(next, until)| next.0 <= *until);
            self.may_merge |= self.uncaptured > 1 || (is_ahead && self.uncaptured > 0);
            self.clean();
        }
        self.node.is_some()
    }

    /// What it has stored is on disk, and the machine was started anew since.
    pub fn note_other_boot(&mut self) {
        self.is_rebooted = true;
        let state = State::look(&self.state_dir.join("state.db")).unwrap();
        let mut note = state.capture_position().unwrap();
        note.truncate(POSITION_BYTES);
        note.extend_from_slice(b"another boot");
        note.extend_from_within(..);
        std::fs::write(self.state_dir.join("durable"), note).unwrap();
        // What is taken for known to the log may be a part of a transaction.
        self.may_merge = true;
    }

    /// Everything that is committed is captured.
    pub fn clean(&mut self) {
        self.is_dirty = false;
        self.uncaptured = 0;
    }

    /// Takes what came out of a step.
    fn after<T>(&mut self, done: Result<Result<T, NodeError>, Died>) -> Option<T> {
        match done {
            Ok(Ok(value)) => {
                while let Some(next) = self.node.as_mut().and_then(SteppedNode::next_outgoing) {
                    self.publisher.take(next);
                }
                while let Some(need) = self.node.as_mut().and_then(SteppedNode::next_need) {
                    match need {
                        Need::Snapshot { shard, at_least } => drop(self.wants.insert(shard, at_least)),
                        Need::Read { shard, from } => {
                            self.failed.remove(&shard);
                            self.next.insert(shard, from);
                        }
                        Need::PutBack { shard, .. } => panic!("the log has lost nothing of shard {}", shard.0),
                        // Who is impatient has been told that nobody will bring it.
                        Need::Rest { origins, answer, .. } => drop(answer.send(origins)),
                    }
                }
                Some(value)
            }
            Ok(Err(NodeError::Apply(ApplyError::Cannot(Cannot::SnapshotWithoutSchema)))) => {
                self.wants_newer = true;
                drop(self.kill());
                None
            }
            Ok(Err(error)) => panic!("node {} ended: {error:?}", self.no),
            Err(Died(_)) => {
                drop(self.kill());
                None
            }
        }
    }

    /// The node is gone as by `kill -9`. What it has sent may still be on its way.
    #[must_use]
    pub fn kill(&mut self) -> Vec<Sent> {
        drop(self.node.take());
        self.wants.clear();
        self.failed.clear();
        let publisher = std::mem::take(&mut self.publisher);
        let first = |mut waiting: VecDeque<SealedMessage>| waiting.pop_front();
        let sent = |message: SealedMessage| Sent {
            shard: message.shard,
            id: message.message_id(),
            payload: Bytes::from(message.payload),
        };
        publisher.shards.into_values().filter_map(first).map(sent).collect()
    }
}

pub fn open_application(path: &Path) -> Connection {
    let app = Connection::open(path).unwrap();
    app.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    app.execute_batch("PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON;").unwrap();
    app
}

/// Runs something that may die at a point.
fn dying<T>(at: Option<(Point, u32)>, run: impl FnOnce() -> T) -> Result<T, Died> {
    fault::unwind_at(at);
    let done = catch_unwind(AssertUnwindSafe(run));
    fault::unwind_at(None);
    done.map_err(|cause: Box<dyn Any + Send>| match cause.downcast::<Died>() {
        Ok(died) => *died,
        Err(cause) => resume_unwind(cause),
    })
}
