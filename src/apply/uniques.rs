//! What is UNIQUE for the fold and not here, or here and not for the fold: own changes of the schema that the fold has not reached.
//!
//! The fold judges a unit by what is UNIQUE where the unit stands on the log, on all nodes alike. So a table shows the fold with what is
//! UNIQUE there: values that are UNIQUE for the fold alone get an index for as long as it does, and rows of the fold that have no place
//! because of what is UNIQUE here alone are not seen ([`super::unseen`]).

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::duplicates::is_duplicate;
use super::error::ApplyError;
use super::names::{FIRST_SHARD, tables_of};
use super::repeated::PendingStep;
use super::schema_steps::{begins, step_digest};
use super::shape::LocalTable;
use super::spoken::{Direction, Spoken, rename};
use super::sql::quoted;
use super::state::{State, origin_bytes, to_db};
use super::undo_redo::Call;
use crate::change::reshape;
use crate::log::{SchemaStep, StreamSeq};
use crate::schema::{Collation, Identity, Table, UniqueIndex};

/// Whether a statement makes an index that is UNIQUE. SQLite writes down how it begins in one way.
pub(super) fn is_unique_index(sql: &str) -> bool {
    begins(sql, "CREATE UNIQUE INDEX ")
}

/// One thing that is UNIQUE in a table beyond its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unique {
    /// An index with a statement of its own.
    Index { name: String, sql: String },
    /// A constraint of the table's statement: its columns, in lower case.
    Constraint(Vec<(String, Collation)>),
}

/// How the fold and the table differ in what is UNIQUE.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Parting {
    pub(super) here_only: Vec<Unique>,
    pub(super) fold_only: Vec<Unique>,
}

impl Parting {
    fn is_empty(&self) -> bool {
        self.here_only.is_empty() && self.fold_only.is_empty()
    }

    /// Goes back behind a change that made something UNIQUE.
    fn unmake(&mut self, unique: Unique) {
        match self.fold_only.iter().position(|other| other.is_same(&unique)) {
            Some(at) => drop(self.fold_only.remove(at)),
            None => self.here_only.push(unique),
        }
    }

    /// Goes back behind a change after which something was UNIQUE no more.
    fn make(&mut self, unique: Unique) {
        match self.here_only.iter().position(|other| other.is_same(&unique)) {
            Some(at) => drop(self.here_only.remove(at)),
            None => self.fold_only.push(unique),
        }
    }

    fn has_here(&self, index: &str) -> bool {
        self.here_only.iter().any(|unique| matches!(unique, Unique::Index { name, .. } if name == index))
    }
}

impl Unique {
    fn is_same(&self, other: &Unique) -> bool {
        match (self, other) {
            (Unique::Index { name, .. }, Unique::Index { name: other, .. }) => name == other,
            (Unique::Constraint(columns), Unique::Constraint(other)) => columns == other,
            (Unique::Index { .. }, Unique::Constraint(_)) | (Unique::Constraint(_), Unique::Index { .. }) => false,
        }
    }

    /// The index of a step, if it is UNIQUE.
    fn of_index(name: &str, sql: Option<&String>) -> Option<Unique> {
        let sql = sql.filter(|sql| is_unique_index(sql))?;
        Some(Unique::Index { name: name.to_ascii_lowercase(), sql: sql.clone() })
    }

    /// The statement that makes an index for it, and its name. `no` tells those apart that have none.
    fn statement(&self, table: &str, no: usize) -> (String, String) {
        match self {
            Unique::Index { name, sql } => (name.clone(), sql.clone()),
            Unique::Constraint(columns) => {
                let name = format!("woodchuck_unique_{no}");
                let list: Vec<String> = columns
                    .iter()
                    .map(|(column, collation)| format!("{}{}", quoted(column), collate(collation)))
                    .collect();
                let sql = format!("CREATE UNIQUE INDEX {name} ON {}({})", quoted(table), list.join(", "));
                (name, sql)
            }
        }
    }
}

