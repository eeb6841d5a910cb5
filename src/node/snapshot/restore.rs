//! A database made of a snapshot, with a state directory that lets a node go on from there.
//!
//! The order protects against dying in between: a mark first; then the new state, which knows the database that is to come; then the
//! database gets its name; then the mark goes. A node refuses to start while the mark is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::fetch::{Fetched, Wanted, ask_for_one, fetch};
use super::progress::{SnapshotProgress, SnapshotStep, TellSnapshot, tell_log};
use super::{set_wal, tables_text};
use crate::apply::{ApplyError, RowFilters, State, leave_out_rows, prepare_applying_connection};
use crate::capture::{
    CaptureError, DatabaseFile, FileIdentity, Follower, ShadowError, companion_of, user_of_log, write_shadow,
};
use crate::log::{JetStreamLog, SnapshotInfo, StreamOptions};
use crate::node::config::{NatsConfig, RunConfig};
use crate::node::error::NodeError;
use crate::node::network::{Patience, connect_log, stream_options};
use crate::node::policy::Verdict;
use crate::node::start::{WHERE, WHERE_OPEN, position_bytes, position_of};
use crate::node::state_dir::{StateDirectory, is_running};

/// The mark of a restore that has begun, in the state directory.
const MARK: &str = "restoring";
/// What the file is called beside the database until it is complete.
const PART_SUFFIX: &str = "-woodchuck-part";
/// How long nodes may take to come back to a server that did not answer: they try at least every few seconds.
const OTHERS_BACK_WITHIN: Duration = Duration::from_secs(20);
/// What a former state consists of.
const STATE_FILES: [&str; 12] = [
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "state.db-journal",
    "shadow.db",
    "shadow.db.tmp",
    "shadow.journal",
    "shadow.stamp",
    "durable",
    "sent",
    "sent.old",
    "status.json",
];

/// What to restore, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Restore {
    /// The database to make.
    pub db_path: PathBuf,
    /// The state directory to make.
    pub state_dir: PathBuf,
    /// The server.
    pub nats: NatsConfig,
    /// The streams.
    pub streams: StreamOptions,
    /// Whether a database that is there may be replaced.
    pub replace: bool,
    /// The tables of the node, as [`SnapshotInfo::tables`] has them; `None`: whatever the snapshot has.
    pub tables: Option<String>,
    /// Rows of a larger snapshot that are outside of these are left out.
    pub rows: RowFilters,
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a state directory that a restore has left unfinished.
pub(in crate::node) fn refuse_interrupted(state_dir: &Path) -> Result<(), NodeError> {
    match state_dir.join(MARK).exists() {
        true => Err(NodeError::RestoreInterrupted { path: state_dir.to_owned() }),
        false => Ok(()),
    }
}

/// Makes the database of a node that has none from the newest snapshot.
pub(in crate::node) async fn join(config: &RunConfig) -> Result<(), NodeError> {
    let restore_to = Restore {
        db_path: config.db_path.clone(),
        state_dir: config.state_dir.clone(),
        nats: config.nats.clone(),
        streams: stream_options(config),
        replace: false,
        tables: Some(tables_text(config)),
        rows: config.row_filters.clone(),
    };
    let mut patience = Patience::new("there is no database yet, trying again");
    let mut waited_at: Option<Instant> = None;
    let restored = loop {
        match restore(restore_to.clone(), &tell_log()).await {
            // As a node that has a database waits for its log.
            Err(error) if error.may_pass() => {
                patience.after(&error).await;
                waited_at = Some(Instant::now());
            }
            Err(error @ NodeError::NoSnapshot { .. })
                if waited_at.is_some_and(|waited_at| waited_at.elapsed() < OTHERS_BACK_WITHIN) =>
            {
                patience.after(&error).await;
            }
            restored => break restored,
        }
    };
    match restored {
        Ok(info) => {
            tracing::info!("{} did not exist: made from snapshot {}", config.db_path.display(), info.no);
            Ok(())
        }
        // Refusals and what names the database speak for themselves.
        Err(error)
            if error.verdict() == Verdict::Refused
                || matches!(error, NodeError::NoSnapshot { .. } | NodeError::NoFolder { .. }) =>
        {
            Err(error)
        }
        Err(error) => Err(NodeError::CannotBegin { path: config.db_path.clone(), source: Box::new(error) }),
    }
}

