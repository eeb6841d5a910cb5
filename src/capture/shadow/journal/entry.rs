//! One transaction in the journal.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | `WDT2` |
//! | 4 | number of records *n*, one a page |
//! | 24 | position after the transaction |
//! | 24 | the last position at or before it that the sink was given |
//! | … | *n* records |
//! | 8 | checksum over the entry so far, going on from that of the entry before; the first goes on from the header's |
//!
//! A record:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | page number |
//! | 1 | kind: 1 the whole page, 2 ranges, 3 in place |
//! | 3 | bytes of the body *b* |
//! | 8 | for ranges: offset in the journal of the whole page that they belong to; 0 for the page in `shadow.db` |
//! | *b* | the page; the ranges; or the checksum of the page, which is in `shadow.db` |
//! | | zeros up to a multiple of 8 |
//!
//! Format version 1 has entries of another kind: `WDTX`, number of pages, both positions, the page numbers (4 bytes each, zeros up to a
//! multiple of 8), the pages, the checksum.
//!
//! Invariant: a page that is in place is compared with its checksum unless a merge has begun behind it. A merge begins when all of it is on
//! disk, and overwrites it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use super::header::{CHECKSUM_BYTES, ENTRIES_OFFSET, Standing, checksum_bytes, sum, u32_at, u64_at};
use super::index::{Base, Place};
use crate::capture::{POSITION_BYTES, Position};
use crate::format::{Checksum, PageNo, PageSize};

const MAGIC: &[u8; 4] = b"WDT2";
const MAGIC_WHOLE_PAGES: &[u8; 4] = b"WDTX";
pub(super) const ENTRY_HEAD_BYTES: usize = 8 + 2 * POSITION_BYTES;
pub(super) const RECORD_HEAD_BYTES: usize = 16;
/// The checksum runs over units of this size.
const UNIT_BYTES: usize = 8;

const _: () = assert!(ENTRY_HEAD_BYTES.is_multiple_of(UNIT_BYTES), "the checksum runs over 8-byte units");
const _: () = assert!(RECORD_HEAD_BYTES.is_multiple_of(UNIT_BYTES), "the checksum runs over 8-byte units");

const KIND_WHOLE: u32 = 1;
const KIND_RANGES: u32 = 2;
const KIND_IN_PLACE: u32 = 3;

/// An entry that is written and does not count yet.
#[derive(Debug)]
pub(in crate::capture) struct Appended {
    pub(super) standing: Standing,
    pub(super) places: Vec<(PageNo, Place)>,
    pub(super) end: u64,
    pub(super) chain: Checksum,
    /// Bytes of it that were written to `shadow.db`.
    pub(in crate::capture::shadow) image_bytes: u64,
}

impl Appended {
    pub(in crate::capture::shadow) fn position(&self) -> Position {
        self.standing.position
    }

    pub(in crate::capture::shadow) fn pages(&self) -> impl Iterator<Item = PageNo> + '_ {
        self.places.iter().map(|(page, _)| *page)
    }
}

pub(super) fn write_head(out: &mut Vec<u8>, count: usize, standing: &Standing) {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&standing.position.to_bytes());
    out.extend_from_slice(&standing.given.to_bytes());
}

