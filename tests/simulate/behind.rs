//! Nodes that are away for longer than the log reaches while the schema changes, and catch up from snapshots with changes of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::Connection;
use woodchuck::fault::Point;
use woodchuck::format::Value;
use woodchuck::log::{Delivery, LogError, ShardId, SnapshotManifest, StreamSeq};
use woodchuck::node::{NodeError, Restore, SteppedNode, stream_options};

use super::migrations::About;
use super::migrations::Storm;
use super::node::open_application;

/// What a storm needs for it.
#[derive(Default)]
pub(super) struct Behind {
    /// The node that mostly does not read.
    deaf: usize,
    /// Of each shard, the last message that is gone.
    gone: BTreeMap<ShardId, StreamSeq>,
    snapshots: Vec<(PathBuf, SnapshotManifest)>,
    files: usize,
    pub(super) catch_ups: u64,
    pub(super) joins: u64,
}

/// Where a node dies that applies.
const POINTS: [Point; 6] =
    [Point::Folded, Point::IntentWritten, Point::UserCommitted, Point::OwnTaken, Point::IntentSettled, Point::Captured];

impl Storm {
    /// Lets nodes fall behind.
    pub(super) fn fall_behind(&mut self) {
        let last = self.nodes.len() - 1;
        // With one node that migrates, now and then it is that one.
        let deaf = if self.random.chance(70) { last } else { 0 };
        self.behind = Some(Behind { deaf, ..Behind::default() });
    }

    /// The last message of a shard that is gone.
    pub(super) fn behind_first(&self, shard: ShardId) -> StreamSeq {
        self.behind.as_ref().and_then(|behind| behind.gone.get(&shard)).copied().unwrap_or_default()
    }

    pub(super) fn hear(&mut self, no: usize, count: usize) {
        let is_deaf = self.behind.as_ref().is_some_and(|behind| behind.deaf == no);
        if !is_deaf || self.random.chance(10) {
            self.deliver(no, count);
        }
    }

    /// Whether a node cannot read a shard on.
    pub(super) fn fell_behind(&mut self, no: usize, shard: ShardId) -> bool {
        let first = StreamSeq(self.behind_first(shard).0 + 1);
        let node = &mut self.nodes[no];
        if node.failed.contains(&shard) {
            return true;
        }
        let wanted = node.next[&shard];
        if wanted >= first {
            return false;
        }
        node.failed.insert(shard);
        let error = LogError::FellBehind { stream: format!("shard {}", shard.0), wanted, first };
        node.with(None, |node| node.deliver(Delivery::Failed { shard, error }));
        true
    }

    pub(super) fn step_behind(&mut self, no: usize) {
        let deaf = self.behind.as_ref().map_or(no, |behind| behind.deaf);
        match self.random.below(14) {
            0..2 => self.snapshot(no),
            2..6 => {
                if no != deaf {
                    self.snapshot(no);
                }
                self.trim();
            }
            6..10 => {
                let no = if self.random.chance(60) { deaf } else { no };
                self.deliver(no, 1);
                self.catch_up(no);
                // It dies while it does so, or has done so.
                let point = *self.random.pick(&POINTS);
                if self.random.chance(60) {
                    for _ in 0..2 {
                        self.die(no, point, 1);
                    }
                }
            }
            10..13 => {
                let (point, passing) = (*self.random.pick(&POINTS), 1 + self.random.below(2) as u32);
                let no = if self.random.chance(60) { deaf } else { no };
                self.die(no, point, passing);
            }
            _ => self.join(no),
        }
    }

    fn die(&mut self, no: usize, point: Point, passing: u32) {
        self.deaths += u64::from(self.nodes[no].node.is_some());
        self.nodes[no].with(Some((point, passing)), |node| node.turn().map(drop));
        self.deaths -= u64::from(self.nodes[no].node.is_some());
    }

    fn file(&mut self, name: &str) -> PathBuf {
        let behind = self.behind.as_mut().unwrap();
        behind.files += 1;
        self.directory.path().join(format!("{name}-{}.db", behind.files))
    }

    pub(super) fn snapshot(&mut self, no: usize) {
        let path = self.file("snapshot");
        let mut made = None;
        self.nodes[no].with(None, |node| {
            made = node.snapshot(&path)?;
            Ok(())
        });
        if let Some(manifest) = made {
            self.behind.as_mut().unwrap().snapshots.push((path, manifest));
        }
    }

