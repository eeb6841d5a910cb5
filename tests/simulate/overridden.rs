//! What a change overrides that changes the schema as well stands in the journal.

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
