//! From options, variables and the TOML file to what a node is told.
//!
//! A key of the file is an option's name with underscores (`nats_url`, `no_publish`). Settings that have no option live in the sections
//! `capture`, `log` and `apply`; their variables are `WOODCHUCK_CAPTURE_POLL_INTERVAL_MS` and so on. An option wins over a variable, a
//! variable over the file, the file over the default.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{LogArgs, RunArgs, SubscribeArgs};
use super::config_file::{ConfigFile, OneOrMany};
use super::exit::Failure;
use crate::node::{ApplyConfig, CaptureConfig, Conflict, Durability, LogConfig, NatsConfig, RunConfig, Secret};
use crate::schema::{RowFilters, Tokens};

/// More streams than this only cost the server files and every node a consumer each.
pub const SHARDS_MAX: u16 = 1024;
/// JetStream's own bound.
pub const REPLICAS_MAX: u8 = 5;

const SHARDS: u16 = 8;
const MAX_LOG_ENTRIES: u64 = 1024;
const REPLICAS: u8 = 1;
const SUBJECT_PREFIX: &str = "woodchuck-change-log";
const STREAM_PREFIX: &str = "woodchuck-changes";
/// Days of an ordinary application's changes, and little beside the database that makes them.
const OUTBOX_BYTES_MAX: u64 = 4 << 30;
/// Only matters where notifications do not arrive; a look costs microseconds.
const POLL_INTERVAL_MS: u64 = 100;
/// At most this much is in doubt after a power loss; one fdatasync a second is not felt by the application.
const SYNC_INTERVAL_MS: u64 = 1_000;
/// SQLite's own threshold for automatic checkpoints.
const CHECKPOINT_FRAMES: u32 = 1_000;
/// Large enough for ordinary transactions to pass without holding anybody up.
const WAL_BYTES_MAX: u64 = 64 << 20;
/// An origin that died between two messages holds the others up for this long, once. One that lives, at a server that was cut off from the
/// others, needs half of it to notice and to go to another.
const CUT_WAIT_MS: u64 = 20_000;
/// A person looks at the latest; each costs two rows.
const CONFLICT_ROWS_MAX: u64 = 10_000;

/// The state directory of a database unless another is given: `<database>-woodchuck` beside it.
#[must_use]
pub fn default_state_dir(db_path: &Path) -> PathBuf {
    let mut name = OsString::from(db_path);
    name.push("-woodchuck");
    PathBuf::from(name)
}

