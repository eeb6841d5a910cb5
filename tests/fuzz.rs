//! What comes from outside, on any toolchain: seeds, findings of the past (`fixtures/fuzz/<entry>`) and files that were damaged at random.
//! `make fuzz` looks for more.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::random::Random;

#[path = "../fuzz/entries.rs"]
mod entries;
pub use entries::mend as mended;
use entries::{ENTRIES, Entry, joined};

/// Damaged copies of each seed that are tried; `WOODCHUCK_FUZZ_COPIES` tries more.
const COPIES: u64 = 12;

/// Lessons of fixtures/wal that are larger, in bytes of both files, are tried as they are and not damaged.
const SEED_BYTES_MAX: usize = 60_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn files_of(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// What real files and messages give each entry to begin with.
fn seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let mut seeds: BTreeMap<&'static str, Vec<Vec<u8>>> = BTreeMap::new();
    let mut add = |entry: &'static str, bytes: Vec<u8>| seeds.entry(entry).or_default().push(bytes);
    for lesson in files_of(&fixtures().join("wal")) {
        let read = |name: &str| fs::read(lesson.join(name)).unwrap_or_default();
        let (database, wal) = (read("db"), read("db-wal"));
        let page_bytes = u16::from_be_bytes([database[16], database[17]]);
        let page_bytes = if page_bytes == 1 { 65_536 } else { usize::from(page_bytes) };
        let mut after = database.clone();
        for frame in wal.get(32..).unwrap_or_default().chunks_exact(24 + page_bytes) {
            let at = (u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize).saturating_sub(1) * page_bytes;
            if after.len() < at + page_bytes && at < 1 << 20 {
                after.resize(at + page_bytes, 0);
            }
            if let Some(page) = after.get_mut(at..at + page_bytes) {
                page.copy_from_slice(&frame[24..]);
            }
        }
        for (index, page) in after.chunks_exact(page_bytes).enumerate().step_by(3) {
            add("page", [&[u8::from(index == 0)], page].concat());
        }
        add("inspect", joined(&database, &wal));
        add("differ", joined(&database, &after));
        add("wal", wal);
    }
    for migration in files_of(&fixtures().join("migrations")) {
        let text = fs::read_to_string(&migration).unwrap();
        add("schema", text.replace(";\n", "\0").into_bytes());
    }
    for sql in [
        "CREATE VIRTUAL TABLE f USING fts5(a, b UNINDEXED, content='t', content_rowid=id)\0CREATE TABLE t(id INTEGER PRIMARY KEY, a)",
        "CREATE TABLE t(a REAL DEFAULT 1.5, b TEXT COLLATE NOCASE UNIQUE, c AS (a+1) STORED, PRIMARY KEY(a, b DESC)) WITHOUT ROWID, STRICT",
        "CREATE TRIGGER x AFTER UPDATE ON t BEGIN INSERT INTO f(f, rowid) VALUES('delete', old.id); END",
    ] {
        add("schema", sql.as_bytes().to_vec());
    }
    for bytes in [&b"\x04\x01\x09\x13\x07\x05abc"[..], b"\x05\x00\x08\x06\x07\x0c", b"\x02\x81\x00"] {
        add("record", bytes.to_vec());
    }
    for message in crate::log::messages(20) {
        add("envelope", message);
    }
    for (entry, _) in ENTRIES {
        for finding in files_of(&fixtures().join("fuzz").join(entry)) {
            add(entry, fs::read(finding).unwrap());
        }
    }
    seeds
}

fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, random.bytes(4))),
            2 if at + 8 < bytes.len() => {
                let from = random.below(bytes.len() as u64 - 8) as usize;
                bytes.copy_within(from..from + 8, at);
            }
            3 => bytes.iter_mut().skip(at).take(2).for_each(|byte| *byte = 0xff),
            4 => bytes.iter_mut().skip(at).take(4).for_each(|byte| *byte = 0),
            5 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.next() as u8),
        }
    }
}

fn tried(entry: &Entry, seeds: &[Vec<u8>]) {
    let copies = std::env::var("WOODCHUCK_FUZZ_COPIES").ok().and_then(|text| text.parse().ok()).unwrap_or(COPIES);
    let first = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (name, run) = entry;
    assert!(!seeds.is_empty(), "{name} has seeds");
    for (index, seed) in seeds.iter().enumerate() {
        run(seed);
        for copy in (first..first + copies).filter(|_| seed.len() <= SEED_BYTES_MAX) {
            let mut bytes = seed.clone();
            damage(&mut Random::new(copy << 16 | index as u64), &mut bytes);
            if let Err(panicked) = std::panic::catch_unwind(|| run(&bytes)) {
                eprintln!("{name}: seed {index}, damaged with SEED={copy}");
                std::panic::resume_unwind(panicked);
            }
        }
    }
}

#[test]
fn any_bytes_from_outside_give_an_answer_or_an_error() {
    let seeds = seeds();
    for entry in &ENTRIES {
        tried(entry, &seeds[entry.0]);
    }
}

/// `make fuzz` begins with these.
#[test]
#[ignore = "writes the seeds to where WOODCHUCK_FUZZ_CORPUS says"]
fn seeds_are_written_where_the_fuzzer_begins() {
    let folder = PathBuf::from(std::env::var_os("WOODCHUCK_FUZZ_CORPUS").expect("WOODCHUCK_FUZZ_CORPUS is set"));
    for (entry, seeds) in seeds() {
        fs::create_dir_all(folder.join(entry)).unwrap();
        for (index, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(entry).join(format!("seed-{index}")), seed).unwrap();
        }
    }
}
