//! Units of the log, as lines for programs and for people.
//!
//! ```text
//! {"op":"begin","tx":17,"node":1,"shard":3,"seq":9,"salt":"5a1f…","frame":44}
//! {"op":"update","tx":17,"table":"t","key":{"id":1},"changed":["a"],"after":{"id":1,"a":"y"}}
//! {"op":"commit","tx":17,"node":1,"shard":3,"seq":9,"changes":1}
//! ```
//!
//! A change of the schema is in every shard, each as `tail` has it. `begin` and `commit` enclose what travels of a transaction in one shard; other parts of it may be in other shards.

use super::json::{members, put, schema_members, string};
use super::pretty::{Style, printable, schema_line, value_text};
use crate::change::Op;
use crate::log::{TableShape, Unit, UnitChange, UnitKey};

/// Where a unit stands on the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitPlace {
    /// The node that made it.
    pub node_id: u64,
    /// Its shard.
    pub shard: u16,
    /// Its message.
    pub seq: u64,
}

/// Appends a unit as JSON lines.
pub fn unit_json(out: &mut Vec<u8>, place: &UnitPlace, unit: &Unit) {
    let salt: String = unit.salts.iter().map(|byte| format!("{byte:02x}")).collect();
    let UnitPlace { node_id, shard, seq } = place;
    let head = format!("\"tx\":{},\"node\":{node_id},\"shard\":{shard},\"seq\":{seq}", unit.tx);
    let repaired = if unit.repaired { ",\"repaired\":true" } else { "" };
    put(out, format_args!("{{\"op\":\"begin\",{head},\"salt\":\"{salt}\",\"frame\":{}{repaired}}}\n", unit.frame));
    for step in &unit.schema {
        let renamed = step.renamed_columns.as_deref();
        schema_members(out, unit.tx, (&step.kind, &step.name), (&step.before, &step.after), renamed);
        out.extend_from_slice(b"}\n");
    }
    for change in &unit.changes {
        let Some(shape) = unit.tables.get(usize::from(change.table)) else { continue };
        change_json(out, unit.tx, shape, change);
    }
    put(out, format_args!("{{\"op\":\"commit\",{head},\"changes\":{}}}\n", unit.changes.len()));
}

fn change_json(out: &mut Vec<u8>, tx: u64, shape: &TableShape, change: &UnitChange) {
    put(out, format_args!("{{\"op\":\"{}\",\"tx\":{tx},\"table\":", op_name(change.op)));
    string(out, &shape.name);
    out.extend_from_slice(b",\"key\":{");
    match &change.key {
        UnitKey::Rowid(rowid) => put(out, format_args!("\"rowid\":{rowid}")),
        UnitKey::Columns(values) => members(out, key_names(shape).zip(values)),
    }
    out.push(b'}');
    if change.op == Op::Update {
        out.extend_from_slice(b",\"changed\":[");
        let changed = shape.columns.iter().zip(&change.mask).filter(|(_, changed)| **changed);
        for (index, (name, _)) in changed.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            string(out, name);
        }
        out.push(b']');
    }
    for (name, image) in [("before", &change.before), ("after", &change.image)] {
        if let Some(row) = image {
            put(out, format_args!(",\"{name}\":{{"));
            members(out, shape.columns.iter().map(String::as_str).zip(row));
            out.push(b'}');
        }
    }
    out.extend_from_slice(b"}\n");
}

/// Appends a unit for people.
pub fn unit_pretty(out: &mut Vec<u8>, place: &UnitPlace, unit: &Unit, style: Style) {
    let UnitPlace { node_id, shard, seq } = place;
    let count = unit.changes.len();
    let head = format!("node {node_id} tx {} · shard {shard} message {seq} · {count} changes", unit.tx);
    put(out, format_args!("{}\n", style.faint(&head)));
    for step in &unit.schema {
        let line = schema_line(style, (&step.kind, &step.name), (&step.before, &step.after));
        put(out, format_args!("  {line}\n"));
    }
    for change in &unit.changes {
        let Some(shape) = unit.tables.get(usize::from(change.table)) else { continue };
        let key = match &change.key {
            UnitKey::Rowid(rowid) => format!("rowid={rowid}"),
            UnitKey::Columns(values) => pairs(key_names(shape).zip(values)),
        };
        let shown = |row: &Vec<_>| pairs(shape.columns.iter().map(String::as_str).zip(row));
        let line = match (change.op, &change.image) {
            (Op::Insert, image) => {
                format!(
                    "{}  {}",
                    style.green(&format!("+ {}", printable(&shape.name))),
                    image.as_ref().map_or_else(String::new, shown)
                )
            }
            (Op::Update, image) => {
                let columns = shape.columns.iter().zip(&change.mask).zip(image.iter().flatten());
                let set =
                    columns.filter(|((_, changed), _)| **changed).map(|((name, _), value)| (name.as_str(), value));
                format!("{}  {key}  {}", style.yellow(&format!("~ {}", printable(&shape.name))), pairs(set))
            }
            (Op::Delete, _) => format!("{}  {key}", style.red(&format!("- {}", printable(&shape.name)))),
        };
        put(out, format_args!("  {line}\n"));
    }
}

fn pairs<'a>(pairs: impl Iterator<Item = (&'a str, &'a crate::format::Value)>) -> String {
    pairs.map(|(name, value)| format!("{}={}", printable(name), value_text(value))).collect::<Vec<_>>().join(" ")
}

fn key_names(shape: &TableShape) -> impl Iterator<Item = &str> {
    shape.key.iter().map(|index| shape.columns.get(usize::from(*index)).map_or("", String::as_str))
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Insert => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
    }
}
