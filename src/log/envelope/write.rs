//! Batches to bytes. CBOR heads are written directly: memory cannot refuse a byte, and this is the path of every row.

use super::super::message::{Batch, Beginning, Body, Header, SchemaStep, TableShape, Unit, UnitChange, UnitKey};
use super::ENVELOPE_VERSION;
use crate::change::Op;
use crate::format::Value;

const UINT: u8 = 0 << 5;
const NEGATIVE: u8 = 1 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const MAP: u8 = 5 << 5;
const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;
const FLOAT64: u8 = 0xfb;

/// Fast and small enough; higher levels cost more time than the network saves.
const ZSTD_LEVEL: i32 = 3;

/// Encodes a message; `compress` makes it a zstd frame where that is smaller.
#[must_use]
pub fn encode(batch: &Batch, compress: bool) -> Vec<u8> {
    match &batch.body {
        Body::Units(units) => write_batch(&batch.header, EncodedBody::Units(&encode_units(units)), compress),
        Body::Piece { index, count, bytes } => {
            write_batch(&batch.header, EncodedBody::Piece { index: *index, count: *count, bytes }, compress)
        }
    }
}

/// Encodes a list of units, as it stands under `units` and as pieces carry it.
#[must_use]
pub fn encode_units(units: &[Unit]) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    head(&mut out, ARRAY, units.len() as u64);
    for unit in units {
        push_unit(&mut out, unit);
    }
    out
}

/// Encodes one unit. A list of units is the head of an array and these, one after another.
#[must_use]
pub fn encode_unit(unit: &Unit) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    push_unit(&mut out, unit);
    out
}

/// Joins units that are encoded already into what [`encode_units`] makes of them.
#[must_use]
pub fn units_from_encoded<'a>(units: impl ExactSizeIterator<Item = &'a [u8]> + Clone) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + units.clone().map(<[u8]>::len).sum::<usize>());
    head(&mut out, ARRAY, units.len() as u64);
    for unit in units {
        out.extend_from_slice(unit);
    }
    out
}

