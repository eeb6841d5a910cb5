//! Servers and daemons that die: nothing is lost, nothing doubled, and nobody has to help.

use std::os::unix::process::ExitStatusExt;

use rusqlite::Connection;
use rustix::process::Signal;
use woodchuck::fault::{Point, VARIABLE};

use crate::support::cluster::{Cluster, Seed, application, wait_for};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n); CREATE TABLE counter(id INTEGER PRIMARY KEY, n INT); INSERT INTO counter VALUES(1, 0)";

#[test]
fn changes_made_while_the_server_is_not_there_yet_arrive_when_it_is() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
    cluster.server.kill();
    for node in &mut cluster.nodes {
        node.spawn();
        node.wait_until_it_says("trying again");
        wait_for("a status", || node.status());
    }
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'early',1); UPDATE counter SET n = n + 1");
    wait_for("capture", || {
        let status = cluster.nodes[0].status()?;
        if status.outbox_units > 0 { Ok(()) } else { Err(format!("{status:?}")) }
    });
    cluster.server.restart();
    cluster.nodes.iter_mut().for_each(|node| node.wait_until_ready());
    let tables = cluster.settle();
    assert_eq!(tables["t"], ["integer:1|text:'early'|integer:1"]);
    assert_eq!(tables["counter"], ["integer:1|integer:1"]);
    cluster.stop();
}

#[test]
fn a_server_killed_in_the_middle_of_traffic_loses_and_doubles_nothing() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "100000"]);
    cluster.start_nodes();
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let inserts = application(&b.db, "insert", &["1", "1500"]);
    let counts = application(&a.db, "count", &["1500"]);
    wait_for("traffic", || {
        let n: u64 = b.value("SELECT n FROM counter").parse().unwrap();
        if n > 100 { Ok(()) } else { Err(n.to_string()) }
    });
    cluster.server.kill();
    inserts.end();
    counts.end();
    cluster.server.restart();
    let tables = cluster.settle();
    assert_eq!(tables["counter"], ["integer:1|integer:1500"]);
    assert_eq!(tables["t"].len(), 1500);
    assert!(cluster.nodes.iter().all(|node| node.conflicts().is_empty()));
    cluster.stop();
}

#[test]
fn a_stop_publishes_what_was_written_and_leaves_one_file() {
    let mut cluster = Cluster::start(2, SCHEMA);
    application(&cluster.nodes[0].db, "insert", &["1", "300"]).end();
    cluster.nodes[0].stop();
    let other = &cluster.nodes[1];
    wait_for("the rows of the node that stopped", || {
        let count = other.value("SELECT count(*) FROM t");
        if count == "300" { Ok(()) } else { Err(count) }
    });
    let db = &cluster.nodes[0].db;
    for suffix in ["-wal", "-shm"] {
        let beside = db.with_file_name(format!("app.db{suffix}"));
        assert!(!beside.exists(), "{} is gone", beside.display());
    }
    assert_eq!(cluster.nodes[0].status().unwrap().phase, "stopped");
    // Whoever goes on does so where it stood.
    cluster.nodes[0].start();
    cluster.nodes[1].sql("INSERT INTO t VALUES(1000,'b',0)");
    cluster.nodes[0].sql("INSERT INTO t VALUES(1001,'a',0)");
    assert_eq!(cluster.settle()["t"].len(), 302);
    assert!(cluster.nodes.iter().all(|node| node.conflicts().is_empty()));
    cluster.stop();
}

#[test]
fn a_stop_while_an_application_is_there_leaves_its_files_alone() {
    let mut cluster = Cluster::start(2, SCHEMA);
    let application = Connection::open(&cluster.nodes[0].db).unwrap();
    application.execute_batch("INSERT INTO t VALUES(1,'a',1)").unwrap();
    cluster.nodes[0].stop();
    assert!(cluster.nodes[0].db.with_file_name("app.db-wal").exists());
    application.execute_batch("DELETE FROM t WHERE id = 99").unwrap();
    assert_eq!(application.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    cluster.nodes[0].start();
    assert_eq!(cluster.settle()["t"].len(), 1);
    cluster.stop();
}

#[test]
fn a_second_signal_does_not_wait_for_the_server() {
    let mut cluster = Cluster::start(1, SCHEMA);
    // A server that is stopped, not dead, takes connections and answers nothing: the drain has to wait for it.
    cluster.server.pause();
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'a',1)");
    cluster.nodes[0].signal(Signal::TERM);
    cluster.nodes[0].wait_until_it_says("stopping: publishing");
    cluster.nodes[0].signal(Signal::TERM);
    assert!(cluster.nodes[0].wait_for_end().success(), "{}", cluster.nodes[0].log());
    assert!(cluster.nodes[0].log().contains("stopping at once"));
    cluster.server.resume();
    cluster.nodes[0].start();
    cluster.nodes[0].stop();
}

