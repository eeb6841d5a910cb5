//! Snapshots: a copy of the database becomes the fold, and a new state begins at one.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags};

use super::beginnings::columns_kept;
use super::error::ApplyError;
use super::indexes;
use super::schema_steps::catalogue_of;
use super::shape::{LocalTable, Tables};
use super::sql::quoted;
use super::state::{State, names_bytes};
use super::statements::{Rows, SELECT_ROWS, Written};
use crate::change::RowKey;
use crate::format::{PageNo, Row};
use crate::log::{Origin, Routing, ShardId, ShardStand, Stand};
use crate::schema::{Catalogue, CatalogueError, Content, Module, RowFilters, SchemaRow, Table, TableFilter};

impl State {
    /// Whether the applied positions stand inside of something that travels in pieces: then there is no fold to make of them.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn is_inside_pieces(&self) -> Result<bool, ApplyError> {
        Ok(self.db.prepare_cached("SELECT 1 FROM pieces WHERE spent = 0 LIMIT 1")?.exists([])?)
    }

    /// Whether changes of the schema were made here that the fold does not have yet.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn has_own_schema(&self) -> Result<bool, ApplyError> {
        let sql = "SELECT 1 FROM pending WHERE barrier = 1 AND folded = 0 LIMIT 1";
        Ok(self.db.prepare_cached(sql)?.exists([])?)
    }
}

/// The state as it was when this was opened, whatever has happened to it since.
#[derive(Debug)]
pub struct FrozenState(State);

impl FrozenState {
    /// Takes hold of the state as it is now, behind [`Replica::lay_out_base`](super::Replica::lay_out_base). Until this is dropped the log of
    /// `state.db` cannot begin anew, so it grows.
    ///
    /// # Errors
    /// [`ApplyError::NotLaidOut`], or when `state.db` cannot be read.
    pub fn open(path: &Path) -> Result<FrozenState, ApplyError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.pragma_update(None, "query_only", true)?;
        db.execute_batch("BEGIN; SELECT 1 FROM meta")?;
        let frozen = State::over(db)?;
        let is_laid_out = frozen.deferred.borrow().is_empty();
        if is_laid_out { Ok(FrozenState(frozen)) } else { Err(ApplyError::NotLaidOut) }
    }

    /// Whether the applied positions stand inside of something that travels in pieces: then there is no fold to make of them.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn is_inside_pieces(&self) -> Result<bool, ApplyError> {
        self.0.is_inside_pieces()
    }

    /// What became of names.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn names(&self) -> Result<Vec<u8>, ApplyError> {
        self.0.names_told()
    }

    /// Where the fold stands.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn stand(&self, shards: &[ShardId]) -> Result<Stand, ApplyError> {
        let mut stand = Stand::new();
        for shard in shards {
            let of_shard = ShardStand { seq: self.0.position(*shard)?, folded: self.0.folded_all(*shard)? };
            stand.insert(*shard, of_shard);
        }
        Ok(stand)
    }

    /// How rows travel.
    #[must_use]
    pub fn routing(&self) -> Routing {
        self.0.routing()
    }

    /// Puts base in place in a copy of the database as it was at that moment: the copy is then the fold. Returns how many rows base has.
    ///
    /// # Errors
    /// When one of the databases fails, or they are not of the same moment.
    pub fn put_base(&self, copy: &Connection, tables: &dyn Tables) -> Result<u64, ApplyError> {
        let doing = |source| ApplyError::Database { doing: "putting base in place", source };
        let rows = Rows::new(copy)?;
        let mut count = 0;
        if self.0.tables.values().any(|known| known.base_rows.get() > 0) {
            indexes::keep(copy, &catalogue_of(copy)?)?;
        }
        for (name, known) in self.0.tables.iter().filter(|(_, known)| known.base_rows.get() > 0) {
            let Some(table) = tables.table(name) else { continue };
            let table = self.table(&table, known.id)?;
            // One transaction a table: a copy is nobody's, and all of it is thrown away when anything fails.
            copy.execute_batch("BEGIN").map_err(doing)?;
            self.0.each_base(&table, |_, base| {
                count += 1;
                let Some(now) = rows.get(&table, &base.key)? else { return Ok(()) };
                match base.row.as_ref() == Some(&now) || rows.delete(&table, &base.key)? == Written::Done {
                    true => Ok(()),
                    false => Err(OTHER_MOMENT),
                }
            })?;
            // What differs is out: a row of the fold meets none that is in its way.
            self.0.each_base(&table, |_, base| {
                let Some(row) = base.row else { return Ok(()) };
                let is_there = rows.get(&table, &base.key)?.is_some();
                match is_there || rows.insert(&table, &base.key, &row)? == Written::Done {
                    true => Ok(()),
                    false => Err(OTHER_MOMENT),
                }
            })?;
            copy.execute_batch("COMMIT").map_err(doing)?;
        }
        Ok(count)
    }

    /// A table as the state knows it.
    pub(super) fn table_of(&self, table: &Arc<Table>) -> Result<LocalTable, ApplyError> {
        /// No table has this number: nothing is known of it.
        const NO_TABLE: i64 = -1;
        let known = self.0.tables.get(&table.name.to_ascii_lowercase());
        self.table(table, known.map_or(NO_TABLE, |known| known.id))
    }

    /// Whether a row shows something else than the fold has.
    pub(super) fn base_has(&self, table: &LocalTable, key: &[u8]) -> Result<bool, ApplyError> {
        self.0.base_has(table, key)
    }

    /// Hands out what the fold has of such rows, where it has any.
    pub(super) fn each_base(
        &self,
        table: &LocalTable,
        mut each: impl FnMut(&[u8], &RowKey, &Row) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        if self.0.base_rows(table) == 0 {
            return Ok(());
        }
        self.0.each_base(table, |canonical, base| match &base.row {
            Some(row) => each(canonical, &base.key, row),
            None => Ok(()),
        })
    }

    fn table(&self, table: &Arc<Table>, id: i64) -> Result<LocalTable, ApplyError> {
        /// No shape has this number: rows under the columns of another time are fitted to those of now.
        const NO_SHAPE: i64 = -1;
        let shape = self.0.shape_of(table, &table.name)?;
        let shape_id = self.0.known_shape_id(&names_bytes(&columns_kept(&shape)))?.unwrap_or(NO_SHAPE);
        let (names, began) = (self.0.columns_named(&table.name)?, self.0.columns_began(&table.name)?);
        let mut local = LocalTable { names, began, ..LocalTable::new(Arc::clone(table), id, shape_id) };
        local.set_shape(shape);
        local.set_fills(&self.0.fills(&table.name)?);
        Ok(local)
    }
}

