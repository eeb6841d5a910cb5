//! The table of fault points: the daemon dies once at each, starts again, and nothing is lost, doubled or sent twice.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Mutex;
use std::time::SystemTime;

use rusqlite::Connection;
use woodchuck::fault::{Point, VARIABLE};

use super::ledger::{Manner, SCHEMA, Writer};
use crate::support::cluster::{Cluster, Node, wait_for, woodchuck};
use crate::support::nats::NatsServer;

/// Clusters at a time: most of the time they wait.
const SIDE_BY_SIDE: usize = 3;
/// Transactions of a writer without a pause.
const BURST: u64 = 40;
/// Far more than any point needs.
const BURSTS_MAX: usize = 200;

/// Points that the end of the first copy passes too.
const MERGES: [Point; 3] = [Point::Merge, Point::MergeWritten, Point::Merged];
/// Between the user's commit and ours. A reader keeps the log meanwhile, so that the first transaction found is that commit and no other.
const WITHIN_LOG: [Point; 2] = [Point::UserCommitted, Point::OwnTaken];
/// Passed when nobody writes or reads any more.
const WHEN_QUIET: [Point; 2] = [Point::Truncate, Point::Truncated];
/// What a node passes before it is ready.
const AT_START: [(Point, u32); 5] =
    [(Point::ShadowCopy, 1), (Point::ShadowCopied, 1), (Point::Merge, 1), (Point::MergeWritten, 1), (Point::Merged, 1)];

/// The row changes of writers' entries that the log has, each with how often it is there.
fn entries_on_log(cluster: &Cluster, wanted: i64) -> BTreeMap<(i64, i64), u32> {
    let (out, errors) = (cluster.dir.path().join("subscribed"), cluster.dir.path().join("subscribe-errors"));
    let mut subscriber =
        woodchuck(&["subscribe", "--format", "json", "--shards", "2", "--nats-url", &cluster.server.url()])
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(std::fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
    let status = cluster.nodes[0].status().unwrap();
    let ends: BTreeMap<u64, u64> = status.shards.iter().map(|(shard, of)| (u64::from(*shard), of.last)).collect();
    let read = || -> Result<BTreeMap<(i64, i64), u32>, String> {
        let text = std::fs::read_to_string(&out).unwrap();
        let (mut seen, mut entries) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            if let (Some(shard), Some(seq)) = (line["shard"].as_u64(), line["seq"].as_u64()) {
                seen.insert(shard, seq);
            }
            if line["table"] == "entry_w" {
                assert_eq!(line["op"], "insert", "{line}");
                let number = |name: &str| line["after"][name].as_i64().unwrap_or_else(|| panic!("{name} of {line}"));
                *entries.entry((number("writer"), number("counter"))).or_default() += 1;
            }
        }
        let all = ends.iter().all(|(shard, last)| seen.get(shard).copied().unwrap_or(0) >= *last);
        // A message has many lines, and of the last one the first may be all that is written yet.
        if all && entries.len() as i64 >= wanted {
            Ok(entries)
        } else {
            Err(format!(
                "{} of {wanted} entries, {seen:?} of {ends:?}; {}",
                entries.len(),
                std::fs::read_to_string(&errors).unwrap()
            ))
        }
    };
    let entries = wait_for("everything that is on the log", read);
    subscriber.kill().unwrap();
    subscriber.wait().unwrap();
    entries
}

/// Lets here the one, there the other node's application write, and now and then both, until the first node has died.
fn write_until_death(cluster: &mut Cluster, writers: &mut [Writer], manner: Manner, when_quiet: bool) -> ExitStatus {
    const WHO: [&[usize]; 3] = [&[0, 1], &[0], &[1]];
    for (burst, who) in (0..BURSTS_MAX as u64).zip(WHO.iter().cycle()) {
        who.iter().for_each(|index| writers[*index].start(burst, BURST, manner));
        who.iter().for_each(|index| writers[*index].end());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let written_at_ms = now.as_millis() as u64;
        let died = wait_for("a death, or quiet", || {
            if let Some(died) = cluster.nodes[0].try_end() {
                return Ok(Some(died));
            }
            for node in &cluster.nodes {
                let status = node.status()?;
                if when_quiet
                    || status.written_at_ms <= written_at_ms
                    || status.outbox_units > 0
                    || status.inbox_messages > 0
                {
                    return Err(format!("node {}: {status:?}", node.id));
                }
            }
            Ok(None)
        });
        if let Some(died) = died {
            return died;
        }
    }
    panic!("it lives");
}

