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

/// A damaged row takes nothing with it but itself, and it is said where it stands.
#[test]
fn rows_beside_a_damaged_one_are_shown() {
    let files = Files::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE u(id INTEGER PRIMARY KEY, v TEXT)",
        &[
            "BEGIN; INSERT INTO t VALUES(1, 'one'), (2, 'damaged'), (3, 'three'); INSERT INTO u VALUES(1, 'other'); COMMIT",
            "UPDATE t SET v = v || '!' WHERE id <> 2",
        ],
    );
    let copy = files.copy();
    let path = files.path("copy.db-wal");
    let mut bytes = std::fs::read(&path).unwrap();
    // The record's header says that its text is longer than the record, in both versions of the page.
    let record = b"\x03\x00\x1bdamaged";
    let places: Vec<usize> = (0..bytes.len() - record.len()).filter(|at| bytes[*at..].starts_with(record)).collect();
    assert_eq!(places.len(), 2);
    places.iter().for_each(|at| bytes[at + 2] = 0x7b);
    std::fs::write(&path, crate::fuzz::mended(&bytes)).unwrap();
    let output = inspect(&copy, &["--view", "rows", "--format", "json"]);
    let shown: Vec<(Value, Value)> = lines(&output)
        .iter()
        .filter(|line| line["table"].is_string())
        .map(|line| (line["op"].clone(), line["after"]["v"].clone()))
        .collect();
    let wanted =
        [("insert", "one"), ("insert", "three"), ("insert", "other"), ("update", "one!"), ("update", "three!")];
    assert_eq!(shown, wanted.map(|(op, v)| (Value::from(op), Value::from(v))));
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("transaction 1: table t: a record on page 2 is corrupt"), "{notes}");
    assert_eq!(inspect(&copy, &["--view", "rows", "--format", "sql"]).status.code(), Some(1));
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

