//! What a snapshot says about itself before the database follows: where the fold stands that it holds, how rows travel, and what became of
//! names.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | `WDSN` |
//! | 4 | length of the manifest, big-endian |
//! | | the manifest: a CBOR array, see [`SnapshotManifest::encode`] |
//! | | the database, as a zstd frame |

use std::collections::BTreeMap;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};

use super::super::message::{Origin, ShardId, StreamSeq};
use super::super::order::Folded;

/// The first bytes of a stored snapshot.
pub(super) const MAGIC: &[u8; 4] = b"WDSN";
/// The version of the manifest. Earlier ones are read, later ones are refused.
const VERSION: u16 = 4;
/// From this version on manifests say how rows travel.
const VERSION_WITH_ROUTING: u16 = 2;
/// And from this one on, in which shards that is so although it was otherwise before.
const VERSION_WITH_MOVES: u16 = 3;
/// They say from then on as well what became of names.
const VERSION_WITH_NAMES: u16 = 3;
/// The first that tells what of each origin was folded before rows moved.
const VERSION_WITH_FOLDED: u16 = 4;
/// Length of a blake3 hash in bytes.
pub const HASH_BYTES: usize = 32;
/// A manifest holds a few numbers per shard and origin; more than this is damage, and must not become an allocation.
pub(super) const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// Where the fold of one shard stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardStand {
    /// The last message folded.
    pub seq: StreamSeq,
    /// The last message of each origin among them.
    pub folded: Vec<(Origin, Folded)>,
}

/// Where the fold of every shard stands.
pub type Stand = BTreeMap<ShardId, ShardStand>;

/// How the rows of a table travel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableRouting {
    /// By its name alone.
    pub by_name: bool,
    /// Where the fold stands behind the change of the schema that made it so, if there was one.
    pub moved_in: Vec<MovedIn>,
}

/// A shard in which the rows of a table have moved to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedIn {
    /// The shard.
    pub shard: ShardId,
    /// The last message of each origin that was folded there before: what comes of the table behind it counts in the other shard alone. `None` in
    /// manifests before version 4, and where an earlier version has folded the change.
    pub folded: Option<Vec<(Origin, u64)>>,
}

/// How rows travel, of all tables of which rows were ever met; names in ASCII lower case. Neither the database nor messages tell it: a
/// UNIQUE index decides, and may be gone.
pub type Routing = BTreeMap<String, TableRouting>;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotManifest {
    /// Where the fold stands.
    pub stand: Stand,
    /// How rows travel. Empty in manifests of version 1.
    pub routing: Routing,
    /// What became of the names of tables and columns, as the layer that applies changes writes it down: the database has only those of now,
    /// and messages behind the snapshot may be by nodes that know earlier ones. Empty in manifests before version 3.
    pub names: Vec<u8>,
    /// Length of the database.
    pub database_bytes: u64,
    /// The blake3 hash of the database.
    pub blake3: [u8; HASH_BYTES],
}

