//! Snapshots: made while everything writes, restored, joined with, caught up from.

use std::path::Path;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::cluster::{Cluster, Node, application, tables, wait_for, woodchuck};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INT DEFAULT 1); CREATE TABLE counter(id INTEGER PRIMARY KEY, n INT);
    INSERT INTO counter VALUES(1, 0);
    CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT); CREATE TABLE named(id INTEGER PRIMARY KEY, name TEXT UNIQUE);
    WITH RECURSIVE s(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM s WHERE n < 50) INSERT INTO account SELECT n, 100 FROM s";

fn snapshots(cluster: &Cluster) -> Vec<Value> {
    let url = cluster.server.url();
    let output = woodchuck(&["snapshot", "list", "--format", "json", "--nats-url", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn save(cluster: &Cluster) {
    let url = cluster.server.url();
    let output = woodchuck(&["snapshot", "save", "--nats-url", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn restore(cluster: &Cluster, db: &Path, args: &[&str]) -> std::process::Output {
    let url = cluster.server.url();
    woodchuck(&["restore", "--nats-url", &url, "--db-path"]).arg(db).args(args).output().unwrap()
}

/// Inserts rows until each shard of the log has moved by `messages`; returns how many.
fn fill(node: &Node, first: u64, messages: u64) -> u64 {
    let applied = || node.status().map(|status| status.shards.values().map(|shard| shard.applied).collect::<Vec<_>>());
    let before = applied().unwrap();
    let mut count = 0;
    wait_for("the log to move", || {
        application(&node.db, "insert", &[&(first + count).to_string(), "50"]).end();
        count += 50;
        let now = applied()?;
        match now.iter().zip(&before).all(|(now, before)| *now >= before + messages) {
            true => Ok(()),
            false => Err(format!("{before:?} to {now:?}")),
        }
    });
    count
}

/// A node beside the others, in a directory of its own.
fn another(cluster: &Cluster, id: u64, args: &[&str]) -> Node {
    let db = cluster.dir.path().join(format!("node-{id}")).join("app.db");
    std::fs::create_dir_all(db.parent().unwrap()).unwrap();
    let url = cluster.server.url();
    Node::new(id, &db, &[&["--nats-url", url.as_str()], args].concat())
}

#[test]
fn a_node_without_a_file_begins_with_a_snapshot_that_it_asks_for() {
    let mut cluster = Cluster::start(1, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1, 'before', 1)");
    let mut third = another(&cluster, 3, &[]);
    third.start();
    cluster.nodes.push(third);
    assert_eq!(snapshots(&cluster).len(), 1);
    cluster.nodes[0].sql("INSERT INTO t VALUES(2, 'behind', 1)");
    cluster.nodes[1].sql("INSERT INTO t VALUES(3, 'from the new one', 1)");
    let tables = cluster.settle();
    assert_eq!(tables["t"].len(), 3);
    cluster.stop();
}

#[test]
fn a_node_without_a_file_waits_for_the_server() {
    let mut cluster = Cluster::start(1, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1, 'before', 1)");
    cluster.settle();
    cluster.server.end();
    let mut second = another(&cluster, 2, &[]);
    second.spawn();
    second.wait_until_it_says("there is no database yet, trying again");
    cluster.server.restart();
    second.wait_until_ready();
    cluster.nodes.push(second);
    assert_eq!(cluster.settle()["t"].len(), 1);
    cluster.stop();
}

/// `rm app.db` and nothing else: SQLite would throw the log away, and nobody knows what was in it alone.
#[test]
fn a_node_whose_file_was_removed_begins_anew_and_keeps_the_log_that_was_left() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1, 'before', 1)");
    cluster.settle();
    save(&cluster);
    let db = cluster.nodes[1].db.clone();
    let log = db.with_file_name("app.db-wal");
    cluster.nodes[1].kill();
    let left = {
        let application = Connection::open(&db).unwrap();
        application.execute_batch("INSERT INTO t VALUES(2, 'in the log alone', 1)").unwrap();
        std::fs::read(&log).unwrap()
    };
    for name in ["app.db", "app.db-shm"] {
        let _ = std::fs::remove_file(db.with_file_name(name));
    }
    std::fs::write(&log, &left).unwrap();
    cluster.nodes[1].start();
    cluster.nodes[1].sql("INSERT INTO t VALUES(3, 'from the new one', 1)");
    assert_eq!(cluster.settle()["t"].len(), 2);
    let beside = db.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = beside.filter(|path| path.to_string_lossy().contains("app.db-wal-of-")).collect();
    let [kept] = kept.as_slice() else { panic!("{kept:?}") };
    assert!(std::fs::read(kept).unwrap() == left, "as it was");
    cluster.stop();
}

/// Rows of a table that had UNIQUE beyond its key once travel by the table's name. A node that began with a snapshot after the index was
/// dropped did not know, and sent changes of one row in another order than everybody.
#[test]
fn a_node_that_begins_with_a_snapshot_sends_rows_the_way_of_the_others() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql(
        "CREATE TABLE once(id INTEGER PRIMARY KEY, v INT); CREATE UNIQUE INDEX once_v ON once(v);
        WITH RECURSIVE s(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM s WHERE n < 100) INSERT INTO once SELECT n, n FROM s",
    );
    cluster.settle();
    cluster.nodes[0].sql("DROP INDEX once_v");
    cluster.settle();
    save(&cluster);
    let mut third = another(&cluster, 3, &[]);
    third.start();
    cluster.nodes.push(third);
    cluster.settle();
    let applied = |node: &Node| node.status().unwrap().shards.values().map(|of| of.applied).collect::<Vec<_>>();
    let before = applied(&cluster.nodes[0]);
    assert!(before.len() > 1);
    cluster.nodes[2].sql("UPDATE once SET v = -v");
    // By key the hundred rows would be in all shards, and whole rounds are applied.
    let moved = wait_for("the rows", || {
        let now = applied(&cluster.nodes[0]);
        let moved = now.iter().zip(&before).filter(|(now, before)| now != before).count();
        if moved > 0 { Ok(moved) } else { Err(format!("{now:?}")) }
    });
    assert_eq!(moved, 1, "shards");
    cluster.nodes[0].sql("UPDATE once SET v = v + 1000");
    cluster.nodes[2].sql("UPDATE once SET v = v + 2000");
    cluster.settle();
    cluster.stop();
}

#[test]
fn a_node_without_a_file_says_so_when_nobody_has_a_snapshot() {
    let cluster = Cluster::prepare(1, SCHEMA, "", &[]);
    let mut alone = another(&cluster, 2, &[]);
    alone.spawn();
    assert_eq!(alone.wait_for_end().code(), Some(1));
    assert!(alone.log().contains("no such database, and no snapshot"), "{}", alone.log());
    assert!(!alone.db.exists() && !alone.state_dir().exists());
}

#[test]
fn snapshots_made_while_everything_writes_are_consistent_and_two_are_kept() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "100000"]);
    cluster.start_nodes();
    let writers = [
        application(&cluster.nodes[0].db, "transfer", &["6", "3"]),
        application(&cluster.nodes[1].db, "insert", &["1", "2000"]),
    ];
    for round in 0..4 {
        save(&cluster);
        let db = cluster.dir.path().join(format!("restored-{round}.db"));
        let output = restore(&cluster, &db, &[]);
        assert!(output.status.success(), "{output:?}");
        let sum: i64 = rusqlite::Connection::open(&db)
            .unwrap()
            .query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sum, 5000, "a transaction is torn");
    }
    writers.into_iter().for_each(|writer| drop(writer.end()));
    let listed = snapshots(&cluster);
    assert_eq!(listed.iter().map(|one| one["no"].as_u64().unwrap()).collect::<Vec<_>>(), [4, 3]);
    cluster.settle();
    // A node on a file that was restored long ago reads on from there.
    let db = cluster.dir.path().join("restored-3.db");
    let url = cluster.server.url();
    let mut late = Node::new(7, &db, &["--nats-url", &url, "--max-log-entries", "100000"]);
    late.start();
    cluster.nodes.push(late);
    cluster.settle();
    cluster.stop();
}

