//! Bytes to batches. Nothing that the bytes say about lengths is believed before the bytes are there.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use minicbor::data::Type;
use minicbor::decode::Decoder;

use super::super::message::{
    Batch, Beginning, Body, Header, Origin, RoundPart, SchemaStep, ShardId, StreamSeq, TableShape, Unit, UnitChange,
    UnitKey,
};
use super::judge::{judge_header, judge_unit};
use super::{ENVELOPE_VERSION, EnvelopeError, NESTING_MAX, ZSTD_MAGIC};
use crate::change::Op;
use crate::format::{Row, Value};

type Result<T> = std::result::Result<T, EnvelopeError>;

/// Decodes a message.
///
/// # Errors
///
/// [`EnvelopeError`], for any bytes that are not a message of at most `limit` bytes (after decompression).
pub fn decode(bytes: &[u8], limit: usize) -> Result<Batch> {
    if bytes.starts_with(&ZSTD_MAGIC) {
        let plain = decompress(bytes, limit)?;
        return decode_plain(&plain);
    }
    if bytes.len() > limit {
        return Err(EnvelopeError::TooLarge { limit });
    }
    decode_plain(bytes)
}

/// Decodes a message's place and leaves its content alone.
///
/// # Errors
///
/// As [`decode`]; what stands behind the header is not looked at.
pub fn decode_header(bytes: &[u8], limit: usize) -> Result<Header> {
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return decode_head(&mut Decoder::new(bytes)).map(|(header, _)| header);
    }
    // The header is short: decompress a little, and more only while it does not suffice.
    let mut reader = zstd::Decoder::with_buffer(bytes).map_err(|error| EnvelopeError::Zstd(error.to_string()))?;
    let mut plain = Vec::new();
    let mut step = 4096_u64;
    loop {
        let before = plain.len();
        reader.by_ref().take(step).read_to_end(&mut plain).map_err(|error| EnvelopeError::Zstd(error.to_string()))?;
        if plain.len() > limit {
            return Err(EnvelopeError::TooLarge { limit });
        }
        let at_end = plain.len() == before;
        match decode_head(&mut Decoder::new(&plain)) {
            Err(EnvelopeError::Cbor { .. }) if !at_end => step = step.saturating_mul(2),
            result => return result.map(|(header, _)| header),
        }
    }
}

/// Where the encoded list of units stands in a message; `None` where that cannot be said without decoding it: in compressed messages, in
/// pieces, and where something stands behind it.
#[must_use]
pub fn encoded_units(bytes: &[u8]) -> Option<Range<usize>> {
    let mut d = Decoder::new(bytes);
    match decode_head(&mut d) {
        Ok((_, (BodyKey::Units, 0))) => Some(d.position()..bytes.len()),
        Ok((_, (BodyKey::Units | BodyKey::Piece, _))) | Err(_) => None,
    }
}

/// Decodes a list of units: joined pieces, or what [`super::encode_units`] made.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_units(bytes: &[u8]) -> Result<Vec<Unit>> {
    let mut d = Decoder::new(bytes);
    let units = read_units(&mut d)?;
    at_end(&d)?;
    Ok(units)
}

fn decompress(bytes: &[u8], limit: usize) -> Result<Vec<u8>> {
    let reader = zstd::Decoder::with_buffer(bytes).map_err(|error| EnvelopeError::Zstd(error.to_string()))?;
    let mut plain = Vec::with_capacity(bytes.len().saturating_mul(2).min(limit));
    reader.take(limit as u64 + 1).read_to_end(&mut plain).map_err(|error| EnvelopeError::Zstd(error.to_string()))?;
    if plain.len() > limit { Err(EnvelopeError::TooLarge { limit }) } else { Ok(plain) }
}

/// What stands under the last known key of a batch; the decoder is at its value.
enum BodyKey {
    Units,
    Piece,
}

