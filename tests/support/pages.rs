//! Versions of a database held in memory, read from the files that SQLite wrote.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use woodchuck::change::{PageError, PageSource};
use woodchuck::format::{FrameNo, FrameScan, PageNo, Salts, WAL_HEADER_BYTES, WalHeader};

/// All pages of one version.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub pages: BTreeMap<PageNo, Arc<Vec<u8>>>,
    pub count: u32,
}

impl PageSource for Image {
    fn page_count(&self) -> u32 {
        self.count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        let missing = PageError::Missing { page, page_count: self.count };
        self.pages
            .get(&page)
            .filter(|_| page.get() <= self.count)
            .map(|bytes| Cow::Borrowed(bytes.as_slice()))
            .ok_or(missing)
    }
}

/// One commit read from a WAL.
pub struct Commit {
    pub salts: Salts,
    pub first: FrameNo,
    pub last: FrameNo,
    pub page_count: u32,
    pub pages: BTreeMap<PageNo, Arc<Vec<u8>>>,
}

impl Commit {
    /// The version that this commit makes of `before`, and the pages that may differ.
    pub fn onto(&self, before: &Image) -> (Image, Vec<PageNo>) {
        let mut after = before.clone();
        after.pages.extend(self.pages.iter().map(|(page, bytes)| (*page, Arc::clone(bytes))));
        after.count = self.page_count;
        after.pages.retain(|page, _| page.get() <= self.page_count);
        let changed: BTreeSet<PageNo> =
            self.pages.keys().copied().filter(|page| page.get() <= self.page_count).collect();
        (after, changed.into_iter().collect())
    }
}

/// Reads the commits that a WAL got since the last look.
pub struct WalReader {
    path: PathBuf,
    salts: Option<Salts>,
    seen: FrameNo,
}

impl WalReader {
    pub fn new(database: &Path) -> WalReader {
        WalReader { path: wal_path(database), salts: None, seen: FrameNo(0) }
    }

    pub fn read(&mut self) -> Vec<Commit> {
        let Ok(bytes) = std::fs::read(&self.path) else { return Vec::new() };
        let Ok(header) = WalHeader::parse(&bytes) else { return Vec::new() };
        if self.salts != Some(header.salts) {
            self.salts = Some(header.salts);
            self.seen = FrameNo(0);
        }
        let mut scan = FrameScan::new(header);
        let mut commits = Vec::new();
        let mut pages = BTreeMap::new();
        let mut first = FrameNo(1);
        for frame in bytes[WAL_HEADER_BYTES..].chunks(header.frame_bytes() as usize) {
            let no = scan.next_frame();
            let Ok(frame_header) = scan.step(frame) else { break };
            pages.insert(frame_header.page, Arc::new(frame[24..].to_vec()));
            if let Some(page_count) = frame_header.commit {
                if no > self.seen {
                    commits.push(Commit {
                        salts: header.salts,
                        first,
                        last: no,
                        page_count,
                        pages: std::mem::take(&mut pages),
                    });
                    self.seen = no;
                }
                pages.clear();
                first = FrameNo(no.0 + 1);
            }
        }
        commits
    }
}

pub fn wal_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}
