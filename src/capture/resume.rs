//! Going on where a former process stopped: by position when the log still has it, else by comparing the database with the shadow.

use std::path::Path;

use super::frames::AtPosition;
use super::reading::take_journaled;
use super::shadow::{Progress, Shadow, ShadowStep};
use super::stand::{look_at_bound, stand_at};
use super::{CaptureError, DurableHook, FollowError, Follower, Polled, Position, ShadowError, ShadowProgress};
use crate::change::{ChangeSink, ChangedRow, DiffError, Op, PageSource, RowChange, SchemaChange, TxSpan};
use crate::format::{DatabaseHeader, FrameNo, PageNo, WalHeader};

/// How far the start is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Our position is that of the shadow, and was not yet looked for in the log.
    Unsettled,
    /// The log has our position. Images before come from the shadow, because the file may have frames behind it.
    CatchingUp,
    /// The log was read to its end once: the file and the log have every page as it is at our position.
    Settled,
}

/// How a follower with a shadow began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It began before this call, or there was nothing to go on from.
    Already,
    /// The log still had the position: what is behind it is read as usual.
    Resumed,
    /// The log did not have the position any more. The database was compared with the shadow.
    Repaired {
        /// Pages that differed.
        pages: u64,
        /// Row and schema changes that were given to the sink, as one transaction.
        changes: u64,
    },
}

/// Deletes from which on a gap is refused even without a sign that the database was restored.
const DELETES_WITHOUT_SIGN_MAX: u64 = 1000;

/// What became of our position.
enum Sought {
    /// The log of this header has it, and is committed up to this frame.
    Found(WalHeader, FrameNo),
    /// It is the end of the log, and all of the log is in the database file.
    AtEnd,
    /// The log has it and is wholly in the database file, so it may be restarted at any moment: these pages changed since.
    Checkpointed(Position, Vec<PageNo>),
    /// The log does not have it.
    Gone,
}

/// Takes nothing: what changes while the shadow is made is part of what is counted from.
struct Discard;

impl ChangeSink<std::convert::Infallible> for Discard {
    fn begin(&mut self, _: &TxSpan) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
    fn change(&mut self, _: RowChange) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
    fn row(&mut self, _: ChangedRow<'_>) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
}

pub(super) fn never(error: FollowError<std::convert::Infallible>) -> CaptureError {
    match error {
        FollowError::Capture(error) => error,
        FollowError::Sink(never) => match never {},
    }
}

/// Counts deletes.
struct Deletes(u64);

impl ChangeSink<std::convert::Infallible> for Deletes {
    fn begin(&mut self, _: &TxSpan) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
    fn change(&mut self, change: RowChange) -> Result<(), std::convert::Infallible> {
        self.0 += u64::from(change.op == Op::Delete);
        Ok(())
    }
    fn row(&mut self, row: ChangedRow<'_>) -> Result<(), std::convert::Infallible> {
        self.0 += u64::from(row.op == Op::Delete);
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), std::convert::Infallible> {
        Ok(())
    }
}

impl Follower {
    /// Attaches to a live database and keeps a shadow of it in `shadow_directory`, so that nothing is lost while nobody follows.
    ///
    /// `position` is what the sink stored last; its shadow is then opened and cut back to it, and the first look at the log goes on from
    /// there or repairs the gap (see [`Follower::catch_up`]). `None` is a first attach: the shadow is made by copying the database, in
    /// place of any that is there, and what is committed at the end of the copy is the state from which changes are counted. The caller
    /// then stores [`Follower::position`] before anything else.
    ///
    /// A copy that is interrupted, by `progress` or a crash, leaves a file that the next first attach removes.
    ///
    /// # Errors
    /// [`CaptureError`]; [`CaptureError::Shadow`] when the shadow cannot be used.
    pub fn attach_with_shadow(
        path: &Path,
        shadow_directory: &Path,
        position: Option<Position>,
        progress: Progress<'_>,
    ) -> Result<Follower, CaptureError> {
        match position {
            Some(position) => Follower::begin(path, Some(Shadow::open(shadow_directory, &position)?)),
            None => {
                let mut follower = Follower::begin(path, None)?;
                follower.make_shadow(shadow_directory, progress)?;
                Ok(follower)
            }
        }
    }

