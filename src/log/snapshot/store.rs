//! The object store: what is there, putting one in, taking one out, and nothing left of what was interrupted.
//!
//! Invariant: a snapshot can be seen only when all of it is stored, for the store writes its description last. Numbers count up, so the
//! highest is the newest whatever the clocks say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use async_nats::jetstream::object_store::{
    Config, GetErrorKind, InfoError, InfoErrorKind, ObjectInfo, ObjectMetadata, ObjectStore,
};
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;

use super::super::contract::Log;
use super::super::jetstream::JetStreamLog;
use super::super::message::{ShardId, StreamSeq};
use super::error::SnapshotError;
use super::lease::Lease;
use super::manifest::SnapshotManifest;
use super::pack::{Blocking, PIPE_BYTES, Unpacked, pack, unpack};

/// Snapshots that are kept: whoever reads the newest can finish when the next one comes.
const KEPT: usize = 2;
/// A store that gives nothing for this long is not going to.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// When nothing has come for so long, one looks whether anything can.
const LOOK_AFTER: Duration = Duration::from_secs(2);
/// What is read from the store at a time.
const READ_BYTES: usize = 128 << 10;
/// Before the number, in an object's name.
const NAME_PREFIX: &str = "snapshot-";

/// A stored snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Counts up.
    pub no: u64,
    /// The node that made it.
    pub node_id: u64,
    /// When, by that node's clock, in milliseconds since 1970: for people, never for order.
    pub taken_at_ms: u64,
    /// Length of the database.
    pub database_bytes: u64,
    /// Length of what is stored.
    pub stored_bytes: u64,
    /// The blake3 hash of the database, in hexadecimal.
    pub blake3: String,
    /// Which tables are in it: the options of the node that made it, empty for all.
    pub tables: String,
    /// The last message of each shard that is in it.
    pub positions: BTreeMap<ShardId, StreamSeq>,
    /// Tells these streams from others under their names.
    life: String,
    nuid: String,
}

impl SnapshotInfo {
    /// Describes a snapshot that lies in no store.
    #[must_use]
    pub fn outside(no: u64, node_id: u64, manifest: &SnapshotManifest) -> SnapshotInfo {
        SnapshotInfo {
            no,
            node_id,
            taken_at_ms: 0,
            database_bytes: manifest.database_bytes,
            stored_bytes: 0,
            blake3: blake3::Hash::from_bytes(manifest.blake3).to_hex().as_str().to_owned(),
            tables: String::new(),
            positions: manifest.stand.iter().map(|(shard, stand)| (*shard, stand.seq)).collect(),
            life: String::new(),
            nuid: String::new(),
        }
    }
}

/// Who makes a snapshot and of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// The node.
    pub node_id: u64,
    /// Its clock, in milliseconds since 1970.
    pub now_ms: u64,
    /// See [`SnapshotInfo::tables`].
    pub tables: String,
}

/// The snapshots of one log.
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    log: JetStreamLog,
    bucket: String,
}

/// The pieces that snapshots are stored in, where the server takes messages of that size; that of the client itself.
const CHUNK_BYTES: usize = 128 << 10;

pub(super) fn store_error(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Store(error.to_string())
}

/// What tells the streams of this log from others that had their names before.
pub(super) async fn life_of(log: &JetStreamLog) -> Result<String, SnapshotError> {
    let mut hasher = blake3::Hasher::new();
    for shard in 1..=log.shard_count() {
        hasher.update(&log.bounds(ShardId(shard)).await?.created_ns.to_be_bytes());
    }
    Ok(hasher.finalize().to_hex().as_str().to_owned())
}

impl SnapshotStore {
    /// The snapshots of a log. Nothing is asked or made yet.
    #[must_use]
    pub fn of(log: &JetStreamLog) -> SnapshotStore {
        SnapshotStore { bucket: format!("{}-snapshot-store", log.stream_prefix()), log: log.clone() }
    }

