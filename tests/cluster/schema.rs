//! Changes of the schema on a running cluster.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;

use woodchuck::node::Status;

use crate::support::cluster::{Cluster, wait_for};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b INT);
    CREATE INDEX t_a ON t(a);
    INSERT INTO t VALUES(1, 'one', 1), (2, 'two', 2), (3, 'three', 3)";

fn schema_of(cluster: &Cluster, node: usize) -> Vec<(String, String, String)> {
    let conn = Connection::open(&cluster.nodes[node].db).unwrap();
    let sql = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name";
    let mut found = conn.prepare(sql).unwrap();
    let rows = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// Waits until all nodes are equal, in their schemas as well, and sound.
pub(super) fn settle(cluster: &Cluster) {
    let count = cluster.nodes.len();
    wait_for("equal schemas", || {
        let all: Vec<_> = (0..count).map(|node| schema_of(cluster, node)).collect();
        match all.windows(2).all(|pair| pair[0] == pair[1]) {
            true => Ok(()),
            false => Err(format!("{all:#?}")),
        }
    });
    cluster.settle();
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT group_concat(integrity_check) FROM pragma_integrity_check"), "'ok'");
        let status = node.status().unwrap();
        assert!(status.last_error.is_empty(), "{}", status.last_error);
    }
}

/// For a moment the view speaks of a table that is not there. SQLite renames none then, unless it is asked to do it the old way.
#[test]
fn a_table_that_is_rebuilt_in_steps_beside_a_view_is_rebuilt_on_the_other_nodes() {
    let cluster = Cluster::start(2, &format!("{SCHEMA}; CREATE VIEW seen AS SELECT id, a FROM t"));
    cluster.nodes[0].sql(
        "PRAGMA legacy_alter_table = ON;
         CREATE TABLE new_t(id INTEGER PRIMARY KEY, a TEXT, b INT, c REAL);
         INSERT INTO new_t(id, a, b) SELECT id, a, b FROM t;
         DROP TABLE t;
         ALTER TABLE new_t RENAME TO t;
         INSERT INTO t VALUES(4, 'four', 4, 0.5);
         ALTER TABLE t DROP COLUMN b;
         ALTER TABLE t RENAME COLUMN c TO d",
    );
    settle(&cluster);
    assert_eq!(
        cluster.nodes[1].value("SELECT group_concat(id || a || ifnull(d, '-')) FROM t"),
        "'1one-,2two-,3three-,4four0.5'"
    );
    assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM seen"), "4");
}

#[test]
fn each_kind_of_change_arrives_and_rows_around_it_are_whole() {
    let cluster = Cluster::start(3, SCHEMA);
    let steps = [
        "ALTER TABLE t ADD COLUMN c TEXT DEFAULT 'new'",
        "UPDATE t SET c = 'set' WHERE id = 2; INSERT INTO t VALUES(4, 'four', 4, 'given')",
        "CREATE TABLE u(k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO u VALUES('x', 1), ('y', 2)",
        "ALTER TABLE t RENAME COLUMN b TO number; UPDATE t SET number = number * 10",
        "ALTER TABLE u RENAME TO named; INSERT INTO named VALUES('z', 3)",
        "CREATE VIEW seen AS SELECT a, number FROM t; CREATE TRIGGER noted AFTER INSERT ON t BEGIN UPDATE named SET v = v + 1 WHERE k = 'x'; END",
        "INSERT INTO t(id, a) VALUES(5, 'five')",
        "ALTER TABLE t DROP COLUMN c",
        "DROP INDEX t_a; CREATE INDEX t_number ON t(number DESC)",
        "BEGIN; CREATE TABLE w(id INTEGER PRIMARY KEY, x UNIQUE); INSERT INTO w VALUES(1, 'a'), (2, 'b'); DROP TRIGGER noted; DROP VIEW seen; COMMIT",
        "DROP TABLE named",
    ];
    for (turn, sql) in steps.iter().enumerate() {
        let node = &cluster.nodes[turn % 3];
        node.sql(sql);
        println!("{sql}");
        settle(&cluster);
    }
    assert_eq!(cluster.nodes[0].value("SELECT group_concat(number) FROM t"), "'40,30,20,10'");
}

