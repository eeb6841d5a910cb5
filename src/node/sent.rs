//! The last messages that were sent, kept in case that the server loses what it has acknowledged: they can be sent again then, each in
//! its place.
//!
//! Two files, each a row of records, the older of which goes when the newer is full:
//!
//! ```text
//! message: 1 | shard u16 | batch_no u64 | length u32 | payload | 1
//! place:   2 | shard u16 | batch_no u64 | seq u64    | 2
//! ```
//!
//! Numbers are big-endian. They are written for the case that the server fails and not this machine, so nothing is synced; the end of a
//! file that is torn is cut.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::log::{MESSAGE_BYTES_MAX, ShardId, StreamSeq};

/// Bytes of a file from which on the other begins.
const FILE_BYTES_MAX: u64 = 16 << 20;

const MESSAGE: u8 = 1;
const PLACE: u8 = 2;

/// The newer and the older file in the state directory.
const NAMES: [&str; 2] = ["sent", "sent.old"];

/// The messages that were sent last, and where they are on the log.
#[derive(Debug)]
pub(super) struct Sent {
    directory: PathBuf,
    file: File,
    bytes: u64,
}

enum Record {
    Message { shard: ShardId, batch_no: u64, payload: Vec<u8> },
    Place { shard: ShardId, batch_no: u64, seq: StreamSeq },
}

impl Record {
    /// The next record and its length; `None` at the end, and where a file is torn.
    fn read(from: &mut impl Read) -> std::io::Result<Option<(Record, u64)>> {
        let mut read = || -> std::io::Result<Option<(Record, u64)>> {
            let mut head = [0; 11];
            from.read_exact(&mut head)?;
            let [kind, a, b, batch_no @ ..] = head;
            let (shard, batch_no) = (ShardId(u16::from_be_bytes([a, b])), u64::from_be_bytes(batch_no));
            let (record, bytes) = match kind {
                MESSAGE => {
                    let mut length = [0; 4];
                    from.read_exact(&mut length)?;
                    let length = u32::from_be_bytes(length);
                    if usize::try_from(length).is_ok_and(|length| length > MESSAGE_BYTES_MAX) {
                        return Ok(None);
                    }
                    let mut payload = vec![0; length as usize];
                    from.read_exact(&mut payload)?;
                    (Record::Message { shard, batch_no, payload }, 16 + u64::from(length))
                }
                PLACE => {
                    let mut seq = [0; 8];
                    from.read_exact(&mut seq)?;
                    (Record::Place { shard, batch_no, seq: StreamSeq(u64::from_be_bytes(seq)) }, 20)
                }
                _ => return Ok(None),
            };
            let mut end = [0];
            from.read_exact(&mut end)?;
            Ok((end == [kind]).then_some((record, bytes)))
        };
        match read() {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            read => read,
        }
    }
}

/// Hands out the records of a file, and says how long they are together. A file that is not there has none.
fn each(path: &Path, mut take: impl FnMut(Record)) -> std::io::Result<u64> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let (mut from, mut whole) = (BufReader::new(file), 0);
    while let Some((record, bytes)) = Record::read(&mut from)? {
        whole += bytes;
        take(record);
    }
    Ok(whole)
}

impl Sent {
    /// Opens what an earlier life has kept.
    pub(super) fn open(directory: &Path) -> std::io::Result<Sent> {
        let [newer, _] = NAMES;
        let path = directory.join(newer);
        let whole = each(&path, drop)?;
        let file = File::options().create(true).append(true).open(&path)?;
        file.set_len(whole)?;
        Ok(Sent { directory: directory.to_owned(), file, bytes: whole })
    }

    /// Whether a node has worked on this state directory: the files are made at its first start, behind its first position.
    pub(super) fn is_there(directory: &Path) -> bool {
        NAMES.iter().any(|name| directory.join(name).exists())
    }

    /// A message is about to be sent.
    pub(super) fn message(&mut self, shard: ShardId, batch_no: u64, payload: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(std::io::Error::other)?.to_be_bytes();
        self.append(MESSAGE, shard, batch_no, &[&length, payload])
    }

    /// A message is on the log.
    pub(super) fn place(&mut self, shard: ShardId, batch_no: u64, seq: StreamSeq) -> std::io::Result<()> {
        self.append(PLACE, shard, batch_no, &[&seq.0.to_be_bytes()])
    }

