//! Nodes on real SQLite files against the fold as a specification: random writers, deliveries, duplicates, lost acknowledgements, crashes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use tempfile::TempDir;
use woodchuck::apply::{
    Arrived, Beforehand, FrozenState, LocalSink, Merge, Outcome, Replica, Route, SNAPSHOT_SCHEMA, SealLimits, State,
    open_applying_connection,
};
use woodchuck::change::{ChangeSink, Op, RowChange, RowKey, TxSpan};
use woodchuck::format::{FrameNo, Row, Salts, Value};
use woodchuck::log::{MESSAGE_BYTES_MAX, Origin, Routing, ShardId, Stand, StreamSeq, decode, shard_of};
use woodchuck::schema::Table;

use crate::support::model::{Db, Key, ModelTable, Schema, ShardLog, fold_unit};
use crate::support::random::Random;

/// Runs in the ordinary test; `WOODCHUCK_SEEDS` asks for more.
const SEEDS: u64 = 300;

/// Turns after which a cluster that was left alone must be at rest.
const SETTLE_TURNS_MAX: usize = 200;

struct Node {
    origin: Origin,
    state_path: PathBuf,
    app: Connection,
    conn: Connection,
    replica: Option<Replica>,
    /// Transactions that capture has not taken.
    wal: Vec<(Db, Db)>,
    now: Db,
    tx: u64,
    unit_bytes_max: usize,
    /// After a gap: where the log must be folded to again before the database shows no more than its fold.
    refold: BTreeMap<u16, StreamSeq>,
    gaps: u64,
}

/// The fold as one node had it.
struct Snapshot {
    path: PathBuf,
    stand: Stand,
    routing: Routing,
}

struct Cluster {
    _dir: TempDir,
    schema: Schema,
    tables: Vec<Arc<Table>>,
    shards: u16,
    logs: Vec<ShardLog>,
    nodes: Vec<Node>,
    rng: Random,
    limits: SealLimits,
    tag: i64,
    sent: Vec<(usize, usize)>,
    snapshots: Vec<Snapshot>,
    is_last_away: bool,
    stats: BTreeMap<&'static str, u64>,
}

fn route(shards: u16, table: &Table, key: Option<&[u8]>) -> ShardId {
    shard_of(&table.name, key, shards)
}

fn read(conn: &Connection, schema: &Schema) -> Db {
    let mut db = Db::new();
    for table in &schema.0 {
        let mut found =
            conn.prepare_cached(&format!("SELECT k, {} FROM {}", table.columns.join(", "), table.name)).unwrap();
        let mut rows = found.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (1..=table.columns.len()).map(|i| match row.get_ref(i).unwrap() {
                rusqlite::types::ValueRef::Null => Value::Null,
                rusqlite::types::ValueRef::Integer(v) => Value::Integer(v),
                other => panic!("{other:?}"),
            });
            db.insert((table.name.to_owned(), row.get(0).unwrap()), values.collect());
        }
    }
    db
}

fn with_key(key: &Key, row: &Row) -> Row {
    std::iter::once(Value::Text(key.1.clone().into_bytes())).chain(row.iter().cloned()).collect()
}

