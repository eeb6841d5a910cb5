//! The views of `inspect` except the rows: text for people, JSON for programs (one object; frames, transactions and schema one a line).

use std::io::{self, Write};

use serde_json::json;

use super::files::Files;
use super::report::{InspectReport, TableCounts};
use crate::cli::args::Format;
use crate::cli::output::{Style, bytes_text};
use crate::schema::Catalogue;
use crate::schema::TableFilter;

/// Labels stand in a column of this width.
const LABEL_WIDTH: usize = 16;

pub(super) fn summary(report: &InspectReport, format: Format, out: &mut dyn Write, style: Style) -> io::Result<()> {
    if format == Format::Json {
        serde_json::to_writer(&mut *out, report)?;
        return writeln!(out);
    }
    let mut line =
        |label: &str, text: String| writeln!(out, "  {}{text}", style.faint(&format!("{label:<LABEL_WIDTH$}")));
    if let Some(database) = &report.database {
        line("database", style.bold(&database.path))?;
        line(
            "size",
            format!(
                "{} in the file, {} pages of {}",
                bytes_text(database.file_bytes),
                database.page_count,
                bytes_text(u64::from(database.page_size))
            ),
        )?;
        if database.reserved_bytes > 0 {
            line("reserved", format!("{} bytes of each page", database.reserved_bytes))?;
        }
        line("journal mode", database.journal_mode.to_owned())?;
        line("text", database.encoding.to_owned())?;
        line("auto-vacuum", format!("{}, {} pages free", database.auto_vacuum, database.freelist_pages))?;
        line("written by", format!("SQLite {}, schema {}", database.sqlite_version, database.schema_cookie))?;
    }
    match &report.wal {
        None => line("WAL", "none: everything is in the database file".to_owned())?,
        Some(wal) => {
            line("WAL", style.bold(&wal.path))?;
            line("size", format!("{}, {} checksums", bytes_text(wal.file_bytes), wal.checksums))?;
            line("generation", format!("{}, checkpoint sequence {}", wal.salt, wal.checkpoint_sequence))?;
            let open = wal.frames.saturating_sub(wal.committed_frames);
            let open = if open > 0 { format!(", {open} not committed") } else { String::new() };
            line("frames", format!("{} committed in {} transactions{open}", wal.committed_frames, wal.transactions))?;
            let in_file =
                wal.checkpointed_pages.map_or_else(String::new, |count| format!(", {count} of them checkpointed"));
            line("changed pages", format!("{}{in_file}", wal.changed_pages))?;
            let end = format!("at frame {}: {}", wal.end_frame, wal.end);
            line("ends", if wal.end_is_damage { style.red(&end) } else { end })?;
            for stale in &wal.stale {
                line("left over", format!("{} frames of generation {}", stale.frames, stale.salt))?;
            }
        }
    }
    if !report.tables.is_empty() {
        let width = report.tables.keys().map(|name| name.chars().count()).max().unwrap_or(0).min(40);
        writeln!(out, "\n  {}", style.faint("row changes in the WAL"))?;
        for (name, counts) in &report.tables {
            writeln!(out, "    {name:<width$}  {}", counts_text(counts, style))?;
        }
    }
    for damage in &report.damage {
        writeln!(out, "  {}", style.red(damage))?;
    }
    out.flush()
}

