//! A local table as applying needs it, and how changes that were made elsewhere fit it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::beginnings::{THE_TABLE, always, column_kept};
use super::error::{ApplyError, Cannot};
use super::names::{TYPES, name_that_stays};
use super::narrowed::{Narrowed, narrower};
use super::routing::Travels;
use super::sql::Sql;
use super::uniques::Parting;
use crate::change::{Op, RowKey, canonical_key};
use crate::format::{Row, Value};
use crate::log::{Beginning, TableShape, UnitChange, UnitKey};
use crate::schema::{Collation, Identity, KeyColumn, RowFilters, RowTest, Table};

/// Knows the tables of the user's database.
pub trait Tables {
    /// The table of this name, compared without ASCII case; `None` where there is none, or where it is a view or a virtual table.
    fn table(&self, name: &str) -> Option<Arc<Table>>;
}

impl<F: Fn(&str) -> Option<Arc<Table>>> Tables for F {
    fn table(&self, name: &str) -> Option<Arc<Table>> {
        self(name)
    }
}

/// The shape under which rows of a table travel, as its definition has it: the columns that are not generated.
#[must_use]
pub fn shape_of(table: &Table) -> TableShape {
    let written: Vec<usize> =
        (0..table.columns.len()).filter(|i| table.columns.get(*i).is_some_and(|column| !column.generated)).collect();
    let position = |column: &usize| written.iter().position(|i| i == column).and_then(|i| u16::try_from(i).ok());
    let key = match &table.identity {
        Identity::RowidAlias(column) => position(column).into_iter().collect(),
        Identity::Declared(columns) => columns.iter().filter_map(|column| position(&column.column)).collect(),
        Identity::Rowid => Vec::new(),
    };
    let columns = written.iter().filter_map(|i| table.columns.get(*i)).map(|column| column.name.clone()).collect();
    TableShape { name: table.name.clone(), columns, key, beginnings: Vec::new() }
}

/// A local table. Its rows are here the columns that are not generated, in declared order: `shape.columns`.
#[derive(Debug)]
pub(super) struct LocalTable {
    pub(super) table: Arc<Table>,
    /// The same with the name by which its rows are routed.
    pub(super) routed: Arc<Table>,
    pub(super) shape: Arc<TableShape>,
    /// The name in lower case: tables are found under it.
    pub(super) name_lower: String,
    /// The table's number in `state.db`.
    pub(super) id: i64,
    /// The number of its columns in `state.db`.
    pub(super) shape_id: i64,
    /// How its rows travel.
    pub(super) travels: Travels,
    /// UNIQUE beyond the key, as indexes into the written columns; `None` where values alone do not tell what collides.
    pub(super) uniques: Vec<Option<Vec<usize>>>,
    /// How it differs from the fold in what is UNIQUE.
    pub(super) parting: Option<Arc<Parting>>,
    /// What a column holds that a change does not carry.
    pub(super) defaults: Row,
    /// Columns that took more once than they do now.
    pub(super) narrowed: Vec<Narrowed>,
    /// What columns are called now that are not here any more, in lower case; `None` for those that are gone.
    pub(super) names: HashMap<String, Option<String>>,
    /// The same by how columns began, in lower case, of those that were not always there under the name that they have.
    pub(super) began: HashMap<Beginning, Option<String>>,
    pub(super) sql: Sql,
    /// What tells the rows that this node replicates; `None`: all of them.
    pub(super) filter: Option<Mutex<RowTest>>,
}

impl LocalTable {
    pub(super) fn new(table: Arc<Table>, id: i64, shape_id: i64) -> LocalTable {
        let shape = Arc::new(shape_of(&table));
        let written = |key: &KeyColumn| {
            let name = &table.columns.get(key.column)?.name;
            let known = !matches!(key.collation, Collation::Custom(_));
            shape.columns.iter().position(|other| other == name).filter(|_| known)
        };
        let uniques: Vec<_> =
            table.uniques.iter().map(|index| index.columns.as_ref()?.iter().map(written).collect()).collect();
        let defaults =
            table.columns.iter().filter(|column| !column.generated).map(|column| column.default.clone()).collect();
        let sql = Sql::new(&table, &shape);
        let name_lower = table.name.to_ascii_lowercase();
        let travels = if uniques.is_empty() { Travels::ByKey } else { Travels::ByName };
        let (names, began, routed) = (HashMap::new(), HashMap::new(), Arc::clone(&table));
        let (narrowed, filter, parting) = (Vec::new(), None, None);
        LocalTable {
            table,
            routed,
            shape,
            name_lower,
            id,
            shape_id,
            travels,
            uniques,
            parting,
            defaults,
            narrowed,
            names,
            began,
            sql,
            filter,
        }
    }

