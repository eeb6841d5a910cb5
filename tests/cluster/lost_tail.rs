//! Servers that come back without what they had acknowledged.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::support::cluster::{Cluster, wait_for};
use crate::support::nats::NatsServer;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 0), (2, 0), (3, 0)";

/// Three nodes, of which the last one sleeps, and an older copy of what the server has.
struct Scene {
    cluster: Cluster,
    kept: PathBuf,
}

impl Scene {
    fn begin() -> Scene {
        let mut cluster = Cluster::prepare_at(NatsServer::start_durable(), 3, &["--shards", "1"], |db| {
            rusqlite::Connection::open(db).unwrap().execute_batch(SCHEMA).unwrap();
        });
        cluster.start_nodes();
        cluster.nodes[0].sql("UPDATE t SET v = 'early' WHERE id = 1");
        cluster.settle();
        cluster.nodes[2].stop();
        let kept = cluster.dir.path().join("kept");
        cluster.server.kill();
        cluster.server.copy_store(&kept, false);
        cluster.server.restart();
        Scene { cluster, kept }
    }

    /// The second node has a change of the first, which knows that the log has it.
    fn write_what_is_lost(&self) {
        let nodes = &self.cluster.nodes;
        nodes[0].sql("UPDATE t SET v = 'lost'");
        wait_for("the second node to apply it", || {
            let (found, waits) = (nodes[1].value("SELECT v FROM t WHERE id = 2"), nodes[0].status()?.outbox_units);
            if found.contains("lost") && waits == 0 { Ok(()) } else { Err(format!("{found}, {waits} wait")) }
        });
    }

    /// Both write the same rows in turn, and each has applied what the other wrote before.
    fn write_in_turn(&self) {
        for turn in 0..6 {
            let node = &self.cluster.nodes[turn % 2];
            node.sql(&format!(
                "BEGIN; UPDATE t SET v = 'turn {turn}'; INSERT INTO t VALUES({}, 'new'); COMMIT",
                10 + turn
            ));
            wait_for("the other to apply it", || {
                let found = self.cluster.nodes[1 - turn % 2].value("SELECT v FROM t WHERE id = 2");
                if found.contains(&format!("turn {turn}")) { Ok(()) } else { Err(found) }
            });
        }
        wait_for("both to see all of it back", || {
            let waits = |node: usize| self.cluster.nodes[node].status().map(|status| status.outbox_units);
            match (waits(0)?, waits(1)?) {
                (0, 0) => Ok(()),
                waits => Err(format!("{waits:?}")),
            }
        });
    }

    fn lose(&mut self) {
        self.cluster.server.kill();
        self.cluster.server.delete_store();
        self.cluster.server.copy_store(&self.kept, true);
    }

    fn ends_as_it_was(&mut self) {
        for node in &mut self.cluster.nodes[..2] {
            node.wait_until_it_says("are sent again, each in its place");
            node.wait_until_it_says("has its 7 messages again");
        }
        // It has read none of what was lost, and reads it in the order that it had.
        self.cluster.nodes[2].start();
        self.cluster.nodes[2].sql("INSERT INTO t VALUES(100, 'of the third')");
        let tables = self.cluster.settle();
        assert_eq!(
            self.cluster.nodes[2].value("SELECT group_concat(v) FROM t WHERE id <= 3"),
            "'turn 5,turn 5,turn 5'"
        );
        assert!(self.cluster.nodes.iter().all(|node| node.status().unwrap().last_error.is_empty()));
        assert_eq!(tables["t"].iter().filter(|row| row.contains("'new'") || row.contains("'turn ")).count(), 9);
    }
}

