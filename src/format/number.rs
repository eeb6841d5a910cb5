//! Numbers of the file formats that must not mix.

use std::fmt;
use std::num::NonZeroU32;

/// Names a page of a database file, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(NonZeroU32);

impl PageNo {
    /// Page 1: the database header and the root of the schema tree.
    pub const ONE: PageNo = PageNo(NonZeroU32::MIN);

    /// Makes a page number; `None` for 0, which the format uses for "no page".
    #[must_use]
    pub const fn new(no: u32) -> Option<PageNo> {
        match NonZeroU32::new(no) {
            Some(no) => Some(PageNo(no)),
            None => None,
        }
    }

    /// The number as stored.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Offset of the page's first byte in the database file.
    #[must_use]
    pub const fn file_offset(self, size: PageSize) -> u64 {
        (self.0.get() as u64 - 1) * size.get() as u64
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers a frame of one generation of a WAL, from 1; 0 stands for "no frame yet".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameNo(pub u32);

impl fmt::Display for FrameNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a page in bytes: a power of two from 512 to 65,536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// Makes a page size; `None` unless it is a power of two from 512 to 65,536.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<PageSize> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65_536 { Some(PageSize(bytes)) } else { None }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for slices.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that holds the lock bytes (file offset 0x40000000): it carries no data.
    #[must_use]
    pub const fn lock_byte_page(self) -> u32 {
        0x4000_0000 / self.0 + 1
    }
}

/// The two random numbers that name one generation of a WAL. They have no order: equality is all they can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Salts(pub [u8; 8]);

impl fmt::Display for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How a database stores TEXT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TextEncoding {
    /// UTF-8 (1 in the header; an empty database's 0 means it too).
    Utf8,
    /// UTF-16 little-endian (2).
    Utf16Le,
    /// UTF-16 big-endian (3).
    Utf16Be,
}
