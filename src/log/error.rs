//! What goes wrong with the log, and what an operator can do about it.

use thiserror::Error;

use super::envelope::EnvelopeError;
use super::message::{ShardId, StreamSeq};

/// Why the log, or one shard of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogError {
    /// No answer. It may come later: try again.
    #[error("the log does not answer: {0}")]
    Unreachable(String),
    /// The server answers that it cannot or will not.
    #[error("stream {stream}: the server refuses: {what}")]
    Refused {
        /// The stream.
        stream: String,
        /// The server's words.
        what: String,
    },
    /// The stream on the server is not as this node needs it.
    #[error("stream {stream} has {setting} = {found}, this node wants {wanted}")]
    Config {
        /// The stream.
        stream: String,
        /// The setting that differs.
        setting: &'static str,
        /// What this node is configured for.
        wanted: String,
        /// What the server has.
        found: String,
    },
    /// The stream is gone.
    #[error("stream {stream} is not there any more")]
    StreamMissing {
        /// The stream.
        stream: String,
    },
    /// The stream was deleted and created again: its numbers mean other messages now.
    #[error("stream {stream} was deleted and created again while it was read")]
    StreamRecreated {
        /// The stream.
        stream: String,
    },
    /// The stream ends before the position of this node: the server lost messages that it had acknowledged, or is another one.
    #[error("stream {stream} ends at {}, but {} has been read before: the server lost acknowledged messages", last.0, wanted.0.saturating_sub(1))]
    LostTail {
        /// The stream.
        stream: String,
        /// The next message to read.
        wanted: StreamSeq,
        /// The last one that is there.
        last: StreamSeq,
    },
    /// A message is another one than was read under its number: the server went back in time and has gone on since.
    #[error("message {} of stream {stream} is not the one that was read before: the server lost acknowledged messages", seq.0)]
    Rewritten {
        /// The stream.
        stream: String,
        /// The last message that was read.
        seq: StreamSeq,
    },
    /// The log was trimmed beyond the position of this node.
    #[error("stream {stream} begins at {} now, but {} is the next to read", first.0, wanted.0)]
    FellBehind {
        /// The stream.
        stream: String,
        /// The next message to read.
        wanted: StreamSeq,
        /// The first one that is still there.
        first: StreamSeq,
    },
    /// Single messages were deleted from the middle of the stream.
    #[error("stream {stream} has no message {}, the next one is {}", wanted.0, found.0)]
    Hole {
        /// The stream.
        stream: String,
        /// The next message to read.
        wanted: StreamSeq,
        /// The one that comes instead.
        found: StreamSeq,
    },
    /// A message is not one of ours, is damaged, or is of a later version.
    #[error("message {} of stream {stream}: {source}", seq.0)]
    Undecodable {
        /// The stream.
        stream: String,
        /// The message.
        seq: StreamSeq,
        /// What is wrong with it.
        source: EnvelopeError,
    },
    /// The log has no such shard.
    #[error("the log has no shard {}", shard.0)]
    NoShard {
        /// The shard.
        shard: ShardId,
    },
}