fn collate(collation: &Collation) -> String {
    let name = match collation {
        Collation::Binary => "BINARY".to_owned(),
        Collation::NoCase => "NOCASE".to_owned(),
        Collation::RTrim => "RTRIM".to_owned(),
        Collation::Custom(name) => quoted(name),
    };
    format!(" COLLATE {name}")
}

/// The constraints of a table's statement, of the columns that `named` knows.
fn constraints<'t>(
    table: &'t Table,
    named: impl Fn(usize) -> Option<String> + 't,
) -> impl Iterator<Item = Unique> + 't {
    let of_index = move |index: &UniqueIndex| {
        let columns = index.columns.as_ref()?.iter();
        columns
            .map(|key| Some((named(key.column)?, key.collation.clone())))
            .collect::<Option<Vec<_>>>()
            .map(Unique::Constraint)
    };
    table.uniques.iter().filter(|index| is_constraint(index)).filter_map(of_index)
}

fn is_constraint(index: &UniqueIndex) -> bool {
    index.name.starts_with("sqlite_autoindex_")
}

/// What a change of a table's statement makes UNIQUE, and what it leaves so no more, by the names of columns that `here` gives for those
/// that they have behind it. Returns the names of the columns before it, each with the one here.
fn go_back(
    parting: &mut Parting,
    step: &SchemaStep,
    here: impl Fn(&str) -> Option<String>,
) -> Result<HashMap<String, Option<String>>, ApplyError> {
    let (Some(old), Some(new)) = tables_of(step)? else { return Ok(HashMap::new()) };
    let sources = reshape(&old, &new, step.renamed_columns.as_deref());
    let source = |index: usize| sources.as_ref().map_or(Some(index), |sources| sources.get(index).copied().flatten());
    let mut names: HashMap<String, Option<String>> =
        old.columns.iter().map(|column| (column.name.to_ascii_lowercase(), None)).collect();
    for (index, column) in new.columns.iter().enumerate() {
        if let Some(before) = source(index).and_then(|source| old.columns.get(source)) {
            names.insert(before.name.to_ascii_lowercase(), here(&column.name.to_ascii_lowercase()));
        }
    }
    let after: Vec<Unique> =
        constraints(&new, |index| here(&new.columns.get(index)?.name.to_ascii_lowercase())).collect();
    let named = |index: usize| names.get(&old.columns.get(index)?.name.to_ascii_lowercase())?.clone();
    let before: Vec<Unique> = constraints(&old, named).collect();
    after.iter().filter(|unique| !before.contains(unique)).for_each(|unique| parting.unmake(unique.clone()));
    before.iter().filter(|unique| !after.contains(unique)).for_each(|unique| parting.make(unique.clone()));
    Ok(names)
}

/// The statement of an index as it is under the names that its table and the columns have here; `None` where one of them is gone.
fn retold(sql: &str, then: &str, here: &str, columns: &[(String, Option<String>)]) -> rusqlite::Result<Option<String>> {
    let db = Connection::open_in_memory()?;
    let list: Vec<String> = columns.iter().map(|(column, _)| quoted(column)).collect();
    db.execute(&format!("CREATE TABLE {}({})", quoted(then), list.join(", ")), [])?;
    db.execute(sql, [])?;
    for (gone, _) in columns.iter().filter(|(_, here)| here.is_none()) {
        if db.execute(&format!("ALTER TABLE {} DROP COLUMN {}", quoted(then), quoted(gone)), []).is_err() {
            return Ok(None);
        }
    }
    let left = columns.iter().filter(|(_, here)| here.is_some()).cloned().collect();
    let spoken = Spoken { then: then.to_owned(), here: Some(here.to_owned()), columns: left };
    rename(&db, &[spoken], Direction::Here, &|_, column| quoted(column))?;
    db.query_row("SELECT sql FROM sqlite_schema WHERE type = 'index'", [], |row| row.get(0)).map(Some)
}

