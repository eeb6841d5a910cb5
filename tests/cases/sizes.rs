//! Transactions larger than anything that is kept in memory.

use std::io::Read;

use super::{Application, Tail, database};

/// What a process of ours may keep in memory of its own during a huge transaction.
const RESIDENT_KIB_MAX: u64 = 160 << 10;

/// Largest anonymous memory seen and the peak of all memory, in KiB.
fn memory(pid: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some((field("RssAnon:")?, field("VmHWM:")?))
}

/// Counts the lines of a transaction while it is printed and watches the memory.
fn read_all(tail: &mut Tail, op: &str, wanted: u64) -> u64 {
    let needle = format!("{{\"op\":\"{op}\"");
    let (mut seen, mut anonymous) = (0_u64, 0);
    let mut carried = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let count = tail.out.read(&mut chunk).unwrap();
        assert!(count > 0, "tail ended: {}", tail.errors());
        if let Some((now, _)) = memory(tail.child.id()) {
            anonymous = anonymous.max(now);
        }
        carried.extend_from_slice(&chunk[..count]);
        let Some(end) = carried.iter().rposition(|byte| *byte == b'\n') else { continue };
        let lines: Vec<u8> = carried.drain(..=end).collect();
        let lines = String::from_utf8(lines).unwrap();
        seen += lines.lines().filter(|line| line.starts_with(&needle)).count() as u64;
        if lines.lines().any(|line| line.starts_with("{\"op\":\"commit\"")) {
            assert_eq!(seen, wanted);
            return anonymous;
        }
    }
}

/// The log is larger than its budget of 64 MiB as well.
#[test]
fn a_transaction_of_a_million_rows_needs_no_more_memory_than_a_small_one() {
    const ROWS: u64 = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let path = database(dir.path());
    let mut application = Application::start(&path);
    let mut tail = Tail::start(&path, "json");
    let rows = format!("WITH RECURSIVE n(i) AS (VALUES(2) UNION ALL SELECT i+1 FROM n WHERE i<={ROWS})");
    let filler = "'a row of a transaction that is larger than the budget of the log '||i";
    application.must(&format!("INSERT INTO t {rows} SELECT i, {filler} FROM n"));
    let inserting = read_all(&mut tail, "insert", ROWS);
    application.must("UPDATE t SET v=v||'!' WHERE id>1");
    let updating = read_all(&mut tail, "update", ROWS);
    application.must("DELETE FROM t WHERE id>1");
    let deleting = read_all(&mut tail, "delete", ROWS);
    let (_, peak) = memory(tail.child.id()).unwrap();
    println!("anonymous KiB: {inserting} inserting, {updating} updating, {deleting} deleting; peak of all {peak}");
    assert!(inserting.max(updating).max(deleting) <= RESIDENT_KIB_MAX);
    assert!(peak <= RESIDENT_KIB_MAX, "{peak} KiB");
    application.must("INSERT INTO t(id,v) VALUES(-1,'after')");
    assert_eq!(tail.transaction()[1]["after"]["v"], "after");
    tail.stop();
    application.close();
}
