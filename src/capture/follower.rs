//! The follower: reads every committed frame once and keeps SQLite from taking away what was not read.
//!
//! `begin the next read transaction → read the bound → read every frame up to it → end the previous read transaction`
//!
//! Invariant: no pin is ever held alone whose mark exceeds our position. In the other order a commit could slip between bound and pin, a
//! checkpoint could copy a frame that was not read, and the page "before" read from the file would already be the page after.
//!
//! A pin that holds read-lock 0 lets the log be restarted, but lets no frame of the new generation be copied into the file; so at most one
//! generation with frames follows behind it, and it is whole when we look.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checkpoint::{Policy, UNATTACHED_AFTER};
use super::connections::{Bound, Link};
use super::database_file::Companions;
use super::durable::Durability;
use super::foreign::Watched;
use super::frames::{AfterTx, AtPosition, Frames};
use super::noted::Noted;
use super::parting::Parting;
use super::resume::Start;
use super::shadow::Shadow;
use super::stand::{look_at_bound, refuse_foreign_locks, stand_at};
use super::{CaptureError, DatabaseFile, FollowError, Position, ShadowError};
use crate::change::{ChangeSink, Differ};
use crate::format::{Checksum, DatabaseHeader, FrameNo, PageSize, Salts};
use crate::schema::Catalogue;

/// While commits come the pin is renewed after this many frames; a checkpoint of the application is worthwhile from there on.
const RENEWAL_FRAMES: u32 = 1000;
/// Without new frames the pin is renewed after this time, and so within 10 ms: an application may be waiting for it.
const IDLE_BEFORE_RENEWAL: Duration = Duration::from_millis(5);
/// How long one look reads: whoever calls has other things to do, too.
const LOOK_WITHIN: Duration = Duration::from_millis(50);
/// What may wait to be read when writers are kept out for it, and how long reading it may take.
const DRAIN_FRAMES_MAX: u32 = 500;
/// How long writers are kept out for reading at a time.
pub const DRAIN_WITHIN: Duration = Duration::from_millis(50);
/// Insisting takes at most as many times this long. An application that waits for the lock has to meet the gap between.
pub const DRAIN_PATIENCE_MAX: u32 = 10;
/// How long an unfinished commit is waited for, and how often it is looked at. A rolled-back transaction leaves frames that never end.
const COMMIT_WITHIN: Duration = Duration::from_millis(5);
const COMMIT_STEP_FIRST: Duration = Duration::from_micros(30);
const COMMIT_STEP_MAX: Duration = Duration::from_micros(250);

/// What one look at the log gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Polled {
    /// Commit frames that were read.
    pub commits: u64,
    /// Transactions among them that changed something.
    pub transactions: u64,
    /// Look again at once: not all was read, or two pins are held.
    pub more: bool,
}

/// How long a follower does or leaves things. Measured in time, because others use the database meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    idle_before_renewal: Duration,
    look_within: Duration,
    drain_within: Duration,
    pub(super) unattached_after: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            idle_before_renewal: IDLE_BEFORE_RENEWAL,
            look_within: LOOK_WITHIN,
            drain_within: DRAIN_WITHIN,
            unattached_after: UNATTACHED_AFTER,
        }
    }
}

impl Pace {
    /// As if no time went by.
    fn timeless() -> Pace {
        /// Longer than anything that is waited for.
        const NEVER: Duration = Duration::from_secs(1 << 20);
        Pace { idle_before_renewal: Duration::ZERO, look_within: NEVER, drain_within: NEVER, unattached_after: NEVER }
    }
}

/// Stands for the tables as they were at some time.
#[derive(Debug, Clone)]
pub struct SchemaMark(Arc<Catalogue>);

