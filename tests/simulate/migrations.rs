//! Schemas that change while every node writes and dies: in the end all nodes have one schema and the same rows.
//!
//! There is no specification here but equality, and that no row is lost in silence. One node migrates in any way, or all of them in ways that can meet. No name that was given
//! up is given again, but where that is done on purpose.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use woodchuck::change::RowKey;
use woodchuck::format::Value;
use woodchuck::log::{Announced, Delivery, MESSAGE_BYTES_MAX, MemoryLog, ShardId, StreamSeq, decode_header};
use woodchuck::node::SteppedNode;

use super::behind::Behind;
use super::node::SimNode;
use super::schedule::{POINTS, Setup};
use crate::support::random::Random;

const STEPS: usize = 120;
const TURNS_MAX: usize = 200;
/// Turns after which a node waits for another one.
const LEVEL_MAX: usize = 10;

/// What a storm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// Changes of the schema alone.
    Schema,
    /// Tables get UNIQUE values while all write the few that there are.
    Unique,
    /// Nodes fall behind the log.
    Behind,
    /// Nodes fall behind while tables get UNIQUE values.
    BehindUnique,
    /// Nodes fall behind while every node makes the same changes.
    BehindSame,
    /// Names that were given up are given again, and tables get other keys.
    Again,
    /// Columns get types that have no room for what others write to them.
    Types,
    /// Every node makes the same changes, as an application does that brings its schema up to date wherever it starts.
    Same,
    /// The same, and some of them make values unique, or not any more, while all write the few that there are.
    SameUnique,
    /// Every node gives a table the same definitions one after the other, whatever it has by then, as tools do that look only once which
    /// migrations were made.
    Stale,
    /// One node gives other names, and the others make indexes, triggers and views.
    Objects,
    /// The same, and some of the indexes are UNIQUE.
    ObjectsUnique,
    /// Nodes fall behind meanwhile.
    BehindObjects,
    /// And some of the indexes are UNIQUE.
    BehindObjectsUnique,
}

pub(super) struct Storm {
    pub(super) random: Random,
    pub(super) setup: Setup,
    pub(super) nodes: Vec<SimNode>,
    pub(super) log: MemoryLog,
    /// All nodes change the schema, in ways that can meet.
    pub(super) all_migrate: bool,
    pub(super) unique: bool,
    is_again: bool,
    narrows: bool,
    /// The changes that every node makes, in order, unless it has heard that they were made.
    script: Vec<String>,
    /// By node: the next of those that it makes whatever it has heard.
    stale: Option<Vec<usize>>,
    pub(super) migrations: u64,
    /// The nodes but the first make objects; how many they have made.
    pub(super) objects: u64,
    makes_objects: bool,
    given_again: u64,
    pub(super) deaths: u64,
    /// Rows under keys that nobody writes twice, and that no node has deleted which knew of them: in the end they are there, or in a journal.
    fresh: BTreeSet<u64>,
    fresh_last: u64,
    /// Changes with which the name of a table was given up.
    drops: u64,
    fresh_random: Random,
    /// Nodes fall behind the log.
    pub(super) behind: Option<Behind>,
    /// Names of tables and columns that were given up. Nobody gives them again: who has not seen that would mean the old ones.
    gone: BTreeSet<String>,
    _runtime: Runtime,
    pub(super) directory: TempDir,
}

