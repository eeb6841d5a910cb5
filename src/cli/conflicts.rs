//! `conflicts`: what concurrent changes overrode on a node.

use std::io::Write;

use super::args::{ConflictsArgs, ReportFormat};
use super::exit::Failure;
use super::output::{Style, conflict_json, conflict_pretty};
use crate::apply::{Conflict, State};

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
    let style = Style::of_stdout();
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    let (mut out, mut count, mut written) = (Vec::new(), 0_u64, Ok(()));
    let each = |conflict: &Conflict| {
        out.clear();
        match args.format {
            ReportFormat::Json => conflict_json(&mut out, conflict),
            ReportFormat::Pretty => conflict_pretty(&mut out, conflict, style),
        }
        count += 1;
        written = stdout.write_all(&out);
        written.is_ok()
    };
    state.each_conflict(each).map_err(|error| Failure::of(&error))?;
    if count == 0 && args.format == ReportFormat::Pretty {
        written = stdout.write_all(b"no conflicts\n");
    }
    written.and_then(|()| stdout.flush()).map_err(|error| Failure::output(&error))
}
