//! Seals waiting units into the messages of a round.
//!
//! Planning and writing are two steps: the plan needs only sizes, so a round larger than memory is planned at once and written message by
//! message. Both depend on nothing but their arguments: after a restart the same messages come out again.

use std::collections::BTreeMap;
use std::ops::Range;

use super::envelope::{EncodedBody, encode_unit, units_from_encoded, write_batch};
use super::message::{Header, Origin, RoundPart, ShardId, Unit};

/// Encoded bytes of a header beside its list of shards: keys, numbers of the longest form, and the heads of the body.
const HEADER_BYTES_MAX: usize = 160;

/// Encoded bytes of one shard in a header's list.
const ROUND_PART_BYTES_MAX: usize = 9;

/// Room for content that a message has at least, however small the server's limit is: a limit below a header could hold nothing.
const CONTENT_BYTES_MIN: usize = 256;

/// Where a round begins to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// The round's number.
    pub round_no: u64,
    /// Per shard the last batch number used; shards that are not here begin at 1.
    pub batch_no_last: BTreeMap<ShardId, u64>,
    /// Whether it changes the schema.
    pub barrier: bool,
}

/// What one message of a planned round carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedContent {
    /// These units of the shard's list.
    Units(Range<usize>),
    /// A piece of the encoded list that holds this unit alone.
    Piece {
        /// Index of the unit.
        unit: usize,
        /// Which piece, from 0.
        index: u32,
        /// How many.
        count: u32,
        /// The piece's place in the encoded list.
        bytes: Range<usize>,
    },
}

/// A message of a planned round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMessage {
    /// Its shard.
    pub shard: ShardId,
    /// Its place.
    pub header: Header,
    /// What it will carry.
    pub content: PlannedContent,
}

/// A message ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedMessage {
    /// Its shard.
    pub shard: ShardId,
    /// Its place.
    pub header: Header,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl SealedMessage {
    /// The message id: equal exactly for copies of the same message, so that the server drops what a retry sent twice.
    #[must_use]
    pub fn message_id(&self) -> String {
        message_id(self.header.origin, self.shard, self.header.batch_no)
    }
}

/// The id under which a message is sent: `<node>-<epoch>-<shard>-<batch>`.
#[must_use]
pub fn message_id(origin: Origin, shard: ShardId, batch_no: u64) -> String {
    format!("{}-{}-{}-{batch_no}", origin.node_id, origin.epoch, shard.0)
}

/// The sealed messages of all shards that leave together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Its number.
    pub round_no: u64,
    /// Its messages, by shard and then in order.
    pub messages: Vec<SealedMessage>,
}

/// Plans a round from the encoded sizes of its units, per shard, oldest first. Shards without units have no part in it.
///
/// Each message has at most `message_bytes_max` bytes before compression, unless that is too small to hold a header and a little more.
/// A unit larger than a message is cut into pieces.
#[must_use]
pub fn plan(
    unit_sizes: &BTreeMap<ShardId, Vec<usize>>,
    numbers: &Numbers,
    origin: Origin,
    message_bytes_max: usize,
) -> Vec<PlannedMessage> {
    let shard_count = unit_sizes.values().filter(|sizes| !sizes.is_empty()).count();
    let overhead = HEADER_BYTES_MAX + ROUND_PART_BYTES_MAX * shard_count;
    let content_bytes_max = message_bytes_max.saturating_sub(overhead).max(CONTENT_BYTES_MIN);
    let contents: Vec<(ShardId, Vec<PlannedContent>)> = unit_sizes
        .iter()
        .filter(|(_, sizes)| !sizes.is_empty())
        .map(|(shard, sizes)| (*shard, pack(sizes, content_bytes_max)))
        .collect();
    // Each message holds 256 bytes at least, so a count beyond u32 would be a round of a terabyte.
    let count = |contents: &Vec<PlannedContent>| u32::try_from(contents.len()).unwrap_or(u32::MAX);
    let round: Vec<RoundPart> =
        contents.iter().map(|(shard, contents)| RoundPart { shard: *shard, message_count: count(contents) }).collect();
    let mut messages = Vec::with_capacity(contents.iter().map(|(_, contents)| contents.len()).sum());
    for (shard, contents) in contents {
        let batch_no_last = numbers.batch_no_last.get(&shard).copied().unwrap_or(0);
        for ((part, batch_no), content) in (0_u32..).zip(batch_no_last + 1..).zip(contents) {
            let header = Header {
                origin,
                batch_no,
                round_no: numbers.round_no,
                part,
                round: round.clone(),
                barrier: numbers.barrier,
            };
            messages.push(PlannedMessage { shard, header, content });
        }
    }
    messages
}

