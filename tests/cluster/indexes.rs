//! Virtual tables: full-text search and R-Trees on a running cluster.

use crate::support::cluster::{Cluster, Node, Seed, wait_for};
use crate::support::random::Random;

/// Search words and what the index says where it is asked for itself.
fn answers(cluster: &Cluster, node: usize, table: &str, rowids: &str) -> Vec<String> {
    let words = ["alpha", "beta", "gamma", "delta", "beta OR gamma"];
    let ask = |word: &&str| {
        cluster.nodes[node].value(&format!(
            "SELECT coalesce(group_concat(id), '') FROM (SELECT {rowids} AS id FROM {table} WHERE {table} MATCH '{word}' ORDER BY 1)"
        ))
    };
    words.iter().map(ask).collect()
}

fn rows(node: &Node, sql: &str) -> Vec<String> {
    let conn = rusqlite::Connection::open(&node.db).unwrap();
    let mut found = conn.prepare(sql).unwrap();
    let count = found.column_count();
    let row = |row: &rusqlite::Row<'_>| {
        (0..count)
            .map(|i| row.get::<_, rusqlite::types::Value>(i).map(|value| format!("{value:?}")))
            .collect::<Result<Vec<_>, _>>()
    };
    found.query_map([], row).unwrap().map(|row| row.unwrap().join("|")).collect()
}

/// The index names a column that its table has lost. The application goes on, and so do the others.
#[test]
fn an_index_that_its_table_has_left_behind_stops_nobody() {
    let cluster = Cluster::start(
        2,
        "CREATE TABLE plants(id INTEGER PRIMARY KEY, species TEXT, words TEXT);
         INSERT INTO plants VALUES(1, 'oak', 'alpha'), (2, 'fir', 'beta');
         CREATE VIRTUAL TABLE found USING fts5(species, words, content='plants');
         CREATE TRIGGER plants_in AFTER INSERT ON plants BEGIN
             INSERT INTO found(rowid, species, words) VALUES(new.id, new.species, new.words); END;
         INSERT INTO found(found) VALUES('rebuild')",
    );
    cluster.nodes[0].sql(
        "BEGIN; CREATE TABLE made(id INTEGER PRIMARY KEY, kind TEXT, words TEXT); INSERT INTO made SELECT * FROM plants;
         DROP TABLE plants; ALTER TABLE made RENAME TO plants; COMMIT",
    );
    cluster.nodes[0].sql("INSERT INTO plants VALUES(3, 'elm', 'gamma')");
    wait_for("the row behind the change", || {
        match cluster.nodes[1].value("SELECT count(*) FROM plants WHERE id = 3").as_str() {
            "1" => Ok(()),
            count => Err(count.to_owned()),
        }
    });
    cluster.nodes[1].sql("INSERT INTO plants VALUES(4, 'yew', 'delta')");
    assert_eq!(cluster.settle()["plants"].len(), 4);
    assert!(cluster.nodes[1].log().contains("index found is not filled again"), "{}", cluster.nodes[1].log());
}

/// All nodes find the same, and no index says anything else than the rows do.
fn check_search(cluster: &Cluster, tables: &[&str]) {
    for table in tables {
        wait_for("equal answers", || {
            let all: Vec<_> = (0..cluster.nodes.len()).map(|node| answers(cluster, node, table, "rowid")).collect();
            if all.windows(2).all(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(format!("{table}: {all:#?}")) }
        });
        for node in &cluster.nodes {
            // 1: against the content, too. Not all of it is in this one.
            let against = u8::from(*table != "found");
            node.sql(&format!("INSERT INTO {table}({table}, rank) VALUES('integrity-check', {against})"));
        }
    }
}

fn text(random: &mut Random) -> String {
    let words = ["alpha", "beta", "gamma", "delta", "of", "the", "more"];
    (0..random.below(6) + 1).map(|_| words[random.below(7) as usize]).collect::<Vec<_>>().join(" ")
}

