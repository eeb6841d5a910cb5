//! The frames of the current generation: which frame has a page's newest version up to our position.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};

use super::map::WalMap;
use super::{CaptureError, DatabaseFile};
use crate::change::{PageError, PageSource};
use crate::format::{
    Checksum, FRAME_HEADER_BYTES, FrameHeader, FrameNo, HeaderError, PageNo, PageSize, WAL_HEADER_BYTES, WalHeader,
};

/// Page numbers are dense and not chosen by anybody hostile: one multiplication spreads them.
#[derive(Debug, Default, Clone)]
pub(super) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

type FrameIndex = HashMap<u32, FrameNo, BuildHasherDefault<PageHasher>>;

/// The open `-wal` file and what we know of its current generation.
#[derive(Debug)]
pub(super) struct Frames {
    path: PathBuf,
    file: File,
    map: WalMap,
    header: Option<WalHeader>,
    /// Newest frame of each page at or below the position.
    index: FrameIndex,
}

/// One transaction's frames: its pages with their last frame, ascending by page.
#[derive(Debug, Default)]
pub(super) struct TxFrames {
    pub(super) pages: Vec<(PageNo, FrameNo)>,
    pub(super) first: FrameNo,
    pub(super) commit: Option<(FrameNo, FrameHeader)>,
    pub(super) page_count: u32,
}

impl TxFrames {
    /// The pages of the database that the transaction wrote, ascending.
    pub(super) fn changed(&self) -> Vec<PageNo> {
        self.pages.iter().map(|(page, _)| *page).filter(|page| page.get() <= self.page_count).collect()
    }
}

impl Frames {
    pub(super) fn open(path: &Path) -> Result<Frames, CaptureError> {
        let file = File::open(path).map_err(|source| CaptureError::Wal { path: path.to_owned(), source })?;
        Ok(Frames { path: path.to_owned(), file, map: WalMap::default(), header: None, index: FrameIndex::default() })
    }

    fn error(&self, source: std::io::Error) -> CaptureError {
        CaptureError::Wal { path: self.path.clone(), source }
    }

    fn damaged(&self, frame: FrameNo, what: &'static str) -> CaptureError {
        CaptureError::Frame { path: self.path.clone(), frame: frame.0, what }
    }

