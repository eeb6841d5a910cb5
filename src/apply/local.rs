//! Takes local transactions from capture into pending and base, streaming: one commit of `state.db` for each, or for many.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::alteration::ColumnStep;
use super::base::BaseRow;
use super::deferred::Touched;
use super::error::ApplyError;
use super::names::{Birth, FIRST_SHARD};
use super::net_effect::{NetEffect, SchemaEffect, TouchedTables, written};
use super::pending_units::PendingUnits;
use super::repeated::columns_of_step;
use super::replica::{Phase, Replica};
use super::routing::{made_unique, was_unique};
use super::seal::{SealLimits, ToSend};
use super::shape::LocalTable;
use super::spoken::shapes_told;
use super::state::State;
use crate::change::{ChangeSink, Op, RowChange, RowKey, SchemaChange, TxSpan, canonical_key};
use crate::fault::{self, Point};
use crate::format::{PageNo, Row, Value};
use crate::log::{
    SchemaStep, ShardId, StreamSeq, UNIQUE_UNIT_BYTES_MAX, UNIT_BYTES_MAX, Unit, UnitBuilder, UnitChange, UnitKey,
    UnitOrigin,
};
use crate::schema::{Module, VirtualTable};

/// What became of the intent of a node that died between its two commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The first captured transaction was the intent: it is the state now, and nothing is published.
    Ours,
    /// The user's database never committed it: it was taken back, and the messages will be folded again.
    NotOurs,
}

/// The setting of a state that kept to itself what was written here, for the node sent nothing.
pub const KEPT_TO_ITSELF: &str = "kept_to_itself";

/// Transactions that are stored together at most: commits of `state.db` cost more than what they hold.
const GROUP_MAX: u32 = 256;

/// The unit that is being filled in one shard.
#[derive(Debug)]
struct Open {
    builder: UnitBuilder,
    id: i64,
    touched: Vec<Touched>,
}

impl Open {
    fn begin(state: &mut State, origin: Option<UnitOrigin>, unit_bytes_max: usize) -> Open {
        let origin =
            origin.unwrap_or(UnitOrigin { tx: 0, salts: [0; 8], frame: 0, repaired: false, seen: StreamSeq(0) });
        let builder = UnitBuilder::new(origin, unit_bytes_max);
        Open { builder, id: state.pending_id(), touched: Vec::new() }
    }
}

/// What an open intent is compared with.
#[derive(Debug)]
struct Judged {
    wanted: NetEffect,
    /// By table, in lower case.
    rows: HashMap<String, NetEffect>,
    schema: SchemaEffect,
    touched: TouchedTables,
}

impl Judged {
    fn is_wanted(&self) -> bool {
        self.schema.with_rows(&self.rows, &self.touched) == self.wanted
    }
}

/// Takes captured transactions. Made by [`Replica::local_sink`].
///
/// While the fate of an intent is open, the first transaction decides it: it is taken as local on top of the state before the intent, and
/// when its net effect turns out to be the intent's, that is dropped and the intent becomes the state.
#[derive(Debug)]
pub struct LocalSink<'r> {
    replica: &'r mut Replica,
    open: BTreeMap<ShardId, Open>,
    origin: Option<UnitOrigin>,
    position: Option<Vec<u8>>,
    judged: Option<Judged>,
    /// The transaction changes the schema.
    barrier: bool,
    /// Its changes of the schema that were not taken yet: two tables can have swapped their names.
    steps: Vec<(SchemaStep, Vec<ColumnStep>)>,
    /// The tables that it changes, in lower case: what it makes of their rows is for rows that are there.
    altered: HashSet<String>,
    /// The tables that it drops, in lower case, and their roots, for another one may get the name: their rows need no word of their own.
    dropped: HashMap<String, Option<PageNo>>,
    /// After a gap: the transaction may be the intent's and local ones together.
    tells_ours: bool,
    /// And it was not told yet whether the schema is as the intent made it.
    tells_schema: bool,
    recovered: Option<Recovered>,
    /// Transactions are stored together; how many wait to be.
    grouped: bool,
    waiting: u32,
    /// One of those that wait changes the schema.
    waits_with_schema: bool,
    /// The transaction changes what other nodes would be told of, and this one sends nothing.
    keeps_to_itself: bool,
    /// How to seal what is stored next, in the same commit; and what was sealed.
    seals: Option<(SealLimits, bool)>,
    sealed: Vec<ToSend>,
}

