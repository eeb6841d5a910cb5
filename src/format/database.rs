//! The database header: the first 100 bytes of page 1.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | `SQLite format 3\0` |
//! | 16 | 2 | page size; 1 means 65,536 |
//! | 18 | 1 | write version: 1 rollback journal, 2 WAL |
//! | 19 | 1 | read version, likewise |
//! | 20 | 1 | reserved bytes at the end of each page |
//! | 24 | 4 | file change counter |
//! | 28 | 4 | database size in pages |
//! | 32 | 4 | first freelist trunk page, 0 for none |
//! | 36 | 4 | number of freelist pages |
//! | 40 | 4 | schema cookie |
//! | 52 | 4 | largest root page when auto-vacuum is on, else 0 |
//! | 56 | 4 | text encoding: 1 UTF-8, 2 UTF-16le, 3 UTF-16be |
//! | 64 | 4 | non-zero for incremental vacuum |
//! | 92 | 4 | version-valid-for: the change counter at which the size in pages was written |
//! | 96 | 4 | version of the SQLite that wrote last |
//!
//! Invariant: a usable page is never smaller than 480 bytes; SQLite refuses such files, and the payload formulas rely on it.
//!
//! Source: <https://sqlite.org/fileformat2.html>, section 1.3.

use super::bytes::{be_u16, be_u32};
use super::{HeaderError, PageNo, PageSize, TextEncoding};

/// Length of the header in bytes.
pub const DATABASE_HEADER_BYTES: usize = 100;
/// Smallest usable page size that the format has.
pub const USABLE_BYTES_MIN: usize = 480;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Whether and how a database gives back free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoVacuum {
    /// Not at all.
    None,
    /// At every commit.
    Full,
    /// On demand.
    Incremental,
}

/// The decoded header of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Bytes in a page.
    pub page_size: PageSize,
    /// 1: rollback journal, 2: WAL.
    pub write_version: u8,
    /// 1: rollback journal, 2: WAL.
    pub read_version: u8,
    /// Bytes at the end of each page that hold no data.
    pub reserved: u8,
    /// Counts changes made in rollback-journal mode.
    pub change_counter: u32,
    /// Size of the database in pages, as the header has it. Valid only if `size_is_valid`.
    pub page_count: u32,
    /// Whether `page_count` was written together with the change counter.
    pub size_is_valid: bool,
    /// The first trunk page of the freelist.
    pub freelist_trunk: Option<PageNo>,
    /// Pages on the freelist.
    pub freelist_count: u32,
    /// Changes with the schema.
    pub schema_cookie: u32,
    /// How text is stored.
    pub encoding: TextEncoding,
    /// Whether pointer-map pages exist.
    pub auto_vacuum: AutoVacuum,
    /// `SQLITE_VERSION_NUMBER` of the library that wrote last.
    pub sqlite_version: u32,
}

impl DatabaseHeader {
    /// Decodes the header at the start of `bytes` (page 1 or at least its first 100 bytes).
    ///
    /// # Errors
    /// [`HeaderError`] when the bytes are too few, are not a SQLite database, or have a field that the format does not have.
    pub fn parse(bytes: &[u8]) -> Result<DatabaseHeader, HeaderError> {
        let header: &[u8; DATABASE_HEADER_BYTES] =
            bytes.first_chunk().ok_or(HeaderError::Short { found: bytes.len(), wanted: DATABASE_HEADER_BYTES })?;
        if header.first_chunk::<16>() != Some(MAGIC) {
            return Err(HeaderError::Magic { what: "database" });
        }
        let u8_at = |offset: usize| header.get(offset).copied().unwrap_or(0);
        let u16_at = |offset| be_u16(header, offset).unwrap_or(0);
        let u32_at = |offset| be_u32(header, offset).unwrap_or(0);
        let raw_size = u16_at(16);
        let page_size = PageSize::new(if raw_size == 1 { 65_536 } else { u32::from(raw_size) })
            .ok_or(HeaderError::Field { field: "page size", value: u64::from(raw_size) })?;
        let reserved = u8_at(20);
        if page_size.bytes() - usize::from(reserved) < USABLE_BYTES_MIN {
            return Err(HeaderError::Field { field: "reserved bytes", value: u64::from(reserved) });
        }
        let encoding = match u32_at(56) {
            0 | 1 => TextEncoding::Utf8,
            2 => TextEncoding::Utf16Le,
            3 => TextEncoding::Utf16Be,
            other => return Err(HeaderError::Field { field: "text encoding", value: u64::from(other) }),
        };
        let auto_vacuum = match (u32_at(52), u32_at(64)) {
            (0, _) => AutoVacuum::None,
            (_, 0) => AutoVacuum::Full,
            _ => AutoVacuum::Incremental,
        };
        let page_count = u32_at(28);
        Ok(DatabaseHeader {
            page_size,
            write_version: u8_at(18),
            read_version: u8_at(19),
            reserved,
            change_counter: u32_at(24),
            page_count,
            size_is_valid: page_count > 0 && u32_at(24) == u32_at(92),
            freelist_trunk: PageNo::new(u32_at(32)),
            freelist_count: u32_at(36),
            schema_cookie: u32_at(40),
            encoding,
            auto_vacuum,
            sqlite_version: u32_at(96),
        })
    }

    /// Whether the header says that the database is in WAL mode.
    #[must_use]
    pub fn is_wal(&self) -> bool {
        self.write_version == 2 && self.read_version == 2
    }

    /// Bytes of a page that hold data.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.page_size.bytes() - usize::from(self.reserved)
    }
}
