//! What the statements of indexes, views and triggers speak of: a table, or a column, may be called otherwise here than where they were made.
//!
//! A step tells the tables of its statement with how they began, so they are found whatever they are called. The statement is told anew as SQLite
//! does it where somebody renames what it speaks of: in a copy of the schema the names are led back to those of its origin, the object is made,
//! and the names are led here again. So it ends with the text that it has where the object was made before the names were given.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::Connection;

use super::alteration::{ColumnStep, alter, alteration, columns_of, sql_of, statements, written};
use super::beginnings::{THE_TABLE, always};
use super::error::ApplyError;
use super::names::{Named, name_that_stays};
use super::objects::is_of_no_column;
use super::schema_steps::{Maker, catalogue_of};
use super::shape::Tables;
use super::sql::quoted;
use super::state::State;
use super::undo_redo::Call;
use crate::change::SchemaChange;
use crate::log::{SchemaStep, TableShape};
use crate::schema::{Table, Tokens, unquote};

/// A table that a statement speaks of, and what has become of its names.
#[derive(Debug)]
pub(super) struct Spoken {
    /// Its name where the statement was made.
    pub(super) then: String,
    /// Its name here; `None` when it is gone.
    pub(super) here: Option<String>,
    /// The columns that the statement speaks of, with their names here; `None` for those that are gone.
    pub(super) columns: Vec<(String, Option<String>)>,
}

impl Spoken {
    fn is_as_it_was(&self) -> bool {
        let is_same = |then: &String, here: &String| then.eq_ignore_ascii_case(here);
        self.here.as_ref().is_none_or(|here| is_same(&self.then, here))
            && self.columns.iter().all(|(then, here)| here.as_ref().is_some_and(|here| is_same(then, here)))
    }
}

/// Whether a step does no more to an index, a view or a trigger than to follow the names that others of the same transaction give.
pub(super) fn follows_names(step: &SchemaStep, all: &[&SchemaStep]) -> bool {
    match (step.kind.as_str(), &step.before, &step.after) {
        ("table", ..) | (_, None, _) | (_, _, None) => false,
        (_, Some(before), Some(after)) => {
            matches!(with_names_of(step, before, all), Ok(Some(sql)) if is_same_statement(&sql, after))
        }
    }
}

/// The statement before a step as it is when the steps have given their names.
fn with_names_of(step: &SchemaStep, before: &str, all: &[&SchemaStep]) -> rusqlite::Result<Option<String>> {
    let db = Connection::open_in_memory()?;
    let mut moved = Vec::new();
    for table in all.iter().filter(|other| other.kind == "table") {
        let (Some(before), Some(after)) = (&table.before, &table.after) else { continue };
        if db.execute(before, []).is_ok() {
            moved.push((table, alteration(table, before, after)?.columns));
        }
    }
    for shape in step.tables.iter().flatten() {
        let columns: Vec<String> = shape.columns.iter().map(|column| quoted(column)).collect();
        // Those of the steps are there, under their names before.
        if !all.iter().any(|table| table.kind == "table" && table.name.eq_ignore_ascii_case(&shape.name)) {
            drop(db.execute(&format!("CREATE TABLE {}({})", quoted(&shape.name), columns.join(", ")), []));
        }
    }
    db.execute(before, [])?;
    let aside = |no: usize| format!("woodchuck_aside_{no}");
    for (no, (table, columns)) in moved.iter().enumerate() {
        let old_name = table.name_before.as_ref().unwrap_or(&table.name);
        for column in columns {
            if let ColumnStep::Rename { in_place: None, .. } = column {
                statements(old_name, column).iter().try_for_each(|sql| alter(&db, sql))?;
            }
        }
        if *old_name != table.name {
            alter(&db, &format!("ALTER TABLE {} RENAME TO {}", quoted(old_name), aside(no)))?;
        }
    }
    for (no, (table, _)) in moved.iter().enumerate().filter(|(_, (table, _))| table.name_before.is_some()) {
        if table.name_before.as_ref() != Some(&table.name) {
            alter(&db, &format!("ALTER TABLE {} RENAME TO {}", aside(no), quoted(&table.name)))?;
        }
    }
    sql_of(&db, &step.kind, &step.name)
}

