//! A table whose CREATE statement changed while its rows stayed: the ALTER TABLE statements that turn the one text into the other.
//!
//! What a statement does to the text, to other tables' references and to constraints is not guessed: candidates are run on an empty
//! in-memory copy of the changed tables, and only what ends in exactly the wanted texts is used. What no ALTER expresses is rebuilt.

use std::io;

use rusqlite::Connection;

use super::create::{column_name, create_table};
use super::literal::quoted_name;

/// A table before and after.
#[derive(Debug, Clone)]
pub(super) struct TableChange {
    pub(super) name_before: String,
    pub(super) name_after: String,
    pub(super) before: String,
    pub(super) after: String,
}

/// What turns the tables before into the tables after.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Statements, in order.
    pub(super) statements: Vec<String>,
    /// Statements after those: rows of tables to be rebuilt are set aside, under their new column names.
    pub(super) set_aside: Vec<String>,
    /// Statements after those, and after the rows that the transaction changes were taken out of what was set aside.
    pub(super) rebuild: Vec<String>,
    /// Tables that are dropped and made again: their indexes and triggers vanish.
    pub(super) rebuilt: Vec<Rebuilt>,
}

/// A table that is dropped and made again.
#[derive(Debug)]
pub(super) struct Rebuilt {
    pub(super) name_before: String,
    pub(super) name_after: String,
    /// The temporary table that holds its rows in between; `None` when the two have no column in common.
    pub(super) aside: Option<String>,
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
    let run = |sql: &str| mirror.execute_batch(sql).is_ok();
    if !run("PRAGMA foreign_keys=OFF") {
        return Err(io::Error::other("an in-memory SQLite does not work"));
    }
    for change in changes {
        mirror.execute_batch(&change.before).map_err(|error| refused(&change.name_before, &error))?;
    }
    // Names first: other tables' references change with them.
    for change in changes.iter().filter(|change| !change.name_before.eq_ignore_ascii_case(&change.name_after)) {
        let sql =
            format!("ALTER TABLE {} RENAME TO {}", quoted_name(&change.name_before), quoted_name(&change.name_after));
        if run(&sql) {
            plan.statements.push(sql);
        }
    }
    for change in changes {
        if !run("SAVEPOINT one") {
            break;
        }
        let mut statements = Vec::new();
        let columns_max = change.before.len() + change.after.len();
        for _ in 0..columns_max {
            match text(&mirror, &change.name_after).and_then(|now| next_column_step(&now, change)) {
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
    let rebuild: Vec<&TableChange> =
        changes.iter().filter(|change| text(&mirror, &change.name_after).as_deref() != Some(&change.after)).collect();
    rebuild_tables(&mirror, &rebuild, &mut plan)?;
    Ok(plan)
}

fn refused(table: &str, error: &rusqlite::Error) -> io::Error {
    io::Error::other(format!("no script can make table {table}: {error}"))
}

/// The table's CREATE statement in the copy.
fn text(mirror: &Connection, table: &str) -> Option<String> {
    let sql = "SELECT sql FROM sqlite_schema WHERE type='table' AND name=?1 COLLATE NOCASE";
    mirror.query_row(sql, [table], |row| row.get(0)).ok()
}

/// The next ALTER that brings the columns nearer; `None` when the texts are equal or no single column explains the difference.
fn next_column_step(now: &str, change: &TableChange) -> Option<String> {
    if now == change.after {
        return None;
    }
    let (now, wanted) = (create_table(now)?, create_table(&change.after)?);
    let table = quoted_name(&change.name_after);
    let names: Vec<(&str, String)> = now.columns.iter().filter_map(|column| column_name(column)).collect();
    let wanted_names: Vec<(&str, String)> = wanted.columns.iter().filter_map(|column| column_name(column)).collect();
    let differs = names.iter().zip(&wanted_names).find(|((_, a), (_, b))| a != b);
    if names.len() > wanted_names.len() {
        let gone = differs.map(|(now, _)| now).or_else(|| names.last())?;
        return Some(format!("ALTER TABLE {table} DROP COLUMN {}", quoted_name(&gone.1)));
    }
    if let Some(((_, from), (to, _))) = differs {
        return Some(format!("ALTER TABLE {table} RENAME COLUMN {} TO {to}", quoted_name(from)));
    }
    let added = wanted.columns.get(names.len())?;
    Some(format!("ALTER TABLE {table} ADD COLUMN {added}"))
}

/// Adds to the plan: set the rows aside, drop the tables, create them anew, put the rows back. (SQLite's own recipe creates the new
/// table under another name and renames it, which leaves another text than the wanted one.)
fn rebuild_tables(mirror: &Connection, changes: &[&TableChange], plan: &mut Plan) -> io::Result<()> {
    let (mut put_back, mut create) = (Vec::new(), Vec::new());
    let after = Connection::open_in_memory().map_err(io::Error::other)?;
    for (index, change) in changes.iter().enumerate() {
        // A rename may have worked although the columns did not.
        let name_now =
            if text(mirror, &change.name_after).is_some() { &change.name_after } else { &change.name_before };
        after.execute_batch(&change.after).map_err(|error| refused(&change.name_after, &error))?;
        let columns_before = Columns::of(mirror, name_now).map_err(|error| refused(name_now, &error))?;
        let columns_after =
            Columns::of(&after, &change.name_after).map_err(|error| refused(&change.name_after, &error))?;
        let mut pairs = columns_after.pairs(&columns_before);
        let rowid = ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|name| !columns_before.hides(name) && !columns_after.hides(name));
        if let (Some(rowid), false, false, None) =
            (rowid, columns_before.without_rowid, columns_after.without_rowid, &columns_after.rowid_alias)
        {
            pairs.push((rowid.to_owned(), rowid.to_owned()));
        }
        let old = quoted_name(name_now);
        let new = quoted_name(&change.name_after);
        let aside = (!pairs.is_empty()).then(|| format!("woodchuck_rows_{index}"));
        if let Some(aside) = &aside {
            let from: Vec<String> =
                pairs.iter().map(|(to, from)| format!("{} AS {}", quoted_name(from), quoted_name(to))).collect();
            let to: Vec<String> = pairs.iter().map(|(to, _)| quoted_name(to)).collect();
            let (from, to) = (from.join(","), to.join(","));
            plan.set_aside.push(format!("CREATE TEMP TABLE {aside} AS SELECT {from} FROM main.{old}"));
            put_back.push(format!("INSERT INTO main.{new}({to}) SELECT {to} FROM temp.{aside}"));
            put_back.push(format!("DROP TABLE temp.{aside}"));
        }
        plan.rebuild.push(format!("DROP TABLE main.{old}"));
        create.push(change.after.clone());
        let (name_before, name_after) = (change.name_before.clone(), change.name_after.clone());
        plan.rebuilt.push(Rebuilt { name_before, name_after, aside });
    }
    plan.rebuild.append(&mut create);
    plan.rebuild.append(&mut put_back);
    Ok(())
}

/// The columns of a table that can be written, as SQLite itself sees them.
struct Columns {
    names: Vec<String>,
    all: Vec<String>,
    rowid_alias: Option<String>,
    without_rowid: bool,
}

impl Columns {
    fn of(connection: &Connection, table: &str) -> rusqlite::Result<Columns> {
        let mut statement = connection.prepare("SELECT name, hidden, pk, type FROM pragma_table_xinfo(?1)")?;
        let rows = statement.query_map([table], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get::<_, String>(3)?))
        })?;
        let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
        let sql = "SELECT wr FROM pragma_table_list(?1) WHERE schema='main'";
        let without_rowid = connection.query_row(sql, [table], |row| row.get::<_, bool>(0))?;
        let mut key = rows.iter().filter(|(_, _, pk, _)| *pk > 0);
        let rowid_alias = match (key.next(), key.next()) {
            (Some((name, _, _, kind)), None) if kind.eq_ignore_ascii_case("integer") && !without_rowid => {
                Some(name.clone())
            }
            _ => None,
        };
        let names = rows.iter().filter(|(_, hidden, ..)| *hidden == 0).map(|(name, ..)| name.clone()).collect();
        let all = rows.into_iter().map(|(name, ..)| name).collect();
        Ok(Columns { names, all, rowid_alias, without_rowid })
    }

    fn hides(&self, rowid: &str) -> bool {
        self.all.iter().any(|name| name.eq_ignore_ascii_case(rowid))
    }

    /// `(after, before)` for each column that has a counterpart: by name, and where as many are left over on both sides, in order.
    fn pairs(&self, before: &Columns) -> Vec<(String, String)> {
        let has = |columns: &[String], name: &str| columns.iter().any(|other| other.eq_ignore_ascii_case(name));
        let (same, new): (Vec<&String>, Vec<&String>) = self.names.iter().partition(|name| has(&before.all, name));
        let gone: Vec<&String> = before.names.iter().filter(|name| !has(&self.all, name)).collect();
        let mut pairs: Vec<(String, String)> = same.into_iter().map(|name| (name.clone(), name.clone())).collect();
        if new.len() == gone.len() {
            pairs.extend(new.into_iter().cloned().zip(gone.into_iter().cloned()));
        }
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(before: &str, after: &str) -> Vec<String> {
        let name = |sql: &str| create_table(sql).unwrap().name;
        let (name_before, name_after) = (name(before), name(after));
        let change = TableChange { name_before, name_after, before: before.to_owned(), after: after.to_owned() };
        let plan = plan(&[change]).unwrap();
        [plan.statements, plan.set_aside, plan.rebuild].concat()
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

    #[test]
    fn what_no_alter_expresses_is_rebuilt() {
        let got = statements("CREATE TABLE t(a, b)", "CREATE TABLE t(a NOT NULL, b)");
        assert_eq!(
            got[0],
            "CREATE TEMP TABLE woodchuck_rows_0 AS SELECT \"a\" AS \"a\",\"b\" AS \"b\",\"rowid\" AS \"rowid\" FROM main.\"t\""
        );
        assert_eq!(got[2], "CREATE TABLE t(a NOT NULL, b)");
        assert_eq!(
            got[3],
            "INSERT INTO main.\"t\"(\"a\",\"b\",\"rowid\") SELECT \"a\",\"b\",\"rowid\" FROM temp.woodchuck_rows_0"
        );
    }
}
