//! A table whose CREATE statement changed while its rows stayed: the ALTER TABLE statements that turn the one text into the other.
//!
//! What a statement does to the text, to other tables' references and to constraints is not guessed: candidates are run on an empty
//! in-memory copy of the changed tables, and only what ends in exactly the wanted texts is used. What no ALTER expresses is rebuilt.

use std::io;

use rusqlite::Connection;

use super::create::{CreateTable, column_name, create_table};
use super::literal::{self, quoted_name};
use crate::change::RenamedColumns;
use crate::format::{PageNo, TextEncoding, Value};
use crate::schema::{Catalogue, SchemaRow};

/// A table before and after.
#[derive(Debug, Clone)]
pub(super) struct TableChange {
    pub(super) name_before: String,
    pub(super) name_after: String,
    pub(super) before: String,
    pub(super) after: String,
    /// As [`SchemaChange::renamed_columns`](crate::change::SchemaChange::renamed_columns): rows are compared by it.
    pub(super) renamed_columns: Option<RenamedColumns>,
}

/// What turns the tables before into the tables after.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Statements that run before tables are dropped, in order.
    pub(super) first: Vec<String>,
    /// Statements, in order.
    pub(super) statements: Vec<String>,
    /// Tables (names before) that are dropped and made again: their indexes and triggers vanish.
    pub(super) rebuilt: Vec<String>,
    /// The tables that hold the rows of rebuilt tables meanwhile, with the names that these have afterwards, in lower case. Their columns
    /// are named as the new table's, so that a row is found in them as in that. Rows that change must be taken out before the rows are
    /// put back: what was before may violate what the new table demands.
    pub(super) aside: Vec<(String, String)>,
    /// Puts back the rows that were set aside.
    pub(super) put_back: Vec<String>,
}

/// Plans the statements.
///
/// # Errors
/// When SQLite does not accept a table's own text: then no script can make it.
pub(super) fn plan(changes: &[TableChange]) -> io::Result<Plan> {
    let mut plan = Plan::default();
    if changes.is_empty() {
        return Ok(plan);
    }
    let mirror = Connection::open_in_memory().map_err(io::Error::other)?;
    let wanted = Connection::open_in_memory().map_err(io::Error::other)?;
    let run = |sql: &str| mirror.execute_batch(sql).is_ok();
    if !run("PRAGMA foreign_keys=OFF; PRAGMA ignore_check_constraints=ON") {
        return Err(io::Error::other("an in-memory SQLite does not work"));
    }
    let mut renames = Vec::new();
    for change in changes {
        mirror.execute_batch(&change.before).map_err(|error| refused(&change.name_before, &error))?;
        wanted.execute_batch(&change.after).map_err(|error| refused(&change.name_after, &error))?;
        let before = Columns::of(&mirror, &change.name_before).map_err(|error| refused(&change.name_before, &error))?;
        let after = Columns::of(&wanted, &change.name_after).map_err(|error| refused(&change.name_after, &error))?;
        renames.push(after.renamed(&before, change.renamed_columns.as_ref()));
        if !create_table(&change.before).is_some_and(|table| table.is_virtual) {
            // A generated column can need a function that only the application has.
            drop(put_row(&mirror, &change.name_before));
        }
    }
    // Names first: other tables' references change with them.
    let names = rename_tables(&run, changes, &mut plan);
    for ((change, name), renames) in changes.iter().zip(&names).zip(&renames) {
        if *name != change.name_after {
            continue;
        }
        if !run("SAVEPOINT one") {
            break;
        }
        let mut statements = Vec::new();
        let columns_max = change.before.len() + change.after.len();
        for _ in 0..columns_max {
            match text(&mirror, &change.name_after).and_then(|now| next_column_step(&now, change, renames)) {
                Some(sql) if run(&sql) => statements.push(sql),
                _ => break,
            }
        }
        let reached = text(&mirror, &change.name_after).is_some_and(|now| now == change.after);
        if reached {
            plan.statements.append(&mut statements);
        } else {
            run("ROLLBACK TO one");
        }
        run("RELEASE one");
    }
    let is_reached = |(change, name): &(&TableChange, &String)| {
        **name == change.name_after && text(&mirror, name).as_deref() == Some(&change.after)
    };
    let rebuild: Vec<(&TableChange, &String)> =
        changes.iter().zip(&names).filter(|change| !is_reached(change)).collect();
    rebuild_tables(&mirror, &wanted, &rebuild, &mut plan)?;
    Ok(plan)
}

