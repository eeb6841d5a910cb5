//! A server that is away for longer than the outbox has room: the node ends loudly, and nothing is lost.

use crate::support::cluster::{Cluster, Node};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)";
const BOUND: (&str, &str) = ("WOODCHUCK_LOG_OUTBOX_BYTES_MAX", "200000");

fn write(node: &Node, from: u32, rows: u32) {
    node.sql(&format!(
        "WITH RECURSIVE n(i) AS (VALUES({from}) UNION ALL SELECT i + 1 FROM n WHERE i < {from} + {rows} - 1) INSERT INTO t SELECT i, randomblob(1000) FROM n"
    ));
}

/// A node ended when its outbox had reached the bound, and ended again at each start although the server was back by then: what was there to be
/// published counted before anything of it could be. A transaction larger than the bound ended a node in the same way, with the server there.
#[test]
fn a_full_outbox_ends_the_node_and_is_published_when_the_server_is_back() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--shards", "2"]);
    cluster.nodes.iter_mut().for_each(|node| node.spawn_with(&[BOUND]));
    cluster.nodes.iter_mut().for_each(Node::wait_until_ready);
    write(&cluster.nodes[0], 1, 2000);
    assert_eq!(cluster.settle()["t"].len(), 2000, "ten times the bound, and a server that takes it");

    cluster.server.kill();
    write(&cluster.nodes[0], 2001, 1000);
    let ended = cluster.nodes[0].wait_for_end();
    let log = cluster.nodes[0].log();
    assert_eq!(ended.code(), Some(3), "{log}");
    assert!(log.contains("the node ends if it does not become smaller"), "{log}");
    assert!(log.contains("error: the outbox holds") && log.contains("hint: bring the server back"), "{log}");
    // Nobody follows now.
    write(&cluster.nodes[0], 3001, 1000);

    cluster.server.restart();
    cluster.nodes[0].spawn_with(&[BOUND]);
    cluster.nodes[0].wait_until_ready();
    write(&cluster.nodes[1], 4001, 10);
    assert_eq!(cluster.settle()["t"].len(), 4010);
    cluster.stop();
}
