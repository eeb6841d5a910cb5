//! B-tree pages: what kind they are, their cells, their children.
//!
//! A page's header stands at byte 0, on page 1 behind the database header:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | kind: 2 interior index, 5 interior table, 10 leaf index, 13 leaf table |
//! | 1 | 2 | first freeblock |
//! | 3 | 2 | number of cells |
//! | 5 | 2 | start of the cell content; 0 means 65,536 |
//! | 7 | 1 | fragmented free bytes |
//! | 8 | 4 | right-most child, on interior pages only |
//!
//! then the cell pointers, 2 bytes each, in key order. A cell:
//!
//! | kind | content |
//! |---|---|
//! | leaf table | payload length (varint), rowid (varint), local payload, overflow page (4) if it spills |
//! | interior table | left child (4), rowid (varint) |
//! | leaf index | payload length (varint), local payload, overflow page (4) if it spills |
//! | interior index | left child (4), then as leaf index |
//!
//! Invariant: how much payload is local follows from its length, the kind and the usable size alone; no byte says so.
//!
//! Source: <https://sqlite.org/fileformat2.html>, section 1.6.

use super::bytes::{be_u16, be_u32, varint};
use super::{Corrupt, PageNo};

/// The four kinds of b-tree pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// Keys and rows of an index or of a WITHOUT ROWID table, with children.
    InteriorIndex,
    /// Rowids that separate children.
    InteriorTable,
    /// Keys of an index, or rows of a WITHOUT ROWID table.
    LeafIndex,
    /// Rows of a rowid table.
    LeafTable,
}

impl PageKind {
    /// Whether pages of this kind have children.
    #[must_use]
    pub fn is_interior(self) -> bool {
        matches!(self, PageKind::InteriorIndex | PageKind::InteriorTable)
    }

    /// Whether the page belongs to a rowid table (or `sqlite_schema`).
    #[must_use]
    pub fn is_table(self) -> bool {
        matches!(self, PageKind::InteriorTable | PageKind::LeafTable)
    }
}

/// One cell of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell<'a> {
    /// The child left of the cell, on interior pages.
    pub left_child: Option<PageNo>,
    /// The rowid, on table pages.
    pub rowid: Option<i64>,
    /// Length of the whole payload; 0 on interior table pages.
    pub payload_bytes: u64,
    /// The part of the payload that stands on the page.
    pub local: &'a [u8],
    /// First page of the rest.
    pub overflow: Option<PageNo>,
}

/// Where a cell's parts stand on its page: a [`Cell`] that borrows nothing.
#[derive(Debug, Clone, Copy)]
pub struct CellPlace {
    left_child: Option<PageNo>,
    rowid: Option<i64>,
    payload_bytes: u64,
    local: (usize, usize),
    overflow: Option<PageNo>,
}

impl CellPlace {
    /// The cell, on the bytes of the page that it was found on.
    #[inline]
    #[must_use]
    pub fn on(self, bytes: &[u8]) -> Cell<'_> {
        let CellPlace { left_child, rowid, payload_bytes, local: (start, end), overflow } = self;
        Cell { left_child, rowid, payload_bytes, local: bytes.get(start..end).unwrap_or(&[]), overflow }
    }
}

/// What the header of a b-tree page says, without the page's bytes.
#[derive(Debug, Clone, Copy)]
pub struct PageShape {
    page: PageNo,
    usable: usize,
    header: usize,
    kind: PageKind,
    cell_count: usize,
}

impl PageShape {
    /// The page again, on the bytes that it was read from; `None` when they are too few.
    #[inline]
    #[must_use]
    pub fn on(self, bytes: &[u8]) -> Option<BtreePage<'_>> {
        bytes.get(..self.usable).map(|bytes| BtreePage { bytes, shape: self })
    }

    /// Number of cells.
    #[must_use]
    pub fn cell_count(&self) -> usize {
        self.cell_count
    }
}

/// A b-tree page, checked as far as its header goes. Cells are checked when they are read.
#[derive(Debug, Clone, Copy)]
pub struct BtreePage<'a> {
    bytes: &'a [u8],
    shape: PageShape,
}

impl<'a> BtreePage<'a> {
    /// Reads the header of a page. `usable` is the page size less the reserved bytes.
    ///
    /// # Errors
    /// [`Corrupt`] when the page is no b-tree page or its cell pointers would not fit.
    pub fn parse(page: PageNo, bytes: &'a [u8], usable: usize) -> Result<BtreePage<'a>, Corrupt> {
        let header = if page == PageNo::ONE { super::DATABASE_HEADER_BYTES } else { 0 };
        let corrupt = |offset, what| Corrupt { page, offset, what };
        let bytes = bytes.get(..usable).ok_or(corrupt(bytes.len(), "page is shorter than its usable size"))?;
        let kind = match bytes.get(header) {
            Some(2) => PageKind::InteriorIndex,
            Some(5) => PageKind::InteriorTable,
            Some(10) => PageKind::LeafIndex,
            Some(13) => PageKind::LeafTable,
            _ => return Err(corrupt(header, "not a b-tree page")),
        };
        let cell_count = usize::from(be_u16(bytes, header + 3).ok_or(corrupt(header + 3, "page ends in its header"))?);
        let page = BtreePage { bytes, shape: PageShape { page, usable, header, kind, cell_count } };
        if page.pointer_offset(cell_count) > usable {
            return Err(corrupt(header + 3, "more cell pointers than fit on the page"));
        }
        Ok(page)
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> PageKind {
        self.shape.kind
    }

    /// The page's number.
    #[must_use]
    pub fn page_no(&self) -> PageNo {
        self.shape.page
    }

    /// What the header says, without the bytes.
    #[must_use]
    pub fn shape(&self) -> PageShape {
        self.shape
    }

    /// Number of cells; an interior page has one child more.
    #[must_use]
    pub fn cell_count(&self) -> usize {
        self.shape.cell_count
    }

    fn corrupt(&self, offset: usize, what: &'static str) -> Corrupt {
        Corrupt { page: self.shape.page, offset, what }
    }

    fn pointer_offset(&self, index: usize) -> usize {
        self.shape.header + if self.shape.kind.is_interior() { 12 } else { 8 } + 2 * index
    }

    /// The cell pointers as they stand on the page, in key order: offsets as big-endian numbers, not checked.
    #[must_use]
    pub fn pointers(&self) -> &'a [[u8; 2]] {
        let pointers = self.bytes.get(self.pointer_offset(0)..self.content_offset()).unwrap_or(&[]);
        pointers.as_chunks().0
    }

    /// Where the cell pointers end: no cell begins before.
    #[must_use]
    pub fn content_offset(&self) -> usize {
        self.pointer_offset(self.shape.cell_count)
    }

    /// The usable bytes of the whole page, its header included.
    #[must_use]
    pub fn content(&self) -> &'a [u8] {
        self.bytes
    }