    async fn store(&self) -> Result<Option<ObjectStore>, SnapshotError> {
        match self.log.context().get_object_store(&self.bucket).await {
            Ok(store) => Ok(Some(store)),
            Err(_) => match self.log.context().get_stream(format!("OBJ_{}", self.bucket)).await {
                Ok(_) => Err(SnapshotError::Store("the bucket cannot be opened".to_owned())),
                Err(error) if error.to_string().contains("not found") => Ok(None),
                Err(error) => Err(store_error(error)),
            },
        }
    }

    async fn store_or_make(&self) -> Result<ObjectStore, SnapshotError> {
        if let Some(store) = self.store().await? {
            return Ok(store);
        }
        let config = Config {
            bucket: self.bucket.clone(),
            description: Some("snapshots of databases, see docs/operations.md of woodchuck".to_owned()),
            max_bytes: -1,
            num_replicas: self.log.replica_count(),
            ..Config::default()
        };
        self.log.context().create_object_store(config).await.map_err(store_error)
    }

    /// Makes what snapshots need on the servers if it is not there yet. A server that is down keeps what has copies on all of them from being made.
    ///
    /// # Errors
    /// [`SnapshotError::Store`].
    pub async fn prepare(&self) -> Result<(), SnapshotError> {
        self.store_or_make().await?;
        Lease::prepare(&self.log).await
    }

