//! Catching up from a snapshot while the application goes on: for the shards where it is ahead its rows become the fold.
//!
//! `own units that the snapshot contains leave pending → make its schema → undo everything → write the rows that differ → redo`
//!
//! The snapshot is attached to the applying connection. Where what may differ was looked for beforehand only that is compared under the
//! write lock; else SQLite finds what differs, in the order of the keys.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::beforehand::Beforehand;
use super::catch_up_plan::Plan;
use super::catch_up_schema::{Made, Said};
use super::codec::{Reader, push_key};
use super::error::{ApplyError, Cannot};
use super::fold::{FoldCounts, Folder};
use super::net_effect::NetEffect;
use super::replica::{Phase, Replica, Route, Taking, taking};
use super::shape::{Fit, LocalTable, Merge, Tables};
use super::snapshot::tables_of;
use super::state::State;
use super::statements::{SELECT_ROWS, Written};
use super::undo_redo::Call;
use crate::change::{RowKey, canonical_key};
use crate::format::{Row, Value};
use crate::log::{Routing, ShardId, Stand, TableShape};
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
    names: &'a [u8],
    route: &'a Route,
    taking: Taking<'a>,
    merge: Merge,
    beforehand: Option<&'a mut Beforehand>,
}

/// What catching up did.
#[derive(Debug, Default)]
pub struct CaughtUp {
    /// To rows.
    pub counts: FoldCounts,
    /// To the schema, in words.
    pub schema: Vec<String>,
    /// Tables that are here alone, and of which nobody has told that they were dropped: they stay.
    pub alone: Vec<String>,
}

