//! What became of names: a change that was made under an old one finds its table and column, and one of something that is gone finds that
//! it is gone.
//!
//! A name that is there again means what is there. So names are looked up here only when they are not, and only of what carries no
//! beginning that is known: see `beginnings`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::alteration::{ColumnStep, column_before};
use super::codec::{Reader, push_row};
use super::error::ApplyError;
use super::narrowed::narrower;
use super::schema_steps::{from_aside, standing_aside};
use super::shape::Tables;
use super::state::{State, from_db, origin_bytes, to_db};
use crate::change::reshape;
use crate::format::{PageNo, Value};
use crate::log::{Origin, SchemaStep, ShardId, StreamSeq, Unit};
use crate::schema::{Catalogue, SchemaRow, Table};

/// Under this name of a column stands what became of the table itself.
const ITSELF: &str = "";

/// And under this one what became of the table that had the name before.
const BEFORE: &str = "\u{1}";

/// In the place of a column's name, for the one in its place into which no value goes that is written under the name.
pub(super) fn name_that_stays(column: &str) -> String {
    format!("{BEFORE}{}", column.to_ascii_lowercase())
}

/// Under this name of a column stands, of what fills columns, that some take fewer types of values than once.
pub(super) const TYPES: &str = "\u{1}";

/// Renames that are followed at most: a circle of them leads nowhere.
const RENAMES_MAX: usize = 64;

/// The order of changes of the schema is that of this shard.
pub(super) const FIRST_SHARD: ShardId = ShardId(1);

/// Where a step was made first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Birth {
    pub(super) origin: Origin,
    /// The transaction at its origin.
    pub(super) tx: u64,
    /// Its message in the first shard, once that is known.
    pub(super) seq: Option<StreamSeq>,
}

/// What a name means now.
#[derive(Debug)]
pub(super) enum Named {
    /// This table.
    Table(Arc<Table>),
    /// It was dropped.
    Gone,
    /// Nobody has ever told.
    Unknown,
}

/// What stands behind the name of a table whose name another one has taken: no other node's state has it.
pub(super) fn taken_from(id: i64) -> String {
    format!(" (gone, {id})")
}

/// A table before a step, or behind it; `None` where there is none, or SQLite does not take its statement alone.
pub(super) type TableOfStep = Option<Arc<Table>>;

/// The table as a step found it and as it leaves it.
pub(super) fn tables_of(step: &SchemaStep) -> Result<(TableOfStep, TableOfStep), ApplyError> {
    let named = |name: &str, sql: &Option<String>| match sql {
        Some(sql) if step.kind == "table" => table_of(name, sql),
        _ => Ok(None),
    };
    Ok((named(step.name_before.as_ref().unwrap_or(&step.name), &step.before)?, named(&step.name, &step.after)?))
}

fn table_of(name: &str, sql: &str) -> Result<Option<Arc<Table>>, ApplyError> {
    let row = SchemaRow {
        kind: "table".to_owned(),
        name: name.to_owned(),
        table: name.to_owned(),
        root: PageNo::new(2),
        sql: Some(sql.to_owned()),
    };
    let written_by = u32::try_from(rusqlite::version_number()).unwrap_or_default();
    let catalogue = Catalogue::build(vec![row], written_by);
    let catalogue = catalogue.map_err(|_| ApplyError::Damaged { what: "a change of the schema" })?;
    Ok(catalogue.tables().next().cloned())
}

/// What became of the names of tables, all in lower case.
#[derive(Debug, Default)]
pub(super) struct TableNames {
    now: HashMap<String, Option<String>>,
    former: HashMap<String, Option<String>>,
    /// Where tables were made that have a name which others had before.
    births: HashMap<String, BTreeSet<(Vec<u8>, i64)>>,
}

impl TableNames {
    /// What a table is called now that had this name; `None` inside when it is gone.
    pub(super) fn now(&self, name: &str) -> Option<Option<String>> {
        self.now.get(name).cloned()
    }

    /// The same of the one that had it before the one that has it now.
    pub(super) fn former(&self, name: &str) -> Option<Option<String>> {
        self.former.get(name).cloned()
    }

    /// Whether the table of this name is another one than where `before` was known. Of several nodes that made one table not all may be
    /// known there.
    pub(super) fn is_another(&self, before: &TableNames, name: &str) -> bool {
        match (self.births.get(name), before.births.get(name)) {
            (Some(births), Some(before)) => births.is_disjoint(before),
            (births, before) => births.is_some() || before.is_some(),
        }
    }

