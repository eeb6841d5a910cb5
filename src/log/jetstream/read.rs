//! Reads a stream in order, whatever happens to connections, servers and consumers.
//!
//! A consumer on the server is only a means to get messages: whenever it is gone, silent or out of step it is replaced by one that begins at
//! the next message. What the stream itself says decides whether there is anything to go on with.

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{ConsumerErrorKind, RawMessageErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use super::super::backoff::Backoff;
use super::super::contract::{Entry, Log};
use super::super::error::LogError;
use super::super::message::{ShardId, StreamSeq};
use super::{JetStreamLog, Link, bounds_of};

/// A consumer that is silent for two of these is replaced.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long one request for messages stands at the server.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// How long the server keeps a consumer that nobody asks for messages. We make another when we come back.
const CONSUMER_INACTIVE: Duration = Duration::from_secs(60);

/// Messages asked for at once. Together with [`PULL_BYTES_MIN`] it bounds what waits in memory for each shard.
const PULL_MESSAGES_MAX: usize = 256;

/// Bytes asked for at once, unless one message may be larger: a request smaller than the next message would never be answered.
const PULL_BYTES_MIN: usize = 1 << 20;

/// What each message may take beside its payload: subject, reply subject and headers.
const MESSAGE_OVERHEAD_BYTES_MAX: usize = 4096;

/// Short enough that a hiccup is not noticed.
const RETRY_FIRST: Duration = Duration::from_millis(50);

/// Long enough not to press a server in trouble.
const RETRY_CAP: Duration = Duration::from_secs(5);

/// How long a stream may be missing, or seem shorter than it was, before that is believed: a cluster that elects its leaders or a server
/// that recovers its streams can say so for a moment.
const DOUBT: Duration = Duration::from_secs(5);

/// A new consumer that skips the same message again shows that it is not there.
const SKIPS_MAX: u32 = 2;

pub(super) fn read(log: JetStreamLog, shard: ShardId, from: StreamSeq) -> BoxStream<'static, Result<Entry, LogError>> {
    let link = log.link();
    let reader = Reader {
        log,
        shard,
        next: StreamSeq(from.0.max(1)),
        created_ns: None,
        last_read: None,
        messages: None,
        link,
        link_change_count: 0,
        opened: Instant::now(),
        backoff: Backoff::new(RETRY_FIRST, RETRY_CAP),
        doubt_since: None,
        skips: 0,
    };
    // `None` after a failure ends the stream.
    Box::pin(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next_entry().await {
            Ok(entry) => Some((Ok(entry), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// One message's payload; `None` where it is not there.
pub(super) async fn message(log: &JetStreamLog, shard: ShardId, seq: StreamSeq) -> Result<Option<Bytes>, LogError> {
    let unreachable = |error: &dyn std::fmt::Display| LogError::Unreachable(error.to_string());
    let stream = log.requests.get_stream_no_info(log.stream_name(shard)).await.map_err(|error| unreachable(&error))?;
    match stream.get_raw_message(seq.0).await {
        Ok(message) => Ok(Some(message.payload)),
        Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(unreachable(&error)),
    }
}

struct Reader {
    log: JetStreamLog,
    shard: ShardId,
    next: StreamSeq,
    created_ns: Option<i128>,
    /// Number and content of the message before `next`, once one was read.
    last_read: Option<(StreamSeq, blake3::Hash)>,
    messages: Option<Box<pull::Stream>>,
    link: watch::Receiver<Link>,
    /// As it was when the consumer was made.
    link_change_count: u64,
    opened: Instant,
    backoff: Backoff,
    doubt_since: Option<Instant>,
    skips: u32,
}

impl Reader {
    /// Waits for the next message, for ever if need be; an error needs a decision.
    async fn next_entry(&mut self) -> Result<Entry, LogError> {
        loop {
            let Some(messages) = &mut self.messages else {
                match self.open().await {
                    Ok(messages) => {
                        self.messages = Some(Box::new(messages));
                        self.doubt_since = None;
                    }
                    Err(error) if self.is_believed(&error) => return Err(error),
                    Err(_) => self.wait().await,
                }
                continue;
            };
            let opened_at = self.link_change_count;
            let item = tokio::select! {
                biased;
                item = messages.next() => item,
                // A server that restarted has forgotten the consumer, and only missing heartbeats would tell: too late.
                _ = self.link.wait_for(|link| link.connected && link.change_count > opened_at) => None,
            };
            let found = match item {
                Some(Ok(message)) => message
                    .info()
                    .ok()
                    .map(|info| (info.stream_sequence, info.published))
                    .zip(Some(message.message.payload.clone())),
                Some(Err(_)) | None => None,
            };
            let Some(((seq, published), payload)) = found else {
                self.messages = None;
                if self.opened.elapsed() > RETRY_CAP {
                    self.backoff.reset();
                }
                if self.link.borrow().change_count == opened_at {
                    self.wait().await;
                }
                continue;
            };
            if seq < self.next.0 {
                continue;
            }
            if seq > self.next.0 {
                self.messages = None;
                self.skips += 1;
                if self.skips >= SKIPS_MAX {
                    // Opening tells whether the log was trimmed beyond us; only if not, the message alone is missing.
                    let stream = self.log.stream_name(self.shard);
                    match self.open().await {
                        Ok(_) => return Err(LogError::Hole { stream, wanted: self.next, found: StreamSeq(seq) }),
                        Err(error) if self.is_believed(&error) => return Err(error),
                        Err(_) => self.wait().await,
                    }
                }
                continue;
            }
            self.next.0 += 1;
            self.skips = 0;
            self.backoff.reset();
            let entry = Entry { seq: StreamSeq(seq), time: published.into(), payload };
            self.last_read = Some((entry.seq, blake3::hash(&entry.payload)));
            self.log.floors.raise(self.shard, entry.seq);
            return Ok(entry);
        }
    }

    /// Looks at the stream and makes a consumer that begins at the next message.
    async fn open(&mut self) -> Result<pull::Stream, LogError> {
        self.link_change_count = self.link.borrow().change_count;
        self.opened = Instant::now();
        let stream = self.log.stream_name(self.shard);
        let bounds = bounds_of(&self.log.info(self.shard).await?);
        if *self.created_ns.get_or_insert(bounds.created_ns) != bounds.created_ns {
            return Err(LogError::StreamRecreated { stream });
        }
        // What was acknowledged may not have been read yet.
        let wanted = self.next.max(StreamSeq(self.log.floors.get(self.shard).0 + 1));
        if bounds.last.0 + 1 < wanted.0 {
            return Err(LogError::LostTail { stream, wanted, last: bounds.last });
        }
        if bounds.first > self.next {
            return Err(LogError::FellBehind { stream, wanted: self.next, first: bounds.first });
        }
        self.check_last_read(&stream, bounds.first).await?;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next.0 },
            ack_policy: AckPolicy::None,
            inactive_threshold: CONSUMER_INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let unreachable = |error: &dyn std::fmt::Display| LogError::Unreachable(error.to_string());
        let consumer = self.log.requests.create_consumer_on_stream(config, stream.as_str()).await;
        let consumer = consumer.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(error) => super::jetstream_error(stream, &error),
            ConsumerErrorKind::TimedOut
            | ConsumerErrorKind::Request
            | ConsumerErrorKind::InvalidConsumerType
            | ConsumerErrorKind::InvalidName
            | ConsumerErrorKind::Other => unreachable(&error),
        })?;
        let max_payload = self.log.context.client().max_payload() + MESSAGE_OVERHEAD_BYTES_MAX;
        consumer
            .stream()
            .heartbeat(HEARTBEAT)
            .expires(PULL_EXPIRES)
            .max_messages_per_batch(PULL_MESSAGES_MAX)
            .max_bytes_per_batch(max_payload.max(PULL_BYTES_MIN))
            .messages()
            .await
            .map_err(|error| unreachable(&error))
    }

    /// Checks that the message before the next one is still the one that was read. A server that lost its tail and took new messages
    /// since has enough of them, and some of those have numbers that we would not read again.
    async fn check_last_read(&self, stream: &str, first: StreamSeq) -> Result<(), LogError> {
        let Some((seq, content)) = self.last_read.filter(|(seq, _)| *seq >= first) else { return Ok(()) };
        // (Its time is another one where it was put back. It can have been trimmed since we asked for the bounds.)
        match message(&self.log, self.shard, seq).await? {
            Some(payload) if blake3::hash(&payload) != content => {
                Err(LogError::Rewritten { stream: stream.to_owned(), seq })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether an error is final. What a cluster in transition also says must last for a while.
    fn is_believed(&mut self, error: &LogError) -> bool {
        match error {
            LogError::FellBehind { .. }
            | LogError::StreamRecreated { .. }
            | LogError::Rewritten { .. }
            | LogError::Hole { .. } => true,
            LogError::StreamMissing { .. } | LogError::LostTail { .. } => {
                self.doubt_since.get_or_insert_with(Instant::now).elapsed() >= DOUBT
            }
            LogError::Unreachable(_)
            | LogError::Refused { .. }
            | LogError::Config { .. }
            | LogError::Undecodable { .. }
            | LogError::NoShard { .. } => {
                self.doubt_since = None;
                false
            }
        }
    }

    /// Waits before the next try, but not longer than until the connection comes back.
    async fn wait(&mut self) {
        let mut link = self.log.link.clone();
        link.mark_unchanged();
        let connected_again = async {
            // Ends with an error only when the client is gone; then the time-out is all there is to wait for.
            if link.changed().await.is_err() || link.wait_for(|link| link.connected).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let _either_is_fine = tokio::time::timeout(self.backoff.next(), connected_again).await;
    }
}
