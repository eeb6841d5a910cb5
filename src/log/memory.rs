//! A log in memory, for tests: it can delay, duplicate, lose acknowledgements, fail, be trimmed and lose its tail.
//!
//! Without faults asked for it does what it is told at once. All chance comes from one seed, and nothing in it sleeps, so a test that takes
//! steps one after another sees the same run every time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use super::contract::{Bounds, Entry, Log};
use super::error::{LogError, PublishError};
use super::message::{ShardId, StreamSeq};

/// The payload limit unless another is set: that of a NATS server as shipped.
const MESSAGE_BYTES_MAX_DEFAULT: usize = 1 << 20;

/// How often things go wrong, in percent of publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// The message is stored but readers do not see it before [`MemoryLog::release`] or the next message that is not delayed.
    pub delay_percent: u8,
    /// The message is stored twice.
    pub duplicate_percent: u8,
    /// The message is stored and the publisher hears of a time-out.
    pub drop_ack_percent: u8,
    /// The message is not stored and the publisher hears of a broken connection.
    pub fail_percent: u8,
}

#[derive(Debug)]
struct Shard {
    entries: VecDeque<Entry>,
    first: u64,
    /// Readers see messages up to here.
    visible: u64,
    ids: HashMap<String, u64>,
    created_ns: i128,
    missing: bool,
}

impl Shard {
    fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

#[derive(Debug)]
struct State {
    shards: Vec<Shard>,
    random: u64,
    faults: Faults,
    fail_next: u32,
    drop_ack_next: u32,
    remember_ids: bool,
    message_bytes_max: usize,
}

impl State {
    /// SplitMix64: any seed gives a good sequence.
    fn happens(&mut self, percent: u8) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 100 < u64::from(percent)
    }
}

/// A log in memory. Clones are handles to the same log: give each node one.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    state: Arc<Mutex<State>>,
    /// Counts the changes that readers wait for.
    changed: watch::Sender<u64>,
}

impl MemoryLog {
    /// Makes a log of empty streams.
    #[must_use]
    pub fn new(shard_count: u16, seed: u64) -> MemoryLog {
        let empty = |created_ns| Shard {
            entries: VecDeque::new(),
            first: 1,
            visible: 0,
            ids: HashMap::new(),
            created_ns,
            missing: false,
        };
        let state = State {
            shards: (0..shard_count).map(|_| empty(1)).collect(),
            random: seed,
            faults: Faults::default(),
            fail_next: 0,
            drop_ack_next: 0,
            remember_ids: true,
            message_bytes_max: MESSAGE_BYTES_MAX_DEFAULT,
        };
        MemoryLog { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(0) }
    }

    /// Sets how often things go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Lets the next `count` publishes fail without storing anything.
    pub fn fail_next(&self, count: u32) {
        self.lock().fail_next = count;
    }

    /// Lets the next `count` publishes store their message and lose the acknowledgement.
    pub fn drop_ack_next(&self, count: u32) {
        self.lock().drop_ack_next = count;
    }

    /// Whether message ids are remembered. If not, every retry makes a duplicate, as after a server's duplicate window.
    pub fn remember_ids(&self, remember: bool) {
        self.lock().remember_ids = remember;
    }

    /// Sets the largest payload that is taken.
    pub fn set_message_bytes_max(&self, bytes: usize) {
        self.lock().message_bytes_max = bytes;
    }

    /// Shows readers everything that was delayed.
    pub fn release(&self) {
        for shard in &mut self.lock().shards {
            shard.visible = shard.last();
        }
        self.wake();
    }

    /// Drops the messages of a shard before `first`.
    pub fn trim(&self, shard: ShardId, first: StreamSeq) {
        self.with(shard, |shard| {
            while shard.first < first.0 && shard.entries.pop_front().is_some() {
                shard.first += 1;
            }
        });
    }

    /// Drops the messages of a shard after `last`, as a server does that acknowledged them before they were on disk.
    pub fn lose_tail(&self, shard: ShardId, last: StreamSeq) {
        self.with(shard, |shard| {
            while shard.last() > last.0 && shard.entries.pop_back().is_some() {}
            shard.visible = shard.visible.min(shard.last());
            shard.ids.retain(|_, seq| *seq <= last.0);
        });
    }