    /// The log forgets what the newest snapshot has.
    pub(super) fn trim(&mut self) {
        let behind = self.behind.as_mut().unwrap();
        let Some((_, manifest)) = behind.snapshots.last() else { return };
        // One of a node that is behind in some shard would leave nobody a snapshot that reaches back in all of them.
        if manifest.stand.iter().any(|(shard, stand)| behind.gone.get(shard).is_some_and(|gone| *gone > stand.seq)) {
            return;
        }
        for (shard, stand) in &manifest.stand {
            self.log.trim(*shard, StreamSeq(stand.seq.0 + 1));
            let gone = behind.gone.entry(*shard).or_default();
            *gone = stand.seq.max(*gone);
        }
    }

    pub(super) fn catch_up(&mut self, no: usize) {
        if self.nodes[no].wants.is_empty() || self.nodes[no].node.is_none() {
            return;
        }
        let wants = std::mem::take(&mut self.nodes[no].wants);
        let behind = self.behind.as_mut().unwrap();
        let does = |(_, manifest): &&(PathBuf, SnapshotManifest)| {
            wants.iter().all(|(shard, at_least)| manifest.stand[shard].seq >= *at_least)
        };
        let (from, manifest) =
            behind.snapshots.iter().rev().find(does).expect("the log is cut behind a snapshot").clone();
        behind.catch_ups += 1;
        let path = self.file("fetched");
        std::fs::copy(from, &path).unwrap();
        self.nodes[no].with(None, |node| node.catch_up(&path, manifest));
    }

