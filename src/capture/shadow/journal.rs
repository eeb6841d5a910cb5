//! `shadow.journal`: the pages of transactions captured since the last merge.
//!
//! Two header slots of 96 bytes, at offsets 0 and 512, are written in turn; the one with the higher sequence number counts.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | `WDSHADOW` |
//! | 8 | 4 | format version 1 |
//! | 12 | 4 | page size |
//! | 16 | 8 | sequence number |
//! | 24 | 24 | position of `shadow.db` |
//! | 48 | 24 | the last position at or before it that the sink was given |
//! | 72 | 16 | device and inode of the database file |
//! | 88 | 8 | checksum of bytes 0–87 |
//!
//! From offset 1,024 on, entries follow, one a transaction:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | `WDTX` |
//! | 4 | number of pages *n* |
//! | 24 | position after the transaction |
//! | 24 | the last position at or before it that the sink was given |
//! | 4*n* | page numbers, padded to 8 bytes |
//! | *n* pages | |
//! | 8 | checksum over the entry so far, going on from that of the entry before; the first goes on from the header's |
//!
//! Numbers are big-endian; the checksum is that of the write-ahead log with little-endian words.
//!
//! Invariant: an entry belongs to the journal only if its checksum continues the chain. So a new header makes all old entries void.

use std::collections::HashMap;
use std::fs::File;
use std::hash::BuildHasherDefault;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ShadowError;
use crate::capture::frames::PageHasher;
use crate::capture::{FileIdentity, POSITION_BYTES, Position};
use crate::change::{DiffError, PageSource};
use crate::format::{ByteOrder, Checksum, PageNo, PageSize};

const MAGIC: &[u8; 8] = b"WDSHADOW";
const ENTRY_MAGIC: &[u8; 4] = b"WDTX";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 96;
const SLOT_OFFSETS: [u64; 2] = [0, 512];
/// Where the first entry begins.
pub(super) const ENTRIES_OFFSET: u64 = 1024;
const ENTRY_HEAD_BYTES: usize = 8 + 2 * POSITION_BYTES;
const CHECKSUM_BYTES: usize = 8;
/// What is read and written at a time.
pub(super) const BUFFER_BYTES: usize = 1 << 20;

const _: () = assert!(ENTRY_HEAD_BYTES.is_multiple_of(8), "the checksum runs over 8-byte units");

/// Page number → offset of its newest version in the journal. About 20 bytes a page; the merge bounds the pages.
pub(super) type JournalIndex = HashMap<u32, u64, BuildHasherDefault<PageHasher>>;

/// Where the shadow stands, and what the sink knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// The shadow's own position.
    pub(super) position: Position,
    /// The last position that the sink was given. Transactions behind it changed no row.
    pub(super) given: Position,
}

impl Standing {
    /// Whether a sink that stored `stored` knows everything up to here.
    fn is_known_by(&self, stored: &Position) -> bool {
        let Standing { position, given } = self;
        let within = stored.salts == position.salts
            && stored.frame.0 > 0
            && stored.frame <= position.frame
            && (given.salts != position.salts || given.frame <= stored.frame);
        stored == position || stored == given || within
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    page_size: PageSize,
    sequence: u64,
    standing: Standing,
    database: FileIdentity,
}

impl Header {
    fn to_bytes(self) -> ([u8; HEADER_BYTES], Checksum) {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_be_bytes());
        bytes.extend_from_slice(&self.page_size.get().to_be_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.standing.position.to_bytes());
        bytes.extend_from_slice(&self.standing.given.to_bytes());
        bytes.extend_from_slice(&self.database.device.to_be_bytes());
        bytes.extend_from_slice(&self.database.inode.to_be_bytes());
        let checksum = sum(Checksum::default(), &bytes);
        bytes.extend_from_slice(&checksum_bytes(checksum));
        let mut out = [0; HEADER_BYTES];
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        (out, checksum)
    }

    /// `Ok(None)` when the slot holds no header.
    fn parse(bytes: &[u8], path: &Path) -> Result<Option<(Header, Checksum)>, ShadowError> {
        let body = bytes.get(..HEADER_BYTES - CHECKSUM_BYTES).unwrap_or_default();
        if body.first_chunk() != Some(MAGIC) {
            return Ok(None);
        }
        let checksum = sum(Checksum::default(), body);
        if bytes.get(HEADER_BYTES - CHECKSUM_BYTES..HEADER_BYTES) != Some(&checksum_bytes(checksum)) {
            return Ok(None);
        }
        let u32_at = |at: usize| body.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_be_bytes);
        let u64_at = |at: usize| body.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_be_bytes);
        let position_at = |at: usize| body.get(at..at + POSITION_BYTES).and_then(Position::from_bytes);
        let found = u32_at(8).unwrap_or_default();
        if found != VERSION {
            return Err(ShadowError::Version { path: path.to_owned(), found });
        }
        let parsed = || {
            let standing = Standing { position: position_at(24)?, given: position_at(48)? };
            let database = FileIdentity { device: u64_at(72)?, inode: u64_at(80)? };
            Some(Header { page_size: PageSize::new(u32_at(12)?)?, sequence: u64_at(16)?, standing, database })
        };
        Ok(parsed().map(|header| (header, checksum)))
    }
}

