//! Indexes of other tables' rows: full-text search with external content or none, R-Trees.
//!
//! Applying runs with triggers off, for what they do is in the log as rows. An index has no rows that travel, so what triggers write to it
//! has to be written here too: the applying connection gets temporary triggers with those of their statements that write to an index.
//! SQLite leaves temporary triggers on where the others are off (since 3.35). An index that no trigger keeps gets the three that FTS5's
//! documentation has for the purpose.
//!
//! A row that is written while its index is not leaves an index that says other things than the rows do, and FTS5 damages itself when it is
//! later told to take out what it never held. So what cannot be kept stops the shard.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};

use super::error::ApplyError;
use super::replica::Replica;
use super::sql::quoted;
use crate::schema::{Catalogue, Content, Module, Tokens, VirtualTable, unquote};

/// What the names of temporary triggers begin with.
const PREFIX: &str = "woodchuck_";

impl Replica {
    /// Has the connection keep the indexes of these tables from here on. Returns what it cannot keep. Nothing is done if the catalogue is the
    /// same as in the last call.
    ///
    /// # Errors
    /// When the database fails.
    pub fn keep_indexes(&mut self, conn: &Connection, catalogue: &Arc<Catalogue>) -> Result<Vec<String>, ApplyError> {
        if self.indexes_of.as_ref().is_some_and(|known| Arc::ptr_eq(known, catalogue)) {
            return Ok(Vec::new());
        }
        let not_kept = keep(conn, catalogue)?;
        self.indexes_of = Some(Arc::clone(catalogue));
        Ok(not_kept)
    }
}

/// Who keeps an index of other tables' rows in step on nodes that did not make the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upkeep {
    /// Triggers that the application made: what they write to the index is written there, too.
    Triggers,
    /// The table that it indexes: it is written to as its module's documentation has it.
    Content,
    /// Nobody.
    Nobody,
}

/// Who keeps an index in step. What SQLite makes of the triggers is seen only when they are made.
#[must_use]
pub fn index_upkeep(catalogue: &Catalogue, index: &VirtualTable) -> Upkeep {
    let name = index.name.to_ascii_lowercase();
    if feeding(catalogue, &indexes(catalogue)).iter().any(|trigger| trigger.targets.contains(&name)) {
        Upkeep::Triggers
    } else if own_triggers(catalogue, index).is_empty() {
        Upkeep::Nobody
    } else {
        Upkeep::Content
    }
}

fn failed(source: rusqlite::Error) -> ApplyError {
    ApplyError::Database { doing: "making the triggers that keep its indexes", source }
}

/// Drops the temporary triggers: they would be in the way of changes of the schema.
pub(super) fn forget(conn: &Connection) -> Result<(), ApplyError> {
    let sql = "SELECT name FROM temp.sqlite_schema WHERE type = 'trigger' AND name GLOB ?1";
    let mut found = conn.prepare_cached(sql).map_err(failed)?;
    let names = found.query_map([format!("{PREFIX}*")], |row| row.get(0)).and_then(Iterator::collect);
    let names: Vec<String> = names.map_err(failed)?;
    drop(found);
    names.iter().try_for_each(|name| conn.execute_batch(&format!("DROP TRIGGER temp.{}", quoted(name)))).map_err(failed)
}

/// Makes the temporary triggers. Returns what cannot be kept and does no harm by that.
pub(super) fn keep(conn: &Connection, catalogue: &Catalogue) -> Result<Vec<String>, ApplyError> {
    forget(conn)?;
    let indexes = indexes(catalogue);
    let mut not_kept = Vec::new();
    if indexes.is_empty() {
        return Ok(not_kept);
    }
    // A statement that fails for what another connection made is prepared again with the schema read anew, but not where a temporary
    // trigger's statement is what fails (seen with 3.54.1).
    conn.query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(())).map_err(failed)?;
    let mut number = 0;
    let mut create = |text: &str| {
        number += 1;
        conn.execute_batch(&format!("CREATE TEMP TRIGGER {PREFIX}{number} {text}")).map(|()| number)
    };
    let mut fed = BTreeSet::new();
    for trigger in feeding(catalogue, &indexes) {
        let number = create(&trigger.text).map_err(failed)?;
        // A tree holds what it was given. Left alone it gets old, and nothing worse. The functions that feed it are often the application's.
        let is_tree = |name: &String| indexes.get(name).is_some_and(|index| index.module == Module::Rtree);
        if trigger.targets.iter().all(is_tree)
            && let Err(error) = can_be_written(conn, catalogue, &trigger.table)
        {
            conn.execute_batch(&format!("DROP TRIGGER temp.{PREFIX}{number}")).map_err(failed)?;
            let names: Vec<&str> = trigger.targets.iter().map(String::as_str).collect();
            not_kept.push(format!("{} by trigger {} ({error})", names.join(", "), trigger.name));
        }
        fed.extend(trigger.targets);
    }
    for (name, index) in indexes.iter().filter(|(name, _)| !fed.contains(*name)) {
        let texts = own_triggers(catalogue, index);
        if texts.is_empty() {
            not_kept.push(format!("{name}, which no trigger of a table writes to,"));
        }
        texts.iter().try_for_each(|text| create(text).map(drop)).map_err(failed)?;
    }
    Ok(not_kept)
}

