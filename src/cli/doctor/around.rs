//! What is around the database: the disk for the state directory, and the server.

use std::path::Path;

use super::{DoctorArgs, Failure, Finding, Level};
use crate::cli::config::log_address;
use crate::cli::output::bytes_text;
use crate::log::ServerFacts;
use crate::node::ask_server;

/// What the state directory takes beside a copy of the database: the journal, the state, and room to breathe.
const STATE_BYTES: u64 = 256 << 20;

/// Whether the shadow has room.
pub(super) fn disk(state_dir: &Path, database_bytes: u64, findings: &mut Vec<Finding>) {
    if state_dir.join("shadow.db").exists() {
        return;
    }
    // The directory is made at the first attach.
    let Some(place) = state_dir.ancestors().find(|place| place.exists()) else { return };
    let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
    let Ok(room) = rustix::fs::statvfs(place) else { return };
    let (free, wanted) = (room.f_bavail.saturating_mul(room.f_frsize), database_bytes.saturating_add(STATE_BYTES));
    if free < wanted {
        findings.push(Finding::new(
            Level::Warning,
            "disk-space",
            format!("{} are free for {}, and {} are wanted", bytes_text(free), state_dir.display(), bytes_text(wanted)),
            "the state directory holds the shadow, a copy of the database, and what waits to be published",
            "make room, or put the state directory elsewhere with --state-dir",
        ));
    }
}

const SYNC_WHY: &str = "a NATS server by default acknowledges a message before it is on disk: if its machine loses power, acknowledged messages can be \
     gone, and the shard stops with an alarm";
const SYNC_REMEDY: &str = "set sync_interval: always in the jetstream section of the server's configuration, or run three servers and --log-replicas 3";

/// What a server says of itself.
pub(super) fn server(
    args: DoctorArgs,
    env: &dyn Fn(&str) -> Option<String>,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    let is_named = args.log.nats_url.is_some() || args.config.is_some();
    if !is_named {
        findings.push(Finding::new(
            Level::Note,
            "nats-not-asked",
            "no server was asked: --nats-url names none",
            "with no server on this machine woodchuck starts one that syncs before it acknowledges; others by default do not",
            SYNC_REMEDY,
        ));
        return Ok(());
    }
    let port = args.nats_monitor_port;
    let address = log_address(args.log, args.config.as_deref(), env)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start: {error}")))?;
    let answer = runtime.block_on(ask_server(&address.nats, port));
    runtime.shutdown_background();
    let server = match answer {
        Ok(server) => server,
        Err(error) => {
            let failure = Failure::from(error);
            findings.push(Finding::new(
                Level::Warning,
                "nats-unreachable",
                failure.message,
                "changes wait in the outbox until it answers",
                failure.hint.unwrap_or_default(),
            ));
            return Ok(());
        }
    };
    if !server.has_jetstream {
        findings.push(Finding::new(
            Level::Refused,
            "no-jetstream",
            format!("the NATS server {} does not offer JetStream to us", server.version),
            "the log is made of JetStream streams",
            "start it with -js, or enable JetStream for this account",
        ));
        return Ok(());
    }
    match syncs_always(&server) {
        Some(true) => {}
        Some(false) => findings.push(Finding::new(
            Level::Warning,
            "nats-sync",
            format!("the NATS server {} acknowledges before it syncs", server.version),
            SYNC_WHY,
            SYNC_REMEDY,
        )),
        None => findings.push(Finding::new(
            Level::Note,
            "nats-sync-unknown",
            format!(
                "the NATS server {} does not tell on port {port} whether it syncs before it acknowledges",
                server.version
            ),
            SYNC_WHY,
            SYNC_REMEDY,
        )),
    }
    Ok(())
}

/// What the monitoring port of this very server says; `None` when it was another's, or did not answer.
fn syncs_always(server: &ServerFacts) -> Option<bool> {
    let answers = server.monitoring.iter().filter_map(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let mut own = answers.filter(|answer| answer.pointer("/server_id").and_then(|id| id.as_str()) == Some(&*server.id));
    let configuration = own.find_map(|answer| answer.pointer("/config").cloned())?;
    Some(configuration.pointer("/sync_always").and_then(serde_json::Value::as_bool).unwrap_or(false))
}
