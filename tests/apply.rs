//! Applying on real databases: what must survive, what must not fire, what must stop.

use std::sync::Arc;

use rusqlite::Connection;
use woodchuck::apply::{
    ApplyError, Cannot, Conflict, ConflictKind, Merge, SealLimits, State, open_applying_connection,
};
use woodchuck::change::{ChangeSink, Op, RowChange, TxSpan, row_key};
use woodchuck::format::{FrameNo, Salts, Value};
use woodchuck::log::{
    Batch, Body, Header, Origin, RoundPart, SchemaStep, ShardId, StreamSeq, TableRouting, Unit, shard_of,
};

use crate::support::oracle::catalogue;
use crate::support::peer::{Log, Peer, SHARDS};

/// Two peers with the same schema.
fn pair(sql: &str) -> (Peer, Peer, Log) {
    (Peer::new(1, sql), Peer::new(2, sql), Log::new())
}

/// Rows made on one peer are the same bytes on the other.
fn carries(schema: &str, change: &str, tables: &[&str]) {
    let (mut a, mut b, mut log) = pair(schema);
    a.sql(change).publish(&mut log);
    assert!(b.apply(&log).blocked.is_empty());
    assert!(a.apply(&log).blocked.is_empty());
    for table in tables {
        assert!(!a.seen[*table].1.is_empty());
        assert_eq!(a.seen[*table].1, b.seen[*table].1, "{table}");
    }
    assert_eq!(a.replica.state().backlog().unwrap().units, 0);
}

#[test]
fn an_own_echo_does_not_overwrite_newer_local_writes() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, n); INSERT INTO t VALUES(1, 0)");
    for _ in 0..10 {
        a.sql("UPDATE t SET n = n + 1").publish(&mut log);
        a.sql("UPDATE t SET n = n + 1");
        let report = a.apply(&log);
        assert_eq!(report.counts.rows_updated, 0);
        assert!(report.counts.units_own > 0);
        a.publish(&mut log);
    }
    a.apply(&log);
    b.apply(&log);
    assert_eq!(a.text("SELECT n FROM t"), "20");
    assert_eq!(b.text("SELECT n FROM t"), "20");
}

#[test]
fn different_columns_of_one_row_both_stay_and_are_no_conflict() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, x, y); INSERT INTO t VALUES(1, 0, 0)");
    a.sql("UPDATE t SET x = 1");
    b.sql("UPDATE t SET y = 2").publish(&mut log);
    a.publish(&mut log).apply(&log);
    b.apply(&log);
    assert_eq!(a.text("SELECT x, y FROM t"), "1 2");
    assert_eq!(b.text("SELECT x, y FROM t"), "1 2");
    assert!(a.replica.state().conflicts(10).unwrap().is_empty(), "nothing was overridden");
}

#[test]
fn the_losing_value_of_a_conflict_is_in_the_journal() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 0)");
    b.sql("UPDATE t SET x = 'theirs'").publish(&mut log);
    a.sql("UPDATE t SET x = 'ours'");
    let report = a.apply(&log);
    assert_eq!(report.counts.conflicts, 1);
    let found = a.replica.state().conflicts(10).unwrap();
    assert_eq!(found[0].kind, ConflictKind::SameRow);
    assert_eq!(found[0].kept, Some(vec![Value::Integer(1), Value::Text(b"ours".to_vec())]));
    assert_eq!(found[0].lost, Some(vec![Value::Integer(1), Value::Text(b"theirs".to_vec())]));
    assert_eq!(found[0].lost_origin, Some(Origin { node_id: 2, epoch: 1 }));
    a.publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT x FROM t"), "'ours'");
}

/// A change of two columns was journaled with the first own change that overrode one of them: that the other was overridden by the next stood
/// nowhere, and the entry said that it stays.
#[test]
fn each_column_that_is_overridden_is_in_the_journal() {
    for schema in ["id INTEGER PRIMARY KEY, a, b", "id INTEGER PRIMARY KEY, a, b, c UNIQUE"] {
        let (mut a, mut b, mut log) =
            pair(&format!("CREATE TABLE t({schema}); INSERT INTO t(id, a, b) VALUES(1, 0, 0)"));
        b.sql("UPDATE t SET a = 22, b = 22").publish(&mut log);
        a.sql("UPDATE t SET b = 11").publish(&mut log);
        a.sql("UPDATE t SET a = 12").publish(&mut log);
        a.sql("UPDATE t SET b = 13").publish(&mut log);
        a.apply(&log);
        b.apply(&log);
        assert_eq!((a.text("SELECT a, b FROM t"), b.text("SELECT a, b FROM t")), ("12 13".into(), "12 13".into()));
        let mut found = a.replica.state().conflicts(10).unwrap();
        found.reverse();
        let overridden = |column: usize| {
            let (mut found, wanted) = (found.iter(), Some(Value::Integer(22)));
            found.any(|conflict| {
                let of = |row: &Option<Vec<Value>>| row.as_ref().map(|row| row[column].clone());
                of(&conflict.lost) == wanted && of(&conflict.kept) != wanted
            })
        };
        assert!(overridden(1) && overridden(2), "{schema}: {found:?}");
        assert_eq!(found.len(), 2, "{schema}: each column once: {found:?}");
        assert_eq!(b.replica.state().conflicts(10).unwrap(), []);
    }
}

