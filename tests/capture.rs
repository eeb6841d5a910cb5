//! Following a live database that other processes write.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use woodchuck::capture::{CheckpointOptions, FollowError, Follower, HANDOVER_INTERVAL, IDLE_INTERVAL, WakeUps};
use woodchuck::change::{ChangeSink, Op, RowChange, SchemaChange, TxSpan};
use woodchuck::format::Value;

fn writer(database: &Path, mode: &str, count: u64, seed: u64) -> Child {
    Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/writer.py"))
        .arg(database)
        .args([mode, &count.to_string(), &seed.to_string()])
        .spawn()
        .expect("python3 is needed as an outside writer")
}

/// Calls the follower as its owner would, until `done` says so and nothing is left to read.
fn follow(follower: &mut Follower, sink: &mut dyn ChangeSink<Infallible>, mut done: impl FnMut(&Follower) -> bool) {
    let mut wake_ups = WakeUps::new(follower).unwrap();
    loop {
        let finished = done(follower);
        let polled = match follower.poll(sink) {
            Ok(polled) => polled,
            Err(FollowError::Capture(error)) => panic!("{error}"),
            Err(FollowError::Sink(never)) => match never {},
        };
        follower.maintain(sink).map_err(|error| error.to_string()).unwrap();
        if finished && !polled.more && polled.commits == 0 {
            return;
        }
        if !polled.more {
            let quiet = if follower.is_resting() { IDLE_INTERVAL } else { HANDOVER_INTERVAL };
            wake_ups.wait_after(follower, quiet);
        }
    }
}

#[derive(Default)]
struct Ids {
    last: i64,
    transactions: u64,
}

impl ChangeSink<Infallible> for Ids {
    fn begin(&mut self, span: &TxSpan) -> Result<(), Infallible> {
        self.transactions += 1;
        assert_eq!(span.tx, self.transactions, "transactions are counted without gaps");
        Ok(())
    }
    fn schema(&mut self, change: SchemaChange) -> Result<(), Infallible> {
        panic!("{change:?}");
    }
    fn change(&mut self, change: RowChange) -> Result<(), Infallible> {
        assert_eq!(change.op, Op::Insert);
        let Some(Value::Integer(id)) = change.after.as_ref().map(|row| row[0].clone()) else { panic!("{change:?}") };
        assert_eq!(id, self.last + 1, "every commit is seen, in order, once");
        self.last = id;
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, changes: u64) -> Result<(), Infallible> {
        assert_eq!(changes, 1);
        Ok(())
    }
}

#[test]
fn every_commit_of_another_process_is_seen_once_and_the_wal_stays_bounded() {
    const COUNT: u64 = 57_200;
    const WAL_BYTES_MAX: u64 = 2 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let setup = Connection::open(&path).unwrap();
    setup.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);").unwrap();
    drop(setup);

    let mut follower = Follower::attach(&path).unwrap();
    follower.set_checkpoint_options(CheckpointOptions { wal_bytes_max: WAL_BYTES_MAX, ..CheckpointOptions::default() });
    let mut ids = Ids::default();
    let mut child = writer(&path, "insert", COUNT, 1);
    let began = std::time::Instant::now();
    let mut wal_bytes = 0;
    let mut generations = std::collections::HashSet::new();
    follow(&mut follower, &mut ids, |follower| {
        wal_bytes = wal_bytes.max(follower.wal_bytes());
        generations.insert(follower.position().salts);
        child.try_wait().unwrap().is_some_and(|status| {
            assert!(status.success(), "the application saw no error");
            true
        })
    });
    println!(
        "{COUNT} transactions in {:?}, {} generations, {} restarts of ours, largest WAL {} KiB",
        began.elapsed(),
        generations.len(),
        follower.restarts_prepared(),
        wal_bytes >> 10
    );
    assert_eq!(ids.last, COUNT as i64);
    // The writer, which syncs nothing, writes 230 MiB in two seconds. How far its log gets in between depends on how long the disk takes
    // for a checkpoint, but the log is begun anew again and again.
    assert!(
        follower.restarts_prepared() >= 5,
        "the log was made ready for a restart {} times",
        follower.restarts_prepared()
    );
    assert!(wal_bytes < 200 << 20, "the WAL grew to {wal_bytes} bytes");
    // In the end it is emptied, for nobody else has the database open.
    let wal = path.with_file_name("app.db-wal");
    follow(&mut follower, &mut ids, |_| std::fs::metadata(&wal).is_ok_and(|file| file.len() == 0));
}

struct Images {
    rows: HashMap<i64, i64>,
    updates: u64,
    transactions: u64,
}