#[test]
fn messages_that_the_server_lost_go_back_to_their_places() {
    let mut scene = Scene::begin();
    scene.write_in_turn();
    scene.lose();
    // It waits to be published, and must not take the place of what is lost.
    scene.cluster.nodes[0].sql("INSERT INTO t VALUES(50, 'meanwhile')");
    wait_for("it to be captured", || match scene.cluster.nodes[0].status()?.outbox_units {
        0 => Err("nothing waits".to_owned()),
        _ => Ok(()),
    });
    scene.cluster.server.restart();
    scene.ends_as_it_was();
    assert_eq!(scene.cluster.nodes[1].value("SELECT v FROM t WHERE id = 50"), "'meanwhile'");
}

#[test]
fn nodes_that_start_when_the_server_has_lost_messages_put_them_back() {
    let mut scene = Scene::begin();
    scene.write_in_turn();
    for node in &mut scene.cluster.nodes[..2] {
        node.kill();
    }
    scene.lose();
    scene.cluster.server.restart();
    scene.cluster.nodes[1].spawn();
    scene.cluster.nodes[1].wait_until_it_says("message 2 of 7 is not this node's to send again");
    scene.cluster.nodes[0].spawn();
    scene.ends_as_it_was();
    let said =
        "messages 2 to 7 of shard 1 are gone; 3 of these 6 are this node's and are sent again, each in its place";
    assert!(scene.cluster.nodes[1].log().contains(said), "{}", scene.cluster.nodes[1].log());
}

/// It notices first, and waits for the one that can.
#[test]
fn a_node_that_has_sent_nothing_of_what_is_lost_goes_on_when_others_put_it_back() {
    let mut scene = Scene::begin();
    scene.write_what_is_lost();
    scene.cluster.nodes[0].signal(Signal::STOP);
    scene.lose();
    scene.cluster.server.restart();
    scene.cluster.nodes[1].wait_until_it_says("messages 2 to 2 of shard 1 are gone; none of these is this node's");
    scene.cluster.nodes[0].signal(Signal::CONT);
    scene.cluster.nodes[1].wait_until_it_says("has its 2 messages again");
    scene.cluster.nodes[2].start();
    scene.cluster.settle();
    assert_eq!(scene.cluster.nodes[2].value("SELECT v FROM t WHERE id = 2"), "'lost'");
}

#[test]
fn a_node_that_has_sent_nothing_of_what_is_lost_ends_with_the_reason_when_nobody_puts_it_back() {
    let mut scene = Scene::begin();
    scene.write_what_is_lost();
    scene.cluster.nodes[0].kill();
    scene.lose();
    scene.cluster.server.restart();
    assert!(!scene.cluster.nodes[1].wait_for_end().success());
    let log = scene.cluster.nodes[1].log();
    assert!(log.contains("ends at 1, but 2 has been read before: the server lost acknowledged messages"), "{log}");
    assert!(log.contains("hint: restore the NATS server's data"), "{log}");
}

/// Who starts when nobody is there that knows cannot hear of what is lost. Those that do know must not take the log for the one that they read.
#[test]
fn a_node_whose_messages_have_lost_their_places_refuses_at_each_start() {
    let mut scene = Scene::begin();
    scene.write_what_is_lost();
    scene.cluster.nodes[0].kill();
    scene.cluster.nodes[1].kill();
    scene.lose();
    scene.cluster.server.restart();
    scene.cluster.nodes[2].start();
    scene.cluster.nodes[2].sql("UPDATE t SET v = 'in its place' WHERE id = 3");
    wait_for("the message in the place", || match scene.cluster.nodes[2].status()? {
        status if status.outbox_units == 0 && status.transactions_captured > 0 => Ok(()),
        status => Err(format!("{status:?}")),
    });
    for index in [0, 1, 0, 1] {
        let node = &mut scene.cluster.nodes[index];
        node.spawn();
        let ended = node.wait_for_end();
        assert_eq!(ended.code(), Some(3), "{}", node.log());
        assert!(node.log().contains("is not the one that was read before"), "{}", node.log());
        assert!(!node.log().contains("ready: node"), "{}", node.log());
        assert!(node.value("SELECT v FROM t WHERE id = 1").contains("lost"), "nothing was changed");
    }
}