impl Replica {
    /// Catches up from a snapshot, attached to `conn` as [`SNAPSHOT_SCHEMA`], with what its manifest says: in the shards where it stands
    /// ahead of what is applied, the snapshot's rows become the fold, and pending stays on top. Where it is ahead in all of them its schema
    /// does so, too. `route` tells the shards of rows, of all
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
        (stand, routing, names): (&Stand, &Routing, &[u8]),
        route: &Route,
        beforehand: Option<&mut Beforehand>,
    ) -> Result<CaughtUp, ApplyError> {
        assert!(self.begun && matches!(self.phase, Phase::Idle | Phase::Recovering(_)), "catching up follows begin");
        self.abandon_intent()?;
        let snapshot = tables_of(conn, SNAPSHOT_SCHEMA)?;
        self.state.begin()?;
        let (merge, taking) = (self.merge, taking(&self.taken, &self.route));
        let snapshot = &snapshot;
        let mut with = Ahead { conn, tables, snapshot, stand, routing, names, route, taking, merge, beforehand };
        match catch_up(&mut self.state, &mut with) {
            Ok((net, done)) => {
                self.phase = Phase::Folded(net);
                Ok(done)
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
fn catch_up(state: &mut State, with: &mut Ahead<'_>) -> Result<(NetEffect, CaughtUp), ApplyError> {
    state.begin_fold(true)?;
    let mut ahead = BTreeSet::new();
    for (shard, stand) in with.stand {
        if stand.seq > state.position(*shard)? {
            ahead.insert(*shard);
        }
    }
    state.take_stand(with.stand, &ahead)?;
    if ahead.len() == with.stand.len() {
        state.reach_kept_schema()?;
    }
    state.forget_tables();
    let folder = Folder::new(with.conn)?;
    let mut call = Call::new(state, folder, (with.tables, with.taking), with.merge, true);
    let mut done = CaughtUp::default();
    // A change of the schema has a part in every shard: there is none where one of them stands still.
    let is_newer = !ahead.is_empty() && ahead.len() == with.stand.len();
    if is_newer {
        call.folder.net.keep_tables_apart();
    }
    let said = Said { stand: with.stand, names: with.names };
    let plan = match with.taking.takes {
        Some(travels) => Some(call.plan_schema(with.conn, &said, is_newer, travels)?),
        None => None,
    };
    let mut made = match &plan {
        Some(plan) if is_newer => call.make_tables(with.conn, plan)?,
        Some(_) | None => Made::default(),
    };
    if !ahead.is_empty() {
        // By the names that tables have by now: a number, and how rows travel under it, stays with a table that gets another name.
        match &plan {
            Some(plan) => call.state.take_routing(&routing_here(with.routing, plan))?,
            None => call.state.take_routing(with.routing)?,
        }
    }
    let met = call.state.tables_met();
    for table in with.snapshot {
        let Some(here) = here_of(&mut call, table, plan.as_ref())? else { continue };
        if here.travels.is_by_name() {
            call.send_passed_over_again(&here)?;
        }
    }
    note_base(&mut call, with)?;
    call.undo_all()?;
    for table in with.snapshot {
        // What does not travel is no business of the log's.
        if (with.route)(table, None).is_none() {
            continue;
        }
        let lower = table.name.to_ascii_lowercase();
        let (name, is_altered) = match &plan {
            // Own changes that are pending have dropped it: its rows are nowhere to be seen.
            Some(plan) if plan.names.get(&lower).is_some_and(Option::is_none) => continue,
            Some(plan) => (plan.names.get(&lower).and_then(Option::as_ref), plan.altered.contains(&lower)),
            None => (None, false),
        };
        let name = name.unwrap_or(&table.name);
        let here = call.table_now(name).ok_or_else(|| Cannot::NoTable { table: table.name.clone() })?;
        let here = call.state.local_table(&here)?;
        let shape = call.state.shape_of(table, &here.name_lower)?;
        let there = There::new(&here, table, &shape, is_altered)?;
        // In which shards the fold has them, whatever own changes that are on their way are in.
        let by_name = with.routing.get(&lower).map_or(here.travels.is_by_name(), |travels| travels.by_name);
        let is_ahead = |key: &[u8]| {
            let key = Some(key).filter(|_| !by_name);
            (with.route)(&here.routed, key).is_some_and(|shard| ahead.contains(&shard))
        };
        if by_name && !is_ahead(&[]) {
            continue;
        }
        call.drop_hidden(&here, &is_ahead)?;
        call.folder.drop_unseen(&here, &is_ahead)?;
        // What is the application's alone looks like a difference there, and would be one for ever.
        let is_comparable = !here.is_filtered() && there.is_same() && !made.tables.contains(&here.name_lower);
        match with.beforehand.as_deref().filter(|_| is_comparable) {
            Some(beforehand) if beforehand.has(&here) => collect_of(with.conn, &call, &here, beforehand, &is_ahead)?,
            Some(_) | None if there.is_same() => collect(with.conn, &call, &here, &is_ahead)?,
            Some(_) | None => collect_fitted(with.conn, &call, &here, &there, &is_ahead)?,
        }
        take_rows(with.conn, &mut call, &here, &there)?;
    }
    with.conn.execute_batch("DROP TABLE IF EXISTS temp.woodchuck_difference").map_err(failed)?;
    let shown: Vec<i64> = call.undone.keys().copied().collect();
    shown.into_iter().try_for_each(|table| call.drop_fold_only(table))?;
    if let Some(plan) = &plan
        && is_newer
    {
        call.make_indexes(with.conn, plan, &mut made)?;
        done.alone.clone_from(&plan.alone);
        done.schema = made.told;
    }
    for table in with.snapshot {
        let Some(here) = here_of(&mut call, table, plan.as_ref())? else { continue };
        if here.travels.is_by_name() {
            call.send_again(&here)?;
        }
    }
    call.redo()?;
    call.state.forget_unmet(&met)?;
    call.state.versions = std::mem::take(&mut call.folder.net.versions);
    done.counts = call.folder.counts;
    Ok((call.net_effect()?, done))
}

/// A table of the snapshot as it is here.
fn here_of(call: &mut Call<'_, '_>, table: &Table, plan: Option<&Plan>) -> Result<Option<Arc<LocalTable>>, ApplyError> {
    let name = plan.and_then(|plan| plan.names.get(&table.name.to_ascii_lowercase())?.as_ref());
    let here = call.table_now(name.unwrap_or(&table.name));
    here.map(|here| call.state.local_table(&here)).transpose()
}

/// How rows travel, by what the snapshot's tables are called here.
fn routing_here(routing: &Routing, plan: &Plan) -> Routing {
    let given: BTreeSet<String> = plan.names.values().flatten().map(|name| name.to_ascii_lowercase()).collect();
    let here = |name: &String| match plan.names.get(&name.to_ascii_lowercase()) {
        Some(Some(here)) => Some(here.clone()),
        // One that is gone there or here. Its name is another's by now, or may be given again.
        Some(None) | None => Some(name.clone()).filter(|name| !given.contains(&name.to_ascii_lowercase())),
    };
    routing.iter().filter_map(|(name, travels)| Some((here(name)?, travels.clone()))).collect()
}

/// A table of the snapshot, and how its rows become those of the one here.
struct There {
    /// `None` where both have the same name and columns.
    other: Option<(LocalTable, Fit)>,
}

impl There {
    /// `is_altered`: own changes that are pending have made other columns of the snapshot's.
    fn new(here: &LocalTable, theirs: &Arc<Table>, shape: &TableShape, is_altered: bool) -> Result<There, ApplyError> {
        // Refuses what has columns that are missing here, and other keys.
        let fit = here.fit(shape, true)?;
        let has = |all: &[String], name: &String| all.iter().any(|other| other.eq_ignore_ascii_case(name));
        let missing = here.shape.columns.iter().find(|name| !has(&shape.columns, name));
        let same_columns = missing.is_none() && here.shape.columns.len() == shape.columns.len();
        // Own changes can have given the same columns other types, or no room for NULL.
        if same_columns && !is_altered && here.table.name.eq_ignore_ascii_case(&theirs.name) {
            return Ok(There { other: None });
        }
        match missing {
            Some(column) if !is_altered => {
                Err(Cannot::NoColumn { table: theirs.name.clone(), column: column.clone() }.into())
            }
            Some(_) | None => {
                Ok(There { other: Some((LocalTable::new(Arc::clone(theirs), here.id, here.shape_id), fit)) })
            }
        }
    }

    fn is_same(&self) -> bool {
        self.other.is_none()
    }

    /// The snapshot's row with this key, as it is here.
    fn row(&self, call: &Call<'_, '_>, here: &LocalTable, key: &RowKey) -> Result<Option<Row>, ApplyError> {
        let Some((theirs, fit)) = &self.other else { return call.folder.rows.get_in(SNAPSHOT_SCHEMA, here, key) };
        let row = call.folder.rows.get_in(SNAPSHOT_SCHEMA, theirs, &fit.key_there(key))?;
        Ok(row.map(|row| here.fitted_row(fit, &row)))
    }
}

/// Fills the table of the difference with the keys of one table's rows, where the snapshot has it with other columns or another name.
fn collect_fitted(
    conn: &Connection,
    call: &Call<'_, '_>,
    here: &LocalTable,
    there: &There,
    is_ahead: &dyn Fn(&[u8]) -> bool,
) -> Result<(), ApplyError> {
    let Some((theirs, fit)) = &there.other else { return Ok(()) };
    conn.execute_batch(DIFFERENCE).map_err(failed)?;
    let mut insert = conn.prepare_cached(INSERT).map_err(failed)?;
    let mut note = |key: &RowKey, in_snapshot: bool| {
        let mut bytes = Vec::with_capacity(32);
        push_key(&mut bytes, key);
        insert.execute(params![bytes, in_snapshot]).map(drop).map_err(failed)
    };
    let rows = &call.folder.rows;
    rows.each(theirs, &format!("{SELECT_ROWS} FROM {}", theirs.sql.name_in(SNAPSHOT_SCHEMA)), |row, rowid| {
        let row = here.fitted_row(fit, &row);
        let key = here.key_of(&row, rowid);
        let is_equal = !is_ahead(&canonical_key(&here.table, &key)) || rows.get(here, &key)?.as_ref() == Some(&row);
        if is_equal { Ok(()) } else { note(&key, true) }
    })?;
    rows.each(here, &format!("{SELECT_ROWS} FROM {}", here.sql.name), |row, rowid| {
        let key = here.key_of(&row, rowid);
        let is_apart = here.is_filtered() && !here.takes(&key, &row)?;
        if is_apart || !is_ahead(&canonical_key(&here.table, &key)) || there.row(call, here, &key)?.is_some() {
            return Ok(());
        }
        note(&key, false)
    })
}

/// Rows that show something else than the fold were compared as they showed themselves.
fn note_base(call: &mut Call<'_, '_>, with: &mut Ahead<'_>) -> Result<(), ApplyError> {
    let Some(beforehand) = &mut with.beforehand else { return Ok(()) };
    for table in with.snapshot {
        let Some(here) = call.table_now(&table.name) else { continue };
        let here = call.state.local_table(&here)?;
        if beforehand.has(&here) {
            call.state.each_base(&here, |canonical, base| beforehand.add(&here.name_lower, &base.key, canonical))?;
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
fn take_rows(
    conn: &Connection,
    call: &mut Call<'_, '_>,
    table: &Arc<LocalTable>,
    there: &There,
) -> Result<(), ApplyError> {
    let keys = |of: &'static str, each: &mut dyn FnMut(RowKey) -> Result<(), ApplyError>| -> Result<(), ApplyError> {
        let mut found = conn.prepare_cached(of).map_err(failed)?;
        let mut rows = found.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let bytes: Vec<u8> = row.get(0).map_err(failed)?;
            each(Reader::new(&bytes).key()?)?;
        }
        Ok(())
    };
    // What others wrote to rows that own changes are pending on.
    if call.state.pending_count()? > 0 {
        let mut met = Vec::new();
        keys("SELECT key FROM temp.woodchuck_difference", &mut |key| {
            let canonical = canonical_key(&table.table, &key);
            // More than the journal keeps need not be remembered.
            let is_full = call.theirs.count() as i64 >= call.state.conflicts_max;
            if is_full || !call.state.was_pending(table, &canonical)? {
                return Ok(());
            }
            met.push((key, canonical));
            if met.len() < MET_MAX { Ok(()) } else { note_theirs(call, table, there, std::mem::take(&mut met)) }
        })?;
        note_theirs(call, table, there, met)?;
    }
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
        let Some(new) = there.row(call, table, &key)? else { return Err(UNSTEADY) };
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
                // It has values that are UNIQUE here alone.
                Written::InTheWay if table.can_hide() => {
                    call.folder.put(call.state, table, &key, &canonical, &new, false)
                }
                Written::InTheWay | Written::NoRow => Err(UNSTEADY),
            },
        }
    })
}

