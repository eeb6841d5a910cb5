//! Following a WAL by its bytes alone: what is shown is what happened, and where something may be missing it is said.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::random::Random;

/// How long a line is waited for.
const WITHIN: Duration = Duration::from_secs(20);

struct Raw {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Raw {
    fn start(args: &[&str]) -> Raw {
        let mut child = Command::new(env!("CARGO_BIN_EXE_woodchuck"))
            .args(args)
            .args(["--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines() {
                if send.send(serde_json::from_str(&line.unwrap()).unwrap()).is_err() {
                    return;
                }
            }
        });
        Raw { child, lines }
    }

    /// Lines up to one that is as wanted.
    fn until(&self, is_wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut found = Vec::new();
        loop {
            let line = self.lines.recv_timeout(WITHIN).unwrap_or_else(|_| panic!("after {found:#?}"));
            let is_last = is_wanted(&line);
            found.push(line);
            if is_last {
                return found;
            }
        }
    }

    /// The rows up to the `n`th commit from here.
    fn rows(&self, commits: usize) -> Vec<Value> {
        let mut rows = Vec::new();
        for _ in 0..commits {
            rows.extend(self.until(|line| line["op"] == "commit"));
        }
        rows
    }

    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

fn database(dir: &Path, sql: &str) -> (PathBuf, Connection) {
    let path = dir.join("app.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").unwrap();
    connection.execute_batch(sql).unwrap();
    (path, connection)
}

fn ops(lines: &[Value]) -> Vec<(String, Value, Value)> {
    let rows = lines.iter().filter(|line| line["table"].is_string());
    rows.map(|line| (line["op"].as_str().unwrap().to_owned(), line["before"]["v"].clone(), line["after"]["v"].clone()))
        .collect()
}

/// Nobody else can even read such a database; its log is a file like any other.
#[test]
fn an_application_that_holds_its_database_alone_can_be_watched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let application = Connection::open(&path).unwrap();
    application.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 'one')").unwrap();
    assert!(!dir.path().join("app.db-shm").exists(), "it holds its database alone");
    let from_start = Raw::start(&["inspect", path.to_str().unwrap(), "--follow"]);
    assert_eq!(ops(&from_start.rows(2)), [("insert".to_owned(), Value::Null, json!("one"))]);
    application
        .execute_batch("UPDATE t SET v = 'two'; INSERT INTO t VALUES(2, 'new'); DELETE FROM t WHERE id = 1")
        .unwrap();
    let wanted = [
        ("update".to_owned(), json!("one"), json!("two")),
        ("insert".to_owned(), Value::Null, json!("new")),
        ("delete".to_owned(), json!("two"), Value::Null),
    ];
    assert_eq!(ops(&from_start.rows(3)), wanted);
    from_start.end();
    application.execute_batch("PRAGMA integrity_check; UPDATE t SET v = 'goes on'").unwrap();
    let said = Command::new(env!("CARGO_BIN_EXE_woodchuck")).arg("tail").arg(&path).output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("tail --raw"), "{said:?}");
}

/// The log begins anew, loses its name with the last connection, and comes back: what was read to its end is not missing.
#[test]
fn a_log_that_begins_anew_is_followed_on() {
    let dir = tempfile::tempdir().unwrap();
    let (path, mut application) = database(dir.path(), "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let raw = Raw::start(&["inspect", path.to_str().unwrap(), "--follow"]);
    raw.rows(1);
    for round in 0..6 {
        application.execute("INSERT INTO t VALUES(?1, 'new')", [round]).unwrap();
        application.execute("UPDATE t SET v = ?1", [round]).unwrap();
        // The next generation leaves the end of this one standing. (Where it reaches as far, the log may have been cut off and have grown again.)
        let more = if round % 3 == 0 { 2 } else { 0 };
        for _ in 0..more {
            application.execute("UPDATE t SET v = v + 1", []).unwrap();
        }
        let rows = raw.rows(2 + more);
        assert!(rows.iter().all(|line| line["op"] != "gap" && line["before_unknown"] != true), "{rows:#?}");
        assert_eq!(ops(&rows).len(), 2 + round as usize + more * (round as usize + 1), "{rows:#?}");
        match round % 3 {
            0 => application.execute_batch("PRAGMA wal_checkpoint(RESTART)").unwrap(),
            1 => {}
            _ => {
                drop(application);
                assert!(!dir.path().join("app.db-wal").exists());
                application = Connection::open(&path).unwrap();
                application.execute_batch("PRAGMA wal_autocheckpoint = 0").unwrap();
            }
        }
    }
    raw.end();
}

/// An application that does all of it at once: rows are right, each is shown once, and where one is missing a gap is said.
#[test]
fn nothing_is_missing_without_a_word() {
    for seed in 1..5 {
        let dir = tempfile::tempdir().unwrap();
        let (path, application) =
            database(dir.path(), "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE end(v)");
        let mut random = Random::new(seed);
        let raw = Raw::start(&["tail", path.to_str().unwrap(), "--raw"]);
        // What comes before it has attached is not shown: until it shows something.
        let mut first = 0;
        loop {
            application.execute("INSERT INTO t VALUES(?1, 0)", [first]).unwrap();
            first += 1;
            if raw.lines.recv_timeout(Duration::from_millis(20)).is_ok() {
                break;
            }
        }
        let count = 400;
        for id in 1000..1000 + count {
            application.execute("INSERT INTO t VALUES(?1, hex(randomblob(40)))", [id]).unwrap();
            match random.below(40) {
                0 => application.execute_batch("PRAGMA wal_checkpoint(RESTART)").unwrap(),
                1 => application.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap(),
                2 => application.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap(),
                _ => {}
            }
        }
        application.execute_batch("INSERT INTO end VALUES('end')").unwrap();
        let lines = raw.until(|line| line["table"] == "end" && line["op"] == "insert");
        let seen: Vec<i64> = lines
            .iter()
            .filter(|line| line["table"] == "t" && line["op"] == "insert" && line["before_unknown"] != true)
            .filter_map(|line| line["after"]["id"].as_i64())
            .filter(|id| *id >= 1000)
            .collect();
        let gaps = lines.iter().filter(|line| line["op"] == "gap").count();
        assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]), "SEED={seed} {seen:?}");
        let unknown: Vec<i64> = lines
            .iter()
            .filter(|line| line["before_unknown"] == true)
            .filter_map(|line| line["after"]["id"].as_i64())
            .collect();
        let is_missing = |id: &i64| !seen.contains(id) && !unknown.contains(id);
        let missing: Vec<i64> = (1000..1000 + count).filter(is_missing).collect();
        assert!(missing.is_empty() || gaps > 0, "SEED={seed}: {missing:?} are missing without a word");
        raw.end();
    }
}

