//! A backup takes the place of the database, as operators do it: the application is stopped, the file put in place, the application started.
//! The new file loses no row to us, and the other nodes follow it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::support::cluster::{Cluster, wait_for};

const ROWS: usize = 400;

fn schema() -> String {
    format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n); CREATE INDEX t_v ON t(v);
         WITH RECURSIVE ids(id) AS (VALUES(1) UNION ALL SELECT id + 1 FROM ids WHERE id < {ROWS})
         INSERT INTO t SELECT id, 'row ' || id || hex(zeroblob(60)), 0 FROM ids;"
    )
}

/// Another process with another SQLite: what it says on stderr is the application's trouble, and there must be none.
fn outside(db: &Path, sql: &str) {
    let program =
        "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=10)\nc.executescript(sys.argv[2])\nc.close()";
    let done = Command::new("python3").args(["-c", program]).arg(db).arg(sql).stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "the application failed: {}", String::from_utf8_lossy(&done.stderr));
}

fn wait_until_one_file(db: &Path) {
    let log = PathBuf::from(format!("{}-wal", db.display()));
    wait_for("an empty log", || match std::fs::metadata(&log).map_or(0, |log| log.len()) {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes")),
    });
}

/// How the operator puts the backup in place.
#[derive(Debug, Clone, Copy)]
enum Restore {
    Move,
    CopyInto,
    RemoveAndCopy,
}

impl Restore {
    fn put(self, backup: &Path, db: &Path) {
        match self {
            Restore::Move => std::fs::rename(backup, db).unwrap(),
            Restore::CopyInto => {
                let done = Command::new("cp").arg(backup).arg(db).status().unwrap();
                assert!(done.success());
            }
            Restore::RemoveAndCopy => {
                std::fs::remove_file(db).unwrap();
                std::fs::copy(backup, db).unwrap();
            }
        }
    }
}

/// A backup is taken, life goes on for a while, and then the backup comes back; `attached` says whether the daemon sees it happen.
fn restore(how: Restore, attached: bool) {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    let backup = db.with_file_name("backup.db");
    outside(&db, "INSERT INTO t VALUES(10001, 'in the backup', 1)");
    wait_until_one_file(&db);
    std::fs::copy(&db, &backup).unwrap();

    outside(
        &db,
        "INSERT INTO t VALUES(10002, 'after the backup', 1); UPDATE t SET n = 1 WHERE id <= 10; DELETE FROM t WHERE id = 20",
    );
    outside(&cluster.nodes[1].db, "INSERT INTO t VALUES(20001, 'of the other node', 1)");
    assert_eq!(cluster.settle()["t"].len(), ROWS + 2);
    wait_until_one_file(&db);
    if !attached {
        cluster.nodes[0].stop();
    }
    how.put(&backup, &db);
    if attached {
        outside(&db, "INSERT INTO t VALUES(10003, 'written to the restored file', 1)");
        cluster.nodes[0].wait_until_it_says("attached anew");
    } else {
        outside(&db, "INSERT INTO t VALUES(10003, 'written to the restored file', 1)");
        cluster.nodes[0].start();
    }
    outside(&cluster.nodes[1].db, "INSERT INTO t VALUES(20002, 'of the other node', 2)");
    let rows = cluster.settle().remove("t").unwrap();
    let has = |what: &str| rows.iter().any(|row| row.contains(what));
    // What the operator brought back is the truth, and nothing that was written to it since is gone.
    assert!(
        has("in the backup") && has("written to the restored file") && has("of the other node'|integer:2"),
        "{rows:?}"
    );
    assert!(!has("after the backup") && !has("of the other node'|integer:1"), "{rows:?}");
    assert_eq!(rows.len(), ROWS + 3);
    assert!(rows.iter().filter(|row| row.starts_with("integer:5|") || row.starts_with("integer:20|")).count() == 2);
    cluster.stop();
}

#[test]
fn a_backup_moved_over_the_name_is_attached_anew() {
    restore(Restore::Move, true);
}

#[test]
fn a_backup_copied_into_the_file_is_attached_anew() {
    restore(Restore::CopyInto, true);
}

