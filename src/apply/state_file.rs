//! The tables of `state.db`, and what makes those of earlier versions into them.

use std::path::Path;

use rusqlite::{Connection, params};

use super::error::ApplyError;
use super::state::origin_bytes;
use super::versions::take_old_versions;
use crate::log::Origin;

/// "WDCK": tells our file from any other SQLite database.
const APPLICATION_ID: i64 = 0x5744_434b;

/// The version of the tables below.
const VERSION: i64 = 8;

/// Columns named `*_before` hold what counts again when an intent turns out never to have happened.
const TABLES: &str = "
CREATE TABLE meta(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tables(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, dirty INTEGER NOT NULL DEFAULT 0, uniques TEXT NOT NULL DEFAULT '', by_name INTEGER NOT NULL DEFAULT 0);
CREATE TABLE shapes(id INTEGER PRIMARY KEY, columns BLOB NOT NULL UNIQUE);
CREATE TABLE positions(shard INTEGER PRIMARY KEY, seq INTEGER NOT NULL DEFAULT 0, seq_before INTEGER NOT NULL DEFAULT 0, batch_no_sealed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE origins(shard INTEGER NOT NULL, origin BLOB NOT NULL,
  batch_no INTEGER NOT NULL, round_no INTEGER NOT NULL, part INTEGER NOT NULL,
  batch_no_before INTEGER NOT NULL DEFAULT 0, round_no_before INTEGER NOT NULL DEFAULT 0, part_before INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(shard, origin)) WITHOUT ROWID;
CREATE TABLE pending(id INTEGER PRIMARY KEY, shard INTEGER NOT NULL, tx INTEGER NOT NULL, unit_bytes INTEGER NOT NULL, batch_no INTEGER, folded INTEGER NOT NULL DEFAULT 0, barrier INTEGER NOT NULL DEFAULT 0, runs BLOB, laid_out INTEGER NOT NULL DEFAULT 0);
CREATE INDEX pending_sealed ON pending(shard, batch_no);
CREATE INDEX pending_transaction ON pending(shard, tx, id);
CREATE INDEX pending_waiting ON pending(id) WHERE batch_no IS NULL;
CREATE INDEX pending_folded ON pending(id) WHERE folded = 1;
CREATE INDEX pending_barrier ON pending(shard, id) WHERE barrier = 1;
CREATE TABLE pending_unit(id INTEGER PRIMARY KEY, unit BLOB NOT NULL, base BLOB);
CREATE TABLE pending_table(table_id INTEGER NOT NULL, pending_id INTEGER NOT NULL, PRIMARY KEY(table_id, pending_id)) WITHOUT ROWID;
CREATE TABLE sealed(shard INTEGER NOT NULL, batch_no INTEGER NOT NULL, round_no INTEGER NOT NULL, part INTEGER NOT NULL,
  piece_unit INTEGER, piece_index INTEGER, piece_count INTEGER, piece_start INTEGER, piece_end INTEGER, acknowledged INTEGER NOT NULL DEFAULT 0, barrier INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY(shard, batch_no)) WITHOUT ROWID;
CREATE TABLE base(table_id INTEGER NOT NULL, key BLOB NOT NULL, entry BLOB NOT NULL, PRIMARY KEY(table_id, key)) WITHOUT ROWID;
CREATE TABLE base_before(table_id INTEGER NOT NULL, key BLOB NOT NULL, entry BLOB, PRIMARY KEY(table_id, key)) WITHOUT ROWID;
CREATE TABLE claims(table_id INTEGER NOT NULL, hash INTEGER NOT NULL, PRIMARY KEY(table_id, hash)) WITHOUT ROWID;
CREATE TABLE pieces(shard INTEGER NOT NULL, origin BLOB NOT NULL, piece_index INTEGER NOT NULL,
  fresh INTEGER NOT NULL, spent INTEGER NOT NULL DEFAULT 0, bytes BLOB NOT NULL, PRIMARY KEY(shard, origin, piece_index));
CREATE TABLE intent(only INTEGER PRIMARY KEY CHECK (only = 1), digest BLOB NOT NULL);
CREATE TABLE intent_versions(chunk INTEGER NOT NULL, sign INTEGER NOT NULL, first INTEGER NOT NULL, hashes BLOB NOT NULL, PRIMARY KEY(chunk, sign, first)) WITHOUT ROWID;
CREATE TABLE conflicts(id INTEGER PRIMARY KEY AUTOINCREMENT, recorded_at INTEGER NOT NULL, kind TEXT NOT NULL, table_name TEXT NOT NULL, columns BLOB NOT NULL, key BLOB NOT NULL,
  kept BLOB, lost BLOB, kept_origin BLOB, lost_origin BLOB, fresh INTEGER NOT NULL);
CREATE INDEX conflicts_fresh ON conflicts(id) WHERE fresh = 1;
CREATE INDEX conflicts_key ON conflicts(table_name, key);
CREATE TABLE names(table_name TEXT NOT NULL, column_name TEXT NOT NULL, now TEXT, PRIMARY KEY(table_name, column_name)) WITHOUT ROWID;
CREATE TABLE schema_rounds(origin BLOB PRIMARY KEY, round_no INTEGER NOT NULL, round_no_before INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE steps_made(digest BLOB NOT NULL, origin BLOB NOT NULL, tx INTEGER NOT NULL, seq INTEGER, PRIMARY KEY(digest, origin, tx)) WITHOUT ROWID;
CREATE TABLE births(table_name TEXT NOT NULL, origin BLOB NOT NULL, tx INTEGER NOT NULL, seq INTEGER, PRIMARY KEY(table_name, origin)) WITHOUT ROWID;
CREATE TABLE fills(table_name TEXT NOT NULL, column_name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY(table_name, column_name)) WITHOUT ROWID;
CREATE TABLE beginnings(table_name TEXT NOT NULL, beginning BLOB NOT NULL, now TEXT, PRIMARY KEY(table_name, beginning)) WITHOUT ROWID;
CREATE TABLE intent_schema(kind TEXT NOT NULL, name TEXT NOT NULL, sql TEXT, PRIMARY KEY(kind, name)) WITHOUT ROWID;
CREATE TABLE moved_in(table_id INTEGER NOT NULL, shard INTEGER NOT NULL, fresh INTEGER NOT NULL, folded BLOB, PRIMARY KEY(table_id, shard)) WITHOUT ROWID;
";

/// What makes a state of version 1 one of version 2, which knows changes of the schema.
const FROM_1: &str = "
ALTER TABLE tables ADD COLUMN by_name INTEGER NOT NULL DEFAULT 0;
UPDATE tables SET by_name = uniques <> '';
ALTER TABLE pending ADD COLUMN barrier INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sealed ADD COLUMN barrier INTEGER NOT NULL DEFAULT 0;
CREATE TABLE names(table_name TEXT NOT NULL, column_name TEXT NOT NULL, now TEXT, PRIMARY KEY(table_name, column_name)) WITHOUT ROWID;
CREATE TABLE schema_rounds(origin BLOB PRIMARY KEY, round_no INTEGER NOT NULL, round_no_before INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE schema_steps(digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE births(table_name TEXT NOT NULL, origin BLOB NOT NULL, tx INTEGER NOT NULL, seq INTEGER, PRIMARY KEY(table_name, origin)) WITHOUT ROWID;
CREATE TABLE fills(table_name TEXT NOT NULL, column_name TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY(table_name, column_name)) WITHOUT ROWID;
";

/// What makes a state of version 2 one of version 3, in which an intent of any size fits.
const FROM_2: &str = "
CREATE TABLE intent_versions(chunk INTEGER NOT NULL, sign INTEGER NOT NULL, first INTEGER NOT NULL, hashes BLOB NOT NULL, PRIMARY KEY(chunk, sign, first)) WITHOUT ROWID;
";

/// What makes a state of version 3 one of version 4, in which the rows of a table can move into one shard, and which knows how
/// tables and columns began.
const FROM_3: &str = "
CREATE TABLE beginnings(table_name TEXT NOT NULL, beginning BLOB NOT NULL, now TEXT, PRIMARY KEY(table_name, beginning)) WITHOUT ROWID;
CREATE TABLE intent_schema(kind TEXT NOT NULL, name TEXT NOT NULL, sql TEXT, PRIMARY KEY(kind, name)) WITHOUT ROWID;
CREATE TABLE moved_in(table_id INTEGER NOT NULL, shard INTEGER NOT NULL, fresh INTEGER NOT NULL, PRIMARY KEY(table_id, shard)) WITHOUT ROWID;
";

/// What makes a state of version 4 one of version 5, which knows where changes of the schema stand on the log.
const FROM_4: &str = "
CREATE TABLE steps_made(digest BLOB NOT NULL, origin BLOB NOT NULL, tx INTEGER NOT NULL, seq INTEGER, PRIMARY KEY(digest, origin, tx)) WITHOUT ROWID;
INSERT INTO steps_made(digest, origin, tx) SELECT digest, x'', 0 FROM schema_steps;
DROP TABLE schema_steps;
";

/// What makes a state of version 5 one of version 6, which finds the changes of the schema among many pending units.
const FROM_5: &str = "
CREATE INDEX pending_barrier ON pending(shard, id) WHERE barrier = 1;
";

/// What makes a state of version 6 one of version 7, in which base may be kept with the units it comes from.
const FROM_6: &str = "
ALTER TABLE pending ADD COLUMN runs BLOB;
ALTER TABLE pending ADD COLUMN laid_out INTEGER NOT NULL DEFAULT 0;
ALTER TABLE pending_unit ADD COLUMN base BLOB;
";

/// What makes a state of version 7 one of version 8, which knows what of each node was folded when rows moved.
const FROM_7: &str = "
ALTER TABLE moved_in ADD COLUMN folded BLOB;
";

/// Makes the tables of a new file, brings those of an earlier version up to date, and refuses what is not ours.
///
/// # Errors
/// [`ApplyError::NotState`], [`ApplyError::StateVersion`], or that the file cannot be written.
pub(super) fn prepare(db: &Connection, path: &Path, database: &str, origin: Origin) -> Result<(), ApplyError> {
    let application_id: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let objects: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let shown = || path.display().to_string();
    if objects == 0 && application_id == 0 && version == 0 {
        return create(db, database, origin);
    }
    if application_id != APPLICATION_ID {
        return Err(ApplyError::NotState { path: shown() });
    }
    if !(1..=VERSION).contains(&version) {
        return Err(ApplyError::StateVersion { path: shown(), found: version, known: VERSION });
    }
    if version == VERSION { Ok(()) } else { upgrade(db) }
}

fn create(db: &Connection, database: &str, origin: Origin) -> Result<(), ApplyError> {
    // One transaction: an interrupted creation leaves an empty file, which is a new one.
    db.execute_batch("BEGIN IMMEDIATE")?;
    db.execute_batch(TABLES)?;
    db.execute(
        "INSERT INTO meta(name, value) VALUES('database', ?1), ('origin', ?2)",
        params![database.as_bytes(), origin_bytes(origin)],
    )?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", VERSION)?;
    Ok(db.execute_batch("COMMIT")?)
}

/// One transaction, so that a crash leaves the version that was there. Whoever was quicker has done it.
fn upgrade(db: &Connection) -> Result<(), ApplyError> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let upgraded = (|| {
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version < 2 {
            db.execute_batch(FROM_1)?;
        }
        if version < 3 {
            db.execute_batch(FROM_2)?;
            take_old_versions(db)?;
        }
        if version < 4 {
            db.execute_batch(FROM_3)?;
        }
        if version < 5 {
            db.execute_batch(FROM_4)?;
        }
        if version < 6 {
            db.execute_batch(FROM_5)?;
        }
        if version < 7 {
            db.execute_batch(FROM_6)?;
        }
        if version < 8 {
            db.execute_batch(FROM_7)?;
        }
        Ok(db.pragma_update(None, "user_version", VERSION)?)
    })();
    db.execute_batch(if upgraded.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    upgraded
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::apply::state::State;

    /// Tables and indexes, each with its columns as SQLite sees them. (The order of columns that ALTER added is another.)
    fn structure(db: &Connection) -> BTreeSet<String> {
        let sql = "SELECT m.type || ' ' || m.name || ' ' || coalesce(c.name, '') || ' ' || coalesce(c.type, '') || coalesce(c.\"notnull\", '')
                || coalesce(c.dflt_value, '') || coalesce(c.pk, '') || coalesce(i.name, '')
            FROM sqlite_schema m LEFT JOIN pragma_table_xinfo(m.name) c LEFT JOIN pragma_index_info(m.name) i";
        db.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn a_state_of_any_earlier_version_becomes_one_of_this() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin { node_id: 1, epoch: 7 };
        let new = State::open(&folder.path().join("new"), "app", origin).unwrap();
        let scripts = [
            (1, include_str!("../../fixtures/state/version-1.sql")),
            (2, include_str!("../../fixtures/state/version-2.sql")),
            (3, include_str!("../../fixtures/state/version-3.sql")),
            (4, include_str!("../../fixtures/state/version-4.sql")),
            (5, include_str!("../../fixtures/state/version-5.sql")),
            (6, include_str!("../../fixtures/state/version-6.sql")),
            (7, include_str!("../../fixtures/state/version-7.sql")),
        ];
        assert_eq!(scripts.len() as i64, VERSION - 1, "each earlier version has a script");
        for (version, script) in scripts {
            let path = folder.path().join(version.to_string());
            let db = Connection::open(&path).unwrap();
            db.execute_batch(script).unwrap();
            db.execute(
                "INSERT INTO meta(name, value) VALUES('database', CAST('app' AS BLOB)), ('origin', ?1)",
                [origin_bytes(origin)],
            )
            .unwrap();
            db.execute_batch("INSERT INTO tables(id, name, uniques) VALUES(1, 'plain', ''), (2, 'unique_too', 'x')")
                .unwrap();
            db.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
            db.pragma_update(None, "user_version", version).unwrap();
            drop(db);
            let state = State::open(&path, "app", Origin { node_id: 1, epoch: 8 }).unwrap();
            assert_eq!(structure(&state.db), structure(&new.db), "version {version}");
            assert_eq!(state.origin(), origin, "version {version}");
            let found: i64 = state.db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
            assert_eq!(found, VERSION);
            if version == 1 {
                assert!(
                    state.tables["unique_too"].travels.is_by_name() && !state.tables["plain"].travels.is_by_name(),
                    "routing is as it was"
                );
            }
        }
    }
}
