//! Row changes as text: one writer a format, each a [`crate::change::ChangeSink`] over any `io::Write`, flushed at every commit.

mod conflict;
mod filter;
mod json;
mod metrics;
mod pretty;
mod progress;
mod spill;
mod sql;
mod unit;
mod verify;

pub use conflict::{conflict_json, conflict_pretty};
pub use filter::{Filtered, RowWriter};
pub use json::{JsonLines, value_json};
pub use metrics::metrics;
pub use pretty::{Pretty, Style, bytes_text, printable};
pub(super) use progress::Bar;
pub use sql::{SchemaObject, SqlScript};
pub use unit::{UnitPlace, unit_json, unit_pretty};
pub use verify::{verify_json, verify_pretty};