fn row_key(key: &Key) -> RowKey {
    RowKey::Columns(vec![Value::Text(key.1.clone().into_bytes())])
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let mut rng = Random::new(seed);
        let dir = crate::support::folder();
        let opaque = rng.chance(25);
        let plain = ModelTable { name: "f", columns: vec!["a", "b", "c"], uniques: vec![], opaque };
        let one = ModelTable { name: "u", columns: vec!["u", "b"], uniques: vec![vec![0]], opaque };
        let two = rng.pick(&[vec![vec![0], vec![1]], vec![vec![0, 1]], vec![vec![0], vec![0, 1]]]).clone();
        let two = ModelTable { name: "w", columns: vec!["u", "v", "b"], uniques: two, opaque };
        let choices = [
            vec![plain.clone()],
            vec![one.clone()],
            vec![two.clone()],
            vec![two.clone()],
            vec![plain.clone(), one.clone()],
            vec![plain.clone(), two.clone()],
            vec![plain, one, two],
        ];
        let schema = Schema(rng.pick(&choices).clone());
        let tables: Vec<Arc<Table>> = schema.0.iter().map(ModelTable::table).collect();
        let shards = *rng.pick(&[1, 1, 2, 3]);
        let mut genesis = Db::new();
        for table in &schema.0 {
            for k in 0..4 {
                let key = (table.name.to_owned(), format!("k{k}"));
                let row = new_row(&mut rng, table, 0);
                if rng.chance(60) && schema.holders(&genesis, &key, &row).is_empty() {
                    genesis.insert(key, row);
                }
            }
        }
        let shard_of_key = |key: &Key| {
            let table = tables.iter().find(|table| table.name == key.0).unwrap();
            let key = woodchuck::change::canonical_key(table, &row_key(key));
            route(shards, table, table.uniques.is_empty().then_some(&key))
        };
        let of_shard = |no| {
            genesis
                .iter()
                .filter(|(key, _)| shard_of_key(key).0 == no)
                .map(|(k, r)| (k.clone(), r.clone()))
                .collect::<Db>()
        };
        let logs = (1..=shards).map(|no| ShardLog::new(of_shard(no))).collect();
        let unit_bytes_max = *rng.pick(&[1, 200, 300, 1 << 18]);
        let limits = SealLimits {
            round_bytes_max: *rng.pick(&[1, 400, 1 << 20]),
            message_bytes_max: *rng.pick(&[1, 600, 1 << 20]),
            shard_messages_max: usize::MAX,
        };
        let count = *rng.pick(&[2, 2, 3, 4]);
        let mut cluster = Cluster {
            _dir: dir,
            schema,
            tables,
            shards,
            logs,
            nodes: Vec::new(),
            rng,
            limits,
            tag: 0,
            sent: Vec::new(),
            snapshots: Vec::new(),
            is_last_away: false,
            stats: BTreeMap::new(),
        };
        for no in 0..count {
            let node = cluster.node(no, &genesis, unit_bytes_max);
            cluster.nodes.push(node);
        }
        cluster.is_last_away = cluster.rng.chance(30);
        cluster
    }

    fn node(&self, no: u64, genesis: &Db, unit_bytes_max: usize) -> Node {
        let path = self._dir.path().join(format!("app{no}.db"));
        let app = Connection::open(&path).unwrap();
        app.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        app.pragma_update(None, "synchronous", "OFF").unwrap();
        app.pragma_update(None, "recursive_triggers", "ON").unwrap();
        for table in &self.schema.0 {
            app.execute_batch(&table.sql()).unwrap();
        }
        for (key, row) in genesis {
            insert(&app, "INSERT", key, row).unwrap();
        }
        let conn = open_applying_connection(&path).unwrap();
        let origin = Origin { node_id: no + 1, epoch: 7 + no };
        let state_path = self._dir.path().join(format!("state{no}.db"));
        let mut node = Node {
            origin,
            state_path,
            app,
            conn,
            replica: None,
            wal: Vec::new(),
            now: genesis.clone(),
            tx: 0,
            refold: BTreeMap::new(),
            gaps: 0,
            unit_bytes_max,
        };
        node.open(self.shards);
        node
    }

    fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }

    /// An application's transaction: what SQLite refuses is rolled back.
    fn app(&mut self, no: usize) {
        self.tag += 1;
        let tag = self.tag;
        let Cluster { nodes, rng, schema, .. } = self;
        let node = &mut nodes[no];
        node.app.execute_batch("BEGIN IMMEDIATE").unwrap();
        let statements = *rng.pick(&[1, 1, 1, 2, 2, 3, 4]);
        let done = (0..statements).all(|_| statement(&node.app, rng, schema, tag));
        node.app.execute_batch(if done { "COMMIT" } else { "ROLLBACK" }).unwrap();
        let after = read(&node.app, schema);
        if after != node.now {
            let before = std::mem::replace(&mut node.now, after.clone());
            node.wal.push((before, after));
            self.count("transactions");
        }
    }

    fn seal(&mut self, no: usize) {
        self.capture(no);
        let limits = self.limits;
        let sealed = self.nodes[no].replica().seal(limits).unwrap();
        *self.stats.entry("messages").or_default() += sealed.len() as u64;
    }

    /// The next message of a shard reaches the log; the acknowledgement may be lost.
    fn send(&mut self, no: usize, shard: u16, acknowledge: bool) {
        let replica = self.nodes[no].replica();
        let Some(next) = replica.in_flight().unwrap().into_iter().find(|message| message.shard.0 == shard) else {
            return;
        };
        let sealed = replica.sealed_message(next, false).unwrap();
        if acknowledge {
            replica.acknowledged(next.shard, next.batch_no).unwrap();
        }
        let batch = decode(&sealed.payload, MESSAGE_BYTES_MAX).unwrap();
        assert_eq!(batch.header, sealed.header);
        let index = usize::from(shard - 1);
        self.logs[index].push(batch, &self.schema);
        self.sent.push((index, self.logs[index].messages.len() - 1));
    }

    fn capture(&mut self, no: usize) {
        let tables = self.tables.clone();
        self.nodes[no].capture(&tables);
    }

    /// Whether a node reads the log. The last one of some clusters mostly does not, and falls behind.
    fn hears(&mut self, no: usize) -> bool {
        !self.is_last_away || no + 1 < self.nodes.len() || self.rng.chance(5)
    }

    /// Takes a snapshot of a node that has captured everything, and compares it with the specification.
    fn snapshot(&mut self, no: usize) {
        if self.nodes[no].replica.is_none() {
            return;
        }
        self.capture(no);
        let node = &self.nodes[no];
        node.replica.as_ref().unwrap().lay_out_base().unwrap();
        let frozen = FrozenState::open(&node.state_path).unwrap();
        if frozen.is_inside_pieces().unwrap() {
            return;
        }
        let path = self._dir.path().join(format!("snapshot{}.db", self.snapshots.len()));
        node.app.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
        let shards: Vec<ShardId> = (1..=self.shards).map(ShardId).collect();
        let (stand, routing) = (frozen.stand(&shards).unwrap(), frozen.routing());
        let copy = Connection::open(&path).unwrap();
        // The node goes on while its state is frozen.
        self.seal(no);
        let find = |name: &str| self.tables.iter().find(|table| table.name.eq_ignore_ascii_case(name)).cloned();
        frozen.put_base(&copy, &find).unwrap();
        let mut fold = Db::new();
        for (shard, log) in stand.values().zip(&self.logs) {
            fold.extend(log.fold(shard.seq.0 as usize).clone());
        }
        assert_eq!(read(&copy, &self.schema), fold, "a snapshot is the fold");
        self.snapshots.push(Snapshot { path, stand, routing });
        self.count("snapshots");
    }

    fn by_row(&self) -> Route {
        let shards = self.shards;
        Box::new(move |table, key| Some(route(shards, table, key)))
    }

    /// Catches up from some snapshot, whether it is ahead or not.
    fn catch_up(&mut self, no: usize, crash: Option<bool>) {
        if self.snapshots.is_empty() || self.nodes[no].replica.is_none() {
            return;
        }
        let count = self.snapshots.len() as u64;
        let index = if self.rng.chance(70) { count - 1 } else { self.rng.below(count) } as usize;
        let Snapshot { path, stand, routing } = &self.snapshots[index];
        let (path, stand, routing) = (path.clone(), stand.clone(), routing.clone());
        let tables = self.tables.clone();
        let find = |name: &str| tables.iter().find(|table| table.name.eq_ignore_ascii_case(name)).cloned();
        let by_row = self.by_row();
        let mut beforehand = None;
        if self.rng.chance(60) {
            let mut found = Beforehand::new(&path.with_extension("differs"), self.by_row()).unwrap();
            let theirs = read(&Connection::open(&path).unwrap(), &self.schema);
            let ours = read(&self.nodes[no].conn, &self.schema);
            changes(&tables, &ours, &theirs).into_iter().for_each(|change| found.change(change).unwrap());
            found.set_compared(tables.iter().map(|table| table.name.as_str()));
            beforehand = Some(found);
            // The application goes on until the write lock is taken.
            (0..self.rng.below(4)).for_each(|_| self.app(no));
        }
        let node = &mut self.nodes[no];
        node.conn.execute(&format!("ATTACH ?1 AS {SNAPSHOT_SCHEMA}"), [path.to_str().unwrap()]).unwrap();
        node.replica.as_mut().unwrap().begin(&node.conn).unwrap();
        node.capture(&tables);
        let ahead = stand.iter().any(|(shard, stand)| stand.seq > node.replica().state().position(*shard).unwrap());
        let to = (&stand, &routing, [].as_slice());
        node.replica.as_mut().unwrap().catch_up(&node.conn, &find, to, &by_row, beforehand.as_mut()).unwrap();
        node.commit(&self.schema, crash);
        node.conn.execute_batch(&format!("DETACH {SNAPSHOT_SCHEMA}")).unwrap();
        if ahead {
            self.count("catch-ups");
        }
    }

    fn apply(&mut self, no: usize, whole: bool, crash: Option<bool>) {
        self.nodes[no].conn.execute_batch("SELECT 1").unwrap();
        let tables = self.tables.clone();
        if self.nodes[no].replica().is_recovering() {
            // What is applied is known when it is known what became of an intent.
            self.capture(no);
        }
        let mut arrived = Vec::new();
        for shard in 1..=self.shards {
            let log = &self.logs[usize::from(shard - 1)];
            let from = self.nodes[no].replica().state().position(ShardId(shard)).unwrap().0 as usize;
            let to = if whole {
                log.messages.len()
            } else {
                from + self.rng.below((log.messages.len() - from + 1) as u64) as usize
            };
            let of_shard = (from..to).map(|i| Arrived {
                shard: ShardId(shard),
                seq: StreamSeq(i as u64 + 1),
                batch: log.messages[i].clone(),
            });
            arrived.push(of_shard.collect::<std::collections::VecDeque<_>>());
        }
        let mut mixed = Vec::new();
        while arrived.iter().any(|queue| !queue.is_empty()) {
            let shard = self.rng.below(arrived.len() as u64) as usize;
            mixed.extend(arrived[shard].pop_front());
        }
        // Own messages fold while local transactions wait to be captured, and while others may write.
        if crash.is_none() && self.fold_own(no, &mixed) {
            return;
        }
        {
            let node = &mut self.nodes[no];
            let Node { replica, conn, .. } = node;
            replica.as_mut().unwrap().begin(conn).unwrap();
        }
        self.capture(no);
        let find = |name: &str| tables.iter().find(|table| table.name.eq_ignore_ascii_case(name)).cloned();
        let Node { replica, conn, .. } = &mut self.nodes[no];
        let report = replica.as_mut().unwrap().fold(conn, &find, mixed.as_slice()).unwrap();
        assert!(report.blocked.is_empty(), "{report:?}");
        for (what, n) in [
            ("own units", report.counts.units_own),
            ("foreign units", report.counts.units_foreign),
            ("tables redone", report.counts.tables_redone),
            ("rows redone", report.counts.rows_redone),
            ("duplicates", report.counts.duplicates),
            ("conflicts", report.counts.conflicts),
        ] {
            *self.stats.entry(what).or_default() += n;
        }
        self.nodes[no].commit(&self.schema, crash);
    }

    fn fold_own(&mut self, no: usize, arrived: &[Arrived]) -> bool {
        let tables = self.tables.clone();
        let find = |name: &str| tables.iter().find(|table| table.name.eq_ignore_ascii_case(name)).cloned();
        let Node { replica, conn, .. } = &mut self.nodes[no];
        let replica = replica.as_mut().unwrap();
        let own = replica.state().origin();
        let Some(counts) = replica.fold_own(conn, &find, arrived).unwrap() else { return false };
        assert!(arrived.iter().all(|message| message.batch.header.origin == own));
        assert_eq!((counts.rows_inserted, counts.rows_updated, counts.rows_deleted), (0, 0, 0), "no row changes");
        *self.stats.entry("own units without lock").or_default() += counts.units_own;
        true
    }

    /// I1 and I2.
    fn check(&mut self, no: usize) {
        let Cluster { nodes, tables, schema, logs, shards, .. } = self;
        let node = &mut nodes[no];
        if node.replica.is_none() || !node.wal.is_empty() || node.replica().is_recovering() {
            return;
        }
        let mut db = read(&node.conn, schema);
        assert_eq!(db, node.now);
        let mut base = Vec::new();
        let find = |name: &str| tables.iter().find(|table| table.name.eq_ignore_ascii_case(name)).cloned();
        let each = |table: &Table, key: &RowKey, row: Option<&Row>| {
            let RowKey::Columns(key) = key else { panic!("tables have keys") };
            let Value::Text(key) = &key[0] else { panic!("keys are text") };
            base.push((
                (table.name.clone(), String::from_utf8(key.clone()).unwrap()),
                row.map(|row| row[1..].to_vec()),
            ));
            Ok(())
        };
        node.replica().each_base_row(&find, each).unwrap();
        base.iter().for_each(|(key, _)| drop(db.remove(key)));
        for (key, row) in base {
            if let Some(row) = row {
                db.insert(key, row);
            }
        }
        let mut fold = Db::new();
        for shard in 1..=*shards {
            let position = node.replica().state().position(ShardId(shard)).unwrap();
            fold.extend(logs[usize::from(shard - 1)].fold(position.0 as usize).clone());
        }
        assert_eq!(db, fold, "I1: the database with base in place is the fold");
        if node.is_refolding() {
            return;
        }
        node.replica()
            .state()
            .each_pending(|_, unit| {
                fold_unit(&mut db, unit, schema);
                Ok(())
            })
            .unwrap();
        assert_eq!(db, node.now, "I2: the database is pending over the fold");
    }

    fn settle(&mut self) {
        for _ in 0..SETTLE_TURNS_MAX {
            let mut busy = false;
            for no in 0..self.nodes.len() {
                self.restart(no);
                self.seal(no);
                while !self.nodes[no].replica().in_flight().unwrap().is_empty() {
                    busy = true;
                    (1..=self.shards).for_each(|shard| self.send(no, shard, true));
                }
            }
            for no in 0..self.nodes.len() {
                self.apply(no, true, None);
                self.check(no);
                busy |= self.nodes[no].replica().state().backlog().unwrap().units > 0;
            }
            if !busy {
                break;
            }
        }
        let mut fold = Db::new();
        self.logs.iter().for_each(|log| fold.extend(log.fold(log.messages.len()).clone()));
        let tables = self.tables.clone();
        let find = |name: &str| tables.iter().find(|table| table.name.eq_ignore_ascii_case(name)).cloned();
        for node in &mut self.nodes {
            assert_eq!(read(&node.app, &self.schema), fold, "every node is the fold");
            assert_eq!(node.replica().state().backlog().unwrap().units, 0);
            node.replica()
                .each_base_row(&find, |table, key, _| panic!("left in base: {} {key:?}", table.name))
                .unwrap();
        }
    }

    fn restart(&mut self, no: usize) {
        if self.nodes[no].replica.is_none() {
            self.nodes[no].open(self.shards);
        }
    }
}

