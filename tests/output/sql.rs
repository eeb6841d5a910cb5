//! Scripts: run on a copy of the database as it was, they make it equal to the database as it is. SQLite is the oracle, three times: the
//! library, the `sqlite3` shell and Python's `executescript`, where the machine has them.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rusqlite::Connection;
use woodchuck::change::{Differ, TransactionError, TxSpan};
use woodchuck::cli::output::{SchemaObject, SqlScript};

use crate::support::oracle::{Rows, database};
use crate::support::pages::{Image, WalReader};
use crate::support::random::Random;

/// A database, a copy of it as it was, and the script that leads from the one to the other.
struct Scene {
    dir: tempfile::TempDir,
    connection: Connection,
    wal: WalReader,
    image: Image,
    differ: Differ,
    script: SqlScript<Vec<u8>>,
    tx: u64,
}

impl Scene {
    fn new(pragmas: &str, setup: &str) -> Scene {
        let dir = crate::support::folder();
        let path = dir.path().join("app.db");
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch(pragmas).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA foreign_keys=ON;")
            .unwrap();
        connection.execute_batch("CREATE TABLE woodchuck_first(a); DROP TABLE woodchuck_first;").unwrap();
        connection.execute_batch(setup).unwrap();
        connection.execute_batch(&format!("VACUUM INTO '{}'", dir.path().join("empty.db").display())).unwrap();
        let mut wal = WalReader::new(&path);
        let mut image = Image::default();
        for commit in wal.read() {
            image = commit.onto(&image).0;
        }
        let copy: Vec<u8> = image.pages.values().flat_map(|page| page.to_vec()).collect();
        std::fs::write(dir.path().join("copy.db"), copy).unwrap();
        let differ = Differ::open(&image).unwrap();
        let objects = differ.catalogue().rows().iter().filter_map(SchemaObject::of);
        let script = SqlScript::new(Vec::new(), differ.header().encoding, objects.collect());
        Scene { dir, connection, wal, image, differ, script, tx: 0 }
    }

    fn run(&mut self, sql: &str) {
        self.connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        self.follow();
    }

    fn follow(&mut self) {
        for commit in self.wal.read() {
            let (after, changed) = commit.onto(&self.image);
            self.tx += 1;
            let span = TxSpan {
                tx: self.tx,
                salts: commit.salts,
                frame_first: commit.first,
                frame_last: commit.last,
                repaired: false,
                checksum: woodchuck::format::Checksum::default(),
                page_count: 0,
            };
            match self.differ.transaction(&self.image, &after, &changed, &span, &mut self.script) {
                Ok(_) => {}
                Err(TransactionError::Diff(error)) => panic!("{error}"),
                Err(TransactionError::Sink(error)) => panic!("{error}"),
            }
            self.image = after;
        }
    }

    /// Replays the script with every runner and compares. Returns the script.
    fn check(self) -> String {
        let script = String::from_utf8(self.script.into_inner()).unwrap();
        let want = content(&self.connection);
        for runner in [library as fn(&Path, &str) -> Option<String>, shell, python] {
            let copy = self.dir.path().join("run.db");
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(self.dir.path().join(format!("run.db{suffix}")));
            }
            std::fs::copy(self.dir.path().join("copy.db"), &copy).unwrap();
            let Some(complaint) = runner(&copy, &script) else { continue };
            assert_eq!(complaint, "", "{script}");
            let got = content(&Connection::open(&copy).unwrap());
            assert_eq!(got.0, want.0, "{script}");
            for (table, rows) in &want.1 {
                assert_eq!(got.1.get(table), Some(rows), "{table}\n{script}");
            }
            assert_eq!(got.1.len(), want.1.len());
        }
        script
    }
}

type Content = (Vec<(String, String, String, Option<String>)>, BTreeMap<String, Rows>);

fn content(connection: &Connection) -> Content {
    connection.execute_batch("PRAGMA ignore_check_constraints=ON").unwrap();
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    // Only some builds have it, so scripts leave it out.
    let sql = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name<>'sqlite_stat4' ORDER BY 1, 2";
    let mut query = connection.prepare(sql).unwrap();
    let schema = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
    let schema = schema.map(Result::unwrap).collect();
    let tables = database(connection).into_iter().filter(|(name, _)| name != "sqlite_stat4");
    (schema, tables.map(|(name, (_, rows))| (name, rows)).collect())
}

/// Each runner returns what it complained about, or `None` if the machine does not have it.
fn library(copy: &Path, script: &str) -> Option<String> {
    let connection = Connection::open(copy).unwrap();
    Some(connection.execute_batch(script).map_or_else(|error| error.to_string(), |()| String::new()))
}

fn shell(copy: &Path, script: &str) -> Option<String> {
    pipe(Command::new("sqlite3").arg("-batch").arg(copy), script)
}

fn python(copy: &Path, script: &str) -> Option<String> {
    let program = "import sqlite3,sys\nsqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())";
    pipe(Command::new("python3").args(["-c", program]).arg(copy), script)
}

