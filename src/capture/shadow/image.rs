//! The shadow as a version of the database, and what moves it.

use std::borrow::Cow;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ShadowError;
use super::journal::{Appended, Image, Index, Journal, Standing, io_error};
use crate::capture::{CaptureError, FileIdentity, FollowError, Position};
use crate::change::{ChangeSink, ChangedRow, DiffError, PageError, PageSource, RowChange, SchemaChange, TxSpan};
use crate::fault::{self, Point};
use crate::format::{DATABASE_HEADER_BYTES, DatabaseHeader, PageNo, PageSize};

/// The names in the state directory.
pub(super) const DATABASE_NAME: &str = "shadow.db";
pub(super) const JOURNAL_NAME: &str = "shadow.journal";
/// The name of a copy that is not complete.
pub(super) const COPY_NAME: &str = "shadow.db.tmp";

/// Why an entry was not written.
#[derive(Debug)]
pub(in crate::capture) enum WriteError {
    Shadow(ShadowError),
    Source(DiffError),
}

impl From<ShadowError> for WriteError {
    fn from(error: ShadowError) -> WriteError {
        WriteError::Shadow(error)
    }
}

impl From<DiffError> for WriteError {
    fn from(error: DiffError) -> WriteError {
        WriteError::Source(error)
    }
}

impl From<WriteError> for CaptureError {
    fn from(error: WriteError) -> CaptureError {
        match error {
            WriteError::Shadow(error) => CaptureError::Shadow(error),
            WriteError::Source(error) => CaptureError::Diff(error),
        }
    }
}

/// The open shadow.
#[derive(Debug)]
pub(in crate::capture) struct Shadow {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) journal: Journal,
    /// The copy is not complete: nothing may be merged into it.
    pub(super) is_copying: bool,
    /// Bytes written so far, for metrics.
    pub(super) written_bytes: u64,
    /// Who holds the file where it is: nothing may be merged into it meanwhile.
    pub(super) held: std::sync::Weak<std::sync::atomic::AtomicBool>,
}