const CREATE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
/// With a cache of five pages most of it is written before the commit.
const SPILL: &str =
    "PRAGMA cache_size = 5; BEGIN; WITH RECURSIVE n(i) AS (VALUES(100) UNION ALL SELECT i + 1 FROM n WHERE i < 299)
                     INSERT INTO t SELECT i, printf('%1000d', i) FROM n";
/// How a transaction that has spilled can end so that its frames are written over.
const ENDS: [&str; 2] = ["UPDATE t SET v = v || 'y' WHERE id BETWEEN 100 AND 298; COMMIT", "ROLLBACK"];

/// Of a transaction larger than its cache SQLite writes frames before the commit, and writes over them when it changes a page again, or after
/// a rollback. The follower took the first version for the one that counts, and nothing that came later fitted its checksum.
#[test]
fn a_transaction_that_writes_over_its_spilled_frames_is_shown_and_so_is_what_follows() {
    for args in [&["tail", "--raw"][..], &["inspect", "--follow"]] {
        for (spilled, end) in [199, 0].into_iter().zip(ENDS) {
            let dir = tempfile::tempdir().unwrap();
            let (path, application) = database(dir.path(), CREATE);
            application.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            let raw = Raw::start(&[args, &[path.to_str().unwrap()]].concat());
            until_it_follows(&application, &raw);
            application.execute_batch(SPILL).unwrap();
            // Time for the frames to be looked at.
            std::thread::sleep(Duration::from_millis(200));
            application.execute_batch(end).unwrap();
            application.execute_batch("INSERT INTO t VALUES(1000, 'after')").unwrap();
            let lines = raw.until(|line| line["after"]["id"] == 1000);
            assert!(lines.iter().all(|line| line["op"] != "gap"), "{lines:#?}");
            let shown = lines.iter().filter(|line| line["after"]["v"].as_str().is_some_and(|v| v.ends_with('y')));
            assert_eq!(shown.count(), spilled);
            assert!(lines.iter().all(|line| line["before_unknown"] != true));
            raw.end();
        }
    }
}

/// A restart is asked about what stood behind the last commit that was shown. Frames that a rollback left there are nothing that is missing,
/// and what the new generation brings is shown whole.
#[test]
fn a_log_that_begins_anew_after_spilled_frames_leaves_nothing_out() {
    for end in ENDS {
        for checkpoint in ["RESTART", "TRUNCATE"] {
            let dir = tempfile::tempdir().unwrap();
            let (path, application) = database(dir.path(), CREATE);
            application.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            let raw = Raw::start(&["tail", "--raw", path.to_str().unwrap()]);
            until_it_follows(&application, &raw);
            application.execute_batch(SPILL).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            application.execute_batch(end).unwrap();
            for id in 1000..1020 {
                application.execute("INSERT INTO t VALUES(?1, 'before')", [id]).unwrap();
            }
            raw.until(|line| line["after"]["id"] == 1019);
            application.execute_batch(&format!("PRAGMA wal_checkpoint({checkpoint})")).unwrap();
            for id in 2000..2003 {
                application.execute("INSERT INTO t VALUES(?1, 'after')", [id]).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            let lines = raw.until(|line| line["after"]["id"] == 2002);
            let shown = lines.iter().filter(|line| line["after"]["v"] == "after" && line["before_unknown"] != true);
            let is_gap = lines.iter().any(|line| line["op"] == "gap");
            // Of a file that was cut off it cannot be known what was at its end.
            assert_eq!(is_gap, checkpoint == "TRUNCATE", "{lines:#?}");
            assert!(is_gap || shown.count() == 3, "{lines:#?}");
            raw.end();
        }
    }
}

/// Writes until something is shown: what comes before it has attached is not.
fn until_it_follows(application: &Connection, raw: &Raw) {
    for id in 0..50 {
        application.execute("INSERT INTO t VALUES(?1, 'first')", [id]).unwrap();
        if raw.lines.recv_timeout(Duration::from_millis(100)).is_ok() {
            raw.until(|line| line["op"] == "commit" || line["op"] == "gap");
            while raw.lines.recv_timeout(Duration::from_millis(100)).is_ok() {}
            return;
        }
    }
    panic!("it shows nothing");
}
