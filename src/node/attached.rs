//! What a node holds of the user's database: the follower, the applying connection, the watcher. All of it belongs to one file, and goes
//! when another file takes the name.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{Notify, watch};

use super::boot::DurableNote;
use super::config::{Durability, RunConfig};
use super::database::Stop;
use super::error::NodeError;
use super::report::Told;
use crate::apply::{ApplyError, Replica, open_applying_connection};
use crate::capture::{CaptureError, CheckpointOptions, DatabaseFile, FileStamp, Follower, Position, Waker};

/// How long the watcher rests after a notification: a large commit brings one for each page, and what comes meanwhile is one for the system.
const WAKE_REST: Duration = Duration::from_micros(200);
/// How long a file that nobody has open must rest before it counts as whole: it may still be being copied.
const WHOLE_AFTER: Duration = Duration::from_secs(2);

/// Everything that is attached to one database file.
pub(super) struct Attached {
    pub(super) follower: Follower,
    pub(super) connection: Connection,
    /// The last frame of our own last commit.
    pub(super) own_frames: Arc<AtomicU32>,
    /// The machine was started anew while a node worked on the state directory: what it wrote last may not be on disk.
    pub(super) is_rebooted: bool,
    /// Indexes that are not kept, as they were told.
    not_kept: BTreeSet<String>,
    pub(super) waker: Waker,
}

impl Attached {
    /// Attaches to what is under the database's name, at `position` (`None`: at what is committed now, with a new shadow).
    ///
    /// # Errors
    /// [`NodeError::Capture`] when the file cannot be followed.
    pub(super) fn open(
        config: &RunConfig,
        position: Option<Position>,
        wake: &Arc<Notify>,
        stop: &watch::Receiver<Stop>,
    ) -> Result<Attached, NodeError> {
        let mut told = Told::new(stop);
        let mut follower =
            Follower::attach_with_shadow(&config.db_path, &config.state_dir, position, &mut |step| told.tell(step))?;
        let log_of_state = config.state_dir.join("state.db-wal");
        let fail = |source| NodeError::StateDirectory {
            path: config.state_dir.clone(),
            what: "cannot note what is on disk",
            source,
        };
        let note = DurableNote::new(&config.state_dir).map_err(fail)?;
        let rebooted = note.rebooted_since().map_err(fail)?;
        if let Some(durable) = rebooted {
            follower.set_rebooted(durable);
        }
        follower.set_durable_hook(Box::new(move |position| {
            sync_if_there(&log_of_state)?;
            note.write(position)
        }));
        follower.set_sync_interval(config.capture.sync_interval);
        follower.set_accept_restored(config.accept_restored);
        follower.set_checkpoint_options(CheckpointOptions {
            passive_frames: config.capture.checkpoint_frames,
            wal_bytes_max: config.capture.wal_bytes_max.unwrap_or(u64::MAX),
            may_block_writers: config.capture.wal_bytes_max.is_some(),
        });
        for damage in follower.damage() {
            tracing::warn!("a tree of the database cannot be read: {damage}");
        }
        for table in follower.catalogue().virtual_tables() {
            if follower.catalogue().written_table(&table.name).is_none() && !table.is_index() {
                let (name, module) = (&table.name, &table.module_name);
                tracing::warn!("virtual table {name} ({module}) does not replicate; all other tables do");
            }
        }

        let mut connection = open_applying_connection(follower.file().path())?;
        let own_frames = Arc::new(AtomicU32::new(0));
        let frames = Arc::clone(&own_frames);
        let fail = |doing| move |source| ApplyError::Database { doing, source };
        connection
            .wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: std::ffi::c_int| {
                frames.store(u32::try_from(pages).unwrap_or(0), Ordering::SeqCst);
                Ok(())
            }))
            .map_err(fail("asking to be told of own commits"))?;
        if config.capture.durability == Durability::Strict {
            connection.pragma_update(None, "synchronous", "FULL").map_err(fail("asking for durable commits"))?;
        }
        let not_kept = BTreeSet::new();
        let wake = Arc::clone(wake);
        let waker = Waker::new(&follower, move || {
            wake.notify_one();
            std::thread::sleep(WAKE_REST);
        })?;
        Ok(Attached { follower, connection, own_frames, is_rebooted: rebooted.is_some(), not_kept, waker })
    }

    /// Has the connection keep the indexes of the tables as they are now. Belongs in each transaction before rows are written.
    pub(super) fn keep_indexes(&mut self, replica: &mut Replica) -> Result<(), ApplyError> {
        for index in replica.keep_indexes(&self.connection, self.follower.catalogue())? {
            if !self.not_kept.contains(&index) {
                tracing::warn!("index {index} is not kept in step with what other nodes write");
                self.not_kept.insert(index);
            }
        }
        Ok(())
    }

    /// Whether `error` came because the file is not the one that was attached, or its content not what SQLite wrote.
    pub(super) fn has_lost_file(&self, error: &NodeError) -> bool {
        let told = match error {
            NodeError::Capture(CaptureError::Replaced { .. } | CaptureError::Overwritten { .. }) => true,
            // It was one when it was attached.
            NodeError::Capture(CaptureError::Sqlite { source, .. })
            | NodeError::Apply(ApplyError::Database { source, .. })
                if source.sqlite_error_code() == Some(ErrorCode::NotADatabase) =>
            {
                self.follower.note_overwritten();
                true
            }
            // Or one that something else writes into is no database for the moment.
            _ => matches!(self.follower.refuse_other_content(), Err(CaptureError::Overwritten { .. })),
        };
        told || !self.follower.file().is_in_place()
    }

    /// Lets go of a file that has lost its name or its content, without writing to it.
    pub(super) fn abandon(self) {
        drop(self.connection);
        let path = self.follower.file().path().to_owned();
        if let Some(log) = self.follower.abandon() {
            tracing::warn!(
                "{}: commits that were not read when the file was overwritten are in {}",
                path.display(),
                log.display()
            );
        }
    }

    /// Lets go of the database; see [`Follower::detach`].
    pub(super) fn detach(self) -> Result<(), CaptureError> {
        // Ours goes first: the last connection to close tidies up.
        drop(self.connection);
        self.follower.detach()
    }
}