#[test]
fn a_long_journal_is_handed_out_whole_and_in_order() {
    let rows = "WITH c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 2500) INSERT INTO t SELECT i, 0 FROM c";
    let (mut a, mut b, mut log) = pair(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, x); {rows}"));
    b.sql("UPDATE t SET x = 'theirs'").publish(&mut log);
    a.sql("UPDATE t SET x = 'ours'").apply(&log);
    let state = a.replica.state();
    let mut newest = state.conflicts(u32::MAX).unwrap();
    assert_eq!(newest.len(), 2500);
    newest.reverse();
    let mut all = Vec::new();
    let each = |conflict: &Conflict| {
        all.push(conflict.clone());
        true
    };
    state.each_conflict(each).unwrap();
    assert_eq!(all, newest);
    let mut count = 0;
    let three = |_: &Conflict| {
        count += 1;
        count < 3
    };
    state.each_conflict(three).unwrap();
    assert_eq!(count, 3, "it ends when nobody takes more");
}

#[test]
fn row_merge_takes_the_whole_row_of_the_later_change() {
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, x, y); INSERT INTO t VALUES(1, 0, 0)";
    let (mut a, mut b, mut log) = (Peer::with(1, sql, Merge::Row), Peer::with(2, sql, Merge::Row), Log::new());
    a.sql("UPDATE t SET x = 1").publish(&mut log);
    b.sql("UPDATE t SET y = 2").publish(&mut log);
    a.apply(&log);
    b.apply(&log);
    assert_eq!(a.text("SELECT x, y FROM t"), "0 2");
    assert_eq!(b.text("SELECT x, y FROM t"), "0 2");
}

#[test]
fn a_swap_of_keys_and_of_unique_values_keeps_its_meaning() {
    let (mut a, mut b, mut log) =
        pair("CREATE TABLE t(k TEXT PRIMARY KEY, u UNIQUE, v); INSERT INTO t VALUES('a', 1, 'x'), ('b', 2, 'y')");
    a.sql("UPDATE t SET k = 'c' WHERE k = 'a'; UPDATE t SET k = 'a' WHERE k = 'b'; UPDATE t SET k = 'b' WHERE k = 'c'");
    a.publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT * FROM t ORDER BY k"), "'a' 2 'y'; 'b' 1 'x'");
    a.sql("UPDATE t SET u = NULL WHERE k = 'a'; UPDATE t SET u = 2 WHERE k = 'b'; UPDATE t SET u = 1 WHERE k = 'a'");
    a.publish(&mut log).apply(&log);
    b.apply(&log);
    assert_eq!(b.text("SELECT * FROM t ORDER BY k"), "'a' 1 'y'; 'b' 2 'x'");
    assert_eq!(a.seen["t"].1, b.seen["t"].1);
}

/// It went in units of 256 KiB: a row whose value one gave away before the one came that changed the row was gone meanwhile, and came back as its
/// writer had it, without what others had made of its other columns.
#[test]
fn a_large_transaction_that_passes_unique_values_on_is_merged_by_columns() {
    let rows = "WITH c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 1200)
        INSERT INTO t SELECT i, i, zeroblob(1000), 0 FROM c";
    let (mut a, mut b, mut log) =
        pair(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, place UNIQUE, filling, note); {rows}"));
    b.sql("UPDATE t SET note = id WHERE id % 100 = 0").publish(&mut log);
    a.sql("BEGIN; UPDATE t SET place = -place, filling = randomblob(1000); UPDATE t SET place = 1201 + place; COMMIT");
    a.publish(&mut log);
    assert!(a.apply(&log).blocked.is_empty() && b.apply(&log).blocked.is_empty());
    let found = "SELECT count(*), sum(place = 1201 - id), sum(note) FROM t";
    let wanted = "1200 1200 7800";
    assert_eq!((a.text(found), b.text(found)), (wanted.to_owned(), wanted.to_owned()));
    for peer in [&a, &b] {
        assert_eq!(peer.replica.state().conflicts(10).unwrap(), [], "nothing was overridden");
    }
}

/// Of one that is larger still, rows that come back as they were filled the journal, and pushed out what was in it.
#[test]
fn rows_that_come_back_in_a_later_unit_are_no_conflict_where_nothing_was_overridden() {
    let rows = "WITH c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 2400)
        INSERT INTO t SELECT i, i, zeroblob(2000), 0 FROM c";
    let (mut a, mut b, mut log) =
        pair(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, place UNIQUE, filling, note); {rows}"));
    b.sql("UPDATE t SET note = id WHERE id % 100 = 0").publish(&mut log);
    a.sql("BEGIN; UPDATE t SET place = -place; UPDATE t SET place = 2401 + place; COMMIT").publish(&mut log);
    assert!(a.apply(&log).blocked.is_empty() && b.apply(&log).blocked.is_empty());
    let found = "SELECT count(*), sum(place = 2401 - id), sum(note) FROM t";
    assert_eq!(a.text(found), b.text(found));
    assert!(a.text(found).starts_with("2400 2400 "), "{}", a.text(found));
    for peer in [&a, &b] {
        let conflicts = peer.replica.state().conflicts(u32::MAX).unwrap();
        let is_told = |conflict: &Conflict| conflict.kind == ConflictKind::UniqueValue;
        let told: Vec<_> =
            conflicts.iter().filter(|conflict| is_told(conflict)).map(|conflict| &conflict.lost).collect();
        // What was lost of the other node's is there, and nothing else.
        assert!(!told.is_empty() && told.len() <= 24, "{} entries", told.len());
        for lost in told {
            let lost = lost.as_ref().unwrap();
            assert_eq!(lost[0], lost[3], "{lost:?}");
        }
    }
}