/// What a message carries, encoded.
pub(in super::super) enum EncodedBody<'a> {
    /// The output of [`encode_units`].
    Units(&'a [u8]),
    /// A part of it.
    Piece { index: u32, count: u32, bytes: &'a [u8] },
}

/// Puts a header before an encoded body.
pub(in super::super) fn write_batch(header: &Header, body: EncodedBody<'_>, compress: bool) -> Vec<u8> {
    let body_bytes = match &body {
        EncodedBody::Units(bytes) | EncodedBody::Piece { bytes, .. } => bytes.len(),
    };
    let mut out = Vec::with_capacity(160 + 12 * header.round.len() + body_bytes);
    head(&mut out, MAP, 8 + u64::from(header.barrier));
    key_uint(&mut out, "woodchuck", ENVELOPE_VERSION);
    key_uint(&mut out, "node", header.origin.node_id);
    key_uint(&mut out, "epoch", header.origin.epoch);
    key_uint(&mut out, "batch", header.batch_no);
    key_uint(&mut out, "round", header.round_no);
    key_uint(&mut out, "part", header.part.into());
    text(&mut out, "shards");
    head(&mut out, ARRAY, header.round.len() as u64);
    for part in &header.round {
        head(&mut out, ARRAY, 2);
        head(&mut out, UINT, part.shard.0.into());
        head(&mut out, UINT, part.message_count.into());
    }
    if header.barrier {
        text(&mut out, "barrier");
        out.push(TRUE);
    }
    match body {
        EncodedBody::Units(bytes) => {
            text(&mut out, "units");
            out.extend_from_slice(bytes);
        }
        EncodedBody::Piece { index, count, bytes } => {
            text(&mut out, "piece");
            head(&mut out, MAP, 3);
            key_uint(&mut out, "index", index.into());
            key_uint(&mut out, "count", count.into());
            text(&mut out, "bytes");
            push_bytes(&mut out, bytes);
        }
    }
    if !compress {
        return out;
    }
    match zstd::bulk::compress(&out, ZSTD_LEVEL) {
        Ok(compressed) if compressed.len() < out.len() => compressed,
        // Not smaller, or out of memory inside zstd: the plain message is as good.
        Ok(_) | Err(_) => out,
    }
}

fn push_unit(out: &mut Vec<u8>, unit: &Unit) {
    head(out, MAP, 7 + u64::from(unit.seen.0 > 0) + u64::from(!unit.schema.is_empty()));
    key_uint(out, "tx", unit.tx);
    key_uint(out, "part", unit.part.into());
    text(out, "salts");
    push_bytes(out, &unit.salts);
    key_uint(out, "frame", unit.frame.into());
    text(out, "repaired");
    out.push(if unit.repaired { TRUE } else { FALSE });
    if unit.seen.0 > 0 {
        key_uint(out, "seen", unit.seen.0);
    }
    if !unit.schema.is_empty() {
        text(out, "schema");
        head(out, ARRAY, unit.schema.len() as u64);
        for step in &unit.schema {
            push_step(out, step);
        }
    }
    text(out, "tables");
    head(out, ARRAY, unit.tables.len() as u64);
    for shape in &unit.tables {
        push_shape(out, shape);
    }
    text(out, "changes");
    head(out, ARRAY, unit.changes.len() as u64);
    for change in &unit.changes {
        push_change(out, change);
    }
}

fn push_step(out: &mut Vec<u8>, step: &SchemaStep) {
    let optional = [("name_before", &step.name_before), ("before", &step.before), ("after", &step.after)]
        .map(|(key, value)| (key, value.as_deref()));
    let optional_count = optional.iter().filter(|(_, value)| value.is_some()).count();
    let lists = u64::from(step.renamed_columns.is_some()) + u64::from(step.tables.is_some());
    head(out, MAP, 3 + optional_count as u64 + lists);
    for (key, value) in [("kind", &step.kind), ("name", &step.name), ("table", &step.table)] {
        text(out, key);
        text(out, value);
    }
    for (key, value) in optional {
        if let Some(value) = value {
            text(out, key);
            text(out, value);
        }
    }
    if let Some(renamed) = &step.renamed_columns {
        text(out, "renamed_columns");
        head(out, ARRAY, renamed.len() as u64);
        for (from, to) in renamed {
            head(out, ARRAY, 2);
            text(out, from);
            text(out, to);
        }
    }
    if let Some(tables) = &step.tables {
        text(out, "tables");
        head(out, ARRAY, tables.len() as u64);
        tables.iter().for_each(|shape| push_shape(out, shape));
    }
}

fn push_shape(out: &mut Vec<u8>, shape: &TableShape) {
    head(out, MAP, 3 + u64::from(!shape.beginnings.is_empty()));
    text(out, "name");
    text(out, &shape.name);
    text(out, "columns");
    head(out, ARRAY, shape.columns.len() as u64);
    for column in &shape.columns {
        text(out, column);
    }
    text(out, "key");
    head(out, ARRAY, shape.key.len() as u64);
    for column in &shape.key {
        head(out, UINT, (*column).into());
    }
    if !shape.beginnings.is_empty() {
        text(out, "beginnings");
        head(out, ARRAY, shape.beginnings.len() as u64);
        for (place, beginning) in &shape.beginnings {
            push_beginning(out, *place, beginning);
        }
    }
}

fn push_beginning(out: &mut Vec<u8>, place: u16, beginning: &Beginning) {
    head(out, ARRAY, if beginning.made_by.is_some() { 5 } else { 2 });
    head(out, UINT, place.into());
    text(out, &beginning.name);
    if let Some((origin, tx)) = beginning.made_by {
        for number in [origin.node_id, origin.epoch, tx] {
            head(out, UINT, number);
        }
    }
}

fn push_change(out: &mut Vec<u8>, change: &UnitChange) {
    let update = change.op == Op::Update;
    let fields = 3
        + u64::from(change.if_there)
        + u64::from(update)
        + u64::from(change.image.is_some())
        + u64::from(change.before.is_some());
    head(out, MAP, fields);
    text(out, "op");
    text(
        out,
        match change.op {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
        },
    );
    key_uint(out, "table", change.table.into());
    match &change.key {
        UnitKey::Columns(values) => key_row(out, "key", values),
        UnitKey::Rowid(rowid) => {
            text(out, "rowid");
            integer(out, *rowid);
        }
    }
    if update {
        text(out, "changed");
        head(out, ARRAY, change.mask.iter().filter(|changed| **changed).count() as u64);
        for (column, _) in change.mask.iter().enumerate().filter(|(_, changed)| **changed) {
            head(out, UINT, column as u64);
        }
    }
    if change.if_there {
        text(out, "if_there");
        out.push(TRUE);
    }
    if let Some(image) = &change.image {
        key_row(out, "after", image);
    }
    if let Some(before) = &change.before {
        key_row(out, "before", before);
    }
}

fn key_row(out: &mut Vec<u8>, key: &str, row: &[Value]) {
    text(out, key);
    head(out, ARRAY, row.len() as u64);
    for value in row {
        push_value(out, value);
    }
}

fn push_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.push(NULL),
        Value::Integer(v) => integer(out, *v),
        Value::Real(v) => {
            out.push(FLOAT64);
            out.extend_from_slice(&v.to_bits().to_be_bytes());
        }
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(valid) => text(out, valid),
            Err(_) => {
                head(out, ARRAY, 1);
                push_bytes(out, bytes);
            }
        },
        Value::Blob(bytes) => push_bytes(out, bytes),
    }
}

