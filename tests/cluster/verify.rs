//! Whether all nodes hold the same can be asked at any time, whoever writes meanwhile; what differs is named.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::cluster::{Cluster, Node, Seed, application, wait_for, woodchuck};
use crate::torture::ledger::{Manner, SCHEMA, Writer};

const PLAIN: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, n); CREATE TABLE u(k TEXT PRIMARY KEY, e TEXT UNIQUE);
    INSERT INTO t VALUES(1,'one',1),(2,'the value of two',2),(3,'three',3); INSERT INTO u VALUES('a','1')";

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn verify(node: &Node, args: &[&str]) -> (i32, Value) {
    let output = node.ask("verify", &[&["--format", "json"], args].concat());
    (output.status.code().unwrap(), report(&output))
}

/// The tables with their verdicts.
fn verdicts(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    report["tables"].as_array().unwrap().iter().map(|table| (text(&table["table"]), text(&table["verdict"]))).collect()
}

#[test]
fn nodes_are_equal_at_every_place_while_all_of_them_write() {
    let seed = Seed::pick();
    let mut cluster = Cluster::prepare(3, SCHEMA, "", &["--max-log-entries", "100000"]);
    cluster.start_nodes();
    let mut writers: Vec<Writer> = cluster.nodes.iter().map(|node| Writer::new(node.id as i64, &node.db)).collect();
    for (writer, manner) in writers.iter_mut().zip([Manner::Paced, Manner::Paced, Manner::Paced]) {
        writer.start(seed.0, 0, manner);
    }
    let mut places = Vec::new();
    for round in 0..6 {
        let before: Vec<i64> = writers.iter().map(Writer::acknowledged).collect();
        wait_for("writing on all nodes", || {
            let now: Vec<i64> = writers.iter().map(Writer::acknowledged).collect();
            let all = now.iter().zip(&before).all(|(now, before)| *now > before + 3);
            if all { Ok(()) } else { Err(format!("{before:?}, {now:?}")) }
        });
        let (code, report) = verify(&cluster.nodes[round % 3], &["--nodes", "1,2,3"]);
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["nodes"], serde_json::json!([1, 2, 3]), "{report}");
        assert_eq!(verdicts(&report).len(), 8);
        assert!(verdicts(&report).iter().all(|(_, verdict)| verdict == "equal"), "{report}");
        places.push(report["applied"].clone());
        println!("{} ms, {} ms of reading, {} bytes", report["took_ms"], report["read_ms"], report["answer_bytes"]);
    }
    assert!(places.windows(2).all(|pair| pair[0] != pair[1]), "they wrote meanwhile: {places:?}");
    writers.iter_mut().for_each(Writer::stop);
    cluster.settle();
    assert_eq!(verify(&cluster.nodes[0], &[]).0, 0);
    cluster.stop();
}

