//! What following a database costs: the application that writes to it, and the follower, in a small database and in a large one.
//!
//! The follower of the first part is a process of its own, as the daemon is: this program started again with `--follow`.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::{Connection, params};
use woodchuck::capture::{Follower, HANDOVER_INTERVAL, IDLE_INTERVAL, WakeUps};

use support::random::Random;
use support::{Counter, Extent, Series, Target, figure, ratio, section, timed};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, path] = arguments.as_slice()
        && flag == "--follow"
    {
        return follow(Path::new(path));
    }
    let extent = Extent::from_args();
    throughput("1 row per transaction", 1, extent.pick(3_000, 8_000), extent);
    throughput("1 000 rows per transaction", 1_000, extent.pick(50, 100), extent);
    database_size(extent);
}

/// Follows until its standard input ends, then says how many changes it saw.
fn follow(path: &Path) {
    let mut follower = Follower::attach(path).unwrap();
    let wake_ups = WakeUps::new(follower.file()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stopped.store(true, Ordering::Relaxed);
    });
    println!("ready");
    let mut counter = Counter::default();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let polled = follower.poll(&mut counter).unwrap();
        follower.maintain(&mut counter).unwrap();
        if !polled.more {
            if stopping {
                break;
            }
            wake_ups.wait(if follower.is_resting() { IDLE_INTERVAL } else { HANDOVER_INTERVAL });
        }
    }
    follower.detach().unwrap();
    println!("{}", counter.changes);
}

/// A follower in another process.
struct Attached {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Attached {
    fn to(path: &Path) -> Attached {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--follow")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "the follower attaches");
        Attached { child, lines }
    }

    /// Ends it; returns the changes that it saw.
    fn end(mut self) -> u64 {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        self.child.wait().unwrap();
        line.trim().parse().unwrap()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Watcher {
    Nobody,
    Follower,
    Triggers,
}

const TRIGGERS: &str = "
    CREATE TABLE change_log(id INTEGER PRIMARY KEY, op TEXT, row INTEGER, old_name TEXT, old_amount REAL, name TEXT, amount REAL);
    CREATE TRIGGER t_insert AFTER INSERT ON t BEGIN
      INSERT INTO change_log(op, row, name, amount) VALUES ('insert', new.id, new.name, new.amount); END;
    CREATE TRIGGER t_update AFTER UPDATE ON t BEGIN
      INSERT INTO change_log(op, row, old_name, old_amount, name, amount)
      VALUES ('update', new.id, old.name, old.amount, new.name, new.amount); END;
    CREATE TRIGGER t_delete AFTER DELETE ON t BEGIN
      INSERT INTO change_log(op, row, old_name, old_amount) VALUES ('delete', old.id, old.name, old.amount); END;";

/// Rows per second that the application writes.
fn write(watcher: Watcher, rows_per_tx: u64, transactions: u64) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
             CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, amount REAL, note TEXT); CREATE INDEX t_name ON t(name);",
        )
        .unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    if watcher == Watcher::Triggers {
        connection.execute_batch(TRIGGERS).unwrap();
    }
    let attached = (watcher == Watcher::Follower).then(|| Attached::to(&path));
    let mut insert = connection.prepare("INSERT INTO t(name, amount, note) VALUES (?1, ?2, ?3)").unwrap();
    let mut update = connection.prepare("UPDATE t SET amount = amount + 1 WHERE id = ?1").unwrap();
    let mut begin = connection.prepare("BEGIN IMMEDIATE").unwrap();
    let mut commit = connection.prepare("COMMIT").unwrap();
    let mut random = Random::new(1);
    let (time, ()) = timed(|| {
        for tx in 0..transactions {
            begin.execute([]).unwrap();
            for row in 0..rows_per_tx {
                if tx % 2 == 0 {
                    let name = format!("name {}", random.next());
                    insert.execute(params![name, row as f64, "a note of ordinary length in the last field"]).unwrap();
                } else {
                    let last = (tx / 2 + 1) * rows_per_tx;
                    update.execute([random.below(last) as i64 + 1]).unwrap();
                }
            }
            commit.execute([]).unwrap();
        }
    });
    if let Some(attached) = attached {
        let seen = attached.end();
        assert!(seen >= transactions / 2 * rows_per_tx, "the follower saw the inserted rows: {seen}");
    }
    (transactions * rows_per_tx) as f64 / time.as_secs_f64()
}

