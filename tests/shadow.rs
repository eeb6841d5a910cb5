//! The shadow: what changes while nobody follows is found again, exactly once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use woodchuck::capture::{
    CaptureError, CheckpointOptions, FollowError, Follower, HeldCompareError, Position, ShadowError, Started,
};
use woodchuck::change::{ChangeSink, Op, RowChange, SchemaChange, TxSpan, canonical_key};

use crate::support::oracle::{self, Rows};
use crate::support::random::Random;

/// When the process is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Never,
    /// In the middle of the nth transaction from now.
    During(u64),
    /// After the journal was written, before the position was stored.
    BeforeStoring(u64),
    /// Right after the position was stored.
    AfterStoring(u64),
    /// The sink refuses the nth transaction, and nobody dies.
    Refusal(u64),
}

/// What a node stores: rows and position, both in one commit.
#[derive(Debug)]
struct Node {
    tables: BTreeMap<String, Rows>,
    stored: Option<Position>,
    open: Vec<RowChange>,
    death: Death,
    transactions: u64,
    repairs: u64,
    changes: u64,
    schema_changes: u64,
}

struct Killed;

impl Node {
    fn of(path: &Path) -> Node {
        let connection = Connection::open(path).unwrap();
        let tables = rows_of(&connection);
        Node {
            tables,
            stored: None,
            open: Vec::new(),
            death: Death::Never,
            transactions: 0,
            repairs: 0,
            changes: 0,
            schema_changes: 0,
        }
    }

    fn due(&mut self) -> bool {
        let left = match &mut self.death {
            Death::Never => return false,
            Death::During(left) | Death::BeforeStoring(left) | Death::AfterStoring(left) | Death::Refusal(left) => left,
        };
        *left = left.saturating_sub(1);
        *left == 0
    }

    fn take(&mut self, change: RowChange) {
        let rows = self.tables.entry(change.table.name.to_ascii_lowercase()).or_default();
        let key = canonical_key(&change.table, &change.key);
        assert_eq!(
            rows.get(&key),
            change.before.as_ref(),
            "the row before is what the changes so far made it: nothing is missing, nothing comes twice ({change:?})"
        );
        match change.op {
            Op::Delete => rows.remove(&key),
            Op::Insert | Op::Update => rows.insert(key, change.after.unwrap()),
        };
    }

    fn assert_equals(&self, connection: &Connection) {
        let mine: BTreeMap<_, _> = self.tables.iter().filter(|(_, rows)| !rows.is_empty()).collect();
        let theirs = rows_of(connection);
        let theirs: BTreeMap<_, _> = theirs.iter().filter(|(_, rows)| !rows.is_empty()).collect();
        assert_eq!(mine.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        for (name, rows) in mine {
            assert!(
                rows == theirs[name],
                "table {name} differs: {} rows, {} in SQLite",
                rows.len(),
                theirs[name].len()
            );
        }
    }
}

fn rows_of(connection: &Connection) -> BTreeMap<String, Rows> {
    oracle::database(connection).into_iter().map(|(name, (_, rows))| (name, rows)).collect()
}

impl ChangeSink<&'static str> for Node {
    fn begin(&mut self, _: &TxSpan) -> Result<(), &'static str> {
        self.open.clear();
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), &'static str> {
        self.schema_changes += 1;
        Ok(())
    }
    fn change(&mut self, change: RowChange) -> Result<(), &'static str> {
        if matches!(self.death, Death::During(1)) {
            resume_unwind(Box::new(Killed));
        }
        self.open.push(change);
        Ok(())
    }
    fn commit(&mut self, span: &TxSpan, changes: u64) -> Result<(), &'static str> {
        assert_eq!(changes as usize, self.open.len());
        let due = self.due();
        match self.death {
            Death::BeforeStoring(_) if due => resume_unwind(Box::new(Killed)),
            Death::Refusal(_) if due => {
                self.death = Death::Never;
                return Err("refused");
            }
            _ => {}
        }
        for change in std::mem::take(&mut self.open) {
            self.take(change);
        }
        let TxSpan { salts, frame_last: frame, checksum, page_count, .. } = *span;
        self.stored = Some(Position { salts, frame, checksum, page_count });
        self.transactions += 1;
        self.repairs += u64::from(span.repaired);
        self.changes += changes;
        if matches!(self.death, Death::AfterStoring(_)) && due {
            resume_unwind(Box::new(Killed));
        }
        Ok(())
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    shadow: PathBuf,
}

impl Scene {
    fn new(setup: &str) -> Scene {
        let dir = crate::support::folder();
        let (path, shadow) = (dir.path().join("app.db"), dir.path().join("app.db-woodchuck"));
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = WAL").unwrap();
        connection.execute_batch(setup).unwrap();
        Scene { path, shadow, _dir: dir }
    }

