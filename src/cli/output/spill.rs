//! Text of unknown length that waits for the end of its transaction.

use std::fs::File;
use std::io::{self, Read, Seek, Write};

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
                None => self.file.insert(tempfile::tempfile()?),
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

#[cfg(test)]
mod tests {
    use super::*;

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
