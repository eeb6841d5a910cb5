//! The writer that `--format` and `--tables` ask for.

use std::io::{self, Write};

use super::{JsonLines, Pretty, SchemaObject, SqlScript, Style};
use crate::change::{ChangeSink, ChangedRow, RowChange, SchemaChange, TxSpan};
use crate::cli::args::Format;
use crate::format::TextEncoding;
use crate::schema::TableFilter;

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

/// Passes on the changes of some tables. A transaction of which nothing is left is not mentioned.
#[derive(Debug)]
pub struct Filtered<S> {
    sink: S,
    filter: TableFilter,
    /// The transaction that has not been passed on yet.
    begin: Option<TxSpan>,
    passed: u64,
}

impl<S> Filtered<S> {
    /// Makes the filter. `sqlite_sequence` counts as part of every AUTOINCREMENT table and passes with its row's table.
    pub fn new(sink: S, filter: TableFilter) -> Filtered<S> {
        Filtered { sink, filter, begin: None, passed: 0 }
    }

    /// What is passed to.
    pub fn inner(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Returns what was passed to.
    pub fn into_inner(self) -> S {
        self.sink
    }

    fn begun<E>(&mut self) -> Result<(), E>
    where
        S: ChangeSink<E>,
    {
        match self.begin.take() {
            Some(span) => self.sink.begin(&span),
            None => Ok(()),
        }
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

impl<E, S: ChangeSink<E>> ChangeSink<E> for Filtered<S> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), E> {
        self.begin = Some(*span);
        self.passed = 0;
        Ok(())
    }

    fn schema(&mut self, change: SchemaChange) -> Result<(), E> {
        if !self.filter.matches(&change.table) && !self.filter.matches(&change.name) {
            return Ok(());
        }
        self.begun()?;
        self.sink.schema(change)
    }

    fn change(&mut self, change: RowChange) -> Result<(), E> {
        if !self.takes(&change) {
            return Ok(());
        }
        self.begun()?;
        self.passed += 1;
        self.sink.change(change)
    }

    fn commit(&mut self, span: &TxSpan, _changes: u64) -> Result<(), E> {
        if self.begin.take().is_some() { Ok(()) } else { self.sink.commit(span, self.passed) }
    }
}
