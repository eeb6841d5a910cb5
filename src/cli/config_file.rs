//! The TOML file.
//!
//! It is read key by key, so that a complaint names the key by its full path; what is left over is unknown and an error.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::config::AddressFile;
use super::exit::Failure;

/// Everything that a file, and the variables of its sections, may say. Absent means: the default.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ConfigFile {
    pub(super) db_path: Option<PathBuf>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) node_id: Option<u64>,
    pub(super) address: AddressFile,
    pub(super) max_log_entries: Option<u64>,
    pub(super) log_replicas: Option<u8>,
    pub(super) compress: Option<bool>,
    pub(super) tables: Option<OneOrMany>,
    pub(super) exclude_tables: Option<OneOrMany>,
    pub(super) rows: Option<Rows>,
    pub(super) no_publish: Option<bool>,
    pub(super) no_apply: Option<bool>,
    pub(super) accept_restored: Option<bool>,
    pub(super) capture: CaptureSection,
    pub(super) log: LogSection,
    pub(super) apply: ApplySection,
}

/// `[capture]`
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct CaptureSection {
    pub(super) poll_interval_ms: Option<u64>,
    pub(super) sync_interval_ms: Option<u64>,
    pub(super) durability: Option<String>,
    pub(super) checkpoint_frames: Option<u32>,
    pub(super) wal_bytes_max: Option<u64>,
}

/// `[log]`
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct LogSection {
    pub(super) before_images: Option<bool>,
    pub(super) outbox_bytes_max: Option<u64>,
    pub(super) snapshot_interval_s: Option<u64>,
}

/// `[apply]`
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ApplySection {
    pub(super) conflict: Option<String>,
    pub(super) cut_wait_ms: Option<u64>,
    pub(super) conflict_rows_max: Option<u64>,
}

/// A list, for which a single string will do.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
            OneOrMany::Many(list) => list,
        }
    }
}

/// Row filters: an expression has commas of its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum Rows {
    One(String),
    Many(Vec<String>),
}

impl Rows {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Rows::One(text) => vec![text],
            Rows::Many(list) => list,
        }
    }
}

impl ConfigFile {
    /// Reads the file, if one is given, and puts the variables of its sections over it.
    pub(super) fn load(path: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<ConfigFile, Failure> {
        let (table, source) = match path {
            None => (toml::Table::new(), "the environment".to_owned()),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Failure::usage(format_args!("cannot read {}: {error}", path.display()))
                        .hint("check the path after --config")
                })?;
                let table = text.parse::<toml::Table>().map_err(|error| syntax(path, &text, &error))?;
                (table, path.display().to_string())
            }
        };
        ConfigFile::read(Keys { table, prefix: String::new(), source, env })
    }

    fn read(mut keys: Keys<'_>) -> Result<ConfigFile, Failure> {
        let mut capture = keys.section("capture")?;
        let mut log = keys.section("log")?;
        let mut apply = keys.section("apply")?;
        let file = ConfigFile {
            db_path: keys.take("db_path")?,
            state_dir: keys.take("state_dir")?,
            node_id: keys.take("node_id")?,
            address: AddressFile {
                nats_url: keys.take("nats_url")?,
                nats_user: keys.take("nats_user")?,
                nats_password: keys.take("nats_password")?,
                nats_token: keys.take("nats_token")?,
                nats_nkey_file: keys.take("nats_nkey_file")?,
                nats_creds_file: keys.take("nats_creds_file")?,
                nats_ca_file: keys.take("nats_ca_file")?,
                nats_cert_file: keys.take("nats_cert_file")?,
                nats_key_file: keys.take("nats_key_file")?,
                shards: keys.take("shards")?,
                subject_prefix: keys.take("subject_prefix")?,
                stream_prefix: keys.take("stream_prefix")?,
            },
            max_log_entries: keys.take("max_log_entries")?,
            log_replicas: keys.take("log_replicas")?,
            compress: keys.take("compress")?,
            tables: keys.take("tables")?,
            exclude_tables: keys.take("exclude_tables")?,
            rows: keys.take("where")?,
            no_publish: keys.take("no_publish")?,
            no_apply: keys.take("no_apply")?,
            accept_restored: keys.take("accept_restored")?,
            capture: CaptureSection {
                poll_interval_ms: capture.take_or_env("poll_interval_ms")?,
                sync_interval_ms: capture.take_or_env("sync_interval_ms")?,
                durability: capture.take_or_env("durability")?,
                checkpoint_frames: capture.take_or_env("checkpoint_frames")?,
                wal_bytes_max: capture.take_or_env("wal_bytes_max")?,
            },
            log: LogSection {
                before_images: log.take_or_env("before_images")?,
                outbox_bytes_max: log.take_or_env("outbox_bytes_max")?,
                snapshot_interval_s: log.take_or_env("snapshot_interval_s")?,
            },
            apply: ApplySection {
                conflict: apply.take_or_env("conflict")?,
                cut_wait_ms: apply.take_or_env("cut_wait_ms")?,
                conflict_rows_max: apply.take_or_env("conflict_rows_max")?,
            },
        };
        for rest in [keys, capture, log, apply] {
            rest.finish()?;
        }
        Ok(file)
    }
}

