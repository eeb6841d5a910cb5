//! Which rows an option means: `table: expression`, an expression over the columns of one row.
//!
//! sqlparser reads the text and tells the columns; SQLite has the last word on what it is: the expression must do as the WHERE of a partial
//! index, which knows no subquery, no parameter, no aggregate and nothing that gives another answer the next time.

use std::collections::BTreeSet;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use sqlparser::ast::{Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Value};
use sqlparser::dialect::SQLiteDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::tokens::{Tokens, unquote};

/// Functions that read the clock when they are told to.
const OF_TIME: [&str; 7] = ["date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"];

/// What makes them read the clock, or the time zone of the machine.
const OF_NOW: [&str; 3] = ["now", "localtime", "utc"];

/// Why rows cannot be told by a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowFilterError {
    /// The text is not of the form.
    #[error("where {text:?} is not `table: expression`")]
    Form {
        /// The text.
        text: String,
    },
    /// The expression cannot be one of a row alone.
    #[error("where {text:?}: {why}")]
    Expression {
        /// The text.
        text: String,
        /// Why.
        why: String,
    },
    /// The table has no such column, or is not one whose rows can be told.
    #[error("where {text:?}: table {table}: {why}")]
    Table {
        /// The text.
        text: String,
        /// The table.
        table: String,
        /// Why.
        why: String,
    },
}

impl RowFilterError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            RowFilterError::Form { .. } => "write it as in: --where 'orders: region = 3 AND state <> ''void'''",
            RowFilterError::Expression { .. } => {
                "use columns of the row, constants and functions whose answer depends on them alone; no subquery, no parameter, no clock"
            }
            RowFilterError::Table { .. } => {
                "name columns that the table has; woodchuck inspect --view schema shows them"
            }
        }
    }
}

/// The filter of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFilter {
    /// The table, as given.
    pub table: String,
    /// The expression, as given.
    pub expression: String,
    /// The columns that it names, as given: names of the rowid may be among them.
    pub columns: BTreeSet<String>,
    /// It has a function that would read the clock if a value told it to.
    pub(super) has_time: bool,
}

impl RowFilter {
    /// Reads `table: expression`.
    ///
    /// # Errors
    /// [`RowFilterError::Form`], [`RowFilterError::Expression`].
    pub fn parse(text: &str) -> Result<RowFilter, RowFilterError> {
        let form = || RowFilterError::Form { text: text.to_owned() };
        let colon = Tokens::new(text).find(|(_, token)| *token == ":").map(|(offset, _)| offset).ok_or_else(form)?;
        let (table, expression) = text.split_at_checked(colon).ok_or_else(form)?;
        let (table, expression) = (table.trim(), expression.strip_prefix(':').unwrap_or_default().trim());
        let mut words = Tokens::new(table);
        let is_one = words.next().is_some_and(|(_, token)| token.len() == table.len());
        if !is_one || expression.is_empty() {
            return Err(form());
        }
        let mut filter = RowFilter {
            table: unquote(table),
            expression: expression.to_owned(),
            columns: BTreeSet::new(),
            has_time: false,
        };
        let bad = |why: String| RowFilterError::Expression { text: text.to_owned(), why };
        filter.read().and_then(|()| filter.check()).map_err(bad)?;
        Ok(filter)
    }

