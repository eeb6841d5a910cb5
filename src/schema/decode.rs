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
        let mut row: Row = self.columns.iter().map(|_| Value::Null).collect();
        let mut field_count = 0;
        for (field, column) in Record::new(payload, encoding)?.zip(&self.record_columns) {
            let value = field?;
            if let (Some(slot), Some(definition)) = (row.get_mut(*column), self.columns.get(*column)) {
                *slot = match value {
                    Value::Integer(v) if definition.affinity == Affinity::Real => Value::Real(v as f64),
                    other => other,
                };
            }
            field_count += 1;
        }
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
