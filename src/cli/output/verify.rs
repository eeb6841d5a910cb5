//! What came of comparing nodes.

use std::collections::BTreeMap;

use super::json::{members, put, string};
use super::pretty::{Style, bytes_text, printable, value_text};
use crate::apply::decode_fold_row;
use crate::change::RowKey;
use crate::format::{Row, Value};
use crate::node::{DifferingRow, RowThere, TableReport, TableVerdict, VerifyReport};

/// Appends the report as one JSON object on a line.
pub fn verify_json(out: &mut Vec<u8>, report: &VerifyReport) {
    let is_equal = !report.is_different();
    put(out, format_args!("{{\"equal\":{is_equal},\"conclusive\":{},\"nodes\":[", report.is_conclusive()));
    list(out, &report.nodes, |out, node| put(out, format_args!("{node}")));
    put(out, format_args!("],\"missing\":["));
    list(out, &report.missing, |out, (node, why)| {
        put(out, format_args!("{{\"node\":{node},\"why\":"));
        string(out, why);
        put(out, format_args!("}}"));
    });
    put(out, format_args!("],\"applied\":{{"));
    list(out, &report.applied, |out, (shard, seq)| put(out, format_args!("\"{shard}\":{seq}")));
    put(out, format_args!("}},\"tables\":["));
    list(out, &report.tables, table_json);
    put(
        out,
        format_args!(
            "],\"answer_bytes\":{},\"read_ms\":{},\"took_ms\":{}}}\n",
            report.answer_bytes, report.read_ms, report.took_ms
        ),
    );
}

fn table_json(out: &mut Vec<u8>, table: &TableReport) {
    put(out, format_args!("{{\"table\":"));
    string(out, &table.table);
    put(out, format_args!(",\"rows\":{{"));
    list(out, &table.rows, |out, (node, rows)| put(out, format_args!("\"{node}\":{rows}")));
    let verdict = match &table.verdict {
        TableVerdict::Equal => "equal",
        TableVerdict::Different { .. } => "different",
        TableVerdict::Inconclusive { .. } => "inconclusive",
    };
    put(out, format_args!("}},\"verdict\":\"{verdict}\""));
    match &table.verdict {
        TableVerdict::Equal => {}
        TableVerdict::Inconclusive { why } => {
            put(out, format_args!(",\"why\":"));
            string(out, why);
        }
        TableVerdict::Different { why, differing, more, columns, key } => {
            put(out, format_args!(",\"why\":"));
            string(out, why);
            put(out, format_args!(",\"differing\":["));
            list(out, differing, |out, row| row_json(out, row, columns, key));
            put(out, format_args!("],\"more\":{more}"));
        }
    }
    put(out, format_args!("}}"));
}

fn row_json(out: &mut Vec<u8>, row: &DifferingRow, columns: &[String], key: &[u16]) {
    let Some((row_key, rows)) = decode(row) else { return put(out, format_args!("null")) };
    put(out, format_args!("{{\"key\":{{"));
    let values = key_values(&row_key);
    members(out, key_names(&row_key, columns, key).into_iter().zip(&values));
    put(out, format_args!("}},\"rows\":{{"));
    list(out, &rows, |out, (node, row)| {
        put(out, format_args!("\"{node}\":"));
        match row {
            Shown::None => put(out, format_args!("null")),
            Shown::Large => put(out, format_args!("\"too large to be shown\"")),
            Shown::Row(row) => {
                put(out, format_args!("{{"));
                members(out, columns.iter().map(String::as_str).zip(row));
                put(out, format_args!("}}"));
            }
        }
    });
    put(out, format_args!("}}}}"));
}

/// What one node has of a row.
enum Shown {
    None,
    Large,
    Row(Row),
}

