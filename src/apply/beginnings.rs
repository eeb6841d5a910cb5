//! What became of tables and columns, by how they began.
//!
//! A name can be given up and given again, and who has not seen that means the old thing by it. A beginning is never given again: it is the
//! thing's first name and the transaction that made it. So it travels with what is not called as it always was, and is looked up before any
//! name. Whether a thing is still there where a change of it stands in the log is then the same for every node: changes of the schema are in
//! one order, and every shard is folded up to them.
//!
//! What has a beginning but no entry here has always been there, under the name that it has.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::alteration::ColumnStep;
use super::codec::{Reader, push_varint};
use super::error::ApplyError;
use super::names::{Birth, Named};
use super::shape::{Tables, shape_of};
use super::state::State;
use crate::log::{Beginning, Origin, SchemaStep, TableShape};
use crate::schema::Table;

/// The place of the table itself among the beginnings of its shape.
pub(super) const THE_TABLE: u16 = 0;

/// In the place of a table's name: the things are tables. No table is called so.
const TABLES: &str = "";

/// What stands between the name of a column and its beginning where both are kept as one text.
const SEPARATOR: char = '\u{1}';

/// Of what was always there under this name.
pub(super) fn always(name: &str) -> Beginning {
    Beginning { name: name.to_ascii_lowercase(), made_by: None }
}

fn made(name: &str, birth: &Birth) -> Beginning {
    Beginning { name: name.to_ascii_lowercase(), made_by: Some((birth.origin, birth.tx)) }
}

/// `first name, 0, varints node, epoch, transaction`, or the name and 0 alone. No name holds a zero byte.
fn to_bytes(beginning: &Beginning) -> Vec<u8> {
    let mut bytes = beginning.name.as_bytes().to_vec();
    bytes.push(0);
    if let Some((origin, tx)) = beginning.made_by {
        [origin.node_id, origin.epoch, tx].into_iter().for_each(|number| push_varint(&mut bytes, number));
    }
    bytes
}

fn of_bytes(bytes: &[u8]) -> Result<Beginning, ApplyError> {
    let damaged = || ApplyError::Damaged { what: "how a table or a column began" };
    let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
    let (name, rest) = (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default());
    let name = std::str::from_utf8(name).map_err(|_| damaged())?.to_owned();
    if rest.is_empty() {
        return Ok(Beginning { name, made_by: None });
    }
    let mut reader = Reader::new(rest);
    let origin = Origin { node_id: reader.varint()?, epoch: reader.varint()? };
    Ok(Beginning { name, made_by: Some((origin, reader.varint()?)) })
}

/// The columns of a shape as one text each, with how they began: rows are kept under these.
pub(super) fn columns_kept(shape: &TableShape) -> Vec<String> {
    let with_beginning = |(index, name): (usize, &String)| match shape.beginning(index as u16 + 1) {
        None => name.clone(),
        Some(Beginning { name: first, made_by: None }) => format!("{name}{SEPARATOR}{first}{SEPARATOR}"),
        Some(Beginning { name: first, made_by: Some((origin, tx)) }) => {
            format!("{name}{SEPARATOR}{first}{SEPARATOR}{:016x}{:016x}{tx:016x}", origin.node_id, origin.epoch)
        }
    };
    shape.columns.iter().enumerate().map(with_beginning).collect()
}

/// A column's name and beginning from what [`columns_kept`] made of them.
pub(super) fn column_kept(text: &str) -> (&str, Option<Beginning>) {
    let mut parts = text.rsplitn(3, SEPARATOR);
    let (Some(by), Some(first), Some(name)) = (parts.next(), parts.next(), parts.next()) else { return (text, None) };
    let number = |at: usize| u64::from_str_radix(by.get(at..at + 16)?, 16).ok();
    let made_by = match (by.len(), number(0), number(16), number(32)) {
        (0, ..) => None,
        (48, Some(node_id), Some(epoch), Some(tx)) => Some((Origin { node_id, epoch }, tx)),
        // A name may hold anything.
        _ => return (text, None),
    };
    (name, Some(Beginning { name: first.to_owned(), made_by }))
}

