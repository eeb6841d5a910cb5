//! A node with `--where` holds what the others have inside of its filter, and what only its application has outside of it.

use std::os::unix::process::ExitStatusExt;

use rusqlite::Connection;
use woodchuck::fault::VARIABLE;

use crate::support::cluster::{Cluster, Node, wait_for, woodchuck};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, region INT, v TEXT);
    CREATE TABLE u(k TEXT PRIMARY KEY, region INT, e TEXT UNIQUE, v TEXT);
    INSERT INTO t VALUES(1,1,'one'),(2,2,'two'),(3,1,'three'); INSERT INTO u VALUES('a',1,'ea','x'),('b',2,'eb','y')";

const WHERE: [&str; 4] = ["--where", "t: region = 1", "--where", "u: region = 1"];

/// The first node has all rows, the second those of region 1.
fn cluster() -> Cluster {
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &["--max-log-entries", "4096"]);
    cluster.nodes[1].args.extend(WHERE.map(str::to_owned));
    cluster.start_nodes();
    cluster
}

const T: &str =
    "SELECT coalesce(group_concat(id || ':' || region || ':' || v, ' '), '') FROM (SELECT * FROM t ORDER BY id)";
const U: &str = "SELECT coalesce(group_concat(k || ':' || region || ':' || e || ':' || v, ' '), '') FROM (SELECT * FROM u ORDER BY k)";

/// Waits until a node shows these rows.
fn shows(node: &Node, sql: &str, want: &str) {
    let want = want.trim_matches('\'');
    wait_for("rows", || match node.value(sql) {
        found if found.trim_matches('\'') == want => Ok(()),
        found => Err(format!("node {}: {found} and not {want}\n{}", node.id, node.log())),
    });
}