const TRIGGERS: &str = "
    CREATE TRIGGER notes_in AFTER INSERT ON notes WHEN new.hidden = 0 BEGIN
        INSERT INTO found(rowid, title, body) VALUES(new.id, new.title, new.body); END;
    CREATE TRIGGER notes_out AFTER DELETE ON notes WHEN old.hidden = 0 BEGIN
        INSERT INTO found(found, rowid, title, body) VALUES('delete', old.id, old.title, old.body); END;
    CREATE TRIGGER notes_changed AFTER UPDATE ON notes BEGIN
        INSERT INTO found(found, rowid, title, body) SELECT 'delete', old.id, old.title, old.body WHERE old.hidden = 0;
        INSERT INTO found(rowid, title, body) SELECT new.id, new.title, new.body WHERE new.hidden = 0;
        UPDATE counts SET n = n + 1 WHERE what = 'changes'; END;";

#[test]
fn search_finds_the_same_on_all_nodes_whatever_keeps_the_index() {
    let schema = format!(
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, title TEXT, body TEXT, hidden INT NOT NULL DEFAULT 0);
         CREATE TABLE counts(what TEXT PRIMARY KEY, n INT);
         INSERT INTO counts VALUES('changes', 0);
         CREATE VIRTUAL TABLE found USING fts5(title, body, content='notes', content_rowid='id');
         {TRIGGERS}
         CREATE TABLE pages(page_id INTEGER PRIMARY KEY, words TEXT);
         CREATE VIRTUAL TABLE untended USING fts5(words, content=pages, content_rowid=page_id);
         CREATE VIRTUAL TABLE older USING fts4(content='pages', words);
         CREATE VIRTUAL TABLE bare USING fts5(words, content='');
         CREATE TRIGGER bare_in AFTER INSERT ON pages BEGIN INSERT INTO bare(rowid, words) VALUES(new.page_id, new.words); END;
         CREATE TRIGGER bare_out AFTER DELETE ON pages BEGIN INSERT INTO bare(bare, rowid, words) VALUES('delete', old.page_id, old.words); END;
         CREATE TRIGGER bare_changed AFTER UPDATE ON pages BEGIN INSERT INTO bare(bare, rowid, words) VALUES('delete', old.page_id, old.words);
            INSERT INTO bare(rowid, words) VALUES(new.page_id, new.words); END;
         CREATE VIRTUAL TABLE mail USING fts5(subject, text, tag UNINDEXED);
         CREATE VIRTUAL TABLE \"old mail\" USING fts4(subject VARCHAR(20), text, tokenize=porter);
         INSERT INTO mail(subject, text, tag) VALUES('alpha', 'beta', 7)"
    );
    let cluster = Cluster::start(3, &schema);
    let seed = Seed::pick();
    let mut random = Random::new(seed.0);
    // Few are written, and with some seeds none before the first look.
    let mut rows_seen = 0;
    for turn in 0..60 {
        let node = &cluster.nodes[random.below(3) as usize];
        let mut sql = String::from("BEGIN;");
        for _ in 0..random.below(4) + 1 {
            let (id, a, b) = (random.below(20) + 1, text(&mut random), text(&mut random));
            sql += &match random.below(13) {
                0..3 => format!("INSERT OR IGNORE INTO notes(id, title, body, hidden) VALUES({id}, '{a}', '{b}', {});", id % 4 / 3),
                3 => format!("UPDATE notes SET body = '{b}' WHERE id = {id};"),
                4 => format!("UPDATE notes SET title = '{a}', hidden = 1 - hidden WHERE id = {id};"),
                5 => format!("DELETE FROM notes WHERE id = {id};"),
                // The application writes this index itself, as it does the rows.
                6 => format!(
                    "INSERT INTO untended(rowid, words) SELECT {id}, '{a}' WHERE NOT EXISTS (SELECT 1 FROM pages WHERE page_id = {id});
                     INSERT INTO older(docid, words) SELECT {id}, '{a}' WHERE NOT EXISTS (SELECT 1 FROM pages WHERE page_id = {id});
                     INSERT OR IGNORE INTO pages VALUES({id}, '{a}');"
                ),
                7 => format!(
                    "INSERT INTO untended(untended, rowid, words) SELECT 'delete', page_id, words FROM pages WHERE page_id = {id};
                     DELETE FROM older WHERE docid = (SELECT page_id FROM pages WHERE page_id = {id});
                     DELETE FROM pages WHERE page_id = {id};"
                ),
                8 => format!("INSERT INTO mail(subject, text, tag) VALUES('{a}', '{b}', {id});"),
                9 => format!("UPDATE mail SET text = '{b}' WHERE rowid = (SELECT max(rowid) FROM mail);"),
                10 => format!("DELETE FROM mail WHERE rowid = {id};"),
                11 => format!("INSERT OR REPLACE INTO \"old mail\"(docid, subject, text) VALUES({id}, '{a}', '{b}');"),
                _ => format!("DELETE FROM \"old mail\" WHERE docid = {id};"),
            };
        }
        node.sql(&(sql + "COMMIT"));
        if turn % 20 == 19 {
            cluster.settle();
            check_search(&cluster, &["found", "untended", "bare", "mail"]);
            let wanted = |word: &str| {
                format!(
                    "SELECT coalesce(group_concat(id), '') FROM (SELECT id FROM notes
                    WHERE hidden = 0 AND ' ' || title || ' ' || body || ' ' LIKE '% {word} %' ORDER BY 1)"
                )
            };
            let wanted = ["alpha", "beta", "gamma", "delta"].map(|word| cluster.nodes[0].value(&wanted(word)));
            assert_eq!(answers(&cluster, 0, "found", "rowid")[..4], wanted);
            for columns in
                ["rowid, quote(subject), quote(text), quote(tag) FROM mail", "docid, subject, text FROM \"old mail\""]
            {
                let all: Vec<_> =
                    cluster.nodes.iter().map(|node| rows(node, &format!("SELECT {columns} ORDER BY 1"))).collect();
                assert!(all[0] == all[1] && all[1] == all[2], "{columns}: {all:#?}");
                rows_seen += all[0].len();
            }
            for table in ["older", "\"old mail\""] {
                let all: Vec<_> = (0..3).map(|node| answers(&cluster, node, table, "docid")).collect();
                assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{table}: {all:#?}");
                let check = format!("INSERT INTO {table}({table}) VALUES('integrity-check')");
                cluster.nodes.iter().for_each(|node| node.sql(&check));
            }
        }
    }
    assert!(rows_seen > 0, "there are rows");
    assert_ne!(answers(&cluster, 0, "found", "rowid")[4], "''", "there is something to be found");
    assert_ne!(answers(&cluster, 1, "mail", "rowid")[4], "''", "there is something to be found");
}

