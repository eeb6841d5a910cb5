//! What is pending on a node is no part of what nodes compare.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use woodchuck::apply::{FOLD_BUCKETS, FoldBounds, FoldDigest, FoldReader, RowFilters, is_out_of_bounds};

use crate::support::peer::{Log, Peer};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE u(k TEXT PRIMARY KEY COLLATE NOCASE, e TEXT UNIQUE);
    CREATE TABLE bag(x); INSERT INTO t VALUES(1,'one'),(2,'two'),(3,'three'); INSERT INTO u VALUES('a','1'),('b','2'); INSERT INTO bag VALUES(1),(2)";

fn reader(peer: &Peer) -> FoldReader {
    let bounds = FoldBounds { until: Instant::now() + Duration::from_secs(60), wal_bytes_max: None };
    peer.replica.lay_out_base().unwrap();
    FoldReader::open(&peer.path, &peer.path.with_file_name("state.db"), bounds).unwrap()
}

fn digests(peer: &Peer) -> BTreeMap<String, FoldDigest> {
    let reader = reader(peer);
    let tables = reader.tables(&RowFilters::default()).unwrap();
    tables.iter().map(|table| (table.shape().name.clone(), reader.digest(table).unwrap())).collect()
}

#[test]
fn nodes_with_pending_changes_have_equal_folds() {
    let mut log = Log::new();
    let (mut a, mut b) = (Peer::new(1, SCHEMA), Peer::new(2, SCHEMA));
    let begin = digests(&a);
    assert_eq!(begin, digests(&b));
    a.sql("UPDATE t SET v = 'uno' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES(4, 'four')");
    b.sql("INSERT OR REPLACE INTO u VALUES('c', '1'); UPDATE u SET k = 'B' WHERE k = 'b'; DELETE FROM bag");
    assert_eq!((&digests(&a), &digests(&b)), (&begin, &begin), "nothing is on the log");
    a.publish(&mut log);
    a.apply(&log);
    assert_ne!(digests(&a), begin);
    assert_eq!(digests(&b), begin, "it has applied nothing");
    b.apply(&log);
    assert_eq!(digests(&a), digests(&b), "with changes of its own on top");
    b.publish(&mut log);
    for peer in [&mut a, &mut b] {
        peer.apply(&log);
    }
    assert_eq!(digests(&a), digests(&b));
    assert_eq!(digests(&a)["u"].rows, 2);
}

#[test]
fn rows_that_differ_are_found_by_their_hashes() {
    let a = Peer::new(1, SCHEMA);
    let mut b = Peer::new(2, SCHEMA);
    // Behind the back of capture: no pending, no base.
    b.app.execute_batch("UPDATE t SET v = 'TWO' WHERE id = 2; INSERT INTO t VALUES(9, 'nine')").unwrap();
    let found = [&mut b, &mut { a }].map(|peer| {
        let reader = reader(peer);
        let tables = reader.tables(&RowFilters::default()).unwrap();
        let table = tables.iter().find(|table| table.shape().name == "t").unwrap();
        let (hashes, all) = reader.hashes(table, &(0..FOLD_BUCKETS).collect(), 100).unwrap();
        assert!(all && !reader.hashes(table, &(0..FOLD_BUCKETS).collect(), 2).unwrap().1);
        let rows = reader.rows(table, &hashes.keys().copied().collect::<BTreeSet<u64>>()).unwrap();
        assert_eq!(rows.len(), hashes.len());
        hashes
    });
    let [b, a] = found;
    let differing = |from: &BTreeMap<u64, u64>, to: &BTreeMap<u64, u64>| {
        from.iter().filter(|(key, row)| to.get(key) != Some(row)).count()
    };
    assert_eq!((differing(&a, &b), differing(&b, &a)), (1, 2));
}

#[test]
fn reading_ends_at_its_bounds() {
    let rows = "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
        WITH c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 50000) INSERT INTO t SELECT i, 'value' || i FROM c";
    let peer = Peer::new(1, rows);
    let read = |bounds, meanwhile: &dyn Fn()| {
        let reader = FoldReader::open(&peer.path, &peer.path.with_file_name("state.db"), bounds).unwrap();
        meanwhile();
        // What is read of the schema may be too much already.
        reader.tables(&RowFilters::default()).and_then(|tables| reader.digest(&tables[0]))
    };
    let now = FoldBounds { until: Instant::now(), wal_bytes_max: None };
    assert!(is_out_of_bounds(&read(now, &|| {}).unwrap_err()));

    // The log is longer than that already, and nobody writes.
    let small = FoldBounds { until: Instant::now() + Duration::from_secs(60), wal_bytes_max: Some(4096) };
    assert_eq!(read(small, &|| {}).unwrap().rows, 50_000);
    let write = || {
        let application = rusqlite::Connection::open(&peer.path).unwrap();
        application.execute_batch("PRAGMA wal_autocheckpoint = 0; INSERT INTO t(v) VALUES(zeroblob(20000))").unwrap();
    };
    assert!(is_out_of_bounds(&read(small, &write).unwrap_err()), "it has grown by as much");
}
