//! Puts pieces together again.

use std::collections::HashMap;

use thiserror::Error;

use super::envelope::{EnvelopeError, decode_units};
use super::message::{Batch, Body, Header, Origin, Unit};

/// What is there of a list of units that travels in pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// The batch number of its first piece: a reader that begins anew must begin there.
    pub batch_no_first: u64,
    /// How many pieces have come.
    pub piece_count: u32,
    /// How many there will be.
    pub piece_count_total: u32,
    /// The bytes so far.
    pub bytes: Vec<u8>,
}

/// Why a message cannot be put together with those before it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AssembleError {
    /// Pieces do not follow one another.
    #[error("piece {found} of batch {batch_no} follows where piece {wanted} belongs (node {})", origin.node_id)]
    OutOfOrder {
        /// Who sent it.
        origin: Origin,
        /// The message.
        batch_no: u64,
        /// The piece that would be next; 0 where none has begun.
        wanted: u32,
        /// The piece that came.
        found: u32,
    },
    /// The pieces together are larger than allowed.
    #[error("pieces of node {} hold more than {limit} bytes together", origin.node_id)]
    TooLarge {
        /// Who sent them.
        origin: Origin,
        /// The limit.
        limit: usize,
    },
    /// The joined pieces are no list of units.
    #[error("joined pieces up to batch {batch_no} of node {}: {source}", origin.node_id)]
    Envelope {
        /// Who sent them.
        origin: Origin,
        /// The last piece.
        batch_no: u64,
        /// What is wrong with them.
        source: EnvelopeError,
    },
}

/// Joins the pieces of one shard, per origin. Give it each message once, in order: what [`super::Sequence`] calls `Next`.
#[derive(Debug)]
pub struct Assembler {
    bytes_max: usize,
    bytes: usize,
    incomplete: HashMap<Origin, Incomplete>,
}

impl Assembler {
    /// Makes an assembler that holds at most `bytes_max` bytes of incomplete pieces, of all origins together.
    #[must_use]
    pub fn new(bytes_max: usize) -> Assembler {
        Assembler { bytes_max, bytes: 0, incomplete: HashMap::new() }
    }

    /// Goes on where another assembler stopped: takes what its [`Assembler::incomplete`] showed.
    #[must_use]
    pub fn resume(bytes_max: usize, incomplete: HashMap<Origin, Incomplete>) -> Assembler {
        let bytes = incomplete.values().map(|pieces| pieces.bytes.len()).sum();
        Assembler { bytes_max, bytes, incomplete }
    }

    /// Takes the next message. `None`: a piece, and the rest is still to come. Else the header of the last message and its units.
    ///
    /// # Errors
    ///
    /// [`AssembleError`]; the assembler is as it was before.
    pub fn push(&mut self, batch: Batch) -> Result<Option<(Header, Vec<Unit>)>, AssembleError> {
        let Batch { header, body } = batch;
        let (origin, batch_no) = (header.origin, header.batch_no);
        let wanted = self.incomplete.get(&origin).map_or(0, |pieces| pieces.piece_count);
        let (index, count, bytes) = match body {
            Body::Units(units) if wanted == 0 => return Ok(Some((header, units))),
            Body::Units(_) => return Err(AssembleError::OutOfOrder { origin, batch_no, wanted, found: 0 }),
            Body::Piece { index, count, bytes } => (index, count, bytes),
        };
        let count_known = self.incomplete.get(&origin).map_or(count, |pieces| pieces.piece_count_total);
        if index != wanted || count != count_known || index >= count {
            return Err(AssembleError::OutOfOrder { origin, batch_no, wanted, found: index });
        }
        if bytes.len() > self.bytes_max.saturating_sub(self.bytes) {
            return Err(AssembleError::TooLarge { origin, limit: self.bytes_max });
        }
        if index + 1 < count {
            self.bytes += bytes.len();
            let pieces = self.incomplete.entry(origin).or_insert_with(|| Incomplete {
                batch_no_first: batch_no,
                piece_count: 0,
                piece_count_total: count,
                bytes: Vec::new(),
            });
            pieces.piece_count += 1;
            pieces.bytes.extend_from_slice(&bytes);
            return Ok(None);
        }
        let Some(mut pieces) = self.incomplete.remove(&origin) else {
            return Err(AssembleError::OutOfOrder { origin, batch_no, wanted, found: index });
        };
        let bytes_before = pieces.bytes.len();
        pieces.bytes.extend_from_slice(&bytes);
        match decode_units(&pieces.bytes) {
            Ok(units) => {
                self.bytes -= bytes_before;
                Ok(Some((header, units)))
            }
            Err(source) => {
                pieces.bytes.truncate(bytes_before);
                self.incomplete.insert(origin, pieces);
                Err(AssembleError::Envelope { origin, batch_no, source })
            }
        }
    }

    /// What is not complete yet, per origin.
    #[must_use]
    pub fn incomplete(&self) -> &HashMap<Origin, Incomplete> {
        &self.incomplete
    }

    /// Drops the pieces of an origin that will not send the rest; returns whether there were any.
    pub fn forget(&mut self, origin: Origin) -> bool {
        let Some(pieces) = self.incomplete.remove(&origin) else { return false };
        self.bytes -= pieces.bytes.len();
        true
    }
}
