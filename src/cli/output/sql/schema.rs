//! Schema changes of a transaction as statements before and after its rows.
//!
//! Before: triggers of touched tables, and views, indexes and tables that are gone or different, are dropped; tables are altered and
//! created. After: indexes, views and triggers are created, last of all the triggers. An index or trigger of a dropped table vanishes
//! with it and is not dropped twice; one of a rebuilt table is made again although it did not change.

use std::collections::BTreeSet;
use std::io;

use super::alter::{self, TableChange};
use super::create::create_table;
use super::literal::quoted_name;
use super::virtual_tables::{VirtualTables, made_sure};
use crate::change::SchemaChange;
use crate::schema::{SchemaRow, Table};

/// An index, table, trigger or view, as `sqlite_schema` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaObject {
    /// `table`, `index`, `view` or `trigger`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The table it belongs to; its own name for tables and views.
    pub table: String,
    /// Its CREATE statement.
    pub sql: String,
}

impl SchemaObject {
    /// The object of a schema row; `None` for automatic indexes, which have no statement.
    #[must_use]
    pub fn of(row: &SchemaRow) -> Option<SchemaObject> {
        let sql = row.sql.clone()?;
        Some(SchemaObject { kind: row.kind.clone(), name: row.name.clone(), table: row.table.clone(), sql })
    }
}

/// The statements around a transaction's rows.
#[derive(Debug, Default)]
pub(super) struct Statements {
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
    /// Puts the rows of rebuilt tables back; after what takes the changed ones out.
    pub(super) put_back: Vec<String>,
    /// Dropped and created tables include ones that count in `sqlite_sequence`, or tables are rebuilt.
    pub(super) moves_sequence: bool,
    /// `sqlite_sequence` comes into being with this transaction.
    pub(super) creates_sequence: bool,
    /// `sqlite_stat1` comes into being with this transaction.
    pub(super) creates_statistics: bool,
}

/// A transaction's schema changes, sorted.
#[derive(Debug, Default)]
pub(super) struct SchemaChanges {
    changes: Vec<SchemaChange>,
    /// Tables that are there before and gone after, lower case.
    dropped: BTreeSet<String>,
}

impl SchemaChanges {
    pub(super) fn push(&mut self, change: SchemaChange) {
        if change.kind == "table" && change.after.is_none() {
            self.dropped.insert(change.name.to_ascii_lowercase());
        }
        self.changes.push(change);
    }

    /// Whether this is a table as it was before and is gone after the transaction: its rows go with it. Another one can have its name by
    /// then.
    pub(super) fn drops(&self, table: &Table) -> bool {
        self.dropped.contains(&table.name.to_ascii_lowercase())
            && self.changes.iter().any(|change| {
                change.kind == "table"
                    && change.after.is_none()
                    && change.name.eq_ignore_ascii_case(&table.name)
                    && change.before.as_deref() == Some(table.sql.as_str())
                    && change.root_before == Some(table.root)
            })
    }

    /// Whether this is a table as it was before a change of its CREATE statement: such rows are found before the change only.
    pub(super) fn is_old_shape(&self, table: &str, sql: &str) -> bool {
        self.changes.iter().any(|change| {
            let after_name = &change.name;
            change.kind == "table"
                && change.after.as_deref().is_some_and(|after| after != sql || !after_name.eq_ignore_ascii_case(table))
                && change.before.as_deref() == Some(sql)
        })
    }

    /// Plans what is done to the tables that stay. `objects` is the schema before.
    ///
    /// # Errors
    /// When a table's text is one that SQLite does not accept.
    pub(super) fn plan(&self, objects: &[SchemaObject]) -> io::Result<alter::Plan> {
        let virtual_tables = VirtualTables::of(&self.changes);
        let mut plan = alter::plan(&self.changed_tables(&virtual_tables))?;
        virtual_tables.plan(&self.changes, objects, &mut plan)?;
        Ok(plan)
    }

