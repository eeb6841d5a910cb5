//! The tables: what tells rows apart, what collides when several nodes write, and what does not travel.

use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::file::Examined;
use super::{Finding, Level};
use crate::apply::{Upkeep, index_upkeep};
use crate::schema::{Catalogue, Content, Identity, Module, Table, Tokens, VirtualTable, unquote};

/// How long all tables together are searched for NULL in their keys. A reader keeps the application's log from beginning anew.
const SEARCH_MAX: Duration = Duration::from_secs(10);
/// How many steps of SQLite's machine there are between two looks at the clock.
const STEPS: i32 = 10_000;

/// What matters only when several nodes write is a note when one does.
fn with_several(one_writer: bool) -> Level {
    if one_writer { Level::Note } else { Level::Warning }
}

pub(super) fn examine(catalogue: &Catalogue, one_writer: bool, findings: &mut Vec<Finding>) {
    let mut tables: Vec<_> = catalogue.tables().filter(|table| catalogue.is_replicated(table)).collect();
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    for table in tables {
        examine_table(table, one_writer, findings);
    }
    findings.extend(catalogue.virtual_tables().iter().filter_map(|table| virtual_table(catalogue, table, one_writer)));
    for name in catalogue.unreadable() {
        findings.push(
            Finding::new(
                Level::Warning,
                "unreadable-table",
                format!("SQLite's own parser does not take the definition of table {name}"),
                "its rows cannot be decoded and do not travel",
                "create the table anew with the SQLite that the application uses",
            )
            .of_table(name),
        );
    }
    for row in catalogue.rows() {
        for collation in row.sql.as_deref().map(unknown_collations).unwrap_or_default() {
            findings.push(
                Finding::new(
                    Level::Warning,
                    "unknown-collation",
                    format!("{} {} uses collation {collation}, which only the application has", row.kind, row.name),
                    "keys are compared byte for byte instead; another node's rows that need it are refused, and the shard stops there",
                    "use BINARY, NOCASE or RTRIM in keys and indexes, and the collation in the application's queries",
                )
                .of_table(&row.table),
            );
        }
    }
}

fn examine_table(table: &Table, one_writer: bool, findings: &mut Vec<Finding>) {
    let name = &table.name;
    let mut add = |level, code, what: String, why: &str, remedy: &str| {
        findings.push(Finding::new(level, code, what, why, remedy).of_table(name));
    };
    match &table.identity {
        Identity::Rowid => add(
            with_several(one_writer),
            "no-key",
            format!("table {name} has no key"),
            "its rows are told apart by their hidden rowid, which differs from node to node when several write: rows of one node replace \
             those of another. VACUUM numbers them anew",
            "give it a PRIMARY KEY, or write to it on one node only",
        ),
        Identity::RowidAlias(_) if table.autoincrement => add(
            with_several(one_writer),
            "autoincrement",
            format!("table {name} counts its keys up (AUTOINCREMENT)"),
            "two nodes that insert at the same time give two rows the same number, and the later one replaces the other",
            "insert on one node only, give each node a range of its own (UPDATE sqlite_sequence SET seq = …), or use random keys",
        ),
        Identity::RowidAlias(_) => add(
            with_several(one_writer),
            "rowid-key",
            format!("table {name} has an INTEGER PRIMARY KEY, which SQLite counts up where an insert does not name it"),
            "two nodes that insert at the same time give two rows the same number, and the later one replaces the other",
            "let the application choose keys itself (random, or from a range of its node), or insert on one node only",
        ),
        Identity::Declared(_) => {}
    }
    if !table.uniques.is_empty() {
        let names: Vec<&str> = table.uniques.iter().map(|unique| unique.name.as_str()).collect();
        add(
            with_several(one_writer),
            "unique",
            format!("table {name} has UNIQUE beyond its key ({})", names.join(", ")),
            "all its changes travel in one shard, one after the other; when two nodes give one value to two rows the later one deletes the \
             other",
            "keep UNIQUE where it is needed, and let values that several nodes make not collide",
        );
    }
}

fn virtual_table(catalogue: &Catalogue, table: &VirtualTable, one_writer: bool) -> Option<Finding> {
    let (name, module) = (&table.name, &table.module_name);
    if catalogue.written_table(name).is_some() {
        let finding = Finding::new(
            with_several(one_writer),
            "no-key",
            format!("{name} is a table for full-text search ({module}) that holds its own text: it has no key"),
            "its rows are told apart by their rowid, which SQLite counts up on each node where an insert does not name it: rows of one node \
             replace those of another",
            "insert with rowids that do not collide, or keep the text in a table with a key and index that (content=…)",
        );
        return Some(finding.of_table(name));
    }
    let is_index = table.is_index();
    if is_index && index_upkeep(catalogue, table) != Upkeep::Nobody {
        return None;
    }
    let (why, remedy) = match (table.module, &table.content) {
        (Module::Fts5 | Module::Fts34, Content::External { .. }) => (
            "it indexes what is no table with these columns, and no trigger writes to it: it is not kept in step with what other nodes write",
            "give it triggers on the tables behind it",
        ),
        (Module::Fts5 | Module::Fts34, Content::None) => (
            "it holds no text, and no trigger writes to it: what is written to it stays on this node",
            "fill it by triggers on a table, which travels",
        ),
        (Module::Rtree, _) => (
            "no trigger writes to it: what is written to it stays on this node",
            "keep the coordinates in an ordinary table, which travels, and fill the tree by triggers on that",
        ),
        _ => (
            "only its module can read what is in it: neither it nor the tables behind it travel",
            "keep what it holds in an ordinary table, which travels, and fill it from that on every node",
        ),
    };
    let what = format!("{name} is a virtual table ({module})");
    Some(Finding::new(Level::Warning, "virtual-table", what, why, remedy).of_table(name))
}

