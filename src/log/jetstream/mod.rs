//! The log on NATS JetStream.

mod ask;
mod connect;
mod ensure;
mod examine;
mod floor;
mod options;
mod publishing;
mod read;
mod service;
mod tails;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Info;
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

pub use self::ask::{Question, Questions};
pub use self::examine::ServerFacts;
pub use self::options::{NatsOptions, StreamOptions};

use self::floor::Floors;
use self::publishing::{Publishing, Publishings};
use self::service::{Asked, Service};
use super::contract::{Bounds, Entry, Log};
use super::error::{ConnectError, LogError, PublishError};
use super::message::{ShardId, StreamSeq};

/// What a message's headers (id and expected stream) may take of the server's `max_payload`, which counts them too. Names are bounded far
/// below.
const HEADER_BYTES_MAX: usize = 1024;

/// How long a publish waits for a connection before it fails. Without a connection nothing may be sent: the client would queue it, and
/// every retry would queue another copy.
const CONNECTED_WAIT: Duration = Duration::from_secs(2);

/// How long an acknowledgement, or a new stream, may take: servers that sync to slow disks need some of it.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long questions about streams and new consumers may take. While a cluster elects a leader nobody answers, and each question asked
/// then must fail soon enough for the next to find the new leader.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Whether there is one.
    pub connected: bool,
    /// Counts connections made and lost.
    pub change_count: u64,
    /// What the client or the server complained about last.
    pub error_last: Option<String>,
    /// What the server has refused over this connection, in its words, and when it last did: no answer comes to what it refuses.
    pub refusals: BTreeMap<String, Instant>,
}

/// The streams of one log on a NATS server or cluster. Clones share the connections.
#[derive(Debug, Clone)]
pub struct JetStreamLog {
    context: Context,
    /// The same connection with [`REQUEST_TIMEOUT`].
    requests: Context,
    options: Arc<StreamOptions>,
    link: watch::Receiver<Link>,
    service: Arc<Service>,
    floors: Arc<Floors>,
    publishings: Arc<Publishings>,
}

impl JetStreamLog {
    /// Connects. Once that has worked, lost connections are made again by themselves, for ever.
    ///
    /// # Errors
    ///
    /// [`ConnectError`]: an option makes no sense, nobody answers, or the server refuses. The second is worth another try.
    pub async fn connect(nats: &NatsOptions, streams: StreamOptions) -> Result<JetStreamLog, ConnectError> {
        streams.check()?;
        let service = Arc::new(Service::default());
        let (client, changed) = connect::connect(nats, &service).await?;
        let link = changed.subscribe();
        // What a new node does not know of it has no part in.
        let publishings = Arc::new(Publishings::new(nats.clone(), client.server_info().server_id, changed));
        let mut context = async_nats::jetstream::new(client.clone());
        context.set_timeout(ACK_TIMEOUT);
        let mut requests = async_nats::jetstream::new(client);
        requests.set_timeout(REQUEST_TIMEOUT);
        let floors = Arc::new(Floors::new(streams.shard_count));
        Ok(JetStreamLog { context, requests, options: Arc::new(streams), link, service, floors, publishings })
    }

    /// The connection's JetStream, for what else is kept there.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What the names of streams and buckets begin with.
    #[must_use]
    pub fn stream_prefix(&self) -> &str {
        &self.options.stream_prefix
    }

    /// Copies that the servers keep of everything.
    #[must_use]
    pub fn replica_count(&self) -> usize {
        usize::from(self.options.replica_count)
    }

    /// The state of the connection, to watch.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// The subject of a shard.
    #[must_use]
    pub fn subject(&self, shard: ShardId) -> String {
        format!("{}-{}", self.options.subject_prefix, shard.0)
    }

    async fn info(&self, shard: ShardId) -> Result<Info, LogError> {
        self.info_over(&self.requests, shard).await
    }

    /// What the server at the other end of one connection says.
    async fn info_over(&self, requests: &Context, shard: ShardId) -> Result<Info, LogError> {
        let stream = self.stream_name(shard);
        let asked_at = Instant::now();
        let found = requests.get_stream(&stream).await;
        let found = found.map(|found| found.cached_info().clone()).map_err(|error| stream_error(stream, &error));
        match &found {
            Err(error) if error.is_transient() => self.service.unanswered(Asked::Look, asked_at),
            Ok(_) | Err(_) => self.service.answered(Asked::Look),
        }
        found
    }

    async fn connected(&self) -> Result<(), PublishError> {
        if self.context.client().connection_state() == State::Connected {
            return Ok(());
        }
        let mut link = self.link.clone();
        let client = self.context.client();
        let connected = link.wait_for(|_| client.connection_state() == State::Connected);
        match tokio::time::timeout(CONNECTED_WAIT, connected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(PublishError::Disconnected),
        }
    }

    /// Looks once per connection whether the stream still has what it had.
    async fn refuse_lost_tail(&self, publishing: &Publishing, shard: ShardId) -> Result<(), PublishError> {
        if self.floors.is_checked(shard, publishing.number) {
            return Ok(());
        }
        let elsewhere = self.known_elsewhere(publishing, shard).await;
        let known = self.floors.get(shard).max(elsewhere);
        let last = match self.info_over(&publishing.requests, shard).await {
            Ok(info) => bounds_of(&info).last,
            Err(LogError::Unreachable(_)) => return Err(PublishError::TimedOut),
            Err(LogError::StreamMissing { .. }) => return Err(PublishError::NoStream { subject: self.subject(shard) }),
            Err(error) => return Err(PublishError::Refused(error.to_string())),
        };
        if last < known {
            self.note_missing(publishing).await;
            return Err(PublishError::LostTail { stream: self.stream_name(shard), last, known });
        }
        self.floors.set_checked(shard, publishing.number);
        Ok(())
    }

