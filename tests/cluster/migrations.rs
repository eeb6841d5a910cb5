//! What migrations of object-relational mappers do that plain changes of a schema do not, each as the SQL that comes of it.

use rusqlite::Connection;
use rusqlite::types::Value;

use super::schema::settle;
use crate::support::cluster::{Cluster, wait_for, woodchuck};

const SCHEMA: &str = "CREATE TABLE \"author\"(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE \"book\"(id INTEGER PRIMARY KEY, title TEXT NOT NULL, isbn TEXT, author_id INT NOT NULL REFERENCES \"author\"(id));
    INSERT INTO author VALUES(1, 'Ann'), (2, 'Ben');
    INSERT INTO book VALUES(1, 'one', NULL, 1), (2, 'two', 'i2', 1), (3, 'three', 'i3', 2)";

const BOOKS: &str = "SELECT group_concat(concat_ws(' ', id, title, coalesce(isbn, '-')), '; ') FROM book";

/// Two renames of one migration gave each column the other's name, and no page with rows changed: the other nodes got nothing but the
/// statement, and kept each value under the name that it had.
#[test]
fn columns_that_swap_their_names_in_one_transaction_take_their_values_along() {
    let cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("INSERT INTO book VALUES(4, 'four', 'i4', 2)");
    settle(&cluster);
    cluster.nodes[0].sql(
        "BEGIN; ALTER TABLE book RENAME title TO other; ALTER TABLE book RENAME isbn TO title;
         ALTER TABLE book RENAME other TO isbn; COMMIT",
    );
    settle(&cluster);
    assert_eq!(cluster.nodes[1].value(BOOKS), "'1 - one; 2 i2 two; 3 i3 three; 4 i4 four'".replace("1 - one", "1 one"));
}

/// A name that a column gave up was another's in the same transaction: the one went to the wrong place, and the other was emptied.
#[test]
fn a_column_takes_the_name_that_another_gives_up_in_the_same_transaction() {
    let cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0]
        .sql("BEGIN; ALTER TABLE book RENAME title TO heading; ALTER TABLE book RENAME isbn TO title; COMMIT");
    settle(&cluster);
    let found = cluster.nodes[1].value("SELECT group_concat(concat_ws(' ', id, heading, title), '; ') FROM book");
    assert_eq!(found, "'1 one; 2 two i2; 3 three i3'");
}

