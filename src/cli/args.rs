//! The command line: every command and option.
//!
//! Options that a configuration file can hold too are `Option`s here: absent means "ask the file, then the default". Variables are read
//! by clap itself, below options and above the file.
// The comments here are the help that people read in a terminal, where <FILE> stands for a file.
#![allow(rustdoc::invalid_html_tags)]

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Replicates SQLite databases by reading their write-ahead log.
///
/// Options can also be given as WOODCHUCK_* variables and, for `run` and `subscribe`, as keys of a TOML file. An option on the command
/// line wins over a variable, a variable over the file.
#[derive(Debug, Parser)]
#[command(
    name = "woodchuck",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    subcommand_required = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Say more about what happens, on stderr
    #[arg(long, global = true, env = "WOODCHUCK_VERBOSE", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true, value_name = "BOOL")]
    pub verbose: Option<bool>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replicate a database: publish its changes, apply those of the other nodes
    Run(Box<RunArgs>),
    /// Show the row changes of a live database as they are committed; needs no NATS
    Tail(TailArgs),
    /// Say what to expect of a database before it is attached; writes nothing
    Doctor(Box<DoctorArgs>),
    /// Look into a database and its WAL, live or a copy; never writes, never locks
    Inspect(InspectArgs),
    /// Show what is on the log, decoded
    Subscribe(Box<SubscribeArgs>),
    /// Show how a node is doing: positions, backlog, lag, WAL size, last error
    Status(StatusArgs),
    /// List changes that lost against a concurrent one, with both versions
    Conflicts(ConflictsArgs),
    /// Make a snapshot of what the log holds, or list those that there are
    Snapshot {
        /// What to do.
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Make a database and its node's state directory from the newest snapshot
    Restore(Box<RestoreArgs>),
    /// Wait until everything committed here so far is applied on other nodes
    Wait(WaitArgs),
    /// Compare the databases of all nodes at one position of the log, and name what differs
    Verify(VerifyArgs),
    /// Remove a node's state directory, and nothing else
    Cleanup(CleanupArgs),
}

/// How changes are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Pretty,
    /// One JSON object a line
    Json,
    /// A script that repeats the changes
    Sql,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people
    Pretty,
    /// JSON
    Json,
}

/// How a node's status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// For people
    Pretty,
    /// JSON
    Json,
    /// Metrics, in the text format of Prometheus
    Prometheus,
}