pub(super) fn tables(app: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut found = app.prepare(sql).unwrap();
    found.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// Columns beside the key.
pub(super) fn columns(app: &Connection, table: &str) -> Vec<String> {
    let mut found = app.prepare("SELECT name FROM pragma_table_info(?1) WHERE pk = 0 ORDER BY name").unwrap();
    found.query_map([table], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// What a column of this name is wherever it is added. Where names are given again all are alike: a transaction that drops a column and adds
/// one of its name has changed its definition, and the other nodes' rows have whatever both definitions make of them.
fn definition(column: &str, is_again: bool) -> String {
    match column {
        other if is_again => format!("{other} TEXT DEFAULT 'new'"),
        "a" => "a TEXT DEFAULT 'of a'".to_owned(),
        "b" => "b INT".to_owned(),
        "c" => "c TEXT NOT NULL DEFAULT ''".to_owned(),
        "d" => "d REAL".to_owned(),
        other => format!("{other} TEXT"),
    }
}

const COLUMNS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

impl Storm {
    pub(super) fn new(seed: u64, about: About) -> Storm {
        let (is_again, narrows) = (about == About::Again, about == About::Types);
        let is_same = matches!(about, About::Same | About::SameUnique | About::BehindSame);
        let unique = matches!(
            about,
            About::Unique | About::SameUnique | About::BehindUnique | About::ObjectsUnique | About::BehindObjectsUnique
        );
        let is_behind = matches!(
            about,
            About::Behind | About::BehindUnique | About::BehindSame | About::BehindObjects | About::BehindObjectsUnique
        );
        let mut random = Random::new(seed);
        let setup = Setup {
            nodes: 2 + random.below(2) as usize,
            shards: [1, 2, 5][random.below(3) as usize],
            kind: 0,
            by_row: false,
            message_bytes_max: [400, 4000, 1 << 20][random.below(3) as usize],
            unit_bytes_max: [200, 2000, 1 << 18][random.below(3) as usize],
            remember_ids: true,
            genesis: 0,
            filtered: false,
        };
        let directory = crate::support::folder();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let fill = |app: &Connection| {
            let (a, b, x) = match is_again {
                true => (definition("a", true), definition("b", true), definition("x", true)),
                false => ("a TEXT".to_owned(), "b INT".to_owned(), "x".to_owned()),
            };
            app.execute_batch(&format!(
                "CREATE TABLE t0(id INTEGER PRIMARY KEY, {a}, {b}); CREATE TABLE t1(id TEXT PRIMARY KEY, {x}) WITHOUT ROWID;
                 INSERT INTO t0 VALUES(1, 'one', 1), (2, 'two', 2), (3, 'three', 3); INSERT INTO t1 VALUES('1', 1), ('2', 2)",
            ))
            .unwrap();
            if about == About::Stale {
                app.execute_batch(
                    "DROP TABLE t0; CREATE TABLE \"t0\"(id INTEGER PRIMARY KEY, a VARCHAR(30), b VARCHAR(30), c VARCHAR(30))",
                )
                .unwrap();
            }
            if is_same {
                app.execute_batch(&format!("CREATE TABLE {MADE}(id INTEGER PRIMARY KEY)")).unwrap();
            }
        };
        let nodes: Vec<SimNode> = (0..setup.nodes)
            .map(|no| SimNode::new(directory.path(), no, setup, runtime.handle().clone(), fill))
            .collect();
        let makes_objects =
            matches!(about, About::Objects | About::ObjectsUnique | About::BehindObjects | About::BehindObjectsUnique);
        let all_migrate = random.chance(40) && !narrows && about != About::Stale && !makes_objects;
        let script = match about {
            About::Stale => definitions(&mut random),
            _ if is_same => script(&mut random, &nodes[0].app, unique),
            _ => Vec::new(),
        };
        let log = MemoryLog::new(setup.shards, 1);
        let mut storm = Storm {
            random,
            setup,
            nodes,
            log,
            all_migrate,
            unique,
            is_again,
            narrows,
            script,
            stale: (about == About::Stale).then(|| vec![0; setup.nodes]),
            migrations: 0,
            objects: 0,
            makes_objects,
            given_again: 0,
            deaths: 0,
            fresh: BTreeSet::new(),
            fresh_last: FRESH,
            drops: 0,
            fresh_random: Random::new(seed ^ FRESH),
            behind: None,
            gone: BTreeSet::new(),
            _runtime: runtime,
            directory,
        };
        if is_behind {
            storm.fall_behind();
        }
        (0..setup.nodes).for_each(|no| storm.start(no));
        storm
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (1..=self.setup.shards).map(ShardId)
    }

    /// The last message of a shard.
    fn last(&self, shard: ShardId) -> StreamSeq {
        self.log.entries(shard, StreamSeq(0)).last().map_or(self.behind_first(shard), |entry| entry.seq)
    }

    pub(super) fn start(&mut self, no: usize) {
        if std::mem::take(&mut self.nodes[no].wants_newer) {
            (0..self.nodes.len()).filter(|other| *other != no).for_each(|other| self.snapshot(other));
        }
        let last: BTreeMap<ShardId, StreamSeq> = self.shards().map(|shard| (shard, self.last(shard))).collect();
        self.nodes[no].start(None, last);
    }

    pub(super) fn run(&mut self) -> (u64, u64) {
        let steps = if self.behind.is_some() { 2 * STEPS } else { STEPS };
        for _ in 0..steps {
            let no = self.random.below(self.nodes.len() as u64) as usize;
            if self.behind.is_some() && self.random.chance(20) {
                self.step_behind(no);
                continue;
            }
            let count = 1 + self.random.below(4) as usize;
            match self.random.below(100) {
                0..28 => self.write(no),
                28..38 if !self.script.is_empty() => self.writing(no, |storm| storm.update(no)),
                28..38 if self.makes_objects && no > 0 => self.make_object(no),
                28..38 if self.makes_objects => self.give_names(no),
                28..38 => self.migrate(if self.all_migrate { no } else { 0 }),
                38..60 => self.turn(no),
                60..75 => self.send(no, count),
                75..92 => self.hear(no, count),
                92..94 => {
                    self.deaths += u64::from(self.nodes[no].node.is_some());
                    drop(self.nodes[no].kill());
                }
                94..96 => {
                    let how = if self.nodes[no].node.is_some() { "PASSIVE" } else { "TRUNCATE" };
                    let app = &self.nodes[no].app;
                    app.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(())).unwrap();
                }
                _ => self.start(no),
            }
        }
        self.settle();
        (self.migrations, self.deaths)
    }

    pub(super) fn turn(&mut self, no: usize) {
        // Where nodes fall behind they die elsewhere.
        let dies = self.behind.is_none() && self.random.chance(10);
        let at = dies.then(|| (*self.random.pick(POINTS), 1 + self.random.below(3) as u32));
        let was_up = self.nodes[no].node.is_some();
        self.nodes[no].with(at, |node| node.turn().map(drop));
        self.deaths += u64::from(was_up && self.nodes[no].node.is_none());
    }

    /// Lets a node write, and takes note of what it deletes by that of what others and itself had written.
    fn writing(&mut self, no: usize, write: impl FnOnce(&mut Storm)) {
        let before = fresh_rows(&self.nodes[no].app);
        write(self);
        let after = fresh_rows(&self.nodes[no].app);
        self.fresh.retain(|id| !before.contains(id) || after.contains(id));
    }

    /// A row under a key that nobody has written before.
    fn write_fresh(&mut self, no: usize) {
        let mut all = tables(&self.nodes[no].app);
        all.retain(|table| table != MADE);
        let Some(table) = pick(&mut self.fresh_random, &all) else { return };
        self.fresh_last += 1;
        let sql = format!("INSERT INTO {table}(id) VALUES({})", self.fresh_last);
        self.execute(no, &sql);
        if fresh_rows(&self.nodes[no].app).contains(&self.fresh_last) {
            self.fresh.insert(self.fresh_last);
        }
    }

    /// Every one of them is there, or in the journal of a node.
    fn check_fresh(&mut self) {
        // A node that was made anew has lost its journal, and one that has dropped a table and catches up from a snapshot cannot tell which rows of
        // it it had not seen: see docs/operations.md.
        if self.behind.as_ref().is_some_and(|behind| behind.joins > 0 || self.drops > 0) {
            return;
        }
        let mut told = fresh_rows(&self.nodes[0].app);
        for node in &mut self.nodes {
            let Some(node) = node.node.as_mut() else { continue };
            for conflict in node.replica().state().conflicts(10_000).unwrap() {
                let value = match &conflict.key {
                    RowKey::Rowid(rowid) => Value::Integer(*rowid),
                    RowKey::Columns(values) => values.first().cloned().unwrap_or(Value::Null),
                };
                told.extend(match value {
                    Value::Integer(id) => u64::try_from(id).ok(),
                    Value::Real(id) => Some(id as u64),
                    Value::Text(text) => String::from_utf8_lossy(&text).parse().ok(),
                    Value::Null | Value::Blob(_) => None,
                });
            }
        }
        let lost: Vec<&u64> = self.fresh.difference(&told).collect();
        assert!(lost.is_empty(), "rows are lost, and no journal has them: {lost:?} of {}", self.fresh.len());
    }

    pub(super) fn execute(&mut self, no: usize, sql: &str) {
        self.writing(no, |storm| storm.execute_once(no, sql));
    }

    fn execute_once(&mut self, no: usize, sql: &str) {
        // What the application may not do it does not do.
        if self.nodes[no].app.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT")).is_err() {
            let _ = self.nodes[no].app.execute_batch("ROLLBACK");
            return;
        }
        println!("node {no}: {sql}");
    }

    fn write(&mut self, no: usize) {
        let sql = self.rows(no);
        self.execute(no, &sql);
        if self.fresh_random.chance(40) {
            self.write_fresh(no);
        }
    }

    /// Statements that change some rows.
    pub(super) fn rows(&mut self, no: usize) -> String {
        let mut all = tables(&self.nodes[no].app);
        all.retain(|table| table != MADE);
        let mut sql = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            if all.is_empty() {
                break;
            }
            let table = self.random.pick(&all).clone();
            let columns = columns(&self.nodes[no].app, &table);
            let id = 1 + self.random.below(9);
            let value = self.random.below(if self.unique { 6 } else { 1000 });
            let value = if self.narrows { any_value(&mut self.random, value) } else { value.to_string() };
            let or_ignore = if self.unique { "OR IGNORE " } else { "" };
            match (self.random.below(10), columns.is_empty()) {
                (0..2, _) => sql.push(format!("DELETE FROM {table} WHERE id = {id}")),
                (2..7, false) => {
                    let column = self.random.pick(&columns);
                    sql.push(format!("UPDATE {or_ignore}{table} SET {column} = {value} WHERE id = {id}"));
                }
                (_, false) => {
                    let column = self.random.pick(&columns);
                    sql.push(format!("INSERT OR IGNORE INTO {table}(id, {column}) VALUES({id}, {value})"));
                }
                (_, true) => sql.push(format!("INSERT OR IGNORE INTO {table}(id) VALUES({id})")),
            }
        }
        sql.join("; ")
    }

    /// Statements that give a name again at once, of a table or a column, or make another table of one under its name.
    fn again(&mut self, no: usize) -> Option<String> {
        let app = &self.nodes[no].app;
        let all = tables(app);
        let name = pick(&mut self.random, &all)?.clone();
        let columns = columns(app, &name);
        Some(match self.random.below(5) {
            0 => {
                let (b, e) = (definition("b", true), definition("e", true));
                format!("DROP TABLE {name}; CREATE TABLE {name}(id INTEGER PRIMARY KEY, {b}, {e})")
            }
            1 => {
                let column = pick(&mut self.random, &columns)?;
                let definition = definition(column, true);
                format!("ALTER TABLE {name} DROP COLUMN {column}; ALTER TABLE {name} ADD COLUMN {definition}")
            }
            2 => {
                let other = pick(&mut self.random, &all)?;
                format!(
                    "ALTER TABLE {name} RENAME TO aside; ALTER TABLE {other} RENAME TO {name}; ALTER TABLE aside RENAME TO {other}"
                )
            }
            3 => {
                let (one, other) = (pick(&mut self.random, &columns)?, pick(&mut self.random, &columns)?);
                format!(
                    "ALTER TABLE {name} RENAME COLUMN {one} TO aside; ALTER TABLE {name} RENAME COLUMN {other} TO {one};
                     ALTER TABLE {name} RENAME COLUMN aside TO {other}"
                )
            }
            _ => {
                let (key, form) = *self.random.pick(&[
                    ("id INTEGER PRIMARY KEY", ""),
                    ("id INT PRIMARY KEY", ""),
                    ("id REAL PRIMARY KEY", ""),
                    ("id TEXT PRIMARY KEY", ""),
                    ("id TEXT PRIMARY KEY", " WITHOUT ROWID"),
                    ("id TEXT COLLATE NOCASE PRIMARY KEY", " WITHOUT ROWID"),
                ]);
                let defined: String = columns.iter().map(|column| format!(", {}", definition(column, true))).collect();
                let names: String = columns.iter().map(|column| format!(", {column}")).collect();
                format!(
                    "CREATE TABLE new_{name}({key}{defined}){form}; INSERT INTO new_{name}(id{names}) SELECT id{names} FROM {name};
                     DROP TABLE {name}; ALTER TABLE new_{name} RENAME TO {name}"
                )
            }
        })
    }

    /// A rebuild that gives a table other types.
    fn narrow(&mut self, no: usize) -> Option<String> {
        let all = tables(&self.nodes[no].app);
        let name = pick(&mut self.random, &all)?.clone();
        let is_strict = self.random.chance(70);
        let types: &[&str] =
            if is_strict { &["INT", "REAL", "TEXT", "BLOB", "ANY"] } else { &["INT", "TEXT", "REAL", ""] };
        let is_text = self.key_is_text(no, &name);
        let mut form = if is_text { vec!["WITHOUT ROWID"] } else { Vec::new() };
        form.extend(is_strict.then_some("STRICT"));
        let (mut defined, mut values) = (vec![key_definition(is_text).to_owned()], vec!["id".to_owned()]);
        for column in columns(&self.nodes[no].app, &name) {
            let declared = *self.random.pick(types);
            let cast = |value: &str| match declared {
                "ANY" | "" => value.to_owned(),
                _ => format!("CAST({value} AS {declared})"),
            };
            let never_null = self.random.chance(30);
            defined.push(format!("{column} {declared}{}", if never_null { " NOT NULL" } else { "" }));
            values.push(if never_null { format!("coalesce({}, {})", cast(&column), cast("7")) } else { cast(&column) });
        }
        let (defined, values) = (defined.join(", "), values.join(", "));
        Some(format!(
            "CREATE TABLE new_{name}({defined}) {}; INSERT INTO new_{name} SELECT {values} FROM {name};
             DROP TABLE {name}; ALTER TABLE new_{name} RENAME TO {name}",
            form.join(", ")
        ))
    }

    fn key_is_text(&self, no: usize, table: &str) -> bool {
        let sql = "SELECT type = 'TEXT' FROM pragma_table_info(?1) WHERE name = 'id'";
        self.nodes[no].app.query_row(sql, [table], |row| row.get(0)).unwrap()
    }

    /// Lets a node alone come to where everything on the log is applied there, and everything that was done there is on the log. Whether it can.
    fn level(&mut self, no: usize) -> bool {
        (0..LEVEL_MAX).any(|_| {
            self.nodes[no].with(None, |node| node.turn().map(drop));
            self.send(no, usize::MAX);
            self.deliver(no, usize::MAX);
            !self.is_busy(no)
        })
    }

    /// Captures all that was committed; whether the node is there to do it.
    fn capture(&mut self, no: usize) -> bool {
        self.nodes[no].with(None, |node| {
            while node.capture()? {}
            Ok(())
        })
    }

    /// Makes the next change of the script that is not known to be made. Each is seen by itself.
    fn update(&mut self, no: usize) {
        if !self.capture(no) {
            return;
        }
        if let Some(next) = &mut self.stale {
            let Some(sql) = self.script.get(next[no]) else { return };
            next[no] += 1;
            self.nodes[no].app.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT")).unwrap();
            self.migrations += 1;
            self.capture(no);
            return;
        }
        let app = &self.nodes[no].app;
        for (place, sql) in self.script.iter().enumerate() {
            let is_made =
                app.query_row(&format!("SELECT count(*) FROM {MADE} WHERE id = {place}"), [], |row| row.get(0));
            if is_made.unwrap_or(0) == 0 {
                let all = format!("BEGIN IMMEDIATE; {sql}; INSERT INTO {MADE}(id) VALUES({place}); COMMIT");
                app.execute_batch(&all)
                    .unwrap_or_else(|error| panic!("node {no} makes change {place}, {sql}: {error}"));
                self.migrations += 1;
                self.capture(no);
                return;
            }
        }
    }

    fn migrate(&mut self, no: usize) {
        // While a change of types is on its way its maker judges what others write by the types that it has by then.
        if self.narrows && !self.level(no) {
            return;
        }
        // What many change at once is merged column by column, and so each change has to be seen by itself.
        let by_itself = self.is_again && self.all_migrate;
        if by_itself && !self.capture(no) {
            return;
        }
        self.writing(no, |storm| storm.migrate_once(no));
        if self.narrows {
            self.level(no);
        }
        if by_itself {
            self.capture(no);
        }
    }

    /// Gives a table or a column another name, or makes one more.
    fn give_names(&mut self, no: usize) {
        // What is found after a time without the daemon can be taken for other changes than it was: see docs/operations.md.
        if !self.capture(no) {
            return;
        }
        let all = tables(&self.nodes[no].app);
        let name = self.random.pick(&all).clone();
        let columns = columns(&self.nodes[no].app, &name);
        self.migrations += 1;
        let next = self.migrations;
        let column = pick(&mut self.random, &columns).cloned().unwrap_or_default();
        let drops = self.nodes.len() == 2;
        let sql = match self.random.below(if drops { 9 } else { 7 }) {
            0 | 1 => format!("ALTER TABLE {name} RENAME TO n{next}"),
            // What a column that goes had told apart nobody can tell any more who is ahead of the fold: see docs/operations.md.
            7 if !self.unique => format!("ALTER TABLE {name} DROP COLUMN {column}"),
            8 if all.len() > 2 => format!("DROP TABLE {name}"),
            2 | 3 => format!("ALTER TABLE {name} RENAME COLUMN {column} TO c{next}"),
            // What has the name of a table with a key like its own, behind one transaction, is that table.
            4 => {
                self.execute(no, &format!("ALTER TABLE {name} RENAME TO n{next}"));
                self.capture(no);
                format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, a TEXT, {column} TEXT)")
            }
            5 => {
                let other = self.random.pick(&all).clone();
                if self.key_is_text(no, &name) == self.key_is_text(no, &other) {
                    return;
                }
                format!(
                    "ALTER TABLE {name} RENAME TO aside; ALTER TABLE {other} RENAME TO {name}; ALTER TABLE aside RENAME TO {other}"
                )
            }
            _ => format!("ALTER TABLE {name} ADD COLUMN c{next} TEXT DEFAULT 'new'"),
        };
        self.execute(no, &sql);
        self.capture(no);
    }

    fn migrate_once(&mut self, no: usize) {
        let on_purpose =
            if self.is_again && !self.all_migrate && self.random.chance(40) { self.again(no) } else { None };
        let narrowing = if self.narrows && self.random.chance(60) { self.narrow(no) } else { None };
        let all = tables(&self.nodes[no].app);
        // Of few names some are given again.
        let (names_max, columns_max) = if self.is_again { (3, 5) } else { (9, COLUMNS.len()) };
        let name = format!("t{}", self.random.below(names_max));
        let column = *self.random.pick(&COLUMNS[..columns_max]);
        let (other, to) = (*self.random.pick(&COLUMNS[..columns_max]), format!("t{}", self.random.below(names_max)));
        let choice = if self.all_migrate { 1 + self.random.below(2) } else { self.random.below(10) };
        let is_there = all.contains(&name);
        let sql = match choice {
            _ if self.unique && is_there && self.random.chance(50) => {
                let index = format!("CREATE UNIQUE INDEX IF NOT EXISTS u_{name}_{column} ON {name}({column})");
                let least = format!("SELECT min(id) FROM {name} GROUP BY {column}");
                // As applications do it: first the rows that are in the way.
                match self.random.chance(70) {
                    true => format!("DELETE FROM {name} WHERE {column} NOT NULL AND id NOT IN ({least}); {index}"),
                    false => index,
                }
            }
            2 if self.unique => format!("ALTER TABLE {name} ADD COLUMN {}", definition(column, false)),
            0 if !is_there && self.is_again => {
                let (a, b) = (definition("a", true), definition("b", true));
                format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, {a}, {b})")
            }
            0 if !is_there => format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, a TEXT DEFAULT 'of a', b INT)"),
            0 | 1 => format!("ALTER TABLE {name} ADD COLUMN {}", definition(column, self.is_again)),
            2 if !self.all_migrate && self.random.chance(60) => {
                let came = definition(other, self.is_again);
                let left = columns(&self.nodes[no].app, &name);
                let left = pick(&mut self.random, &left).cloned().unwrap_or_default();
                let renamed = match self.random.chance(20) {
                    true => format!("ALTER TABLE {name} RENAME COLUMN {left} TO l; "),
                    false => String::new(),
                };
                format!("{renamed}ALTER TABLE {name} DROP COLUMN {column}; ALTER TABLE {name} ADD COLUMN {came}")
            }
            2 => format!("ALTER TABLE {name} DROP COLUMN {column}"),
            3 => format!("DROP TABLE {name}"),
            4 => format!("ALTER TABLE {name} RENAME COLUMN {column} TO {other}"),
            5 => match (self.random.below(4), is_there && !self.unique) {
                (0, true) => {
                    format!("ALTER TABLE {name} RENAME TO {to}; ALTER TABLE {to} RENAME COLUMN {column} TO {other}")
                }
                (1, true) => {
                    let app = &self.nodes[no].app;
                    let defined: String = definition_of(app, &name).replacen(&name, &to, 1);
                    format!("{defined}; INSERT INTO {to} SELECT * FROM {name}; DROP TABLE {name}")
                }
                _ => format!("ALTER TABLE {name} RENAME TO {to}"),
            },
            6 => format!("CREATE INDEX {name}_{column} ON {name}({column})"),
            7 => format!(
                "DROP INDEX IF EXISTS {name}_{column}; CREATE VIEW IF NOT EXISTS v_{name} AS SELECT * FROM {name}; DROP VIEW v_{name}"
            ),
            // As Django does it. (A table that is rebuilt has lost its indexes, and one that is unique no more is another matter: see
            // docs/operations.md.)
            _ if is_there && !(self.unique && is_unique(&self.nodes[no].app, &name)) => {
                let kept = columns(&self.nodes[no].app, &name);
                let kept: Vec<&String> = kept.iter().filter(|name| name.as_str() != column).collect();
                let mut defined: Vec<String> = kept.iter().map(|name| definition(name, self.is_again)).collect();
                let with_new = self.random.chance(50) && !kept.iter().any(|name| name.as_str() == other);
                let mut names: Vec<String> = kept.iter().map(|name| (*name).clone()).collect();
                let mut values = names.clone();
                if with_new {
                    let defined_new = format!("{other} TEXT NOT NULL");
                    defined.push(if self.is_again { definition(other, true) } else { defined_new });
                    names.push(other.to_owned());
                    values.push(format!("'{}'", self.random.below(3)));
                }
                let or_ignore = if self.unique { "OR IGNORE " } else { "" };
                if let Some(x) = defined.iter_mut().find(|defined| self.unique && *defined == "x TEXT") {
                    // It has no type where it was, and what is unique is not a question of types here.
                    x.truncate(1);
                }
                if self.unique && !defined.is_empty() {
                    let index = self.random.below(defined.len() as u64) as usize;
                    defined[index].push_str(" UNIQUE");
                }
                let is_text = self.key_is_text(no, &name);
                let key = key_definition(is_text);
                let form = if is_text { " WITHOUT ROWID" } else { "" };
                let list = |first: &str, all: &[String]| [&[first.to_owned()], all].concat().join(", ");
                let (defined, names, values) = (list(key, &defined), list("id", &names), list("id", &values));
                format!(
                    "CREATE TABLE new_{name}({defined}){form}; INSERT {or_ignore}INTO new_{name}({names}) SELECT {values} FROM {name};
                     DROP TABLE {name}; ALTER TABLE new_{name} RENAME TO {name}"
                )
            }
            _ => return,
        };
        let is_on_purpose = on_purpose.is_some();
        let sql = on_purpose.or(narrowing).unwrap_or(sql);
        let rows = if self.random.chance(40) { self.rows(no) } else { String::new() };
        let before = names(&self.nodes[no].app);
        let schema_before = schema(&self.nodes[no].app);
        // On trial: what gives a name again is not done.
        self.nodes[no].app.execute_batch("BEGIN IMMEDIATE").unwrap();
        let done = self.nodes[no].app.execute_batch(&format!("{sql}; {rows}")).is_ok();
        let after = names(&self.nodes[no].app);
        let is_again = after.difference(&before).any(|name| self.gone.contains(name));
        if done && (self.is_again || !is_again) && self.nodes[no].app.execute_batch("COMMIT").is_ok() {
            self.gone.extend(before.difference(&after).cloned());
            self.drops += u64::from(before.difference(&after).any(|name| !name.starts_with('.')));
            println!("node {no}: {sql}; {rows}");
            self.given_again += u64::from(is_again || is_on_purpose);
        } else {
            let _ = self.nodes[no].app.execute_batch("ROLLBACK");
        }
        self.migrations += u64::from(schema(&self.nodes[no].app) != schema_before);
    }

    pub(super) fn send(&mut self, no: usize, count: usize) {
        for shard in self.shards() {
            for _ in 0..count {
                let waiting = self.nodes[no].publisher.shards.get(&shard);
                let Some(message) = waiting.and_then(|waiting| waiting.front()) else { break };
                let seq = self.log.append(shard, &message.message_id(), Bytes::from(message.payload.clone())).unwrap();
                self.nodes[no].publisher.stored(shard, seq);
            }
        }
        while let Some(next) = self.nodes[no].publisher.acks.pop_front() {
            self.nodes[no].with(None, |node| node.acknowledge(next));
        }
    }

    pub(super) fn deliver(&mut self, no: usize, count: usize) {
        for shard in self.shards() {
            if self.nodes[no].node.is_none() {
                return;
            }
            if self.fell_behind(no, shard) {
                continue;
            }
            for entry in self.log.entries(shard, self.nodes[no].next[&shard]).into_iter().take(count) {
                let header = decode_header(&entry.payload, MESSAGE_BYTES_MAX).unwrap();
                let announced = Announced { shard, seq: entry.seq, time: entry.time, header, payload: entry.payload };
                self.nodes[no].next.insert(shard, StreamSeq(entry.seq.0 + 1));
                self.nodes[no].with(None, |node| node.deliver(Delivery::Arrived(announced)));
            }
        }
    }

    fn is_busy(&mut self, no: usize) -> bool {
        let ends: Vec<u64> = self.shards().map(|shard| self.last(shard).0).collect();
        let shards: Vec<ShardId> = self.shards().collect();
        let Some(node) = self.nodes[no].node.as_mut() else { return true };
        let state = node.replica().state();
        let applied: Vec<u64> = shards.iter().map(|shard| state.position(*shard).unwrap().0).collect();
        state.backlog().unwrap().units > 0 || applied != ends
    }

    pub(super) fn settle(&mut self) {
        for turn in 0.. {
            let mut is_busy = false;
            for no in 0..self.nodes.len() {
                self.start(no);
                self.nodes[no].with(None, |node| node.turn().map(drop));
                self.send(no, usize::MAX);
            }
            for no in 0..self.nodes.len() {
                self.deliver(no, usize::MAX);
                self.catch_up(no);
                self.nodes[no].with(None, |node| node.turn().map(drop));
                is_busy |= self.is_busy(no);
            }
            if !is_busy {
                break;
            }
            if turn == TURNS_MAX {
                let stops = self.nodes.iter().map(|node| node.node.as_ref().map(SteppedNode::stops));
                panic!("the cluster comes to rest: {:#?}", stops.collect::<Vec<_>>());
            }
        }
        self.check_fresh();
        let sorted = self.all_migrate;
        let first = (contents(&self.nodes[0].app), schema(&self.nodes[0].app));
        for node in &self.nodes {
            let found = (contents(&node.app), schema(&node.app));
            assert_eq!(found.0, first.0, "node {} has the rows of the first", node.no);
            // What a name is quoted in tells which renames SQLite has seen.
            let bare = |schema: Vec<(String, String, String)>| -> Vec<_> {
                let bare = |sql: String| if self.makes_objects { sql.replace('"', "") } else { sql };
                // A view or a trigger that speaks of something which is gone does not follow any more.
                let drops = self.makes_objects && self.nodes.len() == 2;
                let is_free = |kind: &str| drops && matches!(kind, "view" | "trigger");
                let all = schema.into_iter().map(|(kind, name, sql)| {
                    let sql = if is_free(&kind) { String::new() } else { bare(sql) };
                    (kind, name, sql)
                });
                all.collect()
            };
            let (found, first) = ((found.0, bare(found.1)), (&first.0, bare(first.1.clone())));
            let own: Vec<_> = found.1.iter().filter(|object| !first.1.contains(object)).collect();
            let others = first.1.iter().filter(|object| !found.1.contains(object)).collect::<Vec<_>>();
            assert!(sorted || found.1 == first.1, "node {}: {own:#?}, and node 0: {others:#?}", node.no);
            let check: String = node.app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
        }
    }
}

