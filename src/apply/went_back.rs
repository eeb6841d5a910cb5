//! A state that went back in time: a power failure took what `state.db` had not on disk, or an older copy was put back.
//!
//! What the node did since is on the log and in the user's database, and it knows of neither. So the log holds messages of its own that it
//! never sealed, and capture finds once more what was published long ago, and what the node itself had applied of others. Were that
//! published, it would override what others have written since.
//!
//! The same is to be told apart where a node died between the two commits of applying and finds what came of it, and of what its application did
//! since, in one row: the columns that the fold wrote there are no local change.
//!
//! * Units that are not sealed are *suspects*: they may be on the log already. Nothing is sealed while there are any.
//! * Own messages that were never sealed are folded like anybody's.
//! * Everything that is folded meanwhile is noted, change by change, until the log was read up to the end that it had at the start.
//! * Then the suspects are gone through in order. What one writes into a column is known if the log has a change that writes the same,
//!   behind the one that the last was known by. One that is not known was never published, and hides whatever comes from elsewhere: all
//!   later ones of that column are local too. What is known leaves pending, the rest stays and is published.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension, params};

use super::codec::{Reader, push_row};
use super::error::ApplyError;
use super::fitting::Found;
use super::fold::Folder;
use super::net_effect::NetEffect;
use super::replica::{Phase, Replica, Taking, taking};
use super::shape::{Change, LocalTable, Merge, Tables};
use super::state::{State, from_db, origin_bytes, to_db};
use super::undo_redo::Call;
use crate::change::Op;
use crate::format::Row;
use crate::log::{ShardId, Unit, encode_unit};

/// In `meta`: the state may have gone back. Empty until it is known which units are suspects.
const WENT_BACK: &str = "went_back";

/// They exist only as long as there are suspects.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS suspects(id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS seen(id INTEGER PRIMARY KEY, table_id INTEGER NOT NULL, key BLOB NOT NULL, entry BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS seen_key ON seen(table_id, key, id)";

/// What became of suspects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Changes that were on the log already.
    pub known: u64,
    /// Changes that are published now.
    pub local: u64,
}

/// What the log has of a row, one change at a time.
enum Seen {
    Gone,
    /// The columns that the change wrote, and the row that it carried.
    Written(Vec<bool>, Row),
}

/// How far the suspects of a row are known, column by column.
enum Reached {
    /// By the change of this number.
    Known(i64),
    /// One was not, and none behind it can be.
    Local,
}

impl State {
    /// Whether there are suspects, or whether it is yet to be seen which units are.
    #[must_use]
    pub fn is_suspecting(&self) -> bool {
        self.suspecting
    }

    pub(super) fn load_suspicion(&mut self) -> Result<(), ApplyError> {
        self.suspecting = self.meta(WENT_BACK)?.is_some();
        Ok(())
    }

