//! What the state knows of names, as bytes: for snapshots, and for a fold that may have to be taken back.
//!
//! ```text
//! varint count of tables, of each: its name as a row of one value, varint count, rows
//! ```
//!
//! A table that is not known here was told by a later version, and is passed over.

use std::collections::BTreeMap;

use rusqlite::params_from_iter;

use super::codec::{Reader, push_row, push_varint};
use super::connection::value_of;
use super::error::ApplyError;
use super::state::{State, from_db};
use crate::format::{Row, Value};
use crate::schema::Bound;

/// A table of `state.db` that is told.
struct Told {
    table: &'static str,
    columns: &'static [&'static str],
    /// How rows that are told come in.
    take: &'static str,
    /// What is told takes the place of what is known.
    replaces: bool,
}

/// What nodes must know alike, or they would take one name for different things.
const TOLD: [Told; 6] = [
    Told {
        table: "names",
        columns: &["table_name", "column_name", "now"],
        take: "INSERT INTO names(table_name, column_name, now) VALUES(?1, ?2, ?3)",
        replaces: true,
    },
    Told {
        table: "fills",
        columns: &["table_name", "column_name", "value"],
        take: "INSERT INTO fills(table_name, column_name, value) VALUES(?1, ?2, ?3)",
        replaces: true,
    },
    Told {
        table: "births",
        columns: &["table_name", "origin", "tx", "seq"],
        take: "INSERT INTO births(table_name, origin, tx, seq) VALUES(?1, ?2, ?3, ?4)",
        replaces: true,
    },
    Told {
        table: "beginnings",
        columns: &["table_name", "beginning", "now"],
        take: "INSERT INTO beginnings(table_name, beginning, now) VALUES(?1, ?2, ?3)",
        replaces: true,
    },
    Told {
        table: "steps_made",
        columns: &["digest", "origin", "tx", "seq"],
        take: "INSERT OR IGNORE INTO steps_made(digest, origin, tx, seq) VALUES(?1, ?2, ?3, ?4)",
        replaces: true,
    },
    // It has what counts when a fold is taken back beside it.
    Told {
        table: "schema_rounds",
        columns: &["origin", "round_no"],
        take: "INSERT INTO schema_rounds(origin, round_no) VALUES(?1, ?2)
            ON CONFLICT DO UPDATE SET round_no = max(round_no, excluded.round_no)",
        replaces: false,
    },
];

/// The numbers of tables, which a fold moves along with names. They are the node's own.
const NUMBERS: (&str, &[&str]) = ("tables", &["id", "name"]);

/// Under this name is kept what was known before a fold.
const BEFORE: &str = "names_before";

/// What a fold ends with that is not taken back any more.
pub(super) const FORGET_NAMES_BEFORE: &str = "DELETE FROM meta WHERE name = 'names_before'";

const DAMAGED: ApplyError = ApplyError::Damaged { what: "what is told of names" };

fn read(bytes: &[u8]) -> Result<Vec<(String, Vec<Row>)>, ApplyError> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    for _ in 0..reader.varint()? {
        let Some(Value::Text(name)) = reader.row()?.pop() else { return Err(DAMAGED) };
        let name = String::from_utf8(name).map_err(|_| DAMAGED)?;
        // A count that is damaged ends with the bytes.
        let rows = (0..reader.varint()?).map(|_| reader.row()).collect::<Result<_, _>>()?;
        all.push((name, rows));
    }
    Ok(all)
}

/// The last round of each origin whose change of the schema is told.
pub(super) fn schema_rounds_told(told: &[u8]) -> Result<BTreeMap<Vec<u8>, u64>, ApplyError> {
    let tables = if told.is_empty() { Vec::new() } else { read(told)? };
    let rows = tables.into_iter().filter(|(table, _)| table == "schema_rounds").flat_map(|(_, rows)| rows);
    rows.map(|row| match &row[..] {
        [Value::Blob(origin), Value::Integer(round_no)] => Ok((origin.clone(), from_db(*round_no))),
        _ => Err(DAMAGED),
    })
    .collect()
}

