//! Layer 0: the bytes of the SQLite file formats as typed values. No I/O, no clock, no panic on any input.

mod btree;
mod bytes;
mod database;
mod error;
mod number;
mod record;
mod value;
mod wal;

pub use btree::{BtreePage, Cell, CellPlace, PageKind, PageShape, local_payload_bytes};
pub use database::{AutoVacuum, DATABASE_HEADER_BYTES, DatabaseHeader, USABLE_BYTES_MIN};
pub use error::{Corrupt, HeaderError};
pub use number::{FrameNo, PageNo, PageSize, Salts, TextEncoding};
pub(crate) use record::text;
pub use record::{Field, Fields, Record, RecordError};
pub use value::{Row, Value, ValueRef};
pub use wal::{ByteOrder, Checksum, FRAME_HEADER_BYTES, FrameHeader, FrameScan, ScanEnd, WAL_HEADER_BYTES, WalHeader};
