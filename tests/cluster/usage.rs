//! What cannot be is refused before anything is touched: one line that says what and where, one that says what to do.

use std::path::Path;
use std::process::Output;

use rusqlite::Connection;

use crate::support::cluster::{Cluster, Node, wait_for, woodchuck};
use crate::support::nats::NatsServer;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)";

fn run(db: &Path, args: &[&str]) -> Output {
    woodchuck(&["run", "--db-path"]).arg(db).args(args).output().unwrap()
}

/// Checks the exit code and that the last words are an error and a hint; returns the error.
fn refused(output: &Output, code: i32) -> (String, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let [.., error, hint] = lines.as_slice() else { panic!("two lines: {text}") };
    assert!(error.starts_with("error: ") && hint.starts_with("hint: "), "an error and a hint: {text}");
    ((*error).to_owned(), (*hint).to_owned())
}

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn what_cannot_be_followed_is_refused_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let rollback = dir.path().join("rollback.db");
    Connection::open(&rollback).unwrap().execute_batch(SCHEMA).unwrap();
    std::fs::write(
        dir.path().join("text.db"),
        "this is no database, although it is long enough to look like one. ".repeat(20),
    )
    .unwrap();
    std::fs::write(dir.path().join("empty.db"), "").unwrap();
    std::fs::create_dir(dir.path().join("directory.db")).unwrap();
    let before = files_in(dir.path());
    for name in ["rollback.db", "text.db", "empty.db", "directory.db", "nowhere/app.db"] {
        let output = run(&dir.path().join(name), &["--nats-url", "nats://127.0.0.1:1"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.lines().count(), 2, "{name}: {text}");
        let (error, _) = refused(&output, output.status.code().unwrap());
        assert!(
            matches!(output.status.code(), Some(1..=3)) && error.contains(name.trim_end_matches("/app.db")),
            "{name}: {text}"
        );
        assert_eq!(files_in(dir.path()), before, "{name}");
    }
}

#[test]
fn a_second_daemon_on_a_database_is_refused() {
    let mut cluster = Cluster::start(1, SCHEMA);
    let node = &cluster.nodes[0];
    let (error, _) = refused(&run(&node.db, &["--nats-url", &cluster.server.url()]), 3);
    assert!(error.contains("another woodchuck is replicating"), "{error}");
    node.sql("INSERT INTO t VALUES(1,'the first goes on')");
    cluster.settle();
    cluster.stop();
}

#[test]
fn settings_that_do_not_fit_the_state_directory_are_wrong_usage() {
    let mut cluster = Cluster::start(1, SCHEMA);
    cluster.stop();
    let (db, url) = (&cluster.nodes[0].db, cluster.server.url());
    let (error, _) = refused(&run(db, &["--nats-url", &url, "--node-id", "2"]), 2);
    assert!(error.contains("belongs to node 1, not to node 2"), "{error}");
    let (error, _) = refused(&run(db, &["--nats-url", &url, "--shards", "4"]), 2);
    assert!(error.contains("made for 8 shards, not for 4"), "{error}");
    cluster.start_nodes();
    cluster.stop();
}

#[test]
fn limits_that_differ_from_the_servers_streams_are_wrong_usage() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "2048"]);
    cluster.nodes[0].start();
    let (error, hint) = refused(
        &run(
            &cluster.nodes[1].db,
            &["--nats-url", &cluster.server.url(), "--max-log-entries", "512", "--node-id", "2"],
        ),
        2,
    );
    assert!(error.contains("2048") && error.contains("512"), "names both: {error}");
    assert!(!hint.is_empty());
    let beside = files_in(cluster.nodes[1].db.parent().unwrap());
    assert!(!beside.iter().any(|name| name.starts_with("app.db-wal") || name == "app.db-shm"), "closed: {beside:?}");
    cluster.nodes[1].start();
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'a')");
    assert_eq!(cluster.settle()["t"].len(), 1);
    cluster.stop();
}

#[test]
fn of_two_nodes_with_one_id_the_later_ends_and_no_row_is_lost() {
    let mut cluster = Cluster::start(1, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'a')");
    cluster.settle();
    let db = cluster.dir.path().join("twin").join("app.db");
    std::fs::create_dir(db.parent().unwrap()).unwrap();
    Connection::open(&db).unwrap().execute_batch(&format!("PRAGMA journal_mode=WAL; {SCHEMA}")).unwrap();
    let url = cluster.server.url();
    let mut twin = Node::new(1, &db, &["--nats-url", &url]);
    twin.start();
    twin.sql("INSERT INTO t VALUES(2,'b')");
    cluster.nodes[0].wait_until_it_says("node id 1 is used by another node");
    cluster.nodes[0].sql("INSERT INTO t VALUES(3,'c')");
    assert_eq!(twin.wait_for_end().code(), Some(3), "{}", twin.log());
    assert!(twin.log().contains("--node-id"), "{}", twin.log());

    // Under another number, it goes on with what it has.
    assert!(woodchuck(&["cleanup", "--db-path"]).arg(&db).output().unwrap().status.success());
    let mut other = Node::new(2, &db, &["--nats-url", &url]);
    other.start();
    cluster.nodes.push(other);
    assert_eq!(cluster.settle()["t"].len(), 3);
    cluster.stop();
}

