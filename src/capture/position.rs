//! Where capture stands.

use crate::change::TxSpan;
use crate::format::{Checksum, FrameNo, Salts};

/// The last captured commit frame. Positions are comparable only within a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The generation.
    pub salts: Salts,
    /// The commit frame; 0 at the start of a generation.
    pub frame: FrameNo,
    /// That frame's stored checksum; the default at frame 0.
    pub checksum: Checksum,
    /// Size of the database in pages after it.
    pub page_count: u32,
}

/// Length of an encoded position in bytes.
pub const POSITION_BYTES: usize = 24;

impl Position {
    /// Encodes: salts, then frame, the two sums and the page count as big-endian 32-bit numbers.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        let numbers = [self.frame.0, self.checksum.s0, self.checksum.s1, self.page_count];
        let content = self.salts.0.into_iter().chain(numbers.into_iter().flat_map(u32::to_be_bytes));
        bytes.iter_mut().zip(content).for_each(|(byte, value)| *byte = value);
        bytes
    }

    /// Decodes; `None` when the length is another.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let bytes: &[u8; POSITION_BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_be_bytes);
        Some(Position {
            salts: Salts(*bytes.first_chunk()?),
            frame: FrameNo(number(8)?),
            checksum: Checksum { s0: number(12)?, s1: number(16)? },
            page_count: number(20)?,
        })
    }
}

impl From<&TxSpan> for Position {
    /// Where capture stands behind a transaction that was read from frames.
    fn from(span: &TxSpan) -> Position {
        Position { salts: span.salts, frame: span.frame_last, checksum: span.checksum, page_count: span.page_count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_their_bytes() {
        let position = Position {
            salts: Salts([1, 2, 3, 4, 5, 6, 7, 8]),
            frame: FrameNo(70_000),
            checksum: Checksum { s0: u32::MAX, s1: 7 },
            page_count: 9,
        };
        assert_eq!(Position::from_bytes(&position.to_bytes()), Some(position));
        assert_eq!(Position::from_bytes(&[0; 3]), None);
    }
}
