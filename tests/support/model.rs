//! The fold as an executable specification: plain maps, no SQL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use woodchuck::change::Op;
use woodchuck::format::{PageNo, Row, Value};
use woodchuck::log::{Batch, Body, Origin, Unit, UnitKey, decode_units};
use woodchuck::schema::{Affinity, Collation, Column, Identity, KeyColumn, Table, UniqueIndex};

/// Table and key; every table has one TEXT key column `k` before the others.
pub type Key = (String, String);
/// The columns behind the key.
pub type Db = BTreeMap<Key, Row>;

/// A table of the simulation.
#[derive(Clone, Debug)]
pub struct ModelTable {
    pub name: &'static str,
    pub columns: Vec<&'static str>,
    /// Indexes into `columns`.
    pub uniques: Vec<Vec<usize>>,
    /// The UNIQUE constraints are expression and partial indexes, whose values nobody but SQLite can compute.
    pub opaque: bool,
}

impl ModelTable {
    pub fn sql(&self) -> String {
        let name = self.name;
        let mut sql = format!("CREATE TABLE {name}(k TEXT PRIMARY KEY, {});", self.columns.join(", "));
        for (i, unique) in self.uniques.iter().enumerate() {
            let columns: Vec<&str> = unique.iter().map(|c| self.columns[*c]).collect();
            sql += &match (self.opaque, i % 2) {
                (false, _) => format!("CREATE UNIQUE INDEX {name}_{i} ON {name}({});", columns.join(", ")),
                (true, 0) => format!("CREATE UNIQUE INDEX {name}_{i} ON {name}({} + 0);", columns.join(" + 0, ")),
                (true, _) => format!(
                    "CREATE UNIQUE INDEX {name}_{i} ON {name}({}) WHERE {} IS NOT NULL;",
                    columns.join(", "),
                    columns[0]
                ),
            };
        }
        sql
    }

    pub fn table(&self) -> Arc<Table> {
        let column = |name: &str, affinity| Column {
            name: name.to_owned(),
            declared_type: String::new(),
            affinity,
            default: Value::Null,
            not_null: false,
            strict: None,
            generated: false,
        };
        let mut columns = vec![column("k", Affinity::Text)];
        columns.extend(self.columns.iter().map(|name| column(name, Affinity::None)));
        let unique = |(i, columns): (usize, &Vec<usize>)| UniqueIndex {
            name: format!("{}_{i}", self.name),
            columns: (!self.opaque)
                .then(|| columns.iter().map(|c| KeyColumn { column: c + 1, collation: Collation::Binary }).collect()),
        };
        Arc::new(Table {
            name: self.name.to_owned(),
            sql: String::new(),
            root: PageNo::ONE,
            record_columns: (0..columns.len()).collect(),
            columns,
            identity: Identity::Declared(vec![KeyColumn { column: 0, collation: Collation::Binary }]),
            without_rowid: false,
            rowid_name: Some("rowid"),
            autoincrement: false,
            shadow_of: None,
            shown_by: None,
            is_virtual: false,
            first_name: None,
            uniques: self.uniques.iter().enumerate().map(unique).collect(),
        })
    }
}

/// The tables, and the rule for UNIQUE.
#[derive(Clone, Debug)]
pub struct Schema(pub Vec<ModelTable>);

impl Schema {
    pub fn get(&self, name: &str) -> &ModelTable {
        self.0.iter().find(|table| table.name == name).unwrap()
    }

    /// Rows other than `key` that hold a UNIQUE value of `row`. NULLs never collide.
    pub fn holders(&self, db: &Db, key: &Key, row: &Row) -> Vec<Key> {
        let mut out: Vec<Key> = Vec::new();
        for unique in &self.get(&key.0).uniques {
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
}

struct Change {
    key: Key,
    op: Op,
    image: Row,
    mask: Vec<bool>,
}

fn changes_of(unit: &Unit) -> Vec<Change> {
    let change = |change: &woodchuck::log::UnitChange| {
        let UnitKey::Columns(key) = &change.key else { panic!("tables have keys") };
        let Value::Text(key) = &key[0] else { panic!("keys are text") };
        let table = unit.tables[usize::from(change.table)].name.clone();
        let tail = |row: &Row| row[1..].to_vec();
        Change {
            key: (table, String::from_utf8(key.clone()).unwrap()),
            op: change.op,
            image: change.image.as_ref().map(tail).unwrap_or_default(),
            mask: change.mask.get(1..).unwrap_or_default().to_vec(),
        }
    };
    unit.changes.iter().map(change).collect()
}

/// Folds one unit: rows of tables with UNIQUE are taken out together, then put in, in order; the later change wins.
pub fn fold_unit(db: &mut Db, unit: &Unit, schema: &Schema) {
    let mut taken = Vec::new();
    for change in changes_of(unit) {
        let old = db.get(&change.key);
        match (change.op, old) {
            (Op::Delete, _) => {
                db.remove(&change.key);
            }
            (Op::Update, Some(old)) => {
                let row = (0..old.len())
                    .map(|i| if change.mask[i] { change.image[i].clone() } else { old[i].clone() })
                    .collect();
                taken.push((change.key, row));
            }
            (Op::Insert | Op::Update, _) => taken.push((change.key, change.image)),
        }
    }
    for (key, _) in &taken {
        db.remove(key);
    }
    for (key, row) in taken {
        for holder in schema.holders(db, &key, &row) {
            db.remove(&holder);
        }
        db.insert(key, row);
    }
}

/// The rows, the last message of each origin, and pieces that wait for the rest.
type Folded = (Db, HashMap<Origin, u64>, HashMap<Origin, Vec<u8>>);

/// One shard's log, with the fold after every message.
pub struct ShardLog {
    pub messages: Vec<Batch>,
    folds: Vec<Folded>,
}

impl ShardLog {
    /// `genesis` holds the shard's rows before the first message.
    pub fn new(genesis: Db) -> ShardLog {
        ShardLog { messages: Vec::new(), folds: vec![(genesis, HashMap::new(), HashMap::new())] }
    }

    pub fn push(&mut self, batch: Batch, schema: &Schema) {
        let (mut db, mut seen, mut pieces) = self.folds.last().unwrap().clone();
        let (origin, batch_no) = (batch.header.origin, batch.header.batch_no);
        if seen.get(&origin).copied().unwrap_or(0) < batch_no {
            seen.insert(origin, batch_no);
            let units = match &batch.body {
                Body::Units(units) => units.clone(),
                Body::Piece { index, count, bytes } => {
                    pieces.entry(origin).or_default().extend_from_slice(bytes);
                    if index + 1 == *count {
                        decode_units(&pieces.remove(&origin).unwrap()).unwrap()
                    } else {
                        Vec::new()
                    }
                }
            };
            units.iter().for_each(|unit| fold_unit(&mut db, unit, schema));
        }
        self.messages.push(batch);
        self.folds.push((db, seen, pieces));
    }

    /// The fold of the first `count` messages.
    pub fn fold(&self, count: usize) -> &Db {
        &self.folds[count].0
    }
}
