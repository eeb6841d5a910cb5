//! The schema of a snapshot, with own changes that are pending on top of it: what it comes to.
//!
//! Messages that others changed the schema with are gone, and the snapshot says only what came of them. So there is nothing to fold one by one.
//! What is wanted is the snapshot's schema with own pending changes, as the others will have it when these reach them.
//!
//! Which table of the snapshot is which of these here is told by what became of names.

use std::collections::{BTreeSet, HashMap};

use rusqlite::Connection;

use super::alteration::{ColumnStep, alteration, columns_of, execute, sql_of};
use super::error::{ApplyError, Cannot};
use super::names::{Birth, TableNames};
use super::repeated::{PendingStep, columns_of_step};
use super::spoken::{Spoken, follows_names, told_anew};
use super::sql::quoted;
use crate::log::SchemaStep;
use crate::schema::{Catalogue, Module, Tokens, VirtualTable, unquote};

/// Renames that are followed at most: a circle of them leads nowhere.
const RENAMES_MAX: usize = 64;

/// Something in a schema that travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) kind: String,
    pub(super) name: String,
    table: String,
    pub(super) sql: String,
}

impl Object {
    pub(super) fn lower(&self) -> String {
        self.name.to_ascii_lowercase()
    }

    pub(super) fn is_table(&self) -> bool {
        self.kind == "table"
    }

    pub(super) fn is(&self, kind: &str, name: &str) -> bool {
        self.kind == kind && self.name.eq_ignore_ascii_case(name)
    }
}

/// What of a schema travels: see [`super::local`].
pub(super) fn travelling(catalogue: &Catalogue, travels: &dyn Fn(&str) -> bool) -> Vec<Object> {
    let is_internal = |name: &str| name.get(..7).is_some_and(|begin| begin.eq_ignore_ascii_case("sqlite_"));
    let rows = catalogue
        .rows()
        .iter()
        .filter(|row| !is_internal(&row.name) && catalogue.shadow_of(&row.table).is_none() && travels(&row.table));
    rows.filter_map(|row| {
        let sql = row.sql.clone()?;
        let is_known = row.kind != "table"
            || VirtualTable::parse(&row.name, &sql).is_none_or(|table| table.module != Module::Other);
        is_known.then(|| Object { kind: row.kind.clone(), name: row.name.clone(), table: row.table.clone(), sql })
    })
    .collect()
}

impl PendingStep {
    /// Whether it has something to say of this. What the snapshot has the same of has not.
    fn is_about(&self, kind: &str, name: &str) -> bool {
        let names = [Some(&self.step.name), self.step.name_before.as_ref()];
        self.first.is_none()
            && self.step.kind == kind
            && names.into_iter().flatten().any(|other| other.eq_ignore_ascii_case(name))
    }
}

/// What a table here was before own pending changes.
struct Origin<'p> {
    /// Its name and its definition then; `None` where they have made it.
    was: Option<(String, String)>,
    /// Where somebody else had made it, if own pending changes made the same.
    first: Option<&'p Birth>,
    /// Those of them that have changed it, oldest first, but for what somebody else had changed alike.
    changes: Vec<&'p SchemaStep>,
    /// Its name and its definition before these, if they are the last of all.
    before_changes: Option<(String, String)>,
}

fn origin_of<'p>(object: &Object, pending: &'p [PendingStep]) -> Origin<'p> {
    let (mut name, mut sql) = (object.name.clone(), object.sql.clone());
    let (mut changes, mut made_too) = (Vec::new(), None);
    let (mut before_changes, mut is_behind_same, mut tx_last) = (None, false, None);
    for PendingStep { step, first, tx, .. } in pending.iter().rev() {
        // The steps of a transaction are one change: what a table was called before it is not its name within it.
        if step.kind != "table" || !step.name.eq_ignore_ascii_case(&name) || tx_last == Some(*tx) {
            continue;
        }
        tx_last = Some(*tx);
        match (&step.before, &step.after) {
            (_, None) => break,
            (None, Some(made)) => {
                // The snapshot has a table that was made so.
                made_too = first.as_ref();
                if made_too.is_none() {
                    return Origin { was: None, first: None, changes: Vec::new(), before_changes: None };
                }
                sql.clone_from(made);
                break;
            }
            (Some(before), Some(_)) => {
                name = step.name_before.clone().unwrap_or(name);
                sql.clone_from(before);
                if first.is_some() {
                    is_behind_same = true;
                    continue;
                }
                changes.push(step);
                before_changes = Some((name.clone(), sql.clone())).filter(|_| !is_behind_same);
            }
        }
    }
    changes.reverse();
    Origin { was: Some((name, sql)), first: made_too, changes, before_changes }
}

