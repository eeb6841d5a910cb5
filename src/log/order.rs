//! What the numbers of a message say: next, seen before, or one is missing.

use super::message::Header;

/// The last message of one origin in one shard that was folded. Zeros stand for "none yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Folded {
    /// Its [`Header::batch_no`].
    pub batch_no: u64,
    /// Its [`Header::round_no`].
    pub round_no: u64,
    /// Its [`Header::part`].
    pub part: u32,
}

/// How a message stands to what was folded of its origin in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The next one: to be folded.
    Next,
    /// Folded already: to be dropped.
    Duplicate,
    /// Messages `from` to `to`, both included, were acknowledged by the server and are not in the log: they are lost, and that is an alarm.
    Missing {
        /// The first missing batch number.
        from: u64,
        /// The last missing batch number.
        to: u64,
    },
}

impl Folded {
    /// Judges the next message of the same origin and shard.
    #[must_use]
    pub fn judge(&self, header: &Header) -> Sequence {
        if header.batch_no <= self.batch_no {
            Sequence::Duplicate
        } else if header.batch_no - self.batch_no == 1 {
            Sequence::Next
        } else {
            Sequence::Missing { from: self.batch_no + 1, to: header.batch_no - 1 }
        }
    }
}

impl From<&Header> for Folded {
    fn from(header: &Header) -> Folded {
        Folded { batch_no: header.batch_no, round_no: header.round_no, part: header.part }
    }
}
