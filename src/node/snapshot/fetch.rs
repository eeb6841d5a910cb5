//! Fetching the newest snapshot that will do, and asking for one where there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::keeper::{QUESTION, SAY_WITHIN};
use super::progress::{SnapshotProgress, SnapshotStep, TellSnapshot, progress_of, tell_log};
use super::{Ask, set_wal, tables_text, work_directory};
use crate::log::{
    JetStreamLog, LogError, Origin, ShardId, SnapshotError, SnapshotInfo, SnapshotManifest, SnapshotStore, StreamSeq,
};
use crate::node::config::RunConfig;
use crate::node::error::NodeError;
use crate::node::put_back::LostTail;

/// How long a node that makes a snapshot may say nothing before it is taken for dead.
const SILENCE_MAX: Duration = SAY_WITHIN.saturating_mul(5);
/// How often nodes are asked for one when the server says that none is there, and the pause between: the servers of a cluster tell each other
/// who listens.
const ASKS_MAX: u32 = 3;
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// How often others are asked when one says that it can make none that will do. Each question goes to any of them.
const DECLINES_MAX: u32 = 10;
/// How such an answer begins.
pub(super) const DECLINED: &str = "not here: ";
/// The first wait after a failure, and the longest.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_CAP: Duration = Duration::from_secs(10);

/// A snapshot that is here. Its file goes with it, unless it has got another name.
#[derive(Debug)]
pub(in crate::node) struct Fetched {
    /// Its database, in rollback mode.
    pub(in crate::node) path: PathBuf,
    pub(in crate::node) info: SnapshotInfo,
    pub(in crate::node) manifest: SnapshotManifest,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the database thread needs of the network side.
#[derive(Debug)]
pub enum Need {
    /// A shard cannot be read on: a snapshot that holds at least its message `at_least`.
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// The message.
        at_least: StreamSeq,
    },
    /// To put back what the server has lost of a shard.
    PutBack {
        /// The shard.
        shard: ShardId,
        /// What is lost.
        lost: LostTail,
    },
    /// The shard can be read again, from here on.
    Read {
        /// The shard.
        shard: ShardId,
        /// The next message.
        from: StreamSeq,
    },
    /// A round stays incomplete: which of the origins that may still bring the rest say nothing.
    Rest {
        /// The nodes and their state directories.
        origins: BTreeSet<Origin>,
        /// How long they have.
        within: Duration,
        /// Where to say it.
        answer: oneshot::Sender<BTreeSet<Origin>>,
    },
}

/// Which snapshots will do.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// What each shard must hold at least.
    pub(super) at_least: BTreeMap<ShardId, StreamSeq>,
    /// The tables of this node; snapshots of all tables do as well. `None`: whatever it has.
    pub(super) tables: Option<String>,
}

/// As it travels.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct WantedText {
    tables: Option<String>,
    at_least: BTreeMap<u16, u64>,
}

impl Wanted {
    fn does(&self, info: &SnapshotInfo) -> bool {
        let holds = |(shard, seq): (&ShardId, &StreamSeq)| info.positions.get(shard).is_some_and(|there| there >= seq);
        self.takes_tables_of(&info.tables) && self.at_least.iter().all(holds)
    }

    /// Whether a snapshot of these tables will do.
    pub(super) fn takes_tables_of(&self, theirs: &str) -> bool {
        self.tables.as_ref().is_none_or(|ours| theirs.is_empty() || theirs == ours)
    }

    fn question(&self) -> Bytes {
        let at_least = self.at_least.iter().map(|(shard, seq)| (shard.0, seq.0)).collect();
        let question = WantedText { tables: self.tables.clone(), at_least };
        // There is nothing in it that cannot be written.
        Bytes::from(serde_json::to_vec(&question).unwrap_or_default())
    }

    /// What a question asks for. One of an earlier version says nothing, and is content with what there is.
    pub(super) fn of_question(question: &[u8]) -> Wanted {
        let WantedText { tables, at_least } = serde_json::from_slice(question).unwrap_or_default();
        Wanted { at_least: at_least.into_iter().map(|(shard, seq)| (ShardId(shard), StreamSeq(seq))).collect(), tables }
    }
}

