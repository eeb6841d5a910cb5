//! The files and what is where in them: frames judged, commits found, pages indexed.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::stretch::{Standing, Stretch};
use crate::format::{
    Checksum, DATABASE_HEADER_BYTES, DatabaseHeader, FRAME_HEADER_BYTES, FrameHeader, FrameNo, FrameScan, HeaderError,
    PageNo, PageSize, Salts, ScanEnd, WAL_HEADER_BYTES, WalHeader,
};

/// Why there is nothing to look into.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, a pipe, a device: opening one can wait for ever.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{path} cannot be understood")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with its header.
        source: HeaderError,
    },
    /// The two files do not belong together.
    #[error("{path} has pages of {wal} bytes, the database of {database}: they do not belong together")]
    PageSize {
        /// The WAL.
        path: PathBuf,
        /// Its page size.
        wal: u32,
        /// The database's.
        database: u32,
    },
}

/// One frame of the current generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// The page.
    pub page: PageNo,
    /// For commit frames the size of the database in pages.
    pub commit: Option<u32>,
}

/// A committed transaction's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Counts from 1 within the WAL.
    pub tx: u64,
    /// Its first frame.
    pub first: FrameNo,
    /// Its commit frame.
    pub last: FrameNo,
    /// The size of the database after it, in pages.
    pub page_count: u32,
    /// The commit frame's stored checksum.
    pub checksum: Checksum,
}

/// The database and its WAL, either of which may be missing.
#[derive(Debug, Clone)]
pub struct Files {
    pub(super) database: Option<Database>,
    pub(super) wal: Option<Wal>,
    pub(super) page_size: PageSize,
    /// Why nothing can be read from the WAL that is there.
    pub(super) wal_unreadable: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) file_bytes: u64,
    pub(super) header: DatabaseHeader,
}

#[derive(Debug, Clone)]
pub(super) struct Wal {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) file_bytes: u64,
    pub(super) header: WalHeader,
    /// Which frame the first of `frames` is.
    pub(super) first: FrameNo,
    /// The generation of `frames`.
    pub(super) salts: Salts,
    /// Valid frames, those behind the last commit included.
    pub(super) frames: Vec<Frame>,
    pub(super) commits: Vec<Commit>,
    pub(super) end: ScanEnd,
    /// Stands behind the last commit. SQLite writes over what comes after it: over pages that a transaction writes again, and over all of one
    /// that was rolled back.
    scan: FrameScan,
    /// What stands behind the end, by the frames' headers, in the order of the file.
    pub(super) stale: Vec<Stretch>,
    /// Committed frames of each page, ascending.
    pub(super) versions: HashMap<PageNo, Vec<FrameNo>>,
    /// The last page of which there is a committed frame.
    pub(super) last_page: u32,
    /// Pages that the database file does not hold any more as they were when the generation began.
    pub(super) overwritten: BTreeSet<PageNo>,
    /// Another generation has followed: what the database file holds may be younger, of every page.
    pub(super) is_before_file: bool,
}

impl Files {
    /// Opens what there is. A WAL of zero bytes is none.
    ///
    /// # Errors
    /// [`OpenError`]; at least one of the paths must be given.
    pub fn open(database: Option<&Path>, wal: Option<&Path>) -> Result<Files, OpenError> {
        let wal = wal.map(Wal::open).transpose()?.flatten();
        Files::with_wal(database, wal)
    }

