//! Two nodes change the same data before they hear of each other: all end equal, and what was overridden can be listed.

use rustix::process::Signal;

use crate::support::cluster::{Cluster, Tables};

const SCHEMA: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b TEXT); CREATE TABLE u(k TEXT PRIMARY KEY, e TEXT UNIQUE, v TEXT);
    INSERT INTO t VALUES(1,'a','b'),(2,'a','b'),(3,'a','b')";

/// Writes on both nodes while the server is away, so that neither can know of the other, then lets them meet.
fn meet(first: &str, second: &str) -> (Cluster, Tables) {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.server.kill();
    for (node, sql) in cluster.nodes.iter().zip([first, second]) {
        node.sql(sql);
    }
    cluster.server.restart();
    let tables = cluster.settle();
    (cluster, tables)
}

/// Conflicts listed on any node, as (kind, table, kept, lost).
fn listed(cluster: &Cluster) -> Vec<(String, String, String, String)> {
    let all = cluster.nodes.iter().flat_map(|node| node.conflicts());
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    all.map(|line| (text(&line["kind"]), text(&line["table"]), text(&line["kept"]), text(&line["lost"]))).collect()
}

#[test]
fn the_later_of_two_changes_of_a_row_wins_everywhere_and_the_other_is_kept() {
    let (mut cluster, tables) = meet("UPDATE t SET a='first' WHERE id=1", "UPDATE t SET a='second' WHERE id=1");
    let (won, lost) = if tables["t"][0].contains("'first'") { ("first", "second") } else { ("second", "first") };
    assert_eq!(tables["t"][0], format!("integer:1|text:'{won}'|text:'b'"));
    let listed = listed(&cluster);
    let is_it = |(kind, table, kept, overridden): &(String, String, String, String)| {
        kind == "row" && table == "t" && kept.contains(won) && overridden.contains(lost)
    };
    assert!(listed.iter().any(is_it), "{won} won over {lost}: {listed:?}");
    let shown =
        cluster.nodes[0].ask("conflicts", &[]).stdout.len() + cluster.nodes[1].ask("conflicts", &[]).stdout.len();
    assert!(shown > "no conflicts\n".len() * 2, "people see it too");
    cluster.stop();
}

#[test]
fn different_columns_of_a_row_are_merged() {
    let (mut cluster, tables) = meet("UPDATE t SET a='first' WHERE id=1", "UPDATE t SET b='second' WHERE id=1");
    assert_eq!(tables["t"][0], "integer:1|text:'first'|text:'second'");
    cluster.stop();
}

#[test]
fn a_delete_and_an_update_of_a_row_end_equal_and_nothing_is_lost_in_silence() {
    let (mut cluster, tables) = meet("DELETE FROM t WHERE id=1", "UPDATE t SET b='second' WHERE id=1");
    assert!(tables["t"].len() == 2 || tables["t"][0] == "integer:1|text:'a'|text:'second'", "{tables:?}");
    assert!(!listed(&cluster).is_empty(), "one of them was overridden");
    cluster.stop();
}

#[test]
fn inserts_of_the_same_key_leave_one_row() {
    let (mut cluster, tables) = meet("INSERT INTO t VALUES(9,'first','1')", "INSERT INTO t VALUES(9,'second','2')");
    let row = &tables["t"][3];
    assert!(row == "integer:9|text:'first'|text:'1'" || row == "integer:9|text:'second'|text:'2'", "{tables:?}");
    assert!(listed(&cluster).iter().any(|(kind, ..)| kind == "row"), "the other is kept: {:?}", listed(&cluster));
    cluster.stop();
}

#[test]
fn one_of_two_rows_with_the_same_unique_value_stays() {
    let (mut cluster, tables) =
        meet("INSERT INTO u VALUES('k1','same','first')", "INSERT INTO u VALUES('k2','same','second')");
    assert_eq!(tables["u"].len(), 1, "{tables:?}");
    let listed = listed(&cluster);
    assert!(listed.iter().any(|(kind, table, ..)| kind == "unique" && table == "u"), "{listed:?}");
    cluster.stop();
}

#[test]
fn a_swap_of_unique_values_meets_another_change_and_all_end_equal() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO u VALUES('k1','x','1'),('k2','y','2'),('k3','z','3')");
    cluster.settle();
    cluster.server.kill();
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    a.sql("BEGIN; UPDATE u SET e='tmp' WHERE k='k1'; UPDATE u SET e='x' WHERE k='k2'; UPDATE u SET e='y' WHERE k='k1'; COMMIT");
    b.sql("UPDATE u SET e='w' WHERE k='k2'; INSERT INTO u VALUES('k4','y','4')");
    cluster.server.restart();
    let tables = cluster.settle();
    assert!(tables["u"].len() >= 3, "{tables:?}");
    cluster.stop();
}

#[test]
fn a_key_changed_and_swapped_arrives_as_it_is() {
    let mut cluster = Cluster::start(2, SCHEMA);
    let a = &cluster.nodes[0];
    a.sql("UPDATE t SET id=30 WHERE id=3; BEGIN; UPDATE t SET id=-1 WHERE id=1; UPDATE t SET id=1, a='was 2' WHERE id=2; UPDATE t SET id=2, a='was 1' WHERE id=-1; COMMIT;
        BEGIN; DELETE FROM t WHERE id=30; INSERT INTO t VALUES(30,'again','b'); COMMIT");
    let tables = cluster.settle();
    assert_eq!(
        tables["t"],
        ["integer:1|text:'was 2'|text:'b'", "integer:2|text:'was 1'|text:'b'", "integer:30|text:'again'|text:'b'"]
    );
    cluster.nodes.iter().for_each(|node| node.signal(Signal::TERM));
    cluster.nodes.iter_mut().for_each(|node| assert!(node.wait_for_end().success()));
}
