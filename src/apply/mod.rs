//! Layer 5: messages become SQL, by the rules under which all nodes end equal.
//!
//! The database thread drives a [`Replica`]:
//!
//! ```text
//! capture ──▶ local_sink ──▶ pending, base          seal ──▶ in_flight ──▶ acknowledged
//! begin (write lock) ──▶ drain capture ──▶ fold ──▶ commit (intent, then the user's database) ──▶ finish (intent becomes state)
//! ```

mod alteration;
mod apart;
mod arrivals;
mod base;
mod beforehand;
mod beginnings;
mod catch_up;
mod catch_up_plan;
mod catch_up_schema;
mod claims;
mod codec;
mod comebacks;
mod conflicts;
mod connection;
mod deferred;
mod definitions;
mod digest;
mod duplicates;
mod error;
mod fitting;
mod fold;
mod fold_reader;
mod held;
mod indexes;
mod intent;
mod known;
mod local;
mod lost;
mod messages;
mod names;
mod names_told;
mod narrowed;
mod net_effect;
mod objects;
mod outside;
mod pending;
mod pending_units;
mod remake;
mod repeated;
mod replica;
mod route;
mod routing;
mod schema_steps;
mod seal;
mod shape;
mod snapshot;
mod spoken;
mod sql;
mod state;
mod state_file;
mod state_log;
mod statements;
mod text;
mod theirs;
mod undo_redo;
mod uniques;
mod unseen;
mod versions;
mod went_back;

pub use crate::schema::{RowFilter, RowFilterError, RowFilters, TableFilter};
pub use arrivals::{Arrivals, Arrived, Blocked, FoldReport, Outcome};
pub use beforehand::Beforehand;
pub use catch_up::{CaughtUp, SNAPSHOT_SCHEMA};
pub use conflicts::{Conflict, ConflictKind};
pub use connection::{open_applying_connection, prepare_applying_connection};
pub use digest::table_digests;
pub use error::{ApplyError, Cannot};
pub use fold::FoldCounts;
pub use fold_reader::{
    FOLD_BUCKETS, FoldBounds, FoldDigest, FoldReader, FoldRow, FoldTable, decode_fold_row, is_out_of_bounds,
};
pub use indexes::{Upkeep, index_upkeep};
pub use known::{AheadTo, FoldedOf};
pub use local::{KEPT_TO_ITSELF, LocalSink, Recovered};
pub use lost::PutBack;
pub use net_effect::NetEffect;
pub use pending::Backlog;
pub use replica::{PositionOf, Replica, Route, Travels};
pub use route::route_by_hash;
pub use seal::{InFlight, SealLimits, ToSend};
pub use shape::{Merge, Tables, shape_of};
pub use snapshot::{FrozenState, empty_excluded, leave_out_rows};
pub use state::State;
pub use went_back::Cleared;