    /// Takes the filters of the node.
    pub(super) fn set_filters(&mut self, filters: &RowFilters) -> Result<(), Cannot> {
        self.filter = filters.test(&self.table)?.map(Mutex::new);
        Ok(())
    }

    /// Whether some rows of it may not be replicated by this node.
    pub(super) fn is_filtered(&self) -> bool {
        self.filter.is_some()
    }

    /// Whether this node replicates the row.
    pub(super) fn takes(&self, key: &RowKey, row: &[Value]) -> Result<bool, ApplyError> {
        let Some(filter) = &self.filter else { return Ok(true) };
        let rowid = if let RowKey::Rowid(rowid) = key { Some(*rowid) } else { None };
        Ok(filter.lock().unwrap_or_else(PoisonError::into_inner).passes(rowid, row)?)
    }

    /// The row, if there is one and this node replicates it.
    pub(super) fn taken(&self, key: &RowKey, row: Option<Row>) -> Result<Option<Row>, ApplyError> {
        match row {
            Some(row) if self.takes(key, &row)? => Ok(Some(row)),
            Some(_) | None => Ok(None),
        }
    }

    /// Takes what columns hold, by name in lower case, that changes from before the column came do not carry.
    pub(super) fn set_fills(&mut self, fills: &HashMap<String, Value>) {
        if fills.is_empty() {
            return;
        }
        let written = (0..).zip(&self.table.columns).filter(|(_, column)| !column.generated);
        for (index, ((place, column), default)) in written.zip(&mut self.defaults).enumerate() {
            let fill = fills.get(&column.name.to_ascii_lowercase());
            let strict = if fills.contains_key(TYPES) { narrower(None, &self.table, place) } else { None };
            let never_null = column.not_null && fill.is_some();
            if never_null || strict.is_some() {
                self.narrowed.push(Narrowed { index, never_null, strict });
            }
            if let Some(fill) = fill {
                default.clone_from(fill);
            }
        }
    }

    /// Takes the shape with how the table and its columns began.
    pub(super) fn set_shape(&mut self, shape: TableShape) {
        // A row stays in its shard when its table gets another name: who has not seen that would write it in no order with those who have.
        if let Some(beginning) = shape.beginning(THE_TABLE).filter(|beginning| beginning.name != self.name_lower) {
            let first_name = Some(beginning.name.clone());
            self.routed = Arc::new(Table { first_name, ..(*self.table).clone() });
        }
        self.shape = Arc::new(shape);
    }

    /// Whether rows can be in each other's way beyond the key, here or in the fold: then the table is one conflict group, otherwise each row is.
    pub(super) fn is_unique(&self) -> bool {
        !self.uniques.is_empty() || self.parting.is_some()
    }

    /// The key of a row as SQLite returned it.
    pub(super) fn key_of(&self, row: &[Value], rowid: Option<i64>) -> RowKey {
        let values: Row = self.shape.key.iter().filter_map(|i| row.get(usize::from(*i)).cloned()).collect();
        let by_rowid = values.is_empty() || values.iter().any(Value::is_null);
        match rowid {
            Some(rowid) if by_rowid => RowKey::Rowid(rowid),
            _ => RowKey::Columns(values),
        }
    }

    /// How images of `shape` become rows of this table.
    ///
    /// `strict` is for foreign changes: a column that is missing here would be lost. Own changes of a column that a later local schema
    /// change dropped have nowhere to go and need none.
    pub(super) fn fit(&self, shape: &TableShape, strict: bool) -> Result<Fit, Cannot> {
        let table = || self.table.name.clone();
        let here: Vec<Here> =
            (1..).zip(&shape.columns).map(|(at, name)| self.here(name, shape.beginning(at))).collect();
        if strict && let Some((column, _)) = shape.columns.iter().zip(&here).find(|(_, here)| **here == Here::Unknown) {
            return Err(Cannot::NoColumn { table: table(), column: column.clone() });
        }
        let key_names = |shape: &TableShape| -> Vec<String> {
            shape.key.iter().filter_map(|i| shape.columns.get(usize::from(*i)).cloned()).collect()
        };
        let (ours, theirs) = (key_names(&self.shape), key_names(shape));
        let place_in_key = |ours: &u16| {
            let is_this = |theirs: &u16| here.get(usize::from(*theirs)) == Some(&Here::At(usize::from(*ours)));
            shape.key.iter().position(is_this)
        };
        let key: Option<Vec<usize>> = self.shape.key.iter().map(place_in_key).collect();
        let Some(key) = key.filter(|key| key.len() == theirs.len()) else {
            let shown = |names: Vec<String>| if names.is_empty() { "rowid".to_owned() } else { names.join(", ") };
            return Err(Cannot::KeyDiffers { table: table(), ours: shown(ours), theirs: shown(theirs) });
        };
        if ours.is_empty() && self.table.rowid_name.is_none() {
            return Err(Cannot::RowidHidden { table: table() });
        }
        let columns: Vec<Option<usize>> =
            (0..self.shape.columns.len()).map(|ours| here.iter().position(|here| *here == Here::At(ours))).collect();
        let same = shape.columns.len() == columns.len()
            && columns.iter().enumerate().all(|(i, c)| *c == Some(i))
            && key.iter().enumerate().all(|(i, k)| i == *k);
        let gone = (0..here.len()).filter(|theirs| here.get(*theirs) == Some(&Here::Gone)).collect();
        Ok(Fit { columns, key, same, gone })
    }