fn pipe(command: &mut Command, script: &str) -> Option<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let text = script.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn keys_of_every_kind() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE alias(id INTEGER PRIMARY KEY, v);
         CREATE TABLE texts(k TEXT COLLATE NOCASE PRIMARY KEY, v);
         CREATE TABLE pair(a, b, v, PRIMARY KEY(b COLLATE RTRIM, a)) WITHOUT ROWID;
         CREATE TABLE none(a, \"rowid\", v);
         CREATE TABLE desc_key(id INTEGER PRIMARY KEY DESC, v);
         CREATE TABLE mixed(k COLLATE NOCASE, v, PRIMARY KEY(k COLLATE BINARY));
         INSERT INTO alias VALUES(1,'a'),(2,'b'),(-9223372036854775808,'min'),(9223372036854775807,'max');
         INSERT INTO texts VALUES('One',1),('two',2),(NULL,3),(NULL,4);
         INSERT INTO pair VALUES(1,'x',1),(1,'y',2),(1.5,'y  ',3);
         INSERT INTO none VALUES(1,1,1),(1,1,1),(2,2,2);
         INSERT INTO desc_key VALUES(1,1),(2,2);
         INSERT INTO mixed VALUES('a',1),('A',2);",
    );
    scene.run("UPDATE alias SET v='z' WHERE id<0; UPDATE alias SET id=id+10 WHERE id IN (1,2); DELETE FROM alias WHERE v='max'");
    scene.run(
        "BEGIN; UPDATE alias SET id=-id WHERE id IN (11,12); UPDATE alias SET id=23+id WHERE id IN (-11,-12); COMMIT",
    );
    scene.run("UPDATE texts SET v=v+1; UPDATE texts SET k='ONE' WHERE k='one'; DELETE FROM texts WHERE v=4");
    scene.run("INSERT INTO texts VALUES(NULL,'n'); INSERT OR REPLACE INTO texts VALUES('TWO','r')");
    scene.run(
        "UPDATE pair SET v='u' WHERE a=1.5; UPDATE pair SET b='x ' WHERE b='x'; DELETE FROM pair WHERE b='y' AND a=1",
    );
    scene.run(
        "DELETE FROM none WHERE _rowid_=1; UPDATE none SET v='second' WHERE _rowid_=2; INSERT INTO none VALUES(9,9,9)",
    );
    scene.run("UPDATE desc_key SET id=id+10; UPDATE mixed SET v='binary' WHERE k='A' COLLATE BINARY");
    scene.run("BEGIN; CREATE TEMP TABLE x AS SELECT * FROM texts; DELETE FROM texts; INSERT INTO texts SELECT * FROM x; DROP TABLE temp.x; COMMIT");
    scene.check();
}

#[test]
fn values_of_every_kind_in_every_encoding() {
    for encoding in ["UTF-8", "UTF-16le", "UTF-16be"] {
        let mut scene = Scene::new(
            &format!("PRAGMA encoding='{encoding}'"),
            "CREATE TABLE t(a INTEGER PRIMARY KEY, v, r REAL, n NUMERIC)",
        );
        scene.run(
            "INSERT INTO t(v) VALUES(NULL),(0),(9007199254740993),(-9223372036854775808),(0.1),(1e300),(4.9e-324),(9e999),(-9e999),
             (0.30000000000000004),(''),('it''s \"quoted\"'),('line' || char(10) || 'end' || char(13,10) || '.quit' || char(10) || '/' || char(10)),
             ('nul' || char(0) || 'x'),(char(65534,65535,128512,1,127)),(x''),(x'00ff27'),(CAST(x'fffe41d8' AS TEXT)),('2024-01-01'),
             ('--no comment /* nor this'),(';'),('héé𝄞')",
        );
        scene
            .run("INSERT INTO t(r,n) VALUES(3.0, 3.0),(-0.0,'12'),('text','1e3'),(1e15,1e15),(123456789012345678,0.5)");
        scene.run("UPDATE t SET v=v||'x' WHERE typeof(v)='text'; UPDATE t SET r=7 WHERE r=3.0");
        scene.connection.execute("INSERT INTO t(v) VALUES(?1)", [-0.0_f64]).unwrap();
        scene.follow();
        scene.check();
    }
}

#[test]
fn triggers_and_foreign_keys_do_not_act_twice() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE parent(id INTEGER PRIMARY KEY, n DEFAULT 0);
         CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent(id) ON DELETE CASCADE, CHECK(id < 100));
         CREATE TABLE audit(id INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT);
         CREATE VIEW v AS SELECT * FROM child;
         CREATE TRIGGER t1 AFTER INSERT ON child BEGIN UPDATE parent SET n=n+1 WHERE id=new.p; INSERT INTO audit(what) VALUES('in;'); END;
         CREATE TRIGGER t2 AFTER DELETE ON child BEGIN INSERT INTO audit(what) VALUES('out'); END;
         CREATE TRIGGER t3 INSTEAD OF INSERT ON v BEGIN INSERT INTO child VALUES(new.id, new.p); END;
         CREATE TRIGGER t4 AFTER INSERT ON child BEGIN INSERT INTO audit(what) SELECT 'last ' || max(id) FROM audit; END;
         INSERT INTO parent(id) VALUES(1),(2);",
    );
    scene.run("INSERT INTO child VALUES(1,1),(2,1),(3,2)");
    scene.run("INSERT INTO v VALUES(4,2)");
    scene.run("DELETE FROM parent WHERE id=1");
    scene.run(
        "PRAGMA ignore_check_constraints=ON; INSERT INTO child VALUES(100,2); PRAGMA ignore_check_constraints=OFF",
    );
    scene.run("DROP TRIGGER t2; INSERT INTO child VALUES(5,2)");
    scene
        .run("BEGIN; DROP VIEW v; CREATE VIEW v AS SELECT id AS key FROM child; INSERT INTO child VALUES(6,2); COMMIT");
    let script = scene.check();
    assert!(script.contains("DROP TRIGGER \"t1\""));
}

