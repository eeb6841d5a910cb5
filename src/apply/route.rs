//! Which shard a row's changes travel in.

use super::replica::Route;
use crate::log::shard_of;
use crate::schema::TableFilter;

/// Rows of plain tables by table and key; rows of tables with UNIQUE beyond the key by table alone (no key is given for those), so that all
/// changes that can collide are in one order. SQLite's own tables, content of virtual tables and tables that the filter leaves out do not travel.
#[must_use]
pub fn route_by_hash(filter: TableFilter, shard_count: u16) -> Route {
    Box::new(move |table, canonical_key| {
        let travels = !table.is_internal() && table.shadow_of.is_none() && filter.matches(&table.name);
        let name = table.first_name.as_ref().unwrap_or(&table.name);
        travels.then(|| shard_of(name, canonical_key, shard_count))
    })
}