    /// The snapshots that belong to the streams as they are, newest first.
    ///
    /// # Errors
    /// [`SnapshotError::Store`], [`SnapshotError::Log`].
    pub async fn list(&self) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        let Some(store) = self.store().await? else { return Ok(Vec::new()) };
        let life = life_of(&self.log).await?;
        let mut found = self.all(&store).await?;
        found.retain(|info| info.life == life);
        Ok(found)
    }

    async fn all(&self, store: &ObjectStore) -> Result<Vec<SnapshotInfo>, SnapshotError> {
        let listed = async || {
            let mut list = store.list().await.map_err(store_error)?;
            let mut found = Vec::new();
            while let Some(object) = list.next().await {
                found.extend(info_of(object.map_err(store_error)?));
            }
            Ok::<_, SnapshotError>(found)
        };
        let mut within = LOOK_AFTER;
        let mut found: Vec<SnapshotInfo> = loop {
            match tokio::time::timeout(within, listed()).await {
                Ok(listed) => break listed?,
                // The last entry may have been removed while it was on its way; then nothing tells where the list ends.
                Err(_) if within < SILENCE_MAX => within *= 2,
                Err(_) => return Err(SnapshotError::Store("its list does not come".to_owned())),
            }
        };
        found.sort_unstable_by_key(|info| std::cmp::Reverse(info.no));
        Ok(found)
    }

    /// Stores a snapshot behind all others, then removes all but the last two and what interrupted ones have left. To be called under the
    /// lease.
    ///
    /// # Errors
    /// [`SnapshotError`]. What was stored until then is not seen by anybody, and the next call removes it.
    pub async fn put(
        &self,
        manifest: SnapshotManifest,
        mut database: File,
        maker: &Maker,
        mut progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let store = self.store_or_make().await?;
        let before = self.all(&store).await?;
        // Parts of interrupted ones go first, so that they cannot fill the store.
        self.sweep(&store, &before).await?;
        let no = before.first().map_or(0, |newest| newest.no) + 1;
        let life = life_of(&self.log).await?;
        let positions: Vec<String> =
            manifest.stand.iter().map(|(shard, stand)| format!("{}={}", shard.0, stand.seq.0)).collect();
        let metadata = HashMap::from([
            ("node".to_owned(), maker.node_id.to_string()),
            ("taken_at_ms".to_owned(), maker.now_ms.to_string()),
            ("database_bytes".to_owned(), manifest.database_bytes.to_string()),
            ("blake3".to_owned(), blake3::Hash::from_bytes(manifest.blake3).to_hex().as_str().to_owned()),
            ("tables".to_owned(), maker.tables.clone()),
            ("positions".to_owned(), positions.join(",")),
            ("life".to_owned(), life),
        ]);
        let name = format!("{NAME_PREFIX}{no:020}");
        let chunk_size = Some(self.log.message_bytes_max().min(CHUNK_BYTES));
        let meta = ObjectMetadata { name: name.clone(), metadata, chunk_size, ..ObjectMetadata::default() };
        let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
        let handle = Handle::current();
        let packing = tokio::task::spawn_blocking(move || {
            let mut to = std::io::BufWriter::with_capacity(READ_BYTES, Blocking { pipe: ours, handle });
            pack(&manifest, &mut database, &mut to, &mut progress)?;
            to.flush()
        });
        // The pipe's end looks like the file's. So nothing is described until the packing is known to have ended well.
        let mut checked = Checked { pipe: &mut theirs, packing: Some(packing) };
        let stored = store.put(meta, &mut checked).await.map_err(store_error)?;
        let all = self.all(&store).await?;
        for old in all.iter().skip(KEPT) {
            self.remove(&store, old).await?;
        }
        self.sweep(&store, all.get(..KEPT).unwrap_or(&all)).await?;
        info_of(stored).ok_or_else(|| SnapshotError::Store("it describes the snapshot in another way".to_owned()))
    }

    async fn remove(&self, store: &ObjectStore, old: &SnapshotInfo) -> Result<(), SnapshotError> {
        let name = format!("{NAME_PREFIX}{:020}", old.no);
        store.delete(&name).await.map_err(store_error)?;
        // The mark that it was deleted is of no use to anybody.
        self.purge(format!("$O.{}.M.{}", self.bucket, encoded(&name))).await
    }

    async fn purge(&self, subject: String) -> Result<(), SnapshotError> {
        let stream = self.log.context().get_stream(format!("OBJ_{}", self.bucket)).await.map_err(store_error)?;
        stream.purge().filter(subject).await.map_err(store_error)?;
        Ok(())
    }

    /// Removes parts that belong to no snapshot.
    async fn sweep(&self, _: &ObjectStore, whole: &[SnapshotInfo]) -> Result<(), SnapshotError> {
        let stream = self.log.context().get_stream(format!("OBJ_{}", self.bucket)).await.map_err(store_error)?;
        let prefix = format!("$O.{}.C.", self.bucket);
        let known: BTreeSet<String> = whole.iter().map(|info| format!("{prefix}{}", info.nuid)).collect();
        let mut subjects = stream.info_with_subjects(format!("{prefix}>")).await.map_err(store_error)?;
        let mut left = Vec::new();
        while let Some(found) = subjects.next().await {
            let (subject, _) = found.map_err(store_error)?;
            if !known.contains(subject.as_str()) {
                left.push(subject);
            }
        }
        for subject in left {
            stream.purge().filter(subject).await.map_err(store_error)?;
        }
        Ok(())
    }

    /// Fetches a snapshot into an empty file and checks its hash. `progress` gets the bytes that are there and those there will be.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] when it is not what was stored: the next older one may be. [`SnapshotError::Removed`]: newer ones are there. The
    /// others may pass.
    pub async fn get(
        &self,
        info: &SnapshotInfo,
        mut to: File,
        mut progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<SnapshotManifest, SnapshotError> {
        let store = self.store().await?.ok_or_else(|| store_error("the bucket is gone"))?;
        let name = format!("{NAME_PREFIX}{:020}", info.no);
        let mut object = store.get(&name).await.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => SnapshotError::Removed { no: info.no },
            _ => store_error(error),
        })?;
        let (mut ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let handle = Handle::current();
        let unpacking = tokio::task::spawn_blocking(move || {
            let unpacked = unpack(&mut Blocking { pipe: theirs, handle }, &mut to, &mut progress)?;
            to.sync_all().map(|()| unpacked)
        });
        let mut buffer = vec![0; READ_BYTES];
        let mut silent = Duration::ZERO;
        let fetched = loop {
            let read = tokio::time::timeout(LOOK_AFTER, object.read(&mut buffer)).await;
            silent = if read.is_ok() { Duration::ZERO } else { silent + LOOK_AFTER };
            match read {
                Ok(Ok(0)) => break Ok(()),
                Ok(Ok(count)) => {
                    // The other end goes when it has found something wrong; it says what.
                    if ours.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(Err(error)) => break Err(store_error(error)),
                Err(_) if silent >= SILENCE_MAX => break Err(SnapshotError::Store("it has gone silent".to_owned())),
                Err(_) => {
                    let found = tokio::time::timeout(LOOK_AFTER, store.info(&name)).await;
                    let is_gone = |error: InfoError| error.kind() == InfoErrorKind::NotFound;
                    // (No answer says nothing.)
                    if found.is_ok_and(|found| found.map_or_else(is_gone, |now| now.deleted)) {
                        break Err(SnapshotError::Removed { no: info.no });
                    }
                }
            }
        };
        drop(ours);
        let unpacked = unpacking.await.map_err(store_error)?;
        fetched?;
        let file = |source| SnapshotError::File { what: "writing the snapshot", source };
        match unpacked.map_err(file)? {
            Unpacked::Whole(manifest) => Ok(manifest),
            Unpacked::Damaged(what) => Err(SnapshotError::Damaged { no: info.no, what }),
        }
    }
}

