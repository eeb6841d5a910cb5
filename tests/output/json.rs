//! JSON lines: golden lines for every kind of value and key.

use std::sync::Arc;

use woodchuck::change::{ChangeSink, Op, RowChange, RowKey, SchemaChange, TxSpan};
use woodchuck::cli::output::JsonLines;
use woodchuck::format::{FrameNo, PageNo, Salts, Value};
use woodchuck::schema::{Affinity, Collation, Column, Identity, KeyColumn, Table};

const SPAN: TxSpan = TxSpan {
    tx: 17,
    salts: Salts([0x5a, 0x1f, 0, 1, 2, 3, 4, 0xff]),
    frame_first: FrameNo(42),
    frame_last: FrameNo(44),
    repaired: false,
    checksum: woodchuck::format::Checksum { s0: 0, s1: 0 },
    page_count: 0,
};

fn table(name: &str, columns: &[&str], identity: Identity) -> Arc<Table> {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        declared_type: String::new(),
        affinity: Affinity::None,
        default: Value::Null,
        not_null: false,
        strict: None,
        generated: false,
    };
    Arc::new(Table {
        name: name.to_owned(),
        sql: String::new(),
        root: PageNo::new(2).unwrap(),
        columns: columns.iter().map(column).collect(),
        record_columns: (0..columns.len()).collect(),
        identity,
        without_rowid: false,
        rowid_name: Some("rowid"),
        autoincrement: false,
        shadow_of: None,
        shown_by: None,
        is_virtual: false,
        first_name: None,
        uniques: Vec::new(),
    })
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

fn lines(change: impl FnOnce(&mut JsonLines<Vec<u8>>)) -> Vec<String> {
    let mut out = JsonLines::new(Vec::new());
    out.begin(&SPAN).unwrap();
    change(&mut out);
    out.commit(&SPAN, 3).unwrap();
    let text = String::from_utf8(out.into_inner()).unwrap();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    text.lines().map(str::to_owned).collect()
}

fn insert(table: &Arc<Table>, key: RowKey, after: Vec<Value>) -> RowChange {
    let table = Arc::clone(table);
    RowChange { table, op: Op::Insert, key, rowid: Some(1), before: None, after: Some(after), before_unknown: false }
}

