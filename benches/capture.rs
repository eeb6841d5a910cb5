//! What following a database costs: the application that writes to it, and the follower, in a small database and in a large one.
//!
//! The follower of the first part is a process of its own, as the daemon is: this program started again with `--follow`. Beside it stands the
//! daemon itself, `woodchuck run` with its shadow, its state and a server to publish to, where there is a nats-server.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use woodchuck::capture::{Follower, HANDOVER_INTERVAL, IDLE_INTERVAL, WakeUps};

use support::daemon::Daemon;
use support::nats::NatsServer;
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
    // A machine without a server is no failure of ours.
    std::panic::set_hook(Box::new(|_| {}));
    let has_server = std::panic::catch_unwind(NatsServer::start).is_ok();
    drop(std::panic::take_hook());
    let daemon = has_server.then_some(Watcher::Daemon);
    if daemon.is_none() {
        println!("\ncapture: no nats-server (scripts/nats-server fetches one): the daemon is not measured");
    }
    throughput("1 row per transaction", 1, extent.pick(3_000, 20_000), extent, daemon);
    throughput("1 000 rows per transaction", 1_000, extent.pick(50, 100), extent, daemon);
    at_a_pace(extent, daemon);
    database_size(extent);
}

/// Follows until its standard input ends, then says how many changes it saw.
fn follow(path: &Path) {
    let mut follower = Follower::attach(path).unwrap();
    let mut wake_ups = WakeUps::new(&follower).unwrap();
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
            let quiet = if follower.is_resting() { IDLE_INTERVAL } else { HANDOVER_INTERVAL };
            wake_ups.wait_after(&follower, quiet);
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

#[derive(Clone, Copy)]
enum Watcher {
    Nobody,
    Follower,
    Daemon,
    Triggers,
}

/// Who follows while something is written.
enum Following {
    Nobody,
    Follower(Attached),
    /// With a server of its own.
    Daemon(Daemon, NatsServer),
}

impl Following {
    fn begin(watcher: Watcher, path: &Path) -> Following {
        match watcher {
            Watcher::Nobody | Watcher::Triggers => Following::Nobody,
            Watcher::Follower => Following::Follower(Attached::to(path)),
            Watcher::Daemon => {
                let server = NatsServer::start();
                Following::Daemon(Daemon::start(path, 1, &server, &[]).unwrap(), server)
            }
        }
    }

    /// Ends it, after it has seen at least so many changes.
    fn end(self, changes: u64) {
        match self {
            Following::Nobody => {}
            Following::Follower(attached) => {
                let seen = attached.end();
                assert!(seen >= changes, "the follower saw the inserted rows: {seen}");
            }
            Following::Daemon(mut daemon, _server) => assert_eq!(daemon.ended(), None, "the daemon lives"),
        }
    }
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

/// An application's writing: rows per second, and microseconds of each transaction.
struct Written {
    rows_per_second: f64,
    transactions: Series,
}

/// Writes as an application does: as fast as it can, or so many transactions in a second.
fn write(watcher: Watcher, rows_per_tx: u64, transactions: u64, per_second: Option<f64>) -> Written {
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
    if let Watcher::Triggers = watcher {
        connection.execute_batch(TRIGGERS).unwrap();
    }
    let following = Following::begin(watcher, &path);
    let mut insert = connection.prepare("INSERT INTO t(name, amount, note) VALUES (?1, ?2, ?3)").unwrap();
    let mut update = connection.prepare("UPDATE t SET amount = amount + 1 WHERE id = ?1").unwrap();
    let mut begin = connection.prepare("BEGIN IMMEDIATE").unwrap();
    let mut commit = connection.prepare("COMMIT").unwrap();
    let mut random = Random::new(1);
    let mut each = Series::default();
    let (time, ()) = timed(|| {
        let began = Instant::now();
        for tx in 0..transactions {
            if let Some(per_second) = per_second {
                let due = began + Duration::from_secs_f64(tx as f64 / per_second);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let (took, ()) = timed(|| {
                begin.execute([]).unwrap();
                for row in 0..rows_per_tx {
                    if tx % 2 == 0 {
                        let name = format!("name {}", random.next());
                        let note = "a note of ordinary length in the last field";
                        insert.execute(params![name, row as f64, note]).unwrap();
                    } else {
                        let last = (tx / 2 + 1) * rows_per_tx;
                        update.execute([random.below(last) as i64 + 1]).unwrap();
                    }
                }
                commit.execute([]).unwrap();
            });
            each.push(took.as_secs_f64() * 1e6);
        }
    });
    following.end(transactions / 2 * rows_per_tx);
    Written { rows_per_second: (transactions * rows_per_tx) as f64 / time.as_secs_f64(), transactions: each }
}

fn throughput(what: &str, rows_per_tx: u64, transactions: u64, extent: Extent, daemon: Option<Watcher>) {
    let rate = |watcher| write(watcher, rows_per_tx, transactions, None).rows_per_second;
    let mut watchers = vec![("a process of ours", Watcher::Follower, Target::AtLeast(0.97))];
    watchers.extend(daemon.map(|daemon| ("the daemon", daemon, Target::AtLeast(0.97))));
    watchers.push(("row triggers into a log table", Watcher::Triggers, Target::None));
    let mut alone = Series::default();
    let mut rates = vec![(Series::default(), Series::default()); watchers.len()];
    rate(Watcher::Nobody);
    for _ in 0..extent.pick(3, 5) {
        // Before and after each, so that a machine that slows down is not taken for our doing.
        let mut before = rate(Watcher::Nobody);
        for ((_, watcher, _), (absolute, ratios)) in watchers.iter().zip(&mut rates) {
            let watched = rate(*watcher);
            let after = rate(Watcher::Nobody);
            alone.push(after);
            absolute.push(watched);
            ratios.push(watched / ((before + after) / 2.0));
            before = after;
        }
    }
    section(&format!("capture: what the application writes, {what}"));
    figure("alone", "rows/s", &alone);
    for ((what, _, target), (absolute, ratios)) in watchers.iter().zip(&rates) {
        figure(&format!("with {what}"), "rows/s", absolute);
        ratio(&format!("with {what}, against alone"), ratios, *target);
    }
}

/// Transactions in a second of an application that does not write as fast as it can.
const PACE: f64 = 2_000.0;

fn at_a_pace(extent: Extent, daemon: Option<Watcher>) {
    let mut watchers = vec![("alone", Watcher::Nobody), ("with a process of ours", Watcher::Follower)];
    watchers.extend(daemon.map(|daemon| ("with the daemon", daemon)));
    let mut figures = vec![[const { Series(Vec::new()) }; 3]; watchers.len()];
    for _ in 0..extent.pick(2, 5) {
        for ((_, watcher), [achieved, p50, p99]) in watchers.iter().zip(&mut figures) {
            let written = write(*watcher, 1, extent.pick(2_000, 4_000), Some(PACE));
            achieved.push(written.rows_per_second);
            p50.push(written.transactions.quantile(0.5));
            p99.push(written.transactions.quantile(0.99));
        }
    }
    section("capture: an application that commits 2 000 times a second");
    for ((what, _), [achieved, p50, p99]) in watchers.iter().zip(&figures) {
        figure(&format!("{what}: achieved"), "commits/s", achieved);
        figure(&format!("{what}: transaction, p50"), "µs", p50);
        figure(&format!("{what}: transaction, p99"), "µs", p99);
    }
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
            // On a busy machine one look can be cut short by its time.
            let (looked, seen) = timed(|| {
                let mut seen = 0;
                loop {
                    let polled = self.follower.poll(&mut counter).unwrap();
                    seen += polled.transactions;
                    if !polled.more {
                        return seen;
                    }
                }
            });
            assert_eq!(seen, per_look, "every transaction is seen");
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
