//! Catching up from a snapshot while the application goes on: for the shards where it is ahead its rows become the fold.
//!
//! `undo everything → write the rows that differ → own units that the snapshot contains leave pending → redo`
//!
//! The snapshot is attached to the applying connection. Where what may differ was looked for beforehand only that is compared under the
//! write lock; else SQLite finds what differs, in the order of the keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::beforehand::Beforehand;
use super::codec::{Reader, push_key};
use super::error::{ApplyError, Cannot};
use super::fold::{FoldCounts, Folder};
use super::net_effect::NetEffect;
use super::replica::{Phase, Replica, Route, Taking, taking};
use super::shape::{LocalTable, Merge, Tables, shape_of};
use super::snapshot::tables_of;
use super::state::State;
use super::statements::Written;
use super::undo_redo::Call;
use crate::change::{RowKey, canonical_key};
use crate::format::Value;
use crate::log::{Routing, ShardId, Stand};
use crate::schema::Table;

/// The name under which the snapshot's database is attached.
pub const SNAPSHOT_SCHEMA: &str = "woodchuck_snapshot";

/// What a table of the difference holds: keys of rows that differ or are there alone, and whether the snapshot has the row.
const DIFFERENCE: &str =
    "CREATE TEMP TABLE IF NOT EXISTS woodchuck_difference(key BLOB NOT NULL, in_snapshot INTEGER NOT NULL);
    DELETE FROM temp.woodchuck_difference";

/// What catching up works with.
struct Ahead<'a> {
    conn: &'a Connection,
    /// The tables of the database.
    tables: &'a dyn Tables,
    /// The tables of the snapshot.
    snapshot: &'a [Arc<Table>],
    stand: &'a Stand,
    routing: &'a Routing,
    route: &'a Route,
    taking: Taking<'a>,
    merge: Merge,
    beforehand: Option<&'a mut Beforehand>,
}

impl Replica {
    /// Catches up from a snapshot, attached to `conn` as [`SNAPSHOT_SCHEMA`], with what its manifest says: in the shards where it stands
    /// ahead of what is applied, the snapshot's rows become the fold, and pending stays on top. `route` tells the shards of rows, of all
    /// tables that travel. `beforehand` is what may differ, if that was looked for while the tables were what they are. Ends as
    /// [`Replica::fold`] does, with a commit or a rollback.
    ///
    /// # Errors
    /// When a database fails, or with [`ApplyError::Cannot`] when a table is not here as the snapshot has it. Then [`Replica::rollback`]
    /// must follow.
    ///
    /// # Panics
    /// Unless begun. Captured transactions must have been drained since.
    pub fn catch_up(
        &mut self,
        conn: &Connection,
        tables: &dyn Tables,
        (stand, routing): (&Stand, &Routing),
        route: &Route,
        beforehand: Option<&mut Beforehand>,
    ) -> Result<FoldCounts, ApplyError> {
        assert!(self.begun && matches!(self.phase, Phase::Idle | Phase::Recovering(_)), "catching up follows begin");
        self.abandon_intent()?;
        let snapshot = tables_of(conn, SNAPSHOT_SCHEMA)?;
        self.state.begin()?;
        let (merge, taking) = (self.merge, taking(&self.taken, &self.route));
        let mut with = Ahead { conn, tables, snapshot: &snapshot, stand, routing, route, taking, merge, beforehand };
        match catch_up(&mut self.state, &mut with) {
            Ok((net, counts)) => {
                self.phase = Phase::Folded(net);
                Ok(counts)
            }
            Err(error) => {
                self.state.rollback()?;
                Err(error)
            }
        }
    }
}

fn failed(source: rusqlite::Error) -> ApplyError {
    ApplyError::Database { doing: "comparing with the snapshot", source }
}

