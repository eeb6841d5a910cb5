//! What makes the follower look: notifications of the directory, and a timer.
//!
//! A notification says only that something may have happened; the follower looks for itself.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::{CaptureError, DatabaseFile};

/// While the pin may hold back the application it is renewed this often.
pub const HANDOVER_INTERVAL: Duration = Duration::from_millis(10);
/// With nothing held back the timer only stands in for a lost notification.
pub const IDLE_INTERVAL: Duration = Duration::from_millis(250);

/// Wakes whoever waits when the log of a database changes.
#[derive(Debug)]
pub struct Waker {
    _watcher: RecommendedWatcher,
}

impl Waker {
    /// Calls `wake` from another thread whenever the database's `-wal` or the database file is written. The directory is watched, not the
    /// files, and nothing is opened.
    ///
    /// # Errors
    /// [`CaptureError::Watch`].
    pub fn new(file: &DatabaseFile, wake: impl Fn() + Send + 'static) -> Result<Waker, CaptureError> {
        let directory = file.path().parent().unwrap_or(Path::new("/")).to_owned();
        let fail = |source| CaptureError::Watch { path: directory.clone(), source };
        let (database, wal) = (file.path().to_owned(), file.companion("-wal"));
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An overflow of the queue is an error without paths: it wakes too.
            let concerns = event.map_or(true, |event| event.paths.iter().any(|path| *path == wal || *path == database));
            if concerns {
                wake();
            }
        })
        .map_err(fail)?;
        watcher.watch(&directory, RecursiveMode::NonRecursive).map_err(fail)?;
        Ok(Waker { _watcher: watcher })
    }
}

/// A waker with a place to wait at, for callers that do nothing else.
#[derive(Debug)]
pub struct WakeUps {
    _waker: Waker,
    signals: Receiver<()>,
}

impl WakeUps {
    /// Watches the files of a database.
    ///
    /// # Errors
    /// [`CaptureError::Watch`].
    pub fn new(file: &DatabaseFile) -> Result<WakeUps, CaptureError> {
        // One signal is enough: looking takes everything that is there.
        let (sender, signals): (SyncSender<()>, _) = sync_channel(1);
        let waker = Waker::new(file, move || {
            let _ = sender.try_send(());
        })?;
        Ok(WakeUps { _waker: waker, signals })
    }

    /// Waits for a notification, at most for `timeout`. Whether there was one.
    pub fn wait(&self, timeout: Duration) -> bool {
        match self.signals.recv_timeout(timeout) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                // Without a watcher the timer alone does it.
                std::thread::sleep(timeout);
                false
            }
        }
    }
}