/// The triggers that keep an index are made within the transaction that is the first to need them. When that one changed nothing, because what
/// arrived was what was there, it was rolled back and took them along, and no row that came later was found.
#[test]
fn an_index_is_kept_after_an_application_that_changed_nothing() {
    let schema = "CREATE TABLE notes(id INTEGER PRIMARY KEY, body TEXT);
        CREATE VIRTUAL TABLE found USING fts5(body, content='notes', content_rowid='id');";
    let mut cluster = Cluster::start(2, schema);
    cluster.nodes[1].stop();
    let same = "INSERT INTO notes VALUES(1, 'alpha'); INSERT INTO found(rowid, body) VALUES(1, 'alpha')";
    cluster.nodes.iter().for_each(|node| node.sql(same));
    wait_for("the row on the log", || match cluster.nodes[0].status()?.outbox_units {
        0 => Ok(()),
        units => Err(format!("{units} units wait")),
    });
    cluster.nodes[1].start();
    cluster.settle();
    cluster.nodes[0].sql("INSERT INTO notes VALUES(2, 'beta'); INSERT INTO found(rowid, body) VALUES(2, 'beta')");
    cluster.settle();
    check_search(&cluster, &["found"]);
    assert_eq!(answers(&cluster, 1, "found", "rowid")[..2], ["'1'", "'2'"]);
}