#[test]
fn a_backup_copied_to_the_name_of_a_removed_file_is_attached_anew() {
    restore(Restore::RemoveAndCopy, true);
}

/// The log was never all in the file then, and nothing told that something else wrote to it: the daemon wrote on, with pages of both.
#[test]
fn a_backup_copied_into_the_file_while_another_node_writes_is_not_mixed_with_its_rows() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    let backup = db.with_file_name("backup.db");
    outside(&db, "INSERT INTO t VALUES(10001, 'in the backup', 1)");
    wait_until_one_file(&db);
    std::fs::copy(&db, &backup).unwrap();

    let is_over = Arc::new(AtomicBool::new(false));
    let (ends, other) = (Arc::clone(&is_over), cluster.nodes[1].db.clone());
    let writer = std::thread::spawn(move || {
        let connection = Connection::open(other).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        let mut changes = 0;
        while !ends.load(Ordering::Relaxed) {
            let sql = "UPDATE t SET n = n + 1, v = v || '.' WHERE id < 10000 AND id % 40 = ?1";
            connection.execute(sql, [changes % 40]).unwrap();
            changes += 1;
            std::thread::sleep(Duration::from_millis(3));
        }
        changes
    });
    outside(&db, "INSERT INTO t VALUES(10002, 'after the backup', 1)");
    let is_busy = || match cluster.nodes[0].value("SELECT sum(n) FROM t WHERE id < 10000") {
        sum if sum.parse::<i64>().is_ok_and(|sum| sum > 400) => Ok(()),
        sum => Err(sum),
    };
    wait_for("rows of the other node", is_busy);
    Restore::CopyInto.put(&backup, &db);
    cluster.nodes[0].wait_until_it_says("attached anew");
    outside(&db, "INSERT INTO t VALUES(10003, 'written to the restored file', 1)");
    is_over.store(true, Ordering::Relaxed);
    assert!(writer.join().unwrap() > 0);
    let rows = cluster.settle().remove("t").unwrap();
    let has = |what: &str| rows.iter().any(|row| row.contains(what));
    assert!(has("in the backup") && has("written to the restored file") && !has("after the backup"), "{rows:?}");
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT group_concat(integrity_check) FROM pragma_integrity_check"), "'ok'");
    }
    assert!(cluster.nodes[0].log().contains("overwritten by another program"));
    cluster.stop();
}

/// Nobody saw the backup come into the file: the log that stands beside it fits the position, and not the file.
fn restore_while_nobody_can_see_it(how: Restore) {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    let backup = db.with_file_name("backup.db");
    outside(&db, "INSERT INTO t VALUES(10001, 'in the backup', 1)");
    wait_until_one_file(&db);
    std::fs::copy(&db, &backup).unwrap();
    outside(
        &backup,
        "DELETE FROM t WHERE id BETWEEN 100 AND 120; UPDATE t SET v = v || ' as in the backup' WHERE id < 50",
    );

    outside(&db, "UPDATE t SET n = 1, v = v || ' after the backup' WHERE id % 3 = 0");
    cluster.settle();
    wait_until_one_file(&db);
    // While an application has the database open, what the other node writes stays in the log.
    let mut application = application_that_stays(&db, "SELECT count(*) FROM t");
    outside(&cluster.nodes[1].db, "INSERT INTO t VALUES(20001, 'of the other node', 1)");
    cluster.settle();
    cluster.nodes[0].signal(rustix::process::Signal::STOP);
    application.kill().unwrap();
    application.wait().unwrap();
    how.put(&backup, &db);
    cluster.nodes[0].kill();
    assert!(std::fs::metadata(format!("{}-wal", db.display())).unwrap().len() > 0, "the log is there");
    cluster.nodes[0].start();
    let rows = cluster.settle().remove("t").unwrap();
    let has = |what: &str| rows.iter().any(|row| row.contains(what));
    assert!(has("as in the backup") && !has("after the backup") && !has("of the other node"));
    assert_eq!(rows.len(), ROWS + 1 - 21);
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT group_concat(integrity_check) FROM pragma_integrity_check"), "'ok'");
    }
    assert!(cluster.nodes[0].log().contains("overwritten by another program"), "{}", cluster.nodes[0].log());
    cluster.stop();
}

