//! Indexes, triggers and views that nodes make while another one gives their tables and columns other names.

use rusqlite::Connection;

use super::migrations::{About, Storm, columns, pick, run_storms, tables};

impl Storm {
    /// Makes an index, a trigger or a view, or drops one that this node has made.
    pub(super) fn make_object(&mut self, no: usize) {
        let app = &self.nodes[no].app;
        let all = tables(app);
        let Some(table) = pick(&mut self.random, &all).cloned() else { return };
        let Some(other) = pick(&mut self.random, &all).cloned() else { return };
        let columns = columns(&self.nodes[no].app, &table);
        let Some(column) = pick(&mut self.random, &columns).cloned() else { return };
        let Some(second) = pick(&mut self.random, &columns).cloned() else { return };
        self.objects += 1;
        let name = format!("o{}", self.objects);
        let sql = match self.random.below(10) {
            0 => format!("CREATE INDEX {name} ON {table}({column})"),
            1 => format!("CREATE INDEX {name} ON {table}({column}, lower({second})) WHERE {second} NOT NULL"),
            2 => format!("CREATE TRIGGER {name} AFTER INSERT ON {table} BEGIN DELETE FROM {other} WHERE id = new.{column}; END"),
            3 => format!(
                "CREATE TRIGGER {name} AFTER UPDATE OF {column} ON {table} WHEN old.{second} = 7 BEGIN
                 UPDATE {table} SET {second} = 8 WHERE id = new.id; END"
            ),
            4 => format!("CREATE VIEW {name} AS SELECT id, {column} AS c FROM {table}"),
            5 => format!("CREATE VIEW {name} AS SELECT a.id, b.id AS other FROM {table} AS a, {other} AS b WHERE a.{column} = b.id"),
            6 if self.unique => format!(
                "DELETE FROM {table} WHERE {column} NOT NULL AND id NOT IN (SELECT min(id) FROM {table} GROUP BY {column});
                 CREATE UNIQUE INDEX {name} ON {table}({column})"
            ),
            _ => {
                let made = objects(&self.nodes[no].app);
                let Some(object) = pick(&mut self.random, &made) else { return };
                format!("DROP {object}")
            }
        };
        let rows = if self.random.chance(30) { self.rows(no) } else { String::new() };
        self.execute(no, &format!("{sql}; {rows}"));
    }
}

/// What nodes have made, each as `index o1`.
fn objects(app: &Connection) -> Vec<String> {
    objects_named(app, "o%")
}

fn objects_named(app: &Connection, pattern: &str) -> Vec<String> {
    let find = "SELECT type || ' ' || name FROM sqlite_schema WHERE name LIKE ?1 ORDER BY name";
    let mut found = app.prepare(find).unwrap();
    found.query_map([pattern], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn indexes_triggers_and_views_follow_the_names_that_others_give_their_tables() {
    run_storms(About::Objects);
}

/// The step of the index no more than follows the column's name, and the table that it stands on is made anew on the other nodes.
#[test]
fn an_index_that_follows_a_name_comes_back_with_a_table_that_is_rebuilt() {
    for seed in 0..6 {
        let mut storm = Storm::new(seed, About::Objects);
        storm.execute(0, "CREATE INDEX i ON t0(a)");
        storm.settle();
        storm.execute(
            0,
            "ALTER TABLE t0 RENAME COLUMN a TO c; CREATE TABLE n(id INTEGER PRIMARY KEY, c TEXT NOT NULL DEFAULT '', b INT);
             INSERT INTO n SELECT id, coalesce(c, ''), b FROM t0; DROP TABLE t0; ALTER TABLE n RENAME TO t0; CREATE INDEX i ON t0(c)",
        );
        storm.settle();
        for node in &storm.nodes {
            assert_eq!(objects_named(&node.app, "i"), ["index i"], "SEED={seed}, node {}", node.no);
        }
    }
}

#[test]
fn unique_indexes_follow_the_names_that_others_give_their_tables() {
    run_storms(About::ObjectsUnique);
}
