//! The specification: the log's messages in their order, rows out. Plain maps and no SQL; nothing of the product but what decodes a message
//! and the bytes of a key.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use woodchuck::change::{Op, RowKey, canonical_key};
use woodchuck::format::Row;
use woodchuck::log::{Batch, Body, Origin, ShardId, Unit, UnitKey, decode_units};
use woodchuck::schema::Catalogue;

use super::schema::Schema;

/// Table and canonical key.
pub type Key = (String, Vec<u8>);
/// Every column of every row.
pub type Db = BTreeMap<Key, Row>;

/// The rules that hold for a cluster.
pub struct Rules {
    pub schema: Schema,
    pub catalogue: Catalogue,
    /// Updates set whole rows: `conflict = "row"`.
    pub by_row: bool,
}

impl Rules {
    pub fn key(&self, table: &str, key: &UnitKey) -> Key {
        let key = match key {
            UnitKey::Columns(values) => RowKey::Columns(values.clone()),
            UnitKey::Rowid(rowid) => RowKey::Rowid(*rowid),
        };
        (table.to_owned(), canonical_key(self.catalogue.table(table).unwrap(), &key))
    }

    /// Rows other than `key` that hold a UNIQUE value of `row`. NULLs never collide.
    pub fn holders(&self, db: &Db, key: &Key, row: &Row) -> Vec<Key> {
        let mut out: Vec<Key> = Vec::new();
        for unique in &self.schema.table(&key.0).uniques {
            if unique.iter().any(|c| row[*c].is_null()) {
                continue;
            }
            for (other, values) in db.iter().filter(|(other, _)| *other != key && other.0 == key.0) {
                if unique.iter().all(|c| values[*c] == row[*c]) && !out.contains(other) {
                    out.push(other.clone());
                }
            }
        }
        out
    }

    /// Folds one unit: its rows are taken out together, then put in, in order; a row in the way of one that is put in goes.
    pub fn fold(&self, db: &mut Db, unit: &Unit) {
        let mut put = Vec::new();
        for change in &unit.changes {
            let key = self.key(&unit.tables[usize::from(change.table)].name, &change.key);
            let old = db.get(&key);
            match (change.op, old, change.image.as_ref()) {
                (Op::Delete, _, _) => drop(db.remove(&key)),
                (Op::Update, Some(old), Some(image)) if !self.by_row => {
                    let merged = |i: usize| if change.mask[i] { image[i].clone() } else { old[i].clone() };
                    put.push((key, (0..old.len()).map(merged).collect()));
                }
                (_, _, Some(image)) => put.push((key, image.clone())),
                (_, _, None) => panic!("inserts and updates have an image"),
            }
        }
        for (key, _) in &put {
            db.remove(key);
        }
        for (key, row) in put {
            for holder in self.holders(db, &key, &row) {
                db.remove(&holder);
            }
            db.insert(key, row);
        }
    }
}

/// The fold of one shard up to a message.
#[derive(Clone, Default)]
struct Folded {
    db: Db,
    /// The last message of each origin, and pieces that wait for the rest.
    seen: HashMap<Origin, u64>,
    pieces: HashMap<Origin, Vec<u8>>,
}

/// The messages of a round by shard: how many there are to be, and where they are.
type Round = BTreeMap<ShardId, (u32, Vec<u64>)>;

/// What a log means.
pub struct Spec {
    pub rules: Rules,
    /// For each shard the fold before the first message, and after each.
    shards: Vec<Vec<Folded>>,
    rounds: BTreeMap<(Origin, u64), Round>,
    transactions: BTreeMap<Origin, BTreeSet<u64>>,
}

impl Spec {
    /// `genesis`: the rows before the first message, and `shard_of` where they belong.
    pub fn new(rules: Rules, shards: u16, genesis: &Db, shard_of: impl Fn(&Key) -> ShardId) -> Spec {
        let first = |no| {
            let of_shard = genesis.iter().filter(|(key, _)| shard_of(key).0 == no);
            Folded { db: of_shard.map(|(key, row)| (key.clone(), row.clone())).collect(), ..Folded::default() }
        };
        let shards = (1..=shards).map(|no| vec![first(no)]).collect();
        Spec { rules, shards, rounds: BTreeMap::new(), transactions: BTreeMap::new() }
    }

    /// A shard has a message more.
    pub fn push(&mut self, shard: ShardId, batch: &Batch) {
        let folds = &mut self.shards[usize::from(shard.0 - 1)];
        let mut fold = folds.last().unwrap().clone();
        let seq = folds.len() as u64;
        let (origin, batch_no) = (batch.header.origin, batch.header.batch_no);
        let last = fold.seen.get(&origin).copied().unwrap_or(0);
        assert!(batch_no <= last + 1, "message {batch_no} of {origin:?} in shard {} follows {last}", shard.0);
        if last < batch_no {
            fold.seen.insert(origin, batch_no);
            let round = self.rounds.entry((origin, batch.header.round_no)).or_default();
            for part in &batch.header.round {
                round.entry(part.shard).or_insert((part.message_count, Vec::new()));
            }
            round.get_mut(&shard).unwrap().1.push(seq);
            let units = match &batch.body {
                Body::Units(units) => units.clone(),
                Body::Piece { index, count, bytes } => {
                    fold.pieces.entry(origin).or_default().extend_from_slice(bytes);
                    if index + 1 == *count {
                        decode_units(&fold.pieces.remove(&origin).unwrap()).unwrap()
                    } else {
                        Vec::new()
                    }
                }
            };
            for unit in &units {
                self.rules.fold(&mut fold.db, unit);
                self.transactions.entry(origin).or_default().insert(unit.tx);
            }
        }
        folds.push(fold);
    }

    /// Messages of a shard.
    pub fn count(&self, shard: ShardId) -> u64 {
        self.shards[usize::from(shard.0 - 1)].len() as u64 - 1
    }

    /// The rows up to these positions, one for each shard.
    pub fn rows(&self, positions: impl IntoIterator<Item = u64>) -> Db {
        let mut rows = Db::new();
        for (shard, position) in self.shards.iter().zip(positions) {
            rows.extend(shard[position as usize].db.clone());
        }
        rows
    }

    /// A round that is in the positions partly, if there is one.
    pub fn torn(&self, positions: &[u64]) -> Option<(Origin, u64)> {
        let is_torn = |round: &Round| {
            let inside = |(shard, (_, seqs)): (&ShardId, &(u32, Vec<u64>))| {
                seqs.iter().filter(|seq| **seq <= positions[usize::from(shard.0 - 1)]).count()
            };
            let applied: usize = round.iter().map(inside).sum();
            applied != 0 && applied != round.values().map(|(count, _)| *count as usize).sum::<usize>()
        };
        self.rounds.iter().find(|(_, round)| is_torn(round)).map(|(round, _)| *round)
    }

    /// How many transactions an origin has on the log.
    pub fn transactions(&self, origin: Origin) -> usize {
        self.transactions.get(&origin).map_or(0, BTreeSet::len)
    }
}
