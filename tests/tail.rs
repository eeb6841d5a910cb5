//! `tail`, run as a program on a database that an application writes.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rusqlite::Connection;

struct Tail {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Tail {
    /// Starts it and waits until it is attached.
    fn start(path: &Path, args: &[&str]) -> Tail {
        let mut child = Command::new(env!("CARGO_BIN_EXE_woodchuck"))
            .arg("tail")
            .arg(path)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("following "), "{line}");
        let out = BufReader::new(child.stdout.take().unwrap());
        Tail { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Asks it to end and returns what it still printed.
    fn stop(mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        rest
    }
}

fn application(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE TABLE secret(x)")
        .unwrap();
    connection
}

#[test]
fn changes_appear_as_they_are_committed_and_a_signal_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let application = application(&path);
    let mut tail = Tail::start(&path, &["--format", "json", "--exclude-tables", "sec*"]);
    application.execute_batch("INSERT INTO secret VALUES(1); INSERT INTO t VALUES(1,'a')").unwrap();
    assert!(tail.line().starts_with(r#"{"op":"begin","tx":2,"#));
    assert_eq!(tail.line(), r#"{"op":"insert","tx":2,"table":"t","key":{"id":1},"after":{"id":1,"v":"a"}}"#);
    assert!(tail.line().ends_with(r#""changes":1}"#));
    application.execute_batch("UPDATE t SET v=2.0").unwrap();
    let rest = tail.stop();
    let want =
        r#"{"op":"update","tx":3,"table":"t","key":{"id":1},"before":{"id":1,"v":"a"},"after":{"id":1,"v":2.0}}"#;
    assert!(rest.contains(want), "what was committed before the signal is shown: {rest}");
    drop(application);
    assert!(!dir.path().join("app.db-wal").exists(), "the last to close leaves one file");
}

#[test]
fn a_script_of_a_live_database_makes_a_copy_equal() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("app.db"), dir.path().join("copy.db"));
    let application = application(&path);
    application.execute_batch(&format!("VACUUM INTO '{}'", copy.display())).unwrap();
    let tail = Tail::start(&path, &["--format", "sql"]);
    application
        .execute_batch("INSERT INTO t VALUES(1,'it''s'),(2,NULL); CREATE INDEX tv ON t(v); DELETE FROM t WHERE id=2")
        .unwrap();
    let script = tail.stop();
    let copied = Connection::open(&copy).unwrap();
    copied.execute_batch(&script).unwrap();
    let all = |connection: &Connection| -> Vec<String> {
        let sql = "SELECT id||quote(v) FROM t UNION ALL SELECT sql FROM sqlite_schema";
        connection.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(all(&copied), all(&application));
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let application = application(&path);
    let Tail { mut child, mut out } = Tail::start(&path, &[]);
    application.execute_batch("INSERT INTO t VALUES(1,'a')").unwrap();
    let mut header = String::new();
    out.read_line(&mut header).unwrap();
    assert!(header.starts_with("── transaction 1 · frame"), "{header}");
    drop(out);
    // The next write finds nobody there.
    application.execute_batch("INSERT INTO t VALUES(2,'b')").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_followed_is_one_error_and_one_hint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rollback.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t(a)").unwrap();
    for path in [path.as_path(), dir.path(), &dir.path().join("missing")] {
        let output = Command::new(env!("CARGO_BIN_EXE_woodchuck")).arg("tail").arg(path).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 2), "{text}");
        assert!(text.contains("\nhint: "), "{text}");
    }
}

#[test]
fn rows_enter_and_leave_a_filter_as_inserts_and_deletes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let app = application(&path);
    for args in [&["--format", "json"][..], &["--format", "json", "--raw"]] {
        app.execute_batch("DELETE FROM t").unwrap();
        let mut tail = Tail::start(&path, &[args, &["--where", "t: v > 5", "--tables", "t"]].concat());
        app.execute_batch("INSERT INTO t VALUES(1, 3); INSERT INTO t VALUES(2, 7)").unwrap();
        app.execute_batch("UPDATE t SET v = v + 3; UPDATE t SET v = 4 WHERE id = 2; DELETE FROM t WHERE id = 1")
            .unwrap();
        let wanted = [
            r#"{"op":"insert","tx":N,"table":"t","key":{"id":2},"after":{"id":2,"v":7}}"#,
            r#"{"op":"insert","tx":N,"table":"t","key":{"id":1},"after":{"id":1,"v":6}}"#,
            r#"{"op":"update","tx":N,"table":"t","key":{"id":2},"before":{"id":2,"v":7},"after":{"id":2,"v":10}}"#,
            r#"{"op":"delete","tx":N,"table":"t","key":{"id":2},"before":{"id":2,"v":10}}"#,
            r#"{"op":"delete","tx":N,"table":"t","key":{"id":1},"before":{"id":1,"v":6}}"#,
        ];
        for want in wanted {
            let line = std::iter::repeat_with(|| tail.line())
                .find(|line| !line.contains(r#""op":"begin""#) && !line.contains(r#""op":"commit""#))
                .unwrap();
            let (before, rest) = line.split_once(r#""tx":"#).unwrap();
            let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            assert_eq!(format!("{before}\"tx\":N{rest}"), want);
        }
        tail.stop();
    }
    let said = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_woodchuck")).args(args).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let file = path.to_str().unwrap();
    let (code, text) = said(&["tail", file, "--where", "t: w = 1"]);
    assert!(code == Some(2) && text.contains("no such column: w"), "{text}");
    let (code, text) = said(&["inspect", file, "--view", "rows", "--where", "t: w = 1"]);
    assert!(code == Some(2) && text.contains("no such column: w"), "{text}");
    let (code, text) = said(&["inspect", file, "--where", "t: v = 1"]);
    assert!(code == Some(2) && text.contains("about row changes"), "{text}");
    assert_eq!(said(&["inspect", file, "--view", "rows", "--where", "t: v = 1", "--where", "none: a = 1"]).0, Some(0));
}

#[test]
fn once_shows_what_was_committed_since_the_last_time_however_much_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let once = || {
        let output = Command::new(env!("CARGO_BIN_EXE_woodchuck"))
            .arg("tail")
            .arg(&path)
            .args(["--once", "--format", "json", "--state-dir"])
            .arg(dir.path().join("place"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        (lines, said)
    };
    let run = |sql: &str| {
        // The last close leaves one file.
        let app = Connection::open(&path).unwrap();
        app.execute_batch(sql).unwrap();
        app.close().unwrap();
    };
    run("PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v);
         WITH c(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < 5000) INSERT INTO t SELECT i, 'v' FROM c");
    let (lines, said) = once();
    assert!(lines.is_empty() && said.contains("the place is set"), "{said}");
    run("INSERT INTO t VALUES(5001, 'new')");
    let (lines, _) = once();
    assert_eq!(lines.iter().filter(|line| line.contains(r#""op":"insert""#)).count(), 1, "{lines:?}");
    run("DELETE FROM t WHERE id > 500");
    let (lines, _) = once();
    assert_eq!(lines.iter().filter(|line| line.contains(r#""op":"delete""#)).count(), 4501);
    assert_eq!(once().0, Vec::<String>::new(), "nothing twice");
}