/// Nothing of this can be kept by what other nodes send: a module that only the application has, a tree that is written by itself, and one
/// whose trigger calls the application's function. All of it is left alone, and the rest goes on.
#[test]
fn trees_are_kept_by_triggers_and_what_cannot_be_kept_is_left_alone() {
    let cluster = Cluster::start(
        2,
        "CREATE TABLE place(id INTEGER PRIMARY KEY, name TEXT, x REAL, y REAL, shape BLOB);
         CREATE VIRTUAL TABLE near USING rtree(id, x0, x1, y0, y1);
         CREATE TRIGGER near_in AFTER INSERT ON place WHEN new.x IS NOT NULL BEGIN
            INSERT OR REPLACE INTO near VALUES(new.id, new.x, new.x, new.y, new.y); END;
         CREATE TRIGGER near_out AFTER DELETE ON place BEGIN DELETE FROM near WHERE id = old.id; END;
         CREATE TRIGGER near_moved AFTER UPDATE OF x, y ON place BEGIN
            INSERT OR REPLACE INTO near VALUES(new.id, new.x, new.x, new.y, new.y); END;
         CREATE VIRTUAL TABLE written USING rtree_i32(id, x0, x1);
         CREATE TABLE region(id INTEGER PRIMARY KEY, shape BLOB);
         CREATE VIRTUAL TABLE bounds USING rtree(id, x0, x1);
         CREATE TRIGGER bounds_in AFTER INSERT ON region BEGIN INSERT INTO bounds VALUES(new.id, ST_MinX(new.shape), ST_MaxX(new.shape)); END",
    );
    for id in 1..60 {
        let node = &cluster.nodes[id % 2];
        node.sql(&format!("INSERT INTO place(id, name, x, y) VALUES({id}, 'p{id}', {id}.25, {})", id * 7 % 31));
        if id % 5 == 0 {
            node.sql(&format!(
                "UPDATE place SET x = x + 100 WHERE id = {id}; UPDATE place SET name = 'q' WHERE id = {id} - 4"
            ));
        }
        if id % 9 == 0 {
            node.sql(&format!("DELETE FROM place WHERE id = {id}"));
        }
    }
    cluster.nodes[0].sql("INSERT INTO written VALUES(1, 5, 6)");
    cluster.nodes[0].sql("DROP TRIGGER bounds_in; INSERT INTO region VALUES(1, x'00')");
    cluster.settle();
    for node in &cluster.nodes {
        let wanted = rows(node, "SELECT id, x, x, y, y FROM place ORDER BY 1");
        assert_eq!(wanted.len(), 53);
        assert_eq!(rows(node, "SELECT * FROM near ORDER BY 1"), wanted);
        assert_eq!(node.value("SELECT rtreecheck('near')"), "'ok'");
    }
    assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM written"), "0");
    assert_eq!(cluster.nodes[1].value("SELECT count(*) FROM region"), "1");
    let log = cluster.nodes[1].log();
    assert!(log.contains("index bounds by trigger bounds_in (no such function: ST_MinX"), "{log}");
    assert!(log.contains("index written, which no trigger of a table writes to, is not kept in step"), "{log}");
}

