//! The database thread's part: giving a moment, and catching up while the application goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Database;
use crate::apply::{ApplyError, Beforehand, FrozenState, Route, SNAPSHOT_SCHEMA, TableFilter, route_by_hash};
use crate::capture::{HeldShadow, SchemaMark};
use crate::log::{LogError, Origin, ShardId, StreamSeq};
use crate::node::NodeError;
use crate::node::place::Seen;
use crate::node::put_back::LostTail;
use crate::node::sent::Sent;
use crate::node::snapshot::{Ask, Fetched, Moment, Need, work_directory};
use crate::node::waiting::FoldedOf;

/// How far this node is behind, and what comes to help it.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// The shards that cannot be read on, with the last message that is missing.
    shards: BTreeMap<ShardId, StreamSeq>,
    /// The shards that the server has lost messages of.
    lost: BTreeSet<ShardId>,
    /// The snapshot to catch up from.
    fetched: Option<Box<Fetched>>,
    looking: Looking,
    /// Everything is done on the database thread, one after another.
    looks_inline: bool,
}

/// The look for what differs from the snapshot, before writers are kept out.
#[derive(Debug, Default)]
enum Looking {
    #[default]
    No,
    UnderWay {
        stop: Arc<AtomicBool>,
        thread: JoinHandle<Option<Beforehand>>,
        mark: SchemaMark,
        began: Instant,
    },
    /// What was found, if anything could be, of the tables as they were then.
    Done {
        found: Option<Beforehand>,
        mark: SchemaMark,
        took: Duration,
    },
}

impl Behind {
    /// Whether all shards are being read.
    pub(super) fn is_reading(&self) -> bool {
        self.shards.is_empty() && self.lost.is_empty()
    }

    /// Whether nothing may be folded: what differs is being looked for, or is known and not yet taken in.
    pub(super) fn is_looking(&self) -> bool {
        !matches!(self.looking, Looking::No)
    }

    /// Ends the look. Nothing of it has the database open afterwards.
    pub(super) fn stop_looking(&mut self) {
        if let Looking::UnderWay { stop, thread, .. } = std::mem::take(&mut self.looking) {
            stop.store(true, Ordering::SeqCst);
            // Whatever it found or not is of no use.
            drop(thread.join());
        }
    }
}

impl Database {
    /// Does everything on this thread, one after another.
    pub(in crate::node) fn look_inline(&mut self) {
        self.behind.looks_inline = true;
        self.fairness.set_timeless();
    }

    /// Takes what the network side asks.
    pub(super) fn asked(&mut self, ask: Ask) -> Result<(), NodeError> {
        match ask {
            // Another that came first may have been enough.
            Ask::CatchUp(_) if self.behind.shards.is_empty() => {}
            // One that is attached already is taken first: what it leaves to do is asked for again.
            Ask::CatchUp(_) if self.behind.fetched.is_some() => {}
            Ask::IsWhole(shard) => self.is_whole(shard)?,
            Ask::StaysLost(error) => return Err(error.into()),
            Ask::CatchUp(fetched) => self.behind.fetched = Some(fetched),
            Ask::Folded(origin, answer) => drop(answer.send(self.folded_of(origin)?)),
            Ask::Verify(ask) => self.asked_to_verify(ask)?,
            Ask::Published(answer) => self.asked_for_published(answer)?,
            Ask::Moment { answer, early } => {
                // Whoever asked may be gone.
                let _ = answer.send(if early || self.log.open { self.moment()? } else { None });
            }
        }
        Ok(())
    }

    pub(super) fn folded_of(&self, origin: Origin) -> Result<FoldedOf, NodeError> {
        let mut folded = FoldedOf::new();
        for shard in &self.shards {
            folded.insert(*shard, self.replica.state().folded(*shard, origin)?.batch_no);
        }
        Ok(folded)
    }