#[test]
fn delete_against_update_ends_equal_in_both_orders() {
    for a_first in [true, false] {
        let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 0)");
        a.sql("DELETE FROM t");
        b.sql("UPDATE t SET x = 5");
        let (first, second) = if a_first { (&mut a, &mut b) } else { (&mut b, &mut a) };
        first.publish(&mut log);
        second.publish(&mut log);
        a.apply(&log);
        b.apply(&log);
        let wanted = if a_first { "1 5" } else { "" };
        assert_eq!(a.text("SELECT * FROM t"), wanted);
        assert_eq!(b.text("SELECT * FROM t"), wanted);
    }
}

#[test]
fn one_unique_value_under_two_keys_goes_to_the_later_change_everywhere() {
    // Expression, partial and NOCASE indexes: whose row is in the way only SQLite can say.
    for index in ["lower(u)", "u) WHERE (v = 1", "u COLLATE NOCASE", "u, v"] {
        let sql = format!("CREATE TABLE t(k TEXT PRIMARY KEY, u, v DEFAULT 1); CREATE UNIQUE INDEX i ON t({index})");
        let (mut a, mut b, mut log) = pair(&sql);
        a.sql("INSERT INTO t(k, u) VALUES('a', 'mail')").publish(&mut log);
        b.sql("INSERT INTO t(k, u) VALUES('b', 'mail')").publish(&mut log);
        a.apply(&log);
        b.apply(&log);
        assert_eq!(a.text("SELECT k, u FROM t"), "'b' 'mail'", "{index}");
        assert_eq!(b.text("SELECT k, u FROM t"), "'b' 'mail'", "{index}");
        let conflicts = a.replica.state().conflicts(10).unwrap();
        assert_eq!((conflicts.len(), conflicts[0].kind), (1, ConflictKind::UniqueValue));
        assert_eq!(conflicts[0].lost.as_ref().unwrap()[0], Value::Text(b"a".to_vec()));
    }
}

#[test]
fn on_conflict_replace_in_a_definition_pushes_nothing_out_unseen() {
    let sql = "CREATE TABLE t(k TEXT PRIMARY KEY ON CONFLICT REPLACE, u UNIQUE ON CONFLICT REPLACE)";
    let (mut a, mut b, mut log) = pair(sql);
    a.sql("INSERT INTO t VALUES('a', 1)").publish(&mut log);
    b.sql("INSERT INTO t VALUES('b', 1)").publish(&mut log);
    a.apply(&log);
    b.apply(&log);
    assert_eq!((a.text("SELECT * FROM t"), b.text("SELECT * FROM t")), ("'b' 1".to_owned(), "'b' 1".to_owned()));
    assert_eq!(a.replica.state().conflicts(10).unwrap().len(), 1);
}

#[test]
fn triggers_cascades_and_checks_of_the_origin_take_effect_once() {
    let sql = "CREATE TABLE p(id INTEGER PRIMARY KEY, n);
        CREATE TABLE c(id INTEGER PRIMARY KEY, p REFERENCES p(id) ON DELETE CASCADE, n CHECK (n > 0));
        CREATE TABLE audit(id INTEGER PRIMARY KEY, what);
        CREATE TRIGGER a AFTER INSERT ON p BEGIN INSERT INTO audit(what) VALUES('p' || new.id); END;
        CREATE TRIGGER d AFTER DELETE ON c BEGIN INSERT INTO audit(what) VALUES('gone' || old.id); END;";
    let (mut a, mut b, mut log) = pair(sql);
    a.sql("PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = ON; INSERT INTO p VALUES(1, 1), (2, 2); INSERT INTO c VALUES(5, 1, 1), (6, 2, 1)");
    a.publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT what FROM audit"), "'p1'; 'p2'");
    a.sql("DELETE FROM p WHERE id = 1").publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT id FROM c"), "6");
    assert_eq!(b.text("SELECT what FROM audit"), "'p1'; 'p2'; 'gone5'");
    a.sql("PRAGMA ignore_check_constraints = ON; UPDATE c SET n = -1").publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT n FROM c"), "-1");
    assert!(a.apply(&log).blocked.is_empty());
    assert_eq!(a.seen["audit"].1, b.seen["audit"].1);
}

#[test]
fn a_foreign_key_may_be_violated_between_shards() {
    let sql =
        "CREATE TABLE p(id INTEGER PRIMARY KEY); CREATE TABLE c(id INTEGER PRIMARY KEY, p NOT NULL REFERENCES p(id))";
    let (mut a, mut b, mut log) = pair(sql);
    a.sql("INSERT INTO p VALUES(1), (2), (3); INSERT INTO c VALUES(1, 1), (2, 2), (3, 3)").publish(&mut log);
    for index in (0..usize::from(SHARDS)).rev() {
        let mut only = Log::new();
        only.0[index].clone_from(&log.0[index]);
        assert!(b.apply(&only).blocked.is_empty());
    }
    assert_eq!(b.text("SELECT count(*) FROM p JOIN c ON c.p = p.id"), "3");
}

