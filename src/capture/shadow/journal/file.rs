//! The open journal: what is appended, what counts, and how a version is read.

use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::entry::{Appended, Body, ENTRY_HEAD_BYTES, Entries, RECORD_HEAD_BYTES, write_head, write_record};
use super::header::{
    ENTRIES_OFFSET, Header, MARK_BYTES, MARK_OFFSET, SLOT_BYTES, SLOT_OFFSETS, Standing, VERSION, checksum_bytes, sum,
};
use super::index::{Base, Index, Place};
use super::ranges;
use crate::capture::shadow::{ShadowError, WriteError};
use crate::capture::{FileIdentity, Position};
use crate::change::{DiffError, PageSource};
use crate::format::{Checksum, PageNo, PageSize};

/// What is read and written at a time.
pub(in crate::capture::shadow) const BUFFER_BYTES: usize = 1 << 20;

/// Ranges that take more of a page than this are not worth a second read: one in two.
const RANGES_SHARE: usize = 2;

/// `shadow.db`, open.
#[derive(Debug, Clone, Copy)]
pub(in crate::capture::shadow) struct Image<'f> {
    pub(in crate::capture::shadow) file: &'f File,
    pub(in crate::capture::shadow) path: &'f Path,
}

/// Pages that are written to `shadow.db` in ascending order, neighbours at once.
pub(in crate::capture::shadow) struct Run<'f> {
    image: Image<'f>,
    offset: u64,
    bytes: Vec<u8>,
    /// Bytes written so far, with those that wait.
    pub(in crate::capture::shadow) written_bytes: u64,
}

impl<'f> Run<'f> {
    pub(in crate::capture::shadow) fn new(image: Image<'f>) -> Run<'f> {
        Run { image, offset: 0, bytes: Vec::new(), written_bytes: 0 }
    }

    /// Whether what waits was written before this page was taken.
    pub(in crate::capture::shadow) fn push(&mut self, offset: u64, page: &[u8]) -> Result<bool, ShadowError> {
        let is_apart = offset != self.offset + self.bytes.len() as u64 || self.bytes.len() >= BUFFER_BYTES;
        let flushes = is_apart && !self.bytes.is_empty();
        if flushes {
            self.flush()?;
        }
        if self.bytes.is_empty() {
            self.offset = offset;
        }
        self.bytes.extend_from_slice(page);
        self.written_bytes += page.len() as u64;
        Ok(flushes)
    }

    pub(in crate::capture::shadow) fn flush(&mut self) -> Result<(), ShadowError> {
        let written = self.image.file.write_all_at(&self.bytes, self.offset);
        written.map_err(|source| io_error(self.image.path, "writing the shadow", source))?;
        self.bytes.clear();
        Ok(())
    }
}

/// The open journal.
#[derive(Debug)]
pub(in crate::capture::shadow) struct Journal {
    path: PathBuf,
    file: File,
    header: Header,
    /// Where the journal ended when a merge began that has not ended.
    mark: Option<u64>,
    standing: Standing,
    /// Where the next entry goes, and the checksum that it continues.
    end: u64,
    chain: Checksum,
    index: Index,
    /// Pages in entries, several versions of one counted each.
    page_count: u64,
    is_image_written: bool,
}

impl Journal {
    /// Makes an empty journal for a `shadow.db` at `position`, in place of any other.
    pub(in crate::capture::shadow) fn create(
        path: &Path,
        page_size: PageSize,
        position: Position,
        database: FileIdentity,
    ) -> Result<Journal, ShadowError> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(|source| io_error(path, "creating the journal", source))?;
        let standing = Standing { position, given: position };
        let header = Header { version: VERSION, page_size, sequence: 0, standing, database };
        let mut journal = Journal::begin(path, file, header, Checksum::default());
        journal.reset(database)?;
        Ok(journal)
    }

    fn begin(path: &Path, file: File, header: Header, chain: Checksum) -> Journal {
        Journal {
            path: path.to_owned(),
            file,
            header,
            mark: None,
            standing: header.standing,
            end: ENTRIES_OFFSET,
            chain,
            index: Index::new(header.standing.position.page_count),
            page_count: 0,
            is_image_written: false,
        }
    }

