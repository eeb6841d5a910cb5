//! A database with its replica, captured by comparing what SQLite says before and after.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use tempfile::TempDir;
use woodchuck::apply::{
    ApplyError, Arrived, FoldReport, FrozenState, Merge, Outcome, Replica, Route, SNAPSHOT_SCHEMA, SealLimits, State,
    ToSend, open_applying_connection,
};
use woodchuck::change::{ChangeSink, Op, RowChange, TxSpan, row_key};
use woodchuck::format::{FrameNo, Row, Salts, Value};
use woodchuck::log::{Batch, MESSAGE_BYTES_MAX, Origin, Routing, ShardId, Stand, StreamSeq, decode, shard_of};
use woodchuck::schema::{Catalogue, Table};

use super::oracle::{Rows, catalogue, database, value_of};

pub const SHARDS: u16 = 4;

/// The shards' messages, in order.
#[derive(Default)]
pub struct Log(pub Vec<Vec<Batch>>);

impl Log {
    pub fn new() -> Log {
        Log(vec![Vec::new(); usize::from(SHARDS)])
    }
}

/// The fold as a peer has it.
pub struct Snapshot {
    _dir: TempDir,
    path: PathBuf,
    stand: Stand,
    pub routing: Routing,
    names: Vec<u8>,
}

/// A database with its replica, and capture by comparison.
pub struct Peer {
    /// Removed with the peer.
    _dir: TempDir,
    pub path: PathBuf,
    pub app: Connection,
    pub conn: Connection,
    pub replica: Replica,
    pub seen: BTreeMap<String, (Arc<Table>, Rows)>,
    tx: u64,
}

impl Peer {
    pub fn new(node_id: u64, sql: &str) -> Peer {
        Peer::with(node_id, sql, Merge::Column)
    }

