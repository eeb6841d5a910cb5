//! From a commit on one node to its rows on another, with two daemons and a server, against writing the rows directly and against a bare
//! JetStream round trip on the same server.
//!
//! Without a server only the pipeline within one process is measured: capture, outbox, sealing, decoding, folding; no network, one thread.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rusqlite::{Connection, params};
use woodchuck::apply::{Arrived, Merge, Outcome, Replica, SealLimits, State, open_applying_connection};
use woodchuck::capture::Follower;
use woodchuck::log::{MESSAGE_BYTES_MAX, Origin, StreamSeq, decode, shard_of};
use woodchuck::schema::Table;

use support::daemon::{Daemon, PATIENCE};
use support::nats::NatsServer;
use support::random::Random;
use support::{Extent, Series, Target, figure, ratio, section, timed};

const SHARDS: u16 = 8;
const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, amount REAL, note TEXT)";
const NOTE: &str = "a note of ordinary length, such as people write into the last field of a form";
const ROWS_PER_TX: u64 = 10_000;

fn main() {
    let extent = Extent::from_args();
    pipeline(extent);
    // A machine without a server is no failure of ours.
    std::panic::set_hook(Box::new(|_| {}));
    let server = std::panic::catch_unwind(NatsServer::start);
    drop(std::panic::take_hook());
    let Ok(server) = server else {
        println!("\nend to end: no nats-server (scripts/nats-server fetches one): two daemons were not measured");
        return;
    };
    let round_trip = round_trips(&server, extent);
    section("end to end: bare JetStream on the same server, 200 bytes");
    quantiles("publish → deliver", &round_trip);
    match Pair::start(&server) {
        Ok(mut pair) => {
            if let Err(why) = pair.measure(extent, &round_trip) {
                println!("\nend to end: given up: {why}");
            }
        }
        Err(why) => println!("\nend to end: two daemons were not measured: {why}"),
    }
}

fn name(id: u64) -> String {
    format!("name-{:016x}", Random::new(id).next())
}