    /// Opens the journal of `image` and cuts off what a sink that stored `stored` does not know.
    pub(in crate::capture::shadow) fn open(
        path: &Path,
        image: &File,
        stored: &Position,
    ) -> Result<Journal, ShadowError> {
        let file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(ShadowError::Missing { path: path.to_owned() });
            }
            Err(source) => return Err(io_error(path, "opening the journal", source)),
        };
        let read = |bytes: &mut [u8], offset| match file.read_exact_at(bytes, offset) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(io_error(path, "reading the journal", error)),
            read => Ok(read.is_ok()),
        };
        let mut newest: Option<(Header, Checksum)> = None;
        for offset in SLOT_OFFSETS {
            let mut bytes = [0; SLOT_BYTES];
            if read(&mut bytes, offset)?
                && let Some(found) = Header::parse(&bytes, path)?
                && newest.is_none_or(|(header, _)| header.sequence < found.0.sequence)
            {
                newest = Some(found);
            }
        }
        let damaged = |what| ShadowError::Damaged { path: path.to_owned(), what };
        let (header, chain) = newest.ok_or_else(|| damaged("it has no header"))?;
        let mut bytes = [0; MARK_BYTES];
        let mark = if read(&mut bytes, MARK_OFFSET)? { header.parse_mark(&bytes) } else { None };
        let mut journal = Journal { mark, ..Journal::begin(path, file, header, chain) };
        journal.take_known(image, stored)?;
        Ok(journal)
    }

    /// The entries from the first on, up to `file_bytes`.
    fn read_entries<'f>(
        &'f self,
        image: &'f File,
        file_bytes: u64,
    ) -> Result<Entries<'f, BufReader<&'f File>>, ShadowError> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &self.file);
        let sought = reader.seek(SeekFrom::Start(ENTRIES_OFFSET));
        sought.map_err(|source| io_error(&self.path, "reading the journal", source))?;
        let (_, chain) = self.header.to_bytes();
        let (page_size, mark) = (self.header.page_size, self.mark);
        Ok(Entries { reader, page_size, image, mark, offset: ENTRIES_OFFSET, chain, file_bytes })
    }

    /// Goes through the entries and takes those up to the last one that is known.
    fn take_known(&mut self, image: &File, stored: &Position) -> Result<(), ShadowError> {
        let mut known = self.standing.is_known_by(stored);
        let metadata = self.file.metadata();
        let file_bytes = metadata.map_err(|source| io_error(&self.path, "looking at the journal", source))?.len();
        let (mut waiting, mut taken) = (Vec::new(), Vec::new());
        let mut entries = self.read_entries(image, file_bytes)?;
        while let Some(entry) = entries.next().map_err(|source| io_error(&self.path, "reading the journal", source))? {
            let is_known = entry.standing.is_known_by(stored);
            waiting.push(entry);
            if is_known {
                known = true;
                taken.append(&mut waiting);
            }
        }
        drop(entries);
        if !known {
            let (salts, frame) = (stored.salts, stored.frame.0);
            return Err(ShadowError::NotAtPosition { path: self.path.clone(), salts, frame });
        }
        for entry in taken {
            self.accept(entry);
        }
        if self.mark.is_some_and(|mark| self.end < mark) {
            return Err(ShadowError::Damaged { path: self.path.clone(), what: "what a merge was made of is lost" });
        }
        self.cut()
    }

    /// The entries that count, oldest first.
    pub(in crate::capture::shadow) fn entries(&self, image: &File) -> Result<Vec<Appended>, ShadowError> {
        let mut entries = self.read_entries(image, self.end)?;
        // What counts was compared when it began to.
        entries.mark = Some(self.end);
        let mut read = Vec::new();
        while entries.offset < self.end
            && let Some(entry) = entries.next().map_err(|source| io_error(&self.path, "reading the journal", source))?
        {
            read.push(entry);
        }
        Ok(read)
    }

    /// The pages as they were behind the first of `entries`, and the position; `None` when a merge that began has overwritten some.
    pub(in crate::capture::shadow) fn index_behind(&self, entries: &[Appended]) -> Option<Index> {
        let end = entries.last().map_or(ENTRIES_OFFSET, |entry| entry.end);
        if self.mark.is_some_and(|mark| end < mark) {
            return None;
        }
        let mut index = Index::new(self.merged().page_count);
        entries.iter().for_each(|entry| index.take(entry.standing.position.page_count, &entry.places));
        Some(index)
    }

    /// Writes an entry behind the last one that counts. It counts once it was given to [`Journal::accept`]. Without `image` nothing is
    /// based on `shadow.db` or written to it.
    pub(in crate::capture::shadow) fn append(
        &self,
        standing: Standing,
        pages: &[PageNo],
        source: &dyn PageSource,
        image: Option<Image<'_>>,
    ) -> Result<Appended, WriteError> {
        let page_size = self.header.page_size;
        let page_bytes = page_size.bytes();
        // A merge that began may have overwritten what is there, and that may not be on disk.
        let image = image.filter(|_| self.mark.is_none());
        let mut run = image.map(Run::new);
        let mut out = Writer { journal: self, offset: self.end, chain: self.chain, buffer: Vec::new() };
        out.buffer.reserve(BUFFER_BYTES.min(pages.len().saturating_mul(RECORD_HEAD_BYTES + 64) + ENTRY_HEAD_BYTES));
        write_head(&mut out.buffer, pages.len(), &standing);
        let mut places = Vec::with_capacity(pages.len());
        let (mut base_bytes, mut ranges) = (vec![0; page_bytes], Vec::new());
        for page in pages {
            let bytes = source.page(*page).map_err(DiffError::from)?;
            if bytes.len() != page_bytes {
                let what = "a page of another size was to be written";
                return Err(ShadowError::Damaged { path: self.path.clone(), what }.into());
            }
            let base = self.index.base(*page).filter(|base| *base != Base::Image || image.is_some());
            ranges.clear();
            let is_small = match base {
                Some(base) => {
                    let read = self.read_base(base, *page, image.map(|image| image.file), &mut base_bytes);
                    read.map_err(|source| io_error(&self.path, "reading a page as it was", source))?;
                    ranges::encode(&base_bytes, &bytes, page_bytes / RANGES_SHARE, &mut ranges)
                }
                None => false,
            };
            let body = match (base, &mut run) {
                (Some(base), _) if is_small => Body::Ranges(&ranges, base),
                (None, Some(run)) if self.index.is_free(*page) => {
                    run.push(page.file_offset(page_size), &bytes)?;
                    Body::InPlace(sum(Checksum::default(), &bytes))
                }
                _ => Body::Whole(&bytes),
            };
            places.push((*page, write_record(&mut out.buffer, out.offset, *page, &body)));
            out.flush_if_full()?;
        }
        let mut image_bytes = 0;
        if let Some(run) = &mut run {
            run.flush()?;
            image_bytes = run.written_bytes;
        }
        out.add_to_chain();
        let chain = out.chain;
        out.buffer.extend_from_slice(&checksum_bytes(chain));
        out.write()?;
        Ok(Appended { standing, places, end: out.offset, chain, image_bytes })
    }

    /// Lets an entry count.
    pub(in crate::capture::shadow) fn accept(&mut self, entry: Appended) {
        self.index.take(entry.standing.position.page_count, &entry.places);
        self.is_image_written |= entry.places.iter().any(|(_, place)| *place == Place::Image);
        self.page_count += entry.places.len() as u64;
        self.standing = entry.standing;
        self.end = entry.end;
        self.chain = entry.chain;
    }

    /// Cuts off what does not count.
    pub(in crate::capture::shadow) fn cut(&self) -> Result<(), ShadowError> {
        self.file.set_len(self.end).map_err(|source| io_error(&self.path, "cutting the journal", source))
    }

    /// Marks that a merge begins, before it overwrites anything. All of the journal is on disk.
    pub(in crate::capture::shadow) fn begin_merge(&mut self) -> Result<(), ShadowError> {
        let fail = |source| io_error(&self.path, "marking the merge", source);
        self.file.write_all_at(&self.header.mark(self.end), MARK_OFFSET).map_err(fail)?;
        self.file.sync_data().map_err(fail)?;
        self.mark = Some(self.end);
        Ok(())
    }

    /// Begins anew behind a merge: everything up to here is in `shadow.db`.
    pub(in crate::capture::shadow) fn reset(&mut self, database: FileIdentity) -> Result<(), ShadowError> {
        let sequence = self.header.sequence + 1;
        let header = Header { version: VERSION, sequence, standing: self.standing, database, ..self.header };
        let (bytes, checksum) = header.to_bytes();
        let slot = SLOT_OFFSETS.get(sequence as usize % SLOT_OFFSETS.len()).copied().unwrap_or_default();
        let fail = |source| io_error(&self.path, "writing the journal's header", source);
        self.file.write_all_at(&bytes, slot).map_err(fail)?;
        self.file.sync_data().map_err(fail)?;
        self.header = header;
        self.mark = None;
        self.end = ENTRIES_OFFSET;
        self.chain = checksum;
        self.index = Index::new(header.standing.position.page_count);
        self.page_count = 0;
        self.is_image_written = false;
        self.cut()
    }

    /// Makes the journal durable, and what it has in `shadow.db`.
    pub(in crate::capture::shadow) fn sync(&self, image: Image<'_>) -> Result<(), ShadowError> {
        if self.is_image_written {
            image.file.sync_data().map_err(|source| io_error(image.path, "syncing the shadow", source))?;
        }
        self.file.sync_data().map_err(|source| io_error(&self.path, "syncing the journal", source))
    }

    pub(in crate::capture::shadow) fn index(&self) -> &Index {
        &self.index
    }

    /// Reads the version of a page that an index names, which is that of `shadow.db` when it names none.
    pub(in crate::capture::shadow) fn read_page(
        &self,
        page: PageNo,
        index: &Index,
        image: &File,
        bytes: &mut [u8],
    ) -> std::io::Result<()> {
        match index.get(page) {
            None | Some(Place::Image) => self.read_base(Base::Image, page, Some(image), bytes),
            Some(Place::Whole(offset)) => self.read_base(Base::Journal(offset), page, Some(image), bytes),
            Some(Place::Ranges { offset, bytes: count, base }) => {
                self.read_base(base, page, Some(image), bytes)?;
                let mut found = vec![0; count as usize];
                self.file.read_exact_at(&mut found, offset)?;
                if ranges::apply(bytes, &found) {
                    Ok(())
                } else {
                    Err(Error::new(ErrorKind::InvalidData, "ranges that do not fit the page"))
                }
            }
        }
    }

    fn read_base(&self, base: Base, page: PageNo, image: Option<&File>, bytes: &mut [u8]) -> std::io::Result<()> {
        match (base, image) {
            (Base::Journal(offset), _) => self.file.read_exact_at(bytes, offset.get()),
            (Base::Image, Some(image)) => image.read_exact_at(bytes, page.file_offset(self.header.page_size)),
            (Base::Image, None) => Err(Error::from(ErrorKind::NotFound)),
        }
    }

    pub(in crate::capture::shadow) fn has(&self, page: PageNo) -> bool {
        self.index.has(page)
    }

    pub(in crate::capture::shadow) fn standing(&self) -> Standing {
        self.standing
    }

    /// The sink has stored the position that the shadow stands at.
    pub(in crate::capture::shadow) fn note_given(&mut self) {
        self.standing.given = self.standing.position;
    }

    /// Where `shadow.db` itself stands.
    pub(in crate::capture::shadow) fn merged(&self) -> Position {
        self.header.standing.position
    }

    pub(in crate::capture::shadow) fn database(&self) -> FileIdentity {
        self.header.database
    }

    pub(in crate::capture::shadow) fn page_size(&self) -> PageSize {
        self.header.page_size
    }

    /// Pages written since the last merge, and their bytes with everything around them.
    pub(in crate::capture::shadow) fn extent(&self) -> (u64, u64) {
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

pub(in crate::capture::shadow) fn io_error(path: &Path, what: &'static str, source: std::io::Error) -> ShadowError {
    ShadowError::Io { path: path.to_owned(), what, source }
}