/// Key and rows. `None` when a node sent what is no row.
fn decode(row: &DifferingRow) -> Option<(RowKey, BTreeMap<u64, Shown>)> {
    let (key, _) = decode_fold_row(&row.key()?).ok()?;
    let mut rows = BTreeMap::new();
    for (node, there) in row.rows()? {
        let shown = match there {
            RowThere::None => Shown::None,
            RowThere::Large => Shown::Large,
            RowThere::Row(row) => Shown::Row(decode_fold_row(&row).ok()?.1),
        };
        rows.insert(node, shown);
    }
    Some((key, rows))
}

fn list<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut each: impl FnMut(&mut Vec<u8>, T)) {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        each(out, item);
    }
}

fn key_values(key: &RowKey) -> Row {
    match key {
        RowKey::Rowid(rowid) => vec![Value::Integer(*rowid)],
        RowKey::Columns(values) => values.clone(),
    }
}

fn key_names<'a>(row_key: &RowKey, columns: &'a [String], key: &[u16]) -> Vec<&'a str> {
    match row_key {
        RowKey::Rowid(_) => vec!["rowid"],
        RowKey::Columns(_) => {
            key.iter().filter_map(|index| columns.get(usize::from(*index))).map(String::as_str).collect()
        }
    }
}

/// Appends the report for people.
pub fn verify_pretty(out: &mut Vec<u8>, report: &VerifyReport, style: Style) {
    for table in &report.tables {
        let rows = match table.rows.values().min().zip(table.rows.values().max()) {
            Some((least, most)) if least == most => format!("{least} rows"),
            Some(_) => {
                let each = table.rows.iter().map(|(node, rows)| format!("{rows} rows on node {node}"));
                each.collect::<Vec<_>>().join(", ")
            }
            None => "rows unknown".to_owned(),
        };
        match &table.verdict {
            TableVerdict::Equal => {
                put(out, format_args!("{} {} {}\n", style.green("equal"), table.table, style.faint(&rows)));
            }
            TableVerdict::Inconclusive { why } => {
                put(out, format_args!("{} {}: {why}\n", style.yellow("unknown"), table.table));
            }
            TableVerdict::Different { why, differing, more, columns, key } => {
                put(out, format_args!("{} {} {}\n", style.red("different"), table.table, style.faint(&rows)));
                if !why.is_empty() {
                    put(out, format_args!("  {why}\n"));
                }
                differing.iter().for_each(|row| row_pretty(out, row, columns, key));
                if *more && !differing.is_empty() {
                    put(out, format_args!("  and more\n"));
                }
            }
        }
    }
    for (node, why) in &report.missing {
        put(out, format_args!("{} node {node}: {why}\n", style.yellow("not compared")));
    }
    let nodes: Vec<String> = report.nodes.iter().map(u64::to_string).collect();
    put(
        out,
        format_args!(
            "nodes {} compared in {:.1} s; each read for at most {:.1} s, and {} were answered\n",
            nodes.join(", "),
            report.took_ms as f64 / 1000.0,
            report.read_ms as f64 / 1000.0,
            bytes_text(report.answer_bytes)
        ),
    );
}

fn row_pretty(out: &mut Vec<u8>, row: &DifferingRow, columns: &[String], key: &[u16]) {
    let Some((row_key, rows)) = decode(row) else { return };
    let values = key_values(&row_key);
    let named = key_names(&row_key, columns, key).into_iter().zip(&values);
    let named: Vec<String> = named.map(|(name, value)| format!("{}={}", printable(name), value_text(value))).collect();
    put(out, format_args!("  {}\n", named.join(" ")));
    for (node, row) in &rows {
        let text = match row {
            Shown::None => "no such row".to_owned(),
            Shown::Large => "too large to be shown".to_owned(),
            Shown::Row(row) => {
                let pairs =
                    columns.iter().zip(row).map(|(name, value)| format!("{}={}", printable(name), value_text(value)));
                pairs.collect::<Vec<_>>().join(" ")
            }
        };
        put(out, format_args!("    node {node}: {text}\n"));
    }
}
