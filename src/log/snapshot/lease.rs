//! The lease: one node at a time makes a snapshot.

use std::time::Duration;

use async_nats::jetstream::kv;

use super::super::jetstream::JetStreamLog;
use super::error::SnapshotError;
use super::store::store_error;

/// A holder that dies keeps the others waiting for this long.
const LEASE: Duration = Duration::from_secs(30);
/// How often the holder renews it: several tries fit into the lease.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(8);
const KEY: &str = "holder";

/// The right to make a snapshot, until it is given back or not renewed in time.
#[derive(Debug)]
pub struct Lease {
    store: kv::Store,
    revision: u64,
    holder: String,
}

impl Lease {
    async fn store(log: &JetStreamLog) -> Result<kv::Store, SnapshotError> {
        let bucket = format!("{}-snapshot-lease", log.stream_prefix());
        if let Ok(store) = log.context().get_key_value(&bucket).await {
            return Ok(store);
        }
        let config = kv::Config {
            bucket,
            description: "which node of woodchuck makes a snapshot".to_owned(),
            history: 1,
            max_age: LEASE,
            num_replicas: log.replica_count(),
            ..kv::Config::default()
        };
        log.context().create_key_value(config).await.map_err(store_error)
    }

    /// Makes the place for the lease if it is not there yet.
    pub(super) async fn prepare(log: &JetStreamLog) -> Result<(), SnapshotError> {
        Lease::store(log).await.map(drop)
    }

    /// Takes the lease for a node, which holds no other. `None` while another node holds it. One that is the node's already was left by a process
    /// that was killed.
    ///
    /// # Errors
    /// [`SnapshotError::Store`].
    pub async fn take(log: &JetStreamLog, node_id: u64) -> Result<Option<Lease>, SnapshotError> {
        let store = Lease::store(log).await?;
        let holder = format!("node {node_id}");
        match store.create(KEY, holder.clone().into()).await {
            Ok(revision) => Ok(Some(Lease { store, revision, holder })),
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Lease::take_up(store, holder).await,
            Err(error) => Err(store_error(error)),
        }
    }

    async fn take_up(store: kv::Store, holder: String) -> Result<Option<Lease>, SnapshotError> {
        let left = store.entry(KEY).await.map_err(store_error)?;
        let Some(left) = left.filter(|left| left.operation == kv::Operation::Put && left.value == holder) else {
            return Ok(None);
        };
        match store.update(KEY, holder.clone().into(), left.revision).await {
            Ok(revision) => Ok(Some(Lease { store, revision, holder })),
            // It has ended meanwhile, and another node was quicker.
            Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Keeps the lease, and returns when it is lost.
    pub async fn keep(&mut self) -> SnapshotError {
        // A try that fails is repeated once before the lease could have ended.
        let mut missed = 0;
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.store.update(KEY, self.holder.clone().into(), self.revision).await {
                Ok(revision) => (self.revision, missed) = (revision, 0),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {
                    return SnapshotError::LeaseLost;
                }
                Err(_) if missed == 0 => missed += 1,
                Err(_) => return SnapshotError::LeaseLost,
            }
        }
    }

    /// Gives the lease back. What fails here ends with the lease's time.
    pub async fn give_back(self) {
        let _ = self.store.delete_expect_revision(KEY, Some(self.revision)).await;
    }
}