/// Fills messages one after another.
fn pack(sizes: &[usize], content_bytes_max: usize) -> Vec<PlannedContent> {
    let mut contents = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (unit, size) in sizes.iter().copied().enumerate() {
        if unit > start && bytes + size > content_bytes_max {
            contents.push(PlannedContent::Units(start..unit));
            (start, bytes) = (unit, 0);
        }
        bytes += size;
        if bytes > content_bytes_max {
            // One unit, larger than a message. Its list is the head of an array of one, a byte, and the unit.
            cut(unit, size + 1, content_bytes_max, &mut contents);
            (start, bytes) = (unit + 1, 0);
        }
    }
    if start < sizes.len() {
        contents.push(PlannedContent::Units(start..sizes.len()));
    }
    contents
}

fn cut(unit: usize, list_bytes: usize, content_bytes_max: usize, contents: &mut Vec<PlannedContent>) {
    let count = u32::try_from(list_bytes.div_ceil(content_bytes_max)).unwrap_or(u32::MAX);
    let mut start = 0;
    for index in 0..count {
        let end = (start + content_bytes_max).min(list_bytes);
        contents.push(PlannedContent::Piece { unit, index, count, bytes: start..end });
        start = end;
    }
}

/// Writes one planned message. `units` are the encoded units that its content names: those of the range, or the one that is cut.
///
/// # Panics
///
/// When the units are not those that the plan was made of.
#[must_use]
pub fn write_message(planned: &PlannedMessage, units: &[&[u8]], compress: bool) -> SealedMessage {
    let list = units_from_encoded(units.iter().copied());
    let body = match &planned.content {
        PlannedContent::Units(range) => {
            assert_eq!(range.len(), units.len(), "a message is written from the units that it was planned with");
            EncodedBody::Units(&list)
        }
        PlannedContent::Piece { index, count, bytes, .. } => {
            let bytes = list.get(bytes.clone());
            assert!(bytes.is_some(), "a piece is written from the unit that it was planned with");
            EncodedBody::Piece { index: *index, count: *count, bytes: bytes.unwrap_or_default() }
        }
    };
    let payload = write_batch(&planned.header, body, compress);
    SealedMessage { shard: planned.shard, header: planned.header.clone(), payload }
}

/// Seals a round that fits into memory: plans it and writes all its messages. The units must be whole transactions, oldest first.
#[must_use]
pub fn seal(
    units: &BTreeMap<ShardId, Vec<Unit>>,
    numbers: &Numbers,
    origin: Origin,
    message_bytes_max: usize,
    compress: bool,
) -> Round {
    let encoded = units.iter().map(|(shard, units)| (*shard, units.iter().map(encode_unit).collect())).collect();
    seal_encoded(&encoded, numbers, origin, message_bytes_max, compress)
}

/// As [`seal`], of units that [`encode_unit`] encoded before.
#[must_use]
pub fn seal_encoded(
    units: &BTreeMap<ShardId, Vec<Vec<u8>>>,
    numbers: &Numbers,
    origin: Origin,
    message_bytes_max: usize,
    compress: bool,
) -> Round {
    let sizes = units.iter().map(|(shard, units)| (*shard, units.iter().map(Vec::len).collect())).collect();
    let messages = plan(&sizes, numbers, origin, message_bytes_max)
        .iter()
        .map(|planned| {
            let of_shard = units.get(&planned.shard).map(Vec::as_slice).unwrap_or_default();
            let range = match &planned.content {
                PlannedContent::Units(range) => range.clone(),
                PlannedContent::Piece { unit, .. } => *unit..*unit + 1,
            };
            let chosen: Vec<&[u8]> = of_shard.get(range).unwrap_or_default().iter().map(Vec::as_slice).collect();
            write_message(planned, &chosen, compress)
        })
        .collect();
    Round { round_no: numbers.round_no, messages }
}
