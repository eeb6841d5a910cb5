//! The shadow: a byte-exact image of the database at our own position, in the state directory.
//!
//! `shadow.db` is a valid SQLite file at the position of the last merge; `shadow.journal` has what the transactions since did to its pages.
//!
//! Invariant: the journal is written before the sink stores its position, and `shadow.db` is written only from a journal that is on disk
//! and whose last position the sink has stored. So whatever moment we die at, the journal can be cut back to the stored position.

mod compare;
mod copy;
mod earlier;
mod error;
mod held;
mod held_compare;
mod image;
mod journal;
mod merge;
#[cfg(test)]
mod tests;

pub use copy::{Progress, ShadowProgress, ShadowStep};
pub use error::ShadowError;
pub use held::{HeldShadow, write_shadow};
pub use held_compare::HeldCompareError;
pub(super) use image::{Journaled, Shadow, WriteError};
pub(super) use journal::Appended;
