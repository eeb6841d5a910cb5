//! `inspect --follow` and `tail --raw`: following a WAL by its bytes alone. No SQLite, no lock, no shared memory: it works beside an
//! application that holds its database alone, on media that cannot be written, and with other engines that write this format.
//!
//! What keeps others honest is missing, too: nothing keeps a WAL from beginning anew before it was read to its end. Where that may have
//! happened is said, and what is shown afterwards is right again.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::files::{Files, OpenError};
use super::rows::{Damage, Reader, State};
use crate::change::{ChangeSink, Differ, RowChange, SchemaChange, TxSpan};
use crate::cli::Failure;
use crate::cli::args::Format;
use crate::cli::output::{Filtered, RowWriter, SchemaObject, Style, printable};
use crate::cli::tail::note;
use crate::format::TextEncoding;
use crate::schema::{RowFilters, TableFilter};

/// How long nothing is asked: a restart within that time can hide what was committed before it.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// What is not committed is read anew at each look: a look that takes long is followed by a rest of so many times as long, so that a large open
/// transaction costs a quarter of a core at most.
const REST_FACTOR: u32 = 3;
/// Looks at files that do not belong together, or are just being made, before that is an error.
const OPEN_LOOKS_MAX: u32 = 200;

/// What to follow, and how to show it.
pub(in crate::cli) struct Follow<'a> {
    pub(in crate::cli) database: Option<&'a Path>,
    pub(in crate::cli) wal: PathBuf,
    pub(in crate::cli) format: Format,
    pub(in crate::cli) filter: TableFilter,
    pub(in crate::cli) rows: RowFilters,
    /// Shows what is in the WAL at the beginning, too.
    pub(in crate::cli) from_start: bool,
}

type Rows<'o> = Filtered<RowWriter<&'o mut dyn Write>>;

/// Follows until `stop` is true or nobody reads any more.
///
/// # Errors
/// Files that cannot be read; failures of the output.
pub(in crate::cli) fn follow(
    what: &Follow<'_>,
    out: &mut dyn Write,
    style: Style,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    if what.format == Format::Sql {
        return Err(Failure::usage(
            "a script has to repeat every change, and who reads bytes alone cannot promise that",
        )
        .hint("use --format pretty or json"));
    }
    let mut files = what.open(stop)?;
    let writer = RowWriter::new(what.format, out, style, TextEncoding::Utf8, Vec::<SchemaObject>::new());
    let mut rows = Filtered::new(writer, what.filter.clone(), what.rows.clone());
    let mut reader = if what.from_start { Reader::default() } else { Reader::at_end(&files) };
    let mut shown = if what.from_start { 0 } else { files.commits().len() as u64 };
    // Said when the place is known: whoever reads it may write, and it is shown.
    let path = what.database.unwrap_or(what.wal.as_path());
    note(format_args!("following {} by its bytes alone (Ctrl-C ends)", path.display()));
    loop {
        // Asked before the look: what was committed before the signal is still shown.
        let stopping = stop.load(Ordering::Relaxed);
        let begun = Instant::now();
        let was_restarted = files.was_restarted();
        let is_gone = !files.is_in_place();
        let is_replaced = !files.is_database_in_place();
        // A file that has lost its name is still there for who has it open, to its end.
        files.read_on(was_restarted).map_err(|error| unreadable(&what.wal, &error))?;
        let took = begun.elapsed();
        let is_whole = what.show(&files, was_restarted, &mut reader, shown, &mut rows)?;
        shown = files.commits().len() as u64;
        if !is_whole {
            gap(&mut rows, "the WAL began anew while it was read: transactions are missing or not whole here")?;
        }
        if is_replaced {
            gap(&mut rows, "another database is under the name now")?;
            (files, reader, shown) = (what.open(stop)?, Reader::default(), 0);
        } else if was_restarted || is_gone || (files.wal.is_none() && what.has_wal()) {
            let missed = if is_gone && !was_restarted { false } else { files.wal.is_some() && files.may_have_missed() };
            if missed {
                gap(&mut rows, "the WAL began anew before it was read to its end: transactions may be missing here")?;
                reader = Reader::default();
            }
            let next = what.open(stop)?;
            if missed || !reader.stands_before(&next) {
                reader = Reader::default();
            }
            (files, shown) = (next, 0);
        } else if stopping {
            return Ok(());
        } else {
            std::thread::sleep(LOOK_INTERVAL.max(took * REST_FACTOR));
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format_args!("cannot read {}: {error}", path.display()))
}

fn gap(rows: &mut Rows<'_>, why: &str) -> Result<(), Failure> {
    rows.inner().gap(why).map_err(|error| Failure::output(&error))
}

impl Follow<'_> {
    fn has_wal(&self) -> bool {
        std::fs::metadata(&self.wal).is_ok_and(|meta| meta.len() > 0)
    }

    /// Opens what is there. A WAL that is not there yet, or is just being made, is none.
    fn open(&self, stop: &AtomicBool) -> Result<Files, Failure> {
        let mut looks = 0;
        loop {
            let wal = self.has_wal().then_some(self.wal.as_path());
            let opened = match (self.database, wal) {
                (None, None) => Err(OpenError::Read { path: self.wal.clone(), source: io::ErrorKind::NotFound.into() }),
                (database, wal) => Files::open(database, wal),
            };
            match opened {
                Ok(files) => return Ok(files),
                Err(error) if looks >= OPEN_LOOKS_MAX || stop.load(Ordering::Relaxed) => {
                    return Err(
                        Failure::of(&error).hint("a SQLite database in WAL mode is wanted, or its log with --wal")
                    );
                }
                Err(_) => {
                    looks += 1;
                    std::thread::sleep(LOOK_INTERVAL);
                }
            }
        }
    }

    /// Shows what came. Whether all of it could be shown.
    fn show(
        &self,
        files: &Files,
        was_restarted: bool,
        reader: &mut Reader,
        shown: u64,
        rows: &mut Rows<'_>,
    ) -> Result<bool, Failure> {
        let mut held = Held { files, was_restarted, rows, waiting: Vec::new(), is_open: false, is_lost: false };
        let damage = reader.read(files, shown + 1, &mut held).map_err(|error| Failure::output(&error))?;
        let is_lost = held.is_lost;
        for item in &damage {
            // A note beside the output; with stderr gone nobody reads it.
            let _ = writeln!(io::stderr(), "note: {}", printable(&item.to_string()));
        }
        if is_lost {
            // What it knows may come from pages that are younger.
            *reader = Reader::default();
        }
        Ok(!is_lost && !damage.iter().any(Damage::is_loss))
    }
}

