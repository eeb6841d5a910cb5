//! Decides when a snapshot is due and makes it, under the lease that lets one node do it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::fetch::{DECLINED, Wanted};
use super::make::make;
use super::progress::progress_text;
use super::{Ask, tables_text, work_directory};
use crate::apply::{RowFilters, TableFilter};
use crate::log::{
    JetStreamLog, Lease, Maker, Question, Questions, ShardId, SnapshotError, SnapshotInfo, SnapshotStore, StreamSeq,
};
use crate::node::config::RunConfig;
use crate::node::error::NodeError;

/// The kind of question that asks for a snapshot. The answer is `ok <number>`, or why not; before it comes how far it is.
pub(in crate::node) const QUESTION: &str = "snapshot";

/// How long a snapshot that was asked for waits for another node to finish its own.
const LEASE_WITHIN: Duration = Duration::from_secs(60);
/// How long it goes on while the servers do not answer: they elect others when one of them has died.
const TROUBLE_WITHIN: Duration = Duration::from_secs(20);
const LEASE_TRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long the database thread is asked for a moment: it has none inside of something that travels in pieces.
const MOMENT_WITHIN: Duration = Duration::from_secs(10);
const MOMENT_TRY_INTERVAL: Duration = Duration::from_millis(100);
/// How often whoever asked for one hears how far it is, and how often at least, also when nothing moves.
const SAY_INTERVAL: Duration = Duration::from_millis(100);
pub(super) const SAY_WITHIN: Duration = Duration::from_secs(2);
/// The shortest pause between two snapshots that nobody asked for; else it is as long as the last one took.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long it rests after a failure.
const PAUSE_FAILED: Duration = Duration::from_secs(10);

/// Makes snapshots of a node.
pub(in crate::node) struct Keeper {
    log: JetStreamLog,
    store: SnapshotStore,
    state_dir: PathBuf,
    maker: Maker,
    filter: (TableFilter, RowFilters),
    /// The log may move so far before the next one.
    entries: u64,
    interval: Option<Duration>,
    asks: mpsc::Sender<Ask>,
    applied: watch::Receiver<BTreeMap<ShardId, StreamSeq>>,
    /// What others ask; `None` while the server does not bring it.
    questions: Option<Questions>,
    /// Bytes that are stored of the one that is being made, and of all of it.
    at: watch::Sender<(u64, u64)>,
}

impl Keeper {
    /// Listens already: a node that says that it is ready answers.
    pub(in crate::node) async fn listening(
        log: &JetStreamLog,
        config: &RunConfig,
        node_id: u64,
        asks: mpsc::Sender<Ask>,
        applied: watch::Receiver<BTreeMap<ShardId, StreamSeq>>,
    ) -> Keeper {
        let tables = tables_text(config);
        Keeper {
            log: log.clone(),
            store: SnapshotStore::of(log),
            state_dir: config.state_dir.clone(),
            maker: Maker { node_id, now_ms: 0, tables },
            filter: (TableFilter::new(&config.tables, &config.exclude_tables), config.row_filters.clone()),
            entries: (config.log.max_entries / 2).max(1),
            interval: config.log.snapshot_interval,
            asks,
            applied,
            questions: log.take_questions(QUESTION).await.ok(),
            at: watch::Sender::new((0, 0)),
        }
    }

