//! Makes the schema that is wanted of a node that catches up, all at once: what is as wanted already is left alone.
//!
//! Rows need no care: a change of the schema has a part in every shard, so where there was one the snapshot has all rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::Connection;

use super::alteration::{alter, alteration, execute, sql_of};
use super::catch_up::SNAPSHOT_SCHEMA;
use super::catch_up_plan::{Object, Plan, Wanted, plan, travelling};
use super::error::{ApplyError, Cannot};
use super::indexes;
use super::names::{Birth, FIRST_SHARD};
use super::names_told::schema_rounds_told;
use super::repeated::{PendingStep, columns_of_step};
use super::schema_steps::{Maker, catalogue_of, from_aside, schema_effect, standing_aside};
use super::snapshot::catalogue_in;
use super::sql::quoted;
use super::state::{State, origin_bytes};
use super::undo_redo::Call;
use crate::log::{SchemaStep, Stand, StreamSeq};
use crate::schema::{Catalogue, SchemaRow, VirtualTable};

/// What tables are called while their names are given to others.
const ASIDE: &str = "woodchuck_aside_";

/// What was done to the schema.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Tables that are not what they were, in lower case.
    pub(super) tables: BTreeSet<String>,
    /// As it was at first, and as it is without the indexes.
    before: Option<(Catalogue, Catalogue)>,
    /// What was changed, in words.
    pub(super) told: Vec<String>,
}

impl State {
    /// Own changes of the schema are on top of what the snapshot tells of names.
    fn note_own_steps(&mut self, pending: &[PendingStep]) -> Result<(), ApplyError> {
        let origin = self.origin();
        for of_tx in pending.chunk_by(|one, other| one.tx == other.tx) {
            let new: Vec<SchemaStep> =
                of_tx.iter().filter(|other| other.first.is_none()).map(|other| other.step.clone()).collect();
            let aside = standing_aside(&new);
            aside.iter().try_for_each(|(before, aside)| self.note_names_aside(before, aside))?;
            for PendingStep { tx, step, first, .. } in of_tx {
                let birth = Birth { origin, tx: *tx, seq: None };
                let columns = columns_of_step(step);
                match first {
                    Some(first) => self.note_again(step, first, &birth)?,
                    None => self.note_names(from_aside(step, &aside).as_ref().unwrap_or(step), &columns, &birth)?,
                }
            }
        }
        Ok(())
    }

    /// Refuses a snapshot that is without a change of the schema which was made here: what it has is not behind that.
    fn refuse_without_schema(&self, said: &Said<'_>) -> Result<(), ApplyError> {
        let of_first = said.stand.get(&FIRST_SHARD).map(|stand| stand.folded.as_slice()).unwrap_or_default();
        let told = schema_rounds_told(said.names)?;
        let own = origin_bytes(self.origin());
        // What was made here and is not in the snapshot is pending.
        for (origin, round_no) in self.schema_rounds()?.into_iter().filter(|(origin, _)| origin[..] != own[..]) {
            let folded = of_first.iter().find(|(other, _)| origin_bytes(*other)[..] == *origin);
            let is_folded = folded.is_some_and(|(_, folded)| folded.round_no >= round_no);
            if !is_folded && told.get(&origin).is_none_or(|told| *told < round_no) {
                return Err(Cannot::SnapshotWithoutSchema.into());
            }
        }
        Ok(())
    }
}

/// What a snapshot says beside its database.
pub(super) struct Said<'a> {
    pub(super) stand: &'a Stand,
    pub(super) names: &'a [u8],
}

impl Call<'_, '_> {
    /// Works out the schema that is wanted, and takes what the snapshot tells of names. `is_newer`: the snapshot is ahead in every shard.
    pub(super) fn plan_schema(
        &mut self,
        conn: &Connection,
        said: &Said<'_>,
        is_newer: bool,
        travels: &dyn Fn(&str) -> bool,
    ) -> Result<Plan, ApplyError> {
        let pending = self.state.steps_pending(FIRST_SHARD)?;
        let here = travelling(&catalogue_of(conn)?, travels);
        let there = travelling(&catalogue_in(conn, SNAPSHOT_SCHEMA)?, travels);
        let known = self.state.table_names(&pending.iter().map(|pending| pending.tx).collect())?;
        if !is_newer {
            return plan(here, &there, &pending, (&known, &known, &HashMap::new()));
        }
        let tables = here.iter().filter(|object| object.is_table());
        let began = tables.map(|object| Ok((object.lower(), self.state.table_began(&object.name)?)));
        let began: Vec<_> = began.collect::<Result<_, ApplyError>>()?;
        self.state.refuse_without_schema(said)?;
        self.state.keep_names()?;
        if !self.state.take_names(said.names)? {
            return plan(here, &there, &pending, (&known, &known, &HashMap::new()));
        }
        let mut begun = HashMap::new();
        for (lower, beginning) in began {
            begun.extend(self.state.table_begun(&beginning)?.map(|now| (lower, now.to_ascii_lowercase())));
        }
        let told = self.state.table_names(&BTreeSet::new())?;
        // Some of them may be in the snapshot.
        let pending = self.state.steps_pending(FIRST_SHARD)?;
        self.state.note_own_steps(&pending)?;
        Ok(Plan { is_told: true, ..plan(here, &there, &pending, (&known, &told, &begun))? })
    }

