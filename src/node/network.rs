//! The network side of a node: reaches the server, checks the streams, then publishes and consumes until told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::config::{Conflict, NatsConfig, RunConfig};
use super::control::answer_questions;
use super::database::LogReady;
use super::error::NodeError;
use super::place::refuse_taken;
use super::put_back::put_back;
use super::sent::Sent;
use super::server::{DEFAULT_URL, stopped};
use super::snapshot::{Ask, CatchUps, Keeper, Need, refuse_other_content};
use super::start::Known;
use super::verify::Verifier;
use super::waiting::Waits;
use crate::log::{
    Announced, ConnectError, Delivery, JetStreamLog, Link, Log, LogError, NatsOptions, Outgoing, PublishState,
    Published, ServerFacts, ShardId, StreamOptions, StreamSeq, consume_headers, publish,
};

/// The first wait after a failure to reach the server, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_CAP: Duration = Duration::from_secs(5);

/// What is tried again and again is refused more often than this, if it still is.
const REFUSED_FOR: Duration = Duration::from_secs(30);

/// How long a log may seem shorter than what was read of it before that is believed: a cluster that elects its leaders can say so for a moment.
const DOUBT: Duration = Duration::from_secs(5);

/// The network's ends of what the database thread waits at.
pub(super) struct Ends {
    pub(super) deliveries: mpsc::Sender<Delivery<Announced>>,
    pub(super) published: mpsc::Sender<Published>,
    pub(super) outgoing: mpsc::Receiver<Outgoing>,
    pub(super) ready: mpsc::Sender<LogReady>,
    pub(super) connected: watch::Sender<bool>,
    /// What the server keeps this node from; empty: nothing.
    pub(super) trouble: watch::Sender<String>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) needs: mpsc::Receiver<Need>,
    pub(super) applied: watch::Receiver<BTreeMap<ShardId, StreamSeq>>,
}

fn nats_options(config: &NatsConfig, node_id: u64) -> Result<NatsOptions, NodeError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| NodeError::ConfigFile { path: path.to_owned(), source })
    };
    let urls = if config.urls.is_empty() { vec![DEFAULT_URL.to_owned()] } else { config.urls.clone() };
    Ok(NatsOptions {
        urls,
        name: format!("woodchuck node {node_id}"),
        tls_ca: config.ca_file.clone(),
        tls_identity: config.cert_file.clone().zip(config.key_file.clone()),
        user: config.user.clone().zip(config.password.as_ref().map(|secret| secret.0.clone())),
        token: config.token.as_ref().map(|secret| secret.0.clone()),
        nkey_seed: config.nkey_file.as_deref().map(read).transpose()?.map(|seed| seed.trim().to_owned()),
        creds_file: config.creds_file.clone(),
    })
}

/// Where the streams are and how they must be.
#[must_use]
pub fn stream_options(config: &RunConfig) -> StreamOptions {
    StreamOptions {
        stream_prefix: config.log.stream_prefix.clone(),
        subject_prefix: config.log.subject_prefix.clone(),
        shard_count: config.log.shards,
        max_log_entries: u32::try_from(config.log.max_entries).unwrap_or(u32::MAX),
        replica_count: config.log.replicas,
        conflict: match config.apply.conflict {
            Conflict::Column => "column",
            Conflict::Row => "row",
        },
    }
}

/// Connects to the log that the settings name, once.
///
/// # Errors
/// [`NodeError::Connect`], or a file of the settings that cannot be read.
pub async fn connect_log(nats: &NatsConfig, streams: StreamOptions, node_id: u64) -> Result<JetStreamLog, NodeError> {
    Ok(JetStreamLog::connect(&nats_options(nats, node_id)?, streams).await?)
}

/// Asks the server what it is, and makes nothing there.
///
/// # Errors
/// [`NodeError::Connect`], or a file of the settings that cannot be read.
pub async fn ask_server(nats: &NatsConfig, monitoring_port: u16) -> Result<ServerFacts, NodeError> {
    Ok(ServerFacts::ask(&nats_options(nats, 0)?, monitoring_port).await?)
}

/// Waits longer and longer, and says each new trouble once.
pub(super) struct Patience {
    wait: Duration,
    told: String,
    /// What is done meanwhile.
    meanwhile: &'static str,
}

impl Patience {
    pub(super) fn new(meanwhile: &'static str) -> Patience {
        Patience { wait: RETRY_FIRST, told: String::new(), meanwhile }
    }

