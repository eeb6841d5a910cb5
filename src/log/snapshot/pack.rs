//! The bytes of a stored snapshot: made and read by threads that may block, handed to the network through a small pipe.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Handle;

use super::manifest::{HASH_BYTES, MAGIC, MANIFEST_BYTES_MAX, SnapshotManifest};

/// What is read, hashed and written at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// What waits in the pipe.
pub(super) const PIPE_BYTES: usize = 1 << 20;
/// As for messages: higher levels cost more time than the network saves.
const ZSTD_LEVEL: i32 = 3;

/// One end of a pipe, for a thread that blocks.
pub(super) struct Blocking {
    pub(super) pipe: DuplexStream,
    pub(super) handle: Handle,
}

impl Read for Blocking {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.handle.block_on(self.pipe.read(bytes))
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle.block_on(self.pipe.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.handle.block_on(self.pipe.flush())
    }
}

/// Length and blake3 hash of a file.
///
/// # Errors
/// What reading gave.
pub fn hash_file(file: &mut File) -> io::Result<(u64, [u8; HASH_BYTES])> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = blake3::Hasher::new();
    let bytes = copy(file, &mut |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok((bytes, *hasher.finalize().as_bytes()))
}

fn copy(from: &mut dyn Read, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        each(buffer.get(..count).unwrap_or_default())?;
        total += count as u64;
    }
}

/// Writes manifest and database. `progress` gets the bytes of the database that are read.
pub(super) fn pack(
    manifest: &SnapshotManifest,
    database: &mut File,
    to: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let head = manifest.encode();
    to.write_all(MAGIC)?;
    to.write_all(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_be_bytes())?;
    to.write_all(&head)?;
    database.seek(SeekFrom::Start(0))?;
    let mut compressed = zstd::Encoder::new(to, ZSTD_LEVEL)?;
    let mut done = 0;
    copy(database, &mut |piece| {
        compressed.write_all(piece)?;
        done += piece.len() as u64;
        progress(done);
        Ok(())
    })?;
    compressed.finish()?.flush()
}

/// What a stored snapshot turned out to be.
pub(super) enum Unpacked {
    /// Whole: its manifest.
    Whole(SnapshotManifest),
    /// Not what was stored.
    Damaged(String),
}

/// Reads what [`pack`] wrote into an empty file and checks it. An error is about the file.
pub(super) fn unpack(from: &mut dyn Read, to: &mut File, progress: &mut dyn FnMut(u64, u64)) -> io::Result<Unpacked> {
    let damaged = |what: &str| Ok(Unpacked::Damaged(what.to_owned()));
    let mut head = [0; 8];
    if from.read_exact(&mut head).is_err() || head.first_chunk() != Some(MAGIC) {
        return damaged("it does not begin as a snapshot does");
    }
    let manifest_bytes = head.last_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes)) as usize;
    if manifest_bytes > MANIFEST_BYTES_MAX {
        return damaged("its manifest is too long");
    }
    let mut manifest = vec![0; manifest_bytes];
    if let Err(error) = from.read_exact(&mut manifest) {
        return damaged(&format!("it ends early: {error}"));
    }
    let manifest = match SnapshotManifest::decode(&manifest) {
        Ok(manifest) => manifest,
        Err(what) => return damaged(what),
    };
    let mut plain = zstd::Decoder::new(from)?;
    let mut hasher = blake3::Hasher::new();
    let (mut done, mut buffer) = (0_u64, vec![0; BUFFER_BYTES]);
    loop {
        let count = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return damaged(&format!("it cannot be read to its end: {error}")),
        };
        let piece = buffer.get(..count).unwrap_or_default();
        done += count as u64;
        // A length is promised, so nothing can fill the disk.
        if done > manifest.database_bytes {
            return damaged("it is longer than it says");
        }
        hasher.update(piece);
        to.write_all(piece)?;
        progress(done, manifest.database_bytes);
    }
    if done != manifest.database_bytes || *hasher.finalize().as_bytes() != manifest.blake3 {
        return damaged("its hash is another than when it was made");
    }
    Ok(Unpacked::Whole(manifest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Routing, Stand};

    fn packed() -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&(0..100_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>()).unwrap();
        let (database_bytes, blake3) = hash_file(&mut file).unwrap();
        let (stand, routing, names) = (Stand::new(), Routing::new(), Vec::new());
        let manifest = SnapshotManifest { stand, routing, names, database_bytes, blake3 };
        let mut out = Vec::new();
        pack(&manifest, &mut file, &mut out, &mut |_| {}).unwrap();
        out
    }

    fn is_whole(bytes: &[u8]) -> bool {
        let mut to = tempfile::tempfile().unwrap();
        matches!(unpack(&mut &bytes[..], &mut to, &mut |_, _| {}).unwrap(), Unpacked::Whole(_))
    }

    #[test]
    fn what_is_cut_or_altered_is_never_taken_for_whole() {
        let bytes = packed();
        assert!(is_whole(&bytes));
        for at in (0..bytes.len()).step_by(bytes.len() / 97) {
            assert!(!is_whole(&bytes[..at]), "cut at {at}");
            let mut altered = bytes.clone();
            altered[at] ^= 0x10;
            assert!(!is_whole(&altered), "altered at {at}");
        }
    }
}