impl Shadow {
    /// Opens the shadow of a node that stored `stored`, and cuts it back to that.
    pub(in crate::capture) fn open(directory: &Path, stored: &Position) -> Result<Shadow, ShadowError> {
        let path = directory.join(DATABASE_NAME);
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(ShadowError::Missing { path }),
            Err(source) => return Err(io_error(&path, "opening the shadow", source)),
        };
        let journal = Journal::open(&directory.join(JOURNAL_NAME), &file, stored)?;
        let shadow = Shadow { path, file, journal, is_copying: false, written_bytes: 0, held: std::sync::Weak::new() };
        shadow.judge()?;
        Ok(shadow)
    }

    fn judge(&self) -> Result<(), ShadowError> {
        let damaged = |what| ShadowError::Damaged { path: self.path.clone(), what };
        let fail = |source| io_error(&self.path, "reading the shadow", source);
        let mut bytes = [0; DATABASE_HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(damaged("it has no header")),
            Err(source) => return Err(fail(source)),
        }
        let header = DatabaseHeader::parse(&bytes).map_err(|_| damaged("its header is not that of a database"))?;
        if header.page_size != self.page_size() {
            return Err(damaged("its page size is not that of its journal"));
        }
        // With pages in the journal the length may be any: a merge may have been interrupted.
        let whole = u64::from(self.journal.merged().page_count) * u64::from(self.page_size().get());
        if self.journal.extent().0 == 0 {
            let bytes = self.file.metadata().map_err(fail)?.len();
            if bytes < whole {
                return Err(damaged("it is shorter than at its position"));
            }
            if bytes > whole {
                // Pages of an entry that did not come to count.
                self.file.set_len(whole).map_err(fail)?;
            }
        }
        Ok(())
    }

    pub(in crate::capture) fn position(&self) -> Position {
        self.journal.standing().position
    }

    pub(in crate::capture) fn page_size(&self) -> PageSize {
        self.journal.page_size()
    }

    pub(in crate::capture) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is kept.
    pub(in crate::capture) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// The database file that the shadow was last merged from.
    pub(in crate::capture) fn database(&self) -> FileIdentity {
        self.journal.database()
    }

    pub(super) fn image(&self) -> Image<'_> {
        Image { file: &self.file, path: &self.path }
    }

    /// Writes the pages of a transaction that ends at `position`; `is_given` says whether the sink gets to know it. To be completed by
    /// [`Shadow::accept`], or taken back by [`Shadow::cut`].
    pub(in crate::capture) fn append(
        &self,
        position: Position,
        is_given: bool,
        pages: &[PageNo],
        source: &dyn PageSource,
    ) -> Result<Appended, WriteError> {
        let given = if is_given { position } else { self.journal.standing().given };
        // A copy that is not complete may be overwritten by its next piece, and may not have what it is to have.
        let image = (!self.is_copying).then(|| self.image());
        self.journal.append(Standing { position, given }, pages, source, image)
    }

    /// The sink has stored the shadow's position, although it was given nothing there: it must be known again after the next merge.
    pub(in crate::capture) fn note_given(&mut self) {
        self.journal.note_given();
    }

    pub(in crate::capture) fn accept(&mut self, entry: Appended) {
        let before = self.journal.extent().1;
        self.written_bytes += entry.image_bytes;
        self.journal.accept(entry);
        self.written_bytes += self.journal.extent().1 - before;
    }

    pub(in crate::capture) fn cut(&self) -> Result<(), ShadowError> {
        self.journal.cut()
    }

    pub(in crate::capture) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    pub(super) fn page_of(&self, page: PageNo, page_count: u32, index: &Index) -> Result<Cow<'_, [u8]>, PageError> {
        if page.get() > page_count {
            return Err(PageError::Missing { page, page_count });
        }
        let mut bytes = vec![0; self.page_size().bytes()];
        match self.journal.read_page(page, index, &self.file, &mut bytes) {
            Ok(()) => Ok(Cow::Owned(bytes)),
            Err(source) => Err(PageError::Unreadable { page, source }),
        }
    }
}

impl PageSource for Shadow {
    fn page_count(&self) -> u32 {
        self.position().page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        self.page_of(page, self.page_count(), self.journal.index())
    }
}

/// A sink that writes the journal before the real sink stores its position.
pub(in crate::capture) struct Journaled<'a, E> {
    pub(in crate::capture) shadow: &'a Shadow,
    pub(in crate::capture) position: Position,
    pub(in crate::capture) pages: &'a [PageNo],
    pub(in crate::capture) after: &'a dyn PageSource,
    pub(in crate::capture) sink: &'a mut dyn ChangeSink<E>,
    /// What was written; there once the sink was asked to commit.
    pub(in crate::capture) appended: Option<Appended>,
}

impl<E> ChangeSink<FollowError<E>> for Journaled<'_, E> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), FollowError<E>> {
        self.sink.begin(span).map_err(FollowError::Sink)
    }

    fn schema(&mut self, change: SchemaChange) -> Result<(), FollowError<E>> {
        self.sink.schema(change).map_err(FollowError::Sink)
    }

    fn change(&mut self, change: RowChange) -> Result<(), FollowError<E>> {
        self.sink.change(change).map_err(FollowError::Sink)
    }

    fn row(&mut self, row: ChangedRow<'_>) -> Result<(), FollowError<E>> {
        self.sink.row(row).map_err(FollowError::Sink)
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> Result<(), FollowError<E>> {
        fault::pass(Point::JournalAppend);
        let entry = self.shadow.append(self.position, true, self.pages, self.after).map_err(CaptureError::from)?;
        self.appended = Some(entry);
        fault::pass(Point::JournalAppended);
        self.sink.commit(span, changes).map_err(FollowError::Sink)
    }
}
