//! Checkpoints of `state.db`, on a thread of their own: they sync, and whoever waits for a transaction must not wait for the disk as well.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

/// Pages in the log of `state.db` from which on it is checkpointed: SQLite's own default.
const LOG_PAGES_MAX: u32 = 1000;
/// From here on whoever writes checkpoints himself: he is faster than the thread, and the log would grow without end.
const LOG_PAGES_FAR: u32 = 16 * LOG_PAGES_MAX;

/// Who checkpoints. The thread begins with the first that is due, and ends with this.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    thread: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Checkpoints {
    /// After a commit to `db`, with so many pages in its log.
    pub(super) fn committed(&mut self, db: &Connection, log_pages: u32) {
        if log_pages < LOG_PAGES_MAX {
            return;
        }
        if log_pages >= LOG_PAGES_FAR || !self.ask(db.path().map(Path::new)) {
            checkpoint(db);
        }
    }

    /// Whether the thread does it.
    fn ask(&mut self, path: Option<&Path>) -> bool {
        if self.thread.is_none()
            && let Some(path) = path
        {
            let (path, (asks, asked)) = (path.to_owned(), sync_channel(1));
            let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(move || serve(path, asked));
            self.thread = thread.ok().map(|thread| (asks, thread));
        }
        match &self.thread {
            Some((asks, _)) => !matches!(asks.try_send(()), Err(TrySendError::Disconnected(()))),
            None => false,
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        if let Some((asks, thread)) = self.thread.take() {
            drop(asks);
            let _ = thread.join();
        }
    }
}

fn serve(path: PathBuf, asked: Receiver<()>) {
    // Without a connection the end of the channel tells who asks to do it himself.
    let Ok(db) = Connection::open(path) else { return };
    while asked.recv().is_ok() {
        checkpoint(&db);
    }
}

/// As with SQLite's own automatic checkpoint: what is committed is committed, and whatever is wrong comes back with the next.
fn checkpoint(db: &Connection) {
    let _ = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
}