/// Keys of rows that nobody writes twice are larger.
const FRESH: u64 = 1000;

/// The keys of those that are there.
fn fresh_rows(app: &Connection) -> BTreeSet<u64> {
    let of_table = |table: String| {
        let sql = format!("SELECT CAST(CAST(id AS REAL) AS INT) FROM {table} WHERE CAST(id AS REAL) > {FRESH}");
        let mut found = app.prepare(&sql).unwrap();
        let ids = found.query_map([], |row| row.get::<_, i64>(0)).unwrap();
        ids.map(|id| id.unwrap().unsigned_abs()).collect::<Vec<u64>>()
    };
    tables(app).into_iter().flat_map(of_table).collect()
}

pub(super) fn pick<'a>(random: &mut Random, all: &'a [String]) -> Option<&'a String> {
    if all.is_empty() { None } else { Some(random.pick(all)) }
}

/// Where the changes of a script that were made are listed.
const MADE: &str = "made";

fn definition_of(app: &Connection, table: &str) -> String {
    app.query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [table], |row| row.get(0)).unwrap()
}

/// Rebuilds that give a table definitions one after the other, each with one column of another type, or in another place.
fn definitions(random: &mut Random) -> Vec<String> {
    let mut columns = [("a", 30), ("b", 30), ("c", 30)];
    let rebuild = |_| {
        let index = random.below(3) as usize;
        columns[index].1 = *random.pick(&[30, 100, 150]);
        if random.chance(40) {
            // As Django does it.
            columns[index..].rotate_left(1);
        }
        let defined: Vec<String> = columns.iter().map(|(name, size)| format!("{name} VARCHAR({size})")).collect();
        format!(
            "CREATE TABLE new__t0(id INTEGER PRIMARY KEY, {}); INSERT INTO new__t0(id, a, b, c) SELECT id, a, b, c FROM t0; DROP TABLE t0;
             ALTER TABLE new__t0 RENAME TO t0",
            defined.join(", ")
        )
    };
    (0..6).map(rebuild).collect()
}