/// What a record holds.
pub(super) enum Body<'b> {
    Whole(&'b [u8]),
    Ranges(&'b [u8], Base),
    InPlace(Checksum),
}

/// Writes a record behind `out`, whose first byte stands at `offset` of the journal.
pub(super) fn write_record(out: &mut Vec<u8>, offset: u64, page: PageNo, body: &Body<'_>) -> Place {
    let at = offset + (out.len() + RECORD_HEAD_BYTES) as u64;
    let checksum;
    let (kind, bytes, base, place) = match body {
        Body::Whole(bytes) => (KIND_WHOLE, *bytes, 0, NonZeroU64::new(at).map_or(Place::Image, Place::Whole)),
        Body::Ranges(bytes, base) => {
            let place = Place::Ranges { offset: at, bytes: bytes.len() as u32, base: *base };
            let base = if let Base::Journal(offset) = base { offset.get() } else { 0 };
            (KIND_RANGES, *bytes, base, place)
        }
        Body::InPlace(sum) => {
            checksum = checksum_bytes(*sum);
            (KIND_IN_PLACE, &checksum[..], 0, Place::Image)
        }
    };
    out.extend_from_slice(&page.get().to_be_bytes());
    out.extend_from_slice(&(kind << 24 | bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(&base.to_be_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(UNIT_BYTES), 0);
    place
}

/// The journal's bytes from one offset on, and the chain of checksums.
pub(super) struct Entries<'f, R> {
    pub(super) reader: R,
    pub(super) page_size: PageSize,
    /// `shadow.db`, for the pages that are in place.
    pub(super) image: &'f File,
    /// Where the journal ended when a merge began: what is in place before it need not be there any more.
    pub(super) mark: Option<u64>,
    pub(super) offset: u64,
    pub(super) chain: Checksum,
    /// No entry goes beyond.
    pub(super) file_bytes: u64,
}

impl<R: Read> Entries<'_, R> {
    /// The next entry; `None` where the chain ends.
    pub(super) fn next(&mut self) -> std::io::Result<Option<Appended>> {
        match self.read_entry() {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
            read => read,
        }
    }

    fn read_entry(&mut self) -> std::io::Result<Option<Appended>> {
        let is_checked = self.mark.is_none_or(|mark| self.offset >= mark);
        let mut head = [0; ENTRY_HEAD_BYTES];
        self.read(&mut head)?;
        let position = |at: usize| head.get(at..at + POSITION_BYTES).and_then(Position::from_bytes);
        let (Some(count), Some(position), Some(given)) = (u32_at(&head, 4), position(8), position(8 + POSITION_BYTES))
        else {
            return Ok(None);
        };
        let places = match head.first_chunk() {
            Some(MAGIC) => self.read_records(count, is_checked)?,
            Some(MAGIC_WHOLE_PAGES) => self.read_whole_pages(count)?,
            _ => None,
        };
        let Some(places) = places else { return Ok(None) };
        let chain = self.chain;
        let mut stored = [0; CHECKSUM_BYTES];
        self.reader.read_exact(&mut stored)?;
        self.offset += CHECKSUM_BYTES as u64;
        let standing = Standing { position, given };
        let is_ours = stored == checksum_bytes(chain);
        Ok(is_ours.then_some(Appended { standing, places, end: self.offset, chain, image_bytes: 0 }))
    }

    fn read_records(&mut self, count: u32, is_checked: bool) -> std::io::Result<Option<Vec<(PageNo, Place)>>> {
        // The count comes from the file: what is there bounds it before anything is reserved.
        if u64::from(count) * RECORD_HEAD_BYTES as u64 > self.file_bytes.saturating_sub(self.offset) {
            return Ok(None);
        }
        let mut places = Vec::with_capacity(count as usize);
        let page_bytes = self.page_size.bytes();
        let (mut body, mut page_in_place) = (vec![0; page_bytes], Vec::new());
        for _ in 0..count {
            let mut head = [0; RECORD_HEAD_BYTES];
            self.read(&mut head)?;
            let number = u32_at(&head, 0).and_then(PageNo::new);
            let (Some(page), Some(word), Some(base)) = (number, u32_at(&head, 4), u64_at(&head, 8)) else {
                return Ok(None);
            };
            let (kind, bytes, at) = (word >> 24, word & 0x00ff_ffff, self.offset);
            let padded = (bytes as usize).next_multiple_of(UNIT_BYTES);
            let Some(body) = body.get_mut(..padded) else { return Ok(None) };
            self.read(body)?;
            let base = match NonZeroU64::new(base) {
                None => Base::Image,
                Some(offset) if offset.get() > ENTRIES_OFFSET && offset.get() < at => Base::Journal(offset),
                Some(_) => return Ok(None),
            };
            let place = match (kind, NonZeroU64::new(at)) {
                (KIND_WHOLE, Some(at)) if bytes as usize == page_bytes => Place::Whole(at),
                (KIND_RANGES, _) => Place::Ranges { offset: at, bytes, base },
                (KIND_IN_PLACE, _) => {
                    if is_checked {
                        page_in_place.resize(page_bytes, 0);
                        self.image.read_exact_at(&mut page_in_place, page.file_offset(self.page_size))?;
                        if *body != checksum_bytes(sum(Checksum::default(), &page_in_place)) {
                            return Ok(None);
                        }
                    }
                    Place::Image
                }
                _ => return Ok(None),
            };
            places.push((page, place));
        }
        Ok(Some(places))
    }

    fn read_whole_pages(&mut self, count: u32) -> std::io::Result<Option<Vec<(PageNo, Place)>>> {
        let mut page = vec![0; self.page_size.bytes()];
        let numbers_bytes = (count as usize * 4).next_multiple_of(UNIT_BYTES);
        if (numbers_bytes + count as usize * page.len()) as u64 > self.file_bytes.saturating_sub(self.offset) {
            return Ok(None);
        }
        let mut numbers = vec![0; numbers_bytes];
        self.read(&mut numbers)?;
        let (words, _) = numbers.as_chunks::<4>();
        let mut places = Vec::with_capacity(count as usize);
        for word in words.iter().take(count as usize) {
            let at = NonZeroU64::new(self.offset);
            self.read(&mut page)?;
            let (Some(page), Some(at)) = (PageNo::new(u32::from_be_bytes(*word)), at) else { return Ok(None) };
            places.push((page, Place::Whole(at)));
        }
        Ok(Some(places))
    }

    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.reader.read_exact(bytes)?;
        self.chain = sum(self.chain, bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
