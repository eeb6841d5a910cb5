//! Row changes as text: one writer a format, each a [`crate::change::ChangeSink`] over any `io::Write`, flushed at every commit.

mod json;
mod sql;

pub use json::JsonLines;
pub use sql::{SchemaObject, SqlScript};