#[test]
fn a_backup_copied_into_the_file_of_a_daemon_that_was_killed_is_not_read_with_the_old_log() {
    restore_while_nobody_can_see_it(Restore::CopyInto);
}

#[test]
fn a_backup_moved_over_the_file_of_a_daemon_that_was_killed_is_not_read_with_the_old_log() {
    restore_while_nobody_can_see_it(Restore::Move);
}

/// A process that has the database open, has executed `sql`, and waits.
fn application_that_stays(db: &Path, sql: &str) -> Child {
    let program = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)\nc.execute(sys.argv[2]).fetchall()
print('done', flush=True)\nsys.stdin.read()";
    let mut child = Command::new("python3")
        .args(["-c", program])
        .arg(db)
        .arg(sql)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "done\n");
    child
}

/// The shadow cannot be compared with it. Making it anew would leave what changed meanwhile to this node alone.
#[test]
fn what_changed_under_another_page_size_is_found_when_the_old_one_is_back() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    cluster.nodes[0].stop();
    let with_pages = |bytes: u32| {
        format!("PRAGMA journal_mode = DELETE; PRAGMA page_size = {bytes}; VACUUM; PRAGMA journal_mode = WAL;")
    };
    outside(&db, &format!("{} INSERT INTO t VALUES(10001, 'on a larger page', 1)", with_pages(8192)));
    cluster.nodes[0].spawn();
    assert_eq!(cluster.nodes[0].wait_for_end().code(), Some(3), "{}", cluster.nodes[0].log());
    assert!(cluster.nodes[0].log().contains("its shadow has pages of 4096"), "{}", cluster.nodes[0].log());
    outside(&db, &with_pages(4096));
    cluster.nodes[0].start();
    assert_eq!(cluster.settle()["t"].len(), ROWS + 1);
    cluster.stop();
}

/// A time alone tells nothing of what is in the file.
#[test]
fn a_file_that_was_touched_is_the_same_file() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    outside(&db, "INSERT INTO t VALUES(10001, 'in the log', 1)");
    for id in 0..5 {
        outside(&cluster.nodes[1].db, &format!("INSERT INTO t VALUES({}, 'of the other node', 1)", 20_000 + id));
        assert!(Command::new("touch").arg(&db).status().unwrap().success());
    }
    // Right behind a commit, and right before one.
    for id in 0..40_u32 {
        let application = Connection::open(&db).unwrap();
        application.busy_timeout(Duration::from_secs(10)).unwrap();
        application.execute("INSERT INTO t VALUES(?1, 'in the log', 1)", [30_000 + id]).unwrap();
        drop(application);
        assert!(Command::new("touch").arg(&db).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(u64::from(20 * (id % 4))));
    }
    assert_eq!(cluster.settle()["t"].len(), ROWS + 46);
    assert!(!cluster.nodes[0].log().contains("overwritten"), "{}", cluster.nodes[0].log());
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT group_concat(integrity_check) FROM pragma_integrity_check"), "'ok'");
    }
    cluster.stop();
}

#[test]
fn a_backup_moved_over_the_name_while_the_daemon_is_down_is_a_local_change() {
    restore(Restore::Move, false);
}

#[test]
fn a_backup_copied_into_the_file_while_the_daemon_is_down_is_a_local_change() {
    restore(Restore::CopyInto, false);
}

#[test]
fn a_larger_database_under_the_name_gives_its_application_no_error() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    let larger = db.with_file_name("larger.db");
    wait_until_one_file(&db);
    std::fs::copy(&db, &larger).unwrap();
    outside(
        &larger,
        "WITH RECURSIVE ids(id) AS (VALUES(1000) UNION ALL SELECT id + 1 FROM ids WHERE id < 4000)
         INSERT INTO t SELECT id, 'more ' || hex(randomblob(100)), 0 FROM ids",
    );
    std::fs::rename(&larger, &db).unwrap();
    outside(&db, "INSERT INTO t VALUES(10003, 'written to the new file', 1)");
    let rows = cluster.settle().remove("t").unwrap();
    assert_eq!(rows.len(), ROWS + 3002);
    cluster.stop();
}