#[test]
fn a_trigger_with_a_function_that_is_missing_here_does_not_matter() {
    // GeoPackage triggers call functions that only the application registers, and SQLite resolves them when a statement is prepared.
    let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, g); INSERT INTO t VALUES(1, 0), (2, 0);
        CREATE TRIGGER ti AFTER INSERT ON t BEGIN SELECT ST_IsEmpty(new.g); END;
        CREATE TRIGGER tu AFTER UPDATE ON t BEGIN SELECT ST_MinX(new.g); END;
        CREATE TRIGGER td AFTER DELETE ON t BEGIN SELECT ST_MinX(old.g); END;";
    let (mut a, mut b, mut log) = pair(sql);
    for function in ["ST_IsEmpty", "ST_MinX"] {
        a.app.create_scalar_function(function, 1, rusqlite::functions::FunctionFlags::SQLITE_UTF8, |_| Ok(0)).unwrap();
    }
    a.sql("INSERT INTO t VALUES(3, 1); UPDATE t SET g = 9 WHERE id = 1; DELETE FROM t WHERE id = 2").publish(&mut log);
    assert!(b.apply(&log).blocked.is_empty());
    assert_eq!(b.text("SELECT * FROM t"), "1 9; 3 1");
}

#[test]
fn values_arrive_as_they_were_stored() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, d DATE, b BOOLEAN, n NUMERIC, r REAL, x, s TEXT)";
    let change = "INSERT INTO t VALUES
        (1, '2024-02-30', 2, '0012x', 3.0, -0.0, 'a'), (2, 20240101, 'yes', 9007199254740993, 9e999, -9e999, ''),
        (3, NULL, x'', -9223372036854775808, -0.0, x'', char(97, 0, 98)), (4, '1.10', '2', 1.5, 1, '12', CAST(x'ff00fe' AS TEXT)),
        (5, x'00', 0, NULL, NULL, 9223372036854775807, CAST(x'c3' AS TEXT)), (-9223372036854775808, 1, 1, 1, 1, 1, 1), (9223372036854775807, 1, 1, 1, 1, 1, 1)";
    carries(schema, change, &["t"]);
    carries(&format!("-- utf16\n{schema}"), change.split(", (4,").next().unwrap(), &["t"]);
}

#[test]
fn a_surrogate_without_its_partner_survives_in_a_utf16_database() {
    let (mut a, mut b, mut log) = pair("-- utf16\nCREATE TABLE t(id INTEGER PRIMARY KEY, s)");
    a.sql("INSERT INTO t VALUES(1, 'a')");
    // As capture reads it from the page: generalised UTF-8.
    let table = catalogue(&a.app).table("t").cloned().unwrap();
    let span = TxSpan {
        tx: 9,
        salts: Salts([3; 8]),
        frame_first: FrameNo(1),
        frame_last: FrameNo(2),
        repaired: false,
        checksum: woodchuck::format::Checksum::default(),
        page_count: 0,
    };
    let row = vec![Value::Integer(2), Value::Text(vec![b'x', 0xed, 0xa0, 0x81, b'y'])];
    let key = row_key(&table, &row, Some(2));
    let mut sink = a.replica.local_sink();
    sink.begin(&span).unwrap();
    sink.change(RowChange {
        table,
        op: Op::Insert,
        key,
        rowid: Some(2),
        before: None,
        after: Some(row),
        before_unknown: false,
    })
    .unwrap();
    sink.commit(&span, 1).unwrap();
    drop(sink);
    a.publish(&mut log);
    b.apply(&log);
    let stored = |peer: &Peer| peer.text("SELECT CAST(s AS BLOB) FROM t WHERE id = 2");
    assert_eq!(stored(&b), "x[120, 0, 1, 216, 121, 0]");
    a.app.execute_batch("INSERT INTO t VALUES(2, CAST(x'780001d87900' AS TEXT))").unwrap();
    b.sql("INSERT INTO t VALUES(7, 'b')").publish(&mut log);
    a.apply(&log);
    assert_eq!(stored(&a), stored(&b));
}

#[test]
fn every_kind_of_key_finds_its_row() {
    let schema = "CREATE TABLE nocase(k TEXT COLLATE NOCASE PRIMARY KEY, v); INSERT INTO nocase VALUES('Abc', 1), ('x', 1);
        CREATE TABLE keyed(k TEXT, v, PRIMARY KEY(k COLLATE NOCASE)); INSERT INTO keyed VALUES('Abc', 1), ('x', 1);
        CREATE TABLE pair(a TEXT, b, v, PRIMARY KEY(b DESC, a)) WITHOUT ROWID; INSERT INTO pair VALUES('a', 1, 1), ('a', 2, 1), ('b', 1, 1);
        CREATE TABLE none(a, b); INSERT INTO none VALUES(1, 1), (1, 1), (2, 2);
        CREATE TABLE blobs(k BLOB PRIMARY KEY, v); INSERT INTO blobs VALUES(x'00ff', 1), (x'', 1), (1, 1), (2.5, 1), ('', 1);
        CREATE TABLE nulls(k PRIMARY KEY, v); INSERT INTO nulls VALUES(NULL, 1), (NULL, 2), ('a', 3);
        CREATE TABLE alias(id INTEGER PRIMARY KEY DESC, v); INSERT INTO alias VALUES(1, 1), (2, 1);
        CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO auto(v) VALUES(1), (1);
        CREATE TABLE \"we\"\"ird ?1 [x]\"(\"sel ect\" TEXT PRIMARY KEY, \"a?2\", rowid); INSERT INTO \"we\"\"ird ?1 [x]\" VALUES('k', 1, 1);";
    let change = "UPDATE nocase SET v = 2 WHERE k = 'aBC'; UPDATE nocase SET k = 'ABC' WHERE k = 'abc'; DELETE FROM nocase WHERE k = 'X';
        UPDATE keyed SET k = 'ABC', v = 3 WHERE k = 'Abc'; DELETE FROM keyed WHERE k = 'x';
        UPDATE pair SET v = 5 WHERE a = 'a' AND b = 2; DELETE FROM pair WHERE a = 'b'; INSERT INTO pair VALUES('z', 9, 9);
        UPDATE none SET b = 7 WHERE rowid = 2; DELETE FROM none WHERE rowid = 1; INSERT INTO none VALUES(9, 9);
        UPDATE blobs SET v = 2 WHERE k IN (x'00ff', x'', 1, 2.5, '');
        UPDATE nulls SET v = 9 WHERE v = 1; DELETE FROM nulls WHERE v = 2; INSERT INTO nulls VALUES(NULL, 4);
        UPDATE alias SET v = 2 WHERE id = 2; DELETE FROM alias WHERE id = 1;
        UPDATE auto SET v = 2 WHERE id = 2; INSERT INTO auto(v) VALUES(3);
        UPDATE \"we\"\"ird ?1 [x]\" SET \"a?2\" = 2, rowid = 5;";
    carries(schema, change, &["nocase", "keyed", "pair", "none", "blobs", "nulls", "alias", "auto", "we\"ird ?1 [x]"]);
}

