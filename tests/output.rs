//! The formats that changes are printed in.

mod json;
mod pretty;
mod sql;