const OTHER_MOMENT: ApplyError = ApplyError::Damaged { what: "base does not fit the copy of the database" };

/// Empties the tables of a copy that do not leave this machine. Their rows are overwritten.
///
/// # Errors
/// When the copy fails.
pub fn empty_excluded(copy: &Connection, filter: &TableFilter) -> Result<(), ApplyError> {
    let doing = |source| ApplyError::Database { doing: "leaving tables out", source };
    copy.pragma_update(None, "secure_delete", true).map_err(doing)?;
    let is_out = |name: &str| !filter.matches(name);
    for table in tables_of(copy, "main")? {
        // The content of a virtual table is emptied by it.
        if !table.is_internal() && table.shadow_of.is_none() && is_out(&table.name) {
            copy.execute_batch(&format!("DELETE FROM main.{}", quoted(&table.name))).map_err(doing)?;
        }
    }
    for table in catalogue_of(copy)?.virtual_tables().iter().filter(|table| is_out(&table.name)) {
        let name = quoted(&table.name);
        let sql = match (table.module, &table.content) {
            (Module::Fts5, Content::External { .. } | Content::None) => {
                format!("INSERT INTO main.{name}({name}) VALUES('delete-all')")
            }
            (Module::Fts5 | Module::Fts34 | Module::Rtree, _) => format!("DELETE FROM main.{name}"),
            (Module::Other, _) => continue,
        };
        copy.execute_batch(&sql).map_err(doing)?;
    }
    Ok(())
}

/// Rows that are looked for before they are deleted: their keys are in memory.
const LEFT_OUT_AT_ONCE: usize = 50_000;

