//! What travels: batches of units, as values. Their bytes are `envelope`'s business.

use std::sync::Arc;

use crate::change::Op;
use crate::format::{Row, Value};

/// Numbers a shard, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// A message's sequence number in its stream, from 1; 0 stands for "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamSeq(pub u64);

/// Where a change was first made: a node, and the life of its state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The node's id, chosen by its operator or at random.
    pub node_id: u64,
    /// Random, made with the state directory: a node that lost its state is a new origin.
    pub epoch: u64,
}

/// The shape of a table as its origin had it when the unit was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableShape {
    /// The table's name.
    pub name: String,
    /// Names of the columns that images carry, in their order. Generated columns are left out.
    pub columns: Vec<String>,
    /// Indexes into `columns` of the key, in key order; empty when rows are told apart by their rowid.
    pub key: Vec<u16>,
    /// How the table (place 0) and its columns (their index and one) began, in ascending order. Not of what has always been there under the
    /// name that it has.
    pub beginnings: Vec<(u16, Beginning)>,
}

impl TableShape {
    /// How the table or a column of it began, by the place in `beginnings`, if that is another thing than its name.
    #[must_use]
    pub fn beginning(&self, place: u16) -> Option<&Beginning> {
        let found = self.beginnings.binary_search_by_key(&place, |(at, _)| *at).ok()?;
        self.beginnings.get(found).map(|(_, beginning)| beginning)
    }
}

/// How a table or a column began. It stays so whatever the thing is called later, and tells it from others that have, or had, its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Beginning {
    /// Its first name, in ASCII lower case.
    pub name: String,
    /// Who made it, in which transaction; `None` when it was there before the log.
    pub made_by: Option<(Origin, u64)>,
}

/// The key of a changed row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UnitKey {
    /// Key values in the order of [`TableShape::key`].
    Columns(Vec<Value>),
    /// The rowid: tables without a key, and rows with NULL in it.
    Rowid(i64),
}

/// One row change of a unit.
#[derive(Debug, Clone, PartialEq)]
pub struct UnitChange {
    /// Index into [`Unit::tables`].
    pub table: u16,
    /// Insert, update or delete.
    pub op: Op,
    /// The row's key (after; for deletes before).
    pub key: UnitKey,
    /// The full row after, in the order of [`TableShape::columns`]; `None` for deletes.
    pub image: Option<Row>,
    /// For updates: which of [`TableShape::columns`] changed. Empty for inserts (all) and deletes.
    pub mask: Vec<bool>,
    /// The row before, when the origin was asked to send it.
    pub before: Option<Row>,
    /// For updates: a row that is gone stays gone. What fills a column that came in the same transaction says nothing about the row.
    pub if_there: bool,
}

/// A change of one schema object, as its origin saw it: which statements make it is for the receiver to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaStep {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// The object's name; the last one that it had when it is gone.
    pub name: String,
    /// Its name before, where that is another one.
    pub name_before: Option<String>,
    /// The table that it belongs to.
    pub table: String,
    /// Its CREATE statement before; `None` if it was not there.
    pub before: Option<String>,
    /// Its CREATE statement after; `None` if it is gone.
    pub after: Option<String>,
    /// Of a table: the columns that have other names, each as it was called and as it is. `None` where each new name in the place of one that is
    /// gone is such a column; where there is a list, one in such a place that is not in it has none of its values.
    pub renamed_columns: Option<Vec<(String, String)>>,
    /// Of an index, a view and a trigger: the tables that its statement speaks of, as its origin had them after, with the columns that it speaks
    /// of and no key. Of a table that was there before and is there after: itself. `None` where nothing is told of that.
    pub tables: Option<Vec<TableShape>>,
}

/// The part of one transaction that travels in one shard, or, of a transaction larger than a message, a piece of that part.
/// The smallest thing that the log orders: its changes are folded together, and it holds at most one change of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// The transaction's number at its origin.
    pub tx: u64,
    /// Counts the units of this transaction in this shard, from 0.
    pub part: u32,
    /// Salts of the generation that the transaction was read from.
    pub salts: [u8; 8],
    /// Its commit frame; 0 for repaired transactions.
    pub frame: u32,
    /// The transaction was found by comparing the database with what the origin last knew.
    pub repaired: bool,
    /// How far its origin had applied the first shard then: what names of tables meant to it.
    pub seen: StreamSeq,
    /// Changes of the schema, which come before those of rows. They are in the first unit of every shard.
    pub schema: Vec<SchemaStep>,
    /// The tables that the changes name.
    pub tables: Vec<Arc<TableShape>>,
    /// The changes, in the order in which they were captured.
    pub changes: Vec<UnitChange>,
}

/// How many messages a round has in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundPart {
    /// The shard.
    pub shard: ShardId,
    /// Its messages of this round, at least 1.
    pub message_count: u32,
}

/// A message's place among all messages: what every receiver needs before it looks at the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Who sealed it.
    pub origin: Origin,
    /// Counts up per origin and shard, from 1. With origin and shard it is the message id: what is not above the last one folded is a
    /// duplicate, and what skips a number shows that the log lost an acknowledged message.
    pub batch_no: u64,
    /// Counts up per origin, from 1.
    pub round_no: u64,
    /// Which message of the round this is in its shard, from 0.
    pub part: u32,
    /// All shards that have messages of this round.
    pub round: Vec<RoundPart>,
    /// The round changes the schema. It holds one transaction and has a part in every shard: nothing behind it is applied before it.
    pub barrier: bool,
}

/// What a message carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Whole units, oldest first.
    Units(Vec<Unit>),
    /// A piece of an encoded list of units that is larger than a message; pieces stand one after another in their shard (other origins'
    /// messages may come between) and are put together before they are decoded.
    Piece {
        /// From 0.
        index: u32,
        /// At least 2.
        count: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
}

/// A sealed message of one shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Its place.
    pub header: Header,
    /// Its content.
    pub body: Body,
}