/// A WAL that was begun anew still holds the end of the generation before. Its rows can be read, and of most it is known what they were.
#[test]
fn what_an_older_generation_left_behind_the_end_can_be_read() {
    let files =
        Files::new("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES(1, 'one'), (2, 'two')", &[]);
    for i in 0..40 {
        files.connection.execute("UPDATE t SET v = 'old ' || ?1 WHERE id = 1 + ?1 % 2", [i]).unwrap();
    }
    files
        .connection
        .execute_batch("PRAGMA wal_checkpoint(RESTART); INSERT INTO t VALUES(3, 'three'); DELETE FROM t WHERE id = 1")
        .unwrap();
    let copy = files.copy();

    let frames = lines(&inspect(&copy, &["--view", "frames", "--format", "json", "--stale"]));
    let (stale, current): (Vec<&Value>, Vec<&Value>) = frames.iter().partition(|frame| frame["stale"].is_string());
    assert_eq!((current.len(), stale.len()), (2, 38), "{frames:#?}");
    assert_eq!(stale.iter().filter(|frame| frame["checked"] == false).count(), 1, "{stale:#?}");
    assert!(stale.iter().all(|frame| frame["committed"] == true && frame["frame"].as_u64() > Some(2)), "{stale:#?}");

    let all = lines(&inspect(&copy, &["--view", "rows", "--format", "json", "--stale"]));
    let parts: Vec<&str> =
        all.iter().filter(|line| line["op"] == "part").map(|line| line["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["stale", "committed"]);
    let (old, new) = all.split_at(all.iter().position(|line| line["part"] == "committed").unwrap());
    let updates: Vec<&Value> =
        old.iter().filter(|line| line["op"] == "update" && line["before_unknown"] != true).collect();
    // The page's first version is all that is known of what was before the stretch.
    assert_eq!(updates.len(), 37, "{old:#?}");
    for (i, update) in (3..40).zip(updates) {
        let id = 1 + i % 2;
        assert_eq!(update["before"], serde_json::json!({ "id": id, "v": format!("old {}", i - 2) }));
        assert_eq!(update["after"], serde_json::json!({ "id": id, "v": format!("old {i}") }));
    }
    let unknown: Vec<&Value> =
        old.iter().filter(|line| line["before_unknown"] == true).map(|line| &line["after"]).collect();
    let known_at_first = [serde_json::json!({ "id": 1, "v": "old 2" }), serde_json::json!({ "id": 2, "v": "old 1" })];
    assert_eq!(unknown, known_at_first.iter().collect::<Vec<_>>());
    let ops: Vec<&str> = new.iter().filter_map(|line| line["op"].as_str()).collect();
    assert_eq!(ops, ["part", "begin", "insert", "commit", "begin", "delete", "commit"]);
    // Without the option nothing of it is said, but that it is there.
    assert_eq!(lines(&inspect(&copy, &["--view", "rows", "--format", "json"])), new[1..]);
    assert!(text(&inspect(&copy, &["--stale"])).contains("38 frames of generation"));
    let damaged = std::fs::read(copy.with_extension("db-wal")).unwrap();
    let at = 32 + 19 * (24 + 4096) + 24 + 4000;
    let bytes: Vec<u8> = damaged.iter().enumerate().map(|(i, byte)| if i == at { !byte } else { *byte }).collect();
    std::fs::write(copy.with_extension("db-wal"), bytes).unwrap();
    // The frame whose bytes are others does not continue the one before: a stretch ends there, and the next begins.
    let frames = lines(&inspect(&copy, &["--view", "frames", "--format", "json", "--stale"]));
    let unchecked: Vec<u64> =
        frames.iter().filter(|frame| frame["checked"] == false).map(|frame| frame["frame"].as_u64().unwrap()).collect();
    assert_eq!(unchecked, [20, 3]);
}

#[test]
fn frames_behind_the_last_commit_show_what_they_would_do() {
    let files = Files::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES(1, 'one')",
        &["INSERT INTO t VALUES(2, 'two')"],
    );
    files.connection.execute_batch("WITH RECURSIVE n(i) AS (VALUES(10) UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO t SELECT i, hex(zeroblob(500)) FROM n").unwrap();
    // With a cache of one page most of it is written before the commit.
    files
        .connection
        .execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN; UPDATE t SET v = 'changed ' || id")
        .unwrap();
    files.connection.execute_batch("INSERT INTO t SELECT id + 1000, hex(zeroblob(500)) FROM t").unwrap();
    let copy = files.copy();
    let output = inspect(&copy, &["--view", "rows", "--format", "json", "--uncommitted"]);
    let all = lines(&output);
    let open = all.iter().position(|line| line["part"] == "uncommitted").unwrap_or_else(|| panic!("{all:#?}"));
    let committed: Vec<&str> =
        all[..open].iter().filter_map(|line| line["op"].as_str()).filter(|op| *op != "insert").collect();
    assert_eq!(committed, ["part", "begin", "commit", "begin", "commit"]);
    let open = &all[open + 1..];
    assert_eq!(open.last().map(|line| &line["op"]), Some(&Value::from("open")), "{open:#?}");
    assert!(open.iter().all(|line| line["op"] != "commit"));
    let updates: Vec<&Value> = open.iter().filter(|line| line["op"] == "update").collect();
    assert!(updates.len() > 300, "{}", updates.len());
    assert!(
        updates.iter().all(|line| line["after"]["v"] == format!("changed {}", line["after"]["id"])),
        "{:?}",
        updates[0]
    );
    let transactions = text(&inspect(&copy, &["--view", "transactions", "--uncommitted"]));
    assert!(transactions.contains("not committed") && transactions.contains("updated"), "{transactions}");
    let refused = inspect(&copy, &["--format", "sql", "--uncommitted"]);
    assert_eq!(refused.status.code(), Some(2));
    files.connection.execute_batch("ROLLBACK").unwrap();

    // The root is in use, and written last: until then nothing leads to the new pages.
    let files = Files::new("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", &["INSERT INTO t VALUES(1, 'one')"]);
    files.connection.execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN").unwrap();
    files.connection.execute_batch("WITH RECURSIVE n(i) AS (VALUES(10) UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO t SELECT i, hex(zeroblob(500)) FROM n").unwrap();
    let copy = files.copy();
    let output = inspect(&copy, &["--view", "rows", "--format", "json", "--uncommitted"]);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("are in no tree"), "{notes}");
    assert_eq!(lines(&output).last().map(|line| line["part"].clone()), Some(Value::from("uncommitted")));
    let frames = lines(&inspect(&copy, &["--view", "frames", "--format", "json"]));
    let open = frames.iter().find(|frame| frame["committed"] == false).unwrap();
    let (page, frame) = (open["page"].to_string(), open["frame"].to_string());
    let page = &lines(&inspect(&copy, &["--page", &page, "--frame", &frame, "--format", "json"]))[0];
    assert_eq!((page["kind"].as_str(), &page["object"]), (Some("table leaf"), &Value::Null));
    assert_eq!(page["cells"][1]["values"][1].as_str().map(str::len), Some(1000));
    files.connection.execute_batch("ROLLBACK").unwrap();
}

