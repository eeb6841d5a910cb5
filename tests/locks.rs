//! The rule about descriptors: closing any of the database file or of `-shm` drops every POSIX lock that the process holds on it, SQLite's
//! included, and silently. So after everything that a follower does, `/proc/locks` must still show its locks.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;
use woodchuck::capture::{CheckpointOptions, DatabaseFile, Follower, HANDOVER_INTERVAL, WakeUps};

use crate::support::sink::Ignore;

/// The lock of a WAL connection on the database file (`SHARED_FIRST`), of a reader on one of the five read marks, and of everybody who uses
/// `-shm` (`UNIX_SHM_DMS`).
const SHARED_FIRST: u64 = 0x4000_0002;
const READ_MARKS: std::ops::RangeInclusive<u64> = 123..=127;
const SHM_IN_USE: u64 = 128;

/// The first bytes of this process's POSIX read locks on a file.
fn own_locks(path: &Path) -> BTreeSet<u64> {
    let inode = std::fs::metadata(path).unwrap().ino();
    let pid = std::process::id();
    let table = std::fs::read_to_string("/proc/locks").unwrap();
    let mut found = BTreeSet::new();
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "POSIX", _, _, holder, file, first, _] = words[..] else { continue };
        if holder.parse() == Ok(pid) && file.rsplit(':').next().and_then(|word| word.parse().ok()) == Some(inode) {
            found.insert(first.parse().unwrap());
        }
    }
    found
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Bounds the looks at a table that other processes change meanwhile.
const LOOKS_MAX: usize = 200;

#[track_caller]
fn assert_pinned(path: &Path, after: &str) {
    // The system hands out its table of locks page by page, and lines can be missing where it changed in between. A line that is there is
    // proof, so what is not seen is looked for again.
    let mut shm = BTreeSet::new();
    for _ in 0..LOOKS_MAX {
        shm.extend(own_locks(&beside(path, "-shm")));
        if shm.contains(&SHM_IN_USE)
            && shm.iter().any(|byte| READ_MARKS.contains(byte))
            && own_locks(path).contains(&SHARED_FIRST)
        {
            return;
        }
    }
    assert!(own_locks(path).contains(&SHARED_FIRST), "after {after} the lock on the database file is gone");
    assert!(shm.contains(&SHM_IN_USE), "after {after} the lock on -shm is gone: {shm:?}");
    assert!(shm.iter().any(|byte| READ_MARKS.contains(byte)), "after {after} no read mark is held: {shm:?}");
}

/// An application in a process of its own; it runs what it is given and answers when it is done.
struct Application {
    child: Child,
}