#[test]
fn unique_values_can_be_swapped() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, u UNIQUE, v NOT NULL);
         CREATE UNIQUE INDEX e ON t(v+1) WHERE v > 10;
         CREATE TABLE k(a TEXT PRIMARY KEY, u UNIQUE) WITHOUT ROWID;
         CREATE TABLE h(u UNIQUE);
         INSERT INTO t VALUES(1,'a',11),(2,'b',12),(3,'c',13);
         INSERT INTO k VALUES('x',1),('y',2); INSERT INTO h VALUES(1),(2),(3);",
    );
    scene.run(
        "BEGIN; UPDATE t SET u='_' WHERE id=1; UPDATE t SET u='a' WHERE id=2; UPDATE t SET u='b' WHERE id=1; COMMIT",
    );
    scene.run("BEGIN; UPDATE t SET v=-v; UPDATE t SET v=24+v WHERE id<>2; UPDATE t SET v=12 WHERE id=2; COMMIT");
    scene.run("BEGIN; UPDATE k SET u=-u; UPDATE k SET u=3+u; COMMIT");
    scene.run("BEGIN; DELETE FROM t WHERE id=3; UPDATE t SET u='c' WHERE id=1; INSERT INTO t VALUES(9,'b',99); COMMIT");
    scene.run("UPDATE t SET u='only' WHERE id=1");
    scene.run("INSERT OR REPLACE INTO t VALUES(1,'a',7); UPDATE OR REPLACE h SET u=u+1 WHERE u=1");
    let script = scene.check();
    assert!(script.contains("UPDATE \"t\" SET \"u\"='only' WHERE \"id\"=1;"), "one update stays an update\n{script}");
}

#[test]
fn autoincrement_counters_end_exactly() {
    let mut scene = Scene::new("", "CREATE TABLE plain(a); CREATE TABLE x(id INTEGER PRIMARY KEY AUTOINCREMENT)");
    scene.run("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t(v) VALUES(1),(2)");
    scene.run("INSERT INTO t(v) VALUES(3)");
    scene.run("BEGIN; INSERT INTO t VALUES(100,'high'); DELETE FROM t WHERE id=100; UPDATE sqlite_sequence SET seq=50; COMMIT");
    scene.run("BEGIN; INSERT INTO t VALUES(200,'high'); UPDATE sqlite_sequence SET seq=50; COMMIT");
    scene.run("DELETE FROM sqlite_sequence; INSERT INTO t(v) VALUES('after')");
    scene.run("INSERT INTO x DEFAULT VALUES; ALTER TABLE t RENAME TO u");
    scene.run("INSERT INTO u(v) VALUES('renamed'); DROP TABLE x");
    scene.check();

    let mut scene = Scene::new("", "CREATE TABLE plain(a)");
    scene.run("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v)");
    scene.run("INSERT INTO t(v) VALUES(1)");
    scene.check();
}

#[test]
fn schema_changes_with_rows() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, b DEFAULT 5, g AS (id*2), s AS (id*3) STORED);
         CREATE TABLE kid(id INTEGER PRIMARY KEY, t REFERENCES t(id));
         CREATE INDEX ta ON t(a); CREATE INDEX tb ON t(b);
         CREATE VIEW v AS SELECT a FROM t;
         CREATE TRIGGER tr AFTER UPDATE ON t BEGIN SELECT 1; END;
         INSERT INTO t(id,a) VALUES(1,'x'),(2,'y'); INSERT INTO kid VALUES(1,1);",
    );
    scene.run("ALTER TABLE t ADD COLUMN c TEXT DEFAULT 'd''q'");
    scene.run("BEGIN; ALTER TABLE t ADD COLUMN e; ALTER TABLE t ADD COLUMN f NOT NULL DEFAULT 1.5; UPDATE t SET e=id, a='changed'; COMMIT");
    scene.run("ALTER TABLE t RENAME COLUMN a TO \"a b\"");
    scene.run("ALTER TABLE t RENAME TO \"t t\"");
    scene.run("INSERT INTO \"t t\"(id) VALUES(3)");
    scene.run("DROP INDEX tb; ALTER TABLE \"t t\" DROP COLUMN b");
    scene.run("BEGIN; CREATE TABLE new(x PRIMARY KEY, y) WITHOUT ROWID; INSERT INTO new VALUES(1,2); CREATE UNIQUE INDEX n ON new(y); COMMIT");
    scene.run("BEGIN; INSERT INTO new VALUES(3,4); DROP TABLE new; COMMIT");
    scene.run("CREATE TABLE copy AS SELECT * FROM \"t t\" -- made");
    scene.run("CREATE VIEW c AS SELECT 1 -- comment");
    scene.run("DROP TABLE kid; DROP VIEW v; DROP TRIGGER tr");
    let script = scene.check();
    assert!(script.contains("ALTER TABLE \"t\" RENAME COLUMN \"a\" TO \"a b\";"), "{script}");
    assert!(!script.contains("TEMP TABLE woodchuck_rows"), "no rebuild was needed\n{script}");
}

