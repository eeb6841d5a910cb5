//! How a table's statement became another one: which columns came, went, and have other names, and whether ALTER TABLE leads from the one to
//! the other.

use rusqlite::{Connection, OptionalExtension};

use super::sql::quoted;
use crate::log::SchemaStep;
use crate::schema::{Column, Table, Tokens, unquote};

/// What a change of a table does to its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ColumnStep {
    /// A new one behind the others.
    Add {
        /// Its name.
        name: String,
        /// Its definition, with the name; empty where no statement can add it.
        definition: String,
    },
    /// One is gone.
    Drop {
        /// Its name.
        name: String,
    },
    /// One has another name.
    Rename {
        /// Its name before.
        from: String,
        /// Its name now.
        to: String,
        /// The same as SQL has it: a renamed column is quoted where the statement that renamed it had it so.
        written: String,
        /// The definition of a new column, with the name, that came in its place: no value of the one goes along. It counts as the same column,
        /// so that nodes which make the same change, and take it for a rename, mean the same by each name.
        in_place: Option<String>,
    },
}

/// How one CREATE TABLE becomes another.
#[derive(Debug)]
pub(super) struct Alteration {
    /// What happens to columns.
    pub(super) columns: Vec<ColumnStep>,
    /// `columns` as ALTER TABLE statements lead to the statement wanted.
    pub(super) is_alter: bool,
    /// The statement before under the name after.
    pub(super) renamed: String,
}

pub(super) fn sql_of(conn: &Connection, kind: &str, name: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached(
        "SELECT sql FROM sqlite_schema WHERE type = ?1 AND name = ?2 COLLATE NOCASE AND sql IS NOT NULL",
    )?
    .query_row([kind, name], |row| row.get(0))
    .optional()
}

pub(super) fn columns_of(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut found = conn.prepare("SELECT name FROM pragma_table_xinfo(?1)")?;
    found.query_map([table], |row| row.get(0))?.collect()
}

/// Runs a change of the schema. Views and triggers that speak of something which is gone, for which SQLite refuses every ALTER, stand back
/// meanwhile; an index of a column that is dropped goes with it.
pub(super) fn alter(conn: &Connection, sql: &str) -> rusqlite::Result<()> {
    let is_alter = sql.get(..5).is_some_and(|word| word.eq_ignore_ascii_case("alter"));
    let mut back: Vec<Broken> = Vec::new();
    let done = loop {
        let done = conn.execute(sql, []).map(drop);
        let broken = match &done {
            Err(refused) if is_alter => in_the_way(conn, &refused.to_string())?,
            Ok(()) | Err(_) => None,
        };
        let Some(broken) = broken else { break done };
        conn.execute(&format!("DROP {} {}", broken.kind, quoted(&broken.name)), [])?;
        if broken.kind != "index" {
            back.push(broken);
        }
    };
    back.iter().rev().try_for_each(|broken| broken.come_back(conn))?;
    if done.is_ok() || !is_alter {
        return done;
    }
    // An index that needs a function of the application's is in nobody's way there.
    let was: bool = conn.pragma_query_value(None, "legacy_alter_table", |row| row.get(0))?;
    conn.pragma_update(None, "legacy_alter_table", true)?;
    let again = conn.execute(sql, []).map(drop);
    conn.pragma_update(None, "legacy_alter_table", was)?;
    // What is wrong with it is what the new way says.
    again.or(done)
}

struct Broken {
    kind: String,
    name: String,
    sql: String,
    /// The root page of the table that it is of.
    root: Option<i64>,
}