/// Changes that an application makes one after the other. No name is given again.
fn script(random: &mut Random, app: &Connection, unique: bool) -> Vec<String> {
    let scratch = Connection::open_in_memory().unwrap();
    for table in tables(app) {
        scratch.execute_batch(&definition_of(app, &table)).unwrap();
    }
    let (mut script, mut next) = (Vec::new(), 0);
    // By table. What a column that goes had told apart nobody can tell any more who is ahead of the fold: see docs/operations.md.
    let mut made_unique: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for _ in 0..100 {
        if script.len() == 6 {
            break;
        }
        let mut all = tables(&scratch);
        all.retain(|table| table != MADE);
        let name = random.pick(&all).clone();
        let columns = columns(&scratch, &name);
        next += 1;
        let column = pick(random, &columns).cloned().unwrap_or_default();
        let (table_new, column_new) = (format!("n{next}"), format!("c{next}"));
        let indexes = if unique { unique_indexes(&scratch) } else { Vec::new() };
        let mut sql = match random.below(9) {
            _ if unique && !indexes.is_empty() && random.chance(20) => format!("DROP INDEX {}", random.pick(&indexes)),
            _ if unique && !column.is_empty() && random.chance(50) => {
                let least = format!("SELECT min(id) FROM {name} GROUP BY {column}");
                format!(
                    "DELETE FROM {name} WHERE {column} NOT NULL AND id NOT IN ({least}); CREATE UNIQUE INDEX u{next} ON {name}({column})"
                )
            }
            0 => format!("CREATE TABLE {table_new}(id INTEGER PRIMARY KEY, {column_new} TEXT DEFAULT 'x')"),
            1 | 2 => format!("ALTER TABLE {name} ADD COLUMN {column_new} TEXT DEFAULT 'y'"),
            3 => format!("ALTER TABLE {name} RENAME COLUMN {column} TO {column_new}"),
            4 => format!("ALTER TABLE {name} RENAME TO {table_new}"),
            5 => format!("ALTER TABLE {name} DROP COLUMN {column}"),
            6 => format!("CREATE INDEX i{next} ON {name}({column})"),
            7 if all.len() > 1 => format!("DROP TABLE {name}"),
            _ => {
                // One that came in the place of another that is defined alike is told from it by its rows, of which some nodes have too few.
                let second = "SELECT name FROM pragma_table_info(?1) WHERE cid = 2 AND dflt_value LIKE '_z_'";
                let second: Option<String> = scratch.query_row(second, [&name], |row| row.get(0)).optional().unwrap();
                let is_in_place = second.is_some_and(|second| second != column);
                let came = if is_in_place { String::new() } else { format!(", {column_new} TEXT DEFAULT 'z'") };
                format!(
                    "CREATE TABLE {table_new}(id INTEGER PRIMARY KEY, {column} TEXT{came}); INSERT INTO {table_new}(id, {column})
                     SELECT id, {column} FROM {name}; DROP TABLE {name}; ALTER TABLE {table_new} RENAME TO {name}"
                )
            }
        };
        if random.chance(20) && !column.is_empty() && !unique {
            sql = format!("{sql}; CREATE INDEX j{next} ON {name}({column})");
        }
        let mut unique_next = made_unique.clone();
        if let Some(columns) = unique_next.get_mut(&name)
            && sql.contains("RENAME COLUMN")
            && columns.remove(&column)
        {
            columns.insert(column_new.clone());
        }
        if sql.contains(" RENAME TO ")
            && !sql.contains("DROP TABLE")
            && let Some(columns) = unique_next.remove(&name)
        {
            unique_next.insert(table_new.clone(), columns);
        }
        if sql.contains("CREATE UNIQUE") {
            unique_next.entry(name.clone()).or_default().insert(column.clone());
        }
        scratch.execute_batch("SAVEPOINT one").unwrap();
        let is_done = scratch.execute_batch(&sql).is_ok();
        let is_told = unique_next.iter().all(|(table, unique)| {
            let left = self::columns(&scratch, table);
            left.is_empty() && !tables(&scratch).contains(table) || unique.iter().all(|column| left.contains(column))
        });
        if is_done && is_told {
            scratch.execute_batch("RELEASE one").unwrap();
            made_unique = unique_next;
            script.push(sql);
        } else {
            scratch.execute_batch("ROLLBACK TO one; RELEASE one").unwrap();
        }
    }
    script
}