/// A column that came in the place of a dropped one got its values, although the rows tell that it is another one. What the rows cannot tell is
/// taken for a rename, and the rows that differ are written.
#[test]
fn a_column_in_the_place_of_a_dropped_one_has_its_own_values() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, h DEFAULT 0); INSERT INTO t(id, a) VALUES(1,'x'),(2,'y');
         CREATE TABLE u(id INTEGER PRIMARY KEY, a, b, c); INSERT INTO u VALUES(1,'p','q',7),(2,'r','s',8);
         CREATE TABLE n(id INTEGER PRIMARY KEY, v); INSERT INTO n VALUES(1,1),(2,2),(3,3),(4,4),(5,5),(6,6);
         CREATE TABLE g(id INTEGER PRIMARY KEY, v, w AS (v * 2)); INSERT INTO g(id, v) VALUES(1,1);",
    );
    scene.run("BEGIN; ALTER TABLE t DROP COLUMN h; ALTER TABLE t ADD COLUMN n TEXT NOT NULL DEFAULT 'abc'; COMMIT");
    scene.run("BEGIN; ALTER TABLE t DROP COLUMN n; ALTER TABLE t ADD COLUMN m; UPDATE t SET m=5 WHERE id=2; COMMIT");
    scene.run("BEGIN; ALTER TABLE u DROP COLUMN c; ALTER TABLE u DROP COLUMN b; ALTER TABLE u ADD COLUMN x; COMMIT");
    scene.run(
        "BEGIN; ALTER TABLE u RENAME TO w; ALTER TABLE w DROP COLUMN a; ALTER TABLE w ADD COLUMN y DEFAULT 3; COMMIT",
    );
    scene.run("BEGIN; ALTER TABLE n DROP COLUMN v; ALTER TABLE n ADD COLUMN w; COMMIT");
    scene.run(
        "BEGIN; ALTER TABLE n RENAME COLUMN w TO x; ALTER TABLE n ADD COLUMN w DEFAULT 1; UPDATE n SET x=id; COMMIT",
    );
    scene.run("ALTER TABLE g RENAME COLUMN w TO x");
    scene.check();
}

/// A column that cannot be NULL has no place in a table with rows, also where a table that was made anew would have got there by adding it.
#[test]
fn a_column_that_rows_are_in_the_way_of_is_not_added() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE \"t\"(id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES(1,'x'),(2,'y');
         CREATE TABLE \"s\"(k BLOB PRIMARY KEY, n INT) STRICT; INSERT INTO s VALUES(x'01',1);",
    );
    scene.run(
        "BEGIN; CREATE TABLE new(id INTEGER PRIMARY KEY, a, z NOT NULL); INSERT INTO new SELECT id, a, 1 FROM t; DROP TABLE t;
         ALTER TABLE new RENAME TO t; COMMIT",
    );
    scene.run(
        "BEGIN; CREATE TABLE new(k BLOB PRIMARY KEY, n INT, at TEXT DEFAULT CURRENT_TIMESTAMP) STRICT; INSERT INTO new SELECT k, n, 'x' FROM s;
         DROP TABLE s; ALTER TABLE new RENAME TO s; COMMIT",
    );
    scene.check();
}

/// A table dropped and made again under its name with another key was taken for the old one with other columns. Its old rows were put back
/// into the new table, where they violated NOT NULL and UNIQUE.
#[test]
fn a_table_made_anew_under_its_name_is_another_table() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX tb ON t(b);
         CREATE TRIGGER tt AFTER INSERT ON t BEGIN SELECT 1; END; INSERT INTO t VALUES(1,1),(2,1),(3,NULL);
         CREATE TABLE n(a, b); INSERT INTO n VALUES(1,1),(1,1),(NULL,2);",
    );
    scene.run(
        "BEGIN; DROP TABLE t; CREATE TABLE t(b INTEGER PRIMARY KEY, c NOT NULL UNIQUE); INSERT INTO t VALUES(1,'x');
         CREATE INDEX tb ON t(c); COMMIT",
    );
    scene.run("BEGIN; DROP TABLE n; CREATE TABLE n(a, b NOT NULL, c NOT NULL UNIQUE); INSERT INTO n VALUES(1,1,1),(2,2,2); COMMIT");
    scene.run(
        "BEGIN; DROP TABLE t; CREATE TABLE t(x TEXT, y, PRIMARY KEY(x, y)) WITHOUT ROWID; INSERT INTO t VALUES('p','q'); COMMIT",
    );
    scene.run("BEGIN; DROP TABLE t; CREATE TABLE w(x TEXT, y, PRIMARY KEY(x, y)) WITHOUT ROWID; INSERT INTO w VALUES('p','r'); COMMIT");
    scene.check();
}