    async fn publish_message(&self, shard: ShardId, id: &str, payload: Bytes) -> Result<StreamSeq, PublishError> {
        let publishing = self.publishing().await?;
        self.refuse_lost_tail(&publishing, shard).await?;
        let bytes = payload.len();
        self.append(&publishing, shard, PublishMessage::build().payload(payload).message_id(id), bytes).await
    }

    async fn publishing(&self) -> Result<Arc<Publishing>, PublishError> {
        self.connected().await?;
        let change_count = self.link.borrow().change_count;
        self.publishings.get(&self.context.client(), change_count).await
    }

    async fn append(
        &self,
        publishing: &Publishing,
        shard: ShardId,
        message: PublishMessage,
        bytes: usize,
    ) -> Result<StreamSeq, PublishError> {
        let subject = self.subject(shard);
        // The stream's name is expected too: another stream that takes the same subject must not swallow our messages.
        let message = message.expected_stream(self.stream_name(shard));
        let mut lost = publishing.lost.clone();
        let asked_at = Instant::now();
        let acknowledged = async {
            let ack = publishing.context.send_publish(subject.clone(), message).await?;
            ack.await
        };
        let result = tokio::select! {
            result = acknowledged => result,
            // An acknowledgement does not come over another connection than its message went.
            _ = lost.wait_for(|lost| *lost) => return Err(PublishError::Disconnected),
        };
        match result.as_ref().map_err(|error| error.kind()) {
            Err(PublishErrorKind::TimedOut | PublishErrorKind::StreamNotFound) => {
                self.service.unanswered(Asked::Append, asked_at);
            }
            Ok(_) => self.service.answered(Asked::Append),
            // Without its cluster a server refuses as well, in many ways.
            Err(_) => {}
        }
        if let Ok(ack) = &result {
            self.floors.raise(shard, StreamSeq(ack.sequence));
        }
        result.map(|ack| StreamSeq(ack.sequence)).map_err(|error| match error.kind() {
            PublishErrorKind::StreamNotFound => PublishError::NoStream { subject: self.subject(shard) },
            PublishErrorKind::TimedOut => PublishError::TimedOut,
            PublishErrorKind::BrokenPipe => PublishError::Disconnected,
            PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge { bytes },
            PublishErrorKind::WrongLastMessageId
            | PublishErrorKind::WrongLastSequence
            | PublishErrorKind::MaxAckPending
            | PublishErrorKind::Other => PublishError::Refused(error.to_string()),
        })
    }
}

impl Log for JetStreamLog {
    fn shard_count(&self) -> u16 {
        self.options.shard_count
    }

    fn stream_name(&self, shard: ShardId) -> String {
        format!("{}-{}-{}", self.options.stream_prefix, self.options.shard_count, shard.0)
    }

    fn message_bytes_max(&self) -> usize {
        self.context.client().max_payload().saturating_sub(HEADER_BYTES_MAX)
    }

    fn ensure(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(ensure::ensure(self))
    }

    fn publish<'a>(
        &'a self,
        shard: ShardId,
        message_id: &'a str,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<StreamSeq, PublishError>> {
        Box::pin(self.publish_message(shard, message_id, payload))
    }

    fn publish_at<'a>(
        &'a self,
        shard: ShardId,
        seq: StreamSeq,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<StreamSeq, PublishError>> {
        Box::pin(async move {
            let publishing = self.publishing().await?;
            let bytes = payload.len();
            let message = PublishMessage::build().payload(payload).expected_last_sequence(seq.0.saturating_sub(1));
            self.append(&publishing, shard, message, bytes).await
        })
    }

    fn raise_floor(&self, shard: ShardId, seq: StreamSeq) {
        if seq.0 > 0 {
            self.publishings.doubt_server();
        }
        self.floors.raise(shard, seq);
    }

    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>> {
        Box::pin(async move { self.info(shard).await.map(|info| bounds_of(&info)) })
    }

    fn message(&self, shard: ShardId, seq: StreamSeq) -> BoxFuture<'_, Result<Option<Bytes>, LogError>> {
        Box::pin(read::message(self, shard, seq))
    }

    fn read(&self, shard: ShardId, from: StreamSeq) -> BoxStream<'static, Result<Entry, LogError>> {
        read::read(self.clone(), shard, from)
    }
}

fn bounds_of(info: &Info) -> Bounds {
    // A stream that never held a message says first 0.
    let last = info.state.last_sequence;
    let first = if info.state.messages == 0 { last + 1 } else { info.state.first_sequence };
    Bounds { first: StreamSeq(first), last: StreamSeq(last), created_ns: info.created.unix_timestamp_nanos() }
}

fn stream_error(stream: String, error: &GetStreamError) -> LogError {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => jetstream_error(stream, &error),
        GetStreamErrorKind::Request => LogError::Unreachable(error.to_string()),
        GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
            LogError::Refused { stream, what: error.to_string() }
        }
    }
}

fn jetstream_error(stream: String, error: &async_nats::jetstream::Error) -> LogError {
    match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND => LogError::StreamMissing { stream },
        // The cluster elects, recovers, or has too few servers at the moment: a node may start before they do.
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NO_PEERS
        | ErrorCode::STREAM_OFFLINE
        | ErrorCode::STREAM_OFFLINE_REASON => LogError::Unreachable(error.to_string()),
        _ => LogError::Refused { stream, what: error.to_string() },
    }
}