/// ALTER TABLE adds such columns to an empty table only. It was tried on one, and then refused where rows were: applying stopped.
#[test]
fn a_column_that_only_a_rebuild_can_add_is_added_by_one() {
    let cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql(
        "BEGIN; CREATE TABLE \"new_book\"(id INTEGER PRIMARY KEY, title TEXT NOT NULL, isbn TEXT, author_id INT NOT NULL REFERENCES \"author\"(id), low TEXT GENERATED ALWAYS AS (lower(title)) STORED);
         INSERT INTO new_book(id, title, isbn, author_id) SELECT * FROM book; DROP TABLE book; ALTER TABLE new_book RENAME TO book;
         CREATE TABLE new_author(id INTEGER PRIMARY KEY, name TEXT NOT NULL, since DATETIME DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO new_author(id, name, since) SELECT id, name, '2001-02-03' FROM author; DROP TABLE author; ALTER TABLE new_author RENAME TO author; COMMIT",
    );
    settle(&cluster);
    assert_eq!(cluster.nodes[1].value("SELECT group_concat(low) FROM book"), "'one,two,three'");
    assert_eq!(cluster.nodes[1].value("SELECT group_concat(since) FROM author"), "'2001-02-03,2001-02-03'");
}

/// A rebuild that converts a column writes every row. One that another node deleted meanwhile came to life again.
#[test]
fn a_row_that_is_deleted_while_a_migration_rewrites_it_stays_gone() {
    let mut cluster = Cluster::start(2, SCHEMA);
    settle(&cluster);
    // What the migration makes of the row comes behind its end.
    cluster.nodes[0].stop();
    cluster.nodes[1].sql("DELETE FROM book WHERE id = 2; UPDATE book SET title = 'meanwhile' WHERE id = 3");
    cluster.nodes[0].sql(
        "BEGIN; CREATE TABLE new_book(id INTEGER PRIMARY KEY, title TEXT NOT NULL, isbn TEXT NOT NULL, author_id TEXT NOT NULL);
         INSERT INTO new_book SELECT id, title, coalesce(isbn, 'none'), author_id FROM book; DROP TABLE book; ALTER TABLE new_book RENAME TO book; COMMIT",
    );
    cluster.nodes[0].start();
    settle(&cluster);
    assert_eq!(cluster.nodes[0].value(BOOKS), "'1 one none; 3 meanwhile i3'");
    assert_eq!(cluster.nodes[0].value("SELECT group_concat(typeof(author_id)) FROM book"), "'text,text'");
}

/// Renaming a table changes what refers to it. The step of that began with the statement before the rename, and applying stopped.
#[test]
fn a_table_is_rebuilt_and_a_view_made_anew_in_the_transaction_that_renames_what_they_speak_of() {
    let cluster = Cluster::start(2, SCHEMA);
    cluster.nodes[0].sql("CREATE VIEW written AS SELECT author.name FROM author; CREATE TRIGGER kept AFTER DELETE ON author BEGIN DELETE FROM book WHERE author_id = old.id; END");
    settle(&cluster);
    cluster.nodes[0].sql(
        "BEGIN; ALTER TABLE author RENAME TO writer;
         CREATE TABLE new_book(id INTEGER PRIMARY KEY, heading TEXT NOT NULL, isbn TEXT, writer_id INT NOT NULL REFERENCES writer(id));
         INSERT INTO new_book SELECT * FROM book; DROP TRIGGER kept; DROP TABLE book; ALTER TABLE new_book RENAME TO book;
         DROP VIEW written; CREATE VIEW written AS SELECT name, count(*) FROM writer JOIN book ON writer.id = writer_id;
         CREATE TRIGGER kept AFTER DELETE ON writer BEGIN DELETE FROM book WHERE writer_id = old.id; END; COMMIT",
    );
    settle(&cluster);
    assert_eq!(cluster.nodes[1].value("SELECT group_concat(heading) FROM book"), "'one,two,three'");
}

/// What others wrote under the old name meanwhile was lost: a table with another name and other columns was taken for another one.
#[test]
fn a_table_that_is_renamed_and_given_columns_at_once_keeps_what_others_write() {
    for change in ["ALTER TABLE writer ADD COLUMN born TEXT", "ALTER TABLE writer DROP COLUMN age"] {
        let mut cluster = Cluster::start(
            2,
            "CREATE TABLE author(id INTEGER PRIMARY KEY, name TEXT, age INT); INSERT INTO author VALUES(1, 'Ann', 31)",
        );
        settle(&cluster);
        cluster.server.kill();
        cluster.nodes[1].sql("INSERT INTO author VALUES(2, 'Ben', 32); UPDATE author SET name = 'Anna' WHERE id = 1");
        cluster.nodes[0].sql(&format!("BEGIN; ALTER TABLE author RENAME TO writer; {change}; COMMIT"));
        cluster.server.restart();
        settle(&cluster);
        let found = cluster.nodes[0].value("SELECT group_concat(id || name) FROM writer");
        assert_eq!(found, "'1Anna,2Ben'", "{change}");
    }
}

/// A table that was renamed, with a column of it, by a transaction that also changed values, was taken for another one: what others wrote to it
/// meanwhile was in the conflict journal alone.
#[test]
fn a_table_that_is_renamed_while_its_values_change_keeps_what_others_write() {
    let schema = "CREATE TABLE author(id INTEGER PRIMARY KEY, name TEXT, mail TEXT, age INT);
        INSERT INTO author VALUES(1, 'Ann', 'ann@example.org', 31), (2, 'Ben', 'ben@example.org', 32), (3, 'Cleo', 'cleo@example.org', 33),
            (4, 'Dan', 'dan@example.org', 34), (5, 'Eve', 'eve@example.org', 35), (6, 'Fay', 'fay@example.org', 36)";
    let writes = "INSERT INTO author VALUES(10, 'Gus', 'gus@example.org', 37); UPDATE author SET mail = 'b@example.org' WHERE id = 2";
    let migrations = [
        "ALTER TABLE author RENAME TO writer; ALTER TABLE writer RENAME COLUMN age TO years; UPDATE writer SET years = years + 1",
        "ALTER TABLE author RENAME TO writer; ALTER TABLE writer DROP COLUMN age; ALTER TABLE writer ADD COLUMN born INT; DELETE FROM writer WHERE id = 4; UPDATE writer SET born = 1990",
        "CREATE TABLE writer(id INTEGER PRIMARY KEY, name TEXT NOT NULL, mail TEXT, years INT); INSERT INTO writer SELECT id, upper(name), mail, age FROM author; DROP TABLE author",
    ];
    for (migration, writes_first) in migrations.iter().flat_map(|migration| [(migration, false), (migration, true)]) {
        let mut cluster = meanwhile(schema, writes, migration, writes_first);
        for node in &cluster.nodes {
            let found = node.value("SELECT group_concat(name || mail, ' ') FROM writer WHERE id IN (2, 10)");
            let wanted = "'Benb@example.org Gusgus@example.org'";
            assert_eq!(found.replace("BEN", "Ben"), wanted, "{migration}, {writes_first}");
        }
        cluster.stop();
    }
}

/// The beginning of time is a time: an application that reads a column of times could not read the empty value that stood there.
#[test]
fn rows_that_come_without_a_time_that_cannot_be_null_have_one() {
    let mut cluster = Cluster::start(2, SCHEMA);
    settle(&cluster);
    cluster.server.kill();
    cluster.nodes[1].sql("INSERT INTO author VALUES(3, 'late')");
    cluster.nodes[0].sql(
        "BEGIN; CREATE TABLE new_author(id INTEGER PRIMARY KEY, name TEXT NOT NULL, since DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL);
         INSERT INTO new_author(id, name, since) SELECT id, name, '2001-02-03' FROM author; DROP TABLE author; ALTER TABLE new_author RENAME TO author; COMMIT",
    );
    cluster.server.restart();
    settle(&cluster);
    let found = cluster.nodes[1].value("SELECT group_concat(since) FROM author");
    assert_eq!(found, "'2001-02-03,2001-02-03,1970-01-01 00:00:00'");
}

/// SQLite has no way to alter one, so what comes of it is another definition under the name; the shards stopped.
#[test]
fn a_virtual_table_that_is_made_anew_in_one_transaction_keeps_its_rows() {
    let mut cluster = Cluster::start(
        2,
        "CREATE VIRTUAL TABLE docs USING fts5(a, b); INSERT INTO docs(rowid, a, b) VALUES(7, 'one word', 'y');
         CREATE VIRTUAL TABLE notes USING fts4(a); INSERT INTO notes VALUES('old');
         CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1); INSERT INTO boxes VALUES(1, 2, 3);
         CREATE TABLE page(id INTEGER PRIMARY KEY, text TEXT); INSERT INTO page VALUES(3, 'found here');
         CREATE VIRTUAL TABLE pages USING fts5(text, content='page', content_rowid='id'); INSERT INTO pages(pages) VALUES('rebuild')",
    );
    settle(&cluster);
    cluster.nodes[0].sql(
        "BEGIN; CREATE TEMP TABLE kept AS SELECT rowid AS r, a, b FROM docs; DROP TABLE docs; CREATE VIRTUAL TABLE docs USING fts5(a, c, b);
         INSERT INTO docs(rowid, a, b) SELECT r, a, b FROM kept; INSERT INTO docs(rowid, c) VALUES(9, 'word of c'); COMMIT;
         BEGIN; DROP TABLE notes; CREATE VIRTUAL TABLE notes USING fts4(a, b); INSERT INTO notes VALUES('new', 'both'); COMMIT;
         BEGIN; DROP TABLE boxes; CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1, y0, y1); COMMIT;
         BEGIN; DROP TABLE pages; CREATE VIRTUAL TABLE pages USING fts5(text, content='page', content_rowid='id', prefix='2'); INSERT INTO pages(pages) VALUES('rebuild'); COMMIT",
    );
    settle(&cluster);
    for node in &cluster.nodes {
        let found = |sql: &str| node.value(sql);
        assert_eq!(found("SELECT group_concat(rowid || ' ' || coalesce(b, c)) FROM docs('word')"), "'7 y,9 word of c'");
        assert_eq!(found("SELECT group_concat(a || ' ' || b) FROM notes WHERE notes MATCH 'new'"), "'new both'");
        assert_eq!(found("SELECT count(*) FROM notes"), "1");
        assert_eq!(found("SELECT group_concat(rowid) FROM pages('fo*')"), "'3'");
    }
    cluster.nodes[1].sql("INSERT INTO docs(a, c, b) VALUES('later word', 'c', 'd')");
    settle(&cluster);
    assert_eq!(cluster.nodes[0].value("SELECT count(*) FROM docs('word')"), "3");
    cluster.stop();
}