    fn open(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
        connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
        connection
    }

    /// Another process writes and closes the database.
    fn other_process(&self, sql: &str) {
        let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=30)\nc.executescript(sys.argv[2])\nc.close()";
        let status = Command::new("python3").args(["-c", script]).arg(&self.path).arg(sql).status();
        assert!(status.expect("python3 is needed as an outside writer").success());
    }

    fn attach(&self, node: &mut Node) -> Result<Follower, CaptureError> {
        let follower =
            Follower::attach_with_shadow(&self.path, &self.shadow, node.stored, &mut |_| ControlFlow::Continue(()))?;
        if node.stored.is_none() {
            node.stored = Some(follower.position());
        }
        Ok(follower)
    }

    /// Attaches, reads to the end, and is gone without a word.
    fn catch_up(&self, node: &mut Node) -> Started {
        let mut follower = self.attach(node).unwrap();
        drain(&mut follower, node);
        follower.started().unwrap_or(Started::Already)
    }
}

fn drain(follower: &mut Follower, node: &mut Node) {
    loop {
        let polled = follower.poll(node).unwrap();
        follower.maintain(node).unwrap();
        if !polled.more {
            return;
        }
    }
}

const TABLE: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INTEGER);
    WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 1000)
    INSERT INTO t SELECT i, hex(randomblob(20)), 0 FROM c;";

#[test]
fn changes_made_while_nobody_follows_are_read_from_the_log_if_it_still_has_them() {
    let scene = Scene::new(TABLE);
    let keeper = scene.open();
    // Our position is in the log, behind a frame.
    keeper.execute_batch("UPDATE t SET n = 7 WHERE id = 1").unwrap();
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    keeper.execute_batch("UPDATE t SET n = 1 WHERE id < 10; INSERT INTO t VALUES(2000, 'x', 2)").unwrap();
    scene.other_process("DELETE FROM t WHERE id = 500");
    assert_eq!(scene.catch_up(&mut node), Started::Resumed);
    assert_eq!((node.transactions, node.repairs), (3, 0), "transaction by transaction");
    node.assert_equals(&keeper);
    assert_eq!(scene.catch_up(&mut node), Started::Resumed);
    assert_eq!(node.transactions, 3, "nothing comes twice");
}