/// Restores the newest snapshot. Where there is none, a running node is asked to make one. `tell` hears how far it is.
///
/// # Errors
/// [`NodeError`]. Until everything was fetched and checked nothing is changed.
pub async fn restore(mut what: Restore, tell: &TellSnapshot) -> Result<SnapshotInfo, NodeError> {
    if let Ok(path) = fs::canonicalize(&what.db_path) {
        what.db_path = path;
    }
    let checked = what.clone();
    // Fetching takes its time: what is written meanwhile must be noticed, and no node may start.
    let (directory, stamp) = blocking(move || {
        check_before(&checked)?;
        Ok((lock_state(&checked)?, Stamp::of(&checked.db_path)))
    })
    .await?;
    let log = connect_log(&what.nats, what.streams.clone(), 0).await?;
    let part = companion_of(&what.db_path, PART_SUFFIX);
    let fetched = fetch_or_ask(&log, &what, &part, tell).await?;
    let info = fetched.info.clone();
    let bytes = info.database_bytes;
    tell(SnapshotProgress { step: SnapshotStep::Check, done_bytes: bytes, total_bytes: bytes });
    let to = what.clone();
    blocking(move || put_in_place(&to, &fetched, directory, &stamp)).await.map(|()| info)
}

/// Restores a snapshot that is here already.
pub(in crate::node) fn restore_fetched(what: &Restore, fetched: &Fetched) -> Result<(), NodeError> {
    check_before(what)?;
    let directory = lock_state(what)?;
    put_in_place(what, fetched, directory, &Stamp::of(&what.db_path))
}

/// When a database and its log were last written, and to which length.
#[derive(Debug, PartialEq, Eq)]
struct Stamp([Option<(u64, Option<SystemTime>)>; 2]);

impl Stamp {
    fn of(path: &Path) -> Stamp {
        // An empty log is as good as none.
        let stamp = |path: PathBuf| {
            let metadata = fs::metadata(path).ok().filter(|metadata| metadata.len() > 0)?;
            Some((metadata.len(), metadata.modified().ok()))
        };
        Stamp([stamp(path.to_owned()), stamp(companion_of(path, "-wal"))])
    }
}

/// Locks the former state, if there is one: without one nothing is made before everything is fetched.
fn lock_state(what: &Restore) -> Result<Option<StateDirectory>, NodeError> {
    what.state_dir.exists().then(|| StateDirectory::open(&what.state_dir)).transpose()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(NodeError::Ended("restore")))
}

async fn fetch_or_ask(
    log: &JetStreamLog,
    what: &Restore,
    part: &Path,
    tell: &TellSnapshot,
) -> Result<Fetched, NodeError> {
    let wanted = Wanted { at_least: BTreeMap::new(), tables: what.tables.clone() };
    if let Some(fetched) = fetch(log, &wanted, part, tell).await? {
        return Ok(fetched);
    }
    if ask_for_one(log, &wanted, tell).await?
        && let Some(fetched) = fetch(log, &wanted, part, tell).await?
    {
        return Ok(fetched);
    }
    Err(NodeError::NoSnapshot { path: what.db_path.clone() })
}

/// What must hold before anything is fetched.
fn check_before(what: &Restore) -> Result<(), NodeError> {
    let running = is_running(&what.state_dir).map_err(|source| NodeError::StateDirectory {
        path: what.state_dir.clone(),
        what: "cannot look at the lock file",
        source,
    })?;
    if running {
        return Err(NodeError::AlreadyRunning { path: what.state_dir.clone() });
    }
    let is_interrupted = refuse_interrupted(&what.state_dir).is_err();
    if !what.db_path.exists() {
        let folder = folder_of(&what.db_path);
        if !folder.is_dir() {
            return Err(NodeError::NoFolder { path: folder.to_owned() });
        }
        if let Some(pid) = user_of_log(&what.db_path) {
            return Err(NodeError::InUse { path: what.db_path.clone(), pid: Some(pid) });
        }
        return if is_interrupted { Ok(()) } else { refuse_unpublished(what) };
    }
    if !what.replace {
        return Err(NodeError::Exists { path: what.db_path.clone() });
    }
    if is_interrupted {
        return Ok(());
    }
    let file = DatabaseFile::open(&what.db_path).map_err(|error| not_replaceable(&what.db_path, error.into()))?;
    if !file.claim() {
        return Err(NodeError::AlreadyAttached { path: file.path().to_owned() });
    }
    if let Some(pid) = file.other_user() {
        return Err(NodeError::InUse { path: what.db_path.clone(), pid: Some(pid) });
    }
    refuse_unpublished(what)?;
    refuse_uncaptured(what).map_err(|error| not_replaceable(&what.db_path, error))
}