/// The way in which Django, Alembic and SQLite's own documentation change a table: a new one, filled from the old one, under its name.
#[test]
fn a_table_that_is_rebuilt_keeps_the_rows_that_others_wrote_meanwhile() {
    let mut cluster = Cluster::start(3, SCHEMA);
    cluster.nodes[1].sql("UPDATE t SET b = 20 WHERE id = 2");
    settle(&cluster);
    // None of this can have been seen by the node that rebuilds.
    cluster.server.kill();
    cluster.nodes[1]
        .sql("INSERT INTO t VALUES(99, 'meanwhile', 99); UPDATE t SET b = 33 WHERE id = 3; DELETE FROM t WHERE id = 1");
    cluster.nodes[0].sql(
        "PRAGMA foreign_keys = OFF; BEGIN;
         CREATE TABLE new__t(id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT NOT NULL, b INT, kind TEXT NOT NULL CHECK (kind <> 'x'));
         INSERT INTO new__t(id, a, b, kind) SELECT id, a, b, 'plain' FROM t;
         DROP TABLE t; ALTER TABLE new__t RENAME TO t;
         CREATE INDEX t_a ON t(a); CREATE INDEX t_kind ON t(kind); COMMIT",
    );
    cluster.nodes[0].sql("INSERT INTO t(id, a, b, kind) VALUES(50, 'after', 50, 'own')");
    cluster.nodes[2].sql("UPDATE t SET a = 'TWO' WHERE id = 2");
    cluster.server.restart();
    settle(&cluster);
    let found = cluster.nodes[2].value("SELECT group_concat(id || ' ' || a || ' ' || b || ' ' || kind, '; ') FROM t");
    assert_eq!(found, "'2 TWO 20 plain; 3 three 33 plain; 50 after 50 own; 99 meanwhile 99 '");
}

#[test]
fn changes_of_one_table_that_meet_leave_one_schema() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.server.kill();
    cluster.nodes[0]
        .sql("ALTER TABLE t ADD COLUMN x INT; UPDATE t SET x = id; CREATE TABLE both(id INTEGER PRIMARY KEY, v)");
    cluster.nodes[1]
        .sql("ALTER TABLE t ADD COLUMN y INT; UPDATE t SET y = id * 2; CREATE TABLE both(id INTEGER PRIMARY KEY, v)");
    cluster.nodes[1].sql("INSERT INTO both VALUES(1, 'of two'); DROP INDEX t_a; ALTER TABLE t DROP COLUMN a");
    cluster.nodes[0].sql("INSERT INTO both VALUES(2, 'of one'); UPDATE t SET a = 'gone' WHERE id = 1");
    cluster.server.restart();
    wait_for("equal rows", || {
        let sql = "SELECT (SELECT group_concat(concat_ws(' ', id, b, x, y), '; ') FROM t) || (SELECT group_concat(v) FROM both)";
        let read = |db: &Path| Connection::open(db)?.query_row(sql, [], |row| row.get::<_, String>(0));
        let all: rusqlite::Result<Vec<String>> = cluster.nodes.iter().map(|node| read(&node.db)).collect();
        let all = all.map_err(|error| error.to_string())?;
        let wanted = "1 1 1 2; 2 2 2 4; 3 3 3 6of two,of one";
        if all.iter().all(|found| found == wanted) { Ok(()) } else { Err(format!("{all:?}")) }
    });
    cluster.stop();
}

#[test]
fn definitions_that_cannot_be_made_one_stop_and_go_on_by_themselves() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.server.kill();
    cluster.nodes[0].sql("CREATE TABLE u(id INTEGER PRIMARY KEY, v TEXT)");
    cluster.nodes[1].sql("CREATE TABLE u(id INTEGER PRIMARY KEY, v INT)");
    cluster.nodes[0].sql("INSERT INTO t VALUES(10, 'behind', 1)");
    cluster.server.restart();
    cluster.nodes[1].wait_until_it_says("cannot apply: table u is here \"CREATE TABLE u(id INTEGER PRIMARY KEY, v INT)\", and \"CREATE TABLE u(id INTEGER PRIMARY KEY, v TEXT)\" at the origin");
    // The remedy: one of them gives way.
    cluster.nodes[1].sql("DROP TABLE u");
    wait_for("the row behind it", || {
        let found = cluster.nodes[1].value("SELECT a FROM t WHERE id = 10");
        if found == "'behind'" { Ok(()) } else { Err(found) }
    });
    cluster.stop();
}