    /// Works until the database thread is gone.
    pub(in crate::node) async fn run(mut self) {
        if let Err(error) = self.store.prepare().await {
            // The first snapshot tries again.
            tracing::debug!("{error}");
        }
        let mut questions = self.questions.take();
        let mut newest: Option<SnapshotInfo> = None;
        let mut is_known = false;
        let mut rest_until = Instant::now();
        let mut made_at = Instant::now();
        loop {
            if questions.is_none() {
                questions = self.log.take_questions(QUESTION).await.ok();
            }
            tokio::select! {
                question = next(&mut questions) => {
                    let Some(question) = question else { questions = None; continue };
                    if let Some(reason) = self.cannot_serve(&question.payload) {
                        question.answer(Bytes::from(format!("{DECLINED}{reason}"))).await;
                        continue;
                    }
                    let at = self.at.subscribe();
                    let made = {
                        let mut saying = std::pin::pin!(say_how_far(&question, at));
                        tokio::select! {
                            made = self.make_when_free() => made,
                            () = &mut saying => Err(NodeError::Ended("making of a snapshot")),
                        }
                    };
                    let text = match &made {
                        Ok(info) => format!("ok {}", info.no),
                        Err(error) => told(error),
                    };
                    question.answer(Bytes::from(text)).await;
                    if let Ok(info) = made {
                        (newest, is_known, made_at) = (Some(info), true, Instant::now());
                    }
                }
                changed = self.applied.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            let is_due = |keeper: &Keeper, newest: &Option<SnapshotInfo>| {
                let by_time = keeper.interval.is_some_and(|interval| made_at.elapsed() >= interval);
                keeper.moved(newest) >= if by_time { 1 } else { keeper.entries }
            };
            if Instant::now() < rest_until || !is_due(&self, &newest) {
                continue;
            }
            if !is_known {
                // What others have made counts, too.
                match self.store.list().await {
                    Ok(list) => (newest, is_known) = (list.into_iter().next(), true),
                    Err(error) => {
                        tracing::debug!("{error}");
                        rest_until = Instant::now() + PAUSE_FAILED;
                    }
                }
                continue;
            }
            let began = Instant::now();
            let before = newest.take();
            let made = self.make_if(|keeper, newest| is_due(keeper, newest)).await;
            rest_until = Instant::now() + began.elapsed().max(PAUSE_MIN);
            match made {
                Ok(Some(info)) => {
                    newest = Some(info);
                    made_at = Instant::now();
                }
                Ok(None) => (newest, is_known) = (before, false),
                Err(error) => {
                    tracing::warn!("no snapshot was made: {}; trying again", told(&error));
                    (newest, is_known) = (before, false);
                    rest_until = Instant::now() + PAUSE_FAILED;
                }
            }
        }
    }

    /// Why this node can make no snapshot that will do; another one may.
    fn cannot_serve(&self, question: &[u8]) -> Option<String> {
        let wanted = Wanted::of_question(question);
        let node_id = self.maker.node_id;
        if !wanted.takes_tables_of(&self.maker.tables) {
            return Some(format!("node {node_id} replicates other tables"));
        }
        let applied = self.applied.borrow();
        let is_behind = |(shard, seq): (&ShardId, &StreamSeq)| applied.get(shard).is_none_or(|here| here < seq);
        wanted.at_least.iter().any(is_behind).then(|| format!("node {node_id} is behind the log itself"))
    }

    /// How many messages the log has moved since a snapshot, in the shard where that is most.
    fn moved(&self, newest: &Option<SnapshotInfo>) -> u64 {
        let since = |shard: &ShardId| newest.as_ref().and_then(|info| info.positions.get(shard).copied());
        let applied = self.applied.borrow();
        applied.iter().map(|(shard, seq)| seq.0.saturating_sub(since(shard).unwrap_or_default().0)).max().unwrap_or(0)
    }

    /// Makes a snapshot unless another node is at it, or has just made one.
    async fn make_if(
        &mut self,
        is_due: impl Fn(&Keeper, &Option<SnapshotInfo>) -> bool,
    ) -> Result<Option<SnapshotInfo>, NodeError> {
        let Some(mut lease) = Lease::take(&self.log, self.maker.node_id).await? else { return Ok(None) };
        let work = async {
            let newest = self.store.list().await?.into_iter().next();
            if is_due(self, &newest) { self.make().await.map(Some) } else { Ok(newest) }
        };
        let made = tokio::select! {
            made = work => made,
            lost = lease.keep() => Err(lost.into()),
        };
        lease.give_back().await;
        made
    }

    async fn make_when_free(&mut self) -> Result<SnapshotInfo, NodeError> {
        let began = Instant::now();
        loop {
            match self.make_if(|_, _| true).await {
                Ok(Some(info)) => return Ok(info),
                Ok(None) => {}
                Err(error) if error.may_pass() && began.elapsed() < TROUBLE_WITHIN => tracing::debug!("{error}"),
                Err(error) => return Err(error),
            }
            if began.elapsed() >= LEASE_WITHIN {
                return Err(SnapshotError::Store("another node has been making one for a minute".to_owned()).into());
            }
            tokio::time::sleep(LEASE_TRY_INTERVAL).await;
        }
    }

    async fn make(&self) -> Result<SnapshotInfo, NodeError> {
        let began = Instant::now();
        let moment = self.moment().await?;
        let (state_dir, (tables, rows)) = (self.state_dir.clone(), self.filter.clone());
        let making = tokio::task::spawn_blocking(move || {
            let path = work_directory(&state_dir)?.join("made.db");
            let made = make(moment, &path, &tables, &rows);
            // The open file is all that is needed, and nothing is left when this process ends.
            let _ = std::fs::remove_file(&path);
            made
        });
        let (file, manifest) = making.await.map_err(|_| NodeError::Ended("making of a snapshot"))??;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let maker = Maker { now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX), ..self.maker.clone() };
        let (at, total) = (self.at.clone(), manifest.database_bytes);
        let progress = move |done| {
            at.send_replace((done, total));
        };
        let info = self.store.put(manifest, file, &maker, progress).await?;
        let (mib, stored) = (info.database_bytes >> 20, info.stored_bytes >> 20);
        tracing::info!("made snapshot {} of {mib} MiB ({stored} MiB stored) in {:.1?}", info.no, began.elapsed());
        Ok(info)
    }

    async fn moment(&self) -> Result<super::Moment, NodeError> {
        let began = Instant::now();
        while began.elapsed() < MOMENT_WITHIN {
            let (answer, moment) = oneshot::channel();
            if self.asks.send(Ask::Moment { answer, early: false }).await.is_err() {
                break;
            }
            if let Ok(Some(moment)) = moment.await {
                return Ok(moment);
            }
            tokio::time::sleep(MOMENT_TRY_INTERVAL).await;
        }
        Err(SnapshotError::Store("the node is not ready for one".to_owned()).into())
    }
}

/// Tells whoever asked how far it is, or that it goes on at all.
async fn say_how_far(question: &Question, mut at: watch::Receiver<(u64, u64)>) {
    while tokio::time::timeout(SAY_WITHIN, at.changed()).await.unwrap_or(Ok(())).is_ok() {
        let (done, total) = *at.borrow_and_update();
        question.say(Bytes::from(progress_text(done, total))).await;
        tokio::time::sleep(SAY_INTERVAL).await;
    }
}

async fn next(questions: &mut Option<Questions>) -> Option<Question> {
    match questions {
        Some(questions) => questions.next().await,
        // Tried again with the next news.
        None => std::future::pending().await,
    }
}

/// An error with its causes.
fn told(error: &NodeError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
