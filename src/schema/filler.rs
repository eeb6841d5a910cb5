//! What stands in a column that cannot be NULL, in rows that know nothing of it, where its definition names no value.
//!
//! Whoever made the column gave it to the rows that there were. A row that another node wrote meanwhile comes without it, and all nodes must
//! give it the same: so it follows from the definition alone. Applications read the value, and SQLite tests it when the table is rebuilt
//! next; so it is one that suits the type and that the column's CHECKs let pass, as far as those are about this column.

use std::cell::OnceCell;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::bound::Bound;
use super::strict::StrictType;
use super::table::Affinity;
use super::tokens::{Tokens, unquote};
use crate::format::Value;

/// Literals of the CHECKs of a table that are tried at most.
const LITERALS_MAX: usize = 64;

/// One table's.
pub(super) struct Filler<'a> {
    sql: &'a str,
    checks: OnceCell<Vec<&'a str>>,
    /// Where they are asked.
    connection: OnceCell<Option<Connection>>,
}

/// A column as far as it matters.
pub(super) struct Filled<'a> {
    pub(super) name: &'a str,
    pub(super) declared_type: &'a str,
    pub(super) affinity: Affinity,
    pub(super) strict: Option<StrictType>,
    /// The beginning of time, for one whose default is the time.
    pub(super) begins_at: Option<&'static str>,
}

impl<'a> Filler<'a> {
    /// For the table of this CREATE statement.
    pub(super) fn new(sql: &'a str) -> Filler<'a> {
        Filler { sql, checks: OnceCell::new(), connection: OnceCell::new() }
    }

    pub(super) fn value(&self, column: &Filled<'_>) -> Value {
        let first = by_type(column);
        let checks = self.checks.get_or_init(|| checks(self.sql));
        if checks.is_empty() {
            return first;
        }
        let Some(connection) = self.connection.get_or_init(|| open().ok()) else { return first };
        let literals = checks.iter().flat_map(|check| literals(check)).take(LITERALS_MAX);
        let texts = ["{}", "[]", "null", "0", "1970-01-01", "1970-01-01 00:00:00", "00:00:00", "x"];
        let numbers = [1, -1].into_iter().map(Value::Integer).chain([Value::Real(0.5), Value::Real(-0.5)]);
        let others = literals.chain(texts.map(|text| Value::Text(text.into()))).chain(numbers);
        let fits = |value: &Value| {
            let suits = matches!(
                (column.affinity, value),
                (Affinity::None, _)
                    | (Affinity::Text, Value::Text(_))
                    | (Affinity::Numeric | Affinity::Integer | Affinity::Real, Value::Integer(_) | Value::Real(_))
            );
            suits && column.strict.is_none_or(|strict| strict.converted(value).is_none())
        };
        let passes = |value: &Value| checks.iter().all(|check| passes(connection, check, column.name, value));
        let mut all = std::iter::once(first.clone()).chain(others.filter(fits));
        all.find(passes).unwrap_or(first)
    }
}

/// What applications expect in a column of this type.
fn by_type(column: &Filled<'_>) -> Value {
    let text = |text: &str| Value::Text(text.into());
    if let Some(begins_at) = column.begins_at {
        return text(begins_at);
    }
    match (column.declared_type.to_ascii_uppercase().as_str(), column.affinity) {
        ("DATE", _) => text("1970-01-01"),
        ("DATETIME" | "TIMESTAMP", _) => text("1970-01-01 00:00:00"),
        ("TIME", _) => text("00:00:00"),
        ("JSON", _) => text("{}"),
        (_, Affinity::Text) => text(""),
        (_, Affinity::None) => Value::Blob(Vec::new()),
        (_, Affinity::Real) => Value::Real(0.0),
        (_, Affinity::Numeric | Affinity::Integer) => Value::Integer(0),
    }
}

/// The expressions of a statement's CHECKs.
fn checks(sql: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut tokens = Tokens::new(sql);
    while let Some((_, token)) = tokens.next() {
        if !token.eq_ignore_ascii_case("check") {
            continue;
        }
        let Some((start, "(")) = tokens.next() else { continue };
        let mut depth = 1;
        for (at, token) in tokens.by_ref() {
            depth += i32::from(token == "(") - i32::from(token == ")");
            if depth == 0 {
                found.extend(sql.get(start + 1..at));
                break;
            }
        }
    }
    found
}

fn literals(check: &str) -> impl Iterator<Item = Value> + '_ {
    Tokens::new(check).filter_map(|(_, token)| match token.parse::<i64>() {
        Ok(integer) => Some(Value::Integer(integer)),
        Err(_) if token.starts_with('\'') => Some(Value::Text(unquote(token).into_bytes())),
        Err(_) => None,
    })
}