/// The statements that make an empty table with the columns of one here, and what is UNIQUE in it for the fold.
pub(super) fn definition_of_fold(conn: &Connection, table: &LocalTable) -> rusqlite::Result<Vec<String>> {
    let none = Parting::default();
    let parting = table.parting.as_deref().unwrap_or(&none);
    let is_here_only = |unique: &Unique| parting.here_only.contains(unique);
    let mut all = Vec::new();
    if parting.here_only.iter().any(|unique| matches!(unique, Unique::Constraint(_))) {
        all.push(bare(table));
        let named = |index: usize| Some(table.table.columns.get(index)?.name.to_ascii_lowercase());
        for (no, unique) in constraints(&table.table, named).enumerate().filter(|(_, unique)| !is_here_only(unique)) {
            all.push(unique.statement(&table.table.name, parting.fold_only.len() + no).1);
        }
    } else {
        all.push(table.table.sql.clone());
    }
    let sql = "SELECT lower(name), sql FROM main.sqlite_schema
        WHERE type = 'index' AND tbl_name = ?1 COLLATE NOCASE AND sql LIKE 'CREATE UNIQUE INDEX %' ORDER BY rowid";
    let mut found = conn.prepare(sql)?;
    let mut rows = found.query([&table.table.name])?;
    let fold_only: Vec<(String, String)> =
        (0..).zip(&parting.fold_only).map(|(no, unique)| unique.statement(&table.table.name, no)).collect();
    while let Some(row) = rows.next()? {
        let (name, sql): (String, String) = (row.get(0)?, row.get(1)?);
        if !parting.has_here(&name) && !fold_only.iter().any(|(other, _)| *other == name) {
            all.push(sql);
        }
    }
    all.extend(fold_only.into_iter().map(|(_, sql)| sql));
    Ok(all)
}

/// A statement for a table with the columns and the key alone.
fn bare(table: &LocalTable) -> String {
    let of = &table.table;
    let mut parts: Vec<String> = Vec::with_capacity(of.columns.len() + 1);
    for (index, column) in of.columns.iter().enumerate().filter(|(_, column)| !column.generated) {
        let key = if of.identity == Identity::RowidAlias(index) { " PRIMARY KEY" } else { "" };
        parts.push(format!("{} {}{key}", quoted(&column.name), column.declared_type));
    }
    if let Identity::Declared(columns) = &of.identity {
        let name = |index: usize| of.columns.get(index).map(|column| quoted(&column.name)).unwrap_or_default();
        let list: Vec<String> =
            columns.iter().map(|key| format!("{}{}", name(key.column), collate(&key.collation))).collect();
        parts.push(format!("PRIMARY KEY({})", list.join(", ")));
    }
    let form = if of.without_rowid { " WITHOUT ROWID" } else { "" };
    format!("CREATE TABLE {}({}){form}", quoted(&of.name), parts.join(", "))
}

/// An index as it would be on the table here. `names` are the columns that its table had, with their names here.
fn unique_here(unique: Unique, then: &str, table: &Table, names: &HashMap<String, Option<String>>) -> Option<Unique> {
    let is_as_it_was = names.iter().all(|(then, here)| here.as_ref() == Some(then));
    match unique {
        Unique::Index { name, sql } if !is_as_it_was || !then.eq_ignore_ascii_case(&table.name) => {
            let mut columns: Vec<(String, Option<String>)> =
                names.iter().map(|(then, here)| (then.clone(), here.clone())).collect();
            if columns.is_empty() {
                let all = table.columns.iter().map(|column| column.name.to_ascii_lowercase());
                columns = all.map(|name| (name.clone(), Some(name))).collect();
            }
            columns.sort();
            // What SQLite makes nothing of here cannot be told.
            let sql = retold(&sql, then, &table.name, &columns).ok().flatten()?;
            Some(Unique::Index { name, sql })
        }
        unique => Some(unique),
    }
}