fn decode_plain(bytes: &[u8]) -> Result<Batch> {
    let mut d = Decoder::new(bytes);
    let (header, (key, keys_left)) = decode_head(&mut d)?;
    let body = match key {
        BodyKey::Units => Body::Units(read_units(&mut d)?),
        BodyKey::Piece => read_piece(&mut d)?,
    };
    for _ in 0..keys_left {
        next(&mut d, Decoder::str)?;
        skip(&mut d, 0)?;
    }
    at_end(&d)?;
    Ok(Batch { header, body })
}

/// Reads up to and including the key of the body. Also returns how many keys stand behind it.
fn decode_head(d: &mut Decoder<'_>) -> Result<(Header, (BodyKey, u64))> {
    let foreign = |_| EnvelopeError::Foreign;
    let keys = d.map().map_err(foreign)?.ok_or(EnvelopeError::Foreign)?;
    if keys == 0 || d.str().map_err(foreign)? != "woodchuck" {
        return Err(EnvelopeError::Foreign);
    }
    let found = next(d, Decoder::u64)?;
    if found != ENVELOPE_VERSION {
        return Err(EnvelopeError::Version { found });
    }
    let (mut node_id, mut epoch, mut batch_no, mut round_no, mut part, mut round) =
        (None, None, None, None, None, None);
    let mut barrier = false;
    for keys_left in (0..keys - 1).rev() {
        let body = match next(d, Decoder::str)? {
            "node" => {
                node_id = Some(next(d, Decoder::u64)?);
                continue;
            }
            "epoch" => {
                epoch = Some(next(d, Decoder::u64)?);
                continue;
            }
            "batch" => {
                batch_no = Some(next(d, Decoder::u64)?);
                continue;
            }
            "round" => {
                round_no = Some(next(d, Decoder::u64)?);
                continue;
            }
            "part" => {
                part = Some(next(d, Decoder::u32)?);
                continue;
            }
            "shards" => {
                round = Some(read_round(d)?);
                continue;
            }
            "barrier" => {
                barrier = next(d, Decoder::bool)?;
                continue;
            }
            "units" => BodyKey::Units,
            "piece" => BodyKey::Piece,
            _ => {
                skip(d, 0)?;
                continue;
            }
        };
        let missing = |key| EnvelopeError::Missing { key, place: "batch" };
        let header = Header {
            origin: Origin {
                node_id: node_id.ok_or_else(|| missing("node"))?,
                epoch: epoch.ok_or_else(|| missing("epoch"))?,
            },
            batch_no: batch_no.ok_or_else(|| missing("batch"))?,
            round_no: round_no.ok_or_else(|| missing("round"))?,
            part: part.ok_or_else(|| missing("part"))?,
            round: round.ok_or_else(|| missing("shards"))?,
            barrier,
        };
        judge_header(&header).map_err(EnvelopeError::Inconsistent)?;
        return Ok((header, (body, keys_left)));
    }
    Err(EnvelopeError::Missing { key: "units", place: "batch" })
}

fn read_round(d: &mut Decoder<'_>) -> Result<Vec<RoundPart>> {
    read_list(d, |d| {
        if array(d)? != 2 {
            return Err(damage(d, "expected a shard and a count"));
        }
        Ok(RoundPart { shard: ShardId(next(d, Decoder::u16)?), message_count: next(d, Decoder::u32)? })
    })
}

fn read_piece(d: &mut Decoder<'_>) -> Result<Body> {
    let (mut index, mut count, mut bytes) = (None, None, None);
    for _ in 0..map(d)? {
        match next(d, Decoder::str)? {
            "index" => index = Some(next(d, Decoder::u32)?),
            "count" => count = Some(next(d, Decoder::u32)?),
            "bytes" => bytes = Some(next(d, Decoder::bytes)?.to_vec()),
            _ => skip(d, 0)?,
        }
    }
    let missing = |key| EnvelopeError::Missing { key, place: "piece" };
    let (index, count) = (index.ok_or_else(|| missing("index"))?, count.ok_or_else(|| missing("count"))?);
    if count < 2 || index >= count {
        return Err(EnvelopeError::Inconsistent(format!("piece {index} of {count}")));
    }
    Ok(Body::Piece { index, count, bytes: bytes.ok_or_else(|| missing("bytes"))? })
}

