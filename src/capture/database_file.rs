//! The database file: opened once, before SQLite opens it, and kept open.
//!
//! Invariant: no descriptor of the database file or of `-shm` is closed while this process has a connection to it. Closing any would drop
//! every POSIX lock that the process holds on the file, SQLite's included, silently. So both are kept for the life of the process, unless
//! the file has lost its name and nothing of ours uses it any more ([`DatabaseFile::release`]), and this is the only module that opens them.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use rustix::fs::{Access, AtFlags};
use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};

use super::CaptureError;
use crate::format::{DATABASE_HEADER_BYTES, DatabaseHeader, PageNo, PageSize};

/// What tells a file from another under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// When the file was made, in nanoseconds; 0 where the file system does not say. A file system gives a new file the inode of one that was
    /// removed, so a backup in the place of a database can have its number.
    pub born_ns: u64,
}

impl FileIdentity {
    /// The identity of a file that was looked at.
    #[must_use]
    pub fn of(metadata: &std::fs::Metadata) -> FileIdentity {
        let born = metadata.created().ok().and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
        let born_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok()).unwrap_or_default();
        FileIdentity { device: metadata.dev(), inode: metadata.ino(), born_ns }
    }

    pub(super) fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let content = [self.device, self.inode, self.born_ns].into_iter().flat_map(u64::to_be_bytes);
        bytes.iter_mut().zip(content).for_each(|(byte, value)| *byte = value);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; 24]) -> FileIdentity {
        let mut numbers = bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok()).map(u64::from_be_bytes);
        let mut next = || numbers.next().unwrap_or_default();
        FileIdentity { device: next(), inode: next(), born_ns: next() }
    }

    /// Whether both are one file, as far as it is known of both.
    #[must_use]
    pub fn is(&self, other: &FileIdentity) -> bool {
        let is_born_alike = self.born_ns == other.born_ns || self.born_ns == 0 || other.born_ns == 0;
        self.device == other.device && self.inode == other.inode && is_born_alike
    }
}

/// The first byte of the range in which SQLite's readers hold their shared locks, and its length (`SHARED_FIRST`, `SHARED_SIZE`).
const SHARED_FIRST: u64 = 0x4000_0002;
const SHARED_SIZE: u64 = 510;
/// The bytes of `-shm` for the write lock and the checkpoint lock (`UNIX_SHM_BASE` and the next).
const SHM_WRITE: u64 = 120;
const SHM_CHECKPOINT: u64 = 121;
/// The byte of `-shm` on which everyone who uses it holds a shared lock (`UNIX_SHM_DMS`).
const SHM_IN_USE: u64 = 128;

/// Bytes of `-shm` that tell how far checkpoints went: the last frame and the salts in the first copy of the header, `nBackfill` and `nBackfillAttempted` behind both
/// (`WalIndexHdr`, `WalCkptInfo`).
const SHM_LAST: std::ops::Range<usize> = 16..20;
const SHM_SALTS: std::ops::Range<usize> = 32..40;
const SHM_DONE: std::ops::Range<usize> = 96..100;
const SHM_ATTEMPTED: std::ops::Range<usize> = 128..132;

/// How much of the log checkpoints have put into the file, while none is at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backfill {
    /// Of the log.
    pub(super) salts: [u8; 8],
    /// Its frames up to this one are in the file, as far as no newer one of the page was there.
    pub(super) done: u32,
    /// How far a checkpoint that was killed would have gone; all of the log after SQLite has recovered it.
    pub(super) attempted: u32,
    /// The last frame that is committed.
    pub(super) last: u32,
}

impl Backfill {
    /// Whether nobody has checkpointed in between.
    pub(super) fn is_as(&self, other: &Backfill) -> bool {
        (self.salts, self.done, self.attempted) == (other.salts, other.done, other.attempted)
    }

    /// Whether it became `later` without a checkpoint: nothing happened but commits, also those that begin the log anew when all of it is in the file.
    pub(super) fn is_before(&self, later: &Backfill) -> bool {
        let has_restarted = self.done == self.last && later.salts != self.salts;
        self.is_as(later) || (has_restarted && (later.done, later.attempted) == (0, 0))
    }
}