/// Fills the indexes that came, or came to be fed, between the two.
pub(super) fn fill_new(conn: &Connection, before: &Catalogue, after: &Catalogue) -> Result<(), ApplyError> {
    let fed_by = |catalogue: &Catalogue, name: &str| -> BTreeSet<String> {
        let triggers = feeding(catalogue, &indexes(catalogue));
        triggers.into_iter().filter(|trigger| trigger.targets.contains(name)).map(|trigger| trigger.text).collect()
    };
    // One that was made anew is empty.
    fn statement<'a>(catalogue: &'a Catalogue, name: &str) -> Option<&'a str> {
        let row = catalogue.rows().iter().find(|row| row.kind == "table" && row.name.eq_ignore_ascii_case(name));
        row.and_then(|row| row.sql.as_deref())
    }
    let old = indexes(before);
    for (name, index) in indexes(after) {
        let Content::External { table, .. } = &index.content else { continue };
        let is_new = old.get(&name).is_none_or(|old| *old != index)
            || statement(before, &name) != statement(after, &name)
            || fed_by(before, &name) != fed_by(after, &name);
        let has_rows = after.rows().iter().any(|row| row.name.eq_ignore_ascii_case(table));
        if is_new && has_rows {
            let table = quoted(&index.name);
            let sql = format!("INSERT INTO main.{table}({table}) VALUES('rebuild')");
            match conn.execute(&sql, []) {
                // Its table has lost a column that it speaks of: as on the node that made the change it keeps what it has, and is of no use.
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
                    tracing::warn!(
                        "index {} is not filled again, for its table is another by now: {error}",
                        index.name
                    );
                }
                filled => drop(filled.map_err(|source| ApplyError::schema("table", &index.name, source))?),
            }
        }
    }
    Ok(())
}

fn indexes(catalogue: &Catalogue) -> HashMap<String, &VirtualTable> {
    let found = catalogue.virtual_tables().iter().filter(|table| table.is_index());
    found.map(|table| (table.name.to_ascii_lowercase(), table)).collect()
}

/// A trigger's statements that write to an index.
struct Feeding {
    name: String,
    /// The table that it stands on.
    table: String,
    /// What follows the name in its CREATE TRIGGER statement.
    text: String,
    /// The indexes, in lower case.
    targets: BTreeSet<String>,
}

fn feeding(catalogue: &Catalogue, indexes: &HashMap<String, &VirtualTable>) -> Vec<Feeding> {
    let triggers = catalogue.rows().iter().filter(|row| row.kind == "trigger");
    let statements = triggers.filter_map(|row| {
        let (text, targets) = index_statements(row.sql.as_deref()?, |name| indexes.contains_key(name))?;
        Some(Feeding { name: row.name.clone(), table: row.table.clone(), text, targets })
    });
    statements.collect()
}

/// The statements of a trigger that write to an index, as what follows the name in a trigger of them alone; and the indexes. `None` without
/// such statements.
fn index_statements(sql: &str, is_index: impl Fn(&str) -> bool) -> Option<(String, BTreeSet<String>)> {
    let mut tokens = Tokens::new(sql);
    for word in ["create", "trigger"] {
        tokens.next().filter(|(_, token)| token.eq_ignore_ascii_case(word))?;
    }
    tokens.next()?;
    let head_from = tokens.offset();
    let (head_to, _) = tokens.find(|(_, token)| token.eq_ignore_ascii_case("begin"))?;
    let mut text = format!("{} BEGIN", sql.get(head_from..head_to)?);
    let mut targets = BTreeSet::new();
    let mut start = tokens.offset();
    while let Some((offset, _)) = tokens.find(|(_, token)| *token == ";") {
        let statement = sql.get(start..offset)?;
        start = tokens.offset();
        if let Some(target) = target(statement).filter(|name| is_index(name)) {
            text.push_str(statement);
            text.push(';');
            targets.insert(target);
        }
    }
    text.push_str(" END");
    (!targets.is_empty()).then_some((text, targets))
}

/// The table that a statement writes to, in lower case.
fn target(statement: &str) -> Option<String> {
    let mut tokens = Tokens::new(statement).map(|(_, token)| token).peekable();
    let verb = tokens.next()?.to_ascii_lowercase();
    if tokens.next_if(|token| token.eq_ignore_ascii_case("or")).is_some() {
        tokens.next()?;
    }
    match verb.as_str() {
        "insert" | "replace" => tokens.next_if(|token| token.eq_ignore_ascii_case("into"))?,
        "delete" => tokens.next_if(|token| token.eq_ignore_ascii_case("from"))?,
        "update" => "",
        _ => return None,
    };
    Some(unquote(tokens.next()?).to_ascii_lowercase())
}

