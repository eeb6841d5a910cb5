//! What people see: one transaction of everything, without and with colours.

use woodchuck::change::{Differ, TxSpan};
use woodchuck::cli::output::{Pretty, Style};
use woodchuck::format::{FrameNo, Salts};

use crate::support::pages::{Image, WalReader};

fn shown(style: Style) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    let mut wal = WalReader::new(&path);
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; BEGIN;
             CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT, born INT); CREATE TABLE logs(x);
             INSERT INTO users VALUES(1,'Ada',1815),(2,'Grace H.',1906); COMMIT;
             BEGIN; UPDATE users SET name='Grace Hopper' WHERE id=2; DELETE FROM users WHERE id=1;
             INSERT INTO logs VALUES(zeroblob(5000)); CREATE VIEW v AS SELECT 1; COMMIT;",
        )
        .unwrap();
    let [first, second] = <[_; 2]>::try_from(wal.read()).ok().unwrap();
    let before = first.onto(&Image::default()).0;
    let (after, changed) = second.onto(&before);
    let span = TxSpan {
        tx: 7,
        salts: Salts([0; 8]),
        frame_first: FrameNo(6),
        frame_last: FrameNo(9),
        repaired: false,
        checksum: woodchuck::format::Checksum::default(),
        page_count: 3,
    };
    let mut out = Pretty::new(Vec::new(), style);
    Differ::open(&before).unwrap().transaction(&before, &after, &changed, &span, &mut out).unwrap();
    String::from_utf8(out.into_inner()).unwrap()
}

#[test]
fn a_transaction_is_a_block_and_a_row_a_line() {
    assert_eq!(
        shown(Style::coloured(false)),
        "── transaction 7 · frames 6–9 · 3 changes\n  \
           + view v  CREATE VIEW v AS SELECT 1\n  \
           - users  id=1  name 'Ada', born 1815\n  \
           ~ users  id=2  name 'Grace H.' → 'Grace Hopper'\n  \
           + logs   rowid=1  x x'000000000000000000000000000000…' (4.9 KiB)\n"
    );
}

#[test]
fn colours_say_the_same() {
    let coloured = shown(Style::coloured(true));
    assert!(coloured.contains("\x1b[31m- users\x1b[0m") && coloured.contains("\x1b[33m~ users\x1b[0m"), "{coloured:?}");
    let mut plain = String::new();
    for (index, piece) in coloured.split('\x1b').enumerate() {
        plain.push_str(if index == 0 { piece } else { piece.split_once('m').unwrap().1 });
    }
    assert_eq!(plain, shown(Style::coloured(false)));
}
