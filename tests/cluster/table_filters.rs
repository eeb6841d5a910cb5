//! A node with `--tables` or `--exclude-tables` neither sends nor takes what they leave out.

use crate::support::cluster::{Cluster, wait_for};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE secret(id INTEGER PRIMARY KEY, v);
    INSERT INTO t VALUES(1, 'one'); INSERT INTO secret VALUES(1, 'one')";

/// What others wrote to tables that are left out was once applied all the same.
#[test]
fn tables_that_are_left_out_stay_as_they_are() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
    cluster.nodes[1].args.extend(["--exclude-tables", "secret*"].map(str::to_owned));
    cluster.start_nodes();
    let [all, some] = &cluster.nodes[..] else { panic!("two nodes") };
    all.sql("UPDATE secret SET v = 'theirs'; INSERT INTO secret VALUES(2, 'theirs')");
    some.sql("UPDATE secret SET v = 'ours'");
    // Definitions too, and rows of a table that is not even there.
    all.sql("ALTER TABLE secret ADD COLUMN w; CREATE UNIQUE INDEX secret_v ON secret(id, v)");
    all.sql("CREATE TABLE secret_more(id INTEGER PRIMARY KEY, v); INSERT INTO secret_more VALUES(1, 1); INSERT INTO t VALUES(2, 'two')");
    some.sql("INSERT INTO t VALUES(3, 'three')");
    for node in [all, some] {
        wait_for("the rows of t", || match node.value("SELECT group_concat(v) FROM t") {
            found if found == "'one,two,three'" => Ok(()),
            found => Err(format!("node {}: {found}\n{}", node.id, node.log())),
        });
    }
    assert_eq!(all.value("SELECT group_concat(v) FROM secret"), "'theirs,theirs'");
    assert_eq!(some.value("SELECT group_concat(v) FROM secret"), "'ours'");
    assert_eq!(some.value("SELECT group_concat(name) FROM sqlite_schema"), "'t,secret'");
    assert!(some.status().unwrap().last_error.is_empty());
    let compared = some.ask("verify", &["--format", "json"]);
    assert_eq!(compared.status.code(), Some(0), "{}", String::from_utf8_lossy(&compared.stdout));
    cluster.stop();
}
