//! State directories that are older than what their node has published: a power failure took the end of them, or a copy was put back.

use std::path::{Path, PathBuf};
use std::process::Command;

use rusqlite::Connection;
use woodchuck::capture::POSITION_BYTES;

use crate::support::cluster::{Cluster, Tables, wait_for};

const SCHEMA: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b, c); CREATE TABLE named(k TEXT PRIMARY KEY, name UNIQUE);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) INSERT INTO t SELECT i, 0, 0, 0 FROM n;
    INSERT INTO named VALUES('x', 'one'), ('y', 'two'), ('z', 'three')";

/// Two nodes, and what the first one had at some time.
struct Scene {
    cluster: Cluster,
    kept: PathBuf,
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

impl Scene {
    /// The first node's folder is copied, and it goes on.
    fn begin() -> Scene {
        Scene::begin_with(Cluster::start(2, SCHEMA))
    }

    fn begin_with(mut cluster: Cluster) -> Scene {
        cluster.nodes[0].sql("UPDATE t SET a = 1 WHERE id <= 5");
        cluster.nodes[1].sql("UPDATE t SET b = 1 WHERE id <= 5");
        cluster.settle();
        cluster.nodes[0].kill();
        let kept = cluster.dir.path().join("kept");
        copy(Scene::folder(&cluster), &kept);
        cluster.nodes[0].start();
        Scene { cluster, kept }
    }

    fn folder(cluster: &Cluster) -> &Path {
        cluster.nodes[0].db.parent().unwrap()
    }

    fn sql(&self, node: usize, sql: &str) {
        self.cluster.nodes[node].sql(sql);
    }

    /// Waits until the first node has captured what was committed, which nobody else can see.
    fn wait_for_capture(&self, transactions: u64) {
        wait_for("the first node to capture", || {
            let captured = self.cluster.nodes[0].status()?.transactions_captured;
            if captured >= transactions { Ok(()) } else { Err(format!("{captured} transactions")) }
        });
    }

    /// The state directory becomes what it was, and the database too if `all`.
    fn go_back(&mut self, all: bool, rebooted: bool) {
        let folder = Scene::folder(&self.cluster).to_owned();
        let state = self.cluster.nodes[0].state_dir();
        if all {
            std::fs::remove_dir_all(&folder).unwrap();
            copy(&self.kept, &folder);
        } else {
            std::fs::remove_dir_all(&state).unwrap();
            copy(&self.kept.join(state.file_name().unwrap()), &state);
        }
        if rebooted {
            let note = state.join("durable");
            let mut bytes = std::fs::read(&note).unwrap();
            bytes.truncate(POSITION_BYTES);
            bytes.extend_from_slice(b"another boot");
            bytes.extend_from_within(..);
            std::fs::write(&note, bytes).unwrap();
        }
    }

    /// Starts the first node again; both write; both end equal, and a restart changes nothing.
    fn go_on(&mut self) -> Tables {
        self.cluster.nodes[0].start();
        self.cluster.settle();
        self.sql(0, "INSERT INTO t VALUES(101, 'of the first', 0, 0)");
        self.sql(1, "INSERT INTO t VALUES(102, 'of the second', 0, 0)");
        self.cluster.settle();
        self.cluster.nodes[0].kill();
        self.cluster.nodes[0].start();
        self.sql(0, "INSERT INTO named VALUES('last', 'last')");
        let tables = self.cluster.settle();
        assert_eq!(tables["named"].iter().filter(|row| row.contains("'last'")).count(), 1);
        assert_eq!(tables["t"].iter().filter(|row| row.contains("'of the")).count(), 2);
        tables
    }