#[test]
fn a_daemon_killed_after_a_write_delivers_it_once_when_it_is_back() {
    let seed = Seed::pick();
    let mut random = crate::support::random::Random::new(seed.0);
    let mut cluster = Cluster::start(2, SCHEMA);
    const ROUNDS: u64 = 6;
    for round in 1..=ROUNDS {
        let node = &mut cluster.nodes[0];
        let captured =
            |node: &crate::support::cluster::Node| node.status().map_or(0, |status| status.transactions_captured);
        node.sql(&format!(
            "BEGIN; UPDATE counter SET n = n + 1; INSERT INTO t VALUES({round},'round',{round}); COMMIT"
        ));
        // The status is written once a second; what it tells was stored before. Somewhere between this and the acknowledgement it dies.
        wait_for("capture", || if captured(node) > 0 { Ok(()) } else { Err(node.log()) });
        std::thread::sleep(std::time::Duration::from_micros(random.below(20_000)));
        node.kill();
        node.start();
        cluster.nodes[1].sql("UPDATE t SET n = n + 1000 WHERE id = 1");
        cluster.settle();
    }
    let tables = cluster.settle();
    assert_eq!(tables["counter"], [format!("integer:1|integer:{ROUNDS}")]);
    assert_eq!(tables["t"].len(), ROUNDS as usize);
    cluster.stop();
}

/// What a lost state directory had sent half of, nobody can complete: the node's new one says so by its own number.
#[test]
fn a_node_that_lost_all_it_had_in_the_middle_of_a_transaction_holds_nobody_up() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--shards", "1"]);
    cluster.nodes[1].start();
    cluster.nodes[0].spawn_with(&[(VARIABLE, &format!("{}:1", Point::Published.name()))]);
    cluster.nodes[0].wait_until_ready();
    // Several messages, one behind another.
    cluster.nodes[0].sql("INSERT INTO t WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 6) SELECT x, hex(randomblob(400000)), 0 FROM c");
    let died = cluster.nodes[0].wait_for_end();
    assert_eq!(died.signal(), Some(9), "{}", cluster.nodes[0].log());
    wait_for("a part of the transaction", || match cluster.nodes[1].status()? {
        status if status.inbox_messages > 0 => Ok(()),
        status => Err(format!("{status:?}")),
    });
    std::fs::remove_dir_all(cluster.nodes[0].db.parent().unwrap()).unwrap();
    std::fs::create_dir(cluster.nodes[0].db.parent().unwrap()).unwrap();
    cluster.nodes[0].start();
    cluster.nodes[1].sql("UPDATE counter SET n = 1");
    assert_eq!(cluster.settle()["counter"], ["integer:1|integer:1"]);
    assert!(cluster.nodes[1].log().contains("node 1 gave no answer"), "{}", cluster.nodes[1].log());
    cluster.stop();
}

#[test]
fn a_daemon_killed_while_it_applies_applies_once() {
    let seed = Seed::pick();
    let mut random = crate::support::random::Random::new(seed.0);
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "100000"]);
    cluster.start_nodes();
    let counts = application(&cluster.nodes[0].db, "count", &["3000"]);
    // Nobody writes on the node that dies, so that only what it applies is at stake.
    for _ in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(random.below(300)));
        cluster.nodes[1].kill();
        cluster.nodes[1].start();
    }
    counts.end();
    assert_eq!(cluster.settle()["counter"], ["integer:1|integer:3000"]);
    assert!(cluster.nodes.iter().all(|node| node.conflicts().is_empty()));
    cluster.stop();
}

#[test]
fn a_table_that_a_node_lacks_stops_its_shard_until_it_is_made() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--shards", "4"]);
    Connection::open(&cluster.nodes[1].db).unwrap().execute_batch("DROP TABLE t").unwrap();
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'a',1)");
    let blocked = wait_for("a shard that stops", || {
        let status = cluster.nodes[1].status()?;
        let blocked: Vec<String> =
            status.shards.values().map(|shard| shard.blocked.clone()).filter(|text| !text.is_empty()).collect();
        blocked.first().cloned().ok_or_else(|| format!("{status:?}"))
    });
    assert!(blocked.contains("table t") && blocked.contains("create"), "names the table and the remedy: {blocked}");
    let shown = cluster.nodes[1].ask("status", &[]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("STOPPED"), "{shown}");
    cluster.nodes[1].sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n)");
    let tables = cluster.settle();
    assert_eq!(tables["t"], ["integer:1|text:'a'|integer:1"]);
    wait_for("a status without trouble", || {
        let status = cluster.nodes[1].status()?;
        if status.shards.values().all(|shard| shard.blocked.is_empty()) { Ok(()) } else { Err(format!("{status:?}")) }
    });
    cluster.stop();
}