/// Puts a row into an empty table: there are columns that SQLite does not add where rows are. Where it takes none that is made up, the plan is
/// one for an empty table.
fn put_row(mirror: &Connection, table: &str) -> rusqlite::Result<()> {
    let mut found = mirror.prepare("SELECT name, type FROM pragma_table_xinfo(?1) WHERE hidden=0")?;
    // A number is at home in every type of a STRICT table but one.
    let value = |declared: String| if declared.eq_ignore_ascii_case("blob") { "x'01'" } else { "1" };
    let columns = found.query_map([table], |row| Ok((quoted_name(&row.get::<_, String>(0)?), value(row.get(1)?))))?;
    let (names, values): (Vec<String>, Vec<&str>) = columns.collect::<rusqlite::Result<Vec<_>>>()?.into_iter().unzip();
    mirror.execute_batch(&format!(
        "INSERT INTO {}({}) VALUES({})",
        quoted_name(table),
        names.join(","),
        values.join(",")
    ))
}

/// Renames the tables that changed their names, by way of other names where they exchange them. Returns what each is called then.
fn rename_tables(run: &dyn Fn(&str) -> bool, changes: &[TableChange], plan: &mut Plan) -> Vec<String> {
    let mut names: Vec<String> = changes.iter().map(|change| change.name_before.clone()).collect();
    let mut rename = |name: &mut String, to: &str| {
        let sql = format!("ALTER TABLE {} RENAME TO {}", quoted_name(name), quoted_name(to));
        if run(&sql) {
            plan.statements.push(sql);
            to.clone_into(name);
        }
    };
    let is_taken = |change: &TableChange, name: &str| {
        changes
            .iter()
            .any(|other| other.name_before != change.name_before && other.name_before.eq_ignore_ascii_case(name))
    };
    for (index, (change, name)) in changes.iter().zip(&mut names).enumerate() {
        // A name that differs in case alone counts as taken by the table itself.
        let is_own = name.eq_ignore_ascii_case(&change.name_after);
        if *name != change.name_after && (is_own || is_taken(change, &change.name_after)) {
            rename(name, &format!("woodchuck_name_{index}"));
        }
    }
    for (change, name) in changes.iter().zip(&mut names).filter(|(change, name)| **name != change.name_after) {
        rename(name, &change.name_after);
    }
    names
}

pub(super) fn refused(table: &str, error: &rusqlite::Error) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("no script can make table {table}: {error}"))
}

/// The table's CREATE statement in the copy.
fn text(mirror: &Connection, table: &str) -> Option<String> {
    let sql = "SELECT sql FROM sqlite_schema WHERE type='table' AND name=?1 COLLATE NOCASE";
    mirror.query_row(sql, [table], |row| row.get(0)).ok()
}

/// The next ALTER that brings the columns nearer; `None` when the texts are equal or no single column explains the difference. `renames` are the
/// columns that keep their values under another name: what else is gone takes its values along, also where another column has its place.
fn next_column_step(now: &str, change: &TableChange, renames: &[(String, String)]) -> Option<String> {
    if now == change.after {
        return None;
    }
    let (now, wanted) = (create_table(now)?, create_table(&change.after)?);
    let table = quoted_name(&change.name_after);
    fn names<'t>(table: &CreateTable<'t>) -> Vec<(&'t str, String)> {
        table.columns.iter().filter_map(|column| column_name(column)).collect()
    }
    let (names, wanted_names) = (names(&now), names(&wanted));
    let find =
        |names: &[(&str, String)], name: &str| names.iter().position(|(_, other)| other.eq_ignore_ascii_case(name));
    if let Some((from, to)) = renames.iter().find(|(from, _)| find(&names, from).is_some()) {
        let (written, _) = wanted_names.get(find(&wanted_names, to)?)?;
        return Some(format!("ALTER TABLE {table} RENAME COLUMN {} TO {written}", quoted_name(from)));
    }
    if let Some((_, gone)) = names.iter().find(|(_, name)| find(&wanted_names, name).is_none()) {
        return Some(format!("ALTER TABLE {table} DROP COLUMN {}", quoted_name(gone)));
    }
    let added = wanted.columns.get(names.len())?;
    Some(format!("ALTER TABLE {table} ADD COLUMN {added}"))
}

