//! A NATS server of our own, for a machine where none listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::error::NodeError;

/// Where a server is looked for, and where ours listens.
pub const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 4222);
/// A listener on the same machine answers at once.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
/// How long a server that died is left alone: long enough not to spin on a full disk, short enough not to be missed.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// How long a server gets to close its streams.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Whether somebody listens where a server would.
async fn somebody_listens() -> bool {
    let address = SocketAddr::from(ADDRESS);
    matches!(tokio::time::timeout(ANSWER_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// The program: the one that `NATS_SERVER` names, or the first on the PATH.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from).filter(|path| path.is_file());
    named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|path| path.is_file())
    })
}

/// Returns when `stop` says so, or nobody can say it any more.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A supervised server.
pub(super) struct ManagedServer {
    program: PathBuf,
    directory: PathBuf,
    child: Child,
}

impl ManagedServer {
    /// Starts a server unless one listens already.
    pub(super) async fn start_if_alone(state_dir: &Path) -> Result<Option<ManagedServer>, NodeError> {
        if somebody_listens().await {
            return Ok(None);
        }
        let program = program().ok_or_else(|| NodeError::NoServer { address: DEFAULT_URL.to_owned() })?;
        let directory = state_dir.join("nats");
        let child = spawn(&program, &directory)?;
        tracing::info!("started {} on {DEFAULT_URL}, with its data in {}", program.display(), directory.display());
        Ok(Some(ManagedServer { program, directory, child }))
    }

    /// Keeps the server running until `stop` says otherwise, then ends it.
    pub(super) async fn supervise(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                ended = self.child.wait() => {
                    tracing::warn!("the NATS server ended ({}); starting it again", ended.map_or_else(|e| e.to_string(), |s| s.to_string()));
                    tokio::time::sleep(RESTART_AFTER).await;
                    match spawn(&self.program, &self.directory) {
                        Ok(child) => self.child = child,
                        Err(error) => tracing::error!("{error}"),
                    }
                }
            }
        }
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(STOP_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn spawn(program: &Path, directory: &Path) -> Result<Child, NodeError> {
    let fail = |source| NodeError::Server { path: program.to_owned(), source };
    std::fs::create_dir_all(directory).map_err(fail)?;
    let config = directory.join("nats.conf");
    let store = directory.join("jetstream").display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    let (ip, port) = ADDRESS;
    let [a, b, c, d] = ip;
    // An acknowledged message must survive the machine: the server's own default acknowledges before it syncs.
    let text = format!(
        "listen: \"{a}.{b}.{c}.{d}:{port}\"\njetstream {{\n  store_dir: \"{store}\"\n  sync_interval: always\n}}\n"
    );
    std::fs::write(&config, text).map_err(fail)?;
    let log = std::fs::File::create(directory.join("nats.log")).map_err(fail)?;
    Command::new(program)
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        // Ctrl-C at the terminal goes to us; we end the server after our last message.
        .process_group(0)
        .spawn()
        .map_err(fail)
}
