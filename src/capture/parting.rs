//! Keeps the log of a database from the file that takes its place.
//!
//! Our locks keep `-wal` alive after the application's last close, and a program that restores a backup right then knows nothing of it: whoever
//! opens the new file next would read the old file's frames over it. So, as soon as the name leads to another file or somebody else wrote to
//! this one, and nobody but us uses the log, the log loses its name. Connections keep what they have open; what is left to copy goes into the
//! old file later.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::database_file::{Companions, DatabaseFile, FileStamp};

/// What is known of the files, for the thread that is told of changes and for the one that owns the database.
#[derive(Debug)]
pub(super) struct Parting(Mutex<Parted>);

#[derive(Debug)]
struct Parted {
    /// `None` once the follower has let go of it.
    file: Option<DatabaseFile>,
    companions: Companions,
    /// The file when everything was in it and nobody could checkpoint: as long as that holds, SQLite does not write to it.
    rested: Option<FileStamp>,
    /// What is in the file did not come from the log.
    is_overwritten: bool,
    /// Where the log is.
    aside: Option<PathBuf>,
}

impl Parting {
    pub(super) fn new(file: DatabaseFile, companions: Companions) -> Parting {
        Parting(Mutex::new(Parted { file: Some(file), companions, rested: None, is_overwritten: false, aside: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Parted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file as it was when it came to rest, as long as it rests.
    pub(super) fn rested(&self) -> Option<FileStamp> {
        self.lock().rested
    }

    /// Notes that the file is at rest, or is not any more.
    pub(super) fn rest(&self, stamp: Option<FileStamp>) {
        self.lock().rested = stamp;
    }

    /// Notes that what is in the file did not come from the log.
    pub(super) fn note_overwritten(&self) {
        self.lock().is_overwritten = true;
    }

    /// Takes the log's name away if the file is not the one that it belongs to. To be called whenever the directory has changed; costs a look
    /// at three names.
    pub(super) fn look(&self) {
        self.lock().part();
    }

    /// Whether the log has lost its name.
    pub(super) fn has_parted(&self) -> bool {
        self.lock().aside.is_some()
    }

    /// As [`Parting::look`], for the last time. Where the log is, if it has lost its name.
    pub(super) fn end(&self) -> Option<PathBuf> {
        let mut parted = self.lock();
        parted.part();
        // The descriptor is the follower's alone again.
        parted.file = None;
        parted.aside.take()
    }
}

impl Parted {
    fn part(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.aside.is_none()) else { return };
        let is_foreign = if file.is_in_place() {
            let is_as_it_was = self.rested.is_none_or(|rested| file.stamp().is_ok_and(|stamp| stamp == rested));
            // A commit that the log has alone is lost with its name: then who reads the file tells.
            let is_foreign = self.is_overwritten || (!is_as_it_was && file.has_all_of_log());
            is_foreign && file.other_user().is_none()
        } else {
            // Without a successor the log stays beside the place where the file was: it may come back.
            file.path().exists()
        };
        if !is_foreign || file.companions() != self.companions || file.shm_user().is_some() {
            return;
        }
        let name = format!("-wal-of-{}", file.identity().inode);
        let aside = file.companion(&name);
        // The log goes first: an index without one is an error to whoever opens the file between the two, the other way round it is read.
        if std::fs::rename(file.companion("-wal"), &aside).is_ok() {
            let _ = std::fs::remove_file(file.companion("-shm"));
            self.aside = Some(aside);
        }
    }
}
