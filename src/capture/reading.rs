//! Reads the transactions of the log up to the bound and hands them out, journaled where there is a shadow.

use std::ops::ControlFlow;
use std::time::Instant;

use super::follower::{Follower, Polled};
use super::frames::{AfterTx, AtPosition, TxFrames};
use super::resume::Start;
use super::shadow::{Appended, Journaled, Shadow};
use super::stand::look_at_bound;
use super::{CaptureError, FollowError, Position};
use crate::change::{ChangeSink, Differ, PageSource, TransactionError, TxSpan};
use crate::format::{FrameHeader, FrameNo, PageNo};

impl Follower {
    /// Whether there was anything to read.
    pub(super) fn read_to_bound<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        polled: &mut Polled,
    ) -> Result<bool, FollowError<E>> {
        self.read_until(sink, polled, None)
    }

    /// Reads up to the bound, or until the transaction that a time falls into has ended.
    pub(super) fn read_until<E>(
        &mut self,
        sink: &mut dyn ChangeSink<E>,
        polled: &mut Polled,
        deadline: Option<Instant>,
    ) -> Result<bool, FollowError<E>> {
        if self.start == Start::Unsettled {
            self.settle(sink, polled, &mut |_| ControlFlow::Continue(()))?;
        }
        let (salts, bound) = look_at_bound(&self.frames, &self.bounds, &self.file)?;
        self.bound = bound;
        let Some(salts) = salts.filter(|_| bound.committed > 0) else { return Ok(false) };
        if salts != self.position.salts || self.frames.header().is_none() {
            self.enter_generation(salts)?;
        }
        if bound.committed <= self.position.frame.0 {
            self.start = Start::Settled;
            return Ok(false);
        }
        let last = FrameNo(bound.committed);
        self.frames.cover(last)?;
        while self.position.frame < last {
            let tx = self.frames.collect(FrameNo(self.position.frame.0 + 1), last)?;
            let Some((commit, header)) = tx.commit else {
                // The bound stands behind a commit frame, always.
                return Err(self.damaged(last, "no commit frame up to the bound").into());
            };
            let changed = self.take_transaction(&tx, commit, &header, sink)?;
            let position = self.position_after(&tx, commit, &header);
            self.advance(&tx, position);
            self.policy.written_by_others = true;
            self.frames_read += u64::from(commit.0.saturating_sub(tx.first.0) + 1);
            polled.commits += 1;
            polled.transactions += u64::from(changed);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(true);
            }
        }
        // From here on no frame behind our position is in the database file.
        self.start = Start::Settled;
        Ok(true)
    }

    pub(super) fn take_transaction<E>(
        &mut self,
        tx: &TxFrames,
        commit: FrameNo,
        header: &FrameHeader,
        sink: &mut dyn ChangeSink<E>,
    ) -> Result<bool, FollowError<E>> {
        let at_position = AtPosition::new(&self.frames, &self.file, self.page_size, self.position.page_count);
        let before: &dyn PageSource = match &self.shadow {
            Some(shadow) if self.start == Start::CatchingUp => shadow,
            _ => &at_position,
        };
        let after = AfterTx { frames: &self.frames, before, tx };
        let span = TxSpan {
            tx: self.next_tx,
            salts: self.position.salts,
            frame_first: tx.first,
            frame_last: commit,
            repaired: false,
            checksum: header.checksum,
            page_count: tx.page_count,
        };
        let changed = tx.changed();
        let position = self.position_after(tx, commit, header);
        let (count, entry) = match &self.shadow {
            None => (self.differ.transaction(before, &after, &changed, &span, sink)?, None),
            Some(shadow) => {
                let versions = (before, &after as &dyn PageSource);
                let (count, entry) =
                    take_journaled(&mut self.differ, shadow, versions, &changed, (&span, position), sink)?;
                (count, Some(entry))
            }
        };
        if let (Some(shadow), Some(entry)) = (&mut self.shadow, entry) {
            shadow.accept(entry);
        }
        if count > 0 {
            self.next_tx += 1;
        }
        Ok(count > 0)
    }

    pub(super) fn position_after(&self, tx: &TxFrames, commit: FrameNo, header: &FrameHeader) -> Position {
        let salts = self.position.salts;
        Position { salts, frame: commit, checksum: header.checksum, page_count: tx.page_count }
    }

    pub(super) fn advance(&mut self, tx: &TxFrames, position: Position) {
        self.read_since_renewal =
            self.read_since_renewal.saturating_add(position.frame.0.saturating_sub(tx.first.0) + 1);
        self.resting = false;
        self.leave_rest();
        self.moved_at = Instant::now();
        self.frames.take(tx);
        self.position = position;
    }

    pub(super) fn damaged(&self, frame: FrameNo, what: &'static str) -> CaptureError {
        CaptureError::Frame { path: self.file.companion("-wal"), frame: frame.0, what }
    }
}

/// Takes a transaction with a shadow: its pages are in the journal before the sink stores its position. Returns the entry too, which
/// counts once the transaction was taken.
pub(super) fn take_journaled<E>(
    differ: &mut Differ,
    shadow: &Shadow,
    (before, after): (&dyn PageSource, &dyn PageSource),
    changed: &[PageNo],
    (span, position): (&TxSpan, Position),
    sink: &mut dyn ChangeSink<E>,
) -> Result<(u64, Appended), FollowError<E>> {
    let mut journaled = Journaled { shadow, position, pages: changed, after, sink, appended: None };
    let taken = differ.transaction(before, after, changed, span, &mut journaled);
    let appended = journaled.appended;
    let count = match taken {
        Ok(count) => count,
        Err(error) => {
            if appended.is_some() {
                shadow.cut().map_err(CaptureError::from)?;
            }
            return Err(match error {
                TransactionError::Diff(error) => CaptureError::Diff(error).into(),
                TransactionError::Sink(error) => error,
            });
        }
    };
    // Without a row change the sink was not asked, and the shadow moves on alone.
    let entry = match appended {
        Some(entry) => entry,
        None => shadow.append(position, false, changed, after).map_err(CaptureError::from)?,
    };
    Ok((count, entry))
}
