//! The texts of a table's statements.

use std::fmt::Write;

use super::statements::SELECT_ROWS;
use crate::change::RowKey;
use crate::log::TableShape;
use crate::schema::{Collation, Identity, Table};

/// The parts of a table's statements. Parameters `?1…?n` are the row, those after it the key.
#[derive(Debug)]
pub(super) struct Sql {
    pub(super) name: String,
    /// The table's name without that of the database.
    table: String,
    pub(super) columns: Vec<String>,
    pub(super) insert: String,
    pub(super) insert_rowid: String,
    /// The columns as values, and with text as the bytes of the database's encoding.
    pub(super) list: String,
    pub(super) list_raw: String,
    pub(super) rowid: String,
    by_key: String,
    by_rowid: String,
    /// What makes a row `one` and a row `other` the same row, and what makes them equal.
    same_row: String,
    equal: String,
    /// Moves the row with a declared key away from a hidden rowid that another row needs; empty where that cannot be.
    pub(super) move_rowid: String,
    /// What an UPDATE says about conflicts.
    pub(super) or_abort: &'static str,
}

impl Sql {
    pub(super) fn new(table: &Table, shape: &TableShape) -> Sql {
        let name = format!("main.{}", quoted(&table.name));
        let columns: Vec<String> = shape.columns.iter().map(|column| quoted(column)).collect();
        let list = columns.join(", ");
        let count = columns.len();
        let values = (1..=count).map(|i| format!("?{i}")).collect::<Vec<_>>().join(", ");
        // OR ABORT: a table may say ON CONFLICT REPLACE for itself, and rows must not vanish unseen. Only then: triggers that keep indexes may
        // say OR REPLACE for themselves, which it overrides.
        let or_abort = if table.sql.to_ascii_lowercase().contains("conflict") { " OR ABORT" } else { "" };
        let insert = format!("INSERT{or_abort} INTO {name}({list}) VALUES({values})");
        let rowid = table.rowid_name.unwrap_or("NULL");
        let insert_rowid = format!("INSERT{or_abort} INTO {name}({list}, {rowid}) VALUES({values}, ?{})", count + 1);
        let raw = |column: &String| {
            format!(
                "CASE typeof({column}) WHEN 'text' THEN CAST({column} AS BLOB) ELSE {column} END, typeof({column}) = 'text'"
            )
        };
        let list_raw = columns.iter().map(raw).collect::<Vec<_>>().join(", ");
        let rowid_read = if table.without_rowid { "NULL" } else { rowid }.to_owned();
        let key_names: Vec<&String> = shape.key.iter().filter_map(|i| columns.get(usize::from(*i))).collect();
        let mut by_key = String::new();
        let mut same_row = String::new();
        for (i, column) in key_names.iter().enumerate() {
            let collation = match &table.identity {
                Identity::Declared(columns) => columns.get(i).map(|key| &key.collation),
                Identity::RowidAlias(_) | Identity::Rowid => None,
            };
            let and = if i > 0 { " AND " } else { "" };
            let _ = write!(by_key, "{and}{column} = ?{}", count + 1 + i);
            // The key's collation may be another than its column's.
            let collate = match collation {
                None => String::new(),
                Some(Collation::Binary) => " COLLATE BINARY".to_owned(),
                Some(Collation::NoCase) => " COLLATE NOCASE".to_owned(),
                Some(Collation::RTrim) => " COLLATE RTRIM".to_owned(),
                Some(Collation::Custom(name)) => format!(" COLLATE {}", quoted(name)),
            };
            by_key.push_str(&collate);
            let _ = write!(same_row, "{and}other.{column} = one.{column}{collate}");
        }
        if key_names.is_empty() {
            same_row = format!("other.{rowid} = one.{rowid}");
        }
        let equals = |column: &String| {
            format!("other.{column} IS one.{column} COLLATE BINARY AND typeof(other.{column}) = typeof(one.{column})")
        };
        let equal = columns.iter().map(equals).collect::<Vec<_>>().join(" AND ");
        let mut by_rowid = format!("{rowid} = ?{}", count + 1);
        let mut move_rowid = String::new();
        if let (Identity::Declared(_), false) = (&table.identity, table.without_rowid) {
            // The hidden rowid is the key only of rows with NULL in their declared one.
            let nulls = key_names.iter().map(|column| format!("{column} IS NULL")).collect::<Vec<_>>().join(" OR ");
            by_rowid = format!("{by_rowid} AND ({nulls})");
            move_rowid = format!(
                "UPDATE{or_abort} {name} SET {rowid} = (SELECT max({rowid}) + 1 FROM {name}) WHERE {rowid} = ?{} AND NOT ({nulls})",
                count + 1
            );
        }
        let (table, rowid) = (quoted(&table.name), rowid_read);
        Sql {
            name,
            table,
            columns,
            insert,
            insert_rowid,
            list,
            list_raw,
            rowid,
            by_key,
            by_rowid,
            same_row,
            equal,
            move_rowid,
            or_abort,
        }
    }

    /// The table of the same name in an attached database.
    pub(super) fn name_in(&self, schema: &str) -> String {
        format!("{schema}.{}", self.table)
    }

    /// Queries for the rows that are here and not in another database, and for those of the other that are not here or differ. Rows with
    /// NULL in their key are given even if they are equal.
    pub(super) fn differences(&self, other: &str) -> [String; 2] {
        let (ours, theirs) = (&self.name, self.name_in(other));
        let (same, equal) = (&self.same_row, &self.equal);
        [
            format!("{SELECT_ROWS} FROM {ours} AS one WHERE NOT EXISTS (SELECT 1 FROM {theirs} AS other WHERE {same})"),
            format!(
                "{SELECT_ROWS} FROM {theirs} AS one WHERE NOT EXISTS (SELECT 1 FROM {ours} AS other WHERE {same} AND {equal})"
            ),
        ]
    }

    /// A query for the number of rows here and in another database.
    pub(super) fn counts(&self, other: &str) -> String {
        format!("SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {})", self.name, self.name_in(other))
    }

    pub(super) fn condition(&self, key: &RowKey) -> &str {
        match key {
            RowKey::Columns(_) => &self.by_key,
            RowKey::Rowid(_) => &self.by_rowid,
        }
    }
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
