//! Messages in order: duplicates, missing ones, pieces, and whose units they carry.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, params};

use super::apart::RoundUnits;
use super::arrivals::Arrivals;
use super::error::{ApplyError, Cannot};
use super::fold::{FoldCounts, Folder};
use super::names::{Birth, FIRST_SHARD};
use super::net_effect::NetEffect;
use super::replica::Taking;
use super::shape::{Merge, Tables};
use super::state::{Dirty, State, origin_bytes};
use super::undo_redo::Call;
use crate::log::{
    Body, Folded, Header, Origin, SchemaStep, Sequence, ShardId, StreamSeq, Unit, decode_units, units_from_encoded,
};
use crate::schema::Tokens;

/// Why a call of fold ended early.
pub(super) enum Stop {
    /// The shard cannot take this message.
    At(ShardId, StreamSeq, Cannot),
    /// Nothing can go on.
    Failed(ApplyError),
}

/// One attempt, inside an open transaction of `state.db`, and of the user's database if `locked`.
///
/// Without the lock only own messages fold, and [`ApplyError::NotLocked`] says that these need it.
pub(super) fn fold_all<A: Arrivals + ?Sized>(
    state: &mut State,
    conn: &Connection,
    (tables, taking): (&dyn Tables, Taking<'_>),
    merge: Merge,
    (arrived, open): (&A, &[usize]),
    locked: bool,
) -> Result<(NetEffect, FoldCounts), Stop> {
    let own = state.origin();
    // Without the lock nothing changes that can be seen, so there will be no intent to take back. Own messages alone rarely need it: where
    // they make values unique rows of others have to go, and a table that takes another type by now holds them otherwise than they say.
    state.begin_fold(locked).map_err(Stop::Failed)?;
    let folder = Folder::new(conn).map_err(Stop::Failed)?;
    let mut call = Call::new(state, folder, (tables, taking), merge, locked);
    if open.iter().any(|index| arrived.place(*index).is_some_and(|(_, _, header)| header.barrier)) {
        call.folder.net.keep_tables_apart();
        fold_between_barriers(&mut call, conn, arrived, open, own)?;
    } else {
        let open = side_by_side(arrived, open);
        for at in 0..open.len() {
            fold_first(&mut call, arrived, open.get(at..).unwrap_or_default(), own)?;
        }
    }
    if let Err(error) = call.let_go() {
        return Err(match call.changes.failed_at.take() {
            Some((shard, seq)) => stop_at(shard, seq, error),
            None => Stop::Failed(error),
        });
    }
    call.redo().map_err(Stop::Failed)?;
    call.state.versions = std::mem::take(&mut call.folder.net.versions);
    Ok((call.net_effect().map_err(Stop::Failed)?, call.folder.counts))
}

/// Folds messages that bring back all that is pending, exactly as it was sealed: then nothing is pending, and no row needs a base for it.
/// `None` when that is not so; then nothing was done.
pub(super) fn fold_all_own<A: Arrivals + ?Sized>(
    state: &mut State,
    arrived: &A,
) -> Result<Option<FoldCounts>, ApplyError> {
    let own = state.origin();
    // With foreign changes under pending, rows may have to change; and rows that left the filter stay in base.
    if state.suspecting || !state.filters.is_empty() || state.tables.values().any(|table| table.dirty > Dirty::Clean) {
        return Ok(None);
    }
    let mut counts = FoldCounts::default();
    let mut folded: HashMap<ShardId, Folded> = HashMap::new();
    for index in 0..arrived.count() {
        let Some((shard, _, header)) = arrived.place(index) else { return Ok(None) };
        let known = match folded.get(&shard) {
            Some(known) => *known,
            None => state.folded(shard, own)?,
        };
        let is_next = matches!(known.judge(header), Sequence::Next);
        if header.origin != own || header.barrier || !is_next || header.batch_no > state.batch_no_sealed(shard)? {
            return Ok(None);
        }
        folded.insert(shard, Folded::from(header));
        let ids = state.pending_of(shard, header.batch_no)?;
        let units = ids.iter().map(|id| state.pending_bytes(*id)).collect::<Result<Vec<_>, _>>()?;
        let sealed = units_from_encoded(units.iter().map(Vec::as_slice));
        if arrived.units(index)?.is_none_or(|found| *found != *sealed) {
            return Ok(None);
        }
        counts.messages += 1;
        counts.units_own += ids.len() as u64;
    }
    if state.pending_count()? != counts.units_own {
        return Ok(None);
    }
    state.begin_fold(false)?;
    for index in 0..arrived.count() {
        let Some((shard, seq, header)) = arrived.place(index) else { continue };
        state.set_position(shard, seq)?;
        state.set_folded(shard, own, Folded::from(header))?;
        state.mark_acknowledged(shard, header.batch_no)?;
        state.mark_batch_folded(shard, header.batch_no)?;
    }
    state.clear_pending_base()?;
    Ok(Some(counts))
}

fn fold_first<A: Arrivals + ?Sized>(
    call: &mut Call<'_, '_>,
    arrived: &A,
    rest: &[usize],
    own: Origin,
) -> Result<(), Stop> {
    let Some((shard, seq, _)) = rest.first().and_then(|index| arrived.place(*index)) else { return Ok(()) };
    let folded = fold_message(call, arrived, rest, own).and_then(|()| call.store_many_versions());
    // What an earlier message had held may have failed only now.
    let (shard, seq) = call.changes.failed_at.take().unwrap_or((shard, seq));
    folded.map_err(|error| stop_at(shard, seq, error))
}

/// The first message of each shard, then the second of each, and so on: rows that were written together are in messages that stand side by
/// side.
fn side_by_side<A: Arrivals + ?Sized>(arrived: &A, open: &[usize]) -> Vec<usize> {
    let mut counts: HashMap<ShardId, usize> = HashMap::new();
    let mut order = Vec::with_capacity(open.len());
    for index in open {
        let Some((shard, _, _)) = arrived.place(*index) else { continue };
        let count = counts.entry(shard).or_default();
        order.push((*count, *index));
        *count += 1;
    }
    // Stable, so a shard's messages stay in order.
    order.sort_by_key(|(count, _)| *count);
    order.into_iter().map(|(_, index)| index).collect()
}

fn stop_at(shard: ShardId, seq: StreamSeq, error: ApplyError) -> Stop {
    match error {
        ApplyError::Cannot(cause) => Stop::At(shard, seq, cause),
        error => Stop::Failed(error),
    }
}

/// Folds every shard up to the next round that changes the schema, then makes that change, then goes on. The order of such rounds is that
/// of the first shard which has one; in the others a round waits until it is its turn there, or was.
fn fold_between_barriers<A: Arrivals + ?Sized>(
    call: &mut Call<'_, '_>,
    conn: &Connection,
    arrived: &A,
    open: &[usize],
    own: Origin,
) -> Result<(), Stop> {
    let mut shards: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
    for index in open {
        if let Some((shard, _, _)) = arrived.place(*index) {
            shards.entry(shard).or_default().push(*index);
        }
    }
    let mut at: BTreeMap<ShardId, usize> = BTreeMap::new();
    // The last round of our own that the fold has come to here.
    let mut settled = 0;
    loop {
        let mut waiting = None;
        for (shard, indexes) in &shards {
            let at = at.entry(*shard).or_default();
            while let Some(rest) = indexes.get(*at..).filter(|rest| !rest.is_empty()) {
                if is_at_barrier(call, arrived, rest, (own, settled)).map_err(Stop::Failed)? {
                    waiting = waiting.or(Some(rest));
                    break;
                }
                fold_first(call, arrived, rest, own)?;
                *at += 1;
            }
        }
        let Some(rest) = waiting else { return Ok(()) };
        let Some((shard, seq, header)) = rest.first().and_then(|index| arrived.place(*index)) else { return Ok(()) };
        let (origin, round_no) = (header.origin, header.round_no);
        let is_sealed = is_own_sealed(call, shard, header, own).map_err(Stop::Failed)?;
        let is_kept = !is_sealed && is_kept(call, header).map_err(Stop::Failed)?;
        let made = if is_sealed {
            call.settle_round(shard)
        } else if is_kept {
            let units = ArrivedUnits::of_round(call.state, arrived, &shards, &at, (origin, round_no));
            units.and_then(|units| call.settle_kept(&units, origin))
        } else {
            let (tx, seen, steps) = steps_of_round(call, arrived, rest).map_err(|error| stop_at(shard, seq, error))?;
            steps.iter().try_for_each(refuse_other).map_err(|cause| Stop::At(shard, seq, cause))?;
            let units = ArrivedUnits::of_round(call.state, arrived, &shards, &at, (origin, round_no));
            let units = units.map_err(|error| stop_at(shard, seq, error))?;
            call.make_steps(conn, shard, (&steps, seen), Birth { origin, tx, seq: None }, &units)
        };
        let (shard, seq) = call.changes.failed_at.take().unwrap_or((shard, seq));
        made.map_err(|error| stop_at(shard, seq, error))?;
        if is_sealed {
            settled = round_no;
        }
        if !is_kept {
            call.state.set_schema_round(origin, round_no).map_err(Stop::Failed)?;
        }
    }
}

/// What is run as a definition must be one, and for any other statement SQLite is not asked.
fn refuse_other(step: &SchemaStep) -> Result<(), Cannot> {
    let is_definition = |sql: &String| {
        let mut words = Tokens::new(sql).map(|(_, word)| word.to_ascii_lowercase());
        let (first, second) = (words.next(), words.next());
        let of_kind: &[&str] = match step.kind.as_str() {
            "table" => &["table", "virtual"],
            "index" => &["index", "unique"],
            "view" => &["view"],
            "trigger" => &["trigger"],
            _ => &[],
        };
        first.as_deref() == Some("create") && second.is_some_and(|second| of_kind.contains(&second.as_str()))
    };
    if step.before.iter().chain(&step.after).all(is_definition) {
        return Ok(());
    }
    Err(Cannot::NoDefinition { kind: step.kind.clone(), name: step.name.clone() })
}

/// The units of a round that has arrived, over all shards.
struct ArrivedUnits<'a, A: ?Sized> {
    arrived: &'a A,
    /// Each a list of units: the pieces that were kept of it, and the messages with the rest.
    lists: Vec<(ShardId, Vec<u8>, Vec<usize>)>,
}

