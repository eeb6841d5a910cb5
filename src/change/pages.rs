//! Where the differ gets pages from.

use std::borrow::Cow;

use crate::format::{BtreePage, Cell, Corrupt, DatabaseHeader, HeaderError, PageNo, TextEncoding};

/// One version of a database, page by page.
pub trait PageSource {
    /// Size of this version in pages.
    fn page_count(&self) -> u32;

    /// The bytes of a page, the reserved ones included.
    ///
    /// # Errors
    /// [`PageError`] when the page is beyond the end or cannot be read.
    fn page(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError>;

    /// As [`PageSource::page`], for a page that values are read from. A source that gives the nearest version that it has, so that the structure
    /// can be guessed, gives none here: joined with others it would show values that never were.
    ///
    /// # Errors
    /// [`PageError`]; [`PageError::Unknown`] where this version is not there any more.
    fn exact(&self, page: PageNo) -> Result<Cow<'_, [u8]>, PageError> {
        self.page(page)
    }
}

/// Why a page could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The database has no such page.
    #[error("page {page} is beyond the database's {page_count} pages")]
    Missing {
        /// The page asked for.
        page: PageNo,
        /// Pages that this version has.
        page_count: u32,
    },
    /// The version that was asked for is not there any more, or never was known.
    #[error("page {page} as it was is not known")]
    Unknown {
        /// The page asked for.
        page: PageNo,
    },
    /// Reading failed.
    #[error("page {page} cannot be read")]
    Unreadable {
        /// The page asked for.
        page: PageNo,
        /// Why.
        source: std::io::Error,
    },
}

