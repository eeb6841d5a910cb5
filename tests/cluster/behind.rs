//! Nodes that are away for longer than the log reaches while others change the schema.

use super::schema::settle;
use crate::support::cluster::{Cluster, Node, application};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INT DEFAULT 1);
    CREATE TABLE plain(id INTEGER PRIMARY KEY, a TEXT, b INT);
    CREATE TABLE before(id INTEGER PRIMARY KEY, x TEXT);
    CREATE TABLE gone(id INTEGER PRIMARY KEY);
    CREATE TABLE twice(id INTEGER PRIMARY KEY, code TEXT);
    CREATE INDEX plain_b ON plain(b);
    CREATE VIEW old_view AS SELECT a FROM plain;
    INSERT INTO plain VALUES(1, 'one', 1), (2, 'two', 2), (3, 'three', 3);
    INSERT INTO before VALUES(1, 'x'), (2, 'y');
    INSERT INTO gone VALUES(1);
    INSERT INTO twice VALUES(1, 'a'), (2, 'a'), (3, 'b')";

/// What is done while a node is away.
const CHANGES: [&str; 9] = [
    "CREATE INDEX t_v ON t(v); CREATE TABLE fresh(k TEXT PRIMARY KEY, v UNIQUE); INSERT INTO fresh VALUES('a', 1), ('b', 2)",
    "ALTER TABLE plain ADD COLUMN c TEXT DEFAULT 'new'; UPDATE plain SET c = 'set' WHERE id = 2",
    "ALTER TABLE before RENAME TO after_it; ALTER TABLE after_it RENAME COLUMN x TO y; INSERT INTO after_it VALUES(3, 'z')",
    "DROP VIEW old_view; CREATE VIEW seen AS SELECT a, c FROM plain",
    "DROP TABLE gone; DROP INDEX plain_b",
    "CREATE TRIGGER noted AFTER DELETE ON plain BEGIN INSERT INTO after_it VALUES(old.id + 100, 'deleted'); END; DELETE FROM plain WHERE id = 3",
    // Rows that were in its way are gone before the index comes.
    "DELETE FROM twice WHERE id = 2; CREATE UNIQUE INDEX twice_code ON twice(code)",
    // As Django rebuilds a table.
    "BEGIN; CREATE TABLE new__t(id INTEGER PRIMARY KEY, v TEXT NOT NULL, n BIGINT DEFAULT 1);
     INSERT INTO new__t(id, v, n) SELECT id, coalesce(v, ''), n FROM t; DROP TABLE t;
     ALTER TABLE new__t RENAME TO t; CREATE INDEX t_v ON t(v); COMMIT",
    "ALTER TABLE plain DROP COLUMN b",
];

/// As many transactions as push everything before them off the log.
fn push_off(node: &Node) {
    for id in 0..45 {
        node.sql(&format!("INSERT INTO t(id, v) VALUES({}, 'pushed')", 10_000 + id));
        if id % 15 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }
}

#[test]
fn a_node_that_was_away_during_a_migration_catches_up_with_it_while_its_application_writes() {
    let args = ["--max-log-entries", "20", "--shards", "2"];
    let mut cluster = Cluster::prepare(3, SCHEMA, "", &args);
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO t VALUES(9000, 'x', 1), (9001, 'y', 1); UPDATE plain SET b = 20 WHERE id = 2");
    settle(&cluster);
    cluster.nodes[2].stop();
    for (turn, sql) in CHANGES.iter().enumerate() {
        cluster.nodes[turn % 2].sql(sql);
        let others = &cluster.nodes[..2];
        crate::support::cluster::settle(others);
    }
    push_off(&cluster.nodes[0]);
    crate::support::cluster::settle(&cluster.nodes[..2]);
    // Its own rows and its own changes of the schema stay on top.
    cluster.nodes[2].sql(
        "INSERT INTO t VALUES(5000, 'pending', 1); UPDATE t SET v = 'mine' WHERE id = 9000; UPDATE before SET x = 'mine' WHERE id = 2;
         ALTER TABLE plain ADD COLUMN own TEXT DEFAULT 'own'; UPDATE plain SET own = 'set', a = 'ours' WHERE id = 1;
         CREATE TABLE alone(id INTEGER PRIMARY KEY, v); INSERT INTO alone VALUES(1, 'ours'); CREATE INDEX plain_a ON plain(a)",
    );
    let writer = application(&cluster.nodes[2].db, "insert", &["20000", "300"]);
    cluster.nodes[2].start();
    writer.end();
    settle(&cluster);
    let log = cluster.nodes[2].log();
    assert!(log.contains("caught up from snapshot") && log.contains("the schema was caught up with"), "{log}");
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT v || n FROM t WHERE id = 5000"), "'pending1'");
        assert_eq!(node.value("SELECT v FROM t WHERE id = 9000"), "'mine'");
        assert_eq!(node.value("SELECT count(*) FROM t WHERE id >= 20000"), "300");
        assert_eq!(node.value("SELECT group_concat(y) FROM after_it"), "'x,mine,z,deleted'");
        assert_eq!(node.value("SELECT group_concat(a || c || own) FROM plain"), "'oursnewset,twosetown'");
        assert_eq!(node.value("SELECT v FROM alone"), "'ours'");
        assert_eq!(node.value("SELECT group_concat(id || code) FROM twice"), "'1a,3b'");
        assert_eq!(
            node.value("SELECT count(*) FROM sqlite_schema WHERE name IN ('gone', 'before', 'old_view', 'plain_b')"),
            "0"
        );
        assert_eq!(
            node.value(
                "SELECT count(*) FROM sqlite_schema WHERE name IN ('seen', 'noted', 't_v', 'twice_code', 'plain_a')"
            ),
            "5"
        );
    }
    cluster.stop();
}