fn value_as_json(value: Value) -> String {
    let t = table("t", &["v"], Identity::Rowid);
    let lines = lines(|out| out.change(insert(&t, RowKey::Rowid(1), vec![value])).unwrap());
    let line = lines[1].strip_prefix(r#"{"op":"insert","tx":17,"table":"t","key":{"rowid":1},"after":{"v":"#).unwrap();
    line.strip_suffix("}}").unwrap().to_owned()
}

#[test]
fn lines_are_those_of_the_manual() {
    let t = table("t", &["id", "a"], Identity::RowidAlias(0));
    let row = |a: &str| Some(vec![Value::Integer(1), text(a)]);
    let change = |op, before, after| RowChange {
        table: Arc::clone(&t),
        op,
        key: RowKey::Columns(vec![Value::Integer(1)]),
        rowid: Some(1),
        before,
        after,
        before_unknown: false,
    };
    let lines = lines(|out| {
        let sql = "CREATE TABLE t(id INTEGER PRIMARY KEY, a)".to_owned();
        let (kind, name) = ("table".to_owned(), "t".to_owned());
        out.schema(SchemaChange {
            kind,
            table: name.clone(),
            name,
            name_before: None,
            of_shadow: false,
            before: None,
            after: Some(sql),
            root_before: None,
            renamed_columns: None,
            tables: Vec::new(),
        })
        .unwrap();
        out.change(change(Op::Insert, None, row("x"))).unwrap();
        out.change(change(Op::Update, row("x"), row("y"))).unwrap();
        out.change(change(Op::Delete, row("y"), None)).unwrap();
        out.change(RowChange { before_unknown: true, ..change(Op::Update, None, row("y")) }).unwrap();
    });
    assert_eq!(
        lines,
        [
            r#"{"op":"begin","tx":17,"salt":"5a1f0001020304ff","frame":42}"#,
            r#"{"op":"schema","tx":17,"type":"table","name":"t","before":null,"after":"CREATE TABLE t(id INTEGER PRIMARY KEY, a)"}"#,
            r#"{"op":"insert","tx":17,"table":"t","key":{"id":1},"after":{"id":1,"a":"x"}}"#,
            r#"{"op":"update","tx":17,"table":"t","key":{"id":1},"before":{"id":1,"a":"x"},"after":{"id":1,"a":"y"}}"#,
            r#"{"op":"delete","tx":17,"table":"t","key":{"id":1},"before":{"id":1,"a":"y"}}"#,
            r#"{"op":"update","tx":17,"table":"t","key":{"id":1},"before_unknown":true,"after":{"id":1,"a":"y"}}"#,
            r#"{"op":"commit","tx":17,"salt":"5a1f0001020304ff","frame":44,"changes":3}"#,
        ]
    );
}

#[test]
fn values_keep_their_storage_class() {
    for (value, want) in [
        (Value::Null, "null"),
        (Value::Integer(9_007_199_254_740_993), "9007199254740993"),
        (Value::Integer(i64::MIN), "-9223372036854775808"),
        (Value::Real(3.0), "3.0"),
        (Value::Real(-0.0), "-0.0"),
        (Value::Real(0.1), "0.1"),
        (Value::Real(1e300), "1e300"),
        (Value::Real(5e-324), "5e-324"),
        (Value::Real(f64::INFINITY), r#"{"real":"Infinity"}"#),
        (Value::Real(f64::NEG_INFINITY), r#"{"real":"-Infinity"}"#),
        (text(""), r#""""#),
        (text("2024-01-01"), r#""2024-01-01""#),
        (text("a\"b\\c/\n\r\t\u{0}\u{1f}\u{7f}é😀"), r#""a\"b\\c/\n\r\t\u0000\u001f\u007fé😀""#),
        (Value::Text(vec![0xff, 0xfe]), r#"{"text":"//4="}"#),
        (Value::Blob(Vec::new()), r#"{"blob":""}"#),
        (Value::Blob(vec![1, 2, 3, 4]), r#"{"blob":"AQIDBA=="}"#),
    ] {
        assert_eq!(value_as_json(value.clone()), want, "{value:?}");
    }
}

#[test]
fn every_finite_real_reads_back_to_the_same_bits() {
    let seed = 7_u64;
    let mut state = seed;
    for _ in 0..20_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let real = f64::from_bits(state ^ (state >> 29));
        if real.is_finite() {
            let line = value_as_json(Value::Real(real));
            assert!(line.contains(['.', 'e']), "SEED={seed} {line} looks like an integer");
            assert_eq!(line.parse::<f64>().unwrap().to_bits(), real.to_bits(), "SEED={seed} {line}");
        }
    }
}

#[test]
fn keys_are_objects_by_column_name() {
    let part = |column| KeyColumn { column, collation: Collation::Binary };
    let t = table("we\"ird", &["a b", "c", "d"], Identity::Declared(vec![part(2), part(0)]));
    let row = vec![text("x"), Value::Null, Value::Integer(5)];
    let key = RowKey::Columns(vec![Value::Integer(5), text("x")]);
    let lines = lines(|out| out.change(insert(&t, key, row)).unwrap());
    assert_eq!(
        lines[1],
        r#"{"op":"insert","tx":17,"table":"we\"ird","key":{"d":5,"a b":"x"},"after":{"a b":"x","c":null,"d":5}}"#
    );
}

#[test]
fn a_repaired_transaction_says_so() {
    let mut out = JsonLines::new(Vec::new());
    out.begin(&TxSpan { repaired: true, ..SPAN }).unwrap();
    out.commit(&TxSpan { repaired: true, ..SPAN }, 0).unwrap();
    let text = String::from_utf8(out.into_inner()).unwrap();
    assert!(
        text.starts_with(r#"{"op":"begin","tx":17,"salt":"5a1f0001020304ff","frame":42,"repaired":true}"#),
        "{text}"
    );
}

/// Not a test of speed: prints it, for whoever looks with `--ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn rows_per_second() {
    let t = table("orders", &["id", "customer", "total", "note"], Identity::RowidAlias(0));
    let mut out = JsonLines::new(std::io::sink());
    let began = std::time::Instant::now();
    const ROWS: i64 = 1_000_000;
    for id in 0..ROWS {
        let row = vec![
            Value::Integer(id),
            text("Ada Lovelace"),
            Value::Real(12.5),
            text("a note of some length, as notes are"),
        ];
        out.change(insert(&t, RowKey::Columns(vec![Value::Integer(id)]), row)).unwrap();
    }
    println!("{:.0} rows/s", ROWS as f64 / began.elapsed().as_secs_f64());
}
