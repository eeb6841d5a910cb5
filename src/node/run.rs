//! One node from start to stop.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::config::RunConfig;
use super::database::{Links, Stop};
use super::error::NodeError;
use super::network::{Ends, serve};
use super::server::ManagedServer;
use super::snapshot::join;
use super::start::open;
use crate::capture::{CaptureError, ShadowError};

/// Messages between the network and the database thread: enough to keep either busy while the other works.
const MESSAGES_UNDER_WAY_MAX: usize = 64;

/// Replicates a database until `stop` says otherwise.
///
/// # Errors
/// [`NodeError`]: why the node did not start, or stopped by itself.
pub async fn run(config: RunConfig, mut stop: watch::Receiver<Stop>) -> Result<(), NodeError> {
    if config.apply_changes && !config.db_path.exists() {
        tokio::select! {
            joined = join(&config) => joined?,
            Ok(_) = stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
        }
    }
    let (deliveries, deliveries_end) = mpsc::channel(MESSAGES_UNDER_WAY_MAX);
    let (published, published_end) = mpsc::channel(MESSAGES_UNDER_WAY_MAX);
    let (outgoing_start, outgoing) = mpsc::channel(MESSAGES_UNDER_WAY_MAX);
    let (ready, ready_end) = mpsc::channel(1);
    let (connected, connected_end) = watch::channel(false);
    let (trouble, trouble_end) = watch::channel(String::new());
    let (asks, asks_end) = mpsc::channel(MESSAGES_UNDER_WAY_MAX);
    // Each shard can need one thing at a time, and all together whether an origin lives.
    let (needs, needs_end) = mpsc::channel(usize::from(config.log.shards).max(1) * 2 + 1);
    let (applied, applied_end) = watch::channel(BTreeMap::new());
    let wake = Arc::new(Notify::new());
    let (halt, halting) = watch::channel(Stop::No);
    let links = Links {
        deliveries: deliveries_end,
        published: published_end,
        outgoing: outgoing_start,
        ready: ready_end,
        connected: connected_end,
        trouble: trouble_end,
        asks: asks_end,
        needs,
        applied,
        wake,
        stop: halting,
        handle: Handle::current(),
    };
    let ends = Ends {
        deliveries,
        published,
        outgoing,
        ready,
        connected,
        trouble,
        asks,
        needs: needs_end,
        applied: applied_end,
    };

    // The database is opened on the thread that owns it from then on.
    let (opened, known) = oneshot::channel();
    let (ended, end) = oneshot::channel();
    let of_thread = config.clone();
    let thread = std::thread::Builder::new().name("database".to_owned()).spawn(move || {
        let _ = ended.send(own_database(of_thread, links, opened));
    });
    let thread = thread.map_err(|source| NodeError::StateDirectory {
        path: config.state_dir.clone(),
        what: "cannot start the database thread",
        source,
    })?;
    // The database thread is told to stop by the caller, or by us when the network side has failed.
    let halt = Arc::new(halt);
    let forward = tokio::spawn(forward(stop, Arc::clone(&halt)));
    let Ok(known) = known.await else {
        let ended = finish(end, thread).await;
        forward.abort();
        return ended;
    };
    let (stop_network, network_stop) = watch::channel(false);
    let server = match config.nats.urls.is_empty() {
        true => ManagedServer::start_if_alone(&config.state_dir).await,
        false => Ok(None),
    };
    let server = match server {
        Ok(server) => server.map(|server| tokio::spawn(server.supervise(network_stop.clone()))),
        Err(error) => {
            forward.abort();
            let _ = halt.send(Stop::Now);
            let _ = finish(end, thread).await;
            return Err(error);
        }
    };
    let mut network = tokio::spawn(serve(config, known, ends, network_stop));
    let mut end = std::pin::pin!(finish(end, thread));
    let result = tokio::select! {
        result = &mut end => result,
        served = &mut network => {
            forward.abort();
            let _ = halt.send(Stop::Now);
            // Its own trouble, if it had any, is the cause of ours or has no better place to be told.
            let ended = end.await;
            match served {
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) | Err(_) => ended.and(Err(NodeError::Ended("network side"))),
            }
        }
    };
    forward.abort();
    let _ = stop_network.send(true);
    if !network.is_finished() {
        let _ = network.await;
    }
    if let Some(server) = server {
        let _ = server.await;
    }
    result
}

/// Passes the caller's wish on.
async fn forward(mut stop: watch::Receiver<Stop>, halt: Arc<watch::Sender<Stop>>) {
    while stop.changed().await.is_ok() {
        let wish = *stop.borrow_and_update();
        if halt.send(wish).is_err() {
            return;
        }
    }
    // The caller cannot change its mind any more: its last wish stays.
    std::future::pending().await
}

async fn finish(
    end: oneshot::Receiver<Result<(), NodeError>>,
    thread: std::thread::JoinHandle<()>,
) -> Result<(), NodeError> {
    let result = end.await.unwrap_or(Err(NodeError::Ended("database thread")));
    let _ = thread.join();
    result
}

fn own_database(
    config: RunConfig,
    links: Links,
    opened: oneshot::Sender<super::start::Known>,
) -> Result<(), NodeError> {
    match follow_until_end(config, links, opened) {
        // A copy or a comparison that was broken off begins anew at the next start.
        Err(NodeError::Capture(CaptureError::Shadow(ShadowError::Interrupted))) => Ok(()),
        ended => ended,
    }
}

fn follow_until_end(
    config: RunConfig,
    links: Links,
    opened: oneshot::Sender<super::start::Known>,
) -> Result<(), NodeError> {
    let (database, mut known) = open(config, links)?;
    // What was applied is known only when it is known what became of an intent: with the intent's positions the network side would pass
    // over the messages of one that never happened.
    let Some(database) = database.begin_where_it_stopped()? else { return Ok(()) };
    known.applied = database.applied()?;
    known.seen = database.seen_of_applied()?;
    if opened.send(known).is_err() {
        return Ok(());
    }
    database.run()
}
