//! Which shard a row belongs to.

use super::message::ShardId;

/// The shard of a row, from 1 to `shards`: equal on every node for keys that name the same row.
///
/// The hash runs over the length of the table's name (8 bytes, big-endian), the name in ASCII lower case (SQLite compares names so) and
/// the canonical key; its first 8 bytes, big-endian, modulo `shards`, plus 1, are the shard. `None` hashes by table name alone, for tables
/// with UNIQUE beyond their key. 0 shards count as 1.
#[must_use]
pub fn shard_of(table: &str, canonical_key: Option<&[u8]>, shards: u16) -> ShardId {
    let name = table.to_ascii_lowercase();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_be_bytes());
    hasher.update(name.as_bytes());
    if let Some(key) = canonical_key {
        hasher.update(key);
    }
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    // The remainder is below a u16, so it fits, and plus 1 it is at most `shards`.
    ShardId((first % u64::from(shards.max(1))) as u16 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_is_used_and_none_beyond() {
        let mut seen = [0_u32; 9];
        for key in 0_u32..8000 {
            seen[usize::from(shard_of("t", Some(&key.to_be_bytes()), 8).0)] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|count| (800..1200).contains(count)), "{seen:?}");
    }

    #[test]
    fn table_names_hash_without_ascii_case() {
        assert_eq!(shard_of("Orders", Some(b"k"), 1024), shard_of("oRDERS", Some(b"k"), 1024));
        assert_ne!(shard_of("É", None, u16::MAX), shard_of("é", None, u16::MAX));
    }

    #[test]
    fn the_length_keeps_name_and_key_apart() {
        assert_ne!(shard_of("ab", Some(b"c"), u16::MAX), shard_of("a", Some(b"bc"), u16::MAX));
    }
}
