//! Decode and diff on one core, against the rate at which SQLite writes the same transactions.
//!
//! SQLite writes with prepared statements, `synchronous = OFF`, and no checkpoint within the measured time: the fastest that it can be, and
//! so the hardest to keep up with. The log that it wrote is then taken through the differ, from frame headers to row changes.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use std::path::Path;

use rusqlite::{Connection, params};

use support::random::Random;
use support::wal::Recording;
use support::{Counter, Extent, Series, Target, figure, ratio, section, timed};

/// One shape of transactions.
struct Workload {
    name: &'static str,
    schema: &'static str,
    /// Rows in the table before.
    rows: u64,
    rows_per_tx: u64,
    change: Change,
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Insert,
    Update,
    Delete,
}

const PLAIN: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, amount REAL, note TEXT);";
const INDEXED: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, amount REAL, note TEXT);
                       CREATE INDEX t_name ON t(name); CREATE INDEX t_amount ON t(amount);";
const KEYED: &str = "CREATE TABLE t(id INT, name TEXT PRIMARY KEY, amount REAL, note TEXT);";
const WITHOUT_ROWID: &str = "CREATE TABLE t(id INT, name TEXT PRIMARY KEY, amount REAL, note TEXT) WITHOUT ROWID;";

const NOTE: &str = "a note of ordinary length, such as people write into the last field of a form";

fn name(id: u64) -> String {
    format!("name-{:016x}", Random::new(id).next())
}

fn insert(connection: &Connection, ids: impl Iterator<Item = u64>) {
    let mut insert = connection.prepare_cached("INSERT INTO t VALUES (?1, ?2, ?3, ?4)").unwrap();
    for id in ids {
        insert.execute(params![id as i64, name(id), id as f64 * 0.25, NOTE]).unwrap();
    }
}

impl Workload {
    fn by_key(&self) -> bool {
        self.schema == KEYED || self.schema == WITHOUT_ROWID
    }

    fn open(&self, path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0")
            .unwrap();
        connection
    }

    fn create(&self, path: &Path) {
        let connection = self.open(path);
        connection.execute_batch(self.schema).unwrap();
        connection.execute_batch("BEGIN").unwrap();
        insert(&connection, 0..self.rows);
        connection.execute_batch("COMMIT").unwrap();
    }

    fn write(&self, connection: &Connection, transactions: u64) {
        let mut random = Random::new(1);
        for tx in 0..transactions {
            let first = self.rows + tx * self.rows_per_tx;
            if self.rows_per_tx > 1 {
                connection.prepare_cached("BEGIN").unwrap().execute([]).unwrap();
            }
            match self.change {
                Change::Insert => insert(connection, first..first + self.rows_per_tx),
                Change::Update if self.by_key() => {
                    let mut update =
                        connection.prepare_cached("UPDATE t SET amount = amount + 1 WHERE name = ?1").unwrap();
                    for _ in 0..self.rows_per_tx {
                        update.execute([name(random.below(self.rows))]).unwrap();
                    }
                }
                Change::Update => {
                    let mut update =
                        connection.prepare_cached("UPDATE t SET amount = amount + 1 WHERE id = ?1").unwrap();
                    for _ in 0..self.rows_per_tx {
                        update.execute([random.below(self.rows) as i64]).unwrap();
                    }
                }
                Change::Delete => {
                    let mut delete = connection.prepare_cached("DELETE FROM t WHERE id = ?1").unwrap();
                    for id in tx * self.rows_per_tx..(tx + 1) * self.rows_per_tx {
                        delete.execute([id as i64]).unwrap();
                    }
                }
            }
            if self.rows_per_tx > 1 {
                connection.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
            }
        }
    }
}

fn main() {
    let extent = Extent::from_args();
    let workload = |name, schema, rows, rows_per_tx, change| Workload { name, schema, rows, rows_per_tx, change };
    let workloads = [
        workload("insert, 1 row per transaction", PLAIN, 100_000, 1, Change::Insert),
        workload("insert, 1 row, two indexes", INDEXED, 100_000, 1, Change::Insert),
        workload("update, 1 random row", PLAIN, 100_000, 1, Change::Update),
        workload("update, 1 random row, text key", KEYED, 100_000, 1, Change::Update),
        workload("update, 1 random row, WITHOUT ROWID", WITHOUT_ROWID, 100_000, 1, Change::Update),
        workload("insert, 10 000 rows per transaction", PLAIN, 100_000, 10_000, Change::Insert),
        workload("insert, 10 000 rows, two indexes", INDEXED, 100_000, 10_000, Change::Insert),
        workload("insert, 10 000 rows, text key", KEYED, 100_000, 10_000, Change::Insert),
        workload("insert, 10 000 rows, WITHOUT ROWID", WITHOUT_ROWID, 100_000, 10_000, Change::Insert),
        workload("update, 10 000 random rows", PLAIN, 100_000, 10_000, Change::Update),
        workload("delete, 10 000 rows", PLAIN, 100_000, 10_000, Change::Delete),
    ];
    let only = std::env::var("WOODCHUCK_BENCH_ONLY").ok();
    for workload in &workloads {
        if only.as_ref().is_some_and(|only| !workload.name.contains(only.as_str())) {
            continue;
        }
        measure(workload, extent);
    }
}

fn measure(workload: &Workload, extent: Extent) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    workload.create(&path);
    let base = std::fs::read(&path).unwrap();
    let transactions = if workload.rows_per_tx == 1 { extent.pick(2_000, 10_000) } else { extent.pick(2, 8) };
    let rows = transactions * workload.rows_per_tx;
    let (mut written, mut diffed, mut ratios) = (Series::default(), Series::default(), Series::default());
    let mut bytes_per_row = 0.0;
    for _ in 0..extent.pick(2, 5) {
        std::fs::write(&path, &base).unwrap();
        let connection = workload.open(&path);
        connection.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        let (writing, ()) = timed(|| workload.write(&connection, transactions));
        let recording = Recording::read(base.clone(), &path);
        bytes_per_row = recording.wal_bytes() as f64 / rows as f64;
        drop(connection);
        let mut differ = recording.differ();
        let mut counter = Counter::default();
        let (diffing, ()) = timed(|| recording.replay(&mut differ, &mut counter));
        assert_eq!(counter.transactions, transactions, "every transaction is found");
        written.push(rows as f64 / writing.as_secs_f64());
        diffed.push(rows as f64 / diffing.as_secs_f64());
        ratios.push(writing.as_secs_f64() / diffing.as_secs_f64());
    }
    section(&format!("diff: {} ({bytes_per_row:.0} bytes of log per row)", workload.name));
    figure("SQLite writes", "rows/s", &written);
    figure("decode and diff", "rows/s", &diffed);
    ratio("decode and diff against SQLite", &ratios, Target::AtLeast(10.0));
}
