//! Changes as people read them: one block a transaction, one line a row.
//!
//! ```text
//! ── transaction 17 · frames 42–44 · 3 changes
//!   + users    id=7  name 'Ada', born 1815
//!   ~ users    id=3  name 'Grace H.' → 'Grace Hopper'
//!   - orders   id=99 total 12.5, note NULL
//! ```

use std::io::{self, IsTerminal, Write};

use super::spill::Spill;
use crate::change::{ChangeSink, Op, RowChange, RowKey, SchemaChange, TxSpan};
use crate::format::{Row, Value};
use crate::schema::{Identity, Table};

/// Longer values are cut here and end with their size: a line should stay one.
const SHOWN_CHARS_MAX: usize = 60;
/// Names are padded to the longest seen, up to this.
const NAME_WIDTH_MAX: usize = 24;

/// The colours, or nothing at all.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// Colours if standard output is a terminal that wants them: `NO_COLOR` (any value but the empty one) and `TERM=dumb` do not.
    #[must_use]
    pub fn of_stdout() -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Style { coloured: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb }
    }

    /// With or without colours.
    #[must_use]
    pub const fn coloured(coloured: bool) -> Style {
        Style { coloured }
    }

    /// The text in bold.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// The text in a faint colour.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// The text in red.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// The text in green.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// The text in yellow.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Writes changes for people.
#[derive(Debug)]
pub struct Pretty<W: Write> {
    out: io::BufWriter<W>,
    style: Style,
    /// The header tells how many changes there are, so the lines wait for the commit.
    lines: Spill,
    name_width: usize,
    is_open: bool,
}

impl<W: Write> Pretty<W> {
    /// Makes a writer.
    pub fn new(out: W, style: Style) -> Pretty<W> {
        Pretty {
            out: io::BufWriter::with_capacity(64 << 10, out),
            style,
            lines: Spill::default(),
            name_width: 0,
            is_open: false,
        }
    }

    /// Returns what was written to. Everything up to the last commit is there.
    pub fn into_inner(self) -> W {
        self.out.into_parts().0
    }

    /// Transactions are called not committed.
    pub(super) fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
    }

    /// Says that something may be missing here.
    pub(super) fn gap(&mut self, why: &str) -> io::Result<()> {
        writeln!(self.out, "{}", self.style.red(&format!("── gap: {why}")))?;
        self.out.flush()
    }

    fn padded(&mut self, name: &str) -> String {
        let name = printable(name);
        self.name_width = self.name_width.max(name.chars().count().min(NAME_WIDTH_MAX));
        format!("{name:<width$}", width = self.name_width)
    }
}

impl<W: Write> ChangeSink<io::Error> for Pretty<W> {
    fn begin(&mut self, _span: &TxSpan) -> io::Result<()> {
        self.lines = Spill::default();
        Ok(())
    }

    fn schema(&mut self, change: SchemaChange) -> io::Result<()> {
        let line = schema_line(self.style, (&change.kind, &change.name), (&change.before, &change.after));
        writeln!(self.lines.statement()?, "  {line}")
    }

    fn change(&mut self, change: RowChange) -> io::Result<()> {
        let name = self.padded(&change.table.name);
        let style = self.style;
        let key = key(&change.table, &change.key);
        let (mark, text) = match (change.op, &change.before, &change.after) {
            (Op::Delete, before, _) => {
                let old = before.as_ref().map_or_else(String::new, |row| row_text(&change.table, row));
                (style.red(&format!("- {name}")), style.faint(&old))
            }
            (Op::Update, Some(before), Some(after)) => {
                (style.yellow(&format!("~ {name}")), difference(style, &change, before, after))
            }
            (_, _, after) => {
                let new = after.as_ref().map_or_else(String::new, |row| row_text(&change.table, row));
                let sign = if change.op == Op::Insert {
                    style.green(&format!("+ {name}"))
                } else {
                    style.yellow(&format!("~ {name}"))
                };
                (sign, new)
            }
        };
        let unknown = if change.before_unknown { style.faint("  (before: not known)") } else { String::new() };
        let gap = if text.is_empty() { "" } else { "  " };
        writeln!(self.lines.statement()?, "  {mark}  {}{gap}{text}{unknown}", style.bold(&key))
    }

    fn commit(&mut self, span: &TxSpan, changes: u64) -> io::Result<()> {
        let place = match (span.repaired, span.frame_first == span.frame_last) {
            (true, _) => "found by comparison".to_owned(),
            (_, true) => format!("frame {}", span.frame_last),
            _ => format!("frames {}–{}", span.frame_first, span.frame_last),
        };
        let count = match changes {
            0 => "schema only".to_owned(),
            1 => "1 change".to_owned(),
            count => format!("{count} changes"),
        };
        let header = self.style.bold(&format!("── transaction {}", span.tx));
        let open = if self.is_open { " · not committed" } else { "" };
        writeln!(self.out, "{header}{}", self.style.faint(&format!(" · {place} · {count}{open}")))?;
        std::mem::take(&mut self.lines).move_to(&mut self.out)?;
        self.out.flush()
    }
}