/// Rows with own changes pending that are looked at together: each own unit that the snapshot has is read once for all of them.
const MET_MAX: usize = 10_000;

/// Takes note of what others wrote to rows that own changes are pending on.
fn note_theirs(
    call: &mut Call<'_, '_>,
    table: &Arc<LocalTable>,
    there: &There,
    met: Vec<(RowKey, Vec<u8>)>,
) -> Result<(), ApplyError> {
    let mut rows = HashMap::with_capacity(met.len());
    for (key, canonical) in &met {
        rows.insert(canonical.clone(), call.folder.row_of_fold(table, key)?);
    }
    call.put_own_on(table, &mut rows)?;
    for (key, canonical) in met {
        let (old, new) = (rows.remove(&canonical).flatten(), there.row(call, table, &key)?);
        if old == new {
            continue;
        }
        let mask = match (&old, &new) {
            (Some(old), Some(new)) => old.iter().zip(new).map(|(old, new)| old != new).collect(),
            (Some(_) | None, _) => Vec::new(),
        };
        call.theirs.add_row(table, (&key, &canonical), None, new, mask);
    }
    Ok(())
}

/// The rows of a shard stand in the snapshot as they stand together in the fold.
const UNSTEADY: ApplyError = ApplyError::Damaged { what: "the snapshot's rows do not fit together" };

impl State {
    /// The fold stands where the snapshot has it, in the shards where that is ahead.
    fn take_stand(&mut self, stand: &Stand, ahead: &BTreeSet<ShardId>) -> Result<(), ApplyError> {
        let own = self.origin();
        for (shard, stand) in stand.iter().filter(|(shard, _)| ahead.contains(shard)) {
            self.set_position(*shard, stand.seq)?;
            for (origin, folded) in &stand.folded {
                self.set_folded(*shard, *origin, *folded)?;
            }
            let mine = stand.folded.iter().find(|(origin, _)| *origin == own).map_or(0, |(_, folded)| folded.batch_no);
            if mine > self.batch_no_sealed(*shard)? {
                return Err(Cannot::NotOurs { shard: *shard, batch_no: mine }.into());
            }
            self.leave_pending(*shard, mine)?;
        }
        Ok(())
    }

    /// Own units of a shard up to message `batch_no` are in the fold, and no piece that waits for others can be needed.
    fn leave_pending(&self, shard: ShardId, batch_no: u64) -> Result<(), ApplyError> {
        self.lay_out_all()?;
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
