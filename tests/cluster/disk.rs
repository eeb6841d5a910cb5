//! A full disk: the daemon ends and says what to do, the application does not notice, and the next start has everything.

use crate::support::cluster::Cluster;

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