    /// The header as the file has it now; `None` when the log is empty or its header is just being written.
    pub(super) fn read_header(&self) -> Result<Option<WalHeader>, CaptureError> {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; WAL_HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(self.error(error)),
        }
        match WalHeader::parse(&bytes) {
            Ok(header) => Ok(Some(header)),
            Err(HeaderError::Checksum | HeaderError::Magic { .. }) => Ok(None),
            Err(_) => Err(self.damaged(FrameNo(0), "the header is not that of a write-ahead log")),
        }
    }

    /// Whether a frame of the generation stands behind frame `committed`: a transaction is being written, or was rolled back.
    pub(super) fn is_begun_behind(&self, header: Option<&WalHeader>, committed: u32) -> Result<bool, CaptureError> {
        use std::os::unix::fs::FileExt;
        let Some(header) = header else { return Ok(false) };
        let mut bytes = [0; FRAME_HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, header.frame_offset(FrameNo(committed.saturating_add(1)))) {
            Ok(()) => Ok(FrameHeader::parse(&bytes).is_some_and(|frame| frame.salts == header.salts)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    /// The header of the generation that the index belongs to.
    pub(super) fn header(&self) -> Option<&WalHeader> {
        self.header.as_ref()
    }

    /// A frame's header as the file has it now, read without touching mapped memory. `None` when the file ends before it.
    pub(super) fn read_frame_header(
        &self,
        header: &WalHeader,
        frame: FrameNo,
    ) -> Result<Option<FrameHeader>, CaptureError> {
        use std::os::unix::fs::FileExt;
        let mut bytes = [0; FRAME_HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, header.frame_offset(frame)) {
            Ok(()) => Ok(FrameHeader::parse(&bytes).filter(|parsed| parsed.salts == header.salts)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Makes the log durable.
    pub(super) fn sync(&self) -> Result<(), CaptureError> {
        self.file.sync_data().map_err(|error| self.error(error))
    }

    /// Forgets the generation: everything is in the database file.
    pub(super) fn forget(&mut self) {
        self.header = None;
        self.index = FrameIndex::default();
    }

    /// The pages that have a frame at or below the position, ascending.
    pub(super) fn pages(&self) -> Vec<PageNo> {
        let mut pages: Vec<PageNo> = self.index.keys().filter_map(|page| PageNo::new(*page)).collect();
        pages.sort_unstable();
        pages
    }

    /// Length of the file in bytes.
    pub(super) fn file_bytes(&self) -> Result<u64, CaptureError> {
        Ok(self.file.metadata().map_err(|error| self.error(error))?.len())
    }

    /// Begins a generation: nothing of it is read yet.
    pub(super) fn begin_generation(&mut self, header: WalHeader) {
        self.header = Some(header);
        self.index = FrameIndex::default();
    }

    /// Makes the frames up to `last` readable.
    pub(super) fn cover(&mut self, last: FrameNo) -> Result<(), CaptureError> {
        let Some(header) = &self.header else { return Ok(()) };
        let bytes = header.frame_offset(FrameNo(last.0.saturating_add(1)));
        self.map.cover(&self.file, bytes).map_err(|source| CaptureError::Wal { path: self.path.clone(), source })
    }

    fn frame_header(&self, frame: FrameNo) -> Result<FrameHeader, CaptureError> {
        let header = self.header.as_ref().ok_or_else(|| self.damaged(frame, "the log has no header"))?;
        let bytes = self.map.slice(header.frame_offset(frame), FRAME_HEADER_BYTES);
        let parsed = bytes.and_then(FrameHeader::parse).ok_or_else(|| self.damaged(frame, "no page number"))?;
        // SQLite before 3.51 commits frames without salts and checksum when a ROLLBACK TO follows a spill that rewrote frames: readers go by
        // the index in -shm, which has them.
        let is_blank = parsed.salts.0 == [0; 8] && parsed.checksum == Checksum::default();
        if parsed.salts != header.salts && !is_blank {
            return Err(self.damaged(frame, "it belongs to another generation"));
        }
        Ok(parsed)
    }

    /// Collects the frames of the transaction that begins at `first`, at most up to `last`. Without a commit frame there, `commit` is `None`.
    pub(super) fn collect(&self, first: FrameNo, last: FrameNo) -> Result<TxFrames, CaptureError> {
        let mut tx = TxFrames { first, ..TxFrames::default() };
        for no in first.0..=last.0 {
            let frame = self.frame_header(FrameNo(no))?;
            tx.pages.push((frame.page, FrameNo(no)));
            if let Some(page_count) = frame.commit {
                tx.commit = Some((FrameNo(no), frame));
                tx.page_count = page_count;
                break;
            }
        }
        // Of a page that was written several times the last frame counts.
        tx.pages.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        tx.pages.dedup_by_key(|(page, _)| *page);
        Ok(tx)
    }

    /// Takes a transaction's frames into the index: they are at or below the position now.
    pub(super) fn take(&mut self, tx: &TxFrames) {
        self.index.extend(tx.pages.iter().map(|(page, frame)| (page.get(), *frame)));
    }

    /// Forgets the touched memory, if it is much: nothing will be read for a while.
    pub(super) fn rest(&self) {
        self.map.rest();
    }

    fn page_in(&self, frame: FrameNo, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        let header = self.header.as_ref().ok_or(PageError::Unknown { page })?;
        let offset = header.frame_offset(frame) + FRAME_HEADER_BYTES as u64;
        self.map.slice(offset, header.page_size.bytes()).map(Cow::Borrowed).ok_or(PageError::Unknown { page })
    }

    /// Whether the newest frame of each page up to `page_count` is what `file` has. To be asked when a checkpoint says so; `true` also when the
    /// log has begun another generation meanwhile. Reads without touching mapped memory.
    pub(super) fn are_in(&self, file: &DatabaseFile, page_count: u32) -> Result<bool, CaptureError> {
        let Some(header) = &self.header else { return Ok(true) };
        for (page, frame) in self.index.iter().filter(|(page, _)| **page <= page_count) {
            let Some(page) = PageNo::new(*page) else { continue };
            if !self.is_in(file, page, *frame) {
                return Ok(self.read_header()?.is_none_or(|now| now.salts != header.salts));
            }
        }
        Ok(true)
    }

    /// Whether `file` has a frame's page. Reads without touching mapped memory.
    pub(super) fn is_in(&self, file: &DatabaseFile, page: PageNo, frame: FrameNo) -> bool {
        use std::os::unix::fs::FileExt;
        let Some(header) = &self.header else { return true };
        let mut bytes = vec![0; header.page_size.bytes()];
        let offset = header.frame_offset(frame) + FRAME_HEADER_BYTES as u64;
        let has_read = self.file.read_exact_at(&mut bytes, offset).is_ok();
        has_read && file.read_page(page, header.page_size).is_ok_and(|found| found == bytes)
    }

    pub(super) fn newest(&self, page: PageNo) -> Option<FrameNo> {
        self.index.get(&page.get()).copied()
    }
}

/// The database at our position: frames at or below it, else the file.
pub(super) struct AtPosition<'f> {
    frames: &'f Frames,
    file: &'f DatabaseFile,
    page_size: PageSize,
    page_count: u32,
}

impl PageSource for AtPosition<'_> {
    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        if page.get() > self.page_count {
            return Err(PageError::Missing { page, page_count: self.page_count });
        }
        match self.frames.newest(page) {
            Some(frame) => self.frames.page_in(frame, page),
            None => {
                let bytes = self.file.read_page(page, self.page_size);
                bytes.map(Cow::Owned).map_err(|source| PageError::Unreadable { page, source })
            }
        }
    }
}

impl<'f> AtPosition<'f> {
    pub(super) fn new(
        frames: &'f Frames,
        file: &'f DatabaseFile,
        page_size: PageSize,
        page_count: u32,
    ) -> AtPosition<'f> {
        AtPosition { frames, file, page_size, page_count }
    }

    /// Whether the page's newest version is in the log.
    pub(super) fn has_frame(&self, page: PageNo) -> bool {
        self.frames.newest(page).is_some()
    }
}

/// The database after a transaction: its own frames on top of the version before.
pub(super) struct AfterTx<'f> {
    pub(super) frames: &'f Frames,
    pub(super) before: &'f dyn PageSource,
    pub(super) tx: &'f TxFrames,
}

impl PageSource for AfterTx<'_> {
    fn page_count(&self) -> u32 {
        self.tx.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        if page.get() > self.tx.page_count {
            return Err(PageError::Missing { page, page_count: self.tx.page_count });
        }
        let own = self
            .tx
            .pages
            .binary_search_by_key(&page, |(page, _)| *page)
            .ok()
            .and_then(|index| self.tx.pages.get(index));
        match own {
            Some((_, frame)) => self.frames.page_in(*frame, page),
            None => self.before.page(page),
        }
    }
}
