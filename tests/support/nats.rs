//! A real nats-server with JetStream, alone or three of them, that can be killed and started again on its port and its data.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take until it answers. Builds that run beside the tests make it slow.
const START_MAX: Duration = Duration::from_secs(30);

/// One server. Dropping it kills it and deletes its data.
pub struct NatsServer {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl NatsServer {
    /// Starts a server with JetStream.
    pub fn start() -> NatsServer {
        NatsServer::start_with("")
    }

    /// Starts a server with more lines in its configuration, such as `max_payload: 16384`.
    pub fn start_with(config: &str) -> NatsServer {
        let mut server = NatsServer::prepare(free_port(), "alone", "", config);
        server.restart();
        server
    }

    /// Starts a server that has on disk what it acknowledges.
    pub fn start_durable() -> NatsServer {
        let mut server = NatsServer::prepare(free_port(), "alone", "sync_interval: always", "");
        server.restart();
        server
    }

    fn prepare(port: u16, name: &str, jetstream: &str, config: &str) -> NatsServer {
        let dir = tempfile::tempdir().expect("a directory for nats-server");
        let store = dir.path().join("store");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nserver_name: {name}\njetstream {{\nstore_dir: {:?}\n{jetstream}\n}}\n{config}\n",
            store.to_str().expect("the directory's name is UTF-8")
        );
        std::fs::write(dir.path().join("nats.conf"), text).expect("nats.conf is written");
        NatsServer { dir, port, child: None }
    }

    /// The address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server as `kill -9` does. Its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("nats-server is killed");
            child.wait().expect("nats-server ends");
        }
    }

    /// Stops the server as a machine that hangs does: connections stay, and nothing is answered until [`NatsServer::resume`].
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("nats-server runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal)
            .expect("nats-server is signalled");
    }

    /// Deletes what the server stored; call it while it is killed.
    pub fn delete_store(&self) {
        std::fs::remove_dir_all(self.dir.path().join("store")).expect("the store is deleted");
    }

    /// Copies what the server stored to a directory, or back from it; call both while it is killed.
    pub fn copy_store(&self, other: &Path, back: bool) {
        let store = self.dir.path().join("store");
        let (from, to) = if back { (other, store.as_path()) } else { (store.as_path(), other) };
        let status = Command::new("cp").arg("-rT").arg(from).arg(to).status().expect("cp runs");
        assert!(status.success(), "the store is copied");
    }

    /// Starts the server again, on the same port with the same data, and waits until it answers.
    pub fn restart(&mut self) {
        self.spawn();
        self.wait_until_it_answers();
    }

    fn spawn(&mut self) {
        self.kill();
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let child = Command::new(binary())
            .arg("-c")
            .arg(self.dir.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        self.child = Some(child);
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("nats.log")
    }

    fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + START_MAX;
        while !answers(self.port) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
                panic!("nats-server does not answer on port {} ({ended:?}):\n{log}", self.port);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three servers that form a cluster.
pub struct NatsCluster {
    /// The servers.
    pub servers: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts them and waits until each answers. They elect a leader after that: the first requests may have to be repeated.
    pub fn start() -> NatsCluster {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let list: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let mut servers: Vec<NatsServer> = (0..3)
            .zip(&routes)
            .map(|(index, route)| {
                let cluster =
                    format!("cluster {{ name: test, listen: \"127.0.0.1:{route}\", routes: [{}] }}", list.join(", "));
                NatsServer::prepare(free_port(), &format!("n{index}"), "", &cluster)
            })
            .collect();
        servers.iter_mut().for_each(NatsServer::spawn);
        servers.iter_mut().for_each(NatsServer::wait_until_it_answers);
        NatsCluster { servers }
    }

    /// The addresses for clients.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::url).collect()
    }
}

/// A server greets with a line that says whether it has JetStream.
fn answers(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out is set");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok()
        && line.starts_with("INFO")
        && line.contains("\"jetstream\":true")
}

/// A port that is free now. Taken from below the range from which the system gives ports to clients, so that it stays free while a server
/// is down.
fn free_port() -> u16 {
    const FIRST: u16 = 14_000;
    const COUNT: u16 = 16_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_mul(37).wrapping_add(offset)) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// The program: the one that `NATS_SERVER` names, or on the PATH, or fetched by `make nats`.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return PathBuf::from(path);
    }
    let on_path = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|file| file.is_file()));
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nats/nats-server");
    match on_path {
        Some(path) => path,
        None if fetched.is_file() => fetched,
        None => panic!(
            "no nats-server: run `make nats`, or install one, or name one with NATS_SERVER (looked in PATH and at {})",
            fetched.display()
        ),
    }
}
