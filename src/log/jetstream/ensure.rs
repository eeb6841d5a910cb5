//! Makes the streams that are not there, and checks those that are.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};

use super::super::contract::Log;
use super::super::error::LogError;
use super::super::message::ShardId;
use super::{JetStreamLog, jetstream_error};

/// The key of the stream's metadata that says how changes of a row are merged, and what streams mean that say nothing.
const CONFLICT: &str = "woodchuck-conflict";
const CONFLICT_DEFAULT: &str = "column";

/// How long the server remembers message ids: retries come within seconds, and what comes later is dropped by its batch number.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

pub(super) async fn ensure(log: &JetStreamLog) -> Result<(), LogError> {
    for shard in 1..=log.options.shard_count {
        ensure_shard(log, ShardId(shard)).await?;
    }
    Ok(())
}

async fn ensure_shard(log: &JetStreamLog, shard: ShardId) -> Result<(), LogError> {
    let wanted = config(log, shard);
    match log.info(shard).await {
        // Made by hand, and nobody has written yet: it says what the first node does.
        Ok(info)
            if info.state.last_sequence == 0
                && conflict_of(&info.config).is_none()
                && conflict_of(&wanted).is_some() =>
        {
            let metadata = wanted.metadata.clone().into_iter().chain(info.config.metadata.clone()).collect();
            let said = Config { metadata, ..info.config };
            log.context.update_stream(&said).await.map_err(|error| LogError::Unreachable(error.to_string()))?;
            return compare(&wanted, &log.info(shard).await?.config);
        }
        Ok(info) => return compare(&wanted, &info.config),
        Err(LogError::StreamMissing { .. }) => {}
        Err(error) => return Err(error),
    }
    let Err(error) = log.context.create_stream(&wanted).await else { return Ok(()) };
    let stream = wanted.name.clone();
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => match error.error_code() {
            // Another node was quicker.
            ErrorCode::STREAM_NAME_EXIST => compare(&wanted, &log.info(shard).await?.config),
            ErrorCode::STREAM_SUBJECT_OVERLAP => Err(overlap(log, shard).await),
            _ => Err(jetstream_error(stream, &error)),
        },
        CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::ResponseParse => Err(LogError::Unreachable(error.to_string())),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet => Err(LogError::Refused { stream, what: error.to_string() }),
    }
}

fn conflict_of(config: &Config) -> Option<&str> {
    config.metadata.get(CONFLICT).map(String::as_str)
}

fn config(log: &JetStreamLog, shard: ShardId) -> Config {
    let conflict = Some(log.options.conflict).filter(|conflict| !conflict.is_empty());
    Config {
        name: log.stream_name(shard),
        subjects: vec![log.subject(shard)],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        max_messages: log.options.max_log_entries.into(),
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        num_replicas: log.options.replica_count.into(),
        duplicate_window: DUPLICATE_WINDOW,
        description: Some("row changes of SQLite databases, see docs/envelope.md of woodchuck".to_owned()),
        metadata: conflict.map(|conflict| (CONFLICT.to_owned(), conflict.to_owned())).into_iter().collect(),
        ..Config::default()
    }
}

/// Another stream has our subject. Streams of one log and another number of shards have it, and the name tells their number.
async fn overlap(log: &JetStreamLog, shard: ShardId) -> LogError {
    let subject = log.subject(shard);
    let stream = match log.context.stream_by_subject(subject.as_str()).await {
        Ok(stream) => stream,
        Err(error) => return LogError::Unreachable(error.to_string()),
    };
    let found = stream
        .strip_prefix(&log.options.stream_prefix)
        .and_then(|rest| rest.strip_prefix('-')?.split_once('-'))
        .and_then(|(shard_count, _)| shard_count.parse::<u16>().ok());
    match found {
        Some(found) => {
            let wanted = log.options.shard_count.to_string();
            LogError::Config { stream, setting: "shards", wanted, found: found.to_string() }
        }
        None => {
            LogError::Refused { stream, what: format!("it takes messages of subject {subject}, which this log needs") }
        }
    }
}

/// What the server does not limit it shows as −1, or 0 in other places.
fn limit(value: i64) -> String {
    if value <= 0 { "unlimited".to_owned() } else { value.to_string() }
}

fn compare(wanted: &Config, found: &Config) -> Result<(), LogError> {
    let conflict_found = conflict_of(found).unwrap_or(CONFLICT_DEFAULT);
    // Who merges no rows takes any.
    let conflict_wanted = conflict_of(wanted).unwrap_or(conflict_found);
    let settings = [
        ("subjects", wanted.subjects.join(","), found.subjects.join(",")),
        ("storage", format!("{:?}", wanted.storage), format!("{:?}", found.storage)),
        ("retention", format!("{:?}", wanted.retention), format!("{:?}", found.retention)),
        ("discard", format!("{:?}", wanted.discard), format!("{:?}", found.discard)),
        ("max_msgs", limit(wanted.max_messages), limit(found.max_messages)),
        ("max_bytes", limit(wanted.max_bytes), limit(found.max_bytes)),
        ("max_age", format!("{:?}", wanted.max_age), format!("{:?}", found.max_age)),
        ("max_msgs_per_subject", limit(wanted.max_messages_per_subject), limit(found.max_messages_per_subject)),
        ("max_msg_size", limit(wanted.max_message_size.into()), limit(found.max_message_size.into())),
        ("num_replicas", wanted.num_replicas.to_string(), found.num_replicas.to_string()),
        ("duplicate_window", format!("{:?}", wanted.duplicate_window), format!("{:?}", found.duplicate_window)),
        ("no_ack", wanted.no_ack.to_string(), found.no_ack.to_string()),
        ("conflict", conflict_wanted.to_owned(), conflict_found.to_owned()),
        ("sealed", wanted.sealed.to_string(), found.sealed.to_string()),
    ];
    match settings.into_iter().find(|(_, wanted, found)| wanted != found) {
        None => Ok(()),
        Some((setting, wanted, found_value)) => {
            Err(LogError::Config { stream: found.name.clone(), setting, wanted, found: found_value })
        }
    }
}
