//! Waiting while another process keeps everybody from reading: the last close of an application, which checkpoints; who reads a log anew
//! whose last writer was killed; a writer that was stopped in the middle of its commit.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::database::Stop;
use super::error::NodeError;
use crate::capture::ShadowError;

/// How long a node that starts waits. An application with `locking_mode=EXCLUSIVE` never lets go, and whoever starts the node must be told.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Runs a step of the start until nobody is in its way.
///
/// # Errors
/// What the step fails with, and [`ShadowError::Interrupted`] when the node is told to stop meanwhile.
pub(super) fn patiently<T>(
    stop: &watch::Receiver<Stop>,
    mut step: impl FnMut() -> Result<T, NodeError>,
) -> Result<T, NodeError> {
    let began = Instant::now();
    let mut is_told = false;
    loop {
        match step() {
            Err(error) if error.is_locked() && began.elapsed() < START_PATIENCE => {
                if !is_told {
                    tracing::warn!("{error}: waiting for it");
                    is_told = true;
                }
            }
            done => return done,
        }
        refuse_stopped(stop)?;
    }
}

/// Ends a start that nobody wants any more.
///
/// # Errors
/// [`ShadowError::Interrupted`] when the node was told to stop.
pub(super) fn refuse_stopped(stop: &watch::Receiver<Stop>) -> Result<(), NodeError> {
    if *stop.borrow() == Stop::No {
        return Ok(());
    }
    Err(NodeError::Capture(ShadowError::Interrupted.into()))
}
