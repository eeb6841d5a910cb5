//! How to reach the server, and which streams to use.

use std::path::PathBuf;

use super::super::error::ConnectError;

/// How to reach and convince a NATS server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatsOptions {
    /// Addresses of the server or of several of a cluster. `tls://…` asks for TLS.
    pub urls: Vec<String>,
    /// What the server shows in its list of connections.
    pub name: String,
    /// Certificates to trust, instead of the system's. Also turns TLS on.
    pub tls_ca: Option<PathBuf>,
    /// Our certificate and its key. Also turns TLS on.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// User and password.
    pub user: Option<(String, String)>,
    /// A token.
    pub token: Option<String>,
    /// The seed of an nkey.
    pub nkey_seed: Option<String>,
    /// A credentials file: JWT and seed.
    pub creds_file: Option<PathBuf>,
}

/// Which streams a log has. All nodes must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptions {
    /// Streams are named `<stream_prefix>-<shard_count>-<shard>`.
    pub stream_prefix: String,
    /// Subjects are named `<subject_prefix>-<shard>`.
    pub subject_prefix: String,
    /// Number of shards, at least 1.
    pub shard_count: u16,
    /// Messages that each stream keeps; older ones are dropped, and nodes that still need them catch up from a snapshot.
    pub max_log_entries: u32,
    /// Copies of each stream, 1 to 5, on as many servers of a cluster.
    pub replica_count: u8,
    /// How concurrent changes of a row are merged, `column` or `row`: nodes that did not do it alike would differ. Empty for who merges none.
    pub conflict: &'static str,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions {
            stream_prefix: "woodchuck-changes".to_owned(),
            subject_prefix: "woodchuck-change-log".to_owned(),
            shard_count: 8,
            // A node can be away for some thousand rounds; a snapshot is taken each half of it.
            max_log_entries: 1024,
            replica_count: 1,
            conflict: "",
        }
    }
}

impl StreamOptions {
    /// Checks what the server would refuse later, in words of its own.
    pub(super) fn check(&self) -> Result<(), ConnectError> {
        /// The server stores streams in files of their name; shard numbers need room as well.
        const PREFIX_BYTES_MAX: usize = 200;
        let option = |option, what: &str| ConnectError::Option { option, what: what.to_owned() };
        let bad = |name: &str, more: &[char]| {
            name.is_empty()
                || name.len() > PREFIX_BYTES_MAX
                || name.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>' | '/' | '\\'))
                || name.contains(more)
        };
        if bad(&self.stream_prefix, &['.']) {
            return Err(option("stream-prefix", "it must have 1 to 200 bytes and no space, '.', '*', '>' or slash"));
        }
        if bad(&self.subject_prefix, &[]) || self.subject_prefix.split('.').any(str::is_empty) {
            return Err(option(
                "subject-prefix",
                "it must have 1 to 200 bytes, no empty part between dots and no space, '*', '>' or slash",
            ));
        }
        if self.shard_count == 0 {
            return Err(option("shards", "it must be at least 1"));
        }
        if self.max_log_entries < 2 {
            return Err(option("max-log-entries", "it must be at least 2"));
        }
        if !(1..=5).contains(&self.replica_count) {
            return Err(option("log-replicas", "it must be 1 to 5"));
        }
        Ok(())
    }
}
