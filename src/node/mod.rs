//! Layer 6: the daemon. It wires capture, log and apply, owns the runtime and the state directory, and decides what each error means.
//!
//! ```text
//!  database thread: capture ─▶ outbox ─▶ seal ──▶ outgoing ─▶ publisher ══▶ log
//!                   apply ◀── inbox ◀───────────── deliveries ◀─ consumers ◀══╛
//! ```

mod attached;
mod boot;
mod config;
mod control;
mod database;
mod error;
mod inbox;
mod network;
mod patience;
mod place;
mod policy;
mod put_back;
mod report;
mod run;
mod sent;
mod server;
mod snapshot;
mod start;
mod state_dir;
mod status;
mod stepped;
mod verify;
mod waiting;

pub use config::{ApplyConfig, CaptureConfig, Conflict, Durability, LogConfig, NatsConfig, RunConfig, Secret};
pub use control::{ControlAnswer, ControlQuestion, ask_node};
pub use database::Stop;
pub use error::NodeError;
pub use network::{ask_server, connect_log, stream_options};
pub use policy::Verdict;
pub use run::run;
pub use server::DEFAULT_URL;
pub use snapshot::{
    Need, Restore, SnapshotProgress, SnapshotStep, TellSnapshot, ask_for_snapshot, list_snapshots, restore, tell_log,
};
pub use state_dir::is_running;
pub use status::{STATUS_FILE, ShardStatus, Status, read_status};
pub use stepped::SteppedNode;
pub use verify::{DifferingRow, RowThere, TableReport, TableVerdict, VerifyOptions, VerifyReport};