fn key_uint(out: &mut Vec<u8>, key: &str, value: u64) {
    text(out, key);
    head(out, UINT, value);
}

fn integer(out: &mut Vec<u8>, value: i64) {
    // A negative number n is stored as -1 - n, which is its bitwise complement.
    match u64::try_from(value) {
        Ok(value) => head(out, UINT, value),
        Err(_) => head(out, NEGATIVE, (!value).cast_unsigned()),
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    head(out, TEXT, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

fn push_bytes(out: &mut Vec<u8>, value: &[u8]) {
    head(out, BYTES, value.len() as u64);
    out.extend_from_slice(value);
}

/// The first bytes of every CBOR item: three bits of type, then a number in the fewest bytes that hold it.
fn head(out: &mut Vec<u8>, kind: u8, number: u64) {
    if number < 24 {
        out.push(kind | number as u8);
    } else if number <= 0xff {
        out.extend_from_slice(&[kind | 24, number as u8]);
    } else if number <= 0xffff {
        out.push(kind | 25);
        out.extend_from_slice(&(number as u16).to_be_bytes());
    } else if number <= 0xffff_ffff {
        out.push(kind | 26);
        out.extend_from_slice(&(number as u32).to_be_bytes());
    } else {
        out.push(kind | 27);
        out.extend_from_slice(&number.to_be_bytes());
    }
}

/// The most bytes that a change takes when encoded: exact but for heads, which count as the longest.
pub(in super::super) fn change_bytes(change: &UnitChange) -> usize {
    /// Heads and texts of a change's keys, its operation and its table.
    const FIXED: usize = 64;
    let key = match &change.key {
        UnitKey::Columns(values) => row_bytes(values),
        UnitKey::Rowid(_) => 9,
    };
    let changed = change.mask.iter().filter(|changed| **changed).count() * 3;
    let rows = [&change.image, &change.before].into_iter().flatten().map(|row| row_bytes(row)).sum::<usize>();
    FIXED + key + changed + rows
}

/// The most bytes that a change of the schema takes when encoded.
pub(in super::super) fn schema_bytes(step: &SchemaStep) -> usize {
    let texts = [
        Some(&step.kind),
        Some(&step.name),
        Some(&step.table),
        step.name_before.as_ref(),
        step.before.as_ref(),
        step.after.as_ref(),
    ];
    let renamed = step.renamed_columns.iter().flatten().map(|(from, to)| from.len() + to.len() + 19).sum::<usize>();
    let tables = step.tables.iter().flatten().map(shape_bytes).sum::<usize>();
    128 + texts.into_iter().flatten().map(String::len).sum::<usize>() + renamed + tables
}

/// The most bytes that a table's shape takes when encoded.
pub(in super::super) fn shape_bytes(shape: &TableShape) -> usize {
    let beginnings = shape.beginnings.iter().map(|(_, beginning)| beginning.name.len() + 48).sum::<usize>();
    let columns = shape.columns.iter().map(|column| column.len() + 9).sum::<usize>();
    64 + shape.name.len() + columns + shape.key.len() * 3 + beginnings
}

fn row_bytes(row: &[Value]) -> usize {
    9 + row.iter().map(|value| 10 + value.heap_bytes()).sum::<usize>()
}
