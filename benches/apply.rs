//! Folding messages of another node into a plain table, against writing the same rows with prepared statements.
//!
//! Both write one database transaction for each `ROWS_PER_TX` rows. Ours also decodes the messages, keeps its positions and its intent in
//! `state.db`, and commits that twice.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, params};
use woodchuck::apply::{Arrived, Merge, Outcome, Replica, State, open_applying_connection};
use woodchuck::change::Op;
use woodchuck::format::{PageNo, Value};
use woodchuck::log::{
    Batch, Body, Header, MESSAGE_BYTES_MAX, Origin, RoundPart, ShardId, StreamSeq, TableShape, Unit, UnitChange,
    UnitKey, decode, encode, shard_of,
};
use woodchuck::schema::{Catalogue, SchemaRow, Table};

use support::random::Random;
use support::{Extent, Series, Target, figure, ratio, section, timed};

const SHARDS: u16 = 8;
/// Rows of one transaction of the origin, and of one fold.
const ROWS_PER_TX: u64 = 10_000;
/// Rows of a message: about 100 KiB.
const ROWS_PER_UNIT: usize = 1_000;
const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, amount REAL, note TEXT)";
const NOTE: &str = "a note of ordinary length, such as people write into the last field of a form";

fn main() {
    let extent = Extent::from_args();
    let transactions = extent.pick(3, 10);
    let (mut direct, mut folded, mut decoded) = (Series::default(), Series::default(), Series::default());
    let (mut ratios, mut whole) = (Series::default(), Series::default());
    let messages = messages(transactions);
    let rows = (transactions * ROWS_PER_TX) as f64;
    for _ in 0..extent.pick(3, 7) {
        let theirs = insert_directly(transactions);
        let (decoding, folding) = fold(&messages, transactions);
        direct.push(rows / theirs);
        folded.push(rows / folding);
        decoded.push(rows / decoding);
        ratios.push(theirs / folding);
        whole.push(theirs / (folding + decoding));
    }
    section("apply: foreign inserts into a plain table, 10 000 rows per transaction, 8 shards");
    figure("prepared statements", "rows/s", &direct);
    figure("decode of the messages", "rows/s", &decoded);
    figure("fold and commit", "rows/s", &folded);
    ratio("fold against prepared statements", &ratios, Target::None);
    ratio("decode and fold against prepared statements", &whole, Target::AtLeast(0.6));
}

fn name(id: u64) -> String {
    format!("name-{:016x}", Random::new(id).next())
}

fn create(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}")).unwrap();
}

/// Seconds for the rows with prepared statements, through a connection that is set up like the one that applies.
fn insert_directly(transactions: u64) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    create(&path);
    let connection = open_applying_connection(&path).unwrap();
    let mut insert = connection.prepare("INSERT INTO t VALUES (?1, ?2, ?3, ?4)").unwrap();
    // The texts are made before: the other side gets them ready made too.
    let names: Vec<String> = (0..transactions * ROWS_PER_TX).map(name).collect();
    let (time, ()) = timed(|| {
        for tx in 0..transactions {
            connection.execute_batch("BEGIN IMMEDIATE").unwrap();
            for id in tx * ROWS_PER_TX..(tx + 1) * ROWS_PER_TX {
                insert.execute(params![id as i64, names[id as usize], id as f64 * 0.25, NOTE]).unwrap();
            }
            connection.execute_batch("COMMIT").unwrap();
        }
    });
    time.as_secs_f64()
}

