//! The head of the journal.
//!
//! Two header slots of 112 bytes, at offsets 0 and 512, are written in turn; the one with the higher sequence number counts.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `WDSHADOW` |
//! | 8 | 4 | format version 2; version 1 is read, and goes with the next merge |
//! | 12 | 4 | page size |
//! | 16 | 8 | sequence number |
//! | 24 | 24 | position of `shadow.db` |
//! | 48 | 24 | the last position at or before it that the sink was given |
//! | 72 | 16 | device and inode of the database file |
//! | 88 | 8 | checksum of bytes 0–87 |
//! | 96 | 8 | when the database file was made, in nanoseconds; 0 when nobody knows |
//! | 104 | 8 | checksum of bytes 0–103; earlier versions write nothing from byte 96 on, and it is another's then |
//!
//! At offset 768 stands the mark of a merge that began:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `WDMERGE1` |
//! | 8 | 8 | sequence number of the header that it belongs to |
//! | 16 | 8 | where the journal ended |
//! | 24 | 8 | checksum of bytes 0–23 |
//!
//! From offset 1,024 on, entries follow. Numbers are big-endian; the checksum is that of the write-ahead log with little-endian words.
//!
//! Invariant: an entry belongs to the journal only if its checksum continues the chain, which begins with the header's. So a new header
//! makes all old entries void, and the mark too.

use std::path::Path;

use crate::capture::shadow::ShadowError;
use crate::capture::{FileIdentity, POSITION_BYTES, Position};
use crate::format::{ByteOrder, Checksum, PageSize};

const MAGIC: &[u8; 8] = b"WDSHADOW";
const MARK_MAGIC: &[u8; 8] = b"WDMERGE1";
pub(super) const VERSION: u32 = 2;
/// Entries of whole pages alone.
pub(super) const VERSION_WHOLE_PAGES: u32 = 1;
/// A header up to the checksum that entries continue, and with what came to it later.
pub(super) const HEADER_BYTES: usize = 96;
pub(super) const SLOT_BYTES: usize = 112;
pub(super) const SLOT_OFFSETS: [u64; 2] = [0, 512];
pub(super) const MARK_OFFSET: u64 = 768;
pub(super) const MARK_BYTES: usize = 32;
/// Where the first entry begins.
pub(super) const ENTRIES_OFFSET: u64 = 1024;
pub(super) const CHECKSUM_BYTES: usize = 8;

const _: () = assert!(MARK_OFFSET + MARK_BYTES as u64 <= ENTRIES_OFFSET, "the mark stands before the entries");

/// Where the shadow stands, and what the sink knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::capture::shadow) struct Standing {
    /// The shadow's own position.
    pub(in crate::capture::shadow) position: Position,
    /// The last position that the sink was given. Transactions behind it changed no row.
    pub(in crate::capture::shadow) given: Position,
}

impl Standing {
    /// Whether a sink that stored `stored` knows everything up to here.
    pub(super) fn is_known_by(&self, stored: &Position) -> bool {
        let Standing { position, given } = self;
        let within = stored.salts == position.salts
            && stored.frame.0 > 0
            && stored.frame <= position.frame
            && (given.salts != position.salts || given.frame <= stored.frame);
        stored == position || stored == given || within
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) page_size: PageSize,
    pub(super) sequence: u64,
    pub(super) standing: Standing,
    pub(super) database: FileIdentity,
}

impl Header {
    /// The header as it is written, and its checksum.
    pub(super) fn to_bytes(self) -> ([u8; SLOT_BYTES], Checksum) {
        let mut bytes = Vec::with_capacity(SLOT_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.extend_from_slice(&self.page_size.get().to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.standing.position.to_bytes());
        bytes.extend_from_slice(&self.standing.given.to_bytes());
        bytes.extend_from_slice(&self.database.device.to_be_bytes());
        bytes.extend_from_slice(&self.database.inode.to_be_bytes());
        let checksum = sum(Checksum::default(), &bytes);
        bytes.extend_from_slice(&checksum_bytes(checksum));
        bytes.extend_from_slice(&self.database.born_ns.to_be_bytes());
        bytes.extend_from_slice(&checksum_bytes(sum(Checksum::default(), &bytes)));
        let mut out = [0; SLOT_BYTES];
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        (out, checksum)
    }

    /// `Ok(None)` when the slot holds no header.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Option<(Header, Checksum)>, ShadowError> {
        let Some((body, checksum)) = checked(bytes, HEADER_BYTES).filter(|(body, _)| body.starts_with(MAGIC)) else {
            return Ok(None);
        };
        let position_at = |at: usize| body.get(at..at + POSITION_BYTES).and_then(Position::from_bytes);
        let version = u32_at(body, 8).unwrap_or_default();
        if !(VERSION_WHOLE_PAGES..=VERSION).contains(&version) {
            return Err(ShadowError::Version { path: path.to_owned(), found: version });
        }
        let parsed = || {
            let standing = Standing { position: position_at(24)?, given: position_at(48)? };
            let born_ns = checked(bytes, SLOT_BYTES).and_then(|(body, _)| u64_at(body, 96)).unwrap_or_default();
            let database = FileIdentity { device: u64_at(body, 72)?, inode: u64_at(body, 80)?, born_ns };
            let page_size = PageSize::new(u32_at(body, 12)?)?;
            Some(Header { version, page_size, sequence: u64_at(body, 16)?, standing, database })
        };
        Ok(parsed().map(|header| (header, checksum)))
    }

    /// The mark of a merge that begins while the journal ends at `end`.
    pub(super) fn mark(&self, end: u64) -> Vec<u8> {
        let mut bytes = MARK_MAGIC.to_vec();
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&end.to_be_bytes());
        let checksum = sum(Checksum::default(), &bytes);
        bytes.extend_from_slice(&checksum_bytes(checksum));
        bytes
    }

    /// Where the journal ended when a merge began; `None` when none did since this header.
    pub(super) fn parse_mark(&self, bytes: &[u8]) -> Option<u64> {
        let (body, _) = checked(bytes, MARK_BYTES).filter(|(body, _)| body.starts_with(MARK_MAGIC))?;
        if u64_at(body, 8) == Some(self.sequence) { u64_at(body, 16) } else { None }
    }
}

/// What stands before the checksum that ends the first `length` bytes; `None` when it is another's.
fn checked(bytes: &[u8], length: usize) -> Option<(&[u8], Checksum)> {
    let (body, stored) = bytes.get(..length)?.split_last_chunk::<CHECKSUM_BYTES>()?;
    let checksum = sum(Checksum::default(), body);
    (*stored == checksum_bytes(checksum)).then_some((body, checksum))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_be_bytes)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_be_bytes)
}

pub(super) fn sum(checksum: Checksum, bytes: &[u8]) -> Checksum {
    checksum.over(ByteOrder::Little, bytes)
}

pub(super) fn checksum_bytes(checksum: Checksum) -> [u8; CHECKSUM_BYTES] {
    (u64::from(checksum.s0) << 32 | u64::from(checksum.s1)).to_be_bytes()
}
