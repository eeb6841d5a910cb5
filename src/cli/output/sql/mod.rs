//! A script that repeats the changes: run on a copy of the database as it was, it makes it equal to the database as it is.
//!
//! It is plain SQL, one transaction for each transaction, and needs nothing of whoever runs it: not the `sqlite3` shell's dot-commands,
//! and not the functions that the application's triggers call.
//!
//! * **Triggers** must not fire: what they did is among the changes. SQL has no switch for them (the shell's `.dbconfig` is no SQL and other
//!   runners stumble over it), so the triggers of the tables that a transaction touches are dropped at its beginning and created from their
//!   own text, in their old order, at its end: within the transaction, so that nobody sees the database without them.
//! * **Foreign keys and CHECK constraints** held for the transaction as a whole; on the way they may not. Two PRAGMAs at the top of the
//!   script turn them off for its connection.
//! * **`sqlite_sequence`** is moved by SQLite itself whenever a row is put into an AUTOINCREMENT table. Where that is not known to end right
//!   it is set aside first, put back after the rows, and then changed as the transaction changed it.
//! * **`sqlite_stat4`** is left out: only some builds of SQLite have it, and `ANALYZE` makes it again.
//!
//! Rows that SQL cannot name are left out, with a note: those without a key in a table whose columns hide all names of the rowid. A table
//! that SQLite does not make is an error of kind `Unsupported`.

mod alter;
mod create;
mod literal;
mod rows;
mod schema;
mod virtual_tables;

use std::collections::BTreeSet;
use std::io::{self, Write};

pub use schema::SchemaObject;

use super::printable;
use crate::change::{ChangeSink, Op, RowChange, RowKey, SchemaChange, TxSpan};
use crate::format::{TextEncoding, Value};
use crate::schema::Table;
use rows::Rows;
use schema::SchemaChanges;

const HEADER: &str = "-- Repeats what was committed. Run it on a copy of the database as it was before the first transaction.\n\
                      PRAGMA foreign_keys=OFF;\nPRAGMA ignore_check_constraints=ON;\n";

/// Writes changes as SQL.
#[derive(Debug)]
pub struct SqlScript<W: Write> {
    out: io::BufWriter<W>,
    encoding: TextEncoding,
    objects: Vec<SchemaObject>,
    begun: bool,
    /// Tables of which rows were left out, in lower case.
    left_out: BTreeSet<String>,
    open: Transaction,
}

/// What has come of the transaction that is being taken in.
#[derive(Debug)]
struct Transaction {
    schema: SchemaChanges,
    /// What is done to the tables that stay, once it is needed.
    plan: Option<alter::Plan>,
    /// Deletes of rows that were set aside.
    aside: Rows,
    /// Deletes that must run before the tables change their shape.
    first: Rows,
    rows: Rows,
    sequence: Rows,
    /// Tables whose rows change, in lower case.
    touched: BTreeSet<String>,
    /// AUTOINCREMENT tables that get rows, and those whose counter an UPDATE of the transaction sets.
    counting: BTreeSet<String>,
    counted: BTreeSet<String>,
    sequence_changed: bool,
}

impl Transaction {
    fn new(encoding: TextEncoding) -> Transaction {
        Transaction {
            schema: SchemaChanges::default(),
            plan: None,
            aside: Rows::new(encoding),
            first: Rows::new(encoding),
            rows: Rows::new(encoding),
            sequence: Rows::new(encoding),
            touched: BTreeSet::new(),
            counting: BTreeSet::new(),
            counted: BTreeSet::new(),
            sequence_changed: false,
        }
    }
}

impl Transaction {
    fn plan(&mut self, objects: &[SchemaObject]) -> io::Result<&alter::Plan> {
        match self.plan {
            Some(ref plan) => Ok(plan),
            None => Ok(self.plan.insert(self.schema.plan(objects)?)),
        }
    }

    /// Where the rows of this table (in lower case) are while it is rebuilt.
    fn set_aside(&mut self, table: &str, objects: &[SchemaObject]) -> io::Result<Option<String>> {
        if self.schema.is_empty() {
            return Ok(None);
        }
        Ok(self.plan(objects)?.aside.iter().find(|(name, _)| name == table).map(|(_, aside)| aside.clone()))
    }
}

impl<W: Write> SqlScript<W> {
    /// Makes a writer. `encoding` is the database's; `objects` is its schema as it is before the first transaction, in the order of
    /// `sqlite_schema` (triggers fire in that order). From there on the writer follows the schema changes itself.
    pub fn new(out: W, encoding: TextEncoding, objects: Vec<SchemaObject>) -> SqlScript<W> {
        let open = Transaction::new(encoding);
        SqlScript {
            out: io::BufWriter::with_capacity(64 << 10, out),
            encoding,
            objects,
            begun: false,
            left_out: BTreeSet::new(),
            open,
        }
    }

    /// Whether nothing was left out so far.
    pub fn is_whole(&self) -> bool {
        self.left_out.is_empty()
    }

    /// Says once of a table that its rows are left out, in the script and to whoever makes it.
    fn leave_out(&mut self, table: &Table) -> io::Result<()> {
        if !self.left_out.insert(table.name.to_ascii_lowercase()) {
            return Ok(());
        }
        let name = printable(&table.name);
        let text = format!(
            "table {name} hides the rowid behind its columns: its rows without a key have no name in SQL, and are left out"
        );
        // With stderr gone there is nobody left to tell.
        let _ = writeln!(io::stderr(), "note: {text}");
        writeln!(self.out, "-- {text}")
    }