impl ChangeSink<Infallible> for Images {
    fn begin(&mut self, _: &TxSpan) -> Result<(), Infallible> {
        self.transactions += 1;
        Ok(())
    }
    fn schema(&mut self, change: SchemaChange) -> Result<(), Infallible> {
        panic!("{change:?}");
    }
    fn change(&mut self, change: RowChange) -> Result<(), Infallible> {
        if change.table.name == "done" {
            return Ok(());
        }
        let number = |row: &Option<Vec<Value>>, index: usize| match row.as_ref().map(|row| &row[index]) {
            Some(Value::Integer(number)) => *number,
            other => panic!("{other:?}"),
        };
        assert_eq!(change.op, Op::Update);
        let id = number(&change.after, 0);
        let known = self.rows.insert(id, number(&change.after, 1));
        assert_eq!(known, Some(number(&change.before, 1)), "the image before is the image after of the last change");
        self.updates += 1;
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

#[test]
fn every_image_before_is_right_while_commits_and_checkpoints_of_others_race() {
    const WRITERS: u64 = 2;
    const COUNT: u64 = 50_000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let setup = Connection::open(&path).unwrap();
    setup
        .execute_batch(
            "PRAGMA page_size = 1024; PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, filler);
             CREATE TABLE done(writer);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO t SELECT i, 0, hex(randomblob(40)) FROM n; PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
    drop(setup);
    let mut follower = Follower::attach(&path).unwrap();
    let mut images = Images { rows: (1..=2000).map(|id| (id, 0)).collect(), updates: 0, transactions: 0 };
    let mut children: Vec<Child> = (0..WRITERS).map(|seed| writer(&path, "update", COUNT, seed)).collect();
    children.push(writer(&path, "checkpoint", WRITERS, 9));
    follow(&mut follower, &mut images, |_| {
        children.iter_mut().all(|child| {
            child.try_wait().unwrap().is_some_and(|status| {
                assert!(status.success(), "the application saw no error");
                true
            })
        })
    });
    println!("{} transactions, {} images before compared", images.transactions, images.updates);
    assert_eq!(images.transactions, WRITERS * (COUNT + 1));
    let check = Connection::open(&path).unwrap();
    let sum: i64 = check.query_row("SELECT sum(v) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(sum, images.rows.values().sum::<i64>());
}

/// Each notification of a write is paid by the writer, so there are none while frames pour in: a busy one took twice the time for them,
/// and the follower looks by the clock. When it is quiet again a single commit must still be seen at once.
#[test]
fn notifications_end_while_frames_pour_in_and_come_again_when_they_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let application = Connection::open(&path).unwrap();
    application
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)",
        )
        .unwrap();
    let mut follower = Follower::attach(&path).unwrap();
    let mut wake_ups = WakeUps::new(&follower).unwrap();
    let mut sink = Ids::default();
    let mut look = |follower: &mut Follower| while follower.poll(&mut sink).is_ok_and(|polled| polled.more) {};

    // A thousand frames each: whoever writes these slower than one in 200 ms does not pour.
    for _ in 0..50 {
        application.execute("INSERT INTO t(v) VALUES (randomblob(4000000))", []).unwrap();
        look(&mut follower);
        wake_ups.wait_after(&follower, IDLE_INTERVAL);
        if !wake_ups.is_watching() {
            break;
        }
    }
    assert!(!wake_ups.is_watching(), "nothing is told while frames pour in");

    while !wake_ups.is_watching() {
        look(&mut follower);
        wake_ups.wait_after(&follower, IDLE_INTERVAL);
    }
    look(&mut follower);
    while wake_ups.wait(HANDOVER_INTERVAL) {}
    application.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    assert!(wake_ups.wait(std::time::Duration::from_secs(10)), "a single commit wakes again");
    look(&mut follower);
    let written: i64 = application.query_row("SELECT max(id) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(sink.last, written, "everything was seen");
    follower.detach().unwrap();
}

/// Whoever writes to other files of the directory costs us a notification each time, and never lets the watcher come to an end.
#[test]
fn a_busy_directory_is_not_watched_and_nothing_is_missed_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let application = Connection::open(&path).unwrap();
    application.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    let mut follower = Follower::attach(&path).unwrap();
    let mut wake_ups = WakeUps::new(&follower).unwrap();
    let mut sink = Ids::default();
    let is_over = Arc::new(AtomicBool::new(false));
    let noise = std::thread::spawn({
        let (is_over, dir) = (Arc::clone(&is_over), dir.path().to_owned());
        move || {
            // Equal events in a row are one; those of two files in turn are not.
            let open = |name| std::fs::File::create(dir.join(name)).unwrap();
            let mut files = [open("one.log"), open("other.log")];
            while !is_over.load(Ordering::SeqCst) {
                files.iter_mut().for_each(|file| file.write_all(b".").unwrap());
            }
        }
    });
    let begin = Instant::now();
    let mut written = 0;
    while wake_ups.is_watching() || written < 50 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the directory is still watched");
        application.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
        written = application.last_insert_rowid();
        while sink.last < written {
            wake_ups.wait_after(&follower, IDLE_INTERVAL);
            while follower.poll(&mut sink).unwrap().more {}
        }
    }
    is_over.store(true, Ordering::SeqCst);
    noise.join().unwrap();
    while !wake_ups.is_watching() {
        wake_ups.wait_after(&follower, IDLE_INTERVAL);
    }
    application.execute("INSERT INTO t(v) VALUES (1)", []).unwrap();
    while sink.last <= written {
        assert!(wake_ups.wait_after(&follower, Duration::from_secs(10)), "it is watched again");
        while follower.poll(&mut sink).unwrap().more {}
    }
    follower.detach().unwrap();
}
