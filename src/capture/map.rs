//! The mapping of a `-wal` file: the one place with `unsafe`.
//!
//! Invariant: mapped bytes are touched only below the bound of committed frames, in the generation that the bound was read for, while a
//! pin taken before that bound is held and frames below it are not checkpointed. Then the log can be neither restarted nor truncated, so
//! the bytes exist (no SIGBUS) and do not change.

use std::cell::Cell;
use std::fs::File;

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};

/// The map is laid over more than the file has, so that a growing log does not need a new one for every frame.
const MAP_STEP_BYTES: u64 = 64 << 20;
/// What the kernel maps around an address that is touched for the first time, as far as it has the file in memory.
const BLOCK_BYTES: usize = 64 << 10;
/// After this many touched bytes the kernel may take the pages back: they count as the daemon's memory, and a long transaction would fill it.
const RESIDENT_BYTES_MAX: usize = 32 << 20;
/// As many may stay while nothing is read: giving them back for every transaction costs more than reading it.
const RESTING_BYTES_MAX: usize = 1 << 20;

/// A read-only view of the log.
#[derive(Debug, Default)]
pub(super) struct WalMap {
    map: Option<Mmap>,
    touched: Cell<usize>,
    /// The block that was touched last.
    block: Cell<usize>,
}

impl WalMap {
    /// Makes sure that the first `bytes` of the file are mapped.
    pub(super) fn cover(&mut self, file: &File, bytes: u64) -> std::io::Result<()> {
        if self.map.as_ref().is_some_and(|map| map.len() as u64 >= bytes) {
            return Ok(());
        }
        let length = bytes.div_ceil(MAP_STEP_BYTES).saturating_mul(MAP_STEP_BYTES);
        let length = usize::try_from(length).map_err(|_| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
        // SAFETY: a mapping is sound as long as nobody changes or truncates the bytes that are read through it. SQLite changes a log's
        // frames only when it restarts the log, and the invariant above keeps it from that while we read; see the callers of `slice`.
        self.map = Some(unsafe { MmapOptions::new().len(length).map(file)? });
        self.touched.set(0);
        Ok(())
    }

    /// The bytes from `offset`. The caller keeps the invariant above.
    pub(super) fn slice(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.map.as_ref()?.get(start..start.checked_add(length)?)?;
        // A frame's header brings its neighbours along, so bytes do not tell how much memory was taken: blocks do.
        let (first, last) = (start / BLOCK_BYTES, (start + length) / BLOCK_BYTES);
        if first != self.block.get() || last != first {
            let touched = self.touched.get() + (last - first + 1) * BLOCK_BYTES;
            self.touched.set(touched);
            if touched > RESIDENT_BYTES_MAX {
                self.release();
            }
            self.block.set(last);
        }
        Some(bytes)
    }

    /// Nothing will be read for a while.
    pub(super) fn rest(&self) {
        if self.touched.get() > RESTING_BYTES_MAX {
            self.release();
        }
    }

    /// Lets the kernel take back the memory of touched pages.
    fn release(&self) {
        self.touched.set(0);
        if let Some(map) = &self.map {
            // SAFETY: the map is a shared, read-only view of a file. After this advice a touched page is read from the file again and has
            // the same bytes, so slices given out before stay valid. Failing costs memory only.
            let _ = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
        }
    }
}