/// Fetches the newest snapshot that will do into `path`. Damaged ones are passed over with a word. `None` when none will do.
pub(super) async fn fetch(
    log: &JetStreamLog,
    wanted: &Wanted,
    path: &Path,
    tell: &TellSnapshot,
) -> Result<Option<Fetched>, NodeError> {
    let store = SnapshotStore::of(log);
    let fail = |what| move |source| NodeError::StateDirectory { path: path.to_owned(), what, source };
    for info in store.list().await?.into_iter().filter(|info| wanted.does(info)) {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = file.map_err(fail("cannot write the snapshot"))?;
        let to = file.try_clone().map_err(fail("cannot write the snapshot"))?;
        let tell = TellSnapshot::clone(tell);
        let progress = move |done_bytes, total_bytes| {
            tell(SnapshotProgress { step: SnapshotStep::Fetch, done_bytes, total_bytes });
        };
        match store.get(&info, to, progress).await {
            Ok(manifest) => {
                set_wal(&file, false).map_err(fail("cannot write the snapshot"))?;
                return Ok(Some(Fetched { path: path.to_owned(), info, manifest }));
            }
            Err(error @ SnapshotError::Damaged { .. }) => {
                tracing::warn!("{error}; looking for an older one");
            }
            Err(error) => {
                let _ = std::fs::remove_file(path);
                return Err(error.into());
            }
        }
    }
    let _ = std::fs::remove_file(path);
    Ok(None)
}

/// Asks any node to make a snapshot. `false` when no node is there to make one.
pub(super) async fn ask_for_one(log: &JetStreamLog, wanted: &Wanted, tell: &TellSnapshot) -> Result<bool, NodeError> {
    let hear = |said: &Bytes| match progress_of(said) {
        Some(progress) => {
            tell(progress);
            None
        }
        None => Some(said.clone()),
    };
    let (mut nobody, mut declined) = (0, 0);
    loop {
        let answer = log.ask_patiently(QUESTION, wanted.question(), SILENCE_MAX, hear).await?;
        let Some(said) = answer else {
            nobody += 1;
            if nobody == ASKS_MAX {
                return Ok(false);
            }
            tokio::time::sleep(ASK_INTERVAL).await;
            continue;
        };
        if said.starts_with(b"ok ") {
            return Ok(true);
        }
        declined += 1;
        if !said.starts_with(DECLINED.as_bytes()) || declined == DECLINES_MAX {
            return Err(SnapshotError::Store(String::from_utf8_lossy(&said).into_owned()).into());
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// Fetches snapshots for the database thread when it has fallen behind.
pub(in crate::node) struct CatchUps {
    log: JetStreamLog,
    state_dir: PathBuf,
    asks: mpsc::Sender<Ask>,
    wanted: Wanted,
    /// Counts the files: the database thread removes one while the next is written.
    no: u64,
}

impl CatchUps {
    pub(in crate::node) fn new(log: &JetStreamLog, config: &RunConfig, asks: mpsc::Sender<Ask>) -> CatchUps {
        let tables = Some(tables_text(config));
        let wanted = Wanted { at_least: BTreeMap::new(), tables };
        CatchUps { log: log.clone(), state_dir: config.state_dir.clone(), asks, wanted, no: 0 }
    }

    /// Serves needs as they come: they come again until a snapshot was far enough.
    pub(in crate::node) async fn run(
        mut self,
        mut needs: mpsc::Receiver<(ShardId, StreamSeq)>,
    ) -> Result<(), NodeError> {
        while let Some((shard, at_least)) = needs.recv().await {
            self.wanted.at_least = BTreeMap::from([(shard, at_least)]);
            while let Ok((shard, at_least)) = needs.try_recv() {
                self.wanted.at_least.insert(shard, at_least);
            }
            self.no += 1;
            let fetched = self.fetch_in_the_end().await?;
            if self.asks.send(Ask::CatchUp(Box::new(fetched))).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn fetch_in_the_end(&self) -> Result<Fetched, NodeError> {
        let path = work_directory(&self.state_dir)?.join(format!("fetched-{}.db", self.no));
        let mut wait = RETRY_FIRST;
        let (mut told, tell) = (String::new(), tell_log());
        // Without end on purpose: the node goes on with everything else, and says what it waits for.
        loop {
            let trouble = match fetch(&self.log, &self.wanted, &path, &tell).await {
                Ok(Some(fetched)) => return Ok(fetched),
                Ok(None) => match ask_for_one(&self.log, &self.wanted, &tell).await {
                    // It may come from a node that is behind itself.
                    Ok(true) => String::new(),
                    Ok(false) => "no snapshot reaches far enough, and no node is there to make one".to_owned(),
                    Err(error) => error.to_string(),
                },
                Err(NodeError::Log(error)) if !error.is_transient() && !matches!(error, LogError::Refused { .. }) => {
                    return Err(error.into());
                }
                Err(error) => error.to_string(),
            };
            if !trouble.is_empty() && trouble != told {
                tracing::warn!("cannot catch up yet: {trouble}");
                told = trouble;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_CAP);
        }
    }
}
