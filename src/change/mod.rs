//! Layer 2: two versions of the pages become row changes.

mod identity;
mod row;

pub use identity::canonical_key;
pub use row::{ChangeSink, Op, RowChange, RowKey, SchemaChange, TxSpan};
