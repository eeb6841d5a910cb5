//! The row changes of every committed transaction of a WAL.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::io;

use super::files::{Commit, Files, Wal};
use crate::change::{
    ChangeSink, DiffError, Differ, PageError, PageSource, RowChange, SchemaChange, TransactionError, TxSpan,
};
use crate::format::{BtreePage, DatabaseHeader, FrameNo, PageNo, TextEncoding};
use crate::schema::Catalogue;

/// What could not be shown, and where.
#[derive(Debug)]
pub struct Damage {
    /// The transaction; `None` for the database as a whole.
    pub tx: Option<u64>,
    /// What is wrong, in words.
    pub what: String,
    loss: bool,
}

impl Damage {
    /// Whether row changes are missing or uncertain because of it.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.loss
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tx {
            Some(tx) => write!(f, "transaction {tx}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// More of these than a person reads.
const DAMAGE_MAX: usize = 100;

/// Gives the changes of every committed transaction to `sink`; returns what could not be shown.
///
/// # Errors
/// Only those of the sink.
pub fn each_transaction<E>(files: &Files, sink: &mut dyn ChangeSink<E>) -> Result<Vec<Damage>, E> {
    each_from(files, 1, sink)
}

/// As [`each_transaction`], from a transaction on.
pub(super) fn each_from<E>(files: &Files, first: u64, sink: &mut dyn ChangeSink<E>) -> Result<Vec<Damage>, E> {
    let mut reader = Reader::default();
    let mut damage = reader.read(files, first, sink)?;
    damage.extend(reader.trees());
    Ok(damage)
}

/// Reads one transaction after the other.
#[derive(Default)]
pub(super) struct Reader {
    /// The database as it is where the reader stands.
    differ: Option<Differ>,
}

impl Reader {
    /// One that stands at the present.
    pub(super) fn at_end(files: &Files) -> Reader {
        Reader { differ: Differ::open(&State::last(files)).ok() }
    }

    /// The database's header where the reader stands, if that is known.
    pub(super) fn header(&self) -> Option<&DatabaseHeader> {
        self.differ.as_ref().map(Differ::header)
    }

    /// Trees that could not be walked.
    fn trees(&self) -> impl Iterator<Item = Damage> {
        let trees = self.differ.iter().flat_map(|differ| differ.damage());
        trees.map(|error| Damage { tx: None, what: with_causes(error), loss: true })
    }

    /// Gives the transactions from `first` on to `sink`; returns what could not be shown.
    pub(super) fn read<E>(
        &mut self,
        files: &Files,
        first: u64,
        sink: &mut dyn ChangeSink<E>,
    ) -> Result<Vec<Damage>, E> {
        let mut damage = Vec::new();
        let Some(wal) = &files.wal else { return Ok(damage) };
        let from = usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX);
        for commit in wal.commits.get(from..).unwrap_or_default() {
            let span = TxSpan {
                tx: commit.tx,
                salts: wal.salts,
                frame_first: commit.first,
                frame_last: commit.last,
                repaired: false,
                checksum: commit.checksum,
                page_count: commit.page_count,
            };
            let changed = files.pages_of(commit);
            let after = State::after(files, commit);
            let unknown = changed.iter().any(|page| {
                wal.overwritten.contains(page) && files.first_frame(*page).is_some_and(|frame| frame >= commit.first)
            });
            let result = if unknown {
                without_before(&after, &changed, &span, sink, &mut self.differ)
            } else {
                let before = State::before(files, commit);
                let opened = self.differ.take().map_or_else(|| Differ::open(&before), Ok);
                opened.map_err(TransactionError::Diff).and_then(|mut opened| {
                    opened.pass_over_damage();
                    let done = opened.transaction(&before, &after, &changed, &span, sink).map(|_| ());
                    if done.is_ok() {
                        self.differ = Some(opened);
                    }
                    done
                })
            };
            for passed_over in self.differ.iter_mut().flat_map(Differ::take_passed_over) {
                if damage.len() < DAMAGE_MAX {
                    damage.push(Damage { tx: Some(commit.tx), what: with_causes(&passed_over), loss: true });
                }
            }
            let (what, loss) = match result {
                Err(TransactionError::Sink(error)) => return Err(error),
                Err(TransactionError::Diff(error)) => (format!("cannot be shown: {}", with_causes(&error)), true),
                Ok(()) if unknown => {
                    ("a checkpoint overwrote what was before it, so deleted rows are not shown".to_owned(), true)
                }
                Ok(()) => continue,
            };
            if damage.len() < DAMAGE_MAX {
                damage.push(Damage { tx: Some(commit.tx), what, loss });
            }
        }
        Ok(damage)
    }
}

/// How many pages of the last transaction are in no tree of the database after it.
pub(super) fn pages_without_tree(files: &Files) -> usize {
    let Some(commit) = files.commits().last() else { return 0 };
    let Ok(differ) = Differ::open(&State::after(files, commit)) else { return 0 };
    files.pages_of(commit).into_iter().filter(|page| differ.object_of(*page).is_none()).count()
}

fn with_causes(error: &DiffError) -> String {
    crate::cli::Failure::of(error).message
}

/// A transaction whose before images are not known: every row on the leaf pages that it wrote is given out as one that may have been
/// there. To the differ those pages are shown as empty before.
fn without_before<E>(
    after: &State<'_>,
    changed: &[PageNo],
    span: &TxSpan,
    sink: &mut dyn ChangeSink<E>,
    differ: &mut Option<Differ>,
) -> Result<(), TransactionError<E>> {
    // Where it was leaves that were overwritten, all else is as the differ knows it.
    let known =
        differ.take().filter(|known| known.are_leaves(changed) && changed.iter().all(|page| after.is_leaf(*page)));
    let schema = if known.is_some() { BTreeSet::new() } else { schema_pages(after)? };
    let emptied = changed.iter().copied().filter(|page| !schema.contains(page)).collect();
    let before = State { emptied, ..*after };
    let mut opened = known.map_or_else(|| Differ::open(&before), Ok)?;
    opened.pass_over_damage();
    opened.transaction(&before, after, changed, span, &mut Unknown(sink))?;
    *differ = Some(opened);
    Ok(())
}

/// Pages of the schema's own tree: emptied they would make every table new.
fn schema_pages(state: &State<'_>) -> Result<BTreeSet<PageNo>, DiffError> {
    let usable = DatabaseHeader::parse(&state.page(PageNo::ONE)?)?.usable();
    let mut pages = BTreeSet::from([PageNo::ONE]);
    let mut open = vec![PageNo::ONE];
    // Ends because no page is taken twice.
    while let Some(page) = open.pop() {
        let bytes = state.page(page)?;
        for child in BtreePage::parse(page, &bytes, usable)?.children() {
            let child = child?;
            if pages.insert(child) {
                open.push(child);
            }
        }
    }
    Ok(pages)
}

/// Marks changes as ones whose before is not known.
struct Unknown<'s, E>(&'s mut dyn ChangeSink<E>);

impl<E> ChangeSink<E> for Unknown<'_, E> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), E> {
        self.0.begin(span)
    }

    fn schema(&mut self, change: SchemaChange) -> Result<(), E> {
        self.0.schema(change)
    }

    fn change(&mut self, change: RowChange) -> Result<(), E> {
        self.0.change(RowChange { before: None, before_unknown: true, ..change })
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> Result<(), E> {
        self.0.commit(span, changes)
    }
}