    /// `table: expression`.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}: {}", self.table, self.expression)
    }

    fn read(&mut self) -> Result<(), String> {
        let text = plain(&self.expression);
        let mut parser = Parser::new(&SQLiteDialect {}).try_with_sql(&text).map_err(|error| error.to_string())?;
        let expression = parser.parse_expr().map_err(|error| error.to_string())?;
        match parser.next_token().token {
            Token::EOF => self.walk(&expression),
            other => Err(format!("{other} follows the expression")),
        }
    }

    fn walk_all<'e>(&mut self, all: impl IntoIterator<Item = &'e Expr>) -> Result<(), String> {
        all.into_iter().try_for_each(|expression| self.walk(expression))
    }

    fn walk(&mut self, expression: &Expr) -> Result<(), String> {
        match expression {
            Expr::Identifier(name) => drop(self.columns.insert(name.value.clone())),
            Expr::CompoundIdentifier(names) => match names.as_slice() {
                [table, column] if table.value.eq_ignore_ascii_case(&self.table) => {
                    self.columns.insert(column.value.clone());
                }
                _ => return Err(format!("{expression} is no column of {}", self.table)),
            },
            Expr::Value(value) => {
                if let Value::Placeholder(name) = &value.value {
                    return Err(format!("{name} is a parameter"));
                }
            }
            Expr::Nested(one)
            | Expr::IsNull(one)
            | Expr::IsNotNull(one)
            | Expr::IsTrue(one)
            | Expr::IsNotTrue(one)
            | Expr::IsFalse(one)
            | Expr::IsNotFalse(one)
            | Expr::UnaryOp { expr: one, .. }
            | Expr::Cast { expr: one, .. }
            | Expr::Collate { expr: one, .. }
            | Expr::Ceil { expr: one, .. }
            | Expr::Floor { expr: one, .. } => self.walk(one)?,
            Expr::BinaryOp { left, right, .. }
            | Expr::IsDistinctFrom(left, right)
            | Expr::IsNotDistinctFrom(left, right) => self.walk_all([&**left, &**right])?,
            Expr::InList { expr, list, .. } => self.walk_all(std::iter::once(&**expr).chain(list))?,
            Expr::Between { expr, low, high, .. } => self.walk_all([&**expr, &**low, &**high])?,
            Expr::Like { expr, pattern, escape_char, .. } => {
                self.walk_all([&**expr, &**pattern].into_iter().chain(escape_char.as_deref()))?;
            }
            Expr::Tuple(all) => self.walk_all(all)?,
            Expr::Case { operand, conditions, else_result, .. } => {
                self.walk_all(operand.as_deref().into_iter().chain(else_result.as_deref()))?;
                for when in conditions {
                    self.walk_all([&when.condition, &when.result])?;
                }
            }
            Expr::Substring { expr, substring_from, substring_for, .. } => {
                let rest = substring_from.as_deref().into_iter().chain(substring_for.as_deref());
                self.walk_all(std::iter::once(&**expr).chain(rest))?;
            }
            Expr::Trim { expr, trim_what, trim_characters, .. } => {
                let rest = trim_what.as_deref().into_iter().chain(trim_characters.iter().flatten());
                self.walk_all(std::iter::once(&**expr).chain(rest))?;
            }
            Expr::Function(function) => self.walk_function(&function.name.to_string(), &function.args)?,
            Expr::Exists { .. } | Expr::Subquery(_) | Expr::InSubquery { .. } => {
                return Err("it has a subquery, and a row must tell by itself".to_owned());
            }
            other => return Err(format!("{other} is not understood")),
        }
        Ok(())
    }

    fn walk_function(&mut self, name: &str, arguments: &FunctionArguments) -> Result<(), String> {
        let name = unquote(name).to_ascii_lowercase();
        let is_of_time = OF_TIME.contains(&name.as_str());
        self.has_time |= is_of_time;
        let given: &[FunctionArg] = match arguments {
            FunctionArguments::None => &[],
            FunctionArguments::List(list) => &list.args,
            FunctionArguments::Subquery(_) => return Err("it has a subquery".to_owned()),
        };
        // Without a time they mean now.
        let times = if name == "strftime" { given.get(1..).unwrap_or_default() } else { given };
        if is_of_time && times.is_empty() {
            return Err(format!("{name} without a time reads the clock"));
        }
        for argument in given {
            let (FunctionArg::Unnamed(FunctionArgExpr::Expr(one))
            | FunctionArg::Named { arg: FunctionArgExpr::Expr(one), .. }) = argument
            else {
                return Err(format!("{argument} is not understood"));
            };
            let says = one.to_string().trim_matches('\'').to_ascii_lowercase();
            if is_of_time && OF_NOW.contains(&says.as_str()) {
                return Err(format!("{name} with {one} gives another answer at another time or place"));
            }
            self.walk(one)?;
        }
        Ok(())
    }

    /// Asks SQLite, with a table of just these columns.
    fn check(&self) -> Result<(), String> {
        let said = |error: rusqlite::Error| error.to_string();
        let connection = open().map_err(said)?;
        let mut columns: BTreeSet<String> = self.columns.iter().map(|name| name.to_ascii_lowercase()).collect();
        columns.retain(|name| !ROWID_NAMES.contains(&name.as_str()));
        let mut list: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
        list.push("woodchuck_only".to_owned());
        connection
            .execute_batch(&format!("CREATE TABLE {}({})", quoted(&self.table), list.join(", ")))
            .and_then(|()| connection.execute_batch(&self.index()))
            .map_err(said)
    }

    /// The statement that only an expression of the row alone goes into.
    pub(super) fn index(&self) -> String {
        format!("CREATE INDEX woodchuck_index ON {}(1) WHERE ({}\n)", quoted(&self.table), self.expression)
    }
}

