//! Questions of people to a running node: a socket in its state directory, one line of JSON each way.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::error::NodeError;
use super::verify::{Verifier, VerifyOptions, VerifyReport};
use super::waiting::Waits;

/// The name of the socket.
const SOCKET: &str = "control";
/// No question is longer.
const QUESTION_BYTES_MAX: u64 = 64 << 10;
/// What an answer may take beyond the time that the question gives.
const ANSWER_SLACK: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum ControlQuestion {
    /// To wait until what is committed here is applied elsewhere.
    Wait {
        /// On this node; `None`: on all that are connected.
        node: Option<u64>,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// To compare the databases of all nodes.
    Verify(VerifyOptions),
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlAnswer {
    /// It is applied on these nodes.
    Applied {
        /// Their ids.
        nodes: Vec<u64>,
    },
    /// It was not within the time.
    Late {
        /// What was being waited for.
        what: String,
    },
    /// What came of comparing.
    Verified(VerifyReport),
    /// It cannot be done.
    Failed {
        /// Why.
        what: String,
    },
}

/// A path of any length, short enough for a socket's address as long as `directory` is open.
fn short(directory: &std::fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

/// Answers questions until it is dropped. What fails is told and does without: the node's work does not depend on it.
pub(super) async fn answer_questions(state_dir: PathBuf, waits: Arc<Waits>, verifier: Arc<Verifier>) {
    let listener = std::fs::File::open(&state_dir).and_then(|directory| {
        // Whoever holds the directory's lock owns the name.
        let _ = std::fs::remove_file(state_dir.join(SOCKET));
        UnixListener::bind(short(&directory))
    });
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!("{}: cannot listen for questions: {error}", state_dir.display());
            return std::future::pending().await;
        }
    };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tasks.spawn(answer(stream, Arc::clone(&waits), Arc::clone(&verifier)))),
                Err(error) => tracing::debug!("a question could not be taken: {error}"),
            },
            _ = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

async fn answer(stream: UnixStream, waits: Arc<Waits>, verifier: Arc<Verifier>) {
    let (from, mut to) = stream.into_split();
    let mut line = String::new();
    let mut from = tokio::io::BufReader::new(from.take(QUESTION_BYTES_MAX));
    if from.read_line(&mut line).await.is_err() {
        return;
    }
    let answer = match serde_json::from_str(&line) {
        Ok(ControlQuestion::Wait { node, timeout_ms }) => waits.wait(node, Duration::from_millis(timeout_ms)).await,
        Ok(ControlQuestion::Verify(options)) => match verifier.verify(options).await {
            Ok(report) => ControlAnswer::Verified(report),
            Err(what) => ControlAnswer::Failed { what },
        },
        Err(error) => ControlAnswer::Failed { what: format!("the node does not understand the question: {error}") },
    };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    // Whoever asked may be gone.
    let _ = to.write_all(&text).await;
}

/// Asks the node that runs on a state directory. `within` is what the question itself may take.
///
/// # Errors
/// [`NodeError::NotAnswering`] when no node runs there, it is not connected to its server, or it answers nothing.
pub fn ask_node(state_dir: &Path, question: &ControlQuestion, within: Duration) -> Result<ControlAnswer, NodeError> {
    let asked = || -> std::io::Result<ControlAnswer> {
        let directory = std::fs::File::open(state_dir)?;
        let mut stream = std::os::unix::net::UnixStream::connect(short(&directory))?;
        stream.set_read_timeout(Some(within.saturating_add(ANSWER_SLACK)))?;
        let mut text = serde_json::to_vec(question)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    asked().map_err(|source| NodeError::NotAnswering { path: state_dir.to_owned(), source })
}