/// The schema as it is at the end.
///
/// # Errors
/// [`DiffError`] when page 1 or the schema cannot be read.
pub(in crate::cli) fn catalogue(files: &Files) -> Result<std::sync::Arc<Catalogue>, DiffError> {
    Ok(std::sync::Arc::clone(Differ::open(&State::last(files))?.catalogue()))
}

/// Encoding and schema as they are before the first transaction.
pub(super) fn before_first(files: &Files) -> Result<(TextEncoding, std::sync::Arc<Catalogue>), DiffError> {
    let state = files.commits().first().map_or_else(|| State::last(files), |commit| State::before(files, commit));
    let differ = Differ::open(&state)?;
    Ok((differ.header().encoding, std::sync::Arc::clone(differ.catalogue())))
}

/// The database at one commit.
pub(super) struct State<'f> {
    files: &'f Files,
    limit: FrameNo,
    page_count: u32,
    /// Leaf pages that are shown without their cells.
    emptied: BTreeSet<PageNo>,
}

impl<'f> State<'f> {
    /// Of what a damaged file says that there is nothing is read, and nothing is kept for it.
    fn new(files: &'f Files, limit: FrameNo, page_count: u32) -> State<'f> {
        State { files, limit, page_count: page_count.min(files.last_page()), emptied: BTreeSet::new() }
    }

    fn after(files: &'f Files, commit: &Commit) -> State<'f> {
        State::new(files, commit.last, commit.page_count)
    }

    pub(super) fn before(files: &'f Files, commit: &Commit) -> State<'f> {
        let previous = commit.tx.checked_sub(2).and_then(|index| files.commits().get(usize::try_from(index).ok()?));
        match previous {
            Some(previous) => State::after(files, previous),
            None => State::new(files, FrameNo(0), size_in_file(files).unwrap_or(commit.page_count)),
        }
    }

    pub(super) fn last(files: &'f Files) -> State<'f> {
        match files.commits().last() {
            Some(commit) => State::after(files, commit),
            None => State::new(files, FrameNo(0), size_in_file(files).unwrap_or(0)),
        }
    }
}

/// The size that page 1 of the file tells, if it is that of the generation's beginning.
fn size_in_file(files: &Files) -> Option<u32> {
    if files.wal.as_ref().is_some_and(|wal| wal.overwritten.contains(&PageNo::ONE)) {
        return None;
    }
    let database = files.database.as_ref()?;
    let in_file = u32::try_from(database.file_bytes / u64::from(files.page_size().get())).unwrap_or(u32::MAX);
    let header = &database.header;
    Some(if header.size_is_valid { header.page_count } else { in_file })
}

impl PageSource for State<'_> {
    fn page_count(&self) -> u32 {
        self.page_count
    }

    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        let overwritten = self.files.wal.as_ref().is_some_and(|wal| wal.overwritten.contains(&page));
        // Of an overwritten page the oldest version in the WAL is nearest to what it was. It only serves to find a page's table: the
        // transaction that wrote it is shown without before images.
        let nearest = || self.files.first_frame(page).filter(|_| overwritten);
        self.read(page, self.files.frame_at(page, self.limit).or_else(nearest))
    }

    fn exact(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        let frame = self.files.frame_at(page, self.limit);
        let is_younger = |wal: &Wal| wal.is_before_file || wal.overwritten.contains(&page);
        if frame.is_none() && self.files.wal.as_ref().is_some_and(is_younger) {
            return Err(PageError::Unknown { page });
        }
        self.read(page, frame)
    }
}

impl State<'_> {
    fn is_leaf(&self, page: PageNo) -> bool {
        self.page(page).is_ok_and(|bytes| matches!(bytes.first(), Some(10 | 13)))
    }

    /// A page from its frame, or from the file.
    fn read(&self, page: PageNo, frame: Option<FrameNo>) -> Result<Cow<'_, [u8]>, PageError> {
        if page.get() > self.page_count {
            return Err(PageError::Missing { page, page_count: self.page_count });
        }
        let unreadable = |source: io::Error| PageError::Unreadable { page, source };
        let mut bytes = match frame {
            Some(frame) => self.files.read_frame(frame).map_err(unreadable)?,
            None => self.files.read_file(page).map_err(unreadable)?.ok_or(PageError::Unknown { page })?,
        };
        if self.emptied.contains(&page) {
            empty_leaf(&mut bytes);
        }
        Ok(Cow::Owned(bytes))
    }
}

/// Takes the cells out of a leaf page (kinds 10 and 13): no cells, no free blocks, content at the page's end.
fn empty_leaf(bytes: &mut [u8]) {
    if let Some([10 | 13, header @ ..]) = bytes.first_chunk_mut::<8>() {
        *header = [0; 7];
    }
}