impl Broken {
    /// It was there, and SQLite does not ask what it speaks of, but for the table of a trigger, which may have another name by now.
    fn come_back(&self, conn: &Connection) -> rusqlite::Result<()> {
        let refused = match conn.execute(&self.sql, []) {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        let find = "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND rootpage = ?1";
        let now: Option<String> = conn.query_row(find, [self.root], |row| row.get(0)).optional()?;
        let told = now.map(|now| trigger_on(&self.name, &self.sql, &now)).transpose()?.flatten();
        told.map_or(Err(refused), |sql| conn.execute(&sql, []).map(drop))
    }
}

/// The statement of a trigger with another table, which is all that the old way of renaming changes in it.
fn trigger_on(name: &str, sql: &str, table: &str) -> rusqlite::Result<Option<String>> {
    let scratch = Connection::open_in_memory()?;
    let then = Tokens::new(sql).skip_while(|(_, token)| !token.eq_ignore_ascii_case("ON")).nth(1);
    let Some(then) = then.map(|(_, token)| quoted(&unquote(token))) else { return Ok(None) };
    scratch.execute_batch(&format!("CREATE TABLE {then}(id); {sql}; PRAGMA legacy_alter_table = ON"))?;
    scratch.execute(&format!("ALTER TABLE {then} RENAME TO {}", quoted(table)), [])?;
    sql_of(&scratch, "trigger", name)
}

/// The object that SQLite names as what it refuses an ALTER for: a view, a trigger, or an index of a column that is dropped.
fn in_the_way(conn: &Connection, refused: &str) -> rusqlite::Result<Option<Broken>> {
    if !refused.starts_with("error in ") {
        return Ok(None);
    }
    let find = "SELECT type, name, sql, (SELECT rootpage FROM main.sqlite_schema AS its WHERE its.type = 'table' AND its.name = object.tbl_name)
        FROM main.sqlite_schema AS object WHERE type <> 'table' AND sql IS NOT NULL
        AND (instr(?1, 'error in ' || type || ' ' || name || ': ') = 1 OR instr(?1, 'error in ' || type || ' ' || name || ' after ') = 1)";
    let found = |row: &rusqlite::Row<'_>| {
        Ok(Broken { kind: row.get(0)?, name: row.get(1)?, sql: row.get(2)?, root: row.get(3)? })
    };
    let broken = conn.query_row(find, [refused], found).optional()?;
    let is_dropped = refused.contains(" after drop column: no such column: ");
    Ok(broken.filter(|broken| broken.kind != "index" || is_dropped))
}

/// Works out how a table's statement became another one. Without a way by ALTER TABLE the columns are still told.
///
/// # Errors
/// When SQLite does not take one of the statements.
pub(super) fn alteration(step: &SchemaStep, before: &str, after: &str) -> rusqlite::Result<Alteration> {
    let wanted = Connection::open_in_memory()?;
    wanted.execute(after, [])?;
    let scratch = Connection::open_in_memory()?;
    scratch.execute(before, [])?;
    let old_name = step.name_before.as_ref().unwrap_or(&step.name);
    for (from, to) in renames_of_table(old_name, &step.name) {
        scratch.execute(&format!("ALTER TABLE {} RENAME TO {}", quoted(from), quoted(to)), [])?;
    }
    let renamed = sql_of(&scratch, "table", &step.name)?.unwrap_or_default();
    let (old, new) = (columns_of(&scratch, &step.name)?, columns_of(&wanted, &step.name)?);
    let lacks = |all: &[String], name: &String| !all.iter().any(|other| other.eq_ignore_ascii_case(name));
    let gone: Vec<&String> = old.iter().filter(|name| lacks(&new, name)).collect();
    let come: Vec<&String> = new.iter().filter(|name| lacks(&old, name)).collect();
    // Rows are compared by the same.
    let renames: Vec<(&String, &String)> = match &step.renamed_columns {
        Some(told) => told.iter().filter_map(|(from, to)| one_of(&gone, from).zip(one_of(&come, to))).collect(),
        None => old.iter().zip(&new).filter(|(from, to)| gone.contains(from) && come.contains(to)).collect(),
    };
    let rename = |(from, to): &(&String, &String)| {
        let written = written(to, after);
        ColumnStep::Rename { from: (*from).clone(), to: (*to).clone(), written, in_place: None }
    };
    let mut columns: Vec<ColumnStep> = renames.iter().map(rename).collect();
    let is_left = |name: &&&String| !renames.iter().any(|(from, to)| *from == **name || *to == **name);
    columns.extend(gone.iter().filter(is_left).map(|name| ColumnStep::Drop { name: (*name).clone() }));
    let rest: Vec<&String> = come.iter().filter(is_left).copied().collect();
    for came in added(&scratch, &step.name, &columns, &rest, after)? {
        let ColumnStep::Add { name, definition } = &came else { continue };
        let before = new.iter().position(|other| other == name).and_then(|place| old.get(place));
        let is_gone = |column: &ColumnStep| matches!(column, ColumnStep::Drop { name } if before == Some(name));
        match columns.iter_mut().find(|column| is_gone(column)) {
            Some(gone) => {
                let from = before.cloned().unwrap_or_default();
                let (written, in_place) = (written(name, after), Some(definition.clone()));
                *gone = ColumnStep::Rename { from, to: name.clone(), written, in_place };
            }
            None => columns.push(came),
        }
    }
    put_row(&scratch, &step.name)?;
    let is_alter = leads_to(&scratch, &step.name, &columns, after)?;
    Ok(Alteration { columns, is_alter, renamed })
}