fn unique_indexes(app: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE UNIQUE INDEX %' ORDER BY name";
    let mut found = app.prepare(sql).unwrap();
    found.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

fn key_definition(is_text: bool) -> &'static str {
    if is_text { "id TEXT PRIMARY KEY" } else { "id INTEGER PRIMARY KEY" }
}

/// A value of any type.
fn any_value(random: &mut Random, number: u64) -> String {
    match random.below(6) {
        0 => format!("'v{number}'"),
        1 => format!("'{number}x'"),
        2 => format!("{number}.5"),
        3 => "NULL".to_owned(),
        4 => format!("x'3{}'", number % 10),
        _ => number.to_string(),
    }
}

/// Whether a table has UNIQUE values beyond its key.
fn is_unique(app: &Connection, table: &str) -> bool {
    let sql = "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE \"unique\" AND origin <> 'pk')";
    app.query_row(sql, [table], |row| row.get(0)).unwrap()
}

/// The tables, and the columns under whatever table.
fn names(app: &Connection) -> BTreeSet<String> {
    let all = tables(app);
    let columns = all.iter().flat_map(|table| columns(app, table).into_iter().map(|column| format!(".{column}")));
    columns.chain(all.iter().cloned()).collect()
}

fn schema(app: &Connection) -> Vec<(String, String, String)> {
    let sql = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name";
    let mut found = app.prepare(sql).unwrap();
    let rows = found.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.collect::<rusqlite::Result<_>>().unwrap()
}

