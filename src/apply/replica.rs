//! The replica: the one entrance to applying, sealing and taking local transactions.
//!
//! Invariants, after every call:
//! I1: the database with base put in place is the fold of the log up to the applied positions.
//! I2: the database is pending folded on top of that.

use std::fmt;
use std::sync::Arc;

use rusqlite::Connection;

use super::arrivals::{Arrivals, Blocked, FoldReport, Outcome};
use super::base::BaseRow;
use super::error::ApplyError;
use super::fold::FoldCounts;
use super::local::{LocalSink, Recovered};
use super::messages::{Stop, fold_all, fold_all_own};
use super::net_effect::NetEffect;
use super::seal::{InFlight, SealLimits};
use super::shape::{Merge, Tables};
use super::state::State;
use crate::change::{RowKey, TxSpan};
use crate::fault::{self, Point};
use crate::format::Row;
use crate::log::{SealedMessage, ShardId};
use crate::schema::{Catalogue, RowFilters, Table};

/// Finds the shard of a row from its table and canonical key, or, without the key, that of all rows of the table; `None` for tables that are
/// not replicated.
pub type Route = Box<dyn Fn(&Table, Option<&[u8]>) -> Option<ShardId> + Send>;

/// Tells by name whether a table is replicated.
pub type Travels = Box<dyn Fn(&str) -> bool + Send>;

/// Writes down where capture stands behind a transaction, for the commit that stores the transaction.
pub type PositionOf = Box<dyn Fn(&TxSpan) -> Vec<u8> + Send>;

/// Where applying stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Phase {
    Idle,
    Folded(NetEffect),
    /// The user's database has committed, the intent is not yet the state.
    Committed,
    /// An intent is on disk and nobody knows whether the user's database committed.
    Recovering(NetEffect),
}

/// What a node takes from others.
#[derive(Clone, Copy)]
pub(super) struct Taking<'a> {
    /// Where rows are.
    pub(super) route: &'a Route,
    /// Which tables; `None` where definitions do not travel, and all tables are taken.
    pub(super) takes: Option<&'a Travels>,
}

impl Taking<'_> {
    /// Whether rows and definitions of a table are taken.
    pub(super) fn takes(&self, table: &str) -> bool {
        self.takes.is_none_or(|takes| takes(table))
    }
}

/// What a node takes whose own rows go by `route`.
pub(super) fn taking<'a>(taken: &'a Option<(Route, Travels)>, route: &'a Route) -> Taking<'a> {
    match taken {
        Some((route, takes)) => Taking { route, takes: Some(takes) },
        None => Taking { route, takes: None },
    }
}