    /// What a column that a change carries is called here; `None` when it is gone or was never here.
    fn name_here(&self, column: &str) -> Option<&str> {
        let here = |name: &str| self.shape.columns.iter().find(|ours| ours.eq_ignore_ascii_case(name));
        let mut column = column.to_ascii_lowercase();
        // No chain of names is longer than all of them.
        for _ in 0..=self.names.len() {
            if let Some(found) = here(&column) {
                return Some(found);
            }
            column = self.names.get(&column)?.clone()?;
        }
        None
    }

    /// What became of a column: how it began tells it, and where nobody knows that, its name.
    fn here(&self, name: &str, beginning: Option<&Beginning>) -> Here {
        let place =
            |name: &str| self.shape.columns.iter().position(|ours| ours.eq_ignore_ascii_case(name)).map(Here::At);
        if !self.began.is_empty() {
            let became = match beginning {
                Some(beginning) => self.began.get(beginning),
                None => self.began.get(&always(name)),
            };
            match became {
                Some(None) => return Here::Gone,
                Some(Some(now)) if self.stays(name, now) => return Here::Gone,
                Some(Some(now)) => return place(now).unwrap_or(Here::Gone),
                None => {}
            }
        }
        match self.name_here(name) {
            Some(here) => place(here).unwrap_or(Here::Unknown),
            None if self.names.contains_key(&name.to_ascii_lowercase()) => Here::Gone,
            None => Here::Unknown,
        }
    }

    /// Whether values written under this name do not go into the column that it became: another one came in its place.
    fn stays(&self, name: &str, now: &str) -> bool {
        let mut column = name.to_ascii_lowercase();
        // No chain of names is longer than all of them.
        for _ in 0..=self.names.len() {
            if column.eq_ignore_ascii_case(now) {
                return false;
            }
            let in_place = self.names.get(&name_that_stays(&column)).and_then(|to| self.name_here(to.as_ref()?));
            if in_place.is_some_and(|in_place| in_place.eq_ignore_ascii_case(now)) {
                return true;
            }
            let Some(Some(next)) = self.names.get(&column) else { return false };
            column.clone_from(next);
        }
        false
    }

    /// A row that was stored under other columns, as this table has them now. `columns` are as `columns_kept` made them.
    pub(super) fn refit(&self, columns: &[String], row: &Row) -> Row {
        let here = |column: &String| {
            let (name, beginning) = column_kept(column);
            self.here(name, beginning.as_ref())
        };
        let here: Vec<Here> = columns.iter().map(here).collect();
        let value = |(index, default): (usize, &Value)| {
            let found = here.iter().position(|here| *here == Here::At(index)).and_then(|i| row.get(i));
            found.unwrap_or(default).clone()
        };
        self.defaults.iter().enumerate().map(value).collect()
    }

