//! `inspect`: what is in a database file and its WAL, read with plain reads: no SQLite, no lock, no write. Works on a live database, on a
//! copy, on what a crashed machine left, and on a WAL alone.
//!
//! What a page held when the WAL's generation began is in the database file, unless a checkpoint has overwritten it. A page whose content
//! in the file equals one of its versions in the WAL is taken as overwritten: the first transaction that writes it is then shown with
//! `before_unknown`, with every row on the pages that it wrote, and without the rows that it deleted.
//! A row with a value that goes on in a page which is not there any more as it was then is left out, and a note says so.

mod files;
mod follow;
mod one_row;
mod page;
mod report;
mod rows;
mod stretch;
mod views;

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::args::{Format, InspectArgs, View};
use super::config::row_filters;
use super::exit::Failure;
use super::output::{Filtered, RowWriter, SchemaObject, Style, printable};
use super::tail::fitting;
use crate::schema::{RowFilters, TableFilter};
pub use files::{Files, OpenError};
pub(super) use follow::{Follow, follow};
use one_row::{History, OneRow};
pub use report::{Generation, InspectReport, TableCounts, TransactionReport, WalReport};
pub(super) use rows::catalogue;
pub use rows::{Damage, each_transaction};
pub use stretch::{Standing, Stretch};

/// Runs the command and writes to `out`.
///
/// # Errors
/// Files that cannot be read or are not what they should be; damage that left nothing to show.
pub fn inspect(args: &InspectArgs, out: &mut dyn Write, style: Style) -> Result<(), Failure> {
    let shows_rows = args.format == Format::Sql || args.row.is_some();
    let view = args.view.unwrap_or(if shows_rows { View::Rows } else { View::Summary });
    if args.row.is_some() && view != View::Rows {
        return Err(Failure::usage("--row is about row changes").hint("leave --view out, or use --view rows"));
    }
    if args.format == Format::Sql && !matches!(view, View::Rows | View::Schema) {
        return Err(Failure::usage("only the views rows and schema have a form in SQL")
            .hint("use --view rows, or --format pretty or json"));
    }
    if args.format == Format::Sql && (args.stale || args.uncommitted) {
        return Err(Failure::usage(
            "a script repeats what is committed: --stale and --uncommitted have no form in SQL",
        )
        .hint("use --format pretty or json"));
    }
    let wanted = row_filters(&args.rows)?;
    if !wanted.is_empty() && (view != View::Rows && !args.follow || args.page.is_some()) {
        return Err(Failure::usage("--where is about row changes").hint("use --view rows or --follow"));
    }
    if args.follow {
        let what = Follow {
            database: args.database.as_deref(),
            wal: wal_name(args),
            format: args.format,
            filter: TableFilter::new(&args.tables, &args.exclude_tables),
            rows: wanted,
            from_start: true,
        };
        return follow(&what, out, style, &*super::tail::stop_signal()?);
    }
    let files = Files::open_readable(args.database.as_deref(), wal_path(args).as_deref()).map_err(|error| {
        Failure::of(&error).hint("inspect wants a SQLite database, or a write-ahead log with --wal")
    })?;
    for what in files.wal_unreadable.iter().cloned().chain(files.misfits().filter(|_| args.uncommitted)) {
        // A note beside the output; with stderr gone nobody reads it.
        let _ = writeln!(io::stderr(), "note: {what}");
    }
    if let Some(page) = args.page {
        return page::show(&files, page, args.frame, args.format, out, style);
    }
    let filter = TableFilter::new(&args.tables, &args.exclude_tables);
    let output = |error: io::Error| Failure::output(&error);
    if let (false, Ok(catalogue)) = (wanted.is_empty(), rows::catalogue(&files)) {
        fitting(&wanted, &catalogue)?;
    }
    let parts = parts(&files, args).map_err(|error| Failure::failed(format_args!("cannot read the WAL: {error}")))?;
    match view {
        View::Rows => rows(&parts, args, (&filter, &wanted), out, style),
        View::Frames => views::frames(&files, &parts, args.format, out, style).map_err(output),
        View::Schema => {
            let catalogue = rows::catalogue(&files).map_err(|error| {
                Failure::of(&error).hint("the schema begins in page 1: give the database together with its WAL")
            })?;
            views::schema(&catalogue, &filter, args.format, out, style).map_err(output)
        }
        View::Summary => {
            let report = InspectReport::new(&files, &filter);
            views::summary(&report, args.format, out, style).map_err(output)
        }
        View::Transactions => parts
            .iter()
            .try_for_each(|part| {
                let report = InspectReport::of_part(part, &filter);
                views::heading(part, args.format, out, style)?;
                views::transactions(&report, args.format, out, style)
            })
            .map_err(output),
    }?;
    if files.was_restarted() {
        return Err(Failure::failed("the WAL was restarted while it was read: what was shown may mix two generations")
            .hint("run it again, or on a copy"));
    }
    Ok(())
}

