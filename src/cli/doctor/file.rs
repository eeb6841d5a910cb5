//! The database file itself: whether it can be followed, and what its header and its log tell.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Failure, Finding, Level};
use crate::capture::{CaptureError, DatabaseFile};
use crate::cli::inspect;
use crate::schema::{Catalogue, Module};

/// The first and the last version of SQLite that can lose a restart of the log, and those between that were corrected.
const WAL_RESET_BUG: std::ops::RangeInclusive<u32> = 3_007_000..=3_051_002;
const WAL_RESET_CORRECTED: [u32; 2] = [3_044_006, 3_050_007];
/// The corrections of a release line have its first two numbers.
const LINE: u32 = 1000;

/// What the other looks need.
pub(super) struct Examined {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Whether the log holds something.
    pub(super) has_log: bool,
    pub(super) has_shm: bool,
    /// Whether another process has it open.
    pub(super) is_used: bool,
    /// `None` when the schema cannot be read.
    pub(super) catalogue: Option<Arc<Catalogue>>,
}

pub(super) fn examine(path: &Path, findings: &mut Vec<Finding>) -> Result<Examined, Failure> {
    let database = match DatabaseFile::open(path) {
        Ok(database) => Some(database),
        Err(error @ CaptureError::Open { .. }) => return Err(Failure::of(&error).hint(error.hint())),
        Err(error) => {
            findings.push(refusal(&error));
            None
        }
    };
    if let Some(pid) = database.as_ref().and_then(DatabaseFile::foreign_user) {
        findings.push(Finding::new(
            Level::Refused,
            "exclusive-locking",
            format!(
                "process {pid} holds the database in exclusive locking mode, or looks at it through another -shm file"
            ),
            "nobody else can read its log",
            CaptureError::Locked { path: path.to_owned() }.hint(),
        ));
    }
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let beside = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let wal = beside("-wal");
    let wal_bytes = std::fs::metadata(&wal).map_or(0, |metadata| metadata.len());
    let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len()) + wal_bytes;
    let is_used = database.as_ref().is_some_and(|database| database.other_user().is_some());
    let (has_log, has_shm) = (wal_bytes > 0, beside("-shm").exists());
    let mut examined = Examined { bytes, has_log, has_shm, is_used, catalogue: None, path };
    let files = match inspect::Files::open_readable(Some(&examined.path), (wal_bytes > 0).then_some(&*wal)) {
        Ok(files) => files,
        Err(error) if findings.is_empty() => {
            return Err(Failure::of(&error).hint("woodchuck inspect shows what is left"));
        }
        // What is wrong was said.
        Err(_) => return Ok(examined),
    };
    match inspect::catalogue(&files) {
        Ok(catalogue) => examined.catalogue = Some(catalogue),
        Err(error) => findings.push(Finding::new(
            Level::Refused,
            "unreadable-schema",
            format!("the schema cannot be read: {error}"),
            "without it no page can be told to belong to a table",
            "run PRAGMA integrity_check; woodchuck inspect shows what is left",
        )),
    }
    if let Some(version) = files.sqlite_version() {
        judge_version(version, findings);
        if let Some(catalogue) = &examined.catalogue {
            judge_fts5(version, catalogue, findings);
        }
    }
    if files.has_spilled() {
        findings.push(Finding::new(
            Level::Note,
            "cache-spill",
            "the log holds frames behind its last commit: a transaction that is larger than its page cache, or one that was rolled back",
            "such a transaction is in the log before it commits; it is taken when it does, and until then the log cannot begin anew",
            "nothing needs to be done; a larger PRAGMA cache_size, or smaller transactions, keep the log shorter",
        ));
    }
    Ok(examined)
}

fn refusal(error: &CaptureError) -> Finding {
    let (code, why) = match error {
        CaptureError::NotWal { .. } => ("not-wal", "changes are read from the write-ahead log, and there is none"),
        CaptureError::HardLinks { .. } => {
            ("hard-links", "SQLite names the log after the file's name: under two names there are two logs")
        }
        CaptureError::SharedFileSystem { .. } => {
            ("shared-file-system", "the log is kept together by memory that machines do not share")
        }
        CaptureError::Empty { .. } => ("empty", "there is nothing to attach to yet"),
        CaptureError::Truncated { .. } => ("truncated", "pages are missing"),
        CaptureError::NotADatabase { .. } => ("not-a-database", "its pages mean nothing"),
        _ => ("not-a-file", "only a regular file can be followed"),
    };
    Finding::new(Level::Refused, code, super::Failure::of(error).message, why, error.hint())
}

/// The first version whose FTS5 indexes were found sound beside later ones; see docs/operations.md.
const FTS5_SOUND_SINCE: u32 = 3_044_000;

fn judge_fts5(version: u32, catalogue: &Catalogue, findings: &mut Vec<Finding>) {
    let indexes = catalogue.virtual_tables().iter().filter(|table| table.module == Module::Fts5);
    for table in indexes.filter(|_| version < FTS5_SOUND_SINCE) {
        let finding = Finding::new(
            Level::Warning,
            "fts5-versions",
            format!("{} is an FTS5 index, and SQLite {} wrote this database last", table.name, version_text(version)),
            "an index that SQLite 3.43 or earlier writes can be damaged as soon as a later one writes it, too, and Woodchuck brings a later one",
            "use SQLite 3.46 or later in every program that writes the index",
        );
        findings.push(finding.of_table(&table.name));
    }
}

fn version_text(version: u32) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / LINE % LINE, version % LINE)
}

fn judge_version(version: u32, findings: &mut Vec<Finding>) {
    let text = version_text(version);
    let is_corrected = |since: &u32| version / LINE == since / LINE && version >= *since;
    if WAL_RESET_BUG.contains(&version) && !WAL_RESET_CORRECTED.iter().any(is_corrected) {
        findings.push(Finding::new(
            Level::Warning,
            "wal-reset-bug",
            format!("SQLite {text} wrote this database last"),
            "from 3.7.0 to 3.51.2 two connections that checkpoint and write at the same moment can, very rarely, damage the database; a \
             follower is one more that checkpoints. (Other programs may write it with other versions: the file names only the last.)",
            "use SQLite 3.51.3 or later, or the corrected 3.50.7 or 3.44.6, in every program that writes the database",
        ));
    }
}