    #[inline]
    fn cell_offset(&self, index: usize) -> Result<usize, Corrupt> {
        let pointer = self.pointer_offset(index);
        if index >= self.shape.cell_count {
            return Err(self.corrupt(pointer, "no such cell"));
        }
        let offset = usize::from(
            be_u16(self.bytes, pointer).ok_or_else(|| self.corrupt(pointer, "cell pointer past end of page"))?,
        );
        if offset < self.pointer_offset(self.shape.cell_count) || offset >= self.shape.usable {
            return Err(self.corrupt(pointer, "cell pointer outside the cell content"));
        }
        Ok(offset)
    }

    /// Reads cell `index`, from 0.
    ///
    /// # Errors
    /// [`Corrupt`] when the cell does not lie within the page or its numbers contradict the format.
    #[inline]
    pub fn cell(&self, index: usize) -> Result<Cell<'a>, Corrupt> {
        Ok(self.place(index)?.on(self.bytes))
    }

    /// As [`BtreePage::cell`], for those who cannot hold the page's bytes meanwhile.
    ///
    /// # Errors
    /// As [`BtreePage::cell`].
    #[inline]
    pub fn place(&self, index: usize) -> Result<CellPlace, Corrupt> {
        let start = self.cell_offset(index)?;
        let mut at = start;
        let left_child = if self.shape.kind.is_interior() {
            let child = be_u32(self.bytes, at).ok_or(self.corrupt(at, "cell past end of page"))?;
            at += 4;
            Some(PageNo::new(child).ok_or(self.corrupt(start, "child page 0"))?)
        } else {
            None
        };
        let mut next_varint = |what| {
            let (value, length) = self.bytes.get(at..).and_then(varint).ok_or_else(|| self.corrupt(at, what))?;
            at += length;
            Ok(value)
        };
        if self.shape.kind == PageKind::InteriorTable {
            let rowid = next_varint("rowid past end of page")?;
            return Ok(CellPlace {
                left_child,
                rowid: Some(rowid as i64),
                payload_bytes: 0,
                local: (at, at),
                overflow: None,
            });
        }
        let payload_bytes = next_varint("payload length past end of page")?;
        let rowid = if self.shape.kind == PageKind::LeafTable {
            Some(next_varint("rowid past end of page")? as i64)
        } else {
            None
        };
        let local_bytes = local_payload_bytes(self.shape.kind, self.shape.usable, payload_bytes)
            .ok_or_else(|| self.corrupt(start, "payload longer than SQLite allows"))?;
        if at + local_bytes > self.bytes.len() {
            return Err(self.corrupt(start, "payload past end of page"));
        }
        let overflow = if (local_bytes as u64) < payload_bytes {
            let first = be_u32(self.bytes, at + local_bytes)
                .ok_or(self.corrupt(start, "overflow page number past end of page"))?;
            Some(PageNo::new(first).ok_or(self.corrupt(at + local_bytes, "overflow page 0"))?)
        } else {
            None
        };
        Ok(CellPlace { left_child, rowid, payload_bytes, local: (at, at + local_bytes), overflow })
    }

    /// The children of an interior page from left to right; nothing for a leaf.
    pub fn children(&self) -> impl Iterator<Item = Result<PageNo, Corrupt>> + use<'a> {
        let page = *self;
        let count = if page.shape.kind.is_interior() { page.shape.cell_count + 1 } else { 0 };
        (0..count).map(move |index| {
            let offset = if index == page.shape.cell_count { page.shape.header + 8 } else { page.cell_offset(index)? };
            be_u32(page.bytes, offset).and_then(PageNo::new).ok_or(page.corrupt(offset, "child page 0"))
        })
    }
}

/// How many bytes of a payload stand on the b-tree page; `None` beyond SQLite's largest payload (2^31 − 1).
#[inline]
#[must_use]
pub fn local_payload_bytes(kind: PageKind, usable: usize, payload_bytes: u64) -> Option<usize> {
    let payload = usize::try_from(payload_bytes).ok().filter(|bytes| *bytes <= i32::MAX as usize)?;
    let usable = usable.max(super::USABLE_BYTES_MIN);
    let max = if kind.is_table() { usable - 35 } else { (usable - 12) * 64 / 255 - 23 };
    if payload <= max {
        return Some(payload);
    }
    let min = (usable - 12) * 32 / 255 - 23;
    let surplus = min + (payload - min) % (usable - 4);
    Some(if surplus <= max { surplus } else { min })
}
