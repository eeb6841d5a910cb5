//! What replication by triggers and by rows alone gets wrong, each as the schedule in which it shows.

use woodchuck::fault::Point;
use woodchuck::format::Value;

use super::cluster::{Cluster, Run};
use super::schedule::Step::{Ack, Apply, Capture, Deliver, Die, Kill, Publish, Rejoin, Send, Snapshot, Sql, Turn};
use super::schedule::{Fate, Schedule, Setup, Step};

fn run(kind: usize, shards: u16, steps: &[Step]) -> Run {
    let setup = Setup {
        nodes: 2,
        shards,
        kind,
        by_row: false,
        message_bytes_max: 1 << 20,
        unit_bytes_max: 1 << 18,
        remember_ids: true,
        genesis: 1,
        filtered: false,
    };
    // What the rows are is for the steps to say.
    let empty = match kind {
        0 => "DELETE FROM f",
        1 => "DELETE FROM u",
        _ => "DELETE FROM f; DELETE FROM audit",
    };
    let first = [Sql { node: 0, sql: empty }].into_iter().chain(exchange(0, 1));
    Cluster::run(&Schedule { setup, steps: first.chain(steps.iter().copied()).collect() })
}

/// Everything that one node has goes to the other, and comes back to itself.
fn exchange(from: usize, to: usize) -> [Step; 6] {
    let all = usize::MAX;
    [
        Turn { node: from },
        Send { node: from, shard: 0, fate: Fate::Stored },
        Ack { node: from, count: all },
        Deliver { node: from, shard: 0, count: all },
        Deliver { node: to, shard: 0, count: all },
        Turn { node: to },
    ]
}

/// The values of column `column` by key, as text.
fn column(run: &Run, table: &str, column: usize) -> Vec<String> {
    let shown = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(value) => value.to_string(),
        Value::Real(value) => format!("{value:?}"),
        Value::Text(text) => String::from_utf8(text.clone()).unwrap(),
        Value::Blob(bytes) => format!("{bytes:?}"),
    };
    run.rows.iter().filter(|((name, _), _)| name == table).map(|(_, row)| shown(&row[column])).collect()
}

#[test]
fn a_unique_value_that_two_nodes_give_away_stays_with_the_later_in_any_number_of_shards() {
    let steps = [
        Sql { node: 0, sql: "INSERT INTO u VALUES('a', 7, 0)" },
        Sql { node: 1, sql: "INSERT INTO u VALUES('b', 7, 1)" },
    ];
    let run = run(1, 8, &steps.into_iter().chain(exchange(0, 1)).chain(exchange(1, 0)).collect::<Vec<_>>());
    assert_eq!(column(&run, "u", 0), ["b"]);
}

#[test]
fn an_own_message_that_comes_back_takes_no_later_update_with_it() {
    let add = Sql { node: 0, sql: "UPDATE f SET a = a + 1" };
    let mut steps = vec![Sql { node: 0, sql: "INSERT INTO f VALUES('k', 0, 0, 0)" }];
    for _ in 0..5 {
        steps.extend([add, Turn { node: 0 }, Send { node: 0, shard: 0, fate: Fate::Stored }, add]);
        steps.extend([Deliver { node: 0, shard: 0, count: 50 }, Apply { node: 0, impatient: false }, add]);
        steps.extend([Ack { node: 0, count: 50 }, Publish { node: 0 }]);
    }
    assert_eq!(column(&run(0, 2, &steps), "f", 1), ["15"]);
}

#[test]
fn a_row_leaves_its_old_key_on_every_node() {
    let mut steps = vec![Sql { node: 0, sql: "INSERT INTO f VALUES('old', 1, 2, 3)" }];
    steps.extend(exchange(0, 1));
    steps.push(Sql { node: 1, sql: "UPDATE f SET k = 'new'" });
    assert_eq!(column(&run(0, 8, &steps), "f", 0), ["new"]);
}

#[test]
fn a_trigger_fires_where_its_statement_ran_and_nowhere_else() {
    let mut steps = vec![Sql { node: 0, sql: "INSERT INTO f VALUES('k', 1, 2, 3)" }];
    steps.extend(exchange(0, 1));
    for node in [0, 1, 0] {
        steps.push(Sql { node, sql: "UPDATE f SET a = a + 1" });
        steps.extend(exchange(node, 1 - node));
    }
    let run = run(9, 2, &steps);
    assert_eq!((column(&run, "f", 1), column(&run, "audit", 1)), (vec!["4".to_owned()], vec!["3".to_owned()]));
}

#[test]
fn dates_stay_the_text_that_they_were() {
    let dates = "INSERT INTO f VALUES('a', 0, '2024-02-30', 0), ('b', 0, '2024-02-29T23:59:60.5+14:00', 0), ('c', 0, '20240229', 0)";
    let run = run(0, 2, &[Sql { node: 0, sql: dates }]);
    // The last one is a number to SQLite, as the column is declared.
    assert_eq!(column(&run, "f", 2), ["2024-02-30", "2024-02-29T23:59:60.5+14:00", "20240229"]);
}

#[test]
fn a_transaction_over_many_shards_arrives_whole_though_its_messages_come_one_by_one() {
    let rows = "INSERT INTO f VALUES('a', 1, 0, 0), ('b', 1, 0, 0), ('c', 1, 0, 0), ('d', 1, 0, 0), ('e', 1, 0, 0)";
    let mut steps = vec![Sql { node: 0, sql: rows }, Turn { node: 0 }];
    for shard in 1..=8 {
        steps.extend([Send { node: 0, shard, fate: Fate::Stored }, Deliver { node: 1, shard, count: 1 }]);
        // A part of it that was applied ends the run.
        steps.push(Turn { node: 1 });
    }
    assert_eq!(column(&run(0, 8, &steps), "f", 1), ["1"; 5]);
}

#[test]
fn a_change_is_not_lost_when_publishing_it_fails() {
    let mut steps = vec![Sql { node: 0, sql: "INSERT INTO f VALUES('k', 1, 0, 0)" }, Turn { node: 0 }];
    for fate in [Fate::Failed, Fate::Failed, Fate::AckLost, Fate::Failed] {
        steps.push(Send { node: 0, shard: 0, fate });
    }
    steps.push(Sql { node: 0, sql: "UPDATE f SET a = a + 1" });
    steps.push(Die { node: 0, point: Point::Captured, passing: 1 });
    let run = run(0, 2, &steps);
    assert_eq!((column(&run, "f", 1), run.met["transactions"]), (vec!["2".to_owned()], 3));
}

#[test]
fn a_snapshot_is_not_put_over_changes_that_nobody_else_has() {
    let change = Sql { node: 1, sql: "INSERT INTO f VALUES('mine', 1, 0, 0)" };
    let steps = [Snapshot { node: 0 }, change, Capture { node: 1 }, Kill { node: 1 }, Rejoin { node: 1 }];
    let run = run(0, 2, &steps);
    assert_eq!(column(&run, "f", 0), ["mine"]);
    assert!(run.met.contains_key("snapshots") && !run.met.contains_key("rejoins"), "{:?}", run.met);
}