/// What `inspect` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// The file, its WAL and how much changed in which table
    Summary,
    /// One line for each frame of the WAL
    Frames,
    /// One line for each committed transaction
    Transactions,
    /// The row changes of every committed transaction
    Rows,
    /// The tables, indexes, views and triggers
    Schema,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The database to replicate
    #[arg(long, env = "WOODCHUCK_DB_PATH", value_name = "FILE")]
    pub db_path: Option<PathBuf>,
    /// This node's number, different on every node [default: random, kept in the state directory]
    #[arg(long, env = "WOODCHUCK_NODE_ID", value_name = "N")]
    pub node_id: Option<u64>,
    /// Where our own state lives [default: <db-path>-woodchuck]
    #[arg(long, env = "WOODCHUCK_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The server and the streams.
    #[command(flatten)]
    pub log: LogArgs,
    /// Messages that each stream keeps [default: 1024]
    #[arg(long, env = "WOODCHUCK_MAX_LOG_ENTRIES", value_name = "N")]
    pub max_log_entries: Option<u64>,
    /// Copies of each stream that the servers keep, 1 to 5 [default: 1]
    #[arg(long, env = "WOODCHUCK_LOG_REPLICAS", value_name = "N")]
    pub log_replicas: Option<u8>,
    /// Compress messages
    #[arg(long, env = "WOODCHUCK_COMPRESS", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true, value_name = "BOOL")]
    pub compress: Option<bool>,
    /// Replicate only tables that match (*, ?, [a-z]; without case)
    #[arg(long, env = "WOODCHUCK_TABLES", value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    pub tables: Option<Vec<String>>,
    /// Leave these tables out
    #[arg(long, env = "WOODCHUCK_EXCLUDE_TABLES", value_name = "GLOB", num_args = 1.., value_delimiter = ',')]
    pub exclude_tables: Option<Vec<String>>,
    /// Replicate only rows that pass, 'table: expression'; a row that leaves is deleted elsewhere; may be repeated
    #[arg(long = "where", env = "WOODCHUCK_WHERE", value_name = "TABLE: EXPR")]
    pub rows: Option<Vec<String>>,
    /// Only receive: local changes are not published
    #[arg(long, env = "WOODCHUCK_NO_PUBLISH", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true, value_name = "BOOL")]
    pub no_publish: Option<bool>,
    /// Only send: other nodes' changes are not applied
    #[arg(long, env = "WOODCHUCK_NO_APPLY", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true, value_name = "BOOL")]
    pub no_apply: Option<bool>,
    /// Take a database that was restored from a backup as it is, even if that deletes much
    #[arg(long, env = "WOODCHUCK_ACCEPT_RESTORED", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true, value_name = "BOOL")]
    pub accept_restored: Option<bool>,
    /// Make the shadow anew if it is lost or damaged: the outbox is published, what changed while nobody followed is not found
    #[arg(long)]
    pub new_shadow: bool,
    /// Read options from this TOML file
    #[arg(long, env = "WOODCHUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How to find the log: `run` and `subscribe` share these.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// NATS servers, separated by commas [default: nats://127.0.0.1:4222]
    #[arg(long, env = "WOODCHUCK_NATS_URL", value_name = "URL", value_delimiter = ',')]
    pub nats_url: Option<Vec<String>>,
    /// User name for NATS
    #[arg(long, env = "WOODCHUCK_NATS_USER", value_name = "NAME")]
    pub nats_user: Option<String>,
    /// Password for NATS; better given as a variable, which other users of the machine cannot see
    #[arg(long, env = "WOODCHUCK_NATS_PASSWORD", value_name = "WORD", hide_env_values = true)]
    pub nats_password: Option<String>,
    /// Token for NATS; better given as a variable
    #[arg(long, env = "WOODCHUCK_NATS_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub nats_token: Option<String>,
    /// File with an nkey seed
    #[arg(long, env = "WOODCHUCK_NATS_NKEY_FILE", value_name = "FILE")]
    pub nats_nkey_file: Option<PathBuf>,
    /// NATS credentials file
    #[arg(long, env = "WOODCHUCK_NATS_CREDS_FILE", value_name = "FILE")]
    pub nats_creds_file: Option<PathBuf>,
    /// Certificates (PEM) to check the server with
    #[arg(long, env = "WOODCHUCK_NATS_CA_FILE", value_name = "FILE")]
    pub nats_ca_file: Option<PathBuf>,
    /// Our certificate (PEM)
    #[arg(long, env = "WOODCHUCK_NATS_CERT_FILE", value_name = "FILE")]
    pub nats_cert_file: Option<PathBuf>,
    /// The private key (PEM) of our certificate
    #[arg(long, env = "WOODCHUCK_NATS_KEY_FILE", value_name = "FILE")]
    pub nats_key_file: Option<PathBuf>,
    /// Streams that changes are spread over; the same on all nodes [default: 8]
    #[arg(long, env = "WOODCHUCK_SHARDS", value_name = "N")]
    pub shards: Option<u16>,
    /// Subjects are <prefix>-<shard> [default: woodchuck-change-log]
    #[arg(long, env = "WOODCHUCK_SUBJECT_PREFIX", value_name = "NAME")]
    pub subject_prefix: Option<String>,
    /// Streams are <prefix>-<shards>-<shard> [default: woodchuck-changes]
    #[arg(long, env = "WOODCHUCK_STREAM_PREFIX", value_name = "NAME")]
    pub stream_prefix: Option<String>,
}

