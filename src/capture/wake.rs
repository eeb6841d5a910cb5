//! What makes the follower look: notifications of the directory, and a timer.
//!
//! A notification says only that something may have happened; the follower looks for itself. While frames pour in there are none, and the
//! timer alone makes it look: see [`Waker::timeout`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Notifications of other files in the directory are judged by the same rates: they cost us as much. While there are none nobody can tell
/// whether it is calm again, so after this long it is tried.
const NOISY_FOR: Duration = Duration::from_secs(1);
/// When a directory is tried again that the system has not let us watch.
const REFUSED_FOR: Duration = Duration::from_secs(60);
const REFUSED_HINT: &str = "raise fs.inotify.max_user_watches, fs.inotify.max_user_instances or `ulimit -n`";

/// Judges from a count, of the frames that were read or of notifications, whether they pour in.
#[derive(Debug)]
struct Rhythm {
    since: Instant,
    count: u64,
    pours: bool,
}

impl Rhythm {
    fn new(now: Instant) -> Rhythm {
        Rhythm { since: now, count: 0, pours: false }
    }

    /// `count` counts up from the attach on.
    fn judge(&mut self, now: Instant, count: u64) -> bool {
        let within = now.saturating_duration_since(self.since);
        if within >= COUNT_WITHIN {
            let per_second = count.saturating_sub(self.count) as f64 / within.as_secs_f64();
            self.pours = per_second >= if self.pours { CALM_PER_SECOND } else { POURING_PER_SECOND };
            (self.since, self.count) = (now, count);
        }
        self.pours
    }
}

/// A watch that a thread of its own sets and takes away: the watcher answers only when it has taken in all that happened in the directory,
/// and where others write without a pause that may be never.
#[derive(Debug)]
struct Watch {
    /// What is wanted: a number that counts up, and whether to watch. Closed when the waker goes.
    wanted: Sender<(u64, bool)>,
    state: Arc<WatchState>,
}

#[derive(Debug, Default)]
struct WatchState {
    /// The number of the wish that was fulfilled last.
    fulfilled: AtomicU64,
    failed: Mutex<Option<notify::Error>>,
    /// Notifications of other files.
    of_others: AtomicU64,
}

impl WatchState {
    fn take_failed(&self) -> Option<notify::Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the thread of a watch has.
struct Watching<F> {
    directory: PathBuf,
    handle: F,
    wake: Arc<dyn Fn() + Send + Sync>,
    state: Arc<WatchState>,
    watcher: Option<RecommendedWatcher>,
    watches: bool,
}

impl<F: Fn(notify::Result<notify::Event>) + Clone + Send + 'static> Watching<F> {
    fn run(mut self, wishes: &Receiver<(u64, bool)>, first: &SyncSender<()>) {
        while let Ok(mut wish) = wishes.recv() {
            // Only the last one counts.
            while let Ok(next) = wishes.try_recv() {
                wish = next;
            }
            match self.fulfil(wish.1) {
                Ok(()) => self.state.fulfilled.store(wish.0, Ordering::Release),
                Err(error) => *self.state.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            }
            let _ = first.try_send(());
            // What was committed before the watch began woke nobody.
            (self.wake)();
        }
    }

    fn fulfil(&mut self, watch: bool) -> notify::Result<()> {
        if watch && !self.watches {
            let watcher = match &mut self.watcher {
                Some(watcher) => watcher,
                none => none.insert(notify::recommended_watcher(self.handle.clone())?),
            };
            watcher.watch(&self.directory, RecursiveMode::NonRecursive)?;
        } else if self.watches
            && !watch
            && let Some(watcher) = &mut self.watcher
        {
            // A directory that is not watched any more, for whatever reason, is as good.
            let _ = watcher.unwatch(&self.directory);
        }
        self.watches = watch;
        Ok(())
    }
}

/// Wakes whoever waits when the log of a database changes.
#[derive(Debug)]
pub struct Waker {
    watch: Watch,
    directory: PathBuf,
    /// The last wish, and whether it is to watch.
    wish: (u64, bool),
    frames: Rhythm,
    of_others: Rhythm,
    /// Others write so much in the directory that it is not watched before then.
    noisy_until: Option<Instant>,
    /// It cannot be watched, and is not tried again before then.
    refused_until: Option<Instant>,
}