    /// A node that is down is made anew from the newest snapshot, if nothing would be lost.
    fn join(&mut self, no: usize) {
        let Some((from, manifest)) = self.behind.as_ref().unwrap().snapshots.last().cloned() else { return };
        let node = &mut self.nodes[no];
        if node.node.is_some() {
            return;
        }
        let part = node.path.with_file_name("app.db-woodchuck-part");
        std::fs::copy(from, &part).unwrap();
        let config = node.config();
        let restore = Restore {
            rows: config.row_filters.clone(),
            db_path: config.db_path.clone(),
            state_dir: config.state_dir.clone(),
            nats: config.nats.clone(),
            streams: stream_options(&config),
            replace: true,
            tables: None,
        };
        node.app = Connection::open_in_memory().unwrap();
        let restored = SteppedNode::restore(&restore, &part, manifest);
        node.app = open_application(&node.path);
        match restored {
            Ok(()) => {
                self.start(no);
                let node = &mut self.nodes[no];
                node.origin = node.node.as_mut().unwrap().replica().state().origin();
                self.behind.as_mut().unwrap().joins += 1;
            }
            Err(NodeError::Unpublished { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Schedules in which something was wrong: a table that pending changes had renamed and dropped came back; what a catch-up had made of the schema was taken
/// for an own change after a crash; NULL of the snapshot had no place in a table that a pending change had rebuilt; a merge forgot the position that was
/// stored, as no row had changed since the last one that was captured.
const FOUND: [u64; 4] = [260, 424, 1522, 4636];

/// The same where all make the same changes: a table that was dropped and made anew by the intent of a node which died lost its making, and was dropped
/// everywhere; a table that several had made was taken for another one than that of the one who had been heard of; and own changes of a table whose
/// making the snapshot has were taken for those of a table that nobody else has; and base of a table that an intent drops came back
/// for the one that has its name.
const FOUND_SAME: [u64; 6] = [168, 206, 743, 978, 1166, 2283];

/// The same where values become UNIQUE: what a catch-up had made of a table and what the application made of it afterwards was one change after a crash,
/// which nobody else's table could take; and what an intent had made UNIQUE stood in the way of the fold, which was taken back to before.
const FOUND_UNIQUE: [u64; 2] = [156, 1935];

/// Runs the storms of one kind, of `SEED` alone or of as many seeds as `WOODCHUCK_MIGRATIONS` says and those in which something was wrong.
fn run_storms(about: About, found: &[u64]) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = number("WOODCHUCK_MIGRATIONS_FROM").unwrap_or(0);
    let seeds: Vec<u64> = match number("SEED") {
        Some(seed) => vec![seed],
        None => found.iter().copied().chain(from..from + number("WOODCHUCK_MIGRATIONS").unwrap_or(60)).collect(),
    };
    let (mut migrations, mut deaths, mut catch_ups, mut joins) = (0, 0, 0, 0);
    let mut failed = Vec::new();
    for seed in seeds {
        println!("SEED={seed}");
        let run = || {
            let mut storm = Storm::new(seed, about);
            let (changed, died) = storm.run();
            let behind = storm.behind.take().unwrap();
            (changed, died, behind.catch_ups, behind.joins)
        };
        match std::panic::catch_unwind(run) {
            Ok(counts) => {
                migrations += counts.0;
                deaths += counts.1;
                catch_ups += counts.2;
                joins += counts.3;
            }
            Err(_) => failed.push(seed),
        }
    }
    println!("{migrations} changes of the schema, {deaths} deaths, {catch_ups} nodes caught up, {joins} joined");
    assert!(failed.is_empty(), "seeds fail: {failed:?}");
    assert!(migrations * catch_ups > 0 || number("SEED").is_some());
}

#[test]
fn a_node_that_was_away_while_the_schema_changed_ends_with_the_rows_and_the_schema_of_the_others() {
    run_storms(About::Behind, &FOUND);
}

#[test]
fn a_node_that_was_away_while_values_became_unique_ends_with_the_rows_and_the_schema_of_the_others() {
    run_storms(About::BehindUnique, &FOUND_UNIQUE);
}

/// It makes them, too, when it comes to it.
#[test]
fn a_node_that_was_away_while_all_made_the_same_changes_ends_with_the_rows_and_the_schema_of_the_others() {
    run_storms(About::BehindSame, &FOUND_SAME);
}

/// One that makes indexes, triggers and views while another one renames what they speak of.
#[test]
fn a_node_that_was_away_while_names_were_given_ends_with_the_indexes_of_the_others() {
    run_storms(About::BehindObjects, &[]);
}

#[test]
fn a_node_that_was_away_while_names_were_given_ends_with_the_unique_indexes_of_the_others() {
    run_storms(About::BehindObjectsUnique, &[]);
}

/// Rows of a table travel in another shard behind the change that made its values UNIQUE, and what comes behind it in theirs from a node that has
/// not heard of it nobody folds: that node sends it again. Here it hears of the change by a snapshot, which stands behind all of that.
#[test]
fn changes_that_nobody_has_folded_are_sent_again_by_a_node_that_catches_up() {
    let mut sent_again = 0;
    for seed in 0..12 {
        let mut storm = Storm::new(seed, About::Behind);
        // One round may be in flight at a time, and a change of the schema has one of its own.
        let turn = |storm: &mut Storm, no: usize| {
            for _ in 0..4 {
                storm.nodes[no].with(None, |node| node.turn().map(drop));
                storm.send(no, usize::MAX);
            }
        };
        let rows = |from: u64| {
            let values: Vec<String> = (from..from + 20).map(|id| format!("({id}, 'first', NULL)")).collect();
            format!("INSERT INTO t0 VALUES{}", values.join(", "))
        };
        // These are in the fold before the change, and what is written to them there is later.
        storm.execute(1, &rows(100));
        turn(&mut storm, 1);
        storm.deliver(0, usize::MAX);
        turn(&mut storm, 0);
        storm.execute(0, "UPDATE t0 SET a = 'second' WHERE id >= 100; DELETE FROM t0 WHERE id = 119");
        storm.execute(0, "CREATE UNIQUE INDEX u ON t0(b)");
        turn(&mut storm, 0);
        for sql in [&rows(200), "UPDATE t0 SET b = 70 + id WHERE id BETWEEN 100 AND 104", "DELETE FROM t0 WHERE id < 4"]
        {
            storm.execute(1, sql);
        }
        turn(&mut storm, 1);
        for no in (0..storm.nodes.len()).chain([0]).filter(|no| *no != 1) {
            storm.deliver(no, usize::MAX);
            turn(&mut storm, no);
        }
        storm.snapshot(0);
        assert_eq!(storm.behind.as_ref().unwrap().snapshots.len(), 1, "SEED={seed}");
        storm.trim();
        // Some of it is on its way yet.
        storm.execute(1, "INSERT INTO t0 VALUES(300, 'late', 300)");
        if seed % 2 == 0 {
            storm.nodes[1].with(None, |node| node.turn().map(drop));
        }
        storm.deliver(1, usize::MAX);
        storm.catch_up(1);
        assert_eq!(storm.behind.as_ref().unwrap().catch_ups, 1, "SEED={seed}");
        storm.settle();
        for node in &storm.nodes {
            let count = |sql: &str| -> i64 { node.app.query_row(sql, [], |row| row.get(0)).unwrap() };
            let found = [
                "SELECT count(*) FROM t0 WHERE id BETWEEN 200 AND 219 AND a = 'first'",
                "SELECT count(*) FROM t0 WHERE id BETWEEN 100 AND 119 AND a = 'second'",
                "SELECT count(*) FROM t0 WHERE id BETWEEN 100 AND 104 AND b = 70 + id",
                "SELECT count(*) FROM t0 WHERE id < 4",
                "SELECT count(*) FROM t0 WHERE id = 300",
            ];
            assert_eq!(found.map(count), [20, 19, 5, 0, 1], "SEED={seed}, node {}", node.no);
        }
        sent_again += u64::from(storm.setup.shards > 1);
    }
    assert!(sent_again > 3, "some of the seeds have several shards");
}

/// A node that swaps the names of two tables while it is away catches up with its own change on top, also where others have changed one of them.
#[test]
fn a_swap_of_own_tables_stays_on_top_of_a_snapshot() {
    for seed in 0..12 {
        let mut storm = Storm::new(seed, About::Behind);
        let turns = |storm: &mut Storm, no: usize| {
            for _ in 0..4 {
                storm.nodes[no].with(None, |node| node.turn().map(drop));
                storm.send(no, usize::MAX);
                storm.deliver(no, usize::MAX);
            }
        };
        let swap = "ALTER TABLE t0 RENAME TO aside; ALTER TABLE t1 RENAME TO t0; ALTER TABLE aside RENAME TO t1";
        storm.execute(0, "UPDATE t0 SET a = 'theirs' WHERE id = 1; INSERT INTO t1 VALUES('theirs', 1)");
        if seed % 2 == 0 {
            storm.execute(0, "ALTER TABLE t0 ADD COLUMN c TEXT DEFAULT 'new'");
        }
        turns(&mut storm, 0);
        storm.execute(1, "UPDATE t0 SET b = 7 WHERE id = 2");
        storm.execute(1, swap);
        storm.execute(1, "INSERT INTO t0 VALUES('own', 2); UPDATE t1 SET b = 8 WHERE id = 3");
        storm.nodes[1].with(None, |node| node.turn().map(drop));
        storm.snapshot(0);
        assert_eq!(storm.behind.as_ref().unwrap().snapshots.len(), 1, "SEED={seed}");
        storm.trim();
        storm.deliver(1, usize::MAX);
        storm.catch_up(1);
        assert_eq!(storm.behind.as_ref().unwrap().catch_ups, 1, "SEED={seed}");
        storm.settle();
        for node in &storm.nodes {
            let count = |sql: &str| -> i64 { node.app.query_row(sql, [], |row| row.get(0)).unwrap() };
            let found = ["SELECT count(*) FROM t0 WHERE id IN ('own', 'theirs')", "SELECT sum(b) FROM t1"];
            assert_eq!(found.map(count), [2, 1 + 7 + 8], "SEED={seed}, node {}", node.no);
        }
    }
}

/// What a node that was away has made of a table goes with the table, although another one has its name.
#[test]
fn an_index_of_a_table_that_others_have_dropped_is_not_one_of_the_table_with_its_name() {
    for seed in 0..8 {
        let mut storm = Storm::new(seed, About::Behind);
        for sql in [
            "DROP TABLE t0",
            "CREATE TABLE t0(id INTEGER PRIMARY KEY, a TEXT, b INT)",
            "INSERT INTO t0 VALUES(9, 'new', 9)",
        ] {
            storm.execute(0, sql);
            for _ in 0..4 {
                storm.nodes[0].with(None, |node| node.turn().map(drop));
                storm.send(0, usize::MAX);
                storm.deliver(0, usize::MAX);
            }
        }
        let made =
            "CREATE INDEX o ON t0(a); CREATE TRIGGER r AFTER INSERT ON t0 BEGIN DELETE FROM t1 WHERE id = new.a; END;
            CREATE INDEX p ON t1(x)";
        storm.execute(1, made);
        storm.execute(1, "INSERT INTO t0 VALUES(50, 'nowhere', 5); UPDATE t1 SET x = 'here' WHERE id = '1'");
        storm.nodes[1].with(None, |node| node.turn().map(drop));
        storm.snapshot(0);
        assert_eq!(storm.behind.as_ref().unwrap().snapshots.len(), 1, "SEED={seed}");
        storm.trim();
        storm.deliver(1, usize::MAX);
        storm.catch_up(1);
        assert_eq!(storm.behind.as_ref().unwrap().catch_ups, 1, "SEED={seed}");
        storm.settle();
        for node in &storm.nodes {
            let sql = "SELECT group_concat(name) FROM sqlite_schema WHERE type <> 'table' AND sql IS NOT NULL";
            let found: String = node.app.query_row(sql, [], |row| row.get(0)).unwrap();
            assert_eq!(found, "p", "SEED={seed}, node {}", node.no);
        }
        // A row that has no place is in the journal.
        let node = storm.nodes[1].node.as_mut().expect("the node runs");
        let journal = node.replica().state().conflicts(100).unwrap();
        let lost: Vec<_> = journal.iter().filter_map(|conflict| conflict.lost.as_ref()).collect();
        let nowhere = Value::Text(b"nowhere".to_vec());
        assert!(lost.len() == 1 && lost[0].contains(&nowhere), "SEED={seed}: {lost:?}");
    }
}