    /// Whether it is another one than the one that was made there.
    pub(super) fn is_another_than(&self, made: &Birth, name: &str) -> bool {
        let made = (origin_bytes(made.origin).to_vec(), to_db(made.tx));
        self.births.get(name).is_some_and(|births| !births.contains(&made))
    }
}

impl State {
    /// What became of the names of tables, but for those that were made by own transactions `without`.
    pub(super) fn table_names(&self, without: &BTreeSet<u64>) -> Result<TableNames, ApplyError> {
        let mut names = TableNames::default();
        let mut found =
            self.db.prepare_cached("SELECT table_name, column_name, now FROM names WHERE column_name <= char(1)")?;
        let mut rows = found.query([])?;
        while let Some(row) = rows.next()? {
            let column: String = row.get(1)?;
            let into = if column == ITSELF { &mut names.now } else { &mut names.former };
            into.insert(row.get(0)?, row.get(2)?);
        }
        let own = origin_bytes(self.origin());
        let mut found = self.db.prepare_cached("SELECT table_name, origin, tx FROM births")?;
        let mut rows = found.query([])?;
        while let Some(row) = rows.next()? {
            let (table, origin, tx): (String, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            if origin != own || !without.contains(&from_db(tx)) {
                names.births.entry(table).or_default().insert((origin, tx));
            }
        }
        Ok(names)
    }

    /// The last round of each origin whose change of the schema was made here.
    pub(super) fn schema_rounds(&self) -> Result<BTreeMap<Vec<u8>, u64>, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT origin, round_no FROM schema_rounds")?;
        let rows = found.query_map([], |row| Ok((row.get(0)?, from_db(row.get(1)?))))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The table that had this name when a change was made.
    pub(super) fn table_named(&self, tables: &dyn Tables, name: &str) -> Result<Named, ApplyError> {
        let mut name = name.to_owned();
        for _ in 0..RENAMES_MAX {
            if let Some(table) = tables.table(&name) {
                return Ok(Named::Table(table));
            }
            match self.name_now(&name, ITSELF)? {
                Some(Some(now)) => name = now,
                Some(None) => return Ok(Named::Gone),
                None => return Ok(Named::Unknown),
            }
        }
        Ok(Named::Unknown)
    }

    /// What the table is called now that had this name; `None` when it is gone.
    pub(super) fn name_in_the_end(&self, name: &str) -> Result<Option<String>, ApplyError> {
        let mut name = name.to_ascii_lowercase();
        for _ in 0..RENAMES_MAX {
            match self.name_now(&name, ITSELF)? {
                None => return Ok(Some(name)),
                Some(None) => return Ok(None),
                Some(Some(now)) => name = now,
            }
        }
        Ok(None)
    }

    /// What columns of a table are called now, by the name in lower case that they had; `None` for those that are gone.
    pub(super) fn columns_named(&self, table: &str) -> Result<HashMap<String, Option<String>>, ApplyError> {
        let sql = "SELECT column_name, now FROM names WHERE table_name = ?1 AND column_name > char(1)";
        let mut found = self.db.prepare_cached(sql)?;
        let found = found.query_map([table.to_ascii_lowercase()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }

    fn name_now(&self, table: &str, column: &str) -> Result<Option<Option<String>>, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT now FROM names WHERE table_name = ?1 AND column_name = ?2")?;
        let mut rows = found.query([table.to_ascii_lowercase(), column.to_ascii_lowercase()])?;
        Ok(match rows.next()? {
            Some(row) => Some(row.get(0)?),
            None => None,
        })
    }

    fn set_name(&self, table: &str, column: &str, now: Option<&str>) -> Result<(), ApplyError> {
        self.db
            .prepare_cached("INSERT OR REPLACE INTO names(table_name, column_name, now) VALUES(?1, ?2, ?3)")?
            .execute(params![
                table.to_ascii_lowercase(),
                column.to_ascii_lowercase(),
                now.map(str::to_ascii_lowercase)
            ])?;
        Ok(())
    }

    fn forget_name(&self, table: &str, column: &str) -> Result<(), ApplyError> {
        let of = [table.to_ascii_lowercase(), column.to_ascii_lowercase()];
        self.db.prepare_cached("DELETE FROM names WHERE table_name = ?1 AND column_name = ?2")?.execute(of)?;
        Ok(())
    }

    /// Takes note of a change of the schema that was made here, or is about to be. `columns` is what it does to those of a table.
    pub(super) fn note_step(
        &mut self,
        step: &SchemaStep,
        columns: &[ColumnStep],
        birth: &Birth,
    ) -> Result<(), ApplyError> {
        match (&step.name_before, &step.after) {
            _ if step.kind != "table" => {}
            (_, None) => self.clear_base(&step.name)?,
            (Some(before), Some(_)) => self.move_table(before, &step.name)?,
            (None, Some(_)) => {}
        }
        self.note_names(step, columns, birth)
    }

    /// As [`State::note_step`], of what it does to names alone.
    pub(super) fn note_names(
        &mut self,
        step: &SchemaStep,
        columns: &[ColumnStep],
        birth: &Birth,
    ) -> Result<(), ApplyError> {
        self.note_made(step, birth)?;
        if step.kind != "table" {
            return Ok(());
        }
        self.note_beginnings(step, columns, birth)?;
        match (&step.before, &step.after) {
            (_, None) => {
                self.forget_names(&step.name)?;
                self.set_name(&step.name, ITSELF, None)?;
                self.forget_births(&step.name)?;
            }
            (None, Some(_)) => {
                self.note_birth(&step.name, birth)?;
                self.forget_names_but_before(&step.name)?;
            }
            (Some(_), Some(_)) => {
                if let Some(before) = &step.name_before {
                    self.note_birth(&step.name, birth)?;
                    self.note_renamed(before, &step.name)?;
                }
                for column in columns {
                    match column {
                        ColumnStep::Add { name, .. } => self.forget_name(&step.name, name)?,
                        ColumnStep::Drop { name } => {
                            self.set_name(&step.name, name, None)?;
                            self.forget_fill(&step.name, name)?;
                        }
                        ColumnStep::Rename { from, to, in_place, .. } => {
                            self.forget_name(&step.name, to)?;
                            self.note_values(&step.name, from, to, in_place.is_none())?;
                            if in_place.is_some() {
                                self.forget_fill(&step.name, from)?;
                                continue;
                            }
                            self.db
                                .prepare_cached("UPDATE OR REPLACE fills SET column_name = ?3 WHERE table_name = ?1 AND column_name = ?2")?
                                .execute([&step.name, from, to].map(|name| name.to_ascii_lowercase()))?;
                        }
                    }
                }
                self.note_fills(step, columns)?;
            }
        }
        self.forget_tables();
        Ok(())
    }

    /// Whether values that are written under the name that a column had go into the one that is in its place.
    pub(super) fn note_values(&self, table: &str, from: &str, to: &str, go_along: bool) -> Result<(), ApplyError> {
        let stay = name_that_stays(from);
        if go_along {
            self.forget_name(table, &stay)?;
            return self.set_name(table, from, Some(to));
        }
        self.set_name(table, &stay, Some(to))?;
        self.set_name(table, from, None)
    }

    /// Takes note of changes of the schema that were made here together.
    pub(super) fn note_steps(
        &mut self,
        steps: &[(SchemaStep, Vec<ColumnStep>)],
        birth: &Birth,
    ) -> Result<(), ApplyError> {
        let all: Vec<SchemaStep> = steps.iter().map(|(step, _)| step.clone()).collect();
        let aside = standing_aside(&all);
        aside.iter().try_for_each(|(before, aside)| self.note_aside(before, aside))?;
        for (step, columns) in steps {
            self.note_step(from_aside(step, &aside).as_ref().unwrap_or(step), columns, birth)?;
        }
        Ok(())
    }

    /// A table stands aside under another name for the moment.
    pub(super) fn note_aside(&mut self, before: &str, aside: &str) -> Result<(), ApplyError> {
        self.move_table(before, aside)?;
        self.note_names_aside(before, aside)
    }

    /// As [`State::note_aside`], of what that does to names alone.
    pub(super) fn note_names_aside(&mut self, before: &str, aside: &str) -> Result<(), ApplyError> {
        self.rename_beginnings(before, aside)?;
        self.note_renamed(before, aside)
    }

    /// A table gets a name that another one had: changes that were made under it by who had not seen this are of the other.
    fn note_birth(&mut self, table: &str, birth: &Birth) -> Result<(), ApplyError> {
        let lower = table.to_ascii_lowercase();
        let is_again = self.name_now(table, ITSELF)?.is_some();
        if is_again {
            self.forget_births(table)?;
        } else if !self.born_again.contains(&lower) {
            return Ok(());
        }
        self.add_birth(&lower, birth)?;
        self.born_again.insert(lower);
        Ok(())
    }

    /// The table was made by another transaction as well.
    pub(super) fn note_birth_too(&self, table: &str, birth: &Birth) -> Result<(), ApplyError> {
        if self.born_again.contains(table) { self.add_birth(table, birth) } else { Ok(()) }
    }

    fn add_birth(&self, lower: &str, birth: &Birth) -> Result<(), ApplyError> {
        let sql = "INSERT OR REPLACE INTO births(table_name, origin, tx, seq) VALUES(?1, ?2, ?3, ?4)";
        let seq = birth.seq.map(|seq| to_db(seq.0));
        self.db.prepare_cached(sql)?.execute(params![lower, origin_bytes(birth.origin), to_db(birth.tx), seq])?;
        Ok(())
    }

    fn forget_births(&mut self, table: &str) -> Result<(), ApplyError> {
        let lower = table.to_ascii_lowercase();
        if self.born_again.remove(&lower) {
            self.db.prepare_cached("DELETE FROM births WHERE table_name = ?1")?.execute([lower])?;
        }
        Ok(())
    }

    pub(super) fn load_births(&mut self) -> Result<(), ApplyError> {
        let mut found = self.db.prepare_cached("SELECT DISTINCT table_name FROM births")?;
        let names = found.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        drop(found);
        self.born_again = names;
        Ok(())
    }

    /// The message of the first shard that carries a step has come.
    pub(super) fn set_birth_seq(&self, origin: Origin, tx: u64, seq: StreamSeq) -> Result<(), ApplyError> {
        let sql = "UPDATE births SET seq = ?3 WHERE origin = ?1 AND tx = ?2 AND seq IS NULL";
        self.db.prepare_cached(sql)?.execute(params![origin_bytes(origin), to_db(tx), to_db(seq.0)])?;
        Ok(())
    }

    /// Whether a unit means by this name a table that is gone, and not the one that has it now.
    pub(super) fn means_another(&self, table: &str, unit: &Unit, origin: Origin) -> Result<bool, ApplyError> {
        if self.born_again.is_empty() || !self.born_again.contains(&table.to_ascii_lowercase()) {
            return Ok(false);
        }
        let sql = "SELECT 1 FROM births WHERE table_name = ?1 AND ((origin = ?2 AND tx <= ?3) OR seq <= ?4)";
        let of = params![table.to_ascii_lowercase(), origin_bytes(origin), to_db(unit.tx), to_db(unit.seen.0)];
        Ok(!self.db.prepare_cached(sql)?.exists(of)?)
    }

    /// The own steps that a shard comes to first, of those that the fold has not reached.
    pub(super) fn steps_pending_first(&self, shard: ShardId) -> Result<Option<(u64, Vec<SchemaStep>)>, ApplyError> {
        let sql = "SELECT id FROM pending WHERE barrier = 1 AND folded = 0 AND shard = ?1 ORDER BY id LIMIT 1";
        let first: Option<i64> = self.db.prepare_cached(sql)?.query_row([shard.0], |row| row.get(0)).optional()?;
        let unit = first.map(|id| self.pending_unit(id)).transpose()?;
        Ok(unit.map(|unit| (unit.tx, unit.schema)))
    }

    /// The last round of an origin whose change of the schema was made here.
    pub(super) fn schema_round(&self, origin: Origin) -> Result<u64, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT round_no FROM schema_rounds WHERE origin = ?1")?;
        Ok(found.query_row([origin_bytes(origin)], |row| row.get(0)).optional()?.map_or(0, from_db))
    }

    pub(super) fn set_schema_round(&self, origin: Origin, round_no: u64) -> Result<(), ApplyError> {
        let sql = "INSERT INTO schema_rounds(origin, round_no) VALUES(?1, ?2)
            ON CONFLICT DO UPDATE SET round_no = excluded.round_no";
        self.db.prepare_cached(sql)?.execute(params![origin_bytes(origin), to_db(round_no)])?;
        Ok(())
    }

    /// The name means something else from now on. Who has not seen that means what the table before is called now.
    fn forget_names_but_before(&self, table: &str) -> Result<(), ApplyError> {
        let was = self.name_now(table, ITSELF)?;
        self.forget_names(table)?;
        match was {
            Some(now) => self.set_name(table, BEFORE, now.as_deref()),
            None => Ok(()),
        }
    }

    /// What the table is called that had this name before the one that has it now; `None` when it is gone.
    pub(super) fn name_of_former(&self, table: &str) -> Result<Option<String>, ApplyError> {
        Ok(self.name_now(table, BEFORE)?.flatten())
    }

    fn forget_names(&self, table: &str) -> Result<(), ApplyError> {
        for sql in ["DELETE FROM names WHERE table_name = ?1", "DELETE FROM fills WHERE table_name = ?1"] {
            self.db.prepare_cached(sql)?.execute([table.to_ascii_lowercase()])?;
        }
        Ok(())
    }

    fn forget_fill(&self, table: &str, column: &str) -> Result<(), ApplyError> {
        let of = [table.to_ascii_lowercase(), column.to_ascii_lowercase()];
        self.db.prepare_cached("DELETE FROM fills WHERE table_name = ?1 AND column_name = ?2")?.execute(of)?;
        Ok(())
    }

    /// Takes note of what rows hold that know nothing of a column which came, or that had NULL where that cannot be any more, and of columns that
    /// take other types of values. It stays so whatever becomes of the default.
    fn note_fills(&self, step: &SchemaStep, columns: &[ColumnStep]) -> Result<(), ApplyError> {
        let (Some(old), Some(new)) = tables_of(step)? else { return Ok(()) };
        let is_added = |name: &str| {
            columns.iter().any(|step| match step {
                ColumnStep::Add { name: added, .. } | ColumnStep::Rename { to: added, in_place: Some(_), .. } => {
                    added.eq_ignore_ascii_case(name)
                }
                ColumnStep::Drop { .. } | ColumnStep::Rename { .. } => false,
            })
        };
        let sources = reshape(&old, &new, step.renamed_columns.as_deref());
        for (index, column) in new.columns.iter().enumerate() {
            let source = column_before(&old, sources.as_deref(), index);
            let was_null = source.is_some_and(|column| !column.not_null);
            if is_added(&column.name) || column.not_null && was_null {
                self.note_fill(&step.name, &column.name, &column.default)?;
            }
            if source.is_some() && narrower(source, &new, index).is_some() {
                self.note_fill(&step.name, TYPES, &Value::Null)?;
            }
        }
        Ok(())
    }

    fn note_fill(&self, table: &str, column: &str, fill: &Value) -> Result<(), ApplyError> {
        let mut value = Vec::new();
        push_row(&mut value, std::slice::from_ref(fill));
        let sql = "INSERT OR REPLACE INTO fills(table_name, column_name, value) VALUES(?1, ?2, ?3)";
        let of = params![table.to_ascii_lowercase(), column.to_ascii_lowercase(), value];
        self.db.prepare_cached(sql)?.execute(of)?;
        Ok(())
    }

    /// What columns of a table hold in rows that know nothing of them, by name in lower case.
    pub(super) fn fills(&self, table: &str) -> Result<HashMap<String, Value>, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT column_name, value FROM fills WHERE table_name = ?1")?;
        let mut rows = found.query([table.to_ascii_lowercase()])?;
        let mut fills = HashMap::new();
        while let Some(row) = rows.next()? {
            let bytes: Vec<u8> = row.get(1)?;
            let value = Reader::new(&bytes).row()?.pop();
            fills.insert(row.get(0)?, value.ok_or(ApplyError::Damaged { what: "what a column holds" })?);
        }
        Ok(fills)
    }

