//! Tables that stand aside while one of their name is made anew.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::error::ApplyError;
use super::schema_steps::{Maker, begins, catalogue_of};
use super::sql::quoted;
use crate::log::SchemaStep;
use crate::schema::{Catalogue, Content, Module, VirtualTable};

pub(super) fn is_virtual(sql: &str) -> bool {
    begins(sql, "create virtual ")
}

/// The columns that can be written.
fn columns_written(conn: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut found = conn.prepare("SELECT name FROM pragma_table_xinfo(?1) WHERE hidden = 0")?;
    found.query_map([table], |row| row.get(0))?.collect()
}

/// The names that are taken, in lower case, and one that is free.
pub(super) fn name_aside(catalogue: &Catalogue) -> (BTreeSet<String>, String) {
    let taken: BTreeSet<String> = catalogue.rows().iter().map(|row| row.name.to_ascii_lowercase()).collect();
    let aside = (0_u32..).map(|no| format!("woodchuck_old_{no}")).find(|name| !taken.contains(name));
    (taken, aside.unwrap_or_default())
}

impl Maker<'_, '_> {
    /// Gives a virtual table another definition: made anew under its name, with the rows that both definitions have a place for. (An index of
    /// another table is filled from that later.)
    pub(super) fn remake(&mut self, step: &SchemaStep, after: &str) -> Result<(), ApplyError> {
        let refused = Maker::refused(step);
        let (_, aside) = name_aside(&catalogue_of(self.conn)?);
        let old = columns_written(self.conn, &step.name).map_err(&refused)?;
        self.move_aside(step, &aside)?;
        self.run(step, after)?;
        let catalogue = catalogue_of(self.conn)?;
        let find = |name: &str| catalogue.virtual_tables().iter().find(|table| table.name.eq_ignore_ascii_case(name));
        // Rows of others than these are not there, or are another table's.
        let holds = |table: &VirtualTable| table.content == Content::Own || table.module == Module::Rtree;
        if let (Some(from), Some(to)) = (find(&aside), find(&step.name))
            && holds(from)
            && holds(to)
        {
            let new = columns_written(self.conn, &step.name).map_err(&refused)?;
            let mut both: Vec<&String> =
                new.iter().filter(|name| old.iter().any(|other| other.eq_ignore_ascii_case(name))).collect();
            let rowid = "rowid".to_owned();
            if to.module != Module::Rtree {
                both.insert(0, &rowid);
            }
            let list = both.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
            let (into, aside) = (quoted(&step.name), quoted(&aside));
            self.conn
                .execute(&format!("INSERT INTO {into}({list}) SELECT {list} FROM {aside}"), [])
                .map_err(&refused)?;
        }
        self.run(step, &format!("DROP TABLE {}", quoted(&aside)))
    }

    /// The old way of renaming leaves alone what speaks of the table, which is soon there again.
    pub(super) fn move_aside(&self, step: &SchemaStep, aside: &str) -> Result<(), ApplyError> {
        let refused = Maker::refused(step);
        self.pragma("legacy_alter_table = ON", &refused)?;
        let moved = self.run(step, &format!("ALTER TABLE {} RENAME TO {}", quoted(&step.name), quoted(aside)));
        self.pragma("legacy_alter_table = OFF", &refused)?;
        moved
    }
}