#[test]
fn daemons_killed_again_and_again_while_all_nodes_write_lose_and_double_nothing() {
    const TIMES: u64 = 1500;
    let seed = Seed::pick();
    let mut random = crate::support::random::Random::new(seed.0);
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "100000"]);
    cluster.start_nodes();
    let counts = application(&cluster.nodes[0].db, "count", &[&TIMES.to_string()]);
    let inserts = application(&cluster.nodes[1].db, "insert", &["1", &TIMES.to_string()]);
    for _ in 0..8 {
        std::thread::sleep(std::time::Duration::from_millis(random.below(300)));
        let node = &mut cluster.nodes[random.below(2) as usize];
        node.kill();
        std::thread::sleep(std::time::Duration::from_millis(random.below(100)));
        node.start();
    }
    counts.end();
    inserts.end();
    let tables = cluster.settle();
    assert_eq!(tables["counter"], [format!("integer:1|integer:{TIMES}")]);
    assert_eq!(tables["t"].len() as u64, TIMES);
    cluster.stop();
}

#[test]
fn what_is_written_while_a_node_is_down_arrives_when_it_is_back() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'before',1),(2,'before',2)");
    cluster.settle();
    cluster.nodes[0].stop();
    // The application closes the database each time, so its log is gone and begun anew; meanwhile the others go on.
    cluster.nodes[0]
        .sql("UPDATE t SET v='meanwhile' WHERE id=1; DELETE FROM t WHERE id=2; INSERT INTO t VALUES(3,'meanwhile',3)");
    cluster.nodes[0].sql("VACUUM; UPDATE counter SET n = n + 7");
    cluster.nodes[1].sql("INSERT INTO t VALUES(4,'elsewhere',4)");
    cluster.nodes[0].start();
    let tables = cluster.settle();
    let want = [
        "integer:1|text:'meanwhile'|integer:1",
        "integer:3|text:'meanwhile'|integer:3",
        "integer:4|text:'elsewhere'|integer:4",
    ];
    assert_eq!(tables["t"], want);
    assert_eq!(tables["counter"], ["integer:1|integer:7"]);
    assert!(cluster.nodes[0].log().contains("changes on"), "it says that it found them: {}", cluster.nodes[0].log());
    cluster.stop();
}

/// What a fold wrote into a row was taken for the application's, where the node died before it knew that its commit was done and the application
/// then changed another column of the row: it was published, and overrode what its writer had written since.
#[test]
fn a_column_that_others_wrote_is_no_change_of_the_application_that_writes_another() {
    for point in [Point::IntentWritten, Point::UserCommitted, Point::OwnTaken] {
        println!("{point:?}");
        let mut cluster = Cluster::start(2, SCHEMA);
        cluster.nodes[0].sql("INSERT INTO t VALUES(1, 'old', 20), (2, 'old', 20)");
        cluster.settle();
        cluster.nodes[1].stop();
        cluster.nodes[1].spawn_with(&[(VARIABLE, point.name())]);
        cluster.nodes[0].sql("UPDATE t SET n = 21");
        assert!(!cluster.nodes[1].wait_for_end().success());
        // Its last close takes the log away, so both are found together.
        cluster.nodes[1].sql("UPDATE t SET v = 'mine' WHERE id = 1");
        assert!(!cluster.nodes[1].db.with_extension("db-wal").exists());
        cluster.nodes[0].sql("UPDATE t SET n = 22");
        let id = cluster.nodes[0].id.to_string();
        assert!(cluster.nodes[0].ask("wait", &["--node", &id, "--timeout", "60s"]).status.success());
        cluster.nodes[1].start();
        let tables = cluster.settle();
        assert_eq!(tables["t"], ["integer:1|text:'mine'|integer:22", "integer:2|text:'old'|integer:22"], "{point:?}");
        // (The node that died took it for its own until it had read the log, and may have journaled that.)
        assert_eq!(cluster.nodes[0].conflicts().len(), 0, "{:?}", cluster.nodes[0].conflicts());
        cluster.stop();
    }
}
