//! `inspect`: what it shows of live files, copies, damaged files and a WAL alone, and that it leaves no trace.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::oracle::database;

struct Files {
    dir: tempfile::TempDir,
    connection: Connection,
}

impl Files {
    /// A database of which `setup` is in the file and `changes` are in the WAL.
    fn new(setup: &str, changes: &[&str]) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("app.db")).unwrap();
        connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0").unwrap();
        connection.execute_batch(setup).unwrap();
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        std::fs::copy(dir.path().join("app.db"), dir.path().join("start.db")).unwrap();
        for sql in changes {
            connection.execute_batch(sql).unwrap();
        }
        Files { dir, connection }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a crashed machine would have left: the files without whoever had them open.
    fn copy(&self) -> PathBuf {
        let to = self.path("copy.db");
        std::fs::copy(self.path("app.db"), &to).unwrap();
        std::fs::copy(self.path("app.db-wal"), self.path("copy.db-wal")).unwrap();
        to
    }
}

fn inspect(path: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_woodchuck")).arg("inspect").arg(path).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const SETUP: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE w(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
                     CREATE TABLE h(a); CREATE INDEX tv ON t(v);
                     WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<500)
                     INSERT INTO t SELECT i, 'value ' || i FROM n; INSERT INTO w SELECT 'key ' || id, v FROM t; INSERT INTO h SELECT v FROM t;";

const CHANGES: [&str; 5] = [
    "UPDATE t SET v='new' WHERE id BETWEEN 100 AND 120; DELETE FROM t WHERE id=7",
    "BEGIN; DELETE FROM w WHERE k LIKE 'key 1%'; INSERT INTO w VALUES('fresh', x'00ff'); COMMIT",
    "CREATE TABLE later(id INTEGER PRIMARY KEY AUTOINCREMENT, x REAL); INSERT INTO later(x) VALUES(3.0),(0.1)",
    "DELETE FROM h WHERE rowid % 3 = 0; UPDATE h SET a = a || '!' WHERE rowid > 450",
    "ALTER TABLE t ADD COLUMN more DEFAULT 'd'; UPDATE t SET id = id + 1000 WHERE id > 490",
];

#[test]
fn the_script_of_a_live_wal_leads_from_the_file_to_the_present() {
    let files = Files::new(SETUP, &CHANGES);
    for path in [files.path("app.db"), files.copy()] {
        let script = text(&inspect(&path, &["--format", "sql"]));
        let start = files.path("replayed.db");
        std::fs::copy(files.path("start.db"), &start).unwrap();
        let replayed = Connection::open(&start).unwrap();
        replayed.execute_batch(&script).unwrap();
        assert_eq!(rows(&replayed), rows(&files.connection));
        drop(replayed);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(files.path(&format!("replayed.db{suffix}")));
        }
    }
}

fn rows(connection: &Connection) -> Vec<(String, crate::support::oracle::Rows)> {
    database(connection).into_iter().map(|(name, (_, rows))| (name, rows)).collect()
}

#[test]
fn after_a_checkpoint_what_was_before_is_called_unknown_and_what_is_after_is_right() {
    let files = Files::new(
        SETUP,
        &["UPDATE t SET v='first' WHERE id=3", "UPDATE t SET v='second' WHERE id=3", "INSERT INTO h VALUES('x')"],
    );
    files.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    let found = lines(&inspect(&files.copy(), &["--view", "rows", "--format", "json"]));
    let of = |tx: u64, id: u64| {
        let mut all = found.iter().filter(|line| line["tx"] == tx && line["table"] == "t" && line["key"]["id"] == id);
        all.next().cloned().unwrap_or_default()
    };
    assert_eq!(of(1, 3)["before_unknown"], true);
    assert_eq!(of(1, 3)["after"]["v"], "first");
    assert!(of(1, 3).get("before").is_none());
    // The second transaction's pages are in the WAL before and after.
    assert_eq!((of(2, 3)["before"]["v"].clone(), of(2, 3)["after"]["v"].clone()), ("first".into(), "second".into()));
    assert!(of(2, 3).get("before_unknown").is_none());
    assert!(!found.iter().any(|line| line["op"] == "schema"), "the schema did not change");
    let script = inspect(&files.copy(), &["--format", "sql"]);
    assert_eq!(script.status.code(), Some(1), "a script that may miss deletions is not done");
}