fn verify(node: &Node) -> String {
    let output = node.ask("verify", &["--format", "json"]);
    format!(
        "{:?} {}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn rows_enter_and_leave_on_both_sides_and_what_is_outside_stays_where_it_is() {
    let mut cluster = cluster();
    let [all, some] = &cluster.nodes[..] else { panic!("two nodes") };
    // The filtered node's own: what is outside goes nowhere, what is inside does, and crossing is a delete or an insert.
    some.sql("INSERT INTO t VALUES(10,1,'in'),(11,2,'out')");
    shows(all, T, "1:1:one 2:2:two 3:1:three 10:1:in");
    some.sql("UPDATE t SET region = 2 WHERE id = 10; UPDATE t SET region = 1, v = 'entered' WHERE id = 11");
    shows(all, T, "1:1:one 2:2:two 3:1:three 11:1:entered");
    shows(some, T, "1:1:one 2:2:two 3:1:three 10:2:in 11:1:entered");
    // The other's: only what is inside comes, and what leaves goes.
    all.sql("INSERT INTO t VALUES(20,2,'elsewhere'),(21,1,'here'); UPDATE t SET region = 3 WHERE id = 3; UPDATE t SET v = 'TWO' WHERE id = 2");
    shows(some, T, "1:1:one 2:2:two 10:2:in 11:1:entered 21:1:here");
    all.sql("UPDATE t SET region = 1 WHERE id IN (20, 3)");
    shows(some, T, "1:1:one 2:2:two 3:1:three 10:2:in 11:1:entered 20:1:elsewhere 21:1:here");
    let compared = verify(all);
    assert!(compared.starts_with("Some(0)"), "{compared}");
    // One that enters under the key of a row that is only here wins, and the other is kept.
    all.sql("INSERT INTO t VALUES(10,1,'theirs')");
    shows(some, "SELECT v FROM t WHERE id = 10", "theirs");
    assert_eq!(some.conflicts().len(), 1, "{:?}", some.conflicts());
    // UNIQUE: a row that is only here is in nobody's way until one comes inside.
    some.sql("INSERT INTO u VALUES('mine',2,'taken','m')");
    all.sql("INSERT INTO u VALUES('far',2,'taken','f')");
    all.sql("UPDATE u SET v = 'z' WHERE k = 'a'");
    shows(some, U, "a:1:ea:z b:2:eb:y mine:2:taken:m");
    all.sql("UPDATE u SET region = 1 WHERE k = 'far'");
    shows(some, U, "a:1:ea:z b:2:eb:y far:1:taken:f");
    assert_eq!(some.conflicts().len(), 2, "{:?}", some.conflicts());
    assert!(verify(some).starts_with("Some(0)"), "{}", verify(some));
    cluster.stop();
}

/// A row was reassigned on one node while another, that did not know, wrote to it: it stayed where it was, with its old region.
#[test]
fn a_row_that_left_while_it_was_written_here_does_not_come_back() {
    let mut cluster = cluster();
    cluster.nodes[1].stop();
    cluster.nodes[0].sql("UPDATE t SET region = 2 WHERE id = 1");
    cluster.nodes[1].sql("UPDATE t SET v = 'late' WHERE id = 1");
    let all = &cluster.nodes[0];
    wait_for("the outbox", || match all.status()?.outbox_units {
        0 => Ok(()),
        n => Err(n.to_string()),
    });
    cluster.nodes[1].start();
    let [all, some] = &cluster.nodes[..] else { panic!("two nodes") };
    shows(all, T, "1:2:late 2:2:two 3:1:three");
    shows(some, T, "2:2:two 3:1:three");
    all.sql("UPDATE t SET region = 1 WHERE id = 1");
    shows(some, T, "1:1:late 2:2:two 3:1:three");
    cluster.stop();
}

#[test]
fn kills_restarts_and_snapshots_keep_the_filter() {
    let mut cluster = cluster();
    for round in 0..3 {
        cluster.nodes[1].kill();
        cluster.nodes[0].sql(&format!(
            "INSERT INTO t VALUES({0},1,'a'),({0}+1,2,'b'); UPDATE t SET region = 3 - region WHERE id = 3",
            100 + 10 * round
        ));
        cluster.nodes[1].sql(&format!("INSERT INTO t VALUES({0},1,'c'),({0}+1,2,'d')", 200 + 10 * round));
        cluster.nodes[1].start();
        let id = 200 + 10 * round;
        shows(&cluster.nodes[0], &format!("SELECT count(*) FROM t WHERE id = {id}"), "1");
        shows(&cluster.nodes[1], &format!("SELECT count(*) FROM t WHERE id = {}", 100 + 10 * round), "1");
    }
    shows(&cluster.nodes[1], "SELECT count(*) FROM t WHERE id IN (101, 111, 121)", "0");
    shows(&cluster.nodes[0], "SELECT count(*) FROM t WHERE id IN (201, 211, 221)", "0");
    let compared = verify(&cluster.nodes[1]);
    assert!(compared.starts_with("Some(0)"), "{compared}");
    // A new node with the filter begins with what is inside of it.
    let url = cluster.server.url();
    let saved = woodchuck(&["snapshot", "save", "--nats-url", &url]).output().unwrap();
    assert!(saved.status.success(), "{saved:?}");
    let db = cluster.nodes[1].db.with_file_name("third.db");
    let args = [&["--nats-url", &url, "--max-log-entries", "4096"][..], &WHERE].concat();
    let mut third = Node::new(3, &db, &args);
    third.start();
    let want = cluster.nodes[0].value("SELECT group_concat(id) FROM (SELECT id FROM t WHERE region = 1 ORDER BY id)");
    shows(&third, "SELECT group_concat(id) FROM (SELECT id FROM t ORDER BY id)", &want);
    third.stop();
    cluster.stop();
}

#[test]
fn filters_that_cannot_be_are_refused_and_so_is_another_one() {
    let mut cluster = cluster();
    cluster.nodes[1].stop();
    let (db, url) = (cluster.nodes[1].db.clone(), cluster.server.url());
    let run = |args: &[&str]| {
        let output = woodchuck(&["run", "--nats-url", &url, "--db-path"]).arg(&db).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (args, code, says) in [
        (&["--where", "t region = 1"][..], 2, "not `table: expression`"),
        (&["--where", "t: region = (SELECT 1)"], 2, "subquery"),
        (&["--where", "t: region = 2", "--where", "u: region = 1"], 3, "was made with"),
        (&[], 3, "not with no filter"),
    ] {
        let (found, text) = run(args);
        assert_eq!((found, text.contains(says)), (Some(code), true), "{args:?}: {text}");
        assert!(text.lines().last().unwrap().starts_with("hint: "), "{text}");
    }
    let fresh = db.with_file_name("fresh.db");
    Connection::open(&fresh).unwrap().execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}")).unwrap();
    let output =
        woodchuck(&["run", "--nats-url", &url, "--where", "t: color = 1", "--db-path"]).arg(&fresh).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), text.contains("no such column: color")), (Some(2), true), "{text}");
    cluster.nodes[1].start();
    cluster.stop();
}

