//! A held shadow against a database that comes from elsewhere: which rows differ.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::journal::{BUFFER_BYTES, io_error};
use super::{HeldShadow, ShadowError};
use crate::change::{ChangeSink, Differ, PageError, PageSource, TransactionError, TxSpan};
use crate::format::{Checksum, DATABASE_HEADER_BYTES, DatabaseHeader, FrameNo, PageNo, PageSize, Salts};
use crate::schema::Table;

/// Why rows could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum HeldCompareError<E> {
    /// Something with the shadow or the other file.
    #[error(transparent)]
    Shadow(#[from] ShadowError),
    /// Their pages are laid out in ways that cannot be compared.
    #[error("the pages of both are not of one kind")]
    OtherLayout,
    /// It was told to stop.
    #[error("it was told to stop")]
    Stopped,
    /// The sink refused.
    #[error("{0}")]
    Sink(E),
}

/// A database in one file.
struct FilePages {
    file: File,
    path: PathBuf,
    page_size: PageSize,
    page_count: u32,
}

impl FilePages {
    fn open(path: &Path, bytes: Option<u64>) -> Result<(FilePages, DatabaseHeader), ShadowError> {
        let fail = |source| io_error(path, "opening it to compare", source);
        let file = File::open(path).map_err(fail)?;
        let mut head = [0; DATABASE_HEADER_BYTES];
        file.read_exact_at(&mut head, 0).map_err(fail)?;
        let damaged = |_| ShadowError::Damaged { path: path.to_owned(), what: "it is no database" };
        let header = DatabaseHeader::parse(&head).map_err(damaged)?;
        let bytes = bytes.map_or_else(|| file.metadata().map(|found| found.len()), Ok).map_err(fail)?;
        let page_count = u32::try_from(bytes / u64::from(header.page_size.get())).unwrap_or(u32::MAX);
        Ok((FilePages { file, path: path.to_owned(), page_size: header.page_size, page_count }, header))
    }

    /// Reads from an offset on; what is behind the end are zeros.
    fn read_some(&self, bytes: &mut [u8], offset: u64) -> Result<(), ShadowError> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let read = self.file.read_at(rest, offset + done as u64);
            match read.map_err(|source| io_error(&self.path, "reading it to compare", source))? {
                0 => {
                    rest.fill(0);
                    break;
                }
                count => done += count,
            }
        }
        Ok(())
    }
}

impl PageSource for FilePages {
    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        if page.get() > self.page_count {
            return Err(PageError::Missing { page, page_count: self.page_count });
        }
        let mut bytes = vec![0; self.page_size.bytes()];
        let offset = u64::from(page.get() - 1) * u64::from(self.page_size.get());
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes.into()),
            Err(source) => Err(PageError::Unreadable { page, source }),
        }
    }
}

impl HeldShadow {
    /// Gives `sink` the row changes that would make of the shadow the database in the file `other`, which must have no log. Only pages that
    /// differ are decoded. Returns the tables that are in both with the same definition: of those it is all that differs.
    ///
    /// # Errors
    /// [`HeldCompareError`]; what the sink was given then is not all, and need not be right.
    pub fn compare<E>(
        &self,
        other: &Path,
        is_over: &dyn Fn() -> bool,
        sink: &mut dyn ChangeSink<E>,
    ) -> Result<Vec<Arc<Table>>, HeldCompareError<E>> {
        let (here, ours) = FilePages::open(&self.path, Some(self.bytes))?;
        let (there, theirs) = FilePages::open(other, None)?;
        let kind = |of: &DatabaseHeader| (of.page_size, of.reserved, of.encoding, of.auto_vacuum);
        if kind(&ours) != kind(&theirs) {
            return Err(HeldCompareError::OtherLayout);
        }
        let incomparable = |source| ShadowError::Incomparable { path: self.path.clone(), source };
        let mut differ = Differ::open(&here).map_err(incomparable)?;
        if !differ.damage().is_empty() {
            return Err(HeldCompareError::OtherLayout);
        }
        let changed = self.differing(&here, &there, is_over)?;
        let span = TxSpan {
            tx: 1,
            salts: Salts([0; 8]),
            frame_first: FrameNo(0),
            frame_last: FrameNo(0),
            checksum: Checksum::default(),
            page_count: there.page_count,
            repaired: true,
        };
        let before = Arc::clone(differ.catalogue());
        let mut stoppable = Stoppable { sink, is_over };
        match differ.transaction(&here, &there, &changed, &span, &mut stoppable) {
            Ok(_) => {}
            Err(TransactionError::Diff(source)) => return Err(incomparable(source).into()),
            Err(TransactionError::Sink(Some(error))) => return Err(HeldCompareError::Sink(error)),
            Err(TransactionError::Sink(None)) => return Err(HeldCompareError::Stopped),
        }
        // What was read before this look is of the position: merging begins only after the hold is revoked.
        if self.revoked.load(Ordering::SeqCst) {
            return Err(ShadowError::Revoked { path: self.path.clone() }.into());
        }
        let after = differ.catalogue();
        let is_same = |table: &&Arc<Table>| {
            after.table(&table.name).is_some_and(|other| table.sql == other.sql && !table.is_virtual)
        };
        Ok(before.tables().filter(is_same).cloned().collect())
    }

    fn differing<E>(
        &self,
        here: &FilePages,
        there: &FilePages,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Vec<PageNo>, HeldCompareError<E>> {
        let page_bytes = here.page_size.bytes();
        let pages_at_once = (BUFFER_BYTES / page_bytes).max(1) as u32;
        let (mut old, mut new) = (vec![0; BUFFER_BYTES], vec![0; BUFFER_BYTES]);
        let mut differing = Vec::new();
        let mut first = 1u32;
        while first <= there.page_count {
            if is_over() || self.revoked.load(Ordering::SeqCst) {
                return Err(HeldCompareError::Stopped);
            }
            let count = pages_at_once.min(there.page_count - first + 1);
            let bytes = count as usize * page_bytes;
            let offset = u64::from(first - 1) * page_bytes as u64;
            let (Some(old), Some(new)) = (old.get_mut(..bytes), new.get_mut(..bytes)) else { break };
            here.read_some(old, offset)?;
            there.read_some(new, offset)?;
            let pairs = old.chunks(page_bytes).zip(new.chunks(page_bytes));
            for (page, (old, new)) in (first..).filter_map(PageNo::new).zip(pairs) {
                if page.get() > here.page_count || old != new {
                    differing.push(page);
                }
            }
            first += count;
        }
        Ok(differing)
    }
}

/// Ends a comparison between two of its rows.
struct Stoppable<'s, E> {
    sink: &'s mut dyn ChangeSink<E>,
    is_over: &'s dyn Fn() -> bool,
}

impl<E> ChangeSink<Option<E>> for Stoppable<'_, E> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), Option<E>> {
        self.sink.begin(span).map_err(Some)
    }

    fn schema(&mut self, change: crate::change::SchemaChange) -> Result<(), Option<E>> {
        self.sink.schema(change).map_err(Some)
    }

    fn change(&mut self, change: crate::change::RowChange) -> Result<(), Option<E>> {
        if (self.is_over)() { Err(None) } else { self.sink.change(change).map_err(Some) }
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> Result<(), Option<E>> {
        self.sink.commit(span, changes).map_err(Some)
    }
}
