//! A database and its log in memory, as capture has them: the file before, and frames by number.

use std::borrow::Cow;
use std::path::Path;

use woodchuck::change::{ChangeSink, Differ, PageError, PageSource, TxSpan};
use woodchuck::format::{
    DatabaseHeader, FRAME_HEADER_BYTES, FrameHeader, FrameNo, PageNo, WAL_HEADER_BYTES, WalHeader,
};

/// A database file with the log that was written on top of it.
pub struct Recording {
    base: Vec<u8>,
    wal: Vec<u8>,
    page_bytes: usize,
    page_count: u32,
    header: WalHeader,
}

impl Recording {
    /// `base` is the database file as it was; the log is read from beside `database`.
    pub fn read(base: Vec<u8>, database: &Path) -> Recording {
        let mut name = database.as_os_str().to_owned();
        name.push("-wal");
        let wal = std::fs::read(name).unwrap();
        let header = WalHeader::parse(&wal).unwrap();
        let file = DatabaseHeader::parse(&base).unwrap();
        let page_bytes = file.page_size.bytes();
        let page_count = (base.len() / page_bytes) as u32;
        Recording { base, wal, page_bytes, page_count, header }
    }

    pub fn wal_bytes(&self) -> usize {
        self.wal.len()
    }

    pub fn wal(&self) -> &[u8] {
        &self.wal
    }

    pub fn header(&self) -> WalHeader {
        self.header
    }

    /// The frames, header and page each.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.wal[WAL_HEADER_BYTES..].chunks_exact(self.header.frame_bytes() as usize)
    }

    fn position(&self) -> Position<'_> {
        Position { recording: self, newest: vec![0; 1 << 20], page_count: self.page_count }
    }

    /// A differ that stands before the log.
    pub fn differ(&self) -> Differ {
        Differ::open(&self.position()).unwrap()
    }

    /// Takes every transaction of the log through the differ.
    pub fn replay<E: std::fmt::Debug>(&self, differ: &mut Differ, sink: &mut dyn ChangeSink<E>) {
        let mut before = self.position();
        let mut pages: Vec<(PageNo, u32)> = Vec::new();
        let mut tx = 0;
        let mut first = FrameNo(1);
        for (index, frame) in self.frames().enumerate() {
            let Some(header) = FrameHeader::parse(frame).filter(|header| header.salts == self.header.salts) else {
                break;
            };
            let no = index as u32 + 1;
            pages.push((header.page, no));
            let Some(page_count) = header.commit else { continue };
            tx += 1;
            pages.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            pages.dedup_by_key(|(page, _)| *page);
            let changed: Vec<PageNo> = pages.iter().map(|(page, _)| *page).collect();
            let span = TxSpan {
                tx,
                salts: header.salts,
                frame_first: first,
                frame_last: FrameNo(no),
                checksum: header.checksum,
                page_count,
                repaired: false,
            };
            let after = After { before: &before, pages: &pages, page_count };
            differ.transaction(&before, &after, &changed, &span, sink).expect("the log is whole");
            for (page, frame) in pages.drain(..) {
                before.newest[page.get() as usize] = frame;
            }
            before.page_count = page_count;
            first = FrameNo(no + 1);
        }
    }
}

struct Position<'r> {
    recording: &'r Recording,
    /// Newest frame of each page, 0 for none.
    newest: Vec<u32>,
    page_count: u32,
}

impl Position<'_> {
    fn frame(&self, frame: u32) -> Cow<'_, [u8]> {
        let start = self.recording.header.frame_offset(FrameNo(frame)) as usize + FRAME_HEADER_BYTES;
        Cow::Borrowed(&self.recording.wal[start..start + self.recording.page_bytes])
    }
}

impl PageSource for Position<'_> {
    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        match self.newest[page.get() as usize] {
            0 => {
                let start = (page.get() as usize - 1) * self.recording.page_bytes;
                let bytes = self.recording.base.get(start..start + self.recording.page_bytes);
                bytes.map(Cow::Borrowed).ok_or(PageError::Missing { page, page_count: self.page_count })
            }
            frame => Ok(self.frame(frame)),
        }
    }
}

struct After<'r> {
    before: &'r Position<'r>,
    pages: &'r [(PageNo, u32)],
    page_count: u32,
}

impl PageSource for After<'_> {
    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        match self.pages.binary_search_by_key(&page, |(page, _)| *page) {
            Ok(index) => Ok(self.before.frame(self.pages[index].1)),
            Err(_) => self.before.page(page),
        }
    }
}
