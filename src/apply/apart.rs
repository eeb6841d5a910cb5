//! Rows that a transaction changes together with the schema.
//!
//! Its statements can have made room for the change of the schema first: values were told apart, then made unique. In a unit the change of the
//! schema comes before all rows. So the rows that the same transaction changes stand apart while values are made unique, and come back as
//! the transaction left them; what is then in their way goes, as for any later change.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::base::BaseRow;
use super::codec::{Reader, push_key, push_row};
use super::error::ApplyError;
use super::fitting::Found;
use super::names::Named;
use super::shape::LocalTable;
use super::state::State;
use super::undo_redo::Call;
use crate::change::{RenamedColumns, RowKey, canonical_key, reshape};
use crate::format::{Row, Value};
use crate::log::{Origin, ShardId, TableShape, Unit, UnitKey};

/// The units of one transaction that changes the schema, in pieces that fit into memory.
pub(super) trait RoundUnits {
    /// How many pieces there are.
    fn count(&self) -> usize;
    /// The units of a piece.
    fn load(&self, state: &State, index: usize) -> Result<Vec<Unit>, ApplyError>;
}

/// Those of a transaction of our own.
pub(super) struct OwnUnits(pub(super) Vec<i64>);

impl RoundUnits for OwnUnits {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn load(&self, state: &State, index: usize) -> Result<Vec<Unit>, ApplyError> {
        self.0.get(index).map(|id| state.pending_unit(*id)).into_iter().collect()
    }
}

/// Rows that stand apart, on disk where they do not fit into SQLite's cache.
#[derive(Default)]
pub(super) struct Apart {
    db: Option<Connection>,
    /// The tables as the rows have them, by number.
    tables: BTreeMap<i64, ApartTable>,
}

struct ApartTable {
    table: Arc<LocalTable>,
    /// What the transaction tells of columns that get other names.
    renamed: Option<RenamedColumns>,
}

impl Apart {
    fn add(&mut self, table: i64, canonical: &[u8], key: &RowKey, row: &[Value]) -> Result<(), ApplyError> {
        let db = match &mut self.db {
            Some(db) => db,
            none => {
                let db = Connection::open("")?;
                db.execute_batch(
                    "CREATE TABLE apart(table_id INTEGER, canonical BLOB, key BLOB, row BLOB, PRIMARY KEY(table_id, canonical)) WITHOUT ROWID;
                     BEGIN",
                )?;
                none.insert(db)
            }
        };
        let (mut key_bytes, mut row_bytes) = (Vec::new(), Vec::new());
        push_key(&mut key_bytes, key);
        push_row(&mut row_bytes, row);
        let sql = "INSERT OR IGNORE INTO apart(table_id, canonical, key, row) VALUES(?1, ?2, ?3, ?4)";
        db.prepare_cached(sql)?.execute(params![table, canonical, key_bytes, row_bytes])?;
        Ok(())
    }

    fn take(&self, table: i64, canonical: &[u8]) -> Result<Option<Row>, ApplyError> {
        let Some(db) = &self.db else { return Ok(None) };
        let sql = "DELETE FROM apart WHERE table_id = ?1 AND canonical = ?2 RETURNING row";
        let row: Option<Vec<u8>> =
            db.prepare_cached(sql)?.query_row(params![table, canonical], |row| row.get(0)).optional()?;
        row.map(|bytes| Reader::new(&bytes).row()).transpose()
    }

    /// Hands out those that nobody took.
    fn each_left(
        &self,
        table: i64,
        mut give: impl FnMut(RowKey, Row) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let Some(db) = &self.db else { return Ok(()) };
        let mut found = db.prepare("SELECT key, row FROM apart WHERE table_id = ?1 ORDER BY canonical")?;
        let mut rows = found.query([table])?;
        while let Some(found) = rows.next()? {
            let (key, row): (Vec<u8>, Vec<u8>) = (found.get(0)?, found.get(1)?);
            give(Reader::new(&key).key()?, Reader::new(&row).row()?)?;
        }
        Ok(())
    }
}

fn key_names(shape: &TableShape) -> impl Iterator<Item = String> + '_ {
    shape.key.iter().filter_map(|index| shape.columns.get(usize::from(*index))).map(|name| name.to_ascii_lowercase())
}

/// A row as the table has it by now: what is new holds what rows hold that know nothing of it.
fn reshaped(ApartTable { table: old, renamed }: &ApartTable, new: &LocalTable, row: Row) -> Row {
    row_as(new, old, renamed.as_ref(), row)
}

/// A row of a table as it was, as the table has it by now.
pub(super) fn row_as(new: &LocalTable, old: &LocalTable, renamed: Option<&RenamedColumns>, row: Row) -> Row {
    let Some(sources) = reshape(&old.table, &new.table, renamed.map(Vec::as_slice)) else { return row };
    let value = |(name, default): (&String, &Value)| {
        let index = new.table.column_index(name);
        let source = index.and_then(|index| sources.get(index).copied().flatten());
        let named = source.and_then(|source| old.table.columns.get(source));
        let place = named
            .and_then(|named| old.shape.columns.iter().position(|column| column.eq_ignore_ascii_case(&named.name)));
        place.and_then(|place| row.get(place)).unwrap_or(default).clone()
    };
    new.shape.columns.iter().zip(&new.defaults).map(value).collect()
}

