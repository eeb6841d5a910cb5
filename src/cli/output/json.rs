//! JSON lines, the format that programs read: one object a line, keys always in the same order.
//!
//! ```text
//! {"op":"begin","tx":17,"salt":"5a1f…","frame":42}
//! {"op":"update","tx":17,"table":"t","key":{"id":1},"before":{"id":1,"a":"x"},"after":{"id":1,"a":"y"}}
//! {"op":"schema","tx":17,"type":"table","name":"t","before":null,"after":"CREATE TABLE t(…)"}
//! {"op":"commit","tx":17,"salt":"5a1f…","frame":44,"changes":3}
//! ```
//!
//! Values keep their storage class: an integer is a JSON number without fraction and is exact; a real has a fraction or an exponent
//! (`3.0`, `1e300`) and reads back to the same bits; an infinity is `{"real":"Infinity"}`; a BLOB is `{"blob":"<base64>"}`; TEXT that is
//! not valid UTF-8 is `{"text":"<base64>"}`. The key of a row that is told apart by its rowid is `{"rowid":n}`.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::change::{ChangeSink, Op, RowChange, RowKey, SchemaChange, TxSpan};
use crate::format::Value;
use crate::schema::{Identity, Table};

/// Lines are handed on in pieces of about this size: system calls are dear, memory is bounded.
const BUFFER_BYTES: usize = 64 << 10;

/// Appends the line of a change of the schema but for its end.
pub(super) fn schema_members(
    out: &mut Vec<u8>,
    tx: u64,
    (kind, name): (&str, &str),
    (before, after): (&Option<String>, &Option<String>),
    renamed_columns: Option<&[(String, String)]>,
) {
    out.extend_from_slice(b"{\"op\":\"schema\",\"tx\":");
    integer(out, tx);
    out.extend_from_slice(b",\"type\":");
    string(out, kind);
    out.extend_from_slice(b",\"name\":");
    string(out, name);
    for (key, sql) in [(&b",\"before\":"[..], before), (b",\"after\":", after)] {
        out.extend_from_slice(key);
        match sql {
            Some(sql) => string(out, sql),
            None => out.extend_from_slice(b"null"),
        }
    }
    let Some(renamed) = renamed_columns else { return };
    out.extend_from_slice(b",\"renamed_columns\":[");
    for (index, (was, is)) in renamed.iter().enumerate() {
        out.extend_from_slice(if index > 0 { b",[" } else { b"[" });
        string(out, was);
        out.push(b',');
        string(out, is);
        out.push(b']');
    }
    out.push(b']');
}

/// Writes changes as JSON lines.
#[derive(Debug)]
pub struct JsonLines<W: Write> {
    out: W,
    buffer: Vec<u8>,
    tx: u64,
    is_open: bool,
    /// The line's beginning up to `"table":"…"` of the table last seen, which is most often the next one's too.
    table_prefix: TablePrefix,
}

/// `,"tx":17,"table":"t"` for a transaction and a table.
#[derive(Debug, Default)]
struct TablePrefix {
    tx: u64,
    name: String,
    bytes: Vec<u8>,
}

impl<W: Write> JsonLines<W> {
    /// Makes a writer.
    pub fn new(out: W) -> JsonLines<W> {
        JsonLines {
            out,
            buffer: Vec::with_capacity(BUFFER_BYTES + 4096),
            tx: 0,
            is_open: false,
            table_prefix: TablePrefix::default(),
        }
    }

    /// Returns what was written to.
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Transactions end with `"op":"open"` instead of a commit.
    pub(super) fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
    }

    /// `{"op":"gap","why":"…"}`: something may be missing here.
    pub(super) fn gap(&mut self, why: &str) -> io::Result<()> {
        self.buffer.extend_from_slice(b"{\"op\":\"gap\",\"why\":");
        string(&mut self.buffer, why);
        self.end_line()?;
        self.drain()?;
        self.out.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.buffer.extend_from_slice(b"}\n");
        if self.buffer.len() >= BUFFER_BYTES { self.drain() } else { Ok(()) }
    }

    fn drain(&mut self) -> io::Result<()> {
        let written = self.out.write_all(&self.buffer);
        self.buffer.clear();
        written
    }

    fn place(&mut self, op: &[u8], span: &TxSpan, frame: u32) {
        self.buffer.extend_from_slice(b"{\"op\":\"");
        self.buffer.extend_from_slice(op);
        self.buffer.extend_from_slice(b"\",\"tx\":");
        integer(&mut self.buffer, span.tx);
        self.buffer.extend_from_slice(b",\"salt\":\"");
        for byte in span.salts.0 {
            hex(&mut self.buffer, byte);
        }
        self.buffer.extend_from_slice(b"\",\"frame\":");
        integer(&mut self.buffer, frame);
    }
}

impl<W: Write> ChangeSink<io::Error> for JsonLines<W> {
    fn begin(&mut self, span: &TxSpan) -> io::Result<()> {
        self.tx = span.tx;
        self.place(b"begin", span, span.frame_first.0);
        if span.repaired {
            self.buffer.extend_from_slice(b",\"repaired\":true");
        }
        self.end_line()
    }

