//! Journals as older and later programs write them.

use std::path::Path;

use super::header::{CHECKSUM_BYTES, ENTRIES_OFFSET, HEADER_BYTES, SLOT_OFFSETS, checksum_bytes, sum};
use crate::capture::Position;
use crate::format::{Checksum, PageNo};

/// Gives every header another version and a checksum that fits.
pub(in crate::capture::shadow) fn set_version(path: &Path, version: u32) {
    let mut bytes = std::fs::read(path).unwrap();
    for offset in SLOT_OFFSETS.map(|offset| offset as usize) {
        let header = &mut bytes[offset..offset + HEADER_BYTES];
        if header.starts_with(b"WDSHADOW") {
            header[8..12].copy_from_slice(&version.to_be_bytes());
            let (body, checksum) = header.split_at_mut(HEADER_BYTES - CHECKSUM_BYTES);
            checksum.copy_from_slice(&checksum_bytes(sum(Checksum::default(), body)));
        }
    }
    std::fs::write(path, bytes).unwrap();
}

/// A journal of format version 1 with one entry.
pub(in crate::capture::shadow) fn write(
    path: &Path,
    page_size: u32,
    merged: Position,
    position: Position,
    pages: &[(PageNo, Vec<u8>)],
) {
    let mut header = b"WDSHADOW".to_vec();
    header.extend(1u32.to_be_bytes().into_iter().chain(page_size.to_be_bytes()).chain(3u64.to_be_bytes()));
    header.extend(merged.to_bytes().into_iter().chain(merged.to_bytes()));
    header.extend(1u64.to_be_bytes().into_iter().chain(2u64.to_be_bytes()));
    let chain = sum(Checksum::default(), &header);
    header.extend(checksum_bytes(chain));
    let mut entry = b"WDTX".to_vec();
    entry.extend((pages.len() as u32).to_be_bytes());
    entry.extend(position.to_bytes().into_iter().chain(position.to_bytes()));
    pages.iter().for_each(|(page, _)| entry.extend(page.get().to_be_bytes()));
    entry.resize(entry.len().next_multiple_of(8), 0);
    pages.iter().for_each(|(_, bytes)| entry.extend(bytes));
    entry.extend(checksum_bytes(sum(chain, &entry)));
    let mut bytes = vec![0; ENTRIES_OFFSET as usize];
    bytes[512..512 + HEADER_BYTES].copy_from_slice(&header);
    bytes.extend(entry);
    std::fs::write(path, bytes).unwrap();
}