/// Why two versions could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A page could not be had.
    #[error(transparent)]
    Page(#[from] PageError),
    /// A page contradicts the file format.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// Page 1 is not the first page of a database.
    #[error("page 1 is damaged")]
    Header(#[from] HeaderError),
    /// A row's payload is no record.
    #[error("table {table}: a record on page {page} is corrupt")]
    Record {
        /// The table.
        table: String,
        /// The b-tree page with the cell.
        page: PageNo,
        /// What is wrong.
        source: crate::format::RecordError,
    },
    /// The schema could not be understood.
    #[error(transparent)]
    Catalogue(#[from] crate::schema::CatalogueError),
}

/// A page source with what its page 1 says.
#[derive(Clone, Copy)]
pub(crate) struct Version<'s> {
    pub(crate) pages: &'s dyn PageSource,
    pub(crate) usable: usize,
    pub(crate) encoding: TextEncoding,
    pub(crate) auto_vacuum: bool,
}

impl<'s> Version<'s> {
    pub(crate) fn with_header(pages: &'s dyn PageSource, header: &DatabaseHeader) -> Version<'s> {
        let auto_vacuum = header.auto_vacuum != crate::format::AutoVacuum::None;
        Version { pages, usable: header.usable(), encoding: header.encoding, auto_vacuum }
    }

    pub(crate) fn bytes(&self, page: PageNo) -> Result<Cow<'s, [u8]>, PageError> {
        self.pages.page(page)
    }

    /// The bytes of a page that values are read from.
    pub(crate) fn exact(&self, page: PageNo) -> Result<Cow<'s, [u8]>, PageError> {
        self.pages.exact(page)
    }

    pub(crate) fn parse<'b>(&self, page: PageNo, bytes: &'b [u8]) -> Result<BtreePage<'b>, Corrupt> {
        BtreePage::parse(page, bytes, self.usable)
    }

    /// Children of an interior page, appended to `out`.
    pub(crate) fn children(&self, page: PageNo, out: &mut Vec<PageNo>) -> Result<(), DiffError> {
        let bytes = self.bytes(page)?;
        for child in self.parse(page, &bytes)?.children() {
            out.push(child?);
        }
        Ok(())
    }

    /// Height of the tree below `root`: 0 for a leaf.
    pub(crate) fn height(&self, root: PageNo) -> Result<u8, DiffError> {
        let mut page = root;
        for height in 0..=TREE_HEIGHT_MAX {
            let bytes = self.bytes(page)?;
            match self.parse(page, &bytes)?.children().next() {
                Some(child) => page = child?,
                None => return Ok(height),
            }
        }
        Err(Corrupt { page: root, offset: 0, what: "tree is deeper than SQLite allows" }.into())
    }

    /// The whole payload of a cell; `chain`, if given, takes the overflow pages that were walked.
    pub(crate) fn payload<'c>(
        &self,
        page: PageNo,
        cell: &Cell<'c>,
        chain: Option<&mut Vec<PageNo>>,
    ) -> Result<Cow<'c, [u8]>, DiffError> {
        self.joined(page, cell, chain, Version::exact)
    }

    /// As [`Version::payload`], for what the structure is guessed from.
    pub(crate) fn nearest_payload<'c>(&self, page: PageNo, cell: &Cell<'c>) -> Result<Cow<'c, [u8]>, DiffError> {
        self.joined(page, cell, None, Version::bytes)
    }

    fn joined<'c>(
        &self,
        page: PageNo,
        cell: &Cell<'c>,
        mut chain: Option<&mut Vec<PageNo>>,
        read: impl Fn(&Self, PageNo) -> Result<Cow<'s, [u8]>, PageError>,
    ) -> Result<Cow<'c, [u8]>, DiffError> {
        let Some(first) = cell.overflow else { return Ok(Cow::Borrowed(cell.local)) };
        let corrupt = |what| DiffError::from(Corrupt { page, offset: 0, what });
        let wanted = usize::try_from(cell.payload_bytes).map_err(|_| corrupt("payload longer than memory"))?;
        // The length comes from the file: what a chain can hold bounds it before anything is reserved.
        if wanted / self.usable.saturating_sub(4).max(1) > self.pages.page_count() as usize {
            return Err(corrupt("payload longer than the database"));
        }
        let mut payload = Vec::with_capacity(wanted);
        payload.extend_from_slice(cell.local);
        let mut next = Some(first);
        while payload.len() < wanted {
            let overflow = next.ok_or(corrupt("overflow chain ends before its payload"))?;
            let bytes = read(self, overflow)?;
            let content = bytes.get(4..self.usable).ok_or(corrupt("overflow page is too short"))?;
            let take = content.len().min(wanted - payload.len());
            payload.extend_from_slice(content.get(..take).unwrap_or(content));
            if let Some(chain) = chain.as_deref_mut() {
                chain.push(overflow);
            }
            next = bytes.first_chunk().copied().map(u32::from_be_bytes).and_then(PageNo::new);
        }
        Ok(Cow::Owned(payload))
    }

    /// The overflow pages of a cell, without their content.
    pub(crate) fn chain(&self, page: PageNo, cell: &Cell<'_>, out: &mut Vec<PageNo>) -> Result<(), DiffError> {
        let Some(first) = cell.overflow else { return Ok(()) };
        let rest = cell.payload_bytes.saturating_sub(cell.local.len() as u64);
        let count = rest.div_ceil(self.usable.saturating_sub(4).max(1) as u64);
        let mut next = Some(first);
        for _ in 0..count {
            let overflow = next.ok_or(Corrupt { page, offset: 0, what: "overflow chain ends before its payload" })?;
            out.push(overflow);
            if out.len() as u64 > count + u64::from(self.pages.page_count()) {
                return Err(Corrupt { page, offset: 0, what: "overflow chain is longer than the database" }.into());
            }
            next = self.bytes(overflow)?.first_chunk().copied().map(u32::from_be_bytes).and_then(PageNo::new);
        }
        Ok(())
    }

    /// Whether the page is a pointer map of an auto-vacuum database, or the page that holds the lock bytes.
    pub(crate) fn is_map_or_lock(&self, page: PageNo, page_bytes: usize) -> bool {
        let lock = (0x4000_0000 / page_bytes.max(1)) as u32 + 1;
        if page.get() == lock {
            return true;
        }
        if !self.auto_vacuum || page.get() < 2 {
            return false;
        }
        let span = (self.usable / 5) as u32 + 1;
        let map = (page.get() - 2) / span * span + 2;
        let map = if map == lock { map + 1 } else { map };
        page.get() == map
    }
}

/// SQLite's own bound (`BTCURSOR_MAX_DEPTH`): no tree that it can write is deeper.
pub(crate) const TREE_HEIGHT_MAX: u8 = 20;