impl<'r> LocalSink<'r> {
    pub(super) fn new(replica: &'r mut Replica, grouped: bool) -> LocalSink<'r> {
        LocalSink {
            replica,
            open: BTreeMap::new(),
            origin: None,
            position: None,
            judged: None,
            barrier: false,
            steps: Vec::new(),
            altered: HashSet::new(),
            dropped: HashMap::new(),
            tells_ours: false,
            tells_schema: false,
            recovered: None,
            grouped,
            waiting: 0,
            waits_with_schema: false,
            keeps_to_itself: false,
            seals: None,
            sealed: Vec::new(),
        }
    }

    fn begin_stored(&mut self) -> Result<(), ApplyError> {
        let state = &self.replica.state;
        if !self.grouped {
            return state.begin();
        }
        if self.waiting == 0 {
            state.begin()?;
        }
        state.set_mark()
    }

    fn commit_stored(&mut self) -> Result<(), ApplyError> {
        if !self.grouped {
            self.replica.state.commit()?;
            fault::pass(Point::Captured);
            return Ok(());
        }
        self.replica.state.drop_mark()?;
        self.waiting += 1;
        if self.waiting < GROUP_MAX { Ok(()) } else { self.settle() }
    }

    fn roll_back_stored(&mut self) -> Result<(), ApplyError> {
        if self.grouped && self.waiting > 0 {
            self.replica.state.roll_back_to_mark()
        } else {
            self.replica.state.rollback()
        }
    }

    /// The capture position after the transaction at hand: its commit stores it.
    pub fn set_capture_position(&mut self, position: &[u8]) {
        self.position = Some(position.to_vec());
    }

    /// What the first transaction told about an intent, if there was one.
    #[must_use]
    pub fn recovered(&self) -> Option<Recovered> {
        self.recovered
    }

    /// Takes back what came of a transaction that did not end. Also done when the sink is dropped.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn abandon(&mut self) -> Result<(), ApplyError> {
        self.open.clear();
        self.forget_schema();
        self.judged = None;
        self.tells_schema = false;
        if self.origin.take().is_some() { self.roll_back_stored() } else { Ok(()) }
    }

    /// Takes the changes of the schema, which go to every shard: all of them are known before the first change of a row.
    fn take_steps(&mut self) -> Result<(), ApplyError> {
        let mut steps = std::mem::take(&mut self.steps);
        let state = &mut self.replica.state;
        if std::mem::take(&mut self.tells_schema) {
            // What an intent made of the schema was committed as a whole, or not at all. It is no local change.
            let all: Vec<SchemaStep> = steps.iter().map(|(step, _)| step.clone()).collect();
            let (mut local, mut kept) = (Vec::with_capacity(all.len()), Vec::new());
            for (step, columns) in steps {
                if state.is_intent_schema(&step, &all)? {
                    kept.push(step);
                } else if let Some(rest) = state.behind_intent_schema(&step)? {
                    kept.push(SchemaStep { after: rest.before.clone(), ..step });
                    let columns = columns_of_step(&rest);
                    local.push((rest, columns));
                } else {
                    local.push((step, columns));
                }
            }
            steps = local;
            match kept.is_empty() {
                true => state.revert_schema()?,
                false => state.keep_schema(&kept, self.origin.map_or(0, |origin| origin.tx))?,
            }
            // It came back with the rows of the intent.
            let dropped = kept.iter().filter(|step| step.kind == "table" && step.after.is_none());
            dropped.map(|step| &step.name).try_for_each(|table| state.clear_base(table))?;
        }
        if steps.is_empty() {
            return Ok(());
        }
        let tx = self.origin.map_or(0, |origin| origin.tx);
        state.note_steps(&steps, &Birth { origin: state.origin(), tx, seq: None })?;
        for shape in steps.iter_mut().flat_map(|(step, _)| step.tables.iter_mut().flatten()) {
            let name = shape.name.clone();
            state.tell_beginnings(shape, &name)?;
        }
        for (step, _) in &steps {
            let is_new = step.kind == "table" && step.before.is_none();
            if let Some(table) = was_unique(step)? {
                state.keep_by_name(table)?;
            }
            if let Some(table) = made_unique(step)?.filter(|_| !is_new) {
                state.move_rows_here(table)?;
            }
        }
        self.barrier = true;
        let unit_bytes_max = self.replica.unit_bytes_max.unwrap_or(UNIT_BYTES_MAX);
        let Some((shards, _)) = &self.replica.schema else { return Ok(()) };
        for shard in shards {
            let open = self.open.entry(*shard).or_insert_with(|| Open::begin(state, self.origin, unit_bytes_max));
            steps.iter().for_each(|(step, _)| open.builder.push_schema(step.clone()));
        }
        Ok(())
    }