#[test]
fn images_before_are_right_although_the_file_has_frames_that_were_not_read() {
    let scene = Scene::new(TABLE);
    let keeper = scene.open();
    // Our position is in the log, behind a frame.
    keeper.execute_batch("UPDATE t SET n = 7 WHERE id = 1").unwrap();
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    keeper.execute_batch("UPDATE t SET n = 1 WHERE id < 100").unwrap();
    // A reader lets the checkpoint copy the first transaction and not the second.
    let reader = scene.open();
    reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    keeper.execute_batch("UPDATE t SET n = 2 WHERE id < 200; PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    drop(reader);
    assert_eq!(scene.catch_up(&mut node), Started::Resumed);
    assert_eq!(node.transactions, 2);
    node.assert_equals(&keeper);
}

#[test]
fn a_wholly_checkpointed_log_gives_one_transaction_without_a_comparison() {
    let scene = Scene::new(TABLE);
    let keeper = scene.open();
    let mut node = Node::of(&scene.path);
    // Our position is in the log, behind a frame.
    keeper.execute_batch("UPDATE t SET n = 1 WHERE id = 1").unwrap();
    node.tables = rows_of(&keeper);
    scene.catch_up(&mut node);
    keeper.execute_batch("UPDATE t SET n = 1 WHERE id < 100; UPDATE t SET n = 2 WHERE id < 200").unwrap();
    keeper.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
    let mut follower = scene.attach(&mut node).unwrap();
    let mut compared = false;
    let started = follower
        .catch_up(&mut node, &mut |_| {
            compared = true;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(matches!(started, Started::Repaired { changes: 199, .. }), "{started:?}");
    assert!(!compared);
    drain(&mut follower, &mut node);
    node.assert_equals(&keeper);
}

#[test]
fn gaps_of_every_kind_are_repaired() {
    let gaps: [(&str, &str); 7] = [
        ("restarted", "PRAGMA wal_checkpoint(RESTART); UPDATE t SET n = 5 WHERE id < 50"),
        ("truncated", "PRAGMA wal_checkpoint(TRUNCATE)"),
        ("restarted without a write", "PRAGMA wal_checkpoint(RESTART)"),
        ("vacuumed", "DELETE FROM t WHERE id % 20 = 0; VACUUM"),
        (
            "grown",
            "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 30000)
            INSERT INTO t(v) SELECT hex(randomblob(100)) FROM c; PRAGMA wal_checkpoint(TRUNCATE)",
        ),
        ("schema", "ALTER TABLE t ADD COLUMN more DEFAULT 7; CREATE INDEX tn ON t(n); PRAGMA wal_checkpoint(TRUNCATE)"),
        ("page 1 alone", "PRAGMA user_version = 7; PRAGMA wal_checkpoint(TRUNCATE)"),
    ];
    for (name, gap) in gaps {
        for deleted_by_the_last_close in [false, true] {
            let scene = Scene::new(TABLE);
            let keeper = (!deleted_by_the_last_close).then(|| scene.open());
            let mut node = Node::of(&scene.path);
            scene.catch_up(&mut node);
            scene.other_process("UPDATE t SET n = 1 WHERE id < 10; INSERT INTO t(id, v) VALUES(100000, 'x')");
            scene.other_process(gap);
            if name == "schema" {
                // Rows are compared as the new columns show them.
                for row in node.tables.get_mut("t").unwrap().values_mut() {
                    row.push(woodchuck::format::Value::Integer(7));
                }
            }
            let started = scene.catch_up(&mut node);
            assert!(matches!(started, Started::Repaired { .. }), "{name}: {started:?}");
            assert_eq!(node.repairs, 1, "{name}");
            let check = scene.open();
            node.assert_equals(&check);
            let before = node.transactions;
            check.execute_batch("UPDATE t SET n = 9 WHERE id = 7").unwrap();
            scene.catch_up(&mut node);
            assert_eq!(node.transactions, before + 1, "{name}: what follows is taken as usual");
            node.assert_equals(&check);
            drop(keeper);
        }
    }
}

#[test]
fn an_unchanged_database_gives_no_change() {
    let scene = Scene::new(TABLE);
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    for _ in 0..3 {
        scene.other_process("SELECT 1; PRAGMA wal_checkpoint(TRUNCATE)");
        let started = scene.catch_up(&mut node);
        assert_eq!(started, Started::Repaired { pages: 0, changes: 0 });
    }
    assert_eq!(node.transactions, 0);
}

/// The look that counts deletes took the new structure for the one that the shadow has, and the daemon did not start again.
#[test]
fn a_vacuum_alone_moves_pages_and_changes_no_row() {
    let scene = Scene::new(TABLE);
    let mut node = Node::of(&scene.path);
    scene.other_process("CREATE TABLE other(id INTEGER PRIMARY KEY, v); INSERT INTO other SELECT id, hex(zeroblob(3000)) FROM t; DROP TABLE other;
        CREATE TABLE last(v); CREATE INDEX last_v ON last(v); INSERT INTO last SELECT v || id FROM t");
    scene.catch_up(&mut node);
    let given = node.transactions;
    scene.other_process("PRAGMA page_count; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
    let Started::Repaired { pages, changes: 0 } = scene.catch_up(&mut node) else {
        panic!("a gap without row changes")
    };
    assert!(pages > 10, "{pages}");
    assert_eq!(node.transactions, given);
    scene.other_process("UPDATE t SET n = n + 1 WHERE id < 20");
    scene.catch_up(&mut node);
    assert_eq!(node.transactions, given + 1);
}

#[test]
fn equal_bytes_under_a_new_owner_are_new_rows() {
    let fill = |table: &str, from: u32| {
        format!(
            "CREATE TABLE {table}(id INTEGER PRIMARY KEY, v TEXT); WITH RECURSIVE c(i) AS (VALUES({from}) UNION ALL SELECT i + 1 FROM c WHERE i < {from} + 500) INSERT INTO {table} SELECT i, 'value ' || i FROM c;"
        )
    };
    let scene = Scene::new(&format!("{}{}", fill("a", 1), fill("b", 10_000)));
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    // The pages of a become those of b and the other way round.
    scene.other_process(&format!("DROP TABLE a; DROP TABLE b; VACUUM; {}{}", fill("b", 1), fill("a", 10_000)));
    let mut follower = scene.attach(&mut node).unwrap();
    // Every row is deleted and comes back elsewhere.
    follower.set_accept_restored(true);
    let started = follower.catch_up(&mut node, &mut |_| ControlFlow::Continue(())).unwrap();
    drop(follower);
    assert!(matches!(started, Started::Repaired { changes, .. } if changes >= 2000), "{started:?}");
    node.assert_equals(&scene.open());
    // A table rebuilt under another name and renamed: no row changed.
    scene.other_process("CREATE TABLE n(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO n SELECT * FROM a; DROP TABLE a; ALTER TABLE n RENAME TO a");
    let changes = node.changes;
    scene.catch_up(&mut node);
    assert_eq!(node.changes, changes);
    node.assert_equals(&scene.open());
}

fn is_restored(error: &FollowError<&'static str>) -> bool {
    matches!(error, FollowError::Capture(CaptureError::Shadow(ShadowError::Restored { .. })))
}

#[test]
fn a_restored_backup_is_taken_only_if_told_so_when_it_deletes_much() {
    for by_rename in [true, false] {
        let scene = Scene::new(TABLE);
        let backup = scene.path.with_file_name("backup.db");
        std::fs::copy(&scene.path, &backup).unwrap();
        let mut node = Node::of(&scene.path);
        scene.catch_up(&mut node);
        scene.other_process("INSERT INTO t(v) SELECT v FROM t");
        scene.catch_up(&mut node);
        scene.other_process("UPDATE t SET n = 3 WHERE id = 4");
        // By rename through another file system's copy, or into the same file.
        if by_rename {
            std::fs::rename(&backup, &scene.path).unwrap();
        } else {
            let script = "import shutil,sys; shutil.copyfile(sys.argv[1], sys.argv[2])";
            assert!(
                Command::new("python3").args(["-c", script]).args([&backup, &scene.path]).status().unwrap().success()
            );
        }
        let mut follower = scene.attach(&mut node).unwrap();
        let error = follower.poll(&mut node).unwrap_err();
        assert!(is_restored(&error), "{error}");
        assert!(is_restored(&follower.poll(&mut node).unwrap_err()), "asking again changes nothing");
        drop(follower);
        let changes = node.changes;
        let mut follower = scene.attach(&mut node).unwrap();
        follower.set_accept_restored(true);
        drain(&mut follower, &mut node);
        assert_eq!(
            node.changes - changes,
            1000,
            "the rows that the backup lacks are deleted, and nothing else is sent"
        );
        node.assert_equals(&scene.open());
    }
}

/// A file system gives a file that is made the inode of one that was just removed, and a few rows less are no sign by themselves.
#[test]
fn another_database_with_the_inode_of_the_first_is_known_as_another() {
    let scene = Scene::new(TABLE);
    let mut node = Node::of(&scene.path);
    scene.other_process("DELETE FROM t WHERE id > 300");
    scene.catch_up(&mut node);
    let other = scene.path.with_file_name("other.db");
    std::fs::rename(&scene.path, &other).unwrap();
    let connection = Connection::open(&other).unwrap();
    // Its counters are further than those of the first, so only the file itself tells.
    connection.execute_batch("DELETE FROM t; CREATE TABLE later(a); DROP TABLE later; VACUUM").unwrap();
    drop(connection);
    let bytes = std::fs::read(&other).unwrap();
    std::fs::remove_file(&other).unwrap();
    std::fs::write(&scene.path, bytes).unwrap();
    let mut follower = scene.attach(&mut node).unwrap();
    let error = follower.poll(&mut node).unwrap_err();
    assert!(is_restored(&error), "{error}");
}

#[test]
fn a_log_that_lost_its_tail_is_refused() {
    let scene = Scene::new(TABLE);
    let wal = scene.path.with_file_name("app.db-wal");
    let mut node = Node::of(&scene.path);
    let (saved, file) = {
        let keeper = scene.open();
        scene.catch_up(&mut node);
        for id in 1..20 {
            keeper.execute("UPDATE t SET n = 1 WHERE id = ?", [id]).unwrap();
        }
        scene.catch_up(&mut node);
        (std::fs::read(&wal).unwrap(), std::fs::read(&scene.path).unwrap())
    };
    // What a power failure leaves: the file as it was, the log without its last pages, and nobody who remembers.
    let cut = scene.path.with_file_name("cut");
    std::fs::write(&cut, &file).unwrap();
    assert!(Command::new("cp").args([&cut, &scene.path]).status().unwrap().success());
    std::fs::write(&wal, &saved[..saved.len() - 3000]).unwrap();
    let mut follower =
        Follower::attach_with_shadow(&scene.path, &scene.shadow, node.stored, &mut |_| ControlFlow::Continue(()))
            .unwrap();
    let error = follower.poll(&mut node).unwrap_err();
    assert!(matches!(error, FollowError::Capture(CaptureError::Shadow(ShadowError::WentBack { .. }))), "{error}");
}

#[test]
fn the_first_copy_is_exact_while_others_write_and_checkpoint() {
    let scene = Scene::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER, filler); CREATE TABLE done(writer);
        WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
        INSERT INTO t SELECT i, 0, hex(randomblob(5000)) FROM n;",
    );
    let spawn = |mode: &str, count: &str| {
        Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/writer.py"))
            .arg(&scene.path)
            .args([mode, count, "3"])
            .spawn()
            .unwrap()
    };
    // Left by a copy that was interrupted.
    std::fs::create_dir_all(&scene.shadow).unwrap();
    std::fs::write(scene.shadow.join("shadow.db.tmp"), b"half").unwrap();
    std::fs::write(scene.shadow.join("shadow.journal"), b"half").unwrap();
    let mut children = [spawn("update", "4000"), spawn("checkpoint", "1")];
    let mut told = 0;
    let mut follower = Follower::attach_with_shadow(&scene.path, &scene.shadow, None, &mut |progress| {
        told = progress.done_bytes;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(told > 10 << 20 || told == 0, "{told}");
    let copy = scene.path.with_file_name("copy.db");
    std::fs::copy(scene.shadow.join("shadow.db"), &copy).unwrap();
    let mut node = Node::of(&copy);
    node.stored = Some(follower.position());
    loop {
        let finished = children.iter_mut().all(|child| child.try_wait().unwrap().is_some());
        drain(&mut follower, &mut node);
        if finished {
            break;
        }
    }
    drain(&mut follower, &mut node);
    println!("{} transactions after the copy", node.transactions);
    assert!(node.transactions > 0, "the copy was faster than the writers");
    node.assert_equals(&scene.open());
    follower.merge().unwrap();
    drop(follower);
    std::fs::copy(scene.shadow.join("shadow.db"), &copy).unwrap();
    let shadow = Connection::open(&copy).unwrap();
    let verdict: String = shadow.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    node.assert_equals(&shadow);
}

#[test]
fn a_damaged_shadow_is_one_typed_error() {
    let scene = Scene::new(TABLE);
    let keeper = scene.open();
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    keeper.execute_batch("UPDATE t SET n = 1 WHERE id = 1").unwrap();
    scene.catch_up(&mut node);
    let journal = scene.shadow.join("shadow.journal");
    let good = std::fs::read(&journal).unwrap();
    let attach = |node: &mut Node| match scene.attach(node) {
        Err(CaptureError::Shadow(error)) => {
            assert!(error.hint().contains("--new-shadow"), "{error}");
            error
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a damaged shadow was taken"),
    };
    let mut bad = good.clone();
    bad[1024 + 80] ^= 1;
    std::fs::write(&journal, &bad).unwrap();
    assert!(matches!(attach(&mut node), ShadowError::NotAtPosition { .. }));
    std::fs::write(&journal, &good[..good.len() - 1]).unwrap();
    assert!(matches!(attach(&mut node), ShadowError::NotAtPosition { .. }));
    std::fs::write(&journal, b"nothing of ours").unwrap();
    assert!(matches!(attach(&mut node), ShadowError::Damaged { .. }));
    std::fs::remove_file(&journal).unwrap();
    assert!(matches!(attach(&mut node), ShadowError::Missing { .. }));
    std::fs::write(&journal, &good).unwrap();
    scene.catch_up(&mut node);
    std::fs::write(scene.shadow.join("shadow.db"), b"SQLite format 4").unwrap();
    assert!(matches!(attach(&mut node), ShadowError::Damaged { .. }));
}

#[test]
fn an_interrupted_merge_is_done_again() {
    let scene = Scene::new(TABLE);
    let keeper = scene.open();
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    keeper.execute_batch("DELETE FROM t WHERE id > 960; UPDATE t SET n = 4").unwrap();
    keeper.execute_batch("INSERT INTO t(v) SELECT hex(randomblob(500)) FROM t").unwrap();
    let mut follower = scene.attach(&mut node).unwrap();
    drain(&mut follower, &mut node);
    let journal = scene.shadow.join("shadow.journal");
    let before = std::fs::read(&journal).unwrap();
    let image = std::fs::read(scene.shadow.join("shadow.db")).unwrap();
    follower.merge().unwrap();
    drop(follower);
    let merged = std::fs::read(scene.shadow.join("shadow.db")).unwrap();
    assert_ne!(merged, image);
    // At every stage of the merge: some pages written, and the journal still as it was.
    for part in [0, 1, 3, 10] {
        let mut half = image.clone();
        let upto = merged.len() / 10 * part;
        half.resize(half.len().max(upto), 0);
        half[..upto].copy_from_slice(&merged[..upto]);
        std::fs::write(scene.shadow.join("shadow.db"), &half).unwrap();
        std::fs::write(&journal, &before).unwrap();
        scene.other_process("PRAGMA wal_checkpoint(TRUNCATE)");
        let started = scene.catch_up(&mut node);
        assert_eq!(started, Started::Repaired { pages: 0, changes: 0 }, "stage {part}");
        let mut follower = scene.attach(&mut node).unwrap();
        follower.merge().unwrap();
        assert_eq!(std::fs::read(scene.shadow.join("shadow.db")).unwrap(), merged);
    }
    node.assert_equals(&keeper);
}

/// One step of an application, in this process or another.
fn application_step(scene: &Scene, connection: &mut Option<Connection>, random: &mut Random, stamp: &mut i64) {
    if random.chance(8) {
        // The last close deletes the log.
        *connection = None;
    }
    let db = connection.get_or_insert_with(|| scene.open());
    // The follower runs in this thread: waiting for it would be waiting for ourselves.
    db.busy_timeout(std::time::Duration::ZERO).unwrap();
    *stamp += 1;
    let id = random.range(1, 400);
    let length_max = if random.chance(10) { 6000 } else { 60 };
    let text = "x".repeat(random.below(length_max) as usize);
    let done = match random.below(100) {
        0..=29 => db.execute(
            "INSERT INTO t VALUES(?1, ?2, ?3) ON CONFLICT DO UPDATE SET v = excluded.v, n = excluded.n",
            (id, &text, *stamp),
        ),
        30..=44 => db.execute("INSERT OR REPLACE INTO k VALUES('k' || ?1, ?2, ?3)", (id / 2, &text, *stamp)),
        45..=54 => db.execute("INSERT OR REPLACE INTO w VALUES(?1, ?2, ?3)", (id % 20, id, &text)),
        55..=62 => db.execute("INSERT INTO r VALUES(?1)", [*stamp]),
        63..=70 => db.execute("DELETE FROM t WHERE id = ?1", [id]),
        71..=75 => db.execute("DELETE FROM r WHERE v % 3 = ?1", [id % 3]),
        76..=79 => db.execute("DELETE FROM k WHERE n < ?1", [*stamp - 100]),
        80..=82 => db.execute("UPDATE t SET n = n + 1 WHERE id BETWEEN ?1 AND ?1 + 50", [id]),
        83 => db.execute("DELETE FROM t", []),
        84 => db.execute("CREATE INDEX IF NOT EXISTS tn ON t(n)", []),
        85 => db.execute("DROP INDEX IF EXISTS tn", []),
        86 => db.execute("UPDATE w SET v = ?1", [&text]),
        // Rows that do not change.
        87 => db.execute("UPDATE t SET n = n", []),
        88..=89 => db
            .execute_batch(
                "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, v TEXT, n INTEGER); INSERT INTO n SELECT * FROM t;
                 DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT",
            )
            .map(|()| 0),
        90..=91 => db.execute_batch("VACUUM").map(|()| 0),
        _ => {
            let mode = random.pick(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
            db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(0))
        }
    };
    match done {
        Ok(_) => {}
        Err(error) => assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy), "{error}"),
    }
}

const RANDOM_TABLES: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INTEGER);
    CREATE TABLE k(k TEXT PRIMARY KEY, v, n INTEGER); CREATE TABLE w(a, b, v, PRIMARY KEY(a, b)) WITHOUT ROWID; CREATE TABLE r(v);";

/// Lives: a process follows for some steps and dies at an arbitrary point; the application goes on meanwhile and afterwards.
fn lives(seed: u64, count: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let auto = *random.pick(&["NONE", "FULL", "INCREMENTAL"]);
    let scene = Scene::new(&format!("PRAGMA auto_vacuum = {auto}; VACUUM; {RANDOM_TABLES}"));
    let mut application = Some(scene.open());
    let mut stamp = 0;
    for _ in 0..30 {
        application_step(&scene, &mut application, &mut random, &mut stamp);
    }
    let mut node = Node::of(&scene.path);
    for _ in 0..count {
        let nth = random.below(12) + 1;
        node.death = match random.below(6) {
            0 => Death::Never,
            1 => Death::During(nth),
            2 => Death::BeforeStoring(nth),
            3 => Death::AfterStoring(nth),
            _ => Death::Refusal(nth),
        };
        let steps = random.below(25);
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let mut follower = scene.attach(&mut node).unwrap();
            follower.set_accept_restored(true);
            let passive_frames = random.range(5, 60) as u32;
            follower.set_checkpoint_options(CheckpointOptions {
                passive_frames,
                wal_bytes_max: 100 << 10,
                ..CheckpointOptions::default()
            });
            for _ in 0..steps {
                if random.chance(80) {
                    application_step(&scene, &mut application, &mut random, &mut stamp);
                }
                for result in [follower.poll(&mut node).map(|_| ()), follower.maintain(&mut node)] {
                    match result {
                        Ok(()) | Err(FollowError::Sink("refused")) => {}
                        Err(FollowError::Capture(CaptureError::Locked { .. })) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                if random.chance(15) {
                    follower.merge().unwrap();
                }
            }
        }));
        if let Err(panic) = lived
            && !panic.is::<Killed>()
        {
            resume_unwind(panic);
        }
        for _ in 0..random.below(12) {
            application_step(&scene, &mut application, &mut random, &mut stamp);
        }
    }
    node.death = Death::Never;
    let mut follower = scene.attach(&mut node).unwrap();
    follower.set_accept_restored(true);
    drain(&mut follower, &mut node);
    follower.merge().unwrap();
    drop(follower);
    node.assert_equals(&scene.open());
    let shadow = Connection::open(scene.shadow.join("shadow.db")).unwrap();
    let verdict: String = shadow.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    node.assert_equals(&shadow);
    (node.transactions, node.repairs)
}

#[test]
fn after_any_number_of_deaths_every_change_was_given_exactly_once() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(1..=40, |seed| seed..=seed);
    let (mut transactions, mut repairs) = (0, 0);
    for seed in seeds {
        match catch_unwind(|| lives(seed, 25)) {
            Ok((taken, repaired)) => {
                transactions += taken;
                repairs += repaired;
            }
            Err(panic) => {
                println!("SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    println!("{transactions} transactions, {repairs} of them repairs");
}

#[test]
#[ignore = "a measurement: prints a ratio, to be run alone and optimised"]
fn measure_a_comparison_with_the_shadow() {
    let scene = Scene::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INTEGER);
         WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 300000)
         INSERT INTO t SELECT i, hex(randomblob(400)), 0 FROM c; PRAGMA wal_checkpoint(TRUNCATE);",
    );
    let mut node = Node::of(&scene.path);
    node.tables.clear();
    scene.catch_up(&mut node);
    let cmp = || {
        let began = std::time::Instant::now();
        assert!(Command::new("cmp").arg(&scene.path).arg(scene.shadow.join("shadow.db")).status().unwrap().success());
        began.elapsed()
    };
    cmp();
    let both = cmp();
    let mut follower = scene.attach(&mut node).unwrap();
    let began = std::time::Instant::now();
    let started = follower.catch_up(&mut node, &mut |_| ControlFlow::Continue(())).unwrap();
    let repair = began.elapsed();
    assert_eq!(started, Started::Repaired { pages: 0, changes: 0 });
    println!("unchanged: cmp {both:?}, repair {repair:?}, ratio {:.2}", both.as_secs_f64() / repair.as_secs_f64());
}

struct Nobody;

impl ChangeSink<&'static str> for Nobody {
    fn begin(&mut self, _: &TxSpan) -> Result<(), &'static str> {
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), &'static str> {
        Ok(())
    }
    fn change(&mut self, _: RowChange) -> Result<(), &'static str> {
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), &'static str> {
        Ok(())
    }
}

