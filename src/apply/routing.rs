//! Whether a table's rows travel by their keys or by the table's name: decided with the first row that is met, and then for good.
//!
//! It does not follow from the table as it is now, so snapshots carry it: whoever begins with one has not met the first row.

use rusqlite::params;

use super::error::ApplyError;
use super::names::taken_from;
use super::state::{State, TableState};
use crate::log::Routing;

impl State {
    /// How rows travel, of all tables that were met. One that was dropped is among them: its name may be given again.
    pub(super) fn routing(&self) -> Routing {
        let known = self.tables.iter().filter(|(name, table)| !name.ends_with(&taken_from(table.id)));
        known.map(|(name, table)| (name.clone(), table.by_name)).collect()
    }

    /// Lets rows travel as they do where a snapshot was made. It stays when the fold of the snapshot is taken back: it is how the log is.
    ///
    /// Own changes that are on their way have their shards already. Their table keeps what it has, and is then found by
    /// [`State::tables_out_of_order`] as everywhere.
    pub(super) fn take_routing(&mut self, routing: &Routing) -> Result<(), ApplyError> {
        for (name, by_name) in routing {
            let Some(known) = self.tables.get_mut(name) else {
                let insert = "INSERT INTO tables(name, by_name) VALUES(?1, ?2)";
                self.db.prepare_cached(insert)?.execute(params![name, by_name])?;
                let id = self.db.last_insert_rowid();
                let table = TableState { id, base_rows: 0, dirty: false, uniques: String::new(), by_name: *by_name };
                self.tables.insert(name.clone(), table);
                continue;
            };
            if known.by_name == *by_name {
                continue;
            }
            let is_on_its_way = "SELECT 1 FROM pending_table t JOIN pending p ON p.id = t.pending_id
                WHERE t.table_id = ?1 AND p.folded = 0";
            if self.db.prepare_cached(is_on_its_way)?.exists([known.id])? {
                continue;
            }
            known.by_name = *by_name;
            let update = "UPDATE tables SET by_name = ?2 WHERE id = ?1";
            self.db.prepare_cached(update)?.execute(params![known.id, by_name])?;
        }
        self.forget_tables();
        Ok(())
    }

    /// Tables whose rows travel in many shards although they have UNIQUE values by now: changes that collide there are in no order.
    ///
    /// `is_unique` tells it of a table as it is now.
    pub fn tables_out_of_order(&self, is_unique: impl Fn(&str) -> bool) -> Vec<String> {
        let apart = self.tables.iter().filter(|(_, table)| !table.by_name).map(|(name, _)| name);
        apart.filter(|name| is_unique(name)).cloned().collect()
    }
}