/// Every row of every table, with its columns by name.
fn contents(app: &Connection) -> BTreeMap<String, Vec<String>> {
    let of_table = |table: String| {
        let columns = columns(app, &table);
        let values: Vec<String> = columns.iter().map(|column| format!("'{column}=' || quote({column})")).collect();
        let list = [&["quote(id)".to_owned()], values.as_slice()].concat().join(" || ' ' || ");
        let mut found = app.prepare(&format!("SELECT {list} FROM {table} ORDER BY id")).unwrap();
        let rows = found.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap();
        (table, rows)
    };
    tables(app).into_iter().map(of_table).collect()
}

/// Runs the storms of one kind, of `SEED` alone or of as many seeds as `WOODCHUCK_MIGRATIONS` says.
pub(super) fn run_storms(about: About) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = number("WOODCHUCK_MIGRATIONS_FROM").unwrap_or(0);
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => from..from + number("WOODCHUCK_MIGRATIONS").unwrap_or(60),
    };
    let (mut migrations, mut deaths, mut failed) = (0, 0, Vec::new());
    for seed in seeds {
        println!("SEED={seed}");
        match std::panic::catch_unwind(|| Storm::new(seed, about).run()) {
            Ok((changed, died)) => (migrations, deaths) = (migrations + changed, deaths + died),
            Err(_) => failed.push(seed),
        }
    }
    println!("{migrations} changes of the schema, {deaths} deaths");
    assert!(failed.is_empty(), "seeds fail: {failed:?}");
    assert!(migrations * deaths > 0 || number("SEED").is_some());
}

