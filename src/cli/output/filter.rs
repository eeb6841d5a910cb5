//! The writer that `--format`, `--tables` and `--where` ask for.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::{JsonLines, Pretty, SchemaObject, SqlScript, Style};
use crate::change::{ChangeSink, ChangedRow, Op, RowChange, RowKey, SchemaChange, TxSpan};
use crate::cli::args::Format;
use crate::format::{Row, TextEncoding};
use crate::schema::{RowFilters, RowTest, Table, TableFilter};

/// A writer of any format.
#[derive(Debug)]
pub enum RowWriter<W: Write> {
    /// JSON lines.
    Json(JsonLines<W>),
    /// For people.
    Pretty(Pretty<W>),
    /// A script.
    Sql(Box<SqlScript<W>>),
}

impl<W: Write> RowWriter<W> {
    /// Makes the writer of a format. The database's encoding and its schema as it is before the first change are what a script needs.
    pub fn new(
        format: Format,
        out: W,
        style: Style,
        encoding: TextEncoding,
        objects: Vec<SchemaObject>,
    ) -> RowWriter<W> {
        match format {
            Format::Json => RowWriter::Json(JsonLines::new(out)),
            Format::Pretty => RowWriter::Pretty(Pretty::new(out, style)),
            Format::Sql => RowWriter::Sql(Box::new(SqlScript::new(out, encoding, objects))),
        }
    }

    /// The transactions that follow were not committed, and are not called so.
    #[must_use]
    pub fn left_open(mut self, is_open: bool) -> RowWriter<W> {
        match &mut self {
            RowWriter::Json(writer) => writer.set_open(is_open),
            RowWriter::Pretty(writer) => writer.set_open(is_open),
            RowWriter::Sql(_) => {}
        }
        self
    }

    /// Says that something may be missing here.
    ///
    /// # Errors
    /// Those of the output.
    pub fn gap(&mut self, why: &str) -> io::Result<()> {
        match self {
            RowWriter::Json(writer) => writer.gap(why),
            RowWriter::Pretty(writer) => writer.gap(why),
            RowWriter::Sql(_) => Ok(()),
        }
    }

    /// Whether nothing was left out that the format has no form for.
    pub fn is_whole(&self) -> bool {
        match self {
            RowWriter::Json(_) | RowWriter::Pretty(_) => true,
            RowWriter::Sql(writer) => writer.is_whole(),
        }
    }

    fn sink(&mut self) -> &mut dyn ChangeSink<io::Error> {
        match self {
            RowWriter::Json(writer) => writer,
            RowWriter::Pretty(writer) => writer,
            RowWriter::Sql(writer) => writer.as_mut(),
        }
    }
}

impl<W: Write> ChangeSink<io::Error> for RowWriter<W> {
    fn begin(&mut self, span: &TxSpan) -> io::Result<()> {
        self.sink().begin(span)
    }

    fn schema(&mut self, change: SchemaChange) -> io::Result<()> {
        self.sink().schema(change)
    }

    fn change(&mut self, change: RowChange) -> io::Result<()> {
        self.sink().change(change)
    }

    fn row(&mut self, row: ChangedRow<'_>) -> io::Result<()> {
        self.sink().row(row)
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> io::Result<()> {
        self.sink().commit(span, changes)
    }
}

/// Passes on the changes of some tables and some rows. A transaction of which nothing is left is not mentioned.
#[derive(Debug)]
pub struct Filtered<S> {
    sink: S,
    filter: TableFilter,
    rows: RowFilters,
    /// What tells the rows of a table as it was last met.
    tests: HashMap<String, (Arc<Table>, Option<RowTest>)>,
    /// The transaction that has not been passed on yet.
    begin: Option<TxSpan>,
    passed: u64,
}

impl<S> Filtered<S> {
    /// Makes the filter. `sqlite_sequence` counts as part of every AUTOINCREMENT table and passes with its row's table.
    pub fn new(sink: S, filter: TableFilter, rows: RowFilters) -> Filtered<S> {
        Filtered { sink, filter, rows, tests: HashMap::new(), begin: None, passed: 0 }
    }

    /// What is passed to.
    pub fn inner(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Returns what was passed to.
    pub fn into_inner(self) -> S {
        self.sink
    }

    fn begun(&mut self) -> io::Result<()>
    where
        S: ChangeSink<io::Error>,
    {
        match self.begin.take() {
            Some(span) => self.sink.begin(&span),
            None => Ok(()),
        }
    }

    /// The change as those see it who know of the rows within the filter alone: a row that leaves it is deleted, one that enters is inserted.
    /// Of a row whose before is not known only the after can tell.
    fn within(&mut self, change: RowChange) -> io::Result<Option<RowChange>> {
        if self.rows.is_empty() {
            return Ok(Some(change));
        }
        let known = self.tests.get(&change.table.name).is_some_and(|(table, _)| Arc::ptr_eq(table, &change.table));
        if !known {
            let test = self.rows.test(&change.table).map_err(io::Error::other)?;
            self.tests.insert(change.table.name.clone(), (Arc::clone(&change.table), test));
        }
        let Some((_, Some(test))) = self.tests.get(&change.table.name) else { return Ok(Some(change)) };
        let rowid = if let RowKey::Rowid(rowid) = change.key { Some(rowid) } else { change.rowid };
        let taken = |row: Option<Row>| match row {
            Some(row) => Ok(test.passes(rowid, &row).map_err(io::Error::other)?.then_some(row)),
            None => Ok::<_, io::Error>(None),
        };
        let (before, after) = (taken(change.before)?, taken(change.after)?);
        let op = match (&before, &after) {
            (None, None) => return Ok(None),
            (None, Some(_)) if change.before_unknown => change.op,
            (None, Some(_)) => Op::Insert,
            (Some(_), None) => Op::Delete,
            (Some(_), Some(_)) => change.op,
        };
        Ok(Some(RowChange { op, before, after, ..change }))
    }

    fn takes(&self, change: &RowChange) -> bool {
        if !change.table.name.eq_ignore_ascii_case("sqlite_sequence") {
            return self.filter.matches(&change.table.name);
        }
        let row = change.after.as_ref().or(change.before.as_ref());
        match row.and_then(|row| row.first()) {
            Some(crate::format::Value::Text(name)) => self.filter.matches(&String::from_utf8_lossy(name)),
            _ => self.filter.matches("sqlite_sequence"),
        }
    }
}

impl<S: ChangeSink<io::Error>> ChangeSink<io::Error> for Filtered<S> {
    fn begin(&mut self, span: &TxSpan) -> io::Result<()> {
        self.begin = Some(*span);
        self.passed = 0;
        Ok(())
    }

    fn schema(&mut self, change: SchemaChange) -> io::Result<()> {
        if !self.filter.matches(&change.table) && !self.filter.matches(&change.name) {
            return Ok(());
        }
        self.begun()?;
        self.sink.schema(change)
    }

    fn change(&mut self, change: RowChange) -> io::Result<()> {
        if !self.takes(&change) {
            return Ok(());
        }
        let Some(change) = self.within(change)? else { return Ok(()) };
        self.begun()?;
        self.passed += 1;
        self.sink.change(change)
    }

    fn commit(&mut self, span: &TxSpan, _changes: u64) -> io::Result<()> {
        if self.begin.take().is_some() { Ok(()) } else { self.sink.commit(span, self.passed) }
    }
}