/// Transactions that are shown one after the other.
struct Part<'f> {
    files: Cow<'f, Files>,
    /// The first of its transactions that is shown.
    first_tx: u64,
    /// What of the WAL it is; `None` for what is committed, if that is all.
    stretch: Option<Stretch>,
}

impl Part<'_> {
    fn is_stale(&self) -> bool {
        self.stretch.as_ref().is_some_and(|stretch| stretch.standing == Standing::Stale)
    }
}

/// What is asked for, in the order in which it was written: left over generations, what is committed, what is not.
fn parts<'f>(files: &'f Files, args: &InspectArgs) -> io::Result<Vec<Part<'f>>> {
    let stale = if args.stale { files.stale()? } else { Vec::new() };
    let open = if args.uncommitted { files.open_frames() } else { None };
    let part = |stretch: Stretch| {
        let files = files.at(&stretch)?;
        let is_open = stretch.standing == Standing::Uncommitted;
        let first_tx = if is_open { files.commits().len() as u64 } else { 1 };
        Ok(Part { files: Cow::Owned(files), first_tx, stretch: Some(stretch) })
    };
    let current = files.committed_frames().filter(|_| args.stale || args.uncommitted);
    // Those that stand last in the file are the oldest.
    let mut parts: Vec<Part<'f>> = stale.into_iter().rev().map(part).collect::<io::Result<_>>()?;
    parts.push(Part { files: Cow::Borrowed(files), first_tx: 1, stretch: current });
    parts.extend(open.map(part).transpose()?);
    Ok(parts)
}

fn rows(
    parts: &[Part<'_>],
    args: &InspectArgs,
    (filter, wanted): (&TableFilter, &RowFilters),
    out: &mut dyn Write,
    style: Style,
) -> Result<(), Failure> {
    let format = args.format;
    let row = args.row.as_deref().map(OneRow::parse).transpose()?;
    let (mut is_complete, mut found, mut is_known) = (true, 0, false);
    for part in parts {
        let files: &Files = &part.files;
        let (encoding, objects) = rows::before_first(files).map_or_else(
            |_| (crate::format::TextEncoding::Utf8, Vec::new()),
            |(encoding, catalogue)| (encoding, catalogue.rows().iter().filter_map(SchemaObject::of).collect()),
        );
        views::heading(part, format, out, style).map_err(|error| Failure::output(&error))?;
        let is_open = part.stretch.as_ref().is_some_and(|stretch| stretch.standing == Standing::Uncommitted);
        let writer = RowWriter::new(format, &mut *out, style, encoding, objects).left_open(is_open);
        let mut sink = Filtered::new(writer, filter.clone(), wanted.clone());
        let damage = match &row {
            None => rows::each_from(files, part.first_tx, &mut sink),
            Some(row) => {
                let mut history = History::new(&mut sink, row);
                let damage = rows::each_from(files, part.first_tx, &mut history);
                found += history.found;
                is_known |= rows::catalogue(files).is_ok_and(|catalogue| catalogue.table(row.table()).is_some());
                damage
            }
        };
        let damage = damage.map_err(|error| Failure::output(&error))?;
        for item in &damage {
            // A note beside the output; with stderr gone nobody reads it.
            let _ = writeln!(io::stderr(), "note: {}", printable(&item.to_string()));
        }
        let lost = if is_open { rows::pages_without_tree(files) } else { 0 };
        if lost > 0 {
            let _ = writeln!(
                io::stderr(),
                "note: {lost} of the pages that were not committed are in no tree: their parent was not written yet, or they are overflow \
                 pages or free; --page N --frame F shows what is on one"
            );
        }
        is_complete &= !damage.iter().any(Damage::is_loss) && sink.inner().is_whole();
    }
    if let Some(row) = row.filter(|_| found == 0) {
        let table = row.table();
        let failure = if is_known {
            Failure::failed(format_args!("no transaction shown here changed this row of table {table}"))
        } else {
            Failure::failed(format_args!("there is no table {table}"))
        };
        return Err(failure.hint("--view schema lists the tables and their keys"));
    }
    if !is_complete && format == Format::Sql {
        return Err(
            Failure::failed("the script is not complete").hint("the notes above say what is missing or uncertain")
        );
    }
    Ok(())
}

/// The WAL that was named, or the one beside the database if there is one.
fn wal_path(args: &InspectArgs) -> Option<PathBuf> {
    Some(wal_name(args)).filter(|path| args.wal.is_some() || path.exists())
}

fn wal_name(args: &InspectArgs) -> PathBuf {
    match (&args.wal, &args.database) {
        (Some(wal), _) => wal.clone(),
        (None, database) => beside(database.as_deref().unwrap_or(Path::new(""))),
    }
}

/// Where SQLite has the WAL of a database: it is named after the file that a symbolic link leads to.
pub(super) fn beside(database: &Path) -> PathBuf {
    let mut name = std::fs::canonicalize(database).unwrap_or_else(|_| database.to_owned()).into_os_string();
    name.push("-wal");
    PathBuf::from(name)
}