/// Whether SQLite takes statements that write to the table, with all of its triggers.
fn can_be_written(conn: &Connection, catalogue: &Catalogue, table: &str) -> rusqlite::Result<()> {
    let columns = catalogue.table(table).map(|table| table.columns.as_slice()).unwrap_or_default();
    let name = quoted(table);
    let sets = columns.iter().filter(|column| !column.generated).map(|column| quoted(&column.name));
    let sets: Vec<String> = sets.map(|column| format!("{column} = {column}")).collect();
    for sql in [
        format!("INSERT INTO main.{name} DEFAULT VALUES"),
        format!("UPDATE main.{name} SET {}", sets.join(", ")),
        format!("DELETE FROM main.{name}"),
    ] {
        conn.prepare(&sql)?;
    }
    Ok(())
}

/// Triggers for an index that none keeps, as what follows their names. Source: <https://sqlite.org/fts5.html>, section 4.4.3, and
/// <https://sqlite.org/fts3.html>, section 6.2.2.
fn own_triggers(catalogue: &Catalogue, index: &VirtualTable) -> Vec<String> {
    let Content::External { table, rowid } = &index.content else { return Vec::new() };
    let Some(table) = catalogue.table(table) else { return Vec::new() };
    let rowid = match (rowid, table.rowid_name) {
        (Some(column), _) if table.column_index(column).is_some() => quoted(column),
        (_, Some(name)) => name.to_owned(),
        (_, None) => return Vec::new(),
    };
    if index.columns.iter().any(|column| table.column_index(column).is_none()) {
        return Vec::new();
    }
    let (on, name) = (quoted(&table.name), quoted(&index.name));
    let columns: Vec<String> = index.columns.iter().map(|column| quoted(column)).collect();
    let list = columns.join(", ");
    let of = |row: &str| columns.iter().map(|column| format!("{row}.{column}")).collect::<Vec<_>>().join(", ");
    let (old, new) = (of("old"), of("new"));
    if index.module == Module::Fts34 {
        let put_in = format!("INSERT INTO {name}(docid, {list}) VALUES(new.{rowid}, {new});");
        // It reads what it takes out from the table, so it has to before the row is gone.
        let take_out = format!("DELETE FROM {name} WHERE docid = old.{rowid};");
        return vec![
            format!("AFTER INSERT ON {on} BEGIN {put_in} END"),
            format!("BEFORE DELETE ON {on} BEGIN {take_out} END"),
            format!("BEFORE UPDATE ON {on} BEGIN {take_out} END"),
            format!("AFTER UPDATE ON {on} BEGIN {put_in} END"),
        ];
    }
    let put_in = format!("INSERT INTO {name}(rowid, {list}) VALUES(new.{rowid}, {new});");
    // Only what it holds may be taken out. Without sizes nobody knows what it holds.
    let sizes = format!("{}_docsize", index.name);
    let is_held = match catalogue.table(&sizes) {
        Some(_) => format!(" WHERE EXISTS (SELECT 1 FROM {} WHERE id = old.{rowid})", quoted(&sizes)),
        None => String::new(),
    };
    let take_out = format!("INSERT INTO {name}({name}, rowid, {list}) SELECT 'delete', old.{rowid}, {old}{is_held};");
    vec![
        format!("AFTER INSERT ON {on} BEGIN {put_in} END"),
        format!("AFTER DELETE ON {on} BEGIN {take_out} END"),
        format!("AFTER UPDATE ON {on} BEGIN {take_out} {put_in} END"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statements_that_write_to_an_index_are_kept() {
        let sql = "CREATE TRIGGER \"t begin\" AFTER UPDATE OF a ON notes WHEN new.a <> ';' BEGIN
            UPDATE notes SET seen = 1 WHERE id = new.id; -- ; not here
            INSERT OR REPLACE INTO \"Fts\"(fts, rowid, a) VALUES('delete', old.id, 'x;y');
            SELECT RAISE(ABORT, 'no'); DELETE FROM fts WHERE rowid = 1; REPLACE INTO log VALUES(1); END";
        let (text, targets) = index_statements(sql, |name| name == "fts").unwrap();
        assert_eq!(targets.into_iter().collect::<Vec<_>>(), ["fts"]);
        assert!(text.starts_with(" AFTER UPDATE OF a ON notes WHEN new.a <> ';'  BEGIN"), "{text}");
        assert!(text.contains("VALUES('delete', old.id, 'x;y');") && text.contains("DELETE FROM fts"), "{text}");
        assert!(!text.contains("UPDATE notes") && !text.contains("RAISE") && !text.contains("log"), "{text}");
        assert!(index_statements(sql, |name| name == "other").is_none());
    }
}