/// Whether two statements are the same but for the quotes of names: SQLite puts some there when what they speak of is renamed.
pub(super) fn is_same_statement(one: &str, other: &str) -> bool {
    let bare = |(_, token): (usize, &str)| if token.starts_with('\'') { token.to_owned() } else { unquote(token) };
    Tokens::new(one).map(bare).eq(Tokens::new(other).map(bare))
}

/// The shapes of the tables that a change speaks of, without beginnings: of others than tables with the columns alone that it speaks of.
pub(super) fn shapes_told(change: &SchemaChange) -> Option<Vec<TableShape>> {
    if change.kind == "table" && (change.before.is_none() || change.after.is_none()) {
        return None;
    }
    let all = Tokens::new(change.after.as_ref().or(change.before.as_ref())?);
    let words: BTreeSet<String> = all.map(|(_, token)| unquote(token).to_ascii_lowercase()).collect();
    let shape = |table: &Arc<Table>| {
        let names = table.columns.iter().map(|column| column.name.clone());
        let columns = names.filter(|name| words.contains(&name.to_ascii_lowercase())).collect();
        TableShape { name: table.name.clone(), columns, key: Vec::new(), beginnings: Vec::new() }
    };
    Some(change.tables.iter().map(shape).collect())
}

/// The shape of the table that a step is about, where it tells one.
fn shape_of_table(step: &SchemaStep) -> Option<&TableShape> {
    step.tables.iter().flatten().find(|shape| shape.name.eq_ignore_ascii_case(&step.table))
}

impl State {
    /// What the table of a step is called now, in lower case; `None` where its name alone can tell, `Some(None)` when it is gone.
    pub(super) fn table_of_step(&self, step: &SchemaStep) -> Result<Option<Option<String>>, ApplyError> {
        shape_of_table(step).map_or(Ok(None), |shape| self.table_became(shape))
    }

    /// The tables that a step's statement speaks of.
    pub(super) fn spoken(&self, step: &SchemaStep, tables: &dyn Tables) -> Result<Vec<Spoken>, ApplyError> {
        let mut all = Vec::new();
        for shape in step.tables.iter().flatten() {
            let Named::Table(table) = self.table_meant(tables, shape)? else {
                // It goes on speaking of that in vain.
                let columns = shape.columns.iter().map(|name| (name.clone(), Some(name.clone()))).collect();
                all.push(Spoken { then: shape.name.clone(), here: None, columns });
                continue;
            };
            let spoken = self.spoken_as(shape, &table)?;
            // One table has one name.
            if !all.iter().any(|other: &Spoken| other.here == spoken.here) {
                all.push(spoken);
            }
        }
        Ok(all)
    }

    /// Of what a step speaks, the table that it is about, which is this one here.
    pub(super) fn spoken_of_table(&self, step: &SchemaStep, table: &Table) -> Result<Option<Spoken>, ApplyError> {
        let Some(shape) = shape_of_table(step) else { return Ok(None) };
        Ok(Some(self.spoken_as(shape, table)?))
    }

    fn spoken_as(&self, shape: &TableShape, table: &Table) -> Result<Spoken, ApplyError> {
        let became = self.columns_began(&table.name.to_ascii_lowercase())?;
        let named = self.columns_named(&table.name)?;
        let here = |(place, name): (u16, &String)| {
            let began = shape.beginning(place).cloned().unwrap_or_else(|| always(name));
            let now = match became.get(&began) {
                None => Some(name.clone()),
                // Another one is in its place.
                Some(_) if named.contains_key(&name_that_stays(name)) => None,
                // As the table has it.
                Some(now) => table
                    .columns
                    .iter()
                    .map(|column| &column.name)
                    .find(|column| now.as_ref().is_some_and(|now| column.eq_ignore_ascii_case(now)))
                    .cloned(),
            };
            (name.clone(), now)
        };
        let columns = (THE_TABLE + 1..).zip(&shape.columns).map(here).collect();
        Ok(Spoken { then: shape.name.clone(), here: Some(table.name.clone()), columns })
    }