    /// From here on what is captured is suspect, until [`State::suspect_waiting`] says which units are.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn suspect(&mut self) -> Result<(), ApplyError> {
        if !self.suspecting {
            self.set_meta(WENT_BACK, &[])?;
            self.suspecting = true;
        }
        Ok(())
    }

    /// What was captured since [`State::suspect`] leaves no doubt.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn trust(&mut self) -> Result<(), ApplyError> {
        self.db.execute("DELETE FROM meta WHERE name = ?1", [WENT_BACK])?;
        self.suspecting = false;
        Ok(())
    }

    /// The units that are not sealed now are the suspects, unless others are already.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn suspect_waiting(&mut self) -> Result<(), ApplyError> {
        if self.meta(WENT_BACK)?.is_some_and(|known| !known.is_empty()) {
            return Ok(());
        }
        self.begin()?;
        let noted = self
            .db
            .execute_batch(TABLES)
            .and_then(|()| {
                self.db.execute("INSERT INTO suspects SELECT id FROM pending WHERE batch_no IS NULL AND folded = 0", [])
            })
            .map_err(ApplyError::from)
            .and_then(|_| self.set_meta(WENT_BACK, b"known"))
            .and_then(|()| self.commit());
        match noted {
            Ok(()) => self.suspecting = true,
            Err(_) => self.rollback()?,
        }
        noted
    }

    /// Everything that the log had at the start is folded and the suspects are cleared: new messages are numbered behind those on it.
    fn end_suspicion(&mut self) -> Result<(), ApplyError> {
        self.begin()?;
        let ended = self.number_behind_the_log().and_then(|()| {
            self.db.execute_batch("DROP TABLE IF EXISTS suspects; DROP TABLE IF EXISTS seen")?;
            self.db.execute("DELETE FROM meta WHERE name = ?1", [WENT_BACK])?;
            self.commit()
        });
        match ended {
            Ok(()) => self.suspecting = false,
            Err(_) => self.rollback()?,
        }
        ended
    }

    fn number_behind_the_log(&self) -> Result<(), ApplyError> {
        let own = origin_bytes(self.origin());
        self.db.execute(
            "INSERT INTO positions(shard, batch_no_sealed) SELECT shard, batch_no FROM origins WHERE origin = ?1
             ON CONFLICT DO UPDATE SET batch_no_sealed = max(batch_no_sealed, excluded.batch_no_sealed)",
            [own],
        )?;
        let sql = "SELECT coalesce(max(round_no), 0) FROM origins WHERE origin = ?1";
        let seen: i64 = self.db.query_row(sql, [own], |row| row.get(0))?;
        let sealed = self.meta("round_no")?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        self.set_meta("round_no", &sealed.max(from_db(seen)).to_be_bytes())
    }

    /// Whether the log has a message of ours that this state never sealed.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn is_behind_itself(&self, shard: ShardId, batch_no: u64) -> Result<bool, ApplyError> {
        Ok(batch_no > self.batch_no_sealed(shard)?)
    }

    /// Notes a change that was folded. `was_there`: the row was there before it.
    pub(super) fn note_seen(&self, table: &LocalTable, change: &Change<'_>, was_there: bool) -> Result<(), ApplyError> {
        let Some(image) = &change.image else { return self.note_gone(table.id, &change.canonical) };
        let is_whole = change.op == Op::Insert || !was_there;
        let mut entry = vec![1];
        entry.extend((0..image.len()).map(|i| u8::from(is_whole || change.mask.get(i).copied().unwrap_or(true))));
        push_row(&mut entry, image);
        self.insert_seen(table.id, &change.canonical, &entry)
    }

    /// Notes that a row was deleted.
    pub(super) fn note_gone(&self, table_id: i64, key: &[u8]) -> Result<(), ApplyError> {
        self.insert_seen(table_id, key, &[0])
    }

    fn insert_seen(&self, table_id: i64, key: &[u8], entry: &[u8]) -> Result<(), ApplyError> {
        self.db
            .prepare_cached("INSERT INTO seen(table_id, key, entry) VALUES(?1, ?2, ?3)")?
            .execute(params![table_id, key, entry])?;
        Ok(())
    }

    /// The first change of a row behind number `after` that `fits`.
    fn seen_behind(
        &self,
        table: &LocalTable,
        key: &[u8],
        after: i64,
        fits: impl Fn(&Seen) -> bool,
    ) -> Result<Option<i64>, ApplyError> {
        let sql = "SELECT id, entry FROM seen WHERE table_id = ?1 AND key = ?2 AND id > ?3 ORDER BY id";
        let mut found = self.db.prepare_cached(sql)?;
        let mut rows = found.query(params![table.id, key, after])?;
        while let Some(row) = rows.next()? {
            let entry: Vec<u8> = row.get(1)?;
            if fits(&read_seen(&entry, table.shape.columns.len())?) {
                return Ok(Some(row.get(0)?));
            }
        }
        Ok(None)
    }
}