/// Adds to the plan: set the rows aside, drop the tables, create them anew, put the rows back. (SQLite's own recipe creates the new
/// table under another name and renames it, which leaves another text than the wanted one.)
fn rebuild_tables(
    mirror: &Connection,
    wanted: &Connection,
    changes: &[(&TableChange, &String)],
    plan: &mut Plan,
) -> io::Result<()> {
    let mut create = Vec::new();
    // Under the name that a table is to have another one may still be.
    for (index, (change, name_now)) in changes.iter().enumerate() {
        let columns_before = Columns::of(mirror, name_now).map_err(|error| refused(name_now, &error))?;
        let columns_after =
            Columns::of(wanted, &change.name_after).map_err(|error| refused(&change.name_after, &error))?;
        let pairs = columns_after.copied(&columns_before, change.renamed_columns.as_ref());
        let aside = format!("woodchuck_rows_{index}");
        let old = quoted_name(name_now);
        if !pairs.is_empty() {
            let filled = filled(change, &columns_after, &pairs);
            plan.statements.push(set_aside(&aside, name_now, &pairs, &filled));
            plan.put_back.extend(put_back(&aside, &change.name_after, &pairs, &filled));
            plan.aside.push((change.name_after.to_ascii_lowercase(), format!("temp.{aside}")));
        }
        plan.statements.push(format!("DROP TABLE main.{old}"));
        plan.rebuilt.push(change.name_before.clone());
        plan.rebuilt.push(change.name_after.clone());
        create.push(change.after.clone());
    }
    plan.statements.append(&mut create);
    Ok(())
}

/// What rows have in columns that are new, as the differ takes it to be: rows that hold something else are given out. By name, as SQL.
fn filled(change: &TableChange, after: &Columns, pairs: &[(String, String)]) -> Vec<(String, String)> {
    let name = &change.name_after;
    let (root, sql) = (Some(PageNo::ONE), Some(change.after.clone()));
    let row = SchemaRow { kind: "table".to_owned(), name: name.clone(), table: name.clone(), root, sql };
    let Ok(catalogue) = Catalogue::build(vec![row], u32::MAX) else { return Vec::new() };
    let Some(table) = catalogue.table(name) else { return Vec::new() };
    let has = |name: &str| pairs.iter().any(|(to, _)| to.eq_ignore_ascii_case(name));
    let is_rowid = |name: &str| after.rowid_alias.as_deref().is_some_and(|alias| alias.eq_ignore_ascii_case(name));
    let new = table.columns.iter().filter(|column| !column.generated && !has(&column.name) && !is_rowid(&column.name));
    let literal = |value: &Value| {
        let mut out = Vec::new();
        // As the script is read: in UTF-8.
        literal::value(&mut out, value, TextEncoding::Utf8);
        String::from_utf8_lossy(&out).into_owned()
    };
    new.map(|column| (column.name.clone(), literal(&column.default))).collect()
}

/// Copies a table into a temporary one, whose columns are named as those afterwards. `pairs` has the columns as `(after, before)`, `filled` those that
/// are new, with what is in them.
pub(super) fn set_aside(aside: &str, table: &str, pairs: &[(String, String)], filled: &[(String, String)]) -> String {
    let from = pairs.iter().map(|(to, from)| format!("{} AS {}", quoted_name(from), quoted_name(to)));
    let filled = filled.iter().map(|(to, value)| format!("{value} AS {}", quoted_name(to)));
    let from = from.chain(filled).collect::<Vec<_>>().join(",");
    format!("CREATE TEMP TABLE {aside} AS SELECT {from} FROM main.{}", quoted_name(table))
}