impl LogError {
    /// Whether trying again can help without anybody doing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Unreachable(_))
    }

    /// What an operator can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            LogError::Unreachable(_) => "check that the NATS server runs and that --nats-url names it".to_owned(),
            LogError::Refused { what, .. } if what.to_ascii_lowercase().contains("jetstream not enabled") => {
                "start the NATS server with JetStream (nats-server -js)".to_owned()
            }
            LogError::Refused { .. } => "read the server's log; storage, account limits and --log-replicas are the usual causes".to_owned(),
            LogError::Config { setting: "shards", found, .. } => {
                format!("use --shards {found} on every node, or another --stream-prefix and --subject-prefix")
            }
            LogError::Config { stream, setting: "max_msgs", found, .. } => {
                format!("use --max-log-entries {found}, or change the stream: nats stream edit {stream} --max-msgs=…")
            }
            LogError::Config { stream, setting: "num_replicas", found, .. } => {
                format!("use --log-replicas {found}, or change the stream: nats stream edit {stream} --replicas=…")
            }
            LogError::Config { setting: "conflict", found, .. } => {
                format!("set apply.conflict = {found:?} on every node, or use another --stream-prefix and --subject-prefix; where all nodes have had the other one all along, set the metadata woodchuck-conflict of the streams to it")
            }
            LogError::Config { stream, setting, wanted, .. } => {
                format!("set {setting} of the stream to {wanted} (nats stream edit {stream}), or use another --stream-prefix")
            }
            LogError::StreamMissing { .. }
            | LogError::StreamRecreated { .. }
            | LogError::LostTail { .. }
            | LogError::Rewritten { .. } => {
                "restore the NATS server's data, or make all nodes new (woodchuck cleanup) from one copy of the database".to_owned()
            }
            LogError::FellBehind { .. } => "catch up from a snapshot; a larger --max-log-entries lets nodes stay away longer".to_owned(),
            LogError::Hole { .. } => "catch up from a snapshot; do not delete single messages from the log".to_owned(),
            LogError::Undecodable { source: EnvelopeError::Version { .. }, .. } => {
                "a newer woodchuck writes to this log: upgrade this node".to_owned()
            }
            LogError::Undecodable { .. } => {
                "only woodchuck may publish to its subjects; catch up from a snapshot that lies behind this message".to_owned()
            }
            LogError::NoShard { .. } => "use the same --shards on every node".to_owned(),
        }
    }
}

/// Why a message was not acknowledged. It may be in the log all the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// There is no connection, or it broke while the acknowledgement was awaited.
    #[error("not connected to the NATS server")]
    Disconnected,
    /// There is a connection to read over, but none to append over can be made.
    #[error("no connection to append to the log over: {0}")]
    NoConnection(ConnectError),
    /// The acknowledgement did not come in time.
    #[error("the NATS server did not acknowledge in time")]
    TimedOut,
    /// No stream takes the subject: it was deleted, or has no leader at the moment.
    #[error("no stream takes messages of subject {subject}")]
    NoStream {
        /// The subject.
        subject: String,
    },
    /// The message is larger than the server takes.
    #[error("message of {bytes} bytes is larger than the server takes")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The stream has less than is known to have been in it. What was lost must come back to its place first.
    #[error("stream {stream} ends at {}, but {} was in it: the server lost acknowledged messages", last.0, known.0)]
    LostTail {
        /// The stream.
        stream: String,
        /// The last message that is there.
        last: StreamSeq,
        /// The last one that was.
        known: StreamSeq,
    },
    /// The server answers that it does not store the message.
    #[error("the server refuses the message: {0}")]
    Refused(String),
}

/// Why no connection could be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("no NATS server answers at {urls}: {what}")]
    Unreachable {
        /// The addresses tried.
        urls: String,
        /// What happened.
        what: String,
    },
    /// The server does not accept us.
    #[error("the NATS server at {urls} refuses our credentials: {what}")]
    Unauthorized {
        /// The addresses tried.
        urls: String,
        /// What happened.
        what: String,
    },
    /// TLS failed: certificates, names, or one side without it.
    #[error("TLS with the NATS server at {urls} failed: {what}")]
    Tls {
        /// The addresses tried.
        urls: String,
        /// What happened.
        what: String,
    },
    /// An option makes no sense.
    #[error("{option} is not usable: {what}")]
    Option {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl ConnectError {
    /// What an operator can do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            ConnectError::Unreachable { .. } => "start nats-server -js, or name a running one with --nats-url",
            ConnectError::Unauthorized { .. } => "check user, password, token, nkey or creds file",
            ConnectError::Tls { .. } => "check the CA file, and certificate and key if the server asks for them",
            ConnectError::Option { .. } => "correct the option",
        }
    }
}
