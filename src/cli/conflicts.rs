//! `conflicts`: what concurrent changes overrode on a node.

use std::io::Write;

use super::args::{ConflictsArgs, ReportFormat};
use super::exit::Failure;
use super::output::{Style, conflict_json, conflict_pretty};
use crate::apply::State;

/// More than a person reads, and all that the journal keeps.
const CONFLICTS_SHOWN_MAX: u32 = 10_000;

/// Prints the conflict journal of a node, oldest first.
///
/// # Errors
/// [`Failure`] when no node ever ran on the state directory, or its state cannot be read.
pub(super) fn conflicts(args: &ConflictsArgs) -> Result<(), Failure> {
    let path = args.node.state_dir().join("state.db");
    if !path.exists() {
        return Err(Failure::failed(format_args!("no node has run on {}", args.node.state_dir().display()))
            .hint("check --db-path and --state-dir"));
    }
    let state = State::look(&path).map_err(|error| Failure::of(&error).hint("check the path and its permissions"))?;
    let conflicts = state.conflicts(CONFLICTS_SHOWN_MAX).map_err(|error| Failure::of(&error))?;
    let style = Style::of_stdout();
    let mut out = Vec::new();
    for conflict in conflicts.iter().rev() {
        match args.format {
            ReportFormat::Json => conflict_json(&mut out, conflict),
            ReportFormat::Pretty => conflict_pretty(&mut out, conflict, style),
        }
    }
    if conflicts.is_empty() && args.format == ReportFormat::Pretty {
        out.extend_from_slice(b"no conflicts\n");
    }
    std::io::stdout().write_all(&out).map_err(|error| Failure::output(&error))
}
