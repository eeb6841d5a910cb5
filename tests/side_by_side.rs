//! What is done together so that it is done sooner comes to the same as one by one.

use woodchuck::apply::SealLimits;
use woodchuck::log::{Batch, Body, MESSAGE_BYTES_MAX, decode, encode, encode_units, encoded_units};

use crate::support::oracle::catalogue;
use crate::support::peer::{Log, Peer, SHARDS, look_up};
use crate::support::random::Random;

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE u(k TEXT PRIMARY KEY, v) WITHOUT ROWID";
const LIMITS: SealLimits =
    SealLimits { round_bytes_max: 1 << 20, message_bytes_max: 1 << 20, shard_messages_max: usize::MAX };

/// Rows that arrive together are written in the order of their keys. A row that changes in several messages of those that arrived must still
/// go through its changes in the order of the log.
#[test]
fn changes_of_one_row_in_many_messages_keep_their_order() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + 10 {
        one_by_one_in_many_messages(seed);
    }
}

fn one_by_one_in_many_messages(seed: u64) {
    let mut random = Random::new(seed);
    let (mut a, mut b, mut log) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA), Log::new());
    for step in 0..60 {
        let (id, kind) = (random.below(7), random.below(4));
        a.sql(&match kind {
            0 => format!("DELETE FROM t WHERE id = {id}; DELETE FROM u WHERE k = 'k{id}'"),
            1 => format!("UPDATE t SET v = {step} WHERE id <= {id}"),
            _ => {
                format!(
                    "INSERT OR REPLACE INTO t VALUES({id}, {step}); INSERT OR REPLACE INTO u VALUES('k{id}', {step})"
                )
            }
        });
        a.publish(&mut log);
        if random.chance(10) {
            assert!(b.apply(&log).blocked.is_empty(), "SEED={seed}");
        }
    }
    assert!(b.apply(&log).blocked.is_empty(), "SEED={seed}");
    for table in ["t", "u"] {
        assert_eq!(a.seen[table].1, b.seen[table].1, "SEED={seed}");
    }
}

/// A row that is refused was held until the messages behind its own were read. The shard that stops is its own all the same.
#[test]
fn a_row_that_was_held_stops_the_shard_it_came_in() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let (mut a, mut b) = (Peer::new(1, sql), Peer::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, v INTEGER) STRICT"));
    let mut log = Log::new();
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) INSERT INTO t SELECT i, i FROM n",
    );
    a.publish(&mut log);
    a.sql("UPDATE t SET v = 'text' WHERE id = 17").publish(&mut log);
    let carries = |batches: &Vec<Batch>| batches.len() > 1;
    let wanted: Vec<usize> = (0..usize::from(SHARDS)).filter(|index| carries(&log.0[*index])).collect();
    let stops = b.apply(&log).blocked;
    let found: Vec<(usize, u64)> = stops.iter().map(|stop| (usize::from(stop.shard.0) - 1, stop.seq.0)).collect();
    assert_eq!(found, wanted.iter().map(|index| (*index, 2)).collect::<Vec<_>>());
    // What stands before it, and the other shards, went on.
    assert_eq!(b.text("SELECT count(*), sum(v) FROM t"), "40 820");
}

#[test]
fn own_messages_that_bring_back_all_that_is_pending_leave_nothing_behind() {
    let (mut a, mut log) = (Peer::new(1, SCHEMA), Log::new());
    a.sql("INSERT INTO t VALUES(1, 'a'), (2, 'b'), (3, 'c'); INSERT INTO u VALUES('x', 1), ('y', 2)").publish(&mut log);
    a.sql("UPDATE t SET v = 'd' WHERE id < 3").publish(&mut log);
    let base = |peer: &mut Peer| {
        let (mut rows, tables) = (0, catalogue(&peer.app));
        peer.replica
            .each_base_row(&look_up(&tables), |_, _, _| {
                rows += 1;
                Ok(())
            })
            .unwrap();
        rows
    };
    assert_eq!(base(&mut a), 5);
    let arrived = a.arrived(&log);
    // Another transaction is pending behind them: then each row is looked at.
    a.sql("UPDATE t SET v = 'e' WHERE id = 1");
    let tables = catalogue(&a.app);
    let counts = a.replica.fold_own(&a.conn, &look_up(&tables), arrived.as_slice()).unwrap().unwrap();
    assert_eq!(counts.messages, arrived.len() as u64);
    assert_eq!(base(&mut a), 1);
    a.publish(&mut log);
    let arrived = a.arrived(&log);
    a.replica.fold_own(&a.conn, &look_up(&tables), arrived.as_slice()).unwrap().unwrap();
    assert_eq!(base(&mut a), 0);
    assert_eq!(a.replica.state().backlog().unwrap().units, 0);
    assert!(a.arrived(&log).is_empty(), "all of them count as applied");
}

#[test]
fn what_is_captured_is_sealed_in_the_same_commit() {
    let (mut a, mut b, mut log) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA), Log::new());
    a.app.execute_batch("INSERT INTO t VALUES(1, 'a'), (2, 'b'), (3, 'c')").unwrap();
    let sealed = a.capture_sealing(Some(LIMITS));
    let in_flight = a.replica.in_flight().unwrap();
    assert_eq!(sealed.iter().map(|one| one.message).collect::<Vec<_>>(), in_flight);
    assert!(a.replica.seal(LIMITS).unwrap().is_empty(), "one round at a time");
    for one in sealed {
        let written = one.written.unwrap();
        assert_eq!(written, a.replica.sealed_message(one.message, false).unwrap(), "sent again it is the same");
        log.0[usize::from(one.message.shard.0) - 1].push(decode(&written.payload, MESSAGE_BYTES_MAX).unwrap());
    }
    // What comes while a round is in flight waits.
    a.app.execute_batch("INSERT INTO t VALUES(4, 'd')").unwrap();
    assert!(a.capture_sealing(Some(LIMITS)).is_empty());
    for message in in_flight {
        a.replica.acknowledged(message.shard, message.batch_no).unwrap();
    }
    assert!(a.replica.in_flight().unwrap().is_empty());
    a.publish(&mut log);
    assert!(b.apply(&log).blocked.is_empty());
    assert_eq!(b.text("SELECT * FROM t"), "1 'a'; 2 'b'; 3 'c'; 4 'd'");
}

#[test]
fn the_encoded_units_of_a_message_are_found_where_they_stand() {
    let (mut a, mut log) = (Peer::new(1, SCHEMA), Log::new());
    a.sql("INSERT INTO t VALUES(1, 'a'), (2, 'b'), (3, 'c')").publish(&mut log);
    for batch in log.0.iter().flatten() {
        let Body::Units(units) = &batch.body else { panic!("they are small") };
        let bytes = encode(batch, false);
        assert_eq!(bytes[encoded_units(&bytes).unwrap()], encode_units(units));
    }
    let batch = log.0.iter().flatten().next().unwrap().clone();
    let piece = Batch { body: Body::Piece { index: 0, count: 2, bytes: vec![1] }, ..batch };
    assert_eq!(encoded_units(&encode(&piece, false)), None);
    assert_eq!(encoded_units(b"of somebody else"), None);
}
