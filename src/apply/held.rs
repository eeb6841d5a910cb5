//! Changes of plain rows that are held back until there are many, and then made in the order of their keys.
//!
//! Rows are spread over shards by a hash. Folded shard by shard, each shard would go through the whole table once more, put its rows between
//! those of the others, and split the pages that these have filled; what the cache does not hold is written and read again each time.
//!
//! Rows without UNIQUE values do not meet each other, so only the order of one row's changes matters: the order in which they were held, for
//! all of them stand in one shard. Whatever asks for such rows lets go of what is held first.

use std::sync::Arc;

use super::error::ApplyError;
use super::shape::{Change, LocalTable};
use super::undo_redo::Call;
use crate::format::Value;
use crate::log::{Origin, ShardId, StreamSeq};

/// Memory that what is held may take: about as many rows as eight messages of the usual size have. In keys that count up those are rows that
/// stand together.
const HELD_BYTES_MAX: usize = 12 << 20;
/// What each value and each list of them takes beside its own bytes.
const VALUE_BYTES: usize = size_of::<Value>() + 16;

/// A change that is held.
struct Held {
    table: Arc<LocalTable>,
    change: Change<'static>,
    origin: Origin,
    at: (ShardId, StreamSeq),
}

/// What is held.
#[derive(Default)]
pub(super) struct Changes {
    held: Vec<Held>,
    bytes: usize,
    /// The message of the change that could not be made.
    pub(super) failed_at: Option<(ShardId, StreamSeq)>,
}

impl Call<'_, '_> {
    /// Holds a change of a plain table. `at` is its message.
    pub(super) fn hold(
        &mut self,
        table: &Arc<LocalTable>,
        change: Change<'static>,
        origin: Origin,
        at: (ShardId, StreamSeq),
    ) -> Result<(), ApplyError> {
        let of_values =
            change.image.iter().flat_map(|image| image.iter()).map(|value| VALUE_BYTES + value.heap_bytes());
        let bytes = size_of::<Held>() + 2 * VALUE_BYTES + 2 * change.canonical.len() + of_values.sum::<usize>();
        if self.changes.bytes + bytes > HELD_BYTES_MAX {
            self.let_go()?;
        }
        self.changes.bytes += bytes;
        self.changes.held.push(Held { table: Arc::clone(table), change, origin, at });
        Ok(())
    }

    /// Makes the changes that are held.
    pub(super) fn let_go(&mut self) -> Result<(), ApplyError> {
        let mut held = std::mem::take(&mut self.changes.held);
        self.changes.bytes = 0;
        // Stable: changes of one row stay in their order.
        held.sort_by(|a, b| (a.table.id, &a.change.canonical).cmp(&(b.table.id, &b.change.canonical)));
        for Held { table, change, origin, at } in held {
            self.folder.origin = Some(origin);
            let made = self.fold_plain(&table, &change, origin).and_then(|()| self.store_many_versions());
            if made.is_err() {
                self.changes.failed_at = Some(at);
            }
            made?;
        }
        Ok(())
    }
}