/// `INTEGER PRIMARY KEY DESC` is no name for the rowid, and rows with NULL in such a key are told apart by theirs. The script looked for
/// them among rows that had been set aside without it.
#[test]
fn a_rebuilt_table_keeps_the_rowids_that_tell_rows_apart() {
    let mut scene =
        Scene::new("", "CREATE TABLE t(k TEXT PRIMARY KEY, v); INSERT INTO t VALUES(NULL,1),(NULL,2),('a',3);");
    scene.run(
        "BEGIN; DROP TABLE t; CREATE TABLE t(i INTEGER PRIMARY KEY DESC, w DEFAULT 4); INSERT INTO t(i) VALUES(NULL); COMMIT",
    );
    scene.check();
}

/// Two tables exchanged names, and an index went with its table's rename to the name of a dropped one. Both were made from the wrong table.
#[test]
fn names_that_wander_take_their_rows_and_indexes_along() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE a(x INTEGER PRIMARY KEY, y); CREATE TABLE b(p TEXT PRIMARY KEY, q) WITHOUT ROWID; CREATE TABLE c(z);
         CREATE INDEX ay ON a(y); INSERT INTO a VALUES(1,2); INSERT INTO b VALUES('k','v'); INSERT INTO c VALUES(1);",
    );
    scene.run("BEGIN; ALTER TABLE a RENAME TO t; ALTER TABLE b RENAME TO a; ALTER TABLE t RENAME TO b; UPDATE a SET q=1; COMMIT");
    scene.run("BEGIN; DROP TABLE c; ALTER TABLE b RENAME TO c; COMMIT");
    scene.check();
}

/// An index that came to lie where a dropped one had been was taken for the same one under another name, and a table likewise: its rename
/// would have changed the view, which speaks of the dropped table.
#[test]
fn a_table_that_takes_the_name_of_one_just_dropped_keeps_its_own_deletes() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE a(id INTEGER PRIMARY KEY, v); INSERT INTO a VALUES(1,'a'),(2,'a');
         CREATE TABLE b(id INTEGER PRIMARY KEY, v); INSERT INTO b VALUES(1,'b'),(2,'b'),(3,'b');
         CREATE TABLE c(x); INSERT INTO c VALUES(1);",
    );
    scene.run("BEGIN; DROP TABLE a; ALTER TABLE b RENAME TO a; DELETE FROM a WHERE id <> 2; CREATE TABLE b(z); INSERT INTO b VALUES(7); COMMIT");
    scene
        .run("BEGIN; DROP TABLE c; ALTER TABLE a RENAME TO c; DELETE FROM c; COMMIT; INSERT INTO c VALUES(2, 'again')");
    scene.check();
}

/// Dropping a table and making another of the same kind looks like a rename, which SQLite refuses while some trigger or view dangles.
#[test]
fn dangling_triggers_and_views_are_in_nobodys_way() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE gone(a); CREATE TABLE other(a, b); CREATE TABLE t(a INT PRIMARY KEY, b INTEGER, UNIQUE(b, a)) STRICT;
         CREATE TRIGGER dangling AFTER DELETE ON other BEGIN DELETE FROM gone WHERE a = OLD.a; END;
         CREATE VIEW lost AS SELECT * FROM gone; CREATE VIEW kept AS SELECT a FROM other;
         CREATE TRIGGER instead INSTEAD OF INSERT ON kept BEGIN INSERT INTO other VALUES(NEW.a, 1); END;",
    );
    scene.run("DROP TABLE gone");
    scene.run("DROP TABLE t; CREATE TABLE u(a INT PRIMARY KEY, b INTEGER, UNIQUE(b, a)) STRICT");
    scene.run("BEGIN; DROP TABLE u; CREATE TABLE w(a INT PRIMARY KEY, b INTEGER, UNIQUE(b, a)) STRICT; INSERT INTO kept VALUES(5); COMMIT");
    scene.run("PRAGMA legacy_alter_table=ON; ALTER TABLE w RENAME TO x; INSERT INTO x VALUES(1, 2); PRAGMA legacy_alter_table=OFF");
    scene.check();
}

#[test]
fn what_comes_to_lie_where_another_was_is_not_renamed() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(a); CREATE INDEX one ON t(a); CREATE TABLE u(a, b); INSERT INTO u VALUES(1,2); CREATE VIEW v AS SELECT * FROM u;",
    );
    scene.run("BEGIN; DROP INDEX one; CREATE INDEX two ON t(a); COMMIT");
    scene.run("CREATE TABLE x(a, b); CREATE VIEW xv AS SELECT * FROM x");
    scene.run("BEGIN; DROP VIEW xv; DROP TABLE x; CREATE TABLE \"y\"(a, b); CREATE VIEW xv AS SELECT * FROM x; INSERT INTO y VALUES(3,4); COMMIT");
    scene.run("BEGIN; DROP TABLE u; CREATE TABLE w(a, b); INSERT INTO w VALUES(1,3); COMMIT");
    scene.check();
}

