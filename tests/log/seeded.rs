//! Random input that can be made again: a failure prints `SEED=…`, and setting the variable runs that seed alone.

use std::sync::Arc;

use woodchuck::change::Op;
use woodchuck::format::{Row, Value};
use woodchuck::log::{
    Batch, Beginning, Body, Header, Origin, RoundPart, SchemaStep, ShardId, TableShape, Unit, UnitChange, UnitKey,
};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Runs `check` for `count` seeds, or for the one in the environment.
pub fn for_seeds(count: u64, check: impl Fn(&mut Random)) {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().expect("SEED is a number")],
        Err(_) => (0..count).collect(),
    };
    for seed in seeds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut Random::new(seed))));
        if let Err(panic) = outcome {
            eprintln!("SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

pub fn value(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => Value::Integer(random.pick(&[
            0,
            1,
            -1,
            23,
            24,
            255,
            256,
            65_535,
            65_536,
            i64::MIN,
            i64::MAX,
            (1 << 53) + 1,
        ])),
        2 => Value::Integer(random.next() as i64 >> random.below(64)),
        3 => {
            Value::Real(random.pick(&[0.0, -0.0, 3.0, 1.5, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE / 2.0]))
        }
        4 => {
            let real = f64::from_bits(random.next());
            if real.is_nan() { Value::Real(0.1) } else { Value::Real(real) }
        }
        5 => Value::Text(Vec::new()),
        6 => Value::Text("a\0b — ü 🦫".into()),
        7 => Value::Text(vec![0xff, 0xfe, b'x']),
        8 => Value::Text(vec![0xed, 0xa0, 0x80]),
        9 => Value::Blob(Vec::new()),
        10 => Value::Text((0..random.below(300)).map(|_| b'a' + random.below(26) as u8).collect()),
        _ => Value::Blob((0..random.below(300)).map(|_| random.next() as u8).collect()),
    }
}

pub fn row(random: &mut Random, columns: usize) -> Row {
    (0..columns).map(|_| value(random)).collect()
}

pub fn shape(random: &mut Random) -> TableShape {
    let columns: Vec<String> = (0..1 + random.below(30)).map(|i| format!("column {i} \"ü\"")).collect();
    let key = (0..random.below(columns.len().min(3) + 1) as u16).rev().collect();
    let mut beginnings = Vec::new();
    for place in 0..=columns.len() as u16 {
        let origin = Origin { node_id: random.next() >> random.below(64), epoch: random.next() };
        let made_by = random.percent(70).then(|| (origin, random.next() >> random.below(64)));
        if random.percent(90) {
            continue;
        }
        beginnings.push((place, Beginning { name: format!("first {place}"), made_by }));
    }
    TableShape { name: random.pick(&["t", "ORDER", "select \"x\"", "🦫"]).to_owned(), columns, key, beginnings }
}

pub fn change(random: &mut Random, table: u16, shape: &TableShape) -> UnitChange {
    let columns = shape.columns.len();
    let op = random.pick(&[Op::Insert, Op::Update, Op::Delete]);
    let key = if shape.key.is_empty() || random.percent(10) {
        UnitKey::Rowid(random.next() as i64)
    } else {
        UnitKey::Columns(row(random, shape.key.len()))
    };
    UnitChange {
        table,
        op,
        key,
        image: (op != Op::Delete).then(|| row(random, columns)),
        mask: if op == Op::Update { (0..columns).map(|_| random.percent(30)).collect() } else { Vec::new() },
        before: (op != Op::Insert && random.percent(30)).then(|| row(random, columns)),
        if_there: random.percent(10),
    }
}

pub fn step(random: &mut Random, tables: &[Arc<TableShape>]) -> SchemaStep {
    let kind = random.pick(&["table", "index", "view", "trigger"]).to_owned();
    let text = |random: &mut Random| random.percent(60).then(|| format!("CREATE {} \"ü\"", random.below(9)));
    let names = |random: &mut Random| (format!("a{}", random.below(9)), format!("b{}", random.below(9)));
    SchemaStep {
        kind,
        name: format!("o{}", random.below(9)),
        name_before: text(random),
        table: "t".to_owned(),
        before: text(random),
        after: text(random),
        renamed_columns: random.percent(30).then(|| (0..random.below(3)).map(|_| names(random)).collect()),
        tables: random
            .percent(60)
            .then(|| (0..random.below(3)).map(|_| tables[random.below(tables.len())].as_ref().clone()).collect()),
    }
}

pub fn unit(random: &mut Random, tables: &[Arc<TableShape>]) -> Unit {
    let changes = (0..random.below(20))
        .map(|_| {
            let table = random.below(tables.len());
            change(random, table as u16, &tables[table])
        })
        .collect();
    Unit {
        tx: random.next() >> random.below(64),
        part: random.next() as u32,
        salts: random.next().to_be_bytes(),
        frame: random.next() as u32,
        repaired: random.percent(20),
        seen: woodchuck::log::StreamSeq(random.next() >> random.below(64)),
        schema: (0..random.below(8).saturating_sub(5)).map(|_| step(random, tables)).collect(),
        tables: tables.to_vec(),
        changes,
    }
}

pub fn units(random: &mut Random) -> Vec<Unit> {
    let mut tables: Vec<Arc<TableShape>> = (0..1 + random.below(3)).map(|_| Arc::new(shape(random))).collect();
    (0..random.below(6))
        .map(|_| {
            if random.percent(30) {
                tables.push(Arc::new(shape(random)));
            }
            unit(random, &tables)
        })
        .collect()
}

pub fn header(random: &mut Random) -> Header {
    let round = (1..2 + random.below(8) as u16)
        .map(|shard| RoundPart { shard: ShardId(shard), message_count: 1 + random.below(70_000) as u32 })
        .collect();
    Header {
        origin: Origin { node_id: random.next() >> random.below(64), epoch: random.next() },
        batch_no: (random.next() >> random.below(64)).max(1),
        round_no: (random.next() >> random.below(64)).max(1),
        part: random.next() as u32 >> random.below(32),
        round,
        barrier: random.percent(20),
    }
}

pub fn batch(random: &mut Random) -> Batch {
    let body = if random.percent(20) {
        let count = 2 + random.next() as u32 % 100;
        let bytes = (0..random.below(2000)).map(|_| random.next() as u8).collect();
        Body::Piece { index: random.next() as u32 % count, count, bytes }
    } else {
        Body::Units(units(random))
    };
    Batch { header: header(random), body }
}