/// Deletes the rows of a copy that are outside of the filters. They are overwritten.
///
/// # Errors
/// When the copy fails, or with [`ApplyError::Cannot`] when a filter cannot tell its rows.
pub fn leave_out_rows(copy: &Connection, filters: &RowFilters) -> Result<(), ApplyError> {
    if filters.is_empty() {
        return Ok(());
    }
    let doing = |source| ApplyError::Database { doing: "leaving rows out", source };
    copy.pragma_update(None, "secure_delete", true).map_err(doing)?;
    indexes::keep(copy, &catalogue_of(copy)?)?;
    let rows = Rows::new(copy)?;
    for table in tables_of(copy, "main")? {
        if table.is_internal() || table.shadow_of.is_some() {
            continue;
        }
        let mut table = LocalTable::new(table, 0, 0);
        table.set_filters(filters)?;
        if !table.is_filtered() {
            continue;
        }
        copy.execute_batch("BEGIN").map_err(doing)?;
        loop {
            let mut outside = Vec::new();
            rows.each(&table, &format!("{SELECT_ROWS} FROM {}", table.sql.name), |row, rowid| {
                let key = table.key_of(&row, rowid);
                if outside.len() < LEFT_OUT_AT_ONCE && !table.takes(&key, &row)? {
                    outside.push(key);
                }
                Ok(())
            })?;
            for key in &outside {
                rows.delete(&table, key)?;
            }
            if outside.len() < LEFT_OUT_AT_ONCE {
                break;
            }
        }
        copy.execute_batch("COMMIT").map_err(doing)?;
    }
    indexes::forget(copy)
}

/// The tables of a database whose rows SQL can read and write, as its schema has them.
pub(super) fn tables_of(conn: &Connection, schema: &str) -> Result<Vec<Arc<Table>>, ApplyError> {
    let catalogue = catalogue_in(conn, schema)?;
    Ok(catalogue.tables().chain(catalogue.shown_tables()).cloned().collect())
}

/// The schema of a database.
pub(super) fn catalogue_in(conn: &Connection, schema: &str) -> Result<Catalogue, ApplyError> {
    let doing = |source| ApplyError::Database { doing: "reading the schema of a snapshot", source };
    let read = || {
        let mut found = conn.prepare(&format!(
            "SELECT type, name, tbl_name, rootpage, sql FROM {schema}.sqlite_schema ORDER BY rowid"
        ))?;
        let rows = found.query_map([], |row| {
            let (kind, name, table) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(SchemaRow { kind, name, table, root: PageNo::new(row.get(3)?), sql: row.get(4)? })
        })?;
        rows.collect::<rusqlite::Result<Vec<SchemaRow>>>()
    };
    // Rows are read by the SQLite that is asked here, whoever wrote them.
    let catalogue = Catalogue::build(read().map_err(doing)?, u32::MAX);
    catalogue.map_err(|CatalogueError::Sqlite(source)| doing(source))
}

impl State {
    /// Makes the state of a node that begins with a snapshot: nothing is pending, and the fold stands, rows travel, and names have become,
    /// as the snapshot has it. The first node that opens it gives it its origin.
    ///
    /// # Errors
    /// As [`State::open`]; there must not be a state at `path`.
    pub fn create_at(
        path: &Path,
        database: &str,
        (stand, routing, names): (&Stand, &Routing, &[u8]),
        capture_position: &[u8],
    ) -> Result<State, ApplyError> {
        let mut state = State::open(path, database, Origin { node_id: 0, epoch: 0 })?;
        state.begin()?;
        for (shard, of_shard) in stand {
            state.set_position(*shard, of_shard.seq)?;
            for (origin, folded) in &of_shard.folded {
                state.set_folded(*shard, *origin, *folded)?;
            }
        }
        state.take_routing(routing)?;
        state.take_names(names)?;
        state.store_capture_position(capture_position)?;
        state.settle()?;
        state.commit()?;
        Ok(state)
    }

    /// Brings everything into the file and makes it durable.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn sync(&self) -> Result<(), ApplyError> {
        self.db.pragma_update(None, "synchronous", "FULL")?;
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}
