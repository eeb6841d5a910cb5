//! `--row table/key`: the history of one row.

use crate::change::{ChangeSink, RowChange, RowKey, SchemaChange, TxSpan};
use crate::cli::Failure;
use crate::format::Value;

/// A row by its table and key, as a person writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneRow {
    table: String,
    key: Vec<Part>,
}

/// A value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Without quotes: whatever is written so.
    Plain(String),
    /// In quotes: text, and nothing else.
    Text(String),
    /// `x'00ff'`.
    Blob(Vec<u8>),
}

impl OneRow {
    /// Reads `table/key`. Values of a key of several columns have a comma between them; text with a comma or that looks like a number stands
    /// in single quotes, doubled within. A `/` in the table's name is no matter: the key begins behind the first, unless the name is in double quotes.
    pub(super) fn parse(text: &str) -> Result<OneRow, Failure> {
        let wrong = || {
            Failure::usage(format_args!("{text:?} names no row")).hint(
                "write table/key: users/17, tags/'a, b',2 for a key of two columns, the rowid where there is no key",
            )
        };
        let (table, key) = match text.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted.find("\"/").ok_or_else(wrong)?;
                (quoted.get(..end).unwrap_or_default().replace("\"\"", "\""), quoted.get(end + 2..).unwrap_or_default())
            }
            None => text.split_once('/').map(|(table, key)| (table.to_owned(), key)).ok_or_else(wrong)?,
        };
        let mut parts = Vec::new();
        let mut rest = key;
        loop {
            let (part, after) = part(rest).ok_or_else(wrong)?;
            parts.push(part);
            match after.strip_prefix(',') {
                Some(after) => rest = after,
                None if after.is_empty() => break,
                None => return Err(wrong()),
            }
        }
        Ok(OneRow { table, key: parts })
    }

    /// The table's name.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    fn is(&self, change: &RowChange) -> bool {
        let is_part = |(part, value): (&Part, &Value)| part.is(value);
        change.table.name.eq_ignore_ascii_case(&self.table)
            && match &change.key {
                RowKey::Rowid(rowid) => {
                    self.key.len() == 1 && self.key.iter().all(|part| part.is(&Value::Integer(*rowid)))
                }
                RowKey::Columns(values) => self.key.len() == values.len() && self.key.iter().zip(values).all(is_part),
            }
    }
}

/// The value at the beginning, and what follows it.
fn part(text: &str) -> Option<(Part, &str)> {
    let blob = text.strip_prefix("x'").or_else(|| text.strip_prefix("X'"));
    if let Some((hex, after)) = blob.and_then(|rest| rest.split_once('\'')) {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
        let bytes: Option<Vec<u8>> =
            pairs.iter().map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()).collect();
        return Some((Part::Blob(bytes.filter(|_| odd.is_empty())?), after));
    }
    let Some(mut rest) = text.strip_prefix('\'') else {
        let end = text.find(',').unwrap_or(text.len());
        let (plain, after) = text.split_at_checked(end)?;
        return (!plain.is_empty()).then(|| (Part::Plain(plain.to_owned()), after));
    };
    let mut value = String::new();
    loop {
        let (before, after) = rest.split_once('\'')?;
        value.push_str(before);
        match after.strip_prefix('\'') {
            Some(after) => {
                value.push('\'');
                rest = after;
            }
            None => return Some((Part::Text(value), after)),
        }
    }
}

impl Part {
    fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (Part::Plain(text) | Part::Text(text), Value::Text(bytes)) => text.as_bytes() == bytes,
            (Part::Plain(text), Value::Integer(number)) => text.parse() == Ok(*number),
            (Part::Plain(text), Value::Real(number)) => text.parse() == Ok(*number),
            (Part::Plain(text), Value::Null) => text.eq_ignore_ascii_case("null"),
            (Part::Blob(bytes), Value::Blob(value)) => bytes == value,
            _ => false,
        }
    }
}

/// Passes on the changes of one row; a transaction without any is not mentioned. Its table's changes pass, too.
pub(super) struct History<'r, E> {
    sink: &'r mut dyn ChangeSink<E>,
    row: &'r OneRow,
    begin: Option<TxSpan>,
    passed: u64,
    /// Changes of the row in all.
    pub(super) found: u64,
}

impl<'r, E> History<'r, E> {
    pub(super) fn new(sink: &'r mut dyn ChangeSink<E>, row: &'r OneRow) -> History<'r, E> {
        History { sink, row, begin: None, passed: 0, found: 0 }
    }

    fn begun(&mut self) -> Result<(), E> {
        self.begin.take().map_or(Ok(()), |span| self.sink.begin(&span))
    }
}

impl<E> ChangeSink<E> for History<'_, E> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), E> {
        (self.begin, self.passed) = (Some(*span), 0);
        Ok(())
    }

    fn schema(&mut self, change: SchemaChange) -> Result<(), E> {
        if change.kind != "table" || !change.name.eq_ignore_ascii_case(&self.row.table) {
            return Ok(());
        }
        self.begun()?;
        self.sink.schema(change)
    }

    fn change(&mut self, change: RowChange) -> Result<(), E> {
        if !self.row.is(&change) {
            return Ok(());
        }
        self.begun()?;
        self.passed += 1;
        self.found += 1;
        self.sink.change(change)
    }

    fn commit(&mut self, span: &TxSpan, _: u64) -> Result<(), E> {
        if self.begin.take().is_some() { Ok(()) } else { self.sink.commit(span, self.passed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_people_write_them() {
        let key = |text: &str| OneRow::parse(text).map(|row| row.key);
        let plain = |text: &str| Part::Plain(text.to_owned());
        assert_eq!(key("t/17").unwrap(), [plain("17")]);
        assert_eq!(key("t/a b,-2").unwrap(), [plain("a b"), plain("-2")]);
        assert_eq!(key("t/'a, ''b''',x'00Ff'").unwrap(), [Part::Text("a, 'b'".to_owned()), Part::Blob(vec![0, 255])]);
        assert_eq!(OneRow::parse("\"a/b\"/1").unwrap().table, "a/b");
        for wrong in ["t", "t/", "t/1,", "t/'a", "t/'a'b", "t/x'0'", "\"t/1"] {
            assert!(OneRow::parse(wrong).is_err(), "{wrong}");
        }
        assert!(plain("1").is(&Value::Integer(1)) && plain("1").is(&Value::Text(b"1".to_vec())));
        assert!(!Part::Text("1".to_owned()).is(&Value::Integer(1)) && plain("1.5").is(&Value::Real(1.5)));
    }
}
