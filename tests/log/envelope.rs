//! The bytes of messages.

use woodchuck::format::Value;
use woodchuck::log::{
    Body, EnvelopeError, MESSAGE_BYTES_MAX, Unit, decode, decode_header, decode_units, encode, encode_units,
};

use super::seeded::{Random, batch, for_seeds, units};

#[test]
fn a_batch_of_any_values_comes_back_equal() {
    for_seeds(500, |random| {
        let made = batch(random);
        for compress in [false, true] {
            let bytes = encode(&made, compress);
            assert_eq!(decode(&bytes, MESSAGE_BYTES_MAX).as_ref(), Ok(&made));
            assert_eq!(decode_header(&bytes, MESSAGE_BYTES_MAX).as_ref(), Ok(&made.header));
        }
    });
}

#[test]
fn a_list_of_units_comes_back_equal() {
    for_seeds(200, |random| {
        let made = units(random);
        assert_eq!(decode_units(&encode_units(&made)), Ok(made));
    });
}

/// Damages bytes in one of the ways in which bytes are damaged.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    let at = random.below(bytes.len().max(1));
    match random.below(6) {
        0 => bytes.truncate(at),
        1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
        2 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        // Heads of the longest lengths, where allocation would follow a lie.
        3 if !bytes.is_empty() => {
            let head = random.pick(&[0x5b, 0x7b, 0x9b, 0xbb, 0x9a, 0xba, 0x9f, 0xbf, 0x5f, 0x7f, 0xdb, 0xff]);
            let lie = [vec![head], (u64::MAX >> random.below(64)).to_be_bytes().to_vec()].concat();
            bytes.splice(at..at, lie);
        }
        4 => {
            let end = (at + random.below(50)).min(bytes.len());
            let copy = bytes[at.min(end)..end].to_vec();
            let to = random.below(bytes.len().max(1));
            bytes.splice(to..to, copy);
        }
        _ => {
            bytes.splice(at..at, std::iter::repeat_n(random.pick(&[0x81, 0xa1, 0xc1, 0x9f, 0x00]), 5000)).for_each(drop)
        }
    }
}

#[test]
fn damaged_messages_give_a_value_or_an_error() {
    for_seeds(3000, |random| {
        let compress = random.percent(25);
        let mut bytes = encode(&batch(random), compress);
        for _ in 0..1 + random.below(4) {
            mutate(random, &mut bytes);
        }
        let header = decode_header(&bytes, 1 << 20);
        if let Ok(decoded) = decode(&bytes, 1 << 20) {
            assert_eq!(header.as_ref(), Ok(&decoded.header), "both ways of decoding agree");
            assert_eq!(
                decode(&encode(&decoded, false), MESSAGE_BYTES_MAX),
                Ok(decoded),
                "what is decoded can be told again"
            );
        }
        let _ = decode_units(&bytes);
    });
}

#[test]
fn any_bytes_give_a_value_or_an_error() {
    for_seeds(3000, |random| {
        let bytes: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        let _ = decode(&bytes, 4096);
        let _ = decode_header(&bytes, 4096);
        let _ = decode_units(&bytes);
    });
}

#[test]
fn an_unknown_version_is_named() {
    let mut bytes = encode(&batch(&mut Random::new(1)), false);
    bytes[11] = 2;
    assert_eq!(decode(&bytes, MESSAGE_BYTES_MAX), Err(EnvelopeError::Version { found: 2 }));
}

#[test]
fn what_is_not_ours_is_called_foreign() {
    for bytes in [&b""[..], b"hello", b"{\"json\":true}", b"\xa1\x63abc\x01", b"\xa0", b"\xff\xff"] {
        assert_eq!(decode(bytes, MESSAGE_BYTES_MAX), Err(EnvelopeError::Foreign), "{bytes:?}");
    }
}

#[test]
fn unknown_keys_are_skipped_wherever_they_stand() {
    let made = loop_until_units(7);
    let plain = encode(&made, false);
    // {"woodchuck": 1, …} becomes {"woodchuck": 1, "later": {"a": [1, h'00', null, 1.5]}, …}.
    let later = [&b"\x65later\xa1\x61a\x84\x01\x41\x00\xf6"[..], &[0xfb], &1.5_f64.to_be_bytes()].concat();
    let mut bytes = vec![plain[0] + 2];
    bytes.extend_from_slice(&plain[1..12]);
    bytes.extend_from_slice(&later);
    bytes.extend_from_slice(&plain[12..]);
    bytes.extend_from_slice(&later);
    assert_eq!(decode(&bytes, MESSAGE_BYTES_MAX), Ok(made));
}

