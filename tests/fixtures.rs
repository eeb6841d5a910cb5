//! The golden WALs of `fixtures/wal`: what the differ makes of their pages is what SQLite said of their rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use woodchuck::change::{Differ, Op, RowChange, RowKey, SchemaChange, TxSpan};
use woodchuck::format::{DatabaseHeader, FrameScan, PageNo, Row, ScanEnd, Value, WAL_HEADER_BYTES, WalHeader};
use woodchuck::schema::{Identity, Table};

use crate::support::oracle::Recorder;
use crate::support::pages::{Image, WalReader};

/// Fewer folders than this mean that the fixtures were not found, or not all of them.
const LESSON_COUNT_MIN: usize = 38;

fn lessons() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wal");
    let mut found: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    assert!(found.len() >= LESSON_COUNT_MIN, "only {} lessons were found", found.len());
    found
}

fn name_of(lesson: &Path) -> String {
    lesson.file_name().unwrap().to_string_lossy().into_owned()
}

/// The database file as it was before the log's first transaction.
fn image(lesson: &Path) -> Image {
    let bytes = fs::read(lesson.join("db")).unwrap();
    let page_bytes = DatabaseHeader::parse(&bytes).unwrap().page_size.bytes();
    let pages: BTreeMap<PageNo, Arc<Vec<u8>>> = bytes
        .chunks(page_bytes)
        .zip(1..)
        .map(|(page, no)| (PageNo::new(no).unwrap(), Arc::new(page.to_vec())))
        .collect();
    Image { count: pages.len() as u32, pages }
}

fn value(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(v) => json!(v),
        Value::Real(v) if v.is_infinite() => json!({ "real": if *v > 0.0 { "Infinity" } else { "-Infinity" } }),
        Value::Real(v) => json!(v),
        Value::Text(v) => match std::str::from_utf8(v) {
            Ok(text) => json!(text),
            Err(_) => json!({ "text": BASE64.encode(v) }),
        },
        Value::Blob(v) => json!({ "blob": BASE64.encode(v) }),
    }
}

fn object<'a>(names: impl Iterator<Item = &'a str>, values: &[Value]) -> Json {
    Json::Object(names.map(str::to_owned).zip(values.iter().map(value)).collect())
}

fn key(table: &Table, key: &RowKey) -> Json {
    let column = |index: usize| table.columns[index].name.as_str();
    match (key, &table.identity) {
        (RowKey::Rowid(rowid), _) => json!({ "rowid": rowid }),
        (RowKey::Columns(values), Identity::RowidAlias(index)) => object([column(*index)].into_iter(), values),
        (RowKey::Columns(values), Identity::Declared(columns)) => {
            object(columns.iter().map(|c| column(c.column)), values)
        }
        (RowKey::Columns(_), Identity::Rowid) => panic!("a table without key has rows with one"),
    }
}

fn row_line(tx: usize, change: &RowChange) -> Json {
    let image = |row: &Row| object(change.table.columns.iter().map(|column| column.name.as_str()), row);
    let op = match change.op {
        Op::Insert => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
    };
    let mut line = json!({ "op": op, "tx": tx, "table": change.table.name, "key": key(&change.table, &change.key) });
    for (name, row) in [("before", &change.before), ("after", &change.after)] {
        if let Some(row) = row {
            line[name] = image(row);
        }
    }
    line
}

fn schema_line(tx: usize, change: &SchemaChange) -> Json {
    json!({ "op": "schema", "tx": tx, "type": change.kind, "name": change.name, "before": change.before, "after": change.after })
}

/// The transactions of a lesson's log, each as the sorted text of its lines.
fn decoded(lesson: &Path) -> Vec<Vec<String>> {
    let mut before = image(lesson);
    let mut differ = Differ::open(&before).unwrap();
    let mut transactions = Vec::new();
    for commit in WalReader::new(&lesson.join("db")).read() {
        let (after, changed) = commit.onto(&before);
        let tx = transactions.len() + 1;
        let span = TxSpan {
            tx: tx as u64,
            salts: commit.salts,
            frame_first: commit.first,
            frame_last: commit.last,
            repaired: false,
            checksum: woodchuck::format::Checksum::default(),
            page_count: 0,
        };
        let mut found = Recorder::default();
        differ.transaction(&before, &after, &changed, &span, &mut found).unwrap();
        assert_eq!(differ.check(&after).unwrap(), None, "the map of owners differs from a fresh walk");
        before = after;
        let rows: Vec<Json> = found
            .changes
            .iter()
            .filter(|change| !change.table.is_internal())
            .map(|change| row_line(tx, change))
            .collect();
        let schema = found
            .schema
            .iter()
            .filter(|change| !change.name.starts_with("sqlite_"))
            .map(|change| schema_line(tx, change));
        let mut lines: Vec<String> = schema.chain(rows.iter().cloned()).map(|line| line.to_string()).collect();
        if !lines.is_empty() {
            lines.push(json!({ "op": "commit", "tx": tx, "changes": rows.len() }).to_string());
            lines.push(json!({ "op": "begin", "tx": tx }).to_string());
            lines.sort();
            transactions.push(lines);
        }
    }
    transactions
}

/// The transactions as SQLite saw them, in the same form.
fn expected(lesson: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(lesson.join("expected.jsonl")).unwrap();
    let mut transactions: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let line: Json = serde_json::from_str(line).unwrap();
        // Written out again, for text tells 3 from 3.0 and 0.0 from -0.0.
        transactions.entry(line["tx"].as_u64().unwrap()).or_default().push(line.to_string());
    }
    transactions
        .into_values()
        .map(|mut lines| {
            lines.sort();
            lines
        })
        .collect()
}

#[test]
fn every_golden_wal_decodes_to_what_sqlite_saw() {
    let mut wrong = Vec::new();
    for lesson in lessons() {
        let (decoded, expected) = (decoded(&lesson), expected(&lesson));
        if decoded == expected {
            continue;
        }
        let tx = decoded.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let (none, some) = (Vec::new(), |list: &[Vec<String>]| list.get(tx).cloned());
        let (ours, theirs) = (some(&decoded).unwrap_or(none.clone()), some(&expected).unwrap_or(none));
        let only = |from: &[String], other: &[String]| {
            from.iter()
                .filter(|line| !other.contains(line))
                .take(5)
                .map(|line| format!("\n    {line}"))
                .collect::<String>()
        };
        wrong.push(format!(
            "{}: transaction {} differs\n  false:{}\n  missed:{}",
            name_of(&lesson),
            tx + 1,
            only(&ours, &theirs),
            only(&theirs, &ours)
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_scan_of_each_golden_wal_ends_for_the_right_reason() {
    for lesson in lessons() {
        let bytes = fs::read(lesson.join("db-wal")).unwrap();
        let header = WalHeader::parse(&bytes).unwrap();
        let mut scan = FrameScan::new(header);
        let mut frames = bytes[WAL_HEADER_BYTES..].chunks(header.frame_bytes() as usize);
        let end = loop {
            if let Err(end) = scan.step(frames.next().unwrap_or_default()) {
                break end;
            }
        };
        let wanted = match name_of(&lesson).as_str() {
            "partial-last-frame" => ScanEnd::PartialFrame,
            "bit-flip" => ScanEnd::ChecksumMismatch,
            // Frames that a transaction rewrote before its end get their salts only when it commits.
            "stale-frames-after-restart" | "spilled-rollback" => ScanEnd::StaleSalts,
            _ => ScanEnd::EndOfFile,
        };
        assert_eq!(end, wanted, "{}", name_of(&lesson));
    }
}
