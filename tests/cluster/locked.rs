//! Databases that nobody can read for a while: the daemon waits, says so, and goes on.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::cluster::{Cluster, WITHIN, wait_for};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES(1, 'here before')";
const LOCKED: &str = "the database is locked by another process: waiting for it";

/// Keeps everybody from reading until it is let go.
struct Stopper(Child);

impl Stopper {
    fn begin(db: &Path, mode: &str) -> Stopper {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/stopper.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(db)
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "stopped\n");
        Stopper(child)
    }

    fn let_go(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn a_daemon_that_starts_while_an_application_closes_waits_for_it() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
    let stopper = Stopper::begin(&cluster.nodes[0].db, "exclusive");
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_it_says(LOCKED);
    stopper.let_go();
    cluster.nodes[0].wait_until_ready();
    cluster.nodes[1].start();
    cluster.nodes[0].sql("INSERT INTO t VALUES(2, 'after')");
    assert_eq!(cluster.settle()["t"].len(), 2);
}

#[test]
fn a_daemon_that_is_told_to_stop_while_it_waits_stops() {
    let mut cluster = Cluster::prepare(1, SCHEMA, "", &[]);
    let stopper = Stopper::begin(&cluster.nodes[0].db, "exclusive");
    cluster.nodes[0].spawn();
    cluster.nodes[0].wait_until_it_says(LOCKED);
    cluster.nodes[0].signal(rustix::process::Signal::TERM);
    assert!(cluster.nodes[0].wait_for_end().success(), "{}", cluster.nodes[0].log());
    stopper.let_go();
}

#[test]
fn a_writer_that_is_stopped_in_the_middle_of_its_commit_ends_no_daemon() {
    let mut cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO t VALUES(2, 'before')");
    cluster.settle();
    let stopper = Stopper::begin(&cluster.nodes[0].db, "commit");
    // It comes from the other node and must be applied.
    cluster.nodes[1].sql("INSERT INTO t VALUES(3, 'meanwhile')");
    cluster.nodes[0].wait_until_it_says(LOCKED);
    wait_for("the trouble to be told", || {
        let told = cluster.nodes[0].status()?.last_error;
        if told.contains("is locked") { Ok(()) } else { Err(told) }
    });
    stopper.let_go();
    cluster.nodes[0].wait_until_it_says("the database can be read again");
    cluster.nodes[0].sql("INSERT INTO t VALUES(4, 'after')");
    let tables = cluster.settle();
    assert_eq!(tables["t"].len(), 4, "within {WITHIN:?}");
    assert!(cluster.nodes.iter_mut().all(|node| node.runs()));
}

/// A node that has much to apply leaves the lock to its application in time, although that asks for it only now and then.
#[test]
fn an_application_that_keeps_the_write_lock_is_named_until_it_lets_go() {
    let mut cluster = Cluster::start(2, SCHEMA);
    let app = rusqlite::Connection::open(&cluster.nodes[0].db).unwrap();
    app.execute_batch("BEGIN IMMEDIATE").unwrap();
    cluster.nodes[1].sql("INSERT INTO t VALUES(2, 'waits')");
    cluster.nodes[0].wait_until_it_says("an application has kept the write lock for 5 s");
    let said = |cluster: &Cluster| cluster.nodes[0].status().map(|status| status.last_error);
    wait_for("the status to say so", || match said(&cluster)? {
        text if text.contains("(messages that wait: 1)") => Ok(()),
        text => Err(text),
    });
    app.execute_batch("COMMIT").unwrap();
    cluster.settle();
    wait_for("the status to have nothing to say", || match said(&cluster)? {
        text if text.is_empty() => Ok(()),
        text => Err(text),
    });
}

#[test]
fn an_application_gets_its_turn_while_much_is_applied() {
    let mut cluster = Cluster::start(
        2,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE own(id INTEGER PRIMARY KEY, v)",
    );
    cluster.nodes[1].stop();
    for part in 0..12 {
        cluster.nodes[0].sql(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000)
             INSERT INTO t SELECT {part} * 40000 + i, hex(randomblob(12)) FROM n"
        ));
    }
    let app = rusqlite::Connection::open(&cluster.nodes[1].db).unwrap();
    app.busy_timeout(std::time::Duration::from_secs(4)).unwrap();
    cluster.nodes[1].spawn();
    let (mut written, mut longest) = (0, std::time::Duration::ZERO);
    let began = std::time::Instant::now();
    while cluster.nodes[1].value("SELECT count(*) FROM t") != "480000" {
        assert!(began.elapsed().as_secs() < 120, "everything is applied");
        let at = std::time::Instant::now();
        app.execute("INSERT INTO own(v) VALUES(1)", []).expect("the application gets the lock");
        longest = longest.max(at.elapsed());
        written += 1;
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    println!("{written} commits in {:.1?}, the longest waited {longest:.2?}", began.elapsed());
    drop(app);
    cluster.settle();
}