fn throughput(what: &str, rows_per_tx: u64, transactions: u64, extent: Extent) {
    let mut alone = Series::default();
    let (mut followed, mut triggered) = (Series::default(), Series::default());
    let (mut followed_ratio, mut triggered_ratio) = (Series::default(), Series::default());
    write(Watcher::Nobody, rows_per_tx, transactions / 4);
    for _ in 0..extent.pick(3, 5) {
        // Before and after, so that a machine that slows down is not taken for our doing.
        let first = write(Watcher::Nobody, rows_per_tx, transactions);
        let with_us = write(Watcher::Follower, rows_per_tx, transactions);
        let with_triggers = write(Watcher::Triggers, rows_per_tx, transactions);
        let last = write(Watcher::Nobody, rows_per_tx, transactions);
        let without = (first + last) / 2.0;
        alone.push(without);
        followed.push(with_us);
        triggered.push(with_triggers);
        followed_ratio.push(with_us / without);
        triggered_ratio.push(with_triggers / without);
    }
    section(&format!("capture: what the application writes, {what}"));
    figure("followed by nobody", "rows/s", &alone);
    figure("followed by a process of ours", "rows/s", &followed);
    figure("with row triggers into a log table", "rows/s", &triggered);
    ratio("followed against alone", &followed_ratio, Target::AtLeast(0.97));
    ratio("row triggers against alone", &triggered_ratio, Target::None);
}

/// Rows of the table whose size differs: about four on a page.
const ROW_BYTES: u64 = 950;

fn create(path: &Path, bytes: u64) -> u64 {
    let connection = Connection::open(path).unwrap();
    let rows = (bytes / 1024).max(4);
    connection
        .execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, n INT, v BLOB)")
        .unwrap();
    connection
        .execute(
            "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?1)
             INSERT INTO t SELECT i, 0, zeroblob(?2) FROM s",
            [rows as i64, ROW_BYTES as i64],
        )
        .unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    rows
}

/// A database with its follower in this process: the time of each look is what is measured.
struct Followed {
    connection: Connection,
    follower: Follower,
    rows: u64,
    random: Random,
}

impl Followed {
    fn new(path: &Path, bytes: u64) -> Followed {
        let rows = create(path, bytes);
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
        Followed { connection, follower: Follower::attach(path).unwrap(), rows, random: Random::new(1) }
    }

    /// Writes transactions of one updated row, `per_look` between two looks. Microseconds per transaction that the looks took.
    fn look(&mut self, looks: u64, per_look: u64) -> f64 {
        let mut time = Duration::ZERO;
        let mut counter = Counter::default();
        for _ in 0..looks {
            for _ in 0..per_look {
                let id = self.random.below(self.rows) as i64 + 1;
                self.connection.prepare_cached("UPDATE t SET n = n + 1 WHERE id = ?1").unwrap().execute([id]).unwrap();
            }
            let (looked, polled) = timed(|| self.follower.poll(&mut counter).unwrap());
            assert_eq!(polled.transactions, per_look, "every transaction is seen");
            time += looked;
            self.follower.maintain(&mut counter).unwrap();
        }
        time.as_secs_f64() * 1e6 / (looks * per_look) as f64
    }
}

fn database_size(extent: Extent) {
    let large_mib = std::env::var("WOODCHUCK_BENCH_LARGE_MIB").ok().and_then(|text| text.parse().ok());
    let large_mib: u64 = large_mib.unwrap_or(extent.pick(128, 1024));
    let dir = tempfile::tempdir().unwrap();
    let mut small = Followed::new(&dir.path().join("small.db"), 1 << 20);
    let (building, mut large) = timed(|| Followed::new(&dir.path().join("large.db"), large_mib << 20));
    println!("\n(a database of {large_mib} MiB was made and attached to in {:.1} s)", building.as_secs_f64());
    for (what, looks, per_look) in
        [("one transaction a look", extent.pick(300, 1_500), 1), ("200 transactions a look", extent.pick(4, 12), 200)]
    {
        let (mut in_small, mut in_large, mut ratios) = (Series::default(), Series::default(), Series::default());
        small.look(looks / 4, per_look);
        large.look(looks / 4, per_look);
        for _ in 0..extent.pick(3, 9) {
            let (a, b) = (small.look(looks, per_look), large.look(looks, per_look));
            in_small.push(a);
            in_large.push(b);
            ratios.push(b / a);
        }
        section(&format!("capture: work per transaction, {what}"));
        figure("1 MiB database", "µs", &in_small);
        figure(&format!("{large_mib} MiB database"), "µs", &in_large);
        ratio(&format!("{large_mib} MiB against 1 MiB"), &ratios, Target::AtMost(1.2));
    }
}
