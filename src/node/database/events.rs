//! What comes from the network, the watcher and the caller.

use std::time::Duration;

use super::{Database, Event};
use crate::capture::HANDOVER_INTERVAL;
use crate::log::{Delivery, Published, ShardId};
use crate::node::NodeError;

impl Database {
    pub(super) fn take_events(&mut self) -> Result<(), NodeError> {
        while let Ok(ready) = self.links.ready.try_recv() {
            self.handle(Event::Ready(ready))?;
        }
        while let Ok(published) = self.links.published.try_recv() {
            self.handle(Event::Published(published))?;
        }
        while let Ok(delivery) = self.links.deliveries.try_recv() {
            self.handle(Event::Delivery(delivery))?;
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), NodeError> {
        match event {
            Event::Other => {}
            Event::Woken => self.attached.follower.await_commit()?,
            Event::Ready(ready) => {
                for shard in &self.shards {
                    let applied = self.replica.state().position(*shard)?;
                    self.log.seen.entry(*shard).or_insert(applied);
                }
                self.log.start = Some(ready);
                self.open_when_seen()?;
            }
            Event::Published(Published::Message { shard, batch_no, .. }) => {
                self.replica.acknowledged(shard, batch_no)?;
            }
            Event::Published(Published::Round { .. }) => self.round = None,
            Event::Delivery(Delivery::Failed { error, .. }) => return Err(error.into()),
            Event::Delivery(Delivery::Arrived(message)) => {
                let shard = message.shard;
                self.log.seen.insert(shard, message.seq);
                if message.header.origin == self.replica.state().origin() {
                    // Seen on the log is acknowledged, whatever became of the server's answer.
                    let batch_no = message.header.batch_no;
                    self.replica.acknowledged(shard, batch_no)?;
                    // One that a killed node had sent can arrive before it is sent again.
                    self.to_send.retain(|waiting| (waiting.shard, waiting.batch_no) != (shard, batch_no));
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

    /// Publishing begins when the log was read up to the end that it had at the start.
    fn open_when_seen(&mut self) -> Result<(), NodeError> {
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
        let links = &mut self.links;
        let handle = links.handle.clone();
        let event = handle.block_on(async {
            tokio::select! {
                Some(delivery) = links.deliveries.recv() => Event::Delivery(delivery),
                Some(published) = links.published.recv() => Event::Published(published),
                Some(ready) = links.ready.recv() => Event::Ready(ready),
                () = links.wake.notified() => Event::Woken,
                Ok(()) = links.stop.changed() => Event::Other,
                () = tokio::time::sleep(timeout) => Event::Other,
            }
        });
        self.handle(event)
    }
}
