//! Power failures: an application with synchronous=NORMAL loses the commits that were not on disk, after they were captured and published.

use std::path::PathBuf;

use rusqlite::Connection;
use woodchuck::capture::{POSITION_BYTES, Position};

use crate::support::cluster::{Cluster, Tables, wait_for};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, double INT AS (id * 2) STORED);
    CREATE TABLE named(k TEXT PRIMARY KEY, name TEXT UNIQUE) WITHOUT ROWID;
    CREATE TABLE log(v); CREATE TRIGGER logged AFTER INSERT ON t BEGIN INSERT INTO log VALUES('t ' || new.id); END;
    INSERT INTO named VALUES('a', 'one'), ('b', 'two')";

/// Two nodes; the first one's machine is about to fail.
struct Scene {
    cluster: Cluster,
    application: Connection,
    /// What was on disk when it failed: length of the log, and the daemon's note.
    log_bytes: u64,
    note: Vec<u8>,
}

impl Scene {
    fn wal(&self) -> PathBuf {
        self.cluster.nodes[0].db.with_extension("db-wal")
    }

    fn note(cluster: &Cluster) -> PathBuf {
        cluster.nodes[0].state_dir().join("durable")
    }

    /// Commits that are on disk, and behind them some that are not; everybody has captured and applied them.
    fn before_the_failure() -> Scene {
        let cluster = Cluster::start(2, SCHEMA);
        let application = Connection::open(&cluster.nodes[0].db).unwrap();
        application.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        for id in 1..=10 {
            application.execute("INSERT INTO t(id, v) VALUES(?1, 'early')", [id]).unwrap();
        }
        cluster.settle();
        let note = Scene::note(&cluster);
        let captured = cluster.nodes[0].status().unwrap().position;
        let note = wait_for("the position to be on disk", || {
            let bytes = std::fs::read(&note).map_err(|error| error.to_string())?;
            let position = bytes.get(..POSITION_BYTES).and_then(Position::from_bytes).ok_or("no position")?;
            let text = format!("{}:{}", position.salts, position.frame);
            if text == captured { Ok(bytes) } else { Err(format!("{text}, and {captured} is captured")) }
        });
        let log_bytes = cluster.nodes[0].db.with_extension("db-wal").metadata().unwrap().len();
        for id in 11..=20 {
            application.execute("INSERT INTO t(id, v) VALUES(?1, 'late')", [id]).unwrap();
        }
        application
            .execute_batch(
                "UPDATE t SET v = 'changed late' WHERE id IN (3, 4); DELETE FROM t WHERE id = 5;
                 BEGIN; UPDATE named SET name = 'x' WHERE k = 'a'; UPDATE named SET name = 'one' WHERE k = 'b';
                 UPDATE named SET name = 'two' WHERE k = 'a'; COMMIT",
            )
            .unwrap();
        cluster.nodes[1]
            .sql("INSERT INTO t(id, v) VALUES(30, 'of the other'); UPDATE t SET v = 'of the other' WHERE id = 9");
        cluster.settle();
        Scene { cluster, application, log_bytes, note }
    }

    /// Everything ends at once, and what was not on disk is gone: part of a frame of it is left.
    fn fail(self) -> Scene {
        let Scene { mut cluster, application, log_bytes, note } = self;
        cluster.nodes[0].kill();
        let (db, wal) = (cluster.nodes[0].db.clone(), cluster.nodes[0].db.with_extension("db-wal"));
        let (file, log) = (std::fs::read(&db).unwrap(), std::fs::read(&wal).unwrap());
        assert!(log.len() as u64 > log_bytes + 5000, "the log has what is to be lost");
        drop(application);
        std::fs::write(&db, file).unwrap();
        std::fs::write(&wal, &log[..log_bytes as usize + 5000]).unwrap();
        let _ = std::fs::remove_file(db.with_extension("db-shm"));
        let application = Connection::open_in_memory().unwrap();
        Scene { cluster, application, log_bytes, note }
    }

    /// The daemon's note as the machine finds it when it starts again.
    fn another_boot(&self) {
        let mut bytes = self.note[..POSITION_BYTES].to_vec();
        bytes.extend_from_slice(b"another boot");
        bytes.extend_from_within(..);
        std::fs::write(Scene::note(&self.cluster), bytes).unwrap();
    }

    fn start_and_settle(&mut self) -> Tables {
        self.cluster.nodes[0].start();
        let log = self.cluster.nodes[0].log();
        assert!(log.contains("the database lost commits"), "{log}");
        let tables = self.cluster.settle();
        self.cluster.stop();
        tables
    }
}