    /// Deletes a shard's stream; [`Log::ensure`] makes a new one.
    pub fn delete_stream(&self, shard: ShardId) {
        self.with(shard, |shard| {
            shard.entries.clear();
            shard.ids.clear();
            (shard.first, shard.visible, shard.missing) = (1, 0, true);
        });
    }

    /// The messages of a shard that readers can see, from `from` on.
    #[must_use]
    pub fn entries(&self, shard: ShardId, from: StreamSeq) -> Vec<Entry> {
        let state = self.lock();
        let Some(shard) = index(shard).and_then(|index| state.shards.get(index)) else { return Vec::new() };
        shard.entries.iter().filter(|entry| entry.seq >= from && entry.seq.0 <= shard.visible).cloned().collect()
    }

    /// [`Log::publish`] for tests that have no runtime.
    ///
    /// # Errors
    ///
    /// As [`Log::publish`].
    pub fn append(&self, shard: ShardId, message_id: &str, payload: Bytes) -> Result<StreamSeq, PublishError> {
        let result = self.append_with_faults(shard, message_id, payload);
        self.wake();
        result
    }

    fn append_with_faults(&self, shard: ShardId, message_id: &str, payload: Bytes) -> Result<StreamSeq, PublishError> {
        let mut state = self.lock();
        if payload.len() > state.message_bytes_max {
            return Err(PublishError::TooLarge { bytes: payload.len() });
        }
        let faults = state.faults;
        let fails = state.happens(faults.fail_percent) || state.fail_next > 0;
        let delayed = state.happens(faults.delay_percent);
        let twice = state.happens(faults.duplicate_percent);
        let ack_lost = state.happens(faults.drop_ack_percent) || state.drop_ack_next > 0;
        if fails {
            state.fail_next = state.fail_next.saturating_sub(1);
            return Err(PublishError::Disconnected);
        }
        if ack_lost {
            state.drop_ack_next = state.drop_ack_next.saturating_sub(1);
        }
        let remember = state.remember_ids;
        let missing = || PublishError::NoStream { subject: format!("memory-{}", shard.0) };
        let stream = index(shard).and_then(|index| state.shards.get_mut(index)).ok_or_else(missing)?;
        if stream.missing {
            return Err(missing());
        }
        let known = stream.ids.get(message_id).copied().filter(|_| remember);
        let seq = match known {
            Some(seq) => seq,
            None => {
                for _ in 0..1 + u8::from(twice) {
                    let seq = StreamSeq(stream.last() + 1);
                    // A clock that counts messages: equal in every run.
                    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seq.0);
                    stream.entries.push_back(Entry { seq, time, payload: payload.clone() });
                }
                stream.ids.insert(message_id.to_owned(), stream.last());
                stream.last()
            }
        };
        if !delayed {
            stream.visible = stream.last();
        }
        if ack_lost { Err(PublishError::TimedOut) } else { Ok(StreamSeq(seq)) }
    }

    fn with(&self, shard: ShardId, change: impl FnOnce(&mut Shard)) {
        let mut state = self.lock();
        if let Some(shard) = index(shard).and_then(|index| state.shards.get_mut(index)) {
            change(shard);
        }
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while holding it is a failed test already; the state is whole between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounds_now(&self, shard: ShardId) -> Result<Bounds, LogError> {
        let state = self.lock();
        let stream = index(shard).and_then(|index| state.shards.get(index)).ok_or(LogError::NoShard { shard })?;
        if stream.missing {
            return Err(LogError::StreamMissing { stream: self.stream_name(shard) });
        }
        Ok(Bounds { first: StreamSeq(stream.first), last: StreamSeq(stream.last()), created_ns: stream.created_ns })
    }

    /// The entry that a reader wants next, `None` when it has not come.
    fn next_entry(&self, shard: ShardId, wanted: StreamSeq, created_ns: i128) -> Result<Option<Entry>, LogError> {
        let bounds = self.bounds_now(shard)?;
        let stream = self.stream_name(shard);
        if bounds.created_ns != created_ns {
            return Err(LogError::StreamRecreated { stream });
        }
        if bounds.first > wanted {
            return Err(LogError::FellBehind { stream, wanted, first: bounds.first });
        }
        if bounds.last.0 + 1 < wanted.0 {
            return Err(LogError::LostTail { stream, wanted, last: bounds.last });
        }
        let state = self.lock();
        let Some(stream) = index(shard).and_then(|index| state.shards.get(index)) else { return Ok(None) };
        let entry = wanted.0.checked_sub(stream.first).and_then(|at| stream.entries.get(usize::try_from(at).ok()?));
        Ok(entry.filter(|entry| entry.seq.0 <= stream.visible).cloned())
    }
}

