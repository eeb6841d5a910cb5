//! `state.db`: what a node knows beside the user's database. One SQLite file of ours, one writer, the database thread.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rusqlite::{Connection, OptionalExtension, params};

use super::beginnings::columns_kept;
use super::claims::claim_everything;
use super::connection::keep_plans;
use super::deferred::{self, Deferred};
use super::error::ApplyError;
use super::known::Known;
use super::repeated::PendingStep;
use super::routing::Travels;
use super::shape::LocalTable;
use super::state_file;
use super::state_log::Checkpoints;
use super::versions::Versions;
use crate::log::{Folded, MovedIn, Origin, ShardId, StreamSeq, TableShape};
use crate::schema::{RowFilters, Table};

/// The node id of a state that was made for a node yet to be named: the first that opens it gives it its own.
const UNNAMED: u64 = 0;

/// Statements that stay prepared: all there are.
const STATEMENTS_MAX: usize = 128;

/// Whether the rows of base still follow from own units alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dirty {
    Clean = 0,
    /// Pending was once replayed over foreign changes.
    Plain = 1,
    /// The same while values were UNIQUE: rows can have made room for others that nothing is pending on, whatever is UNIQUE by now.
    Unique = 2,
}

impl Dirty {
    fn of(number: i64) -> Dirty {
        match number {
            0 => Dirty::Clean,
            1 => Dirty::Plain,
            _ => Dirty::Unique,
        }
    }
}

/// What is known of one table by number.
#[derive(Debug, Clone)]
pub(super) struct TableState {
    pub(super) id: i64,
    /// Rows in `base`; those that are deferred are not among them.
    pub(super) base_rows: Cell<u64>,
    pub(super) dirty: Dirty,
    /// The UNIQUE indexes at the time of the last look, as text that changes when they do.
    pub(super) uniques: String,
    /// How its rows travel: one row must never travel in two shards.
    pub(super) travels: Travels,
    /// The shards in which the fold stands behind the change of the schema that made them travel by the table's name.
    pub(super) moved_in: Vec<MovedIn>,
}

impl TableState {
    pub(super) fn new(id: i64, uniques: String, travels: Travels) -> TableState {
        TableState { id, base_rows: Cell::new(0), dirty: Dirty::Clean, uniques, travels, moved_in: Vec::new() }
    }
}

/// The state database.
#[derive(Debug)]
pub struct State {
    pub(super) db: Connection,
    /// Pages in its log since the last commit.
    log_pages: Arc<AtomicU32>,
    checkpoints: RefCell<Checkpoints>,
    others_wait: bool,
    pub(super) tables: HashMap<String, TableState>,
    /// What base has beside `base`.
    pub(super) deferred: RefCell<Deferred>,
    shapes: HashMap<Vec<String>, i64>,
    /// Tables that have a name which others had before, in lower case.
    pub(super) born_again: HashSet<String>,
    locals: HashMap<String, Arc<LocalTable>>,
    pub(super) pending_id_next: i64,
    /// Changes of base are recorded so that they can be taken back.
    pub(super) revertible: bool,
    /// Which rows this node replicates.
    pub(super) filters: RowFilters,
    /// What the fold at hand does to rows and is not stored yet, for its intent.
    pub(super) versions: Versions,
    origin: Origin,
    /// The state may have gone back in time, and not all of what was done since is known yet.
    pub(super) suspecting: bool,
    /// Entries that the conflict journal keeps; the oldest go first.
    pub(super) conflicts_max: i64,
    pub(super) known: Known,
    /// Own changes of the schema that are ahead of the fold, once they were looked for.
    pub(super) steps_ahead: RefCell<Option<Arc<Vec<PendingStep>>>>,
}

/// The page size of a new state. Each captured transaction changes a place in nine trees and writes that many pages: smaller ones are less to
/// write, and still smaller ones make a bulk slow, whose rows then need pages of their own.
const PAGE_BYTES: i64 = 2048;
/// At a kilobyte each these are ten megabytes.
const CONFLICTS_MAX: i64 = 10_000;