#[test]
fn the_history_of_one_row_is_every_change_of_it_and_nothing_else() {
    let files = Files::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE c(a TEXT, b INT, v, PRIMARY KEY(a, b)) WITHOUT ROWID; CREATE TABLE h(v)",
        &[
            "INSERT INTO t VALUES(1, 'a'), (2, 'b'); INSERT INTO c VALUES('x, y', 1, 0), ('x', 1, 0); INSERT INTO h VALUES('h')",
            "UPDATE t SET v = 'c'",
            "DELETE FROM t WHERE id = 2; UPDATE c SET v = 1 WHERE a = 'x, y'; UPDATE h SET v = 'i'",
            "ALTER TABLE t ADD COLUMN w DEFAULT 7; INSERT INTO t VALUES(2, 'again', 8)",
        ],
    );
    let path = files.path("app.db");
    let history = |row: &str| -> Vec<Value> {
        lines(&inspect(&path, &["--row", row, "--format", "json"]))
            .into_iter()
            .filter(|line| line["table"].is_string())
            .collect()
    };
    let images: Vec<(Value, Value)> =
        history("t/2").iter().map(|line| (line["before"]["v"].clone(), line["after"]["v"].clone())).collect();
    let text = |text: &str| Value::from(text);
    assert_eq!(
        images,
        [(Value::Null, text("b")), (text("b"), text("c")), (text("c"), Value::Null), (Value::Null, text("again"))]
    );
    assert_eq!(history("c/'x, y',1").len(), 2);
    assert_eq!(history("C/x,1").len(), 1);
    assert_eq!(history("h/1").len(), 2);
    for (row, code, words) in
        [("t/77", 1, "changed this row"), ("nowhere/1", 1, "no table nowhere"), ("t", 2, "names no row")]
    {
        let output = inspect(&path, &["--row", row]);
        assert_eq!(output.status.code(), Some(code), "{row}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{row}: {output:?}");
    }
}

/// What every page of a database is, against what SQLite itself says of each (`dbstat`, where it has one, counts cells and overflow).
#[test]
fn every_page_is_shown_for_what_it_is() {
    for vacuum in [0, 2] {
        let setup = format!(
            "PRAGMA auto_vacuum = {vacuum}; VACUUM; {SETUP} CREATE TABLE big(id INTEGER PRIMARY KEY, v); INSERT INTO big VALUES(1, zeroblob(20000)); CREATE TABLE gone(v); INSERT INTO gone SELECT hex(zeroblob(900)) FROM t; DROP TABLE gone"
        );
        let files = Files::new(&setup, &["UPDATE t SET v = 'seen' WHERE id = 3"]);
        let path = files.path("app.db");
        let count: u32 = files.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        let free: i64 = files.connection.query_row("PRAGMA freelist_count", [], |row| row.get(0)).unwrap();
        let page = |number: u32, more: &[&str]| -> Value {
            let number = number.to_string();
            lines(&inspect(&path, &[&["--page", &number, "--format", "json"], more].concat())).remove(0)
        };
        let pages: Vec<Value> = (1..=count).map(|number| page(number, &[])).collect();
        let of_kind = |kind: &str| pages.iter().filter(|page| page["kind"] == kind).count();
        assert_eq!(of_kind("freelist trunk") + of_kind("freelist leaf"), free as usize);
        assert!(free > 10);
        assert_eq!(of_kind("pointer map"), usize::from(vacuum > 0));
        assert_eq!(of_kind("no b-tree page"), 4, "the overflow pages of one row");
        let rows = |name: &str| -> Vec<&Value> {
            let leaves = pages
                .iter()
                .filter(|page| page["object"]["name"] == name && page["kind"].as_str().unwrap().ends_with("leaf"));
            leaves.flat_map(|page| page["cells"].as_array().unwrap()).collect()
        };
        assert_eq!(rows("t").len(), 500);
        assert_eq!(rows("t")[2]["values"], serde_json::json!({ "id": 3, "v": "seen" }));
        assert_eq!(
            rows("tv").len()
                + pages
                    .iter()
                    .filter(|page| page["object"]["name"] == "tv" && page["kind"] == "index interior")
                    .map(|page| page["cells"].as_array().unwrap().len())
                    .sum::<usize>(),
            500
        );
        assert_eq!(rows("big")[0]["overflow"].as_array().unwrap().len(), 4);
        assert_eq!(rows("big")[0]["payload_bytes"].as_u64(), Some(20_005));
        let leaf = pages.iter().find(|page| page["frame"] != 0 && page["object"]["name"] == "t").unwrap();
        let number = leaf["page"].as_u64().unwrap() as u32;
        let before = page(number, &["--frame", "0"]);
        assert_eq!(before["cells"][2]["values"]["v"], "value 3");
        assert_eq!(page(number, &["--frame", &leaf["frame"].to_string()])["cells"][2]["values"]["v"], "seen");
        for (args, code) in
            [(vec!["--page", "0"], 2), (vec!["--page", "999999"], 1), (vec!["--page", "1", "--frame", "999"], 1)]
        {
            assert_eq!(inspect(&path, &args).status.code(), Some(code), "{args:?}");
        }
        let shown = text(&inspect(&path, &["--page", "1"]));
        assert!(shown.contains("of table sqlite_schema") && shown.contains("CREATE TABLE t"), "{shown}");
    }
}