/// A node's state with the rules that change it.
pub struct Replica {
    pub(super) state: State,
    pub(super) route: Route,
    pub(super) merge: Merge,
    pub(super) phase: Phase,
    /// The write lock of the user's database is ours.
    pub(super) begun: bool,
    pub(super) unit_bytes_max: Option<usize>,
    pub(super) position_of: Option<PositionOf>,
    pub(super) send_before: bool,
    /// The shards that changes of the schema have a part in, and the tables whose definitions travel. Without any none travels.
    pub(super) schema: Option<(Vec<ShardId>, Travels)>,
    /// Where rows are that this node takes from others, whatever it sends itself, and which tables' rows and definitions it takes. Without
    /// it, it takes all that it is told of, from where it would send them.
    pub(super) taken: Option<(Route, Travels)>,
    /// The tables whose indexes the applying connection keeps.
    pub(super) indexes_of: Option<Arc<Catalogue>>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("state", &self.state)
            .field("merge", &self.merge)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// Makes a replica of an open state.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn new(state: State, route: Route, merge: Merge) -> Result<Replica, ApplyError> {
        let phase = state.intent()?.map_or(Phase::Idle, Phase::Recovering);
        Ok(Replica {
            state,
            route,
            merge,
            phase,
            begun: false,
            unit_bytes_max: None,
            position_of: None,
            send_before: false,
            schema: None,
            taken: None,
            indexes_of: None,
        })
    }

    /// What is stored.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Sets the encoded size at which a unit is finished, for tests of what small ones do.
    pub fn set_unit_bytes_max(&mut self, bytes: usize) {
        self.unit_bytes_max = Some(bytes);
    }

    /// Stores with every local transaction the capture position behind it.
    pub fn set_position_of(&mut self, position_of: PositionOf) {
        self.position_of = Some(position_of);
    }

    /// Sends rows as they were along with the changes.
    pub fn set_send_before(&mut self, send: bool) {
        self.send_before = send;
    }

    /// Publishes changes of the schema, of the tables that travel. `shard_count` is that of the whole log.
    pub fn set_schema_travels(&mut self, shard_count: u16, travels: Travels) {
        self.schema = Some(((1..=shard_count).map(ShardId).collect(), travels));
    }

    /// Sets which tables this node takes from others, and in which shards all send them.
    pub fn set_taken(&mut self, route: Route, takes: Travels) {
        self.taken = Some((route, takes));
    }

    /// Sets which rows this node replicates. The same for the life of a state.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn set_row_filters(&mut self, filters: RowFilters) -> Result<(), ApplyError> {
        if !filters.is_empty() {
            self.state.keep_outside()?;
        }
        self.state.filters = filters;
        self.state.forget_tables();
        Ok(())
    }

    /// Bounds the conflict journal.
    pub fn set_conflicts_max(&mut self, entries: u64) {
        self.state.conflicts_max = i64::try_from(entries).unwrap_or(i64::MAX);
    }

    /// Whether a crash left an intent of which the first captured transaction must decide. [`Replica::local_sink`] does it by itself; when
    /// capture finds that there is no transaction, [`Replica::abandon_intent`] must be called.
    #[must_use]
    pub fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recovering(_))
    }

    /// Capture has found no transaction behind its position: the user's database never committed the intent, which is taken back.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn abandon_intent(&mut self) -> Result<Option<Recovered>, ApplyError> {
        if !self.is_recovering() {
            return Ok(None);
        }
        self.state.begin()?;
        let reverted = self.state.revert_intent().and_then(|()| self.state.commit());
        if let Err(error) = reverted {
            self.state.rollback()?;
            return Err(error);
        }
        self.phase = Phase::Idle;
        Ok(Some(Recovered::NotOurs))
    }

    /// Goes on with what is stored, as a new process would: whatever was between fold and finish is for capture to tell.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn begin_anew(&mut self) -> Result<(), ApplyError> {
        self.begun = false;
        self.state.set_others_wait(false);
        self.indexes_of = None;
        self.phase = self.state.intent()?.map_or(Phase::Idle, Phase::Recovering);
        Ok(())
    }

    /// Takes local transactions from capture, and stores each by itself.
    ///
    /// # Panics
    /// While a fold is waiting for its commit: what comes then is its own effect or belongs behind it.
    pub fn local_sink(&mut self) -> LocalSink<'_> {
        self.sink(false)
    }

    /// As [`Replica::local_sink`], but stores many transactions together. [`ChangeSink::settle`](crate::change::ChangeSink::settle) must be called before the sink is dropped;
    /// what was not settled is lost, and capture stands behind it.
    ///
    /// # Panics
    /// As [`Replica::local_sink`].
    pub fn local_sink_grouped(&mut self) -> LocalSink<'_> {
        let grouped = !self.is_recovering();
        self.sink(grouped)
    }

    fn sink(&mut self, grouped: bool) -> LocalSink<'_> {
        assert!(!matches!(self.phase, Phase::Folded(_) | Phase::Committed), "capture rests from fold to finish");
        LocalSink::new(self, grouped)
    }

    /// Stores the capture position when it moved without a change for us.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn store_capture_position(&mut self, position: &[u8]) -> Result<(), ApplyError> {
        self.state.store_capture_position(position)
    }

    /// Seals the next round, when none is in flight and something waits. It is stored before its messages are returned.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged.
    pub fn seal(&mut self, limits: SealLimits) -> Result<Vec<InFlight>, ApplyError> {
        self.state.seal(limits)
    }

    /// The sealed messages that are not acknowledged, in order per shard: after a restart they are sent again.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn in_flight(&self) -> Result<Vec<InFlight>, ApplyError> {
        self.state.in_flight()
    }

    /// The bytes of a message in flight.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged.
    pub fn sealed_message(&self, message: InFlight, compress: bool) -> Result<SealedMessage, ApplyError> {
        self.state.sealed_message(message, compress)
    }

    /// The server has stored a message. Saying so twice does no harm.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn acknowledged(&mut self, shard: ShardId, batch_no: u64) -> Result<(), ApplyError> {
        self.state.acknowledge(shard, batch_no)?;
        fault::pass(Point::Acknowledged);
        Ok(())
    }

    /// Begins to apply: takes the write lock of the user's database. Capture is then drained, and [`Replica::fold`] called.
    ///
    /// # Errors
    /// [`ApplyError::Database`], for instance when another writer holds the lock too long.
    pub fn begin(&mut self, conn: &Connection) -> Result<(), ApplyError> {
        assert!(
            !self.begun && matches!(self.phase, Phase::Idle | Phase::Recovering(_)),
            "applying ends before it begins again"
        );
        conn.execute_batch("BEGIN IMMEDIATE")
            .map_err(|source| ApplyError::Database { doing: "taking the write lock", source })?;
        self.begun = true;
        self.state.set_others_wait(true);
        Ok(())
    }

    /// Gives up what was begun, in both databases.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn rollback(&mut self, conn: &Connection) -> Result<(), ApplyError> {
        self.begun = false;
        self.state.set_others_wait(false);
        // Temporary triggers are made within the transaction too.
        self.indexes_of = None;
        if matches!(self.phase, Phase::Folded(_)) {
            self.phase = Phase::Idle;
            self.state.rollback()?;
        }
        if conn.is_autocommit() {
            return Ok(());
        }
        conn.execute_batch("ROLLBACK").map_err(|source| ApplyError::Database { doing: "rolling back", source })
    }

    /// Folds messages, in order per shard: drops duplicates, takes own units out of pending, undoes, folds, redoes.
    ///
    /// A message that cannot be applied stops its shard and is reported; everything before it, and the other shards, are folded.
    ///
    /// # Errors
    /// When a database fails. Then [`Replica::rollback`] must follow.
    ///
    /// # Panics
    /// Unless begun. Captured transactions must have been drained since.
    pub fn fold<A: Arrivals + ?Sized>(
        &mut self,
        conn: &Connection,
        tables: &dyn Tables,
        arrived: &A,
    ) -> Result<FoldReport, ApplyError> {
        assert!(self.begun && matches!(self.phase, Phase::Idle | Phase::Recovering(_)), "fold follows begin");
        // Capture was drained under the write lock. A transaction would have decided about the intent, so there was none.
        self.abandon_intent()?;
        let database = |source| ApplyError::Database { doing: "keeping a savepoint", source };
        conn.execute_batch("SAVEPOINT woodchuck_fold").map_err(database)?;
        let mut blocked: Vec<Blocked> = Vec::new();
        // Each turn stops at an earlier message of some shard than the one before.
        for _ in 0..=arrived.count() {
            let is_open = |index: &usize| {
                let place = arrived.place(*index);
                place.is_some_and(|(shard, seq, _)| !blocked.iter().any(|stop| stop.shard == shard && stop.seq <= seq))
            };
            let open: Vec<usize> = (0..arrived.count()).filter(is_open).collect();
            self.state.begin()?;
            let taking = taking(&self.taken, &self.route);
            match fold_all(&mut self.state, conn, (tables, taking), self.merge, (arrived, &open), true) {
                Ok((net, counts)) => {
                    self.phase = Phase::Folded(net);
                    return Ok(FoldReport { counts, blocked });
                }
                Err(Stop::At(shard, seq, cause)) => {
                    self.state.rollback()?;
                    conn.execute_batch("ROLLBACK TO woodchuck_fold").map_err(database)?;
                    blocked.retain(|stop| stop.shard != shard);
                    blocked.push(Blocked { shard, seq, cause });
                }
                Err(Stop::Failed(error)) => {
                    self.state.rollback()?;
                    return Err(error);
                }
            }
        }
        Err(ApplyError::Damaged { what: "the order of messages" })
    }

    /// Folds messages of this node alone, without the write lock: by I2 their units are under everything that can be seen already, so no
    /// row changes. `None` when that needs rows of the user's database all the same; then nothing was done, and the messages are to be
    /// folded under the lock.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn fold_own<A: Arrivals + ?Sized>(
        &mut self,
        conn: &Connection,
        tables: &dyn Tables,
        arrived: &A,
    ) -> Result<Option<FoldCounts>, ApplyError> {
        let own = self.state.origin();
        let all: Vec<usize> = (0..arrived.count()).collect();
        let is_own = all.iter().all(|index| arrived.place(*index).is_some_and(|(_, _, header)| header.origin == own));
        if !is_own || self.begun || !matches!(self.phase, Phase::Idle) {
            return Ok(None);
        }
        self.state.begin()?;
        let folded = match fold_all_own(&mut self.state, arrived) {
            Ok(Some(counts)) => Ok((NetEffect::new(), counts)),
            Ok(None) => fold_all(
                &mut self.state,
                conn,
                (tables, taking(&self.taken, &self.route)),
                self.merge,
                (arrived, &all),
                false,
            ),
            Err(error) => Err(Stop::Failed(error)),
        };
        let settled = match folded {
            Ok((net, counts)) if net.is_zero() => {
                fault::pass(Point::OwnFolded);
                self.state.settle().and_then(|()| self.state.commit()).map(|()| Some(counts))
            }
            // A message that cannot be taken is told where shards stop.
            Ok(_) | Err(Stop::At(..) | Stop::Failed(ApplyError::NotLocked)) => {
                self.state.rollback()?;
                return Ok(None);
            }
            Err(Stop::Failed(error)) => Err(error),
        };
        if settled.is_err() {
            self.state.rollback()?;
        }
        settled
    }

    /// Commits what was folded: the intent, then the user's database.
    ///
    /// # Errors
    /// When a database fails. If it is the user's, whether it committed is for the next captured transaction to tell, as after a crash.
    pub fn commit(&mut self, conn: &Connection) -> Result<Outcome, ApplyError> {
        let Phase::Folded(net) = self.phase else {
            assert!(matches!(self.phase, Phase::Folded(_)), "commit follows fold");
            return Ok(Outcome::Unchanged);
        };
        if net.is_zero() {
            self.state.settle()?;
            self.state.commit()?;
            self.phase = Phase::Idle;
            self.begun = false;
            conn.execute_batch("ROLLBACK")
                .map_err(|source| ApplyError::Database { doing: "ending an empty transaction", source })?;
            // Temporary triggers that were made within it are gone.
            self.indexes_of = None;
            self.state.set_others_wait(false);
            return Ok(Outcome::Unchanged);
        }
        fault::pass(Point::Folded);
        self.prepare_commit()?;
        fault::pass(Point::IntentWritten);
        self.begun = false;
        conn.execute_batch("COMMIT").map_err(|source| ApplyError::Database { doing: "committing", source })?;
        fault::pass(Point::UserCommitted);
        self.state.set_others_wait(false);
        self.phase = Phase::Committed;
        Ok(Outcome::Written)
    }

    /// Makes the intent durable; from here on only the user's database can tell what happened.
    fn prepare_commit(&mut self) -> Result<(), ApplyError> {
        let Phase::Folded(net) = self.phase else { return Ok(()) };
        self.state.write_intent(&net)?;
        self.state.commit()?;
        self.phase = Phase::Recovering(net);
        Ok(())
    }

    /// Has all of base where those find it who read the state from outside, as [`FrozenState`](super::FrozenState) does.
    ///
    /// # Errors
    /// When `state.db` fails.
    ///
    /// # Panics
    /// While the fate of an intent is open, or a fold waits for its commit: what base is depends on it.
    pub fn lay_out_base(&self) -> Result<(), ApplyError> {
        assert!(matches!(self.phase, Phase::Idle), "base is laid out between two folds");
        self.state.lay_out_all()
    }

    /// Whether asking for a row of base may take longer than others may be kept from writing: [`Replica::lay_out_base`] comes first then, without the
    /// write lock.
    #[must_use]
    pub fn has_much_to_lay_out(&self) -> bool {
        matches!(self.phase, Phase::Idle) && self.state.has_many_runs()
    }

    /// Hands out every row of base: put in place of the visible ones they give the fold, which is what a snapshot holds. The row has the
    /// columns that are not generated, in declared order; `None` stands for no row.
    ///
    /// # Errors
    /// When `state.db` fails or is damaged, and whatever `each` returns.
    pub fn each_base_row(
        &mut self,
        tables: &dyn Tables,
        mut each: impl FnMut(&Table, &RowKey, Option<&Row>) -> Result<(), ApplyError>,
    ) -> Result<(), ApplyError> {
        let names: Vec<String> = self
            .state
            .tables
            .iter()
            .filter(|(_, of)| self.state.rows_of(of) > 0)
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            // A table that is gone shows no row, and the fold's are gone with it.
            let Some(table) = tables.table(&name) else { continue };
            let local = self.state.local_table(&table)?;
            let mut give = |base: BaseRow| each(&table, &base.key, base.row.as_ref());
            match self.state.has_runs(&local) {
                true => self.state.each_deferred(&local, give)?,
                false => self.state.each_base(&local, |_, base| give(base))?,
            }
        }
        Ok(())
    }

    /// Makes the intent the state and stores the capture position behind the commit (`None`: the position stays), in one commit.
    ///
    /// # Errors
    /// When `state.db` fails.
    ///
    /// # Panics
    /// Unless [`Replica::commit`] said [`Outcome::Written`].
    pub fn finish(&mut self, capture_position: Option<&[u8]>) -> Result<(), ApplyError> {
        assert!(matches!(self.phase, Phase::Committed), "finish follows a commit that wrote");
        fault::pass(Point::OwnTaken);
        self.state.begin()?;
        let settled = self.state.settle().and_then(|()| match capture_position {
            Some(position) => self.state.set_meta("capture_position", position),
            None => Ok(()),
        });
        match settled.and_then(|()| self.state.commit()) {
            Ok(()) => {
                fault::pass(Point::IntentSettled);
                self.phase = Phase::Idle;
                Ok(())
            }
            Err(error) => {
                self.state.rollback()?;
                Err(error)
            }
        }
    }
}
