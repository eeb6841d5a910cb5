//! Layer 0: the bytes of the SQLite file formats as typed values. No I/O, no clock, no panic on any input.

mod number;
mod value;

pub use number::{FrameNo, PageNo, PageSize, Salts, TextEncoding};
pub use value::{Row, Value};