    /// The table keeps what became of its columns.
    fn note_renamed(&mut self, before: &str, now: &str) -> Result<(), ApplyError> {
        if before.eq_ignore_ascii_case(now) {
            return Ok(());
        }
        self.forget_names_but_before(now)?;
        let of = [before.to_ascii_lowercase(), now.to_ascii_lowercase()];
        self.db
            .prepare_cached("UPDATE names SET table_name = ?2 WHERE table_name = ?1 AND column_name > char(1)")?
            .execute([&of[0], &of[1]])?;
        self.set_name(before, ITSELF, Some(now))?;
        self.db
            .prepare_cached("UPDATE OR REPLACE fills SET table_name = ?2 WHERE table_name = ?1")?
            .execute([&of[0], &of[1]])?;
        Ok(())
    }

    /// The table keeps its number under another name, and what is in base.
    pub(super) fn move_table(&mut self, before: &str, now: &str) -> Result<(), ApplyError> {
        if before.eq_ignore_ascii_case(now) {
            return Ok(());
        }
        let of = [before.to_ascii_lowercase(), now.to_ascii_lowercase()];
        // What had the name before is gone, and its number with it.
        let gone = self.tables.get(&of[1]).map(|table| table.id);
        if let Some(id) = gone {
            self.clear_base(now)?;
            let unused = format!("{now}{}", taken_from(id));
            self.db.prepare_cached("UPDATE tables SET name = ?2 WHERE id = ?1")?.execute(params![id, unused])?;
            self.tables.remove(&of[1]);
        }
        if let Some(table) = self.tables.remove(&of[0]) {
            self.db.prepare_cached("UPDATE tables SET name = ?2 WHERE id = ?1")?.execute(params![table.id, now])?;
            self.tables.insert(of[1].clone(), table);
        }
        Ok(())
    }
}