    /// A change as this table has it.
    pub(super) fn change<'a>(&self, fit: &Fit, change: &'a UnitChange, merge: Merge) -> Change<'a> {
        let key = match &change.key {
            UnitKey::Rowid(rowid) => RowKey::Rowid(*rowid),
            UnitKey::Columns(values) if fit.same => RowKey::Columns(values.clone()),
            UnitKey::Columns(values) => {
                RowKey::Columns(fit.key.iter().filter_map(|i| values.get(*i).cloned()).collect())
            }
        };
        let image = change
            .image
            .as_ref()
            .map(|image| if fit.same { Cow::Borrowed(image.as_slice()) } else { Cow::Owned(self.fitted(fit, image)) })
            .map(|image| self.narrow(image));
        let canonical = canonical_key(&self.table, &key);
        Change { op: change.op, canonical, key, image, mask: fit.mask(change, merge), if_there: change.if_there }
    }

    /// As [`LocalTable::change`], of a change that is not needed any more.
    pub(super) fn change_taken(&self, fit: &Fit, change: UnitChange, merge: Merge) -> Change<'static> {
        let mask = fit.mask(&change, merge);
        let UnitChange { op, key, image, if_there, .. } = change;
        let key = match key {
            UnitKey::Rowid(rowid) => RowKey::Rowid(rowid),
            UnitKey::Columns(values) if fit.same => RowKey::Columns(values),
            UnitKey::Columns(values) => {
                RowKey::Columns(fit.key.iter().filter_map(|i| values.get(*i).cloned()).collect())
            }
        };
        let image = image.map(|image| if fit.same { image } else { self.fitted(fit, &image) });
        let image = image.map(|image| self.narrow(Cow::Owned(image)));
        Change { op, canonical: canonical_key(&self.table, &key), key, image, mask, if_there }
    }

    /// A row of the foreign table as it is in this one.
    pub(super) fn fitted_row(&self, fit: &Fit, row: &[Value]) -> Row {
        self.narrow(Cow::Owned(self.fitted(fit, row))).into_owned()
    }

    pub(super) fn fitted(&self, fit: &Fit, image: &[Value]) -> Row {
        let value = |(c, default): (&Option<usize>, &Value)| c.and_then(|i| image.get(i)).unwrap_or(default).clone();
        fit.columns.iter().zip(&self.defaults).map(value).collect()
    }
}

/// What an update of a row writes over a concurrent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Merge {
    /// The columns that it changed.
    #[default]
    Column,
    /// The whole row.
    Row,
}

/// What became of a column that a change, or a row that was kept, carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Here {
    /// It has this place among the columns.
    At(usize),
    /// It is gone, or it has no place because it is generated by now.
    Gone,
    /// Nobody has ever told.
    Unknown,
}

/// How a foreign shape maps to a local table.
#[derive(Debug)]
pub(super) struct Fit {
    /// For each local column, the foreign one.
    columns: Vec<Option<usize>>,
    /// For each local key column, its place in the foreign key.
    key: Vec<usize>,
    /// Everything is where it is at the origin: images need no copy.
    same: bool,
    /// Foreign columns that have no place here any more.
    gone: Vec<usize>,
}

impl Fit {
    /// For updates: the local columns that are written.
    fn mask(&self, change: &UnitChange, merge: Merge) -> Vec<bool> {
        let carried = |c: &Option<usize>| match (c, merge) {
            (None, _) => false,
            (Some(_), Merge::Row) => true,
            (Some(i), Merge::Column) => change.mask.get(*i).copied().unwrap_or(true),
        };
        if change.op == Op::Update { self.columns.iter().map(carried).collect() } else { Vec::new() }
    }

    /// Whether both have the same columns in the same order.
    pub(super) fn is_same(&self) -> bool {
        self.same
    }

    /// The foreign columns that have no place here any more.
    pub(super) fn gone(&self) -> &[usize] {
        &self.gone
    }

    /// A key of the local table as the foreign one has it.
    pub(super) fn key_there(&self, key: &RowKey) -> RowKey {
        let RowKey::Columns(values) = key else { return key.clone() };
        let mut there = values.clone();
        for (value, place) in values.iter().zip(&self.key) {
            if let Some(other) = there.get_mut(*place) {
                other.clone_from(value);
            }
        }
        RowKey::Columns(there)
    }
}

/// A row change in terms of the local table.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) op: Op,
    pub(super) key: RowKey,
    pub(super) canonical: Vec<u8>,
    /// The full row after; `None` for deletes.
    pub(super) image: Option<Cow<'a, [Value]>>,
    /// For updates: the columns that are written.
    pub(super) mask: Vec<bool>,
    /// For updates: a row that is gone stays gone.
    pub(super) if_there: bool,
}

impl Change<'_> {
    /// The row after the change of a row that was `old`: the one rule of how a change meets a row.
    pub(super) fn step(&self, old: Option<&Row>) -> Option<Row> {
        let image = self.image.as_ref()?;
        match (self.op, old) {
            (Op::Delete, _) => None,
            (_, None) if self.if_there => None,
            (Op::Update, Some(old)) => Some(self.merged(old)),
            (Op::Insert | Op::Update, _) => Some(image.to_vec()),
        }
    }

    /// `old` with the changed columns.
    pub(super) fn merged(&self, old: &Row) -> Row {
        let Some(image) = &self.image else { return old.clone() };
        let pick = |((new, old), changed): ((&Value, &Value), &bool)| if *changed { new.clone() } else { old.clone() };
        image.iter().zip(old).zip(&self.mask).map(pick).collect()
    }
}