#[test]
fn snapshots_are_made_by_themselves_when_the_log_has_moved_half_its_length() {
    let mut cluster = Cluster::prepare(3, SCHEMA, "", &["--max-log-entries", "20", "--shards", "2"]);
    cluster.start_nodes();
    let url = cluster.server.url();
    let list = || {
        let args = ["snapshot", "list", "--format", "json", "--nats-url", &url, "--shards", "2"];
        String::from_utf8(woodchuck(&args).output().unwrap().stdout).unwrap()
    };
    for first in [1, 100_000, 200_000] {
        fill(&cluster.nodes[0], first, 12);
        cluster.settle();
    }
    wait_for("two snapshots", || match list().lines().count() {
        2 => Ok(()),
        other => Err(format!("{other}")),
    });
    cluster.stop();
}

#[test]
fn a_node_that_fell_behind_catches_up_while_its_application_writes() {
    let args = ["--max-log-entries", "20", "--shards", "2"];
    let mut cluster = Cluster::prepare(3, SCHEMA, "", &args);
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO named VALUES(1, 'one'), (2, 'two'), (3, 'three'); INSERT INTO t VALUES(9000, 'x', 1), (9001, 'y', 1)");
    cluster.settle();
    cluster.nodes[2].stop();
    let count = fill(&cluster.nodes[0], 10_000, 25) as usize;
    cluster.nodes[1].sql(
        "DELETE FROM t WHERE id = 9001; UPDATE named SET name = name || '!' WHERE id = 3; DELETE FROM named WHERE id = 2;
         INSERT INTO named VALUES(7, 'two'); UPDATE counter SET n = n + 5",
    );
    // What the absent node's application does meanwhile stays on top; where both did something the later on the log wins: this.
    cluster.nodes[2].sql("INSERT INTO t VALUES(5000, 'pending', 1); UPDATE t SET v = 'mine' WHERE id = 9000; INSERT INTO named VALUES(8, 'eight')");
    let writer = application(&cluster.nodes[2].db, "transfer", &["4", "5"]);
    cluster.nodes[2].start();
    assert!(cluster.nodes[2].log().contains("caught up from snapshot"), "{}", cluster.nodes[2].log());
    writer.end();
    let tables = cluster.settle();
    assert!(tables["t"].contains(&"integer:5000|text:'pending'|integer:1".to_owned()));
    assert!(tables["t"].contains(&"integer:9000|text:'mine'|integer:1".to_owned()));
    assert!(!tables["t"].iter().any(|row| row.starts_with("integer:9001")));
    assert_eq!(
        tables["named"],
        ["integer:1|text:'one'", "integer:3|text:'three!'", "integer:7|text:'two'", "integer:8|text:'eight'"]
    );
    assert_eq!(tables["t"].len(), count + 2);
    assert!(cluster.nodes[2].log().contains("compared for"), "not under the lock: {}", cluster.nodes[2].log());
    cluster.stop();
}

