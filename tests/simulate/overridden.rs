//! What a change overrides stands in the journal, and nothing else does, also where rows do not come one change after another: a change of the
//! schema was made with it, or a snapshot took their place.

use std::collections::BTreeSet;

use woodchuck::format::Value;

use super::migrations::{About, Storm};

/// Node 1 writes `theirs`. Node 0, which has not heard of it, does `own` in one transaction, and reads both at once. Returns what its journal has as lost:
/// of each row the number and the value of `b`.
fn lost(seed: u64, theirs: &str, own: &str) -> BTreeSet<(i64, i64)> {
    let mut storm = Storm::new(seed, About::Schema);
    for (no, sql) in [(1, theirs), (0, own)] {
        storm.execute(no, sql);
        storm.nodes[no].with(None, |node| node.turn().map(drop));
        storm.send(no, usize::MAX);
    }
    storm.deliver(0, usize::MAX);
    storm.nodes[0].with(None, |node| node.turn().map(drop));
    storm.settle();
    journal(&mut storm)
}

/// What the journal of node 0 has as lost.
fn journal(storm: &mut Storm) -> BTreeSet<(i64, i64)> {
    let node = storm.nodes[0].node.as_mut().expect("the node runs");
    let journal = node.replica().state().conflicts(100).unwrap();
    let value = |row: &[Value], column: usize| match row[column] {
        Value::Integer(value) => value,
        ref other => panic!("{other:?} is no number"),
    };
    let rows = journal.iter().filter_map(|conflict| conflict.lost.as_ref());
    rows.map(|row| (value(row, 0), value(row, 2))).collect()
}

#[test]
fn what_a_transaction_overrides_that_makes_values_unique_is_in_the_journal() {
    let theirs = "UPDATE t0 SET b = 10 + id";
    let rebuilt = "CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT, b INT, UNIQUE(b)); INSERT INTO n SELECT id, a, 20 + id FROM t0; DROP TABLE t0;
        ALTER TABLE n RENAME TO t0";
    for seed in 0..8 {
        for own in ["UPDATE t0 SET b = 20 + id; CREATE UNIQUE INDEX u ON t0(b)", rebuilt, "UPDATE t0 SET b = 20 + id"] {
            assert_eq!(lost(seed, theirs, own), BTreeSet::from([(1, 11), (2, 12), (3, 13)]), "SEED={seed} {own}");
        }
        let deleted = "DELETE FROM t0 WHERE id > 1; CREATE UNIQUE INDEX u ON t0(b)";
        assert_eq!(lost(seed, theirs, deleted), BTreeSet::from([(2, 12), (3, 13)]), "SEED={seed}");
    }
}

/// Node 0 writes twice to each row. Of what it wrote first it hears by a snapshot alone, with what node 1 has written meanwhile.
fn lost_by_snapshot(seed: u64, theirs: &str) -> BTreeSet<(i64, i64)> {
    let mut storm = Storm::new(seed, About::Behind);
    let turn = |storm: &mut Storm, no: usize| storm.nodes[no].with(None, |node| node.turn().map(drop));
    for (no, sql) in [(0, "UPDATE t0 SET b = 20 + id"), (1, theirs)] {
        storm.execute(no, sql);
        turn(&mut storm, no);
        storm.send(no, usize::MAX);
        storm.deliver(1, usize::MAX);
        turn(&mut storm, 1);
    }
    storm.snapshot(1);
    storm.trim();
    storm.execute(0, "UPDATE t0 SET b = 30 + id");
    turn(&mut storm, 0);
    storm.deliver(0, usize::MAX);
    storm.catch_up(0);
    turn(&mut storm, 0);
    assert_eq!(storm.behind.as_ref().unwrap().catch_ups, 1);
    storm.settle();
    journal(&mut storm)
}

#[test]
fn own_earlier_changes_that_come_with_a_snapshot_are_overridden_by_nobody() {
    for seed in 0..8 {
        assert_eq!(lost_by_snapshot(seed, "UPDATE t0 SET a = 'theirs'"), BTreeSet::new(), "SEED={seed}");
        let theirs = lost_by_snapshot(seed, "UPDATE t0 SET b = 10 + id WHERE id > 1");
        assert_eq!(theirs, BTreeSet::from([(2, 12), (3, 13)]), "SEED={seed}");
    }
}