impl State {
    /// How the fold and a table differ in what is UNIQUE; `None` where they do not.
    pub(super) fn parting(&self, table: &Table) -> Result<Option<Arc<Parting>>, ApplyError> {
        let steps = self.steps_ahead()?;
        let mut parting = Parting::default();
        let mut name = table.name.as_str();
        let mut then = table.name.clone();
        // The columns before the changes so far, with their names here; empty where those are the same.
        let mut names: HashMap<String, Option<String>> = HashMap::new();
        for PendingStep { step, .. } in steps.iter().rev() {
            // Others may have given it, and its columns, other names since.
            let is_of_table = match self.table_of_step(step)? {
                Some(now) => now.is_some_and(|now| now.eq_ignore_ascii_case(&table.name)),
                None => step.table.eq_ignore_ascii_case(name),
            };
            if is_of_table && let Some(spoken) = self.spoken_of_table(step, table)? {
                let named = |(then, here): (String, Option<String>)| {
                    (then.to_ascii_lowercase(), here.map(|here| here.to_ascii_lowercase()))
                };
                (then, names) = (spoken.then, spoken.columns.into_iter().map(named).collect());
            }
            match (step.kind.as_str(), &step.before, &step.after) {
                _ if !is_of_table => {}
                ("index", before, after) => {
                    let of = |sql: &Option<String>| Unique::of_index(&step.name, sql.as_ref());
                    match (of(before), of(after)) {
                        (None, Some(unique)) => parting.unmake(unique),
                        (Some(unique), None) => {
                            if let Some(unique) = unique_here(unique, &then, table, &names) {
                                parting.make(unique);
                            }
                        }
                        // Its columns have other names.
                        (Some(_), Some(_)) | (None, None) => {}
                    }
                }
                ("table", None, _) => break,
                ("table", Some(_), Some(_)) => {
                    let here = |column: &str| match names.get(column) {
                        Some(here) => here.clone(),
                        None => names.is_empty().then(|| column.to_owned()),
                    };
                    names = go_back(&mut parting, step, here)?;
                    name = step.name_before.as_ref().unwrap_or(&step.name);
                    name.clone_into(&mut then);
                }
                _ => {}
            }
        }
        Ok(if parting.is_empty() { None } else { Some(Arc::new(parting)) })
    }

    /// Changes of the schema that are made here and that the fold has not reached, in order: own ones that nobody has made before, and those of an
    /// intent that was taken back but for them.
    pub(super) fn steps_ahead(&self) -> Result<Arc<Vec<PendingStep>>, ApplyError> {
        if let Some(known) = &*self.steps_ahead.borrow() {
            return Ok(Arc::clone(known));
        }
        let mut left = Vec::new();
        for pending in self.steps_pending(FIRST_SHARD)? {
            let first = self.digest_before(step_digest(&pending.step), self.origin(), pending.seen)?;
            if first.is_none() && !self.is_reached(&pending)? {
                left.push(pending);
            }
        }
        if let Some(kept) = self.kept_schema()? {
            let place = left.iter().position(|pending| pending.tx >= kept.tx).unwrap_or(left.len());
            let step = |step| PendingStep { tx: kept.tx, step, seen: StreamSeq(0), first: None };
            left.splice(place..place, kept.steps.into_iter().map(step));
        }
        let steps = Arc::new(left);
        self.steps_ahead.replace(Some(Arc::clone(&steps)));
        Ok(steps)
    }

    /// Whether the fold has come to a pending change, or to the same one of somebody else, of which the message in the first shard is about to
    /// be folded.
    pub(super) fn is_reached(&self, pending: &PendingStep) -> Result<bool, ApplyError> {
        let sql = "SELECT 1 FROM steps_made WHERE digest = ?1
            AND iif(origin = ?2, tx = ?3 AND seq IS NOT NULL, origin <> x'' AND seq IS NULL)";
        let of = params![step_digest(&pending.step), origin_bytes(self.origin()), to_db(pending.tx)];
        Ok(self.db.prepare_cached(sql)?.exists(of)?)
    }

    /// The fold has come to a change that is made here already. Its place on the log is told by its message in the first shard.
    pub(super) fn set_reached(&self, step: &SchemaStep, tx: u64) -> Result<(), ApplyError> {
        let sql = "UPDATE steps_made SET seq = 0 WHERE digest = ?1 AND origin = ?2 AND tx = ?3 AND seq IS NULL";
        let of = params![step_digest(step), origin_bytes(self.origin()), to_db(tx)];
        self.db.prepare_cached(sql)?.execute(of).map(drop)?;
        Ok(())
    }
}