/// Replaces bytes of a file, as a disk or a program that knows nothing of SQLite does.
fn patch(file: &Path, from: &str, to: &str) -> usize {
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(file).unwrap();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    for at in &places {
        bytes[*at..*at + to.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(file, bytes).unwrap();
    places.len()
}

/// The database and our shadow of it are changed alike while nobody looks: repairing the gap finds no difference, comparing nodes does.
#[test]
fn a_row_that_was_changed_behind_everybodys_back_is_named() {
    let mut cluster = Cluster::start(3, PLAIN);
    cluster.nodes[0].sql("UPDATE u SET e = '2'");
    cluster.settle();
    let node = &mut cluster.nodes[1];
    node.stop();
    assert!(patch(&node.db, "the value of two", "another for two!") >= 1);
    assert!(patch(&node.state_dir().join("shadow.db"), "the value of two", "another for two!") >= 1);
    node.start();
    assert_eq!(node.value("SELECT v FROM t WHERE id = 2"), "'another for two!'");
    cluster.nodes[2].sql("INSERT INTO t VALUES(5,'five',5)");
    wait_for("the row everywhere", || {
        let counts: Vec<String> = cluster.nodes.iter().map(|node| node.value("SELECT count(*) FROM t")).collect();
        if counts.iter().all(|count| count == "4") { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    let (code, report) = verify(&cluster.nodes[2], &["--nodes", "1,2,3"]);
    assert_eq!(code, 1, "{report}");
    assert_eq!((&report["equal"], &report["conclusive"]), (&Value::Bool(false), &Value::Bool(true)));
    let wanted = serde_json::json!([{"key": {"id": 2}, "rows": {
        "1": {"id": 2, "v": "the value of two", "n": 2},
        "2": {"id": 2, "v": "another for two!", "n": 2},
        "3": {"id": 2, "v": "the value of two", "n": 2},
    }}]);
    assert_eq!(report["tables"][0]["differing"], wanted, "{report}");
    assert_eq!(report["tables"][0]["more"], Value::Bool(false));
    assert_eq!(verdicts(&report), [("t".into(), "different".into()), ("u".into(), "equal".into())]);

    let output = cluster.nodes[0].ask("verify", &["--nodes", "1,2,3"]);
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("different t") && text.contains("id=2") && text.contains("another for two!"), "{text}");
    assert!(error.starts_with("error: nodes differ in t\nhint: "), "{error}");
    // Other tables alone are equal, and writing the row anywhere mends it.
    assert_eq!(verify(&cluster.nodes[0], &["--exclude-tables", "t"]).0, 0);
    assert_eq!(verify(&cluster.nodes[0], &["--tables", "u*"]).0, 0);
    cluster.nodes[1].sql("UPDATE t SET v = 'mended' WHERE id = 2");
    cluster.settle();
    assert_eq!(verify(&cluster.nodes[0], &[]).0, 0);
    cluster.stop();
}

#[test]
fn nodes_that_do_not_answer_are_named() {
    let mut cluster = Cluster::start(3, PLAIN);
    for node in &cluster.nodes {
        node.sql(&format!("INSERT INTO t VALUES({}, 'own', 0)", 10 + node.id));
    }
    cluster.settle();
    cluster.nodes[2].signal(Signal::STOP);
    let (code, report) = verify(&cluster.nodes[0], &[]);
    cluster.nodes[2].signal(Signal::CONT);
    assert_eq!(code, 3, "{report}");
    assert_eq!(report["missing"], serde_json::json!([{"node": 3, "why": "it does not answer"}]));
    assert_eq!((&report["equal"], &report["nodes"]), (&Value::Bool(true), &serde_json::json!([1, 2])));

    cluster.nodes[2].stop();
    let output = cluster.nodes[0].ask("verify", &[]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("node 3: it does not answer"), "{output:?}");
    assert_eq!(verify(&cluster.nodes[0], &["--nodes", "1,2"]).0, 0);
    assert_eq!(cluster.nodes[2].ask("verify", &[]).status.code(), Some(1), "no daemon, no answer");
    cluster.nodes.truncate(2);
    cluster.stop();
}

/// Whoever asks may die at any moment of it: nobody rests for longer than a moment, and nobody keeps a log from beginning anew.
#[test]
fn an_asking_node_that_dies_stops_nobody() {
    let seed = Seed::pick();
    let mut random = crate::support::random::Random::new(seed.0);
    let mut cluster = Cluster::start(3, PLAIN);
    for round in 0..4 {
        let mut asking =
            woodchuck(&["verify", "--db-path"]).arg(&cluster.nodes[0].db).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(500_000)));
        cluster.nodes[0].kill();
        let _ = asking.wait();
        cluster.nodes[1].sql(&format!("INSERT INTO t VALUES({}, 'after', 0)", 100 + round));
        wait_for("a row on another node", || {
            let count = cluster.nodes[2].value("SELECT count(*) FROM t WHERE v = 'after'");
            if count == (round + 1).to_string() { Ok(()) } else { Err(count) }
        });
        cluster.nodes[0].start();
        wait_for("a comparison", || {
            let (code, report) = verify(&cluster.nodes[1], &["--nodes", "1,2,3"]);
            if code == 0 { Ok(()) } else { Err(report.to_string()) }
        });
    }
    cluster.settle();
    cluster.stop();
}

#[test]
fn tables_that_a_node_lacks_or_that_cannot_be_read_in_time_are_told_apart() {
    let mut cluster = Cluster::prepare(2, PLAIN, "", &[]);
    let rows = "WITH c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 300000) INSERT INTO big SELECT i, 'value ' || i FROM c";
    for node in &cluster.nodes {
        let db = Connection::open(&node.db).unwrap();
        db.execute_batch(&format!("CREATE TABLE big(id INTEGER PRIMARY KEY, v); {rows}")).unwrap();
    }
    Connection::open(&cluster.nodes[1].db).unwrap().execute_batch("DROP TABLE u").unwrap();
    cluster.start_nodes();
    let (code, report) = verify(&cluster.nodes[0], &["--within", "10ms", "--exclude-tables", "u", "--nodes", "1,2"]);
    assert_eq!(code, 3, "{report}");
    assert!(report["tables"].as_array().unwrap().iter().any(|table| table["verdict"] == "inconclusive"), "{report}");
    let (code, report) = verify(&cluster.nodes[0], &["--nodes", "1,2"]);
    assert_eq!(code, 1, "{report}");
    let wanted = [("big", "equal"), ("t", "equal"), ("u", "different")];
    assert_eq!(verdicts(&report), wanted.map(|(table, verdict)| (table.to_owned(), verdict.to_owned())));
    assert_eq!(report["tables"][2]["why"], "node 2 has no such table");
    cluster.stop();
}

/// What a comparison costs. `WOODCHUCK_VERIFY_ROWS` names another number of rows.
#[test]
fn equal_tables_cost_their_reading_and_few_bytes() {
    let named = std::env::var("WOODCHUCK_VERIFY_ROWS").ok().and_then(|rows| rows.parse().ok());
    let rows: u64 = named.unwrap_or(100_000);
    let mut cluster = Cluster::prepare(3, PLAIN, "", &[]);
    for node in &cluster.nodes {
        application(&node.db, "bulk-into-big", &[&rows.to_string()]).end();
    }
    cluster.start_nodes();
    let (code, equal) = verify(&cluster.nodes[0], &["--within", "60s", "--nodes", "1,2,3"]);
    assert_eq!(code, 0, "{equal}");
    assert_eq!(equal["tables"][0]["rows"]["3"], rows);
    assert!(equal["answer_bytes"].as_u64().unwrap() < 8 << 10, "{equal}");
    let megabytes = std::fs::metadata(&cluster.nodes[0].db).unwrap().len() / 1_000_000;
    println!(
        "{rows} rows, {megabytes} MB, equal: {} ms of reading, {} ms, {} bytes",
        equal["read_ms"], equal["took_ms"], equal["answer_bytes"]
    );

    let node = &mut cluster.nodes[2];
    node.stop();
    assert!(patch(&node.db, "value 77 of", "VALUE 77 of") >= 1);
    assert!(patch(&node.state_dir().join("shadow.db"), "value 77 of", "VALUE 77 of") >= 1);
    node.start();
    let (code, report) = verify(&cluster.nodes[0], &["--within", "60s", "--nodes", "1,2,3"]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(report["tables"][0]["differing"][0]["key"], serde_json::json!({"id": 77}));
    assert!(report["answer_bytes"].as_u64().unwrap() < 1 << 20, "{report}");
    println!("one row differs: {} ms, {} bytes", report["took_ms"], report["answer_bytes"]);
    cluster.stop();
}