fn one_of<'n>(names: &[&'n String], name: &str) -> Option<&'n String> {
    names.iter().copied().find(|other| other.eq_ignore_ascii_case(name))
}

/// The renames that give a table another name. SQLite takes a name that differs in case alone for that of another table.
pub(super) fn renames_of_table<'a>(from: &'a str, to: &'a str) -> Vec<(&'a str, &'a str)> {
    const BETWEEN: &str = "woodchuck_renamed";
    match (from == to, from.eq_ignore_ascii_case(to)) {
        (true, _) => Vec::new(),
        (false, true) => vec![(from, BETWEEN), (BETWEEN, to)],
        (false, false) => vec![(from, to)],
    }
}

/// The column of a table as it was that a column of it comes from. `sources` are what [`reshape`](crate::change::reshape) tells of the two.
pub(super) fn column_before<'t>(old: &'t Table, sources: Option<&[Option<usize>]>, index: usize) -> Option<&'t Column> {
    let source = sources.map_or(Some(index), |sources| sources.get(index).copied().flatten());
    old.columns.get(source?)
}

/// A name as a statement has it.
pub(super) fn written(name: &str, sql: &str) -> String {
    let bare = Tokens::new(sql).any(|(_, token)| token == name);
    if bare { name.to_owned() } else { quoted(name) }
}

impl ColumnStep {
    /// Whether both do the same to columns of the same names.
    fn is(&self, other: &ColumnStep) -> bool {
        let same = |one: &String, other: &String| one.eq_ignore_ascii_case(other);
        match (self, other) {
            (ColumnStep::Add { name, .. }, ColumnStep::Add { name: other, .. })
            | (ColumnStep::Drop { name }, ColumnStep::Drop { name: other }) => same(name, other),
            (ColumnStep::Rename { from, to, .. }, ColumnStep::Rename { from: other_from, to: other_to, .. }) => {
                same(from, other_from) && same(to, other_to)
            }
            _ => false,
        }
    }

    /// Whether there is still something to do where these are the columns.
    pub(super) fn is_due(&self, all: &[String]) -> bool {
        let has = |name: &String| all.iter().any(|other| other.eq_ignore_ascii_case(name));
        match self {
            ColumnStep::Add { name, .. } => !has(name),
            ColumnStep::Drop { name } => has(name),
            ColumnStep::Rename { from, to, .. } => has(from) && !has(to),
        }
    }

    /// The names that it speaks of.
    pub(super) fn names(&self) -> Vec<&String> {
        match self {
            ColumnStep::Add { name, .. } | ColumnStep::Drop { name } => vec![name],
            ColumnStep::Rename { from, to, .. } => vec![from, to],
        }
    }
}