    fn make_shadow(&mut self, directory: &Path, progress: Progress<'_>) -> Result<(), CaptureError> {
        let mut shadow = Shadow::begin_copy(directory, self.page_size, self.position, &self.file)?;
        let at_position = AtPosition::new(&self.frames, &self.file, self.page_size, self.position.page_count);
        let mut in_log = self.frames.pages();
        in_log.retain(|page| page.get() <= self.position.page_count);
        let entry = shadow.append(self.position, true, &in_log, &at_position)?;
        shadow.accept(entry);
        // What comes into the file behind this end comes out of the log, and so into the journal.
        let total_bytes = self.file.file_bytes()?;
        let mut done_bytes = if shadow.share_blocks(&self.file) { total_bytes } else { 0 };
        self.shadow = Some(shadow);
        self.differ.follow_copies();
        while done_bytes < total_bytes {
            let Some(shadow) = &self.shadow else { break };
            let copied = shadow.copy_piece(&self.file, done_bytes)?;
            // The file became shorter: the pages that it lost are gone from the database.
            done_bytes = if copied == done_bytes { total_bytes } else { copied.min(total_bytes) };
            self.poll(&mut Discard).map_err(never)?;
            self.maintain(&mut Discard).map_err(never)?;
            if progress(ShadowProgress { step: ShadowStep::Copy, done_bytes, total_bytes }).is_break() {
                return Err(ShadowError::Interrupted.into());
            }
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.end_copy(&self.file)?;
        }
        self.next_tx = 1;
        Ok(())
    }

    /// Sets what makes durable what the sink stored. It is called every second and before each merge, and must have the last transaction
    /// that the sink was given on disk when it returns.
    pub fn set_durable_hook(&mut self, hook: DurableHook) {
        self.durability.hook = Some(hook);
    }

    /// Lets a database that was restored from a backup be taken as it is, whatever that deletes.
    pub fn set_accept_restored(&mut self, accept: bool) {
        self.durability.accept_restored = accept;
    }

    /// How capture with a shadow began; `None` before that was found out.
    #[must_use]
    pub fn started(&self) -> Option<Started> {
        self.durability.started
    }

    /// Bytes written to keep the shadow, since it was opened.
    #[must_use]
    pub fn shadow_written_bytes(&self) -> u64 {
        self.shadow.as_ref().map_or(0, Shadow::written_bytes)
    }

    /// Finds the position in the log, or repairs the gap: what changed while nobody followed is given to `sink` as one transaction with
    /// `repaired` set. The first [`Follower::poll`] or [`Follower::drain`] does the same without telling how far it is.
    ///
    /// # Errors
    /// [`FollowError`]; [`ShadowError::Restored`] and [`ShadowError::WentBack`] when a person must decide. Nothing was given then.
    pub fn catch_up<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        progress: Progress<'_>,
    ) -> Result<Started, FollowError<E>> {
        if self.start != Start::Unsettled {
            return Ok(Started::Already);
        }
        self.settle(sink, &mut Polled::default(), progress)
    }