/// Options of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The database
    #[arg(value_name = "FILE")]
    pub database: PathBuf,
    /// How to print changes
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    pub format: Format,
    /// Show only tables that match (*, ?, [a-z]; without case); may be repeated
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub tables: Vec<String>,
    /// Leave these tables out; may be repeated
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub exclude_tables: Vec<String>,
    /// Show only rows that pass, 'table: expression'; a row that leaves is a delete; may be repeated
    #[arg(long = "where", value_name = "TABLE: EXPR")]
    pub rows: Vec<String>,
    /// Follow by the bytes of the files alone, without SQLite and without a lock: beside an application that holds the database alone
    /// (locking_mode=EXCLUSIVE), or on media that cannot be written. What may be missing is said
    #[arg(long, conflicts_with = "once")]
    pub raw: bool,
    /// Show what was committed since the last call with the same --state-dir, and end
    #[arg(long, requires = "state_dir")]
    pub once: bool,
    /// Where --once keeps its place
    #[arg(long, value_name = "DIR", requires = "once")]
    pub state_dir: Option<PathBuf>,
}

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The database
    #[arg(value_name = "FILE")]
    pub database: PathBuf,
    /// Where its state would live [default: <FILE>-woodchuck]
    #[arg(long, env = "WOODCHUCK_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Only one node will write: what matters only with several is a note
    #[arg(long)]
    pub one_writer: bool,
    /// Where the server named by --nats-url can be asked how it syncs: its monitoring port
    #[arg(long, value_name = "PORT", default_value_t = 8222)]
    pub nats_monitor_port: u16,
    /// How to print
    #[arg(long, value_enum, default_value_t = ReportFormat::Pretty)]
    pub format: ReportFormat,
    /// The server and the streams.
    #[command(flatten)]
    pub log: LogArgs,
    /// Read options from this TOML file
    #[arg(long, env = "WOODCHUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The database; not needed with --wal
    #[arg(value_name = "FILE", required_unless_present = "wal")]
    pub database: Option<PathBuf>,
    /// The WAL to look into [default: <FILE>-wal, if there is one]
    #[arg(long, value_name = "FILE")]
    pub wal: Option<PathBuf>,
    /// How to print; sql is for rows and schema
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    pub format: Format,
    /// What to show [default: summary; rows with --format sql]
    #[arg(long, value_enum)]
    pub view: Option<View>,
    /// Show only tables that match (*, ?, [a-z]; without case); may be repeated
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub tables: Vec<String>,
    /// Leave these tables out; may be repeated
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub exclude_tables: Vec<String>,
    /// Show only rows that pass, 'table: expression'; a row that leaves is a delete; may be repeated
    #[arg(long = "where", value_name = "TABLE: EXPR")]
    pub rows: Vec<String>,
    /// Show what older generations left in the WAL behind its end, too: frames, transactions and rows
    #[arg(long)]
    pub stale: bool,
    /// Show what the frames behind the last commit would do, too
    #[arg(long)]
    pub uncommitted: bool,
    /// Show the rows of what is in the WAL, and go on as it grows: by its bytes alone, without SQLite and without a lock
    #[arg(long, conflicts_with_all = ["view", "stale", "uncommitted", "row", "page"])]
    pub follow: bool,
    /// Show the history of one row, before and after: users/17, or tags/'a, b',2; the rowid where a table has no key
    #[arg(long, value_name = "TABLE/KEY")]
    pub row: Option<String>,
    /// Show what is on a page, as it is after the last commit: its header, its cells, and the values in them
    #[arg(long, value_name = "N", conflicts_with_all = ["view", "row", "stale", "uncommitted"])]
    pub page: Option<u32>,
    /// Show the page as it was at this frame; 0 is the database file
    #[arg(long, value_name = "N", requires = "page")]
    pub frame: Option<u32>,
}