#[test]
fn integers_and_equal_floats_are_one_key() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(k PRIMARY KEY, v); INSERT INTO t VALUES(1, 'x')");
    a.sql("UPDATE t SET k = 1.0, v = 'y'").publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT k, v FROM t"), "1.0 'y'");
}

#[test]
fn a_hidden_rowid_that_is_taken_is_given_up_by_the_row_with_a_key() {
    let sql = "CREATE TABLE t(k TEXT PRIMARY KEY, v)";
    let (mut a, mut b, mut log) = pair(sql);
    b.app.execute_batch("INSERT INTO t(rowid, k, v) VALUES(1, 'here', 1)").unwrap();
    b.capture();
    a.sql("INSERT INTO t(rowid, k, v) VALUES(1, NULL, 'null')").publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT k, v FROM t ORDER BY v"), "'here' 1; NULL 'null'");
}

#[test]
fn generated_columns_are_computed_and_not_written() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a, g AS (a * 2) STORED, v AS (a + 1) VIRTUAL, b UNIQUE)";
    let (mut a, mut b, mut log) = pair(schema);
    a.sql("INSERT INTO t(id, a, b) VALUES(1, 5, 'x'), (2, 6, 'y')").publish(&mut log);
    a.sql("UPDATE t SET a = 7 WHERE id = 2").publish(&mut log);
    assert!(b.apply(&log).blocked.is_empty());
    assert_eq!(b.text("SELECT * FROM t"), "1 5 10 6 'x'; 2 7 14 8 'y'");
}

#[test]
fn a_missing_table_stops_its_shard_alone_until_it_is_created() {
    let mut a =
        Peer::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, x); CREATE TABLE late(id INTEGER PRIMARY KEY, u UNIQUE)");
    let mut b = Peer::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let mut log = Log::new();
    a.sql("INSERT INTO t VALUES(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8)").publish(&mut log);
    a.sql("INSERT INTO late VALUES(1, 1)").publish(&mut log);
    let report = b.apply(&log);
    assert_eq!(report.blocked.len(), 1);
    let stop = &report.blocked[0];
    assert_eq!(stop.shard, shard_of("late", None, SHARDS));
    assert!(matches!(&stop.cause, Cannot::NoTable { table } if table == "late"), "{stop:?}");
    assert!(stop.cause.remedy().contains("create table late"));
    assert_eq!(b.text("SELECT count(*) FROM t"), "8", "what came before, and the other shards, went on");
    assert_eq!(b.replica.state().position(stop.shard).unwrap(), StreamSeq(stop.seq.0 - 1));
    assert_eq!(b.apply(&log).blocked.len(), 1, "it is tried again, never skipped");
    b.sql("CREATE TABLE late(id INTEGER PRIMARY KEY, u UNIQUE)");
    assert!(b.apply(&log).blocked.is_empty());
    assert_eq!(b.text("SELECT * FROM late"), "1 1");
}

#[test]
fn missing_columns_and_other_keys_are_named() {
    let mut a = Peer::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, x, y); CREATE TABLE k(a TEXT PRIMARY KEY, b)");
    let mut b = Peer::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, X); CREATE TABLE k(a TEXT, b PRIMARY KEY)");
    let mut log = Log::new();
    a.sql("INSERT INTO t VALUES(1, 1, 1); INSERT INTO k VALUES('a', 'b')").publish(&mut log);
    let said: Vec<String> = b.apply(&log).blocked.iter().map(|stop| stop.cause.to_string()).collect();
    assert!(
        said.contains(&"cannot apply: table t has no column y here".to_owned()) || shard_collision(&said),
        "{said:?}"
    );
    b.sql("ALTER TABLE t ADD COLUMN y; DROP TABLE k; CREATE TABLE k(b, a TEXT PRIMARY KEY, more DEFAULT 'd')");
    assert!(b.apply(&log).blocked.is_empty());
    assert_eq!(b.text("SELECT * FROM t"), "1 1 1");
    assert_eq!(
        b.text("SELECT * FROM k"),
        "'b' 'a' 'd'",
        "columns go by name, and one that only we have takes its default"
    );
}