/// A value stood in overflow pages that a checkpoint had overwritten with those of a later version, and was shown as its own beginning joined with
/// the end of the later one.
#[test]
fn a_value_whose_overflow_pages_are_overwritten_is_not_made_up() {
    let fill = |letter: char| format!("'{}'", letter.to_string().repeat(9000));
    let files = Files::new(
        &format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE k(n TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO t VALUES(1, {}), (2, 'x'); INSERT INTO k VALUES('a', {}), ('b', 'x')",
            fill('A'),
            fill('A')
        ),
        &[
            "UPDATE t SET v = 'y' WHERE id = 2",
            &format!("UPDATE t SET v = {} WHERE id = 1", fill('B')),
            "UPDATE k SET v = 'y' WHERE n = 'b'",
            &format!("UPDATE k SET v = {} WHERE n = 'a'", fill('B')),
        ],
    );
    files.connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    let copy = files.copy();
    let output = inspect(&copy, &["--view", "rows", "--format", "json"]);
    let found = lines(&output);
    for line in &found {
        for side in ["before", "after"] {
            let Some(v) = line[side]["v"].as_str() else { continue };
            assert!(v.chars().all(|letter| v.starts_with(letter)), "{} {side} {}", line["op"], &line["key"]);
        }
    }
    let is_shown = |tx: u64, v: &str| {
        found.iter().any(|line| line["tx"] == tx && line["after"]["v"].as_str().is_some_and(|is| is.starts_with(v)))
    };
    assert!(is_shown(1, "y") && is_shown(2, "B") && is_shown(3, "y") && is_shown(4, "B"), "what is known is shown");
    assert!(!is_shown(1, "A") && !is_shown(3, "A"));
    assert!(found.iter().all(|line| line["op"] != "delete"), "a row that cannot be read is not gone");
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(notes.contains("transaction 1: page") && notes.contains("as it was is not known"), "{notes}");
    let script = inspect(&copy, &["--format", "sql"]);
    assert_eq!(script.status.code(), Some(1), "a script that leaves out a row is not done");
}

/// SQLite takes such a log for an empty one and reads the database; so does `tail`.
#[test]
fn a_log_without_a_header_does_not_hide_the_database() {
    let files = Files::new(SETUP, &[]);
    let start = files.path("start.db");
    for junk in [&b"short"[..], &[7; 5000]] {
        std::fs::write(files.path("start.db-wal"), junk).unwrap();
        let summary = inspect(&start, &[]);
        assert!(text(&summary).contains("nothing can be read from it"), "{summary:?}");
        let schema = inspect(&start, &["--view", "schema"]);
        assert!(text(&schema).contains("CREATE TABLE t("));
        let notes = String::from_utf8_lossy(&schema.stderr).into_owned();
        assert!(notes.contains("nothing can be read from") && notes.contains("start.db-wal"), "{notes}");
        let report = &lines(&inspect(&start, &["--format", "json"]))[0];
        assert!(report["wal"].is_null() && report["wal_unreadable"].is_string(), "{report}");
        let alone = Command::new(env!("CARGO_BIN_EXE_woodchuck"))
            .args(["inspect", "--wal"])
            .arg(files.path("start.db-wal"))
            .output()
            .unwrap();
        assert_eq!(alone.status.code(), Some(1), "{alone:?}");
    }
}

/// Opening a pipe waits for somebody who writes to it.
#[test]
fn what_is_no_regular_file_is_refused_before_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (command, code) in [("inspect", 1), ("doctor", 3)] {
        for path in [pipe.as_path(), Path::new("/dev/null")] {
            let output = Command::new("timeout")
                .args(["20", env!("CARGO_BIN_EXE_woodchuck"), command])
                .arg(path)
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains("not a regular file"), "{command} {path:?}: {said}");
            assert_eq!(output.status.code(), Some(code), "{command} {path:?}: {said}");
        }
    }
}

