//! Everything that is tested from outside: one binary, a module per concern.

mod log;