    pub fn with(node_id: u64, sql: &str, merge: Merge) -> Peer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let app = Connection::open(&path).unwrap();
        let encoding = if sql.contains("utf16") { "UTF-16le" } else { "UTF-8" };
        app.pragma_update(None, "encoding", encoding).unwrap();
        app.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        app.execute_batch(sql).unwrap();
        Peer::over(dir, app, node_id, merge)
    }

    /// A peer that begins with a snapshot.
    pub fn begin_with(node_id: u64, snapshot: &Snapshot) -> Peer {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        std::fs::copy(&snapshot.path, &path).unwrap();
        let app = Connection::open(&path).unwrap();
        app.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        let to = (&snapshot.stand, &snapshot.routing, snapshot.names.as_slice());
        drop(State::create_at(&dir.path().join("state.db"), "app.db", to, b"here").unwrap());
        Peer::over(dir, app, node_id, Merge::Column)
    }

    fn over(dir: TempDir, app: Connection, node_id: u64, merge: Merge) -> Peer {
        let path = dir.path().join("app.db");
        let conn = open_applying_connection(&path).unwrap();
        let state = State::open(&dir.path().join("state.db"), "app.db", Origin { node_id, epoch: 1 }).unwrap();
        let replica = replica(state, merge);
        let seen = database(&app);
        Peer { _dir: dir, path, app, conn, replica, seen, tx: 0 }
    }

    pub fn sql(&mut self, sql: &str) -> &mut Peer {
        self.app.execute_batch(sql).unwrap();
        self.capture();
        self
    }

    /// Feeds the difference since the last look as one transaction.
    pub fn capture(&mut self) {
        self.capture_sealing(None);
    }

    /// As [`Peer::capture`]; with limits what it brings is sealed along, if it may be.
    pub fn capture_sealing(&mut self, limits: Option<SealLimits>) -> Vec<ToSend> {
        let now = database(&self.app);
        let before = std::mem::replace(&mut self.seen, now);
        let empty = Rows::new();
        self.tx += 1;
        let span = TxSpan {
            tx: self.tx,
            salts: Salts([3; 8]),
            frame_first: FrameNo(1),
            frame_last: FrameNo(2),
            repaired: false,
            checksum: woodchuck::format::Checksum::default(),
            page_count: 0,
        };
        let mut sink = match limits {
            Some(_) => self.replica.local_sink_grouped(),
            None => self.replica.local_sink(),
        };
        if let Some(limits) = limits {
            sink.seal_along(limits, false);
        }
        sink.begin(&span).unwrap();
        let mut changes = 0;
        for (name, (table, rows)) in &self.seen {
            let old_rows = before.get(name).map_or(&empty, |(_, rows)| rows);
            for key in old_rows.keys().chain(rows.keys().filter(|key| !old_rows.contains_key(*key))) {
                let (old, new) = (old_rows.get(key).cloned(), rows.get(key).cloned());
                let op = match (&old, &new) {
                    (None, Some(_)) => Op::Insert,
                    (Some(_), None) => Op::Delete,
                    (old, new) if old == new => continue,
                    _ => Op::Update,
                };
                changes += 1;
                let row: &Row = new.as_ref().or(old.as_ref()).unwrap();
                let rowid = rowid_of(table, key);
                let key = row_key(table, row, rowid);
                sink.change(RowChange {
                    table: Arc::clone(table),
                    op,
                    key,
                    rowid,
                    before: old,
                    after: new,
                    before_unknown: false,
                })
                .unwrap();
            }
        }
        sink.set_capture_position(b"here");
        sink.commit(&span, changes).unwrap();
        sink.store().unwrap();
        sink.take_sealed()
    }

    pub fn publish(&mut self, log: &mut Log) -> &mut Peer {
        self.publish_with(
            log,
            SealLimits { round_bytes_max: 1 << 20, message_bytes_max: 1 << 20, shard_messages_max: usize::MAX },
        )
    }

    pub fn publish_with(&mut self, log: &mut Log, limits: SealLimits) -> &mut Peer {
        while !self.replica.seal(limits).unwrap().is_empty() {
            for message in self.replica.in_flight().unwrap() {
                let sealed = self.replica.sealed_message(message, true).unwrap();
                log.0[usize::from(message.shard.0 - 1)].push(decode(&sealed.payload, MESSAGE_BYTES_MAX).unwrap());
                self.replica.acknowledged(message.shard, message.batch_no).unwrap();
            }
        }
        self
    }

    pub fn arrived(&self, log: &Log) -> Vec<Arrived> {
        let mut arrived = Vec::new();
        for (index, messages) in log.0.iter().enumerate() {
            let shard = ShardId(index as u16 + 1);
            let position = self.replica.state().position(shard).unwrap().0;
            let new = messages.iter().enumerate().skip(position as usize);
            arrived.extend(new.map(|(i, batch)| Arrived { shard, seq: StreamSeq(i as u64 + 1), batch: batch.clone() }));
        }
        arrived
    }

    pub fn apply(&mut self, log: &Log) -> FoldReport {
        let arrived = self.arrived(log);
        self.fold(&arrived).unwrap()
    }

    pub fn fold(&mut self, arrived: &[Arrived]) -> Result<FoldReport, ApplyError> {
        let tables = catalogue(&self.app);
        self.replica.begin(&self.conn).unwrap();
        let report = self.replica.fold(&self.conn, &look_up(&tables), arrived);
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                self.replica.rollback(&self.conn).unwrap();
                return Err(error);
            }
        };
        if self.replica.commit(&self.conn)? == Outcome::Written {
            self.replica.finish(Some(b"behind")).unwrap();
        }
        self.seen = database(&self.app);
        Ok(report)
    }

    pub fn snapshot(&self) -> Snapshot {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot.db");
        self.replica.lay_out_base().unwrap();
        let frozen = FrozenState::open(&self._dir.path().join("state.db")).unwrap();
        self.app.execute("VACUUM INTO ?1", [path.to_str().unwrap()]).unwrap();
        let copy = Connection::open(&path).unwrap();
        frozen.put_base(&copy, &look_up(&catalogue(&self.app))).unwrap();
        let shards: Vec<ShardId> = (1..=SHARDS).map(ShardId).collect();
        Snapshot {
            _dir: dir,
            path,
            stand: frozen.stand(&shards).unwrap(),
            routing: frozen.routing(),
            names: frozen.names().unwrap(),
        }
    }

    pub fn catch_up(&mut self, snapshot: &Snapshot) {
        let attach = format!("ATTACH ?1 AS {SNAPSHOT_SCHEMA}");
        self.conn.execute(&attach, [snapshot.path.to_str().unwrap()]).unwrap();
        let tables = catalogue(&self.app);
        self.replica.begin(&self.conn).unwrap();
        let to = (&snapshot.stand, &snapshot.routing, snapshot.names.as_slice());
        self.replica.catch_up(&self.conn, &look_up(&tables), to, &route(), None).unwrap();
        if self.replica.commit(&self.conn).unwrap() == Outcome::Written {
            self.replica.finish(Some(b"behind")).unwrap();
        }
        self.conn.execute_batch(&format!("DETACH {SNAPSHOT_SCHEMA}")).unwrap();
        self.seen = database(&self.app);
    }

    pub fn text(&self, sql: &str) -> String {
        let mut found = self.app.prepare(sql).unwrap();
        let columns = found.column_count();
        let mut rows = found.query([]).unwrap();
        let mut out = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|i| match value_of(row.get_ref(i).unwrap()) {
                Value::Null => "NULL".to_owned(),
                Value::Integer(v) => v.to_string(),
                Value::Real(v) => format!("{v:?}"),
                Value::Text(v) => format!("'{}'", String::from_utf8_lossy(&v)),
                Value::Blob(v) => format!("x{v:?}"),
            });
            out.push(values.collect::<Vec<_>>().join(" "));
        }
        out.join("; ")
    }
}

fn route() -> Route {
    Box::new(|table: &Table, key: Option<&[u8]>| {
        let routed = !table.name.starts_with("private");
        routed.then(|| shard_of(&table.name, key, SHARDS))
    })
}

pub fn replica(state: State, merge: Merge) -> Replica {
    Replica::new(state, route(), merge).unwrap()
}

pub fn look_up(tables: &Catalogue) -> impl Fn(&str) -> Option<Arc<Table>> {
    |name| tables.table(name).cloned()
}

pub fn rowid_of(table: &Table, canonical: &[u8]) -> Option<i64> {
    if table.without_rowid {
        return None;
    }
    // Canonical keys of rowids are `r` and the number; for other rows the number does not matter here.
    let rowid = canonical.strip_prefix(b"r").and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
    Some(rowid.unwrap_or(1))
}