/// SQLite takes a name that differs in case alone for another table's.
#[test]
fn a_table_gets_its_name_in_another_case() {
    let mut cluster =
        Cluster::start(2, "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO users VALUES(1, 'a')");
    settle(&cluster);
    for (node, sql) in [
        (
            0,
            "BEGIN; CREATE TABLE tmp(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO tmp SELECT * FROM users; DROP TABLE users; ALTER TABLE tmp RENAME TO Users; COMMIT",
        ),
        (
            1,
            "BEGIN; ALTER TABLE users RENAME TO other; ALTER TABLE other RENAME TO USERS; COMMIT; INSERT INTO users VALUES(2, 'b')",
        ),
        (
            0,
            "BEGIN; ALTER TABLE users RENAME TO other; ALTER TABLE other RENAME TO users; ALTER TABLE users ADD COLUMN n INT; COMMIT",
        ),
    ] {
        cluster.nodes[node].sql(sql);
        settle(&cluster);
    }
    let found = cluster.nodes[1].value("SELECT group_concat(concat_ws(' ', id, name)) FROM users");
    assert_eq!(found, "'1 a,2 b'");
    cluster.stop();
}

/// A node that refused what is on the log would stop for good.
#[test]
fn what_others_write_while_a_table_becomes_strict_is_converted_by_all_alike() {
    let mut cluster = Cluster::start(
        3,
        "CREATE TABLE t(id INTEGER PRIMARY KEY, n, v); INSERT INTO t VALUES(1, 1, 'one'), (2, 2, 'two'), (3, 3, NULL);
         CREATE TABLE u(id INTEGER PRIMARY KEY, n, v); INSERT INTO u VALUES(1, 1, 1)",
    );
    settle(&cluster);
    cluster.server.kill();
    cluster.nodes[1].sql("UPDATE t SET n = 'seven' WHERE id = 1; INSERT INTO t VALUES(4, '12 apples', x'ff')");
    cluster.nodes[2].sql("UPDATE t SET v = NULL, n = 2.5 WHERE id = 2; INSERT INTO t VALUES(5, NULL, 1.5)");
    cluster.nodes[0].sql(
        "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, n INT, v TEXT NOT NULL DEFAULT 'none') STRICT;
         INSERT INTO n SELECT id, CAST(n AS INT), coalesce(v, 'none') FROM t; DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT",
    );
    cluster.server.restart();
    settle(&cluster);
    let found =
        cluster.nodes[1].value("SELECT group_concat(concat_ws(' ', id, coalesce(n, '-'), v), '; ' ORDER BY id) FROM t");
    assert_eq!(found, "'1 0 one; 2 2 none; 3 3 none; 4 12 \u{fffd}; 5 - 1.5'");
    // What comes behind the change is in the journal.
    cluster.nodes[1].stop();
    cluster.nodes[1].sql("UPDATE u SET n = 'many', v = 2");
    cluster.nodes[0].sql(
        "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, n INT, v INT) STRICT; INSERT INTO n SELECT * FROM u; DROP TABLE u;
         ALTER TABLE n RENAME TO u; COMMIT",
    );
    wait_for("the change of u", || {
        let is_strict = cluster.nodes[2].value("SELECT sql LIKE '%STRICT' FROM sqlite_schema WHERE name = 'u'");
        if is_strict == "1" { Ok(()) } else { Err(cluster.nodes[2].log()) }
    });
    cluster.nodes[1].start();
    settle(&cluster);
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT concat_ws(' ', n, v) FROM u"), "'0 2'");
    }
    for conflicts in [0, 2].map(|index: usize| cluster.nodes[index].conflicts()) {
        let of_u: Vec<_> = conflicts.iter().filter(|conflict| conflict["table"] == "u").collect();
        assert_eq!(of_u.len(), 1, "{conflicts:?}");
        assert_eq!(
            (&of_u[0]["kind"], &of_u[0]["lost"]["n"], &of_u[0]["lost_node"]),
            (&"type".into(), &"many".into(), &2.into())
        );
    }
    cluster.stop();
}