    /// As [`Files::open`], but a WAL without a header that can be read counts as none, as it does for SQLite. Alone it is an error.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_readable(database: Option<&Path>, wal: Option<&Path>) -> Result<Files, OpenError> {
        match wal.map(Wal::open).transpose() {
            Ok(wal) => Files::with_wal(database, wal.flatten()),
            Err(OpenError::Header { path, source }) if database.is_some() => {
                let why = format!("nothing can be read from {}: {source}", path.display());
                Ok(Files { wal_unreadable: Some(why), ..Files::with_wal(database, None)? })
            }
            Err(error) => Err(error),
        }
    }

    fn with_wal(database: Option<&Path>, wal: Option<Wal>) -> Result<Files, OpenError> {
        let database = database.map(|path| Database::open(path, wal.as_ref())).transpose()?;
        let page_size = match (&database, &wal) {
            (Some(database), Some(wal)) if database.header.page_size != wal.header.page_size => {
                let (path, page_size) = (wal.path.clone(), wal.header.page_size.get());
                return Err(OpenError::PageSize { path, wal: page_size, database: database.header.page_size.get() });
            }
            (Some(database), _) => database.header.page_size,
            (None, Some(wal)) => wal.header.page_size,
            (None, None) => {
                let source = HeaderError::Short { found: 0, wanted: WAL_HEADER_BYTES };
                return Err(OpenError::Header { path: PathBuf::from("the write-ahead log"), source });
            }
        };
        let mut files = Files { database, wal, page_size, wal_unreadable: None };
        files.find_overwritten();
        Ok(files)
    }

    /// The size of a page.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Committed transactions of the current generation, oldest first.
    #[must_use]
    pub fn commits(&self) -> &[Commit] {
        self.wal.as_ref().map_or(&[], |wal| &wal.commits)
    }

    /// Version of the SQLite that wrote the database last, as far as its file tells.
    pub(in crate::cli) fn sqlite_version(&self) -> Option<u32> {
        self.database.as_ref().map(|database| database.header.sqlite_version)
    }

    /// Whether valid frames stand behind the last commit.
    pub(in crate::cli) fn has_spilled(&self) -> bool {
        let committed = self.commits().last().map_or(0, |commit| commit.last.0);
        self.wal.as_ref().is_some_and(|wal| wal.frames.len() > committed as usize)
    }

    /// What is to be said of frames of this generation that do not continue the chain of checksums.
    pub(super) fn misfits(&self) -> Option<String> {
        let wal = self.wal.as_ref()?;
        let first = FrameNo(wal.frames.len() as u32 + 1);
        let run = wal.stale.iter().find(|run| run.salts == wal.salts && run.first == first)?;
        Some(format!(
            "frames {}–{} behind the last commit do not fit their checksums and are not shown: SQLite leaves them so when a transaction \
             writes a page a second time before it commits, or was rolled back",
            run.first.0, run.last.0
        ))
    }

    /// The pages of a commit, ascending.
    pub(super) fn pages_of(&self, commit: &Commit) -> Vec<PageNo> {
        let Some(wal) = &self.wal else { return Vec::new() };
        let index = |frame: u32| frame.saturating_sub(wal.first.0) as usize;
        let frames = wal.frames.get(index(commit.first.0)..index(commit.last.0.saturating_add(1)));
        let pages: BTreeSet<PageNo> = frames.unwrap_or_default().iter().map(|frame| frame.page).collect();
        pages.into_iter().filter(|page| page.get() <= commit.page_count).collect()
    }

    /// The newest committed frame of a page that is not after `limit`.
    pub(super) fn frame_at(&self, page: PageNo, limit: FrameNo) -> Option<FrameNo> {
        let versions = self.wal.as_ref()?.versions.get(&page)?;
        let count = versions.partition_point(|frame| *frame <= limit);
        versions.get(count.checked_sub(1)?).copied()
    }

    /// The newest frame of a page that is not after `limit`, committed or not; that of `limit` itself also if it is left over from an older
    /// generation.
    ///
    /// # Errors
    /// When the WAL ends before that frame or cannot be read.
    pub(super) fn frame_by(&self, page: PageNo, limit: FrameNo) -> io::Result<Option<FrameNo>> {
        if limit.0 == 0 {
            return Ok(None);
        }
        let wal = self.wal.as_ref().ok_or_else(|| no_frame(limit, 0))?;
        let is_valid = limit.0 as usize <= wal.frames.len();
        match wal.frame_header(limit)? {
            Some(frame) if frame.page == page => return Ok(Some(limit)),
            Some(_) if is_valid => {}
            _ => return Err(no_frame(limit, wal.frames.len())),
        }
        let count = wal.frames.len().min(limit.0 as usize);
        let index = wal.frames.get(..count).and_then(|frames| frames.iter().rposition(|frame| frame.page == page));
        Ok(index.map(|index| FrameNo(index as u32 + 1)))
    }

    /// The oldest frame of a page.
    /// The last page that can be read, whatever a header says that there is.
    pub(super) fn last_page(&self) -> u32 {
        let in_file =
            self.database.as_ref().map_or(0, |database| database.file_bytes / u64::from(self.page_size.get()));
        let in_file = u32::try_from(in_file).unwrap_or(u32::MAX);
        self.wal.as_ref().map_or(0, |wal| wal.last_page).max(in_file)
    }

    pub(super) fn first_frame(&self, page: PageNo) -> Option<FrameNo> {
        self.wal.as_ref()?.versions.get(&page)?.first().copied()
    }

    pub(super) fn read_frame(&self, frame: FrameNo) -> io::Result<Vec<u8>> {
        let wal = self.wal.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let (mut bytes, offset) = (vec![0; self.page_size.bytes()], wal.header.frame_offset(frame));
        let mut header = [0; FRAME_HEADER_BYTES];
        wal.file.read_exact_at(&mut header, offset)?;
        wal.file.read_exact_at(&mut bytes, offset + FRAME_HEADER_BYTES as u64)?;
        let mut again = [0; FRAME_HEADER_BYTES];
        wal.file.read_exact_at(&mut again, offset)?;
        // SQLite writes a frame's header before its page: where it still is what it was, so is the page.
        let is_another = FrameHeader::parse(&header).is_none_or(|frame| frame.salts != wal.salts);
        if header != again || is_another {
            return Err(io::Error::other("the frame was overwritten by a newer generation"));
        }
        Ok(bytes)
    }

    /// A page of the database file; `None` beyond its end.
    pub(super) fn read_file(&self, page: PageNo) -> io::Result<Option<Vec<u8>>> {
        let Some(database) = &self.database else { return Ok(None) };
        let mut bytes = vec![0; self.page_size.bytes()];
        match database.file.read_exact_at(&mut bytes, page.file_offset(self.page_size)) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the WAL has another header than when it was scanned.
    #[must_use]
    pub fn was_restarted(&self) -> bool {
        let Some(wal) = &self.wal else { return false };
        let mut bytes = [0; WAL_HEADER_BYTES];
        let read = wal.file.read_exact_at(&mut bytes, 0);
        read.is_err() || WalHeader::parse(&bytes).map(|header| header.salts) != Ok(wal.header.salts)
    }

    /// Reads on where the last look at the WAL ended. `was_restarted`: another generation has begun over what was read before.
    ///
    /// # Errors
    /// When the WAL cannot be read.
    pub(super) fn read_on(&mut self, was_restarted: bool) -> io::Result<()> {
        let Some(wal) = &mut self.wal else { return Ok(()) };
        let known = wal.commits.len();
        wal.scan()?;
        let from = wal.commits.get(known).map_or(u32::MAX, |commit| commit.first.0);
        let is_new = |frames: &Vec<FrameNo>| frames.first().is_some_and(|first| first.0 >= from);
        let new: Vec<PageNo> =
            wal.versions.iter().filter(|(_, frames)| is_new(frames)).map(|(page, _)| *page).collect();
        match &mut self.wal {
            // The database file is younger than all of them by now.
            Some(wal) if was_restarted => {
                wal.overwritten.extend(new);
                wal.is_before_file = true;
            }
            _ => self.find_overwritten_among(&new),
        }
        Ok(())
    }

    fn find_overwritten(&mut self) {
        let pages: Vec<PageNo> = self.wal.iter().flat_map(|wal| wal.versions.keys().copied()).collect();
        self.find_overwritten_among(&pages);
    }

    fn find_overwritten_among(&mut self, pages: &[PageNo]) {
        let Some(wal) = &self.wal else { return };
        let mut overwritten = Vec::new();
        for page in pages {
            // Without the database nothing before the first frame is known.
            let same = match self.read_file(*page) {
                _ if self.database.is_none() => true,
                Ok(Some(content)) => wal.versions.get(page).is_some_and(|versions| {
                    versions.iter().any(|frame| self.read_frame(*frame).is_ok_and(|version| version == content))
                }),
                Ok(None) => false,
                Err(_) => true,
            };
            if same {
                overwritten.push(*page);
            }
        }
        if let Some(wal) = &mut self.wal {
            wal.overwritten.extend(overwritten);
        }
    }

    /// Whether the file that is open is the one under the WAL's name.
    pub(super) fn is_in_place(&self) -> bool {
        let Some(wal) = &self.wal else { return true };
        let of = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        of(wal.file.metadata()) == of(std::fs::metadata(&wal.path))
    }

    /// Whether a database file is still under its name, if one was given.
    pub(super) fn is_database_in_place(&self) -> bool {
        let Some(database) = &self.database else { return true };
        let of = |meta: io::Result<std::fs::Metadata>| meta.ok().map(|meta| (meta.dev(), meta.ino()));
        of(database.file.metadata()) == of(std::fs::metadata(&database.path))
    }

    /// Whether a commit behind the last one that is known may be gone. Asked of a generation that another has followed, after its last scan.
    pub(super) fn may_have_missed(&self) -> bool {
        let Some(wal) = &self.wal else { return false };
        let committed = wal.committed();
        let Ok(next) = wal.frame_header(FrameNo(committed.0.saturating_add(1))) else { return true };
        let Some(next) = next else {
            // The file ends there, or nothing was ever written. But one that was cut short and grew again ends anywhere: then the last commit is
            // written over, too.
            let stands = |frame: FrameHeader| (frame.salts, Some(frame.checksum));
            let last = wal.frame_header(committed).ok().flatten().map(stands);
            return last != Some((wal.salts, wal.commits.last().map(|commit| commit.checksum)));
        };
        if next.salts == wal.salts {
            // A newer generation writes from the beginning on, so what the scan found here is all there was: frames without a commit. The
            // end may have been cut off.
            return wal.end == ScanEnd::PartialFrame;
        }
        // A frame of an older generation stood there all the time; one of a newer has taken the place of what was there.
        let mut first = [0; WAL_HEADER_BYTES];
        let found = read_at_most(&wal.file, &mut first, 0).unwrap_or(0);
        let newer = WalHeader::parse(first.get(..found).unwrap_or_default()).map(|header| header.salts);
        let is_older = wal.stale.iter().any(|stretch| stretch.salts == next.salts);
        !is_older || newer.map_or(true, |newer| newer == next.salts)
    }
}

