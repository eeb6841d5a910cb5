//! `run`: one node, from start to stop.

use std::io::{IsTerminal, Write};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::exit::{Exit, Failure};
use crate::fault;
use crate::node::{NodeError, RunConfig, Stop, Verdict};

/// The database thread does the work; these carry messages.
const NETWORK_THREADS: usize = 2;

/// Runs a node until SIGINT or SIGTERM; a second signal does not wait for the server.
///
/// # Errors
/// [`Failure`] with the code that the node's verdict asks for.
pub(super) fn run(config: RunConfig, verbose: bool) -> Result<(), Failure> {
    start_logging(verbose);
    fault::arm_from_environment()
        .map_err(|text| Failure::usage(format_args!("{}: there is no fault point {text:?}", fault::VARIABLE)))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format_args!("cannot start the network threads: {error}")))?;
    let (stop, stopping) = watch::channel(Stop::No);
    let ended = runtime.block_on(async move {
        let signals = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
        let (mut interrupt, mut terminate) =
            signals.map_err(|error| Failure::failed(format_args!("cannot wait for signals: {error}")))?;
        // A file that would get larger than this process may make it is an error as on a full disk, and no end without a word.
        let _ = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
        tokio::spawn(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                let next = if *stop.borrow() == Stop::No { Stop::Graceful } else { Stop::Now };
                tracing::info!(
                    "{}",
                    if next == Stop::Graceful { "stopping: publishing what was captured" } else { "stopping at once" }
                );
                let _ = stop.send(next);
            }
        });
        crate::node::run(config, stopping).await.map_err(Failure::from)
    });
    // Whatever still waits for the server does not keep the process.
    runtime.shutdown_background();
    if ended.is_ok() {
        tracing::info!("stopped");
    }
    ended
}

pub(super) fn start_logging(verbose: bool) {
    let default = if verbose { "woodchuck=debug,async_nats=info" } else { "woodchuck=info,async_nats=error" };
    let filter = EnvFilter::try_from_env("WOODCHUCK_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| QuietStderr)
        .with_target(false)
        .with_ansi(colour)
        .finish();
    // Only a second call could fail, and there is one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Stderr that does not mind being closed.
struct QuietStderr;

impl Write for QuietStderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Failure {
        let exit = match error.verdict() {
            Verdict::Failed => Exit::Failed,
            Verdict::Usage => Exit::Usage,
            Verdict::Refused => Exit::Refused,
        };
        let hint = error.hint();
        Failure { exit, ..Failure::of(&error) }.hint(hint)
    }
}