#[test]
fn schemas_that_change_under_everybody_are_the_same_in_the_end() {
    run_storms(About::Schema);
}

/// Rows that traveled in many shards must travel in one from the moment on at which values of theirs are unique, and rows that nodes had
/// written side by side until then are in each other's way.
#[test]
fn tables_that_become_unique_under_everybody_are_the_same_in_the_end() {
    run_storms(About::Unique);
}

/// A node that has not seen that a column takes other values by now writes what has no place there, or NULL where that cannot be.
#[test]
fn types_that_narrow_under_everybody_leave_the_same_in_the_end() {
    run_storms(About::Types);
}

/// An application brings its schema up to date wherever it starts, and it may start in several places at once.
#[test]
fn changes_that_every_node_makes_are_made_once() {
    run_storms(About::Same);
}

/// Values that every node makes unique, or not any more, while others write rows that are in each other's way then.
#[test]
fn values_that_every_node_makes_unique_leave_the_same_in_the_end() {
    run_storms(About::SameUnique);
}

/// One of them makes a table again as it was some changes ago, while another one makes the next.
#[test]
fn definitions_that_every_node_makes_whatever_it_has_end_as_one() {
    run_storms(About::Stale);
}

/// Schedules that once ended with nodes that differ: own rows that were forgotten while a column was begun anew, and rows of a table that
/// traveled in two shards after it was renamed.
const FOUND_AGAIN: &[u64] = &[5666, 5985, 10_833, 11_308, 12_049];

/// A name that was given up and is given again was once confused with the old one: rows of a table that was gone entered the new one on
/// some of the nodes, and a column took values of one that had its name before.
#[test]
fn names_that_are_given_again_mean_the_new_thing_on_every_node() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (from, count) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => (number("WOODCHUCK_NAMES_FROM").unwrap_or(0), number("WOODCHUCK_NAMES_AGAIN").unwrap_or(100)),
    };
    let found: &[u64] = if count > 1 { FOUND_AGAIN } else { &[] };
    let (mut given_again, mut failed) = (0, Vec::new());
    for seed in (from..from + count).chain(found.iter().copied()) {
        println!("SEED={seed}");
        let storm = || {
            let mut storm = Storm::new(seed, About::Again);
            storm.run();
            storm.given_again
        };
        match std::panic::catch_unwind(storm) {
            Ok(count) => given_again += count,
            Err(_) => failed.push(seed),
        }
    }
    println!("{given_again} changes of the schema gave a name again");
    assert!(failed.is_empty(), "{} of {count} seeds fail: {failed:?}", failed.len());
    assert!(given_again > 0 || count == 1);
}