    fn take_change(&mut self, change: RowChange) -> Result<(), ApplyError> {
        self.take_steps()?;
        if change.table.is_internal() {
            return Ok(());
        }
        let change = shown(change);
        let canonical = canonical_key(&change.table, &change.key);
        let local = match self.replica.state.known_table(&change.table) {
            Some(local) => local,
            None if (self.replica.route)(&change.table, None).is_none() => {
                return self.keep_row(&change);
            }
            None => self.replica.state.local_table(&change.table)?,
        };
        let key = Some(canonical.as_slice()).filter(|_| !local.travels.is_by_name());
        let Some(shard) = (self.replica.route)(&local.routed, key) else {
            return self.keep_row(&change);
        };
        if change.before_unknown {
            return Err(ApplyError::BeforeUnknown { table: change.table.name.clone() });
        }
        if let Some(judged) = &mut self.judged {
            judged.rows.entry(local.name_lower.clone()).or_default().add_change(&change);
        }
        // A table that is made anew under its name has come with its rows.
        let is_of = |root: &Option<PageNo>| root.is_none_or(|root| root == change.table.root);
        if change.op == Op::Delete && self.dropped.get(&local.name_lower).is_some_and(is_of) {
            return Ok(());
        }
        let is_ours = self.tells_ours && self.replica.state.made(&change)?;
        let Some(change) = within(&local, change)? else { return Ok(()) };
        let mask = if change.op == Op::Update { mask_of(&local, &change) } else { Vec::new() };
        let before = change.before.as_ref().map(|row| written(&change.table, row));
        let image = change
            .after
            .map(|row| if local.shape.columns.len() == row.len() { row } else { written(&change.table, &row) });
        if local.is_unique() {
            for row in [&before, &image].into_iter().flatten() {
                self.replica.state.claim(&local, row)?;
            }
        }
        if is_ours {
            // The row is ahead of the fold, which is about to come to the same place from the row as it was.
            let base = BaseRow { pending: PendingUnits::NONE, key: change.key, row: before };
            return self.replica.state.note_ahead(&local, &canonical, &base);
        }
        let key = match &change.key {
            RowKey::Rowid(rowid) => UnitKey::Rowid(*rowid),
            RowKey::Columns(values) => UnitKey::Columns(values.clone()),
        };
        let if_there = change.op == Op::Update && self.altered.contains(&local.name_lower);
        let sent_before = if self.replica.send_before { before.clone() } else { None };
        let unit_change = UnitChange { table: 0, op: change.op, key, image, mask, before: sent_before, if_there };
        self.push(shard, &local, unit_change)?;
        self.note(shard, &local, &canonical, BaseRow { pending: PendingUnits::NONE, key: change.key, row: before })
    }