/// The `tables` of the unit before, as bytes and decoded: consecutive units mostly name the same tables.
type Tables<'b> = (&'b [u8], Vec<Arc<TableShape>>);

fn read_units(d: &mut Decoder<'_>) -> Result<Vec<Unit>> {
    let mut tables: Tables<'_> = (&[], Vec::new());
    read_list(d, |d| read_unit(d, &mut tables))
}

fn read_unit<'b>(d: &mut Decoder<'b>, known: &mut Tables<'b>) -> Result<Unit> {
    let (mut tx, mut part, mut salts, mut frame, mut repaired) = (None, None, None, None, false);
    let (mut seen, mut schema, mut tables, mut changes) = (StreamSeq(0), Vec::new(), None, None);
    let start = d.position();
    for _ in 0..map(d)? {
        match next(d, Decoder::str)? {
            "tx" => tx = Some(next(d, Decoder::u64)?),
            "part" => part = Some(next(d, Decoder::u32)?),
            "salts" => {
                let bytes = next(d, Decoder::bytes)?;
                salts = Some(<[u8; 8]>::try_from(bytes).map_err(|_| damage(d, "salts are not 8 bytes"))?);
            }
            "frame" => frame = Some(next(d, Decoder::u32)?),
            "repaired" => repaired = next(d, Decoder::bool)?,
            "seen" => seen = StreamSeq(next(d, Decoder::u64)?),
            "schema" => schema = read_list(d, read_step)?,
            "tables" => tables = Some(read_tables(d, known)?),
            "changes" => {
                let tables = tables.as_ref().ok_or_else(|| damage(d, "\"changes\" stand before \"tables\""))?;
                changes = Some(read_list(d, |d| read_change(d, tables))?);
            }
            _ => skip(d, 0)?,
        }
    }
    let missing = |key| EnvelopeError::Missing { key, place: "unit" };
    let unit = Unit {
        tx: tx.ok_or_else(|| missing("tx"))?,
        part: part.ok_or_else(|| missing("part"))?,
        salts: salts.ok_or_else(|| missing("salts"))?,
        frame: frame.ok_or_else(|| missing("frame"))?,
        repaired,
        seen,
        schema,
        tables: tables.ok_or_else(|| missing("tables"))?,
        changes: changes.ok_or_else(|| missing("changes"))?,
    };
    judge_unit(&unit).map_err(|what| EnvelopeError::Inconsistent(format!("the unit at byte {start}: {what}")))?;
    Ok(unit)
}

fn read_step(d: &mut Decoder<'_>) -> Result<SchemaStep> {
    let (mut kind, mut name, mut table, mut name_before, mut before, mut after) = (None, None, None, None, None, None);
    let (mut renamed_columns, mut tables) = (None, None);
    for _ in 0..map(d)? {
        let value = match next(d, Decoder::str)? {
            "kind" => &mut kind,
            "name" => &mut name,
            "table" => &mut table,
            "name_before" => &mut name_before,
            "before" => &mut before,
            "after" => &mut after,
            "renamed_columns" => {
                renamed_columns = Some(read_list(d, read_pair)?);
                continue;
            }
            "tables" => {
                tables = Some(read_list(d, read_shape)?);
                continue;
            }
            _ => {
                skip(d, 0)?;
                continue;
            }
        };
        *value = Some(next(d, Decoder::str)?.to_owned());
    }
    let missing = |key| EnvelopeError::Missing { key, place: "schema" };
    Ok(SchemaStep {
        kind: kind.ok_or_else(|| missing("kind"))?,
        name: name.ok_or_else(|| missing("name"))?,
        table: table.ok_or_else(|| missing("table"))?,
        name_before,
        before,
        after,
        renamed_columns,
        tables,
    })
}

/// A list of two texts.
fn read_pair(d: &mut Decoder<'_>) -> Result<(String, String)> {
    let texts = read_list(d, |d| next(d, Decoder::str).map(str::to_owned))?;
    let [from, to] = <[String; 2]>::try_from(texts)
        .map_err(|texts| EnvelopeError::Inconsistent(format!("a renamed column has {} names, not 2", texts.len())))?;
    Ok((from, to))
}