/// What changes when a file is written, by whatever program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    bytes: u64,
    /// When its content or what belongs to it changed last, in nanoseconds since 1970. Other than the time of the content nobody can set it.
    changed_ns: i64,
}

impl FileStamp {
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let content = self.bytes.to_be_bytes().into_iter().chain(self.changed_ns.to_be_bytes());
        bytes.iter_mut().zip(content).for_each(|(byte, value)| *byte = value);
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; 16]) -> FileStamp {
        // Half of them each.
        let number = u128::from_be_bytes(*bytes);
        FileStamp { bytes: (number >> 64) as u64, changed_ns: number as u64 as i64 }
    }

    /// Whether both are of files of one length.
    pub(super) fn is_as_long(&self, other: &FileStamp) -> bool {
        self.bytes == other.bytes
    }
}

/// The files beside the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Companions {
    pub(super) wal: Option<FileIdentity>,
    shm: Option<FileIdentity>,
}

/// The open database file.
#[derive(Debug, Clone)]
pub struct DatabaseFile {
    path: PathBuf,
    file: Arc<File>,
    identity: FileIdentity,
}

/// Files that this process has open for good, by identity.
fn kept_files() -> &'static Mutex<HashMap<FileIdentity, Arc<File>>> {
    static KEPT: OnceLock<Mutex<HashMap<FileIdentity, Arc<File>>>> = OnceLock::new();
    KEPT.get_or_init(Mutex::default)
}

/// Opens a file for good, or gives the descriptor that is already there.
fn keep(path: &Path) -> std::io::Result<(FileIdentity, Arc<File>)> {
    let mut kept = kept_files().lock().unwrap_or_else(PoisonError::into_inner);
    let identity = FileIdentity::of(&std::fs::metadata(path)?);
    if let Some(file) = kept.get(&identity) {
        return Ok((identity, Arc::clone(file)));
    }
    // To be read alone. But an overlay file system copies a file when it is first opened to be written, as SQLite does, and whoever has
    // it open to be read by then goes on reading the one that was left.
    let file = Arc::new(File::options().read(true).write(true).open(path).or_else(|_| File::open(path))?);
    // The name may have changed hands since the look; what was opened counts.
    let identity = FileIdentity::of(&file.metadata()?);
    Ok((identity, Arc::clone(kept.entry(identity).or_insert(file))))
}

impl DatabaseFile {
    /// Opens a database for following: a regular file with one name, on a local file system, in WAL mode.
    ///
    /// # Errors
    /// [`CaptureError`] for everything that cannot be followed. Nothing was touched then.
    pub fn open(path: &Path) -> Result<DatabaseFile, CaptureError> {
        let open_error = |source| CaptureError::Open { path: path.to_owned(), source };
        let path = std::fs::canonicalize(path).map_err(open_error)?;
        let metadata = std::fs::metadata(&path).map_err(open_error)?;
        let file_type = metadata.file_type();
        if !file_type.is_file() || file_type.is_fifo() {
            return Err(CaptureError::NotAFile { path });
        }
        if metadata.nlink() > 1 {
            return Err(CaptureError::HardLinks { count: metadata.nlink(), path });
        }
        if let Some(kind) = shared_file_system(&path) {
            return Err(CaptureError::SharedFileSystem { path, kind });
        }
        let (identity, file) = keep(&path).map_err(open_error)?;
        let database = DatabaseFile { path, file, identity };
        database.judge_header()?;
        Ok(database)
    }

    /// Refuses a database whose file this process may not write.
    ///
    /// # Errors
    /// [`CaptureError::ReadOnly`].
    pub fn must_be_writable(&self) -> Result<(), CaptureError> {
        let may_write = rustix::fs::accessat(rustix::fs::CWD, &self.path, Access::WRITE_OK, AtFlags::EACCESS);
        may_write.map_err(|_| CaptureError::ReadOnly { path: self.path.clone() })
    }