    /// Puts the row as it was before the change that was pushed last into base.
    fn note(&mut self, shard: ShardId, table: &LocalTable, key: &[u8], base: BaseRow) -> Result<(), ApplyError> {
        let state = &mut self.replica.state;
        let Some(Open { id, touched, .. }) = self.open.get_mut(&shard) else { return Ok(()) };
        let of_row = key.len() + base.row.iter().flatten().map(Value::heap_bytes).sum::<usize>();
        let bytes = of_row + touched.iter().map(|touched| touched.run.len()).sum::<usize>();
        if self.judged.is_none()
            && state.may_defer(table, bytes)
            && let Some(touched) = touched.iter_mut().find(|touched| touched.table == table.id)
        {
            touched.run.push(table, key, base, *id);
            return Ok(());
        }
        let id = *id;
        // A row that was met before comes before this.
        for open in self.open.values_mut() {
            for touched in open.touched.iter_mut().filter(|touched| touched.table == table.id) {
                let run = std::mem::take(&mut touched.run);
                if !run.is_empty() {
                    state.lay_out_run(open.id, table.id, &run)?;
                }
            }
        }
        state.note_local(table, key, base, id)
    }

    /// Notes a change of a row that does not leave the node. An intent can be about it all the same.
    fn keep_row(&mut self, change: &RowChange) -> Result<(), ApplyError> {
        if self.keep_to_itself(&change.table.name)
            && let Some(judged) = &mut self.judged
        {
            judged.rows.entry(change.table.name.to_ascii_lowercase()).or_default().add_change(change);
        }
        Ok(())
    }

    /// Whether a change of this table does not leave the node because none of this node's does.
    fn keep_to_itself(&mut self, table: &str) -> bool {
        let is_silent = self.replica.schema.is_none();
        let is_kept = is_silent && self.replica.taken.as_ref().is_some_and(|(_, takes)| takes(table));
        self.keeps_to_itself |= is_kept;
        is_kept
    }

    fn forget_schema(&mut self) {
        self.barrier = false;
        self.keeps_to_itself = false;
        self.steps.clear();
        self.altered.clear();
        self.dropped.clear();
    }

    /// Changes of the schema go to every shard, where they stand between what comes before them and what comes after.
    fn take_schema(&mut self, change: SchemaChange) -> Result<(), ApplyError> {
        if let Some(judged) = &mut self.judged {
            judged.schema.add_change(&change);
        }
        let is_internal = |name: &str| name.get(..7).is_some_and(|begin| begin.eq_ignore_ascii_case("sqlite_"));
        if change.of_shadow || is_internal(&change.name) || !is_known(&change) {
            return Ok(());
        }
        let Some((_, travels)) = &self.replica.schema else {
            self.keep_to_itself(&change.table);
            return Ok(());
        };
        if !travels(&change.table) {
            return Ok(());
        }
        let tables = shapes_told(&change);
        let SchemaChange { kind, name, name_before, table, before, after, root_before, renamed_columns, .. } = change;
        let step = SchemaStep { kind, name, name_before, table, before, after, renamed_columns, tables };
        let columns = columns_of_step(&step);
        if step.kind == "table" && step.before.is_some() && step.after.is_some() {
            self.altered.insert(step.name.to_ascii_lowercase());
        }
        if step.kind == "table" && step.after.is_none() {
            self.dropped.insert(step.name.to_ascii_lowercase(), root_before);
        }
        self.steps.push((step, columns));
        Ok(())
    }

