//! What comes from the network, the watcher and the caller.

use std::time::Duration;

use super::{Database, Event};
use crate::apply::ToSend;
use crate::capture::HANDOVER_INTERVAL;
use crate::log::{Delivery, Origin, Published, ShardId, StreamSeq};
use crate::node::NodeError;
use crate::node::start::note_joined;

impl Database {
    pub(in crate::node) fn take_events(&mut self) -> Result<(), NodeError> {
        while let Ok(ready) = self.links.ready.try_recv() {
            self.handle(Event::Ready(ready))?;
        }
        while let Ok(published) = self.links.published.try_recv() {
            self.handle(Event::Published(published))?;
        }
        while let Ok(delivery) = self.links.deliveries.try_recv() {
            self.handle(Event::Delivery(delivery))?;
        }
        while let Ok(ask) = self.links.asks.try_recv() {
            self.handle(Event::Asked(ask))?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), NodeError> {
        match event {
            Event::Other => {}
            Event::Woken => self.attached.follower.await_commit()?,
            Event::Ready(ready) => {
                let own = self.replica.state().origin();
                for shard in &self.shards {
                    let applied = self.replica.state().position(*shard)?;
                    self.log.seen.entry(*shard).or_insert(applied);
                    self.log.applied.insert(*shard, applied);
                    let known = self.replica.state().folded_all(*shard)?;
                    let twins = known.iter().filter(|(origin, _)| origin.node_id == own.node_id && *origin != own);
                    self.log.past_twins.extend(twins.map(|(origin, _)| origin.epoch));
                }
                self.log.published.clone_from(&ready.last);
                self.log.start = Some(ready);
                // From here on the log is this node's own: what it loses is a matter of catching up.
                note_joined(self.replica.state(), &self.config)?;
                self.open_when_seen()?;
            }
            Event::Published(Published::Message { shard, batch_no, seq }) => {
                let published = self.log.published.entry(shard).or_default();
                *published = seq.max(*published);
                self.keep_place(shard, batch_no, seq)?;
                self.replica.acknowledged(shard, batch_no)?;
            }
            Event::Published(Published::Round { .. }) => self.round = None,
            Event::Asked(ask) => self.asked(ask)?,
            Event::Delivery(Delivery::Failed { shard, error }) => self.cannot_read(shard, error)?,
            Event::Delivery(Delivery::Arrived(message)) => {
                let shard = message.shard;
                self.log.seen.insert(shard, message.seq);
                self.judge_twin(shard, message.seq, message.header.origin)?;
                if message.header.origin == self.replica.state().origin() {
                    // Seen on the log is acknowledged, whatever became of the server's answer.
                    let batch_no = message.header.batch_no;
                    self.judge_own(shard, message.seq, batch_no)?;
                    if self.log.published.get(&shard) < Some(&message.seq) {
                        self.keep_place(shard, batch_no, message.seq)?;
                    }
                    self.replica.acknowledged(shard, batch_no)?;
                    // One that a killed node had sent can arrive before it is sent again.
                    self.to_send
                        .retain(|ToSend { message, .. }| (message.shard, message.batch_no) != (shard, batch_no));
                }
                let directory = &self.config.state_dir;
                self.inbox.push(directory, message).map_err(|source| NodeError::StateDirectory {
                    path: directory.clone(),
                    what: "cannot keep what has arrived",
                    source,
                })?;
                self.open_when_seen()?;
            }
        }
        Ok(())
    }

    fn keep_place(&mut self, shard: ShardId, batch_no: u64, seq: StreamSeq) -> Result<(), NodeError> {
        self.sent.place(shard, batch_no, seq).map_err(|source| NodeError::StateDirectory {
            path: self.config.state_dir.clone(),
            what: "cannot keep where messages are on the log",
            source,
        })
    }

    /// Epochs tell nodes with one number apart, so no row suffers, but people and tools mean one node by it. A node that was made anew
    /// finds its own past on the log; who goes on publishing after our start is another node that lives. The one that came later goes.
    fn judge_twin(&mut self, shard: ShardId, seq: StreamSeq, origin: Origin) -> Result<(), NodeError> {
        let own = self.replica.state().origin();
        if origin.node_id != own.node_id || origin.epoch == own.epoch {
            return Ok(());
        }
        let is_past =
            self.log.start.as_ref().is_none_or(|start| seq <= start.last.get(&shard).copied().unwrap_or_default());
        if is_past {
            self.log.past_twins.insert(origin.epoch);
            return Ok(());
        }
        let mut has_published = false;
        for shard in &self.shards {
            has_published |= self.replica.state().folded_of(*shard)?.contains_key(&own);
        }
        if !has_published || self.log.past_twins.contains(&origin.epoch) {
            return Err(NodeError::SameNodeId { node_id: own.node_id });
        }
        if self.log.told_twins.insert(origin.epoch) {
            let twin = NodeError::SameNodeId { node_id: own.node_id };
            tracing::error!("{twin}; {}", twin.hint());
            self.reporter.trouble(twin.to_string());
        }
        Ok(())
    }

    /// Publishing begins when the log was read up to the end that it had at the start.
    pub(super) fn open_when_seen(&mut self) -> Result<(), NodeError> {
        let Some(start) = self.log.start.as_ref().filter(|_| !self.log.open) else { return Ok(()) };
        let seen = |shard: &ShardId| self.log.seen.get(shard).copied().unwrap_or_default();
        if start.last.iter().all(|(shard, last)| seen(shard) >= *last) {
            self.log.open = true;
            self.reporter.phase = "running";
            tracing::info!(
                "ready: node {} replicates {} over {} shards",
                self.replica.state().origin().node_id,
                self.attached.follower.file().path().display(),
                self.shards.len()
            );
            self.resume_sending()?;
        }
        Ok(())
    }

    /// Waits for something to do, at most until the pin must be renewed.
    pub(super) fn wait(&mut self) -> Result<(), NodeError> {
        let idle = self.config.capture.poll_interval.max(HANDOVER_INTERVAL);
        let timeout = match (self.retry_lock, self.attached.follower.is_resting()) {
            (true, _) => Duration::from_millis(1),
            (false, true) => idle,
            (false, false) => HANDOVER_INTERVAL,
        };
        let own_due = self.own_since.map(|since| self.own_wait.saturating_sub(since.elapsed()));
        let timeout = own_due.map_or(timeout, |due| due.min(timeout));
        let timeout = self.attached.waker.timeout(&self.attached.follower, timeout);
        if self.attached.waker.is_paused() {
            // A look for every acknowledgement would take the application's core, and a round for every look fill the log with small messages.
            std::thread::sleep(timeout);
            return Ok(());
        }
        let own = self.replica.state().origin();
        let links = &mut self.links;
        let handle = links.handle.clone();
        let event = handle.block_on(async {
            tokio::select! {
                Some(delivery) = links.deliveries.recv() => Event::Delivery(delivery),
                Some(published) = links.published.recv() => Event::Published(published),
                Some(ready) = links.ready.recv() => Event::Ready(ready),
                Some(ask) = links.asks.recv() => Event::Asked(ask),
                () = links.wake.notified() => Event::Woken,
                Ok(()) = links.stop.changed() => Event::Other,
                () = tokio::time::sleep(timeout) => Event::Other,
            }
        });
        self.has_come = matches!(&event, Event::Delivery(Delivery::Arrived(message)) if message.header.origin != own);
        self.handle(event)
    }
}