/// An expression as sqlparser knows all of it: SQLite's IS compares any two values, and its NOT goes before more words. It is read for the
/// columns alone, so the meaning may change.
fn plain(expression: &str) -> String {
    let (mut out, mut at, mut is_after_is) = (String::with_capacity(expression.len()), 0, false);
    let mut tokens = Tokens::new(expression).peekable();
    while let Some((offset, token)) = tokens.next() {
        let word = token.to_ascii_lowercase();
        let next = tokens.peek().map(|(_, next)| next.to_ascii_lowercase()).unwrap_or_default();
        let goes = match word.as_str() {
            "isnull" | "notnull" => true,
            "not" => is_after_is || matches!(next.as_str(), "glob" | "regexp" | "match"),
            "distinct" | "from" => is_after_is,
            _ => false,
        };
        out.push_str(expression.get(at..offset).unwrap_or_default());
        at = offset + token.len();
        match word.as_str() {
            "is" => out.push('='),
            _ if goes => {}
            _ => out.push_str(token),
        }
        is_after_is = word == "is" || (is_after_is && goes);
    }
    out.push_str(expression.get(at..).unwrap_or_default());
    out
}

/// The names of a rowid, where no column has them.
pub(super) const ROWID_NAMES: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// A database in memory in which a name in double quotes is never text.
pub(super) fn open() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    connection.pragma_update(None, "ignore_check_constraints", true)?;
    Ok(connection)
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The filters of all tables. A table that has several is to pass all of them, one that has none lets every row through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowFilters(Vec<RowFilter>);

impl RowFilters {
    /// Reads a list of `table: expression`.
    ///
    /// # Errors
    /// As [`RowFilter::parse`].
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<RowFilters, RowFilterError> {
        texts.iter().map(|text| RowFilter::parse(text.as_ref())).collect::<Result<_, _>>().map(RowFilters)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What rows of this table have to pass.
    #[must_use]
    pub fn of(&self, table: &str) -> Vec<&RowFilter> {
        self.0.iter().filter(|filter| filter.table.eq_ignore_ascii_case(table)).collect()
    }

    /// All of them, as they were given.
    pub fn iter(&self) -> impl Iterator<Item = &RowFilter> {
        self.0.iter()
    }

    /// All of them as one text, the same for the same filters in any order; empty for none.
    #[must_use]
    pub fn text(&self) -> String {
        let mut all: Vec<String> = self
            .0
            .iter()
            .map(|filter| format!("{}: {}", filter.table.to_ascii_lowercase(), filter.expression))
            .collect();
        all.sort();
        all.dedup();
        all.join("; ")
    }

    /// These and others: a row has to pass both.
    #[must_use]
    pub fn and(&self, others: &RowFilters) -> RowFilters {
        let mut all = self.0.clone();
        all.extend(others.0.iter().filter(|other| !self.0.contains(other)).cloned());
        RowFilters(all)
    }
}
