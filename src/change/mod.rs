//! Layer 2: two versions of the pages become row changes. Uses `format` and `schema`.

mod columns;
mod differ;
mod explain;
mod identity;
mod keyed;
mod leftovers;
mod merge;
mod order;
mod overflow;
mod owners;
mod pages;
mod plan;
mod renamed;
mod row;
mod rows;
mod sample;
mod structure;
mod suspects;
mod trees;

pub use columns::RenamedColumns;
pub use differ::{Differ, TransactionError};
pub use identity::{canonical_key, row_key};
pub use pages::{DiffError, PageError, PageSource};
pub use row::{ChangeSink, ChangedRow, Op, RowChange, RowKey, SchemaChange, TxSpan};
pub(crate) use rows::reshape;