fn create(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {SCHEMA}")).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

fn insert(connection: &Connection, first: u64, count: u64) {
    let mut insert = connection.prepare_cached("INSERT INTO t VALUES (?1, ?2, ?3, ?4)").unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    for id in first..first + count {
        insert.execute(params![id as i64, name(id), id as f64 * 0.25, NOTE]).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
}

fn quantiles(what: &str, latencies: &Series) {
    for (label, part) in [("p50", 0.5), ("p99", 0.99)] {
        let value = latencies.quantile(part);
        println!("  {:<52} {value:>14.0}  {:>21}  µs", format!("{what}, {label}"), "");
    }
}

/// Capture, outbox, seal, decode and fold in one thread.
fn pipeline(extent: Extent) {
    let transactions = extent.pick(2, 8);
    let rows = (transactions * ROWS_PER_TX) as f64;
    let (mut direct, mut captured, mut sealed) = (Series::default(), Series::default(), Series::default());
    let (mut folded, mut returned, mut ratios) = (Series::default(), Series::default(), Series::default());
    for _ in 0..extent.pick(2, 5) {
        let dir = tempfile::tempdir().unwrap();
        let node = |node_id: u64| {
            let path = dir.path().join(format!("{node_id}.db"));
            let app = create(&path);
            let origin = Origin { node_id, epoch: 1 };
            let state = State::open(&dir.path().join(format!("{node_id}.state")), "app.db", origin).unwrap();
            let route = |table: &Table, key: Option<&[u8]>| Some(shard_of(&table.name, key, SHARDS));
            (path, app, Replica::new(state, Box::new(route), Merge::Column).unwrap())
        };
        let (path, app, mut origin) = node(1);
        let (path_other, app_other, mut other) = node(2);
        let mut follower = Follower::attach(&path).unwrap();
        let applying = open_applying_connection(&path_other).unwrap();
        let applying_own = open_applying_connection(&path).unwrap();
        let table = follower.catalogue().table("t").unwrap().clone();
        let tables = |name: &str| (name == "t").then(|| Arc::clone(&table));
        let mut seq = vec![0u64; usize::from(SHARDS) + 1];
        let (mut writing, mut capturing) = (Duration::ZERO, Duration::ZERO);
        let (mut sealing, mut folding, mut returning) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for tx in 0..transactions {
            writing += timed(|| insert(&app, tx * ROWS_PER_TX, ROWS_PER_TX)).0;
            capturing += timed(|| {
                let mut sink = origin.local_sink();
                follower.poll(&mut sink).unwrap()
            })
            .0;
            loop {
                let (time, arrived) = timed(|| -> Vec<Arrived> {
                    let limits = SealLimits {
                        round_bytes_max: 8 << 20,
                        message_bytes_max: 1 << 20,
                        shard_messages_max: usize::MAX,
                    };
                    origin.seal(limits).unwrap();
                    let messages = origin.in_flight().unwrap();
                    let arrived = messages.into_iter().map(|message| {
                        let payload = origin.sealed_message(message, false).unwrap().payload;
                        origin.acknowledged(message.shard, message.batch_no).unwrap();
                        let batch = decode(&payload, MESSAGE_BYTES_MAX).unwrap();
                        seq[usize::from(message.shard.0)] += 1;
                        Arrived { shard: message.shard, seq: StreamSeq(seq[usize::from(message.shard.0)]), batch }
                    });
                    arrived.collect()
                });
                sealing += time;
                if arrived.is_empty() {
                    break;
                }
                folding += timed(|| {
                    other.begin(&applying).unwrap();
                    let report = other.fold(&applying, &tables, arrived.as_slice()).unwrap();
                    assert!(report.blocked.is_empty(), "nothing is in the way: {report:?}");
                    assert_eq!(other.commit(&applying).unwrap(), Outcome::Written, "rows are written");
                    other.finish(Some(b"behind")).unwrap();
                })
                .0;
                returning += timed(|| {
                    let counts = origin.fold_own(&applying_own, &tables, arrived.as_slice()).unwrap();
                    assert!(counts.is_some(), "own messages need no lock");
                })
                .0;
            }
        }
        let count: i64 = app_other.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(count as u64, transactions * ROWS_PER_TX, "every row is there");
        follower.detach().unwrap();
        direct.push(rows / writing.as_secs_f64());
        captured.push(rows / capturing.as_secs_f64());
        sealed.push(rows / sealing.as_secs_f64());
        folded.push(rows / folding.as_secs_f64());
        returned.push(rows / returning.as_secs_f64());
        ratios.push(writing.as_secs_f64() / (capturing + sealing + folding + returning).as_secs_f64());
    }
    section("end to end, within one process and thread, no server: 10 000 rows per transaction");
    figure("written with prepared statements", "rows/s", &direct);
    figure("captured into the outbox", "rows/s", &captured);
    figure("sealed, encoded and decoded", "rows/s", &sealed);
    figure("folded and committed", "rows/s", &folded);
    figure("come back to their node", "rows/s", &returned);
    ratio("all steps one after another against writing", &ratios, Target::None);
}

/// Microseconds from a publish to its delivery.
fn round_trips(server: &NatsServer, extent: Extent) -> Series {
    use async_nats::jetstream::{self, consumer, stream};
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = async_nats::connect(server.url()).await.unwrap();
        let context = jetstream::new(client.clone());
        let config = stream::Config {
            name: "bench".to_owned(),
            subjects: vec!["bench".to_owned()],
            max_messages: 1024,
            ..stream::Config::default()
        };
        let stream = context.create_stream(config).await.unwrap();
        let config = consumer::push::OrderedConfig { deliver_subject: client.new_inbox(), ..Default::default() };
        let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
        let mut series = Series::default();
        for index in 0..extent.pick(200, 1_000) {
            let begin = Instant::now();
            context.publish("bench", vec![7u8; 200].into()).await.unwrap().await.unwrap();
            messages.next().await.unwrap().unwrap();
            // The first ones warm up.
            if index >= 20 {
                series.push(begin.elapsed().as_secs_f64() * 1e6);
            }
        }
        series
    })
}

