//! A cluster that does what a schedule says, and is compared with the specification after every step.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use woodchuck::fault::Point;
use woodchuck::log::{
    Announced, Delivery, LogError, MESSAGE_BYTES_MAX, MemoryLog, ShardId, SnapshotManifest, StreamSeq, decode,
    decode_header, shard_of,
};
use woodchuck::node::{Restore, SteppedNode, stream_options};

use super::fold::{Db, Rules, Spec};
use super::node::{NEVER, Sent, SimNode, open_application};
use super::schedule::{Fate, Schedule, Setup, Step};
use super::schema::{Schema, statements, transaction};
use crate::support::oracle;

/// Turns after which a cluster that was left alone must be at rest.
const SETTLE_TURNS_MAX: usize = 100;

/// What a run met, by name.
pub type Met = BTreeMap<&'static str, u64>;

/// What a schedule came to.
#[derive(Debug)]
pub struct Run {
    /// The hash of all that had happened, after each step and at rest.
    pub trace: Vec<u64>,
    pub met: Met,
    /// The rows in the end.
    pub rows: Db,
}

struct Snapshot {
    path: PathBuf,
    manifest: SnapshotManifest,
}

pub struct Cluster {
    pub(super) setup: Setup,
    pub(super) nodes: Vec<SimNode>,
    pub(super) spec: Spec,
    log: MemoryLog,
    /// What is left of each shard begins here.
    first: BTreeMap<ShardId, u64>,
    late: Vec<Sent>,
    snapshots: Vec<Snapshot>,
    /// A round was applied in part, because its rest did not come.
    pub(super) is_torn: bool,
    pub(super) trace: DefaultHasher,
    pub(super) met: Met,
    files: usize,
    _runtime: Runtime,
    /// Removed last.
    directory: TempDir,
}

impl Cluster {
    pub fn new(setup: Setup) -> Cluster {
        let directory = crate::support::folder();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let schema = Schema::of(setup.kind);
        let fill = |app: &Connection| {
            app.execute_batch(schema.sql).unwrap();
            for i in 0..6 {
                transaction(app, &schema, setup.genesis.wrapping_add(i));
            }
        };
        let nodes: Vec<SimNode> = (0..setup.nodes)
            .map(|no| SimNode::new(directory.path(), no, setup, runtime.handle().clone(), fill))
            .collect();
        let catalogue = oracle::catalogue(&nodes[0].app);
        let rules = Rules { schema: schema.clone(), catalogue, by_row: setup.by_row };
        let genesis = rows(&nodes[0].app, &rules);
        let shard_of_key = |(name, key): &(String, Vec<u8>)| {
            let by_row = schema.table(name).uniques.is_empty();
            shard_of(name, by_row.then_some(key), setup.shards)
        };
        let spec = Spec::new(rules, setup.shards, &genesis, shard_of_key);
        let log = MemoryLog::new(setup.shards, 1);
        log.remember_ids(setup.remember_ids);
        let shards = (1..=setup.shards).map(ShardId);
        let mut cluster = Cluster {
            setup,
            nodes,
            spec,
            log,
            first: shards.map(|shard| (shard, 1)).collect(),
            late: Vec::new(),
            snapshots: Vec::new(),
            is_torn: false,
            trace: DefaultHasher::new(),
            met: Met::new(),
            files: 0,
            _runtime: runtime,
            directory,
        };
        for no in 0..setup.nodes {
            assert!(cluster.start(no, None), "a node starts");
            cluster.nodes[no].may_merge = !cluster.nodes[no].filters().is_empty();
        }
        cluster
    }

    /// Does everything, then lets the cluster come to rest.
    pub fn run(schedule: &Schedule) -> Run {
        let mut cluster = Cluster::new(schedule.setup);
        let mut trace = Vec::with_capacity(schedule.steps.len() + 1);
        for step in &schedule.steps {
            cluster.step(*step);
            trace.push(cluster.trace.finish());
        }
        cluster.settle();
        trace.push(cluster.trace.finish());
        Run { trace, met: cluster.met.clone(), rows: cluster.rows(0) }
    }