/// Two spellings of a key that its collation calls equal were taken for two rows, which did not fit together beside a UNIQUE value; and what the
/// absent node overrode was in nobody's journal.
#[test]
fn a_node_that_fell_behind_meets_its_own_rows_under_other_spellings_and_journals_what_it_overrides() {
    let schema = format!(
        "{SCHEMA}; CREATE TABLE user(name TEXT PRIMARY KEY COLLATE NOCASE, no INT UNIQUE, v TEXT);
         INSERT INTO user VALUES('ann', 1, 'as it was'), ('bob', 2, 'as it was')"
    );
    let args = ["--max-log-entries", "20", "--shards", "2"];
    let mut cluster = Cluster::prepare(2, &schema, "", &args);
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO t(id, v) VALUES(9000, 'x')");
    cluster.settle();
    cluster.nodes[1].stop();
    cluster.nodes[0].sql(
        "INSERT INTO user VALUES('carl', 3, 'there'); UPDATE user SET v = 'there' WHERE name = 'ann';
         UPDATE user SET name = 'BOB' WHERE no = 2; UPDATE t SET v = 'there' WHERE id = 9000",
    );
    fill(&cluster.nodes[0], 10_000, 25);
    cluster.nodes[1].sql(
        "INSERT INTO user VALUES('CARL', 4, 'here'); UPDATE user SET v = 'here' WHERE name = 'ann'; UPDATE user SET v = 'here' WHERE name = 'bob';
         UPDATE t SET v = 'here' WHERE id = 9000",
    );
    cluster.nodes[1].start();
    assert!(cluster.nodes[1].log().contains("caught up from snapshot"), "{}", cluster.nodes[1].log());
    let tables = cluster.settle();
    assert_eq!(
        tables["user"],
        ["text:'BOB'|integer:2|text:'here'", "text:'CARL'|integer:4|text:'here'", "text:'ann'|integer:1|text:'here'"]
    );
    assert!(tables["t"].contains(&"integer:9000|text:'here'|integer:1".to_owned()));
    let lost: Vec<String> = cluster.nodes[1].conflicts().iter().map(|conflict| conflict["lost"].to_string()).collect();
    assert_eq!(lost.iter().filter(|lost| lost.contains("there")).count(), 3, "{lost:?}");
    cluster.stop();
}