    fn append(&mut self, kind: u8, shard: ShardId, batch_no: u64, rest: &[&[u8]]) -> std::io::Result<()> {
        if self.bytes >= FILE_BYTES_MAX {
            let [newer, older] = NAMES;
            std::fs::rename(self.directory.join(newer), self.directory.join(older))?;
            self.file = File::options().create(true).append(true).open(self.directory.join(newer))?;
            self.bytes = 0;
        }
        let mut record = vec![kind];
        record.extend_from_slice(&shard.0.to_be_bytes());
        record.extend_from_slice(&batch_no.to_be_bytes());
        rest.iter().for_each(|part| record.extend_from_slice(part));
        record.push(kind);
        self.file.write_all(&record)?;
        self.bytes += record.len() as u64;
        Ok(())
    }

    /// The last place that is known in each shard.
    pub(super) fn last_places(directory: &Path) -> std::io::Result<BTreeMap<ShardId, StreamSeq>> {
        let mut last = BTreeMap::new();
        for name in NAMES {
            each(&directory.join(name), |record| {
                if let Record::Place { shard, seq, .. } = record {
                    let known: &mut StreamSeq = last.entry(shard).or_default();
                    *known = seq.max(*known);
                }
            })?;
        }
        Ok(last)
    }

    /// The messages that stood behind `last` in a shard, as far as they are kept.
    pub(super) fn behind(
        directory: &Path,
        of: ShardId,
        last: StreamSeq,
    ) -> std::io::Result<BTreeMap<StreamSeq, Bytes>> {
        let [newer, older] = NAMES.map(|name| directory.join(name));
        let mut places = HashMap::new();
        for path in [&older, &newer] {
            each(path, |record| match record {
                Record::Place { shard, batch_no, seq } if shard == of && seq > last => {
                    places.insert(batch_no, seq);
                }
                Record::Place { .. } | Record::Message { .. } => {}
            })?;
        }
        let mut found = BTreeMap::new();
        for path in [&older, &newer] {
            each(path, |record| match record {
                Record::Message { shard, batch_no, payload } if shard == of => {
                    if let Some(seq) = places.get(&batch_no) {
                        found.insert(*seq, Bytes::from(payload));
                    }
                }
                Record::Place { .. } | Record::Message { .. } => {}
            })?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_found_by_its_place_after_a_torn_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut sent = Sent::open(dir.path()).unwrap();
        for (batch_no, seq) in [(1, 3), (2, 5), (3, 8)] {
            sent.message(ShardId(1), batch_no, format!("message {batch_no}").as_bytes()).unwrap();
            sent.message(ShardId(2), batch_no, b"of another shard").unwrap();
            sent.place(ShardId(1), batch_no, StreamSeq(seq)).unwrap();
        }
        let path = dir.path().join("sent");
        let whole = path.metadata().unwrap().len();
        File::options().append(true).open(&path).unwrap().write_all(&[MESSAGE, 0, 1, 0]).unwrap();
        let mut sent = Sent::open(dir.path()).unwrap();
        assert_eq!(path.metadata().unwrap().len(), whole);
        sent.message(ShardId(1), 4, b"message 4").unwrap();
        sent.place(ShardId(1), 4, StreamSeq(9)).unwrap();
        let found = Sent::behind(dir.path(), ShardId(1), StreamSeq(3)).unwrap();
        let wanted = [(5, "message 2"), (8, "message 3"), (9, "message 4")];
        let wanted: BTreeMap<_, _> =
            wanted.into_iter().map(|(seq, text)| (StreamSeq(seq), Bytes::from(text))).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_files_stay_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut sent = Sent::open(dir.path()).unwrap();
        let payload = vec![7; 1 << 20];
        for batch_no in 1..=100 {
            sent.message(ShardId(1), batch_no, &payload).unwrap();
            sent.place(ShardId(1), batch_no, StreamSeq(batch_no)).unwrap();
        }
        let bytes: u64 = NAMES.iter().map(|name| dir.path().join(name).metadata().unwrap().len()).sum();
        assert!(bytes <= 2 * FILE_BYTES_MAX + (2 << 20), "{bytes}");
        let found = Sent::behind(dir.path(), ShardId(1), StreamSeq(0)).unwrap();
        assert!(found.len() >= 16 && found.contains_key(&StreamSeq(100)), "{}", found.len());
    }
}