pub(super) fn transactions(
    report: &InspectReport,
    format: Format,
    out: &mut dyn Write,
    style: Style,
) -> io::Result<()> {
    for transaction in &report.transactions {
        if format == Format::Json {
            serde_json::to_writer(&mut *out, transaction)?;
            writeln!(out)?;
            continue;
        }
        let frames = match (transaction.frame_first, transaction.frame_last) {
            (first, last) if first == last => format!("frame {first}"),
            (first, last) => format!("frames {first}–{last}"),
        };
        let place = format!("{frames}, {} pages written, {} in all", transaction.pages, transaction.page_count);
        writeln!(out, "{}  {}", style.bold(&format!("transaction {}", transaction.tx)), style.faint(&place))?;
        if transaction.schema_changes > 0 {
            writeln!(out, "    schema: {} changed", transaction.schema_changes)?;
        }
        for (name, counts) in &transaction.tables {
            writeln!(out, "    {name}  {}", counts_text(counts, style))?;
        }
    }
    if format == Format::Pretty {
        for damage in &report.damage {
            writeln!(out, "  {}", style.red(damage))?;
        }
    }
    out.flush()
}

pub(super) fn frames(files: &Files, format: Format, out: &mut dyn Write, style: Style) -> io::Result<()> {
    let Some(wal) = &files.wal else { return Ok(()) };
    let committed = wal.commits.last().map_or(0, |commit| commit.last.0);
    for (no, frame) in (1_u32..).zip(&wal.frames) {
        let offset = wal.header.frame_offset(crate::format::FrameNo(no));
        if format == Format::Json {
            let line = json!({
                "frame": no, "page": frame.page.get(), "offset": offset, "commit": frame.commit, "committed": no <= committed,
            });
            writeln!(out, "{line}")?;
            continue;
        }
        let what = match frame.commit {
            Some(pages) => style.green(&format!("commit, {pages} pages")),
            None if no > committed => style.yellow("not committed"),
            None => String::new(),
        };
        let line = format!("frame {no:>8}  page {:>8}  at {offset:>12}  {what}", frame.page.get());
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

pub(super) fn schema(
    catalogue: &Catalogue,
    filter: &TableFilter,
    format: Format,
    out: &mut dyn Write,
    style: Style,
) -> io::Result<()> {
    for row in catalogue.rows().iter().filter(|row| filter.matches(&row.table)) {
        match format {
            Format::Json => {
                let line = json!({
                    "type": row.kind, "name": row.name, "table": row.table, "root": row.root.map(|page| page.get()), "sql": row.sql,
                });
                writeln!(out, "{line}")?;
            }
            Format::Sql => {
                let internal = row.name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("sqlite_"));
                if let Some(sql) = row.sql.as_ref().filter(|_| !internal) {
                    writeln!(out, "{sql}{};", if sql.contains("--") { "\n" } else { "" })?;
                }
            }
            Format::Pretty => {
                let root = row.root.map_or_else(String::new, |page| style.faint(&format!("  root page {page}")));
                let key =
                    catalogue.table(&row.name).filter(|_| row.kind == "table").map_or_else(String::new, |table| {
                        use crate::schema::Identity;
                        let name = |index: usize| table.columns.get(index).map_or("", |column| column.name.as_str());
                        let key = match &table.identity {
                            Identity::RowidAlias(column) => name(*column).to_owned(),
                            Identity::Declared(parts) => {
                                parts.iter().map(|part| name(part.column)).collect::<Vec<_>>().join(", ")
                            }
                            Identity::Rowid => "none (hidden rowid)".to_owned(),
                        };
                        style.faint(&format!("  key: {key}"))
                    });
                writeln!(out, "{} {}{root}{key}", row.kind, style.bold(&row.name))?;
                for line in row.sql.iter().flat_map(|sql| sql.lines()) {
                    writeln!(out, "    {line}")?;
                }
            }
        }
    }
    out.flush()
}

fn counts_text(counts: &TableCounts, style: Style) -> String {
    let parts = [
        (counts.inserts, "inserted", style.green("+")),
        (counts.updates, "updated", style.yellow("~")),
        (counts.deletes, "deleted", style.red("-")),
        (counts.unknown, "with unknown before", "?".to_owned()),
    ];
    let shown = parts.into_iter().filter(|(count, ..)| *count > 0);
    shown.map(|(count, what, mark)| format!("{mark}{count} {what}")).collect::<Vec<_>>().join("  ")
}
