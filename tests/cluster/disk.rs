//! A full disk: the daemon ends and says what to do, the application does not notice, and the next start has everything. Lost and damaged
//! files of the state directory: each has a remedy.

use rusqlite::Connection;

use crate::support::cluster::{Cluster, wait_for};
use crate::support::nats::NatsServer;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
    WITH RECURSIVE ids(id) AS (VALUES(1) UNION ALL SELECT id + 1 FROM ids WHERE id < 200) INSERT INTO t SELECT id, randomblob(1000) FROM ids";

/// Bounds below which the journal, `state.db`, the shadow and the database itself cannot grow, one after another.
const BOUNDS: [u64; 5] = [600_000, 1_500_000, 3_000_000, 6_000_000, 12_000_000];

#[test]
fn a_full_disk_ends_the_daemon_and_loses_nothing() {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "100000"]);
    cluster.nodes[1].start();
    let mut rows = 200;
    for bound in BOUNDS {
        let node = &mut cluster.nodes[0];
        node.spawn_on_full_disk(bound);
        node.wait_until_ready();
        // The application has room. Each of its commits is large enough to fill the daemon's.
        for turn in 0.. {
            let full = node.log().contains("error: ");
            if full {
                break;
            }
            assert!(turn < 2000, "the bound of {bound} bytes is not met:\n{}", node.log());
            node.sql("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 40) INSERT INTO t(v) SELECT randomblob(4000) FROM n");
            rows += 40;
        }
        let ended = node.wait_for_end();
        let log = node.log();
        assert_eq!(ended.code(), Some(1), "{log}");
        assert!(log.contains("\nhint: ") && log.contains("space"), "{bound}: {log}");
        assert_eq!(node.value("SELECT integrity_check FROM pragma_integrity_check"), "'ok'");
        node.start();
        assert_eq!(cluster.settle()["t"].len(), rows, "after a bound of {bound} bytes");
        cluster.nodes[0].stop();
    }
    cluster.nodes[1].stop();
}

#[test]
fn files_of_the_state_directory_that_are_lost_or_damaged_have_a_remedy() {
    let mut cluster = Cluster::prepare_at(NatsServer::start_durable(), 2, &[], |db| {
        Connection::open(db).unwrap().execute_batch(SCHEMA).unwrap();
    });
    cluster.start_nodes();
    let (server, [first, second]) = (&mut cluster.server, &mut cluster.nodes[..]) else { panic!("two nodes") };
    first.sql("INSERT INTO t VALUES(1001, 'x')");
    // Something waits in the outbox when the shadow is lost.
    server.kill();
    first.sql("INSERT INTO t VALUES(1002, 'waits')");
    wait_for("the change in the outbox", || match first.status()?.outbox_units {
        0 => Err("nothing".to_owned()),
        _ => Ok(()),
    });
    first.kill();
    server.restart();
    let state = first.state_dir();
    for (name, is_removed) in
        [("shadow.db", true), ("shadow.db", false), ("shadow.journal", true), ("shadow.journal", false)]
    {
        match is_removed {
            true => std::fs::remove_file(state.join(name)).unwrap(),
            false => std::fs::write(state.join(name), vec![7; 1 << 16]).unwrap(),
        }
        first.spawn();
        assert!(!first.wait_for_end().success());
        assert!(first.log().contains("--new-shadow") && first.log().contains(name), "{}", first.log());
        first.args.push("--new-shadow".to_owned());
        first.start();
        first.args.pop();
        first.stop();
    }
    // A state that is gone is not begun anew in silence.
    let (kept, path) = (state.join("kept"), state.join("state.db"));
    std::fs::rename(&path, &kept).unwrap();
    first.spawn();
    assert_eq!(first.wait_for_end().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("the node's state is gone"), "{}", first.log());
    // Nor is one of which the file is left without its log, where all of it was.
    Connection::open(&path).unwrap().pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    first.spawn();
    assert_eq!(first.wait_for_end().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("the node's state is gone"), "{}", first.log());
    // Nor is one of which the log has only its beginning, from before the first position was stored.
    std::fs::copy(&kept, &path).unwrap();
    Connection::open(&path).unwrap().execute("DELETE FROM meta WHERE name = 'capture_position'", []).unwrap();
    let _ = std::fs::remove_file(state.join("state.db-wal"));
    first.spawn();
    assert_eq!(first.wait_for_end().code(), Some(3), "{}", first.log());
    assert!(first.log().contains("the node's state is gone"), "{}", first.log());
    std::fs::rename(&kept, &path).unwrap();
    first.start();
    second.sql("INSERT INTO t VALUES(1003, 'of the other')");
    let tables = cluster.settle();
    assert_eq!(tables["t"].len(), 203, "what waited was published");
    cluster.stop();
}
