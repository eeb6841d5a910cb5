//! Messages in order: duplicates, missing ones, pieces, and whose units they carry.

use rusqlite::{Connection, params};

use super::error::{ApplyError, Cannot};
use super::fold::{FoldCounts, Folder};
use super::net_effect::NetEffect;
use super::replica::Arrivals;
use super::shape::{Merge, Tables};
use super::state::{State, origin_bytes};
use super::undo_redo::Call;
use crate::log::{Body, Folded, Origin, Sequence, ShardId, StreamSeq, Unit, decode_units};

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
    tables: &dyn Tables,
    merge: Merge,
    (arrived, open): (&A, &[usize]),
    locked: bool,
) -> Result<(NetEffect, FoldCounts), Stop> {
    let own = state.origin();
    // Own messages alone change nothing that can be seen, so there will be no intent to take back.
    // (While units are suspect, own messages that this state never sealed fold like anybody's.)
    let is_foreign = |index: &usize| arrived.place(*index).is_some_and(|(_, _, header)| header.origin != own);
    state.revertible = state.suspecting || open.iter().any(is_foreign);
    let folder = Folder::new(conn).map_err(Stop::Failed)?;
    let mut call = Call::new(state, folder, tables, merge, locked);
    for at in 0..open.len() {
        let rest = open.get(at..).unwrap_or_default();
        let Some((shard, seq, _)) = rest.first().and_then(|index| arrived.place(*index)) else { break };
        fold_message(&mut call, arrived, rest, own).map_err(|error| match error {
            ApplyError::Cannot(cause) => Stop::At(shard, seq, cause),
            error => Stop::Failed(error),
        })?;
    }
    call.redo().map_err(Stop::Failed)?;
    call.state.versions = std::mem::take(&mut call.folder.net.versions);
    Ok((call.folder.net.net, call.folder.counts))
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
            call.fold_own(id, &unit, whole)?;
        }
        return Ok(());
    }
    match &batch.body {
        Body::Units(units) => units.iter().try_for_each(|unit| call.fold_foreign(unit, header.origin)),
        Body::Piece { index, count, bytes } => {
            let joined = join_piece(call.state, shard, header.origin, *index, *count, bytes)?;
            joined.iter().try_for_each(|unit| call.fold_foreign(unit, header.origin))
        }
    }
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
    let mut list = Vec::new();
    let mut found = state.db.prepare_cached(
        "SELECT bytes FROM pieces WHERE shard = ?1 AND origin = ?2 AND spent = 0 ORDER BY piece_index",
    )?;
    let mut rows = found.query(of)?;
    while let Some(row) = rows.next()? {
        list.extend_from_slice(&row.get::<_, Vec<u8>>(0)?);
    }
    spend_pieces(state, shard, origin)?;
    decode_units(&list).map_err(|_| bad().into())
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