impl State {
    /// Opens the state database at `path`, or makes it. `database` names the user's database that it belongs to; `origin` is taken when the
    /// state is new, otherwise the stored one stays.
    ///
    /// # Errors
    /// [`ApplyError::NotState`], [`ApplyError::StateVersion`], [`ApplyError::OtherDatabase`] when the file is not for us.
    pub fn open(path: &Path, database: &str, origin: Origin) -> Result<State, ApplyError> {
        let db = Connection::open(path)?;
        db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        keep_plans(&db)?;
        db.pragma_update(None, "page_size", PAGE_BYTES)?;
        db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        // 8 MiB: the interior pages of base and pending during a bulk, and little beside the memory bound.
        db.pragma_update(None, "cache_size", -8192)?;
        state_file::prepare(&db, path, database, origin)?;
        let found: Vec<u8> = db.query_row("SELECT value FROM meta WHERE name = 'database'", [], |row| row.get(0))?;
        if found != database.as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(ApplyError::OtherDatabase { found, wanted: database.to_owned() });
        }
        let mut state = State::over(db)?;
        if state.origin.node_id == UNNAMED && origin.node_id != UNNAMED {
            state.set_meta("origin", &origin_bytes(origin))?;
            state.origin = origin;
        }
        Ok(state)
    }

    /// A state over an open connection.
    pub(super) fn over(mut db: Connection) -> Result<State, ApplyError> {
        let origin: Vec<u8> = db.query_row("SELECT value FROM meta WHERE name = 'origin'", [], |row| row.get(0))?;
        let origin = origin_of(&origin)?;
        // The hook takes the place of SQLite's automatic checkpoints.
        let log_pages = Arc::new(AtomicU32::new(0));
        let pages = Arc::clone(&log_pages);
        db.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, count: std::ffi::c_int| {
            pages.store(u32::try_from(count).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        let mut state = State {
            db,
            log_pages,
            checkpoints: RefCell::default(),
            others_wait: false,
            tables: HashMap::new(),
            deferred: RefCell::default(),
            shapes: HashMap::new(),
            born_again: HashSet::new(),
            locals: HashMap::new(),
            pending_id_next: 1,
            revertible: false,
            suspecting: false,
            filters: RowFilters::default(),
            versions: Versions::default(),
            origin,
            conflicts_max: CONFLICTS_MAX,
            known: Known::default(),
            steps_ahead: RefCell::default(),
        };
        state.reload()?;
        Ok(state)
    }

    /// Who we are on the log: chosen when the state was made.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Whether a file that is there holds no state: its content was in a write-ahead log that is gone or damaged, or it is nobody's yet.
    ///
    /// # Errors
    /// When it cannot be read, or is no database.
    pub fn is_empty(path: &Path) -> Result<bool, ApplyError> {
        let db = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        Ok(db.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?)
    }

    /// Opens the state database of a node that may be running, to look at.
    ///
    /// # Errors
    /// [`ApplyError::NotState`], [`ApplyError::StateVersion`], or that it cannot be read.
    pub fn look(path: &Path) -> Result<State, ApplyError> {
        let db = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let database: Option<Vec<u8>> =
            db.query_row("SELECT value FROM meta WHERE name = 'database'", [], |row| row.get(0)).optional()?;
        let database = String::from_utf8_lossy(&database.unwrap_or_default()).into_owned();
        drop(db);
        State::open(path, &database, Origin { node_id: 0, epoch: 0 })
    }

    /// What is stored under a name; a new name takes `value`. For settings that the state depends on.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn setting_or(&self, name: &str, value: &[u8]) -> Result<Vec<u8>, ApplyError> {
        let name = format!("setting:{name}");
        self.db.execute("INSERT OR IGNORE INTO meta(name, value) VALUES(?1, ?2)", params![name, value])?;
        Ok(self.db.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))?)
    }

    /// Whether a setting was ever stored.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn has_setting(&self, name: &str) -> Result<bool, ApplyError> {
        Ok(self.meta(&format!("setting:{name}"))?.is_some())
    }

    /// Stores a capture position, before a replica is made of the state.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn store_capture_position(&self, position: &[u8]) -> Result<(), ApplyError> {
        self.set_meta("capture_position", position)
    }

    /// The opaque bytes of the last capture position, empty if none was stored.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn capture_position(&self) -> Result<Vec<u8>, ApplyError> {
        Ok(self.meta("capture_position")?.unwrap_or_default())
    }

    /// All last folded messages of a shard, for snapshots.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn folded_all(&self, shard: ShardId) -> Result<Vec<(Origin, Folded)>, ApplyError> {
        let mut found = self
            .db
            .prepare_cached("SELECT origin, batch_no, round_no, part FROM origins WHERE shard = ?1 AND batch_no > 0")?;
        let mut rows = found.query([shard.0])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let origin = origin_of(&row.get::<_, Vec<u8>>(0)?)?;
            all.push((
                origin,
                Folded { batch_no: from_db(row.get(1)?), round_no: from_db(row.get(2)?), part: row.get(3)? },
            ));
        }
        Ok(all)
    }

    pub(super) fn set_position(&self, shard: ShardId, seq: StreamSeq) -> Result<(), ApplyError> {
        let sql =
            "INSERT INTO positions(shard, seq) VALUES(?1, ?2) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)";
        self.db.prepare_cached(sql)?.execute(params![shard.0, to_db(seq.0)])?;
        self.remember_position(shard, seq);
        Ok(())
    }

    pub(super) fn set_folded(&self, shard: ShardId, origin: Origin, folded: Folded) -> Result<(), ApplyError> {
        let sql = "INSERT INTO origins(shard, origin, batch_no, round_no, part) VALUES(?1, ?2, ?3, ?4, ?5)
            ON CONFLICT DO UPDATE SET batch_no = excluded.batch_no, round_no = excluded.round_no, part = excluded.part";
        let values =
            params![shard.0, origin_bytes(origin), to_db(folded.batch_no), to_db(folded.round_no), folded.part];
        self.db.prepare_cached(sql)?.execute(values)?;
        self.remember_folded(shard, origin, folded);
        Ok(())
    }

    pub(super) fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, ApplyError> {
        Ok(self
            .db
            .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?)
    }

    pub(super) fn set_meta(&self, name: &str, value: &[u8]) -> Result<(), ApplyError> {
        self.db
            .prepare_cached("INSERT OR REPLACE INTO meta(name, value) VALUES(?1, ?2)")?
            .execute(params![name, value])?;
        Ok(())
    }

    pub(super) fn begin(&self) -> Result<(), ApplyError> {
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(())
    }

    pub(super) fn commit(&self) -> Result<(), ApplyError> {
        self.db.prepare_cached("COMMIT")?.execute([])?;
        if !self.others_wait {
            self.checkpoints.borrow_mut().committed(&self.db, self.log_pages.load(Ordering::Relaxed));
        }
        Ok(())
    }

    /// Whether the application's writers wait for us: a checkpoint syncs, and a disk that is busy keeps them waiting for seconds then.
    pub(super) fn set_others_wait(&mut self, others_wait: bool) {
        self.others_wait = others_wait;
    }

    /// Marks a place within a transaction.
    pub(super) fn set_mark(&self) -> Result<(), ApplyError> {
        self.db.prepare_cached("SAVEPOINT mark")?.execute([])?;
        Ok(())
    }

    pub(super) fn drop_mark(&self) -> Result<(), ApplyError> {
        self.db.prepare_cached("RELEASE mark")?.execute([])?;
        Ok(())
    }

    /// Takes back what was written since the mark, and forgets what was remembered of it.
    pub(super) fn roll_back_to_mark(&mut self) -> Result<(), ApplyError> {
        self.db.execute_batch("ROLLBACK TO mark; RELEASE mark")?;
        self.reload()
    }

    /// Takes back what was written since `begin`, and forgets what was remembered of it.
    pub(super) fn rollback(&mut self) -> Result<(), ApplyError> {
        // A failed statement may have ended the transaction already.
        if !self.db.is_autocommit() {
            self.db.execute_batch("ROLLBACK")?;
        }
        self.reload()
    }

    /// Reads again what is held in memory.
    pub(super) fn reload(&mut self) -> Result<(), ApplyError> {
        self.tables.clear();
        self.shapes.clear();
        self.forget_tables();
        self.revertible = false;
        self.known = Known::default();
        self.load_suspicion()?;
        self.load_births()?;
        let mut found = self.db.prepare(
            "SELECT id, name, dirty, uniques, by_name, (SELECT count(*) FROM base WHERE table_id = id) FROM tables",
        )?;
        let mut rows = found.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(1)?;
            let table = TableState {
                id: row.get(0)?,
                base_rows: Cell::new(from_db(row.get(5)?)),
                dirty: Dirty::of(row.get(2)?),
                uniques: row.get(3)?,
                travels: Travels::of_number(row.get(4)?),
                moved_in: Vec::new(),
            };
            self.tables.insert(name.to_ascii_lowercase(), table);
        }
        drop(rows);
        drop(found);
        self.load_moves()?;
        self.deferred.replace(deferred::load(&self.db)?);
        let last: i64 = self.db.query_row("SELECT coalesce(max(id), 0) FROM pending", [], |row| row.get(0))?;
        self.pending_id_next = last + 1;
        Ok(())
    }

    /// The table's entry, made at its first use. A change of its UNIQUE indexes while rows are in base claims everything: what was claimed
    /// under the old ones says nothing about the new.
    pub(super) fn table(&mut self, name: &str, uniques: &str) -> Result<&mut TableState, ApplyError> {
        let lower = name.to_ascii_lowercase();
        if !self.tables.contains_key(&lower) {
            let travels = if uniques.is_empty() { Travels::ByKey } else { Travels::ByName };
            let insert = "INSERT INTO tables(name, uniques, by_name) VALUES(?1, ?2, ?3)";
            self.db.prepare_cached(insert)?.execute(params![name, uniques, travels.number()])?;
            let id = self.db.last_insert_rowid();
            let table = TableState::new(id, uniques.to_owned(), travels);
            self.tables.insert(lower.clone(), table);
        }
        let table = self.tables.get_mut(&lower).ok_or(ApplyError::Damaged { what: "the list of tables" })?;
        if table.uniques != uniques {
            uniques.clone_into(&mut table.uniques);
            self.db
                .prepare_cached("UPDATE tables SET uniques = ?2 WHERE id = ?1")?
                .execute(params![table.id, uniques])?;
            if table.base_rows.get() + self.deferred.get_mut().rows_of(table.id) > 0 {
                claim_everything(&self.db, table.id)?;
            }
        }
        Ok(table)
    }

    /// The table as applying needs it, if it was asked for before and has not changed since.
    pub(super) fn known_table(&self, table: &Arc<Table>) -> Option<Arc<LocalTable>> {
        self.locals.get(&table.name).filter(|local| Arc::ptr_eq(&local.table, table)).cloned()
    }

    /// The table as applying needs it, made anew when its definition has changed.
    pub(super) fn local_table(&mut self, table: &Arc<Table>) -> Result<Arc<LocalTable>, ApplyError> {
        if let Some(local) = self.known_table(table) {
            return Ok(local);
        }
        let uniques =
            table.uniques.iter().map(|index| format!("{}{:?};", index.name, index.columns)).collect::<String>();
        let TableState { id, travels, .. } = *self.table(&table.name, &uniques)?;
        let shape = self.shape_of(table, &table.name)?;
        let shape_id = self.shape_id(&shape)?;
        let (names, began) = (self.columns_named(&table.name)?, self.columns_began(&table.name)?);
        let parting = self.parting(table)?;
        let mut local =
            LocalTable { travels, names, began, parting, ..LocalTable::new(Arc::clone(table), id, shape_id) };
        local.set_shape(shape);
        local.set_fills(&self.fills(&table.name)?);
        local.set_filters(&self.filters)?;
        let local = Arc::new(local);
        self.locals.insert(table.name.clone(), Arc::clone(&local));
        Ok(local)
    }

    /// A table that was put aside under another name, with the number that it has under its own.
    pub(super) fn local_aside(&mut self, table: &Arc<Table>, name: &str) -> Result<LocalTable, ApplyError> {
        let lower = name.to_ascii_lowercase();
        let id = self.tables.get(&lower).map_or(0, |table| table.id);
        let shape = self.shape_of(table, name)?;
        let shape_id = self.shape_id(&shape)?;
        Ok(LocalTable { name_lower: lower, ..LocalTable::new(Arc::clone(table), id, shape_id) })
    }

    /// Tables, what became of their names, or the changes of the schema that are ahead of the fold are not what they were.
    pub(super) fn forget_tables(&mut self) {
        self.locals.clear();
        self.steps_ahead.replace(None);
    }

    /// The number under which rows with these columns are stored.
    pub(super) fn shape_id(&mut self, shape: &TableShape) -> Result<i64, ApplyError> {
        let kept = columns_kept(shape);
        if let Some(id) = self.shapes.get(&kept) {
            return Ok(*id);
        }
        let columns = names_bytes(&kept);
        let id = match self.known_shape_id(&columns)? {
            Some(id) => id,
            None => {
                self.db.prepare_cached("INSERT INTO shapes(columns) VALUES(?1)")?.execute([&columns])?;
                self.db.last_insert_rowid()
            }
        };
        self.shapes.insert(kept, id);
        Ok(id)
    }

    /// The number of columns that were stored before, as `columns_kept` makes them.
    pub(super) fn known_shape_id(&self, columns: &[u8]) -> Result<Option<i64>, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT id FROM shapes WHERE columns = ?1")?;
        Ok(found.query_row([columns], |row| row.get(0)).optional()?)
    }

    /// The column names that were stored under a number.
    pub(super) fn shape_columns(&self, id: i64) -> Result<Vec<String>, ApplyError> {
        let columns: Option<Vec<u8>> = self
            .db
            .prepare_cached("SELECT columns FROM shapes WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        names_of(&columns.ok_or(ApplyError::Damaged { what: "the shape of a stored row" })?)
    }
}

