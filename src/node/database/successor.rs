//! Another file has the database's name, or other content came into it behind SQLite's back: it is attached anew, in the running process,
//! and what differs from the shadow is a local change like any that was made while nobody followed.

use std::path::Path;
use std::time::Duration;

use super::{Database, Links, Stop};
use crate::apply::State;
use crate::capture::{CaptureError, DatabaseFile};
use crate::node::attached::{Attached, Successor};
use crate::node::patience::patiently;
use crate::node::start::stored_position;
use crate::node::state_dir::StateDirectory;
use crate::node::{NodeError, RunConfig};

/// How often the name is looked at while there is nothing to attach.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

impl Database {
    /// The first look of a process, also where the file is not the one any more that a former process worked on. `None` when told to stop
    /// before.
    pub(in crate::node) fn begin_where_it_stopped(mut self) -> Result<Option<Database>, NodeError> {
        match self.settle_intent() {
            Err(error) if self.attached.has_lost_file(&error) => self.attach_anew(&error),
            settled => settled.map(|()| Some(self)),
        }
    }

    /// Lets go of the file and attaches the one that has its name now, as soon as that is whole. `None` when told to stop before.
    pub(super) fn attach_anew(mut self, cause: &NodeError) -> Result<Option<Database>, NodeError> {
        tracing::warn!("{cause}; attaching what has the name now");
        self.reporter.phase = "waiting";
        self.reporter.trouble(cause.to_string());
        self.report_now();
        self.replica.rollback(&self.attached.connection)?;
        self.behind.stop_looking();
        // Everything of the old file goes before anything of the new one comes: both use the same -shm, and closing there drops locks.
        self.attached.abandon();
        self.replica.begin_anew()?;
        match attach_successor(&self.config, &self.directory, self.replica.state(), &mut self.links) {
            Ok(Some(attached)) => self.attached = attached,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.reporter.end(&self.directory, &error);
                return Err(error);
            }
        }
        self.stored = None;
        self.blocked.clear();
        if let Err(error) = self.settle_intent() {
            self.reporter.end(&self.directory, &error);
            return Err(error);
        }
        self.reporter.phase = if self.log.open { "running" } else { "starting" };
        self.reporter.trouble(String::new());
        tracing::info!("{}: attached anew", self.config.db_path.display());
        Ok(Some(self))
    }
}

/// `None` when the node was told to stop.
fn attach_successor(
    config: &RunConfig,
    directory: &StateDirectory,
    state: &State,
    links: &mut Links,
) -> Result<Option<Attached>, NodeError> {
    if !wait_for_successor(links, &config.db_path)? {
        return Ok(None);
    }
    directory.refuse_removed()?;
    let stored = stored_position(state)?;
    // Before anything of the state directory is opened by its name.
    if !DatabaseFile::open(&config.db_path)?.claim() {
        return Err(NodeError::AlreadyAttached { path: config.db_path.clone() });
    }
    let from = stored.map(|(position, _)| position);
    let mut attached = patiently(&links.stop, || Attached::open(config, from, &links.wake, &links.stop))?;
    attached.follower.distrust_log();
    if let Some((_, next_tx)) = stored {
        attached.follower.set_next_tx(next_tx);
    }
    Ok(Some(attached))
}

/// Whether there is a file to attach; otherwise the node was told to stop.
fn wait_for_successor(links: &mut Links, path: &Path) -> Result<bool, CaptureError> {
    let mut successor = Successor::default();
    let mut told = String::new();
    while let Some(reason) = successor.look(path)? {
        if *links.stop.borrow() != Stop::No {
            return Ok(false);
        }
        if reason != told {
            tracing::warn!("{reason}");
            told = reason;
        }
        let _ = links.handle.block_on(async { tokio::time::timeout(LOOK_INTERVAL, links.stop.changed()).await });
    }
    Ok(true)
}