    /// Returns what was written to. Everything up to the last commit is there.
    pub fn into_inner(self) -> W {
        self.out.into_parts().0
    }

    fn statements(&mut self, statements: &[String]) -> io::Result<()> {
        statements.iter().try_for_each(|sql| {
            self.out.write_all(sql.as_bytes())?;
            self.out.write_all(create::statement_end(sql).as_bytes())
        })
    }
}

impl<W: Write> ChangeSink<io::Error> for SqlScript<W> {
    fn begin(&mut self, span: &TxSpan) -> io::Result<()> {
        self.open = Transaction::new(self.encoding);
        if !self.begun {
            self.begun = true;
            self.out.write_all(HEADER.as_bytes())?;
        }
        if span.repaired {
            return writeln!(self.out, "-- transaction {}, found by comparison", span.tx);
        }
        writeln!(self.out, "-- transaction {}, frames {} to {}", span.tx, span.frame_first, span.frame_last)
    }

    fn schema(&mut self, change: SchemaChange) -> io::Result<()> {
        self.open.schema.push(change);
        Ok(())
    }

    fn change(&mut self, change: RowChange) -> io::Result<()> {
        let goes_with_table = change.op == Op::Delete && self.open.schema.drops(&change.table);
        if matches!(change.key, RowKey::Rowid(_)) && change.table.rowid_name.is_none() && !goes_with_table {
            return self.leave_out(&change.table);
        }
        let open = &mut self.open;
        let table = change.table.name.to_ascii_lowercase();
        match table.as_str() {
            "sqlite_sequence" => {
                open.sequence_changed = true;
                let name = change.after.as_ref().or(change.before.as_ref()).and_then(|row| row.first());
                if let (Op::Update, Some(Value::Text(name))) = (change.op, name) {
                    open.counted.insert(String::from_utf8_lossy(name).to_ascii_lowercase());
                }
                return open.sequence.push(change);
            }
            "sqlite_stat3" | "sqlite_stat4" => return Ok(()),
            _ => {}
        }
        if change.op == Op::Delete {
            if goes_with_table {
                return Ok(());
            }
            if open.schema.is_old_shape(&change.table.name, &change.table.sql) {
                open.touched.insert(table);
                return open.first.push(change);
            }
        } else if change.table.autoincrement {
            open.counting.insert(table.clone());
        }
        let aside = open.set_aside(&table, &self.objects)?;
        if !open.touched.contains(&table) {
            open.touched.insert(table);
        }
        match aside {
            Some(aside) => {
                if change.op != Op::Insert {
                    open.aside.take_out_of(&aside, &change)?;
                }
                open.rows.put_in(&change)
            }
            None => open.rows.push(change),
        }
    }

    fn commit(&mut self, _span: &TxSpan, _changes: u64) -> io::Result<()> {
        let mut open = std::mem::replace(&mut self.open, Transaction::new(self.encoding));
        open.plan(&self.objects)?;
        let plan = open.plan.take().unwrap_or_default();
        let around = open.schema.apply(plan, &mut self.objects, &open.touched);
        let has_sequence = self.objects.iter().any(|object| object.name.eq_ignore_ascii_case("sqlite_sequence"));
        let follows_by_itself = open.counting.is_subset(&open.counted) && !around.moves_sequence;
        let set_aside = has_sequence
            && !around.creates_sequence
            && !follows_by_itself
            && (open.sequence_changed || !open.counting.is_empty() || around.moves_sequence);

        self.out.write_all(b"BEGIN IMMEDIATE;\n")?;
        if set_aside {
            self.out.write_all(
                b"CREATE TEMP TABLE woodchuck_sequence AS SELECT rowid AS id,name,seq FROM main.sqlite_sequence;\n",
            )?;
        }
        // DROP TABLE and DROP INDEX take statistics along; what is made again has kept its own.
        let keeps_statistics = !around.before.is_empty()
            && !around.creates_statistics
            && self.objects.iter().any(|object| object.name.eq_ignore_ascii_case("sqlite_stat1"));
        if keeps_statistics {
            self.out.write_all(
                b"CREATE TEMP TABLE woodchuck_statistics AS SELECT rowid AS id,tbl,idx,stat FROM main.sqlite_stat1;\n",
            )?;
        }
        let (drops, rest): (Vec<String>, Vec<String>) =
            around.before.into_iter().partition(|sql| sql.starts_with("DROP TRIGGER "));
        self.statements(&drops)?;
        open.first.move_to(&mut self.out)?;
        self.statements(&rest)?;
        open.aside.move_to(&mut self.out)?;
        self.statements(&around.put_back)?;
        if keeps_statistics {
            self.out.write_all(
                b"DELETE FROM main.sqlite_stat1;\n\
                  INSERT INTO main.sqlite_stat1(rowid,tbl,idx,stat) SELECT id,tbl,idx,stat FROM temp.woodchuck_statistics;\n\
                  DROP TABLE temp.woodchuck_statistics;\n",
            )?;
        }
        open.rows.move_to(&mut self.out)?;
        if around.creates_sequence {
            self.out.write_all(b"DELETE FROM sqlite_sequence;\n")?;
        } else if set_aside {
            self.out.write_all(
                b"DELETE FROM main.sqlite_sequence;\n\
                  INSERT INTO main.sqlite_sequence(rowid,name,seq) SELECT id,name,seq FROM temp.woodchuck_sequence;\n\
                  DROP TABLE temp.woodchuck_sequence;\n",
            )?;
        }
        open.sequence.move_to(&mut self.out)?;
        self.statements(&around.after)?;
        self.out.write_all(b"COMMIT;\n")?;
        self.out.flush()
    }
}
