//! Three servers that keep three copies of every stream. Whatever happens to one of them, the nodes go on: none is started again, and
//! nothing is lost or doubled.

use std::time::Instant;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::support::cluster::{Node, Seed, settle, wait_for, woodchuck};
use crate::support::nats::NatsCluster;
use crate::torture::ledger::{Manner, SCHEMA, Writer};

const SHARDS: usize = 4;

/// Three servers, three nodes that know all of them, and on each node an application that keeps its ledger.
struct Field {
    servers: NatsCluster,
    nodes: Vec<Node>,
    pids: Vec<u32>,
    writers: Vec<Writer>,
    began: Instant,
    _seed: Seed,
    _dir: TempDir,
}

impl Field {
    fn start() -> Field {
        let seed = Seed::pick();
        let began = Instant::now();
        let servers = NatsCluster::start();
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first.db");
        Connection::open(&first).unwrap().execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}")).unwrap();
        let (urls, shards) = (servers.urls().join(","), SHARDS.to_string());
        let args = ["--nats-url", &urls, "--shards", &shards, "--log-replicas", "3", "--max-log-entries", "100000"];
        let mut nodes: Vec<Node> = (1..=3)
            .map(|id| {
                let db = dir.path().join(format!("node-{id}")).join("app.db");
                std::fs::create_dir(db.parent().unwrap()).unwrap();
                std::fs::copy(&first, &db).unwrap();
                Node::new(id, &db, &args)
            })
            .collect();
        nodes.iter_mut().for_each(Node::spawn);
        nodes.iter_mut().for_each(Node::wait_until_ready);
        let pids = nodes.iter().map(Node::pid).collect();
        let mut writers: Vec<Writer> = nodes.iter().map(|node| Writer::new(node.id as i64, &node.db)).collect();
        for (writer, nth) in writers.iter_mut().zip(0..) {
            writer.start(seed.0.wrapping_add(nth), 0, Manner::Paced);
        }
        let field = Field { servers, nodes, pids, writers, began, _seed: seed, _dir: dir };
        field.tell("three nodes are ready");
        field.flows("at the start", &[0, 1, 2]);
        field
    }

    fn tell(&self, what: &str) {
        println!("{:>7.3} s: {what}", self.began.elapsed().as_secs_f64());
    }

    /// Waits until what was committed on some nodes before this call is on all of them.
    fn flows(&self, when: &str, nodes: &[usize]) {
        let wanted: Vec<(i64, i64)> = nodes
            .iter()
            .map(|index| {
                let writer = &self.writers[*index];
                // One more than now, so that it was written after whatever has happened.
                (writer.id, writer.acknowledged() + 1)
            })
            .collect();
        let began = Instant::now();
        wait_for(&format!("rows of each node on the others {when}"), || {
            for node in nodes.iter().map(|index| &self.nodes[*index]) {
                for (writer, wanted) in &wanted {
                    let sql = format!("SELECT coalesce(max(counter), 0) FROM entry_w WHERE writer = {writer}");
                    let found: i64 = node.value(&sql).parse().unwrap();
                    if found < *wanted {
                        return Err(format!("node {} has {found} of {wanted} of writer {writer}", node.id));
                    }
                }
            }
            Ok(())
        });
        self.tell(&format!("rows flow {when}, after {:.1} s", began.elapsed().as_secs_f64()));
    }

    /// The server that leads a shard's stream, as another server has it.
    fn leader(&self, shard: usize, asked: &[usize]) -> usize {
        let stream = format!("woodchuck-changes-{SHARDS}-{shard}");
        wait_for("a leader", || {
            asked.iter().find_map(|server| self.servers.leader(*server, &stream)).ok_or_else(|| "none".to_owned())
        })
    }

    fn server_of(&self, node: usize) -> usize {
        let client = format!("woodchuck node {}", node + 1);
        wait_for("a connection", || self.servers.server_of(&client).ok_or_else(|| format!("{client} has none")))
    }

    /// Waits until a server says that it and its streams are well.
    fn heals(&self, server: usize) {
        wait_for("a healthy server", || self.servers.look(server, "/healthz").ok_or_else(|| format!("n{server}")));
        self.tell(&format!("n{server} is well"));
    }

    /// Lets the applications end, and checks that everything is everywhere, once, by the work of the daemons that were there from the start.
    fn end(mut self) {
        self.writers.iter_mut().for_each(Writer::stop);
        self.tell("the applications have ended");
        settle(&self.nodes);
        self.tell("the nodes are equal");
        for writer in &self.writers {
            let counts: Vec<i64> = self.nodes.iter().map(|node| writer.check(&node.db)).collect();
            assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "writer {}: {counts:?}", writer.id);
            self.tell(&format!("{} transactions of writer {} are everywhere", counts[0], writer.id));
        }
        let pids: Vec<u32> = self.nodes.iter().map(Node::pid).collect();
        assert_eq!(pids, self.pids, "no daemon was started again");
        for node in &self.nodes {
            println!("--- node {}\n{}", node.id, node.log());
            assert!(!node.log().contains("incomplete"), "node {} tore a transaction:\n{}", node.id, node.log());
        }
        self.nodes.iter_mut().for_each(Node::stop);
    }
}