impl PartialEq for SchemaMark {
    fn eq(&self, other: &SchemaMark) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Follows one live database.
#[derive(Debug)]
pub struct Follower {
    pub(super) file: DatabaseFile,
    /// The files beside it that our connections use.
    pub(super) companions: Companions,
    pub(super) pins: [Link; 2],
    /// Index of the newest pin.
    pub(super) held: usize,
    /// The other pin is held as well: it is older.
    pub(super) older_held: bool,
    /// Frames that were read since the pin was renewed.
    pub(super) read_since_renewal: u32,
    /// The newest pin was let go until then; the other one is held alone.
    pub(super) retreat_until: Option<Instant>,
    pub(super) bounds: Link,
    pub(super) checkpoints: Link,
    pub(super) frames: Frames,
    pub(super) differ: Differ,
    pub(super) position: Position,
    pub(super) page_size: PageSize,
    pub(super) next_tx: u64,
    /// Frames of others that were read since the attach.
    pub(super) frames_read: u64,
    pub(super) shadow: Option<Shadow>,
    pub(super) start: Start,
    pub(super) durability: Durability,
    pub(super) bound: Bound,
    /// The pin holds read-lock 0: everything was in the database file when it began.
    pub(super) resting: bool,
    /// What tells the log's file from one that takes its place.
    pub(super) parting: Arc<Parting>,
    /// The file when it was looked at last.
    pub(super) watched: Cell<Option<Watched>>,
    /// The file as it is noted for the next process; until the log was read, as a former one noted it.
    pub(super) noted: Cell<Option<Noted>>,
    /// The last page that was compared after a checkpoint, and when.
    pub(super) compared: Cell<(u32, Option<Instant>)>,
    /// Whether the log may be asked for the position; otherwise the file is compared with the shadow, whatever the log says.
    pub(super) trusts_log: bool,
    pub(super) policy: Policy,
    pub(super) pace: Pace,
    /// When frames were last found.
    pub(super) moved_at: Instant,
}

/// What looking at a database for the first time gives.
struct Stood {
    page_size: PageSize,
    bound: Bound,
    frames: Frames,
    position: Position,
    differ: Differ,
    start: Start,
}

impl Follower {
    /// Attaches to a live database. What is committed now is the state from which changes are counted.
    ///
    /// # Errors
    /// [`CaptureError`] when the database cannot be followed; nothing was touched then.
    pub fn attach(path: &Path) -> Result<Follower, CaptureError> {
        Follower::begin(path, None)
    }

    /// Takes part in SQLite's locking and finds the state to start from: the shadow's, or what is committed now.
    pub(super) fn begin(path: &Path, shadow: Option<Shadow>) -> Result<Follower, CaptureError> {
        let file = DatabaseFile::open(path)?;
        let link = || Link::open(file.path());
        let pins = [link()?, link()?];
        let (bounds, checkpoints) = (link()?, link()?);
        let had_log = file.companion("-wal").exists();
        let stood = Follower::stand(&file, &pins, &bounds, &checkpoints, shadow.as_ref());
        let Stood { page_size, bound, frames, position, differ, start } = match stood {
            Ok(stood) => stood,
            Err(error) => {
                if !had_log && file.other_user().is_none() {
                    // SQLite made an empty log for our looking; the last of our closes takes it away.
                    pins.iter().chain([&bounds, &checkpoints]).try_for_each(Link::checkpoint_on_close)?;
                }
                return Err(error);
            }
        };
        // What cannot be read is none: then the file is compared.
        let noted = shadow.as_ref().and_then(|shadow| Noted::read(shadow.directory()).ok().flatten());
        Ok(Follower {
            shadow,
            start,
            durability: Durability::default(),
            differ,
            pins,
            held: 0,
            older_held: false,
            read_since_renewal: 0,
            retreat_until: None,
            bounds,
            checkpoints,
            frames,
            position,
            page_size,
            next_tx: 1,
            frames_read: 0,
            bound,
            resting: false,
            parting: Arc::new(Parting::new(file.clone(), file.companions())),
            watched: Cell::new(None),
            noted: Cell::new(noted),
            compared: Cell::default(),
            trusts_log: true,
            policy: Policy::default(),
            pace: Pace::default(),
            moved_at: Instant::now(),
            companions: file.companions(),
            file,
        })
    }