/// A node whose state directory was removed is new, and finds its own past.
#[test]
fn a_node_made_anew_under_its_number_is_no_twin() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(1,'a')");
    cluster.settle();
    cluster.nodes[0].stop();
    let db = cluster.nodes[0].db.clone();
    assert!(woodchuck(&["cleanup", "--db-path"]).arg(&db).output().unwrap().status.success());
    cluster.nodes[0].start();
    cluster.nodes[0].sql("INSERT INTO t VALUES(2,'a')");
    cluster.nodes[1].sql("INSERT INTO t VALUES(3,'b')");
    assert_eq!(cluster.settle()["t"].len(), 3);
    cluster.stop();
}

/// One look does not read all of it: what was committed was taken for captured.
#[test]
fn wait_waits_for_what_is_committed_and_not_yet_captured() {
    let cluster = Cluster::start(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    for turn in 0..3 {
        let tables = (0..80).map(|no| format!("CREATE TABLE t_{turn}_{no}(id INTEGER PRIMARY KEY, v UNIQUE); INSERT INTO t_{turn}_{no} VALUES(1, 'x');"));
        cluster.nodes[0].sql(&tables.collect::<String>());
        let output = cluster.nodes[0].ask("wait", &["--all", "--timeout", "60s"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(cluster.nodes[1].value(&format!("SELECT v FROM t_{turn}_79")), "'x'");
    }
}

#[test]
fn wait_returns_when_what_was_committed_is_applied_elsewhere() {
    let mut cluster = Cluster::start(3, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    for round in 0..5 {
        cluster.nodes[0].sql(&format!("INSERT INTO t VALUES({round}, 'x')"));
        let output = cluster.nodes[0].ask("wait", &["--node", "2", "--timeout", "30s"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM t"), (round + 1).to_string());
    }
    let output = cluster.nodes[1].ask("wait", &["--all", "--timeout", "30s"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("applied on nodes 1, 3"), "{output:?}");
    cluster.nodes[2].stop();
    cluster.nodes[0].sql("INSERT INTO t VALUES(100, 'y')");
    let output = cluster.nodes[0].ask("wait", &["--node", "3", "--timeout", "500ms"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("node 3"), "{output:?}");
    let output = cluster.nodes[2].ask("wait", &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    cluster.nodes.truncate(2);
    cluster.stop();
}

/// The server refuses without an answer, and tells it apart.
#[test]
fn what_the_server_does_not_permit_is_said_and_stands_in_the_status() {
    let server = NatsServer::start_with(
        "authorization { users = [
            {user: all, password: p},
            {user: some, password: p, permissions: {publish: {deny: [\"woodchuck-change-log-1\"]}}}
        ] }",
    );
    let mut cluster = Cluster::prepare_at(server, 2, &["--shards", "2", "--nats-password", "p"], |db| {
        Connection::open(db).unwrap().execute_batch(SCHEMA).unwrap();
    });
    for (node, user) in cluster.nodes.iter_mut().zip(["all", "some"]) {
        node.args.extend(["--nats-user", user].map(str::to_owned));
    }
    cluster.nodes[0].spawn_with(&[("WOODCHUCK_APPLY_CUT_WAIT_MS", "2000")]);
    cluster.nodes.iter_mut().skip(1).for_each(Node::spawn);
    cluster.nodes.iter_mut().for_each(Node::wait_until_ready);
    // In both shards.
    cluster.nodes[1].sql("WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 20) INSERT INTO t SELECT i, 'kept' FROM c");
    wait_for("what the server refuses", || match cluster.nodes[1].status()?.last_error {
        said if said.contains("cannot publish") && said.contains("woodchuck-change-log-1") => Ok(()),
        said => Err(format!("{said:?}; {}", cluster.nodes[1].log())),
    });
    assert!(cluster.nodes[1].log().contains("see to the permissions of its account"), "{}", cluster.nodes[1].log());
    wait_for("what the other one waits for", || match cluster.nodes[0].status()?.last_error {
        said if said.contains("the rest of a transaction of node 2") => Ok(()),
        said => Err(format!("{said:?}; {}", cluster.nodes[0].log())),
    });
    assert_eq!(cluster.nodes[0].value("SELECT count(*) FROM t"), "0", "no half of it");
    cluster.nodes[1].kill();
    cluster.nodes[1].args.retain(|arg| arg != "some");
    let place = cluster.nodes[1].args.iter().position(|arg| arg == "--nats-user").unwrap();
    cluster.nodes[1].args.insert(place + 1, "all".to_owned());
    cluster.nodes[1].start();
    cluster.settle();
    assert_eq!(cluster.nodes[0].value("SELECT count(*) FROM t WHERE v = 'kept'"), "20");
    assert_eq!(cluster.nodes[0].status().unwrap().last_error, "");
    cluster.stop();
}

#[test]
fn a_file_of_the_connection_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("app.db");
    Connection::open(&db).unwrap().execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}")).unwrap();
    let missing = dir.path().join("missing.pem");
    let named = missing.to_str().unwrap();
    for (args, what) in [
        (vec!["--nats-ca-file", named], "CA file"),
        (vec!["--nats-cert-file", named, "--nats-key-file", named], "certificate file"),
    ] {
        let (error, _) = refused(&run(&db, &args), 2);
        assert!(error.contains(what) && error.contains("missing.pem"), "{error}");
    }
}