fn read_seen(entry: &[u8], columns: usize) -> Result<Seen, ApplyError> {
    let damaged = ApplyError::Damaged { what: "a change that was seen on the log" };
    match entry.split_first() {
        Some((0, _)) => Ok(Seen::Gone),
        Some((_, rest)) => {
            let (mask, row) = rest.split_at_checked(columns).ok_or(damaged)?;
            Ok(Seen::Written(mask.iter().map(|written| *written == 1).collect(), Reader::new(row).row()?))
        }
        None => Err(damaged),
    }
}

/// Goes through suspects in order and tells what of them the log has.
#[derive(Default)]
struct Judge {
    reached: HashMap<(i64, Vec<u8>), Vec<Reached>>,
}

impl Judge {
    /// The columns of a change that the log does not have; `None` when it has all of it.
    fn local_columns(
        &mut self,
        state: &State,
        table: &LocalTable,
        change: &Change<'_>,
    ) -> Result<Option<Vec<bool>>, ApplyError> {
        let columns = table.shape.columns.len();
        let at = (table.id, change.canonical.clone());
        let reached = self.reached.entry(at).or_insert_with(|| (0..columns).map(|_| Reached::Known(0)).collect());
        let key = &change.canonical;
        let Some(image) = &change.image else {
            let after = reached.iter().map(|reached| match reached {
                Reached::Known(id) => Some(*id),
                Reached::Local => None,
            });
            let after = after.collect::<Option<Vec<i64>>>().map(|ids| ids.into_iter().max().unwrap_or(0));
            let found = match after {
                Some(after) => state.seen_behind(table, key, after, |seen| matches!(seen, Seen::Gone))?,
                None => None,
            };
            reached.iter_mut().for_each(|reached| *reached = found.map_or(Reached::Local, Reached::Known));
            return Ok(found.is_none().then(Vec::new));
        };
        let is_written = |i: usize| change.op == Op::Insert || change.mask.get(i).copied().unwrap_or(true);
        let mut local = vec![false; columns];
        for (i, (value, reached)) in image.iter().zip(reached.iter_mut()).enumerate().filter(|(i, _)| is_written(*i)) {
            let wrote_it = |seen: &Seen| match seen {
                Seen::Gone => false,
                Seen::Written(mask, row) => mask.get(i) == Some(&true) && row.get(i) == Some(value),
            };
            let found = match reached {
                Reached::Known(after) => state.seen_behind(table, key, *after, wrote_it)?,
                Reached::Local => None,
            };
            *reached = found.map_or(Reached::Local, Reached::Known);
            if let (Some(local), true) = (local.get_mut(i), found.is_none()) {
                *local = true;
            }
        }
        if !local.contains(&true) {
            return Ok(None);
        }
        if change.op == Op::Insert {
            // A row is inserted as a whole.
            reached.iter_mut().for_each(|reached| *reached = Reached::Local);
        }
        Ok(Some(local))
    }