/// Dropping a table or an index takes its statistics along, also when it is only made again. The application's stayed.
#[test]
fn statistics_stay_when_a_table_is_rebuilt() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE INDEX ta ON t(a); INSERT INTO t VALUES(1,1),(2,2); ANALYZE;",
    );
    scene.run(
        "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, a NOT NULL); INSERT INTO n SELECT * FROM t; DROP TABLE t;
         ALTER TABLE n RENAME TO t; CREATE INDEX ta ON t(a); INSERT INTO sqlite_stat1 VALUES('t','ta','2 1'); COMMIT",
    );
    scene.check();
}

/// VACUUM leaves `sqlite_sequence` out when nothing counts in it any more. The script tried to drop it, which SQLite does not allow.
#[test]
fn a_vacuum_that_forgets_the_counters_is_repeated_by_emptying_them() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t(v) VALUES(1); CREATE TABLE u(x);",
    );
    scene.run("DROP TABLE t");
    scene.run("VACUUM");
    scene.run("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t(v) VALUES(7)");
    scene.check();
}

#[test]
fn tables_rebuilt_by_sqlites_recipe() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE INDEX ti ON t(b);
         CREATE TABLE n(a, b); CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v);
         CREATE TRIGGER tt AFTER INSERT ON t BEGIN DELETE FROM n; END;
         CREATE VIEW v AS SELECT * FROM t;
         INSERT INTO t VALUES(1,'x',1),(2,'y',2); INSERT INTO n VALUES(1,1),(1,1),(2,2); DELETE FROM n WHERE rowid=1;
         INSERT INTO counted(v) VALUES(1),(2); DELETE FROM counted WHERE id=2;",
    );
    scene.run(
        "PRAGMA foreign_keys=OFF; PRAGMA legacy_alter_table=ON; BEGIN;
         CREATE TABLE x(id INTEGER PRIMARY KEY, a TEXT CHECK(length(a)>0), b); INSERT INTO x SELECT * FROM t; DROP TABLE t;
         ALTER TABLE x RENAME TO t; CREATE INDEX ti ON t(b); CREATE TRIGGER tt AFTER INSERT ON t BEGIN DELETE FROM n; END;
         COMMIT; PRAGMA legacy_alter_table=OFF",
    );
    scene.run("INSERT INTO t VALUES(3,'z',3)");
    scene.run(
        "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql='CREATE TABLE n(a, b, CHECK(a>0))' WHERE name='n';
         UPDATE sqlite_schema SET sql='CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v INT)' WHERE name='counted';
         PRAGMA writable_schema=RESET",
    );
    scene.run("INSERT INTO n VALUES(5,5); INSERT INTO counted(v) VALUES(3)");
    scene.run("BEGIN; DROP TABLE n; CREATE TABLE n(other PRIMARY KEY, thing); INSERT INTO n VALUES(1,2); COMMIT");
    let script = scene.check();
    assert!(script.contains("TEMP TABLE woodchuck_rows_0"), "{script}");
}

/// Rows that hold what is taken for granted of a new column are not given out, so the script has to say it.
#[test]
fn a_rebuilt_table_has_in_its_new_columns_what_the_application_put_there() {
    let new = [
        ("x DEFAULT (1+1)", "NULL"),
        ("x INT NOT NULL", "0"),
        ("x DEFAULT (current_timestamp)", "NULL"),
        ("x TEXT NOT NULL DEFAULT 'q'", "'q'"),
        ("x INT NOT NULL DEFAULT (1+1)", "CASE WHEN id=2 THEN 7 ELSE 0 END"),
        ("x DATETIME NOT NULL DEFAULT (current_timestamp)", "'1970-01-01 00:00:00'"),
        ("x NOT NULL", "''"),
        ("x REAL NOT NULL", "CASE WHEN id<3 THEN 0.0 ELSE 0.5 END"),
        ("x DEFAULT (random())", "NULL"),
        ("x INT NOT NULL CHECK(x > 0), y AS (x+1)", "5"),
    ];
    let tables = (0..new.len()).map(|no| {
        format!("CREATE TABLE t{no}(id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t{no} VALUES(1,'a'),(2,'b'),(3,'c'),(4,'d');")
    });
    let mut scene = Scene::new("", &tables.collect::<String>());
    for (no, (column, value)) in new.iter().enumerate() {
        scene.run(&format!(
            "BEGIN; CREATE TABLE n(id INTEGER PRIMARY KEY, v TEXT, {column}); INSERT INTO n SELECT id, v, {value} FROM t{no};
             DROP TABLE t{no}; ALTER TABLE n RENAME TO t{no}; COMMIT"
        ));
    }
    scene.check();
}