    pub(super) fn met(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn step(&mut self, step: Step) {
        let shards = self.setup.shards;
        match step {
            Step::Write { node, seed } => self.write(node, seed),
            Step::Sql { node, sql } => self.sql(node, sql),
            Step::Begin { node, seed } => self.begin(node, seed),
            Step::End { node, commit } => self.end(node, commit),
            Step::Turn { node } => self.turn(node, None),
            Step::Die { node, point, passing } => self.die(node, point, passing),
            Step::Capture { node } => self.capture(node),
            Step::Apply { node, impatient } => self.apply(node, impatient),
            Step::Publish { node } => drop(self.nodes[node].with(None, SteppedNode::publish)),
            Step::Send { node, shard: 0, fate } => (1..=shards).for_each(|no| self.send(node, ShardId(no), fate)),
            Step::Send { node, shard, fate } if shard <= shards => self.send(node, ShardId(shard), fate),
            Step::Ack { node, count } => self.acknowledge(node, count),
            Step::Deliver { node, shard: 0, count } => {
                (1..=shards).for_each(|no| self.deliver(node, ShardId(no), count));
            }
            Step::Deliver { node, shard, count } if shard <= shards => self.deliver(node, ShardId(shard), count),
            Step::Again { shard, back } if shard <= shards => self.again(ShardId(shard), back),
            Step::Late { shard } => self.late(ShardId(shard)),
            Step::Kill { node } => self.kill(node),
            Step::Reboot { node } => self.reboot(node),
            Step::Stop { node } => self.stop(node),
            Step::Start { node } => drop(self.start(node, None)),
            Step::Checkpoint { node } => self.checkpoint(node),
            Step::Snapshot { node } => self.snapshot(node),
            Step::Trim { shard } if shard <= shards => self.trim(ShardId(shard)),
            Step::CatchUp { node } => self.catch_up(node),
            Step::Rejoin { node } => self.rejoin(node),
            Step::Send { .. } | Step::Deliver { .. } | Step::Again { .. } | Step::Trim { .. } => {}
        }
        self.check();
    }

    fn write(&mut self, no: usize, seed: u64) {
        if self.nodes[no].is_open {
            return;
        }
        let before = self.rows(no);
        let Cluster { nodes, spec, .. } = self;
        transaction(&nodes[no].app, &spec.rules.schema, seed);
        self.written(no, &before);
    }

    fn sql(&mut self, no: usize, sql: &str) {
        let before = self.rows(no);
        self.nodes[no].app.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT")).unwrap();
        self.written(no, &before);
    }

    fn written(&mut self, no: usize, before: &Db) {
        if self.rows(no) != *before {
            self.nodes[no].commits += 1;
            self.nodes[no].uncaptured += 1;
            self.met("transactions");
        }
        self.nodes[no].is_dirty = true;
    }

    fn begin(&mut self, no: usize, seed: u64) {
        let before = self.rows(no);
        let Cluster { nodes, spec, .. } = self;
        let node = &mut nodes[no];
        if !node.is_open {
            node.before = before;
            node.app.execute_batch("BEGIN IMMEDIATE").unwrap();
            statements(&node.app, &spec.rules.schema, seed);
            node.is_open = true;
        }
    }

    fn end(&mut self, no: usize, commit: bool) {
        if !std::mem::take(&mut self.nodes[no].is_open) {
            return;
        }
        let node = &mut self.nodes[no];
        node.app.execute_batch(if commit { "COMMIT" } else { "ROLLBACK" }).unwrap();
        let before = std::mem::take(&mut node.before);
        self.written(no, &before);
    }

    fn turn(&mut self, no: usize, at: Option<(Point, u32)>) {
        let node = &mut self.nodes[no];
        let mut is_busy = true;
        let up = node.with(at, |node| {
            is_busy = node.turn()?;
            Ok(())
        });
        if up && !is_busy && node.node.is_some() {
            node.clean();
        }
    }

    fn die(&mut self, no: usize, point: Point, passing: u32) {
        let at = Some((point, passing));
        if self.nodes[no].node.is_none() {
            self.start(no, at);
        } else {
            self.turn(no, at);
        }
        if self.nodes[no].node.is_none() {
            self.met("deaths");
        }
    }

    fn capture(&mut self, no: usize) {
        let captured = self.nodes[no].with(None, |node| {
            while node.capture()? {}
            Ok(())
        });
        if captured {
            self.nodes[no].clean();
        }
    }

    fn apply(&mut self, no: usize, impatient: bool) {
        self.is_torn |= impatient;
        // The wait begins with the first try, the second asks whether it is worth while, and the third has the answer.
        let waits = if impatient { vec![NEVER, Duration::ZERO, Duration::ZERO] } else { vec![NEVER] };
        for wait in waits {
            let mut applied = false;
            self.nodes[no].with(None, |node| {
                node.set_cut_wait(wait);
                applied = node.apply()?;
                node.set_cut_wait(NEVER);
                Ok(())
            });
            if applied && wait.is_zero() {
                self.met("torn rounds");
            }
        }
    }

    /// The log has new messages: the specification takes them too.
    fn take_new(&mut self, shard: ShardId) {
        for entry in self.log.entries(shard, StreamSeq(self.spec.count(shard) + 1)) {
            let batch = decode(&entry.payload, MESSAGE_BYTES_MAX).unwrap();
            for unit in format!("{:?} {:?}", batch.header.batch_no, unit_text(&batch)).as_bytes().chunks(64) {
                unit.hash(&mut self.trace);
            }
            self.spec.push(shard, &batch);
            *self.met.entry("messages").or_default() += 1;
        }
    }

    fn store(&mut self, shard: ShardId, id: &str, payload: &Bytes) -> StreamSeq {
        let seq = self.log.append(shard, id, payload.clone()).unwrap();
        self.take_new(shard);
        seq
    }

    fn send(&mut self, no: usize, shard: ShardId, fate: Fate) {
        let waiting = self.nodes[no].publisher.shards.get(&shard);
        let Some(message) = waiting.and_then(|waiting| waiting.front()) else { return };
        let (id, payload) = (message.message_id(), Bytes::from(message.payload.clone()));
        if fate == Fate::Failed {
            return;
        }
        let seq = self.store(shard, &id, &payload);
        match fate {
            Fate::AckLost => return,
            Fate::Twice => {
                self.store(shard, &format!("{id} again {}", seq.0), &payload);
            }
            Fate::Stored | Fate::Failed => {}
        }
        self.nodes[no].publisher.stored(shard, seq);
    }

    fn acknowledge(&mut self, no: usize, count: usize) {
        for _ in 0..count {
            let Some(next) = self.nodes[no].publisher.acks.pop_front() else { return };
            self.nodes[no].with(None, |node| node.acknowledge(next));
        }
    }

    fn deliver(&mut self, no: usize, shard: ShardId, count: usize) {
        let Cluster { nodes, log, first, .. } = self;
        let node = &mut nodes[no];
        if node.node.is_none() || node.failed.contains(&shard) {
            return;
        }
        let wanted = node.next[&shard];
        let first = StreamSeq(first[&shard]);
        if wanted < first {
            node.failed.insert(shard);
            let error = LogError::FellBehind { stream: format!("shard {}", shard.0), wanted, first };
            node.with(None, |node| node.deliver(Delivery::Failed { shard, error }));
            self.met("fell behind");
            return;
        }
        for entry in log.entries(shard, wanted).into_iter().take(count) {
            let header = decode_header(&entry.payload, MESSAGE_BYTES_MAX).unwrap();
            let announced = Announced { shard, seq: entry.seq, time: entry.time, header, payload: entry.payload };
            node.next.insert(shard, StreamSeq(entry.seq.0 + 1));
            node.with(None, |node| node.deliver(Delivery::Arrived(announced)));
        }
    }

    fn again(&mut self, shard: ShardId, back: usize) {
        let entries = self.log.entries(shard, StreamSeq(0));
        if let Some(entry) = entries.iter().rev().nth(back) {
            let id = format!("again {}", self.spec.count(shard));
            self.store(shard, &id, &entry.payload);
            self.met("duplicates");
        }
    }

    fn late(&mut self, shard: ShardId) {
        if let Some(index) = self.late.iter().position(|sent| sent.shard == shard) {
            let Sent { shard, id, payload } = self.late.remove(index);
            self.store(shard, &id, &payload);
            self.met("late messages");
        }
    }

    fn kill(&mut self, no: usize) {
        let sent = self.nodes[no].kill();
        // Of a message that was not sent in time nothing comes any more.
        self.late.extend(sent);
        self.late.truncate(3);
    }

    fn reboot(&mut self, no: usize) {
        self.kill(no);
        self.nodes[no].note_other_boot();
        self.met("reboots");
    }

    fn stop(&mut self, no: usize) {
        if let Some(node) = self.nodes[no].node.take() {
            node.stop().unwrap();
            self.kill(no);
        }
    }

    fn start(&mut self, no: usize, at: Option<(Point, u32)>) -> bool {
        let last = self.first.keys().map(|shard| (*shard, StreamSeq(self.spec.count(*shard)))).collect();
        if self.nodes[no].is_rebooted {
            // While it waits nothing else goes on here, and the application has to come to its end.
            self.end(no, true);
        }
        let is_up = self.nodes[no].start(at, last);
        self.nodes[no].is_rebooted &= !is_up;
        is_up
    }

    fn checkpoint(&mut self, no: usize) {
        let node = &self.nodes[no];
        if node.is_open {
            return;
        }
        let how = if node.node.is_some() { "PASSIVE" } else { "TRUNCATE" };
        node.app.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(())).unwrap();
    }

