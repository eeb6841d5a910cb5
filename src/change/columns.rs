//! Which column that is there under a name is one that is there no more: a transaction can rename a column, or drop it and add another one, and
//! the statements before and after look alike. What others write to the one meanwhile goes into the other, or is in the conflict journal.
//!
//! Rows tell: a column that has another name has its values, one that came in its place has a default.

use std::collections::HashMap;

use super::identity::canonical_of;
use super::pages::{DiffError, Version};
use super::sample::{EVIDENCE_BITS_MIN, End, bits_of, rows_at};
use crate::format::{PageNo, Row, Value};
use crate::schema::{Column, Identity, RowView, Table};

/// The columns that have other names, each as it was called and as it is.
pub type RenamedColumns = Vec<(String, String)>;

/// How many rows must have other values for a column in the place of another one not to be that. Nodes that make the same change side by side
/// must come to the same answer, also where some of them have a few rows more.
const UNEQUAL_ROWS_MIN: usize = 4;

/// A table on one side: its version, root and definition.
pub(super) type Side<'v, 's> = (&'v Version<'s>, PageNo, &'v Table);

/// What the rows say of two columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Different values are found again, all of them.
    Same,
    /// Other values are there, nearly everywhere.
    Other,
    Unknown,
}

/// What became of the columns of a table.
#[derive(Debug, Default)]
pub(super) struct Renamed {
    /// The columns that have other names. `None` where each new name in the place of one that is gone is such a column, which is what
    /// [`reshape`](super::reshape) takes for granted.
    pub(super) columns: Option<RenamedColumns>,
    /// The columns that came in the place of others: a node that makes the same change over other rows may take them for those.
    pub(super) doubts: Vec<usize>,
}

/// Finds the columns that have other names.
pub(super) fn renamed_columns(before: Side<'_, '_>, after: Side<'_, '_>) -> Renamed {
    let (old, new) = (before.2, after.2);
    let gone: Vec<usize> = (0..old.columns.len()).filter(|index| lacks(new, old.columns.get(*index))).collect();
    let come: Vec<usize> = (0..new.columns.len()).filter(|index| lacks(old, new.columns.get(*index))).collect();
    if gone.is_empty() || come.is_empty() {
        return Renamed::default();
    }
    // What cannot be read tells nothing; who needs it will say so.
    let rows = pairs(before, after).unwrap_or_default();
    let verdict = |from: usize, to: usize| match (old.columns.get(from), new.columns.get(to)) {
        (Some(from), Some(to)) if from.generated || to.generated => Verdict::Unknown,
        _ => judge(rows.iter().filter_map(|(was, now)| was.get(from).zip(now.get(to)))),
    };
    let mut found = sure(&gone, &come, &verdict);
    let places: Vec<usize> = gone.iter().copied().filter(|place| come.contains(place)).collect();
    let mut doubts = Vec::new();
    for place in places.iter().copied() {
        if found.iter().any(|(from, to)| *from == place || *to == place) {
            continue;
        }
        let is_alike = old.columns.get(place).zip(new.columns.get(place)).is_some_and(|(was, now)| is_alike(was, now));
        // A key that was another column would not pair the rows of both.
        match is_key(new, place) || is_alike && verdict(place, place) != Verdict::Other {
            true => found.push((place, place)),
            false => doubts.push(place),
        }
    }
    if found.len() == places.len() && found.iter().all(|(from, to)| from == to) {
        return Renamed { columns: None, doubts };
    }
    let name = |table: &Table, column: usize| table.columns.get(column).map(|column| column.name.clone());
    let columns = found.into_iter().filter_map(|(from, to)| name(old, from).zip(name(new, to))).collect();
    Renamed { columns: Some(columns), doubts }
}

fn lacks(table: &Table, column: Option<&Column>) -> bool {
    column.is_some_and(|column| table.column_index(&column.name).is_none())
}

/// Pairs that values tell without doubt, wherever they stand: each of both has this partner alone.
fn sure(gone: &[usize], come: &[usize], verdict: &dyn Fn(usize, usize) -> Verdict) -> Vec<(usize, usize)> {
    let pairs = gone.iter().flat_map(|from| come.iter().map(move |to| (*from, *to)));
    let likely: Vec<(usize, usize)> = pairs.filter(|(from, to)| verdict(*from, *to) == Verdict::Same).collect();
    let is_only =
        |pair: &&(usize, usize)| likely.iter().filter(|other| other.0 == pair.0 || other.1 == pair.1).count() == 1;
    likely.iter().filter(is_only).copied().collect()
}

fn is_key(table: &Table, column: usize) -> bool {
    match &table.identity {
        Identity::RowidAlias(key) => *key == column,
        Identity::Declared(key) => key.iter().any(|key| key.column == column),
        Identity::Rowid => false,
    }
}

