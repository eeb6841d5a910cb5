//! Cases of live databases, one test each, with the program run as its users run it.

mod bad_input;
mod live;
mod sizes;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

/// An application in a process of its own: SQL statements in, one line each out.
struct Application {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

const APPLICATION: &str = "import sqlite3,sys,json\n\
    db=sqlite3.connect(sys.argv[1],isolation_level=None,timeout=float(sys.argv[2]))\n\
    db.execute('PRAGMA synchronous=OFF')\n\
    for line in sys.stdin:\n\
    \x20   try: answer=db.execute(json.loads(line)).fetchall()\n\
    \x20   except sqlite3.Error as error: answer=str(error)\n\
    \x20   print(answer,flush=True)\n\
    db.close()\n";

impl Application {
    fn start(path: &Path) -> Application {
        Application::with_timeout(path, "10")
    }

    fn with_timeout(path: &Path, seconds: &str) -> Application {
        let mut command = Command::new("python3");
        command.args(["-c", APPLICATION]).arg(path).arg(seconds).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is needed as an application");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Application { child, input, output }
    }

    fn run(&mut self, sql: &str) -> String {
        writeln!(self.input, "{}", serde_json::to_string(sql).unwrap()).unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Runs a statement that must not fail.
    #[track_caller]
    fn must(&mut self, sql: &str) -> String {
        let answer = self.run(sql);
        assert!(answer.starts_with('['), "{sql}: {answer}");
        answer
    }

    fn close(mut self) {
        drop(self.input);
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// `woodchuck tail`, running.
struct Tail {
    child: Child,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Tail {
    fn start(path: &Path, format: &str) -> Tail {
        let mut command = Command::new(env!("CARGO_BIN_EXE_woodchuck"));
        command.arg("tail").arg(path).args(["--format", format]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (out, mut err) =
            (BufReader::new(child.stdout.take().unwrap()), BufReader::new(child.stderr.take().unwrap()));
        let mut line = String::new();
        err.read_line(&mut line).unwrap();
        assert!(line.starts_with("following "), "{line}");
        Tail { child, out, err }
    }

    /// Lines up to the next commit.
    fn transaction(&mut self) -> Vec<serde_json::Value> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "tail ended: {}", self.errors());
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            let done = event["op"] == "commit";
            lines.push(event);
            if done {
                return lines;
            }
        }
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.err.read_to_string(&mut text).unwrap();
        text
    }

    fn ask_to_end(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Asks it to end and returns what it still printed.
    fn stop(mut self) -> String {
        self.ask_to_end();
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        let errors = self.errors();
        assert!(self.child.wait().unwrap().success(), "{errors}");
        rest
    }

    /// Waits for its own end: exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        let errors = self.errors();
        (self.child.wait().unwrap().code(), errors)
    }
}

/// A database in WAL mode with a table `t(id INTEGER PRIMARY KEY, v)` and one row.
fn database(dir: &Path) -> PathBuf {
    let path = dir.join("app.db");
    let mut application = Application::start(&path);
    application.must("PRAGMA journal_mode=WAL");
    application.must("CREATE TABLE t(id INTEGER PRIMARY KEY, v)");
    application.must("INSERT INTO t(v) VALUES('first')");
    application.close();
    path
}

fn wal_bytes(path: &Path) -> u64 {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    std::fs::metadata(name).map_or(0, |metadata| metadata.len())
}
