//! `verify`: whether all nodes hold the same rows.

use std::io::Write;

use super::args::{ReportFormat, VerifyArgs};
use super::exit::{Exit, Failure};
use super::output::{Style, verify_json, verify_pretty};
use crate::node::{ControlAnswer, ControlQuestion, VerifyOptions, ask_node};

/// How long a comparison may take beside the reading: reaching one place of the log, and reading again what differs.
const BESIDE_READING: std::time::Duration = std::time::Duration::from_secs(60);

/// Compares the nodes and prints what came of it.
///
/// # Errors
/// [`Failure`]: with exit code 1 when rows differ, with 3 when not all could be compared and nothing differs; when no node runs.
pub(super) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    super::config::row_filters(&args.rows)?;
    let question = ControlQuestion::Verify(VerifyOptions {
        tables: args.tables.clone(),
        exclude_tables: args.exclude_tables.clone(),
        rows: args.rows.clone(),
        nodes: args.nodes.clone(),
        within_ms: u64::try_from(args.within.as_millis()).unwrap_or(u64::MAX),
    });
    let within = args.within.saturating_mul(4).saturating_add(BESIDE_READING);
    let report = match ask_node(&args.which.state_dir(), &question, within)? {
        ControlAnswer::Verified(report) => report,
        ControlAnswer::Failed { what } => {
            return Err(Failure::failed(format_args!("nothing could be compared: {what}"))
                .hint("look at woodchuck status, and try again"));
        }
        ControlAnswer::Applied { .. } | ControlAnswer::Late { .. } => {
            return Err(Failure::failed("the node answers another question"));
        }
    };
    let mut out = Vec::new();
    match args.format {
        ReportFormat::Json => verify_json(&mut out, &report),
        ReportFormat::Pretty => verify_pretty(&mut out, &report, Style::of_stdout()),
    }
    std::io::stdout().write_all(&out).map_err(|error| Failure::output(&error))?;
    if report.is_different() {
        let tables = report.tables.iter().filter(|table| table.is_different()).map(|table| table.table.as_str());
        let tables: Vec<&str> = tables.collect();
        return Err(Failure::failed(format_args!("nodes differ in {}", tables.join(", "))).hint(
            "write the row that is right on any node; make columns that differ the same by a rebuild on one; or begin anew with what the others have: woodchuck restore --replace",
        ));
    }
    if !report.is_conclusive() {
        let failure = Failure::failed("not everything could be compared; what was is equal");
        return Err(Failure { exit: Exit::Refused, ..failure }.hint(
            "start the nodes that are missing or name those to compare (--nodes); give more time (--within) or fewer --tables",
        ));
    }
    Ok(())
}