    /// The statement of an index, a view or a trigger under the names of here; `None` where an index is of a column that is gone, and has gone
    /// with it.
    pub(super) fn under_names_here(
        &self,
        conn: &Connection,
        step: &SchemaStep,
        after: &str,
    ) -> Result<Option<String>, ApplyError> {
        if step.tables.iter().flatten().next().is_none() {
            return Ok(Some(after.to_owned()));
        }
        let catalogue = catalogue_of(conn)?;
        let spoken = self.spoken(step, &|name: &str| catalogue.written_table(name).cloned())?;
        if spoken.iter().all(Spoken::is_as_it_was) {
            return Ok(Some(after.to_owned()));
        }
        let told = definitions_of(conn).and_then(|all| told_anew(&all, (&step.kind, &step.name), after, &spoken));
        told.map_err(Maker::refused(step))
    }
}

impl Call<'_, '_> {
    /// Steps that came from elsewhere, about the tables that they mean here, and apart from them those about tables that are gone: what they made
    /// has gone with these. (A table that another of the steps is about gets its name with that one.)
    pub(super) fn about_tables_here(
        &self,
        steps: &[SchemaStep],
    ) -> Result<(Vec<SchemaStep>, Vec<SchemaStep>), ApplyError> {
        let is_named = |name: &String| {
            let mut names = steps
                .iter()
                .filter(|step| step.kind == "table")
                .flat_map(|step| [Some(&step.name), step.name_before.as_ref()]);
            names.any(|other| other.is_some_and(|other| other.eq_ignore_ascii_case(name)))
        };
        let (mut all, mut in_vain) = (Vec::with_capacity(steps.len()), Vec::new());
        for step in steps {
            let mut step = step.clone();
            if step.kind != "table" && !is_named(&step.table) {
                match self.state.table_of_step(&step)? {
                    Some(Some(now)) => {
                        if let Named::Table(table) = self.named(&now)? {
                            step.table.clone_from(&table.name);
                        }
                    }
                    Some(None) => {
                        in_vain.push(step);
                        continue;
                    }
                    None => {}
                }
            }
            all.push(step);
        }
        Ok((all, in_vain))
    }
}

/// The statements of a schema, but for triggers.
fn definitions_of(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut found = conn.prepare(
        "SELECT sql FROM main.sqlite_schema WHERE type <> 'trigger' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql IS NOT NULL ORDER BY rowid",
    )?;
    found.query_map([], |row| row.get(0))?.collect()
}

/// A statement under other names, of what has these `definitions`; `None` where an index is of a column that is gone.
pub(super) fn told_anew<S: AsRef<str>>(
    definitions: &[S],
    (kind, name): (&str, &str),
    sql: &str,
    spoken: &[Spoken],
) -> rusqlite::Result<Option<String>> {
    if spoken.iter().all(Spoken::is_as_it_was) {
        return Ok(Some(sql.to_owned()));
    }
    let db = Connection::open_in_memory()?;
    db.execute_batch("PRAGMA foreign_keys = OFF")?;
    for definition in definitions {
        // What SQLite does not take without the application, and what a virtual table has made, nothing here depends on.
        drop(db.execute(definition.as_ref(), []));
    }
    let mut as_here: HashMap<String, String> = HashMap::new();
    for here in spoken.iter().filter_map(|of| of.here.as_ref()) {
        as_here.extend(sql_of(&db, "table", here)?.map(|sql| (here.clone(), sql)));
    }
    let written = |of: &Spoken, column: &str| match of.here.as_ref().and_then(|here| as_here.get(here)) {
        Some(sql) => written(column, sql),
        None => quoted(column),
    };
    rename(&db, spoken, Direction::Then, &written)?;
    drop(db.execute(&format!("DROP {kind} {}", quoted(name)), []));
    if kind == "index" {
        // SQLite knows whether it is of a column, or has the same word in another sense. (Views and triggers are not asked what they speak of.)
        for of in spoken.iter().filter(|of| of.here.is_some()) {
            for (gone, _) in of.columns.iter().filter(|(_, here)| here.is_none()) {
                alter(&db, &format!("ALTER TABLE {} DROP COLUMN {}", quoted(&of.then), quoted(gone)))?;
            }
        }
    }
    match db.execute(sql, []) {
        Err(refused) if kind == "index" && is_of_no_column(&refused) => return Ok(None),
        made => made.map(drop)?,
    }
    rename(&db, spoken, Direction::Here, &written)?;
    sql_of(&db, kind, name)
}

