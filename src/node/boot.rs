//! Whether the machine was started anew since the last position that was on disk for certain.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::capture::{POSITION_BYTES, Position};

/// The file in the state directory: a position and the boot it was written in, twice, so that a note that is torn is known.
const NAME: &str = "durable";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

fn boot_id() -> std::io::Result<Vec<u8>> {
    Ok(std::fs::read(BOOT_ID)?.trim_ascii().to_vec())
}

/// Notes a position that is on disk. The note itself need not be: an older one only makes more rows be looked at.
pub(super) struct DurableNote {
    path: PathBuf,
    boot_id: Vec<u8>,
}

impl DurableNote {
    pub(super) fn new(state_dir: &Path) -> std::io::Result<DurableNote> {
        Ok(DurableNote { path: state_dir.join(NAME), boot_id: boot_id()? })
    }

    pub(super) fn write(&self, position: &Position) -> std::io::Result<()> {
        let mut bytes = position.to_bytes().to_vec();
        bytes.extend_from_slice(&self.boot_id);
        bytes.extend_from_within(..);
        let file = std::fs::File::options().write(true).create(true).truncate(false).open(&self.path)?;
        file.write_all_at(&bytes, 0)?;
        file.set_len(bytes.len() as u64)
    }

    /// Everything was made durable and nothing more will come: there is nothing to be judged after a reboot.
    pub(super) fn forget(state_dir: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(state_dir.join(NAME)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The position that was noted last, if it was in another boot. A note that is torn is none.
    pub(super) fn rebooted_since(&self) -> std::io::Result<Option<Position>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (noted, again) = bytes.split_at(bytes.len() / 2);
        let Some((position, boot_id)) = noted.split_at_checked(POSITION_BYTES).filter(|_| noted == again) else {
            return Ok(None);
        };
        Ok(Position::from_bytes(position).filter(|_| boot_id != self.boot_id))
    }
}