impl State {
    /// What became of a thing; `None` when nothing was ever noted of it, `Some(None)` when it is gone.
    fn became(&self, of: &str, beginning: &Beginning) -> Result<Option<Option<String>>, ApplyError> {
        let sql = "SELECT now FROM beginnings WHERE table_name = ?1 AND beginning = ?2";
        Ok(self.db.prepare_cached(sql)?.query_row(params![of, to_bytes(beginning)], |row| row.get(0)).optional()?)
    }

    /// How a table began that has this name here.
    pub(super) fn table_began(&self, name: &str) -> Result<Beginning, ApplyError> {
        let lower = name.to_ascii_lowercase();
        Ok(self.began(TABLES, &lower)?.unwrap_or_else(|| always(&lower)))
    }

    /// What a table is called now that began so, where that was noted and it is not gone.
    pub(super) fn table_begun(&self, beginning: &Beginning) -> Result<Option<String>, ApplyError> {
        Ok(self.became(TABLES, beginning)?.flatten())
    }

    /// What became of the table that a shape means; `None` when only its name can tell.
    pub(super) fn table_became(&self, shape: &TableShape) -> Result<Option<Option<String>>, ApplyError> {
        match shape.beginning(THE_TABLE) {
            Some(beginning) => self.became(TABLES, beginning),
            None => self.became(TABLES, &always(&shape.name)),
        }
    }

    /// The table that a shape means.
    pub(super) fn table_meant(&self, tables: &dyn Tables, shape: &TableShape) -> Result<Named, ApplyError> {
        match self.table_became(shape)? {
            Some(Some(now)) => self.table_named(tables, &now),
            Some(None) => Ok(Named::Gone),
            None => self.table_named(tables, &shape.name),
        }
    }

    /// What columns of a table are called now, by how they began; `None` for those that are gone.
    pub(super) fn columns_began(&self, table: &str) -> Result<HashMap<Beginning, Option<String>>, ApplyError> {
        let mut found = self.db.prepare_cached("SELECT beginning, now FROM beginnings WHERE table_name = ?1")?;
        let mut rows = found.query([table.to_ascii_lowercase()])?;
        let mut columns = HashMap::new();
        while let Some(row) = rows.next()? {
            columns.insert(of_bytes(&row.get::<_, Vec<u8>>(0)?)?, row.get(1)?);
        }
        Ok(columns)
    }