/// Where names are led.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To where the statement was made.
    Then,
    /// Back again.
    Here,
}

/// Gives tables and columns their names of the other place, columns as they are to be `written`. Any of them can have the name that another one
/// gets. Columns that are gone come for where the statement was made, and stay.
pub(super) fn rename(
    db: &Connection,
    spoken: &[Spoken],
    to: Direction,
    written: &dyn Fn(&Spoken, &str) -> String,
) -> rusqlite::Result<()> {
    // What went aside on the way there stays there.
    let aside = |no: usize| match to {
        Direction::Then => format!("woodchuck_then_{no}"),
        Direction::Here => format!("woodchuck_here_{no}"),
    };
    let alter = |table: &str, what: &str| alter(db, &format!("ALTER TABLE {} {what}", quoted(table)));
    let ends = |of: &Spoken| {
        let here = of.here.clone()?;
        Some(match to {
            Direction::Then => (here, of.then.clone()),
            Direction::Here => (of.then.clone(), here),
        })
    };
    for of in spoken {
        let Some((table, _)) = ends(of) else { continue };
        let moved = |(then, here): &(String, Option<String>)| match to {
            Direction::Then => (here.clone(), then.clone()),
            Direction::Here => (Some(then.clone()), here.clone().unwrap_or_else(|| then.clone())),
        };
        let moved: Vec<_> = of.columns.iter().map(moved).filter(|(from, to)| from.as_ref() != Some(to)).collect();
        for (no, (from, _)) in moved.iter().enumerate() {
            if let Some(from) = from {
                alter(&table, &format!("RENAME COLUMN {} TO {}", quoted(from), aside(no)))?;
            }
        }
        let kept: BTreeSet<String> = columns_of(db, &table)?.iter().map(|name| name.to_ascii_lowercase()).collect();
        for (no, (_, to)) in moved.iter().enumerate().filter(|(_, (_, to))| kept.contains(&to.to_ascii_lowercase())) {
            // One that the statement does not speak of.
            alter(&table, &format!("RENAME COLUMN {} TO {}", quoted(to), aside(moved.len() + no)))?;
        }
        for (no, (from, to)) in moved.iter().enumerate() {
            let what = match from {
                Some(_) => format!("RENAME COLUMN {} TO {}", aside(no), written(of, to)),
                None => format!("ADD COLUMN {}", quoted(to)),
            };
            alter(&table, &what)?;
        }
    }
    let moved = spoken.iter().filter_map(ends).filter(|(from, to)| from != to);
    let moved: Vec<(usize, (String, String))> = moved.enumerate().collect();
    for (no, (from, _)) in &moved {
        alter(from, &format!("RENAME TO {}", aside(*no)))?;
    }
    for (no, (_, to)) in &moved {
        // One that the statement does not speak of.
        if sql_of(db, "table", to)?.is_some() {
            alter(to, &format!("RENAME TO {}", aside(moved.len() + no)))?;
        }
        alter(&aside(*no), &format!("RENAME TO {}", quoted(to)))?;
    }
    for of in spoken.iter().filter(|of| of.here.is_none() && to == Direction::Then) {
        if sql_of(db, "table", &of.then)?.is_none() {
            let mut columns: Vec<String> = of.columns.iter().map(|(column, _)| quoted(column)).collect();
            if columns.is_empty() {
                columns.push("id".to_owned());
            }
            db.execute(&format!("CREATE TABLE {}({})", quoted(&of.then), columns.join(", ")), [])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [&str; 3] = [
        "CREATE TABLE \"s9\"(k TEXT PRIMARY KEY, w2 TEXT, x TEXT, y TEXT)",
        "CREATE TABLE t3(id INTEGER PRIMARY KEY, w TEXT)",
        "CREATE VIEW seen AS SELECT w2 FROM \"s9\"",
    ];

    /// `t3` has become `s9` and its `w` is `w2`; `gone` is gone, and another table is called `t3`.
    fn spoken() -> [Spoken; 1] {
        let column = |then: &str, here: Option<&str>| (then.to_owned(), here.map(str::to_owned));
        let columns = vec![column("w", Some("w2")), column("x", Some("x")), column("gone", None)];
        [Spoken { then: "t3".to_owned(), here: Some("s9".to_owned()), columns }]
    }

    fn told(kind: &str, sql: &str) -> Option<String> {
        told_anew(&HERE, (kind, "o"), sql, &spoken()).unwrap()
    }

    #[test]
    fn statements_are_told_under_the_names_of_here() {
        assert_eq!(told("index", "CREATE INDEX o ON t3(w, x)").unwrap(), "CREATE INDEX o ON \"s9\"(w2, x)");
        let sql = "CREATE TRIGGER o AFTER INSERT ON t3 BEGIN UPDATE t3 SET x = new.w WHERE w = 'w'; END";
        let wanted = "CREATE TRIGGER o AFTER INSERT ON \"s9\" BEGIN UPDATE \"s9\" SET x = new.w2 WHERE w2 = 'w'; END";
        assert_eq!(told("trigger", sql).unwrap(), wanted);
        assert_eq!(
            told("view", "CREATE VIEW o AS SELECT w, gone FROM t3").unwrap(),
            "CREATE VIEW o AS SELECT w2, gone FROM \"s9\""
        );
    }

    #[test]
    fn an_index_goes_with_its_column_and_not_with_one_whose_name_it_has_in_another_sense() {
        assert_eq!(told("index", "CREATE INDEX o ON t3(x, gone)"), None);
        let sql = "CREATE INDEX o ON t3(x) WHERE x <> 'gone'";
        assert_eq!(told("index", sql).unwrap(), "CREATE INDEX o ON \"s9\"(x) WHERE x <> 'gone'");
    }

    #[test]
    fn what_only_follows_names_is_told_from_what_is_changed() {
        let step = |kind: &str, name: &str, name_before: Option<&str>, before: &str, after: &str| SchemaStep {
            kind: kind.to_owned(),
            name: name.to_owned(),
            name_before: name_before.map(str::to_owned),
            table: "s9".to_owned(),
            before: Some(before.to_owned()),
            after: Some(after.to_owned()),
            renamed_columns: None,
            tables: None,
        };
        let table = step("table", "s9", Some("t3"), "CREATE TABLE t3(k, w)", "CREATE TABLE \"s9\"(k, w2)");
        let index = |after: &str| step("index", "o", None, "CREATE INDEX o ON t3(w)", after);
        for (after, follows) in [
            ("CREATE INDEX o ON \"s9\"(w2)", true),
            ("CREATE INDEX o ON s9(w2)", true),
            ("CREATE INDEX o ON \"s9\"(k)", false),
            ("CREATE UNIQUE INDEX o ON \"s9\"(w2)", false),
        ] {
            let index = index(after);
            assert_eq!(follows_names(&index, &[&table, &index]), follows, "{after}");
        }
    }
}