impl State {
    /// What became of names, for whoever begins or catches up from here.
    pub(super) fn names_told(&self) -> Result<Vec<u8>, ApplyError> {
        let mut out = Vec::new();
        push_varint(&mut out, TOLD.len() as u64);
        TOLD.iter().try_for_each(|told| self.tell(&mut out, told.table, told.columns))?;
        Ok(out)
    }

    fn tell(&self, out: &mut Vec<u8>, table: &str, columns: &[&str]) -> Result<(), ApplyError> {
        push_row(out, &[Value::Text(table.as_bytes().to_vec())]);
        let list = columns.join(", ");
        let mut found = self.db.prepare(&format!("SELECT {list} FROM {table} ORDER BY {list}"))?;
        let mut rows = found.query([])?;
        let mut all: Vec<Row> = Vec::new();
        while let Some(row) = rows.next()? {
            let values = (0..columns.len()).map(|column| row.get_ref(column).map(value_of));
            all.push(values.collect::<rusqlite::Result<_>>()?);
        }
        push_varint(out, all.len() as u64);
        all.iter().for_each(|row| push_row(out, row));
        Ok(())
    }

    /// Takes what a snapshot tells of names in the place of what is known. Whether it tells anything.
    pub(super) fn take_names(&mut self, told: &[u8]) -> Result<bool, ApplyError> {
        if told.is_empty() {
            return Ok(false);
        }
        for (table, rows) in read(told)? {
            let Some(to) = TOLD.iter().find(|to| to.table == table) else { continue };
            self.put(to, &rows)?;
        }
        self.load_births()?;
        self.forget_tables();
        Ok(true)
    }

    fn put(&self, to: &Told, rows: &[Row]) -> Result<(), ApplyError> {
        if to.replaces {
            self.db.execute(&format!("DELETE FROM {}", to.table), [])?;
        }
        let mut take = self.db.prepare_cached(to.take)?;
        for row in rows {
            if row.len() != to.columns.len() {
                return Err(DAMAGED);
            }
            take.execute(params_from_iter(row.iter().map(Bound)))?;
        }
        Ok(())
    }

    /// Keeps what is known of names before a fold changes it, unless that was done: the fold may never come about.
    pub(super) fn keep_names(&self) -> Result<(), ApplyError> {
        if !self.revertible || self.meta(BEFORE)?.is_some() {
            return Ok(());
        }
        let mut out = self.names_told()?;
        self.tell(&mut out, NUMBERS.0, NUMBERS.1)?;
        self.set_meta(BEFORE, &out)
    }

    /// Takes back what a fold that never came about has made of names.
    pub(super) fn restore_names(&self) -> Result<(), ApplyError> {
        let Some(mut before) = self.meta(BEFORE)? else { return Ok(()) };
        // The numbers of tables stand behind what is told.
        if let Some(count) = before.first_mut() {
            *count += 1;
        }
        for (table, rows) in read(&before)? {
            if let Some(to) = TOLD.iter().find(|to| to.table == table).filter(|to| to.replaces) {
                self.put(to, &rows)?;
            } else if table == NUMBERS.0 {
                self.restore_numbers(&rows)?;
            }
        }
        self.db.prepare_cached(FORGET_NAMES_BEFORE)?.execute([])?;
        Ok(())
    }