/// The encoded messages of another node: a round for each transaction, with the rows in their shards.
fn messages(transactions: u64) -> Vec<Vec<(ShardId, Vec<u8>)>> {
    let table = table();
    let shape = Arc::new(TableShape {
        name: "t".to_owned(),
        columns: ["id", "name", "amount", "note"].map(str::to_owned).to_vec(),
        key: vec![0],
        beginnings: Vec::new(),
    });
    let mut batch_no = vec![0u64; usize::from(SHARDS) + 1];
    let mut rounds = Vec::new();
    for tx in 0..transactions {
        let mut changes: Vec<Vec<UnitChange>> = vec![Vec::new(); usize::from(SHARDS) + 1];
        for id in tx * ROWS_PER_TX..(tx + 1) * ROWS_PER_TX {
            let key = woodchuck::change::RowKey::Columns(vec![Value::Integer(id as i64)]);
            let canonical = woodchuck::change::canonical_key(&table, &key);
            let shard = shard_of("t", Some(&canonical), SHARDS);
            let image = vec![
                Value::Integer(id as i64),
                Value::Text(name(id).into_bytes()),
                Value::Real(id as f64 * 0.25),
                Value::Text(NOTE.as_bytes().to_vec()),
            ];
            changes[usize::from(shard.0)].push(UnitChange {
                table: 0,
                op: Op::Insert,
                key: UnitKey::Columns(vec![Value::Integer(id as i64)]),
                image: Some(image),
                mask: Vec::new(),
                before: None,
                if_there: false,
            });
        }
        let part = |shard: usize| changes[shard].len().div_ceil(ROWS_PER_UNIT) as u32;
        let round: Vec<RoundPart> = (1..=usize::from(SHARDS))
            .filter(|shard| part(*shard) > 0)
            .map(|shard| RoundPart { shard: ShardId(shard as u16), message_count: part(shard) })
            .collect();
        let mut encoded = Vec::new();
        for shard in 1..=usize::from(SHARDS) {
            for (index, changes) in changes[shard].chunks(ROWS_PER_UNIT).enumerate() {
                batch_no[shard] += 1;
                let unit = Unit {
                    tx: tx + 1,
                    part: index as u32,
                    salts: [1; 8],
                    frame: tx as u32 + 1,
                    repaired: false,
                    seen: woodchuck::log::StreamSeq(0),
                    schema: Vec::new(),
                    tables: vec![Arc::clone(&shape)],
                    changes: changes.to_vec(),
                };
                let header = Header {
                    origin: Origin { node_id: 2, epoch: 1 },
                    batch_no: batch_no[shard],
                    round_no: tx + 1,
                    part: index as u32,
                    round: round.clone(),
                    barrier: false,
                };
                let batch = Batch { header, body: Body::Units(vec![unit]) };
                encoded.push((ShardId(shard as u16), encode(&batch, false)));
            }
        }
        rounds.push(encoded);
    }
    rounds
}

fn table() -> Arc<Table> {
    let row = SchemaRow {
        kind: "table".to_owned(),
        name: "t".to_owned(),
        table: "t".to_owned(),
        root: PageNo::new(2),
        sql: Some(SCHEMA.to_owned()),
    };
    Catalogue::build(vec![row], u32::MAX).unwrap().table("t").unwrap().clone()
}

/// Seconds for decoding the messages, and for folding and committing them.
fn fold(rounds: &[Vec<(ShardId, Vec<u8>)>], transactions: u64) -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    create(&path);
    let connection = open_applying_connection(&path).unwrap();
    let origin = Origin { node_id: 1, epoch: 1 };
    let state = State::open(&dir.path().join("state.db"), "app.db", origin).unwrap();
    let route = |table: &Table, key: Option<&[u8]>| Some(shard_of(&table.name, key, SHARDS));
    let mut replica = Replica::new(state, Box::new(route), Merge::Column).unwrap();
    let table = table();
    let tables = |name: &str| (name == "t").then(|| Arc::clone(&table));
    let (mut decoding, mut folding) = (0.0, 0.0);
    let mut seq = vec![0u64; usize::from(SHARDS) + 1];
    for round in rounds {
        let (time, arrived) = timed(|| -> Vec<Arrived> {
            round
                .iter()
                .map(|(shard, bytes)| {
                    seq[usize::from(shard.0)] += 1;
                    let batch = decode(bytes, MESSAGE_BYTES_MAX).unwrap();
                    Arrived { shard: *shard, seq: StreamSeq(seq[usize::from(shard.0)]), batch }
                })
                .collect()
        });
        decoding += time.as_secs_f64();
        let (time, ()) = timed(|| {
            replica.begin(&connection).unwrap();
            let report = replica.fold(&connection, &tables, arrived.as_slice()).unwrap();
            assert!(report.blocked.is_empty(), "nothing is in the way: {report:?}");
            assert_eq!(replica.commit(&connection).unwrap(), Outcome::Written, "rows are written");
            replica.finish(Some(b"behind")).unwrap();
        });
        folding += time.as_secs_f64();
    }
    let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count as u64, transactions * ROWS_PER_TX, "every row is there");
    (decoding, folding)
}