impl<'a, A: Arrivals + ?Sized> ArrivedUnits<'a, A> {
    /// Of what is left of each shard.
    fn of_round(
        state: &State,
        arrived: &'a A,
        shards: &BTreeMap<ShardId, Vec<usize>>,
        at: &BTreeMap<ShardId, usize>,
        (origin, round_no): (Origin, u64),
    ) -> Result<ArrivedUnits<'a, A>, ApplyError> {
        let mut lists = Vec::new();
        for (shard, indexes) in shards {
            let mut kept = kept_pieces(state, *shard, origin)?;
            let mut pieces = Vec::new();
            for index in indexes.iter().skip(at.get(shard).copied().unwrap_or_default()) {
                let is_of_round = arrived
                    .place(*index)
                    .is_some_and(|(_, _, header)| header.origin == origin && header.round_no == round_no);
                if !is_of_round {
                    continue;
                }
                pieces.push(*index);
                let is_last = match &arrived.batch(*index)?.body {
                    Body::Units(_) => true,
                    Body::Piece { index, count, .. } => index + 1 == *count,
                };
                if is_last {
                    lists.push((*shard, std::mem::take(&mut kept), std::mem::take(&mut pieces)));
                }
            }
        }
        Ok(ArrivedUnits { arrived, lists })
    }
}