    fn restore_numbers(&self, rows: &[Row]) -> Result<(), ApplyError> {
        // No two may have one name meanwhile. Those that have come with the fold go with it.
        self.db.execute("UPDATE tables SET name = ' ' || id", [])?;
        let mut take = self.db.prepare_cached("UPDATE tables SET name = ?2 WHERE id = ?1")?;
        for row in rows {
            take.execute(params_from_iter(row.iter().map(Bound)))?;
        }
        self.db.execute("DELETE FROM tables WHERE name = ' ' || id", [])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::alteration::ColumnStep;
    use crate::apply::names::Birth;
    use crate::log::{Origin, SchemaStep};

    const ORIGIN: Origin = Origin { node_id: 1, epoch: 7 };

    fn state(folder: &tempfile::TempDir, name: &str) -> State {
        State::open(&folder.path().join(name), "app", ORIGIN).unwrap()
    }

    fn step(name_before: Option<&str>, name: &str, before: Option<&str>, after: Option<&str>) -> SchemaStep {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (name, table) = (name.to_owned(), name.to_owned());
        let (before, after) = (owned(before), owned(after));
        let (kind, name_before, renamed_columns) = ("table".to_owned(), owned(name_before), None);
        SchemaStep { kind, name, name_before, table, before, after, renamed_columns, tables: None }
    }

    fn note(state: &mut State, step: &SchemaStep, columns: &[ColumnStep]) {
        state.note_step(step, columns, &Birth { origin: ORIGIN, tx: 3, seq: None }).unwrap();
    }

    /// What is in a table of `state.db` and is not told would be known to some nodes and not to others.
    #[test]
    fn every_column_of_what_is_known_of_names_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(&folder, "a");
        for told in &TOLD {
            let sql =
                "SELECT name FROM pragma_table_info(?1) WHERE name NOT LIKE '%\\_before' ESCAPE '\\' ORDER BY cid";
            let mut found = state.db.prepare(sql).unwrap();
            let columns: Vec<String> =
                found.query_map([told.table], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
            assert_eq!(columns, told.columns, "{}", told.table);
        }
    }

    #[test]
    fn what_is_told_is_known_there_and_damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mut here, mut there) = (state(&folder, "a"), state(&folder, "b"));
        note(&mut here, &step(None, "t", Some("CREATE TABLE t(id)"), None), &[]);
        note(&mut here, &step(None, "t", None, Some("CREATE TABLE t(id, a)")), &[]);
        let after = "CREATE TABLE t(id, b DEFAULT 5)";
        let columns = [
            ColumnStep::Drop { name: "a".to_owned() },
            ColumnStep::Add { name: "b".to_owned(), definition: "b DEFAULT 5".to_owned() },
        ];
        note(&mut here, &step(None, "t", Some("CREATE TABLE t(id, a)"), Some(after)), &columns);
        here.set_schema_round(ORIGIN, 9).unwrap();
        let told = here.names_told().unwrap();
        assert!(!there.take_names(&[]).unwrap() && there.take_names(&told).unwrap());
        assert_eq!(there.names_told().unwrap(), told);
        assert!(there.born_again.contains("t") && there.schema_round(ORIGIN).unwrap() == 9);
        for end in 1..told.len() {
            assert!(there.take_names(&told[..end]).is_err(), "cut at {end}");
        }
    }

    /// A node died with an intent that renamed a table, and the database had never committed it. What was pending on the table stood under
    /// the new name then, and the table had the old one.
    #[test]
    fn an_intent_that_is_taken_back_takes_the_names_along() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = state(&folder, "a");
        for name in ["t", "u"] {
            state.table(name, "").unwrap();
        }
        let (told, id) = (state.names_told().unwrap(), state.tables["t"].id);
        state.begin().unwrap();
        state.begin_fold(true).unwrap();
        state.keep_names().unwrap();
        note(&mut state, &step(None, "u", Some("CREATE TABLE u(id)"), None), &[]);
        note(&mut state, &step(Some("t"), "u", Some("CREATE TABLE t(id)"), Some("CREATE TABLE u(id)")), &[]);
        state.table("t", "").unwrap();
        state.keep_names().unwrap();
        assert_eq!(state.tables["u"].id, id);
        state.revert_intent().unwrap();
        state.commit().unwrap();
        assert_eq!(state.names_told().unwrap(), told);
        assert_eq!(state.tables.len(), 2);
        assert_eq!(state.tables["t"].id, id);
    }
}
