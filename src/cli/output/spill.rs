//! Text of unknown length that waits for the end of its transaction.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// A transaction's statements stay in memory up to this many bytes (of each kind): nearly every transaction. Larger ones go to an
/// unnamed temporary file, so that memory stays bounded.
const MEMORY_BYTES_MAX: usize = 4 << 20;

/// Bytes in memory, beyond a bound in a file.
#[derive(Debug, Default)]
pub(super) struct Spill {
    memory: Vec<u8>,
    file: Option<File>,
}

impl Spill {
    /// Where to append the next statement.
    pub(super) fn statement(&mut self) -> io::Result<&mut Vec<u8>> {
        if self.memory.len() >= MEMORY_BYTES_MAX {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(unnamed_file(&std::env::temp_dir())?),
            };
            file.write_all(&self.memory)?;
            self.memory.clear();
        }
        Ok(&mut self.memory)
    }

    /// Moves everything to `out`.
    pub(super) fn move_to(self, out: &mut impl Write) -> io::Result<()> {
        if let Some(mut file) = self.file {
            file.rewind()?;
            let mut piece = vec![0; 1 << 16];
            loop {
                match file.read(&mut piece)? {
                    0 => break,
                    count => out.write_all(piece.get(..count).unwrap_or_default())?,
                }
            }
        }
        out.write_all(&self.memory)
    }
}

/// Names tried before giving up: each is taken only if another process of the same number left it behind.
const NAMES_MAX: u32 = 100;

/// Makes a file that only we can read and whose name is gone at once, so that nothing is left behind however the process ends.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..NAMES_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("woodchuck-{}-{number}", std::process::id()));
        // `create_new` follows no link and takes no file that somebody else prepared under this name.
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("no free name in {}", directory.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_has_no_name_and_takes_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = unnamed_file(dir.path()).unwrap();
        file.write_all(b"x").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(unnamed_file(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn order_is_kept_across_the_bound() {
        let mut spill = Spill::default();
        let mut want = Vec::new();
        for index in 0..900_000 {
            let line = format!("{index};\n");
            spill.statement().unwrap().extend_from_slice(line.as_bytes());
            want.extend_from_slice(line.as_bytes());
        }
        assert!(spill.file.is_some());
        let mut got = Vec::new();
        spill.move_to(&mut got).unwrap();
        assert!(got == want);
    }
}
