//! Nodes as people run them: the program itself, on copies of one database, with a real server between them and applications that know
//! nothing of anybody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use woodchuck::node::{Status, read_status};

use super::nats::NatsServer;

/// How long anything may take. Builds that run beside the tests make everything slow.
pub const WITHIN: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `found` gives something; panics with `what` and whatever was seen last when it does not.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        match found() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "{what} within {WITHIN:?}; last seen: {seen}"),
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The program with some arguments, and nothing of the caller's settings.
pub fn woodchuck(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_woodchuck"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WOODCHUCK_")) {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// One node: a database, its daemon and the daemon's log.
pub struct Node {
    pub id: u64,
    pub db: PathBuf,
    log: PathBuf,
    pub args: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// A node that does not run yet, on a database that is there.
    pub fn new(id: u64, db: &Path, args: &[&str]) -> Node {
        let log = db.with_extension("log");
        Node { id, db: db.to_owned(), log, args: args.iter().map(|arg| (*arg).to_owned()).collect(), child: None }
    }

    /// Starts the daemon and does not wait for anything.
    pub fn spawn(&mut self) {
        self.spawn_with(&[]);
    }

    pub fn spawn_with(&mut self, env: &[(&str, &str)]) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = std::fs::File::create(&self.log).unwrap();
        let id = self.id.to_string();
        let child = woodchuck(&["run", "--db-path"])
            .arg(&self.db)
            .args(["--node-id", &id])
            .args(&self.args)
            .envs(env.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Starts the daemon so that no file of its own grows beyond `bytes`: its disk is full, for it alone.
    pub fn spawn_on_full_disk(&mut self, bytes: u64) {
        const LIMIT: &str = "import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])";
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = std::fs::File::create(&self.log).unwrap();
        let child = Command::new("python3")
            .args(["-c", LIMIT, &bytes.to_string(), env!("CARGO_BIN_EXE_woodchuck"), "run", "--db-path"])
            .arg(&self.db)
            .args(["--node-id", &self.id.to_string()])
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    pub fn wait_until_ready(&mut self) {
        self.wait_until_it_says("ready: node");
    }

    /// Waits for a line of the log; fails at once when the daemon has ended without it.
    pub fn wait_until_it_says(&mut self, text: &str) {
        let deadline = Instant::now() + WITHIN;
        loop {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            if self.log().contains(text) {
                return;
            }
            let (id, log) = (self.id, self.log());
            assert!(ended.is_none(), "node {id} ended ({ended:?}) without saying {text:?}:\n{log}");
            assert!(Instant::now() < deadline, "node {id} does not say {text:?}:\n{log}");
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    pub fn state_dir(&self) -> PathBuf {
        let mut name = self.db.clone().into_os_string();
        name.push("-woodchuck");
        name.into()
    }

    pub fn status(&self) -> Result<Status, String> {
        read_status(&self.state_dir()).map_err(|error| format!("node {}: {error}", self.id))
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("the node runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    /// Whether the daemon has ended by itself, and how. It can be started again then.
    pub fn try_end(&mut self) -> Option<ExitStatus> {
        let ended = self.child.as_mut()?.try_wait().unwrap();
        if ended.is_some() {
            self.child = None;
        }
        ended
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Waits for the daemon to end by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        let ended = wait_for("the end of a node", || child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned()));
        self.child = None;
        ended
    }

    /// Asks the daemon to end, and expects that it says 0.
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let ended = self.wait_for_end();
        assert!(ended.success(), "node {} ended with {ended}:\n{}", self.id, self.log());
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// One value of the database, as text.
    pub fn value(&self, sql: &str) -> String {
        let db = Connection::open_with_flags(&self.db, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        db.busy_timeout(WITHIN).unwrap();
        db.query_row(&format!("SELECT quote(({sql}))"), [], |row| row.get(0)).unwrap()
    }

    pub fn tables(&self) -> Tables {
        tables(&self.db)
    }

    /// Runs a script in another process, as the `sqlite3` program would: each statement commits by itself unless the script begins a
    /// transaction.
    pub fn sql(&self, sql: &str) {
        application(&self.db, "sql", &[sql]).end();
    }

    /// A command of ours about this node.
    pub fn ask(&self, command: &str, args: &[&str]) -> Output {
        woodchuck(&[command, "--db-path"]).arg(&self.db).args(args).output().unwrap()
    }

    /// What `conflicts` lists.
    pub fn conflicts(&self) -> Vec<serde_json::Value> {
        let output = self.ask("conflicts", &["--format", "json"]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- node {} ({})\n{}", self.id, self.db.display(), self.log());
            if let Ok(status) = self.status() {
                eprintln!("{status:?}");
            }
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// An application in a process of its own.
pub struct Application {
    child: Child,
    what: String,
}

impl Application {
    /// Waits for its end, expects that it met no error, and returns what it printed.
    pub fn end(self) -> String {
        let output = self.child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the application met an error: {}\n{errors}", self.what);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// Starts an application on a database.
pub fn application(db: &Path, mode: &str, args: &[&str]) -> Application {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/application.py");
    let child = Command::new("python3")
        .arg(script)
        .arg(db)
        .arg(mode)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Application { child, what: format!("{} {mode} {args:?}", db.display()) }
}

/// All tables with their rows as sorted text.
pub type Tables = BTreeMap<String, Vec<String>>;

/// Reads everything in one transaction. What SQLite and virtual tables keep for themselves is not compared.
pub fn tables(db: &Path) -> Tables {
    let db = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    db.busy_timeout(WITHIN).unwrap();
    db.execute_batch("BEGIN").unwrap();
    let list =
        "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT GLOB 'sqlite_*'";
    let names: Vec<String> =
        db.prepare(list).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut tables = Tables::new();
    for name in names {
        let columns = "SELECT group_concat('typeof(' || quoted || ') || '':'' || quote(' || quoted || ')', ' || ''|'' || ')
            FROM (SELECT '\"' || replace(name, '\"', '\"\"') || '\"' AS quoted FROM pragma_table_xinfo(?1) WHERE hidden <> 1)";
        let columns: String = db.query_row(columns, [&name], |row| row.get(0)).unwrap();
        let sql = format!("SELECT {columns} FROM \"{}\"", name.replace('"', "\"\""));
        // Text of an application may be no UTF-8.
        let shown = |row: &rusqlite::Row<'_>| {
            Ok(String::from_utf8(row.get_ref(0)?.as_bytes()?.to_vec())
                .unwrap_or_else(|error| error.into_bytes().escape_ascii().to_string()))
        };
        let mut rows: Vec<String> =
            db.prepare(&sql).unwrap().query_map([], shown).unwrap().map(Result::unwrap).collect();
        rows.sort_unstable();
        tables.insert(name, rows);
    }
    tables
}

/// The first differences between two databases, or `None`.
pub fn difference(a: &Tables, b: &Tables) -> Option<String> {
    const SHOWN: usize = 4;
    let mut out = String::new();
    for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
        let empty = Vec::new();
        let (left, right) = (a.get(name).unwrap_or(&empty), b.get(name).unwrap_or(&empty));
        if left != right {
            let shorten = |row: &&String| row.chars().take(300).collect::<String>();
            let only = |rows: &[String], other: &[String]| -> Vec<String> {
                rows.iter()
                    .filter(|row| other.binary_search(row).is_err())
                    .take(SHOWN)
                    .map(|row| shorten(&row))
                    .collect()
            };
            out += &format!(
                "{name}: {} and {} rows; only first: {:?}; only second: {:?}\n",
                left.len(),
                right.len(),
                only(left, right),
                only(right, left)
            );
        }
    }
    (!out.is_empty()).then_some(out)
}

/// A server and nodes.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub server: NatsServer,
    pub dir: TempDir,
}

impl Cluster {
    /// Starts `count` nodes on copies of a database made by `schema`.
    pub fn start(count: u64, schema: &str) -> Cluster {
        let mut cluster = Cluster::prepare(count, schema, "", &[]);
        cluster.start_nodes();
        cluster
    }

    /// As [`Cluster::start`], with lines for the server's configuration and options for every node, and without starting the nodes.
    pub fn prepare(count: u64, schema: &str, server: &str, args: &[&str]) -> Cluster {
        Cluster::prepare_copies(count, server, args, |db| {
            let application = Connection::open(db).unwrap();
            application.execute_batch(schema).unwrap();
        })
    }

    pub fn prepare_copies(count: u64, server: &str, args: &[&str], make: impl FnOnce(&Path)) -> Cluster {
        Cluster::prepare_at(NatsServer::start_with(server), count, args, make)
    }

    pub fn prepare_at(server: NatsServer, count: u64, args: &[&str], make: impl FnOnce(&Path)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first.db");
        make(&first);
        Connection::open(&first).unwrap().pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
        let url = server.url();
        let nodes = (1..=count)
            .map(|id| {
                let db = dir.path().join(format!("node-{id}")).join("app.db");
                std::fs::create_dir(db.parent().unwrap()).unwrap();
                std::fs::copy(&first, &db).unwrap();
                Node::new(id, &db, &[&["--nats-url", url.as_str()], args].concat())
            })
            .collect();
        Cluster { nodes, server, dir }
    }

    pub fn start_nodes(&mut self) {
        self.nodes.iter_mut().for_each(Node::spawn);
        self.nodes.iter_mut().for_each(Node::wait_until_ready);
    }

    /// As the function of this name, for all nodes.
    pub fn settle(&self) -> Tables {
        settle(&self.nodes)
    }

    /// Ends all nodes as an operator does.
    pub fn stop(&mut self) {
        self.nodes.iter_mut().for_each(Node::stop);
    }
}

/// Waits until nobody has anything to say any more and all databases are equal, and returns what they hold. To be called when the
/// applications have ended.
pub fn settle(nodes: &[Node]) -> Tables {
    let tables = settle_or_differ(nodes);
    for node in nodes {
        assert_eq!(node.value("SELECT integrity_check FROM pragma_integrity_check"), "'ok'", "node {}", node.id);
    }
    tables
}

fn settle_or_differ(nodes: &[Node]) -> Tables {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let asked_at_ms = now.as_millis() as u64;
    wait_for("quiet and equal nodes", || {
        let mut positions = None;
        for node in nodes {
            let status = node.status()?;
            let applied: BTreeMap<u16, u64> = status.shards.iter().map(|(no, shard)| (*no, shard.applied)).collect();
            let is_quiet = status.written_at_ms > asked_at_ms
                && status.outbox_units == 0
                && status.inbox_messages == 0
                && status.shards.values().all(|shard| shard.applied == shard.last)
                && *positions.get_or_insert(applied.clone()) == applied;
            if !is_quiet {
                return Err(format!("node {} is not quiet: {status:?}", node.id));
            }
        }
        let mut all = nodes.iter().map(Node::tables);
        let first = all.next().unwrap_or_default();
        for (other, node) in all.zip(nodes.iter().skip(1)) {
            if let Some(difference) = difference(&first, &other) {
                return Err(format!("node {} differs from the first: {difference}", node.id));
            }
        }
        Ok(first)
    })
}

/// Prints the seed when the test that made it fails.
pub struct Seed(pub u64);

impl Seed {
    /// The one that `SEED` names, or another each time.
    pub fn pick() -> Seed {
        let named = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Seed(named.unwrap_or(now.as_nanos() as u64 % 1_000_000_007))
    }

    pub fn text(&self, of: u64) -> String {
        self.0.wrapping_mul(31).wrapping_add(of).to_string()
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("SEED={}", self.0);
        }
    }
}
