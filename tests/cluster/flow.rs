//! What a cluster is for: every node's rows reach every other, whole, once, and all end equal.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::cluster::{Cluster, Seed, WITHIN, application, wait_for};

const PLAIN: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n); CREATE TABLE u(k TEXT PRIMARY KEY, e TEXT UNIQUE, v);
    INSERT INTO t VALUES(1,'one',1),(2,'two',2),(3,'three',3)";

#[test]
fn rows_flow_both_ways() {
    let mut cluster = Cluster::start(2, PLAIN);
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    a.sql("INSERT INTO t VALUES(10,'from a',1.5); UPDATE t SET v='A' WHERE id=1; DELETE FROM t WHERE id=2; INSERT INTO u VALUES('ka','ea',x'00ff')");
    b.sql("INSERT INTO t VALUES(20,'from b',NULL); UPDATE t SET v='B' WHERE id=3; INSERT INTO u VALUES('kb','eb',2)");
    let tables = cluster.settle();
    let want = [
        "integer:10|text:'from a'|real:1.5",
        "integer:1|text:'A'|integer:1",
        "integer:20|text:'from b'|null:NULL",
        "integer:3|text:'B'|integer:3",
    ];
    assert_eq!(tables["t"], want);
    assert_eq!(tables["u"], ["text:'ka'|text:'ea'|blob:X'00FF'", "text:'kb'|text:'eb'|integer:2"]);
    assert!(cluster.nodes.iter().all(|node| node.conflicts().is_empty()), "different rows are no conflict");
    cluster.stop();
}

#[test]
fn three_nodes_with_real_traffic_end_equal() {
    let seed = Seed::pick();
    let mut cluster = Cluster::prepare_copies(3, "", &["--max-log-entries", "100000"], |db| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/sample.py");
        assert!(std::process::Command::new("python3").arg(script).arg(db).status().unwrap().success());
    });
    cluster.start_nodes();
    let before = cluster.nodes[0].tables();
    let writers: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| application(&node.db, "shop", &["5", &seed.text(node.id), &node.id.to_string()]))
        .collect();
    let done: Vec<String> = writers.into_iter().map(|writer| writer.end()).collect();
    let after = cluster.settle();
    println!("commits and refusals of each node: {done:?}");
    assert_ne!(before, after, "{done:?}");
    cluster.stop();
}

#[test]
fn effects_of_triggers_and_cascades_arrive_once() {
    let schema = "CREATE TABLE parent(id INTEGER PRIMARY KEY, n INTEGER CHECK (n >= 0), twice GENERATED ALWAYS AS (n * 2) STORED);
        CREATE TABLE child(parent_id INTEGER REFERENCES parent ON DELETE CASCADE, no INTEGER, PRIMARY KEY(parent_id, no)) WITHOUT ROWID;
        CREATE TABLE log(id TEXT PRIMARY KEY DEFAULT (lower(hex(randomblob(8)))), what TEXT);
        CREATE TRIGGER inserted AFTER INSERT ON parent BEGIN INSERT INTO log(what) VALUES('+' || new.id); UPDATE parent SET n = n + 1 WHERE id = new.id; END;
        CREATE TRIGGER changed AFTER UPDATE ON parent BEGIN INSERT INTO log(what) VALUES('~' || new.id); END;
        CREATE TRIGGER gone AFTER DELETE ON child BEGIN INSERT INTO log(what) VALUES('-' || old.parent_id || '.' || old.no); END;
        CREATE VIEW sums AS SELECT sum(n) FROM parent;";
    let mut cluster = Cluster::start(2, schema);
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let on = "PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF; PRAGMA recursive_triggers=ON;";
    a.sql(&format!("{on} INSERT INTO parent(id, n) VALUES(1, 5); INSERT INTO child VALUES(1,1),(1,2),(1,3); INSERT OR REPLACE INTO parent(id, n) VALUES(1, 7)"));
    b.sql(&format!("{on} INSERT INTO parent(id, n) VALUES(2, 0); INSERT INTO child VALUES(2,1),(2,2); DELETE FROM parent WHERE id = 2"));
    let tables = cluster.settle();
    assert_eq!(tables["parent"], ["integer:1|integer:8|integer:16"]);
    assert_eq!(tables["child"], Vec::<String>::new());
    let mut what: Vec<&str> = tables["log"].iter().filter_map(|row| row.split('\'').nth(3)).collect();
    what.sort_unstable();
    assert_eq!(what, ["+1", "+1", "+2", "-1.1", "-1.2", "-1.3", "-2.1", "-2.2", "~1", "~1", "~2"]);
    cluster.stop();
}

#[test]
fn no_increment_is_lost_while_own_changes_come_back() {
    const TIMES: u64 = 2000;
    let mut cluster =
        Cluster::start(2, "CREATE TABLE counter(id INTEGER PRIMARY KEY, n INT); INSERT INTO counter VALUES(1, 0)");
    application(&cluster.nodes[0].db, "count", &[&TIMES.to_string()]).end();
    let tables = cluster.settle();
    assert_eq!(tables["counter"], [format!("integer:1|integer:{TIMES}")]);
    assert!(cluster.nodes.iter().all(|node| node.conflicts().is_empty()), "one writer meets nobody");
    cluster.stop();
}