/// Such a row stood aside while the schema changed, and was to come back as it had been.
#[test]
fn rows_that_are_here_alone_go_along_with_changes_of_the_schema_that_others_make() {
    for (change, columns) in [
        ("ALTER TABLE u DROP COLUMN v", "k || ':' || region || ':' || e"),
        ("ALTER TABLE u RENAME COLUMN v TO w", "k || ':' || region || ':' || e || ':' || w"),
        ("ALTER TABLE u RENAME COLUMN e TO f", "k || ':' || region || ':' || f || ':' || v"),
        ("ALTER TABLE u ADD COLUMN n INT DEFAULT 3", "k || ':' || region || ':' || e || ':' || v || ':' || n"),
        ("DROP TABLE u", "NULL"),
    ] {
        for is_pending in [false, true] {
            let mut cluster = cluster();
            let [all, some] = &cluster.nodes[..] else { panic!("two nodes") };
            all.sql("UPDATE u SET v = 'changed elsewhere' WHERE k = 'b'");
            if is_pending {
                some.sql("INSERT INTO u VALUES('c',1,'ec','z'),('d',2,'ed','alone')");
            }
            all.sql(change);
            all.sql("INSERT INTO t VALUES(30,1,'behind it')");
            shows(some, "SELECT count(*) FROM t WHERE id = 30", "1");
            if change.starts_with("DROP TABLE") {
                for node in [all, some] {
                    shows(node, "SELECT count(*) FROM sqlite_schema WHERE name = 'u'", "0");
                }
            } else {
                let rows = |range: &str| {
                    format!(
                        "SELECT coalesce(group_concat({columns}, ' '), '') FROM (SELECT * FROM u WHERE {range} ORDER BY k)"
                    )
                };
                let within = all.value(&rows("region = 1"));
                shows(some, &rows("region = 1"), &within);
                let alone = some.value(&rows("region = 2"));
                assert!(alone.contains("b:2:eb") && !alone.contains("elsewhere"), "{change}: {alone}");
                assert_eq!(alone.contains("d:2:ed"), is_pending, "{change}: {alone}");
                assert!(verify(some).starts_with("Some(0)"), "{change}: {}", verify(some));
            }
            assert!(!some.log().contains("stops"), "{change}: {}", some.log());
            cluster.stop();
        }
    }
}

