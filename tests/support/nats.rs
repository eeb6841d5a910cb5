//! A real nats-server with JetStream, alone or three of them, that can be killed and started again on its port and its data.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::gate::Gate;

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

    /// Starts a server that answers at a monitoring port, too.
    pub fn start_monitored(monitoring_port: u16, syncs: bool) -> NatsServer {
        let sync = if syncs { "sync_interval: always" } else { "" };
        let config = format!("http: \"127.0.0.1:{monitoring_port}\"");
        let mut server = NatsServer::prepare(free_port(), "alone", sync, &config);
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

    /// Ends the server as an operator does, and waits for its end.
    pub fn end(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        if let Some(mut child) = self.child.take() {
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

/// Three servers that form a cluster. Every route between two of them has a gate.
pub struct NatsCluster {
    /// The servers, named n0, n1 and n2.
    pub servers: Vec<NatsServer>,
    monitors: Vec<u16>,
    /// From which server, to which.
    gates: Vec<((usize, usize), Gate)>,
}

impl NatsCluster {
    /// Starts them and waits until each answers. They elect a leader after that: the first requests may have to be repeated.
    pub fn start() -> NatsCluster {
        NatsCluster::start_with("")
    }

    /// As [`NatsCluster::start`], with more lines in the configuration of each.
    pub fn start_with(config: &str) -> NatsCluster {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let monitors: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to))).filter(|(from, to)| from != to);
        let gates: Vec<((usize, usize), Gate)> = pairs.map(|(from, to)| ((from, to), Gate::new(routes[to]))).collect();
        let mut servers: Vec<NatsServer> = (0..3)
            .map(|index| {
                let others = gates.iter().filter(|((from, _), _)| *from == index);
                let list: Vec<String> =
                    others.map(|(_, gate)| format!("\"nats://127.0.0.1:{}\"", gate.port())).collect();
                // What servers tell each other about a third one leads nowhere: all their ways go through the gates.
                let cluster = format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{}\", advertise: \"127.0.0.1:1\", routes: [{}] }}\nhttp: \"127.0.0.1:{}\"\n{config}",
                    routes[index],
                    list.join(", "),
                    monitors[index],
                );
                NatsServer::prepare(free_port(), &format!("n{index}"), "", &cluster)
            })
            .collect();
        servers.iter_mut().for_each(NatsServer::spawn);
        servers.iter_mut().for_each(NatsServer::wait_until_it_answers);
        NatsCluster { servers, monitors, gates }
    }

    /// The addresses for clients.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(NatsServer::url).collect()
    }

    /// Cuts the network between a server and the two others, or joins it again. Clients reach all three.
    pub fn cut_off(&self, server: usize, cut: bool) {
        let of_server = self.gates.iter().filter(|((from, to), _)| *from == server || *to == server);
        of_server.for_each(|(_, gate)| gate.set_open(!cut));
    }

    /// What a server says of itself under a path of its monitor; nothing while it does not answer, or says that it is not well.
    pub fn look(&self, server: usize, path: &str) -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.monitors[server])).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: nats\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let is_well = head.lines().next()?.contains(" 200 ");
        is_well.then(|| serde_json::from_str(body).ok())?
    }

    /// The server that leads a stream, as server `asked` has it.
    pub fn leader(&self, asked: usize, stream: &str) -> Option<usize> {
        let found = self.look(asked, "/jsz?accounts=true&streams=true")?;
        let streams = found["account_details"].as_array()?.iter().filter_map(|of| of["stream_detail"].as_array());
        let stream = streams.flatten().find(|of| of["name"] == stream)?;
        stream["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok()
    }

    /// The server to which a client is connected.
    pub fn server_of(&self, client: &str) -> Option<usize> {
        (0..3).find(|server| {
            let found = self.look(*server, "/connz");
            let found = found.as_ref().and_then(|found| found["connections"].as_array());
            found.is_some_and(|all| all.iter().any(|connection| connection["name"] == client))
        })
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