/// What became of a table while this node was away.
enum Mate {
    /// It has this name in the snapshot.
    Is(String),
    Gone,
    /// The snapshot has no such table, and nobody has told that it was dropped: it may be this node's alone.
    Unknown,
}

/// A table that is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) sql: String,
    /// What it is here, in lower case.
    pub(super) from: Option<String>,
}

/// What is wanted, and what becomes of the snapshot's tables.
pub(super) struct Plan {
    pub(super) here: Vec<Object>,
    pub(super) tables: Vec<Wanted>,
    /// Indexes, views and triggers.
    pub(super) others: Vec<Object>,
    /// Of these, by kind and name in lower case, own pending changes have the last word: they stay as they are.
    pub(super) as_is: BTreeSet<(String, String)>,
    /// What the snapshot's tables are called here, by name in lower case; `None` for those that own pending changes have dropped.
    pub(super) names: HashMap<String, Option<String>>,
    /// Columns of the snapshot's tables that own pending changes have given other names, or have dropped, by the table's name in lower case.
    pub(super) columns: HashMap<String, Vec<(String, Option<String>)>>,
    /// Tables of the snapshot, in lower case, whose columns own pending changes have changed.
    pub(super) altered: BTreeSet<String>,
    /// Tables of here, in lower case, that others have dropped. Others may have their names.
    pub(super) gone: BTreeSet<String>,
    /// Tables that only this node has.
    pub(super) alone: Vec<String>,
    /// The snapshot has told what became of names.
    pub(super) is_told: bool,
}