    fn judge_header(&self) -> Result<(), CaptureError> {
        let path = || self.path.clone();
        let file_bytes = self.file.metadata().map_err(|source| CaptureError::Open { path: path(), source })?.len();
        if file_bytes == 0 {
            return Err(CaptureError::Empty { path: path() });
        }
        let header = self.header()?;
        if !header.is_wal() {
            return Err(CaptureError::NotWal { path: path() });
        }
        if file_bytes < u64::from(header.page_size.get()) {
            return Err(CaptureError::Truncated {
                path: path(),
                found: file_bytes,
                wanted: u64::from(header.page_size.get()),
            });
        }
        // A file that is still being copied has pages to come; one with a log may have them there.
        let whole =
            if header.size_is_valid { u64::from(header.page_count) * u64::from(header.page_size.get()) } else { 0 };
        if file_bytes < whole && std::fs::metadata(self.companion("-wal")).map_or(0, |wal| wal.len()) == 0 {
            return Err(CaptureError::Truncated { path: path(), found: file_bytes, wanted: whole });
        }
        Ok(())
    }

    /// The header as the file has it, whatever the WAL says.
    ///
    /// # Errors
    /// [`CaptureError::Open`] or [`CaptureError::NotADatabase`].
    pub fn header(&self) -> Result<DatabaseHeader, CaptureError> {
        let mut bytes = [0; DATABASE_HEADER_BYTES];
        let read = read_up_to(&self.file, &mut bytes, 0)
            .map_err(|source| CaptureError::Open { path: self.path.clone(), source })?;
        DatabaseHeader::parse(bytes.get(..read).unwrap_or_default())
            .map_err(|source| CaptureError::NotADatabase { path: self.path.clone(), source })
    }

    /// The resolved path, from which SQLite makes the names of `-wal` and `-shm`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path with a suffix, as SQLite names its companions.
    #[must_use]
    pub fn companion(&self, suffix: &str) -> PathBuf {
        companion_of(&self.path, suffix)
    }

    /// What the descriptor points to.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// [`CaptureError::Open`].
    pub fn file_bytes(&self) -> Result<u64, CaptureError> {
        self.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|source| CaptureError::Open { path: self.path.clone(), source })
    }

    /// Reads a page as the file has it. The file can be shorter than the database: the end may be in the WAL alone.
    ///
    /// # Errors
    /// What reading gave; `UnexpectedEof` when the file ends before the page does.
    pub fn read_page(&self, page: PageNo, size: PageSize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; size.bytes()];
        self.file.read_exact_at(&mut bytes, page.file_offset(size))?;
        Ok(bytes)
    }

    /// Reads into `bytes` what the file has from `offset` on, and returns how much that is.
    ///
    /// # Errors
    /// [`CaptureError::Open`].
    pub(super) fn read_some(&self, bytes: &mut [u8], offset: u64) -> Result<usize, CaptureError> {
        read_up_to(&self.file, bytes, offset).map_err(|source| CaptureError::Open { path: self.path.clone(), source })
    }

    /// Lets `copy` share this file's blocks. `false` where the file system cannot; then `copy` is as it was.
    pub(super) fn share_blocks(&self, copy: &File) -> bool {
        rustix::fs::ioctl_ficlone(copy, &*self.file).is_ok()
    }

    /// Claims the database for this process's node, until the process ends. `false` when another process has claimed it.
    ///
    /// The claim is a `flock`, which SQLite neither takes nor sees on a local file system.
    #[must_use]
    pub fn claim(&self) -> bool {
        rustix::fs::flock(&*self.file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Closes the descriptor of a file that has lost its name, so that its space can be used again. To be called when this process has no
    /// connection to it any more; while another [`DatabaseFile`] uses the descriptor, nothing is done.
    pub fn release(self) {
        let mut kept = kept_files().lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours.
        if Arc::strong_count(&self.file) == 2 {
            kept.remove(&self.identity);
        }
    }

    /// The length of the file, and when anything of it changed last.
    ///
    /// # Errors
    /// [`CaptureError::Open`].
    pub fn stamp(&self) -> Result<FileStamp, CaptureError> {
        let metadata = self.file.metadata().map_err(|source| CaptureError::Open { path: self.path.clone(), source })?;
        let changed_ns = metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
        Ok(FileStamp { bytes: metadata.len(), changed_ns })
    }

    /// Whether the name still leads to this file.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| FileIdentity::of(&metadata) == self.identity)
    }

    /// What the names of `-wal` and `-shm` lead to. SQLite removes neither while somebody has the database open.
    pub(super) fn companions(&self) -> Companions {
        let identity =
            |suffix| std::fs::metadata(self.companion(suffix)).ok().map(|metadata| FileIdentity::of(&metadata));
        Companions { wal: identity("-wal"), shm: identity("-shm") }
    }

    /// A process other than this one that uses the `-shm` that has the name.
    pub(super) fn shm_user(&self) -> Option<i32> {
        let (_, shm) = keep(&self.companion("-shm")).ok()?;
        lock_holder(&shm, SHM_IN_USE, 1)
    }

    /// A process other than this one that has the database open, if there is any.
    #[must_use]
    pub fn other_user(&self) -> Option<i32> {
        lock_holder(&self.file, SHARED_FIRST, SHARED_SIZE)
    }

    /// A process that has the database open, if nobody but us uses its `-shm`: it has another one, and with it another view of the WAL.
    /// To be asked after SQLite has opened the database, or instead.
    #[must_use]
    pub fn foreign_user(&self) -> Option<i32> {
        let pid = self.other_user()?;
        self.shm_user().is_none().then_some(pid)
    }
}