impl Node {
    /// Ends what was folded. `crash`: the process dies before the user's commit (`false`) or behind it.
    fn commit(&mut self, schema: &Schema, crash: Option<bool>) {
        let Node { replica, conn, now, wal, .. } = self;
        let replica_now = replica.as_mut().unwrap();
        if crash == Some(false) {
            // The user's commit does not happen: the process dies between the intent and it.
            conn.commit_hook(Some(|| true)).unwrap();
        }
        let outcome = replica_now.commit(conn);
        conn.commit_hook(None::<fn() -> bool>).unwrap();
        if !conn.is_autocommit() {
            conn.execute_batch("ROLLBACK").unwrap();
        }
        let after = read(conn, schema);
        match (outcome, crash) {
            (Err(_), Some(false)) => *replica = None,
            (Ok(Outcome::Written), Some(true)) => {
                wal.push((now.clone(), after.clone()));
                *now = after;
                *replica = None;
            }
            (Ok(Outcome::Written), _) => {
                *now = after;
                replica_now.finish(Some(b"behind")).unwrap();
            }
            (Ok(Outcome::Unchanged), crash) => {
                assert_eq!(after, *now, "nothing was written");
                if crash.is_some() {
                    *replica = None;
                }
            }
            (Err(error), _) => panic!("{error:?}"),
        }
    }