impl Waker {
    /// Calls `wake` from another thread whenever the database's `-wal` or the database file is written. The directory is watched, not the
    /// files, and nothing is opened. If another file has taken the database's name, its log loses its own before `wake` is called.
    ///
    /// Where the directory cannot be watched that is said, and [`Waker::timeout`] has the caller look again and again instead.
    ///
    /// # Errors
    /// [`CaptureError::Watch`] where there can be no other thread.
    pub fn new(follower: &Follower, wake: impl Fn() + Send + Sync + 'static) -> Result<Waker, CaptureError> {
        let (file, parting) = (follower.file(), Arc::downgrade(&follower.parting));
        let directory = file.path().parent().unwrap_or(Path::new("/")).to_owned();
        let (database, wal) = (file.path().to_owned(), file.companion("-wal"));
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(wake);
        let state = Arc::new(WatchState::default());
        let (woken, counted) = (Arc::clone(&wake), Arc::clone(&state));
        let handle = move |event: notify::Result<notify::Event>| {
            let is_database = may_concern(&event, &database);
            if is_database && let Some(parting) = parting.upgrade() {
                // Here, not on the thread that is woken: that one may be at work, and the successor is opened any moment.
                parting.look();
            }
            if is_database || may_concern(&event, &wal) {
                woken();
            } else {
                counted.of_others.fetch_add(1, Ordering::Relaxed);
            }
        };
        let (wanted, wishes) = channel();
        let (first, first_done) = sync_channel(1);
        let (path, kept) = (directory.clone(), Arc::clone(&state));
        let watching = Watching { directory: path, handle, wake, state: kept, watcher: None, watches: false };
        let started = std::thread::Builder::new().name("watch".to_owned()).spawn(move || watching.run(&wishes, &first));
        started.map_err(|error| CaptureError::Watch { path: directory.clone(), source: error })?;
        let now = Instant::now();
        let (frames, of_others) = (Rhythm::new(now), Rhythm::new(now));
        let watch = Watch { wanted, state };
        let mut waker =
            Waker { watch, directory, wish: (0, false), frames, of_others, noisy_until: None, refused_until: None };
        waker.want(true);
        // Nothing is watched yet that could keep it from coming to an end.
        let _ = first_done.recv();
        waker.hear_of_refusal(now);
        Ok(waker)
    }

    fn want(&mut self, watch: bool) {
        if self.wish.1 != watch {
            self.wish = (self.wish.0 + 1, watch);
            // The thread goes when the waker does, not before.
            let _ = self.watch.wanted.send(self.wish);
        }
    }

    /// Says that the directory cannot be watched, when that is news.
    fn hear_of_refusal(&mut self, now: Instant) {
        let Some(error) = self.watch.state.take_failed() else { return };
        if self.refused_until.is_none() {
            let directory = self.directory.display();
            tracing::warn!(
                "{directory}: cannot watch the directory for changes ({error}): the log is looked at every {} ms instead; {REFUSED_HINT}",
                HANDOVER_INTERVAL.as_millis()
            );
        }
        self.refused_until = Some(now + REFUSED_FOR);
        self.want(false);
    }

    /// Whether nothing is to be told: frames pour in, or whatever others write in the directory, or it cannot be watched.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        !self.wish.1
    }

    /// Whether notifications come.
    #[must_use]
    pub fn is_watching(&self) -> bool {
        !self.is_paused() && self.watch.state.fulfilled.load(Ordering::Acquire) == self.wish.0
    }

    /// No notifications until the next [`Waker::timeout`]: for whoever is about to write much himself. Waits for nobody; those that are on
    /// their way still come.
    pub fn pause(&mut self) {
        self.want(false);
    }

    /// How long may be waited after a look: `quiet`, or less while nothing wakes.
    pub fn timeout(&mut self, follower: &Follower, quiet: Duration) -> Duration {
        let now = Instant::now();
        self.hear_of_refusal(now);
        let is_watching = self.is_watching();
        if is_watching && self.refused_until.take().is_some() {
            tracing::info!("{}: the directory is watched again", self.directory.display());
        }
        let of_others = self.watch.state.of_others.load(Ordering::Relaxed);
        if is_watching && self.of_others.judge(now, of_others) {
            self.noisy_until = Some(now + NOISY_FOR);
        }
        let is_over = |until: Option<Instant>| until.is_none_or(|until| now >= until);
        let pours = self.frames.judge(now, follower.frames_read());
        let was_wanted = self.wish.1;
        self.want(!pours && is_over(self.noisy_until) && is_over(self.refused_until));
        if !was_wanted && self.wish.1 {
            // What is counted begins anew.
            self.of_others = Rhythm { since: now, count: of_others, pours: false };
        }
        if self.is_watching() {
            return quiet;
        }
        // Without a watch for long every look is one too many for somebody.
        let is_refused = self.refused_until.is_some() && !pours;
        quiet.min(if is_refused { HANDOVER_INTERVAL } else { LOOK_INTERVAL })
    }
}

/// Whether something may have happened to a file. Nobody knows to which it was where notifications were lost: errors, and a queue that ran
/// over, come without paths.
fn may_concern(event: &notify::Result<notify::Event>, path: &Path) -> bool {
    event.as_ref().map_or(true, |event| event.need_rescan() || event.paths.iter().any(|named| named == path))
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

    /// Whether notifications come: [`Waker::is_watching`].
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.waker.is_watching()
    }

    /// Waits after a look for the next, at most for `quiet`. Whether there was a notification.
    pub fn wait_after(&mut self, follower: &Follower, quiet: Duration) -> bool {
        let timeout = self.waker.timeout(follower, quiet);
        self.wait(timeout)
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
    fn lost_notifications_may_concern_any_file() {
        let event = || notify::Event::new(notify::EventKind::Any);
        let (path, other) = (Path::new("/d/app.db"), Path::new("/d/app.db-wal"));
        assert!(may_concern(&Ok(event().add_path(path.to_owned())), path));
        assert!(!may_concern(&Ok(event().add_path(other.to_owned())), path));
        assert!(may_concern(&Ok(event().set_flag(notify::event::Flag::Rescan)), path), "the queue ran over");
        assert!(may_concern(&Err(notify::Error::generic("lost")), path));
    }

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
