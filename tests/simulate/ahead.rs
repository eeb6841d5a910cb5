//! A node that died between the commit of its database and that of its state, and the log of whose database began anew while it was down: what it
//! shows came whole and stays whole.

use woodchuck::fault::Point;

use super::migrations::{About, Storm};

/// Transactions that one application brings.
const COUNT: i64 = 20;

/// The rows that a transaction adds to one table, and what it makes of one of another, in the form `n n`.
fn shown(storm: &Storm, no: usize) -> (i64, i64) {
    let sql = "SELECT (SELECT count(*) FROM t1 WHERE id LIKE 'n%'), (SELECT b FROM t0 WHERE id = 1)";
    storm.nodes[no].app.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// Its rows were folded again a few messages at a time: what these had not come to yet stayed as it was to become.
#[test]
fn what_a_node_shows_from_before_it_died_is_not_taken_apart() {
    for seed in 0..12 {
        println!("SEED={seed}");
        let mut storm = Storm::new(seed, About::Schema);
        storm.nodes[0].app.execute_batch("UPDATE t0 SET b = 0 WHERE id = 1").unwrap();
        for n in 1..=COUNT {
            let sql = format!("BEGIN; INSERT INTO t1(id) VALUES('n{n}'); UPDATE t0 SET b = {n} WHERE id = 1; COMMIT");
            storm.nodes[0].app.execute_batch(&sql).unwrap();
            storm.nodes[0].with(None, |node| node.turn().map(drop));
            storm.send(0, usize::MAX);
        }
        storm.deliver(1, usize::MAX);
        storm.nodes[1].with(Some((Point::UserCommitted, 1)), |node| node.turn().map(drop));
        assert!(storm.nodes[1].node.is_none(), "it died");
        assert_eq!(shown(&storm, 1), (COUNT, COUNT));
        let away =
            "UPDATE t0 SET b = b WHERE id = 2; INSERT INTO t1(id) VALUES('here'); PRAGMA wal_checkpoint(TRUNCATE);
            INSERT INTO t1(id) VALUES('here too')";
        storm.nodes[1].app.execute_batch(away).unwrap();
        storm.start(1);
        // What it hears again comes one by one.
        for _ in 0..1000 {
            storm.deliver(1, 1);
            storm.nodes[1].with(None, |node| node.turn().map(drop));
            assert_eq!(shown(&storm, 1), (COUNT, COUNT));
        }
        storm.settle();
    }
}
