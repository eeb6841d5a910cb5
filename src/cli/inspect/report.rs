//! What `inspect` found, as plain data.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Part;
use super::files::Files;
use super::rows::each_from;
use crate::change::{ChangeSink, Op, RowChange, SchemaChange, TxSpan};
use crate::format::{AutoVacuum, DatabaseHeader, PageNo, ScanEnd, TextEncoding};
use crate::schema::TableFilter;

/// A database and its WAL.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectReport {
    /// The database file, if one was given.
    pub database: Option<DatabaseReport>,
    /// The WAL, if there is one with a header.
    pub wal: Option<WalReport>,
    /// Why nothing can be read from the WAL that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_unreadable: Option<String>,
    /// Committed transactions, oldest first.
    #[serde(skip)]
    pub transactions: Vec<TransactionReport>,
    /// Row changes by table, over all transactions.
    pub tables: BTreeMap<String, TableCounts>,
    /// What could not be shown, in words.
    pub damage: Vec<String>,
}

/// The header of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseReport {
    /// Its path.
    pub path: String,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Bytes in a page.
    pub page_size: u32,
    /// Bytes at the end of each page that hold no data.
    pub reserved_bytes: u8,
    /// Size of the database in pages, the WAL counted.
    pub page_count: u32,
    /// Pages on the freelist.
    pub freelist_pages: u32,
    /// `wal` or `rollback`.
    pub journal_mode: &'static str,
    /// `UTF-8`, `UTF-16le` or `UTF-16be`.
    pub encoding: &'static str,
    /// `none`, `full` or `incremental`.
    pub auto_vacuum: &'static str,
    /// Changes with the schema.
    pub schema_cookie: u32,
    /// The SQLite that wrote last, as `3.45.1`.
    pub sqlite_version: String,
}

/// A write-ahead log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalReport {
    /// Its path.
    pub path: String,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// The generation.
    pub salt: String,
    /// `little-endian` or `big-endian`.
    pub checksums: &'static str,
    /// How often the log was restarted, as its last writer counted.
    pub checkpoint_sequence: u32,
    /// Valid frames.
    pub frames: u32,
    /// Frames up to the last commit.
    pub committed_frames: u32,
    /// Committed transactions.
    pub transactions: u64,
    /// Pages that the committed frames hold versions of.
    pub changed_pages: u32,
    /// Of these, pages that the database file holds in a version from this WAL; `None` without the database.
    pub checkpointed_pages: Option<u32>,
    /// The frame behind the last valid one.
    pub end_frame: u32,
    /// Why the log ends there.
    pub end: &'static str,
    /// Whether that is more than an ordinary end.
    pub end_is_damage: bool,
    /// Older generations of which frames are left behind the end.
    pub stale: Vec<Generation>,
}

/// Frames of another generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// Its salts.
    pub salt: String,
    /// Its frames.
    pub frames: u32,
}

/// A committed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TransactionReport {
    /// Counts from 1 within the WAL.
    pub tx: u64,
    /// Its first frame.
    pub frame_first: u32,
    /// Its commit frame.
    pub frame_last: u32,
    /// Pages that it wrote.
    pub pages: u32,
    /// Size of the database after it, in pages.
    pub page_count: u32,
    /// Schema objects that it changed.
    pub schema_changes: u64,
    /// Row changes by table.
    pub tables: BTreeMap<String, TableCounts>,
}

/// Row changes of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TableCounts {
    /// Rows inserted.
    pub inserts: u64,
    /// Rows updated.
    pub updates: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Rows on changed pages of which it is not known what they were.
    pub unknown: u64,
}

impl InspectReport {
    /// Reads everything that the report tells; row changes of tables that `filter` names.
    #[must_use]
    pub fn new(files: &Files, filter: &TableFilter) -> InspectReport {
        InspectReport::from(files, 1, filter)
    }

    /// As [`InspectReport::new`], of a part of the WAL.
    pub(super) fn of_part(part: &Part<'_>, filter: &TableFilter) -> InspectReport {
        InspectReport::from(&part.files, part.first_tx, filter)
    }

    fn from(files: &Files, first_tx: u64, filter: &TableFilter) -> InspectReport {
        let commits = files.commits().iter().filter(|commit| commit.tx >= first_tx);
        let transactions: Vec<TransactionReport> = commits
            .map(|commit| TransactionReport {
                tx: commit.tx,
                frame_first: commit.first.0,
                frame_last: commit.last.0,
                pages: files.pages_of(commit).len() as u32,
                page_count: commit.page_count,
                schema_changes: 0,
                tables: BTreeMap::new(),
            })
            .collect();
        let mut counter = Counter { filter, transactions, tables: BTreeMap::new(), first_tx, current: 0 };
        let damage = match each_from(files, first_tx, &mut counter) {
            Ok(damage) => damage.iter().map(ToString::to_string).collect(),
            Err(never) => match never {},
        };
        InspectReport {
            database: database(files),
            wal: wal(files),
            wal_unreadable: files.wal_unreadable.clone(),
            transactions: counter.transactions,
            tables: counter.tables,
            damage,
        }
    }
}

