//! `inspect`: what is in a database file and its WAL, read with plain reads: no SQLite, no lock, no write. Works on a live database, on a
//! copy, on what a crashed machine left, and on a WAL alone.
//!
//! What a page held when the WAL's generation began is in the database file, unless a checkpoint has overwritten it. A page whose content
//! in the file equals one of its versions in the WAL is taken as overwritten: the first transaction that writes it is then shown with
//! `before_unknown`, with every row on the pages that it wrote, and without the rows that it deleted.

mod files;
mod report;
mod rows;
mod views;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::args::{Format, InspectArgs, View};
use super::exit::Failure;
use super::output::{Filtered, RowWriter, SchemaObject, Style};
use crate::schema::TableFilter;
pub use files::{Files, OpenError};
pub use report::{Generation, InspectReport, TableCounts, TransactionReport, WalReport};
pub(super) use rows::catalogue;
pub use rows::{Damage, each_transaction};

/// Runs the command and writes to `out`.
///
/// # Errors
/// Files that cannot be read or are not what they should be; damage that left nothing to show.
pub fn inspect(args: &InspectArgs, out: &mut dyn Write, style: Style) -> Result<(), Failure> {
    let view = args.view.unwrap_or(if args.format == Format::Sql { View::Rows } else { View::Summary });
    if args.format == Format::Sql && !matches!(view, View::Rows | View::Schema) {
        return Err(Failure::usage("only the views rows and schema have a form in SQL")
            .hint("use --view rows, or --format pretty or json"));
    }
    let files = Files::open(args.database.as_deref(), wal_path(args).as_deref()).map_err(|error| {
        Failure::of(&error).hint("inspect wants a SQLite database, or a write-ahead log with --wal")
    })?;
    let filter = TableFilter::new(&args.tables, &args.exclude_tables);
    let output = |error: io::Error| Failure::output(&error);
    match view {
        View::Rows => rows(&files, args.format, filter, out, style),
        View::Frames => views::frames(&files, args.format, out, style).map_err(output),
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
        View::Transactions => {
            let report = InspectReport::new(&files, &filter);
            views::transactions(&report, args.format, out, style).map_err(output)
        }
    }?;
    if files.was_restarted() {
        return Err(Failure::failed("the WAL was restarted while it was read: what was shown may mix two generations")
            .hint("run it again, or on a copy"));
    }
    Ok(())
}

fn rows(files: &Files, format: Format, filter: TableFilter, out: &mut dyn Write, style: Style) -> Result<(), Failure> {
    let (encoding, objects) = rows::before_first(files).map_or_else(
        |_| (crate::format::TextEncoding::Utf8, Vec::new()),
        |(encoding, catalogue)| (encoding, catalogue.rows().iter().filter_map(SchemaObject::of).collect()),
    );
    let mut sink = Filtered::new(RowWriter::new(format, out, style, encoding, objects), filter);
    let damage = each_transaction(files, &mut sink).map_err(|error| Failure::output(&error))?;
    for item in &damage {
        // A note beside the output; with stderr gone nobody reads it.
        let _ = writeln!(io::stderr(), "note: {item}");
    }
    match damage.iter().find(|item| item.is_loss()) {
        Some(_) if format == Format::Sql => Err(Failure::failed("the script is not complete")
            .hint("the notes above say which transactions are missing or uncertain")),
        _ => Ok(()),
    }
}

/// The WAL that was named, or the one beside the database if there is one.
fn wal_path(args: &InspectArgs) -> Option<PathBuf> {
    let beside = |database: &Path| {
        // SQLite names the WAL after the file that a symbolic link leads to.
        let mut name = std::fs::canonicalize(database).ok()?.into_os_string();
        name.push("-wal");
        Some(PathBuf::from(name)).filter(|path| path.exists())
    };
    args.wal.clone().or_else(|| args.database.as_deref().and_then(beside))
}
