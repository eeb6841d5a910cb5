//! A daemon of the real binary, beside what is measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::nats::NatsServer;

/// How long a daemon may take for what is measured before the measurement is given up.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A daemon that is killed when it is dropped.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a node and waits until it says that it is ready.
    pub fn start(path: &Path, node_id: u64, server: &NatsServer, args: &[&str]) -> Result<Daemon, String> {
        let mut daemon = Daemon::spawn(path, node_id, server, args);
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    /// Starts a node.
    pub fn spawn(path: &Path, node_id: u64, server: &NatsServer, args: &[&str]) -> Daemon {
        let log = path.with_extension("log");
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_woodchuck"))
            .args(["run", "--node-id", &node_id.to_string(), "--nats-url", &server.url(), "--db-path"])
            .arg(path)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Daemon { child, log }
    }

    /// Waits until it says that it is ready.
    pub fn wait_until_ready(&mut self) -> Result<(), String> {
        self.wait("ready", |log| log.contains("ready"))
    }

    fn wait(&mut self, what: &str, mut is_there: impl FnMut(&str) -> bool) -> Result<(), String> {
        let begin = Instant::now();
        while !is_there(&self.said()) {
            if let Some(why) = self.ended() {
                return Err(why);
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("not {what} after {} s: {}", PATIENCE.as_secs(), self.said()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until a query about an id and a text finds something.
    pub fn wait_for_row(&mut self, path: &Path, sql: &str, row: (i64, String)) -> Result<(), String> {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        self.wait("there", |_| connection.prepare_cached(sql).unwrap().exists(rusqlite::params![row.0, row.1]).unwrap())
    }

    /// How long it compared and how long writers were kept out while it caught up from a snapshot, as its log has it.
    pub fn caught_up_in(&self) -> Option<[Duration; 2]> {
        let log = self.said();
        let line = log.lines().rfind(|line| line.contains("caught up from snapshot"))?;
        let after = |words: &str| {
            let text = line.split(words).nth(1)?.split([' ', ',']).next()?;
            match text.strip_suffix("ms") {
                Some(number) => Some(Duration::from_secs_f64(number.parse::<f64>().ok()? / 1e3)),
                None => Some(Duration::from_secs_f64(text.strip_suffix('s')?.parse().ok()?)),
            }
        };
        Some([after("compared for ")?, after("could not write for ")?])
    }

    /// Tells it to stop, and waits for it.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "the daemon ends well: {}", self.said());
    }

    /// Why it ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().unwrap()?;
        Some(format!("`woodchuck run` ended ({status}): {}", self.said().lines().next().unwrap_or("")))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
