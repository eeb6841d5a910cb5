//! What waits in the inbox, as applying reads it: one message at a time, whatever they are together.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::apply::{ApplyError, Arrivals};
use crate::log::{Batch, Header, LogError, MESSAGE_BYTES_MAX, Origin, ShardId, StreamSeq, decode, encoded_units};
use crate::node::inbox::Inbox;
use crate::node::{NodeError, RunConfig};

/// The first messages of each shard.
pub(super) struct Waiting<'a> {
    inbox: &'a Inbox,
    config: &'a RunConfig,
    places: Vec<(ShardId, usize)>,
    /// Why one could not be read.
    failed: RefCell<Option<NodeError>>,
}

impl<'a> Waiting<'a> {
    /// As many of each shard as `counts` says; of another origin none where those are not applied.
    pub(super) fn new(
        inbox: &'a Inbox,
        config: &'a RunConfig,
        counts: &BTreeMap<ShardId, usize>,
        own: Origin,
    ) -> Waiting<'a> {
        let places = counts.iter().flat_map(|(shard, count)| (0..*count).map(|index| (*shard, index)));
        let is_wanted = |(shard, index): &(ShardId, usize)| {
            config.apply_changes
                || inbox.place(*shard, *index).is_some_and(|(_, header): (_, &Header)| header.origin == own)
        };
        Waiting { inbox, config, places: places.filter(is_wanted).collect(), failed: RefCell::new(None) }
    }

    /// The cause of [`ApplyError::NotRead`], which is known here.
    pub(super) fn explain(self, error: ApplyError) -> NodeError {
        match self.failed.into_inner() {
            Some(cause) if matches!(error, ApplyError::NotRead) => cause,
            _ => error.into(),
        }
    }

    fn keep(&self, cause: NodeError) -> ApplyError {
        self.failed.replace(Some(cause));
        ApplyError::NotRead
    }

    fn payload(&self, shard: ShardId, index: usize) -> Result<(StreamSeq, Bytes), NodeError> {
        let found = self.inbox.read(shard, index).map_err(|source| NodeError::StateDirectory {
            path: self.config.state_dir.clone(),
            what: "cannot read back what has arrived",
            source,
        })?;
        found.ok_or(NodeError::Ended("inbox"))
    }

    fn read(&self, shard: ShardId, index: usize) -> Result<Batch, NodeError> {
        let (seq, payload) = self.payload(shard, index)?;
        let batch = decode(&payload, MESSAGE_BYTES_MAX).map_err(|source| LogError::Undecodable {
            stream: format!("{}-{}-{}", self.config.log.stream_prefix, self.config.log.shards, shard.0),
            seq,
            source,
        })?;
        Ok(batch)
    }
}

impl Arrivals for Waiting<'_> {
    fn count(&self) -> usize {
        self.places.len()
    }

    fn place(&self, index: usize) -> Option<(ShardId, StreamSeq, &Header)> {
        let (shard, index) = self.places.get(index)?;
        self.inbox.place(*shard, *index).map(|(seq, header)| (*shard, seq, header))
    }

    fn units(&self, index: usize) -> Result<Option<Cow<'_, [u8]>>, ApplyError> {
        let (shard, index) = self.places.get(index).ok_or(ApplyError::NotRead)?;
        let (_, payload) = self.payload(*shard, *index).map_err(|cause| self.keep(cause))?;
        Ok(encoded_units(&payload).and_then(|range| payload.get(range)).map(|units| Cow::Owned(units.to_vec())))
    }

    fn batch(&self, index: usize) -> Result<Cow<'_, Batch>, ApplyError> {
        let (shard, index) = self.places.get(index).ok_or(ApplyError::NotRead)?;
        self.read(*shard, *index).map(Cow::Owned).map_err(|cause| self.keep(cause))
    }
}
