//! What becomes of a value in a column of a STRICT table that does not take it.
//!
//! SQLite refuses it. But a table can become STRICT on one node while another writes what the new type has no room for, and nodes that refuse
//! what is on the log cannot become equal. So all of them convert, in one way: as CAST does, but that text which says an integer as `1e2` does
//! is that integer, that text is UTF-8, and that a real is written with the digits that it needs.

use crate::format::Value;

/// The values of a column of a STRICT table. (One that is ANY takes all.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrictType {
    /// INT, INTEGER.
    Integer,
    /// REAL.
    Real,
    /// TEXT.
    Text,
    /// BLOB.
    Blob,
}

impl StrictType {
    /// The type that a column of a STRICT table declares.
    #[must_use]
    pub fn of_declared(declared_type: &str) -> Option<StrictType> {
        match declared_type.to_ascii_uppercase().as_str() {
            "INT" | "INTEGER" => Some(StrictType::Integer),
            "REAL" => Some(StrictType::Real),
            "TEXT" => Some(StrictType::Text),
            "BLOB" => Some(StrictType::Blob),
            _ => None,
        }
    }

    /// The name under which SQL asks for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StrictType::Integer => "INTEGER",
            StrictType::Real => "REAL",
            StrictType::Text => "TEXT",
            StrictType::Blob => "BLOB",
        }
    }

    /// The value that stands for one that SQLite would refuse here; `None` for one that it takes. NULL has no type.
    #[must_use]
    pub fn converted(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (_, Value::Null)
            | (StrictType::Integer, Value::Integer(_))
            | (StrictType::Real, Value::Integer(_) | Value::Real(_))
            | (StrictType::Text, Value::Integer(_) | Value::Real(_) | Value::Text(_))
            | (StrictType::Blob, Value::Blob(_)) => None,
            // A fraction is cut off, and what is too large is the largest.
            (StrictType::Integer, Value::Real(real)) => Some(Value::Integer(*real as i64)),
            (StrictType::Integer, Value::Text(text) | Value::Blob(text)) => Some(match number(text) {
                Number::Integer(integer) => Value::Integer(integer),
                Number::Real(real) => Value::Integer(real as i64),
            }),
            (StrictType::Real, Value::Text(text) | Value::Blob(text)) => Some(match number(text) {
                Number::Integer(integer) => Value::Real(integer as f64),
                Number::Real(real) => Value::Real(real),
            }),
            (StrictType::Text, Value::Blob(bytes)) => {
                Some(Value::Text(String::from_utf8_lossy(bytes).into_owned().into_bytes()))
            }
            (StrictType::Blob, Value::Text(text)) => Some(Value::Blob(text.clone())),
            (StrictType::Blob, Value::Integer(integer)) => Some(Value::Blob(integer.to_string().into_bytes())),
            (StrictType::Blob, Value::Real(real)) => Some(Value::Blob(format!("{real:?}").into_bytes())),
        }
    }
}

enum Number {
    Integer(i64),
    Real(f64),
}

/// The number that a text begins with; 0 where there is none.
fn number(text: &[u8]) -> Number {
    let text = text.trim_ascii_start();
    let digits = |from: usize| text.iter().skip(from).take_while(|byte| byte.is_ascii_digit()).count();
    let is = |at: usize, bytes: &[u8]| text.get(at).is_some_and(|byte| bytes.contains(byte));
    let begin = usize::from(is(0, b"+-"));
    let mut end = begin + digits(begin);
    let mut some = end > begin;
    let mut is_integer = true;
    if is(end, b".") {
        let count = digits(end + 1);
        // SQLite reads `1.` and `.5`, and nothing in a point alone.
        if some || count > 0 {
            (end, some, is_integer) = (end + 1 + count, true, false);
        }
    }
    if some && is(end, b"eE") {
        let digits_from = end + 1 + usize::from(is(end + 1, b"+-"));
        let count = digits(digits_from);
        if count > 0 {
            (end, is_integer) = (digits_from + count, false);
        }
    }
    let found = text.get(..end).and_then(|found| std::str::from_utf8(found).ok()).filter(|_| some).unwrap_or("0");
    match found.parse() {
        Ok(integer) if is_integer => Number::Integer(integer),
        Ok(_) | Err(_) => Number::Real(found.parse().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, ErrorCode};

    use super::super::bound::Bound;
    use super::*;

    #[test]
    fn what_sqlite_takes_is_as_sqlite_stores_it_and_what_it_refuses_becomes_something_that_it_takes() {
        let db = Connection::open_in_memory().unwrap();
        let texts = [
            "",
            " ",
            "0",
            "12",
            " 12 ",
            "+7",
            "-0",
            "12abc",
            "abc",
            "1.5",
            "1.",
            ".5",
            ".",
            "-.",
            "1e2",
            "1e",
            "1e+",
            "-1.5e3x",
            "0x1F",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "9007199254740993",
            "9007199254740993.0",
            "1e400",
            "-1e400",
            "Inf",
            "nan",
            "1_000",
            "٣",
            "\u{0}12",
        ];
        let texts =
            texts.into_iter().map(|text| text.as_bytes().to_vec()).chain([vec![0xff, b'1'], b"12\xff".to_vec()]);
        let mut values: Vec<Value> = texts.flat_map(|bytes| [Value::Text(bytes.clone()), Value::Blob(bytes)]).collect();
        values.extend([i64::MIN, -1, 0, 1, i64::MAX].map(Value::Integer));
        values.extend([-0.0, 0.0, 1.0, 1.5, -1.5, 1e18, 1e19, -1e300, f64::INFINITY].map(Value::Real));
        values.push(Value::Null);
        let (mut taken, mut refused) = (0, 0);
        for strict in [StrictType::Integer, StrictType::Real, StrictType::Text, StrictType::Blob] {
            let declared = strict.name();
            assert_eq!(StrictType::of_declared(declared), Some(strict));
            db.execute_batch(&format!("CREATE TABLE {declared}(v {declared}) STRICT")).unwrap();
            let insert = format!("INSERT INTO {declared} VALUES(?1) RETURNING hex(quote(v))");
            let stored = |value: &Value| db.query_row(&insert, [Bound(value)], |row| row.get::<_, String>(0));
            for value in &values {
                let converted = strict.converted(value);
                let ours = stored(converted.as_ref().unwrap_or(value))
                    .unwrap_or_else(|error| panic!("{declared} of {value:?}: {error}"));
                match stored(value) {
                    Ok(theirs) => {
                        assert_eq!(ours, theirs, "{declared} of {value:?}");
                        taken += 1;
                    }
                    Err(error) => {
                        assert_eq!(
                            error.sqlite_error_code(),
                            Some(ErrorCode::ConstraintViolation),
                            "{declared} of {value:?}"
                        );
                        assert!(converted.is_some(), "{declared} of {value:?}");
                        let cast = format!("SELECT hex(quote(CAST(?1 AS {declared})))");
                        let cast: String = db.query_row(&cast, [Bound(value)], |row| row.get(0)).unwrap();
                        let as_cast = match value {
                            Value::Text(_) | Value::Blob(_) if strict == StrictType::Integer => false,
                            Value::Real(_) if strict == StrictType::Blob => false,
                            Value::Blob(bytes) => strict != StrictType::Text || std::str::from_utf8(bytes).is_ok(),
                            _ => true,
                        };
                        assert!(!as_cast || cast == ours, "{declared} of {value:?}: {ours}, CAST {cast}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(taken > 100 && refused > 100, "{taken} {refused}");
    }
}
