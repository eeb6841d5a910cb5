//! Entries of the conflict journal.

use super::json::{members, put, string};
use super::pretty::{Style, printable, value_text};
use crate::apply::{Conflict, ConflictKind};
use crate::change::RowKey;
use crate::format::Row;

/// Appends a conflict as one JSON line: `kept` is what stays, `lost` what it overrode; `null` stands for no row.
pub fn conflict_json(out: &mut Vec<u8>, conflict: &Conflict) {
    let kind = conflict.kind.name();
    put(
        out,
        format_args!(
            "{{\"id\":{},\"recorded_at\":{},\"kind\":\"{kind}\",\"table\":",
            conflict.id, conflict.recorded_at
        ),
    );
    string(out, &conflict.table);
    if let RowKey::Rowid(rowid) = &conflict.key {
        put(out, format_args!(",\"rowid\":{rowid}"));
    }
    let sides = [("kept", &conflict.kept, conflict.kept_origin), ("lost", &conflict.lost, conflict.lost_origin)];
    for (name, row, origin) in sides {
        put(out, format_args!(",\"{name}_node\":"));
        match origin {
            Some(origin) => put(out, format_args!("{}", origin.node_id)),
            None => out.extend_from_slice(b"null"),
        }
        put(out, format_args!(",\"{name}\":"));
        match row {
            Some(row) => {
                out.push(b'{');
                members(out, conflict.columns.iter().map(String::as_str).zip(row));
                out.push(b'}');
            }
            None => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(b"}\n");
}

/// Appends a conflict for people.
pub fn conflict_pretty(out: &mut Vec<u8>, conflict: &Conflict, style: Style) {
    let key = match &conflict.key {
        RowKey::Rowid(rowid) => format!("rowid {rowid}"),
        RowKey::Columns(values) => values.iter().map(value_text).collect::<Vec<_>>().join(", "),
    };
    let why = match conflict.kind {
        ConflictKind::SameRow => "both changed the row",
        ConflictKind::UniqueValue => "both wanted a UNIQUE value",
        ConflictKind::Type => "a value had no place in its column's type",
        ConflictKind::Gone if conflict.kept.is_none() => "the table is gone",
        ConflictKind::Gone => "a column is gone",
    };
    put(out, format_args!("#{} {} ({key}): {why}\n", conflict.id, printable(&conflict.table)));
    let shown = |row: &Option<Row>| match row {
        None => "deleted".to_owned(),
        Some(row) => {
            let pairs = conflict
                .columns
                .iter()
                .zip(row)
                .map(|(name, value)| format!("{}={}", printable(name), value_text(value)));
            pairs.collect::<Vec<_>>().join(" ")
        }
    };
    let by = |origin: Option<crate::log::Origin>| {
        origin.map_or_else(String::new, |origin| format!(", node {}", origin.node_id))
    };
    // Of a table that is gone nothing is kept.
    if conflict.kind != ConflictKind::Gone || conflict.kept.is_some() {
        let kept = style.green(&format!("kept{}:", by(conflict.kept_origin)));
        put(out, format_args!("  {kept} {}\n", shown(&conflict.kept)));
    }
    let lost = style.red(&format!("lost{}:", by(conflict.lost_origin)));
    put(out, format_args!("  {lost} {}\n", shown(&conflict.lost)));
}