    fn file(&mut self, name: &str) -> PathBuf {
        self.files += 1;
        self.directory.path().join(format!("{name}-{}.db", self.files))
    }

    fn snapshot(&mut self, no: usize) {
        let path = self.file("snapshot");
        let mut made = None;
        self.nodes[no].with(None, |node| {
            made = node.snapshot(&path)?;
            Ok(())
        });
        let Some(manifest) = made else { return };
        let copy = self.file("look");
        std::fs::copy(&path, &copy).unwrap();
        let found = rows(&Connection::open(&copy).unwrap(), &self.spec.rules);
        let fold = self.spec.rows(manifest.stand.values().map(|stand| stand.seq.0));
        let is_filtered = !self.nodes[no].filters().is_empty();
        let fold = self.within(no, fold);
        assert_eq!(found, fold, "a snapshot of node {no} is the fold");
        if is_filtered {
            return self.met("filtered snapshots");
        }
        self.snapshots.push(Snapshot { path, manifest });
        self.met("snapshots");
    }

    fn trim(&mut self, shard: ShardId) {
        let Some(snapshot) = self.snapshots.last() else { return };
        let first = snapshot.manifest.stand[&shard].seq.0 + 1;
        self.log.trim(shard, StreamSeq(first));
        let now = self.first.get_mut(&shard).unwrap();
        *now = first.max(*now);
    }