/// Copies the rows from there into the table as it is afterwards.
pub(super) fn put_back(
    aside: &str,
    table: &str,
    pairs: &[(String, String)],
    filled: &[(String, String)],
) -> [String; 2] {
    let to = pairs.iter().chain(filled).map(|(to, _)| quoted_name(to)).collect::<Vec<_>>().join(",");
    let table = quoted_name(table);
    [format!("INSERT INTO main.{table}({to}) SELECT {to} FROM temp.{aside}"), format!("DROP TABLE temp.{aside}")]
}

/// The columns of a table that can be written, as SQLite itself sees them.
pub(super) struct Columns {
    /// The stored ones and whether they can be written.
    stored: Vec<(String, bool)>,
    all: Vec<String>,
    rowid_alias: Option<String>,
    without_rowid: bool,
}

impl Columns {
    pub(super) fn of(connection: &Connection, table: &str) -> rusqlite::Result<Columns> {
        let mut statement = connection.prepare("SELECT name, hidden, pk, type FROM pragma_table_xinfo(?1)")?;
        let rows = statement.query_map([table], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let sql = "SELECT wr FROM pragma_table_list(?1) WHERE schema='main'";
        let without_rowid = connection.query_row(sql, [table], |row| row.get::<_, bool>(0))?;
        // `INTEGER PRIMARY KEY DESC` is a key with an index of its own, and no name for the rowid.
        let sql = "SELECT count(*) FROM pragma_index_list(?1) WHERE origin='pk'";
        let has_key_index: bool = connection.query_row(sql, [table], |row| row.get(0))?;
        let mut key = rows.iter().filter(|(_, _, pk, _)| *pk > 0 && !has_key_index);
        let rowid_alias = match (key.next(), key.next()) {
            (Some((name, _, _, kind)), None) if kind.eq_ignore_ascii_case("integer") && !without_rowid => {
                Some(name.clone())
            }
            _ => None,
        };
        // 2 is a virtual generated column, 3 a stored one.
        let stored = rows.iter().filter(|(_, hidden, ..)| *hidden != 2);
        let stored = stored.map(|(name, hidden, ..)| (name.clone(), *hidden == 0)).collect();
        let all = rows.into_iter().map(|(name, ..)| name).collect();
        Ok(Columns { stored, all, rowid_alias, without_rowid })
    }

    /// The name by which a rowid can be reached.
    fn rowid_name(&self) -> Option<&'static str> {
        let hides = |rowid: &str| self.all.iter().any(|name| name.eq_ignore_ascii_case(rowid));
        ["rowid", "_rowid_", "oid"].into_iter().find(|name| !self.without_rowid && !hides(name))
    }

    /// What is copied where the table is made anew: the columns as `(after, before)`, and the rowid where no column is it.
    pub(super) fn copied(&self, before: &Columns, told: Option<&RenamedColumns>) -> Vec<(String, String)> {
        let mut pairs = self.pairs(before, told);
        if let (Some(after), Some(before), None) = (self.rowid_name(), before.rowid_name(), &self.rowid_alias) {
            pairs.push((after.to_owned(), before.to_owned()));
        }
        pairs
    }

    /// `(after, before)` for each column that can be written and has a counterpart.
    fn pairs(&self, before: &Columns, told: Option<&RenamedColumns>) -> Vec<(String, String)> {
        let columns = self.stored.iter().enumerate().filter(|(_, (_, is_written))| *is_written);
        columns.filter_map(|(index, (name, _))| Some((name.clone(), self.source(before, told, index)?))).collect()
    }

    /// The columns that have other names, as `(before, after)`.
    fn renamed(&self, before: &Columns, told: Option<&RenamedColumns>) -> Vec<(String, String)> {
        let stored = self
            .stored
            .iter()
            .enumerate()
            .filter_map(|(index, (name, _))| Some((self.source(before, told, index)?, name.clone())));
        // Those that are computed hold nothing that could go along.
        let computed = before.all.iter().zip(&self.all).filter(|(from, to)| {
            before.find(from).is_none() && self.find(to).is_none() && !self.has(from) && !before.has(to)
        });
        let computed = computed.map(|(from, to)| (from.clone(), to.clone()));
        stored.filter(|(from, to)| !from.eq_ignore_ascii_case(to)).chain(computed).collect()
    }