    fn replica(&mut self) -> &mut Replica {
        self.replica.as_mut().unwrap()
    }

    fn open(&mut self, shards: u16) {
        let state = State::open(&self.state_path, "the database", self.origin).unwrap();
        assert_eq!(state.origin(), self.origin);
        let mut replica =
            Replica::new(state, Box::new(move |table, key| Some(route(shards, table, key))), Merge::Column).unwrap();
        replica.set_unit_bytes_max(self.unit_bytes_max);
        self.replica = Some(replica);
    }

    fn is_refolding(&mut self) -> bool {
        let refold = self.refold.clone();
        let state = self.replica().state();
        refold.iter().any(|(shard, until)| state.position(ShardId(*shard)).unwrap() < *until)
    }

    fn capture(&mut self, tables: &[Arc<Table>]) {
        let mut wal = std::mem::take(&mut self.wal);
        // After a gap everything comes as one transaction: that of the intent, if it was committed, and what came behind it.
        let is_gap = self.replica().is_recovering() && wal.len() > 1 && self.now.len().is_multiple_of(2);
        if is_gap {
            let (before, after) = (wal[0].0.clone(), wal[wal.len() - 1].1.clone());
            wal = vec![(before, after)];
            let state = self.replica().state();
            let of_intent: BTreeMap<_, _> =
                (1..=3).map(|shard| (shard, state.position(ShardId(shard)).unwrap())).collect();
            self.refold = of_intent;
            self.gaps += 1;
        }
        // The first may decide about an intent; the others are stored together.
        let mut waiting = wal.into_iter();
        let first = usize::from(self.replica().is_recovering());
        for together in [waiting.by_ref().take(first).collect::<Vec<_>>(), waiting.collect()] {
            let mut sink = self.replica.as_mut().unwrap().local_sink_grouped();
            for (before, after) in together {
                self.tx += 1;
                let span = TxSpan {
                    tx: self.tx,
                    salts: Salts([1; 8]),
                    frame_first: FrameNo(1),
                    frame_last: FrameNo(self.tx as u32),
                    repaired: is_gap,
                    checksum: woodchuck::format::Checksum::default(),
                    page_count: 0,
                };
                feed(&mut sink, &span, tables, &before, &after);
            }
            sink.settle().unwrap();
        }
        if self.replica().is_recovering() {
            self.replica().abandon_intent().unwrap();
        }
    }
}