    /// Adds a change to its shard's unit.
    fn push(&mut self, shard: ShardId, local: &LocalTable, change: UnitChange) -> Result<(), ApplyError> {
        let origin = self.origin;
        assert!(origin.is_some(), "a change belongs to a transaction that has begun");
        let state = &mut self.replica.state;
        let unit_bytes_max = self.replica.unit_bytes_max.unwrap_or(UNIT_BYTES_MAX);
        let open = self.open.entry(shard).or_insert_with(|| Open::begin(state, origin, unit_bytes_max));
        if local.is_unique() && self.replica.unit_bytes_max.is_none() {
            open.builder.may_grow_to(UNIQUE_UNIT_BYTES_MAX);
        }
        if let Some(unit) = open.builder.push(&local.shape, change) {
            state.push_pending(open.id, shard, &unit, &open.touched, self.barrier)?;
            open.id = state.pending_id();
            open.touched.clear();
        }
        if !open.touched.iter().any(|touched| touched.table == local.id) {
            open.touched.push(Touched::new(local.id));
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ApplyError> {
        self.take_steps()?;
        let is_barrier = self.barrier;
        for (shard, open) in std::mem::take(&mut self.open) {
            let (id, touched) = (open.id, open.touched);
            let last: Option<Unit> = open.builder.finish();
            if let Some(unit) = last {
                self.replica.state.push_pending(id, shard, &unit, &touched, self.barrier)?;
            }
        }
        if is_barrier {
            // The change of the schema is among those that are ahead of the fold.
            self.replica.state.forget_tables();
        }
        // With a changed schema only some rows are compared, and after a gap others may be in between.
        let tells_ours = std::mem::take(&mut self.tells_ours);
        let is_sure = !tells_ours || self.judged.as_ref().is_none_or(|judged| judged.schema.is_empty());
        let keeps_to_itself = self.keeps_to_itself;
        self.forget_schema();
        if let Some(judged) = self.judged.take() {
            if is_sure && judged.is_wanted() {
                // The rows are the intent's. What was written here in the meantime took it for somebody else's.
                self.replica.state.rollback()?;
                self.origin = None;
                self.replica.phase = Phase::Committed;
                self.replica.finish(self.position.take().as_deref())?;
                self.recovered = Some(Recovered::Ours);
                return Ok(());
            }
            self.replica.phase = Phase::Idle;
            self.recovered = Some(Recovered::NotOurs);
        }
        if keeps_to_itself {
            self.replica.state.setting_or(KEPT_TO_ITSELF, b"")?;
        }
        if let Some(position) = self.position.take() {
            self.replica.state.set_meta("capture_position", &position)?;
        }
        self.commit_stored()?;
        self.origin = None;
        Ok(())
    }
}

impl ChangeSink<ApplyError> for LocalSink<'_> {
    fn begin(&mut self, span: &TxSpan) -> Result<(), ApplyError> {
        assert!(self.origin.is_none(), "a transaction ends before the next begins");
        let frame = if span.repaired { 0 } else { span.frame_last.0 };
        self.begin_stored()?;
        let seen = self.replica.state.position(FIRST_SHARD)?;
        self.origin = Some(UnitOrigin { tx: span.tx, salts: span.salts.0, frame, repaired: span.repaired, seen });
        if let Phase::Recovering(intent) = self.replica.phase {
            let touched = self.replica.state.intent_tables()?;
            let schema = SchemaEffect::default();
            self.judged = Some(Judged { wanted: intent, rows: HashMap::new(), schema, touched });
            self.tells_ours = span.repaired;
            self.tells_schema = span.repaired;
            let reverted = match span.repaired {
                true => self.replica.state.note_ahead_to().and_then(|()| self.replica.state.revert_rows()),
                false => self.replica.state.revert_intent(),
            };
            if reverted.is_err() {
                self.abandon()?;
            }
            return reverted;
        }
        Ok(())
    }

    fn schema(&mut self, change: SchemaChange) -> Result<(), ApplyError> {
        self.waits_with_schema = true;
        let taken = self.take_schema(change);
        if taken.is_err() {
            self.abandon()?;
        }
        taken
    }

    fn change(&mut self, change: RowChange) -> Result<(), ApplyError> {
        let taken = self.take_change(change);
        if taken.is_err() {
            self.abandon()?;
        }
        taken
    }

    fn commit(&mut self, span: &TxSpan, _changes: u64) -> Result<(), ApplyError> {
        if let (None, Some(position_of)) = (&self.position, &self.replica.position_of) {
            self.position = Some(position_of(span));
        }
        let ended = self.end();
        if ended.is_err() {
            self.abandon()?;
        }
        ended
    }

    fn settle(&mut self) -> Result<(), ApplyError> {
        self.store()
    }
}

impl LocalSink<'_> {
    /// Stores the transactions that wait to be stored together.
    ///
    /// # Errors
    /// When `state.db` fails.
    pub fn store(&mut self) -> Result<(), ApplyError> {
        if std::mem::take(&mut self.waiting) == 0 {
            return Ok(());
        }
        let with_schema = std::mem::take(&mut self.waits_with_schema);
        let seals = self.seals.take().filter(|_| !with_schema);
        let state = &mut self.replica.state;
        let stored = match seals {
            Some((limits, compress)) => state.seal_along(limits).and_then(|sealed| state.written(&sealed, compress)),
            None => Ok(Vec::new()),
        };
        let stored = stored.and_then(|sealed| state.commit().map(|()| sealed));
        if stored.is_err() {
            state.rollback()?;
        }
        fault::pass(Point::Captured);
        let sealed = stored?;
        if !sealed.is_empty() {
            fault::pass(Point::Sealed);
            self.sealed = sealed;
        }
        Ok(())
    }