/// The path of the snapshot was read as UTF-16, and no file is called so: the node ended at every start.
#[test]
fn a_node_in_utf_16_that_fell_behind_catches_up() {
    let args = ["--max-log-entries", "20", "--shards", "2"];
    let mut cluster = Cluster::prepare(2, &format!("PRAGMA encoding = 'UTF-16le'; {SCHEMA}"), "", &args);
    cluster.start_nodes();
    cluster.settle();
    cluster.nodes[1].stop();
    let count = fill(&cluster.nodes[0], 10_000, 25) as usize;
    cluster.nodes[1].start();
    assert!(cluster.nodes[1].log().contains("caught up from snapshot"), "{}", cluster.nodes[1].log());
    assert_eq!(cluster.settle()["t"].len(), count);
    cluster.stop();
}

/// It waited for five minutes.
#[test]
fn a_node_whose_question_for_a_snapshot_nobody_answers_any_more_asks_again() {
    let mut cluster = Cluster::start(1, SCHEMA);
    cluster.nodes[0].stop();
    // One that takes the question and dies.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut third = runtime.block_on(async {
        let client = async_nats::connect(&cluster.server.url()).await.unwrap();
        let subject = "woodchuck-change-log-ask.8.snapshot".to_owned();
        let mut questions = client.queue_subscribe(subject, "woodchuck".to_owned()).await.unwrap();
        client.flush().await.unwrap();
        let mut third = another(&cluster, 3, &[]);
        third.spawn();
        assert!(futures_util::StreamExt::next(&mut questions).await.is_some());
        third
    });
    // Its connection goes with it: the server would go on asking it.
    drop(runtime);
    cluster.nodes[0].start();
    third.wait_until_ready();
    cluster.nodes.push(third);
    cluster.settle();
    cluster.stop();
}