/// What makes one version of all rows another.
fn changes(tables: &[Arc<Table>], before: &Db, after: &Db) -> Vec<RowChange> {
    let mut keys: Vec<&Key> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut changes = Vec::new();
    for key in keys {
        let (old, new) = (before.get(key), after.get(key));
        let op = match (old, new) {
            (None, Some(_)) => Op::Insert,
            (Some(_), None) => Op::Delete,
            (old, new) if old == new => continue,
            _ => Op::Update,
        };
        let table = Arc::clone(tables.iter().find(|table| table.name == key.0).unwrap());
        let image = |row: Option<&Row>| row.map(|row| with_key(key, row));
        changes.push(RowChange {
            table,
            op,
            key: row_key(key),
            rowid: Some(1),
            before: image(old),
            after: image(new),
            before_unknown: false,
        });
    }
    changes
}

fn feed(sink: &mut LocalSink<'_>, span: &TxSpan, tables: &[Arc<Table>], before: &Db, after: &Db) {
    sink.begin(span).unwrap();
    let changes = changes(tables, before, after);
    let count = changes.len() as u64;
    changes.into_iter().for_each(|change| sink.change(change).unwrap());
    sink.set_capture_position(&span.tx.to_be_bytes());
    sink.commit(span, count).unwrap();
}

