//! Schemas that change while every node writes and dies: in the end all nodes have one schema and the same rows.
//!
//! There is no specification here but equality. One node migrates in any way, or all of them in ways that can meet. No name that was given
//! up is given again: see docs/operations.md.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use woodchuck::log::{Announced, Delivery, MESSAGE_BYTES_MAX, MemoryLog, ShardId, StreamSeq, decode_header};
use woodchuck::node::SteppedNode;

use super::behind::Behind;
use super::node::SimNode;
use super::schedule::Setup;
use crate::support::random::Random;

const STEPS: usize = 120;
const TURNS_MAX: usize = 200;

pub(super) struct Storm {
    pub(super) random: Random,
    pub(super) setup: Setup,
    pub(super) nodes: Vec<SimNode>,
    pub(super) log: MemoryLog,
    /// All nodes change the schema, in ways that can meet.
    pub(super) all_migrate: bool,
    /// Tables get UNIQUE values while all write the few that there are.
    unique: bool,
    pub(super) migrations: u64,
    pub(super) deaths: u64,
    /// Nodes fall behind the log.
    pub(super) behind: Option<Behind>,
    /// Names of tables and columns that were given up. Nobody gives them again: who has not seen that would mean the old ones.
    gone: BTreeSet<String>,
    _runtime: Runtime,
    pub(super) directory: TempDir,
}

fn tables(app: &Connection) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut found = app.prepare(sql).unwrap();
    found.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// Columns beside the key.