fn read_tables<'b>(d: &mut Decoder<'b>, known: &mut Tables<'b>) -> Result<Vec<Arc<TableShape>>> {
    let start = d.position();
    let rest = d.input().get(start..).unwrap_or_default();
    // A CBOR item tells its own length, so bytes that begin like the item before are that item.
    if !known.0.is_empty() && rest.starts_with(known.0) {
        d.set_position(start + known.0.len());
        return Ok(known.1.clone());
    }
    let tables = read_list(d, |d| read_shape(d).map(Arc::new))?;
    *known = (d.input().get(start..d.position()).unwrap_or_default(), tables.clone());
    Ok(tables)
}

fn read_shape(d: &mut Decoder<'_>) -> Result<TableShape> {
    let (mut name, mut columns, mut key, mut beginnings) = (None, None, None, Vec::new());
    for _ in 0..map(d)? {
        match next(d, Decoder::str)? {
            "name" => name = Some(next(d, Decoder::str)?.to_owned()),
            "beginnings" => beginnings = read_list(d, read_beginning)?,
            "columns" => columns = Some(read_list(d, |d| next(d, Decoder::str).map(str::to_owned))?),
            "key" => key = Some(read_list(d, |d| next(d, Decoder::u16))?),
            _ => skip(d, 0)?,
        }
    }
    let missing = |key| EnvelopeError::Missing { key, place: "table" };
    Ok(TableShape {
        name: name.ok_or_else(|| missing("name"))?,
        columns: columns.ok_or_else(|| missing("columns"))?,
        key: key.ok_or_else(|| missing("key"))?,
        beginnings,
    })
}

fn read_beginning(d: &mut Decoder<'_>) -> Result<(u16, Beginning)> {
    let length = array(d)?;
    let (place, name) = (next(d, Decoder::u16)?, next(d, Decoder::str)?.to_owned());
    let made_by = match length {
        2 => None,
        5 => {
            let origin = Origin { node_id: next(d, Decoder::u64)?, epoch: next(d, Decoder::u64)? };
            Some((origin, next(d, Decoder::u64)?))
        }
        _ => return Err(damage(d, "a beginning has neither two nor five elements")),
    };
    Ok((place, Beginning { name, made_by }))
}

fn read_change(d: &mut Decoder<'_>, tables: &[Arc<TableShape>]) -> Result<UnitChange> {
    let (mut op, mut table, mut key, mut changed, mut image, mut before) = (None, None, None, None, None, None);
    let mut if_there = false;
    for _ in 0..map(d)? {
        match next(d, Decoder::str)? {
            "op" => {
                op = Some(match next(d, Decoder::str)? {
                    "insert" => Op::Insert,
                    "update" => Op::Update,
                    "delete" => Op::Delete,
                    _ => return Err(damage(d, "unknown operation")),
                });
            }
            "table" => table = Some(next(d, Decoder::u16)?),
            "key" => key = Some(UnitKey::Columns(read_row(d)?)),
            "rowid" => key = Some(UnitKey::Rowid(next(d, Decoder::i64)?)),
            "changed" => changed = Some(read_list(d, |d| next(d, Decoder::u16))?),
            "after" => image = Some(read_row(d)?),
            "before" => before = Some(read_row(d)?),
            "if_there" => if_there = next(d, Decoder::bool)?,
            _ => skip(d, 0)?,
        }
    }
    let missing = |key| EnvelopeError::Missing { key, place: "change" };
    let op = op.ok_or_else(|| missing("op"))?;
    let table: u16 = table.ok_or_else(|| missing("table"))?;
    let shape =
        tables.get(usize::from(table)).ok_or_else(|| damage(d, "the change names a table that is not there"))?;
    let mask = match (op, changed, &image) {
        // The mask is made only where the image shows that the columns are really there: a byte of input for each.
        (Op::Update, Some(changed), Some(image)) if image.len() == shape.columns.len() => {
            let mut mask = vec![false; image.len()];
            for column in changed {
                *mask.get_mut(usize::from(column)).ok_or_else(|| damage(d, "a changed column is not there"))? = true;
            }
            mask
        }
        (Op::Update, None, _) => return Err(missing("changed")),
        (Op::Update, Some(_), _) | (Op::Insert | Op::Delete, _, _) => Vec::new(),
    };
    Ok(UnitChange { table, op, key: key.ok_or_else(|| missing("key"))?, image, mask, before, if_there })
}