    fn stand(
        file: &DatabaseFile,
        pins: &[Link; 2],
        bounds: &Link,
        checkpoints: &Link,
        shadow: Option<&Shadow>,
    ) -> Result<Stood, CaptureError> {
        // The first read makes SQLite open the log and its index.
        if let Some(pin) = pins.first() {
            pin.begin_read()?;
            if pin.journal_mode()? != "wal" {
                return Err(CaptureError::NotWal { path: file.path().to_owned() });
            }
        }
        bounds.look()?;
        checkpoints.look()?;
        refuse_foreign_locks(file)?;
        let mut frames = Frames::open(&file.companion("-wal"))?;
        let page_size = file.header()?.page_size;
        let Some(shadow) = shadow else {
            let (position, bound) = stand_at(&mut frames, bounds, file)?;
            let differ = Differ::open(&AtPosition::new(&frames, file, page_size, position.page_count))?;
            return Ok(Stood { page_size, bound, frames, position, differ, start: Start::Settled });
        };
        if shadow.page_size() != page_size {
            let (path, found, wanted) = (file.path().to_owned(), page_size.get(), shadow.page_size().get());
            return Err(ShadowError::PageSize { path, found, wanted }.into());
        }
        let (_, bound) = look_at_bound(&frames, bounds, file)?;
        let (position, mut differ) = (shadow.position(), Differ::open(shadow)?);
        differ.follow_copies();
        Ok(Stood { page_size, bound, frames, position, differ, start: Start::Unsettled })
    }

    pub(super) fn enter_generation(&mut self, salts: Salts) -> Result<(), CaptureError> {
        if let Some(header) = self.frames.read_header()?.filter(|header| header.salts == salts) {
            self.frames.begin_generation(header);
            self.position = Position { salts, frame: FrameNo(0), checksum: Checksum::default(), ..self.position };
        }
        Ok(())
    }

    /// Reads what was committed since the last look and gives it to `sink`, transaction by transaction.
    ///
    /// # Errors
    /// [`FollowError`]. After an error of the sink the transaction was not taken, and the next look gives it again.
    pub fn poll<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<Polled, FollowError<E>> {
        self.refuse_other_content()?;
        let mut polled = Polled::default();
        if (self.older_held || self.retreat_until.is_some()) && !self.settle_pins()? {
            return Ok(polled);
        }
        // A pin protects what came behind its mark as well, so a busy log is read under the one that is held. Renewing it for every commit
        // would let the application's automatic checkpoint do a little, with its syncs, at every commit too.
        if self.start == Start::Settled {
            let found = self.read_until(sink, &mut polled, Some(Instant::now() + self.pace.look_within))?;
            polled.more = found;
            if self.position.frame.0 < self.bound.committed {
                // A new pin would have to wait until all of it is read.
                return Ok(polled);
            }
            // A pin at rest holds back no frame, but where somebody had read-lock 0 when it began it is on another one, which a checkpoint
            // of the application may be waiting for. Nobody can ask SQLite which one that is.
            let may_rest = self.resting && !self.file.has_waiting_checkpoint();
            let is_busy = may_rest || self.moved_at.elapsed() < self.pace.idle_before_renewal;
            if is_busy && self.read_since_renewal < RENEWAL_FRAMES {
                // All of it is read. Looking again at once would spin beside a busy writer and take turns with it at the locks.
                polled.more = false;
                if !found {
                    self.frames.rest();
                }
                return Ok(polled);
            }
        }
        self.renew_pin(sink, &mut polled)?;
        Ok(polled)
    }

    /// Reads up to the bound without changing pins, for a caller that holds the write lock on a connection of this process: nothing can
    /// be committed meanwhile.
    ///
    /// # Errors
    /// As [`Follower::poll`].
    pub fn drain<E>(&mut self, sink: &mut dyn ChangeSink<E>) -> Result<Polled, FollowError<E>> {
        let mut polled = Polled::default();
        self.refuse_other_content()?;
        self.read_to_bound(sink, &mut polled)?;
        self.refuse_other_content()?;
        Ok(polled)
    }