    fn catch_up(&mut self, no: usize) {
        if self.nodes[no].wants.is_empty() || self.nodes[no].node.is_none() {
            return;
        }
        let wants = std::mem::take(&mut self.nodes[no].wants);
        let does = |snapshot: &&Snapshot| {
            wants.iter().all(|(shard, at_least)| snapshot.manifest.stand[shard].seq >= *at_least)
        };
        let newest = self.snapshots.iter().rev().find(does).expect("the log is cut behind a snapshot");
        let (from, manifest) = (newest.path.clone(), newest.manifest.clone());
        let path = self.file("fetched");
        std::fs::copy(from, &path).unwrap();
        self.nodes[no].with(None, |node| node.catch_up(&path, manifest));
        self.met("catch-ups");
    }

    fn rejoin(&mut self, no: usize) {
        let Some(snapshot) = self.snapshots.last() else { return };
        let node = &mut self.nodes[no];
        if node.node.is_some() || node.is_open || node.is_dirty {
            return;
        }
        let (from, manifest) = (snapshot.path.clone(), snapshot.manifest.clone());
        // The name that a fetched file has beside the database.
        let part = node.path.with_file_name("app.db-woodchuck-part");
        std::fs::copy(from, &part).unwrap();
        let config = node.config();
        let restore = Restore {
            rows: config.row_filters.clone(),
            db_path: config.db_path.clone(),
            state_dir: config.state_dir.clone(),
            nats: config.nats.clone(),
            streams: stream_options(&config),
            replace: true,
            tables: None,
        };
        node.app = Connection::open_in_memory().unwrap();
        let restored = SteppedNode::restore(&restore, &part, manifest);
        node.app = open_application(&node.path);
        match restored {
            Ok(()) => {
                node.commits = 0;
                // Not all that its application commits is published.
                node.may_merge = !node.filters().is_empty();
                node.ahead_until.clear();
                self.met("rejoins");
                self.start(no, None);
                let node = &mut self.nodes[no];
                node.origin = node.node.as_mut().unwrap().replica().state().origin();
            }
            Err(woodchuck::node::NodeError::Unpublished { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Lets everything come to rest, and compares every node with the log.
    fn settle(&mut self) {
        let shards: Vec<ShardId> = self.first.keys().copied().collect();
        for turn in 0.. {
            assert!(turn < SETTLE_TURNS_MAX, "the cluster comes to rest");
            let mut is_busy = false;
            for no in 0..self.nodes.len() {
                self.end(no, false);
                self.start(no, None);
                self.turn(no, None);
                for shard in &shards {
                    while self.nodes[no].publisher.shards.get(shard).is_some_and(|waiting| !waiting.is_empty()) {
                        self.send(no, *shard, Fate::Stored);
                        is_busy = true;
                    }
                }
                self.acknowledge(no, usize::MAX);
            }
            for no in 0..self.nodes.len() {
                for shard in &shards {
                    self.deliver(no, *shard, usize::MAX);
                }
                self.catch_up(no);
                self.turn(no, None);
                is_busy |= self.is_busy(no);
                self.check();
            }
            if !is_busy {
                break;
            }
        }
        self.check_rest();
    }

    fn is_busy(&mut self, no: usize) -> bool {
        let ends: Vec<u64> = self.first.keys().map(|shard| self.spec.count(*shard)).collect();
        let applied = self.positions(no);
        let node = &mut self.nodes[no];
        let backlog = node.node.as_mut().unwrap().replica().state().backlog().unwrap();
        backlog.units > 0 || applied != ends || !node.publisher.acks.is_empty()
    }

    pub(super) fn positions(&mut self, no: usize) -> Vec<u64> {
        let shards: Vec<ShardId> = self.first.keys().copied().collect();
        let state = self.nodes[no].node.as_mut().unwrap().replica().state();
        shards.iter().map(|shard| state.position(*shard).unwrap().0).collect()
    }

    /// What a node replicates of these rows.
    pub(super) fn within(&self, no: usize, mut rows: Db) -> Db {
        let filters = self.nodes[no].filters();
        if filters.is_empty() {
            return rows;
        }
        for table in &self.spec.rules.schema.tables {
            let test = filters.test(self.spec.rules.catalogue.table(table.name).unwrap()).unwrap().unwrap();
            rows.retain(|(name, _), row| name != table.name || test.passes(None, row).unwrap());
        }
        rows
    }

    pub(super) fn rows(&self, no: usize) -> Db {
        rows(&self.nodes[no].app, &self.spec.rules)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What this process keeps of the files goes with them.
        for node in &mut self.nodes {
            node.app = Connection::open_in_memory().unwrap();
            let _ = std::fs::remove_file(&node.path);
            if let Some(node) = node.node.take() {
                node.abandon();
            }
        }
    }
}

/// What a message says, without what differs from run to run: the salts of a log, the frames in it.
fn unit_text(batch: &woodchuck::log::Batch) -> String {
    match &batch.body {
        woodchuck::log::Body::Units(units) => {
            units.iter().map(|unit| format!("{} {} {:?};", unit.tx, unit.part, unit.changes)).collect()
        }
        woodchuck::log::Body::Piece { index, count, .. } => format!("{index} of {count}"),
    }
}

/// Everything in a database, read with SQL.
pub fn rows(connection: &Connection, rules: &Rules) -> Db {
    let mut db = Db::new();
    for table in &rules.schema.tables {
        let table = rules.catalogue.table(table.name).unwrap();
        let found = oracle::rows(connection, table);
        db.extend(found.into_iter().map(|(key, row)| ((table.name.clone(), key), row)));
    }
    db
}