    /// What is left of a unit once everything that the log has is taken out of it.
    fn clear(
        &mut self,
        call: &mut Call<'_, '_>,
        mut unit: Unit,
        cleared: &mut Cleared,
    ) -> Result<Option<Unit>, ApplyError> {
        let mut fits = BTreeMap::new();
        for (index, shape) in unit.tables.iter().enumerate() {
            match call.fit(shape, false) {
                Ok(Found::Here(table, fit)) if fit.is_same() => drop(fits.insert(index, (table, fit))),
                // The table has changed since: its rows cannot be compared, and stay.
                Ok(_) | Err(ApplyError::Cannot(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut left = Vec::new();
        for mut change in std::mem::take(&mut unit.changes) {
            if let Some((table, fit)) = fits.get(&usize::from(change.table)) {
                let fitted = table.change(fit, &change, Merge::Column);
                match self.local_columns(call.state, table, &fitted)? {
                    None => {
                        cleared.known += 1;
                        continue;
                    }
                    Some(local) if change.op == Op::Update => change.mask = local,
                    Some(_) => {}
                }
            }
            cleared.local += 1;
            left.push(change);
        }
        unit.changes = left;
        // Changes of the schema can be made twice.
        Ok((!unit.changes.is_empty() || !unit.schema.is_empty()).then_some(unit))
    }
}

impl Replica {
    /// Finds the state gone back: see [`State::suspect`].
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn suspect(&mut self) -> Result<(), ApplyError> {
        self.state.suspect()
    }

    /// See [`State::trust`].
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn trust(&mut self) -> Result<(), ApplyError> {
        self.state.trust()
    }

    /// See [`State::suspect_waiting`].
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn suspect_waiting(&mut self) -> Result<(), ApplyError> {
        self.state.suspect_waiting()
    }

    /// Takes out of pending what the log has already. To be called once everything is folded that the log had at the start, with the
    /// write lock and everything captured. Ends as [`Replica::fold`] does, with a commit or a rollback; [`Replica::end_suspicion`] follows the commit.
    ///
    /// # Errors
    /// When a database fails. Then [`Replica::rollback`] must follow.
    ///
    /// # Panics
    /// Unless begun.
    pub fn clear_suspects(&mut self, conn: &Connection, tables: &dyn Tables) -> Result<Cleared, ApplyError> {
        assert!(self.begun && matches!(self.phase, Phase::Idle | Phase::Recovering(_)), "clearing follows begin");
        self.abandon_intent()?;
        self.state.begin()?;
        match clear(&mut self.state, conn, (tables, taking(&self.taken, &self.route)), self.merge) {
            Ok((net, cleared)) => {
                self.phase = Phase::Folded(net);
                Ok(cleared)
            }
            Err(error) => {
                self.state.rollback()?;
                Err(error)
            }
        }
    }

    /// The suspects are cleared: sealing may begin.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn end_suspicion(&mut self) -> Result<(), ApplyError> {
        self.state.end_suspicion()
    }
}

/// One attempt, inside open transactions of both databases.
fn clear(
    state: &mut State,
    conn: &Connection,
    (tables, taking): (&dyn Tables, Taking<'_>),
    merge: Merge,
) -> Result<(NetEffect, Cleared), ApplyError> {
    state.begin_fold(true)?;
    let mut call = Call::new(state, Folder::new(conn)?, (tables, taking), merge, true);
    call.undo_all()?;
    let (mut judge, mut cleared, mut last) = (Judge::default(), Cleared::default(), 0);
    while let Some(id) = call.state.suspect_behind(last)? {
        last = id;
        let unit = call.state.pending_unit(id)?;
        match judge.clear(&mut call, unit, &mut cleared)? {
            // It stays a suspect: should the intent be taken back, so is this.
            None => call.state.mark_folded(id)?,
            Some(left) => call.state.keep_suspect(id, &left)?,
        }
    }
    call.redo()?;
    call.state.versions = std::mem::take(&mut call.folder.net.versions);
    Ok((call.folder.net.net, cleared))
}

impl State {
    fn suspect_behind(&self, id: i64) -> Result<Option<i64>, ApplyError> {
        let sql = "SELECT s.id FROM suspects s JOIN pending p ON p.id = s.id WHERE s.id > ?1 AND p.folded = 0 ORDER BY s.id LIMIT 1";
        Ok(self.db.prepare_cached(sql)?.query_row([id], |row| row.get(0)).optional()?)
    }

    /// What is left of a suspect is local for good.
    fn keep_suspect(&self, id: i64, left: &Unit) -> Result<(), ApplyError> {
        let bytes = encode_unit(left);
        let length = to_db(bytes.len() as u64);
        self.db.prepare_cached("UPDATE pending SET unit_bytes = ?2 WHERE id = ?1")?.execute([id, length])?;
        self.db.prepare_cached("UPDATE pending_unit SET unit = ?2 WHERE id = ?1")?.execute(params![id, bytes])?;
        self.db.prepare_cached("DELETE FROM suspects WHERE id = ?1")?.execute([id])?;
        Ok(())
    }
}
