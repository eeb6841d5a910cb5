//! The views of `inspect` except the rows: text for people, JSON for programs (one object; frames, transactions and schema one a line).

use std::io::{self, Write};

use serde_json::json;

use super::Part;
use super::files::Files;
use super::report::{InspectReport, TableCounts};
use super::stretch::Standing;
use crate::cli::args::Format;
use crate::cli::output::{Style, bytes_text, printable};
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
        line("database", style.bold(&printable(&database.path)))?;
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
        None if report.wal_unreadable.is_some() => {
            line("WAL", "nothing can be read from it, as if there were none".to_owned())?
        }
        None => line("WAL", "none: everything is in the database file".to_owned())?,
        Some(wal) => {
            line("WAL", style.bold(&printable(&wal.path)))?;
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
        let tables: Vec<_> = report.tables.iter().map(|(name, counts)| (printable(name), counts)).collect();
        let width = tables.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).min(40);
        writeln!(out, "\n  {}", style.faint("row changes in the WAL"))?;
        for (name, counts) in tables {
            writeln!(out, "    {name:<width$}  {}", counts_text(counts, style))?;
        }
    }
    for damage in &report.damage {
        writeln!(out, "  {}", style.red(&printable(damage)))?;
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
            writeln!(out, "    {}  {}", printable(name), counts_text(counts, style))?;
        }
    }
    if format == Format::Pretty {
        for damage in &report.damage {
            writeln!(out, "  {}", style.red(&printable(damage)))?;
        }
    }
    out.flush()
}

/// What part of the WAL follows. Nothing where only what is committed is shown.
pub(super) fn heading(part: &Part<'_>, format: Format, out: &mut dyn Write, style: Style) -> io::Result<()> {
    let Some(stretch) = &part.stretch else { return Ok(()) };
    let is_stale = part.is_stale();
    let (salt, first, last) = (stretch.salts.to_string(), stretch.first.0, stretch.last.0);
    if format == Format::Json {
        let line = json!({ "op": "part", "part": stretch.standing.name(), "salt": salt, "frame_first": first, "frame_last": last });
        return writeln!(out, "{line}");
    }
    let what = match stretch.standing {
        Standing::Stale => "left over from an older generation",
        Standing::Committed => "committed",
        Standing::Uncommitted => "not committed",
    };
    writeln!(out, "{}", style.bold(&format!("generation {salt}, frames {first}–{last}: {what}")))?;
    if is_stale && part.files.commits().is_empty() {
        writeln!(out, "  no commit frame is among them")?;
    } else if is_stale {
        writeln!(
            out,
            "  {}",
            style.faint("what was before is not known; the first transaction may have begun earlier")
        )?;
    }
    Ok(())
}

pub(super) fn frames(
    files: &Files,
    parts: &[Part<'_>],
    format: Format,
    out: &mut dyn Write,
    style: Style,
) -> io::Result<()> {
    let shown = parts.iter().filter(|part| part.is_stale()).map(|part| &*part.files).chain([files]);
    for (wal, is_stale) in shown.filter_map(|of| Some((of.wal.as_ref()?, !std::ptr::eq(of, files)))) {
        let committed = wal.commits.last().map_or(0, |commit| commit.last.0);
        for (no, frame) in (wal.first.0..).zip(&wal.frames) {
            let offset = wal.header.frame_offset(crate::format::FrameNo(no));
            // The checksum of the first of a stretch continues one that is gone.
            let unchecked = is_stale && no == wal.first.0;
            if format == Format::Json {
                let mut line = json!({
                    "frame": no, "page": frame.page.get(), "offset": offset, "commit": frame.commit, "committed": no <= committed,
                });
                if let (true, Some(line)) = (is_stale, line.as_object_mut()) {
                    line.insert("stale".to_owned(), json!(wal.salts.to_string()));
                    line.insert("checked".to_owned(), json!(!unchecked));
                }
                writeln!(out, "{line}")?;
                continue;
            }
            let what = match frame.commit {
                Some(pages) => style.green(&format!("commit, {pages} pages")),
                None if no > committed => style.yellow("not committed"),
                None => String::new(),
            };
            let stale = if is_stale { format!("  generation {}", wal.salts) } else { String::new() };
            let unchecked = if unchecked { "  checksum not known" } else { "" };
            let page = frame.page.get();
            let line =
                format!("frame {no:>8}  page {page:>8}  at {offset:>12}  {what}{}", style.faint(&(stale + unchecked)));
            writeln!(out, "{}", line.trim_end())?;
        }
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
                        style.faint(&format!("  key: {}", printable(&key)))
                    });
                writeln!(out, "{} {}{root}{key}", row.kind, style.bold(&printable(&row.name)))?;
                for line in row.sql.iter().flat_map(|sql| sql.lines()) {
                    // Tabs set columns and nothing else.
                    let parts: Vec<String> = line.split('\t').map(printable).collect();
                    writeln!(out, "    {}", parts.join("\t"))?;
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