/// Publishing once waited until somebody dropped the index again: rows that traveled in several shards had no order in which to collide.
#[test]
fn unique_on_a_table_whose_rows_travel_apart_moves_them_into_one_shard() {
    let mut cluster = Cluster::start(3, SCHEMA);
    cluster.nodes[0].sql("UPDATE t SET b = b + 10");
    settle(&cluster);
    // Two nodes write the same value, and a third one makes it unique; nobody knows of the others.
    cluster.server.kill();
    for (node, id) in [(1, 4), (2, 5)] {
        let rows = (0..40).map(|i| format!("({}, 'of {node}', {})", id * 100 + i, id * 100 + i));
        let rows = rows.collect::<Vec<_>>().join(", ");
        cluster.nodes[node].sql(&format!(
            "INSERT INTO t VALUES({id}, 'of {node}', 7), {rows}; UPDATE t SET a = 'of {node}' WHERE id = 3"
        ));
    }
    cluster.nodes[0].sql(
        "INSERT INTO t VALUES(6, 'before', 6); CREATE UNIQUE INDEX t_b ON t(b); INSERT INTO t VALUES(7, 'behind', 500)",
    );
    cluster.server.restart();
    settle(&cluster);
    // Of 4 and 5 one is in the way; and so is 7, or what the third node wrote with its value, by the order of the log.
    assert_eq!(cluster.nodes[0].value("SELECT count(*) || ',' || count(DISTINCT b) FROM t"), "'85,85'");
    // Each node sends in the new order now, and a swap keeps its meaning there.
    cluster.nodes[1].sql("BEGIN; UPDATE t SET b = -1 WHERE id = 400; UPDATE t SET b = 400 WHERE id = 401; UPDATE t SET b = 401 WHERE id = 400; COMMIT");
    cluster.nodes[2].sql("UPDATE t SET b = b + 1000 WHERE id BETWEEN 501 AND 520");
    settle(&cluster);
    assert_eq!(cluster.nodes[0].value("SELECT group_concat(b) FROM t WHERE id IN (400, 401)"), "'401,400'");
    assert_eq!(cluster.nodes[0].value("SELECT count(*) FROM t WHERE b > 1000"), "20");
}

/// Changes that were made while a node was down, or that it was killed in the middle of applying, are made once.
#[test]
fn a_node_that_dies_around_a_change_makes_it_once() {
    for point in ["folded", "intent-written", "user-committed", "own-taken", "intent-settled"] {
        println!("{point}");
        let mut cluster = Cluster::start(2, SCHEMA);
        cluster.nodes[1].stop();
        cluster.nodes[1].spawn_with(&[("WOODCHUCK_DIE_AT", point)]);
        cluster.nodes[0].sql(
            "BEGIN; ALTER TABLE t ADD COLUMN c TEXT; UPDATE t SET c = 'c' || id; INSERT INTO t VALUES(4, 'four', 4, 'c4');
             CREATE TABLE new_t(id INTEGER PRIMARY KEY, a TEXT NOT NULL, b INT, c TEXT NOT NULL DEFAULT 'none');
             INSERT INTO new_t SELECT * FROM t; DROP TABLE t; ALTER TABLE new_t RENAME TO t; CREATE INDEX t_a ON t(a); COMMIT",
        );
        assert!(!cluster.nodes[1].wait_for_end().success());
        // An application at the same place, which is not to be taken for it.
        cluster.nodes[1].sql("UPDATE t SET b = 22 WHERE id = 2");
        cluster.nodes[1].start();
        settle(&cluster);
        let found = cluster.nodes[1].value("SELECT group_concat(concat_ws(' ', id, a, b, c), '; ') FROM t");
        assert_eq!(found, "'1 one 1 c1; 2 two 22 c2; 3 three 3 c3; 4 four 4 c4'", "{point}");
        cluster.stop();
    }
}

#[test]
fn changes_made_while_a_node_is_down_are_found() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("UPDATE t SET b = 10 WHERE id = 1");
    settle(&cluster);
    cluster.nodes[0].kill();
    cluster.nodes[0].sql("ALTER TABLE t ADD COLUMN c TEXT; UPDATE t SET c = 'found' WHERE id = 2; CREATE TABLE u(id INTEGER PRIMARY KEY, v); INSERT INTO u VALUES(1, 1); PRAGMA wal_checkpoint(TRUNCATE)");
    cluster.nodes[0].sql("ALTER TABLE t RENAME COLUMN a TO title; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)");
    cluster.nodes[1].sql("UPDATE t SET a = 'here' WHERE id = 3");
    cluster.nodes[0].start();
    settle(&cluster);
    let found = cluster.nodes[0].value("SELECT group_concat(concat_ws(' ', id, title, b, c), '; ') FROM t");
    assert_eq!(found, "'1 one 10; 2 two 2 found; 3 here 3'");
}

