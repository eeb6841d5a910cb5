//! Messages that have arrived and are not applied yet, per shard in log order.
//!
//! A round can be larger than memory, and none of it may be applied before all of it is there. So payloads beyond a budget wait in a file
//! without a name, which the system removes with us.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;

use crate::log::{Announced, Header, Origin, ShardId, StreamSeq};

/// Payload bytes kept in memory: several rounds of ordinary transactions, and little beside the daemon's bound.
const MEMORY_BYTES_MAX: usize = 16 << 20;

/// One message.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) seq: StreamSeq,
    payload: Payload,
}

#[derive(Debug)]
enum Payload {
    Memory(Bytes),
    File { offset: u64, bytes: usize },
}

impl Payload {
    fn bytes(&self) -> usize {
        match self {
            Payload::Memory(bytes) => bytes.len(),
            Payload::File { bytes, .. } => *bytes,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// In step with `waiting`: the cut looks at headers alone.
    headers: VecDeque<Header>,
    waiting: VecDeque<Waiting>,
}

/// The messages of all shards.
#[derive(Debug)]
pub(super) struct Inbox {
    shards: BTreeMap<ShardId, Queue>,
    memory_bytes: usize,
    file: Option<File>,
    file_bytes: u64,
    /// Since when messages wait that could not be applied.
    pub(super) stuck_since: Option<Instant>,
}

impl Inbox {
    pub(super) fn new(shards: impl IntoIterator<Item = ShardId>) -> Inbox {
        let shards = shards.into_iter().map(|shard| (shard, Queue::default())).collect();
        Inbox { shards, memory_bytes: 0, file: None, file_bytes: 0, stuck_since: None }
    }

    /// Puts a message behind the others of its shard.
    pub(super) fn push(&mut self, directory: &Path, message: Announced) -> std::io::Result<()> {
        let bytes = message.payload.len();
        let payload = if self.memory_bytes + bytes <= MEMORY_BYTES_MAX {
            self.memory_bytes += bytes;
            Payload::Memory(message.payload)
        } else {
            self.spill(directory, &message.payload)?
        };
        let queue = self.shards.entry(message.shard).or_default();
        queue.headers.push_back(message.header);
        queue.waiting.push_back(Waiting { seq: message.seq, payload });
        Ok(())
    }

    fn spill(&mut self, directory: &Path, payload: &[u8]) -> std::io::Result<Payload> {
        let file = match &self.file {
            Some(file) => file,
            None => {
                let path = directory.join("inbox");
                let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
                std::fs::remove_file(&path)?;
                self.file.insert(file)
            }
        };
        file.write_all_at(payload, self.file_bytes)?;
        let offset = self.file_bytes;
        self.file_bytes += payload.len() as u64;
        Ok(Payload::File { offset, bytes: payload.len() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.values().all(|queue| queue.waiting.is_empty())
    }

    /// Whether all messages are of one origin.
    pub(super) fn is_all_of(&self, origin: Origin) -> bool {
        self.shards.values().all(|queue| queue.headers.iter().all(|header| header.origin == origin))
    }

    pub(super) fn message_count(&self) -> usize {
        self.shards.values().map(|queue| queue.waiting.len()).sum()
    }

    /// How many messages of a shard stand before message `end` and have at most `bytes` bytes together; at least one, if there is one.
    pub(super) fn count_within(&self, shard: ShardId, end: Option<StreamSeq>, bytes: usize) -> usize {
        let Some(queue) = self.shards.get(&shard) else { return 0 };
        let mut sum = 0usize;
        let open = queue.waiting.iter().take_while(|waiting| end.is_none_or(|end| waiting.seq < end));
        open.enumerate()
            .take_while(|(index, waiting)| {
                sum = sum.saturating_add(waiting.payload.bytes());
                *index == 0 || sum <= bytes
            })
            .count()
    }

    /// The last of a shard's first `count` messages.
    pub(super) fn last_of(&self, shard: ShardId, count: usize) -> Option<StreamSeq> {
        let queue = self.shards.get(&shard)?;
        queue.waiting.get(count.checked_sub(1)?).map(|waiting| waiting.seq)
    }

    /// Payload bytes of a shard's first `count` messages.
    pub(super) fn bytes_of(&self, shard: ShardId, count: usize) -> usize {
        let Some(queue) = self.shards.get(&shard) else { return 0 };
        queue.waiting.iter().take(count).map(|waiting| waiting.payload.bytes()).sum()
    }

    /// Lets [`Inbox::headers`] give slices.
    pub(super) fn make_contiguous(&mut self) {
        for queue in self.shards.values_mut() {
            queue.headers.make_contiguous();
        }
    }

    /// The first headers that wait in a shard. [`Inbox::make_contiguous`] must have been called since the last message came.
    pub(super) fn headers(&self, shard: ShardId, count: usize) -> &[Header] {
        let Some(queue) = self.shards.get(&shard) else { return &[] };
        let (headers, rest) = queue.headers.as_slices();
        assert!(rest.is_empty(), "headers are made contiguous before they are looked at");
        headers.get(..count).unwrap_or(headers)
    }

    /// Place and header of message `index` of a shard.
    pub(super) fn place(&self, shard: ShardId, index: usize) -> Option<(StreamSeq, &Header)> {
        let queue = self.shards.get(&shard)?;
        Some((queue.waiting.get(index)?.seq, queue.headers.get(index)?))
    }

    /// Place and payload of message `index` of a shard.
    pub(super) fn read(&self, shard: ShardId, index: usize) -> std::io::Result<Option<(StreamSeq, Bytes)>> {
        let Some(waiting) = self.shards.get(&shard).and_then(|queue| queue.waiting.get(index)) else { return Ok(None) };
        let payload = match (&waiting.payload, &self.file) {
            (Payload::Memory(bytes), _) => bytes.clone(),
            (Payload::File { offset, bytes }, Some(file)) => {
                let mut payload = vec![0; *bytes];
                file.read_exact_at(&mut payload, *offset)?;
                payload.into()
            }
            (Payload::File { .. }, None) => return Ok(None),
        };
        Ok(Some((waiting.seq, payload)))
    }

    /// Drops the first `count` messages of a shard. The place of the last of them.
    pub(super) fn pop(&mut self, shard: ShardId, count: usize) -> Option<StreamSeq> {
        let queue = self.shards.get_mut(&shard)?;
        let last = count
            .min(queue.waiting.len())
            .checked_sub(1)
            .and_then(|index| queue.waiting.get(index))
            .map(|last| last.seq);
        queue.headers.drain(..count.min(queue.headers.len()));
        for waiting in queue.waiting.drain(..count.min(queue.waiting.len())) {
            if let Payload::Memory(bytes) = waiting.payload {
                self.memory_bytes -= bytes.len();
            }
        }
        if self.is_empty() {
            self.file = None;
            self.file_bytes = 0;
        }
        last
    }
}