    /// Whether there are schema changes at all.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Brings the list of objects up to date and makes the statements. `touched` holds the tables whose rows change, in lower case: their
    /// triggers must not fire.
    pub(super) fn apply(
        self,
        plan: alter::Plan,
        objects: &mut Vec<SchemaObject>,
        touched: &BTreeSet<String>,
    ) -> Statements {
        let mut out = Statements { put_back: plan.put_back, ..Statements::default() };
        let virtual_tables = VirtualTables::of(&self.changes);
        out.moves_sequence = !self.dropped.is_empty() || !self.changed_tables(&virtual_tables).is_empty();

        // Whatever stands on these vanishes with them.
        let mut vanishing = self.dropped.clone();
        vanishing.extend(plan.rebuilt.iter().map(|name| name.to_ascii_lowercase()));
        let views = self.changes.iter().filter(|change| change.kind == "view" && change.before.is_some());
        vanishing.extend(views.map(|change| change.name.to_ascii_lowercase()));
        let muted: BTreeSet<String> = touched.union(&vanishing).cloned().collect();

        // ALTER TABLE looks into every trigger and view, and fails at one that speaks of a table that is gone; so none is there meanwhile.
        let alters = plan.first.iter().chain(&plan.statements).any(|statement| statement.starts_with("ALTER TABLE"));
        let mut again: Vec<(String, String)> = Vec::new();
        let mut views = Vec::new();
        for object in objects.iter() {
            let key = (object.kind.clone(), object.name.to_ascii_lowercase());
            let table = object.table.to_ascii_lowercase();
            let changes = self.changes.iter().any(|change| change.kind == object.kind && same_before(change, object));
            match object.kind.as_str() {
                "view" if alters && !changes => {
                    views.push(format!("DROP VIEW {}", quoted_name(&object.name)));
                    again.push(key);
                }
                "trigger" if changes || alters || muted.contains(&table) => {
                    out.before.push(format!("DROP TRIGGER {}", quoted_name(&object.name)));
                    again.push(key);
                }
                "index" if !changes && vanishing.contains(&table) => again.push(key),
                _ => {}
            }
        }
        out.before.extend(views);
        out.before.extend(plan.first);
        self.drop_others(&mut out, objects, (&vanishing, &virtual_tables));
        out.before.extend(plan.statements);
        self.create_tables(&mut out, &virtual_tables);

        self.update(objects);
        let created = |object: &SchemaObject| {
            self.changes.iter().any(|change| {
                change.kind == object.kind && change.after.is_some() && change.name.eq_ignore_ascii_case(&object.name)
            })
        };
        for kind in ["index", "view", "trigger"] {
            for object in objects.iter().filter(|object| object.kind == kind) {
                let key = (object.kind.clone(), object.name.to_ascii_lowercase());
                if created(object) || again.contains(&key) {
                    out.after.push(object.sql.clone());
                }
            }
        }
        let creates = |name: &str| {
            self.changes.iter().any(|change| {
                change.kind == "table" && change.before.is_none() && change.name.eq_ignore_ascii_case(name)
            })
        };
        out.creates_sequence = creates("sqlite_sequence");
        out.creates_statistics = creates("sqlite_stat1");
        out
    }

    fn changed_tables(&self, virtual_tables: &VirtualTables) -> Vec<TableChange> {
        let tables = self.changes.iter().filter(|change| change.kind == "table" && !virtual_tables.changes(change));
        tables
            .filter_map(|change| {
                let (before, after) = (change.before.clone()?, change.after.clone()?);
                let name_before = create_table(&before).map_or_else(|| change.name.clone(), |table| table.name);
                let renamed_columns = change.renamed_columns.clone();
                Some(TableChange { name_before, name_after: change.name.clone(), before, after, renamed_columns })
            })
            .collect()
    }

    fn drop_others(
        &self,
        out: &mut Statements,
        objects: &[SchemaObject],
        (vanishing, virtual_tables): (&BTreeSet<String>, &VirtualTables),
    ) {
        // A table's rename gives its indexes another table; what counts is where they stood.
        let stood_on = |change: &SchemaChange| {
            let object = objects.iter().find(|object| object.kind == change.kind && same_before(change, object));
            object.map_or(&change.table, |object| &object.table).to_ascii_lowercase()
        };
        for kind in ["view", "index", "table"] {
            for change in self.changes.iter().filter(|change| change.kind == kind && change.before.is_some()) {
                let name = change.name.to_ascii_lowercase();
                let skip = match kind {
                    "index" => vanishing.contains(&stood_on(change)),
                    // VACUUM leaves `sqlite_sequence` out when nothing counts in it any more; no statement can drop it.
                    "table" => change.after.is_some() || name == "sqlite_sequence" || virtual_tables.takes_along(&name),
                    _ => false,
                };
                if !skip {
                    out.before.push(format!("DROP {} {}", kind.to_ascii_uppercase(), quoted_name(&change.name)));
                }
            }
        }
    }

    fn create_tables(&self, out: &mut Statements, virtual_tables: &VirtualTables) {
        let mut analyzed = false;
        let mut shadows = Vec::new();
        for change in self.changes.iter().filter(|change| change.kind == "table" && change.before.is_none()) {
            let Some(sql) = &change.after else { continue };
            let name = change.name.to_ascii_lowercase();
            if name.starts_with("sqlite_stat") {
                if !analyzed {
                    out.before.push("ANALYZE sqlite_master".to_owned());
                    analyzed = true;
                }
            } else if virtual_tables.brings(&name) {
                // The virtual table makes it, with rows of its own.
                shadows.push(made_sure(sql));
                shadows.push(format!("DELETE FROM {}", quoted_name(&change.name)));
            } else if !name.starts_with("sqlite_") {
                out.before.push(sql.clone());
            }
        }
        out.before.append(&mut shadows);
    }

    fn update(&self, objects: &mut Vec<SchemaObject>) {
        for change in &self.changes {
            let known = objects.iter().position(|object| object.kind == change.kind && same_before(change, object));
            match (&change.after, known) {
                (Some(sql), _) => {
                    let object = SchemaObject {
                        kind: change.kind.clone(),
                        name: change.name.clone(),
                        table: change.table.clone(),
                        sql: sql.clone(),
                    };
                    match known.and_then(|index| objects.get_mut(index)) {
                        Some(slot) => *slot = object,
                        None => objects.push(object),
                    }
                }
                (None, Some(index)) => {
                    objects.remove(index);
                }
                (None, None) => {}
            }
        }
    }
}

/// Whether the change is one of this object as it was. (A rename changes the name; the text before is then what they share.)
fn same_before(change: &SchemaChange, object: &SchemaObject) -> bool {
    change.before.as_deref().is_some_and(|before| before == object.sql)
        && (change.name.eq_ignore_ascii_case(&object.name) || change.after.is_some())
        || change.before.is_some() && change.name.eq_ignore_ascii_case(&object.name)
}
