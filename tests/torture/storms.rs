//! Storms: nodes, writers and the server die, stop and come back at random, over databases that everybody writes and checkpoints.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;
use woodchuck::fault::{Point, VARIABLE};

use super::ledger::{Manner, SCHEMA, Writer};
use crate::support::cluster::{Cluster, Node, Seed};
use crate::support::nats::NatsServer;
use crate::support::random::Random;

/// How long one storm lasts.
const STORM: Duration = Duration::from_secs(8);
/// The longest time between two events.
const PAUSE_MS_MAX: u64 = 300;
/// The longest time that a daemon is stopped. It may hold the write lock then, and applications wait 5 s for that.
const STOPPED_MS_MAX: u64 = 800;

struct Storm {
    random: Random,
    cluster: Cluster,
    writers: Vec<Vec<Writer>>,
    /// Nodes whose daemon was told to die somewhere.
    armed: Vec<bool>,
    server_runs: bool,
    began: Instant,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut random = Random::new(seed);
        let count = random.range(2, 5) as u64;
        let shards = random.pick(&["1", "2", "5"]);
        let args = ["--shards", shards, "--max-log-entries", "1000000"];
        let page_size = *random.pick(&[512, 1024, 4096, 4096, 65536]);
        let auto_vacuum = *random.pick(&["NONE", "NONE", "FULL"]);
        let mut cluster = Cluster::prepare_at(NatsServer::start_durable(), count, &args, |db| {
            let settings = format!("PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {auto_vacuum};");
            Connection::open(db).unwrap().execute_batch(&(settings + SCHEMA)).unwrap();
        });
        cluster.start_nodes();
        let writers = cluster.nodes.iter().map(|node| {
            let count = random.range(1, 4);
            (0..count).map(|nth| Writer::new(node.id as i64 * 10 + nth, &node.db)).collect()
        });
        let writers = writers.collect();
        let armed = vec![false; count as usize];
        println!("{count} nodes, {shards} shards, pages of {page_size} bytes, auto_vacuum {auto_vacuum}");
        Storm { random, cluster, writers, armed, server_runs: true, began: Instant::now() }
    }

    fn tell(&self, what: &str) {
        println!("{:>7.3} s: {what}", self.began.elapsed().as_secs_f64());
    }

    fn start_writers(&mut self, index: usize) {
        for writer in self.writers[index].iter_mut().filter(|writer| !writer.runs()) {
            writer.start(self.random.next(), 0, Manner::Wild);
        }
    }

    /// Notes daemons that died where they were told to. Any other end is a failure.
    fn reap(&mut self) {
        for (index, node) in self.cluster.nodes.iter_mut().enumerate() {
            if let Some(ended) = node.try_end() {
                let log = node.log();
                let as_told = self.armed[index] && ended.signal() == Some(9) && log.contains("dying at fault point");
                assert!(as_told, "node {} ended by itself: {ended}\n{log}", node.id);
                println!(
                    "{:>7.3} s: node {} {}",
                    self.began.elapsed().as_secs_f64(),
                    node.id,
                    log.lines().last().unwrap_or("")
                );
                self.armed[index] = false;
            }
        }
    }

    fn kill_daemon(&mut self, index: usize) {
        self.reap();
        if self.cluster.nodes[index].runs() {
            self.tell(&format!("kill node {}", index + 1));
            self.cluster.nodes[index].kill();
            self.armed[index] = false;
        }
    }

    fn start_daemon(&mut self, index: usize, point: Option<Point>) {
        if self.cluster.nodes[index].runs() {
            return;
        }
        let nth = 1 + self.random.below(8);
        let wish = point.map(|point| format!("{}:{nth}", point.name()));
        self.tell(&format!("start node {} {}", index + 1, wish.as_deref().unwrap_or("")));
        match &wish {
            Some(wish) => self.cluster.nodes[index].spawn_with(&[(VARIABLE, wish)]),
            None => self.cluster.nodes[index].spawn(),
        }
        self.armed[index] = point.is_some();
    }

    fn pause(&mut self, ms_max: u64) {
        std::thread::sleep(Duration::from_millis(self.random.below(ms_max)));
    }

    fn event(&mut self) {
        let index = self.random.below(self.cluster.nodes.len() as u64) as usize;
        match self.random.below(100) {
            0..=14 => self.kill_daemon(index),
            15..=24 => {
                self.kill_daemon(index);
                self.start_daemon(index, None);
            }
            25..=39 => self.start_daemon(index, None),
            40..=59 => {
                let point = *self.random.pick(Point::ALL);
                self.kill_daemon(index);
                self.start_daemon(index, Some(point));
            }
            60..=66 => {
                let nth = self.random.below(self.writers[index].len() as u64) as usize;
                self.tell(&format!("kill writer {}", self.writers[index][nth].id));
                self.writers[index][nth].kill();
            }
            67..=73 => self.start_writers(index),
            74..=79 => {
                self.tell(if self.server_runs { "kill the server" } else { "start the server" });
                if self.server_runs {
                    self.cluster.server.kill()
                } else {
                    self.cluster.server.restart()
                }
                self.server_runs = !self.server_runs;
            }
            80..=87 => {
                self.reap();
                if self.cluster.nodes[index].runs() && !self.armed[index] {
                    self.tell(&format!("stop node {} for a moment", index + 1));
                    self.cluster.nodes[index].signal(Signal::STOP);
                    self.pause(STOPPED_MS_MAX);
                    self.cluster.nodes[index].signal(Signal::CONT);
                }
            }
            88..=91 => {
                self.reap();
                if self.cluster.nodes[index].runs() && !self.armed[index] && self.server_runs {
                    self.tell(&format!("end node {}", index + 1));
                    self.cluster.nodes[index].signal(Signal::TERM);
                    // It may not listen to signals yet; then it was killed by this one.
                    let ended = self.cluster.nodes[index].wait_for_end();
                    let log = self.cluster.nodes[index].log();
                    assert!(
                        ended.success() || ended.signal() == Some(15),
                        "node {} ended with {ended}:\n{log}",
                        index + 1
                    );
                }
            }
            _ => {
                self.kill_daemon(index);
                self.tell(&format!("all applications of node {} close", index + 1));
                self.writers[index].iter_mut().for_each(Writer::stop);
                if self.random.chance(50) {
                    self.cluster.nodes[index].sql("VACUUM");
                }
                if self.random.chance(50) {
                    self.start_daemon(index, None);
                    self.start_writers(index);
                } else {
                    self.start_writers(index);
                    self.pause(PAUSE_MS_MAX);
                    self.start_daemon(index, None);
                }
            }
        }
    }

    fn rage(&mut self, how_long: Duration) {
        (0..self.writers.len()).for_each(|index| self.start_writers(index));
        while self.began.elapsed() < how_long {
            self.pause(PAUSE_MS_MAX);
            self.reap();
            self.event();
        }
    }

    /// Brings everything back, lets it become quiet, and checks.
    fn calm(mut self) {
        self.tell("calm");
        if !self.server_runs {
            self.cluster.server.restart();
        }
        self.writers.iter_mut().flatten().for_each(Writer::stop);
        for index in 0..self.cluster.nodes.len() {
            if self.armed[index] {
                self.kill_daemon(index);
            }
            self.start_daemon(index, None);
        }
        self.cluster.nodes.iter_mut().for_each(Node::wait_until_ready);
        self.cluster.settle();
        let mut transactions = 0;
        for writer in self.writers.iter().flatten() {
            let counts: Vec<i64> = self.cluster.nodes.iter().map(|node| writer.check(&node.db)).collect();
            assert!(counts.windows(2).all(|pair| pair[0] == pair[1]), "writer {}: {counts:?}", writer.id);
            transactions += counts[0];
        }
        self.tell(&format!("{transactions} transactions are everywhere, whole and once"));
        self.cluster.stop();
    }
}

/// `WOODCHUCK_TORTURE_SECONDS` asks for one storm after another, each with the next seed.
#[test]
fn storms_lose_nothing_and_double_nothing() {
    let wanted = std::env::var("WOODCHUCK_TORTURE_SECONDS").ok().and_then(|text| text.parse().ok());
    let within = Duration::from_secs(wanted.unwrap_or(0));
    let began = Instant::now();
    let mut seed = Seed::pick();
    loop {
        println!("storm with SEED={}", seed.0);
        let mut storm = Storm::new(seed.0);
        storm.rage(STORM);
        storm.calm();
        if began.elapsed() >= within {
            return;
        }
        seed.0 += 1;
    }
}
