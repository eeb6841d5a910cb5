//! Parts of a WAL: what older generations left in it, what is committed, what is not.

use std::io;
use std::os::unix::fs::FileExt;

use super::files::{Commit, Files, Frame};
use crate::format::{ByteOrder, Checksum, FRAME_HEADER_BYTES, FrameHeader, FrameNo, Salts};

/// Frames that follow each other in the file and belong to one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its generation.
    pub salts: Salts,
    /// Its first frame.
    pub first: FrameNo,
    /// Its last frame.
    pub last: FrameNo,
    /// What they count.
    pub standing: Standing,
}

/// What frames count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing any more: they are left over from an older generation.
    Stale,
    /// They are in force.
    Committed,
    /// Nothing yet: they stand behind the last commit.
    Uncommitted,
}

impl Standing {
    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Standing::Stale => "stale",
            Standing::Committed => "committed",
            Standing::Uncommitted => "uncommitted",
        }
    }
}

impl Files {
    /// The frames up to the last commit, if there are any.
    #[must_use]
    pub fn committed_frames(&self) -> Option<Stretch> {
        let wal = self.wal.as_ref()?;
        let last = wal.commits.last()?.last;
        Some(Stretch { salts: wal.salts, first: wal.first, last, standing: Standing::Committed })
    }

    /// The frames behind the last commit, if there are any.
    #[must_use]
    pub fn open_frames(&self) -> Option<Stretch> {
        let wal = self.wal.as_ref()?;
        let first = FrameNo(wal.commits.last().map_or(0, |commit| commit.last.0) + 1);
        let last = FrameNo(wal.frames.len() as u32);
        (first <= last).then_some(Stretch { salts: wal.salts, first, last, standing: Standing::Uncommitted })
    }

    /// Stretches of older generations: frames of which each checksum continues that of the frame before. What the first of a stretch
    /// continues is overwritten, so that one is taken as it is.
    ///
    /// # Errors
    /// When the WAL cannot be read.
    pub fn stale(&self) -> io::Result<Vec<Stretch>> {
        let Some(wal) = &self.wal else { return Ok(Vec::new()) };
        let mut found: Vec<Stretch> = Vec::new();
        let mut bytes = vec![0; FRAME_HEADER_BYTES + self.page_size.bytes()];
        for run in &wal.stale {
            let mut before: Option<FrameHeader> = None;
            for no in run.first.0..=run.last.0 {
                wal.file.read_exact_at(&mut bytes, wal.header.frame_offset(FrameNo(no)))?;
                let Some(frame) = FrameHeader::parse(&bytes) else { continue };
                let continues = before.is_some_and(|before| {
                    // A machine of the other byte order may have written the generation.
                    let orders = [ByteOrder::Little, ByteOrder::Big];
                    orders.into_iter().any(|order| frame.checksum == frame_checksum(before.checksum, order, &bytes))
                });
                match found.last_mut().filter(|_| continues) {
                    Some(stretch) => stretch.last = FrameNo(no),
                    None => {
                        let (salts, first, last) = (run.salts, FrameNo(no), FrameNo(no));
                        found.push(Stretch { salts, first, last, standing: Standing::Stale });
                    }
                }
                before = Some(frame);
            }
        }
        Ok(found)
    }

    /// The same files, with a stretch in the place of the committed frames. The frames that are open make one transaction. What was before a
    /// left over generation is not known: the database file is younger.
    ///
    /// # Errors
    /// When the WAL cannot be read.
    pub fn at(&self, stretch: &Stretch) -> io::Result<Files> {
        let mut files = self.clone();
        let Some(wal) = &mut files.wal else { return Ok(files) };
        let is_open = stretch.standing == Standing::Uncommitted;
        if !is_open {
            wal.versions.clear();
            wal.commits.clear();
            wal.frames.clear();
            (wal.first, wal.salts) = (stretch.first, stretch.salts);
        }
        let tx = wal.commits.len() as u64 + 1;
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let (mut first, mut page_count) = (stretch.first, wal.commits.last().map_or(1, |commit| commit.page_count));
        for no in stretch.first.0..=stretch.last.0 {
            let last = FrameNo(no);
            wal.file.read_exact_at(&mut bytes, wal.header.frame_offset(last))?;
            let Some(frame) = FrameHeader::parse(&bytes) else { continue };
            wal.versions.entry(frame.page).or_default().push(last);
            wal.last_page = wal.last_page.max(frame.page.get());
            page_count = page_count.max(frame.page.get());
            let checksum = frame.checksum;
            if is_open {
                wal.commits.truncate(usize::try_from(tx - 1).unwrap_or(usize::MAX));
                wal.commits.push(Commit { tx, first, last, page_count, checksum });
                continue;
            }
            wal.frames.push(Frame { page: frame.page, commit: frame.commit });
            if let Some(page_count) = frame.commit {
                let tx = wal.commits.len() as u64 + 1;
                wal.commits.push(Commit { tx, first, last, page_count, checksum });
                first = FrameNo(no.saturating_add(1));
            }
        }
        if !is_open {
            wal.overwritten = wal.versions.keys().copied().collect();
            wal.is_before_file = true;
        }
        Ok(files)
    }
}

/// The checksum of a frame, header and page in `bytes`, that follows another.
fn frame_checksum(before: Checksum, order: ByteOrder, bytes: &[u8]) -> Checksum {
    let (header, page) = (bytes.get(..8).unwrap_or_default(), bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default());
    before.over(order, header).over(order, page)
}