fn read_row(d: &mut Decoder<'_>) -> Result<Row> {
    read_list(d, read_value)
}

fn read_value(d: &mut Decoder<'_>) -> Result<Value> {
    Ok(match next(d, |d| d.datatype())? {
        Type::Null => {
            next(d, Decoder::null)?;
            Value::Null
        }
        Type::U8 | Type::U16 | Type::U32 | Type::U64 | Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => {
            Value::Integer(next(d, Decoder::i64)?)
        }
        Type::F64 => {
            let real = next(d, Decoder::f64)?;
            if real.is_nan() { Value::Null } else { Value::Real(real) }
        }
        Type::String => Value::Text(next(d, Decoder::str)?.as_bytes().to_vec()),
        Type::Bytes => Value::Blob(next(d, Decoder::bytes)?.to_vec()),
        Type::Array => {
            if array(d)? != 1 {
                return Err(damage(d, "a value that is an array has not one element"));
            }
            Value::Text(next(d, Decoder::bytes)?.to_vec())
        }
        _ => return Err(damage(d, "not a value")),
    })
}

/// Reads an array. The claimed length reserves no memory: every element must come first.
fn read_list<'b, T>(d: &mut Decoder<'b>, mut element: impl FnMut(&mut Decoder<'b>) -> Result<T>) -> Result<Vec<T>> {
    /// Room for the elements of an ordinary row; a false length costs at most this.
    const RESERVE_MAX: usize = 16;
    let length = array(d)?;
    let mut list = Vec::with_capacity(usize::try_from(length).unwrap_or(RESERVE_MAX).min(RESERVE_MAX));
    for _ in 0..length {
        list.push(element(d)?);
    }
    Ok(list)
}

fn array(d: &mut Decoder<'_>) -> Result<u64> {
    next(d, Decoder::array)?.ok_or_else(|| damage(d, "an array without a length"))
}

fn map(d: &mut Decoder<'_>) -> Result<u64> {
    next(d, Decoder::map)?.ok_or_else(|| damage(d, "a map without a length"))
}

/// Steps over one item of any kind that later versions may add.
fn skip(d: &mut Decoder<'_>, depth: u32) -> Result<()> {
    if depth > NESTING_MAX {
        return Err(damage(d, "nested too deeply"));
    }
    let children = match next(d, |d| d.datatype())? {
        Type::Array => array(d)?,
        Type::Map => map(d)?.checked_mul(2).ok_or_else(|| damage(d, "a map that cannot be so long"))?,
        Type::Tag => {
            next(d, Decoder::tag)?;
            1
        }
        Type::ArrayIndef | Type::MapIndef | Type::BytesIndef | Type::StringIndef | Type::Break | Type::Unknown(_) => {
            return Err(damage(d, "an item of unknown kind or length"));
        }
        _ => {
            next(d, Decoder::skip)?;
            0
        }
    };
    for _ in 0..children {
        skip(d, depth + 1)?;
    }
    Ok(())
}

fn at_end(d: &Decoder<'_>) -> Result<()> {
    if d.position() == d.input().len() { Ok(()) } else { Err(damage(d, "bytes behind the end")) }
}

fn next<'b, T>(
    d: &mut Decoder<'b>,
    read: impl FnOnce(&mut Decoder<'b>) -> std::result::Result<T, minicbor::decode::Error>,
) -> Result<T> {
    let offset = d.position();
    read(d).map_err(|error| EnvelopeError::Cbor { offset, what: error.to_string() })
}

fn damage(d: &Decoder<'_>, what: &str) -> EnvelopeError {
    EnvelopeError::Cbor { offset: d.position(), what: what.to_owned() }
}