impl Database {
    fn open(path: &Path, wal: Option<&Wal>) -> Result<Database, OpenError> {
        let read = |source| OpenError::Read { path: path.to_owned(), source };
        let (file, file_bytes) = open_regular(path)?;
        let mut bytes = [0; DATABASE_HEADER_BYTES];
        let found = read_at_most(&file, &mut bytes, 0).map_err(read)?;
        let header = DatabaseHeader::parse(bytes.get(..found).unwrap_or_default());
        let header = match (header, wal.and_then(Wal::page_one)) {
            (Ok(header), _) => header,
            // A checkpoint that a crash cut short leaves page 1 to the WAL.
            (Err(source), Some(page)) => {
                DatabaseHeader::parse(&page).map_err(|_| OpenError::Header { path: path.to_owned(), source })?
            }
            (Err(source), None) => return Err(OpenError::Header { path: path.to_owned(), source }),
        };
        Ok(Database { path: path.to_owned(), file: Arc::new(file), file_bytes, header })
    }
}

impl Wal {
    fn open(path: &Path) -> Result<Option<Wal>, OpenError> {
        let read = |source| OpenError::Read { path: path.to_owned(), source };
        let (file, file_bytes) = open_regular(path)?;
        if file_bytes == 0 {
            return Ok(None);
        }
        let mut bytes = [0; WAL_HEADER_BYTES];
        let found = read_at_most(&file, &mut bytes, 0).map_err(read)?;
        let header = WalHeader::parse(bytes.get(..found).unwrap_or_default())
            .map_err(|source| OpenError::Header { path: path.to_owned(), source })?;
        let mut wal = Wal {
            path: path.to_owned(),
            file: Arc::new(file),
            file_bytes,
            header,
            first: FrameNo(1),
            salts: header.salts,
            frames: Vec::new(),
            commits: Vec::new(),
            end: ScanEnd::EndOfFile,
            scan: FrameScan::new(header),
            stale: Vec::new(),
            versions: HashMap::new(),
            last_page: 0,
            overwritten: BTreeSet::new(),
            is_before_file: false,
        };
        wal.scan().map_err(read)?;
        wal.look_behind_the_end().map_err(read)?;
        Ok(Some(wal))
    }