/// A number that counts up, as SQLite stores it. The bits are kept, and no counter of ours reaches the sign.
pub(super) fn to_db(number: u64) -> i64 {
    number as i64
}

pub(super) fn from_db(number: i64) -> u64 {
    number as u64
}

pub(super) fn origin_bytes(origin: Origin) -> [u8; 16] {
    (u128::from(origin.node_id) << 64 | u128::from(origin.epoch)).to_be_bytes()
}

pub(super) fn origin_of(bytes: &[u8]) -> Result<Origin, ApplyError> {
    let both: [u8; 16] = bytes.try_into().map_err(|_| ApplyError::Damaged { what: "an origin" })?;
    let both = u128::from_be_bytes(both);
    Ok(Origin { node_id: (both >> 64) as u64, epoch: both as u64 })
}

/// Names with a zero byte after each: SQLite's names cannot hold one.
pub(super) fn names_bytes(names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

pub(super) fn names_of(bytes: &[u8]) -> Result<Vec<String>, ApplyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ApplyError::Damaged { what: "a list of names" })?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The application's writers once waited for seconds: a commit under the write lock of their database checkpointed `state.db`, and the
    /// disk had much to sync.
    #[test]
    fn nothing_is_checkpointed_while_others_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut state = State::open(&path, "app", Origin { node_id: 1, epoch: 1 }).unwrap();
        let file_bytes = || std::fs::metadata(&path).unwrap().len();
        let fill = |state: &State| {
            state.begin().unwrap();
            state.set_meta("filling", &vec![7; 6 << 20]).unwrap();
            state.commit().unwrap();
        };
        state.set_others_wait(true);
        let before = file_bytes();
        fill(&state);
        assert_eq!(file_bytes(), before);
        state.set_others_wait(false);
        state.begin().unwrap();
        state.set_meta("other", b"1").unwrap();
        state.commit().unwrap();
        // Another thread does it.
        let began = std::time::Instant::now();
        while file_bytes() <= 6 << 20 {
            assert!(began.elapsed() < std::time::Duration::from_secs(60), "nobody checkpoints");
            std::thread::yield_now();
        }
    }
}