/// Options of `subscribe`.
#[derive(Debug, Args)]
pub struct SubscribeArgs {
    /// The server and the streams.
    #[command(flatten)]
    pub log: LogArgs,
    /// How to print changes
    #[arg(long, value_enum, default_value_t = ReportFormat::Pretty)]
    pub format: ReportFormat,
    /// Read options from this TOML file
    #[arg(long, env = "WOODCHUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Which node a report is about.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The database of the node
    #[arg(long, env = "WOODCHUCK_DB_PATH", value_name = "FILE", required = true)]
    pub db_path: PathBuf,
    /// The node's state directory [default: <db-path>-woodchuck]
    #[arg(long, env = "WOODCHUCK_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl NodeArgs {
    /// The state directory: the one given, or the one beside the database.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| super::config::default_state_dir(&self.db_path))
    }
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = StatusFormat::Pretty)]
    pub format: StatusFormat,
}

/// Options of `conflicts`.
#[derive(Debug, Args)]
pub struct ConflictsArgs {
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = ReportFormat::Pretty)]
    pub format: ReportFormat,
}

/// Options of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// The commands of `snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Have a running node make a snapshot now, and wait for it
    Save(Box<SnapshotSaveArgs>),
    /// List the snapshots in the store, newest first
    List(Box<SnapshotListArgs>),
}

/// Options of `snapshot save`.
#[derive(Debug, Args)]
pub struct SnapshotSaveArgs {
    /// The server and the streams.
    #[command(flatten)]
    pub log: LogArgs,
    /// Fail unless the node of this database is running
    #[arg(long, env = "WOODCHUCK_DB_PATH", value_name = "FILE")]
    pub db_path: Option<PathBuf>,
    /// Its state directory [default: <db-path>-woodchuck]
    #[arg(long, env = "WOODCHUCK_STATE_DIR", value_name = "DIR", requires = "db_path")]
    pub state_dir: Option<PathBuf>,
    /// Read options from this TOML file
    #[arg(long, env = "WOODCHUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `snapshot list`.
#[derive(Debug, Args)]
pub struct SnapshotListArgs {
    /// The server and the streams.
    #[command(flatten)]
    pub log: LogArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t = ReportFormat::Pretty)]
    pub format: ReportFormat,
    /// Read options from this TOML file
    #[arg(long, env = "WOODCHUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Which node.
    #[command(flatten)]
    pub node: NodeArgs,
    /// The server and the streams.
    #[command(flatten)]
    pub log: LogArgs,
    /// Replace the database that is there; what only it has is lost
    #[arg(long)]
    pub replace: bool,
    /// Read options from this TOML file
    #[arg(long, env = "WOODCHUCK_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Options of `wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Whose commits.
    #[command(flatten)]
    pub which: NodeArgs,
    /// Wait for this node only
    #[arg(long, value_name = "ID")]
    pub node: Option<u64>,
    /// Wait for all nodes that are connected; this is the default
    #[arg(long, conflicts_with = "node")]
    pub all: bool,
    /// How long to wait, such as 300ms, 5s or 2m
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::wait::duration)]
    pub timeout: std::time::Duration,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The node that asks; it compares itself as well.
    #[command(flatten)]
    pub which: NodeArgs,
    /// Compare only tables that match (*, ?, [a-z]; without case); may be repeated
    #[arg(long, value_name = "GLOB")]
    pub tables: Vec<String>,
    /// Leave these tables out; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude_tables: Vec<String>,
    /// Compare only rows that pass, 'table: expression'; may be repeated
    #[arg(long = "where", value_name = "TABLE: EXPR")]
    pub rows: Vec<String>,
    /// Compare these nodes [default: all that are connected, and those miss that have ever written and are not]
    #[arg(long, value_name = "ID,ID…", value_delimiter = ',')]
    pub nodes: Vec<u64>,
    /// How long each node may read, and keep its application's WAL from beginning anew
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = super::wait::duration)]
    pub within: std::time::Duration,
    /// How to print it
    #[arg(long, value_enum, default_value_t = ReportFormat::Pretty)]
    pub format: ReportFormat,
}