fn sum(checksum: Checksum, bytes: &[u8]) -> Checksum {
    checksum.over(ByteOrder::Little, bytes)
}

fn checksum_bytes(checksum: Checksum) -> [u8; CHECKSUM_BYTES] {
    (u64::from(checksum.s0) << 32 | u64::from(checksum.s1)).to_be_bytes()
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    header: Header,
    standing: Standing,
    /// Where the next entry goes, and the checksum that it continues.
    end: u64,
    chain: Checksum,
    index: JournalIndex,
    /// Pages in entries, several versions of one counted each.
    page_count: u64,
}

/// An entry that is written and does not count yet.
#[derive(Debug)]
pub(in crate::capture) struct Appended {
    standing: Standing,
    pages: Vec<PageNo>,
    first_page_offset: u64,
    end: u64,
    chain: Checksum,
}

impl Journal {
    /// Makes an empty journal for a `shadow.db` at `position`, in place of any other.
    pub(super) fn create(
        path: &Path,
        page_size: PageSize,
        position: Position,
        database: FileIdentity,
    ) -> Result<Journal, ShadowError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|source| io_error(path, "creating the journal", source))?;
        let standing = Standing { position, given: position };
        let header = Header { page_size, sequence: 0, standing, database };
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            header,
            standing,
            end: ENTRIES_OFFSET,
            chain: Checksum::default(),
            index: JournalIndex::default(),
            page_count: 0,
        };
        journal.reset(database)?;
        Ok(journal)
    }

    /// Opens the journal and cuts off what a sink that stored `stored` does not know.
    pub(super) fn open(path: &Path, stored: &Position) -> Result<Journal, ShadowError> {
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ShadowError::Missing { path: path.to_owned() });
            }
            Err(source) => return Err(io_error(path, "opening the journal", source)),
        };
        let mut newest: Option<(Header, Checksum)> = None;
        for offset in SLOT_OFFSETS {
            let mut bytes = [0; HEADER_BYTES];
            match file.read_exact_at(&mut bytes, offset) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => continue,
                Err(source) => return Err(io_error(path, "reading the journal", source)),
            }
            if let Some(found) = Header::parse(&bytes, path)?
                && newest.is_none_or(|(header, _)| header.sequence < found.0.sequence)
            {
                newest = Some(found);
            }
        }
        let damaged = |what| ShadowError::Damaged { path: path.to_owned(), what };
        let (header, chain) = newest.ok_or_else(|| damaged("it has no header"))?;
        let mut journal = Journal {
            path: path.to_owned(),
            file,
            header,
            standing: header.standing,
            end: ENTRIES_OFFSET,
            chain,
            index: JournalIndex::default(),
            page_count: 0,
        };
        journal.take_known(stored)?;
        Ok(journal)
    }

    /// Goes through the entries and takes those up to the last one that is known.
    fn take_known(&mut self, stored: &Position) -> Result<(), ShadowError> {
        let mut known = self.standing.is_known_by(stored);
        let mut waiting = Vec::new();
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &self.file);
        reader
            .seek(SeekFrom::Start(ENTRIES_OFFSET))
            .map_err(|source| io_error(&self.path, "reading the journal", source))?;
        let file_bytes = self.file_bytes()?;
        let (mut end, mut chain) = (self.end, self.chain);
        let mut taken = Vec::new();
        while let Some(entry) = read_entry(&mut reader, self.header.page_size, end, chain, file_bytes)
            .map_err(|source| io_error(&self.path, "reading the journal", source))?
        {
            (end, chain) = (entry.end, entry.chain);
            let is_known = entry.standing.is_known_by(stored);
            waiting.push(entry);
            if is_known {
                known = true;
                taken.append(&mut waiting);
            }
        }
        drop(reader);
        if !known {
            let (salts, frame) = (stored.salts, stored.frame.0);
            return Err(ShadowError::NotAtPosition { path: self.path.clone(), salts, frame });
        }
        for entry in taken {
            self.accept(entry);
        }
        self.cut()
    }

    /// The entries that count, oldest first: where each stands, and its pages with their places in the file.
    #[allow(clippy::type_complexity, reason = "read once and taken apart at once")]
    pub(super) fn entries(&self) -> Result<Vec<(Position, Vec<(PageNo, u64)>)>, ShadowError> {
        let fail = |source| io_error(&self.path, "reading the journal", source);
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &self.file);
        reader.seek(SeekFrom::Start(ENTRIES_OFFSET)).map_err(fail)?;
        let (_, mut chain) = self.header.to_bytes();
        let (mut end, mut entries) = (ENTRIES_OFFSET, Vec::new());
        let page_bytes = u64::from(self.header.page_size.get());
        while end < self.end
            && let Some(entry) = read_entry(&mut reader, self.header.page_size, end, chain, self.end).map_err(fail)?
        {
            (end, chain) = (entry.end, entry.chain);
            let places = (0..).map(|nth| entry.first_page_offset + nth * page_bytes);
            entries.push((entry.standing.position, entry.pages.into_iter().zip(places).collect()));
        }
        Ok(entries)
    }

    fn file_bytes(&self) -> Result<u64, ShadowError> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|source| io_error(&self.path, "looking at the journal", source))?.len())
    }

    /// Writes an entry behind the last one that counts. It counts once it was given to [`Journal::accept`].
    pub(super) fn append(
        &self,
        standing: Standing,
        pages: &[PageNo],
        source: &dyn PageSource,
    ) -> Result<Appended, super::WriteError> {
        let page_bytes = self.header.page_size.bytes();
        let mut out = Writer { journal: self, offset: self.end, chain: self.chain, buffer: Vec::new() };
        out.buffer.reserve(BUFFER_BYTES.min(pages.len().saturating_mul(page_bytes + 4) + 2 * ENTRY_HEAD_BYTES));
        out.buffer.extend_from_slice(ENTRY_MAGIC);
        let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
        out.buffer.extend_from_slice(&count.to_be_bytes());
        out.buffer.extend_from_slice(&standing.position.to_bytes());
        out.buffer.extend_from_slice(&standing.given.to_bytes());
        for pair in pages.chunks(2) {
            for slot in 0..2 {
                out.buffer.extend_from_slice(&pair.get(slot).map_or(0, |page| page.get()).to_be_bytes());
            }
            out.flush_if_full()?;
        }
        let first_page_offset = out.offset + out.buffer.len() as u64;
        for page in pages {
            let bytes = source.page(*page).map_err(DiffError::from)?;
            if bytes.len() != page_bytes {
                let what = "a page of another size was to be written";
                return Err(ShadowError::Damaged { path: self.path.clone(), what }.into());
            }
            out.buffer.extend_from_slice(&bytes);
            out.flush_if_full()?;
        }
        out.add_to_chain();
        let chain = out.chain;
        out.buffer.extend_from_slice(&checksum_bytes(chain));
        out.write()?;
        Ok(Appended { standing, pages: pages.to_vec(), first_page_offset, end: out.offset, chain })
    }

    /// Lets an entry count.
    pub(super) fn accept(&mut self, entry: Appended) {
        let page_bytes = u64::from(self.header.page_size.get());
        let page_count = entry.standing.position.page_count;
        if page_count < self.standing.position.page_count {
            self.index.retain(|page, _| *page <= page_count);
        }
        for (nth, page) in entry.pages.iter().enumerate() {
            self.index.insert(page.get(), entry.first_page_offset + nth as u64 * page_bytes);
        }
        self.page_count += entry.pages.len() as u64;
        self.standing = entry.standing;
        self.end = entry.end;
        self.chain = entry.chain;
    }

    /// Cuts off what does not count.
    pub(super) fn cut(&self) -> Result<(), ShadowError> {
        self.file.set_len(self.end).map_err(|source| io_error(&self.path, "cutting the journal", source))
    }

    /// Begins anew behind a merge: everything up to here is in `shadow.db`.
    pub(super) fn reset(&mut self, database: FileIdentity) -> Result<(), ShadowError> {
        let sequence = self.header.sequence + 1;
        let header = Header { sequence, standing: self.standing, database, ..self.header };
        let (bytes, checksum) = header.to_bytes();
        let slot = SLOT_OFFSETS.get(sequence as usize % SLOT_OFFSETS.len()).copied().unwrap_or_default();
        let fail = |source| io_error(&self.path, "writing the journal's header", source);
        self.file.write_all_at(&bytes, slot).map_err(fail)?;
        self.file.sync_data().map_err(fail)?;
        self.header = header;
        self.end = ENTRIES_OFFSET;
        self.chain = checksum;
        self.index = JournalIndex::default();
        self.page_count = 0;
        self.cut()
    }

    pub(super) fn sync(&self) -> Result<(), ShadowError> {
        self.file.sync_data().map_err(|source| io_error(&self.path, "syncing the journal", source))
    }

    pub(super) fn index(&self) -> &JournalIndex {
        &self.index
    }

    /// Reads the version of a page that an index names; `None` when it names none.
    pub(super) fn read_page(
        &self,
        page: PageNo,
        index: &JournalIndex,
        bytes: &mut [u8],
    ) -> std::io::Result<Option<()>> {
        match index.get(&page.get()) {
            Some(offset) => self.file.read_exact_at(bytes, *offset).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn has(&self, page: PageNo) -> bool {
        self.index.contains_key(&page.get())
    }

    /// The pages that have a version here, ascending.
    pub(super) fn pages(&self) -> Vec<PageNo> {
        let mut pages: Vec<PageNo> = self.index.keys().filter_map(|page| PageNo::new(*page)).collect();
        pages.sort_unstable();
        pages
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Where `shadow.db` itself stands.
    pub(super) fn merged(&self) -> Position {
        self.header.standing.position
    }

    pub(super) fn database(&self) -> FileIdentity {
        self.header.database
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.header.page_size
    }

    /// Pages written since the last merge, and their bytes with everything around them.
    pub(super) fn extent(&self) -> (u64, u64) {
        (self.page_count, self.end - ENTRIES_OFFSET)
    }
}

/// Writes one entry through a buffer.
struct Writer<'j> {
    journal: &'j Journal,
    offset: u64,
    chain: Checksum,
    /// What is not written yet; not yet in the chain either.
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn flush_if_full(&mut self) -> Result<(), ShadowError> {
        if self.buffer.len() >= BUFFER_BYTES {
            self.add_to_chain();
            self.write()?;
        }
        Ok(())
    }

    fn add_to_chain(&mut self) {
        self.chain = sum(self.chain, &self.buffer);
    }

    fn write(&mut self) -> Result<(), ShadowError> {
        let written = self.journal.file.write_all_at(&self.buffer, self.offset);
        written.map_err(|source| io_error(&self.journal.path, "writing the journal", source))?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// The next entry; `None` where the chain ends.
fn read_entry(
    reader: &mut impl Read,
    page_size: PageSize,
    offset: u64,
    chain: Checksum,
    file_bytes: u64,
) -> std::io::Result<Option<Appended>> {
    let mut head = [0; ENTRY_HEAD_BYTES];
    if !read_whole(reader, &mut head)? || head.first_chunk() != Some(ENTRY_MAGIC) {
        return Ok(None);
    }
    let mut chain = sum(chain, &head);
    let Some(count) = head.get(4..8).and_then(|bytes| bytes.first_chunk()).copied().map(u32::from_be_bytes) else {
        return Ok(None);
    };
    let position = |at: usize| head.get(at..at + POSITION_BYTES).and_then(Position::from_bytes);
    let (Some(position), Some(given)) = (position(8), position(8 + POSITION_BYTES)) else { return Ok(None) };
    let numbers_bytes = u64::from(count).div_ceil(2) * 8;
    let first_page_offset = offset + ENTRY_HEAD_BYTES as u64 + numbers_bytes;
    let pages_end = first_page_offset + u64::from(count) * u64::from(page_size.get());
    let end = pages_end + CHECKSUM_BYTES as u64;
    // The count comes from the file: what is there bounds it before anything is reserved.
    if end > file_bytes {
        return Ok(None);
    }
    let mut numbers = vec![0; numbers_bytes as usize];
    if !read_whole(reader, &mut numbers)? {
        return Ok(None);
    }
    chain = sum(chain, &numbers);
    let (words, _) = numbers.as_chunks::<4>();
    let pages: Option<Vec<PageNo>> =
        words.iter().take(count as usize).map(|word| PageNo::new(u32::from_be_bytes(*word))).collect();
    let mut page = vec![0; page_size.bytes()];
    for _ in 0..count {
        if !read_whole(reader, &mut page)? {
            return Ok(None);
        }
        chain = sum(chain, &page);
    }
    let mut stored = [0; CHECKSUM_BYTES];
    if !read_whole(reader, &mut stored)? || stored != checksum_bytes(chain) {
        return Ok(None);
    }
    let Some(pages) = pages else { return Ok(None) };
    Ok(Some(Appended { standing: Standing { position, given }, pages, first_page_offset, end, chain }))
}

/// `false` at the end of the file.
fn read_whole(reader: &mut impl Read, bytes: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn io_error(path: &Path, what: &'static str, source: std::io::Error) -> ShadowError {
    ShadowError::Io { path: path.to_owned(), what, source }
}