impl LocalTable {
    /// Whether rows of the fold can have no place in it because of what is UNIQUE here alone.
    pub(super) fn can_hide(&self) -> bool {
        self.parting.as_ref().is_some_and(|parting| !parting.here_only.is_empty())
    }

    /// Whether rows can have a place in it that have none in the fold.
    pub(super) fn takes_more(&self) -> bool {
        self.parting.as_ref().is_some_and(|parting| !parting.fold_only.is_empty())
    }
}

impl Call<'_, '_> {
    /// Has a table that shows the fold hold what is UNIQUE for the fold alone.
    pub(super) fn make_fold_only(&mut self, table: &LocalTable) -> Result<(), ApplyError> {
        let Some(parting) = table.parting.as_ref().filter(|parting| !parting.fold_only.is_empty()) else {
            return Ok(());
        };
        // SQLite takes an index that another connection has dropped for one that is there, until a statement has read the schema anew (seen
        // with 3.54.1).
        let read_anew = self.folder.rows.conn().query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()));
        read_anew.map_err(|source| ApplyError::Database { doing: "reading the schema", source })?;
        for (no, unique) in parting.fold_only.iter().enumerate() {
            let (name, sql) = unique.statement(&table.table.name, no);
            let made = self.fold_only.entry(table.id).or_default();
            if made.contains(&name) {
                continue;
            }
            match self.folder.rows.conn().execute(&sql, []) {
                Ok(_) => made.push(name),
                Err(source) if is_duplicate(&source) => return Err(ApplyError::row(&table.table.name, source)),
                // Its columns are not here any more: nobody can tell.
                Err(source) => match ApplyError::schema("index", &name, source) {
                    ApplyError::Cannot(_) => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Takes that away again.
    pub(super) fn drop_fold_only(&mut self, table: i64) -> Result<(), ApplyError> {
        for name in self.fold_only.remove(&table).unwrap_or_default() {
            let dropped = self.folder.rows.conn().execute(&format!("DROP INDEX {}", quoted(&name)), []);
            dropped.map_err(|source| ApplyError::schema("index", &name, source))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_told_under_the_names_of_here() {
        let column = |then: &str, here: Option<&str>| (then.to_owned(), here.map(str::to_owned));
        let columns = [column("a", Some("b")), column("b", Some("a")), column("gone", None), column("c", Some("c"))];
        let told = |sql: &str| retold(sql, "t", "now", &columns).unwrap();
        let index = |sql: &str| {
            let db = Connection::open_in_memory().unwrap();
            db.execute_batch(&format!("CREATE TABLE now(a, b, c); INSERT INTO now VALUES(1, 2, 3); {sql}")).unwrap();
            let same = |row: &str| db.execute(&format!("INSERT INTO now VALUES({row})"), []).is_err();
            [same("1, 8, 8"), same("7, 2, 7"), same("6, 6, 3")]
        };
        assert_eq!(index(&told("CREATE UNIQUE INDEX i ON t(a)").unwrap()), [false, true, false]);
        assert_eq!(index(&told("CREATE UNIQUE INDEX i ON t(b + 0) WHERE a > 1").unwrap()), [true, false, false]);
        assert_eq!(told("CREATE UNIQUE INDEX i ON t(c, gone)"), None);
    }

    #[test]
    fn what_was_made_and_dropped_again_is_no_difference() {
        let index = |name: &str| {
            let sql = format!("CREATE UNIQUE INDEX {name} ON t(a)");
            Unique::of_index(name, Some(&sql)).unwrap()
        };
        // Backwards from here: one was dropped, and before that both were made.
        let mut parting = Parting::default();
        parting.make(index("one"));
        parting.unmake(index("one"));
        parting.unmake(index("two"));
        assert_eq!(parting, Parting { here_only: vec![index("two")], fold_only: Vec::new() });
        assert!(Unique::of_index("plain", Some(&"CREATE INDEX plain ON t(a)".to_owned())).is_none());
    }
}
