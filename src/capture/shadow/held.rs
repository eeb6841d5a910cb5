//! The shadow for others: held at one position while it is copied, and made of a database that comes from elsewhere.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ShadowError;
use super::image::{DATABASE_NAME, JOURNAL_NAME, Shadow};
use super::journal::{BUFFER_BYTES, Journal, io_error};
use crate::capture::{CaptureError, FileIdentity, Follower, Position};
use crate::format::{Checksum, DatabaseHeader, FrameNo, Salts};

/// What the journal may hold while nothing is merged: a copy goes at the speed of the disk, as the writers do, so this is only reached
/// when it stands still.
const HELD_JOURNAL_BYTES_MAX: u64 = 1 << 30;
/// The same in versions of pages: each that is not of a page seen before takes memory.
const HELD_JOURNAL_PAGES_MAX: u64 = 1 << 19;

/// `shadow.db` at one position. Until this is dropped nothing is merged into it.
#[derive(Debug)]
pub struct HeldShadow {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) revoked: Arc<AtomicBool>,
}

impl HeldShadow {
    /// Copies the shadow into an empty file, sharing its blocks where the file system can.
    ///
    /// # Errors
    /// [`ShadowError::Io`]; [`ShadowError::Revoked`] when it took so long that the journal had to be merged.
    pub fn copy_to(&self, to: &File) -> Result<(), ShadowError> {
        let fail = |source| io_error(&self.path, "copying the shadow", source);
        let from = File::open(&self.path).map_err(fail)?;
        let shared = rustix::fs::ioctl_ficlone(to, &from).is_ok();
        let mut done = if shared { self.bytes } else { 0 };
        let mut buffer = vec![0; BUFFER_BYTES];
        while done < self.bytes {
            // Behind it there may be pages of later transactions.
            let wanted = (self.bytes - done).min(BUFFER_BYTES as u64) as usize;
            let count = from.read_at(buffer.get_mut(..wanted).unwrap_or_default(), done).map_err(fail)?;
            if count == 0 {
                return Err(ShadowError::Damaged { path: self.path.clone(), what: "it ends early" });
            }
            to.write_all_at(buffer.get(..count).unwrap_or_default(), done).map_err(fail)?;
            done += count as u64;
            // What was read before this look is of the position: merging begins only after the hold is revoked.
            if self.revoked.load(Ordering::SeqCst) {
                break;
            }
        }
        if self.revoked.load(Ordering::SeqCst) {
            return Err(ShadowError::Revoked { path: self.path.clone() });
        }
        if shared { to.set_len(self.bytes).map_err(fail) } else { Ok(()) }
    }
}

impl Shadow {
    /// Whether somebody holds the shadow where it is.
    pub(in crate::capture) fn is_held(&self) -> bool {
        self.held.strong_count() > 0
    }

    fn hold(&mut self) -> HeldShadow {
        let revoked = Arc::new(AtomicBool::new(false));
        self.held = Arc::downgrade(&revoked);
        let bytes = u64::from(self.position().page_count) * u64::from(self.page_size().get());
        HeldShadow { path: self.path.clone(), bytes, revoked }
    }

    /// Takes the shadow back when the journal has become too long.
    pub(in crate::capture) fn revoke_hold_if_long(&mut self) {
        let (pages, bytes) = self.journal_extent();
        if (bytes > HELD_JOURNAL_BYTES_MAX || pages > HELD_JOURNAL_PAGES_MAX)
            && let Some(revoked) = self.held.upgrade()
        {
            revoked.store(true, Ordering::SeqCst);
            self.held = std::sync::Weak::new();
        }
    }
}

impl Follower {
    /// Brings the shadow to the position and holds it there, to be copied. `None` while it is held already, or not complete.
    ///
    /// # Errors
    /// [`CaptureError`] when making it durable or merging fails.
    pub fn hold_shadow(&mut self) -> Result<Option<HeldShadow>, CaptureError> {
        self.merge()?;
        let Some(shadow) = &mut self.shadow else { return Ok(None) };
        let is_at_position = !shadow.is_copying && shadow.journal_extent().1 == 0;
        Ok((is_at_position && !shadow.is_held()).then(|| shadow.hold()))
    }
}

/// Makes a shadow of a database that nobody has followed yet, in place of any that is there, from a file `image` with its bytes. Returns
/// the position to begin at: a follower finds what was changed in `database` since then by comparing.
///
/// # Errors
/// [`ShadowError`].
pub fn write_shadow(directory: &Path, image: &Path, database: FileIdentity) -> Result<Position, ShadowError> {
    let path = directory.join(DATABASE_NAME);
    let fail = |source| io_error(&path, "making the shadow", source);
    let from = File::open(image).map_err(|source| io_error(image, "reading it", source))?;
    let mut head = [0; crate::format::DATABASE_HEADER_BYTES];
    from.read_exact_at(&mut head, 0).map_err(|source| io_error(image, "reading it", source))?;
    let damaged = |_| ShadowError::Damaged { path: image.to_owned(), what: "it is no database" };
    let page_size = DatabaseHeader::parse(&head).map_err(damaged)?.page_size;
    let bytes = from.metadata().map_err(fail)?.len();
    let to = File::options().read(true).write(true).create(true).truncate(true).open(&path).map_err(fail)?;
    let source = HeldShadow { path: image.to_owned(), bytes, revoked: Arc::new(AtomicBool::new(false)) };
    source.copy_to(&to)?;
    to.sync_all().map_err(fail)?;
    let page_count = u32::try_from(bytes / u64::from(page_size.get())).unwrap_or(u32::MAX);
    // No generation has these salts at frame 0 with anything to go on from: the first look compares.
    let position = Position { salts: Salts([0; 8]), frame: FrameNo(0), checksum: Checksum::default(), page_count };
    Journal::create(&directory.join(JOURNAL_NAME), page_size, position, database)?;
    Ok(position)
}