#[test]
fn own_changes_that_do_not_fit_what_others_did_meanwhile_are_named_and_nothing_is_done() {
    let args = ["--max-log-entries", "20", "--shards", "2"];
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &args);
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO t VALUES(9000, 'x', 1)");
    settle(&cluster);
    cluster.nodes[1].stop();
    cluster.nodes[0].sql("CREATE TABLE same(id INTEGER PRIMARY KEY, a TEXT); INSERT INTO same VALUES(1, 'theirs')");
    push_off(&cluster.nodes[0]);
    crate::support::cluster::settle(&cluster.nodes[..1]);
    cluster.nodes[1].sql("CREATE TABLE same(id INTEGER PRIMARY KEY, b BLOB)");
    cluster.nodes[1].spawn();
    assert_eq!(cluster.nodes[1].wait_for_end().code(), Some(1), "{}", cluster.nodes[1].log());
    let log = cluster.nodes[1].log();
    assert!(log.contains("table same is here") && log.contains("b BLOB") && log.contains("a TEXT"), "{log}");
    assert!(log.contains("give table same one definition on both nodes"), "{log}");
    assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM t"), "1", "nothing was done");
    cluster.nodes[0].stop();
}

/// Rows of a table with UNIQUE travel in one shard, whatever it is called by now.
#[test]
fn a_table_that_got_another_name_and_unique_values_meanwhile_loses_no_row_of_who_was_away() {
    let unique = "CREATE UNIQUE INDEX plain_u ON plain(b) WHERE b > 5";
    let rename = "ALTER TABLE plain RENAME TO renamed";
    let unique_then = "CREATE UNIQUE INDEX plain_u ON renamed(b) WHERE b > 5";
    let another = "BEGIN; ALTER TABLE plain RENAME TO renamed; CREATE TABLE plain(k TEXT PRIMARY KEY, z); INSERT INTO plain VALUES('k', 1); COMMIT";
    for (before, meanwhile) in [
        ("", [unique, rename]),
        ("", [rename, unique_then]),
        (unique, [another, "INSERT INTO plain VALUES('l', 2)"]),
        // The name that it had is that of one that came and went.
        ("", [rename, "CREATE TABLE plain(k TEXT PRIMARY KEY, z); DROP TABLE plain"]),
    ] {
        let args = ["--max-log-entries", "20", "--shards", "2"];
        let mut cluster = Cluster::prepare(2, SCHEMA, "", &args);
        cluster.start_nodes();
        cluster.nodes[0].sql(&format!("INSERT INTO plain VALUES(4, 'four', 4); {before}"));
        settle(&cluster);
        cluster.nodes[1].stop();
        meanwhile.iter().for_each(|sql| cluster.nodes[0].sql(sql));
        push_off(&cluster.nodes[0]);
        crate::support::cluster::settle(&cluster.nodes[..1]);
        let rows = |from: u32| (from..from + 30).map(|id| format!("({id}, 'of the second', {id})")).collect::<Vec<_>>();
        cluster.nodes[1].sql(&format!("INSERT INTO plain VALUES{}", rows(100).join(",")));
        cluster.nodes[1].start();
        assert!(cluster.nodes[1].log().contains("caught up from snapshot"), "{}", cluster.nodes[1].log());
        cluster.nodes[1].sql(&format!("INSERT INTO renamed VALUES{}", rows(200).join(",")));
        settle(&cluster);
        for node in &cluster.nodes {
            assert_eq!(node.value("SELECT count(*) FROM renamed WHERE a = 'of the second'"), "60", "{meanwhile:?}");
        }
        cluster.stop();
    }
}