    /// Has what is stored next sealed in the same commit: whoever waits for it waits for one commit less. Only while nothing is in flight and
    /// nothing speaks against sealing. A change of the schema is never sealed so, for it may.
    pub fn seal_along(&mut self, limits: SealLimits, compress: bool) {
        self.seals = Some((limits, compress));
    }

    /// The messages of the round that was sealed, in order; empty when none was.
    pub fn take_sealed(&mut self) -> Vec<ToSend> {
        std::mem::take(&mut self.sealed)
    }
}

impl Drop for LocalSink<'_> {
    fn drop(&mut self) {
        // Nobody is left to tell; the next use of state.db meets the same failure.
        let _ = self.abandon();
        if self.waiting > 0 {
            let _ = self.replica.state.rollback();
        }
    }
}

/// Whether the object can be made elsewhere: modules that are not SQLite's own need not be there.
fn is_known(change: &SchemaChange) -> bool {
    let is_known = |sql: &String| {
        change.kind != "table"
            || VirtualTable::parse(&change.name, sql).is_none_or(|table| table.module != Module::Other)
    };
    change.before.iter().chain(&change.after).all(is_known)
}

/// A change of the rows behind a virtual table as one of the virtual table; any other as it is.
fn shown(change: RowChange) -> RowChange {
    let Some(table) = change.table.shown_by.clone() else { return change };
    let without_rowid = |row: Row| row.into_iter().skip(1).collect();
    let key = match change.key {
        RowKey::Columns(values) => match values.first() {
            Some(Value::Integer(rowid)) => RowKey::Rowid(*rowid),
            _ => RowKey::Columns(values),
        },
        key => key,
    };
    let (before, after) = (change.before.map(without_rowid), change.after.map(without_rowid));
    RowChange { table, key, before, after, ..change }
}

/// A change as those see it who know of the rows within the filter alone: a row that leaves it is deleted, one that enters is inserted.
fn within(table: &LocalTable, change: RowChange) -> Result<Option<RowChange>, ApplyError> {
    if !table.is_filtered() {
        return Ok(Some(change));
    }
    let before = table.taken(&change.key, change.before)?;
    let after = table.taken(&change.key, change.after)?;
    let op = match (&before, &after) {
        (None, None) => return Ok(None),
        (None, Some(_)) => Op::Insert,
        (Some(_), None) => Op::Delete,
        (Some(_), Some(_)) => change.op,
    };
    Ok(Some(RowChange { op, before, after, ..change }))
}

fn mask_of(local: &Arc<LocalTable>, change: &RowChange) -> Vec<bool> {
    let changed = change.changed_columns();
    let columns: &Vec<_> = &local.table.columns;
    let mask: Vec<bool> =
        columns.iter().zip(&changed).filter(|(column, _)| !column.generated).map(|(_, changed)| *changed).collect();
    mask
}