/// One attempt, inside open transactions of both databases.
fn catch_up(state: &mut State, with: &mut Ahead<'_>) -> Result<(NetEffect, FoldCounts), ApplyError> {
    state.begin_fold(true)?;
    let mut ahead = BTreeSet::new();
    for (shard, stand) in with.stand {
        if stand.seq > state.position(*shard)? {
            ahead.insert(*shard);
        }
    }
    if !ahead.is_empty() {
        state.take_routing(with.routing)?;
    }
    let own = state.origin();
    let folder = Folder::new(with.conn)?;
    let mut call = Call::new(state, folder, (with.tables, with.taking), with.merge, true);
    note_base(&mut call, with)?;
    call.undo_all()?;
    for table in with.snapshot {
        // What does not travel is no business of the log's.
        if (with.route)(table, None).is_none() {
            continue;
        }
        let here = with.tables.table(&table.name).ok_or_else(|| Cannot::NoTable { table: table.name.clone() })?;
        let here = call.state.local_table(&here)?;
        // Refuses what has columns that are missing here, and other keys.
        let fit = here.fit(&shape_of(table), true)?;
        if !fit.is_same() {
            return Err(Cannot::NoColumn { table: table.name.clone(), column: missing_column(&here, table) }.into());
        }
        // In which shards the fold has them, whatever own changes that are on their way are in.
        let by_name = with.routing.get(&here.name_lower).map_or(here.travels.is_by_name(), |travels| travels.by_name);
        let is_ahead = |key: &[u8]| {
            let key = Some(key).filter(|_| !by_name);
            (with.route)(&here.table, key).is_some_and(|shard| ahead.contains(&shard))
        };
        if by_name && !is_ahead(&[]) {
            continue;
        }
        call.drop_hidden(&here, &is_ahead)?;
        // What is the application's alone looks like a difference there, and would be one for ever.
        match with.beforehand.as_deref().filter(|_| !here.is_filtered()) {
            Some(beforehand) if beforehand.has(&here) => collect_of(with.conn, &call, &here, beforehand, &is_ahead)?,
            Some(_) | None => collect(with.conn, &call, &here, &is_ahead)?,
        }
        take_rows(with.conn, &mut call, &here)?;
    }
    with.conn.execute_batch("DROP TABLE IF EXISTS temp.woodchuck_difference").map_err(failed)?;
    for (shard, stand) in with.stand.iter().filter(|(shard, _)| ahead.contains(shard)) {
        call.state.set_position(*shard, stand.seq)?;
        for (origin, folded) in &stand.folded {
            call.state.set_folded(*shard, *origin, *folded)?;
        }
        let mine = stand.folded.iter().find(|(origin, _)| *origin == own).map_or(0, |(_, folded)| folded.batch_no);
        if mine > call.state.batch_no_sealed(*shard)? {
            return Err(Cannot::NotOurs { shard: *shard, batch_no: mine }.into());
        }
        call.state.leave_pending(*shard, mine)?;
    }
    for table in with.snapshot {
        if let Some(here) = with.tables.table(&table.name) {
            let here = call.state.local_table(&here)?;
            if here.travels.is_by_name() {
                call.send_again(&here)?;
            }
        }
    }
    call.redo()?;
    call.state.versions = std::mem::take(&mut call.folder.net.versions);
    Ok((call.folder.net.net, call.folder.counts))
}

fn missing_column(here: &LocalTable, theirs: &Table) -> String {
    let missing = here.shape.columns.iter().find(|name| theirs.column_index(name).is_none());
    missing.cloned().unwrap_or_else(|| "in the same order".to_owned())
}

/// Rows that show something else than the fold were compared as they showed themselves.
fn note_base(call: &mut Call<'_, '_>, with: &mut Ahead<'_>) -> Result<(), ApplyError> {
    let Some(beforehand) = &mut with.beforehand else { return Ok(()) };
    for table in with.snapshot {
        let Some(here) = with.tables.table(&table.name) else { continue };
        let here = call.state.local_table(&here)?;
        if beforehand.has(&here) {
            call.state.each_base(&here, |_, base| beforehand.add(&here.name_lower, &base.key))?;
        }
    }
    Ok(())
}

/// Inserts into the table of the difference.
const INSERT: &str = "INSERT INTO temp.woodchuck_difference(key, in_snapshot) VALUES(?1, ?2)";

/// Fills the table of the difference with those of the keys that were found beforehand whose rows differ.
fn collect_of(
    conn: &Connection,
    call: &Call<'_, '_>,
    table: &LocalTable,
    beforehand: &Beforehand,
    is_ahead: &dyn Fn(&[u8]) -> bool,
) -> Result<(), ApplyError> {
    conn.execute_batch(DIFFERENCE).map_err(failed)?;
    let mut insert = conn.prepare_cached(INSERT).map_err(failed)?;
    beforehand.each(table, |key| {
        if !is_ahead(&canonical_key(&table.table, &key)) {
            return Ok(());
        }
        let rows = &call.folder.rows;
        let (here, there) = (rows.get(table, &key)?, rows.get_in(SNAPSHOT_SCHEMA, table, &key)?);
        if here != there {
            let mut bytes = Vec::with_capacity(32);
            push_key(&mut bytes, &key);
            insert.execute(params![bytes, there.is_some()]).map_err(failed)?;
        }
        Ok(())
    })
}

