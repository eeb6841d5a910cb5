//! The write-ahead log: its header, its frames, its checksums.
//!
//! The file begins with a header of 32 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic 0x377f0682 (checksums read words little-endian) or 0x377f0683 (big-endian) |
//! | 4 | 4 | format version 3007000 |
//! | 8 | 4 | page size, a plain 32-bit number |
//! | 12 | 4 | checkpoint sequence number |
//! | 16 | 8 | salts |
//! | 24 | 8 | checksum of bytes 0–23 |
//!
//! and goes on with frames, each a header of 24 bytes and a page:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | page number |
//! | 4 | 4 | in commit frames the database size in pages, else 0 |
//! | 8 | 8 | salts, a copy of the header's |
//! | 16 | 8 | running checksum over header bytes 0–7 and the page of every frame so far, begun with the header's |
//!
//! Invariant: a frame belongs to the log only if its salts are the header's and its checksum continues the chain; the first that fails
//! is the end, and what stands behind it is an older generation or nothing.
//!
//! Source: <https://sqlite.org/fileformat2.html>, section 4.

use super::bytes::be_u32;
use super::{FrameNo, HeaderError, PageNo, PageSize, Salts};

/// Length of the header in bytes.
pub const WAL_HEADER_BYTES: usize = 32;
/// Length of a frame's header in bytes.
pub const FRAME_HEADER_BYTES: usize = 24;
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;
const VERSION: u32 = 3_007_000;

const _: () = assert!((WAL_HEADER_BYTES - 8).is_multiple_of(8), "the checksum runs over 8-byte units");

/// In which order the checksum reads its 32-bit words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

/// The running checksum: two 32-bit sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checksum {
    /// The first sum.
    pub s0: u32,
    /// The second sum.
    pub s1: u32,
}

impl Checksum {
    /// Goes on over `bytes`; a tail shorter than 8 bytes does not count (the format has none).
    #[must_use]
    pub fn over(self, order: ByteOrder, bytes: &[u8]) -> Checksum {
        let Checksum { mut s0, mut s1 } = self;
        let (units, _) = bytes.as_chunks::<8>();
        for unit in units {
            let [a, b, c, d, e, f, g, h] = *unit;
            let (x0, x1) = match order {
                ByteOrder::Little => (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])),
                ByteOrder::Big => (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])),
            };
            s0 = s0.wrapping_add(x0).wrapping_add(s1);
            s1 = s1.wrapping_add(x1).wrapping_add(s0);
        }
        Checksum { s0, s1 }
    }
}

/// The decoded header of a WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Byte order of the checksums.
    pub order: ByteOrder,
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Counts restarts, privately to the connections that made them: not comparable.
    pub checkpoint_seq: u32,
    /// The generation's name.
    pub salts: Salts,
    /// The checksum with which the frames' chain begins.
    pub checksum: Checksum,
}

impl WalHeader {
    /// Decodes and checks the first 32 bytes of a WAL.
    ///
    /// # Errors
    /// [`HeaderError`] when the bytes are too few, are no WAL header, or do not match their checksum.
    pub fn parse(bytes: &[u8]) -> Result<WalHeader, HeaderError> {
        let header: &[u8; WAL_HEADER_BYTES] =
            bytes.first_chunk().ok_or(HeaderError::Short { found: bytes.len(), wanted: WAL_HEADER_BYTES })?;
        let u32_at = |offset| be_u32(header, offset).unwrap_or(0);
        let order = match u32_at(0) {
            MAGIC_LITTLE => ByteOrder::Little,
            MAGIC_BIG => ByteOrder::Big,
            _ => return Err(HeaderError::Magic { what: "write-ahead log" }),
        };
        if u32_at(4) != VERSION {
            return Err(HeaderError::Field { field: "WAL format version", value: u64::from(u32_at(4)) });
        }
        let page_size = PageSize::new(u32_at(8))
            .ok_or(HeaderError::Field { field: "WAL page size", value: u64::from(u32_at(8)) })?;
        let checksum = Checksum { s0: u32_at(24), s1: u32_at(28) };
        if Checksum::default().over(order, header.get(..24).unwrap_or(&[])) != checksum {
            return Err(HeaderError::Checksum);
        }
        Ok(WalHeader { order, page_size, checkpoint_seq: u32_at(12), salts: salts_at(header, 16), checksum })
    }