    /// As [`Follower::drain`], but keeps writers out for a moment only: `None` when there is more to read than that allows. Then the lock
    /// must be given back, and the rest read without it. To `insist` is to read for a while all the same, the longer the more hopeless:
    /// with a writer that is faster than we are, this is the only way to come to an end.
    ///
    /// # Errors
    /// As [`Follower::poll`].
    pub fn drain_briefly<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        insist: Option<Duration>,
    ) -> Result<Option<Polled>, FollowError<E>> {
        self.refuse_other_content()?;
        let (salts, bound) = look_at_bound(&self.frames, &self.bounds, &self.file)?;
        let is_known = self.start == Start::Settled && self.frames.header().is_some();
        if is_known && salts == Some(self.position.salts) && bound.committed == self.position.frame.0 {
            self.bound = bound;
            return Ok(Some(Polled::default()));
        }
        let read = if salts == Some(self.position.salts) { self.position.frame.0 } else { 0 };
        if insist.is_none() && bound.committed.saturating_sub(read) > DRAIN_FRAMES_MAX {
            return Ok(None);
        }
        let mut polled = Polled::default();
        self.read_until(sink, &mut polled, Some(Instant::now() + insist.unwrap_or(self.pace.drain_within)))?;
        self.refuse_other_content()?;
        Ok((self.position.frame.0 == self.bound.committed || self.bound.committed == 0).then_some(polled))
    }

    /// Has the database compared with the shadow, whatever the log says: what is in the file did not come through it.
    pub fn distrust_log(&mut self) {
        self.trusts_log = false;
    }

    /// Takes in the transaction that this process has just committed itself, ending at frame `commit`, and nothing behind it: its pages
    /// become part of the structure, its rows are not given out. To be called after a drain under the write lock and the commit that
    /// ended it, before the next look.
    ///
    /// # Errors
    /// [`CaptureError::Frame`] when the next transaction does not end there.
    pub fn take_own(&mut self, commit: u32) -> Result<(), CaptureError> {
        // What was written by something else between the drain and the commit is in what SQLite made of it.
        self.refuse_other_content()?;
        let commit = FrameNo(commit);
        let (salts, bound) = look_at_bound(&self.frames, &self.bounds, &self.file)?;
        self.bound = bound;
        if let Some(salts) = salts.filter(|salts| *salts != self.position.salts || self.frames.header().is_none()) {
            self.enter_generation(salts)?;
        }
        self.frames.cover(FrameNo(bound.committed))?;
        let tx = self.frames.collect(FrameNo(self.position.frame.0 + 1), FrameNo(bound.committed))?;
        let Some((_, header)) = tx.commit.filter(|(frame, _)| *frame == commit) else {
            return Err(self.damaged(commit, "it is not the end of our own transaction"));
        };
        let before = AtPosition::new(&self.frames, &self.file, self.page_size, self.position.page_count);
        let after = AfterTx { frames: &self.frames, before: &before, tx: &tx };
        let changed = tx.changed();
        self.differ.absorb(&before, &after, &changed)?;
        let position = self.position_after(&tx, commit, &header);
        if let Some(shadow) = &mut self.shadow {
            let entry = shadow.append(position, true, &changed, &after)?;
            shadow.accept(entry);
        }
        self.advance(&tx, position);
        Ok(())
    }