    /// Makes what is wanted, but for indexes: rows that are still here may have no place in them.
    pub(super) fn make_tables(&mut self, conn: &Connection, plan: &Plan) -> Result<Made, ApplyError> {
        let mut made = Made::default();
        if plan.is_made() {
            return Ok(made);
        }
        let before = catalogue_of(conn)?;
        let mut effect = schema_effect(conn)?;
        indexes::forget(conn)?;
        for object in plan.here.iter().filter(|object| !object.is_table() && !plan.is_wanted(object)) {
            conn.execute(&format!("DROP {} IF EXISTS {}", object.kind, quoted(&object.name)), [])
                .map_err(|source| ApplyError::schema(&object.kind, &object.name, source))?;
        }
        let is_from = |lower: &String| plan.tables.iter().any(|wanted| wanted.from.as_ref() == Some(lower));
        self.note_pending_of_gone(&plan.gone)?;
        for object in plan.here.iter().filter(|object| object.is_table() && !is_from(&object.lower())) {
            let refused = |source| ApplyError::schema("table", &object.name, source);
            conn.execute(&format!("DROP TABLE {}", quoted(&object.name)), []).map_err(refused)?;
            self.state.clear_base(&object.name)?;
            made.tables.insert(object.lower());
            made.told.push(format!("table {} dropped", object.name));
        }
        self.rename_tables(conn, plan, &mut made)?;
        for wanted in &plan.tables {
            let refused = |source| ApplyError::schema("table", &wanted.name, source);
            match sql_of(conn, "table", &wanted.name).map_err(refused)? {
                Some(now) if now == wanted.sql => {}
                Some(now) => {
                    self.alter_table(conn, (wanted, plan.is_told), &now)?;
                    made.told.push(format!("table {} altered", wanted.name));
                    made.tables.insert(wanted.name.to_ascii_lowercase());
                }
                None => {
                    conn.execute(&wanted.sql, []).map_err(refused)?;
                    made.told.push(format!("table {} created", wanted.name));
                    made.tables.insert(wanted.name.to_ascii_lowercase());
                }
            }
        }
        make_others(conn, plan, &|kind| kind != "index", &mut made)?;
        effect.merge(&schema_effect(conn)?);
        self.made_anew(conn, &before, &effect, &[])?;
        made.before = Some((before, catalogue_of(conn)?));
        Ok(made)
    }

    /// Makes the rest, when the rows are the snapshot's.
    pub(super) fn make_indexes(&mut self, conn: &Connection, plan: &Plan, made: &mut Made) -> Result<(), ApplyError> {
        let Some((first, before)) = made.before.take() else { return Ok(()) };
        let mut effect = schema_effect(conn)?;
        indexes::forget(conn)?;
        make_others(conn, plan, &|kind| kind == "index", made)?;
        effect.merge(&schema_effect(conn)?);
        self.note_schema_made(&first, &catalogue_of(conn)?)?;
        self.made_anew(conn, &before, &effect, &[])
    }

    /// Remembers what was made, for when the commit that makes it true is found together with others.
    pub(super) fn note_schema_made(&self, before: &Catalogue, after: &Catalogue) -> Result<(), ApplyError> {
        let key = |row: &SchemaRow| (row.kind.clone(), row.name.to_ascii_lowercase());
        let objects =
            |of: &Catalogue| of.rows().iter().map(|row| (key(row), row.sql.clone())).collect::<BTreeMap<_, _>>();
        let (before, after) = (objects(before), objects(after));
        for object in before.keys().chain(after.keys()).filter(|object| before.get(object) != after.get(object)) {
            let sql = after.get(object).and_then(Option::as_deref);
            self.state.note_intent_schema(&object.0, &object.1, sql)?;
        }
        Ok(())
    }

