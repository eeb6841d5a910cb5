//! Whether what was decoded makes sense: later layers rely on it and do not check again.

use std::sync::Arc;

use super::super::message::{Header, ShardId, Unit, UnitChange, UnitKey};
use crate::change::Op;

/// Checks that a header's numbers can be.
pub(super) fn judge_header(header: &Header) -> Result<(), String> {
    if header.batch_no == 0 || header.round_no == 0 {
        return Err("batches and rounds count from 1".to_owned());
    }
    // Writers list shards in order, which also makes sure that none is named twice.
    let ordered = header.round.is_sorted_by(|a, b| a.shard < b.shard);
    if !ordered || header.round.iter().any(|part| part.shard.0 == 0 || part.message_count == 0) {
        return Err("the shards of the round are not in order, or one has no messages".to_owned());
    }
    Ok(())
}

/// Checks that a header belongs to a message of `shard`.
pub(in super::super) fn judge_place(header: &Header, shard: ShardId) -> Result<(), String> {
    match header.round.iter().find(|part| part.shard == shard) {
        Some(part) if header.part < part.message_count => Ok(()),
        Some(part) => Err(format!("part {} of {} in shard {}", header.part, part.message_count, shard.0)),
        None => Err(format!("its round has no messages in shard {}", shard.0)),
    }
}

/// Checks that every change fits the table that it names.
pub(super) fn judge_unit(unit: &Unit) -> Result<(), String> {
    let of_steps = unit.schema.iter().flat_map(|step| step.tables.iter().flatten());
    for shape in unit.tables.iter().map(Arc::as_ref).chain(of_steps) {
        if shape.key.iter().any(|column| usize::from(*column) >= shape.columns.len()) {
            return Err(format!("table {} has a key column that is not there", shape.name));
        }
        let is_there = |(place, _): &(u16, _)| usize::from(*place) <= shape.columns.len();
        if !shape.beginnings.is_sorted_by(|(a, _), (b, _)| a < b) || !shape.beginnings.iter().all(is_there) {
            return Err(format!(
                "the beginnings of table {} are not in order, or of columns that are not there",
                shape.name
            ));
        }
    }
    for (index, change) in unit.changes.iter().enumerate() {
        judge_change(unit, change).map_err(|what| format!("change {index}: {what}"))?;
    }
    Ok(())
}

fn judge_change(unit: &Unit, change: &UnitChange) -> Result<(), &'static str> {
    let shape = unit.tables.get(usize::from(change.table)).ok_or("its table is not there")?;
    if let UnitKey::Columns(values) = &change.key
        && (values.len() != shape.key.len() || values.is_empty())
    {
        return Err("its key does not fit its table");
    }
    let fits = |row: &Option<Vec<_>>| row.as_ref().is_none_or(|row| row.len() == shape.columns.len());
    if !fits(&change.image) || !fits(&change.before) {
        return Err("a row does not fit its table");
    }
    match (change.op, &change.image) {
        (Op::Delete, Some(_)) => Err("a delete with a row after it"),
        (Op::Insert | Op::Update, None) => Err("an insert or update without its row"),
        (Op::Delete, None) | (Op::Insert | Op::Update, Some(_)) => Ok(()),
    }
}