fn new_row(rng: &mut Random, table: &ModelTable, tag: i64) -> Row {
    let is_unique = |column: usize| table.uniques.iter().flatten().any(|c| *c == column);
    (0..table.columns.len())
        .map(|column| match (is_unique(column), rng.pick(&[1, 1, 2, 2, 3, 4, 0])) {
            (false, _) => Value::Integer(100 + tag),
            (true, 0) => Value::Null,
            (true, value) => Value::Integer(*value),
        })
        .collect()
}

fn bound(value: &Value) -> rusqlite::types::Value {
    match value {
        Value::Integer(v) => rusqlite::types::Value::Integer(*v),
        Value::Text(v) => rusqlite::types::Value::Text(String::from_utf8(v.clone()).unwrap()),
        _ => rusqlite::types::Value::Null,
    }
}

fn insert(conn: &Connection, how: &str, key: &Key, row: &Row) -> rusqlite::Result<usize> {
    let places = (0..row.len()).map(|_| ", ?").collect::<String>();
    let values = with_key(key, row);
    conn.prepare_cached(&format!("{how} INTO {} VALUES(?{places})", key.0))?
        .execute(rusqlite::params_from_iter(values.iter().map(bound)))
}

/// One random statement; whether SQLite took it.
fn statement(conn: &Connection, rng: &mut Random, schema: &Schema, tag: i64) -> bool {
    let table = rng.pick(&schema.0);
    let name = table.name;
    let key = |rng: &mut Random| (name.to_owned(), format!("k{}", rng.below(4)));
    let (k, k2) = (key(rng), key(rng));
    let row = new_row(rng, table, tag);
    let column = rng.below(table.columns.len() as u64) as usize;
    let second = rng.below(table.columns.len() as u64) as usize;
    let columns = if rng.chance(25) && second != column { vec![column, second] } else { vec![column] };
    let update = |how: &str| {
        let set = columns.iter().map(|c| format!("{} = ?", table.columns[*c])).collect::<Vec<_>>().join(", ");
        let values = columns.iter().map(|c| bound(&row[*c])).chain([bound(&Value::Text(k.1.clone().into_bytes()))]);
        conn.prepare_cached(&format!("{how} {name} SET {set} WHERE k = ?"))?.execute(rusqlite::params_from_iter(values))
    };
    let swap = || {
        let c = table.columns[column];
        let get = |k: &str| {
            conn.query_row(&format!("SELECT {c} FROM {name} WHERE k = ?"), [k], |row| row.get::<_, Option<i64>>(0))
        };
        let (a, b) = (get(&k.1)?, get(&k2.1)?);
        for (k, value) in [(&k, None), (&k2, a), (&k, b)] {
            conn.execute(&format!("UPDATE {name} SET {c} = ? WHERE k = ?"), rusqlite::params![value, k.1])?;
        }
        Ok(1)
    };
    let done = match rng.below(100) {
        0..20 => insert(conn, "INSERT", &k, &row),
        20..32 => insert(conn, "INSERT OR REPLACE", &k, &row),
        32..60 => update("UPDATE"),
        60..70 => update("UPDATE OR REPLACE"),
        70..82 => conn.execute(&format!("DELETE FROM {name} WHERE k = ?"), [&k.1]),
        82..92 => swap(),
        _ => conn.execute(&format!("UPDATE {name} SET k = ? WHERE k = ?"), [&k2.1, &k.1]),
    };
    done.is_ok_and(|rows| rows > 0)
}