impl<A: Arrivals + ?Sized> RoundUnits for ArrivedUnits<'_, A> {
    fn count(&self) -> usize {
        self.lists.len()
    }

    fn load(&self, _: &State, index: usize) -> Result<Vec<Unit>, ApplyError> {
        let Some((shard, kept, messages)) = self.lists.get(index) else { return Ok(Vec::new()) };
        let mut joined = kept.clone();
        for message in messages {
            match self.arrived.batch(*message)?.into_owned().body {
                Body::Units(units) => return Ok(units),
                Body::Piece { index, count, bytes } => {
                    joined.extend_from_slice(&bytes);
                    if index + 1 == count {
                        let origin = self.arrived.place(*message).map(|(_, _, header)| header.origin);
                        let origin = origin.ok_or(ApplyError::NotRead)?;
                        let bad = |_| Cannot::BadPiece { shard: *shard, origin, index, count };
                        return Ok(decode_units(&joined).map_err(bad)?);
                    }
                }
            }
        }
        Ok(Vec::new())
    }
}

fn is_own_sealed(call: &Call<'_, '_>, shard: ShardId, header: &Header, own: Origin) -> Result<bool, ApplyError> {
    Ok(header.origin == own && header.batch_no <= call.state.batch_no_sealed(shard)?)
}

/// Whether the first of the messages that are left belongs to a change of the schema that was not made yet. Our own was made before it was
/// sent; but what comes before it in any shard is folded before it, as on all nodes. `settled` is the last round of our own that was come to: what
/// an intent has kept may be somebody else's, behind that.
fn is_at_barrier<A: Arrivals + ?Sized>(
    call: &Call<'_, '_>,
    arrived: &A,
    rest: &[usize],
    (own, settled): (Origin, u64),
) -> Result<bool, ApplyError> {
    let Some((shard, _, header)) = rest.first().and_then(|index| arrived.place(*index)) else { return Ok(false) };
    if !header.barrier {
        return Ok(false);
    }
    let is_next = matches!(call.state.folded(shard, header.origin)?.judge(header), Sequence::Next);
    let is_settled = header.origin == own && header.round_no <= settled;
    Ok(is_next && !is_settled && (call.state.schema_round(header.origin)? < header.round_no || is_kept(call, header)?))
}

