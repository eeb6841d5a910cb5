//! What a power failure took: commits that were captured and are not in the database any more.
//!
//! The journal has the versions since its last merge, and nothing is merged before it is durable. So the newest of them that the log still
//! has is what the database came back with. Where the log is gone too, it is the last one that was made durable.

use std::convert::Infallible;

use super::resume::{Start, never};
use super::stand::look_at_bound;
use super::{CaptureError, Follower, Position, ShadowError};
use crate::change::{ChangeSink, PageSource, RowChange, SchemaChange, TxSpan};

/// Gathers row changes, and whether the schema changed.
#[derive(Default)]
struct Gathered {
    rows: Vec<RowChange>,
    schema_changes: u64,
}

impl ChangeSink<Infallible> for Gathered {
    fn begin(&mut self, _: &TxSpan) -> Result<(), Infallible> {
        Ok(())
    }
    fn schema(&mut self, _: SchemaChange) -> Result<(), Infallible> {
        self.schema_changes += 1;
        Ok(())
    }
    fn change(&mut self, change: RowChange) -> Result<(), Infallible> {
        self.rows.push(change);
        Ok(())
    }
    fn commit(&mut self, _: &TxSpan, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Follower {
    /// Tells that the machine was started anew since `durable` was made durable, and that nothing later was for certain.
    pub fn set_rebooted(&mut self, durable: Position) {
        self.durability.rebooted = Some(durable);
    }

    /// The rows that a power failure may have taken, each from what was captured (`before`) to what the failure left (`after`). To be
    /// asked before the first look at the log. A row that the database has as in `after` is lost; any other was changed since.
    ///
    /// `None` when nothing of the kind happened, and where a restored database is accepted as it is. Rows that are put back before the first look are no change for it.
    ///
    /// # Errors
    /// [`ShadowError::WentBack`] when the journal does not know the version that the failure left, or when it took changes of the schema.
    pub fn lost(&mut self) -> Result<Option<Vec<RowChange>>, CaptureError> {
        if self.start != Start::Unsettled || !self.trusts_log {
            return Ok(None);
        }
        if self.durability.accept_restored {
            // Whatever it is, it is meant.
            self.durability.went_back = true;
            return Ok(None);
        }
        let went_back = match self.position_is_gone() {
            Ok(false) => return Ok(None),
            Ok(true) => None,
            Err(CaptureError::Shadow(error @ ShadowError::WentBack { .. })) => Some(error),
            Err(error) => return Err(error),
        };
        let durable = self.durability.rebooted;
        let Some(shadow) = self.shadow.as_ref().filter(|shadow| shadow.database().is(&self.file.identity())) else {
            return Ok(None);
        };
        if went_back.is_none() && durable.is_none_or(|durable| durable == self.position) {
            return Ok(None);
        }
        let (_, bound) = look_at_bound(&self.frames, &self.bounds, &self.file)?;
        let header = self.frames.read_header()?;
        let mut is_in_log = |position: &Position| {
            let Some(header) = header.filter(|header| header.salts == position.salts) else { return Ok(false) };
            if position.frame.0 == 0 || position.frame.0 > bound.committed {
                return Ok(position.frame.0 == 0);
            }
            let found = self.frames.read_frame_header(&header, position.frame)?;
            Ok(found
                .is_some_and(|frame| frame.checksum == position.checksum && frame.commit == Some(position.page_count)))
        };
        let earlier = match (shadow.earlier(&mut is_in_log)?, durable) {
            (None, Some(durable)) => shadow.earlier(&mut |position| Ok(*position == durable))?,
            (found, _) => found,
        };
        let earlier = match (earlier, went_back) {
            (Some(earlier), _) => earlier,
            (None, Some(error)) => return Err(error.into()),
            (None, None) => return Ok(None),
        };
        let span = TxSpan {
            tx: self.next_tx,
            salts: self.position.salts,
            frame_first: self.position.frame,
            frame_last: self.position.frame,
            checksum: self.position.checksum,
            page_count: earlier.page_count(),
            repaired: true,
        };
        let mut gathered = Gathered::default();
        self.differ
            .preview(shadow, &earlier, &earlier.changed_since, &span, &mut gathered)
            .map_err(|error| never(error.into()))?;
        if gathered.schema_changes > 0 {
            let (path, captured) = (self.file.path().to_owned(), self.position.frame.0);
            return Err(ShadowError::WentBack { path, captured, found: bound.committed }.into());
        }
        self.durability.went_back = true;
        Ok(Some(gathered.rows))
    }
}
