//! Writers with a ledger of their own, and what must be in a database by it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rusqlite::{Connection, OpenFlags};

use crate::support::cluster::{WITHIN, wait_for};

/// Every kind of key, rows that span pages, rows that all fight about. A table with nothing but rowids has an index, because VACUUM numbers
/// its rows anew otherwise.
pub const SCHEMA: &str = "
    CREATE TABLE entry(id INTEGER PRIMARY KEY, writer INT, counter INT, note TEXT);
    CREATE INDEX entry_counter ON entry(counter, writer);
    CREATE TABLE entry_w(writer INT, counter INT, payload BLOB, PRIMARY KEY(writer, counter)) WITHOUT ROWID;
    CREATE TABLE entry_k(k TEXT PRIMARY KEY, writer, counter);
    CREATE TABLE bag(writer, counter);
    CREATE INDEX bag_writer ON bag(writer, counter);
    CREATE TABLE recent(counter INT, writer INT, v REAL, PRIMARY KEY(counter, writer));
    CREATE TABLE total(writer INTEGER PRIMARY KEY, n INT, sum INT, big BLOB);
    CREATE TABLE shared(id INTEGER PRIMARY KEY, n INT, who INT, pad TEXT);
    CREATE TABLE names(id INTEGER PRIMARY KEY, name TEXT UNIQUE, who INT);
    WITH RECURSIVE c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 40) INSERT INTO shared SELECT i, 0, 0, '' FROM c;";

/// Rows of `recent` that a writer leaves.
const RECENT: i64 = 20;

/// How a writer goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// One transaction after another.
    Plain,
    /// Also checkpoints in all modes, closes and opens the database, vacuums it.
    Wild,
    /// About 30 transactions a second.
    Paced,
    /// Also changes the schema, in every third transaction.
    Altering,
}

/// One writer: it can be started again and again and goes on where its database says.
pub struct Writer {
    pub id: i64,
    db: PathBuf,
    ledger: PathBuf,
    errors: PathBuf,
    child: Option<Child>,
}

impl Writer {
    pub fn new(id: i64, db: &Path) -> Writer {
        let beside = |name: &str| db.with_file_name(format!("{name}-{id}"));
        Writer { id, db: db.to_owned(), ledger: beside("ledger"), errors: beside("errors"), child: None }
    }

    /// Starts it for `count` transactions; 0: until told to stop.
    pub fn start(&mut self, seed: u64, count: u64, manner: Manner) {
        assert!(self.child.is_none(), "writer {} runs already", self.id);
        let errors = std::fs::File::options().create(true).append(true).open(&self.errors).unwrap();
        let child = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/writer.py"))
            .args([&self.db, &self.ledger])
            .args([self.id.to_string(), seed.to_string(), count.to_string()])
            .args(match manner {
                Manner::Plain => None,
                Manner::Wild => Some("wild"),
                Manner::Paced => Some("paced"),
                Manner::Altering => Some("altering"),
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none_or(|ended| ended.success()), "{}", self.errors());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits until it has done what it was told.
    pub fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let ended =
                wait_for("the end of a writer", || child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
            assert!(ended.success(), "writer {} met an error:\n{}", self.id, self.errors());
        }
    }

    /// Lets it close its database and waits for it.
    pub fn stop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
        }
        self.end();
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// The last transaction whose commit has returned; 0: none.
    pub fn acknowledged(&self) -> i64 {
        let text = std::fs::read_to_string(&self.ledger).unwrap_or_default();
        let numbers: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
        // One that was killed between its commit and its line goes on behind it.
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "writer {}: an own commit was gone", self.id);
        numbers.last().copied().unwrap_or(0)
    }

    /// Checks that a database has every acknowledged transaction, whole and once, and returns how many it has.
    pub fn check(&self, db: &Path) -> i64 {
        let database = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        database.busy_timeout(WITHIN).unwrap();
        let one = |sql: &str| -> i64 { database.query_row(sql, [self.id], |row| row.get(0)).unwrap() };
        let one_text = |sql: &str| -> String {
            database.query_row(sql, [self.id], |row| Ok(row.get::<_, Option<String>>(0)?.unwrap_or_default())).unwrap()
        };
        let last = one("SELECT coalesce(max(counter), 0) FROM entry_w WHERE writer = ?1");
        let place = format!("writer {} in {}", self.id, db.display());
        let acknowledged = self.acknowledged();
        assert!(last >= acknowledged, "{place}: {acknowledged} transactions acknowledged, {last} there");
        for table in ["entry", "entry_w", "entry_k", "bag"] {
            let count = one(&format!("SELECT count(*) FROM {table} WHERE writer = ?1"));
            let numbers = one(&format!(
                "SELECT count(DISTINCT counter) FROM {table} WHERE writer = ?1 AND counter BETWEEN 1 AND {last}"
            ));
            assert_eq!((count, numbers), (last, last), "{place}: rows and transactions in {table}");
        }
        let recent = one(&format!("SELECT count(*) FROM recent WHERE writer = ?1 AND counter > {}", last - RECENT));
        let all_recent = one("SELECT count(*) FROM recent WHERE writer = ?1");
        let kept = one_text(&format!(
            "SELECT group_concat(counter) FROM recent WHERE writer = ?1 AND counter <= {}",
            last - RECENT
        ));
        assert_eq!(
            (recent, all_recent),
            (last.min(RECENT), last.min(RECENT)),
            "{place}: rows in recent; deleted and there: {kept}"
        );
        let n = one("SELECT coalesce(sum(n), 0) FROM total WHERE writer = ?1");
        let sum = one("SELECT coalesce(sum(sum), 0) FROM total WHERE writer = ?1");
        assert_eq!((n, sum), (last, last * (last + 1) / 2), "{place}: updates of total");
        let own = format!(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN ('own_{0}', 'own_{0}_moved')",
            self.id
        );
        let tables: Vec<String> =
            database.prepare(&own).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        assert!(tables.len() <= 1, "{place}: {tables:?}");
        for table in tables {
            let sql = format!("SELECT min(counter) + count(*) - 1, max(counter) FROM {table}");
            let counters: (i64, i64) = database.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            assert_eq!(counters, (last, last), "{place}: a row for each transaction from some one on in {table}");
        }
        last
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