/// What a reader of the log sees of them is nothing, and what the node had made of them stood in its intent: the commit was taken for the
/// application's, and rows that had been deleted elsewhere meanwhile came back.
#[test]
fn an_application_of_messages_in_which_a_table_comes_and_goes_is_known_again_after_a_kill() {
    for (around, is_again) in [
        (["CREATE TABLE t9(a); INSERT INTO t9 VALUES(1),(2)", "DROP TABLE t9"], false),
        (["CREATE VIEW seen AS SELECT 1", "DROP VIEW seen"], false),
        (["CREATE TABLE t9(a INTEGER PRIMARY KEY); INSERT INTO t9 VALUES(1)", "UPDATE t9 SET a = 2"], true),
    ] {
        let mut cluster = Cluster::start(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
        cluster.nodes[1].stop();
        // The log goes on where it is, and everything arrives while nothing can be applied.
        let application = Connection::open(&cluster.nodes[1].db).unwrap();
        application.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap();
        cluster.nodes[1].spawn_with(&[(woodchuck::fault::VARIABLE, "user-committed")]);
        cluster.nodes[1].wait_until_ready();
        application.execute_batch("INSERT INTO t VALUES(100, 'from here')").unwrap();
        cluster.settle();
        application.execute_batch("BEGIN IMMEDIATE").unwrap();
        let first = &cluster.nodes[0];
        first.sql("INSERT INTO t VALUES(1, 'a')");
        around.iter().for_each(|sql| first.sql(sql));
        first.sql("INSERT INTO t VALUES(2, 'b')");
        assert!(first.ask("wait", &["--node", "1", "--timeout", "20s"]).status.success());
        let all_sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        wait_for("all messages", || {
            let (first, second) = (cluster.nodes[0].status()?, cluster.nodes[1].status()?);
            let applied = |status: &Status| status.shards.values().map(|shard| shard.applied).sum::<u64>();
            let is_current = first.written_at_ms.min(second.written_at_ms) > all_sent
                && first.shards.values().all(|shard| shard.applied == shard.last);
            match (applied(&first) - applied(&second), second.inbox_messages) {
                (sent, arrived) if is_current && sent == arrived => Ok(()),
                (sent, arrived) => Err(format!("{arrived} of {sent}")),
            }
        });
        application.execute_batch("ROLLBACK").unwrap();
        assert!(!cluster.nodes[1].wait_for_end().success());
        assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM t"), "3", "all of it is one commit");
        let first = &cluster.nodes[0];
        first.sql("DELETE FROM t");
        assert!(first.ask("wait", &["--all", "--timeout", "20s"]).status.success());
        cluster.nodes[1].start();
        let tables = cluster.settle();
        assert_eq!(tables["t"].len(), 0, "{around:?}: {tables:?}");
        assert_eq!(tables.contains_key("t9"), is_again, "{around:?}");
        for node in &cluster.nodes {
            assert!(node.conflicts().is_empty(), "{around:?}: {:?}", node.conflicts());
        }
        cluster.stop();
    }
}

/// A table that had UNIQUE values travels in one shard, also where nobody had written to it before they went: else one node takes rows for astray that
/// another one sends by their keys.
#[test]
fn a_table_that_nobody_has_written_to_loses_its_unique_values_and_no_row() {
    let plain = "id INTEGER PRIMARY KEY, email TEXT";
    let cluster = Cluster::start(
        2,
        &format!(
            "CREATE TABLE indexed({plain}); CREATE UNIQUE INDEX u ON indexed(email);
             CREATE TABLE filled({plain}); CREATE UNIQUE INDEX w ON filled(email); INSERT INTO filled VALUES(1, 'a'), (2, 'b'), (3, 'c'), (4, 'd');
             CREATE TABLE rebuilt(id INTEGER PRIMARY KEY, email TEXT UNIQUE);
             CREATE TABLE given(id INTEGER PRIMARY KEY, email TEXT UNIQUE); CREATE TABLE taking({plain})"
        ),
    );
    let node = &cluster.nodes[0];
    node.sql("DROP INDEX u");
    node.sql("BEGIN; DROP INDEX w; UPDATE filled SET email = email || '!'; COMMIT");
    node.sql(&format!("BEGIN; CREATE TABLE n({plain}); DROP TABLE rebuilt; ALTER TABLE n RENAME TO rebuilt; COMMIT"));
    node.sql(
        "BEGIN; ALTER TABLE given RENAME TO aside; ALTER TABLE taking RENAME TO given; ALTER TABLE aside RENAME TO taking; COMMIT",
    );
    let tables = ["indexed", "filled", "rebuilt", "given", "taking"];
    let rows = |from: u32| {
        let values = (from..from + 20).map(|id| format!("({id}, 'e{id}')")).collect::<Vec<_>>().join(", ");
        tables.map(|table| format!("INSERT INTO {table} VALUES{values}")).join("; ")
    };
    node.sql(&rows(100));
    settle(&cluster);
    cluster.nodes[1].sql(&rows(200));
    settle(&cluster);
    for node in &cluster.nodes {
        let counts = tables.map(|table| node.value(&format!("SELECT count(*) FROM {table}")));
        assert_eq!(counts, ["40", "44", "40", "40", "40"]);
        assert_eq!(node.value("SELECT group_concat(email, '') FROM filled WHERE id < 5"), "'a!b!c!d!'");
    }
}