/// Whether a column is defined as the other but for its name, as ALTER TABLE RENAME COLUMN leaves it.
fn is_alike(was: &Column, now: &Column) -> bool {
    let Column { name: _, declared_type, affinity, default, not_null, strict, generated } = was;
    now.declared_type.eq_ignore_ascii_case(declared_type)
        && (now.affinity, now.not_null, now.strict, now.generated) == (*affinity, *not_null, *strict, *generated)
        && now.default == *default
}

/// Rows at both ends of a table, before and after.
fn pairs(before: Side<'_, '_>, after: Side<'_, '_>) -> Result<Vec<(Row, Row)>, DiffError> {
    let ((old, old_root, was), (new, new_root, now)) = (before, after);
    let mut pairs = Vec::new();
    let mut key = Vec::new();
    for end in [End::First, End::Last] {
        let mut by_key = HashMap::new();
        let sample = rows_at(end, old, old_root, was)?;
        if end == End::Last && sample.is_whole {
            break;
        }
        for found in sample.rows {
            let Some(row) = found.row else { continue };
            canonical_of(was, &RowView::of(&row), found.rowid, &mut key);
            by_key.insert(key.clone(), row);
        }
        for found in rows_at(end, new, new_root, now)?.rows {
            let Some(row) = found.row else { continue };
            canonical_of(now, &RowView::of(&row), found.rowid, &mut key);
            pairs.extend(by_key.remove(&key).map(|was| (was, row)));
        }
    }
    Ok(pairs)
}

/// Judges the values that the same rows have in two columns. NULL can be filled by the transaction, and tells nothing.
fn judge<'r>(values: impl Iterator<Item = (&'r Value, &'r Value)>) -> Verdict {
    let (mut same, mut equal, mut unequal) = (Vec::new(), 0usize, 0usize);
    let (mut first, mut is_one_value) = (None, true);
    for (was, now) in values.filter(|(was, _)| **was != Value::Null) {
        is_one_value &= *first.get_or_insert(now) == now;
        if !is_same(was, now) {
            unequal += 1;
            continue;
        }
        equal += 1;
        if !same.contains(&now) {
            same.push(now);
        }
    }
    let bits = same.iter().map(|value| bits_of(value)).fold(0, u32::saturating_add);
    match unequal {
        // One value alone can be what a new column was given.
        0 if same.len() > 1 && bits >= EVIDENCE_BITS_MIN => Verdict::Same,
        // What all rows have is what a new column was given. In a renamed one the same transaction can have changed some of them.
        UNEQUAL_ROWS_MIN.. if is_one_value || unequal >= 3 * equal => Verdict::Other,
        _ => Verdict::Unknown,
    }
}

/// Whether a value is the other one, as far as a column of another type keeps it.
fn is_same(was: &Value, now: &Value) -> bool {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::Integer(number) => Some(number.to_string()),
        Value::Real(number) => Some(number.to_string()),
        Value::Text(bytes) | Value::Blob(bytes) => String::from_utf8(bytes.clone()).ok(),
    };
    was == now || text(was).is_some_and(|was| text(now) == Some(was))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(values: &[(Value, Value)]) -> Verdict {
        judge(values.iter().map(|(was, now)| (was, now)))
    }

    fn text(text: &str) -> Value {
        Value::Text(text.as_bytes().into())
    }

    #[test]
    fn values_tell_a_column_with_another_name_from_one_that_came_in_its_place() {
        let number = Value::Integer;
        let of = |value: &dyn Fn(i64) -> (Value, Value), count: i64| (0..count).map(value).collect::<Vec<_>>();
        // Numbers that became text, all of them; what all rows have alike tells nothing.
        assert_eq!(judged(&of(&|row| (number(1000 + row), text(&(1000 + row).to_string())), 4)), Verdict::Same);
        assert_eq!(judged(&of(&|_| (text("a long default"), text("a long default")), 64)), Verdict::Unknown);
        assert_eq!(judged(&of(&|_| (Value::Null, text("filled")), 64)), Verdict::Unknown);
        // A default, and the same over too few rows.
        assert_eq!(judged(&of(&|row| (number(1000 + row), Value::Null), 4)), Verdict::Other);
        assert_eq!(judged(&of(&|row| (number(1000 + row), Value::Null), 3)), Verdict::Unknown);
        // A flag that most rows have by chance as well, and one that changed in some rows.
        assert_eq!(judged(&of(&|row| (number(i64::from(row % 8 > 0)), number(1)), 64)), Verdict::Other);
        assert_eq!(
            judged(&of(&|row| (number(i64::from(row % 8 > 0)), number(i64::from(row % 4 > 0))), 64)),
            Verdict::Unknown
        );
    }
}
