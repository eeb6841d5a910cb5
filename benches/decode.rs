//! Bytes to values: frames with their checksums, and records to rows, each against SQLite doing the same.
// Benches may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod support;

use rusqlite::{Connection, params};
use woodchuck::format::{BtreePage, FrameScan, PageKind, PageNo, TextEncoding};
use woodchuck::schema::{Catalogue, SchemaRow, Table};

use support::random::Random;
use support::wal::Recording;
use support::{Extent, Series, Target, figure, ratio, section, timed};

fn main() {
    let extent = Extent::from_args();
    frames(extent);
    rows(extent);
}

/// SQLite judges every frame when it opens a database whose `-shm` is gone.
fn frames(extent: Extent) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0;
             CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)",
        )
        .unwrap();
    let base = std::fs::read(&path).unwrap();
    let mut insert = connection.prepare("INSERT INTO t(v) VALUES (randomblob(3000))").unwrap();
    for _ in 0..extent.pick(2_000, 20_000) {
        insert.execute([]).unwrap();
    }
    // A copy, as a crash would have left it: without index.
    let copy = dir.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    let wal = |path: &std::path::Path| path.with_extension("db-wal");
    std::fs::copy(wal(&path), wal(&copy)).unwrap();
    let mut page_one = base;
    if page_one.is_empty() {
        page_one = std::fs::read(&path).unwrap();
    }
    let recording = Recording::read(page_one, &copy);
    let mib = recording.wal_bytes() as f64 / f64::from(1 << 20);

    let (mut ours, mut theirs, mut ratios) = (Series::default(), Series::default(), Series::default());
    for _ in 0..extent.pick(3, 7) {
        let (scanning, count) = timed(|| {
            let mut scan = FrameScan::new(recording.header());
            recording.frames().take_while(|frame| scan.step(frame).is_ok()).count()
        });
        assert_eq!(count, recording.frames().count(), "every frame is judged good");
        let _ = std::fs::remove_file(copy.with_extension("db-shm"));
        let (recovering, opened) = timed(|| {
            let opened = Connection::open(&copy).unwrap();
            opened.query_row("SELECT 1 FROM sqlite_schema", [], |_| Ok(())).unwrap();
            opened
        });
        // Closing must not checkpoint: the log is needed again.
        opened.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        drop(opened);
        ours.push(mib / scanning.as_secs_f64());
        theirs.push(mib / recovering.as_secs_f64());
        ratios.push(recovering.as_secs_f64() / scanning.as_secs_f64());
    }
    section(&format!("decode: a log of {mib:.0} MiB, every frame judged by its checksum"));
    figure("SQLite recovers its index", "MiB/s", &theirs);
    figure("frame scan", "MiB/s", &ours);
    ratio("frame scan against SQLite", &ratios, Target::AtLeast(1.0));
}

/// All rows of a table: pages to values here, `SELECT` with every value copied out there.
fn rows(extent: Extent) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, amount REAL, note TEXT, n INT); BEGIN")
        .unwrap();
    let mut random = Random::new(1);
    let row_count = extent.pick(20_000, 200_000);
    let mut insert = connection.prepare("INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5)").unwrap();
    for id in 0..row_count {
        let note = "x".repeat(random.below(120) as usize);
        insert.execute(params![id, format!("name {id}"), id as f64 / 4.0, note, random.next() as i64 >> 20]).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
    let table = table(&connection);
    let file = std::fs::read(&path).unwrap();

    let (mut ours, mut theirs, mut ratios) = (Series::default(), Series::default(), Series::default());
    for _ in 0..extent.pick(3, 7) {
        let (decoding, count) = timed(|| decode(&file, &table));
        assert_eq!(count, row_count, "every row is decoded");
        let mut select = connection.prepare("SELECT * FROM t").unwrap();
        let (selecting, count) = timed(|| {
            let mut found = select.query([]).unwrap();
            let mut count = 0;
            while let Some(row) = found.next().unwrap() {
                let values: Vec<rusqlite::types::Value> = (0..5).map(|column| row.get(column).unwrap()).collect();
                std::hint::black_box(&values);
                count += 1;
            }
            count
        });
        assert_eq!(count, row_count, "SQLite has them all");
        ours.push(row_count as f64 / decoding.as_secs_f64());
        theirs.push(row_count as f64 / selecting.as_secs_f64());
        ratios.push(selecting.as_secs_f64() / decoding.as_secs_f64());
    }
    section(&format!("decode: {row_count} rows of five columns"));
    figure("SQLite selects", "rows/s", &theirs);
    figure("records to rows", "rows/s", &ours);
    ratio("records to rows against SQLite", &ratios, Target::AtLeast(1.0));
}

fn decode(file: &[u8], table: &Table) -> i64 {
    let mut count = 0;
    for (index, bytes) in file.chunks_exact(4096).enumerate().skip(1) {
        let page_no = PageNo::new(index as u32 + 1).unwrap();
        let Ok(page) = BtreePage::parse(page_no, bytes, 4096) else { continue };
        if page.kind() != PageKind::LeafTable {
            continue;
        }
        for index in 0..page.cell_count() {
            let cell = page.cell(index).unwrap();
            let row = table.decode_row(cell.local, cell.rowid, TextEncoding::Utf8).unwrap();
            std::hint::black_box(&row);
            count += 1;
        }
    }
    count
}

fn table(connection: &Connection) -> std::sync::Arc<Table> {
    let mut query = connection.prepare("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema").unwrap();
    let rows = query
        .query_map([], |row| {
            Ok(SchemaRow {
                kind: row.get(0)?,
                name: row.get(1)?,
                table: row.get(2)?,
                root: PageNo::new(row.get(3)?),
                sql: row.get(4)?,
            })
        })
        .unwrap();
    let catalogue = Catalogue::build(rows.map(Result::unwrap).collect(), u32::MAX).unwrap();
    catalogue.table("t").unwrap().clone()
}