impl Application {
    fn start(path: &Path) -> Application {
        let program = "import sqlite3,sys\n\
                       db=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=10)\n\
                       db.execute('PRAGMA journal_mode=WAL')\n\
                       for line in sys.stdin:\n\
                       \x20   print(db.execute(line).fetchall(),flush=True)\n\
                       db.close()\n";
        let mut command = Command::new("python3");
        command.args(["-c", program]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        Application { child: command.spawn().expect("python3 is needed as an application") }
    }

    fn run(&mut self, sql: &str) -> String {
        use std::io::{Read, Write};
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(format!("{sql}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.child.stdout.as_mut().unwrap().read_exact(&mut byte).expect("the application answers");
            answer.push(char::from(byte[0]));
        }
        answer.trim_end().to_owned()
    }

    fn close(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn poll(follower: &mut Follower) {
    while follower.poll(&mut Ignore).unwrap().more {}
}

fn maintain(follower: &mut Follower) {
    follower.maintain(&mut Ignore).map_err(|error| error.to_string()).unwrap();
}

#[test]
fn the_pin_is_held_after_everything_that_a_follower_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut application = Application::start(&path);
    application.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    let mut follower = Follower::attach(&path).unwrap();
    follower.set_checkpoint_options(CheckpointOptions {
        passive_frames: 10,
        wal_bytes_max: 64 << 10,
        may_block_writers: true,
    });
    assert_pinned(&path, "attaching");
    poll(&mut follower);
    assert_pinned(&path, "a look at a log without news");
    application.run("INSERT INTO t(v) VALUES(randomblob(20000))");
    poll(&mut follower);
    assert_pinned(&path, "reading a transaction");
    assert!(follower.file().read_page(woodchuck::format::PageNo::ONE, follower.header().page_size).is_ok());
    follower.file().header().unwrap();
    follower.file().file_bytes().unwrap();
    assert!(follower.file().is_in_place() && follower.file().other_user().is_some());
    assert_pinned(&path, "reading the file and asking for other users");

    // A second look at the same file, a second follower in this process, and a plain connection that comes and goes.
    drop(DatabaseFile::open(&path).unwrap());
    assert_pinned(&path, "opening and forgetting the file");
    let mut second = Follower::attach(&path).unwrap();
    poll(&mut second);
    assert_pinned(&path, "a second follower's attaching");
    second.detach().unwrap();
    assert_pinned(&path, "a second follower's detaching");
    let count = |connection: Connection| connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    count(Connection::open(&path).unwrap()).unwrap();
    assert_pinned(&path, "a connection's coming and going");
    assert!(Follower::attach(&dir.path().join("missing")).is_err() && Follower::attach(dir.path()).is_err());
    assert_pinned(&path, "an attach that failed");

    let wake_ups = WakeUps::new(&follower).unwrap();
    application.run("INSERT INTO t(v) VALUES(1)");
    wake_ups.wait(HANDOVER_INTERVAL);
    drop(wake_ups);
    assert_pinned(&path, "being woken");

    let mut generations = BTreeSet::new();
    for _ in 0..40 {
        application.run("INSERT INTO t(v) VALUES(randomblob(20000))");
        poll(&mut follower);
        assert_pinned(&path, "a look");
        maintain(&mut follower);
        assert_pinned(&path, "a checkpoint");
        generations.insert(follower.position().salts.0);
    }
    assert!(generations.len() > 1, "the log was restarted on the way");
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        application.run("INSERT INTO t(v) VALUES(2)");
        poll(&mut follower);
        poll(&mut follower);
        poll(&mut follower);
        application.run(&format!("PRAGMA wal_checkpoint({mode})"));
        assert_pinned(&path, "the application's checkpoint");
        poll(&mut follower);
        assert_pinned(&path, "a look after the application's checkpoint");
    }

    // Alone with the database the follower empties the log.
    application.run("INSERT INTO t(v) VALUES(3)");
    application.close();
    let began = std::time::Instant::now();
    while std::fs::metadata(beside(&path, "-wal")).unwrap().len() > 0 {
        assert!(began.elapsed().as_secs() < 20, "the log is emptied when nobody else has the database open");
        poll(&mut follower);
        maintain(&mut follower);
        assert_pinned(&path, "maintaining alone");
        std::thread::yield_now();
    }
    let mut application = Application::start(&path);
    application.run("INSERT INTO t(v) VALUES(4)");
    poll(&mut follower);
    assert_pinned(&path, "an application's return");
    application.close();
    assert_pinned(&path, "the last application's close");
    poll(&mut follower);
    follower.detach().unwrap();
    assert!(!beside(&path, "-wal").exists() && !beside(&path, "-shm").exists(), "one file is left");
}

#[test]
fn detaching_leaves_an_attached_application_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut application = Application::start(&path);
    application.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    application.run("INSERT INTO t(v) VALUES('before')");
    let mut follower = Follower::attach(&path).unwrap();
    poll(&mut follower);
    let file = std::fs::read(beside(&path, "-wal")).unwrap();
    follower.detach().unwrap();
    assert_eq!(std::fs::read(beside(&path, "-wal")).unwrap(), file, "its log is not touched");
    assert!(beside(&path, "-shm").exists());
    application.run("INSERT INTO t(v) VALUES('after')");
    assert_eq!(application.run("SELECT group_concat(v) FROM t"), "[('before,after',)]");
    assert_eq!(application.run("PRAGMA integrity_check"), "[('ok',)]");
    application.close();
    assert!(!beside(&path, "-wal").exists(), "the application is the last to close again");
}

#[test]
fn attaching_and_detaching_change_no_byte_of_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut application = Application::start(&path);
    application.run("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    application.run("INSERT INTO t(v) VALUES('x')");
    application.run("PRAGMA wal_checkpoint(TRUNCATE)");
    application.close();
    let before = std::fs::read(&path).unwrap();
    let mut follower = Follower::attach(&path).unwrap();
    for _ in 0..5 {
        poll(&mut follower);
        maintain(&mut follower);
    }
    follower.detach().unwrap();
    assert!(std::fs::read(&path).unwrap() == before, "the file is the same, byte for byte");
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["app.db"], "and nothing is left beside it");
}

/// While somebody has read-lock 0 for a moment, a pin gets another one, though it holds back no frame. A checkpoint that waits for that one would
/// wait for good, with the write lock in its hand.
#[test]
fn a_checkpoint_that_waits_for_a_resting_pin_is_let_through() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut application = Application::start(&path);
    application.run("CREATE TABLE t(v)");
    application.run("PRAGMA wal_checkpoint(PASSIVE)");
    let python = |code: &str| {
        let mut child = Command::new("python3")
            .args(["-c", code])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        (child, answers)
    };
    // The byte behind those for writing, checkpoints and recovery.
    let (mut holder, mut answers) = python(
        "import fcntl, sys; f = open(sys.argv[1] + '-shm', 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 123)\nprint('held', flush=True); sys.stdin.read()",
    );
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "held");
    let mut follower = Follower::attach(&path).unwrap();
    while !follower.is_resting() {
        poll(&mut follower);
    }
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    let (mut checkpointer, mut answers) = python(
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=30); print(db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone())",
    );
    while checkpointer.try_wait().unwrap().is_none() {
        poll(&mut follower);
        std::thread::sleep(HANDOVER_INTERVAL);
    }
    line.clear();
    answers.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "(0, 0, 0)", "it was not kept from it");
    application.close();
    follower.detach().unwrap();
}