/// Resolves the settings of `run`. `env` looks up a variable: options' variables have already been read with the options, sections' are
/// looked up here.
///
/// # Errors
/// [`Failure`] of usage: an unreadable file, an unknown key, a value out of range, each named by its full path.
pub fn run_config(args: RunArgs, env: &dyn Fn(&str) -> Option<String>) -> Result<RunConfig, Failure> {
    let file = ConfigFile::load(args.config.as_deref(), env)?;
    let db_path = args.db_path.or(file.db_path).ok_or_else(|| {
        Failure::usage("no database given")
            .hint("name it: --db-path FILE, db_path in the configuration file, or WOODCHUCK_DB_PATH")
    })?;
    let node_id = args.node_id.or(file.node_id);
    if node_id == Some(0) {
        return Err(bad("node_id must be greater than 0", "leave it out for a random one"));
    }
    let publish = !args.no_publish.or(file.no_publish).unwrap_or(false);
    let apply_changes = !args.no_apply.or(file.no_apply).unwrap_or(false);
    if !publish && !apply_changes {
        return Err(bad("no_publish and no_apply together leave nothing to do", "drop one of them"));
    }
    let max_entries = args.max_log_entries.or(file.max_log_entries).unwrap_or(MAX_LOG_ENTRIES);
    positive("max_log_entries", max_entries)?;
    let replicas = args.log_replicas.or(file.log_replicas).unwrap_or(REPLICAS);
    if !(1..=REPLICAS_MAX).contains(&replicas) {
        return Err(bad(
            format!("log_replicas must be from 1 to {REPLICAS_MAX}, not {replicas}"),
            "use 3 for a server cluster, 1 for a single server",
        ));
    }
    let address = LogAddress::resolve(args.log, file.address)?;
    let outbox_bytes_max = file.log.outbox_bytes_max.unwrap_or(OUTBOX_BYTES_MAX);
    positive("log.outbox_bytes_max", outbox_bytes_max)?;
    let poll_interval_ms = file.capture.poll_interval_ms.unwrap_or(POLL_INTERVAL_MS);
    positive("capture.poll_interval_ms", poll_interval_ms)?;
    let sync_interval_ms = file.capture.sync_interval_ms.unwrap_or(SYNC_INTERVAL_MS);
    positive("capture.sync_interval_ms", sync_interval_ms)?;
    let checkpoint_frames = file.capture.checkpoint_frames.unwrap_or(CHECKPOINT_FRAMES);
    positive("capture.checkpoint_frames", u64::from(checkpoint_frames))?;
    let wal_bytes_max = file.capture.wal_bytes_max.unwrap_or(WAL_BYTES_MAX);
    let cut_wait_ms = file.apply.cut_wait_ms.unwrap_or(CUT_WAIT_MS);

    Ok(RunConfig {
        state_dir: args.state_dir.or(file.state_dir).unwrap_or_else(|| default_state_dir(&db_path)),
        db_path,
        node_id,
        nats: address.nats,
        log: LogConfig {
            shards: address.shards,
            max_entries,
            replicas,
            subject_prefix: address.subject_prefix,
            stream_prefix: address.stream_prefix,
            compress: args.compress.or(file.compress).unwrap_or(false),
            before_images: file.log.before_images.unwrap_or(false),
            snapshot_interval: file.log.snapshot_interval_s.filter(|seconds| *seconds > 0).map(Duration::from_secs),
            outbox_bytes_max,
        },
        capture: CaptureConfig {
            poll_interval: Duration::from_millis(poll_interval_ms),
            sync_interval: Duration::from_millis(sync_interval_ms),
            durability: match file.capture.durability.as_deref() {
                None | Some("relaxed") => Durability::Relaxed,
                Some("strict") => Durability::Strict,
                Some(other) => return Err(one_of("capture.durability", "\"relaxed\" or \"strict\"", other)),
            },
            checkpoint_frames,
            wal_bytes_max: (wal_bytes_max > 0).then_some(wal_bytes_max),
        },
        apply: ApplyConfig {
            conflict: match file.apply.conflict.as_deref() {
                None | Some("column") => Conflict::Column,
                Some("row") => Conflict::Row,
                Some(other) => return Err(one_of("apply.conflict", "\"column\" or \"row\"", other)),
            },
            cut_wait: Duration::from_millis(cut_wait_ms),
            conflict_rows_max: file.apply.conflict_rows_max.unwrap_or(CONFLICT_ROWS_MAX),
        },
        tables: args.tables.or(file.tables.map(OneOrMany::into_vec)).unwrap_or_default(),
        exclude_tables: args.exclude_tables.or(file.exclude_tables.map(OneOrMany::into_vec)).unwrap_or_default(),
        row_filters: row_filters(&args.rows.or(file.rows.map(super::config_file::Rows::into_vec)).unwrap_or_default())?,
        publish,
        apply_changes,
        accept_restored: args.accept_restored.or(file.accept_restored).unwrap_or(false),
        new_shadow: args.new_shadow,
    })
}

/// Reads the row filters of `--where`.
///
/// # Errors
/// [`Failure`] with exit code 2 that says what is wrong where.
pub(super) fn row_filters(texts: &[String]) -> Result<RowFilters, Failure> {
    // A variable holds several with semicolons between.
    let mut given = Vec::new();
    for text in texts {
        let ends = Tokens::new(text).filter(|(_, token)| *token == ";").map(|(offset, _)| offset);
        let mut start = 0;
        for end in ends.chain([text.len()]) {
            given.extend(text.get(start..end).map(str::trim).filter(|part| !part.is_empty()));
            start = end + 1;
        }
    }
    RowFilters::parse(&given).map_err(|error| Failure::usage(&error).hint(error.hint()))
}

/// Resolves where `subscribe` finds the log.
///
/// # Errors
/// As [`run_config`].
pub fn subscribe_address(args: SubscribeArgs, env: &dyn Fn(&str) -> Option<String>) -> Result<LogAddress, Failure> {
    log_address(args.log, args.config.as_deref(), env)
}

/// Resolves where a command finds the log.
///
/// # Errors
/// As [`run_config`].
pub fn log_address(
    args: LogArgs,
    config: Option<&Path>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<LogAddress, Failure> {
    LogAddress::resolve(args, ConfigFile::load(config, env)?.address)
}

/// Where the log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogAddress {
    /// The server.
    pub nats: NatsConfig,
    /// How many streams there are.
    pub shards: u16,
    /// Subjects are `<subject_prefix>-<shard id>`.
    pub subject_prefix: String,
    /// Streams are `<stream_prefix>-<shards>-<shard id>`.
    pub stream_prefix: String,
}