    /// The last frame of the last commit; 0 when there is none.
    fn committed(&self) -> FrameNo {
        self.commits.last().map_or(FrameNo(0), |commit| commit.last)
    }

    /// Judges the frames behind the last commit that the last call found.
    fn scan(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; FRAME_HEADER_BYTES + self.header.page_size.bytes()];
        let committed = self.committed().0;
        self.frames.truncate(committed as usize);
        let mut scan = self.scan.clone();
        let mut first = scan.next_frame();
        self.end = loop {
            let frame_no = scan.next_frame();
            let found = read_at_most(&self.file, &mut bytes, self.header.frame_offset(frame_no))?;
            let frame = match scan.step(bytes.get(..found).unwrap_or_default()) {
                Ok(frame) => frame,
                Err(end) => break end,
            };
            self.frames.push(Frame { page: frame.page, commit: frame.commit });
            if let Some(page_count) = frame.commit {
                let tx = self.commits.len() as u64 + 1;
                self.commits.push(Commit { tx, first, last: frame_no, page_count, checksum: frame.checksum });
                first = scan.next_frame();
                self.scan = scan.clone();
            }
        };
        let now = self.committed().0;
        for (frame_no, frame) in (1..=now).zip(&self.frames).skip(committed as usize) {
            self.versions.entry(frame.page).or_default().push(FrameNo(frame_no));
            self.last_page = self.last_page.max(frame.page.get());
        }
        Ok(())
    }

    /// Counts frames of other generations behind the end, by their headers alone.
    fn look_behind_the_end(&mut self) -> io::Result<()> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let mut frame_no = FrameNo(self.frames.len() as u32 + 1);
        while self.header.frame_offset(frame_no) + self.header.frame_bytes() <= self.file_bytes {
            let found = read_at_most(&self.file, &mut bytes, self.header.frame_offset(frame_no))?;
            if let Some(frame) = FrameHeader::parse(bytes.get(..found).unwrap_or_default()) {
                match self.stale.last_mut() {
                    Some(stretch) if stretch.salts == frame.salts && stretch.last.0 + 1 == frame_no.0 => {
                        stretch.last = frame_no;
                    }
                    _ => {
                        let (salts, first, last) = (frame.salts, frame_no, frame_no);
                        self.stale.push(Stretch { salts, first, last, standing: Standing::Stale });
                    }
                }
            }
            frame_no = FrameNo(frame_no.0.saturating_add(1));
        }
        Ok(())
    }

    /// A frame's header as it stands; `None` for frame 0, beyond the end, and where nothing was written.
    fn frame_header(&self, frame: FrameNo) -> io::Result<Option<FrameHeader>> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        if frame.0 == 0 {
            return Ok(None);
        }
        let found = read_at_most(&self.file, &mut bytes, self.header.frame_offset(frame))?;
        Ok(FrameHeader::parse(bytes.get(..found).unwrap_or_default()))
    }

    fn page_one(&self) -> Option<Vec<u8>> {
        let frame = self.versions.get(&PageNo::ONE)?.last()?;
        let mut bytes = vec![0; self.header.page_size.bytes()];
        self.file.read_exact_at(&mut bytes, self.header.frame_offset(*frame) + FRAME_HEADER_BYTES as u64).ok()?;
        Some(bytes)
    }
}

fn no_frame(frame: FrameNo, count: usize) -> io::Error {
    let why = match count {
        0 => format!("there is no frame {}: there is no WAL, or nothing valid in it", frame.0),
        count => format!("there is no frame {}: the last valid one is {count}", frame.0),
    };
    io::Error::other(why)
}

/// Opens a file, and tells its bytes.
fn open_regular(path: &Path) -> Result<(File, u64), OpenError> {
    let read = |source| OpenError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read)?.is_file() {
        return Err(OpenError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(read)?;
    let file_bytes = file.metadata().map_err(read)?.len();
    Ok((file, file_bytes))
}

/// Reads until the buffer is full or the file ends; returns the bytes read.
fn read_at_most(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