    fn row(&self, id: i64) -> String {
        let values: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .map(|node| node.value(&format!("SELECT a || ' ' || b || ' ' || c FROM t WHERE id = {id}")))
            .collect();
        assert_eq!(values[0], values[1]);
        values[0].trim_matches('\'').to_owned()
    }
}

/// The machine as a whole was put back: what was published since comes back from the log.
fn put_back(rebooted: bool) {
    let mut scene = Scene::begin();
    scene
        .sql(0, "UPDATE t SET a = 2 WHERE id IN (1, 2); DELETE FROM t WHERE id = 3; INSERT INTO t VALUES(50, 5, 5, 5)");
    scene.sql(0, "UPDATE named SET name = 'four' WHERE k = 'x'; UPDATE named SET name = 'one' WHERE k = 'y'");
    scene.sql(1, "UPDATE t SET a = 3 WHERE id = 2");
    scene.cluster.settle();
    scene.cluster.nodes[0].kill();
    scene.go_back(true, rebooted);
    scene.sql(1, "UPDATE t SET c = 9 WHERE id = 1");
    // Made on what the copy had, before anybody told it of the rest.
    scene.sql(0, "UPDATE t SET c = 7 WHERE id = 6; UPDATE t SET b = 8 WHERE id = 1");
    let tables = scene.go_on();
    assert_eq!((scene.row(1), scene.row(6)), ("2 8 9".to_owned(), "0 0 7".to_owned()));
    assert!(scene.row(2).ends_with(" 1 0"));
    assert_eq!(scene.row(50), "5 5 5");
    assert!(!tables["t"].iter().any(|row| row.starts_with("integer:3|")));
    assert_eq!(tables["named"][1..], ["text:'x'|text:'four'", "text:'y'|text:'one'", "text:'z'|text:'three'"]);
}

#[test]
fn a_machine_that_was_put_back_takes_its_own_past_from_the_log() {
    put_back(true);
}

#[test]
fn a_copy_that_was_put_back_takes_its_own_past_from_the_log() {
    put_back(false);
}

/// The database has everything, the state forgot: what is found again is neither published twice nor lost.
#[test]
fn a_state_that_a_power_failure_took_back_publishes_what_was_never_published_and_nothing_else() {
    let cluster = Cluster::start(2, SCHEMA);
    // It does not close its database before the power fails, so the log stays: with it every change is found, without it only what differs.
    let application = Connection::open(&cluster.nodes[0].db).unwrap();
    application.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    let mut scene = Scene::begin_with(cluster);
    // Published, and of the others: all of it will be found again.
    scene
        .sql(0, "UPDATE t SET a = 2 WHERE id IN (1, 2); DELETE FROM t WHERE id = 3; INSERT INTO t VALUES(50, 5, 5, 5)");
    scene.sql(
        1,
        "UPDATE t SET b = 2 WHERE id IN (1, 2, 10); DELETE FROM t WHERE id = 4; INSERT INTO t VALUES(60, 6, 6, 6)",
    );
    scene.sql(0, "UPDATE named SET name = 'four' WHERE k = 'x'; UPDATE named SET name = 'one' WHERE k = 'y'");
    scene.sql(1, "INSERT INTO named VALUES('w', 'five'); DELETE FROM named WHERE k = 'z'");
    scene.cluster.settle();
    let before = scene.cluster.nodes[0].status().unwrap().transactions_captured;
    // Never published: also back to what columns were before.
    scene.cluster.server.kill();
    scene.sql(0, "UPDATE t SET a = 1 WHERE id = 1; INSERT INTO t VALUES(70, 7, 7, 7); DELETE FROM t WHERE id = 60");
    scene.sql(0, "UPDATE t SET b = 3 WHERE id = 10; INSERT INTO named VALUES('v', 'six')");
    scene.wait_for_capture(before + 5);
    scene.cluster.nodes[0].kill();
    scene.cluster.server.restart();
    // What the first node would override if it published what it had of the others.
    scene.sql(1, "UPDATE t SET b = 4 WHERE id IN (1, 2); INSERT INTO t VALUES(4, 4, 4, 4); UPDATE named SET name = 'seven' WHERE k = 'w'");
    wait_for("the second node to publish", || {
        let units = scene.cluster.nodes[1].status()?.outbox_units;
        if units == 0 { Ok(()) } else { Err(format!("{units} units")) }
    });
    scene.go_back(false, true);
    scene.cluster.nodes[0].start();
    scene.cluster.nodes[0].wait_until_it_says("are on the log already; 5 are published");
    scene.cluster.nodes[0].kill();
    drop(application);
    let tables = scene.go_on();
    assert_eq!((scene.row(1), scene.row(2)), ("1 4 0".to_owned(), "2 4 0".to_owned()));
    assert_eq!((scene.row(4), scene.row(10)), ("4 4 4".to_owned(), "0 3 0".to_owned()));
    assert_eq!((scene.row(50), scene.row(70)), ("5 5 5".to_owned(), "7 7 7".to_owned()));
    for id in [3, 60] {
        assert!(!tables["t"].iter().any(|row| row.starts_with(&format!("integer:{id}|"))), "row {id}");
    }
    let named: Vec<&str> = tables["named"].iter().map(String::as_str).filter(|row| !row.contains("last")).collect();
    assert_eq!(named, ["text:'v'|text:'six'", "text:'w'|text:'seven'", "text:'x'|text:'four'", "text:'y'|text:'one'"]);
}