fn key(table: &Table, key: &RowKey) -> String {
    let name = |index: usize| table.columns.get(index).map_or("", |column| column.name.as_str());
    let part = |name: &str, value: &Value| format!("{}={}", printable(name), value_text(value));
    match (key, &table.identity) {
        (RowKey::Rowid(rowid), _) => format!("rowid={rowid}"),
        (RowKey::Columns(values), Identity::Declared(parts)) => {
            let parts = parts.iter().zip(values).map(|(column, value)| part(name(column.column), value));
            parts.collect::<Vec<_>>().join(" ")
        }
        (RowKey::Columns(values), Identity::RowidAlias(index)) => {
            values.first().map_or_else(String::new, |value| part(name(*index), value))
        }
        (RowKey::Columns(_), Identity::Rowid) => String::new(),
    }
}

/// The columns that the key does not show already.
fn row_text(table: &Table, row: &Row) -> String {
    let in_key = |index: usize| match &table.identity {
        Identity::RowidAlias(alias) => *alias == index,
        Identity::Declared(parts) => parts.iter().any(|part| part.column == index),
        Identity::Rowid => false,
    };
    let columns = table.columns.iter().zip(row).enumerate().filter(|(index, _)| !in_key(*index));
    let texts = columns.map(|(_, (column, value))| format!("{} {}", printable(&column.name), value_text(value)));
    texts.collect::<Vec<_>>().join(", ")
}

fn difference(style: Style, change: &RowChange, before: &Row, after: &Row) -> String {
    let changed = change.changed_columns();
    let columns = change.table.columns.iter().zip(before.iter().zip(after)).zip(changed);
    let texts = columns.filter(|(_, changed)| *changed).map(|((column, (old, new)), _)| {
        format!("{} {} → {}", printable(&column.name), style.faint(&value_text(old)), value_text(new))
    });
    texts.collect::<Vec<_>>().join(", ")
}

/// A value in SQL's notation, shortened.
pub(super) fn value_text(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) if number.is_infinite() => if *number > 0.0 { "∞" } else { "-∞" }.to_owned(),
        Value::Real(number) => format!("{number:?}"),
        Value::Text(bytes) => {
            // Four bytes a character at most: more is never shown.
            let start = bytes.get(..SHOWN_CHARS_MAX * 4 + 4).unwrap_or(bytes);
            let text = printable(&String::from_utf8_lossy(start));
            let cut = shortened(&text, SHOWN_CHARS_MAX);
            if cut.len() == text.len() && start.len() == bytes.len() {
                format!("'{text}'")
            } else {
                format!("'{cut}' {}", size(bytes.len()))
            }
        }
        Value::Blob(bytes) => {
            let shown = bytes.get(..SHOWN_CHARS_MAX / 4).unwrap_or(bytes);
            let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            if shown.len() == bytes.len() { format!("x'{hex}'") } else { format!("x'{hex}…' {}", size(bytes.len())) }
        }
    }
}

/// Text from outside as a terminal may have it. Control characters move cursors and colours, and marks of direction let a line read as another
/// one: they are shown, not sent. What comes out has no line breaks.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_unseen(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Characters that break lines, or set the direction of what stands around them.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn shortened(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or(text)),
        None => text.to_owned(),
    }
}

/// Bytes for people: `(12 KiB)`.
fn size(bytes: usize) -> String {
    format!("({})", bytes_text(bytes as u64))
}

/// A number of bytes with a unit that keeps it short.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes as f64;
    let mut unit = "bytes";
    for larger in UNITS {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{scaled:.1} {unit}") }
}

/// A change of the schema for people.
pub(super) fn schema_line(
    style: Style,
    (kind, name): (&str, &str),
    (before, after): (&Option<String>, &Option<String>),
) -> String {
    let text = |sql: &str| style.faint(&shortened(&printable(sql), SHOWN_CHARS_MAX * 2));
    let what = format!("{kind} {}", printable(name));
    match (before, after) {
        (_, None) => style.red(&format!("- {what}")),
        (None, Some(after)) => format!("{}  {}", style.green(&format!("+ {what}")), text(after)),
        (Some(_), Some(after)) => format!("{}  {}", style.yellow(&format!("~ {what}")), text(after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_shown() {
        let text = "a\u{1b}[2J\u{7}\u{7f}\u{9b}31m\u{202e}\u{2066}\n\u{2028}é😀";
        let shown = r"a\u{1b}[2J\u{7}\u{7f}\u{9b}31m\u{202e}\u{2066}\n\u{2028}é😀";
        assert_eq!(printable(text), shown);
    }

    #[test]
    fn values_are_short_and_harmless() {
        assert_eq!(value_text(&Value::Text(b"a\x1b[31m\n".to_vec())), "'a\\u{1b}[31m\\n'");
        assert_eq!(value_text(&Value::Real(3.0)), "3.0");
        let long = value_text(&Value::Text("é".repeat(5000).into_bytes()));
        assert_eq!(long, format!("'{}…' (9.8 KiB)", "é".repeat(60)));
        assert_eq!(value_text(&Value::Blob(vec![1; 100])), format!("x'{}…' (100 bytes)", "01".repeat(15)));
        assert_eq!(value_text(&Value::Text("x".repeat(60).into_bytes())), format!("'{}'", "x".repeat(60)));
    }
}
