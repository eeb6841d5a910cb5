//! What a log is: a stream per shard, appended to with acknowledgement and read in order.

use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::error::{LogError, PublishError};
use super::message::{ShardId, StreamSeq};

/// A message as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the stream.
    pub seq: StreamSeq,
    /// When the server stored it, by the server's clock: for people, never for order.
    pub time: SystemTime,
    /// Its bytes.
    pub payload: Bytes,
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The first message that is there; one more than `last` when the stream is empty.
    pub first: StreamSeq,
    /// The last message ever appended; 0 when there was none.
    pub last: StreamSeq,
    /// Tells one life of the stream from another: nanoseconds from 1970 to its creation.
    pub created_ns: i128,
}

/// A log of one stream per shard. Handles are cheap to share; everything may be called from anywhere.
pub trait Log: Send + Sync {
    /// How many shards there are, numbered from 1.
    fn shard_count(&self) -> u16;

    /// The name of a shard's stream, for messages to people.
    fn stream_name(&self, shard: ShardId) -> String;

    /// The largest payload that one message may have.
    fn message_bytes_max(&self) -> usize;

    /// Creates the streams that are not there and checks those that are.
    ///
    /// # Errors
    ///
    /// [`LogError::Config`] where a stream is not as it must be; [`LogError::Refused`]; [`LogError::Unreachable`].
    fn ensure(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// Appends a message and waits until that is acknowledged. May be dropped at any time; then, as after an error, the message may or may
    /// not be in the log. A message whose id was seen lately is not appended again.
    ///
    /// # Errors
    ///
    /// [`PublishError`]; try again with the same id.
    fn publish<'a>(
        &'a self,
        shard: ShardId,
        message_id: &'a str,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<StreamSeq, PublishError>>;

    /// Appends a message as number `seq` and as no other: it is put back where it was lost. As [`Log::publish`], but a message that was
    /// seen lately is appended all the same.
    ///
    /// # Errors
    ///
    /// [`PublishError`]; [`PublishError::Refused`] when the next number is another one.
    fn publish_at<'a>(
        &'a self,
        shard: ShardId,
        seq: StreamSeq,
        payload: Bytes,
    ) -> BoxFuture<'a, Result<StreamSeq, PublishError>>;

    /// Tells that the shard is known to hold message `seq`. A server that has less than that has lost messages: reading says so, and
    /// nothing is appended in their places.
    fn raise_floor(&self, shard: ShardId, seq: StreamSeq);

    /// What the shard's stream holds at the moment.
    ///
    /// # Errors
    ///
    /// [`LogError::StreamMissing`], [`LogError::Refused`], [`LogError::Unreachable`].
    fn bounds(&self, shard: ShardId) -> BoxFuture<'_, Result<Bounds, LogError>>;

    /// The payload of one message; `None` where it is not there.
    ///
    /// # Errors
    ///
    /// [`LogError::Unreachable`].
    fn message(&self, shard: ShardId, seq: StreamSeq) -> BoxFuture<'_, Result<Option<Bytes>, LogError>>;

    /// Reads a shard from message `from` on, in order, without end: what is there, then what comes. Survives broken connections, restarts
    /// and lost consumers by itself. An error is the last item: it says what must be decided before reading can go on.
    fn read(&self, shard: ShardId, from: StreamSeq) -> BoxStream<'static, Result<Entry, LogError>>;
}
