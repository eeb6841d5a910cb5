//! Values larger than a message, transactions larger than memory should have to hold, and values of every kind.

use crate::support::cluster::{Cluster, Node, application, wait_for};

/// What a daemon may have held at its highest: the bound of a million-row transaction.
const PEAK_KIB_MAX: u64 = 160 << 10;

/// The most memory that a process has held so far, in KiB.
fn peak_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn values_larger_than_a_message_arrive() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w)";
    let mut cluster = Cluster::prepare(2, schema, "max_payload: 32768", &["--max-log-entries", "100000"]);
    cluster.start_nodes();
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    a.sql("INSERT INTO t VALUES(1, randomblob(1000000), 'x'); INSERT INTO t VALUES(2, hex(randomblob(40000)), 'y')");
    cluster.settle();
    b.sql("UPDATE t SET w = 'short', v = substr(v, 2) WHERE id = 1; INSERT INTO t VALUES(3, zeroblob(32768), hex(randomblob(16384)))");
    let tables = cluster.settle();
    assert_eq!(tables["t"].len(), 3);
    assert_eq!(a.value("SELECT group_concat(length(v)) FROM t"), "'999999,80000,32768'");
    cluster.stop();
}

#[test]
fn a_transaction_of_500_000_rows_arrives_whole_and_is_not_held_in_memory() {
    const ROWS: u64 = 500_000;
    let mut cluster = Cluster::prepare(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n REAL)",
        "",
        &["--max-log-entries", "100000"],
    );
    cluster.start_nodes();
    application(&cluster.nodes[0].db, "bulk", &[&ROWS.to_string()]).end();
    let replica = &cluster.nodes[1];
    let mut seen = std::collections::BTreeSet::new();
    wait_for("the rows", || {
        let count = replica.value("SELECT count(*) FROM t");
        seen.insert(count.clone());
        if count == ROWS.to_string() { Ok(()) } else { Err(count) }
    });
    assert!(seen.len() <= 2, "a reader saw parts of the transaction: {seen:?}");
    cluster.settle();
    let peaks: Vec<u64> = cluster.nodes.iter().map(peak_kib).collect();
    println!("peaks of the writing and of the receiving daemon: {peaks:?} KiB");
    assert!(peaks.iter().all(|peak| *peak < PEAK_KIB_MAX), "{peaks:?} KiB");
    cluster.stop();
}

#[test]
fn values_of_every_kind_arrive_as_they_are() {
    let schema = "CREATE TABLE plain(id INTEGER PRIMARY KEY, i INTEGER, r REAL, t TEXT, b BLOB, n NUMERIC, d DATE, o BOOLEAN, x);
        CREATE TABLE strict(id INTEGER PRIMARY KEY, i INT, r REAL, t TEXT, b BLOB, a ANY) STRICT;
        CREATE TABLE keys(a TEXT COLLATE NOCASE, b INT, v, PRIMARY KEY(a DESC, b)) WITHOUT ROWID;
        CREATE TABLE made(a INT, twice INT AS (a * 2) VIRTUAL, thrice INT AS (a * 3) STORED, b INT);
        CREATE TABLE \"odd \"\"na[me]\"(\"select\" TEXT PRIMARY KEY, \"ключ 🐿\" TEXT);
        CREATE TABLE \"sqlitedata\"(id INTEGER PRIMARY KEY);";
    let mut cluster = Cluster::start(2, schema);
    cluster.nodes[0].sql(
        "BEGIN; INSERT INTO plain VALUES(1, 9223372036854775807, 3.0, '', x'', '12', '2024-02-29', 2, NULL);
         INSERT INTO plain VALUES(-5, -9223372036854775808, -0.0, 'a' || char(0) || 'b', x'00ff', 9007199254740993, 1.5, 't', CAST(x'ff80' AS TEXT));
         INSERT INTO plain VALUES(9223372036854775807, 'words', 9e999, 12, 'text', 'abc', 20240229, 1, -9e999);
         INSERT INTO strict VALUES(1, 5, 3, 't', x'01', '5'), (2, NULL, -1e300, '', x'', 5), (3, 1, 1.5, 'é', NULL, 3.0);
         INSERT INTO keys VALUES('Key', 1, 'v'), ('other', 1, NULL), ('key', 2, x'');
         INSERT INTO made(a, b) VALUES(1, 2), (NULL, 3);
         INSERT INTO \"odd \"\"na[me]\" VALUES('from', '🐿'); INSERT INTO sqlitedata VALUES(7); COMMIT;
         UPDATE keys SET a = 'KEY' WHERE a = 'key' AND b = 1; UPDATE plain SET r = 2 WHERE id = 1",
    );
    let tables = cluster.settle();
    assert_eq!(tables.values().map(Vec::len).collect::<Vec<_>>(), [3, 2, 1, 3, 1, 3], "{:?}", tables.keys());
    assert!(tables["keys"].contains(&"text:'KEY'|integer:1|text:'v'".to_owned()), "{:?}", tables["keys"]);
    cluster.stop();
}
