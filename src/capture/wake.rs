//! What makes the follower look: notifications of the directory, and a timer.
//!
//! A notification says only that something may have happened; the follower looks for itself. While frames pour in there are none, and the
//! timer alone makes it look: see [`Waker::timeout`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::{CaptureError, Follower};

/// While the pin may hold back the application it is renewed this often.
pub const HANDOVER_INTERVAL: Duration = Duration::from_millis(10);
/// With nothing held back the timer only stands in for a lost notification.
pub const IDLE_INTERVAL: Duration = Duration::from_millis(250);

/// While frames pour in nothing is told of them, and a look is taken this often: each notification is paid by the application's write that
/// causes it, and the thread that takes it in needs a core, too. What a fast writer commits meanwhile is below what may be read under the
/// write lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// Frames in a second from which on that is so. Each is two writes, and a notification takes the writer a microsecond or more: that much is
/// the most that it should notice.
const POURING_PER_SECOND: f64 = 5000.0;
/// Fewer than this end it: the distance keeps a steady writer from making us change our mind again and again.
const CALM_PER_SECOND: f64 = 2500.0;
/// How long frames are counted before they are judged.
const COUNT_WITHIN: Duration = Duration::from_millis(10);

/// Judges from the frames that were read whether they pour in.
#[derive(Debug)]
struct Rhythm {
    since: Instant,
    frames: u64,
    pours: bool,
}

impl Rhythm {
    fn new(now: Instant) -> Rhythm {
        Rhythm { since: now, frames: 0, pours: false }
    }

    /// `frames` counts up from the attach on.
    fn judge(&mut self, now: Instant, frames: u64) -> bool {
        let within = now.saturating_duration_since(self.since);
        if within >= COUNT_WITHIN {
            let per_second = frames.saturating_sub(self.frames) as f64 / within.as_secs_f64();
            self.pours = per_second >= if self.pours { CALM_PER_SECOND } else { POURING_PER_SECOND };
            (self.since, self.frames) = (now, frames);
        }
        self.pours
    }
}

/// Wakes whoever waits when the log of a database changes.
#[derive(Debug)]
pub struct Waker {
    watcher: RecommendedWatcher,
    directory: PathBuf,
    is_watching: bool,
    rhythm: Rhythm,
}

impl Waker {
    /// Calls `wake` from another thread whenever the database's `-wal` or the database file is written. The directory is watched, not the
    /// files, and nothing is opened. If another file has taken the database's name, its log loses its own before `wake` is called.
    ///
    /// # Errors
    /// [`CaptureError::Watch`].
    pub fn new(follower: &Follower, wake: impl Fn() + Send + 'static) -> Result<Waker, CaptureError> {
        let (file, parting) = (follower.file(), Arc::downgrade(&follower.parting));
        let directory = file.path().parent().unwrap_or(Path::new("/")).to_owned();
        let (database, wal) = (file.path().to_owned(), file.companion("-wal"));
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An overflow of the queue is an error without paths: it wakes too.
            let names =
                |path: &Path| event.as_ref().map_or(true, |event| event.paths.iter().any(|named| named == path));
            let is_database = names(&database);
            if is_database && let Some(parting) = parting.upgrade() {
                // Here, not on the thread that is woken: that one may be at work, and the successor is opened any moment.
                parting.look();
            }
            if is_database || names(&wal) {
                wake();
            }
        })
        .map_err(|source| CaptureError::Watch { path: directory.clone(), source })?;
        let mut waker = Waker { watcher, directory, is_watching: false, rhythm: Rhythm::new(Instant::now()) };
        waker.watch()?;
        Ok(waker)
    }

    fn watch(&mut self) -> Result<(), CaptureError> {
        let watched = self.watcher.watch(&self.directory, RecursiveMode::NonRecursive);
        watched.map_err(|source| CaptureError::Watch { path: self.directory.clone(), source })?;
        self.is_watching = true;
        Ok(())
    }

    /// Whether notifications come: not while frames pour in.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.is_watching
    }

    /// No notifications until the next [`Waker::timeout`]: for whoever is about to write much himself.
    pub fn pause(&mut self) {
        if self.is_watching {
            // A directory that is not watched any more, for whatever reason, is as good.
            let _ = self.watcher.unwatch(&self.directory);
            self.is_watching = false;
        }
    }

    /// How long may be waited after a look: `quiet`, or less while frames pour in, for then nothing wakes.
    ///
    /// # Errors
    /// [`CaptureError::Watch`].
    pub fn timeout(&mut self, follower: &Follower, quiet: Duration) -> Result<Duration, CaptureError> {
        if self.rhythm.judge(Instant::now(), follower.frames_read()) {
            self.pause();
            return Ok(LOOK_INTERVAL.min(quiet));
        }
        if !self.is_watching {
            self.watch()?;
            // What was committed before the watch began woke nobody.
            return Ok(Duration::ZERO);
        }
        Ok(quiet)
    }
}

/// A waker with a place to wait at, for callers that do nothing else.
#[derive(Debug)]
pub struct WakeUps {
    waker: Waker,
    signals: Receiver<()>,
}

impl WakeUps {
    /// Watches the files of a database.
    ///
    /// # Errors
    /// [`CaptureError::Watch`].
    pub fn new(follower: &Follower) -> Result<WakeUps, CaptureError> {
        // One signal is enough: looking takes everything that is there.
        let (sender, signals): (SyncSender<()>, _) = sync_channel(1);
        let waker = Waker::new(follower, move || {
            let _ = sender.try_send(());
        })?;
        Ok(WakeUps { waker, signals })
    }

    /// Whether notifications come: not while frames pour in.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.waker.is_watching()
    }

    /// Waits after a look for the next, at most for `quiet`. Whether there was a notification.
    ///
    /// # Errors
    /// [`CaptureError::Watch`].
    pub fn wait_after(&mut self, follower: &Follower, quiet: Duration) -> Result<bool, CaptureError> {
        let timeout = self.waker.timeout(follower, quiet)?;
        Ok(self.wait(timeout))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_pour_in_are_told_from_single_commits() {
        let mut now = Instant::now();
        let (mut rhythm, mut frames) = (Rhythm::new(now), 0);
        let mut go_on = |frames_more: u64, milliseconds: u64| {
            frames += frames_more;
            now += Duration::from_millis(milliseconds);
            rhythm.judge(now, frames)
        };
        assert!(!go_on(3, 1000) && !go_on(3, 1) && !go_on(3, 12), "single commits do not pour");
        assert!(!go_on(500, 1), "a burst is judged when it has gone on for a while");
        assert!(go_on(100, 12), "and then it pours");
        assert!(go_on(40, 10), "a little less does not change that");
        assert!(go_on(0, 1), "nor does a short silence");
        assert!(!go_on(0, 10), "a longer one does");
        assert!(!go_on(40, 10) && go_on(60, 10));
    }
}
