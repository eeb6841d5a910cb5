//! `doctor`, run as a program on databases before anybody attaches to them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use serde_json::Value;

fn doctor(path: &Path, args: &[&str]) -> (i32, Value) {
    let run = Command::new(env!("CARGO_BIN_EXE_woodchuck"))
        .args(["doctor", "--format", "json"])
        .arg(path)
        .args(args)
        .env_remove("WOODCHUCK_NATS_URL")
        .output()
        .unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(!text.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
    let value: Value = serde_json::from_str(&text).unwrap();
    let exit = run.status.code().unwrap();
    assert_eq!(value["exit"], exit, "{value}");
    for finding in value["findings"].as_array().unwrap() {
        for part in ["what", "why", "remedy"] {
            assert!(!finding[part].as_str().unwrap().is_empty(), "{finding}");
        }
    }
    (exit, value)
}

/// Level, code and table of each finding, but for those of where the test runs and which SQLite it has.
fn found(value: &Value) -> BTreeSet<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = value["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| (text(&finding["level"]), text(&finding["code"]), text(&finding["table"])))
        .filter(|(_, code, _)| !["disk-space", "nats-not-asked", "wal-reset-bug"].contains(&code.as_str()))
        .collect()
}

fn expected(list: &[(&str, &str, &str)]) -> BTreeSet<(String, String, String)> {
    list.iter().map(|(level, code, table)| ((*level).to_owned(), (*code).to_owned(), (*table).to_owned())).collect()
}

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Scene {
    fn new(sql: &str) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("my app%.db");
        let connection = Connection::open(&path).unwrap();
        connection.create_collation("german", |a: &str, b: &str| a.cmp(b)).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL").unwrap();
        connection.execute_batch(sql).unwrap();
        Scene { path, _dir: dir }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    fn names(&self) -> BTreeSet<String> {
        let names = std::fs::read_dir(self.path.parent().unwrap()).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

const SOUND: &str =
    "CREATE TABLE t(id BLOB PRIMARY KEY NOT NULL, v TEXT COLLATE NOCASE); INSERT INTO t VALUES(x'01', 'a')";

#[test]
fn a_sound_database_is_ready_and_nothing_is_written() {
    let scene = Scene::new(SOUND);
    let (bytes, names) = (std::fs::read(&scene.path).unwrap(), scene.names());
    let modified = std::fs::metadata(&scene.path).unwrap().modified().unwrap();
    let (exit, value) = doctor(&scene.path, &[]);
    assert_eq!((exit, found(&value)), (0, BTreeSet::new()), "{value}");
    assert_eq!((std::fs::read(&scene.path).unwrap(), scene.names()), (bytes, names));
    assert_eq!(std::fs::metadata(&scene.path).unwrap().modified().unwrap(), modified);
}

#[test]
fn tables_that_will_cost_something_are_named() {
    let scene = Scene::new(
        "CREATE TABLE nokey(a); CREATE TABLE counter(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
        CREATE TABLE alias(id INTEGER PRIMARY KEY, v);
        CREATE TABLE nulls(a TEXT, b INT, PRIMARY KEY(a, b)); INSERT INTO nulls VALUES('x', 1), (NULL, 2), ('y', NULL);
        CREATE TABLE uniq(k TEXT PRIMARY KEY NOT NULL, mail TEXT UNIQUE);
        CREATE TABLE sorted(k TEXT PRIMARY KEY NOT NULL COLLATE german, v TEXT);
        CREATE VIRTUAL TABLE search USING fts5(body); CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);
        CREATE VIRTUAL TABLE alone USING fts5(body, content=''); CREATE VIRTUAL TABLE kept USING fts5(v, content='alias', content_rowid='id');
        CREATE VIRTUAL TABLE fed USING rtree(id, x0, x1);
        CREATE TRIGGER feed AFTER INSERT ON alias BEGIN INSERT INTO fed VALUES(new.id, new.v, new.v); END",
    );
    let several = [
        ("warning", "no-key", "nokey"),
        ("warning", "autoincrement", "counter"),
        ("warning", "rowid-key", "alias"),
        ("warning", "null-in-key", "nulls"),
        ("warning", "unique", "uniq"),
        ("warning", "unknown-collation", "sorted"),
        ("warning", "no-key", "search"),
        ("warning", "virtual-table", "alone"),
        ("warning", "virtual-table", "boxes"),
    ];
    let (exit, value) = doctor(&scene.path, &[]);
    assert_eq!((exit, found(&value)), (1, expected(&several)), "{value}");
    let findings = value["findings"].as_array().unwrap();
    let of = |table: &str| findings.iter().find(|finding| finding["table"] == table).unwrap();
    assert!(of("nulls")["what"].as_str().unwrap().contains("2 rows"), "{}", of("nulls"));
    assert!(of("search")["what"].as_str().unwrap().contains("fts5"), "{}", of("search"));
    assert!(of("boxes")["what"].as_str().unwrap().contains("rtree"), "{}", of("boxes"));

    let several_only = ["no-key", "autoincrement", "rowid-key", "null-in-key", "unique"];
    let one =
        several.map(|(level, code, table)| (if several_only.contains(&code) { "note" } else { level }, code, table));
    let (exit, value) = doctor(&scene.path, &["--one-writer"]);
    assert_eq!((exit, found(&value)), (1, expected(&one)), "{value}");
}

#[test]
fn what_run_would_refuse_is_refused() {
    let rollback = Scene::new(SOUND);
    Connection::open(&rollback.path).unwrap().execute_batch("PRAGMA journal_mode = DELETE").unwrap();
    let (exit, value) = doctor(&rollback.path, &[]);
    assert_eq!((exit, found(&value)), (3, expected(&[("refused", "not-wal", "")])), "{value}");

    let linked = Scene::new(SOUND);
    std::fs::hard_link(&linked.path, linked.beside("-other")).unwrap();
    let (exit, value) = doctor(&linked.path, &[]);
    assert_eq!((exit, found(&value)), (3, expected(&[("refused", "hard-links", "")])), "{value}");

    let exclusive = Scene::new(SOUND);
    let holder = Connection::open(&exclusive.path).unwrap();
    holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; INSERT INTO t VALUES(x'02', 'b')").unwrap();
    let (exit, value) = doctor(&exclusive.path, &[]);
    assert_eq!(exit, 3, "{value}");
    assert!(found(&value).contains(&("refused".to_owned(), "exclusive-locking".to_owned(), String::new())), "{value}");
    holder.execute_batch("INSERT INTO t VALUES(x'03', 'c')").unwrap();

    let text = rollback.beside("-text");
    std::fs::write(&text, "no database ".repeat(100)).unwrap();
    let (exit, value) = doctor(&text, &[]);
    assert_eq!((exit, found(&value)), (3, expected(&[("refused", "not-a-database", "")])), "{value}");
}

#[test]
fn a_database_that_is_not_there_is_a_failure_with_a_hint() {
    let run = Command::new(env!("CARGO_BIN_EXE_woodchuck")).args(["doctor", "/nowhere/app.db"]).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(text.starts_with("error: ") && text.contains("\nhint: "), "{text}");
}

#[test]
fn an_application_goes_on_meanwhile_and_what_is_in_its_log_counts() {
    let scene = Scene::new(SOUND);
    let application = Connection::open(&scene.path).unwrap();
    application
        .execute_batch("PRAGMA cache_size = 2; CREATE TABLE late(a TEXT PRIMARY KEY); INSERT INTO late VALUES(NULL)")
        .unwrap();
    application
        .execute_batch(
            "BEGIN; WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 500)
            INSERT INTO t SELECT randomblob(16), hex(randomblob(500)) FROM c",
        )
        .unwrap();
    let log = std::fs::read(scene.beside("-wal")).unwrap();
    let names = scene.names();
    let (exit, value) = doctor(&scene.path, &[]);
    assert_eq!(
        (exit, found(&value)),
        (1, expected(&[("warning", "null-in-key", "late"), ("note", "cache-spill", "")])),
        "{value}"
    );
    assert_eq!((std::fs::read(scene.beside("-wal")).unwrap() == log, scene.names()), (true, names));
    application.execute_batch("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let count: i64 = application.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 501);
}

#[test]
fn a_log_that_was_left_behind_is_not_recovered() {
    let scene = Scene::new(SOUND);
    let keeper = Connection::open(&scene.path).unwrap();
    keeper.execute_batch("CREATE TABLE late(a TEXT PRIMARY KEY)").unwrap();
    let copy = scene.beside("-copy");
    let log = scene.beside("-copy-wal");
    std::fs::copy(scene.beside("-wal"), &log).unwrap();
    std::fs::write(&copy, std::fs::read(&scene.path).unwrap()).unwrap();
    let (before, names) = ((std::fs::read(&copy).unwrap(), std::fs::read(&log).unwrap()), scene.names());
    let (exit, value) = doctor(&copy, &[]);
    assert_eq!((exit, found(&value)), (0, expected(&[("note", "null-key-unknown", "")])), "{value}");
    assert_eq!(((std::fs::read(&copy).unwrap(), std::fs::read(&log).unwrap()), scene.names()), (before, names));
}

/// Name, content and time of all files of a folder, and its own time.
fn whole(folder: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let modified = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let mut found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    let mut found: Vec<_> =
        found.into_iter().map(|path| (path.clone(), std::fs::read(&path).unwrap(), modified(&path))).collect();
    found.push((folder.to_owned(), Vec::new(), modified(folder)));
    found
}

/// A killed application leaves -shm behind, and a first connection recovers it, or makes -wal beside it: doctor took -shm for a sign that
/// somebody had done so.
#[test]
fn what_a_killed_application_left_stays_as_it_is() {
    let scene = Scene::new("CREATE TABLE t(a TEXT PRIMARY KEY); INSERT INTO t VALUES(NULL)");
    let keeper = Connection::open(&scene.path).unwrap();
    keeper.execute_batch("INSERT INTO t VALUES(NULL)").unwrap();
    // An application that is there is asked through its log. (Reading its files here takes its locks.)
    let (_, value) = doctor(&scene.path, &[]);
    let findings = value["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["code"] == "null-in-key").unwrap();
    assert!(finding["what"].as_str().unwrap().contains("2 rows"), "{finding}");
    let unknown = ("note", "null-key-unknown", "");
    let counted = ("warning", "null-in-key", "t");
    for (kept, empty, wanted) in [
        (&["-wal", "-shm"][..], &[][..], (0, unknown)),
        (&["-wal"], &[], (0, unknown)),
        (&["-wal"], &["-shm"], (0, unknown)),
        (&["-shm"], &[], (1, counted)),
        (&["-shm"], &["-wal"], (1, counted)),
        (&[], &["-shm"], (1, counted)),
        (&[], &["-wal"], (1, counted)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let beside = |suffix: &str| dir.path().join(format!("app.db{suffix}"));
        std::fs::write(&path, std::fs::read(&scene.path).unwrap()).unwrap();
        for suffix in kept {
            std::fs::write(beside(suffix), std::fs::read(scene.beside(suffix)).unwrap()).unwrap();
        }
        for suffix in empty {
            std::fs::write(beside(suffix), "").unwrap();
        }
        let before = whole(dir.path());
        let (exit, value) = doctor(&path, &[]);
        assert!(whole(dir.path()) == before, "{kept:?} {empty:?}: {value}");
        assert_eq!((exit, found(&value)), (wanted.0, expected(&[wanted.1])), "{kept:?} {empty:?}: {value}");
    }
}

/// A collation was looked for in texts and comments, and its name ended at a space.
#[test]
fn only_a_collation_that_is_used_is_unknown() {
    let scene = Scene::new(SOUND);
    let connection = Connection::open(&scene.path).unwrap();
    connection.create_collation("my coll", |a: &str, b: &str| a.cmp(b)).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE z(k TEXT PRIMARY KEY NOT NULL /* collate qq */, c DEFAULT 'a COLLATE zz', d -- collate rr
            ); CREATE INDEX i ON t(v COLLATE \"my coll\")",
        )
        .unwrap();
    drop(connection);
    let (exit, value) = doctor(&scene.path, &[]);
    assert_eq!((exit, found(&value)), (1, expected(&[("warning", "unknown-collation", "t")])), "{value}");
    let findings = value["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["code"] == "unknown-collation").unwrap();
    assert!(finding["what"].as_str().unwrap().contains("my coll"), "{finding}");
}

#[test]
fn the_version_that_wrote_last_tells_of_the_lost_restart() {
    let scene = Scene::new(SOUND);
    for (version, is_told) in [
        (3_006_023u32, false),
        (3_007_000, true),
        (3_044_005, true),
        (3_044_006, false),
        (3_050_006, true),
        (3_050_007, false),
        (3_051_002, true),
        (3_051_003, false),
        (3_053_000, false),
    ] {
        let mut bytes = std::fs::read(&scene.path).unwrap();
        bytes[96..100].copy_from_slice(&version.to_be_bytes());
        std::fs::write(&scene.path, &bytes).unwrap();
        let (exit, value) = doctor(&scene.path, &[]);
        let told = value["findings"].as_array().unwrap().iter().any(|finding| finding["code"] == "wal-reset-bug");
        assert_eq!((told, exit), (is_told, i32::from(is_told)), "{version}: {value}");
    }
}

#[test]
fn an_fts5_index_that_an_old_version_writes_is_named() {
    let scene = Scene::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY NOT NULL, v); CREATE VIRTUAL TABLE found USING fts5(v, content='t', content_rowid='id')",
    );
    for (version, is_told) in [(3_043_002u32, true), (3_044_000, false), (3_053_000, false)] {
        let mut bytes = std::fs::read(&scene.path).unwrap();
        bytes[96..100].copy_from_slice(&version.to_be_bytes());
        std::fs::write(&scene.path, &bytes).unwrap();
        let (_, value) = doctor(&scene.path, &[]);
        let told = value["findings"].as_array().unwrap().iter().find(|finding| finding["code"] == "fts5-versions");
        assert_eq!(told.is_some(), is_told, "{version}: {value}");
        assert!(told.is_none_or(|finding| finding["table"] == "found"), "{value}");
    }
}

#[test]
fn people_read_what_why_and_remedy() {
    let scene = Scene::new("CREATE TABLE nokey(a)");
    let run = Command::new(env!("CARGO_BIN_EXE_woodchuck")).arg("doctor").arg(&scene.path).output().unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(text.starts_with("warning: "), "{text}");
    for part in [
        "table nokey has no key [no-key]",
        "    why:    ",
        "    remedy: ",
        "can be attached; the warnings say what that costs",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
}

mod server {
    use super::*;
    use crate::support::nats::NatsServer;

    #[test]
    fn whether_it_syncs_is_asked_at_its_monitoring_port() {
        let scene = Scene::new(SOUND);
        for (syncs, wanted) in [(true, None), (false, Some(("warning", "nats-sync", "")))] {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let server = NatsServer::start_monitored(port, syncs);
            let ask = |port: u16| {
                doctor(&scene.path, &["--nats-url", &server.url(), "--nats-monitor-port", &port.to_string()])
            };
            let (exit, value) = ask(port);
            assert_eq!((exit, found(&value)), (i32::from(!syncs), expected(wanted.as_slice())), "{value}");
            let (exit, value) = ask(1);
            assert_eq!((exit, found(&value)), (0, expected(&[("note", "nats-sync-unknown", "")])), "{value}");
        }
    }

    #[test]
    fn a_server_that_nobody_runs_is_a_warning() {
        let scene = Scene::new(SOUND);
        let (exit, value) = doctor(&scene.path, &["--nats-url", "nats://127.0.0.1:1"]);
        assert_eq!((exit, found(&value)), (1, expected(&[("warning", "nats-unreachable", "")])), "{value}");
    }
}