#[test]
fn damage_is_named_and_what_stands_before_it_is_shown() {
    let files = Files::new(SETUP, &CHANGES);
    let copy = files.copy();
    let wal = files.path("copy.db-wal");
    let mut bytes = std::fs::read(&wal).unwrap();
    let whole = lines(&inspect(&copy, &["--view", "transactions", "--format", "json"]));
    let frame = whole[2]["frame_first"].as_u64().unwrap() as usize;
    bytes[32 + (frame - 1) * (4096 + 24) + 24 + 100] ^= 1;
    std::fs::write(&wal, &bytes).unwrap();
    let summary = &lines(&inspect(&copy, &["--format", "json"]))[0];
    assert_eq!(summary["wal"]["end_frame"], frame);
    assert_eq!(summary["wal"]["end_is_damage"], true);
    assert_eq!(summary["wal"]["transactions"], 2);
    assert_eq!(lines(&inspect(&copy, &["--view", "transactions", "--format", "json"])), whole[..2]);
    let shown = text(&inspect(&copy, &[]));
    assert!(shown.contains(&format!("at frame {frame}: a frame whose checksum does not match")), "{shown}");

    bytes.truncate(bytes.len() - 100);
    std::fs::write(&wal, &bytes[..32 + 4120 + 7]).unwrap();
    let summary = &lines(&inspect(&copy, &["--format", "json"]))[0];
    assert_eq!(summary["wal"]["end"], "the file ends within a frame");
}

#[test]
fn a_wal_alone_shows_what_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let connection = Connection::open(dir.path().join("app.db")).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(id INTEGER PRIMARY KEY, v);",
        )
        .unwrap();
    connection.execute_batch("INSERT INTO t VALUES(1,'a'); UPDATE t SET v='b'; DELETE FROM t;").unwrap();
    let alone = dir.path().join("alone");
    std::fs::copy(dir.path().join("app.db-wal"), &alone).unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_woodchuck"))
            .args(["inspect", "--wal"])
            .arg(&alone)
            .args(args)
            .output()
            .unwrap()
    };
    let found = lines(&run(&["--view", "rows", "--format", "json"]));
    let ops: Vec<&str> =
        found.iter().filter(|line| line.get("table").is_some()).map(|line| line["op"].as_str().unwrap()).collect();
    assert_eq!(ops, ["insert", "update", "delete"]);
    assert!(
        text(&run(&["--view", "schema", "--format", "sql"])).contains("CREATE TABLE t(id INTEGER PRIMARY KEY, v);")
    );
    assert!(text(&run(&["--view", "frames"])).contains("commit, 2 pages"));
}

#[test]
fn nothing_is_written_or_created() {
    let files = Files::new(SETUP, &CHANGES);
    let copy = files.copy();
    let listing = || {
        let mut all: Vec<_> = std::fs::read_dir(files.dir.path())
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let data = entry.metadata().unwrap();
                (entry.file_name(), data.len(), data.modified().unwrap(), std::fs::read(entry.path()).unwrap())
            })
            .collect();
        all.sort();
        all
    };
    let before = listing();
    for view in ["summary", "frames", "transactions", "rows", "schema"] {
        for format in ["pretty", "json"] {
            for path in [&copy, &files.path("app.db")] {
                assert!(!text(&inspect(path, &["--view", view, "--format", format])).is_empty(), "{view} {format}");
            }
        }
    }
    assert!(listing() == before);
}

#[test]
fn a_database_without_wal_has_a_summary_and_a_schema() {
    let files = Files::new(SETUP, &[]);
    let start = files.path("start.db");
    assert!(text(&inspect(&start, &[])).contains("everything is in the database file"));
    assert_eq!(text(&inspect(&start, &["--view", "rows"])), "");
    assert!(text(&inspect(&start, &["--view", "schema"])).contains("CREATE TABLE t("));
}

#[test]
fn what_is_no_database_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk");
    for content in [&b""[..], b"SQLite", &[7; 5000]] {
        std::fs::write(&junk, content).unwrap();
        for path in [junk.as_path(), dir.path(), &dir.path().join("missing")] {
            let output = inspect(path, &[]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), text.lines().count()), (Some(1), 2), "{text}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
        }
    }
}

#[test]
fn tables_are_filtered_by_pattern() {
    let files = Files::new(SETUP, &CHANGES);
    let found = lines(&inspect(&files.copy(), &["--view", "rows", "--format", "json", "--tables", "W,lat*"]));
    assert!(found.iter().all(|line| {
        line["table"].as_str().is_none_or(|table| ["w", "later"].contains(&table) || table == "sqlite_sequence")
    }));
    assert!(found.iter().any(|line| line["table"] == "w"));
    let begun: Vec<&Value> = found.iter().filter(|line| line["op"] == "begin").map(|line| &line["tx"]).collect();
    assert_eq!(begun, [3, 4, 5], "each statement outside BEGIN is a transaction of its own");
}
