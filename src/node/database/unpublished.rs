//! Who waits for the log to have what was committed when he asked.

use tokio::sync::oneshot;

use super::Database;
use crate::capture::Committed;
use crate::node::NodeError;
use crate::node::waiting::FoldedOf;

/// One who waits.
#[derive(Debug)]
pub(super) struct Unpublished {
    up_to: UpTo,
    answer: oneshot::Sender<FoldedOf>,
}

/// For what.
#[derive(Debug)]
enum UpTo {
    /// What is committed, and perhaps not captured yet: one look does not always read all of it.
    Committed(Committed),
    /// The last unit that is pending.
    Pending(i64),
}

impl Database {
    /// Somebody waits for what is committed by now.
    pub(super) fn asked_for_published(&mut self, answer: oneshot::Sender<FoldedOf>) -> Result<(), NodeError> {
        let up_to = UpTo::Committed(self.attached.follower.committed()?);
        self.unpublished.push(Unpublished { up_to, answer });
        Ok(())
    }

    /// Tells those for whom the log has enough.
    pub(super) fn tell_published(&mut self) -> Result<(), NodeError> {
        for Unpublished { up_to, answer } in std::mem::take(&mut self.unpublished) {
            let up_to = match up_to {
                UpTo::Committed(committed) if self.attached.follower.has_read(&committed) => {
                    UpTo::Pending(self.replica.state().pending_last())
                }
                up_to => up_to,
            };
            let is_waited_for = match &up_to {
                UpTo::Committed(_) => true,
                UpTo::Pending(last) => self.replica.state().is_pending_up_to(*last)?,
            };
            // Whoever asked may be gone.
            match is_waited_for {
                true => self.unpublished.push(Unpublished { up_to, answer }),
                false => drop(answer.send(self.folded_of(self.replica.state().origin())?)),
            }
        }
        self.unpublished.retain(|waiting| !waiting.answer.is_closed());
        Ok(())
    }
}
