//! The texts of a table's statements.

use std::fmt::Write;

use crate::change::RowKey;
use crate::log::TableShape;
use crate::schema::{Collation, Identity, Table};

/// The parts of a table's statements. Parameters `?1…?n` are the row, those after it the key.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    pub(super) insert: String,
    pub(super) insert_rowid: String,
    /// The columns as values, and with text as the bytes of the database's encoding.
    pub(super) list: String,
    pub(super) list_raw: String,
    pub(super) rowid: String,
    by_key: String,
    by_rowid: String,
    /// Moves the row with a declared key away from a hidden rowid that another row needs; empty where that cannot be.
    pub(super) move_rowid: String,
}

impl Sql {
    pub(super) fn new(table: &Table, shape: &TableShape) -> Sql {
        let name = format!("main.{}", quoted(&table.name));
        let columns: Vec<String> = shape.columns.iter().map(|column| quoted(column)).collect();
        let list = columns.join(", ");
        let count = columns.len();
        let values = (1..=count).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
        // OR ABORT: a table may say ON CONFLICT REPLACE for itself, and rows must not vanish unseen.
        let insert = format!("INSERT OR ABORT INTO {name}({list}) VALUES({values})");
        let rowid = table.rowid_name.unwrap_or("NULL");
        let insert_rowid = format!("INSERT OR ABORT INTO {name}({list}, {rowid}) VALUES({values}, ?{})", count + 1);
        let raw = |column: &String| {
            format!(
                "CASE typeof({column}) WHEN 'text' THEN CAST({column} AS BLOB) ELSE {column} END, typeof({column}) = 'text'"
            )
        };
        let list_raw = columns.iter().map(raw).collect::<Vec<_>>().join(", ");
        let rowid_read = if table.without_rowid { "NULL" } else { rowid }.to_owned();
        let key_names: Vec<&String> = shape.key.iter().filter_map(|i| columns.get(usize::from(*i))).collect();
        let mut by_key = String::new();
        for (i, column) in key_names.iter().enumerate() {
            let collation = match &table.identity {
                Identity::Declared(columns) => columns.get(i).map(|key| &key.collation),
                Identity::RowidAlias(_) | Identity::Rowid => None,
            };
            let and = if i > 0 { " AND " } else { "" };
            let _ = write!(by_key, "{and}{column} = ?{}", count + 1 + i);
            // The key's collation may be another than its column's.
            let _ = match collation {
                None => Ok(()),
                Some(Collation::Binary) => write!(by_key, " COLLATE BINARY"),
                Some(Collation::NoCase) => write!(by_key, " COLLATE NOCASE"),
                Some(Collation::RTrim) => write!(by_key, " COLLATE RTRIM"),
                Some(Collation::Custom(name)) => write!(by_key, " COLLATE {}", quoted(name)),
            };
        }
        let mut by_rowid = format!("{rowid} = ?{}", count + 1);
        let mut move_rowid = String::new();
        if let (Identity::Declared(_), false) = (&table.identity, table.without_rowid) {
            // The hidden rowid is the key only of rows with NULL in their declared one.
            let nulls = key_names.iter().map(|column| format!("{column} IS NULL")).collect::<Vec<_>>().join(" OR ");
            by_rowid = format!("{by_rowid} AND ({nulls})");
            move_rowid = format!(
                "UPDATE OR ABORT {name} SET {rowid} = (SELECT max({rowid}) + 1 FROM {name}) WHERE {rowid} = ?{} AND NOT ({nulls})",
                count + 1
            );
        }
        Sql { name, columns, insert, insert_rowid, list, list_raw, rowid: rowid_read, by_key, by_rowid, move_rowid }
    }

    pub(super) fn condition(&self, key: &RowKey) -> &str {
        match key {
            RowKey::Columns(_) => &self.by_key,
            RowKey::Rowid(_) => &self.by_rowid,
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