fn rows(connection: &Connection) -> Vec<Vec<Value>> {
    let mut found = connection.prepare("SELECT * FROM t ORDER BY id").unwrap();
    let columns = found.column_count();
    let row = |row: &rusqlite::Row<'_>| (0..columns).map(|column| row.get(column)).collect();
    found.query_map([], row).unwrap().map(Result::unwrap).collect()
}

/// What a transaction did to rows before it changed the schema is in the rows that come with the change.
#[test]
fn a_migration_in_one_transaction_leaves_everywhere_what_it_left_where_it_was_made() {
    const REBUILD: &str = "INSERT INTO n SELECT * FROM t; DROP TABLE t; ALTER TABLE n RENAME TO t";
    let unique = "CREATE UNIQUE INDEX t_u ON t(u)";
    let cases = [
        (
            "id INTEGER PRIMARY KEY, a TEXT",
            format!("ALTER TABLE t ADD COLUMN u TEXT NOT NULL DEFAULT ''; UPDATE t SET u = 'u' || id; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT UNIQUE",
            format!("ALTER TABLE t ADD COLUMN u TEXT NOT NULL DEFAULT ''; UPDATE t SET u = 'u' || id; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT",
            format!("ALTER TABLE t ADD COLUMN u TEXT DEFAULT 'x'; UPDATE t SET u = 'u' || id WHERE id > 1; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT, u TEXT DEFAULT 'same'",
            format!("UPDATE t SET u = 'u' || id WHERE id <> 7; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT UNIQUE, u TEXT DEFAULT 'same'",
            format!("DELETE FROM t WHERE id < 20; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT, u TEXT DEFAULT 'same'",
            format!("DELETE FROM t WHERE id > 1; INSERT INTO t VALUES(30, 'new', 'other'); {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT UNIQUE, u INT DEFAULT 0",
            format!("UPDATE t SET u = id; CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT, u INT UNIQUE); {REBUILD}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT UNIQUE, u INT DEFAULT 0",
            format!(
                "CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT, u INT UNIQUE); {}",
                REBUILD.replace("SELECT *", "SELECT id, a, id")
            ),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT NOT NULL, g INT DEFAULT 1, CONSTRAINT q UNIQUE(g, a)",
            format!(
                "CREATE TABLE n(id INTEGER PRIMARY KEY, g INT DEFAULT 1, b TEXT NOT NULL, CONSTRAINT q UNIQUE(g, b)); {}",
                REBUILD.replace("SELECT *", "SELECT id, g, a")
            ),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT",
            format!(
                "UPDATE t SET a = CASE WHEN id % 2 THEN 'X' || id ELSE 'x' || (id + 100) END; CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE UNIQUE); {REBUILD}"
            ),
        ),
        (
            "k TEXT, j INT DEFAULT 1, a TEXT, id INT, u INT DEFAULT 0, PRIMARY KEY(j, id)",
            format!("UPDATE t SET u = id; {unique}"),
        ),
        (
            "a TEXT, id INT PRIMARY KEY, u INT DEFAULT 0) WITHOUT ROWID; CREATE TABLE other(x INT",
            format!("UPDATE t SET u = id; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT UNIQUE, u TEXT DEFAULT 'same'",
            format!("UPDATE t SET u = 'u' || id; COMMIT; BEGIN IMMEDIATE; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT UNIQUE, u TEXT DEFAULT 'same'",
            format!("DELETE FROM t WHERE id > 1; COMMIT; BEGIN IMMEDIATE; {unique}"),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT, u INT",
            format!(
                "UPDATE t SET u = id; CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT, u INT NOT NULL UNIQUE); {REBUILD}"
            ),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT, u TEXT DEFAULT 'a7'",
            format!(
                "CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT, u INTEGER) STRICT; {}",
                REBUILD.replace("SELECT *", "SELECT id, a, CAST(substr(u, 2) AS INTEGER) + id")
            ),
        ),
        (
            "id INTEGER PRIMARY KEY, a TEXT, u TEXT DEFAULT 'a7'",
            format!(
                "UPDATE t SET u = id; CREATE TABLE n(id INTEGER PRIMARY KEY, a BLOB, u INT UNIQUE) STRICT; {}",
                REBUILD.replace("SELECT *", "SELECT id, CAST(a AS BLOB), u")
            ),
        ),
        (
            "id INT PRIMARY KEY, a, u DEFAULT x'31'",
            format!(
                "CREATE TABLE n(id INT PRIMARY KEY, a TEXT NOT NULL, u REAL NOT NULL) STRICT, WITHOUT ROWID; {}",
                REBUILD.replace("SELECT *", "SELECT id, a, id / 2.0")
            ),
        ),
    ];
    let mut cluster = Cluster::start(3, "CREATE TABLE counter(id INTEGER PRIMARY KEY, n INT)");
    for (no, (columns, migration)) in cases.iter().enumerate() {
        let all = "WITH RECURSIVE s(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM s WHERE i < 20)";
        cluster.nodes[0].sql(&format!(
            "DROP TABLE IF EXISTS t; DROP TABLE IF EXISTS other; CREATE TABLE t({columns});
             {all} INSERT INTO t(id, a) SELECT i, 'a' || i FROM s"
        ));
        settle(&cluster);
        let maker = &cluster.nodes[no % 3];
        let connection = Connection::open(&maker.db).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {migration}")).unwrap();
        let left = rows(&connection);
        connection.execute_batch("COMMIT").unwrap();
        drop(connection);
        settle(&cluster);
        let found = rows(&Connection::open(&maker.db).unwrap());
        assert_eq!(found, left, "case {no}: {columns}: {migration}");
    }
    for node in &cluster.nodes {
        assert_eq!(node.value("SELECT count(*) FROM counter"), "0");
        let conflicts = woodchuck(&["conflicts", "--format", "json", "--db-path"]).arg(&node.db).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&conflicts.stdout), "", "nothing was in anybody's way");
    }
    cluster.stop();
}

/// Node 0 migrates and node 1 writes before they hear of each other; the writes come on the log first, or the migration.
fn meanwhile(schema: &str, writes: &str, migration: &str, writes_first: bool) -> Cluster {
    let mut cluster = Cluster::start(2, schema);
    settle(&cluster);
    let late = usize::from(!writes_first);
    cluster.nodes[late].stop();
    cluster.nodes[0].sql(&format!("BEGIN; {migration}; COMMIT"));
    cluster.nodes[1].sql(writes);
    let early = &cluster.nodes[1 - late];
    let sent = early.ask("wait", &["--node", &early.id.to_string(), "--timeout", "60s"]);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    cluster.nodes[late].start();
    settle(&cluster);
    cluster
}

/// They were taken for a table that is dropped and another one that is made, and what others wrote to the old name meanwhile was lost.
#[test]
fn a_table_that_gets_another_name_in_a_transaction_that_does_more_keeps_what_others_write() {
    let schema = "CREATE TABLE author(id INTEGER PRIMARY KEY, name TEXT, age INT); INSERT INTO author VALUES(1, 'Ann Nobody', 31), (5, 'Eve Nobody', 35);
        CREATE TABLE book(id INTEGER PRIMARY KEY, author TEXT);
        CREATE TABLE book_author(id INTEGER PRIMARY KEY, book_id INT NOT NULL, author_id INT NOT NULL REFERENCES author(id));
        CREATE INDEX book_author_author ON book_author(author_id);
        WITH RECURSIVE s(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM s WHERE n < 12) INSERT INTO book_author SELECT n, n * 7, 1 FROM s";
    let writes = "INSERT INTO author VALUES(2, 'Ben', 32); UPDATE author SET name = 'Anna' WHERE id = 1; INSERT INTO book_author VALUES(20, 8, 2)";
    let migrations = [
        // Django's RenameModel with RenameField.
        "ALTER TABLE author RENAME TO writer; ALTER TABLE writer RENAME COLUMN name TO full_name; ALTER TABLE book_author RENAME TO book_writer",
        // TypeORM's renameTable with a new column, and Django's way with the table between two models.
        "CREATE TABLE writer(id INTEGER PRIMARY KEY, full_name TEXT, age INT, born TEXT DEFAULT 'x'); INSERT INTO writer(id, full_name, age) SELECT * FROM author;
         CREATE TABLE book_writer(id INTEGER PRIMARY KEY, book_id INT NOT NULL, writer_id INT NOT NULL REFERENCES writer(id));
         INSERT INTO book_writer SELECT * FROM book_author; DROP TABLE book_author; DROP TABLE author;
         CREATE INDEX book_writer_writer ON book_writer(writer_id)",
    ];
    for (migration, writes_first) in migrations.iter().flat_map(|migration| [(migration, false), (migration, true)]) {
        let mut cluster = meanwhile(schema, writes, migration, writes_first);
        for node in &cluster.nodes {
            let found = node.value("SELECT group_concat(id || full_name) FROM writer");
            assert_eq!(found, "'1Anna,2Ben,5Eve Nobody'", "{migration}, {writes_first}");
            assert_eq!(
                node.value("SELECT count(*) || ' ' || max(id) FROM book_writer"),
                "'13 20'",
                "{migration}, {writes_first}"
            );
            assert_eq!(node.conflicts().len(), 0, "{:?}", node.conflicts());
        }
        cluster.stop();
    }
}

/// A table that is dropped while another one comes is not renamed, however like each other they look: rows that others write to it would be in the
/// wrong table.
#[test]
fn a_table_that_looks_like_one_that_is_dropped_is_another_one() {
    // The columns and the rows of a table, those of the one that comes, and what is written to the first meanwhile.
    let pairs = [
        (
            "id INTEGER PRIMARY KEY, name",
            "(1, 'Active'), (2, 'Gone'), (3, 'X')",
            "id INTEGER PRIMARY KEY, title",
            "(1, 'Active')",
            "(9, 'new')",
        ),
        ("id INTEGER PRIMARY KEY", "(1), (2), (3)", "id INTEGER PRIMARY KEY, price", "(1, 5), (2, 6), (3, 7)", "(9)"),
        (
            "id INTEGER PRIMARY KEY, v",
            "(1, 'a long value'), (2, 'another')",
            "id INTEGER PRIMARY KEY",
            "(1), (2)",
            "(9, 'new')",
        ),
        (
            "id INTEGER PRIMARY KEY, user_id INT, group_id INT",
            "(1, 1, 1)",
            "id INTEGER PRIMARY KEY, user_id INT, role_id INT",
            "(1, 1, 1)",
            "(9, 9, 9)",
        ),
        (
            "id INTEGER PRIMARY KEY, parent, note",
            "(1, NULL, NULL)",
            "id INTEGER PRIMARY KEY, owner, expires",
            "(1, NULL, NULL)",
            "(9, 9, 9)",
        ),
        (
            "id INTEGER PRIMARY KEY, active, secret, x",
            "(1, 'yes', 'abcdefgh', 7)",
            "id INTEGER PRIMARY KEY, active",
            "(1, 'yes')",
            "(9, 9, 9, 9)",
        ),
        (
            "id INTEGER PRIMARY KEY, text",
            "(1, 'the same text'), (2, 'and another text')",
            "id INTEGER PRIMARY KEY, text",
            "(1, 'the same text'), (2, 'not the other text')",
            "(9, 9)",
        ),
        (
            "id INTEGER PRIMARY KEY, a INT",
            "(1, 1), (2, 2)",
            "id INTEGER PRIMARY KEY, b INT",
            "(1, 1), (2, 2)",
            "(9, 9)",
        ),
    ];
    let list = |of: &dyn Fn(usize) -> String| (0..pairs.len()).map(of).collect::<Vec<_>>().join("; ");
    let schema = list(&|n| format!("CREATE TABLE a{n}({}); INSERT INTO a{n} VALUES{}", pairs[n].0, pairs[n].1));
    let migration =
        list(&|n| format!("DROP TABLE a{n}; CREATE TABLE b{n}({}); INSERT INTO b{n} VALUES{}", pairs[n].2, pairs[n].3));
    let writes = list(&|n| format!("INSERT INTO a{n} VALUES{}", pairs[n].4));
    let mut cluster = meanwhile(&schema, &writes, &migration, true);
    for (n, pair) in pairs.iter().enumerate() {
        for node in &cluster.nodes {
            assert_eq!(node.value(&format!("SELECT count(*) FROM b{n} WHERE id = 9")), "0", "{pair:?}");
        }
    }
    // What had no place is in the journal.
    assert_eq!(cluster.nodes[0].conflicts().len(), pairs.len(), "{:?}", cluster.nodes[0].conflicts());
    cluster.stop();
}

/// Nothing is overridden in silence: what is written to a table or a column that is gone has no place, and nobody could find it again.
#[test]
fn what_is_written_to_what_is_gone_is_in_the_journal() {
    let schema = "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b TEXT); CREATE TABLE u(k TEXT PRIMARY KEY, v INT) WITHOUT ROWID;
        INSERT INTO t VALUES(1, 'a', 'b'); INSERT INTO u VALUES('one', 1), ('two', 2)";
    let writes = "UPDATE t SET a = 'other' WHERE id = 1; INSERT INTO t VALUES(2, NULL, 'kept'), (3, 'last', 'gone');
        DELETE FROM u WHERE k = 'one'; UPDATE u SET v = 22 WHERE k = 'two'";
    for writes_first in [false, true] {
        let mut cluster = meanwhile(schema, writes, "ALTER TABLE t DROP COLUMN b; DROP TABLE u", writes_first);
        // What comes first is on its way only where the change was made without knowing of it.
        for index in if writes_first { 0..1 } else { 0..2 } {
            let node = &cluster.nodes[index];
            let mut listed: Vec<String> = node
                .conflicts()
                .iter()
                .map(|line| {
                    format!(
                        "{} {} {} {} {}",
                        line["kind"], line["table"], line["kept"], line["lost"], line["lost_node"]
                    )
                })
                .collect();
            listed.sort();
            let expected = [
                r#""gone" "t" {"a":"last","b":null,"id":3} {"a":"last","b":"gone","id":3} 2"#,
                r#""gone" "t" {"a":null,"b":null,"id":2} {"a":null,"b":"kept","id":2} 2"#,
                r#""gone" "u" null {"k":"two","v":22} 2"#,
            ];
            assert_eq!(listed, expected, "node {index}, {writes_first}: {listed:#?}");
        }
        assert_eq!(cluster.nodes[0].value("SELECT group_concat(id || coalesce(a, '-')) FROM t"), "'1other,2-,3last'");
        cluster.stop();
    }
}

/// An application brings its schema up to date wherever it starts. Two nodes that did it before they heard of each other stopped each other: what
/// the one had made a second time was there no more under its name, or had been changed since.
#[test]
fn migrations_that_two_nodes_make_side_by_side_are_made_once() {
    let schema = "CREATE TABLE author(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO author VALUES(1, 'Ann');
        CREATE TABLE applied(name TEXT PRIMARY KEY)";
    let migrations = [
        "ALTER TABLE author ADD COLUMN age INT; CREATE TABLE book(id INTEGER PRIMARY KEY, title TEXT)",
        "ALTER TABLE author RENAME TO writer",
        "ALTER TABLE writer RENAME COLUMN age TO years; CREATE INDEX by_years ON writer(years)",
        "CREATE TABLE new_writer(id INTEGER PRIMARY KEY, name TEXT NOT NULL, years INT, born TEXT DEFAULT 'then');
         INSERT INTO new_writer(id, name, years) SELECT id, name, years FROM writer; DROP TABLE writer; ALTER TABLE new_writer RENAME TO writer",
        "DROP TABLE book",
    ];
    let mut cluster = Cluster::start(3, schema);
    settle(&cluster);
    cluster.server.kill();
    for (node, count) in [(0, 5), (1, 3)] {
        for (place, migration) in migrations.iter().enumerate().take(count) {
            cluster.nodes[node].sql(&format!("BEGIN; {migration}; INSERT INTO applied VALUES('{place}'); COMMIT"));
        }
    }
    cluster.nodes[0].sql("INSERT INTO writer(id, name, years) VALUES(2, 'Ben', 32)");
    cluster.nodes[1].sql("INSERT INTO writer VALUES(3, 'Cy', 33); UPDATE writer SET years = 31 WHERE id = 1");
    cluster.nodes[2].sql("INSERT INTO author VALUES(4, 'Di')");
    cluster.server.restart();
    settle(&cluster);
    for node in &cluster.nodes {
        let found = node.value(
            "SELECT group_concat(concat_ws(' ', id, name, coalesce(years, '-'), born), '; ' ORDER BY id) FROM writer",
        );
        assert_eq!(found, "'1 Ann 31 then; 2 Ben 32 then; 3 Cy 33 then; 4 Di - then'");
        assert_eq!(node.value("SELECT group_concat(name) FROM applied"), "'0,1,2,3,4'");
    }
    cluster.stop();
}

/// What rows hold that know nothing of a new column was not noted where the same transaction renamed the table, and a later default stood there on the node
/// that made both, and the first one on the others.
#[test]
fn rows_that_come_without_a_column_hold_the_same_everywhere_whatever_becomes_of_its_default() {
    let first = "ALTER TABLE t RENAME TO p; ALTER TABLE p ADD COLUMN e TEXT NOT NULL DEFAULT 'a'";
    let second = "CREATE TABLE np(id TEXT PRIMARY KEY, x TEXT, e TEXT NOT NULL DEFAULT 'b'); INSERT INTO np SELECT * FROM p; DROP TABLE p; ALTER TABLE np RENAME TO p";
    let schema = "CREATE TABLE t(id TEXT PRIMARY KEY, x TEXT); INSERT INTO t VALUES('one', 'x and more to tell')";
    for writes_first in [false, true] {
        let migration = format!("{first}; COMMIT; BEGIN; {second}");
        let mut cluster = meanwhile(schema, "INSERT INTO t VALUES('two', 'w')", &migration, writes_first);
        // Both are one change where the daemon was away.
        let expected = if writes_first { "'onea,twob'" } else { "'onea,twoa'" };
        for node in &cluster.nodes {
            assert_eq!(node.value("SELECT group_concat(id || e) FROM p"), expected, "{writes_first}");
        }
        cluster.stop();
    }
}

/// A column that came in the place of one that was dropped in the same transaction counted as that one under another name: what others wrote to the one
/// was in the other. Values tell them apart, where the change is made.
#[test]
fn a_column_that_comes_in_the_place_of_one_that_goes_is_another_one() {
    let text = "lorem ipsum dolor";
    let schema = format!(
        "CREATE TABLE dropped(id INTEGER PRIMARY KEY, note TEXT); CREATE TABLE rebuilt(id INTEGER PRIMARY KEY, note TEXT);
         CREATE TABLE renamed(id INTEGER PRIMARY KEY, pages TEXT); CREATE TABLE moved(id INTEGER PRIMARY KEY, a TEXT, b TEXT);
         CREATE TABLE flags(id INTEGER PRIMARY KEY, is_active INT NOT NULL DEFAULT 1);
         INSERT INTO dropped VALUES(1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'); INSERT INTO rebuilt SELECT * FROM dropped;
         INSERT INTO renamed VALUES(1, '1000'), (2, '2000'), (3, '3000');
         INSERT INTO moved VALUES(1, '{text} a', '{text} 1'), (2, '{text} b', '{text} 2'), (3, '{text} c', '{text} 3');
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) INSERT INTO flags SELECT i, i > 4 FROM n",
    );
    let mut cluster = Cluster::start(2, &schema);
    settle(&cluster);
    cluster.nodes[0].stop();
    cluster.nodes[1].sql(
        "UPDATE dropped SET note = 'meanwhile' WHERE id = 2; UPDATE rebuilt SET note = 'meanwhile' WHERE id = 2;
         INSERT INTO renamed VALUES(4, '4000'); UPDATE moved SET a = 'gone', b = 'stays' WHERE id = 2;
         UPDATE flags SET is_active = 0 WHERE id = 7; INSERT INTO flags VALUES(40, 0);",
    );
    cluster.nodes[0].sql(
        "BEGIN; ALTER TABLE dropped DROP COLUMN note; ALTER TABLE dropped ADD COLUMN state TEXT;
         CREATE TABLE new(id INTEGER PRIMARY KEY, state TEXT NOT NULL); INSERT INTO new SELECT id, 'made' FROM rebuilt;
         DROP TABLE rebuilt; ALTER TABLE new RENAME TO rebuilt;
         CREATE TABLE new(id INTEGER PRIMARY KEY, page_count INT); INSERT INTO new SELECT id, pages FROM renamed;
         DROP TABLE renamed; ALTER TABLE new RENAME TO renamed;
         ALTER TABLE moved RENAME COLUMN b TO body; ALTER TABLE moved DROP COLUMN a; ALTER TABLE moved ADD COLUMN c TEXT;
         ALTER TABLE flags DROP COLUMN is_active; ALTER TABLE flags ADD COLUMN is_shown INT NOT NULL DEFAULT 1; COMMIT",
    );
    cluster.nodes[0].start();
    settle(&cluster);
    let has = |table: &str, columns: &str, rows: &str| {
        let sql = format!("SELECT group_concat(concat_ws(' ', id, {columns}), '; ') FROM {table}");
        assert_eq!(cluster.nodes[0].value(&sql), format!("'{rows}'"), "{table}");
    };
    has("dropped", "coalesce(state, '-')", "1 -; 2 -; 3 -; 4 -");
    has("rebuilt", "state", "1 made; 2 made; 3 made; 4 made");
    has("renamed", "page_count, typeof(page_count)", "1 1000 integer; 2 2000 integer; 3 3000 integer; 4 4000 integer");
    has("moved", "body, coalesce(c, '-')", &format!("1 {text} 1 -; 2 stays -; 3 {text} 3 -"));
    assert_eq!(cluster.nodes[0].value("SELECT concat(count(*), ' ', sum(is_shown)) FROM flags"), "'21 21'");
    let journal =
        woodchuck(&["conflicts", "--format", "json", "--db-path"]).arg(&cluster.nodes[0].db).output().unwrap();
    let journal = String::from_utf8(journal.stdout).unwrap();
    for lost in ["\"note\":\"meanwhile\"", "\"a\":\"gone\"", "\"is_active\":0"] {
        assert!(journal.contains(lost), "{lost} is in the journal: {journal}");
    }
}
