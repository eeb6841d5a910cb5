//! From a moment of the node to a file that is the fold.

use std::fs::File;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::set_wal;
use crate::apply::{
    ApplyError, FrozenState, RowFilters, TableFilter, Tables, empty_excluded, leave_out_rows,
    prepare_applying_connection,
};
use crate::capture::{CaptureError, HeldShadow};
use crate::log::{Routing, SnapshotManifest, Stand, hash_file};
use crate::node::error::NodeError;

/// The database and the state of one moment. The database thread goes on while this is held.
pub(in crate::node) struct Moment {
    pub(in crate::node) held: HeldShadow,
    pub(in crate::node) frozen: FrozenState,
    pub(in crate::node) stand: Stand,
    pub(in crate::node) routing: Routing,
    pub(in crate::node) names: Vec<u8>,
    pub(in crate::node) tables: Box<dyn Tables + Send>,
}

/// Makes the file, with what it holds.
pub(in crate::node) fn make(
    moment: Moment,
    path: &Path,
    filter: &TableFilter,
    rows: &RowFilters,
) -> Result<(File, SnapshotManifest), NodeError> {
    let fail = |what| {
        let path = path.to_owned();
        move |source| NodeError::StateDirectory { path, what, source }
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let mut file = file.map_err(fail("cannot make a copy for a snapshot"))?;
    let Moment { held, frozen, stand, routing, names, tables } = moment;
    held.copy_to(&file).map_err(CaptureError::Shadow)?;
    drop(held);
    set_wal(&file, false).map_err(fail("cannot write a snapshot"))?;
    let doing = |source| ApplyError::Database { doing: "opening the copy for a snapshot", source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let copy = Connection::open_with_flags(path, flags).map_err(doing)?;
    prepare_applying_connection(&copy)?;
    // Nobody else reads it, and after a crash nobody wants it.
    copy.pragma_update(None, "synchronous", "OFF").map_err(doing)?;
    copy.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(())).map_err(doing)?;
    // What the application has for itself must not be in the way of the fold's rows, and of these some are hidden.
    leave_out_rows(&copy, rows)?;
    frozen.put_base(&copy, tables.as_ref())?;
    drop(frozen);
    leave_out_rows(&copy, rows)?;
    empty_excluded(&copy, filter)?;
    drop(copy);
    set_wal(&file, true).map_err(fail("cannot write a snapshot"))?;
    let (database_bytes, blake3) = hash_file(&mut file).map_err(fail("cannot read a snapshot"))?;
    Ok((file, SnapshotManifest { stand, routing, names, database_bytes, blake3 }))
}
