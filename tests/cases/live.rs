//! What applications do to a log that is being followed.

use std::time::{Duration, Instant};

use super::{Application, Tail, database, wal_bytes};

/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_log_restarted_truncated_or_deleted_behind_the_follower_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    let mut tail = Tail::start(&path, "json");
    for (index, mode) in ["PASSIVE", "FULL", "RESTART", "TRUNCATE", "close"].into_iter().cycle().take(20).enumerate() {
        application.must(&format!("INSERT INTO t(v) VALUES({index})"));
        if mode == "close" {
            application.close();
            application = Application::start(&path);
        } else {
            application.must(&format!("PRAGMA wal_checkpoint({mode})"));
        }
        application.must(&format!("UPDATE t SET v=v||'.' WHERE v={index}"));
        let inserted = tail.transaction();
        assert_eq!(inserted[1]["after"]["v"], index, "the insert before {mode}");
        let updated = tail.transaction();
        assert_eq!(updated[1]["before"]["v"], index, "the image before, after {mode}");
        assert_eq!(updated[1]["after"]["v"], format!("{index}."));
    }
    tail.stop();
    application.close();
}

#[test]
fn a_database_replaced_under_its_name_ends_the_tail_and_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    let tail = Tail::start(&path, "json");
    application.must("INSERT INTO t(v) VALUES('in the log')");
    let other = dir.path().join("restored.db");
    application.must(&format!("VACUUM INTO '{}'", other.display()));
    application.close();
    let restored = std::fs::read(&other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let (code, errors) = tail.end();
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("replaced") && errors.contains("\nhint: "), "{errors}");
    assert_eq!(errors.lines().count(), 2, "{errors}");
    assert!(std::fs::read(&path).unwrap() == restored, "the new file is not written");
}

#[test]
fn databases_of_one_directory_are_followed_apart() {
    let dir = tempfile::tempdir().unwrap();
    let one = database(dir.path());
    let two = dir.path().join("app.db2");
    std::fs::copy(&one, &two).unwrap();
    let (mut a, mut b) = (Application::start(&one), Application::start(&two));
    let (mut tail_a, mut tail_b) = (Tail::start(&one, "json"), Tail::start(&two, "json"));
    for index in 0..20 {
        a.must(&format!("INSERT INTO t(v) VALUES('a{index}')"));
        b.must(&format!("INSERT INTO t(v) VALUES('b{index}')"));
    }
    for index in 0..20 {
        assert_eq!(tail_a.transaction()[1]["after"]["v"], format!("a{index}"));
        assert_eq!(tail_b.transaction()[1]["after"]["v"], format!("b{index}"));
    }
    assert_eq!((tail_a.stop(), tail_b.stop()), (String::new(), String::new()));
    a.close();
    b.close();
}

#[test]
fn an_application_without_busy_timeout_sees_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::with_timeout(&path, "0");
    let tail = Tail::start(&path, "json");
    for index in 0..3000 {
        application.must(&format!("INSERT INTO t(v) VALUES({index})"));
    }
    let text = tail.stop();
    assert_eq!(text.matches(r#""op":"insert""#).count(), 3000);
    application.close();
}

#[test]
fn an_application_killed_in_a_transaction_leaves_no_trace_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut tail = Tail::start(&path, "json");
    for round in 0..5 {
        let mut application = Application::start(&path);
        application.must("PRAGMA cache_size=10");
        application.must(&format!("INSERT INTO t(v) VALUES('kept {round}')"));
        application.must("BEGIN IMMEDIATE");
        let rows = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<500)";
        application.must(&format!("INSERT INTO t(v) {rows} SELECT randomblob(2000) FROM n"));
        application.kill();
        let transaction = tail.transaction();
        assert_eq!(transaction.len(), 3, "{transaction:?}");
        assert_eq!(transaction[1]["after"]["v"], format!("kept {round}"));
    }
    let mut application = Application::start(&path);
    application.must("INSERT INTO t(v) VALUES('last')");
    assert_eq!(tail.transaction()[1]["after"]["v"], "last");
    assert_eq!(tail.stop(), "");
    assert_eq!(application.must("SELECT count(*) FROM t"), "[(7,)]");
    application.close();
}

/// SQLite before 3.51 commits frames without salts and checksums when a ROLLBACK TO follows a spill that rewrote frames; readers go by
/// the index in -shm and never notice. The follower took such a frame for damage and ended.
#[test]
fn frames_without_salts_after_a_rollback_to_a_savepoint_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    application.must("PRAGMA cache_size=5");
    let rows = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<400)";
    application.must(&format!("INSERT INTO t(v) {rows} SELECT randomblob(900) FROM n"));
    let mut tail = Tail::start(&path, "json");
    for round in 0..4 {
        application.must("BEGIN");
        application.must("SAVEPOINT s");
        application.must("UPDATE t SET v=zeroblob(901)");
        // The first pages are not written a second time: with them SQLite would find its way back.
        application.must("UPDATE t SET v=zeroblob(902) WHERE id>200");
        application.must("ROLLBACK TO s");
        application.must(&format!("UPDATE t SET v={round} WHERE id%9=0"));
        application.must("COMMIT");
        application.must(&format!("INSERT INTO t(v) VALUES('behind {round}')"));
        let transaction = tail.transaction();
        assert!(transaction.iter().all(|event| event["op"] != "update" || event["after"]["v"] == round));
        assert_eq!(tail.transaction()[1]["after"]["v"], format!("behind {round}"));
    }
    tail.stop();
    application.close();
}

#[test]
fn the_log_shrinks_to_its_bound_after_a_long_reader() {
    const BOUND: u64 = 8 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let (mut writer, mut reader) = (Application::start(&path), Application::start(&path));
    reader.must("BEGIN");
    reader.must("SELECT count(*) FROM t");
    let mut tail = Tail::start(&path, "json");
    for _ in 0..100 {
        writer.must("INSERT INTO t(v) VALUES(randomblob(100000))");
        tail.transaction();
    }
    assert!(wal_bytes(&path) > BOUND, "while somebody reads the log must grow");
    reader.must("COMMIT");
    // The file keeps its size; what counts is that it is used from its beginning again, so it stops growing.
    let mut salt = String::new();
    wait_until("the log is restarted", || {
        writer.must("INSERT INTO t(v) VALUES(1)");
        let transaction = tail.transaction();
        let now = transaction[0]["salt"].as_str().unwrap().to_owned();
        let restarted = !salt.is_empty() && now != salt;
        salt = now;
        restarted
    });
    tail.stop();
    reader.close();
    writer.close();
}

#[test]
fn an_update_that_changes_nothing_is_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    let tail = Tail::start(&path, "json");
    application.must("UPDATE t SET v=v");
    application.must("BEGIN");
    application.must("UPDATE t SET v=1");
    application.must("UPDATE t SET v='first'");
    application.must("COMMIT");
    assert_eq!(tail.stop(), "");
    application.close();
}

#[test]
fn equal_rows_of_tables_without_key_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    for table in 0..18 {
        application.must(&format!("CREATE TABLE k{table}(hnum, idx BLOB)"));
        application.must(&format!("INSERT INTO k{table} VALUES(1,x'00'),(1,x'00'),(1,x'00')"));
    }
    let mut tail = Tail::start(&path, "json");
    for table in 0..18 {
        application.must(&format!("DELETE FROM k{table} WHERE rowid=2"));
        let transaction = tail.transaction();
        assert_eq!((transaction.len(), &transaction[1]["key"]["rowid"]), (3, &2.into()), "{transaction:?}");
    }
    tail.stop();
    application.close();
}