/// The names behind COLLATE that SQLite does not have itself, each once.
fn unknown_collations(sql: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut tokens = Tokens::new(sql);
    // A text or a quoted name is a token with its quotes, so that only the word itself is alike.
    while tokens.any(|(_, token)| token.eq_ignore_ascii_case("COLLATE")) {
        let Some((_, token)) = tokens.next() else { break };
        let name = unquote(token);
        let is_known = ["BINARY", "NOCASE", "RTRIM"].iter().any(|known| known.eq_ignore_ascii_case(&name));
        if !is_known && !found.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
            found.push(name);
        }
    }
    found
}

/// Asks SQLite for rows with NULL in a declared key.
pub(super) fn look_for_null_keys(
    database: &Examined,
    catalogue: &Catalogue,
    one_writer: bool,
    findings: &mut Vec<Finding>,
) {
    let mut tables: Vec<_> = catalogue
        .tables()
        .filter(|table| catalogue.is_replicated(table) && !table.without_rowid)
        .filter_map(|table| match &table.identity {
            Identity::Declared(key) => {
                Some((&table.name, key.iter().filter_map(|part| table.columns.get(part.column))))
            }
            _ => None,
        })
        .map(|(name, key)| (name, key.map(|column| format!("+{} IS NULL", quoted(&column.name))).collect::<Vec<_>>()))
        .collect();
    if tables.is_empty() {
        return;
    }
    tables.sort();
    let not_searched = |what: String| {
        Finding::new(
            Level::Note,
            "null-key-unknown",
            what,
            "a row with NULL in its key is told apart by its hidden rowid, which differs from node to node when several write",
            "search it yourself: SELECT * FROM the table WHERE a column of its key IS NULL; better, declare the columns NOT NULL",
        )
    };
    let mut connection = match open(database) {
        Ok(Some(connection)) => connection,
        Ok(None) => {
            let what = "keys were not searched for NULL: an application ended without closing the database, and opening it would recover it";
            return findings.push(not_searched(what.to_owned()));
        }
        Err(error) => return findings.push(not_searched(format!("keys were not searched for NULL: {error}"))),
    };
    let began = Instant::now();
    // A connection without a handler only takes longer.
    let _ = connection.progress_handler(STEPS, Some(move || began.elapsed() > SEARCH_MAX));
    for (name, conditions) in tables {
        let sql = format!("SELECT count(*) FROM {} NOT INDEXED WHERE {}", quoted(name), conditions.join(" OR "));
        match connection.query_row(&sql, [], |row| row.get::<_, i64>(0)) {
            Ok(0) => {}
            Ok(count) => findings.push(
                Finding::new(
                    with_several(one_writer),
                    "null-in-key",
                    format!("table {name} has {count} rows with NULL in its key"),
                    "they are told apart by their hidden rowid, which differs from node to node when several write",
                    "fill the columns and declare them NOT NULL",
                )
                .of_table(name),
            ),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => {
                let what = format!("table {name} was not searched to its end for NULL in its key: it is large");
                findings.push(not_searched(what).of_table(name));
            }
            Err(error) => {
                let what = format!("table {name} was not searched for NULL in its key: {error}");
                findings.push(not_searched(what).of_table(name));
            }
        }
    }
}

/// A connection that writes nothing; `None` where SQLite would first have to recover the log.
///
/// The first connection to a database makes -wal and -shm, or recovers them, also one that only reads: files that a killed application left
/// are as good as none.
fn open(database: &Examined) -> rusqlite::Result<Option<Connection>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match (database.has_log, database.has_shm && database.is_used) {
        (true, false) => return Ok(None),
        (_, true) => Connection::open_with_flags(&database.path, flags)?,
        // Nobody uses it: without locks and without files beside it.
        (false, false) => {
            use std::fmt::Write;
            use std::os::unix::ffi::OsStrExt;
            let mut uri = String::from("file:");
            for byte in database.path.as_os_str().as_bytes() {
                // Writing to a string does not fail.
                let _ = match byte {
                    b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                        write!(uri, "{}", char::from(*byte))
                    }
                    byte => write!(uri, "%{byte:02X}"),
                };
            }
            uri.push_str("?immutable=1");
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
        }
    };
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0")?;
    Ok(Some(connection))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collations_that_sqlite_has_are_known() {
        assert_eq!(unknown_collations("CREATE TABLE t(a COLLATE nocase, collated, b TEXT collate \"RTRIM\")"), [""; 0]);
        assert_eq!(unknown_collations("CREATE INDEX i ON t(a COLLATE de, b COLLATE DE, c Collate [fr])"), ["de", "fr"]);
    }

    /// A text and a comment with the word in it were taken for a use of a collation, and a quoted name ended at its first space.
    #[test]
    fn only_the_word_itself_names_a_collation() {
        let sql = "CREATE TABLE t(a DEFAULT 'a COLLATE zz' /* COLLATE qq */, b COLLATE /* x */ \"my coll\" -- collate rr\n, \"collate\" TEXT)";
        assert_eq!(unknown_collations(sql), ["my coll"]);
        assert_eq!(unknown_collations("CREATE INDEX i ON t(a COLLATE `it``s`, b COLLATE"), ["it`s"]);
    }
}
