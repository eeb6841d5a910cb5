//! `doctor`: what to expect of a database before the first attach. Reads and asks, and writes nothing.
//!
//! Invariant: the files are read as they are, without SQLite, but for the rows with NULL in a key: those SQLite is asked for, through a
//! connection that cannot write and does not checkpoint, when every plain descriptor but the kept one is closed.

mod around;
mod file;
mod tables;

use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::args::{DoctorArgs, ReportFormat};
use super::exit::{Exit, Failure};
use super::output::printable;

/// What a finding means for whoever wants to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Good to know.
    Note,
    /// Something will cost something: rows, speed, or somebody's time.
    Warning,
    /// `woodchuck run` would refuse.
    Refused,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Refused => "refused",
        }
    }
}

/// One thing that was found.
#[derive(Debug)]
pub(super) struct Finding {
    level: Level,
    /// A word for scripts. It stays the same.
    code: &'static str,
    /// The table that it is about, if it is about one.
    table: Option<String>,
    what: String,
    why: String,
    remedy: String,
}

impl Finding {
    fn new(
        level: Level,
        code: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { level, code, table: None, what: what.into(), why: why.into(), remedy: remedy.into() }
    }

    fn of_table(self, table: &str) -> Finding {
        Finding { table: Some(table.to_owned()), ..self }
    }
}

/// Looks at a database, at the place for the state directory, and at a server if one is named, and prints what it finds.
///
/// # Errors
/// [`Failure`] without a message when something was found: exit code 1 for warnings, 3 for what `woodchuck run` would refuse. With a
/// message when the database cannot be read or an option makes no sense.
pub(super) fn doctor(args: DoctorArgs, env: &dyn Fn(&str) -> Option<String>) -> Result<(), Failure> {
    let (path, format) = (args.database.clone(), args.format);
    let state_dir = args.state_dir.clone().unwrap_or_else(|| super::config::default_state_dir(&path));
    let mut findings = Vec::new();
    let database = file::examine(&path, &mut findings)?;
    if let Some(catalogue) = &database.catalogue {
        tables::examine(catalogue, args.one_writer, &mut findings);
        tables::look_for_null_keys(&database, catalogue, args.one_writer, &mut findings);
    }
    around::disk(&state_dir, database.bytes, &mut findings);
    around::server(args, env, &mut findings)?;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let text = match format {
        ReportFormat::Json => json_text(&path, &findings),
        ReportFormat::Pretty => pretty(&path, &findings),
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Failure::output(&error))?;
    let exit = exit_of(&findings);
    if exit == Exit::Done { Ok(()) } else { Err(Failure { exit, message: String::new(), hint: None }) }
}

fn exit_of(findings: &[Finding]) -> Exit {
    match findings.iter().map(|finding| finding.level).max() {
        None | Some(Level::Note) => Exit::Done,
        Some(Level::Warning) => Exit::Failed,
        Some(Level::Refused) => Exit::Refused,
    }
}

fn json_text(path: &Path, findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            let Finding { level, code, table, what, why, remedy } = finding;
            let mut object = json!({ "level": level.name(), "code": code, "what": what, "why": why, "remedy": remedy });
            if let (Some(table), Some(object)) = (table, object.as_object_mut()) {
                object.insert("table".to_owned(), table.as_str().into());
            }
            object
        })
        .collect();
    format!("{}\n", json!({ "database": path.to_string_lossy(), "exit": exit_of(findings).code(), "findings": list }))
}

fn pretty(path: &Path, findings: &[Finding]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    for Finding { level, code, what, why, remedy, .. } in findings {
        let (what, why, remedy) = (printable(what), printable(why), printable(remedy));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}: {what} [{code}]\n    why:    {why}\n    remedy: {remedy}", level.name());
    }
    let verdict = match exit_of(findings) {
        Exit::Refused => "woodchuck run would refuse it as it is",
        Exit::Done => "ready to be attached",
        _ => "can be attached; the warnings say what that costs",
    };
    let (refused, warnings, notes) = (count(Level::Refused), count(Level::Warning), count(Level::Note));
    let path = printable(&path.to_string_lossy());
    let _ = writeln!(text, "{path}: {verdict} (refused: {refused}, warnings: {warnings}, notes: {notes})");
    text
}
