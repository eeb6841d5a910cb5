//! The first attach: the database file is copied while it is followed.
//!
//! The file plus the newest version of every page in a frame since the first pin is exact at the position; so a page that changes while it
//! is copied does not matter, because the journal has it.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ShadowError;
use super::image::{COPY_NAME, DATABASE_NAME, JOURNAL_NAME, Shadow};
use super::journal::{BUFFER_BYTES, Journal, io_error};
use crate::capture::{CaptureError, DatabaseFile, Position};
use crate::fault::{self, Point};
use crate::format::PageSize;

/// How far making or comparing the shadow is, in bytes of the database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowProgress {
    /// What is being done.
    pub step: ShadowStep,
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes that there are.
    pub total_bytes: u64,
}

/// What takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShadowStep {
    /// The database is copied for the first time.
    Copy,
    /// The database is compared with its shadow.
    Compare,
}

/// Who is told the progress of making or comparing the shadow, and may break it off.
pub type Progress<'a> = &'a mut dyn FnMut(ShadowProgress) -> ControlFlow<()>;

impl Shadow {
    /// Begins a first copy at `position`, in place of anything that is there.
    pub(in crate::capture) fn begin_copy(
        directory: &Path,
        page_size: PageSize,
        position: Position,
        file: &DatabaseFile,
    ) -> Result<Shadow, ShadowError> {
        std::fs::create_dir_all(directory).map_err(|source| io_error(directory, "making the directory", source))?;
        for name in [DATABASE_NAME, JOURNAL_NAME, COPY_NAME] {
            let path = directory.join(name);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error(&path, "removing the shadow that was there", source));
                }
                _ => {}
            }
        }
        let path = directory.join(COPY_NAME);
        let copy = File::options().read(true).write(true).create_new(true).open(&path);
        let copy = copy.map_err(|source| io_error(&path, "creating the shadow", source))?;
        let journal = Journal::create(&directory.join(JOURNAL_NAME), page_size, position, file.identity())?;
        Ok(Shadow { path, file: copy, journal, is_copying: true, written_bytes: 0, held: std::sync::Weak::new() })
    }

    /// Copies a piece of the file from offset `from` on, and returns where the next begins; `from` itself at the end of the file.
    pub(in crate::capture) fn copy_piece(&self, file: &DatabaseFile, from: u64) -> Result<u64, CaptureError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let read = file.read_some(&mut buffer, from)?;
        let piece = buffer.get(..read).unwrap_or_default();
        let written = self.file.write_all_at(piece, from);
        written.map_err(|source| io_error(&self.path, "writing the shadow", source))?;
        Ok(from + read as u64)
    }

    /// Lets the file system share the blocks of the database file, where it can.
    pub(in crate::capture) fn share_blocks(&self, file: &DatabaseFile) -> bool {
        file.share_blocks(&self.file)
    }

    /// The copy is complete: merges what came meanwhile and gives the shadow its name.
    pub(in crate::capture) fn end_copy(&mut self, file: &DatabaseFile) -> Result<(), ShadowError> {
        fault::pass(Point::ShadowCopy);
        self.is_copying = false;
        self.sync()?;
        self.merge(file.identity())?;
        let directory: PathBuf = self.path.parent().unwrap_or(Path::new(".")).to_owned();
        let path = directory.join(DATABASE_NAME);
        std::fs::rename(&self.path, &path).map_err(|source| io_error(&path, "naming the shadow", source))?;
        let synced = File::open(&directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| io_error(&directory, "syncing the directory", source))?;
        self.path = path;
        fault::pass(Point::ShadowCopied);
        Ok(())
    }
}