    fn rename_tables(&mut self, conn: &Connection, plan: &Plan, made: &mut Made) -> Result<(), ApplyError> {
        let mut moves: Vec<(String, &Wanted)> = Vec::new();
        for wanted in &plan.tables {
            let from = wanted.from.as_deref().and_then(|from| plan.table_here(from));
            if let Some(object) = from.filter(|object| !object.name.eq_ignore_ascii_case(&wanted.name)) {
                made.told.push(format!("table {} renamed to {}", object.name, wanted.name));
                made.tables.insert(object.lower());
                made.tables.insert(wanted.name.to_ascii_lowercase());
                moves.push((object.name.clone(), wanted));
            }
        }
        // A name that is still taken by one that gets another.
        let is_taken = |wanted: &Wanted| {
            moves.iter().any(|(from, other)| wanted.name.eq_ignore_ascii_case(from) && wanted.name != other.name)
        };
        let taken: BTreeSet<String> = moves
            .iter()
            .filter(|(_, wanted)| is_taken(wanted))
            .map(|(_, wanted)| wanted.name.to_ascii_lowercase())
            .collect();
        for (number, (from, _)) in moves.iter_mut().enumerate() {
            if taken.contains(&from.to_ascii_lowercase()) {
                let aside = format!("{ASIDE}{number}");
                rename(conn, from, &aside)?;
                self.state.move_table(from, &aside)?;
                *from = aside;
            }
        }
        for (from, wanted) in &moves {
            rename(conn, from, &wanted.name)?;
            self.state.move_table(from, &wanted.name)?;
        }
        Ok(())
    }

    /// Makes of a table what is wanted. Rows that it loses by that are the snapshot's to give.
    fn alter_table(
        &mut self,
        conn: &Connection,
        (wanted, is_told): (&Wanted, bool),
        now: &str,
    ) -> Result<(), ApplyError> {
        let refused = |source| ApplyError::schema("table", &wanted.name, source);
        let is_virtual = |sql: &str| VirtualTable::parse(&wanted.name, sql).is_some();
        if is_virtual(now) || is_virtual(&wanted.sql) {
            conn.execute(&format!("DROP TABLE {}", quoted(&wanted.name)), []).map_err(refused)?;
            return conn.execute(&wanted.sql, []).map(drop).map_err(refused);
        }
        let step = SchemaStep {
            kind: "table".to_owned(),
            name: wanted.name.clone(),
            name_before: None,
            table: wanted.name.clone(),
            before: Some(now.to_owned()),
            after: Some(wanted.sql.clone()),
            renamed_columns: None,
            tables: None,
        };
        let way = alteration(&step, now, &wanted.sql).map_err(refused)?;
        let birth = Birth { origin: self.state.origin(), tx: 0, seq: None };
        if !is_told {
            self.state.note_names(&step, &way.columns, &birth)?;
        }
        if way.is_alter {
            // Rows or views can be in the way of what an empty table takes alone.
            let done = way.columns.iter().try_for_each(|column| execute(conn, &wanted.name, column));
            if done.is_ok() && sql_of(conn, "table", &wanted.name).map_err(refused)?.as_ref() == Some(&wanted.sql) {
                return Ok(());
            }
        }
        let mirror = Connection::open_in_memory().map_err(refused)?;
        let (state, folder) = (&mut *self.state, &mut self.folder);
        let (aside, begun_anew, stood) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let (pending, seen, may_leave_rows) = (&[], StreamSeq(u64::MAX), true);
        let mut maker =
            Maker { conn, state, folder, pending, birth, seen, mirror, may_leave_rows, aside, stood, begun_anew };
        maker.rebuild(&step, &[], &wanted.sql)
    }
}

fn rename(conn: &Connection, from: &str, to: &str) -> Result<(), ApplyError> {
    let sql = format!("ALTER TABLE {} RENAME TO {}", quoted(from), quoted(to));
    alter(conn, &sql).map_err(|source| ApplyError::schema("table", from, source))
}

fn make_others(
    conn: &Connection,
    plan: &Plan,
    of_kind: &dyn Fn(&str) -> bool,
    made: &mut Made,
) -> Result<(), ApplyError> {
    for object in plan.others.iter().filter(|object| of_kind(&object.kind)) {
        let refused = |source| ApplyError::schema(&object.kind, &object.name, source);
        let now = sql_of(conn, &object.kind, &object.name).map_err(refused)?;
        if now.as_ref() == Some(&object.sql) {
            continue;
        }
        if now.is_some() {
            conn.execute(&format!("DROP {} {}", object.kind, quoted(&object.name)), []).map_err(refused)?;
        }
        conn.execute(&object.sql, []).map_err(refused)?;
        made.told.push(format!("{} {} made", object.kind, object.name));
    }
    let is_wanted = |object: &Object| plan.is_wanted(object);
    for object in plan.here.iter().filter(|object| !object.is_table() && of_kind(&object.kind) && !is_wanted(object)) {
        if !plan.others.iter().any(|other| other.is(&object.kind, &object.name)) {
            made.told.push(format!("{} {} dropped", object.kind, object.name));
        }
    }
    Ok(())
}