/// Fills the table of the difference with the keys of one table's rows.
fn collect(
    conn: &Connection,
    call: &Call<'_, '_>,
    table: &LocalTable,
    is_ahead: &dyn Fn(&[u8]) -> bool,
) -> Result<(), ApplyError> {
    conn.execute_batch(DIFFERENCE).map_err(failed)?;
    let mut insert = conn.prepare_cached(INSERT).map_err(failed)?;
    let mut note = |row: &[Value], rowid: Option<i64>, in_snapshot: bool| {
        let key = table.key_of(row, rowid);
        if is_ahead(&canonical_key(&table.table, &key)) {
            let mut bytes = Vec::with_capacity(32);
            push_key(&mut bytes, &key);
            insert.execute(params![bytes, in_snapshot]).map_err(failed)?;
        }
        Ok::<RowKey, ApplyError>(key)
    };
    let [gone, differing] = table.sql.differences(SNAPSHOT_SCHEMA);
    let mut count_new = 0_i64;
    call.folder.rows.each(table, &differing, |row, rowid| {
        let key = note(&row, rowid, true)?;
        count_new += i64::from(call.folder.rows.get(table, &key)?.is_none());
        Ok(())
    })?;
    // Rows that are here alone are looked for only if there are any: it takes as long as everything else.
    let sql = table.sql.counts(SNAPSHOT_SCHEMA);
    let count = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let (here, there) = conn.query_row(&sql, [], count).map_err(failed)?;
    // What the application has for itself is counted here and not there.
    if here != there - count_new || table.is_filtered() {
        call.folder.rows.each(table, &gone, |row, rowid| {
            let is_apart = table.is_filtered() && !table.takes(&table.key_of(&row, rowid), &row)?;
            if is_apart { Ok(()) } else { note(&row, rowid, false).map(|_| ()) }
        })?;
    }
    Ok(())
}

/// Writes the rows of the difference.
fn take_rows(conn: &Connection, call: &mut Call<'_, '_>, table: &Arc<LocalTable>) -> Result<(), ApplyError> {
    let keys = |of: &'static str, each: &mut dyn FnMut(RowKey) -> Result<(), ApplyError>| -> Result<(), ApplyError> {
        let mut found = conn.prepare_cached(of).map_err(failed)?;
        let mut rows = found.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let bytes: Vec<u8> = row.get(0).map_err(failed)?;
            each(Reader::new(&bytes).key()?)?;
        }
        Ok(())
    };
    // Rows that lose or swap UNIQUE values go out together; then each of the snapshot's finds its place free.
    let all_out = table.is_unique();
    let out = match all_out {
        true => "SELECT key FROM temp.woodchuck_difference",
        false => "SELECT key FROM temp.woodchuck_difference WHERE in_snapshot = 0",
    };
    keys(out, &mut |key| match call.folder.rows.get(table, &key)? {
        Some(old) => {
            let canonical = canonical_key(&table.table, &key);
            match call.folder.is_apart(table, &key, &canonical, &old)? {
                true => call.folder.stand_aside(table, &key, canonical, old)?,
                false => call.folder.remove(table, &key, &canonical, &old)?,
            }
            call.store_many_versions()
        }
        None => Ok(()),
    })?;
    keys("SELECT key FROM temp.woodchuck_difference WHERE in_snapshot = 1", &mut |key| {
        let Some(new) = call.folder.rows.get_in(SNAPSHOT_SCHEMA, table, &key)? else { return Err(UNSTEADY) };
        let canonical = canonical_key(&table.table, &key);
        let old = if all_out { None } else { call.folder.rows.get(table, &key)? };
        call.store_many_versions()?;
        let is_within = table.takes(&key, &new)?;
        let is_apart = match &old {
            Some(old) => call.folder.is_apart(table, &key, &canonical, old)?,
            None => false,
        };
        match old {
            Some(old) if is_apart && is_within => {
                call.folder.stand_aside(table, &key, canonical.clone(), old)?;
                call.folder.put(call.state, table, &key, &canonical, &new, false)
            }
            Some(_) if is_apart => Ok(()),
            Some(old) if !is_within => call.folder.remove(table, &key, &canonical, &old),
            None if !is_within => Ok(()),
            Some(old) => match call.folder.set(table, &key, &canonical, &old, &new)? {
                true => Ok(()),
                false => Err(UNSTEADY),
            },
            None if table.is_filtered() => call.folder.put(call.state, table, &key, &canonical, &new, false),
            None => match call.folder.rows.insert(table, &key, &new)? {
                Written::Done => {
                    call.folder.added(table, &canonical, &new);
                    Ok(())
                }
                Written::InTheWay | Written::NoRow => Err(UNSTEADY),
            },
        }
    })
}

/// The rows of a shard stand in the snapshot as they stand together in the fold.
const UNSTEADY: ApplyError = ApplyError::Damaged { what: "the snapshot's rows do not fit together" };

impl State {
    /// Own units of a shard up to message `batch_no` are in the fold, and no piece that waits for others can be needed.
    fn leave_pending(&self, shard: ShardId, batch_no: u64) -> Result<(), ApplyError> {
        let of = params![shard.0, super::state::to_db(batch_no)];
        for sql in [
            "UPDATE pending SET folded = 1 WHERE shard = ?1 AND batch_no <= ?2",
            "UPDATE sealed SET acknowledged = 1 WHERE shard = ?1 AND batch_no <= ?2",
        ] {
            self.db.prepare_cached(sql)?.execute(of)?;
        }
        self.forget_round();
        self.db.prepare_cached("UPDATE pieces SET spent = 1 WHERE shard = ?1 AND spent = 0")?.execute([shard.0])?;
        Ok(())
    }
}
