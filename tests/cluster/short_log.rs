//! A log that holds little: nobody pushes his own messages off it, and what it cannot hold is not begun.

use std::collections::BTreeMap;

use woodchuck::log::{Numbers, Origin, ShardId, Unit, seal};

use crate::support::cluster::{Cluster, application, wait_for};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n INT DEFAULT 1)";

/// One message of a round of two, from an origin that says no more: nobody applies anything behind it for a while.
async fn publish_half_a_round(url: &str) {
    let unit = Unit {
        tx: 1,
        part: 0,
        salts: [0; 8],
        frame: 1,
        repaired: false,
        seen: woodchuck::log::StreamSeq(0),
        schema: Vec::new(),
        tables: Vec::new(),
        changes: Vec::new(),
    };
    let numbers = Numbers { round_no: 1, batch_no_last: BTreeMap::new(), barrier: false };
    let units = BTreeMap::from([(ShardId(1), vec![unit.clone()]), (ShardId(2), vec![unit])]);
    let round = seal(&units, &numbers, Origin { node_id: 99, epoch: 1 }, 1000, false);
    let context = async_nats::jetstream::new(async_nats::connect(url).await.unwrap());
    let mut stream = context.get_stream("woodchuck-changes-2-1").await.unwrap();
    let subject = stream.info().await.unwrap().config.subjects[0].clone();
    context.publish(subject, round.messages[0].payload.clone().into()).await.unwrap().await.unwrap();
}

#[test]
fn a_node_alone_never_pushes_off_the_log_what_it_has_not_applied() {
    let mut cluster = Cluster::prepare(1, SCHEMA, "", &["--max-log-entries", "4", "--shards", "2"]);
    let node = &mut cluster.nodes[0];
    node.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(publish_half_a_round(&cluster.server.url()));
    let writer = application(&node.db, "insert", &["1", "800"]);
    wait_for("changes in the outbox", || match node.status()?.outbox_units {
        0..200 => Err("few".to_owned()),
        _ => Ok(()),
    });
    // It dies with messages on the log that it has received and not applied.
    node.kill();
    writer.end();
    node.start();
    wait_for("an empty outbox", || match node.status()?.outbox_units {
        0 => Ok(()),
        waiting => Err(format!("{waiting} wait")),
    });
    let log = node.log();
    assert!(!log.contains("catching up") && log.contains("still incomplete"), "{log}");
    node.stop();
}

#[test]
fn a_transaction_that_the_log_cannot_hold_stops_the_node_and_travels_once_it_can() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "6", "--shards", "2"]);
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO t(id, v) VALUES(1, 'before')");
    cluster.nodes[0].sql(
        "WITH RECURSIVE s(n) AS (VALUES(100) UNION ALL SELECT n + 1 FROM s WHERE n < 1200)
         INSERT INTO t(id, v) SELECT n, hex(randomblob(5000)) FROM s",
    );
    assert_eq!(cluster.nodes[0].wait_for_end().code(), Some(3));
    let log = cluster.nodes[0].log();
    assert!(log.contains("a transaction needs ") && log.contains("--max-log-entries"), "{log}");
    cluster.nodes[1].stop();
    // What the operator is told to do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let context = async_nats::jetstream::new(async_nats::connect(cluster.server.url()).await.unwrap());
        for shard in 1..=2 {
            let mut stream = context.get_stream(format!("woodchuck-changes-2-{shard}")).await.unwrap();
            let mut config = stream.info().await.unwrap().config.clone();
            config.max_messages = 100;
            context.update_stream(config).await.unwrap();
        }
    });
    for node in &mut cluster.nodes {
        let place = node.args.iter().position(|arg| arg == "--max-log-entries").unwrap();
        node.args[place + 1] = "100".to_owned();
    }
    cluster.start_nodes();
    cluster.nodes[0].sql("INSERT INTO t(id, v) VALUES(2, 'behind')");
    let tables = cluster.settle();
    assert_eq!(tables["t"].len(), 1103);
    cluster.stop();
}
