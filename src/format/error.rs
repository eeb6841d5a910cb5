//! Damage, with its place.

use super::PageNo;

/// Bytes of a database page that contradict the file format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("page {page} is corrupt at byte {offset}: {what}")]
pub struct Corrupt {
    /// The page.
    pub page: PageNo,
    /// Byte within the page, from 0.
    pub offset: usize,
    /// What is wrong, as a phrase.
    pub what: &'static str,
}

/// A file that is not what it should be, told by its header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than the header has.
    #[error("file is too short for its header: {found} of {wanted} bytes")]
    Short {
        /// Bytes that are there.
        found: usize,
        /// Bytes that the header has.
        wanted: usize,
    },
    /// The magic bytes differ.
    #[error("not a SQLite {what}: its first bytes are not those of the format (encrypted files look like this too)")]
    Magic {
        /// `database` or `write-ahead log`.
        what: &'static str,
    },
    /// A field with a value that the format does not have.
    #[error("header field {field} is {value}, which the file format does not have")]
    Field {
        /// The field's name in the file format document.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The header's own checksum is wrong.
    #[error("checksum of the header does not match its bytes")]
    Checksum,
}