/// Works out what is wanted. `known` and `told` are what became of names as this node knew it and as the snapshot has it; `begun` is what tables
/// of here are called in the snapshot, in lower case, where their beginnings tell it: a name that was given up and given again does not.
pub(super) fn plan(
    here: Vec<Object>,
    there: &[Object],
    pending: &[PendingStep],
    (known, told, begun): (&TableNames, &TableNames, &HashMap<String, String>),
) -> Result<Plan, ApplyError> {
    let theirs: HashMap<String, &Object> =
        there.iter().filter(|object| object.is_table()).map(|object| (object.lower(), object)).collect();
    let mut mates: HashMap<String, (&Object, Origin<'_>)> = HashMap::new();
    let (mut plan, mut own) = (Plan::empty(), HashMap::new());
    for object in here.iter().filter(|object| object.is_table()) {
        let origin = origin_of(object, pending);
        let Some((was, _)) = &origin.was else {
            own.insert(object.lower(), object);
            continue;
        };
        let lower = was.to_ascii_lowercase();
        let is_another = match origin.first {
            Some(first) => told.is_another_than(first, &lower),
            None => told.is_another(known, &lower),
        };
        let mate = match begun.get(&object.lower()).filter(|name| theirs.contains_key(*name)) {
            Some(name) => Mate::Is(name.clone()),
            None => mate_of(&lower, is_another, &theirs, told),
        };
        match mate {
            Mate::Is(name) => {
                if let Some((other, _)) = mates.insert(name, (object, origin)) {
                    return Err(differs(object, &other.sql));
                }
            }
            Mate::Gone => drop(plan.gone.insert(object.lower())),
            Mate::Unknown => {
                let from = Some(object.lower());
                plan.alone.push(object.name.clone());
                plan.tables.push(Wanted { name: object.name.clone(), sql: object.sql.clone(), from });
            }
        }
    }
    for object in there.iter().filter(|object| object.is_table()) {
        let lower = object.lower();
        let wanted = match mates.remove(&lower) {
            Some((ours, origin)) => {
                if !origin.changes.is_empty() {
                    plan.altered.insert(lower.clone());
                    plan.columns.insert(lower.clone(), columns_moved(&origin.changes));
                }
                let (name, sql) = with_changes(ours, &origin, object)?;
                Wanted { name, sql, from: Some(ours.lower()) }
            }
            None if is_dropped(pending, &object.name) => {
                plan.names.insert(lower, None);
                continue;
            }
            None => match own.remove(&lower) {
                Some(ours) if ours.sql == object.sql => {
                    Wanted { name: object.name.clone(), sql: object.sql.clone(), from: Some(lower.clone()) }
                }
                Some(ours) => return Err(differs(ours, &object.sql)),
                None => Wanted { name: object.name.clone(), sql: object.sql.clone(), from: None },
            },
        };
        plan.names.insert(lower, Some(wanted.name.clone()));
        plan.tables.push(wanted);
    }
    let made = own.values().map(|object| Wanted {
        name: object.name.clone(),
        sql: object.sql.clone(),
        from: Some(object.lower()),
    });
    plan.tables.extend(made);
    // What nobody wants any more becomes what has its name. (Its rows are compared with the new ones, as whoever captures it does.)
    let used: BTreeSet<String> = plan.tables.iter().filter_map(|wanted| wanted.from.clone()).collect();
    for wanted in plan.tables.iter_mut().filter(|wanted| wanted.from.is_none()) {
        let lower = wanted.name.to_ascii_lowercase();
        wanted.from =
            Some(lower).filter(|lower| !used.contains(lower) && here.iter().any(|object| object.is("table", lower)));
    }
    plan.take_others(&here, there, pending)?;
    plan.here = here;
    Ok(plan)
}

/// Whether own pending changes drop the table of this name that others know, under whatever name they have given it.
fn is_dropped(pending: &[PendingStep], name: &str) -> bool {
    let (mut now, mut tx_last) = (name.to_ascii_lowercase(), None);
    let mut own: BTreeSet<String> = BTreeSet::new();
    for PendingStep { step, tx, .. } in
        pending.iter().filter(|other| other.first.is_none() && other.step.kind == "table")
    {
        let named = step.name.to_ascii_lowercase();
        let before = step.name_before.as_ref().map_or_else(|| named.clone(), |before| before.to_ascii_lowercase());
        match (&step.before, &step.after) {
            (None, Some(_)) => drop(own.insert(named)),
            (_, None) if own.remove(&named) => {}
            (_, None) if named == now => return true,
            (Some(_), Some(_)) if own.remove(&before) => drop(own.insert(named)),
            (Some(_), Some(_)) if before == now && tx_last != Some(*tx) => (now, tx_last) = (named, Some(*tx)),
            (_, None) | (Some(_), Some(_)) => {}
        }
    }
    false
}

/// `is_another`: the name has been given to another one since.
fn mate_of(was: &str, is_another: bool, theirs: &HashMap<String, &Object>, told: &TableNames) -> Mate {
    let mut name = was.to_owned();
    if is_another {
        match told.former(was) {
            Some(Some(now)) => name = now,
            Some(None) | None => return Mate::Gone,
        }
    }
    for _ in 0..RENAMES_MAX {
        if theirs.contains_key(&name) {
            return Mate::Is(name);
        }
        match told.now(&name) {
            Some(Some(now)) => name = now,
            Some(None) => return Mate::Gone,
            None => return Mate::Unknown,
        }
    }
    Mate::Unknown
}

fn differs(ours: &Object, theirs: &str) -> ApplyError {
    let (kind, name) = (ours.kind.clone(), ours.name.clone());
    Cannot::SchemaDiffers { kind, name, ours: ours.sql.clone(), theirs: theirs.to_owned() }.into()
}

/// What own changes of a table do to the names of its columns, oldest first.
fn columns_moved(changes: &[&SchemaStep]) -> Vec<(String, Option<String>)> {
    let mut moved: Vec<(String, Option<String>)> = Vec::new();
    for column in changes.iter().flat_map(|step| columns_of_step(step)) {
        let (from, to) = match column {
            ColumnStep::Rename { from, to, in_place: None, .. } => (from, Some(to)),
            ColumnStep::Rename { from, .. } | ColumnStep::Drop { name: from } => (from, None),
            ColumnStep::Add { .. } => continue,
        };
        let is_from = |now: &Option<String>| now.as_ref().is_some_and(|now| now.eq_ignore_ascii_case(&from));
        match moved.iter_mut().find(|(_, now)| is_from(now)) {
            Some((_, now)) => *now = to,
            None => moved.push((from, to)),
        }
    }
    moved
}

/// The snapshot's table with own pending changes, as they will come to others: its name and its definition.
fn with_changes(ours: &Object, origin: &Origin<'_>, theirs: &Object) -> Result<(String, String), ApplyError> {
    let mut before = [&origin.was, &origin.before_changes].into_iter().flatten();
    let is_untouched = before.any(|(name, sql)| *sql == theirs.sql && name.eq_ignore_ascii_case(&theirs.name));
    if origin.changes.is_empty() {
        return Ok((theirs.name.clone(), theirs.sql.clone()));
    }
    if is_untouched || (ours.sql == theirs.sql && ours.name == theirs.name) {
        return Ok((ours.name.clone(), ours.sql.clone()));
    }
    let refused = |source| ApplyError::schema("table", &theirs.name, source);
    let scratch = Connection::open_in_memory().map_err(refused)?;
    scratch.execute(&theirs.sql, []).map_err(refused)?;
    let mut name = theirs.name.clone();
    for step in &origin.changes {
        let (Some(before), Some(after)) = (&step.before, &step.after) else { continue };
        let way = alteration(step, before, after).map_err(refused)?;
        if let Some(old) = &step.name_before {
            if !old.eq_ignore_ascii_case(&name) {
                return Err(differs(ours, &theirs.sql));
            }
            scratch
                .execute(&format!("ALTER TABLE {} RENAME TO {}", quoted(&name), quoted(&step.name)), [])
                .map_err(refused)?;
            name.clone_from(&step.name);
        }
        if !way.is_alter {
            return Err(differs(ours, &theirs.sql));
        }
        for column in &way.columns {
            let all = columns_of(&scratch, &name).map_err(refused)?;
            if column.is_due(&all) {
                execute(&scratch, &name, column).map_err(refused)?;
            }
        }
    }
    let sql = sql_of(&scratch, "table", &name).map_err(refused)?.unwrap_or_default();
    Ok((name, sql))
}

impl Plan {
    fn empty() -> Plan {
        Plan {
            here: Vec::new(),
            tables: Vec::new(),
            others: Vec::new(),
            as_is: BTreeSet::new(),
            names: HashMap::new(),
            columns: HashMap::new(),
            altered: BTreeSet::new(),
            gone: BTreeSet::new(),
            alone: Vec::new(),
            is_told: false,
        }
    }

    /// Indexes, views and triggers: the snapshot's, where own pending changes do not speak of them. What these have made of tables of here that
    /// are gone has gone with them, whoever has their names now.
    fn take_others(&mut self, here: &[Object], there: &[Object], pending: &[PendingStep]) -> Result<(), ApplyError> {
        // What only follows names is the snapshot's, under these names.
        let follows = |other: &PendingStep| {
            let of_tx = pending.iter().filter(|pending| pending.tx == other.tx).map(|pending| &pending.step);
            follows_names(&other.step, &of_tx.collect::<Vec<_>>())
        };
        let is_ours = |object: &Object| {
            let is_alone = self.alone.iter().any(|table| table.eq_ignore_ascii_case(&object.table));
            is_alone || pending.iter().any(|other| other.is_about(&object.kind, &object.name) && !follows(other))
        };
        let is_in_vain =
            |object: &Object| object.kind != "view" && self.gone.contains(&object.table.to_ascii_lowercase());
        for object in here.iter().filter(|object| !object.is_table() && is_ours(object) && !is_in_vain(object)) {
            self.as_is.insert((object.kind.clone(), object.lower()));
        }
        let wanted = there.iter().filter(|object| !object.is_table() && !is_ours(object));
        let (mut views, mut rest): (Vec<Object>, Vec<Object>) =
            wanted.cloned().partition(|object| object.kind == "view");
        views.append(&mut rest);
        self.others = views;
        // What own pending changes have dropped takes with it what stands on it.
        let is_gone = |table: &str| matches!(self.names.get(&table.to_ascii_lowercase()), Some(None));
        self.others.retain(|object| object.kind == "view" || !is_gone(&object.table));
        let definitions: Vec<&String> = self.tables.iter().map(|wanted| &wanted.sql).collect();
        let mut others = Vec::with_capacity(self.others.len());
        for object in std::mem::take(&mut self.others) {
            let told = told_anew(&definitions, (&object.kind, &object.name), &object.sql, &self.spoken(&object));
            let told = told.map_err(|source| ApplyError::schema(&object.kind, &object.name, source))?;
            others.extend(told.map(|sql| Object { sql, ..object }));
        }
        self.others = others;
        Ok(())
    }

    /// What the statement of an object of the snapshot speaks of, as own pending changes have left it.
    fn spoken(&self, object: &Object) -> Vec<Spoken> {
        let words: BTreeSet<String> =
            Tokens::new(&object.sql).map(|(_, token)| unquote(token).to_ascii_lowercase()).collect();
        let named = self.names.iter().filter(|(then, _)| words.contains(*then));
        let spoken = named.map(|(then, here)| {
            let columns = self.columns.get(then).into_iter().flatten();
            let columns = columns.filter(|(column, _)| words.contains(&column.to_ascii_lowercase())).cloned().collect();
            Spoken { then: then.clone(), here: here.clone(), columns }
        });
        spoken.collect()
    }

    pub(super) fn is_wanted(&self, object: &Object) -> bool {
        self.as_is.contains(&(object.kind.clone(), object.lower()))
            || self.others.iter().any(|other| other.is(&object.kind, &object.name) && other.sql == object.sql)
    }

    pub(super) fn table_here(&self, lower: &str) -> Option<&Object> {
        self.here.iter().find(|object| object.is("table", lower))
    }

    /// Whether everything is as wanted.
    pub(super) fn is_made(&self) -> bool {
        let is_there = |wanted: &Wanted| {
            let from = wanted.from.as_deref().and_then(|from| self.table_here(from));
            from.is_some_and(|object| object.name == wanted.name && object.sql == wanted.sql)
        };
        self.tables.iter().all(is_there)
            && self.here.iter().filter(|object| object.is_table()).count() == self.tables.len()
            && self.here.iter().filter(|object| !object.is_table()).all(|object| self.is_wanted(object))
            && self.others.iter().all(|object| self.here.contains(object))
    }
}
