//! What is remembered of `state.db`. This process alone writes there, so what it has read or written once it need not read again: each read
//! outside of a transaction takes and gives back locks, and there are dozens for one message.
//!
//! Invariant: what is remembered is what a read would give, inside an open transaction too. Whatever takes writes back forgets all of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::OptionalExtension;

use super::error::ApplyError;
use super::seal::InFlight;
use super::state::{State, from_db, origin_of};
use crate::log::{Folded, Origin, ShardId, StreamSeq};

/// The last folded message of each origin in a shard.
pub type FoldedOf = Arc<HashMap<Origin, Folded>>;

/// How far the database is ahead of the fold, by shard.
pub type AheadTo = Arc<[(ShardId, StreamSeq)]>;

/// The round that is sealed.
#[derive(Debug, Default)]
struct Sealed {
    is_stored: bool,
    unacknowledged: BTreeSet<InFlight>,
}

/// What is remembered. Empty at first.
#[derive(Debug)]
pub(super) struct Known {
    positions: RefCell<HashMap<ShardId, StreamSeq>>,
    folded: RefCell<HashMap<ShardId, FoldedOf>>,
    sealed: RefCell<Option<Sealed>>,
    /// Whether units may wait to be sealed: true until a look has found none.
    may_wait: Cell<bool>,
    ahead_to: RefCell<Option<AheadTo>>,
}

impl Default for Known {
    fn default() -> Known {
        Known {
            positions: RefCell::default(),
            folded: RefCell::default(),
            sealed: RefCell::default(),
            may_wait: Cell::new(true),
            ahead_to: RefCell::default(),
        }
    }
}

impl State {
    /// How far the next fold must go at least: the database shows what it comes to there.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged.
    pub fn ahead_to(&self) -> Result<AheadTo, ApplyError> {
        if let Some(ahead_to) = &*self.known.ahead_to.borrow() {
            return Ok(Arc::clone(ahead_to));
        }
        Ok(self.remember_ahead_to(self.read_ahead_to()?))
    }

    pub(super) fn remember_ahead_to(&self, ahead_to: Vec<(ShardId, StreamSeq)>) -> AheadTo {
        let ahead_to: AheadTo = ahead_to.into();
        self.known.ahead_to.replace(Some(Arc::clone(&ahead_to)));
        ahead_to
    }

    /// The last folded message of a shard.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn position(&self, shard: ShardId) -> Result<StreamSeq, ApplyError> {
        if let Some(position) = self.known.positions.borrow().get(&shard) {
            return Ok(*position);
        }
        let mut found = self.db.prepare_cached("SELECT seq FROM positions WHERE shard = ?1")?;
        let position = StreamSeq(found.query_row([shard.0], |row| row.get(0)).optional()?.map_or(0, from_db));
        self.known.positions.borrow_mut().insert(shard, position);
        Ok(position)
    }

    pub(super) fn remember_position(&self, shard: ShardId, seq: StreamSeq) {
        if let Some(position) = self.known.positions.borrow_mut().get_mut(&shard) {
            *position = seq.max(*position);
        }
    }

    /// The last folded message of each origin in a shard.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn folded_of(&self, shard: ShardId) -> Result<FoldedOf, ApplyError> {
        if let Some(folded) = self.known.folded.borrow().get(&shard) {
            return Ok(Arc::clone(folded));
        }
        let sql = "SELECT origin, batch_no, round_no, part FROM origins WHERE shard = ?1 AND batch_no > 0";
        let mut found = self.db.prepare_cached(sql)?;
        let mut rows = found.query([shard.0])?;
        let mut all = HashMap::new();
        while let Some(row) = rows.next()? {
            let origin = origin_of(&row.get::<_, Vec<u8>>(0)?)?;
            let folded = Folded { batch_no: from_db(row.get(1)?), round_no: from_db(row.get(2)?), part: row.get(3)? };
            all.insert(origin, folded);
        }
        let all = Arc::new(all);
        self.known.folded.borrow_mut().insert(shard, Arc::clone(&all));
        Ok(all)
    }

    /// The last folded message of an origin in a shard.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn folded(&self, shard: ShardId, origin: Origin) -> Result<Folded, ApplyError> {
        Ok(self.folded_of(shard)?.get(&origin).copied().unwrap_or_default())
    }

    pub(super) fn remember_folded(&self, shard: ShardId, origin: Origin, folded: Folded) {
        if let Some(all) = self.known.folded.borrow_mut().get_mut(&shard) {
            Arc::make_mut(all).insert(origin, folded);
        }
    }

    /// Hands the sealed round to `each`, read from `state.db` if it is not known.
    fn with_sealed<T>(&self, each: impl FnOnce(&mut Sealed) -> T) -> Result<T, ApplyError> {
        let mut known = self.known.sealed.borrow_mut();
        if let Some(sealed) = &mut *known {
            return Ok(each(sealed));
        }
        let mut found = self.db.prepare_cached("SELECT shard, batch_no, acknowledged FROM sealed")?;
        let mut rows = found.query([])?;
        let mut sealed = Sealed::default();
        while let Some(row) = rows.next()? {
            sealed.is_stored = true;
            if !row.get::<_, bool>(2)? {
                sealed.unacknowledged.insert(InFlight { shard: ShardId(row.get(0)?), batch_no: from_db(row.get(1)?) });
            }
        }
        Ok(each(known.insert(sealed)))
    }

    /// Whether a round is sealed, acknowledged or not.
    pub(super) fn is_round_stored(&self) -> Result<bool, ApplyError> {
        self.with_sealed(|sealed| sealed.is_stored)
    }

    /// Whether all of the sealed round is acknowledged.
    pub(super) fn is_round_acknowledged(&self) -> Result<bool, ApplyError> {
        self.with_sealed(|sealed| sealed.unacknowledged.is_empty())
    }

    /// Whether a message is sealed and not acknowledged.
    pub(super) fn is_unacknowledged(&self, message: InFlight) -> Result<bool, ApplyError> {
        self.with_sealed(|sealed| sealed.unacknowledged.contains(&message))
    }

    pub(super) fn remember_acknowledged(&self, message: InFlight) -> Result<(), ApplyError> {
        self.with_sealed(|sealed| {
            sealed.unacknowledged.remove(&message);
        })
    }

    /// A round was stored, or removed: `None`.
    pub(super) fn remember_round(&self, messages: impl IntoIterator<Item = InFlight>) {
        let unacknowledged: BTreeSet<InFlight> = messages.into_iter().collect();
        self.known.sealed.replace(Some(Sealed { is_stored: !unacknowledged.is_empty(), unacknowledged }));
    }

    /// The round was changed in ways that are not followed here.
    pub(super) fn forget_round(&self) {
        self.known.sealed.replace(None);
    }

    /// Whether units may wait to be sealed.
    pub(super) fn may_wait(&self) -> bool {
        self.known.may_wait.get()
    }

    pub(super) fn remember_waiting(&self, may_wait: bool) {
        self.known.may_wait.set(may_wait);
    }
}