#[test]
fn a_copy_that_the_log_does_not_reach_back_to_is_refused_and_replaced_on_demand() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "20"]);
    cluster.nodes[0].start();
    fill(&cluster.nodes[0], 1, 25);
    let second = &mut cluster.nodes[1];
    second.spawn();
    assert_eq!(second.wait_for_end().code(), Some(3), "{}", second.log());
    assert!(second.log().contains("woodchuck restore --replace"), "{}", second.log());
    let db = second.db.clone();
    let output = restore(&cluster, &db, &[]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let application = rusqlite::Connection::open(&db).unwrap();
    application.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
    let output = restore(&cluster, &db, &["--replace"]);
    assert_eq!(output.status.code(), Some(3), "an application has it open: {output:?}");
    drop(application);
    let output = restore(&cluster, &db, &["--replace"]);
    assert!(output.status.success(), "{output:?}");
    assert!(!db.with_extension("db-wal").exists());
    cluster.nodes[1].start();
    cluster.settle();
    cluster.stop();
}

#[test]
fn changes_that_nobody_else_has_are_not_restored_over() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1, 'a', 1)");
    cluster.settle();
    save(&cluster);
    cluster.nodes[1].stop();
    let db = cluster.nodes[1].db.clone();
    cluster.nodes[1].sql("INSERT INTO t VALUES(2, 'only here', 1)");
    let output = restore(&cluster, &db, &["--replace"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("were not published"), "{output:?}");
    assert_eq!(tables(&db)["t"].len(), 2);
    cluster.nodes[1].start();
    cluster.settle();
    cluster.nodes[1].stop();
    let output = restore(&cluster, &db, &["--replace"]);
    assert!(output.status.success(), "{output:?}");
    cluster.nodes[1].start();
    let tables = cluster.settle();
    assert_eq!(tables["t"].len(), 2);
    cluster.stop();
}

/// What only the damaged file has may be all that there is of it: it is moved away by hand, or not at all.
#[test]
fn a_damaged_database_is_not_replaced_until_it_is_moved_away() {
    let mut cluster = Cluster::start(2, SCHEMA);
    let rows = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT i, hex(randomblob(50)), 0 FROM n";
    cluster.nodes[0].sql(rows);
    cluster.settle();
    save(&cluster);
    cluster.nodes[1].stop();
    let db = cluster.nodes[1].db.clone();
    let whole = std::fs::read(&db).unwrap();
    // In its schema, and no database at all; shorter than it says.
    let mut damaged = [whole.clone(), whole.clone(), whole[..whole.len() / 2].to_vec()];
    damaged[0][100..4096].fill(0xff);
    damaged[1][..100].fill(0xff);
    for content in damaged {
        std::fs::write(&db, &content).unwrap();
        let output = restore(&cluster, &db, &["--replace"]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("move it away"), "{output:?}");
        assert!(std::fs::read(&db).unwrap() == content, "as it was");
    }
    std::fs::rename(&db, db.with_file_name("app.db-damaged")).unwrap();
    let output = restore(&cluster, &db, &[]);
    assert!(output.status.success(), "{output:?}");
    cluster.nodes[1].start();
    assert_eq!(cluster.settle()["t"].len(), 500);
    cluster.stop();
}

#[test]
fn a_new_node_with_other_content_is_refused_with_the_number_of_rows() {
    let mut cluster = Cluster::start(1, SCHEMA);
    let mut other = another(&cluster, 2, &[]);
    let made = rusqlite::Connection::open(&other.db).unwrap();
    made.execute_batch(SCHEMA).unwrap();
    made.execute_batch("UPDATE account SET balance = 7 WHERE id IN (3, 4); DELETE FROM account WHERE id = 9; INSERT INTO t VALUES(77, 'x', 1)").unwrap();
    made.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    drop(made);
    other.spawn();
    assert_eq!(other.wait_for_end().code(), Some(3), "{}", other.log());
    assert!(other.log().contains("account: at least 3 (49 here, 50 there)"), "{}", other.log());
    assert!(other.log().contains("t: at least 1 (1 here, 0 there)"), "{}", other.log());
    assert_eq!(tables(&other.db)["t"].len(), 1, "its database is as it was");
    cluster.nodes[0].sql("INSERT INTO t VALUES(1, 'later', 1)");
    // One that was made by the same script is the same.
    let mut same = another(&cluster, 3, &[]);
    let made = rusqlite::Connection::open(&same.db).unwrap();
    made.execute_batch(SCHEMA).unwrap();
    made.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    drop(made);
    same.start();
    cluster.nodes.push(same);
    cluster.settle();
    cluster.stop();
}