/// The keys of the file, or of one section of it, that have not been read yet.
struct Keys<'a> {
    table: toml::Table,
    /// `""`, or the section's name with a dot.
    prefix: String,
    source: String,
    env: &'a dyn Fn(&str) -> Option<String>,
}

impl<'a> Keys<'a> {
    fn section(&mut self, name: &str) -> Result<Keys<'a>, Failure> {
        let table = match self.table.remove(name) {
            None => toml::Table::new(),
            Some(toml::Value::Table(table)) => table,
            Some(_) => {
                return Err(Failure::usage(format_args!("{name} in {} is not a section", self.source))
                    .hint(format_args!("write its keys under a line [{name}]")));
            }
        };
        Ok(Keys { table, prefix: format!("{name}."), source: self.source.clone(), env: self.env })
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.table.remove(key) else { return Ok(None) };
        let shown = value.to_string();
        value.try_into().map(Some).map_err(|error: toml::de::Error| {
            let prefix = &self.prefix;
            Failure::usage(format_args!("{prefix}{key} in {}: {} (it is {shown})", self.source, error.message()))
                .hint(format_args!("correct {prefix}{key}, or leave it out for the default"))
        })
    }

    /// A variable is text: taken as a number or a boolean where it reads like one, else as a string.
    fn take_or_env<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Failure> {
        let path = format!("{}{key}", self.prefix);
        let variable = format!("WOODCHUCK_{}", path.replace('.', "_").to_ascii_uppercase());
        let Some(text) = (self.env)(&variable) else { return self.take(key) };
        self.table.remove(key);
        let text = text.trim();
        let value = match (text.parse::<i64>(), text.parse::<bool>()) {
            (Ok(number), _) => toml::Value::Integer(number),
            (_, Ok(boolean)) => toml::Value::Boolean(boolean),
            _ => toml::Value::String(text.to_owned()),
        };
        value.try_into().map(Some).map_err(|error: toml::de::Error| {
            Failure::usage(format_args!("{path} in {variable}: {} (it is {text:?})", error.message()))
                .hint(format_args!("correct {variable}, or unset it"))
        })
    }

    fn finish(self) -> Result<(), Failure> {
        match self.table.keys().next() {
            None => Ok(()),
            Some(key) => Err(Failure::usage(format_args!("unknown key {}{key} in {}", self.prefix, self.source))
                .hint("keys are the options of `woodchuck run --help`, with underscores for dashes")),
        }
    }
}

fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let offset = error.span().map_or(0, |span| span.start);
    let line_no = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    Failure::usage(format_args!("{} is not TOML at line {line_no}: {}", path.display(), error.message()))
        .hint("a line is `key = value`; strings stand in double quotes")
}