fn index(shard: ShardId) -> Option<usize> {
    usize::from(shard.0).checked_sub(1)
}

impl Log for MemoryLog {
    fn shard_count(&self) -> u16 {
        // Made from a u16.
        self.lock().shards.len() as u16
    }

    fn stream_name(&self, shard: ShardId) -> String {
        format!("memory-{}", shard.0)
    }

    fn message_bytes_max(&self) -> usize {
        self.lock().message_bytes_max
    }

    fn ensure(&self) -> BoxFuture<'_, Result<(), LogError>> {
        for shard in self.lock().shards.iter_mut().filter(|shard| shard.missing) {
            shard.missing = false;
            shard.created_ns += 1;
        }
        self.wake();
        Box::pin(async { Ok(()) })
    }

    fn publish<'a>(
        &'a self,
        shard: ShardId,
        message_id: &'a str,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<StreamSeq, PublishError>> {
        Box::pin(async move { self.append(shard, message_id, payload) })
    }

    fn publish_at<'a>(
        &'a self,
        shard: ShardId,
        seq: StreamSeq,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<StreamSeq, PublishError>> {
        Box::pin(async move {
            if self.bounds_now(shard).map_or(0, |bounds| bounds.last.0) + 1 != seq.0 {
                return Err(PublishError::Refused(format!("the next message is not {}", seq.0)));
            }
            self.append(shard, &format!("put back {}", seq.0), payload)
        })
    }

    /// It loses nothing but what it is told to lose.
    fn raise_floor(&self, _: ShardId, _: StreamSeq) {}

    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>> {
        Box::pin(async move { self.bounds_now(shard) })
    }

    fn message(&self, shard: ShardId, seq: StreamSeq) -> BoxFuture<'_, Result<Option<Bytes>, LogError>> {
        let found = self.entries(shard, seq).into_iter().next().filter(|entry| entry.seq == seq);
        Box::pin(async { Ok(found.map(|entry| entry.payload)) })
    }

    fn read(&self, shard: ShardId, from: StreamSeq) -> BoxStream<'static, Result<Entry, LogError>> {
        struct Reader {
            log: MemoryLog,
            changed: watch::Receiver<u64>,
            next: StreamSeq,
            created_ns: Option<i128>,
        }
        let reader = Reader {
            log: self.clone(),
            changed: self.changed.subscribe(),
            next: StreamSeq(from.0.max(1)),
            created_ns: None,
        };
        // `None` after a failure ends the stream.
        Box::pin(stream::unfold(Some(reader), move |reader| async move {
            let mut reader = reader?;
            loop {
                reader.changed.mark_unchanged();
                let created_ns = match (reader.created_ns, reader.log.bounds_now(shard)) {
                    (Some(created_ns), _) => created_ns,
                    (None, Ok(bounds)) => *reader.created_ns.insert(bounds.created_ns),
                    (None, Err(error)) => return Some((Err(error), None)),
                };
                match reader.log.next_entry(shard, reader.next, created_ns) {
                    Err(error) => return Some((Err(error), None)),
                    Ok(Some(entry)) => {
                        reader.next.0 += 1;
                        return Some((Ok(entry), Some(reader)));
                    }
                    // The sender lives in the log that this reader holds, so the wait cannot fail.
                    Ok(None) => reader.changed.changed().await.ok()?,
                }
            }
        }))
    }
}