/// Syncs the log of `state.db`. Without one everything is in the file, and was synced there.
fn sync_if_there(log: &Path) -> std::io::Result<()> {
    match std::fs::File::open(log) {
        Ok(log) => log.sync_data(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits until what is under a database's name is a whole database again.
#[derive(Debug, Default)]
pub(super) struct Successor {
    seen: Option<(FileStamp, Instant)>,
}

impl Successor {
    /// Looks once. `None` when there is a file to attach, else what is being waited for.
    ///
    /// # Errors
    /// [`CaptureError`] when the file is there and waiting will not help.
    pub(super) fn look(&mut self, path: &Path) -> Result<Option<String>, CaptureError> {
        let file = match DatabaseFile::open(path) {
            Ok(file) => file,
            Err(error) if may_pass(&error) => {
                self.seen = None;
                return Ok(Some(format!("{error}; {}", error.hint())));
            }
            Err(error) => return Err(error),
        };
        // An application that has it open would not be running on half a file.
        if file.other_user().is_some() {
            return Ok(None);
        }
        let stamp = file.stamp()?;
        match self.seen {
            Some((before, since)) if before == stamp && since.elapsed() >= WHOLE_AFTER => return Ok(None),
            Some((before, _)) if before == stamp => {}
            _ => self.seen = Some((stamp, Instant::now())),
        }
        Ok(Some(format!("{}: waiting for the file to be whole", path.display())))
    }
}

/// What a file that is being put in place can look like.
fn may_pass(error: &CaptureError) -> bool {
    matches!(
        error,
        CaptureError::Open { .. }
            | CaptureError::Empty { .. }
            | CaptureError::Truncated { .. }
            | CaptureError::NotADatabase { .. }
            | CaptureError::NotWal { .. }
            | CaptureError::HardLinks { .. }
    )
}