/// Whether the one does to columns what the other does, and more. What does nothing to them is no part of anything.
pub(super) fn is_part_of(few: &[ColumnStep], many: &[ColumnStep]) -> bool {
    !few.is_empty() && few.len() < many.len() && few.iter().all(|step| many.iter().any(|other| other.is(step)))
}

/// A CREATE TABLE statement with another name; `None` where SQLite does not take it alone.
pub(super) fn retitled(sql: &str, from: &str, to: &str) -> Option<String> {
    let scratch = Connection::open_in_memory().ok()?;
    scratch.execute(sql, []).ok()?;
    for (from, to) in renames_of_table(from, to) {
        scratch.execute(&format!("ALTER TABLE {} RENAME TO {}", quoted(from), quoted(to)), []).ok()?;
    }
    sql_of(&scratch, "table", to).ok()?
}

/// The columns that come, with their definitions where the statement after is the one before with something put in.
fn added(
    scratch: &Connection,
    table: &str,
    dropped: &[ColumnStep],
    come: &[&String],
    after: &str,
) -> rusqlite::Result<Vec<ColumnStep>> {
    let unknown = || come.iter().map(|name| ColumnStep::Add { name: (*name).clone(), definition: String::new() });
    if come.is_empty() {
        return Ok(Vec::new());
    }
    scratch.execute_batch("SAVEPOINT without")?;
    let done = dropped.iter().try_for_each(|step| execute(scratch, table, step));
    let now = sql_of(scratch, "table", table);
    scratch.execute_batch("ROLLBACK TO without; RELEASE without")?;
    let (true, Some(now)) = (done.is_ok(), now?) else { return Ok(unknown().collect()) };
    let same = now.bytes().zip(after.bytes()).take_while(|(a, b)| a == b).count();
    let end = now.bytes().rev().zip(after.bytes().rev()).take_while(|(a, b)| a == b).count();
    // SQLite puts columns in behind everything else, so the statements are alike up to there.
    let put_in = after.len().checked_sub(now.len()).filter(|_| same + end >= now.len());
    let put_in = put_in.and_then(|length| after.get(same..same + length)?.trim_start().strip_prefix(','));
    let definitions = put_in.map(definitions).unwrap_or_default();
    if definitions.len() != come.len() {
        return Ok(unknown().collect());
    }
    let add =
        |(name, text): (&&String, &str)| ColumnStep::Add { name: (*name).clone(), definition: text.trim().to_owned() };
    Ok(come.iter().zip(definitions).map(add).collect())
}

/// Cuts a list of column definitions at its commas, not at those in brackets, texts, names and comments.
fn definitions(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start, mut quote) = (0_i32, 0, None);
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(end), byte) if byte == end => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"' | b'`') => quote = Some(byte),
            (None, b'[') => quote = Some(b']'),
            (None, b'(') => depth += 1,
            (None, b')') => depth -= 1,
            (None, b',') if depth == 0 => {
                parts.extend(text.get(start..at));
                start = at + 1;
            }
            (None, _) => {}
        }
    }
    parts.extend(text.get(start..));
    parts
}

/// The statements that do it, one by one: what comes from another node is never more than one where one is meant.
pub(super) fn statements(table: &str, step: &ColumnStep) -> Vec<String> {
    let table = quoted(table);
    let add = |definition: &str| format!("ALTER TABLE {table} ADD COLUMN {definition}");
    let drop = |name: &str| format!("ALTER TABLE {table} DROP COLUMN {}", quoted(name));
    match step {
        ColumnStep::Add { definition, .. } => vec![add(definition)],
        ColumnStep::Drop { name } => vec![drop(name)],
        ColumnStep::Rename { from, in_place: Some(definition), .. } => vec![drop(from), add(definition)],
        ColumnStep::Rename { from, written, in_place: None, .. } => {
            vec![format!("ALTER TABLE {table} RENAME COLUMN {} TO {written}", quoted(from))]
        }
    }
}