/// Whether what a round does to the schema is made, by an intent that was taken back but for that, and the fold comes to it only now.
fn is_kept(call: &Call<'_, '_>, header: &Header) -> Result<bool, ApplyError> {
    Ok(call.state.schema_round(header.origin)? >= header.round_no && call.state.kept_schema()?.is_some())
}

/// The changes of the schema in the round that begins here. They stand in its first unit, which may be cut into pieces.
fn steps_of_round<A: Arrivals + ?Sized>(
    call: &Call<'_, '_>,
    arrived: &A,
    rest: &[usize],
) -> Result<(u64, StreamSeq, Vec<SchemaStep>), ApplyError> {
    let first = rest.first().and_then(|index| arrived.place(*index)).ok_or(ApplyError::NotRead)?;
    let (shard, origin, round_no) = (first.0, first.2.origin, first.2.round_no);
    let mut joined = kept_pieces(call.state, shard, origin)?;
    for index in rest {
        let of_round =
            |(_, _, header): &(ShardId, StreamSeq, &Header)| header.origin == origin && header.round_no == round_no;
        if arrived.place(*index).filter(of_round).is_none() {
            continue;
        }
        let batch = arrived.batch(*index)?;
        let units = match &batch.body {
            Body::Units(units) => Cow::Borrowed(units.as_slice()),
            Body::Piece { index, count, bytes } => {
                joined.extend_from_slice(bytes);
                if index + 1 < *count {
                    continue;
                }
                let bad = |_| Cannot::BadPiece { shard, origin, index: *index, count: *count };
                Cow::Owned(decode_units(&joined).map_err(bad)?)
            }
        };
        return Ok(units.first().map(|unit| (unit.tx, unit.seen, unit.schema.clone())).unwrap_or_default());
    }
    Ok((0, StreamSeq(0), Vec::new()))
}

/// Folds the first of the messages that are left.
fn fold_message<A: Arrivals + ?Sized>(
    call: &mut Call<'_, '_>,
    arrived: &A,
    rest: &[usize],
    own: Origin,
) -> Result<(), ApplyError> {
    let index = *rest.first().ok_or(ApplyError::NotRead)?;
    let (shard, seq, header) = arrived.place(index).ok_or(ApplyError::NotRead)?;
    call.state.set_position(shard, seq)?;
    match call.state.folded(shard, header.origin)?.judge(header) {
        Sequence::Next => {}
        Sequence::Duplicate => {
            call.folder.counts.duplicates += 1;
            return Ok(());
        }
        Sequence::Missing { from, .. } => {
            return Err(
                Cannot::MissingBatch { shard, origin: header.origin, wanted: from, found: header.batch_no }.into()
            );
        }
    }
    let batch = arrived.batch(index)?;
    call.state.set_folded(shard, header.origin, Folded::from(header))?;
    call.folder.counts.messages += 1;
    let is_sealed = header.origin == own && header.batch_no <= call.state.batch_no_sealed(shard)?;
    if header.origin == own && !is_sealed && !call.state.suspecting {
        return Err(Cannot::NotOurs { shard, batch_no: header.batch_no }.into());
    }
    if is_sealed {
        call.state.mark_acknowledged(shard, header.batch_no)?;
        if let Body::Piece { index, count, .. } = &batch.body {
            // What it holds is in pending; that it is on its way must be known to who asks whether the fold stands inside of something.
            keep_piece(call.state, shard, own, &[])?;
            if index + 1 == *count {
                spend_pieces(call.state, shard, own)?;
            }
        }
        let run_end = own_run_end(arrived, rest, shard, own);
        let sealed = call.state.pending_of(shard, header.batch_no)?;
        let not_ours = || Cannot::NotOurs { shard, batch_no: header.batch_no };
        let units = match &batch.body {
            Body::Units(units) if units.len() != sealed.len() => return Err(not_ours().into()),
            Body::Units(units) => units.as_slice(),
            Body::Piece { .. } => &[],
        };
        for (index, id) in sealed.into_iter().enumerate() {
            let (last, last_batch_no) = call.state.transaction_end(id)?;
            let whole = last == id || last_batch_no.is_some_and(|no| no <= run_end);
            let unit = call.state.pending_unit(id)?;
            // Two nodes that go on from copies of one state use the same numbers for different things.
            if units.get(index).is_some_and(|arrived| *arrived != unit) {
                return Err(not_ours().into());
            }
            note_place(call, (shard, seq), own, &unit)?;
            call.fold_own((id, shard), &unit, whole)?;
        }
        return Ok(());
    }
    let units = match batch.into_owned().body {
        Body::Units(units) => units,
        Body::Piece { index, count, bytes } => join_piece(call.state, shard, header.origin, index, count, &bytes)?,
    };
    units.into_iter().try_for_each(|unit| {
        note_place(call, (shard, seq), header.origin, &unit)?;
        call.fold_foreign(unit, header.origin, (shard, seq))
    })
}

