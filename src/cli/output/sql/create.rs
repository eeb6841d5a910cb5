//! The few things that must be read out of a CREATE statement: the name, and for tables the column definitions.
//!
//! SQLite stores `CREATE TABLE ` (or `CREATE VIRTUAL TABLE `) followed by the statement from the name on, as typed.

use crate::schema::{Tokens, unquote};

/// A CREATE TABLE statement taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CreateTable<'a> {
    /// The table's name, without quotes.
    pub(super) name: String,
    /// The column definitions, as typed. Empty for virtual tables.
    pub(super) columns: Vec<&'a str>,
    /// Whether it is a virtual table.
    pub(super) is_virtual: bool,
}

/// Takes a statement apart; `None` if it is not a CREATE TABLE that SQLite could have stored.
pub(super) fn create_table(sql: &str) -> Option<CreateTable<'_>> {
    let (is_virtual, rest) = match strip(sql, "CREATE TABLE ") {
        Some(rest) => (false, rest),
        None => (true, strip(sql, "CREATE VIRTUAL TABLE ")?),
    };
    let mut tokens = Tokens::new(rest);
    let name = unquote(tokens.next()?.1);
    let mut columns = Vec::new();
    if !is_virtual && tokens.next().is_some_and(|(_, text)| text == "(") {
        let mut depth = 0_usize;
        let mut from: Option<usize> = None;
        let mut to = tokens.offset();
        for (offset, token) in tokens {
            if depth == 0 && (token == "," || token == ")") {
                if let Some(item) = from.take().and_then(|from| rest.get(from..to)) {
                    columns.extend((!is_constraint(item)).then_some(item));
                }
                if token == ")" {
                    break;
                }
                continue;
            }
            match token {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                _ => {}
            }
            from.get_or_insert(offset);
            to = offset + token.len();
        }
    }
    Some(CreateTable { name, columns, is_virtual })
}

/// The first token of a column definition as typed, and the name it stands for.
pub(super) fn column_name(definition: &str) -> Option<(&str, String)> {
    let (_, token) = Tokens::new(definition).next()?;
    Some((token, unquote(token)))
}

/// What ends this statement: a semicolon, which must not become part of a comment at the statement's end, nor a line break part of its text.
pub(super) fn statement_end(sql: &str) -> &'static str {
    let mut tokens = Tokens::new(sql);
    while tokens.next().is_some() {}
    match tokens.open_comment() {
        None => ";\n",
        Some("--") => "\n;\n",
        Some(_) => "*/;\n",
    }
}

fn is_constraint(item: &str) -> bool {
    let first = Tokens::new(item).next().map_or("", |(_, token)| token);
    ["CONSTRAINT", "PRIMARY", "UNIQUE", "CHECK", "FOREIGN"].iter().any(|word| first.eq_ignore_ascii_case(word))
}

fn strip<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let start = text.get(..prefix.len())?;
    if start.eq_ignore_ascii_case(prefix) { text.get(prefix.len()..) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A column named "--" got its index a line break behind its text, because dashes anywhere counted as a comment. Only a comment that
    /// is still open at the statement's end needs one.
    #[test]
    fn a_semicolon_never_falls_into_a_comment_nor_a_line_break_into_the_text() {
        assert_eq!(statement_end("CREATE INDEX i ON t(\"--\")"), ";\n");
        assert_eq!(statement_end("CREATE TABLE t(-- why\na)"), ";\n");
        assert_eq!(statement_end("CREATE VIEW v AS SELECT '--' /* x */"), ";\n");
        assert_eq!(statement_end("CREATE VIEW v AS SELECT 1 -- why"), "\n;\n");
        assert_eq!(statement_end("CREATE VIEW v AS SELECT 1 /* why"), "*/;\n");
    }

    #[test]
    fn columns_and_constraints_are_told_apart() {
        let sql = "CREATE TABLE \"a \"\"b\"(id INTEGER /* , */ PRIMARY KEY, [c,d] TEXT DEFAULT (1,2), \"check\" -- x,\n CHECK(1), UNIQUE(id)) STRICT";
        let parsed = create_table(sql).unwrap();
        assert_eq!(parsed.name, "a \"b");
        assert_eq!(parsed.columns.len(), 3);
        assert_eq!(parsed.columns[1], "[c,d] TEXT DEFAULT (1,2)");
        assert_eq!(column_name(parsed.columns[2]).unwrap(), ("\"check\"", "check".to_owned()));
        let parsed = create_table("CREATE VIRTUAL TABLE f USING fts5(a, b)").unwrap();
        assert!(parsed.is_virtual && parsed.columns.is_empty());
    }
}