/// Carries them out, as far as SQLite takes them.
pub(super) fn execute(conn: &Connection, table: &str, step: &ColumnStep) -> rusqlite::Result<()> {
    statements(table, step).iter().try_for_each(|sql| conn.execute(sql, []).map(drop))
}

/// Puts a row into an empty table: there are columns that SQLite does not add where rows are.
///
/// Where it takes none that is made up the answer is about an empty table, and a statement that rows are in the way of is refused later.
fn put_row(scratch: &Connection, table: &str) -> rusqlite::Result<()> {
    scratch.execute_batch("PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF")?;
    let mut found = scratch.prepare("SELECT name, type FROM pragma_table_xinfo(?1) WHERE hidden = 0")?;
    let value = |declared: String| if declared.eq_ignore_ascii_case("blob") { "x'01'" } else { "1" };
    let columns = found.query_map([table], |row| Ok((quoted(&row.get::<_, String>(0)?), value(row.get(1)?))))?;
    let (names, values): (Vec<String>, Vec<&str>) = columns.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().unzip();
    let sql = format!("INSERT INTO {}({}) VALUES({})", quoted(table), names.join(", "), values.join(", "));
    // A generated column can need a function that only the application has.
    drop(scratch.execute(&sql, []));
    scratch.execute_batch("PRAGMA ignore_check_constraints = OFF")
}

/// Whether the statements lead to `after`. The scratch database is as it was.
fn leads_to(scratch: &Connection, table: &str, columns: &[ColumnStep], after: &str) -> rusqlite::Result<bool> {
    scratch.execute_batch("SAVEPOINT attempt")?;
    let done = columns.iter().try_for_each(|step| execute(scratch, table, step));
    let now = sql_of(scratch, "table", table);
    scratch.execute_batch("ROLLBACK TO attempt; RELEASE attempt")?;
    Ok(done.is_ok() && now?.as_deref() == Some(after))
}

#[cfg(test)]
mod tests {
    use rusqlite::functions::FunctionFlags;

    use super::*;

    fn objects(db: &Connection) -> Vec<String> {
        let mut found = db.prepare("SELECT sql FROM sqlite_schema WHERE type <> 'table' ORDER BY name").unwrap();
        found.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn broken_views_and_triggers_are_in_nobodys_way_and_stay() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE TABLE t(a, b); CREATE INDEX i ON t(a); CREATE INDEX j ON t(b);
             CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM gone WHERE a = new.a; END;
             CREATE VIEW v AS SELECT * FROM gone; CREATE VIEW w AS SELECT a FROM t",
        )
        .unwrap();
        alter(&db, "ALTER TABLE t RENAME TO u").unwrap();
        alter(&db, "ALTER TABLE u RENAME COLUMN a TO c").unwrap();
        alter(&db, "ALTER TABLE u DROP COLUMN b").unwrap();
        let wanted = [
            "CREATE INDEX i ON \"u\"(c)",
            "CREATE TRIGGER r AFTER INSERT ON \"u\" BEGIN DELETE FROM gone WHERE a = new.a; END",
            "CREATE VIEW v AS SELECT * FROM gone",
            "CREATE VIEW w AS SELECT c FROM \"u\"",
        ];
        assert_eq!(objects(&db), wanted);
    }

    #[test]
    fn an_index_that_needs_the_applications_function_stays() {
        let db = Connection::open_in_memory().unwrap();
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        db.create_scalar_function("of_app", 1, flags, |_| Ok(1)).unwrap();
        db.execute_batch("CREATE TABLE t(a, b); CREATE INDEX i ON t(of_app(a))").unwrap();
        db.remove_function("of_app", 1).unwrap();
        alter(&db, "ALTER TABLE t RENAME TO u").unwrap();
        assert_eq!(objects(&db), ["CREATE INDEX i ON \"u\"(of_app(a))"]);
        // Whether SQLite takes this is its own affair.
        drop(alter(&db, "ALTER TABLE u DROP COLUMN b"));
        assert_eq!(objects(&db).len(), 1);
    }
}