    /// The column before of the stored column at `index`: by name, else as `told`; without it a name in the place of one that is gone is the same
    /// column. The differ compares rows in the same way.
    fn source(&self, before: &Columns, told: Option<&RenamedColumns>, index: usize) -> Option<String> {
        let (name, _) = self.stored.get(index)?;
        if let Some(same) = before.find(name) {
            return Some(same.clone());
        }
        let source = match told {
            Some(told) => before.find(&told.iter().find(|(_, to)| to.eq_ignore_ascii_case(name))?.0)?,
            None => &before.stored.get(index)?.0,
        };
        self.find(source).is_none().then(|| source.clone())
    }

    fn find(&self, name: &str) -> Option<&String> {
        self.stored.iter().map(|(name, _)| name).find(|other| other.eq_ignore_ascii_case(name))
    }

    fn has(&self, name: &str) -> bool {
        self.all.iter().any(|other| other.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(before: &str, after: &str) -> Vec<String> {
        let name = |sql: &str| create_table(sql).unwrap().name;
        let (name_before, name_after) = (name(before), name(after));
        let change = TableChange {
            name_before,
            name_after,
            before: before.to_owned(),
            after: after.to_owned(),
            renamed_columns: None,
        };
        plan(&[change]).unwrap().statements
    }

    #[test]
    fn what_an_alter_expresses_is_an_alter() {
        let t = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, UNIQUE(b))";
        assert_eq!(
            statements(t, "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL DEFAULT 1.5, UNIQUE(b))"),
            ["ALTER TABLE \"t\" ADD COLUMN c REAL DEFAULT 1.5"]
        );
        assert_eq!(
            statements(t, "CREATE TABLE t(a INTEGER PRIMARY KEY, \"x y\" TEXT, UNIQUE(\"x y\"))"),
            ["ALTER TABLE \"t\" RENAME COLUMN \"b\" TO \"x y\""]
        );
        assert_eq!(
            statements(t, "CREATE TABLE \"u\"(a INTEGER PRIMARY KEY, b TEXT, UNIQUE(b))"),
            ["ALTER TABLE \"t\" RENAME TO \"u\""]
        );
        assert_eq!(
            statements("CREATE TABLE t(a, b, c)", "CREATE TABLE t(a, c)"),
            ["ALTER TABLE \"t\" DROP COLUMN \"b\""]
        );
    }

    /// Two tables exchanged their names, and each was rebuilt from the rows of the other. A rename by way of a third name needs no rows.
    #[test]
    fn names_are_exchanged_by_way_of_a_third() {
        let change = |from: &str, to: &str, columns: &str| TableChange {
            name_before: from.to_owned(),
            name_after: to.to_owned(),
            before: format!("CREATE TABLE \"{from}\"({columns})"),
            after: format!("CREATE TABLE \"{to}\"({columns})"),
            renamed_columns: None,
        };
        let plan = plan(&[change("a", "b", "x INTEGER PRIMARY KEY"), change("b", "a", "y, z")]).unwrap();
        assert!(plan.rebuilt.is_empty() && plan.aside.is_empty(), "{plan:?}");
        assert_eq!(plan.statements.len(), 4);
    }

    #[test]
    fn what_no_alter_expresses_is_rebuilt() {
        let (before, after) = ("CREATE TABLE t(a, b)".to_owned(), "CREATE TABLE t(a NOT NULL, b)".to_owned());
        let change = TableChange {
            name_before: "t".to_owned(),
            name_after: "t".to_owned(),
            before,
            after,
            renamed_columns: None,
        };
        let plan = plan(&[change]).unwrap();
        let got = plan.statements;
        assert_eq!(
            got[0],
            "CREATE TEMP TABLE woodchuck_rows_0 AS SELECT \"a\" AS \"a\",\"b\" AS \"b\",\"rowid\" AS \"rowid\" FROM main.\"t\""
        );
        assert_eq!(got[2], "CREATE TABLE t(a NOT NULL, b)");
        assert_eq!(
            plan.put_back[0],
            "INSERT INTO main.\"t\"(\"a\",\"b\",\"rowid\") SELECT \"a\",\"b\",\"rowid\" FROM temp.woodchuck_rows_0"
        );
    }
}