impl DatabaseFile {
    /// How far checkpoints went; `None` while another process is at one, or where `-shm` does not say. SQLite writes there how far a checkpoint
    /// will go before that writes to the file. (Versions before 3.11 do not, but for the lock.)
    pub(super) fn backfill(&self) -> Option<Backfill> {
        let (_, shm) = keep(&self.companion("-shm")).ok()?;
        let mut bytes = [0; SHM_ATTEMPTED.end];
        shm.read_exact_at(&mut bytes, 0).ok()?;
        let number = |at| Some(u32::from_ne_bytes(bytes.get::<std::ops::Range<usize>>(at)?.try_into().ok()?));
        let (done, attempted) = (number(SHM_DONE)?, number(SHM_ATTEMPTED)?);
        if lock_holder(&shm, SHM_CHECKPOINT, 1).is_some() {
            return None;
        }
        Some(Backfill { salts: bytes.get(SHM_SALTS)?.try_into().ok()?, done, attempted, last: number(SHM_LAST)? })
    }

    /// Whether checkpoints have put all that is committed into the file.
    pub(super) fn has_all_of_log(&self) -> bool {
        self.backfill().is_some_and(|backfill| backfill.done == backfill.last)
    }

    /// Whether another process checkpoints while it holds the write lock: a FULL, RESTART or TRUNCATE, which waits for readers.
    /// To be asked after SQLite has opened the database.
    pub(super) fn has_waiting_checkpoint(&self) -> bool {
        let Ok((_, shm)) = keep(&self.companion("-shm")) else { return false };
        lock_holder(&shm, SHM_CHECKPOINT, 1).is_some() && lock_holder(&shm, SHM_WRITE, 1).is_some()
    }
}

/// A process other than this one that uses the log of a database that has lost its name.
#[must_use]
pub fn user_of_log(database: &Path) -> Option<i32> {
    let (_, shm) = keep(&companion_of(database, "-shm")).ok()?;
    lock_holder(&shm, SHM_IN_USE, 1)
}

/// The path of a file that belongs to a database by its name, as `-wal`.
pub(crate) fn companion_of(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// A process other than this one with a lock on some of these bytes.
fn lock_holder(file: &File, start: u64, length: u64) -> Option<i32> {
    let question = Flock { start, length, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
    let holder = fcntl_getlk(file, &question).ok()??;
    Some(holder.pid.map_or(0, |pid| pid.as_raw_nonzero().get()))
}

fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// The name of the file system under `path` if several machines share it.
fn shared_file_system(path: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(path).ok()?.f_type as u64 & 0xffff_ffff;
    match kind {
        0x6969 => Some("NFS"),
        0x517b => Some("SMB"),
        0xff53_4d42 => Some("CIFS"),
        0xfe53_4d42 => Some("SMB2"),
        0x0102_1997 => Some("9p"),
        0x6573_5546 => Some("FUSE"),
        0x786f_4256 => Some("vboxsf"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x00c3_6400 => Some("Ceph"),
        _ => None,
    }
}
