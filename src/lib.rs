//! Woodchuck replicates SQLite databases by reading their write-ahead log.
//!
//! ```text
//!  app.db-wal ──▶ capture ──▶ change ──▶ log ══▶ JetStream ══▶ log ──▶ apply ──▶ app.db
//!                (frames)   (row changes)  (sealed rounds)          (undo, fold, redo)
//! ```
//!
//! Layers, lowest first: [`fault`], [`mod@format`], [`schema`], [`change`], [`capture`], [`log`], [`apply`], [`node`], [`cli`]. A module uses lower
//! layers only, and of those only the ones its `mod.rs` names; `tests/layers.rs` reads the sources and fails on anything else.

pub mod apply;
pub mod capture;
pub mod change;
pub mod cli;
pub mod fault;
pub mod format;
pub mod log;
pub mod node;
pub mod schema;
