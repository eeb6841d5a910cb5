//! Daemons, writers and servers that die at every boundary and at any moment: nothing is lost, nothing doubled, and no application notices.

pub mod ledger;
mod points;
mod storms;
