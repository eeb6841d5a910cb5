//! What the first node held when the log was empty: every node that joins with a copy of its own must hold the same.

use std::io::Read;

use async_nats::jetstream::kv;
use minicbor::{Decoder, Encoder};

use super::super::contract::Log;
use super::super::jetstream::JetStreamLog;
use super::super::message::ShardId;
use super::error::SnapshotError;
use super::store::{life_of, store_error};

const KEY: &str = "content";
const ZSTD_LEVEL: i32 = 3;
/// Far more than the server takes.
const BYTES_MAX: u64 = 64 << 20;

/// What can be said of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDigest {
    /// Its name.
    pub name: String,
    /// Its columns and key, as text that is equal when they are.
    pub shape: String,
    /// How many rows there are.
    pub rows: u64,
    /// The rows' hashes, exclusive-ored by a hash of the key; a power of two of them.
    pub buckets: Vec<u64>,
}

impl TableDigest {
    /// At least how many rows differ from another table of the same shape.
    #[must_use]
    pub fn differing(&self, other: &TableDigest) -> u64 {
        let count = self.buckets.len().min(other.buckets.len()).max(1);
        let folded = |buckets: &[u64]| {
            let mut out = vec![0; count];
            for (index, bucket) in buckets.iter().enumerate() {
                if let Some(sum) = out.get_mut(index % count) {
                    *sum ^= bucket;
                }
            }
            out
        };
        let differing = folded(&self.buckets).iter().zip(folded(&other.buckets)).filter(|(a, b)| *a != b).count();
        (differing as u64).max(self.rows.abs_diff(other.rows))
    }
}

/// What a log began with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstContent {
    /// The first node's tables.
    pub tables: Vec<TableDigest>,
    /// Nothing was published since: every node that belongs to the log holds the same.
    pub is_empty: bool,
}

fn encode(life: &str, tables: &[TableDigest]) -> Result<Vec<u8>, SnapshotError> {
    let mut out = Vec::new();
    let mut write = || -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        let mut to = Encoder::new(&mut out);
        to.array(2)?.str(life)?.array(tables.len() as u64)?;
        for table in tables {
            to.array(4)?.str(&table.name)?.str(&table.shape)?.u64(table.rows)?;
            to.array(table.buckets.len() as u64)?;
            for bucket in &table.buckets {
                to.u64(*bucket)?;
            }
        }
        Ok(())
    };
    // Memory cannot refuse a byte.
    let _ = write();
    zstd::encode_all(out.as_slice(), ZSTD_LEVEL).map_err(store_error)
}

fn decode(bytes: &[u8]) -> Option<(String, Vec<TableDigest>)> {
    let mut plain = Vec::new();
    zstd::Decoder::new(bytes).ok()?.take(BYTES_MAX).read_to_end(&mut plain).ok()?;
    let mut from = Decoder::new(&plain);
    from.array().ok()?;
    let life = from.str().ok()?.to_owned();
    let mut tables = Vec::new();
    for _ in 0..from.array().ok()?? {
        from.array().ok()?;
        let (name, shape, rows) = (from.str().ok()?.to_owned(), from.str().ok()?.to_owned(), from.u64().ok()?);
        let mut buckets = Vec::new();
        for _ in 0..from.array().ok()?? {
            buckets.push(from.u64().ok()?);
        }
        tables.push(TableDigest { name, shape, rows, buckets });
    }
    Some((life, tables))
}

/// Records what the first node of a log holds, or returns what another has recorded. `None` when nobody has and the log is not empty any
/// more, so that it cannot be known.
///
/// # Errors
/// [`SnapshotError::Store`], [`SnapshotError::Log`].
pub async fn content_of_first(log: &JetStreamLog, ours: &[TableDigest]) -> Result<Option<FirstContent>, SnapshotError> {
    let bucket = format!("{}-first-content", log.stream_prefix());
    let store = match log.context().get_key_value(&bucket).await {
        Ok(store) => store,
        Err(_) => {
            let config = kv::Config {
                bucket,
                description: "what the first node of woodchuck held".to_owned(),
                history: 1,
                num_replicas: log.replica_count(),
                ..kv::Config::default()
            };
            log.context().create_key_value(config).await.map_err(store_error)?
        }
    };
    let life = life_of(log).await?;
    let key = format!("{KEY}-{}", log.shard_count());
    let found = store.entry(&key).await.map_err(store_error)?;
    let revision = found.as_ref().map(|entry| entry.revision);
    let recorded = found.and_then(|entry| decode(&entry.value)).filter(|(of, _)| *of == life);
    let mut is_empty = true;
    for shard in 1..=log.shard_count() {
        is_empty &= log.bounds(ShardId(shard)).await?.last.0 == 0;
    }
    if let Some((_, tables)) = recorded {
        return Ok(Some(FirstContent { tables, is_empty }));
    }
    if !is_empty {
        return Ok(None);
    }
    let value = encode(&life, ours)?;
    let stored = match revision {
        // Of other streams under these names.
        Some(revision) => store.update(&key, value.into(), revision).await.map_err(store_error),
        None => store.create(&key, value.into()).await.map_err(store_error),
    };
    match stored {
        Ok(_) => Ok(Some(FirstContent { tables: ours.to_vec(), is_empty })),
        // Another node was quicker.
        Err(error) => match store.entry(&key).await.map_err(store_error)?.and_then(|entry| decode(&entry.value)) {
            Some((of, tables)) if of == life => Ok(Some(FirstContent { tables, is_empty })),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_whatever_the_number_of_buckets() {
        let table = |rows, buckets: &[u64]| TableDigest {
            name: "t".to_owned(),
            shape: "[\"id\"] [0]".to_owned(),
            rows,
            buckets: buckets.to_vec(),
        };
        let one = table(4, &[1, 2, 3, 4]);
        assert_eq!(
            decode(&encode("x", std::slice::from_ref(&one)).unwrap()),
            Some(("x".to_owned(), vec![one.clone()]))
        );
        assert_eq!(one.differing(&one), 0);
        assert_eq!(one.differing(&table(2, &[1 ^ 3, 2 ^ 4])), 2, "by the number of rows");
        assert_eq!(one.differing(&table(4, &[1 ^ 3, 2 ^ 4])), 0);
        assert_eq!(one.differing(&table(4, &[1, 2, 9, 9])), 2);
    }
}
