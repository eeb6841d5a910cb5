//! The file as it was when its content was known last, noted beside the shadow: what wrote to it between then and the next start was SQLite, or
//! it was not, and only what is in the file can tell. Without the note a process that dies right behind a restore would leave no trace of it.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::database_file::{FileIdentity, FileStamp};
use crate::format::{FrameNo, Salts};

/// The name in the state directory.
const NAME: &str = "shadow.stamp";
/// File, log, stamp, salts, frame.
const BYTES: usize = 24 + 24 + 16 + 8 + 4;

/// The database file at a moment at which it was known what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) file: FileIdentity,
    /// The log beside it.
    pub(super) log: Option<FileIdentity>,
    pub(super) stamp: FileStamp,
    /// The generation of the log.
    pub(super) salts: Salts,
    /// Of each page whose newest frame is at or below this one, the file has that.
    pub(super) done: FrameNo,
}

impl Noted {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.file.to_bytes().to_vec();
        bytes.extend_from_slice(&self.log.map_or([0; 24], FileIdentity::to_bytes));
        bytes.extend_from_slice(&self.stamp.to_bytes());
        bytes.extend_from_slice(&self.salts.0);
        bytes.extend_from_slice(&self.done.0.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Noted> {
        let (file, rest) = bytes.split_first_chunk()?;
        let (log, rest) = rest.split_first_chunk()?;
        let (stamp, rest) = rest.split_first_chunk()?;
        let (salts, rest) = rest.split_first_chunk()?;
        let done = u32::from_be_bytes(rest.try_into().ok()?);
        let log = (*log != [0; 24]).then(|| FileIdentity::from_bytes(log));
        let (file, stamp) = (FileIdentity::from_bytes(file), FileStamp::from_bytes(stamp));
        Some(Noted { file, log, stamp, salts: Salts(*salts), done: FrameNo(done) })
    }

    /// Writes the note into the directory of the shadow, twice, so that one that is torn is known. It need not be on disk, nor be written at all:
    /// with an older one more is compared.
    pub(super) fn write(self, directory: &Path) -> std::io::Result<()> {
        let mut bytes = self.to_bytes();
        bytes.extend_from_within(..);
        let file = File::options().write(true).create(true).truncate(false).open(directory.join(NAME))?;
        file.write_all_at(&bytes, 0)
    }

    /// The note of a former process; `None` also for one that is torn.
    pub(super) fn read(directory: &Path) -> std::io::Result<Option<Noted>> {
        let bytes = match std::fs::read(directory.join(NAME)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (once, again) = bytes.split_at(bytes.len().min(BYTES));
        Ok(Noted::from_bytes(once).filter(|_| once == again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_a_torn_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Noted::read(directory.path()).unwrap(), None);
        let stamp = FileStamp::from_bytes(&[7; 16]);
        let file = FileIdentity { device: 1, inode: u64::MAX, born_ns: 3 };
        let noted = Noted {
            file,
            log: Some(FileIdentity { inode: 5, ..file }),
            stamp,
            salts: Salts([1, 2, 3, 4, 5, 6, 7, 8]),
            done: FrameNo(77),
        };
        noted.write(directory.path()).unwrap();
        assert_eq!(Noted::read(directory.path()).unwrap(), Some(noted));
        let without_log = Noted { log: None, ..noted };
        without_log.write(directory.path()).unwrap();
        assert_eq!(Noted::read(directory.path()).unwrap(), Some(without_log));
        let path = directory.path().join(NAME);
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, whole.get(..end).unwrap()).unwrap();
            assert_eq!(Noted::read(directory.path()).unwrap(), None, "{end}");
        }
        let mut mixed = whole.clone();
        mixed[3] ^= 1;
        std::fs::write(&path, mixed).unwrap();
        assert_eq!(Noted::read(directory.path()).unwrap(), None);
    }
}