/// What was not taken, or not sent, meanwhile would never be.
#[test]
fn what_a_node_left_out_once_it_does_not_take_up_in_silence() {
    let refused = |cluster: &mut Cluster, args: &[&str], why: &str| {
        let node = &mut cluster.nodes[1];
        let before = std::mem::replace(&mut node.args, args.iter().map(|arg| (*arg).to_owned()).collect());
        node.spawn();
        assert_eq!(node.wait_for_end().code(), Some(3), "{args:?}: {}", node.log());
        assert!(node.log().contains(why), "{args:?}: {}", node.log());
        node.args = before;
        node.start();
    };
    for (args, others, why) in [
        (&["--no-apply"][..], &[][..], "ran with --no-apply"),
        (&["--no-publish"], &[], "ran with --no-publish"),
        (&["--tables", "t"], &[], "was made with --tables 't', not with all tables"),
        (
            &["--exclude-tables", "u", "--exclude-tables", "x*"],
            &["--tables", "t"],
            "was made with --exclude-tables 'u'",
        ),
    ] {
        let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
        cluster.nodes[1].args.extend(args.iter().map(|arg| (*arg).to_owned()));
        cluster.start_nodes();
        let args: Vec<&str> = args.to_vec();
        let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
        first.sql("INSERT INTO t VALUES(50,1,'of the first'); INSERT INTO u VALUES('q',1,'eq','of the first')");
        second.sql("INSERT INTO t VALUES(60,1,'of the second')");
        match args[0] {
            "--no-publish" => {
                shows(second, "SELECT count(*) FROM t WHERE id = 50", "1");
                let waited = second.ask("wait", &["--timeout", "5s"]);
                let said = String::from_utf8_lossy(&waited.stderr).into_owned();
                assert!(!waited.status.success() && said.contains("--no-publish"), "{said}");
            }
            "--no-apply" => shows(first, "SELECT count(*) FROM t WHERE id = 60", "1"),
            _ => {
                shows(second, "SELECT count(*) FROM t WHERE id = 50", "1");
                shows(first, "SELECT count(*) FROM t WHERE id = 60", "1");
            }
        }
        // Its own message behind another's: there the position passes that one.
        second.sql("INSERT INTO t VALUES(61,1,'of the second')");
        wait_for("what comes back", || match cluster.nodes[1].status()? {
            status if status.shards.values().all(|shard| shard.applied == shard.last) => Ok(()),
            status => Err(format!("{:?}", status.shards)),
        });
        cluster.nodes[1].stop();
        refused(&mut cluster, others, why);
        cluster.stop();
    }
    // What would not have left it anyway is nothing that it kept to itself.
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
    let excluded = ["--exclude-tables".to_owned(), "u".to_owned()];
    cluster.nodes[1].args.extend(excluded.iter().cloned().chain(["--no-publish".to_owned()]));
    cluster.start_nodes();
    cluster.nodes[1].sql("INSERT INTO u VALUES('r',1,'er','of the second'); CREATE INDEX u_v ON u(v); ANALYZE");
    wait_for("what is captured", || match cluster.nodes[1].status()? {
        status if status.transactions_captured >= 3 => Ok(()),
        status => Err(format!("{status:?}")),
    });
    cluster.nodes[1].stop();
    cluster.nodes[1].args.retain(|arg| arg != "--no-publish");
    cluster.nodes[1].start();
    cluster.nodes[1].sql("INSERT INTO t VALUES(62,1,'of the second')");
    shows(&cluster.nodes[0], "SELECT count(*) FROM t WHERE id = 62", "1");
    cluster.stop();
    // Nor is what it applied, also where it died before it knew that it had.
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
    cluster.nodes[1].args.push("--no-publish".to_owned());
    cluster.nodes[0].start();
    cluster.nodes[1].spawn_with(&[(VARIABLE, "user-committed:1")]);
    cluster.nodes[1].wait_until_ready();
    cluster.nodes[0].sql("INSERT INTO t VALUES(50, 1, 'of the first')");
    assert_eq!(cluster.nodes[1].wait_for_end().signal(), Some(9), "{}", cluster.nodes[1].log());
    cluster.nodes[1].start();
    shows(&cluster.nodes[1], "SELECT count(*) FROM t WHERE id = 50", "1");
    cluster.nodes[1].stop();
    cluster.nodes[1].args.retain(|arg| arg != "--no-publish");
    cluster.nodes[1].start();
    cluster.settle();
    cluster.stop();
    // Nodes that merge rows in different ways would differ.
    let mut cluster = Cluster::prepare(2, SCHEMA, "", &[]);
    cluster.nodes[0].start();
    cluster.nodes[1].spawn_with(&[("WOODCHUCK_APPLY_CONFLICT", "row")]);
    assert_eq!(cluster.nodes[1].wait_for_end().code(), Some(2), "{}", cluster.nodes[1].log());
    assert!(cluster.nodes[1].log().contains("conflict = column, this node wants row"), "{}", cluster.nodes[1].log());
    cluster.nodes[0].stop();
}