impl LogAddress {
    fn resolve(args: LogArgs, file: AddressFile) -> Result<LogAddress, Failure> {
        let shards = args.shards.or(file.shards).unwrap_or(SHARDS);
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(bad(
                format!("shards must be from 1 to {SHARDS_MAX}, not {shards}"),
                "use the number that the other nodes use",
            ));
        }
        let nats = NatsConfig {
            urls: args.nats_url.or(file.nats_url.map(OneOrMany::into_vec)).unwrap_or_default(),
            user: args.nats_user.or(file.nats_user),
            password: args.nats_password.or(file.nats_password).map(Secret),
            token: args.nats_token.or(file.nats_token).map(Secret),
            nkey_file: args.nats_nkey_file.or(file.nats_nkey_file),
            creds_file: args.nats_creds_file.or(file.nats_creds_file),
            ca_file: args.nats_ca_file.or(file.nats_ca_file),
            cert_file: args.nats_cert_file.or(file.nats_cert_file),
            key_file: args.nats_key_file.or(file.nats_key_file),
        };
        if nats.urls.iter().any(|url| url.trim().is_empty()) {
            return Err(bad("nats_url holds an empty address", "write it as nats://host:4222"));
        }
        pair("nats_user", nats.user.is_some(), "nats_password", nats.password.is_some())?;
        pair("nats_cert_file", nats.cert_file.is_some(), "nats_key_file", nats.key_file.is_some())?;
        let ways = [
            ("nats_user", nats.user.is_some()),
            ("nats_token", nats.token.is_some()),
            ("nats_nkey_file", nats.nkey_file.is_some()),
            ("nats_creds_file", nats.creds_file.is_some()),
        ];
        let given: Vec<&str> = ways.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if let [first, second, ..] = given.as_slice() {
            return Err(bad(
                format!("{first} and {second} cannot be used together"),
                "keep the one that the server asks for",
            ));
        }
        let subject_prefix = args.subject_prefix.or(file.subject_prefix).unwrap_or_else(|| SUBJECT_PREFIX.to_owned());
        let stream_prefix = args.stream_prefix.or(file.stream_prefix).unwrap_or_else(|| STREAM_PREFIX.to_owned());
        name("subject_prefix", &subject_prefix, ".")?;
        name("stream_prefix", &stream_prefix, "")?;
        Ok(LogAddress { nats, shards, subject_prefix, stream_prefix })
    }
}

/// The part of the file that says where the log is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct AddressFile {
    pub(super) nats_url: Option<OneOrMany>,
    pub(super) nats_user: Option<String>,
    pub(super) nats_password: Option<String>,
    pub(super) nats_token: Option<String>,
    pub(super) nats_nkey_file: Option<PathBuf>,
    pub(super) nats_creds_file: Option<PathBuf>,
    pub(super) nats_ca_file: Option<PathBuf>,
    pub(super) nats_cert_file: Option<PathBuf>,
    pub(super) nats_key_file: Option<PathBuf>,
    pub(super) shards: Option<u16>,
    pub(super) subject_prefix: Option<String>,
    pub(super) stream_prefix: Option<String>,
}

fn bad(message: impl Into<String>, hint: &str) -> Failure {
    Failure::usage(message.into()).hint(hint)
}

fn positive(path: &str, value: u64) -> Result<(), Failure> {
    if value > 0 { Ok(()) } else { Err(bad(format!("{path} must be greater than 0"), "leave it out for the default")) }
}

fn one_of(path: &str, allowed: &str, given: &str) -> Failure {
    bad(format!("{path} must be {allowed}, not {given:?}"), "leave it out for the default")
}

fn pair(first: &str, has_first: bool, second: &str, has_second: bool) -> Result<(), Failure> {
    match (has_first, has_second) {
        (true, false) => Err(bad(format!("{first} is given without {second}"), "give both or neither")),
        (false, true) => Err(bad(format!("{second} is given without {first}"), "give both or neither")),
        _ => Ok(()),
    }
}

/// Stream and subject names: letters, digits, `-`, `_` and what `also` adds. NATS gives `*`, `>` and spaces a meaning of their own.
fn name(path: &str, value: &str, also: &str) -> Result<(), Failure> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || also.contains(c);
    let dots = value.split('.').all(|token| !token.is_empty());
    if !value.is_empty() && value.chars().all(fits) && dots {
        return Ok(());
    }
    Err(bad(format!("{path} {value:?} is not a name that NATS takes"), "use letters, digits, - and _"))
}
