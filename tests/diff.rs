//! Pages to row changes, against SQLite's own answer.

use rusqlite::{Connection, params};
use woodchuck::change::{Differ, TransactionError, TxSpan};

use crate::support::oracle::{Recorder, database};
use crate::support::pages::{Image, WalReader};
use crate::support::random::Random;

const PAGE_SIZES: &[u32] = &[512, 512, 512, 1024, 4096, 65536];

struct Run {
    random: Random,
    connection: Connection,
    auto_vacuum: u64,
    _dir: tempfile::TempDir,
    wal: WalReader,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random::new(seed);
        let dir = crate::support::folder();
        let path = dir.path().join("app.db");
        let connection = Connection::open(&path).unwrap();
        let auto_vacuum = random.below(3);
        let encoding = *random.pick(&["UTF-8", "UTF-8", "UTF-16le", "UTF-16be"]);
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {}; PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {auto_vacuum};
                 PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = {}; PRAGMA foreign_keys = OFF;",
                random.pick(PAGE_SIZES),
                random.pick(&[10, 50, 2000]),
            ))
            .unwrap();
        connection
            .execute_batch(
                "CREATE TABLE a(id INTEGER PRIMARY KEY, v);
                 CREATE TABLE b(id INTEGER PRIMARY KEY AUTOINCREMENT, v REAL, w TEXT DEFAULT 'd', g AS (id + 1), s AS (id + 2) STORED);
                 CREATE TABLE w(k PRIMARY KEY, v) WITHOUT ROWID;
                 CREATE TABLE c(x INT, k TEXT COLLATE NOCASE, v, PRIMARY KEY(k DESC, x)) WITHOUT ROWID;
                 CREATE TABLE t(k TEXT PRIMARY KEY, v);
                 CREATE TABLE n(k, v);
                 CREATE INDEX bi ON b(v);
                 CREATE INDEX ti ON t(v);",
            )
            .unwrap();
        let wal = WalReader::new(&path);
        Run { random, connection, auto_vacuum, _dir: dir, wal }
    }

    fn value(&mut self) -> rusqlite::types::Value {
        use rusqlite::types::Value;
        match self.random.below(12) {
            0..=4 => {
                Value::Text(format!("{}{}", "x".repeat(self.random.below(60) as usize), self.random.below(1_000_000)))
            }
            5 | 6 => {
                let count = self.random.range(300, 3000) as usize;
                Value::Blob(self.random.bytes(count))
            }
            7 => Value::Real(self.random.range(-50, 50) as f64 / 4.0),
            8 => Value::Null,
            9 => Value::Text("héé𝄞\0ñ".repeat(self.random.below(200) as usize)),
            _ => Value::Integer(*self.random.pick(&[
                0,
                1,
                -1,
                127,
                128,
                -129,
                1 << 40,
                i64::MIN,
                i64::MAX,
                (1 << 53) + 1,
            ])),
        }
    }

    fn key(&mut self, table: &str, n: i64) -> rusqlite::types::Value {
        use rusqlite::types::Value;
        match table {
            "a" | "b" => Value::Integer(n),
            "w" if self.random.chance(5) => {
                Value::Text(format!("{n:05}{}", "k".repeat(self.random.below(900) as usize)))
            }
            "c" => Value::Text(format!("{}{n}", if self.random.chance(50) { "Key" } else { "kEY" })),
            "t" if self.random.chance(5) => Value::Null,
            _ => Value::Text(format!("key{n:05}")),
        }
    }

    fn exec(&mut self, sql: &str, parameters: impl rusqlite::Params) -> usize {
        match self.connection.execute(sql, parameters) {
            Ok(count) => count,
            Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == rusqlite::ErrorCode::ConstraintViolation => {
                0
            }
            Err(other) => panic!("{sql}: {other}"),
        }
    }

    fn step(&mut self) {
        let table = *self.random.pick(&["a", "b", "w", "c", "t", "n"]);
        let (key, order) = match table {
            "a" | "b" => ("id", "id"),
            "n" => ("k", "rowid"),
            _ => ("k", "k"),
        };
        let columns = if table == "c" {
            "x, k, v"
        } else if table == "b" {
            "id, v"
        } else {
            "*"
        };
        let columns = if columns == "*" { String::new() } else { format!("({columns})") };
        let extra = if table == "c" { "1, " } else { "" };
        let insert = format!("INSERT OR REPLACE INTO {table}{columns} VALUES ({extra}?1, ?2)");
        match self.random.below(18) {
            0 | 1 => {
                let n = self.random.range(-5, 3000);
                let (k, v) = (self.key(table, n), self.value());
                self.exec(&insert, params![k, v]);
            }
            2 => {
                let from = self.random.range(0, 3000);
                for i in 0..self.random.range(5, 120) {
                    let (k, v) = (self.key(table, from + i), self.value());
                    self.exec(&insert, params![k, v]);
                }
            }
            3 => {
                let from = self.random.range(0, 3000);
                for i in 0..self.random.range(100, 700) {
                    let k = self.key(table, from + i);
                    self.exec(&insert.replace("REPLACE", "IGNORE"), params![k, "y".repeat(20)]);
                }
            }
            4 => {
                let v = self.value();
                self.exec(
                    &format!(
                        "UPDATE {table} SET v = ?1 WHERE {key} IN (SELECT {key} FROM {table} ORDER BY random() LIMIT 3)"
                    ),
                    [v],
                );
            }
            5 => {
                let limit = self.random.range(1, 30);
                self.exec(
                    &format!(
                        "DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} ORDER BY {order} LIMIT {limit})"
                    ),
                    [],
                );
            }
            6 => {
                let low = self.random.range(0, 3000);
                let high = low + self.random.range(0, 1500);
                let (low, high) = (self.key(table, low), self.key(table, high));
                self.exec(&format!("DELETE FROM {table} WHERE {key} BETWEEN ?1 AND ?2"), params![low, high]);
            }
            7 if self.random.chance(30) => {
                self.exec(&format!("DELETE FROM {table}"), []);
            }
            8 | 9 => self.tail(table),
            10 => self.blob(table),
            11 if self.random.chance(40) => self.ddl(),
            12 => {
                let sql = match table {
                    "a" | "b" => format!(
                        "UPDATE OR REPLACE {table} SET id = id + 1000 WHERE id IN (SELECT id FROM {table} LIMIT 5)"
                    ),
                    _ => {
                        format!("UPDATE OR REPLACE {table} SET k = k || 'x' WHERE k IN (SELECT k FROM {table} LIMIT 5)")
                    }
                };
                self.exec(&sql, []);
            }
            13 if self.auto_vacuum > 0 => {
                let pages = self.random.range(1, 20);
                self.connection.execute_batch(&format!("PRAGMA incremental_vacuum({pages})")).unwrap();
            }
            14 => {
                self.connection.execute_batch("SAVEPOINT s").unwrap();
                self.exec(&format!("DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} LIMIT 200)"), []);
                self.connection
                    .execute_batch(if self.random.chance(70) { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" })
                    .unwrap();
            }
            _ => {
                let n = self.random.range(0, 3000);
                let (k, v) = (self.key(table, n), self.value());
                self.exec(&insert, params![k, v]);
            }
        }
    }

    /// Overwrites the last byte of a large value with another: only an overflow page changes.
    fn tail(&mut self, table: &str) {
        let found = self.connection.query_row(
            &format!("SELECT rowid_or_key, v FROM (SELECT {} AS rowid_or_key, v FROM {table}) WHERE typeof(v) = 'blob' AND length(v) > 600 ORDER BY random() LIMIT 1", if matches!(table, "w" | "c") { "k" } else { "rowid" }),
            [],
            |row| Ok((row.get::<_, rusqlite::types::Value>(0)?, row.get::<_, Vec<u8>>(1)?)),
        );
        if let Ok((key, mut blob)) = found {
            *blob.last_mut().unwrap() ^= 1;
            let column = if matches!(table, "w" | "c") { "k" } else { "rowid" };
            self.exec(&format!("UPDATE {table} SET v = ?1 WHERE {column} = ?2"), params![blob, key]);
        }
    }

    fn blob(&mut self, table: &str) {
        if !matches!(table, "a" | "n") {
            return;
        }
        let found = self.connection.query_row(
            &format!("SELECT rowid, length(v) FROM {table} WHERE typeof(v) = 'blob' AND length(v) > 600 ORDER BY random() LIMIT 1"),
            [],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
        );
        if let Ok((rowid, length)) = found {
            use std::io::{Seek, SeekFrom, Write};
            let offset = length - self.random.range(1, 500);
            let mut blob = self.connection.blob_open("main", table, "v", rowid, false).unwrap();
            blob.seek(SeekFrom::Start(offset as u64)).unwrap();
            blob.write_all(b"Z").unwrap();
        }
    }

    fn ddl(&mut self) {
        let name = format!("d{}", self.random.below(3));
        let exists: bool = self
            .connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = ?1", [&name], |row| row.get(0))
            .unwrap();
        let sql = match (exists, self.random.below(6)) {
            (true, 0) => format!("DROP TABLE {name}"),
            (true, 1) => format!("ALTER TABLE {name} ADD COLUMN c{} TEXT DEFAULT 'new'", self.random.below(1000)),
            (true, 2) => format!("ALTER TABLE {name} RENAME TO d{}", 3 + self.random.below(100_000)),
            (true, 3) => format!("CREATE INDEX i{} ON {name}(v)", self.random.below(100_000)),
            (true, _) => format!("INSERT INTO {name}(id, v) SELECT max(id) + 1, 'row' FROM {name}"),
            (false, 0) => format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, v) STRICT").replace("v)", "v TEXT)"),
            (false, _) => format!("CREATE TABLE {name} AS SELECT id, v FROM a WHERE id % 2"),
        };
        self.exec(&sql, []);
    }
}

