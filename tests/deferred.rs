//! Base that is kept with the units it comes from: it goes with them, and is laid out as soon as somebody asks for a row.

use rusqlite::Connection;
use woodchuck::apply::{ApplyError, FrozenState};
use woodchuck::log::{ShardId, StreamSeq};

use crate::support::oracle::database;
use crate::support::peer::{Log, Peer};

const SCHEMA: &str =
    "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w); CREATE TABLE u(id INTEGER PRIMARY KEY, e TEXT UNIQUE);
    INSERT INTO t VALUES(1, 'a', 'b'), (2, 'a', 'b'), (3, 'a', 'b'); INSERT INTO u VALUES(1, 'one'), (2, 'two')";

/// Rows in `base`, and units whose base is kept with them.
fn base(peer: &Peer) -> (u64, u64) {
    let db = Connection::open(peer.path.with_file_name("state.db")).unwrap();
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() as u64;
    let kept = "SELECT count(*) FROM pending WHERE runs IS NOT NULL AND laid_out = 0 AND folded = 0";
    (count("SELECT count(*) FROM base"), count(kept))
}

fn assert_equal(peers: &[&Peer]) {
    let first = rows(peers[0]);
    peers.iter().for_each(|peer| assert_eq!(rows(peer), first));
}

fn rows(peer: &Peer) -> Vec<String> {
    database(&peer.app).iter().map(|(name, (_, rows))| format!("{name} {rows:?}")).collect()
}

#[test]
fn a_unit_that_comes_back_first_takes_its_base_along() {
    let mut log = Log::new();
    let (mut a, mut b) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA));
    a.sql("UPDATE t SET v = 1; INSERT INTO t VALUES(4, 4, 4); UPDATE u SET e = 'uno' WHERE id = 1");
    a.sql("UPDATE t SET v = 2 WHERE id = 1; DELETE FROM t WHERE id = 2");
    let (rows, kept) = base(&a);
    assert!(rows == 0 && kept >= 3, "{rows} rows, {kept} units");
    a.publish(&mut log).apply(&log);
    assert_eq!(base(&a), (0, 0));
    b.apply(&log);
    assert_equal(&[&a, &b]);
}

#[test]
fn anothers_change_meets_base_as_if_it_had_always_been_there() {
    let mut log = Log::new();
    let (mut a, mut b) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA));
    b.sql("UPDATE t SET w = 'other', v = 'lost' WHERE id < 3; DELETE FROM t WHERE id = 3").publish(&mut log);
    // Two units of one row, of which only the oldest has the row as the fold does.
    a.sql("UPDATE t SET v = 1").sql("UPDATE t SET v = 2 WHERE id = 1");
    assert_eq!(base(&a).0, 0);
    a.apply(&log);
    let (rows, kept) = base(&a);
    assert_eq!((rows, kept), (3, 0), "all of the table's base is laid out");
    a.sql("UPDATE t SET v = 3 WHERE id = 2");
    assert_eq!(base(&a).1, 0, "a row is not kept in both ways");
    a.publish(&mut log).apply(&log);
    b.apply(&log);
    assert_eq!(base(&a), (0, 0));
    assert_equal(&[&a, &b]);
    let read = "SELECT group_concat(id || v || w, ' ') FROM t";
    assert_eq!(a.app.query_row(read, [], |row| row.get::<_, String>(0)).unwrap(), "12other 23other 31b");
}

#[test]
fn what_was_taken_away_in_a_fold_that_is_taken_back_is_there_again() {
    let mut log = Log::new();
    let (mut a, mut b) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA));
    // Own, then foreign, then own messages of one shard: the first takes a run away, the second has the rest laid out.
    a.sql("UPDATE t SET v = 1").publish(&mut log);
    b.sql("UPDATE t SET w = 2, v = 2").publish(&mut log);
    a.sql("UPDATE t SET v = 3").publish(&mut log);
    let visible = rows(&a);
    let kept = base(&a).1;
    let fold = |a: &mut Peer| {
        let arrived = a.arrived(&log);
        let tables = crate::support::oracle::catalogue(&a.app);
        a.replica.begin(&a.conn).unwrap();
        a.replica.fold(&a.conn, &crate::support::peer::look_up(&tables), arrived.as_slice()).unwrap();
    };
    fold(&mut a);
    a.replica.rollback(&a.conn).unwrap();
    assert_eq!((rows(&a), base(&a)), (visible.clone(), (0, kept)), "given up before its commit");
    // The intent is on disk, and the user's database cannot commit.
    fold(&mut a);
    a.conn.commit_hook(Some(|| true)).unwrap();
    assert!(a.replica.commit(&a.conn).is_err());
    a.conn.commit_hook(None::<fn() -> bool>).unwrap();
    a.replica.begin_anew().unwrap();
    assert!(a.replica.is_recovering());
    a.replica.abandon_intent().unwrap();
    assert_eq!(rows(&a), visible);
    assert_eq!(a.replica.state().position(ShardId(1)).unwrap(), StreamSeq(0));
    a.apply(&log);
    b.apply(&log);
    assert_eq!(base(&a), (0, 0));
    assert_equal(&[&a, &b]);
}

#[test]
fn who_reads_the_state_from_outside_has_it_laid_out_first() {
    let a = &mut Peer::new(1, SCHEMA);
    a.sql("UPDATE t SET v = 1");
    let path = a.path.with_file_name("state.db");
    assert!(matches!(FrozenState::open(&path), Err(ApplyError::NotLaidOut)));
    a.replica.lay_out_base().unwrap();
    assert_eq!(base(a), (3, 0));
    FrozenState::open(&path).unwrap();
}

#[test]
fn base_of_very_much_is_laid_out_at_once() {
    let mut log = Log::new();
    let (mut a, mut b) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA));
    // Rows whose changes are small and whose rows before are not: the sum of the latter is what has a bound.
    let large = "WITH c(i) AS (VALUES(10) UNION ALL SELECT i + 1 FROM c WHERE i < 49) INSERT INTO t SELECT i, 'v', zeroblob(1000000) FROM c";
    for peer in [&mut a, &mut b] {
        peer.app.execute_batch(large).unwrap();
        peer.seen = database(&peer.app);
    }
    a.sql("UPDATE t SET w = 1 WHERE id >= 10");
    assert_eq!(base(&a), (40, 0));
    a.publish(&mut log).apply(&log);
    b.apply(&log);
    assert_eq!(base(&a), (0, 0));
    assert_equal(&[&a, &b]);
}
