//! Units into rounds and back: packing, pieces, duplicates, missing batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use woodchuck::change::Op;
use woodchuck::format::Value;
use woodchuck::log::{
    AssembleError, Assembler, Body, Folded, MESSAGE_BYTES_MAX, Numbers, Origin, Sequence, ShardId, TableShape, Unit,
    UnitBuilder, UnitChange, UnitKey, UnitOrigin, decode, encode_unit, seal,
};

use super::seeded::{Random, change, for_seeds, shape, units};

const ORIGIN: Origin = Origin { node_id: 7, epoch: 99 };

fn numbers(round_no: u64) -> Numbers {
    Numbers { round_no, batch_no_last: BTreeMap::from([(ShardId(2), 41)]), barrier: false }
}

#[test]
fn a_round_says_where_all_its_messages_are_and_gives_its_units_back() {
    for_seeds(200, |random| {
        let waiting: BTreeMap<ShardId, Vec<Unit>> = (1..=4).map(|shard| (ShardId(shard), units(random))).collect();
        let bytes_max = 1000 + random.below(20_000);
        let compress = random.percent(50);
        let round = seal(&waiting, &numbers(5), ORIGIN, bytes_max, compress);
        for (shard, wanted) in &waiting {
            let mut assembler = Assembler::new(MESSAGE_BYTES_MAX);
            let mut folded = Folded { batch_no: if shard.0 == 2 { 41 } else { 0 }, ..Folded::default() };
            let mut found = Vec::new();
            let messages: Vec<_> = round.messages.iter().filter(|message| message.shard == *shard).collect();
            for (part, message) in (0..).zip(&messages) {
                assert!(message.payload.len() <= bytes_max, "{} > {bytes_max}", message.payload.len());
                let batch = decode(&message.payload, bytes_max).unwrap();
                assert_eq!(batch.header, message.header);
                assert_eq!((batch.header.part, batch.header.round_no), (part, 5));
                assert_eq!(folded.judge(&batch.header), Sequence::Next);
                folded = Folded::from(&batch.header);
                if let Some((_, units)) = assembler.push(batch).unwrap() {
                    found.extend(units);
                }
            }
            assert_eq!(&found, wanted);
            assert!(assembler.incomplete().is_empty());
            let named = round.messages[0].header.round.iter().find(|part| part.shard == *shard);
            assert_eq!(named.map_or(0, |part| part.message_count as usize), messages.len());
        }
    });
}

#[test]
fn duplicates_and_missing_batches_are_told_apart() {
    let waiting = BTreeMap::from([(ShardId(2), units(&mut Random::new(4)))]);
    let round = seal(&waiting, &numbers(1), ORIGIN, 1 << 20, false);
    let header = &round.messages[0].header;
    let at = |batch_no| Folded { batch_no, ..Folded::default() };
    assert_eq!(header.batch_no, 42);
    assert_eq!(at(41).judge(header), Sequence::Next);
    assert_eq!(at(42).judge(header), Sequence::Duplicate);
    assert_eq!(at(u64::MAX).judge(header), Sequence::Duplicate);
    assert_eq!(at(38).judge(header), Sequence::Missing { from: 39, to: 41 });
}

fn blob_change(bytes: usize) -> UnitChange {
    let key = UnitKey::Rowid(1);
    UnitChange {
        table: 0,
        op: Op::Insert,
        key,
        image: Some(vec![Value::Blob(vec![7; bytes])]),
        mask: Vec::new(),
        before: None,
        if_there: false,
    }
}

fn blob_shape() -> Arc<TableShape> {
    Arc::new(TableShape { name: "b".into(), columns: vec!["x".into()], key: Vec::new(), beginnings: Vec::new() })
}

const UNIT_ORIGIN: UnitOrigin =
    UnitOrigin { tx: 1, salts: [1; 8], frame: 9, repaired: false, seen: woodchuck::log::StreamSeq(0) };

#[test]
fn a_value_larger_than_a_message_is_cut_and_joined() {
    let mut builder = UnitBuilder::new(UNIT_ORIGIN, 1000);
    assert_eq!(builder.push(&blob_shape(), blob_change(50_000)), None);
    let unit = builder.finish().unwrap();
    let round = seal(&BTreeMap::from([(ShardId(1), vec![unit.clone()])]), &numbers(1), ORIGIN, 4096, false);
    assert!(round.messages.len() > 12);
    let mut assembler = Assembler::new(60_000);
    for (index, message) in round.messages.iter().enumerate() {
        let batch = decode(&message.payload, 4096).unwrap();
        assert!(matches!(batch.body, Body::Piece { .. }));
        let done = assembler.push(batch.clone()).unwrap();
        if index + 1 < round.messages.len() {
            assert_eq!(done, None);
            let incomplete = &assembler.incomplete()[&ORIGIN];
            assert_eq!((incomplete.batch_no_first, incomplete.piece_count as usize), (1, index + 1));
            assert!(
                matches!(assembler.push(batch), Err(AssembleError::OutOfOrder { .. })),
                "a piece does not count twice"
            );
            assembler = Assembler::resume(60_000, assembler.incomplete().clone());
        } else {
            assert_eq!(done, Some((message.header.clone(), vec![unit.clone()])));
        }
    }
}

#[test]
fn pieces_beyond_the_limit_are_refused_and_can_be_forgotten() {
    let mut builder = UnitBuilder::new(UNIT_ORIGIN, 1000);
    builder.push(&blob_shape(), blob_change(50_000));
    let unit = builder.finish().unwrap();
    let round = seal(&BTreeMap::from([(ShardId(1), vec![unit])]), &numbers(1), ORIGIN, 4096, false);
    let mut assembler = Assembler::new(10_000);
    let outcome: Vec<_> = round.messages.iter().map(|m| assembler.push(decode(&m.payload, 4096).unwrap())).collect();
    assert!(outcome.contains(&Err(AssembleError::TooLarge { origin: ORIGIN, limit: 10_000 })));
    assert!(assembler.forget(ORIGIN));
    assert!(!assembler.forget(ORIGIN));
    assert_eq!(assembler.push(decode(&round.messages[0].payload, 4096).unwrap()), Ok(None));
}

#[test]
fn units_stay_below_their_size_and_keep_every_change() {
    for_seeds(100, |random| {
        let shapes: Vec<Arc<TableShape>> = (0..4).map(|_| Arc::new(shape(random))).collect();
        let bytes_max = 500 + random.below(20_000);
        let mut builder = UnitBuilder::new(UNIT_ORIGIN, bytes_max);
        let (mut pushed, mut found) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let shape = &shapes[random.below(4)];
            let change = change(random, 0, shape);
            pushed.push((Arc::clone(shape), change.clone()));
            found.extend(builder.push(shape, change));
        }
        found.extend(builder.finish());
        for (part, unit) in (0..).zip(&found) {
            assert_eq!(unit.part, part);
            assert!(encode_unit(unit).len() <= bytes_max || unit.changes.len() == 1);
        }
        let mut changes = found.iter().flat_map(|unit| unit.changes.iter().map(move |c| (unit, c)));
        for (shape, mut wanted) in pushed {
            let (unit, change) = changes.next().unwrap();
            assert_eq!(unit.tables[usize::from(change.table)], shape);
            wanted.table = change.table;
            assert_eq!(change, &wanted);
        }
        assert!(changes.next().is_none());
    });
}