#[test]
fn rows_that_change_while_their_table_gets_stricter() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); INSERT INTO t VALUES(1,NULL,'x'),(2,'y','x'),(3,'z','other'),(4,NULL,'gone');
         CREATE TABLE k(k TEXT PRIMARY KEY COLLATE NOCASE, v); INSERT INTO k VALUES('A',NULL),('b',NULL),(NULL,1),('c',2);
         CREATE TABLE h(v); INSERT INTO h VALUES(NULL),(1),(1),(NULL); CREATE INDEX hv ON h(v);",
    );
    scene.run(
        "PRAGMA foreign_keys=OFF; BEGIN;
         CREATE TABLE new__t(id INTEGER PRIMARY KEY, a TEXT NOT NULL, b UNIQUE, extra DEFAULT 'e');
         INSERT INTO new__t SELECT id, coalesce(a,'none'), CASE id WHEN 1 THEN 'one' ELSE b END, id FROM t WHERE id<>4;
         DROP TABLE t; ALTER TABLE new__t RENAME TO t; COMMIT",
    );
    scene.run(
        "BEGIN; CREATE TABLE x(k TEXT PRIMARY KEY COLLATE NOCASE, v NOT NULL); INSERT INTO x SELECT lower(k), coalesce(v,0) FROM k;
         DROP TABLE k; ALTER TABLE x RENAME TO k; INSERT INTO k VALUES('new',9); COMMIT",
    );
    scene.run(
        "BEGIN; CREATE TABLE x(v NOT NULL); INSERT INTO x(rowid, v) SELECT rowid, coalesce(v,-rowid) FROM h;
         DROP TABLE h; ALTER TABLE x RENAME TO h; CREATE INDEX hv ON h(v); COMMIT",
    );
    scene.check();
}

#[test]
fn full_text_tables_and_statistics() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE INDEX tv ON t(v); INSERT INTO t VALUES(1,1),(2,2)",
    );
    scene.run("CREATE VIRTUAL TABLE f USING fts5(body)");
    scene.run("INSERT INTO f VALUES('one two'),('three')");
    scene.run("CREATE VIRTUAL TABLE gone USING rtree(id, a, b); INSERT INTO gone VALUES(1,2,3)");
    scene.run("DELETE FROM f WHERE rowid=1; DROP TABLE gone");
    scene.run("ANALYZE");
    scene.run("INSERT INTO t VALUES(3,3); ANALYZE");
    scene.check();
}

