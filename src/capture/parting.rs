//! Keeps the log of a database from the file that takes its place.
//!
//! Our locks keep `-wal` alive after the application's last close, and a program that restores a backup right then knows nothing of it: whoever
//! opens the new file next would read the old file's frames over it. So, as soon as the name leads to another file or somebody else wrote to
//! this one, and nobody but us uses the log, the log loses its name. Connections keep what they have open; what is left to copy goes into the
//! old file later.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::CaptureError;
use super::database_file::{Companions, DatabaseFile, FileStamp};
use crate::format::{PageNo, PageSize};

/// What is known of the files, for the thread that is told of changes and for the one that owns the database.
#[derive(Debug)]
pub(super) struct Parting(Mutex<Parted>);

/// A file at rest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rested {
    stamp: FileStamp,
    page_size: PageSize,
    /// Of its first page.
    first: u64,
}

impl Rested {
    /// The file as it is now.
    pub(super) fn of(file: &DatabaseFile, page_size: PageSize) -> Result<Rested, CaptureError> {
        let stamp = file.stamp()?;
        Ok(Rested { stamp, page_size, first: first_page(file, page_size) })
    }

    pub(super) fn stamp(&self) -> FileStamp {
        self.stamp
    }

    pub(super) fn is_stamp(&self, stamp: FileStamp) -> bool {
        self.stamp == stamp
    }

    /// The same content, with another stamp.
    pub(super) fn at(&self, stamp: FileStamp) -> Rested {
        Rested { stamp, ..*self }
    }

    /// Whether a look tells that the file is another: it has another length or another first page. Most backups have.
    fn is_other(&self, file: &DatabaseFile) -> bool {
        let Ok(stamp) = file.stamp() else { return false };
        let is_other_content = || !stamp.is_as_long(&self.stamp) || first_page(file, self.page_size) != self.first;
        stamp != self.stamp && is_other_content()
    }
}

/// Of what stands on the first page; the same number for a page that cannot be read.
fn first_page(file: &DatabaseFile, page_size: PageSize) -> u64 {
    let mut hasher = DefaultHasher::new();
    file.read_page(PageNo::ONE, page_size).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug)]
struct Parted {
    /// `None` once the follower has let go of it.
    file: Option<DatabaseFile>,
    companions: Companions,
    /// The file when everything was in it and nobody could checkpoint: as long as that holds, SQLite does not write to it.
    rested: Option<Rested>,
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
    pub(super) fn rested(&self) -> Option<Rested> {
        self.lock().rested
    }

    /// Notes that the file is at rest, or is not any more.
    pub(super) fn rest(&self, rested: Option<Rested>) {
        self.lock().rested = rested;
    }

    /// Notes that what is in the file did not come from the log.
    pub(super) fn note_overwritten(&self) {
        self.lock().is_overwritten = true;
    }

    /// Whether that was noted.
    pub(super) fn is_overwritten(&self) -> bool {
        self.lock().is_overwritten
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
            // Where a look does not tell, who knows the file's pages compares them. A commit that the log has alone is lost with its name.
            let is_other = self.rested.is_some_and(|rested| rested.is_other(file) && file.has_all_of_log());
            (self.is_overwritten || is_other) && file.other_user().is_none()
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