fn run(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut cluster = Cluster::new(seed);
    let steps = *cluster.rng.pick(&[15, 40, 40, 100]);
    for _ in 0..steps {
        let no = cluster.rng.below(cluster.nodes.len() as u64) as usize;
        let shard = 1 + cluster.rng.below(u64::from(cluster.shards)) as u16;
        let event = cluster.rng.below(100);
        if cluster.nodes[no].replica.is_none() && (event >= 30 || cluster.rng.chance(50)) {
            cluster.restart(no);
        }
        if event < 30 {
            cluster.app(no);
        } else if event < 36 {
            cluster.capture(no);
        } else if event < 48 {
            cluster.seal(no);
        } else if event < 66 {
            cluster.send(no, shard, true);
        } else if event < 70 {
            cluster.send(no, shard, false);
        } else if event < 73 {
            if !cluster.sent.is_empty() {
                let (log, index) = *cluster.rng.pick(&cluster.sent);
                let again = cluster.logs[log].messages[index].clone();
                cluster.logs[log].push(again, &cluster.schema);
            }
        } else if event < 90 && cluster.hears(no) {
            let whole = cluster.rng.chance(50);
            cluster.apply(no, whole, None);
        } else if event < 95 && cluster.hears(no) {
            let (whole, after) = (cluster.rng.chance(50), cluster.rng.chance(60));
            cluster.apply(no, whole, Some(after));
            cluster.count("crashes");
        } else if (95..97).contains(&event) {
            cluster.snapshot(no);
        } else if (97..99).contains(&event) || event < 95 {
            let other = cluster.rng.below(cluster.nodes.len() as u64) as usize;
            if other != no && cluster.nodes[other].replica.is_some() {
                cluster.apply(other, true, None);
                cluster.snapshot(other);
            }
            let crash = cluster.rng.chance(20).then(|| cluster.rng.chance(50));
            cluster.catch_up(no, crash);
        } else {
            cluster.nodes[no].replica = None;
        }
        cluster.check(no);
    }
    cluster.settle();
    let gaps = cluster.nodes.iter().map(|node| node.gaps).sum();
    cluster.stats.insert("gaps behind an intent", gaps);
    cluster.stats
}

#[test]
fn nodes_on_sqlite_agree_with_the_fold_after_every_step() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let count = std::env::var("WOODCHUCK_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(SEEDS);
    let seeds = first.map_or(0..count, |seed| seed..seed + 1);
    let mut stats: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        match result {
            Ok(run) => run.into_iter().for_each(|(what, n)| *stats.entry(what).or_default() += n),
            Err(cause) => {
                eprintln!("SEED={seed}");
                std::panic::resume_unwind(cause);
            }
        }
    }
    eprintln!("{stats:?}");
    if first.is_none() {
        for what in ["crashes", "duplicates", "tables redone", "rows redone", "conflicts", "snapshots", "catch-ups"] {
            assert!(stats.get(what).copied().unwrap_or(0) > 0, "the runs must meet {what}: {stats:?}");
        }
    }
}