#[test]
fn the_server_that_leads_dies_and_nobody_else_is_started_again() {
    let mut field = Field::start();
    for shard in [1, 2] {
        let leader = field.leader(shard, &[0, 1, 2]);
        field.tell(&format!("n{leader} leads shard {shard} and dies"));
        field.servers.servers[leader].kill();
        field.flows("while a server is dead", &[0, 1, 2]);
        // What it needs with three copies was made while all servers were there.
        let (urls, shards) = (field.servers.urls().join(","), SHARDS.to_string());
        let made = woodchuck(&["snapshot", "save", "--shards", &shards, "--nats-url", &urls]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        field.tell("a snapshot was made without it");
        field.servers.servers[leader].restart();
        field.heals(leader);
    }
    field.flows("when it is back", &[0, 1, 2]);
    field.end();
}

/// A server that the two others do not reach is there for its clients, and can do nothing for them. Whoever knows of the others has to go
/// there by itself.
#[test]
fn nodes_leave_a_server_that_is_cut_off_from_the_others() {
    let field = Field::start();
    let cut_off = field.server_of(0);
    let leaders: Vec<usize> = (1..=SHARDS).map(|shard| field.leader(shard, &[cut_off])).collect();
    field.tell(&format!("n{cut_off} is cut off; the shards are led by {leaders:?}"));
    field.servers.cut_off(cut_off, true);
    field.flows("while a server is cut off", &[0, 1, 2]);
    assert_ne!(field.server_of(0), cut_off);
    field.servers.cut_off(cut_off, false);
    field.tell(&format!("n{cut_off} is joined again"));
    field.heals(cut_off);
    field.flows("when it is joined again", &[0, 1, 2]);
    field.end();
}

#[test]
fn a_server_that_leads_and_hangs_is_left_and_comes_back() {
    let field = Field::start();
    let leader = field.leader(1, &[0, 1, 2]);
    let nodes: Vec<usize> = (0..3).map(|node| field.server_of(node)).collect();
    field.tell(&format!("n{leader} leads shard 1 and hangs; the nodes are at {nodes:?}"));
    field.servers.servers[leader].pause();
    field.flows("while a server hangs", &[0, 1, 2]);
    field.servers.servers[leader].resume();
    field.heals(leader);
    field.flows("when it goes on", &[0, 1, 2]);
    field.end();
}

#[test]
fn all_servers_are_restarted_one_after_another() {
    let mut field = Field::start();
    for server in 0..3 {
        field.servers.servers[server].end();
        field.tell(&format!("n{server} has ended"));
        field.flows("without it", &[0, 1, 2]);
        field.servers.servers[server].restart();
        field.heals(server);
    }
    field.flows("when all are new", &[0, 1, 2]);
    field.end();
}

/// Without two of three servers nothing can be written to the log, and nobody loses patience.
#[test]
fn a_cluster_without_a_majority_is_waited_for() {
    let mut field = Field::start();
    field.servers.servers[0].kill();
    field.servers.servers[1].kill();
    let before: Vec<i64> = field.writers.iter().map(Writer::acknowledged).collect();
    wait_for("applications that do not notice", || {
        let now: Vec<i64> = field.writers.iter().map(Writer::acknowledged).collect();
        let all = now.iter().zip(&before).all(|(now, before)| *now >= before + 100);
        if all { Ok(()) } else { Err(format!("{before:?} before, {now:?} now")) }
    });
    field.tell("each application has committed 100 transactions without a log");
    field.servers.servers[0].restart();
    field.flows("with two of three", &[0, 1, 2]);
    field.servers.servers[1].restart();
    field.heals(1);
    field.end();
}