fn open() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    // A name that is no column of the one that is asked about is an error then, and not a text.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    Ok(connection)
}

/// Whether a CHECK lets a value pass. One that is about other columns as well, or needs what this process does not have, says nothing.
fn passes(connection: &Connection, check: &str, column: &str, value: &Value) -> bool {
    let sql = format!("SELECT ({check}\n) FROM (SELECT ?1 AS \"{}\")", column.replace('"', "\"\""));
    let Ok(mut statement) = connection.prepare(&sql) else { return true };
    let answer = statement.query_row([Bound(value)], |row| row.get::<_, Option<f64>>(0));
    // NULL passes, and what the expression cannot be asked of does not.
    answer.is_ok_and(|answer| answer != Some(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_suits_the_type_and_passes_the_checks_of_its_column() {
        let text = |text: &str| Value::Text(text.into());
        let cases = [
            ("text", "", text("")),
            ("text", "CHECK ((JSON_VALID(\"c\") OR \"c\" IS NULL))", text("{}")),
            ("text", "CHECK(json_array_length(c) >= 0 AND json_type(c) = 'array')", text("[]")),
            ("varchar(20)", "CHECK(c IN ('draft', 'it''s out'))", text("draft")),
            ("varchar(20)", "CHECK(c <> '' AND other > 7), CHECK(\"other\" = 'x'), CHECK(length(c) > 0)", text("x")),
            ("varchar(20)", "CHECK(length(c) = 10 AND c = date(c))", text("1970-01-01")),
            ("varchar(20)", "CHECK(unknown(c)) -- CHECK(0)\n", text("")),
            ("varchar(20)", "CHECK(c IS NULL)", text("")),
            ("integer", "CHECK(c >= 0)", Value::Integer(0)),
            ("integer unsigned", "CHECK(c > 17) CHECK ((c <= 20))", Value::Integer(20)),
            ("bool", "CHECK(c)", Value::Integer(1)),
            ("real", "CHECK(c < 0)", Value::Integer(-1)),
            ("date", "", text("1970-01-01")),
            ("datetime", "CHECK(c > 'a')", text("1970-01-01 00:00:00")),
            ("time", "", text("00:00:00")),
            ("JSON", "", text("{}")),
            ("decimal", "", Value::Integer(0)),
            ("", "", Value::Blob(Vec::new())),
        ];
        for (declared_type, check, wanted) in cases {
            let sql = format!("CREATE TABLE t(other, [check] TEXT, c {declared_type} NOT NULL {check})");
            let affinity = super::super::oracle::affinity_of(declared_type, false);
            let column = Filled { name: "c", declared_type, affinity, strict: None, begins_at: None };
            assert_eq!(Filler::new(&sql).value(&column), wanted, "{sql}");
        }
        let strict = Some(StrictType::Text);
        let column = Filled { name: "c", declared_type: "TEXT", affinity: Affinity::Text, strict, begins_at: None };
        assert_eq!(
            Filler::new("CREATE TABLE t(c TEXT NOT NULL CHECK(c = 5 OR c = 'five'))").value(&column),
            text("five")
        );
    }
}
