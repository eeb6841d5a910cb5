//! `shadow.journal`: what transactions captured since the last merge did to pages.
//!
//! Most transactions change a few bytes of a page. So an entry has of each page only the ranges that differ from its *base*: the page as
//! `shadow.db` has it, or the last whole page of it in the journal. A page that `shadow.db` has no room for yet is written there at once,
//! behind everything that was merged, and the entry has its checksum.
//!
//! Invariant: every version is made of one base and one record, so reading it costs two reads, however often the page was written.
//!
//! Invariant: a merge that began has overwritten bases. It is marked before: from then on nothing is based on `shadow.db`, and no version
//! before the merge's is given out. The merge itself can be done again over any mixture of old and new pages, because each range that
//! differs is in the record and every other byte is the same in both.

mod entry;
mod file;
#[cfg(test)]
pub(super) mod first_format;
mod header;
mod index;
mod ranges;

pub(in crate::capture) use entry::Appended;
pub(super) use file::{BUFFER_BYTES, Image, Journal, Run, io_error};
pub(super) use header::Standing;
pub(super) use index::Index;
