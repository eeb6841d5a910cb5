//! What migrations of object-relational mappers do that plain changes of a schema do not, each as the SQL that comes of it.

use super::schema::settle;
use crate::support::cluster::Cluster;

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