#[test]
fn indexes_that_come_on_a_running_cluster_are_there_everywhere() {
    let mut cluster = Cluster::start(
        3,
        "CREATE TABLE notes(id INTEGER PRIMARY KEY, title TEXT, body TEXT, hidden INT NOT NULL DEFAULT 0);
         CREATE TABLE counts(what TEXT PRIMARY KEY, n INT);
         INSERT INTO notes(title, body) VALUES('alpha', 'beta'), ('gamma', 'delta')",
    );
    let settle = |cluster: &Cluster, tables: &[&str]| {
        cluster.settle();
        let schema =
            "SELECT type, name, sql FROM sqlite_schema WHERE name NOT GLOB '*_*' OR type = 'trigger' ORDER BY 1, 2";
        wait_for("equal schemas", || {
            let all: Vec<_> = cluster.nodes.iter().map(|node| rows(node, schema)).collect();
            if all[0] == all[1] && all[1] == all[2] { Ok(()) } else { Err(format!("{all:#?}")) }
        });
        cluster.settle();
        check_search(cluster, tables);
    };
    cluster.nodes[0].sql(&format!(
        "BEGIN; CREATE VIRTUAL TABLE found USING fts5(title, body, content='notes', content_rowid='id'); {TRIGGERS} COMMIT;
         INSERT INTO found(found) VALUES('rebuild')"
    ));
    settle(&cluster, &["found"]);
    cluster.nodes[1]
        .sql("INSERT INTO notes(title, body) VALUES('beta', 'gamma'); UPDATE notes SET title = 'delta' WHERE id = 1");
    settle(&cluster, &["found"]);
    assert_eq!(answers(&cluster, 2, "found", "rowid")[..4], ["''", "'1,3'", "'2,3'", "'1,2'"]);
    // With rows in the same transaction, and under another name later.
    cluster.nodes[1].sql("BEGIN; CREATE VIRTUAL TABLE mail USING fts5(subject, text); INSERT INTO mail VALUES('alpha', 'beta'), ('gamma', ''); COMMIT");
    settle(&cluster, &["found", "mail"]);
    cluster.nodes[2]
        .sql("INSERT INTO mail(rowid, subject, text) VALUES(7, 'delta', 'beta'); DELETE FROM mail WHERE rowid = 1");
    settle(&cluster, &["found", "mail"]);
    cluster.nodes[0].sql("ALTER TABLE mail RENAME TO letters; UPDATE letters SET text = 'alpha' WHERE rowid = 2");
    settle(&cluster, &["found", "letters"]);
    assert_eq!(rows(&cluster.nodes[1], "SELECT rowid, subject, text FROM letters ORDER BY 1").len(), 2);
    assert_eq!(answers(&cluster, 1, "letters", "rowid")[..4], ["'2'", "'7'", "'2'", "'7'"]);
    // A node that was away finds all of it.
    cluster.nodes[2].stop();
    cluster.nodes[0].sql("INSERT INTO letters VALUES('beta', 'beta'); DELETE FROM notes WHERE id = 2; INSERT INTO notes(title) VALUES('gamma')");
    cluster.nodes[2]
        .sql("UPDATE letters SET subject = 'gamma' WHERE rowid = 7; INSERT INTO notes(id, title) VALUES(50, 'alpha')");
    cluster.nodes[2].start();
    settle(&cluster, &["found", "letters"]);
    cluster.nodes[1].sql("DROP TRIGGER notes_in; DROP TRIGGER notes_out; DROP TRIGGER notes_changed; DROP TABLE found; DROP TABLE letters");
    settle(&cluster, &[]);
    for node in &cluster.nodes {
        assert!(!node.log().contains("stops"), "{}", node.log());
        assert_eq!(
            node.value("SELECT count(*) FROM sqlite_schema WHERE name GLOB 'found*' OR name GLOB 'letters*'"),
            "0"
        );
    }
}

/// A tokenizer that only the application has: no other program can write to such a table, or even read its declaration with SQLite.
#[test]
fn a_table_whose_tokenizer_is_the_applications_stops_its_shard_and_harms_nothing() {
    let cluster = Cluster::start(
        2,
        "CREATE VIRTUAL TABLE mail USING fts5(subject, tokenize = 'porter');
         CREATE TABLE notes(id INTEGER PRIMARY KEY, title TEXT);
         CREATE VIRTUAL TABLE found USING fts5(title, content = 'notes', content_rowid = 'id', tokenize = 'porter');
         CREATE TABLE other(id INTEGER PRIMARY KEY, v TEXT);
         PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET sql = replace(sql, 'porter', 'mine') WHERE name IN ('mail', 'found')",
    );
    let [a, b] = cluster.nodes.as_slice() else { panic!("two nodes") };
    a.sql("INSERT INTO other VALUES(1, 'one')");
    wait_for("the other table", || {
        (b.value("SELECT count(*) FROM other") == "1").then_some(()).ok_or("it is not there".to_owned())
    });
    a.sql("INSERT INTO notes VALUES(1, 'one')");
    wait_for("the reason", || {
        let log = b.log();
        if log.contains("no such tokenizer: mine") { Ok(()) } else { Err(log) }
    });
    // Other shards go on, and that does not make this one go on.
    for id in 2..20 {
        a.sql(&format!("INSERT INTO other VALUES({id}, 'more')"));
    }
    wait_for("rows of shards that did not stop", || {
        let status = b.status()?;
        let stopped = status.shards.values().filter(|shard| !shard.blocked.is_empty()).count();
        let there: i64 = b.value("SELECT count(*) FROM other").parse().unwrap();
        if there > 8 && stopped == 1 { Ok(()) } else { Err(format!("{there} rows, {status:?}")) }
    });
    assert_eq!(b.value("SELECT count(*) FROM notes"), "0", "{}", b.log());
    assert!(!b.log().contains("goes on"), "{}", b.log());
}