    /// The database and the state as they are between two steps. `None` when they make no fold now.
    fn moment(&mut self) -> Result<Option<Moment>, NodeError> {
        if self.replica.is_recovering() {
            return Ok(None);
        }
        // Its own changes of the schema are in the database, and no base takes them back.
        let state = self.replica.state();
        if state.is_inside_pieces()? || state.has_own_schema()? {
            return Ok(None);
        }
        self.replica.lay_out_base()?;
        let frozen = FrozenState::open(&self.directory.file("state.db"))?;
        let Some(held) = self.attached.follower.hold_shadow()? else { return Ok(None) };
        let (stand, routing, names) = (frozen.stand(&self.shards)?, frozen.routing(), frozen.names()?);
        let catalogue = Arc::clone(self.attached.follower.catalogue());
        let tables = Box::new(move |name: &str| catalogue.written_table(name).cloned());
        Ok(Some(Moment { held, frozen, stand, routing, names, tables }))
    }

    /// A shard cannot be read on. Falling behind is mended by a snapshot; anything else ends the node.
    pub(super) fn cannot_read(&mut self, shard: ShardId, error: LogError) -> Result<(), NodeError> {
        let at_least = match &error {
            LogError::FellBehind { first, .. } => first.0.saturating_sub(1),
            LogError::Hole { found, .. } => found.0.saturating_sub(1),
            LogError::LostTail { wanted, last, .. } => return self.put_back_lost_tail(shard, *wanted, *last, error),
            _ => return Err(error.into()),
        };
        // Who does not apply must see its own messages come back, one by one.
        if !self.config.apply_changes {
            return Err(error.into());
        }
        tracing::warn!("{error}: catching up from a snapshot");
        self.behind.shards.insert(shard, StreamSeq(at_least));
        self.need(Need::Snapshot { shard, at_least: StreamSeq(at_least) })
    }

    /// The server has lost what it acknowledged. What this node has sent of it goes back to its place.
    fn put_back_lost_tail(
        &mut self,
        shard: ShardId,
        wanted: StreamSeq,
        last: StreamSeq,
        error: LogError,
    ) -> Result<(), NodeError> {
        let ours = Sent::behind(&self.config.state_dir, shard, last).map_err(|source| NodeError::StateDirectory {
            path: self.config.state_dir.clone(),
            what: "cannot read what was sent",
            source,
        })?;
        let known = ours.keys().next_back().copied().max(Some(StreamSeq(wanted.0.saturating_sub(1))));
        let known = known.unwrap_or_default();
        let gone = format!("{error}: messages {} to {} of shard {} are gone", last.0 + 1, known.0, shard.0);
        let text = match ours.len() {
            0 => format!("{gone}; none of these is this node's to send again, and it waits for those that sent them"),
            count => format!(
                "{gone}; {count} of these {} are this node's and are sent again, each in its place",
                known.0 - last.0
            ),
        };
        tracing::error!("{text}");
        self.reporter.trouble(text);
        self.behind.lost.insert(shard);
        let read = self.log.seen.get(&shard).copied().unwrap_or_default();
        let folded = self.replica.state().folded_of(shard)?;
        self.inbox.make_contiguous();
        let seen = Seen::new(shard, read, &folded, self.inbox.headers(shard, usize::MAX));
        self.need(Need::PutBack { shard, lost: LostTail { known, ours, seen, error } })
    }

    fn is_whole(&mut self, shard: ShardId) -> Result<(), NodeError> {
        self.behind.lost.remove(&shard);
        if self.behind.lost.is_empty() {
            self.reporter.trouble(String::new());
        }
        let seen = self.log.seen.get(&shard).copied().unwrap_or_default();
        self.need(Need::Read { shard, from: StreamSeq(seen.0 + 1) })
    }

    pub(super) fn need(&self, need: Need) -> Result<(), NodeError> {
        // Each shard has one at a time, and the queue has room for all. A network side that is gone has its own word to say.
        match self.links.needs.try_send(need) {
            Ok(()) | Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(tokio::sync::mpsc::error::TrySendError::Full(_)) => Err(NodeError::Ended("network side")),
        }
    }