/// Says what can be done about a database that cannot be read; other errors stay as they are.
fn not_replaceable(path: &Path, error: NodeError) -> NodeError {
    let is_damaged = match &error {
        NodeError::Capture(error) => error.is_of_content(),
        NodeError::Apply(ApplyError::Database { source, .. }) => matches!(
            source.sqlite_error_code(),
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
        ),
        _ => false,
    };
    if is_damaged { NodeError::NotReplaceable { path: path.to_owned(), source: Box::new(error) } } else { error }
}

/// Refuses while the former state holds changes that nobody else has.
fn refuse_unpublished(what: &Restore) -> Result<(), NodeError> {
    let path = what.state_dir.join("state.db");
    if !path.exists() {
        return Ok(());
    }
    let units = State::look(&path)?.backlog()?.units;
    if units > 0 { Err(NodeError::Unpublished { path: what.db_path.clone() }) } else { Ok(()) }
}

/// Refuses while the database holds changes that its state does not know.
fn refuse_uncaptured(what: &Restore) -> Result<(), NodeError> {
    let path = what.state_dir.join("state.db");
    if !path.exists() {
        return Ok(());
    }
    let Some((position, _)) = position_of(&State::look(&path)?.capture_position()?) else { return Ok(()) };
    let mut follower = Follower::attach_with_shadow(&what.db_path, &what.state_dir, Some(position), &mut |_| {
        ControlFlow::Continue(())
    })?;
    let has_more = follower.has_uncaptured();
    match follower.detach() {
        // That was found, and means the same.
        Err(CaptureError::Overwritten { .. }) => return Err(NodeError::Unpublished { path: what.db_path.clone() }),
        detached => detached?,
    }
    match has_more {
        Ok(false) => Ok(()),
        Ok(true) => Err(NodeError::Unpublished { path: what.db_path.clone() }),
        // The log was cut behind our position: what it lost cannot be published, and the others have it.
        Err(CaptureError::Shadow(ShadowError::WentBack { .. })) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Checks what was fetched, makes the state that belongs to it, and gives the database its name.
fn put_in_place(
    what: &Restore,
    fetched: &Fetched,
    directory: Option<StateDirectory>,
    stamp: &Stamp,
) -> Result<(), NodeError> {
    let part = &fetched.path;
    check_integrity(part)?;
    leave_out(part, &what.rows)?;
    let fail = |doing| {
        let path = what.db_path.clone();
        move |source| NodeError::StateDirectory { path, what: doing, source }
    };
    let file = File::options().read(true).write(true).open(part).map_err(fail("cannot open what was fetched"))?;
    set_wal(&file, true).map_err(fail("cannot write what was fetched"))?;
    if let Ok(old) = fs::metadata(&what.db_path) {
        file.set_permissions(old.permissions()).map_err(fail("cannot set the permissions"))?;
    }
    file.sync_all().map_err(fail("cannot sync what was fetched"))?;
    let metadata = file.metadata().map_err(fail("cannot look at what was fetched"))?;
    let identity = FileIdentity::of(&metadata);
    // From here on nobody else can open the database that is replaced.
    let replaced = lock_out(&what.db_path, what.replace, stamp)?;
    let directory = match directory {
        Some(directory) => directory,
        None => StateDirectory::open(&what.state_dir)?,
    };
    let fail_state = |doing| {
        let path = what.state_dir.clone();
        move |source| NodeError::StateDirectory { path, what: doing, source }
    };
    let mark = File::create(directory.file(MARK)).map_err(fail_state("cannot mark the beginning"))?;
    mark.sync_all().and_then(|()| sync_directory(&what.state_dir)).map_err(fail_state("cannot mark the beginning"))?;
    for name in STATE_FILES {
        match fs::remove_file(directory.file(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(fail_state("cannot remove the former state")(error));
            }
            _ => {}
        }
    }
    let position = write_shadow(&what.state_dir, part, identity).map_err(CaptureError::Shadow)?;
    let name = what.db_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let position = position_bytes(&position, 1);
    let to = (&fetched.manifest.stand, &fetched.manifest.routing, fetched.manifest.names.as_slice());
    let state = State::create_at(&directory.file("state.db"), &name, to, &position)?;
    state.setting_or("shards", &what.streams.shard_count.to_be_bytes())?;
    state.setting_or("joined", b"")?;
    // A node with a filter may begin with more than it wants, and with nothing else.
    let rows = rows_of(&fetched.info.tables);
    match (rows.is_empty(), what.rows.is_empty()) {
        (true, true) => drop(state.setting_or(WHERE_OPEN, b"")?),
        (true, false) => drop(state.setting_or(WHERE, what.rows.text().as_bytes())?),
        (false, _) => drop(state.setting_or(WHERE, rows.as_bytes())?),
    }
    state.sync()?;
    drop(state);
    sync_directory(&what.state_dir).map_err(fail_state("cannot sync the directory"))?;
    if replaced.is_none() {
        set_log_aside(&what.db_path).map_err(fail("cannot move away the log of a database that is gone"))?;
    }
    match &replaced {
        Some(_) => fs::rename(part, &what.db_path),
        // An application may make a database of its own at any moment.
        None => renameat_with(CWD, part, CWD, &what.db_path, RenameFlags::NOREPLACE).map_err(Into::into),
    }
    .map_err(fail("cannot name the database"))?;
    sync_directory(folder_of(&what.db_path)).map_err(fail("cannot sync the directory"))?;
    drop(replaced);
    fs::remove_file(directory.file(MARK)).map_err(fail_state("cannot remove the mark"))?;
    Ok(())
}

/// Takes the name away from a log whose database is gone: it would be taken for that of the new one. SQLite throws it away in such a case; here
/// it is kept, for nobody else has what is in it.
fn set_log_aside(database: &Path) -> std::io::Result<()> {
    let (log, index) = (companion_of(database, "-wal"), companion_of(database, "-shm"));
    match fs::metadata(&log) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if found.len() == 0 => fs::remove_file(&log)?,
        Ok(found) => {
            let kept = companion_of(database, &format!("-wal-of-{}", found.ino()));
            fs::rename(&log, &kept)?;
            tracing::warn!("{}: the log of a database that is gone is now {}", log.display(), kept.display());
        }
    }
    match fs::remove_file(&index) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Locks a database for good, empties its log and makes it one file, so that nothing of it can be taken for its successor's. `None` when
/// there is no database. Refuses one that has come or was written to since it was looked at.
fn lock_out(path: &Path, replace: bool, stamp: &Stamp) -> Result<Option<Connection>, NodeError> {
    if !path.exists() {
        return Ok(None);
    }
    if !replace {
        return Err(NodeError::Exists { path: path.to_owned() });
    }
    let lock = || -> rusqlite::Result<Option<Connection>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(std::time::Duration::ZERO)?;
        conn.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        // The first look takes the lock.
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        if Stamp::of(path) != *stamp {
            return Ok(None);
        }
        let mode: String = conn.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0))?;
        conn.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
        Ok((mode == "delete").then_some(conn))
    };
    let in_use = || NodeError::InUse { path: path.to_owned(), pid: None };
    match lock() {
        Ok(Some(conn)) => Ok(Some(conn)),
        Ok(None) => Err(in_use()),
        Err(error)
            if matches!(
                error.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
            ) =>
        {
            Err(in_use())
        }
        Err(source) => {
            let error = ApplyError::Database { doing: "locking the database that is replaced", source };
            Err(not_replaceable(path, error.into()))
        }
    }
}