/// Both tables' rows may be in one shard, which then stops at the first.
fn shard_collision(said: &[String]) -> bool {
    said == ["cannot apply: table k has the key (b) here and (a) at the origin"]
}

#[test]
fn a_refused_row_and_an_unknown_collation_stop_with_sqlites_words() {
    let mut a = Peer::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let mut b = Peer::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, x NOT NULL)");
    let mut log = Log::new();
    a.sql("INSERT INTO t VALUES(1, NULL)").publish(&mut log);
    let report = b.apply(&log);
    assert!(
        matches!(&report.blocked[0].cause, Cannot::Refused { table, source } if table == "t" && source.to_string().contains("NOT NULL"))
    );
    b.sql("DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    assert!(b.apply(&log).blocked.is_empty());

    let mut c = Peer::new(3, "CREATE TABLE u(k TEXT PRIMARY KEY, x)");
    let mut d = Peer::new(4, "CREATE TABLE u(k TEXT, x)");
    d.app.create_collation("unicase", |a, b| a.cmp(b)).unwrap();
    d.sql("DROP TABLE u; CREATE TABLE u(k TEXT COLLATE unicase PRIMARY KEY, x)");
    let mut log = Log::new();
    c.sql("INSERT INTO u VALUES('a', 1)").publish(&mut log);
    let report = d.apply(&log);
    assert!(
        matches!(&report.blocked[0].cause, Cannot::Refused { source, .. } if source.to_string().contains("unicase")),
        "{report:?}"
    );
}

/// What another node sends as a definition must be one, and nothing is run that stands behind it. The node ended, at every start.
#[test]
fn a_definition_that_is_none_or_has_more_behind_it_stops_its_shard() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, v)";
    let steps = [
        ("table", "x", None, "CREATE TABLE x(a); DROP TABLE t"),
        ("table", "t", Some(schema), "CREATE TABLE t(id INTEGER PRIMARY KEY, v, w); DELETE FROM t"),
        ("table", "t", Some(schema), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); DELETE FROM t"),
        ("index", "i", None, "CREATE INDEX i ON t(v); DELETE FROM t"),
        ("index", "i", None, "CREATE UNIQUE INDEX i ON t(v); DELETE FROM t"),
        ("view", "w", None, "CREATE VIEW w AS SELECT 1; DROP TABLE t"),
        ("trigger", "r", None, "CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT 1; END; DROP TABLE t"),
        ("table", "f", None, "CREATE VIRTUAL TABLE f USING fts5(a); DROP TABLE t"),
        ("table", "x", None, "DELETE FROM t"),
        ("table", "x", None, "VACUUM INTO 'x.db'"),
        ("table", "t", Some(schema), "ATTACH 'x.db' AS x"),
        ("table", "t", Some("DELETE FROM t"), schema),
        ("index", "i", None, "CREATE TABLE i(a)"),
        ("view", "w", None, "SELECT 1"),
    ];
    for (kind, name, before, after) in steps {
        let mut b = Peer::new(2, schema);
        b.app.execute_batch("INSERT INTO t VALUES(1, 'one'), (2, 'two')").unwrap();
        let step = SchemaStep {
            kind: kind.to_owned(),
            name: name.to_owned(),
            name_before: None,
            table: if kind == "table" || kind == "view" { name } else { "t" }.to_owned(),
            before: before.map(str::to_owned),
            after: Some(after.to_owned()),
            renamed_columns: None,
            tables: None,
        };
        let mut log = Log::new();
        for (messages, shard) in log.0.iter_mut().zip(1..) {
            let header = Header {
                origin: Origin { node_id: 9, epoch: 1 },
                batch_no: 1,
                round_no: 1,
                part: 0,
                round: (1..=SHARDS).map(|shard| RoundPart { shard: ShardId(shard), message_count: 1 }).collect(),
                barrier: true,
            };
            let unit = Unit {
                tx: 1,
                part: 0,
                salts: [1; 8],
                frame: shard,
                repaired: false,
                seen: StreamSeq(0),
                schema: vec![step.clone()],
                tables: Vec::new(),
                changes: Vec::new(),
            };
            messages.push(Batch { header, body: Body::Units(vec![unit]) });
        }
        let report = b.apply(&log);
        assert!(
            report
                .blocked
                .iter()
                .any(|stop| matches!(&stop.cause, Cannot::SchemaRefused { .. } | Cannot::NoDefinition { .. })),
            "{after}: {report:?}"
        );
        assert_eq!(b.text("SELECT * FROM t"), "1 'one'; 2 'two'", "{after}");
        assert_eq!(b.text("SELECT count(*) FROM sqlite_schema"), "1", "{after}");
    }
}

#[test]
fn duplicates_are_dropped_and_a_missing_message_is_noticed() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, n UNIQUE)");
    for n in 1..=3 {
        a.sql(&format!("DELETE FROM t; INSERT INTO t VALUES(1, {n})")).publish(&mut log);
    }
    let shard = shard_of("t", None, SHARDS);
    let messages = &mut log.0[usize::from(shard.0 - 1)];
    let (first, second) = (messages[0].clone(), messages.remove(1));
    messages.push(first);
    let report = b.apply(&log);
    let wanted = Origin { node_id: 1, epoch: 1 };
    assert!(
        matches!(report.blocked[0].cause, Cannot::MissingBatch { shard: s, origin, wanted: 2, found: 3 } if s == shard && origin == wanted),
        "{report:?}"
    );
    assert_eq!(b.text("SELECT n FROM t"), "1");
    log.0[usize::from(shard.0 - 1)].insert(1, second);
    let report = b.apply(&log);
    assert!(report.blocked.is_empty());
    assert_eq!(report.counts.duplicates, 1);
    assert_eq!(b.text("SELECT n FROM t"), "3");
}