    /// Looks for what differs from the snapshot, while applications write. Whether that is done.
    fn look_beforehand(&mut self) -> Result<bool, NodeError> {
        match std::mem::take(&mut self.behind.looking) {
            Looking::No => {
                let Some(fetched) = &self.behind.fetched else { return Ok(false) };
                // A snapshot that is being made holds it already, and ends.
                let Some(held) = self.attached.follower.hold_shadow()? else { return Ok(false) };
                let into = work_directory(&self.config.state_dir)?.join("differs.db");
                let _ = std::fs::remove_file(&into);
                let (snapshot, stop) = (fetched.path.clone(), Arc::new(AtomicBool::new(false)));
                let (mark, told) = (self.attached.follower.schema_mark(), Arc::clone(&stop));
                let route = route_by_hash(self.filter(), self.config.log.shards);
                let wake = Arc::clone(&self.links.wake);
                let began = Instant::now();
                let look = move || {
                    let found = find_differing(&held, &snapshot, &into, route, &|| told.load(Ordering::SeqCst));
                    wake.notify_one();
                    // Without it all is compared under the write lock, and what is wrong comes up again there.
                    found.inspect_err(|why| tracing::debug!("not compared beforehand: {why}")).ok()
                };
                if self.behind.looks_inline {
                    self.behind.looking = Looking::Done { found: look(), mark, took: began.elapsed() };
                    return Ok(false);
                }
                let thread = std::thread::Builder::new().name("compare".to_owned()).spawn(look);
                let thread = thread.map_err(|source| NodeError::StateDirectory {
                    path: self.config.state_dir.clone(),
                    what: "cannot start a thread to compare with the snapshot",
                    source,
                })?;
                self.behind.looking = Looking::UnderWay { stop, thread, mark, began };
                Ok(false)
            }
            Looking::UnderWay { thread, mark, began, .. } if thread.is_finished() => {
                let found = thread.join().unwrap_or(None);
                self.behind.looking = Looking::Done { found, mark, took: began.elapsed() };
                Ok(true)
            }
            looking @ Looking::UnderWay { .. } => {
                self.behind.looking = looking;
                Ok(false)
            }
            looking @ Looking::Done { .. } => {
                self.behind.looking = looking;
                Ok(true)
            }
        }
    }

    fn filter(&self) -> TableFilter {
        TableFilter::new(&self.config.tables, &self.config.exclude_tables)
    }

    /// Catches up, when there is something to catch up from and the write lock can be had. Whether it did.
    pub(super) fn catch_up_if_fetched(&mut self) -> Result<bool, NodeError> {
        if self.behind.fetched.is_none() {
            return Ok(false);
        }
        if !self.look_beforehand()? {
            // Whoever goes step by step has done one.
            return Ok(self.behind.looks_inline);
        }
        let Some(fetched) = &self.behind.fetched else { return Ok(false) };
        // It is still attached after a try that did not get the write lock.
        let is_attached = "SELECT 1 FROM pragma_database_list WHERE name = ?1";
        let mut is_attached = self.attached.connection.prepare_cached(is_attached).map_err(attaching)?;
        if !is_attached.exists([SNAPSHOT_SCHEMA]).map_err(attaching)? {
            let connection = &self.attached.connection;
            match fetched.path.to_str() {
                Some(path) => connection.execute(&format!("ATTACH ?1 AS {SNAPSHOT_SCHEMA}"), [path]),
                // Bytes that are no text are taken as they are; in a database of UTF-16 they would be read as that.
                None => {
                    let path = fetched.path.as_os_str().as_encoded_bytes();
                    connection.execute(&format!("ATTACH CAST(?1 AS TEXT) AS {SNAPSHOT_SCHEMA}"), [path])
                }
            }
            .map_err(attaching)?;
        }
        drop(is_attached);
        if !self.begin()? {
            self.retry_lock = true;
            return Ok(false);
        }
        match self.catch_up_now() {
            Ok(true) => {}
            Ok(false) => {
                self.replica.rollback(&self.attached.connection)?;
                return Ok(false);
            }
            Err(error) => {
                self.replica.rollback(&self.attached.connection)?;
                return Err(error);
            }
        }
        self.attached.connection.execute_batch(&format!("DETACH {SNAPSHOT_SCHEMA}")).map_err(attaching)?;
        self.behind.looking = Looking::No;
        if let Some(fetched) = self.behind.fetched.take() {
            self.read_on(&fetched)?;
        }
        Ok(true)
    }