#[test]
fn a_backup_that_would_delete_much_is_refused_and_left_as_it_is_until_it_is_accepted() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    let backup = db.with_file_name("backup.db");
    wait_until_one_file(&db);
    std::fs::copy(&db, &backup).unwrap();
    outside(&backup, "DELETE FROM t WHERE id > 100");
    let before = std::fs::read(&backup).unwrap();
    std::fs::rename(&backup, &db).unwrap();
    let ended = cluster.nodes[0].wait_for_end();
    assert_eq!(ended.code(), Some(3), "{}", cluster.nodes[0].log());
    assert!(cluster.nodes[0].log().contains("--accept-restored"), "{}", cluster.nodes[0].log());
    assert_eq!(cluster.nodes[0].status().unwrap().phase, "stopped");
    assert!(std::fs::read(&db).unwrap() == before, "the new file is as it was");
    assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM t"), ROWS.to_string());

    cluster.nodes[0].args.push("--accept-restored".into());
    cluster.nodes[0].start();
    assert_eq!(cluster.settle()["t"].len(), 100);
    cluster.stop();
}

#[test]
fn a_missing_file_is_waited_for() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    let aside = db.with_file_name("aside.db");
    wait_until_one_file(&db);
    std::fs::copy(&db, &aside).unwrap();
    std::fs::remove_file(&db).unwrap();
    cluster.nodes[0].wait_until_it_says("check the path");
    assert_eq!(cluster.nodes[0].status().unwrap().phase, "waiting");
    outside(&cluster.nodes[1].db, "INSERT INTO t VALUES(20001, 'meanwhile', 1)");
    std::fs::rename(&aside, &db).unwrap();
    cluster.nodes[0].wait_until_it_says("attached anew");
    assert_eq!(cluster.settle()["t"].len(), ROWS + 1);

    // A stop while it waits is a stop.
    std::fs::remove_file(&db).unwrap();
    cluster.nodes[0].wait_until_it_says("was replaced by another");
    wait_for("waiting", || match cluster.nodes[0].status()?.phase.as_str() {
        "waiting" => Ok(()),
        phase => Err(phase.to_owned()),
    });
    cluster.nodes[0].stop();
    cluster.nodes[1].stop();
}

/// The script that restores a backup does not wait for anybody.
#[test]
fn a_backup_moved_over_the_name_right_after_the_last_commit_is_not_mixed_with_its_log() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    wait_until_one_file(&db);
    for turn in 0..5 {
        let backup = db.with_file_name("backup.db");
        std::fs::copy(&db, &backup).unwrap();
        outside(&db, "UPDATE t SET v = v || ' of the old file', n = n + 100 WHERE id % 3 = 0");
        std::fs::rename(&backup, &db).unwrap();
        outside(&db, &format!("INSERT INTO t VALUES({}, 'new file', 7)", 30_000 + turn));
        let rows = cluster.settle().remove("t").unwrap();
        assert!(!rows.iter().any(|row| row.contains("of the old file")), "turn {turn}: {rows:?}");
        assert_eq!(rows.iter().filter(|row| row.ends_with("'new file'|integer:7")).count(), turn + 1);
        wait_until_one_file(&db);
        let beside = db.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = beside.filter(|name| name.to_string_lossy().contains("-wal-of-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    cluster.stop();
}

#[test]
fn a_log_removed_under_the_daemon_is_noticed() {
    let mut cluster = Cluster::start(2, &schema());
    let db = cluster.nodes[0].db.clone();
    outside(&db, "INSERT INTO t VALUES(10001, 'before', 1)");
    cluster.settle();
    wait_until_one_file(&db);
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", db.display())).unwrap();
    }
    outside(&db, "INSERT INTO t VALUES(10002, 'after', 1)");
    outside(&db, "INSERT INTO t VALUES(10003, 'after', 1)");
    assert_eq!(cluster.settle()["t"].len(), ROWS + 3);
    cluster.stop();
}