/// The filters in what [`SnapshotInfo::tables`] says; empty for none.
fn rows_of(tables: &str) -> &str {
    tables.strip_prefix("where ").or_else(|| tables.split_once(" where ").map(|(_, rows)| rows)).unwrap_or("")
}

/// Leaves out of what was fetched the rows that this node does not replicate.
fn leave_out(part: &Path, rows: &RowFilters) -> Result<(), NodeError> {
    if rows.is_empty() {
        return Ok(());
    }
    let doing = |source| ApplyError::Database { doing: "leaving rows out of a snapshot", source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(part, flags).map_err(doing)?;
    prepare_applying_connection(&copy)?;
    copy.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(())).map_err(doing)?;
    Ok(leave_out_rows(&copy, rows)?)
}

/// Lets SQLite look through the whole file.
fn check_integrity(path: &Path) -> Result<(), NodeError> {
    let check = || -> rusqlite::Result<String> {
        let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        conn.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
    };
    match check() {
        Ok(said) if said == "ok" => Ok(()),
        Ok(said) => Err(NodeError::BadSnapshot { path: path.to_owned(), said }),
        // A collation or a function of the application's: SQLite cannot check such a database, and its hash is right.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown) => {
            tracing::warn!("SQLite cannot check the restored database here: {error}");
            Ok(())
        }
        Err(source) => Err(ApplyError::Database { doing: "checking the restored database", source }.into()),
    }
}
