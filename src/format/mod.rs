//! Layer 0: the bytes of the SQLite file formats as typed values. No I/O, no clock, no panic on any input.

mod btree;
mod bytes;
mod database;
mod error;
mod number;
mod record;
mod value;
mod wal;

pub use btree::{BtreePage, Cell, PageKind, local_payload_bytes};
pub use database::{AutoVacuum, DATABASE_HEADER_BYTES, DatabaseHeader, USABLE_BYTES_MIN};
pub use error::{Corrupt, HeaderError};
pub use number::{FrameNo, PageNo, PageSize, Salts, TextEncoding};
pub use record::{Record, RecordError};
pub use value::{Row, Value};
pub use wal::{ByteOrder, Checksum, FRAME_HEADER_BYTES, FrameHeader, FrameScan, ScanEnd, WAL_HEADER_BYTES, WalHeader};