    /// `false` when too much waits to be captured first.
    fn catch_up_now(&mut self) -> Result<bool, NodeError> {
        let began = Instant::now();
        if !self.drain_under_lock()? {
            return Ok(false);
        }
        let Some(fetched) = &self.behind.fetched else { return Ok(true) };
        // It may write much, and nobody needs to be told of that.
        self.attached.waker.pause();
        let route = route_by_hash(self.filter(), self.config.log.shards);
        self.attached.keep_indexes(&mut self.replica)?;
        let catalogue = Arc::clone(self.attached.follower.catalogue());
        let tables = |name: &str| catalogue.written_table(name).cloned();
        let (beforehand, looked) = match &mut self.behind.looking {
            Looking::Done { found, mark, took } if *mark == self.attached.follower.schema_mark() => {
                let looked = found.is_some().then_some(*took);
                (found.as_mut(), looked)
            }
            Looking::No | Looking::UnderWay { .. } | Looking::Done { .. } => (None, None),
        };
        let manifest = &fetched.manifest;
        let to = (&manifest.stand, &manifest.routing, manifest.names.as_slice());
        let done = self.replica.catch_up(&self.attached.connection, &tables, to, &route, beforehand)?;
        let counts = done.counts;
        let no = fetched.info.no;
        let committed = self.commit_folded()?;
        let rows = counts.rows_inserted + counts.rows_updated + counts.rows_deleted;
        tracing::info!(
            "caught up from snapshot {no}: {rows} rows were written{}, others could not write for {:.1?}",
            looked.map_or_else(String::new, |took| format!(", compared for {took:.1?} before")),
            committed.duration_since(began)
        );
        if !done.schema.is_empty() {
            tracing::info!("the schema was caught up with: {}", done.schema.join(", "));
        }
        if !done.alone.is_empty() {
            tracing::warn!(
                "the snapshot has no table {}, and nobody has told that it was dropped: it stays here",
                done.alone.join(", ")
            );
        }
        self.reporter.count(&counts);
        Ok(true)
    }

    /// Goes on reading behind the snapshot.
    fn read_on(&mut self, fetched: &Fetched) -> Result<(), NodeError> {
        let own = self.replica.state().origin();
        for (shard, stand) in &fetched.manifest.stand {
            let mine = stand.folded.iter().find(|(origin, _)| *origin == own).map_or(0, |(_, folded)| folded.batch_no);
            self.to_send.retain(|waiting| waiting.message.shard != *shard || waiting.message.batch_no > mine);
            self.blocked.remove(shard);
            let position = self.replica.state().position(*shard)?;
            let seen = self.log.seen.entry(*shard).or_default();
            *seen = position.max(*seen);
            self.log.applied.insert(*shard, position);
        }
        for (shard, at_least) in std::mem::take(&mut self.behind.shards) {
            let position = self.replica.state().position(shard)?;
            if position >= at_least {
                self.need(Need::Read { shard, from: StreamSeq(position.0 + 1) })?;
            } else {
                self.behind.shards.insert(shard, at_least);
                self.need(Need::Snapshot { shard, at_least })?;
            }
        }
        self.open_when_seen()
    }
}

/// Compares the shadow with a snapshot.
fn find_differing(
    held: &HeldShadow,
    snapshot: &Path,
    into: &Path,
    route: Route,
    is_over: &dyn Fn() -> bool,
) -> Result<Beforehand, String> {
    let mut found = Beforehand::new(into, route).map_err(|error| error.to_string())?;
    let compared = held.compare(snapshot, is_over, &mut found).map_err(|error| error.to_string())?;
    found.set_compared(compared.iter().map(|table| table.name.as_str()));
    Ok(found)
}

fn attaching(source: rusqlite::Error) -> NodeError {
    ApplyError::Database { doing: "attaching a snapshot", source }.into()
}