fn loop_until_units(seed: u64) -> woodchuck::log::Batch {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| batch(&mut random))
        .find(|batch| matches!(&batch.body, Body::Units(units) if units.len() > 2))
        .unwrap()
}

#[test]
fn a_message_that_decompresses_beyond_the_limit_is_refused() {
    let mut made = batch(&mut Random::new(3));
    made.body = Body::Piece { index: 0, count: 2, bytes: vec![0; 8 << 20] };
    let bytes = encode(&made, true);
    assert!(bytes.len() < 10_000);
    assert_eq!(decode(&bytes, 1 << 20), Err(EnvelopeError::TooLarge { limit: 1 << 20 }));
    assert_eq!(decode_header(&bytes, 1 << 20).as_ref(), Ok(&made.header));
}

#[test]
fn a_key_that_does_not_fit_its_table_is_refused() {
    let made = loop_until_units(11);
    let Body::Units(mut units) = made.body else { unreachable!() };
    let change = units.iter_mut().flat_map(|unit| &mut unit.changes).next().unwrap();
    change.key = woodchuck::log::UnitKey::Columns(vec![Value::Null; 40]);
    let bytes = encode_units(&units);
    assert!(matches!(decode_units(&bytes), Err(EnvelopeError::Inconsistent(_))));
}

/// What docs/envelope.md shows, found there so that the documentation cannot age.
fn documented() -> (Vec<u8>, String) {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/envelope.md")).unwrap();
    let block = |name: &str| {
        let after =
            text.split_once(&format!("```{name}\n")).unwrap_or_else(|| panic!("docs/envelope.md has a {name} block")).1;
        after.split_once("```").unwrap().0.to_owned()
    };
    let hex: String = block("hex").lines().map(|line| line.split('#').next().unwrap()).collect::<String>();
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let bytes =
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
    (bytes, block("python"))
}

#[test]
fn the_documented_bytes_are_the_documented_message() {
    let made = example();
    assert_eq!(
        documented().0,
        encode(&made, false),
        "docs/envelope.md shows the bytes of its example: {}",
        hex(&encode(&made, false))
    );
    assert_eq!(decode(&documented().0, MESSAGE_BYTES_MAX), Ok(made));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The message of the worked example.
fn example() -> woodchuck::log::Batch {
    use std::sync::Arc;
    use woodchuck::change::Op;
    use woodchuck::log::{Header, Origin, RoundPart, ShardId, TableShape, UnitChange, UnitKey};
    let shape = TableShape {
        name: "item".into(),
        columns: vec!["id".into(), "name".into(), "price".into()],
        key: vec![0],
        beginnings: Vec::new(),
    };
    let change = |op, id: i64, image: Option<Vec<Value>>, mask: &[bool]| UnitChange {
        table: 0,
        op,
        key: UnitKey::Columns(vec![Value::Integer(id)]),
        image,
        mask: mask.to_vec(),
        before: None,
        if_there: false,
    };
    let text = |bytes: &[u8]| Value::Text(bytes.to_vec());
    let changes = vec![
        change(Op::Insert, 1, Some(vec![Value::Integer(1), text(b"saw"), Value::Real(3.0)]), &[]),
        change(Op::Update, -7, Some(vec![Value::Integer(-7), text(&[0xff, b'x']), Value::Null]), &[false, true, false]),
        change(Op::Delete, 500, None, &[]),
    ];
    let unit = Unit {
        tx: 17,
        part: 0,
        salts: [0x5a, 0x1f, 0, 1, 2, 3, 4, 5],
        frame: 44,
        repaired: false,
        seen: woodchuck::log::StreamSeq(0),
        schema: Vec::new(),
        tables: vec![Arc::new(shape)],
        changes,
    };
    woodchuck::log::Batch {
        header: Header {
            origin: Origin { node_id: 1, epoch: 4242 },
            batch_no: 3,
            round_no: 9,
            part: 0,
            round: vec![
                RoundPart { shard: ShardId(2), message_count: 1 },
                RoundPart { shard: ShardId(5), message_count: 1 },
            ],
            barrier: false,
        },
        body: Body::Units(vec![unit]),
    }
}
