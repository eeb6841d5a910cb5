//! `snapshot` and `restore`: what is in the snapshot store, and a database made of it.

use std::future::Future;
use std::io::Write;

use serde_json::json;

use super::args::{ReportFormat, RestoreArgs, SnapshotCommand, SnapshotListArgs, SnapshotSaveArgs};
use super::config::{LogAddress, log_address};
use super::exit::Failure;
use super::output::{Bar, bytes_text};
use crate::log::{SnapshotInfo, StreamOptions};
use crate::node::{NodeError, Restore, ask_for_snapshot, is_running, list_snapshots};
use crate::schema::RowFilters;

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Runs a command of `snapshot`.
///
/// # Errors
/// [`Failure`].
pub(super) fn snapshot(command: SnapshotCommand, env: Variables<'_>) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save(args) => save(*args, env),
        SnapshotCommand::List(args) => list(*args, env),
    }
}

fn streams_of(address: &LogAddress) -> StreamOptions {
    StreamOptions {
        stream_prefix: address.stream_prefix.clone(),
        subject_prefix: address.subject_prefix.clone(),
        shard_count: address.shards,
        ..StreamOptions::default()
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, NodeError>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start: {error}")))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done.map_err(Failure::from)
}

/// Has a running node make a snapshot, and waits for it.
fn save(args: SnapshotSaveArgs, env: Variables<'_>) -> Result<(), Failure> {
    if let Some(db_path) = &args.db_path {
        let state_dir = args.state_dir.clone().unwrap_or_else(|| super::config::default_state_dir(db_path));
        if !is_running(&state_dir).unwrap_or(false) {
            return Err(Failure::failed(format_args!("no woodchuck runs on {}", state_dir.display()))
                .hint("start it: woodchuck run; a snapshot is made by a running node"));
        }
    }
    let address = log_address(args.log, args.config.as_deref(), env)?;
    let streams = streams_of(&address);
    let bar = Bar::new();
    let made = block_on(ask_for_snapshot(&address.nats, streams, &bar.tell()));
    drop(bar);
    match made? {
        Some(info) => say(&pretty(&info)),
        None => Err(Failure::failed("no node answered")
            .hint("start one with this --nats-url, --shards and --subject-prefix: a snapshot is made by a running node that publishes and applies")),
    }
}

fn list(args: SnapshotListArgs, env: Variables<'_>) -> Result<(), Failure> {
    let address = log_address(args.log, args.config.as_deref(), env)?;
    let snapshots = block_on(list_snapshots(&address.nats, streams_of(&address)))?;
    let lines: Vec<String> = match args.format {
        ReportFormat::Json => snapshots.iter().map(json_line).collect(),
        ReportFormat::Pretty if snapshots.is_empty() => vec!["no snapshots\n".to_owned()],
        ReportFormat::Pretty => snapshots.iter().map(pretty).collect(),
    };
    say(&lines.concat())
}

/// Makes a database, and the state directory of its node, from the newest snapshot.
///
/// # Errors
/// [`Failure`]; refuses what would lose somebody's changes.
pub(super) fn restore(args: RestoreArgs, verbose: bool, env: Variables<'_>) -> Result<(), Failure> {
    super::run::start_logging(verbose);
    let address = log_address(args.log, args.config.as_deref(), env)?;
    let state_dir = args.node.state_dir();
    let what = Restore {
        rows: RowFilters::default(),
        db_path: args.node.db_path.clone(),
        state_dir,
        streams: streams_of(&address),
        nats: address.nats,
        replace: args.replace,
        tables: None,
    };
    let bar = Bar::new();
    let info = block_on(crate::node::restore(what, &bar.tell()));
    drop(bar);
    let info = info?;
    let shown = args.node.db_path.display();
    say(&format!("restored {shown} from {}", pretty(&info)))
}

fn say(text: &str) -> Result<(), Failure> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::output(&error))
}

fn pretty(info: &SnapshotInfo) -> String {
    let positions: Vec<String> = info.positions.iter().map(|(shard, seq)| format!("{}:{}", shard.0, seq.0)).collect();
    let tables = if info.tables.is_empty() { String::new() } else { format!(", {}", info.tables) };
    format!(
        "snapshot {} by node {}: {}, {} stored, blake3 {}{tables}, shards at {}\n",
        info.no,
        info.node_id,
        bytes_text(info.database_bytes),
        bytes_text(info.stored_bytes),
        info.blake3.get(..16).unwrap_or(&info.blake3),
        positions.join(" ")
    )
}

fn json_line(info: &SnapshotInfo) -> String {
    let positions: serde_json::Map<String, serde_json::Value> =
        info.positions.iter().map(|(shard, seq)| (shard.0.to_string(), json!(seq.0))).collect();
    let line = json!({
        "no": info.no,
        "node": info.node_id,
        "taken_at_ms": info.taken_at_ms,
        "database_bytes": info.database_bytes,
        "stored_bytes": info.stored_bytes,
        "blake3": info.blake3,
        "tables": info.tables,
        "positions": positions,
    });
    format!("{line}\n")
}