    /// Bytes of one frame with its header.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.page_size.get())
    }

    /// Offset of a frame's header in the file; frames count from 1.
    #[must_use]
    pub fn frame_offset(&self, frame: FrameNo) -> u64 {
        WAL_HEADER_BYTES as u64 + (u64::from(frame.0).saturating_sub(1)) * self.frame_bytes()
    }
}

fn salts_at(bytes: &[u8], offset: usize) -> Salts {
    Salts(bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default())
}

/// The decoded header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that the frame holds.
    pub page: PageNo,
    /// In commit frames the size of the database after the commit, in pages.
    pub commit: Option<u32>,
    /// The generation.
    pub salts: Salts,
    /// The stored checksum.
    pub checksum: Checksum,
}

impl FrameHeader {
    /// Decodes the 24 bytes of a frame's header without judging them; `None` when there are fewer, or the page number is 0.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<FrameHeader> {
        let header: &[u8; FRAME_HEADER_BYTES] = bytes.first_chunk()?;
        let u32_at = |offset| be_u32(header, offset).unwrap_or(0);
        Some(FrameHeader {
            page: PageNo::new(u32_at(0))?,
            commit: Some(u32_at(4)).filter(|size| *size > 0),
            salts: salts_at(header, 8),
            checksum: Checksum { s0: u32_at(16), s1: u32_at(20) },
        })
    }
}

/// Why a scan of frames ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanEnd {
    /// The file ends after a whole frame.
    EndOfFile,
    /// The file ends within a frame.
    PartialFrame,
    /// A frame with page number 0: space that was never written.
    NoPage,
    /// A frame of another generation.
    StaleSalts,
    /// A frame of this generation whose checksum does not continue the chain: damage, or a frame overwritten by a crash.
    ChecksumMismatch,
}

/// Walks the frames of a WAL from its first, judging each.
#[derive(Debug, Clone)]
pub struct FrameScan {
    header: WalHeader,
    checksum: Checksum,
    next: FrameNo,
}

impl FrameScan {
    /// Begins before frame 1.
    #[must_use]
    pub fn new(header: WalHeader) -> FrameScan {
        FrameScan { header, checksum: header.checksum, next: FrameNo(1) }
    }

    /// Number of the frame that [`FrameScan::step`] takes next.
    #[must_use]
    pub fn next_frame(&self) -> FrameNo {
        self.next
    }

    /// Judges the next frame: `bytes` is its header and page; fewer bytes are the end of the file.
    ///
    /// # Errors
    /// The reason why the log ends before this frame.
    pub fn step(&mut self, bytes: &[u8]) -> Result<FrameHeader, ScanEnd> {
        if bytes.is_empty() {
            return Err(ScanEnd::EndOfFile);
        }
        let page = FRAME_HEADER_BYTES
            .checked_add(self.header.page_size.bytes())
            .and_then(|end| bytes.get(FRAME_HEADER_BYTES..end))
            .ok_or(ScanEnd::PartialFrame)?;
        let frame = FrameHeader::parse(bytes).ok_or(ScanEnd::NoPage)?;
        if frame.salts != self.header.salts {
            return Err(ScanEnd::StaleSalts);
        }
        let order = self.header.order;
        let checksum = self.checksum.over(order, bytes.get(..8).unwrap_or(&[])).over(order, page);
        if checksum != frame.checksum {
            return Err(ScanEnd::ChecksumMismatch);
        }
        self.checksum = checksum;
        self.next = FrameNo(self.next.0.saturating_add(1));
        Ok(frame)
    }
}