    pub(super) async fn after(&mut self, trouble: &(dyn std::error::Error + Sync)) {
        let text = trouble.to_string();
        if text != self.told {
            let cause = trouble.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            tracing::warn!("{text}{cause}; {}", self.meanwhile);
            self.told = text;
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(RETRY_CAP);
    }
}

/// Reaches the log, however long it takes. Settings that can never work end it.
///
/// `places` are those of the last messages that were sent.
async fn reach(
    config: &RunConfig,
    known: &Known,
    places: &BTreeMap<ShardId, StreamSeq>,
) -> Result<(JetStreamLog, LogReady), NodeError> {
    let mut patience = Patience::new("trying again, changes wait in the outbox");
    let log = loop {
        match connect_log(&config.nats, stream_options(config), known.origin.node_id).await {
            Ok(log) => break log,
            Err(NodeError::Connect(error)) if is_transient(&error) => patience.after(&error).await,
            Err(error) => return Err(error),
        }
    };
    let mut shorter_since = None;
    loop {
        match look(&log, known, config, places).await {
            Ok(last) => {
                let message_bytes_max = log.message_bytes_max();
                return Ok((log, LogReady { last, message_bytes_max }));
            }
            // (A stream that is missing now was there or made a moment ago: a cluster says both while it makes it for another node.)
            Err(NodeError::Log(error)) if error.is_transient() || matches!(error, LogError::StreamMissing { .. }) => {
                patience.after(&error).await;
            }
            Err(error @ NodeError::LogShorter { .. })
                if shorter_since.get_or_insert_with(Instant::now).elapsed() < DOUBT =>
            {
                patience.after(&error).await;
            }
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn is_transient(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Unreachable { .. })
}

/// Makes or checks the streams and compares them with what was applied here.
async fn look(
    log: &JetStreamLog,
    known: &Known,
    config: &RunConfig,
    places: &BTreeMap<ShardId, StreamSeq>,
) -> Result<BTreeMap<ShardId, StreamSeq>, NodeError> {
    log.ensure().await?;
    let mut last = BTreeMap::new();
    for (shard, applied) in &known.applied {
        let bounds = log.bounds(*shard).await?;
        let stream = log.stream_name(*shard);
        // What has come back to this node, and is still there, need not be read.
        let from = bounds.last.min(*applied);
        let ours = match places.get(shard) {
            Some(place) if *place > from => sent(config, |directory| Sent::behind(directory, *shard, from))?,
            Some(_) | None => BTreeMap::new(),
        };
        // What this node has sent of what is lost it puts back as soon as it reads.
        if bounds.last < *applied && ours.is_empty() {
            return Err(NodeError::LogShorter { stream, last: bounds.last.0, applied: applied.0 });
        }
        refuse_taken(log, *shard, &ours, bounds.last).await?;
        // A node that belongs to the log catches up when it reads.
        if bounds.first.0 > applied.0 + 1 && bounds.last > *applied && !known.joined {
            return Err(NodeError::LogTrimmed { stream, first: bounds.first.0 });
        }
        last.insert(*shard, bounds.last);
    }
    for seen in &known.seen {
        seen.refuse_other(log, seen.last()).await?;
    }
    Ok(last)
}

fn sent<T>(config: &RunConfig, read: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<T, NodeError> {
    let what = "cannot read what was sent";
    read(&config.state_dir).map_err(|source| NodeError::StateDirectory { path: config.state_dir.clone(), what, source })
}

/// Serves the database thread until `stop`.
pub(super) async fn serve(
    config: RunConfig,
    known: Known,
    ends: Ends,
    mut stop: watch::Receiver<bool>,
) -> Result<(), NodeError> {
    tokio::select! {
        served = serve_for_ever(config, known, ends) => served,
        () = stopped(&mut stop) => Ok(()),
    }
}

/// Whether a refusal is about the store or the lease of snapshots, which a node can be without.
fn is_of_snapshots(refusal: &str) -> bool {
    ["KV_", "OBJ_", "$KV.", "$O."].iter().any(|bucket| refusal.contains(bucket))
}

/// Says what becomes of the connection, of publishing, and what the server refuses: it tells that apart from its answers, which then do not
/// come.
async fn tell_of_link(
    mut publishing: watch::Receiver<PublishState>,
    mut link: watch::Receiver<Link>,
    connected: watch::Sender<bool>,
    trouble: watch::Sender<String>,
) {
    let (mut was_retrying, mut told) = (false, BTreeSet::new());
    loop {
        let now = link.borrow_and_update().clone();
        let retrying = publishing.borrow_and_update().values().next().cloned();
        if connected.send_replace(now.connected) != now.connected {
            if now.connected {
                tracing::info!("connected to the log again");
            } else {
                tracing::warn!("the connection to the log is lost; changes wait in the outbox");
            }
        }
        for refusal in now.refusals.keys().filter(|refusal| told.insert((*refusal).clone())) {
            tracing::warn!(
                "the NATS server refuses this node something: {refusal}; see to the permissions of its account"
            );
        }
        match (&retrying, was_retrying) {
            (Some(retrying), false) => tracing::warn!("cannot publish: {}; trying again", retrying.error_last),
            (None, true) => tracing::info!("publishing again"),
            _ => {}
        }
        was_retrying = retrying.is_some();
        let cannot = retrying.map(|retrying| format!("cannot publish: {}", retrying.error_last));
        let is_standing = |(refusal, at): &(&String, &Instant)| at.elapsed() < REFUSED_FOR && !is_of_snapshots(refusal);
        let standing: Vec<_> = now.refusals.iter().filter(is_standing).collect();
        let refused = standing.iter().map(|(refusal, _)| format!("the NATS server refuses: {refusal}"));
        let text = cannot.into_iter().chain(refused).collect::<Vec<_>>().join("; ");
        trouble.send_if_modified(|trouble| {
            *trouble != text && {
                *trouble = text;
                true
            }
        });
        let is_open = tokio::select! {
            changed = publishing.changed() => changed.is_ok(),
            changed = link.changed() => changed.is_ok(),
            () = tokio::time::sleep(REFUSED_FOR), if !standing.is_empty() => true,
        };
        if !is_open {
            return;
        }
    }
}

async fn serve_for_ever(config: RunConfig, known: Known, ends: Ends) -> Result<(), NodeError> {
    let places = sent(&config, Sent::last_places)?;
    let (log, ready) = reach(&config, &known, &places).await?;
    let link = log.link();
    // Dropping the set ends the tasks: what they had not reported is sent or read again by whoever goes on.
    let mut tasks = JoinSet::new();
    let asked = log.clone();
    tasks.spawn(async move { asked.answer_tails().await });
    let Ends { deliveries, published, outgoing, ready: ready_sender, connected, trouble, asks, mut needs, applied } =
        ends;
    let _ = connected.send(true);
    if !known.joined {
        refuse_other_content(&log, &config, &asks).await?;
    }
    // Who leaves changes out has no fold to make a snapshot of.
    if config.publish && config.apply_changes {
        tasks.spawn(Keeper::listening(&log, &config, known.origin.node_id, asks.clone(), applied).await.run());
    }
    if ready_sender.send(ready).await.is_err() {
        return Ok(());
    }
    let (behind, behind_end) = mpsc::channel(usize::from(config.log.shards).max(1));
    let waits = Arc::new(Waits::new(&log, known.origin, asks.clone(), config.publish));
    if config.apply_changes {
        let waits = Arc::clone(&waits);
        tasks.spawn(async move {
            tokio::join!(waits.answer_nodes(), waits.answer_that_it_lives());
        });
    }
    let verifier = Arc::new(Verifier::new(&log, &config, known.origin.node_id, asks.clone()));
    if config.apply_changes {
        tasks.spawn(Arc::clone(&verifier).answer_nodes());
    }
    tasks.spawn(answer_questions(config.state_dir.clone(), Arc::clone(&waits), verifier));
    let served = log.clone();
    tasks.spawn(async move { served.stay_served().await });
    let catch_ups = tokio::spawn(CatchUps::new(&log, &config, asks.clone()).run(behind_end));
    let mut catch_ups = AbortOnDrop(catch_ups);
    let log: Arc<dyn Log> = Arc::new(log);
    for (shard, applied) in known.applied {
        log.raise_floor(shard, applied.max(places.get(&shard).copied().unwrap_or_default()));
        let from = StreamSeq(applied.0 + 1);
        tasks.spawn(consume_headers(Arc::clone(&log), shard, from, deliveries.clone()));
    }
    let (state, publishing) = watch::channel(PublishState::new());
    tasks.spawn(publish(Arc::clone(&log), outgoing, published, state, std::future::pending()));
    tasks.spawn(tell_of_link(publishing, link, connected, trouble));
    loop {
        tokio::select! {
            need = needs.recv() => match need {
                Some(Need::Snapshot { shard, at_least }) => {
                    let _ = behind.send((shard, at_least)).await;
                }
                Some(Need::PutBack { shard, lost }) => {
                    let (log, asks) = (Arc::clone(&log), asks.clone());
                    tasks.spawn(async move {
                        let ended = put_back(log.as_ref(), shard, lost).await;
                        // With the database thread gone there is nothing to go on with.
                        let _ = asks.send(ended.map_or_else(Ask::StaysLost, |()| Ask::IsWhole(shard))).await;
                    });
                }
                Some(Need::Read { shard, from }) => {
                    tasks.spawn(consume_headers(Arc::clone(&log), shard, from, deliveries.clone()));
                }
                Some(Need::Rest { origins, within, answer }) => {
                    let waits = Arc::clone(&waits);
                    tasks.spawn(async move {
                        // Whoever asked may have got what it waited for.
                        let _ = answer.send(waits.silent(origins, within).await);
                    });
                }
                None => break,
            },
            failed = &mut catch_ups.0 => {
                if let Ok(Err(error)) = failed {
                    return Err(error);
                }
                break;
            }
            // Tasks that end are of no more use; the database thread has the reason.
            _ = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
    std::future::pending().await
}

/// A task that ends with whoever started it.
struct AbortOnDrop(tokio::task::JoinHandle<Result<(), NodeError>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
