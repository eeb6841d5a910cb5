//! A snapshot of a large database on its way out, back in, and as what a node that fell behind catches up from.
//!
//! Leaving is measured against zstd alone on the same file, catching up against reading the database once.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rusqlite::{Connection, params};

use support::daemon::Daemon;
use support::nats::NatsServer;
use support::random::Random;
use support::{Extent, Series, Target, figure, ratio, section, timed};

/// As the snapshots have it.
const ZSTD_LEVEL: i32 = 3;
/// Few, so that a node falls behind soon.
const LOG_ENTRIES: &str = "4";
/// Rows that change while the other node is away: one in so many.
const CHANGED_ONE_IN: u64 = 100;
/// A transaction fits into half of the log.
const CHANGED_PER_TX: u64 = 2_000;
const ROW_BYTES: u64 = 256;

fn main() {
    let extent = Extent::from_args();
    // A machine without a server is no failure of ours.
    std::panic::set_hook(Box::new(|_| {}));
    let server = std::panic::catch_unwind(NatsServer::start);
    drop(std::panic::take_hook());
    let Ok(server) = server else {
        println!("\nsnapshots: no nats-server (scripts/nats-server fetches one): nothing was measured");
        return;
    };
    let mib = std::env::var("WOODCHUCK_BENCH_LARGE_MIB").ok().and_then(|text| text.parse().ok());
    let mib: u64 = mib.unwrap_or(extent.pick(128, 1024));
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.db"), dir.path().join("b.db"));
    let rows = (mib << 20) / ROW_BYTES;
    let writer = create(&a, rows);
    let options = ["--max-log-entries", LOG_ENTRIES];
    let (attaching, first) = timed(|| Daemon::start(&a, 1, &server, &options));
    let first = first.unwrap();
    let file_mib = std::fs::metadata(&a).unwrap().len() as f64 / (1 << 20) as f64;
    let speed = |time: Duration| Series(vec![file_mib / time.as_secs_f64()]);

    section(&format!("snapshot of a database of {file_mib:.0} MiB"));
    figure("first attach", "MiB/s", &speed(attaching));
    let (mut alone, mut leaving, mut ratios) = (Series::default(), Series::default(), Series::default());
    for _ in 0..extent.pick(1, 3) {
        let (zstd, _) =
            timed(|| zstd::stream::copy_encode(File::open(&a).unwrap(), std::io::sink(), ZSTD_LEVEL).unwrap());
        let (saving, ()) = timed(|| woodchuck(&["snapshot", "save", "--nats-url", &server.url()]));
        alone.push(file_mib / zstd.as_secs_f64());
        leaving.push(file_mib / saving.as_secs_f64());
        ratios.push(zstd.as_secs_f64() / saving.as_secs_f64());
    }
    figure("zstd alone, the same file and level", "MiB/s", &alone);
    figure("snapshot save, from asking to stored", "MiB/s", &leaving);
    ratio("leaving against zstd alone", &ratios, Target::AtLeast(0.5));
    let path = b.to_str().unwrap();
    let (restoring, ()) = timed(|| woodchuck(&["restore", "--nats-url", &server.url(), "--db-path", path]));
    figure("restore, with SQLite's integrity check", "MiB/s", &speed(restoring));

    let mut second = Daemon::start(&b, 2, &server, &options).unwrap();
    let (mut comparing, mut holding) = (Series::default(), Series::default());
    let (mut whole, mut held_out) = (Series::default(), Series::default());
    let mut random = Random::new(7);
    for _ in 0..extent.pick(1, 3) {
        second.stop();
        // Each transaction in a round of its own.
        let published = || woodchuck(&["wait", "--db-path", a.to_str().unwrap(), "--node", "1", "--timeout", "120s"]);
        let changed = change(&writer, rows, &mut random, published);
        woodchuck(&["snapshot", "save", "--nats-url", &server.url()]);
        let reading = timed(|| read_rows(&b)).0;
        second = Daemon::start(&b, 2, &server, &options).unwrap();
        second.wait_for_row(&b, "SELECT 1 FROM t WHERE id = ?1 AND note = ?2", changed).unwrap();
        let [compared, held] = second.caught_up_in().expect("it was too far behind for the log");
        comparing.push(compared.as_secs_f64());
        holding.push(held.as_secs_f64());
        whole.push((compared + held).as_secs_f64() / reading.as_secs_f64());
        held_out.push(held.as_secs_f64() / reading.as_secs_f64());
    }
    section(&format!("catching up from a snapshot, one row in {CHANGED_ONE_IN} changed"));
    figure("comparing, while others write", "s", &comparing);
    figure("others could not write for", "s", &holding);
    ratio("both, against SQLite reading every row once", &whole, Target::AtMost(3.0));
    ratio("the time that others could not write, against that", &held_out, Target::None);
    drop((first, second));
}

fn woodchuck(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_woodchuck")).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Words, so that it compresses about as well as what people write.
fn note(random: &mut Random) -> String {
    let mut text = String::with_capacity(ROW_BYTES as usize);
    while text.len() < ROW_BYTES as usize - 60 {
        let word = random.next();
        text.push_str(["order", "customer", "invoice", "paid", "open", "street", "note", "of"][(word % 8) as usize]);
        text.push_str(&format!("{:x} ", word >> 52));
    }
    text
}

fn create(path: &Path, rows: u64) -> Connection {
    let mut connection = Connection::open(path).unwrap();
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, amount REAL, note TEXT)";
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {schema}")).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    let mut random = Random::new(1);
    for first in (0..rows).step_by(100_000) {
        let transaction = connection.transaction().unwrap();
        let mut insert = transaction.prepare("INSERT INTO t VALUES(?1, ?2, ?3)").unwrap();
        for id in first..(first + 100_000).min(rows) {
            insert.execute(params![id as i64, id as f64 * 0.25, note(&mut random)]).unwrap();
        }
        drop(insert);
        transaction.commit().unwrap();
    }
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    connection
}

/// Changes rows all over the table; the last of them with what it was given.
fn change(connection: &Connection, rows: u64, random: &mut Random, each: impl Fn()) -> (i64, String) {
    let mut last = (0, String::new());
    let mut left = rows / CHANGED_ONE_IN;
    while left > 0 {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..left.min(CHANGED_PER_TX) {
            last = ((random.next() % rows) as i64, note(random));
            let update = "UPDATE t SET note = ?2 WHERE id = ?1";
            connection.prepare_cached(update).unwrap().execute(params![last.0, last.1]).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
        each();
        left = left.saturating_sub(CHANGED_PER_TX);
    }
    last
}

fn read_rows(path: &Path) {
    let connection = Connection::open(path).unwrap();
    let sql = "SELECT count(*), sum(length(note)), sum(amount) FROM t";
    let count: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    assert!(count > 0, "the table has rows");
}