impl SnapshotManifest {
    /// Encodes: `[version, bytes, hash, [[shard, seq, [[node, epoch, batch_no, round_no, part]…]]…], [[table, by_name, [[shard, [[node, epoch,
    /// batch_no]…] or null]…]]…], names]`.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut write = || -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
            let mut to = Encoder::new(&mut out);
            to.array(6)?.u16(VERSION)?.u64(self.database_bytes)?.bytes(&self.blake3)?;
            to.array(self.stand.len() as u64)?;
            for (shard, stand) in &self.stand {
                to.array(3)?.u16(shard.0)?.u64(stand.seq.0)?.array(stand.folded.len() as u64)?;
                for (origin, folded) in &stand.folded {
                    to.array(5)?.u64(origin.node_id)?.u64(origin.epoch)?;
                    to.u64(folded.batch_no)?.u64(folded.round_no)?.u32(folded.part)?;
                }
            }
            to.array(self.routing.len() as u64)?;
            for (table, TableRouting { by_name, moved_in }) in &self.routing {
                to.array(3)?.str(table)?.bool(*by_name)?.array(moved_in.len() as u64)?;
                for MovedIn { shard, folded } in moved_in {
                    to.array(2)?.u16(shard.0)?;
                    let Some(folded) = folded else {
                        to.null()?;
                        continue;
                    };
                    to.array(folded.len() as u64)?;
                    for (origin, batch_no) in folded {
                        to.array(3)?.u64(origin.node_id)?.u64(origin.epoch)?.u64(*batch_no)?;
                    }
                }
            }
            to.bytes(&self.names)?;
            Ok(())
        };
        // Memory cannot refuse a byte.
        let _ = write();
        out
    }

    /// Decodes what [`SnapshotManifest::encode`] made; says what is wrong with anything else.
    pub(super) fn decode(bytes: &[u8]) -> Result<SnapshotManifest, &'static str> {
        let mut from = Decoder::new(bytes);
        let version = from.array().and_then(|_| from.u16()).map_err(|_| "its manifest cannot be read")?;
        if !(1..=VERSION).contains(&version) {
            return Err("it was made by another version of woodchuck");
        }
        let mut read = || -> Result<SnapshotManifest, minicbor::decode::Error> {
            let count = |count: Option<u64>| count.ok_or_else(|| minicbor::decode::Error::message("no length"));
            let database_bytes = from.u64()?;
            let blake3 =
                from.bytes()?.try_into().map_err(|_| minicbor::decode::Error::message("a hash has another length"))?;
            let mut stand = Stand::new();
            for _ in 0..count(from.array()?)? {
                from.array()?;
                let shard = ShardId(from.u16()?);
                let mut of_shard = ShardStand { seq: StreamSeq(from.u64()?), folded: Vec::new() };
                for _ in 0..count(from.array()?)? {
                    from.array()?;
                    let origin = Origin { node_id: from.u64()?, epoch: from.u64()? };
                    let folded = Folded { batch_no: from.u64()?, round_no: from.u64()?, part: from.u32()? };
                    of_shard.folded.push((origin, folded));
                }
                stand.insert(shard, of_shard);
            }
            let mut routing = Routing::new();
            if version >= VERSION_WITH_ROUTING {
                for _ in 0..count(from.array()?)? {
                    from.array()?;
                    let table = from.str()?.to_owned();
                    let mut travels = TableRouting { by_name: from.bool()?, moved_in: Vec::new() };
                    if version >= VERSION_WITH_MOVES {
                        for _ in 0..count(from.array()?)? {
                            let mut moved = MovedIn { shard: ShardId(0), folded: None };
                            if version >= VERSION_WITH_FOLDED {
                                from.array()?;
                            }
                            moved.shard = ShardId(from.u16()?);
                            if version >= VERSION_WITH_FOLDED && from.datatype()? == Type::Null {
                                from.null()?;
                            } else if version >= VERSION_WITH_FOLDED {
                                let mut folded = Vec::new();
                                for _ in 0..count(from.array()?)? {
                                    from.array()?;
                                    let origin = Origin { node_id: from.u64()?, epoch: from.u64()? };
                                    folded.push((origin, from.u64()?));
                                }
                                moved.folded = Some(folded);
                            }
                            travels.moved_in.push(moved);
                        }
                    }
                    routing.insert(table, travels);
                }
            }
            let names = if version >= VERSION_WITH_NAMES { from.bytes()?.to_vec() } else { Vec::new() };
            Ok(SnapshotManifest { stand, routing, names, database_bytes, blake3 })
        };
        read().map_err(|_| "its manifest cannot be read")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_survive_their_bytes_and_anything_else_is_refused() {
        let origin = Origin { node_id: 7, epoch: u64::MAX };
        let folded = Folded { batch_no: 3, round_no: 2, part: 1 };
        let stand = ShardStand { seq: StreamSeq(70_000), folded: vec![(origin, folded)] };
        let stand = Stand::from([(ShardId(1), stand), (ShardId(2), ShardStand::default())]);
        let known = MovedIn { shard: ShardId(1), folded: Some(vec![(origin, 1 << 40)]) };
        let moved = TableRouting { by_name: true, moved_in: vec![known, MovedIn { shard: ShardId(2), folded: None }] };
        let routing = Routing::from([("by_key".to_owned(), TableRouting::default()), ("by_name".to_owned(), moved)]);
        let names = vec![1, 2, 3];
        let manifest = SnapshotManifest { stand, routing, names, database_bytes: 1 << 40, blake3: [9; HASH_BYTES] };
        let bytes = manifest.encode();
        assert_eq!(SnapshotManifest::decode(&bytes), Ok(manifest));
        for end in 0..bytes.len() {
            assert!(SnapshotManifest::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    /// Snapshots outlive the version that made them: a node that begins with one may be the first of its version.
    #[test]
    fn manifests_of_earlier_versions_are_read_and_one_of_the_next_is_refused() {
        let mut bytes = vec![0x84, 1, 7, 0x58, 32];
        bytes.extend([9; HASH_BYTES]);
        // One shard, number 1, at message 5, with one origin.
        bytes.extend([0x81, 0x83, 1, 5, 0x81, 0x85, 7, 8, 3, 2, 1]);
        let folded = Folded { batch_no: 3, round_no: 2, part: 1 };
        let stand = ShardStand { seq: StreamSeq(5), folded: vec![(Origin { node_id: 7, epoch: 8 }, folded)] };
        let stand = Stand::from([(ShardId(1), stand)]);
        let (routing, names) = (Routing::new(), Vec::new());
        let mut manifest = SnapshotManifest { stand, routing, names, database_bytes: 7, blake3: [9; HASH_BYTES] };
        assert_eq!(SnapshotManifest::decode(&bytes).as_ref(), Ok(&manifest));
        bytes[..2].copy_from_slice(&[0x85, 2]);
        // One table, `t`, that travels by its name.
        bytes.extend([0x81, 0x82, 0x61, b't', 0xf5]);
        manifest.routing.insert("t".to_owned(), TableRouting { by_name: true, moved_in: Vec::new() });
        assert_eq!(SnapshotManifest::decode(&bytes).as_ref(), Ok(&manifest));
        // The same with the shard in which it has moved, and no names.
        let mut moved = bytes.clone();
        moved[..2].copy_from_slice(&[0x86, 3]);
        let table = moved.len() - 4;
        moved[table] = 0x83;
        moved.extend([0x81, 2, 0x40]);
        let mut with_move = manifest.clone();
        let moved_in = vec![MovedIn { shard: ShardId(2), folded: None }];
        with_move.routing.insert("t".to_owned(), TableRouting { by_name: true, moved_in });
        assert_eq!(SnapshotManifest::decode(&moved).as_ref(), Ok(&with_move));
        for other in [0, VERSION + 1] {
            bytes[1] = u8::try_from(other).unwrap();
            assert_eq!(SnapshotManifest::decode(&bytes), Err("it was made by another version of woodchuck"));
        }
    }
}