/// The pipe from the packing thread, which ends well only if the thread does.
struct Checked<'p> {
    pipe: &'p mut tokio::io::DuplexStream,
    packing: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

impl tokio::io::AsyncRead for Checked<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        use std::future::Future;
        use std::pin::Pin;
        use std::task::Poll;
        let before = buf.filled().len();
        match Pin::new(&mut *self.pipe).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() == before && buf.remaining() > 0 => {}
            other => return other,
        }
        let Some(packing) = &mut self.packing else { return Poll::Ready(Ok(())) };
        match Pin::new(packing).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ended) => {
                self.packing = None;
                Poll::Ready(ended.unwrap_or_else(|error| Err(std::io::Error::other(error))))
            }
        }
    }
}

fn info_of(object: ObjectInfo) -> Option<SnapshotInfo> {
    let no = object.name.strip_prefix(NAME_PREFIX)?.parse().ok()?;
    let text = |name: &str| object.metadata.get(name).cloned();
    let number = |name: &str| object.metadata.get(name)?.parse::<u64>().ok();
    let position = |pair: &str| {
        let (shard, seq) = pair.split_once('=')?;
        Some((ShardId(shard.parse().ok()?), StreamSeq(seq.parse().ok()?)))
    };
    Some(SnapshotInfo {
        no,
        node_id: number("node")?,
        taken_at_ms: number("taken_at_ms")?,
        database_bytes: number("database_bytes")?,
        stored_bytes: object.size as u64,
        blake3: text("blake3")?,
        tables: text("tables")?,
        positions: text("positions")?.split(',').map(position).collect::<Option<_>>()?,
        life: text("life")?,
        nuid: object.nuid,
    })
}

/// An object's name as it stands in its subject: URL-safe base64.
fn encoded(name: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in name.as_bytes().chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let symbol = ALPHABET.get((bits >> (18 - 6 * place) & 63) as usize).copied().unwrap_or(b'=');
            out.push(if place <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn names_are_encoded_as_the_store_does() {
        assert_eq!(encoded("snapshot-1"), "c25hcHNob3QtMQ==");
        assert_eq!(encoded("snapshot-12"), "c25hcHNob3QtMTI=");
        assert_eq!(encoded("snapshot-123"), "c25hcHNob3QtMTIz");
    }
}