#[test]
fn a_reader_of_a_replica_never_sees_half_of_a_transfer() {
    let seed = Seed::pick();
    let mut cluster = Cluster::prepare(
        2,
        "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT);
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 64) INSERT INTO account SELECT i, 1000 FROM n",
        "",
        &["--shards", "8", "--max-log-entries", "100000"],
    );
    cluster.start_nodes();
    let done = cluster.dir.path().join("done");
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let watcher = application(&b.db, "watch-sum", &["account", done.to_str().unwrap()]);
    let transfers: u64 = application(&a.db, "transfer", &["3", &seed.text(1)]).end().parse().unwrap();
    cluster.settle();
    std::fs::write(&done, "").unwrap();
    let seen = watcher.end();
    let (looks, states) = seen.split_once(' ').unwrap();
    assert!(transfers > 100 && looks.parse::<u64>().unwrap() > 100, "{transfers} transfers, {looks} looks");
    assert!(states.parse::<u64>().unwrap() > 3, "the reader saw {states} states of the replica");
    cluster.stop();
}

#[test]
fn what_is_written_on_the_log_is_shown_once_and_decodable() {
    let mut cluster = Cluster::start(2, PLAIN);
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let out = cluster.dir.path().join("subscribed");
    let mut subscriber =
        crate::support::cluster::woodchuck(&["subscribe", "--format", "json", "--nats-url", &cluster.server.url()])
            .stdout(std::fs::File::create(&out).unwrap())
            .spawn()
            .unwrap();
    a.sql("BEGIN; INSERT INTO t VALUES(10,'é\"',9007199254740993); UPDATE t SET n=1.0 WHERE id=1; COMMIT; DELETE FROM t WHERE id=2");
    b.sql("INSERT INTO u VALUES('k', 'e', x'00ff')");
    cluster.settle();
    b.sql("CREATE INDEX t_v ON t(v)");
    let rows = wait_for("the changes", || {
        let text = std::fs::read_to_string(&out).unwrap();
        let Some((whole, _)) = text.rsplit_once('\n') else { return Err(text) };
        let lines: Vec<serde_json::Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let is_row = |line: &&serde_json::Value| !["begin", "commit"].contains(&line["op"].as_str().unwrap());
        let rows: Vec<_> = lines.iter().filter(is_row).cloned().collect();
        // The change of the schema is in all eight shards.
        if rows.len() >= 4 + 8 { Ok(rows) } else { Err(text) }
    });
    subscriber.kill().unwrap();
    subscriber.wait().unwrap();
    let shown = |row: &serde_json::Value| match row["op"].as_str() {
        Some("schema") => format!("{} {} {} {} {}", row["op"], row["type"], row["name"], row["before"], row["after"]),
        _ => format!("{} {} {} {}", row["op"], row["table"], row["key"], row["after"]),
    };
    let mut seen: Vec<String> = rows.iter().map(shown).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(
        seen,
        [
            r#""delete" "t" {"id":2} null"#,
            r#""insert" "t" {"id":10} {"id":10,"n":9007199254740993,"v":"é\""}"#,
            r#""insert" "u" {"k":"k"} {"e":"e","k":"k","v":{"blob":"AP8="}}"#,
            r#""schema" "index" "t_v" null "CREATE INDEX t_v ON t(v)""#,
            r#""update" "t" {"id":1} {"id":1,"n":1.0,"v":"one"}"#,
        ]
    );
    cluster.stop();
}

#[test]
fn a_quiet_pair_shows_a_commit_soon() {
    const COMMITS: i64 = 200;
    // Far above what it takes, far below any timer that could stand in for a lost wake-up and hide it.
    const HALF_WITHIN: Duration = Duration::from_millis(100);
    let mut cluster = Cluster::start(2, PLAIN);
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    let (writer, reader) = (Connection::open(&a.db).unwrap(), Connection::open(&b.db).unwrap());
    let mut find = reader.prepare("SELECT 1 FROM t WHERE id = ?1").unwrap();
    let mut took: Vec<Duration> = Vec::new();
    for id in 1000..1000 + COMMITS {
        writer.execute("INSERT INTO t VALUES(?1, 'quiet', 1)", [id]).unwrap();
        let committed = Instant::now();
        while !find.exists([id]).unwrap() {
            assert!(committed.elapsed() < WITHIN, "row {id} does not arrive");
            std::thread::sleep(Duration::from_micros(100));
        }
        took.push(committed.elapsed());
    }
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!("commit to visible: p50 {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    assert!(at(50) < HALF_WITHIN, "{:?}", at(50));
    drop((writer, find));
    cluster.settle();
    cluster.stop();
}
