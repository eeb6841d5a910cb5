//! The state directory: ours alone, locked while a node runs.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use super::error::NodeError;

/// An open, locked state directory.
#[derive(Debug)]
pub(super) struct StateDirectory {
    path: PathBuf,
    lock: File,
}

impl StateDirectory {
    /// Makes the directory if it is not there, and locks it.
    pub(super) fn open(path: &Path) -> Result<StateDirectory, NodeError> {
        let fail = |what| move |source| NodeError::StateDirectory { path: path.to_owned(), what, source };
        fs::create_dir_all(path).map_err(fail("cannot make the state directory"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(fail("cannot open the lock file"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(NodeError::AlreadyRunning { path: path.to_owned() });
        }
        let directory = StateDirectory { path: path.to_owned(), lock };
        fcntl_lock(&directory.lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| fail("cannot lock the lock file")(error.into()))?;
        Ok(directory)
    }

    /// Files are opened here by name, so the name must still lead to the directory that is locked.
    ///
    /// # Errors
    /// [`NodeError::StateDirectory`] when it does not.
    pub(super) fn refuse_removed(&self) -> Result<(), NodeError> {
        let found = fs::metadata(self.path.join("lock"));
        let fail =
            |source| NodeError::StateDirectory { path: self.path.clone(), what: "the directory was removed", source };
        let (found, ours) = (found.map_err(fail)?, self.lock.metadata().map_err(fail)?);
        if (found.dev(), found.ino()) == (ours.dev(), ours.ino()) {
            Ok(())
        } else {
            Err(fail(std::io::ErrorKind::NotFound.into()))
        }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Replaces a file of ours in one step: readers see the old or the new content.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> std::io::Result<()> {
        let new = self.path.join(format!("{name}.new"));
        File::create(&new)?.write_all(content)?;
        fs::rename(new, self.path.join(name))
    }
}

impl Drop for StateDirectory {
    /// Closing would not do while a child that another thread starts has the descriptor, too.
    fn drop(&mut self) {
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// Whether a node of another process runs on a state directory. Opens nothing but the lock file, and locks nothing: a node that starts at the same
/// moment must not take who asks for another node. That is why nodes hold a record lock beside the one that keeps them apart.
///
/// # Errors
/// What opening the lock file gave; a directory without one has no node.
pub fn is_running(state_dir: &Path) -> std::io::Result<bool> {
    let whole = Flock { start: 0, length: 0, pid: None, typ: FlockType::ReadLock, offset_type: FlockOffsetType::Set };
    match File::open(state_dir.join("lock")) {
        Ok(lock) => Ok(fcntl_getlk(&lock, &whole)?.is_some()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