/// What both nodes have of `t` besides what the application did after the failure.
fn expected(tables: &Tables, changed_since: &[&str]) {
    let row = |id: i64, v: &str| format!("integer:{id}|text:'{v}'|integer:{}", id * 2);
    let mut rows: Vec<String> = (1..=20)
        .filter(|id| *id != 5)
        .map(|id| match id {
            3 | 4 => row(id, "changed late"),
            9 => row(id, "of the other"),
            11.. => row(id, "late"),
            _ => row(id, "early"),
        })
        .filter(|row| !changed_since.iter().any(|changed| changed.split('|').next() == row.split('|').next()))
        .chain([row(30, "of the other")])
        .chain(changed_since.iter().map(|row| (*row).to_owned()))
        .collect();
    rows.sort_unstable();
    assert_eq!(tables["t"], rows);
    assert_eq!(tables["named"], ["text:'a'|text:'two'", "text:'b'|text:'one'"]);
}

#[test]
fn commits_that_a_power_failure_took_are_written_again() {
    let mut scene = Scene::before_the_failure().fail();
    assert!(scene.wal().exists());
    let tables = scene.start_and_settle();
    expected(&tables, &[]);
    assert_eq!(tables["log"].len(), 21, "no trigger fired for what was written again");
}

#[test]
fn what_the_application_does_after_a_power_failure_is_its_own_change() {
    let mut scene = Scene::before_the_failure().fail();
    scene.cluster.nodes[0].sql("UPDATE t SET v = 'after' WHERE id = 3; INSERT INTO t(id, v) VALUES(40, 'after')");
    scene.another_boot();
    assert!(!scene.wal().exists(), "the application closed its database");
    let tables = scene.start_and_settle();
    expected(&tables, &["integer:3|text:'after'|integer:6", "integer:40|text:'after'|integer:80"]);
}

#[test]
fn what_the_application_appends_to_a_log_that_lost_its_tail_is_its_own_change() {
    let mut scene = Scene::before_the_failure().fail();
    let application = Connection::open(&scene.cluster.nodes[0].db).unwrap();
    application
        .execute_batch("UPDATE t SET v = 'after' WHERE id = 3; INSERT INTO t(id, v) VALUES(40, 'after')")
        .unwrap();
    let tables = scene.start_and_settle();
    expected(&tables, &["integer:3|text:'after'|integer:6", "integer:40|text:'after'|integer:80"]);
}

/// The daemon dies as soon as it has written again what was lost; what the application then takes back, while nobody follows, is meant.
#[test]
fn what_the_application_does_after_the_daemon_has_started_in_the_new_boot_is_its_own_change() {
    let mut scene = Scene::before_the_failure().fail();
    scene.another_boot();
    scene.cluster.nodes[0].start();
    assert!(scene.cluster.nodes[0].log().contains("the database lost commits"));
    scene.cluster.nodes[0].kill();
    scene.cluster.nodes[0].sql("UPDATE t SET v = 'early' WHERE id = 3; DELETE FROM t WHERE id = 20");
    assert!(!scene.wal().exists(), "the application closed its database");
    scene.cluster.nodes[0].start();
    let log = scene.cluster.nodes[0].log();
    assert!(!log.contains("the database lost commits"), "{log}");
    let mut tables = scene.cluster.settle();
    assert_eq!(tables["t"].iter().filter(|row| row.starts_with("integer:20|")).count(), 0);
    tables.get_mut("t").unwrap().push("integer:20|text:'late'|integer:40".to_owned());
    tables.get_mut("t").unwrap().sort_unstable();
    expected(&tables, &["integer:3|text:'early'|integer:6"]);
    scene.cluster.stop();
}

#[test]
fn a_daemon_that_dies_while_it_writes_lost_rows_again_goes_on_where_it_was() {
    for point in ["journal-appended", "captured", "own-taken"] {
        let mut scene = Scene::before_the_failure().fail();
        scene.cluster.nodes[0].spawn_with(&[("WOODCHUCK_DIE_AT", point)]);
        wait_for("the daemon to be beyond its start", || match scene.cluster.nodes[0].log() {
            log if log.contains("ready: node") || log.contains("dying") => Ok(()),
            log => Err(log),
        });
        scene.cluster.nodes[0].kill();
        scene.cluster.nodes[0].start();
        let tables = scene.cluster.settle();
        expected(&tables, &[]);
        scene.cluster.stop();
    }
}

#[test]
fn an_older_copy_with_its_log_is_taken_as_it_is_when_told_so() {
    let mut scene = Scene::before_the_failure().fail();
    scene.cluster.nodes[0].args.push("--accept-restored".to_owned());
    scene.cluster.nodes[0].start();
    let tables = scene.cluster.settle();
    assert_eq!(tables["t"].len(), 10, "as it was before the late commits");
    assert_eq!(tables["named"], ["text:'a'|text:'one'", "text:'b'|text:'two'"]);
    scene.cluster.stop();
}
