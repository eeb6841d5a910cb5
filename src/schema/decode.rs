//! Records as rows: what the bytes of a cell mean in their table.

use super::{Affinity, Identity, Table};
use crate::format::{Record, RecordError, Row, TextEncoding, Value};

impl Table {
    /// Decodes a record of this table: one value for each of [`Table::columns`].
    ///
    /// Fields that the record lacks take their column's default, the rowid's alias takes `rowid`, and integers in REAL columns become
    /// floats, all as SQLite reads them.
    ///
    /// # Errors
    /// [`RecordError`] when the payload is no record.
    pub fn decode_row(&self, payload: &[u8], rowid: Option<i64>, encoding: TextEncoding) -> Result<Row, RecordError> {
        let mut row: Row = Vec::with_capacity(self.columns.len());
        let mut field_count = 0;
        for (field, column) in Record::new(payload, encoding)?.zip(&self.record_columns) {
            let value = match (field?, self.columns.get(*column)) {
                (Value::Integer(v), Some(definition)) if definition.affinity == Affinity::Real => Value::Real(v as f64),
                (other, _) => other,
            };
            field_count += 1;
            if row.len() == *column {
                row.push(value);
                continue;
            }
            // WITHOUT ROWID records begin with the key: their fields come in another order than the columns.
            row.resize(self.columns.len(), Value::Null);
            if let Some(slot) = row.get_mut(*column) {
                *slot = value;
            }
        }
        row.resize(self.columns.len(), Value::Null);
        for column in self.record_columns.iter().skip(field_count) {
            if let (Some(slot), Some(definition)) = (row.get_mut(*column), self.columns.get(*column)) {
                *slot = definition.default.clone();
            }
        }
        if let (Identity::RowidAlias(column), Some(rowid)) = (&self.identity, rowid)
            && let Some(slot) = row.get_mut(*column)
        {
            *slot = Value::Integer(rowid);
        }
        Ok(row)
    }
}
