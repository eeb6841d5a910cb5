//! Layer 1: what rows mean: tables, keys, columns, affinities.

mod table;

pub use table::{Affinity, Collation, Column, Identity, KeyColumn, Table, UniqueIndex};