/// A page was written to the journal whole for each of its frames, and once more by the merge: twice the log for scattered updates.
#[test]
fn keeping_the_shadow_writes_little_more_than_the_log() {
    let scene = Scene::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INTEGER);
         WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 30000)
         INSERT INTO t SELECT i, hex(randomblob(400)), 0 FROM c; PRAGMA wal_checkpoint(TRUNCATE);",
    );
    for (name, times, statement) in [
        ("scattered updates", 3000, "UPDATE t SET n = n + 1 WHERE id = abs(random()) % 30000"),
        ("inserts", 3000, "INSERT INTO t(v, n) SELECT hex(randomblob(400)), 0"),
        (
            "bulk inserts",
            3,
            "WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 10000)
            INSERT INTO t(v, n) SELECT hex(randomblob(400)), 0 FROM c",
        ),
    ] {
        let mut follower =
            Follower::attach_with_shadow(&scene.path, &scene.shadow, None, &mut |_| ControlFlow::Continue(())).unwrap();
        let db = scene.open();
        let (mut frames, mut last) = (0, follower.position());
        let written = follower.shadow_written_bytes();
        let mut following = std::time::Duration::ZERO;
        for _ in 0..times {
            db.execute(statement, []).unwrap();
            let began = std::time::Instant::now();
            while follower.poll(&mut Nobody).unwrap().more {}
            following += began.elapsed();
            follower.maintain(&mut Nobody).unwrap();
            let now = follower.position();
            let before = if now.salts == last.salts { last.frame.0 } else { 0 };
            frames += u64::from(now.frame.0 - before);
            last = now;
        }
        follower.merge().unwrap();
        let wal = frames * (1024 + 24);
        let shadow = follower.shadow_written_bytes() - written;
        let ratio = shadow as f64 / wal as f64;
        println!(
            "{name}: log {wal} bytes, shadow {shadow} bytes, ratio {ratio:.2}; {:?} a transaction",
            following / times
        );
        assert!(ratio <= 1.3, "{name}: {ratio:.2}");
    }
}