fn database(files: &Files) -> Option<DatabaseReport> {
    let database = files.database.as_ref()?;
    let in_wal = files.commits().last().and_then(|commit| files.frame_at(PageNo::ONE, commit.last));
    let in_wal = in_wal.and_then(|frame| files.read_frame(frame).ok());
    let in_wal = in_wal.and_then(|page| DatabaseHeader::parse(&page).ok());
    let header = in_wal.as_ref().unwrap_or(&database.header);
    let version = header.sqlite_version;
    let in_file = u32::try_from(database.file_bytes / u64::from(header.page_size.get())).unwrap_or(u32::MAX);
    let own_count = if header.size_is_valid { header.page_count } else { in_file };
    Some(DatabaseReport {
        path: database.path.display().to_string(),
        file_bytes: database.file_bytes,
        page_size: header.page_size.get(),
        reserved_bytes: header.reserved,
        page_count: files.commits().last().map_or(own_count, |commit| commit.page_count),
        freelist_pages: header.freelist_count,
        journal_mode: if header.is_wal() { "wal" } else { "rollback" },
        encoding: match header.encoding {
            TextEncoding::Utf8 => "UTF-8",
            TextEncoding::Utf16Le => "UTF-16le",
            TextEncoding::Utf16Be => "UTF-16be",
        },
        auto_vacuum: match header.auto_vacuum {
            AutoVacuum::None => "none",
            AutoVacuum::Full => "full",
            AutoVacuum::Incremental => "incremental",
        },
        schema_cookie: header.schema_cookie,
        sqlite_version: format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000),
    })
}

fn wal(files: &Files) -> Option<WalReport> {
    let wal = files.wal.as_ref()?;
    let committed_frames = wal.commits.last().map_or(0, |commit| commit.last.0);
    let frames = wal.frames.len() as u32;
    let (end, end_is_damage) = match wal.end {
        ScanEnd::EndOfFile => ("end of file", false),
        ScanEnd::StaleSalts => ("a frame of an older generation", false),
        ScanEnd::NoPage => ("a frame that was never written", false),
        ScanEnd::PartialFrame => ("the file ends within a frame", true),
        ScanEnd::ChecksumMismatch => ("a frame whose checksum does not match", true),
    };
    let changed: std::collections::BTreeSet<_> =
        wal.frames.iter().take(committed_frames as usize).map(|frame| frame.page).collect();
    Some(WalReport {
        path: wal.path.display().to_string(),
        file_bytes: wal.file_bytes,
        salt: wal.header.salts.to_string(),
        checksums: match wal.header.order {
            crate::format::ByteOrder::Little => "little-endian",
            crate::format::ByteOrder::Big => "big-endian",
        },
        checkpoint_sequence: wal.header.checkpoint_seq,
        frames,
        committed_frames,
        transactions: wal.commits.len() as u64,
        changed_pages: changed.len() as u32,
        checkpointed_pages: files.database.as_ref().map(|_| wal.overwritten.len() as u32),
        end_frame: frames + 1,
        end,
        end_is_damage,
        stale: wal
            .stale
            .iter()
            .map(|run| Generation { salt: run.salts.to_string(), frames: run.last.0 - run.first.0 + 1 })
            .collect(),
    })
}

/// Counts changes instead of showing them.
struct Counter<'f> {
    filter: &'f TableFilter,
    transactions: Vec<TransactionReport>,
    tables: BTreeMap<String, TableCounts>,
    first_tx: u64,
    current: usize,
}

impl ChangeSink<std::convert::Infallible> for Counter<'_> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), std::convert::Infallible> {
        self.current = usize::try_from(span.tx.saturating_sub(self.first_tx)).unwrap_or(usize::MAX);
        Ok(())
    }

    fn schema(&mut self, _change: SchemaChange) -> Result<(), std::convert::Infallible> {
        if let Some(transaction) = self.transactions.get_mut(self.current) {
            transaction.schema_changes += 1;
        }
        Ok(())
    }

    fn change(&mut self, change: RowChange) -> Result<(), std::convert::Infallible> {
        if !self.filter.matches(&change.table.name) {
            return Ok(());
        }
        let transaction = self.transactions.get_mut(self.current).map(|transaction| &mut transaction.tables);
        for tables in transaction.into_iter().chain([&mut self.tables]) {
            if !tables.contains_key(&change.table.name) {
                tables.insert(change.table.name.clone(), TableCounts::default());
            }
            let Some(counts) = tables.get_mut(&change.table.name) else { continue };
            match (change.before_unknown, change.op) {
                (true, _) => counts.unknown += 1,
                (_, Op::Insert) => counts.inserts += 1,
                (_, Op::Update) => counts.updates += 1,
                (_, Op::Delete) => counts.deletes += 1,
            }
        }
        Ok(())
    }

    fn commit(&mut self, _span: &TxSpan, _changes: u64) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
}