/// Two nodes. The daemons end before their databases are deleted.
struct Pair {
    daemons: [Daemon; 2],
    a: Connection,
    b: Connection,
    next: u64,
    dir: tempfile::TempDir,
}

impl Pair {
    fn start(server: &NatsServer) -> Result<Pair, String> {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a.db"), dir.path().join("b.db")];
        let [a, b] = [create(&paths[0]), create(&paths[1])];
        let mut daemons = [Daemon::spawn(&paths[0], 1, server, &[]), Daemon::spawn(&paths[1], 2, server, &[])];
        // What is written before a daemon is attached belongs to the copy that it starts from.
        daemons.iter_mut().try_for_each(Daemon::wait_until_ready)?;
        let mut pair = Pair { daemons, a, b, next: 1, dir };
        pair.travel(1)?;
        Ok(pair)
    }

    /// Waits until the row is visible on B.
    fn wait_for(&mut self, id: u64) -> Result<(), String> {
        let begin = Instant::now();
        let mut looks = 0u64;
        loop {
            let mut query = self.b.prepare_cached("SELECT 1 FROM t WHERE id = ?1").unwrap();
            if query.exists([id as i64]).unwrap() {
                return Ok(());
            }
            drop(query);
            looks += 1;
            if looks.is_multiple_of(1_000) {
                if let Some(why) = self.daemons.iter_mut().find_map(Daemon::ended) {
                    return Err(why);
                }
                if begin.elapsed() > PATIENCE {
                    return Err(format!("row {id} was not there after {} s", PATIENCE.as_secs()));
                }
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Commits rows on A as one transaction; how long the writing took, and how long from the commit until they are visible on B.
    fn travel(&mut self, rows: u64) -> Result<(Duration, Duration), String> {
        let first = self.next;
        self.next += rows;
        let (writing, ()) = timed(|| insert(&self.a, first, rows));
        let committed = Instant::now();
        self.wait_for(first + rows - 1)?;
        Ok((writing, committed.elapsed()))
    }

    fn measure(&mut self, extent: Extent, round_trip: &Series) -> Result<(), String> {
        let mut latency = Series::default();
        for _ in 0..extent.pick(100, 500) {
            latency.push(self.travel(1)?.1.as_secs_f64() * 1e6);
        }
        section("end to end: two daemons, 1 row per transaction");
        quantiles("commit on A → visible on B", &latency);
        let of = |part: f64| Series(vec![latency.quantile(part) / round_trip.quantile(part)]);
        ratio("p50 against the bare round trip", &of(0.5), Target::AtMost(4.0));
        ratio("p99 against the bare round trip", &of(0.99), Target::AtMost(10.0));

        for rows in [ROWS_PER_TX, 10 * ROWS_PER_TX] {
            let (mut direct, mut visible, mut ratios) = (Series::default(), Series::default(), Series::default());
            for _ in 0..extent.pick(2, 5) {
                let (_, travelling) = self.travel(rows)?;
                // Into a database that nobody follows: on A the writing is shared with the daemon's work.
                let writing = self.write_alone(rows);
                direct.push(rows as f64 / writing.as_secs_f64());
                visible.push(rows as f64 / travelling.as_secs_f64());
                ratios.push(writing.as_secs_f64() / travelling.as_secs_f64());
            }
            section(&format!("end to end: two daemons, one transaction of {rows} rows"));
            figure("written with prepared statements", "rows/s", &direct);
            figure("commit on A → visible on B", "rows/s", &visible);
            ratio("visible against written", &ratios, Target::AtLeast(0.6));
        }
        Ok(())
    }

    /// Writes as many rows into a database of its own.
    fn write_alone(&self, rows: u64) -> Duration {
        let alone = tempfile::tempdir_in(self.dir.path()).unwrap();
        let connection = create(&alone.path().join("alone.db"));
        timed(|| insert(&connection, self.next, rows)).0
    }
}