#[test]
fn a_message_of_ours_that_we_never_sealed_stops_with_the_reason() {
    let (mut a, _, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, n)");
    let mut twin = Peer::new(1, "CREATE TABLE t(id INTEGER PRIMARY KEY, n)");
    twin.sql("INSERT INTO t VALUES(1, 1)").publish(&mut log);
    assert!(matches!(a.apply(&log).blocked[0].cause, Cannot::NotOurs { batch_no: 1, .. }));
}

#[test]
fn a_value_larger_than_a_message_travels_in_pieces() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let limits = SealLimits { round_bytes_max: 1 << 20, message_bytes_max: 10_000, shard_messages_max: usize::MAX };
    a.sql("INSERT INTO t VALUES(1, randomblob(100000)), (2, 'small')").publish_with(&mut log, limits);
    assert!(log.0.iter().map(Vec::len).sum::<usize>() > 10);
    // One message at a time: pieces wait in the state.
    for message in b.arrived(&log) {
        assert!(b.fold(&[message]).unwrap().blocked.is_empty());
    }
    a.apply(&log);
    assert_eq!(a.seen["t"].1, b.seen["t"].1);
}

#[test]
fn internal_and_excluded_tables_stay_at_home() {
    let (mut a, mut b, mut log) =
        pair("CREATE TABLE private_t(id INTEGER PRIMARY KEY); CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT)");
    a.sql("INSERT INTO private_t VALUES(1); INSERT INTO auto DEFAULT VALUES; ANALYZE").publish(&mut log);
    b.apply(&log);
    assert_eq!(b.text("SELECT * FROM private_t"), "");
    assert_eq!(b.text("SELECT * FROM auto"), "1");
    assert_eq!(b.text("SELECT name FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'"), "");
}

#[test]
fn the_state_of_another_database_and_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let origin = Origin { node_id: 1, epoch: 1 };
    drop(State::open(&path, "one", origin).unwrap());
    let later = Origin { node_id: 1, epoch: 2 };
    assert_eq!(State::open(&path, "one", later).unwrap().origin(), origin, "the origin is made once");
    assert!(
        matches!(State::open(&path, "two", origin), Err(ApplyError::OtherDatabase { found, .. }) if found == "one")
    );
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(State::open(&path, "one", origin), Err(ApplyError::StateVersion { found: 99, .. })));
    let other = dir.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    assert!(matches!(State::open(&other, "one", origin), Err(ApplyError::NotState { .. })));
}

#[test]
fn applying_leaves_the_schema_and_the_settings_of_the_database_alone() {
    let (mut a, mut b, mut log) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE)");
    let schema = |peer: &Peer| {
        peer.text("SELECT type, name, rootpage, sql FROM sqlite_schema")
            + &peer.text("PRAGMA schema_version")
            + &peer.text("PRAGMA user_version")
    };
    let before = schema(&b);
    a.sql("INSERT INTO t VALUES(1, 1), (2, 2)").publish(&mut log);
    b.sql("INSERT INTO t VALUES(3, 1)");
    b.apply(&log);
    assert_eq!(schema(&b), before);
    assert_eq!(b.text("PRAGMA journal_mode"), "'wal'");
    let path = b.path.clone();
    let conn = open_applying_connection(&path).unwrap();
    for (pragma, wanted) in
        [("foreign_keys", 0), ("ignore_check_constraints", 1), ("wal_autocheckpoint", 0), ("synchronous", 1)]
    {
        assert_eq!(conn.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).unwrap(), wanted, "{pragma}");
    }
}

#[test]
fn a_local_transaction_that_fails_leaves_no_trace() {
    let (mut a, _, _) = pair("CREATE TABLE t(id INTEGER PRIMARY KEY, x)");
    let table = catalogue(&a.app).table("t").cloned().unwrap();
    let span = TxSpan {
        tx: 1,
        salts: Salts([3; 8]),
        frame_first: FrameNo(1),
        frame_last: FrameNo(2),
        repaired: false,
        checksum: woodchuck::format::Checksum::default(),
        page_count: 0,
    };
    let row = vec![Value::Integer(1), Value::Null];
    let change = |before_unknown| RowChange {
        table: Arc::clone(&table),
        op: Op::Insert,
        key: row_key(&table, &row, Some(1)),
        rowid: Some(1),
        before: None,
        after: Some(row.clone()),
        before_unknown,
    };
    let mut sink = a.replica.local_sink();
    sink.begin(&span).unwrap();
    sink.change(change(false)).unwrap();
    assert!(matches!(sink.change(change(true)), Err(ApplyError::BeforeUnknown { table }) if table == "t"));
    drop(sink);
    assert_eq!(a.replica.state().backlog().unwrap().units, 0);
    let mut sink = a.replica.local_sink();
    sink.begin(&span).unwrap();
    sink.change(change(false)).unwrap();
    drop(sink);
    assert_eq!(a.replica.state().backlog().unwrap().units, 0, "a sink that is dropped takes back what did not commit");
    assert_eq!(a.replica.state().capture_position().unwrap(), b"");
}

const UNIQUE_TOO: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, u); CREATE UNIQUE INDEX t_u ON t(u)";