    /// Whether nothing keeps the application's checkpoints from going on: the pin holds back no frame, so it need not be renewed until
    /// the log grows. Otherwise [`Follower::poll`] must be called every 10 ms.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        self.resting
    }

    /// Waits for a commit whose frames are in the log and whose end is not: the notification comes with the first frame, and a commit
    /// that syncs ends milliseconds later. Returns at once when nothing is under way; to be called after a notification.
    ///
    /// # Errors
    /// [`CaptureError`] when the log cannot be read.
    pub fn await_commit(&self) -> Result<(), CaptureError> {
        let began = Instant::now();
        let mut step = COMMIT_STEP_FIRST;
        while began.elapsed() < COMMIT_WITHIN {
            let bound = self.bounds.noop()?;
            let header = self.frames.read_header()?;
            let is_new = bound.is_some_and(|bound| {
                let same = header.is_some_and(|header| header.salts == self.position.salts);
                if same { bound.committed > self.position.frame.0 } else { bound.committed > 0 }
            });
            if is_new || !self.frames.is_begun_behind(header.as_ref(), bound.map_or(0, |bound| bound.committed))? {
                return Ok(());
            }
            std::thread::sleep(step);
            step = (step * 2).min(COMMIT_STEP_MAX);
        }
        Ok(())
    }

    /// Makes what is done independent of the time that goes by between the steps, for owners whose steps are the same in every run.
    pub fn set_timeless(&mut self) {
        self.pace = Pace::timeless();
    }

    /// Sets the number that the next transaction gets.
    pub fn set_next_tx(&mut self, tx: u64) {
        self.next_tx = tx;
    }

    /// Frames of others that were read since the attach; counts up only.
    #[must_use]
    pub fn frames_read(&self) -> u64 {
        self.frames_read
    }

    /// The number that the next transaction gets.
    #[must_use]
    pub fn next_tx(&self) -> u64 {
        self.next_tx
    }

    /// Notes that what is in the file did not come from the log, so that [`Follower::abandon`] does not leave them together.
    pub fn note_overwritten(&self) {
        self.parting.note_overwritten();
    }

    /// Closes everything. The file that has the name now is not touched.
    ///
    /// What is in the log belongs to the old file and would be combined with the new one by whoever opens that next. So, when nobody else
    /// uses the log, it goes where it belongs: the old file, which has lost its name at most. Where that was written over, a log with commits
    /// that were not read stays beside it under another name, which is returned: nobody else has them.
    pub fn abandon(self) -> Option<PathBuf> {
        let is_read = look_at_bound(&self.frames, &self.bounds, &self.file)
            .is_ok_and(|(salts, bound)| salts == Some(self.position.salts) && bound.committed == self.position.frame.0);
        let Follower { file, pins, bounds, checkpoints, frames, companions, parting, .. } = self;
        drop((pins, bounds, frames));
        let aside = parting.end();
        let is_ours = aside.is_some() || (is_read && file.companions() == companions && file.shm_user().is_none());
        let is_moved = !file.is_in_place();
        if is_ours && is_moved {
            let _ = checkpoints.truncate();
        }
        drop(checkpoints);
        let is_kept = |aside: &PathBuf| !((is_read || is_moved) && std::fs::remove_file(aside).is_ok());
        let kept = aside.filter(is_kept);
        file.release();
        kept
    }

    /// Closes everything but one connection.
    pub(super) fn into_last_link(self) -> Link {
        self.checkpoints
    }

    /// Where capture stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Equal as long as the tables are the same.
    #[must_use]
    pub fn schema_mark(&self) -> SchemaMark {
        SchemaMark(Arc::clone(self.differ.catalogue()))
    }

    /// The tables at the position.
    #[must_use]
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        self.differ.catalogue()
    }

    /// The header of the database at the position.
    #[must_use]
    pub fn header(&self) -> &DatabaseHeader {
        self.differ.header()
    }

    /// The database file.
    #[must_use]
    pub fn file(&self) -> &DatabaseFile {
        &self.file
    }

    /// Trees of the database that could not be walked when it was attached.
    #[must_use]
    pub fn damage(&self) -> &[crate::change::DiffError] {
        self.differ.damage()
    }

    /// Committed frames of the generation and how many of them are in the database file, as of the last look.
    #[must_use]
    pub fn wal_frames(&self) -> (u32, u32) {
        (self.bound.committed, self.bound.checkpointed)
    }

    /// Length of the log in bytes up to the bound.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.frames.header().map_or(0, |header| header.frame_offset(FrameNo(self.bound.committed.saturating_add(1))))
    }
}