/// Where a change of the schema stands among all of them, and which rows travel in another shard from here on.
fn note_place(
    call: &mut Call<'_, '_>,
    at: (ShardId, StreamSeq),
    origin: Origin,
    unit: &Unit,
) -> Result<(), ApplyError> {
    let (shard, seq) = at;
    if unit.schema.is_empty() {
        return Ok(());
    }
    if shard == FIRST_SHARD {
        call.state.set_birth_seq(origin, unit.tx, seq)?;
        call.state.set_made_seq(&unit.schema, (origin, unit.tx, unit.seen), seq)?;
    }
    call.note_moves(shard, &unit.schema)
}

/// The last own message that follows here with none of another origin between.
fn own_run_end<A: Arrivals + ?Sized>(arrived: &A, rest: &[usize], shard: ShardId, own: Origin) -> u64 {
    let places = rest.iter().filter_map(|index| arrived.place(*index));
    let of_shard = places.filter(|(of, _, _)| *of == shard).map(|(_, _, header)| header);
    of_shard.take_while(|header| header.origin == own).map(|header| header.batch_no).max().unwrap_or(0)
}

/// Keeps a piece; returns the units when it is the last.
fn join_piece(
    state: &State,
    shard: ShardId,
    origin: Origin,
    index: u32,
    count: u32,
    bytes: &[u8],
) -> Result<Vec<Unit>, ApplyError> {
    let bad = || Cannot::BadPiece { shard, origin, index, count };
    let of = params![shard.0, origin_bytes(origin)];
    let next = "SELECT count(*) FROM pieces WHERE shard = ?1 AND origin = ?2 AND spent = 0";
    let known: i64 = state.db.prepare_cached(next)?.query_row(of, |row| row.get(0))?;
    if known != i64::from(index) || index >= count {
        return Err(bad().into());
    }
    keep_piece(state, shard, origin, bytes)?;
    if index + 1 < count {
        return Ok(Vec::new());
    }
    let list = kept_pieces(state, shard, origin)?;
    spend_pieces(state, shard, origin)?;
    decode_units(&list).map_err(|_| bad().into())
}

/// The pieces that wait for those behind them, put together.
fn kept_pieces(state: &State, shard: ShardId, origin: Origin) -> Result<Vec<u8>, ApplyError> {
    let mut list = Vec::new();
    let mut found = state.db.prepare_cached(
        "SELECT bytes FROM pieces WHERE shard = ?1 AND origin = ?2 AND spent = 0 ORDER BY piece_index",
    )?;
    let mut rows = found.query(params![shard.0, origin_bytes(origin)])?;
    while let Some(row) = rows.next()? {
        list.extend_from_slice(&row.get::<_, Vec<u8>>(0)?);
    }
    Ok(list)
}

/// Keeps a piece that waits for those behind it.
fn keep_piece(state: &State, shard: ShardId, origin: Origin, bytes: &[u8]) -> Result<(), ApplyError> {
    // Pieces of the list before may still be there, marked as spent, until they cannot be needed any more.
    let insert = "INSERT INTO pieces(shard, origin, piece_index, bytes, fresh)
        VALUES(?1, ?2, 1 + (SELECT coalesce(max(piece_index), 0) FROM pieces WHERE shard = ?1 AND origin = ?2), ?3, 1)";
    state.db.prepare_cached(insert)?.execute(params![shard.0, origin_bytes(origin), bytes])?;
    Ok(())
}

/// The last piece of a list has come.
fn spend_pieces(state: &State, shard: ShardId, origin: Origin) -> Result<(), ApplyError> {
    state
        .db
        .prepare_cached("UPDATE pieces SET spent = 1 WHERE shard = ?1 AND origin = ?2 AND spent = 0")?
        .execute(params![shard.0, origin_bytes(origin)])?;
    Ok(())
}