    pub(super) fn settle<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        polled: &mut Polled,
        progress: Progress<'_>,
    ) -> Result<Started, FollowError<E>> {
        if self.trusts_log && self.is_beside_former_log() {
            match self.look_for_position() {
                // Where it fits the file all the same, it was copied with it.
                Ok(Sought::Found(header, last)) => self.refuse_written_meanwhile(&header, last, progress)?,
                // All of it is in the file, or it has begun anew since, or it went back: what stands there is not known to be the former file's.
                Ok(_) | Err(CaptureError::Shadow(ShadowError::WentBack { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let started = match self.seek_position()? {
            Sought::Found(header, last) => {
                self.refuse_written_meanwhile(&header, last, progress)?;
                self.start = Start::CatchingUp;
                Started::Resumed
            }
            Sought::AtEnd => {
                self.start = Start::Settled;
                Started::Resumed
            }
            Sought::Checkpointed(end, pages) => {
                self.repair(Some((end, pages)), sink, polled, progress).map_err(|error| self.of_comparing(error))?
            }
            Sought::Gone => self.repair_all(sink, polled, progress)?,
        };
        self.durability.started = Some(started);
        Ok(started)
    }

    /// Whether the log does not have our position any more.
    pub(super) fn position_is_gone(&mut self) -> Result<bool, CaptureError> {
        Ok(matches!(self.seek_position()?, Sought::Gone))
    }

    fn seek_position(&mut self) -> Result<Sought, CaptureError> {
        // Another file has another history, whatever stands beside it.
        if !self.trusts_log || self.shadow.as_ref().is_some_and(|shadow| !shadow.database().is(&self.file.identity())) {
            return Ok(Sought::Gone);
        }
        self.look_for_position()
    }

    fn look_for_position(&mut self) -> Result<Sought, CaptureError> {
        let (salts, bound) = look_at_bound(&self.frames, &self.bounds, &self.file)?;
        let position = self.position;
        let header = self.frames.read_header()?.filter(|header| header.salts == position.salts);
        let Some(header) = header.filter(|_| position.frame.0 > 0 && salts == Some(position.salts)) else {
            return Ok(Sought::Gone);
        };
        let ours = self.frames.read_frame_header(&header, position.frame)?;
        let is_intact =
            ours.is_some_and(|frame| frame.checksum == position.checksum && frame.commit == Some(position.page_count));
        let is_complete = bound.committed == bound.checkpointed;
        let mut since = Vec::new();
        let mut end = position;
        if is_intact && is_complete {
            for no in position.frame.0 + 1..=bound.committed {
                let Some(frame) = self.frames.read_frame_header(&header, FrameNo(no))? else {
                    return Ok(Sought::Gone);
                };
                since.push(frame.page);
                if let Some(page_count) = frame.commit {
                    end = Position { frame: FrameNo(no), checksum: frame.checksum, page_count, ..position };
                }
            }
        }
        // A restart writes the header first: if it is still there, what was read belongs to it.
        if self.frames.read_header()?.is_none_or(|header| header.salts != position.salts) {
            return Ok(Sought::Gone);
        }
        if !is_intact || (bound.committed > 0 && bound.committed < position.frame.0) {
            if self.durability.went_back {
                return Ok(Sought::Gone);
            }
            let path = self.file.path().to_owned();
            return Err(ShadowError::WentBack { path, captured: position.frame.0, found: bound.committed }.into());
        }
        if bound.committed == 0 {
            // Restarted, and not written to since.
            return Ok(Sought::Gone);
        }
        self.frames.begin_generation(header);
        if is_complete && end == position {
            return Ok(Sought::AtEnd);
        }
        if is_complete {
            since.sort_unstable();
            since.dedup();
            since.retain(|page| page.get() <= end.page_count);
            return Ok(Sought::Checkpointed(end, since));
        }
        self.frames.cover(position.frame)?;
        let mut at = FrameNo(0);
        while at < position.frame {
            let tx = self.frames.collect(FrameNo(at.0 + 1), position.frame)?;
            let Some((commit, _)) = tx.commit else { return Ok(Sought::Gone) };
            self.frames.take(&tx);
            at = commit;
        }
        Ok(Sought::Found(header, FrameNo(bound.committed)))
    }

    fn of_comparing<E>(&self, error: FollowError<E>) -> FollowError<E> {
        match (error, &self.shadow) {
            (FollowError::Capture(CaptureError::Diff(source)), Some(shadow)) => {
                CaptureError::from(ShadowError::Incomparable { path: shadow.path().to_owned(), source }).into()
            }
            (error, _) => error,
        }
    }

    fn repair_all<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        polled: &mut Polled,
        progress: Progress<'_>,
    ) -> Result<Started, FollowError<E>> {
        self.repair(None, sink, polled, progress).map_err(|error| self.of_comparing(error))
    }

    /// One transaction from the shadow to the pinned snapshot. `known` are the pages that changed up to a position, if that is known.
    fn repair<E>(
        &mut self,
        known: Option<(Position, Vec<PageNo>)>,
        sink: &mut dyn ChangeSink<E>,
        polled: &mut Polled,
        progress: Progress<'_>,
    ) -> Result<Started, FollowError<E>> {
        let (end, bound) = stand_at(&mut self.frames, &self.bounds, &self.file)?;
        self.bound = bound;
        let Some(shadow) = &self.shadow else { return Ok(Started::Already) };
        let now = AtPosition::new(&self.frames, &self.file, self.page_size, end.page_count);
        let changed = match known {
            Some((at, pages)) if at == end => pages,
            _ => shadow.differing(&now, &self.file, progress)?,
        };
        let span = TxSpan {
            tx: self.next_tx,
            salts: end.salts,
            frame_first: end.frame,
            frame_last: end.frame,
            checksum: end.checksum,
            page_count: end.page_count,
            repaired: true,
        };
        if !self.durability.accept_restored {
            let looks_restored = !self.durability.went_back
                && (!shadow.database().is(&self.file.identity()) || goes_back(self.differ.header(), &now)?);
            let mut deletes = Deletes(0);
            // A look alone: what follows compares once more, from the same version.
            self.differ.preview(shadow, &now, &changed, &span, &mut deletes).map_err(|error| never(error.into()))?;
            let deletes = deletes.0;
            if deletes > 0 && (looks_restored || deletes > DELETES_WITHOUT_SIGN_MAX) {
                let rows = self.differ.count_rows(shadow, deletes.saturating_mul(10)).map_err(CaptureError::from)?;
                if deletes.saturating_mul(10) > rows {
                    let path = self.file.path().to_owned();
                    return Err(CaptureError::from(ShadowError::Restored { path, deletes, rows }).into());
                }
            }
        }
        let versions = (shadow as &dyn PageSource, &now as &dyn PageSource);
        let (changes, entry) = take_journaled(&mut self.differ, shadow, versions, &changed, (&span, end), sink)?;
        if let Some(shadow) = &mut self.shadow {
            shadow.accept(entry);
        }
        if changes > 0 {
            self.next_tx += 1;
            polled.transactions += 1;
            polled.commits += 1;
        }
        self.position = end;
        self.start = Start::Settled;
        Ok(Started::Repaired { pages: changed.len() as u64, changes })
    }
}

/// Whether the header's counters are smaller than they were: SQLite never lets them.
fn goes_back(was: &DatabaseHeader, now: &AtPosition<'_>) -> Result<bool, CaptureError> {
    let page = now.page(PageNo::ONE).map_err(DiffError::from)?;
    let header = DatabaseHeader::parse(&page).map_err(DiffError::from)?;
    Ok(header.change_counter < was.change_counter || header.schema_cookie < was.schema_cookie)
}