#[test]
fn a_frame_that_is_not_there_is_an_error() {
    let files = Files::new(SETUP, &["UPDATE t SET v = 'new' WHERE id = 3"]);
    for (path, frame) in [(files.path("start.db"), "9"), (files.copy(), "900")] {
        let output = inspect(&path, &["--page", "1", "--frame", frame]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("there is no frame {frame}")), "{said}");
        text(&inspect(&path, &["--page", "1", "--frame", "0"]));
    }
}

/// SQLite makes the checksums good at the commit only. Without a note it looked as if nothing were open.
#[test]
fn frames_that_were_written_a_second_time_before_the_commit_are_mentioned() {
    let files = Files::new("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", &["INSERT INTO t VALUES(1, 'one')"]);
    files.connection.execute_batch("PRAGMA cache_size = 5; BEGIN; WITH RECURSIVE n(i) AS (VALUES(10) UNION ALL SELECT i + 1 FROM n WHERE i < 400) INSERT INTO t SELECT i, hex(zeroblob(500)) FROM n; UPDATE t SET v = v || 'y'").unwrap();
    let copy = files.copy();
    let output = inspect(&copy, &["--view", "rows", "--uncommitted"]);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && notes.contains("do not fit their checksums"), "{notes}");
    let output = inspect(&copy, &["--view", "rows"]);
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// Names and values of a database moved the cursor and the colours of whoever looked at it: the rows alone were shown in a form that does not.
#[test]
fn no_view_sends_a_terminal_what_it_would_act_on() {
    let bad = ['\u{1b}', '\u{7}', '\u{7f}', '\u{9b}', '\u{202e}', '\u{2066}'];
    let name: String = std::iter::once('n').chain(bad).collect();
    let files = Files::new(
        &format!(
            "CREATE TABLE \"t{name}\"(\"k{name}\" TEXT PRIMARY KEY NOT NULL, c DEFAULT '{name}'); CREATE TABLE \"u{name}\"(a)"
        ),
        &[&format!("INSERT INTO \"t{name}\" VALUES('v{name}', 1)")],
    );
    let path = files.path(&format!("d{name}.db"));
    std::fs::copy(files.path("app.db"), &path).unwrap();
    std::fs::copy(files.path("app.db-wal"), files.path(&format!("d{name}.db-wal"))).unwrap();
    let row = format!("t{name}/absent");
    let pages = ["--page=1", "--page=2", "--page=3", "--page=4", "--page=99"];
    let views =
        ["--view=summary", "--view=schema", "--view=transactions", "--view=frames", "--view=rows", "--row", &row];
    let mut shown = String::new();
    for arg in views.iter().chain(&pages) {
        let args = if *arg == "--row" { vec!["--row", row.as_str()] } else { vec![*arg] };
        if *arg == row {
            continue;
        }
        let output = inspect(&path, &args);
        for stream in [output.stdout, output.stderr] {
            let text = String::from_utf8(stream).unwrap();
            assert!(!text.contains(bad), "{args:?}: {text:?}");
            shown.push_str(&text);
        }
    }
    let escaped = r"n\u{1b}\u{7}\u{7f}\u{9b}\u{202e}\u{2066}";
    for part in ["t", "k", "v", "d"] {
        assert!(shown.contains(&format!("{part}{escaped}")), "{part}: {shown}");
    }
    let program = env!("CARGO_BIN_EXE_woodchuck");
    let lost = files.path(&format!("lost{name}.db"));
    for args in [["doctor".as_ref(), path.as_os_str()], ["doctor".as_ref(), lost.as_os_str()]] {
        let output = Command::new(program).args(args).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains(bad) && text.contains(escaped), "{text:?}");
    }
}

#[test]
fn a_script_that_leaves_rows_out_says_so() {
    let files = Files::new(
        "CREATE TABLE h(rowid, _rowid_, oid); CREATE TABLE t(id INTEGER PRIMARY KEY)",
        &["INSERT INTO h VALUES(1,2,3)", "INSERT INTO t VALUES(7)"],
    );
    let output = inspect(&files.path("app.db"), &["--view", "rows", "--format", "sql"]);
    assert_eq!(output.status.code(), Some(1));
    let (script, notes) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(script.contains("INSERT INTO \"t\"(\"id\") VALUES(7);"), "{script}");
    assert!(
        notes.starts_with("note: table h hides the rowid") && notes.contains("error: the script is not complete"),
        "{notes}"
    );
}