/// The shards in which a node has sent something.
fn shards_of(log: &Log, node_id: u64) -> Vec<u16> {
    let has_some = |messages: &&Vec<_>| {
        messages.iter().any(|batch: &woodchuck::log::Batch| batch.header.origin.node_id == node_id)
    };
    (1..=SHARDS).zip(&log.0).filter(|(_, messages)| has_some(messages)).map(|(shard, _)| shard).collect()
}

/// Rows of a table that had UNIQUE beyond the key once travel by its name for good. Who began with a snapshot after the index was dropped did
/// not know, and sent them by key: changes of one row had two orders then, and nodes ended with different rows.
#[test]
fn who_begins_with_a_snapshot_sends_rows_as_everybody_does() {
    let (mut a, mut b, mut log) = pair(UNIQUE_TOO);
    a.sql("WITH RECURSIVE s(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM s WHERE n < 40) INSERT INTO t SELECT n, n FROM s");
    a.publish(&mut log).apply(&log);
    b.apply(&log);
    for peer in [&mut a, &mut b] {
        peer.sql("DROP INDEX t_u");
    }
    let snapshot = a.snapshot();
    let mut third = Peer::begin_with(3, &snapshot);
    let mut fourth = Peer::begin_with(4, &third.snapshot());
    let shard = shard_of("t", None, SHARDS).0;
    third.sql("UPDATE t SET u = -u").publish(&mut log);
    fourth.sql("UPDATE t SET u = u + 1000").publish(&mut log);
    for node_id in [1, 3, 4] {
        assert_eq!(shards_of(&log, node_id), [shard], "node {node_id}");
    }
    for peer in [&mut a, &mut b, &mut third, &mut fourth] {
        assert!(peer.apply(&log).blocked.is_empty());
        assert_eq!(peer.text("SELECT sum(u) FROM t"), "40820");
        assert_eq!(peer.seen["t"].1.len(), 40);
    }
}

#[test]
fn who_catches_up_from_a_snapshot_sends_rows_as_everybody_does() {
    let (mut a, mut b, mut log) = pair(UNIQUE_TOO);
    let mut busy = Peer::new(3, UNIQUE_TOO);
    a.sql("INSERT INTO t VALUES(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (8, 8)").publish(&mut log);
    a.apply(&log);
    for peer in [&mut a, &mut b, &mut busy] {
        peer.sql("DROP INDEX t_u");
    }
    let snapshot = a.snapshot();
    assert!(snapshot.routing["t"].by_name);
    b.catch_up(&snapshot);
    b.sql("UPDATE t SET u = -u").publish(&mut log);
    assert_eq!(shards_of(&log, 2), [shard_of("t", None, SHARDS).0]);
    a.apply(&log);
    b.apply(&log);
    assert_eq!(a.text("SELECT sum(u) FROM t"), "-36");
    assert_eq!(b.text("SELECT sum(u) FROM t"), "-36");
    // What is on its way has its shard already; it is sent again in the right one, and what follows comes behind it there.
    busy.sql("INSERT INTO t VALUES(9, 9)");
    busy.catch_up(&snapshot);
    assert_eq!(busy.text("SELECT count(*) FROM t"), "9");
    busy.sql("UPDATE t SET u = 90 WHERE id = 9").publish(&mut log);
    assert!(shards_of(&log, 3).contains(&shard_of("t", None, SHARDS).0));
    for peer in [&mut a, &mut b, &mut busy] {
        peer.apply(&log);
        assert_eq!(peer.text("SELECT u FROM t WHERE id = 9"), "90");
    }
}

/// Catching up looked at every table of the snapshot, and one that nobody had written to was taken to travel by key from then on. With a
/// UNIQUE index that it got before its first row, that row went another way than at the other nodes.
#[test]
fn a_table_without_a_row_is_not_met_by_catching_up() {
    let (mut a, _, mut log) =
        pair("CREATE TABLE t(id INTEGER PRIMARY KEY, u); CREATE TABLE other(id INTEGER PRIMARY KEY)");
    let mut away =
        Peer::new(2, "CREATE TABLE t(id INTEGER PRIMARY KEY, u); CREATE TABLE other(id INTEGER PRIMARY KEY)");
    a.sql("INSERT INTO other VALUES(1), (2), (3), (4), (5), (6), (7), (8)").publish(&mut log).apply(&log);
    away.catch_up(&a.snapshot());
    assert_eq!(away.text("SELECT count(*) FROM other"), "8");
    away.sql("CREATE UNIQUE INDEX t_u ON t(u)");
    away.sql("INSERT INTO t VALUES(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)").publish(&mut log);
    assert_eq!(shards_of(&log, 2), [shard_of("t", None, SHARDS).0]);
}

#[test]
fn a_snapshot_made_of_a_snapshot_tells_the_same() {
    let (mut a, _, mut log) = pair(UNIQUE_TOO);
    a.sql("CREATE TABLE plain(id INTEGER PRIMARY KEY, v); INSERT INTO plain VALUES(1, 1); INSERT INTO t VALUES(1, 1)");
    a.publish(&mut log).apply(&log);
    let first = a.snapshot();
    let by_name = TableRouting { by_name: true, moved_in: Vec::new() };
    assert_eq!(first.routing, [("plain".to_owned(), TableRouting::default()), ("t".to_owned(), by_name)].into());
    assert_eq!(Peer::begin_with(2, &first).snapshot().routing, first.routing);
}