/// Lets the first of two nodes die at the `nth` passing of a point.
fn die_at(point: Point, nth: u32, manner: Manner) {
    let args = ["--shards", "2", "--max-log-entries", "100000"];
    let mut cluster = Cluster::prepare_at(NatsServer::start(), 2, &args, |db| {
        Connection::open(db).unwrap().execute_batch(SCHEMA).unwrap();
    });
    let mut writers: Vec<Writer> = (1..).zip(&cluster.nodes).map(|(id, node)| Writer::new(id, &node.db)).collect();
    let wish = format!("{}:{nth}", point.name());
    cluster.nodes[1].start();
    cluster.nodes[0].spawn_with(&[(VARIABLE, &wish)]);
    // What is written before the first copy has ended is part of what nodes begin with.
    let is_at_start = AT_START.contains(&(point, nth));
    let reader = WITHIN_LOG.contains(&point).then(|| {
        cluster.nodes[0].wait_until_ready();
        let reader = Connection::open(&cluster.nodes[0].db).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM bag").unwrap();
        reader
    });
    let died = if is_at_start {
        cluster.nodes[0].wait_for_end()
    } else {
        cluster.nodes[0].wait_until_ready();
        write_until_death(&mut cluster, &mut writers, manner, WHEN_QUIET.contains(&point))
    };
    let log = cluster.nodes[0].log();
    assert_eq!(died.signal(), Some(9), "{wish}: ended with {died}\n{log}");
    assert!(log.contains(&format!("dying at fault point {}", point.name())), "{wish}: died elsewhere\n{log}");
    cluster.nodes[0].start();
    writers.iter_mut().for_each(|writer| writer.start(u64::from(nth), BURST, manner));
    writers.iter_mut().for_each(Writer::end);
    drop(reader);
    let tables = cluster.settle();
    let all: i64 = writers.iter().map(Writer::acknowledged).sum();
    let entries = entries_on_log(&cluster, all);
    assert_eq!(entries.len() as i64, all, "{wish}: transactions on the log");
    let twice: Vec<_> = entries.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{wish}: sent more than once: {twice:?}");
    for writer in &writers {
        for node in &cluster.nodes {
            assert_eq!(writer.check(&node.db), writer.acknowledged(), "{wish}");
        }
    }
    assert_eq!(tables["entry_w"].len() as i64, all, "{wish}");
    cluster.nodes.iter_mut().for_each(Node::stop);
}

#[test]
fn a_daemon_that_dies_at_any_point_loses_and_doubles_nothing() {
    let named = std::env::var("FAULT_POINT").ok();
    let table: Vec<(Point, u32)> = Point::ALL
        .iter()
        .filter(|point| named.as_deref().is_none_or(|named| named == point.name()))
        .flat_map(|point| if MERGES.contains(point) { vec![(*point, 1), (*point, 2)] } else { vec![(*point, 1)] })
        .collect();
    die_at_all(table, Manner::Plain);
}

/// The same where applications change the schema: what an application of messages made of it is known again, or made again.
#[test]
fn a_daemon_that_dies_while_definitions_change_loses_and_doubles_nothing() {
    let points = [Point::Captured, Point::Sealed, Point::IntentWritten, Point::UserCommitted, Point::OwnTaken];
    die_at_all(points.iter().flat_map(|point| [(*point, 2), (*point, 7)]).collect(), Manner::Altering);
}

fn die_at_all(table: Vec<(Point, u32)>, manner: Manner) {
    let waiting = Mutex::new(table.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap_or_else(|broken| broken.into_inner()).next();
                    let Some((point, nth)) = next else { return };
                    die_at(point, nth, manner);
                }
            });
        }
    });
}