#[test]
fn a_node_killed_while_it_catches_up_begins_again_and_ends_equal() {
    let args = ["--max-log-entries", "20", "--shards", "2"];
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &args);
    cluster.start_nodes();
    cluster.nodes[0].sql(
        "WITH RECURSIVE s(n) AS (VALUES(100000) UNION ALL SELECT n + 1 FROM s WHERE n < 140000)
        INSERT INTO t SELECT n, hex(randomblob(50)), 1 FROM s",
    );
    cluster.settle();
    cluster.nodes[1].stop();
    cluster.nodes[0].sql("UPDATE t SET n = n + 1");
    fill(&cluster.nodes[0], 1, 25);
    cluster.nodes[1].sql("INSERT INTO t VALUES(99999, 'pending', 1)");
    for wait_ms in [0, 50, 200, 400, 800] {
        cluster.nodes[1].spawn();
        // One that was killed late had caught up.
        wait_for("the node to begin", || match cluster.nodes[1].log() {
            log if log.contains("catching up from a snapshot") || log.contains("ready: node") => Ok(()),
            log => Err(log),
        });
        // The moment is what varies here; nothing is waited for.
        std::thread::sleep(std::time::Duration::from_millis(wait_ms));
        cluster.nodes[1].kill();
    }
    cluster.nodes[1].start();
    let tables = cluster.settle();
    assert!(tables["t"].contains(&"integer:99999|text:'pending'|integer:1".to_owned()));
    cluster.stop();
}

#[test]
fn an_interrupted_restore_lets_no_node_start_until_it_is_done_again() {
    let mut cluster = Cluster::start(1, SCHEMA);
    save(&cluster);
    let mut other = another(&cluster, 2, &[]);
    let db = other.db.clone();
    assert!(restore(&cluster, &db, &[]).status.success());
    // What a restore that was killed behind the point of no return leaves.
    std::fs::write(other.state_dir().join("restoring"), "").unwrap();
    other.spawn();
    assert_eq!(other.wait_for_end().code(), Some(3), "{}", other.log());
    let output = restore(&cluster, &db, &["--replace"]);
    assert!(output.status.success(), "{output:?}");
    other.start();
    cluster.nodes.push(other);
    cluster.settle();
    let log = cluster.nodes[0].log();
    assert!(log.contains("made snapshot 1"), "{log}");
    cluster.stop();
}

#[test]
fn what_an_interrupted_upload_has_left_is_not_seen_and_goes_with_the_next() {
    let cluster = Cluster::start(1, SCHEMA);
    save(&cluster);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let left = |publish: bool| {
        runtime.block_on(async {
            let client = async_nats::connect(cluster.server.url()).await.unwrap();
            let context = async_nats::jetstream::new(client);
            let bucket = "woodchuck-changes-snapshot-store";
            if publish {
                let subject = format!("$O.{bucket}.C.torn");
                context.publish(subject, vec![7; 1000].into()).await.unwrap().await.unwrap();
            }
            let mut stream = context.get_stream(format!("OBJ_{bucket}")).await.unwrap();
            stream.info().await.unwrap().state.messages
        })
    };
    assert_eq!(left(true), 3, "a description, a part, and what is left of another");
    assert_eq!(snapshots(&cluster).len(), 1);
    for _ in 0..3 {
        save(&cluster);
    }
    assert_eq!(left(false), 4, "two descriptions and two parts");
}