    /// How what has this name now began, if that is another thing than the name. Of many beginnings the own one: others may come to their
    /// end by changes of the schema that the log has before the one that made it here.
    fn began(&self, of: &str, name: &str) -> Result<Option<Beginning>, ApplyError> {
        let mut found =
            self.db.prepare_cached("SELECT beginning FROM beginnings WHERE table_name = ?1 AND now = ?2")?;
        let mut rows = found.query([of, name])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(of_bytes(&row.get::<_, Vec<u8>>(0)?)?);
        }
        let own = self.origin();
        let rank = |beginning: &Beginning| match beginning.made_by {
            Some((origin, _)) if origin == own => 0,
            Some(_) => 1,
            None => 2,
        };
        Ok(all.into_iter().min_by_key(rank).filter(|beginning| *beginning != always(name)))
    }

    /// The shape under which rows of a table travel, with how the table and its columns began. It is known under this name.
    pub(super) fn shape_of(&self, table: &Arc<Table>, name: &str) -> Result<TableShape, ApplyError> {
        let mut shape = shape_of(table);
        self.tell_beginnings(&mut shape, name)?;
        Ok(shape)
    }

    /// Puts into a shape how the table, which is known under this name, and its columns began.
    pub(super) fn tell_beginnings(&self, shape: &mut TableShape, name: &str) -> Result<(), ApplyError> {
        let lower = name.to_ascii_lowercase();
        let names = [(TABLES, &lower)].into_iter().chain(shape.columns.iter().map(|column| (lower.as_str(), column)));
        let mut beginnings = Vec::new();
        for (place, (of, name)) in (THE_TABLE..).zip(names) {
            beginnings.extend(self.began(of, &name.to_ascii_lowercase())?.map(|beginning| (place, beginning)));
        }
        shape.beginnings = beginnings;
        Ok(())
    }

    fn set_beginning(&self, of: &str, beginning: &Beginning, now: Option<&str>) -> Result<(), ApplyError> {
        let sql = "INSERT OR REPLACE INTO beginnings(table_name, beginning, now) VALUES(?1, ?2, ?3)";
        self.db.prepare_cached(sql)?.execute(params![of, to_bytes(beginning), now])?;
        Ok(())
    }

    /// What has this name and no entry was always there; from now on that has to be said.
    fn note_always(&self, of: &str, name: &str) -> Result<(), ApplyError> {
        let sql = "INSERT OR IGNORE INTO beginnings(table_name, beginning, now) SELECT ?1, ?2, ?3
            WHERE NOT EXISTS (SELECT 1 FROM beginnings WHERE table_name = ?1 AND now = ?3)";
        self.db.prepare_cached(sql)?.execute(params![of, to_bytes(&always(name)), name])?;
        Ok(())
    }

    fn end(&self, of: &str, name: &str) -> Result<(), ApplyError> {
        self.note_always(of, name)?;
        let sql = "UPDATE beginnings SET now = NULL WHERE table_name = ?1 AND now = ?2";
        self.db.prepare_cached(sql)?.execute([of, name])?;
        Ok(())
    }

    fn rename(&self, of: &str, from: &str, to: &str) -> Result<(), ApplyError> {
        self.note_always(of, from)?;
        let sql = "UPDATE beginnings SET now = ?3 WHERE table_name = ?1 AND now = ?2";
        self.db.prepare_cached(sql)?.execute([of, from, to])?;
        Ok(())
    }

    /// Columns of which nobody can speak any more: their table is gone.
    fn forget_columns(&self, table: &str) -> Result<(), ApplyError> {
        self.db.prepare_cached("DELETE FROM beginnings WHERE table_name = ?1")?.execute([table])?;
        Ok(())
    }

    /// A table has another name, in lower case both.
    pub(super) fn rename_beginnings(&self, before: &str, now: &str) -> Result<(), ApplyError> {
        self.rename(TABLES, before, now)?;
        self.forget_columns(now)?;
        let sql = "UPDATE beginnings SET table_name = ?2 WHERE table_name = ?1";
        self.db.prepare_cached(sql)?.execute([before, now])?;
        Ok(())
    }

    /// Takes note of what a step does to a table and its columns.
    pub(super) fn note_beginnings(
        &self,
        step: &SchemaStep,
        columns: &[ColumnStep],
        birth: &Birth,
    ) -> Result<(), ApplyError> {
        let table = step.name.to_ascii_lowercase();
        match (&step.before, &step.after) {
            (_, None) => {
                self.end(TABLES, &table)?;
                return self.forget_columns(&table);
            }
            (None, Some(_)) => return self.set_beginning(TABLES, &made(&table, birth), Some(&table)),
            (Some(_), Some(_)) => {}
        }
        if let Some(before) = step.name_before.as_ref().map(|name| name.to_ascii_lowercase())
            && before != table
        {
            self.rename_beginnings(&before, &table)?;
        }
        for column in columns {
            match column {
                ColumnStep::Add { name, .. } => {
                    let name = name.to_ascii_lowercase();
                    self.set_beginning(&table, &made(&name, birth), Some(&name))?;
                }
                ColumnStep::Drop { name } => self.end(&table, &name.to_ascii_lowercase())?,
                ColumnStep::Rename { from, to, .. } => {
                    self.rename(&table, &from.to_ascii_lowercase(), &to.to_ascii_lowercase())?;
                }
            }
        }
        Ok(())
    }

    /// A table that was made elsewhere is here already, as it is wanted: it has both beginnings.
    pub(super) fn note_table_made_twice(&self, table: &str) -> Result<(), ApplyError> {
        self.note_always(TABLES, &table.to_ascii_lowercase())
    }

    /// A column that was made elsewhere is made here, too, by a change that is pending: it has both beginnings.
    pub(super) fn note_column_made_twice(&self, table: &str, column: &str, birth: &Birth) -> Result<(), ApplyError> {
        let (table, column) = (table.to_ascii_lowercase(), column.to_ascii_lowercase());
        self.set_beginning(&table, &made(&column, birth), Some(&column))
    }

    /// A table that one transaction made was made by another as well.
    pub(super) fn note_table_again(&self, table: &str, first: &Birth, birth: &Birth) -> Result<(), ApplyError> {
        let table = table.to_ascii_lowercase();
        if let Some(now) = self.became(TABLES, &made(&table, first))? {
            self.set_beginning(TABLES, &made(&table, birth), now.as_deref())?;
            now.map_or(Ok(()), |now| self.note_birth_too(&now, birth))?;
        }
        Ok(())
    }

    /// The same of a column of a table that has this name now.
    pub(super) fn note_column_again(
        &self,
        table: &str,
        column: &str,
        first: &Birth,
        birth: &Birth,
    ) -> Result<(), ApplyError> {
        let column = column.to_ascii_lowercase();
        match self.became(table, &made(&column, first))? {
            Some(now) => self.set_beginning(table, &made(&column, birth), now.as_deref()),
            None => Ok(()),
        }
    }

    /// A table that others knew is gone, and an own one, which comes behind that in the order of all, has its name.
    pub(super) fn end_tables_of_others(&self, table: &str) -> Result<(), ApplyError> {
        self.end_of_others(TABLES, &table.to_ascii_lowercase())
    }

    /// As [`State::end_tables_of_others`], of a column.
    pub(super) fn end_columns_of_others(&self, table: &str, column: &str) -> Result<(), ApplyError> {
        self.end_of_others(&table.to_ascii_lowercase(), &column.to_ascii_lowercase())
    }

    fn end_of_others(&self, of: &str, name: &str) -> Result<(), ApplyError> {
        let own = self.origin();
        let mut found =
            self.db.prepare_cached("SELECT beginning FROM beginnings WHERE table_name = ?1 AND now = ?2")?;
        let all = found.query_map([of, name], |row| row.get(0))?.collect::<rusqlite::Result<Vec<Vec<u8>>>>()?;
        for beginning in all {
            let beginning = of_bytes(&beginning)?;
            if beginning.made_by.is_none_or(|(origin, _)| origin != own) {
                self.set_beginning(of, &beginning, None)?;
            }
        }
        Ok(())
    }

    /// A table that others made does not outlive an own change that comes behind it in the order of all.
    pub(super) fn note_table_gone(&self, table: &str, birth: &Birth) -> Result<(), ApplyError> {
        self.set_beginning(TABLES, &made(table, birth), None)
    }

    /// As [`State::note_table_gone`], of a column.
    pub(super) fn note_column_gone(&self, table: &str, column: &str, birth: &Birth) -> Result<(), ApplyError> {
        self.set_beginning(&table.to_ascii_lowercase(), &made(column, birth), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_read_as_it_was_kept() {
        let by = Some((Origin { node_id: u64::MAX, epoch: 7 }, 1 << 40));
        for beginning in [always("É t"), Beginning { name: "a".to_owned(), made_by: by }] {
            assert_eq!(of_bytes(&to_bytes(&beginning)).unwrap(), beginning);
            let columns = vec!["x".to_owned(), "y\u{1}z".to_owned()];
            let shape =
                TableShape { name: "t".to_owned(), columns, key: Vec::new(), beginnings: vec![(1, beginning.clone())] };
            let kept = columns_kept(&shape);
            assert_eq!(column_kept(&kept[0]), ("x", Some(beginning)));
            assert_eq!(column_kept(&kept[1]), ("y\u{1}z", None));
        }
    }
}