#[test]
fn a_copy_or_a_comparison_that_is_broken_off_begins_anew() {
    let scene = Scene::new(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, n, filler);
        WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000) INSERT INTO t SELECT i, 0, hex(randomblob(1000)) FROM n;",
    );
    let is_interrupted = |error: &CaptureError| matches!(error, CaptureError::Shadow(ShadowError::Interrupted));
    let attach =
        |position| Follower::attach_with_shadow(&scene.path, &scene.shadow, position, &mut |_| ControlFlow::Break(()));
    let error = attach(None).map(drop).unwrap_err();
    assert!(is_interrupted(&error), "{error}");
    let mut node = Node::of(&scene.path);
    scene.catch_up(&mut node);
    scene.open().execute("UPDATE t SET n = 1 WHERE id = 7", []).unwrap();
    let mut follower = attach(node.stored).unwrap();
    let error = follower.catch_up(&mut node, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(&error, FollowError::Capture(error) if is_interrupted(error)), "{error}");
    drop(follower);
    assert!(matches!(scene.catch_up(&mut node), Started::Repaired { changes: 1, .. }));
    node.assert_equals(&scene.open());
}

/// A node catches up from a snapshot that another node has made: rows are looked for in the pages of both, which lie there in any order.
#[test]
fn a_held_shadow_tells_what_makes_it_another_database() {
    const OTHERS: &str = "CREATE TABLE w(a TEXT COLLATE NOCASE, b INT, c, PRIMARY KEY(a, b DESC)) WITHOUT ROWID;
        INSERT INTO w SELECT v, id, n FROM t WHERE id % 3 = 0;
        CREATE TABLE k(name TEXT PRIMARY KEY, big BLOB); INSERT INTO k SELECT v, randomblob(id * 7) FROM t WHERE id < 300;
        CREATE TABLE plain(x); INSERT INTO plain SELECT v FROM t WHERE id > 900; CREATE INDEX kb ON k(length(big));";
    const CHANGE: &str = "UPDATE t SET v = 'changed' WHERE id % 100 = 7; DELETE FROM t WHERE id BETWEEN 400 AND 420;
        INSERT INTO t SELECT id + 5000, v, 1 FROM t WHERE id < 50; UPDATE w SET c = 'x' WHERE b < 40; DELETE FROM w WHERE b > 950;
        UPDATE k SET big = zeroblob(3000) WHERE length(big) = 700; INSERT INTO k VALUES('new', 1); DELETE FROM plain WHERE rowid < 20";
    let scene = Scene::new(&format!("{TABLE}{OTHERS}"));
    let keeper = scene.open();
    keeper.execute_batch("UPDATE t SET n = 3 WHERE id < 9").unwrap();
    let mut node = Node::of(&scene.path);
    let mut follower = scene.attach(&mut node).unwrap();
    drain(&mut follower, &mut node);
    let copy_to = |name: &str| {
        let other = scene.path.with_file_name(name);
        keeper.execute("VACUUM INTO ?1", [other.to_str().unwrap()]).unwrap();
        other
    };
    let vacuumed = copy_to("vacuumed.db");
    let changed = copy_to("changed.db");
    Connection::open(&changed).unwrap().execute_batch(CHANGE).unwrap();
    let rebuilt = scene.path.with_file_name("rebuilt.db");
    let connection = Connection::open(&rebuilt).unwrap();
    connection.execute("ATTACH ?1 AS old", [changed.to_str().unwrap()]).unwrap();
    connection.execute_batch("PRAGMA page_size = 1024; CREATE TABLE plain(x); CREATE TABLE k(name TEXT PRIMARY KEY, big BLOB);
        CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INTEGER); CREATE TABLE w(a TEXT COLLATE NOCASE, b INT, c, PRIMARY KEY(a, b DESC)) WITHOUT ROWID;
        INSERT INTO t SELECT * FROM old.t ORDER BY id DESC; INSERT INTO k SELECT * FROM old.k ORDER BY name; INSERT INTO w SELECT * FROM old.w;
        INSERT INTO plain(rowid, x) SELECT rowid, x FROM old.plain").unwrap();
    drop(connection);
    for other in [&vacuumed, &changed, &rebuilt] {
        let mut found = Node::of(&scene.path);
        let held = follower.hold_shadow().unwrap().unwrap();
        let compared = held.compare(other, &|| false, &mut found).unwrap();
        let mut names: Vec<&str> = compared.iter().map(|table| table.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["k", "plain", "t", "w"], "{}", other.display());
        found.assert_equals(&Connection::open(other).unwrap());
        if other == &vacuumed {
            assert_eq!(found.changes, 0, "rows that lie elsewhere are no change");
        }
    }
    let held = follower.hold_shadow().unwrap().unwrap();
    let mut found = Node::of(&scene.path);
    let stopped = held.compare(&changed, &|| true, &mut found);
    assert!(matches!(stopped, Err(HeldCompareError::Stopped)), "{stopped:?}");
    let wide = scene.path.with_file_name("wide.db");
    let connection = Connection::open(&wide).unwrap();
    connection
        .execute_batch("PRAGMA page_size = 4096; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INTEGER)")
        .unwrap();
    let other = held.compare(&wide, &|| false, &mut found);
    assert!(matches!(other, Err(HeldCompareError::OtherLayout)), "{other:?}");
    assert_eq!(found.changes, 0);
    drop(held);
    follower.detach().unwrap();
}