impl Call<'_, '_> {
    /// Lets rows of a table stand apart that a transaction changes together with the schema. `name` is the name that the table gets, where nothing
    /// else tells which one is meant. The fold is without them then, and the table where it shows the fold.
    pub(super) fn set_apart(
        &mut self,
        apart: &mut Apart,
        (table, name): (&Arc<LocalTable>, &str),
        units: &dyn RoundUnits,
    ) -> Result<(), ApplyError> {
        if table.is_filtered() {
            return Ok(());
        }
        let mut renamed = None;
        for index in 0..units.count() {
            for unit in units.load(self.state, index)? {
                for step in unit.schema.iter().filter(|step| step.kind == "table") {
                    let is_of_table = match self.state.table_of_step(step)? {
                        Some(now) => now.is_some_and(|now| now == table.name_lower),
                        None => step.name.eq_ignore_ascii_case(name),
                    };
                    if is_of_table && renamed.is_none() {
                        renamed.clone_from(&step.renamed_columns);
                    }
                }
                for (place, shape) in unit.tables.iter().enumerate() {
                    let is_of_table = match self.state.table_became(shape)? {
                        Some(now) => now.is_some_and(|now| now == table.name_lower),
                        None => shape.name.eq_ignore_ascii_case(name),
                    };
                    // A table with another key is another table.
                    if !is_of_table || !key_names(shape).eq(key_names(&table.shape)) {
                        continue;
                    }
                    for change in unit.changes.iter().filter(|change| usize::from(change.table) == place) {
                        let key = match &change.key {
                            UnitKey::Rowid(rowid) => RowKey::Rowid(*rowid),
                            UnitKey::Columns(values) => RowKey::Columns(values.clone()),
                        };
                        self.set_row_apart(apart, table, key)?;
                    }
                }
            }
            self.store_many_versions()?;
        }
        apart.tables.entry(table.id).or_insert_with(|| ApartTable { table: Arc::clone(table), renamed });
        Ok(())
    }

    fn set_row_apart(&mut self, apart: &mut Apart, table: &Arc<LocalTable>, key: RowKey) -> Result<(), ApplyError> {
        let canonical = canonical_key(&table.table, &key);
        if let Some(base) = self.state.base(table, &canonical)? {
            if let Some(row) = &base.row {
                apart.add(table.id, &canonical, &key, row)?;
                self.state.set_base(table, &canonical, &BaseRow { row: None, ..base })?;
            }
            return Ok(());
        }
        match self.folder.rows.get(table, &key)? {
            Some(row) => {
                apart.add(table.id, &canonical, &key, &row)?;
                self.folder.remove(table, &key, &canonical, &row)
            }
            None => match self.folder.take_unseen(table, &key)? {
                Some(row) => apart.add(table.id, &canonical, &key, &row),
                None => Ok(()),
            },
        }
    }

    /// Brings them back as the transaction left them.
    pub(super) fn put_back(
        &mut self,
        apart: &Apart,
        units: &dyn RoundUnits,
        origin: Origin,
        strict: bool,
    ) -> Result<(), ApplyError> {
        if apart.db.is_none() {
            return Ok(());
        }
        self.folder.origin = Some(origin);
        for index in 0..units.count() {
            for unit in units.load(self.state, index)? {
                for (place, shape) in unit.tables.iter().enumerate() {
                    let Named::Table(meant) = self.meant(shape)? else { continue };
                    let id = self.state.local_table(&meant)?.id;
                    let Some(old) = apart.tables.get(&id) else { continue };
                    let (table, fit) = match self.fit_of(&unit, origin, shape, strict) {
                        Ok(Found::Here(table, fit)) => (table, fit),
                        Ok(Found::Gone | Found::NotTaken) => continue,
                        // A later own change of the table has taken the place.
                        Err(ApplyError::Cannot(_)) if !strict => continue,
                        Err(error) => return Err(error),
                    };
                    for change in unit.changes.iter().filter(|change| usize::from(change.table) == place) {
                        let change = table.change(&fit, change, self.merge);
                        let Some(row) = apart.take(id, &change.canonical)? else { continue };
                        let before = reshaped(old, &table, row);
                        let after = change.step(Some(&before));
                        if let Some(row) = &after {
                            self.folder.put(self.state, &table, &change.key, &change.canonical, row, false)?;
                        }
                        if origin == self.state.origin() {
                            self.judge_theirs((&table, &change.canonical), Some(&before), after.as_ref())?;
                        }
                    }
                }
            }
            self.store_many_versions()?;
        }
        for (id, old) in &apart.tables {
            let Some(table) = self.table_of_number(*id)? else { continue };
            let Call { state, folder, .. } = self;
            apart.each_left(*id, |key, row| {
                let canonical = canonical_key(&table.table, &key);
                folder.put(state, &table, &key, &canonical, &reshaped(old, &table, row), false)
            })?;
        }
        Ok(())
    }
}

impl State {
    /// The units of the transaction of our own that makes the next change of the schema in a shard.
    pub(super) fn own_units_of_step(&self, shard: ShardId) -> Result<OwnUnits, ApplyError> {
        let sql = "SELECT id FROM pending WHERE folded = 0 AND tx =
            (SELECT tx FROM pending WHERE barrier = 1 AND folded = 0 AND shard = ?1 ORDER BY id LIMIT 1) ORDER BY id";
        let mut found = self.db.prepare_cached(sql)?;
        let ids = found.query_map([shard.0], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?;
        Ok(OwnUnits(ids))
    }
}