fn fuzz(seed: u64, transactions: usize) -> Result<usize, String> {
    let mut run = Run::new(seed);
    let mut image = Image::default();
    for commit in run.wal.read() {
        image = commit.onto(&image).0;
    }
    let mut differ = Differ::open(&image).unwrap();
    if run.random.chance(50) {
        differ.set_map_bytes_max(2000);
    }
    let mut before = database(&run.connection);
    let mut compared = 0;
    for round in 0..transactions {
        run.connection.execute_batch("BEGIN").unwrap();
        for _ in 0..*run.random.pick(&[1, 1, 1, 2, 3, 6]) {
            run.step();
        }
        run.connection.execute_batch("COMMIT").unwrap();
        if run.random.chance(3) {
            // VACUUM is a transaction of its own.
            let mut commits = run.wal.read();
            assert!(commits.len() <= 1);
            if let Some(commit) = commits.pop() {
                compared += judge(&mut differ, &mut image, &mut before, &commit, &run, seed, round)?;
            }
            run.connection.execute_batch("VACUUM").unwrap();
        }
        for commit in run.wal.read() {
            compared += judge(&mut differ, &mut image, &mut before, &commit, &run, seed, round)?;
        }
        if run.random.chance(5) {
            run.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
    }
    Ok(compared)
}

fn judge(
    differ: &mut Differ,
    image: &mut Image,
    before: &mut std::collections::BTreeMap<
        String,
        (std::sync::Arc<woodchuck::schema::Table>, crate::support::oracle::Rows),
    >,
    commit: &crate::support::pages::Commit,
    run: &Run,
    seed: u64,
    round: usize,
) -> Result<usize, String> {
    let (after_image, changed) = commit.onto(image);
    let span = TxSpan {
        tx: round as u64,
        salts: commit.salts,
        frame_first: commit.first,
        frame_last: commit.last,
        repaired: false,
        checksum: woodchuck::format::Checksum::default(),
        page_count: 0,
    };
    let mut recorder = Recorder::default();
    let failed = |what: String| format!("SEED={seed} transaction {round}: {what}");
    match differ.transaction(image, &after_image, &changed, &span, &mut recorder) {
        Ok(_) => {}
        Err(TransactionError::Diff(error)) => return Err(failed(error.to_string())),
        Err(TransactionError::Sink(never)) => match never {},
    }
    let after = database(&run.connection);
    recorder.judge(before, &after).map_err(&failed)?;
    if let Some(difference) = differ.check(&after_image).map_err(|error| failed(error.to_string()))? {
        return Err(failed(format!("owner map: {difference}")));
    }
    *image = after_image;
    *before = after;
    Ok(1)
}

#[test]
fn row_changes_are_what_sqlite_says_on_random_workloads() {
    let seeds: u64 = std::env::var("WOODCHUCK_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(24);
    let first: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut compared = 0;
    for seed in first..first + seeds {
        match fuzz(seed, 80) {
            Ok(count) => compared += count,
            Err(what) => panic!("{what}"),
        }
    }
    println!("{compared} transactions compared");
    assert!(compared > 0);
}