    fn schema(&mut self, change: SchemaChange) -> io::Result<()> {
        let renamed = change.renamed_columns.as_deref();
        schema_members(
            &mut self.buffer,
            self.tx,
            (&change.kind, &change.name),
            (&change.before, &change.after),
            renamed,
        );
        self.end_line()
    }

    fn change(&mut self, change: RowChange) -> io::Result<()> {
        let out = &mut self.buffer;
        out.extend_from_slice(match change.op {
            Op::Insert => b"{\"op\":\"insert\"",
            Op::Update => b"{\"op\":\"update\"",
            Op::Delete => b"{\"op\":\"delete\"",
        });
        out.extend_from_slice(self.table_prefix.get(self.tx, &change.table.name));
        key(out, &change.table, &change.key);
        if change.before_unknown {
            out.extend_from_slice(b",\"before_unknown\":true");
        }
        for (name, image) in [(&b",\"before\":{"[..], &change.before), (b",\"after\":{", &change.after)] {
            if let Some(row) = image {
                out.extend_from_slice(name);
                let columns = change.table.columns.iter().map(|column| column.name.as_str());
                members(out, columns.zip(row));
                out.push(b'}');
            }
        }
        self.end_line()
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> io::Result<()> {
        self.place(if self.is_open { b"open" } else { b"commit" }, span, span.frame_last.0);
        self.buffer.extend_from_slice(b",\"changes\":");
        integer(&mut self.buffer, changes);
        self.end_line()?;
        self.drain()?;
        self.out.flush()
    }
}

impl TablePrefix {
    fn get(&mut self, tx: u64, name: &str) -> &[u8] {
        if self.tx != tx || self.name != name || self.bytes.is_empty() {
            self.tx = tx;
            name.clone_into(&mut self.name);
            self.bytes.clear();
            self.bytes.extend_from_slice(b",\"tx\":");
            integer(&mut self.bytes, tx);
            self.bytes.extend_from_slice(b",\"table\":");
            string(&mut self.bytes, name);
        }
        &self.bytes
    }
}

fn key(out: &mut Vec<u8>, table: &Table, key: &RowKey) {
    match key {
        RowKey::Rowid(rowid) => {
            out.extend_from_slice(b",\"key\":{\"rowid\":");
            integer(out, *rowid);
        }
        RowKey::Columns(values) => {
            out.extend_from_slice(b",\"key\":{");
            let name = |index: usize| table.columns.get(index).map_or("", |column| column.name.as_str());
            match &table.identity {
                Identity::RowidAlias(column) => members(out, std::iter::once(name(*column)).zip(values)),
                Identity::Declared(columns) => members(out, columns.iter().map(|part| name(part.column)).zip(values)),
                Identity::Rowid => members(out, std::iter::once("rowid").zip(values)),
            }
        }
    }
    out.push(b'}');
}

/// Writes `"name":value` pairs, separated by commas.
pub(super) fn members<'a>(out: &mut Vec<u8>, pairs: impl Iterator<Item = (&'a str, &'a Value)>) {
    for (index, (name, value)) in pairs.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        string(out, name);
        out.push(b':');
        self::value(out, value);
    }
}

/// A value as it stands in a line.
#[must_use]
pub fn value_json(of: &Value) -> serde_json::Value {
    let mut bytes = Vec::new();
    value(&mut bytes, of);
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Integer(number) => integer(out, *number),
        Value::Real(number) if number.is_finite() => put(out, format_args!("{number:?}")),
        Value::Real(number) if number.is_nan() => out.extend_from_slice(b"null"),
        Value::Real(number) if *number > 0.0 => out.extend_from_slice(b"{\"real\":\"Infinity\"}"),
        Value::Real(_) => out.extend_from_slice(b"{\"real\":\"-Infinity\"}"),
        Value::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => string(out, text),
            Err(_) => encoded(out, b"{\"text\":\"", bytes),
        },
        Value::Blob(bytes) => encoded(out, b"{\"blob\":\"", bytes),
    }
}

fn encoded(out: &mut Vec<u8>, open: &[u8], bytes: &[u8]) {
    out.extend_from_slice(open);
    let from = out.len();
    let encoded_bytes = bytes.len().div_ceil(3) * 4;
    out.resize(from + encoded_bytes, 0);
    let written = out.get_mut(from..).map_or(Ok(0), |slot| STANDARD.encode_slice(bytes, slot));
    assert!(written == Ok(encoded_bytes), "base64 turns three bytes into four");
    out.extend_from_slice(b"\"}");
}

/// Writes a JSON string. Everything but quotes, backslashes and control characters stands for itself.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || *byte == b'"' || *byte == b'\\' || *byte == 0x7f) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        if let Some((byte, after)) = special.split_first() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                byte => {
                    out.extend_from_slice(b"\\u00");
                    hex(out, *byte);
                }
            }
            rest = after;
        }
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn hex(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for nibble in [byte >> 4, byte & 15] {
        out.extend(DIGITS.get(usize::from(nibble)));
    }
}

fn integer(out: &mut Vec<u8>, number: impl std::fmt::Display) {
    put(out, format_args!("{number}"));
}

/// Formats into memory, which cannot fail.
pub(super) fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "writing to memory does not fail");
}