fn columns(app: &Connection, table: &str) -> Vec<String> {
    let mut found = app.prepare("SELECT name FROM pragma_table_info(?1) WHERE pk = 0 ORDER BY name").unwrap();
    found.query_map([table], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

/// What a column of this name is wherever it is added.
fn definition(column: &str) -> String {
    match column {
        "a" => "a TEXT DEFAULT 'of a'".to_owned(),
        "b" => "b INT".to_owned(),
        "c" => "c TEXT NOT NULL DEFAULT ''".to_owned(),
        "d" => "d REAL".to_owned(),
        other => format!("{other} TEXT"),
    }
}

const COLUMNS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

impl Storm {
    pub(super) fn new(seed: u64, unique: bool, falls_behind: bool) -> Storm {
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
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let fill = |app: &Connection| {
            app.execute_batch(
                "CREATE TABLE t0(id INTEGER PRIMARY KEY, a TEXT, b INT); CREATE TABLE t1(id TEXT PRIMARY KEY, x) WITHOUT ROWID;
                 INSERT INTO t0 VALUES(1, 'one', 1), (2, 'two', 2), (3, 'three', 3); INSERT INTO t1 VALUES('1', 1), ('2', 2)",
            )
            .unwrap();
        };
        let nodes: Vec<SimNode> = (0..setup.nodes)
            .map(|no| SimNode::new(directory.path(), no, setup, runtime.handle().clone(), fill))
            .collect();
        let all_migrate = random.chance(40);
        let log = MemoryLog::new(setup.shards, 1);
        let mut storm = Storm {
            random,
            setup,
            nodes,
            log,
            all_migrate,
            unique,
            migrations: 0,
            deaths: 0,
            behind: None,
            gone: BTreeSet::new(),
            _runtime: runtime,
            directory,
        };
        if falls_behind {
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
                28..38 => self.migrate(if self.all_migrate { no } else { 0 }),
                38..60 => drop(self.nodes[no].with(None, |node| node.turn().map(drop))),
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

    fn execute(&mut self, no: usize, sql: &str) {
        // What the application may not do it does not do.
        println!("node {no}: {sql}");
        if self.nodes[no].app.execute_batch(&format!("BEGIN IMMEDIATE; {sql}; COMMIT")).is_err() {
            let _ = self.nodes[no].app.execute_batch("ROLLBACK");
        }
    }

    fn write(&mut self, no: usize) {
        let sql = self.rows(no);
        self.execute(no, &sql);
    }

    /// Statements that change some rows.
    fn rows(&mut self, no: usize) -> String {
        let all = tables(&self.nodes[no].app);
        let mut sql = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            if all.is_empty() {
                break;
            }
            let table = self.random.pick(&all).clone();
            let columns = columns(&self.nodes[no].app, &table);
            let id = 1 + self.random.below(9);
            let value = self.random.below(if self.unique { 6 } else { 1000 });
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

    fn migrate(&mut self, no: usize) {
        let all = tables(&self.nodes[no].app);
        let name = format!("t{}", self.random.below(9));
        let column = *self.random.pick(&COLUMNS);
        let (other, to) = (*self.random.pick(&COLUMNS), format!("t{}", self.random.below(9)));
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
            2 if self.unique => format!("ALTER TABLE {name} ADD COLUMN {}", definition(column)),
            0 if !is_there => format!("CREATE TABLE {name}(id INTEGER PRIMARY KEY, a TEXT DEFAULT 'of a', b INT)"),
            0 | 1 => format!("ALTER TABLE {name} ADD COLUMN {}", definition(column)),
            2 => format!("ALTER TABLE {name} DROP COLUMN {column}"),
            3 => format!("DROP TABLE {name}"),
            4 => format!("ALTER TABLE {name} RENAME COLUMN {column} TO {other}"),
            5 if self.behind.is_some() && self.setup.shards > 1 => return,
            5 => format!("ALTER TABLE {name} RENAME TO {to}"),
            6 => format!("CREATE INDEX {name}_{column} ON {name}({column})"),
            7 => format!(
                "DROP INDEX IF EXISTS {name}_{column}; CREATE VIEW IF NOT EXISTS v_{name} AS SELECT * FROM {name}; DROP VIEW v_{name}"
            ),
            // As Django does it.
            _ if is_there => {
                let kept = columns(&self.nodes[no].app, &name);
                let kept: Vec<&String> = kept.iter().filter(|name| name.as_str() != column).collect();
                let mut defined: Vec<String> = kept.iter().map(|name| definition(name)).collect();
                let with_new = self.random.chance(50) && !kept.iter().any(|name| name.as_str() == other);
                let mut names: Vec<String> = kept.iter().map(|name| (*name).clone()).collect();
                let mut values = names.clone();
                if with_new {
                    defined.push(format!("{other} TEXT NOT NULL"));
                    names.push(other.to_owned());
                    values.push(format!("'{}'", self.random.below(3)));
                }
                let is_text: bool = self.nodes[no]
                    .app
                    .query_row("SELECT type = 'TEXT' FROM pragma_table_info(?1) WHERE name = 'id'", [&name], |row| {
                        row.get(0)
                    })
                    .unwrap();
                let key = if is_text { "id TEXT PRIMARY KEY" } else { "id INTEGER PRIMARY KEY" };
                let form = if is_text { " WITHOUT ROWID" } else { "" };
                let list = |first: &str, all: &[String]| [&[first.to_owned()], all].concat().join(", ");
                let (defined, names, values) = (list(key, &defined), list("id", &names), list("id", &values));
                format!(
                    "CREATE TABLE new_{name}({defined}){form}; INSERT INTO new_{name}({names}) SELECT {values} FROM {name};
                     DROP TABLE {name}; ALTER TABLE new_{name} RENAME TO {name}"
                )
            }
            _ => return,
        };
        let rows = if self.random.chance(40) { self.rows(no) } else { String::new() };
        let before = names(&self.nodes[no].app);
        let schema_before = schema(&self.nodes[no].app);
        // On trial: what gives a name again is not done.
        self.nodes[no].app.execute_batch("BEGIN IMMEDIATE").unwrap();
        let done = self.nodes[no].app.execute_batch(&format!("{sql}; {rows}")).is_ok();
        let after = names(&self.nodes[no].app);
        let is_again = after.difference(&before).any(|name| self.gone.contains(name));
        println!("node {no}: done {done} {is_again}: {sql}; {rows}");
        if done && !is_again && self.nodes[no].app.execute_batch("COMMIT").is_ok() {
            self.gone.extend(before.difference(&after).cloned());
        } else {
            let _ = self.nodes[no].app.execute_batch("ROLLBACK");
        }
        self.migrations += u64::from(schema(&self.nodes[no].app) != schema_before);
    }

    fn send(&mut self, no: usize, count: usize) {
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
                println!(
                    "node {no} gets {shard:?} {:?} of {:x} round {} {}",
                    entry.seq, header.origin.node_id, header.round_no, header.barrier
                );
                let announced = Announced { shard, seq: entry.seq, time: entry.time, header, payload: entry.payload };
                self.nodes[no].next.insert(shard, StreamSeq(entry.seq.0 + 1));
                self.nodes[no].with(None, |node| node.deliver(Delivery::Arrived(announced)));
            }
        }
    }

    fn is_busy(&mut self, no: usize) -> bool {
        let ends: Vec<u64> = self.shards().map(|shard| self.last(shard).0).collect();
        let shards: Vec<ShardId> = self.shards().collect();
        let node = self.nodes[no].node.as_mut().unwrap();
        let state = node.replica().state();
        let applied: Vec<u64> = shards.iter().map(|shard| state.position(*shard).unwrap().0).collect();
        state.backlog().unwrap().units > 0 || applied != ends
    }

    fn settle(&mut self) {
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
        let sorted = self.all_migrate;
        let first = (contents(&self.nodes[0].app), schema(&self.nodes[0].app));
        for node in &self.nodes {
            let found = (contents(&node.app), schema(&node.app));
            assert_eq!(found.0, first.0, "node {} has the rows of the first", node.no);
            assert!(sorted || found.1 == first.1, "node {}: {:#?} {:#?}", node.no, found.1, first.1);
            let check: String = node.app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
        }
    }
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

#[test]
fn schemas_that_change_under_everybody_are_the_same_in_the_end() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WOODCHUCK_MIGRATIONS").unwrap_or(150),
    };
    let (mut migrations, mut deaths) = (0, 0);
    for seed in seeds {
        println!("SEED={seed}");
        let (changed, died) = Storm::new(seed, false, false).run();
        migrations += changed;
        deaths += died;
    }
    println!("{migrations} changes of the schema, {deaths} deaths");
    assert!(migrations > 0 || number("SEED").is_some());
}

/// Rows that traveled in many shards must travel in one from the moment on at which values of theirs are unique, and rows that nodes had
/// written side by side until then are in each other's way.
#[test]
fn tables_that_become_unique_under_everybody_are_the_same_in_the_end() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WOODCHUCK_MIGRATIONS").unwrap_or(150),
    };
    let (mut migrations, mut deaths) = (0, 0);
    for seed in seeds {
        println!("SEED={seed}");
        let (changed, died) = Storm::new(seed, true, false).run();
        migrations += changed;
        deaths += died;
    }
    println!("{migrations} changes of the schema, {deaths} deaths");
    assert!(migrations > 0 || number("SEED").is_some());
}