/// The rows of a table that SQL cannot name ended the script, and so everything behind them.
#[test]
fn rows_that_sql_cannot_name_are_left_out_and_the_others_are_there() {
    let mut scene = Scene::new("", "CREATE TABLE h(rowid, _rowid_, oid); CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    scene.run("INSERT INTO h VALUES(1,2,3); INSERT INTO t VALUES(1,'a')");
    scene.run("BEGIN; UPDATE h SET oid=4; INSERT INTO t VALUES(2,'b'); COMMIT");
    scene.run("DELETE FROM h; INSERT INTO t VALUES(3,'c')");
    assert!(!scene.script.is_whole());
    let script = scene.check();
    assert_eq!(script.matches("-- table h hides the rowid").count(), 1, "{script}");
}

/// The shadow tables of a virtual table that got another name were renamed beside it, and of one that was made anew they were rebuilt: the script
/// ended at a table that was there already.
#[test]
fn virtual_tables_are_renamed_and_made_anew_with_their_shadows() {
    for (module, first, second, other) in [
        ("fts5(x)", "(x) VALUES('one two'),('three')", "(x) VALUES('four')", "fts5(x, y)"),
        ("fts5(x, content='')", "(rowid, x) VALUES(1,'one two')", "(rowid, x) VALUES(2,'four')", "fts5(y, prefix='2')"),
        ("fts4(x)", "(x) VALUES('one two'),('three')", "(x) VALUES('four')", "fts4(x, y)"),
        ("fts3(x)", "(x) VALUES('one two'),('three')", "(x) VALUES('four')", "fts4(z)"),
        ("rtree(x, a, b)", "(x, a, b) VALUES(1,2,3),(2,5,6)", "(x, a, b) VALUES(7,8,9)", "rtree(x, a, b, c, d)"),
    ] {
        let mut scene = Scene::new(
            "",
            &format!(
                "CREATE VIRTUAL TABLE f USING {module}; INSERT INTO f{first}; CREATE TABLE f_own(a); INSERT INTO f_own VALUES(1);
                 CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TRIGGER tf AFTER INSERT ON t BEGIN INSERT INTO f{second}; END;"
            ),
        );
        scene.run("DROP TRIGGER tf; ALTER TABLE f RENAME TO g");
        scene.run(&format!("BEGIN; ALTER TABLE g RENAME TO \"h h\"; INSERT INTO \"h h\"{second}; COMMIT"));
        scene.run(&format!("INSERT INTO \"h h\"{second}").replace("(2,", "(3,").replace("(7,", "(10,"));
        // Dropped and made again: as it was, with other columns, under another name, as an ordinary table and back.
        scene.run(&format!(
            "BEGIN; DROP TABLE \"h h\"; CREATE VIRTUAL TABLE \"h h\" USING {module}; INSERT INTO \"h h\"{first}; COMMIT"
        ));
        scene.run(&format!("BEGIN; DROP TABLE \"h h\"; CREATE VIRTUAL TABLE \"h h\" USING {other}; COMMIT"));
        scene.run(&format!(
            "BEGIN; DROP TABLE \"h h\"; CREATE VIRTUAL TABLE k USING {module}; INSERT INTO k{first}; COMMIT"
        ));
        scene.run(&format!("BEGIN; DROP TABLE k; CREATE VIRTUAL TABLE l USING {module}; INSERT INTO l{first}; COMMIT"));
        scene.run("BEGIN; DROP TABLE l; CREATE TABLE l(a); INSERT INTO l VALUES(5); COMMIT");
        scene.run(&format!(
            "BEGIN; DROP TABLE l; CREATE VIRTUAL TABLE l USING {module}; INSERT INTO l{first}; DROP TABLE f_own; COMMIT"
        ));
        scene.run("BEGIN; DROP TABLE t; ALTER TABLE l RENAME TO t; COMMIT");
        scene.check();
    }
}

#[test]
fn odd_names_are_quoted() {
    let mut scene = Scene::new(
        "",
        "CREATE TABLE \"select\"(\"from\" INTEGER PRIMARY KEY, \"a\"\"b\", [c d], `😀` UNIQUE); CREATE TABLE 'it''s'(x);
         CREATE TRIGGER \"tr\"\"g\" AFTER INSERT ON \"select\" BEGIN DELETE FROM \"it's\"; END; INSERT INTO \"it's\" VALUES(1)",
    );
    scene.run("INSERT INTO \"it's\" VALUES(2); ALTER TABLE \"select\" RENAME COLUMN [c d] TO \"e\"\"f\"");
    scene.run("INSERT INTO \"select\" VALUES(1,2,3,4),(5,6,7,8)");
    scene.run("DROP TRIGGER \"tr\"\"g\"; ALTER TABLE \"it's\" RENAME TO \"x\"\"y\"");
    scene.check();
}

/// Random transactions over tables with every kind of key, UNIQUE and triggers; the end is compared.
#[test]
fn random_workloads_replay() {
    let seeds = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).map_or(0..12, |seed: u64| seed..seed + 1);
    for seed in seeds {
        println!("SEED={seed}");
        let mut random = Random::new(seed);
        let encoding = *random.pick(&["UTF-8", "UTF-16le"]);
        let ends = ["COMMIT", "ROLLBACK"];
        let mut scene = Scene::new(
            &format!("PRAGMA page_size={}; PRAGMA encoding='{encoding}'", random.pick(&[512, 4096])),
            "CREATE TABLE a(id INTEGER PRIMARY KEY AUTOINCREMENT, u UNIQUE, v REAL);
             CREATE TABLE b(k TEXT PRIMARY KEY COLLATE NOCASE, u, v, UNIQUE(u, v));
             CREATE TABLE c(k, j, v, PRIMARY KEY(k, j)) WITHOUT ROWID;
             CREATE TABLE d(k, v); CREATE INDEX dv ON d(v);
             CREATE TABLE log(n INTEGER PRIMARY KEY, what);
             CREATE TRIGGER al AFTER UPDATE ON a BEGIN INSERT INTO log(what) VALUES(old.u); END;
             CREATE TRIGGER bl AFTER DELETE ON b BEGIN INSERT INTO log(what) VALUES(old.k); DELETE FROM d WHERE k=old.u; END;",
        );
        for _ in 0..60 {
            let mut sql = "BEGIN;".to_owned();
            for _ in 0..random.range(1, 8) {
                let (n, m) = (random.below(30), random.below(30));
                sql.push_str(&match random.below(16) {
                    0 => format!("INSERT OR REPLACE INTO a(u,v) VALUES({n},{m});"),
                    1 => format!("INSERT OR IGNORE INTO a VALUES({n},'{m}',{m}.5);"),
                    2 => format!("UPDATE OR REPLACE a SET u={n} WHERE id={m};"),
                    3 => "UPDATE a SET u='~'||u; UPDATE a SET u=substr(u,2)||'~';".to_owned(),
                    4 => format!("UPDATE OR REPLACE a SET id=id+{n} WHERE id<{m};"),
                    5 => format!("DELETE FROM a WHERE id%7={};", n % 7),
                    6 => format!("INSERT OR REPLACE INTO b VALUES('K{n}',{m},{});", n % 3),
                    7 => format!(
                        "INSERT OR IGNORE INTO b VALUES(NULL,{m},{n}); UPDATE OR IGNORE b SET k='k{m}' WHERE u={n};"
                    ),
                    8 => format!("UPDATE OR REPLACE b SET u={n}, v={m} WHERE k IS NULL OR k='k{n}';"),
                    9 => format!("DELETE FROM b WHERE u%5={};", n % 5),
                    10 => format!(
                        "INSERT OR REPLACE INTO c VALUES({n},'{m}','{}');",
                        "x".repeat(random.below(900) as usize)
                    ),
                    11 => format!("UPDATE OR REPLACE c SET k={n}, j='{m}' WHERE k={m};"),
                    12 => format!("INSERT INTO d VALUES({n},x'{:04x}'),({m},NULL);", n * m),
                    13 => format!("DELETE FROM d WHERE k={n}; UPDATE d SET v=rowid WHERE k={m};"),
                    14 => "UPDATE sqlite_sequence SET seq=seq+3;".to_owned(),
                    _ => format!("DELETE FROM c WHERE k={n};"),
                });
            }
            sql.push_str("COMMIT;");
            match scene.connection.execute_batch(&sql) {
                Err(rusqlite::Error::SqliteFailure(error, _))
                    if error.code == rusqlite::ErrorCode::ConstraintViolation =>
                {
                    scene.connection.execute_batch(random.pick::<&str>(&ends)).unwrap();
                }
                other => other.unwrap(),
            }
            scene.follow();
        }
        scene.check();
    }
}