/// Row changes of a transaction that are kept until it is sure that they were read from one generation. A larger one is shown as it is read.
const HELD_CHANGES_MAX: usize = 10_000;

/// Holds a transaction back until it is known that nothing it was read from was overwritten in the meantime.
struct Held<'h, 'o> {
    files: &'h Files,
    /// It was known before that another generation has begun: what was overwritten is counted as not known.
    was_restarted: bool,
    rows: &'h mut Rows<'o>,
    waiting: Vec<Event>,
    /// The transaction's beginning is shown.
    is_open: bool,
    is_lost: bool,
}

enum Event {
    Begin(TxSpan),
    Schema(SchemaChange),
    Change(RowChange),
}

impl Held<'_, '_> {
    fn let_go(&mut self) -> io::Result<()> {
        for event in std::mem::take(&mut self.waiting) {
            match event {
                Event::Begin(span) => self.rows.begin(&span)?,
                Event::Schema(change) => self.rows.schema(change)?,
                Event::Change(change) => self.rows.change(change)?,
            }
        }
        self.is_open = true;
        Ok(())
    }

    fn push(&mut self, event: Event) -> io::Result<()> {
        self.waiting.push(event);
        if self.is_open || self.waiting.len() > HELD_CHANGES_MAX { self.let_go() } else { Ok(()) }
    }
}

impl ChangeSink<io::Error> for Held<'_, '_> {
    fn begin(&mut self, span: &TxSpan) -> io::Result<()> {
        (self.is_open, self.waiting) = (false, Vec::new());
        self.push(Event::Begin(*span))
    }

    fn schema(&mut self, change: SchemaChange) -> io::Result<()> {
        self.push(Event::Schema(change))
    }

    fn change(&mut self, change: RowChange) -> io::Result<()> {
        self.push(Event::Change(change))
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> io::Result<()> {
        self.is_lost |= !self.was_restarted && self.files.was_restarted();
        if self.is_lost && !self.is_open {
            self.waiting.clear();
            return Ok(());
        }
        self.let_go()?;
        self.rows.commit(span, changes)
    }
}

impl Reader {
    /// Whether the schema is what the reader knows: else something happened that was not seen.
    fn stands_before(&self, files: &Files) -> bool {
        let Some(known) = self.header() else { return false };
        let first = files.commits().first().map_or_else(|| State::last(files), |commit| State::before(files, commit));
        Differ::open(&first).is_ok_and(|now| now.header().schema_cookie == known.schema_cookie)
    }
}
