//! Records as rows: what the bytes of a cell mean in their table.
//!
//! A record is read into a [`RowPlaces`], a buffer that is used again for the next one, and looked at through a [`RowView`]: texts stay
//! where they stand in the payload until somebody wants them with memory of their own.

use super::{Affinity, Column, Identity, Table};
use crate::format::{Field, Fields, RecordError, Row, TextEncoding, Value, ValueRef, text};

/// Where the value of a column is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// In the payload.
    Payload(Field),
    /// Text of a UTF-16 database, among the transcoded.
    Transcoded { start: usize, end: usize },
    /// Nowhere: the record is too short for the column.
    Default,
}

/// Where the values of a row are in its payload, column by column.
#[derive(Debug, Clone, Default)]
pub struct RowPlaces {
    places: Vec<Place>,
    transcoded: Vec<u8>,
}

impl RowPlaces {
    /// The row of the record that was read last. `payload` and `columns` are what it was read with.
    #[inline]
    #[must_use]
    pub fn view<'a>(&'a self, payload: &'a [u8], columns: &'a [Column]) -> RowView<'a> {
        RowView(Source::Record { places: &self.places, transcoded: &self.transcoded, payload, columns })
    }

    fn clear(&mut self) {
        self.places.clear();
        self.transcoded.clear();
    }

    fn transcode(&mut self, bytes: &[u8], encoding: TextEncoding) -> Place {
        let start = self.transcoded.len();
        text(bytes, encoding, &mut self.transcoded);
        Place::Transcoded { start, end: self.transcoded.len() }
    }
}

/// A row, lent: the values of its table's stored columns, in the order of [`Table::columns`].
#[derive(Debug, Clone, Copy)]
pub struct RowView<'a>(Source<'a>);

#[derive(Debug, Clone, Copy)]
enum Source<'a> {
    Record { places: &'a [Place], transcoded: &'a [u8], payload: &'a [u8], columns: &'a [Column] },
    Values(&'a [Value]),
}

impl<'a> RowView<'a> {
    /// Lends a row that has memory of its own.
    #[must_use]
    pub fn of(row: &'a [Value]) -> RowView<'a> {
        RowView(Source::Values(row))
    }

    /// How many values there are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Source::Record { places, .. } => places.len(),
            Source::Values(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a column.
    #[inline]
    #[must_use]
    pub fn get(&self, column: usize) -> Option<ValueRef<'a>> {
        Some(match self.0 {
            Source::Record { places, transcoded, payload, columns } => match *places.get(column)? {
                Place::Payload(field) => field.value(payload),
                Place::Transcoded { start, end } => ValueRef::Text(transcoded.get(start..end).unwrap_or(&[])),
                Place::Default => columns.get(column).map_or(ValueRef::Null, |column| (&column.default).into()),
            },
            Source::Values(values) => values.get(column)?.into(),
        })
    }

    /// All values.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = ValueRef<'a>> + use<'a> {
        let view = *self;
        (0..view.len()).filter_map(move |column| view.get(column))
    }

    /// The row with memory of its own.
    #[must_use]
    pub fn to_row(&self) -> Row {
        let mut row = Row::with_capacity(self.len());
        row.extend(self.iter().map(ValueRef::to_value));
        row
    }
}

impl PartialEq for RowView<'_> {
    fn eq(&self, other: &RowView<'_>) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Table {
    /// Decodes a record of this table: one value for each of [`Table::columns`].
    ///
    /// Fields that the record lacks take their column's default, the rowid's alias takes `rowid`, and integers in REAL columns become
    /// floats, all as SQLite reads them.
    ///
    /// # Errors
    /// [`RecordError`] when the payload is no record.
    pub fn decode_row(&self, payload: &[u8], rowid: Option<i64>, encoding: TextEncoding) -> Result<Row, RecordError> {
        let mut places = RowPlaces::default();
        self.read_row(payload, rowid, encoding, &mut places)?;
        Ok(places.view(payload, &self.columns).to_row())
    }

    /// As [`Table::decode_row`], but copies nothing: `out` takes where the values are.
    ///
    /// # Errors
    /// [`RecordError`] when the payload is no record.
    pub fn read_row(
        &self,
        payload: &[u8],
        rowid: Option<i64>,
        encoding: TextEncoding,
        out: &mut RowPlaces,
    ) -> Result<(), RecordError> {
        out.clear();
        let mut field_count = 0;
        for (field, column) in Fields::new(payload)?.zip(&self.record_columns) {
            let place = match field? {
                Field::Integer(v)
                    if self.columns.get(*column).is_some_and(|column| column.affinity == Affinity::Real) =>
                {
                    Place::Payload(Field::Real(v as f64))
                }
                field @ Field::Text { .. } if encoding != TextEncoding::Utf8 => match field.value(payload) {
                    ValueRef::Text(bytes) => out.transcode(bytes, encoding),
                    _ => Place::Payload(field),
                },
                field => Place::Payload(field),
            };
            field_count += 1;
            if out.places.len() == *column {
                out.places.push(place);
                continue;
            }
            // WITHOUT ROWID records begin with the key: their fields come in another order than the columns.
            out.places.resize(self.columns.len(), Place::Payload(Field::Null));
            if let Some(slot) = out.places.get_mut(*column) {
                *slot = place;
            }
        }
        if out.places.len() != self.columns.len() {
            out.places.resize(self.columns.len(), Place::Payload(Field::Null));
        }
        for column in self.record_columns.iter().skip(field_count) {
            if let Some(slot) = out.places.get_mut(*column) {
                *slot = Place::Default;
            }
        }
        if let (Identity::RowidAlias(column), Some(rowid)) = (&self.identity, rowid)
            && let Some(slot) = out.places.get_mut(*column)
        {
            *slot = Place::Payload(Field::Integer(rowid));
        }
        Ok(())
    }
}
