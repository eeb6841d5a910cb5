//! Layer 1: what rows mean: tables, keys, columns, affinities. Uses `format`; the catalogue is asked from an in-memory SQLite.

mod bound;
mod catalogue;
mod decode;
mod filler;
mod filter;
mod oracle;
mod row_filter;
mod row_test;
mod strict;
mod table;
mod tokens;
mod virtual_table;

pub(crate) use bound::Bound;
pub use catalogue::{Catalogue, CatalogueError, SchemaRow};
pub use decode::{RowPlaces, RowView};
pub use filter::TableFilter;
pub use row_filter::{RowFilter, RowFilterError, RowFilters};
pub use row_test::RowTest;
pub use strict::StrictType;
pub use table::{Affinity, Collation, Column, Identity, KeyColumn, Table, UniqueIndex};
pub use tokens::{Tokens, unquote};
pub use virtual_table::{Content, Module, VirtualTable};
